import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transduce.errors import RunFolderError
from transduce.files.locks import lock, lock_folder

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
        assert reports == [f"waiting for process {process.pid}, which is at work on a"]
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


def test_a_folder_is_locked_with_nothing_in_it_and_for_one_at_a_time(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(RunFolderError, match="in use by another process"), lock_folder(tmp_path):
            pass
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("held", [lambda path: lock(path / "a.lock"), lock_folder], ids=["file", "folder"])
def test_a_disk_that_knows_no_locks_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held) -> None:
    def refuse(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be locked here \(No locks available\): take"), held(tmp_path):
        pass
