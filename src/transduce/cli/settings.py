"""Subcommands: settings, init."""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence

from transduce.config.reference import Setting, all_settings, annotated_toml, sections
from transduce.errors import TransduceError, nearest

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

"""


def settings_command(arguments: argparse.Namespace) -> int:
    settings = _matching(arguments.name)
    if arguments.json:
        print(json.dumps({setting.name: setting._asdict() for setting in settings}))
    else:
        print(formatted(settings, with_details=len(settings) == 1), end="")
    return 0


def init_command(arguments: argparse.Namespace) -> int:
    values = _SMALL | {"data.train": arguments.pairs or ["train.tsv"]}
    print(_HEADER + annotated_toml(values), end="")
    if sys.stdout.isatty():
        print("save it: transduce init > my.toml", file=sys.stderr)
    return 0


def formatted(settings: Sequence[Setting], *, with_details: bool = False) -> str:
    """The settings as text for a terminal, by section: name, default, help."""
    width = min(_MAX_WIDTH, shutil.get_terminal_size().columns)
    lines = []
    for section, title in sections().items():
        of_section = [setting for setting in settings if setting.section == section]
        if of_section:
            lines += ["", f"[{section}]  {title}"]
        for setting in of_section:
            default = "" if setting.default == '""' else setting.default
            lines.append(f"  --{setting.name} {default}".rstrip())
            lines += textwrap.wrap(setting.text, width - 1, initial_indent=" " * 6, subsequent_indent=" " * 6)
            if with_details:
                lines.append(f"      Type: {setting.type}. Changing it when resuming: {setting.on_resume}.")
    return "\n".join(lines).lstrip("\n") + "\n"


def _matching(name: str | None) -> list[Setting]:
    """The settings of a section, or one by its full or short name; all without a name."""
    settings = all_settings()
    found = [each for each in settings if name in (None, each.section, each.name, each.key)]
    if not found:
        names = [*sections(), *(each.name for each in settings), *(each.key for each in settings)]
        raise TransduceError(f"There is no setting or section {name!r}.{nearest(str(name), names)}")
    return found
