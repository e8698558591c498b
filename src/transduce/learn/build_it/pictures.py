"""One picture for each step of `build_it`, drawn from the three-token example: what is computed, with its numbers."""

from collections.abc import Callable, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from transduce.learn.build_it import pieces
from transduce.learn.build_it.example import PAIRS, SEES_ALL, TOKENS, X, feed_forward_example
from transduce.learn.canvas import (
    DECODER,
    ENCODER,
    FAINT,
    INK,
    KEY,
    NEUTRAL,
    QUERY,
    SIGNED,
    VALUE,
    WEIGHTS,
    Picture,
    canvas,
)

_PITCH, _BOX = 1.33, 1.1  # inches from box to box of a flow, and the width of a box
_Part = tuple[str, Tensor, str] | str  # a matrix with its title and color, or a sign between two of them


def picture(name: str) -> Picture:
    """The picture of a step, by the name of its exercise without `build-`."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return _PICTURES[name]()


def _matrices(*parts: _Part, names: Sequence[str] = TOKENS, decimals: int = 1, shades_values: bool = True) -> Picture:
    """Matrices side by side with their numbers in them; rows of the first one have names."""
    widths = [0.3 if isinstance(part, str) else 0.5 + 0.42 * part[1].size(1) for part in parts]
    tallest = max(part[1].size(0) for part in parts if not isinstance(part, str))
    figure, axes = canvas(1, len(parts), width=sum(widths) + 0.8, height=0.9 + 0.42 * tallest)
    grid = axes[0].get_gridspec()
    assert grid is not None
    grid.set_width_ratios(widths)
    is_first = True
    for axis, part in zip(axes, parts, strict=True):
        axis.set_axis_off()
        if isinstance(part, str):
            axis.text(0.5, 0.5, part, ha="center", va="center", fontsize=15, color=INK, transform=axis.transAxes)
            continue
        title, values, color = part
        is_weights = "weights" in title or "counts" in title
        _cells(axis, values, decimals, is_weights=is_weights, is_shaded=shades_values or is_weights)
        axis.set_title(title, color=color, fontsize=9.5)
        if is_first and len(names) == values.size(0):
            for row, name in enumerate(names):
                axis.text(-0.65, row, name, ha="right", va="center", fontsize=9, color=INK)
        is_first = False
    return figure


def _cells(axis: Axes, values: Tensor, decimals: int, *, is_weights: bool, is_shaded: bool) -> None:
    bound = 1.0 if is_weights else float(values[values.isfinite()].abs().max()) or 1.0
    axis.imshow(
        values.nan_to_num(neginf=0.0) if is_shaded else torch.zeros_like(values),
        cmap=WEIGHTS if is_weights else SIGNED,
        vmin=0 if is_weights else -1.4 * bound,
        vmax=1.4 * bound,
        aspect="auto",
    )
    for row, of_row in enumerate(values.tolist()):
        for column, value in enumerate(of_row):
            said = "−∞" if value == float("-inf") else f"{value:.{decimals}f}".rstrip("0").rstrip(".") or "0"
            axis.text(
                column, row, said.replace("-0", "0") if said == "-0" else said, ha="center", va="center", fontsize=8.5
            )


def _flow(
    *boxes: tuple[str, str],
    notes: Sequence[str] = (),
    skips: Sequence[tuple[int, int]] = (),
    inputs: Sequence[int] = (),
    again: tuple[int, int] | None = None,
) -> Picture:
    """Boxes from left to right with arrows between; `skips` are residual connections, from box to box.

    The notes below the boxes `inputs` go into them; `again` is a way back from one box to an earlier one.
    """
    top = 1.55 if skips or again else 0.95
    figure, (axis,) = canvas(width=_PITCH * len(boxes) + 0.1, height=top + 0.65)
    axis.set(xlim=(-0.1, _PITCH * len(boxes)), ylim=(-0.85, top))
    axis.set_axis_off()
    for number, (label, color) in enumerate(boxes):
        left = _PITCH * number
        style = "round,pad=0.02,rounding_size=0.08"
        axis.add_patch(
            FancyBboxPatch((left, 0), _BOX, 0.8, boxstyle=style, facecolor=FAINT, edgecolor=color, linewidth=1.6)
        )
        axis.text(left + _BOX / 2, 0.4, label, ha="center", va="center", fontsize=9, color=INK)
        if number:
            _arrow(axis, (left - _PITCH + _BOX + 0.03, 0.4), (left - 0.03, 0.4))
        if number < len(notes):
            axis.text(left + _BOX / 2, -0.45, notes[number], ha="center", va="center", fontsize=9, color=INK)
    for number in inputs:
        _arrow(axis, (_PITCH * number + _BOX / 2, -0.2), (_PITCH * number + _BOX / 2, -0.03))
    if again:
        start, end = (_PITCH * number + _BOX / 2 for number in again)
        axis.plot([start, start, end], [0.85, 1.2, 1.2], color=NEUTRAL, linewidth=1.4)
        _arrow(axis, (end, 1.2), (end, 0.83), NEUTRAL)
        axis.text((start + end) / 2, 1.36, "for the next token", ha="center", va="center", fontsize=9, color=INK)
    for start, end in skips:
        left, right = _PITCH * start + (_PITCH + _BOX) / 2, _PITCH * end + _BOX / 2
        axis.plot([left, left, right], [0.45, 1.2, 1.2], color=NEUTRAL, linewidth=1.4)
        _arrow(axis, (right, 1.2), (right, 0.83), NEUTRAL)
        axis.text((left + right) / 2, 1.36, "+ x", ha="center", va="center", fontsize=9, color=INK)
    return figure


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "shrinkA": 0, "shrinkB": 0})


def _attention() -> Picture:
    scores = X[0] @ X[0].T / 2
    weights = scores.softmax(-1)
    return _matrices(
        ("scores  QKᵀ / √d_k", scores, QUERY),
        "→",
        ("weights  (softmax)", weights, INK),
        "·",
        ("values  V", X[0], VALUE),
        "=",
        ("output", weights @ X[0], VALUE),
        decimals=2,
    )


def _heads() -> Picture:
    first, second = pieces.split_heads(X, 2)[0]
    return _matrices(
        ("x: 3 tokens, 4 channels", X[0], INK), "→", ("head 1", first, QUERY), ",", ("head 2", second, KEY)
    )


def _multi_head() -> Picture:
    heads = pieces.split_heads(X, 2)[0]
    weights = [(head @ head.T / 2**0.5).softmax(-1) for head in heads]
    joined = torch.cat([w @ head for w, head in zip(weights, heads, strict=True)], dim=1)
    return _matrices(
        ("weights of head 1", weights[0], QUERY), ",", ("weights of head 2", weights[1], KEY), "→",
        ("both outputs, joined", joined, VALUE), decimals=2,
    )  # fmt: skip


def _sinusoids() -> Picture:
    table = pieces.sinusoids(24, 8)
    figure, axes = canvas(1, 2, width=8.6, height=2.6)
    axes[0].imshow(table, cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axes[0].set(xlabel="channel", ylabel="position", title="a row for each position")
    for channel, color in ((0, QUERY), (2, KEY), (4, VALUE)):
        axes[1].plot(table[:, channel], color=color, label=f"channel {channel}")
    axes[1].set(xlabel="position", title="a hand that turns fast, slower, slowest")
    axes[1].set_ylim(-1.1, 1.1)
    axes[1].legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _layer_norm() -> Picture:
    centered = X[0] - X[0].mean(-1, keepdim=True)
    return _matrices(
        ("x", X[0], INK), "→", ("minus each row's mean", centered, INK), "→",
        ("divided by its std. deviation", torch.nn.functional.layer_norm(X[0], (4,)), ENCODER), decimals=2,
    )  # fmt: skip


def _feed_forward() -> Picture:
    network = feed_forward_example()
    wide = network.up(X[0])
    return _matrices(
        ("x", X[0], INK), "→", ("up", wide, KEY), "→", ("max(0, ·)", wide.relu(), KEY), "→",
        ("down", network(X)[0], VALUE),
    )  # fmt: skip


def _encoder_layer() -> Picture:
    return _flow(
        ("x", INK), ("self-attention", ENCODER), ("add, norm", ENCODER), ("feed-forward", ENCODER),
        ("add, norm", ENCODER),
        notes=("a row for\neach token", "tokens meet", "", "each token\nby itself", "same shape\nas x"),
        skips=((0, 2), (2, 4)),
    )  # fmt: skip


def _decoder_layer() -> Picture:
    return _flow(
        ("x", INK), ("masked\nself-attention", DECODER), ("add, norm", DECODER), ("cross-attention", KEY),
        ("add, norm", DECODER), ("feed-forward", DECODER), ("add, norm", DECODER),
        notes=("what is\nwritten so far", "looks back", "", "memory:\nkeys, values", "", "each token\nby itself", ""),
        skips=((0, 2), (2, 4), (4, 6)),
        inputs=(3,),
    )  # fmt: skip


def _masks() -> Picture:
    scores = X[0] @ X[0].T / 2
    hidden = scores.masked_fill(~SEES_ALL.tril(), float("-inf"))
    return _matrices(
        ("scores", scores, QUERY), "→", ("hide the future", hidden, DECODER), "→",
        ("weights", hidden.softmax(-1), INK), decimals=2,
    )  # fmt: skip


def _transformer() -> Picture:
    return _flow(
        ("source ids", INK), ("embedding · √d\n+ positions", INK), ("encoder layers", ENCODER),
        ("decoder layers", DECODER), ("target\nembedding,\ntransposed", INK), ("a logit for\nevery token", INK),
        notes=("", "", "all at once", "target embedding\n· √d + positions", "the same matrix\nas going in", ""),
        inputs=(3,),
    )  # fmt: skip


def _loss() -> Picture:
    _, tgt_in, tgt_out = pieces.batch_of(PAIRS)
    names = ("pair 1", "pair 2")
    return _matrices(
        ("decoder is given", tgt_in.float(), DECODER), "", ("decoder has to name", tgt_out.float(), VALUE),
        "", ("counts in the loss", (tgt_out != 0).float(), INK), names=names, decimals=0, shades_values=False,
    )  # fmt: skip


def _train() -> Picture:
    steps, warmup_steps = 3_000, 300
    rates = [min(step / warmup_steps, (steps - step + 1) / (steps - warmup_steps)) for step in range(1, steps + 1)]
    figure, (axis,) = canvas(width=6.4, height=2.4)
    axis.plot(range(1, steps + 1), rates, color=ENCODER)
    axis.set(xlabel="step", ylabel="learning rate / highest", title="up in a tenth of the steps, then down to nothing")
    return figure


def _greedy_decode() -> Picture:
    return _flow(
        ("BEGIN", INK), ("decoder", DECODER), ("logits of the\nlast position", DECODER), ("the highest one", VALUE),
        ("append it", INK), ("cut at END", INK),
        notes=("", "sees all that\nis written", "", "argmax", "", "after the last"),
        again=(4, 1),
    )  # fmt: skip


_PICTURES: dict[str, Callable[[], Picture]] = {
    "attention": _attention,
    "heads": _heads,
    "multi-head": _multi_head,
    "sinusoids": _sinusoids,
    "layer-norm": _layer_norm,
    "feed-forward": _feed_forward,
    "encoder-layer": _encoder_layer,
    "decoder-layer": _decoder_layer,
    "masks": _masks,
    "transformer": _transformer,
    "loss": _loss,
    "train": _train,
    "greedy-decode": _greedy_decode,
}
