import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from transduce.model.dropout import Dropout

LEVELS = 65536  # a rate is a multiple of one in so many
NUM = 200_003  # a prime: the last 64-bit word is not used up


def drawn(module: Dropout, x: Tensor, seed: int = 1) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module(x)


def is_dropped(p: float, seed: int, num: int = NUM) -> Tensor:
    return drawn(Dropout(p), torch.ones(num), seed) == 0


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_share_of_zeros_is_p_within_five_standard_deviations(p, seed):
    num_zeros = is_dropped(p, seed).sum().item()
    assert abs(num_zeros - NUM * p) < 5 * math.sqrt(NUM * p * (1 - p))


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.3, 1 / 3, 0.5, 0.77])
def test_what_is_kept_is_scaled_by_exactly_the_rate_that_is_drawn(p):
    kept = drawn(Dropout(p), torch.ones(NUM, dtype=torch.float64)).unique()
    rate = round(p * LEVELS) / LEVELS
    assert kept.tolist() == [0.0, pytest.approx(1 / (1 - rate), rel=2**-24)]  # once rounded, to float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 5, 1)])
def test_shape_and_type_stay(dtype, shape):
    x = torch.full(shape, 3.0, dtype=dtype)
    for out in (drawn(Dropout(0.5), x), Dropout(0.5).add(x, x)):
        assert (out.shape, out.dtype) == (x.shape, dtype)


def test_of_nothing_comes_nothing():
    assert drawn(Dropout(0.5), torch.empty(0, 5)).shape == (0, 5)


@pytest.mark.parametrize(("p", "is_training"), [(0.0, True), (0.5, False), (0.0, False)])
def test_in_evaluation_or_with_a_rate_of_zero_nothing_is_done_and_nothing_drawn(p, is_training):
    x, residual = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)), torch.full((5, 7), 0.5)
    before = torch.get_rng_state()
    module = Dropout(p).train(is_training)
    assert module(x).equal(x)
    assert module.add(residual, x).equal(residual + x)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_add_is_the_sum_of_the_residual_and_the_forward_of_the_same_seed(dtype):
    random = torch.Generator().manual_seed(3)
    residual, x = (torch.randn(11, 13, generator=random).to(dtype) for _ in range(2))
    module = Dropout(0.3)
    torch.manual_seed(4)
    added = module.add(residual, x)
    # A sum of two rounded numbers and a product rounded with the sum differ by a unit in the last place.
    unit = torch.finfo(dtype).eps  # of numbers up to 8
    torch.testing.assert_close(added, residual + drawn(module, x, seed=4), rtol=0, atol=8 * unit)
    is_kept = drawn(module, torch.ones_like(x), seed=4) != 0
    assert added[~is_kept].equal(residual[~is_kept])
    assert 0 < is_kept.sum() < is_kept.numel()


def test_gradients_pass_where_numbers_did_scaled_alike():
    residual, x = torch.randn(11, 13, generator=torch.Generator().manual_seed(3)), torch.ones(11, 13)
    residual.requires_grad_(), x.requires_grad_()
    module = Dropout(0.3)
    out = drawn(module, x, seed=4)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.equal(out)
    torch.manual_seed(4)
    of_residual, of_x = torch.autograd.grad(module.add(residual, x).sum(), (residual, x))
    assert of_residual.equal(torch.ones_like(residual))
    assert of_x.equal(out)


def test_the_same_seed_draws_the_same_numbers_and_another_one_others():
    assert is_dropped(0.5, seed=5).equal(is_dropped(0.5, seed=5))
    shares_in_common = [(is_dropped(0.5, 5) == is_dropped(0.5, other)).double().mean() for other in (6, 7, 8)]
    assert all(abs(share - 0.5) < 5 * 0.5 / math.sqrt(NUM) for share in shares_in_common)


def test_two_draws_in_a_row_have_nothing_in_common():
    module, x = Dropout(0.5), torch.ones(NUM)
    torch.manual_seed(9)
    first, second = module(x) == 0, module(x) == 0
    assert abs((first == second).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(NUM)


def correlation(first: Tensor, second: Tensor) -> float:
    return torch.corrcoef(torch.stack([first, second]).double())[0, 1].item()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_four_decisions_of_a_word_and_those_of_successive_words_are_uncorrelated(p):
    words = is_dropped(p, seed=10, num=4 * 60_013).view(-1, 4)
    bound = 5 / math.sqrt(len(words))  # of a correlation of independent draws, five standard deviations
    for first, second in combinations(range(4), 2):
        assert abs(correlation(words[:, first], words[:, second])) < bound, (first, second)
    for distance in (1, 2, 3, 312, 624):  # the twister has 624 words of state, 312 of 64 bits
        for first in range(4):
            for second in range(4):
                found = correlation(words[:-distance, first], words[distance:, second])
                assert abs(found) < bound, (distance, first, second)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_each_of_the_four_places_in_a_word_is_dropped_with_probability_p(p):
    words = is_dropped(p, seed=11, num=4 * 60_013).view(-1, 4)
    deviations = (words.sum(dim=0) - len(words) * p).abs()
    assert (deviations < 5 * math.sqrt(len(words) * p * (1 - p))).all()


@pytest.mark.parametrize("p", [1 - 2**-16, 1 - 2**-20, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_just_below_one_gives_finite_numbers(p, dtype):
    out = drawn(Dropout(p), torch.ones(NUM, dtype=dtype))
    assert out.isfinite().all()
    assert set(out.unique().tolist()) == {0.0, float(LEVELS)}  # one in 65,536 is kept: some 3 here


def test_a_rate_that_rounds_to_zero_drops_nothing():
    x = torch.ones(NUM)
    assert drawn(Dropout(1e-6), x).equal(x)
