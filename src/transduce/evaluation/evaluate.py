"""Evaluation of a predictor on parallel lines."""

from collections.abc import Iterable, Sequence
from typing import Any

from transduce.data.texts import list_texts
from transduce.evaluation.config import refuse_unknown_metrics
from transduce.evaluation.definitions import References
from transduce.evaluation.metrics import NUM_RESAMPLES, Score, check, evaluate, group_by_source
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
    num_resamples: int = NUM_RESAMPLES,
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


def as_lists(
    sources: Iterable[str], references: Iterable[Any], metrics: str | Iterable[str]
) -> tuple[list[str], list[list[str | None]], list[str]]:
    """Sources, sets of references and names of metrics, for `score`; a list of str is a single set.

    Raises TransduceError for what is none or of unequal lengths: before the long work, not after it.
    """
    given, items = list_texts(sources, "source"), list_texts(references, "reference", str | Iterable)
    sets = [items] if any(isinstance(each, str) for each in items) else items
    sets = [list_texts(each, "reference", str if each is items else str | None) for each in sets]
    check(given, sets)
    names = metrics.split(",") if isinstance(metrics, str) else list_texts(metrics, "metric")
    refuse_unknown_metrics(names, "metrics")
    return given, sets, names
