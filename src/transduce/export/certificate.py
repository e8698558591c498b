"""Whether an exported model answers as the run does: the same lines, asked of both, compared one by one."""

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
TIE = 1e-4  # two answers whose scores differ by no more are equally good: rounding decides between them
LARGEST_LOG_PROB_DIFFERENCE = 1e-4  # what float32 may lose on the way through another engine

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
    """An exported model, run by the program it was exported for. Ids are ours: sources with their ends, answers not."""

    @property
    def searches(self) -> tuple[DecodingConfig, ...]:
        """The searches that this engine has as well; their longest lengths come separately."""

    def search(self, sources: list[Ids], max_lens: list[int], decoding: DecodingConfig) -> list[Ids]:
        """The best answer to each source, of at most so many tokens with its end."""

    def log_probs(self, sources: list[Ids], answers: list[Ids]) -> list[list[float]]:
        """Natural log-probability of each token of each answer and of its end, given what is before it."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What both are asked; `references` are sets of one right answer to each line, if any are known."""

    sources: Sequence[str]
    references: Sequence[Sequence[str]] = ()
    origin: str

    def __post_init__(self) -> None:
        if not any(text.strip() for text in self.sources):
            raise DataError(f"{self.origin}: no line has text in it: there is nothing to compare answers to.")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a certificate is about."""

    format: str
    precision: str  # float32 or int8
    versions: dict[str, str]
    model_sha256: str
    unexpressed: list[str]  # the run's decoding settings that the format does not know, one line each


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A line with two answers; the scores of both are the run's own, normalised by length."""

    line: int  # counted from 1
    source: str
    native: str
    engine: str
    native_score: float
    engine_score: float
    is_at_limit: bool  # one of them is as long as an answer may be, where searches end it in their own ways


@dataclass(frozen=True, kw_only=True)
class SearchComparison:
    """All lines, answered by one kind of search."""

    beam_size: int
    length_penalty: float
    length_norm: str
    num_equal: int
    num_tied: int  # other answers, but as good to the run's own model (see TIE)
    num_different: int
    num_different_at_limit: int  # of these
    differences: list[Difference]  # the first of those that are not tied
    native_bleu: float | None  # None: no right answers are known
    engine_bleu: float | None

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.beam_size == 1:
            return "greedy"
        return f"beam {self.beam_size}" + (f", / length^{self.length_penalty:g}" if self.length_penalty else "")

    @property
    def bleu_difference(self) -> float | None:
        """Of the engine, less that of the run."""
        if self.native_bleu is None or self.engine_bleu is None:
            return None
        return self.engine_bleu - self.native_bleu


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was compared, and how it came out."""

    exported: Exported
    lines_from: str
    num_lines: int
    searches: list[SearchComparison]
    num_lines_scored: int
    log_prob_difference: float  # largest between the two, of any token of the run's own answers

    @property
    def is_equal(self) -> bool:
        """Whether every line got the same answer or one as good, with the same log-probabilities but for rounding."""
        has_same_scores = self.log_prob_difference <= LARGEST_LOG_PROB_DIFFERENCE  # False for NaN
        return has_same_scores and not any(found.num_different for found in self.searches)

    @property
    def verdict(self) -> str:
        """One sentence on the answers and one on their scores."""
        different = sum(found.num_different for found in self.searches)
        at_limit = sum(found.num_different_at_limit for found in self.searches)
        answers = "Every answer is the run's, or as good to its model."
        if different:
            asked = len(self.searches) * self.num_lines
            answers = f"{different:,} of {asked:,} answers are not the run's"
            answers += f" ({at_limit:,} of these are as long as an answer may be)." if at_limit else "."
        return (
            f"{answers} Log-probabilities differ by at most {self.log_prob_difference:.1e}; rounding to float32 may "
            f"account for {LARGEST_LOG_PROB_DIFFERENCE:.0e}."
        )

    def table(self) -> list[list[str]]:
        """The searches in rows, below their headings."""
        rows = [["search", "equal", "tied", "different"]]
        for found in self.searches:
            rows.append([found.name, *(f"{n:,}" for n in (found.num_equal, found.num_tied, found.num_different))])
            if found.native_bleu is not None and found.engine_bleu is not None:
                rows[-1] += [f"{found.native_bleu:.2f}", f"{found.engine_bleu:.2f}"]
        if len(rows[-1]) > len(rows[0]):
            rows[0] += ["BLEU of the run", "BLEU of the export"]
        return rows

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        for row, search in zip(found["searches"], self.searches, strict=True):
            row["bleu_difference"] = search.bleu_difference
        limits = {"log_prob_difference_limit": LARGEST_LOG_PROB_DIFFERENCE, "tie": TIE}
        return {"is_equal": self.is_equal} | found.pop("exported") | found | limits


@dataclass(frozen=True)
class _Question:
    line: int  # counted from 1
    text: str
    ids: Ids
    max_len: int  # of an answer, with its end


def certify(predictor: Predictor, engine: Engine, lines: Lines, exported: Exported) -> Certificate:
    """Asks both about the first MOST_LINES lines that are not blank."""
    questions = _questions(predictor, lines)
    references = [[answers[question.line - 1] for question in questions] for answers in lines.references]
    sources, max_lens = [question.ids for question in questions], [question.max_len for question in questions]
    found: list[SearchComparison] = []
    scored: list[tuple[Ids, Ids]] = []
    for search in engine.searches:
        native = Predictor(predictor.model, predictor.tokenizer, _with_search(predictor.decoding, search))
        own = [best.ids for best, *_ in native.search(sources)]
        theirs = engine.search(sources, max_lens, native.decoding)
        found.append(_compare(native, questions, own=own, theirs=theirs, references=references))
        scored = scored or list(zip(sources, own, strict=True))[:_LINES_SCORED]
    return Certificate(
        exported=exported,
        lines_from=lines.origin,
        num_lines=len(questions),
        searches=found,
        num_lines_scored=len(scored),
        log_prob_difference=_log_prob_difference(predictor, engine, scored),
    )


def _questions(predictor: Predictor, lines: Lines) -> list[_Question]:
    """The lines as a predictor reads them: none that is blank, long ones cut off."""
    numbers = [number for number, text in enumerate(lines.sources, start=1) if text.strip()][:MOST_LINES]
    texts = [lines.sources[number - 1] for number in numbers]
    sources, _ = predictor.encode(texts)
    return [
        _Question(number, text, ids, predictor.max_len(ids))
        for number, text, ids in zip(numbers, texts, sources, strict=True)
    ]


def _with_search(decoding: DecodingConfig, search: DecodingConfig) -> DecodingConfig:
    """Another search for the answers that `decoding` finds long enough."""
    return replace(search, max_len_ratio=decoding.max_len_ratio, max_len_extra=decoding.max_len_extra)


def _compare(
    native: Predictor,
    questions: Sequence[_Question],
    *,
    own: Sequence[Ids],
    theirs: Sequence[Ids],
    references: Sequence[Sequence[str]],
) -> SearchComparison:
    """What came of one search, answer by answer."""
    decoding = native.decoding
    differing = [row for row, (a, b) in enumerate(zip(own, theirs, strict=True)) if a != b]
    scores = [_scores(native, [(questions[row].ids, answers[row]) for row in differing]) for answers in (own, theirs)]
    different = [
        _difference(native, questions[row], answers=(own[row], theirs[row]), scores=pair)
        for row, *pair in zip(differing, *scores, strict=True)
        if not abs(pair[0] - pair[1]) <= TIE
    ]
    native_bleu, engine_bleu = (_bleu(native, answers, references) for answers in (own, theirs))
    return SearchComparison(
        beam_size=decoding.beam_size,
        length_penalty=decoding.length_penalty,
        length_norm=decoding.length_norm,
        num_equal=len(questions) - len(differing),
        num_tied=len(differing) - len(different),
        num_different=len(different),
        num_different_at_limit=sum(found.is_at_limit for found in different),
        differences=different[:_DIFFERENCES_SHOWN],
        native_bleu=native_bleu,
        engine_bleu=engine_bleu,
    )


def _difference(
    native: Predictor, question: _Question, *, answers: tuple[Ids, Ids], scores: Sequence[float]
) -> Difference:
    own, theirs = (native.tokenizer.decode_target(ids) for ids in answers)
    return Difference(
        line=question.line,
        source=question.text,
        native=own,
        engine=theirs,
        native_score=scores[0],
        engine_score=scores[1],
        is_at_limit=max(map(len, answers)) + 1 >= question.max_len,
    )


def _scores(native: Predictor, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """What the run's own model says of each (source, answer), normalised as its search does it."""
    found = list(_batched(pairs, lambda sources, answers: token_log_probs(native.model, sources, answers)))
    norms = length_norm_of(torch.tensor([float(len(log_probs)) for log_probs in found]), native.decoding)
    return [sum(log_probs) / norm for log_probs, norm in zip(found, norms.tolist(), strict=True)]


def _log_prob_difference(predictor: Predictor, engine: Engine, pairs: Sequence[tuple[Ids, Ids]]) -> float:
    ours = _batched(pairs, lambda sources, answers: token_log_probs(predictor.model, sources, answers))
    theirs = _batched(pairs, engine.log_probs)
    return float(np.abs(np.subtract([*chain(*ours)], [*chain(*theirs)])).max())


def _batched(
    pairs: Sequence[tuple[Ids, Ids]], log_probs: Callable[[list[Ids], list[Ids]], list[list[float]]]
) -> Iterator[list[float]]:
    """The `log_probs` of each (source, answer), asked for some at a time."""
    for start in range(0, len(pairs), _SENTENCES_AT_ONCE):
        batch = pairs[start : start + _SENTENCES_AT_ONCE]
        yield from log_probs([source for source, _ in batch], [answer for _, answer in batch])


def _bleu(native: Predictor, answers: Sequence[Ids], references: Sequence[Sequence[str]]) -> float | None:
    if not references:
        return None
    texts = [native.tokenizer.decode_target(ids) for ids in answers]
    return evaluate(["bleu"], texts, references, num_resamples=1)[0].value
