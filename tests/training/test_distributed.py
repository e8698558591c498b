import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from calling import forked
from smallest_model import SMALLEST_MODEL
from transduce.cli import main as cli
from transduce.devices import machine
from transduce.errors import LostProcessError
from transduce.runs import train as experiment
from transduce.runs.folder import RunFolder
from transduce.training import step as train_step
from transduce.training import trainer, workers

NUM_STEPS, MICRO_BATCHES = 12, 3  # one process has the first and the third micro-batch of a step, the other the second

SETTINGS = f"""
[data]
train = "train.tsv"
valid = "valid.tsv"
{SMALLEST_MODEL}
dropout = 0.2
[optim]
schedule = "constant"
learning_rate = 0.01
warmup_steps = 4
ema_decay = 0.8
epsilon = 1e-5
[training]
steps = {NUM_STEPS}
batch_tokens = 60
micro_batches = {MICRO_BATCHES}
validate_every = 4
log_every = 1
[validation]
metrics = ["exact_match"]
max_pairs = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = random.Random(1)
    for name, num_pairs in (("train", 70), ("valid", 9)):
        words = ["".join(draw.choices("abcdefg", k=draw.randint(2, 9))) for _ in range(num_pairs)]
        (tmp_path / f"{name}.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    (tmp_path / "settings.toml").write_text(SETTINGS)
    return tmp_path


def record_and_strike(rank: str, strike_at: int | None) -> None:
    """Lets this process write down which pairs it computes in which step, and send itself a signal in one of them."""
    collate, make_step = train_step.collate, trainer.Trainer.train_step
    current: list[list[int]] = []

    def recording_collate(pairs: Any, rows: Any) -> Any:
        current.append(sorted(rows.tolist()))
        return collate(pairs, rows)

    def recording_step(self: trainer.Trainer, micro_batches: Any, step: int) -> Any:
        current.clear()
        if step == strike_at:
            os.kill(os.getpid(), signal.SIGTERM)
        outcome = make_step(self, micro_batches, step)
        with Path(f"steps-{rank}.jsonl").open("a") as file:
            file.write(json.dumps([step, current, outcome.read().loss]) + "\n")
        return outcome

    train_step.collate, trainer.Trainer.train_step = recording_collate, recording_step
    experiment._draw_learning_curve = lambda *_: None


def start(folder: Path, words: Sequence[str], strike_at: int | None = None, **environment: str) -> int:
    """The pid of a process that trains: forked, as all that is slow to import is here already."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        os.chdir(folder)
        os.environ.update(environment)
        rank = environment.get("RANK", "0")
        sys.stderr = Path(f"messages-{rank}").open("w")  # noqa: SIM115 - for the rest of this process
        record_and_strike(rank, strike_at)
        status = cli.main(["train", "settings.toml", "--threads", "1", *words])
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def outcome_of(folder: Path, pid: int, rank: str = "0") -> tuple[int, str]:
    """Exit status and messages of a process, killed if it hangs."""
    end = time.monotonic() + 90
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1]), (folder / f"messages-{rank}").read_text()


def train_together(
    folder: Path, run: str, *words: str, strike_at: dict[str, int] | None = None
) -> list[tuple[int, str]]:
    """Two processes with the environment of `torchrun`; returns the exit status and the messages of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    words = ("--run-dir", run, *words)
    pids = {rank: start(folder, words, (strike_at or {}).get(rank), RANK=rank, **common) for rank in ("0", "1")}
    return [outcome_of(folder, pid, rank) for rank, pid in pids.items()]


def train_alone(folder: Path, run: str, *words: str, strike_at: int | None = None) -> tuple[int, str]:
    return outcome_of(folder, start(folder, ["--run-dir", run, *words], strike_at))


def take_steps(folder: Path) -> dict[int, tuple[list[list[int]], float]]:
    """Step -> the pairs of its micro-batches over all processes, and its loss; what is taken is forgotten."""
    found: dict[int, tuple[list[list[int]], float]] = {}
    for path in sorted(folder.glob("steps-*.jsonl")):
        for step, micro_batches, loss in map(json.loads, path.read_text().splitlines()):
            seen, first_loss = found.get(step, ([], loss))
            assert loss == first_loss, "the processes disagree"
            found[step] = (sorted(seen + micro_batches), loss)
        path.unlink()
    return found


def test_two_processes_share_muon_and_end_with_the_weights_of_one(folder: Path) -> None:
    words = ("--optim.method", "muon", "--training.steps", "4")
    assert train_alone(folder, "alone", *words)[0] == 0
    assert [status for status, _ in train_together(folder, "together", *words)] == [0, 0]
    first, second = (RunFolder.open(folder / run).read_model()[0] for run in ("together", "alone"))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_two_processes_train_like_one_and_one_or_two_go_on_where_the_others_stopped(folder: Path) -> None:
    status, told = train_alone(folder, "alone")
    assert status == 0, told
    alone = take_steps(folder)
    assert [len(alone[step][0]) for step in sorted(alone)].count(1) >= 2  # nothing there for the second process

    (status, told), (other_status, silence) = train_together(folder, "together")
    assert (status, other_status) == (0, 0), told + silence
    together = take_steps(folder)
    assert sorted(together) == list(range(1, NUM_STEPS + 1))
    assert {step: rows for step, (rows, _) in together.items()} == {step: rows for step, (rows, _) in alone.items()}
    losses = [[steps[step][1] for step in sorted(steps)] for steps in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    first, second = (RunFolder.open(folder / run) for run in ("together", "alone"))
    torch.testing.assert_close(first.read_model()[0], second.read_model()[0], rtol=1e-4, atol=1e-4)

    # Rank 0 alone writes and reports.
    assert [(row["kind"], row["step"]) for row in first.metrics()] == [
        (row["kind"], row["step"]) for row in second.metrics()
    ]
    assert "pairs" not in silence
    assert [name for name, problem in first.verify() if problem] == []

    # One process is stopped, and two go on. A signal to one of them stops both, at the same step, with one checkpoint.
    assert train_alone(folder, "stopped", strike_at=2)[0] == 143
    (status, told), (other_status, other_told) = train_together(folder, "stopped", "--resume", strike_at={"1": 6})
    assert (status, other_status) == (143, 143), told + other_told
    assert "Stopped at step 6 of 12; everything is saved. Continue with: transduce train" in told
    assert "Traceback" not in told + other_told
    assert RunFolder.open(folder / "stopped").checkpoints() == [0, 1, 4, 6]
    before = take_steps(folder)

    # One process goes on in the same order.
    status, told = train_alone(folder, "stopped", "--resume", "--processes", "1")
    assert status == 0, told
    joined = before | take_steps(folder)
    assert {step: rows for step, (rows, _) in joined.items()} == {step: rows for step, (rows, _) in alone.items()}
    assert [joined[step][1] for step in sorted(joined)] == pytest.approx(losses[1], rel=1e-5)
    assert [(row["kind"], row["step"]) for row in RunFolder.open(folder / "stopped").metrics()] == [
        (row["kind"], row["step"]) for row in second.metrics()
    ]
    (_, tensors, _), (_, expected, _) = (
        RunFolder.open(folder / run).newest_checkpoint() for run in ("stopped", "alone")
    )
    torch.testing.assert_close(tensors, expected, rtol=1e-4, atol=1e-4)  # with the average and the moments of Adam


def test_signals_to_all_processes_and_refusals_end_all_of_them(folder: Path) -> None:
    (status, told), (other_status, other_told) = train_together(folder, "run", strike_at={"0": 3, "1": 3})
    assert (status, other_status) == (143, 143), told + other_told
    assert RunFolder.open(folder / "run").checkpoints() == [0, 3]

    # What rank 0 refuses, all refuse; rank 0 alone says so.
    both = train_together(folder, "run", "--resume", "--model.d_model", "18")
    assert [status for status, _ in both] == [78, 78]
    assert ["model.d_model (16 -> 18)" in told for _, told in both] == [True, False]

    both = train_together(folder, "run", "--resume", "--training.batch_tokens", "90", "--accept-changes")
    assert [status for status, _ in both] == [0, 0], both
    steps = take_steps(folder)
    assert sorted(steps) == list(range(1, NUM_STEPS + 1))


# --- workers ---------------------------------------------------------------------------------------------------------

COPY = f"""
[data]
dataset = "copy"
{SMALLEST_MODEL}
[training]
steps = 100000
micro_batches = 2
batch_tokens = 128
log_every = 1
[validation]
metrics = []
"""


class Running:
    """A command that trains, and the worker beside it."""

    def __init__(self, *words: object) -> None:
        line = [sys.executable, "-m", "transduce", "train", *map(str, words)]
        self.process = forked(line, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if match := re.match(r"step (\d+)/", line):
                self.first_step = int(match[1])
                break
        (self.worker,) = map(
            int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        )

    def end(self) -> tuple[int, str]:
        """The exit status and what was said; neither process is there after five seconds."""
        end = time.monotonic() + 5
        assert self.process.stderr is not None
        while self.process.poll() is None or Path(f"/proc/{self.worker}").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        with self.process.stderr:
            return self.process.returncode, self.process.stderr.read()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the worker among the processes of Linux")
def test_whichever_of_two_processes_is_killed_the_other_saves_and_ends(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(COPY)
    words = [tmp_path / "run.toml", "--run-dir", tmp_path / "run"]
    run, saved = RunFolder(tmp_path / "run"), 0

    def steps_saved(running: Running) -> int:
        assert run.checkpoints()[-1] >= running.first_step > saved
        return run.checkpoints()[-1]

    running = Running(*words, "--processes", "2")
    os.kill(running.worker, signal.SIGKILL)
    status, told = running.end()
    assert (status, "process 1 of 2 has ended by signal 9" in told) == (75, True), told
    saved = steps_saved(running)

    running = Running(*words, "--resume")  # with as many processes as before
    running.process.kill()
    status, told = running.end()
    assert (status, f"Everything up to step {run.checkpoints()[-1]:,} is saved" in told) == (-9, True), told
    saved = steps_saved(running)

    running = Running(*words, "--resume")
    running.process.terminate()
    status, told = running.end()
    assert (status, told.count("--resume")) == (143, 1), told
    saved = steps_saved(running)
    assert [session["machine"]["processes"] for session in run.facts["resumed"]] == [2, 2]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the worker among the processes of Linux")
def test_what_a_scheduler_sends_to_every_process_of_a_job_saves_or_stops_them_together(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(COPY)
    running = Running(tmp_path / "run.toml", "--run-dir", tmp_path / "run", "--processes", "2")

    def send_to_all(signum: int) -> None:
        for pid in (running.worker, running.process.pid):
            os.kill(pid, signum)

    run, end = RunFolder(tmp_path / "run"), time.monotonic() + 30
    send_to_all(signal.SIGUSR1)
    while run.checkpoints()[-1] < running.first_step:
        assert running.process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    send_to_all(signal.SIGHUP)
    status, told = running.end()
    assert (status, told.count("everything is saved. Continue with: transduce train")) == (129, 1), told


def test_of_processes_that_have_ended_the_one_is_named_that_the_others_have_lost() -> None:
    started = [SimpleNamespace(wait=Mock(return_value=status)) for status in (75, -9, 75)]
    with pytest.raises(LostProcessError, match=r"^process 2 of 4 has ended by signal 9\. If memory ran out"):
        workers._refuse_ended(started, 0)


def test_a_script_without_a_guard_trains_pairs_in_memory_with_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import transduce
print("once")
pairs = [(f"a{n}", f"b{n}") for n in range(64)]
sections = {"training": {"steps": 3, "batch_tokens": 64, "part_tokens": 16}, "model": {"d_model": 16, "num_heads": 1}}
sections["tokenizer"] = {"source": "characters", "target": "characters"}
print(transduce.train(pairs, "run", processes=2, **sections).step)
"""
    )
    _, environment = machine.python_module("transduce")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"once\n3\n"), done.stderr


def test_workers_whose_training_is_refused_end_and_it_is_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(*words, **options))
        return started[-1]

    others = {name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "run", "CalledProcessError")}
    monkeypatch.setattr(machine, "subprocess", SimpleNamespace(Popen=start, **others))
    (tmp_path / "run.toml").write_text(COPY.replace("steps = 100000", "minutes = 1e-9"))
    assert cli.main(["train", str(tmp_path / "run.toml"), "--run-dir", str(tmp_path / "run"), "--processes", "3"]) == 2
    assert capfd.readouterr().err.count("minutes are too few to train") == 1
    assert [child.returncode is not None for child in started] == [True, True]
