"""How long outputs may become: what the training pairs need, told where it is not enough."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calling import Outcome, command
from transduce.config.settings import load_config
from transduce.config.toml import to_toml
from transduce.data.batches import EncodedPairs
from transduce.inference.config import DecodingConfig
from transduce.runs.corpus import with_room
from transduce.runs.folder import RunFolder
from transduce.runs.run import load

CONFIG = """
[data]
train = ["{data}/train.source", "{data}/train.target"]
valid = ["{data}/valid.source", "{data}/valid.target"]
[tokenizer]
source = "characters"
target = "words"
joint = false
[model]
d_model = 32
d_ff = 64
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
dropout = 0.0
[optim]
learning_rate = 0.01
warmup_steps = 20
[training]
steps = 80
batch_tokens = 1024
[validation]
metrics = ["exact_match"]
"""
LETTERS = "abcdefgh"
TARGETS = {letter: " ".join(f"{letter}{n}" for n in range(45)) for letter in LETTERS}  # 46 tokens with the end, for 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of letters and the long texts that they stand for."""
    folder = tmp_path_factory.mktemp("lengths")
    for split, sources in (("train", LETTERS * 10), ("valid", LETTERS), ("test", LETTERS)):
        (folder / f"{split}.source").write_text("".join(f"{letter}\n" for letter in sources))
        (folder / f"{split}.target").write_text("".join(f"{TARGETS[letter]}\n" for letter in sources))
    (folder / "config.toml").write_text(CONFIG.format(data=folder))
    return folder


def files_of(folder: Path) -> tuple[object, ...]:
    return "--source", folder / "test.source", "--target", folder / "test.target"


@pytest.fixture(scope="module")
def trained(folder: Path) -> Outcome:
    return command("train", folder / "config.toml", "--run-dir", folder / "run")


@pytest.mark.parametrize("ratio", [0.0, 1.5, 2.0])
def test_limits_allow_nearly_every_training_target_and_no_more_than_a_tenth_beyond(ratio: float) -> None:
    random = np.random.default_rng(5)
    src_lens = random.integers(2, 12, 2_000)
    tgt_lens = 3 * src_lens + random.integers(1, 40, 2_000)
    tgt_lens[7] = 900  # an odd line
    pairs = EncodedPairs([[5] * n for n in src_lens], [[6] * n for n in tgt_lens])
    given = load_config(f"[data]\ntrain = 'x.tsv'\n[training]\nsteps = 1\n[decoding]\nmax_len_ratio = {ratio}\n", "x")
    reports: list[str] = []
    config = with_room(given, pairs, reports.append)
    is_reached = [tgt <= config.decoding.max_len(int(src)) for src, tgt in zip(src_lens, tgt_lens, strict=True)]
    assert is_reached.count(False) == 1
    others = np.arange(len(src_lens)) != 7
    longest = (tgt_lens - (ratio * src_lens).astype(int))[others].max()
    assert longest <= config.decoding.max_len_extra <= 1.1 * longest + 1
    assert len(reports) == 1
    assert str(config.decoding.max_len_extra) in reports[0]
    assert with_room(config, pairs, pytest.fail) == config


def test_short_targets_leave_the_usual_room() -> None:
    pairs = EncodedPairs([[5] * 9] * 30, [[6] * 8] * 30)
    given = load_config("[data]\ntrain = 'x.tsv'\n[training]\nsteps = 1\n", "x")
    config = with_room(given, pairs, pytest.fail)
    assert config.decoding.max_len(9) == given.decoding.max_len(9) == DecodingConfig().max_len(9) == 38


def test_a_run_writes_texts_far_longer_than_its_sources(trained: Outcome, folder: Path) -> None:
    assert trained.status == 0, trained.err
    predictor = load(folder / "run", device="cpu")
    assert predictor.decoding.max_len_extra == 47  # 46 - 4, and a tenth more
    assert "maximum output length: 2 * source tokens + 47" in trained.err
    assert "exceed the maximum output length" not in trained.err
    assert predictor.predict(list(LETTERS)) == [*TARGETS.values()]
    assert predictor.num_truncated_outputs == 0
    described = command("evaluate", folder / "run", *files_of(folder), "--metric", "exact_match", "--json")
    row = json.loads(described.out)
    assert (row["scores"]["exact_match"]["value"], row["num_truncated_outputs"]) == (100.0, 0)


def test_a_resumed_run_keeps_its_number_and_one_set_by_hand_counts(trained: Outcome, folder: Path) -> None:
    assert trained.status == 0
    words = ["train", folder / "config.toml", "--run-dir", folder / "run", "--resume"]
    assert command(*words, "--training.steps", 81).status == 0
    assert RunFolder.open(folder / "run").settings.decoding.max_len_extra == 47
    by_hand = ["--training.steps", 2, "--decoding.max_len_extra", 20]
    short = command("train", folder / "config.toml", "--run-dir", folder / "short", *by_hand)
    assert RunFolder.open(folder / "short").settings.decoding.max_len_extra == 20
    assert "8 validation targets exceed the maximum output length: raise decoding.max_len_extra" in short.err


def test_outputs_that_had_to_end_are_counted_and_named(trained: Outcome, folder: Path) -> None:
    assert trained.status == 0
    limited = ["--max-length", "20"]
    found = command("predict", folder / "run", folder / "test.source", *limited)
    assert ": 8 of 8 lines (line 1, 2, 3, 4, 5, 6, 7, 8)" in found.err
    assert [len(line.split(" ")) for line in found.lines] == [20] * 8
    rows = [json.loads(row) for row in command("predict", folder / "run", "--json", *limited, stdin=b"a\nb\n").lines]
    assert [row["predictions"][0]["truncated"] for row in rows] == [True, True]
    predictor = load(folder / "run", device="cpu")
    short = DecodingConfig(max_len_ratio=0.0, max_len_extra=46)  # as long as they are: nobody could tell
    for decoding, is_truncated in ((short, True), (predictor.decoding, False)):
        for n_best in predictor.predict_n_best(["a", "", "b"], 1, decoding=decoding):
            assert n_best[0].is_truncated == (is_truncated and n_best[0].text != "")
            assert not n_best[0].is_source_truncated
    assert predictor.num_truncated_outputs == 2


def test_evaluate_names_the_lines_whose_outputs_had_to_end(trained: Outcome, folder: Path) -> None:
    assert trained.status == 0
    cut = RunFolder(shutil.copytree(folder / "run", folder / "cut"))
    settings = replace(cut.settings, decoding=replace(cut.settings.decoding, max_len_extra=20))
    cut.rewrite_config(to_toml(settings))
    found = command("evaluate", folder / "cut", *files_of(folder), "--metric", "exact_match")
    assert ": 8 of 8 lines (line 1, 2, 3, 4, 5, 6, 7, 8)" in found.err
    row = json.loads(command("evaluate", folder / "cut", *files_of(folder), "--metric", "exact_match", "--json").out)
    assert (row["num_truncated_outputs"], row["num_truncated_sources"]) == (8, 0)
