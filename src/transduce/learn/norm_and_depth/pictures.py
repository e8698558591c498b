"""Pictures of norms, residual connections and depth."""

from itertools import accumulate
from typing import Any

from torch import Tensor

from transduce.learn.canvas import DECODER, ENCODER, FAINT, INK, NEUTRAL, SERIES, Picture, canvas
from transduce.learn.norm_and_depth.experiments import (
    Alikeness,
    AtInitialisation,
    Patience,
    Residuals,
    Stream,
    WarmUp,
    root_mean_square,
)

_OF_NORM = {"post": DECODER, "pre": ENCODER}
_STYLES = {"with": "-", "without": "--"}


def stream_bars(found: Stream) -> Picture:
    """Sizes of what each sub-layer adds, and of the stream after it has been added."""
    figure, (axes,) = canvas(1, 1, width=9.0, height=3.4)
    kinds = [("attention", "feed-fwd")[i % 2] for i in range(len(found.added))]
    names = ["input", *(f"{kind} {i // 2 + 1}" for i, kind in enumerate(kinds))]
    sizes = [root_mean_square(x) for x in (found.start, *found.added)]
    colors = [NEUTRAL] + [SERIES[2 + i % 2] for i in range(len(found.added))]
    axes.bar(range(len(sizes)), sizes, color=colors, width=0.7)
    sums = accumulate(found.added, initial=found.start)
    axes.plot(range(len(sizes)), [root_mean_square(x) for x in sums], color=INK, marker="o", ms=4, label="sum so far")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set(title="The residual stream is a sum", ylabel="root mean square", ylim=(0, None))
    axes.legend(loc="upper left")
    return figure


def residual_curves(found: Residuals) -> Picture:
    """Training losses with and without residual connections, beside the lowest loss without seeing the source."""
    figure, (axes,) = canvas(1, 1, width=7.0, height=3.4)
    for style, has_them, runs in (("-", "with", found.with_them), ("--", "without", found.without)):
        for norm, run in runs.items():
            label = f"{norm}-norm, {has_them} residual connections"
            axes.plot(run.training.smoothed(), color=_OF_NORM[norm], linestyle=style, label=label)
    axes.axhline(found.blind, color=INK, linestyle=":", linewidth=1.2, label="without seeing the source")
    axes.set(title="Twelve encoder layers", xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    axes.legend(fontsize=8)
    return figure


def alikeness_lines(found: Alikeness) -> Picture:
    """How alike the vectors at different positions are, layer by layer."""
    figure, (axes,) = canvas(1, 1, width=7.0, height=3.0)
    for (norm, additions), cosines in found.cosines.items():
        style: Any = {"color": _OF_NORM[norm], "linestyle": _STYLES[additions], "marker": "o", "ms": 4}
        _line(axes, cosines, 0, style | {"label": f"{norm}-norm, {additions} residual connections"})
    axes.set(title="Similarity of positions", xlabel="encoder layer (0: input)", ylabel="mean cosine")
    axes.set_ylim(min(0.0, *(float(values.min()) for values in found.cosines.values())), 1.03)
    axes.grid(color=FAINT)
    axes.legend(fontsize=8)
    return figure


def warm_up_curves(found: WarmUp) -> Picture:
    """Training losses, a line for each seed, and lengths of the gradient of all weights, of the first seed."""
    figure, (left, right) = canvas(1, 2, width=8.4, height=2.9)
    for (norm, warm), runs in found.runs.items():
        style: Any = {"color": _OF_NORM[norm], "linestyle": _STYLES[warm]}
        for number, run in enumerate(runs):
            label = f"{norm}-norm, {warm} warm-up" if number == 0 else None
            left.plot(run.training.smoothed(), linewidth=1.4 - 0.6 * number, label=label, **style)
        right.plot(runs[0].training.gradient_norms[:100], linewidth=1.1, **style)
    left.axhline(found.blind, color=INK, linestyle=":", linewidth=1.2, label="without seeing the source")
    left.set(title="Training loss", xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    left.legend(fontsize=8)
    right.set(title="First hundred steps", xlabel="step", ylabel="length of the gradient", yscale="log")
    return figure


def patience_curves(found: Patience) -> Picture:
    """Training losses of post-norm, for a longer time."""
    figure, (axes,) = canvas(1, 1, width=7.0, height=3.0)
    for run, warm in ((found.cold, "without"), (found.warm, "with")):
        axes.plot(run.training.smoothed(), color=DECODER, linestyle=_STYLES[warm], label=f"{warm} warm-up")
    axes.axhline(found.blind, color=INK, linestyle=":", linewidth=1.2, label="without seeing the source")
    axes.set(title="Post-norm, trained longer", xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    axes.legend(fontsize=9)
    return figure


def initialisation_lines(found: AtInitialisation) -> Picture:
    """Gradients by layer, and the size of the residual stream after each layer, of untrained encoders."""
    figure, (left, right) = canvas(1, 2, width=9.4, height=3.3)
    for (name, color), marker in zip(_OF_NORM.items(), "os", strict=True):
        style: Any = {"color": color, "marker": marker, "ms": 5, "label": f"{name}-norm"}
        _line(left, found.gradients[name], 1, style)
        _line(right, found.stream[name], 0, style)
    left.set(title="Gradient of feed-forward weights", ylabel="length of the gradient", ylim=(0, None))
    right.set(title="Residual stream", ylabel="root mean square of x", ylim=(0, None))
    for axes in (left, right):
        axes.set_xlabel("encoder layer (0: input)" if axes is right else "encoder layer")
        axes.grid(color=FAINT)
    left.legend()
    return figure


def _line(axes: Any, values: Tensor, first: int, style: dict[str, Any]) -> None:
    axes.plot(range(first, first + len(values)), values.tolist(), **style)
