"""Maps of many heads."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from transduce.learn.canvas import WEIGHTS, Picture, canvas, name_ticks


def head_maps(
    maps: Mapping[str, Float[Tensor, "heads queries keys"]],
    *,
    queries: Sequence[str],
    keys: Sequence[str],
    title: str = "",
) -> Picture:
    """Weights of every head, on one scale from 0 to 1: a row of maps for each attention, by its name, or none ("")."""
    num_heads = max(len(heads) for heads in maps.values())
    size = min(2.5, 9.0 / num_heads)
    room = 1.2 if num_heads == 1 else 0.0  # for names and color bar, which would leave a single map little
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
