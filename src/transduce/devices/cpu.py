"""CPU speed without a change of results: process-wide settings, and workers that share the threads."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, BrokenBarrierError, Lock
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_BYTES_KEPT = 2**30
_MOST_BYTES_OF_OLD_GLIBC = 2**25  # above it, the second setting is refused
_MOST_WORKERS = 8  # each of which holds the keys and values of a batch


def speed_up_cpu() -> None:
    """Flush denormals to zero and keep freed memory. Call it once, before training or decoding."""
    torch.set_flush_denormal(True)  # numbers near zero slow a CPU down a hundredfold
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the process keep the memory that tensors free: a step allocates what the one before it freed.

    Given back to the system in between, it costs a page fault for every 4 kB.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another allocator than glibc's
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, _BYTES_KEPT) or mallopt(_M_MMAP_THRESHOLD, _MOST_BYTES_OF_OLD_GLIBC):
            mallopt(_M_TRIM_THRESHOLD, _BYTES_KEPT)


@contextlib.contextmanager
def num_threads(num: int) -> Iterator[None]:
    """A block in which torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def survive_forks(lock: Lock) -> None:
    """Let every child that this process forks from now on compute: on one thread, and with `lock` free.

    OpenMP's threads do not follow into a child, where torch would wait for them forever.
    """

    def start_child() -> None:
        lock.release()
        torch.set_num_threads(1)

    if hasattr(os, "register_at_fork"):  # elsewhere nothing forks
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=start_child)


@contextlib.contextmanager
def workers(device: torch.device, num_tasks: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` for `num_tasks` tasks. A CPU computes several at once, each with fewer threads: the matrix products of
    a small model are too small to be shared.
    """
    num_threads = torch.get_num_threads()
    num_workers = min(num_threads, num_tasks, _MOST_WORKERS)
    if device.type != "cpu" or num_workers <= 1:
        yield map
        return

    def start_worker() -> None:
        # `set_num_threads` changes the number of the calling thread, and the default that every thread adopts for life
        # when it first asks. So each worker adopts the default, changes its own number, and waits until the default is
        # restored: only then may work begin.
        torch.get_num_threads()
        torch.set_num_threads(num_threads // num_workers)
        with contextlib.suppress(BrokenBarrierError):  # aborted when a fast worker had failed before this one woke
            all_started.wait()

    def restore_default() -> None:
        with ThreadPoolExecutor(1) as pool:  # a thread whose number does not matter
            pool.submit(torch.set_num_threads, num_threads)

    all_started = Barrier(num_workers, action=restore_default)
    with ThreadPoolExecutor(num_workers, initializer=start_worker) as pool:
        try:
            yield pool.map
        finally:
            all_started.abort()  # nobody waits anymore, unless the system refused a thread
