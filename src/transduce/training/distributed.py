"""Distributed training: ranks, sums over all processes, and results of rank 0 on every one of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from transduce.errors import LostProcessError, TransduceError
from transduce.training.signals import Stopped

T = TypeVar("T")

# The others wait while rank 0 learns subwords or validates, however long that takes: a timeout would kill the run.
LONGEST_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    """One of `world_size` processes; rank 0 writes, reports and validates."""

    rank: int = 0
    world_size: int = 1
    num_threads_alone: int = 0  # of the main one while the others wait; 0: as many as ever
    takes_over: Callable[[], bool] = bool  # whether this one saves in the place of the main one, lost: by default not

    @property
    def is_main(self) -> bool:
        """Whether this process reads, reports and saves for all."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world_size == 1:
            return
        # One exchange of all numbers end to end: many small ones would each pay the latency of the network.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _named_losses():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every process."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        with _named_losses():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def decide(self, work: Callable[[], T]) -> T:
        """The result of `work`, called on rank 0 alone, on every process; if it raises there, all raise.

        Otherwise the others would wait for rank 0 forever. What the caller's own code raises stays on rank 0, as it may
        be something that cannot be sent: the others raise a TransduceError that names it.
        """
        if self.world_size == 1:
            return work()
        result, error = None, None
        if self.is_main:
            num_threads = torch.get_num_threads()
            torch.set_num_threads(self.num_threads_alone or num_threads)
            try:
                result = work()
            except BaseException as raised:
                error = raised
            finally:
                torch.set_num_threads(num_threads)
        is_ours = isinstance(error, TransduceError | Stopped) and type(error).__module__.startswith("transduce.")
        named = error if error is None or is_ours else TransduceError(f"process 0 ended with {type(error).__name__}.")
        result, named = self.from_main((result, named))
        if named is not None:
            raise error or named
        return cast(T, result)


def num_processes() -> int:
    """Number of processes that `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: torch.device) -> Iterator[Process]:
    """Join the process group that `torchrun` describes in the environment, for a block; alone without it."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the device on which NCCL exchanges objects and graphs are recorded
    if num_processes() == 1:
        yield Process()
        return
    with ThreadPool(1) as pool:  # in a thread, as this one is to hear signals while it waits for the others
        pool.apply(dist.init_process_group, ["nccl" if device.type == "cuda" else "gloo"], {"timeout": LONGEST_WAIT})
    try:
        yield Process(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _named_losses() -> Iterator[None]:
    """A block in which the failure of an exchange is a LostProcessError: nothing else ends one."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError("another training process has ended.") from error
