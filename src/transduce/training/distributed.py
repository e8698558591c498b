"""Several processes as one, started by `torchrun` or `spawn`: who I am, sums over all, what rank 0 tells the others."""

import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from transduce.data.large.workers import python_module
from transduce.devices import machine

T = TypeVar("T")

_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Process:
    """One of `world_size` processes; rank 0 writes, reports and validates."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in one exchange."""
        if self.world_size == 1:
            return
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
        """What `work` returns, called on rank 0 alone, on every process; if it raises there, all raise that."""
        if self.world_size == 1:
            return work()
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = (work(), None)
            except Exception as error:
                outcome = (None, error)
        found, error = self.from_main(outcome)
        if error is not None:
            raise error
        return found


def num_processes() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def spawn(num: int, words: Sequence[str]) -> int:
    """Runs `transduce WORDS` as `num` processes on this machine, which share its cores; their exit status.

    A signal to this process is passed on to each of them, once: they save and stop. It counts even if they were at
    their end already. If one fails, the others, who would wait for it, are stopped as well.
    """
    command, environment = python_module("transduce")
    environment = {"OMP_NUM_THREADS": str(max(1, machine.usable_cores() // num))} | environment  # the user's own wins
    environment |= {
        "WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    children: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)
        _signal_all(children, signum)

    def start(rank: int) -> "subprocess.Popen[bytes]":
        # A session of its own: else a Ctrl-C in the terminal would reach them twice, and the second one does not save.
        return subprocess.Popen(
            [*command, *words],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,
        )

    is_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere Python refuses handlers
    passed_on = (signal.SIGINT, signal.SIGTERM) if is_main_thread else ()
    previous = {signum: signal.signal(signum, pass_on) for signum in passed_on}
    try:
        for rank in range(num):
            children.append(start(rank))
        if received:  # while they were started
            _signal_all(children, received[0])
        end = math.inf
        while (statuses := [child.poll() for child in children]).count(None):
            if any(statuses):
                end = min(end, time.monotonic() + _GRACE_SECONDS)  # the others may be about to end for the same reason
            if time.monotonic() >= end:
                _signal_all(children, signal.SIGKILL)
            time.sleep(0.05)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    return next((status for status in statuses if status), 128 + received[-1] if received else 0)


def _signal_all(children: Sequence["subprocess.Popen[bytes]"], signum: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signum)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def joined(device: torch.device) -> Iterator[Process]:
    """This process among its peers, by the environment that `torchrun` sets; alone without it."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL exchanges objects and graphs are recorded
    if num_processes() == 1:
        yield Process()
        return
    # The others wait while rank 0 learns subwords or validates: however long that takes, it is no failure.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7))
    try:
        yield Process(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
