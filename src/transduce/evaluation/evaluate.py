"""Evaluation of a predictor on parallel lines."""

from collections.abc import Sequence

from transduce.evaluation.definitions import References
from transduce.evaluation.metrics import Score, evaluate, group_by_source
from transduce.inference.predictor import Prediction, Predictor


def predict_distinct(predictor: Predictor, sources: Sequence[str]) -> list[Prediction]:
    """The best output for each source; equal sources are predicted once."""
    distinct = list(dict.fromkeys(sources))
    outputs = dict(zip(distinct, predictor.predict_n_best(distinct, 1), strict=True))
    return [outputs[source][0] for source in sources]


def score(
    predictor: Predictor,
    sources: Sequence[str],
    references: References,
    metrics: Sequence[str],
    *,
    group_sources: bool = False,
    num_resamples: int = 1000,
    predictions: Sequence[Prediction] | None = None,
) -> list[Score]:
    """Predict outputs for `sources`, unless they are given, and score them; `references` are sets of one line each.

    With `group_sources`, rows of the same source are its alternatives, and the scores are those of distinct sources.
    Raises as `evaluate` does.
    """
    hypotheses = [output.text for output in predictions or predict_distinct(predictor, sources)]
    if group_sources:
        _, hypotheses, references = group_by_source(sources, hypotheses, references)
    return evaluate(metrics, hypotheses, references, num_resamples=num_resamples)
