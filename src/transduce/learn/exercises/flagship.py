"""Exercises of the flagship's chapters 1 to 4, and 6."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.learn.exercise import Wrong, exercise
from transduce.model.positional import sinusoidal_table


def scaled_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V."""
    return (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(dim=-1) @ v


def _unscaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def _over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(dim=-2) @ v


def _divided_by_width(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / q.size(-1)).softmax(dim=-1) @ v


@exercise(
    "attention-equation-1",
    hints=(
        "Scores first: every query times every key, q @ k.transpose(-2, -1).",
        "Divide by the ROOT of the number of channels, q.size(-1).",
        "softmax over the keys, which are the last axis; then @ v.",
    ),
    solution=scaled_attention,
    wrong=(_unscaled, _over_queries, _divided_by_width, lambda _q, _k, _v: None),
)
def _check_attention(answer: Any) -> None:
    random = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, n, 9, generator=random, dtype=torch.float64) for n in (4, 6, 6))
    found = answer(q, k, v)
    if found is None:
        raise Wrong("It returns None: not written yet?")
    expected = F.scaled_dot_product_attention(q, k, v)
    if found.shape != expected.shape:
        raise Wrong(f"4 queries of 9 channels give (2, 4, 9); yours has the shape {tuple(found.shape)}.")
    if torch.allclose(found, _unscaled(q, k, v)):
        raise Wrong("The scores are not divided by sqrt(d_k): with wide queries one key would take everything.")
    if torch.allclose(found, _over_queries(q, k, v)):
        raise Wrong("The softmax runs over the queries. Each QUERY shares out one whole weight among the keys: dim=-1.")
    if not torch.allclose(found, expected, atol=1e-9):
        raise Wrong(f"It differs from torch's by up to {float((found - expected).abs().max()):.2g}: is it the root?")


@exercise(
    "attention-by-hand",
    hints=("The two scores are 2 and 0; divided by sqrt(4) they are 1 and 0.", "e / (e + 1) of 10, and the rest of 0."),
    solution=10 * math.e / (math.e + 1),
    wrong=(10 * math.exp(2) / (math.exp(2) + 1), 10 * math.exp(0.5) / (math.exp(0.5) + 1), 5.0, 10.0),
)
def _check_by_hand(answer: Any) -> None:
    exact = 10 * math.e / (math.e + 1)
    if not isinstance(answer, int | float):
        raise Wrong("One number is asked for.")
    if math.isclose(answer, 10 * math.exp(2) / (math.exp(2) + 1), abs_tol=0.01):
        raise Wrong("That is without the division by sqrt(d_k): d_k is 4, so the score 2 becomes 1.")
    if not math.isclose(answer, exact, abs_tol=0.01):
        raise Wrong("Scores, divided by sqrt(4), softmax of the two, then that share of 10 plus the other share of 0.")


@exercise(
    "heads-parameters",
    hints=("W^Q, W^K, W^V and W^O are each d_model x d_model, whatever the number of heads.", "And four biases."),
    solution=4 * 512 * 512 + 4 * 512,
    wrong=(8 * 4 * 512 * 512, 4 * 512 * 64, 3 * 512 * 512 + 3 * 512, 4 * 512 * 512),
)
def _check_heads_parameters(answer: Any) -> None:
    expected = sum(parameter.numel() for parameter in nn.MultiheadAttention(512, 8).parameters())
    if answer == 4 * 512 * 512:
        raise Wrong("Nearly: each of the four matrices has a bias of 512 numbers as well, here as in torch.")
    if answer != expected:
        raise Wrong(
            "Heads divide the channels among them: eight heads of 64 are matrices of 512 x 512, as one head is."
        )


def sinusoid(position: int, channel: int, d_model: int) -> float:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) = cos of the same."""
    angle = position / 10_000 ** (2 * (channel // 2) / d_model)
    return math.cos(angle) if channel % 2 else math.sin(angle)


def _own_exponent(position: int, channel: int, d_model: int) -> float:
    angle = position / 10_000 ** (channel / d_model)
    return math.cos(angle) if channel % 2 else math.sin(angle)


def _swapped(position: int, channel: int, d_model: int) -> float:
    return sinusoid(position, channel ^ 1, d_model)


@exercise(
    "positions-one-entry",
    hints=(
        "Channels 2i and 2i + 1 share one angle: i = channel // 2.",
        "The angle is position / 10000 ** (2 * i / d_model); even channels are its sine, odd ones its cosine.",
    ),
    solution=sinusoid,
    wrong=(_own_exponent, _swapped, lambda _position, _channel, _d_model: None),
)
def _check_sinusoid(answer: Any) -> None:
    table = sinusoidal_table(20, 8)
    for position in (0, 1, 7, 19):
        for channel in range(8):
            found = answer(position, channel, 8)
            if found is None:
                raise Wrong("It returns None: not written yet?")
            expected = float(table[position, channel])
            if abs(found - expected) > 1e-5:
                raise Wrong(
                    f"At position {position}, channel {channel} of 8 the table has {expected:.4f}, yours {found:.4f}. "
                    "A sine and its cosine share one angle."
                )


@exercise(
    "ffn-share",
    hints=("Attention has 4 matrices of d x d; the feed-forward network two of d x 4d.", "8 / (4 + 8)."),
    solution=2 / 3,
    wrong=(1 / 3, 1 / 2, 8.0, 0.8),
)
def _check_share(answer: Any) -> None:
    if not isinstance(answer, int | float) or not 0 < answer < 1:
        raise Wrong("A share is asked for: a number between 0 and 1.")
    if not math.isclose(answer, 2 / 3, abs_tol=0.01):
        raise Wrong("Count weights in units of d x d: attention has four of them, the feed-forward network 4 + 4.")


@exercise(
    "architecture-untied",
    hints=(
        "Three matrices of 37,000 x 512 instead of one: source embedding, target embedding, output.",
        "2 x 37,000 x 512 more.",
    ),
    solution=2 * 37_000 * 512,
    wrong=(37_000 * 512, 3 * 37_000 * 512, 2 * 37_000),
)
def _check_untied(answer: Any) -> None:
    sizes = [
        sum(matrix.numel() for matrix in matrices)
        for matrices in ([torch.empty(37_000, 512, device="meta")] * 1, [torch.empty(37_000, 512, device="meta")] * 3)
    ]
    if answer != sizes[1] - sizes[0]:
        raise Wrong(
            "One matrix serves as source embedding, target embedding and output; untied there are three of them."
        )


def visible(length: int) -> Tensor:
    """True where query i (row) may look at key j (column): j is not after i."""
    return torch.arange(length)[:, None] >= torch.arange(length)[None, :]


def _transposed(length: int) -> Tensor:
    return visible(length).T


def _strict(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril(-1)


def _inverted(length: int) -> Tensor:
    return ~visible(length)


@exercise(
    "masks-causal",
    hints=("Row i is the query: it may look at columns 0 to i.", "torch.ones(length, length, dtype=torch.bool).tril()"),
    solution=visible,
    wrong=(_transposed, _strict, _inverted, lambda _length: None),
)
def _check_causal(answer: Any) -> None:
    for length in (1, 4):
        found = answer(length)
        if found is None:
            raise Wrong("It returns None: not written yet?")
        if not isinstance(found, Tensor) or found.shape != (length, length) or found.dtype != torch.bool:
            raise Wrong(f"A boolean tensor of ({length}, {length}) is asked for.")
        if not found.diagonal().all():
            raise Wrong("A position must see itself: the token there is the last one that is already known.")
        if found.triu(1).any():
            raise Wrong("It lets a query look to its right, at tokens that are not written yet: rows are queries.")
        if not found.equal(torch.ones(length, length, dtype=torch.bool).tril()):
            raise Wrong("It hides places to the left, which may be seen.")
