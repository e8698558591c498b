"""The command called in this process or in a fork of it, and a look at a folder's bytes."""

import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any
from unittest import mock

from transduce.cli import main as cli


@dataclass(frozen=True)
class Outcome:
    """What a call of the command gave back."""

    status: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().removesuffix("\n").split("\n") if self.out else []


def command(*words: object, stdin: bytes = b"") -> Outcome:
    """Calls `transduce WORDS...` on one thread, with standard streams of its own."""
    out, err = io.BytesIO(), io.BytesIO()
    with ExitStack() as stack:
        raws = (out, "strict"), (err, "backslashreplace")  # as Python makes them
        streams = [stack.enter_context(io.TextIOWrapper(raw, "utf-8", errors, newline="")) for raw, errors in raws]
        stack.enter_context(redirect_stdout(streams[0]))
        stack.enter_context(redirect_stderr(streams[1]))
        stack.enter_context(mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")))
        try:
            status = cli.main([*map(str, words), "--threads", "1"] if words else [])
        except SystemExit as stop:  # from argparse
            status = stop.code
        for stream in streams:
            stream.flush()
        return Outcome(status, out.getvalue(), err.getvalue().decode())


def forked(
    line: Sequence[str],
    *,
    main: Callable[[list[str]], int | None] = cli.main,
    env: Mapping[str, str] | None = None,
    **how: Any,
) -> "Popen[Any]":
    """`python -m MODULE WORDS...` as `subprocess.Popen` starts it, except that what is slow to import is here.

    The process is a fork that calls `main` of the module with the words where it would become another program.
    """
    words = list(line[line.index("-m") + 2 :])
    open_before = {*Path("/dev/fd").iterdir()}

    def work() -> None:
        for new in {*Path("/dev/fd").iterdir()} - open_before:  # `Popen` waits until one is closed
            with suppress(OSError):  # the one that listed them
                os.close(int(new.name))
        os.environ.update(env or {})
        status = 1
        try:
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
            status = main(words) or 0
            sys.stdout.flush()
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which do not follow: torch's are none
        return Popen(line, preexec_fn=work, **how)


def content_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
