"""What makes a CPU faster and changes no answer: settings of this process, and workers that share its threads."""

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_BYTES_KEPT = 2**30
_MOST_BYTES_OF_OLD_GLIBC = 2**25  # above it, the second setting is refused
_MOST_WORKERS = 8  # each of which holds the keys and values of a batch


def speed_up_cpu() -> None:
    """Call it once, before training or decoding."""
    torch.set_flush_denormal(True)  # numbers near zero slow a CPU down a hundredfold
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another allocator than glibc's
        # A step allocates what the one before it freed. Given back in between, it costs a page fault for every 4 kB.
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, _BYTES_KEPT) or mallopt(_M_MMAP_THRESHOLD, _MOST_BYTES_OF_OLD_GLIBC):
            mallopt(_M_TRIM_THRESHOLD, _BYTES_KEPT)


@contextlib.contextmanager
def workers(device: torch.device, num_tasks: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` over that many tasks. On a CPU several are computed at once, by fewer threads each: the products of a
    small model are too small to be shared.
    """
    num_threads = torch.get_num_threads()
    num_workers = min(num_threads, num_tasks, _MOST_WORKERS)
    if device.type != "cpu" or num_workers <= 1:
        yield map
        return

    def begin() -> None:
        # torch sets the number of the calling thread and the one that each thread takes when it first computes, for
        # life. So workers take theirs, change it, and have the other set back before there is anything to do.
        torch.get_num_threads()
        torch.set_num_threads(num_threads // num_workers)
        all_have_begun.wait()

    def set_back() -> None:
        with ThreadPoolExecutor(1) as other:  # one whose own number does not matter
            other.submit(torch.set_num_threads, num_threads)

    all_have_begun = Barrier(num_workers, action=set_back)
    with ThreadPoolExecutor(num_workers, initializer=begin) as pool:
        try:
            yield pool.map
        finally:
            all_have_begun.abort()  # nobody waits any more, unless the system refused a thread
