"""Logged rows as TensorBoard events."""

from functools import partial
from pathlib import Path
from typing import Any

from transduce.runs.monitoring import Row, metrics_of


class TensorBoardWriter:
    """Training and validation rows as TensorBoard events in `folder`. Needs the extra `tensorboard`."""

    def __init__(self, folder: Path) -> None:
        # Raises ImportError without the extra: the caller says once what is left out.
        from torch.utils.tensorboard import SummaryWriter

        self._new_writer = partial(SummaryWriter, str(folder))
        self._writer: Any = None  # made with the first row: a folder must be free for the run that begins there

    def __call__(self, row: Row) -> None:
        # What a killed process wrote of this step and later ones is repeated now: readers are told to forget it.
        self._writer = self._writer or self._new_writer(purge_step=row["step"])
        for name, value in metrics_of(row).items():
            self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Ends the file, if there is one."""
        if self._writer is not None:
            self._writer.close()
