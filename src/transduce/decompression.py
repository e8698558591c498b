"""The content of files packed by gzip, xz or Zstandard, told from their first bytes and not from their names."""

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from transduce.errors import DataError

_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_STARTS = {".gz": _GZIP, ".xz": _XZ, ".zst": _ZSTD}
COMPRESSED_SUFFIXES = tuple(_STARTS)
# A file of parallel compressors (pzstd) starts with a "skippable" frame, numbered in the low half of its first byte.
_ZSTD_STARTS = (_ZSTD, *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60)))
_CHUNK_BYTES = 1 << 20  # each stream's end copies the rest of its chunk: small, or many small streams take long


def decompressed(raw: bytes, name: str) -> bytes:
    """`raw` unpacked if it starts as gzip, xz or Zstandard does, else `raw` itself; `name` is for the message.

    Raises DataError unless every compressed stream is whole and nothing but streams follows.
    """
    if raw.startswith(_GZIP):
        return _unpack(raw, name, "gzip", lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS))
    if raw.startswith(_XZ):
        return _unpack(raw, name, "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ))
    if raw.startswith(_ZSTD_STARTS):
        return _unpack(raw, name, "Zstandard", _zstd_decompressor(name))
    suffix = Path(name).suffix.lower()
    if suffix in _STARTS and _STARTS[suffix].startswith(raw):  # cut before it could be recognised
        raise DataError(f"{name}: {len(raw)} bytes are no {suffix} file. Copy or download it again.")
    return raw


class _Decompressor(Protocol):
    """What zlib, lzma and zstandard have in common: one stream, and the bytes that follow it."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _unpack(raw: bytes, name: str, kind: str, new_decompressor: Callable[[], _Decompressor]) -> bytes:
    """All streams of `raw`, one after the other.

    Written out because `lzma.decompress` passes over trailing garbage and Zstandard's reader over a missing end.
    """
    parts, position = [], 0
    try:
        while position < len(raw):
            stream = new_decompressor()
            while not stream.eof and position < len(raw):
                chunk = raw[position : position + _CHUNK_BYTES]
                parts.append(stream.decompress(chunk))
                position += len(chunk)
            position -= len(stream.unused_data)
            if not stream.eof:
                raise EOFError("it ends too early")
            if not raw[position : position + _CHUNK_BYTES].strip(b"\0") and not raw[position:].strip(b"\0"):
                break  # gzip and xz files may be padded with zeros
    except MemoryError:
        raise
    except Exception as error:  # each library has its own error class, and zstandard may be absent
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: damaged {kind} file: {reason}. Copy or download it again.") from None
    return b"".join(parts)


def _zstd_decompressor(name: str) -> Callable[[], _Decompressor]:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{name}: Zstandard files need an extra: pip install 'transduce[zstd]'") from None
    return lambda: zstandard.ZstdDecompressor().decompressobj()
