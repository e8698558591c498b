"""Short English sentences to be written backward, word by word: what the main notebook's own Transformer learns."""

from functools import cached_property
from random import Random

from transduce.learn.build_it.pieces import END

_NOUNS = ("cat", "dog", "bird", "horse", "child", "fox")
_VERBS = ("sleeps", "waits", "sings", "runs", "sees", "hears", "likes", "follows")  # the last four want an object
_ADJECTIVES = ("small", "old", "red", "quiet")
_WORDS = ("the", "a", *_NOUNS, *_VERBS, *_ADJECTIVES)
_NUM_TRAIN, _NUM_TEST = 4_000, 200

Pair = tuple[list[int], list[int]]


class Sentences:
    """Sentences such as "the cat sleeps", a word an id; the test sentences are in no training pair."""

    num_ids = END + 1 + len(_WORDS)

    def __init__(self) -> None:
        self._random = Random(1)

    @cached_property
    def _all(self) -> list[str]:
        random, found = Random(7), {"the cat sleeps": None}
        while len(found) < _NUM_TRAIN + _NUM_TEST:
            found[_sentence(random)] = None
        return list(found)

    @property
    def test(self) -> list[str]:
        """Sentences to try the trained model on; the first is "the cat sleeps"."""
        return self._all[:_NUM_TEST]

    def next_pairs(self, num_pairs: int = 32) -> list[Pair]:
        """Pairs to learn from, drawn at random: a sentence, and the same sentence backward."""
        return [self.pair(sentence) for sentence in self._random.sample(self._all[_NUM_TEST:], num_pairs)]

    def pair(self, sentence: str) -> Pair:
        ids = [END + 1 + _WORDS.index(word) for word in sentence.split(" ")]
        return ids, ids[::-1]

    def text(self, ids: list[int]) -> str:
        """Ids as words; padding, begin and end by name."""
        return " ".join(("⟨pad⟩", "⟨begin⟩", "⟨end⟩", *_WORDS)[i] for i in ids)


def _sentence(random: Random) -> str:
    verb = random.choice(_VERBS)
    tail = _noun_phrase(random) if verb in _VERBS[4:] else []
    return " ".join([*_noun_phrase(random), verb, *tail])


def _noun_phrase(random: Random) -> list[str]:
    adjectives = random.sample(_ADJECTIVES, random.choice((0, 0, 1, 2)))
    return [random.choice(("the", "a")), *adjectives, random.choice(_NOUNS)]
