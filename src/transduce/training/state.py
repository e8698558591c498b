"""State of a training run: its counters and best validation, all that a checkpoint holds beside tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

_SHARE_PLANNED = 0.98  # of the time left, when the steps are planned anew


class StepResult(NamedTuple):
    """Numbers of one optimizer step. Loss in nats per target token; `grad_norm` before clipping."""

    loss: float
    target_tokens: int
    grad_norm: float
    learning_rate: float


class Validation(NamedTuple):
    """Result of a validation, and the one number to compare it by: the larger the better."""

    metrics: dict[str, float]
    score: float
    measure: str = ""  # the name of `score`: only equal measures are compared
    tie: float = 0.0  # which decides between equal scores
    samples: tuple[tuple[str, str, str], ...] = ()  # source, output, reference of some pairs


@dataclass
class TrainerState:
    """Counters and best validation of a run.

    With the seed they are the random state as well: every random number is a function of both.
    """

    step: int = 0
    epoch: int = 0
    window: int = 0  # windows of the corpus that are done in this epoch
    position: int = 0  # steps done in this window
    plan_of: list[int | str] = field(default_factory=list)  # what the batches depend on; `position` counts in these
    seconds: float = 0.0  # spent in training steps, over all sessions
    validation_seconds: float = 0.0
    target_tokens: int = 0
    unlogged_loss: float = 0.0  # since the last logged row, summed over the target tokens
    unlogged_tokens: int = 0
    logged_seconds: float = 0.0
    validated_step: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    best_measure: str = ""
    best_tie: float = 0.0
    num_bad_validations: int = 0
    minutes_over: float | None = None  # the setting `minutes` at which the clock ended the run
    steps_in_time: int = 0  # of the whole run, as many as turned out to fit into its time,
    time_of_steps: float = 0.0  # which is this setting `minutes`

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainerState":
        """The state in a checkpoint, of this version or an older one. Raises ValueError for impossible values."""
        # The names of before, in older files.
        values = {"window": values.get("shard", 0), "best_score": values.get("best_goodness", -math.inf), **values}
        state = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        for name, default in vars(cls()).items():
            value: Any = getattr(state, name)
            kind = type(default) if isinstance(default, int | str | list) else (int, float)
            is_count = isinstance(value, int | float) and not name.startswith("best_")
            if not (isinstance(value, kind) or value == default) or (is_count and not 0 <= value < 2**63):
                raise ValueError(f"its state has no valid {name}")
        return state

    def num_steps(self, *, steps: int, minutes: float) -> int:
        """The steps of the whole run: `steps`, or as many as turned out to fit into `minutes`."""
        return self.steps_in_time if self.time_of_steps == minutes > 0 else steps

    def steps_within(self, deadline: float, steps: int, *, validation: float, every: int) -> int:
        """`steps`, or fewer where they would take more than `deadline` seconds, at the mean speed of steps so far.

        So the schedule comes to its end, and the learning rate to zero, before the clock ends the run. A `validation`
        takes so many seconds, after `every` so many steps and at the end.
        """
        left = deadline - self.seconds - self.validation_seconds - validation
        steps_left = _SHARE_PLANNED * left / (self.seconds / max(1, self.step) + validation / every)
        return min(steps, self.step + max(0, int(steps_left)))

    def is_finished(self, *, steps: int, patience: int, minutes: float) -> bool:
        """Whether training has reached one of these limits; resumed with higher ones, it goes on."""
        is_out_of_patience = 0 < patience <= self.num_bad_validations
        is_out_of_time = self.minutes_over is not None and 0 < minutes <= self.minutes_over
        is_done = self.step >= self.num_steps(steps=steps, minutes=minutes)
        return is_done or is_out_of_patience or is_out_of_time

    def advance(self, seconds: float) -> None:
        """Count one step, which took `seconds`."""
        self.step += 1
        self.position += 1
        self.seconds += seconds

    def count(self, result: StepResult) -> None:
        """Add the loss and tokens of a step to the sums."""
        self.target_tokens += result.target_tokens
        self.unlogged_loss += result.loss * result.target_tokens
        self.unlogged_tokens += result.target_tokens

    def leave_plan(self, plan_of: list[int | str]) -> None:
        """Go to the next epoch if this one has begun and its batches have changed since."""
        if (self.window or self.position) and self.plan_of != plan_of:
            self.epoch, self.window, self.position = self.epoch + 1, 0, 0

    def end_window(self, num_windows: int) -> None:
        """Go to the next window of the epoch, or to the next epoch."""
        self.window, self.position = self.window + 1, 0
        if self.window >= num_windows:
            self.epoch, self.window = self.epoch + 1, 0

    def take_row(self, last: StepResult) -> dict[str, Any]:
        """Row of metrics over the steps since the previous row; `last` is the result of the latest step."""
        row = {
            "kind": "training",
            "step": self.step,
            "epoch": self.epoch,
            "seconds": round(self.seconds, 2),
            "loss": self.unlogged_loss / self.unlogged_tokens,
            "learning_rate": last.learning_rate,
            "grad_norm": last.grad_norm,
            "tokens_per_second": round(self.unlogged_tokens / (self.seconds - self.logged_seconds), 1),
        }
        self.unlogged_loss, self.unlogged_tokens, self.logged_seconds = 0.0, 0, self.seconds
        return row

    def judge(self, validation: Validation) -> bool:
        """Record a validation; True if it is the best so far by its measure."""
        self.validated_step = self.step
        new, best = (validation.score, validation.tie), (self.best_score, self.best_tie)
        is_best = new > best or validation.measure != self.best_measure
        if is_best:
            (self.best_score, self.best_tie), self.best_measure = new, validation.measure
            self.best_step, self.num_bad_validations = self.step, 0
        else:
            self.num_bad_validations += 1
        return is_best
