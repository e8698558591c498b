"""Parts of the shipped network with something taken out: what experiments compare with, and what bugs look like.

Each has the weights of the part it stands for: `part.__class__ = NormWithoutAdd` is the operation.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transduce.data.batches import Batch
from transduce.model import MultiHeadAttention, Transformer
from transduce.model.residual import AddAndNorm


class AttentionWithoutCausalMask(MultiHeadAttention):
    """Ignores `is_causal` and looks at everything, including the future."""

    def forward(self, x: Tensor, memory: Any = None, *, mask: Any = None, is_causal: bool = False) -> Tensor:
        del is_causal
        return super().forward(x, memory, mask=mask, is_causal=False)


class TransformerWithoutPaddingMask(Transformer):
    """Takes padding for words like any other."""

    def encode(self, src: Int[Tensor, "batch src_len"]) -> tuple[Tensor, Bool[Tensor, "batch 1 1 src_len"]]:
        """See `Transformer.encode`; no position is hidden."""
        nothing_is_hidden = torch.ones_like(src, dtype=torch.bool)[:, None, None, :]
        positions = torch.arange(src.size(1), device=src.device)
        x = self._embed(src, positions, self.src_embedding, self.src_positions)
        return self.encoder(x, nothing_is_hidden), nothing_is_hidden


class NormWithoutAdd(AddAndNorm):
    """LayerNorm(Sublayer(x)): keeps the norm, but adds nothing."""

    def forward(
        self, x: Float[Tensor, "batch len d_model"], sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch len d_model"]:
        if self.norm_first:
            return self.dropout(sublayer(self.norm(x)))
        return self.norm(self.dropout(sublayer(x)))


class UnscaledEmbedding(nn.Embedding):
    """Divides by what the Transformer multiplies with (section 3.4); its weights, the output's too, stay."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / math.sqrt(self.embedding_dim)


def forget_shift(batch: Batch) -> Batch:
    """The most common bug: the decoder is given, at each position, the very token that it has to name there."""
    return replace(batch, tgt_in=batch.tgt_out)
