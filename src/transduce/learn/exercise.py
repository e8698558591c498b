"""Exercises with hints and checkers: what the reader writes is compared with something independent.

In a notebook: `check("attention-by-hand", my_attention)`, `hint("attention-by-hand")`, `solution("attention-by-hand")`.
An exercise that is not answered yet is `...`; that is no error, so a notebook runs from top to bottom.
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from transduce.errors import TransduceError
from transduce.learn.showing import Shown, code, text

_EXERCISES: dict[str, "Exercise"] = {}
_hints_given: dict[str, int] = {}


class Wrong(Exception):  # noqa: N818 - it reads as what the answer is
    """The answer is wrong; the message says what it does, and what was expected, in a sentence or two."""


@dataclass(frozen=True)
class Exercise:
    """One question, how its answer is checked, and answers that must be accepted and rejected."""

    name: str
    check: Callable[[Any], None]  # raises Wrong
    hints: tuple[str, ...]
    solution: Any  # a function or a value that is right
    wrong: tuple[Any, ...] = field(default=())  # answers that people give and that are wrong


def exercise(
    name: str, *, hints: tuple[str, ...], solution: Any, wrong: tuple[Any, ...]
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers the function below as the checker of exercise `name`."""

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        if name in _EXERCISES:
            raise TransduceError(f"there are two exercises called '{name}'.")
        _EXERCISES[name] = Exercise(name, check, hints, solution, wrong)
        return check

    return register


def all_exercises() -> dict[str, Exercise]:
    """Those of all modules of `transduce.learn.exercises`, by name."""
    package = import_module("transduce.learn.exercises")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return _EXERCISES


def check(name: str, answer: Any) -> Shown:
    """Says whether `answer` is right, and if not, what is wrong with it; never raises for a wrong answer."""
    known = _find(name)
    if answer is ...:
        return text(f"{name}: not answered yet. Replace the `...`; `hint('{name}')` helps.")
    try:
        known.check(answer)
    except Wrong as wrong:
        return text(f"{name}: not yet. {wrong}")
    except Exception as error:
        # Whatever the reader's code raises is an answer too, and a notebook goes on.
        return text(f"{name}: your code raises {type(error).__name__}: {error}")
    return text(f"{name}: right.")


def hint(name: str) -> Shown:
    """The next hint; after the last one, the last one again."""
    hints = _find(name).hints
    number = min(_hints_given.get(name, 0), len(hints) - 1)
    _hints_given[name] = number + 1
    return text(f"Hint {number + 1} of {len(hints)}: {hints[number]}")


def solution(name: str) -> Shown:
    """One right answer: the source of a function, or the value."""
    answer = _find(name).solution
    return code(textwrap.dedent(inspect.getsource(answer))) if callable(answer) else text(repr(answer))


def _find(name: str) -> Exercise:
    known = all_exercises()
    if name not in known:
        raise TransduceError(f"there is no exercise '{name}'; there are: {', '.join(known)}.")
    return known[name]
