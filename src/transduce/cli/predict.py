"""Subcommands: predict (= translate), explain."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from transduce.cli.console import answers_to, groups_of_lines, json_line, refuse_output, text_line, write_now
from transduce.cli.predictor import load_predictor
from transduce.inference.explain import explain
from transduce.inference.explain_page import explanation_page
from transduce.inference.predictor import Prediction, Predictor

Arguments = argparse.Namespace


_MOST_CUT_NAMED = 10  # lines that were too long, told by their numbers


def predict_command(arguments: Arguments) -> int:
    refuse_output(arguments.output, arguments.file)
    predictor = load_predictor(arguments, arguments.run)
    predictor.predict_n_best([], arguments.n_best)  # a number that cannot be had is refused before a line is read
    num_lines, cut = 0, []
    with answers_to(arguments.output) as output:
        for sources in groups_of_lines(arguments.file):
            answered = predictor.predict_n_best(sources, arguments.n_best, first_row=num_lines)
            write_now(output, "".join(_told(predictor, sources, answered, arguments.json)).encode())
            cut += [str(number) for number, answers in enumerate(answered, num_lines + 1) if answers[0].is_truncated]
            cut = cut[:_MOST_CUT_NAMED]
            num_lines += len(sources)
    if cut:
        more = ", ..." if predictor.num_truncated > len(cut) else ""
        predictor.report(f"lines cut off: {predictor.num_truncated:,} of {num_lines:,}, line {', '.join(cut)}{more}")
    return 0


def _told(
    predictor: Predictor, sources: Sequence[str], answered: Sequence[Sequence[Prediction]], as_json: bool
) -> Iterator[str]:
    """The line that answers each source; in JSON with what the model thinks of every token."""
    if not as_json:
        yield from map(text_line, answered)
        return
    pairs = [(source, answer) for source, answers in zip(sources, answered, strict=True) for answer in answers]
    annotations = iter(predictor.annotate(*zip(*pairs, strict=True)))
    for source, answers in zip(sources, answered, strict=True):
        yield json_line(source, answers, list(islice(annotations, len(answers))))


def explain_command(arguments: Arguments) -> int:
    refuse_output(arguments.output, arguments.run)
    predictor = load_predictor(arguments, arguments.run)
    with answers_to(arguments.output) as output:
        page = explanation_page(explain(predictor, arguments.text), Path(arguments.run).name or arguments.run)
        write_now(output, page.html.encode())
    for line in page.left_out:
        predictor.report(line)
    predictor.report(f"wrote {arguments.output}: open it in a browser")
    return 0
