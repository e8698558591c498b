"""Settings of training and of the optimizer."""

import math
from dataclasses import dataclass
from typing import Literal

from transduce.errors import TransduceError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of training, batches, and how often it validates, saves and logs."""

    steps: int = 0  # optimizer steps; 0: as many as `epochs` or `minutes` allow
    epochs: float = 0.0  # passes over the training pairs
    minutes: float = 0.0  # turned into a number of steps, by timing a few before training
    batch_tokens: int = 4096  # at most: bucketed, n pairs * the longest side of any; packed, the tokens of each side
    micro_batches: int = 1  # per optimizer step, over all processes
    # Padded tokens that a CPU computes at a time: few, so that what one layer writes is in the caches for the next, and
    # that each of several processes has some.
    part_tokens: int = 1024
    # "auto", here and below, is chosen for the device (`runs.device_choice`): on a GPU of compute capability 8.0 or
    # more, packed batches in bfloat16, recorded as a CUDA graph; elsewhere, bucketed batches in float32.
    batching: Literal["auto", "bucketed", "packed"] = "auto"  # pairs of similar length, padded; or end to end
    label_smoothing: float = 0.1
    validate_every: int = 0  # steps; 0: ten validations in the run
    save_every: int = 0  # steps between checkpoints to resume from; 0: at every validation
    keep_checkpoints: int = 5  # number of the newest ones that stay
    log_every: int = 50  # steps between two rows of metrics.jsonl
    patience: int = 0  # stop after this many validations without an improvement; 0: never
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False  # torch.compile: faster steps after a minute or more of compilation
    cuda_graph: Literal["auto", True, False] = "auto"  # on a GPU, with packed batches: a step recorded and replayed
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "minutes", "validate_every", "save_every", "patience", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TransduceError(f"training.{name} is {getattr(self, name)}: a number from 0 up is needed.")
        if self.seed >= 2**63:
            raise TransduceError(f"training.seed is {self.seed}: it must be below 2**63.")
        for name in ("batch_tokens", "micro_batches", "part_tokens", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise TransduceError(f"training.{name} is {getattr(self, name)}: it must be at least 1.")
        if not 0 <= self.label_smoothing < 1:
            raise TransduceError(f"training.label_smoothing is {self.label_smoothing}: at least 0 and below 1.")
        if not (self.steps or self.epochs or self.minutes):
            raise TransduceError("how long to train? Set training.steps, training.epochs or training.minutes.")
        if self.cuda_graph is True and self.batching != "packed":
            raise TransduceError('training.cuda_graph needs constant shapes: set training.batching = "packed" as well.')


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule; the defaults are the paper's (section 5.3).

    Differs from the paper: with `method` "muon", Muon updates the matrices within layers and Adam all else.
    """

    method: Literal["adam", "muon"] = "adam"
    schedule: Literal["inverse_sqrt", "linear", "cosine", "constant"] = "inverse_sqrt"
    learning_rate: float = 0.0  # the peak; 0: the rate of equation 3 at the end of the warm-up
    warmup_steps: int = 4000
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0  # decoupled (AdamW), of matrices only
    max_grad_norm: float = 0.0  # gradients longer than this are shortened to it; 0: left as they are
    ema_decay: float = 0.0  # the weights used are an average over about 1 / (1 - decay) steps; 0: the last ones

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or self.learning_rate < 0 or self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ValueError("optim.warmup_steps, learning_rate, weight_decay and max_grad_norm must not be negative.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.ema_decay < 1):
            raise ValueError("optim.beta1, beta2 and ema_decay must be at least 0 and below 1.")
        if not self.epsilon > 0:
            raise ValueError(f"optim.epsilon is {self.epsilon}: it must be above 0, as it keeps from dividing by zero.")
        if self.learning_rate == 0 and self.warmup_steps == 0:
            raise ValueError("equation 3 needs a warm-up: set optim.warmup_steps, or a peak with optim.learning_rate.")
