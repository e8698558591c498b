"""Optimizers, learning rate schedules, gradient clipping, and the moving average of the weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from transduce.training.config import OptimConfig
from transduce.training.distributed import Process
from transduce.training.muon import Muon

_NUM_MAPS = {"qkv_proj": 3, "gate_up_proj": 2}  # linear maps stacked in one weight matrix, by the name of the layer


def inverse_sqrt_rate(step: int, d_model: int, warmup_steps: int) -> float:
    """Learning rate at `step`, counted from 1 (Vaswani et al. 2017, section 5.3, equation 3).

    Rises linearly for `warmup_steps`, then falls as 1 / sqrt(step). Raises ValueError if `step` < 1.
    """
    if step < 1:
        raise ValueError(f"step is {step}: steps are counted from 1.")
    return d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


def learning_rate(config: OptimConfig, step: int, *, d_model: int, num_steps: int) -> float:
    """Learning rate at `step`, counted from 1, in a run of `num_steps`.

    Every schedule rises linearly over the warm-up to the peak; linear and cosine fall to zero at the last step, and
    their warm-up is at most a quarter of the run: a short run must not end before it has begun.
    """
    warmup_steps = config.warmup_steps
    peak = config.learning_rate or inverse_sqrt_rate(warmup_steps, d_model, warmup_steps)
    if config.schedule in ("linear", "cosine"):
        warmup_steps = min(warmup_steps, num_steps // 4)
    if step < warmup_steps:
        return peak * step / warmup_steps
    if config.schedule == "constant":
        return peak
    if config.schedule == "inverse_sqrt":
        return peak * math.sqrt(max(warmup_steps, 1) / step)
    # Zero one step after the last: a last step at rate zero would be wasted.
    progress = (step - warmup_steps) / (num_steps + 1 - warmup_steps)
    return peak * (1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizers(
    config: OptimConfig, model: nn.Module, process: Process = Process()
) -> list[torch.optim.Optimizer]:
    """Adam alone, or Muon for the matrices within layers and Adam for the other parameters.

    Each parameter belongs to one of them. Learning rates start at 0: the trainer sets them before each step.
    """
    num_parts = _matrices_in_layers(model) if config.method == "muon" else {}
    others = [parameter for parameter in model.parameters() if parameter not in num_parts]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
    return [adam, Muon(num_parts, weight_decay=config.weight_decay, process=process)] if num_parts else [adam]


def slot_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the state tensors that this optimizer keeps for each parameter between steps."""
    return ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")


def _matrices_in_layers(model: nn.Module) -> dict[nn.Parameter, int]:
    """Weight of each linear layer, with the number of maps stacked in it.

    Embeddings are matrices too, but look-up tables and no maps: they are left out, and so go to Adam.
    """
    return {
        layer.weight: _NUM_MAPS.get(name.rpartition(".")[2], 1)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }


@torch.no_grad()
def update_average(average: Iterable[Tensor], current: Iterable[Tensor], *, decay: float, step: int) -> None:
    """Exponential moving average of the weights, in place: average = d * average + (1 - d) * current.

    d is `decay`, but at most (1 + step) / (10 + step), so that the random start is soon forgotten.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average), list(current), weight)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down to a joint norm of `max_norm` if it is higher (0: never); return the norm before.

    The factor is a tensor, clamped to 1 rather than compared with it, so that nothing waits for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
