"""The verb that gets a row of the results again."""

import argparse
import json
import resource
from pathlib import Path

from rich.table import Table

from transduce.checkpoint import RunFolder
from transduce.distributed import spawn
from transduce.reproducing import Recipe, find_recipe, judged, list_recipes, measure, rows_of
from transduce.streams import answers_to, print_json, print_table, refuse_missing_folder, surroundings_of


def reproduce(arguments: argparse.Namespace) -> int:
    """Trains as the recipe says, scores once on its test sets, and compares with what is recorded and published."""
    if arguments.name is None:
        _list(list_recipes(), as_json=arguments.json)
        return 0
    recipe = find_recipe(arguments.name)
    refuse_missing_folder(arguments.output)
    run_dir = Path(arguments.run_dir or Path("runs") / f"{recipe.name}-{arguments.seed}")
    surroundings = surroundings_of(arguments)
    processes = arguments.processes or recipe.processes
    if status := spawn(processes, _training(recipe, run_dir, arguments)):
        return status
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    surroundings.report(f"scoring on {', '.join(recipe.tests)}")
    found = measure(
        recipe,
        RunFolder.open(run_dir),
        arguments.seed,
        surroundings,
        processes=processes,
        cpu_seconds=spent.ru_utime + spent.ru_stime,
    )
    if arguments.output:
        with answers_to(arguments.output) as output:
            output.write(json.dumps(found, indent=1).encode() + b"\n")
    if arguments.json:
        print_json(found)
    else:
        for line in judged(recipe, found):
            print(line)
    return 0


def _training(recipe: Recipe, run_dir: Path, arguments: argparse.Namespace) -> list[str]:
    """The command that trains it, which anyone can give as well."""
    words = ["train", str(recipe.config_path), "--run-dir", str(run_dir), "--seed", str(arguments.seed)]
    words += ["--device", arguments.device]
    words += ["--threads", str(arguments.threads)] if arguments.threads else []
    return [*words, *(["--resume"] if arguments.resume else []), *(["--quiet"] if arguments.quiet else [])]


def _list(recipes: list[Recipe], *, as_json: bool) -> None:
    if as_json:
        print_json({"recipes": [{"name": r.name, "title": r.title, "results": r.results} for r in recipes]})
        return
    table = Table("name", "what", "recorded", "published")
    for recipe in recipes:
        rows = rows_of(recipe, recipe.results)
        recorded = "\n".join(f"{row.test} {row.metric} {row.mean:.2f} ({len(row.values)} seeds)" for row in rows)
        published = "\n".join(
            f"{other.by}: {', '.join(f'{what} {value:.2f}' for what, value in other.scores.items())}"
            for other in recipe.published
        )
        table.add_row(recipe.name, recipe.title, recorded or "not yet", published)
    print_table(table)
