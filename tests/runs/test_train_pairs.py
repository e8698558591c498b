"""`transduce.train` on pairs from anywhere: the same weights whatever holds them, and none lost on the way."""

import signal
from pathlib import Path
from typing import Any

import pytest

import transduce
from calling import command
from transduce.config.settings import settings_of
from transduce.data.datasets import load_split
from transduce.errors import ConfigMismatchError, DataError, RunFolderError, TransduceError
from transduce.runs.folder import RunFolder
from transduce.training.signals import Stopped

PAIRS = load_split("reverse", "train")
ROWS = list(zip(PAIRS.src[:120], PAIRS.tgt[:120], strict=True))
HELD_OUT = list(zip(PAIRS.src[120:130], PAIRS.tgt[120:130], strict=True))
SETTINGS: dict[str, Any] = {
    "model": {"d_model": 16, "d_ff": 24, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1},
    "tokenizer": {"source": "characters", "target": "characters"},
    "training": {"steps": 6, "validate_every": 3, "save_every": 2, "log_every": 1, "batch_tokens": 256},
    "validation": {"metrics": []},
}


class Frame:
    """As much of a DataFrame as is needed."""

    columns = ("source", "target")

    def __getitem__(self, name: str) -> list[str]:
        return [row[self.columns.index(name)] for row in ROWS]


class Dataset(Frame):
    """As much of a `datasets.Dataset` as is needed."""

    column_names = ("source", "target")
    columns = column_names


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, Any]:
    """The same pairs in each form."""
    (tmp_path / "p.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in ROWS))
    for side, name in enumerate(("p.src", "p.tgt")):
        (tmp_path / name).write_text("".join(f"{row[side]}\n" for row in ROWS))
    files = {"tsv": tmp_path / "p.tsv", "two files": [tmp_path / "p.src", str(tmp_path / "p.tgt")]}
    return files | {"list": ROWS, "frame": Frame(), "data set": Dataset()}


def train(pairs: Any, run_dir: Path, **options: Any) -> None:
    transduce.train(pairs, valid=HELD_OUT, run_dir=run_dir, device="cpu", **{**SETTINGS, **options})


def weights(run_dir: Path) -> bytes:
    """All that training has written of its numbers, but for the seconds."""
    tensors = RunFolder(run_dir).read_checkpoint(6)[0]
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


def test_the_same_pairs_give_the_same_weights_in_every_form_and_after_a_stop(
    forms: dict[str, Any], tmp_path: Path
) -> None:
    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise Stopped(signal.SIGTERM)

    for name, pairs in forms.items():
        train(pairs, tmp_path / name)
        with pytest.raises(Stopped, match="Stopped at step 4"):
            train(pairs, tmp_path / f"{name} stopped", observers=[stop])
        train(pairs, tmp_path / f"{name} stopped", resume=True)
    assert len({weights(tmp_path / f"{name}{end}") for name in forms for end in ("", " stopped")}) == 1
    assert RunFolder(tmp_path / "list stopped").facts["resumed"][0]["step"] == 4


def test_a_run_is_resumed_by_what_its_pairs_are_and_not_by_what_holds_them(tmp_path: Path) -> None:
    train(ROWS, tmp_path / "run", training=SETTINGS["training"] | {"steps": 3})
    with pytest.raises(ConfigMismatchError, match="the train data are not those"):
        train(ROWS[:-1], tmp_path / "run", resume=True)
    train(Frame(), tmp_path / "run", resume=True)
    assert RunFolder(tmp_path / "run").checkpoints()[-1] == 6


def test_a_run_on_pairs_in_memory_says_so_where_they_are_needed_and_is_a_run_like_any_other(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(iter(ROWS), run)
    assert RunFolder(run).settings.data.train == RunFolder(run).settings.data.valid == ("pairs in memory",)
    for words in (("verify", run), ("describe", run)):
        assert command(*words).status == 0
    for name, side in (("s", 0), ("t", 1)):
        (tmp_path / name).write_text("".join(f"{row[side]}\n" for row in HELD_OUT))
    evaluated = command("evaluate", run, "--source", tmp_path / "s", "--target", tmp_path / "t")
    assert evaluated.status == 0
    assert "overlap with the training data: unknown, because those pairs were in memory" in evaluated.err
    resumed = command("train", run / "config.toml", "--run-dir", run, "--resume")
    assert resumed.status == 2
    assert "the pairs of data.train were in memory, in a Python program: give them to transduce.train" in resumed.err
    exported = command("export", run, "--format", "onnx", "-o", tmp_path / "out")
    assert exported.status == 66
    assert "were in memory" in exported.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("valid", [None, [("a", None)], "nowhere.tsv", "own"])
def test_each_side_is_read_from_where_it_is_and_nothing_is_left_where_it_cannot_be(
    valid: Any, forms: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = {name: SETTINGS[name] for name in SETTINGS} | {"device": "cpu"}
    lines: list[str] = []
    if valid is None or valid == "own":
        own = None if valid is None else HELD_OUT
        transduce.train(forms["tsv"], run, valid=own, report=lines.append, **options)
        assert RunFolder(run).settings.data.valid == (() if valid is None else ("pairs in memory",))
        assert RunFolder(run).settings.data.train == (str(forms["tsv"]),)
        assert lines[0] == "training: 120 pairs"
        assert ("validation: 10 pairs" in lines) == (valid == "own")
        return
    with pytest.raises(TransduceError, match=r"pair 1: the target is None|nowhere\.tsv: no such file"):
        transduce.train(ROWS, run, valid=valid, **options)
    assert not run.exists()


def test_a_folder_in_use_is_noticed_before_an_iterator_is_used_up(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    rows = iter(ROWS)
    with pytest.raises(RunFolderError, match="contains other files"):
        train(rows, tmp_path)
    assert next(rows) == ROWS[0]


@pytest.mark.parametrize("pairs", ["no such.tsv", [], [("a", "b"), "ab"], {"a": "b"}])
def test_pairs_that_cannot_be_used_leave_no_folder(pairs: Any, tmp_path: Path) -> None:
    with pytest.raises(TransduceError):
        train(pairs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_setting_is_checked_as_in_a_file_and_a_preset_gives_the_others(tmp_path: Path) -> None:
    with pytest.raises(TransduceError, match=r"unknown setting 'training\.step'. Did you mean 'training\.steps'"):
        train(ROWS, tmp_path / "run", training={"step": 6})
    with pytest.raises(TransduceError, match=r"model\.preset is 'huge'"):
        train(ROWS, tmp_path / "run", preset="huge")
    train(ROWS, tmp_path / "run", model={"d_model": 16, "num_heads": 2, "num_encoder_layers": 1, "d_ff": 8})
    model = RunFolder(tmp_path / "run").settings.model
    assert (model.d_model, model.num_encoder_layers, model.num_decoder_layers) == (16, 1, 4)


def test_a_config_comes_first_as_ever(forms: dict[str, Any], tmp_path: Path) -> None:
    config = settings_of({**SETTINGS, "data": {"train": list(map(str, forms["two files"]))}})
    assert transduce.train(config, tmp_path / "run", device="cpu").step == 6
    with pytest.raises(TransduceError, match=r"a config names its own in data\.valid"):
        transduce.train(config, tmp_path / "other", valid=HELD_OUT)


def test_two_files_of_pairs_in_the_settings_are_refused(tmp_path: Path) -> None:
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text("a\tb\n")
    with pytest.raises(DataError, match="each of these holds pairs already"):
        train([tmp_path / "a.tsv", tmp_path / "b.tsv"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
