"""Pairs of ids on disk: shards, each an even sample of a corpus, and the blocks that they are put together from.

A shard is a safetensors file that carries its own hash, with four arrays: the ids of either side, end to end, and how
many each row has. A block holds rows for all shards, group by group; blocks are there during preparation alone.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transduce.files import atomic as files
from transduce.files.certified import Entry, check_digest, damaged, header_of, read_header, write_certified

_SIDES = ("src", "tgt")
_DTYPES: dict[str, np.dtype[Any]] = {"U16": np.dtype("<u2"), "I32": np.dtype("<i4")}


@dataclass(frozen=True)
class Rows:
    """One side of some pairs: `lens[k]` ids for row k, end to end."""

    ids: NDArray[np.integer]
    lens: NDArray[np.integer]

    def select(self, rows: NDArray[np.intp]) -> "Rows":
        """These rows, in this order."""
        lens = self.lens[rows].astype(np.int64)
        starts = (np.cumsum(self.lens, dtype=np.int64) - self.lens)[rows]
        positions = np.repeat(starts - (np.cumsum(lens) - lens), lens) + np.arange(lens.sum())
        return Rows(self.ids[positions], self.lens[rows])


def dtype_for(num_ids: int) -> str:
    """The smallest type, in the words of safetensors, that holds ids below `num_ids`."""
    return "U16" if num_ids <= 1 << 16 else "I32"


def write_block(path: Path, sides: Sequence[Rows], *, num_groups: int, dtype: str) -> None:
    """Writes rows by group: row j is in group j mod `num_groups`."""
    num_rows = len(sides[0].lens)
    order = np.concatenate([np.arange(group, num_rows, num_groups) for group in range(num_groups)])
    grouped = [side.select(order) for side in sides]
    firsts = _group_starts(num_rows, num_groups)
    with files.explained_write_errors(path), path.open("xb") as file:
        for side in grouped:  # where the ids of each group begin
            file.write(np.concatenate([[0], np.cumsum(side.lens, dtype=np.int64)])[firsts].astype("<i8").tobytes())
        for side in grouped:
            file.write(side.lens.astype("<i4").tobytes())
            file.write(side.ids.astype(_DTYPES[dtype]).tobytes())


def read_group(path: Path, group: int, *, num_rows: int, num_groups: int, dtype: str) -> list[Rows]:
    """One group of a block of `num_rows` rows."""
    firsts = _group_starts(num_rows, num_groups)
    first, end = int(firsts[group]), int(firsts[group + 1])
    size = _DTYPES[dtype].itemsize
    with files.explained_read_errors(path), path.open("rb") as file:
        tables = [np.frombuffer(file.read(8 * len(firsts)), dtype="<i8") for _ in _SIDES]
        position = file.tell()
        sides = []
        for table in tables:
            file.seek(position + 4 * first)
            lens = np.frombuffer(file.read(4 * (end - first)), dtype="<i4")
            position += 4 * num_rows
            file.seek(position + size * int(table[group]))
            ids = np.frombuffer(file.read(size * int(table[group + 1] - table[group])), dtype=_DTYPES[dtype])
            position += size * int(table[-1])
            sides.append(Rows(ids, lens))
    return sides


def _group_starts(num_rows: int, num_groups: int) -> NDArray[np.int64]:
    """The number of the first row of each group, and at last the number of rows."""
    sizes = (num_rows - np.arange(num_groups) + num_groups - 1) // num_groups
    return np.concatenate([[0], np.cumsum(np.maximum(sizes, 0))])


def write_shard(path: Path, parts: Sequence[Sequence[Rows]], *, dtype: str, metadata: dict[str, str]) -> str:
    """Writes the parts, each of two sides, one after the other as one shard; returns its hash."""
    entries: dict[str, Entry] = {}
    arrays = []
    for name, side in zip(_SIDES, zip(*parts, strict=True), strict=True):
        for what, stored in (("lens", "I32"), ("ids", dtype)):
            array = np.concatenate([getattr(rows, what) for rows in side]).astype(_DTYPES[stored])
            entries[f"{name}.{what}"] = Entry(stored, [len(array)], array.nbytes)
            arrays.append(array)
    # Wide elements first: then every array lies at a multiple of its element's size.
    order = sorted(range(len(arrays)), key=lambda k: -arrays[k].itemsize)
    names = list(entries)
    header = header_of({names[k]: entries[names[k]] for k in order}, metadata)
    num_bytes = sum(array.nbytes for array in arrays)
    return write_certified(path, header, num_bytes, (arrays[k].data for k in order))


def read_shard(path: Path, *, sha256: str, mend: str) -> list[Rows]:
    """Both sides of a shard, mapped into memory, after all its bytes were found to have that hash."""
    if check_digest(path, mend) != sha256:
        raise damaged(path, "it is another shard than the one that was written here", mend)
    header, start = read_header(path)
    with path.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def array(name: str) -> NDArray[np.integer]:
        first, end = header[name]["data_offsets"]
        return np.frombuffer(content[start + first : start + end], dtype=_DTYPES[header[name]["dtype"]])

    return [Rows(array(f"{side}.ids"), array(f"{side}.lens")) for side in _SIDES]
