import dataclasses
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from calling import forked
from covering import rest_as_proofs
from transduce.cli import main as cli
from transduce.config.settings import ON_RESUME, ExperimentConfig, carry_over, refuse_changes, resume_class
from transduce.config.toml import to_table, to_toml
from transduce.data.batches import encode_pairs
from transduce.data.config import DataConfig
from transduce.data.download import Places
from transduce.data.packed_batches import pack_batches
from transduce.errors import ConfigMismatchError, RunFolderError, TransduceError
from transduce.evaluation.config import ValidationConfig
from transduce.evaluation.metrics import Score
from transduce.files import atomic as files
from transduce.model.config import TransformerConfig
from transduce.runs import train as experiment
from transduce.runs import validation as scoring
from transduce.runs.corpus import read_corpus
from transduce.runs.folder import RunFolder
from transduce.runs.run import load
from transduce.runs.train import train
from transduce.text.config import TokenizerConfig
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.signals import Stopped
from transduce.training.state import TrainerState
from transduce.training.trainer import Trainer

SOURCE = Path(experiment.__file__).parents[2]
DRAW = experiment._draw_learning_curve  # which most tests here go without
NUM_STEPS, STEPS_PER_EPOCH = 15, 6  # two and a half epochs
MICRO_BATCHES = [2, 2, 2, 2, 2, 1] * 2 + [2, 2, 2]  # of each step: the last of an epoch has what is left


def write_pairs(path: Path, num_pairs: int, seed: int) -> Path:
    """Words and their mirror images."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefg", k=draw.randint(2, 9))) for _ in range(num_pairs)]
    path.write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    folder = tmp_path_factory.mktemp("data")
    return ExperimentConfig(
        data=DataConfig(
            train=(str(write_pairs(folder / "train.tsv", 80, seed=1)),),
            valid=(str(write_pairs(folder / "valid.tsv", 12, seed=2)),),
        ),
        tokenizer=TokenizerConfig(source="characters", target="characters"),
        model=TransformerConfig(
            d_model=16, d_ff=24, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, dropout=0.2
        ),
        optim=OptimConfig(schedule="constant", learning_rate=0.02, warmup_steps=4, max_grad_norm=0.5, ema_decay=0.8),
        training=TrainingConfig(
            steps=NUM_STEPS,
            batch_tokens=60,
            micro_batches=2,
            validate_every=3,
            save_every=1,
            keep_checkpoints=100,
            log_every=5,
            patience=20,
        ),
        validation=ValidationConfig(metrics=()),
    )


@pytest.fixture(scope="module")
def finished(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing ever stopped."""
    path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_draw_learning_curve", lambda *_: None)
        train(config, path)
    return path


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_draw_learning_curve", lambda *_: None)  # half a second each


@pytest.fixture
def copy_of(finished: Path, tmp_path: Path) -> Callable[[int], Path]:
    """The finished run as it was after so many steps, its rows and its best weights left as they ended."""

    def copy(step: int) -> Path:
        path = Path(shutil.copytree(finished, tmp_path / f"copy{step}"))
        for later in RunFolder(path).checkpoints():
            if later > step:
                (path / "checkpoints" / f"step-{later:08d}.safetensors").unlink()
        return path

    return copy


def outcome_of(path: Path) -> dict[str, Any]:
    """All that training leaves behind, without what clocks say."""
    folder = RunFolder.open(path)
    step, tensors, state = folder.newest_checkpoint() or pytest.fail("no checkpoint")
    timing = ("seconds", "logged_seconds", "validation_seconds", "tokens_per_second")
    return {
        "step": step,
        "tensors": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "state": {name: value for name, value in state.items() if name not in timing},
        "best": (path / "model.safetensors").read_bytes(),
        "rows": [{name: value for name, value in row.items() if name not in timing} for row in folder.metrics()],
    }


def assert_same_outcome(path: Path, expected: Path) -> None:
    found, wanted = outcome_of(path), outcome_of(expected)
    for part in wanted:
        if part == "tensors":
            assert found[part].keys() == wanted[part].keys()
            assert [name for name in wanted[part] if found[part][name] != wanted[part][name]] == []
        else:
            assert found[part] == wanted[part], part


class Striking:
    """Calls `function`; at call number `at`, counted from 1, `strike` comes first."""

    def __init__(self, function: Callable, at: int, strike: Callable[[], None]) -> None:
        self.function, self.at, self.strike, self.num_calls = function, at, strike, 0

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.num_calls += 1
        if self.num_calls == self.at:
            self.strike()
        return self.function(*arguments, **more)


def signalling(signum: int, times: int = 1) -> Callable[[], None]:
    def strike() -> None:
        for _ in range(times):
            os.kill(os.getpid(), signum)

    return strike


def strike_at(monkeypatch: pytest.MonkeyPatch, where: str, call: int, strike: Callable[[], None]) -> pytest.MonkeyPatch:
    names = {
        "micro_batch": "transduce.training.step.collate",
        "validation": "transduce.runs.validation.corpus_loss",
    }
    module, _, name = names[where].rpartition(".")
    monkeypatch.setattr(names[where], Striking(getattr(sys.modules[module], name), call, strike))
    return monkeypatch


def test_a_run_from_another_that_ended_before_its_first_checkpoint_begins_with_those_weights(
    config: ExperimentConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(TransduceError):
        patch.setattr(Trainer, "run", Mock(side_effect=TransduceError("at once")))
        train(config, tmp_path / "run", init_from=finished)
    assert RunFolder.open(tmp_path / "run").checkpoints() == []
    train(config, tmp_path / "run", resume=True)
    tensors, _ = RunFolder.open(tmp_path / "run").read_checkpoint(0)
    for name, weights in load(finished, device="cpu").model.named_parameters():
        assert torch.equal(tensors[f"model.{name}"], weights)


def test_train_takes_the_name_of_a_folder_for_the_folder(config: ExperimentConfig, tmp_path: Path) -> None:
    short = replace(config, training=replace(config.training, steps=3))
    train(short, str(tmp_path / "ancestor"))
    assert train(short, str(tmp_path / "ancestor"), resume=True).step == 3
    train(short, str(tmp_path / "heir"), init_from=str(tmp_path / "ancestor"))
    assert RunFolder.open(str(tmp_path / "heir")).facts["initialised_from"] == str(tmp_path / "ancestor")


def test_an_older_run_that_calls_wrong_words_wer_goes_on_as_one_that_does_not(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = ValidationConfig(metrics=("word_error", "per"), best="word_error", group_sources=True)
    config = replace(config, validation=validation, training=replace(config.training, steps=6))
    monkeypatch.setattr(scoring, "score", lambda *_, **__: [Score("word_error", 50.0, 0, 0, 1, "", False)])
    train(config, tmp_path / "run")
    older = RunFolder.open(tmp_path / "run")
    tensors, state = older.read_checkpoint(6)
    assert state["best_measure"] == "word_error of 12 pairs, beam 1"
    state = {**state, "best_measure": "wer of 12 pairs, beam 1"}
    with older.lock():
        older.write_checkpoint(6, tensors, state, keep=1)
        older.rewrite_config(older.config_text.replace("word_error", "wer"))
        rows = tmp_path / "run/metrics.jsonl"
        rows.write_text(rows.read_text().replace("word_error", "wer"))
    curves = []
    monkeypatch.setattr(experiment, "_draw_learning_curve", DRAW)
    monkeypatch.setattr(experiment, "learning_curve", lambda rows, *_: curves.append(rows) or b"")
    longer = replace(config, training=replace(config.training, steps=9))
    assert train(longer, tmp_path / "run", resume=True).best_step == 3  # of equals the first
    assert [row["word_error"] for row in curves[0] if row["kind"] == "validation"] == [50.0] * 3


# Stopped and resumed


def test_the_run_of_these_tests_is_hard_enough_to_resume(config: ExperimentConfig, finished: Path) -> None:
    found = outcome_of(finished)
    assert (found["step"], found["state"]["epoch"]) == (NUM_STEPS, 2)
    assert found["state"]["position"] == NUM_STEPS - 2 * STEPS_PER_EPOCH
    assert {name.partition(".")[0] for name in found["tensors"]} == {"model", "ema", "optimizer"}
    assert [row["step"] for row in found["rows"] if row["kind"] == "training"] == [5, 10, 15]
    assert [row["step"] for row in found["rows"] if row["kind"] == "validation"] == [3, 6, 9, 12, 15]
    assert config.model.dropout and config.training.label_smoothing and config.training.micro_batches == 2


def test_a_second_run_is_the_same_to_the_last_bit(config: ExperimentConfig, finished: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "again")
    assert_same_outcome(tmp_path / "again", finished)


def test_a_run_in_another_process_language_hash_seed_and_folder_has_the_same_bits(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    for side, num_pairs, seed in (("train", 80, 3), ("valid", 12, 4)):
        text = write_pairs(tmp_path / f"{side}.tsv", num_pairs, seed).read_text()
        # Letters whose lower case, order or code depends on the language where a program asks for its rules.
        text = text.translate({ord("b"): "I", ord("c"): "İ", ord("d"): "ß e"})
        # And letters that are equally frequent, in the order of which sets and hashes show.
        (tmp_path / f"{side}.tsv").write_text(f"{text}klmnopqrstu\tutsrqponmlk\n")
    config = replace(
        changed(config, "training", steps=6),
        data=DataConfig(train=(str(tmp_path / "train.tsv"),), valid=(str(tmp_path / "valid.tsv"),)),
        tokenizer=TokenizerConfig(source="characters", joint=False, vocab_size=300, normalize=("lower", "nfc")),
        validation=ValidationConfig(metrics=("chrf", "cer"), best="chrf"),
    )
    train(config, tmp_path / "here")
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    elsewhere = {"LC_ALL": "C", "LANG": "tr_TR", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu"}
    environment = os.environ | elsewhere | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(SOURCE)}
    words = [sys.executable, "-P", "-m", "transduce", *command(config, tmp_path)]
    found = subprocess.run(words, cwd=tmp_path.root, env=environment, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    assert_same_outcome(tmp_path / "run", tmp_path / "here")
    for name in ("tokenizer.json", "config.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert RunFolder(tmp_path / "run").facts["seen"] == RunFolder(tmp_path / "here").facts["seen"]


# The first ones; the last of a step with a validation; around the ends of both epochs; the very last.
@pytest.mark.parametrize("micro_batch", rest_as_proofs(range(1, sum(MICRO_BATCHES) + 1), [1, 2, 6, 11, 12, 22, 28]))
def test_a_stop_in_any_micro_batch_leaves_no_trace(
    config: ExperimentConfig, finished: Path, tmp_path: Path, micro_batch: int
) -> None:
    signum = (signal.SIGTERM, signal.SIGINT)[micro_batch // 2 % 2]
    lazy = replace(config, training=replace(config.training, save_every=0))  # so that the stop must save
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="everything is saved") as stopped:
        strike_at(patch, "micro_batch", micro_batch, signalling(signum))
        train(lazy, tmp_path / "run")
    assert stopped.value.signum == signum
    steps_done = sum(end <= micro_batch for end in accumulate(MICRO_BATCHES))
    assert RunFolder.open(tmp_path / "run").checkpoints()[-1:] == [steps_done]
    train(lazy, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", finished)


def test_a_run_stopped_at_every_step_ends_like_one_never_stopped(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    for step in range(1, NUM_STEPS + 1):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match=f"at step {step} of"):
            strike_at(patch, "micro_batch", 2, signalling(signal.SIGTERM))
            train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", finished)


def test_a_run_with_muon_stopped_at_every_other_step_ends_like_one_never_stopped(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    config = changed(config, "optim", method="muon")
    train(config, tmp_path / "uninterrupted")
    for step in range(2, NUM_STEPS + 1, 2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match=f"at step {step} of"):
            strike_at(patch, "micro_batch", 4, signalling(signal.SIGTERM))
            train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", tmp_path / "uninterrupted")


@pytest.mark.parametrize("number", rest_as_proofs(range(1, 6), [1, 2, 5]))
def test_a_stop_inside_a_validation_is_heard_at_once_and_leaves_no_trace(
    config: ExperimentConfig, finished: Path, tmp_path: Path, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        strike_at(patch, "validation", 2 * number - 1, lambda: (signalling(signal.SIGTERM)(), time.sleep(60)))
        train(config, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert folder.checkpoints()[-1] == 3 * number
    assert [row["kind"] for row in folder.metrics()].count("validation") == number - 1
    train(config, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", finished)


def test_a_validation_row_is_not_repeated_when_a_sitting_dies_between_it_and_its_checkpoint(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        strike_at(patch, "validation", 2, signalling(signal.SIGTERM))
        train(config, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(RunFolder, "write_checkpoint", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
        train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", finished)


# The first; within an epoch, with and without a validation, and at its end; the last.
@pytest.mark.parametrize("step", rest_as_proofs(range(1, NUM_STEPS + 1), [1, 6, 8, 9, NUM_STEPS]))
def test_resuming_from_any_kept_checkpoint_gives_the_same_run(
    config: ExperimentConfig, finished: Path, copy_of: Callable[[int], Path], step: int
) -> None:
    path = copy_of(step)
    train(config, path, resume=True)
    assert_same_outcome(path, finished)


def test_a_run_without_any_checkpoint_begins_again(
    config: ExperimentConfig, finished: Path, copy_of: Callable[[int], Path]
) -> None:
    path = copy_of(0)
    train(config, path, resume=True)
    assert_same_outcome(path, finished)


def test_a_damaged_checkpoint_is_skipped_with_a_report(
    config: ExperimentConfig, finished: Path, copy_of: Callable[[int], Path]
) -> None:
    path, lines = copy_of(8), []
    newest = path / "checkpoints" / "step-00000008.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    train(config, path, resume=True, report=lines.append)
    assert any("step-00000008" in line and "damaged" in line for line in lines)
    assert any(line.startswith("resuming at step 7 of 15") for line in lines)
    assert_same_outcome(path, finished)


def test_a_finished_run_resumed_does_nothing(
    config: ExperimentConfig, finished: Path, copy_of: Callable[[int], Path]
) -> None:
    path = copy_of(NUM_STEPS)
    times = {file: file.stat().st_mtime_ns for file in [path / "model.safetensors", *path.glob("checkpoints/*")]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda *_: pytest.fail("a step was made"))
        assert train(config, path, resume=True).step == NUM_STEPS
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert_same_outcome(path, finished)


def test_a_calibration_that_was_interrupted_is_made_up_for_when_the_run_is_resumed(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    expected = RunFolder(finished).facts["calibration"]
    assert expected["num_pairs"] == 12 and 0.25 <= expected["temperature"] <= 4
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("transduce.runs.validation.fit_calibration", Mock(side_effect=KeyboardInterrupt))
        train(config, tmp_path / "run")
    assert "calibration" not in RunFolder(tmp_path / "run").facts
    train(config, tmp_path / "run", resume=True)
    assert RunFolder(tmp_path / "run").facts["calibration"] == expected
    assert_same_outcome(tmp_path / "run", finished)


def test_the_calibration_of_other_weights_is_forgotten_when_the_run_goes_on(
    config: ExperimentConfig, copy_of: Callable[[int], Path]
) -> None:
    path = copy_of(NUM_STEPS)
    more = replace(config, training=replace(config.training, steps=NUM_STEPS + 1))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", Mock(side_effect=KeyboardInterrupt))
        train(more, path, resume=True)
    assert RunFolder(path).facts["calibration"] is None
    assert load(path, device="cpu").calibration.is_rough


def test_a_run_that_lost_patience_stays_finished_until_it_is_given_more(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    hopeless = replace(config, optim=replace(config.optim, learning_rate=1e-9, ema_decay=0.0))
    impatient = replace(hopeless, training=replace(config.training, patience=1, validate_every=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "corpus_loss", lambda *_: 1.0)
        assert train(impatient, tmp_path / "run").step == 2
        assert train(impatient, tmp_path / "run", resume=True).step == 2
        patient = replace(impatient, training=replace(impatient.training, patience=4))
        assert train(patient, tmp_path / "run", resume=True).step == 5


@pytest.mark.parametrize(("minutes_now", "is_finished"), [(3.0, True), (2.0, True), (3.5, False)])
def test_a_run_ended_by_the_clock_stays_finished_until_it_is_given_more(minutes_now: float, is_finished: bool) -> None:
    state = TrainerState(step=5, minutes_over=3.0)
    assert state.is_finished(steps=10, patience=0, minutes=minutes_now) is is_finished


def test_a_finished_run_goes_on_with_more_steps_as_if_they_had_been_asked_for_at_once(
    config: ExperimentConfig, tmp_path: Path, copy_of: Callable[[int], Path]
) -> None:
    longer = replace(config, training=replace(config.training, steps=NUM_STEPS + 5))
    path = copy_of(NUM_STEPS)
    train(longer, path, resume=True)
    train(longer, tmp_path / "at once")
    assert_same_outcome(path, tmp_path / "at once")


def test_fewer_steps_than_done_already_end_the_run_where_it_is(
    config: ExperimentConfig, copy_of: Callable[[int], Path]
) -> None:
    shorter = replace(config, training=replace(config.training, steps=4))
    assert train(shorter, copy_of(8), resume=True).step == 8


def test_epochs_become_steps_that_a_resumed_run_keeps(config: ExperimentConfig, tmp_path: Path) -> None:
    by_epochs = replace(config, training=replace(config.training, steps=0, epochs=2.5, validate_every=0))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        strike_at(patch, "micro_batch", 8, signalling(signal.SIGTERM))
        train(by_epochs, tmp_path / "run")
    assert train(by_epochs, tmp_path / "run", resume=True).step == NUM_STEPS
    more = replace(by_epochs, training=replace(by_epochs.training, epochs=3.0))
    assert train(more, tmp_path / "run", resume=True).step == 3 * STEPS_PER_EPOCH


def test_epochs_of_packed_batches_are_counted_in_packed_batches(config: ExperimentConfig, tmp_path: Path) -> None:
    packed = replace(config.training, steps=0, epochs=2.0, batching="packed", validate_every=0)
    state = train(replace(config, training=packed), tmp_path / "run")
    corpus = read_corpus(config.data, Places(), lambda _line: None)
    tokenizer = RunFolder.open(tmp_path / "run").tokenizer
    pairs, _ = encode_pairs(tokenizer, corpus.train, max_len=config.data.max_len)
    order = np.random.default_rng([packed.seed, 0]).permutation(len(pairs))
    batches = pack_batches(pairs.src_lens, pairs.tgt_lens, batch_tokens=packed.batch_tokens, order=order)
    assert state.step == 2 * math.ceil(len(batches) / packed.micro_batches) != 2 * STEPS_PER_EPOCH
    assert (state.epoch, state.position) == (1, state.step // 2)


@pytest.mark.parametrize("length", [{"steps": 20}, {"steps": 0, "epochs": 20 / STEPS_PER_EPOCH}])
def test_a_run_is_validated_ten_times_unless_told_otherwise(
    config: ExperimentConfig, tmp_path: Path, length: dict
) -> None:
    train(replace(config, training=replace(config.training, validate_every=0, **length)), tmp_path / "run")
    rows = RunFolder.open(tmp_path / "run").metrics()
    assert [row["step"] for row in rows if row["kind"] == "validation"] == list(range(2, 21, 2))


# Signals, as a shell sees them


def command(config: ExperimentConfig, folder: Path) -> list[str]:
    """The words of a command that trains as `config` says in `folder`/run."""
    (folder / "mirror.toml").write_text(to_toml(config))
    return ["train", str(folder / "mirror.toml"), "--run-dir", str(folder / "run"), "--threads", "1"]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_line_printed_at_a_stop_is_the_command_that_goes_on(
    config: ExperimentConfig, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, signum: int, status: int
) -> None:
    words = [*command(config, tmp_path), "--training.save_every", "7"]
    num_threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.MonkeyPatch.context() as patch:
            strike_at(patch, "micro_batch", 9, signalling(signum))
            assert cli.main(words) == status
        told = capsys.readouterr().err
        assert "Traceback" not in told
        again = shlex.split(told.rpartition("Continue with: ")[2])
        assert again[0] == "transduce"
        assert cli.main(again[1:]) == 0
        assert cli.main(again[1:]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
        torch.set_num_threads(num_threads)
        torch.set_flush_denormal(False)
    assert_same_outcome(tmp_path / "run", finished)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_stop_told_more_than_once_is_saved_all_the_same(
    config: ExperimentConfig, tmp_path: Path, signum: int
) -> None:
    lazy = replace(config, training=replace(config.training, save_every=0))
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Stopped, match="Stopped at step 4 of 15; everything is saved"),
    ):
        strike_at(patch, "micro_batch", 9, signalling(signum, times=2))
        write = Striking(RunFolder.write_checkpoint, 3, signalling(signum))  # after 0 and 3
        patch.setattr(RunFolder, "write_checkpoint", lambda *given, **named: write(*given, **named))
        train(lazy, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").checkpoints() == [0, 3, 4]


def test_a_signal_to_save_saves_the_step_in_which_it_comes_and_changes_nothing(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    lazy = replace(config, training=replace(config.training, save_every=0))
    with pytest.MonkeyPatch.context() as patch:
        strike_at(patch, "micro_batch", 9, signalling(signal.SIGUSR1))
        train(lazy, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").checkpoints() == [0, 3, 5, 6, 9, 12, 15]
    assert_same_outcome(tmp_path / "run", finished)


def test_a_stop_while_the_last_step_is_saved_is_heard(config: ExperimentConfig, finished: Path, tmp_path: Path) -> None:
    lazy = replace(config, training=replace(config.training, save_every=0))
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Stopped, match="Stopped at step 15 of 15; everything is saved"),
    ):
        write = Striking(RunFolder.write_checkpoint, 6, signalling(signal.SIGTERM))  # after 0, 3, 6, 9 and 12
        patch.setattr(RunFolder, "write_checkpoint", lambda *given, **named: write(*given, **named))
        train(lazy, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").facts.get("calibration") is None
    train(lazy, tmp_path / "run", resume=True)
    assert RunFolder.open(tmp_path / "run").facts["calibration"]
    assert_same_outcome(tmp_path / "run", finished)


def test_whoever_waits_for_ctrl_c_hears_every_stop(config: ExperimentConfig, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        strike_at(patch, "micro_batch", 2, signalling(signal.SIGINT))
        train(config, tmp_path / "run")
    assert not isinstance(stopped.value, Exception)
    assert str(stopped.value).endswith("everything is saved. To continue, repeat the call with resume=True.")


def test_memory_that_ends_within_an_update_saves_no_half_updated_weights(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("transduce.training.step.update_average", Mock(side_effect=MemoryError))
        train(config, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").checkpoints() == [0]
    train(config, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", finished)


def test_a_second_ctrl_c_ends_at_once_and_saves_nothing(config: ExperimentConfig, tmp_path: Path) -> None:
    lazy = replace(config, training=replace(config.training, save_every=0))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        strike_at(patch, "micro_batch", 9, signalling(signal.SIGINT, times=2))
        train(lazy, tmp_path / "run")
    assert not isinstance(stopped.value, Stopped)
    assert RunFolder.open(tmp_path / "run").checkpoints() == [0, 3]


def test_a_second_ctrl_c_within_an_update_saves_no_half_updated_weights(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        update = sys.modules["transduce.training.step"].update_average
        patch.setattr("transduce.training.step.update_average", Striking(update, 5, signalling(signal.SIGINT, times=2)))
        train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", finished)


@pytest.mark.parametrize(
    ("start", "signum", "status"), [(forked, signal.SIGTERM, 143), (subprocess.Popen, signal.SIGINT, 130)]
)
def test_a_real_process_stops_with_the_status_of_the_signal(
    config: ExperimentConfig, tmp_path: Path, start: Callable[..., subprocess.Popen], signum: int, status: int
) -> None:
    endless = replace(config, training=replace(config.training, steps=1_000_000, save_every=0, log_every=1))
    words = [sys.executable, "-m", "transduce", *command(endless, tmp_path)]
    process = start(words, stderr=subprocess.PIPE, text=True)
    rows = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.stat().st_size > 0, process)
    process.send_signal(signum)
    sent = time.monotonic()
    _, told = process.communicate(timeout=30)
    assert process.returncode == status
    assert time.monotonic() - sent < 5
    assert "Traceback" not in told
    assert told.endswith(
        f"everything is saved. Continue with: transduce {shlex.join(command(endless, tmp_path))} --resume\n"
    )
    folder = RunFolder.open(tmp_path / "run")
    assert folder.checkpoints()[-1] == folder.metrics()[-1]["step"]


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not is_true():
        assert process.poll() is None and time.monotonic() < end, "the process did not get that far"
        time.sleep(0.01)


# Killed


def run_forked(words: list[str], before: Callable[[], None]) -> int:
    """The pid of a child that runs the command, with all that is slow to import there already."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        before()
        status = cli.main([*words, "--quiet", "--resume"])
    finally:
        os._exit(status)


def kill_until_done(words: list[str], draw: random.Random, seconds: float) -> tuple[int, int]:
    """Runs the command again and again, each time killed: half at a random time, half inside a write to disk.

    Returns how many kills there were of each sort.
    """
    kills = [0, 0]
    for _ in range(1000):
        is_aimed = draw.random() < 0.5
        call, moment = draw.randint(1, 40), draw.uniform(0, seconds)

        def aim(call: int = call if is_aimed else 0) -> None:
            files.os = type("os", (), vars(os) | {"fsync": Striking(os.fsync, call, signalling(signal.SIGKILL))})

        pid = run_forked(words, aim)
        end = time.monotonic() + (60 if is_aimed else moment)
        while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        status = os.waitstatus_to_exitcode(found[1])
        if status == 0:
            return kills[0], kills[1]
        assert status == -signal.SIGKILL and not (is_aimed and time.monotonic() > end), "it hangs"
        kills[is_aimed] += 1
    raise AssertionError("it never ended")


def test_a_run_killed_at_random_moments_ends_like_one_never_killed(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    draw, num_kills = random.Random(7), 0
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        num_kills += sum(kill_until_done(command(config, folder), draw, seconds=0.6))
        assert_same_outcome(folder / "run", finished)
    assert num_kills > 3


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(1, 21))
def test_two_hundred_kills_lose_nothing(config: ExperimentConfig, finished: Path, tmp_path: Path, seed: int) -> None:
    draw, timed, aimed, num_runs = random.Random(seed), 0, 0, 0
    while timed < 5 or aimed < 5:
        folder = tmp_path / str(num_runs)
        folder.mkdir()
        found = kill_until_done(command(config, folder), draw, seconds=0.6)
        timed, aimed, num_runs = timed + found[0], aimed + found[1], num_runs + 1
        assert_same_outcome(folder / "run", finished)
        shutil.rmtree(folder)


def run_killed_at(words: list[str], call: int) -> int:
    """The status of the command, killed when it writes to disk for the `call`th time; 0: not at all."""

    def aim() -> None:
        files.os = type("os", (), vars(os) | {"fsync": Striking(os.fsync, call, signalling(signal.SIGKILL))})

    return os.waitstatus_to_exitcode(os.waitpid(run_forked(words, aim), 0)[1])


# What a resumed run writes before its first step, then the checkpoints of some steps.
@pytest.mark.parametrize("call", rest_as_proofs(range(1, 21), [4]))
def test_a_kill_of_the_resume_of_a_killed_run_leaves_no_trace(
    config: ExperimentConfig, finished: Path, tmp_path: Path, call: int
) -> None:
    words = command(config, tmp_path)
    assert [run_killed_at(words, each) for each in (25, call, call, 0)] == [-signal.SIGKILL] * 3 + [0]
    assert_same_outcome(tmp_path / "run", finished)


# Short of memory


class ShortOfMemory(TorchDispatchMode):
    """A block in which operation number `at` of torch, counted from 1, finds no memory."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.num_operations = at, 0

    def __torch_dispatch__(self, operation: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.num_operations += 1
        if self.num_operations == self.at:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        return operation(*arguments, **(options or {}))


# Spread over all that a run of these tests does.
@pytest.mark.parametrize("at", rest_as_proofs([1, *range(19, 26_900, 881)], [20_282]))
def test_an_allocation_that_fails_loses_nothing_of_the_steps_before(
    config: ExperimentConfig, finished: Path, tmp_path: Path, at: int
) -> None:
    with ShortOfMemory(at) as short, pytest.raises((RuntimeError, TransduceError), match="memory"):
        train(config, tmp_path / "run")
    assert short.num_operations >= at
    train(config, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", finished)


# Changed settings


def names_of(config: ExperimentConfig) -> list[str]:
    return [f"{section}.{name}" for section, settings in to_table(config).items() for name in settings]


def test_every_setting_is_in_exactly_one_class_of_what_a_resumed_run_may_change(config: ExperimentConfig) -> None:
    names = names_of(config)
    assert len(names) > 40
    for name in names:
        assert resume_class(name) in ON_RESUME
    patterns = [pattern for patterns in ON_RESUME.values() for pattern in patterns]
    for pattern in patterns:  # none is left over from a setting that is gone
        assert any(name == pattern or name.startswith(pattern.removesuffix("*")) for name in names), pattern


def test_a_change_is_refused_by_its_class_and_the_difference_is_shown(config: ExperimentConfig) -> None:
    for name in names_of(config):
        for accept_changes in (False, True):
            needs = {"free": False, "never": True, "with --accept-changes": not accept_changes}
            if needs[resume_class(name)]:
                with pytest.raises(ConfigMismatchError, match=rf"{name} \('old' -> 'new'\)"):
                    refuse_changes({name: ("old", "new")}, accept_changes=accept_changes)
            else:
                refuse_changes({name: ("old", "new")}, accept_changes=accept_changes)


def changed(config: ExperimentConfig, section: str, **settings: Any) -> ExperimentConfig:
    return replace(config, **{section: replace(getattr(config, section), **settings)})


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("optim", {"learning_rate": 0.001}),
        ("optim", {"ema_decay": 0.0}),
        ("optim", {"method": "muon"}),
        ("training", {"label_smoothing": 0.0}),
        ("training", {"batch_tokens": 30}),
        ("training", {"micro_batches": 5}),
        ("training", {"seed": 2}),
        ("training", {"validate_every": 2}),
        ("model", {"dropout": 0.0}),
        ("data", {"max_len": 7}),
        ("validation", {"metrics": ("exact_match",), "best": "exact_match"}),
    ],
)
def test_a_flagged_change_is_refused_alone_and_recorded_when_accepted(
    config: ExperimentConfig, copy_of: Callable[[int], Path], section: str, settings: dict
) -> None:
    path, other = copy_of(8), changed(config, section, **settings)
    key, new = next(iter(settings.items()))
    old = getattr(getattr(config, section), key)
    with pytest.raises(ConfigMismatchError, match=rf"{section}\.{key} .*--accept-changes"):
        train(other, path, resume=True)
    assert "resumed" not in RunFolder.open(path).facts
    assert train(other, path, resume=True, accept_changes=True).step == NUM_STEPS
    (record,) = RunFolder.open(path).facts["resumed"]
    as_json = [list(value) if isinstance(value, tuple) else value for value in (old, new)]
    assert record["step"] == 8
    assert record["changes"][f"{section}.{key}"] == as_json
    train(other, path, resume=True)  # it is the run's own setting now


@pytest.mark.parametrize(
    ("section", "settings"),
    [("model", {"d_model": 18}), ("model", {"norm_first": True}), ("tokenizer", {"joint": False})],
)
def test_another_shape_is_never_accepted(
    config: ExperimentConfig, copy_of: Callable[[int], Path], section: str, settings: dict
) -> None:
    path, other = copy_of(8), changed(config, section, **settings)
    with pytest.raises(ConfigMismatchError, match=rf"{section}\.{next(iter(settings))} .*start a new run"):
        train(other, path, resume=True, accept_changes=True)
    assert RunFolder.open(path).checkpoints()[-1] == 8


def test_an_average_switched_on_at_a_resume_begins_with_the_weights_there(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    plain = changed(changed(config, "optim", ema_decay=0.0), "training", steps=6)
    train(plain, tmp_path / "run")
    last, _ = RunFolder.open(tmp_path / "run").read_checkpoint(6)
    averaged = changed(changed(plain, "optim", ema_decay=0.99), "training", steps=7)
    train(averaged, tmp_path / "run", resume=True, accept_changes=True)
    tensors, _ = RunFolder.open(tmp_path / "run").read_checkpoint(7)
    decay = 8 / 17  # (1 + step) / (10 + step)
    for name in (name.removeprefix("ema.") for name in tensors if name.startswith("ema.")):
        expected = decay * last[f"model.{name}"] + (1 - decay) * tensors[f"model.{name}"]
        torch.testing.assert_close(tensors[f"ema.{name}"], expected, rtol=1e-6, atol=1e-6)


def test_other_batches_begin_with_the_next_epoch_even_if_the_first_sitting_with_them_is_killed(
    config: ExperimentConfig, copy_of: Callable[[int], Path]
) -> None:
    path, lines = copy_of(8), []
    other = changed(config, "training", batch_tokens=30)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "run", lambda _self: (_ for _ in ()).throw(MemoryError))
        train(other, path, resume=True, accept_changes=True)
    train(other, path, resume=True, report=lines.append)
    assert "the batches have changed: continuing with the next epoch" in lines
    _, state = RunFolder.open(path).read_checkpoint(9)
    assert (state["epoch"], state["position"]) == (2, 1)


def test_the_best_of_one_measure_is_forgotten_when_another_decides(
    config: ExperimentConfig, copy_of: Callable[[int], Path]
) -> None:
    path = copy_of(8)
    by_match = changed(config, "validation", metrics=("exact_match",), best="exact_match")
    state = train(by_match, path, resume=True, accept_changes=True)
    assert state.best_step >= 9
    assert state.best_score >= 0.0


# Changed data


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines(keepends=True)


@pytest.mark.parametrize("side", ["train", "valid"])
def test_one_changed_line_of_the_data_is_refused(
    config: ExperimentConfig, copy_of: Callable[[int], Path], tmp_path: Path, side: str
) -> None:
    lines = lines_of(getattr(config.data, side)[0])
    lines[5] = "abc\tcba\n"
    (tmp_path / "changed.tsv").write_text("".join(lines))
    other = changed(config, "data", **{side: (str(tmp_path / "changed.tsv"),)})
    with pytest.raises(ConfigMismatchError, match=rf"the {side} data .*--init-from"):
        train(other, copy_of(8), resume=True, accept_changes=True)


def test_data_may_move_and_be_touched(
    config: ExperimentConfig, finished: Path, copy_of: Callable[[int], Path], tmp_path: Path
) -> None:
    path = copy_of(8)
    moved = {side: (str(shutil.copy(getattr(config.data, side)[0], tmp_path)),) for side in ("train", "valid")}
    os.utime(moved["train"][0], (1, 1))
    train(changed(config, "data", **moved), path, resume=True)
    assert_same_outcome(path, finished)


# Other runs


def test_a_folder_with_a_run_is_refused_unless_it_is_resumed(
    config: ExperimentConfig, copy_of: Callable[[int], Path]
) -> None:
    path = copy_of(8)
    with pytest.raises(RunFolderError, match=r"already contains a run.*--resume"):
        train(config, path)
    assert RunFolder.open(path).checkpoints()[-1] == 8


def test_a_run_in_use_is_refused_before_anything_is_read(
    config: ExperimentConfig, copy_of: Callable[[int], Path]
) -> None:
    path = copy_of(8)
    with RunFolder.open(path).lock(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "read_corpus", lambda *_: pytest.fail("it read"))
        with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
            train(config, path, resume=True)


def test_a_run_can_begin_from_another_with_more_pairs_and_be_resumed_with_the_same_settings(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    ancestor, *_ = RunFolder.open(finished).read_model()
    data = write_pairs(tmp_path / "other.tsv", 50, seed=9)
    (tmp_path / "more.tsv").write_text("abcabcab\tbacbacba\nabcabd\tdbacba\n")
    other = dataclasses.replace(
        config,
        data=DataConfig(train=(str(data),), valid=config.data.valid, more=(str(tmp_path / "more.tsv"),)),
        tokenizer=TokenizerConfig(source="words", target="words"),  # gives way to that of the run begun from
        model=replace(config.model, d_model=32, dropout=0.1),
    )
    begun_with: dict[str, torch.Tensor] = {}
    run_it = Trainer.run

    def run(self: Trainer) -> Any:
        begun_with.update({name: p.detach().clone() for name, p in self.model.named_parameters()})
        return run_it(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "run", run)
        strike_at(patch, "micro_batch", 6, signalling(signal.SIGTERM))
        train(other, tmp_path / "run", init_from=finished)
    torch.testing.assert_close(begun_with, ancestor, rtol=0, atol=0)
    folder = RunFolder.open(tmp_path / "run")
    assert folder.tokenizer_text == RunFolder.open(finished).tokenizer_text
    assert folder.facts["initialised_from"] == str(finished)
    assert folder.facts["num_train_pairs"] == 52
    assert train(other, tmp_path / "run", init_from=finished, resume=True).step == NUM_STEPS


def test_a_model_whose_checkpoints_were_removed_is_not_trained_over(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(TransduceError, match="--init-from"):
        train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "had", "steps"),
    [
        ({"steps": 70}, {"steps": 50}, 70),
        ({"minutes": 5.0}, {"minutes": 5.0, "steps": 50}, 50),
        ({"minutes": 10.0}, {"minutes": 5.0, "steps": 50}, 100),
        ({"epochs": 3.0}, {"epochs": 2.0, "steps": 50}, 75),
        ({"minutes": 5.0}, {"steps": 50}, 0),
        ({"epochs": 2.0}, {"minutes": 5.0, "steps": 50}, 0),
        ({"minutes": 5.0}, {"epochs": 2.0, "steps": 50}, 0),
    ],
)
def test_the_steps_of_a_resumed_run_follow_the_limit_that_is_asked_for(
    config: ExperimentConfig, asked: dict[str, float], had: dict[str, float], steps: int
) -> None:
    blank: dict[str, float] = {"steps": 0, "epochs": 0.0, "minutes": 0.0}
    new, old = (
        replace(config, training=replace(config.training, **(blank | limits)))  # type: ignore[arg-type]
        for limits in (asked, had)
    )
    assert carry_over(new, old).training.steps == steps


def test_a_run_ended_by_the_clock_goes_on_without_a_clock() -> None:
    state = TrainerState(step=10, minutes_over=5.0)
    assert state.is_finished(steps=5000, patience=0, minutes=5.0)
    assert not state.is_finished(steps=5000, patience=0, minutes=0.0)
    assert not state.is_finished(steps=5000, patience=0, minutes=6.0)
