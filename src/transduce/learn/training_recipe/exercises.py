"""Exercises of the training recipe: sums and counts, schedules that count wrongly, averages, and the clinic."""

import math
from typing import Any

import torch

from transduce.learn.exercising import Wrong, choices_of, exercise, number_of, returned
from transduce.learn.training_recipe.clinic import DIAGNOSES


def _mean_loss(sums: list[float], counts: list[int]) -> float:
    return sum(sums) / sum(counts)


@exercise(
    "recipe-mean-loss",
    hints=("What is the loss of one token, if all micro-batches were one batch?", "Divide once."),
    solution=_mean_loss,
    wrong=(
        lambda _sums, _counts: None,
        lambda sums, counts: sum(s / c for s, c in zip(sums, counts, strict=True)) / len(sums),
        lambda sums, counts: sum(s / c for s, c in zip(sums, counts, strict=True)),
        lambda sums, _counts: sum(sums) / len(sums),
    ),
)
def _check_mean_loss(mean_loss: Any) -> None:
    found = number_of(mean_loss([10.0, 300.0], [10, 100]))
    if math.isclose(found, 2.0, rel_tol=1e-5):
        raise Wrong("It gives 2, the mean of 1 and 3: a token of the batch of 10 counts as much as ten of the other.")
    if not math.isclose(found, 310 / 110, rel_tol=1e-5):
        raise Wrong(f"110 tokens have a summed loss of 310; you get {found:.3f} for each.")


@exercise(
    "recipe-warm-up-in-updates",
    hints=("How many micro-batches go by for each update of the weights?", "3,000 divided by that."),
    solution=300,
    wrong=(3000, 30_000, 3010),
)
def _check_updates(updates: Any) -> None:
    if (found := number_of(updates)) != 300:
        raise Wrong(f"{found:g} is not it: the schedule moves on ten times for each time that the weights do.")


def _average(average: float, current: float, decay: float) -> float:
    return decay * average + (1 - decay) * current


@exercise(
    "recipe-moving-average",
    hints=("Keep a share `decay` of the old average.", "The two shares sum to 1."),
    solution=_average,
    wrong=(
        lambda _average, _current, _decay: None,
        lambda average, current, decay: (1 - decay) * average + decay * current,
        lambda average, current, decay: average + decay * current,
        lambda average, current, _decay: 0.9 * average + 0.1 * current,
    ),
)
def _check_average(average: Any) -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    for old, decay in ((1.0, 0.9), (4.0, 0.5)):
        value, expected = number_of(average(old * one, 0 * one, decay)), decay * old
        if not math.isclose(value, expected, rel_tol=1e-5):
            raise Wrong(
                f"From {old:g}, with weights at 0 and a decay of {decay}, the average moves to {expected:g}, not to "
                f"{value:.3g}."
            )
    still = one.clone()
    for _ in range(50):
        still = returned(average(still, one.clone(), 0.9))
    if not math.isclose(number_of(still), 1.0, rel_tol=1e-5):
        raise Wrong(f"The average of weights that stay at 1 should stay at 1; yours goes to {float(still):.3g}.")


def _swapped(first: str, second: str) -> dict[str, str]:
    return DIAGNOSES | {first: DIAGNOSES[second], second: DIAGNOSES[first]}


@exercise(
    "recipe-clinic",
    hints=(
        "Begin with the gap between the training loss and the loss on fresh rows: two patients have one. In which of "
        "them is it there from the first step, and in which does it open?",
        "One training loss rises far above that of guessing, log 10. Only steps that are too long do that.",
        "Two patients seem to learn nothing. One cannot, ever: its loss lies still just below log 10. The other one "
        "creeps down at last.",
    ),
    solution=DIAGNOSES,
    wrong=(
        {},
        _swapped("B", "E"),
        _swapped("C", "D"),
        _swapped("A", "C"),
        _swapped("E", "F"),
    ),
)
def _check_clinic(diagnoses: Any) -> None:
    named = (
        {str(letter).strip().upper(): name for letter, name in diagnoses.items()} if isinstance(diagnoses, dict) else {}
    )
    if set(named) != set(DIAGNOSES):
        raise Wrong(f"Give a dictionary with a diagnosis for each of {', '.join(DIAGNOSES)}.")
    if unanswered := [letter for letter in DIAGNOSES if named[letter] is ...]:
        raise Wrong(f"{', '.join(unanswered)}: without a diagnosis so far.")
    options = sorted(DIAGNOSES.values())
    right = sum(choices_of(named[letter], options) == {name} for letter, name in DIAGNOSES.items())
    if right < len(DIAGNOSES):
        raise Wrong(f"{right} of {len(DIAGNOSES)} are right. `hint('recipe-clinic')` says what to look at first.")
