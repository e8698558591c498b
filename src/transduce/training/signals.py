"""Handlers of signals: those that stop training do so between two updates, where nothing is lost; one saves it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from transduce.devices.machine import SIGNALS


class Stopped(KeyboardInterrupt):
    """Signal `signum` stopped the process; `message` says what was saved and how to continue.

    Like a Ctrl-C, it is not an `Exception`: no `except Exception` takes a stop that was asked for as an error.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message)
        self.signum = signum
        self.message = message

    def __str__(self) -> str:
        return self.message and f"{self.message} To continue, repeat the call with resume=True."

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int, str]]:
        return Stopped, (self.signum, self.message)  # pickled where rank 0 raises it for all processes

    @property
    def exit_status(self) -> int:
        """The status that a shell reports for a process ended by this signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class StopSignals:
    """Context manager that defers SIGINT, SIGTERM, SIGHUP and SIGXCPU until `check`; SIGUSR1 sets `wants_save`.

    A second Ctrl-C is a KeyboardInterrupt where it strikes, after which nothing may be saved: that may be in the middle
    of an update. Any other second signal is the same stop, told once more: a scheduler signals every process of a job
    and `torchrun` passes it on, a closed terminal sends several, a limit of CPU time repeats itself every second. What
    was ignored before (under `nohup`) stays ignored.
    """

    received: int | None = None
    wants_save = _raises_at_once = False

    def __enter__(self) -> "StopSignals":
        self.received, self.wants_save = None, False
        # In another thread Python refuses handlers.
        signums = SIGNALS if threading.current_thread() is threading.main_thread() else []
        self._previous = {s: old for s in signums if (old := signal.getsignal(s)) not in (signal.SIG_IGN, None)}
        for signum in self._previous:
            signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raise Stopped if a signal was received."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block in which a signal raises where it strikes: for long work that changes nothing worth keeping."""
        self.check()
        self._raises_at_once = True
        try:
            yield
        finally:
            self._raises_at_once = False

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if signal.Signals(signum).name == "SIGUSR1":
            self.wants_save = True
        elif self.received is None:
            self.received = signum
            if self._raises_at_once:
                raise Stopped(signum)
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
