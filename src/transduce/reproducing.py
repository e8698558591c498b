"""Results that can be had again: recipes and their test sets, what came out of each seed, and what others published.

A recipe is a config that `transduce train` takes, and a row of `recipes/index.toml` that says what it is scored on.
What came out of it is in `recipes/NAME.json`, one entry for each seed.
"""

import json
import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from transduce import __version__, machine
from transduce.checkpoint import RunFolder
from transduce.corpus import Surroundings
from transduce.datasets import load_split
from transduce.errors import TransduceError, nearest
from transduce.predictor import Predictor
from transduce.progress import TrainerState
from transduce.scoring import score
from transduce.settings import ExperimentConfig, load_config

_FOLDER = files("transduce") / "recipes"
# Student's t at 97.5 % by degrees of freedom: how far the mean of few seeds may be from that of many.
_T = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True, kw_only=True)
class Published:
    """What others report of the same task."""

    by: str
    scores: dict[str, float]  # by "SPLIT METRIC"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of the results: what is trained, on what it is scored, and what came out."""

    name: str
    title: str
    tests: tuple[str, ...]  # splits of the config's data set, each scored once at the end
    metrics: tuple[str, ...]
    group_sources: bool = False  # rows of one source are its alternatives
    processes: int = 2  # that share each step, if nobody asks for another number
    published: tuple[Published, ...] = ()

    @property
    def config_path(self) -> Path:
        """The file that `transduce train` takes."""
        return Path(str(_FOLDER / f"{self.name}.toml"))

    def config(self, seed: int) -> ExperimentConfig:
        """Its settings with this seed."""
        text = self.config_path.read_text(encoding="utf-8")
        return load_config(text, str(self.config_path), ["--training.seed", str(seed)])

    @property
    def results_path(self) -> Path:
        """Where `results` are; there need be nothing."""
        return Path(str(_FOLDER / f"{self.name}.json"))

    @property
    def results(self) -> list[dict[str, Any]]:
        """What `measure` found of each seed, in the order of seeds."""
        if not self.results_path.is_file():
            return []
        rows: list[dict[str, Any]] = json.loads(self.results_path.read_text(encoding="utf-8"))
        return sorted(rows, key=lambda row: row["seed"])


def list_recipes() -> list[Recipe]:
    """All recipes, in the order of the results."""
    rows = tomllib.loads((_FOLDER / "index.toml").read_text(encoding="utf-8"))
    return [_recipe(name, row) for name, row in rows.items()]


def find_recipe(name: str) -> Recipe:
    """The recipe of this name. Raises TransduceError, with the nearest name, if there is none."""
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    if name not in recipes:
        raise TransduceError(f"There is no recipe {name!r}.{nearest(name, list(recipes))}")
    return recipes[name]


def measure(
    recipe: Recipe, folder: RunFolder, seed: int, surroundings: Surroundings, *, processes: int, cpu_seconds: float
) -> dict[str, Any]:
    """Scores the finished run in `folder` on the recipe's test sets: what its JSON has of a seed.

    `cpu_seconds` are those of this sitting: they are left out for a run that had several. The clock's count all.
    """
    config = recipe.config(seed)
    predictor = Predictor.load(folder.path, device=surroundings.device)
    state = TrainerState.from_dict(folder.read_checkpoint(folder.checkpoints()[-1])[1])
    found: dict[str, dict[str, Any]] = {}
    for split in recipe.tests:
        pairs = load_split(config.data.dataset, split, root=surroundings.data_root, cache=surroundings.data_cache)
        scores = score(predictor, pairs.src, [pairs.tgt], recipe.metrics, group_sources=recipe.group_sources)
        found[split] = {result.name: result.as_dict() for result in scores}
    return {
        "recipe": recipe.name,
        "seed": seed,
        "command": f"transduce reproduce {recipe.name} --seed {seed} --processes {processes}",
        "scores": found,
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "processes": processes,
        "steps": state.step,
        "best_step": state.best_step,
        "wall_seconds": round(state.seconds + state.validation_seconds, 1),
        "cpu_seconds": None if folder.facts.get("resumed") else round(cpu_seconds, 1),
        "validations": [
            {name: round(value, 4) for name, value in row.items() if name != "kind"}
            for row in folder.metrics()
            if row["kind"] == "validation"
        ],
        "machine": {"device": machine.device_name(predictor.device), "cores": machine.num_cores()},
        "versions": {"transduce": __version__, "torch": torch.__version__},
        "commit": machine.commit(),
        "measured": date.today().isoformat(),
    }


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of one test set over seeds, beside what others published."""

    test: str
    metric: str
    values: tuple[float, ...]  # one for each seed
    is_higher_better: bool
    published: dict[str, float]  # by whom

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation between seeds; NaN of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def margin(self) -> float:
        """How far a further seed may be from the mean: half of its 95 % prediction interval; infinite after one."""
        count = len(self.values)
        return _T[count - 1] * self.spread * math.sqrt(1 + 1 / count) if count > 1 else math.inf


def rows_of(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The table of a recipe: a row for each test set and metric."""
    return [
        Row(
            test=test,
            metric=metric,
            values=tuple(run["scores"][test][metric]["value"] for run in results),
            is_higher_better=results[0]["scores"][test][metric]["is_higher_better"],
            published={p.by: p.scores[f"{test} {metric}"] for p in recipe.published if f"{test} {metric}" in p.scores},
        )
        for test in recipe.tests
        for metric in recipe.metrics
        if results
    ]


def judged(recipe: Recipe, found: Mapping[str, Any]) -> list[str]:
    """A line for each number of `found`: whether it came out as with other seeds, and what is published."""
    told = []
    for row in rows_of(recipe, [found]):
        (value,) = row.values
        line = f"{row.test} {row.metric}: {value:.2f}"
        if recipe.results:
            ours = next(r for r in rows_of(recipe, recipe.results) if (r.test, r.metric) == (row.test, row.metric))
            is_ours = abs(value - ours.mean) <= ours.margin
            verdict = "came out as recorded" if is_ours else "did NOT come out as recorded"
            line += f", {verdict}: {ours.mean:.2f} ± {ours.margin:.2f} ({len(ours.values)} seeds)"
        for by, other in row.published.items():
            line += f"; {by}: {other:.2f}"
        told.append(line)
    return told


def _recipe(name: str, row: Mapping[str, Any]) -> Recipe:
    lists = {key: tuple(row[key]) for key in ("tests", "metrics")}
    published = tuple(Published(**other) for other in row.get("published", ()))
    return Recipe(**{"name": name, **row, **lists, "published": published})
