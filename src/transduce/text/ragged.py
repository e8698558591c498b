"""Rows of different lengths in one flat array."""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray


class Ragged:
    """Rows of ids, end to end: row k is `ids[starts[k] : starts[k + 1]]`."""

    def __init__(self, ids: NDArray[np.integer], starts: NDArray[np.integer]) -> None:
        self.ids, self.starts = ids, starts

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """The rows, at 4 bytes an id."""
        lens = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lens.sum(dtype=np.int64)))
        return cls(ids, starts_of(lens))

    @classmethod
    def chained(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The rows of all parts, one after the other."""
        lens = np.concatenate([part.lens for part in parts])
        return cls(np.concatenate([part.ids for part in parts]), starts_of(lens))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lens(self) -> NDArray[np.int32]:
        """The number of ids of each row."""
        return np.diff(self.starts).astype(np.int32)

    def row(self, row: int) -> NDArray[np.integer]:
        """The ids of one row."""
        return self.ids[self.starts[row] : self.starts[row + 1]]

    def select(self, rows: NDArray[np.integer]) -> "Ragged":
        """These rows, in this order."""
        return self.slices(rows, 0, self.starts[rows + 1] - self.starts[rows])

    def slices(
        self, rows: NDArray[np.integer], begins: NDArray[np.integer] | int, ends: NDArray[np.integer]
    ) -> "Ragged":
        """A slice of each of these rows: the ids from one position up to another."""
        lens = ends - begins
        starts = starts_of(lens)
        # Output position minus new start plus old start is the input position; the difference is the same within a row.
        first = self.starts[rows] + begins
        return Ragged(self.ids[np.repeat(first - starts[:-1], lens) + np.arange(starts[-1])], starts)

    def joined(self, other: "Ragged") -> "Ragged":
        """Rows as long as row k of this and row k of the other together, end to end."""
        alternating = np.arange(2 * len(self)).reshape(2, len(self)).T.ravel()
        ids = Ragged.chained([self, other]).select(alternating).ids
        return Ragged(ids, starts_of(self.lens + other.lens))


def starts_of(lens: NDArray[np.integer]) -> NDArray[np.int64]:
    """The starts of rows of these lengths, end to end, and the end of the last one."""
    return np.concatenate([[0], np.cumsum(lens, dtype=np.int64)])
