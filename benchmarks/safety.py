"""What it costs that nothing is lost: checkpoints hashed and synced, the lock, `verify`, beside a plain write.

    python benchmarks/safety.py FOLDER [--rounds 9]      # a folder on the disk that is asked about

Writes checkpoints of models of three sizes (weights and both moments of Adam), in turns with the safetensors library,
which hashes and syncs nothing. Prints a table and writes results/safety.json.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from workers import in_lines

from transduce.config.settings import ExperimentConfig, load_config
from transduce.config.toml import to_toml
from transduce.devices.machine import commit, cpu_model
from transduce.model import Transformer
from transduce.runs.folder import RunFolder
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "safety.json"
PRESETS = ("tiny", "small", "base")


def checkpoint_of(config: ExperimentConfig, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Tensors as a trainer saves them: the weights, and twice as many numbers of Adam."""
    model = Transformer(config.model, tokenizer.vocabulary_sizes)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    slots = {f"optimizer.{slot}.{name}": torch.rand_like(x) for name, x in weights.items() for slot in ("a", "b")}
    return {f"model.{name}": x for name, x in weights.items()} | slots


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def take_lock(run: RunFolder) -> None:
    with run.lock():
        pass


def measure(folder: Path, preset: str, rounds: int) -> dict[str, float]:
    """Milliseconds, the medians of so many rounds."""
    config = load_config(
        f'[model]\npreset = "{preset}"\n[data]\ndataset = "copy"\n[training]\nsteps = 1\n', "benchmark"
    )
    letters = ["".join(map(chr, range(33, 127)))]
    tokenizer = Tokenizer.learn(TokenizerConfig(source="characters", target="characters"), letters, letters)
    shutil.rmtree(folder / preset, ignore_errors=True)
    run = RunFolder.create(folder / preset, config=to_toml(config), tokenizer=tokenizer.to_json(), facts={})
    tensors = checkpoint_of(config, tokenizer)
    works: dict[str, Callable[[], object]] = {
        "plain": lambda: save_file(tensors, folder / preset / "plain.safetensors"),
        "checkpoint": lambda: run.write_checkpoint(1, tensors, {"step": 1}, keep=1),
        "read": lambda: run.read_checkpoint(1),
        "verify": run.verify,
        "lock": lambda: take_lock(run),
    }
    taken = [{name: seconds_of(work) for name, work in works.items()} for _ in range(rounds + 1)][1:]  # one to wake up
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    shutil.rmtree(folder / preset)
    return {"mb": round(size / 1e6, 1)} | {name: round(1e3 * median(row[name] for row in taken), 2) for name in works}


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs that nothing is lost.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rows = {preset: measure(arguments.folder, preset, arguments.rounds) for preset in PRESETS}
    RESULTS.write_text(in_lines({"machine": cpu_model(), "commit": commit(), "rounds": arguments.rounds, "ms": rows}))
    print("| model | checkpoint, MB | plain write | hashed and synced | read and checked | verify | lock |")
    for preset, row in rows.items():
        print(f"| {preset} | " + " | ".join(f"{value:,}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
