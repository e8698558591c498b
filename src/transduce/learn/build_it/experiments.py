"""The Transformer of the workshop beside recurrent networks as large, each with the same minutes of one core."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from transduce.evaluation.metrics import Score
from transduce.learn.build_it import pieces
from transduce.learn.build_it.words import SpokenWords
from transduce.learn.ledger import FAST
from transduce.learn.measuring import one_thread
from transduce.learn.recurrent import RecurrentConfig, RecurrentSeq2Seq, as_large_as, num_parameters
from transduce.learn.training import written

TRANSFORMER, GRU, LOOKING = "your Transformer", "GRU", "GRU with attention"
RATES = (1e-3, 3e-3, 1e-2)
_STEPS = {False: 3_000, True: 40}  # of the Transformer, at its one rate; the others get as much time
_MOST_PHONEMES = 25


class _Logits(nn.Module):
    """A recurrent network with the interface of the workshop: source and target ids in, logits out."""

    def __init__(self, network: RecurrentSeq2Seq) -> None:
        super().__init__()
        self.network = network

    def forward(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        return self.network.logits(self.network(src, tgt_in))


@dataclass(frozen=True)
class BesideGRUs:
    """Share of unseen words without a wrong phoneme, in percent; of the recurrent ones at the best of three rates."""

    scores: dict[str, Score]
    by_rate: dict[str, dict[float, float]]
    steps: dict[str, int]
    parameters: dict[str, int]
    seconds: float  # of one core, for each training

    @property
    def ahead_of_gru(self) -> float:
        return self.scores[TRANSFORMER].value - self.scores[GRU].value

    @property
    def ahead_of_gru_with_attention(self) -> float:
        return self.scores[TRANSFORMER].value - self.scores[LOOKING].value


@one_thread()
def beside_grus(*, fast: bool = FAST) -> BesideGRUs:
    """Trains the solutions of the workshop, then GRUs that read both ways, with the same loop, pairs and seconds."""
    words = SpokenWords.load(fast=fast)
    torch.manual_seed(1)
    model = pieces.Transformer(words.num_letters, words.num_phonemes, 96, 4, 192, 2, 0.0)
    size = num_parameters(model)
    seconds = _trained(model, _STEPS[fast], 3e-3, fast)
    src, _, _ = pieces.batch_of(words.test)
    scores = {TRANSFORMER: words.score(pieces.greedy_decode(model.eval(), src, _MOST_PHONEMES))}
    steps, parameters = {TRANSFORMER: _STEPS[fast]}, {TRANSFORMER: size}
    by_rate: dict[str, dict[float, float]] = {}
    for name, attends in ((GRU, False), (LOOKING, True)):
        config = RecurrentConfig(attends=attends, reads_both_ways=True)
        per_step = _trained(_Logits(_recurrent(size, config, words)), 20, 1e-3, fast) / 20
        steps[name] = max(20, round(seconds / per_step))
        found: dict[float, Score] = {}
        for rate in RATES[1:2] if fast else RATES:
            network = _recurrent(size, config, words)
            parameters[name] = num_parameters(network)
            _trained(_Logits(network), steps[name], rate, fast)
            found[rate] = words.score(written(network, src, _MOST_PHONEMES))
        by_rate[name] = {rate: score.value for rate, score in found.items()}
        scores[name] = max(found.values(), key=lambda score: score.value)
    return BesideGRUs(scores, by_rate, steps, parameters, seconds)


def _recurrent(size: int, config: RecurrentConfig, words: SpokenWords) -> RecurrentSeq2Seq:
    def build(width: int) -> nn.Module:
        torch.manual_seed(1)
        return RecurrentSeq2Seq(replace(config, d_model=width), words.words.vocabulary)

    return as_large_as(size, build)  # type: ignore[return-value]


def _trained(model: Any, steps: int, rate: float, fast: bool) -> float:
    """Trains on the same pairs, in the same order, for every model; the seconds of the processor that it took."""
    next_pairs: Callable[[], Any] = SpokenWords.load(fast=fast).next_pairs
    started = time.process_time()
    pieces.train(model, next_pairs, steps, learning_rate=rate, warmup_steps=max(1, steps // 10))
    return time.process_time() - started
