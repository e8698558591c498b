"""Parsing of a corpus: bytes to text, lines and rows of two sides, and an error for all that can be wrong with them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transduce.data.compression import COMPRESSED_SUFFIXES
from transduce.errors import DataError, TransduceError

BYTE_ORDER_MARK = "\ufeff"
MOST_LINE_BYTES = 1 << 24  # of streamed text: more is no sentence, and its ids take some hundred megabytes
_MOST_CHUNK_BYTES = 1 << 16  # examined together: a decompressed chunk can be a thousand times as long as it was
_MOST_KEYS_SHOWN = 8

# First bytes -> format, advice. UTF-32 little-endian begins as UTF-16 does, so it comes before it.
_REFUSED = {
    b"\xff\xfe\x00\x00": ("UTF-32 text", "Convert it with `iconv -f UTF-32 -t UTF-8`."),
    b"\x00\x00\xfe\xff": ("UTF-32 text", "Convert it with `iconv -f UTF-32 -t UTF-8`."),
    b"\xff\xfe": ("UTF-16 text", "Convert it with `iconv -f UTF-16 -t UTF-8`."),
    b"\xfe\xff": ("UTF-16 text", "Convert it with `iconv -f UTF-16 -t UTF-8`."),
    b"PK\x03\x04": ("a zip archive or an office document", "Unpack it, or save the sheet as tab-separated UTF-8 text."),
    b"BZh": ("a bzip2 file", "Unpack it with `bunzip2`; .gz, .xz and .zst are read as they are."),
}

RowReader = Callable[[str, str], tuple[str, str]]  # a line, and its place for errors -> source and target


def refuse_number_of_paths(paths: Sequence[object]) -> None:
    """Raise TransduceError unless there are one or two paths."""
    if len(paths) not in (1, 2) or isinstance(paths, str):
        number = "a bare string" if isinstance(paths, str) else f"{len(paths)} paths"
        raise TransduceError(
            f"Pairs are read from a list of one file (.tsv or .jsonl) or of two parallel text files, not from {number}."
        )


def refuse_other_content(start: bytes, name: str) -> None:
    """Raise DataError if a file begins as a known format does that is not UTF-8 text."""
    for mark, (kind, advice) in _REFUSED.items():
        if start.startswith(mark):
            raise DataError(f"{name}: this is {kind}, not UTF-8 text. {advice}")


def refuse_nul(lines: Iterable[str], name: str, num_before: int = 0) -> None:
    """Raise DataError at a line with the character NUL: ASCII text in UTF-16 passes for UTF-8 that is full of them."""
    if number := next((number for number, line in enumerate(lines, num_before + 1) if "\0" in line), 0):
        raise DataError(
            f"{name}, line {number}: the character NUL, which is in no text. If the file is UTF-16, convert it with "
            "`iconv -f UTF-16BE -t UTF-8` (or UTF-16LE), else take it out with `tr -d '\\000'`."
        )


def decode(content: bytes, name: str, *, first_line: int = 1) -> str:
    """The text of whole lines from line `first_line` of the file on. Raises DataError if it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + first_line
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {line}, byte {column}: {content[error.start]:#04x} is not UTF-8 here ({error.reason}). "
            "Correct the line, or convert the file with `iconv -f ENCODING -t UTF-8`."
        ) from None


def split_lines(text: str) -> list[str]:
    """The lines without their ends, `\\n` or `\\r\\n`; text after the last line end is a line if it is not empty."""
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def split_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks of bounded size."""
    size = _MOST_CHUNK_BYTES
    return (chunk[start : start + size] for chunk in chunks for start in range(0, len(chunk), size))


def refuse_long_line(num_bytes: int, name: str, line: int) -> None:
    """Raise DataError if an unfinished line of streamed text already has more than MOST_LINE_BYTES."""
    if num_bytes > MOST_LINE_BYTES:
        raise DataError(
            f"{name}, line {line}: no line end in {num_bytes:,} bytes, and a line may have {MOST_LINE_BYTES:,}. Give "
            "one sentence a line."
        )


def repairs(*, has_mark: bool, num_crlf: int, num_lines: int) -> list[str]:
    """One line for each kind of repair made in reading a file."""
    notes = ["byte-order mark removed"] if has_mark else []
    if num_crlf:
        share = "" if num_crlf >= num_lines - 1 else f" ({num_crlf:,} of {num_lines:,} lines)"
        notes.append(f"CRLF line ends removed{share}")
    return notes


def refuse_unequal(names: Sequence[str], num_lines: Sequence[int]) -> None:
    """Raise DataError if two parallel files differ in their numbers of lines."""
    if num_lines[0] != num_lines[1]:
        raise DataError(
            f"{names[0]} has {num_lines[0]:,} lines and {names[1]} has {num_lines[1]:,}: line k of one must belong to "
            "line k of the other."
        )


def row_reader(name: str) -> RowReader:
    """The reader of rows for a file of pairs, by its suffix. Raises TransduceError for any other suffix."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    readers = {".tsv": _tsv_row, ".jsonl": _jsonl_row}
    read_row = readers.get(suffixes[-1] if suffixes else "")
    if read_row is None:
        raise TransduceError(
            f"{name}: one file of pairs must be named .tsv (source, tab, target) or .jsonl; "
            "for two parallel text files give both."
        )
    return read_row


def without_empty(rows: Iterable[tuple[str, str]]) -> tuple[list[str], list[str], dict[str, int]]:
    """Sources and targets of the rows in which neither is empty, and the number of other rows by reason."""
    src, tgt = [], []
    skipped: Counter[str] = Counter()
    for source, target in rows:
        if not source or source.isspace():
            skipped["empty source"] += 1
        elif not target or target.isspace():
            skipped["empty target"] += 1
        else:
            src.append(source)
            tgt.append(target)
    return src, tgt, dict(skipped)


def refuse_no_pairs(num_pairs: int, skipped: Mapping[str, int], names: Sequence[str]) -> None:
    """Raise DataError if there is nothing to learn from."""
    files = " and ".join(names)
    if not num_pairs and skipped:
        raise DataError(f"{files}: no pair left: {', '.join(f'{n} with {reason}' for reason, n in skipped.items())}.")
    if not num_pairs:
        raise DataError(f"{files}: no pairs: the file is empty.")


def refuse_all_too_long(num_pairs: int, *, max_len: int, shortest: int) -> None:
    """Raise DataError if even the shortest pair, by its longer side in ids, is longer than `max_len`."""
    if num_pairs and shortest > max_len:
        raise DataError(
            f"No pair is left: in each of the {num_pairs:,} a side is longer than max_len ({max_len}) ids; "
            f"the shortest pair has {shortest:,}. Raise max_len, or split the texts into sentences."
        )


def normalized(text: str) -> str:
    """A text with case folded and each run of whitespace made one space, for comparisons."""
    return " ".join(text.casefold().split())


def _tsv_row(line: str, place: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) == 2:
        return columns[0], columns[1]
    if len(columns) == 1:
        raise DataError(f"{place}: 1 column found, 2 needed: source and target with a tab between them.")
    raise DataError(
        f"{place}: {len(columns)} columns found, 2 needed: source and target with a tab between them. "
        "If these are the first two, cut them out with `cut -f1,2`."
    )


def _jsonl_row(line: str, place: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error.msg} at character {error.colno}.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of nested brackets
        raise DataError(f"{place}: not JSON that can be read ({type(error).__name__}).") from None
    expected = 'an object with the strings "source" and "target" (or "src" and "tgt")'
    if not isinstance(row, dict):
        raise DataError(f"{place}: {expected} is needed, found {_json_type(row)}.")
    for source_key, target_key in (("source", "target"), ("src", "tgt")):
        if source_key in row and target_key in row:
            return _string(row, source_key, place), _string(row, target_key, place)
    shown = [json.dumps(key) for key in list(row)[:_MOST_KEYS_SHOWN]] + ["..."] * (len(row) > _MOST_KEYS_SHOWN)
    raise DataError(f"{place}: {expected} is needed, found {'the keys ' + ', '.join(shown) if shown else 'no keys'}.")


def _string(row: dict[str, Any], key: str, place: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f'{place}: "{key}" must be a string, found {_json_type(value)}.')
    for character, problem in (("\n", "a line feed, and a text must be one line"), ("\0", "NUL, which is in no text")):
        if character in value:
            raise DataError(f'{place}: "{key}" holds {problem}. Put a blank in its place.')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{place}: "{key}" holds half of a surrogate pair (\\u{ord(value[error.start]):04x}) as character '
            f"{error.start + 1}, which no UTF-8 text can hold. Correct the line."
        ) from None
    return value


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
