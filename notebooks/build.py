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
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from transduce.learn import Ledger

HERE = Path(__file__).parent
SECONDS_PER_CELL = 900
MEASURE_TIME = ("why_it_matters",)


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
    }
    return notebook


def execute(name: str, *, fast: bool) -> tuple[Any, dict[str, float], float]:
    """The notebook with its outputs, the values that its claims were settled with, and seconds. Raises at an error.

    A full run may settle some in their fast form, for want of data: those are not among them.
    """
    notebook = read_text(name)
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "measured.jsonl"
        settings = {"TRANSDUCE_MEASURED": str(record), "TRANSDUCE_FAST": "1" if fast else ""}
        started = time.perf_counter()
        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns of its own transport, at every start
            resources={"metadata": {"path": str(HERE)}},
            record_timing=False,
        )
        client.execute(env=os.environ | settings)
        seconds = time.perf_counter() - started
        lines = record.read_text().rstrip("\n").split("\n") if record.exists() else []
    measured = {row["claim"]: row["measured"] for row in map(json.loads, lines) if row["fast"] == fast}
    return notebook, measured, seconds


def build(name: str, *, fast: bool) -> tuple[dict[str, float], float]:
    """Executes one notebook and, unless `fast`, writes it with its outputs; measured values, and seconds."""
    notebook, measured, seconds = execute(name, fast=fast)
    if not fast:
        nbformat.write(notebook, HERE / f"{name}.ipynb")
    return measured, seconds


def main() -> int:
    """Executes those named, or all: first those that measure time, alone; then the others, one on each core."""
    parser = argparse.ArgumentParser(description="Executes the notebooks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names())} (default: all)")
    parser.add_argument("--fast", action="store_true", help="small experiments; write nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names()):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    chosen = arguments.names or names()
    started = time.perf_counter()
    alone = [name for name in chosen if name in MEASURE_TIME]
    failed = 0
    for number, names_at_once in enumerate((alone, [name for name in chosen if name not in alone])):
        if number:  # networks of an experiment are too small to be shared between cores: a notebook on each does more
            os.environ["OMP_NUM_THREADS"] = "1"
        with ProcessPoolExecutor(os.cpu_count() if number else 1) as pool:
            works = {pool.submit(build, name, fast=arguments.fast): name for name in names_at_once}
            for work in as_completed(works):
                failed += not tell(works[work], work, fast=arguments.fast)
    print(f"all: {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


def tell(name: str, work: "Future[tuple[dict[str, float], float]]", *, fast: bool) -> bool:
    """Says what was done, and writes what was measured into the ledger; whether it went well."""
    try:
        measured, seconds = work.result()
    except CellExecutionError as error:
        print(f"{name}: {error}", flush=True)
        return False
    if not fast:
        Ledger.load(HERE / "claims.toml").write_measured(measured)
    print(f"{name}: {seconds:.0f} s, {len(measured)} claims settled", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
