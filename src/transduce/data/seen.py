"""What a model has seen in training: the characters of each side, and how long its sources were."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_NEARLY_ALL = 99.9  # per cent of the sources are at most as long as is recorded: corpora have odd lines


@dataclass(frozen=True)
class Seen:
    """Recorded with a run, in the tokenizer's normal form."""

    source_characters: frozenset[str]
    target_characters: frozenset[str]
    source_len: int  # in tokens, the end symbol included
    target_bytes: frozenset[int] = frozenset(range(256))  # that targets may be spelled with, where tokens lack

    @classmethod
    def of(cls, src: Iterable[str], tgt: Iterable[str], src_lens: ArrayLike) -> "Seen":
        """Of the lines of both sides, and the number of tokens of each source."""
        longest = int(np.ceil(np.percentile(np.asarray(src_lens), _NEARLY_ALL)))
        return cls(frozenset().union(*src), frozenset().union(*tgt), longest)

    def as_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        sides = {"source_characters": self.source_characters, "target_characters": self.target_characters}
        numbers = {"source_len": self.source_len, "target_bytes": sorted(self.target_bytes)}
        return {name: "".join(sorted(side)) for name, side in sides.items()} | numbers

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Seen":
        """What `as_dict` gave."""
        sides = {name: frozenset(saved[name]) for name in ("source_characters", "target_characters")}
        target_bytes = frozenset(saved.get("target_bytes", range(256)))
        return cls(**sides, source_len=saved["source_len"], target_bytes=target_bytes)
