"""Learning curve of a run as a picture."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

from transduce.evaluation.definitions import DEFINITIONS
from transduce.runs.monitoring import Row, metrics_of

_BLUE, _DARK, _RED, _GRAY = "#9db4d0", "#1b4f8a", "#b5502a", "#777777"
_FEW = 50  # points of a curve, which are marked


def learning_curve(rows: Sequence[Row], title: str, kept: int | None = None) -> bytes:
    """Learning curve as a PNG: losses by step, below them each score, and the learning rate. Needs `matplotlib`.

    The step whose weights are `kept` is marked.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    training = [row for row in rows if row["kind"] == "training"]
    validation = [row for row in rows if row["kind"] == "validation"]
    scores = [name for name in (metrics_of(validation[-1]) if validation else {}) if not name.endswith("loss")]
    figure = Figure(figsize=(7, 2.4 * (2 + len(scores))), layout="constrained")
    axes = figure.subplots(2 + len(scores), 1, sharex=True, squeeze=False)[:, 0]
    _draw_losses(axes[0], training, validation)
    axes[0].set_title(title.encode(errors="surrogateescape").decode(errors="replace"), parse_math=False)
    for axis, name in zip(axes[1:], scores, strict=False):
        axis.plot(*_series(validation, name), color=_RED, marker="o", markersize=3)
        metric = DEFINITIONS.get(name)
        better = "" if metric is None else "\nhigher is better" if metric.is_higher_better else "\nlower is better"
        axis.set_ylabel(f"{metric.title if metric else name}{better}")
    axes[-1].plot(*_series(training, "learning_rate"), color=_GRAY, linewidth=1.2)
    axes[-1].set(ylabel="learning rate", xlabel="optimizer step")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if kept is not None:
            axis.axvline(kept, color=_RED, linewidth=0.8, linestyle=":")
    if kept is not None:
        axes[0].annotate(f"kept: step {kept:,}", (kept, 1), xycoords=("data", "axes fraction"), fontsize=8, color=_RED,
                         xytext=(-3, -8), textcoords="offset points", ha="right")  # fmt: skip
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of characters in the title that the font lacks
        figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def _draw_losses(axis: Any, training: Sequence[Row], validation: Sequence[Row]) -> None:
    """Both losses without smoothing and dropout where the rows have them, so that they can be compared."""
    if any("training_loss" in row for row in validation):
        curves = [(_series(validation, "training_loss"), _BLUE, "training pairs")]
    else:
        curves = [(_series(training, "loss"), _BLUE, "training (with label smoothing and dropout)")]
    if validation:
        curves.append((_series(validation, "loss"), _DARK, "validation pairs"))
    for (steps, losses), color, label in curves:
        axis.plot(steps, losses, color=color, linewidth=1.2, marker="o" if len(steps) < _FEW else None, markersize=3,
                  label=label)  # fmt: skip
    # The first losses would flatten all others.
    late = [loss for (_, losses), *_ in curves for loss in losses[len(losses) // 10 :] if math.isfinite(loss)]
    if late and (room := 0.05 * (max(late) - min(late))):
        axis.set_ylim(min(late) - room, max(late) + room)
    axis.set_ylabel("loss\n(nats per token)")
    axis.legend(frameon=False)


def _series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    return [row["step"] for row in rows], [row.get(name, math.nan) for row in rows]
