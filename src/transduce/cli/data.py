"""Subcommand: data."""

import argparse
import shutil
from pathlib import Path
from textwrap import fill
from typing import Any

from transduce.cli.console import print_json, report_of
from transduce.data.datasets import Dataset, find_dataset, list_datasets
from transduce.data.download import Places
from transduce.data.parsing import as_text
from transduce.errors import RunFolderError, TransduceError
from transduce.files.atomic import write_atomically
from transduce.files.content import read_bytes, sha256_of
from transduce.files.system_errors import explained_write_errors
from transduce.runs.corpus import places_of_environment

_MAX_WIDTH = 100
_INDENT: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False}


def data_command(arguments: argparse.Namespace) -> int:
    report = report_of(arguments)
    if arguments.name is None:
        if arguments.output is not None:
            raise TransduceError("-o needs the name of a data set: transduce data NAME -o DIR.")
        datasets = list_datasets()
        if arguments.json:
            keys = ("name", "task", "description", "home", "licence", "splits")
            print_json({"datasets": [{key: getattr(dataset, key) for key in keys} for dataset in datasets]})
            return 0
        print("\n\n".join(map(_described, datasets)))
        return 0
    if Path(arguments.name).is_file():
        raise TransduceError(
            f"{arguments.name} is a file, but this command knows only the built-in data sets. To see what fit would "
            f"choose for it: transduce fit {arguments.name} --dry-run"
        )
    dataset = find_dataset(arguments.name)
    if arguments.output is None:
        for line in _described(dataset).split("\n"):
            report(line)
        raise TransduceError(f"add an output folder: transduce data {dataset.name} -o {dataset.name}")
    written = write_dataset(arguments.name, Path(arguments.output), places_of_environment())
    if arguments.json:
        print_json({"name": arguments.name, "files": [str(path) for path in written]})
    for path in written:
        report(f"wrote {path}")
    return 0


def _described(dataset: Dataset) -> str:
    """The name of a data set, and below it what it is, wrapped to the width of the terminal."""
    pairs = ", ".join(f"{split} {count:,}" for split, count in dataset.splits.items())
    about = (dataset.description, f"Pairs: {pairs}.", f"License: {dataset.licence}. Home: {dataset.home}")
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) - 1
    return "\n".join([dataset.name, *(fill(text, width, **_INDENT) for text in about)])


def write_dataset(name: str, folder: str | Path, places: Places = Places()) -> list[Path]:
    """Write every split as two parallel text files, and a README.md with origin, license, counts and SHA-256.

    The files are named SPLIT.SUFFIX, e.g. `train.en` and `train.de`. Returns what was written. Raises RunFolderError,
    with nothing written, if one of them is there already and is not of an earlier export of the same set.
    """
    dataset, folder = find_dataset(name), Path(folder)
    _refuse_other_files(dataset, folder)
    with explained_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    contents, rows = {}, []
    for split in dataset.splits:
        pairs = dataset.load(split, places)
        for suffix, lines in ((dataset.source_suffix, pairs.src), (dataset.target_suffix, pairs.tgt)):
            content = as_text(lines)
            contents[folder / f"{split}.{suffix}"] = content
            rows.append(f"| `{split}.{suffix}` | {len(lines):,} | `{sha256_of(content)}` |")
    # README.md first: should we be stopped in between, it says which data set the other files are of.
    contents = {folder / "README.md": _readme(dataset, rows).encode()} | contents
    for path, content in contents.items():
        write_atomically(path, content)
    return list(contents)


def _refuse_other_files(dataset: Dataset, folder: Path) -> None:
    """Raises RunFolderError if a file that was not written from `dataset` would be replaced."""
    readme = folder / "README.md"
    if readme.is_file() and read_bytes(readme).startswith(f"{_title(dataset)}\n".encode()):
        return
    suffixes = (dataset.source_suffix, dataset.target_suffix)
    names = ["README.md", *(f"{split}.{suffix}" for split in dataset.splits for suffix in suffixes)]
    if existing := next((name for name in names if (folder / name).exists()), None):
        raise RunFolderError(f"{folder} has a {existing} that is not from {dataset.name}. Choose another folder.")


def _title(dataset: Dataset) -> str:
    return f"# {dataset.name}"


def _readme(dataset: Dataset, rows: list[str]) -> str:
    table = "\n".join(rows)
    return f"""\
{_title(dataset)}

{dataset.description}

* Home: {dataset.home}
* License: {dataset.licence}

Parallel text in UTF-8: line k of one file of a split belongs to line k of the other.

| file | lines | SHA-256 |
|---|---|---|
{table}
"""
