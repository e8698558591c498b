"""What happens when a model writes: the shift, its own slips, greedy and beam search beside all answers there are.

The networks are the shipped ones, a few thousand to a few ten thousand weights, on tasks whose right answers, and
their probabilities, are known.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from transduce.data.batches import Batch
from transduce.inference.beam_search import beam_search
from transduce.inference.config import DecodingConfig
from transduce.inference.engine import InferenceModel
from transduce.inference.forced_decoding import token_log_probs
from transduce.inference.search import Hypothesis, SpecialIds
from transduce.learn.ledger import FAST
from transduce.learn.surgery import forget_shift
from transduce.learn.tasks import BOS, EOS, FIRST_SYMBOL, PAD, SymbolTask, batch_of, copying
from transduce.learn.training import Draw, Training, exact_match, small_transformer, token_accuracy, train, written
from transduce.model import Transformer
from transduce.model.config import VocabularySizes

SPECIAL = SpecialIds(pad=PAD, bos=BOS, eos=EOS)
_SMALL = {"d_model": 32, "d_ff": 64, "num_encoder_layers": 1, "num_decoder_layers": 1}


# --- the shift -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unshifted:
    """The same network trained with targets shifted by one, and with the target itself as its input."""

    shifted: Training
    unshifted: Training
    told: float  # share of tokens that the second one gets right when the target is its input
    own: float  # share of whole answers that it writes correctly by itself
    own_shifted: float  # the same of the first one

    @property
    def gap(self) -> float:
        return self.told - self.own


def without_shift(*, fast: bool = FAST) -> Unshifted:
    """Copies of 3 to 6 symbols, learned with and without the shift of section 3.1 ("offset by one position").

    Losses are in nats per token. Both are trained on the same rows from the same start.
    """
    task, steps = copying(10, 3, 6), 60 if fast else 250

    def unshifted(num_rows: int, random: torch.Generator) -> Batch:
        return forget_shift(task.draw(num_rows, random))

    models = [small_transformer(task.vocabulary, **_SMALL) for _ in range(2)]
    trainings = [
        train(model, draw, steps=steps, batch_size=32, learning_rate=4e-3)
        for model, draw in zip(models, (task.draw, unshifted), strict=True)
    ]
    test = task.draw(200, torch.Generator().manual_seed(99))
    return Unshifted(
        shifted=trainings[0],
        unshifted=trainings[1],
        told=token_accuracy(models[1], forget_shift(test)),
        own=exact_match(models[1], test),
        own_shifted=exact_match(models[0], test),
    )


# --- told and own tokens ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnWriting:
    """One model, told the right tokens before each position, and left to itself."""

    told_at: list[float]  # share of right tokens at position 1, 2, ... when told all right ones before
    own_at: list[float]  # the same when it goes on from its own
    whole: float  # share of answers without any slip: the same either way, as it sees the same up to the first one

    @property
    def told(self) -> float:
        return sum(self.told_at) / len(self.told_at)

    @property
    def own(self) -> float:
        return sum(self.own_at) / len(self.own_at)

    @property
    def gap(self) -> float:
        """Right tokens when told, less right answers when writing."""
        return self.told - self.whole


RING = 6  # places of the walk


def walks(length: int = 12) -> SymbolTask:
    """The source is steps to the right or to the left on a ring of RING places, the answer the places passed.

    Each place is the one before it and one step: who is told the right place before needs one sign alone, who has
    taken a wrong turn stays wrong until another mistake undoes it.
    """

    def places(source: list[int]) -> list[int]:
        turns = itertools.accumulate(1 if sign == FIRST_SYMBOL else -1 for sign in source)
        return [FIRST_SYMBOL + 2 + turn % RING for turn in turns]

    return SymbolTask("walks", 2, length, length, places)


def own_writing(*, fast: bool = FAST) -> OwnWriting:
    """Walks, learned until most tokens are right if all before them are told; then the model writes alone."""
    task = walks(6 if fast else 12)
    vocabulary = VocabularySizes.joint(FIRST_SYMBOL + 2 + RING)
    model = small_transformer(vocabulary, **_SMALL)
    train(model, task.draw, steps=140 if fast else 450, batch_size=64, learning_rate=4e-3)
    test = task.draw(100 if fast else 500, torch.Generator().manual_seed(99))
    with torch.no_grad():
        told = model.logits(model(test.src, test.tgt_in)).argmax(dim=-1) == test.tgt_out
    length = test.tgt_out.size(1) - 1
    answers = written(model, test.src, length + 1)
    own = torch.tensor([[*answer, *[PAD] * length][:length] for answer in answers]) == test.tgt_out[:, :length]
    return OwnWriting(
        told_at=told[:, :length].float().mean(dim=0).tolist(),
        own_at=own.float().mean(dim=0).tolist(),
        whole=exact_match(model, test),
    )


# --- searches, beside all answers there are --------------------------------------------------------------------------

Answers = dict[tuple[int, ...], float]  # answer -> probability


@dataclass(frozen=True)
class Searches:
    """For each source the likeliest answer there is, and what searches of several widths found."""

    model: Transformer
    sources: list[list[int]]  # with their ends
    likeliest: list[Hypothesis]
    found: dict[int, list[Hypothesis]]  # beam size -> one answer for each source
    in_training: list[Answers]  # of each source: how often each answer stands in the data

    def misses(self, beam_size: int) -> float:
        """Share of sources for which the search does not find the likeliest answer: its search errors."""
        pairs = zip(self.found[beam_size], self.likeliest, strict=True)
        return sum(found.ids != best.ids for found, best in pairs) / len(self.sources)

    def mean_log_prob(self, beam_size: int) -> float:
        """Of the answers found, in nats."""
        return sum(found.log_prob for found in self.found[beam_size]) / len(self.sources)

    @property
    def greedy_misses(self) -> float:
        return self.misses(1)

    @property
    def beam_misses(self) -> float:
        return self.misses(4)


SEARCH_SYMBOLS, SEARCH_LONGEST = 3, 5  # a vocabulary so small that all answers can be scored: 364 of them
BEAM_SIZES = (1, 2, 3, 4, 6)


def searches(*, fast: bool = FAST) -> Searches:
    """Learns 27 sources with eight right answers each, of different probabilities; searches; then scores every answer.

    Log-probabilities are in nats, ends included; nothing is normalized by length.
    """
    symbols = range(FIRST_SYMBOL, FIRST_SYMBOL + SEARCH_SYMBOLS)
    sources = [list(source) for source in itertools.product(symbols, repeat=3)][: 9 if fast else None]
    generator = np.random.default_rng(5)
    every = all_answers(SEARCH_SYMBOLS, SEARCH_LONGEST)
    truth = [_some_answers(generator, every[4:], 8) for _ in sources]
    model = small_transformer(VocabularySizes.joint(FIRST_SYMBOL + SEARCH_SYMBOLS), **_SMALL)
    train(model, _draw_from(sources, truth), steps=120 if fast else 500, batch_size=64, learning_rate=4e-3)
    with_ends = [[*source, EOS] for source in sources]
    likeliest = [score_all(model, source, every)[0] for source in with_ends]
    found = {size: search(model, with_ends, beam_size=size, most_tokens=SEARCH_LONGEST + 1) for size in BEAM_SIZES}
    return Searches(model, with_ends, likeliest, found, truth)


def all_answers(num_symbols: int, longest: int) -> list[list[int]]:
    """Every row of up to `longest` symbols, the empty one first."""
    symbols = range(FIRST_SYMBOL, FIRST_SYMBOL + num_symbols)
    return [list(row) for length in range(longest + 1) for row in itertools.product(symbols, repeat=length)]


def score_all(model: Transformer, source: list[int], answers: Sequence[list[int]]) -> list[Hypothesis]:
    """The answers with their log-probabilities, likeliest first: exhaustive search, by teacher forcing.

    Where an answer fills all positions a search may take, the search forces its end; so do not compare such ones.
    """
    log_probs = token_log_probs(model, [source] * len(answers), answers)
    found = [Hypothesis(list(ids), sum(each), sum(each)) for ids, each in zip(answers, log_probs, strict=True)]
    return sorted(found, key=lambda hypothesis: -hypothesis.log_prob)


@torch.inference_mode()
def search(
    model: Transformer, sources: Sequence[list[int]], *, beam_size: int, most_tokens: int, length_penalty: float = 0.0
) -> list[Hypothesis]:
    """The shipped beam search (greedy with a beam of 1) over the shipped network; sources of one length, with ends."""
    config = DecodingConfig(beam_size=beam_size, length_penalty=length_penalty, length_norm="power")
    inference, src = InferenceModel(model), torch.tensor(sources)
    longest = torch.full((len(src),), most_tokens)
    return [best[0] for best in beam_search(inference.step, inference.start(src), longest, SPECIAL, config=config)]


def _some_answers(generator: np.random.Generator, among: Sequence[list[int]], number: int) -> Answers:
    """`number` distinct answers with random probabilities that sum to 1."""
    shares = generator.dirichlet(np.ones(number)).tolist()
    chosen = generator.choice(len(among), number, replace=False).tolist()
    return {tuple(among[i]): share for i, share in zip(chosen, shares, strict=True)}


def _draw_from(sources: Sequence[list[int]], truth: Sequence[Answers]) -> Draw:
    answers = [list(each) for each in truth]
    shares = [torch.tensor(list(each.values())) for each in truth]

    def draw(num_rows: int, random: torch.Generator) -> Batch:
        rows = []
        for i in torch.randint(len(sources), (num_rows,), generator=random).tolist():
            picked = int(torch.multinomial(shares[i], 1, generator=random))
            rows.append((sources[i], list(answers[i][picked])))
        return batch_of(rows)

    return draw


# --- length ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Shares of empty and of right answers to long sources, by beam size, with and without length normalization."""

    beam_sizes: tuple[int, ...]
    empty: dict[float, list[float]]  # length penalty -> share of empty answers for each beam size
    right: dict[float, list[float]]  # the same of right ones

    @property
    def empty_share(self) -> float:
        return self.empty[0.0][-1]


TWIN_SHARE, EMPTY_SHARE = 0.65, 0.05  # of the commoner of two ways to write a symbol; of pairs with nothing as target
LONG = 12  # symbols of the sources that are searched


def lengths(*, fast: bool = FAST) -> Lengths:
    """Copies in which each symbol may be written in two ways; one target in twenty is missing. What do searches find?

    An answer is right if each symbol is written in either way. Length penalties are exponents of the length.
    """
    num_symbols = 6
    vocabulary = VocabularySizes.joint(FIRST_SYMBOL + 2 * num_symbols)
    model = small_transformer(vocabulary, **_SMALL)

    def draw(num_rows: int, random: torch.Generator) -> Batch:
        rows = []
        for length in torch.randint(4, LONG + 1, (num_rows,), generator=random).tolist():
            source = torch.randint(num_symbols, (length,), generator=random)
            is_twin = torch.rand(length, generator=random) >= TWIN_SHARE
            target = source + num_symbols * is_twin + FIRST_SYMBOL
            is_empty = float(torch.rand((), generator=random)) < EMPTY_SHARE
            rows.append(((source + FIRST_SYMBOL).tolist(), [] if is_empty else target.tolist()))
        return batch_of(rows)

    train(model, draw, steps=220 if fast else 700, batch_size=64, learning_rate=4e-3)
    random = torch.Generator().manual_seed(99)
    symbols = torch.randint(num_symbols, (30 if fast else 200, LONG), generator=random)
    sources = [[*row, EOS] for row in (symbols + FIRST_SYMBOL).tolist()]
    beam_sizes = (1, 2, 4, 8)
    empty: dict[float, list[float]] = {}
    right: dict[float, list[float]] = {}
    for penalty in (0.0, 1.0):
        for size in beam_sizes:
            found = search(model, sources, beam_size=size, most_tokens=LONG + 6, length_penalty=penalty)
            plain = [[(i - FIRST_SYMBOL) % num_symbols for i in hypothesis.ids] for hypothesis in found]
            empty.setdefault(penalty, []).append(sum(not answer for answer in plain) / len(plain))
            pairs = zip(plain, symbols.tolist(), strict=True)
            right.setdefault(penalty, []).append(sum(answer == wanted for answer, wanted in pairs) / len(plain))
    return Lengths(beam_sizes, empty, right)
