from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from covering import covered
from small_model import small_model as small_model_of
from transduce.data.batches import EncodedPairs
from transduce.data.packed_batches import PackedBatch, collate_packed, pack_batches
from transduce.errors import TransduceError
from transduce.model import Packing, Transformer, attention
from transduce.model.config import VocabularySizes
from transduce.model.packing import Segments

PAD, BOS, EOS = 0, 1, 2
NUM_FILLERS = 8  # as `collate_packed` says
SRC_LENS, TGT_LENS = [5, 3, 8, 4, 1], [2, 6, 1, 9, 3]


def packing_of(lens: list[int], *, max_len: int = 11, num_empty: int = 0) -> Packing:
    """Written out: sentence after sentence, and so many empty ones at the end."""
    return Packing(
        torch.tensor([number for number, length in enumerate(lens) for _ in range(length)]),
        torch.tensor([position for length in lens for position in range(length)]),
        torch.tensor([0, *accumulate(lens + [0] * num_empty)], dtype=torch.int32),
        max_len,
    )


def block_diagonal(query_lens: list[int], key_lens: list[int], *, is_causal: bool = False) -> Tensor:
    """True where a query and a key are of the same sentence; if causal, up to the query's own position."""
    rows = [(number, position) for number, length in enumerate(query_lens) for position in range(length)]
    columns = [(number, position) for number, length in enumerate(key_lens) for position in range(length)]
    return torch.tensor([[i == j and (not is_causal or s <= t) for j, s in columns] for i, t in rows])


def random_tensor(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs_of(src_lens: list[int], tgt_lens: list[int], num_ids: int = 13, seed: int = 4) -> EncodedPairs:
    random = np.random.default_rng(seed)
    return EncodedPairs(
        *(
            [[*random.integers(3, num_ids, length - 1).tolist(), EOS] for length in lens]
            for lens in (src_lens, tgt_lens)
        )
    )


small_model = partial(small_model_of, VocabularySizes.joint(13))


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_empty", [0, 7])
@pytest.mark.parametrize(
    ("query_lens", "key_lens", "is_causal"),
    [(TGT_LENS, SRC_LENS, False), (TGT_LENS, TGT_LENS, False), (TGT_LENS, TGT_LENS, True), ([1], [1], True)],
)
def test_attention_within_segments_is_equation_1_under_a_block_diagonal_mask(
    query_lens: list[int], key_lens: list[int], is_causal: bool, num_empty: int
) -> None:
    q = random_tensor(1, 2, sum(query_lens), 7).requires_grad_()
    k = random_tensor(1, 2, sum(key_lens), 7, seed=4).requires_grad_()
    v = random_tensor(1, 2, sum(key_lens), 7, seed=5).requires_grad_()
    segments = Segments(
        packing_of(query_lens, num_empty=num_empty), packing_of(key_lens, max_len=13, num_empty=num_empty)
    )
    if is_causal:
        segments = Segments(segments.queries, segments.queries)
    actual = segments.attend(q, k, v, is_causal=is_causal)
    expected, _ = attention(q, k, v, block_diagonal(query_lens, key_lens, is_causal=is_causal))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    weights = random_tensor(*expected.shape, seed=6)
    gradients = torch.autograd.grad((actual * weights).sum(), (q, k, v))
    for found, wanted in zip(gradients, torch.autograd.grad((expected * weights).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


# --- the model -------------------------------------------------------------------------------------------------------


def weighted_sum(hidden: list[Tensor]) -> Tensor:
    """A number that depends on every hidden vector of every sentence, on each in its own way."""
    return sum((h * random_tensor(*h.shape, seed=100 + number)).sum() for number, h in enumerate(hidden))


def hidden_one_by_one(model: Transformer, pairs: EncodedPairs, rows: list[int]) -> list[Tensor]:
    found = []
    for row in rows:
        src, tgt_out = torch.tensor(pairs.src(row))[None].long(), torch.tensor(pairs.tgt(row))[None].long()
        found.append(model(src, F.pad(tgt_out[:, :-1], (1, 0), value=BOS))[0])
    return found


def hidden_packed(model: Transformer, batch: PackedBatch, num_rows: int) -> list[Tensor]:
    hidden, offsets = model.forward_packed(*batch.inputs)[0], batch.tgt_packing.offsets.tolist()
    assert hidden.isfinite().all()  # also of fillers
    return [hidden[offsets[i] : offsets[i + 1]] for i in range(num_rows)]


KINDS = [
    *covered([False, True], ["sinusoidal", "learned", "rotary", "none"], ["relu"], ["layer"], [0, 61], strength=2),
    (False, "sinusoidal", "swiglu", "layer", 0),
    (False, "sinusoidal", "swiglu", "layer", 61),
    (True, "rotary", "swiglu", "rms", 0),
    (True, "rotary", "swiglu", "rms", 61),
]


@pytest.mark.parametrize(("norm_first", "positions", "feed_forward", "norm", "num_tokens"), KINDS)
def test_a_packed_forward_is_that_of_each_sentence_alone_and_so_are_its_gradients(
    norm_first: bool, positions: str, feed_forward: str, norm: str, num_tokens: int
) -> None:
    model = small_model(norm_first=norm_first, positions=positions, feed_forward=feed_forward, norm=norm)
    pairs, rows = pairs_of(SRC_LENS, TGT_LENS), [3, 0, 2, 4, 1]
    packed = hidden_packed(model, collate_packed(pairs, rows, num_tokens=num_tokens), len(rows))
    alone = hidden_one_by_one(model, pairs, rows)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-11)
    parameters = list(model.parameters())
    actual = torch.autograd.grad(weighted_sum(packed), parameters)
    expected = torch.autograd.grad(weighted_sum(alone), parameters)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert all((gradient != 0).any() for gradient in actual)


def test_the_order_of_the_sentences_in_a_row_does_not_matter() -> None:
    model, pairs = small_model(), pairs_of(SRC_LENS, TGT_LENS)
    rows, others = [0, 1, 2, 3, 4], [4, 2, 0, 3, 1]
    first, second = (hidden_packed(model, collate_packed(pairs, order), 5) for order in (rows, others))
    torch.testing.assert_close([first[row] for row in others], second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["src", "tgt_in"])
def test_what_stands_in_fillers_changes_no_hidden_vector_and_no_gradient(side: str) -> None:
    model, pairs = small_model(positions="learned"), pairs_of(SRC_LENS, TGT_LENS)
    batch = collate_packed(pairs, [0, 1, 2, 3, 4], num_tokens=61)
    ids = getattr(batch, side).clone()
    num_real = sum(SRC_LENS if side == "src" else TGT_LENS)
    assert (ids[0, num_real:] == PAD).all() and (ids[0, :num_real] != PAD).all()
    ids[0, num_real:] = torch.randint(3, 13, (ids.size(1) - num_real,), generator=torch.Generator().manual_seed(5))
    found = []
    for given_batch in (batch, replace(batch, **{side: ids})):
        hidden = hidden_packed(model, given_batch, 5)
        found.append((hidden, torch.autograd.grad(weighted_sum(hidden), list(model.parameters()))))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def test_a_row_with_nothing_but_one_token_a_side_is_enough() -> None:
    model, pairs = small_model(), pairs_of([1], [1])
    packed = hidden_packed(model, collate_packed(pairs, [0]), 1)
    torch.testing.assert_close(packed, hidden_one_by_one(model, pairs, [0]), rtol=0, atol=1e-12)


def test_a_filler_longer_than_the_learned_positions_is_no_mistake() -> None:
    model, pairs = small_model(positions="learned"), pairs_of(SRC_LENS, TGT_LENS)
    batch = collate_packed(pairs, [0, 1], num_tokens=8 * 50)  # fillers of some 50 tokens, 37 positions
    torch.testing.assert_close(
        hidden_packed(model, batch, 2), hidden_one_by_one(model, pairs, [0, 1]), rtol=0, atol=1e-11
    )


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_packed_batch_by_hand() -> None:
    pairs = EncodedPairs([[5, 6, EOS], [9, EOS], [7, EOS]], [[8, EOS], [4, 3, 5, EOS], [EOS]])
    batch = collate_packed(pairs, [2, 0], num_tokens=4)  # of 7 + 8 tokens: 5 real sources, so 8 are added to 5
    assert batch.src.tolist() == [[7, EOS, 5, 6, EOS] + [PAD] * 8]
    assert batch.tgt_out.tolist() == [[EOS, 8, EOS] + [PAD] * 10]
    assert batch.tgt_in.tolist() == [[BOS, BOS, 8] + [PAD] * 10]
    src, tgt = batch.src_packing, batch.tgt_packing
    assert src.sentences.tolist() == [0, 0, 1, 1, 1, *range(2, 10)]  # eight fillers, of one token each
    assert src.positions.tolist() == [0, 1, 0, 1, 2] + [0] * 8
    assert tgt.sentences.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9]  # ten tokens left for eight fillers
    assert tgt.positions.tolist() == [0, 0, 1] + [0] * 10
    assert src.offsets.tolist() == [0, 2, *range(5, 13)] + [13] * 247  # room for 256 sentences, and the end of the last
    assert tgt.offsets.tolist() == [0, 1, 3, 5, 7, 8, 9, 10, 11, 12] + [13] * 247
    assert (src.offsets.dtype, src.max_len, tgt.max_len) == (torch.int32, 64, 64)


@pytest.mark.parametrize("num_tokens", [0, 17, 200])
def test_a_packed_batch_agrees_with_itself(num_tokens: int) -> None:
    pairs, rows = pairs_of(SRC_LENS, TGT_LENS), [1, 4, 0]
    batch = collate_packed(pairs, rows, num_tokens=num_tokens)
    for packing, lens, ids in (
        (batch.src_packing, pairs.src_lens, batch.src),
        (batch.tgt_packing, pairs.tgt_lens, batch.tgt_out),
    ):
        found = packing.offsets.diff()
        assert found[:3].tolist() == lens[rows].tolist()
        assert (found[3 : 3 + NUM_FILLERS] > 0).all()  # in both sides: no filler looks at nothing
        assert (found[3 + NUM_FILLERS :] == 0).all()
        assert found.sum() == ids.size(1) == len(packing.sentences) == len(packing.positions) > num_tokens
        assert packing.sentences.tolist() == [i for i, length in enumerate(found.tolist()) for _ in range(length)]
        assert found.max() <= packing.max_len
        assert (ids != PAD).sum() == lens[rows].sum()


def test_batches_that_fit_into_one_number_of_tokens_have_equal_shapes() -> None:
    random = np.random.default_rng(6)
    src_lens, tgt_lens = (random.integers(1, 30, 400).tolist() for _ in range(2))
    pairs = pairs_of(src_lens, tgt_lens)
    batches = pack_batches(pairs.src_lens, pairs.tgt_lens, batch_tokens=500, order=range(400))[:-1]
    found = {shapes_of(collate_packed(pairs, rows, num_tokens=500)) for rows in batches}
    assert len(batches) > 10
    assert found == {(508, 508, 508, 257, 257, 64, 64)}


def shapes_of(batch: PackedBatch) -> tuple[int, ...]:
    packings = (batch.src_packing, batch.tgt_packing)
    return (
        *(ids.size(1) for ids in (batch.src, batch.tgt_in, batch.tgt_out)),
        *(len(packing.offsets) for packing in packings),
        *(packing.max_len for packing in packings),
    )


Lens = list[tuple[int, int]]
sides = st.lists(st.tuples(st.integers(1, 23), st.integers(1, 23)), max_size=40)


def packed(lens: Lens, batch_tokens: int, order: list[int]) -> list[list[int]]:
    src_lens, tgt_lens = np.array(lens, dtype=np.int32).reshape(-1, 2).T
    return [rows.tolist() for rows in pack_batches(src_lens, tgt_lens, batch_tokens=batch_tokens, order=order)]


def in_some_order(draw_lens: Lens, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(len(draw_lens)).tolist()


def with_examples(check: Callable[[Lens, int, int], None]) -> Callable[[], None]:
    return settings(deadline=None, max_examples=150)(
        given(lens=sides, batch_tokens=st.integers(1, 60), seed=st.integers(0, 9))(check)
    )


@with_examples
def test_every_row_is_in_one_batch_and_in_the_order_given(lens: Lens, batch_tokens: int, seed: int) -> None:
    order = in_some_order(lens, seed)
    assert [row for rows in packed(lens, batch_tokens, order) for row in rows] == order


@with_examples
def test_no_side_of_a_batch_is_longer_than_allowed_unless_it_is_one_pair(
    lens: Lens, batch_tokens: int, seed: int
) -> None:
    for rows in packed(lens, batch_tokens, in_some_order(lens, seed)):
        longest = max(sum(lens[row][side] for row in rows) for side in (0, 1))
        assert rows and (len(rows) == 1 or longest <= batch_tokens)


@with_examples
def test_the_first_row_of_a_batch_would_not_have_fitted_into_the_one_before(
    lens: Lens, batch_tokens: int, seed: int
) -> None:
    batches = packed(lens, batch_tokens, in_some_order(lens, seed))
    for before, after in pairwise(batches):
        joined = [*before, after[0]]
        assert max(sum(lens[row][side] for row in joined) for side in (0, 1)) > batch_tokens


@pytest.mark.parametrize("side", [0, 1])
def test_a_pair_longer_than_a_batch_is_one_of_its_own(side: int) -> None:
    lens = [(2, 2), (3, 1), (1, 1), (2, 3), (1, 1)]
    lens[2] = (9, 1) if side == 0 else (1, 9)
    assert packed(lens, 5, [0, 1, 2, 3, 4]) == [[0, 1], [2], [3, 4]]


def test_batches_of_no_tokens_are_refused() -> None:
    with pytest.raises(TransduceError, match="batch_tokens"):
        packed([(1, 1)], 0, [0])
