"""Pictures of the ward: what one usually looks at, and what the laws say."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap

from transduce.learn.experiments.bugs import HEALTHY, LAWS, Ward
from transduce.learn.pictures.canvas import DECODER, FAINT, INK, NEUTRAL, WEIGHTS, Picture, canvas

_HOLDS_OR_NOT = ListedColormap([FAINT, DECODER])


def loss_curves(ward: Ward) -> Picture:
    """The losses of all in training, the healthy one's drawn thick; a letter stands where a curve ends."""
    figure, (axis,) = canvas(1, 1, width=7.6, height=3.8)
    ends = _apart({name: scores.loss for name, scores in ward.scores.items()}, gap=0.12)
    for name, scores in ward.scores.items():
        is_healthy = name == HEALTHY
        axis.plot(scores.losses, color=INK if is_healthy else NEUTRAL, linewidth=2.4 if is_healthy else 1.1)
        axis.annotate(
            name,
            (len(scores.losses) - 1, scores.loss),
            (len(scores.losses) * 1.03, ends[name]),
            va="center",
            fontsize=9,
            weight="bold" if is_healthy else "normal",
            arrowprops={"arrowstyle": "-", "color": FAINT},
        )
    axis.set(title="Training loss", xlabel="step", ylabel="loss / nats per token", ylim=(0, None))
    axis.set_xlim(0, 1.16 * len(ward.scores[HEALTHY].losses))
    return figure


def scores_map(ward: Ward) -> Picture:
    """Three numbers of every patient: last loss beside the healthy one's, next tokens named, whole answers right."""
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
    axis.set_yticks(range(3), ["loss / healthy loss", "next token, told all before", "whole answer, by itself"])
    axis.set_xticks(range(len(names)), names)
    axis.set_title("What one usually looks at")
    return figure


def laws_map(laws: dict[str, dict[str, float]], columns: Sequence[str] | None = None) -> Picture:
    """What each law measures (columns) of each patient (rows): red with its number where it does not hold."""
    chosen = [law for law in LAWS if columns is None or law.column in columns]
    figure, (axis,) = canvas(1, 1, width=9.2, height=1.3 + 0.3 * len(laws))
    ill = [[not law.holds(found[law.bug]) for law in chosen] for found in laws.values()]
    axis.imshow(np.array(ill, dtype=float), cmap=_HOLDS_OR_NOT, vmin=0, vmax=1, aspect="auto")
    for i, found in enumerate(laws.values()):
        for j, law in enumerate(chosen):
            text, colour = (f"{found[law.bug]:.2g}", "white") if ill[i][j] else ("0", NEUTRAL)
            axis.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
    axis.set_yticks(range(len(laws)), list(laws))
    axis.set_xticks(range(len(chosen)), [law.column for law in chosen], rotation=40, ha="left")
    axis.xaxis.tick_top()
    axis.set_xticks(np.arange(1, len(chosen)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(laws)) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="both", length=0)
    return figure


def _apart(heights: dict[str, float], gap: float) -> dict[str, float]:
    """The heights, pushed up where two are nearer than `gap`, so that their names can be read."""
    found, last = {}, -gap
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        last = found[name] = max(height, last + gap)
    return found
