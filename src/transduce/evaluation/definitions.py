"""Definitions of the metrics: one function measures a corpus as a row of counts per segment, one scores sums of rows.

BLEU, chrF and TER are sacreBLEU's own, with its defaults; `tokenized_bleu` is its BLEU without a tokenizer. Its rows
are kept, and its formulas stand here once more in numpy, where they score many sums at once: those of all resamples.

References are given as sacreBLEU takes them, one list per reference set: `references[r][i]` is the r-th reference of
segment i. None marks an absent one; an empty string is a reference that happens to be empty.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric as SacreMetric
from sacrebleu.metrics.base import Signature

References: TypeAlias = Sequence[Sequence[str | None]]
Array: TypeAlias = NDArray[np.float64]

_VERSION = "transduce-1"  # in our signatures; changes whenever a definition below changes a value


class Measured(NamedTuple):
    """A corpus measured by one metric: `value` is the score of the sum of `rows`."""

    rows: Array  # [segments, counts]
    value: float
    signature: Signature


Measure: TypeAlias = Callable[[Sequence[str], References], Measured]


@dataclass(frozen=True)
class Metric:
    """One metric as two functions."""

    label: str
    is_higher_better: bool
    measure: Measure
    score: Callable[[Array], Array]  # sums of rows [..., counts] -> scores [...]


def _by_sacrebleu(new_metric: Callable[[], SacreMetric]) -> Measure:
    """sacreBLEU's own score, and the rows whose sum it scores, which it resamples in its own significance tests."""

    def measure(hypotheses: Sequence[str], references: References) -> Measured:
        metric = new_metric()
        rows = metric._extract_corpus_statistics(hypotheses, references)  # type: ignore[arg-type]  # None is allowed
        value = metric._aggregate_and_compute(rows).score
        return Measured(np.array(rows, dtype=np.float64), float(value), metric.get_signature())

    return measure


def _by_segment(row_of: Callable[[str, list[str]], tuple[int, int]], description: str) -> Measure:
    """A rate in per cent: `row_of(hypothesis, references)` gives a count and the total that it is a share of."""

    def measure(hypotheses: Sequence[str], references: References) -> Measured:
        present = [[r for r in segment if r is not None] for segment in zip(*references, strict=True)]
        rows = np.array([row_of(h, rs) for h, rs in zip(hypotheses, present, strict=True)], dtype=np.float64)
        num_refs = {len(rs) for rs in present}
        signature = Signature({"num_refs": num_refs.pop() if len(num_refs) == 1 else -1})
        signature.update("rate", description)
        signature.update("version", _VERSION)
        return Measured(rows, float(_rate(rows.sum(0))), signature)

    return measure


def _edits(units: Callable[[str], Sequence[str]], hypothesis: str, references: list[str]) -> tuple[int, int]:
    """Edits to the nearest reference and its length; of equally near ones the shortest, so no tie flatters the rate."""
    units_of_hypothesis = units(hypothesis)
    return min((edit_distance(units_of_hypothesis, r), len(r)) for r in map(units, references))


def _has_edits(hypothesis: str, references: list[str]) -> tuple[int, int]:
    return int(hypothesis.split() not in [r.split() for r in references]), 1


def _is_match(hypothesis: str, references: list[str]) -> tuple[int, int]:
    return int(hypothesis in references), 1


def _rate(sums: Array) -> Array:
    """Count / total in per cent; where the total is 0, 100 if anything was counted, as in sacreBLEU's TER."""
    count, total = sums[..., 0], sums[..., 1]
    return 100 * np.where(total > 0, count / np.where(total > 0, total, 1), count > 0)


def _bleu(sums: Array) -> Array:
    """Papineni et al. 2002 with "exp" smoothing: the k-th order that matches nothing counts 2^-k of a match.

    A row: hypothesis length, reference length, n-grams matched (n = 1..4), n-grams in the hypothesis (n = 1..4).
    """
    hypothesis_len, reference_len = sums[..., 0], sums[..., 1]
    matched, total = sums[..., 2:6], sums[..., 6:10]
    # sacreBLEU scores 0 if nothing matches at all, or if no hypothesis is long enough for an n-gram of some order.
    is_scored = (matched > 0).any(-1) & (total > 0).all(-1)
    smoothed = np.where(matched > 0, matched, 0.5 ** (matched == 0).cumsum(-1))
    log_precision = np.log(smoothed / np.maximum(total, 1)).mean(-1)
    log_brevity = np.minimum(0, 1 - reference_len / np.maximum(hypothesis_len, 1))
    return np.where(is_scored, 100 * np.exp(log_brevity + log_precision), 0)


def _chrf(sums: Array) -> Array:
    """Popović 2015: F2 of precision and recall, each the mean over the orders that both sides have.

    A row: for n = 1..6, n-grams in the hypothesis, in the reference, matched.
    """
    num_hypothesis, num_reference, num_matched = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    is_counted = (num_hypothesis > 0) & (num_reference > 0)
    num_orders = np.maximum(is_counted.sum(-1), 1)
    precision = (num_matched / np.where(is_counted, num_hypothesis, np.inf)).sum(-1) / num_orders
    recall = (num_matched / np.where(is_counted, num_reference, np.inf)).sum(-1) / num_orders
    weighted = CHRF.BETA**2 * precision + recall
    return 100 * (1 + CHRF.BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1)


def edit_distance(hypothesis: Sequence[Hashable], reference: Sequence[Hashable]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn one into the other.

    Bit-parallel (Myers 1999 in the form of Hyyrö 2003, figure 3): bit i of an integer is row i of the current column of
    the dynamic program. Neighboring cells differ by at most 1, so a column is kept as the rows where it rises and those
    where it falls; only the cell in the last row, the distance, is kept as a number.
    """
    if not reference:
        return len(hypothesis)
    rows_of: dict[Hashable, int] = {}
    for row, token in enumerate(reference):
        rows_of[token] = rows_of.get(token, 0) | 1 << row
    last_row = 1 << (len(reference) - 1)
    all_rows = 2 * last_row - 1
    rises, falls, distance = all_rows, 0, len(reference)  # the first column counts 1, 2, 3, ...
    for token in hypothesis:
        matches = rows_of.get(token, 0)
        # Cells equal to their neighbor above left: by a match, or by a way round. The carry of the sum goes down each
        # run of rises that begins at a match, which does a whole column of the recursion in one addition.
        free_diagonals = (((matches & rises) + rises) ^ rises) | matches | falls
        # From the column before to this one, in each row; the last row gives the distance.
        rises_across = falls | ~(free_diagonals | rises)
        falls_across = free_diagonals & rises
        distance += bool(rises_across & last_row) - bool(falls_across & last_row)
        rises_across = rises_across << 1 | 1  # row 0 rises always: one more token against an empty reference
        rises = (falls_across << 1 | ~(free_diagonals | rises_across)) & all_rows
        falls = rises_across & free_diagonals & all_rows
    return distance


# BLEU of text that is tokenized already, as published tables often have it: split at spaces only.
_TOKENIZED_BLEU = partial(BLEU, tokenize="none", force=True)
DEFINITIONS = {
    "bleu": Metric("BLEU", True, _by_sacrebleu(partial(BLEU, force=True)), _bleu),
    "tokenized_bleu": Metric("tokenised BLEU", True, _by_sacrebleu(_TOKENIZED_BLEU), _bleu),
    "chrf": Metric("chrF2", True, _by_sacrebleu(CHRF), _chrf),
    "ter": Metric("TER", False, _by_sacrebleu(TER), _rate),
    "wer": Metric("WER", False, _by_segment(partial(_edits, str.split), "edits/nearest-ref-words"), _rate),
    "cer": Metric("CER", False, _by_segment(partial(_edits, str), "edits/nearest-ref-codepoints"), _rate),
    "per": Metric("PER", False, _by_segment(partial(_edits, str.split), "edits/nearest-ref-phonemes"), _rate),
    "exact_match": Metric("exact match", True, _by_segment(_is_match, "matches/segments"), _rate),
    "word_error": Metric("word error", False, _by_segment(_has_edits, "segments-with-edits/segments"), _rate),
}
