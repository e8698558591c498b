"""What an answer must hold, and what it may not: asked of the search, token by token.

All is a function of the tokens written so far, so a search carries no state for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transduce.errors import TransduceError

_OF_NO_STRETCH = -1  # a token that is in nothing that is required
_MOST_IN_ANY_ORDER = 4  # of more stretches not all orders are looked at, and overlaps count no more


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What the answers to a text must hold, and what they may not."""

    prefix: str = ""  # how they begin
    required: tuple[str, ...] = ()  # texts that they hold, in any order; needs a beam
    forbidden: tuple[str, ...] = ()  # texts that they nowhere hold, not even inside a word

    def __post_init__(self) -> None:
        if not all([*self.required, *self.forbidden]):
            raise TransduceError("an empty text is in every answer: it can be neither required nor forbidden.")
        for text in self.forbidden:
            if wanted := next((wanted for wanted in (self.prefix, *self.required) if text in wanted), None):
                raise TransduceError(f"'{text}' is forbidden, and part of '{wanted}', which is asked for: choose one.")


class ForbiddenText:
    """A text that no answer may hold, however it is cut into pieces. `pieces` are the bytes that each id stands for."""

    def __init__(self, text: bytes, pieces: Sequence[bytes]) -> None:
        if not text:
            raise ValueError("An empty text is in every answer.")
        self._pieces = pieces
        # By how many of its bytes are written already: the pieces that would complete it.
        self._completing = {
            num_written: [
                i for i, piece in enumerate(pieces) if (piece.startswith(rest) if num_written else text in piece)
            ]
            for num_written, rest in ((n, text[n:]) for n in range(len(text)))
        }
        self._text = text

    def completed_by(self, history: Sequence[int]) -> list[int]:
        """The ids that may not follow."""
        longest = len(self._text) - 1
        written = b""
        for i in reversed(history):
            if len(written) >= longest:
                break
            written = self._pieces[i] + written
        return [i for length, ids in self._completing.items() if written.endswith(self._text[:length]) for i in ids]


class Choices(NamedTuple):
    """What may follow: `only` these ids, if any are named, else all but those `banned`."""

    only: list[int]
    banned: list[int]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the answers to one source are asked for, in ids."""

    eos_id: int
    prefix: tuple[int, ...] = ()  # how they begin
    required: tuple[tuple[int, ...], ...] = ()  # stretches that they hold, in any order
    forbidden: tuple[ForbiddenText, ...] = ()
    min_len: int = 0  # tokens, the end not counted
    no_repeat_ngram_size: int = 0  # no stretch of so many tokens comes twice; 0: any may

    @property
    def is_empty(self) -> bool:
        return not (self.prefix or self.required or self.forbidden or self.min_len or self.no_repeat_ngram_size)

    @property
    def shortest_len(self) -> int:
        """Tokens that an answer has at least, its end included."""
        return len(self.prefix) + self.num_missing(self.prefix) + 1

    def choices(self, history: Sequence[int], room: int) -> Choices:
        """What may follow `history`, when an answer may have `room` more tokens, its end included.

        What is required comes before what is banned; it is forced as soon as the room gets tight.
        """
        if len(history) < len(self.prefix):
            return Choices([self.prefix[len(history)]], [])
        if room == 1:  # then nothing else counts
            return Choices([self.eos_id], [])
        forced: list[int] = []
        if self.required and self.num_missing([*history, _OF_NO_STRETCH]) + 2 > room:
            useful = dict.fromkeys(i for phrase in self._unmet(history) for i in phrase)
            forced = [i for i in useful if self.num_missing([*history, i]) + 2 <= room]
        banned = [i for text in self.forbidden for i in text.completed_by(history)] + self._repeating(history)
        if len(history) < self.min_len or self.num_missing(history):
            banned.append(self.eos_id)
        return Choices([i for i in forced if i not in banned] or forced, banned)

    def num_missing(self, history: Sequence[int]) -> int:
        """How many more tokens complete all required stretches, at least: one may overlap the next."""
        return _shortest_completion(history, self._unmet(history))

    def continuing(self, history: Sequence[int]) -> list[int]:
        """The tokens that bring a required stretch nearer to its end."""
        return list(dict.fromkeys(phrase[_progress(phrase, history)] for phrase in self._unmet(history)))

    def _unmet(self, history: Sequence[int]) -> list[tuple[int, ...]]:
        return [phrase for phrase in self.required if not _contains(history, phrase)]

    def _repeating(self, history: Sequence[int]) -> list[int]:
        size = self.no_repeat_ngram_size
        if not 0 < size <= len(history):
            return []
        before = tuple(history[len(history) - size + 1 :])
        starts = range(len(history) - size + 1)
        return [history[start + size - 1] for start in starts if tuple(history[start : start + size - 1]) == before]


def _shortest_completion(history: Sequence[int], unmet: Sequence[tuple[int, ...]]) -> int:
    if len(unmet) > _MOST_IN_ANY_ORDER:
        return sum(map(len, unmet)) - max(_progress(phrase, history) for phrase in unmet)
    lengths = []
    for phrase in unmet:
        rest = phrase[_progress(phrase, history) :]
        longer = [*history, *rest]
        left = [other for other in unmet if not _contains(longer, other)]
        lengths.append(len(rest) + _shortest_completion(longer, left))
    return min(lengths, default=0)


def _contains(history: Sequence[int], phrase: tuple[int, ...]) -> bool:
    return any(tuple(history[start : start + len(phrase)]) == phrase for start in range(len(history)))


def _progress(phrase: tuple[int, ...], history: Sequence[int]) -> int:
    """How many tokens of `phrase`, which is not in `history`, stand at its end already."""
    lengths = range(min(len(phrase) - 1, len(history)), 0, -1)
    return next((n for n in lengths if tuple(history[len(history) - n :]) == phrase[:n]), 0)
