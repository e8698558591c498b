"""What `torchrun` says in the environment: how many processes there are, and which of them this one is."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transduce.errors import TransduceError

_SECONDS_TO_MEET = 5.0  # without a word that the others are waited for


def rank_and_size() -> tuple[int, int]:
    """The rank of this process and the number of all; 0 and 1 without `torchrun`.

    Raises TransduceError, which names the variables, for what `torchrun` would never set.
    """
    words = {name: os.environ.get(name, default) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"))}
    size, rank = (int(word) if word.isdecimal() else -1 for word in words.values())
    if size == 1:  # whatever rank something else left behind
        return 0, 1
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if not 0 <= rank < size or missing:
        given = " and ".join(f"{name}={word}" for name, word in words.items() if name in os.environ)
        without = f" without {', '.join(missing)}" if missing else ""
        raise TransduceError(
            f"{given}{without} in the environment: torchrun sets the number of processes in WORLD_SIZE, the RANK of "
            "each below it, and where they meet. To train in one process, unset WORLD_SIZE."
        )
    return rank, size


def is_first_process() -> bool:
    """Whether this process speaks for all, as the one with rank 0 does, and one whose environment is refused."""
    try:
        return rank_and_size()[0] == 0
    except TransduceError:
        return True


@contextmanager
def waiting_reported(report: Callable[[str], None]) -> Iterator[None]:
    """A block at whose start all processes meet; `report` gets a line if they have not after some seconds."""
    rank, size = rank_and_size()
    if size == 1:
        yield
        return
    import torch.distributed as dist

    def report_waiting() -> None:
        if not dist.is_initialized():
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            report(f"process {rank} of {size} (RANK, WORLD_SIZE) is waiting at {place} for the others")

    timer = threading.Timer(_SECONDS_TO_MEET, report_waiting)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
