"""What version 0.1.0 wrote is read by this one: tests/museum/run-0.1.0/README.md says how it came to be.

Its answers are the oracle: recorded by the code that wrote the run, and compared as far as machines agree.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import transduce
from calling import command, content_of
from transduce.config.settings import load_config

OLD = Path(__file__).parents[1] / "museum/run-0.1.0"
RUN = OLD / "run"
ANSWERS: list[dict[str, Any]] = json.loads((OLD / "answers.json").read_text())
LAST_STEP, STEPS_MORE = 400, 20


@pytest.fixture(scope="module", autouse=True)
def untouched() -> Iterator[None]:
    """Reading changes not a byte, and makes no file."""
    before = content_of(OLD)
    yield
    assert content_of(OLD) == before


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of all of it, to go on with."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_the_files_are_those_that_were_recorded() -> None:
    sums = dict(reversed(line.split("  ")) for line in (OLD / "SHA256SUMS").read_text().split("\n")[:-1])
    found = {name: sha256(content).hexdigest() for name, content in content_of(OLD).items()}
    assert {name: digest for name, digest in found.items() if name not in ("SHA256SUMS", "README.md")} == sums


def test_an_old_run_is_found_intact() -> None:
    found = command("verify", RUN, "--json")
    assert found.status == 0, found.err
    files = json.loads(found.out)["files"]
    kept = {"run.json", "config.toml", "tokenizer.json", "model.safetensors", "metrics.jsonl"}
    assert {*files} == kept | {f"checkpoints/step-{LAST_STEP:08}.safetensors"}


def test_an_old_run_gives_the_answers_that_it_gave() -> None:
    sources = [row["source"] for row in ANSWERS]
    predictor = transduce.load(RUN, device="cpu")
    for row, answers in zip(ANSWERS, predictor.predict_n_best(sources, 4), strict=True):
        assert [answer.text for answer in answers] == [text for text, _, _ in row["beam"]]
        numbers = [(answer.score, answer.log_prob) for answer in answers]
        for found, (_, *recorded) in zip(numbers, row["beam"], strict=True):
            assert found == pytest.approx(recorded, abs=1e-4)
    predictor.decoding = replace(predictor.decoding, beam_size=1)
    assert predictor.predict(sources) == [row["greedy"] for row in ANSWERS]


def test_the_command_answers_with_an_old_run() -> None:
    told = command("predict", RUN, OLD / "test.en")
    assert told.status == 0, told.err
    best = {row["source"]: row["beam"][0][0] for row in ANSWERS}
    assert told.lines == [best[source] for source in (OLD / "test.en").read_text().split("\n")[:-1]]


def test_the_command_scores_an_old_run() -> None:
    words = ["--source", OLD / "test.en", "--target", OLD / "test.de", "--metric", "exact_match", "--json"]
    told = command("evaluate", RUN, *words)
    assert told.status == 0, told.err
    references = (OLD / "test.de").read_text().split("\n")[:-1]
    right = [row["beam"][0][0] == reference for row, reference in zip(ANSWERS, references, strict=False)]
    assert json.loads(told.out)["scores"]["exact_match"]["value"] == pytest.approx(100 * sum(right) / len(right))


def test_the_command_describes_an_old_run() -> None:
    told = command("describe", RUN, "--json")
    assert told.status == 0, told.err
    found = json.loads(told.out)
    assert found["model_is_of"]["step"] == LAST_STEP
    assert found["facts"]["num_train_pairs"] == len((OLD / "train.en").read_text().split("\n")[:-1])
    assert (found["config"]["d_model"], found["config"]["norm_first"]) == (10, True)


def test_an_old_run_goes_on_as_it_would_have_then(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first losses after the stop: with other batches, weights or moments of Adam they would be others."""
    monkeypatch.chdir(copy)  # where the settings say the text is
    shutil.copy("run/config.toml", "again.toml")
    settings = ["--training.steps", LAST_STEP + STEPS_MORE, "--training.log_every", 10]
    told = command("train", "again.toml", "--run-dir", "run", "--resume", *settings)
    assert told.status == 0, told.err
    assert f"resuming at step {LAST_STEP} of {LAST_STEP + STEPS_MORE}" in told.err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().split("\n")[:-1]]
    recorded = [json.loads(line) for line in (OLD / "resumed.jsonl").read_text().split("\n")[:-1]]
    for found, expected in zip(rows[-len(recorded) :], recorded, strict=True):
        assert (found["kind"], found["step"]) == (expected["kind"], expected["step"])
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)


def test_the_settings_of_an_old_fit_are_understood() -> None:
    config = load_config((OLD / "fit/config.toml").read_text(), "config.toml")
    scores = json.loads((OLD / "fit/score.json").read_text())["scores"]
    assert (config.validation.metrics, tuple(scores)) == (("word_error", "per"), ("wer", "per"))
    assert config.validation.group_sources  # two pronunciations of each word: the scores are of half the rows
    assert {score["num_segments"] for score in scores.values()} == {35}
