"""What positions are for, and how far they reach: section 3.5, with parts taken out."""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from transduce.learn.ledger import FAST
from transduce.learn.tasks import BOS, EOS, FIRST_SYMBOL, PAD, SymbolTask, batch_of, reversal, sorting
from transduce.learn.training import Training, exact_match, small_transformer, train, written
from transduce.model import Transformer
from transduce.model.positional import SinusoidalPositions

KINDS = ("sinusoidal", "learned", "rotary", "none")
SENTENCES = ("dog bites man", "man bites dog")
_WORDS = {"dog": 3, "bites": 4, "man": 5, "hund": 6, "beißt": 7, "mann": 8}
_PARTS = ("both halves", "decoder only", "encoder only", "neither")


@dataclass(frozen=True)
class OrderBlindness:
    """Largest differences between what a network makes of one order of its tokens and of another; float64."""

    equivariance_gap: float  # encoder without positions: f(permuted x) against permuted f(x)
    equivariance_gap_with: float  # the same with positions
    answer_gap: float  # the scores of every next word, for the two sentences; the encoder without positions
    answer_gap_with: float
    one_layer_gap: (
        float  # a decoder without positions: the last token's output, when the tokens before it change places
    )
    two_layers_gap: float


@torch.no_grad()
def order_blindness(*, fast: bool = FAST) -> OrderBlindness:
    """Compares orders of the same tokens in untrained networks, in float64 (section 3.5).

    Weights are random, for this is no matter of training: it holds for any. A part without positions is the shipped
    Transformer with `src_positions` or `tgt_positions` taken out.
    """
    del fast  # it is done at once
    seeing, blind = (_untrained(in_encoder=sees) for sees in (True, False))
    return OrderBlindness(
        equivariance_gap=_equivariance_gap(blind),
        equivariance_gap_with=_equivariance_gap(seeing),
        answer_gap=_answer_gap(blind),
        answer_gap_with=_answer_gap(seeing),
        one_layer_gap=_prefix_gap(_untrained(in_decoder=False, num_decoder_layers=1)),
        two_layers_gap=_prefix_gap(_untrained(in_decoder=False, num_decoder_layers=2)),
    )


@dataclass(frozen=True)
class Ablation:
    """Reversal with positions in both halves, in one, in none."""

    scores: dict[str, float]  # share of whole answers that are right, by where positions are
    trainings: dict[str, Training]
    blind_best: float  # the best that anyone can do who knows the symbols and not their order

    @property
    def without_encoder_positions(self) -> float:
        return self.scores["decoder only"]

    @property
    def without_decoder_positions(self) -> float:
        return self.scores["encoder only"]


def ablation(*, fast: bool = FAST) -> Ablation:
    """Trains four networks to reverse, alike but for their positions; scores what they write by themselves."""
    task, _ = _task("reversal", fast)
    test = task.draw(100 if fast else 300, torch.Generator().manual_seed(99))
    parts = _PARTS[:3] if fast else _PARTS
    found = {
        part: _trained(
            "reversal", "sinusoidal", fast=fast, in_encoder=part not in _PARTS[1::2], in_decoder=part not in _PARTS[2:]
        )
        for part in parts
    }
    sources = [[i for i in row if i not in (PAD, EOS)] for row in test.src.tolist()]
    return Ablation(
        scores={part: exact_match(model, test) for part, (model, _) in found.items()},
        trainings={part: training for part, (_, training) in found.items()},
        blind_best=sum(map(chance_of_an_order, sources)) / len(sources),
    )


def chance_of_an_order(symbols: Sequence[int]) -> float:
    """The chance to guess the order of known symbols: one over the number of orders that can be told apart."""
    same = math.prod(math.factorial(count) for count in Counter(symbols).values())
    return same / math.factorial(len(symbols))


@dataclass(frozen=True)
class LengthCurves:
    """Share of whole answers that are right at each length, for each kind of positions."""

    task: str
    longest_trained: int  # symbols in the longest source of training
    lengths: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]  # by kind
    begins_at_last_trained: dict[
        str, float
    ]  # beyond: share of answers to begin with the last symbol of a trained place
    examples: tuple[tuple[list[int], list[int]], ...]  # beyond: right answers, and those with sinusoids

    @property
    def beyond(self) -> int:
        """One and a half times the longest length of training."""
        return self.longest_trained * 3 // 2

    def at(self, kind: str, length: int) -> float:
        return self.scores[kind][self.lengths.index(length)]

    def within(self, kind: str) -> float:
        """The mean over the lengths of training."""
        inside = [s for n, s in zip(self.lengths, self.scores[kind], strict=True) if n <= self.longest_trained]
        return sum(inside) / len(inside)

    @property
    def learned_gap(self) -> float:
        return abs(self.within("learned") - self.within("sinusoidal"))

    @property
    def sinusoidal_beyond(self) -> float:
        return self.at("sinusoidal", self.beyond)

    @property
    def rotary_beyond(self) -> float:
        return self.at("rotary", self.beyond)

    @property
    def none_is_ahead_by(self) -> float:
        return self.at("none", self.beyond) - self.sinusoidal_beyond


def extrapolation(*, fast: bool = FAST) -> LengthCurves:
    """Trains to reverse short sources with each kind of positions; asks for longer ones, too (section 3.5)."""
    return _curves("reversal", fast)


def sorting_beyond(*, fast: bool = FAST) -> LengthCurves:
    """The same for sorting, where what stands where in the source does not matter."""
    return _curves("sorting", fast)


def shift_matrix(offset: int, num_channels: int) -> Float64[Tensor, "channels channels"]:
    """The matrix that turns PE(pos) into PE(pos + offset), the same at every pos: a rotation of each pair."""
    shift = torch.zeros(num_channels, num_channels, dtype=torch.float64)
    for first in range(0, num_channels, 2):
        angle = offset / 10_000 ** (first / num_channels)
        shift[first, first : first + 2] = torch.tensor([math.cos(angle), math.sin(angle)])
        shift[first + 1, first : first + 2] = torch.tensor([-math.sin(angle), math.cos(angle)])
    return shift


_RESIDUAL_AXIS = {  # of which axis of a parameter the channels between sub-layers are, by the end of its name
    "embedding.weight": 1,
    "separate_output_weight": 1,
    "qkv_proj.weight": 1,
    "out_proj.weight": 0,
    "out_proj.bias": 0,
    "up_proj.weight": 1,
    "down_proj.weight": 0,
    "down_proj.bias": 0,
    "norm.weight": 0,
    "norm.bias": 0,
}


@torch.no_grad()
def with_channels_in_order(model: Transformer, order: Sequence[int]) -> Transformer:
    """The same network with the channels between its sub-layers in another order, its sinusoids included."""
    moved = copy.deepcopy(model)
    for name, parameter in moved.named_parameters():
        for end, axis in _RESIDUAL_AXIS.items():
            if name.endswith(end):
                parameter.copy_(parameter.index_select(axis, torch.tensor(order)))
    for positions in (moved.src_positions, moved.tgt_positions):
        assert isinstance(positions, SinusoidalPositions)
        positions.table = positions.table[:, order]
    return moved


def _curves(name: str, fast: bool) -> LengthCurves:
    task, _ = _task(name, fast)
    lengths = tuple(sorted({*range(task.shortest, 2 * task.longest + 1, 1 if fast else 3), task.longest * 3 // 2}))
    tests = [_of_length(task, length, 60 if fast else 150) for length in lengths]
    few = {"reversal": KINDS[:3], "sorting": ("sinusoidal", "none")}  # what claims compare
    kinds = few[name] if fast else KINDS
    models = {kind: _trained(name, kind, fast=fast)[0] for kind in kinds}
    scores = {kind: tuple(exact_match(model, test) for test in tests) for kind, model in models.items()}
    beyond = _of_length(task, task.longest * 3 // 2, 60 if fast else 150)
    sources = [row[:-1] for row in beyond.src.tolist()]
    answers = {kind: written(model, beyond.src, 2 * task.longest) for kind, model in models.items()}
    right = [task.answer(source) for source in sources]
    begins = {
        kind: sum(a[:1] == [s[task.longest - 1]] for s, a in zip(sources, answers[kind], strict=True)) / len(sources)
        for kind in kinds
    }
    examples = tuple(zip(right, answers["sinusoidal"], strict=True))[:3]
    return LengthCurves(name, task.longest, lengths, scores, begins, examples)


def _task(name: str, fast: bool) -> tuple[SymbolTask, int]:
    """The task and the number of training steps."""
    make = {"reversal": reversal, "sorting": sorting}[name]
    return (make(6, 2, 5), 150) if fast else (make(10, 3, 12), {"reversal": 700, "sorting": 500}[name])


def _of_length(task: SymbolTask, length: int, num_rows: int) -> Any:
    alike = SymbolTask(task.name, task.num_symbols, length, length, task.answer)
    return alike.draw(num_rows, torch.Generator().manual_seed(length))


def _trained(
    name: str, kind: str, *, fast: bool, in_encoder: bool = True, in_decoder: bool = True
) -> tuple[Transformer, Training]:
    return _trained_once(name, kind, fast, in_encoder, in_decoder)


@cache  # two experiments look at one of them; all arguments are given, for a default would make another key
def _trained_once(name: str, kind: str, fast: bool, in_encoder: bool, in_decoder: bool) -> tuple[Transformer, Training]:
    task, steps = _task(name, fast)
    size = {"d_model": 32, "d_ff": 64} if fast else {}
    model = small_transformer(task.vocabulary, positions=kind, num_encoder_layers=1, num_decoder_layers=1, **size)
    _leave_positions(model, in_encoder=in_encoder, in_decoder=in_decoder)
    rate = 8e-3 if fast else 4e-3
    return model, train(model, task.draw, steps=steps, batch_size=32, learning_rate=rate, warmup_steps=20)


def _leave_positions(model: Transformer, *, in_encoder: bool, in_decoder: bool) -> None:
    if not in_encoder:
        model.src_positions = None
    if not in_decoder:
        model.tgt_positions = None


def _untrained(*, in_encoder: bool = True, in_decoder: bool = True, **settings: Any) -> Transformer:
    vocabulary = reversal(len(_WORDS)).vocabulary
    model = small_transformer(vocabulary, d_model=24, d_ff=40, **settings).double().eval()
    _leave_positions(model, in_encoder=in_encoder, in_decoder=in_decoder)
    return model


def _equivariance_gap(model: Transformer) -> float:
    random = torch.Generator().manual_seed(5)
    src = torch.randint(FIRST_SYMBOL, FIRST_SYMBOL + len(_WORDS), (7, 11), generator=random)
    order = torch.randperm(11, generator=random)
    return float((model.encode(src[:, order])[0] - model.encode(src)[0][:, order]).abs().max())


def _answer_gap(model: Transformer) -> float:
    target = [_WORDS[word] for word in ("hund", "beißt", "mann")]
    batch = batch_of([([_WORDS[word] for word in sentence.split()], target) for sentence in SENTENCES])
    one, other = model.logits(model(batch.src, batch.tgt_in))
    return float((one - other).abs().max())


def _prefix_gap(model: Transformer) -> float:
    src = torch.tensor([[3, 4, 5, EOS]])
    one, other = torch.tensor([[BOS, 6, 7, 8, 3]]), torch.tensor([[BOS, 8, 6, 7, 3]])
    return float((model(src, one)[:, -1] - model(src, other)[:, -1]).abs().max())
