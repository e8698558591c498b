"""Atomic folders: each appears whole or not at all."""

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transduce.errors import RunFolderError
from transduce.files.atomic import sync_folder
from transduce.files.locks import lock_folder
from transduce.files.system_errors import explained_write_errors


@contextmanager
def new_folder(path: Path, num_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` when the block ends without an error and else removed.

    It is locked while it is written. What killed processes left of folders of this name is removed first. Raises
    RunFolderError, which says that `num_bytes` are needed, if the disk refuses.
    """
    remove_leftovers(path.parent, glob.escape(path.name))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with explained_write_errors(path, num_bytes):
            temporary.mkdir()
            with lock_folder(temporary):
                yield temporary
                _sync(temporary)
                temporary.rename(path)
                sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove temporary folders left by killed processes, of names that match the pattern; not those being written."""
    for leftover in folder.glob(f".{name}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError, RunFolderError), lock_folder(leftover):  # it is locked if it is being written
            shutil.rmtree(leftover, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flush everything in the folder to disk: other programs wrote some of it."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
