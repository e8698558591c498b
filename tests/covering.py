"""Covering arrays: few rows of a product of switches in which every three values of three switches still meet."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def covering_array(*switches: Sequence[Hashable], strength: int = 3) -> list[tuple[Any, ...]]:
    """Rows of the product of `switches` such that each `strength` values of different switches meet in one of them.

    Greedy: always the first row that brings the most new meetings. A function of the switches alone.
    """

    def meetings(row: tuple[Any, ...]) -> set[tuple[tuple[int, Any], ...]]:
        return set(combinations(enumerate(row), strength))

    left = {row: meetings(row) for row in product(*switches)}
    chosen: list[tuple[Any, ...]] = []
    while missing := set().union(*left.values()):
        row = max(left, key=lambda row: len(left[row]))
        chosen.append(row)
        left = {other: found - left[row] for other, found in left.items() if found - left[row]}
        assert len(missing) > len(set().union(*left.values()))
    return chosen


def covered(*switches: Sequence[Hashable], strength: int = 3) -> list[Any]:
    """The product of `switches` for `parametrize`: a covering array as it is, the other rows as proofs."""
    return rest_as_proofs(product(*switches), set(covering_array(*switches, strength=strength)))


def rest_as_proofs(rows: Iterable[Any], chosen: Iterable[Any]) -> list[Any]:
    """All `rows`, tuples or plain values, for `parametrize`: those `chosen` as they are, the others as proofs."""
    chosen = set(chosen)
    rows = list(rows)
    assert chosen <= set(rows)
    return [
        pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=[] if row in chosen else pytest.mark.proof)
        for row in rows
    ]
