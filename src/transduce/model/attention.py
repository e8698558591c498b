"""Attention (Vaswani et al. 2017, section 3.2): equation 1, its heads, and the two masks.

A mask is True where attention may look, as in `torch.nn.functional.scaled_dot_product_attention`.
Letters: B batch, T queries, S keys, H heads, D d_model, K head_dim.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transduce.model.packing import Segments
from transduce.model.positional import RotaryPositions

_VECTOR_LEN = 16  # float32 numbers in the widest registers of a CPU (AVX-512)

KeysAndValues = tuple[Float[Tensor, "batch heads src_len head_dim"], Float[Tensor, "batch heads src_len head_dim"]]


def attention(
    q: Float[Tensor, "*batch tgt_len head_dim"],
    k: Float[Tensor, "*batch src_len head_dim"],
    v: Float[Tensor, "*batch src_len value_dim"],
    mask: Bool[Tensor, "*#batch #tgt_len src_len"] | None = None,
) -> tuple[Float[Tensor, "*batch tgt_len value_dim"], Float[Tensor, "*batch tgt_len src_len"]]:
    """Equation 1 written out: softmax(Q K^T / sqrt(d_k)) V, and the weights it mixed the values with.

    `MultiHeadAttention` calls the fused kernel instead, which never holds the weights in memory; a test proves the
    two equal. A query that may look nowhere has no meaning here and comes out as NaN.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    return weights @ v, weights


def padding_mask(ids: Int[Tensor, "batch src_len"], pad_id: int) -> Bool[Tensor, "batch 1 1 src_len"]:
    """True at real tokens; broadcasts over heads and queries."""
    return (ids != pad_id)[:, None, None, :]


def causal_mask(length: int) -> Bool[Tensor, "length length"]:
    """True on and below the diagonal: position i looks at positions up to i (section 3.2.3).

    Padding needs no mask of its own beside it: targets are padded on the right, so whatever a real position could
    see of the padding lies in its future.
    """
    return torch.ones(length, length, dtype=torch.bool).tril()


class MultiHeadAttention(nn.Module):
    """Section 3.2.2: `num_heads` attentions side by side, each in its own d_model / num_heads channels.

    W^Q, W^K and W^V of all heads lie in one matrix, so that self-attention is one product; cross-attention uses its
    rows in two parts. `rotary` turns queries and keys by their positions (self-attention only).
    """

    def __init__(self, d_model: int, num_heads: int, rotary: RotaryPositions | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.rotary = rotary

    def forward(
        self,
        x: Float[Tensor, "batch tgt_len d_model"],
        memory: Float[Tensor, "batch src_len d_model"] | KeysAndValues | None = None,
        *,
        mask: Bool[Tensor, "batch 1 #tgt_len src_len"] | Segments | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch tgt_len d_model"]:
        """Attends from `x` to `memory` (or to the keys and values made of it), or to itself without one.

        `is_causal` stands in for `causal_mask`; `Segments` are the mask of a packed batch.
        """
        if isinstance(mask, Segments):
            q, k, v = self.project(x, memory, mask.queries.positions)
            return self.combine(mask.attend(q, k, v, is_causal=is_causal))
        q, k, v = self.project(x, memory)
        if q.device.type == "cpu" and torch.is_grad_enabled():
            k, v, mask = _in_whole_vectors(k, v, mask, is_causal)
        return self.combine(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal))

    def project(
        self,
        x: Float[Tensor, "batch tgt_len d_model"],
        memory: Float[Tensor, "batch src_len d_model"] | KeysAndValues | None = None,
        positions: Int[Tensor, " tgt_len"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), keys and values (B, H, S, K) of `x` attending to `memory`, or to itself.

        `positions` are 0, 1, 2, ... if not given.
        """
        if memory is None:
            return self.project_self(x, torch.arange(x.size(1), device=x.device) if positions is None else positions)
        if isinstance(memory, Tensor):
            memory = self.split_memory(F.linear(memory, *self.memory_projection()))
        return self.project_queries(x), *memory

    def project_self(
        self, x: Float[Tensor, "batch len d_model"], positions: Int[Tensor, "#len"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, T, K) of one sequence; `positions` matter to rotary positions alone."""
        q, k, v = (self._split_heads(part) for part in self.qkv_proj(x).chunk(3, dim=-1))
        if self.rotary is not None:
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        return q, k, v

    def project_queries(
        self, x: Float[Tensor, "batch tgt_len d_model"]
    ) -> Float[Tensor, "batch heads tgt_len head_dim"]:
        """Queries for cross-attention."""
        d_model = x.size(-1)
        return self._split_heads(F.linear(x, self.qkv_proj.weight[:d_model], self.qkv_proj.bias[:d_model]))

    def memory_projection(self) -> tuple[Float[Tensor, "two_d_model d_model"], Float[Tensor, " two_d_model"]]:
        """W^K above W^V, and their biases."""
        d_model = self.out_proj.in_features
        return self.qkv_proj.weight[d_model:], self.qkv_proj.bias[d_model:]

    def split_memory(self, projected: Float[Tensor, "batch src_len two_d_model"]) -> KeysAndValues:
        """Keys and values for cross-attention, of a memory multiplied by `memory_projection`."""
        k, v = projected.chunk(2, dim=-1)
        return self._split_heads(k), self._split_heads(v)

    def combine(self, heads: Float[Tensor, "batch heads tgt_len head_dim"]) -> Float[Tensor, "batch tgt_len d_model"]:
        """Concat(head_1, ..., head_h) W^O."""
        return self.out_proj(heads.transpose(1, 2).flatten(2))  # (B, H, T, K) -> (B, T, D)

    def _split_heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, H, T, K)


def _in_whole_vectors(
    k: Tensor, v: Tensor, mask: Bool[Tensor, "batch 1 #tgt_len src_len"] | None, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask with keys that nobody sees added where they make a whole number of vectors.

    The softmax of torch's CPU kernel takes 16 numbers at a time and what is left over one by one, slower than 16 more.
    """
    num_more = -k.size(2) % _VECTOR_LEN
    is_hidden = is_causal or mask is not None  # causal queries see no key beyond their own number
    if not is_hidden or not 0 < num_more <= _VECTOR_LEN // 2:
        return k, v, mask
    k, v = (F.pad(x, (0, 0, 0, num_more)) for x in (k, v))
    return k, v, mask if mask is None else F.pad(mask, (0, num_more))
