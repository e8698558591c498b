"""Word cache in front of a tokenizer: each distinct word is segmented once, not wherever it occurs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from transduce.text.ragged import Ragged

_MOST_UNITS_KEPT = 200_000  # some 50 MB; with more, the table starts anew
_LONGEST_UNIT_KEPT = 256  # characters; after a longer unit, the table starts anew


class WordTable:
    """Line encoder that looks up the ids of words it has seen; `encode_whole` encodes new ones.

    It needs an `encode_whole` in which no token continues across a single space between two words, so that the ids of
    a line are those of its words, joined. A line with any other space is encoded as one unit.
    """

    def __init__(self, encode_whole: Callable[[list[str]], Iterable[Sequence[int]]]) -> None:
        self._encode_whole = encode_whole
        self._forget()

    def _forget(self) -> None:
        self._number_of: dict[str, int] = defaultdict(count().__next__)  # numbers a unit when it first occurs
        self._units = Ragged.of([])
        self._has_long_unit = False

    def encode(self, lines: Sequence[str]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """The ids of all `lines`, end to end, and the number of ids of each line."""
        if not lines:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
        if self._has_long_unit or len(self._number_of) > _MOST_UNITS_KEPT:
            self._forget()
        # No line holds a newline, so one can stand for the spaces of a line that must not be split.
        marked = [line if _has_single_spaces(line) else line.replace(" ", "\n") for line in lines]
        units = " ".join(marked).split(" ")
        num_known = len(self._number_of)
        numbers = np.fromiter(map(self._number_of.__getitem__, units), dtype=np.int64, count=len(units))
        if num_new := len(self._number_of) - num_known:
            self._learn(num_new)
        encoded = self._units.select(numbers)
        num_units = np.fromiter((line.count(" ") for line in marked), dtype=np.int64, count=len(marked)) + 1
        return encoded.ids, np.add.reduceat(encoded.lens, np.cumsum(num_units) - num_units, dtype=np.int64)

    def _learn(self, num_new: int) -> None:
        """Adds the ids of the units that were numbered last."""
        new = [unit.replace("\n", " ") for unit in islice(reversed(self._number_of), num_new)][::-1]
        self._units = Ragged.chained([self._units, Ragged.of(list(self._encode_whole(new)))])
        self._has_long_unit = any(len(unit) > _LONGEST_UNIT_KEPT for unit in new)


def _has_single_spaces(line: str) -> bool:
    """Whether every space of a line is single and between words."""
    return "  " not in line and line[:1] != " " and line[-1:] != " "
