"""What can go wrong through no fault of the code, each kind with the exit status of the command.

A message is one line: what was given, what is allowed, how to fix it. The command prints it without a traceback
(`--debug` shows one). All are `ValueError`s, so a caller in Python may catch just that.

TransduceError              2   a setting or an argument that cannot be used
├── DataError              65   a corpus that cannot be read as it is
├── MissingInputError      66   a file or folder that is not there
├── OutOfMemoryError       71   less memory than is needed
├── RunFolderError         73   a run folder that cannot be written, is taken, or belongs to another run
├── DamagedFileError       74   bytes that are not the ones that were written
├── LostProcessError       75   one of several processes that train together has ended
├── DivergedError          76   a loss or gradient that is no longer finite
└── ConfigMismatchError    78   a run resumed with settings or data it was not started with
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

_MOST_CHARACTERS = 1_000  # of a message, at either end of one that is longer
_SPACES = "\u00a0\u202f\u3000\u200c\u200d"  # ordinary in French, Japanese and Persian, though not "printable"


def nearest(word: str, known: Iterable[str], path: str = "") -> str:
    """A hint to end an error with: what `word` was likely meant to be, or all there is. `path` is put before it."""
    names = list(known)
    close = difflib.get_close_matches(word[:_MOST_CHARACTERS].lower(), names, n=1, cutoff=0.5)
    return f" Did you mean '{path}{close[0]}'?" if close else f" Available: {', '.join(names)}."


def choose(kind: str, name: str, options: Mapping[str, T]) -> T:
    """The option of this name. Raises TransduceError, with the nearest name, if there is none."""
    if name not in options:
        raise TransduceError(f"There is no {kind} {name!r}.{nearest(name, options)}")
    return options[name]


def printable(text: str) -> str:
    """A text as one line that is not long, in which nothing controls a terminal: parts of it come from anywhere."""
    if len(text) > 2 * _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]} ... {text[-_MOST_CHARACTERS:]}"
    return "".join(each if each.isprintable() or each in _SPACES else ascii(each)[1:-1] for each in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, as Python, the system, torch or another process of ours says."""
    return any(words in repr(error) for words in ("MemoryError", "out of memory", "allocate memory"))


class TransduceError(ValueError):
    """A setting or an argument that cannot be used."""

    exit_status = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class DataError(TransduceError):
    """A corpus that cannot be read as it is: unequal line counts, bytes that are not UTF-8, nothing in it."""

    exit_status = 65


class MissingInputError(TransduceError):
    """A file or folder that is not there."""

    exit_status = 66


class OutOfMemoryError(TransduceError, RuntimeError):
    """Less memory than is needed; to torch a RuntimeError."""

    exit_status = 71


class RunFolderError(TransduceError):
    """A run folder that cannot be written, is taken, or belongs to another run."""

    exit_status = 73


class DamagedFileError(TransduceError):
    """Bytes that are not the ones that were written."""

    exit_status = 74


class LostProcessError(TransduceError):
    """One of several processes that train together has ended."""

    exit_status = 75


class DivergedError(TransduceError):
    """A loss or gradient that is no longer finite."""

    exit_status = 76


class ConfigMismatchError(TransduceError):
    """A run resumed with settings or data it was not started with."""

    exit_status = 78
