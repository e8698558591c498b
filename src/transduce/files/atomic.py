"""Atomic writes: the one place where the package writes to disk; a file appears whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from transduce.files.system_errors import explained_write_errors


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, which replaces `path` in one rename when the block ends without an error.

    A reader sees the old content or the new, never a part, whenever the process or the machine stops: the data reach
    the disk before the rename does, and the rename before the return. If the block raises, nothing is left behind.
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
    """Write `content` to `path`, whole or not at all. Raises RunFolderError if the disk refuses."""
    with explained_write_errors(path, len(content)), replacing(path) as file:
        file.write(content)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`. Nobody may be writing to it."""
    # A folder may be an export under way, which has a lock of its own.
    for temporary in sorted(path for path in folder.glob(".*.tmp") if not path.is_dir()):
        with explained_write_errors(temporary):
            temporary.unlink(missing_ok=True)


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
