"""Linear maps laid out once for how they are multiplied: in float32, or in int8 with one scale per row.

A CPU with VNNI instructions multiplies int8 four times as fast. A code counts 127ths of the largest number of its row:
rows of W are scaled once, rows of x as they come, each by itself, and the sums are exact, so a product depends on its
own row alone. An output of the network does not quite: what is rounded here comes from float32 sums, of attention and
of small matrices, and libraries add up in an order that depends on the batch. Where the last bit of such a sum decides
between two codes, the output moves by a code. So in int8 some outputs are others in another batch: of a thousand
none to six for a small model, up to 22 for one of width 512 after 300 steps, whose log-probabilities move by up to 0.2.
In float32 it is no output, and some 1e-5.
`tests/inference/test_batchings.py` has the bounds.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_LARGEST_CODE = 127
_SMALLEST_MAXIMUM = 1e-30  # a row of zeros must not be divided by zero
_SMALLEST_INT8 = 2**18  # numbers in a matrix: with fewer, scaling x takes longer than the product saves

Map = Callable[[Tensor], Tensor]  # (rows, inputs) -> (rows, outputs)
MakeMap = Callable[[Tensor, Tensor | None], Map]


def float_map(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> Map:
    """x W^T + b in the precision of the weight. A transposed copy multiplies single rows twice as fast."""
    weight = weight.t().contiguous()
    return (lambda x: x @ weight) if bias is None else (lambda x: torch.addmm(bias, x, weight))


def gains_by_int8(weight: Float[Tensor, "outputs inputs"]) -> bool:
    """Whether a matrix is large enough for its products to be faster in int8."""
    return weight.numel() >= _SMALLEST_INT8


def int8_map(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> Map:
    """x W^T + b in int8, if the matrix is large enough to gain by it."""
    if not gains_by_int8(weight):
        return float_map(weight, bias)
    units = _units_of(weight)
    codes = _codes_of(weight, units).t()
    scales = units.t()
    offset = weight.new_zeros(len(weight)) if bias is None else bias

    def multiply(x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        x_units = _units_of(x)
        products = torch._int_mm(_codes_of(x, x_units), codes)
        return torch.addcmul(offset, products * scales, x_units)

    return multiply


def _units_of(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows 1"]:
    """Quantization scale of each row: the value of code 1."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
    return largest.clamp_(min=_SMALLEST_MAXIMUM).div_(_LARGEST_CODE)


def _codes_of(x: Float[Tensor, "rows columns"], units: Float[Tensor, "rows 1"]) -> Tensor:
    return (x / units).round_().to(torch.int8)
