"""The committed notebooks are what their text says, executed; and their experiments go the stated way."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

from transduce.learn import Ledger
from transduce.learn.exercise import all_exercises

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
import build  # noqa: E402 - it lies beside the notebooks, outside the package

NAMES = build.names()
MOST_BYTES = 2_000_000  # of a notebook with its pictures: what a browser shows at once
each = pytest.mark.parametrize("name", NAMES)


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def texts() -> str:
    return "\n".join((FOLDER / f"{name}.py").read_text() for name in NAMES)


def test_there_is_a_flagship_and_at_most_eight_others():
    assert NAMES[0] == "transformer"
    assert len(NAMES) <= 9


@each
def test_text_and_notebook_agree(name):
    text, notebook = build.read_text(name), committed(name)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in text.cells
    ]


@each
def test_every_cell_was_executed_in_order_and_without_an_error(name):
    cells = [cell for cell in committed(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@each
def test_a_notebook_is_light_and_asks_nobody_for_anything(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES
    for cell in committed(name).cells:
        for output in cell.get("outputs", []):
            page = "".join(output.get("data", {}).get("text/html", ""))
            assert len(page) < 300_000
            assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(\s*["']?(https?:)?//|@import""", page)


@each
def test_what_a_notebook_points_to_is_there(name):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (FOLDER / f"{name}.py").read_text()):
        if not target.startswith(("http://", "https://")):
            assert (FOLDER / target).exists(), target


def test_every_claim_is_settled_in_exactly_one_notebook_and_nothing_else_is():
    settled = re.findall(r"""settle\(\s*["']([\w-]+)["']""", texts())
    assert sorted(settled) == sorted(Ledger.load(FOLDER / "claims.toml").claims)


def test_every_exercise_is_asked():
    asked = re.findall(r"""check\(\s*f?["']([\w-]+)["']""", texts())
    assert set(asked) == set(all_exercises())


@each
def test_experiments_go_the_stated_way_at_their_smallest(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # one order of adding up, on every machine
    notebook, measured, _ = build.execute(name, fast=True)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    settled = re.findall(r"""settle\(\s*["']([\w-]+)["']""", (FOLDER / f"{name}.py").read_text())
    assert sorted(measured) == sorted(settled)
