import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest

from shapes import Finder
from transduce.errors import RunFolderError
from transduce.files.locks import lock, try_lock

pytest_plugins = ["small_run"]

HOLD = """
import sys
from pathlib import Path
from transduce.files.locks import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


def test_a_lock_held_elsewhere_is_refused_with_its_owner_or_waited_for_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    reports = []
    with holder(path) as process:
        with (
            pytest.raises(RunFolderError, match=f"^{tmp_path} is in use by process {process.pid}. Wait for it"),
            lock(path),
        ):
            pass

        def report(line: str) -> None:
            reports.append(line)
            process.kill()

        with lock(path, report):
            assert path.read_text() == f"{os.getpid()}\n"
        assert reports == [f"waiting for process {process.pid}, which is working on a"]
    with lock(path):
        pass


def test_an_error_in_the_block_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the block") as caught, lock(tmp_path / "a.lock"):
        raise OSError(errno.EIO, "of the block")
    assert type(caught.value) is OSError
    with lock(tmp_path / "a.lock"):
        pass


def test_a_disk_too_full_for_the_name_of_the_owner_is_told_in_one_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # every write fails, that of closing a file too
    try:
        with pytest.raises(RunFolderError, match=r"a\.lock: cannot be written: .* free\)"), lock(tmp_path / "a.lock"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", [".", "file"])
def test_a_file_or_folder_is_locked_with_nothing_in_it_and_for_one_at_a_time(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):  # it is free again after the block
        with ExitStack() as held:
            assert try_lock(tmp_path / name, held)
            assert [path.name for path in tmp_path.iterdir()] == ["file"]
            assert not try_lock(tmp_path / name, held)


def test_what_is_gone_cannot_be_locked(tmp_path: Path) -> None:
    with ExitStack() as held:
        assert not try_lock(tmp_path / "none", held)


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    with ExitStack() as held:
        yield None if try_lock(path, held) else pytest.fail("it is locked")


@pytest.mark.parametrize("held", [lambda path: lock(path / "a.lock"), locked_folder], ids=["file", "folder"])
def test_a_disk_that_knows_no_locks_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held) -> None:
    def refuse(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be locked here \(No locks available\): choose"), held(tmp_path):
        pass


WITHOUT_FCNTL = """
import sys, types, warnings
from contextlib import ExitStack
import transduce
predictor = transduce.load(run, device="cpu")
predictor(["abc"])
sys.modules["portalocker"] = types.ModuleType("portalocker")  # of sacreBLEU, which has another for Windows
warnings.simplefilter("ignore")  # filelock warns where neither Unix nor Windows locks for it
from transduce.config.settings import load_config
from transduce.errors import RunFolderError
from transduce.files.locks import lock, try_lock
for _ in range(2):  # it is free again after the block
    with lock(folder / "a.lock"):
        try:
            with lock(folder / "a.lock"):
                raise SystemExit("taken twice")
        except RunFolderError as error:
            assert "in use by" in str(error)
    with ExitStack() as held:
        assert try_lock(folder, held) and not try_lock(folder, held)
config = load_config((run / "config.toml").read_text(), "config.toml", ["--training.steps", "2"])
made = transduce.train(config, folder / "run", device="cpu")
made.save(folder / "copy")
assert transduce.load(folder / "copy", device="cpu")(["abc"]) == made(["abc"])
"""


def run_without_fcntl(folder: Path, run: Path) -> None:
    """In a process in which nothing of ours was imported yet, nor what locks for it."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("transduce", "filelock")]:
        del sys.modules[name]
    sys.meta_path.remove(Finder)  # beartype takes classes of one name for one class
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    exec(WITHOUT_FCNTL, {"folder": folder, "run": run})


def test_where_fcntl_is_missing_runs_are_locked_and_trained_all_the_same(tmp_path: Path, run: Path) -> None:
    process = get_context("fork").Process(target=run_without_fcntl, args=(tmp_path, run))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lock", "copy", "run"]
