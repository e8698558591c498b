"""Training in Python: pairs from anywhere and a few settings in, a trained run folder out."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from transduce.config.settings import ExperimentConfig, settings_of
from transduce.data.config import IN_MEMORY
from transduce.data.download import Places
from transduce.data.memory import names_of, pairs_of
from transduce.errors import TransduceError
from transduce.runs.corpus import read_corpus
from transduce.runs.train import find_run
from transduce.runs.train import train as train_by
from transduce.training.state import TrainerState


def train(
    pairs: Any,
    run_dir: str | Path,
    *,
    valid: Any = None,
    preset: str = "tiny",
    places: Places = Places(),
    report: Callable[[str], None] = lambda _line: None,
    **options: Any,
) -> TrainerState:
    """Train a model on `pairs` into the run folder `run_dir`, or resume the run there (`resume=True`).

    `pairs` and `valid` are paths (.tsv, .jsonl, or two parallel files) or pairs in memory: a list of (source, target),
    a list of dicts, a DataFrame, a `datasets.Dataset`, an iterator of rows; see `data.memory`. Settings are given by
    section, as in a config file: `train(pairs, "runs/x", valid=held_out, model={"dropout": 0.2},
    training={"steps": 2000})`; `preset` gives the other settings of the model. All other options are those of
    `transduce.runs.train.train`, which is called as well if the first argument is an ExperimentConfig.
    """
    if isinstance(pairs, ExperimentConfig):
        if valid is not None:
            raise TransduceError("valid goes with pairs: a config names its own in data.valid.")
        return train_by(pairs, run_dir, places=places, report=report, **options)
    find_run(Path(run_dir), resume=options.get("resume", False))
    given = {"train": pairs} if valid is None else {"train": pairs, "valid": valid}
    table = {field.name: options.pop(field.name) for field in fields(ExperimentConfig) if field.name in options}
    table["data"] = {side: names_of(some) for side, some in given.items()} | table.get("data", {})
    table["model"] = {"preset": preset} | table.get("model", {})
    config = settings_of(table)
    in_memory = {side: pairs_of(some) for side, some in given.items() if names_of(some) == (IN_MEMORY,)}
    corpus = read_corpus(config.data, places, report, in_memory=in_memory) if in_memory else None
    return train_by(config, run_dir, corpus=corpus, places=places, report=report, **options)
