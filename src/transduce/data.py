"""Ids of a corpus, and the batches made of them: padding and the shift of the targets happen here and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from transduce.errors import DataError, TransduceError
from transduce.reading import Pairs
from transduce.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """Pairs of one forward pass, padded on the right."""

    src: Int[Tensor, "batch src_len"]  # every row ends with eos, then padding
    tgt_in: Int[Tensor, "batch tgt_len"]  # bos, then the target without its eos
    tgt_out: Int[Tensor, "batch tgt_len"]  # the target with its eos: what `tgt_in` is to predict, position by position

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.src.to(device), self.tgt_in.to(device), self.tgt_out.to(device))


class EncodedPairs:
    """A corpus as ids, each side and row ending with eos; 4 bytes an id, whatever the lengths."""

    def __init__(self, src: Sequence[Sequence[int]], tgt: Sequence[Sequence[int]]) -> None:
        if len(src) != len(tgt):
            raise ValueError(f"src ({len(src)} rows) and tgt ({len(tgt)} rows) must have as many rows.")
        self._src, self._tgt = _Ragged.of(src), _Ragged.of(tgt)

    def __len__(self) -> int:
        return len(self._src.lens)

    @property
    def src_lens(self) -> NDArray[np.int32]:
        """Number of ids of every source, eos included."""
        return self._src.lens

    @property
    def tgt_lens(self) -> NDArray[np.int32]:
        """Number of ids of every target, eos included."""
        return self._tgt.lens

    def src(self, row: int) -> NDArray[np.int32]:
        return self._src.row(row)

    def tgt(self, row: int) -> NDArray[np.int32]:
        return self._tgt.row(row)

    def select(self, rows: Sequence[int] | NDArray[np.integer]) -> "EncodedPairs":
        """The pairs of these rows, in this order."""
        index = np.asarray(rows, dtype=np.intp)
        selected = EncodedPairs.__new__(EncodedPairs)
        selected._src, selected._tgt = self._src.select(index), self._tgt.select(index)
        return selected

    def padded(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sources and targets of these rows as two rectangles, filled up with the padding id."""
        return self._src.padded(rows), self._tgt.padded(rows)


def encode_pairs(tokenizer: Tokenizer, pairs: Pairs, *, max_len: int) -> tuple[EncodedPairs, int]:
    """The pairs as ids, and how many were left out because a side has more than `max_len` of them, eos included.

    Raises DataError if that is all of them.
    """
    encoded = EncodedPairs(tokenizer.encode_source(pairs.src), tokenizer.encode_target(pairs.tgt))
    longer_lens = np.maximum(encoded.src_lens, encoded.tgt_lens)
    kept = np.flatnonzero(longer_lens <= max_len)
    if len(encoded) and not len(kept):
        raise DataError(
            f"No pair is left: in each of the {len(pairs):,} a side is longer than max_len ({max_len}) ids; "
            f"the shortest pair has {longer_lens.min():,}. Raise max_len, or split the texts into sentences."
        )
    num_dropped = len(encoded) - len(kept)
    return (encoded.select(kept) if num_dropped else encoded), num_dropped


def collate(pairs: EncodedPairs, rows: Sequence[int] | NDArray[np.integer]) -> Batch:
    """The batch of these rows; the target is shifted here: position t of `tgt_in` is position t - 1 of `tgt_out`."""
    index = np.asarray(rows, dtype=np.intp)
    src, tgt_out = pairs.padded(index)
    tgt_in = np.empty_like(tgt_out)
    tgt_in[:, 0] = Tokenizer.bos_id
    is_token = tgt_out[:, 1:] != Tokenizer.pad_id
    tgt_in[:, 1:] = np.where(is_token, tgt_out[:, :-1], Tokenizer.pad_id)  # so that no eos goes in
    return Batch(torch.from_numpy(src), torch.from_numpy(tgt_in), torch.from_numpy(tgt_out))


def pad_sources(sources: Sequence[Sequence[int]]) -> Int[Tensor, "batch src_len"]:
    """Sources to predict from as one rectangle, padded on the right."""
    return torch.from_numpy(_Ragged.of(sources).padded(np.arange(len(sources))))


def bucket_batches(
    src_lens: NDArray[np.integer],
    tgt_lens: NDArray[np.integer],
    *,
    batch_tokens: int,
    order: Sequence[int] | NDArray[np.integer],
) -> list[NDArray[np.intp]]:
    """The rows of `order` cut into batches of pairs of about the same length.

    They are sorted by target, then source length; rows of equal lengths stay in the order given. A batch of n pairs has
    n * max(longest source, longest target) <= `batch_tokens`, but a pair longer than that is a batch of its own.
    """
    if batch_tokens < 1:
        raise TransduceError(f"batch_tokens ({batch_tokens}) must be at least 1.")
    rows = np.asarray(order, dtype=np.intp)
    rows = rows[np.lexsort((src_lens[rows], tgt_lens[rows]))]  # stable; the last key is the first to sort by
    starts = []
    size, longest = 0, batch_tokens + 1  # as if a full batch came before
    for position, length in enumerate(np.maximum(src_lens, tgt_lens)[rows].tolist()):
        longest = max(longest, length)
        size += 1
        if size * longest > batch_tokens:
            starts.append(position)
            size, longest = 1, length
    return np.split(rows, starts[1:]) if starts else []


def plan_epoch(
    pairs: EncodedPairs, *, batch_tokens: int, micro_batches: int, seed: int, epoch: int
) -> list[list[NDArray[np.intp]]]:
    """The optimizer steps of an epoch: each a list of `micro_batches` batches of rows; the last may have fewer.

    Every pair occurs once. The plan is a pure function of the lengths and of (`seed`, `epoch`); it is made without
    knowing how many processes share the work.
    """
    if micro_batches < 1:
        raise TransduceError(f"micro_batches ({micro_batches}) must be at least 1.")
    random = np.random.default_rng([seed, epoch])
    # Shuffled before they are sorted, so that pairs of equal lengths meet other neighbours in every epoch.
    order = random.permutation(len(pairs))
    batches = bucket_batches(pairs.src_lens, pairs.tgt_lens, batch_tokens=batch_tokens, order=order)
    shuffled = [batches[number] for number in random.permutation(len(batches))]
    return [shuffled[start : start + micro_batches] for start in range(0, len(shuffled), micro_batches)]


@dataclass(frozen=True)
class _Ragged:
    """Rows of different lengths, end to end in one flat array."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    lens: NDArray[np.int32]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "_Ragged":
        lens = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        if len(lens) and not lens.min():
            raise ValueError(f"Row {int(lens.argmin())} has no ids: every row must end with eos.")
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lens.sum(dtype=np.int64)))
        return cls(ids, _starts(lens), lens)

    def row(self, row: int) -> NDArray[np.int32]:
        return self.ids[self.starts[row] : self.starts[row] + self.lens[row]]

    def select(self, rows: NDArray[np.integer]) -> "_Ragged":
        lens = self.lens[rows]
        return _Ragged(self.ids[self._positions(rows)], _starts(lens), lens)

    def padded(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        lens = self.lens[rows]
        rectangle = np.full((len(rows), lens.max(initial=0)), Tokenizer.pad_id, dtype=np.int64)
        is_token = np.arange(rectangle.shape[1]) < lens[:, None]
        rectangle[is_token] = self.ids[self._positions(rows)]
        return rectangle

    def _positions(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where in `ids` the ids of these rows are, row after row."""
        lens = self.lens[rows]
        return np.repeat(self.starts[rows] - _starts(lens), lens) + np.arange(lens.sum(dtype=np.int64))


def _starts(lens: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.cumsum(lens, dtype=np.int64) - lens
