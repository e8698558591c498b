"""Data augmentation for few pairs: concatenated pairs, and recombined ones; new in every epoch.

The sources of synthetic pairs begin with a tag (Caswell et al. 2019). So a model learns from them what symbols stand
for, and from the pairs of the corpus alone what holds for a whole one, such as that a word has one stress.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from transduce.data.alignment import Alignment
from transduce.data.batches import EncodedPairs, TrainingPairs
from transduce.data.config import DataConfig
from transduce.errors import TransduceError
from transduce.text.ragged import Ragged
from transduce.text.tokenizer import Tokenizer

_TAG = Tokenizer.bos_id  # which no other source has
_SURE = 0.6  # probability from which on two places count as aligned
_NUM_LEARNED_FROM = 1000  # pairs, about: the alignment is learned in a second or two
_LONGEST_ALIGNED = 40  # ids on either side


def augmented(pairs: TrainingPairs, config: DataConfig) -> TrainingPairs:
    """The corpus with the augmented pairs that the settings ask for."""
    if config.recombinations:
        if not isinstance(pairs, EncodedPairs):
            raise TransduceError("data.recombinations needs pairs that fit in memory: set it to 0.")
        pairs = RecombinedPairs(pairs, config.recombinations)
    return ConcatenatedPairs(pairs, config.concatenations, max_len=config.max_len) if config.concatenations else pairs


class ConcatenatedPairs:
    """A corpus and, for each of its pairs, `num` more: it and a random other one end to end (Kondo et al. 2021).

    A decoder that has learned by heart where things stand is of no use there; one that looks for the next symbol is.
    Nothing but the tag of a synthetic one marks where the second begins: with an eos between any two, less was learned.
    """

    def __init__(self, corpus: TrainingPairs, num: int, *, max_len: int) -> None:
        self.num_windows = corpus.num_windows
        self._corpus, self._num, self._max_len = corpus, num, max_len
        self.made_by = (*corpus.made_by, f"{num} tagged concatenations of at most {max_len}")

    def __len__(self) -> int:
        return len(self._corpus) * (1 + self._num)

    def window(self, number: int, random: np.random.Generator, /) -> EncodedPairs:
        """See `TrainingPairs`. What is longer than `max_len` is left out."""
        pairs = self._corpus.window(number, random)
        first = np.tile(np.arange(len(pairs)), self._num)
        second = np.concatenate([random.permutation(len(pairs)) for _ in range(self._num)])
        src_lens, tgt_lens = (side.lens[first] - 1 + side.lens[second] for side in pairs.sides)
        fits = np.maximum(src_lens + 1, tgt_lens) <= self._max_len
        first, second = first[fits], second[fits]
        return _with_synthetic(
            pairs, *(side.slices(first, 0, side.lens[first] - 1).joined(side.select(second)) for side in pairs.sides)
        )


class RecombinedPairs:
    """A corpus and, for each of its pairs, `num` more: the beginning of one and the end of another.

    Both sides are cut where they are aligned, and both pairs have the same source symbol in front of the cut and the
    same two behind it, so that each symbol keeps its neighbors: a vowel may be long before one consonant, and short
    before two. For tasks whose sides run in parallel, such as words and their sounds.
    """

    num_windows = 1

    def __init__(self, pairs: EncodedPairs, num: int) -> None:
        self._pairs, self._num = pairs, num
        self.made_by: tuple[str, ...] = (f"{num} tagged recombinations",)
        cuts, (src, _) = _places_to_cut(pairs), pairs.sides
        places = src.starts[cuts[0]] + cuts[1]
        before, behind, next_one = (src.ids[places + offset].astype(np.int64) for offset in (-1, 0, 1))
        num_ids = int(src.ids.max()) + 1
        neighbors = (before * num_ids + behind) * num_ids + next_one
        self._cuts = cuts[:, np.argsort(neighbors, kind="stable")]
        # Of each cut: the first and the number of those between the same symbols.
        _, sizes = np.unique(neighbors, return_counts=True)
        self._group_starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._group_sizes = np.repeat(sizes, sizes)

    def __len__(self) -> int:
        return len(self._pairs) * (1 + self._num * bool(self._cuts.size))

    def window(self, _number: int, random: np.random.Generator, /) -> EncodedPairs:
        """See `TrainingPairs`."""
        num_cuts = self._cuts.shape[1]
        first = random.integers(num_cuts, size=self._num * len(self._pairs) if num_cuts else 0)
        second = self._group_starts[first] + random.integers(self._group_sizes[first])
        rows, others = self._cuts[0, first], self._cuts[0, second]
        return _with_synthetic(
            self._pairs,
            *(
                side.slices(rows, 0, cut[first]).joined(side.slices(others, cut[second], side.lens[others]))
                for side, cut in zip(self._pairs.sides, self._cuts[1:], strict=True)
            ),
        )


def _with_synthetic(pairs: EncodedPairs, src: Ragged, tgt: Ragged) -> EncodedPairs:
    """The pairs, and behind them the synthetic ones, tagged."""
    tags = Ragged.of([[_TAG]]).select(np.zeros(len(src), dtype=np.intp))
    return EncodedPairs(*map(Ragged.chained, zip(pairs.sides, (tags.joined(src), tgt), strict=True)))


def _places_to_cut(pairs: EncodedPairs) -> NDArray[np.int64]:
    """Columns (row, i, j): within the pair, its first i source ids are aligned to the first j target ids.

    Long pairs are left whole: memory and time grow as the product of both lengths.
    """
    lens = np.maximum(pairs.src_lens, pairs.tgt_lens)
    by_length = np.argsort(lens, kind="stable")[: np.count_nonzero(lens <= _LONGEST_ALIGNED)]  # little padding
    num_groups = -(-len(by_length) // _NUM_LEARNED_FROM)

    def rectangles(rows: NDArray[np.intp]) -> tuple[Any, ...]:
        return *pairs.padded(rows), tuple(side.lens[rows].astype(np.int64) - 1 for side in pairs.sides)

    if not num_groups:
        return np.empty((3, 0), dtype=np.int64)
    alignment = Alignment(
        *rectangles(by_length[::num_groups]), base=2 + max(int(side.ids.max()) for side in pairs.sides)
    )
    cuts = []
    for rows in np.array_split(by_length, num_groups):
        src, tgt, (src_lens, tgt_lens) = rectangles(rows)
        number, i, j = np.nonzero(alignment.passing(src, tgt, (src_lens, tgt_lens)) > _SURE)
        is_inside = (i > 0) & (i < src_lens[number]) & (j > 0) & (j < tgt_lens[number])
        cuts.append(np.stack([rows[number], i, j])[:, is_inside])
    return np.concatenate(cuts, axis=1)
