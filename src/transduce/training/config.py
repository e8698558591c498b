"""Settings of training and of the optimizer."""

import math
from dataclasses import dataclass
from typing import Literal

from transduce.errors import TransduceError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of training, batches, and how often it validates, saves and logs."""

    steps: int = 0
    """Optimizer steps. 0: as many as `epochs` or `minutes` allow."""
    epochs: float = 0.0
    """Passes over the training pairs. 0: no limit."""
    minutes: float = 0.0
    """Time limit. Without `steps` or `epochs`, it also sets the number of steps, by timing a few. 0: no limit."""
    batch_tokens: int = 4096
    """Maximum tokens per batch: pairs times the longest side (bucketed), or the tokens of each side (packed)."""
    micro_batches: int = 1
    """Batches per optimizer step, over all processes (gradient accumulation)."""
    part_tokens: int = 1024
    """Padded tokens that a CPU computes at a time. Small parts stay in its caches and give each process a share."""
    batching: Literal["auto", "bucketed", "packed"] = "auto"
    """Batches of similar lengths with padding (bucketed), or sentences end to end without it (packed).
    auto: packed on a GPU of compute capability 8.0 or higher, bucketed elsewhere."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over all tokens (section 5.4)."""
    validate_every: int = 0
    """Steps between validations. 0: ten validations per run."""
    save_every: int = 0
    """Steps between checkpoints, in addition to those at each validation. 0: only those."""
    keep_checkpoints: int = 5
    """Number of most recent checkpoints to keep."""
    log_every: int = 50
    """Steps between rows of metrics.jsonl."""
    patience: int = 0
    """Stop after this many validations without improvement. 0: never."""
    precision: Literal["auto", "float32", "bfloat16", "bfloat16_weights"] = "auto"
    """Arithmetic precision. bfloat16: for matrix products (autocast); bfloat16_weights: for the whole network, on a
    copy of the weights, while the optimizer updates them in float32.
    auto: bfloat16 on a GPU of compute capability 8.0 or higher, float32 elsewhere."""
    kernels: Literal["torch", "triton"] = "torch"
    """GPU kernels for the loss and, in packed batches, for attention and Add & Norm: those of torch, or our own in
    Triton, for a compute capability of 8.0 or higher."""
    compile: bool = False
    """Use torch.compile: faster steps after a minute or more of compilation."""
    cuda_graph: Literal["auto", True, False] = "auto"
    """Record a step as a CUDA graph and replay it; needs packed batches. auto: where it can be recorded."""
    seed: int = 1
    """Random seed of the initial weights, dropout and the order of the data."""

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "minutes", "validate_every", "save_every", "patience", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TransduceError(f"training.{name} is {getattr(self, name)}: it must be a number of at least 0.")
        if self.seed >= 2**63:
            raise TransduceError(f"training.seed is {self.seed}: it must be below 2**63.")
        for name in ("batch_tokens", "micro_batches", "part_tokens", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise TransduceError(f"training.{name} is {getattr(self, name)}: it must be at least 1.")
        if not 0 <= self.label_smoothing < 1:
            raise TransduceError(f"training.label_smoothing is {self.label_smoothing}: it must be from 0 to below 1.")
        if not (self.steps or self.epochs or self.minutes):
            raise TransduceError("no length of training: set training.steps, training.epochs or training.minutes.")
        if self.cuda_graph is True and self.batching != "packed":
            raise TransduceError('training.cuda_graph needs constant shapes: set training.batching = "packed" as well.')


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule; the defaults are the paper's (section 5.3).

    Differs from the paper: with `method` "muon", Muon updates the matrices within layers and Adam all else.
    """

    method: Literal["adam", "muon"] = "adam"
    """Optimizer: Adam, as in the paper, or Muon for the matrices within layers and Adam for everything else."""
    schedule: Literal["inverse_sqrt", "linear", "cosine", "constant"] = "inverse_sqrt"
    """Shape of the learning rate after the warm-up; inverse_sqrt is the paper's equation 3."""
    learning_rate: float = 0.0
    """Peak learning rate. 0: the rate of equation 3 at the end of the warm-up."""
    warmup_steps: int = 4000
    """Steps over which the learning rate rises to its peak."""
    beta1: float = 0.9
    """Adam's decay rate of the mean of gradients."""
    beta2: float = 0.98
    """Adam's decay rate of the mean of squared gradients."""
    epsilon: float = 1e-9
    """Adam's small constant against division by zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay (as in AdamW), of matrices only."""
    max_grad_norm: float = 0.0
    """Clip gradients to this norm. 0: no clipping."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights that is used for predictions. 0: the last weights."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or self.learning_rate < 0 or self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ValueError("optim.warmup_steps, learning_rate, weight_decay and max_grad_norm must not be negative.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.ema_decay < 1):
            raise ValueError("optim.beta1, beta2 and ema_decay must be at least 0 and below 1.")
        if not self.epsilon > 0:
            raise ValueError(f"optim.epsilon is {self.epsilon}: it must be above 0, to prevent division by zero.")
        if self.learning_rate == 0 and self.warmup_steps == 0:
            raise ValueError("equation 3 needs a warm-up: set optim.warmup_steps, or a peak with optim.learning_rate.")
