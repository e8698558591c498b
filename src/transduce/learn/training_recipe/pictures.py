"""Pictures of the training recipe."""

import math

import numpy as np

from transduce.learn.canvas import DECODER, ENCODER, INK, NEUTRAL, SERIES, Picture, canvas
from transduce.learn.training_recipe.clinic import Clinic
from transduce.learn.training_recipe.experiments import Choices, OverFitting, Smoothing, WarmUp


def warm_up(found: WarmUp) -> Picture:
    """Loss and length of the gradient, with and without a warm-up."""
    figure, (left, right) = canvas(1, 2, width=9, height=2.9)
    for (steps, training), color, style in zip(found.trainings.items(), (DECODER, ENCODER), ("--", "-"), strict=True):
        name = f"warm-up of {steps} steps" if steps else "no warm-up"
        left.plot(training.smoothed(), style, color=color, label=name)
        right.semilogy(training.gradient_norms, style, color=color, linewidth=0.8, label=name)
    left.set(title="Training loss", ylabel="loss (nats per token)")
    right.set(title="Gradient", ylabel="length of the gradient")
    left.legend()
    for axes in (left, right):
        axes.set_xlabel("step")
    return figure


def choices(found: Choices) -> Picture:
    """Every seed of every change: nats per phoneme on new words above the baseline of the same seed."""
    names = [name for name in found.outcomes if name != "baseline"]
    figure, (axes,) = canvas(width=8, height=0.9 + 0.42 * len(names))
    places = np.arange(len(names))[::-1]
    for place, name in zip(places, names, strict=True):
        excess = found.excess(name)
        axes.plot(excess, [place] * len(excess), "o", color=DECODER if np.mean(excess) > 0 else ENCODER, alpha=0.8)
        axes.plot([np.mean(excess)], [place], "|", color=INK, markersize=16)
    axes.axvline(0, color=NEUTRAL, linewidth=0.8)
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlabel("nats per phoneme above the baseline, on new words (left is better); one dot per seed")
    return figure


def smoothing(found: Smoothing) -> Picture:
    """What smoothing changes, seed by seed: cross-entropy and correct words."""
    figure, (left, right) = canvas(1, 2, width=9, height=2.6)
    at = np.arange(len(found.plain))
    panels = (
        (left, "cross-entropy\n(nats per phoneme)\n(lower is better)", lambda outcome: outcome.nll),
        (right, "correct words (%)\n(higher is better)", lambda outcome: outcome.right),
    )
    for axes, label, value in panels:
        plain, smoothed = ([value(outcome) for outcome in side] for side in (found.plain, found.smoothed))
        axes.bar(at - 0.2, plain, 0.4, color=NEUTRAL, label="no smoothing")
        axes.bar(at + 0.2, smoothed, 0.4, color=DECODER, label="smoothing of 0.1")
        axes.set_xticks(at, [f"seed {k + 1}" for k in at])
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.3 * max(*plain, *smoothed, 0.1))
        axes.legend(ncols=2, fontsize=9)
    return figure


def over_fitting(found: OverFitting) -> Picture:
    """Loss on new words along the way, and on the training words at the end, by dropout."""
    figure, (axes,) = canvas(width=7.5, height=3.0)
    for (dropout, outcome), color, mark in zip(found.outcomes.items(), (DECODER, ENCODER), "so", strict=True):
        steps, losses = zip(*outcome.valid, strict=True)
        axes.plot(steps, losses, f"{mark}-", color=color, label=f"dropout {dropout:g}, new words")
        axes.plot(
            steps[-1:],
            [outcome.train_loss],
            mark,
            color=color,
            mfc="none",
            label=f"dropout {dropout:g}, training words at the end",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per phoneme)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9)
    return figure


_CLINIC_TOP = 4.5  # nats per token


def clinic(found: Clinic) -> Picture:
    """Six logs: the loss as the training computed it, the loss on fresh rows, and the length of the gradient."""
    figure, all_axes = canvas(4, 3, width=8.4, height=6.4)
    for k, (letter, patient) in enumerate(found.patients.items()):
        upper, lower = all_axes[k + 3 * (k // 3)], all_axes[k + 3 * (k // 3) + 3]
        upper.plot(patient.training.smoothed(10), color=SERIES[0], label="training loss, as computed")
        upper.plot(patient.steps, patient.valid, "s", color=SERIES[1], markersize=3, label="fresh rows")
        upper.axhline(math.log(10), color=NEUTRAL, linestyle=":", linewidth=0.9, label="log 10: guessing")
        upper.set_ylim(0, _CLINIC_TOP)
        if (highest := max(patient.training.losses)) > _CLINIC_TOP:
            upper.annotate(f"up to {highest:.0f} ↑", (0.5, 0.86), xycoords="axes fraction", fontsize=9)
        upper.set_title(f"{letter} · {patient.right:.0%} of outputs right", fontsize=10)
        upper.tick_params(labelbottom=False)
        norms = patient.training.gradient_norms
        lower.semilogy(range(0, len(norms), 8), norms[::8], color=SERIES[5], linewidth=0.9)
        lower.set_ylim(3e-3, 1e2)
        lower.set_xlabel("step", fontsize=9)
        if k % 3 == 0:
            upper.set_ylabel("loss (nats)", fontsize=9)
            lower.set_ylabel("gradient", fontsize=9)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=9)
    return figure
