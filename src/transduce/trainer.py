"""Training: the only code that changes weights."""

import copy
import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from transduce.checkpoint import RunFolder
from transduce.data import EncodedPairs, collate, plan_epoch
from transduce.distributed import Process
from transduce.errors import DivergedError, TransduceError
from transduce.loss import cross_entropy_sum
from transduce.model import Transformer
from transduce.optim import OptimConfig, build_optimizer, clip_gradients, learning_rate, update_average
from transduce.progress import StepResult, TrainerState, Validation
from transduce.stopping import Stopped, StopSignals
from transduce.tensor_files import load_parameters

Observe = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, on what batches, how often checked and saved."""

    steps: int = 0  # optimizer steps; 0: as many as `epochs` or `minutes` allow
    epochs: float = 0.0  # passes over the training pairs
    minutes: float = 0.0  # turned into a number of steps by measuring a few before training
    batch_tokens: int = 4096  # n pairs fit a micro-batch if n * (longest side of any) is at most this
    micro_batches: int = 1  # per optimizer step, over all processes
    label_smoothing: float = 0.1
    validate_every: int = 0  # steps; 0: ten times in the run
    save_every: int = 0  # steps between checkpoints to resume from; 0: at every validation
    keep_checkpoints: int = 5  # the newest so many stay
    log_every: int = 50  # steps between two rows of metrics.jsonl
    patience: int = 0  # stop after this many validations without a better one; 0: never
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    compile: bool = False  # torch.compile: faster steps after a minute or more of compilation
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "minutes", "validate_every", "save_every", "patience", "seed"):
            if getattr(self, name) < 0:
                raise TransduceError(f"training.{name} is {getattr(self, name)}: it must not be negative.")
        if self.seed >= 2**63:
            raise TransduceError(f"training.seed is {self.seed}: it must be below 2**63.")
        for name in ("batch_tokens", "micro_batches", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise TransduceError(f"training.{name} is {getattr(self, name)}: it must be at least 1.")
        if not 0 <= self.label_smoothing < 1:
            raise TransduceError(f"training.label_smoothing is {self.label_smoothing}: at least 0 and below 1.")
        if not (self.steps or self.epochs or self.minutes):
            raise TransduceError("how long to train? Set training.steps, training.epochs or training.minutes.")


class Trainer:
    """Trains `model` on `pairs`, validates, keeps the best weights and checkpoints in `folder`.

    `validate` takes a model and knows the task; the trainer knows only how good it says the model is. `observe`
    receives every logged row. With a `deadline` (seconds of training and validating) the clock ends a run with
    `training.minutes` that its step count did not.
    """

    def __init__(
        self,
        model: Transformer,
        pairs: EncodedPairs,
        *,
        config: TrainingConfig,
        optim: OptimConfig,
        folder: RunFolder,
        validate: Callable[[nn.Module], Validation] | None = None,
        observe: Observe = lambda _row: None,
        process: Process = Process(),  # noqa: B008 - frozen
        deadline: float = math.inf,
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.config = config
        self.optim_config = optim
        self.folder = folder
        self.validate = validate
        self.observe = observe
        self.process = process
        self.deadline = deadline
        self.device = model.output_weight.device
        self.state = TrainerState()
        self.optimizer = build_optimizer(optim, model)
        self.average = copy.deepcopy(model).eval() if optim.ema_decay else None
        self.forward = torch.compile(model, dynamic=True) if config.compile else model
        self.signals = StopSignals()
        self._plan: list[list[np.ndarray]] = []
        self._plan_epoch = -1
        self._are_told_to_stop = False

    @property
    def best_model(self) -> nn.Module:
        """The weights that are judged and kept: the average if there is one."""
        return self.average or self.model

    @property
    def is_finished(self) -> bool:
        config = self.config
        return self.state.is_finished(steps=config.steps, patience=config.patience, minutes=config.minutes)

    def run(self) -> TrainerState:
        """Trains to the end, from wherever the state stands. Raises Stopped when told to, after saving."""
        torch.set_flush_denormal(True)  # numbers near zero slow a CPU down a hundredfold and change nothing
        with self.signals, torch.random.fork_rng(self._cuda_devices()):
            try:
                self._run()
            except Stopped as stopped:
                if self.signals.is_urgent:
                    raise
                self._save()
                raise Stopped(
                    stopped.signum, f"Stopped at step {self.state.step:,} of {self.config.steps:,}; all is saved."
                ) from None
        return self.state

    def _run(self) -> None:
        if self.state.step == 0:
            self._save()  # from here on, a run without a checkpoint is one whose checkpoints were removed
        if self._validate_if_due():  # the last sitting may have ended between a step and its validation
            self._save()
        while not self.is_finished:
            result = self._next_step()
            self._agree()
            if self._is_due(self.config.log_every) or self.is_finished:
                self._observe_row(self.state.take_row(result))
            validated = self._validate_if_due()
            if validated or self._is_due(self.config.save_every):
                self._save()

    def train_step(self, micro_batches: list[np.ndarray], step: int) -> StepResult:
        """One update from the pairs in `micro_batches`; this process computes its share of them.

        Gradients of sums are added up, over micro-batches and processes, and divided by the number of target tokens
        once: the same as one batch of them all. Raises DivergedError, before any weight changes, if they are no
        longer finite.
        """
        self.model.train()
        loss_sum = torch.zeros((), device=self.device)
        num_tokens = torch.zeros((), device=self.device)
        for index in range(self.process.rank, len(micro_batches), self.process.world_size):
            if self.process.world_size == 1:  # several processes must agree: see _agree
                self.signals.check()
            torch.manual_seed(_seed_of(self.config.seed, step, index))
            loss, count = self._loss(micro_batches[index])
            with record_function("backward"):
                loss.backward()
            loss_sum += loss.detach()
            num_tokens += count
        with record_function("optimizer"):
            return self._update(loss_sum, num_tokens, step)

    def _loss(self, rows: np.ndarray) -> tuple[Tensor, int]:
        with record_function("data"):
            batch = collate(self.pairs, rows).to(self.device)
        with self._precision():
            with record_function("forward"):
                hidden = self.forward(batch.src, batch.tgt_in)
            with record_function("loss"):
                return cross_entropy_sum(
                    hidden,
                    self.model.output_weight,
                    batch.tgt_out,
                    pad_id=self.model.vocabulary.pad_id,
                    label_smoothing=self.config.label_smoothing,
                )

    def _update(self, loss_sum: Tensor, num_tokens: Tensor, step: int) -> StepResult:
        parameters = list(self.model.parameters())
        for parameter in parameters:
            if parameter.grad is None:  # this process had no micro-batch
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        with record_function("exchange"):
            self.process.sum_([*gradients, loss_sum, num_tokens])
        torch._foreach_div_(gradients, num_tokens)
        norm = clip_gradients(parameters, self.optim_config.max_grad_norm)
        loss, grad_norm = (loss_sum / num_tokens).item(), norm.item()
        rate = learning_rate(self.optim_config, step, d_model=self.model.config.d_model, num_steps=self.config.steps)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergedError(
                f"step {step}: the loss is {loss}, the gradient's length {grad_norm}, at learning rate {rate:.2g}; no "
                "weight was changed by it. Lower optim.learning_rate, lengthen optim.warmup_steps, or set "
                "optim.max_grad_norm = 1."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            update_average(self.average.parameters(), parameters, decay=self.optim_config.ema_decay, step=step)
        return StepResult(loss, int(num_tokens.item()), grad_norm, rate)

    def _next_step(self) -> StepResult:
        if self._are_told_to_stop:
            raise Stopped(self.signals.received or signal.SIGTERM)
        state = self.state
        started = time.perf_counter()
        if self._plan_epoch != state.epoch:
            self._load_plan()
        if state.position == len(self._plan):
            state.epoch, state.position = state.epoch + 1, 0
            self._load_plan()
        try:
            result = self.train_step(self._plan[state.position], state.step + 1)
        except Stopped:
            self.optimizer.zero_grad()  # half a step's gradients: the step is repeated from its beginning
            raise
        state.add(result, time.perf_counter() - started)
        return result

    def _load_plan(self) -> None:
        config = self.config
        self._plan_epoch = self.state.epoch
        self.state.plan_of = self._plan_of
        self._plan = plan_epoch(
            self.pairs,
            batch_tokens=config.batch_tokens,
            micro_batches=config.micro_batches,
            seed=config.seed,
            epoch=self.state.epoch,
        )

    @property
    def _plan_of(self) -> list[int]:
        return [self.config.seed, self.config.batch_tokens, self.config.micro_batches, len(self.pairs)]

    def _agree(self) -> None:
        """Ends the run at the deadline; lets all processes stop before their next step if any was told to."""
        is_over = self.state.seconds + self.state.validation_seconds > self.deadline
        if self.process.world_size > 1:
            wish = torch.tensor([self.signals.received is not None, is_over], dtype=torch.float32, device=self.device)
            self.process.sum_([wish])
            self._are_told_to_stop, is_over = wish.bool().tolist()
        if is_over:
            self.state.minutes_over = self.config.minutes

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def _validate_if_due(self) -> bool:
        """Validates at every `validate_every`-th step and at the end; keeps the weights if none were better."""
        state = self.state
        due = (self._is_due(self.config.validate_every) and state.step > 0) or self.is_finished
        if not due or state.validated_step == state.step:
            return False
        if self.validate is None:
            state.best_step = state.validated_step = state.step
            self._keep_model({})
            return True
        found = self.process.decide(partial(self._validation, self.validate))
        if state.judge(found):
            self._keep_model(found.metrics)
        row = {"kind": "validation", "step": state.step, "seconds": round(state.seconds, 2)} | found.metrics
        self._observe_row(row, may_be_logged=True)
        return True

    def _validation(self, validate: Callable[[nn.Module], Validation]) -> Validation:
        started = time.perf_counter()
        with self.signals.at_once():
            found = validate(self.best_model)
        self.state.validation_seconds += time.perf_counter() - started
        if not math.isfinite(found.goodness):
            raise DivergedError(
                f"step {self.state.step}: the validation gives {found.goodness}, which is no number to go by. Lower "
                "optim.learning_rate, or set optim.max_grad_norm = 1; the checkpoints before this step are there."
            )
        return found

    def _keep_model(self, metrics: dict[str, float]) -> None:
        facts = {"step": self.state.step, "averaged": self.average is not None, "validation": metrics}
        self.process.decide(lambda: self.folder.write_model(dict(self.best_model.named_parameters()), facts))

    def _save(self) -> None:
        """Writes a checkpoint from which the run goes on exactly as if it had not stopped."""
        tensors = {f"model.{name}": p for name, p in self.model.named_parameters()}
        if self.average is not None:
            tensors |= {f"ema.{name}": p for name, p in self.average.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for slot, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{slot}.{name}"] = value
        keep = self.config.keep_checkpoints
        self.process.decide(
            lambda: self.folder.write_checkpoint(self.state.step, tensors, asdict(self.state), keep=keep)
        )

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Puts back what `_save` wrote. What was left of an epoch is left out if its batches are others now."""
        self.state = TrainerState.from_dict(state)
        self.state.leave_plan(self._plan_of)
        load_parameters(self.model, _with_prefix(tensors, "model."))
        if self.average is not None:  # switched on only now, it begins with the weights as they are
            load_parameters(self.average, _with_prefix(tensors, "ema.") or dict(self.model.named_parameters()))
        for name, parameter in self.model.named_parameters():
            for slot in ("step", "exp_avg", "exp_avg_sq"):
                saved = tensors.get(f"optimizer.{slot}.{name}")
                if saved is not None:
                    # The count of steps stays a float32 on the device of its parameter: what fused Adam expects.
                    self.optimizer.state[parameter][slot] = saved.to(parameter.device, copy=True)

    def _observe_row(self, row: dict[str, Any], *, may_be_logged: bool = False) -> None:
        """With `may_be_logged`, a row that a sitting wrote before it was killed, unsaved, is not written twice."""
        if self.process.is_main:
            here = (row["kind"], row["step"])
            if not (may_be_logged and here in [(old["kind"], old["step"]) for old in self.folder.metrics()[-1:]]):
                self.folder.append_metrics(row)
            self.observe(row)

    def _precision(self) -> AbstractContextManager[Any]:
        wants_bfloat16 = self.config.precision == "bfloat16" or (
            # Never on a CPU by itself: most emulate bfloat16, slowly, even where torch reports support.
            self.config.precision == "auto" and self.device.type == "cuda"
        )
        return torch.autocast(self.device.type, torch.bfloat16) if wants_bfloat16 else nullcontext()

    def _cuda_devices(self) -> list[int]:
        if self.device.type != "cuda":
            return []
        return [torch.cuda.current_device() if self.device.index is None else self.device.index]


def seconds_per_step(trainer: Trainer, plan: list[list[np.ndarray]], *, num_steps: int) -> float:
    """How long a step takes: the mean of `num_steps`, made on the first ones of `plan`."""
    started = time.perf_counter()
    for done in range(num_steps):
        trainer.train_step(plan[done % len(plan)], done + 1)
    return (time.perf_counter() - started) / num_steps


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _seed_of(seed: int, step: int, micro_batch: int) -> int:
    """The seed of all dropout in one micro-batch, whichever process computes it."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> 1)
