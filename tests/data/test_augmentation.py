"""Pairs made of other pairs: end to end, and recombined where their sides are aligned."""

import random
from itertools import pairwise, product

import numpy as np
import pytest

from transduce.data.alignment import _STEPS, Alignment
from transduce.data.augmentation import ConcatenatedPairs, RecombinedPairs, augmented
from transduce.data.batches import EncodedPairs, StepOrder
from transduce.data.config import DataConfig

BOS, EOS = 1, 2


def random_pairs(num_pairs: int, longest: int, seed: int) -> EncodedPairs:
    draw = random.Random(seed)
    rows = [[draw.randint(5, 40) for _ in range(draw.randint(1, longest))] + [EOS] for _ in range(2 * num_pairs)]
    return EncodedPairs(rows[:num_pairs], rows[num_pairs:])


def spelled(num_words: int, seed: int) -> EncodedPairs:
    """Words of the letters 10 to 19, each with a sound 10 above, but 19, which is silent, and 18, which has two."""
    draw = random.Random(seed)
    words = [draw.choices(range(10, 20), k=draw.randint(3, 8)) for _ in range(num_words)]
    return EncodedPairs([[*word, EOS] for word in words], [[*sounds(word), EOS] for word in words])


def sounds(word: list[int]) -> list[int]:
    return [sound for letter in word if letter != 19 for sound in ([28, 30] if letter == 18 else [letter + 10])]


def rows_of(pairs: EncodedPairs) -> list[tuple[list[int], list[int]]]:
    return [(pairs.src(row).tolist(), pairs.tgt(row).tolist()) for row in range(len(pairs))]


def test_an_epoch_has_each_pair_alone_and_so_many_times_before_another_one() -> None:
    pairs, num, max_len = random_pairs(23, 11, seed=7), 3, 17
    rows, alone = rows_of(ConcatenatedPairs(pairs, num, max_len=max_len).window(0, np.random.default_rng(5))), None
    alone = rows_of(pairs)
    assert rows[:23] == alone
    possible = [
        ([BOS, *src[:-1], *next_src], tgt[:-1] + next_tgt) for (src, tgt), (next_src, next_tgt) in product(alone, alone)
    ]
    assert all(row in possible for row in rows[23:])
    assert max(max(map(len, pair)) for pair in rows[23:]) <= max_len < max(max(map(len, pair)) for pair in possible)
    untouched = ConcatenatedPairs(pairs, num, max_len=99)
    whole = untouched.window(0, np.random.default_rng(5))
    assert len(whole) == len(untouched) == 4 * 23
    # Each is in front, and behind, as often as the others.
    for side, side_before, num_tags in zip(whole.sides, pairs.sides, (num * 23, 0), strict=True):
        assert side.lens.sum() == (1 + 2 * num) * side_before.lens.sum() - num * 23 + num_tags


def test_made_up_pairs_are_others_in_every_epoch_and_the_same_after_a_resume() -> None:
    corpus = augmented(spelled(50, seed=3), DataConfig(train=("x",), recombinations=2, concatenations=1))

    def rows_of_epoch(epoch: int) -> list[tuple[list[int], list[int]]]:
        order = StepOrder(corpus, batch_tokens=40, micro_batches=1, seed=5)
        order.open(epoch, 0)
        return rows_of(order.pairs)

    assert rows_of_epoch(4) == rows_of_epoch(4) != rows_of_epoch(5)
    assert len(rows_of_epoch(4)) == len(corpus) == 50 * 3 * 2


def test_recombined_pairs_are_spelled_as_they_sound() -> None:
    pairs = spelled(600, seed=11)
    rows = rows_of(RecombinedPairs(pairs, 4).window(0, np.random.default_rng(5)))
    assert rows[:600] == rows_of(pairs)
    assert len(rows) == 5 * 600
    assert {src[0] for src, _ in rows[600:]} == {BOS} and BOS not in {i for src, _ in rows for i in src[1:]}
    synthetic = [(src[1:], tgt) for src, tgt in rows[600:]]
    wrong = [(src, tgt) for src, tgt in synthetic if [*sounds(src[:-1]), EOS] != tgt]
    assert len(wrong) <= 12  # a silent letter may go to either side of a cut
    known = {tuple(src) for src, _ in rows[:600]}
    made_up = [src for src, _ in synthetic if tuple(src) not in known]
    assert len(made_up) > 700
    # The symbols before and behind the cut have their neighbors; of three in a row, those before it alone may be new.
    triples = {triple for src, _ in rows[:600] for triple in zip(src, src[1:], src[2:], strict=False)}
    assert all(len({*zip(src, src[1:], src[2:], strict=False)} - triples) <= 1 for src in made_up)
    neighbors = {pair for src, _ in rows[:600] for pair in pairwise(src)}
    assert {pair for src in made_up for pair in pairwise(src)} <= neighbors


@pytest.mark.parametrize("seed", [1, 2])
def test_passing_probabilities_are_those_of_all_alignments_counted_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    pairs = [
        ([draw.randint(3, 5) for _ in range(draw.randint(1, 4))], [draw.randint(3, 5) for _ in range(3)])
        for _ in range(5)
    ]

    def alignments(i: int, j: int, num_i: int, num_j: int) -> list[list[tuple[int, int, int, int]]]:
        if (i, j) == (num_i, num_j):
            return [[]]
        return [
            [(i, j, a, b), *rest]
            for a, b in _STEPS
            if i + a <= num_i and j + b <= num_j
            for rest in alignments(i + a, j + b, num_i, num_j)
        ]

    chances: dict[tuple, float] = {}
    for iteration in range(9):
        counts: dict[tuple, float] = {}
        passing = []
        for src, tgt in pairs:
            ways = alignments(0, 0, len(src), len(tgt))
            keys = [[(*src[i : i + a], -1, *tgt[j : j + b]) for i, j, a, b in way] for way in ways]
            weights = [
                np.prod(
                    [
                        chances[key] if iteration else _STEPS[a, b]
                        for key, (_, _, a, b) in zip(way_keys, way, strict=True)
                    ]
                )
                for way_keys, way in zip(keys, ways, strict=True)
            ]
            shares = np.array(weights) / sum(weights)
            at = {(0, 0): 1.0}
            for way, way_keys, share in zip(ways, keys, shares, strict=True):
                for (i, j, a, b), key in zip(way, way_keys, strict=True):
                    at[i + a, j + b] = at.get((i + a, j + b), 0.0) + share
                    counts[key] = counts.get(key, 0.0) + share
            passing.append(at)
        chances = {key: max(count / sum(counts.values()), 1e-9) for key, count in counts.items()}
    encoded = EncodedPairs(*([[*side, EOS] for side in sides] for sides in zip(*pairs, strict=True)))
    src, tgt = encoded.padded(np.arange(5))
    lens = tuple(side.lens.astype(np.int64) - 1 for side in encoded.sides)
    result = Alignment(src, tgt, lens, base=50).passing(src, tgt, lens)
    for number, at in enumerate(passing):
        for (i, j), chance in at.items():
            assert result[number, i, j] == pytest.approx(chance, abs=1e-6)


def test_long_pairs_are_left_whole_and_words_without_a_place_to_cut_as_they_are() -> None:
    long = [[draw % 10 + 10 for draw in range(180)] + [EOS]]
    pairs = spelled(60, seed=3)
    src, tgt = (list(side) for side in zip(*rows_of(pairs), strict=True))
    corpus = RecombinedPairs(EncodedPairs(src + long, tgt + long), 2)
    assert all(len(row) < 60 for row, _ in rows_of(corpus.window(0, np.random.default_rng(5)))[61:])
    single = RecombinedPairs(EncodedPairs([[5, EOS]] * 9, [[6, EOS]] * 9), 2)
    assert len(single) == len(single.window(0, np.random.default_rng(5))) == 9


def test_other_made_up_pairs_are_another_plan() -> None:
    def plan_of(**made: int) -> list[int | str]:
        corpus = augmented(spelled(50, seed=3), DataConfig(train=("x",), **made))
        return StepOrder(corpus, batch_tokens=40, micro_batches=1, seed=5).depends_on

    plans = [plan_of(), plan_of(recombinations=3), plan_of(concatenations=3), plan_of(concatenations=3, max_len=40)]
    assert len({str(plan) for plan in plans}) == 4
