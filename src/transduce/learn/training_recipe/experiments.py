"""The training recipe, one change at a time: real words, the shipped update (`TrainStep`), tiny networks.

The task is the pronunciation of short English words (CMUdict): real data, in which the same letters are said in several
ways, so that no model can be sure. Losses are in nats per phoneme, ends included, without smoothing or dropout.
"""

import time
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from statistics import mean
from typing import Literal

import numpy as np
import torch
from torch import nn

from transduce.data.batches import EncodedPairs, StepOrder
from transduce.data.datasets import load_split
from transduce.evaluation.evaluate import score
from transduce.evaluation.loss import corpus_loss
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.learn.ledger import FAST
from transduce.learn.tasks import reversal
from transduce.learn.training import Training, small_transformer, train
from transduce.learn.varying import Trained, variation
from transduce.model import Transformer
from transduce.model.config import TransformerConfig
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.step import TrainStep

SEEDS = (1, 2, 3)
_LONGEST_WORD = 7  # letters


@dataclass(frozen=True)
class Words:
    """Words and their phonemes, as text and as ids; no word of `valid` is in `train`."""

    tokenizer: Tokenizer
    train: EncodedPairs
    valid: EncodedPairs
    valid_words: list[str]
    valid_phonemes: list[str]


@lru_cache(maxsize=2)
def _short_words(split: str) -> list[tuple[str, str]]:
    pairs = load_split("cmudict", split)
    return [(w, p) for w, p in zip(pairs.src, pairs.tgt, strict=True) if w.isalpha() and len(w) <= _LONGEST_WORD]


@lru_cache(maxsize=4)
def words(num_train: int, num_valid: int) -> Words:
    """So many pairs of short words of CMUdict, spread evenly over its training and its validation part."""
    parts = []
    for split, number in (("train", num_train), ("valid", num_valid)):
        rows = _short_words(split)
        parts.append([rows[i] for i in np.linspace(0, len(rows) - 1, number).astype(int)])
    config = TokenizerConfig(source="characters", target="words", joint=False)
    tokenizer = Tokenizer.learn(config, *map(list, zip(*parts[0], strict=True)))
    encoded = [
        EncodedPairs(tokenizer.encode_source([w for w, _ in part]), tokenizer.encode_target([p for _, p in part]))
        for part in parts
    ]
    return Words(tokenizer, encoded[0], encoded[1], [w for w, _ in parts[1]], [p for _, p in parts[1]])


# --- one change at a time --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a small network is trained; the defaults are what the others are compared with."""

    seed: int = 1
    label_smoothing: float = 0.0
    schedule: Literal["inverse_sqrt", "linear", "cosine", "constant"] = "linear"
    beta2: float = 0.98
    ema_decay: float = 0.0
    dropout: float = 0.0
    tie_embeddings: bool = True
    torch_linear: bool = False  # linear maps start as torch starts them, not Xavier-uniform
    torch_embeddings: bool = False  # embeddings start as torch's, N(0, 1), not N(0, 1 / d_model)
    num_train: int = 12_000
    steps: int = 240
    measurements: int = 1  # how often, evenly, the loss on new words is measured


@dataclass(frozen=True)
class Outcome:
    """What became of a recipe."""

    losses: list[float]  # of each step, as they were minimized
    valid: list[tuple[int, float]]  # (step, loss on new words)
    train_loss: float  # at the end, on as many words that it was trained on
    average: float  # on new words, of the moving average of the weights; that of the weights if there is none
    right: float  # per cent of new words, written greedily, without a wrong phoneme

    @property
    def nll(self) -> float:
        """On new words, at the end."""
        return self.valid[-1][1]


@lru_cache(maxsize=64)
def learn(recipe: Recipe) -> Outcome:
    """Trains by the shipped update. The same recipe gives the same outcome, so it is computed once."""
    varied, started = variation(), time.perf_counter()
    rate = 3e-3 * varied.rate
    recipe = replace(recipe, steps=recipe.steps * varied.steps, seed=recipe.seed + varied.seed)
    data = words(recipe.num_train, 600 if recipe.num_train > 2_000 else 200)
    model = build(recipe, data.tokenizer)
    training = TrainingConfig(
        steps=recipe.steps, batch_tokens=512, label_smoothing=recipe.label_smoothing, seed=recipe.seed
    )
    optim = OptimConfig(
        schedule=recipe.schedule,
        learning_rate=rate,
        warmup_steps=50 * varied.steps,
        beta2=recipe.beta2,
        ema_decay=recipe.ema_decay,
    )
    update = TrainStep(model, config=training, optim=optim)
    order = StepOrder(data.train, batch_tokens=512, micro_batches=1, seed=recipe.seed)
    losses: list[float] = []
    valid: list[tuple[int, float]] = []
    due = {round(recipe.steps * k / recipe.measurements) for k in range(1, recipe.measurements + 1)}
    epoch = 0
    while len(losses) < recipe.steps:
        order.open(epoch, 0)
        epoch += 1
        for batches in order.steps[: recipe.steps - len(losses)]:
            losses.append(update(order.pairs, batches, len(losses) + 1).read().loss)
            if len(losses) in due:
                valid.append((len(losses), corpus_loss(model, data.valid)))
    varied.trained.append(Trained(recipe.steps, rate, valid[-1][1], time.perf_counter() - started))
    some = data.train.select(range(0, len(data.train), max(1, len(data.train) // len(data.valid))))
    return Outcome(
        losses,
        valid,
        corpus_loss(model, some),
        corpus_loss(update.average or model, data.valid),
        _share_right(model, data),
    )


def build(recipe: Recipe, tokenizer: Tokenizer) -> Transformer:
    """The network of a recipe with its random start."""
    config = TransformerConfig(
        d_model=64,
        d_ff=128,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dropout=recipe.dropout,
        tie_embeddings=recipe.tie_embeddings,
        max_len=64,
    )
    torch.manual_seed(recipe.seed)
    model = Transformer(config, tokenizer.vocabulary_sizes)
    for module in model.modules():
        if isinstance(module, nn.Linear) and recipe.torch_linear:
            module.reset_parameters()
        if isinstance(module, nn.Embedding) and recipe.torch_embeddings:
            module.reset_parameters()
    return model


def _share_right(model: Transformer, data: Words) -> float:
    """Per cent of new words, written greedily, without a wrong phoneme."""
    predictor = Predictor(model, data.tokenizer, DecodingConfig(beam_size=1))
    (wrong,) = score(
        predictor, data.valid_words, [data.valid_phonemes], ("word_error",), group_sources=True, num_resamples=1
    )
    return 100 - wrong.value


def _base(fast: bool) -> Recipe:
    return Recipe(num_train=1_500, steps=40) if fast else Recipe()


def _of_seeds(recipe: Recipe, fast: bool, num_seeds: int = len(SEEDS)) -> list[Outcome]:
    return [learn(replace(recipe, seed=seed)) for seed in SEEDS[: 1 if fast else num_seeds]]


@dataclass(frozen=True)
class Choices:
    """Outcomes by what was changed; one for each seed."""

    outcomes: dict[str, list[Outcome]]

    def excess(self, name: str) -> list[float]:
        """Of each seed: nats per token on new words above the same seed's baseline; below 0 is better."""
        pairs = zip(self.outcomes[name], self.outcomes["baseline"], strict=True)
        return [changed.nll - base.nll for changed, base in pairs]

    @property
    def embeddings_excess(self) -> float:
        return mean(self.excess("embeddings N(0, 1)"))


def choices(*, fast: bool = FAST) -> Choices:
    """Each row changes one thing of the baseline: linear schedule, beta2 0.98, tied embeddings, the shipped start."""
    base = _base(fast)
    changed = {
        "baseline": base,
        "constant rate": replace(base, schedule="constant", ema_decay=0.98),
        "1/sqrt(step), equation 3": replace(base, schedule="inverse_sqrt"),
        "beta2 0.999": replace(base, beta2=0.999),
        "separate output matrix": replace(base, tie_embeddings=False),
        "linear maps, torch's init": replace(base, torch_linear=True),
        "embeddings N(0, 1)": replace(base, torch_embeddings=True),
    }
    if fast:
        changed = {name: changed[name] for name in ("baseline", "separate output matrix", "embeddings N(0, 1)")}
    return Choices({name: _of_seeds(recipe, fast, num_seeds=2) for name, recipe in changed.items()})


@dataclass(frozen=True)
class Smoothing:
    """The same three starts without and with label smoothing of 0.1."""

    plain: list[Outcome]
    smoothed: list[Outcome]

    @property
    def nll_excess(self) -> float:
        """Nats per token that smoothing costs; both measured without smoothing."""
        return mean(s.nll - p.nll for s, p in zip(self.smoothed, self.plain, strict=True))

    @property
    def score_gains(self) -> list[float]:
        """Of each seed: points of right words that smoothing gains."""
        return [s.right - p.right for s, p in zip(self.smoothed, self.plain, strict=True)]

    @property
    def score_gain(self) -> float:
        return mean(self.score_gains)


def smoothing(*, fast: bool = FAST) -> Smoothing:
    """Section 5.4: "this hurts perplexity ... but improves accuracy and BLEU score"."""
    base = _base(fast)
    return Smoothing(_of_seeds(base, fast), _of_seeds(replace(base, label_smoothing=0.1), fast))


@dataclass(frozen=True)
class Averaging:
    """The moving average of the weights beside the weights, at a constant and at a falling rate."""

    constant: list[Outcome]
    falling: list[Outcome]

    @property
    def gain_at_constant_rate(self) -> float:
        return mean(found.nll - found.average for found in self.constant)

    @property
    def gain_at_falling_rate(self) -> float:
        return mean(found.nll - found.average for found in self.falling)


def averaging(*, fast: bool = FAST) -> Averaging:
    """Averages over about the last 50 steps (decay 0.98); the paper averages its last checkpoints (section 6.1)."""
    base = replace(_base(fast), ema_decay=0.98)
    if fast:
        base = replace(base, steps=70)  # so that the steepest part is over: while weights still travel, a mean lags
    constant = replace(base, schedule="constant")
    return Averaging(_of_seeds(constant, fast, num_seeds=2), _of_seeds(base, fast, num_seeds=1))


@dataclass(frozen=True)
class OverFitting:
    """Few words, many passes: the loss on new words along the way, without and with dropout."""

    outcomes: dict[float, Outcome]  # by dropout

    @property
    def dropout_gain(self) -> float:
        """Nats per token on new words at the end."""
        return self.outcomes[0.0].nll - self.outcomes[0.2].nll

    @property
    def rise(self) -> float:
        """Nats per token that the loss on new words ends above its lowest, without dropout."""
        return self.outcomes[0.0].nll - min(loss for _, loss in self.outcomes[0.0].valid)


def over_fitting(*, fast: bool = FAST) -> OverFitting:
    """A network of 200,000 weights and a few hundred words."""
    few = Recipe(num_train=100 if fast else 500, steps=90 if fast else 400, measurements=3 if fast else 10)
    return OverFitting({dropout: learn(replace(few, dropout=dropout)) for dropout in (0.0, 0.2)})


# --- warm-up ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WarmUp:
    """The same post-norm network, with and without a warm-up."""

    trainings: dict[int, Training]  # by warm-up steps

    @cached_property
    def ends(self) -> dict[int, float]:
        """Mean loss over the last 20 steps."""
        return {steps: found.end() for steps, found in self.trainings.items()}

    @property
    def excess(self) -> float:
        return self.ends[0] - min(loss for steps, loss in self.ends.items() if steps)


def warm_up(*, fast: bool = FAST) -> WarmUp:
    """Reversal by the paper's post-norm network, 4 + 4 layers, at a high rate: no warm-up, and one of a third."""
    task, steps = reversal(10, 3, 8), 70 if fast else 300
    found = {}
    for warmup_steps in (0, steps // 3):
        model = small_transformer(task.vocabulary, d_model=32, d_ff=64, num_encoder_layers=4, num_decoder_layers=4)
        found[warmup_steps] = train(
            model, task.draw, steps=steps, batch_size=32, learning_rate=6e-3, warmup_steps=warmup_steps
        )
    return WarmUp(found)
