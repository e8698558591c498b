import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from calling import Outcome, command
from transduce.checkpoint import RunFolder
from transduce.corpus import Surroundings
from transduce.errors import DataError, RunFolderError
from transduce.fitting import MINIMUM_PAIRS, choose_settings, fit
from transduce.metrics import METRICS
from transduce.predictor import Predictor
from transduce.reading import Pairs
from transduce.settings import ExperimentConfig
from transduce.stopping import Stopped

GREEK = dict(zip("abgdezklmnoprstuf", "αβγδεζκλμνοπρστυφ", strict=True))
MINUTES = 0.05


def transliterations(num_pairs: int) -> list[tuple[str, str]]:
    """Distinct random words and what they are in Greek letters."""
    draw = random.Random(11)
    words: dict[str, None] = {}
    while len(words) < num_pairs:
        words["".join(draw.choices(list(GREEK), k=draw.randint(3, 9)))] = None
    return [(word, "".join(GREEK[letter] for letter in word)) for word in words]


def settings_for(src: list[str], tgt: list[str], minutes: float = 10.0) -> ExperimentConfig:
    return choose_settings(Pairs(src, tgt, {}, [], {}), ["pairs.tsv"], minutes=minutes, seed=1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fit") / "greek.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in transliterations(800)))
    return path


@pytest.fixture(scope="module")
def fitted(pairs: Path) -> tuple[Path, Outcome]:
    """A run folder made by `fit`, and what the command said."""
    run_dir = pairs.parent / "run"
    return run_dir, command("fit", pairs, "--run-dir", run_dir, "--minutes", MINUTES, "--json")


def test_fit_gives_a_model_and_scores_with_intervals(fitted: tuple[Path, Outcome]) -> None:
    run_dir, outcome = fitted
    assert outcome.status == 0, outcome.err
    assert len(outcome.lines) == 1
    found = json.loads(outcome.out)
    assert found == json.loads((run_dir / "score.json").read_text())
    assert set(found["scores"]) == {"exact_match", "cer"}
    for score in found["scores"].values():
        assert score["low"] <= score["value"] <= score["high"]
        assert score["num_segments"] == found["num_test"]
    assert found["num_train"] + found["num_valid"] + found["num_test"] == 800
    assert len(Predictor.load(run_dir, device="cpu").predict(["abgd", "zeta"])) == 2
    assert command("verify", run_dir).status == 0


def test_the_last_word_of_fit_is_a_command_that_works(fitted: tuple[Path, Outcome]) -> None:
    run_dir, outcome = fitted
    example = json.loads(outcome.out)["example"]
    assert outcome.err.endswith(f"try: echo {example} | transduce predict {run_dir}\n")


def test_fit_on_a_used_folder_is_refused_before_any_work(fitted: tuple[Path, Outcome], pairs: Path) -> None:
    with pytest.raises(RunFolderError, match="holds a run already"):
        fit([pairs], fitted[0])


def test_going_on_with_a_finished_fit_scores_it_as_before(fitted: tuple[Path, Outcome], pairs: Path) -> None:
    run_dir, outcome = fitted
    again = command("fit", pairs, "--run-dir", run_dir, "--minutes", MINUTES, "--json", "--resume")
    assert again.status == 0, again.err
    assert json.loads(again.out)["scores"] == json.loads(outcome.out)["scores"]


def test_an_interrupted_fit_goes_on_even_with_other_minutes(pairs: Path, tmp_path: Path) -> None:
    def stop(_row: dict[str, Any]) -> None:
        raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped, match="all is saved"):
        fit([pairs], tmp_path / "run", minutes=0.6, surroundings=Surroundings(device="cpu", observers=(stop,)))
    stopped_at = RunFolder.open(tmp_path / "run").checkpoints()[-1]
    # So much less time calls for another dropout in a new run.
    result = fit([pairs], tmp_path / "run", minutes=0.05, resume=True, surroundings=Surroundings(device="cpu"))
    folder = RunFolder.open(tmp_path / "run")
    assert folder.facts["resumed"][0]["step"] == stopped_at
    assert folder.checkpoints()[-1] >= stopped_at
    assert result.scores


def test_too_few_pairs_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    path = tmp_path / "few.tsv"
    path.write_text("".join(f"{s}\t{t}\n" for s, t in transliterations(MINIMUM_PAIRS - 1)))
    with pytest.raises(DataError, match=rf"few\.tsv: 499 pairs are too few .* at least {MINIMUM_PAIRS}"):
        fit([path], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pairs_that_all_hang_together_are_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "same.tsv"
    path.write_text("".join(f"{source}\tthe same\n" for source, _ in transliterations(600)))
    with pytest.raises(DataError, match=r"same\.tsv: the pairs share .* `transduce train`"):
        fit([path], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_parts_share_no_source_and_no_target_with_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some sources have several targets, and some targets several sources.
    rows = transliterations(700)
    rows += [(source, "Ω" + target) for source, target in rows[:150]]
    rows += [("x" + source, target) for source, target in rows[100:250]]
    path = tmp_path / "linked.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    seen: dict[str, Any] = {}

    class Enough(Exception):  # noqa: N818
        pass

    def train(_config: ExperimentConfig, _run_dir: Path, **more: Any) -> None:
        seen.update(more)
        raise Enough

    monkeypatch.setattr("transduce.fitting.train", train)
    with pytest.raises(Enough):
        fit([path], tmp_path / "run")
    train_pairs, valid = seen["corpus"].train, seen["corpus"].valid
    held_out = set(rows) - set(zip(train_pairs.src, train_pairs.tgt, strict=True))
    test = held_out - set(zip(valid.src, valid.tgt, strict=True))
    assert len(valid) > 20
    assert len(test) > 20
    assert len(train_pairs) + len(valid) + len(test) == len(rows)
    for part in (held_out, test):
        rest = set(rows) - part
        assert not {source for source, _ in part} & {source for source, _ in rest}
        assert not {target for _, target in part} & {target for _, target in rest}


# Which settings


def test_words_and_phonemes_are_learnt_as_characters_and_whole_symbols() -> None:
    draw = random.Random(2)
    phonemes = ["AH0", "B", "K", "IY1", "S", "T"]
    src = ["".join(draw.choices("abcdefgh", k=7)) for _ in range(600)]
    config = settings_for(src, [" ".join(draw.choices(phonemes, k=6)) for _ in src])
    assert (config.tokenizer.source, config.tokenizer.target) == ("characters", "words")
    assert not config.tokenizer.joint
    assert config.validation.metrics == ("exact_match", "per")


def test_words_and_words_are_learnt_as_characters_of_one_vocabulary() -> None:
    src, tgt = map(list, zip(*transliterations(600), strict=True))
    config = settings_for(src, tgt)
    assert (config.tokenizer.source, config.tokenizer.target) == ("characters", "characters")
    assert config.tokenizer.joint
    assert config.validation.metrics == ("exact_match", "cer")


def test_sentences_are_learnt_as_subwords_of_one_vocabulary() -> None:
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(900)]
    src, tgt = ([" ".join(draw.choices(words, k=8)) for _ in range(600)] for _ in range(2))
    config = settings_for(src, tgt)
    assert (config.tokenizer.source, config.tokenizer.target) == ("bpe", "bpe")
    assert config.tokenizer.joint
    assert config.validation.metrics == ("bleu", "chrf")


def test_short_phrases_from_words_are_written_as_characters() -> None:
    draw = random.Random(4)
    src = ["".join(draw.choices("0123456789", k=6)) for _ in range(600)]
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(900)]
    config = settings_for(src, [" ".join(draw.choices(words, k=4)) for _ in src])
    assert (config.tokenizer.source, config.tokenizer.target) == ("characters", "characters")


def test_settings_are_a_function_of_the_text_and_the_time_alone() -> None:
    src, tgt = map(list, zip(*transliterations(600), strict=True))
    assert settings_for(src, tgt) == settings_for(list(src), list(tgt))
    assert settings_for(src, tgt, minutes=0.1).model.dropout < settings_for(src, tgt, minutes=60).model.dropout


def test_every_metric_that_fit_may_choose_exists() -> None:
    assert {"bleu", "chrf", "exact_match", "cer", "per"} <= set(METRICS)
