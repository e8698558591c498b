"""The command called in this process, and a look at a folder's bytes."""

import io
import signal
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
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
        streams = [stack.enter_context(io.TextIOWrapper(raw, "utf-8", newline="")) for raw in (out, err)]
        stack.enter_context(redirect_stdout(streams[0]))
        stack.enter_context(redirect_stderr(streams[1]))
        stack.enter_context(mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")))
        stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        try:
            status = cli.main([*map(str, words), "--threads", "1"] if words else [])
        except SystemExit as stop:  # from argparse
            status = stop.code
        for stream in streams:
            stream.flush()
        return Outcome(status, out.getvalue(), err.getvalue().decode())


def content_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
