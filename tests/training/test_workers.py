"""Worker processes: what is refused, what is said where none can be started, and who can reach them."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

import transduce
from transduce.devices import machine
from transduce.errors import LostProcessError, RunFolderError, TransduceError
from transduce.training import workers
from transduce.training.distributed import Process
from transduce.training.signals import Stopped

PAIRS = [(f"a{n}", f"b{n}") for n in range(64)]
SECTIONS: dict[str, Any] = {
    "training": {"steps": 3, "batch_tokens": 64, "part_tokens": 16},
    "model": {"d_model": 16, "num_heads": 1},
    "tokenizer": {"source": "characters", "target": "characters"},
}


@dataclass(frozen=True)
class Wire(Process):
    """A process whose exchange is a list: what rank 0 sends, as it is pickled, is what rank 1 has."""

    world_size: int = 2
    sent: list[bytes] = field(default_factory=list)

    def from_main(self, value: Any) -> Any:
        if self.is_main:
            self.sent.append(pickle.dumps(value))
        return value if self.is_main else pickle.loads(self.sent.pop())


class UnknownError(TransduceError):
    """An error of the caller's own, of a class that the other processes need not know."""


def raised_by(process: Process, error: BaseException) -> BaseException:
    def work() -> None:
        raise error

    with pytest.raises(type(error) if process.is_main else (TransduceError, Stopped)) as info:
        process.decide(work)
    return info.value


@pytest.mark.parametrize(
    "error",
    [ValueError(lambda: 1), UnknownError("x"), KeyboardInterrupt(), SystemExit(3)],
    ids=["cannot be pickled", "of a script", "Ctrl-C", "exit"],
)
def test_an_error_of_the_caller_stays_on_rank_0_and_is_named_on_the_others(error: BaseException) -> None:
    main = Wire()
    assert raised_by(main, error) is error
    other = raised_by(Wire(rank=1, sent=main.sent), error)
    assert type(other) is TransduceError
    assert type(error).__name__ in str(other)


@pytest.mark.parametrize("error", [RunFolderError("taken"), Stopped(15, "saved")], ids=["error", "stop"])
def test_what_is_ours_is_raised_alike_by_all(error: BaseException) -> None:
    main = Wire()
    raised_by(main, error)
    other = raised_by(Wire(rank=1, sent=main.sent), error)
    assert (type(other), str(other)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("device", "world_size", "num", "reason"),
    [("cuda", "1", 2, "torchrun"), ("cpu", "2", 3, "torchrun"), ("cpu", "1", 0, "whole number")],
)
def test_processes_that_are_for_torchrun_or_no_number_are_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, world_size: str, num: int, reason: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(TransduceError, match=reason):
        workers.refuse_processes(num, torch.device(device))
    workers.refuse_processes(1, torch.device(device))


@pytest.mark.parametrize(
    ("threads", "cores", "num", "expected"), [(1, 4, 2, 1), (2, 2, 2, 1), (4, 64, 2, 2), (8, 2, 2, 1), (8, 2, 1, 8)]
)
def test_processes_share_the_threads_that_were_set_and_the_cores_there_are(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, num: int, expected: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    assert workers.usable_threads() == min(threads, cores)
    assert workers.threads_of_each(num) == expected


def addresses(pid: int) -> Iterator[str]:
    """The local addresses of the TCP sockets of a process, as the kernel writes them."""
    sockets = {str(path.readlink())[8:-1] for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    for version in ("tcp", "tcp6"):
        for words in map(str.split, Path(f"/proc/{pid}/net/{version}").read_text().split("\n")[1:-1]):
            if words[9] in sockets:
                yield words[1].partition(":")[0]


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="looks at the sockets of Linux")
def test_no_other_machine_reaches_the_processes_and_a_worker_that_ends_at_its_start_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    absent = SimpleNamespace(__module__="no_such_module", __name__="work")
    with pytest.raises(LostProcessError, match="process 1 of 2 has ended with status 1"):  # noqa: SIM117
        with workers.shared(2, Process(), absent):  # type: ignore[arg-type]
            pass
    assert "no_such_module" in capfd.readouterr().err

    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    found: set[str] = set()
    of_other_tests = children()

    def look(_row: dict[str, Any]) -> None:
        (worker,) = children() - of_other_tests
        for pid in (os.getpid(), int(worker)):
            found.update(addresses(pid))

    run = transduce.train(PAIRS, tmp_path / "run", processes=2, observers=[look], **SECTIONS)
    assert run.step == 3
    assert found
    assert found <= LOOPBACK


def test_a_program_whose_process_group_is_in_use_trains_in_one_process_and_is_told(tmp_path: Path) -> None:
    def lines_of(name: str) -> list[str]:
        lines: list[str] = []
        transduce.train(PAIRS, tmp_path / name, processes=2, report=lines.append, **SECTIONS)
        return [line for line in lines if line.startswith("training with one process")]

    with workers.group_lock:  # as if another thread trained
        assert len(lines_of("thread")) == 1
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert len(lines_of("group")) == 1
    finally:
        dist.destroy_process_group()
    assert transduce.load(tmp_path / "group").folder.facts["started"]["processes"] == 1
    assert not workers.group_lock.locked()


def test_a_run_that_is_in_use_is_refused_before_its_corpus_is_read(tmp_path: Path) -> None:
    run = transduce.train(PAIRS, tmp_path / "run", processes=1, **SECTIONS)
    with run.folder.lock(), pytest.raises(RunFolderError, match="in use"):
        transduce.train(tmp_path / "none.tsv", tmp_path / "run", resume=True, processes=2, **SECTIONS)


def test_whoever_takes_over_waits_for_the_lock_a_moment(tmp_path: Path) -> None:
    run = transduce.train(PAIRS, tmp_path / "run", processes=1, **SECTIONS).folder
    with run.lock(), pytest.raises(RunFolderError), run.lock(patience=0.1):
        pass
    held = run.lock()
    held.__enter__()
    threading.Timer(0.2, held.__exit__, (None, None, None)).start()
    with run.lock(patience=20):
        pass


def test_a_torch_without_distributed_training_trains_alone() -> None:
    program = """
import torch.distributed as dist
for name in ("Store", "TCPStore", "HashStore", "ProcessGroupGloo", "is_initialized"):
    delattr(dist, name)
dist.is_available = lambda: False
from transduce.runs import train
from transduce.training.workers import take_process_group
print(take_process_group())
"""
    _, environment = machine.python_module("transduce")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_work_may_have_arguments_of_any_name() -> None:
    alone = Process()
    with workers.shared(1, alone, print, work="w", num=2, alone=3) as process:
        assert process is alone
