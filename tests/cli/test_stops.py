"""Ways to end a command at any of its phases, and displays that fail: the status is right and nothing is lost."""

import errno
import gzip
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from calling import Outcome, command, content_of, forked
from covering import rest_as_proofs
from transduce.cli import environment
from transduce.cli import main as cli
from transduce.runs.folder import RunFolder

pytest_plugins = ["small_run"]

SIGNALS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "SIGXCPU": 152}
STEPS = 6
TRAIN = (
    f"train {{data}}/config.toml --run-dir {{out}} --training.steps {STEPS} --training.validate_every 3 "
    "--training.log_every 1 --validation.metrics=[]"
)
SIDES = "--source {data}/valid.source --target {data}/valid.target"
# Phase -> the command, and the function in which the signal strikes.
PHASES = {
    "train: reading": (TRAIN, "transduce.runs.corpus.read_pairs"),
    "train: learning the tokenizer": (TRAIN, "transduce.text.tokenizer.learn_vocabulary"),
    "train: encoding": (TRAIN, "transduce.runs.corpus.encode_pairs"),
    "train: building": (TRAIN, "transduce.runs.train.build_model"),
    "train: planning": (f"{TRAIN} --training.steps=0 --training.epochs 1", "transduce.runs.train.step_order"),
    "train: a step": (TRAIN, "transduce.training.step.collate"),
    "train: a validation": (TRAIN, "transduce.runs.validation.corpus_loss"),
    "train: saving": (TRAIN, "transduce.runs.folder.write_tensors"),
    "train: calibrating": (TRAIN, "transduce.runs.validation.fit_calibration"),
    "train: drawing": (TRAIN, "transduce.runs.train.learning_curve"),
    "fit: reading": ("fit {data}/train.source {data}/train.target --run-dir {out}", "transduce.runs.fit.pairs_of"),
    "fit: choosing": (
        "fit {data}/train.source {data}/train.target --run-dir {out}",
        "transduce.runs.fit.choose_settings",
    ),
    "prepare: encoding": ("prepare {data}/config.toml", "transduce.data.large.prepare.write_prepared"),
    "predict: loading": ("predict {run} {data}/valid.source -o {out}", "transduce.runs.folder.read_tensors"),
    "predict: searching": ("predict {run} {data}/valid.source -o {out}", "transduce.inference.predictor.beam_search"),
    "predict: writing": ("predict {run} {data}/valid.source -o {out}", "transduce.cli.predict.write_now"),
    "evaluate: reading": (f"evaluate {{run}} {SIDES}", "transduce.cli.console.read_lines"),
    "evaluate: scoring": (f"evaluate {{run}} {SIDES}", "transduce.cli.evaluate.score"),
    "compare": (f"compare {{run}} {{run}} {SIDES} --metric cer", "transduce.cli.evaluate.compare"),
    "explain": ("explain {run} abc -o {out}", "transduce.cli.predict.explain"),
    "average": ("average {run} --last 2 -o {out}", "transduce.cli.runs.average_tensors"),
    "verify": ("verify {run}", "transduce.files.tensors.check_digest"),
    "export: writing": ("export {run} --format onnx -o {out}", "transduce.export.onnx.write"),
    "export: certifying": ("export {run} --format onnx -o {out}", "transduce.export.folder.certify"),
    "data": ("data copy -o {out}", "transduce.cli.data.as_text"),
}
# Each signal, each kind of phase; `test_resume` has the others of training.
SAMPLE = [
    ("train: reading", "SIGTERM"), ("train: planning", "SIGXCPU"), ("train: a validation", "SIGHUP"),
    ("train: drawing", "SIGTERM"), ("fit: choosing", "SIGHUP"), ("prepare: encoding", "SIGTERM"),
    ("predict: searching", "SIGHUP"), ("evaluate: scoring", "SIGXCPU"), ("export: certifying", "SIGINT"),
]  # fmt: skip


class Places:
    """Where the commands of `PHASES` read and write."""

    def __init__(self, run: Path, data: Path, folder: Path) -> None:
        self.out = folder / "out"
        self.names = {"run": run, "data": data, "out": self.out}

    def call(self, words: str, *more: str) -> Outcome:
        return command(*words.format(**self.names).split(), *more)


@pytest.fixture
def places(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("TRANSDUCE_CACHE", str(tmp_path / "cache"))
    return Places(run, data, tmp_path)


def strike_in(monkeypatch: pytest.MonkeyPatch, place: str, strike: Callable[[], object]) -> None:
    """Lets the first call of the function at `place` begin with `strike`."""
    module, _, name = place.rpartition(".")
    function, strikes = getattr(import_module(module), name), [strike]

    def struck(*arguments: Any, **options: Any) -> Any:
        while strikes:
            strikes.pop()()
        return function(*arguments, **options)

    monkeypatch.setattr(place, struck)


def send(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), getattr(signal, name))


def prepare_on_disk(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if phase.startswith("prepare"):
        monkeypatch.setattr("transduce.runs.corpus.LARGE_BYTES", 0)


@pytest.mark.parametrize(("phase", "signum"), rest_as_proofs(product(PHASES, SIGNALS), SAMPLE))
def test_a_signal_in_any_phase_ends_a_command_with_its_status_and_one_line(
    phase: str, signum: str, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, place = PHASES[phase]
    prepare_on_disk(phase, monkeypatch)
    monkeypatch.setattr("transduce.runs.train.learning_curve", lambda *_: b"")  # it takes half a second
    with monkeypatch.context() as patch:
        strike_in(patch, place, send(signum))
        stopped = places.call(words, "--quiet")
    assert (stopped.status, stopped.out) == (SIGNALS[signum], b""), stopped.err
    assert re.fullmatch(
        r"transduce: (stopped\.|Stopped at step .*everything is saved\.)( Continue with: .*)?\n", stopped.err
    )
    is_training = phase.startswith("train")
    if not is_training:
        assert not places.out.exists() or not any(places.out.iterdir())
    if phase.startswith("fit"):  # which takes its time
        return
    again = places.call(words, "--quiet", *["--resume"] * is_training)
    assert (again.status, again.err) == (0, "")
    if is_training:
        assert RunFolder(places.out).metrics()[-1]["step"] == RunFolder(places.out).read_model_metadata()["step"]


@pytest.mark.parametrize("phase", rest_as_proofs(PHASES, ["predict: searching"]))
def test_a_signal_to_save_ends_no_command(phase: str, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_on_disk(phase, monkeypatch)
    strike_in(monkeypatch, PHASES[phase][1], send("SIGUSR1"))
    outcome = places.call(PHASES[phase][0], "--quiet", *["--minutes", "0.3"] * phase.startswith("fit"))
    assert (outcome.status, outcome.err) == (0, "")


def test_a_stop_of_fit_while_it_scores_says_how_to_go_on(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(_config: object, run_dir: Path, **_: object) -> Mock:
        shutil.copytree(places.names["run"], run_dir)
        return Mock(seconds=1.0)

    monkeypatch.setattr("transduce.runs.fit.train", trained)
    monkeypatch.setattr("transduce.runs.fit.measured_speed", lambda *_: lambda _model: 1e4)
    strike_in(monkeypatch, "transduce.runs.fit.predict_distinct", send("SIGTERM"))
    words = "fit {data}/train.source {data}/train.target --run-dir {out}"
    stopped = places.call(words, "--quiet")
    assert stopped.status == 143
    told = f"transduce: stopped. Continue with: transduce {words.format(**places.names)} --quiet --threads 1 --resume\n"
    assert stopped.err == told


def test_a_second_signal_while_the_first_is_heard_changes_nothing(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned_up: list[bool] = []

    def twice() -> None:
        try:
            send("SIGTERM")()
        finally:
            send("SIGTERM")()  # as `torchrun` and a scheduler both send it
            cleaned_up.append(True)

    strike_in(monkeypatch, "transduce.cli.evaluate.score", twice)
    assert places.call(PHASES["evaluate: scoring"][0]).status == 143
    assert cleaned_up


def test_a_packed_file_that_a_signal_interrupts_is_not_called_damaged(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.gz").write_bytes(gzip.compress(b"abc\n" * 1000))
    strike_in(monkeypatch, "zlib.decompressobj", send("SIGTERM"))
    stopped = command("predict", places.names["run"], tmp_path / "in.gz")
    assert (stopped.status, stopped.err) == (143, "transduce: stopped.\n")


def test_an_import_is_not_broken_off(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled modules make other errors of what is raised in them."""
    heard: list[str] = []

    def imported(name: str) -> Any:
        send("SIGTERM")()
        heard.append(name)
        return import_module(name)

    monkeypatch.setattr(cli, "import_module", imported)
    assert places.call("verify {run}").status == 143
    assert heard == ["transduce.cli.runs"]


def test_what_nohup_lets_a_process_ignore_stays_ignored(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        strike_in(monkeypatch, "transduce.training.step.collate", send("SIGHUP"))
        assert places.call(TRAIN, "--quiet").status == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# Displays that fail


class BrokenStream(io.RawIOBase):
    """A standard error that takes some bytes, and then fails as one that is full or that nobody reads."""

    def __init__(self, number: int, num_bytes: int, is_terminal: bool) -> None:
        self.number, self.left, self.is_terminal = number, num_bytes, is_terminal

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, content: Any) -> int:
        self.left -= len(content)
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        return len(content)


FAILURES = [*product([errno.EPIPE, errno.ENOSPC, errno.EIO], [0, 300], [False, True])]
LOUD = ["train: reading", "evaluate: scoring", "export: writing", "explain", "average", "data", "prepare: encoding"]


@pytest.mark.parametrize(
    ("phase", "failure"),
    rest_as_proofs(product(LOUD, FAILURES), [(phase, FAILURES[5 * n]) for n, phase in enumerate(LOUD[:3])]),
)
def test_a_standard_error_that_fails_changes_neither_status_nor_output(
    phase: str, failure: tuple[int, int, bool], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_on_disk(phase, monkeypatch)
    monkeypatch.setattr("transduce.runs.train.learning_curve", lambda *_: b"")
    words = [*PHASES[phase][0].format(**places.names).split(), "--threads", "1"]
    raw = BrokenStream(*failure)
    stream = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with redirect_stderr(stream), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert cli.main(words) == 0
        sys.stderr.flush()  # as Python does at its end: an error would change its status
    raw.left = 10**6  # to be closed
    stream.close()
    if "{out}" in PHASES[phase][0]:
        assert content_of(places.out) if places.out.is_dir() else places.out.read_bytes()
    if phase.startswith("train"):
        assert RunFolder(places.out).metrics()[-1]["step"] == STEPS


@pytest.mark.parametrize("where", rest_as_proofs(["/dev/full", "reader", "closed"], ["reader"]))
def test_a_real_process_trains_though_nobody_can_read_what_it_says(
    where: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "/dev/full" and not Path(where).exists():
        pytest.skip("no /dev/full on this system")
    monkeypatch.setattr("transduce.runs.train.learning_curve", lambda *_: b"")
    words = [sys.executable, "-m", "transduce", *TRAIN.format(data=data, out=tmp_path / "run").split()]

    def main(arguments: list[str]) -> int:
        if where == "closed":
            sys.stderr = None  # as Python has it
        return cli.main(arguments)

    target = os.open(where, os.O_WRONLY) if where == "/dev/full" else subprocess.PIPE
    # Without `restore_signals`, which has SIGPIPE end the child, as Python never has.
    process = forked(words, main=main, stderr=target, stdout=subprocess.DEVNULL, restore_signals=False)
    process.stderr.close() if process.stderr else os.close(target)  # as `head` does, once it has what it wants
    assert process.wait(timeout=60) == 0
    assert RunFolder(tmp_path / "run").metrics()[-1]["step"] == STEPS


def test_a_picture_that_cannot_be_drawn_is_told_and_changes_nothing_else(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transduce.runs.train.learning_curve", Mock(side_effect=RuntimeError("no\nfont")))
    outcome = places.call(TRAIN)
    assert outcome.status == 0
    assert "no learning curve: no font\n" in outcome.err
    assert RunFolder(places.out).facts["calibration"]


# Names


NAMES = ["a_$1_b_$2", "[/x]", "[bold]", ":smile:", "語 🎉", "100%", "{0}"]


@pytest.mark.parametrize("name", rest_as_proofs([*NAMES, whole := " ".join(NAMES).replace("/", "")], ["[/x]", whole]))
def test_the_name_of_a_run_is_no_markup(name: str, run: Path, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / name))
    (folder / "learning_curve.png").unlink()
    words = ["train", data / "config.toml", "--run-dir", folder, "--resume"]
    assert command(*words).status == 0  # it is finished: all that is left is to draw
    assert (folder / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "".join(command("describe", folder).out.decode().split()).startswith("".join(str(folder).split()))


def test_the_name_of_a_file_in_a_table_is_no_markup(places: Places, tmp_path: Path) -> None:
    shutil.copy(places.names["data"] / "valid.source", source := tmp_path / "[x].txt")
    outcome = places.call("export {run} --format onnx -o {out}", "--source", str(source))
    assert outcome.status == 0, outcome.err
    assert str(source) in "".join(outcome.out.decode().split())


def test_a_name_that_is_not_utf_8_is_refused_before_training(data: Path, tmp_path: Path) -> None:
    bad = os.fsdecode(bytes(tmp_path) + b"/b\xff")
    outcome = command("train", data / "config.toml", "--run-dir", bad)
    assert (outcome.status, outcome.err.count("\n")) == (73, 1)
    assert "is not valid UTF-8" in outcome.err
    shutil.copy(data / "train.source", bad)
    for words in (["fit", bad, data / "train.target", "--run-dir", tmp_path / "run"], ["train", data / "config.toml"]):
        more = ["--data.train", f'["{bad}", "{data}/train.target"]'] if words[0] == "train" else []
        outcome = command(*words, *more)
        assert (outcome.status, outcome.err.count("\n")) == (2, 1)
        assert "is not valid UTF-8. Rename the file" in outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {Path(bad).name}


# The environment


def test_a_rank_that_something_left_behind_silences_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    outcome = command("verify", "nowhere")
    assert (outcome.status, outcome.err.count("not a run folder")) == (66, 1)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE=-2"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "WORLD_SIZE=2 and RANK=2"),
        ({"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK=x"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "x"}, "without MASTER_PORT"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "fit"])
def test_an_environment_that_torchrun_would_never_set_is_refused_by_name(
    verb: str, variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = command(verb, "nothing.tsv")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert told in outcome.err
    assert "unset WORLD_SIZE" in outcome.err


def test_a_user_without_a_home_is_told_what_to_set(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSDUCE_CACHE")
    monkeypatch.setattr("transduce.runs.corpus.LARGE_BYTES", 0)
    monkeypatch.setattr(Path, "expanduser", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    outcome = places.call("prepare {data}/config.toml")
    assert outcome.status == 2
    assert "Set HOME, or TRANSDUCE_CACHE to a folder" in outcome.err


@pytest.mark.proof
def test_names_that_a_locale_cannot_spell_are_trained_and_described(data: Path, tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    for words in (TRAIN.format(data=data, out=tmp_path / "ü"), f"describe {tmp_path}/ü", "data"):
        line = [sys.executable, "-m", "transduce", *words.split()]
        done = subprocess.run(line, env=os.environ | locale, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "ü/learning_curve.png").exists()


def test_a_process_that_waits_for_others_says_so_and_hears_signals(data: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def main(words: list[str]) -> int:
        environment._SECONDS_TO_MEET = 0.1
        return cli.main(words)

    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [sys.executable, "-m", "transduce", *TRAIN.format(data=data, out=tmp_path / "run").split()]
    process = forked(words, main=main, env=variables, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert line == f"process 0 of 2 (RANK, WORLD_SIZE) is waiting at 127.0.0.1:{port} for the others\n"
    started = time.monotonic()
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert time.monotonic() - started < 5
    assert process.stderr.read() == "transduce: stopped.\n"
    process.stderr.close()


# Memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_is_no_internal_error(
    error: Exception, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transduce.cli.evaluate.score", Mock(side_effect=error))
    outcome = places.call(PHASES["evaluate: scoring"][0])
    assert outcome.status == 71
    assert outcome.err.startswith("transduce: error: out of memory.")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("number", rest_as_proofs([1, 5], [5]))
def test_a_batch_that_memory_is_too_small_for_is_described_and_the_steps_before_it_are_saved(
    number: int, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transduce.training import step

    collate, left = step.collate, [number]

    def short(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return collate(*arguments)

    words = f"{TRAIN} --training.part_tokens 100000"  # one part is one step
    with monkeypatch.context() as patch:
        patch.setattr(step, "collate", short)
        outcome = places.call(words, "--quiet")
    assert outcome.status == 71
    batch = r"\d+ pairs, the longest of \d+ tokens \([\d,]+ with padding\)\."
    pattern = rf"transduce: error: step {number}: out of memory on {batch}"
    assert re.match(pattern, outcome.err)
    assert "Lower training.batch_tokens (on a CPU training.part_tokens) or data.max_len." in outcome.err
    assert f"Everything up to step {number - 1} is saved: resume the run to continue." in outcome.err
    assert RunFolder(places.out).checkpoints()[-1] == number - 1
    assert places.call(words, "--quiet", "--resume").status == 0
