"""Certificate of an export: the same lines, predicted by the run and by the exported model, compared one by one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch

from transduce.errors import DataError
from transduce.evaluation.metrics import evaluate
from transduce.inference.config import DecodingConfig
from transduce.inference.forced_decoding import token_log_probs
from transduce.inference.predictor import Predictor
from transduce.inference.search import length_norm_of

MOST_LINES = 1_000
TIE = 1e-4  # two outputs whose scores differ by no more are equally good: rounding decides between them
LARGEST_LOG_PROB_DIFFERENCE = 1e-4  # rounding to float32 in another order of operations

SEARCHES = (
    DecodingConfig(beam_size=1),
    DecodingConfig(beam_size=5, length_penalty=0.0),
    DecodingConfig(beam_size=5, length_penalty=1.0, length_norm="power"),
)

_LINES_SCORED = 200
_DIFFERENCES_SHOWN = 10
_SENTENCES_AT_ONCE = 32

Ids = list[int]


class Engine(Protocol):
    """An exported model, run by the program it was exported for.

    Ids are those of the run's tokenizer: sources end with eos, outputs do not.
    """

    @property
    def searches(self) -> tuple[DecodingConfig, ...]:
        """The searches that this engine has, too, whatever their length limits."""

    def search(self, sources: list[Ids], max_lens: list[int], decoding: DecodingConfig) -> list[Ids]:
        """The best output for each source, of at most `max_lens` tokens with its end."""

    def log_probs(self, sources: list[Ids], outputs: list[Ids]) -> list[list[float]]:
        """Natural log-probability of each token of each output and of its end, given the tokens before it."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The lines to compare on; `references[r][i]` is the r-th reference of line i, if any are known."""

    sources: Sequence[str]
    references: Sequence[Sequence[str]] = ()
    origin: str

    def __post_init__(self) -> None:
        if not any(text.strip() for text in self.sources):
            raise DataError(f"{self.origin}: all lines are blank, so there are no outputs to compare.")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The export that a certificate is about."""

    format: str
    precision: str  # float32 or int8
    versions: dict[str, str]
    model_sha256: str
    unexpressed: list[str]  # the run's decoding settings that the format cannot express, one line each


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A line with two outputs; the scores of both are by the run's own model, normalized by length."""

    line: int  # counted from 1
    source: str
    native: str
    engine: str
    native_score: float
    engine_score: float
    is_at_limit: bool  # one of them has the maximum length, where searches end a hypothesis each in its own way


@dataclass(frozen=True, kw_only=True)
class SearchComparison:
    """The outputs for all lines by one kind of search, counted."""

    beam_size: int
    length_penalty: float
    length_norm: str
    num_equal: int
    num_tied: int  # other outputs, with the same score by the run's own model (see TIE)
    num_different: int
    num_different_at_limit: int  # of the different ones
    differences: list[Difference]  # the first of those that are not tied
    native_bleu: float | None  # None: no references are known
    engine_bleu: float | None

    @property
    def name(self) -> str:
        """The name in tables."""
        if self.beam_size == 1:
            return "greedy"
        return f"beam {self.beam_size}" + (f", / length^{self.length_penalty:g}" if self.length_penalty else "")

    @property
    def bleu_difference(self) -> float | None:
        """BLEU of the engine minus that of the run."""
        if self.native_bleu is None or self.engine_bleu is None:
            return None
        return self.engine_bleu - self.native_bleu


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The results of the comparison of an export with its run."""

    exported: Exported
    lines_from: str
    num_lines: int
    searches: list[SearchComparison]
    num_lines_scored: int
    log_prob_difference: float  # the largest, over the tokens of the run's own outputs

    @property
    def is_equal(self) -> bool:
        """Whether all outputs are the same or tied, and all log-probabilities the same up to rounding."""
        has_same_scores = self.log_prob_difference <= LARGEST_LOG_PROB_DIFFERENCE  # False for NaN
        return has_same_scores and not any(comparison.num_different for comparison in self.searches)

    @property
    def verdict(self) -> str:
        """A sentence on the outputs and one on their log-probabilities."""
        different = sum(comparison.num_different for comparison in self.searches)
        at_limit = sum(comparison.num_different_at_limit for comparison in self.searches)
        outputs = "Every output equals the run's, or ties with it by the run's own score."
        if different:
            num_outputs = len(self.searches) * self.num_lines
            outputs = f"{different:,} of {num_outputs:,} outputs differ from the run's"
            outputs += f" ({at_limit:,} of these have the maximum length)." if at_limit else "."
        return (
            f"{outputs} Log-probabilities differ by at most {self.log_prob_difference:.1e}; rounding to float32 can "
            f"account for {LARGEST_LOG_PROB_DIFFERENCE:.0e}."
        )

    def table(self) -> list[list[str]]:
        """The header and a row for each search."""
        rows = [["search", "equal", "tied", "different"]]
        for comparison in self.searches:
            counts = (comparison.num_equal, comparison.num_tied, comparison.num_different)
            rows.append([comparison.name, *(f"{count:,}" for count in counts)])
            if comparison.native_bleu is not None and comparison.engine_bleu is not None:
                rows[-1] += [f"{comparison.native_bleu:.2f}", f"{comparison.engine_bleu:.2f}"]
        if len(rows[-1]) > len(rows[0]):
            rows[0] += ["BLEU of the run", "BLEU of the export"]
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The certificate as a JSON object, as `certificate.json` has it."""
        values = asdict(self)
        for row, search in zip(values["searches"], self.searches, strict=True):
            row["bleu_difference"] = search.bleu_difference
        limits = {"log_prob_difference_limit": LARGEST_LOG_PROB_DIFFERENCE, "tie": TIE}
        return {"is_equal": self.is_equal} | values.pop("exported") | values | limits


@dataclass(frozen=True)
class _TestLine:
    number: int  # counted from 1
    text: str
    ids: Ids
    max_len: int  # of an output, with its end


def certify(predictor: Predictor, engine: Engine, lines: Lines, exported: Exported) -> Certificate:
    """The certificate of an export, from the first MOST_LINES lines that are not blank."""
    test_lines = _test_lines(predictor, lines)
    references = [[column[line.number - 1] for line in test_lines] for column in lines.references]
    sources, max_lens = [line.ids for line in test_lines], [line.max_len for line in test_lines]
    comparisons: list[SearchComparison] = []
    scored: list[tuple[Ids, Ids]] = []
    for search in engine.searches:
        # Without an alphabet, which no engine has.
        native = Predictor(predictor.model, predictor.tokenizer, _with_search(predictor.decoding, search))
        native_outputs = [best.ids for best, *_ in native.search(sources)]
        engine_outputs = engine.search(sources, max_lens, native.decoding)
        comparisons.append(_compare(native, test_lines, (native_outputs, engine_outputs), references))
        # Log-probabilities are compared on the outputs of the first search: they depend on no search.
        scored = scored or list(zip(sources, native_outputs, strict=True))[:_LINES_SCORED]
    return Certificate(
        exported=exported,
        lines_from=lines.origin,
        num_lines=len(test_lines),
        searches=comparisons,
        num_lines_scored=len(scored),
        log_prob_difference=_log_prob_difference(predictor, engine, scored),
    )


def _test_lines(predictor: Predictor, lines: Lines) -> list[_TestLine]:
    """The lines as a predictor reads them: blank ones left out, long ones truncated."""
    numbers = [number for number, text in enumerate(lines.sources, start=1) if text.strip()][:MOST_LINES]
    texts = [lines.sources[number - 1] for number in numbers]
    sources, _ = predictor.encode(texts)
    return [
        _TestLine(number, text, ids, predictor.max_len(ids))
        for number, text, ids in zip(numbers, texts, sources, strict=True)
    ]


def _with_search(decoding: DecodingConfig, search: DecodingConfig) -> DecodingConfig:
    """The settings of `search`, with the length limits of `decoding`."""
    return replace(search, max_len_ratio=decoding.max_len_ratio, max_len_extra=decoding.max_len_extra)


def _compare(
    native: Predictor,
    test_lines: Sequence[_TestLine],
    outputs: tuple[list[Ids], list[Ids]],
    references: Sequence[Sequence[str]],
) -> SearchComparison:
    """The comparison of one search's outputs, those of the run and those of the engine, line by line."""
    differing = [row for row, (a, b) in enumerate(zip(*outputs, strict=True)) if a != b]
    # Both get the score that the run's own model gives them. Where these are equal to rounding, either output may be
    # the best one: the search came down to a tie, and the engine is not to blame.
    scores = [_scores(native, [(test_lines[row].ids, side[row]) for row in differing]) for side in outputs]
    different = [
        _difference(native, test_lines[row], outputs=[side[row] for side in outputs], scores=pair)
        for row, *pair in zip(differing, *scores, strict=True)
        if not abs(pair[0] - pair[1]) <= TIE
    ]
    native_bleu, engine_bleu = (_bleu(native, side, references) for side in outputs)
    decoding = native.decoding
    return SearchComparison(
        beam_size=decoding.beam_size,
        length_penalty=decoding.length_penalty,
        length_norm=decoding.length_norm,
        num_equal=len(test_lines) - len(differing),
        num_tied=len(differing) - len(different),
        num_different=len(different),
        num_different_at_limit=sum(difference.is_at_limit for difference in different),
        differences=different[:_DIFFERENCES_SHOWN],
        native_bleu=native_bleu,
        engine_bleu=engine_bleu,
    )


def _difference(native: Predictor, line: _TestLine, *, outputs: Sequence[Ids], scores: Sequence[float]) -> Difference:
    native_text, engine_text = (native.tokenizer.decode_target(ids) for ids in outputs)
    return Difference(
        line=line.number,
        source=line.text,
        native=native_text,
        engine=engine_text,
        native_score=scores[0],
        engine_score=scores[1],
        is_at_limit=max(map(len, outputs)) + 1 >= line.max_len,
    )


def _scores(native: Predictor, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """The run's score of each (source, output): its log-probability, normalized by length as its search does it."""
    log_probs = list(_batched(pairs, lambda sources, outputs: token_log_probs(native.model, sources, outputs)))
    norms = length_norm_of(torch.tensor([float(len(row)) for row in log_probs]), native.decoding)
    return [sum(row) / norm for row, norm in zip(log_probs, norms.tolist(), strict=True)]


def _log_prob_difference(predictor: Predictor, engine: Engine, pairs: Sequence[tuple[Ids, Ids]]) -> float:
    native = _batched(pairs, lambda sources, outputs: token_log_probs(predictor.model, sources, outputs))
    exported = _batched(pairs, engine.log_probs)
    return float(np.abs(np.subtract([*chain(*native)], [*chain(*exported)])).max())


def _batched(
    pairs: Sequence[tuple[Ids, Ids]], log_probs: Callable[[list[Ids], list[Ids]], list[list[float]]]
) -> Iterator[list[float]]:
    """The `log_probs` of each (source, output), computed batch by batch."""
    for start in range(0, len(pairs), _SENTENCES_AT_ONCE):
        sources, outputs = zip(*pairs[start : start + _SENTENCES_AT_ONCE], strict=True)
        yield from log_probs([*sources], [*outputs])


def _bleu(native: Predictor, outputs: Sequence[Ids], references: Sequence[Sequence[str]]) -> float | None:
    if not references:
        return None
    texts = [native.tokenizer.decode_target(ids) for ids in outputs]
    return evaluate(["bleu"], texts, references, num_resamples=1)[0].value
