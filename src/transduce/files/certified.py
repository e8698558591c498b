"""Safetensors files that carry their own hash, as bytes; `files.tensors` and `data.large` give them meaning.

The header holds the SHA-256 of all bytes, computed while the 64 digits of the hash itself read as zeros.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from transduce.files.atomic import replacing
from transduce.files.content import damaged, open_regular
from transduce.files.system_errors import explained_read_errors, explained_write_errors

NO_DIGEST = b"0" * 64
_MAX_HEADER_BYTES = 5_000_000  # of some 40,000 arrays: what declares more takes memory before anything is looked at
_HEADER_START = b'{"__metadata__":{"sha256":"'


class Entry(NamedTuple):
    """One array of a file: dtype as the format names it ("F32"), shape, size in bytes."""

    dtype: str
    shape: list[int]
    num_bytes: int


def header_of(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The header of a file whose arrays follow in the order of `entries`, with zeros for the hash."""
    if "sha256" in metadata:
        raise ValueError("The metadata key 'sha256' is taken: the hash of the file itself is stored under it.")
    content: dict[str, Any] = {"__metadata__": {"sha256": NO_DIGEST.decode()} | dict(sorted(metadata.items()))}
    end = 0
    for name, (dtype, shape, num_bytes) in entries.items():
        start, end = end, end + num_bytes
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8, as the format asks
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"The header has {len(text):,} bytes; readers accept up to {_MAX_HEADER_BYTES:,}.")
    return len(text).to_bytes(8, "little") + text


def write_certified(path: Path, header: bytes, num_bytes: int, arrays: Iterable[Any]) -> str:
    """Write the file, whole or not at all, and return its hash. `arrays` are buffers of `num_bytes` in all."""
    with explained_write_errors(path, len(header) + num_bytes), replacing(path) as file:
        digest = hashlib.sha256(header)
        file.write(header)
        for data in arrays:
            digest.update(data)
            file.write(data)
        file.seek(8 + len(_HEADER_START))
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def check_digest(path: Path, advice: str) -> str:
    """The hash that the file states. Raises DamagedFileError, ending in `advice`, unless its bytes have that hash."""
    with explained_read_errors(path), open_regular(path) as file:
        refuse_long_header(file, path, advice)
        start, stated = file.read(8 + len(_HEADER_START)), file.read(64)
        digest = hashlib.sha256(start + NO_DIGEST)
        if start[8:] != _HEADER_START or hashlib.file_digest(file, lambda: digest).hexdigest().encode() != stated:
            raise damaged(path, "its SHA-256 does not match the one it records", advice)
    return stated.decode()


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a file whose hash was checked, and the position of the first array."""
    with explained_read_errors(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def refuse_long_header(file: IO[bytes], path: Path, advice: str) -> None:
    """Raise DamagedFileError if an open safetensors file announces a header that is longer than any of ours."""
    if int.from_bytes(file.read(8), "little") > _MAX_HEADER_BYTES:
        raise damaged(path, f"its header is longer than the {_MAX_HEADER_BYTES:,} bytes that are read", advice)
    file.seek(0)
