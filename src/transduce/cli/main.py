"""The command `transduce`: from words to a subcommand, and from an error to one line and an exit status.

Nothing here needs torch, so that help appears at once; each subcommand is imported when it is called.
"""

import argparse
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from transduce.cli.environment import is_first_process, rank_and_size
from transduce.cli.parser import build_parser
from transduce.cli.suggestions import refuse_unknown_words
from transduce.errors import OutOfMemoryError, TransduceError, is_out_of_memory, printable
from transduce.files.system_errors import Unfailing
from transduce.training.signals import Stopped, StopSignals

_INTERNAL_ERROR, _IO_ERROR, _BROKEN_PIPE = 70, 74, 141
# The module of each subcommand; its function is NAME_command.
_MODULES = {
    "fit": "train", "train": "train", "prepare": "train", "predict": "predict", "explain": "predict",
    "evaluate": "evaluate", "compare": "evaluate", "average": "runs", "describe": "runs", "verify": "runs",
    "data": "data", "learn": "learn", "export": "export", "import": "export", "reproduce": "reproduce",
    "benchmark": "benchmark.command", "score": "score", "settings": "settings", "init": "settings",
}  # fmt: skip
_WITHOUT_TORCH = ("settings", "init", "learn")
_SETTING = re.compile(r"--[^.=]+\.[^=]*(=.*)?", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (see `errors` for their meaning)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*(word for word in words[1:2] if not word.startswith("-")), "--help"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # as `predict` writes, whatever the locale: no text is lost
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if not isinstance(sys.stderr, Unfailing):  # closed, Python would print what is meant for it among the outputs
        stream = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process lives
        sys.stderr = Unfailing(stream)
    if not words:
        words = ["--help"]
    settings, words_left = _split_settings(words) if words[:1] in (["train"], ["prepare"]) else ([], words)
    parser = build_parser()
    refuse_unknown_words(parser, words_left)
    arguments, rest = parser.parse_known_args(words_left)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, "file", None) == "-":
        arguments.file = rest.pop()  # `predict RUN --json FILE`: argparse gives FILE its default before it sees it
    if rest:
        parser.error(f"unknown argument '{rest[0]}': see transduce {arguments.subcommand} --help")
    arguments.overrides, arguments.words = settings, words
    with StopSignals() as signals:
        return _run_reporting(arguments, signals)


def _run_reporting(arguments: argparse.Namespace, signals: StopSignals) -> int:
    """Run the subcommand; return its exit status, after a line about what ended it early."""
    try:
        return _run(arguments, signals)
    except Stopped as stopped:
        return _print_message(stopped.message or "stopped.", stopped.exit_status)
    except KeyboardInterrupt:
        return _print_message("stopped.", 128 + signal.SIGINT)
    except BrokenPipeError:
        _abandon_output()  # its reader has left
        return _BROKEN_PIPE
    except Exception as error:
        if arguments.debug:
            raise
        return _print_error(error)


def _run(arguments: argparse.Namespace, signals: StopSignals) -> int:
    """Run the subcommand; return its exit status. A signal to stop is heard once all is imported that it needs."""
    if arguments.subcommand not in _WITHOUT_TORCH:
        import torch

        from transduce.devices.cpu import speed_up_cpu

        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        speed_up_cpu()
    name = "predict" if arguments.subcommand == "translate" else arguments.subcommand
    if name in ("fit", "train", "reproduce", "benchmark"):
        rank_and_size()  # refused before anything else
    command = getattr(import_module(f"transduce.cli.{_MODULES[name]}"), f"{name}_command")
    with signals.at_once():  # not before: an import that is broken off may end in any error
        status = int(command(arguments))
        if sys.stdout is not None:  # it may have been closed
            sys.stdout.flush()  # here, where an error can still be reported
        return status


def _split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are settings, `--section.key value` or `--section.key=value`, and the other words."""
    settings: list[str] = []
    other_words: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        match = _SETTING.fullmatch(word)
        (settings if match else other_words).append(word)
        if match and not match[1] and remaining and not remaining[0].startswith("--"):
            settings.append(remaining.pop(0))
    return settings, other_words


def _print_error(error: Exception) -> int:
    if isinstance(error, TransduceError):
        return _print_message(f"error: {error}", error.exit_status)
    if is_out_of_memory(error):
        mend = "Stop other programs, or use smaller files, a smaller model, or fewer --threads or --processes."
        return _print_message(f"error: out of memory. {mend}", OutOfMemoryError.exit_status)
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of a user whom only a container knows
        mend = "Set HOME, or TRANSDUCE_CACHE to a folder for the data."
        return _print_message(f"error: there is no home folder. {mend}", TransduceError.exit_status)
    if isinstance(error, OSError):
        prefix = f"{error.filename}: " if error.filename else ""
        _abandon_output()  # it may be what cannot be written
        return _print_message(f"error: {prefix}{error.strerror or error}", _IO_ERROR)
    return _print_message(f"internal error: {type(error).__name__}: {error} (--debug shows where)", _INTERNAL_ERROR)


def _abandon_output() -> None:
    """Discard buffered output that cannot be written: Python would try, and fail, again at its exit."""
    if sys.stdout is None:  # closed: nothing is buffered
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_message(message: str, status: int) -> int:
    # Every process meets the same error, and the first one prints it; these may be those of one alone.
    if status in (_INTERNAL_ERROR, OutOfMemoryError.exit_status) or is_first_process():
        print(f"transduce: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


class _CallableModule(ModuleType):
    """Commands that were installed with 0.1 call `transduce.cli.main`, which was a function then."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        return main(argv)


sys.modules[__name__].__class__ = _CallableModule
