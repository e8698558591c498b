"""What each verb of the command does. Answers go to standard output, everything else to standard error."""

import argparse
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from transduce.cli import export as shipping
from transduce.cli import runs as housekeeping
from transduce.cli.console import (
    answers_to,
    groups_of_lines,
    json_line,
    print_json,
    print_scores,
    read_references,
    read_utf8,
    refuse_output,
    report_of,
    text_line,
    write_now,
)
from transduce.cli.processes import spawn
from transduce.cli.reproduce import reproduce
from transduce.config.settings import ExperimentConfig, load_config
from transduce.devices.cpu import speed_up_cpu
from transduce.errors import TransduceError
from transduce.evaluation.config import GROUPED_METRICS, refuse_unknown_metrics
from transduce.evaluation.evaluate import score
from transduce.evaluation.metrics import compare
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints
from transduce.inference.explain import explain
from transduce.inference.explain_page import explanation_page
from transduce.inference.predictor import Prediction, Predictor
from transduce.runs.corpus import count_training_overlap, places_of_environment, prepare
from transduce.runs.fit import fit
from transduce.runs.folder import RunFolder
from transduce.runs.load import load
from transduce.runs.monitoring import TensorBoardWriter
from transduce.runs.train import train
from transduce.training.distributed import num_processes
from transduce.training.signals import Stopped

Arguments = argparse.Namespace

_MOST_CUT_NAMED = 10  # lines that were too long, told by their numbers


def run(arguments: Arguments) -> int:
    """Carries out the verb; returns the exit status."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    speed_up_cpu()
    return _VERBS[arguments.verb](arguments)


def _train(arguments: Arguments) -> int:
    path = Path(arguments.config)
    overrides = [*arguments.overrides]
    if arguments.seed is not None:
        overrides += ["--training.seed", str(arguments.seed)]
    config = load_config(read_utf8(path), str(path), overrides)
    if arguments.processes > 1 and num_processes() == 1:  # after the settings: a mistake in them is told at once
        return spawn(arguments.processes, arguments.words)
    run_dir = Path(arguments.run_dir or Path("runs") / path.stem)
    report = report_of(arguments)
    with _telling_how_to_go_on(arguments), _tensorboard(arguments, run_dir, report) as observers:
        state = train(
            config,
            run_dir,
            resume=arguments.resume,
            accept_changes=arguments.accept_changes,
            init_from=arguments.init_from,
            device=arguments.device,
            places=places_of_environment(),
            report=report,
            observers=observers,
            show_progress=not arguments.quiet,
        )
    report(
        f"finished at step {state.step:,} after {state.seconds / 60:.1f} minutes of training; the best weights are of "
        f"step {state.best_step:,}. Try: transduce predict {run_dir}"
    )
    return 0


def _prepare(arguments: Arguments) -> int:
    path = Path(arguments.config)
    config = load_config(read_utf8(path), str(path), arguments.overrides)
    report = report_of(arguments)
    tokenizer = RunFolder.open(Path(arguments.init_from)).tokenizer if arguments.init_from else None
    found = prepare(config, tokenizer, places_of_environment(), report=report, show_progress=not arguments.quiet)
    if found is None:
        report("these pairs fit into memory: `train` reads them in a moment, nothing needs preparing")
    if arguments.json:
        folder = {"path": str(found.path), "bytes": found.num_bytes} | vars(found.manifest) if found else {"path": None}
        print_json(folder)
    return 0


def _fit(arguments: Arguments) -> int:
    paths = arguments.pairs
    run_dir = Path(arguments.run_dir or Path("runs") / Path(paths[0]).name.split(".")[0])
    report = report_of(arguments)
    with _telling_how_to_go_on(arguments):
        result = fit(
            paths,
            run_dir,
            task=arguments.task,
            minutes=arguments.minutes,
            seed=arguments.seed,
            resume=arguments.resume,
            device=arguments.device,
            report=report,
            show_progress=not arguments.quiet,
        )
    if arguments.json:
        print_json(result.as_dict())
    else:
        print_scores(result.scores, f"on {result.num_test:,} pairs that were never seen")
    example = f"echo {shlex.quote(result.example)} | transduce predict {shlex.quote(str(run_dir))}"
    report(f"the model is in {run_dir}; try: {example}")
    return 0


def _predict(arguments: Arguments) -> int:
    refuse_output(arguments.output, arguments.file)
    predictor = _load(arguments, arguments.run)
    predictor.predict_n_best([], arguments.n_best)  # a number that cannot be had is refused before a line is read
    num_lines, cut = 0, []
    with answers_to(arguments.output) as output:
        for sources in groups_of_lines(arguments.file):
            answered = predictor.predict_n_best(sources, arguments.n_best, first_row=num_lines)
            write_now(output, "".join(_told(predictor, sources, answered, arguments.json)).encode())
            cut += [str(number) for number, answers in enumerate(answered, num_lines + 1) if answers[0].is_cut]
            cut = cut[:_MOST_CUT_NAMED]
            num_lines += len(sources)
    if cut:
        more = ", ..." if predictor.num_truncated > len(cut) else ""
        predictor.report(f"lines cut off: {predictor.num_truncated:,} of {num_lines:,}, line {', '.join(cut)}{more}")
    return 0


def _told(
    predictor: Predictor, sources: Sequence[str], answered: Sequence[Sequence[Prediction]], as_json: bool
) -> Iterator[str]:
    """The line that answers each source; in JSON with what the model thinks of every token."""
    if not as_json:
        yield from map(text_line, answered)
        return
    pairs = [(source, answer) for source, answers in zip(sources, answered, strict=True) for answer in answers]
    annotations = iter(predictor.annotate(*zip(*pairs, strict=True)))
    for source, answers in zip(sources, answered, strict=True):
        yield json_line(source, answers, list(islice(annotations, len(answers))))


def _explain(arguments: Arguments) -> int:
    refuse_output(arguments.output, arguments.run)
    predictor = _load(arguments, arguments.run)
    with answers_to(arguments.output) as output:
        page = explanation_page(explain(predictor, arguments.text), Path(arguments.run).name or arguments.run)
        write_now(output, page.html.encode())
    for line in page.left_out:
        predictor.report(line)
    predictor.report(f"wrote {arguments.output}: open it in a browser")
    return 0


def _evaluate(arguments: Arguments) -> int:
    started = time.perf_counter()
    predictor = _load(arguments, arguments.run)
    sources, references = read_references(arguments.source, arguments.target)
    folder = RunFolder.open(Path(arguments.run))
    config = folder.settings
    metrics = _metrics_to_score(arguments, config)
    scores = score(predictor, sources, references, metrics, group_sources=arguments.group_sources)
    overlap = count_training_overlap(config, folder, sources, references[0], places_of_environment())
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
                "int8": predictor.int8,
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
    "reproduce": reproduce,
    "prepare": _prepare,
    "predict": _predict,
    "translate": _predict,
    "explain": _explain,
    "evaluate": _evaluate,
    "compare": _compare,
    "average": housekeeping.average,
    "describe": housekeeping.describe,
    "data": housekeeping.data,
    "verify": housekeeping.verify,
    "export": shipping.export,
    "import": shipping.import_,
    "benchmark": housekeeping.benchmark,
}


@contextmanager
def _tensorboard(
    arguments: Arguments, run_dir: Path, report: Callable[[str], None]
) -> Iterator[list[TensorBoardWriter]]:
    """TensorBoard's writer among the observers, if asked for; its file is closed however training ends."""
    if not arguments.tensorboard:
        yield []
        return
    try:
        writer = TensorBoardWriter(run_dir / "tensorboard")
    except ImportError:
        report("no TensorBoard events: that needs pip install 'transduce[tensorboard]'")
        yield []
        return
    with closing(writer):
        yield [writer]


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
    """A run's predictor, searching and constrained as the options say."""
    report = report_of(arguments)
    own = load(name, device=arguments.device, int8=arguments.int8, report=report)
    return Predictor(
        own.model,
        own.tokenizer,
        _decoding(arguments, own.decoding),
        constraints=_constraints(arguments),
        int8=own.int8,
        report=report,
    )


def _decoding(arguments: Arguments, own: DecodingConfig) -> DecodingConfig:
    """The settings of a run, and in their place what was asked for."""
    seeds = () if arguments.verb == "compare" else ("seed",)  # there it is that of the resampling
    options = ("beam_size", "length_penalty", "temperature", "top_k", "top_p", *seeds)
    chosen = {option: getattr(arguments, option) for option in options if getattr(arguments, option, None) is not None}
    decoding = replace(own, **chosen)
    if decoding.temperature == 0 and (idle := [option for option in ("top_k", "top_p", "seed") if option in chosen]):
        raise TransduceError(f"--{idle[0].replace('_', '-')} is for drawing answers: add --temperature 1.")
    return replace(decoding, **_limits(arguments))


def _limits(arguments: Arguments) -> dict[str, Any]:
    """How long answers must be and may be, and what they may not repeat: options of `predict` alone."""
    shortest, longest, ngram = (
        getattr(arguments, name, None) for name in ("min_length", "max_length", "no_repeat_ngram")
    )
    limits: dict[str, Any] = {}
    if shortest is not None:
        limits["min_len"] = shortest
    if longest is not None:
        if longest < (shortest or 0):
            raise TransduceError(f"--min-length {shortest} is more than --max-length {longest}.")
        limits |= {"max_len_ratio": 0.0, "max_len_extra": longest + 1}  # the end is one more
    if ngram is not None:
        limits["no_repeat_ngram_size"] = ngram
    return limits


def _constraints(arguments: Arguments) -> Constraints:
    """What answers must and must not hold: options of `predict` alone."""
    if not hasattr(arguments, "require"):
        return Constraints()
    return Constraints(prefix=arguments.prefix, required=tuple(arguments.require), forbidden=tuple(arguments.forbid))
