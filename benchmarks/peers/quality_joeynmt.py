"""JoeyNMT's own trainer and `translate`, for quality.py; hooked where a step begins."""

import contextlib
import io
import sys
from pathlib import Path

import joeynmt.training
import minutes
import torch
from joeynmt.__main__ import main
from joeynmt_settings import write_settings


class TimeIsOverError(Exception):
    pass


def config(folder: Path, batch_tokens: int, **testing: object) -> Path:
    return write_settings(
        folder / "joeynmt",
        folder / "work",
        layer_norm="pre",
        dropout=minutes.DROPOUT,
        testing={"beam_alpha": 1.0, "batch_size": 50, "max_output_length": 60, **testing},
        # The clock's rate takes the place of the schedule's before every step.
        training={"clip_grad_norm": minutes.MAX_GRAD_NORM, "batch_size": batch_tokens},
    )


def train(folder: Path, num_minutes: float, rate: float, batch_tokens: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    own_step = joeynmt.training.TrainManager._train_step
    clock: minutes.Clock | None = None

    def step(self, batch):
        nonlocal clock
        clock = clock or minutes.Clock(folder / "joeynmt", num_minutes, rate)
        # The weights are those after the step before this one.
        if clock.tick(lambda path: torch.save({"model_state": self.model.state_dict()}, path)):
            raise TimeIsOverError
        for group in self.optimizer.param_groups:
            group["lr"] = clock.learning_rate
        return own_step(self, batch)

    joeynmt.training.TrainManager._train_step = step
    sys.argv = ["joeynmt", "train", str(config(folder, batch_tokens, beam_size=1)), "--skip-test"]
    with contextlib.suppress(TimeIsOverError):
        main()


def answer(folder: Path, snapshot: Path, lines: list[str], beam_size: int) -> list[str]:
    sys.argv = ["joeynmt", "translate", str(config(folder, 2048, beam_size=beam_size, load_model=str(snapshot)))]
    sys.stdin = io.StringIO("".join(f"{line}\n" for line in lines))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main()
    return printed.getvalue().split("\n")[-len(lines) - 1 : -1]


minutes.main(train, answer)
