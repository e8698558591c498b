"""How good a model is: its scores on any lines, and the validation that training goes by."""

from collections.abc import Sequence

from transduce.errors import TransduceError
from transduce.evaluation.config import GROUPED_METRICS
from transduce.evaluation.metrics import Score, evaluate, evaluate_pronunciation
from transduce.inference.predictor import Predictor


def score(
    predictor: Predictor,
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str],
    *,
    group_sources: bool = False,
    num_resamples: int = 1000,
) -> list[Score]:
    """Answers `sources` and scores the answers; `references` are sets of one line per source.

    With `group_sources`, rows of the same source are its alternatives, and the scores are those of distinct sources:
    `word_error`, the share that is wrong, and `per`.
    """
    if group_sources and not set(metrics) <= set(GROUPED_METRICS):
        raise TransduceError(
            f"grouped by source, {' and '.join(GROUPED_METRICS)} alone score, not {', '.join(metrics)}."
        )
    distinct = list(dict.fromkeys(sources))
    answers = dict(zip(distinct, predictor.predict(distinct), strict=True))
    hypotheses = [answers[source] for source in sources]
    if group_sources:
        found = evaluate_pronunciation(sources, hypotheses, references, num_resamples=num_resamples)
        return [result for result in found if result.name in metrics]
    return evaluate(metrics, hypotheses, references, num_resamples=num_resamples)
