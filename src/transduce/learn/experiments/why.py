"""Why the Transformer mattered: the paper's three reasons (section 4; table 2), measured beside recurrent networks."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from transduce.data import Batch
from transduce.inference import InferenceModel
from transduce.learn.ledger import FAST
from transduce.learn.recurrent import RecurrentConfig, RecurrentSeq2Seq, as_large_as, num_parameters
from transduce.learn.tasks import BOS, EOS, FIRST_SYMBOL, PAD, SymbolTask
from transduce.learn.training import small_transformer, train, written
from transduce.loss import cross_entropy_sum
from transduce.model import Transformer, VocabularySizes

TRANSFORMER, GRU, LSTM, LOOKING = "Transformer", "GRU", "LSTM", "GRU with attention"
GRU_RATES = (3e-3, 1e-2, 3e-2)  # the GRU is given the best of three learning rates at each distance
LONGEST_DISTANCE = 200

_TOKENS_PER_STEP = {False: 2048, True: 256}  # of each side, whatever the length: as batches of translations are made


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

    One layer on each side, without attention in the recurrent ones. Milliseconds are medians, as neighbours disturb.
    """
    lengths = (16, 64) if fast else (16, 32, 64, 128, 256, 512)
    networks = _equally_large(VocabularySizes.joint(64), d_model=32 if fast else 128, names=(TRANSFORMER, GRU, LSTM))
    random = torch.Generator().manual_seed(1)
    batches = [torch.randint(FIRST_SYMBOL, 64, (_TOKENS_PER_STEP[fast] // n, n), generator=random) for n in lengths]
    rounds = 2 if fast else 7
    times = _interleaved({name: [_step_of(m, ids) for ids in batches] for name, m in networks.items()}, rounds)
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
        calls={name: tuple(_num_calls(_step_of(m, ids)) for ids in batches) for name, m in networks.items()},
        answer_lengths=answer_lengths,
        answers=_interleaved(answering, rounds),
    )


def longest_chain(output: Tensor) -> int:
    """The number of operations on the longest path from any input to `output`: each has to wait for the one before.

    Counted in the graph that autograd keeps for the backward pass, so nothing is counted that is not done.
    """
    depth: dict[Any, int] = {}
    stack: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    while stack:
        node, is_below_done = stack.pop()
        below = [further for further, _ in node.next_functions if further is not None]
        if is_below_done:
            depth[node] = 1 + max((depth[further] for further in below), default=0)
        elif node not in depth:
            stack += [(node, True), *((further, False) for further in below if further not in depth)]
    return depth[output.grad_fn]


# Reason two: far away


@dataclass(frozen=True)
class Gradients:
    """Mean length of d loss / d embedding of the first source token, by its distance from the source's end."""

    distances: tuple[int, ...]
    lengths: dict[str, tuple[float, ...]]

    @property
    def decades_lost(self) -> float:
        """Powers of ten between the Transformer's and the GRU's at the largest distance."""
        return float(torch.log10(torch.tensor(self.lengths[TRANSFORMER][-1] / self.lengths[GRU][-1])))


def gradients(*, fast: bool = FAST) -> Gradients:
    """How much the loss feels of a token far away, before any training; float64, means over three starts."""
    distances = (5, 50) if fast else (5, 10, 20, 50, 100, LONGEST_DISTANCE)
    seeds = (1,) if fast else (1, 2, 3)
    found = {}
    for name in (TRANSFORMER, GRU, LOOKING):
        of_seeds = []
        for seed in seeds:
            network = _equally_large(_first_symbols(1, 1).vocabulary, names=(name,), seed=seed)[name].double().eval()
            of_seeds.append([_first_token_gradient(network, distance) for distance in distances])
        found[name] = tuple(map(statistics.mean, zip(*of_seeds, strict=True)))
    return Gradients(distances, found)


@dataclass(frozen=True)
class Recall:
    """Share of the first symbols named right, by how many tokens follow them in the source."""

    distances: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    rates: dict[float, tuple[float, ...]]  # the GRU's at each learning rate; `scores` has the best of them
    chance: float

    @property
    def transformer_far(self) -> float:
        return self.scores[TRANSFORMER][-1]

    @property
    def gru_far(self) -> float:
        return self.scores[GRU][-1]

    @property
    def attention_far(self) -> float:
        return self.scores[LOOKING][-1]


def recall(*, fast: bool = FAST) -> Recall:
    """Which symbol came first? Trained for each distance anew, on nothing but that distance, and as many steps."""
    distances = (5, 60) if fast else (5, 10, 20, 50, LONGEST_DISTANCE)
    scores: dict[str, list[float]] = {TRANSFORMER: [], GRU: [], LOOKING: []}
    rates: dict[float, list[float]] = {rate: [] for rate in (GRU_RATES[1:2] if fast else GRU_RATES)}
    for distance in distances:
        task = _first_symbols(1, distance)
        for name, rate in ((TRANSFORMER, 5e-3), (LOOKING, 1e-2)):
            scores[name].append(_recalled(name, task.draw, [task], rate, fast)[0])
        for rate, of_rate in rates.items():
            of_rate.append(_recalled(GRU, task.draw, [task], rate, fast)[0])
        scores[GRU].append(max(of_rate[-1] for of_rate in rates.values()))
    return Recall(distances, _as_tuples(scores), _as_tuples(rates), 1 / task.num_symbols)


@dataclass(frozen=True)
class MixedRecall:
    """The same of networks that saw near and far ones mixed, for one symbol and for eight."""

    distances: tuple[int, ...]
    scores: dict[tuple[str, int], tuple[float, ...]]  # (network, how many symbols are asked for)
    chance: float

    @property
    def one_far(self) -> float:
        """One symbol, the GRU, the largest distance."""
        return self.scores[GRU, 1][-1]

    @property
    def eight_far(self) -> float:
        return self.scores[GRU, 8][-1]


def mixed_recall(*, fast: bool = FAST) -> MixedRecall:
    """Which symbols came first? One network for all distances: batches of near ones teach what far ones need."""
    distances = (5, 60) if fast else (5, 20, 50, LONGEST_DISTANCE)
    scores = {}
    for name, count, rate in ((GRU, 1, 1e-2), (GRU, 8, 5e-3), (TRANSFORMER, 8, 5e-3)):
        tasks = [_first_symbols(count, distance) for distance in distances]

        def draw(num_rows: int, random: torch.Generator, count: int = count) -> Batch:
            share = float(torch.rand((), generator=random))  # evenly by the logarithm of the distance
            distance = round(distances[0] * (distances[-1] / distances[0]) ** share)
            return _first_symbols(count, distance).draw(num_rows, random)

        scores[name, count] = tuple(_recalled(name, draw, tasks, rate, fast, more_steps=2.0))
    return MixedRecall(distances, scores, 1 / tasks[0].num_symbols)


# What they share


def _equally_large(
    vocabulary: VocabularySizes, *, d_model: int = 64, names: tuple[str, ...], seed: int = 1
) -> dict[str, Any]:
    """A Transformer with one layer on each side, and recurrent networks of the same number of parameters."""
    paper_like = {"d_model": d_model, "d_ff": 2 * d_model, "norm_first": True, "max_len": 600}
    transformer = small_transformer(vocabulary, seed, num_encoder_layers=1, num_decoder_layers=1, **paper_like)
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
        torch.manual_seed(seed)
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


def _interleaved(work: dict[str, list[Callable[[], None]]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Median milliseconds of each piece of work; a round does each once, so that all meet the same neighbours."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in pieces] for name, pieces in work.items()}
    for number in range(rounds + 1):
        for place in range(len(next(iter(work.values())))):
            for name, pieces in work.items():
                started = time.perf_counter()
                pieces[place]()
                if number:  # the first round warms up
                    times[name][place].append(1e3 * (time.perf_counter() - started))
    return {name: tuple(map(statistics.median, of_name)) for name, of_name in times.items()}


class _Counter(TorchDispatchMode):
    """Counts what torch is asked to compute while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def _num_calls(work: Callable[[], None]) -> int:
    with _Counter() as counter:
        work()
    return counter.calls


def _first_symbols(count: int, distance: int) -> SymbolTask:
    """Name the first `count` symbols of a source in which `distance` others follow; eight symbols in all."""
    return SymbolTask("recall", 8, count + distance, count + distance, lambda source: source[:count])


def _first_token_gradient(network: Any, distance: int) -> float:
    batch = _first_symbols(1, distance).draw(16, torch.Generator().manual_seed(distance))
    embedded: list[Tensor] = []
    with network.src_embedding.register_forward_hook(lambda _module, _args, x: embedded.append(x)):
        hidden = network(batch.src, batch.tgt_in)
    loss, count = cross_entropy_sum(hidden, network.output_weight, batch.tgt_out, pad_id=PAD)
    (gradient,) = torch.autograd.grad(loss / count, embedded[0])  # of the source: it is embedded first
    return float(gradient[:, 0].norm(dim=-1).mean())


def _recalled(
    name: str, draw: Any, tests: list[SymbolTask], rate: float, fast: bool, more_steps: float = 1.0
) -> list[float]:
    """Trains one network; its scores on each of `tests`, by what it writes itself."""
    network = _equally_large(tests[0].vocabulary, d_model=32 if fast else 64, names=(name,))[name]
    steps = round((60 if fast else 250) * more_steps)
    train(network, draw, steps=steps, batch_size=32, learning_rate=rate, warmup_steps=20, max_grad_norm=1.0)
    return [_share_named(network, task.draw(200, torch.Generator().manual_seed(99))) for task in tests]


def _share_named(network: Any, batch: Batch) -> float:
    wanted = [row[: row.index(EOS)] for row in batch.tgt_out.tolist()]
    answers = written(network, batch.src, batch.tgt_out.size(1))
    right = sum(a == b for x, y in zip(answers, wanted, strict=True) for a, b in zip(x, y, strict=False))
    return right / sum(map(len, wanted))


def _as_tuples(scores: dict[Any, list[float]]) -> dict[Any, tuple[float, ...]]:
    return {name: tuple(of_name) for name, of_name in scores.items()}
