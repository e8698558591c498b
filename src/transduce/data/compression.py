"""Decompression of gzip, xz and Zstandard files, recognized by their first bytes and not by their names."""

import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from transduce.errors import DataError

_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_STARTS = {".gz": _GZIP, ".xz": _XZ, ".zst": _ZSTD}
COMPRESSED_SUFFIXES = tuple(_STARTS)
# Parallel compressors (pzstd) begin with a "skippable" frame, numbered in the low half of its first byte.
_ZSTD_STARTS = (_ZSTD, *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60)))
CHUNK_BYTES = 1 << 16
# Small, as a chunk can be ten thousand times as long when it is decompressed.
_PACKED_BYTES = 1 << 12


def decompressed(chunks: Iterable[bytes], name: str, *, most: int) -> bytes:
    """The content of a file in chunks, see `decompressed_chunks`. Raises DataError if it has over `most` bytes."""
    content = bytearray()
    for chunk in decompressed_chunks(iter(chunks), name):
        content += chunk
        if len(content) > most:
            raise DataError(f"{name}: more than {most:,} bytes to read at once. Decompress it, and look at it.")
    return bytes(content)


def split_chunks(chunks: Iterable[bytes], size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The same bytes in chunks of at most `size` bytes."""
    return (chunk[start : start + size] for chunk in chunks for start in range(0, len(chunk), size))


def decompressed_chunks(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """A file in chunks, decompressed if it begins as gzip, xz or Zstandard does; the first must hold a few bytes.

    Raises DataError, which mentions `name`, when it reaches the end unless every compressed stream is complete and
    nothing but streams follows.
    """
    first = next(chunks, b"")
    chunks = chain([first] if first else [], chunks)
    if first.startswith(_GZIP):
        return _unpack(chunks, name, "gzip", lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS))
    if first.startswith(_XZ):
        return _unpack(chunks, name, "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ))
    if first.startswith(_ZSTD_STARTS):
        return _unpack(chunks, name, "Zstandard", _zstd_decompressor(name))
    _refuse_unlike_its_name(first, name)
    return chunks


def _refuse_unlike_its_name(start: bytes, name: str) -> None:
    suffix = Path(name).suffix.lower()
    if suffix in _STARTS and _STARTS[suffix].startswith(start):  # truncated before it could be recognized
        raise DataError(f"{name}: {len(start)} bytes are not a {suffix} file. Copy or download it again.")


def _unpack(chunks: Iterator[bytes], name: str, kind: str, new_decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress all streams, one after the other, each with a decompressor as zlib, lzma and zstandard have it.

    Written out because `lzma.decompress` ignores trailing garbage, and Zstandard's reader a missing end.
    """
    chunks = split_chunks(chunks, _PACKED_BYTES)
    data = next(chunks)
    try:
        while data:
            stream = new_decompressor()
            yield stream.decompress(data)
            while not stream.eof:
                if not (data := next(chunks, b"")):
                    raise EOFError("it is truncated")
                yield stream.decompress(data)
            data = stream.unused_data or next(chunks, b"")
            if not data.strip(b"\0"):  # gzip and xz files may be padded with zeros; no stream begins with them
                rest = next((chunk for chunk in chunks if chunk.strip(b"\0")), b"")
                data = data + rest if rest else b""
    except (MemoryError, OSError):
        raise
    except Exception as error:  # each library has its own error class, and zstandard may be absent
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: damaged {kind} file: {reason}. Copy or download it again.") from None


def _zstd_decompressor(name: str) -> Callable[[], Any]:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{name}: Zstandard files need an extra: pip install 'transduce[zstd]'") from None
    return lambda: zstandard.ZstdDecompressor().decompressobj()
