"""Why attention is divided by a root, why it has several heads, why embeddings are multiplied by a root."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transduce.inference.attention_maps import record_attention
from transduce.learn.ledger import FAST
from transduce.learn.surgery import UnscaledEmbedding
from transduce.learn.tasks import SymbolTask, reversal, sorting
from transduce.learn.training import Training, mean_loss, small_transformer, train
from transduce.learn.transformer.tagging import UNASKED, Tagger, share_right, train_tagger
from transduce.model import MultiHeadAttention, Transformer
from transduce.model.positional import sinusoidal_table

_NUM_KEYS = 20
SCALES = ("the paper", "no factor", "no factor, large", "no factor, large, untied")


@dataclass(frozen=True)
class Saturation:
    """What softmax makes of products of random vectors, by their width; means over many draws."""

    widths: tuple[int, ...]  # d_k
    largest: dict[str, tuple[float, ...]]  # largest weight of 20, by "with the root" and "without"
    jacobian: dict[str, tuple[float, ...]]  # Frobenius norm of d weights / d scores
    example: dict[str, Float[Tensor, "widths keys"]]  # weights of one draw, keys by falling weight

    @property
    def unscaled_largest(self) -> float:
        """At the greatest width."""
        return self.largest["without"][-1]

    @property
    def gradient_ratio(self) -> float:
        """Length of the derivative without the root over that with it, at the greatest width."""
        return self.jacobian["without"][-1] / self.jacobian["with the root"][-1]


def saturation(*, fast: bool = FAST) -> Saturation:
    """Draws queries and 20 keys from N(0, 1), d_k wide, and looks at the softmax of their products (section 3.2.1)."""
    random = torch.Generator().manual_seed(0)
    widths = (4, 8, 16, 32, 64, 128, 256)
    largest: dict[str, list[float]] = {"with the root": [], "without": []}
    jacobian: dict[str, list[float]] = {"with the root": [], "without": []}
    example: dict[str, list[Tensor]] = {"with the root": [], "without": []}
    for width in widths:
        queries = torch.randn(200 if fast else 2_000, 1, width, generator=random)
        keys = torch.randn(len(queries), _NUM_KEYS, width, generator=random)
        products = (queries @ keys.transpose(1, 2))[:, 0]
        for name, scores in (("with the root", products / math.sqrt(width)), ("without", products)):
            weights = scores.softmax(dim=-1)
            largest[name].append(float(weights.amax(dim=-1).mean()))
            jacobian[name].append(float(softmax_jacobian(weights).flatten(1).norm(dim=1).median()))
            example[name].append(weights[0].sort(descending=True).values)
    return Saturation(
        widths=widths,
        largest={name: tuple(values) for name, values in largest.items()},
        jacobian={name: tuple(values) for name, values in jacobian.items()},
        example={name: torch.stack(rows) for name, rows in example.items()},
    )


def softmax_jacobian(weights: Float[Tensor, "*batch keys"]) -> Float[Tensor, "*batch keys keys"]:
    """d weights / d scores = diag(a) - a a^T: nothing where one weight is 1."""
    return torch.diag_embed(weights) - weights[..., :, None] * weights[..., None, :]


class WithoutRoot(MultiHeadAttention):
    """The shipped module with the division undone: queries are multiplied by sqrt(d_k) beforehand."""

    def project_self(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project_self(x, positions)
        return q * math.sqrt(q.size(-1)), k, v

    def project_queries(self, x: Tensor) -> Tensor:
        q = super().project_queries(x)
        return q * math.sqrt(q.size(-1))


@dataclass(frozen=True)
class RootTraining:
    """Reversal with a single head of d_k = d_model, with the division by the root and without."""

    width: int  # d_k
    with_root: list[Training]  # one for each seed
    without: list[Training]
    loss_with: float  # nats per token on new sources, mean over seeds
    loss_without: float

    @property
    def excess(self) -> float:
        return self.loss_without - self.loss_with


def training_without_root(*, fast: bool = FAST) -> RootTraining:
    """Trains the same network twice, alike in everything but the division (section 3.2.1)."""
    width, steps, seeds = (128, 80, (1,)) if fast else (128, 280, (1, 2))
    task = reversal(5, 2, 4) if fast else reversal(10, 3, 8)
    test = task.draw(200, torch.Generator().manual_seed(77))
    trainings: dict[bool, list[Training]] = {True: [], False: []}
    losses: dict[bool, list[float]] = {True: [], False: []}
    for seed in seeds:
        for has_root in (True, False):
            size = {"d_model": width, "d_ff": width, "num_heads": 1, "num_encoder_layers": 1, "num_decoder_layers": 1}
            model = small_transformer(task.vocabulary, seed, **size)
            if not has_root:
                take_out_root(model)
            trained = train(
                model, task.draw, steps=steps, batch_size=32, warmup_steps=20, seed=seed, learning_rate=1e-3
            )
            trainings[has_root].append(trained)
            losses[has_root].append(mean_loss(model, test))
    means = {has_root: sum(values) / len(values) for has_root, values in losses.items()}
    return RootTraining(width, trainings[True], trainings[False], means[True], means[False])


def take_out_root(model: Transformer) -> None:
    """Puts `WithoutRoot` in the place of every attention of `model`, with the weights that are there."""
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        for name, part in list(layer.named_children()):
            if isinstance(part, MultiHeadAttention):
                replaced = WithoutRoot(part.out_proj.in_features, part.num_heads)
                replaced.load_state_dict(part.state_dict())
                setattr(layer, name, replaced)


@dataclass(frozen=True)
class TwoLookUps:
    """Previous and first symbol at every position, by one layer of one head or of several."""

    both: dict[str, float]  # by network: share of positions with both answers right
    each: dict[str, list[float]]  # the shares of the previous and of the first symbol
    trainings: dict[str, Training]
    num_parameters: dict[str, int]  # of the layer
    maps: dict[str, Float[Tensor, "heads queries keys"]]  # of one sequence
    num_symbols: int

    @property
    def gap(self) -> float:
        """Between one head and four, attention alone."""
        return self.both["4 heads"] - self.both["1 head"]

    @property
    def one_head_with_a_network(self) -> float:
        """The share of one head with a feed-forward network behind it; NaN where it was not trained."""
        return self.both.get("1 head, FFN", math.nan)


def previous_and_first(symbols: Int[Tensor, "batch len"]) -> Int[Tensor, "batch len questions"]:
    """At each position but the first two, where the answers would be one: (previous symbol, first symbol)."""
    answers = torch.stack((symbols.roll(1, dims=1), symbols[:, :1].expand_as(symbols)), dim=-1)
    answers[:, :2] = UNASKED
    return answers


def two_look_ups(*, fast: bool = FAST) -> TwoLookUps:
    """Trains one encoder layer with linear read-outs to name two earlier symbols at once (section 3.2.2).

    All have d_model channels in all; four heads have a quarter each. With a feed-forward network behind it, too.
    """
    num_symbols, length, steps = (5, 6, 120) if fast else (10, 10, 500)
    networks = {"1 head": (1, False), "4 heads": (4, False), "1 head, FFN": (1, True), "4 heads, FFN": (4, True)}
    test = torch.randint(num_symbols, (300, length), generator=torch.Generator().manual_seed(5))
    found = TwoLookUps({}, {}, {}, {}, {}, num_symbols)
    for name, (num_heads, has_feed_forward) in networks.items():
        if fast and has_feed_forward:
            continue
        model = Tagger(num_symbols, 2, feed_forward=has_feed_forward, num_heads=num_heads, d_model=64)
        found.trainings[name] = train_tagger(
            model, previous_and_first, num_symbols=num_symbols, length=length, steps=steps
        )
        found.both[name], found.each[name] = share_right(model, previous_and_first, test)
        found.num_parameters[name] = model.num_layer_parameters
        with record_attention(model) as maps, torch.no_grad():
            model(test[:1])
        found.maps[name] = next(iter(maps.values()))[0]
    return found


@dataclass(frozen=True)
class EmbeddingScale:
    """Two tasks, with the factor sqrt(d_model) on embeddings and without; and embeddings that are drawn large."""

    trainings: dict[str, dict[str, list[Training]]]  # by task and network, one for each seed
    losses: dict[str, dict[str, list[float]]]  # nats per token on new sources
    starts: dict[str, float]  # the same before training, on reversal
    ends: dict[str, float]  # and after it, with the first seed
    longer: dict[str, Training]  # reversal with the first seed, and more steps
    guessing: float  # the loss of who knows nothing: log of the number of ids
    length_of_positions: float  # mean length of a position's row
    length_of_embeddings: dict[str, float]  # of an embedding as that row is added to it, before training

    def excess(self, task: str) -> list[float]:
        """By how much the loss is higher without the factor, one number for each seed."""
        found = self.losses[task]
        return [a - b for a, b in zip(found["no factor"], found["the paper"], strict=True)]

    @property
    def excess_without(self) -> float:
        """On reversal, mean over seeds."""
        return sum(self.excess("reversal")) / len(self.excess("reversal"))

    @property
    def least_excess_sorting(self) -> float:
        """On sorting, with the seed that says it least."""
        return min(self.excess("sorting"))

    @property
    def start_excess_large(self) -> float:
        """Above guessing, before training: embeddings of unit variance, shared with the output."""
        return self.starts["no factor, large"] - self.guessing


def without_factor(model: Transformer, *, large: bool) -> Transformer:
    """Takes the factor of section 3.4 out; `large` embeddings have variance 1 instead of 1 / d_model."""
    shared: dict[nn.Module, UnscaledEmbedding] = {}
    for name in ("src_embedding", "tgt_embedding"):
        old = getattr(model, name)
        if old not in shared:
            shared[old] = UnscaledEmbedding(*old.weight.shape)
            shared[old].load_state_dict({"weight": old.weight * (math.sqrt(old.embedding_dim) if large else 1.0)})
        setattr(model, name, shared[old])
    return model


def embedding_scale(*, fast: bool = FAST) -> EmbeddingScale:
    """Trains networks that start from the same draws, alike but for the scale of embeddings (section 3.4).

    Reversal asks where a symbol stands; sorting asks only what it is.
    """
    tasks = (reversal(8, 2, 5), sorting(8, 2, 5)) if fast else (reversal(20, 3, 8), sorting(20, 3, 8))
    seeds, steps = ((1,), 60) if fast else ((1, 2, 3), 260)
    found = EmbeddingScale({}, {}, {}, {}, {}, math.log(tasks[0].vocabulary.num_target_ids), 0.0, {})
    for task in tasks:
        test = task.draw(200, torch.Generator().manual_seed(78))
        runs = found.trainings[task.name] = {"the paper": [], "no factor": []}
        losses = found.losses[task.name] = {"the paper": [], "no factor": []}
        for seed in seeds:
            for name, trained in runs.items():
                model = _of_scale(name, task, seed)
                trained.append(train(model, task.draw, steps=steps, batch_size=32, warmup_steps=20, seed=seed))
                losses[name].append(mean_loss(model, test))
    task, test = tasks[0], tasks[0].draw(200, torch.Generator().manual_seed(78))
    for name in SCALES[:2]:
        draw, more = task.draw, 2 * steps if fast else 420
        found.longer[name] = train(_of_scale(name, task, 1), draw, steps=more, batch_size=32, warmup_steps=20)
    for name in SCALES:
        model = _of_scale(name, task, 1)
        factor = math.sqrt(model.config.d_model) if name == "the paper" else 1.0
        found.length_of_embeddings[name] = factor * float(model.src_embedding.weight.detach().norm(dim=1).mean())
        found.starts[name] = mean_loss(model, test)
        if name in found.losses["reversal"]:
            found.ends[name] = found.losses["reversal"][name][0]
        else:
            train(model, task.draw, steps=steps, batch_size=32, warmup_steps=20)
            found.ends[name] = mean_loss(model, test)
    rows = sinusoidal_table(8, model.config.d_model)
    return replace(found, length_of_positions=float(rows.norm(dim=1).mean()))


def _of_scale(name: str, task: SymbolTask, seed: int) -> Transformer:
    size = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    model = small_transformer(task.vocabulary, seed, tie_embeddings="untied" not in name, **size)
    return model if name == "the paper" else without_factor(model, large="large" in name)
