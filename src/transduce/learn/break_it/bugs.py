"""Ten bugs out of real bug reports, put into the shipped network or into its batches: the patients of `break_it`.

Each is a few lines: a subclass of one part, or a change of the batch. Who they are is told here and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transduce.data.batches import Batch
from transduce.learn.surgery import NormWithoutAdd, TransformerWithoutPaddingMask, UnscaledEmbedding, forget_shift
from transduce.learn.tasks import PAD, SymbolTask, reversal
from transduce.learn.training import small_transformer
from transduce.model import MultiHeadAttention, Transformer
from transduce.model.config import VocabularySizes
from transduce.model.positional import SinusoidalPositions

TASK: SymbolTask = reversal(8, 2, 7)
# One id more than the task needs: it stands for padding where padding is to count.
VOCABULARY = VocabularySizes.joint(TASK.vocabulary.source + 1)
PADDING_AS_A_WORD = VOCABULARY.source - 1


class LeakingAttention(MultiHeadAttention):
    """The causal mask starts one diagonal too late: `triu(2)` instead of `triu(1)`."""

    def forward(self, x: Tensor, memory: Any = None, *, mask: Any = None, is_causal: bool = False) -> Tensor:
        if is_causal:
            hidden = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(2)
            mask = (~hidden).expand(x.size(0), 1, -1, -1)
        return super().forward(x, memory, mask=mask)


class ForgottenPositions(SinusoidalPositions):
    """Adds, and forgets to keep the sum."""

    def forward(
        self, x: Float[Tensor, "batch len d_model"], positions: Int[Tensor, "#len"]
    ) -> Float[Tensor, "batch len d_model"]:
        x + self.table[positions]  # the bug: this sum is nobody's
        return x


class SoftmaxOverQueries(MultiHeadAttention):
    """`softmax(dim=-2)`: the weights of each key, not of each query, sum to 1."""

    def forward(self, x: Tensor, memory: Any = None, *, mask: Any = None, is_causal: bool = False) -> Tensor:
        del is_causal
        q, k, v = self.project(x, memory)
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9)
        return self.combine(scores.softmax(dim=-2) @ v)


class HeadsByView(MultiHeadAttention):
    """(B, T, D) reshaped directly to (B, H, T, K): a head gets a slice of the positions, not of the channels."""

    def _split_heads(self, projected: Tensor) -> Tensor:
        rows, length, d_model = projected.shape
        return projected.reshape(rows, self.num_heads, length, d_model // self.num_heads)


class NeverInEvaluation(Transformer):
    """Nobody ever says `eval()`."""

    def train(self, mode: bool = True) -> "NeverInEvaluation":
        del mode
        return super().train(True)


@dataclass(frozen=True)
class Bug:
    """What is done to a healthy network, to its class or to a part, and to a right batch."""

    name: str
    operate: Callable[[Transformer], object] = lambda _: None
    batch: Callable[[Batch], Batch] = lambda batch: batch


@dataclass
class Patient:
    """A network and what its data loader makes of a right batch."""

    model: Transformer
    batch: Callable[[Batch], Batch]

    def draw(self, num_rows: int, random: torch.Generator) -> Batch:
        """A batch as this patient is trained on."""
        return self.batch(TASK.draw(num_rows, random))


def admit(letter: str | None = None, seed: int = 1) -> Patient:
    """An untrained patient; without a letter the healthy network, which has the same weights."""
    sizes = {"d_model": 32, "d_ff": 64, "num_encoder_layers": 1, "num_decoder_layers": 1}
    model = small_transformer(VOCABULARY, seed=seed, dropout=0.05, **sizes)
    bug = Bug("none") if letter is None else _BUGS[letter]
    bug.operate(model)
    model.train(False)
    return Patient(model, bug.batch)


def name_of(letter: str) -> str:
    """What `letter` suffers from."""
    return _BUGS[letter].name


def _turn(part: Any, into: type) -> None:
    part.__class__ = into  # the same weights, another behavior


def _attentions(model: Transformer) -> list[MultiHeadAttention]:
    return [part for part in model.modules() if isinstance(part, MultiHeadAttention)]


def _first(layers: Any) -> Any:
    return next(iter(layers))


def _forget_positions(model: Transformer) -> None:
    _turn(model.src_positions, ForgottenPositions)
    _turn(model.tgt_positions, ForgottenPositions)


def _split_by_view(model: Transformer) -> None:
    for part in _attentions(model):
        _turn(part, HeadsByView)


def _padding_counts(batch: Batch) -> Batch:
    return replace(batch, tgt_out=torch.where(batch.tgt_out == PAD, PADDING_AS_A_WORD, batch.tgt_out))


_BUGS = {
    "A": Bug("embeddings are not scaled", lambda model: _turn(model.src_embedding, UnscaledEmbedding)),
    "B": Bug(
        "causal mask leaks by one", lambda model: _turn(_first(model.decoder.layers).self_attention, LeakingAttention)
    ),
    "C": Bug("heads are split by view", _split_by_view),
    "D": Bug("padding counts in the loss", batch=_padding_counts),
    "E": Bug("residual is forgotten", lambda model: _turn(_first(model.encoder.layers).residual_2, NormWithoutAdd)),
    "F": Bug("dropout stays on", lambda model: _turn(model, NeverInEvaluation)),
    "G": Bug(
        "softmax over the wrong axis",
        lambda model: _turn(_first(model.encoder.layers).self_attention, SoftmaxOverQueries),
    ),
    "H": Bug("positions are not added", _forget_positions),
    "I": Bug("target is not shifted", batch=forget_shift),
    "J": Bug("source padding is not masked", lambda model: _turn(model, TransformerWithoutPaddingMask)),
}
LETTERS = tuple(_BUGS)
