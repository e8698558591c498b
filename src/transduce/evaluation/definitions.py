"""Definitions of the metrics: one function measures a corpus as a row of counts per segment, one scores sums of rows.

BLEU, chrF and TER are sacreBLEU's own, with its defaults; BLEU splits text as the references ask for unless a tokenizer
is named.

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

from transduce.evaluation.bleu import References, tokenizer_for
from transduce.evaluation.config import BLEU_TOKENIZERS

Array: TypeAlias = NDArray[np.float64]

_VERSION = "transduce-1"  # in our signatures; changes whenever a definition below changes a value


class Measured(NamedTuple):
    """A corpus measured by one metric: `value` is the score of the sum of `rows`."""

    rows: Array  # [segments, counts]
    value: float
    signature: Signature


@dataclass(frozen=True)
class Metric:
    """One metric as two functions."""

    label: str
    title: str  # the label with the unit, for a table or an axis
    is_higher_better: bool
    measure: Callable[[Sequence[str], References], Measured]
    score: Callable[[Array], Array]  # sums of rows [..., counts] -> scores [...]


def _by_sacrebleu(label: str, is_higher_better: bool, new_metric: Callable[[References], SacreMetric]) -> Metric:
    """sacreBLEU's own scores: of a corpus, and of sums of rows, as in its own significance tests."""

    def measure(hypotheses: Sequence[str], references: References) -> Measured:
        metric = new_metric(references)
        rows = metric._extract_corpus_statistics(hypotheses, references)  # type: ignore[arg-type]  # None is allowed
        value = metric._aggregate_and_compute(rows).score
        return Measured(np.array(rows, dtype=np.float64), float(value), metric.get_signature())

    def score(sums: Array) -> Array:
        score_of = new_metric([])._compute_score_from_stats
        return np.apply_along_axis(lambda row: score_of(row.tolist()).score, -1, sums)

    return Metric(label, f"{label} %" if label == "TER" else label, is_higher_better, measure, score)


def _by_segment(
    label: str, is_higher_better: bool, row_of: Callable[[str, list[str]], tuple[int, int]], description: str
) -> Metric:
    """A rate in per cent: `row_of(hypothesis, references)` gives a count and the total that it is a share of."""

    def measure(hypotheses: Sequence[str], references: References) -> Measured:
        present = [[r for r in segment if r is not None] for segment in zip(*references, strict=True)]
        rows = np.array([row_of(h, rs) for h, rs in zip(hypotheses, present, strict=True)], dtype=np.float64)
        num_refs = {len(rs) for rs in present}
        signature = Signature({"num_refs": num_refs.pop() if len(num_refs) == 1 else -1})
        signature.update("rate", description)
        signature.update("version", _VERSION)
        return Measured(rows, float(_rate(rows.sum(0))), signature)

    return Metric(label, f"{label} %", is_higher_better, measure, _rate)


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


def _bleu(tokenizer: str, label: str = "BLEU") -> Metric:
    """BLEU with a tokenizer of sacreBLEU; "": the one that suits the references."""
    # Forced: sacreBLEU would warn of tokenized text at each call; `bleu.notes_on` does once.
    return _by_sacrebleu(label, True, lambda refs: BLEU(tokenize=tokenizer or tokenizer_for(refs), force=True))


DEFINITIONS = {
    "bleu": _bleu(""),
    # Of text that is tokenized already, as published tables often have it: split at spaces only.
    "tokenized_bleu": _bleu("none", "tokenized BLEU"),
    "chrf": _by_sacrebleu("chrF2", True, lambda _references: CHRF()),
    "ter": _by_sacrebleu("TER", False, lambda _references: TER()),
    "wer": _by_segment("WER", False, partial(_edits, str.split), "edits/nearest-ref-words"),
    "cer": _by_segment("CER", False, partial(_edits, str), "edits/nearest-ref-codepoints"),
    "per": _by_segment("PER", False, partial(_edits, str.split), "edits/nearest-ref-phonemes"),
    "exact_match": _by_segment("exact match", True, _is_match, "matches/segments"),
    "word_error": _by_segment("word error", False, _has_edits, "segments-with-edits/segments"),
    **{f"bleu:{tokenizer}": _bleu(tokenizer, f"BLEU ({tokenizer})") for tokenizer in BLEU_TOKENIZERS},
}
