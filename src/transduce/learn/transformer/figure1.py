"""Figure 1 of the paper, drawn anew: with the shapes that come out of every box, and as a map of the chapters."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from transduce.learn.canvas import DECODER, ENCODER, FAINT, INK, KEY, NEUTRAL, QUERY, VALUE, Picture, canvas

Shapes = Mapping[str, tuple[int, ...]]
_LEFT, _RIGHT, _WIDTH = 2.0, 6.9, 2.5
_EMBEDDING, _LINEAR, _SOFTMAX = "#f3dfe6", "#dcd9ee", "#d8efdf"
_ATTENTION, _FEED_FORWARD, _NORM = "#f6e3d0", "#dcebf7", "#f5f3c9"
_PALE, _PALE_INK = "#f7f8f9", "#b9bec6"  # what is not lit


@dataclass(frozen=True)
class _Box:
    label: str
    module: str  # whose output it is
    part: str  # what the map calls it
    y: float
    color: str


_ENCODER = (
    _Box("Input embedding\n· √d_model", "src_embedding", "embedding", 1.1, _EMBEDDING),
    _Box("Multi-head\nself-attention", "encoder.layers.0.self_attention", "self-attention", 4.0, _ATTENTION),
    _Box("Add & Norm", "encoder.layers.0.residual_1", "add & norm", 5.05, _NORM),
    _Box("Feed-forward", "encoder.layers.0.feed_forward", "feed-forward", 6.5, _FEED_FORWARD),
    _Box("Add & Norm", "encoder.layers.0.residual_2", "add & norm", 7.5, _NORM),
)
_DECODER = (
    _Box("Output embedding\n· √d_model", "tgt_embedding", "embedding", 1.1, _EMBEDDING),
    _Box("Masked multi-head\nself-attention", "decoder.layers.0.self_attention", "masked attention", 4.0, _ATTENTION),
    _Box("Add & Norm", "decoder.layers.0.residual_1", "add & norm", 5.05, _NORM),
    _Box("Multi-head\ncross-attention", "decoder.layers.0.cross_attention", "cross-attention", 6.5, _ATTENTION),
    _Box("Add & Norm", "decoder.layers.0.residual_2", "add & norm", 7.55, _NORM),
    _Box("Feed-forward", "decoder.layers.0.feed_forward", "feed-forward", 9.0, _FEED_FORWARD),
    _Box("Add & Norm", "decoder.layers.0.residual_3", "add & norm", 10.0, _NORM),
    _Box("Linear", "logits", "linear", 11.4, _LINEAR),
    _Box("Softmax", "logits", "softmax", 12.3, _SOFTMAX),
)
_NAMED_TWICE = {"tgt_embedding": "src_embedding, again"}  # where both sides share one embedding
PARTS = frozenset(box.part for box in (*_ENCODER, *_DECODER)) | {"positions", "shifted right", "memory"}


def boxes() -> tuple[str, ...]:
    """The names of the modules whose shapes stand in the picture."""
    return tuple(box.module for box in (*_ENCODER, *_DECODER))


def figure_one(shapes: Shapes, *, num_encoder_layers: int, num_decoder_layers: int) -> Picture:
    """The encoder left, the decoder right, read upwards; `shapes` as `tracing.live_shapes` gives them."""
    figure, (axis,) = canvas(width=8.6, height=9.4)
    _draw(axis, PARTS, shapes, (f"{num_encoder_layers} ×", f"{num_decoder_layers} ×"), scale=1.0)
    return figure


def figure_one_map(*lit: str) -> Picture:
    """The same, small: the parts that a chapter is about have their color, all others are faint.

    Parts are those of `PARTS`; "all" lights everything. Raises ValueError if there is no such part.
    """
    parts = PARTS if "all" in lit else frozenset(lit)
    if unknown := parts - PARTS:
        raise ValueError(f"Figure 1 has no {', '.join(sorted(unknown))}: there are {', '.join(sorted(PARTS))}.")
    figure, (axis,) = canvas(width=4.6, height=5.0)
    _draw(axis, parts, None, ("N ×", "N ×"), scale=0.72)
    where = "Figure 1 of the paper" if parts == PARTS else f"This chapter: {', '.join(lit)}"
    axis.set_title(textwrap.fill(where, 68), loc="left", fontsize=8.5, fontweight="normal", color=INK)
    return figure


def _draw(axis: Axes, lit: frozenset[str], shapes: Shapes | None, times: tuple[str, str], scale: float) -> None:
    axis.set(xlim=(-0.5, 9.8), ylim=(-1.05, 13.4))
    axis.set_axis_off()
    _frame(axis, _LEFT, 3.0, 8.15, times[0], ENCODER, side=-1)
    _frame(axis, _RIGHT, 3.0, 10.65, times[1], DECODER, side=1)
    for x, column in ((_LEFT, _ENCODER), (_RIGHT, _DECODER)):
        for box in column:
            _box(axis, x, box, _shape_of(shapes, box.module) if shapes else "", box.part in lit, scale)
    inputs = ("Inputs", "Outputs so far")
    if shapes:
        inputs = (
            f"Inputs: source ids\n{_written(shapes['src'])}",
            f"Outputs so far: ids\n{_written(shapes['tgt_in'])}",
        )
    _column(axis, _LEFT, [box.y for box in _ENCODER], inputs[0], "positions" in lit, scale)
    _column(axis, _RIGHT, [box.y for box in _DECODER], inputs[1], "positions" in lit, scale)
    axis.text(
        _RIGHT + 0.2, 0.22, "shifted right", ha="left", va="center", fontsize=9 * scale, style="italic",
        color=DECODER if "shifted right" in lit else _PALE_INK,
        weight="bold" if "shifted right" in lit and lit != PARTS else "normal",
    )  # fmt: skip
    for x, levels in ((_LEFT, ((3.1, 5.05), (5.6, 7.5))), (_RIGHT, ((3.1, 5.05), (5.6, 7.55), (8.1, 10.0)))):
        for start, end in levels:
            _residual(axis, x, start, end, INK if "add & norm" in lit and lit != PARTS else NEUTRAL)
    _memory(axis, scale)
    axis.text(
        _RIGHT, 13.15, "probabilities of the next token", ha="center", va="center", color=INK, fontsize=10 * scale
    )
    _arrow(axis, (_RIGHT, 12.6), (_RIGHT, 12.98))


def _box(axis: Axes, x: float, box: _Box, shape: str, is_lit: bool, scale: float) -> None:
    height = 0.78 if "\n" in box.label else 0.5
    style: Any = {
        "boxstyle": "round,pad=0.02,rounding_size=0.09",
        "facecolor": box.color if is_lit else _PALE,
        "edgecolor": INK if is_lit else _PALE_INK,
        "linewidth": 1.2 * scale,
    }
    axis.add_patch(FancyBboxPatch((x - _WIDTH / 2, box.y - height / 2), _WIDTH, height, zorder=3, **style))
    where, align = (x - _WIDTH / 2 + 0.1, "left") if shape else (x, "center")
    color = INK if is_lit else _PALE_INK
    axis.text(where, box.y, box.label, ha=align, va="center", fontsize=8.6 * scale, color=color, zorder=4)
    axis.text(
        x + _WIDTH / 2 - 0.08, box.y, shape, ha="right", va="center", fontsize=8.2, color=DECODER, zorder=4,
        weight="bold",
    )  # fmt: skip


def _column(axis: Axes, x: float, levels: list[float], inputs: str, is_lit: bool, scale: float) -> None:
    """The arrows of one half, its inputs, and the positions that are added."""
    side = -1 if x == _LEFT else 1
    color = INK if is_lit else _PALE_INK
    axis.text(x, -0.6, inputs, ha="center", va="center", fontsize=9 * scale, color=INK)
    _arrow(axis, (x, -0.2), (x, 0.7))
    axis.text(x, 2.2, "+", ha="center", va="center", fontsize=15 * scale, color=color, zorder=5)
    axis.plot([x], [2.2], "o", markersize=19 * scale, color="white", markeredgecolor=color, zorder=4)
    axis.annotate(
        "positions", (x + side * 0.23, 2.2), (x + side * 1.6, 2.2), ha="center", va="center", fontsize=9 * scale,
        color=color, arrowprops={"arrowstyle": "->", "color": color},
    )  # fmt: skip
    _arrow(axis, (x, 1.5), (x, 1.95))
    axis.plot([x, x], [2.45, 3.25], color=INK, linewidth=1, zorder=2)
    axis.plot([x - 0.6, x + 0.6], [3.25, 3.25], color=INK, linewidth=1, zorder=2)
    for name, shift, own in (("Q", -0.6, QUERY), ("K", 0.0, KEY), ("V", 0.6, VALUE)):  # all three of the same tokens
        _arrow(axis, (x + shift, 3.25), (x + shift, 3.61), own)
        axis.text(x + shift + 0.2, 3.42, name, color=own, ha="center", va="center", fontsize=9 * scale, weight="bold")
    for lower, upper in pairwise(levels[1:]):
        _arrow(axis, (x, lower + 0.26), (x, upper - (0.4 if upper == 6.5 and x == _RIGHT else 0.26)))


def _residual(axis: Axes, x: float, start: float, end: float, color: str) -> None:
    """The way past a sub-layer, into Add & Norm."""
    side = 1 if x < 4 else -1
    edge = x + side * (_WIDTH / 2 + 0.22)
    axis.plot([x, edge, edge], [start, start, end], color=color, linewidth=1.4, zorder=1)
    _arrow(axis, (edge, end), (x + side * _WIDTH / 2, end), color)


def _memory(axis: Axes, scale: float) -> None:
    """From the top of the encoder into every cross-attention: keys and values."""
    axis.plot((_LEFT, _LEFT, 4.45, 4.45), (7.76, 8.7, 8.7, 6.33), color=ENCODER, linewidth=1.6, zorder=2)
    axis.text((_LEFT + 4.45) / 2, 8.9, "memory", ha="center", va="bottom", color=ENCODER, fontsize=9 * scale)
    for name, y, own in (("K", 6.67, KEY), ("V", 6.33, VALUE)):
        _arrow(axis, (4.45, y), (_RIGHT - _WIDTH / 2, y), own)
        axis.text(4.85, y + 0.02, name, color=own, ha="center", va="center", fontsize=9 * scale, weight="bold",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, zorder=6)  # fmt: skip
    axis.text(_RIGHT + 0.2, 5.87, "Q", color=QUERY, ha="center", va="center", fontsize=9 * scale, weight="bold")


def _frame(axis: Axes, x: float, bottom: float, top: float, times: str, color: str, side: int) -> None:
    style: Any = {"boxstyle": "round,pad=0.05,rounding_size=0.2", "facecolor": FAINT, "edgecolor": color, "alpha": 0.5}
    axis.add_patch(FancyBboxPatch((x - 1.62, bottom), 3.24, top - bottom, zorder=0, **style))
    axis.text(x + side * 2.15, (bottom + top) / 2, times, ha="center", va="center", fontsize=11, color=color)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "shrinkA": 0, "shrinkB": 0}, zorder=2)


def _shape_of(shapes: Shapes, name: str) -> str:
    return _written(shapes[name if name in shapes else _NAMED_TWICE[name]])


def _written(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
