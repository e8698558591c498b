"""Pictures of positions: the table of section 3.5, what it means, and how far it reaches."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from transduce.learn.canvas import FAINT, INK, MARKERS, NEUTRAL, SERIES, SIGNED, Picture, canvas
from transduce.learn.positions.experiments import Ablation, LengthCurves

_SCORE = "share of outputs right"
_PRODUCT = "dot product, divided by d / 2"


def table_and_lines(table: Float[Tensor, "num_positions channels"], channels: Sequence[int]) -> Picture:
    """The table as a map, and some of its columns as curves."""
    figure, (left, right) = canvas(1, 2, width=8.0, height=3.3)
    _table_map(figure, left, table, "The table: one row per position")
    for channel, color in zip(channels, SERIES, strict=False):
        left.axvline(channel, color=INK, linewidth=0.8, linestyle=":")
        right.plot(table[:, channel].numpy(), color=color, label=f"channel {channel}", linewidth=1.6)
    right.set(title="Some of its columns", xlabel="position", ylabel="value", ylim=(-1.15, 1.15))
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=9)
    return figure


def similarity(table: Float[Tensor, "num_positions channels"], rows: Sequence[int]) -> Picture:
    """Products of all pairs of rows, and some of them by distance: the curves lie on one another."""
    products = _products(table).numpy()
    figure, (left, right) = canvas(1, 2, height=3.4)
    _products_map(figure, left, table, "Similarity of all pairs of rows")
    for number, (row, color) in enumerate(zip(rows, SERIES, strict=False)):
        distances = np.arange(len(table)) - row
        every = slice(number, None, len(rows))  # markers of all rows stay apart
        right.plot(distances, products[row], color=color, linewidth=1, alpha=0.6)
        right.plot(distances[every], products[row][every], MARKERS[number], color=color, label=f"from {row}", ms=4)
    right.set(title="Only the distance matters", xlabel="distance in positions", ylabel=_PRODUCT)
    right.legend(fontsize=9)
    return figure


def table_and_similarity(table: Float[Tensor, "num_positions channels"]) -> Picture:
    """The table as a map, and the products of all pairs of its rows."""
    figure, (left, right) = canvas(1, 2, width=9.0, height=3.3)
    _table_map(figure, left, table, "one row for each position")
    _products_map(figure, right, table, "how alike two rows are")
    return figure


def rotations(table: Float[Tensor, "num_positions channels"], pairs: Sequence[int], offset: int) -> Picture:
    """Pairs of channels as points on a circle: a step of `offset` positions is the same rotation from any start."""
    figure, axes = canvas(1, len(pairs), height=3.4)
    for axis, pair in zip(axes, pairs, strict=True):
        _turns(axis, table, pair, offset)
    axes[0].set_ylabel("cosine channel")
    return figure


def ablation_bars(found: Ablation) -> Picture:
    """The loss in training, and the share of reversals that are right, by which half has positions."""
    figure, (left, right) = canvas(1, 2, height=3.2)
    for number, (part, training) in enumerate(found.trainings.items()):
        left.plot(training.smoothed(), color=SERIES[number], label=part)
    left.set(title="Learning to reverse", xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    left.legend(title="positions in", fontsize=9)
    scores = list(found.scores.values())
    right.barh(range(len(scores)), scores, color=SERIES[: len(scores)])
    for row, score in enumerate(scores):
        right.text(score + 0.02, row, f"{score:.0%}", va="center", color=INK)
    right.axvline(found.blind_best, color=INK, linestyle="--", linewidth=1)
    right.text(found.blind_best + 0.02, -0.75, "guessing the order", va="center", fontsize=9)
    right.set_yticks(range(len(scores)), list(found.scores))
    right.set(title="Accuracy", xlabel=_SCORE, xlim=(0, 1.15), ylim=(len(scores) - 0.4, -1.1))
    return figure


def length_curves(*found: LengthCurves) -> Picture:
    """The share of outputs that are right at each length, by kind of positions; the lengths of training are shaded."""
    figure, axes = canvas(1, len(found), width=4.6 * len(found), height=3.4)
    for axis, curves in zip(axes, found, strict=True):
        axis.axvspan(curves.lengths[0] - 0.5, curves.longest_trained + 0.5, color=FAINT, zorder=0)
        axis.text(curves.lengths[0], 1.07, "lengths of training", fontsize=9, color=NEUTRAL)
        for number, (kind, scores) in enumerate(curves.scores.items()):
            axis.plot(curves.lengths, scores, MARKERS[number] + "-", color=SERIES[number], label=kind, ms=5, alpha=0.9)
        axis.set(title=curves.task, xlabel="symbols in the source", ylabel=_SCORE, ylim=(-0.05, 1.16))
    axes[-1].legend(title="positions", fontsize=9)
    return figure


def scores_by_position(before: Tensor, after: Tensor) -> Picture:
    """Dot products of one query and one key at every pair of positions: as they are, and after rotary positions."""
    figure, axes = canvas(1, 2, height=3.2)
    most = float(max(before.abs().max(), after.abs().max()))
    titles = ("without positions", "with rotary positions")
    for axis, products, title in zip(axes, (before, after), titles, strict=True):
        image = axis.imshow(products.numpy(), cmap=SIGNED, vmin=-most, vmax=most, interpolation="nearest")
        axis.set(title=title, xlabel="position of the key", ylabel="position of the query")
    figure.colorbar(image, ax=axes, label="query · key")
    return figure


def _table_map(figure: Picture, axis: Axes, table: Tensor, title: str) -> None:
    image = axis.imshow(table.numpy(), cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axis, label="value")
    axis.set(title=title, xlabel="channel", ylabel="position")


def _products_map(figure: Picture, axis: Axes, table: Tensor, title: str) -> None:
    image = axis.imshow(_products(table).numpy(), cmap=SIGNED, vmin=-1, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, label=_PRODUCT)
    axis.set(title=title, xlabel="position", ylabel="position")


def _products(table: Tensor) -> Tensor:
    """Of every row with every other; 1 with itself."""
    return table @ table.T * 2 / table.size(1)


def _turns(axis: Axes, table: Tensor, pair: int, offset: int) -> None:
    sines, cosines = table[:, 2 * pair].numpy(), table[:, 2 * pair + 1].numpy()
    circle = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.sin(circle), np.cos(circle), color=FAINT, zorder=0)
    axis.plot(sines, cosines, "o", color=NEUTRAL, ms=3)
    for start, color in zip((0, 5), SERIES, strict=False):
        axis.annotate(
            "",
            (float(sines[start + offset]), float(cosines[start + offset])),
            (float(sines[start]), float(cosines[start])),
            arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2, "connectionstyle": "arc3,rad=-0.25"},
        )
        for position in (start, start + offset):
            place = (1.2 * float(sines[position]), 1.2 * float(cosines[position]))
            axis.annotate(str(position), place, color=color, ha="center", va="center", fontsize=10)
    axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xlabel="sine channel")
    axis.set_title(f"channels {2 * pair} and {2 * pair + 1} of {table.size(1)}")
