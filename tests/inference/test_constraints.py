"""What answers are asked to hold: against all answers there can be, filtered by predicates on their tokens."""

import functools
import random
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_search import BOS, EOS, PAD, SPECIAL, VOCAB_SIZE, Script, all_answers, random_score, uniform_numbers

from transduce.errors import TransduceError
from transduce.inference.beam_search import beam_search
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import ForbiddenText, OpenText, Rules
from transduce.inference.search import Hypothesis, greedy_search, sample

A, B, AB = 3, 4, 5
PIECES = [b"", b"", b"", b"a", b"b", b"ab"]
MAX_LENS = [5, 4]  # the first has 1 + 3 + 9 + 27 + 81 answers


def text_of(tokens: list[int]) -> str:
    return "".join(PIECES[token].decode() for token in tokens)


def holds(tokens: list[int], phrase: tuple[int, ...]) -> bool:
    return str(list(phrase))[1:-1] in str(tokens)[1:-1]  # one digit each


def repeats_a_bigram(tokens: list[int]) -> bool:
    bigrams = list(pairwise(tokens))
    return len(set(bigrams)) < len(bigrams)


def repeats_a_token(tokens: list[int]) -> bool:
    return len(set(tokens)) < len(tokens)


def forbidding(text: str) -> tuple[ForbiddenText, ...]:
    return (ForbiddenText(text.encode(), PIECES),)


def open_text(text: str, ids: tuple[int, ...], usable: tuple[int, ...] = (A, B, AB)) -> OpenText:
    return OpenText(text.encode(), ids, PIECES, usable)


CASES: dict[str, tuple[dict[str, object], Callable[[list[int]], bool]]] = {
    "prefix": ({"prefix": (B, A)}, lambda tokens: tokens[:2] == [B, A]),
    "min_len": ({"min_len": 3}, lambda tokens: len(tokens) >= 3),
    "no bigram twice": ({"no_repeat_ngram_size": 2}, lambda tokens: not repeats_a_bigram(tokens)),
    "no token twice": ({"no_repeat_ngram_size": 1}, lambda tokens: not repeats_a_token(tokens)),
    "forbidden piece": ({"forbidden": forbidding("ab")}, lambda tokens: "ab" not in text_of(tokens)),
    "forbidden across pieces": ({"forbidden": forbidding("ba")}, lambda tokens: "ba" not in text_of(tokens)),
    "forbidden long": ({"forbidden": forbidding("abba")}, lambda tokens: "abba" not in text_of(tokens)),
    "two forbidden": (
        {"forbidden": forbidding("bb") + forbidding("aa")},
        lambda tokens: "aa" not in text_of(tokens) and "bb" not in text_of(tokens),
    ),
    "required token": ({"required": ((AB,),)}, lambda tokens: AB in tokens),
    "required stretch": ({"required": ((A, A, B),)}, lambda tokens: holds(tokens, (A, A, B))),
    "two required": ({"required": ((B, B), (AB,))}, lambda tokens: holds(tokens, (B, B)) and AB in tokens),
    "required, overlapping": (
        {"required": ((A, B), (B, A))},
        lambda tokens: holds(tokens, (A, B)) and holds(tokens, (B, A)),
    ),
    "five required": (
        {"required": ((A,), (B,), (AB,), (A, B), (B, AB))},
        lambda tokens: {A, B, AB} <= set(tokens) and holds(tokens, (A, B)) and holds(tokens, (B, AB)),
    ),
    "prefix that begins what is required": (
        {"prefix": (A,), "required": ((A, B),)},
        lambda tokens: tokens[:1] == [A] and holds(tokens, (A, B)),
    ),
    "prefix that goes on within a token": (
        {"last_word": open_text("ab", (AB,))},
        lambda tokens: text_of(tokens).startswith("ab"),
    ),
    "prefix that no short token spells": (
        {"prefix": (B,), "last_word": open_text("aa", (A, A), (AB,))},
        lambda tokens: tokens[:1] == [B] and text_of(tokens).startswith("baa") and B not in tokens[1:3],
    ),
    "prefix within a token, and required": (
        {"last_word": open_text("ba", (B, A)), "required": ((A, A),)},
        lambda tokens: text_of(tokens).startswith("ba") and holds(tokens, (A, A)),
    ),
    "prefix within a token, and forbidden": (
        {"last_word": open_text("aa", (A, A)), "forbidden": forbidding("aab")},
        lambda tokens: text_of(tokens).startswith("aa") and "aab" not in text_of(tokens),
    ),
    "required where a word ends": (
        {"required": ((A,),), "whole": ((A,),), "within_words": (B, AB)},
        lambda tokens: A in tokens and tokens[tokens.index(A) + 1 :][:1] in ([], [A]),
    ),
    "required and forbidden": (
        {"required": ((B,),), "forbidden": forbidding("ba")},
        lambda tokens: B in tokens and "ba" not in text_of(tokens),
    ),
}
each_case = pytest.mark.parametrize(("asked", "is_right"), CASES.values(), ids=CASES.keys())


def beam(seed: int, rules: list[Rules], config: DecodingConfig, num_best: int) -> list[list[Hypothesis]]:
    script = Script(random_score(seed), len(rules))
    longest = torch.tensor(MAX_LENS[: len(rules)])
    return beam_search(script.step, script, longest, SPECIAL, config=config, num_best=num_best, rules=rules)


@functools.cache
def every_answer(seed: int, sentence: int, max_len: int, config: DecodingConfig) -> list[tuple[float, list[int]]]:
    return all_answers(random_score(seed), sentence, max_len, config)


@each_case
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_beam_as_wide_as_the_space_is_exhaustive_search_among_allowed_outputs(length_penalty, asked, is_right):
    config = DecodingConfig(beam_size=130, length_norm="power", length_penalty=length_penalty)
    rules = Rules(eos_id=EOS, **asked)
    for seed in range(2):
        found = beam(seed, [rules, rules], config, num_best=4)
        for sentence, max_len in enumerate(MAX_LENS):
            every = every_answer(seed, sentence, max_len, config)
            expected = [(score, tokens) for score, tokens in every if is_right(tokens)][:4]
            assert [answer.ids for answer in found[sentence]] == [tokens for _, tokens in expected]
            assert [answer.score for answer in found[sentence]] == pytest.approx([s for s, _ in expected], rel=1e-5)


@each_case
def test_a_narrow_beam_keeps_its_constraints(asked, is_right):
    for seed in range(20):
        for answers in beam(seed, [Rules(eos_id=EOS, **asked)] * 2, DecodingConfig(beam_size=3), num_best=1):
            assert is_right(answers[0].ids), (seed, answers)


@each_case
def test_greedy_search_and_samples_keep_their_constraints(asked, is_right):
    if "required" in asked:
        pytest.skip("needs a beam")
    rules, config = [Rules(eos_id=EOS, **asked)] * 2, DecodingConfig(temperature=1.0)
    for seed in range(10):
        script = Script(random_score(seed), 2)
        found = greedy_search(script.step, script, torch.tensor(MAX_LENS), SPECIAL, config=config, rules=rules)
        script, uniforms = Script(random_score(seed), 2), uniform_numbers(2, max(MAX_LENS), seed=seed)
        found += sample(
            script.step, script, torch.tensor(MAX_LENS), SPECIAL, config=config, uniforms=uniforms, rules=rules
        )
        assert all(is_right(answer.ids) for answer in found)


def test_each_sentence_has_rules_of_its_own():
    config = DecodingConfig(beam_size=4)
    free = Rules(eos_id=EOS)
    for asked in ({"prefix": (AB, AB)}, {"required": ((AB, AB),)}):
        check_mates(free, Rules(eos_id=EOS, **asked), config)


def check_mates(free: Rules, other: Rules, config: DecodingConfig) -> None:
    for seed in range(20):
        together = beam(seed, [free, other], config, num_best=1)
        script = Script(random_score(seed), 2)
        alone = beam_search(script.step, script, torch.tensor(MAX_LENS), SPECIAL, config=config)
        assert together[0] == alone[0]
        assert holds(together[1][0].ids, (AB, AB))


def test_scores_that_are_no_numbers_are_refused() -> None:
    script = Script(lambda _sentence, _prefix: [0.0, 0.0, -5.0, float("nan"), 0.0, 0.0], 1)
    rules = [Rules(eos_id=EOS, required=((A,),))]
    with pytest.raises(TransduceError, match="not numbers"):
        beam_search(script.step, script, torch.tensor([5]), SPECIAL, config=DecodingConfig(), rules=rules)


def test_what_is_required_is_forced_when_the_room_gets_tight():
    script = Script(lambda _sentence, _prefix: [-60, -60, -20, 9, -20, -20], 1)  # nothing but A, for ever
    rules = [Rules(eos_id=EOS, required=((B, AB), (B, B)))]
    config = DecodingConfig(beam_size=1)
    ((found,),) = beam_search(script.step, script, torch.tensor([7]), SPECIAL, config=config, rules=rules)
    assert len(found.ids) == 6
    assert holds(found.ids, (B, AB))
    assert holds(found.ids, (B, B))


def test_an_output_ends_where_everything_is_forbidden():
    rules = [Rules(eos_id=EOS, min_len=9, forbidden=forbidding("a") + forbidding("b"))]
    script = Script(random_score(1), 1)
    (found,) = greedy_search(script.step, script, torch.tensor([9]), SPECIAL, config=DecodingConfig(), rules=rules)
    assert found.ids == []


def test_a_forbidden_text_may_begin_and_end_inside_tokens():
    pieces = [b"", b"", b"", "Käfig".encode(), b" K", "ä".encode()[:1], "ä".encode()[1:], b"fi", b"figur"]
    text = ForbiddenText("äfi".encode(), pieces)
    assert text.completed_by([]) == [3]
    assert text.completed_by([4, 5]) == [3]
    assert sorted(text.completed_by([4, 5, 6])) == [3, 7, 8]


@given(
    text=st.text("ab", min_size=1, max_size=7),
    pieces=st.lists(st.text("ab", max_size=4), min_size=1, max_size=8),
    history=st.lists(st.integers(0, 7), max_size=6),
)
def test_what_would_complete_a_forbidden_text_is_what_would_make_it_occur(text, pieces, history):
    history = [i for i in history if i < len(pieces)]
    written = "".join(pieces[i] for i in history)
    found = ForbiddenText(text.encode(), [piece.encode() for piece in pieces]).completed_by(history)
    if text not in written:  # as it always is where it is forbidden
        assert sorted({*found}) == [i for i, piece in enumerate(pieces) if text in written + piece]


def test_a_long_text_can_be_forbidden_or_begun_with_in_no_time():
    pieces = [b"", b"", b"", *(bytes([first, second]) for first in range(97, 122) for second in range(97, 122))]
    text = bytes(random.Random(1).choices(range(97, 122), k=100_000))
    started = time.perf_counter()
    forbidden = ForbiddenText(text, pieces)
    for _ in range(100):
        forbidden.completed_by([50] * 200)
    assert forbidden.completed_by([]) == []
    OpenText(text, [], pieces, range(3, len(pieces)))
    assert time.perf_counter() - started < 4


def test_padding_and_the_begin_symbol_stay_out_of_what_rules_choose():
    rules = [Rules(eos_id=EOS, min_len=4)] * 2
    for answers in beam(2, rules, DecodingConfig(beam_size=3), num_best=3):
        for answer in answers:
            assert not {PAD, BOS} & set(answer.ids)
            assert max(answer.ids) < VOCAB_SIZE
