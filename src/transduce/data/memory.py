"""Pairs in memory: lists, tables, data sets and iterators, recognized by what they can do, not by their class.

Their hashes are those of the two parallel files that they would be, so the same pairs are the same data in any form.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from transduce.data.config import IN_MEMORY
from transduce.data.pairs import Pairs, read_pairs
from transduce.data.parsing import KEYS, as_text, refuse_no_pairs, refuse_unequal, shown, text_of, without_empty
from transduce.errors import DataError
from transduce.files.content import sha256_of


def paths_of(given: Any) -> list[str | Path]:
    """The paths, if that is what is given: one, or a list of some; else none."""
    paths = list(given) if isinstance(given, list | tuple) else [given]
    return paths if all(isinstance(path, str | Path) for path in paths) else []


def names_of(given: Any) -> tuple[str, ...]:
    """The setting `data.train` or `data.valid` for pairs in files or in memory."""
    return tuple(map(str, paths_of(given))) or (IN_MEMORY,)


def pairs_of(given: Any) -> Pairs:
    """Pairs from one or two paths, or from an object in memory.

    That is a table (a DataFrame, a Dataset, a dict of columns) or any iterable of rows, each (source, target) or a
    dict. The columns are source and target, or src and tgt, or, if there are just two, these. Raises DataError.
    """
    if paths := paths_of(given):
        return read_pairs(paths)
    rows = []
    for number, row in enumerate(_rows(given), start=1):
        try:
            rows.append(_pair(row))
        except DataError as error:
            raise DataError(f"pair {number}: {error}") from None
    return pairs_of_rows(rows, KEYS[0])


def pairs_of_rows(rows: Sequence[tuple[str, str]], names: Sequence[str], notes: Sequence[str] = ()) -> Pairs:
    """Pairs that come from no file; their hashes are those of two files, of these `names`, with their lines."""
    src, tgt, skipped = without_empty(rows)
    refuse_no_pairs(len(src), skipped, [IN_MEMORY])
    digests = [sha256_of(as_text(side)) for side in zip(*rows, strict=True)]
    return Pairs(src, tgt, skipped, list(notes), dict(zip(names, digests, strict=True)))


def _rows(given: Any) -> Iterable[Any]:
    """The rows of a table or another iterable, whatever they are."""
    columns = getattr(given, "column_names", getattr(given, "columns", given if isinstance(given, Mapping) else None))
    if columns is None or not hasattr(given, "__getitem__"):  # an iterable, maybe one of `datasets`
        if isinstance(given, str | bytes | Set) or not hasattr(given, "__iter__"):
            raise DataError(f"the pairs are {_described(given)}: give a list of (source, target), a table, or paths.")
        return given
    names = next((keys for keys in KEYS if set(keys) <= set(columns)), list(columns))
    sides = [given[name] for name in names]
    if len(set(names)) != 2 or any(isinstance(side, str) or not hasattr(side, "__iter__") for side in sides):
        advice = "name the two sides source and target; for a dict from texts to texts, give its items()"
        raise DataError(f"the pairs have the columns {shown(list(columns))}: {advice}.")
    sides = [list(side) for side in sides]
    refuse_unequal([f"column {name!r}" for name in names], [len(side) for side in sides])
    return zip(*sides, strict=True)


def _pair(row: Any) -> tuple[str, str]:
    if isinstance(row, Mapping):
        row = next(([row[key] for key in keys] for keys in KEYS if row.keys() >= set(keys)), row)
    if isinstance(row, Mapping) and len(row) == 1 and isinstance(inner := next(iter(row.values())), Mapping):
        [name], (source, target, *_) = row, [*inner, "", ""]
        raise DataError(
            f"its texts are one level down, in {_described(inner)}: give (row[{name!r}][{source!r}], "
            f"row[{name!r}][{target!r}]) for each row."
        )
    if isinstance(row, str | bytes | Set | Mapping) or not hasattr(row, "__len__") or len(row) != 2:
        raise DataError(f"it is {_described(row)}: give (source, target), or a dict with the keys source and target.")
    source, target = (text_of(text, f"the {side}", _described) for side, text in zip(KEYS[0], row, strict=True))
    return source, target


def _described(value: object) -> str:
    return f"{shown(value)} ({type(value).__name__})"
