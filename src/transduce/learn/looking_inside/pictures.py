"""Pictures of what is inside a trained model."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from transduce.learn import maps
from transduce.learn.canvas import DECODER, ENCODER, INK, KEY, NEUTRAL, SERIES, Picture, canvas
from transduce.learn.looking_inside.experiments import Alignment, Head, Lens, Pruning, Roles

Names = Sequence[str]
_KINDS = {"encoder": ENCODER, "self": DECODER, "cross": KEY}


def roles(found: Roles) -> Picture:
    """What share each head of the encoder gives to neighbors, as stacked bars; the rest goes to all other letters."""
    figure, (axes,) = canvas(width=8.0, height=2.8)
    names = [short(head) for head in found.shares]
    bottom = np.zeros(len(names))
    for place, color in zip(("the one before", "itself", "the next one"), SERIES, strict=False):
        values = np.array([of_head[place] for of_head in found.shares.values()])
        axes.bar(names, values, bottom=bottom, color=color, label=place, width=0.7)
        bottom += values
    axes.bar(names, 1 - bottom, bottom=bottom, color="none", edgecolor=NEUTRAL, width=0.7, label="all others")
    axes.set(ylabel="share of the weight", xlabel="head (layer.number)", ylim=(0, 1))
    axes.tick_params(axis="x", rotation=30)
    figure.legend(loc="outside right center", title="letter looked at")
    return figure


def alignment(found: Alignment) -> Picture:
    """How far through the output the decoder writes, and how far through the word it looks."""
    figure, (axes,) = canvas(width=4.6, height=3.6)
    written, looked = found.centre.numpy().T
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", label="straight line")
    jitter = np.random.default_rng(0).normal(0, 0.008, len(written))
    axes.scatter(written + jitter, looked, s=5, alpha=0.25, color=KEY)
    axes.set(xlabel="place in the output, 0 to 1", ylabel="center of attention in the word, 0 to 1")
    axes.legend(loc="upper left")
    return figure


def head_maps(weights: Float[Tensor, "heads queries keys"], title: str, *, tokens: tuple[Names, Names]) -> Picture:
    """The weights of every head of one attention; `tokens` are the names of its queries and of its keys."""
    queries, keys = tokens
    return maps.head_maps({"": weights}, queries=queries, keys=keys, title=title)


def pruning(found: Pruning) -> Picture:
    """What silencing each head costs, the largest cost first; a dot where only its map was made flat."""
    figure, (axes,) = canvas(width=9.0, height=2.9)
    heads = sorted(found.costs, key=lambda head: -found.costs[head])
    colors = [_KINDS[kind_of(head)] for head in heads]
    axes.bar([short(head) for head in heads], [found.costs[head] for head in heads], color=colors, width=0.7)
    axes.plot([found.flat[head] for head in heads], "o", color=INK, markersize=4, label="only map made flat")
    axes.axhline(1, color=NEUTRAL, linestyle=":")
    axes.set(ylabel="accuracy lost\n(percentage points)", xlabel="head", title="One head silenced at a time")
    axes.tick_params(axis="x", rotation=70, labelsize=8)
    for kind, color in _KINDS.items():
        names = {"encoder": "encoder self-attention", "self": "decoder self-attention", "cross": "cross-attention"}
        axes.bar([0], [0], color=color, label=names[kind])
    axes.legend()
    return figure


def lens(found: Lens, *, answer: Sequence[str]) -> Picture:
    """The most likely phoneme at each place, read after each part; green where it is the final output."""
    figure, (axes,) = canvas(width=max(5.0, 0.8 * len(answer) + 2.5), height=0.55 * len(found.example) + 0.9)
    right = np.array([[a == b for a, b in zip(row, answer, strict=True)] for row in found.example.values()])
    axes.imshow(right, cmap="Greens", vmin=0, vmax=2.2, aspect="auto")
    for y, row in enumerate(found.example.values()):
        for x, token in enumerate(row):
            axes.text(x, y, token, ha="center", va="center", fontsize=10)
    axes.set_yticks(range(len(found.example)), list(found.example))
    axes.set_xticks(range(len(answer)), [f"{place + 1}" for place in range(len(answer))])
    axes.set(title="Most likely phoneme after each part", xlabel="place in the output")
    axes.tick_params(length=0)
    return figure


def shares(found: Mapping[str, float]) -> Picture:
    """Agreement with the final output, by part."""
    figure, (axes,) = canvas(width=6.5, height=0.6 + 0.36 * len(found))
    bars = axes.barh(list(found), list(found.values()), color=DECODER, height=0.6)
    axes.bar_label(bars, [f"{value:.0%}" for value in found.values()], padding=4)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.12), xlabel="share of places that already have the final phoneme", ylabel="read after")
    return figure


def short(head: Head) -> str:
    """ "encoder.layers.0.self_attention", 2 -> "enc 1.3": layer and head, counted from 1."""
    name, number = head
    kind = {"encoder": "enc", "self": "dec", "cross": "cross"}[kind_of(head)]
    return f"{kind} {int(name.split('.')[2]) + 1}.{number + 1}"


def kind_of(head: Head) -> str:
    """ "encoder", "self" (of the decoder) or "cross"."""
    name, _ = head
    return "encoder" if name.startswith("encoder") else "cross" if "cross" in name else "self"
