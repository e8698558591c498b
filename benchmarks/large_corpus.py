"""How long until training starts on a corpus that is too large for memory, and how much memory it takes.

    python benchmarks/large_corpus.py FOLDER [--pairs 10000000]

Generates two corpora in FOLDER (a few GB; kept, and used again), prepares them and trains a tiny model for 200 steps on
each, in fresh processes and through the command itself. Prints a table and writes results/large_corpus.json.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transduce.cli.benchmark.usage import cpu_seconds
from transduce.devices.machine import commit, cpu_model, num_cores

RESULTS = Path(__file__).parent / "results" / "large_corpus.json"
FEW_PAIRS, STEPS, SEED = 100_000, 200, 1
NUM_WORDS, ZIPF_EXPONENT, MEAN_LEN = 200_000, 1.0, 10
PAIRS_PER_CHUNK = 100_000

SETTINGS = """
[data]
train = ["{folder}/train.source", "{folder}/train.target"]
[tokenizer]
vocab_size = 8000
[model]
preset = "tiny"
[training]
steps = {steps}
batch_tokens = 1024
batching = "bucketed"
log_every = 1
validate_every = {steps}
[validation]
metrics = []
"""

# `prepare` in a process that tells at its end what it and its helpers took.
PREPARE = """
import json, resource, sys
from transduce.cli.main import main
status = main(sys.argv[1:])
own, helpers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
cpu = own.ru_utime + own.ru_stime + helpers.ru_utime + helpers.ru_stime
found = {"cpu_seconds": cpu, "peak_mb": own.ru_maxrss / 1024, "peak_mb_of_a_helper": helpers.ru_maxrss / 1024}
print(json.dumps(found))
sys.exit(status)
"""


def word_table(random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Words of two to nine letters and a blank, end to end, and their sizes in bytes; frequent words are short."""
    lens = 2 + (np.log2(1 + np.arange(NUM_WORDS)) / 3 + random.integers(0, 3, NUM_WORDS)).astype(np.int64)
    letters = random.choice(np.frombuffer(b"etaoinshrdlucmfwypvbgkqjxz", np.uint8), lens.sum() + NUM_WORDS)
    letters[np.cumsum(lens + 1) - 1] = ord(" ")
    return letters, lens + 1


def text_of(words: NDArray[np.int64], num_words: NDArray[np.int64], table: Any) -> bytes:
    """Lines of so many words each."""
    letters, lens = table
    starts, lens = (np.cumsum(lens) - lens)[words], lens[words]
    text = letters[np.repeat(starts - (np.cumsum(lens) - lens), lens) + np.arange(lens.sum())]
    text[np.cumsum(lens)[np.cumsum(num_words) - 1] - 1] = ord("\n")
    return text.tobytes()


def generate(folder: Path, num_pairs: int) -> None:
    """A source and a target file: words of Zipf's law, translated word by word."""
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random = np.random.default_rng(SEED)
    tables = [word_table(random) for _ in range(2)]
    share = np.cumsum(1 / np.arange(1, NUM_WORDS + 1) ** ZIPF_EXPONENT)
    with (folder / "train.source").open("wb") as source, (folder / "train.target").open("wb") as target:
        for start in range(0, num_pairs, PAIRS_PER_CHUNK):
            num_words = 1 + random.poisson(MEAN_LEN - 1, min(PAIRS_PER_CHUNK, num_pairs - start)).astype(np.int64)
            words = np.searchsorted(share, random.random(int(num_words.sum())) * share[-1])
            for file, table in zip((source, target), tables, strict=True):
                file.write(text_of(words, num_words, table))
    (folder / "done").touch()


def prepare(folder: Path, config: Path) -> dict[str, Any]:
    """What preparing takes, from the command to its end; nothing is there before."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    command = [sys.executable, "-c", PREPARE, "prepare", str(config), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment(folder), stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    *_, manifest, taken = done.stdout.strip().rsplit("\n", 1)
    found = {"seconds": seconds, **json.loads(taken)}
    made = json.loads(manifest)
    if made["path"]:
        found |= {"mb_on_disk": made["bytes"] / 1e6, "pairs_per_second": made["num_pairs"] / seconds}
    return found


def train(folder: Path, config: Path) -> dict[str, Any]:
    """When the first step was done, and the most memory, of the command in a process of its own."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, "-m", "transduce", "train", str(config), "--run-dir", str(folder / "run")]
    started = time.perf_counter()
    first_step = None
    with subprocess.Popen(command, env=environment(folder), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if first_step is None and line.startswith("step 1/"):
                first_step = time.perf_counter() - started
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("".join(lines[-20:]))
    return {
        "seconds_to_first_step": first_step,
        "seconds": time.perf_counter() - started,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def environment(folder: Path) -> dict[str, str]:
    """Ours, with the cache in `folder`."""
    return os.environ | {"TRANSDUCE_CACHE": str(folder / "cache")}


def measure(folder: Path, num_pairs: int) -> dict[str, Any]:
    """All that is measured on a corpus of so many pairs."""
    started = time.perf_counter()
    generate(folder, num_pairs)
    generated = time.perf_counter() - started
    config = folder / "config.toml"
    config.write_text(SETTINGS.format(folder=folder, steps=STEPS))
    size = sum((folder / f"train.{side}").stat().st_size for side in ("source", "target"))
    found = {"pairs": num_pairs, "mb_of_text": size / 1e6, "seconds_to_generate": generated}
    return found | {"prepare": prepare(folder, config), "train": train(folder, config)}


def facts() -> dict[str, Any]:
    """What the numbers hold for."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"cpu": cpu_model(), "cores": num_cores(), "commit": commit(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    before = cpu_seconds()
    sizes = (FEW_PAIRS, arguments.pairs)
    found = [measure(arguments.folder.absolute() / f"pairs-{size}", size) for size in sizes]
    few, many = found
    more = many["train"]["peak_mb"] - few["train"]["peak_mb"]
    print(
        f"{'pairs':>12} {'prepared in':>12} {'pairs/s':>10} {'first step after':>17} {'peak at step ' + str(STEPS):>18}"
    )
    for row in found:
        speed = row["prepare"].get("pairs_per_second")
        print(
            f"{row['pairs']:>12,} {row['prepare']['seconds'] if speed else 0:>10.1f} s {speed or 0:>10,.0f} "
            f"{row['train']['seconds_to_first_step']:>15.1f} s {row['train']['peak_mb']:>15,.0f} MB"
        )
    print(f"the larger takes {more:+,.0f} MB more (0 pairs/s: read into memory, nothing is prepared)")
    after = cpu_seconds()
    stolen = after[1] - before[1] if before and after else None
    result = {"facts": facts(), "stolen_cpu_seconds": stolen, "corpora": found, "peak_mb_more": more}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
