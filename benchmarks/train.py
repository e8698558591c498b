"""Measures the training speed of this project and of its rivals on the same work, in turn:

    benchmarks/train.py FOLDER [--rounds R] [-o FILE] [names...]

Every peer is one process (or several) that lives all the time. In each round each of them, in random order, trains for
some seconds while the others wait, so all of them see the same weather of the machine. FOLDER is made by setup.sh and
prepare_work.py. Run it with the project's own environment. benchmarks/README.md says what the results hold.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from workers import cpu_seconds_of, in_lines, peak_memory_of, tree

from transduce.cli.benchmark import usage
from transduce.devices import machine

HERE = Path(__file__).parent
BLOCK_SECONDS, PAUSE_SECONDS = 4.5, 0.5
OURS = "transduce"


@dataclass(frozen=True)
class Peer:
    """A worker: the environment that it runs in, its script, and the threads that it is measured with."""

    environment: str
    script: str
    processes: int = 1
    threads: tuple[int, ...] = (1, 2)

    def entry(self, name: str, threads: int) -> str:
        return f"{OURS}/{self.processes}x{threads}" if name.startswith(OURS) else f"{name}/{threads}"


PEERS = {
    "transduce": Peer("", "transduce_trainer"),
    "transduce-2": Peer("", "transduce_trainer", processes=2, threads=(1,)),
    "hf-loop": Peer("loops", "hf_loop"),
    "hf-trainer": Peer("loops", "hf_trainer"),
    "eole": Peer("eole", "eole_trainer"),
    "joeynmt": Peer("joeynmt", "joeynmt_trainer"),
    "nn-transformer": Peer("loops", "nn_transformer"),
    "x-transformers": Peer("loops", "x_transformers_loop"),
}


class Worker:
    """A peer at work; CPU time and memory are those of its whole tree of processes, seen from outside."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.peer = name, PEERS[name]
        self.log = folder / f"{name}.log"
        python = folder / self.peer.environment / "bin/python" if self.peer.environment else Path(sys.executable)
        words = [python, HERE / "peers" / f"{self.peer.script}.py", folder]
        if name.startswith(OURS):
            words.append(self.peer.processes)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["OMP_NUM_THREADS"] = str(max(self.peer.threads))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.facts = self._answer()
        self.steps: dict[int, int] = {}  # of a block, by threads

    def calibrate(self, first: int) -> None:
        """Chooses how many steps a block has, from the faster of two short ones: the first may find cold caches."""
        for threads in self.peer.threads:
            seconds = min(self.block(2, threads, first)["seconds"] for _ in range(2)) / 2
            self.steps[threads] = max(1, round(BLOCK_SECONDS / seconds))

    def block(self, steps: int, threads: int, first: int) -> dict[str, Any]:
        busy, stolen = usage.cpu_seconds() or (0.0, 0.0)
        cpu, started = self.cpu_seconds(), time.perf_counter()
        assert self.process.stdin
        self.process.stdin.write(f"run {steps} {threads} {first}\n")
        self.process.stdin.flush()
        tokens = self._answer()["tokens"]
        seconds, cpu = time.perf_counter() - started, self.cpu_seconds() - cpu
        busy_now, stolen_now = usage.cpu_seconds() or (0.0, 0.0)
        return {
            "entry": self.peer.entry(self.name, threads),
            "steps": steps,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu, 2),
            "others_seconds": round(max(0.0, busy_now - busy - cpu), 2),
            "stolen_seconds": round(stolen_now - stolen, 2),
            "peak_memory_mib": round(sum(map(peak_memory_of, tree(self.process.pid)))),
        }

    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds_of, tree(self.process.pid)))

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()  # the end of what it hears is the end of its work
        self.process.wait(timeout=30)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-1500:]}")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures training speed, ours and the rivals', in turn.")
    parser.add_argument("folder", type=Path, help="made by setup.sh and prepare_work.py")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/train.json")
    arguments = parser.parse_intermixed_args()
    if unknown := set(arguments.names) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    folder = arguments.folder.resolve()
    workers, failed = start(arguments.names or list(PEERS), folder)
    blocks = measure(workers, arguments.rounds)
    for worker in workers:
        worker.stop()
    result = {
        "measured": datetime.now(UTC).date().isoformat(),
        "commit": machine.commit(),
        "machine": {"cpu": machine.cpu_model(), "cores": machine.num_cores()},
        "work": json.loads((folder / "work/work.json").read_text()),
        "rounds": arguments.rounds,
        "peers": {worker.name: worker.facts for worker in workers},
        "failed": failed,
        "entries": summarise(workers, blocks),
        "blocks": blocks,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(in_lines(result))
    for name, entry in result["entries"].items():
        print(f"{name:18}", {key: entry[key] for key in ("tokens_per_second", "tokens_per_cpu_second", "ratio")})


def start(names: list[str], folder: Path) -> tuple[list[Worker], dict[str, str]]:
    """All workers, ready and calibrated; and those that cannot be measured here, with what they said last."""
    workers, failed = [], {}
    for name in names:
        try:
            worker = Worker(name, folder)
            worker.calibrate(first=0)
            workers.append(worker)
            told = ", ".join(f"{steps} steps a block on {threads} threads" for threads, steps in worker.steps.items())
        except (OSError, RuntimeError) as error:
            failed[name] = str(error).strip().rpartition("\n")[2]
            told = f"left out: {error}"
        print(f"{name}: {told}", file=sys.stderr)
    return workers, failed


def measure(workers: list[Worker], rounds: int) -> list[dict[str, Any]]:
    """The blocks of all rounds; in a round, all that can take planned batches begin with the same one."""
    blocks, first = [], 0
    turns = [(worker, threads) for worker in workers for threads in worker.peer.threads]
    for number in range(rounds):
        random.Random(number).shuffle(turns)
        for worker, threads in turns:
            time.sleep(PAUSE_SECONDS)
            worker.block(1, threads, first)  # so that the threads are there and awake
            block = worker.block(worker.steps[threads], threads, first)
            blocks.append({"round": number} | block)
            worker.steps[threads] = max(1, round(BLOCK_SECONDS * block["steps"] / block["seconds"]))  # of the next one
        first += max(max(worker.steps.values()) for worker in workers)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return blocks


def summarise(workers: list[Worker], blocks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By entry: speeds as median, least and most; and as the median of the ratios to our best, round by round.

    Our best is, of our entries, the one with the best median: one for tokens per second, one for those per CPU second.
    """
    columns = {"tokens_per_second": "seconds", "tokens_per_cpu_second": "cpu_seconds"}
    speeds: dict[str, dict[str, list[float]]] = {column: {} for column in columns}
    for column, denominator in columns.items():
        for block in blocks:
            speeds[column].setdefault(block["entry"], []).append(block["tokens"] / block[denominator])
    peers = {worker.peer.entry(worker.name, threads): worker.name for worker in workers for threads in worker.steps}
    entries: dict[str, dict[str, Any]] = {}
    for entry, peer in peers.items():
        own = [block for block in blocks if block["entry"] == entry]
        entries[entry] = {"peer": peer, "ratio": {}}
        for column in columns:
            values = speeds[column][entry]
            entries[entry][column] = [round(pick(values), 1) for pick in (median, min, max)]
            if ours := [found for name, found in speeds[column].items() if name.startswith(OURS)]:
                ratios = [value / best for value, best in zip(values, max(ours, key=median), strict=True)]
                entries[entry]["ratio"][column] = round(median(ratios), 3)
        entries[entry] |= {
            "tokens_per_step": round(sum(block["tokens"] for block in own) / sum(block["steps"] for block in own)),
            "peak_memory_mib": max(block["peak_memory_mib"] for block in own),
        } | {key: round(sum(block[key] for block in own), 2) for key in ("seconds", "others_seconds", "stolen_seconds")}
    return entries


if __name__ == "__main__":
    main()
