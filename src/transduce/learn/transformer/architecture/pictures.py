"""Pictures of the whole network: a batch learned by heart, its three attentions, its parameters."""

from transduce.learn.canvas import (
    DECODER,
    ENCODER,
    FAINT,
    INK,
    KEY,
    NEUTRAL,
    VALUE,
    Picture,
    canvas,
)
from transduce.learn.transformer.architecture.experiments import ByHeart, Size

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
    axes.set(title="One batch, by heart", xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.grid(color=FAINT)
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
