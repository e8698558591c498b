"""The kernels of a step, recorded once and replayed: a small model keeps a GPU waiting for Python otherwise."""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

B = TypeVar("B")  # a tensor, or a dataclass of such and of numbers

_MOST_GRAPHS = 16  # one for each shape of batch, first come first served; others run as they are
_WARM_UP_RUNS = 3  # libraries choose and allocate in their first calls, which must not be recorded


class _Recording(NamedTuple):
    graph: Any
    batch: Any
    results: tuple[Tensor, ...]


class GraphedWork(Generic[B]):
    """`work` as a CUDA graph for each shape of batch: what it adds to gradients is added by a replay, too.

    `work` must not wait for the device and must always do the same with a batch of one shape. The gradients must be
    zeroed, never dropped: a graph adds to the tensors it was recorded with.
    """

    def __init__(self, work: Callable[[B], tuple[Tensor, ...]], parameters: Iterable[nn.Parameter]) -> None:
        self._work = work
        self._parameters = list(parameters)
        self._recordings: dict[Any, _Recording] = {}
        self._pool: Any = None  # of memory: graphs never run at once, so what is in flight in them may lie in one place

    def __call__(self, batch: B) -> tuple[Tensor, ...]:
        """What `work` returns; the tensors are overwritten by the next call."""
        shape = _shape_of(batch)
        if shape not in self._recordings:
            if len(self._recordings) == _MOST_GRAPHS:
                return self._work(batch)
            # Drawn numbers are a function of the seed: those of the warm-up must not come before the others.
            with torch.random.fork_rng({parameter.device for parameter in self._parameters if parameter.is_cuda}):
                self._recordings[shape] = self._record(batch)
        recording = self._recordings[shape]
        for recorded, given in zip(_tensors_of(recording.batch), _tensors_of(batch), strict=True):
            recorded.copy_(given)
        recording.graph.replay()
        return recording.results

    def _record(self, batch: B) -> _Recording:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                self._work(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads, such as NCCL's watchdog, may go on asking the device.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = self._work(batch)
        self._pool = graph.pool()
        torch._foreach_copy_(gradients, before)  # the warm-up added to them
        return _Recording(graph, batch, results)


def _tensors_of(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    inner = fields(batch) if is_dataclass(batch) else ()
    return [tensor for field in inner for tensor in _tensors_of(getattr(batch, field.name))]


def _shape_of(batch: Any) -> tuple[Any, ...]:
    """All that is baked into a recording: the shapes of the tensors, and the numbers beside them."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape)
    if is_dataclass(batch):
        return tuple(_shape_of(getattr(batch, field.name)) for field in fields(batch))
    return (batch,)
