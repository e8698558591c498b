"""CUDA graphs: the kernels of a step, recorded once and replayed.

A small model otherwise keeps the GPU waiting for Python, which takes longer to start a kernel than the kernel to run.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

B = TypeVar("B")  # a tensor, or a dataclass of tensors and numbers

_MOST_GRAPHS = 16  # one for each batch shape, first come first served; other shapes run without a graph
_WARM_UP_RUNS = 3  # libraries choose and allocate in their first calls, which must not be recorded


class _Recording(NamedTuple):
    graph: Any
    batch: Any
    results: tuple[Tensor, ...]


class GraphedWork(Generic[B]):
    """`work` as one CUDA graph for each batch shape; a replay also adds to the gradients, as `work` does.

    `work` must not wait for the device and must run the same kernels for every batch of one shape. Gradients must be
    zeroed, never set to None: a graph adds to the tensors it was recorded with.
    """

    def __init__(self, work: Callable[[B], tuple[Tensor, ...]], parameters: Iterable[nn.Parameter]) -> None:
        self._work = work
        self._parameters = list(parameters)
        self._recordings: dict[Any, _Recording] = {}
        self._pool: Any = None  # graphs never run at the same time, so they may share their memory

    def __call__(self, batch: B) -> tuple[Tensor, ...]:
        """The result of `work`; the next call overwrites its tensors."""
        shape = _shape_of(batch)
        if shape not in self._recordings:
            if len(self._recordings) == _MOST_GRAPHS:
                return self._work(batch)
            # The warm-up must not advance the random state: dropout masks are a function of the seed alone.
            with torch.random.fork_rng({parameter.device for parameter in self._parameters if parameter.is_cuda}):
                self._recordings[shape] = self._record(batch)
        recording = self._recordings[shape]
        # A graph reads from fixed addresses: a new batch is copied to where the recorded one lies.
        for recorded, new in zip(_tensors_of(recording.batch), _tensors_of(batch), strict=True):
            recorded.copy_(new)
        recording.graph.replay()
        return recording.results

    def _record(self, batch: B) -> _Recording:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        # Warmed up on a side stream, as it will be captured on one: the default stream cannot be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                self._work(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads, such as NCCL's watchdog, may go on querying the device.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = self._work(batch)
        self._pool = graph.pool()
        torch._foreach_copy_(gradients, before)  # the warm-up added to them
        return _Recording(graph, batch, results)


def _tensors_of(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    members = fields(batch) if is_dataclass(batch) else ()
    return [tensor for field in members for tensor in _tensors_of(getattr(batch, field.name))]


def _shape_of(batch: Any) -> tuple[Any, ...]:
    """Everything that a recording is fixed to: the shapes of the tensors, and the numbers beside them."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape)
    if is_dataclass(batch):
        return tuple(_shape_of(getattr(batch, field.name)) for field in fields(batch))
    return (batch,)
