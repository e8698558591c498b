"""The verb that gets a row of the results again."""

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from transduce import machine
from transduce.checkpoint import RunFolder
from transduce.corpus import Surroundings
from transduce.distributed import spawn
from transduce.errors import TransduceError
from transduce.predictor import find_device
from transduce.reproducing import (
    Recipe,
    answer_training_sources,
    find_recipe,
    judged,
    list_recipes,
    measure,
    rows_of,
)
from transduce.streams import answers_to, print_json, print_table, refuse_missing_folder, surroundings_of


def reproduce(arguments: argparse.Namespace) -> int:
    """Trains as the recipe says, scores once on its test sets, and compares with what is recorded and published."""
    if arguments.name is None:
        if given := [name for name in ("run_dir", "resume", "processes", "output") if getattr(arguments, name)]:
            option = "-o" if given[0] == "output" else f"--{given[0].replace('_', '-')}"
            raise TransduceError(f"{option} needs the NAME of a row: `transduce reproduce` alone lists them.")
        _list(list_recipes(), as_json=arguments.json)
        return 0
    recipe = find_recipe(arguments.name)
    refuse_missing_folder(arguments.output)
    run_dir = Path(arguments.run_dir or Path("runs") / f"{recipe.name}-{arguments.seed}")
    surroundings = surroundings_of(arguments)
    commit = machine.commit()  # before training: another one may be made meanwhile
    teacher_dir = run_dir.with_name(f"{recipe.teacher}-{arguments.seed}") if recipe.teacher else None
    if status := _train(recipe, run_dir, teacher_dir, arguments, surroundings):
        if any((folder / "run.json").exists() for folder in (run_dir, teacher_dir) if folder):
            words = ["transduce", *arguments.words, *([] if arguments.resume else ["--resume"])]
            print(f"transduce: to be scored at the end, go on with: {shlex.join(words)}", file=sys.stderr)
        return status
    spent = os.times()
    surroundings.report(f"scoring on {', '.join(recipe.tests)}")
    found = measure(
        recipe,
        RunFolder.open(run_dir),
        surroundings,
        commit=commit,
        cpu_seconds=sum(spent[:4]),
        teacher=RunFolder.open(teacher_dir) if teacher_dir else None,
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


def _num_processes(arguments: argparse.Namespace) -> int:
    """As many as share a step best: two on a CPU, one on a GPU."""
    on_cpu = find_device(arguments.device).type == "cpu"
    return int(arguments.processes or (min(2, machine.num_cores()) if on_cpu else 1))


def _train(
    recipe: Recipe, run_dir: Path, teacher_dir: Path | None, arguments: argparse.Namespace, surroundings: Surroundings
) -> int:
    """Trains the recipe, its teacher first, each in processes of their own; the exit status of what failed, else 0."""
    words = _training(recipe, run_dir, arguments)
    if teacher_dir:
        if not arguments.resume:
            RunFolder(run_dir).refuse_other_use()  # before the long work
        surroundings.report(f"the teacher is {recipe.teacher}, in {teacher_dir}")
        teacher = _training(find_recipe(recipe.teacher), teacher_dir, arguments)
        # A teacher that was trained as a row of its own need not be trained again.
        if status := spawn(_num_processes(arguments), [*teacher, *([] if arguments.resume else ["--resume"])]):
            return status
        answers = answer_training_sources(RunFolder.open(teacher_dir), surroundings)
        words += ["--init-from", str(teacher_dir), "--data.more", json.dumps([str(answers)])]
    return spawn(_num_processes(arguments), words)


def _training(recipe: Recipe, run_dir: Path, arguments: argparse.Namespace) -> list[str]:
    """The command that trains it, which anyone can give as well."""
    words = ["train", str(recipe.config_path), "--run-dir", str(run_dir), "--seed", str(arguments.seed)]
    words += ["--device", arguments.device]
    words += ["--threads", str(arguments.threads)] if arguments.threads else []
    return [*words, *(f"--{name}" for name in ("resume", "quiet", "debug") if getattr(arguments, name))]


def _list(recipes: list[Recipe], *, as_json: bool) -> None:
    if as_json:
        print_json({"recipes": [{**asdict(recipe), "results": recipe.results} for recipe in recipes]})
        return
    table = Table("name", "what", "recorded", "published")
    for recipe in recipes:
        rows = rows_of(recipe, recipe.results)
        recorded = "\n".join(f"{row.test} {row.metric} {row.mean:.2f} ({row.seeds})" for row in rows)
        published = "\n".join(
            f"{other.by}: {', '.join(f'{what} {value:.2f}' for what, value in other.scores.items())}"
            for other in recipe.published
        )
        table.add_row(recipe.name, recipe.title, recorded or "not yet", published)
    print_table(table)
