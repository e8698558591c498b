"""Measures how fast this project and its rivals answer with the same weights, in turn, from text to text:

    benchmarks/decode.py FOLDER --run RUN [--rounds R] [--modes greedy/all,...] [-o FILE] [names...]

RUN is exported into FOLDER/decode for the rivals. Every peer is one process that lives all the time; in each round each
of them, in random order, answers the lines while the others wait. FOLDER is made by setup.sh. Run it with the project's
own environment; TRANSDUCE_DATA names a folder that has Multi30k. benchmarks/README.md says what the results hold.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import sacrebleu
from prepare_work import read_split
from workers import cpu_seconds_of, in_lines, peak_memory_of, tree

from transduce.cli.benchmark import usage
from transduce.data.pairs import Pairs
from transduce.devices import machine
from transduce.export import Lines, export_run
from transduce.runs.run import load

HERE = Path(__file__).parent
OURS = "transduce"
MODES = ["greedy/all", "beam5/all", "greedy/64", "beam5/64", "greedy/1", "beam5/1"]
PEERS = {
    OURS: ("", "transduce_decoder", "run"),
    "transduce-int8": ("", "transduce_decoder", "run int8"),
    "ctranslate2": ("decoding", "ctranslate2_decoder", "float32"),
    "ctranslate2-int8": ("decoding", "ctranslate2_decoder", "int8"),
    "huggingface": ("decoding", "huggingface_decoder", ""),
}
EXPORTS = {
    "ctranslate2-float32": ("ctranslate2", False),
    "ctranslate2-int8": ("ctranslate2", True),
    "huggingface": ("huggingface", False),
}
PAUSE_SECONDS = 0.5


class Worker:
    """A peer at work; CPU time and memory are those of its process, seen from outside."""

    def __init__(self, name: str, folder: Path, run: Path) -> None:
        environment, script, argument = PEERS[name]
        python = folder / environment / "bin/python" if environment else Path(sys.executable)
        words = [
            python,
            HERE / "peers" / f"{script}.py",
            folder,
            *(run if word == "run" else word for word in argument.split()),
        ]
        self.name, self.log = name, folder / f"decode-{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.facts = self._reply()

    def block(self, mode: str) -> dict[str, Any]:
        cpu, (busy, stolen) = self._cpu_seconds(), usage.cpu_seconds() or (0.0, 0.0)
        found = self.ask(f"run {mode.replace('/', ' ')}")
        cpu, (busy_now, stolen_now) = self._cpu_seconds() - cpu, usage.cpu_seconds() or (0.0, 0.0)
        return (
            {"entry": self.name, "mode": mode}
            | found
            | {
                "cpu_seconds": round(cpu, 2),
                "others_seconds": round(max(0.0, busy_now - busy - cpu), 2),
                "stolen_seconds": round(stolen_now - stolen, 2),
                "peak_memory_mib": round(sum(map(peak_memory_of, tree(self.process.pid)))),
            }
        )

    def ask(self, words: str) -> Any:
        assert self.process.stdin
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self._reply()

    def _cpu_seconds(self) -> float:
        return sum(map(cpu_seconds_of, tree(self.process.pid)))

    def _reply(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-1500:]}")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how fast we and the rivals answer, in turn.")
    parser.add_argument("folder", type=Path, help="made by setup.sh")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--run", type=Path, required=True, help="whose weights all answer with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", default=",".join(MODES), help=f"some of {', '.join(MODES)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/decode.json")
    arguments = parser.parse_intermixed_args()
    if unknown := {*arguments.names} - {*PEERS} | {*arguments.modes.split(",")} - {*MODES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    folder, run, modes = arguments.folder.resolve(), arguments.run.resolve(), arguments.modes.split(",")
    pairs = read_split("multi30k-en-de", "test2016")
    model = prepare(folder / "decode", run, pairs)
    workers, failed = start(arguments.names or list(PEERS), folder, run)
    if not workers:
        parser.exit(1, f"none could be measured: {failed}\n")
    blocks = measure(workers, modes, arguments.rounds)
    result = {
        "measured": datetime.now(UTC).date().isoformat(),
        "commit": machine.commit(),
        "machine": {"cpu": machine.cpu_model(), "cores": machine.num_cores()},
        "rounds": arguments.rounds,
        "model": model,
        "peers": {worker.name: worker.facts | quality(worker, workers, modes, pairs.tgt) for worker in workers},
        "failed": failed,
        "entries": summarise(blocks),
        "blocks": blocks,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(in_lines(result))
    for name, entry in result["entries"].items():
        print(f"{name:28}", entry)


def prepare(folder: Path, run: Path, pairs: Pairs) -> dict[str, Any]:
    """Lines to answer and the model in each format, made again if they are of other weights; what the model is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lines.txt").write_text("".join(f"{line}\n" for line in pairs.src))
    predictor = load(run, device="cpu")
    digest = predictor.model_sha256
    for name, (format, int8) in EXPORTS.items():
        output = folder / name
        if output.exists() and json.loads((output / "certificate.json").read_text())["model_sha256"] == digest:
            continue
        shutil.rmtree(output, ignore_errors=True)  # of another model
        lines = Lines(sources=pairs.src[:20], origin="test2016")
        export_run(predictor, output, format=format, int8=int8, lines=lines, model_sha256=digest, report=print)
    config = predictor.model.config
    return {
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "d_model": config.d_model,
        "norm_first": config.norm_first,
        "vocabulary": predictor.tokenizer.target_vocab_size,
        "target_ids": predictor.tokenizer.num_target_ids,
        "data": "multi30k-en-de, test2016",
        "lines": len(pairs),
    }


def start(names: list[str], folder: Path, run: Path) -> tuple[list[Worker], dict[str, str]]:
    """All workers, ready; and those that cannot be measured here, with what they said last."""
    workers, failed = [], {}
    for name in names:
        try:
            workers.append(Worker(name, folder, run))
        except (OSError, RuntimeError) as error:
            failed[name] = str(error).strip().rpartition("\n")[2]
            print(f"{name}: left out: {error}", file=sys.stderr)
    return workers, failed


def measure(workers: list[Worker], modes: list[str], rounds: int) -> list[dict[str, Any]]:
    blocks = []
    for worker in workers:
        for mode in modes:
            worker.block(mode)  # whatever is made at the first time is made now
    for number in range(rounds):
        turns = [(worker, mode) for worker in workers for mode in modes]
        random.Random(number).shuffle(turns)
        for worker, mode in turns:
            time.sleep(PAUSE_SECONDS)
            blocks.append({"round": number} | worker.block(mode))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return blocks


def quality(worker: Worker, workers: list[Worker], modes: list[str], references: list[str]) -> dict[str, Any]:
    """BLEU of its answers, and how many of them are ours, if we were measured; of the lines that it answered."""
    ours = next((other for other in workers if other.name == OURS), None)
    found: dict[str, dict[str, float]] = {}
    for search in sorted({mode.split("/")[0] for mode in modes if mode.endswith("/all")}):
        answers = worker.ask(f"answers {search}")
        found[search] = {"bleu": round(sacrebleu.corpus_bleu(answers, [references[: len(answers)]]).score, 2)}
        if ours:
            own = ours.ask(f"answers {search}")[: len(answers)]
            found[search]["equal_to_ours"] = sum(a == b for a, b in zip(answers, own, strict=True))
    return {"quality": found}


def summarise(blocks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By mode and peer: speeds as median, least and most; and as the median of the ratios to ours, round by round."""
    entries: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        speeds = {}
        for name in PEERS:
            own = [block for block in blocks if (block["mode"], block["entry"]) == (mode, name)]
            if not own:
                continue
            speeds[name] = [block["tokens"] / block["seconds"] for block in own]
            entry = {
                "tokens_per_second": spread(speeds[name]),
                "sentences_per_second": spread([block["lines"] / block["seconds"] for block in own]),
                "tokens_per_cpu_second": spread([block["tokens"] / max(block["cpu_seconds"], 0.01) for block in own]),
                "peak_memory_mib": max(block["peak_memory_mib"] for block in own),
            }
            if OURS in speeds:
                ratios = [value / best for value, best in zip(speeds[name], speeds[OURS], strict=True)]
                entry["to_ours"] = round(median(ratios), 3)
            if mode.endswith("/1"):
                latencies = sorted(value for block in own for value in block["latencies_ms"])
                entry["latency_ms"] = {
                    f"p{part}": latencies[-(-len(latencies) * part // 100) - 1] for part in (50, 90, 99)
                }
            entries[f"{mode} {name}"] = entry
    return entries


def spread(values: list[float]) -> list[float]:
    return [round(pick(values), 1) for pick in (median, min, max)]


if __name__ == "__main__":
    main()
