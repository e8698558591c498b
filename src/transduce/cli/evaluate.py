"""Subcommands: evaluate, compare."""

import argparse
import time
from pathlib import Path

from transduce.cli.console import print_json, print_scores, read_references
from transduce.cli.predictor import load_predictor
from transduce.config.settings import ExperimentConfig
from transduce.data.config import IN_MEMORY
from transduce.data.parsing import is_empty
from transduce.errors import TransduceError
from transduce.evaluation.config import GROUPED_METRICS, refuse_unknown_metrics
from transduce.evaluation.evaluate import score
from transduce.evaluation.metrics import compare
from transduce.runs.corpus import count_training_overlap, places_of_environment
from transduce.runs.folder import RunFolder


def evaluate_command(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    predictor = load_predictor(arguments, arguments.run)
    sources, references = read_references(arguments.source, arguments.target)
    for name, lines in zip(arguments.target, references, strict=True):
        pairs = enumerate(zip(sources, lines, strict=True), start=1)
        if empty := [number for number, (source, line) in pairs if is_empty(line) and not is_empty(source)]:
            count = f"{len(empty):,} of {len(lines):,} references are empty where the source is not"
            predictor.report(f"{name}: {count}, the first in line {empty[0]:,}: do the files belong together?")
    folder = RunFolder.open(Path(arguments.run))
    config = folder.settings
    metrics = _metrics_to_score(arguments, config)
    scores = score(predictor, sources, references, metrics, group_sources=arguments.group_sources)
    overlap = count_training_overlap(config, folder, sources, references[0], places_of_environment())
    if arguments.json:
        print_json(
            {
                "run": arguments.run,
                "source": arguments.source,
                "target": arguments.target,
                "scores": {result.name: result.as_dict() for result in scores},
                "num_lines": len(sources),
                "in_training_too": overlap,
                "beam_size": predictor.decoding.beam_size,
                "length_penalty": predictor.decoding.length_penalty,
                "int8": predictor.int8,
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        return 0
    print_scores(scores, f"on {len(sources):,} lines of {arguments.source}, beam {predictor.decoding.beam_size}")
    if overlap is None:
        reason = "were in memory" if IN_MEMORY in config.data.train else "are not where they were, or too many"
        predictor.report(f"the training pairs {reason}: nobody looked whether these are among them")
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
