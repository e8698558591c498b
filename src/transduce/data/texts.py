"""Texts as a caller in Python gives them: a list, a column of a table, an open file, a generator."""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from transduce.errors import TransduceError

MOST_TEXTS = 2_000  # predicted together: many, so that batches of equal lengths can be formed, but bounded in memory


def list_texts(texts: Iterable[Any], name: str = "text", kinds: Any = str) -> list[Any]:
    """`texts` as a list, in their order: see `iterate_texts`."""
    return list(iterate_texts(texts, name, kinds))


def iterate_texts(texts: Iterable[Any], name: str = "text", kinds: Any = str) -> Iterator[Any]:
    """The texts one after another, from any iterable in an order of its own; lines of a file come without their ends.

    Raises TransduceError: at once if it is one text or no such iterable, later by its number for what is no `str`.
    `kinds` may allow others beside.
    """
    if isinstance(texts, str | bytes):
        hint = " run('...') takes a single one." if name == "text" else ""
        raise TransduceError(f"{texts!r:.60} is a single {name} where several are expected: put it in a list.{hint}")
    try:
        if isinstance(texts, Mapping | Set) or hasattr(texts, "columns"):
            raise TypeError  # iterating would give keys, names of columns, or texts in no order
        items = iter(texts)
    except TypeError:
        raise TransduceError(
            f"the {name}s are given as {type(texts).__name__}: give a list of str, a column of a table, an open file "
            "or a generator."
        ) from None
    return _checked(items, name, kinds, is_file=hasattr(texts, "readline"))


def _checked(texts: Iterator[Any], name: str, kinds: Any, *, is_file: bool) -> Iterator[Any]:
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, kinds):
            kind = kinds.__name__ if isinstance(kinds, type) else "str"
            raise TransduceError(f"{name} {number:,} is {text!r:.60} ({type(text).__name__}): a {kind} is needed.")
        yield text.removesuffix("\n") if is_file else text
