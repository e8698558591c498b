"""Batches without padding and of constant shape, for a GPU: sentences end to end in one row (see `model.packing`)."""

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
from transduce.text.tokenizer import Tokenizer

# What is left of a row is filled with this many sentences of padding ids. They are computed and count for nothing.
_NUM_FILLERS = 8
# Few shapes may occur, as each is recorded or compiled anew: the number of sentences is rounded up to a multiple of
# this, and the longest sentence of both sides to one power of two, at least the other.
_CAPACITY_ROUNDING, _LEAST_MAX_LEN = 256, 64


@dataclass(frozen=True)
class PackedBatch:
    """Pairs of one forward pass, each side end to end in one row; compare `data.Batch`."""

    src: Int[Tensor, "1 src_tokens"]
    tgt_in: Int[Tensor, "1 tgt_tokens"]
    tgt_out: Int[Tensor, "1 tgt_tokens"]
    src_packing: Packing
    tgt_packing: Packing

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Packing, Packing]:
        """What `forward_packed` is given."""
        return self.src, self.tgt_in, self.src_packing, self.tgt_packing

    def to(self, device: torch.device) -> "PackedBatch":
        """Copied in the background if the device is a GPU."""
        return PackedBatch(
            to_device(self.src, device),
            to_device(self.tgt_in, device),
            to_device(self.tgt_out, device),
            _packing_on(self.src_packing, device),
            _packing_on(self.tgt_packing, device),
        )


def _packing_on(packing: Packing, device: torch.device) -> Packing:
    return Packing(
        to_device(packing.sentences, device),
        to_device(packing.positions, device),
        to_device(packing.offsets, device),
        packing.max_len,
    )


def pack_batches(
    src_lens: NDArray[np.integer],
    tgt_lens: NDArray[np.integer],
    *,
    batch_tokens: int,
    order: Sequence[int] | NDArray[np.integer],
) -> list[NDArray[np.intp]]:
    """The rows of `order`, as they come, cut into batches of at most `batch_tokens` tokens on either side.

    A pair longer than that is a batch of its own. Nothing is sorted: without padding, lengths may mix.
    """
    if batch_tokens < 1:
        raise TransduceError(f"batch_tokens ({batch_tokens}) must be at least 1.")
    rows = np.asarray(order, dtype=np.intp)
    ends = np.stack([np.cumsum(lens[rows], dtype=np.int64) for lens in (src_lens, tgt_lens)])
    starts = [0] if len(rows) else []
    while starts:
        before = ends[:, starts[-1] - 1] if starts[-1] else np.zeros(2, dtype=np.int64)
        fitting = min(int(np.searchsorted(ends[side], before[side] + batch_tokens, side="right")) for side in (0, 1))
        following = max(fitting, starts[-1] + 1)
        if following >= len(rows):
            break
        starts.append(following)
    return np.split(rows, starts[1:]) if starts else []


def collate_packed(
    pairs: EncodedPairs, rows: Sequence[int] | NDArray[np.integer], *, num_tokens: int = 0
) -> PackedBatch:
    """The batch of these rows with at least `num_tokens` tokens a side; the target is shifted as in `data.collate`.

    All batches of one `num_tokens` that fit into it have equal shapes, but for roundings.
    """
    index = np.asarray(rows, dtype=np.intp)
    src, tgt_out = pairs.joined(index)
    src_lens, tgt_lens = pairs.src_lens[index].astype(np.int64), pairs.tgt_lens[index].astype(np.int64)
    tgt_in = np.concatenate([[Tokenizer.bos_id], tgt_out[:-1]])
    tgt_in[np.cumsum(tgt_lens)[:-1]] = Tokenizer.bos_id
    num_tokens = max(num_tokens, len(src), len(tgt_out)) + _NUM_FILLERS  # at least one token for each filler
    capacity = -(-(len(index) + _NUM_FILLERS) // _CAPACITY_ROUNDING) * _CAPACITY_ROUNDING
    all_lens = [_with_fillers(lens, num_tokens) for lens in (src_lens, tgt_lens)]
    longest = int(max(lens.max() for lens in all_lens))
    max_len = max(_LEAST_MAX_LEN, 1 << (longest - 1).bit_length())
    return PackedBatch(
        _filled(src, num_tokens),
        _filled(tgt_in, num_tokens),
        _filled(tgt_out, num_tokens),
        _packing(all_lens[0], len(index), capacity, max_len),
        _packing(all_lens[1], len(index), capacity, max_len),
    )


def _filled(ids: NDArray[np.int64], num_tokens: int) -> Int[Tensor, "1 tokens"]:
    filled = np.full((1, num_tokens), Tokenizer.pad_id, dtype=np.int64)
    filled[0, : len(ids)] = ids
    return torch.from_numpy(filled)


def _with_fillers(lens: NDArray[np.int64], num_tokens: int) -> NDArray[np.int64]:
    num_left = num_tokens - int(lens.sum())
    filler_lens = np.full(_NUM_FILLERS, num_left // _NUM_FILLERS)
    filler_lens[: num_left % _NUM_FILLERS] += 1
    return np.concatenate([lens, filler_lens])


def _packing(lens: NDArray[np.int64], num_real: int, capacity: int, max_len: int) -> Packing:
    num_tokens, starts = int(lens.sum()), np.cumsum(lens) - lens
    sentences = np.repeat(np.arange(len(lens)), lens)
    positions = np.arange(num_tokens) - np.repeat(starts, lens)
    positions[sentences >= num_real] = 0  # a filler may be longer than any position that was learnt
    offsets = np.full(capacity + 1, num_tokens, dtype=np.int32)
    offsets[: len(lens)] = starts
    return Packing(torch.from_numpy(sentences), torch.from_numpy(positions), torch.from_numpy(offsets), max_len=max_len)
