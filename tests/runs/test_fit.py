import json
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from calling import Outcome, command
from crashing import Killed
from transduce.cli import train as train_module
from transduce.config.settings import ExperimentConfig, load_config
from transduce.data.config import DataConfig
from transduce.data.datasets import load_split
from transduce.data.pairs import Pairs
from transduce.errors import ConfigMismatchError, DataError, RunFolderError
from transduce.evaluation.config import METRICS
from transduce.model.config import PRESETS
from transduce.runs.fit import MINIMUM_PAIRS, fit, plan_fit
from transduce.runs.folder import RunFolder
from transduce.runs.run import Run, load
from transduce.runs.sizing import Choice, Speed, choose_settings
from transduce.runs.tasks import TASKS, find_task, recognize
from transduce.training.signals import Stopped
from transduce.training.step import TrainStep

GREEK = dict(zip("abgdezklmnoprstuf", "αβγδεζκλμνοπρστυφ", strict=True))
MINUTES = 0.05


class StepClock:
    """Stands still but for the steps of training, each of which takes a tenth of a second."""

    def __init__(self) -> None:
        self.num_steps = 0

    def __call__(self) -> float:
        return self.num_steps / 10

    def count(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self.num_steps += 1
            return step(*arguments, **more)

        return counted


@pytest.fixture(scope="module", autouse=True)
def clock() -> Iterator[StepClock]:
    """The clock of the command and of `fit` here; and a model so small that its steps take no time."""
    clock = StepClock()
    small = replace(PRESETS["tiny"], d_model=32, d_ff=48, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", small)
        patch.setattr(TrainStep, "__call__", clock.count(TrainStep.__call__))
        patch.setattr(train_module, "fit", partial(fit, clock=clock))
        patch.setattr(train_module, "plan_fit", partial(plan_fit, clock=clock))
        yield clock


def transliterations(num_pairs: int) -> list[tuple[str, str]]:
    """Distinct random words and what they are in Greek letters."""
    draw = random.Random(11)
    words: dict[str, None] = {}
    while len(words) < num_pairs:
        words["".join(draw.choices(list(GREEK), k=draw.randint(3, 9)))] = None
    return [(word, "".join(GREEK[letter] for letter in word)) for word in words]


def settings_for(src: list[str], tgt: list[str], minutes: float = 10.0) -> ExperimentConfig:
    pairs = Pairs(src, tgt, {}, [], {})
    return choice_for(pairs, minutes=minutes).config


def choice_for(
    pairs: Pairs, *, minutes: float = 10.0, device: str = "cpu", speed: Speed = lambda _model: 10_000.0
) -> Choice:
    return choose_settings(
        recognize(pairs), pairs, ["pairs.tsv"], minutes=minutes, seed=1, device=torch.device(device), speed=speed
    )


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
    assert len(load(run_dir, device="cpu").predict(["abgd", "zeta"])) == 2
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


def test_a_fit_killed_between_its_results_has_all_of_them_when_it_goes_on(
    fitted: tuple[Path, Outcome], pairs: Path, tmp_path: Path, clock: StepClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, names = Path(shutil.copytree(fitted[0], tmp_path / "own")), ("test.source", "test.target", "score.json")
    for name in names:
        (own / name).unlink()
    write_file = RunFolder.write_file

    def killed(folder: RunFolder, name: str, content: bytes) -> None:
        if name == "test.target":
            raise Killed
        write_file(folder, name, content)

    go_on = partial(fit, [pairs], own, minutes=MINUTES, resume=True, device="cpu", clock=clock)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "write_file", killed)
        go_on()
    assert [name for name in names if (own / name).exists()] == ["test.source"]
    go_on()
    assert all((own / name).read_bytes() == (fitted[0] / name).read_bytes() for name in names[:2])
    scores = [json.loads((folder / "score.json").read_text())["scores"] for folder in (own, fitted[0])]
    assert scores[0] == scores[1]


def test_fit_takes_the_name_of_a_folder_for_the_folder(
    fitted: tuple[Path, Outcome], pairs: Path, clock: StepClock
) -> None:
    result = fit([str(pairs)], str(fitted[0]), minutes=MINUTES, resume=True, device="cpu", clock=clock)
    assert result.run_dir == fitted[0]


def test_fit_gives_the_run_that_loading_gives_with_what_it_measured(
    fitted: tuple[Path, Outcome], pairs: Path, clock: StepClock
) -> None:
    lines: list[str] = []
    run = fit([pairs], fitted[0], minutes=MINUTES, resume=True, device="cpu", clock=clock, report=lines.append)
    assert isinstance(run, Run) and run("abgd") == load(fitted[0], device="cpu")("abgd")
    assert run.as_dict() == json.loads((fitted[0] / "score.json").read_text())
    assert str(run.scores[0]) in repr(run)
    assert pickle.loads(pickle.dumps(run)).num_test == run.num_test
    assert f"a sample: {run.example} -> {run(run.example)}" in lines


def test_an_interrupted_fit_goes_on_even_with_other_minutes(pairs: Path, tmp_path: Path, clock: StepClock) -> None:
    def stop(_row: dict[str, Any]) -> None:
        raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped, match=r"all is saved\. The same call with resume=True goes on"):
        fit([pairs], tmp_path / "run", minutes=2.4, device="cpu", clock=clock, observers=[stop])
    stopped_at = RunFolder.open(tmp_path / "run").checkpoints()[-1]
    # So much less time calls for another dropout in a new run.
    result = fit([pairs], tmp_path / "run", minutes=0.1, resume=True, device="cpu", clock=clock)
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


def test_a_corpus_that_train_would_not_hold_in_memory_is_refused_before_it_is_read(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold_at_most(num_bytes: int) -> None:
        for module in ("corpus", "fit"):
            monkeypatch.setattr(f"transduce.runs.{module}.LARGE_BYTES", num_bytes)

    hold_at_most(pairs.stat().st_size - 1)
    with pytest.raises(DataError, match=r"greek\.tsv: more than 0 MB of text.* `transduce train`"):
        fit([pairs], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="too few"):  # of as many bytes it is read
        few = tmp_path / "few.tsv"
        few.write_bytes(b"a\tb\n")
        hold_at_most(4)
        fit([few], tmp_path / "run")


@pytest.mark.parametrize("num_different", [1, 5])
def test_pairs_that_all_hang_together_are_refused_with_advice(tmp_path: Path, num_different: int) -> None:
    path = tmp_path / "same.tsv"
    path.write_text("".join(f"{s}\t{t}\n" for s, t in transliterations(num_different)) * (1000 // num_different))
    message = rf"same\.tsv: none of the 1,000 .* {num_different} different sources .* `transduce train`"
    with pytest.raises(DataError, match=message):
        fit([path], tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Enough(Exception):  # noqa: N818
    """Raised where training would begin."""


def begun(given: Any, run_dir: Path, **options: Any) -> tuple[ExperimentConfig, Pairs, Pairs, list[str]]:
    """The settings, training and validation pairs with which `fit` would train, and what it reported."""
    lines: list[str] = []
    begun_with: dict[str, Any] = {}

    def train(config: ExperimentConfig, _run_dir: Path, **more: Any) -> None:
        begun_with.update(more, config=config)
        raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transduce.runs.fit.train", train)
        with pytest.raises(Enough):
            fit(given, run_dir, report=lines.append, **options)
    corpus = begun_with["corpus"]
    return begun_with["config"], corpus.train, corpus.valid, lines


def test_labels_are_held_out_by_their_sources_alone_and_the_report_says_so(tmp_path: Path) -> None:
    rows = [(" ".join(words), LABELS[row % 3]) for row, words in enumerate(pairwise(LEMMAS))]
    _, train_pairs, valid, lines = begun([*rows, *rows], tmp_path / "run")
    assert set(train_pairs.tgt) == set(valid.tgt) == set(LABELS)
    assert not set(train_pairs.src) & set(valid.src)
    assert 90 < len(valid) <= 100
    assert any("only 3 different targets: held out by sources alone" in line for line in lines)


def test_pairs_with_many_targets_share_none_and_nothing_is_said_of_it(tmp_path: Path) -> None:
    _, train_pairs, valid, lines = begun(transliterations(800), tmp_path / "run")
    assert not set(train_pairs.tgt) & set(valid.tgt)
    assert not any("held out by sources" in line for line in lines)


def test_long_texts_are_learned_from_and_a_single_one_is_not_what_the_limit_follows(tmp_path: Path) -> None:
    long = [(f"{word} " * 100, word) for word, _ in transliterations(600)]
    config, *_ = begun(long, tmp_path / "run")
    assert max(len(source) for source, _ in long) <= config.data.max_len <= config.model.max_len
    config, *_ = begun([*transliterations(600), ("x" * 3000, "y")], tmp_path / "run")
    assert (config.data.max_len, config.model.max_len) == (DataConfig.max_len, PRESETS["tiny"].max_len)


def test_pairs_to_validate_by_can_be_given_and_then_only_a_test_is_held_out(tmp_path: Path) -> None:
    rows, own = transliterations(700), [("x", "ξ"), ("xa", "ξα")]
    config, train_pairs, valid, lines = begun(rows, tmp_path / "run", valid=own)
    assert not any("flatter" in line for line in lines)
    assert list(zip(valid.src, valid.tgt, strict=True)) == own
    assert len(train_pairs) == 700 - 35
    assert config.data.valid == ("pairs in memory",)
    *_, lines = begun(rows, tmp_path / "run", valid=rows + own)
    assert "of the validation, also in the training data: 665 pairs, 665 sources, 665 targets" in lines
    assert "35 test pairs are also validation pairs: the score will flatter the model" in lines


def test_pairs_to_test_by_can_be_given_and_then_only_the_validation_is_held_out(
    tmp_path: Path, clock: StepClock
) -> None:
    rows, own = transliterations(700), [("x", "ξ"), ("xa", "ξα"), transliterations(700)[0]]
    lines: list[str] = []
    result = fit(
        rows, tmp_path / "run", test=own, minutes=MINUTES, device="cpu", clock=clock, processes=1, report=lines.append
    )
    assert (result.num_test, result.num_train, result.num_valid) == (3, 700 - 87, 87)
    assert (tmp_path / "run/test.source").read_text() == "".join(f"{source}\n" for source, _ in own)
    assert any(line.startswith("of the test, also in the training data: ") for line in lines)


def test_a_dry_run_prints_settings_that_train_takes_and_writes_nothing(
    pairs: Path, tmp_path: Path, clock: StepClock
) -> None:
    outcome = command("fit", pairs, "--run-dir", tmp_path / "run", "--minutes", MINUTES, "--dry-run")
    assert outcome.status == 0, outcome.err
    assert not (tmp_path / "run").exists()
    printed = load_config(outcome.out.decode(), "printed")
    assert b"  # " in outcome.out and printed.data.train == (str(pairs),)
    assert printed == begun([pairs], tmp_path / "run", minutes=MINUTES, clock=clock)[0]


def test_fit_begins_with_the_weights_of_another_run_and_learns_more_gently(
    fitted: tuple[Path, Outcome], tmp_path: Path, clock: StepClock
) -> None:
    rows = [("x" + source, "ξ" + target) for source, target in transliterations(700)]
    plain = begun(rows, tmp_path / "run", minutes=MINUTES, clock=clock)[0]
    run = fit(rows, tmp_path / "run", init_from=fitted[0], minutes=MINUTES, device="cpu", clock=clock, processes=1)
    first = RunFolder.open(fitted[0])
    assert run.folder.facts["initialised_from"] == str(fitted[0])
    assert run.tokenizer.to_json() == first.tokenizer.to_json()
    assert replace(run.settings.model, dropout=0.0) == replace(first.settings.model, dropout=0.0)
    assert run.settings.optim.learning_rate == plain.optim.learning_rate / 4


@pytest.mark.parametrize("part", ["valid", "test"])
def test_held_out_pairs_that_are_all_learned_from_are_refused_and_leave_no_folder(part: str, tmp_path: Path) -> None:
    rows = transliterations(700)
    with pytest.raises(
        DataError, match=r"all 9 (validation|test) pairs are also among those to learn from.* remove them"
    ):
        fit(rows, tmp_path / "run", **{part: rows[:9]}, minutes=MINUTES, device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_same_pairs_are_held_out_and_the_same_settings_chosen_for_every_form(pairs: Path, tmp_path: Path) -> None:
    rows = transliterations(800)
    forms: list[Any] = [
        [pairs],
        pairs,
        str(pairs),
        rows,
        iter(rows),
        dict(zip(("src", "tgt"), zip(*rows, strict=True), strict=True)),
    ]
    results = [begun(form, tmp_path / "run") for form in forms]
    assert len({(tuple(train.src), tuple(valid.src), tuple(valid.tgt)) for _, train, valid, _ in results}) == 1
    assert len({config.tokenizer for config, *_ in results} | {config.model for config, *_ in results}) == 2


def test_a_fit_from_memory_goes_on_from_memory(tmp_path: Path, clock: StepClock) -> None:
    rows = transliterations(600)
    fit(rows, tmp_path / "run", minutes=MINUTES, device="cpu", clock=clock)
    result = fit(iter(map(list, rows)), tmp_path / "run", minutes=MINUTES, resume=True, device="cpu", clock=clock)
    assert result.num_test == 30
    with pytest.raises(ConfigMismatchError, match="not those that"):
        fit([*rows[1:], ("neu", "νευ")], tmp_path / "run", minutes=MINUTES, resume=True, device="cpu", clock=clock)


def test_held_out_parts_share_no_source_and_no_target_with_training(tmp_path: Path) -> None:
    # Some sources have several targets, and some targets several sources.
    rows = transliterations(700)
    rows += [(source, "Ω" + target) for source, target in rows[:150]]
    rows += [("x" + source, target) for source, target in rows[100:250]]
    path = tmp_path / "linked.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    _, train_pairs, valid, _ = begun([path], tmp_path / "run")
    held_out = set(rows) - set(zip(train_pairs.src, train_pairs.tgt, strict=True))
    test = held_out - set(zip(valid.src, valid.tgt, strict=True))
    assert len(valid) > 20
    assert len(test) > 20
    assert len(train_pairs) + len(valid) + len(test) == len(rows)
    for part in (held_out, test):
        rest = set(rows) - part
        assert not {source for source, _ in part} & {source for source, _ in rest}
        assert not {target for _, target in part} & {target for _, target in rest}


def test_evaluate_knows_which_lines_a_fit_was_trained_on(
    fitted: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _ = fitted
    monkeypatch.chdir(tmp_path)
    held_out = (run_dir / "test.source").read_text().split("\n")[:-1]
    rows = [(source, target) for source, target in transliterations(800) if source in held_out[:5]]
    valid_or_train = [row for row in transliterations(800) if row[0] not in held_out]
    rows += valid_or_train
    (tmp_path / "s").write_text("".join(f"{source}\n" for source, _ in rows))
    (tmp_path / "t").write_text("".join(f"{target}\n" for _, target in rows))
    words = ["evaluate", run_dir, "--source", "s", "--target", "t", "--beam-size", "1", "--json"]
    overlap = json.loads(command(*words).out)["in_training_too"]
    num_train = RunFolder.open(run_dir).facts["num_train_pairs"]
    assert num_train == 660
    assert overlap == {"pairs": num_train, "source": num_train, "target": num_train}


def test_a_model_of_small_letters_reads_capitals_and_spaces_at_the_ends(fitted: tuple[Path, Outcome]) -> None:
    run_dir, outcome = fitted
    assert "all sources are lower case: the model will read capitals as small letters" in outcome.err
    predictor = load(run_dir, device="cpu")
    assert predictor.predict(["Abgd", " ABGD ", "abgd\r"]) == predictor.predict(["abgd"]) * 3
    assert predictor.seen is not None
    assert predictor.seen.source_characters <= set(GREEK)


# Which settings


@pytest.mark.parametrize(
    ("src", "tgt", "forms"),
    [
        (["tür", "bär"], ["Tür", "x"], ("lower", "nfc", "strip")),
        (["Tür", "bär"], ["Tür", "x"], ("nfc", "strip")),
        (["123", "4"], ["Tür", "x"], ("nfc", "strip")),  # without letters nothing is lower case
        (["私", "犬"], ["Tür", "x"], ("nfc", "strip")),
    ],
)
def test_only_what_is_all_lower_case_is_lower_cased(src: list[str], tgt: list[str], forms: tuple[str, ...]) -> None:
    tokenizer = settings_for(src, tgt).tokenizer
    assert (tokenizer.normalize, tokenizer.normalize_target) == (forms, ())


def test_targets_keep_the_form_that_most_of_them_have() -> None:
    decomposed, composed = "Tu\u0308r", "Tür"
    assert settings_for(["a b"] * 3, [decomposed, decomposed, composed]).tokenizer.target_forms == ("nfc", "nfd")
    assert settings_for(["a b"] * 3, [decomposed, composed, composed]).tokenizer.target_forms == ("nfc",)


def test_where_no_target_has_four_words_bleu_is_not_the_score(tmp_path: Path, clock: StepClock) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"the {s} of {t}\t{t} {s}\n" for s, t in transliterations(600)))
    told: list[str] = []
    result = fit([path], tmp_path / "run", minutes=0.02, device="cpu", clock=clock, report=told.append)
    assert [score.name for score in result.scores] == ["exact_match", "chrf"]
    assert "hardly any target has four words, so there is no BLEU: exact_match and chrf are scored" in told
    fit([path], tmp_path / "run", minutes=0.02, device="cpu", clock=clock, resume=True, task="translation")


def random_words(num_words: int, seed: int, letters: str = "abcdefghij") -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(letters, k=draw.randint(4, 9))) for _ in range(num_words)]


def phrases(words: list[str], length: int, num_lines: int = 600) -> list[str]:
    draw = random.Random(length)
    return [" ".join(draw.choices(words, k=length)) for _ in range(num_lines)]


PHONEMES = ["AH0", "B", "K", "IY1", "S", "T"]
FEATURES = [f"{kind};{person};{number}" for kind in ("PRS", "PST") for person in "123" for number in ("SG", "PL")]
LEMMAS = random_words(600, seed=5)
LABELS = ["deu", "eng", "fra"]
INFLECTED = [(lemma, FEATURES[row % len(FEATURES)], lemma[:-1] + "est") for row, lemma in enumerate(LEMMAS)]
VOCABULARY = random_words(900, seed=6)
# What the pairs are -> their task, and what their sides are cut into.
FORMS: dict[str, tuple[list[str], list[str], str, tuple[str, str]]] = {
    "words to phonemes": (LEMMAS, phrases(PHONEMES, 6), "pronunciation", ("characters", "words")),
    "words of several syllables to phonemes": (
        phrases([word[:4] for word in random_words(300, seed=8)], 2), phrases(PHONEMES, 6), "pronunciation",
        ("characters", "words"),
    ),
    "words without spaces to phonemes": (
        ["".join(chr(0x1780 + ord(letter) % 33) for letter in word) for word in LEMMAS], phrases(PHONEMES, 6),
        "pronunciation", ("characters", "words"),
    ),
    "short sentences to a tag for each word": (
        phrases(VOCABULARY, 4), phrases(["DT", "NN", "VBZ", "JJ"], 4), "translation", ("bpe", "words"),
    ),
    "phonemes to words": (phrases(PHONEMES, 6), LEMMAS, "translation", ("words", "characters")),
    "letters with blanks to phonemes": (
        [" ".join(word) for word in LEMMAS], phrases(PHONEMES, 6), "pronunciation", ("words", "words"),
    ),
    "lemmas with features": (
        [f"{lemma} {features}" for lemma, features, _ in INFLECTED],
        [form for _, _, form in INFLECTED],
        "short texts",
        ("characters", "characters"),
    ),
    "features without numbers and lemmas of several words": (
        [f"{lemma} {VOCABULARY[row]} V;{'SG' if row % 2 else 'PL'}" for row, lemma in enumerate(LEMMAS)],
        [f"{lemma[:-1]}est {VOCABULARY[row]}" for row, lemma in enumerate(LEMMAS)],
        "short texts",
        ("characters", "characters"),
    ),
    "features and lemmas of several words": (
        [f"{features} {lemma} {VOCABULARY[row]}" for row, (lemma, features, _) in enumerate(INFLECTED)],
        [f"{form} {VOCABULARY[row]}" for row, (_, _, form) in enumerate(INFLECTED)],
        "short texts",
        ("characters", "characters"),
    ),
    "a word to the same word with other letters": (
        *map(list, zip(*transliterations(600), strict=True)), "short texts", ("characters", "characters"),
    ),
    "numbers to short phrases": (
        [str(10**5 + row) for row in range(600)], phrases(VOCABULARY, 4), "short texts", ("characters", "characters"),
    ),
    "sentences": (phrases(VOCABULARY, 8), phrases(VOCABULARY, 9), "translation", ("bpe", "bpe")),
    "short phrases": (phrases(VOCABULARY, 2), phrases(VOCABULARY, 3), "translation", ("bpe", "bpe")),
    "formulas with blanks": (
        [f"{row % 7} * ( {row % 9} - {row} )" for row in range(600)],
        [str(row % 7 * (row % 9 - row)) for row in range(600)],
        "short texts",
        ("characters", "characters"),
    ),
    "long formulas": (
        [" + ".join(str((row + i) % 97) for i in range(30)) for row in range(600)],
        [str(sum((row + i) % 97 for i in range(30))) for row in range(600)],
        "short texts",
        ("characters", "characters"),
    ),
    "sentences with a number": (
        [f"{line} {row}" for row, line in enumerate(phrases(VOCABULARY, 8))],
        [f"{line} {row}" for row, line in enumerate(phrases(VOCABULARY, 9))],
        "translation",
        ("bpe", "bpe"),
    ),
    "sentences that begin alike": (
        [f"{VOCABULARY[row % 150]} {VOCABULARY[row % 211]} {VOCABULARY[row % 97]}" for row in range(600)],
        [f"{VOCABULARY[row % 211]} {VOCABULARY[row % 150]}" for row in range(600)],
        "translation",
        ("bpe", "bpe"),
    ),
    "lemmas with rare sets of features": (
        [f"{lemma} V;{row % 5};{row % 7};{row % 4}" for row, lemma in enumerate(LEMMAS)],
        [lemma[:-1] + "est" for lemma in LEMMAS],
        "short texts",
        ("characters", "characters"),
    ),
    "names turned round": (
        [f"{VOCABULARY[row % 9]} {word}" for row, word in enumerate(LEMMAS)],
        [f"{word}, {VOCABULARY[row % 9]}" for row, word in enumerate(LEMMAS)],
        "translation",
        ("bpe", "bpe"),
    ),
    "sentences without blanks": (
        phrases(VOCABULARY, 4), random_words(600, 8, "的一是不了人我在有他这中大来上"), "translation", ("bpe", "bpe"),
    ),
    "sentences without blanks on both sides": (
        random_words(600, 9, "あいうえおかきくけこ"), random_words(600, 8, "的一是不了人我在有"),
        "translation", ("bpe", "bpe"),
    ),
    "commands to actions": (
        phrases(["walk", "run", "twice", "and", "left"], 5), phrases(["RUN", "WALK", "LEFT"], 6),
        "translation", ("words", "words"),
    ),
    "symbols in order": (
        phrases(["3", "1", "2", "5"], 5), phrases(["3", "1", "2", "5"], 5),
        "short texts", ("characters", "characters"),
    ),
    "letters in order": (
        phrases(["a", "b", "c", "d"], 5), phrases(["a", "b", "c", "d"], 5), "translation", ("words", "words"),
    ),
    "dates to other dates": (
        [f"20{row % 90 + 10}-0{row % 9 + 1}-1{row % 7}" for row in range(600)],
        [f"1{row % 7}.0{row % 9 + 1}.20{row % 90 + 10}" for row in range(600)],
        "short texts",
        ("characters", "characters"),
    ),
    "telephone numbers": (
        [f"({row % 800 + 100}) {row % 7 + 951}-{row + 1000}" for row in range(600)],
        [f"+1 {row % 800 + 100}{row % 7 + 951}{row + 1000}" for row in range(600)],
        "short texts",
        ("characters", "characters"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_task_is_recognized_by_the_form_of_its_pairs(form: str) -> None:
    src, tgt, name, pieces = FORMS[form]
    assert recognize(Pairs(src, tgt, {}, [], {})).name == name
    config = settings_for(src, tgt)
    assert (config.tokenizer.source, config.tokenizer.target) == pieces
    assert config.tokenizer.joint == (pieces[0] == pieces[1])
    assert (config.validation.metrics, config.validation.group_sources) == SCORES[name]
    assert config.validation.best == SCORES[name][0][0]  # what the model is for decides which weights are kept


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "twenty"]
ENGLISH = ["Tom called home.", "We walk every day.", "My brother has a car.", "She sings well.", "He is not here yet."]
GERMAN = ["Tom rief uns an.", "Wir gehen jeden Tag.", "Mein Bruder hat ein Auto.", "Sie singt gut.", "Er fehlt noch."]
CHINESE = ["汤姆打电话回家。", "我们每天散步。", "我的哥哥有一辆车。", "她唱得很好听。", "他现在还不在这里。"]
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
TRANSLATION, SHORT_TEXTS, PRONUNCIATION = "translation", "short texts", "pronunciation"


def english(row: int) -> str:
    return f"{ENGLISH[row % 5]} {VOCABULARY[row]}"


def german(row: int) -> str:
    return f"{GERMAN[row % 5]} {VOCABULARY[-row]}"


def in_words(number: int) -> str:
    units = ["thousand", "hundred", "ty", ""]
    return " ".join(f"{WORDS[int(digit) - 1]} {unit}" for digit, unit in zip(str(number), units, strict=True))


# Kinds of pairs: of their row, the source and the target.
KINDS: dict[str, tuple[Callable[[int], str], Callable[[int], str], str]] = {
    "sentences with a tag": (lambda k: f"<2de> {english(k)}", german, TRANSLATION),
    "sentences with a tag on each side": (lambda k: f"<2de> {english(k)}", lambda k: f"<v1> {german(k)}", TRANSLATION),
    "sentences with a tag behind": (lambda k: f"{english(k)} <2de>", german, TRANSLATION),
    "phrases of two words with a tag": (
        lambda k: f"<2de> {VOCABULARY[k]} {VOCABULARY[-k]}", lambda k: f"{VOCABULARY[k - 9]} {VOCABULARY[9 - k]}",
        TRANSLATION,
    ),
    "numbered lines": (lambda k: f"{k + 1}. {english(k)}", lambda k: f"{k + 1}. {german(k)}", TRANSLATION),
    "lines numbered on one side": (lambda k: f"{k + 1}\u00a0{english(k)}", german, TRANSLATION),
    "verses": (lambda k: f"{k // 30}:{k % 30 + 1} {english(k)}", lambda k: f"{k % 30 + 1} {german(k)}", TRANSLATION),
    "time stamps": (lambda k: f"[00:{k // 60:02}:{k % 60:02}] {english(k)}", german, TRANSLATION),
    "times from and to": (lambda k: f"00:{k % 60:02} --> 01:{k % 60:02} {english(k)}", german, TRANSLATION),
    "sentences with a year": (lambda k: f"In {1900 + k} {english(k)}", lambda k: f"{german(k)} ({k})", TRANSLATION),
    "numbered Chinese": (lambda k: f"{k + 1}. {CHINESE[k % 5]}", lambda k: f"{k + 1}. {english(k)}", TRANSLATION),
    "Chinese glued to its number": (lambda k: f"{k + 1}.{CHINESE[k % 5]}", english, TRANSLATION),
    "tagged Chinese": (lambda k: f"<2zh> {english(k)}", lambda k: CHINESE[k % 5] + VOCABULARY[k], TRANSLATION),
    "numbers to words": (lambda k: str(1111 + k % 7), lambda k: in_words(1111 + k % 7), SHORT_TEXTS),
    "words to numbers": (lambda k: in_words(1111 + k % 7), lambda k: str(1111 + k % 7), SHORT_TEXTS),
    "ordinals to words": (lambda k: f"{k}th", lambda k: f"{WORDS[k % 10]} and {WORDS[k % 12]}th", SHORT_TEXTS),
    "sums of money": (lambda k: f"${k}.50", lambda k: f"{WORDS[k % 9]} {WORDS[k % 12]} dollars fifty", SHORT_TEXTS),
    "measures": (lambda k: f"{k} kg", lambda k: f"{VOCABULARY[k]} {WORDS[k % 12]} kilograms", SHORT_TEXTS),
    "a number in a sentence that stays": (
        lambda k: f"we saw {k} old {VOCABULARY[k]} there", lambda k: f"we saw {WORDS[k % 9]} old {VOCABULARY[k]} there",
        SHORT_TEXTS,
    ),
    "dates": (
        lambda k: f"{k % 28}th {MONTHS[k % 12]} {1900 + k}", lambda k: f"{1900 + k}-{k % 12 + 1:02}-{k % 28:02}",
        SHORT_TEXTS,
    ),
    "dates in words to dates": (
        lambda k: f"the {WORDS[k % 12]}th of {MONTHS[k % 7]} {1900 + k}", lambda k: f"{k % 12 + 1}.{k % 7}.{1900 + k}",
        SHORT_TEXTS,
    ),
    "dates in Chinese": (
        lambda k: f"{1900 + k}年{k % 12 + 1}月{k % 28 + 1}日", lambda k: f"{1900 + k}-{k % 12 + 1:02}-{k % 28 + 1:02}",
        SHORT_TEXTS,
    ),
    "sums": (lambda k: f"{k} + {k % 7} + {k % 11} =", lambda k: str(k + k % 7 + k % 11), SHORT_TEXTS),
    "syllables with tones to phonemes": (
        lambda k: f"{LEMMAS[k]}{k % 4 + 1}", lambda k: " ".join(PHONEMES[(k + i) % 6] for i in range(5)), PRONUNCIATION,
    ),
    "words to phonemes": (
        lambda k: LEMMAS[k], lambda k: " ".join(PHONEMES[(k * i) % 6] for i in range(5)), PRONUNCIATION,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_digit_decides_nothing_alone(kind: str) -> None:
    source, target, name = KINDS[kind]
    pairs = Pairs([source(row) for row in range(600)], [target(row) for row in range(600)], {}, [], {})
    assert recognize(pairs).name == name


SCORES = {
    "short texts": (("exact_match", "cer"), False),
    "pronunciation": (("word_error", "per"), True),
    "translation": (("bleu", "chrf"), False),
}


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("addition", "short texts"),
        ("dates", "short texts"),
        ("cmudict", "pronunciation"),
        ("reverse", "short texts"),
    ],
)
def test_the_tasks_of_named_sets_are_recognized(dataset: str, name: str) -> None:
    assert recognize(load_split(dataset, "valid")).name == name


def test_odd_lines_do_not_hide_a_task() -> None:
    pairs = load_split("addition", "valid")
    assert recognize(Pairs([*pairs.src, "twelve"], [*pairs.tgt, "12"], {}, [], {})).name == "short texts"


def test_a_run_goes_on_with_the_task_that_it_has(fitted: tuple[Path, Outcome], pairs: Path) -> None:
    words = ["fit", pairs, "--run-dir", fitted[0], "--minutes", MINUTES, "--resume", "--task"]
    assert command(*words, "normalisation").status == 0
    refused = command(*words, "translation")
    assert refused.status == 78
    assert "was not begun as translation, which is scored by bleu, chrf" in refused.err


def test_a_task_can_be_named_and_the_clock_of_the_machine_ends_the_run(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "fit", fit)
    words = ["fit", pairs, "--minutes", MINUTES, "--json", "--run-dir"]
    told = command(*words, tmp_path / "run", "--task", "translation")
    assert set(json.loads(told.out)["scores"]) == {"bleu", "chrf"}
    assert json.loads(told.out)["training_seconds"] > 0
    assert "taken for translation" in told.err
    refused = command(*words, tmp_path / "other", "--task", "translating")
    assert refused.status == 2
    assert "no task 'translating'" in refused.err and "translation" in refused.err


@pytest.mark.parametrize("name", ["arithmetic", "inflection", "normalisation", "normalization"])
def test_tasks_that_are_spelled_letter_by_letter_have_the_settings_of_short_texts(name: str) -> None:
    assert find_task(name).metrics == ("exact_match", "cer")
    assert find_task(name).token_kind_of(phrases(VOCABULARY, 8)) == "characters"


def test_a_word_with_several_pronunciations_counts_once(tmp_path: Path, clock: StepClock) -> None:
    path = tmp_path / "words.tsv"
    rows = [(word, " ".join(letter.upper() for letter in word)) for word in dict.fromkeys(LEMMAS * 2)]
    path.write_text("".join(f"{word}\t{sounds}\n{word}\t{sounds} X\n" for word, sounds in rows))
    result = fit([path], tmp_path / "run", minutes=MINUTES, device="cpu", clock=clock)
    assert [score.name for score in result.scores] == ["word_error", "per"]
    assert {score.num_segments for score in result.scores} == {result.num_test // 2}


def test_settings_are_a_function_of_the_text_the_time_and_the_speed() -> None:
    src, tgt = map(list, zip(*transliterations(600), strict=True))
    assert settings_for(src, tgt) == settings_for(list(src), list(tgt))
    assert settings_for(src, tgt, minutes=0.1).model.dropout < settings_for(src, tgt, minutes=60).model.dropout


def test_every_task_is_scored_by_metrics_that_there_are() -> None:
    assert {metric for task in TASKS.values() for metric in task.metrics} <= set(METRICS)
