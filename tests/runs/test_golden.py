"""A hundred losses that were recorded once: no change of the code may change the arithmetic of training unnoticed.

`museum/losses.json` holds them, with the commit from which on trainings have the same bits: that of version 0.1.0.
Whoever changes the arithmetic on purpose (the order of the sums, what is drawn for dropout, the batches) records it
anew, in a commit of its own:

    PYTHONPATH=tests python tests/runs/test_golden.py
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from calling import command

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests/museum/losses.json"
NUM_STEPS = 100
TOLERANCE = 1e-5  # machines add up in orders of their own

SETTINGS = f"""
[data]
train = "train.tsv"
valid = "valid.tsv"
[tokenizer]
source = "characters"
target = "characters"
[model]
d_model = 32
d_ff = 48
num_heads = 4
num_encoder_layers = 2
num_decoder_layers = 2
dropout = 0.1
[optim]
schedule = "inverse_sqrt"
learning_rate = 0.002
warmup_steps = 20
max_grad_norm = 1.0
weight_decay = 0.01
ema_decay = 0.9
[training]
steps = {NUM_STEPS}
batch_tokens = 256
micro_batches = 2
log_every = 1
validate_every = {NUM_STEPS}
[validation]
metrics = []
"""


def write_work(folder: Path) -> Path:
    """The settings, and pairs of words and their mirror images, drawn by arithmetic of our own."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    for name, num_pairs in (("train", 400), ("valid", 20)):
        words = []
        for _ in range(num_pairs):
            number = number * 48_271 % (2**31 - 1)  # Park and Miller's generator
            words.append("".join("abcdefghij"[int(digit)] for digit in str(number)))
        (folder / f"{name}.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    (folder / "settings.toml").write_text(SETTINGS)
    return folder


def losses_of(folder: Path, source: Path = ROOT / "src", threads: int = 1, **environment: str) -> list[float]:
    """The losses of a training in a process of its own, by the package in `source`."""
    words = [sys.executable, "-P", "-m", "transduce", "train", "settings.toml", "--run-dir", "run", "--quiet"]
    common = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
    words += ["--threads", str(threads)]
    if (source / "transduce/training/workers.py").exists():
        words += ["--processes", "1"]
    found = subprocess.run(words, cwd=folder, env=common | environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return read_losses(folder)


def read_losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "run/metrics.jsonl").read_text().split("\n")[:-1])
    return [row["loss"] for row in rows if row["kind"] == "training"]


def distance(losses: list[float], others: list[float]) -> float:
    return max(abs(loss - other) for loss, other in zip(losses, others, strict=True))


def test_a_hundred_losses_are_those_that_were_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_work(tmp_path))
    monkeypatch.setattr("transduce.runs.train._draw_learning_curve", lambda *_: None)
    told = command("train", "settings.toml", "--run-dir", "run")
    assert told.status == 0, told.err
    losses = read_losses(tmp_path)
    assert losses[-1] < losses[0] - 0.5  # it learns
    assert distance(losses, json.loads(RECORD.read_text())["losses"]) <= TOLERANCE


# As if on older machines: what torch and its library of matrix products use of this one.
@pytest.mark.proof
@pytest.mark.parametrize(
    "machine",
    [
        {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "DNNL_MAX_CPU_ISA": "SSE41"},
        {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"},
        {"MKL_CBWR": "COMPATIBLE"},
    ],
    ids=["SSE", "AVX2", "any x86"],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_losses_of_other_machines_lie_within_the_tolerance(
    machine: dict[str, str], threads: int, tmp_path: Path
) -> None:
    losses = losses_of(write_work(tmp_path), threads=threads, **machine)
    assert distance(losses, json.loads(RECORD.read_text())["losses"]) <= TOLERANCE


@pytest.mark.proof
def test_the_code_of_the_recorded_commit_trains_the_same_bits(tmp_path: Path) -> None:
    commit = json.loads(RECORD.read_text())["commit"]
    archive = tmp_path / "then.tar"
    words = ["git", "archive", f"--output={archive}", commit, "src"]
    if not shutil.which("git") or subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("no git here, or not the commit")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "then", filter="data")
    now, then = write_work(tmp_path / "a"), write_work(tmp_path / "b")
    assert losses_of(now) == losses_of(then, tmp_path / "then/src")
    tensors = [tensors_of(folder / "run") for folder in (now, then)]
    assert tensors[0] == tensors[1]


def tensors_of(run: Path) -> dict[str, bytes]:
    """Weights, average and moments of Adam, after the last step."""
    from safetensors.numpy import load_file

    newest = max((run / "checkpoints").glob("*.safetensors"))
    return {name: tensor.tobytes() for name, tensor in load_file(newest).items()}


def record() -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        losses = losses_of(write_work(Path(folder)))
    content = {"commit": commit.strip(), "losses": losses}
    RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    record()
