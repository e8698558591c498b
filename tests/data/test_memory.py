"""Pairs in memory are the pairs of the files that would hold them, in whatever form a program has them."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transduce.data.memory import names_of, pairs_of
from transduce.errors import TransduceError

ROWS = [("Ein Hund.", "A dog."), ("tab\there", " \ré"), ("", "nothing"), ("eins", " "), ("\u2028", "„q“")]


class Table:
    """What a DataFrame and a Dataset have in common but for the name of their columns."""

    def __init__(self, attribute: str, columns: dict[Any, Any]) -> None:
        setattr(self, attribute, list(columns))
        self._columns = columns

    def __getitem__(self, name: Any) -> Any:
        return self._columns[name]


class Stream:
    """An iterable data set: columns have names, but only rows can be had."""

    column_names = None

    def __iter__(self) -> Iterator[dict[str, str]]:
        return ({"id": "7", "source": source, "target": target} for source, target in ROWS)


class OnlyIterable:
    """A column of a streamed data set, which has no length."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)


SRC, TGT = map(list, zip(*ROWS, strict=True))
FORMS: dict[str, Callable[[], Any]] = {
    "tuples": lambda: ROWS,
    "lists": lambda: [list(row) for row in ROWS],
    "a tuple of tuples": lambda: tuple(ROWS),
    "an iterator": lambda: iter(ROWS),
    "a generator of dicts": lambda: ({"src": source, "tgt": target} for source, target in ROWS),
    "dicts with more keys": lambda: [{"id": 1, "target": target, "source": source} for source, target in ROWS],
    "zip": lambda: zip(SRC, TGT, strict=True),
    "a dict of columns": lambda: {"target": TGT, "source": SRC, "id": [0] * len(ROWS)},
    "two columns of any names": lambda: {"de": tuple(SRC), "en": np.array(TGT, dtype=object)},
    "an array": lambda: np.array(ROWS, dtype=object),
    "a frame": lambda: Table("columns", {"n": [0] * len(ROWS), "src": SRC, "tgt": TGT}),
    "a frame without names": lambda: Table("columns", {0: SRC, 1: TGT}),
    "a data set": lambda: Table("column_names", {"target": TGT, "source": SRC}),
    "a streamed data set": Stream,
    "a streamed data set with names": lambda: Table(
        "column_names", {"source": OnlyIterable(SRC), "target": OnlyIterable(TGT)}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_pairs_and_the_hashes_of_two_parallel_files(tmp_path: Path, form: str) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, side in zip(paths, (SRC, TGT), strict=True):
        path.write_bytes("".join(f"{line}\n" for line in side).encode())
    pairs = pairs_of(FORMS[form]())
    assert list(zip(pairs.src, pairs.tgt, strict=True)) == [ROWS[0], ROWS[1]]
    assert pairs.skipped == {"empty source": 2, "empty target": 1}
    assert list(pairs.sha256.values()) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert names_of(FORMS[form]()) == ("pairs in memory",)
    from_files = pairs_of(paths)
    assert (from_files.src, from_files.tgt, from_files.skipped) == (pairs.src, pairs.tgt, pairs.skipped)


@pytest.mark.parametrize("name", ["pandas", "datasets"])
def test_the_tables_of_the_libraries_themselves_are_read(name: str) -> None:
    library = pytest.importorskip(name)
    columns = {"id": list(range(5)), "source": SRC, "target": TGT}
    table = library.DataFrame(columns) if name == "pandas" else library.Dataset.from_dict(columns)
    assert pairs_of(table) == pairs_of(ROWS)


@pytest.mark.parametrize("paths", ["p.tsv", Path("p.tsv"), ["p.tsv"], ("a.en", Path("a.de"))])
def test_strings_and_paths_are_paths(paths: Any) -> None:
    assert names_of(paths) == tuple(map(str, paths if isinstance(paths, list | tuple) else [paths]))


GOOD = [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*GOOD, (float("nan"), "x")], "pair 3: the source is nan (float): it must be a string"),
        ([*GOOD, ("x", None)], "pair 3: the target is None (NoneType)"),
        ([*GOOD, ("x", 7)], "pair 3: the target is 7 (int)"),
        ([*GOOD, ("x", b"y")], "pair 3: the target is b'y' (bytes)"),
        ([*GOOD, ("x", "y\nz")], "pair 3: the target contains a line feed"),
        ([*GOOD, ("x\ud800", "y")], "pair 3: the source contains half of a surrogate pair (\\ud800)"),
        ([*GOOD, "ab"], "pair 3: it is 'ab' (str): give (source, target)"),
        ([*GOOD, {"a", "b"}], "pair 3: it is {"),
        ([*GOOD, ("x", "y", "z")], "pair 3: it is ('x', 'y', 'z')"),
        ([*GOOD, {"en": "x", "de": "y"}], "pair 3: it is {'en': 'x', 'de': 'y'} (dict)"),
        ([*GOOD, {"translation": {"en": "x", "de": "y"}}], "give (row['translation']['en'], row['translation']['de'])"),
        ([*GOOD, 7], "pair 3: it is 7 (int)"),
        ((line for line in ["a\tb\n"]), "pair 1: it is 'a\\tb\\n' (str)"),
        (Table("columns", {"en": ["a"], "de": ["b"], "fr": ["c"]}), "['en', 'de', 'fr']: name the two sides"),
        (Table("column_names", {"translation": [{"en": "a"}]}), "the columns ['translation']: name the two sides"),
        ({"hello": "hallo", "world": "Welt"}, "for a dict from texts to texts, give its items()"),
        ({"source": ["a", "b", "c"], "target": ["d"]}, "column 'source' has 3 lines and column 'target' has 1"),
        (set(GOOD), "the pairs are {"),
        (7, "the pairs are 7 (int): give a list of (source, target)"),
        (None, "the pairs are None (NoneType)"),
        ([], "no pairs, because there is nothing in it"),
        (iter([]), "no pairs, because there is nothing in it"),
        ({"source": [], "target": []}, "no pairs, because there is nothing in it"),
        ([("", "a"), (" ", "b")], "no pairs left: 2 with empty source"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_in_one_line_by_its_number(given: Any, message: str) -> None:
    with pytest.raises(TransduceError) as caught:
        pairs_of(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
