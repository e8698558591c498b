"""Pictures of chapters 8 and 9: what training pays, what searches find, where slips lead."""

import numpy as np
from matplotlib.ticker import MultipleLocator, PercentFormatter

from transduce.learn.canvas import (
    DECODER,
    ENCODER,
    FAINT,
    INK,
    NEUTRAL,
    SERIES,
    WEIGHTS,
    Picture,
    canvas,
    name_ticks,
)
from transduce.learn.training_recipe.batches import Batching
from transduce.learn.transformer.decoding.experiments import LONG, Lengths, OwnWriting, Searches, Unshifted
from transduce.training.config import OptimConfig
from transduce.training.optim import learning_rate


def smoothed_target(right: int, label_smoothing: float, num_ids: int) -> Picture:
    """The distribution that the model is to give: hard, and smoothed."""
    figure, (axes,) = canvas(width=6.5, height=2.4)
    places = np.arange(num_ids)
    hard = (places == right).astype(float)
    axes.bar(places - 0.2, hard, 0.4, color=FAINT, edgecolor=NEUTRAL, label="without smoothing")
    smoothed = (1 - label_smoothing) * hard + label_smoothing / num_ids
    axes.bar(places + 0.2, smoothed, 0.4, color=DECODER, label=f"smoothed by {label_smoothing:g}")
    axes.set_xticks(places)
    axes.set_xlabel("token id")
    axes.set_ylabel("probability asked for")
    axes.legend()
    return figure


def schedules(num_steps: int = 20_000, warmup_steps: int = 4_000, d_model: int = 512) -> Picture:
    """The learning rate of each step: equation 3, and what else is shipped, with the same peak."""
    figure, (axes,) = canvas(width=7.5, height=2.8)
    steps = np.unique(np.linspace(1, num_steps, 500).astype(int))
    names = {"inverse_sqrt": "equation 3", "linear": "linear", "cosine": "half a cosine wave", "constant": "constant"}
    for (schedule, name), color, style in zip(names.items(), SERIES, ("-", "--", "-.", ":"), strict=False):
        config = OptimConfig(schedule=schedule, warmup_steps=warmup_steps)  # type: ignore[arg-type]
        rates = [1e4 * learning_rate(config, int(step), d_model=d_model, num_steps=num_steps) for step in steps]
        axes.plot(steps, rates, style, color=color, label=name)
    axes.axvline(warmup_steps, color=NEUTRAL, linewidth=0.8)
    axes.annotate("end of the warm-up", (warmup_steps, 0.0), (6, 4), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate (in 10⁻⁴)")
    axes.set_ylim(bottom=0)
    figure.legend(fontsize=9, loc="outside right center")
    return figure


def padding(batching: Batching) -> Picture:
    """Which share of the computed positions is tokens, and which padding."""
    figure, (axes,) = canvas(width=7.5, height=2.0)
    names, shares = zip(*batching.as_rows, strict=True)
    places = np.arange(len(names))[::-1]
    axes.barh(places, [1 - share for share in shares], color=ENCODER, label="tokens")
    axes.barh(places, shares, left=[1 - share for share in shares], color=FAINT, hatch="//", label="padding")
    for place, share in zip(places, shares, strict=True):
        axes.annotate(f"{share:.0%}", (1.0, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, names)
    axes.set_xlabel("share of computed positions")
    axes.set_xlim(0, 1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.3), ncols=2)
    return figure


def unshifted(found: Unshifted) -> Picture:
    """Two losses, of which the better one is a model that can do nothing."""
    figure, (left, right) = canvas(1, 2, width=9, height=2.8)
    for training, name, color, style in (
        (found.shifted, "shifted by one", ENCODER, "-"),
        (found.unshifted, "shift forgotten", DECODER, "--"),
    ):
        left.plot(training.smoothed(10), style, color=color, label=name)
    left.set_xlabel("step")
    left.set_ylabel("training loss (nats per token)")
    left.legend()
    values = (found.told, found.own, found.own_shifted)
    bars = right.bar(
        [
            "tokens right\nwhen told\n(shift forgotten)",
            "outputs right\nwhen alone\n(shift forgotten)",
            "outputs right\nwhen alone\n(shifted)",
        ],
        values,
        color=(FAINT, DECODER, ENCODER),
        edgecolor=NEUTRAL,
    )
    right.bar_label(bars, [f"{value:.0%}" for value in values])
    right.set_ylim(0, 1.12)
    right.set_ylabel("share right")
    return figure


def own_writing(found: OwnWriting) -> Picture:
    """Share of right tokens by position, told and left alone."""
    figure, (axes,) = canvas(width=9.0, height=3.0)
    at = range(1, len(found.told_at) + 1)
    axes.plot(at, found.told_at, "o-", color=ENCODER, label=f"told the right tokens before: {found.told:.0%}")
    axes.plot(at, found.own_at, "s--", color=DECODER, label=f"after its own tokens: {found.own:.0%}")
    axes.axhline(found.whole, color=INK, linestyle=":", label=f"whole outputs right, either way: {found.whole:.0%}")
    axes.set_xlabel("position in the output")
    axes.set_ylabel("share of right tokens")
    axes.set_xticks(list(at))
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def search_errors(found: Searches) -> Picture:
    """What each beam size misses, and the log-probability it finds."""
    figure, (left, right) = canvas(1, 2, width=9, height=2.8)
    sizes = list(found.found)
    bars = left.bar([str(size) for size in sizes], [found.misses(size) for size in sizes], color=DECODER)
    left.bar_label(bars, [f"{found.misses(size):.0%}" for size in sizes])
    left.set_xlabel("beam size (1 is greedy)")
    left.set_ylabel("sources whose most probable\noutput is missed")
    left.yaxis.set_major_locator(MultipleLocator(0.05))
    left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    best = sum(answer.log_prob for answer in found.likeliest) / len(found.likeliest)
    right.plot(range(len(sizes)), [found.mean_log_prob(size) for size in sizes], "o-", color=DECODER, label="found")
    right.axhline(best, color=INK, linestyle=":", label="the most probable of all")
    right.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    right.set_xlabel("beam size")
    right.set_ylabel("mean log-probability (nats)")
    right.legend()
    return figure


def lengths(found: Lengths) -> Picture:
    """Right and empty answers by beam size, without and with length normalization."""
    figure, both = canvas(1, 2, width=9, height=2.8)
    for axes, (penalty, right) in zip(both, found.right.items(), strict=True):
        at = [str(size) for size in found.beam_sizes]
        axes.plot(at, right, "o-", color=ENCODER, label="right, in any spelling")
        axes.plot(at, found.empty[penalty], "s--", color=DECODER, label="empty")
        axes.set_title(
            "by probability alone" if not penalty else r"divided by $((5 + \mathrm{length})\, /\, 6)^\alpha$"
        )
        axes.set_xlabel("beam size (1 is greedy)")
        axes.set_ylabel(f"share of outputs for\n{LONG} symbols")
        axes.set_ylim(-0.05, 1.1)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def alignment(weights: np.ndarray, *, source: list[str], target: list[str]) -> Picture:
    """Which source token (columns) each target token (rows) looked at; each row sums to 1."""
    figure, (axes,) = canvas(width=1.5 + 0.45 * len(source), height=1.4 + 0.33 * len(target))
    image = axes.imshow(weights, cmap=WEIGHTS, vmin=0, vmax=1, aspect="auto")
    name_ticks(axes, queries=target, keys=source)
    axes.set_xlabel("letters: keys")
    axes.set_ylabel("phonemes that go in: queries")
    figure.colorbar(image, ax=axes, label="attention weight")
    return figure
