"""Pictures of the main notebook that no other lesson has: one idea each, mostly from the three-token example."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from transduce.learn.build_it import pieces
from transduce.learn.build_it.example import SEES_ALL, TOKENS, X
from transduce.learn.canvas import (
    DECODER,
    ENCODER,
    FAINT,
    INK,
    KEY,
    NEUTRAL,
    QUERY,
    SERIES,
    VALUE,
    Picture,
    canvas,
)
from transduce.learn.transformer.reasons import Chains, QualityBySteps
from transduce.learn.why_it_matters.experiments import GRU, LOOKING, TRANSFORMER, Gradients

_COLORS = {TRANSFORMER: SERIES[0], GRU: SERIES[1], LOOKING: SERIES[2]}
_MARKERS = {TRANSFORMER: "o-", GRU: "s-", LOOKING: "D--"}


def soft_look_up() -> Picture:
    """A dictionary gives the value of the one key that matches; attention, a mixture by how well each key matches."""
    weights = (X[0] @ X[0].T / 2).softmax(-1)[2].tolist()
    figure, axes = canvas(1, 2, width=9.2, height=2.7)
    for axis, title, shares in ((axes[0], "A dictionary", (0.0, 1.0, 0.0)), (axes[1], "Attention", weights)):
        axis.set(title=title, xlim=(-0.2, 7.3), ylim=(-0.55, 2.6))
        axis.set_axis_off()
        _box(axis, 0.6, 1.0, "query:\n“sleeps”" if title == "Attention" else "query:\n“cat”", QUERY)
        _box(axis, 6.6, 1.0, "output", VALUE)
        for row, (token, share) in enumerate(zip(TOKENS, shares, strict=True)):
            y = 2.1 - 1.1 * row
            _box(axis, 2.95, y, f"key “{token}”", KEY)
            _box(axis, 5.05, y, "value", VALUE)
            style: Any = {"color": NEUTRAL, "linewidth": 0.6 + 6 * share, "alpha": 0.9 if share > 0.01 else 0.25}
            axis.plot([1.2, 2.3], [1.0, y], zorder=0, **style)
            axis.plot([5.45, 6.15], [y, 1.0], zorder=0, **style)
            weight = f"{share:.2f}" if title == "Attention" else f"{share:.0f}"
            axis.text(4.17, y, f"{weight} ·", ha="center", va="center", fontsize=9.5, color=INK)
    return figure


def blind_to_order() -> Picture:
    """What attention makes of the three tokens, forward and backward: the same rows, which have only changed places."""
    backward = X.flip(1)
    panels = (
        ("in: the cat sleeps", X[0], TOKENS),
        ("out", pieces.attention(X, X, X, SEES_ALL)[0], TOKENS),
        ("in: sleeps cat the", backward[0], TOKENS[::-1]),
        ("out", pieces.attention(backward, backward, backward, SEES_ALL)[0], TOKENS[::-1]),
    )
    figure, axes = canvas(1, 4, width=9.6, height=1.9)
    for axis, (title, values, names) in zip(axes, panels, strict=True):
        axis.set_axis_off()
        axis.set_title(title, color=INK if "in" in title else VALUE, fontsize=9.5)
        axis.set(xlim=(-0.5, 3.5), ylim=(2.5, -0.5))
        for row, (name, of_row) in enumerate(zip(names, values.tolist(), strict=True)):
            color = SERIES[TOKENS.index(name)]
            axis.add_patch(FancyBboxPatch((-0.45, row - 0.4), 3.9, 0.8, boxstyle="square,pad=0", fc=color, alpha=0.16))
            axis.text(-0.6, row, name, ha="right", va="center", fontsize=9, color=color)
            for column, value in enumerate(of_row):
                axis.text(column, row, f"{value:.2f}".rstrip("0").rstrip("."), ha="center", va="center", fontsize=9)
    return figure


def position_schemes() -> Picture:
    """Three ways to number positions: counting, dividing by the length, and the hands of clocks."""
    figure, axes = canvas(1, 3, width=9.8, height=2.8)
    places = torch.arange(40)
    axes[0].plot(places, places, color=DECODER)
    axes[0].axhspan(-2, 2, color=FAINT)
    axes[0].text(14, 3.0, "numbers in an embedding", fontsize=8.5, color=NEUTRAL)
    axes[0].set(title="0, 1, 2, …: grows without end", xlabel="position", ylabel="number added", ylim=(-4, 40))
    for length, color in ((11, ENCODER), (41, DECODER)):
        at = torch.arange(length)
        axes[1].plot(at, at / (length - 1), ".-", color=color, label=f"sentence of {length} tokens")
    axes[1].set(title="position / length: steps differ", xlabel="position")
    axes[1].legend(fontsize=8)
    for channel, color in ((0, QUERY), (2, KEY), (4, VALUE)):
        axes[2].plot(places, pieces.sinusoids(40, 8)[:, channel], color=color, label=f"channel {channel}")
    axes[2].set(title="sines, fast and slow: small numbers", xlabel="position", ylim=(-1.1, 1.9), yticks=(-1, 0, 1))
    axes[2].legend(fontsize=8, ncols=3, loc="upper center", columnspacing=0.8, handlelength=1.2)
    for axis in axes:
        axis.title.set_fontsize(10)
    return figure


def clock_hands(d_model: int = 16, positions: tuple[int, ...] = (0, 1, 2, 3, 10, 11)) -> Picture:
    """A dial for each of the first four pairs of channels, at some positions: where its hand stands."""
    num_hands = 4
    figure, axes = canvas(num_hands, len(positions), width=1.15 * len(positions) + 1.2, height=1.15 * num_hands + 0.3)
    table = pieces.sinusoids(max(positions) + 1, d_model)
    circle = torch.linspace(0, 2 * math.pi, 80)
    for hand in range(num_hands):
        for column, position in enumerate(positions):
            axis = axes[hand * len(positions) + column]
            axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.plot(circle.sin(), circle.cos(), color=FAINT, linewidth=1.4)
            x, y = table[position, 2 * hand].item(), table[position, 2 * hand + 1].item()
            axis.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": SERIES[hand], "linewidth": 1.8})
            if hand == 0:
                axis.set_title(f"position {position}", fontsize=8.5, fontweight="normal")
            if column == 0:
                label = f"clock {hand} of {d_model // 2}:\nchannels {2 * hand}, {2 * hand + 1}"
                axis.set_ylabel(label, fontsize=9, color=SERIES[hand], rotation=0, ha="right", va="center")
    return figure


@torch.no_grad()
def through_layers(num_layers: int = 24) -> Picture:
    """Untrained layers, one on the other, with additions and norms and without: sizes, and how alike tokens become."""
    kinds: dict[str, tuple[bool, bool, dict[str, Any]]] = {  # curves that lie on one another differ in width and dashes
        "neither": (False, False, {"color": NEUTRAL, "linewidth": 5, "alpha": 0.6}),
        "norm alone": (False, True, {"color": DECODER, "linewidth": 2.5}),
        "add alone": (True, False, {"color": KEY, "linewidth": 2.5}),
        "add and norm": (True, True, {"color": ENCODER, "linestyle": (0, (3, 3))}),
    }
    figure, (left, right) = canvas(1, 2, width=9.4, height=3.0)
    for name, (adds, norms, style) in kinds.items():
        sizes, alike = _layer_by_layer(num_layers, adds=adds, norms=norms)
        left.plot(sizes, label=name, **style)
        right.plot(alike, label=name, **style)
    left.set(title="How large the numbers are", xlabel="layers passed", ylabel="root mean square", yscale="log")
    right.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    right.set(title="How alike the tokens are", xlabel="layers passed", ylabel="mean cosine", ylim=(-0.1, 1.08))
    return figure


def _layer_by_layer(num_layers: int, *, adds: bool, norms: bool) -> tuple[list[float], list[float]]:
    d_model = 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        x = torch.randn(1, 8, d_model)
        may_look, norm = torch.ones(8, 8, dtype=torch.bool), pieces.LayerNorm(d_model)
        sizes, alike = [_size(x)], [_alikeness(x)]
        for _ in range(num_layers):
            attention, network = pieces.MultiHead(d_model, 4), pieces.FeedForward(d_model, 2 * d_model)
            for f in (lambda y, of=attention: of(y, y, may_look), network):
                x = (x if adds else 0) + f(x)
                x = norm(x) if norms else x
            sizes.append(_size(x))
            alike.append(_alikeness(x))
    return sizes, alike


def _size(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _alikeness(x: Tensor) -> float:
    """Mean cosine of all pairs of different tokens."""
    rows = torch.nn.functional.normalize(x[0], dim=-1)
    products, count = rows @ rows.T, len(rows)
    return float((products.sum() - products.trace()) / (count * (count - 1)))


def loss_curve(losses: list[float]) -> Picture:
    """The loss of each step, and its mean over the last twenty."""
    figure, (axis,) = canvas(width=6.4, height=2.8)
    smooth = [sum(losses[max(0, i - 19) : i + 1]) / min(20, i + 1) for i in range(len(losses))]
    axis.plot(range(1, len(losses) + 1), losses, color=FAINT, label="each batch")
    axis.plot(range(1, len(losses) + 1), smooth, color=ENCODER, label="mean of the last 20")
    axis.set(
        title="Learning to write sentences backward", xlabel="step", ylabel="loss (nats per token)", ylim=(0, None)
    )
    axis.legend(fontsize=8.5)
    return figure


def chain_lengths(found: Chains) -> Picture:
    """Operations that wait for one another, by length; both axes logarithmic."""
    figure, (axis,) = canvas(width=6.0, height=3.1)
    for name, counts in found.operations.items():
        label = f"{name} ({found.parameters[name]:,} parameters)"
        axis.plot(found.lengths, counts, _MARKERS[name], color=_COLORS[name], label=label)
        axis.text(found.lengths[-1] * 1.06, counts[-1], f"{counts[-1]:,}", va="center", color=_COLORS[name])
    axis.set(title="Operations that have to wait for one another", xlabel="tokens in source and in target")
    axis.set(ylabel="operations in the longest chain")
    _logarithmic(axis, found.lengths)
    return figure


def distances(found: Gradients) -> Picture:
    """How strongly the loss feels the first token of the source, by how many tokens follow it."""
    figure, (axis,) = canvas(width=6.0, height=3.1)
    for name, lengths in found.lengths.items():
        axis.plot(found.distances, lengths, _MARKERS[name], color=_COLORS[name], label=name)
    axis.set(title="What comes back to the first token", xlabel="tokens between it and the output")
    axis.set(ylabel="length of its gradient")
    _logarithmic(axis, found.distances)
    return figure


def _logarithmic(axis: Axes, numbers: Sequence[int]) -> None:
    """Both axes logarithmic, with a tick at each of the numbers, and a legend."""
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.minorticks_off()
    axis.legend(fontsize=8.5)


def quality_curves(found: QualityBySteps) -> Picture:
    """Training loss by steps, and how far the others are behind the Transformer, from the ledger's rows."""
    figure, (left, right) = canvas(1, 2, width=9.4, height=3.1)
    for name, losses in found.losses.items():
        left.plot(list(losses), list(losses.values()), _MARKERS[name], color=_COLORS[name], label=name)
    left.set(title="Training loss", xlabel="steps", ylabel="nats per phoneme", xscale="log")
    left.legend(fontsize=8.5)
    right.axhline(0, color=_COLORS[TRANSFORMER], linewidth=1.6, label=TRANSFORMER)
    for name, points in found.behind.items():
        right.plot(list(points), list(points.values()), _MARKERS[name], color=_COLORS[name], label=name)
    right.legend(fontsize=8.5)
    right.set(title="Phonemes wrong, compared with the Transformer", xlabel="steps", xscale="log")
    right.set(ylabel="percentage points more wrong")
    for axis, values in ((left, found.losses[TRANSFORMER]), (right, found.behind[GRU])):
        axis.set_xticks(list(values), [f"{steps:,}" for steps in values])
        axis.minorticks_off()
    return figure


def _box(axis: Axes, x: float, y: float, label: str, color: str) -> None:
    frame = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": color}
    axis.text(x, y, label, ha="center", va="center", fontsize=9, color=color, bbox=frame)
