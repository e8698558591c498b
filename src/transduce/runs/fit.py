"""`fit`: from raw pairs to a trained and scored model, without any settings."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transduce.config.settings import ExperimentConfig
from transduce.config.toml import to_toml
from transduce.data.memory import names_of, pairs_of, paths_of
from transduce.data.pairs import LARGE_BYTES, Pairs, count_overlap
from transduce.data.parsing import as_text
from transduce.devices.device import find_device
from transduce.errors import ConfigMismatchError, DataError, TransduceError
from transduce.evaluation.bleu import default_metrics
from transduce.evaluation.evaluate import predict_distinct, score
from transduce.evaluation.metrics import Score
from transduce.inference.predictor import ignore
from transduce.runs.corpus import Corpus, hold_out, is_large, report_overlap, report_read
from transduce.runs.folder import RunFolder
from transduce.runs.monitoring import report_to_notebook
from transduce.runs.parallelism import fastest_processes
from transduce.runs.run import Run, load
from transduce.runs.sizing import choose_settings, measured_speed
from transduce.runs.tasks import Task, find_task, recognize
from transduce.runs.train import find_run, train
from transduce.training.distributed import num_processes
from transduce.training.trainer import Observer
from transduce.training.workers import refuse_processes

MINIMUM_PAIRS = 500  # with fewer, a model learns little and its score means nothing
_NUM_SAMPLES = 3  # outputs reported at the end


@dataclass(frozen=True)
class FitResult:
    """Folder of the model, and its scores on pairs that it has not seen."""

    run_dir: Path
    scores: list[Score]
    num_train: int
    num_valid: int
    num_test: int
    training_seconds: float
    example: str  # a source of the test part
    truncated_outputs: Sequence[int] = ()  # lines of the test part whose outputs are as long as allowed

    def as_dict(self) -> dict[str, Any]:
        """The result as a JSON object, with the scores by name."""
        scores = {result.name: result.as_dict() for result in self.scores}
        return asdict(self) | {"run_dir": str(self.run_dir), "scores": scores}


@dataclass(frozen=True)
class Plan:
    """The plan of `fit`: settings, reasons for those that it chose, and the parts of the pairs."""

    config: ExperimentConfig
    reasons: Mapping[str, str]
    train: Pairs
    valid: Pairs
    test: Pairs

    def to_toml(self) -> str:
        """The settings as a config file, with the reasons beside them."""
        held_out = f"{len(self.valid):,} validation and {len(self.test):,} test pairs"
        return f"# `fit` holds out {held_out}; `train` does not.\n" + to_toml(self.config, self.reasons)


def fit(
    pairs: Any,
    run_dir: str | Path,
    *,
    valid: Any = None,
    test: Any = None,
    init_from: str | Path | None = None,
    task: str | None = None,
    minutes: float = 15.0,
    seed: int = 1,
    resume: bool = False,
    device: str = "auto",
    processes: int | None = None,
    report: Callable[[str], None] | None = None,
    observers: Sequence[Observer] = (),
    show_progress: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Train on `pairs` for about `minutes`, and score the model on some of them that were held out.

    `pairs` are paths (.tsv, .jsonl, or two parallel files) or pairs in memory: a list of (source, target), a list of
    dicts, a DataFrame, a `datasets.Dataset`, an iterator of rows; see `data.memory`. So are `valid`, pairs to validate
    on during training, and `test`, pairs to score the model on; None: some of `pairs` are held out for this. Returns
    the run, with the attributes of a `FitResult`. A notebook shows reports and progress unless told otherwise.

    `task` is a name in `tasks.TASKS`; it decides the tokens and the metrics. None: detected from the pairs.
    `init_from` is a run whose weights, tokenizer and model shape this one starts from.

    No source or target of the parts that it holds out occurs in training. The run folder keeps the test part
    (test.source, test.target) and the result (score.json). A resumed run keeps its settings.
    `processes` is the number of processes on this machine that share each step; None: see `choose_processes`.
    Raises DataError for fewer than MINIMUM_PAIRS, and for more text than `train` holds in memory.
    """
    started, run_dir, report = clock(), Path(run_dir), report or report_to_notebook
    plan = plan_fit(
        pairs, run_dir, valid=valid, test=test, init_from=init_from, task=task, minutes=minutes, seed=seed,
        resume=resume, device=device, processes=processes, report=report, clock=clock,
    )  # fmt: skip
    report(_summary(plan.config))
    state = train(
        plan.config,
        run_dir,
        corpus=Corpus(plan.train, plan.valid),
        resume=resume,
        init_from=init_from,
        device=device,
        processes=processes,
        report=report,
        observers=observers,
        show_progress=show_progress,
        clock=clock,
        started=started,
    )
    run, settings, test_pairs = load(run_dir, device=device), plan.config.validation, plan.test
    predictions, metrics, grouped = predict_distinct(run, test_pairs.src), settings.metrics, settings.group_sources
    scores = score(run, test_pairs.src, [test_pairs.tgt], metrics, group_sources=grouped, predictions=predictions)
    truncated = [line for line, prediction in enumerate(predictions, 1) if prediction.is_truncated]
    example = next((source for source in test_pairs.src if "'" not in source), test_pairs.src[0])  # easy to quote
    counts = (len(plan.train), len(plan.valid), len(test_pairs))
    result = FitResult(run_dir, scores, *counts, round(state.seconds, 1), example, truncated)
    _write_result(result, test_pairs)
    for source, prediction in zip(test_pairs.src[:_NUM_SAMPLES], predictions, strict=False):
        report(f"sample: {source} -> {prediction.text}")
    run.result, run.state = result, state
    return run


def plan_fit(
    pairs: Any,
    run_dir: str | Path,
    *,
    valid: Any = None,
    test: Any = None,
    init_from: str | Path | None = None,
    task: str | None = None,
    minutes: float = 15.0,
    seed: int = 1,
    resume: bool = False,
    device: str = "auto",
    processes: int | None = None,
    report: Callable[[str], None] = ignore,
    clock: Callable[[], float] = time.perf_counter,
) -> Plan:
    """The plan that `fit` would follow with these arguments. Writes nothing."""
    if num_processes() > 1:
        raise TransduceError("fit does not run under torchrun: use `transduce train` and a config file.")
    if not (isinstance(minutes, int | float) and 0 < minutes < math.inf):
        raise TransduceError(f"minutes is {minutes!r}: it must be a number above 0.")
    chosen = find_device(device)
    refuse_processes(processes, chosen)
    saved = find_run(Path(run_dir), resume=resume)
    ancestor = RunFolder.open(Path(init_from)).settings if init_from and saved is None else None
    given_task = find_task(task) if task else None
    everything = _read(pairs, report)
    parts = _parts(everything, names_of(pairs)[0], valid, test, saved, report)
    if saved is not None:
        return Plan(_resumed_settings(saved, parts[0], parts[2], minutes, given_task), {}, *parts)
    config, reasons = choose_settings(
        _task_of(everything, parts[2], given_task, report),
        parts[0],
        names_of(pairs),
        minutes=minutes,
        seed=seed,
        device=chosen,
        speed=measured_speed(chosen, processes or fastest_processes(chosen), clock),
        ancestor=ancestor,
    )
    if "lower" in config.tokenizer.normalize:
        report("all sources are lowercase: the model will lowercase its input")
    config = replace(config, data=replace(config.data, valid=() if valid is None else names_of(valid)))
    return Plan(config, reasons, *parts)


def _parts(
    everything: Pairs, name: str, valid: Any, test: Any, saved: RunFolder | None, report: Callable[[str], None]
) -> tuple[Pairs, Pairs, Pairs]:
    """Pairs to train, validate and test with: those given, and others held out where none are.

    Raises DataError where the given ones are all trained on.
    """
    given = {part: pairs_of(pairs) for part, pairs in (("validation", valid), ("test", test)) if pairs is not None}
    train, valid_pairs, test_pairs = hold_out(
        everything,
        name,
        report,
        has_valid="validation" in given,
        has_test="test" in given,
        num_train=saved.facts.get("num_train_pairs") if saved else None,
    )
    valid_pairs, test_pairs = given.get("validation", valid_pairs), given.get("test", test_pairs)
    report(f"split: {len(train):,} training, {len(valid_pairs):,} validation, {len(test_pairs):,} test pairs")
    for part, pairs in given.items():
        if count_overlap(everything, pairs)["pairs"] == len(pairs):
            raise DataError(
                f"all {len(pairs):,} {part} pairs are also in the training data, so a score would mean nothing: "
                "remove them there, or give none, and some will be held out."
            )
        report_overlap(count_overlap(train, pairs), report, part)
    if num_shared := count_overlap(valid_pairs, test_pairs)["pairs"]:
        report(f"{num_shared:,} test pairs are also validation pairs: the test score will be too optimistic")
    return train, valid_pairs, test_pairs


def _write_result(result: FitResult, test: Pairs) -> None:
    folder = RunFolder.open(result.run_dir)
    with folder.lock():
        folder.write_file("test.source", as_text(test.src))
        folder.write_file("test.target", as_text(test.tgt))
        folder.write_file("score.json", json.dumps(result.as_dict(), indent=2).encode() + b"\n")


def _task_of(pairs: Pairs, test: Pairs, given: Task | None, report: Callable[[str], None]) -> Task:
    """The task given, or what the pairs look like, without a BLEU that cannot be computed."""
    task = given or recognize(pairs)
    report(f"task: {task.name} ({'given' if given else 'detected'}; change with --task): {task.form}")
    metrics = task.metrics if given else default_metrics(task.metrics, [test.tgt])
    if metrics != task.metrics:
        report(f"targets are too short for BLEU (fewer than four words): scored by {' and '.join(metrics)}")
    return replace(task, metrics=metrics)


def _read(given: Any, report: Callable[[str], None]) -> Pairs:
    """The pairs, in memory. Raises DataError if they are too few, or too many for that."""
    if is_large(paths_of(given)):
        raise DataError(
            f"{' and '.join(names_of(given))}: more than {LARGE_BYTES / 1e6:,.0f} MB of text, too "
            "much for fit to hold in memory: write a config file with data.train = [...] for `transduce train`."
        )
    pairs = pairs_of(given)
    report_read("read", len(pairs), pairs, report)
    if len(pairs) < MINIMUM_PAIRS:
        raise DataError(
            f"{names_of(given)[0]}: {len(pairs):,} pairs are too few to train and test a model: at least "
            f"{MINIMUM_PAIRS:,} are needed, and about ten thousand for a useful one."
        )
    return pairs


def _resumed_settings(
    folder: RunFolder, train: Pairs, test: Pairs, minutes: float, task: Task | None
) -> ExperimentConfig:
    """Settings of the run in `folder`, with `minutes` as its time.

    Raises ConfigMismatchError if the run has another number of training pairs, or other metrics than those of `task`.
    """
    saved_num_train = folder.facts.get("num_train_pairs", 0)
    if saved_num_train != len(train):
        raise ConfigMismatchError(
            f"{folder.path} was trained on {saved_num_train:,} pairs, but these are {len(train):,}: give the same "
            "files, --valid and --test included, or start a new run in another --run-dir."
        )
    config = folder.settings
    if task and config.validation.metrics not in (task.metrics, default_metrics(task.metrics, [test.tgt])):
        raise ConfigMismatchError(
            f"{folder.path} was not started as {task.name}, which is scored by {', '.join(task.metrics)}: resume "
            "without --task, or start a new run in another --run-dir."
        )
    steps = config.training.steps if minutes == config.training.minutes else 0
    return replace(config, training=replace(config.training, steps=steps, minutes=minutes))


def _summary(config: ExperimentConfig) -> str:
    model, tokenizer = config.model, config.tokenizer
    kinds = tokenizer.source if tokenizer.joint else f"{tokenizer.source} -> {tokenizer.target}"
    at_most = f" (at most {tokenizer.vocab_size:,} subwords)" if "bpe" in kinds else ""
    return (
        f"{kinds}{at_most}, {model.num_encoder_layers} + {model.num_decoder_layers} layers of width {model.d_model}, "
        f"dropout {model.dropout:g}"
    )
