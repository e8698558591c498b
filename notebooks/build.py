"""Executes the notebooks, writes them with their outputs, and what was measured into the ledger:

    notebooks/build.py [NAME ...] [--fast]

The text form NAME.py (jupytext, percent format) is what is written and reviewed; NAME.ipynb is made of it here and
nowhere else. With --fast nothing is written: experiments run at their smallest, and only have to go the right way.

In the text, `{claim:NAME:FORMAT}` is what was measured for a claim, `{claim:NAME.longer:FORMAT}` another field of it.
A cell tagged `from-piece-N` gets the code of piece N of `transduce.learn.build_it.pieces`: it stands there alone.
Cells tagged `piece-N` are for the reader to write: such a notebook is run a second time with the solutions in them, and
what cells tagged `with-solutions` gave then stands below what they give as they are.
"""

import argparse
import copy
import inspect
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from transduce.devices.machine import usable_cores
from transduce.errors import MissingInputError
from transduce.files.atomic import write_atomically
from transduce.learn import Ledger
from transduce.learn.build_it import pieces
from transduce.learn.notebooks import first_cell

HERE = Path(__file__).parent
SECONDS_PER_CELL = 900
MEASURE_TIME = ("why_it_matters",)
WITH_SOLUTIONS = nbformat.v4.new_output("display_data", {"text/markdown": "*With the solutions:*"})


def names() -> list[str]:
    """The notebooks, the main one first, then the workshop."""
    found = sorted(path.stem for path in HERE.glob("*.py") if path.name != Path(__file__).name)
    return sorted(found, key=lambda name: (name != "transformer", name != "build_it"))


def read_text(name: str) -> Any:
    """The notebook as its text form says, without outputs; ids of cells are their numbers, so that nothing drifts."""
    notebook = jupytext.read(HERE / f"{name}.py")
    ledger = Ledger.load(HERE / "claims.toml")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first_cell(), metadata={"tags": ["hide-input"]}))
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = with_numbers(cell.source, ledger)
        put_pieces(cell, "from-piece-")
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def with_numbers(text: str, ledger: Ledger) -> str:
    """The text with the ledger's numbers in the places that name them."""

    def number(place: "re.Match[str]") -> str:
        name, field, form = place.groups()
        value = getattr(ledger[name], field or "measured")
        is_missing = value is None or (field == "steps" and not value)
        return "(not measured yet)" if is_missing else format(value, form or "")

    return re.sub(r"\{claim:([\w-]+)(?:\.(\w+))?(?::([^}]*))?\}", number, text)


def refresh(name: str) -> None:
    """Puts the text, with the ledger's numbers as they are now, into a notebook that was executed; outputs stay."""
    path = HERE / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    text = read_text(name)
    if code_of(notebook) != code_of(text):
        return  # it waits to be executed anew
    for cell, written in zip(notebook.cells, text.cells, strict=True):
        if cell.cell_type == "markdown":
            cell.source = written.source
    write_atomically(path, f"{nbformat.writes(notebook)}\n".encode())


def code_of(notebook: Any) -> list[str | None]:
    """The source of each cell of code, and None for each of text."""
    return [cell.source if cell.cell_type == "code" else None for cell in notebook.cells]


@dataclass(frozen=True)
class Executed:
    """A notebook with its outputs."""

    notebook: Any
    measured: dict[str, float]  # by claim
    small: list[str]  # claims that a full run settled in their fast form, for want of data
    seconds: float


def execute(name: str, *, fast: bool, num_threads: int = 1) -> Executed:
    """Runs all cells in order. Raises CellExecutionError, CellTimeoutError or DeadKernelError."""
    notebook = read_text(name)
    solved = with_solutions(notebook)
    has_pieces_to_write = solved.cells != notebook.cells
    done = run(notebook, fast=fast, num_threads=num_threads)
    if has_pieces_to_write:
        by_solutions = run(solved, fast=fast, num_threads=num_threads)
        for cell, solved_cell in zip(done.notebook.cells, by_solutions.notebook.cells, strict=True):
            if "with-solutions" in tags_of(cell):
                cell.outputs += [WITH_SOLUTIONS, *solved_cell.outputs]
        done = replace(done, seconds=done.seconds + by_solutions.seconds)
    return done


def with_solutions(notebook: Any) -> Any:
    """A copy of a notebook, with each cell that the reader is to write replaced by its solution."""
    solved = copy.deepcopy(notebook)
    for cell in solved.cells:
        put_pieces(cell, "piece-")
    return solved


def put_pieces(cell: Any, tag_begin: str) -> None:
    """Replaces the source of a cell tagged `tag_begin` and numbers by those pieces of code."""
    numbers = [tag.removeprefix(tag_begin) for tag in tags_of(cell) if tag.startswith(tag_begin)]
    if numbers:
        cell.source = "\n\n\n".join(pieces_by_number()[number] for number in numbers)


@cache
def pieces_by_number() -> dict[str, str]:
    """The thirteen pieces of the workshop, as code."""
    found = re.findall(r"^# (\d+) · [^\n]*\n(.*?)(?=^# \d+ · |\Z)", inspect.getsource(pieces), re.M | re.S)
    return {number: code.strip() for number, code in found}


def tags_of(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def run(notebook: Any, *, fast: bool, num_threads: int) -> Executed:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "measured.jsonl"
        settings = {"TRANSDUCE_MEASURED": str(record), "TRANSDUCE_FAST": "1" if fast else ""}
        settings["OMP_NUM_THREADS"] = str(num_threads)
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
    rows = list(map(json.loads, lines))
    measured = {row["claim"]: row["measured"] for row in rows}
    return Executed(notebook, measured, [row["claim"] for row in rows if row["fast"] != fast], seconds)


def build(name: str, *, fast: bool, num_threads: int) -> tuple[dict[str, float], float]:
    """Executes one notebook and, unless `fast`, writes it with its outputs; measured values, and seconds.

    Raises MissingInputError, with nothing written, where the data of a full run are not to be had.
    """
    done = execute(name, fast=fast, num_threads=num_threads)
    if done.small:
        raise MissingInputError(
            f"{done.small[0]}: its data cannot be had, so that its small form ran. Nothing is written."
        )
    if not fast:
        write_atomically(HERE / f"{name}.ipynb", f"{nbformat.writes(done.notebook)}\n".encode())
    return done.measured, done.seconds


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
        # Networks of an experiment are too small to be shared between cores: a notebook on each does more.
        num_workers, num_threads = (usable_cores(), 1) if number else (1, usable_cores())
        with ProcessPoolExecutor(num_workers) as pool:
            works = {pool.submit(build, n, fast=arguments.fast, num_threads=num_threads): n for n in names_at_once}
            for work in as_completed(works):
                failed += not tell(works[work], work, fast=arguments.fast)
    if not (arguments.fast or failed):
        for name in names():
            refresh(name)
    print(f"all: {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


def tell(name: str, work: "Future[tuple[dict[str, float], float]]", *, fast: bool) -> bool:
    """Says what was done, and writes what was measured into the ledger; whether it went well."""
    try:
        measured, seconds = work.result()
    except (CellExecutionError, CellTimeoutError, DeadKernelError, BrokenProcessPool, MissingInputError) as error:
        print(f"{name}: {error}", flush=True)
        return False
    if not fast:
        Ledger.load(HERE / "claims.toml").write_measured(measured)
    print(f"{name}: {seconds:.0f} s, {len(measured)} claims settled", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
