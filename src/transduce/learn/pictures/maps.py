"""Attention as matrices, and maps of many heads."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from transduce.learn.pictures.canvas import INK, KEY, QUERY, SIGNED, VALUE, WEIGHTS, Picture, canvas, name_ticks


def linked_matrices(
    q: Tensor, k: Tensor, weights: Tensor, v: Tensor, out: Tensor, *, queries: Sequence[str], keys: Sequence[str]
) -> Picture:
    """One attention as five matrices: each row of the weights says how the rows of V are mixed."""
    figure, axes = canvas(1, 5, width=10.5, height=2.9)
    parts = (
        (q, "Q", QUERY, queries),
        (k, "K", KEY, keys),
        (weights, "softmax(QKᵀ/√d)", INK, queries),
        (v, "V", VALUE, keys),
        (out, "weights · V", VALUE, queries),
    )
    for axis, (matrix, title, colour, rows) in zip(axes, parts, strict=True):
        values = matrix.detach().numpy()
        is_weights = title.startswith("softmax")
        bound = 1.0 if is_weights else float(np.abs(values).max())
        axis.imshow(
            values,
            cmap=WEIGHTS if is_weights else SIGNED,
            vmin=0 if is_weights else -bound,
            vmax=bound,
            interpolation="nearest",
        )
        columns = keys if is_weights else [""] * values.shape[1]
        name_ticks(axis, queries=rows, keys=columns)
        axis.set_title(title, color=colour)
        axis.tick_params(length=0)
        if is_weights:
            for row, of_row in enumerate(values):
                for column, value in enumerate(of_row):
                    axis.text(
                        column, row, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=7,
                        color="white" if value > 0.6 else INK,
                    )  # fmt: skip
        else:
            axis.set_xlabel(f"{values.shape[1]} channels")
    return figure


def head_maps(
    maps: Mapping[str, Float[Tensor, "heads queries keys"]],
    *,
    queries: Sequence[str],
    keys: Sequence[str],
    title: str = "",
) -> Picture:
    """Weights of every head, on one scale from 0 to 1: a row of maps for each attention, by its name, or none ("")."""
    num_heads = max(len(heads) for heads in maps.values())
    size = min(2.5, 10.0 / num_heads)
    room = 1.2 if num_heads == 1 else 0.0  # for names and colour bar, which would leave a single map little
    figure, axes = canvas(len(maps), num_heads, width=num_heads * size + room, height=len(maps) * (size + 0.25) + 0.4)
    for row, (name, heads) in enumerate(maps.items()):
        for number in range(num_heads):
            axis = axes[row * num_heads + number]
            if number >= len(heads):
                axis.set_axis_off()
                continue
            image = axis.imshow(heads[number].numpy(), cmap=WEIGHTS, vmin=0, vmax=1, interpolation="nearest")
            name_ticks(axis, queries=queries if number == 0 else [""] * len(queries), keys=keys)
            axis.set_title(f"{name}, head {number + 1}" if name else f"head {number + 1}", fontsize=9)
            axis.tick_params(length=0, labelsize=8)
        axes[row * num_heads].set_ylabel("query")
    figure.supxlabel("key", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11, weight="bold")
    figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
    return figure
