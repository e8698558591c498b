"""Packed batches for a GPU: sentences end to end in one row, of constant shape and unpadded (see `model.packing`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from transduce.data.batches import EncodedPairs, to_device
from transduce.errors import TransduceError
from transduce.model.packing import Packing
from transduce.text.ragged import starts_of
from transduce.text.tokenizer import Tokenizer

# The rest of a row is filled with this many sentences of padding ids, which are computed but have no loss. They are
# several so as to be short: the longest sentence of a row, filler or not, decides which shape attention gets.
_NUM_FILLERS = 8
# A new shape is a new CUDA graph or compilation, so few may occur: the number of sentences is rounded up to a multiple
# of the first, and the longest sentence of both sides to a power of two, at least the second.
_CAPACITY_ROUNDING, _LEAST_MAX_LEN = 256, 64


@dataclass(frozen=True)
class PackedBatch:
    """Pairs of one forward pass, each side end to end in one row; compare `data.batches.Batch`."""

    src: Int[Tensor, "1 src_tokens"]
    tgt_in: Int[Tensor, "1 tgt_tokens"]
    tgt_out: Int[Tensor, "1 tgt_tokens"]
    src_packing: Packing
    tgt_packing: Packing

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Packing, Packing]:
        """The arguments of `forward_packed`."""
        return self.src, self.tgt_in, self.src_packing, self.tgt_packing

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch on another device; to a GPU it is copied in the background."""
        src, tgt_in, tgt_out = (to_device(ids, device) for ids in (self.src, self.tgt_in, self.tgt_out))
        src_packing, tgt_packing = (_packing_on(packing, device) for packing in (self.src_packing, self.tgt_packing))
        return PackedBatch(src, tgt_in, tgt_out, src_packing, tgt_packing)


def _packing_on(packing: Packing, device: torch.device) -> Packing:
    tensors = (packing.sentences, packing.positions, packing.offsets)
    sentences, positions, offsets = (to_device(tensor, device) for tensor in tensors)
    return Packing(sentences, positions, offsets, packing.max_len)


def pack_batches(
    src_lens: NDArray[np.integer],
    tgt_lens: NDArray[np.integer],
    *,
    batch_tokens: int,
    order: Sequence[int] | NDArray[np.integer],
) -> list[NDArray[np.intp]]:
    """The rows of `order`, in that order, as batches of at most `batch_tokens` tokens on either side.

    A pair longer than that is a batch of its own. Nothing is sorted: without padding, lengths may mix.
    """
    if batch_tokens < 1:
        raise TransduceError(f"batch_tokens ({batch_tokens}) must be at least 1.")
    rows = np.asarray(order, dtype=np.intp)
    sums = [starts_of(lens[rows]) for lens in (src_lens, tgt_lens)]  # tokens before each row, and in the end all
    ends, start = list[int](), 0
    # Each batch takes as many rows as fit: a binary search in the running sums, on both sides.
    while start < len(rows):
        fitting = min(int(np.searchsorted(side, side[start] + batch_tokens, side="right")) - 1 for side in sums)
        start = max(fitting, start + 1)
        ends.append(start)
    return np.split(rows, ends[:-1]) if ends else []


def collate_packed(
    pairs: EncodedPairs, rows: Sequence[int] | NDArray[np.integer], *, num_tokens: int = 0
) -> PackedBatch:
    """The batch of these rows with at least `num_tokens` tokens a side; the target is shifted as in `batches.collate`.

    All batches that fit into `num_tokens` have equal shapes, except where the roundings above differ.
    """
    sides = pairs.select(rows).sides
    src, tgt_out = (side.ids.astype(np.int64) for side in sides)
    src_lens, tgt_lens = (side.lens.astype(np.int64) for side in sides)
    # The row shifted by one: each sentence would begin with the eos of the one before it, so bos takes its place.
    tgt_in = np.concatenate([[Tokenizer.bos_id], tgt_out[:-1]])
    tgt_in[np.cumsum(tgt_lens)[:-1]] = Tokenizer.bos_id
    num_tokens = max(num_tokens, len(src), len(tgt_out)) + _NUM_FILLERS  # at least one token for each filler
    capacity = -(-(len(rows) + _NUM_FILLERS) // _CAPACITY_ROUNDING) * _CAPACITY_ROUNDING
    all_lens = [_with_fillers(lens, num_tokens) for lens in (src_lens, tgt_lens)]
    longest = int(max(lens.max() for lens in all_lens))
    max_len = max(_LEAST_MAX_LEN, 1 << (longest - 1).bit_length())
    return PackedBatch(
        _filled(src, num_tokens),
        _filled(tgt_in, num_tokens),
        _filled(tgt_out, num_tokens),
        _packing(all_lens[0], len(rows), capacity, max_len),
        _packing(all_lens[1], len(rows), capacity, max_len),
    )


def _filled(ids: NDArray[np.int64], num_tokens: int) -> Int[Tensor, "1 tokens"]:
    filled = np.full((1, num_tokens), Tokenizer.pad_id, dtype=np.int64)
    filled[0, : len(ids)] = ids
    return torch.from_numpy(filled)


def _with_fillers(lens: NDArray[np.int64], num_tokens: int) -> NDArray[np.int64]:
    num_free = num_tokens - int(lens.sum())
    filler_lens = np.full(_NUM_FILLERS, num_free // _NUM_FILLERS)
    filler_lens[: num_free % _NUM_FILLERS] += 1
    return np.concatenate([lens, filler_lens])


def _packing(lens: NDArray[np.int64], num_real: int, capacity: int, max_len: int) -> Packing:
    num_tokens, starts = int(lens.sum()), np.cumsum(lens) - lens
    sentences = np.repeat(np.arange(len(lens)), lens)
    positions = np.arange(num_tokens) - np.repeat(starts, lens)
    positions[sentences >= num_real] = 0  # a filler may be longer than any learned position
    # Sentences that do not exist begin at the end of the row and are empty: the shape depends on `capacity` alone.
    offsets = np.full(capacity + 1, num_tokens, dtype=np.int32)
    offsets[: len(lens)] = starts
    return Packing(torch.from_numpy(sentences), torch.from_numpy(positions), torch.from_numpy(offsets), max_len=max_len)
