"""Kinds of task that `fit` knows: how each is recognized by its pairs, tokenized and scored."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transduce.data.pairs import Pairs
from transduce.errors import choose
from transduce.text.config import Kind
from transduce.text.scripts import UNSPACED

_ENOUGH_PAIRS = 10_000  # looked at, spread evenly over the corpus
_FEW_TYPES = 200  # a side with at most so many different words consists of symbols, such as phonemes
_NEARLY_ALL = 0.98  # share of the lines that must have a form: files have odd lines
_SHORT = 40  # letters per line on average: below, tokens of single characters are cheap

_FEATURES = re.compile(r"\w[;=|]\w")  # V;IND;PST, Case=Nom
_DIGIT = re.compile(r"\d")
_TAG = re.compile(r"(<\S+>|\[\S+\]|>>\S+<<|__\S+__)\s")  # of the language to write, or the kind of text
_DIGITS_OF_NUMBERS = 0.3  # share of the letters and digits of a side: with more, it consists of numbers
_MANY_DIGITS = 0.2  # share of those of a line: with more, it is about a number
_SENTENCE = 3  # words without a digit: with fewer, a line with a number is about the number
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]+|[^\s{UNSPACED}]+")
_UNSPACED_WORD_LEN = 4  # letters, generously
_SYMBOLS_PER_LETTER = 0.5  # at least, of a pronunciation; tags of the words of a sentence are fewer


@dataclass(frozen=True, kw_only=True)
class Task:
    """Kind of task: the tokens and the metrics that suit its pairs."""

    name: str
    form: str  # of its pairs, as a person would say it
    token_kind: Literal["characters", "bpe"]
    has_symbols: bool = True  # a side that consists of few different words has these as its tokens
    metrics: tuple[str, ...]
    group_sources: bool = False  # pairs of the same source are alternative references
    is_parallel: bool = False  # each source symbol has its part of the target, in the same order

    def token_kind_of(self, lines: Sequence[str]) -> Kind:
        """Kind of token for a side with these lines."""
        if self.has_symbols and _are_symbols(lines):
            return "words"
        return "characters" if _are_words(lines) else self.token_kind


_SHORT_TEXTS = Task(
    name="short texts",
    form="words, numbers or features, rewritten in another form",
    token_kind="characters",
    has_symbols=False,
    metrics=("exact_match", "cer"),
)
_PRONUNCIATION = Task(
    name="pronunciation",
    form="words to strings of symbols",
    token_kind="characters",
    metrics=("word_error", "per"),
    group_sources=True,
    is_parallel=True,
)
_TRANSLATION = Task(name="translation", form="sentences to sentences", token_kind="bpe", metrics=("bleu", "chrf"))
# By the names that a user may give.
TASKS = dict.fromkeys(("arithmetic", "inflection", "normalization", "normalisation"), _SHORT_TEXTS) | {
    task.name: task for task in (_SHORT_TEXTS, _PRONUNCIATION, _TRANSLATION)
}


def recognize(pairs: Pairs) -> Task:
    """The first task whose form the pairs have; translation if no other fits."""
    rows = np.linspace(0, len(pairs) - 1, min(len(pairs), _ENOUGH_PAIRS)).astype(int)
    src, tgt = [pairs.src[row] for row in rows], [pairs.tgt[row] for row in rows]
    are_codes = [_nearly_all(map(_is_code, *sides)) for sides in ((src, tgt), (tgt, src))]
    if (
        _are_symbols(tgt)
        and not _are_numbers(src)
        and (_are_words(src) or _are_letters(_types(src), beside=_types(tgt)) or _are_spelled_out(src, tgt))
    ):
        return _PRONUNCIATION
    # Within a single word, a number or a bundle of features every letter counts, and subwords would hide the letters.
    is_spelled = any(are_codes) or (_are_words(tgt) and not _are_symbols(src))
    # One number may take many words.
    is_short = _are_short(src) and (_are_short(tgt) or (are_codes[0] and _are_words(src)))
    return _SHORT_TEXTS if is_spelled and is_short else _TRANSLATION


def find_task(name: str) -> Task:
    """The task named `name`. Raises TransduceError, with the nearest name, if there is none."""
    return choose("task", name, TASKS)


def _are_numbers(lines: Sequence[str]) -> bool:
    """True if digits are more than tones or stresses within words."""
    text = "".join(lines)
    return len(_DIGIT.findall(text)) > _DIGITS_OF_NUMBERS * sum(map(str.isalnum, text))


def _is_code(line: str, other: str) -> bool:
    """Whether a line is about a number or features, not a sentence with a number in it; `other` is the other side."""
    line = line[match.end() :] if (match := _TAG.match(line)) else line
    if _FEATURES.search(line) or not _DIGIT.search(line):
        return bool(_FEATURES.search(line))
    words, other_words = _WORD.findall(line), set(_WORD.findall(other))
    plain = [word for word in words if any(map(str.isalpha, word)) and not _DIGIT.search(word)]
    num_plain = sum(len(word) // 2 if _UNSPACED.match(word) else 1 for word in plain)
    if num_plain < _SENTENCE or 2 * sum(word in other_words for word in plain) > len(plain):
        return True  # or all but the number stays as it is
    # A tag, the number of a line or a time, at either end; and what the other side has, too.
    while _DIGIT.search(words[0]):
        words = words[1:]
    while _DIGIT.search(words[-1]):
        words = words[:-1]
    inner = "".join(word for word in words if word not in other_words or word in plain)
    return len(_DIGIT.findall(inner)) > _MANY_DIGITS * sum(map(str.isalnum, inner))


def _are_symbols(lines: Sequence[str]) -> bool:
    """True if the lines consist of few different words, separated by spaces."""
    return not _are_words(lines) and len(_types(lines)) <= _FEW_TYPES


def _are_letters(symbols: set[str], *, beside: set[str]) -> bool:
    """True if most symbols are single letters, and some are not among the other side's, `beside`."""
    return 2 * sum(len(symbol) == 1 and symbol.isalpha() for symbol in symbols) > len(symbols) and not beside <= symbols


def _are_spelled_out(src: Sequence[str], tgt: Sequence[str]) -> bool:
    """True if short lines of many different words have about a symbol beside them for each letter."""
    num_letters = sum(len(line) - line.count(" ") for line in src)
    num_symbols = sum(line.count(" ") + 1 for line in tgt)
    has_many_words = len(_types(src)) > _FEW_TYPES
    return _are_short(src) and has_many_words and num_symbols > _SYMBOLS_PER_LETTER * num_letters


def _are_words(lines: Sequence[str]) -> bool:
    """True if most lines are single words: counted by spaces, or by letters in scripts without spaces."""
    counts = (max(line.count(" ") + 1, len(_UNSPACED.findall(line)) / _UNSPACED_WORD_LEN) for line in lines)
    return _are_short(lines) and sum(counts) <= 1.2 * len(lines)


def _are_short(lines: Sequence[str]) -> bool:
    return sum(character.isalpha() for line in lines for character in line) < _SHORT * len(lines)


def _types(lines: Sequence[str]) -> set[str]:
    """The different words of the lines; it stops once they are more than `_FEW_TYPES`."""
    types: set[str] = set()
    for line in lines:
        types.update(line.split(" "))
        if len(types) > _FEW_TYPES:
            break
    return types


def _nearly_all(matches: Iterable[bool]) -> bool:
    matches = list(matches)
    return sum(matches) >= _NEARLY_ALL * len(matches)
