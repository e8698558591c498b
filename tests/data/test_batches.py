from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transduce.data.batches import (
    EncodedPairs,
    bucket_batches,
    collate,
    encode_pairs,
    pad_sources,
    plan_epoch,
)
from transduce.data.pairs import Pairs
from transduce.errors import DataError, TransduceError
from transduce.text.tokenizer import Tokenizer

PAD, BOS, EOS = 0, 1, 2


def pairs_of_lengths(lengths: list[tuple[int, int]]) -> EncodedPairs:
    """Row k holds the id 3 + k as often as its lengths say, then eos."""
    src = [[3 + row] * (src_len - 1) + [EOS] for row, (src_len, _) in enumerate(lengths)]
    tgt = [[3 + row] * (tgt_len - 1) + [EOS] for row, (_, tgt_len) in enumerate(lengths)]
    return EncodedPairs(src, tgt)


def random_pairs(num_pairs: int, longest: int, seed: int) -> EncodedPairs:
    return pairs_of_lengths(np.random.default_rng(seed).integers(1, longest + 1, (num_pairs, 2)).tolist())


class SpellingTokenizer(Tokenizer):
    """A letter is its number; nothing is learnt."""

    def __init__(self) -> None:
        pass

    def encode_source(self, lines):
        return [[ord(letter) for letter in line] + [EOS] for line in lines]

    encode_target = encode_source


LENGTHS = st.lists(st.tuples(st.integers(1, 23), st.integers(1, 23)), max_size=40)


# --- rows and rectangles ---------------------------------------------------------------------------------------------


def test_a_batch_written_by_hand_is_padded_and_shifted():
    pairs = EncodedPairs([[7, 8, EOS], [9, EOS], [6, 6, 6, 6, EOS]], [[5, EOS], [4, 3, 5, EOS], [EOS]])
    batch = collate(pairs, [1, 0])
    assert batch.src.tolist() == [[9, EOS, PAD], [7, 8, EOS]]
    assert batch.tgt_in.tolist() == [[BOS, 4, 3, 5], [BOS, 5, PAD, PAD]]
    assert batch.tgt_out.tolist() == [[4, 3, 5, EOS], [5, EOS, PAD, PAD]]
    assert {batch.src.dtype, batch.tgt_in.dtype, batch.tgt_out.dtype} == {torch.int64}


@settings(derandomize=True, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.lists(st.integers(3, 999), max_size=7)] * 2), min_size=1, max_size=9), data=st.data()
)
def test_collate_does_what_nested_loops_do(rows, data):
    src, tgt = [[*source, EOS] for source, _ in rows], [[*target, EOS] for _, target in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))
    batch = collate(EncodedPairs(src, tgt), chosen)
    src_len, tgt_len = max(len(src[row]) for row in chosen), max(len(tgt[row]) for row in chosen)
    assert batch.src.tolist() == [src[row] + [PAD] * (src_len - len(src[row])) for row in chosen]
    assert batch.tgt_out.tolist() == [tgt[row] + [PAD] * (tgt_len - len(tgt[row])) for row in chosen]
    assert batch.tgt_in.tolist() == [[BOS, *tgt[row][:-1]] + [PAD] * (tgt_len - len(tgt[row])) for row in chosen]
    assert torch.equal(pad_sources([src[row] for row in chosen]), batch.src)


def test_a_batch_moved_to_a_device_has_all_its_tensors_there():
    batch = collate(pairs_of_lengths([(2, 3), (5, 1)]), np.array([0, 1]))
    moved = batch.to("meta")
    assert [tensor.device.type for tensor in (moved.src, moved.tgt_in, moved.tgt_out)] == ["meta"] * 3


def test_selected_pairs_are_the_rows_asked_for_in_their_order():
    pairs = EncodedPairs([[7, 8, EOS], [9, EOS], [6, EOS]], [[5, EOS], [4, 3, EOS], [EOS]])
    selected = pairs.select([2, 0])
    assert len(selected) == 2
    assert [selected.src(row).tolist() for row in range(2)] == [[6, EOS], [7, 8, EOS]]
    assert [selected.tgt(row).tolist() for row in range(2)] == [[EOS], [5, EOS]]
    assert selected.src_lens.tolist() == [2, 3]
    assert selected.tgt_lens.tolist() == [1, 2]
    assert pairs.src(2).dtype == selected.src_lens.dtype == np.int32
    assert len(pairs.select([])) == 0


def test_sides_of_unequal_size_and_rows_without_ids_are_refused():
    with pytest.raises(ValueError, match="as many rows"):
        EncodedPairs([[EOS]], [])
    with pytest.raises(ValueError, match="Row 1 has no ids"):
        EncodedPairs([[EOS], []], [[EOS], [EOS]])


def test_pairs_longer_than_max_len_with_their_eos_are_dropped_and_counted():
    pairs = Pairs(["abc", "abcd", "a", "ab"], ["a", "a", "abcd", "abc"], {}, [], {})
    encoded, num_dropped = encode_pairs(SpellingTokenizer(), pairs, max_len=4)
    assert num_dropped == 2
    assert [bytes(encoded.src(row)[:-1].tolist()) for row in range(2)] == [b"abc", b"ab"]
    assert encoded.tgt_lens.tolist() == [2, 4]
    assert encode_pairs(SpellingTokenizer(), pairs, max_len=5)[1] == 0


def test_a_max_len_that_leaves_no_pair_is_an_error_that_names_the_shortest():
    pairs = Pairs(["abc", "abcd"], ["a", "a"], {}, [], {})
    with pytest.raises(DataError, match=r"each of the 2 .* max_len \(3\) tokens; the shortest pair has 4"):
        encode_pairs(SpellingTokenizer(), pairs, max_len=3)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_cut_by_hand():
    src_lens, tgt_lens = np.array([2, 9, 2, 3, 2]), np.array([3, 1, 2, 2, 3])
    batches = bucket_batches(src_lens, tgt_lens, batch_tokens=6, order=[4, 3, 2, 1, 0])
    # By target, then source: row 1 (9 long, alone), 2 (2 long), 3 (3 long), then 4 before 0 as in `order` (3 long).
    assert [batch.tolist() for batch in batches] == [[1], [2, 3], [4, 0]]


@settings(derandomize=True, deadline=None)
@given(lengths=LENGTHS, batch_tokens=st.integers(1, 120), seed=st.integers(0, 9))
def test_no_batch_exceeds_its_tokens_and_no_neighbours_could_have_been_one(lengths, batch_tokens, seed):
    src_lens, tgt_lens = np.array(lengths, dtype=np.int32).reshape(-1, 2).T
    order = np.random.default_rng(seed).permutation(len(lengths))
    batches = bucket_batches(src_lens, tgt_lens, batch_tokens=batch_tokens, order=order)
    flat = [row for batch in batches for row in batch.tolist()]
    place = {row: position for position, row in enumerate(order.tolist())}
    assert flat == sorted(place, key=lambda row: (lengths[row][1], lengths[row][0], place[row]))

    def area(rows: list[int]) -> int:
        return len(rows) * max(max(lengths[row]) for row in rows)

    for batch in batches:
        assert len(batch) == 1 or area(batch.tolist()) <= batch_tokens
    for batch, following in pairwise(batches):
        assert area([*batch.tolist(), int(following[0])]) > batch_tokens


@settings(derandomize=True, deadline=None)
@given(lengths=LENGTHS, batch_tokens=st.integers(1, 120), micro_batches=st.integers(1, 5), epoch=st.integers(0, 3))
def test_every_pair_occurs_once_an_epoch_and_only_the_last_step_is_short(lengths, batch_tokens, micro_batches, epoch):
    pairs = pairs_of_lengths(lengths)
    steps = plan_epoch(pairs, batch_tokens=batch_tokens, micro_batches=micro_batches, seed=5, epoch=epoch)
    assert sorted(int(row) for step in steps for batch in step for row in batch) == list(range(len(lengths)))
    assert all(len(step) == micro_batches for step in steps[:-1])
    assert all(1 <= len(step) <= micro_batches for step in steps)


def as_lists(steps):
    return [[batch.tolist() for batch in step] for step in steps]


def test_a_plan_is_the_same_whatever_the_global_random_state():
    pairs = random_pairs(211, longest=17, seed=0)
    here = as_lists(plan_epoch(pairs, batch_tokens=97, micro_batches=3, seed=11, epoch=4))
    np.random.seed(1)
    torch.manual_seed(1)
    plan_epoch(pairs, batch_tokens=97, micro_batches=3, seed=11, epoch=3)
    assert as_lists(plan_epoch(pairs, batch_tokens=97, micro_batches=3, seed=11, epoch=4)) == here


def test_another_epoch_or_seed_gives_another_order_and_other_company():
    pairs = pairs_of_lengths([(5, 5)] * 100)  # all of one length: only the ties decide

    def company_of_row_0(seed: int, epoch: int) -> tuple[int, ...]:
        steps = plan_epoch(pairs, batch_tokens=50, micro_batches=1, seed=seed, epoch=epoch)
        return next(tuple(sorted(batch.tolist())) for step in steps for batch in step if 0 in batch)

    assert len({company_of_row_0(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_the_batches_of_a_plan_are_not_in_the_order_of_length():
    pairs = random_pairs(500, longest=29, seed=2)
    longest = [
        int(pairs.tgt_lens[b].max()) for (b,) in plan_epoch(pairs, batch_tokens=64, micro_batches=1, seed=0, epoch=0)
    ]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 0.3 < rises / len(longest) < 0.7


def test_micro_batches_change_the_grouping_and_not_the_order():
    pairs = random_pairs(131, longest=13, seed=3)
    one, four = (as_lists(plan_epoch(pairs, batch_tokens=40, micro_batches=n, seed=1, epoch=2)) for n in (1, 4))
    assert [batch for step in one for batch in step] == [batch for step in four for batch in step]


def test_bucketed_batches_of_captions_are_at_most_a_tenth_padding():
    random = np.random.default_rng(0)
    src_lens = random.integers(6, 30, 5000)
    pairs = pairs_of_lengths(np.stack([src_lens, np.maximum(2, src_lens + random.integers(-3, 4, 5000))], 1).tolist())
    steps = plan_epoch(pairs, batch_tokens=1024, micro_batches=1, seed=0, epoch=0)
    batches = [collate(pairs, batch) for (batch,) in steps]
    padding = sum(int((batch.tgt_out == PAD).sum()) for batch in batches) / sum(b.tgt_out.numel() for b in batches)
    assert padding < 0.1


def test_budgets_and_step_sizes_below_one_are_refused():
    pairs = pairs_of_lengths([(2, 2)])
    with pytest.raises(TransduceError, match=r"batch_tokens \(0\)"):
        plan_epoch(pairs, batch_tokens=0, micro_batches=1, seed=0, epoch=0)
    with pytest.raises(TransduceError, match=r"micro_batches \(0\)"):
        plan_epoch(pairs, batch_tokens=1, micro_batches=0, seed=0, epoch=0)
