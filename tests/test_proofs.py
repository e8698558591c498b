"""Proofs are run whole and remembered, or as a sample that a limit may end but a failure may not survive."""

import json
import subprocess
import time
from pathlib import Path

import pytest

import proofs

CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
pytest_plugins = ["sampling"]
"""
SETTINGS = """
[pytest]
addopts = -q --strict-markers -m 'not proof'
markers = proof
"""
QUICK = """
import pytest
from pathlib import Path
@pytest.mark.proof
@pytest.mark.parametrize("number", range(7))
def test_quick(number):
    with Path("ran").open("a") as file:
        file.write(f"{number}\\n")
def test_that_is_no_proof():
    assert False
"""
SLOW = """
import pytest, time
@pytest.mark.proof
@pytest.mark.parametrize("seconds", [0.3] * 50)
def test_slow(seconds):
    time.sleep(seconds)
"""
ENDLESS = """
import pytest, subprocess
@pytest.mark.proof
def test_endless():  # by a process that neither a signal to this one nor to its group reaches
    subprocess.run(["sleep", "100"], start_new_session=True)
"""
TAKING_IT_AMISS = """
import pytest, time
@pytest.mark.proof
def test_that_fails_when_interrupted():
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        raise AssertionError
"""
FAILING = """
import pytest
@pytest.mark.proof
def test_failing():
    assert 1 + 1 == 3
@pytest.mark.proof
def test_passing():
    pass
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without tests yet."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to import
    monkeypatch.setattr(proofs, "ROOT", tmp_path)
    monkeypatch.setattr(proofs, "RESULTS", tmp_path / "tests/proofs.json")
    return tmp_path


def test_every_file_with_proofs_is_a_part(project: Path) -> None:
    (project / "tests/learn").mkdir()
    for name, content in (("test_a.py", QUICK), ("learn/test_b.py", FAILING), ("test_c.py", "def test(): pass")):
        (project / "tests" / name).write_text(content)
    assert proofs.part_sizes() == {"test_a.py": 7, "learn/test_b.py": 2}


def test_what_passed_whole_at_a_commit_is_not_run_again_there(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "tests/test_quick.py").write_text(QUICK)
    for commit, num_runs in (("a", 1), ("a", 1), ("b", 2), ("b-dirty", 3), ("b-dirty", 4)):
        assert proofs.prove(["test_quick.py"], commit) == 0
        assert (project / "ran").read_text().count("\n") == 7 * num_runs
    assert "test_quick.py: passed at this commit before" in capsys.readouterr().out
    (row,) = json.loads((project / "tests/proofs.json").read_text())
    assert (row["part"], row["commit"], row["passed"], row["failed"]) == ("test_quick.py", "b-dirty", 7, 0)
    assert row["complete"]


def test_a_failure_is_recorded_named_and_the_exit_status(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tests/test_failing.py").write_text(FAILING)
    assert proofs.prove(["test_failing.py"], "a") == 1
    assert proofs.prove(["test_failing.py"], "a") == 1, "it is not remembered as passed"
    (row,) = json.loads((project / "tests/proofs.json").read_text())
    assert (row["passed"], row["failed"], row["failures"]) == (1, 1, ["tests/test_failing.py::test_failing"])
    assert proofs.sample(["test_failing.py"], "a") == 1
    told = capsys.readouterr().out
    assert "FAILED tests/test_failing.py::test_failing" in told
    assert told.rstrip().rpartition("\n")[2].startswith("1 failed, 1 passed in ")


def test_a_file_that_cannot_be_read_is_a_failure(project: Path) -> None:
    (project / "tests/test_broken.py").write_text("import nothing_of_this_name")
    assert proofs.run_part("test_broken.py", "a").failed == 1
    with pytest.raises(SystemExit, match="the proofs cannot be listed"):
        proofs.part_sizes()


def test_time_that_is_over_ends_a_sample_and_fails_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("slow", SLOW), ("endless", ENDLESS), ("amiss", TAKING_IT_AMISS)):
        (project / f"tests/test_{name}.py").write_text(content)
    monkeypatch.setattr(proofs, "SAMPLE_SECONDS", 9)
    started = time.monotonic()
    assert proofs.sample(["test_slow.py", "test_endless.py", "test_amiss.py"], "a") == 0
    assert time.monotonic() - started < 60
    slow, endless, amiss, _ = capsys.readouterr().out.split("\n", 3)
    assert slow.startswith("test_slow.py: ") and " of 50, until its time was over: " in slow
    assert 0 < int(slow.split()[1]) < 50
    assert endless.startswith("test_endless.py: 0 of 1, until its time was over: ")
    assert amiss.startswith("test_amiss.py: 0 of 1, until its time was over: ")
    assert not (project / "tests/proofs.json").exists()


def test_a_sample_is_drawn_by_its_seed(project: Path) -> None:
    (project / "tests/test_quick.py").write_text(QUICK)

    def order(seed: str) -> list[str]:
        words = [*proofs.pytest_words(), "--collect-only", f"--sample-seed={seed}"]
        listed = subprocess.run(words, cwd=project, capture_output=True, text=True, check=True).stdout
        return [line for line in listed.split("\n") if "::" in line]

    first, again, other = order("a"), order("a"), order("b")
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_a_commit_is_dirty_where_a_file_was_changed_but_not_the_results(project: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *words], cwd=project, check=True)

    assert proofs.commit() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    (project / "tests/proofs.json").write_text("[]")
    clean = proofs.commit()
    assert len(clean) == 40
    (project / "pytest.ini").write_text(SETTINGS + "\n")
    assert proofs.commit() == f"{clean}-dirty"
