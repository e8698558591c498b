"""Executes the notebooks, writes them with their outputs, and what was measured into the ledger:

    notebooks/build.py [NAME ...] [--fast]

The text form NAME.py (jupytext, percent format) is what is written and reviewed; NAME.ipynb is made of it here and
nowhere else. With --fast nothing is written: experiments run at their smallest, and only have to go the right way.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SECONDS_PER_CELL = 900


def names() -> list[str]:
    """The notebooks, the flagship first."""
    found = sorted(path.stem for path in HERE.glob("*.py") if path.name != Path(__file__).name)
    return sorted(found, key=lambda name: name != "transformer")


def read_text(name: str) -> Any:
    """The notebook as its text form says, without outputs; ids of cells are their numbers, so that nothing drifts."""
    notebook = jupytext.read(HERE / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "jupytext": {"formats": "ipynb,py:percent"},
    }
    return notebook


def execute(name: str, *, fast: bool) -> tuple[Any, dict[str, float], float]:
    """The notebook with its outputs, the values that its claims were settled with, and seconds. Raises at an error.

    A full run may settle some in their fast form, for want of data: those are not among them.
    """
    notebook = read_text(name)
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "measured.jsonl"
        os.environ |= {"TRANSDUCE_MEASURED": str(record), "TRANSDUCE_FAST": "1" if fast else ""}
        started = time.perf_counter()
        NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": str(HERE)}},
            record_timing=False,
        ).execute()
        seconds = time.perf_counter() - started
        lines = record.read_text().splitlines() if record.exists() else []
    measured = {row["claim"]: row["measured"] for row in map(json.loads, lines) if row["fast"] == fast}
    return notebook, measured, seconds


def main() -> None:
    """Executes those named, or all."""
    parser = argparse.ArgumentParser(description="Executes the notebooks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names())} (default: all)")
    parser.add_argument("--fast", action="store_true", help="small experiments; write nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names()):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    total = 0.0
    for name in arguments.names or names():
        notebook, measured, seconds = execute(name, fast=arguments.fast)
        total += seconds
        if not arguments.fast:
            nbformat.write(notebook, HERE / f"{name}.ipynb")
            from transduce.learn import Ledger

            Ledger.load(HERE / "claims.toml").write_measured(measured)
        print(f"{name}: {seconds:.0f} s, {len(measured)} claims settled", flush=True)
    print(f"all: {total:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
