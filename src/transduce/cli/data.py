"""Subcommand: data."""

import argparse
from pathlib import Path

from rich.table import Table

from transduce.cli.console import print_json, print_table, report_of
from transduce.data import datasets
from transduce.errors import TransduceError
from transduce.runs.corpus import places_of_environment


def data_command(arguments: argparse.Namespace) -> int:
    report = report_of(arguments)
    if arguments.name is None:
        if arguments.output is not None:
            raise TransduceError("-o needs the name of a data set: transduce data NAME -o DIR.")
        listed = datasets.list_datasets()
        if arguments.json:
            named = ("name", "task", "description", "home", "licence", "splits")
            print_json({"datasets": [{key: getattr(found, key) for key in named} for found in listed]})
            return 0
        table = Table("name", "what", "pairs", "licence", "home")
        for found in listed:
            pairs = ", ".join(f"{split} {count:,}" for split, count in found.splits.items())
            table.add_row(found.name, found.description, pairs, found.licence, found.home)
        print_table(table)
        return 0
    if arguments.output is None:
        raise TransduceError(f"where to? Add -o DIR: transduce data {arguments.name} -o {arguments.name}")
    written = datasets.export(arguments.name, Path(arguments.output), places_of_environment())
    if arguments.json:
        print_json({"name": arguments.name, "files": [str(path) for path in written]})
    for path in written:
        report(f"wrote {path}")
    return 0
