"""Evaluation of a predictor on parallel lines."""

from collections.abc import Sequence

from transduce.evaluation.definitions import References
from transduce.evaluation.metrics import Score, evaluate, group_by_source
from transduce.inference.predictor import Predictor


def score(
    predictor: Predictor,
    sources: Sequence[str],
    references: References,
    metrics: Sequence[str],
    *,
    group_sources: bool = False,
    num_resamples: int = 1000,
) -> list[Score]:
    """Predict outputs for `sources` and score them; `references` are sets of one line per source.

    With `group_sources`, rows of the same source are its alternatives, and the scores are those of distinct sources.
    Raises as `evaluate` does.
    """
    distinct = list(dict.fromkeys(sources))
    outputs = dict(zip(distinct, predictor.predict(distinct), strict=True))
    hypotheses = [outputs[source] for source in sources]
    if group_sources:
        _, hypotheses, references = group_by_source(sources, hypotheses, references)
    return evaluate(metrics, hypotheses, references, num_resamples=num_resamples)
