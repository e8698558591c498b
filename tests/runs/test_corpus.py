import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from transduce.cli.evaluate import count_training_overlap
from transduce.config.settings import ExperimentConfig, load_config
from transduce.data.download import Places
from transduce.data.pairs import Pairs
from transduce.runs.corpus import read_corpus
from transduce.runs.folder import RunFolder

PAIRS = [("a dog", "ein Hund"), ("two dogs", "zwei Hunde"), ("a cat", "eine Katze")]


def run_on(sha256: list[str], folder: Path) -> RunFolder:
    facts = {"data": {"train": sha256}, "num_train_pairs": len(PAIRS)}
    return RunFolder.create(folder, config="", tokenizer="{}", facts=facts)


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    data = f'train = "{tmp_path}/train.tsv"\nvalid = "{tmp_path}/valid.tsv"'
    return load_config(f"[data]\n{data}\n[training]\nsteps = 1\n", "x")


def test_overlap_is_counted_though_the_validation_file_is_gone(config: ExperimentConfig, tmp_path: Path) -> None:
    train = read_corpus(config.data, Places(), lambda _line: None).train
    run = run_on(list(train.sha256.values()), tmp_path / "run")
    (tmp_path / "valid.tsv").unlink()
    found = count_training_overlap(config, run, ["A  dog", "a cat"], ["ein Hund", "ein Hund"], Places())
    assert found == {"pairs": 1, "source": 2, "target": 2}


def test_more_pairs_follow_those_of_the_data_where_they_are_new(config: ExperimentConfig, tmp_path: Path) -> None:
    more = [("a cat", "eine Katze"), ("a dog", "der Hund"), ("", "leer"), ("a cow", "eine Kuh"), ("a dog", "der Hund")]
    (tmp_path / "more.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in more))
    told: list[str] = []
    data = replace(config.data, more=(f"{tmp_path}/more.tsv",))
    corpus = read_corpus(data, Places(), told.append)
    assert isinstance(corpus.train, Pairs)
    assert list(zip(corpus.train.src, corpus.train.tgt, strict=True)) == [
        *PAIRS,
        ("a dog", "der Hund"),
        ("a cow", "eine Kuh"),
    ]
    assert told[0] == "training: 5 pairs, 1 skipped (empty source), 2 skipped (already there)"
    assert corpus.valid is not None
    assert len(corpus.valid) == 3
    assert list(corpus.train.sha256) == [f"{tmp_path}/train.tsv", f"{tmp_path}/more.tsv (more)"]

    run = run_on(list(corpus.train.sha256.values()), tmp_path / "run")
    run.update_facts({"num_train_pairs": 5})
    found = count_training_overlap(replace(config, data=data), run, ["a cow"], ["eine Kuh"], Places())
    assert found == {"pairs": 1, "source": 1, "target": 1}


@pytest.mark.parametrize("change", ["gone", "other", "unreadable"])
def test_no_overlap_is_told_where_the_training_file_is_not_the_one_it_was(
    change: str, config: ExperimentConfig, tmp_path: Path
) -> None:
    train = read_corpus(config.data, Places(), lambda _line: None).train
    run = run_on(list(train.sha256.values()), tmp_path / "run")
    if change == "gone":
        (tmp_path / "train.tsv").unlink()
    else:
        (tmp_path / "train.tsv").write_text("a\tb\n" if change == "other" else "three\tcolumns\there\n")
    assert count_training_overlap(config, run, ["a dog"], ["ein Hund"], Places()) is None


def test_nothing_is_fetched_to_count_an_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **_: pytest.fail(f"{url} was opened"))
    config = load_config('[data]\ndataset = "multi30k-en-de"\n[training]\nsteps = 1\n', "x")
    run = run_on(["0" * 64, "1" * 64], tmp_path / "run")
    places = Places(tmp_path / "none", tmp_path / "cache")
    assert count_training_overlap(config, run, ["a dog"], ["ein Hund"], places) is None
