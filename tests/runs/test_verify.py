"""What `verify` covers, what it says it does not, and what a run that goes on does about damage."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import transduce
from calling import Outcome, command
from transduce.cli import main as cli
from transduce.config.settings import lasting, load_config
from transduce.config.toml import to_toml
from transduce.errors import DamagedFileError, TransduceError
from transduce.runs.folder import RunFolder

pytest_plugins = ["small_run"]

DAMAGED = DamagedFileError.exit_status
LAST = "checkpoints/step-00000060.safetensors"


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the small run that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "own"))


def repeated(run: Path, path: Path, *, seed: int, steps: int = 60) -> Path:
    """A run of the same tokenizer and data, as `train` begins it, with the same weights."""
    folder = RunFolder.open(run)
    settings = folder.settings
    settings = replace(settings, training=replace(settings.training, seed=seed, steps=steps))
    texts = {"config": to_toml(settings), "tokenizer": folder.tokenizer_text}
    created = RunFolder.create(path, **texts, facts=folder.facts, identity=lasting(settings))
    created.write_model(*folder.read_model()[:2])
    created.write_checkpoint(60, *folder.read_checkpoint(60), keep=1)
    return path


def resumed(run: Path, data: Path, *words: object) -> Outcome:
    return command("train", data / "config.toml", "--run-dir", run, "--resume", *words)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def problems_of(run: Path) -> dict[str, str]:
    return {name: problem for name, problem in RunFolder(run).verify() if problem}


@pytest.mark.parametrize("name", ["model.safetensors", LAST])
def test_weights_of_another_seed_with_the_same_tokenizer_are_seen(own: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(repeated(own, tmp_path / "other", seed=2) / name, own / name)
    assert list(problems_of(own)) == [name] and "another run" in problems_of(own)[name]


@pytest.mark.parametrize("name", ["model.safetensors", LAST])
def test_a_repetition_has_the_same_bytes_however_long_it_was_to_be(own: Path, tmp_path: Path, name: str) -> None:
    assert (repeated(own, tmp_path / "again", seed=1, steps=99) / name).read_bytes() == (own / name).read_bytes()


def test_weights_of_a_run_are_those_of_an_average_of_it_neither(own: Path, tmp_path: Path) -> None:
    assert command("average", own, "--last", 2, "-o", tmp_path / "mean").status == 0
    assert problems_of(tmp_path / "mean") == {}
    shutil.copy(own / "model.safetensors", tmp_path / "mean/model.safetensors")
    assert list(problems_of(tmp_path / "mean")) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["score.json", "test.source", "learning_curve.png"])
def test_a_changed_byte_of_any_file_that_a_run_writes_is_seen(own: Path, name: str) -> None:
    RunFolder(own).write_file(name, b"as it was written")
    assert problems_of(own) == {}
    flip(own / name)
    assert list(problems_of(own)) == [name]


def test_a_test_part_that_was_changed_is_not_exported_by(own: Path, tmp_path: Path) -> None:
    for name in ("test.source", "test.target"):
        RunFolder(own).write_file(name, b"abc\n")
    flip(own / "test.target")
    outcome = command("export", own, "--format", "onnx", "-o", tmp_path / "exported")
    assert outcome.status == DAMAGED and "test.target" in outcome.err


def test_verify_names_what_no_hash_covers(own: Path) -> None:
    for name in ("notes.txt", "score.json", "checkpoints/mine"):
        (own / name).write_text("{}")
    expected = ["checkpoints/mine", "metrics.jsonl", "notes.txt", "run.lock", "score.json"]
    outcome = command("verify", own, "--json")
    assert (outcome.status, json.loads(outcome.out)["not_covered"]) == (0, expected)
    lines = command("verify", own).lines
    assert lines[-1].endswith(": " + ", ".join(expected))
    assert "metrics.jsonl: intact" not in lines and "model.safetensors: intact" in lines


def test_runs_from_before_there_were_ids_are_whole(own: Path) -> None:
    """Their files have none either: one that has is of another run."""
    folder, old = RunFolder.open(own), RunFolder(own.with_name("old"))
    texts = {"config": folder.config_text, "tokenizer": folder.tokenizer_text}
    created = RunFolder.create(old.path, **texts, facts=folder.facts)
    record = created._record()
    del record["id"]
    created._write_record(record)
    RunFolder(old.path).write_model(*folder.read_model()[:2])
    assert problems_of(old.path) == {} and transduce.load(old.path)("abc") == transduce.load(own)("abc")
    shutil.copy(own / "model.safetensors", old.path)
    assert list(problems_of(old.path)) == ["model.safetensors"]


# Going on


ROWS = [
    b'{"step": "x"}', b'{"step": 60}', b'{"kind": 7, "step": 60}', b'{"kind": "training", "step": 60, "loss": "x"}',
    b"[]", b"\xff", b"[" * 100_000, b'{"kind": "validation", "step": 1e999}',
]  # fmt: skip


def test_a_damaged_log_never_keeps_a_run_from_going_on(own: Path, data: Path) -> None:
    rows = (own / "metrics.jsonl").read_bytes()
    (own / "metrics.jsonl").write_bytes(b"\n".join(ROWS) + b"\n" + rows)
    assert "metrics.jsonl:1 is damaged" in problems_of(own)["metrics.jsonl"]
    outcome = resumed(own, data)
    assert outcome.status == 0 and f"{len(ROWS)} rows are not valid" in outcome.err
    assert (own / "metrics.jsonl").read_bytes() == rows


def test_a_damaged_best_model_is_made_anew_from_the_checkpoint_of_its_step(own: Path, data: Path) -> None:
    before = (own / "model.safetensors").read_bytes()
    for damage in (flip, Path.unlink):
        damage(own / "model.safetensors")
        outcome = resumed(own, data)
        assert outcome.status == 0 and "rebuilt from the checkpoint of step 60" in outcome.err
        assert (own / "model.safetensors").read_bytes() == before


def test_without_such_a_checkpoint_a_damaged_best_model_is_named_and_how_to_mend_it(own: Path, data: Path) -> None:
    folder = RunFolder.open(own)
    tensors, state = folder.read_checkpoint(60)
    folder.write_checkpoint(60, tensors, state | {"best_step": 40}, keep=1)  # as after two validations without progress
    flip(own / "model.safetensors")
    damaged = (own / "model.safetensors").read_bytes()
    outcome = resumed(own, data)
    assert outcome.status == DAMAGED and "from step 40" in outcome.err
    assert (own / "model.safetensors").read_bytes() == damaged  # there may be more to be saved of it
    mend = re.search(r"transduce (average .*) -o ANOTHER", outcome.err)
    assert mend is not None and command(*mend[1].split(), "-o", own.with_name("mended")).status == 0
    assert problems_of(own.with_name("mended")) == {} and len(transduce.load(own.with_name("mended"))("abc")) >= 0


# Settings of one's own


@pytest.mark.parametrize(
    ("setting", "value", "bound"),
    [
        ("model.num_encoder_layers", 10**6, "128"), ("model.num_decoder_layers", 129, "128"),
        ("model.d_model", 10**9, "16,384"),
        ("model.d_ff", 10**12, "131,072"), ("model.max_len", 10**9, "65,536"),
        ("tokenizer.vocab_size", 10**12, "262,144"),
        ("decoding.max_len_ratio", 1e308, "100"), ("decoding.length_penalty", 1e308, "100"),
        ("training.steps", 2**64, r"2\*\*63"),
        ("optim.warmup_steps", 10**400, r"2\*\*63"), ("optim.learning_rate", 10**400, r"2\*\*63"),
    ],
)  # fmt: skip
def test_an_absurd_size_is_refused_by_name_with_what_is_allowed(setting: str, value: Any, bound: str) -> None:
    text, name = "[data]\ntrain = ['x']\n[training]\nsteps = 1\n", setting.partition(".")[2]
    with pytest.raises(TransduceError, match=rf"{name.replace('_', '.')}.*{bound}"):
        load_config(text, "it", [f"--{setting}", str(value)])


def test_more_threads_than_any_machine_has_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", str(run), "--threads", "100000"])
    assert stop.value.code == 2 and "1,024" in capsys.readouterr().err
