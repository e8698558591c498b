"""Pictures of attention: a saturated softmax, one head and several, the scale of embeddings, attention alone."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from transduce.learn.canvas import DECODER, ENCODER, FAINT, INK, SERIES, Picture, canvas
from transduce.learn.maps import head_maps
from transduce.learn.transformer.attention.experiments import EmbeddingScale, RootTraining, Saturation, TwoLookUps
from transduce.learn.transformer.feed_forward.experiments import AttentionAlone

_SIDES = {"with the root": ENCODER, "without": DECODER}
_SAID = {"with the root": "divided by √d_k", "without": "not divided"}


def saturation_curves(found: Saturation) -> Picture:
    """The largest weight, and how much of a gradient comes back, by d_k; beside them the weights of one draw."""
    figure, (left, middle, right) = canvas(1, 3, width=9.8, height=3.2)
    for axis, values in ((left, found.largest), (middle, found.jacobian)):
        for (name, color), marker in zip(_SIDES.items(), "os", strict=True):
            axis.plot(found.widths, values[name], color=color, marker=marker, ms=5, label=_SAID[name])
        axis.set_xscale("log", base=2)
        axis.set_xticks(found.widths, [str(width) for width in found.widths])
        axis.set_xlabel("d_k")
        axis.set_ylim(0, None)
    left.set(title="Largest of 20 weights", ylabel="weight")
    middle.set(title="Do scores move weights?", ylabel="size of the derivative\nof weights with respect to scores")
    left.legend(fontsize=9)
    for number, (name, color) in enumerate(_SIDES.items()):
        weights = found.example[name][-1]
        at = [key + 0.42 * (number - 0.5) for key in range(1, len(weights) + 1)]
        right.bar(at, weights.tolist(), 0.42, color=color, label=_SAID[name])
    right.legend(fontsize=9)
    right.set(title=f"One query, d_k = {found.widths[-1]}", xlabel="key, largest weight first", ylabel="weight")
    return figure


def root_curves(found: RootTraining) -> Picture:
    """The loss of networks with the division and without, one curve for each seed."""
    figure, (axis,) = canvas(width=6.4, height=3.0)
    for trainings, color, name in (
        (found.with_root, ENCODER, "divided by √d_k"),
        (found.without, DECODER, "not divided"),
    ):
        for number, training in enumerate(trainings):
            axis.plot(training.smoothed(), color=color, label=name if number == 0 else None)
    axis.set(title=f"Writing symbols backward, d_k = {found.width}", xlabel="step", ylabel="loss (nats per token)")
    axis.set_ylim(0, 3.2)
    axis.legend(fontsize=9)
    return figure


def look_up_bars(found: TwoLookUps) -> Picture:
    """Each question by itself, and both at once, for each network; beside them the losses."""
    figure, (left, right) = canvas(1, 2, width=9.6, height=3.2)
    names = list(found.both)
    groups = {
        "previous": [found.each[name][0] for name in names],
        "first": [found.each[name][1] for name in names],
        "both": [found.both[name] for name in names],
    }
    _grouped_bars(left, names, groups)
    left.set(title="Symbols right", ylabel="share of positions", ylim=(0, 1.3), yticks=(0, 0.25, 0.5, 0.75, 1))
    left.axhline(1 / found.num_symbols, color=INK, linestyle=":", linewidth=1, label="one known, one guessed")
    left.legend(ncols=4, fontsize=8, loc="upper center", columnspacing=0.8, handlelength=1.2)
    for number, (name, training) in enumerate(found.trainings.items()):  # dashed ones lie on others: those are wide
        style: Any = {"linestyle": "--"} if "FFN" in name else {"linewidth": 4.5, "alpha": 0.45}
        right.plot(training.smoothed(), color=SERIES[number], label=name, **style)
    right.set(title="Learning", xlabel="step", ylabel="loss (nats per symbol)", ylim=(0, None))
    right.legend(fontsize=9)
    return figure


def look_up_maps(found: TwoLookUps, name: str, symbols: str) -> Picture:
    """Every head of one of the networks, on one sequence; positions are named by number."""
    weights = found.maps[name]
    tokens = [f"{symbols}{position}" for position in range(weights.size(-2))]
    return head_maps({"": weights}, queries=tokens, keys=[*tokens, "end"][: weights.size(-1)])


def scale_curves(found: EmbeddingScale) -> Picture:
    """Losses with the factor and without on both tasks, one curve for each seed; then the same for longer."""
    figure, axes = canvas(1, 3, width=9.8, height=3.2)
    colors = {"the paper": ENCODER, "no factor": DECODER}
    for axis, (task, runs) in zip(axes, found.trainings.items(), strict=False):
        for name, trainings in runs.items():
            for number, training in enumerate(trainings):
                axis.plot(training.smoothed(), color=colors[name], label=name if number == 0 else None)
        axis.set(title=task, xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    for name, training in found.longer.items():
        axes[2].plot(training.smoothed(), color=colors[name], label=name)
    axes[2].set(title=f"reversal, one start, {len(training.losses)} steps", xlabel="step", ylim=(0, None))
    for axis in (axes[0], axes[2]):
        axis.legend(fontsize=9)
    return figure


def attention_alone_curves(*both: tuple[str, AttentionAlone]) -> Picture:
    """The loss and the end of three networks, for each of the functions they learn."""
    figure, axes = canvas(1, len(both), width=4.9 * len(both), height=3.3)
    for axis, (title, found) in zip(axes, both, strict=True):
        for number, (name, training) in enumerate(found.trainings.items()):
            label = f"{name} ({found.scores[name]:.0%} right)"
            axis.plot(training.smoothed(), color=SERIES[number], label=label)
        axis.set(title=title, xlabel="step", ylabel="loss (nats per symbol)", ylim=(0, None))
        axis.legend(fontsize=8)
    return figure


def _grouped_bars(axis: Axes, names: Sequence[str], groups: dict[str, list[float]]) -> None:
    width = 0.8 / len(groups)
    colors = (FAINT, SERIES[5], ENCODER)
    for number, (label, values) in enumerate(groups.items()):
        at = [row + (number - 1) * width for row in range(len(names))]
        axis.bar(at, values, width, color=colors[number], edgecolor=INK, linewidth=0.5, label=label)
    axis.set_xticks(range(len(names)), names, fontsize=9)
