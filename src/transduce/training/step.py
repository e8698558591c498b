"""Training step: forward and backward passes over the micro-batches, then one update of the weights.

Nothing in a step synchronizes with a GPU: it works on one step while Python prepares the next.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from transduce.data.batches import Batch, EncodedPairs, collate
from transduce.data.packed_batches import PackedBatch, collate_packed
from transduce.devices.graphs import GraphedWork, gradients_of, is_gpu
from transduce.errors import DivergedError, OutOfMemoryError, is_out_of_memory
from transduce.model.transformer import Transformer
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.distributed import Process
from transduce.training.loss import cross_entropy_sum
from transduce.training.optim import build_optimizers, clip_gradients, learning_rate, update_average
from transduce.training.state import StepResult


@dataclass(frozen=True)
class StepOutcome:
    """Loss, number of tokens and gradient norm of a step, which the device may still be computing."""

    step: int
    learning_rate: float
    numbers: Tensor  # mean loss, number of target tokens, gradient norm

    def read(self) -> StepResult:
        """Wait for the device. Raises DivergedError if a number is not finite; the step then changed no weight."""
        loss, num_tokens, grad_norm = self.numbers.tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergedError(
                f"step {self.step}: the loss is {loss} and the gradient norm {grad_norm}, at learning rate "
                f"{self.learning_rate:.2g}; this step changed no weight. Lower optim.learning_rate, raise "
                "optim.warmup_steps, or set optim.max_grad_norm = 1."
            )
        return StepResult(loss, round(num_tokens), grad_norm, self.learning_rate)


@dataclass(eq=False, repr=False)
class TrainStep:
    """The update of the weights of `model`, and of their moving average if there is one; no other code changes them.

    Settings that are still "auto" here mean bucketed batches without a CUDA graph, in bfloat16 on a GPU.
    """

    model: Transformer
    _: KW_ONLY
    config: TrainingConfig
    optim: OptimConfig
    process: Process = Process()

    def __post_init__(self) -> None:
        model, config = self.model, self.config
        self.device = model.output_weight.device
        self.optimizers = build_optimizers(self.optim, model, self.process)
        self.optimizer_of = {
            p: each for each in self.optimizers for group in each.param_groups for p in group["params"]
        }
        self.average = copy.deepcopy(model).eval() if self.optim.ema_decay else None
        # A copy whose weights are in bfloat16 already: autocast would cast each of them in every layer.
        has_copy = config.precision == "bfloat16_weights"
        self._network = network = copy.deepcopy(model).to(torch.bfloat16) if has_copy else model
        self._use_triton = config.kernels == "triton" and is_gpu(self.device)
        self._copies = list[Tensor](network.parameters()) if has_copy else []
        packed = partial(network.forward_packed, use_triton=True) if self._use_triton else network.forward_packed
        forward: Callable[..., Tensor] = packed if config.batching == "packed" else network
        self._forward = torch.compile(forward, dynamic=config.batching != "packed") if config.compile else forward
        self._is_graphed = config.cuda_graph is True and is_gpu(self.device)
        work = self._accumulate_gradients
        self._work = GraphedWork(work, model.parameters()) if self._is_graphed else work

    def __call__(
        self,
        pairs: EncodedPairs,
        micro_batches: list[NDArray[np.intp]],
        step: int,
        check: Callable[[], None] = lambda: None,
        *,
        num_steps: int = 0,
    ) -> StepOutcome:
        """One update from the rows of `pairs` in `micro_batches`; this process computes its share of them.

        The learning rate is that of `step` in a run of `num_steps`, by default those of the settings.

        Gradients of summed losses are added up over the parts of all micro-batches and processes, then divided by the
        number of target tokens once: the same as one large batch. Where they are not finite, no weight is changed.
        `check` is called between parts; whatever it raises leaves the weights as they were, and so does the
        OutOfMemoryError of a part that is too large.
        """
        self._network.train()
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, list[Tensor](self.model.parameters()))
        loss_sum = torch.zeros((), device=self.device)
        num_tokens = torch.zeros((), device=self.device)
        try:
            for number, rows in self._local_parts(pairs, micro_batches):
                check()
                torch.manual_seed(_seed_of(self.config.seed, step, number))
                loss, count = self._compute(pairs, rows, step)
                loss_sum += loss
                num_tokens += count
            with record_function("optimizer"):
                return self._update(loss_sum, num_tokens, step, num_steps or self.config.steps)
        finally:
            # Also of half a step: it is repeated from its beginning. A graph adds to the tensors it was recorded with.
            self.model.zero_grad(set_to_none=not self._is_graphed)
            if self._copies:
                self._network.zero_grad()

    def parts(self, pairs: EncodedPairs, micro_batches: list[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
        """Rows that pass through the network at a time, of all processes: micro-batches, split up further on a CPU."""
        if self.device.type != "cpu":
            return micro_batches
        return [part for rows in micro_batches for part in split_for_cpu(pairs, rows, self.config.part_tokens)]

    def _local_parts(
        self, pairs: EncodedPairs, micro_batches: list[NDArray[np.intp]]
    ) -> list[tuple[int, NDArray[np.intp]]]:
        """This process's share of the parts, each with its number among all of them.

        Dropout is seeded by that number, so it does not depend on how many processes there are.
        """
        parts = self.parts(pairs, micro_batches)
        return [(number, parts[number]) for number in range(self.process.rank, len(parts), self.process.world_size)]

    def _compute(self, pairs: EncodedPairs, rows: NDArray[np.intp], step: int) -> tuple[Tensor, ...]:
        """What one part adds to the step. Raises OutOfMemoryError, which describes it, if memory is short."""
        try:
            with record_function("data"):
                batch = self._collate(pairs, rows).to(self.device)
            return self._work(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            longest = int(max(pairs.src_lens[rows].max(), pairs.tgt_lens[rows].max()))
            raise OutOfMemoryError(
                f"step {step}: out of memory on {len(rows):,} pairs, the longest of {longest:,} tokens "
                f"({len(rows) * longest:,} with padding). Lower training.batch_tokens (on a CPU training.part_tokens) "
                "or data.max_len."
            ) from error

    def _collate(self, pairs: EncodedPairs, rows: NDArray[np.intp]) -> Batch | PackedBatch:
        if self.config.batching == "packed":
            num_tokens = 0 if self.device.type == "cpu" else self.config.batch_tokens
            return collate_packed(pairs, rows, num_tokens=num_tokens)
        return collate(pairs, rows)

    def _accumulate_gradients(self, batch: Batch | PackedBatch) -> tuple[Tensor, Tensor]:
        """Add to the gradients of the parameters; return the summed loss and the number of target tokens."""
        network = self._network
        with self._precision():
            with record_function("forward"):
                hidden = self._forward(*batch.inputs)
            with record_function("loss"):
                loss, count = cross_entropy_sum(
                    hidden,
                    network.output_weight,
                    batch.tgt_out,
                    pad_id=self.model.vocabulary.pad_id,
                    label_smoothing=self.config.label_smoothing,
                    bias=network.output_bias,
                    use_triton=self._use_triton,
                )
        with record_function("backward"):
            loss.backward()
        if self._copies:  # summed over the parts in float32
            own, copied = (gradients_of(list(network.parameters())) for network in (self.model, self._network))
            for gradient, part in zip(own, copied, strict=True):
                gradient += part
            self._network.zero_grad()
        return loss.detach(), count

    def _update(self, loss_sum: Tensor, num_tokens: Tensor, step: int, num_steps: int) -> StepOutcome:
        parameters = list(self.model.parameters())
        gradients = gradients_of(parameters)  # zeros, where a step with fewer parts than processes left this one none
        with record_function("exchange"):
            self.process.sum_([*gradients, loss_sum, num_tokens])
        torch._foreach_div_(gradients, num_tokens)
        norm = clip_gradients(parameters, self.optim.max_grad_norm)
        numbers = torch.stack([loss_sum / num_tokens, num_tokens, norm])
        rate = learning_rate(self.optim, step, d_model=self.model.config.d_model, num_steps=num_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        outcome = StepOutcome(step, rate, numbers)
        if self.device.type == "cpu":
            outcome.read()  # nothing to wait for, so a divergence is reported before anything changes
        for optimizer in reversed(self.optimizers):  # Muon first: its exchange may fail, before anything has changed
            # Where it is 1, the optimizer leaves the update out: an `if` would have to wait for the GPU.
            optimizer.found_inf = 1 - numbers.isfinite().all().to(torch.float32)  # type: ignore[attr-defined]
            optimizer.step()
        if self.average is not None:
            update_average(self.average.parameters(), parameters, decay=self.optim.ema_decay, step=step)
        return outcome

    def _precision(self) -> AbstractContextManager[Any]:
        # Never chosen for a CPU: most emulate bfloat16, slowly, even where torch reports support.
        chosen = "bfloat16" if self.device.type == "cuda" else "float32"
        precision = chosen if self.config.precision == "auto" else self.config.precision
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def split_for_cpu(pairs: EncodedPairs, rows: NDArray[np.intp], part_tokens: int) -> list[NDArray[np.intp]]:
    """The rows of a batch in 1, 2, 4, ... nearly equal parts of about `part_tokens` padded tokens each.

    A power of two, so that processes share a step evenly. Rows next to each other in a batch have similar lengths, so
    a part has less padding than the whole.
    """
    num_tokens = len(rows) * int(max(pairs.src_lens[rows].max(), pairs.tgt_lens[rows].max()))
    num_parts = 1
    while num_tokens > num_parts * part_tokens and 2 * num_parts <= len(rows):
        num_parts *= 2
    return np.array_split(rows, num_parts)


def _seed_of(seed: int, step: int, part: int) -> int:
    """Seed of all dropout in one part of a step, whichever process computes it."""
    return int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> 1)
