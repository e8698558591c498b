"""Rows of different lengths in one flat array."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray


class Ragged:
    """Rows of ids, end to end: `lens[k]` of them for row k."""

    def __init__(self, ids: NDArray[np.integer], lens: NDArray[np.integer]) -> None:
        self.ids, self.lens = ids, lens
        self._starts = _starts(lens)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """The rows, at 4 bytes an id."""
        lens = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        return cls(np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lens.sum(dtype=np.int64))), lens)

    def row(self, row: int) -> NDArray[np.integer]:
        """The ids of one row."""
        return self.ids[self._starts[row] : self._starts[row] + self.lens[row]]

    def select(self, rows: NDArray[np.integer]) -> "Ragged":
        """These rows, in this order."""
        lens = self.lens[rows]
        # Where the ids of each row lie here is where they will lie, moved by the difference of its starts.
        positions = np.repeat(self._starts[rows] - _starts(lens), lens) + np.arange(lens.sum(dtype=np.int64))
        return Ragged(self.ids[positions], lens)

    def followed_by(self, more: "Ragged") -> "Ragged":
        """The rows of both."""
        return Ragged(np.concatenate([self.ids, more.ids]), np.concatenate([self.lens, more.lens]))


def _starts(lens: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.cumsum(lens, dtype=np.int64) - lens
