"""Atomic writes: the one place where the package writes to disk; a file appears whole or not at all."""

import errno
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from transduce.errors import RunFolderError
from transduce.files.locks import try_lock
from transduce.files.system_errors import explained_write_errors

_NAME_CHARACTERS = 60  # of a name, in that of its temporary: those of four bytes each, too, leave room for the rest


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, which replaces `path` in one rename when the block ends without an error.

    A reader sees the old content or the new, never a part, whenever the process or the machine stops: the data reach
    the disk before the rename does, and the rename before the return. If the block raises, nothing is left behind.
    A file that replaces another has its permissions.
    """
    old = path.stat() if path.exists() else None
    make = partial(Path.touch, mode=0o600 if old else 0o666, exist_ok=False)
    with temporary_of(path, make) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if old is not None:
                _take_permissions(temporary, old)
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all. Raises RunFolderError if the disk refuses."""
    with explained_write_errors(path, len(content)), replacing(path) as file:
        file.write(content)


@contextmanager
def temporary_of(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary file or folder beside `path`, as `make` makes it: locked, and gone when the block ends.

    Unless it was renamed by then. What killed processes have left of `path` is removed first.
    """
    start = path.name[:_NAME_CHARACTERS]
    remove_temporaries(path.parent, glob.escape(start))
    with ExitStack() as held:
        is_locked = False
        while not is_locked:  # unless another process took it for a leftover before it was
            temporary = path.with_name(f".{start}.{secrets.token_hex(4)}.tmp")
            held.callback(_remove, temporary)
            make(temporary)
            try:
                is_locked = try_lock(temporary, held)
            except RunFolderError:  # nothing is locked on this disk, so nobody takes it for one either
                break
        yield temporary


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Remove the temporary files and folders of names that match the pattern, unless a living process writes them."""
    for leftover in folder.glob(f".{name}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError, RunFolderError), ExitStack() as held:
            if try_lock(leftover, held):
                _remove(leftover)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries to disk, so that a rename or a removal survives a power cut."""
    if os.name == "nt":  # Windows opens no folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a temporary if it is there. That this may fail hides no other error; the next process tries again."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.exists():
            path.unlink()


def _take_permissions(path: Path, old: os.stat_result) -> None:
    """Give a file the permissions of the one that it replaces, and never more."""
    mode = stat.S_IMODE(old.st_mode)
    if path.stat().st_gid != old.st_gid:
        try:
            os.chown(path, -1, old.st_gid)
        except OSError:
            mode &= ~stat.S_IRWXG  # those of another group
    path.chmod(mode)
