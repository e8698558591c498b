"""Crashes: the process is gone, or the disk refuses, at any operation that changes the disk."""

import io
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class Killed(BaseException):
    """The process is gone: nothing after this reaches the disk."""


def inode_of(file: int | str | Path) -> int:
    if isinstance(file, int):
        return os.fstat(file).st_ino
    return Path(file).stat().st_ino if Path(file).exists() else 0


class Disk:
    """Counts the operations that change the disk; `fault` happens at operation number `at`.

    It happens before the operation, or, with `is_late`, half-way through a write and after anything else.
    After a `Killed` no operation reaches the disk any more, so that no cleaning up helps.
    """

    def __init__(self, at: int, fault: Callable[[], BaseException], *, is_late: bool = False) -> None:
        self.at, self.fault, self.is_late = at, fault, is_late
        self.log: list[tuple[str, int]] = []  # what was done, to which inode
        self.is_dead = False

    @property
    def has_fired(self) -> bool:
        return len(self.log) >= self.at

    def perform(self, kind: str, inode: int, operation: Callable[[bool], object]) -> object:
        if self.is_dead:
            raise Killed
        self.log.append((kind, inode))
        if len(self.log) != self.at:
            return operation(False)
        try:
            if self.is_late:
                with suppress(FileExistsError):  # mkdir of a folder that is there
                    operation(True)
        finally:
            error = self.fault()
            self.is_dead = isinstance(error, Killed)
        raise error

    @contextmanager
    def in_use(self) -> Iterator["Disk"]:
        with pytest.MonkeyPatch.context() as patch:
            for kind in ("replace", "rename", "unlink", "mkdir"):
                patch.setattr(os, kind, self._counted(kind, getattr(os, kind)))
            patch.setattr(os, "fsync", self._counted("fsync", lambda _: None))  # waiting for the real one is slow
            patch.setattr(Path, "open", self._counted_open(Path.open))
            yield self

    def _counted(self, kind: str, original: Callable[..., object]) -> Callable[..., object]:
        def counted(target, *arguments, **options):
            return self.perform(kind, inode_of(target), lambda _: original(target, *arguments, **options))

        return counted

    def _counted_open(self, original: Callable[..., object]) -> Callable[..., object]:
        disk = self

        class CountedFile(io.FileIO):
            def write(self, data):
                data = bytes(data)
                whole = super().write

                def write(is_cut):
                    return whole(data[: len(data) // 2] if is_cut else data)

                return disk.perform("write", inode_of(self.fileno()), write)

            def truncate(self, size=None):
                cut = super().truncate
                return disk.perform("truncate", inode_of(self.fileno()), lambda _: cut(size))

        def counted_open(path, mode="r", *arguments, **options):
            if mode in ("r", "rb"):
                return original(path, mode, *arguments, **options)
            raw = disk.perform(
                "open", 0, lambda is_lost: CountedFile(path, mode).close() if is_lost else CountedFile(path, mode)
            )
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

        return counted_open


class Child:
    """A forked process; its id is used only until it was waited for, since then it may name another process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def wait(self) -> int:
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self) -> int:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[Child]:
    """A child process that does the work and exits; killed at the end of the block at the latest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child starts no threads and ends by _exit
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    child = Child(pid)
    try:
        yield child
    finally:
        child.kill()


def kill_this_process() -> BaseException:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def count_operations(work: Callable[[], object]) -> int:
    """How many operations that change the disk `work` consists of: it is done, once."""
    with Disk(1_000_000, Killed).in_use() as disk:
        work()
    return len(disk.log)


def is_killed_at(at: int, work: Callable[[], object], *, is_late: bool) -> bool:
    """Whether a child process that does `work` came to operation number `at`, where kill -9 strikes."""

    def until_killed() -> None:
        with Disk(at, kill_this_process, is_late=is_late).in_use():
            work()

    with forked(until_killed) as child:
        return child.wait() == -signal.SIGKILL


def moments(num_operations: int, sample: int | None) -> list[tuple[int, bool]]:
    """Before and halfway of each operation, or a sample of these."""
    everything = [(at, is_late) for at in range(1, num_operations + 1) for is_late in (False, True)]
    return everything if sample is None else random.Random(11).sample(everything, min(sample, len(everything)))
