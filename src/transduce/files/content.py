"""File contents and their SHA-256, and how a file of a folder is opened that may come from anyone."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transduce.errors import DamagedFileError, TransduceError
from transduce.files.system_errors import explained_read_errors

MOST_TEXT_BYTES = 64_000_000  # of a document: JSON in memory takes several times as many
_MOST_REASON = 300  # characters
_NO_WAIT, _NO_LINK = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
# What a document raises that is not what the code that reads it expects.
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def damaged(path: Path | str, reason: str, advice: str) -> DamagedFileError:
    """The error for a file that is not as it was written: how that shows, and what to do."""
    return DamagedFileError(f"{path} is damaged: {' '.join(reason.split())[:_MOST_REASON]}. {advice}")


@contextmanager
def well_formed(path: Path | str, advice: str) -> Iterator[None]:
    """A block that makes sense of a file with the right hash: whoever forges a file forges that as well.

    Raises DamagedFileError where the content is not what we write.
    """
    try:
        yield
    except _NONSENSE as error:
        is_told = isinstance(error, TransduceError) or type(error) is ValueError
        reason = str(error).rstrip(".") if is_told else f"its content is not valid ({type(error).__name__}: {error})"
        raise damaged(path, reason, advice) from None


@contextmanager
def open_regular(path: Path, mode: str = "rb", *, buffering: int = -1, follows_links: bool = False) -> Iterator[Any]:
    """A file of a folder that may come from anyone, open: no link, which could lead to any other file, and no pipe or
    device, which could be without an end. Raises DamagedFileError.
    """
    flags = _NO_WAIT | (0 if follows_links else _NO_LINK)
    wrong = damaged(path, "it is a link, a folder, a pipe or a device, not a regular file", "Put a copy there.")
    try:
        file = open(path, mode, buffering, opener=lambda name, own: os.open(name, own | flags, 0o666))  # noqa: SIM115
    except OSError:
        if not os.path.lexists(path) or stat.S_ISREG(path.lstat().st_mode):
            raise
        raise wrong from None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or (status.st_nlink > 1 and "+" in mode):  # what is written changes both
            raise wrong
        yield file


def read_regular(path: Path, *, follows_links: bool = False) -> bytes:
    """The content of such a file: see `open_regular`. Raises MissingInputError if there is none."""
    with explained_read_errors(path), open_regular(path, follows_links=follows_links) as file:
        content: bytes = file.read(MOST_TEXT_BYTES + 1)
    if len(content) > MOST_TEXT_BYTES:
        raise damaged(path, f"it has more than the {MOST_TEXT_BYTES:,} bytes that are read", "Restore it from a copy.")
    return content


def read_bytes(path: Path) -> bytes:
    """The content of `path`, which may be any file of the user's. Raises MissingInputError if there is none."""
    with explained_read_errors(path):
        return path.read_bytes()


def sha256_of(content: bytes) -> str:
    """SHA-256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal. Raises MissingInputError if there is no such file."""
    with explained_read_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
