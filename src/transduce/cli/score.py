"""Subcommand: score."""

import argparse
import json
import math
from collections.abc import Iterator

from transduce.cli.console import (
    annotation_row,
    groups_of_lines,
    open_output,
    read_references,
    refuse_output,
    report_of,
    write_now,
)
from transduce.data.texts import MOST_TEXTS
from transduce.errors import DataError, TransduceError
from transduce.inference.predictor import Prediction
from transduce.runs.run import Run, load

Block = tuple[list[str], list[str]]  # sources and targets


def score_command(arguments: argparse.Namespace) -> int:
    parallel = [name for name in (arguments.source, arguments.target) if name is not None]
    if len(parallel) == 1 or (parallel and arguments.file != "-"):
        raise TransduceError("give either one FILE of pairs (source TAB target), or --source FILE and --target FILE.")
    for name in parallel or [arguments.file]:
        refuse_output(arguments.output, name, arguments.run)
    run, num_lines = load(arguments.run, device=arguments.device, report=report_of(arguments)), 0
    with open_output(arguments.output) as file:
        for sources, targets in _blocks(arguments):
            ids = run.target_ids(targets, first=num_lines + 1)
            outputs = [Prediction(target, 0.0, 0.0, tuple(each)) for target, each in zip(targets, ids, strict=True)]
            write_now(file, "".join(_lines(run, sources, outputs, arguments)).encode())
            num_lines += len(sources)
    return 0


def _blocks(arguments: argparse.Namespace) -> Iterator[Block]:
    """The pairs to score, some at a time."""
    if arguments.source:
        sources, [targets] = read_references(arguments.source, [arguments.target])
        for start in range(0, len(sources), MOST_TEXTS):
            yield sources[start : start + MOST_TEXTS], targets[start : start + MOST_TEXTS]
        return
    name, num_lines = "standard input" if arguments.file == "-" else arguments.file, 0
    for lines in groups_of_lines(arguments.file):
        columns = [line.split("\t") for line in lines]
        for number, row in enumerate(columns, start=num_lines + 1):
            if len(row) != 2:
                raise DataError(f"{name}, line {number}: {len(row)} columns, 2 needed: source TAB target.")
        yield [source for source, _ in columns], [target for _, target in columns]
        num_lines += len(lines)


def _lines(run: Run, sources: list[str], outputs: list[Prediction], arguments: argparse.Namespace) -> Iterator[str]:
    """One line for each pair; in JSON the log-probability of impossible outputs is null."""
    log_probs = run.log_prob(sources, outputs)
    if arguments.per_token:  # the end is one, too
        log_probs = [log_prob / (len(each.ids) + 1) for log_prob, each in zip(log_probs, outputs, strict=True)]
    if not arguments.json:
        yield from (f"{log_prob:.6f}\n" for log_prob in log_probs)
        return
    annotations = run.annotate(sources, outputs)
    for source, output, log_prob, annotation in zip(sources, outputs, log_probs, annotations, strict=True):
        row = {"source": source, "target": output.text, "log_prob": log_prob if math.isfinite(log_prob) else None}
        yield json.dumps(row | annotation_row(annotation), ensure_ascii=False) + "\n"
