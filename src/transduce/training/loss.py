"""Label-smoothed cross-entropy (section 5.4), as a sum and a count, without ever holding all the logits."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Rows of logits held at a time: 256 x 8,000 float32 are 8 MB, about what the caches of a CPU keep close.
_ROWS_ON_CPU = 256
# A GPU wants large products; memory, not cache, is the bound there.
_ROWS_ON_GPU = 4096
_VECTOR_LEN = 16  # float32 numbers in the widest registers of a CPU (AVX-512)


def cross_entropy_sum(
    hidden: Float[Tensor, "batch tgt_len d_model"],
    output_weight: Float[Tensor, "vocab d_model"],
    tgt_out: Int[Tensor, "batch tgt_len"],
    *,
    pad_id: int,
    label_smoothing: float = 0.0,
    bias: Float[Tensor, " vocab"] | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Cross-entropy in nats summed over the real targets, and how many those are.

    Divide once per optimizer step, over all its micro-batches and processes: a mean of means is wrong when batches
    differ in size. With smoothing e the target distribution is 1 - e on the right token plus e / V on every token
    (Szegedy et al. 2016, which the paper cites; the same as torch's). `bias` is added to the logits.
    """
    is_real = tgt_out != pad_id
    if not torch.is_grad_enabled():
        # Else gradients are computed, for nobody.
        hidden, output_weight, bias = hidden.detach(), output_weight.detach(), None if bias is None else bias.detach()
    # Padding is computed and counts for nothing: picking the others out would make a GPU wait for their number.
    rows = (tgt_out.flatten(), is_real.flatten())
    return _CrossEntropySum.apply(hidden.flatten(0, 1), output_weight, bias, *rows, label_smoothing), is_real.sum()


class _CrossEntropySum(torch.autograd.Function):
    """Goes through the rows in chunks: logits, loss and gradients of one chunk before the next is begun.

    The gradients are ready when the loss is, so the backward pass only scales them; one chunk of logits and of
    probabilities is all that is ever in memory, and each logit is exponentiated once.

    The smoothed target distribution is (1 - e) on the right token plus e / V everywhere. The second part is the same
    for all rows, so its share is taken at the end, from the mean row of the output matrix (and the mean bias), and no
    chunk is touched for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "rows d_model"],
        weight: Float[Tensor, "vocab d_model"],
        bias: Float[Tensor, " vocab"] | None,
        targets: Int[Tensor, " rows"],
        is_real: Bool[Tensor, " rows"],
        label_smoothing: float,
    ) -> Float[Tensor, ""]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        product_dtype, sum_dtype = _precisions(hidden)
        total = hidden.new_zeros((), dtype=torch.float64)
        weights = is_real.to(sum_dtype)[:, None]
        x, w = (hidden * weights).to(product_dtype), weight.to(product_dtype)
        chunk = _ROWS_ON_CPU if hidden.device.type == "cpu" else _ROWS_ON_GPU
        most_rows, num_ids = min(chunk, hidden.size(0)), weight.size(0)
        probabilities = hidden.new_empty(most_rows, num_ids, dtype=sum_dtype)
        # Rows that begin at whole vectors are written up to half as fast again, and memory that is used again is warm.
        room = hidden.new_empty(most_rows, num_ids + -num_ids % _VECTOR_LEN, dtype=product_dtype)[:, :num_ids]
        for start in range(0, hidden.size(0), chunk):
            rows = slice(start, start + chunk)
            logits = torch.mm(x[rows], w.T, out=room[: len(x[rows])]).to(sum_dtype)
            if bias is not None:
                logits += bias
            loss, gradient = _loss_and_gradient(logits, targets[rows], label_smoothing, probabilities)
            total += torch.dot(loss, weights[rows, 0])
            if grad_bias is not None:
                grad_bias += weights[rows, 0] @ gradient
            gradient = gradient.to(product_dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = gradient @ w
            if grad_weight is not None and grad_weight.dtype == product_dtype:
                grad_weight.addmm_(gradient.T, x[rows])
            elif grad_weight is not None:  # the sum over chunks keeps the precision of the parameter
                grad_weight += gradient.T @ x[rows]
        if label_smoothing:
            mean_weight, hidden_sum = weight.mean(dim=0), (hidden * weights).sum(dim=0)
            total -= label_smoothing * torch.dot(hidden_sum.to(sum_dtype), mean_weight.to(sum_dtype))
            if grad_hidden is not None:
                grad_hidden -= label_smoothing * mean_weight
            if grad_weight is not None:
                grad_weight -= label_smoothing / weight.size(0) * hidden_sum
            if bias is not None:
                total -= label_smoothing * weights.sum() * bias.mean()
            if grad_bias is not None:
                grad_bias -= label_smoothing / weight.size(0) * weights.sum()
        if grad_hidden is not None:
            grad_hidden *= weights
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        return total.to(sum_dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the backward pass of this loss was made already: compute the loss again for another.")
        gradients = tuple(g if g is None else g.mul_(grad_outputs[0].to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = None  # they were scaled in place: a second backward pass would scale them twice
        return *gradients, None, None, None


def _precisions(hidden: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """What matrices are multiplied in (autocast's choice, where it is on), and what logits are summed in."""
    device = hidden.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return product, torch.promote_types(product, torch.float32)


def _loss_and_gradient(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    label_smoothing: float,
    out: Float[Tensor, "most_rows vocab"],
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows vocab"]]:
    """The loss of each row and its gradient, but for what smoothing spreads evenly; the gradient lies in `out`."""
    probabilities = torch.softmax(logits, dim=1, out=out[: logits.size(0)])
    # softmax tells no normaliser; it is had from the most likely token, whose probability is at least 1 / V.
    log_normaliser = logits.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log()
    target = targets[:, None]
    loss = log_normaliser - (1 - label_smoothing) * logits.gather(1, target)
    gradient = probabilities.scatter_add_(1, target, torch.full_like(log_normaliser, label_smoothing - 1))
    return loss[:, 0], gradient
