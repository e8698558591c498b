"""Pictures of one sentence on its way through the network, and of the rows that tell it where its tokens stand."""

from collections.abc import Sequence

from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from transduce.learn.pictures.canvas import DECODER, FAINT, INK, SIGNED, WEIGHTS, Picture, canvas, name_ticks
from transduce.learn.tracing import Trace
from transduce.tokenizer import Tokenizer


def from_ids_to_vectors(trace: Trace) -> Picture:
    """What the encoder is given: rows of the embedding, rows of the positions, and their sum."""
    figure, axes = canvas(1, 3, width=10.4, height=2.9)
    maps = (trace.embedded, trace.positions, trace.embedded + trace.positions)
    titles = ("embedding · √d_model", "+ position", "= what enters the encoder")
    most = float(max(values.abs().max() for values in maps))
    for axis, values, title in zip(axes, maps, titles, strict=True):
        image = axis.imshow(values.numpy(), cmap=SIGNED, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        axis.set(title=title, xlabel="channel")
        axis.set_yticks(range(len(trace.source)), [])
    names = [f"{token}  {i}" for token, i in zip(trace.source, trace.source_ids, strict=True)]
    axes[0].set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    figure.colorbar(image, ax=axes, label="value")
    return figure


def through_the_layers(trace: Trace, names: Sequence[str], tokens: Sequence[str], title: str = "") -> Picture:
    """The same tokens after each of the modules `names`: as many rows and channels everywhere."""
    figure, axes = canvas(1, len(names), width=1.2 + 1.9 * len(names), height=2.8)
    for axis, name in zip(axes, names, strict=True):
        values = trace.steps[name]
        if len(values) != len(tokens):
            raise ValueError(f"{name} has {len(values)} rows, and there are {len(tokens)} tokens.")
        most = float(values.abs().max())
        axis.imshow(values.numpy(), cmap=SIGNED, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        axis.set(title=_title(name), xlabel="channel")
        axis.title.set_fontsize(9)
        axis.set_yticks(range(len(tokens)), [])
    axes[0].set_yticks(range(len(tokens)), [token.replace("$", r"\$") for token in tokens])
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def cross_attention(trace: Trace, name: str) -> Picture:
    """Every head of one cross-attention: rows are what was written, columns the source."""
    weights = trace.attention[name]
    return attention_heads(weights, trace.written, trace.source)


def attention_heads(
    weights: Float[Tensor, "heads queries keys"], queries: Sequence[str], keys: Sequence[str]
) -> Picture:
    """One map for each head, on one scale from 0 to 1."""
    figure, axes = canvas(1, len(weights), width=2.5 * len(weights) + 0.6, height=3.4)
    for number, (axis, head) in enumerate(zip(axes, weights, strict=True)):
        image = axis.imshow(head.numpy(), cmap=WEIGHTS, vmin=0, vmax=1, interpolation="nearest")
        name_ticks(axis, queries=queries if number == 0 else [""] * len(queries), keys=keys)
        axis.set(title=f"head {number + 1}", xlabel="key")
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("query")
    figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
    return figure


def next_tokens(trace: Trace, tokenizer: Tokenizer, position: int, count: int = 6) -> Picture:
    """Scores and probabilities of the likeliest tokens after `position`."""
    found = trace.next_tokens(tokenizer, position, count)
    names = [name.replace("$", r"\$") for name, _, _ in found]
    figure, (left, right) = canvas(1, 2, width=8.4, height=2.4)
    for axis, values, label in ((left, 1, "logit"), (right, 2, "probability")):
        numbers = [float(row[values]) for row in found]
        _bars(axis, names, numbers, "{:.1f}" if label == "logit" else "{:.2%}")
        axis.set(xlabel=label, title="scores of what may follow" if label == "logit" else "after the softmax")
    right.set_xlim(0, 1.2)
    figure.suptitle(f"after {' '.join(trace.written[: position + 1])}".replace("$", r"\$"), fontsize=10)
    return figure


def table_and_similarity(table: Float[Tensor, "positions channels"]) -> Picture:
    """The sinusoids as a map, and the product of every row with every other."""
    figure, (left, right) = canvas(1, 2, width=9.0, height=3.3)
    image = left.imshow(table.numpy(), cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    left.set(title="one row for each position", xlabel="channel", ylabel="position")
    figure.colorbar(image, ax=left, label="value")
    products = table @ table.T / (table.size(1) / 2)
    image = right.imshow(products.numpy(), cmap=SIGNED, vmin=-1, vmax=1, interpolation="nearest")
    right.set(title="how alike two rows are", xlabel="position", ylabel="position")
    figure.colorbar(image, ax=right, label="product / (d_model / 2)")
    return figure


def _title(name: str) -> str:
    """layer 0, self_attention of "encoder.layers.0.self_attention"."""
    _, _, number, part = name.split(".")
    return f"layer {number}\n{part}"


def _bars(axis: Axes, names: Sequence[str], values: Sequence[float], form: str) -> None:
    colours = [DECODER, *[FAINT] * (len(values) - 1)]
    axis.barh(range(len(values)), values, color=colours, edgecolor=INK, linewidth=0.5)
    axis.set_yticks(range(len(values)), names)
    axis.invert_yaxis()
    for row, value in enumerate(values):
        axis.text(max(value, 0), row, f" {form.format(value)}", va="center", fontsize=9, color=INK)
    axis.margins(x=0.18)
