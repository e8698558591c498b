"""Displays of a training run: in a terminal, a notebook, a log file."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from transduce.errors import printable
from transduce.evaluation.definitions import DEFINITIONS
from transduce.files.system_errors import Unfailing

Row = dict[str, Any]
Sample = tuple[str, str, str]  # source, output, reference

_LIVE_WIDTH = 100  # of a line in a notebook, where a shorter one would leave the end of the one before


def is_in_notebook() -> bool:
    """Whether a notebook or another session of IPython calls."""
    ipython = sys.modules.get("IPython")  # never imported for this alone
    return ipython is not None and ipython.get_ipython() is not None


def report_to_notebook(line: str) -> None:
    """Print a line in a notebook; a script is shown nothing unless it asks."""
    if is_in_notebook():
        print(line)


class TrainingDisplay:
    """The progress of a training run: validations as a growing table, outputs of the last one, and a bar.

    On a terminal they are one live picture; a notebook has a line that is written anew, and elsewhere, as in a log
    file, each row is a plain line. `best` is the metric by which weights are kept, or "loss".
    """

    def __init__(
        self,
        console: Console,
        num_steps: int,
        *,
        first_step: int = 0,
        best: str = "loss",
        ties_by_loss: bool = False,
        history: Sequence[Row] = (),  # of a resumed run
    ) -> None:
        self._console, self._num_steps, self._best, self._ties_by_loss = console, num_steps, best, ties_by_loss
        self.is_cell = is_in_notebook() and not console.is_terminal
        self._validations = [row for row in history if row["kind"] == "validation"]
        self._samples: Sequence[Sample] = ()
        self._bar = Progress(
            "step {task.completed:,.0f}/{task.total:,.0f}", BarColumn(None), TaskProgressColumn(),
            "{task.description}", TimeRemainingColumn(), TextColumn("left"),
            console=console, expand=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=num_steps, completed=first_step)

    def step(self, step: int) -> None:
        """Note that a step is done."""
        self._bar.update(self._task, completed=step)

    def __call__(self, row: Row) -> None:
        """Show a row of training or of validation."""
        if row["kind"] == "training":
            text = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            self._bar.update(self._task, completed=row["step"], description=text)
            line = f"step {row['step']:,}/{self._num_steps:,}  {text}"
        else:
            self._validations.append(row)
            self._samples = row.get("samples", ())
            line = self._line_of(row)
        if self.is_cell:
            print(f"\r{line:{_LIVE_WIDTH}}", end="", flush=True)
        elif not self._console.is_terminal:
            self._console.print(Text("\n".join([line, *map(_sample_line, self._samples)])), soft_wrap=True)
            self._samples = ()

    def _line_of(self, row: Row) -> str:
        shown = [f"{_heading(name)} {_number(name, row[name])}" for name in metrics_of(row)]
        mark = f"  (best {_heading(self._best)} so far)" if row is self._best_row() else ""
        return f"step {row['step']:,}  validation: {'  '.join(shown)}{mark}"

    def _best_row(self) -> Row | None:
        return best_validation(self._validations, self._best, ties_by_loss=self._ties_by_loss)

    def __rich_console__(self, console: Console, _options: object) -> Iterator[RenderableType]:
        if self._validations:
            yield self._table(max(3, console.height - 4 - 3 * len(self._samples)))
            for sample in self._samples:
                yield from _sample_texts(sample, console.width)
            yield ""
        yield self._bar

    def _table(self, num_rows: int) -> Table:
        """The last validations, and the best one, which is marked."""
        best = self._best_row()
        metrics = [*metrics_of(self._validations[-1])]
        columns = (Column(name, justify="right") for name in ("step", "time", *map(_heading, metrics)))
        table = Table(*columns, "", box=None, padding=(0, 2, 0, 0), header_style="dim")
        rows = self._validations[-num_rows:]
        if best is not None and not any(row is best for row in rows):
            rows = [best, *rows[1:]]
        for row in rows:
            numbers = [_number(name, row.get(name, math.nan)) for name in metrics]
            is_best = row is best
            cells = [f"{row['step']:,}", _minutes(row["seconds"]), *numbers, "best" if is_best else ""]
            table.add_row(*cells, style="bold green" if is_best else None)
        return table


def best_validation(rows: Sequence[Row], best: str, *, ties_by_loss: bool) -> Row | None:
    """The validation whose weights are kept: of equal scores the first, or with `ties_by_loss` that of least loss."""
    sign = -1 if best in DEFINITIONS and DEFINITIONS[best].is_higher_better else 1
    rows = [row for row in rows if best in row]
    return min(rows, key=lambda row: (sign * row[best], row["loss"] if ties_by_loss else 0.0), default=None)


@contextmanager
def training_display(num_steps: int, *, console: Console | None = None, **options: Any) -> Iterator[TrainingDisplay]:
    """A `TrainingDisplay` on standard error, for a block; `options` are its own."""
    console = console or Console(file=Unfailing(sys.stderr), highlight=False)  # type: ignore[arg-type]
    display = TrainingDisplay(console, num_steps, **options)
    with Live(display, console=console, refresh_per_second=4) if console.is_terminal else nullcontext():
        try:
            yield display
        finally:
            if display.is_cell:
                print()  # the end of its line


def _heading(name: str) -> str:
    """The name of a metric with its unit."""
    return DEFINITIONS[name].title if name in DEFINITIONS else name


def _number(name: str, value: float) -> str:
    return f"{value:.3f}" if name.endswith("loss") else f"{value:.2f}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _sample_line(sample: Sample) -> str:
    source, output, reference = map(printable, sample)
    comparison = "as the reference" if output == reference else f"reference: {reference}"
    return f"  {source} -> {output}  ({comparison})"


def _sample_texts(sample: Sample, width: int) -> Iterator[Text]:
    """A sample on one line if it fits, else on three."""
    source, output, reference = map(printable, sample)
    style = "green" if output == reference else "yellow"
    one_line = Text.assemble((f"  {source} -> ", "dim"), (output, style), (f"   reference: {reference}", "dim"))
    if one_line.cell_len <= width:
        yield one_line
        return
    for name, text, look in (("source", source, "dim"), ("output", output, style), ("reference", reference, "dim")):
        yield Text.assemble((f"  {name:<10}", "dim"), (text, look), no_wrap=True, overflow="ellipsis")


@contextmanager
def preparation_display(report: Callable[[str], None], *, is_shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bar of the preparation of a corpus. Yields a function of the stage, the work done and the work in all.

    The total is 0 while it is unknown. Without a terminal, `report` gets one line at the start of each stage. Nothing
    is shown unless `is_shown`.
    """
    console = Console(file=Unfailing(sys.stderr), highlight=False)  # type: ignore[arg-type]
    is_live = is_shown and console.is_terminal
    bar = Progress(
        "{task.description}", BarColumn(20), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"),
        console=console, disable=not is_live, transient=True,
    )  # fmt: skip
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


def metrics_of(row: Row) -> dict[str, float]:
    """Metrics of a row, without its kind, its place in the run and its samples."""
    return {name: value for name, value in row.items() if name not in ("kind", "step", "epoch", "seconds", "samples")}
