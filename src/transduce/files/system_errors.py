"""Errors of the operating system as one line that says what to do."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explained_write_errors(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turn an error of the system while `path` is written into a RunFolderError that says what to do."""
    _refuse_nul(path, RunFolderError)
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe has left: nothing is wrong with the path
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
    """Turn an error of the system while `path` is read into MissingInputError, or DamagedFileError on a bad disk."""
    _refuse_nul(path, MissingInputError)
    try:
        yield
    except IsADirectoryError:
        raise MissingInputError(f"{path}: this is a folder, and a file is needed. Name a file in it.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInputError(f"{path}: no such file. Check the path and the folder it is relative to.") from None
    except OSError as error:
        kind = DamagedFileError if error.errno == errno.EIO else MissingInputError
        raise kind(f"{path}: cannot be read: {error.strerror or error}. Check the disk and the permissions.") from error


def _refuse_nul(path: Path, kind: type[TransduceError]) -> None:
    if "\0" in str(path):  # which Python takes for an error of the program
        raise kind(f"{path}: no file has the character NUL in its name. Correct it.")
