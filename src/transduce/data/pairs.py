"""Parallel text from files: the one place where corpora are read.

A file is read as bytes and split on `\\n` only, so that line k is line k of `wc -l`, `paste` and `sed`; everything else
that some programs take for the end of a line (a lone `\\r`, VT, FF, U+0085, U+2028, U+2029) is text.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from transduce.data.compression import CHUNK_BYTES, decompressed, decompressed_chunks, split_chunks
from transduce.data.parsing import (
    BYTE_ORDER_MARK,
    Row,
    decode,
    normalized,
    parse_rows,
    refuse_no_pairs,
    refuse_nul,
    refuse_number_of_paths,
    refuse_other_content,
    refuse_two_of_pairs,
    refuse_unequal,
    repairs,
    unquoted,
    without_empty,
)
from transduce.errors import DataError, TransduceError
from transduce.files.system_errors import explained_read_errors

LARGE_BYTES = 256_000_000  # training files with more text than this are prepared on disk, not held in memory
MOST_LINE_BYTES = 1 << 24  # of streamed text: more is no sentence, and its ids take some hundred megabytes


@dataclass(frozen=True)
class Pairs:
    """Parallel text: `tgt[k]` is the target of `src[k]`."""

    src: list[str]
    tgt: list[str]
    skipped: dict[str, int]  # reason -> number of pairs left out, e.g. {"empty source": 3}
    notes: list[str]  # repairs made in reading, one line each
    sha256: dict[str, str]  # file, as given -> SHA-256 of its bytes on disk

    def __len__(self) -> int:
        return len(self.src)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, plain or compressed, without their ends (`\\n` or `\\r\\n`) and byte-order mark.

    Raises DataError if the bytes are not UTF-8 or incomplete, MissingInputError if there is no such file.
    """
    return _read_text(path)[0]


def iterate_blocks(chunks: Iterator[bytes], name: str) -> Iterator[list[str]]:
    """The lines of a text in chunks: after each chunk, the lines that it completes, if any.

    They are the lines of `read_lines`, but only an unfinished one is kept. Raises DataError, which names the line, when
    it reaches bytes that are not UTF-8 or incomplete, or a line of more than MOST_LINE_BYTES.
    """
    num_lines = 0
    for content in whole_lines(chunks, name):
        lines = next_lines(content, name, num_lines)
        num_lines += len(lines)
        yield lines


def whole_lines(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The text in chunks, decompressed: after each chunk the lines that it completes, and in the end the rest."""
    unfinished: list[bytes] = []
    num_lines = num_unfinished = 0
    # In small parts once more: a decompressed chunk can be a thousand times as long as it was.
    for chunk in split_chunks(decompressed_chunks(chunks, name)):
        end = chunk.rfind(b"\n") + 1
        content = b""
        if end:
            content = b"".join([*unfinished, chunk[:end]])
            num_lines += content.count(b"\n")
            unfinished, num_unfinished = [], 0
        unfinished.append(chunk[end:])
        num_unfinished += len(unfinished[-1])
        yield content
        if num_unfinished > MOST_LINE_BYTES:
            raise DataError(
                f"{name}, line {num_lines + 1}: no line end in {num_unfinished:,} bytes; a line may have at most "
                f"{MOST_LINE_BYTES:,}. Put each sentence on its own line."
            )
    yield b"".join(unfinished)


def next_lines(content: bytes, name: str, num_before: int) -> list[str]:
    """The lines in the next bytes of a file, after `num_before` lines. Raises DataError as `iterate_blocks` does."""
    if num_before == 0:
        refuse_other_content(content, name)
    text = decode(content, name, first_line=num_before + 1)
    lines = (text if num_before else text.removeprefix(BYTE_ORDER_MARK)).replace("\r\n", "\n").split("\n")
    if not lines[-1]:  # text after the last line end is a line
        lines.pop()
    return lines


def read_pairs(paths: Sequence[str | Path]) -> Pairs:
    """Parallel text from one file of pairs, or from two files in which line k of one belongs to line k of the other.

    One file is `.tsv` (source, tab, target) or `.jsonl` (one object per line with "source" and "target", or "src" and
    "tgt"); two are plain text under any name. All may be compressed by gzip, xz or Zstandard, recognized by
    their first bytes. Pairs with a side that is empty or all whitespace are skipped and counted.
    """
    refuse_number_of_paths(paths)
    names = [str(path) for path in paths]
    texts = {name: _read_text(Path(name)) for name in names}
    sides = [texts[name][0] for name in names]
    notes = [note for _, repairs, _ in texts.values() for note in repairs]
    for name, lines in zip(names, sides, strict=True):
        refuse_nul(lines, name)
    if len(sides) == 2:
        refuse_two_of_pairs(names, sides)
        refuse_unequal(names, [len(lines) for lines in sides])
        rows: Iterable[Row] = zip(*sides, strict=True)
    else:
        while sides[0] and not sides[0][-1]:
            sides[0].pop()  # editors like to add empty lines at the end
        as_written = list(parse_rows(names[0], sides[0], 0, are_all=True))
        rows = unquoted(as_written)
        notes += [f"{names[0]}: CSV quotes removed (.jsonl would keep them)"] * (rows is not as_written)
    src, tgt, skipped = without_empty(rows)
    refuse_no_pairs(len(src), skipped, names)
    return Pairs(src, tgt, skipped, notes, {name: sha256 for name, (_, _, sha256) in texts.items()})


def read_rows(name: str, sides: Sequence[list[str]], num_before: int) -> Iterable[Row]:
    """Rows from some lines of one file of pairs, see `parse_rows`, or of two parallel ones."""
    if len(sides) == 2:
        return zip(*sides, strict=False)  # a large file that lost some lines meanwhile is noticed by its hash
    return parse_rows(name, sides[0], num_before)


def extend_pairs(pairs: Pairs, more: Pairs) -> Pairs:
    """`pairs`, followed by the distinct pairs of `more` that are not among them."""
    known = set(zip(pairs.src, pairs.tgt, strict=True))
    new = [pair for pair in dict.fromkeys(zip(more.src, more.tgt, strict=True)) if pair not in known]
    skipped = Counter(pairs.skipped) + Counter(more.skipped) + Counter({"already there": len(more) - len(new)})
    return Pairs(
        pairs.src + [source for source, _ in new],
        pairs.tgt + [target for _, target in new],
        dict(skipped),
        pairs.notes + more.notes,
        pairs.sha256 | {f"{name} (more)": digest for name, digest in more.sha256.items()},
    )


def overlap_keys(src: Iterable[str], tgt: Iterable[str]) -> dict[str, list[str]]:
    """What rows are compared by, without regard to case and to the amount and kind of whitespace."""
    sources, targets = [normalized(line) for line in src], [normalized(line) for line in tgt]
    return {"pairs": list(map("\n".join, zip(sources, targets, strict=True))), "source": sources, "target": targets}


def count_overlap(train: Pairs, other: Pairs) -> dict[str, int]:
    """The number of rows of `other` that occur in `train`: as "pairs", by their "source", by their "target"."""
    wanted, there = overlap_keys(other.src, other.tgt), overlap_keys(train.src, train.tgt)
    seen = {name: set(keys).intersection(there[name]) for name, keys in wanted.items()}
    return {name: sum(map(seen[name].__contains__, keys)) for name, keys in wanted.items()}


def split_pairs(pairs: Pairs, *, valid: int, test: int, may_share_targets: bool = False) -> tuple[Pairs, Pairs, Pairs]:
    """Train, validation and test parts that share no source and no target, compared as in `count_overlap`.

    Rows with the same source or (unless parts `may_share_targets`, which labels are) the same target, directly or
    through others, form a group, and a group stays together. Groups are taken in the order of their SHA-256 while they
    fit into `test`, then `valid` rows, so the parts hold at most that many; the largest group always stays in train.
    The parts, and the order within each, depend on the set of rows and not on their order. Raises DataError if a
    requested part would be empty.
    """
    if valid < 0 or test < 0 or valid + test >= len(pairs):
        raise TransduceError(
            f"valid ({valid}) and test ({test}) must not be negative and must leave some of the "
            f"{len(pairs):,} pairs for training."
        )
    digests = [_digest(source, target) for source, target in zip(pairs.src, pairs.tgt, strict=True)]

    def group_digest(rows: list[int]) -> bytes:
        # Hashed again: the least of many hashes is small, so that large groups would always come first.
        return hashlib.sha256(min(digests[row] for row in rows)).digest()

    # An order by hash is as good as random, but needs no seed and does not change with the order of the rows.
    groups = sorted(_linked_rows(pairs.src, *([] if may_share_targets else [pairs.tgt])), key=group_digest)
    largest = max(range(len(groups)), key=lambda number: len(groups[number]))
    remaining = groups[:largest] + groups[largest + 1 :]
    test_rows, remaining = _take(remaining, test)
    valid_rows, remaining = _take(remaining, valid)
    for name, limit, rows in (("validation", valid, valid_rows), ("test", test, test_rows)):
        if limit and not rows:
            raise DataError(
                f"No {name} part of {limit:,} rows can be held out: the {len(pairs):,} pairs fall into {len(groups):,} "
                f"groups linked by equal sources or targets, the largest of {len(groups[largest]):,}. "
                f"Give a {name} file of your own."
            )
    train_rows = groups[largest] + [row for rows in remaining for row in rows]

    def part(rows: list[int]) -> Pairs:
        ordered = sorted(rows, key=lambda row: digests[row])
        return Pairs([pairs.src[row] for row in ordered], [pairs.tgt[row] for row in ordered], {}, [], pairs.sha256)

    return part(train_rows), part(valid_rows), part(test_rows)


def _read_text(path: Path) -> tuple[list[str], list[str], str]:
    """The lines of a file, a note on each repair, and the SHA-256 of its bytes on disk."""
    digest = hashlib.sha256()
    with explained_read_errors(path), path.open("rb") as raw:
        # Of a compressed file or a pipe nobody knows how much text it holds.
        content = decompressed(digested(raw, digest), str(path), most=max(LARGE_BYTES, path.stat().st_size))
    lines = next_lines(content, str(path), 0)
    has_mark = content.startswith(BYTE_ORDER_MARK.encode())
    notes = repairs(str(path), has_mark=has_mark, num_crlf=content.count(b"\r\n"), num_lines=len(lines))
    return lines, notes, digest.hexdigest()


def digested(raw: BinaryIO, digest: "hashlib._Hash") -> Iterator[bytes]:
    """The bytes of a file in chunks, which `digest` takes in."""
    while chunk := raw.read(CHUNK_BYTES):
        digest.update(chunk)
        yield chunk


def _digest(source: str, target: str) -> bytes:
    # The length keeps ("ab", "c") apart from ("a", "bc").
    return hashlib.sha256(f"{len(source)} {source}{target}".encode()).digest()


def _linked_rows(*sides: Sequence[str]) -> list[list[int]]:
    """The rows in groups connected by equal texts on a side: the components of a graph, by union-find."""
    parents = list(range(len(sides[0])))  # a forest: each group is a tree, and its root stands for it

    def root(row: int) -> int:
        while parents[row] != row:
            # Path halving: every other node on the way is attached to its grandparent, so that trees stay flat.
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for side in sides:
        first_with: dict[str, int] = {}
        for row, text in enumerate(side):
            # Union with the first row of the same text; rows that share one are so joined without a look at all pairs.
            parents[root(row)] = root(first_with.setdefault(normalized(text), row))
    groups: dict[int, list[int]] = {}
    for row in range(len(parents)):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def _take(groups: list[list[int]], num_rows: int) -> tuple[list[int], list[list[int]]]:
    """The rows of the first groups that fit into `num_rows`, and the remaining groups."""
    taken: list[int] = []
    remaining = []
    for rows in groups:
        if len(taken) + len(rows) <= num_rows:
            taken += rows
        else:
            remaining.append(rows)
    return taken, remaining
