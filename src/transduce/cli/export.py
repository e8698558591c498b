"""Subcommands: export, import."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from transduce.cli.console import number_columns, print_json, print_table, read_references, report_of
from transduce.data.download import Places
from transduce.data.pairs import read_lines
from transduce.errors import TransduceError
from transduce.export.certificate import Certificate, Lines
from transduce.export.folder import export_run, held_out_lines
from transduce.export.marian import import_marian
from transduce.runs.corpus import places_of_environment
from transduce.runs.folder import RunFolder
from transduce.runs.run import load


def export_command(arguments: argparse.Namespace) -> int:
    report = report_of(arguments)
    output = Path(arguments.output)
    predictor = load(arguments.run, device=arguments.device, report=report)
    certificate = export_run(
        predictor,
        output,
        format=arguments.format,
        int8=arguments.int8,
        lines=read_test_lines(predictor.folder, places_of_environment(), arguments.source, arguments.target),
        model_sha256=predictor.model_sha256,
        report=report,
    )
    if arguments.json:
        print_json(certificate.as_dict())
    else:
        _print_certificate(certificate)
    report(f"exported to {output}: README.md shows how to use it, certificate.json how closely it matches")
    return 0


def import_command(arguments: argparse.Namespace) -> int:
    report = report_of(arguments)
    import_marian(Path(arguments.folder), Path(arguments.output), report)
    output = arguments.output
    report(f"{output}: the model of {arguments.folder}. Try: transduce predict {shlex.quote(output)}")
    return 0


def read_test_lines(
    folder: RunFolder, places: Places, source: str | None, targets: Sequence[str] | None = None
) -> Lines:
    """The lines of `source` with the references in `targets`; without one, pairs that the run held out of training."""
    if targets and not source:
        raise TransduceError("--target gives references for the lines of --source: add --source FILE.")
    if source:
        if not targets:
            return Lines(sources=read_lines(Path(source)), origin=source)
        sources, references = read_references(source, targets)
        return Lines(sources=sources, references=references, origin=source)
    return held_out_lines(folder, places)


def _print_certificate(certificate: Certificate) -> None:
    (first, *names), *rows = certificate.table()
    exported = certificate.exported
    title = f"{exported.format}, {exported.precision}: {certificate.num_lines:,} lines of {certificate.lines_from}"
    table = Table(first, *number_columns(*names), title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    print_table(table)
    print(certificate.verdict)
    for line in exported.unexpressed:
        print(f"not exported: {line}")
