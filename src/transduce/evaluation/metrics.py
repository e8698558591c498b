"""Scores of hypotheses with confidence intervals, and paired significance tests between two systems.

Every metric turns sums of rows of counts, one row per segment, into scores (`definitions`). To resample segments is
then to resample rows, so the same lines of numpy serve the interval and both paired tests of every metric. Scores are
in per cent; error rates can exceed 100.

Intervals and p-values cover the choice of test segments only, not how another training run would have ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from transduce.errors import DataError, TransduceError, choose
from transduce.evaluation.definitions import DEFINITIONS, Array, References

NUM_RESAMPLES, SEED = 1000, 12345  # sacreBLEU's
_METHODS = {"bootstrap": "paired bootstrap", "randomization": "approximate randomization"}
_SIGNIFICANCE_LEVEL = 0.05
_CHUNK_CELLS = 1 << 22  # resamples x segments held at once, to bound memory
_ROUNDING = 1e-9  # score differences closer than this count as equal


@dataclass(frozen=True)
class Score:
    """A corpus score with its 95 % bootstrap percentile interval over segments; `name` is one of METRICS."""

    name: str
    value: float
    low: float
    high: float
    num_segments: int
    signature: str  # all that is needed to compute `value`, `low` and `high` again, in sacreBLEU's notation
    is_higher_better: bool

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"{DEFINITIONS[self.name].label} {self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def as_dict(self) -> dict[str, Any]:
        """The score as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Score of B minus score of A on the same segments, its 95 % interval and a two-sided p-value."""

    name: str
    score_a: float
    score_b: float
    difference: float
    p_value: float
    low: float
    high: float
    method: str
    num_resamples: int
    num_segments: int
    is_higher_better: bool

    @property
    def is_significant(self) -> bool:
        """Whether the difference is unlikely to be chance, at the 5 % level."""
        return self.p_value < _SIGNIFICANCE_LEVEL

    def __str__(self) -> str:
        test = f"p = {self.p_value:.2g} ({_METHODS[self.method]}, {self.num_resamples} resamples)"
        label = DEFINITIONS[self.name].label
        if not self.is_significant:
            interval = f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
            return f"{label}: no significant difference, B minus A is {interval}, {test}"
        winner = "B" if (self.difference > 0) == self.is_higher_better else "A"
        low, high = (self.low, self.high) if self.difference > 0 else (-self.high, -self.low)
        return f"{label}: {winner} is better by {abs(self.difference):.2f} [{low:.2f}, {high:.2f}], {test}"

    def as_dict(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        return asdict(self) | {"is_significant": self.is_significant}


def evaluate(
    metrics: Sequence[str],
    hypotheses: Sequence[str],
    references: References,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> list[Score]:
    """One score per name in `metrics`, in that order; the same arguments give the same scores in any process.

    `references[r][i]` is the r-th reference of segment i, None where it has no r-th one.

    bleu, chrf, ter  sacreBLEU's, with its defaults, but that BLEU splits scripts without spaces into characters
    bleu:13a, bleu:intl, bleu:zh, bleu:char, bleu:none  sacreBLEU's BLEU with that tokenizer
    tokenized_bleu  sacreBLEU's for text that is tokenized already (tokenize none): not to be compared with bleu
    wer, per     edits / length of the nearest reference, over the corpus, in space-separated words (phonemes)
    cer          the same in Unicode code points, including spaces
    exact_match  share of segments that equal one of their references
    word_error   share of segments with an edit to every reference: of single words, those that are wrong

    Raises TransduceError for an unknown metric, DataError for a corpus without segments or of unequal lengths.
    """
    chosen = [choose("metric", name, DEFINITIONS) for name in metrics]
    check(hypotheses, references, num_resamples)
    resampled_sums = partial(_resampled_sums, _bootstrap_counts, num_resamples=num_resamples, seed=seed)
    scores = []
    for name, metric in zip(metrics, chosen, strict=True):
        measured = metric.measure(hypotheses, references)
        measured.signature.update("bs", num_resamples)
        measured.signature.update("seed", seed)
        low, high = _interval(metric.score(resampled_sums(measured.rows)))
        signature = str(measured.signature)
        scores.append(Score(name, measured.value, low, high, len(hypotheses), signature, metric.is_higher_better))
    return scores


def group_by_source(
    sources: Sequence[str], hypotheses: Sequence[str], references: References
) -> tuple[list[str], list[str], list[list[str | None]]]:
    """Merge rows with the same source into one segment, with the distinct references of all of them.

    So the rows of a pronunciation lexicon may repeat a source: `word_error` is then the share of distinct sources whose
    output is none of their pronunciations, which the literature calls WER.
    Sources keep the order of their first row; the references are returned as sets padded with None, as `evaluate` takes
    them. Raises DataError if a source has two different hypotheses.
    """
    check(hypotheses, references)
    if len(sources) != len(hypotheses):
        raise DataError(f"{len(sources)} sources but {len(hypotheses)} hypotheses: give one for each source.")
    first_row: dict[str, int] = {}
    targets: dict[str, dict[str, None]] = {}  # a dict as a set that keeps its order
    for row, (source, hypothesis) in enumerate(zip(sources, hypotheses, strict=True)):
        first = first_row.setdefault(source, row)
        if hypothesis != hypotheses[first]:
            raise DataError(
                f"Source {source!r} has two hypotheses, {hypotheses[first]!r} (row {first + 1}) and {hypothesis!r} "
                f"(row {row + 1}): rows are grouped by source only if equal sources have equal hypotheses."
            )
        present = (references_of_set[row] for references_of_set in references)
        targets.setdefault(source, {}).update((target, None) for target in present if target is not None)
    sets: list[list[str | None]] = [list(reference_set) for reference_set in zip_longest(*targets.values())]
    return list(first_row), [hypotheses[row] for row in first_row.values()], sets


def compare(
    metric: str,
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    references: References,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
    method: str = "bootstrap",
) -> Comparison:
    """Paired significance test of A and B: "bootstrap", or approximate "randomization" (Riezler and Maxwell 2005).

    The p-value of either is two-sided and counts ties as chance, so it is 1 for equal systems; the bootstrap's is below
    0.05 about when the interval excludes 0. Differs from the bootstrap of sacreBLEU's PairedTest, which subtracts the
    mean of |difference|: in effect one tail, half our p, and twice as many equal systems called different as promised.
    Raises as `evaluate` does.
    """
    method = method.replace("randomisation", "randomization")  # its name in version 0.1
    chosen, _ = choose("metric", metric, DEFINITIONS), choose("method", method, _METHODS)
    check(hypotheses_a, references, num_resamples)
    check(hypotheses_b, references, num_resamples)
    a, b = chosen.measure(hypotheses_a, references), chosen.measure(hypotheses_b, references)
    resampled_sums = partial(_resampled_sums, num_resamples=num_resamples, seed=seed)
    # Paired: each resample holds the same segments of A and of B, so what is hard for both cancels in the difference.
    sums_a, sums_b = np.split(resampled_sums(_bootstrap_counts, np.hstack([a.rows, b.rows])), 2, axis=-1)
    differences = chosen.score(sums_b) - chosen.score(sums_a)
    if method == "bootstrap":
        # The resampled differences spread around the observed one. Centered at 0 they are those of equal systems.
        by_chance = differences - differences.mean()
    else:
        # If the systems are equal, each pair of outputs might as well be swapped. `moved` is what A gains and B loses.
        moved = resampled_sums(_swaps, b.rows - a.rows)
        by_chance = chosen.score(b.rows.sum(0) - moved) - chosen.score(a.rows.sum(0) + moved)
    difference = b.value - a.value
    num_as_large = int(np.count_nonzero(np.abs(by_chance) >= abs(difference) - _ROUNDING))
    low, high = _interval(differences)
    return Comparison(
        name=metric,
        score_a=a.value,
        score_b=b.value,
        difference=difference,
        p_value=(num_as_large + 1) / (num_resamples + 1),  # + 1: the observed difference is one of them, so never 0
        low=low,
        high=high,
        method=method,
        num_resamples=num_resamples,
        num_segments=len(hypotheses_a),
        is_higher_better=chosen.is_higher_better,
    )


def _bootstrap_counts(rng: np.random.Generator, num_resamples: int, num_segments: int) -> Array:
    """How often each resample, drawn with replacement, contains each segment: [resamples, segments]."""
    segments = rng.integers(num_segments, size=(num_resamples, num_segments))
    segments += num_segments * np.arange(num_resamples)[:, None]  # so that one bincount counts all resamples
    counts = np.bincount(segments.ravel(), minlength=segments.size)
    return counts.reshape(num_resamples, num_segments).astype(np.float64)


def _swaps(rng: np.random.Generator, num_resamples: int, num_segments: int) -> Array:
    """1 where the outputs of a segment are swapped, by the toss of a coin: [resamples, segments]."""
    return rng.integers(2, size=(num_resamples, num_segments)).astype(np.float64)


def _resampled_sums(
    weights: Callable[[np.random.Generator, int, int], Array], rows: Array, *, num_resamples: int, seed: int
) -> Array:
    """Sums of `rows`, weighted anew for every resample: [resamples, counts]. The weights depend on `seed` alone."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // len(rows))
    sizes = [min(chunk, num_resamples - start) for start in range(0, num_resamples, chunk)]
    return np.concatenate([weights(rng, size, len(rows)) @ rows for size in sizes])


def _interval(scores: Array) -> tuple[float, float]:
    low, high = np.quantile(scores, [_SIGNIFICANCE_LEVEL / 2, 1 - _SIGNIFICANCE_LEVEL / 2])
    return float(low), float(high)


def check(hypotheses: Sequence[str], references: References, num_resamples: int = 1) -> None:
    """Raise DataError unless every segment has a hypothesis and a reference, TransduceError for a wrong call."""
    if num_resamples < 1:
        raise TransduceError(f"num_resamples ({num_resamples}) must be at least 1; {NUM_RESAMPLES} is usual.")
    if not references or any(isinstance(reference_set, str) for reference_set in references):
        raise TransduceError("references must be a list of reference sets, each a list of strings: for one, [lines].")
    if not hypotheses:
        raise DataError("There are no segments to score: the hypotheses are empty.")
    for number, reference_set in enumerate(references, start=1):
        if len(reference_set) != len(hypotheses):
            which = f" in reference set {number}" if len(references) > 1 else ""
            raise DataError(
                f"{len(hypotheses)} hypotheses but {len(reference_set)} references{which}: line k of one must "
                "belong to line k of the other."
            )
    for number, segment in enumerate(zip(*references, strict=True), start=1):
        if all(reference is None for reference in segment):
            raise DataError(f"Segment {number} has no reference: each needs at least one, which may be empty.")
