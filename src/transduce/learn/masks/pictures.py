"""Pictures of masks: who may look where, what depends on what, and what happens without."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from torch import Tensor

from transduce.data.batches import Batch
from transduce.learn.canvas import (
    DECODER,
    ENCODER,
    FAINT,
    INK,
    KEY,
    MARKERS,
    NEUTRAL,
    SERIES,
    WEIGHTS,
    Picture,
    canvas,
    name_ticks,
)
from transduce.learn.masks.experiments import BatchMates, Gradients, NoCausalMask
from transduce.learn.tasks import PAD
from transduce.model import causal_mask, padding_mask

_MAY_LOOK = ListedColormap(["white", ENCODER])
_FUTURE, _PADDING, _LOOKS = 0, 1, 2
_ATTENTIONS = (("encoder, itself", ENCODER), ("decoder, itself", DECODER), ("cross-attention", KEY))
MaskMap = tuple[str, Bool[Tensor, "queries keys"], Sequence[str], Sequence[str]]  # title, mask, queries, keys


def mask_maps(maps: Sequence[MaskMap], columns: int = 3) -> Picture:
    """Masks as maps: a row is who looks, a column what is looked at, blue where it may look."""
    rows = -(-len(maps) // columns)
    figure, axes = canvas(rows, columns, width=3.1 * columns, height=3.1 * rows)
    for axis, (title, mask, queries, keys) in zip(axes, maps, strict=False):
        axis.imshow(mask.int().numpy(), cmap=_MAY_LOOK, vmin=0, vmax=1, interpolation="nearest")
        name_ticks(axis, queries=queries, keys=keys)
        axis.set(title=title, xlabel="key", ylabel="query")
        _grid(axis, mask)
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    return figure


def batch_masks(batch: Batch, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> Picture:
    """A row of maps for each pair of the batch; `sources` and `targets` are its tokens, padding included.

    Made by the package's functions. Names of padded queries are gray: their rows are computed, but nothing reads them.
    """
    src_len, tgt_len = batch.src.size(1), batch.tgt_in.size(1)
    real_src = padding_mask(batch.src, PAD)[:, 0, 0]
    figure, axes = canvas(len(sources), len(_ATTENTIONS), width=8.4, height=3.3 * len(sources) + 0.4)
    grid = axes[0].get_gridspec()
    assert grid is not None
    grid.set_width_ratios([src_len, tgt_len, src_len])  # so that cells are of one size everywhere
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        of_source = real_src[number]
        causal = causal_mask(tgt_len)
        masks = (of_source.expand(src_len, -1), causal, of_source.expand(tgt_len, -1))
        sides = ((source, source), (target, target), (target, source))
        for axis, mask, (queries, keys), (title, color) in zip(
            axes[3 * number : 3 * number + 3], masks, sides, _ATTENTIONS, strict=True
        ):
            hidden = _FUTURE if mask is causal else _PADDING
            axis.imshow(_codes(mask, hidden).numpy(), cmap=ListedColormap(["white", NEUTRAL, color]), vmin=0, vmax=2)
            name_ticks(axis, queries=queries, keys=keys)
            axis.set_title(title)
            axis.set_xticks(torch.arange(0.5, len(keys) - 1).tolist(), minor=True)
            axis.set_yticks(torch.arange(0.5, len(queries) - 1).tolist(), minor=True)
            axis.grid(which="minor", color=FAINT)
            axis.tick_params(which="minor", length=0)
            axis.spines[:].set(visible=True, color=NEUTRAL)
            axis.set_anchor("N")
            real = batch.tgt_in[number] != PAD if queries is target else of_source
            for label, is_real in zip(axis.get_yticklabels(), real.tolist(), strict=True):
                label.set_color(INK if is_real else NEUTRAL)
        axes[3 * number].set_ylabel("query (who looks)")
    for axis in axes[-3:]:
        axis.set_xlabel("key (what is looked at)")
    may_look = tuple(Patch(facecolor=color) for _, color in _ATTENTIONS)
    patches: list[Any] = [may_look, Patch(facecolor=NEUTRAL), Patch(facecolor="white", edgecolor=NEUTRAL)]
    names = ["may look", "hidden: padding", "hidden: future"]
    side_by_side = {tuple: HandlerTuple(ndivide=None, pad=0)}
    figure.legend(patches, names, loc="outside lower center", ncols=3, fontsize=9, handler_map=side_by_side)
    return figure


def gradient_maps(found: Gradients) -> Picture:
    """How much each output depends on each input: with the causal mask, without, and on the memory."""
    figure, axes = canvas(1, 3, width=9.4, height=3.5)
    titles = ("causal mask", "no causal mask", "cross-attention")
    maps = (found.decoder, found.decoder_without_mask, found.memory)
    most = float(max(values.max() for values in maps))
    for axis, values, title in zip(axes, maps, titles, strict=True):
        image = axis.imshow(values.numpy(), cmap=WEIGHTS, vmin=0, vmax=most, interpolation="nearest")
        axis.set(title=title, xlabel="target input", ylabel="decoder output")
        for i, j in (values == 0).nonzero().tolist():
            axis.text(j, i, "0", ha="center", va="center", fontsize=8, color=DECODER)
    axes[2].set_xlabel("encoder output")
    figure.colorbar(image, ax=axes, label="length of the derivative")
    return figure


def leak_curves(found: NoCausalMask) -> Picture:
    """Training losses beside the least that is possible, and three scores that disagree."""
    figure, (left, right) = canvas(1, 2, width=9.4, height=3.4)
    left.plot(found.honest.smoothed(), color=ENCODER, label="causal mask")
    left.plot(found.leaky.smoothed(), color=DECODER, label="no causal mask")
    left.axhline(found.task.floor, color=INK, linestyle="--", linewidth=1, label="floor: the coins")
    left.set(title="Training loss", xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    left.legend(fontsize=9)
    groups = {
        "next tokens right,\nteacher forcing": (found.honest_told, found.leaky_told),
        "whole outputs right,\nwriting by itself": (found.honest_writing, found.leaky_writing),
    }
    for place, scores in enumerate(groups.values()):
        for side, (score, color) in enumerate(zip(scores, (ENCODER, DECODER), strict=True)):
            x = place + 0.38 * (side - 0.5)
            right.bar(x, score, width=0.36, color=color)
            is_tall = score > 0.1  # then its number has room inside
            style: Any = {"va": "top", "color": "white"} if is_tall else {"va": "bottom", "color": INK}
            right.text(x, score - 0.02 if is_tall else score + 0.02, f"{score:.0%}", ha="center", **style)
    right.hlines(found.task.best_told, -0.45, 0.45, color=INK, linestyle="--", linewidth=1)
    right.set_xticks(range(len(groups)), list(groups))
    right.set(title="Accuracy", ylabel="share right", ylim=(0, 1.12))
    return figure


def batch_mates_curves(found: BatchMates) -> Picture:
    """The share of outputs that change, and of outputs that are right, by how much padding a longer source brings."""
    figure, (left, right) = canvas(1, 2, width=9.4, height=3.2)
    for number, name in enumerate(found.changed):
        style: Any = {"color": SERIES[number], "marker": MARKERS[number], "label": name, "ms": 5}
        left.plot(found.padding, found.changed[name], **style)
        right.plot((0, *found.padding), found.right[name], **style)
    left.set(title="Output differs from the one alone", ylabel="share of sources", ylim=(-0.05, 1.08))
    right.set(title="Output right", ylabel="share of sources", ylim=(-0.05, 1.08))
    for axis in (left, right):
        axis.set_xlabel("padding added (tokens)")
    left.legend(title="padding mask", fontsize=9)
    return figure


def _grid(axis: Axes, mask: Tensor) -> None:
    rows, columns = mask.shape
    for number in range(1, rows):
        axis.axhline(number - 0.5, color=FAINT, linewidth=0.8)
    for number in range(1, columns):
        axis.axvline(number - 0.5, color=FAINT, linewidth=0.8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(True)


def _codes(mask: Bool[Tensor, "queries keys"], hidden: int) -> Tensor:
    return torch.where(mask, _LOOKS, hidden)
