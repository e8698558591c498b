"""Ours: the steps of the real trainer. PROCESSES processes share each planned batch and exchange gradients."""

import itertools
import os
import socket
import subprocess
import sys
from typing import Any, ClassVar

import gate as peers
import torch

from transduce import __version__
from transduce.cli.benchmark.training import MODELS
from transduce.data.batches import EncodedPairs
from transduce.devices.cpu import speed_up_cpu
from transduce.model import Transformer
from transduce.model.config import VocabularySizes
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.distributed import Process, joined
from transduce.training.step import TrainStep


def main(num_processes: int) -> None:
    speed_up_cpu()  # as the command does
    with joined(torch.device("cpu")) as process:
        gate, work = peers.begin(f"transduce {__version__}") if process.is_main else (Silent(), peers.work())
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
        update, pairs = build_update(work, process), EncodedPairs(work.src, work.tgt)
        gate.facts = {"version": __version__, "parameters": peers.count_parameters(update.model)}
        for step in itertools.count(1):
            # The first process hears the driver; the others hear from it which batch is next.
            position, threads = process.from_main((gate.position, torch.get_num_threads()))
            torch.set_num_threads(threads)
            rows = work.plan[position % len(work.plan)]
            update(pairs, [rows], step)
            gate.tick(sum(len(work.tgt[row]) for row in rows))


class Silent:
    """Stands where the gate does in the other processes."""

    position = 0
    facts: ClassVar[dict[str, Any]] = {}

    def tick(self, _num_tokens: int) -> None:
        return


def build_update(work: peers.Work, process: Process) -> TrainStep:
    size, num_target_ids = work.facts["vocabulary"], work.facts["target_ids"]
    vocabulary = VocabularySizes(source=size, target=size, num_target_ids=num_target_ids, is_joint=True)
    model = Transformer(MODELS["tiny"], vocabulary)
    return TrainStep(model, config=TrainingConfig(steps=100_000), optim=OptimConfig(), process=process)


def spawn(num_processes: int) -> int:
    """This script again as several processes, the first of which hears the driver."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    children = []
    for rank in range(num_processes):
        environment = os.environ | {name: str(value) for name, value in (shared | {"RANK": rank}).items()}
        stdin = None if rank == 0 else subprocess.DEVNULL
        children.append(subprocess.Popen([sys.executable, *sys.argv], env=environment, stdin=stdin))
    children[0].wait()
    for child in children:
        child.kill()  # they wait for the first one, in vain
    return children[0].returncode


if __name__ == "__main__":
    processes = int(sys.argv[2])
    if processes > 1 and "RANK" not in os.environ:
        sys.exit(spawn(processes))
    main(processes)
