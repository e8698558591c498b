"""Console input and output: lines in; outputs, tables and JSON out."""

import argparse
import errno
import json
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rich.console import Console
from rich.table import Column, Table

from transduce.cli.environment import is_first_process
from transduce.data.pairs import iterate_blocks, read_lines
from transduce.data.parsing import refuse_unequal
from transduce.data.texts import MOST_TEXTS
from transduce.errors import DataError, MissingInputError, RunFolderError, TransduceError, printable
from transduce.evaluation.metrics import Score
from transduce.files.atomic import replacing
from transduce.files.system_errors import explained_read_errors, explained_write_errors
from transduce.inference.forced_decoding import Annotation
from transduce.inference.predictor import ignore
from transduce.runs.schema import RUN_FILES

_MAX_CHARACTERS = 1 << 17  # of the lines predicted together
_CHUNK_BYTES = 1 << 12  # read at a time: decompressed, they can be a thousand times as many


def report_of(arguments: argparse.Namespace, *, of_every_process: bool = False) -> Callable[[str], None]:
    """The function that reports progress: a line on standard error, from the first process only, unless --quiet."""
    is_quiet = arguments.quiet or not (of_every_process or is_first_process())
    return ignore if is_quiet else (lambda line: print(printable(line), file=sys.stderr, flush=True))


def refuse_missing_folder(output: str | None) -> None:
    """Raises TransduceError if the file `output` could not be written: to be called before the long work."""
    _refuse_folder(output)
    if output and not Path(output).absolute().parent.is_dir():
        raise TransduceError(f"-o {output}: there is no such folder. Make it first, or choose another.")


def refuse_other_encoding(*names: str) -> None:
    """Raises TransduceError for the name of a file that is not UTF-8: settings, which are written, cannot hold it."""
    for name in names:
        if name.encode(errors="ignore").decode() != name:
            raise TransduceError(
                f"{name}: this name is not valid UTF-8. Rename the file or, in another locale, set PYTHONUTF8=1."
            )


def groups_of_lines(name: str) -> Iterator[list[str]]:
    """Groups of lines to predict together, from a file, or from standard input for "-".

    A group grows while lines keep coming, and ends where reading the next would wait: a line that is typed, or written
    by a program that expects the output before it goes on, is not held back. One group is in memory at a time.
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
        raise MissingInputError(f"standard input cannot be read: {error.strerror or error}.") from error


def prompt(arguments: argparse.Namespace) -> Callable[[str], None]:
    """A function that asks for the next line, after a message if there is one; silent unless lines are typed."""
    is_typed = arguments.file == "-" and not arguments.quiet and sys.stdin is not None and sys.stdin.isatty()

    def ask(message: str) -> None:
        print(f"{message}\n" * bool(message) + "> ", end="", file=sys.stderr, flush=True)

    return ask if is_typed else ignore


def _groups(file: BinaryIO, name: str) -> Iterator[list[str]]:
    group: list[str] = []
    num_characters = 0
    for lines in iterate_blocks(_chunks(file), name):
        for line in lines:
            group.append(line)
            num_characters += len(line)
            if len(group) == MOST_TEXTS or num_characters >= _MAX_CHARACTERS:
                yield group
                group, num_characters = [], 0
        if group and not _has_more(file):
            yield group
            group, num_characters = [], 0
    if group:
        yield group


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while (chunk := file.read(_CHUNK_BYTES)) != b"":
        if chunk is None:  # nothing yet, from a non-blocking pipe
            select.select([file], [], [])
        else:
            yield chunk


def _has_more(file: BinaryIO) -> bool:
    """Whether reading on would not wait; False where the system cannot tell."""
    try:
        return bool(select.select([file], [], [], 0)[0])
    except (OSError, ValueError):
        return False


def _unbuffered(file: BinaryIO) -> BinaryIO:
    return getattr(file, "raw", file)


def read_references(source: str, targets: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The lines of a source file, and those of each of its reference files."""
    sources = read_lines(Path(source))
    references = [read_lines(Path(name)) for name in targets]
    for name, lines in zip(targets, references, strict=True):
        refuse_unequal((source, name), (len(sources), len(lines)))
    if not sources:
        raise DataError(f"{source}: no lines: the file is empty.")
    return sources, references


def refuse_output(name: str | None, source: str | None, run: str) -> None:
    """Raises TransduceError if outputs cannot be written to `name`: a folder, the file that is read, one of the run."""
    _refuse_folder(name)
    if (output := _regular_file(name or "-", sys.stdout)) is None:
        return
    files = {source: "the file that is read"} if source else {}
    patterns = (*RUN_FILES, "checkpoints/*", "score.json", "test.source", "test.target", "learning_curve.png")
    files |= {str(path): f"{path.name} of {run}" for pattern in patterns for path in Path(run).glob(pattern)}
    for file, what in files.items():
        if (status := _regular_file(file, sys.stdin)) and os.path.samestat(status, output):
            option = f"-o {name}" if name else "standard output"
            raise TransduceError(f"{option} is {what}: choose another name for the output.")


def _refuse_folder(name: str | None) -> None:
    with suppress(OSError):  # a name that cannot be one is refused when it is opened
        if name is not None and Path(name).is_dir():
            raise TransduceError(f"-o {name} is a folder: give the name of a file.")


def _regular_file(name: str, standard: TextIO) -> os.stat_result | None:
    """The status of a file, or of a standard stream for "-"; None if it is not a regular file."""
    try:
        status = os.fstat(standard.fileno()) if name == "-" else Path(name).stat()
    except (OSError, ValueError, AttributeError):  # missing, no name, closed, or a stream without a descriptor
        return None
    return status if stat.S_ISREG(status.st_mode) else None


@contextmanager
def open_output(name: str | None) -> Iterator[BinaryIO]:
    """The output file `name`, written whole or not at all; standard output without a name.

    A pipe or a device is written to at once. A symbolic link stays one: the file that it points to is replaced.
    """
    if name is None:
        if sys.stdout is None:
            raise RunFolderError("standard output is closed: name a file with -o FILE.")
        yield _unbuffered(sys.stdout.buffer)
        return
    path = Path(name)
    with explained_write_errors(path), ExitStack() as opened:
        if path.exists() and not path.is_file():
            yield opened.enter_context(path.open("wb"))
            return
        target = Path(os.path.realpath(path))
        if target.is_symlink():  # one that leads to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        yield opened.enter_context(replacing(target))


def annotation_row(annotation: Annotation) -> dict[str, Any]:
    """What `--json` tells of an output beside its text: its confidence, and its tokens."""
    rough = {"rough": True} if annotation.is_rough else {}
    return {"confidence": annotation.confidence, **rough, "tokens": annotation.as_rows()}


def write_now(file: BinaryIO, content: bytes) -> None:
    """Writes all of `content` at once: at the exit of the program a write could neither fail nor be stopped."""
    rest = memoryview(content)
    while rest:
        written = file.write(rest)  # of an unbuffered file: a part, or None if it is non-blocking and full
        if written is None:
            select.select([], [file], [])
        else:
            rest = rest[written:]
    file.flush()


def print_scores(scores: list[Score], about: str, *, with_signatures: bool = True) -> None:
    """Prints each score, and below them the signatures by which they can be computed again."""
    for score in scores:
        print(f"{score}  {about}")
    for score in scores if with_signatures else ():
        print(f"  {score.name}: {score.signature}")


def number_columns(*names: str) -> list[Column]:
    """Columns of a table for numbers, which are aligned on the right."""
    return [Column(name, justify="right") for name in names]


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal; a file or a pipe gets whole lines. A name in it is never markup."""
    console = Console(width=None if sys.stdout and sys.stdout.isatty() else 200, markup=False, emoji=False)
    with console.capture() as captured:  # rich would end the program by itself if the reader has left
        console.print(table)
    print(captured.get(), end="")


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False))
