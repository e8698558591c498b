"""Logged rows as TensorBoard events."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transduce.inference.predictor import ignore
from transduce.runs.monitoring import Row, metrics_of


class TensorBoardWriter:
    """Training and validation rows as TensorBoard events in `folder`. Needs the extra `tensorboard`.

    Of those that cannot be written, the first is reported.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = ignore) -> None:
        # Raises ImportError without the extra: the caller says once what is left out.
        from torch.utils.tensorboard import SummaryWriter

        self._new_writer = partial(SummaryWriter, str(folder))
        self._writer: Any = None  # made with the first row: a folder must be free for the run that begins there
        self._report, self._has_failed = report, False

    def __call__(self, row: Row) -> None:
        with self._reported_failure():
            # What a killed process wrote of this step and later ones is repeated now: readers are told to forget it.
            self._writer = self._writer or self._new_writer(purge_step=row["step"])
            for name, value in metrics_of(row).items():
                self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
            self._writer.flush()

    def close(self) -> None:
        """Ends the file, if there is one."""
        if self._writer is not None:
            with self._reported_failure():
                self._writer.close()

    @contextmanager
    def _reported_failure(self) -> Iterator[None]:
        """A block whose first error is reported, and none raised: events only show a training."""
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                self._report(f"TensorBoard events are missing: {' '.join(str(error).split())}")
            self._has_failed = True
