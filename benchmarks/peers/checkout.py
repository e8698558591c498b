"""A checkout of this project at work, for compare_checkouts.py: PYTHONPATH names its src.

    checkout.py train THREADS FOLDER CONFIG    # a block is so many logged rows of one training run
    checkout.py predict THREADS RUN LINES      # a block is so many times all answers, greedy or by beam search

It hears `MODE COUNT` and answers with a JSON object. It uses what every version has, wherever its modules lie: the
command, `transduce.load` and `predict`. A training run is one run of the command from its first block to its last; it
waits between blocks, in the write of a row to standard error.
"""

import dataclasses
import io
import json
import os
import runpy
import sys
import time
from hashlib import sha256
from pathlib import Path

import torch

import transduce

BEAM_SIZES = {"greedy": 1, "beam": 5}
hears, answers = sys.stdin, sys.stdout


def next_order() -> tuple[str, int]:
    """Waits for the next block; at the end of what it hears, the process ends."""
    line = hears.readline()
    if not line:
        os._exit(0)  # from within a training step
    mode, count = line.split()
    return mode, int(count)


def answer(row: dict[str, object]) -> None:
    print(json.dumps(row), file=answers, flush=True)


class Rows(io.TextIOBase):
    """The standard error of a training run: gives up each row only when its block has begun."""

    def __init__(self) -> None:
        self.unfinished, self.left = "", 0

    def write(self, text: str) -> int:
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        for line in lines:
            if line.startswith("step ") and "tokens/s" in line:
                self._end_row(line)
            else:
                print(line, file=sys.__stderr__, flush=True)
        return len(text)

    def _end_row(self, line: str) -> None:
        self.left -= 1
        if self.left > 0:
            return
        if self.left == 0:
            cpu, seconds = time.process_time() - self.cpu, time.perf_counter() - self.started
            answer({"cpu_seconds": cpu, "seconds": seconds, "result": line.rpartition("  ")[0]})
        else:
            answer({"src": str(Path(transduce.__file__).parent.parent)})  # the first row: all is warm
        self.left = next_order()[1]
        self.cpu, self.started = time.process_time(), time.perf_counter()


def train(threads: str, folder: str, config: str) -> None:
    sys.argv = ["transduce", "train", config, "--run-dir", f"{folder}/run-{os.getpid()}", "--device", "cpu"]
    sys.argv += ["--threads", threads, "--processes", "1"]
    sys.stderr = Rows()
    runpy.run_module("transduce", run_name="__main__", alter_sys=True)


def predict(threads: str, run: str, lines: str) -> None:
    torch.set_num_threads(int(threads))
    predictor = transduce.load(run, device="cpu")
    sources = Path(lines).read_text().split("\n")[:-1]
    predictor.predict(sources[:8])
    answer({"src": str(Path(transduce.__file__).parent.parent)})
    while True:
        mode, count = next_order()
        predictor.decoding = dataclasses.replace(predictor.decoding, beam_size=BEAM_SIZES[mode])
        cpu, started = time.process_time(), time.perf_counter()
        for _ in range(count):
            found = predictor.predict(sources)
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
        answer({"cpu_seconds": cpu, "seconds": seconds, "result": sha256("\n".join(found).encode()).hexdigest()})


if __name__ == "__main__":
    {"train": train, "predict": predict}[sys.argv[1]](*sys.argv[2:])
