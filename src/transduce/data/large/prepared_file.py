"""The file of a prepared corpus: ids of either side, end to end, in a safetensors file that carries its own hash.

prepared/                  in the data cache
├── KEY.safetensors        what was prepared, named after the SHA-256 of all that it depends on
├── learnt-KEY.json        a tokenizer, named after the corpus and its settings
└── preparation.lock       held while anything is prepared here
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from transduce.files.atomic import remove_temporaries
from transduce.files.certified import Entry, check_digest, damaged, header_of, read_header, write_certified
from transduce.files.content import sha256_of
from transduce.files.locks import lock
from transduce.files.system_errors import explained_write_errors

_FORMAT_VERSION = 3  # 1 was a folder of shards, 2 did not say what was seen
_CHUNK_BYTES = 1 << 20
DTYPES: dict[str, np.dtype[Any]] = {
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}  # by their names in the file


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a prepared corpus."""

    data: list[str]  # SHA-256 of the training files
    num_pairs: int  # that have two sides
    num_long: int  # of these, left out: a side is longer than `max_len` ids
    max_len: int
    skipped: dict[str, int]  # reason -> number of pairs that are not counted in `num_pairs`
    notes: list[str]
    valid: list[str]  # SHA-256 of the validation files; none: there was no validation
    seen: dict[str, Any]  # the characters and lengths of its pairs: see `data.seen`
    overlap: dict[str, int]  # with that validation: see `pairs.count_overlap`


@dataclass(frozen=True)
class PreparedFile:
    """A prepared corpus on disk, all of whose bytes were found to be as written."""

    path: Path
    manifest: Manifest
    _entries: dict[str, Any]
    _first_byte: int

    @classmethod
    def open(cls, path: Path) -> "PreparedFile":
        """Reads the file once. Raises DamagedFileError if a byte is not as written."""
        mend = f"Delete {path}: the next `transduce train` or `transduce prepare` makes it anew."
        check_digest(path, mend)
        entries, first_byte = read_header(path)
        metadata = entries.pop("__metadata__")
        if metadata.get("key") != path.stem:
            raise damaged(path, "it is another file than the one that was written here", mend)
        return cls(path, Manifest(**json.loads(metadata["manifest"])), entries, first_byte)

    @property
    def num_bytes(self) -> int:
        """What it takes on disk."""
        return self.path.stat().st_size

    def array(self, name: str) -> NDArray[np.integer]:
        """One of the arrays, mapped into memory: what is touched of it stays there as long as it is."""
        entry = self._entries[name]
        first_byte = self._first_byte + entry["data_offsets"][0]
        return np.memmap(self.path, DTYPES[entry["dtype"]], "r", first_byte, tuple(entry["shape"]))


def key_of(*parts: Any) -> str:
    """A name for what follows from `parts`, which JSON can hold."""
    return sha256_of(json.dumps([_FORMAT_VERSION, *parts], sort_keys=True, separators=(",", ":")).encode())


@contextmanager
def alone_in(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of `folder`, which is made if need be; waits while another process does.

    What killed processes have left there is removed first.
    """
    with explained_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "preparation.lock", report):
        remove_temporaries(folder)
        yield


def write_prepared(
    path: Path, blocks: Iterable[Sequence[bytes]], *, dtype: str, manifest: Callable[[], Manifest]
) -> None:
    """Writes the file, whole or not at all: of each block the ids of its sources, how many each has, and the same of
    its targets. `manifest` is asked when all blocks are written.

    Until then they are in files without a name, which are gone when the process is, however it ends.
    """
    # The ids of row k are those from starts[k] to starts[k + 1]. Wide elements come first: all lie at multiples of
    # their size.
    dtypes = {"src.starts": "I64", "tgt.starts": "I64", "src.ids": dtype, "tgt.ids": dtype}
    with explained_write_errors(path), ExitStack() as opened:
        files = {name: opened.enter_context(TemporaryFile(dir=path.parent)) for name in dtypes}
        ends = {"src": 0, "tgt": 0}
        for side in ends:
            files[f"{side}.starts"].write(bytes(8))
        for src_ids, src_lens, tgt_ids, tgt_lens in blocks:
            for side, ids, lens in (("src", src_ids, src_lens), ("tgt", tgt_ids, tgt_lens)):
                files[f"{side}.ids"].write(ids)
                starts = np.concatenate([[ends[side]], np.frombuffer(lens, "<i8")]).cumsum()
                files[f"{side}.starts"].write(starts[1:].astype("<i8").tobytes())
                ends[side] = int(starts[-1])
        sizes = {name: file.tell() for name, file in files.items()}
        entries = {
            name: Entry(dtypes[name], [size // DTYPES[dtypes[name]].itemsize], size) for name, size in sizes.items()
        }
        header = header_of(entries, {"key": path.stem, "manifest": json.dumps(asdict(manifest()))})
        write_certified(path, header, sum(sizes.values()), chain.from_iterable(map(_content, files.values())))


def _content(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    return iter(lambda: file.read(_CHUNK_BYTES), b"")
