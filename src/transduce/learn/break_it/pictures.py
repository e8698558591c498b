"""Pictures of the ward: what one usually looks at, and what the laws say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap

from transduce.learn.break_it.experiments import HEALTHY, LAWS, Ward
from transduce.learn.canvas import DECODER, FAINT, INK, NEUTRAL, SERIES, WEIGHTS, Picture, canvas

_HOLDS_OR_NOT = ListedColormap([FAINT, DECODER])


def loss_curves(ward: Ward) -> Picture:
    """The training losses of all patients, with the healthy model's as a broad band; letters mark where curves end."""
    figure, (axis,) = canvas(1, 1, width=7.6, height=4.2)
    steps = len(ward.scores[HEALTHY].losses)
    ends = _apart({name: scores.loss for name, scores in ward.scores.items()})
    for number, (name, scores) in enumerate(ward.scores.items()):
        is_healthy = name == HEALTHY
        style: Any = {"color": FAINT, "lw": 8} if is_healthy else {"color": SERIES[number % len(SERIES)], "lw": 1.2}
        axis.plot(scores.losses, **style)
        weight = "bold" if is_healthy else "normal"
        color = INK if is_healthy else style["color"]
        axis.text(steps * 1.06, ends[name], name, va="center", fontsize=9, weight=weight, color=color)
        axis.plot([steps - 1, steps * 1.05], [scores.loss, ends[name]], color=color, lw=0.6)
    axis.set(title="Training loss", xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axis.set_xlim(0, 1.2 * steps)
    return figure


def scores_map(ward: Ward) -> Picture:
    """Three numbers for every patient: last loss by the healthy model's, next tokens right, whole outputs right."""
    figure, (axis,) = canvas(1, 1, width=7.6, height=2.0)
    names = list(ward.scores)
    rows = [
        [ward.ratio(name) for name in names],
        [ward.scores[name].told for name in names],
        [ward.scores[name].writes for name in names],
    ]
    axis.imshow(np.clip(rows, 0, 1), cmap=WEIGHTS, vmin=0, vmax=1.6, aspect="auto")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.2f}" if i == 0 else f"{value:.0%}", ha="center", va="center", fontsize=9)
    axis.set_yticks(range(3), ["loss / healthy loss", "next token, teacher forcing", "whole output, by itself"])
    axis.set_xticks(range(len(names)), names)
    axis.set_title("The usual metrics: loss, share of tokens right, share of outputs right")
    return figure


def laws_map(laws: dict[str, dict[str, float]], columns: Sequence[str] | None = None) -> Picture:
    """What each law measures (columns) for each patient (rows): red, with the number, where the law does not hold."""
    chosen = LAWS if columns is None else [law for law in LAWS if law.column in columns]
    figure, (axis,) = canvas(1, 1, width=9.2, height=1.3 + 0.3 * len(laws))
    ill = [[not law.holds(found[law.bug]) for law in chosen] for found in laws.values()]
    axis.imshow(np.array(ill, dtype=float), cmap=_HOLDS_OR_NOT, vmin=0, vmax=1, aspect="auto")
    for i, found in enumerate(laws.values()):
        for j, law in enumerate(chosen):
            text, color = (f"{found[law.bug]:.2g}", "white") if ill[i][j] else ("0", NEUTRAL)
            axis.text(j, i, text, ha="center", va="center", fontsize=9, color=color)
    axis.set_yticks(range(len(laws)), list(laws))
    axis.set_xticks(range(len(chosen)), [law.column for law in chosen], rotation=40, ha="left")
    axis.xaxis.tick_top()
    axis.set(xlabel="law (red: broken, and by how much)", ylabel="patient")
    axis.set_xticks(np.arange(1, len(chosen)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(laws)) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="both", length=0)
    return figure


def _apart(heights: dict[str, float], factor: float = 1.55) -> dict[str, float]:
    """The heights, raised where one is less than `factor` times the one below it, so that names can be read."""
    found, last = {}, 0.0
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        last = found[name] = max(height, last * factor)
    return found
