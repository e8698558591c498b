"""Building blocks of the parsers: their help, and the options that several subcommands share."""

import argparse
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeAlias

COMMON = "common options"
_MOST_THREADS = 1_024
JSON_HELP = "print one JSON object to standard output"
RUN_DIR_HELP = "output folder (default: runs/NAME-OF-{})"
RESUME_HELP = "resume the run in the output folder, if there is one"
OUTPUT_HELP = "output file; appears only when it is complete"


class Parser(argparse.ArgumentParser):
    more_help: Callable[[], str] | None = None

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"transduce: error: {' '.join(message.split())}\n")

    def format_help(self) -> str:
        self._action_groups.sort(key=lambda group: group.title == COMMON)  # last
        return super().format_help() + (f"\n{self.more_help()}" if self.more_help else "")


class Formatter(argparse.HelpFormatter):
    """Usage without the optional options, wrapped descriptions, and examples as they stand."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: Any = None) -> None:
        one_of = [action for group in groups if group.required for action in group._group_actions]
        needed = [each for each in actions if each.required or not each.option_strings or each in one_of]
        super().add_usage(usage, needed, groups, prefix)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        text = super()._format_usage(usage, actions, groups, prefix)
        is_name = prefix == ""  # of the parser of a subcommand
        return text if is_name else text.replace(self._prog, f"{self._prog} [OPTIONS]", 1)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return textwrap.indent(text, indent)
        return super()._fill_text(text, width, indent)


Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_subcommand(
    subparsers: Subparsers, name: str, description: str, *examples: str, aliases: tuple[str, ...] = ()
) -> Parser:
    # No abbreviations: what abbreviates one option today might abbreviate two tomorrow.
    parser = subparsers.add_parser(
        name,
        description=description,
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else None,
        formatter_class=Formatter,
        allow_abbrev=False,
        aliases=aliases,
    )
    common = parser.add_argument_group(COMMON)
    common.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    common.add_argument("--threads", type=_threads, metavar="N", help="CPU threads (default: one per core)")
    common.add_argument("--quiet", action="store_true", help="print no progress")
    common.add_argument("--debug", action="store_true", help="show a traceback when an error occurs")
    return parser


def add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=lambda word: None if word == "auto" else positive(word),
        metavar="N",
        help="worker processes that share each step on a CPU (default: auto, one per core, at most 4)",
    )


def add_references(parser: Parser) -> None:
    parser.add_argument("--source", required=True, metavar="FILE", help="source lines")
    parser.add_argument(
        "--target",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="reference outputs; several files give several references per source",
    )


def add_decoding(parser: Parser) -> None:
    search = parser.add_argument_group("decoding (defaults: those of the run)")
    search.add_argument(
        "--beam-size", type=positive, metavar="N", help="hypotheses kept at each step; 1 is greedy search"
    )
    search.add_argument("--length-penalty", type=float, metavar="ALPHA", help="0: none; larger favors longer outputs")
    search.add_argument(
        "--int8",
        action="store_true",
        help="use 8-bit integer arithmetic: faster on a CPU; a few outputs, at most 2 in 100, depend on their batch",
    )


def positive(text: str) -> int:
    return _whole_number(text, at_least=1)


def _threads(text: str) -> int:
    if (num := positive(text)) > _MOST_THREADS:  # each has memory of its own
        raise argparse.ArgumentTypeError(f"{num:,} threads are more than {_MOST_THREADS:,}: one per core is fastest")
    return num


def number_from_0(text: str) -> int:
    return _whole_number(text, at_least=0)


def _whole_number(text: str, *, at_least: int) -> int:
    if not text.isdecimal() or int(text) < at_least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {at_least}")
    return int(text)


def steps(text: str) -> list[int]:
    steps = [number_from_0(part.strip()) for part in text.split(",")]
    if len(set(steps)) < len(steps):
        raise argparse.ArgumentTypeError(f"'{text}' names a step twice")
    return steps


def minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value
