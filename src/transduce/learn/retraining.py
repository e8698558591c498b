"""Every claim that compares trainings, tried at another rate and for four times the steps: `make claims`.

    python -m transduce.learn.retraining [EXPERIMENT ...]

A claim about trained networks may be one about a stopped clock, or about a learning rate. So the experiment of each is
run as it stands, at 0.3 times its rates, and for four times its steps with each training at the better of the two.
A line of JSON is written for each training, and one for what each run measured. What stands in the file is
not run again, so that a run that was stopped goes on. At the end the ledger gets what was found, and what each claim
was expected to be before it was measured is compared with the history of the ledger.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from transduce.devices.cpu import speed_up_cpu
from transduce.devices.machine import usable_cores
from transduce.errors import TransduceError
from transduce.files.atomic import write_atomically
from transduce.learn.ledger import LONGER, OTHER_RATE, Ledger, in_words, rounded, run_experiment
from transduce.learn.varying import Variation, varied

GIVEN, OTHER, BETTER = "given", "other", "better"
_STARTS = (0, 100, 200)  # added to the seeds of an experiment


@dataclass(frozen=True)
class Run:
    """One run of an experiment."""

    experiment: str
    times: int  # its steps
    rates: str  # GIVEN, OTHER (OTHER_RATE times those), or BETTER: for each training the one that ended lower
    seed: int = 0  # added to each of the experiment's

    @property
    def needs(self) -> tuple["Run", ...]:
        """The runs that tell which rates are better."""
        if self.rates != BETTER:
            return ()
        return tuple(Run(self.experiment, 1, rates, self.seed) for rates in (GIVEN, OTHER))


def runs_of(experiment: str, num_starts: int = 1) -> list[Run]:
    """All that are asked of an experiment."""
    kinds = ((1, GIVEN), (1, OTHER), (LONGER, BETTER))
    return [Run(experiment, times, rates, seed) for seed in _STARTS[:num_starts] for times, rates in kinds]


class Results:
    """The file of results, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[Run, dict[str, float]] = {}  # what each run measured
        self.trainings: dict[Run, list[dict[str, float]]] = {}
        text = path.read_text() if path.exists() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:  # the last line, of a run that was killed while it was written
            write_atomically(path, f"{whole}\n".encode() if whole else b"")
        for line in whole.split("\n") if whole else []:
            self._add(json.loads(line))

    def append(self, run: Run, trainings: list[dict[str, float]], values: dict[str, float]) -> None:
        """Writes what came of a run: the line that says that it is whole comes last."""
        rows = [{"run": asdict(run), "training": number} | row for number, row in enumerate(trainings)]
        rows.append({"run": asdict(run), "values": values})
        with self.path.open("a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        for row in rows:
            self._add(row)

    def factors(self, run: Run) -> list[float]:
        """Of each training's rate."""
        if run.rates != BETTER:
            return [OTHER_RATE] * 1_000 if run.rates == OTHER else []
        given, other = (self.trainings[needed] for needed in run.needs)
        return [1.0 if a["loss"] <= b["loss"] else OTHER_RATE for a, b in zip(given, other, strict=True)]

    def _add(self, row: dict[str, Any]) -> None:
        run = Run(**row["run"])
        if "values" in row:
            self.values[run] = row["values"]
        else:
            known = {key: value for key, value in row.items() if key not in ("run", "training")}
            trainings = self.trainings.setdefault(run, [])
            del trainings[row["training"] :]  # of a run that was cut off while it was written
            trainings.append(known)


def carry_out(run: Run, factors: list[float], values: set[str]) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Runs an experiment: each of its trainings, and the `values` by which claims are settled."""
    torch.set_num_threads(1)
    speed_up_cpu()
    with varied(run.times, factors, run.seed) as variation:
        result = run_experiment(run.experiment, fast=False)
    return _rows(variation), {value: float(getattr(result, value)) for value in sorted(values)}


def _rows(variation: Variation) -> list[dict[str, float]]:
    return [
        {name: value if isinstance(value, int) else float(f"{value:.5g}") for name, value in asdict(training).items()}
        for training in variation.trained
    ]


def run_all(runs: Sequence[Run], ledger: Ledger, results: Results) -> None:
    """Runs what is not in `results` yet, one process on each core, each as soon as what it needs is known.

    Where an experiment fails, the others go on; its error is raised at the end.
    """
    values = {run: {c.value for c in ledger.claims.values() if c.experiment == run.experiment} for run in runs}
    due = [run for run in values if not values[run] <= set(results.values.get(run, ()))]
    failed: dict[Run, BaseException] = {}
    # A process for each run: what an experiment keeps in memory was trained in one way.
    pool = ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn"), max_tasks_per_child=1)
    works: dict[Future[Any], Run] = {}
    with pool:
        while due or works:
            due = [run for run in due if not failed.keys() & {run, *run.needs}]
            ready = [run for run in due if not {*run.needs} & {*due, *works.values()}]
            for run in ready[: usable_cores() - len(works)]:
                due.remove(run)
                works[pool.submit(carry_out, run, results.factors(run), values[run])] = run
            for work in wait(works, return_when=FIRST_COMPLETED).done:
                run = works.pop(work)
                if error := work.exception():
                    failed[run] = error
                    continue
                results.append(run, *work.result())
                print(told(run, results), flush=True)
    for run, error in failed.items():
        raise TransduceError(f"{run}: {type(error).__name__}: {error}") from error


def told(run: Run, results: Results) -> str:
    """What came of a run, in a line."""
    seconds = sum(training["seconds"] for training in results.trainings.get(run, ()))
    values = ", ".join(f"{name} {value:.4g}" for name, value in results.values[run].items())
    return f"{run.experiment} x{run.times}, {run.rates} rates, seed +{run.seed}, {seconds:.0f} s: {values}"


def ledger_fields(ledger: Ledger, results: Results) -> dict[str, dict[str, Any]]:
    """Of each claim about trainings: its steps, its rates, and what was measured otherwise, the mean of the starts."""
    fields: dict[str, dict[str, Any]] = {}
    for claim in ledger.claims.values():
        runs = runs_of(claim.experiment, claim.starts)
        if claim.seeds and all(run in results.values for run in runs):
            given, other, better = ([run for run in runs if run.rates == kind] for kind in (GIVEN, OTHER, BETTER))
            rates = [row["rate"] for run in runs for row in results.trainings[run]]
            steps = {int(row["steps"]) for run in given for row in results.trainings[run]}
            fields[claim.name] = {
                # Some experiments have trainings of another length beside those of the claim.
                "steps": claim.steps if claim.steps in steps else max(steps),
                "rates": [max(rates), min(rates)],
                "at_other_rate": rounded(fmean(results.values[run][claim.value] for run in other)),
                "longer": rounded(fmean(results.values[run][claim.value] for run in better)),
            }
    return fields


def first_expectations(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """What each measurement was expected to be when it first stood in the ledger, and the commit.

    By the experiment's function and the value, as claims get other names where they turn out to be something else.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=path.parent, capture_output=True, text=True, check=True).stdout

    found: dict[tuple[str, str], tuple[str, str]] = {}
    for commit in git("log", "--reverse", "--format=%H", "--", path.name).split():
        for table in tomllib.loads(git("show", f"{commit}:./{path.name}")).values():
            expected = in_words(table.get("at_least"), table.get("at_most"))
            found.setdefault(_measurement(table["experiment"], table["value"]), (expected, commit[:10]))
    return found


def _measurement(experiment: str, value: str) -> tuple[str, str]:
    return experiment.rpartition(".")[2], value


def mismatches(ledger: Ledger) -> list[str]:
    """Claims whose first expectation is not what the history of the ledger says."""
    found = first_expectations(ledger.path)
    told = []
    for claim in ledger.claims.values():
        first = found.get(_measurement(claim.experiment, claim.value))
        if first is None or (not claim.first_expected and first[0] == in_words(*claim.bounds(fast=False))):
            continue
        if (claim.first_expected, claim.first_commit) != first:
            told.append(f'{claim.name}: first_expected = "{first[0]}", first_commit = "{first[1]}" in the history')
    return told


def main() -> int:
    """Runs all, or the experiments that are named."""
    parser = argparse.ArgumentParser(description="Tries claims at another rate and for four times the steps.")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="as the ledger names it")
    arguments = parser.parse_args()
    ledger = Ledger.load()
    results = Results(ledger.path.with_name("retrainings.jsonl"))
    starts: dict[str, int] = {}
    for claim in ledger.claims.values():
        if claim.seeds:
            starts[claim.experiment] = max(claim.starts, starts.get(claim.experiment, 0))
    chosen = arguments.experiments or list(starts)
    if unknown := set(chosen) - set(starts):
        parser.error(f"{', '.join(sorted(unknown))}: no claim about trainings; there are {', '.join(starts)}")
    run_all([run for name in chosen for run in runs_of(name, starts[name])], ledger, results)
    ledger.write(ledger_fields(ledger, results))
    wrong = mismatches(ledger)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
