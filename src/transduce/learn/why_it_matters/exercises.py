"""Exercises about the paper's three reasons: signal paths, what has to wait, where n^2 takes over, looking back."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from transduce.learn.exercising import Wrong, choices_of, exercise, is_close, number_of, tensor_of

WORK = ("GRU, training", "GRU, decoding", "Transformer, training", "Transformer, decoding")


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
        "In one layer, position t sees positions t - width + 1 to t. How far does a token's information move?",
        "It has to move num_tokens - 1 places, width - 1 per layer. The last layer may have fewer places left to go.",
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
                f"for {num_tokens} tokens and width {width} your function returns {found:g}. The first token's "
                f"information moves {width - 1} places per layer and has {num_tokens - 1} to go: {expected} layers."
            )


@exercise(
    "why-what-waits",
    hints=(
        "What is known before the work begins? In training, the whole target is.",
        "In decoding, any network can choose token t + 1 only after token t is known.",
    ),
    solution={"GRU, training", "GRU, decoding", "Transformer, decoding"},
    wrong=({"GRU, training", "GRU, decoding"}, set(WORK), {"GRU, training"}, {"GRU, training", "LSTM, training"}),
)
def _check_what_waits(answer: Any) -> None:
    chosen, right = choices_of(answer, WORK), set(WORK) - {"Transformer, training"}
    if "Transformer, training" in chosen:
        raise Wrong(
            "in training the Transformer gets the whole target and computes all positions at once, as the chain shows."
        )
    if missing := right - chosen:
        why = "each token needs the one before" if "decoding" in min(missing) else "each state needs the one before"
        raise Wrong(f"something is missing. {min(missing)}: {why}, so the number of steps grows with the length.")


def _crossover(d_model: int) -> int:
    return 6 * d_model


@exercise(
    "why-crossover",
    hints=(
        "Per token, an encoder layer multiplies by matrices of 4 d^2 (attention) and 8 d^2 (feed-forward) numbers.",
        "For each token, attention computes n dot products of length d (scores) and mixes n vectors of d numbers.",
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
                f"at d = {d_model} your function returns {found:g}. At that length the matrices take {matrices:,} "
                f"multiplications per token, scores and mixing together {attention:,.0f}. They should be equal."
            )


def _look_back(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    weights = (states @ query / query.numel() ** 0.5).softmax(dim=0)
    return weights @ states


@exercise(
    "why-look-back",
    hints=(
        "One score per state: its dot product with the query, divided by the square root of the number of channels.",
        "A softmax over the states, then the weighted mean of the states.",
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
            raise Wrong(f"the result has shape {tuple(found.shape)}; one vector of {size} numbers was expected.")
        if is_close(found, expected):
            continue
        if is_close(found, states[-1]):
            raise Wrong("this is the last state, which is all that a decoder without attention gets.")
        if is_close(found, states.mean(dim=0)):
            raise Wrong("this is the plain mean of the states: the query has no influence on it.")
        raise Wrong(
            f"the result differs by up to {float((found - expected).abs().max()):.3f} from torch's attention. Did you "
            f"divide the scores by sqrt({size})?"
        )


def _matrices_of_a_layer(d_model: int) -> list[tuple[int, int]]:
    """W^Q, W^K, W^V, W^O, W1, W2, with the paper's d_ff = 4 d_model."""
    return [(d_model, d_model)] * 4 + [(d_model, 4 * d_model), (4 * d_model, d_model)]
