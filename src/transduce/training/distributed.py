"""Distributed training: ranks, sums over all processes, and results of rank 0 on every one of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One of `world_size` processes; rank 0 writes, reports and validates."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world_size == 1:
            return
        # One exchange of all numbers end to end: many small ones would each pay the latency of the network.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every process."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def decide(self, work: Callable[[], T]) -> T:
        """The result of `work`, called on rank 0 alone, on every process; if it raises there, all raise the same error.

        Otherwise the others would wait for rank 0 forever.
        """
        if self.world_size == 1:
            return work()
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = (work(), None)
            except Exception as error:
                outcome = (None, error)
        result, error = self.from_main(outcome)
        if error is not None:
            raise error
        return result


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
    # The others wait while rank 0 learns subwords or validates, however long that takes: a timeout would kill the run.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7))
    try:
        yield Process(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
