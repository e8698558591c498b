"""Pictures of the whole network: a batch learnt by heart, its three attentions, its parameters."""

from collections.abc import Sequence

from transduce.learn.experiments.architecture import ByHeart, Size
from transduce.learn.pictures.canvas import (
    DECODER,
    ENCODER,
    FAINT,
    INK,
    KEY,
    NEUTRAL,
    VALUE,
    WEIGHTS,
    Picture,
    canvas,
    name_ticks,
)

_PART_COLOURS = {
    "embedding": NEUTRAL,
    "feed_forward": VALUE,
    "self_attention": ENCODER,
    "cross_attention": KEY,
    "norm": DECODER,
}


def by_heart_curve(found: ByHeart) -> Picture:
    """The loss of one batch, step after step."""
    figure, (axes,) = canvas(width=6.4, height=2.8)
    axes.plot(range(1, len(found.training.losses) + 1), found.training.losses, color=ENCODER)
    axes.axhline(0.01, color=INK, linestyle=":", linewidth=1.2)
    axes.text(1, 0.011, "0.01", va="bottom", fontsize=9)
    axes.set(title="One batch, by heart", xlabel="step", ylabel="loss / nats per token", yscale="log")
    axes.grid(color=FAINT)
    return figure


def three_attentions(found: ByHeart, row: int, source: Sequence[str], target: Sequence[str]) -> Picture:
    """Mean over heads of the last layers' weights for one row; `source` and `target` are its tokens as they go in."""
    maps = found.attention(row)
    last = len(list(found.model.decoder.layers)) - 1
    figure, axes = canvas(1, 3, width=9.4, height=3.6)
    shown = (
        ("encoder, itself", f"encoder.layers.{last}.self_attention", source, source),
        ("decoder, itself", f"decoder.layers.{last}.self_attention", target, target),
        ("cross-attention", f"decoder.layers.{last}.cross_attention", target, source),
    )
    for axis, (title, name, queries, keys) in zip(axes, shown, strict=True):
        image = axis.imshow(maps[name][0].mean(dim=0).numpy(), cmap=WEIGHTS, vmin=0, vmax=1)
        name_ticks(axis, queries=queries, keys=keys)
        axis.set(title=title, xlabel="key")
    axes[0].set_ylabel("query")
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
    return figure


def parameter_bars(found: Size) -> Picture:
    """Where the parameters of the base model are."""
    figure, (axes,) = canvas(width=8.0, height=2.4)
    parts = sorted(found.parts.items(), key=lambda part: part[1])
    for place, (name, count) in enumerate(parts):
        axes.barh(place, count / 1e6, color=_PART_COLOURS[name])
        axes.text(count / 1e6 + 0.2, place, f"{count / 1e6:.2f} ({count / found.base:.2%})", va="center", fontsize=9)
    names = [name.replace("_", "-") for name, _ in parts]
    axes.set_yticks(range(len(names)), names)
    axes.set(title="Parameters of the base model", xlabel="millions", xlim=(0, 1.2 * parts[-1][1] / 1e6))
    return figure
