"""Recipes of the reproducible results: their test sets, the recorded result of each seed, and published scores.

A recipe is a config that `transduce train` takes, and a row of `recipes/index.toml` that says what it is scored on.
Its results are in `recipes/NAME.json`, one entry for each seed.
"""

import hashlib
import itertools
import json
import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from transduce.config.settings import ExperimentConfig, carry_over, load_config
from transduce.config.toml import differences
from transduce.data.datasets import load_split
from transduce.data.download import Places
from transduce.devices import machine
from transduce.errors import choose
from transduce.evaluation.config import GROUPED_METRICS, scores_by_name
from transduce.evaluation.evaluate import score
from transduce.files.shipped import shipped_folder
from transduce.runs.folder import RunFolder
from transduce.runs.parallelism import sessions_of
from transduce.runs.run import load
from transduce.training.state import TrainerState

_FOLDER = shipped_folder("recipes")
# Settings that change no weights: data are compared by hash; validation has its own beam size and, as it is greedy,
# no use for length penalties.
_WITHOUT_EFFECT = {
    *("data.dataset", "data.train", "data.valid", "data.more"),
    *("decoding.beam_size", "decoding.length_penalty", "decoding.length_norm"),
    *("training.save_every", "training.keep_checkpoints", "training.log_every"),
}
# Student's t at 97.5 % for 1, 2, ... degrees of freedom: how far the mean of few seeds may be from that of many.
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Scores that others published for the same task."""

    by: str
    scores: dict[str, float]  # by "SPLIT METRIC"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A row of the results: a training config, test sets and metrics, and the recorded results."""

    name: str
    title: str
    tests: tuple[str, ...]  # splits of the config's data set, each scored once at the end
    metrics: tuple[str, ...]
    published: tuple[Published, ...] = ()

    @property
    def config_path(self) -> Path:
        """The config file for `transduce train`."""
        return _FOLDER / f"{self.name}.toml"

    @property
    def settings(self) -> str:
        """Digest of the settings in the config file: only results with the same digest are this recipe's.

        Settings not in the file have their defaults, which are those of the commit that a result names.
        """
        table = tomllib.loads(self.config_path.read_text(encoding="utf-8"))
        # The digest of the first results must stay the same: these were the defaults when they were recorded,
        for section, name, default in (("decoding", "max_len_extra", 20), ("training", "batching", "bucketed")):
            if table.get(section, {}).get(name) == default:
                del table[section][name]
        # and `word_error` was called `wer`.
        text = json.dumps(table, sort_keys=True).replace('"word_error"', '"wer"')
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def config(self, seed: int) -> ExperimentConfig:
        """The settings with this seed; outputs have the usual limit, unless the recipe sets one."""
        text = self.config_path.read_text(encoding="utf-8")
        config = load_config(text, str(self.config_path), ["--training.seed", str(seed)])
        return replace(config, decoding=replace(config.decoding, max_len_extra=config.decoding.max_len(0)))

    @property
    def results_path(self) -> Path:
        """The file of `results`, which need not exist."""
        return _FOLDER / f"{self.name}.json"

    @property
    def results(self) -> list[dict[str, Any]]:
        """The recorded `measure` of each seed with these settings, ordered by seed."""
        if not self.results_path.is_file():
            return []
        rows: list[dict[str, Any]] = json.loads(self.results_path.read_text(encoding="utf-8"))
        settings = self.settings
        if set(self.metrics) <= set(GROUPED_METRICS):
            rows = list(map(_with_current_names, rows))
        return sorted((row for row in rows if row["settings"] == settings), key=lambda row: row["seed"])


def list_recipes() -> list[Recipe]:
    """All recipes, in the order of the results."""
    rows = tomllib.loads((_FOLDER / "index.toml").read_text(encoding="utf-8"))
    return [_recipe(name, row) for name, row in rows.items()]


def find_recipe(name: str) -> Recipe:
    """The recipe of this name. Raises TransduceError, with the nearest name, if there is none."""
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    return choose("recipe", name, recipes)


def differences_from(recipe: Recipe, run: RunFolder, *, seed: int) -> list[str]:
    """How a run differs from this recipe with `seed`: settings changed at any step, and inherited weights."""
    settings = run.settings
    changed = set(differences(settings, carry_over(recipe.config(seed), settings)))
    if settings.training.precision == "bfloat16" and run.facts["started"]["device"] == "cpu":
        changed.add("training.precision")  # a recipe leaves it to the device, and no CPU chooses this
    for resumption in run.facts.get("resumed", []):
        changed |= set(resumption["changes"])
    ancestor = run.facts.get("initialised_from")
    return sorted(changed - _WITHOUT_EFFECT) + ([f"it started from the weights of {ancestor}"] if ancestor else [])


def measure(recipe: Recipe, run: RunFolder, device: str, places: Places, *, cpu_seconds: float) -> dict[str, Any]:
    """Score a finished run on the recipe's test sets: the entry of a seed in the results file.

    `cpu_seconds` are those of this session: a run of several sessions has None. Wall seconds count all of them.
    """
    config = run.settings
    predictor = load(run.path, device=device)
    state = TrainerState.from_dict(run.read_checkpoint(run.checkpoints()[-1])[1])
    scores: dict[str, dict[str, Any]] = {}
    group_sources = config.validation.group_sources
    for split in recipe.tests:
        pairs = load_split(config.data.dataset, split, places)
        results = score(predictor, pairs.src, [pairs.tgt], recipe.metrics, group_sources=group_sources)
        scores[split] = {result.name: result.as_dict() for result in results}
    seed, started = config.training.seed, run.facts["started"]
    parallelism = {"processes": started["processes"], "threads": started["threads"]}
    options = f"--processes {started['processes']} --threads {threads_in(started)}"
    return {
        "recipe": recipe.name,
        "settings": recipe.settings,
        "seed": seed,
        "command": f"transduce reproduce {recipe.name} --seed {seed} {options}",
        **parallelism,
        "scores": scores,
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "steps": state.step,
        "best_step": state.best_step,
        "wall_seconds": round(state.seconds + state.validation_seconds, 1),
        "cpu_seconds": None if run.facts.get("resumed") else round(cpu_seconds, 1),
        "validations": [
            {
                name: round(value, 4)
                for name, value in scores_by_name(row, group_sources=group_sources).items()
                if name != "kind"
            }
            for row in run.metrics()
            if row["kind"] == "validation"
        ],
        "machine": {"device": machine.device_name(predictor.device), "cores": machine.num_cores()},
        "versions": {"transduce": machine.version(), "torch": torch.__version__},
        "commits": commits_of(run),
        "measured": datetime.now(UTC).date().isoformat(),
    }


def threads_in(session: Mapping[str, Any]) -> int:
    """Threads of all processes of a session together."""
    return int(session["processes"] * session["threads"])


def commits_of(run: RunFolder) -> list[str]:
    """The commits of a run's sessions, in order, without repetitions; an installed package has none."""
    commits = [session["commit"] for session in sessions_of(run.facts) if session.get("commit")]
    return [commit for commit, _ in itertools.groupby(commits)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A score of one test set over seeds, beside published scores."""

    test: str
    metric: str
    values: tuple[float, ...]  # one for each seed
    is_higher_better: bool
    resolution: float  # what one segment of the test set can change
    published: dict[str, float]  # by author

    @property
    def seeds(self) -> str:
        """The number of seeds, in words."""
        return f"{len(self.values)} seed{'s' if len(self.values) > 1 else ''}"

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation between seeds; NaN for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def margin(self) -> float:
        """Half of the 95 % prediction interval of a further seed around the mean; infinite after one seed.

        Seeds that happen to be equal say little about the next, so it is at least one segment.
        """
        count = len(self.values)
        if count == 1:
            return math.inf
        return max(self.resolution, _T[min(count - 1, len(_T)) - 1] * self.spread * math.sqrt(1 + 1 / count))


def rows_of(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The table of a recipe: a row for each test set and metric that every seed was scored by."""
    rows = []
    for test, metric in itertools.product(recipe.tests, recipe.metrics):
        scores = [result["scores"].get(test, {}).get(metric) for result in results]
        if not scores or None in scores:
            continue
        key = f"{test} {metric}"
        row = Row(
            test=test,
            metric=metric,
            values=tuple(score["value"] for score in scores),
            is_higher_better=scores[0]["is_higher_better"],
            resolution=100 / scores[0]["num_segments"],
            published={other.by: other.scores[key] for other in recipe.published if key in other.scores},
        )
        rows.append(row)
    return rows


def verdicts(recipe: Recipe, result: Mapping[str, Any]) -> list[str]:
    """A line for each score of `result`: whether it agrees with the recorded seeds, and published scores.

    One in twenty disagrees by chance; otherwise the machine, the versions or the code differ.
    """
    recorded = {(row.test, row.metric): row for row in rows_of(recipe, recipe.results)}
    lines = []
    for row in rows_of(recipe, [result]):
        (value,) = row.values
        line = f"{row.test} {row.metric}: {value:.2f}"
        if recorded_row := recorded.get((row.test, row.metric)):
            line += f", {_verdict(value, recorded_row)}"
        for by, other in row.published.items():
            line += f"; {by}: {other:.2f}"
        lines.append(line)
    return lines


def _with_current_names(result: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded result of scores grouped by source under their current names; older records have the former ones."""
    by_name = partial(scores_by_name, group_sources=True)
    scores = {
        test: {name: {**score, "name": name} for name, score in by_name(scores_of_test).items()}
        for test, scores_of_test in result["scores"].items()
    }
    return {**result, "scores": scores, "validations": list(map(by_name, result["validations"]))}


def _verdict(value: float, recorded: Row) -> str:
    if len(recorded.values) == 1:
        return f"recorded: {recorded.mean:.2f} ({recorded.seeds})"
    difference = value - recorded.mean
    outcome = "as" if abs(difference) <= recorded.margin else "HIGHER than" if difference > 0 else "LOWER than"
    return f"came out {outcome} recorded: {recorded.mean:.2f} ± {recorded.margin:.2f} ({recorded.seeds})"


def _recipe(name: str, row: Mapping[str, Any]) -> Recipe:
    lists = {key: tuple(row[key]) for key in ("tests", "metrics")}
    published = tuple(Published(**other) for other in row.get("published", ()))
    return Recipe(**{"name": name, **row, **lists, "published": published})
