"""What version 0.1.0 wrote is read by this one: the README.md files in tests/museum say how it came to be.

Its answers are the oracle: recorded by the code that wrote the run, and compared as far as machines agree.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import transduce
from calling import command, content_of
from transduce.config.settings import load_config
from transduce.inference.config import DecodingConfig
from transduce.runs.folder import RunFolder

OLD = Path(__file__).parents[1] / "museum/run-0.1.0"
EXPORTS = OLD.with_name("exports-0.1.0")
RUN = OLD / "run"
ANSWERS: list[dict[str, Any]] = json.loads((OLD / "answers.json").read_text())
LAST_STEP, STEPS_MORE = 400, 20


@pytest.fixture(scope="module", autouse=True)
def untouched() -> Iterator[None]:
    """Reading changes not a byte, and makes no file."""
    before = [content_of(folder) for folder in (OLD, EXPORTS)]
    yield
    assert [content_of(folder) for folder in (OLD, EXPORTS)] == before


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of all of it, to go on with."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.mark.parametrize("folder", [OLD, EXPORTS], ids=["run", "exports"])
def test_the_files_are_those_that_were_recorded(folder: Path) -> None:
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().split("\n")[:-1])
    found = {name: sha256(content).hexdigest() for name, content in content_of(folder).items()}
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


@pytest.mark.parametrize("format", ["ctranslate2", "onnx", "huggingface"])
def test_an_old_export_gives_the_answers_that_its_run_gave(format: str) -> None:
    rows = [row for row in ANSWERS if row["source"].strip()]
    predictor = transduce.load(RUN, device="cpu", decoding=DecodingConfig(beam_size=1))
    engine = import_module(f"transduce.export.{format}").open_engine(EXPORTS / format, predictor)
    sources = predictor.tokenizer.encode_source([row["source"] for row in rows])
    outputs = engine.search(sources, [predictor.max_len(ids) for ids in sources], predictor.decoding)
    assert [predictor.tokenizer.decode_target(ids) for ids in outputs] == [row["greedy"] for row in rows]
    log_probs = {row["greedy"]: sum(found) for row, found in zip(rows, engine.log_probs(sources, outputs), strict=True)}
    recorded = {text: log_prob for row in rows for text, _, log_prob in row["beam"] if text == row["greedy"]}
    assert len(recorded) > 5
    assert {text: log_probs[text] for text in recorded} == pytest.approx(recorded, abs=1e-4)


@pytest.mark.parametrize("format", ["ctranslate2", "onnx", "huggingface"])
def test_an_old_certificate_names_the_weights_of_its_run(format: str) -> None:
    certificate = json.loads((EXPORTS / format / "certificate.json").read_text())
    assert certificate["is_equal"]
    assert certificate["model_sha256"] == RunFolder.open(RUN).read_model()[2]


def test_the_tokenizers_of_an_old_export_give_the_ids_of_its_run() -> None:
    tokenizer = RunFolder.open(RUN).tokenizer
    lines = (OLD / "test.en").read_text().split("\n")[:-1]
    saved = tokenizers.Tokenizer.from_file(str(EXPORTS / "ctranslate2/source_tokenizer.json"))
    assert [encoded.ids for encoded in saved.encode_batch(lines)] == tokenizer.encode_source(lines)
