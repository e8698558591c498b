"""Errors of the operating system as one line that says what to do, or of a display alone, as nothing."""

import difflib
import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
            reason += f" ({needed}{free:,} free). The previous contents are intact. Free some space"
            raise RunFolderError(f"{reason} or choose another folder.") from error
        raise RunFolderError(f"{reason}. Check the permissions or choose another folder.") from error


@contextmanager
def explained_read_errors(path: Path) -> Iterator[None]:
    """Turn an error of the system while `path` is read into MissingInputError, or DamagedFileError on a bad disk."""
    _refuse_nul(path, MissingInputError)
    try:
        yield
    except IsADirectoryError:
        raise MissingInputError(f"{path}: this is a folder: name a file in it.") from None
    except (FileNotFoundError, NotADirectoryError):
        near: list[str] = []
        with suppress(OSError):
            near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
        hint = f"Did you mean {path.with_name(near[0])}?" if near else "Check the path and its folder."
        raise MissingInputError(f"{path}: no such file. {hint}") from None
    except OSError as error:
        kind = DamagedFileError if error.errno == errno.EIO else MissingInputError
        raise kind(f"{path}: cannot be read: {error.strerror or error}. Check the disk and the permissions.") from error


def _refuse_nul(path: Path, kind: type[TransduceError]) -> None:
    if "\0" in str(path):  # which Python takes for an error of the program
        raise kind(f"{path}: no file name can contain the character NUL. Correct it.")


class Unfailing:
    """A text stream for what is only shown: what cannot be written, as it is closed, full or unread, is lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str = "") -> None:
        """Write `text` at once if possible."""
        with suppress(OSError, ValueError, AttributeError):  # of None, where Python found it closed
            self._stream.write(text)
            self._stream.flush()

    flush = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
