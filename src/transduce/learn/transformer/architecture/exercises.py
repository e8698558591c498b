"""Exercises about the whole network: a decoder layer put together, who asks whom, its size, and additive masks."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.learn.exercising import Wrong, exercise, is_close, number_of, tensor_of

Part = Callable[..., Tensor]


def _decoder_layer(x: Tensor, memory: Tensor, attend: Part, look_at: Part, feed_forward: Part, norms: Any) -> Tensor:
    x = norms[0](x + attend(x))
    x = norms[1](x + look_at(x, memory))
    return norms[2](x + feed_forward(x))


def _norm_first(x: Tensor, memory: Tensor, attend: Part, look_at: Part, feed_forward: Part, norms: Any) -> Tensor:
    x = x + attend(norms[0](x))
    x = x + look_at(norms[1](x), memory)
    return x + feed_forward(norms[2](x))


def _without_sums(x: Tensor, memory: Tensor, attend: Part, look_at: Part, feed_forward: Part, norms: Any) -> Tensor:
    return norms[2](feed_forward(norms[1](look_at(norms[0](attend(x)), memory))))


def _source_first(x: Tensor, memory: Tensor, attend: Part, look_at: Part, feed_forward: Part, norms: Any) -> Tensor:
    x = norms[0](x + look_at(x, memory))
    x = norms[1](x + attend(x))
    return norms[2](x + feed_forward(x))


def _without_source(x: Tensor, memory: Tensor, attend: Part, look_at: Part, feed_forward: Part, norms: Any) -> Tensor:
    del memory, look_at
    x = norms[1](norms[0](x + attend(x)))
    return norms[2](x + feed_forward(x))


def _from_the_start(x: Tensor, memory: Tensor, attend: Part, look_at: Part, feed_forward: Part, norms: Any) -> Tensor:
    y = norms[0](x + attend(x))
    y = norms[1](x + look_at(y, memory))
    return norms[2](x + feed_forward(y))


_KNOWN_LAYERS = {
    _norm_first: "this is pre-norm; the paper normalizes the sum: norm(x + f(x)).",
    _without_sums: "nothing is added: every sub-layer has a residual connection around it.",
    _source_first: "the order is: the target's own past first, then the source, then the feed-forward network.",
    _without_source: "it never looks at the source: the second sub-layer is missing.",
    _from_the_start: "each residual connection starts where its own sub-layer does, not at the layer's input.",
}


@exercise(
    "architecture-decoder-layer",
    hints=(
        "Three sub-layers: attend(x), look_at(x, memory), feed_forward(x); each is norm(x + f(x)), with its own norm.",
        "What comes out of one is what goes into the next: `x = norms[0](x + attend(x))`, and twice more.",
    ),
    solution=_decoder_layer,
    wrong=(*_KNOWN_LAYERS, lambda *_: None),
)
def _check_decoder_layer(answer: Callable[..., Any]) -> None:
    torch.manual_seed(5)
    layer = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True).double().eval()
    norms = [layer.norm1, layer.norm2, layer.norm3]
    x, memory = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    is_future = torch.ones(3, 3, dtype=torch.bool).triu(1)

    def attend(x: Tensor) -> Tensor:
        return layer.self_attn(x, x, x, attn_mask=is_future)[0]

    def look_at(x: Tensor, memory: Tensor) -> Tensor:
        return layer.multihead_attn(x, memory, memory)[0]

    def feed_forward(x: Tensor) -> Tensor:
        return layer.linear2(layer.linear1(x).relu())

    with torch.no_grad():
        for norm in norms:
            norm.weight += 0.3 * torch.randn_like(norm.weight)
        parts = (x, memory, attend, look_at, feed_forward, norms)
        found, expected = tensor_of(answer(*parts), x.shape), layer(x, memory, tgt_mask=is_future)
        if is_close(found, expected):
            return
        for known, reason in _KNOWN_LAYERS.items():
            if is_close(found, known(*parts)):
                raise Wrong(reason)
    raise Wrong(
        f"it differs from torch.nn.TransformerDecoderLayer by up to {float((found - expected).abs().max()):.2f}."
    )


@exercise(
    "architecture-who-asks",
    hints=(
        "Who has a question? The one who has to name the next token.",
        "Who is asked gives both: keys, to be found by, and values, to be taken.",
    ),
    solution=("decoder", "encoder", "encoder"),
    wrong=(
        ("encoder", "decoder", "decoder"),
        ("decoder", "decoder", "encoder"),
        ("decoder", "encoder", "decoder"),
        ("encoder", "encoder", "encoder"),
        "decoder",
    ),
)
def _check_who_asks(answer: Any) -> None:
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        raise Wrong("three words were expected: where queries, keys and values come from.")
    queries, keys, values = (str(word).strip().lower() for word in answer)
    if queries != "decoder":
        raise Wrong("the output has one vector for each query; the decoder needs one for each position of the target.")
    if (keys, values) != ("encoder", "encoder"):
        raise Wrong("keys and values come in pairs, one of each for every token of the source.")


def _layer_size(d_model: int, d_ff: int) -> int:
    attention = 4 * (d_model * d_model + d_model)
    feed_forward = d_model * d_ff + d_ff + d_ff * d_model + d_model
    return attention + feed_forward + 2 * 2 * d_model


@exercise(
    "architecture-layer-size",
    hints=(
        "Attention has four square matrices, each with a bias. Heads cost nothing: they share the same matrices.",
        "The feed-forward network: d_model x d_ff and back, with biases of d_ff and of d_model.",
        "Two norms, each with a gain and a bias of d_model numbers.",
    ),
    solution=_layer_size,
    wrong=(
        lambda d, f: 4 * d * d + 2 * d * f,
        lambda d, f: 4 * (d * d + d) + 2 * d * f + f + d,
        lambda d, f: 3 * (d * d + d) + 2 * d * f + f + d + 4 * d,
        lambda d, f: 4 * (d * d + d) + 2 * d * f + f + d + 2 * d,
        lambda d, f: _layer_size(d, f) + 4 * (d * d + d) + 2 * d,
        lambda *_: None,
    ),
)
def _check_layer_size(answer: Callable[[int, int], Any]) -> None:
    for d_model, d_ff in ((6, 10), (512, 2048)):
        with torch.device("meta"):
            layer = nn.TransformerEncoderLayer(d_model, 2, d_ff)
        expected, found = sum(p.numel() for p in layer.parameters()), number_of(answer(d_model, d_ff))
        missing = expected - found
        known: dict[float, str] = {
            9 * d_model + d_ff: "that is the matrices alone: biases, and the gains of the norms, are missing.",
            4 * d_model: "4 d_model are missing: the two norms, each with gain and bias, or the biases of attention.",
            2 * d_model: "each of the two norms has a gain and a bias: 4 d_model in all.",
            d_model * d_model + d_model: "attention has four matrices, not three: W^O is missing.",
        }
        if missing in known:
            raise Wrong(known[missing])
        if missing:
            raise Wrong(
                f"for d_model {d_model}, d_ff {d_ff} it gives {found:,.0f}; torch's encoder layer has {expected:,}."
            )


def _additive(may_look: Tensor) -> Tensor:
    return torch.zeros(may_look.shape).masked_fill(~may_look, -math.inf)


@exercise(
    "architecture-additive-mask",
    hints=(
        "What is added to a score that must stay as it is? And to one whose weight must be exactly 0?",
        "`torch.zeros(may_look.shape).masked_fill(~may_look, -math.inf)`.",
    ),
    solution=_additive,
    wrong=(
        lambda may_look: torch.zeros(may_look.shape).masked_fill(may_look, -math.inf),
        lambda may_look: may_look.float(),
        lambda may_look: torch.where(may_look, 0.0, -1.0),
        lambda may_look: torch.where(may_look, 1.0, 0.0) * -math.inf,
        lambda may_look: torch.where(may_look, 0.0, -1e9),
        lambda may_look: may_look,
        lambda _: None,
    ),
)
def _check_additive(answer: Callable[[Tensor], Any]) -> None:
    random = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(1, length, 4, generator=random) for length in (3, 5, 5))
    may_look = torch.tensor([[True, False, True, True, False], [True] * 5, [False, False, True, False, False]])
    mask = tensor_of(answer(may_look), may_look.shape)
    if not mask.is_floating_point():
        raise Wrong(f"it is of {mask.dtype}; numbers to add to the scores were expected.")
    if bool(mask.isnan().any()):
        raise Wrong("it holds NaN: 0 times infinity is one.")
    mask = mask.to(q.dtype)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    weights = (q @ k.mT / 2 + mask).softmax(dim=-1)[0]
    if bool((weights[~may_look].nan_to_num(1.0) != 0).any()):
        share = float(weights[0, ~may_look[0]].nan_to_num(1.0).sum())
        raise Wrong(f"with it, the first query gives {share:.0%} of its attention to keys that are hidden from it.")
    if not bool(mask[~may_look].isneginf().all()):
        raise Wrong(
            "hidden keys need minus infinity: with a large negative number, a row that may look nowhere averages over "
            "what is hidden."
        )
    if not torch.allclose(found, F.scaled_dot_product_attention(q, k, v, attn_mask=may_look), atol=1e-6):
        raise Wrong("hidden keys have weight 0, but scores of the others are changed, too: they need a 0.")


@exercise(
    "architecture-cross-shape",
    hints=(
        "One row of weights for each query, one column for each key.",
        "Queries are the target's positions; keys are the source's, padding included; each head has its own.",
    ),
    solution=(2, 4, 5, 7),
    wrong=((2, 4, 7, 5), (2, 4, 7, 7), (2, 4, 5, 5), (2, 5, 7), (2, 7, 5), 70),
)
def _check_cross_shape(answer: Any) -> None:
    shape = tuple(tensor_of(answer).flatten().tolist())
    if len(shape) != 4:
        raise Wrong("four numbers were expected: batch, heads, queries, keys.")
    if shape[2:] == (7, 5):
        raise Wrong("that is the other way around: the target asks, so its positions are the rows.")
    if shape != (2, 4, 5, 7):
        raise Wrong("2 pairs, 4 heads, a row for each position of the target, a column for each of the padded source.")
