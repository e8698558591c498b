"""Output constraints: a prefix, required and forbidden texts, a least length, no repeated n-grams.

All are functions of the tokens so far, so a search carries no state for them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from transduce.data.texts import list_texts
from transduce.errors import TransduceError
from transduce.inference.alphabet import Alphabet

_IN_NO_PHRASE = -1  # stands for any token that is in no required phrase
_MOST_IN_ANY_ORDER = 4  # with more phrases not all orders are tried (n! of them), and overlaps are not counted


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Constraints on the outputs of a text, as texts. Raises TransduceError if they contradict each other."""

    prefix: str = ""  # outputs begin with it
    required: tuple[str, ...] = ()  # texts that occur in each output, in any order; needs a beam
    forbidden: tuple[str, ...] = ()  # texts that occur in no output, not even inside a word

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str):
            raise TransduceError(f"the prefix is {self.prefix!r:.60}: a str is needed.")
        for name in ("required", "forbidden"):
            object.__setattr__(self, name, tuple(list_texts(getattr(self, name), f"{name} text")))
        if not all([*self.required, *self.forbidden]):
            raise TransduceError("an empty text is in every answer: it can be neither required nor forbidden.")
        for text in self.forbidden:
            if wanted := next((wanted for wanted in (self.prefix, *self.required) if text in wanted), None):
                raise TransduceError(f"'{text}' is forbidden, and part of '{wanted}', which is asked for: choose one.")


class ForbiddenText:
    """A text that occurs in no output, however it is tokenized. `token_bytes` are the bytes that each id stands for."""

    def __init__(self, text: bytes, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        # The ids that would complete the text, by how many of its bytes are written already: with some, those that
        # begin with the rest, which no token is as long as before the last bytes; with none, those that have the whole
        # text inside.
        first = max(len(text) - max(map(len, token_bytes)), 1)
        self._completing = {0: [i for i, token in enumerate(token_bytes) if text in token]} | {
            num_written: [i for i, token in enumerate(token_bytes) if token.startswith(text[num_written:])]
            for num_written in range(first, len(text))
        }
        self._text = text

    def completed_by(self, history: Sequence[int]) -> list[int]:
        """The ids that may not follow `history`, as they would complete the text."""
        longest = len(self._text) - 1
        written = b""
        for i in reversed(history):  # no more bytes than could matter
            if len(written) >= longest:
                break
            written = self._token_bytes[i] + written
        return [i for length, ids in self._completing.items() if written.endswith(self._text[:length]) for i in ids]


class OpenText:
    """A text that outputs go on with, in any tokens, of which the last may have more than it.

    The last word of a prefix: whatever follows it in the output may be one token with it.
    """

    def __init__(self, text: bytes, ids: Sequence[int], token_bytes: Sequence[bytes], usable: Iterable[int]) -> None:
        """`ids` are how the tokenizer begins to spell it, with bytes where it must; other tokens are `usable` ones."""
        self.ids, self._text, self._token_bytes = tuple(ids), text, token_bytes
        own = dict(zip(accumulate((len(token_bytes[i]) for i in ids), initial=0), ids, strict=False))
        by_first: dict[bytes, list[int]] = {}
        longest = max(map(len, token_bytes))
        for i in usable:
            by_first.setdefault(token_bytes[i][:1], []).append(i)
        # By how many bytes are written: the ids that may follow, and how many tokens complete the text after each.
        self._choices: list[dict[int, float]] = [{} for _ in text]
        num_missing = [math.inf] * len(text) + [0.0]
        for n in reversed(range(len(text))):
            rest, fitting = text[n : n + longest], [own[n]] if n in own else []
            others = ((i, token_bytes[i]) for i in by_first.get(rest[:1], []))
            fitting += [i for i, token in others if rest.startswith(token) or token.startswith(rest)]
            self._choices[n] = {i: num_missing[min(n + len(token_bytes[i]), len(text))] for i in fitting}
            num_missing[n] = 1 + min(self._choices[n].values(), default=math.inf)

    def choices(self, history: Sequence[int], fits: Callable[[int, float], bool]) -> list[int]:
        """The ids that may follow the part that `history` is; none if that is all of it.

        `fits` is asked of an id, and the fewest tokens that are missing after it, whether the output has room for them.
        """
        num_written = sum(len(self._token_bytes[i]) for i in history)
        ids = self._choices[num_written] if num_written < len(self._text) else {}
        return [i for i, num_missing in ids.items() if fits(i, num_missing)] or list(ids)[:1]


class Choices(NamedTuple):
    """The ids that may follow: `only` these, if there are any, else all but those `banned`."""

    only: list[int]
    banned: list[int]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Constraints on the outputs of one source, as ids; phrases are required sequences of ids."""

    eos_id: int
    prefix: tuple[int, ...] = ()
    last_word: OpenText | None = None  # of the prefix, after those ids
    required: tuple[tuple[int, ...], ...] = ()  # phrases, in any order
    whole: tuple[tuple[int, ...], ...] = ()  # of these, those that end where a word does
    within_words: tuple[int, ...] = ()  # the ids that go on with a word
    forbidden: tuple[ForbiddenText, ...] = ()
    min_len: int = 0  # tokens, not counting the end symbol
    no_repeat_ngram_size: int = 0  # no n-gram of this size occurs twice; 0: any may
    alphabet: Alphabet | None = None  # None: any id may follow

    @cached_property
    def is_empty(self) -> bool:
        """Whether any text may be written, in its alphabet."""
        begins = self.prefix or self.last_word
        return not (begins or self.required or self.forbidden or self.min_len or self.no_repeat_ngram_size)

    @property
    def shortest_len(self) -> int:
        """Fewest tokens of an output that has its prefix and its phrases, including the end symbol."""
        prefix = (*self.prefix, *(self.last_word.ids if self.last_word else ()))
        return len(prefix) + self.num_missing(prefix) + 1

    def choices(self, history: Sequence[int], room: int) -> Choices:
        """The ids that may follow `history` if the output has room for `room` more tokens, including the end symbol.

        Requirements come before bans, and are forced as soon as the room gets tight.
        """
        if len(history) < len(self.prefix):
            return Choices([self.prefix[len(history)]], [])
        if room == 1:
            return Choices([self.eos_id], [])
        forced: list[int] = []
        if self.last_word:
            forced = self.last_word.choices(
                history[len(self.prefix) :],
                lambda i, num_missing: num_missing + self.num_missing([*history, i]) + 2 <= room,
            )
        # If any character at all and then the missing tokens (and the end) would not fit, only tokens that keep them
        # fitting may follow. Until then the search is free.
        free = self.alphabet.longest_character if self.alphabet else 1
        if not forced and self.required and self.num_missing([*history, _IN_NO_PHRASE]) + free + 1 > room:
            useful = dict.fromkeys(i for phrase in self._unmet(history) for i in phrase)
            forced = [i for i in useful if self.num_missing([*history, i]) + 2 <= room]
        banned = [i for text in self.forbidden for i in text.completed_by(history)] + self._repeating(history)
        if len(history) < self.min_len or self.num_missing(history):
            banned.append(self.eos_id)
        for phrase in self.whole:
            if tuple(history[-len(phrase) :]) == phrase and not _contains(history[:-1], phrase):
                banned += self.within_words
        return Choices([*dict.fromkeys(forced).keys() - banned] or forced, banned)

    def num_missing(self, history: Sequence[int]) -> int:
        """Fewest further tokens that complete all required phrases: the end of one may be the beginning of the next."""
        return _shortest_completion(history, self._unmet(history))

    def continuing(self, history: Sequence[int]) -> list[int]:
        """The next token of each required phrase that is not complete."""
        return list(dict.fromkeys(phrase[_progress(phrase, history)] for phrase in self._unmet(history)))

    def _unmet(self, history: Sequence[int]) -> list[tuple[int, ...]]:
        return [phrase for phrase in self.required if not _contains(history, phrase)]

    def _repeating(self, history: Sequence[int]) -> list[int]:
        size = self.no_repeat_ngram_size
        if not 0 < size <= len(history):
            return []
        # The last size - 1 tokens begin an n-gram: it may not end as an earlier one with the same beginning did.
        beginning = tuple(history[len(history) - size + 1 :])
        starts = range(len(history) - size + 1)
        return [history[start + size - 1] for start in starts if tuple(history[start : start + size - 1]) == beginning]


def _shortest_completion(history: Sequence[int], unmet: Sequence[tuple[int, ...]]) -> int:
    if len(unmet) > _MOST_IN_ANY_ORDER:
        # An upper bound: one after the other, going on with the one that is furthest.
        return sum(map(len, unmet)) - max(_progress(phrase, history) for phrase in unmet)
    # Try each phrase as the next one: writing the rest of it may complete others on the way.
    lengths = []
    for phrase in unmet:
        rest = phrase[_progress(phrase, history) :]
        extended = [*history, *rest]
        still_unmet = [other for other in unmet if not _contains(extended, other)]
        lengths.append(len(rest) + _shortest_completion(extended, still_unmet))
    return min(lengths, default=0)


def _contains(history: Sequence[int], phrase: tuple[int, ...]) -> bool:
    return any(tuple(history[start : start + len(phrase)]) == phrase for start in range(len(history)))


def _progress(phrase: tuple[int, ...], history: Sequence[int]) -> int:
    """Length of the longest beginning of `phrase`, which is not in `history`, at the end of `history`."""
    lengths = range(min(len(phrase) - 1, len(history)), 0, -1)
    return next((n for n in lengths if tuple(history[len(history) - n :]) == phrase[:n]), 0)
