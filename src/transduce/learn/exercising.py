"""Exercises with hints and checkers: what the reader writes is compared with something independent.

In a notebook: `check("attention-by-hand", my_attention)`, `hint("attention-by-hand")`, `solution("attention-by-hand")`.
An exercise that is not answered yet is `...`; that is no error, so a notebook runs from top to bottom.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import walk_packages
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor

from transduce.errors import TransduceError
from transduce.learn.showing import Shown, code, text

_EXERCISES: dict[str, "Exercise"] = {}
_hints_given: dict[str, int] = {}
_right: set[str] = set()  # exercises whose latest answer was right


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
    """Registers the function below as the checker of exercise `name`; defined again, it takes its own place.

    Raises TransduceError if there is another exercise of this name, or no hint.
    """
    if not hints:
        raise TransduceError(f"exercise '{name}' has no hints: give at least one.")

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        if name in _EXERCISES and _place_of(_EXERCISES[name].check) != _place_of(check):
            raise TransduceError(f"there are two exercises called '{name}': give this one another name.")
        _EXERCISES[name] = Exercise(name, check, hints, solution, wrong)
        return check

    return register


def all_exercises() -> dict[str, Exercise]:
    """Those of all lessons, by name."""
    package = import_module("transduce.learn")
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        if not {"exercises", "checks"}.isdisjoint(module.name.split(".")):
            import_module(module.name)
    return _EXERCISES


def check(name: str, answer: Any) -> Shown:
    """Says whether `answer` is right, and if not, what is wrong with it; never raises for a wrong answer."""
    known = _find(name)
    _right.discard(name)
    if answer is ...:
        return text(f"{name}: not answered yet. Replace the `...`; `hint('{name}')` helps.")
    try:
        if callable(known.solution) and not callable(answer):
            raise Wrong(f"A function was expected, not {textwrap.shorten(repr(answer), 80)}.")
        with torch.random.fork_rng(devices=[]):  # the reader's own random numbers go on as if nothing had been drawn
            known.check(answer)
    except Wrong as wrong:
        return text(f"{name}: not yet. {_sentence(str(wrong))}")
    except Exception as error:
        # Whatever the reader's code raises is an answer too, and a notebook goes on.
        what = f"{type(error).__name__}: {error}"
        if _went_through(error, answer):
            return text(f"{name}: your code raises {what}")
        unreadable = "what your function returns" if callable(answer) else textwrap.shorten(repr(answer), 80)
        return text(f"{name}: not yet. The checker cannot read {unreadable} ({what}). `hint('{name}')` helps.")
    _right.add(name)
    return text(f"{name}: right.")


def missing(names: Iterable[str]) -> list[str]:
    """Those exercises among `names` whose latest answer, if there was one, was not right."""
    return [name for name in names if _find(name).name not in _right]


def returned(found: Any) -> Any:
    """What a function of the reader's returned. Raises Wrong if that is nothing."""
    if found is None or found is ...:
        raise Wrong("It returns None: is it not written yet, or does it lack a `return`?")
    return found


def tensor_of(found: Any, shape: Sequence[int] | None = None) -> Tensor:
    """The reader's tensor, list, array or number as a tensor. Raises Wrong if it is none, or of another shape."""
    try:
        tensor = _stacked(returned(found))
        if tensor.is_complex():
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"A tensor was expected, not {textwrap.shorten(repr(found), 80)}.") from None
    if shape is not None and tensor.shape != tuple(shape):
        raise Wrong(f"It has the shape {tuple(tensor.shape)}; {tuple(shape)} was expected.")
    return tensor


def number_of(found: Any) -> float:
    """The reader's number, also if it is one of torch's or numpy's. Raises Wrong if it is none."""
    if not isinstance(returned(found), str):
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise Wrong(f"A number was expected, not {textwrap.shorten(repr(found), 80)}.")


def choices_of(found: Any, options: Iterable[str]) -> set[str]:
    """What the reader has chosen among `options`, capitals and spaces aside. Raises Wrong if something is none of them.

    One choice needs no brackets, and one-letter choices may come as a word: "AC".
    """
    known = {_folded(option): option for option in options}
    asked = f"Choose among {'; '.join(known.values())}."
    if isinstance(found, str) and _folded(found) not in known and set(map(len, known)) == {1}:
        found = list(found.replace(",", "").replace(" ", ""))
    elif isinstance(found, str):
        found = [found]
    if not isinstance(found, set | frozenset | list | tuple):
        raise Wrong(f"A set of words was expected, not {textwrap.shorten(repr(found), 80)}. {asked}")
    if unknown := [one for one in found if _folded(str(one)) not in known]:
        raise Wrong(f"{unknown[0]!r} is none of the choices. {asked}")
    return {known[_folded(str(one))] for one in found}


def is_close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> bool:
    """Whether they agree in shape and in numbers, in whatever type each is; the default is good for float32."""
    return found.shape == expected.shape and torch.allclose(found.double(), expected.double(), atol=atol)


def hint(name: str) -> Shown:
    """The next hint; after the last one, the last one again."""
    hints = _find(name).hints
    number = min(_hints_given.get(name, 0), len(hints) - 1)
    _hints_given[name] = number + 1
    return text(f"Hint {number + 1} of {len(hints)}: {hints[number]}")


def solution(name: str) -> Shown:
    """One right answer: the source of a function, a class or several of them, or the value."""
    answer = _find(name).solution
    parts = answer if isinstance(answer, tuple) else (answer,)
    if not all(map(callable, parts)):
        return text(repr(answer))
    return code("\n\n".join(textwrap.dedent(inspect.getsource(part)) for part in parts))


def _sentence(words: str) -> str:
    """With a capital, unless it begins with a name of the code."""
    first = words.split(" ", 1)[0].strip(",:")
    is_name = not first.isalpha() or (len(first) == 1 and first != "a")
    return words if is_name else words[:1].upper() + words[1:]


def _place_of(check: Callable[[Any], None]) -> tuple[str, str]:
    return check.__module__, check.__qualname__


def _went_through(error: Exception, answer: Any) -> bool:
    """Whether the reader's function, class, or one of several was at work when `error` was raised."""
    answers = answer if isinstance(answer, tuple) else (answer,)
    parts = [part for one in answers for part in (vars(one).values() if inspect.isclass(one) else (one,))]
    own = {getattr(inspect.unwrap(part), "__code__", None) for part in parts if callable(part)}
    return any(frame.f_code in own for frame, _ in walk_tb(error.__traceback__))


def _stacked(found: Any) -> Tensor:
    """As `torch.as_tensor`, but for iterators and lists of tensors, too; plain numbers keep their digits."""
    if isinstance(found, Iterator):
        found = list(found)
    if isinstance(found, list | tuple) and any(isinstance(part, Tensor | list | tuple) for part in found):
        parts = [_stacked(part) for part in found]
        return torch.stack([part.to(parts[0].dtype) for part in parts])
    tensor = torch.as_tensor(found)
    is_plain = isinstance(found, float | list | tuple) and tensor.is_floating_point()
    return torch.as_tensor(found, dtype=torch.float64) if is_plain else tensor


def _folded(word: str) -> str:
    return " ".join(word.lower().split())


def _find(name: str) -> Exercise:
    known = all_exercises()
    if name not in known:
        raise TransduceError(f"there is no exercise '{name}'; there are: {', '.join(known)}.")
    return known[name]
