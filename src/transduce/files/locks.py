"""Locks on files and folders, released when their process ends, however it ends.

The package filelock, which comes with torch, does not say who holds a lock, and on a disk without locks it can fall
back to a file that outlives its process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transduce.errors import RunFolderError
from transduce.files.system_errors import explained_write_errors


@contextmanager
def lock(path: Path, report: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock on the file `path`, which names the process that holds it.

    While another process holds it: calls `report` with a message and waits; without `report`, raises RunFolderError.
    """
    with explained_write_errors(path):
        file = path.open("ab+", buffering=0)  # unbuffered: nothing is left to be written when it is closed
    with file:
        with explained_write_errors(path):
            if not _take(file.fileno(), path):
                file.seek(0)
                owner = file.read().decode(errors="replace").strip() or "unknown"
                if report is None:
                    raise RunFolderError(
                        f"{path.parent} is in use by process {owner}. Wait for it, stop it, or choose another folder."
                    )
                report(f"waiting for process {owner}, which is at work on {path.stem}")
                _take(file.fileno(), path, waits=True)
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            file.flush()
        yield


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder without writing into it. Raises RunFolderError while another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _take(descriptor, folder):
            raise RunFolderError(f"{folder} is in use by another process. Wait for it.")
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, *, waits: bool = False) -> bool:
    import fcntl  # here, because only Unix has it: elsewhere a run can still be read

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be locked here ({error.strerror}): take a folder on another disk."
        ) from error
    return True
