"""What each verb of the command does. Answers go to standard output, everything else to standard error."""

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from transduce import datasets
from transduce.checkpoint import RunFolder
from transduce.corpus import Surroundings, count_training_overlap
from transduce.distributed import num_processes, spawn
from transduce.errors import DamagedFileError, MissingInputError, TransduceError, nearest
from transduce.experiment import train
from transduce.fitting import fit
from transduce.metrics import compare
from transduce.model import PRESETS, Transformer, VocabularySizes
from transduce.monitoring import TensorBoardWriter
from transduce.predictor import Predictor, vocabulary_sizes
from transduce.scoring import score
from transduce.settings import GROUPED_METRICS, ExperimentConfig, load_config, refuse_unknown_metrics
from transduce.stopping import Stopped
from transduce.streams import (
    answers_to,
    is_same_file,
    lines_of,
    print_description,
    print_json,
    print_scores,
    print_table,
    read_references,
    read_utf8,
)
from transduce.tensor_files import average_tensors
from transduce.tokenizer import Tokenizer

Arguments = argparse.Namespace


def run(arguments: Arguments) -> int:
    """Carries out the verb; returns the exit status."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # numbers near zero slow a CPU down a hundredfold and change nothing
    return _VERBS[arguments.verb](arguments)


def _train(arguments: Arguments) -> int:
    if arguments.processes > 1 and num_processes() == 1:
        return spawn(arguments.processes, arguments.words)
    path = Path(arguments.config)
    overrides = [*arguments.overrides]
    if arguments.seed is not None:
        overrides += ["--training.seed", str(arguments.seed)]
    config = load_config(read_utf8(path), str(path), overrides)
    run_dir = Path(arguments.run_dir or Path("runs") / path.stem)
    surroundings = _surroundings(arguments)
    if arguments.tensorboard:
        surroundings = _with_tensorboard(surroundings, run_dir)
    with _telling_how_to_go_on(arguments):
        state = train(
            config,
            run_dir,
            surroundings=surroundings,
            resume=arguments.resume,
            accept_changes=arguments.accept_changes,
            init_from=Path(arguments.init_from) if arguments.init_from else None,
        )
    surroundings.report(
        f"finished at step {state.step:,} after {state.seconds / 60:.1f} minutes of training; the best weights are of "
        f"step {state.best_step:,}. Try: transduce predict {run_dir}"
    )
    return 0


def _fit(arguments: Arguments) -> int:
    paths = arguments.pairs
    run_dir = Path(arguments.run_dir or Path("runs") / Path(paths[0]).name.split(".")[0])
    surroundings = _surroundings(arguments)
    with _telling_how_to_go_on(arguments):
        result = fit(
            paths,
            run_dir,
            minutes=arguments.minutes,
            seed=arguments.seed,
            resume=arguments.resume,
            surroundings=surroundings,
        )
    if arguments.json:
        print_json(result.as_dict())
    else:
        print_scores(result.scores, f"on {result.num_test:,} pairs that were never seen")
    example = f"echo {shlex.quote(result.example)} | transduce predict {shlex.quote(str(run_dir))}"
    surroundings.report(f"the model is in {run_dir}; try: {example}")
    return 0


def _predict(arguments: Arguments) -> int:
    if arguments.output and arguments.file != "-" and is_same_file(arguments.output, arguments.file):
        raise TransduceError(f"-o {arguments.output} is the file that is read: give the answers another name.")
    predictor = _load(arguments, arguments.run)
    lines, read_ahead = lines_of(arguments.file)
    lines, sources = itertools.tee(lines)
    answered = predictor.stream(lines, arguments.n_best, read_ahead=read_ahead)
    with answers_to(arguments.output) as output:
        for source, answers in zip(sources, answered, strict=True):
            if arguments.json:
                row = {"source": source, "predictions": [answer.as_dict() for answer in answers]}
                text = json.dumps(row, ensure_ascii=False)
            else:
                text = "\t".join(answer.text for answer in answers)
            output.write(text.encode() + b"\n")
            if read_ahead == 1:
                output.flush()
    if predictor.num_truncated > 1:
        predictor.report(f"{predictor.num_truncated:,} sources were cut off")
    return 0


def _evaluate(arguments: Arguments) -> int:
    started = time.perf_counter()
    predictor = _load(arguments, arguments.run)
    sources, references = read_references(arguments.source, arguments.target)
    folder = RunFolder.open(Path(arguments.run))
    config = load_config(folder.config, "config.toml")
    metrics = _metrics_to_score(arguments, config)
    scores = score(predictor, sources, references, metrics, group_sources=arguments.group_sources)
    overlap = count_training_overlap(config, folder, sources, references[0], _surroundings(arguments))
    if arguments.json:
        print_json(
            {
                "run": arguments.run,
                "source": arguments.source,
                "target": arguments.target,
                "scores": {found.name: found.as_dict() for found in scores},
                "num_lines": len(sources),
                "in_training_too": overlap,
                "beam_size": predictor.decoding.beam_size,
                "length_penalty": predictor.decoding.length_penalty,
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        return 0
    print_scores(scores, f"on {len(sources):,} lines of {arguments.source}, beam {predictor.decoding.beam_size}")
    if overlap is None:
        predictor.report("the training pairs are not where they were, so nobody looked whether these are among them")
    else:
        told = ", ".join(f"{count:,} {side}" for side, count in overlap.items())
        predictor.report(f"in training too: {told}")
    return 0


def _metrics_to_score(arguments: Arguments, config: ExperimentConfig) -> tuple[str, ...]:
    """Those asked for, or those of the run. Raises TransduceError before the long work, not after it."""
    if arguments.metric:
        metrics = tuple(name.strip() for name in arguments.metric.split(","))
    elif arguments.group_sources:
        metrics = GROUPED_METRICS
    else:
        metrics = config.validation.metrics or ("bleu",)
    refuse_unknown_metrics(metrics, "--metric")
    if arguments.group_sources and not set(metrics) <= set(GROUPED_METRICS):
        raise TransduceError(f"--group-sources scores {' and '.join(GROUPED_METRICS)} alone, not {', '.join(metrics)}.")
    return metrics


def _compare(arguments: Arguments) -> int:
    refuse_unknown_metrics([arguments.metric], "--metric")
    sources, references = read_references(arguments.source, arguments.target)
    a, b = (_load(arguments, name).predict(sources) for name in (arguments.run_a, arguments.run_b))
    found = compare(arguments.metric, a, b, references, seed=arguments.seed, method=arguments.method)
    if arguments.json:
        print_json({"run_a": arguments.run_a, "run_b": arguments.run_b} | found.as_dict())
    else:
        print(f"A: {arguments.run_a}\nB: {arguments.run_b}\n{found}")
    return 0


def _average(arguments: Arguments) -> int:
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
    result = RunFolder.create(output, config=folder.config, tokenizer=folder.tokenizer, facts=facts)
    result.write_model(averaged, {"steps": steps, "averaged": True, "validation": {}})
    _surroundings(arguments).report(f"{arguments.output}: the mean of steps {', '.join(map(str, steps))}")
    return 0


def _describe(arguments: Arguments) -> int:
    found: dict[str, Any] = {}
    if arguments.what in PRESETS:
        config, vocabulary = PRESETS[arguments.what], VocabularySizes.joint(arguments.vocab_size)
    else:
        if not (Path(arguments.what) / "run.json").is_file():
            hint = nearest(arguments.what, PRESETS)
            raise MissingInputError(f"'{arguments.what}' is neither a run folder nor a preset.{hint}")
        folder = RunFolder.open(Path(arguments.what))
        config = load_config(folder.config, "config.toml").model
        vocabulary = vocabulary_sizes(Tokenizer.from_json(folder.tokenizer))
        metadata = folder.read_model_metadata() if folder.has_model else None
        found |= {"model_is_of": metadata, "facts": folder.facts}
    with torch.device("meta"):
        model = Transformer(config, vocabulary)
    found = {"name": arguments.what, "parameters": _count_parameters(model), "config": vars(config)} | found
    (print_json if arguments.json else print_description)(found)
    return 0


def _data(arguments: Arguments) -> int:
    surroundings = _surroundings(arguments)
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
    written = datasets.export(
        arguments.name, Path(arguments.output), root=surroundings.data_root, cache=surroundings.data_cache
    )
    if arguments.json:
        print_json({"name": arguments.name, "files": [str(path) for path in written]})
    for path in written:
        surroundings.report(f"wrote {path}")
    return 0


def _verify(arguments: Arguments) -> int:
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


_VERBS: dict[str, Callable[[Arguments], int]] = {
    "fit": _fit,
    "train": _train,
    "predict": _predict,
    "translate": _predict,
    "evaluate": _evaluate,
    "compare": _compare,
    "average": _average,
    "describe": _describe,
    "data": _data,
    "verify": _verify,
}


def _surroundings(arguments: Arguments) -> Surroundings:
    root = os.environ.get("TRANSDUCE_DATA")
    is_quiet = arguments.quiet or os.environ.get("RANK", "0") != "0"  # of several processes the first one speaks
    return Surroundings(
        device=arguments.device,
        data_root=Path(root) if root else None,
        report=(lambda _line: None) if is_quiet else (lambda line: print(line, file=sys.stderr, flush=True)),
        show_progress=not arguments.quiet,
    )


def _with_tensorboard(surroundings: Surroundings, run_dir: Path) -> Surroundings:
    try:
        return replace(surroundings, observers=(TensorBoardWriter(run_dir / "tensorboard"),))
    except ImportError:
        surroundings.report("no TensorBoard events: that needs pip install 'transduce[tensorboard]'")
        return surroundings


@contextmanager
def _telling_how_to_go_on(arguments: Arguments) -> Iterator[None]:
    """A stop that saved something names the command that goes on from it: the same one, with --resume."""
    try:
        yield
    except Stopped as stopped:
        if stopped.message:
            here = os.environ.get("LOCAL_WORLD_SIZE")  # set by torchrun alone
            program = ["torchrun", f"--nproc-per-node={here}", "-m", "transduce"] if here else ["transduce"]
            command = program + arguments.words + ["--resume"] * (not arguments.resume)
            stopped.message += f" Go on with: {shlex.join(command)}"
        raise


def _load(arguments: Arguments, name: str) -> Predictor:
    predictor = Predictor.load(name, device=arguments.device, report=_surroundings(arguments).report)
    seeds = () if arguments.verb == "compare" else ("seed",)  # there it is that of the resampling
    options = ("beam_size", "length_penalty", "temperature", "top_k", "top_p", *seeds)
    given = {option: getattr(arguments, option, None) for option in options if option in vars(arguments)}
    chosen = {option: value for option, value in given.items() if value is not None}
    decoding = replace(predictor.decoding, **chosen)
    if decoding.temperature == 0 and (idle := [option for option in ("top_k", "top_p", "seed") if option in chosen]):
        raise TransduceError(f"--{idle[0].replace('_', '-')} is for drawing answers: add --temperature 1.")
    predictor.decoding = decoding
    return predictor


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
