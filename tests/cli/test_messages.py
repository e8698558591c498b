"""What the command says where a person could otherwise only wonder."""

import io
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from calling import Outcome, command
from transduce.cli import train as train_module
from transduce.errors import TransduceError
from transduce.inference.predictor import Predictor

pytest_plugins = ["small_run"]


def config_with(data: Path, path: Path, **settings: object) -> Path:
    text = (data / "config.toml").read_text()
    for name, value in settings.items():
        text = text.replace(f"\n{name} = ", f"\n# {name} = ").replace("[training]\n", f"[training]\n{name} = {value}\n")
    path.write_text(text)
    return path


def last_line(outcome: Outcome) -> str:
    return outcome.err.rstrip("\n").split("\n")[-1]


def test_the_command_to_try_is_one_that_a_shell_understands(data: Path, tmp_path: Path) -> None:
    config = config_with(data, tmp_path / "c.toml", steps=1)
    outcome = command("train", config, "--run-dir", tmp_path / "my run's 2", "--quiet")
    assert outcome.err == ""
    outcome = command("train", config, "--run-dir", tmp_path / "my run's 2", "--resume")
    words = shlex.split(last_line(outcome).split("Try: ")[1])
    assert words == ["transduce", "predict", str(tmp_path / "my run's 2")]


def test_a_run_that_lost_patience_says_so(data: Path, tmp_path: Path) -> None:
    config = config_with(data, tmp_path / "c.toml", steps=40, validate_every=1, patience=2)
    words = (
        "train",
        config,
        "--run-dir",
        tmp_path / "run",
        "--optim.learning_rate",
        "0.5",
        "--validation.metrics",
        "[]",
    )
    outcome = command(*words)
    assert "(patience: 2 validations without improvement)" in last_line(outcome)
    assert "finished at step 40" not in last_line(outcome)
    assert "(patience)" not in last_line(command(*words, "--resume", "--training.patience", "0"))


def test_a_resumed_run_says_both_learning_rates_where_its_schedule_changes(data: Path, tmp_path: Path) -> None:
    config = config_with(data, tmp_path / "c.toml", steps=4)
    words = ("train", config, "--run-dir", tmp_path / "run", "--optim.schedule", "linear", "--optim.warmup_steps", "0")
    command(*words)
    # Linear, from 0.01 to zero one step after the last: 1 of 5 parts are left at step 4 of 4; then 3 of 8 at 5 of 7.
    again = command(*words, "--resume", "--training.steps", "7")
    assert "learning rate: 0.002 at step 4 -> 0.00375 next" in again.err
    assert "learning rate" not in command(*words, "--resume", "--training.steps", "7").err


def test_settings_that_another_run_has_are_said_to_be_of_no_effect(run: Path, data: Path, tmp_path: Path) -> None:
    config = config_with(data, tmp_path / "c.toml", steps=1)
    outcome = command(
        "train", config, "--run-dir", tmp_path / "run", "--init-from", run,
        "--model.d_model", "64", "--tokenizer.vocab_size=900", "--model.dropout", "0.2",
    )  # fmt: skip
    assert (
        f"--model.d_model, --tokenizer.vocab_size: ignored, because tokenizer and model come from {run}" in outcome.err
    )


@pytest.mark.parametrize("name", [".hidden.tsv", "hidden.tsv.gz", "..hidden.de.tsv"])
def test_the_folder_of_a_fit_has_the_name_of_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(_paths: list[str], run_dir: Path, **_options: object) -> None:
        raise TransduceError(str(run_dir))

    monkeypatch.setattr(train_module, "fit", fit)
    assert command("fit", name).err == f"transduce: error: {Path('runs/hidden')}\n"


def test_a_folder_in_place_of_a_file_is_called_a_folder(run: Path, tmp_path: Path) -> None:
    for words in (("predict", run, run), ("fit", run, "--run-dir", tmp_path / "r"), ("train", run)):
        outcome = command(*words)
        assert outcome.status == 66
        assert f"{run}: this is a folder: name a file in it" in outcome.err


def test_validation_pairs_are_an_option_of_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(paths: list[str], _run_dir: Path, *, valid: list[str] | None, **_options: object) -> None:
        raise TransduceError(f"{paths} {valid}")

    monkeypatch.setattr(train_module, "fit", fit)
    assert "['p.tsv'] ['a.en', 'a.de']" in command("fit", "p.tsv", "--valid", "a.en", "a.de").err
    assert "['p.tsv'] None" in command("fit", "p.tsv").err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("predict RUN --beam_size 3", "did you mean --beam-size?"),
        ("fit p.tsv --minute_s 3", "did you mean --minutes?"),
        ("fit p.tsv --epochs 3", "see transduce fit --help"),
    ],
)
def test_an_option_that_is_not_there_is_told_the_nearest(words: str, hint: str) -> None:
    outcome = command(*words.split())
    assert outcome.status == 2
    assert last_line(outcome).endswith(hint)


def test_help_is_a_word_too() -> None:
    assert command("help").out == command("--help").out != b""
    assert command("help", "fit").out == command("fit", "--help").out


def test_an_output_in_ascii_alone_is_utf_8_all_the_same(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "grün"
    source.write_text("abc\n")
    program = (
        "import sys; from transduce.cli.main import main\n"
        f"sys.exit(main(['evaluate', {str(run)!r}, '--source', {str(source)!r}, '--target', {str(source)!r}, '--json'])"
        " or main(['data']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode().split("\n")[0])["source"] == str(source)


def test_empty_references_beside_sources_are_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("abc\ndef\n\nghi\n")
    (tmp_path / "t").write_text("abc\n\n\n \n")
    outcome = command("evaluate", run, "--source", tmp_path / "s", "--target", tmp_path / "t")
    assert f"{tmp_path / 't'}: 2 of 4 references are empty where the source is not, the first in line 2" in outcome.err
    outcome = command("evaluate", run, "--source", tmp_path / "s", "--target", tmp_path / "s")
    assert "references are empty" not in outcome.err


def test_tokenized_targets_are_told_once_and_not_by_sacrebleu(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("source", "target"):
        (tmp_path / side).write_text("".join(f"a b {k % 7} .\n" for k in range(120)))
    monkeypatch.setattr(Predictor, "predict", lambda _self, texts: list(texts))
    text = (data / "config.toml").read_text().replace("steps = 60", "steps = 2").replace("validate_every = 20", "")
    for split in ("train", "valid"):
        for side in ("source", "target"):
            text = text.replace(f"{data}/{split}.{side}", f"{tmp_path}/{side}")
    (tmp_path / "c.toml").write_text(text.replace("max_pairs = 10", "max_pairs = 120"))
    with io.StringIO() as messages:
        handler = logging.StreamHandler(messages)
        logging.getLogger("sacrebleu").addHandler(handler)
        outcome = command(
            "train", tmp_path / "c.toml", "--run-dir", tmp_path / "run", "--validation.metrics", '["bleu"]'
        )
        logging.getLogger("sacrebleu").removeHandler(handler)
        assert messages.getvalue() == ""
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("the targets look tokenized") == 1
    assert "tokenized_bleu" in outcome.err
