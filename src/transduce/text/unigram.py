"""Training of a unigram language model of subwords (Kudo 2018) on counted words, in numpy.

The trainer of the `tokenizers` library is not used: it seeds no word that occurs inside no other, however frequent
(text gets 17 to 19 % longer on Multi30k), and its sums depend on the order of a hash map, so that no two runs agree.
"""

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_MAX_SUBWORD_LEN = 16  # characters
_MAX_WORD_LEN = 32  # characters
_MAX_WORDS = 100_000  # the most frequent ones; the others would change few subwords and take most of the time
_SEEDS_PER_SUBWORD = 8
_EM_STEPS_PER_ROUND = 2
_KEPT_PER_ROUND = 0.75
_LEAST_PROB = 1e-9  # of a single character, so that every text can be segmented
_SCORE_DECIMALS = 4


def learn_unigram_scores(words: Mapping[str, int], alphabet: Sequence[str], num_subwords: int) -> dict[str, float]:
    """The natural log-probability of each subword, most likely first: at most `num_subwords`, with all of `alphabet`.

    `words` are counts; each must be spelled in `alphabet`, which may not be longer than `num_subwords`. EM fits too
    many seed subwords in rounds, and each round drops those that add least to the likelihood of the words.
    """
    words = _most_frequent(words)
    subwords = _seed_subwords(words, alphabet, num_subwords)
    id_of = {subword: i for i, subword in enumerate(subwords)}
    of_words = _Segmentations(list(words), id_of, whole=True)
    of_subwords = _Segmentations(subwords, id_of, whole=False)  # into others: what would stand in for a dropped one
    word_counts = np.array(list(words.values()), dtype=float)
    is_character = np.array([len(subword) == 1 for subword in subwords], dtype=bool)
    probs = np.full(len(subwords), 1 / max(len(subwords), 1))
    while True:
        for _ in range(_EM_STEPS_PER_ROUND):
            # E step: how often each subword is used, over all segmentations in proportion to their probability.
            expected = of_words.expected_counts(probs, word_counts) * (probs > 0)
            # M step: relative frequencies. Bayesian EM (Liang and Klein 2007) weighs a count x by exp(digamma(x)),
            # close to x - 1/2: a subword that is hardly used gets probability 0 and is gone.
            weights = np.where(expected > 0.5, expected - 0.5, 0.0)
            probs = weights / max(weights.sum(), 1.0)
            probs[is_character] = np.maximum(probs[is_character], _LEAST_PROB)
        alive = np.flatnonzero(probs)
        if len(alive) <= num_subwords:
            break
        # Pruning: without a subword, others would spell its text, at their probability. Those whose loss costs the
        # log-likelihood of the words least go; not all at once, for the cost of each assumes that all others stay.
        # Characters always stay, as they spell everything else (the 1 keeps their logarithm finite).
        without = of_subwords.total_probs(probs)[alive] + is_character[alive]
        loss = expected[alive] * (np.log(probs[alive]) - np.log(without))
        loss[is_character[alive]] = np.inf
        num_kept = max(num_subwords, int(len(alive) * _KEPT_PER_ROUND))
        probs[alive[np.argsort(-loss, kind="stable")[num_kept:]]] = 0.0
    score_of = {subwords[i]: round(math.log(probs[i]), _SCORE_DECIMALS) for i in alive}
    return dict(sorted(score_of.items(), key=lambda item: (-item[1], item[0])))


class _Segmentations:
    """The lattice of all segmentations of `words` into subwords; an edge is one subword at one position.

    The nodes are the borders between characters. Probabilities are plain floats, not logarithms: a word of
    _MAX_WORD_LEN characters, each of the least probability, stays above the smallest float.
    """

    def __init__(self, words: Sequence[str], id_of: dict[str, int], *, whole: bool):
        """`whole`: whether a word may be a single subword."""
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        self._last = np.cumsum(lengths + 1) - 1
        self._first = self._last - lengths
        # Grouped by the character they end at: all words advance together, by one character per numpy call.
        edges = [array("q") for _ in range(_MAX_WORD_LEN)]
        for first, word in zip(self._first.tolist(), words, strict=True):
            for end in range(1, len(word) + 1):
                for start in range(max(0, end - _MAX_SUBWORD_LEN), end):
                    i = id_of.get(word[start:end])
                    if i is not None and (whole or end - start < len(word)):
                        edges[end - 1].extend((first + start, first + end, i))
        self._edges = [np.array(group).reshape(-1, 3).T for group in edges]  # three rows: start, end, id

    def total_probs(self, probs: np.ndarray) -> np.ndarray:
        """The probability of each word, summed over its segmentations."""
        return self._forward(probs)[self._last]

    def expected_counts(self, probs: np.ndarray, word_counts: np.ndarray) -> np.ndarray:
        """The expected count of each subword, by the forward-backward algorithm, if words occur `word_counts` times."""
        forward = self._forward(probs)
        backward = np.zeros_like(forward)
        # Divided by the probability of the word: so its segmentations add up to its count.
        backward[self._last] = word_counts / forward[self._last]
        expected = np.zeros_like(probs)
        for starts, ends, ids in reversed(self._edges):
            onward = probs[ids] * backward[ends]
            np.add.at(backward, starts, onward)
            # The segmentations through this edge: those of the text before it times those from it to the end.
            np.add.at(expected, ids, forward[starts] * onward)
        return expected

    def _forward(self, probs: np.ndarray) -> np.ndarray:
        """At each border, the probability of the text before it, summed over its segmentations."""
        forward = np.zeros(self._last[-1] + 1 if len(self._last) else 0)
        forward[self._first] = 1.0
        for starts, ends, ids in self._edges:
            np.add.at(forward, ends, forward[starts] * probs[ids])
        return forward


def _most_frequent(words: Mapping[str, int]) -> dict[str, int]:
    """The words, split at _MAX_WORD_LEN characters; frequent ones first, equally frequent ones by code point."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(0, len(word), _MAX_WORD_LEN):
            counts[word[start : start + _MAX_WORD_LEN]] += count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_WORDS])


def _seed_subwords(words: Mapping[str, int], alphabet: Sequence[str], num_subwords: int) -> list[str]:
    """The alphabet, then the repeated substrings of `words` that cover most characters."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word) - 1):
            for end in range(start + 2, min(start + _MAX_SUBWORD_LEN, len(word)) + 1):
                counts[word[start:end]] += count
    repeated = [text for text, count in counts.items() if count > 1]
    repeated.sort(key=lambda text: (-counts[text] * len(text), text))
    return [*alphabet, *repeated[: _SEEDS_PER_SUBWORD * num_subwords]]
