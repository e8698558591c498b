"""Measures whether one version of this project trains and answers faster than another, in processor time:

    benchmarks/compare_checkouts.py A B [--pairs FILE...] [--run RUN] [--blocks N] [--threads N] [--json]

A and B are checkouts (folders with src/) or revisions of this one. Each measure has three processes that live all the
time: A, B and A once more. In every block each of the three does the same work while the others wait, in an order that
changes, so what drifts meets them alike; B / A of a block is what is asked, A' / A how far two equals lie apart here.

Training is one run of `transduce train` per process that is held between logged rows, so starting, reading and warming
up are in no block: of two lengths one would have to subtract what is longer than the blocks and varies as much. The
seconds of metrics.jsonl are the wall's; what counts here is processor time of the process with all its threads, which
a busy machine disturbs less. The versions may differ in their modules: see peers/checkout.py for what is used of them.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
BLOCK_SECONDS = 3.0
NUM_LINES = 256
MODES = {"training": "train", "greedy": "predict", "beam": "predict"}  # measure -> which worker
NAMES = ("A", "B", "A'")
SETTINGS = """
[data]
train = {train}
[tokenizer]
source = "{pieces}"
target = "{pieces}"
vocab_size = 4000
[model]
preset = "tiny"
norm_first = true
[optim]
schedule = "linear"
learning_rate = 0.002
warmup_steps = 100
[training]
steps = {steps}
batch_tokens = 2048
batching = "bucketed"
validate_every = {steps}
log_every = {log_every}
[validation]
metrics = []
"""


class Worker:
    """A checkout at one kind of work, in a process of its own."""

    def __init__(self, src: Path, kind: str, *words: object, threads: int) -> None:
        self.src = src
        self.process = subprocess.Popen(
            [sys.executable, HERE / "peers/checkout.py", kind, str(threads), *map(str, words)],
            env=environment(src, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        if (used := Path(self._answer()["src"])) != self.src:
            raise RuntimeError(f"{used} was imported where {self.src} was meant")

    def block(self, mode: str, count: int) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{mode} {count}\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the code in {self.src} ended; what it said stands above")
        return json.loads(line)


def environment(src: Path, threads: int) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(src), "OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"}


def source_of(version: str, folder: Path) -> Path:
    """The src of a checkout, or of a revision of this one, which is written into `folder`."""
    if (Path(version) / "src/transduce").is_dir():
        return (Path(version) / "src").resolve()
    archive = subprocess.run(["git", "archive", version, "src"], cwd=HERE.parent, stdout=subprocess.PIPE, check=False)
    if archive.returncode:
        sys.exit(f"{version} is neither a folder with src/transduce nor a revision of this checkout")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return (folder / "src").resolve()


def prepare(pairs: list[Path], run: Path | None, src: Path, threads: int, folder: Path) -> tuple[Path, Path, Path]:
    """A config to train by, a run to answer with and lines to answer. What is not given, A makes."""

    def command(*words: object) -> None:
        own = environment(src, threads)
        subprocess.run([sys.executable, "-m", "transduce", *map(str, words), "--quiet"], env=own, check=True)

    if not pairs:
        command("data", "dates", "-o", folder / "dates")
        pairs = [folder / f"dates/train.{side}" for side in ("source", "target")]
        pieces = "characters"
    else:
        pieces = "bpe"
    for name, steps, log_every in (("measured", 1_000_000, 5), ("short", 200, 200)):
        text = SETTINGS.format(
            train=json.dumps([str(path.resolve()) for path in pairs]), pieces=pieces, steps=steps, log_every=log_every
        )
        (folder / f"{name}.toml").write_text(text)
    if run is None:
        run = folder / "answering"
        command("train", folder / "short.toml", "--run-dir", run, "--device", "cpu", "--threads", threads)
    with pairs[0].open() as file:
        lines = [line.rstrip("\n").split("\t")[0] for line in itertools.islice(file, NUM_LINES)]
    (folder / "lines").write_text("".join(f"{line}\n" for line in lines))
    return folder / "measured.toml", run.resolve(), folder / "lines"


def measure(workers: dict[str, dict[str, Worker]], num_blocks: int) -> list[dict[str, Any]]:
    """One row for each block, measure and process; the work of a block is sized by one that is thrown away."""
    counts = {}
    for mode, kind in MODES.items():
        tried = [workers[kind][name].block(mode, 2)["cpu_seconds"] for name in NAMES]
        counts[mode] = max(1, round(2 * BLOCK_SECONDS / min(tried)))
    orders = list(itertools.permutations(NAMES))
    rows = []
    for number in range(num_blocks):
        for mode, kind in MODES.items():
            for name in orders[number % len(orders)]:
                found = workers[kind][name].block(mode, counts[mode])
                rows.append({"measure": mode, "block": number, "name": name, "count": counts[mode]} | found)
        print(f"block {number + 1} of {num_blocks}", file=sys.stderr)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By measure: B / A and A' / A over the blocks, in processor time and by the wall; blocks of equal results."""
    found: dict[str, dict[str, Any]] = {}
    for mode in dict.fromkeys(row["measure"] for row in rows):
        own = {(row["block"], row["name"]): row for row in rows if row["measure"] == mode}
        blocks = sorted({block for block, _ in own})
        results = [[own[block, name]["result"] for name in NAMES] for block in blocks]
        found[mode] = {
            "blocks": len(blocks),
            "cpu_seconds_of_a_block": round(median(own[block, "A"]["cpu_seconds"] for block in blocks), 3),
            "equal_results": sum(a == b for a, b, _ in results),
        }
        for key in ("cpu_seconds", "seconds"):
            ratios = {name: [own[block, name][key] / own[block, "A"][key] for block in blocks] for name in ("B", "A'")}
            found[mode][key] = {name: spread(values) for name, values in ratios.items()}
    return found


def spread(ratios: list[float]) -> dict[str, float]:
    """Of ratios: their median, and how far they lie from 1: half of them at most, nine of ten at most, all at most."""
    far = sorted(abs(ratio - 1) for ratio in ratios)
    most = {"half_within": median(far), "nine_of_ten_within": far[-(-9 * len(far) // 10) - 1], "all_within": far[-1]}
    return {"median": median(ratios)} | most


def table(summary: dict[str, dict[str, Any]]) -> str:
    heads = ("CPU s", "B / A", "A' / A", "half in", "9 of 10", "all in", "wall B/A")
    lines = [f"{'':10}" + "".join(f"{head:>9}" for head in heads) + "  same results"]
    for mode, row in summary.items():
        b, again = row["cpu_seconds"]["B"], row["cpu_seconds"]["A'"]
        within = "".join(f"{100 * again[key]:>8.2f}%" for key in ("half_within", "nine_of_ten_within", "all_within"))
        lines.append(
            f"{mode:10}{row['cpu_seconds_of_a_block']:>9.2f}{b['median']:>9.4f}{again['median']:>9.4f}{within}"
            f"{row['seconds']['B']['median']:>9.4f}  {row['equal_results']} of {row['blocks']}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares two versions of this project in processor time.")
    parser.add_argument("a", help="a checkout or a revision: what the other is compared with")
    parser.add_argument("b", help="a checkout or a revision")
    parser.add_argument("--pairs", type=Path, nargs="+", default=[], help="a .tsv, or two files (default: dates)")
    parser.add_argument("--run", type=Path, help="whose model answers (default: one that A trains for 200 steps)")
    parser.add_argument("--blocks", type=int, default=12, help="of each measure; below nine, chance has much to say")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        a, b = (source_of(getattr(arguments, name), folder / name) for name in ("a", "b"))
        config, run, lines = prepare(arguments.pairs, arguments.run, a, arguments.threads, folder)
        words = {"train": (folder, config), "predict": (run, lines)}
        workers: dict[str, dict[str, Worker]] = {kind: {} for kind in words}
        try:
            for kind, name in itertools.product(words, NAMES):  # one after another: they would disturb each other
                worker = Worker(b if name == "B" else a, kind, *words[kind], threads=arguments.threads)
                workers[kind][name] = worker
                worker.wait_until_ready()
            rows = measure(workers, arguments.blocks)
        finally:
            for worker in itertools.chain(*(group.values() for group in workers.values())):
                worker.stop()
    summary = summarise(rows)
    if arguments.json:
        facts = {"a": arguments.a, "b": arguments.b, "threads": arguments.threads}
        print(json.dumps(facts | {"measures": summary, "rows": rows}, indent=1))
    else:
        print(table(summary))


if __name__ == "__main__":
    main()
