"""Subcommands: evaluate, compare."""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from transduce.cli.calibration import calibration_lines, measure_calibration
from transduce.cli.console import print_json, print_scores, read_references, report_of
from transduce.cli.line_notes import LineNotes
from transduce.cli.predictor import load_predictor
from transduce.config.settings import ExperimentConfig
from transduce.data.config import IN_MEMORY
from transduce.data.download import Places
from transduce.data.pairs import Pairs, count_overlap
from transduce.data.parsing import is_empty
from transduce.errors import DataError, TransduceError
from transduce.evaluation.bleu import References, default_metrics, notes_on
from transduce.evaluation.config import GROUPED_METRICS, refuse_unknown_metrics
from transduce.evaluation.evaluate import predict_distinct, score
from transduce.evaluation.metrics import compare
from transduce.runs.corpus import hold_out, is_large, pairs_at_hand, places_of_environment
from transduce.runs.folder import RunFolder


def evaluate_command(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    predictor, report = load_predictor(arguments, arguments.run, reports=False), report_of(arguments)
    sources, references = read_references(arguments.source, arguments.target)
    for name, lines in zip(arguments.target, references, strict=True):
        pairs = enumerate(zip(sources, lines, strict=True), start=1)
        if empty := [number for number, (source, line) in pairs if is_empty(line) and not is_empty(source)]:
            count = f"{len(empty):,} of {len(lines):,} references are empty where the source is not"
            report(f"{name}: {count}, the first in line {empty[0]:,}: do the files belong together?")
    config = predictor.settings
    metrics = _metrics_to_score(arguments, config)
    if not arguments.metric:
        metrics = _without_bleu(metrics, references, report)
    predictions, notes = predict_distinct(predictor, sources), LineNotes(predictor, report)
    for prediction in predictions:
        notes.add([prediction])
    scores = score(
        predictor, sources, references, metrics, group_sources=arguments.group_sources, predictions=predictions
    )
    given = (predictor, sources, references, predictions)
    calibration = measure_calibration(*given) if arguments.calibration else {}
    notes.report()
    for note in notes_on(metrics, references):
        report(note)
    overlap = count_training_overlap(config, predictor.folder, sources, references[0], places_of_environment())
    if arguments.json:
        print_json(
            {
                "run": arguments.run,
                "source": arguments.source,
                "target": arguments.target,
                "scores": {result.name: result.as_dict() for result in scores},
                "num_lines": len(sources),
                "num_truncated_sources": notes.counts["source"],
                "num_truncated_outputs": notes.counts["output"],
                "in_training_too": overlap,
                "beam_size": predictor.decoding.beam_size,
                "length_penalty": predictor.decoding.length_penalty,
                "int8": predictor.is_int8,
                "seconds": round(time.perf_counter() - started, 2),
            }
            | ({"calibration": calibration} if calibration else {})
        )
        return 0
    print_scores(scores, f"on {len(sources):,} lines of {arguments.source}, beam {predictor.decoding.beam_size}")
    for line in calibration_lines(calibration):
        print(line)
    report(_about_overlap(overlap, config))
    return 0


def count_training_overlap(
    config: ExperimentConfig, folder: RunFolder, sources: Sequence[str], targets: Sequence[str], places: Places
) -> dict[str, int] | None:
    """How many of these lines the run was trained on; None if its training pairs are not at hand."""
    train, number = pairs_at_hand("train", config.data, folder, places), folder.facts.get("num_train_pairs")
    if train is not None and len(train) != number:
        with suppress(DataError):  # by `fit`, without the parts held out
            train = hold_out(train, "", has_valid=bool(config.data.valid), num_train=number)[0]
    if train is None or len(train) != number:
        return None
    return count_overlap(train, Pairs(list(sources), list(targets), {}, [], {}))


def _about_overlap(overlap: dict[str, int] | None, config: ExperimentConfig) -> str:
    if overlap is not None:
        return f"also in the training data: {', '.join(f'{count:,} {side}' for side, count in overlap.items())}"
    if IN_MEMORY in config.data.train:
        return "overlap with the training data: unknown, because those pairs were in memory"
    if is_large(config.data.train):
        return "overlap with the training data: not counted, because the corpus is larger than memory"
    where = config.data.dataset or " and ".join(config.data.train)
    return f"overlap with the training data: unknown, because {where} has moved or changed"


def _without_bleu(metrics: tuple[str, ...], references: References, report: Callable[[str], None]) -> tuple[str, ...]:
    """Default metrics, without a BLEU that cannot be computed; reports that."""
    chosen = default_metrics(metrics, references)
    if chosen != metrics:
        report(f"references are too short for BLEU (fewer than four tokens): scored by {', '.join(chosen)}")
    return chosen


def _metrics_to_score(arguments: argparse.Namespace, config: ExperimentConfig) -> tuple[str, ...]:
    """The metrics of --metric, or those of the run. Raises TransduceError before the long work, not after it."""
    if arguments.metric:
        metrics = tuple(name.strip() for name in arguments.metric.split(","))
    elif arguments.group_sources:
        metrics = GROUPED_METRICS
    else:
        metrics = config.validation.metrics or ("bleu",)
    refuse_unknown_metrics(metrics, "--metric")
    if arguments.group_sources and not set(metrics) <= set(GROUPED_METRICS):
        raise TransduceError(f"--group-sources scores only {' and '.join(GROUPED_METRICS)}, not {', '.join(metrics)}.")
    return metrics


def compare_command(arguments: argparse.Namespace) -> int:
    refuse_unknown_metrics([arguments.metric] if arguments.metric else [], "--metric")
    report = report_of(arguments)
    sources, references = read_references(arguments.source, arguments.target)
    metric = arguments.metric or _without_bleu(("bleu",), references, report)[0]
    for note in notes_on([metric], references):
        report(note)
    a, b = (load_predictor(arguments, name).predict(sources) for name in (arguments.run_a, arguments.run_b))
    comparison = compare(metric, a, b, references, seed=arguments.seed, method=arguments.method)
    if arguments.json:
        print_json({"run_a": arguments.run_a, "run_b": arguments.run_b} | comparison.as_dict())
    else:
        print(f"A: {arguments.run_a}\nB: {arguments.run_b}\n{comparison}")
    return 0
