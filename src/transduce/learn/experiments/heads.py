"""What the parts of a layer are for: the scale of attention, its heads, the feed-forward network, the embeddings' scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transduce.data import Batch
from transduce.learn.ledger import FAST
from transduce.learn.tasks import FIRST_SYMBOL, SymbolTask, reversal
from transduce.learn.training import Training, exact_match, small_transformer, token_accuracy, train
from transduce.model import Transformer, attention

_NUM_KEYS = 20


@dataclass(frozen=True)
class Saturation:
    """Of one query over 20 random keys, by d_k: the largest weight, and how far the softmax still passes gradients on.

    The second is the Frobenius norm of the softmax's Jacobian, diag(p) - p p^T: 0 where nothing can be learnt.
    """

    widths: list[int]
    largest: dict[str, list[float]]  # "scaled", "unscaled" -> mean largest weight for each width
    gradient: dict[str, list[float]]

    @property
    def largest_unscaled(self) -> float:
        return self.largest["unscaled"][-1]

    @property
    def largest_scaled(self) -> float:
        return self.largest["scaled"][-1]

    @property
    def gradient_lost(self) -> float:
        """How many times smaller the Jacobian is without the scale, at the largest width."""
        return self.gradient["scaled"][-1] / self.gradient["unscaled"][-1]


def saturation(*, fast: bool = FAST) -> Saturation:
    """Queries and keys with entries of mean 0 and variance 1, as section 3.2.1 (footnote 4) has them."""
    random = torch.Generator().manual_seed(0)
    widths, trials = [4, 16, 64, 256], 50 if fast else 1_000
    largest: dict[str, list[float]] = {"scaled": [], "unscaled": []}
    gradient: dict[str, list[float]] = {"scaled": [], "unscaled": []}
    for width in widths:
        q, k = (torch.randn(trials, n, width, generator=random) for n in (1, _NUM_KEYS))
        for name, factor in (("scaled", 1.0), ("unscaled", math.sqrt(width))):  # the factor undoes the division
            p = attention(q * factor, k, k)[1][:, 0]
            jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
            largest[name].append(float(p.amax(dim=1).mean()))
            gradient[name].append(float(jacobian.flatten(1).norm(dim=1).mean()))
    return Saturation(widths, largest, gradient)


@dataclass(frozen=True)
class Comparison:
    """Networks that differ in one thing, trained on the same batches: by name, by seed."""

    trainings: dict[str, list[Training]]
    accuracy: dict[str, list[float]]  # share of target tokens, or of answers
    parameters: dict[str, int]

    def mean_accuracy(self, name: str) -> float:
        return mean(self.accuracy[name])


@dataclass(frozen=True)
class Heads(Comparison):
    """One head of 32 channels against four of 8."""

    @property
    def gain(self) -> float:
        """Token accuracy of four heads minus that of one, in points."""
        return 100 * (self.mean_accuracy("4 heads") - self.mean_accuracy("1 head"))


def differences(num_symbols: int = 11, length: int = 8) -> SymbolTask:
    """Place t of the answer is source[t] minus source[-1 - t], modulo: it takes two look-ups, and which is which."""

    def answer(source: list[int]) -> list[int]:
        values = [symbol - FIRST_SYMBOL for symbol in source]
        return [FIRST_SYMBOL + (a - b) % num_symbols for a, b in zip(values, values[::-1], strict=True)]

    return SymbolTask("differences", num_symbols, length, length, answer)


def one_head_or_many(*, fast: bool = FAST) -> Heads:
    """One encoder and one decoder layer; the number of heads changes, the number of parameters does not (3.2.2)."""
    task, shape = differences(), {"d_model": 32, "d_ff": 64, "num_encoder_layers": 1, "num_decoder_layers": 1}
    models = {
        name: [small_transformer(task.vocabulary, seed, **shape, num_heads=heads) for seed in _seeds(fast)]
        for name, heads in (("1 head", 1), ("4 heads", 4))
    }
    return Heads(*_trained(models, task, steps=300 if fast else 900))


@dataclass(frozen=True)
class FeedForwardNeeded(Comparison):
    """Attention alone against attention and feed-forward networks."""

    @property
    def gain(self) -> float:
        """Token accuracy with feed-forward networks minus that without them, in points."""
        return 100 * (self.mean_accuracy("attention + FFN") - self.mean_accuracy("attention alone"))


class Nothing(nn.Module):
    """A sub-layer that adds nothing to the residual stream."""

    def forward(self, x: Float[Tensor, "batch len d_model"]) -> Float[Tensor, "batch len d_model"]:
        return torch.zeros_like(x)


def table_of_pairs(num_symbols: int = 8, length: int = 8) -> SymbolTask:
    """Place t of the answer is an entry of a fixed random table, at row source[t] and column source[t + 1]."""
    random = torch.Generator().manual_seed(5)
    table = torch.randint(num_symbols, (num_symbols, num_symbols), generator=random).tolist()

    def answer(source: list[int]) -> list[int]:
        values = [symbol - FIRST_SYMBOL for symbol in source]
        return [FIRST_SYMBOL + table[a][b] for a, b in zip(values, [*values[1:], values[0]], strict=True)]

    return SymbolTask("table", num_symbols, length, length, answer)


def with_and_without_feed_forward(*, fast: bool = FAST) -> FeedForwardNeeded:
    """The same two-layer network; in one, every feed-forward network adds nothing."""
    task = table_of_pairs()
    shape = {"d_model": 32, "d_ff": 128}
    models = {
        "attention + FFN": [small_transformer(task.vocabulary, seed, **shape) for seed in _seeds(fast)],
        "attention alone": [
            without_feed_forward(small_transformer(task.vocabulary, seed, **shape)) for seed in _seeds(fast)
        ],
    }
    return FeedForwardNeeded(*_trained(models, task, steps=200 if fast else 500))


def without_feed_forward(model: Transformer) -> Transformer:
    """The same model, its feed-forward networks taken out."""
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.feed_forward = Nothing()
    return model


@dataclass(frozen=True)
class EmbeddingScale(Comparison):
    """Embeddings times sqrt(d_model) against embeddings as they are."""

    @property
    def loss_ratio(self) -> float:
        """Final training loss without the factor, by that with it: above 1 where the factor helps."""
        final = {
            name: mean(training.smoothed(50)[-1] for training in some) for name, some in self.trainings.items()
        }
        return final["as they are"] / final["times sqrt(d_model)"]


class Unscaled(nn.Embedding):
    """An embedding that takes the model's factor of sqrt(d_model) back."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) / math.sqrt(self.embedding_dim)


def scale_of_embeddings(*, fast: bool = FAST) -> EmbeddingScale:
    """Reversal with sinusoidal positions, whose entries are up to 1; embeddings start as N(0, 1 / d_model) (3.4)."""
    task = reversal()
    models = {"times sqrt(d_model)": [], "as they are": []}  # type: dict[str, list[Transformer]]
    for seed in _seeds(fast):
        models["times sqrt(d_model)"].append(small_transformer(task.vocabulary, seed))
        plain = small_transformer(task.vocabulary, seed)
        plain.src_embedding.__class__ = plain.tgt_embedding.__class__ = Unscaled  # the same matrix, read otherwise
        models["as they are"].append(plain)
    return EmbeddingScale(*_trained(models, task, steps=120 if fast else 300, whole_answers=True))


def _trained(
    models: dict[str, list[Transformer]], task: SymbolTask, *, steps: int, whole_answers: bool = False
) -> tuple[dict[str, list[Training]], dict[str, list[float]], dict[str, int]]:
    test: Batch = task.draw(200, torch.Generator().manual_seed(99))
    score = exact_match if whole_answers else token_accuracy
    trainings: dict[str, list[Training]] = {}
    accuracy: dict[str, list[float]] = {}
    for name, some in models.items():
        trainings[name] = [train(model, task.draw, steps=steps, seed=seed) for seed, model in enumerate(some, 1)]
        accuracy[name] = [score(model, test) for model in some]
    counts = {name: sum(p.numel() for p in some[0].parameters()) for name, some in models.items()}
    return trainings, accuracy, counts


def _seeds(fast: bool) -> Sequence[int]:
    return (1,) if fast else (1, 2)
