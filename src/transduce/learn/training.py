"""The few lines that train a small network for an experiment, and score it by what it writes by itself.

Real training is `transduce.training.trainer`'s; this loop takes anything that has the Transformer's interface, so that
a recurrent network, or a Transformer with a part taken out, learns from the same batches in the same way.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transduce.data.batches import Batch
from transduce.inference.config import DecodingConfig
from transduce.inference.search import SpecialIds, greedy_search
from transduce.learn.tasks import BOS, EOS, PAD
from transduce.learn.varying import Trained, variation
from transduce.model import Transformer
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.training.loss import cross_entropy_sum

Draw = Callable[[int, torch.Generator], Batch]  # (rows, random) -> a fresh batch


class Seq2Seq(Protocol):
    """What is trained: source and shifted target in, one vector for each target position out, and scores of it."""

    def __call__(self, src: Int[Tensor, "batch src_len"], tgt_in: Int[Tensor, "batch tgt_len"]) -> Tensor: ...
    def logits(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch ids"]:
        """Scores before the softmax."""

    @property
    def output_weight(self) -> Float[Tensor, "ids d_model"]:
        """The matrix before the softmax."""

    def parameters(self) -> Any:
        """As a module of torch has them."""

    def train(self, mode: bool = True) -> Any:
        """As a module of torch does."""


@dataclass
class Training:
    """What happened at each step: mean cross-entropy in nats, length of the gradient, learning rate."""

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    seconds: float = 0.0
    is_finished: bool = True  # False if a loss was no number, and the training ended there

    def end(self, over: int = 20) -> float:
        """Mean loss of the last `over` steps; infinite if the training did not come to its end."""
        last = self.losses[-over:]
        return sum(last) / len(last) if self.is_finished else math.inf

    def smoothed(self, over: int = 20) -> list[float]:
        """The losses as means over `over` steps, for a curve that can be read."""
        return [sum(self.losses[max(0, i - over + 1) : i + 1]) / min(over, i + 1) for i in range(len(self.losses))]


def small_transformer(vocabulary: VocabularySizes, seed: int = 1, **settings: Any) -> Transformer:
    """A Transformer of the shipped code, small enough for an experiment; `settings` are those of TransformerConfig."""
    torch.manual_seed(seed + variation().seed)
    small = {"d_model": 64, "d_ff": 128, "num_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": 2}
    return Transformer(TransformerConfig(**({"dropout": 0.0, "max_len": 64} | small | settings)), vocabulary)


def train(
    model: Seq2Seq,
    draw: Draw,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    warmup_steps: int = 50,
    max_grad_norm: float = 0.0,
    seed: int = 1,
) -> Training:
    """Cross-entropy of fresh batches, without smoothing, minimized: see `optimize`.

    The same batches, and the same draws of dropout, for every model of the same seed.
    """
    seed += variation().seed
    random = torch.Generator().manual_seed(seed)
    model.train()
    with torch.random.fork_rng(devices=[]):  # the caller's own random numbers go on as if nothing had been drawn
        torch.manual_seed(seed)
        found = optimize(
            model.parameters(),
            lambda: _mean_loss(model, draw(batch_size, random)),
            steps=steps,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            max_grad_norm=max_grad_norm,
        )
    model.train(False)
    return found


def optimize(
    parameters: Iterable[nn.Parameter],
    next_loss: Callable[[], Float[Tensor, ""]],
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    max_grad_norm: float = 0.0,
) -> Training:
    """Adam on the losses of fresh batches: the rate rises to `learning_rate` in `warmup_steps`, then falls to zero.

    A loss that is not finite ends the training: the curve then stops there, and the weights stay as they were before.
    """
    parameters, varied = list(parameters), variation()
    steps, warmup_steps, learning_rate = steps * varied.steps, warmup_steps * varied.steps, learning_rate * varied.rate
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.98), eps=1e-9, fused=True)
    found, started = Training(), time.perf_counter()
    first = max(1, warmup_steps)
    for step in range(1, steps + 1):
        loss = next_loss()
        if not torch.isfinite(loss):
            break
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(step / first, (steps - step + 1) / (steps - first + 1))
        optimizer.step()
        found.losses.append(float(loss.detach()))
        found.gradient_norms.append(float(norm))
        found.rates.append(optimizer.param_groups[0]["lr"])
    found.seconds = time.perf_counter() - started
    found.is_finished = len(found.losses) == steps
    varied.trained.append(Trained(steps, learning_rate, found.end(), found.seconds))
    return found


@torch.no_grad()
def mean_loss(model: Seq2Seq, batch: Batch) -> float:
    """Mean cross-entropy of the targets in nats, every token told all before it (teacher forcing)."""
    model.train(False)
    return float(_mean_loss(model, batch))


@torch.no_grad()
def token_accuracy(model: Seq2Seq, batch: Batch) -> float:
    """Share of target tokens, ends included, that are likeliest when all before them are told (teacher forcing)."""
    model.train(False)
    guesses = model.logits(model(batch.src, batch.tgt_in)).argmax(dim=-1)
    is_real = batch.tgt_out != PAD
    return float((guesses == batch.tgt_out)[is_real].float().mean())


@torch.inference_mode()
def written(model: Any, src: Int[Tensor, "batch src_len"], most_tokens: int) -> list[list[int]]:
    """What the model writes by itself, greedily, each token after its own earlier ones; without the end."""
    model.train(False)
    special = SpecialIds(pad=PAD, bos=BOS, eos=EOS)
    longest = torch.full((len(src),), most_tokens)
    found = greedy_search(model.step, model.start(src), longest, special, config=DecodingConfig(beam_size=1))
    return [list(hypothesis.ids) for hypothesis in found]


def exact_match(model: Any, batch: Batch) -> float:
    """Share of sources whose whole answer, written by the model itself, is right."""
    answers = written(model, batch.src, batch.tgt_out.size(1) + 2)
    right = [[i for i in row if i not in (PAD, EOS)] for row in batch.tgt_out.tolist()]
    return sum(a == b for a, b in zip(answers, right, strict=True)) / len(right)


def _mean_loss(model: Seq2Seq, batch: Batch) -> Float[Tensor, ""]:
    loss, count = cross_entropy_sum(model(batch.src, batch.tgt_in), model.output_weight, batch.tgt_out, pad_id=PAD)
    return loss / count
