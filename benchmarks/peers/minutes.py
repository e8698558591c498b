"""What the trainers of quality.py share: the clock that ends them, the learning rate by that clock, and snapshots.

    quality_PEER.py train FOLDER MINUTES RATE BATCH_TOKENS THREADS
    quality_PEER.py answer FOLDER SNAPSHOT LINES ANSWERS BEAM_SIZE

FOLDER has the pairs as words such as t17, the pieces that ours has too. The seconds of snapshots do not count.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

SHARES = (1 / 24, 1 / 12, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)  # of the minutes, at which weights are kept
WARMUP_STEPS = 300
DROPOUT, MAX_GRAD_NORM = 0.1, 1.0
Now = Callable[[], float]


class Clock:
    """`tick` is called after every step and is true when the time is over."""

    def __init__(
        self,
        folder: Path,
        minutes: float,
        rate: float,
        *,
        now: Now = time.perf_counter,
        cpu_now: Now = time.process_time,
    ) -> None:
        self.folder, self.minutes, self.rate = folder, minutes, rate
        self.snapshots: list[dict] = []
        self.num_steps = 0
        self._now, self._cpu_now = now, cpu_now
        self.start()

    def start(self) -> None:
        """Counts from now on: what a toolkit prepared before is not training."""
        self._started, self._cpu_started = self._now(), self._cpu_now()

    @property
    def share(self) -> float:
        """Of the time that is over."""
        return min(1.0, (self._now() - self._started) / 60 / self.minutes)

    @property
    def learning_rate(self) -> float:
        """Up over the first steps, then down to zero as the time runs out: what ours has, counted in steps there."""
        return self.rate * min(1.0, (self.num_steps + 1) / WARMUP_STEPS) * max(1 - self.share, 1e-4)

    def tick(self, save: Callable[[Path], None]) -> bool:
        self.num_steps += 1
        if self.share < SHARES[len(self.snapshots)]:
            return False
        is_last = len(self.snapshots) + 1 == len(SHARES)
        begun, cpu_begun = self._now(), self._cpu_now()
        path = self.folder / f"snapshot-{len(self.snapshots)}"
        self.snapshots.append(
            {
                "path": str(path),
                "is_last": is_last,
                "step": self.num_steps,
                "seconds": round(begun - self._started, 1),
                "cpu_seconds": round(cpu_begun - self._cpu_started, 1),
            }
        )
        save(path)
        (self.folder / "snapshots.json").write_text(json.dumps(self.snapshots))
        self._started += self._now() - begun  # the clock stood still
        self._cpu_started += self._cpu_now() - cpu_begun
        return is_last


def ids_of(line: str) -> list[int]:
    return [int(word[1:]) for word in line.split()]


def main(train: Callable[..., None], answer: Callable[..., list[str]]) -> None:
    what, folder, *words = sys.argv[1:]
    if what == "train":
        minutes, rate, batch_tokens, threads = words
        train(Path(folder), float(minutes), float(rate), int(batch_tokens), int(threads))
    else:
        snapshot, lines, answers, beam_size = words
        found = answer(Path(folder), Path(snapshot), Path(lines).read_text().splitlines(), int(beam_size))
        Path(answers).write_text("".join(f"{line}\n" for line in found))
