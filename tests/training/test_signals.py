import os
import pickle
import signal
import threading
import time

import pytest

from transduce.training.signals import Stopped, StopSignals


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_only_noted_until_someone_asks(signum: int, status: int) -> None:
    with StopSignals() as signals:
        signals.check()
        send(signum)
        assert (signals.received, signals.is_urgent) == (signum, False)
        with pytest.raises(Stopped) as stopped:
            signals.check()
    assert stopped.value.exit_status == status


def test_a_second_signal_raises_where_it_strikes() -> None:
    with StopSignals() as signals:
        send(signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            send(signal.SIGINT)
        assert (stopped.value.signum, signals.is_urgent) == (signal.SIGINT, True)


def test_long_work_is_left_at_the_first_signal() -> None:
    with StopSignals() as signals:
        started = time.monotonic()
        threading.Timer(0.05, send, [signal.SIGTERM]).start()
        with pytest.raises(Stopped), signals.at_once():
            time.sleep(30)
        assert time.monotonic() - started < 10
        assert not signals.is_urgent


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
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    signals = StopSignals()
    with signals:
        send(signal.SIGTERM)
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
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
    there = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, "all is saved")))
    assert (there.signum, there.message, there.exit_status) == (signal.SIGTERM, "all is saved", 143)
