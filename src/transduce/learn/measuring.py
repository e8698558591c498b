"""How long work takes beside other work, how many kernels it calls, how many operations wait for one another."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def longest_chain(output: Tensor) -> int:
    """The number of operations on the longest path from any input to `output`: each has to wait for the one before.

    Counted in the graph that autograd keeps for the backward pass, so nothing is counted that is not done.
    """
    depth: dict[Any, int] = {}
    stack: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    while stack:
        node, is_below_done = stack.pop()
        below = [further for further, _ in node.next_functions if further is not None]
        if is_below_done:
            depth[node] = 1 + max((depth[further] for further in below), default=0)
        elif node not in depth:
            stack += [(node, True), *((further, False) for further in below if further not in depth)]
    return depth[output.grad_fn]


def interleaved(work: dict[str, list[Callable[[], None]]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Median milliseconds of each piece of work; a round does each once, so that all meet the same neighbors."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in pieces] for name, pieces in work.items()}
    names = list(work)
    for number in range(rounds + 1):
        turn = names[number % len(names) :] + names[: number % len(names)]  # nobody always follows the same one
        for place in range(len(work[names[0]])):
            for name in turn:
                started = time.perf_counter()
                work[name][place]()
                if number:  # the first round warms up
                    times[name][place].append(1e3 * (time.perf_counter() - started))
    return {name: tuple(map(statistics.median, of_name)) for name, of_name in times.items()}


class _Counter(TorchDispatchMode):
    """Counts what torch is asked to compute while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def num_calls(work: Callable[[], None]) -> int:
    """Number of operations of torch that `work` calls."""
    with _Counter() as counter:
        work()
    return counter.calls


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread: small work gains nothing by more, and loses much on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
