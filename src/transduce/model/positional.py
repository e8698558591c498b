"""Positional encoding: the sinusoids of section 3.5, and learned, rotary or no positions in their place."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

_BASE = 10_000.0  # wavelengths run from 2 pi to 10000 * 2 pi


def sinusoidal_table(num_positions: int, d_model: int) -> Float[Tensor, "num_positions d_model"]:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d_model)) and PE(pos, 2i + 1) = cos of the same (section 3.5)."""
    table = torch.empty(num_positions, d_model)
    angles = _angles(torch.arange(num_positions), d_model)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()[:, : d_model // 2]
    return table


class SinusoidalPositions(nn.Module):
    """Adds the sinusoids of section 3.5; any length, as the table grows when a longer sequence comes."""

    table: Tensor

    def __init__(self, d_model: int, num_positions: int = 256) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_table(num_positions, d_model), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch len d_model"], positions: Int[Tensor, "#len"]
    ) -> Float[Tensor, "batch len d_model"]:
        return x + self.table[positions]

    def reserve(self, num_positions: int) -> None:
        """Makes the table reach `num_positions`, once, before the step that needs them."""
        if num_positions > self.table.size(0):
            longer = sinusoidal_table(2 * num_positions, self.table.size(1))
            self.table = longer.to(self.table)


class LearnedPositions(nn.Module):
    """Adds one trained vector per position ("nearly identical results", section 3.5, table 3 row E)."""

    def __init__(self, d_model: int, num_positions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_positions, d_model))

    def forward(
        self, x: Float[Tensor, "batch len d_model"], positions: Int[Tensor, "#len"]
    ) -> Float[Tensor, "batch len d_model"]:
        return x + self.weight[positions]

    def reserve(self, num_positions: int) -> None:
        """Raises ValueError beyond the positions that were trained: there is no vector to add there."""
        if num_positions > self.weight.size(0):
            raise ValueError(
                f"a sequence of {num_positions} tokens does not fit the {self.weight.size(0)} learned positions: "
                "shorten it, or train with a larger model.max_len."
            )


class RotaryPositions(nn.Module):
    """Turns pairs of channels of queries and keys by an angle proportional to the position (Su et al. 2021).

    Their product then depends on the distance of the two positions alone. Differs from the paper: positions enter
    each self-attention instead of the embedding.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(
        self, x: Float[Tensor, "batch heads len head_dim"], positions: Int[Tensor, "#len"]
    ) -> Float[Tensor, "batch heads len head_dim"]:
        angles = _angles(positions, self.head_dim)
        # A pair of channels is a complex number, and turning it is a product. There are none of 16 bits.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        turns = torch.polar(torch.ones_like(angles), angles).to(pairs.dtype)
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def _angles(positions: Int[Tensor, " len"], num_channels: int) -> Float64[Tensor, "len half"]:
    """pos / 10000^(2i / d), one column for each pair of channels 2i and 2i + 1; round their sines, never them."""
    # Float64: a float32 angle of some thousand radians is off in the fourth digit of its sine.
    exponents = torch.arange(0, num_channels, 2, device=positions.device, dtype=torch.float64) / num_channels
    return positions[:, None] / _BASE**exponents
