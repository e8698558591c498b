"""Learning the pieces of a unigram language model (Kudo 2018) from counted words, in numpy.

Not the trainer of the `tokenizers` library: it seeds no word that occurs inside no other, however frequent (text comes
out 17 to 19 % longer on Multi30k), and its sums depend on the order of a hash map, so that no two runs agree.
"""

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_MAX_PIECE_LEN = 16  # characters
_MAX_WORD_LEN = 32  # characters
_MAX_WORDS = 100_000  # the most frequent ones; the others would change few pieces and cost most of the time
_SEEDS_PER_PIECE = 8
_EM_STEPS_PER_ROUND = 2
_KEPT_PER_ROUND = 0.75
_LEAST_PROB = 1e-9  # of a single character, so that every text can be cut
_SCORE_DECIMALS = 4


def learn_unigram_scores(words: Mapping[str, int], alphabet: Sequence[str], num_pieces: int) -> dict[str, float]:
    """The natural log-probability of each piece, the likeliest first: at most `num_pieces`, with all of `alphabet`.

    `words` are counts; each must be spelled in `alphabet`, which may not be longer than `num_pieces`. Many seed pieces
    are fitted by EM in rounds, and every round drops those whose loss the words would feel least.
    """
    words = _most_frequent(words)
    pieces = _seed_pieces(words, alphabet, num_pieces)
    id_of = {piece: i for i, piece in enumerate(pieces)}
    in_words, in_pieces = _Cuts(list(words), id_of, whole=True), _Cuts(pieces, id_of, whole=False)
    word_counts = np.array(list(words.values()), dtype=float)
    is_character = np.array([len(piece) == 1 for piece in pieces], dtype=bool)
    probs = np.full(len(pieces), 1 / max(len(pieces), 1))
    while True:
        for _ in range(_EM_STEPS_PER_ROUND):
            expected = in_words.expected_counts(probs, word_counts) * (probs > 0)
            # Bayesian EM (Liang and Klein 2007) weighs a count x by exp(digamma(x)), close to x - 1/2.
            weights = np.where(expected > 0.5, expected - 0.5, 0.0)
            probs = weights / max(weights.sum(), 1.0)
            probs[is_character] = np.maximum(probs[is_character], _LEAST_PROB)
        alive = np.flatnonzero(probs)
        if len(alive) <= num_pieces:
            break
        otherwise = in_pieces.total_probs(probs)[alive] + is_character[alive]  # of the piece's text, cut without it
        loss = expected[alive] * (np.log(probs[alive]) - np.log(otherwise))
        loss[is_character[alive]] = np.inf
        num_kept = max(num_pieces, int(len(alive) * _KEPT_PER_ROUND))
        probs[alive[np.argsort(-loss, kind="stable")[num_kept:]]] = 0.0
    score_of = {pieces[i]: round(math.log(probs[i]), _SCORE_DECIMALS) for i in alive}
    return dict(sorted(score_of.items(), key=lambda item: (-item[1], item[0])))


class _Cuts:
    """Every way to cut each of `words` into pieces; an edge is one piece at one place.

    The nodes are the borders between characters. Probabilities are plain floats: a word of _MAX_WORD_LEN characters,
    each of the least probability, stays above the smallest float.
    """

    def __init__(self, words: Sequence[str], id_of: dict[str, int], *, whole: bool):
        """`whole`: whether a word may be one piece."""
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        self._last = np.cumsum(lengths + 1) - 1
        self._first = self._last - lengths
        edges = [array("q") for _ in range(_MAX_WORD_LEN)]  # by the character they end at
        for first, word in zip(self._first.tolist(), words, strict=True):
            for end in range(1, len(word) + 1):
                for start in range(max(0, end - _MAX_PIECE_LEN), end):
                    i = id_of.get(word[start:end])
                    if i is not None and (whole or end - start < len(word)):
                        edges[end - 1].extend((first + start, first + end, i))
        self._edges = [np.array(group).reshape(-1, 3).T for group in edges]  # three rows: start, end, piece

    def total_probs(self, probs: np.ndarray) -> np.ndarray:
        """Of each word, the sum over all ways to cut it."""
        return self._forward(probs)[self._last]

    def expected_counts(self, probs: np.ndarray, word_counts: np.ndarray) -> np.ndarray:
        """How often each piece occurs in words that occur `word_counts` times, cut at random by `probs`."""
        forward = self._forward(probs)
        backward = np.zeros_like(forward)
        backward[self._last] = word_counts / forward[self._last]
        expected = np.zeros_like(probs)
        for starts, ends, ids in reversed(self._edges):
            onward = probs[ids] * backward[ends]
            np.add.at(backward, starts, onward)
            np.add.at(expected, ids, forward[starts] * onward)
        return expected

    def _forward(self, probs: np.ndarray) -> np.ndarray:
        """At each border, the sum over all ways to cut the word up to there."""
        forward = np.zeros(self._last[-1] + 1 if len(self._last) else 0)
        forward[self._first] = 1.0
        for starts, ends, ids in self._edges:
            np.add.at(forward, ends, forward[starts] * probs[ids])
        return forward


def _most_frequent(words: Mapping[str, int]) -> dict[str, int]:
    """The words, chopped to _MAX_WORD_LEN characters; frequent ones first, equally frequent ones by code point."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(0, len(word), _MAX_WORD_LEN):
            counts[word[start : start + _MAX_WORD_LEN]] += count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_WORDS])


def _seed_pieces(words: Mapping[str, int], alphabet: Sequence[str], num_pieces: int) -> list[str]:
    """The alphabet, then the repeated substrings of `words` that cover most characters."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word) - 1):
            for end in range(start + 2, min(start + _MAX_PIECE_LEN, len(word)) + 1):
                counts[word[start:end]] += count
    repeated = [piece for piece, count in counts.items() if count > 1]
    repeated.sort(key=lambda piece: (-counts[piece] * len(piece), piece))
    return [*alphabet, *repeated[: _SEEDS_PER_PIECE * num_pieces]]
