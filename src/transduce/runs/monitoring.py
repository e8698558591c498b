"""Displays of a training run: progress bars in the terminal, and the learning curve."""

import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from transduce.files.system_errors import Unfailing

Row = dict[str, Any]

_LIVE_WIDTH = 100  # of a line in a notebook, where a shorter one would leave the end of the one before


def is_in_notebook() -> bool:
    """Whether a notebook or another session of IPython calls."""
    ipython = sys.modules.get("IPython")  # never imported for this alone
    return ipython is not None and ipython.get_ipython() is not None


def report_to_notebook(line: str) -> None:
    """Print a line in a notebook; a script is shown nothing unless it asks."""
    if is_in_notebook():
        print(line)


@contextmanager
def training_display(
    num_steps: int, *, first_step: int = 0, console: Console | None = None
) -> Iterator[Callable[[Row], None]]:
    """Progress bar of training, a line that is written anew in a notebook, else plain lines where standard error is no
    terminal. Yields an observer of the rows.
    """
    console = console or Console(file=Unfailing(sys.stderr), highlight=False)  # type: ignore[arg-type]
    steps = "step {task.completed:,.0f}/{task.total:,.0f}"
    bar = _bar(console, steps, 10, "{task.description}", is_live=console.is_terminal)
    task = bar.add_task("", total=num_steps, completed=first_step)
    is_cell = is_in_notebook() and not console.is_terminal

    def show(row: Row) -> None:
        step = f"step {row['step']:,}"
        if row["kind"] == "training":
            text = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            bar.update(task, completed=row["step"], description=text)
            line = "" if console.is_terminal else f"{step}/{num_steps:,}  {text}"
        else:
            line = f"{step}  validation: {'  '.join(f'{name} {value:.4g}' for name, value in metrics_of(row).items())}"
        if is_cell:
            print(f"\r{line:{_LIVE_WIDTH}}", end="", flush=True)
        elif line:
            console.print(line, soft_wrap=True)

    with bar:
        yield show
    if is_cell:
        print()


@contextmanager
def preparation_display(report: Callable[[str], None], *, is_shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bar of the preparation of a corpus. Yields a function of the stage, the work done and the work in all.

    The total is 0 while it is unknown. Without a terminal, `report` gets one line at the start of each stage. Nothing
    is shown unless `is_shown`.
    """
    console = Console(file=Unfailing(sys.stderr), highlight=False)  # type: ignore[arg-type]
    is_live = is_shown and console.is_terminal
    bar = _bar(console, "{task.description}", 20, is_live=is_live, transient=True)
    task = bar.add_task("", total=None, visible=False)
    stages: list[str] = []  # begun so far

    def show(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages.append(stage)
            bar.reset(task)
            if is_shown and not is_live:
                report(stage)
        bar.update(task, description=stage, completed=done, total=total or None, visible=True)

    with bar:
        yield show


def _bar(
    console: Console, before: str, bar_width: int, *after: str, is_live: bool, transient: bool = False
) -> Progress:
    """A progress bar between texts, with the time behind it."""
    done = (BarColumn(bar_width), TaskProgressColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(before, *done, *after, *times, console=console, disable=not is_live, transient=transient)


def metrics_of(row: Row) -> dict[str, float]:
    """Metrics of a logged row, without its kind and its place in the run."""
    return {name: value for name, value in row.items() if name not in ("kind", "step", "epoch", "seconds")}


def learning_curve(rows: Sequence[Row], title: str) -> bytes:
    """Learning curve as a PNG: training and validation loss by step, and below them each score. Needs `matplotlib`."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    training = [row for row in rows if row["kind"] == "training"]
    validation = [row for row in rows if row["kind"] == "validation"]
    scores = [name for name in (metrics_of(validation[-1]) if validation else {}) if name != "loss"]
    figure = Figure(figsize=(7, 2.8 * (1 + len(scores))), layout="constrained")
    axes = figure.subplots(1 + len(scores), 1, sharex=True, squeeze=False)[:, 0]
    axes[0].plot(
        *_series(training, "loss"), color="#9db4d0", linewidth=1.2, label="training (smoothed labels, dropout)"
    )
    if validation:
        axes[0].plot(*_series(validation, "loss"), color="#1b4f8a", marker="o", markersize=3, label="validation")
    axes[0].set_title(title.encode(errors="surrogateescape").decode(errors="replace"), parse_math=False)
    axes[0].set_ylabel("loss (nats / token)")
    axes[0].legend(frameon=False)
    for axis, name in zip(axes[1:], scores, strict=True):
        axis.plot(*_series(validation, name), color="#b5502a", marker="o", markersize=3)
        axis.set_ylabel(f"{name} (validation)")
    axes[-1].set_xlabel("optimizer step")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of characters in the title that the font lacks
        figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def _series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    return [row["step"] for row in rows], [row.get(name, math.nan) for row in rows]
