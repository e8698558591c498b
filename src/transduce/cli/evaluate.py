"""Subcommands: evaluate, compare."""

import argparse
import time
from pathlib import Path

from transduce.cli.console import TruncatedLines, print_json, print_scores, read_references
from transduce.cli.predictor import load_predictor
from transduce.config.settings import ExperimentConfig
from transduce.errors import TransduceError
from transduce.evaluation.config import GROUPED_METRICS, refuse_unknown_metrics
from transduce.evaluation.evaluate import predict_distinct, score
from transduce.evaluation.metrics import compare
from transduce.runs.corpus import count_training_overlap, places_of_environment
from transduce.runs.folder import RunFolder


def evaluate_command(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    predictor = load_predictor(arguments, arguments.run)
    sources, references = read_references(arguments.source, arguments.target)
    folder = RunFolder.open(Path(arguments.run))
    config = folder.settings
    metrics = _metrics_to_score(arguments, config)
    predictions, truncated = predict_distinct(predictor, sources), TruncatedLines()
    truncated.add([prediction] for prediction in predictions)
    scores = score(
        predictor, sources, references, metrics, group_sources=arguments.group_sources, predictions=predictions
    )
    overlap = count_training_overlap(config, folder, sources, references[0], places_of_environment())
    if arguments.json:
        print_json(
            {
                "run": arguments.run,
                "source": arguments.source,
                "target": arguments.target,
                "scores": {result.name: result.as_dict() for result in scores},
                "num_lines": len(sources),
                "num_truncated_sources": truncated.counts["source"],
                "num_truncated_outputs": truncated.counts["output"],
                "in_training_too": overlap,
                "beam_size": predictor.decoding.beam_size,
                "length_penalty": predictor.decoding.length_penalty,
                "int8": predictor.int8,
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        return 0
    print_scores(scores, f"on {len(sources):,} lines of {arguments.source}, beam {predictor.decoding.beam_size}")
    truncated.report(predictor.report)
    if overlap is None:
        predictor.report(
            "the training pairs are not where they were, or too many: nobody looked whether these are among them"
        )
    else:
        counts = ", ".join(f"{count:,} {side}" for side, count in overlap.items())
        predictor.report(f"in training too: {counts}")
    return 0


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
        raise TransduceError(f"--group-sources scores {' and '.join(GROUPED_METRICS)} alone, not {', '.join(metrics)}.")
    return metrics


def compare_command(arguments: argparse.Namespace) -> int:
    refuse_unknown_metrics([arguments.metric], "--metric")
    sources, references = read_references(arguments.source, arguments.target)
    a, b = (load_predictor(arguments, name).predict(sources) for name in (arguments.run_a, arguments.run_b))
    comparison = compare(arguments.metric, a, b, references, seed=arguments.seed, method=arguments.method)
    if arguments.json:
        print_json({"run_a": arguments.run_a, "run_b": arguments.run_b} | comparison.as_dict())
    else:
        print(f"A: {arguments.run_a}\nB: {arguments.run_b}\n{comparison}")
    return 0
