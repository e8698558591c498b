"""The folder of a prepared corpus: what is in it, under which name, and how it appears whole or not at all.

prepared/
├── KEY/                   what was prepared, named after the SHA-256 of all that it depends on
│   ├── manifest.json      counts and the hashes of the other files; hashes itself
│   ├── tokenizer.json
│   └── shard-00000.safetensors ...
├── learnt-KEY.json        a tokenizer, named after the corpus and its settings
└── KEY.lock               held while a corpus, after which it is named, is prepared
"""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transduce.errors import TransduceError
from transduce.files import atomic as files
from transduce.files.certified import damaged

FORMAT_VERSION = 1
_TEMPORARY = ".tmp"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` holds."""

    data: list[str]  # SHA-256 of the training files
    tokenizer: str  # SHA-256 of tokenizer.json
    num_pairs: int  # that have two sides
    num_long: int  # of these, left out of the shards: a side is longer than `max_len` ids
    max_len: int
    skipped: dict[str, int]  # reason -> number of pairs that are not counted in `num_pairs`
    notes: list[str]
    valid: list[str]  # SHA-256 of the validation files; none: there was no validation
    overlap: dict[str, int]  # with that validation: see `reading.count_overlap`
    shards: list[dict[str, Any]]  # "name", "num_pairs", "sha256"


@dataclass(frozen=True)
class PreparedFolder:
    """A prepared corpus on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> "PreparedFolder":
        """Raises DamagedFileError if its small files are not as written or a shard is missing."""
        mend = mending(path)
        try:
            document = json.loads(files.read_bytes(path / "manifest.json"))
            content = document["content"]
            is_intact = document["sha256"] == files.sha256_of(_compact_json(content))
        except (ValueError, KeyError, TypeError, RecursionError):
            is_intact = False
        if not is_intact:
            raise damaged(path / "manifest.json", "its SHA-256 is not the one it states", mend)
        manifest = Manifest(**content)
        tokenizer = path / "tokenizer.json"
        if not tokenizer.is_file() or files.sha256_of_file(tokenizer) != manifest.tokenizer:
            raise damaged(tokenizer, "its SHA-256 is not the one in manifest.json", mend)
        for shard in manifest.shards:
            if not (path / shard["name"]).is_file():
                raise damaged(path, f"{shard['name']} is missing", mend)
        return cls(path, manifest)

    @property
    def num_bytes(self) -> int:
        """What the folder takes on disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())


def mending(path: Path) -> str:
    """How an error about a prepared folder ends."""
    return f"Delete the folder {path}: the next `transduce train` or `transduce prepare` makes it anew."


def key_of(*parts: Any) -> str:
    """A name for what follows from `parts`, which JSON can hold."""
    return files.sha256_of(_compact_json([FORMAT_VERSION, *parts]))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the last of the files of a prepared folder."""
    content = asdict(manifest)
    document = {"sha256": files.sha256_of(_compact_json(content)), "content": content}
    files.write_atomically(folder / "manifest.json", json.dumps(document, indent=1).encode() + b"\n")


@contextmanager
def locked(folder: Path, key: str, report: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a corpus in `folder`, which is made if need be; waits while another process holds it."""
    with files.explained_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.waiting_lock(folder / f"{key}.lock", report):
        yield


@contextmanager
def building(folder: Path, key: str) -> Iterator[Path]:
    """A temporary folder in `folder`, gone at the end of the block unless `publish` gave it its name.

    Call it under the lock of `key`. What killed processes have left is removed first.
    """
    _remove_leftovers(folder, key)
    temporary = folder / f".{key}.{secrets.token_hex(4)}{_TEMPORARY}"
    with files.explained_write_errors(temporary):
        temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, path: Path) -> None:
    """Gives a file, or a folder with all its files on disk, its name."""
    with files.explained_write_errors(path):
        files.sync_folder(temporary if temporary.is_dir() else temporary.parent)
        temporary.rename(path)
        files.sync_folder(path.parent)


def _remove_leftovers(folder: Path, key: str) -> None:
    for temporary in sorted(folder.glob(f".*{_TEMPORARY}")):
        owner = temporary.name[1:].split(".")[0]
        if owner == key:
            shutil.rmtree(temporary, ignore_errors=True)
            continue
        try:
            with files.waiting_lock(folder / f"{owner}.lock", None):
                shutil.rmtree(temporary, ignore_errors=True)
        except TransduceError:
            continue  # it is being written


def remove(paths: Sequence[Path]) -> None:
    """Removes files that were there for the preparation alone."""
    for path in paths:
        with files.explained_write_errors(path):
            path.unlink(missing_ok=True)


def _compact_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
