"""Training on a prepared corpus: in one order whoever shares the work, from the command, on one machine and several."""

import json
import os
import random
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.run

from calling import command, forked
from smallest_model import SMALLEST_MODEL
from transduce.cli.evaluate import count_training_overlap
from transduce.data import batches
from transduce.data.download import Places
from transduce.data.large import prepare as preparation
from transduce.runs import corpus
from transduce.runs.folder import RunFolder
from transduce.training import trainer

NUM_PAIRS, PAIRS_PER_WINDOW = 90, 13

SETTINGS = f"""
[data]
train = "train.tsv"
valid = "valid.tsv"
{SMALLEST_MODEL}
dropout = 0.2
[optim]
schedule = "constant"
learning_rate = 0.01
warmup_steps = 4
epsilon = 1e-5
[training]
steps = 30
batch_tokens = 60
micro_batches = 2
validate_every = 10
log_every = 1
[validation]
metrics = []
"""

# The command, for which every corpus is a large one; it writes down the pairs of each step.
LARGE_TRANSDUCE = f"""
import json, os, sys
from transduce.cli import main as cli
from transduce.data import batches
from transduce.data.large import prepare as preparation
from transduce.runs import corpus
from transduce.training import trainer
batches.PAIRS_PER_WINDOW = {PAIRS_PER_WINDOW}
preparation.LINES_PER_BLOCK = 40
corpus.is_large = lambda *_: True
train_step = trainer.Trainer.train_step
def recording_step(self, micro_batches, step):
    def texts_of(rows):
        return [(self.pairs.src(row).tolist(), self.pairs.tgt(row).tolist()) for row in rows.tolist()]
    texts = [texts_of(rows) for rows in micro_batches]
    with open(os.environ["STEPS"], "a") as file:
        file.write(json.dumps([step, texts]) + "\\n")
    return train_step(self, micro_batches, step)
trainer.Trainer.train_step = recording_step
if __name__ == "__main__":
    sys.exit(cli.main([*sys.argv[1:], "--threads", "1"]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = random.Random(1)
    for name, num_pairs in (("train", NUM_PAIRS), ("valid", 9)):
        words = ["".join(draw.choices("abcdefg", k=draw.randint(2, 9))) for _ in range(num_pairs)]
        (tmp_path / f"{name}.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    (tmp_path / "settings.toml").write_text(SETTINGS)
    (tmp_path / "large_transduce.py").write_text(LARGE_TRANSDUCE)
    return tmp_path


def torchrun(words: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.distributed.run.main(words)


def start(folder: Path, launcher: list[str], words: list[str], name: str) -> "subprocess.Popen[str]":
    """`torchrun`, whose steps go to the file `name`.steps and whose prepared corpora to `name`.cache."""
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    common = {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    own = {"STEPS": str(folder / f"{name}.steps"), "TRANSDUCE_CACHE": str(folder / f"{name}.cache")}
    line = [sys.executable, "-m", *launcher, "large_transduce", "train", "settings.toml", *words]
    environment = os.environ | common | own
    return forked(line, main=torchrun, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def outcome_of(process: "subprocess.Popen[str]") -> str:
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    return told


def steps_of(folder: Path, name: str) -> dict[int, Any]:
    return dict(map(json.loads, (folder / f"{name}.steps").read_text().strip().split("\n")))


def losses_of(folder: Path, run: str) -> list[float]:
    return [row["loss"] for row in RunFolder.open(folder / run).metrics() if row["kind"] == "training"]


def as_in_other_processes(patch: pytest.MonkeyPatch) -> None:
    """What LARGE_TRANSDUCE changes, changed here until the patch is undone."""
    for module, name in (
        (batches, "PAIRS_PER_WINDOW"),
        (preparation, "LINES_PER_BLOCK"),
        (corpus, "is_large"),
        (trainer.Trainer, "train_step"),
    ):
        patch.setattr(module, name, getattr(module, name))  # so that it is put back
    exec(LARGE_TRANSDUCE, {"__name__": "large_transduce"})


def test_two_machines_train_like_one_process_which_goes_on_where_they_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # The two share no cache, so each prepares the corpus.
    launcher = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    words = ["--run-dir", "together"]
    machines = [
        start(
            folder,
            [*launcher, "--master-port", port, "--node-rank", str(rank), "-m"],
            [*words, "--training.steps", "17"],
            f"machine-{rank}",
        )
        for rank in (0, 1)
    ]
    told = [outcome_of(machine) for machine in machines]
    assert "training: 90 pairs" in told[0]
    assert "pairs" not in told[1]
    prepared = [list((folder / f"machine-{rank}.cache").rglob("*.safetensors")) for rank in (0, 1)]
    ((one,), (other,)) = prepared
    assert one.read_bytes() == other.read_bytes()

    # Another number of processes goes on, in the order of a run that never stopped.
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        as_in_other_processes(patch)
        for name, arguments in (
            ("machine-0", [*words, "--resume", "--processes", "1"]),
            ("alone", ["--run-dir", "alone"]),
        ):
            patch.setenv("STEPS", str(folder / f"{name}.steps"))
            patch.setenv("TRANSDUCE_CACHE", str(folder / f"{name}.cache"))
            outcome = command("train", "settings.toml", *arguments)
            assert outcome.status == 0, outcome.err
    assert steps_of(folder, "machine-1") == {
        step: found for step, found in steps_of(folder, "alone").items() if step <= 17
    }
    assert steps_of(folder, "machine-0") == steps_of(folder, "alone")
    assert losses_of(folder, "together") == pytest.approx(losses_of(folder, "alone"), rel=1e-5)

    seen = [json.dumps(pair) for _, step in sorted(steps_of(folder, "alone").items()) for rows in step for pair in rows]
    assert len(set(seen[:NUM_PAIRS])) == len(set(seen)) > 80  # in an epoch every pair is seen once
    state = RunFolder.open(folder / "alone").read_checkpoint(30)[1]
    assert state["epoch"] == (len(seen) - 1) // NUM_PAIRS


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TRANSDUCE_CACHE", str(folder / "cache"))
    monkeypatch.setattr("transduce.runs.corpus.is_large", lambda *_: True)
    return folder


@pytest.mark.usefixtures("large")
def test_more_pairs_are_refused_beside_files_that_are_prepared() -> None:
    refused = command("train", "settings.toml", "--data.more", "more.tsv", "--run-dir", "run")
    assert refused.status == 2
    assert "data.more (more.tsv) needs pairs that fit in memory" in refused.err


def test_train_starts_at_once_on_what_prepare_made_and_says_the_same_of_it(large: Path) -> None:
    outcome = command("prepare", "settings.toml", "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["num_pairs"], found["num_long"], found["skipped"]) == (NUM_PAIRS, 0, {})
    assert Path(found["path"]).parent == large / "cache/prepared"
    assert "prepared 90 pairs in" in outcome.err

    trained = command("train", "settings.toml", "--run-dir", "run", "--training.steps", "2")
    assert trained.status == 0, trained.err
    assert "prepared 90 pairs in" not in trained.err
    for told in (outcome.err, trained.err):
        assert "training: 90 pairs\nvalidation pairs also in the training data: 0 (sources: 0, targets: 0)\n" in told
    facts = RunFolder.open(large / "run").facts
    assert facts["num_train_pairs"] == NUM_PAIRS
    assert facts["data"]["train"] == found["data"]

    # A tokenizer that was given makes other ids of the same pairs, and a resumed run finds its own again.
    assert command("prepare", "settings.toml", "--tokenizer.source=words", "--tokenizer.target=words").status == 0
    going_on = command("train", "settings.toml", "--run-dir", "run", "--training.steps", "3", "--resume")
    assert going_on.status == 0, going_on.err
    assert "prepared 90 pairs in" not in going_on.err
    again = command("prepare", "settings.toml", "--init-from", "run", "--json")
    assert json.loads(again.out)["path"] == found["path"]


def test_epochs_of_windows_are_counted_and_overlap_is_left_out(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transduce.data.batches.PAIRS_PER_WINDOW", 20)
    options = ["--training.steps=0", "--training.epochs=1", "--training.batch_tokens=400", "--training.micro_batches=1"]
    trained = command("train", "settings.toml", "--run-dir", "run", *options)
    assert trained.status == 0, trained.err
    folder = RunFolder.open(large / "run")
    steps = folder.checkpoints()[-1]
    assert f"1 epochs: {steps} steps" in trained.err
    assert folder.read_checkpoint(steps)[1]["window"] == round(NUM_PAIRS / 20) - 1  # at the end of the last one
    config = folder.settings
    assert count_training_overlap(config, folder, ["a"], ["b"], Places()) is None


def test_a_run_that_was_begun_on_a_folder_of_shards_goes_on_with_the_next_epoch(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transduce.data.batches.PAIRS_PER_WINDOW", PAIRS_PER_WINDOW)
    options = ["train", "settings.toml", "--run-dir", "run"]
    assert command(*options, "--training.steps", "2").status == 0
    folder = RunFolder.open(large / "run")
    tensors, state = folder.read_checkpoint(2)
    # What format 1 left: a folder that holds shards, and a checkpoint in the second of its seven.
    (prepared,) = (large / "cache/prepared").glob("*.safetensors")
    (prepared.with_suffix("")).mkdir()
    prepared.rename(prepared.with_suffix("") / "shard-00000.safetensors")
    del state["window"]
    state |= {"epoch": 3, "shard": 1, "position": 1, "plan_of": [1, 60, 2, NUM_PAIRS, 7]}
    folder.write_checkpoint(2, tensors, state, keep=9)

    resumed = command(*options, "--training.steps", "4", "--resume")
    assert resumed.status == 0, resumed.err
    assert "prepared 90 pairs in" in resumed.err
    assert "the batches have changed: continuing with the next epoch" in resumed.err
    assert folder.read_checkpoint(4)[1]["epoch"] == 4
    again = command(*options, "--training.steps", "5", "--resume")
    assert "prepared 90 pairs in" not in again.err
    assert "others now" not in again.err


def test_a_corpus_that_fits_into_memory_needs_no_preparation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TRANSDUCE_CACHE", str(folder / "cache"))
    outcome = command("prepare", "settings.toml")
    assert outcome.status == 0
    assert "fit in memory" in outcome.err
    assert not (folder / "cache").exists()
