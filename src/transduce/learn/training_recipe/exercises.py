"""Exercises on the training recipe: sums and counts, schedules that count wrongly, averages, and the clinic."""

import math
from typing import Any

import torch

from transduce.learn.exercising import Wrong, choices_of, exercise, number_of, returned
from transduce.learn.training_recipe.clinic import DIAGNOSES


def _mean_loss(sums: list[float], counts: list[int]) -> float:
    return sum(sums) / sum(counts)


@exercise(
    "recipe-mean-loss",
    hints=("What would the loss per token be if all micro-batches were one batch?", "Divide only once."),
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
        raise Wrong("You get 2, the mean of 1 and 3: one token of the batch of 10 counts as much as ten of the other.")
    if not math.isclose(found, 310 / 110, rel_tol=1e-5):
        raise Wrong(f"110 tokens have a summed loss of 310; you get {found:.3f} per token.")


@exercise(
    "recipe-warm-up-in-updates",
    hints=("How many micro-batches are there per update of the weights?", "Divide 3,000 by that number."),
    solution=300,
    wrong=(3000, 30_000, 3010),
)
def _check_updates(updates: Any) -> None:
    if (found := number_of(updates)) != 300:
        raise Wrong(f"{found:g} is not right: the schedule advances ten times per update of the weights.")


def _average(average: float, current: float, decay: float) -> float:
    return decay * average + (1 - decay) * current


@exercise(
    "recipe-moving-average",
    hints=(
        "Keep a share `decay` of the old average.",
        "The shares of the old average and of the new weights sum to 1.",
    ),
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
                f"With an average of {old:g}, weights at 0 and a decay of {decay}, the new average should be "
                f"{expected:g}, not {value:.3g}."
            )
    still = one.clone()
    for _ in range(50):
        still = returned(average(still, one.clone(), 0.9))
    if not math.isclose(number_of(still), 1.0, rel_tol=1e-5):
        raise Wrong(f"If the weights stay at 1, their average should stay at 1; yours goes to {float(still):.3g}.")


def _swapped(first: str, second: str) -> dict[str, str]:
    return DIAGNOSES | {first: DIAGNOSES[second], second: DIAGNOSES[first]}


@exercise(
    "recipe-clinic",
    hints=(
        "Start with the gap between the training loss and the loss on fresh rows: two trainings have one. In which is "
        "the gap there from the first step, and in which does it open later?",
        "One training loss rises far above log 10, the loss of guessing. Only steps that are too long do that.",
        "Two trainings seem to learn nothing. One of them never can: its loss stays just below log 10. The loss of the "
        "other slowly falls in the end.",
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
        raise Wrong(f"{', '.join(unanswered)}: no diagnosis yet.")
    options = sorted(DIAGNOSES.values())
    right = sum(choices_of(named[letter], options) == {name} for letter, name in DIAGNOSES.items())
    if right < len(DIAGNOSES):
        raise Wrong(f"{right} of {len(DIAGNOSES)} are right. `hint('recipe-clinic')` tells you what to look at first.")
