"""English words to pronounce, as the workshop's model learns them: pairs of ids, and what its outputs are worth."""

from dataclasses import dataclass
from functools import cached_property
from random import Random
from string import ascii_lowercase

from transduce.evaluation.metrics import Score, evaluate
from transduce.learn.build_it.pieces import END
from transduce.learn.ledger import FAST
from transduce.learn.pronouncing import Words

_FIRST = END + 1
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class SpokenWords:
    """Words of CMUdict, letters in and phonemes out; the 500 test words are in no training pair."""

    words: Words

    @classmethod
    def load(cls, *, fast: bool = FAST) -> "SpokenWords":
        """92,938 words to learn from; `fast`: 2,000 and 60 to test."""
        return cls(Words.load(2_000, 60) if fast else Words.load(100_000, 500))

    @property
    def num_letters(self) -> int:
        """Source ids: padding, begin, end and 26 letters."""
        return _FIRST + len(ascii_lowercase)

    @property
    def num_phonemes(self) -> int:
        """Target ids: padding, begin, end and the phonemes."""
        return _FIRST + len(self.words.phonemes)

    @cached_property
    def train(self) -> list[Pair]:
        return self._pairs(self.words.train)

    @cached_property
    def test(self) -> list[Pair]:
        return self._pairs(self.words.test)

    @cached_property
    def _random(self) -> Random:
        return Random(1)

    def next_pairs(self, num_pairs: int = 64) -> list[Pair]:
        """Pairs to learn from, drawn at random; the same ones in the same order for every new object."""
        return self._random.sample(self.train, num_pairs)

    def said(self, outputs: list[list[int]]) -> list[str]:
        """Outputs in phonemes."""
        return [" ".join(self.words.phonemes[i - _FIRST] for i in ids if i >= _FIRST) for ids in outputs]

    def score(self, outputs: list[list[int]]) -> Score:
        """Share of the test words without a wrong phoneme, in percent, with its 95% interval."""
        return evaluate(("exact_match",), self.said(outputs), [[phonemes for _, phonemes in self.words.test]])[0]

    def show(self, outputs: list[list[int]], num_words: int = 8) -> str:
        """Some test words, what the dictionary says, what the model says."""
        rows = zip(self.words.test, self.said(outputs), strict=True)
        return "\n".join(
            f"{'   ' if said == right else 'not'} {word:12} {said:32} {'' if said == right else right}"
            for (word, right), said in list(rows)[:num_words]
        )

    def _pairs(self, rows: list[tuple[str, str]]) -> list[Pair]:
        phoneme_id = {phoneme: _FIRST + i for i, phoneme in enumerate(self.words.phonemes)}
        return [
            ([_FIRST + ascii_lowercase.index(letter) for letter in word], [phoneme_id[p] for p in said.split(" ")])
            for word, said in rows
        ]
