"""Pieces 1 to 4: attention, its heads, and positions."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.learn.build_it import pieces
from transduce.learn.build_it.checks.comparing import (
    Slips,
    Unwritten,
    built,
    hidden,
    pair_of,
    parts_of,
    random,
    same,
    scores_of,
)
from transduce.learn.exercising import Wrong, exercise, returned, tensor_of

# 1 · attention


def _attention_slips(q: Tensor, k: Tensor, v: Tensor, may_look: Tensor) -> Slips:
    scores = scores_of(q, k)
    root = math.sqrt(q.size(-1))
    kept = scores.softmax(-1) * may_look
    return {
        "the scores are not divided by √d_k.": lambda: hidden(scores * root, may_look).softmax(-1) @ v,
        "the scores are divided by d_k; divide by its square root.": lambda: (
            hidden(scores / root, may_look).softmax(-1) @ v
        ),
        "the softmax runs over the queries. The weights of one *query* add up to 1: dim=-1.": lambda: (
            hidden(scores, may_look).softmax(-2) @ v
        ),
        "the mask is read the wrong way round: True is where a query may look.": lambda: (
            hidden(scores, ~may_look).softmax(-1) @ v
        ),
        "the mask is not used.": lambda: scores.softmax(-1) @ v,
        "a hidden score is set to 0, but e⁰ = 1 is a weight like any other. Minus infinity leaves nothing.": lambda: (
            (scores * may_look).softmax(-1) @ v
        ),
        "the mask is added to the scores: True adds 1, which hides nothing. Fill with minus infinity.": lambda: (
            (scores + may_look).softmax(-1) @ v
        ),
        "the mask comes after the softmax: the weights that are left no longer add up to 1. Mask the scores.": lambda: (
            kept @ v
        ),
        "there is no softmax: scores are not weights.": lambda: scores.masked_fill(~may_look, 0) @ v,
        "keys are mixed instead of values.": lambda: hidden(scores, may_look).softmax(-1) @ k,
    }


@exercise(
    "build-attention",
    hints=(
        "Three steps: a score for every query and key, weights out of the scores, a mixture of the values.",
        "Scores: `q @ k.transpose(-2, -1)`, divided by √d_k. Hide keys *before* the softmax, with `masked_fill`.",
        "`scores.masked_fill(~may_look, -math.inf).softmax(dim=-1) @ v`",
    ),
    solution=pieces.attention,
    wrong=(
        lambda q, k, v, m: hidden(q @ k.mT, m).softmax(-1) @ v,
        lambda q, k, v, m: hidden(q @ k.mT / q.size(-1), m).softmax(-1) @ v,
        lambda q, k, v, m: hidden(scores_of(q, k), m).softmax(-2) @ v,
        lambda q, k, v, m: hidden(scores_of(q, k), ~m).softmax(-1) @ v,
        lambda q, k, v, _: scores_of(q, k).softmax(-1) @ v,
        lambda q, k, v, m: (scores_of(q, k) * m).softmax(-1) @ v,
        lambda q, k, v, m: (scores_of(q, k) + m).softmax(-1) @ v,
        lambda q, k, v, m: scores_of(q, k).softmax(-1) * m @ v,
        lambda *_: None,
    ),
)
def _check_attention(answer: Callable[..., Any]) -> None:
    q, k, v = (random(2, 3, 5, 4, seed=seed) for seed in (1, 2, 3))
    is_past = torch.ones(5, 5, dtype=torch.bool).tril()
    for may_look in (is_past, is_past.roll(2, dims=1), torch.ones_like(is_past)):
        found = returned(answer(q, k, v, may_look))
        if isinstance(found, tuple):
            raise Wrong("it returns several things; return the mixture alone.")
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=may_look)
        same(found, expected, _attention_slips(q, k, v, may_look), "torch's scaled_dot_product_attention.")


# 2 · heads


@exercise(
    "build-heads",
    hints=(
        "Give the channels two axes first, (heads, channels of a head), and only then move the axis of heads.",
        "`x.unflatten(-1, (num_heads, -1))` is (B, T, H, D / H); `transpose(1, 2)` moves the heads before the tokens.",
        "Joining undoes both, in the opposite order: `x.transpose(1, 2).flatten(2)`.",
    ),
    solution=(pieces.split_heads, pieces.join_heads),
    wrong=(
        (lambda x, h: x.view(x.size(0), h, x.size(1), -1), pieces.join_heads),
        (lambda x, h: x.unflatten(-1, (h, -1)), pieces.join_heads),
        (lambda x, h: x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2), pieces.join_heads),
        (pieces.split_heads, lambda x: x.flatten(2)),
        (pieces.split_heads, lambda x: x.reshape(x.size(0), x.size(2), -1)),
        (lambda *_: None, lambda *_: None),
        pieces.split_heads,
    ),
)
def _check_heads(answer: Any) -> None:
    split, join = pair_of(answer, "(split_heads, join_heads)")
    x = random(2, 5, 12)
    expected = torch.stack([x[:, :, 4 * head : 4 * head + 4] for head in range(3)], dim=1)
    found = tensor_of(split(x, 3))
    if found.shape == (2, 5, 3, 4):
        raise Wrong("the axis of heads stands behind the tokens: each head needs (T, channels) as its last two axes.")
    same(
        found,
        expected,
        {
            "a `view` straight to (B, H, T, D / H) mixes tokens: head 1 gets whole tokens, the first ones.": lambda: (
                x.view(2, 3, 5, 4)
            ),
            "head 1 gets every third channel; it should get the first four.": lambda: x.unflatten(-1, (-1, 3)).permute(
                0, 3, 1, 2
            ),
        },
        "slices of the channels, head by head.",
    )
    joined = tensor_of(join(expected))
    if joined.shape == (2, 3, 20):
        raise Wrong("joined without moving the heads back: a row of the result must be one *token*.")
    slips: Slips = {
        "joined without moving the heads back: the channels of different tokens end up in one row.": lambda: (
            expected.reshape(2, 5, 12)
        )
    }
    same(joined, x, slips, "what was split: joining must undo splitting.")


# 3 · multi-head attention


def _many(module: Any, x: Tensor, memory: Tensor, may_look: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention by slices, with the reader's linear maps."""
    q, k, v = module.query(x), module.key(memory), module.value(memory)
    width = q.size(-1) // num_heads
    heads = [
        hidden(scores_of(*(part[..., width * i : width * (i + 1)] for part in (q, k))), may_look).softmax(-1)
        @ v[..., width * i : width * (i + 1)]
        for i in range(num_heads)
    ]
    return torch.cat(heads, dim=-1)


class _MultiHeadSlip(pieces.MultiHead):
    """A base for wrong answers: `mixed` is what the heads give."""

    def mixed(self, x: Tensor, memory: Tensor, may_look: Tensor) -> Tensor:
        return _many(self, x, memory, may_look, self.num_heads)

    def forward(self, x: Tensor, memory: Tensor, may_look: Tensor) -> Any:
        return self.output(self.mixed(x, memory, may_look))


class _IgnoresMemory(_MultiHeadSlip):
    def mixed(self, x: Tensor, _memory: Tensor, may_look: Tensor) -> Tensor:
        return _many(self, x, x, may_look[..., : x.size(1)], self.num_heads)


class _WithoutOutput(_MultiHeadSlip):
    def forward(self, x: Tensor, memory: Tensor, may_look: Tensor) -> Any:
        return self.mixed(x, memory, may_look)


class _OneHead(_MultiHeadSlip):
    def mixed(self, x: Tensor, memory: Tensor, may_look: Tensor) -> Tensor:
        return _many(self, x, memory, may_look, 1)


class _Swapped(_MultiHeadSlip):
    def mixed(self, x: Tensor, memory: Tensor, may_look: Tensor) -> Tensor:
        return _many(_Other(self, key=self.query, query=self.key), x, memory, may_look, self.num_heads)


class _KeysAsValues(_MultiHeadSlip):
    def mixed(self, x: Tensor, memory: Tensor, may_look: Tensor) -> Tensor:
        return _many(_Other(self, value=self.key), x, memory, may_look, self.num_heads)


class _LooksEverywhere(_MultiHeadSlip):
    def mixed(self, x: Tensor, memory: Tensor, may_look: Tensor) -> Tensor:
        return _many(self, x, memory, torch.ones_like(may_look), self.num_heads)


class _Other:
    """The linear maps of a module, some of them exchanged."""

    def __init__(self, module: Any, **exchanged: Any) -> None:
        for name in ("query", "key", "value", "output"):
            setattr(self, name, exchanged.get(name, getattr(module, name)))


@exercise(
    "build-multi-head",
    hints=(
        "Queries are made from `x`; keys and values from `memory`. In self-attention the caller passes x twice.",
        "`split_heads` all three, `attention` on them, `join_heads`, then `self.output`.",
        "`self.output(join_heads(attention(q, k, v, may_look)))`",
    ),
    solution=pieces.MultiHead,
    wrong=(_IgnoresMemory, _WithoutOutput, _OneHead, _Swapped, _KeysAsValues, _LooksEverywhere, Unwritten),
)
def _check_multi_head(answer: Any) -> None:
    module = built(answer, 12, 3)
    query, key, value, output, _ = parts_of(module, "query", "key", "value", "output", "num_heads")
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double().eval()
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([query.weight, key.weight, value.weight]),
            "in_proj_bias": torch.cat([query.bias, key.bias, value.bias]),
            "out_proj.weight": output.weight,
            "out_proj.bias": output.bias,
        }
    )
    x, memory = random(2, 4, 12, seed=4), random(2, 5, 12, seed=5)
    may_look = torch.ones(4, 5, dtype=torch.bool).tril(1)
    with torch.no_grad():
        expected = theirs(x, memory, memory, attn_mask=~may_look, need_weights=False)[0]
        full = torch.ones_like(may_look)

        def slip(x: Tensor, memory: Tensor, mask: Tensor, heads: int = 3, **exchanged: Any) -> Tensor:
            return output(_many(_Other(module, **exchanged), x, memory, mask, heads))

        slips: Slips = {
            "keys and values are made from x; they come from `memory`, what is looked at.": lambda: slip(
                x, x, may_look[:, :4]
            ),
            "the last matrix, `output`, is missing: it lets the heads' results work together.": lambda: _many(
                module, x, memory, may_look, 3
            ),
            "it has one head: the channels are not split.": lambda: slip(x, memory, may_look, 1),
            "queries and keys are exchanged: what asks is x.": lambda: slip(x, memory, may_look, query=key, key=query),
            "the keys are used as values.": lambda: slip(x, memory, may_look, value=key),
            "`may_look` is not handed on to `attention`.": lambda: slip(x, memory, full),
        }
        same(module(x, memory, may_look), expected, slips, "torch.nn.MultiheadAttention with the same weights.")


# 4 · sinusoids


def _naive_sinusoids(length: int, d_model: int, first: int = 0) -> Tensor:
    def number(position: int, channel: int) -> float:
        angle = position / 10_000 ** (2 * (channel // 2) / d_model)
        return math.cos(angle) if channel % 2 else math.sin(angle)

    rows = [[number(position, channel) for channel in range(d_model)] for position in range(first, first + length)]
    return torch.tensor(rows, dtype=torch.float64)


def _in_halves(table: Tensor) -> Tensor:
    return torch.cat((table[:, ::2], table[:, 1::2]), dim=1)


def _cosines_first(table: Tensor) -> Tensor:
    return table.unflatten(1, (-1, 2)).flip(-1).flatten(1)


def _channel_by_channel(length: int, d_model: int) -> Tensor:
    channels = torch.arange(d_model)
    angles = torch.arange(length)[:, None].double() / 10_000 ** (channels / d_model)
    return torch.where(channels % 2 == 1, angles.cos(), angles.sin())


@exercise(
    "build-sinusoids",
    hints=(
        "One slowness for each *pair* of channels: 10000^(2c/d); the 2c are `torch.arange(0, d_model, 2)`.",
        "`torch.arange(length)[:, None] / slowness` is a table of angles, (length, d / 2).",
        "Sines and cosines take turns: `torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)`.",
    ),
    solution=pieces.sinusoids,
    wrong=(
        lambda n, d: _in_halves(_naive_sinusoids(n, d)),
        lambda n, d: _cosines_first(_naive_sinusoids(n, d)),
        _channel_by_channel,
        lambda n, d: _naive_sinusoids(n, d, first=1),
        lambda n, d: _naive_sinusoids(n, d).T,
        lambda *_: None,
    ),
)
def _check_sinusoids(answer: Callable[[int, int], Any]) -> None:
    expected = _naive_sinusoids(50, 8)
    found = tensor_of(answer(50, 8))
    if found.shape == (8, 50):
        raise Wrong("it has the shape (8, 50): one row for each of the 50 positions was expected.")
    slips: Slips = {
        "all sines come first, then all cosines; they take turns: channel 2c is a sine, 2c + 1 its cosine.": lambda: (
            _in_halves(expected)
        ),
        "cosines stand in the even channels; the paper has sines there.": lambda: _cosines_first(expected),
        "every channel has a clock of its own; a sine and its cosine share the angle pos / 10000^(2c/d).": lambda: (
            _channel_by_channel(50, 8)
        ),
        "positions count from 1; they count from 0.": lambda: _naive_sinusoids(50, 8, first=1),
    }
    same(found, expected, slips, "the formula of section 3.5, number by number.")
