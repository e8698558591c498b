"""Pictures of the paper's three reasons: time and chains by length, what comes from afar, phonemes wrong."""

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from transduce.learn.canvas import INK, NEUTRAL, SERIES, Picture, canvas
from transduce.learn.why_it_matters.experiments import (
    GRU,
    LOOKING,
    LSTM,
    TRANSFORMER,
    FarAlone,
    Gradients,
    Recall,
    Speed,
)
from transduce.learn.why_it_matters.quality import Quality

_NETWORKS = {
    TRANSFORMER: (SERIES[0], "o-"),
    GRU: (SERIES[1], "s-"),
    LSTM: (SERIES[3], "^-"),
    LOOKING: (SERIES[2], "D-"),
}
_NAMED = "share of symbols predicted correctly"


def step_times(found: Speed) -> Picture:
    """Milliseconds per training step, and operations in a row, by length; both axes logarithmic."""
    figure, (left, right) = canvas(1, 2, height=3.5)
    for name, times in found.milliseconds.items():
        _curve(left, name, found.lengths, times)
    left.set(title="Training time", ylabel="milliseconds per training step")
    for name, chain in found.chains.items():
        _curve(right, name, found.lengths, chain)
    right.set(title="Operations that wait for one another", ylabel="operations on the longest path")
    for axis in (left, right):
        axis.set_yscale("log")
        _log_lengths(axis, found.lengths, "tokens in source and in target")
        axis.legend(fontsize=9, frameon=False)
    _plain_numbers(left)
    return figure


def answer_times(found: Speed) -> Picture:
    """Milliseconds to write an output, token after token, by its length."""
    figure, (axis,) = canvas(width=5.4, height=3.2)
    for name, times in found.answers.items():
        _curve(axis, name, found.answer_lengths, times)
    axis.set_yscale("log")
    _plain_numbers(axis)
    axis.set(title="Decoding time", ylabel="milliseconds for eight outputs")
    _log_lengths(axis, found.answer_lengths, "tokens in the output")
    axis.legend(fontsize=9, frameon=False)
    return figure


def path_lengths(distance: int = 6) -> Picture:
    """The path from the first token to the output: through every state, or in one look."""
    figure, axes = canvas(1, 2, width=8.4, height=2.3)
    for axis, title in zip(axes, (GRU, f"{LOOKING}, or {TRANSFORMER}"), strict=True):
        axis.set(title=title, xlim=(-0.7, distance + 2.2), ylim=(-0.9, 1.9))
        axis.axis("off")
        for place in range(distance + 1):
            _box(axis, place, 0, "first" if not place else "·", SERIES[0] if not place else NEUTRAL)
        _box(axis, distance + 1.3, 1.2, "output", SERIES[1])
    for place in range(distance):
        _arrow(axes[0], (place + (0.33 if place else 0.42), 0), (place + 0.75, 0), "-|>")
    _arrow(axes[0], (distance + 0.2, 0.28), (distance + 1.1, 0.95), "-|>")
    _arrow(axes[1], (0.1, 0.3), (distance + 0.75, 1.25), "-|>", bend=-0.15)
    axes[0].text(distance / 2, -0.75, f"{distance + 1} steps", ha="center", color=INK)
    axes[1].text(distance / 2, -0.75, "1 step", ha="center", color=INK)
    return figure


def far_gradients(found: Gradients) -> Picture:
    """How strongly the loss feels the first token, by how far back it stands."""
    figure, (axis,) = canvas(width=6.4, height=3.4)
    for name, lengths in found.lengths.items():
        _curve(axis, name, found.distances, lengths)
    axis.set(title="Before any training", ylabel="length of the gradient at the first token", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(numticks=7))
    _log_lengths(axis, found.distances, "tokens after the first one")
    axis.legend(fontsize=9, frameon=False)
    return figure


def recalled(found: Recall, alone: FarAlone) -> Picture:
    """Recall by distance: trained at one distance alone, one symbol and eight with distances mixed."""
    figure, axes = canvas(1, 3, width=11.4, height=3.9)
    for number, (rate, shares) in enumerate(alone.rates.items()):
        axes[0].plot(
            alone.distances,
            shares,
            "svP"[number] + ("-", "--", ":")[number],
            color=SERIES[1],
            label=f"{GRU}, rate {rate:g}",
        )
    for name, share in alone.others.items():
        color, marker = _NETWORKS[name]
        axes[0].plot(alone.distances[-1], share, marker[0], color=color, label=name, ms=7 if name == LOOKING else 10)
    axes[0].set(title="One symbol, one distance")
    for (name, count), shares in found.scores.items():
        _curve(axes[1 if count == 1 else 2], name, found.distances, shares)
    axes[1].set(title="One symbol, distances mixed")
    axes[2].set(title=f"{found.count} symbols, distances mixed")
    for axis, distances in zip(axes, (alone.distances, found.distances, found.distances), strict=True):
        axis.axhline(found.chance, color=NEUTRAL, linestyle=":", linewidth=1)
        axis.text(distances[0], found.chance - 0.02, "chance", color=NEUTRAL, fontsize=9, va="top")
        axis.set_ylim(0, 1.08)
        _log_lengths(axis, distances, "tokens in between")
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    axes[0].set_ylabel(_NAMED)
    return figure


def error_rates(found: Quality) -> Picture:
    """Phonemes wrong after few and many steps, with the 95% intervals of the choice of words."""
    figure, (axis,) = canvas(width=6.4, height=3.2)
    width = 0.8 / len(found.scores)
    for number, (name, scores) in enumerate(found.scores.items()):
        places = [at + (number - (len(found.scores) - 1) / 2) * width for at in range(len(scores))]
        values = [score.value for score in scores]
        spread = [[s.value - s.low for s in scores], [s.high - s.value for s in scores]]
        axis.bar(places, values, 0.9 * width, color=_NETWORKS[name][0], label=name, yerr=spread, ecolor=INK, capsize=3)
        for place, score in zip(places, scores, strict=True):
            axis.text(place, score.high + 0.8, f"{score.value:.1f}", ha="center", fontsize=9)
    axis.set_xticks(range(len(found.steps)), [f"{steps} steps" for steps in found.steps])
    axis.set(title="Unseen English words", ylabel="phoneme error rate (%)")
    axis.margins(y=0.15)
    axis.legend(fontsize=9, frameon=False)
    return figure


def _curve(axis: Axes, name: str, across: tuple[int, ...], up: tuple[float, ...]) -> None:
    color, style = _NETWORKS[name]
    axis.plot(across, up, style, color=color, label=name, ms=5, alpha=0.9)


def _log_lengths(axis: Axes, lengths: tuple[int, ...], label: str) -> None:
    axis.set_xscale("log")
    axis.set_xticks(lengths, [str(n) for n in lengths])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(label)


def _plain_numbers(axis: Axes) -> None:
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ScalarFormatter())


def _box(axis: Axes, x: float, y: float, text: str, color: str) -> None:
    axis.text(x, y, text, ha="center", va="center", color=color, bbox={"boxstyle": "round", "fc": "white", "ec": color})


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], style: str, bend: float = 0.0) -> None:
    look = {"arrowstyle": style, "color": INK, "connectionstyle": f"arc3,rad={bend}"}
    axis.annotate("", end, start, arrowprops=look)
