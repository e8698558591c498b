"""Subcommands: average, describe, verify."""

import argparse
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transduce.cli.console import print_json, report_of
from transduce.cli.description import print_description
from transduce.config.settings import ExperimentConfig
from transduce.data.datasets import find_dataset
from transduce.errors import DamagedFileError, MissingInputError, TransduceError, nearest, printable
from transduce.evaluation.config import scores_by_name
from transduce.files.atomic import new_folder
from transduce.files.certified_json import json_object, matches
from transduce.files.content import read_regular
from transduce.model.config import PRESETS, VocabularySizes
from transduce.model.weights import Shapes, parameter_shapes, with_prefix
from transduce.runs.folder import RunFolder

_NUMBER = (int, float)
_SCORES = {"*": {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER, "num_segments": int, "*": object}}  # of score.json


def average_command(arguments: argparse.Namespace) -> int:
    folder, output = RunFolder.open(Path(arguments.run)), Path(arguments.output)
    RunFolder(output).refuse_other_use()  # before the long work
    available = folder.checkpoints()
    steps = arguments.steps or available[-arguments.last :]
    missing = sorted(set(steps) - set(available))
    if missing or len(steps) < (arguments.last or 1):
        listed = f"checkpoints at steps {', '.join(map(str, available))}" if available else "no checkpoints"
        lacking = f"none at step {missing[0]}" if missing else f"fewer than {arguments.last}"
        raise TransduceError(
            f"{arguments.run} has {listed}, and {lacking}. training.keep_checkpoints sets how many are kept."
        )
    facts = folder.facts | {"averaged": {"run": arguments.run, "steps": steps}, "calibration": None}
    with new_folder(output) as temporary:
        averaged = average_tensors(with_prefix(tensors, "model.") for tensors, _ in map(folder.read_checkpoint, steps))
        result = RunFolder.create(temporary, config=folder.config_text, tokenizer=folder.tokenizer_text, facts=facts)
        result.write_model(averaged, {"steps": steps, "averaged": True, "validation": {}})
    report_of(arguments)(f"{arguments.output}: the mean of steps {', '.join(map(str, steps))}")
    return 0


def average_tensors(sets: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The arithmetic mean of sets of tensors (section 6.1), summed in float64; one set at a time is in memory.

    Raises TransduceError if the sets differ in a name or a shape, or if there is none.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for count, tensors in enumerate(sets, start=1):
        if count == 1:
            sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in tensors.items()}
        first, other = ({(name, tensor.shape) for name, tensor in each.items()} for each in (sums, tensors))
        if first != other:
            name = min(name for name, _ in first ^ other)
            raise TransduceError(f"Cannot average: {name} differs in presence or shape between set 1 and {count}.")
        for name, tensor in tensors.items():
            sums[name] += tensor
    if not count:
        raise TransduceError("Nothing to average: name at least one checkpoint.")
    return {name: (total / count).to(tensors[name].dtype) for name, total in sums.items()}


def describe_command(arguments: argparse.Namespace) -> int:
    run_facts: dict[str, Any] = {}
    if arguments.what in PRESETS:
        config, vocabulary = PRESETS[arguments.what], VocabularySizes.joint(arguments.vocab_size)
        shapes = parameter_shapes(config, vocabulary)
    else:
        if not os.path.lexists(Path(arguments.what) / "run.json"):
            hint = nearest(arguments.what, PRESETS)
            raise MissingInputError(f"'{arguments.what}' is neither a run folder nor a preset.{hint}")
        folder = RunFolder.open(Path(arguments.what))
        settings = folder.settings
        config, group_sources = settings.model, settings.validation.group_sources
        vocabulary = folder.tokenizer.vocabulary_sizes
        shapes = parameter_shapes(config, vocabulary)
        metadata = folder.read_model_metadata(shapes) if folder.has_model else None
        if metadata is not None:
            metadata["validation"] = scores_by_name(metadata["validation"], group_sources=group_sources)
        run_facts = {"model_is_of": metadata, "facts": folder.facts} | _about(folder, settings)
    description = {"name": arguments.what, "parameters": _count_parameters(shapes), "config": vars(config)} | run_facts
    (print_json if arguments.json else print_description)(description)
    return 0


def _about(folder: RunFolder, settings: ExperimentConfig) -> dict[str, Any]:
    """What `describe` tells of a run besides its model: when it was trained, on which data, test scores, size."""
    sizes = {path: path.lstat().st_size for path in folder.path.rglob("*") if path.is_file() and not path.is_symlink()}
    model, dataset, licence = folder.path / "model.safetensors", settings.data.dataset, None
    with suppress(TransduceError):  # of a data set that had another name once
        licence = find_dataset(dataset).licence if dataset else None
    path = folder.checked_file("score.json")
    result = json_object(read_regular(path), path, "Delete it, or restore it from a copy.") if path else {}
    scores = result.get("scores")
    return {
        "model_file_date": datetime.fromtimestamp(model.lstat().st_mtime, UTC).date().isoformat()
        if folder.has_model
        else None,
        "dataset": {"name": dataset, "license": licence} if dataset else None,
        "test": scores if matches(scores, _SCORES) else None,
        "bytes": {"model": sizes.get(model, 0), "folder": sum(sizes.values())},
    }


def verify_command(arguments: argparse.Namespace) -> int:
    try:
        folder = RunFolder.open(Path(arguments.run))
    except DamagedFileError:
        folder = RunFolder(Path(arguments.run))  # the list below says what is damaged
    results = dict(folder.verify())
    not_covered = folder.not_covered(results)
    is_intact = not any(results.values())
    if arguments.json:
        print_json({"run": arguments.run, "is_intact": is_intact, "files": results, "not_covered": not_covered})
    else:
        for name, problem in results.items():
            if problem or name not in not_covered:
                print(printable(f"{name}: {problem or 'intact'}"))
        if "model.safetensors" not in results:
            print("model.safetensors: none yet")
        if not_covered:
            print(printable(f"not covered, as no hash of them is recorded: {', '.join(not_covered)}"))
    return 0 if is_intact else DamagedFileError.exit_status


def _count_parameters(shapes: Shapes) -> dict[str, int]:
    """Number of parameters by part; a shared tensor counts once, under its first name."""
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        words = name.split(".")
        part = words[0] if words[0] not in ("encoder", "decoder") else f"{words[0]} {_sublayer(words)}"
        counts[part] = counts.get(part, 0) + prod(shape)
    return counts | {"total": sum(counts.values())}


def _sublayer(words: list[str]) -> str:
    if words[1] == "final_norm" or words[3].startswith("residual"):
        return "norms"
    return words[3].replace("_", "-")
