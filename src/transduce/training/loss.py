"""Label-smoothed cross-entropy (section 5.4), in chunks of rows: the logits of a whole batch are never in memory.

The logits are by far the largest tensor of training: 4,096 target tokens times 32,000 ids are half a gigabyte in
float32, and their gradient as much again. A row of logits needs nothing of any other row, so a chunk of rows is taken
from hidden vectors to gradients before the next one is begun.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Rows of logits in memory at a time: 256 x 8,000 float32 are 8 MB, about what the caches of a CPU hold.
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
    use_triton: bool = False,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Summed cross-entropy in nats over the target tokens that are not padding, and the number of these tokens.

    Divide once per optimizer step, over all its micro-batches and processes: a mean of means is wrong when batches
    differ in size. With smoothing e the target distribution is 1 - e on the right token plus e / V on every token
    (Szegedy et al. 2016, which the paper cites; the same as torch's). `bias` is added to the logits. With `use_triton`,
    softmax and gradient are those of a kernel of our own, for a GPU.
    """
    is_real = tgt_out != pad_id
    if not torch.is_grad_enabled():
        # `forward` below computes the gradients as well, of whatever requires them: without this, validation would pay.
        hidden, output_weight, bias = hidden.detach(), output_weight.detach(), None if bias is None else bias.detach()
    # Padding is computed and weighted by zero. Selecting the real rows would give a tensor of unknown size, for which
    # the CPU has to wait until the GPU has counted them.
    targets, is_real = tgt_out.flatten(), is_real.flatten()
    rows = hidden.flatten(0, 1)
    loss_sum = _CrossEntropySum.apply(rows, output_weight, bias, targets, is_real, label_smoothing, use_triton)
    return loss_sum, is_real.sum()


class _CrossEntropySum(torch.autograd.Function):
    """The summed loss and, in the same pass over the chunks, its gradients; the backward pass only scales them.

    One chunk of logits and of probabilities is all that is ever in memory, and each logit is exponentiated once: a
    backward pass of its own would have to compute both again.

    Per row, with logits z = W h + b, right token t and smoothing e, the loss is

        logsumexp(z) - (1 - e) z[t] - e mean(z),    and its gradient by z is    softmax(z) - (1 - e) onehot(t) - e / V.

    The last term of each needs no logits: mean(z) = mean(W) h + mean(b), with the mean over the V ids. It is therefore
    added at the end, once for all rows, from the mean row of W and the sum of the hidden vectors.
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
        use_triton: bool,
    ) -> Float[Tensor, ""]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        product_dtype, sum_dtype = _precisions(hidden)
        grad_weight = torch.zeros_like(weight, dtype=sum_dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=sum_dtype) if bias is not None and needs_bias else None
        total = hidden.new_zeros((), dtype=torch.float64)  # a float32 sum over 100,000 tokens loses digits
        weights = is_real.to(sum_dtype)[:, None]
        # With the hidden vectors of padding set to zero, it adds nothing to the gradient of the weight either.
        x, w = (hidden * weights).to(product_dtype), weight.to(product_dtype)
        chunk = _ROWS_ON_CPU if hidden.device.type == "cpu" else _ROWS_ON_GPU
        most_rows, num_ids = min(chunk, hidden.size(0)), weight.size(0)
        # Reused by all chunks, so that it stays in the caches; and with rows padded to whole vector registers, as rows
        # that begin at such a boundary are written up to 1.5 times as fast.
        logits_buffer = hidden.new_empty(most_rows, num_ids + -num_ids % _VECTOR_LEN, dtype=product_dtype)
        if use_triton:
            from transduce.training.kernels import loss_and_gradient  # which writes the gradient into the logits

            # Products in bfloat16 on a CPU read what lies beyond num_ids, and 0 times NaN is NaN.
            logits_buffer[:, num_ids:] = 0
        else:
            probabilities = hidden.new_empty(most_rows, num_ids, dtype=sum_dtype)
            loss_and_gradient = partial(_loss_and_gradient, out=probabilities)
        for start in range(0, hidden.size(0), chunk):
            rows = slice(start, start + chunk)
            logits = torch.mm(x[rows], w.T, out=logits_buffer[: len(x[rows]), :num_ids])
            logits = logits if use_triton else logits.to(sum_dtype)
            if bias is not None:
                logits += bias
            loss, gradient = loss_and_gradient(logits, targets[rows], label_smoothing)
            total += torch.dot(loss, weights[rows, 0])
            if grad_bias is not None:
                grad_bias += weights[rows, 0].to(gradient.dtype) @ gradient
            gradient = gradient.to(product_dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = gradient @ w
            if grad_weight is not None and grad_weight.dtype == product_dtype:
                grad_weight.addmm_(gradient.T, x[rows])
            elif grad_weight is not None:  # under autocast: the sum over chunks keeps the precision of the parameter
                grad_weight += gradient.T @ x[rows]
        if label_smoothing:  # the terms with e / V: see above
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
            grad_hidden *= weights  # the gradients of padding, computed with the others
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        return total.to(sum_dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("this loss already had its backward pass: compute the loss again for another.")
        # By the chain rule: the gradient of whatever was computed from the loss, by the loss, times ours.
        gradients = tuple(g if g is None else g.mul_(grad_outputs[0].to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = None  # scaled in place, so a second backward pass would scale them twice
        return *gradients, None, None, None, None


def _precisions(hidden: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of matrix products (autocast's choice, where it is on) and of sums over logits (at least float32)."""
    device = hidden.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return product, torch.promote_types(product, torch.float32)


def _loss_and_gradient(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    label_smoothing: float,
    out: Float[Tensor, "most_rows vocab"],
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows vocab"]]:
    """Loss of each row and its gradient by the logits, without the terms in e / V; the gradient is written to `out`."""
    probabilities = torch.softmax(logits, dim=1, out=out[: logits.size(0)])
    # logsumexp(z), without exponentiating again: p[i] = exp(z[i] - logsumexp(z)) for every i. The most likely token is
    # the safe choice of i, as its probability is at least 1 / V, so that its logarithm is exact.
    log_normalizer = logits.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log()
    target = targets[:, None]
    loss = log_normalizer - (1 - label_smoothing) * logits.gather(1, target)
    gradient = probabilities.scatter_add_(1, target, torch.full_like(log_normalizer, label_smoothing - 1))
    return loss[:, 0], gradient
