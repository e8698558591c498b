"""Every bug of `planted.py` is found by the tests that it names, which find none where none is planted.

And every test that a promise names (docs/ARCHITECTURE.md) is there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import planted
from planted import BUGS

ROOT = Path(__file__).parents[1]
COPIED = ("src", "tests", "pyproject.toml")  # what else tests look at is the checkout's own
SOME_FAILED = 1  # the status of pytest; others are errors of its own


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, in which a bug may be planted."""
    copy = tmp_path_factory.mktemp("planted")
    for path in ROOT.iterdir():
        if path.name not in COPIED:
            (copy / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
    return copy


def run_tests(tree: Path, tests: list[str]) -> "subprocess.CompletedProcess[str]":
    """Runs some tests of the copy, proofs left out, on its package."""
    words = [sys.executable, "-P", "-m", "pytest", "-x", "-n0", "-p", "no:cacheprovider", "-o", "timeout=120"]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    words += [f"tests/{test}" for test in tests]
    return subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_every_bug_can_be_planted_and_has_tests() -> None:
    for name, bug in BUGS.items():
        content = (ROOT / "src/transduce" / bug.file).read_text()
        assert content.count(bug.old) == 1, f"{name}: write it into {bug.file} as it is now"
        assert bug.new != bug.old
        for test in bug.tests:
            file, _, function = test.partition("::")
            assert f"def {function}(" in (ROOT / "tests" / file).read_text(), f"{name}: {test} is gone"
    groups = (planted.DISK, planted.RESUMING, planted.LEARNING, planted.READING, planted.ANSWERING)
    assert len(BUGS) == sum(map(len, groups)), "two bugs have one name"


def test_every_test_that_a_promise_names_is_there() -> None:
    section = (ROOT / "docs/ARCHITECTURE.md").read_text().split("\n## Promises\n")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+/test_\w+)`:((?: `test_\w+`,?)+)", section)
    assert len(named) > 9
    for file, tests in named:
        content = (ROOT / f"tests/{file}.py").read_text()
        assert [test for test in re.findall(r"\w+", tests) if f"def {test}(" not in content] == [], file


@pytest.mark.proof
def test_where_no_bug_is_planted_the_tests_pass(tree: Path) -> None:
    found = run_tests(tree, sorted({test for bug in BUGS.values() for test in bug.tests}))
    assert found.returncode == 0, found.stdout
    words = [sys.executable, "-P", "-c", "import transduce; print(transduce.__file__)"]
    path = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(tree / "src")}, capture_output=True, text=True)
    assert Path(path.stdout.strip()).is_relative_to(tree), "the tests saw another package"


@pytest.mark.proof
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, tree: Path) -> None:
    bug = BUGS[name]
    path = tree / "src/transduce" / bug.file
    content = path.read_text()
    try:
        path.write_text(content.replace(bug.old, bug.new))
        for test in bug.tests:
            found = run_tests(tree, [test])
            assert found.returncode == SOME_FAILED, found.stdout + found.stderr
            assert " error" not in found.stdout.rstrip().rpartition("\n")[2], found.stdout
    finally:
        path.write_text(content)
