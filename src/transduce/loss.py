"""Label-smoothed cross-entropy (section 5.4), as a sum and a count, without ever holding all the logits."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Rows of logits held at a time: 256 x 8,000 float32 are 8 MB, about what the caches of a CPU keep close.
_ROWS_ON_CPU = 256
# A GPU wants large products; memory, not cache, is the bound there.
_ROWS_ON_GPU = 8192


def cross_entropy_sum(
    hidden: Float[Tensor, "batch tgt_len d_model"],
    output_weight: Float[Tensor, "vocab d_model"],
    tgt_out: Int[Tensor, "batch tgt_len"],
    *,
    pad_id: int,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], int]:
    """Cross-entropy in nats summed over the real targets, and how many those are.

    Divide once per optimizer step, over all its micro-batches and processes: a mean of means is wrong when batches
    differ in size. With smoothing e the target distribution is 1 - e on the right token plus e / V on every token
    (Szegedy et al. 2016, which the paper cites; the same as torch's).
    """
    is_real = tgt_out != pad_id
    targets = tgt_out[is_real]
    if not torch.is_grad_enabled():
        output_weight = output_weight.detach()  # else its gradient would be computed, for nobody
    return _CrossEntropySum.apply(hidden[is_real], output_weight, targets, label_smoothing), targets.numel()


class _CrossEntropySum(torch.autograd.Function):
    """Goes through the rows in chunks: logits, loss and gradients of one chunk before the next is begun.

    The gradients are ready when the loss is, so the backward pass only scales them; one chunk of logits is all that
    is ever in memory, and each logit is exponentiated once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "rows d_model"],
        weight: Float[Tensor, "vocab d_model"],
        targets: Int[Tensor, "rows"],
        label_smoothing: float,
    ) -> Float[Tensor, ""]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        total = hidden.new_zeros((), dtype=torch.float64)
        product_dtype, sum_dtype = _precisions(hidden)
        hidden, weight = hidden.to(product_dtype), weight.to(product_dtype)
        chunk = _ROWS_ON_CPU if hidden.device.type == "cpu" else _ROWS_ON_GPU
        for start in range(0, hidden.size(0), chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ weight.T).to(sum_dtype)
            loss, grad_logits = _loss_and_gradient(logits, targets[rows], label_smoothing)
            total += loss
            grad_logits = grad_logits.to(product_dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ weight
            if grad_weight is not None and grad_weight.dtype == product_dtype:
                grad_weight.addmm_(grad_logits.T, hidden[rows])
            elif grad_weight is not None:  # the sum over chunks keeps the precision of the parameter
                grad_weight += grad_logits.T @ hidden[rows]
        ctx.gradients = (grad_hidden, grad_weight)
        return total.to(sum_dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the backward pass of this loss was made already: compute the loss again for another.")
        grad_hidden, grad_weight = (g if g is None else g.mul_(grad_outputs[0].to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = None  # they were scaled in place: a second backward pass would scale them twice
        return grad_hidden, grad_weight, None, None


def _precisions(hidden: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """What matrices are multiplied in (autocast's choice, where it is on), and what logits are summed in."""
    device = hidden.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return product, torch.promote_types(product, torch.float32)


def _loss_and_gradient(
    logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, "rows"], label_smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows vocab"]]:
    """The summed loss and its gradient softmax(logits) - target distribution; overwrites `logits`."""
    target_logits = logits.gather(1, targets[:, None])
    mean_logits = logits.mean(dim=1, keepdim=True) if label_smoothing else 0.0
    top = logits.amax(dim=1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    normaliser = exponentials.sum(dim=1, keepdim=True)
    log_normaliser = normaliser.log() + top
    loss = log_normaliser - (1 - label_smoothing) * target_logits - label_smoothing * mean_logits
    gradient = exponentials.div_(normaliser)
    if label_smoothing:
        gradient.sub_(label_smoothing / logits.size(1))
    gradient.scatter_add_(1, targets[:, None], torch.full_like(target_logits, label_smoothing - 1))
    return loss.sum(dtype=torch.float64), gradient
