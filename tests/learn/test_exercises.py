"""Every exercise accepts its solution and rejects, with a word of advice, each answer that is known to be wrong."""

import pytest

from transduce.errors import TransduceError
from transduce.learn import Wrong, check, exercise, hint, solution
from transduce.learn.exercise import all_exercises

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
def test_hints_come_one_after_the_other(name):
    hints = EXERCISES[name].hints
    told = [hint(name).plain for _ in range(len(hints) + 1)]
    assert hints
    assert all(text in said for text, said in zip((*hints, hints[-1]), told, strict=True))
    assert solution(name).plain


def test_code_that_raises_is_told_and_raises_nothing():
    name = "test-raising"

    @exercise(name, hints=("no",), solution=lambda: 1, wrong=())
    def _check(answer):
        answer()

    try:
        assert check(name, lambda: 1 // 0).plain == (
            f"{name}: your code raises ZeroDivisionError: integer division or modulo by zero"
        )
        with pytest.raises(TransduceError, match="two exercises"):
            exercise(name, hints=(), solution=None, wrong=())(lambda _: None)
    finally:
        EXERCISES.pop(name)


def test_an_unknown_exercise_names_the_known_ones():
    with pytest.raises(TransduceError, match="there is no exercise 'nothing'"):
        check("nothing", 1)
