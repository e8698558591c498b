"""The loss in Triton, interpreted where there is no GPU, against torch's in float64; weights in bfloat16."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transduce.data.batches import EncodedPairs
from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.loss import cross_entropy_sum
from transduce.training.step import TrainStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAD, NUM_IDS = 0, 37


@pytest.fixture
def kernels(monkeypatch):
    pytest.importorskip("triton")
    from transduce.training import kernels

    monkeypatch.setattr(kernels, "_BLOCK", 16)  # three blocks, the last one not full
    return kernels


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.usefixtures("kernels")
def test_the_loss_and_its_gradients_are_those_of_torch(dtype, bound):
    torch.manual_seed(1)
    hidden, weight = (torch.randn(*shape, 8).to(DEVICE, dtype).requires_grad_() for shape in ((2, 9), (NUM_IDS,)))
    bias = torch.randn(NUM_IDS).to(DEVICE, dtype).requires_grad_()
    targets = torch.randint(1, NUM_IDS, (2, 9), device=DEVICE)
    targets[1, 5:] = PAD
    inputs = hidden, weight, bias
    loss, count = cross_entropy_sum(
        hidden, weight, targets, pad_id=PAD, label_smoothing=0.1, bias=bias, use_triton=True
    )
    exact = [x.detach().double().requires_grad_() for x in inputs]
    logits = (exact[0] @ exact[1].T + exact[2]).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), ignore_index=PAD, label_smoothing=0.1, reduction="sum")
    assert count == 14
    assert abs(loss.item() / expected.item() - 1) < bound
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, exact), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() < bound * theirs.norm()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_cost_no_finite_loss(kernels, value):
    logits = torch.randn(3, NUM_IDS, device=DEVICE)
    logits[1, 20] = value
    losses, _ = kernels.loss_and_gradient(logits, torch.tensor([1, 2, 3], device=DEVICE), 0.1)
    assert losses.isfinite().tolist() == [True, False, True]


# Weights in bfloat16

MODEL = TransformerConfig(d_model=32, d_ff=48, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, dropout=0.0)
PAIRS = EncodedPairs([[3 + i % 7, 4 + i % 5, 2] for i in range(12)], [[3 + i % 5, 3 + i % 7, 3, 2] for i in range(12)])
BATCHES = [torch.arange(first, first + 4).numpy() for first in (0, 4, 8)]


def step_in(precision: str, learning_rate: float = 0.003) -> TrainStep:
    torch.manual_seed(1)
    return TrainStep(
        Transformer(MODEL, VocabularySizes.joint(12)).to(DEVICE),
        config=TrainingConfig(steps=100, precision=precision),
        # A large epsilon: where a gradient is nothing but rounding, Adam would make full steps of it.
        optim=OptimConfig(schedule="constant", learning_rate=learning_rate, warmup_steps=1, epsilon=1e-3),
    )


def losses_of(update: TrainStep, num: int) -> Tensor:
    return torch.tensor([update(PAIRS, BATCHES, step + 1).read().loss for step in range(num)])


def test_with_weights_in_bfloat16_a_model_learns_as_in_float32():
    theirs, ours = (losses_of(step_in(precision), 60) for precision in ("float32", "bfloat16_weights"))
    assert max(theirs[-1], ours[-1]) < 0.6 * theirs[0]
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=0.01)


def test_changes_too_small_for_bfloat16_are_not_lost():
    update = step_in("bfloat16_weights", learning_rate=1e-5)
    before = [parameter.detach().clone() for parameter in update.model.parameters()]
    losses_of(update, 1)
    for parameter, old in zip(update.model.parameters(), before, strict=True):
        assert parameter.dtype == torch.float32
        assert 0 < (parameter - old).abs().max() < 2e-5


def test_weights_that_were_loaded_after_the_step_was_made_are_those_it_uses():
    update, other = step_in("bfloat16_weights"), step_in("bfloat16_weights")
    losses_of(other, 20)
    update.model.load_state_dict(other.model.state_dict())
    assert losses_of(update, 1) == losses_of(other, 1)


@pytest.mark.usefixtures("kernels")
def test_a_step_with_kernels_of_our_own_is_that_with_those_of_torch(monkeypatch):
    monkeypatch.setattr("transduce.data.packed_batches._CAPACITY_ROUNDING", 8)  # few sentences, as each is interpreted
    results = []
    for kernels in ("torch", "triton"):
        monkeypatch.setattr("transduce.training.step.is_gpu", lambda _device: True)
        update = step_in("float32")
        settings = replace(update.config, batching="packed", kernels=kernels)
        update = TrainStep(update.model, config=settings, optim=update.optim)
        results.append(update(PAIRS, BATCHES[:1], 1).read())
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-5)
