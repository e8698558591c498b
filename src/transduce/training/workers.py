"""Worker processes: they share the steps of a training run on the cores of one machine, and end with it.

The process that calls is rank 0 and does all else. A worker is a new Python that imports this package, never the
caller's program; its standard input is a pipe that ends when the caller does, however that happens.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist

from transduce.devices import machine
from transduce.devices.cpu import num_threads
from transduce.errors import LostProcessError, OutOfMemoryError, TransduceError
from transduce.training.distributed import LONGEST_WAIT, Process, num_processes
from transduce.training.signals import Stopped

_HOST = "127.0.0.1"  # of all connections: no other machine reaches it
_POLL_SECONDS = 0.02
_SECONDS_TO_END = 4.0  # for a worker whose caller is gone, unless it saves what they had
_SECONDS_TO_NOTICE = 1.0  # that a process is gone: the exchange with it may fail first

group_lock = threading.Lock()  # held while this program trains with workers
_connections: list[Any] = []  # of the process group that is formed next


def usable_threads() -> int:
    """Threads of all processes together: as many as this one has cores, and at most those that were set for it."""
    return min(torch.get_num_threads(), machine.usable_cores())


def threads_of_each(num: int) -> int:
    """Threads of each of `num` processes, which share them; one alone has those that were set for it."""
    return torch.get_num_threads() if num == 1 else max(1, usable_threads() // num)


def refuse_processes(num: int | None, device: torch.device) -> None:
    """Raises TransduceError unless so many processes can share each step on the cores of this machine."""
    may_share = device.type == "cpu" and num_processes() == 1
    if num is not None and not (isinstance(num, int) and num > 0 and (num == 1 or may_share)):
        raise TransduceError(
            f"processes is {num!r}: it must be a whole number of at least 1, on a CPU. For GPUs or several machines, "
            "leave it out: torchrun --nproc-per-node=N -m transduce train ... starts them."
        )


def take_process_group() -> bool:
    """Hold `group_lock`, unless another thread does, or the program has a process group of its own: torch has one."""
    return dist.is_available() and not dist.is_initialized() and group_lock.acquire(blocking=False)


@contextmanager
def shared(num: int, alone: Process, work: Callable[..., object], /, **arguments: Any) -> Iterator[Process]:
    """A block in which `num` - 1 worker processes are at `work(**arguments, process=...)`; gives this one of theirs.

    Without any, that is the process `alone`.
    """
    if num == 1:
        yield alone
        return
    listener = socket.create_server((_HOST, 0))
    port = listener.getsockname()[1]
    # On a socket of ours: its own would listen to other machines, too.
    store = dist.TCPStore(_HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    alone_threads, of_each = torch.get_num_threads(), threads_of_each(num)
    words = [(work.__module__, work.__name__, port, num, of_each, rank) for rank in range(1, num)]
    with machine.child_processes(__name__, words, stdout=subprocess.DEVNULL) as workers:
        # In a thread: it would wait for a worker that has ended, forever.
        connecting = threading.Thread(target=_connect, args=(store, 0, num), daemon=True)
        connecting.start()
        while connecting.is_alive():
            _refuse_ended(workers, 0)
            connecting.join(_POLL_SECONDS)
        try:
            with num_threads(of_each), _group(store, 0, num):
                process = Process(0, num, num_threads_alone=alone_threads)
                process.from_main(arguments)
                yield process
        except LostProcessError as error:
            _refuse_ended(workers, _SECONDS_TO_NOTICE, str(error))
            raise


def _refuse_ended(workers: Sequence[subprocess.Popen[bytes]], seconds: float, message: str = "") -> None:
    """Raise LostProcessError, which says how, if a worker ends within so many seconds."""
    statuses: dict[int, int] = {}  # by rank
    for rank, worker in enumerate(workers, start=1):
        with suppress(subprocess.TimeoutExpired):
            statuses[rank] = worker.wait(timeout=seconds)
    if statuses:
        # Those with the status of this error have only lost another one.
        rank = min(statuses, key=lambda rank: statuses[rank] == LostProcessError.exit_status)
        how = f"by signal {-statuses[rank]}" if statuses[rank] < 0 else f"with status {statuses[rank]}"
        memory = " If memory ran out, use fewer processes." if statuses[rank] == -9 else ""
        kind = OutOfMemoryError if statuses[rank] == OutOfMemoryError.exit_status else LostProcessError
        raise kind(f"process {rank} of {len(workers) + 1} has ended {how}.{memory} {message}".strip())


def _connect(store: "dist.Store", rank: int, num: int) -> None:
    """Connect this process with the others, once all of them are at it, over the loopback interface."""
    options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices, options._timeout = [dist.ProcessGroupGloo.create_device(hostname=_HOST)], LONGEST_WAIT
    with suppress(RuntimeError):
        _connections.append(dist.ProcessGroupGloo(store, rank, num, options))


@contextmanager
def _group(store: "dist.Store", rank: int, num: int) -> Iterator[None]:
    """A block with the process group of the connections that were made."""
    if not _connections:
        raise LostProcessError("the processes of this training cannot connect.")
    if not hasattr(dist.Backend, "LOOPBACK"):
        dist.Backend.register_backend("loopback", lambda *_: _connections.pop(), devices="cpu")
    dist.init_process_group("loopback", store=store, rank=rank, world_size=num)
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Caller:
    """The other end of the pipe of a worker, which ends with it unless it `may_follow`: save what they had."""

    def __init__(self) -> None:
        self.is_gone, self.may_follow = threading.Event(), False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        os.read(sys.stdin.fileno(), 1)  # through a buffer, it would hold up the end of Python
        self.is_gone.set()
        threading.Event().wait(_SECONDS_TO_END)
        if not self.may_follow:
            os._exit(LostProcessError.exit_status)

    def follow(self) -> bool:
        """Whether the caller is gone, so that this worker saves in its place."""
        return self.may_follow and self.is_gone.wait(_SECONDS_TO_NOTICE)


def main() -> int:
    """A worker: the module and the name of its work, the port where they meet, how many they are, threads, its rank."""
    caller = _Caller()
    port, num, threads, rank = map(int, sys.argv[3:])
    torch.set_num_threads(threads)
    work = getattr(import_module(sys.argv[1]), sys.argv[2])
    try:
        _connect(store := dist.TCPStore(_HOST, port, is_master=False), rank, num)
        with _group(store, rank, num):
            caller.may_follow = rank == 1  # not before, when it has nothing to save and may wait forever
            process = Process(rank, num, takes_over=caller.follow)
            work(**process.from_main({}), process=process)
    except (Stopped, TransduceError) as error:
        # Else the caller meets it as well, and tells it.
        if isinstance(error, OutOfMemoryError) or (caller.may_follow and caller.is_gone.is_set()):
            print(f"transduce: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
