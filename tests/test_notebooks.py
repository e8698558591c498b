"""The committed notebooks are what their text says, executed; and their experiments go the stated way."""

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import transduce.learn
from transduce.errors import MissingInputError
from transduce.learn import Ledger
from transduce.learn.exercising import all_exercises
from transduce.learn.ledger import in_digits

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
import build  # noqa: E402 - it lies beside the notebooks, outside the package

NAMES = build.names()
MOST_BYTES = 5_000_000  # of a notebook with its pictures: what a browser shows at once
each = pytest.mark.parametrize("name", NAMES)


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def texts() -> str:
    return "\n".join((FOLDER / f"{name}.py").read_text() for name in NAMES)


def test_there_is_a_main_notebook_a_workshop_and_at_most_eight_others():
    assert NAMES[:2] == ["transformer", "build_it"]
    assert len(NAMES) <= 10


def test_each_has_a_folder_of_its_name_with_what_it_is_made_of():
    folders = {path.parent.name for path in Path(transduce.learn.__file__).parent.glob("*/__init__.py")}
    assert folders == set(NAMES)


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
def test_every_figure_is_sharp_and_described(name):
    for cell in committed(name).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                shown = output.metadata["image/png"]
                assert len(shown["alt"]) > 20
                width = int.from_bytes(base64.b64decode(output.data["image/png"])[16:20], "big")
                assert width >= 1.9 * shown["width"]


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


@each
def test_headings_are_unique_and_links_within_a_notebook_lead_to_one(name):
    text = "\n".join(cell.source for cell in build.read_text(name).cells if cell.cell_type == "markdown")
    headings = [heading.strip().replace(" ", "-") for heading in re.findall(r"(?m)^#+ (.*)$", text)]
    assert len(set(headings)) == len(headings)
    assert set(re.findall(r"\]\(#([^)\s]+)\)", text)) <= set(headings)


def test_every_claim_is_settled_in_exactly_one_notebook_and_nothing_else_is():
    settled = re.findall(r"""(?:settle|recorded)\(\s*["']([\w-]+)["']""", texts())
    assert sorted(settled) == sorted(Ledger.load(FOLDER / "claims.toml").claims)


def test_every_exercise_is_asked():
    asked = re.findall(r"""check\(\s*f?["']([\w-]+)["']""", texts())
    assert set(asked) == set(all_exercises())


def test_the_plan_for_teachers_names_exercises_that_there_are():
    plan = (FOLDER.parent / "docs/TEACHING.md").read_text()
    named = set(re.findall(r"`([a-z]+-[\w-]+)`", plan))
    assert len(named) > 30
    assert named <= set(all_exercises())


@each
def test_its_numbers_are_those_of_the_ledger(name):
    """A notebook's boxes and the ledger are written by different hands: they must not part."""
    ledger = Ledger.load(FOLDER / "claims.toml")
    boxes = [
        "".join(output["data"]["text/markdown"])
        for cell in committed(name).cells
        for output in cell.get("outputs", [])
        if "python -m transduce.learn" in "".join(output.get("data", {}).get("text/markdown", ""))
    ]
    found = [re.search(r"measured (\S+) · .*`python -m transduce.learn ([\w-]+)`", box).groups() for box in boxes]
    assert found == [(in_digits(ledger[claim].measured), claim) for _, claim in found]
    text = (FOLDER / f"{name}.py").read_text()
    assert len(found) == len(re.findall(r"(?:\.settle|\.recorded)\(", text))


@pytest.mark.proof
@each
def test_every_experiment_runs_at_its_smallest_and_goes_the_stated_way(name):
    done = build.execute(name, fast=True)
    outputs = [output for cell in done.notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    settled = re.findall(r"""settle\(\s*["']([\w-]+)["']""", (FOLDER / f"{name}.py").read_text())
    assert sorted(done.measured) == sorted(settled)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The wheel of the package, unpacked: what is installed where there is no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(FOLDER.parent)]
    subprocess.run(words, check=True)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder / "site", "zip")
    return folder / "site"


@pytest.mark.proof
@each
def test_it_runs_alone_in_an_empty_folder_with_nothing_but_the_installed_package(name, installed, tmp_path):
    shutil.copy(FOLDER / f"{name}.ipynb", tmp_path)
    code = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "nbclient.NotebookClient(notebook, timeout=900, kernel_name='python3').execute()\n"
        "import transduce\n"
        "print(transduce.__file__)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "TRANSDUCE_FAST": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code, f"{name}.ipynb"]
    found = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.strip() == str(installed / "transduce/__init__.py")
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.ipynb"]


def test_what_was_settled_for_want_of_data_is_not_written(monkeypatch, tmp_path):
    done = build.Executed(notebook=None, measured={"a-claim": 1.0}, small=["a-claim"], seconds=1.0)
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "execute", lambda *_args, **_settings: done)
    with pytest.raises(MissingInputError, match="a-claim"):
        build.build("masks", fast=False, num_threads=1)
    assert not list(tmp_path.iterdir())
