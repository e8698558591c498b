"""The verbs that look after run folders and data, and measure the machine; none trains a run or answers with one."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.overrides import TorchFunctionMode

from transduce.cli.benchmark.decoding import measure_decoding
from transduce.cli.benchmark.tables import print_decoding_speed, print_training_speed
from transduce.cli.benchmark.training import TrainingWork, measure_training
from transduce.cli.console import (
    answers_to,
    print_description,
    print_json,
    print_table,
    refuse_missing_folder,
    report_of,
)
from transduce.cli.export import lines_of
from transduce.cli.processes import spawn
from transduce.data import datasets
from transduce.errors import DamagedFileError, MissingInputError, TransduceError, nearest
from transduce.evaluation.config import scores_by_name
from transduce.files.tensors import average_tensors
from transduce.model.config import PRESETS, VocabularySizes
from transduce.model.transformer import Transformer
from transduce.runs.corpus import places_of_environment
from transduce.runs.folder import RunFolder
from transduce.runs.load import load
from transduce.training.distributed import num_processes


def average(arguments: argparse.Namespace) -> int:
    folder, output = RunFolder.open(Path(arguments.run)), Path(arguments.output)
    RunFolder(output).refuse_other_use()  # before the long work
    there = folder.checkpoints()
    steps = arguments.steps or there[-arguments.last :]
    missing = sorted(set(steps) - set(there))
    if missing or len(steps) < (arguments.last or 1):
        raise TransduceError(
            f"{arguments.run} has checkpoints of steps {', '.join(map(str, there)) or 'none'}: "
            f"{f'not of {missing[0]}' if missing else f'not {arguments.last} of them'}. "
            "training.keep_checkpoints says how many stay."
        )
    averaged = average_tensors(
        {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        for tensors, _ in map(folder.read_checkpoint, steps)
    )
    facts = folder.facts | {"averaged": {"run": arguments.run, "steps": steps}}
    result = RunFolder.create(output, config=folder.config_text, tokenizer=folder.tokenizer_text, facts=facts)
    result.write_model(averaged, {"steps": steps, "averaged": True, "validation": {}})
    report_of(arguments)(f"{arguments.output}: the mean of steps {', '.join(map(str, steps))}")
    return 0


def describe(arguments: argparse.Namespace) -> int:
    found: dict[str, Any] = {}
    if arguments.what in PRESETS:
        config, vocabulary = PRESETS[arguments.what], VocabularySizes.joint(arguments.vocab_size)
    else:
        if not (Path(arguments.what) / "run.json").is_file():
            hint = nearest(arguments.what, PRESETS)
            raise MissingInputError(f"'{arguments.what}' is neither a run folder nor a preset.{hint}")
        folder = RunFolder.open(Path(arguments.what))
        settings = folder.settings
        config, group_sources = settings.model, settings.validation.group_sources
        vocabulary = folder.tokenizer.vocabulary_sizes
        metadata = folder.read_model_metadata() if folder.has_model else None
        if metadata is not None:
            metadata["validation"] = scores_by_name(metadata["validation"], group_sources=group_sources)
        found |= {"model_is_of": metadata, "facts": folder.facts}
    with _WithoutNumbers():
        model = Transformer(config, vocabulary)
    found = {"name": arguments.what, "parameters": _count_parameters(model), "config": vars(config)} | found
    (print_json if arguments.json else print_description)(found)
    return 0


def data(arguments: argparse.Namespace) -> int:
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


def benchmark(arguments: argparse.Namespace) -> int:
    refuse_missing_folder(arguments.output)
    if arguments.topic == "decode":
        found: dict[str, Any] | None = _measure_answers(arguments)
    elif arguments.processes > 1 and num_processes() == 1:
        return spawn(arguments.processes, arguments.words)
    else:
        work = TrainingWork(
            model=arguments.model,
            data=arguments.data or "",
            steps=arguments.steps or 0,
            batch_tokens=arguments.batch_tokens,
        )
        found = measure_training(work, arguments.device, places_of_environment(), report_of(arguments))
    if found is None:  # another process tells
        return 0
    if arguments.output:
        with answers_to(arguments.output) as output:
            output.write(json.dumps(found, indent=1).encode() + b"\n")
    show = print_decoding_speed if arguments.topic == "decode" else print_training_speed
    (print_json if arguments.json else show)(found)
    return 0


def _measure_answers(arguments: argparse.Namespace) -> dict[str, Any]:
    report = report_of(arguments)
    lines = lines_of(RunFolder.open(Path(arguments.run)), places_of_environment(), arguments.source)
    predictor = load(arguments.run, device=arguments.device, int8=arguments.int8, report=report)
    return {"run": arguments.run, "lines_from": lines.origin} | measure_decoding(predictor, lines.sources, report)


def verify(arguments: argparse.Namespace) -> int:
    try:
        folder = RunFolder.open(Path(arguments.run))
    except DamagedFileError:
        folder = RunFolder(Path(arguments.run))  # the list below says what is damaged
    results = folder.verify()
    bad = [(name, problem) for name, problem in results if problem]
    if arguments.json:
        print_json({"run": arguments.run, "is_intact": not bad, "files": dict(results)})
    else:
        for name, problem in results:
            print(f"{name}: {problem or 'intact'}")
        if "model.safetensors" not in dict(results):
            print("model.safetensors: none yet")
    return DamagedFileError.exit_status if bad else 0


class _WithoutNumbers(TorchFunctionMode):
    """Parameters made inside have shapes alone, whatever their size.

    As with `torch.device("meta")`, which loads torch's compiler for normal draws and powers: over a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


def _count_parameters(model: Transformer) -> dict[str, int]:
    """Parameters by part; what is shared counts once, where it is first."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        part = words[0] if words[0] not in ("encoder", "decoder") else f"{words[0]} {_sublayer(words)}"
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts | {"total": sum(counts.values())}


def _sublayer(words: list[str]) -> str:
    if words[1] == "final_norm" or words[3].startswith("residual"):
        return "norms"
    return words[3].replace("_", "-")
