"""Locks on files and folders, released when their process ends, however it ends.

The package filelock, which comes with torch, does not say who holds a lock, and on a disk without locks it can fall
back to a file that outlives its process: it is used only where `fcntl` is missing, on Windows.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transduce.errors import RunFolderError
from transduce.files.content import open_regular
from transduce.files.system_errors import explained_write_errors

_POLL_SECONDS = 0.05


@contextmanager
def lock(path: Path, report: Callable[[str], None] | None = None, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock on the file `path`, which names the process that holds it.

    While another process holds it: calls `report` with a message and waits; without `report`, raises RunFolderError
    after `patience` seconds.
    """
    with ExitStack() as held:
        with explained_write_errors(path):
            # Unbuffered: nothing is left to be written when it is closed.
            file = held.enter_context(open_regular(path, "ab+", buffering=0))
            end = time.monotonic() + patience
            while not (is_taken := _take(file.fileno(), path, held)) and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
            if not is_taken:
                file.seek(0)
                owner = file.read().decode(errors="replace").strip() or "unknown"
                if report is None:
                    raise RunFolderError(
                        f"{path.parent} is in use by process {owner}. Wait for it, stop it, or choose another folder."
                    )
                report(f"waiting for process {owner}, which is working on {path.stem}")
                _take(file.fileno(), path, held, waits=True)
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            file.flush()
        yield


def try_lock(path: Path, held: ExitStack) -> bool:
    """Whether a lock on a file or folder itself could be taken, until `held` ends; nothing is written into it.

    False as well if the path is gone meanwhile. Raises RunFolderError where nothing can be locked.
    """
    descriptor = -1
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        kind = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR  # NFS locks no file opened to be read alone
        try:
            descriptor = os.open(path, kind | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        held.callback(os.close, descriptor)
    return _take(descriptor, path, held) and path.exists()


def _take(descriptor: int, path: Path, held: ExitStack, *, waits: bool = False) -> bool:
    """Whether the lock could be taken; it is released with the descriptor, or with `held`."""
    try:
        import fcntl
    except ImportError:
        return _take_beside(path, held, waits=waits)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be locked here ({error.strerror}): choose a folder on another disk."
        ) from error
    return True


def _take_beside(path: Path, held: ExitStack, *, waits: bool) -> bool:
    """The same, of a hidden file beside `path`: Windows lets nobody read or rename what is locked."""
    from filelock import FileLock, Timeout

    try:
        held.enter_context(FileLock(path.with_name(f".{path.name}.held")).acquire(blocking=waits))
    except Timeout:
        return False
    return True
