"""Exercises about positions: the table, its rotation, its layout, and what can be done without any."""

import math
from collections.abc import Callable
from typing import Any

import torch

from transduce.learn.exercising import Wrong, choices_of, exercise, is_close, tensor_of

_ATOL = 1e-4  # float32 is good enough, for angles of 40, too
_BLIND_TASKS = {"reverse", "copy", "sort", "count the words", "name the largest", "name the third word"}


def _by_definition(num_positions: int, d_model: int) -> torch.Tensor:
    """Section 3.5, one number at a time."""
    table = torch.zeros(num_positions, d_model, dtype=torch.float64)
    for pos in range(num_positions):
        for i in range(d_model // 2):
            angle = pos / 10_000 ** (2 * i / d_model)
            table[pos, 2 * i], table[pos, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


def _sinusoids(num_positions: int, d_model: int) -> torch.Tensor:
    pos = torch.arange(num_positions, dtype=torch.float64)[:, None]
    angles = pos / 10_000 ** (torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (P, D/2, 2) -> (P, D)


def _concatenated(num_positions: int, d_model: int) -> torch.Tensor:
    table = _sinusoids(num_positions, d_model)
    return torch.cat((table[:, 0::2], table[:, 1::2]), dim=1)


def _from_one(num_positions: int, d_model: int) -> torch.Tensor:
    return _sinusoids(num_positions + 1, d_model)[1:]


def _exponent_without_two(num_positions: int, d_model: int) -> torch.Tensor:
    pos = torch.arange(num_positions, dtype=torch.float64)[:, None]
    angles = pos / 10_000 ** (torch.arange(d_model // 2, dtype=torch.float64) / d_model)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


@exercise(
    "positions-table",
    hints=(
        "Start with the angles: pos / 10000^(2i / d_model), one row for each pos, one column for each pair i.",
        "`torch.arange(0, d_model, 2) / d_model` are the exponents 2i / d_model of all pairs.",
        "Columns 0, 2, 4, ... are the sines of the angles, columns 1, 3, 5, ... their cosines.",
    ),
    solution=_sinusoids,
    wrong=(_concatenated, _from_one, _exponent_without_two, lambda *_: None),
)
def _check_table(answer: Callable[[int, int], Any]) -> None:
    for num_positions, d_model in ((5, 6), (40, 16)):
        found = tensor_of(answer(num_positions, d_model))
        if found.shape != (num_positions, d_model):
            raise Wrong(
                f"the table has shape {tuple(found.shape)}; one row per position was expected: "
                f"({num_positions}, {d_model})."
            )
        expected = _by_definition(num_positions, d_model)
        if is_close(found, expected, _ATOL):
            continue
        if is_close(found, torch.cat((expected[:, 0::2], expected[:, 1::2]), dim=1), _ATOL):
            raise Wrong("these are all sines, then all cosines; section 3.5 alternates them: sine, cosine, sine, ...")
        if is_close(found[:-1], expected[1:], _ATOL):
            raise Wrong(
                "the first row is position 1; positions count from 0, where every sine is 0 and every cosine is 1."
            )
        row, column = divmod(int((found - expected).abs().argmax()), d_model)
        raise Wrong(
            f"row {row}, column {column} is {found[row, column]:.4f}, expected {expected[row, column]:.4f}. "
            "Channels 2i and 2i + 1 share the exponent 2i / d_model."
        )


def _turn(offset: float, rate: float) -> list[list[float]]:
    angle = offset * rate
    return [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]


def _turn_back(offset: float, rate: float) -> list[list[float]]:
    return _turn(-offset, rate)


def _no_sign(offset: float, rate: float) -> list[list[float]]:
    angle = offset * rate
    return [[math.cos(angle), math.sin(angle)], [math.sin(angle), math.cos(angle)]]


def _forgets_the_rate(offset: float, rate: float) -> list[list[float]]:
    del rate
    return _turn(offset, 1.0)


@exercise(
    "positions-rotation",
    hints=(
        "sin(a + b) = sin a cos b + cos a sin b, and cos(a + b) = cos a cos b - sin a sin b.",
        "Let a = pos · rate and b = offset · rate. What is the factor of sin a, and what is the factor of cos a?",
        "First row: cos b, sin b. Second row: -sin b, cos b.",
    ),
    solution=_turn,
    wrong=(_turn_back, _no_sign, _forgets_the_rate, lambda *_: None),
)
def _check_rotation(answer: Callable[[float, float], Any]) -> None:
    for offset, rate in ((3, 1.0), (7, 0.1), (-2, 0.31)):
        matrix = tensor_of(answer(offset, rate)).double()
        if matrix.shape != (2, 2):
            raise Wrong(f"the result has shape {tuple(matrix.shape)}; a 2 x 2 matrix was expected.")
        for pos in (0, 5, 11):
            here, there = (_pair(p * rate) for p in (pos, pos + offset))
            if is_close(matrix @ here, there, _ATOL):
                continue
            if is_close(matrix @ here, _pair((pos - offset) * rate), _ATOL):
                raise Wrong(
                    f"your matrix goes {offset} positions back, to {pos - offset}: the pair is (sine, cosine) here."
                )
            arrived, expected = ([round(float(x), 3) for x in pair] for pair in (matrix @ here, there))
            raise Wrong(
                f"with offset {offset} and rate {rate}, your matrix takes position {pos} to {arrived}; position "
                f"{pos + offset} is {expected}."
            )


def _halves(d_model: int) -> list[int]:
    return [*range(0, d_model, 2), *range(1, d_model, 2)]


def _inverse_of_halves(d_model: int) -> list[int]:
    return [channel for pair in zip(range(d_model // 2), range(d_model // 2, d_model), strict=True) for channel in pair]


@exercise(
    "positions-layout",
    hints=(
        "Column 0 of the concatenated table is column 0 of the interleaved one; column 1 is column 2.",
        "All even channels first, then all odd ones.",
    ),
    solution=_halves,
    wrong=(_inverse_of_halves, lambda d_model: list(range(d_model)), lambda _: None),
)
def _check_layout(answer: Callable[[int], Any]) -> None:
    for d_model in (6, 16):
        order = tensor_of(answer(d_model)).flatten().tolist()
        if sorted(order) != list(range(d_model)):
            raise Wrong(f"{order} is not an order of the channels 0 to {d_model - 1}: each must appear exactly once.")
        interleaved = _by_definition(9, d_model)
        if not is_close(interleaved[:, order], torch.cat((interleaved[:, 0::2], interleaved[:, 1::2]), dim=1)):
            raise Wrong(
                f"column 1 of your table is channel {order[1]} of the interleaved one. The sines should come first, "
                "and the sines are the even channels of the interleaved table."
            )


@exercise(
    "positions-without",
    hints=(
        "The encoder passes on a set. For which tasks does the output depend only on that set?",
        "The decoder has positions and can count what it wrote. It cannot know what came first in the source.",
    ),
    solution={"sort", "count the words", "name the largest"},
    wrong=(
        {"reverse", "copy", "sort", "count the words", "name the largest"},
        {"name the largest"},
        {"sort", "name the largest", "name the third word", "count the words"},
    ),
)
def _check_without(answer: Any) -> None:
    chosen = choices_of(answer, sorted(_BLIND_TASKS))
    right = {"sort", "count the words", "name the largest"}
    if too_many := chosen - right:
        name = min(too_many)
        raise Wrong(f"to {name}, the model must know the order: two orders of one source have different targets.")
    if missing := right - chosen:
        raise Wrong(f"something is missing: to {min(missing)}, it is enough to know which words occur, and how often.")


def _pair(angle: float) -> torch.Tensor:
    return torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
