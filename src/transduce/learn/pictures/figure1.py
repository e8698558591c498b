"""Figure 1 of the paper, drawn anew, with the shapes that really come out of every box of a given model."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from transduce.learn.pictures.canvas import DECODER, ENCODER, FAINT, INK, KEY, NEUTRAL, QUERY, VALUE, Picture, canvas

Shapes = Mapping[str, tuple[int, ...]]
_LEFT, _RIGHT, _WIDTH = 2.0, 6.9, 2.5
_ATTENTION, _FEED_FORWARD, _NORM = "#f6e3d0", "#dcebf7", "#f5f3c9"

# What a box says, the module whose output it is, its height in the drawing, its colour.
_ENCODER = (
    ("Input embedding\n· √d_model", "src_embedding", 1.1, "#f3dfe6"),
    ("Multi-head\nself-attention", "encoder.layers.0.self_attention", 4.0, _ATTENTION),
    ("Add & Norm", "encoder.layers.0.residual_1", 5.05, _NORM),
    ("Feed-forward", "encoder.layers.0.feed_forward", 6.5, _FEED_FORWARD),
    ("Add & Norm", "encoder.layers.0.residual_2", 7.5, _NORM),
)
_DECODER = (
    ("Output embedding\n· √d_model", "tgt_embedding", 1.1, "#f3dfe6"),
    ("Masked multi-head\nself-attention", "decoder.layers.0.self_attention", 4.0, _ATTENTION),
    ("Add & Norm", "decoder.layers.0.residual_1", 5.05, _NORM),
    ("Multi-head\ncross-attention", "decoder.layers.0.cross_attention", 6.5, _ATTENTION),
    ("Add & Norm", "decoder.layers.0.residual_2", 7.55, _NORM),
    ("Feed-forward", "decoder.layers.0.feed_forward", 9.0, _FEED_FORWARD),
    ("Add & Norm", "decoder.layers.0.residual_3", 10.0, _NORM),
    ("Linear", "logits", 11.4, "#dcd9ee"),
    ("Softmax", "logits", 12.3, "#d8efdf"),
)
_NAMED_TWICE = {"tgt_embedding": "src_embedding, again"}  # where both sides share one embedding


def boxes() -> tuple[str, ...]:
    """The names of the modules whose shapes stand in the picture."""
    return tuple(name for _, name, _, _ in (*_ENCODER, *_DECODER))


def figure_one(shapes: Shapes, *, num_encoder_layers: int, num_decoder_layers: int) -> Picture:
    """The encoder left, the decoder right, read upwards; `shapes` as `tracing.live_shapes` gives them."""
    figure, (axis,) = canvas(width=8.6, height=9.4)
    axis.set(xlim=(-0.3, 9.6), ylim=(-1.0, 13.4))
    axis.set_axis_off()
    _frame(axis, _LEFT, 3.0, 8.15, f"{num_encoder_layers} ×", ENCODER, side=-1)
    _frame(axis, _RIGHT, 3.0, 10.65, f"{num_decoder_layers} ×", DECODER, side=1)
    for x, column in ((_LEFT, _ENCODER), (_RIGHT, _DECODER)):
        for text, name, y, colour in column:
            _box(axis, x, y, text, _shape_of(shapes, name), colour)
    _column(axis, _LEFT, [row[2] for row in _ENCODER], "Inputs: source ids", _written(shapes["src"]), side=-1)
    _column(axis, _RIGHT, [row[2] for row in _DECODER], "Outputs so far: target ids", _written(shapes["tgt_in"]), 1)
    for x, levels in ((_LEFT, ((3.15, 5.05), (5.6, 7.5))), (_RIGHT, ((3.15, 5.05), (5.6, 7.55), (8.1, 10.0)))):
        for start, end in levels:
            _residual(axis, x, start, end)
    _memory(axis)
    axis.text(_RIGHT, 13.15, "probabilities of the next token", ha="center", va="center", color=INK)
    _arrow(axis, (_RIGHT, 12.62), (_RIGHT, 12.98))
    return figure


def _box(axis: Axes, x: float, y: float, text: str, shape: str, colour: str) -> None:
    height = 0.78 if "\n" in text else 0.5
    style: Any = {
        "boxstyle": "round,pad=0.02,rounding_size=0.09",
        "facecolor": colour,
        "edgecolor": INK,
        "linewidth": 1,
    }
    axis.add_patch(FancyBboxPatch((x - _WIDTH / 2, y - height / 2), _WIDTH, height, zorder=3, **style))
    axis.text(x - _WIDTH / 2 + 0.1, y, text, ha="left", va="center", fontsize=8.6, color=INK, zorder=4)
    axis.text(
        x + _WIDTH / 2 - 0.08, y, shape, ha="right", va="center", fontsize=8.2, color=DECODER, zorder=4, weight="bold"
    )


def _column(axis: Axes, x: float, levels: list[float], inputs: str, shape: str, side: int) -> None:
    """The arrows of one half, its inputs, and the positions that are added."""
    axis.text(x, -0.62, f"{inputs}\n{shape}", ha="center", va="center", fontsize=9, color=INK)
    _arrow(axis, (x, -0.2), (x, 0.7))
    axis.text(x, 2.2, "+", ha="center", va="center", fontsize=15, color=INK, zorder=5)
    axis.plot([x], [2.2], "o", markersize=19, color="white", markeredgecolor=INK, zorder=4)
    axis.annotate(
        "positions",
        (x + side * 0.23, 2.2),
        (x + side * 1.55, 2.2),
        ha="center",
        va="center",
        fontsize=9,
        color=INK,
        arrowprops={"arrowstyle": "->", "color": INK},
    )
    _arrow(axis, (x, 1.5), (x, 1.95))
    _arrow(axis, (x, 2.45), (x, 3.6))
    for lower, upper in pairwise(levels[1:]):
        _arrow(axis, (x, lower + 0.26), (x, upper - 0.26))
    axis.text(x - 0.32, 3.28, "Q", color=QUERY, ha="center", fontsize=9, weight="bold")
    axis.text(x + 0.28, 3.28, "K", color=KEY, ha="center", fontsize=9, weight="bold")
    axis.text(x + 0.58, 3.28, "V", color=VALUE, ha="center", fontsize=9, weight="bold")


def _residual(axis: Axes, x: float, start: float, end: float) -> None:
    """The way past a sub-layer, into Add & Norm."""
    side = 1 if x < 4 else -1
    edge = x + side * (_WIDTH / 2 + 0.22)
    axis.plot([x, edge, edge], [start, start, end], color=NEUTRAL, linewidth=1.4, zorder=1)
    _arrow(axis, (edge, end), (x + side * _WIDTH / 2, end), NEUTRAL)


def _memory(axis: Axes) -> None:
    """From the top of the encoder into every cross-attention: keys and values."""
    way = _LEFT, _LEFT, 4.45, 4.45
    axis.plot(way, (7.76, 8.7, 8.7, 6.5), color=ENCODER, linewidth=1.8, zorder=2)
    _arrow(axis, (4.45, 6.5), (_RIGHT - _WIDTH / 2, 6.5), ENCODER)
    axis.text((_LEFT + 4.45) / 2, 8.9, "memory", ha="center", va="bottom", color=ENCODER, fontsize=9)
    axis.text(5.02, 6.62, "K", color=KEY, ha="center", fontsize=9, weight="bold", zorder=6)
    axis.text(5.32, 6.62, "V", color=VALUE, ha="center", fontsize=9, weight="bold", zorder=6)
    axis.text(_RIGHT - 0.32, 5.75, "Q", color=QUERY, ha="center", fontsize=9, weight="bold")


def _frame(axis: Axes, x: float, bottom: float, top: float, times: str, colour: str, side: int) -> None:
    style: Any = {"boxstyle": "round,pad=0.05,rounding_size=0.2", "facecolor": FAINT, "edgecolor": colour, "alpha": 0.5}
    axis.add_patch(FancyBboxPatch((x - 1.62, bottom), 3.24, top - bottom, zorder=0, **style))
    axis.text(x + side * 1.98, (bottom + top) / 2, times, ha="center", va="center", fontsize=13, color=colour)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "->", "color": colour, "shrinkA": 0, "shrinkB": 0}, zorder=2
    )


def _shape_of(shapes: Shapes, name: str) -> str:
    return _written(shapes[name if name in shapes else _NAMED_TWICE[name]])


def _written(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
