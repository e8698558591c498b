"""Text files that are not to be held in memory: whole lines, so many at a time, and one pass that checks and counts.

What they say is what `pairs` says of them, and so are the errors.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transduce.data.compression import CHUNK_BYTES, decompressed_chunks
from transduce.data.pairs import LARGE_BYTES, digested, next_lines, whole_lines
from transduce.data.parsing import BYTE_ORDER_MARK, refuse_nul, repairs
from transduce.files.system_errors import explained_read_errors


@dataclass(frozen=True)
class ScannedFile:
    """What one pass over a file found."""

    sha256: str  # of its bytes on disk
    num_lines: int
    num_rows: int  # lines up to the last one with text
    repairs: list[str]
    sample: list[str]  # every k-th line, where k is a power of two


def text_bytes(paths: Sequence[Path], most: int = LARGE_BYTES) -> int:
    """How much text the files hold, decompressed; they are read until it is more than `most`."""
    total = 0
    for path in paths:
        if path.exists() and not path.is_file():
            continue  # a pipe: what is looked at is gone for whoever reads it
        with explained_read_errors(path), path.open("rb") as file:
            for chunk in decompressed_chunks(iter(partial(file.read, CHUNK_BYTES), b""), str(path)):
                if (total := total + len(chunk)) > most:
                    return total
    return total


def line_blocks(name: str, digest: "hashlib._Hash", *, num_lines: int) -> Iterator[bytes]:
    """The text of a file, unpacked, `num_lines` lines at a time; `digest` takes in the bytes on disk.

    Raises DataError when it comes to compressed bytes that are damaged, or to a line without an end.
    """
    waiting, num_waiting = [b""], 0
    with explained_read_errors(Path(name)), Path(name).open("rb") as raw:
        for lines in whole_lines(digested(raw, digest), name):
            waiting.append(lines)
            num_waiting += lines.count(b"\n")
            while num_waiting >= num_lines:
                content = b"".join(waiting)
                rest = content.split(b"\n", num_lines)[-1]
                yield content[: len(content) - len(rest)]
                waiting, num_waiting = [rest], num_waiting - num_lines
    if content := b"".join(waiting):
        yield content


def scan(name: str, *, lines_per_block: int, most_sampled: int) -> ScannedFile:
    """Reads a file once, in pieces. Raises as `read_pairs` does."""
    digest = hashlib.sha256()
    num_lines = num_rows = num_crlf = 0
    has_mark, sample, step = False, list[str](), 1
    for content in line_blocks(name, digest, num_lines=lines_per_block):
        has_mark = has_mark or (not num_lines and content.startswith(BYTE_ORDER_MARK.encode()))
        num_crlf += content.count(b"\r\n")
        lines = next_lines(content, name, num_lines)
        refuse_nul(lines, name, num_lines)
        sample += lines[-num_lines % step :: step]
        while len(sample) > most_sampled:
            sample, step = sample[::2], 2 * step
        num_rows = next((num_lines + k for k in range(len(lines), 0, -1) if lines[k - 1]), num_rows)
        num_lines += len(lines)
    notes = repairs(name, has_mark=has_mark, num_crlf=num_crlf, num_lines=num_lines)
    return ScannedFile(digest.hexdigest(), num_lines, num_rows, notes, sample)
