"""Helper processes: they share the steps of a training run on the cores of one machine, and end with it.

The process that calls is rank 0 and does all else. A helper is a new Python that imports this package, never the
caller's program; its standard input is a pipe that ends when the caller does, however that happens.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from transduce.devices import machine
from transduce.devices.device import local_device
from transduce.errors import LostProcessError, TransduceError
from transduce.training.distributed import Process, joined
from transduce.training.signals import Stopped

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.02
_SECONDS_TO_END = 4.0  # for a helper whose caller is gone, unless it saves what they had
_SECONDS_TO_NOTICE = 1.0  # that a process is gone: the exchange with it may fail first


class Helpers(AbstractContextManager["Helpers"]):
    """`num` - 1 processes beside this one, which begin while it prepares their work."""

    def __init__(self, num: int, device: torch.device) -> None:
        self._num, self._device = num, device
        self._store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        command, environment = machine.python_module(__name__)
        self._children = [
            subprocess.Popen(
                [*command, device.type, str(rank), str(num), str(self._store.port)],
                env=environment | {"LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the caller, which tells them
            )
            for rank in range(1, num)
        ]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for child in self._children if kind is not None else ():
            child.kill()
        for child in self._children:
            child.communicate()

    @contextmanager
    def at(self, work: Callable[..., object], arguments: Mapping[str, Any]) -> Iterator[Process]:
        """A block in which each helper is at `work(**arguments, process=...)`; gives this process of theirs."""
        while not self._store.check([str(rank) for rank in range(1, self._num)]):
            self._refuse_ended(0)
            threading.Event().wait(_POLL_SECONDS)
        before, num_threads = torch.get_num_threads(), threads_of_each(self._num)
        torch.set_num_threads(num_threads)
        try:
            with joined(self._device, self._store, rank=0, world_size=self._num, num_threads_alone=before) as process:
                process.from_main((work, arguments, num_threads))
                yield process
        except LostProcessError as error:
            self._refuse_ended(_SECONDS_TO_NOTICE, str(error))
            raise
        finally:
            torch.set_num_threads(before)

    def _refuse_ended(self, seconds: float, message: str = "") -> None:
        """Raise LostProcessError, which says how, if a helper ends within so many seconds."""
        statuses: dict[int, int] = {}  # by rank
        for rank, child in enumerate(self._children, start=1):
            with suppress(subprocess.TimeoutExpired):
                statuses[rank] = child.wait(timeout=seconds)
        if statuses:
            # Those with the status of this error have only lost another one.
            rank = min(statuses, key=lambda rank: statuses[rank] == LostProcessError.exit_status)
            how = f"by signal {-statuses[rank]}" if statuses[rank] < 0 else f"with status {statuses[rank]}"
            memory = " If memory was short, give fewer processes." if statuses[rank] == -9 else ""
            raise LostProcessError(f"process {rank} of {self._num} has ended {how}.{memory} {message}".strip())


def threads_of_each(num: int) -> int:
    """Threads of each of `num` processes: they share the cores, and those that were set for this one."""
    return max(1, min(torch.get_num_threads(), machine.usable_cores() // num))


class _Caller:
    """The other end of the pipe of a helper, which ends with it unless it `may_follow`: save what they had."""

    def __init__(self, *, may_follow: bool) -> None:
        self._is_gone = threading.Event()
        self._may_follow = may_follow
        self.is_followed = False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        os.read(sys.stdin.fileno(), 1)  # through a buffer, it would hold up the end of Python
        self._is_gone.set()
        if not self._may_follow:
            threading.Event().wait(_SECONDS_TO_END)
            os._exit(LostProcessError.exit_status)

    def follow(self) -> bool:
        """Whether the caller is gone, so that this helper saves in its place."""
        self.is_followed = self._may_follow and self._is_gone.wait(_SECONDS_TO_NOTICE)
        return self.is_followed


def main() -> int:
    """A helper, given the device, its rank, the number of processes, and the port of the store where they meet."""
    device, (rank, num, port) = torch.device(sys.argv[1]), map(int, sys.argv[2:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    caller = _Caller(may_follow=rank == 1)
    store = dist.TCPStore(_HOST, port, is_master=False)
    store.set(str(rank), "ready")
    try:
        with joined(local_device(device), store, rank=rank, world_size=num, takes_over=caller.follow) as process:
            job: Any = process.from_main(None)
            work, arguments, num_threads = job
            torch.set_num_threads(num_threads)
            work(**arguments, process=process)
    except Stopped as stopped:
        return stopped.exit_status
    except TransduceError as error:
        if caller.is_followed:  # else the caller meets it as well, and tells it
            print(f"transduce: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
