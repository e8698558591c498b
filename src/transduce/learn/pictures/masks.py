"""The three masks of a real batch: who may look where, and why not elsewhere."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor

from transduce.data import Batch
from transduce.learn.pictures.canvas import DECODER, ENCODER, FAINT, INK, KEY, NEUTRAL, Picture, canvas, name_ticks
from transduce.learn.tasks import PAD
from transduce.model import causal_mask, padding_mask

_FUTURE, _PADDING, _LOOKS = 0, 1, 2
_KINDS = (("encoder, itself", ENCODER), ("decoder, itself", DECODER), ("cross-attention", KEY))


def batch_masks(batch: Batch, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> Picture:
    """A row of maps for each pair of the batch; `sources` and `targets` are its tokens, padding included.

    Made by the shipped functions. Names of padded queries are grey: their rows are computed and read by nobody.
    """
    src_len, tgt_len = batch.src.size(1), batch.tgt_in.size(1)
    real_src = padding_mask(batch.src, PAD)[:, 0, 0]
    figure, axes = canvas(len(sources), len(_KINDS), width=8.4, height=2.6 * len(sources) + 0.4)
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        of_source = real_src[number]
        causal = causal_mask(tgt_len)
        masks = (of_source.expand(src_len, -1), causal, of_source.expand(tgt_len, -1))
        sides = ((source, source), (target, target), (target, source))
        for axis, mask, (queries, keys), (title, colour) in zip(
            axes[3 * number : 3 * number + 3], masks, sides, _KINDS, strict=True
        ):
            hidden = _FUTURE if mask is causal else _PADDING
            axis.imshow(_codes(mask, hidden).numpy(), cmap=ListedColormap(["white", NEUTRAL, colour]), vmin=0, vmax=2)
            name_ticks(axis, queries=queries, keys=keys)
            axis.set_title(title)
            axis.set_xticks(torch.arange(0.5, len(keys) - 1).tolist(), minor=True)
            axis.set_yticks(torch.arange(0.5, len(queries) - 1).tolist(), minor=True)
            axis.grid(which="minor", color=FAINT)
            axis.tick_params(which="minor", length=0)
            axis.spines[["top", "right"]].set_visible(True)
            real = batch.tgt_in[number] != PAD if queries is target else of_source
            for label, is_real in zip(axis.get_yticklabels(), real.tolist(), strict=True):
                label.set_color(INK if is_real else NEUTRAL)
        axes[3 * number].set_ylabel("query (who looks)")
    for axis in axes[-3:]:
        axis.set_xlabel("key (what is looked at)")
    patches = [Patch(facecolor=ENCODER, label="in colour: may look")]
    patches += [Patch(facecolor=NEUTRAL, label="hidden: padding")]
    patches += [Patch(facecolor="white", edgecolor=NEUTRAL, label="hidden: future")]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _codes(mask: Bool[Tensor, "queries keys"], hidden: int) -> Tensor:
    return torch.where(mask, _LOOKS, hidden)
