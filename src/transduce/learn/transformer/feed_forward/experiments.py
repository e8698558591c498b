"""What the feed-forward network is for: what attention alone learns late, or not at all (section 3.3)."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from transduce.learn.ledger import FAST
from transduce.learn.training import Training
from transduce.learn.transformer.tagging import UNASKED, Ask, Tagger, share_right, train_tagger

ONE_WITH, ONE_WITHOUT, THREE_WITHOUT = (
    "1 layer: attention + FFN",
    "1 layer: attention alone",
    "3 layers: attention alone",
)
_NETWORKS = {ONE_WITH: (1, True), ONE_WITHOUT: (1, False), THREE_WITHOUT: (3, False)}
_LEARNT = 0.5  # nats: the loss below which a curve counts as having arrived


@dataclass(frozen=True)
class AttentionAlone:
    """A function of two neighboring symbols, learned with feed-forward networks and without."""

    scores: dict[str, float]  # by network: share of positions named right
    trainings: dict[str, Training]
    num_parameters: dict[str, int]  # of the layers
    chance: float
    num_entries: int  # pairs of symbols

    @property
    def gap(self) -> float:
        """Between one whole layer and three of attention alone, which have as many parameters."""
        return self.scores[ONE_WITH] - self.scores[THREE_WITHOUT]

    @property
    def delay(self) -> float:
        """How many times the steps attention alone needs until its loss has fallen; at least, if it never does."""
        return self._arrival(THREE_WITHOUT) / self._arrival(ONE_WITH)

    def _arrival(self, name: str) -> int:
        losses = self.trainings[name].smoothed()
        return next((step for step, loss in enumerate(losses, start=1) if loss < _LEARNT), len(losses))


def sum_of_neighbors(symbols: Int[Tensor, "batch len"], modulus: int) -> Int[Tensor, "batch len one"]:
    """(x_t + x_(t-1)) mod `modulus`, at each position but the first."""
    answers = (symbols + symbols.roll(1, dims=1)) % modulus
    answers[:, 0] = UNASKED
    return answers[..., None]


def entry_of_neighbors(
    symbols: Int[Tensor, "batch len"], table: Int[Tensor, "first second"]
) -> Int[Tensor, "batch len one"]:
    """table[x_(t-1), x_t], at each position but the first."""
    answers = table[symbols.roll(1, dims=1), symbols]
    answers[:, 0] = UNASKED
    return answers[..., None]


def attention_alone(*, fast: bool = FAST) -> AttentionAlone:
    """Trains encoders on sums of neighbors modulo a prime: a rule (section 3.3).

    A layer has 4 d^2 weights in attention and 8 d^2 in its feed-forward network: one whole layer is three of
    attention alone.
    """
    modulus, steps = (5, 150) if fast else (11, 500)
    return _compare(partial(sum_of_neighbors, modulus=modulus), modulus, length=6, steps=steps)


def random_table(*, fast: bool = FAST) -> AttentionAlone:
    """The same with a table of random entries: no rule, every pair of symbols has to be remembered."""
    size, steps = (12, 120) if fast else (40, 500)
    table = torch.randint(size, (size, size), generator=torch.Generator().manual_seed(3))
    return _compare(partial(entry_of_neighbors, table=table), size, length=6, steps=steps)


def _compare(ask: Ask, num_symbols: int, *, length: int, steps: int) -> AttentionAlone:
    test = torch.randint(num_symbols, (300, length), generator=torch.Generator().manual_seed(6))
    found = AttentionAlone({}, {}, {}, 1 / num_symbols, num_symbols**2)
    for name, (num_layers, has_feed_forward) in _NETWORKS.items():
        model = Tagger(num_symbols, feed_forward=has_feed_forward, num_encoder_layers=num_layers, d_ff=256)
        found.trainings[name] = train_tagger(model, ask, num_symbols=num_symbols, length=length, steps=steps)
        found.scores[name] = share_right(model, ask, test)[0]
        found.num_parameters[name] = model.num_layer_parameters
    return found
