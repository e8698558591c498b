"""The command run as several processes of this machine."""

import math
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from types import FrameType

from transduce.devices import machine

_GRACE_SECONDS = 10.0


def spawn(num: int, words: Sequence[str]) -> int:
    """Run `transduce WORDS` as `num` processes that share the cores of this machine; return their exit status.

    A signal to this process is passed on to each of them, once: they save and stop. It sets the exit status even if
    they had finished already. If one fails, the others, which would wait for it forever, are killed.
    """
    command, environment = machine.python_module("transduce")
    environment = {"OMP_NUM_THREADS": str(max(1, machine.usable_cores() // num))} | environment  # the user's own wins
    environment |= {
        "WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    children: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)
        _signal_all(children, signum)

    def start(rank: int) -> "subprocess.Popen[bytes]":
        # A session of its own: else a Ctrl-C in the terminal would reach them twice, and the second one does not save.
        return subprocess.Popen(
            [*command, *words],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,
        )

    is_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere Python refuses handlers
    passed_on = (signal.SIGINT, signal.SIGTERM) if is_main_thread else ()
    previous = {signum: signal.signal(signum, pass_on) for signum in passed_on}
    try:
        for rank in range(num):
            children.append(start(rank))
        if received:  # while they were started
            _signal_all(children, received[0])
        end = math.inf
        while (statuses := [child.poll() for child in children]).count(None):
            if any(statuses):
                end = min(end, time.monotonic() + _GRACE_SECONDS)  # the others may be about to end for the same reason
            if time.monotonic() >= end:
                _signal_all(children, signal.SIGKILL)
            time.sleep(0.05)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    return next((status for status in statuses if status), 128 + received[-1] if received else 0)


def _signal_all(children: Sequence["subprocess.Popen[bytes]"], signum: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signum)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
