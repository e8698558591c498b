"""Atomic writes: the one place where the package writes to disk; a file or folder appears whole or not at all."""

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

_NAME_CHARACTERS = 60  # of a name, in that of its temporary: a disk takes 255 bytes, and a character may have four


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, which replaces `path` in one rename when the block ends without an error.

    A reader sees the old content or the new, never a part, whenever the process or the machine stops: the data reach
    the disk before the rename does, and the rename before the return. If the block raises, nothing is left behind.
    The permissions of a file that is replaced are kept, and never widened.
    """
    old = path.stat() if path.exists() else None
    with _temporary(path, partial(Path.touch, mode=0o600 if old else 0o666, exist_ok=False)) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if old is not None:
            mode = stat.S_IMODE(old.st_mode)
            if temporary.stat().st_gid != old.st_gid:  # another group gets none, and its members are others now
                mode &= 0o700 | mode >> 3 & 0o007
            temporary.chmod(mode)  # last: what a killed process leaves must be removable
        temporary.replace(path)
        sync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all. Raises RunFolderError if the disk refuses."""
    with explained_write_errors(path, len(content)), replacing(path) as file:
        file.write(content)


@contextmanager
def new_folder(path: Path, num_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` when the block ends without an error and else removed.

    `path` may be an empty folder, which is replaced. Raises RunFolderError if anything else is there, or, saying that
    `num_bytes` are needed, if the disk refuses.
    """
    target = Path(os.path.realpath(path))
    with explained_write_errors(path, num_bytes):
        if target.exists() and (not target.is_dir() or any(target.iterdir()) or target.samefile(os.curdir)):
            raise RunFolderError(f"{path} is in use: name a new folder, or an empty one that you are not in.")
        with _temporary(target, partial(Path.mkdir, parents=True)) as temporary:
            yield temporary
            for written in [*temporary.rglob("*"), temporary]:  # by other programs, some of it
                if not written.is_symlink():
                    sync(written)
            temporary.rename(target)
            sync(target.parent)


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary file or folder beside `path`, as `make` makes it: locked, and gone after the block unless renamed.

    What killed processes have left of `path` is removed first.
    """
    start = path.name[:_NAME_CHARACTERS]
    remove_temporaries(path.parent, glob.escape(start))
    with ExitStack() as held:
        while True:
            temporary = path.with_name(f".{start}.{secrets.token_hex(4)}.tmp")
            held.callback(_remove, temporary)
            make(temporary)
            with suppress(RunFolderError):  # where nothing can be locked, nobody takes it for a leftover either
                if not try_lock(temporary, held):  # another process was faster, and did
                    continue
            break
        yield temporary


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Remove the temporary files and folders of names that match the pattern, unless a living process writes them."""
    for leftover in folder.glob(f".{name}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError, RunFolderError), ExitStack() as held:
            if try_lock(leftover, held):
                _remove(leftover)


def _remove(path: Path) -> None:
    with suppress(OSError):  # it was renamed, or the next process tries again
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, so that a rename or a removal survives a power cut."""
    if os.name == "nt":  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
