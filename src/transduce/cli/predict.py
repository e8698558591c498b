"""Subcommands: predict (= translate), explain."""

import argparse
import json
import webbrowser
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from transduce.cli.console import (
    annotation_row,
    groups_of_lines,
    open_output,
    prompt,
    refuse_output,
    report_of,
    write_now,
)
from transduce.cli.line_notes import LineNotes
from transduce.cli.predictor import load_predictor
from transduce.errors import TransduceError
from transduce.inference.explain import explain
from transduce.inference.explain_page import explanation_page
from transduce.inference.forced_decoding import Annotation
from transduce.inference.predictor import Prediction, Predictor


def predict_command(arguments: argparse.Namespace) -> int:
    refuse_output(arguments.output, arguments.file, arguments.run)
    predictor = load_predictor(arguments, arguments.run, reports=False)
    predictor.predict_n_best([], arguments.n_best)  # refuses an impossible number before a line is read
    notes, num_lines = LineNotes(predictor, report_of(arguments)), 0
    ask = prompt(arguments)
    with open_output(arguments.output) as file:
        ask("type a line and press Enter; Ctrl-D ends")
        for sources in groups_of_lines(arguments.file):
            outputs = predictor.predict_n_best(sources, arguments.n_best, first_row=num_lines)
            write_now(file, "".join(_format_lines(predictor, sources, outputs, arguments.json)).encode())
            for n_best in outputs:
                notes.add(n_best)
            num_lines += len(sources)
            ask("")
    notes.report()
    return 0


def _format_lines(
    predictor: Predictor, sources: Sequence[str], outputs: Sequence[Sequence[Prediction]], as_json: bool
) -> Iterator[str]:
    """One line for each source: its outputs, joined by tabs; in JSON the log-probability of every token, and more."""
    if not as_json:
        yield from ("\t".join(output.text for output in n_best) + "\n" for n_best in outputs)
        return
    pairs = [(source, output) for source, n_best in zip(sources, outputs, strict=True) for output in n_best]
    annotations = iter(predictor.annotate(*zip(*pairs, strict=True)))
    for source, n_best in zip(sources, outputs, strict=True):
        yield _json_line(source, n_best, list(islice(annotations, len(n_best))))


def _json_line(source: str, outputs: Sequence[Prediction], annotations: Sequence[Annotation]) -> str:
    """A JSON object: the source, and each output with its confidence, its tokens, and what is known of these."""
    predictions = [
        output.as_dict() | annotation_row(annotation) for output, annotation in zip(outputs, annotations, strict=True)
    ]
    row: dict[str, Any] = {"source": source, "source_tokens": annotations[0].source_tokens, "predictions": predictions}
    best = outputs[0]
    notes = {"truncated": best.is_source_truncated, "unseen": best.unseen, "long": best.is_long}
    row |= {name: value for name, value in notes.items() if value}
    return json.dumps(row, ensure_ascii=False) + "\n"


def explain_command(arguments: argparse.Namespace) -> int:
    if not (arguments.output or arguments.open):
        raise TransduceError("explain needs -o FILE for the page, or --open to show it in a browser.")
    refuse_output(arguments.output, None, arguments.run)
    predictor = load_predictor(arguments, arguments.run)
    output = arguments.output or str(Path(mkdtemp(prefix="transduce-")) / "page.html")
    with open_output(output) as file:
        explanation = explain(predictor, arguments.text)
        page = explanation_page(explanation, Path(arguments.run).name or arguments.run)
        write_now(file, page.html.encode())
    for line in page.left_out:
        predictor.report(line)
    answer = explanation.prediction
    rough = ", roughly, as there were too few validation pairs" if answer.is_rough else ""
    confidence = f"confidence {answer.confidence:.2f}: the estimated probability that the output equals a reference"
    how = "" if arguments.open else ": open it in a browser"
    predictor.report(f"wrote {output}{how} ({confidence}{rough})")
    if arguments.open and not webbrowser.open(Path(output).absolute().as_uri()):
        predictor.report("no browser was found here")
    return 0
