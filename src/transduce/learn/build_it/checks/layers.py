"""Pieces 5 to 8: layer normalization, the feed-forward network, and the two layers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.learn.build_it import pieces
from transduce.learn.build_it.checks.comparing import Slips, Unwritten, built, parts_of, random, same
from transduce.learn.exercising import Wrong, exercise, tensor_of

# 5 · layer normalization


def _normed(x: Tensor, gain: Tensor, bias: Tensor, dim: Any = -1, ddof: int = 0, inside: bool = True) -> Tensor:
    centered = x - x.mean(dim, keepdim=True)
    variance = x.var(dim, keepdim=True, correction=ddof)
    return gain * centered / ((variance + 1e-5).sqrt() if inside else variance.sqrt() + 1e-5) + bias


class _NormSlip(pieces.LayerNorm):
    how: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def forward(self, x: Tensor) -> Any:
        return _normed(x, self.gain, self.bias, **self.how)


class _Bessel(_NormSlip):
    how = {"ddof": 1}  # noqa: RUF012


class _OverTokens(_NormSlip):
    how = {"dim": 1}  # noqa: RUF012


class _OverAll(_NormSlip):
    how = {"dim": (1, 2)}  # noqa: RUF012


class _OutsideRoot(_NormSlip):
    how = {"inside": False}  # noqa: RUF012


class _WithoutGain(pieces.LayerNorm):
    def forward(self, x: Tensor) -> Any:
        return _normed(x, torch.ones_like(self.gain), torch.zeros_like(self.bias))


class _WithoutMean(pieces.LayerNorm):
    def forward(self, x: Tensor) -> Any:
        return self.gain * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() + self.bias


@exercise(
    "build-layer-norm",
    hints=(
        "Mean and variance of the channels of *one* token: `dim=-1, keepdim=True`.",
        "The variance is the mean of squares of `x - mean`, divided by d, not by d - 1; add 1e-5 inside the root.",
        "`self.gain * centered / (variance + 1e-5).sqrt() + self.bias`",
    ),
    solution=pieces.LayerNorm,
    wrong=(_Bessel, _OverTokens, _OverAll, _OutsideRoot, _WithoutGain, _WithoutMean, Unwritten),
)
def _check_layer_norm(answer: Any) -> None:
    module = built(answer, 6)
    gain, bias = parts_of(module, "gain", "bias")
    fresh = answer(6)
    if not (bool((fresh.gain == 1).all()) and bool((fresh.bias == 0).all())):
        raise Wrong("at the start the gain is 1 and the bias 0, so that the norm alone acts.")
    x = random(2, 5, 6) * 3 + 1
    x[0, 0] *= 1e-3  # a token whose variance is as small as epsilon
    slips: Slips = {
        "the variance is divided by d - 1 (torch's `var` and `std` do so unless told otherwise).": lambda: _normed(
            x, gain, bias, ddof=1
        ),
        "it normalizes over the tokens: mean and variance are those of one token's channels, dim=-1.": lambda: _normed(
            x, gain, bias, dim=1
        ),
        "mean and variance are taken over all tokens; each token has its own.": lambda: _normed(
            x, gain, bias, dim=(1, 2)
        ),
        "epsilon stands outside the root; it belongs inside: √(variance + ε).": lambda: _normed(
            x, gain, bias, inside=False
        ),
        "gain and bias are not used.": lambda: _normed(x, torch.ones(6), torch.zeros(6)),
        "the mean is not subtracted (that is RMSNorm).": lambda: (
            gain * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() + bias
        ),
    }
    with torch.no_grad():
        same(module(x), F.layer_norm(x, (6,), gain, bias, eps=1e-5), slips, "torch's layer_norm.")


# 6 · feed-forward network


class _Gelu(pieces.FeedForward):
    def forward(self, x: Tensor) -> Any:
        return self.down(F.gelu(self.up(x)))


class _Linear(pieces.FeedForward):
    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x))


class _ReluTwice(pieces.FeedForward):
    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x).relu()).relu()


class _Residual(pieces.FeedForward):
    def forward(self, x: Tensor) -> Any:
        return x + self.down(self.up(x).relu())


class _ReluFirst(pieces.FeedForward):
    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x.relu()))


@exercise(
    "build-feed-forward",
    hints=(
        "Two nn.Linear: `up` from d_model to d_ff, `down` back.",
        "Between the two stands max(0, x), `relu()`; nothing stands behind the second one.",
        "`self.down(self.up(x).relu())`",
    ),
    solution=pieces.FeedForward,
    wrong=(_Gelu, _Linear, _ReluTwice, _Residual, _ReluFirst, Unwritten),
)
def _check_feed_forward(answer: Any) -> None:
    module = built(answer, 6, 10)
    up, down = parts_of(module, "up", "down")
    if tuple(up.weight.shape) != (10, 6):
        raise Wrong(f"`up` has a weight of {tuple(up.weight.shape)}: it goes from d_model = 6 to d_ff = 10.")
    x = random(2, 5, 6)
    with torch.no_grad():
        wide = F.conv1d(x.mT, up.weight[:, :, None], up.bias)
        expected = F.conv1d(wide.relu(), down.weight[:, :, None], down.bias).mT
        slips: Slips = {
            "it uses GELU; the paper has max(0, x), ReLU.": lambda: down(F.gelu(up(x))),
            "there is nothing between the two: two matrices in a row are worth one.": lambda: down(up(x)),
            "the result goes through ReLU as well: it could never be negative.": lambda: expected.relu(),
            "x is added already: Add & Norm does that, in the layer.": lambda: x + expected,
            "ReLU comes before `up`; it stands between `up` and `down`.": lambda: down(up(x.relu())),
        }
        same(module(x), expected, slips, "two convolutions of width 1 with the same weights.")


# 7 · encoder layer

_LAYER = (8, 2, 12, 0.0)  # d_model, num_heads, d_ff, dropout


class _PreNorm(pieces.EncoderLayer):
    def forward(self, x: Tensor, may_look: Tensor) -> Any:
        y = self.norm_1(x)
        x = x + self.attention(y, y, may_look)
        return x + self.feed_forward(self.norm_2(x))


class _NoResidual(pieces.EncoderLayer):
    def forward(self, x: Tensor, may_look: Tensor) -> Any:
        x = self.norm_1(self.attention(x, x, may_look))
        return self.norm_2(self.feed_forward(x))


class _FromTheStart(pieces.EncoderLayer):
    def forward(self, x: Tensor, may_look: Tensor) -> Any:
        y = self.norm_1(x + self.attention(x, x, may_look))
        return self.norm_2(x + self.feed_forward(y))


class _OneNorm(pieces.EncoderLayer):
    def forward(self, x: Tensor, may_look: Tensor) -> Any:
        x = self.norm_1(x + self.attention(x, x, may_look))
        return self.norm_1(x + self.feed_forward(x))


class _WithoutMask(pieces.EncoderLayer):
    def forward(self, x: Tensor, may_look: Tensor) -> Any:
        return super().forward(x, torch.ones_like(may_look))


class _SideBySide(pieces.EncoderLayer):
    def forward(self, x: Tensor, may_look: Tensor) -> Any:
        return self.norm_2(self.norm_1(x + self.attention(x, x, may_look)) + self.feed_forward(x))


def _their_attention(theirs: Any, ours: Any) -> None:
    query, key, value, output = parts_of(ours, "query", "key", "value", "output")
    theirs.in_proj_weight.copy_(torch.cat([query.weight, key.weight, value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([query.bias, key.bias, value.bias]))
    theirs.out_proj.load_state_dict(output.state_dict())


def _their_feed_forward(theirs: Any, ours: Any) -> None:
    up, down = parts_of(ours, "up", "down")
    theirs.linear1.load_state_dict(up.state_dict())
    theirs.linear2.load_state_dict(down.state_dict())


def _their_norm(theirs: nn.LayerNorm, ours: Any) -> None:
    theirs.weight.copy_(ours.gain)
    theirs.bias.copy_(ours.bias)


_MASKED = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None, :]


@exercise(
    "build-encoder-layer",
    hints=(
        "Two sub-layers, attention and the feed-forward network; around each stands LayerNorm(x + sub-layer(x)).",
        "The second sub-layer starts from what the first one gave: write `x = ...` again and again.",
        "`x = self.norm_1(x + self.dropout(self.attention(x, x, may_look)))`, then the same for `feed_forward`.",
    ),
    solution=pieces.EncoderLayer,
    wrong=(_PreNorm, _NoResidual, _FromTheStart, _OneNorm, _WithoutMask, _SideBySide, Unwritten),
)
def _check_encoder_layer(answer: Any) -> None:
    module = built(answer, *_LAYER)
    attention, feed_forward, norm_1, norm_2 = parts_of(module, "attention", "feed_forward", "norm_1", "norm_2")
    theirs = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True).double().eval()
    x = random(2, 5, 8)
    with torch.no_grad():
        _their_attention(theirs.self_attn, attention)
        _their_feed_forward(theirs, feed_forward)
        _their_norm(theirs.norm1, norm_1)
        _their_norm(theirs.norm2, norm_2)
        expected = theirs(x, src_key_padding_mask=~_MASKED[:, 0, 0])
        is_real = _MASKED[:, 0, 0, :, None]

        def of(slip: Any) -> Callable[[], Tensor]:
            return lambda: slip.forward(module, x, _MASKED) * is_real

        slips: Slips = {
            "this is pre-norm, x + f(norm(x)); the paper normalizes the sum: norm(x + f(x)).": of(_PreNorm),
            "nothing is added: around each sub-layer stands a residual connection, x + f(x).": of(_NoResidual),
            "the second residual connection starts at the layer's input, not at the first norm's output.": of(
                _FromTheStart
            ),
            "both sub-layers use the same norm; each has its own.": of(_OneNorm),
            "the feed-forward network gets the layer's input; it gets what the first sub-layer gave.": of(_SideBySide),
            "`may_look` is not handed on to attention.": lambda: (
                pieces.EncoderLayer.forward(module, x, torch.ones_like(_MASKED)) * is_real
            ),
        }
        # What padding gets is nobody's business, so it is not compared.
        found = tensor_of(module(x, _MASKED), x.shape)
        same(found * is_real, expected * is_real, slips, "torch.nn.TransformerEncoderLayer with the same weights.")


# 8 · decoder layer


class _SourceFirst(pieces.DecoderLayer):
    def forward(self, x: Tensor, memory: Tensor, back: Tensor, source: Tensor) -> Any:
        x = self.norm_1(x + self.cross_attention(x, memory, source))
        x = self.norm_2(x + self.self_attention(x, x, back))
        return self.norm_3(x + self.feed_forward(x))


class _WithoutSource(pieces.DecoderLayer):
    def forward(self, x: Tensor, _memory: Tensor, back: Tensor, _source: Tensor) -> Any:
        x = self.norm_1(x + self.self_attention(x, x, back))
        return self.norm_3(x + self.feed_forward(x))


class _SeesTheFuture(pieces.DecoderLayer):
    def forward(self, x: Tensor, memory: Tensor, back: Tensor, source: Tensor) -> Any:
        return super().forward(x, memory, torch.ones_like(back), source)


class _SeesPadding(pieces.DecoderLayer):
    def forward(self, x: Tensor, memory: Tensor, back: Tensor, source: Tensor) -> Any:
        return super().forward(x, memory, back, torch.ones_like(source))


class _DecoderPreNorm(pieces.DecoderLayer):
    def forward(self, x: Tensor, memory: Tensor, back: Tensor, source: Tensor) -> Any:
        y = self.norm_1(x)
        x = x + self.self_attention(y, y, back)
        x = x + self.cross_attention(self.norm_2(x), memory, source)
        return x + self.feed_forward(self.norm_3(x))


class _DecoderNoResidual(pieces.DecoderLayer):
    def forward(self, x: Tensor, memory: Tensor, back: Tensor, source: Tensor) -> Any:
        x = self.norm_1(self.self_attention(x, x, back))
        x = self.norm_2(self.cross_attention(x, memory, source))
        return self.norm_3(self.feed_forward(x))


@exercise(
    "build-decoder-layer",
    hints=(
        "Three sub-layers: self-attention on what is written so far, attention to the source, feed-forward.",
        "`self.cross_attention(x, memory, may_look_at_source)`: x asks, the encoder's output is looked at.",
        "Three lines of the form `x = self.norm_1(x + self.dropout(...))`, each with its own norm.",
    ),
    solution=pieces.DecoderLayer,
    wrong=(_SourceFirst, _WithoutSource, _SeesTheFuture, _SeesPadding, _DecoderPreNorm, _DecoderNoResidual, Unwritten),
)
def _check_decoder_layer(answer: Any) -> None:
    module = built(answer, *_LAYER)
    names = ("self_attention", "cross_attention", "feed_forward", "norm_1", "norm_2", "norm_3")
    own, cross, feed_forward, *norms = parts_of(module, *names)
    theirs = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True).double().eval()
    x, memory = random(2, 4, 8, seed=6), random(2, 5, 8, seed=7)
    back = torch.ones(4, 4, dtype=torch.bool).tril()
    with torch.no_grad():
        _their_attention(theirs.self_attn, own)
        _their_attention(theirs.multihead_attn, cross)
        _their_feed_forward(theirs, feed_forward)
        for their_norm, norm in zip((theirs.norm1, theirs.norm2, theirs.norm3), norms, strict=True):
            _their_norm(their_norm, norm)
        expected = theirs(x, memory, tgt_mask=~back, memory_key_padding_mask=~_MASKED[:, 0, 0])

        def of(slip: Any, back: Tensor = back, source: Tensor = _MASKED) -> Callable[[], Tensor]:
            return lambda: slip.forward(module, x, memory, back, source)

        whole = pieces.DecoderLayer
        slips: Slips = {
            "it looks at the source first; its own past comes first.": of(_SourceFirst),
            "it never looks at the source: cross-attention is missing.": of(_WithoutSource),
            "`may_look_back` is not used: a token sees those that come after it.": of(whole, torch.ones_like(back)),
            "`may_look_at_source` is not used: it looks at padding.": of(whole, back, torch.ones_like(_MASKED)),
            "this is pre-norm; the paper normalizes the sum: norm(x + f(x)).": of(_DecoderPreNorm),
            "nothing is added: around each sub-layer stands a residual connection, x + f(x).": of(_DecoderNoResidual),
        }
        found = module(x, memory, back, _MASKED)
        same(found, expected, slips, "torch.nn.TransformerDecoderLayer with the same weights.")
