"""Alignment of the two sides of pairs from left to right, learned from the pairs by EM (Jiampojamarn et al. 2007)."""

import numpy as np
from numpy.typing import NDArray

from transduce.errors import TransduceError

# Ids of the source and of the target that a step of the alignment takes together, and its weight before all learning.
_STEPS = {(1, 1): 1.0, (1, 0): 0.05, (0, 1): 0.05, (2, 1): 0.1, (1, 2): 0.1}
_NUM_ITERATIONS = 8
_LEAST = 1e-9  # probability of a step, so that every pair has an alignment

Ids = NDArray[np.int64]
Chances = NDArray[np.float64]


class Alignment:
    """A model of how `src` and `tgt` are aligned: rectangles of ids, of which `lens` count on each side.

    All ids + 1, of these pairs and of others, are below `base`. Differs from the paper in that no step takes two ids of
    both sides, and that an id of either side may be aligned to none. Raises TransduceError for more ids than can be
    told apart.
    """

    def __init__(self, src: Ids, tgt: Ids, lens: tuple[Ids, Ids], *, base: int) -> None:
        if base**4 >= 2**63:
            raise TransduceError(f"data.recombinations needs a small vocabulary, not {base:,} ids: set it to 0.")
        self._base = base
        keys = self._keys(src, tgt)
        self._chunks, flat_index = np.unique(keys, return_inverse=True)
        index = flat_index.reshape(keys.shape)
        weights = np.broadcast_to(np.reshape(list(_STEPS.values()), (-1, 1, 1, 1)), keys.shape)
        for _ in range(_NUM_ITERATIONS):
            before, after = _sums_of_paths(weights, lens)
            counts = np.zeros(len(self._chunks))
            for step, (a, b) in enumerate(_STEPS):
                arrived = np.pad(after, ((0, 0), (0, a), (0, b)))[:, a:, b:]
                posterior = _shares(before * weights[step] * arrived, after)
                counts += np.bincount(index[step].ravel(), posterior.ravel(), len(counts))
            self._chances = np.maximum(counts / counts.sum(), _LEAST)
            weights = self._chances[index]

    def passing(self, src: Ids, tgt: Ids, lens: tuple[Ids, Ids]) -> Chances:
        """(pair, i, j) -> the probability that the first i source ids are aligned to the first j target ids."""
        keys = self._keys(src, tgt)
        index = np.searchsorted(self._chunks, keys).clip(max=len(self._chunks) - 1)
        weights = np.where(self._chunks[index] == keys, self._chances[index], _LEAST)
        before, after = _sums_of_paths(weights, lens)
        return _shares(before * after, after)

    def _keys(self, src: Ids, tgt: Ids) -> Ids:
        """(step, pair, i, j) -> a number for the ids that the step takes from there."""
        return np.stack(
            [self._following(src, a)[:, :, None] * self._base**2 + self._following(tgt, b)[:, None] for a, b in _STEPS]
        )

    def _following(self, ids: Ids, length: int) -> Ids:
        """A number for the `length` ids from each place on; 0 for none of them."""
        padded = np.pad(ids + 1, ((0, 0), (0, 2)))
        first, second = padded[:, :-1], padded[:, 1:]
        return (first * 0, first, first * self._base + second)[length]


def _shares(weights: Chances, after: Chances) -> Chances:
    """Of the weights of all ways; of pairs whose ways are all too unlikely for a number, none."""
    return np.divide(weights, after[:, :1, :1], out=np.zeros_like(weights), where=after[:, :1, :1] > 0)


def _sums_of_paths(weights: Chances, lens: tuple[Ids, Ids]) -> tuple[Chances, Chances]:
    """The weights of all ways from the beginning to each (pair, i, j), and of all from there to the end."""
    before, after = np.zeros(weights.shape[1:]), np.zeros(weights.shape[1:])
    num_pairs, num_i, num_j = before.shape
    before[:, 0, 0] = 1.0
    after[np.arange(num_pairs), lens[0], lens[1]] = 1.0
    places = [(i, j) for i in range(num_i) for j in range(num_j)]
    for i, j in places:
        for step, (a, b) in enumerate(_STEPS):
            if i >= a and j >= b:
                before[:, i, j] += before[:, i - a, j - b] * weights[step, :, i - a, j - b]
    for i, j in reversed(places):
        for step, (a, b) in enumerate(_STEPS):
            if i + a < num_i and j + b < num_j:
                after[:, i, j] += weights[step, :, i, j] * after[:, i + a, j + b]
    return before, after
