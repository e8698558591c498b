"""The third reason, quality: English words pronounced by a Transformer and by GRUs as large (the paper's table 2)."""

from dataclasses import dataclass
from typing import Any

from transduce.evaluation.metrics import Score
from transduce.learn.ledger import FAST
from transduce.learn.measuring import one_thread
from transduce.learn.pronouncing import Words
from transduce.learn.recurrent import RecurrentConfig, num_parameters
from transduce.learn.training import small_transformer, train
from transduce.learn.why_it_matters.experiments import GRU, LOOKING, TRANSFORMER, recurrent_as_large

_RATES = {TRANSFORMER: 6e-3, GRU: 4e-3, LOOKING: 4e-3}


@dataclass(frozen=True)
class Quality:
    """Phonemes wrong, in percent of those of unseen words, and what it took."""

    steps: tuple[int, ...]  # each number of steps is a training of its own, its rate falling to zero
    scores: dict[str, tuple[Score, ...]]  # phoneme error rates with their intervals
    seconds: dict[str, tuple[float, ...]]  # of training
    parameters: dict[str, int]
    num_words: int  # to learn from
    samples: list[tuple[str, str, dict[str, str]]]  # word, dictionary, what each network says

    @property
    def gru_excess(self) -> float:
        return self.scores[GRU][-1].value - self.scores[TRANSFORMER][-1].value

    @property
    def attention_excess(self) -> float:
        return self.scores[LOOKING][-1].value - self.scores[TRANSFORMER][-1].value


@one_thread()
def quality(*, fast: bool = FAST) -> Quality:
    """Pronounces English words with equally large networks after equally many steps; CMUdict, test words unseen.

    Two layers on each side of the Transformer, one of the GRUs, whose encoders read both ways. Learning rates are the
    best of four (Transformer) and of three, chosen once, ahead, after the larger number of steps.
    """
    words = Words.load(2_000 if fast else 20_000, 60 if fast else 400)
    steps = (20, 60) if fast else (200, 800)
    scores: dict[str, list[Score]] = {}
    seconds: dict[str, list[float]] = {}
    answers: dict[str, list[str]] = {}
    sizes = {}
    for name, rate in _RATES.items():
        for num_steps in steps:
            network = _pronouncer(name, words, fast)
            found = train(
                network,
                words.draw,
                steps=num_steps,
                learning_rate=rate,
                warmup_steps=num_steps // 8,
                max_grad_norm=1.0,
            )
            answers[name] = words.say(network)
            scores.setdefault(name, []).append(words.error_rate(answers[name]))
            seconds.setdefault(name, []).append(found.seconds)
            sizes[name] = num_parameters(network)
    samples = [
        (word, right, {name: said[i] for name, said in answers.items()})
        for i, (word, right) in enumerate(words.test[:8])
    ]
    return Quality(
        steps,
        {name: tuple(row) for name, row in scores.items()},
        {name: tuple(row) for name, row in seconds.items()},
        sizes,
        len(words.train),
        samples,
    )


def _pronouncer(name: str, words: Words, fast: bool) -> Any:
    size = {"d_model": 32, "d_ff": 128} if fast else {"d_model": 64, "d_ff": 256}
    settings: dict[str, Any] = size | {"norm_first": True, "positions": "rotary", "dropout": 0.1}
    transformer = small_transformer(words.vocabulary, **settings)
    if name == TRANSFORMER:
        return transformer
    return recurrent_as_large(transformer, RecurrentConfig(attends=name == LOOKING, reads_both_ways=True, dropout=0.1))
