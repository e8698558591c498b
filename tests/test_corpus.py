import urllib.request
from pathlib import Path

import pytest

from transduce.checkpoint import RunFolder
from transduce.corpus import Surroundings, count_training_overlap, read_corpus
from transduce.settings import ExperimentConfig, load_config

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
    train = read_corpus(config.data, Surroundings()).train
    run = run_on(list(train.sha256.values()), tmp_path / "run")
    (tmp_path / "valid.tsv").unlink()
    found = count_training_overlap(config, run, ["A  dog", "a cat"], ["ein Hund", "ein Hund"], Surroundings())
    assert found == {"pairs": 1, "source": 2, "target": 2}


@pytest.mark.parametrize("change", ["gone", "other", "unreadable"])
def test_no_overlap_is_told_where_the_training_file_is_not_the_one_it_was(
    change: str, config: ExperimentConfig, tmp_path: Path
) -> None:
    train = read_corpus(config.data, Surroundings()).train
    run = run_on(list(train.sha256.values()), tmp_path / "run")
    if change == "gone":
        (tmp_path / "train.tsv").unlink()
    else:
        (tmp_path / "train.tsv").write_text("a\tb\n" if change == "other" else "three\tcolumns\there\n")
    assert count_training_overlap(config, run, ["a dog"], ["ein Hund"], Surroundings()) is None


def test_nothing_is_fetched_to_count_an_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **_: pytest.fail(f"{url} was opened"))
    config = load_config('[data]\ndataset = "multi30k-en-de"\n[training]\nsteps = 1\n', "x")
    run = run_on(["0" * 64, "1" * 64], tmp_path / "run")
    surroundings = Surroundings(data_root=tmp_path / "none", data_cache=tmp_path / "cache")
    assert count_training_overlap(config, run, ["a dog"], ["ein Hund"], surroundings) is None
