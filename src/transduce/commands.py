"""What each verb of the command does. Answers go to standard output, everything else to standard error."""

import argparse
import itertools
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from transduce import housekeeping
from transduce.checkpoint import RunFolder
from transduce.corpus import Surroundings, count_training_overlap, prepare
from transduce.cpu_settings import speed_up_cpu
from transduce.distributed import num_processes, spawn
from transduce.errors import TransduceError
from transduce.experiment import train
from transduce.fitting import fit
from transduce.metrics import compare
from transduce.monitoring import TensorBoardWriter
from transduce.predictor import Predictor
from transduce.scoring import score
from transduce.settings import GROUPED_METRICS, ExperimentConfig, load_config, refuse_unknown_metrics
from transduce.stopping import Stopped
from transduce.streams import (
    answers_to,
    is_same_file,
    lines_of,
    print_json,
    print_scores,
    read_references,
    read_utf8,
    surroundings_of,
)

Arguments = argparse.Namespace


def run(arguments: Arguments) -> int:
    """Carries out the verb; returns the exit status."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    speed_up_cpu()
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
    surroundings = surroundings_of(arguments)
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


def _prepare(arguments: Arguments) -> int:
    path = Path(arguments.config)
    config = load_config(read_utf8(path), str(path), arguments.overrides)
    surroundings = surroundings_of(arguments)
    tokenizer = RunFolder.open(Path(arguments.init_from)).tokenizer if arguments.init_from else None
    found = prepare(config, tokenizer, surroundings)
    if found is None:
        surroundings.report("these pairs fit into memory: `train` reads them in a moment, nothing needs preparing")
    if arguments.json:
        folder = {"path": str(found.path), "bytes": found.num_bytes} | vars(found.manifest) if found else {"path": None}
        print_json(folder)
    return 0


def _fit(arguments: Arguments) -> int:
    paths = arguments.pairs
    run_dir = Path(arguments.run_dir or Path("runs") / Path(paths[0]).name.split(".")[0])
    surroundings = surroundings_of(arguments)
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
    overlap = count_training_overlap(config, folder, sources, references[0], surroundings_of(arguments))
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
        predictor.report(
            "the training pairs are not where they were, or too many: nobody looked whether these are among them"
        )
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


_VERBS: dict[str, Callable[[Arguments], int]] = {
    "fit": _fit,
    "train": _train,
    "prepare": _prepare,
    "predict": _predict,
    "translate": _predict,
    "evaluate": _evaluate,
    "compare": _compare,
    "average": housekeeping.average,
    "describe": housekeeping.describe,
    "data": housekeeping.data,
    "verify": housekeeping.verify,
    "benchmark": housekeeping.benchmark,
}


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
    predictor = Predictor.load(name, device=arguments.device, report=surroundings_of(arguments).report)
    seeds = () if arguments.verb == "compare" else ("seed",)  # there it is that of the resampling
    options = ("beam_size", "length_penalty", "temperature", "top_k", "top_p", *seeds)
    given = {option: getattr(arguments, option, None) for option in options if option in vars(arguments)}
    chosen = {option: value for option, value in given.items() if value is not None}
    decoding = replace(predictor.decoding, **chosen)
    if decoding.temperature == 0 and (idle := [option for option in ("top_k", "top_p", "seed") if option in chosen]):
        raise TransduceError(f"--{idle[0].replace('_', '-')} is for drawing answers: add --temperature 1.")
    predictor.decoding = decoding
    return predictor
