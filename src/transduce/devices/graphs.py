"""CUDA graphs: the kernels of a step, recorded once and replayed.

A small model otherwise keeps the GPU waiting for Python, which takes longer to start a kernel than the kernel to run.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

B = TypeVar("B")  # a tensor, or a dataclass of tensors and numbers
R = TypeVar("R")

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
        # Everything that a recording is fixed to: the shapes of the tensors, and the numbers beside them.
        shape = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in _leaves(batch))
        if shape not in self._recordings:
            if len(self._recordings) == _MOST_GRAPHS:
                return self._work(batch)
            # The warm-up must not advance the random state: dropout masks are a function of the seed alone.
            with torch.random.fork_rng({parameter.device for parameter in self._parameters if parameter.is_cuda}):
                self._recordings[shape] = self._record(batch)
        recording = self._recordings[shape]
        # A graph reads from fixed addresses: a new batch is copied to where the recorded one lies.
        for old, new in zip(_leaves(recording.batch), _leaves(batch), strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)
        recording.graph.replay()
        return recording.results

    def _record(self, batch: B) -> _Recording:
        gradients = gradients_of(self._parameters)
        before = [gradient.clone() for gradient in gradients]
        graph, results = _capture(lambda: self._work(batch), self._pool)
        self._pool = graph.pool()
        torch._foreach_copy_(gradients, before)  # the warm-up added to them
        return _Recording(graph, batch, results)


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`work`, which reads and writes tensors that stay where they are, as one CUDA graph; unchanged on a CPU.

    It is called a few times before this returns.
    """
    if not is_gpu(device):
        return work
    with torch.cuda.device(device):
        graph, _ = _capture(work)

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay


def is_gpu(device: torch.device) -> bool:
    """Whether graphs can be captured there, and kernels of Triton run."""
    return device.type == "cuda"


def _capture(work: Callable[[], R], pool: Any = None) -> tuple[Any, R]:
    """A CUDA graph of `work`, and what it returned."""
    # Warmed up on a side stream, as it will be captured on one: the default stream cannot be captured.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_RUNS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # "thread_local": other threads, such as NCCL's watchdog, may go on querying the device.
    recording = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
    with torch.cuda.stream(torch.cuda.current_stream()), recording:  # it leaves its stream only if it succeeds
        results = work()
    return graph, results


def gradients_of(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradient of each parameter, from now on zero where there was none."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _leaves(batch: Any) -> list[Any]:
    """The tensors of a batch, and the numbers beside them."""
    if not is_dataclass(batch):
        return [batch]
    return [leaf for field in fields(batch) for leaf in _leaves(getattr(batch, field.name))]
