"""How a translator learned, and what its scores look like from several sides."""

from collections.abc import Mapping, Sequence

import numpy as np

from transduce.learn.canvas import DECODER, ENCODER, FAINT, NEUTRAL, Picture, canvas


def learning(rows: Sequence[Mapping[str, float]]) -> Picture:
    """Loss in training, and loss and BLEU on validation pairs, over the steps of a run's `metrics.jsonl`."""
    figure, (left, right) = canvas(1, 2, height=2.8)
    training = [row for row in rows if row["kind"] == "training"]
    validation = [row for row in rows if row["kind"] == "validation"]
    left.plot([row["step"] for row in training], [row["loss"] for row in training], color=NEUTRAL, label="training")
    steps = [row["step"] for row in validation]
    left.plot(steps, [row["loss"] for row in validation], "o-", color=ENCODER, label="validation, unsmoothed")
    left.set(xlabel="step", ylabel="cross-entropy (nats per token)", title="Loss")
    left.legend()
    right.plot(steps, [row["bleu"] for row in validation], "o-", color=DECODER)
    right.set(xlabel="step", ylabel="BLEU", title="BLEU of 100 validation pairs, greedy", ylim=(0, None))
    return figure


def bars_of(scores: Mapping[str, float], *, unit: str) -> Picture:
    """One bar for each way to score, with its number; names on the left."""
    figure, (axes,) = canvas(width=7.5, height=0.5 + 0.38 * len(scores))
    names, values = list(scores), list(scores.values())
    bars = axes.barh(names, values, color=[DECODER if i == 0 else NEUTRAL for i in range(len(names))], height=0.6)
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel=unit, xlim=(0, max(values) * 1.12))
    axes.tick_params(axis="y", length=0)
    return figure


def lengths(sources: Sequence[int], answers: Sequence[int], references: Sequence[int]) -> Picture:
    """Words in each output against words in its reference, and how many sentences there are of each length."""
    figure, (left, right) = canvas(1, 2, height=3.0)
    largest = max(*answers, *references, *sources)
    left.plot([0, largest], [0, largest], color=FAINT, zorder=0)
    jitter = np.random.default_rng(1).uniform(-0.3, 0.3, (2, len(answers)))  # else equal points hide each other
    left.scatter(np.add(references, jitter[0]), np.add(answers, jitter[1]), s=5, color=DECODER, alpha=0.4)
    left.set(xlabel="words in the reference", ylabel="words in the output", title="Long enough?")
    bins = np.arange(0.5, largest + 1).tolist()
    for counts, color, name in ((sources, ENCODER, "sources"), (answers, DECODER, "outputs")):
        right.hist(counts, bins, histtype="step", color=color, label=name, linewidth=1.5)
    right.set(xlabel="words in the sentence", ylabel="sentences", title="Lengths")
    right.legend()
    return figure
