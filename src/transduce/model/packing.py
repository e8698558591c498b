"""Sentences end to end in one row, without padding: what a GPU wants (constant shapes), with attention that knows them.

A packed batch is a batch of one long row. Token-wise layers do not notice; attention is told by `Segments` which
stretch of the queries belongs to which stretch of the keys: a block-diagonal mask that is never written out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Boundaries of the sentences on one packed side; every token belongs to one."""

    sentences: Int[Tensor, " tokens"]  # which sentence each token is of
    positions: Int[Tensor, " tokens"]  # where it stands in that sentence
    offsets: Int[Tensor, " sentences_and_one"]  # int32: sentence i is offsets[i] to offsets[i + 1]; empty ones last
    max_len: int  # no sentence is longer


@dataclass(frozen=True)
class Segments:
    """Sentence i of the queries looks at sentence i of the keys and at nothing else: a mask for packed batches."""

    queries: Packing
    keys: Packing
    use_triton: bool = False

    def attend(
        self,
        q: Float[Tensor, "1 heads tgt_tokens head_dim"],
        k: Float[Tensor, "1 heads src_tokens head_dim"],
        v: Float[Tensor, "1 heads src_tokens head_dim"],
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "1 heads tgt_tokens head_dim"]:
        """Attention within each sentence: on a GPU in 16 bits by a kernel made for it, elsewhere by way of padding."""
        if self.use_triton:
            return self._attend_by_triton(q, k, v, is_causal)
        attend = self._attend_packed if _has_kernel_for(q) else self._attend_padded
        return attend(q, k, v, is_causal)

    def _attend_by_triton(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        from transduce.model.kernels import attend

        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (1, H, N, K) -> (N, H, K)
        offsets, max_lens = (self.queries.offsets, self.keys.offsets), (self.queries.max_len, self.keys.max_len)
        return attend(q, k, v, offsets, max_lens, is_causal=is_causal).transpose(0, 1)[None]

    def _attend_packed(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn  # loads torch's compiler: over a second, for a GPU alone

        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (1, H, N, K) -> (N, H, K)
        window = (-1, 0) if is_causal else (-1, -1)
        queries, keys = self.queries, self.keys
        output = varlen_attn(q, k, v, queries.offsets, keys.offsets, queries.max_len, keys.max_len, window_size=window)
        assert isinstance(output, Tensor)
        return output.transpose(0, 1)[None]

    def _attend_padded(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        keys, queries = self.keys, self.queries
        lens = keys.offsets.diff()
        mask = (torch.arange(keys.max_len, device=q.device) < lens[:, None])[:, None]  # (sentences, 1, len)
        mask[..., 0] = True  # also of an empty sentence, which nobody asks: a softmax over nothing would be NaN
        if is_causal:  # then queries and keys are the same sentences
            mask = mask & mask.new_ones(keys.max_len, keys.max_len).tril()
        padded = F.scaled_dot_product_attention(
            _padded(q, queries), _padded(k, keys), _padded(v, keys), attn_mask=mask[:, None]
        )
        return padded[queries.sentences, :, queries.positions].transpose(0, 1)[None]  # (N, H, K) -> (1, H, N, K)


def _has_kernel_for(q: Tensor) -> bool:
    """Flash attention wants 16 bits, an Ampere GPU or newer, and heads of a multiple of 8 channels, 256 at most."""
    has_16_bits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
    # Unlike `get_device_capability`, which is traced, the properties are a constant to torch.compile.
    return has_16_bits and is_kernel_size(q.size(-1)) and torch.cuda.get_device_properties(q.device).major >= 8


def is_kernel_size(head_dim: int) -> bool:
    """Whether flash attention takes heads of so many channels."""
    return head_dim % 8 == 0 and head_dim <= 256


def is_tile_size(head_dim: int) -> bool:
    """Whether the attention of `kernels` takes heads of so many channels: a tile has 16 or more, a power of two."""
    return head_dim in (16, 32, 64, 128)


def _padded(x: Float[Tensor, "1 heads tokens head_dim"], packing: Packing) -> Float[Tensor, "rows heads len head_dim"]:
    """One row per sentence, padded with zeros to `packing.max_len`."""
    num_sentences = packing.offsets.size(0) - 1
    padded = x.new_zeros(num_sentences, packing.max_len, x.size(1), x.size(3))
    padded = padded.index_put((packing.sentences, packing.positions), x[0].transpose(0, 1))
    return padded.transpose(1, 2)
