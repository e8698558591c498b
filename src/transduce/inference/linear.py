"""x W^T + b with the matrix laid out, once, for how it is multiplied: in float32, or in bytes with a scale a row.

In bytes a CPU with VNNI instructions multiplies four times as fast. A byte counts 127ths of the largest number of its
row: rows of W are scaled once, rows of x as they come, each by itself, and the sums are exact. So a row still does not
depend on what else is in its batch.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_LARGEST_CODE = 127
_LEAST = 1e-30  # that a row of zeros is scaled by
_SMALLEST_INT8 = 2**18  # numbers in a matrix: of a smaller one, scaling x takes longer than its product

Map = Callable[[Tensor], Tensor]  # (rows, inputs) -> (rows, outputs)
MakeMap = Callable[[Tensor, Tensor | None], Map]


def float_map(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> Map:
    """The map in the numbers that it is given in; kept transposed, single rows are multiplied twice as fast."""
    weight = weight.t().contiguous()
    return (lambda x: x @ weight) if bias is None else (lambda x: torch.addmm(bias, x, weight))


def int8_map(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> Map:
    """The map in bytes, of a matrix that is large enough to gain by it."""
    if weight.numel() < _SMALLEST_INT8:
        return float_map(weight, bias)
    units = _units_of(weight)
    codes = _codes_of(weight, units).t()
    scales = units.t()
    added = weight.new_zeros(len(weight)) if bias is None else bias

    def multiply(x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        x_units = _units_of(x)
        products = torch._int_mm(_codes_of(x, x_units), codes)
        return torch.addcmul(added, products * scales, x_units)

    return multiply


def _units_of(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows 1"]:
    """What a code of 1 stands for in each row."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
    return largest.clamp_(min=_LEAST).div_(_LARGEST_CODE)


def _codes_of(x: Float[Tensor, "rows columns"], units: Float[Tensor, "rows 1"]) -> Tensor:
    return (x / units).round_().to(torch.int8)
