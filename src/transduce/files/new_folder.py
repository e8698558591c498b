"""Atomic folders: each appears whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from transduce.errors import RunFolderError
from transduce.files.atomic import sync_folder, temporary_of
from transduce.files.system_errors import explained_write_errors


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
        with temporary_of(target, partial(Path.mkdir, parents=True)) as temporary:
            yield temporary
            _sync(temporary)
            temporary.rename(target)
            sync_folder(target.parent)


def _sync(folder: Path) -> None:
    """Flush everything in the folder to disk: other programs wrote some of it."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
