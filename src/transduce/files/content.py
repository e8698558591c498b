"""File contents and their SHA-256."""

import hashlib
from pathlib import Path

from transduce.files.system_errors import explained_read_errors


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
        return hashlib.file_digest(file, "sha256").hexdigest()
