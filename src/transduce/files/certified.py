"""The bytes of safetensors files that carry their own hash; `tensors` has the tensors,
`data.large.prepared_file` the arrays.

The SHA-256 of all bytes stands in the header, computed while the 64 digits of the hash itself read as zeros.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transduce.errors import DamagedFileError
from transduce.files.atomic import replacing
from transduce.files.system_errors import explained_read_errors, explained_write_errors

NO_DIGEST = b"0" * 64
_MAX_HEADER_BYTES = 100_000_000  # of the safetensors format
_HEADER_START = b'{"__metadata__":{"sha256":"'


class Entry(NamedTuple):
    """One array of a file: its type in the words of the format ("F32"), its shape, its size in bytes."""

    dtype: str
    shape: list[int]
    num_bytes: int


def header_of(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The file up to its first array; the arrays follow it in the order of `entries`."""
    if "sha256" in metadata:
        raise ValueError("The metadata key 'sha256' is taken: the hash of the file itself is stored under it.")
    content: dict[str, Any] = {"__metadata__": {"sha256": NO_DIGEST.decode()} | dict(sorted(metadata.items()))}
    end = 0
    for name, (dtype, shape, num_bytes) in entries.items():
        start, end = end, end + num_bytes
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"The header has {len(text):,} bytes; readers accept up to {_MAX_HEADER_BYTES:,}.")
    return len(text).to_bytes(8, "little") + text


def write_certified(path: Path, header: bytes, num_bytes: int, arrays: Iterable[Any]) -> str:
    """Writes the file, whole or not at all; returns its hash. `arrays` are buffers, of `num_bytes` together."""
    with explained_write_errors(path, len(header) + num_bytes), replacing(path) as file:
        digest = hashlib.sha256(header)
        file.write(header)
        for data in arrays:
            digest.update(data)
            file.write(data)
        file.seek(8 + len(_HEADER_START))
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def check_digest(path: Path, mend: str) -> str:
    """The hash that the file states. Raises DamagedFileError, ending in `mend`, unless its bytes have that hash."""
    with explained_read_errors(path), path.open("rb") as file:
        start, stated = file.read(8 + len(_HEADER_START)), file.read(64)
        digest = hashlib.sha256(start + NO_DIGEST)
        if start[8:] != _HEADER_START or hashlib.file_digest(file, lambda: digest).hexdigest().encode() != stated:
            raise damaged(path, "its SHA-256 is not the one it states", mend)
    return stated.decode()


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """What the header says, by name, and where the arrays begin. For a file whose hash was checked."""
    with explained_read_errors(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def damaged(path: Path | str, reason: str, mend: str) -> DamagedFileError:
    """The error for a file that is not as it was written: why one thinks so, and what to do."""
    return DamagedFileError(f"{path} is damaged: {reason}. {mend}")
