"""Pictures of the flagship's first chapters: Figure 1 with its shapes, attention as matrices, heads, parts compared."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from transduce.learn.experiments.attention import Saturation
from transduce.learn.pictures.canvas import (
    DECODER,
    ENCODER,
    FAINT,
    INK,
    KEY,
    NEUTRAL,
    QUERY,
    SERIES,
    SIGNED,
    VALUE,
    WEIGHTS,
    Picture,
    canvas,
    name_ticks,
)

_NORM, _FEED_FORWARD, _ATTENTION, _EMBEDDING = "#f4f1d0", "#cfe3f4", "#f6dcc4", "#f6d3d8"


def figure_1(shapes: Mapping[str, tuple[int, ...]]) -> Picture:
    """Figure 1 of the paper, with the shape of what leaves each box; `shapes` are those of `tracing.live_shapes`."""
    figure, (axes,) = canvas(width=9.0, height=8.2)
    axes.set(xlim=(0, 10.2), ylim=(0, 13))
    axes.set_axis_off()
    encoder, decoder = "encoder.layers.0.", "decoder.layers.0."
    left = [
        (0.7, "source ids", "src", "white"),
        (2.0, "Embedding · √d_model", "src_embedding", _EMBEDDING),
        (3.0, "+ positions", "src_positions", "white"),
        (4.6, "Multi-Head\nself-attention", f"{encoder}self_attention", _ATTENTION),
        (5.7, "Add & Norm", f"{encoder}residual_1", _NORM),
        (7.0, "Feed Forward", f"{encoder}feed_forward", _FEED_FORWARD),
        (8.1, "Add & Norm", f"{encoder}residual_2", _NORM),
    ]
    right = [
        (0.7, "target ids, shifted right", "tgt_in", "white"),
        (2.0, "Embedding · √d_model", "tgt_embedding", _EMBEDDING),
        (3.0, "+ positions", "tgt_positions", "white"),
        (4.6, "Masked Multi-Head\nself-attention", f"{decoder}self_attention", _ATTENTION),
        (5.7, "Add & Norm", f"{decoder}residual_1", _NORM),
        (7.0, "Multi-Head\ncross-attention", f"{decoder}cross_attention", _ATTENTION),
        (8.1, "Add & Norm", f"{decoder}residual_2", _NORM),
        (9.4, "Feed Forward", f"{decoder}feed_forward", _FEED_FORWARD),
        (10.5, "Add & Norm", f"{decoder}residual_3", _NORM),
        (12.2, "output matrix: logits", "logits", "#d9d3ea"),
    ]
    for x, boxes, colour in ((2.2, left, ENCODER), (6.6, right, DECODER)):
        for (y, label, name, fill), below in zip(boxes, [None, *boxes], strict=False):
            _box(axes, x, y, label, fill, colour)
            axes.text(x + 1.6, y, _shape_of(shapes, name), va="center", fontsize=8.5, color=colour, family="monospace")
            if below is not None:
                _arrow(axes, (x, below[0] + 0.36), (x, y - 0.36))
    _stack(axes, 2.2, 3.75, 8.7, "encoder layer", ENCODER)
    _stack(axes, 6.6, 3.75, 11.1, "decoder layer", DECODER, side=1)
    axes.plot([2.2, 2.2, 4.65, 4.65], [8.46, 9.3, 9.3, 7.0], color=ENCODER, linewidth=1.4)
    _arrow(axes, (4.65, 7.0), (5.33, 7.0), colour=ENCODER)
    axes.text(2.2, 9.42, "memory: keys and values", ha="left", va="bottom", fontsize=9, color=ENCODER)
    return figure


def linked_matrices(
    q: Tensor, k: Tensor, weights: Tensor, v: Tensor, out: Tensor, *, queries: Sequence[str], keys: Sequence[str]
) -> Picture:
    """One attention as five matrices: each row of the weights says how the rows of V are mixed."""
    figure, axes = canvas(1, 5, width=10.5, height=2.9)
    parts = (
        (q, "Q", QUERY, queries),
        (k, "K", KEY, keys),
        (weights, "softmax(QKᵀ/√d)", INK, queries),
        (v, "V", VALUE, keys),
        (out, "weights · V", VALUE, queries),
    )
    for axis, (matrix, title, colour, rows) in zip(axes, parts, strict=True):
        values = matrix.detach().numpy()
        is_weights = title.startswith("softmax")
        bound = 1.0 if is_weights else float(np.abs(values).max())
        axis.imshow(
            values,
            cmap=WEIGHTS if is_weights else SIGNED,
            vmin=0 if is_weights else -bound,
            vmax=bound,
            interpolation="nearest",
        )
        columns = keys if is_weights else [""] * values.shape[1]
        name_ticks(axis, queries=rows, keys=columns)
        axis.set_title(title, color=colour)
        axis.tick_params(length=0)
        if is_weights:
            for row, of_row in enumerate(values):
                for column, value in enumerate(of_row):
                    axis.text(
                        column, row, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=7,
                        color="white" if value > 0.6 else INK,
                    )  # fmt: skip
        else:
            axis.set_xlabel(f"{values.shape[1]} channels")
    return figure


def saturation(found: Saturation) -> Picture:
    """The largest of 20 weights, and what of a gradient gets through, by d_k."""
    figure, (left, right) = canvas(1, 2, height=2.9)
    styles = (("without", DECODER, "s-"), ("with the root", ENCODER, "o-"))
    for axis, values, title in (
        (left, found.largest, "largest of 20 weights"),
        (right, found.jacobian, "length of d weights / d scores"),
    ):
        for name, colour, style in styles:
            axis.plot(
                found.widths,
                values[name],
                style,
                color=colour,
                label=f"{name}: {'QKᵀ' if name == 'without' else 'QKᵀ/√d_k'}",
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(found.widths, [str(width) for width in found.widths])
        axis.set(xlabel="d_k", ylim=(0, None), title=title)
    left.legend()
    return figure


def head_maps(maps: Mapping[str, Tensor], *, queries: Sequence[str], keys: Sequence[str]) -> Picture:
    """Weights (heads, queries, keys) of some attentions, one row of pictures for each."""
    num_heads = max(len(heads) for heads in maps.values())
    size = 10.0 / num_heads
    figure, axes = canvas(len(maps), num_heads, width=10.0, height=len(maps) * size + 0.4)
    for row, (name, heads) in enumerate(maps.items()):
        for number in range(num_heads):
            axis = axes[row * num_heads + number]
            if number >= len(heads):
                axis.set_axis_off()
                continue
            axis.imshow(heads[number].numpy(), cmap=WEIGHTS, vmin=0, vmax=1, interpolation="nearest")
            name_ticks(axis, queries=queries if number == 0 else [""] * len(queries), keys=keys)
            axis.set_title(f"{name}, head {number + 1}", fontsize=9)
            axis.tick_params(length=0, labelsize=8)
    return figure


def shares(found: Mapping[str, float], *, xlabel: str, chance: float | None = None) -> Picture:
    """A bar for each network, with its number; a line where guessing would be."""
    figure, (axes,) = canvas(width=7.5, height=0.7 + 0.36 * len(found))
    bars = axes.barh(list(found), list(found.values()), height=0.6, color=SERIES[: len(found)])
    axes.bar_label(bars, [f"{value:.0%}" for value in found.values()], padding=4)
    if chance is not None:
        axes.axvline(chance, color=NEUTRAL, linestyle=":", label="guessing")
        axes.legend(loc="lower right")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.12), xlabel=xlabel)
    axes.tick_params(axis="y", length=0)
    return figure


def curves(losses: Mapping[str, Sequence[float]], *, title: str) -> Picture:
    """Training losses, smoothed by whoever calls."""
    figure, (axes,) = canvas(width=7.5, height=2.8)
    for (name, values), colour in zip(losses.items(), SERIES, strict=False):
        axes.plot(values, color=colour, label=name)
    axes.set(xlabel="step", ylabel="nats a token", ylim=(0, None), title=title)
    axes.legend()
    return figure


def positional_table(table: Tensor) -> Picture:
    """The sinusoids, and how alike the rows of two positions are."""
    figure, (left, right) = canvas(1, 2, height=3.2)
    image = left.imshow(table.numpy(), cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    left.set(xlabel="channel", ylabel="position", title="PE")
    figure.colorbar(image, ax=left, shrink=0.8)
    rows = table / table.norm(dim=1, keepdim=True)
    image = right.imshow((rows @ rows.T).numpy(), cmap=WEIGHTS, vmin=0, vmax=1, interpolation="nearest")
    right.set(xlabel="position", ylabel="position", title="cosine of two rows: near places are alike")
    figure.colorbar(image, ax=right, shrink=0.8)
    return figure


def _box(axes: Axes, x: float, y: float, label: str, fill: str, edge: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x - 1.2, y - 0.32), 2.4, 0.64, boxstyle="round,pad=0.04", facecolor=fill, edgecolor=edge)
    )
    axes.text(x, y, label, ha="center", va="center", fontsize=8.5, color=INK, linespacing=0.95)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.1))


def _stack(axes: Axes, x: float, bottom: float, top: float, label: str, colour: str, side: int = -1) -> None:
    box = FancyBboxPatch(
        (x - 1.4, bottom), 2.8, top - bottom, boxstyle="round,pad=0.06", facecolor=FAINT, edgecolor=colour, zorder=0,
        alpha=0.6,
    )  # fmt: skip
    axes.add_patch(box)
    place = x - 1.75 if side < 0 else x + 3.1
    axes.text(place, (bottom + top) / 2, f"{label}, N times", rotation=90, ha="center", va="center", color=colour)


def _shape_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    found = shapes.get(name)
    return "" if found is None else f"({', '.join(map(str, found))})"
