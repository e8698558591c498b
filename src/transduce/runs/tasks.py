"""The kinds of task that `fit` knows: how each is recognised by its pairs, cut into pieces and scored."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from transduce.data.pairs import Pairs
from transduce.errors import TransduceError, nearest
from transduce.text.config import Kind

_ENOUGH_PAIRS = 10_000  # spread evenly over the corpus: what is looked at
_FEW_TYPES = 200  # a side written with so few different words is one of symbols, such as phonemes
_NEARLY_ALL = 0.98  # of the pairs must have the form: files have odd lines
_SHORT = 40  # characters on average: what is cheap to read and write letter by letter
_OFTEN = 20  # pairs for each set of features that are no tags: sentences begin alike, too, but not so often

_OPERAND = r"[-+]?(?:0|[1-9]\d*)(?:[.,]\d+)?"
_FORMULA = re.compile(rf"[\s(]*{_OPERAND}[\s)]*(?:[-+*/^%×÷·=<>]+[\s(]*{_OPERAND}[\s)]*)+[=?\s]*")
_NUMBER = re.compile(r"\s*[-+]?(?:\d+|\d{1,3}(?:[., ]\d{3})+)(?:[.,]\d+)?\s*")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai to Chinese
_UNSPACED_WORD_LEN = 4  # letters, generously


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of task."""

    name: str
    form: str  # of its pairs, as a person would say it
    has_form: Callable[[Pairs], bool] = field(repr=False)
    pieces: Literal["characters", "bpe"]
    has_symbols: bool = False  # a side that is made of few words has those for its pieces
    metrics: tuple[str, ...]
    group_sources: bool = False  # several pairs of one source are its alternatives

    def pieces_of(self, lines: Sequence[str]) -> Kind:
        """What a side with these lines is cut into."""
        if self.has_symbols and _are_symbols(lines):
            return "words"
        return "characters" if _are_words(lines) else self.pieces


def recognise(pairs: Pairs) -> Task:
    """The first task whose form the pairs have; translation if there is no other."""
    rows = np.linspace(0, len(pairs) - 1, min(len(pairs), _ENOUGH_PAIRS)).astype(int)
    seen = Pairs([pairs.src[row] for row in rows], [pairs.tgt[row] for row in rows], {}, [], {})
    return next(task for task in TASKS.values() if task.has_form(seen))


def find_task(name: str) -> Task:
    """The task of this name. Raises TransduceError, with the nearest name, if there is none."""
    if name not in TASKS:
        raise TransduceError(f"There is no task {name!r}.{nearest(name, list(TASKS))}")
    return TASKS[name]


def _is_arithmetic(pairs: Pairs) -> bool:
    return _nearly_all(bool(_FORMULA.fullmatch(line)) for line in pairs.src) and _nearly_all(
        bool(_NUMBER.fullmatch(line)) for line in pairs.tgt
    )


def _is_pronunciation(pairs: Pairs) -> bool:
    if not _are_symbols(pairs.tgt):
        return False
    letters = _types(pairs.src)
    are_letters = len(letters) <= _FEW_TYPES and 2 * sum(len(x) == 1 and x.isalpha() for x in letters) > len(letters)
    return _are_words(pairs.src) or (are_letters and not _types(pairs.tgt) <= letters)


def _is_inflection(pairs: Pairs) -> bool:
    if _are_symbols(pairs.tgt) or _num_words(pairs.tgt) > 2 * len(pairs) or _nearly_all(map(_has_digit, pairs.tgt)):
        return False
    at_first_blank = [line.partition(" ")[::2] for line in pairs.src]
    at_last_blank = [line.rpartition(" ")[::2] for line in pairs.src]
    return any(
        _are_lemmas_with_features(parts, pairs.tgt)
        for first, last in map(_transposed, (at_first_blank, at_last_blank))
        for parts in ((first, last), (last, first))
    )


def _are_lemmas_with_features(parts: tuple[list[str], list[str]], forms: list[str]) -> bool:
    """True of many lemmas and few sets of features, where forms have their letters from lemmas, not from features."""
    lemmas, features = parts
    num_lemmas, num_features = len(set(lemmas)), len(set(features))
    are_of_lemmas = (
        2 * len({*lemma} & {*form}) >= len({*form}) and feature not in form
        for lemma, feature, form in zip(lemmas, features, forms, strict=True)
    )
    return (
        _nearly_all(map(bool, features))
        and 2 * num_features < num_lemmas
        and (_OFTEN * num_features <= len(features) or _nearly_all(map(_are_tags, features)))
        and sum(are_of_lemmas) > len(forms) / 2
    )


def _are_tags(features: str) -> bool:
    """True of V;IND;PST and of Case=Nom|Number=Sing."""
    return features == features.upper() or "=" in features


def _is_normalisation(pairs: Pairs) -> bool:
    if _mean_len(pairs.src) >= _SHORT or _mean_len(pairs.tgt) >= _SHORT:
        return False
    have_digits = _nearly_all(map(_has_digit, pairs.src)) or _nearly_all(map(_has_digit, pairs.tgt))
    return have_digits or (_are_words(pairs.src) and _are_words(pairs.tgt))


def _are_symbols(lines: Sequence[str]) -> bool:
    """True of lines with blanks, and few different words between them."""
    return not _are_words(lines) and len(_types(lines)) <= _FEW_TYPES


def _are_words(lines: Sequence[str]) -> bool:
    """True of single words."""
    return _num_words(lines) <= 1.2 * len(lines) and _mean_len(lines) <= 30


def _types(lines: Sequence[str]) -> set[str]:
    """The different words, or so many of them that they are not few."""
    found: set[str] = set()
    for line in lines:
        found.update(line.split(" "))
        if len(found) > _FEW_TYPES:
            break
    return found


def _num_words(lines: Sequence[str]) -> float:
    """By blanks, and by letters in scripts that have none between words."""
    return sum(max(line.count(" ") + 1, len(_UNSPACED.findall(line)) / _UNSPACED_WORD_LEN) for line in lines)


def _has_digit(line: str) -> bool:
    return any(map(str.isdigit, line))


def _nearly_all(answers: Iterable[bool]) -> bool:
    found = list(answers)
    return sum(found) >= _NEARLY_ALL * len(found)


def _mean_len(lines: Sequence[str]) -> float:
    return sum(map(len, lines)) / len(lines)


def _transposed(rows: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    return [row[0] for row in rows], [row[1] for row in rows]


TASKS = {
    task.name: task
    for task in (
        Task(
            name="arithmetic",
            form="formulas and numbers",
            has_form=_is_arithmetic,
            pieces="characters",
            metrics=("exact_match",),
        ),
        Task(
            name="pronunciation",
            form="words and strings of few symbols",
            has_form=_is_pronunciation,
            pieces="characters",
            has_symbols=True,
            metrics=("word_error", "per"),
            group_sources=True,
        ),
        Task(
            name="inflection",
            form="a word with one of few sets of features, and a form of it",
            has_form=_is_inflection,
            pieces="characters",
            metrics=("exact_match", "cer"),
        ),
        Task(
            name="normalisation",
            form="short texts and another way to write them",
            has_form=_is_normalisation,
            pieces="characters",
            metrics=("exact_match", "cer"),
        ),
        Task(
            name="translation",
            form="sentences and sentences",
            has_form=lambda _pairs: True,
            pieces="bpe",
            has_symbols=True,
            metrics=("bleu", "chrf"),
        ),
    )
}
