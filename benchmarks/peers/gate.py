"""What every worker shares: the work, read from FOLDER/work, and obedience to the driver.

A worker makes some steps to warm up, says what it is, and waits. At `run STEPS THREADS FIRST` it makes that many steps,
from planned batch FIRST on if it can take planned batches, and answers with the number of target tokens in them.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
D_MODEL, D_FF, NUM_HEADS, NUM_LAYERS, DROPOUT = 128, 256, 4, 4, 0.3
LABEL_SMOOTHING, BETAS, EPSILON, LEARNING_RATE = 0.1, (0.9, 0.98), 1e-9, 1e-3
WARM_UP_STEPS = 3


class Gate:
    """`tick` is called after every step and returns when the next one may begin."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.facts: dict[str, Any] = {}
        self.position = 0  # of the next planned batch
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever a toolkit prints is no answer to the driver
        self._steps_left = WARM_UP_STEPS
        self._num_tokens = 0
        self._is_ready = False

    def tick(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        self._steps_left -= 1
        self.position += 1
        if self._steps_left:
            return
        if self._is_ready:
            self._say({"tokens": self._num_tokens})
        else:
            self._say({"title": self.title, "torch": torch.__version__, **self.facts})
            self._is_ready = True
        self._obey()

    def train(self, step: Callable[[np.ndarray], int], plan: list[np.ndarray]) -> None:
        """Trains for ever: `step` makes an update from a planned batch and returns its target tokens."""
        while True:
            self.tick(step(plan[self.position % len(plan)]))

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._out)

    def _obey(self) -> None:
        words = sys.stdin.readline().split()
        if not words:
            os._exit(0)  # toolkits have exit handlers that save models and draw tables
        steps, threads, first = map(int, words[1:])
        torch.set_num_threads(threads)
        self._steps_left, self._num_tokens, self.position = steps, 0, first


class Work:
    """The pairs as ids, each side with its end, and the planned batches: rows of pairs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = json.loads((folder / "work.json").read_text())
        stored = np.load(folder / "work.npz")
        self.src = np.split(stored["src"], np.cumsum(stored["src_lens"])[:-1])
        self.tgt = np.split(stored["tgt"], np.cumsum(stored["tgt_lens"])[:-1])
        self.plan = np.split(stored["plan"], np.cumsum(stored["plan_lens"])[:-1])

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor, int]:
        """Sources, targets shifted, targets, each padded on the right; and the number of target tokens."""
        src, tgt = ([side[row] for row in rows] for side in (self.src, self.tgt))
        tgt_in = [np.concatenate([[BOS_ID], ids[:-1]]) for ids in tgt]
        return _padded(src), _padded(tgt_in), _padded(tgt), sum(map(len, tgt))


def _padded(rows: list[np.ndarray]) -> Tensor:
    rectangle = np.full((len(rows), max(map(len, rows))), PAD_ID, dtype=np.int64)
    for place, ids in zip(rectangle, rows, strict=True):
        place[: len(ids)] = ids
    return torch.from_numpy(rectangle)


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def train_planned(
    gate: Gate, work: "Work", model: torch.nn.Module, logits_of: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Trains `model` for ever, one update from each planned batch; `logits_of` is given sources and shifted targets."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)

    def step(rows: np.ndarray) -> int:
        src, tgt_in, tgt_out, num_tokens = work.batch(rows)
        logits = logits_of(src, tgt_in)
        loss = F.cross_entropy(
            logits.flatten(0, 1), tgt_out.flatten(), ignore_index=PAD_ID, label_smoothing=LABEL_SMOOTHING
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return num_tokens

    gate.train(step, work.plan)


def begin(title: str) -> tuple[Gate, Work]:
    """For a script that is called with FOLDER: its gate and the work."""
    gate = Gate(title)
    torch.manual_seed(1)
    return gate, work()


def work() -> Work:
    torch.set_flush_denormal(True)  # as ours does: numbers near zero slow a CPU down and change nothing
    return Work(Path(sys.argv[1]) / "work")
