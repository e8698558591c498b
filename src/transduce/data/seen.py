"""What a model has seen in training: the characters of each side, and how long its sources were."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unicodedata import combining

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transduce.text.config import FIRST_BYTE_ID, NUM_FIXED_IDS

_NEARLY_ALL = 0.999  # of the sources are at most as long as is recorded: corpora have odd lines
_LINES_AT_ONCE = 10_000  # bounds the memory for their code points


@dataclass(frozen=True)
class Seen:
    """Recorded with a run, in the tokenizer's normal form."""

    source_characters: frozenset[str]
    target_characters: frozenset[str]
    source_len: int  # in tokens, the end symbol included
    target_bytes: frozenset[int] = frozenset(range(256))  # that targets may be spelled with, where tokens lack

    @classmethod
    def of(
        cls, src: Sequence[str], tgt: Sequence[str], src_lens: NDArray[np.integer], tgt_ids: NDArray[np.integer]
    ) -> "Seen":
        """The record for the lines of both sides, the number of tokens of each source, and the ids of all targets."""
        source_len = nearly_longest(np.bincount(src_lens))
        return cls(characters_of(src), characters_of(tgt), source_len, bytes_among(tgt_ids))

    def __or__(self, other: "Seen") -> "Seen":
        """The union of two records: for a model that was trained further."""
        return Seen(
            self.source_characters | other.source_characters,
            self.target_characters | other.target_characters,
            max(self.source_len, other.source_len),
            self.target_bytes | other.target_bytes,
        )

    def as_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        sides = {"source_characters": self.source_characters, "target_characters": self.target_characters}
        numbers = {"source_len": self.source_len, "target_bytes": sorted(self.target_bytes)}
        return {name: "".join(sorted(side)) for name, side in sides.items()} | numbers

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Seen":
        """What `as_dict` gave. Raises ValueError for characters that are no text."""
        "".join([*saved["source_characters"], *saved["target_characters"]]).encode()
        sets = {name: frozenset(values) for name, values in saved.items() if name != "source_len"}
        return cls(**sets, source_len=saved["source_len"])


def characters_of(lines: Sequence[str]) -> frozenset[str]:
    """The different characters of all lines."""
    starts = range(0, len(lines), _LINES_AT_ONCE)
    return frozenset().union(*(set("".join(lines[start : start + _LINES_AT_ONCE])) for start in starts))


def nearly_longest(num_of_len: ArrayLike) -> int:
    """The length that nearly all have at most, given how many have a length of 0, 1, 2, ..."""
    num_shorter = np.cumsum(num_of_len)
    return int(np.searchsorted(num_shorter, _NEARLY_ALL * num_shorter[-1]))


def bytes_among(ids: NDArray[np.integer]) -> frozenset[int]:
    """The bytes that stand for themselves among these ids, as tokens lack for a character."""
    is_byte = (ids >= FIRST_BYTE_ID) & (ids < NUM_FIXED_IDS)
    return frozenset((np.unique(ids[is_byte]) - FIRST_BYTE_ID).tolist())


def num_spelled_together(ids: Sequence[int]) -> int:
    """The number of ids, each word or character that is spelled in bytes counted as one: it is unknown, not long."""
    is_byte = [FIRST_BYTE_ID <= i < NUM_FIXED_IDS for i in ids]
    return len(ids) - sum(before and here for before, here in pairwise(is_byte))


def shown(characters: Iterable[str]) -> str:
    """Characters for a message; those that cannot be seen alone by their code points."""
    return ", ".join(f"U+{ord(c):04X}" if c.isspace() or combining(c) or not c.isprintable() else c for c in characters)
