"""The softmax of the loss and its gradient for a GPU, in Triton; `loss._loss_and_gradient` is their plain form.

Written in torch operations, each row of logits is read and written some ten times, in float32. Here it is read twice
and written once, in the precision that it has: the gradient takes the place of the logits.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 4096  # ids at a time


def loss_and_gradient(
    logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, " rows"], label_smoothing: float
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows vocab"]]:
    """Loss of each row, in float32, and its gradient by the logits, in their place; without the terms in e / V."""
    losses = torch.empty(len(logits), device=logits.device, dtype=torch.float32)
    num_ids = logits.size(1)
    block = min(_BLOCK, triton.next_power_of_2(num_ids))
    _loss_and_gradient[(len(logits),)](
        logits, targets, losses, num_ids, logits.stride(0), label_smoothing, block_len=block, num_warps=8
    )
    return losses, logits


@triton.jit
def _loss_and_gradient(logits, targets, losses, num_ids, row_len, smoothing, block_len: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    logits += row.to(tl.int64) * row_len
    target = tl.load(targets + row)
    right = tl.load(logits + target).to(tl.float32)
    # The largest logit and the sum of exponentials in one pass: each lane has its own of the ids that it sees, and what
    # it has summed is rescaled to the largest so far. That begins with a number, as -inf less -inf would be none.
    largest = tl.full([block_len], -3.0e38, tl.float32)
    total = tl.zeros([block_len], tl.float32)
    for start in range(0, num_ids, block_len):
        ids = start + tl.arange(0, block_len)
        z = tl.load(logits + ids, mask=ids < num_ids, other=float("-inf")).to(tl.float32)
        new_largest = tl.maximum(largest, z)
        total = total * tl.exp(largest - new_largest) + tl.exp(z - new_largest)
        largest = new_largest
    most = tl.max(largest, axis=0)
    log_sum = most + tl.log(tl.sum(total * tl.exp(largest - most), axis=0))
    tl.store(losses + row, log_sum - (1 - smoothing) * right)
    for start in range(0, num_ids, block_len):
        ids = start + tl.arange(0, block_len)
        z = tl.load(logits + ids, mask=ids < num_ids, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(z - log_sum) - tl.where(ids == target, 1 - smoothing, 0.0)
        tl.store(logits + ids, gradient.to(logits.dtype.element_ty), mask=ids < num_ids)
