"""Handlers of Ctrl-C and SIGTERM that stop training between two updates, where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(Exception):  # noqa: N818 - not an error: what was asked for
    """Signal `signum` stopped the process; `message` says what was saved and how to go on."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message)
        self.signum = signum
        self.message = message

    def __str__(self) -> str:
        return self.message and f"{self.message} The same call with resume=True goes on."

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int, str]]:
        return Stopped, (self.signum, self.message)  # pickled where rank 0 raises it for all processes

    @property
    def exit_status(self) -> int:
        """The status that a shell reports for a process ended by this signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class StopSignals:
    """Context manager that defers the first SIGINT or SIGTERM until `check`; a second one raises where it strikes.

    After a second one (`is_urgent`) nothing may be saved: it may have struck in the middle of an update.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_urgent = False
        self._raises_at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.received, self.is_urgent = None, False
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
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
        if self.received is not None:
            self.is_urgent = True
            raise Stopped(signum)
        self.received = signum
        if self._raises_at_once:
            raise Stopped(signum)
