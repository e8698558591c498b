"""Training loop: steps, logging, validation, checkpoints, and an exact resumption from them."""

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from transduce.data.batches import EncodedPairs, StepOrder, TrainingPairs, bucket_batches
from transduce.data.packed_batches import pack_batches
from transduce.devices.cpu import speed_up_cpu
from transduce.errors import DivergedError, OutOfMemoryError, is_out_of_memory
from transduce.model.transformer import Transformer
from transduce.model.weights import load_weights, with_prefix
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.distributed import Process
from transduce.training.optim import slot_names
from transduce.training.signals import Stopped, StopSignals
from transduce.training.state import StepResult, TrainerState, Validation
from transduce.training.step import StepOutcome, TrainStep

Observer = Callable[[dict[str, Any]], object]  # called with every logged row

_MOST_STEPS_AHEAD = 100  # steps given to a GPU before their numbers are read


class Store(Protocol):
    """Storage that a trainer writes to: a run folder, or a substitute in memory."""

    def write_checkpoint(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
    ) -> None:
        """Write a checkpoint to resume from at `step`; keep the newest `keep`."""

    def write_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Replace the weights of the model."""

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a logged row."""

    def metrics(self) -> list[dict[str, Any]]:
        """All logged rows."""


@dataclass(eq=False, repr=False)
class Trainer:
    """Training of `model` on `pairs`, with validation; the best weights and checkpoints go to `store`.

    `validate` takes a model and knows the task; the trainer only compares its results. `observers` are called with
    every logged row. `deadline`, in seconds of training and validation by `clock`, ends a run with `training.minutes`
    whose steps turned out slower than planned.
    """

    model: Transformer
    pairs: TrainingPairs  # then the open window of them, which rows are indices into
    _: KW_ONLY
    config: TrainingConfig
    optim: OptimConfig
    store: Store
    validate: Callable[[nn.Module], Validation] | None = None  # on rank 0, for all
    observers: Sequence[Observer] = ()
    watch: Callable[[int], object] = lambda _step: None  # called after each step
    process: Process = Process()
    deadline: float = math.inf
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self.device = self.model.output_weight.device
        self.state = TrainerState()
        self.update = TrainStep(self.model, config=self.config, optim=self.optim, process=self.process)
        self.signals = StopSignals()
        self._order = step_order(self.pairs, self.config)
        self._unread: list[StepOutcome] = []  # of steps that were made but not counted yet
        self._last_result: StepResult
        self._are_told_to_stop = self._are_told_to_save = False

    @property
    def best_model(self) -> nn.Module:
        """The model that is validated and kept: the moving average if there is one."""
        return self.update.average or self.model

    @property
    def is_finished(self) -> bool:
        """Whether the steps, the patience or the time are used up."""
        config = self.config
        return self.state.is_finished(steps=config.steps, patience=config.patience, minutes=config.minutes)

    @property
    def num_steps(self) -> int:
        """The steps of the whole run: those planned, or as many as fit into its time."""
        return self.state.num_steps(steps=self.config.steps, minutes=self.config.minutes)

    def run(self) -> TrainerState:
        """Train to the end, from wherever the state stands. Raises Stopped at a signal to stop, after saving."""
        speed_up_cpu()
        with self.signals, torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            try:
                self._run()
            except Stopped as stopped:
                self._save()
                raise Stopped(
                    stopped.signum, f"Stopped at step {self.state.step:,} of {self.num_steps:,}; everything is saved."
                ) from None
        return self.state

    def _run(self) -> None:
        if self.state.step == 0:
            self._save()  # from here on, a run without a checkpoint is one whose checkpoints were removed
        if self._validate_if_due():  # the last session may have ended between a step and its validation
            self._save()
        while not self.is_finished:
            self._next_step()
            if self._runs_ahead():
                continue
            self._count_outcomes()
            self._agree()
            if self._is_due(self.config.log_every) or self.is_finished:
                self._observe_row(self.state.take_row(self._last_result))
            validated = self._validate_if_due()
            if validated or self._are_told_to_save or self._is_due(self.config.save_every):
                self._save()
        self.process.decide(self.signals.check)  # one that came since the last step

    def train_step(self, micro_batches: list[np.ndarray], step: int) -> StepOutcome:
        """One update from the rows in `micro_batches`: see `TrainStep`."""
        # Several processes must agree when to stop: see _agree.
        check = self.signals.check if self.process.world_size == 1 else lambda: None
        assert isinstance(self.pairs, EncodedPairs)
        return self.update(self.pairs, micro_batches, step, check, num_steps=self.num_steps)

    def _next_step(self) -> None:
        if self._are_told_to_stop:
            raise Stopped(self.signals.received or signal.SIGTERM)
        state = self.state
        started = self.clock()
        self._load_plan()
        if state.position >= len(self._order.steps):
            state.end_window(self._order.corpus.num_windows)
            self._load_plan()
        self._unread.append(self.train_step(self._order.steps[state.position], state.step + 1))
        state.advance(self.clock() - started)
        self.watch(state.step)

    def _runs_ahead(self) -> bool:
        """True if the numbers of the last step are not needed yet: a GPU works on it while the next is prepared."""
        config = self.config
        most = _MOST_STEPS_AHEAD if self.process.world_size == 1 else 1  # several processes agree after every step
        is_needed = any(map(self._is_due, (config.log_every, config.validate_every, config.save_every)))
        return self.device.type != "cpu" and len(self._unread) < most and not is_needed and not self.is_finished

    def _count_outcomes(self) -> None:
        """Wait for the steps made so far and count them. Raises DivergedError if the numbers of one are not finite."""
        started = self.clock()
        for outcome in self._unread:
            self._last_result = outcome.read()
            self.state.count(self._last_result)
        self._unread = []
        self.state.seconds += self.clock() - started

    def _load_plan(self) -> None:
        self._order.open(self.state.epoch, self.state.window)
        self.pairs, self.state.plan_of = self._order.pairs, self._order.depends_on

    def _agree(self) -> None:
        """Agree with all processes whether the deadline has passed, and whether any of them received a signal.

        All must stop before the same step: in a step, each waits for the gradients of the others.
        """
        is_over = self.state.seconds + self.state.validation_seconds > self.deadline
        wishes = [self.signals.received is not None, self.signals.wants_save, is_over]
        sums = torch.tensor(wishes, dtype=torch.float32, device=self.device)
        self.process.sum_([sums])
        self._are_told_to_stop, self._are_told_to_save, is_over = sums.bool().tolist()
        if is_over:
            self.state.minutes_over = self.config.minutes

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def _validate_if_due(self) -> bool:
        """Validate at every `validate_every`-th step and at the end; keep the weights if none were better so far."""
        state, config = self.state, self.config
        due = (self._is_due(config.validate_every) and state.step > 0) or self.is_finished
        if not due or state.validated_step == state.step:
            return False
        started = self.clock()
        validation = self.process.decide(lambda: self.validate and self._validation(self.validate))
        seconds = self.clock() - started
        state.validation_seconds += seconds  # on every process, as any may be the one that saves
        if config.minutes:
            every = config.validate_every or config.steps
            steps = state.steps_within(self.deadline, config.steps, validation=seconds, every=every)
            state.steps_in_time, state.time_of_steps = self.process.from_main(steps), config.minutes
        if validation is None:
            self._keep_model({})
            state.best_step = state.validated_step = state.step
            return True
        judged = replace(state)
        if judged.judge(validation):
            self._keep_model(validation.metrics)
        self.state = judged  # only now: whoever saves must not name weights that nobody has written
        row = {"kind": "validation", "step": state.step, "seconds": round(state.seconds, 2)} | validation.metrics
        self._observe_row(row, samples=validation.samples, may_be_logged=True)
        return True

    def _validation(self, validate: Callable[[nn.Module], Validation]) -> Validation:
        try:
            with self.signals.at_once():
                validation = validate(self.best_model)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"step {self.state.step}: out of memory in a validation. Lower validation.max_pairs or beam_size."
            ) from error
        if not math.isfinite(validation.score):
            raise DivergedError(
                f"step {self.state.step}: the validation score is {validation.score}, which is not finite. Lower "
                "optim.learning_rate, or set optim.max_grad_norm = 1; the checkpoints before this step are kept."
            )
        return validation

    def _keep_model(self, metrics: dict[str, float]) -> None:
        facts = {"step": self.state.step, "averaged": self.update.average is not None, "validation": metrics}
        self.process.decide(lambda: self.store.write_model(dict(self.best_model.named_parameters()), facts))

    def _save(self) -> None:
        """Write a checkpoint from which training resumes exactly as if it had not stopped."""
        self.signals.wants_save = False
        self._count_outcomes()
        tensors = {f"model.{name}": p for name, p in self.model.named_parameters()}
        if self.update.average is not None:
            tensors |= {f"ema.{name}": p for name, p in self.update.average.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for slot, value in self.update.optimizer_of[parameter].state[parameter].items():
                tensors[f"optimizer.{slot}.{name}"] = value
        keep = self.config.keep_checkpoints
        self.process.decide(
            lambda: self.store.write_checkpoint(self.state.step, tensors, asdict(self.state), keep=keep)
        )

    def save_alone(self) -> None:
        """Save without the other processes, of which one is lost: a step counts wholly or not at all."""
        self.process = Process()
        self._save()

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore what `_save` wrote. The rest of an epoch is skipped if its batches have changed since.

        Raises ValueError for tensors of another model.
        """
        self.state = TrainerState.from_dict(state)
        self.state.leave_plan(self._order.depends_on)
        load_weights(self.model, with_prefix(tensors, "model."))
        if self.update.average is not None:  # if it was switched on since, it starts from the current weights
            load_weights(self.update.average, with_prefix(tensors, "ema.") or dict(self.model.named_parameters()))
        for name, parameter in self.model.named_parameters():
            optimizer = self.update.optimizer_of[parameter]
            for slot in slot_names(optimizer):
                saved = tensors.get(f"optimizer.{slot}.{name}")
                if saved is not None:
                    if saved.shape not in ((), parameter.shape):
                        raise ValueError(f"{slot} of {name} belongs to another model")
                    # Including Adam's step count: fused Adam expects it as a float32 tensor beside its parameter.
                    optimizer.state[parameter][slot] = saved.to(parameter.device, copy=True)

    def _observe_row(self, row: dict[str, Any], *, samples: Sequence[Any] = (), may_be_logged: bool = False) -> None:
        """Log a row and call the observers, who get the samples of a validation as well.

        With `may_be_logged`, a row is not repeated if a session wrote it and was killed before its next checkpoint.
        """

        def observe() -> None:
            key = (row["kind"], row["step"])
            if not (may_be_logged and key in [(old["kind"], old["step"]) for old in self.store.metrics()[-1:]]):
                self.store.append_metrics(row)
            for observer in self.observers:
                observer(row | ({"samples": samples} if samples else {}))

        self.process.decide(observe)  # an observer may stop the training: then all stop here


def step_order(pairs: TrainingPairs, config: TrainingConfig) -> StepOrder:
    """Order of the training steps of a run on `pairs`."""
    return StepOrder(
        pairs,
        batch_tokens=config.batch_tokens,
        micro_batches=config.micro_batches,
        seed=config.seed,
        cut=pack_batches if config.batching == "packed" else bucket_batches,
    )
