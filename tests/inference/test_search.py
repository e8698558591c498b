import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import transduce.inference.beam_search
import transduce.inference.search
from transduce.errors import TransduceError
from transduce.inference.beam_search import beam_search
from transduce.inference.config import DecodingConfig
from transduce.inference.search import Hypothesis, SpecialIds, greedy_search, sample

PAD, BOS, EOS = 0, 1, 2
SPECIAL = SpecialIds(PAD, BOS, EOS)
VOCAB_SIZE = 6
Prefix = tuple[int, ...]
Score = Callable[[int, Prefix], list[float]]  # (sentence, all tokens so far) -> logits


class Script:
    """A state that remembers every prefix as it is, and scores what follows by a function of all of it."""

    def __init__(self, score: Score, num_sentences: int, beam_size: int = 1) -> None:
        self.score = score
        self.sentences = list(range(num_sentences))
        self.prefixes: list[list[Prefix]] = [[()] * beam_size for _ in self.sentences]
        self.rows_seen: list[int] = []

    def keep(self, rows: Tensor) -> None:
        self.sentences = [self.sentences[row] for row in rows.tolist()]
        self.prefixes = [self.prefixes[row] for row in rows.tolist()]

    def step(self, tokens: Tensor, parents: Tensor, state: "Script") -> tuple[Tensor, "Script"]:
        moves = zip(self.prefixes, tokens.tolist(), parents.tolist(), strict=True)
        self.prefixes = [[of[p] + (t,) for t, p in zip(ts, ps, strict=True)] for of, ts, ps in moves]
        self.rows_seen.append(len(self.prefixes))
        rows = zip(self.sentences, self.prefixes, strict=True)
        logits = [[self.score(sentence, prefix) for prefix in of] for sentence, of in rows]
        return torch.tensor(logits, dtype=torch.float32), state


def random_score(seed: int) -> Score:
    """Logits that depend on the sentence and on every token of the prefix."""

    def score(sentence: int, prefix: Prefix) -> list[float]:
        return (2 * np.random.default_rng([seed, sentence, *prefix]).standard_normal(VOCAB_SIZE)).tolist()

    return score


def log_probs(logits: list[float]) -> list[float]:
    top = max(logits)
    log_total = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return [logit - log_total for logit in logits]


def norm(length: int, config: DecodingConfig) -> float:
    base = (5 + length) / 6 if config.length_norm == "wu" else length
    return base**config.length_penalty


def greedy(score: Score, max_lens: list[int], config: DecodingConfig = DecodingConfig()) -> list[Hypothesis]:
    script = Script(score, len(max_lens))
    return greedy_search(script.step, script, torch.tensor(max_lens), SPECIAL, config=config)


def beam(score: Score, max_lens: list[int], config: DecodingConfig, num_best: int = 1) -> list[list[Hypothesis]]:
    script = Script(score, len(max_lens), config.beam_size)
    return beam_search(script.step, script, torch.tensor(max_lens), SPECIAL, config=config, num_best=num_best)


def draw(score: Score, max_lens: list[int], config: DecodingConfig, uniforms: Tensor) -> list[Hypothesis]:
    script = Script(score, len(max_lens))
    return sample(script.step, script, torch.tensor(max_lens), SPECIAL, config=config, uniforms=uniforms)


def uniform_numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


SAMPLING = DecodingConfig(temperature=1.0)
SEARCHES = {
    "greedy": greedy,
    "beam": lambda score, max_lens: [found[0] for found in beam(score, max_lens, DecodingConfig(beam_size=3))],
    "sample": lambda score, max_lens: draw(score, max_lens, SAMPLING, uniform_numbers(len(max_lens), max(max_lens))),
}
every_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())


# --- every search ----------------------------------------------------------------------------------------------------


@every_search
def test_an_output_ends_at_its_own_longest_length(search):
    endless = [0.0, 0.0, -60.0, 0.3, 0.2, 0.1]
    max_lens = [3, 1, 7, 2]
    assert [len(found.ids) for found in search(lambda _sentence, _prefix: endless, max_lens)] == [2, 0, 6, 1]


@every_search
def test_padding_and_the_begin_symbol_are_never_chosen(search):
    tempting = [50.0, 60.0, 0.0, 1.0, 0.0, 0.0]
    for found in search(lambda _sentence, _prefix: tempting, [7] * 5):
        assert not {PAD, BOS} & set(found.ids)


@every_search
def test_a_model_that_ends_at_once_has_an_empty_output(search):
    ending = [0.0, 0.0, 60.0, 0.0, 0.0, 0.0]
    assert [found.ids for found in search(lambda _sentence, _prefix: ending, [5, 3])] == [[], []]


@every_search
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(search, broken):
    def score(_sentence: int, prefix: Prefix) -> list[float]:
        return [0.0, 0.0, -5.0, broken if len(prefix) == 3 else 0.5, 0.0, 0.0]

    with pytest.raises(TransduceError, match="not numbers"):
        search(score, [5, 5])


@every_search
def test_a_log_probability_is_that_of_the_output_and_its_end(search):
    score, max_lens = random_score(3), [6, 4, 5]
    for sentence, found in enumerate(search(score, max_lens)):
        tokens = [*found.ids, EOS]
        following = [log_probs(score(sentence, (BOS, *tokens[:length]))) for length in range(len(tokens))]
        expected = sum(of_all[token] for of_all, token in zip(following, tokens, strict=True))
        assert found.log_prob == pytest.approx(expected, abs=1e-5)
        assert found.score == pytest.approx(expected / norm(len(tokens), DecodingConfig()), abs=1e-5)


@every_search
@pytest.mark.parametrize("share", [0.0, 2.0])
def test_dropping_finished_sentences_changes_nothing(search, share, monkeypatch):
    max_lens = [7, 2, 5, 1, 6, 3, 4]
    expected = search(random_score(5), max_lens)
    for module in (transduce.inference.search, transduce.inference.beam_search):
        monkeypatch.setattr(module, "COMPACT_WHEN_IDLE", share)  # after every step; never
    assert search(random_score(5), max_lens) == expected


@every_search
def test_batch_mates_change_nothing(search):
    score = random_score(6)
    together = search(score, [5, 7, 6])
    assert search(score, [5]) == together[:1]


def test_finished_sentences_are_dropped():
    script = Script(lambda sentence, prefix: [0, 0, 9 * (len(prefix) > sentence), 3, 0, 0], 4)
    greedy_search(script.step, script, torch.tensor([9] * 4), SPECIAL, config=DecodingConfig())
    assert script.rows_seen == [4, 3, 2, 1]


# --- greedy and beam search ------------------------------------------------------------------------------------------


def test_greedy_takes_the_most_likely_token_each_time():
    score = random_score(7)
    (found,) = greedy(score, [9])
    tokens = [*found.ids, EOS]
    for length, token in enumerate(tokens[:8]):
        logits = score(0, (BOS, *tokens[:length]))
        assert token == max(range(EOS, VOCAB_SIZE), key=lambda i: logits[i])


def test_a_beam_of_one_is_greedy_search():
    max_lens = [8, 3, 5, 6]
    config = DecodingConfig(beam_size=1, length_penalty=1.3, length_norm="power")
    for seed in range(20):
        by_beam = [found[0] for found in beam(random_score(seed), max_lens, config)]
        found = greedy(random_score(seed), max_lens, config)
        assert [answer.ids for answer in found] == [answer.ids for answer in by_beam]
        assert [answer.score for answer in found] == pytest.approx([answer.score for answer in by_beam])


def all_answers(score: Score, sentence: int, max_len: int, config: DecodingConfig) -> list[tuple[float, list[int]]]:
    """Every answer there can be, best first."""
    found = []

    def extend(tokens: list[int], log_prob: float) -> None:
        following = log_probs(score(sentence, (BOS, *tokens)))
        length = len(tokens) + 1
        found.append(((log_prob + following[EOS]) / norm(length, config), tokens))
        if length < max_len:
            for token in range(EOS + 1, VOCAB_SIZE):
                extend([*tokens, token], log_prob + following[token])

    extend([], 0.0)
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_norm", ["wu", "power"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.3])
def test_a_beam_as_wide_as_the_space_is_exhaustive_search(length_norm, length_penalty):
    config = DecodingConfig(beam_size=40, length_norm=length_norm, length_penalty=length_penalty)
    max_lens = [4, 2, 3]  # the first has 1 + 3 + 9 + 27 answers
    for seed in range(3):
        found = beam(random_score(seed), max_lens, config, num_best=5)
        for sentence, max_len in enumerate(max_lens):
            expected = all_answers(random_score(seed), sentence, max_len, config)[:5]
            assert [answer.ids for answer in found[sentence]] == [tokens for _, tokens in expected]
            scores = [answer.score for answer in found[sentence]]
            assert scores == pytest.approx([score for score, _ in expected], rel=1e-5)


def slow_beam_search(score: Score, max_len: int, config: DecodingConfig, num_best: int) -> list[list[int]]:
    """The same with lists, and to the very end: it stops for nothing but `beam_size` answers."""
    hypotheses: list[tuple[float, list[int]]] = [(0.0, [])]
    answers: list[tuple[float, list[int]]] = []
    for length in range(1, max_len + 1):
        ranked = []
        for log_prob, tokens in hypotheses:
            following = log_probs(score(0, (BOS, *tokens)))
            allowed = [EOS] if length == max_len else range(EOS, VOCAB_SIZE)
            ranked += [(log_prob + following[token], [*tokens, token]) for token in allowed]
        ranked.sort(reverse=True)
        for log_prob, tokens in ranked[: config.beam_size]:
            if tokens[-1] == EOS and len(answers) < config.beam_size:
                answers.append((log_prob / norm(length, config), tokens[:-1]))
        hypotheses = [(log_prob, tokens) for log_prob, tokens in ranked if tokens[-1] != EOS][: config.beam_size]
        if len(answers) == config.beam_size:
            break
    return [tokens for _, tokens in sorted(answers, reverse=True)[:num_best]]


@pytest.mark.parametrize("length_norm", ["wu", "power"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.7])
@pytest.mark.parametrize(("beam_size", "num_best"), [(2, 1), (3, 1), (3, 2), (5, 5)])
def test_stopping_early_never_changes_an_output(length_norm, length_penalty, beam_size, num_best):
    config = DecodingConfig(beam_size=beam_size, length_norm=length_norm, length_penalty=length_penalty)
    for seed in range(20):
        (found,) = beam(random_score(seed), [7], config, num_best)
        expected = slow_beam_search(random_score(seed), 7, config, num_best)
        assert [answer.ids for answer in found] == expected, seed


def test_a_beam_stops_when_nothing_better_can_come():
    script = Script(lambda _sentence, prefix: [0, 0, 9 if len(prefix) > 2 else -9, 3, 0, 0], 1, 4)
    beam_search(script.step, script, torch.tensor([50]), SPECIAL, config=DecodingConfig(beam_size=4))
    assert len(script.rows_seen) < 10


def test_a_larger_length_penalty_favors_the_longer_output():
    def score(_sentence: int, prefix: Prefix) -> list[float]:
        return [-60, -60, 0.1, 0.0, -60, -60] if len(prefix) == 1 else [-60, -60, 0.0, -60, -60, -60]

    short, long = (
        beam(score, [3], DecodingConfig(beam_size=2, length_penalty=penalty))[0][0].ids for penalty in (0.0, 1.0)
    )
    assert (short, long) == ([], [3])


def test_outputs_are_different_and_the_best_comes_first():
    for found in beam(random_score(8), [6, 5, 7], DecodingConfig(beam_size=5), num_best=5):
        assert len({tuple(answer.ids) for answer in found}) == len(found) == 5
        assert [answer.score for answer in found] == sorted((answer.score for answer in found), reverse=True)


# --- sampling --------------------------------------------------------------------------------------------------------

NUM_DRAWS = 4001
LOGITS = [0.7, 0.4, math.log(0.1), math.log(0.4), math.log(0.2), math.log(0.3)]  # of eos, a, b and c


def frequencies(config: DecodingConfig) -> list[float]:
    """How often the first token is eos, a, b, c."""
    found = draw(lambda _sentence, _prefix: LOGITS, [2] * NUM_DRAWS, config, uniform_numbers(NUM_DRAWS, 2))
    firsts = [answer.ids[0] if answer.ids else EOS for answer in found]
    return [firsts.count(token) / NUM_DRAWS for token in range(EOS, VOCAB_SIZE)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squared and normalised
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.75}, [0, 4 / 7, 0, 3 / 7]),  # 0.4 and 0.3 are more than 0.75 of 0.9
    ],
)
def test_tokens_are_sampled_as_often_as_they_are_likely(settings, expected):
    found = frequencies(replace(SAMPLING, **settings))
    assert [share == 0 for share in found] == [share == 0 for share in expected]
    chi_square = sum(NUM_DRAWS * (a - b) ** 2 / b for a, b in zip(found, expected, strict=True) if b)
    assert chi_square < 16.3  # 3 degrees of freedom: exceeded once in a thousand seeds


def test_a_sample_depends_on_its_own_numbers_alone():
    score, uniforms = random_score(9), uniform_numbers(5, 7)
    together = draw(score, [7] * 5, SAMPLING, uniforms)
    changed = uniforms.clone()
    changed[1:] = uniform_numbers(4, 7, seed=2)
    again = draw(score, [7] * 5, SAMPLING, changed)
    assert again[0] == together[0]
    assert again[1:] != together[1:]


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_numbers_at_the_edge_sample_a_token_that_is_allowed(edge):
    (found,) = draw(lambda _sentence, _prefix: LOGITS, [3], SAMPLING, torch.full((1, 3), edge))
    assert set(found.ids) <= {3, 4, 5}


@pytest.mark.parametrize("temperature", [1e-40, 5e-324])
def test_a_tiny_temperature_samples_what_greedy_search_finds(temperature):
    config, max_lens = replace(SAMPLING, temperature=temperature), [7] * 9
    drawn = draw(random_score(4), max_lens, config, uniform_numbers(9, 7))
    assert [found.ids for found in drawn] == [found.ids for found in greedy(random_score(4), max_lens)]


# --- settings --------------------------------------------------------------------------------------------------------


def test_an_output_has_room_for_a_multiple_of_the_source_and_some_more():
    assert DecodingConfig(max_len_ratio=1.5, max_len_extra=7).max_len(11) == 16 + 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"beam_size": 1001}, r"beam_size is 1,001: it must be from 1 \(greedy search\) to 1,000"),
        ({"length_penalty": -0.1}, "length_penalty is -0.1"),
        ({"length_penalty": math.nan}, "length_penalty is nan"),
        ({"max_len_extra": -1}, "max_len_extra 0 or more"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p above 0"),
    ],
)
def test_an_impossible_setting_is_explained(settings, message):
    with pytest.raises(TransduceError, match=message):
        DecodingConfig(**settings)
