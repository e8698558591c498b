"""Training in Python: pairs from anywhere and a few settings in, a trained run folder out."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from transduce.config.settings import ExperimentConfig, settings_of
from transduce.data.memory import names_of, pairs_of, paths_of
from transduce.errors import TransduceError
from transduce.runs.run import Run, load
from transduce.runs.train import find_run
from transduce.runs.train import train as train_by


def train(pairs: Any, run_dir: str | Path, *, valid: Any = None, preset: str = "tiny", **options: Any) -> Run:
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
        return _trained(pairs, run_dir, **options)
    find_run(Path(run_dir), resume=options.get("resume", False))  # before an iterator is used up
    sides = {"train": pairs} | ({} if valid is None else {"valid": valid})
    table = {field.name: options.pop(field.name) for field in fields(ExperimentConfig) if field.name in options}
    table["data"] = {side: names_of(given) for side, given in sides.items()} | table.get("data", {})
    table["model"] = {"preset": preset} | table.get("model", {})
    config = settings_of(table)
    in_memory = {side: pairs_of(given) for side, given in sides.items() if not paths_of(given)}
    return _trained(config, run_dir, in_memory=in_memory, **options)


def _trained(config: ExperimentConfig, run_dir: str | Path, *, device: str = "auto", **options: Any) -> Run:
    state = train_by(config, run_dir, device=device, **options)
    run = load(run_dir, device=device)
    run.state = state
    return run
