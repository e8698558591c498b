"""Subcommand: reproduce."""

import argparse
import json
import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from transduce.cli.console import open_output, print_json, print_table, refuse_missing_folder, report_of
from transduce.cli.main import main
from transduce.cli.recipes import (
    Recipe,
    differences_from,
    find_recipe,
    list_recipes,
    measure,
    rows_of,
    threads_in,
    verdicts,
)
from transduce.devices.device import find_device
from transduce.devices.machine import SIGNALS
from transduce.errors import ConfigMismatchError, TransduceError
from transduce.runs.corpus import places_of_environment
from transduce.runs.folder import RunFolder
from transduce.runs.parallelism import sessions_of
from transduce.training.signals import Stopped
from transduce.training.workers import threads_of_each, usable_threads

_STOPPED = {128 + signum for signum in SIGNALS}  # of a run that saved because it was told to stop, or had not begun


def reproduce_command(arguments: argparse.Namespace) -> int:
    """Train a recipe, score it once on its test sets, and compare with recorded and published scores."""
    if arguments.name is None:
        if options := [name for name in ("run_dir", "resume", "processes", "output") if getattr(arguments, name)]:
            option = "-o" if options[0] == "output" else f"--{options[0].replace('_', '-')}"
            raise TransduceError(f"{option} needs the NAME of a recipe: `transduce reproduce` alone lists them.")
        _list(list_recipes(), as_json=arguments.json)
        return 0
    recipe = find_recipe(arguments.name)
    refuse_missing_folder(arguments.output)
    run_dir = Path(arguments.run_dir or Path("runs") / f"{recipe.name}-{arguments.seed}")
    words = ["transduce", *arguments.words, *([] if arguments.resume else ["--resume"])]
    resume_hint = f"continue, and score at the end, with: {shlex.join(words)}"
    try:
        if status := _train(recipe, run_dir, arguments):
            if status in _STOPPED:
                print(f"transduce: {resume_hint}", file=sys.stderr)
            return status
        result = _measure(recipe, run_dir, arguments)
    except (Stopped, KeyboardInterrupt) as stop:  # while scoring
        signum = stop.signum if isinstance(stop, Stopped) else signal.SIGINT
        raise Stopped(signum, f"stopped; {resume_hint}") from None
    if arguments.output:
        with open_output(arguments.output) as file:
            file.write(json.dumps(result, indent=1).encode() + b"\n")
    if arguments.json:
        print_json(result)
    else:
        for line in verdicts(recipe, result):
            print(line)
    return 0


def _train(recipe: Recipe, run_dir: Path, arguments: argparse.Namespace) -> int:
    """Train the recipe by `transduce train`; return the exit status."""
    processes, threads = _num_processes(arguments), arguments.threads
    if arguments.resume and (run_dir / "run.json").exists():
        run = RunFolder.open(run_dir)
        started = run.facts["started"]
        processes, threads = arguments.processes or started["processes"], threads or threads_in(started)
        torch.set_num_threads(threads)
        _refuse_other_run(recipe, run, seed=arguments.seed, cores=(processes, threads_of_each(processes)))
    words = ["train", str(recipe.config_path), "--run-dir", str(run_dir), "--seed", str(arguments.seed)]
    words += ["--device", arguments.device]
    words += ["--threads", str(threads)] if threads else []
    words += [f"--{name}" for name in ("resume", "quiet", "debug") if getattr(arguments, name)]
    return main([*words, "--processes", str(processes)])


def _refuse_other_run(recipe: Recipe, run: RunFolder, *, seed: int, cores: tuple[int, int]) -> None:
    """Raises ConfigMismatchError if a run differs from the recipe at any step, or uses another number of cores."""
    if differences := differences_from(recipe, run, seed=seed):
        raise ConfigMismatchError(
            f"{run.path} was not trained like {recipe.name} with seed {seed} ({', '.join(differences)}): choose "
            "another folder with --run-dir."
        )
    counts = [(session["processes"], session["threads"]) for session in sessions_of(run.facts)]
    if others := {*counts, cores} - {counts[0]}:
        ways = [
            f"--processes {processes} --threads {processes * threads}"
            for processes, threads in (counts[0], *sorted(others))
        ]
        raise ConfigMismatchError(
            f"{run.path} was started with {ways[0]}, and its minutes are counted for these, so no part of it can use "
            f"{' or '.join(ways[1:])}: use those it was started with, or choose another folder with --run-dir."
        )


def _measure(recipe: Recipe, run_dir: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    spent = os.times()
    report_of(arguments)(f"scoring on {', '.join(recipe.tests)}")
    return measure(
        recipe,
        RunFolder.open(run_dir),
        arguments.device,
        places_of_environment(),
        cpu_seconds=spent.user + spent.system + spent.children_user + spent.children_system,
    )


def _num_processes(arguments: argparse.Namespace) -> int:
    """Number of processes: --processes, or the fastest: two on a CPU, if so many threads may run, one on a GPU."""
    on_cpu = find_device(arguments.device).type == "cpu"
    return int(arguments.processes or (min(2, usable_threads()) if on_cpu else 1))


def _list(recipes: list[Recipe], *, as_json: bool) -> None:
    if as_json:
        print_json({"recipes": [{**asdict(recipe), "results": recipe.results} for recipe in recipes]})
        return
    table = Table("recipe", "task", "recorded", "published")
    for recipe in recipes:
        rows = rows_of(recipe, recipe.results)
        recorded = "\n".join(f"{row.test} {row.metric} {row.mean:.2f} ({row.seeds})" for row in rows)
        published = "\n".join(
            f"{other.by}: {', '.join(f'{name} {value:.2f}' for name, value in other.scores.items())}"
            for other in recipe.published
        )
        table.add_row(recipe.name, recipe.title, recorded or "none yet", published)
    print_table(table)
