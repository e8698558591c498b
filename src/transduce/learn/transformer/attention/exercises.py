"""Exercises about attention, its heads, and the scale of embeddings."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.learn.exercising import Wrong, choices_of, exercise, is_close, number_of, returned, tensor_of


@exercise(
    "attention-two-keys",
    hints=(
        "softmax of (ln 1, ln 3): e to the power of a logarithm is the number itself.",
        "The weights are 1 / (1 + 3) and 3 / (1 + 3).",
        "The output is 1/4 of the first value plus 3/4 of the second.",
    ),
    solution=[7.0, 4.0],
    wrong=([10.0, 6.0], [5.0, 4.0], [28.0, 16.0], [7.0]),
)
def _check_by_hand(answer: Any) -> None:
    found = tensor_of(answer).flatten()
    scores, values = torch.tensor([math.log(1), math.log(3)]), torch.tensor([[4.0, 4.0], [8.0, 4.0]])
    expected = scores.softmax(0) @ values
    if found.shape != expected.shape:
        raise Wrong("two numbers were expected: the output has as many channels as a value.")
    if is_close(found, values.mean(0), 1e-3) or is_close(found, torch.tensor([5.0, 4.0]), 1e-3):
        raise Wrong("three quarters belong to the second value, whose score is ln 3.")
    if not is_close(found, expected, 1e-3):
        raise Wrong(
            f"{found.tolist()} does not lie between the values, or not at the right place. Do weights sum to 1?"
        )


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def _over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, -1e9)).softmax(dim=-2) @ v


def _unscaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return _attention(q * q.size(-1) ** 0.5, k, v, mask)


def _scaled_by_d_k(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return _attention(q / q.size(-1) ** 0.5, k, v, mask)


def _inverted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return _attention(q, k, v, None if mask is None else ~mask)


def _masked_with_zero(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    return (scores if mask is None else scores * mask).softmax(dim=-1) @ v


def _always_causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return _attention(q, k, v, None if mask is None else torch.ones_like(mask).tril())


_USUAL_SLIPS: tuple[tuple[Callable[..., Tensor], str], ...] = (
    (_over_queries, "the softmax goes over the queries; the weights of one query, over all keys (dim=-1), sum to 1."),
    (_unscaled, "the scores are not divided by √d_k."),
    (_scaled_by_d_k, "the scores are divided by d_k; they should be divided by its root."),
    (_inverted, "the mask is read the wrong way around: True is where a query may look."),
    (_masked_with_zero, "a masked score is 0, and e^0 = 1 is a weight like any other. Minus infinity leaves nothing."),
)


@exercise(
    "attention-function",
    hints=(
        "k.transpose(-2, -1) swaps the last two axes, whatever stands before them.",
        "scores.masked_fill(~mask, float('-inf')), before the softmax.",
        "(q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).softmax(dim=-1) @ v, and the mask in between.",
    ),
    solution=_attention,
    wrong=(*(slip for slip, _ in _USUAL_SLIPS), _always_causal, lambda *_: None),
)
def _check_attention(answer: Callable[..., Any]) -> None:
    random = torch.Generator().manual_seed(11)
    q, k, v = (torch.randn(2, 3, n, 6, dtype=torch.float64, generator=random) for n in (5, 5, 5))
    is_past = torch.ones(5, 5, dtype=torch.bool).tril()
    # The second mask finds out who hides the future whatever the mask says.
    for mask in (None, is_past, is_past.roll(2, dims=1)):
        found = returned(answer(q, k, v, mask))
        if isinstance(found, tuple):
            raise Wrong("it returns several things; the output alone was asked for.")
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        found = tensor_of(found, expected.shape)
        if is_close(found, expected):
            continue
        for slip, message in _USUAL_SLIPS:
            if is_close(found, slip(q, k, v, mask)):
                raise Wrong(message)
        raise Wrong(
            f"{'without a mask' if mask is None else f'with the mask {mask.int().tolist()}'}, it is not torch's own "
            "attention."
        )


_CHANGES = {
    "add 5 to one row of scores": True,
    "add 5 to all scores": True,
    "add 5 to one column of scores": False,
    "multiply all scores by 2": False,
    "add the same vector to every key": True,
    "add the same vector to every value": False,  # the weights stay; the output moves
}


@exercise(
    "attention-shift",
    hints=(
        "e^(s + c) = e^s e^c: a factor that all keys of a query have in common is divided out again.",
        "The same vector on every key adds q · c to a query's scores: the same number in the whole row.",
        "The weights do not depend on the values; the output does.",
    ),
    solution={"add 5 to one row of scores", "add 5 to all scores", "add the same vector to every key"},
    wrong=(
        {"add 5 to all scores"},
        {"add 5 to one row of scores", "add 5 to all scores", "multiply all scores by 2"},
        set(_CHANGES),
    ),
)
def _check_shift(answer: Any) -> None:
    chosen = choices_of(answer, _CHANGES)
    if too_many := [name for name in _CHANGES if name in chosen and not _CHANGES[name]]:
        raise Wrong(f"to {too_many[0]} changes the output. Which keys gain by it, and which do not?")
    if missing := [name for name in _CHANGES if _CHANGES[name] and name not in chosen]:
        raise Wrong(
            f"something is missing: to {missing[0]} changes nothing. What do all keys of a query have in common?"
        )


def _derivative(weights: Tensor, values: Tensor) -> Tensor:
    return weights[:, None] * (values - weights @ values)


@exercise(
    "attention-derivative",
    hints=(
        "Scores s, weights a, values v, output z = Σ a_j v_j: d a_i / d s_j = a_i (δ_ij - a_j), where δ_ij is 1 if "
        "i = j and 0 otherwise.",
        "Σ_i a_i (δ_ij - a_j) v_i = a_j v_j - a_j Σ_i a_i v_i.",
        "a_j (v_j - z): a key gains by as much as its value differs from what comes out now.",
    ),
    solution=_derivative,
    wrong=(
        lambda weights, values: weights[:, None] * values,
        lambda weights, values: weights[:, None] * (1 - weights[:, None]) * values,
        lambda weights, values: values - weights @ values,
        lambda *_: None,
    ),
)
def _check_derivative(answer: Callable[[Tensor, Tensor], Any]) -> None:
    random = torch.Generator().manual_seed(12)
    scores, values = (torch.randn(*shape, dtype=torch.float64, generator=random) for shape in ((4,), (4, 3)))
    found = tensor_of(answer(scores.softmax(0), values))
    expected = torch.autograd.functional.jacobian(lambda s: s.softmax(0) @ values, scores).T
    if found.shape != expected.shape:
        raise Wrong(f"it has shape {tuple(found.shape)}; one row for each key was expected: {tuple(expected.shape)}.")
    if not is_close(found, expected):
        raise Wrong("autograd says otherwise. A score that rises takes from all other keys: where is their loss?")


def _split(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _viewed(x: Tensor, num_heads: int) -> Tensor:
    return x.reshape(x.size(0), num_heads, x.size(1), x.size(2) // num_heads)


@exercise(
    "heads-split",
    hints=(
        "First cut the channels: (batch, len, d_model) becomes (batch, len, heads, d_k).",
        "Then let heads and tokens change places; a reshape alone would mix tokens.",
        "x.unflatten(-1, (num_heads, -1)).transpose(1, 2)",
    ),
    solution=_split,
    wrong=(_viewed, lambda x, num_heads: x.unflatten(-1, (num_heads, -1)), lambda *_: None),
)
def _check_split(answer: Callable[[Tensor, int], Any]) -> None:
    x = torch.arange(2 * 5 * 12.0).reshape(2, 5, 12)
    found = tensor_of(answer(x, 3))
    if tuple(found.shape) != (2, 3, 5, 4):
        raise Wrong(f"(2, 5, 12) with 3 heads became {tuple(found.shape)}; (2, 3, 5, 4) was expected.")
    expected = torch.stack([x[:, :, head * 4 : head * 4 + 4] for head in range(3)], dim=1)
    if not is_close(found, expected):
        raise Wrong(
            "the shape is right and the contents are not: head 1 must hold channels 0 to 3 of every position. A "
            "reshape straight to that shape cuts positions, not channels."
        )


@exercise(
    "heads-parameters",
    hints=(
        "W^Q, W^K, W^V of one head are d_model × (d_model / H) each. How many heads are there?",
        "All heads together: three matrices of d_model × d_model, and W^O is one more.",
        "Each of the four has d_model biases here: 4 d_model² + 4 d_model.",
    ),
    solution=lambda d_model, num_heads: 4 * d_model**2 + 4 * d_model,  # noqa: ARG005 - that is the point
    wrong=(
        lambda d_model, num_heads: num_heads * 4 * d_model**2 + 4 * d_model,
        lambda d_model, num_heads: 3 * d_model**2 + 3 * d_model,  # noqa: ARG005
        lambda d_model, num_heads: 4 * d_model**2,  # noqa: ARG005
        lambda *_: None,
    ),
)
def _check_parameters(answer: Callable[[int, int], Any]) -> None:
    for d_model, num_heads in ((12, 1), (12, 3), (64, 8)):
        found = number_of(answer(d_model, num_heads))
        expected = sum(part.numel() for part in nn.MultiheadAttention(d_model, num_heads).parameters())
        if found != expected:
            raise Wrong(
                f"d_model {d_model} with {num_heads} heads: {found:,.0f}; torch's own module has {expected}. "
                "Queries, keys, values, output; each with its biases; and heads share what there is."
            )


@exercise(
    "embedding-length",
    hints=(
        "Every pair of channels holds a sine and a cosine of one angle.",
        "sin² + cos² = 1, at every position and for every angle. How many pairs are there?",
        "√(512 / 2) = √256.",
    ),
    solution=16.0,
    wrong=(22.627, 256, 512, 1.0),
)
def _check_length(answer: Any) -> None:
    length = number_of(answer)
    squares = sum(
        math.sin(angle) ** 2 + math.cos(angle) ** 2 for angle in (137 / 10_000 ** (2 * i / 512) for i in range(256))
    )
    if abs(length - squares) < 0.01:
        raise Wrong("that is the square of the length.")
    if not abs(length - math.sqrt(squares)) <= 0.01:
        raise Wrong(f"a row of {length:g} would need squares that sum to {length**2:.0f}. What is sin² + cos²?")
