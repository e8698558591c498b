"""Notes on lines that were truncated, or that lie outside of what the model has seen in training."""

from collections.abc import Callable, Sequence

from transduce.data.seen import shown
from transduce.inference.predictor import Predictor

_MAX_LINES_NAMED = 10  # of those that were truncated
_MAX_NAMED = 2  # lines, of each other kind
_MAX_CHARACTERS_NAMED = 20


class LineNotes:
    """Lines counted by what is the matter with them, and the first of each kind by number."""

    def __init__(self, predictor: Predictor, report: Callable[[str], None]) -> None:
        """The predictor is one that reports none of this itself."""
        self._predictor, self._report = predictor, report
        self._num_lines = self._num_truncated = self._num_unseen = self._num_long = 0
        self._truncated: list[int] = []
        self._unseen: list[int] = []
        self._long: list[int] = []
        self._characters: dict[str, None] = {}

    def add(self, *, is_truncated: bool, unseen: Sequence[str], is_long: bool) -> None:
        """Count the next line."""
        self._num_lines += 1
        if is_truncated:
            self._num_truncated += 1
            self._truncated = [*self._truncated, self._num_lines][:_MAX_LINES_NAMED]
        elif is_long:
            self._num_long += 1
            self._long = [*self._long, self._num_lines][:_MAX_NAMED]
        if unseen:
            self._num_unseen += 1
            self._unseen = [*self._unseen, self._num_lines][:_MAX_NAMED]
            self._characters |= dict.fromkeys(unseen)

    def add_texts(self, texts: Sequence[str]) -> None:
        """Count lines whose predictions are not at hand."""
        ids, is_truncated = self._predictor.encode(texts)
        for truncated, (unseen, is_long) in zip(is_truncated, self._predictor.unfamiliar(texts, ids), strict=True):
            self.add(is_truncated=truncated, unseen=unseen, is_long=is_long)

    def report(self) -> None:
        """One line for each kind that there was."""
        report, max_len, seen = self._report, self._predictor.model.config.max_len, self._predictor.seen
        if self._characters:
            named, more = list(self._characters)[:_MAX_CHARACTERS_NAMED], len(self._characters) - _MAX_CHARACTERS_NAMED
            characters = shown(named) + (f" and {more:,} more" if more > 0 else "")
            report(f"characters never seen in training: {characters} ({_lines(self._unseen, self._num_unseen)})")
        if self._long and seen:
            report(
                f"longer than nearly all sources in training, which had at most {seen.source_len:,} tokens: "
                f"{self._num_long:,} of {self._num_lines:,} lines ({_lines(self._long, self._num_long)})"
            )
        if self._truncated:
            named_lines = ", ".join(map(str, self._truncated))
            more_lines = ", ..." if self._num_truncated > len(self._truncated) else ""
            report(f"sources are cut off after model.max_len = {max_len} tokens.")
            report(f"lines cut off: {self._num_truncated:,} of {self._num_lines:,}, line {named_lines}{more_lines}")


def _lines(first: Sequence[int], number: int) -> str:
    more = f" and {number - len(first):,} more" if number > len(first) else ""
    return f"line {', '.join(map(str, first))}{more}"
