"""Matrix products of a workload: recorded while it runs, then timed alone.

Timed alone they give the rate that the machine reaches at the same shapes: the rest of the workload's time is not spent
multiplying.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The last two tensors of each are the factors. Products inside a fused attention kernel are not recorded.
_PRODUCTS = {"mm", "addmm", "addmm_", "_addmm_activation", "bmm", "baddbmm", "baddbmm_"}


@dataclass(frozen=True)
class Operand:
    """The layout of a matrix, on which the speed of a product depends; its values do not matter."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        """The layout of a tensor; any other value unchanged."""
        return cls(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value

    def build(self, device: torch.device) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device).uniform_(-1, 1)


@dataclass(frozen=True)
class Product:
    """A call of a kernel that multiplies matrices."""

    kernel: Callable[..., Any]
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def flops(self) -> int:
        """Floating-point operations: multiplications and additions."""
        left, right = [arg for arg in self.args if isinstance(arg, Operand)][-2:]
        return 2 * torch.Size(left.shape).numel() * right.shape[-1]

    def seconds(self, device: torch.device, repeats: int) -> float:
        """Seconds of a call: the mean of `repeats`, after one to warm up."""
        args = [arg.build(device) if isinstance(arg, Operand) else arg for arg in self.args]
        options = {name: value.build(device) if isinstance(value, Operand) else value for name, value in self.options}
        self.kernel(*args, **options)
        synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            self.kernel(*args, **options)
        synchronize(device)
        return (time.perf_counter() - started) / repeats


class RecordedProducts(TorchDispatchMode):
    """A context that counts the matrix products executed in it, forward and backward."""

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
        """Seconds of all products with nothing in between: each distinct one is timed, times its count."""
        repeats = 20 if device.type == "cuda" else 2  # a GPU queues kernels
        with torch.no_grad():
            return sum(product.seconds(device, repeats) * count for product, count in self.counts.items())


def synchronize(device: torch.device) -> None:
    """Wait until the device has executed its queued kernels; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
