"""Text files that are not to be held in memory: one pass that checks and measures them, then any block of lines.

What they say is what `reading` says of them, and so are the errors.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transduce.data.compression import CHUNK_BYTES, decompressed_chunks, is_compressed
from transduce.data.parsing import (
    BYTE_ORDER_MARK,
    RowReader,
    decode,
    in_pieces,
    mendings,
    refuse_long_line,
    refuse_other_content,
    row_reader,
    split_lines,
)
from transduce.errors import DataError
from transduce.files import atomic as files

_MARK = BYTE_ORDER_MARK.encode()
_NEWLINE = ord("\n")
_SCANNED_BYTES = 1 << 20  # whole lines are looked at in pieces of about this size
_UNPACKED = 4  # a compressed file counts as so many times its size


@dataclass(frozen=True)
class ScannedFile:
    """What one pass over a file found; block k is the bytes from `starts[k]` to `starts[k + 1]` of `plain`."""

    name: str  # as given
    plain: str  # where its text is unpacked: itself, or a temporary file
    sha256: str  # of its bytes on disk
    num_lines: int
    num_rows: int  # lines up to the last one with text
    mendings: list[str]
    starts: list[int]


def text_bytes(paths: Sequence[Path]) -> int:
    """How much text the files hold, roughly: a function of their bytes alone."""
    total = 0
    for path in paths:
        if path.exists() and not path.is_file():
            continue  # a pipe: what is looked at is gone for whoever reads it
        with files.explained_read_errors(path), path.open("rb") as file:
            total += path.stat().st_size * (_UNPACKED if is_compressed(file.read(8)) else 1)
    return total


def scan(name: str, *, lines_per_block: int, unpacked: Path) -> ScannedFile:
    """Reads a file once, in pieces. A compressed one is unpacked into `unpacked`. Raises as `read_pairs` does."""
    digest = hashlib.sha256()
    with files.explained_read_errors(Path(name)), Path(name).open("rb") as raw:
        is_packed = is_compressed(raw.read(8))
        raw.seek(0)
        chunks = decompressed_chunks(_digested(raw, digest), name)
        counts = _Counts(name, lines_per_block)
        if not is_packed:
            counts.add_all(chunks)
            plain = Path(name)
        else:
            plain = unpacked
            with files.explained_write_errors(unpacked), unpacked.open("xb") as copy:
                counts.add_all(_copied(chunks, copy))
    starts = [*counts.starts, counts.num_bytes] if counts.num_lines else [0]
    told = mendings(has_mark=counts.has_mark, num_crlf=counts.num_crlf, num_lines=counts.num_lines)
    return ScannedFile(name, str(plain), digest.hexdigest(), counts.num_lines, counts.num_rows, told, starts)


def rows_of_block(scanned: Sequence[ScannedFile], block: int, lines_per_block: int) -> Iterator[tuple[str, str]]:
    """The rows of a block, from one file of pairs or two parallel ones. Raises DataError when it comes to a bad one."""
    first = block * lines_per_block
    sides = [_block_lines(file, block, first_line=first + 1) for file in scanned]
    if len(sides) == 2:
        yield from zip(*sides, strict=True)
        return
    name = scanned[0].name
    read_row = row_reader(name)
    for number, line in enumerate(sides[0][: max(0, scanned[0].num_rows - first)], start=first + 1):
        yield read_row(line, f"{name}, line {number}")


def sampled_rows(scanned: Sequence[ScannedFile], lines_per_block: int, most: int) -> Iterator[tuple[str, str]]:
    """At most so many rows, as many from every block; rows that cannot be read are left out here."""
    num_rows = scanned[0].num_rows if len(scanned) == 1 else scanned[0].num_lines
    chosen = np.linspace(0, num_rows - 1, min(most, num_rows)).astype(np.int64)
    read_row = row_reader(scanned[0].name) if len(scanned) == 1 else None
    for block in range(len(scanned[0].starts) - 1):
        first = block * lines_per_block
        num_chosen = int(np.count_nonzero((chosen >= first) & (chosen < first + lines_per_block)))
        sides = [_block_lines(file, block, most=num_chosen) for file in scanned]  # the first ones: no need of the rest
        if read_row is None:
            yield from zip(*sides, strict=True)
        else:
            yield from _readable(read_row, sides[0])


def _readable(read_row: RowReader, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        try:
            yield read_row(line, "")
        except DataError:
            continue  # told, with its line, when all rows are read


def _block_lines(file: ScannedFile, block: int, *, first_line: int = 1, most: int | None = None) -> list[str]:
    """The lines of a block, or the first `most` of them; its first line is line `first_line` of the file."""
    num_bytes = file.starts[block + 1] - file.starts[block]
    with files.explained_read_errors(Path(file.plain)), Path(file.plain).open("rb") as text:
        text.seek(file.starts[block])
        if most is None:
            content = text.read(num_bytes)
            if len(content) != num_bytes:
                raise changed(file.name)
        else:
            content = b"".join(islice(text, most))
    return split_lines(decode(content, file.name, first_line=first_line))


def changed(name: str) -> DataError:
    """The error for a file that did not hold still."""
    return DataError(f"{name} changed while it was read: start again once nothing writes to it.")


def _digested(raw: BinaryIO, digest: "hashlib._Hash") -> Iterator[bytes]:
    while chunk := raw.read(CHUNK_BYTES):
        digest.update(chunk)
        yield chunk


def _copied(chunks: Iterator[bytes], copy: BinaryIO) -> Iterator[bytes]:
    for chunk in chunks:
        copy.write(chunk)
        yield chunk


class _Counts:
    """What is counted while whole lines go by."""

    def __init__(self, name: str, lines_per_block: int) -> None:
        self.name = name
        self.lines_per_block = lines_per_block
        self.num_bytes = self.num_lines = self.num_rows = self.num_crlf = 0
        self.has_mark = False
        self.starts: list[int] = []

    def add_all(self, chunks: Iterator[bytes]) -> None:
        """Counts a whole file."""
        waiting: list[bytes] = []  # whole lines, until there are enough of them, and the beginning of another
        num_waiting = num_lines = num_unfinished = 0
        is_first = True
        for piece in in_pieces(chunks):
            end = piece.rfind(b"\n") + 1
            num_lines += piece.count(b"\n")
            num_unfinished = len(piece) - end if end else num_unfinished + len(piece)
            refuse_long_line(num_unfinished, self.name, num_lines + 1)
            if end and num_waiting + end >= _SCANNED_BYTES:
                self._add(b"".join([*waiting, piece[:end]]), is_first)
                is_first = False
                waiting, num_waiting = [piece[end:]], num_unfinished
            else:
                waiting.append(piece)
                num_waiting += len(piece)
        self._add(b"".join(waiting), is_first)

    def _add(self, content: bytes, is_first: bool) -> None:
        if is_first:
            refuse_other_content(content, self.name)
        decode(content, self.name, first_line=self.num_lines + 1)
        if is_first and content.startswith(_MARK):
            self.has_mark = True
            self.num_bytes = len(_MARK)
            content = content.removeprefix(_MARK)
        if not content:
            return
        line_starts = np.flatnonzero(np.frombuffer(content, dtype=np.uint8) == _NEWLINE) + 1
        line_starts = np.concatenate([[0], line_starts[line_starts < len(content)]])
        num_before, self.num_lines = self.num_lines, self.num_lines + len(line_starts)
        first_of_block = -num_before % self.lines_per_block
        self.starts += (line_starts[first_of_block :: self.lines_per_block] + self.num_bytes).tolist()
        if num_text := len(line_starts) - _num_empty_at_end(content):
            self.num_rows = num_before + num_text
        self.num_crlf += content.count(b"\r\n")
        self.num_bytes += len(content)


def _num_empty_at_end(content: bytes) -> int:
    """How many of the last lines are empty."""
    found, end = 0, len(content)
    while end:
        width = 2 if content.endswith(b"\r\n", 0, end) else 1
        if content[end - 1] != _NEWLINE or (end > width and content[end - width - 1] != _NEWLINE):
            break
        found, end = found + 1, end - width
    return found
