"""The wheel alone, in an environment with nothing else but its dependencies: every part of it works, and where an
extra is missing one line says what to install, which is all that was missing.

As proofs: they ask a package index, and take 3 GB of disk and ten minutes.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import zstandard

from transduce.cli.parser import GROUPS

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
SUFFIXES = {"configs": {".toml"}, "recipes": {".toml", ".json"}, "notebooks": {".ipynb", ".toml", ".jsonl"}}
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SMALL = (
    "--model.d_model 16 --model.d_ff 32 --model.num_heads 2 --model.num_encoder_layers 1 --model.num_decoder_layers 1 "
    "--training.minutes 0 --training.steps 20 --training.validate_every 20"
)
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
print(sum(cell.cell_type == "code" for cell in notebook.cells))
"""

pytestmark = pytest.mark.proof


class Environment:
    """A virtual environment whose programs are called in a folder outside the checkout."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work
        foreign = ("PYTHON", "TRANSDUCE_", "VIRTUAL_ENV", "OMP_")
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.variables |= {"PATH": f"{path / 'bin'}:{os.environ['PATH']}", "PIP_CONSTRAINT": str(CONSTRAINTS)}
        self.variables |= {"TRANSDUCE_FAST": "1", "TRANSDUCE_CACHE": str(work / "cache")}

    def run(self, *words: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        line = [str(self.path / "bin" / str(words[0])), *map(str, words[1:])]
        return subprocess.run(
            line, cwd=self.work, env=self.variables, input=stdin, capture_output=True, text=True, check=False
        )

    def output(self, *words: object, stdin: str = "") -> str:
        """Standard output of a program that must succeed."""
        found = self.run(*words, stdin=stdin)
        assert found.returncode == 0, f"{words}: {found.stdout[-1000:]}{found.stderr[-3000:]}"
        return found.stdout

    def transduce(self, line: str, stdin: str = "") -> str:
        """Standard output of a command that must succeed."""
        return self.output("python", "-m", "transduce", *shlex.split(line), stdin=stdin)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(words, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel and its dependencies, as pinned, and a table of pairs, `numbers.tsv`."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    environment = Environment(folder / "venv", folder)
    (torch,) = re.findall(r"(?m)^torch==.*$", CONSTRAINTS.read_text())
    environment.output("pip", "install", "--quiet", torch, wheel)
    pairs = [f"{number}\t{' '.join(DIGITS[int(digit)] for digit in str(number))}\n" for number in range(100, 900)]
    (folder / "numbers.tsv").write_text("".join(pairs))
    return environment


@pytest.fixture(scope="session")
def fitted(installed: Environment) -> Environment:
    """The same, with a run that `fit` made, `runs/numbers`, and one as in the paper: `runs/copy`."""
    installed.output("transduce", "fit", "numbers.tsv", "--minutes", "1")
    (installed.work / "copy.toml").write_text(installed.transduce("init --from copy"))
    installed.transduce(f"train copy.toml {SMALL}")
    return installed


@pytest.fixture
def roomy(fitted: Environment, tmp_path: Path) -> Environment:
    """The same packages and files, and room for more packages that no other test sees."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (below,) = (fitted.path / "lib").glob("*/site-packages")
    (above,) = (venv / "lib").glob("*/site-packages")
    (above / "below.pth").write_text(f"{below}\n")
    pip = venv / "bin/pip"
    pip.write_text(f"#!{venv}/bin/python\nimport runpy\nrunpy.run_module('pip', run_name='__main__')\n")
    pip.chmod(0o755)
    return Environment(venv, fitted.work)


def test_the_wheel_has_every_file_of_the_package_byte_for_byte_and_no_other(wheel: Path) -> None:
    files = {path for path in (ROOT / "src/transduce").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    expected = {f"transduce/{path.relative_to(ROOT / 'src/transduce')}": path.read_bytes() for path in files}
    for folder, suffixes in SUFFIXES.items():
        files = {path for path in (ROOT / folder).iterdir() if path.suffix in suffixes}
        expected |= {f"transduce/{folder}/{path.name}": path.read_bytes() for path in files}
    assert {"transduce/py.typed", "transduce/configs/copy.toml", "transduce/recipes/index.toml"} <= expected.keys()
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert found.keys() == expected.keys()
    assert found == expected


def test_the_description_in_the_wheel_has_no_link_that_leads_nowhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    targets = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert targets
    assert all(target.startswith("https://") for target in targets)


def test_what_runs_is_what_was_installed_and_pip_finds_nothing_missing(installed: Environment) -> None:
    program = "import transduce; print(transduce.__file__); print('transduce', transduce.__version__)"
    file, version = installed.output("python", "-c", program).split("\n")[:2]
    assert Path(file).is_relative_to(installed.path)
    assert installed.output("transduce", "--version") == f"{version}\n"
    installed.output("pip", "check")


@pytest.mark.parametrize("name", [name for group in GROUPS.values() for name in group])
def test_every_command_has_its_help(name: str, installed: Environment) -> None:
    assert installed.output("transduce", name, "--help").startswith(f"usage: transduce {name}")


def test_a_run_of_fit_predicts_explains_is_scored_compared_and_verified(fitted: Environment) -> None:
    lines = "123\n777\n"
    (fitted.work / "some.src").write_text(lines)
    (fitted.work / "some.tgt").write_text("one two three\nseven seven seven\n")
    some = "--source some.src --target some.tgt"
    outputs = fitted.transduce("predict runs/numbers", stdin=lines)
    assert outputs.count("\n") == 2
    fitted.transduce("explain runs/numbers 123 -o page.html")
    assert "</html>" in (fitted.work / "page.html").read_text()
    assert json.loads(fitted.transduce(f"evaluate runs/numbers {some} --metric cer --json"))
    assert fitted.transduce(f"score runs/numbers {some}").count("\n") == 2
    assert fitted.transduce(f"compare runs/numbers runs/numbers {some} --metric cer")
    assert fitted.transduce("describe runs/numbers")
    assert fitted.transduce("verify runs/numbers")
    program = "import transduce; print(transduce.load('runs/numbers')('123'))"
    assert fitted.output("python", "-c", program) == outputs.split("\n")[0] + "\n"


def test_settings_of_init_train_and_so_do_those_that_come_with_the_package(installed: Environment) -> None:
    (installed.work / "my.toml").write_text(installed.transduce("init numbers.tsv"))
    installed.transduce(f"train my.toml --data.valid numbers.tsv {SMALL} --processes 1")
    (installed.work / "two.toml").write_text(installed.transduce("init --from copy"))
    installed.transduce(f"train two.toml {SMALL} --processes 2")
    installed.transduce("average runs/two --last 1 -o runs/mean")
    assert installed.transduce("predict runs/mean", stdin="abc\n")


def test_lists_of_data_recipes_settings_and_claims_need_no_extra(installed: Environment) -> None:
    assert "multi30k" in installed.transduce("data")
    assert "multi30k" in installed.transduce("reproduce")
    assert "learning_rate" in installed.transduce("settings optim")
    assert installed.output("python", "-m", "transduce.learn").count("\n") > 50


def advice(environment: Environment, line: str, extra: str) -> str:
    """The command in the one line that a command without the extra prints about it."""
    found = environment.run("python", "-m", "transduce", *shlex.split(line))
    assert "Traceback" not in found.stderr
    command = f"pip install 'transduce[{extra}]'"
    assert [command in told for told in found.stderr.split("\n") if f"[{extra}]" in told] == [True]
    return command


@pytest.mark.parametrize(
    ("extra", "line", "written"),
    [
        ("zstd", "predict runs/numbers packed.zst -o zstd.txt", "zstd.txt"),
        ("tensorboard", f"train boards.toml {SMALL} --tensorboard", "runs/boards/tensorboard"),
        ("plots", f"train plots.toml {SMALL}", "runs/plots/learning_curve.png"),
        ("demo", "data cmudict -o words", "words/README.md"),
        ("export", "export runs/numbers --format ctranslate2 -o ct2", "ct2/certificate.json"),
        ("export", "export runs/numbers --format onnx -o onnx", "onnx/certificate.json"),
        ("export", "export runs/copy --format huggingface -o hf", "hf/certificate.json"),
    ],
)
def test_what_a_command_without_an_extra_says_to_install_is_all_it_needs(
    extra: str, line: str, written: str, roomy: Environment
) -> None:
    (roomy.work / "packed.zst").write_bytes(zstandard.compress(b"123\n"))
    for name in ("boards", "plots"):
        (roomy.work / f"{name}.toml").write_text(roomy.transduce("init --from copy"))
    command = advice(roomy, line, extra)
    assert not (roomy.work / written).exists()
    for name in ("boards", "plots"):  # these trained, without what was missing
        shutil.rmtree(roomy.work / "runs" / name, ignore_errors=True)
    roomy.output(*shlex.split(command))
    roomy.transduce(line)
    assert (roomy.work / written).exists()


def test_notebooks_say_what_to_install_and_are_then_executed(roomy: Environment) -> None:
    command = advice(roomy, "learn notebooks", "learn")
    source = json.loads((roomy.work / "notebooks/masks.ipynb").read_text())["cells"][0]["source"]
    found = roomy.run("python", "-c", "".join(source))
    assert found.stderr.rstrip("\n").endswith(command)
    roomy.output(*shlex.split(command))
    assert "pip install" not in roomy.run("python", "-m", "transduce", "learn", "notebooks").stderr
    assert int(roomy.output("python", "-c", EXECUTE, "notebooks/masks.ipynb")) > 5
