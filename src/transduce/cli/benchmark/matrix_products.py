"""The matrix products that a piece of work executes: recorded while it runs, then timed alone.

The second is the machine's own rate at the same shapes: whatever the work takes beyond it is not multiplying.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Their last two tensors are what is multiplied. The products inside a fused attention kernel are not among them.
_PRODUCTS = {"mm", "addmm", "addmm_", "_addmm_activation", "bmm", "baddbmm", "baddbmm_"}


@dataclass(frozen=True)
class Operand:
    """What the speed of a product depends on: the layout of a matrix, not its numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        """The layout of a tensor; anything else as it is."""
        return cls(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value

    def build(self, device: torch.device) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device).uniform_(-1, 1)


@dataclass(frozen=True)
class Product:
    """One call of a kernel that multiplies matrices."""

    kernel: Callable[..., Any]
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        left, right = [arg for arg in self.args if isinstance(arg, Operand)][-2:]
        return 2 * torch.Size(left.shape).numel() * right.shape[-1]

    def seconds(self, device: torch.device, repeats: int) -> float:
        """How long a call takes: the mean of `repeats`, after one to warm up."""
        args = [arg.build(device) if isinstance(arg, Operand) else arg for arg in self.args]
        options = {name: value.build(device) if isinstance(value, Operand) else value for name, value in self.options}
        self.kernel(*args, **options)
        synchronise(device)
        started = time.perf_counter()
        for _ in range(repeats):
            self.kernel(*args, **options)
        synchronise(device)
        return (time.perf_counter() - started) / repeats


class RecordedProducts(TorchDispatchMode):
    """While entered, counts every matrix product that is executed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in _PRODUCTS:
            options = tuple((name, Operand.of(value)) for name, value in kwargs.items())
            self.counts[Product(func, tuple(map(Operand.of, args)), options)] += 1
        return func(*args, **kwargs)

    @property
    def flops(self) -> int:
        return sum(product.flops * count for product, count in self.counts.items())

    def seconds_alone(self, device: torch.device) -> float:
        """How long all of them take with nothing in between: each distinct one is timed, and counted as often."""
        repeats = 20 if device.type == "cuda" else 2  # a GPU is asked for several before the first is done
        with torch.no_grad():
            return sum(product.seconds(device, repeats) * count for product, count in self.counts.items())


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was asked; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
