"""What the command reads and writes: lines in, answers, tables and JSON out."""

import argparse
import json
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rich.console import Console
from rich.table import Table

from transduce.data.pairs import iterate_blocks, read_lines
from transduce.data.parsing import refuse_unequal
from transduce.errors import DataError, MissingInputError, RunFolderError, TransduceError
from transduce.evaluation.metrics import Score
from transduce.files.atomic import replacing
from transduce.files.content import read_bytes
from transduce.files.system_errors import explained_read_errors, explained_write_errors
from transduce.inference.forced_decoding import Annotation
from transduce.inference.predictor import Prediction

# Lines answered together, sorted among themselves so that little is padded, and what bounds the memory they take.
_MOST_LINES, _MOST_CHARACTERS = 2_000, 1 << 17
_CHUNK_BYTES = 1 << 12  # read at a time: unpacked, they can be a thousand times as many


def report_of(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Where a line on what happens goes: to standard error, unless quiet; of several processes the first one speaks."""
    is_quiet = arguments.quiet or os.environ.get("RANK", "0") != "0"
    return (lambda _line: None) if is_quiet else (lambda line: print(line, file=sys.stderr, flush=True))


def refuse_missing_folder(output: str | None) -> None:
    """Raises TransduceError, before the long work, if the file `output` could not be written at its end."""
    _refuse_folder(output)
    if output and not Path(output).absolute().parent.is_dir():
        raise TransduceError(f"-o {output}: there is no such folder. Make it first, or choose another.")


def read_utf8(path: Path) -> str:
    """A text file as one string, for what is not lines of a corpus."""
    try:
        return read_bytes(path).decode().removeprefix("\ufeff")  # the mark that some editors put first
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} cannot be read.") from None


def groups_of_lines(name: str) -> Iterator[list[str]]:
    """The lines of a file, or of standard input for "-", in groups that are best answered together.

    A group is large while lines keep coming, and ends where the next would have to be waited for: a line that is typed,
    or written by a program that wants its answer first, is not held back. One group is in memory at a time.
    """
    if name != "-":
        with explained_read_errors(Path(name)), Path(name).open("rb", buffering=0) as file:
            yield from _groups(file, name)
        return
    if sys.stdin is None:
        raise MissingInputError("standard input is closed: name a FILE.")
    try:
        yield from _groups(_unbuffered(sys.stdin.buffer), "standard input")
    except OSError as error:
        raise MissingInputError(f"standard input: cannot be read: {error.strerror or error}.") from error


def _groups(file: BinaryIO, name: str) -> Iterator[list[str]]:
    group: list[str] = []
    num_characters = 0
    for lines in iterate_blocks(_chunks(file), name):
        for line in lines:
            group.append(line)
            num_characters += len(line)
            if len(group) == _MOST_LINES or num_characters >= _MOST_CHARACTERS:
                yield group
                group, num_characters = [], 0
        if group and not _has_more(file):
            yield group
            group, num_characters = [], 0
    if group:
        yield group


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while (chunk := file.read(_CHUNK_BYTES)) != b"":
        if chunk is None:  # nothing yet, from a pipe that another program has set not to wait
            select.select([file], [], [])
        else:
            yield chunk


def _has_more(file: BinaryIO) -> bool:
    """Whether reading on would not wait; where the system cannot tell, it may."""
    try:
        return bool(select.select([file], [], [], 0)[0])
    except (OSError, ValueError):
        return False


def _unbuffered(file: BinaryIO) -> BinaryIO:
    return getattr(file, "raw", file)


def read_references(source: str, targets: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The lines of a source file, and of each file of reference answers to it."""
    sources = read_lines(Path(source))
    references = [read_lines(Path(name)) for name in targets]
    for name, lines in zip(targets, references, strict=True):
        refuse_unequal((source, name), (len(sources), len(lines)))
    if not sources:
        raise DataError(f"{source}: no lines: the file is empty.")
    return sources, references


def refuse_output(name: str | None, source: str) -> None:
    """Raises TransduceError if answers cannot go there: into a folder, or into the file that is read."""
    _refuse_folder(name)
    read, written = _regular_file(source, sys.stdin), _regular_file(name or "-", sys.stdout)
    if read and written and os.path.samestat(read, written):
        where = f"-o {name}" if name else "standard output"
        raise TransduceError(f"{where} is the file that is read: give the answers another name.")


def _refuse_folder(name: str | None) -> None:
    if name is not None and Path(name).is_dir():
        raise TransduceError(f"-o {name} is a folder: give the answers the name of a file.")


def _regular_file(name: str, standard: TextIO) -> os.stat_result | None:
    try:
        found = os.fstat(standard.fileno()) if name == "-" else Path(name).stat()
    except (OSError, AttributeError):  # not there, closed, or not of the system
        return None
    return found if stat.S_ISREG(found.st_mode) else None


@contextmanager
def answers_to(name: str | None) -> Iterator[BinaryIO]:
    """Where answers go: to the file `name` (standard output without one), whole or not at all.

    A pipe or a device gets them as they come. A link stays one: the file that it leads to is replaced.
    """
    if name is None:
        if sys.stdout is None:
            raise RunFolderError("standard output is closed: name a file with -o FILE.")
        yield _unbuffered(sys.stdout.buffer)
        return
    path = Path(name)
    is_stream = path.exists() and not path.is_file()
    with explained_write_errors(path), path.open("wb") if is_stream else replacing(path.resolve()) as file:
        yield file


def text_line(answers: Sequence[Prediction]) -> str:
    """Texts with tabs between them."""
    return "\t".join(answer.text for answer in answers) + "\n"


def json_line(source: str, answers: Sequence[Prediction], annotations: Sequence[Annotation]) -> str:
    """A JSON object: the source, and each answer with its tokens, what they are worth and where they come from."""
    predictions = [
        answer.as_dict() | {"tokens": annotation.as_rows()}
        for answer, annotation in zip(answers, annotations, strict=True)
    ]
    row: dict[str, Any] = {"source": source, "source_tokens": annotations[0].source_tokens, "predictions": predictions}
    if answers[0].is_truncated:
        row["truncated"] = True
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_now(file: BinaryIO, content: bytes) -> None:
    """Writes all of it, and leaves nothing for the end of the program, where it could neither fail nor be stopped."""
    rest = memoryview(content)
    while rest:
        written = file.write(rest)  # of an unbuffered file: a part, or None if it is full and set not to wait
        if written is None:
            select.select([], [file], [])
        else:
            rest = rest[written:]
    file.flush()


def print_scores(scores: list[Score], about: str) -> None:
    """Each score, and below them what is needed to compute them again."""
    for found in scores:
        print(f"{found}  {about}")
    for found in scores:
        print(f"  {found.name}: {found.signature}")


def print_table(table: Table) -> None:
    """As wide as the terminal; a file or a pipe gets whole lines."""
    console = Console(width=None if sys.stdout and sys.stdout.isatty() else 200)
    with console.capture() as captured:  # for rich has its own idea of what to do about a reader that has left
        console.print(table)
    print(captured.get(), end="")


def print_description(found: dict[str, Any]) -> None:
    """What `describe` found: parameters by part, settings, and of a run which step its model is of, and how good."""
    table = Table("part", "parameters", title=found["name"], title_justify="left")
    table.columns[1].justify = "right"
    for part, count in found["parameters"].items():
        table.add_row(part, f"{count:,}", style="bold" if part == "total" else None)
    print_table(table)
    print(", ".join(f"{name} {value}" for name, value in found["config"].items()))
    if "model_is_of" in found:
        is_imported = "imported" in found["facts"]
        print("imported, not trained here" if is_imported else _model_is_of(found["model_is_of"]))


def _model_is_of(metadata: dict[str, Any] | None) -> str:
    if metadata is None:
        return "no model yet: the first validation is still to come"
    if "steps" in metadata:
        return f"the model is the mean of steps {', '.join(map(str, metadata['steps']))}"
    scores = ", ".join(f"{name} {value:.4g}" for name, value in metadata["validation"].items())
    return f"the model is of step {metadata['step']:,}{scores and f', validation: {scores}'}"


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False))
