"""Files that appear whole or not at all: the one place where the package writes to disk."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from transduce.errors import DamagedFileError, MissingInputError, RunFolderError

_CHUNK_BYTES = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`; when the block ends well it takes the place of `path` in one rename.

    A reader sees the old content or the new, never a part, whenever the process or the machine stops: the data are
    on disk before the rename, and the rename before the return. If the block raises, nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # the reason to stop is the error above, not that tidying up failed as well
            temporary.unlink()
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all. Raises RunFolderError where the disk refuses."""
    with explained_write_errors(path, len(content)), replacing(path) as file:
        file.write(content)


def remove_temporaries(folder: Path) -> None:
    """Removes what a killed process left of `replacing` in `folder`. Nobody may be writing there."""
    for temporary in sorted(folder.glob(".*.tmp")):
        with explained_write_errors(temporary):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries (a rename, a removal) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def open_locked(folder: Path) -> TextIO:
    """The file `run.lock`, locked until it is closed or the process ends. Raises RunFolderError if another holds it."""
    import fcntl  # here, because only Unix has it: elsewhere a run can still be read

    path = folder / "run.lock"
    with explained_write_errors(path):
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise RunFolderError(
                f"{folder} is in use by process {owner}. Wait for it, stop it, or choose another folder."
            ) from None
        except BaseException:
            file.close()
            raise
    return file


@contextmanager
def waiting_lock(path: Path, report: Callable[[str], None] | None) -> Iterator[None]:
    """Holds a lock on the file `path`; while another process does, says so and waits.

    Without `report`, raises RunFolderError instead. The lock ends with the process, however that ends.
    """
    import fcntl  # here, because only Unix has it

    with explained_write_errors(path):
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if report is None:
                raise RunFolderError(f"{path} is held by another process. Wait for it.") from None
            file.seek(0)
            report(f"waiting for process {file.read().strip() or 'unknown'}, which is at work on {path.stem}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be locked here ({error.strerror}): take a folder on another disk."
            ) from error
        with explained_write_errors(path):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def read_bytes(path: Path) -> bytes:
    """The content of `path`. Raises MissingInputError if there is no such file."""
    with explained_read_errors(path):
        return path.read_bytes()


def sha256_of(content: bytes) -> str:
    """SHA-256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal. Raises MissingInputError if there is no such file."""
    with explained_read_errors(path), path.open("rb") as file:
        return digest_rest(file, hashlib.sha256())


def digest_rest(file: BinaryIO, digest: "hashlib._Hash") -> str:
    """`digest`, in hexadecimal, after the bytes from here to the end of `file`, held in memory piece by piece."""
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def explained_write_errors(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turns what the system says while `path` is written into one line that helps (a RunFolderError)."""
    try:
        yield
    except BrokenPipeError:  # a reader that has left: nothing is wrong with the place
        raise
    except OSError as error:
        reason = f"{path}: cannot be written: {error.strerror or error}"
        if error.errno in _DISK_FULL:
            free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free
            needed = f"{num_bytes:,} bytes needed, " if num_bytes else ""
            reason += f" ({needed}{free:,} free). What was there before is still valid. Make room"
            raise RunFolderError(f"{reason} or choose another folder.") from error
        raise RunFolderError(f"{reason}. Check the permissions or choose another folder.") from error


@contextmanager
def explained_read_errors(path: Path) -> Iterator[None]:
    """Turns what the system says while `path` is read into MissingInputError, or DamagedFileError on a bad disk."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise MissingInputError(f"{path}: no such file. Check the path and the folder it is relative to.") from None
    except OSError as error:
        kind = DamagedFileError if error.errno == errno.EIO else MissingInputError
        raise kind(f"{path}: cannot be read: {error.strerror or error}. Check the disk and the permissions.") from error
