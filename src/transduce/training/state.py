"""Where a training run stands: all that it knows beside tensors, and what follows from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple


class StepResult(NamedTuple):
    """What one optimizer step saw. Loss in nats per target token; `grad_norm` before clipping."""

    loss: float
    target_tokens: int
    grad_norm: float
    learning_rate: float


class Validation(NamedTuple):
    """What a validation found, and one number to compare it by: the larger the better."""

    metrics: dict[str, float]
    goodness: float
    measure: str = ""  # what `goodness` is: numbers of different measures are not compared


@dataclass
class TrainerState:
    """All that a run knows beside tensors. The random state is in it too: every draw is a function of the step."""

    step: int = 0
    epoch: int = 0
    shard: int = 0  # how many shards of the corpus are done in this epoch
    position: int = 0  # steps done in this shard
    plan_of: list[int | str] = field(default_factory=list)  # what the batches depend on: `position` counts in those
    seconds: float = 0.0  # spent in training steps, over all sittings
    validation_seconds: float = 0.0
    target_tokens: int = 0
    unlogged_loss: float = 0.0  # since the last logged row, summed over the target tokens
    unlogged_tokens: int = 0
    logged_seconds: float = 0.0
    validated_step: int = 0
    best_step: int = 0
    best_goodness: float = -math.inf
    best_measure: str = ""
    num_bad_validations: int = 0
    minutes_over: float | None = None  # the setting `minutes` at which the clock ended the run

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainerState":
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def is_finished(self, *, steps: int, patience: int, minutes: float) -> bool:
        """By the limits as they are now: a run that is resumed with higher ones goes on."""
        is_out_of_patience = 0 < patience <= self.num_bad_validations
        is_out_of_time = self.minutes_over is not None and 0 < minutes <= self.minutes_over
        return self.step >= steps or is_out_of_patience or is_out_of_time

    def advance(self, seconds: float) -> None:
        """Goes on by one step that took so long."""
        self.step += 1
        self.position += 1
        self.seconds += seconds

    def count(self, result: StepResult) -> None:
        """Takes the numbers of a step into account."""
        self.target_tokens += result.target_tokens
        self.unlogged_loss += result.loss * result.target_tokens
        self.unlogged_tokens += result.target_tokens

    def leave_plan(self, plan_of: list[int | str]) -> None:
        """Goes on to the next epoch if the batches of this one, begun already, are others now."""
        if (self.shard or self.position) and self.plan_of != plan_of:
            self.epoch, self.shard, self.position = self.epoch + 1, 0, 0

    def end_shard(self, num_shards: int) -> None:
        """Goes on to the next shard of the epoch, or to the next epoch."""
        self.shard, self.position = self.shard + 1, 0
        if self.shard >= num_shards:
            self.epoch, self.shard = self.epoch + 1, 0

    def take_row(self, last: StepResult) -> dict[str, Any]:
        """A row on the steps since the row before it, of which `last` was the last."""
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

    def judge(self, found: Validation) -> bool:
        """Takes note of a validation; True if no earlier one of its measure was as good."""
        self.validated_step = self.step
        is_best = found.goodness > self.best_goodness or found.measure != self.best_measure
        if is_best:
            self.best_goodness, self.best_measure = found.goodness, found.measure
            self.best_step, self.num_bad_validations = self.step, 0
        else:
            self.num_bad_validations += 1
        return is_best
