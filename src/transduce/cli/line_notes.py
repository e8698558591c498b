"""Notes on lines that were truncated, or that lie outside of what the model has seen in training."""

from collections.abc import Callable, Sequence

from transduce.data.seen import shown
from transduce.inference.predictor import Prediction, Predictor

MOST_NAMED = 10  # lines of each kind
_MAX_CHARACTERS_NAMED = 20


class LineNotes:
    """Lines counted by what is the matter with them, and the first of each kind by number."""

    def __init__(self, predictor: Predictor, report: Callable[[str], None]) -> None:
        """The predictor is one that reports none of this itself."""
        self._predictor, self._report = predictor, report
        self._num_lines = 0
        self.counts = dict.fromkeys(("source", "output", "unseen", "long"), 0)
        self._first: dict[str, list[int]] = {kind: [] for kind in self.counts}
        self._characters: dict[str, None] = {}

    def add(self, n_best: Sequence[Prediction]) -> None:
        """Count the next line, by its outputs."""
        self._num_lines += 1
        best = n_best[0]
        kinds = {
            "source": best.is_source_truncated,
            "output": any(prediction.is_truncated for prediction in n_best),
            "unseen": bool(best.unseen),
            "long": best.is_long and not best.is_source_truncated,
        }
        for kind in (kind for kind, holds in kinds.items() if holds):
            self.counts[kind] += 1
            if self.counts[kind] <= MOST_NAMED:
                self._first[kind].append(self._num_lines)
        self._characters |= dict.fromkeys(best.unseen)

    def report(self) -> None:
        """One line for each kind that there was."""
        max_len, seen = self._predictor.model.config.max_len, self._predictor.seen
        if self._characters:
            named, more = list(self._characters)[:_MAX_CHARACTERS_NAMED], len(self._characters) - _MAX_CHARACTERS_NAMED
            characters = shown(named) + (f" and {more:,} more" if more > 0 else "")
            self._report(f"characters never seen in training: {characters} ({self._lines('unseen')})")
        longest = f"(at most {seen.source_len:,} tokens)" if seen else ""
        reasons = {
            "long": f"sources longer than nearly all in training {longest}",
            "source": f"sources truncated after model.max_len = {max_len:,} tokens",
            "output": "outputs truncated at the maximum length (decoding.max_len_extra, --max-length)",
        }
        for kind, reason in reasons.items():
            if count := self.counts[kind]:
                self._report(f"{reason}: {count:,} of {self._num_lines:,} lines ({self._lines(kind)})")

    def _lines(self, kind: str) -> str:
        return named_lines(self._first[kind], self.counts[kind])


def named_lines(first: Sequence[int], number: int) -> str:
    """The first lines of a kind, and how many more there are."""
    more = f" and {number - len(first):,} more" if number > len(first) else ""
    return f"line {', '.join(map(str, first))}{more}"
