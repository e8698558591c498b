import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from transduce.training.config import OptimConfig
from transduce.training.distributed import Process
from transduce.training.muon import orthogonalize
from transduce.training.optim import build_optimizers, clip_gradients, inverse_sqrt_rate, learning_rate, update_average

NUM_STEPS, WARMUP_STEPS = 211, 17
SCHEDULES = ["inverse_sqrt", "linear", "cosine", "constant"]


def rates(schedule: str, warmup_steps: int = WARMUP_STEPS) -> list[float]:
    """The rate at steps 1, 2, ..., NUM_STEPS, with a peak of 0.3."""
    config = OptimConfig(schedule=schedule, learning_rate=0.3, warmup_steps=warmup_steps)
    return [learning_rate(config, step, d_model=64, num_steps=NUM_STEPS) for step in range(1, NUM_STEPS + 1)]


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3999, 4000, 4001, 100_000])
def test_the_default_schedule_is_equation_3(step):
    expected = 1 / math.sqrt(512) * min(1 / math.sqrt(step), step / (4000 * math.sqrt(4000)))
    assert inverse_sqrt_rate(step, 512, 4000) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(OptimConfig(), step, d_model=512, num_steps=100_000) == pytest.approx(expected, rel=1e-12)


def test_steps_are_counted_from_1():
    with pytest.raises(ValueError, match="step is 0: steps are counted from 1"):
        inverse_sqrt_rate(0, 512, 4000)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_a_straight_line_to_the_peak(schedule):
    expected = [0.3 * step / WARMUP_STEPS for step in range(1, WARMUP_STEPS + 1)]
    assert rates(schedule)[:WARMUP_STEPS] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_rate_jumps_or_exceeds_the_peak(schedule):
    found = rates(schedule)
    assert max(found) == pytest.approx(0.3)
    assert max(abs(a - b) for a, b in pairwise(found)) <= 0.3 / WARMUP_STEPS + 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 1, NUM_STEPS - 1, NUM_STEPS, 2 * NUM_STEPS])
def test_every_step_of_a_run_has_a_positive_rate(schedule, warmup_steps):
    assert min(rates(schedule, warmup_steps)) > 0


@pytest.mark.parametrize(("schedule", "most"), [("linear", 0.3 / 100), ("cosine", 0.3 / 10_000)])
def test_the_last_rate_is_almost_zero(schedule, most):
    assert 0 < rates(schedule)[-1] < most


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("inverse_sqrt", 0.3 * math.sqrt(17 / 114)),
        ("linear", 0.3 * 98 / 195),  # 97 of the 195 steps between the warm-up and zero are done
        ("cosine", 0.15 * (1 + math.cos(math.pi * 97 / 195))),
        ("constant", 0.3),
    ],
)
def test_the_rate_half_way_by_hand(schedule, expected):
    assert rates(schedule)[113] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": -1}, "must not be negative"),
        ({"beta2": 1.0}, "below 1"),
        ({"epsilon": 0.0}, "optim.epsilon is 0.0: it must be above 0"),
        ({"epsilon": -1e-9}, "optim.epsilon is -1e-09"),
        ({"epsilon": math.nan}, "optim.epsilon is nan"),
        ({"warmup_steps": 0}, "equation 3 needs a warm-up"),
    ],
)
def test_an_impossible_setting_is_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**settings)


# --- the optimizer ---------------------------------------------------------------------------------------------------


def linear(seed: int = 1) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(3, 5)
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    return layer


def take_step(layer: nn.Module, config: OptimConfig, rate: float) -> None:
    optimizer = build_optimizers(config, layer)[0]
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def test_the_first_step_is_adam_by_hand():
    layer = linear()
    # Bias correction makes the averages of one gradient that gradient and its square.
    expected = [p.detach() - 0.01 * p.grad / (p.grad.abs() + 1e-3) for p in layer.parameters()]
    take_step(layer, OptimConfig(epsilon=1e-3), rate=0.01)
    for parameter, value in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value)


def test_without_decay_many_steps_equal_torch_adam():
    ours, theirs = linear(), linear()
    config = OptimConfig(epsilon=1e-3)
    optimizers = [
        build_optimizers(config, ours)[0],
        torch.optim.Adam(theirs.parameters(), lr=0.02, betas=(0.9, 0.98), eps=1e-3),
    ]
    for group in optimizers[0].param_groups:
        group["lr"] = 0.02
    for step in range(7):
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            layer.zero_grad()
            layer(torch.full((2, 3), 0.1 * step)).square().sum().backward()
            optimizer.step()
    for parameter, value in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, value)


def test_matrices_alone_decay():
    layer = linear()
    for parameter in layer.parameters():
        parameter.grad.zero_()
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    take_step(layer, OptimConfig(weight_decay=0.2), rate=0.5)
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * (1 - 0.5 * 0.2))
    torch.testing.assert_close(layer.bias.detach(), before["bias"], rtol=0, atol=0)


def test_the_optimizer_has_every_parameter_once():
    layer = linear()
    layer.same_weight = layer.weight
    (optimizer,) = build_optimizers(OptimConfig(), layer)
    groups = optimizer.param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, (layer.weight, layer.bias)))


# --- Muon ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 12, 12), (2, 12, 29), (2, 29, 12)])
def test_orthogonalizing_keeps_singular_vectors_and_brings_all_values_near_1(shape):
    torch.manual_seed(3)
    matrices = torch.randn(shape, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 50.0])[: shape[0], None, None]
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalize(matrices) @ vh.mT
    brought_to = torch.diagonal(found, dim1=1, dim2=2)
    torch.testing.assert_close(found, torch.diag_embed(brought_to), rtol=0, atol=1e-6)
    # The polynomial of each value by itself: what the iteration is on the singular values of a matrix of length 1.
    expected = values / (values.square().sum(dim=1, keepdim=True).sqrt() + 1e-7)
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(brought_to, expected)
    assert brought_to[values > 0.1 * values.amax(dim=1, keepdim=True)].min() > 0.6
    assert brought_to.max() < 1.3


def test_muon_moves_matrices_of_layers_by_hand_and_the_rest_by_adam():
    """Two steps: momentum 0.95 of Nesterov's kind; queries, keys and values each for themselves."""
    torch.manual_seed(5)
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "qkv_proj": nn.Linear(4, 12), "down_proj": nn.Linear(6, 4)})
    adam, muon = build_optimizers(OptimConfig(method="muon", weight_decay=0.1), model)
    inside = {"qkv_proj.weight": 3, "down_proj.weight": 1}
    named = dict(model.named_parameters())
    of_adam = {id(p) for group in adam.param_groups for p in group["params"]}
    assert of_adam == {id(p) for name, p in named.items() if name not in inside}
    expected = {name: named[name].detach().clone() for name in inside}
    momentum = {name: torch.zeros_like(named[name]) for name in inside}
    muon.param_groups[0]["lr"] = 0.03
    for _ in range(2):
        for name, number in inside.items():
            gradient = named[name].grad = torch.randn_like(named[name])
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
            ahead = 0.05 * gradient + 0.95 * momentum[name]
            parts = [orthogonalize(part[None])[0] for part in ahead.chunk(number)]
            longest = max(parts[0].shape)
            change = 0.2 * longest**0.5 * torch.cat(parts) + 0.1 * expected[name]
            expected[name] = expected[name] - 0.03 * change
        muon.step()
    for name in inside:
        torch.testing.assert_close(named[name].detach(), expected[name])


def test_an_update_by_muon_has_the_size_of_one_by_adam():
    """Root mean square about 0.2 of the rate, whatever the shape and the size of the gradient."""
    torch.manual_seed(6)
    for shape in ((64, 64), (32, 128)):
        layer = nn.Linear(*shape[::-1], bias=False)
        before = layer.weight.detach().clone()
        layer.weight.grad = 1e-4 * torch.randn(shape)
        muon = build_optimizers(OptimConfig(method="muon"), layer)[1]
        muon.param_groups[0]["lr"] = 1.0
        muon.step()
        assert (layer.weight.detach() - before).square().mean().sqrt() == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_matrices_and_their_changes_add_up(num_processes):
    """Each computes some of them, and none what another has computed."""

    class Deaf(Process):
        def sum_(self, tensors):
            pass

    def change_of(process: Process) -> torch.Tensor:
        torch.manual_seed(7)
        model = nn.ModuleDict({"qkv_proj": nn.Linear(4, 12), "out_proj": nn.Linear(4, 4)})
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        muon = build_optimizers(OptimConfig(method="muon"), model, process)[1]
        muon.param_groups[0]["lr"] = 0.5
        muon.step()
        return nn.utils.parameters_to_vector(model.parameters()).detach() - before

    shares = [change_of(Deaf(rank, num_processes)) for rank in range(num_processes)]
    torch.testing.assert_close(sum(shares), change_of(Process()))
    assert (torch.stack(shares) != 0).sum(dim=0).max() == 1
    assert all(share.any() for share in shares)


def test_muon_changes_nothing_where_a_gradient_is_no_number():
    layer = nn.Linear(3, 4)
    muon = build_optimizers(OptimConfig(method="muon", weight_decay=0.1), layer)[1]
    muon.param_groups[0]["lr"] = 0.1
    layer.weight.grad = torch.ones(4, 3)
    muon.step()
    before, momentum = layer.weight.detach().clone(), muon.state[layer.weight]["momentum"].clone()
    layer.weight.grad[0, 0] = torch.nan
    muon.found_inf = torch.tensor(1.0)
    muon.step()
    torch.testing.assert_close(layer.weight.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(muon.state[layer.weight]["momentum"], momentum, rtol=0, atol=0)


# --- average and clipping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "kept"), [(1, 2 / 11), (8, 0.5), (100_000, 0.9)])
def test_the_average_moves_by_hand(step, kept):
    average, current = torch.tensor([1.0, 2.0]), torch.tensor([5.0, -2.0])
    update_average([average], [current], decay=0.9, step=step)
    expected = [kept * 1 + (1 - kept) * 5, kept * 2 + (1 - kept) * -2]
    assert average.tolist() == pytest.approx(expected)
    assert current.tolist() == [5.0, -2.0]


@pytest.mark.parametrize(("max_norm", "factor"), [(0.0, 1.0), (13.5, 1.0), (2.6, 0.2)])
def test_gradients_are_shortened_together_and_only_if_too_long(max_norm, factor):
    layer = linear()
    layer.weight.grad.zero_()[0, :2] = torch.tensor([3.0, 4.0])
    layer.bias.grad.zero_()[1] = 12.0
    norm = clip_gradients(layer.parameters(), max_norm)
    assert norm.item() == pytest.approx(13.0)  # of 3, 4 and 12
    assert layer.weight.grad[0, :2].tolist() == pytest.approx([3 * factor, 4 * factor])
    assert layer.bias.grad[1].item() == pytest.approx(12 * factor)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_run_shorter_than_its_warm_up_still_reaches_the_peak_after_a_quarter(schedule):
    config = OptimConfig(schedule=schedule, learning_rate=3e-3, warmup_steps=500)
    rates = [learning_rate(config, step, d_model=16, num_steps=40) for step in range(1, 41)]
    assert rates.index(max(rates)) == 9
    assert max(rates) == pytest.approx(3e-3)
    assert rates[-1] < 0.1 * max(rates)
