"""Parsing of a corpus: bytes to text, lines and rows of two sides, with an error for everything that can be wrong."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transduce.data.compression import COMPRESSED_SUFFIXES
from transduce.errors import DataError, TransduceError

BYTE_ORDER_MARK = "\ufeff"
KEYS = (("source", "target"), ("src", "tgt"))  # of both sides, in the order in which they are looked for
_MOST_SHOWN = 60  # characters of what an error is about
_LINES_LOOKED_AT = 1000  # to find out what a file holds
_NEARLY_ALL = 0.98  # share of the lines that must have a form: files have odd lines
_QUOTED = re.compile('"(?:[^"]|"")*"')  # a field of CSV in quotes: those within it are doubled

# First bytes -> format, advice. UTF-32 little-endian begins as UTF-16 does, so it comes before it.
_REFUSED: dict[bytes | tuple[bytes, ...], tuple[str, str]] = {
    (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"): ("UTF-32 text", "Convert it with `iconv -f UTF-32 -t UTF-8`."),
    (b"\xff\xfe", b"\xfe\xff"): ("UTF-16 text", "Convert it with `iconv -f UTF-16 -t UTF-8`."),
    b"PK\x03\x04": ("a zip archive or an office document", "Unpack it, or save the sheet as tab-separated UTF-8 text."),
    b"BZh": ("a bzip2 file", "Unpack it with `bunzip2`; .gz, .xz and .zst are read as they are."),
}

Row = tuple[str, str] | str  # source and target, or the reason why there is neither
RowReader = Callable[[str], tuple[str, str]]  # a line -> source and target; the reason of an error is its message


def refuse_number_of_paths(paths: Sequence[object]) -> None:
    """Raise TransduceError unless there are one or two paths."""
    if len(paths) not in (1, 2) or isinstance(paths, str):
        number = "a bare string" if isinstance(paths, str) else f"{len(paths)} paths"
        raise TransduceError(
            f"Pairs are read from a list of one file (.tsv or .jsonl) or of two parallel text files, not from {number}."
        )


def refuse_other_content(start: bytes, name: str) -> None:
    """Raise DataError if a file begins as a known format does that is not UTF-8 text."""
    for marks, (kind, advice) in _REFUSED.items():
        if start.startswith(marks):
            raise DataError(f"{name}: this is {kind}, not UTF-8 text. {advice}")


def refuse_nul(lines: Iterable[str], name: str, num_before: int = 0) -> None:
    """Raise DataError at a line with the character NUL: ASCII text in UTF-16 passes for UTF-8 that is full of them."""
    if number := next((number for number, line in enumerate(lines, num_before + 1) if "\0" in line), 0):
        raise DataError(
            f"{name}, line {number}: NUL characters do not belong in text. If the file is UTF-16, convert it with "
            "`iconv -f UTF-16BE -t UTF-8` (or UTF-16LE), else remove them with `tr -d '\\000'`."
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


def as_text(lines: Iterable[str]) -> bytes:
    """The content of a text file with these lines."""
    return "".join(f"{line}\n" for line in lines).encode()


def repairs(name: str, *, has_mark: bool, num_crlf: int, num_lines: int) -> list[str]:
    """One line for each kind of repair made in reading a file."""
    notes = [f"{name}: byte-order mark removed"] if has_mark else []
    if num_crlf:
        share = "" if num_crlf >= num_lines - 1 else f" ({num_crlf:,} of {num_lines:,} lines)"
        notes.append(f"{name}: CRLF line ends removed{share}")
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
    if (read_row := _READERS.get(_suffix(name))) is None:
        raise TransduceError(
            f"{name}: a single file of pairs must be named .tsv (source, tab, target) or .jsonl; "
            "for two parallel text files, give both."
        )
    return read_row


def parse_rows(name: str, lines: Sequence[str], num_before: int, *, are_all: bool = False) -> Iterator[Row]:
    """Rows from lines of a file of pairs, after `num_before` others.

    Raises DataError at a bad one, and says how many more there are like it if `lines` are all of the file.
    """
    read_row = row_reader(name)
    for number, line in enumerate(lines, start=num_before + 1):
        if is_empty(line):
            yield "", ""
        elif number == 1 and tuple(line.lower().replace('"', "").split("\t")) in KEYS:
            yield "header"
        else:
            try:
                yield read_row(line)
            except DataError as error:
                num_like = sum(_problem(read_row, other) == str(error) for other in lines[number:]) if are_all else 0
                like = f" (and {num_like:,} more like it)" if num_like else ""
                raise DataError(f"{name}, line {number}{like}: {error} It holds {shown(line)}.") from None


def refuse_two_of_pairs(names: Sequence[str], sides: Sequence[Sequence[str]]) -> None:
    """Raise DataError if each of two files holds pairs, by name or by nearly all first lines, or one by both."""

    def signs_of_pairs(name: str, lines: Sequence[str]) -> int:
        some = [line for line in lines[:_LINES_LOOKED_AT] if not is_empty(line)]
        num_other = min(sum(map(bool, map(partial(_problem, read), some))) for read in _READERS.values())
        return (_suffix(name) in _READERS) + (num_other < len(some) * (1 - _NEARLY_ALL))

    signs = list(map(signs_of_pairs, names, sides))
    if all(signs) or 2 in signs:
        which = "each of these holds" if all(signs) else f"{names[signs.index(2)]} holds"
        raise DataError(
            f"{' and '.join(names)}: {which} pairs already, but two files should be the two sides of the same pairs. "
            "Join them with `cat`, or give the second one as validation pairs (--valid, data.valid)."
        )


def unquoted(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, without the quotes of CSV if spreadsheets and other programs have put them there.

    So it seems if nearly all fields are quoted; or if all that hold a quote are, and either some hold doubled ones or
    those with a comma are quoted and no others.
    """
    fields = [field for row in rows if not isinstance(row, str) for field in row]
    quoted = set(filter(_QUOTED.fullmatch, fields))
    num_quoted = sum(map(quoted.__contains__, fields))
    are_special = any('""' in field[1:-1] for field in quoted) or quoted == {field for field in fields if "," in field}
    are_all = are_special and num_quoted == sum('"' in field for field in fields)
    if not quoted or not (are_all or num_quoted >= _NEARLY_ALL * len(fields)):
        return rows
    plain = {field: field[1:-1].replace('""', '"') for field in quoted}
    return [row if isinstance(row, str) else (plain.get(row[0], row[0]), plain.get(row[1], row[1])) for row in rows]


def without_empty(rows: Iterable[Row]) -> tuple[list[str], list[str], dict[str, int]]:
    """Sources and targets of the rows in which neither is empty, and the number of other rows by reason."""
    src, tgt = [], []
    skipped: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, str):
            skipped[row] += 1
        elif is_empty(row[0]):
            skipped["empty source"] += 1
        elif is_empty(row[1]):
            skipped["empty target"] += 1
        else:
            src.append(row[0])
            tgt.append(row[1])
    return src, tgt, dict(skipped)


def refuse_no_pairs(num_pairs: int, skipped: Mapping[str, int], names: Sequence[str]) -> None:
    """Raise DataError if there is nothing to learn from."""
    files = " and ".join(names)
    if not num_pairs and skipped:
        raise DataError(f"{files}: no pairs left: {', '.join(f'{n} with {reason}' for reason, n in skipped.items())}.")
    if not num_pairs:
        raise DataError(f"{files}: no pairs, because there is nothing in it.")


def refuse_all_too_long(num_pairs: int, *, max_len: int, shortest: int) -> None:
    """Raise DataError if even the shortest pair, by its longer side in ids, is longer than `max_len`."""
    if num_pairs and shortest > max_len:
        raise DataError(
            f"No pairs left: each of the {num_pairs:,} has a side longer than max_len ({max_len}) tokens; "
            f"the shortest pair has {shortest:,}. Split the texts into sentences, or raise data.max_len "
            "(and model.max_len) in a config file for `transduce train`."
        )


def normalized(text: str) -> str:
    """A text with case folded and each run of whitespace made one space, for comparisons."""
    return " ".join(text.casefold().split())


def text_of(value: object, what: str, kind: Callable[[object], str]) -> str:
    """`value`, if it is text of one line. Raises DataError, which calls it `what`, if it is not."""
    if not isinstance(value, str):
        raise DataError(f"{what} is {kind(value)}: it must be a string. Correct the pair, or leave it out.")
    for character, problem in (("\n", "a line feed, but must be one line"), ("\0", "a NUL character")):
        if character in value:
            raise DataError(f"{what} contains {problem}: replace it with a space.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} contains half of a surrogate pair (\\u{ord(value[error.start]):04x}) as character "
            f"{error.start + 1}, which is impossible in UTF-8: correct it."
        ) from None
    return value


def shown(value: object) -> str:
    """A value as Python writes it, on one line that is not long."""
    return shorten(" ".join(repr(value).split()))


def shorten(text: str) -> str:
    """The first characters of a text that is long."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def is_empty(text: str) -> bool:
    """Whether nothing but whitespace is in a text."""
    return not text or text.isspace()


def _suffix(name: str) -> str:
    """The suffix of a file, in lower case, without that of a compression."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix


def _problem(read_row: RowReader, line: str) -> str:
    """The reason why a line is no row; "" if it is one, or empty."""
    try:
        if not is_empty(line):
            read_row(line)
    except DataError as error:
        return str(error)
    return ""


def _tsv_row(line: str) -> tuple[str, str]:
    source, *targets = line.split("\t")
    if len(targets) == 1:
        return source, targets[0]
    columns = f"{len(targets) + 1} columns" if targets else "1 column"
    advice = " Select two of them, for example with `cut -f1,2`." if targets else ""
    if '"' in line:
        advice = " In .tsv, quotes cannot contain tabs or line ends: use .jsonl."
    advice = " If lines end with only CR, convert them with `tr '\\r' '\\n'`." if "\r" in line else advice
    raise DataError(f"{columns} found, 2 needed: source and target with a tab between them.{advice}")


def _jsonl_row(line: str) -> tuple[str, str]:
    advice = " `jq -c '.[]'` splits an array into lines." if line.startswith("[") else ""
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at character {error.colno}.{advice}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of nested brackets
        raise DataError(f"unreadable JSON ({type(error).__name__}).") from None
    expected = 'an object with the strings "source" and "target" (or "src" and "tgt")'
    if not isinstance(row, dict):
        raise DataError(f"{expected} is needed, found {_json_type(row)}.{advice}")
    for pair in KEYS:
        if row.keys() >= set(pair):
            source, target = (text_of(row[key], f'"{key}"', _json_type) for key in pair)
            return source, target
    keys = f"the keys {shorten(', '.join(map(json.dumps, row)))}" if row else "no keys"
    raise DataError(f"{expected} is needed, found {keys}.")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


_READERS: dict[str, RowReader] = {".tsv": _tsv_row, ".jsonl": _jsonl_row}
