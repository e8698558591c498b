import os
import pickle
import signal
import threading
import time

import pytest

from transduce.devices.machine import SIGNALS
from transduce.training.signals import Stopped, StopSignals


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


STATUSES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGXCPU, 152)]


@pytest.mark.parametrize(("signum", "status"), STATUSES)
def test_the_first_signal_is_only_noted_until_someone_asks(signum: int, status: int) -> None:
    with StopSignals() as signals:
        signals.check()
        send(signum)
        assert signals.received == signum
        with pytest.raises(Stopped) as stopped:
            signals.check()
    assert stopped.value.exit_status == status


def test_a_second_signal_that_is_a_ctrl_c_raises_where_it_strikes() -> None:
    with StopSignals():
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as stopped:
            send(signal.SIGINT)
        assert not isinstance(stopped.value, Stopped)  # after which something would be saved


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_any_other_second_signal_is_the_same_stop(signum: int) -> None:
    with StopSignals() as signals:
        for _ in range(3):
            send(signum)
        assert signals.received == signum


def test_a_signal_to_save_is_noted_and_stops_nothing() -> None:
    with StopSignals() as signals, signals.at_once():
        assert not signals.wants_save
        send(signal.SIGUSR1)
        assert (signals.wants_save, signals.received) == (True, None)


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            send(signal.SIGHUP)
            assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nobody_who_catches_errors_catches_a_stop() -> None:
    with pytest.raises(Stopped), StopSignals() as signals:
        try:
            send(signal.SIGTERM)
            signals.check()
        except Exception:
            pytest.fail("it was swallowed")


def test_long_work_is_left_at_the_first_signal() -> None:
    with StopSignals() as signals:
        started = time.monotonic()
        threading.Timer(0.05, send, [signal.SIGTERM]).start()
        with pytest.raises(Stopped), signals.at_once():
            time.sleep(30)
        assert time.monotonic() - started < 10


def test_long_work_is_not_begun_after_a_signal() -> None:
    with StopSignals() as signals:
        send(signal.SIGTERM)
        with pytest.raises(Stopped), signals.at_once():
            pytest.fail("it began")


def test_after_long_work_a_signal_is_only_noted_again() -> None:
    with StopSignals() as signals:
        with signals.at_once():
            pass
        send(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_handlers_are_put_back_and_signals_forgotten() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    signals = StopSignals()
    with signals:
        send(signal.SIGTERM)
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
    with signals:
        signals.check()


def test_it_can_be_entered_in_any_thread() -> None:
    outcome: list[object] = []

    def enter() -> None:
        with StopSignals() as signals:
            outcome.append(signals.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert outcome == [None]


def test_a_stop_reaches_another_process_whole() -> None:
    there = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, "everything is saved")))
    assert (there.signum, there.message, there.exit_status) == (signal.SIGTERM, "everything is saved", 143)
