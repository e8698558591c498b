"""Every exercise accepts its solution and rejects, with a word of advice, each answer that is known to be wrong."""

import itertools
import math
import textwrap
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transduce import learn
from transduce.errors import TransduceError
from transduce.learn import Ledger, Wrong, check, exercise, hint, solution
from transduce.learn.exercising import all_exercises, tensor_of

EXERCISES = all_exercises()
each = pytest.mark.parametrize("name", EXERCISES)


@each
def test_the_solution_is_accepted(name):
    EXERCISES[name].check(EXERCISES[name].solution)
    assert check(name, EXERCISES[name].solution).plain == f"{name}: right."


@each
def test_wrong_answers_are_rejected_with_advice(name):
    assert EXERCISES[name].wrong, "an exercise without wrong answers says nothing of its checker"
    for answer in EXERCISES[name].wrong:
        with pytest.raises(Wrong) as caught:
            EXERCISES[name].check(answer)
        assert len(str(caught.value)) > 15


@each
def test_an_unanswered_exercise_is_no_error(name):
    assert "not answered yet" in check(name, ...).plain


@each
def test_hints_come_one_after_the_other(name, monkeypatch):
    monkeypatch.setattr("transduce.learn.exercising._hints_given", {})
    hints = EXERCISES[name].hints
    told = [hint(name).plain for _ in range(len(hints) + 1)]
    assert all(text in said for text, said in zip((*hints, hints[-1]), told, strict=True))
    assert solution(name).plain


def returning(convert, answer):
    """The same function, but what it returns is converted."""
    return lambda *given: convert(torch.as_tensor(answer(*given)))


def in_float32(found):
    return found.float() if found.is_floating_point() else found


def other_forms(right):
    """The solution as lists, tensors, arrays, in other types, or in capitals: what good readers hand in."""
    if callable(right):
        return [returning(convert, right) for convert in (in_float32, Tensor.tolist, Tensor.numpy, Tensor.clone)]
    if isinstance(right, str):
        return [right.upper(), f" {right} ", [right], {right}]
    if isinstance(right, set):
        return [list(right), tuple(right), frozenset(map(str.lower, right)), {word.upper() for word in right}]
    if isinstance(right, dict):
        return [{letter.lower(): name.upper() for letter, name in right.items()}]
    if isinstance(right, tuple | list):
        words = [word.upper() for word in right if isinstance(word, str)]
        return [words, tuple(words)] if words else [list(right), tuple(right), torch.tensor(right), np.array(right)]
    return [torch.tensor(right), torch.tensor([right]), np.float32(right), np.array(float(right)), Fraction(right)]


ABOUT_VALUES = [name for name in EXERCISES if name != "ffn-convolutions" and not name.startswith("build-")]


@pytest.mark.parametrize("name", ABOUT_VALUES)  # the others are answered by networks
def test_the_solution_is_accepted_in_other_types(name):
    for answer in other_forms(EXERCISES[name].solution):
        assert check(name, answer).plain == f"{name}: right."


NOTHING = (math.nan, "", "a word", [], {}, set(), 7j, None, torch.empty(0), np.zeros((2, 2)), [[1], [2, 3]])


@each
def test_answers_of_another_kind_are_rejected_in_words(name):
    """Neither does the checker break on them, nor is the reader's code said to have raised anything."""
    is_function = callable(EXERCISES[name].solution)
    for nothing in NOTHING:
        message = check(name, (lambda *_, nothing=nothing: nothing) if is_function else nothing).plain
        assert message.startswith(f"{name}: not yet."), nothing
        assert "cannot read" not in message, nothing


def _beam_of_tensors(next_log_probs, beam_size, longest):
    found = EXERCISES["decoding-beam"].solution(lambda ids: next_log_probs(torch.tensor(ids)), beam_size, longest)
    return tuple(np.int64(i) for i in found)


# Right answers in other forms than that of the solution.
OTHER_FORMS = {
    "attention-derivative": [
        lambda weights, values: [w * (v - weights @ values) for w, v in zip(weights, values, strict=True)]
    ],
    "attention-shift": [["add 5 to one row of scores", "add 5 to all scores", "add the same vector to every key"]],
    "norms-layer-norm": [lambda x: [F.layer_norm(row, (8,)) for row in x]],
    "positions-table": [
        lambda num, d: (
            torch.stack(
                [
                    torch.arange(num)[:, None] * torch.exp(torch.arange(0, d, 2) * (-math.log(10_000) / d)) + phase
                    for phase in (0, math.pi / 2)
                ],
                dim=-1,
            )
            .flatten(1)
            .sin()
        )
    ],
    "positions-layout": [
        lambda d: itertools.chain(range(0, d, 2), range(1, d, 2)),
        lambda d: np.arange(d).reshape(-1, 2).T,
    ],
    "inside-what-a-map-shows": ["AC", "c, a", ["a", "c"]],
    "translation-signatures": ["A, C"],
    "masks-one-of-six": ["d", ("D",)],
    "decoding-beam": [_beam_of_tensors],
    "recipe-mean-loss": [lambda sums, counts: torch.tensor(sums).sum() / torch.tensor(counts).sum()],
    "why-path-length": [
        lambda n, width: math.ceil((n - 1) / (width - 1)),
        lambda n, width: np.ceil((n - 1) / (width - 1)),
    ],
    "training-shift": [lambda target: [[1, *target], [*target, 2]]],
    "training-smoothed-target": [
        lambda right, e, v: ((1 - e) * F.one_hot(torch.tensor(right), v) + e / v).tolist(),
        lambda right, e, v: (1 - e) * F.one_hot(torch.tensor(right), v) + e / v,
    ],
    "training-rate": [lambda step, d, w: torch.tensor(d) ** -0.5 * min(step**-0.5, step * w**-1.5)],
    "architecture-additive-mask": [
        lambda may_look: torch.zeros(may_look.shape).double().masked_fill(~may_look, -math.inf)
    ],
    "attention-two-keys": [[7, 4], (7.0, 4.0), torch.tensor([7.0, 4.0]), np.array([7.0, 4.0])],
    "recipe-moving-average": [lambda average, current, decay: average.lerp(current, 1 - decay)],
    "norms-growth": [torch.tensor(25.0).sqrt()],
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_right_answers_in_other_forms_are_accepted(name):
    for answer in OTHER_FORMS[name]:
        assert check(name, answer).plain == f"{name}: right."


@pytest.fixture
def raising():
    def _check(answer):
        answer.upper() if answer == 7 else answer()

    exercise("test-raising", hints=("no",), solution=1, wrong=())(_check)
    yield "test-raising", _check
    EXERCISES.pop("test-raising")


def test_code_that_raises_is_told_and_raises_nothing(raising):
    name, _ = raising
    told = check(name, lambda: 1 // 0).plain
    assert told == f"{name}: your code raises ZeroDivisionError: integer division or modulo by zero"


def test_decorated_code_that_raises_is_the_readers_too(raising):
    name, _ = raising
    assert "your code raises ZeroDivisionError" in check(name, torch.no_grad()(lambda: 1 // 0)).plain


def test_a_function_is_asked_for_where_there_is_none():
    assert check("heads-split", 7).plain == "heads-split: not yet. A function was expected, not 7."


def test_what_the_checker_cannot_read_is_not_called_the_readers_code(raising):
    name, _ = raising
    told = check(name, 7).plain
    assert told.startswith(f"{name}: not yet. The checker cannot read 7 (AttributeError: ")


def test_an_exercise_may_be_defined_again_and_not_taken_by_another(raising):
    name, _check = raising
    exercise(name, hints=("yes",), solution=None, wrong=())(_check)
    assert EXERCISES[name].hints == ("yes",)
    with pytest.raises(TransduceError, match="two exercises"):
        exercise(name, hints=("no",), solution=None, wrong=())(lambda _: None)
    with pytest.raises(TransduceError, match="has no hints"):
        exercise("test-without", hints=(), solution=None, wrong=())


def test_checking_leaves_the_random_numbers_of_the_reader_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check("masks-dialect", EXERCISES["masks-dialect"].solution)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("found", [None, ..., "a word", [[1], [2, 3]], [1.0, 2.0]])
def test_answers_that_are_no_tensor_of_the_shape_are_told(found):
    with pytest.raises(Wrong):
        tensor_of(found, (3,))


def test_an_unknown_exercise_names_the_known_ones():
    with pytest.raises(TransduceError, match="there is no exercise 'nothing'"):
        check("nothing", 1)


def test_the_example_of_the_documentation_does_what_it_says(tmp_path):
    """It is run as it stands: the exercise as Python, the claim as TOML."""
    blocks = textwrap.dedent(
        "\n".join(line for line in learn.__doc__.split("\n") if line.startswith("    ") or not line)
    )
    code, _, table = blocks.partition("[copying-is-easy]")
    told = code.rstrip().split("  # ")[1]
    try:
        scope = {}
        exec(code, scope)
        assert check("softmax-sum", max).plain == told
        assert check("softmax-sum", sum).plain == "softmax-sum: right."
    finally:
        EXERCISES.pop("softmax-sum")
    (tmp_path / "claims.toml").write_text(f"[copying-is-easy]{table}")
    settled = Ledger.load(tmp_path / "claims.toml").settle(
        "copying-is-easy", SimpleNamespace(share_right=0.95), fast=False
    )
    assert "95% of new words" in str(settled)
