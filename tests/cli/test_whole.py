"""What a command writes appears whole or not at all; killed at any moment, the same command can be given again."""

import os
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from calling import command, content_of
from crashing import count_operations, is_killed_at, moments
from transduce.runs.folder import RunFolder
from transduce.runs.run import load

pytest_plugins = ["small_run"]

SAMPLE = 3  # moments of each command outside of proofs: each takes as long as the command
Work = Callable[[Path], object]


@pytest.fixture(scope="module")
def lines(data: Path) -> Path:
    path = data / "three.source"
    path.write_text("abc\n\ndef\n")
    return path


def works(run: Path, lines: Path) -> dict[str, Work]:
    """Commands that write `out` in a folder."""
    export = ["export", run, "--source", lines, "--quiet", "--format"]
    return {
        "average": lambda room: done("average", run, "--last", 2, "-o", room / "out", "--quiet"),
        "save": lambda room: load(run, device="cpu").save(room / "out"),
        "export onnx": lambda room: done(*export, "onnx", "-o", room / "out"),
        "export ctranslate2": lambda room: done(*export, "ctranslate2", "-o", room / "out"),
        "predict": lambda room: done("predict", run, lines, "-o", room / "out", "--quiet"),
        "explain": lambda room: done("explain", run, "abc", "-o", room / "out", "--quiet"),
        "score": lambda room: done("score", run, "-o", room / "out", stdin=b"abc\tabc\n"),
        "data": lambda room: done("data", "copy", "-o", room / "out"),
    }


WORKS = [*works(Path(), Path())]


def done(*words: object, stdin: bytes = b"") -> None:
    outcome = command(*words, stdin=stdin)
    assert outcome.status == 0, outcome.err


def bytes_of(place: Path) -> dict[str, bytes]:
    """All that lies in a folder, but for the process in a lock; in an export, what is in its files is not compared."""
    files = {name: content for name, content in content_of(place).items() if not name.endswith("run.lock")}
    return dict.fromkeys(files, b"") if "out/certificate.json" in files else files


@pytest.mark.parametrize("name", [name for name in WORKS if name != "data"])  # which takes long
def test_killed_at_a_sample_of_moments_a_command_can_be_given_again(
    name: str, run: Path, lines: Path, tmp_path: Path
) -> None:
    check_moments(works(run, lines)[name], tmp_path, SAMPLE, is_whole=True)


@pytest.mark.proof
@pytest.mark.parametrize("name", WORKS)
def test_killed_at_any_moment_a_command_can_be_given_again(name: str, run: Path, lines: Path, tmp_path: Path) -> None:
    check_moments(works(run, lines)[name], tmp_path, None, is_whole=name != "data")


def check_moments(work: Work, room: Path, sample: int | None, *, is_whole: bool) -> None:
    """Kills `work` at moments, and gives it again; `is_whole` says whether all that it writes appears at once."""
    (room / "whole").mkdir()
    total = count_operations(lambda: work(room / "whole"))
    expected = bytes_of(room / "whole")
    assert total > 3 and expected
    for at, is_late in moments(total, sample):
        place = room / f"{at}-{is_late}"
        place.mkdir()
        assert is_killed_at(at, partial(work, place), is_late=is_late), (at, total)
        left = {name: content for name, content in bytes_of(place).items() if not name.startswith(".")}
        assert left in ({}, expected) or not is_whole, (at, is_late)
        if left != expected:
            work(place)
        assert bytes_of(place) == expected, (at, is_late)
        assert [path.name for path in place.iterdir()] == ["out"], (at, is_late)
        shutil.rmtree(place)


# -o


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "checkpoints/step-00000060.safetensors"])
def test_no_command_writes_over_a_file_of_the_run_that_it_reads(
    name: str, run: Path, lines: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(run / name)
    os.link(run / name, tmp_path / "other name")
    before = content_of(run)
    commands = (f"predict {run} {lines}", f"explain {run} a", f"score {run} {lines}", f"benchmark decode --run {run}")
    for output in (run / name, tmp_path / "link", tmp_path / "other name", run / ".." / run.name / name):
        for words in commands:
            found = command(*words.split(), "-o", output)
            assert found.status == 2, words
            assert f"-o {output} is {Path(name).name} of {run}: choose another name" in found.err
    assert content_of(run) == before


def test_answers_may_lie_in_the_folder_of_the_run_and_be_written_again(run: Path, lines: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "own"))
    for _ in range(2):
        assert command("predict", own, lines, "-o", own / "answers.json", "--json").status == 0


def test_a_narrowed_file_stays_narrow(run: Path, lines: Path, tmp_path: Path) -> None:
    own = RunFolder(shutil.copytree(run, tmp_path / "own"))
    for path in (tmp_path / "out", own.path / "run.json", own.path / "config.toml"):
        path.touch()
        path.chmod(0o600)
    done("predict", run, lines, "-o", tmp_path / "out")
    own.update_facts({"a": 1})
    own.rewrite_config(own.config_text)
    for path in (tmp_path / "out", own.path / "run.json", own.path / "config.toml"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["loop", "x" * 256, "no\0thing"])
def test_an_output_that_cannot_be_is_refused_in_one_line(name: str, run: Path, lines: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for words in (["predict", run, lines], ["average", run, "--last", 2]):
        found = command(*words, "-o", tmp_path / name)
        assert (found.status, found.err.count("\n")) == (73, 1), found.err
    assert [path.name for path in tmp_path.iterdir()] == ["loop"] and (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize("length", [242, 255])
def test_an_output_may_have_the_longest_name_there_is(length: int, run: Path, lines: Path, tmp_path: Path) -> None:
    done("predict", run, lines, "-o", tmp_path / ("x" * length))
    done("average", run, "--last", 2, "-o", tmp_path / ("y" * length))


def test_an_average_may_replace_an_empty_folder_and_makes_those_above_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "empty", tmp_path / "a/b/c"):
        done("average", run, "--last", 2, "-o", output)
        assert command("verify", output).status == 0
