"""Reference pages that are made from the code: settings, commands, and the Python API."""

import argparse
import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import transduce
import transduce.learn
from transduce.cli.parser import GROUPS, build_parser
from transduce.config.reference import Setting, all_settings, sections
from transduce.model.config import PRESETS

SOURCE = Path(transduce.__file__).parent
COMMON = "common options"
# The packages of the API, from the one that most programs need to the one that few do. `cli` has the command reference.
PACKAGES = (
    "runs", "inference", "evaluation", "data", "text", "training", "model", "config", "export", "files", "devices",
    "learn",
)  # fmt: skip
FILTERS = ("!^_", "^__call__$", "!^[A-Z]$")  # of the names that are shown, as in mkdocs.yml
# What the page of the package has, in the order in which a reader needs it.
TOP_LEVEL = ("fit", "train", "load", "Run", "Predictor", "DecodingConfig", "Constraints", "compare")

Page = tuple[str, str]  # its path on the site, and its Markdown


def reference_pages() -> Iterator[Page]:
    """All of them."""
    yield "reference/settings.md", settings_page()
    yield "reference/commands.md", commands_page()
    yield "reference/api/index.md", top_level_page()
    for package in PACKAGES:
        yield f"reference/api/{package}.md", package_page(package)
    yield "reference/api/errors.md", f"# transduce.errors\n\n{_directive('transduce.errors', show_root_heading=False)}"


# --- settings --------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting with its meaning, type, default and what a resumed run may do with it."""
    lines = [
        "# Settings",
        "",
        "Every setting of a training run. Set them in a TOML file, by section, or on the command line, by full name:",
        "",
        "```toml\n[model]\ndropout = 0.2\n```",
        "",
        "```sh\ntransduce train my.toml --model.dropout 0.2\n```",
        "",
        'In Python, `transduce.train` takes one keyword per section: `model={"dropout": 0.2}`. In a terminal, '
        "`transduce settings NAME` shows the same text, and `transduce init` prints a file with all of them.",
        "",
        "**When resuming** says whether `--resume` may change a setting: *free*, *with --accept-changes* (the run "
        "folder records the change), or *never*.",
        "",
    ]
    for section, title in sections().items():
        lines += [f"## {section} {{ #{section} }}", "", title, ""]
        for setting in all_settings():
            if setting.section == section:
                lines += _setting(setting)
            if setting.name == "model.preset":
                lines += _presets()
    return "\n".join(lines)


def _setting(setting: Setting) -> list[str]:
    """A heading, the meaning, and a line of facts."""
    kind = setting.type
    if "," in setting.type:
        before = "list of " if setting.type.startswith("list of ") else "one of "
        options = setting.type.removeprefix("list of ").split(", ")
        kind = before + ", ".join(f"`{option}`" for option in options)
    facts = f"{kind} · default `{setting.default}` · when resuming: {setting.on_resume}"
    return [f"### {setting.name} {{ #{setting.name} }}", "", setting.help, "", f"{facts}\n{{ .facts }}", ""]


def _presets() -> list[str]:
    """The settings in which the presets differ, and those that they share with no preset."""
    fields = [field.name for field in dataclasses.fields(PRESETS["base"])]
    differing = [name for name in fields if len({getattr(preset, name) for preset in PRESETS.values()}) > 1]
    rows = [f"| `{name}` | {' | '.join(str(getattr(each, name)) for each in PRESETS.values())} |" for name in differing]
    return [f"| | {' | '.join(PRESETS)} |", f"|---|{'---:|' * len(PRESETS)}", *rows, ""]


# --- commands --------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every subcommand with its arguments, options and examples."""
    subparsers = _subparsers(build_parser())
    lines = [
        "# Commands",
        "",
        "Outputs go to standard output; progress and messages go to standard error. `--json` puts exactly one JSON "
        "object on standard output (`predict` and `score`: one per line). An error is one line, with an "
        "[exit status](#exit-statuses) of its own. `transduce COMMAND --help` shows the same text.",
        "",
        "## Common options",
        "",
        "Every command takes these.",
        "",
        *_options(
            next(group for group in subparsers["fit"]._action_groups if group.title == COMMON), subparsers["fit"]
        ),
    ]
    for group, commands in GROUPS.items():
        lines += [f"## {group.capitalize()}", ""]
        for name in commands:
            lines += _command(f"transduce {name}", subparsers[name], name)
    return "\n".join([*lines, *_exit_statuses()])


def _command(title: str, parser: argparse.ArgumentParser, anchor: str, level: int = 3) -> list[str]:
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    lines = [f"{'#' * level} {title} {{ #{anchor} }}", "", parser.description or "", "", f"```text\n{usage}\n```", ""]
    if examples := [line.strip() for line in (parser.epilog or "").split("\n")[1:]]:
        lines += ["```sh", *examples, "```", ""]
    topics = _subparsers(parser)
    for group in parser._action_groups:
        if group.title != COMMON and not topics:
            lines += _options(group, parser, title=group.title not in ("positional arguments", "options"))
    for name, topic in topics.items():
        lines += _command(f"{title} {name}", topic, f"{anchor}-{name}", level + 1)
    return lines


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: subparser
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, subparser in action.choices.items()
    }


def _options(group: argparse._ArgumentGroup, parser: argparse.ArgumentParser, *, title: bool = False) -> list[str]:
    """A definition list of the options of a group."""
    actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
    lines = [f"**{(group.title or '').capitalize()}**", ""] if title and actions else []
    for action in actions:
        lines += [f"`{_invocation(action)}`", f":   {parser._get_formatter()._expand_help(action)}", ""]
    return lines


def _invocation(action: argparse.Action) -> str:
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if not action.option_strings:
        return str(value)
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")


def _exit_statuses() -> list[str]:
    """The tree of errors, as the docstring of `transduce.errors` draws it."""
    tree = (ast.get_docstring(ast.parse((SOURCE / "errors.py").read_text(encoding="utf-8"))) or "").split("\n\n")[-1]
    others = (
        "0: done. 70: an internal error, which is a bug. 130 and 143: stopped by Ctrl-C or SIGTERM, after saving. "
        "141: whoever read the output has left."
    )
    return ["## Exit statuses", "", f"```text\n{tree}\n```", "", others, ""]


# --- API -------------------------------------------------------------------------------------------------------------


def top_level_page() -> str:
    """The names of `import transduce`, in full."""
    assert sorted(TOP_LEVEL) == sorted({*transduce.__all__} - {"__version__"}), "a public name is missing here"
    lines = [
        "# Python API",
        "",
        "```python\nimport transduce\n```",
        "",
        "These names are all that most programs need. The packages below them have pages of their own: "
        + ", ".join(f"[{package}]({package}.md)" for package in (*PACKAGES, "errors"))
        + ". [The architecture](../../../../ARCHITECTURE.md) says how they fit together.",
        "",
        "`transduce.__version__` is the version as a string.",
        "",
    ]
    for name in TOP_LEVEL:
        home = f"transduce.{transduce._HOMES[name]}.{name}"
        lines += [_directive(home, heading=f"transduce.{name}", heading_level=2), ""]
    return "\n".join(lines)


def package_page(package: str) -> str:
    """The public names of a package, by module."""
    identifier = f"transduce.{package}"
    lines = [
        f"# {identifier}",
        "",
        _directive(identifier, members=False, show_root_heading=False, show_root_toc_entry=False),
        "",
    ]
    if package == "learn":  # the lessons are read as notebooks
        homes = transduce.learn._HOMES
        objects = [f"{identifier}.{homes[name]}.{name}" for name in homes]
        return "\n".join(
            [*lines, *(_directive(each, heading_level=2, heading=each.split(".")[-1]) for each in objects)]
        )
    for path in sorted((SOURCE / package).rglob("*.py")):
        module = ".".join(["transduce", *path.relative_to(SOURCE).with_suffix("").parts])
        names = public_names(path)
        elsewhere = [name for name in names if transduce._HOMES.get(name) == module.removeprefix("transduce.")]
        if {*names} - {*elsewhere}:
            filters = {"filters": [*FILTERS, *(f"!^{name}$" for name in elsewhere)]} if elsewhere else {}
            lines += [_directive(module, **filters), ""]
    return "\n".join(lines)


def public_names(path: Path) -> list[str]:
    """The functions and classes that a module defines under a public name."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in names if not name.startswith("_")]


def _directive(identifier: str, **options: object) -> str:
    """What mkdocstrings replaces by the documentation of an object."""
    settings = "".join(f"\n      {name}: {_yaml(value)}" for name, value in options.items())
    return f"::: {identifier}" + (f"\n    options:{settings}" if settings else "") + "\n"


def _yaml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f'"{each}"' for each in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
