"""Subcommands: settings, init."""

import argparse
import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from transduce.config.reference import SYNONYMS, Setting, all_settings, annotated_toml, sections
from transduce.errors import DataError, MissingInputError, TransduceError, choose, nearest
from transduce.files.content import read_bytes
from transduce.files.shipped import shipped_folder

_MAX_WIDTH = 100

# The settings that `fit` and the recipes found best for a small model on a CPU.
_SMALL = {
    "model.preset": "tiny", "model.norm_first": True, "model.positions": "rotary",
    "optim.method": "muon", "optim.schedule": "linear", "optim.learning_rate": 0.004, "optim.warmup_steps": 200,
    "optim.max_grad_norm": 1.0, "optim.ema_decay": 0.995, "training.batch_tokens": 2048, "training.minutes": 15.0,
}  # fmt: skip
_HEADER = """\
# Settings of a training run. Train with:  transduce train THIS-FILE
# Lines that begin with "# name =" show defaults; remove the "# " to change one.
# Set data.valid to a file of other pairs: without validation pairs nothing is scored, and the last weights are kept.

"""


_ON_RESUME = {
    "free": "Can change on --resume.",
    "with --accept-changes": "Can change on --resume with --accept-changes.",
    "never": "Cannot change on --resume.",
}


def settings_command(arguments: argparse.Namespace) -> int:
    settings = _matching(arguments.name)
    if arguments.json:
        print(json.dumps({setting.name: setting._asdict() for setting in settings}))
    else:
        print(formatted(settings, with_details=arguments.name is not None), end="")
    return 0


def init_command(arguments: argparse.Namespace) -> int:
    if arguments.shipped and arguments.pairs:
        raise TransduceError("--from prints a config as it is: leave out PAIRS, and set data.train in what it prints.")
    if arguments.shipped:
        text = choose("config", arguments.shipped, shipped_configs()).read_text(encoding="utf-8")
    else:
        text = _HEADER + annotated_toml(_SMALL | {"data.train": arguments.pairs or ["train.tsv"]})
    print(text, end="")
    if sys.stdout.isatty():
        print(f"to save it: {shlex.join(['transduce', *arguments.words])} > my.toml", file=sys.stderr)
    return 0


def shipped_configs() -> dict[str, Path]:
    """The configs and recipes that come with the package, by name."""
    paths = [*shipped_folder("configs").glob("*.toml"), *shipped_folder("recipes").glob("*.toml")]
    return {path.stem: path for path in sorted(paths) if path.name != "index.toml"}


def read_utf8(path: Path) -> str:
    """The content of a text file that is not a corpus, as one string."""
    try:
        return read_bytes(path).decode().removeprefix("\ufeff")  # the byte order mark that some editors write
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} cannot be read.") from None


def read_config(path: Path) -> str:
    """The text of a config file. Raises MissingInputError, which says how to get one that comes with the package."""
    if path.stem in shipped_configs() and not path.exists():
        raise MissingInputError(
            f"{path}: no such file. The package has one of this name: transduce init --from {path.stem} > {path.name}"
        )
    return read_utf8(path)


def formatted(settings: Sequence[Setting], *, with_details: bool = False) -> str:
    """The settings as text for a terminal, by section: name, default, help."""
    width = min(_MAX_WIDTH, shutil.get_terminal_size().columns)
    lines = []
    for section, title in sections().items():
        of_section = [setting for setting in settings if setting.section == section]
        if of_section:
            lines += ["", *textwrap.wrap(f"[{section}]  {title}", width - 1, subsequent_indent="  ")]
        for setting in of_section:
            default = "" if setting.default == '""' else setting.default
            lines.append(f"  --{setting.name} {default}".rstrip())
            lines += textwrap.wrap(setting.text, width - 1, initial_indent=" " * 6, subsequent_indent=" " * 6)
            if with_details:
                kind = "" if " of: " in setting.text else f"Type: {setting.type}. "
                lines.append(f"      {kind}{_ON_RESUME[setting.on_resume]}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _matching(name: str | None) -> list[Setting]:
    """The settings of a section, or one by its full or short name; all without a name."""
    settings = all_settings()
    key = (name or "").rpartition(".")[2].replace("-", "_")
    names = (None, name, SYNONYMS.get(key, ""))
    matching = [each for each in settings if name is None or {each.section, each.name, each.key} & {*names}]
    if not matching:
        known = [*sections(), *(each.name for each in settings), *(each.key for each in settings)]
        hint = nearest(str(name), known)
        raise TransduceError(
            f"There is no setting or section {name!r}.{hint if 'Did' in hint else ' See: transduce settings.'}"
        )
    return matching
