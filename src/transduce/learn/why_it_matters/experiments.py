"""Why the Transformer mattered: the paper's reasons (section 4), measured beside recurrent networks as large."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from transduce.data.batches import Batch
from transduce.inference.engine import InferenceModel
from transduce.learn.ledger import FAST
from transduce.learn.measuring import interleaved, longest_chain, num_calls, one_thread
from transduce.learn.recurrent import RecurrentConfig, RecurrentSeq2Seq, as_large_as, num_parameters
from transduce.learn.tasks import BOS, EOS, FIRST_SYMBOL, PAD, SymbolTask
from transduce.learn.training import Draw, small_transformer, train, written
from transduce.learn.varying import variation
from transduce.model import Transformer
from transduce.model.config import VocabularySizes
from transduce.training.loss import cross_entropy_sum

TRANSFORMER, GRU, LSTM, LOOKING = "Transformer", "GRU", "LSTM", "GRU with attention"
GRU_RATES = (3e-3, 1e-2, 3e-2)  # the GRU is given the best of three learning rates
LONGEST_DISTANCE, MANY = 200, 8  # symbols in between; symbols asked for

_TOKENS_PER_STEP = {False: 2048, True: 256}  # of each side, whatever the length: as batches of translations are made


_NUM_KINDS = 8  # of symbols to recall
_RATES = {False: 2.5e-3, True: 6e-3}  # the Transformer's learning rate for recall; a smaller one takes a larger one
_RATE_LOOKING = 1e-2  # that of the GRU with attention

# Reason one: parallel


@dataclass(frozen=True)
class Speed:
    """One training step (forward and backward) and one token of an answer, by length and network."""

    lengths: tuple[int, ...]  # of source and target
    parameters: dict[str, int]
    milliseconds: dict[
        str, tuple[float, ...]
    ]  # medians of interleaved rounds; the same number of tokens at each length
    chains: dict[str, tuple[int, ...]]  # operations on the longest path through the network
    calls: dict[str, tuple[int, ...]]  # of kernels, in one step
    answer_lengths: tuple[int, ...]
    answers: dict[str, tuple[float, ...]]  # milliseconds to write answers of each of these lengths, token after token

    def ratio(self, name: str, length: int) -> float:
        """How many times as long as the Transformer's a step takes."""
        at = self.lengths.index(length)
        return self.milliseconds[name][at] / self.milliseconds[TRANSFORMER][at]

    @property
    def gru_chain_growth(self) -> float:
        return self.chains[GRU][-1] / self.chains[GRU][0]

    @property
    def transformer_chain_growth(self) -> float:
        return self.chains[TRANSFORMER][-1] / self.chains[TRANSFORMER][0]

    @property
    def gru_at_longest(self) -> float:
        return self.ratio(GRU, self.lengths[-1])

    @property
    def gru_at_shortest(self) -> float:
        return self.ratio(GRU, self.lengths[0])

    @property
    def lstm_at_longest(self) -> float:
        return self.ratio(LSTM, self.lengths[-1])

    @property
    def decoding_ratio(self) -> float:
        """How many times as long as the GRU the Transformer takes to write the longest answers."""
        return self.answers[TRANSFORMER][-1] / self.answers[GRU][-1]


def speed(*, fast: bool = FAST) -> Speed:
    """Times equally large networks, one round of all after the other, at lengths 16 to 512 (section 4, table 1).

    One layer on each side, without attention in the recurrent ones. Milliseconds are medians, as neighbors disturb.
    """
    lengths = (16, 64) if fast else (16, 32, 64, 128, 256, 512)
    networks = _equally_large(VocabularySizes.joint(64), d_model=32 if fast else 128, names=(TRANSFORMER, GRU, LSTM))
    random = torch.Generator().manual_seed(1)
    batches = [torch.randint(FIRST_SYMBOL, 64, (_TOKENS_PER_STEP[fast] // n, n), generator=random) for n in lengths]
    rounds = 2 if fast else 9
    times = interleaved({name: [_step_of(m, ids) for ids in batches] for name, m in networks.items()}, rounds)
    answer_lengths = (8, 32) if fast else (16, 64, 256)
    answering = {
        name: [_answers_of(m, batches[0][:8], n) for n in answer_lengths]
        for name, m in networks.items()
        if name != LSTM
    }
    return Speed(
        lengths=lengths,
        parameters={name: num_parameters(m) for name, m in networks.items()},
        milliseconds=times,
        chains={
            name: tuple(longest_chain(m(ids, ids)) for ids in batches) for name, m in networks.items() if name != LSTM
        },
        calls={name: tuple(num_calls(_step_of(m, ids)) for ids in batches) for name, m in networks.items()},
        answer_lengths=answer_lengths,
        answers=interleaved(answering, rounds),
    )


# Reason two: far away


@dataclass(frozen=True)
class Gradients:
    """Mean length of d loss / d embedding of the first source token, by its distance from the source's end."""

    distances: tuple[int, ...]
    lengths: dict[str, tuple[float, ...]]

    @property
    def decades_lost(self) -> float:
        """Powers of ten between the Transformer's and the GRU's at the largest distance."""
        return math.log10(self.lengths[TRANSFORMER][-1] / self.lengths[GRU][-1])


@one_thread()
def gradients(*, fast: bool = FAST) -> Gradients:
    """How much the loss feels of a token far away, before any training; float64, means over three starts."""
    distances = (5, 50) if fast else (5, 10, 20, 50, 100, LONGEST_DISTANCE)
    seeds = (1,) if fast else (1, 2, 3)
    found = {}
    for name in (TRANSFORMER, GRU, LOOKING):
        of_seeds = []
        for seed in seeds:
            network = _equally_large(first_symbols(1, 1).vocabulary, names=(name,), seed=seed)[name].double().eval()
            of_seeds.append([_first_token_gradient(network, distance) for distance in distances])
        found[name] = tuple(map(statistics.mean, zip(*of_seeds, strict=True)))
    return Gradients(distances, found)


@dataclass(frozen=True)
class Recall:
    """Share of the first symbols of a source named right, by how many others follow them."""

    distances: tuple[int, ...]
    count: int  # symbols asked for in the harder form
    scores: dict[tuple[str, int], tuple[float, ...]]  # by network and number of symbols asked for; the GRU's best rate
    rates: dict[float, tuple[float, ...]]  # the GRU's, asked for eight, by learning rate
    slow: tuple[float, ...]  # the GRU's, asked for one, at the smallest rate; the others are trained at the middle one
    chance: float

    @property
    def transformer_far(self) -> float:
        return self.scores[TRANSFORMER, self.count][-1]

    @property
    def gru_far(self) -> float:
        return self.scores[GRU, self.count][-1]

    @property
    def attention_far(self) -> float:
        return self.scores[LOOKING, self.count][-1]

    @property
    def gru_one_far(self) -> float:
        return self.scores[GRU, 1][-1]


@one_thread()
def recall(*, fast: bool = FAST) -> Recall:
    """Which symbols came first? Distances are mixed in training, so that near ones teach what far ones need.

    Eight symbols of eight kinds, and one. Each network writes its answers by itself; the GRU is given the best of
    `GRU_RATES` for eight.
    """
    distances = (5, 20) if fast else (5, 20, 50, LONGEST_DISTANCE)
    count = 4 if fast else MANY

    def scores_of(name: str, num_asked: int, rate: float) -> tuple[float, ...]:
        tasks = [first_symbols(num_asked, distance) for distance in distances]
        steps = 200 if fast else 250 if num_asked == 1 else 400
        network = _trained(name, _mixed(num_asked, distances), rate, steps, fast)
        return tuple(_share_named(network, task) for task in tasks)

    rates = {rate: scores_of(GRU, count, rate) for rate in (GRU_RATES[1:2] if fast else GRU_RATES)}
    scores = {
        (TRANSFORMER, count): scores_of(TRANSFORMER, count, _RATES[fast]),
        (LOOKING, count): scores_of(LOOKING, count, _RATE_LOOKING),
        (GRU, count): max(rates.values(), key=sum),
        (GRU, 1): scores_of(GRU, 1, GRU_RATES[1]),
    }
    slow = scores[GRU, 1] if fast else scores_of(GRU, 1, GRU_RATES[0])
    return Recall(distances, count, scores, rates, slow, 1 / _NUM_KINDS)


@dataclass(frozen=True)
class FarAlone:
    """Share of first symbols named right by networks that were trained at one distance and saw no other."""

    distances: tuple[int, ...]
    rates: dict[float, tuple[float, ...]]  # the GRU's, by learning rate
    others: dict[str, float]  # at the largest distance
    chance: float

    @property
    def slowest_far(self) -> float:
        """The GRU at the smallest learning rate and the largest distance."""
        return self.rates[min(self.rates)][-1]


@one_thread()
def far_alone(*, fast: bool = FAST) -> FarAlone:
    """Which symbol came first, when nothing near is ever seen? A network for each distance and learning rate."""
    distances = (5, 40) if fast else (10, 30, 100)
    tasks = [first_symbols(1, distance) for distance in distances]

    def score(name: str, task: SymbolTask, rate: float) -> float:
        return _share_named(_trained(name, task.draw, rate, 60 if fast else 250, fast), task)

    rates = {rate: tuple(score(GRU, task, rate) for task in tasks) for rate in (GRU_RATES[:1] if fast else GRU_RATES)}
    others = {
        name: score(name, tasks[-1], rate) for name, rate in ((TRANSFORMER, _RATES[fast]), (LOOKING, _RATE_LOOKING))
    }
    return FarAlone(distances, rates, others, 1 / _NUM_KINDS)


# What they share


def _equally_large(
    vocabulary: VocabularySizes, *, d_model: int = 64, names: tuple[str, ...], seed: int = 1
) -> dict[str, Any]:
    """A Transformer with one layer on each side, and recurrent networks of the same number of parameters."""
    settings: dict[str, Any] = {"d_model": d_model, "d_ff": 4 * d_model, "norm_first": True, "max_len": 600}
    transformer = small_transformer(vocabulary, seed, num_encoder_layers=1, num_decoder_layers=1, **settings)
    configs = {
        GRU: RecurrentConfig(cell="gru"),
        LSTM: RecurrentConfig(cell="lstm"),
        LOOKING: RecurrentConfig(cell="gru", attends=True),
    }
    networks: dict[str, Any] = {TRANSFORMER: transformer}
    for name in set(names) - {TRANSFORMER}:
        networks[name] = recurrent_as_large(transformer, configs[name], seed)
    return {name: networks[name] for name in names}


def recurrent_as_large(transformer: Transformer, config: RecurrentConfig, seed: int = 1) -> RecurrentSeq2Seq:
    """The recurrent network like `config` whose width makes it as large as `transformer`."""

    def build(width: int) -> nn.Module:
        torch.manual_seed(seed + variation().seed)
        return RecurrentSeq2Seq(replace(config, d_model=width), transformer.vocabulary)

    return as_large_as(num_parameters(transformer), build)  # type: ignore[return-value]


def _step_of(model: Any, ids: Int[Tensor, "batch len"]) -> Callable[[], None]:
    def step() -> None:
        loss, count = cross_entropy_sum(model(ids, ids), model.output_weight, ids, pad_id=PAD)
        (loss / count).backward()
        model.zero_grad(set_to_none=True)

    return step


def _answers_of(model: Any, src: Int[Tensor, "batch len"], num_tokens: int) -> Callable[[], None]:
    """Writes `num_tokens` tokens for each source, one after another, by the network as it answers."""
    answering = InferenceModel(model) if isinstance(model, Transformer) else model

    @torch.inference_mode()
    def answer() -> None:
        state, tokens, parents = answering.start(src), torch.full((len(src), 1), BOS), torch.zeros(len(src), 1).long()
        for _ in range(num_tokens):
            logits, state = answering.step(tokens, parents, state)
            tokens = logits.argmax(dim=-1)

    return answer


def first_symbols(count: int, distance: int) -> SymbolTask:
    """Name the first `count` symbols of a source in which `distance` others follow; eight symbols in all."""
    return SymbolTask("recall", _NUM_KINDS, count + distance, count + distance, lambda source: source[:count])


def _first_token_gradient(network: Any, distance: int) -> float:
    batch = first_symbols(1, distance).draw(16, torch.Generator().manual_seed(distance))
    embedded: list[Tensor] = []
    with network.src_embedding.register_forward_hook(lambda _module, _args, x: embedded.append(x)):
        hidden = network(batch.src, batch.tgt_in)
    loss, count = cross_entropy_sum(hidden, network.output_weight, batch.tgt_out, pad_id=PAD)
    (gradient,) = torch.autograd.grad(loss / count, embedded[0])  # of the source: it is embedded first
    return float(gradient[:, 0].norm(dim=-1).mean())


def _mixed(count: int, distances: tuple[int, ...]) -> Draw:
    """Batches of one distance each, drawn evenly by its logarithm."""

    def draw(num_rows: int, random: torch.Generator) -> Batch:
        share = float(torch.rand((), generator=random))
        distance = round(distances[0] * (distances[-1] / distances[0]) ** share)
        return first_symbols(count, distance).draw(num_rows, random)

    return draw


def _trained(name: str, draw: Draw, rate: float, steps: int, fast: bool) -> Any:
    network = _equally_large(first_symbols(1, 1).vocabulary, d_model=32 if fast else 64, names=(name,))[name]
    train(network, draw, steps=steps, batch_size=32, learning_rate=rate, warmup_steps=20, max_grad_norm=1.0)
    return network


def _share_named(network: Any, task: SymbolTask) -> float:
    batch = task.draw(200, torch.Generator().manual_seed(99))
    wanted = [row[: row.index(EOS)] for row in batch.tgt_out.tolist()]
    answers = written(network, batch.src, batch.tgt_out.size(1))
    right = sum(a == b for x, y in zip(answers, wanted, strict=True) for a, b in zip(x, y, strict=False))
    return right / sum(map(len, wanted))
