"""Dropout (Srivastava et al. 2014), drawn sixteen random bits a number where torch draws one number at a time."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_LEVELS = 2**16  # a CPU's drop rate is rounded to a multiple of 1 / _LEVELS, and the rest scaled by exactly that


class Dropout(nn.Module):
    """Zeroes each number with probability `p` and scales up the others; in evaluation it does nothing.

    On a CPU, torch's own draws take a tenth of a small model's training step: it turns every number of the Mersenne
    twister into one decision. Here each yields four.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if _is_drawn_by_torch(x):
            return F.dropout(x, self.p, self.training)
        return x * self._scales(x) if self.training and self.p else x

    def add(self, residual: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """residual + forward(x), in one pass over memory."""
        if _is_drawn_by_torch(x) or not (self.training and self.p):
            return residual + self(x)
        return torch.addcmul(residual, x, self._scales(x))

    def _scales(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """0 or 1 / (1 - p) for each number of `x`."""
        num_dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # from -_LEVELS / 2 on, all equally likely
        # Compared as floats and in place: comparisons that give booleans take four times as long.
        is_kept = bits.to(torch.float32).ge_(num_dropped - _LEVELS // 2)
        return is_kept.mul_(_LEVELS / (_LEVELS - num_dropped)).to(x.dtype)

    def extra_repr(self) -> str:
        """The rate, when the module is printed."""
        return f"p={self.p}"


def _is_drawn_by_torch(x: Float[Tensor, "*shape"]) -> bool:
    """On a GPU; and by torch.compile, which would break its graph at our draws and fuses its own."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()
