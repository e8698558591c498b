"""Synthetic tasks: `copy`, `reverse` and `sort` of random letters, `addition` of random numbers, and `dates`.

Their rows are the same on every machine and in every version of Python, and no source occurs twice.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from typing import TypeAlias

SPLITS = {"train": 20_000, "valid": 500, "test": 1_000}  # of every task: split -> number of rows
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SHORTEST_WORD, _LONGEST_WORD = 3, 12
_LARGEST_ADDEND = 999
_FIRST_YEAR, _LAST_YEAR = 1850, 2049

RandBelow: TypeAlias = Callable[[int], int]  # n -> a random number from 0 to n - 1


@dataclass(frozen=True)
class SmallTask:
    """A task, and the function that samples one row of it."""

    description: str
    sample: Callable[[RandBelow], tuple[str, str, str]]  # an identity that occurs once, a source, a target


def generate(name: str, split: str) -> list[tuple[str, str]]:
    """The rows (source, target) of one split of the task of this name."""
    # Python promises the same numbers in every version for `random()` only, not for `randrange` or `choice`.
    generator = random.Random(name)
    rows: dict[str, tuple[str, str]] = {}
    while len(rows) < sum(SPLITS.values()):
        identity, source, target = SMALL_TASKS[name].sample(lambda n: int(generator.random() * n))
        rows.setdefault(identity, (source, target))
    starts = dict(zip(SPLITS, accumulate(SPLITS.values(), initial=0), strict=False))
    return list(rows.values())[starts[split] : starts[split] + SPLITS[split]]


def _of_letters(change: Callable[[str], str]) -> Callable[[RandBelow], tuple[str, str, str]]:
    def sample(randbelow: RandBelow) -> tuple[str, str, str]:
        length = _SHORTEST_WORD + randbelow(_LONGEST_WORD - _SHORTEST_WORD + 1)
        word = "".join(_LETTERS[randbelow(len(_LETTERS))] for _ in range(length))
        return word, word, change(word)

    return sample


def _addition(randbelow: RandBelow) -> tuple[str, str, str]:
    a, b = randbelow(_LARGEST_ADDEND + 1), randbelow(_LARGEST_ADDEND + 1)
    # One identity for a+b and b+a: a model that has seen one knows the other.
    return f"{min(a, b)}+{max(a, b)}", f"{a}+{b}", str(a + b)


def _date(randbelow: RandBelow) -> tuple[str, str, str]:
    """A date as people write it in English, in one of several forms, some with the day of the week."""
    first, last = date(_FIRST_YEAR, 1, 1).toordinal(), date(_LAST_YEAR, 12, 31).toordinal()
    day = date.fromordinal(first + randbelow(last - first + 1))
    month, weekday = _MONTHS[day.month - 1], _WEEKDAYS[day.weekday()]
    month, weekday = (name[:3] if randbelow(2) else name for name in (month, weekday))
    number = f"{day.day}{_ordinal_ending(day.day)}" if randbelow(2) else str(day.day)
    template = ("{d} {m} {y}", "{m} {d}, {y}", "the {d} of {m} {y}", "{y} {m} {d}")[randbelow(4)]
    text = template.format(d=number, m=month, y=day.year)
    return day.isoformat(), f"{weekday}, {text}" if randbelow(2) else text, day.isoformat()


def _ordinal_ending(number: int) -> str:
    return "th" if number in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
_WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_WORDS = f"Random words of {_SHORTEST_WORD} to {_LONGEST_WORD} lower-case letters"
_DAYS = f"Days from {_FIRST_YEAR} to {_LAST_YEAR} as people write them"
_SUMS = f"Sums of two whole numbers from 0 to {_LARGEST_ADDEND}"
SMALL_TASKS = {
    "copy": SmallTask(f"{_WORDS}, unchanged.", _of_letters(lambda word: word)),
    "reverse": SmallTask(f"{_WORDS}, backwards.", _of_letters(lambda word: word[::-1])),
    "sort": SmallTask(f"{_WORDS}, in alphabetical order.", _of_letters(lambda word: "".join(sorted(word)))),
    "addition": SmallTask(f"{_SUMS}, '12+345' to '357'; 345+12 is in no other split.", _addition),
    "dates": SmallTask(f"{_DAYS}, 'Tue, Mar 3rd, 1998' to '1998-03-03'; a day is in one split only.", _date),
}
