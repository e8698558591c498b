"""Exercises about the paper's three reasons: ways of a signal, what has to wait, where n^2 begins, looking back."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from transduce.learn.exercising import Wrong, choices_of, exercise, is_close, number_of, tensor_of

WORK = ("GRU, training", "GRU, answering", "Transformer, training", "Transformer, answering")


def _layers_by_hand(num_tokens: int, width: int) -> int:
    """Lets what the first token says spread, layer by layer, until it is at the last one."""
    reached, layers = 0, 0
    while reached < num_tokens - 1:
        reached, layers = reached + width - 1, layers + 1
    return layers


def _layers(num_tokens: int, width: int) -> int:
    return -(-(num_tokens - 1) // (width - 1))


@exercise(
    "why-path-length",
    hints=(
        "In one layer, position t sees positions t - width + 1 to t. So what a token says moves on by how many places?",
        "It has to move num_tokens - 1 places, by width - 1 a layer. The last layer may be needed only in part.",
    ),
    solution=_layers,
    wrong=(
        lambda num_tokens, width: -(-num_tokens // width),
        lambda num_tokens, width: (num_tokens - 1) // (width - 1),
        lambda num_tokens, _: num_tokens - 1,
        lambda *_: None,
    ),
)
def _check_layers(answer: Callable[[int, int], Any]) -> None:
    for num_tokens, width in ((5, 3), (6, 3), (2, 2), (30, 7), (201, 3), (12, 5)):
        found, expected = number_of(answer(num_tokens, width)), _layers_by_hand(num_tokens, width)
        if found != expected:
            raise Wrong(
                f"for {num_tokens} tokens and width {width} it says {found:g}; the first token's message goes "
                f"{width - 1} places a layer and has {num_tokens - 1} to go: {expected} layers."
            )


@exercise(
    "why-what-waits",
    hints=(
        "What is known when the work begins? In training, the whole target is.",
        "When a network answers, token t + 1 is chosen after token t is known, whatever the network.",
    ),
    solution={"GRU, training", "GRU, answering", "Transformer, answering"},
    wrong=({"GRU, training", "GRU, answering"}, set(WORK), {"GRU, training"}, {"GRU, training", "LSTM, training"}),
)
def _check_what_waits(answer: Any) -> None:
    chosen, right = choices_of(answer, WORK), set(WORK) - {"Transformer, training"}
    if "Transformer, training" in chosen:
        raise Wrong(
            "training hands the Transformer the whole target: every position is computed at once, as you counted."
        )
    if missing := right - chosen:
        why = "its next token needs the one before" if "answering" in min(missing) else "a state needs the one before"
        raise Wrong(f"something is missing. {min(missing)}: {why}, so the number of steps grows with the length.")


def _crossover(d_model: int) -> int:
    return 6 * d_model


@exercise(
    "why-crossover",
    hints=(
        "Per token, an encoder layer multiplies by matrices of 4 d^2 (attention) and 8 d^2 (feed-forward) numbers.",
        "Per token, attention takes n products of length d for its scores, and n vectors of d numbers for its mix.",
        "12 d^2 = 2 n d.",
    ),
    solution=_crossover,
    wrong=(lambda d_model: 12 * d_model, lambda d_model: d_model, lambda d_model: 3 * d_model, lambda _: None),
)
def _check_crossover(answer: Callable[[int], Any]) -> None:
    for d_model in (16, 64, 512):
        found = number_of(answer(d_model))
        matrices = sum(rows * columns for rows, columns in _matrices_of_a_layer(d_model))
        attention = found * d_model + found * d_model  # scores, and the mix of values
        if not abs(attention - matrices) <= 1e-6 * matrices:
            raise Wrong(
                f"at d = {d_model} it says {found:g}: there the matrices take {matrices:,} multiplications a token, "
                f"scores and mix together {attention:,.0f}. They should be equal."
            )


def _look_back(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    weights = (states @ query / query.numel() ** 0.5).softmax(dim=0)
    return weights @ states


@exercise(
    "why-look-back",
    hints=(
        "One score for each state: its product with the query, divided by the root of the number of channels.",
        "softmax over the states, then the mean of the states with those weights.",
    ),
    solution=_look_back,
    wrong=(
        lambda _, states: states[-1],
        lambda _, states: states.mean(dim=0),
        lambda query, states: (states @ query).softmax(dim=0) @ states,
        lambda *_: None,
    ),
)
def _check_look_back(answer: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    random = torch.Generator().manual_seed(3)
    for num_states, size in ((4, 6), (11, 5)):
        states, query = torch.randn(num_states, size, generator=random), 2 * torch.randn(size, generator=random)
        found = tensor_of(answer(query, states))
        expected = F.scaled_dot_product_attention(query[None], states, states)[0]
        if found.shape != expected.shape:
            raise Wrong(f"it has shape {tuple(found.shape)}; one vector of {size} numbers was expected.")
        if is_close(found, expected):
            continue
        if is_close(found, states[-1]):
            raise Wrong("this is the last state, all that a decoder without attention gets.")
        if is_close(found, states.mean(dim=0)):
            raise Wrong("this is the plain mean of the states: the query has no say in it.")
        raise Wrong(
            f"it is {float((found - expected).abs().max()):.3f} away from what torch's attention gives. Are the scores "
            f"divided by sqrt({size})?"
        )


def _matrices_of_a_layer(d_model: int) -> list[tuple[int, int]]:
    """W^Q, W^K, W^V, W^O, W1, W2, with the paper's d_ff = 4 d_model."""
    return [(d_model, d_model)] * 4 + [(d_model, 4 * d_model), (4 * d_model, d_model)]
