import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import transduce.training.loss
from transduce.training.loss import cross_entropy_sum

PAD = 0
VOCAB_SIZE, D_MODEL = 13, 5


def example(
    batch_size: int = 23, tgt_len: int = 29, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden vectors, output weight, targets: a third of these is padding, the rest fills more than one chunk."""
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(batch_size, tgt_len, D_MODEL, generator=random, dtype=torch.float64).to(dtype)
    weight = torch.randn(VOCAB_SIZE, D_MODEL, generator=random, dtype=torch.float64).to(dtype)
    targets = torch.randint(1, VOCAB_SIZE, (batch_size, tgt_len), generator=random)
    targets[:, 2 * tgt_len // 3 :] = PAD
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def torch_loss(hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    logits = (hidden @ weight.T).flatten(0, 1)
    return F.cross_entropy(
        logits, targets.flatten(), label_smoothing=label_smoothing, ignore_index=PAD, reduction="sum"
    )


def test_the_example_has_several_chunks_the_last_one_not_full():
    num_rows = int((example()[2] != PAD).sum())
    assert num_rows > transduce.training.loss._ROWS_ON_CPU
    assert num_rows % transduce.training.loss._ROWS_ON_CPU


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_loss_equals_torch(label_smoothing, dtype, tolerance):
    hidden, weight, targets = example(dtype=dtype)
    loss, _ = cross_entropy_sum(hidden, weight, targets, pad_id=PAD, label_smoothing=label_smoothing)
    expected = torch_loss(hidden, weight, targets, label_smoothing)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_gradients_equal_torch_also_when_scaled(label_smoothing, dtype, tolerance):
    hidden, weight, targets = example(dtype=dtype)
    loss, _ = cross_entropy_sum(hidden, weight, targets, pad_id=PAD, label_smoothing=label_smoothing)
    expected_loss = torch_loss(hidden, weight, targets, label_smoothing)
    actual = torch.autograd.grad(-0.37 * loss, (hidden, weight))
    expected = torch.autograd.grad(-0.37 * expected_loss, (hidden, weight))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradients_are_the_slopes_of_the_loss(label_smoothing):
    hidden, weight, targets = example(2, 7)
    directions = [torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double() for x in (hidden, weight)]

    def loss(distance: float) -> Tensor:
        moved = [x + distance * direction for x, direction in zip((hidden, weight), directions, strict=True)]
        return cross_entropy_sum(*moved, targets, pad_id=PAD, label_smoothing=label_smoothing)[0]

    gradients = torch.autograd.grad(loss(0.0), (hidden, weight))
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    assert slope.item() == pytest.approx((loss(1e-5) - loss(-1e-5)).item() / 2e-5, rel=1e-7)


def test_the_count_is_that_of_real_targets():
    hidden, weight, targets = example(2, 7)
    assert cross_entropy_sum(hidden, weight, targets, pad_id=PAD)[1] == 2 * 4


def test_equal_logits_cost_the_log_of_the_vocabulary_per_token():
    _, weight, targets = example(2, 7)
    loss, count = cross_entropy_sum(torch.zeros(2, 7, D_MODEL).double(), weight, targets, pad_id=PAD)
    assert loss.item() == pytest.approx(count * math.log(VOCAB_SIZE))


def test_padding_gets_no_gradient():
    hidden, weight, targets = example(2, 7)
    cross_entropy_sum(hidden, weight, targets, pad_id=PAD)[0].backward()
    assert (hidden.grad[targets == PAD] == 0).all()
    assert (hidden.grad[targets != PAD] != 0).any(dim=-1).all()


def test_a_second_backward_pass_is_refused_in_a_sentence():
    hidden, weight, targets = example(2, 7)
    loss, _ = cross_entropy_sum(hidden, weight, targets, pad_id=PAD)
    loss.backward(retain_graph=True)
    first = hidden.grad.clone()
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
    torch.testing.assert_close(hidden.grad, first, rtol=0, atol=0)


def test_nothing_but_padding_costs_nothing():
    hidden, weight, targets = example(2, 7)
    loss, count = cross_entropy_sum(hidden, weight, torch.full_like(targets, PAD), pad_id=PAD)
    loss.backward()
    assert (loss.item(), count, weight.grad.abs().sum().item()) == (0.0, 0, 0.0)


def test_a_frozen_weight_changes_nothing_for_the_hidden_vectors():
    hidden, weight, targets = example(2, 7)
    (expected,) = torch.autograd.grad(cross_entropy_sum(hidden, weight, targets, pad_id=PAD)[0], hidden)
    loss, _ = cross_entropy_sum(hidden, weight.detach(), targets, pad_id=PAD)
    loss.backward()
    torch.testing.assert_close(hidden.grad, expected, rtol=0, atol=0)
    assert weight.grad is None


def test_two_micro_batches_sum_to_one_batch():
    hidden, weight, targets = example()
    whole, num_tokens = cross_entropy_sum(hidden, weight, targets, pad_id=PAD, label_smoothing=0.1)
    expected = torch.autograd.grad(whole, (hidden, weight))
    total, total_tokens = 0.0, 0
    for part in (slice(0, 7), slice(7, None)):
        loss, count = cross_entropy_sum(hidden[part], weight, targets[part], pad_id=PAD, label_smoothing=0.1)
        loss.backward()
        total, total_tokens = total + loss.item(), total_tokens + count
    assert (total, total_tokens) == (pytest.approx(whole.item(), rel=1e-12), num_tokens)
    for parameter, gradient in zip((hidden, weight), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-11, atol=1e-12)


def test_extreme_logits_stay_finite():
    hidden, weight, targets = example(2, 7, dtype=torch.float32)
    loss, _ = cross_entropy_sum(1e4 * hidden, weight, targets, pad_id=PAD, label_smoothing=0.1)
    torch.testing.assert_close(loss, torch_loss(1e4 * hidden, weight, targets, 0.1))


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_products_alone_are_bfloat16(hidden_dtype):
    hidden, weight, targets = example(dtype=torch.float32)
    expected = torch.autograd.grad(torch_loss(hidden, weight, targets, 0.1), (hidden, weight))
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_entropy_sum(hidden, weight, targets, pad_id=PAD, label_smoothing=0.1)
    loss.backward()
    assert (loss.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, hidden_dtype, torch.float32)
    for actual, theirs in zip((hidden.grad, weight.grad), expected, strict=True):
        assert (actual - theirs).norm() < 0.02 * theirs.norm()


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch):
    hidden, weight, targets = example(2, 7)
    wanted = []
    forward = transduce.training.loss._CrossEntropySum.forward

    def spying(ctx, *inputs):
        wanted.append(ctx.needs_input_grad[:3])
        return forward(ctx, *inputs)

    monkeypatch.setattr(transduce.training.loss._CrossEntropySum, "forward", staticmethod(spying))
    with torch.no_grad():
        cross_entropy_sum(hidden, weight, targets, pad_id=PAD)
    assert wanted == [(False, False, False)]


def scattered_padding(targets: Tensor, *, empty_rows: slice) -> Tensor:
    """Targets with padding here and there, and nothing else in some rows of the batch."""
    is_padding = torch.rand(targets.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    targets = torch.where(is_padding | (targets == PAD), PAD, targets)
    targets[empty_rows] = PAD
    return targets


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hidden_of_padding", [1e30, -1e18, 0.0, 123.456])
def test_what_the_hidden_vectors_of_padding_are_changes_no_bit(hidden_of_padding, dtype):
    hidden, weight, targets = example(dtype=dtype)
    targets = scattered_padding(targets, empty_rows=slice(8, 18))
    other = torch.where((targets == PAD)[..., None], hidden_of_padding, hidden.detach()).requires_grad_()
    found = []
    for vectors in (hidden, other):
        loss, count = cross_entropy_sum(vectors, weight, targets, pad_id=PAD, label_smoothing=0.1)
        found.append((loss, count, *torch.autograd.grad(loss, (vectors, weight))))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert (found[1][2][targets == PAD] == 0).all()


@pytest.mark.parametrize("label_smoothing", [0.1, 0.37, 0.95])
@pytest.mark.parametrize("rows_at_a_time", [1, 64, 97, 10_000])
def test_smoothing_equals_torch_however_padding_and_chunks_lie(label_smoothing, rows_at_a_time, monkeypatch):
    monkeypatch.setattr(transduce.training.loss, "_ROWS_ON_CPU", rows_at_a_time)
    hidden, weight, targets = example()
    targets = scattered_padding(targets, empty_rows=slice(8, 18))  # whole chunks of nothing but padding, too
    actual, count = cross_entropy_sum(hidden, weight, targets, pad_id=PAD, label_smoothing=label_smoothing)
    expected = torch_loss(hidden, weight, targets, label_smoothing)
    assert 100 < count == (targets != PAD).sum()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(actual, (hidden, weight))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.95])
@pytest.mark.parametrize("rows_at_a_time", [1, 97, 10_000])
def test_a_bias_of_the_logits_and_its_gradient_equal_torch(label_smoothing, rows_at_a_time, monkeypatch):
    monkeypatch.setattr(transduce.training.loss, "_ROWS_ON_CPU", rows_at_a_time)
    hidden, weight, targets = example()
    targets = scattered_padding(targets, empty_rows=slice(8, 18))
    bias = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(4)).double().requires_grad_()
    actual, _ = cross_entropy_sum(hidden, weight, targets, pad_id=PAD, label_smoothing=label_smoothing, bias=bias)
    logits = (hidden @ weight.T + bias).flatten(0, 1)
    expected = F.cross_entropy(
        logits, targets.flatten(), label_smoothing=label_smoothing, ignore_index=PAD, reduction="sum"
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    pairs = zip(*(torch.autograd.grad(-0.37 * x, (hidden, weight, bias)) for x in (actual, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_bias_can_learn_where_all_else_is_frozen():
    hidden, weight, targets = example(2, 7)
    bias = torch.zeros(VOCAB_SIZE).double().requires_grad_()
    cross_entropy_sum(hidden.detach(), weight.detach(), targets, pad_id=PAD, bias=bias)[0].backward()
    is_real = (targets != PAD).double().flatten()
    shares = (hidden @ weight.T).softmax(dim=-1).flatten(0, 1)
    wanted = F.one_hot(targets.flatten(), VOCAB_SIZE)
    torch.testing.assert_close(bias.grad, is_real @ (shares - wanted).detach())
    assert hidden.grad is weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_logit_of_ten_thousand_costs_nothing_if_right_and_all_of_it_if_wrong(label_smoothing, dtype):
    weight = torch.eye(VOCAB_SIZE, D_MODEL, dtype=dtype, requires_grad=True)
    hidden = (1e4 * torch.eye(D_MODEL, dtype=dtype)[[2, 2]])[None].requires_grad_()  # sure of token 2, twice
    loss, _ = cross_entropy_sum(hidden, weight, torch.tensor([[2, 4]]), pad_id=PAD, label_smoothing=label_smoothing)
    right, wrong = label_smoothing * 1e4 * (1 - 1 / VOCAB_SIZE), 1e4 * (1 - label_smoothing / VOCAB_SIZE)
    assert loss.item() == pytest.approx(right + wrong, rel=1e-6)
    of_hidden, of_weight = torch.autograd.grad(loss, (hidden, weight))
    spread = label_smoothing / VOCAB_SIZE
    expected = torch.full((2, D_MODEL), -spread, dtype=dtype)
    expected[:, 2] += 1
    expected[0, 2] -= 1 - label_smoothing
    expected[1, 4] -= 1 - label_smoothing
    torch.testing.assert_close(of_hidden[0], expected, rtol=0, atol=1e-6)
    assert of_weight.isfinite().all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_under_autocast_the_loss_is_within_a_256th_of_float32(label_smoothing):
    hidden, weight, targets = example(dtype=torch.float32)
    expected = torch_loss(hidden, weight, targets, label_smoothing)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_entropy_sum(hidden, weight, targets, pad_id=PAD, label_smoothing=label_smoothing)
    assert loss.item() != expected.item()
    assert loss.item() == pytest.approx(expected.item(), rel=2**-8)
