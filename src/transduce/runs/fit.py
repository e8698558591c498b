"""`fit`: from raw pairs to a trained and scored model, without any settings."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import is_normalized

import numpy as np

from transduce.config.settings import ExperimentConfig
from transduce.data.config import DataConfig
from transduce.data.large.prepare import LARGE_BYTES
from transduce.data.memory import names_of, pairs_of, paths_of
from transduce.data.pairs import Pairs, count_overlap
from transduce.data.parsing import as_text
from transduce.errors import ConfigMismatchError, DataError, TransduceError
from transduce.evaluation.bleu import default_metrics
from transduce.evaluation.config import ValidationConfig
from transduce.evaluation.evaluate import predict_distinct, score
from transduce.evaluation.metrics import Score
from transduce.model.config import PRESETS, TransformerConfig
from transduce.runs.corpus import Corpus, hold_out, is_large, report_overlap, report_read
from transduce.runs.folder import RunFolder
from transduce.runs.monitoring import report_to_notebook
from transduce.runs.run import Run, load
from transduce.runs.tasks import Task, find_task, recognize
from transduce.runs.train import find_run, train
from transduce.text.config import TokenizerConfig
from transduce.text.normal_form import Form
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.distributed import num_processes
from transduce.training.trainer import Observer

MINIMUM_PAIRS = 500  # with fewer, a model learns little and its score means nothing
_NUM_SAMPLES = 3  # outputs reported at the end
_NEARLY_ALL = 99.9  # per cent of the pairs are to be trained on however long they are,
_LONGEST = 4096  # up to so many tokens


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


def fit(
    pairs: Any,
    run_dir: str | Path,
    *,
    valid: Any = None,
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
    """Train on `pairs` for about `minutes`, and score the model on some of them, held out before.

    `pairs` are paths (.tsv, .jsonl, or two parallel files) or pairs in memory: a list of (source, target), a list of
    dicts, a DataFrame, a `datasets.Dataset`, an iterator of rows; see `data.memory`. So is `valid`, pairs to validate
    by during training; None: some are held out for this, too. Returns the run, with the attributes of a `FitResult`. A
    notebook is shown reports and progress unless told otherwise.

    `task` is a name in `tasks.TASKS`; it decides the tokens and the metrics. None: the task that the pairs look like.

    No source or target of the parts that it holds out occurs in training. The run folder keeps the test part
    (test.source, test.target) and the result (score.json). A resumed run keeps its settings. So
    many `processes` of this machine share each step; None: as many as `choose_processes` says.
    Raises DataError for fewer than MINIMUM_PAIRS, and for more text than `train` holds in memory.
    """
    started, run_dir, report = clock(), Path(run_dir), report or report_to_notebook
    if num_processes() > 1:
        raise TransduceError("fit is one process: with torchrun, use `transduce train` and a config file.")
    _refuse_minutes(minutes)
    saved = find_run(run_dir, resume=resume)
    given_task = find_task(task) if task else None
    everything = _read(pairs, report)
    num_train = saved.facts["num_train_pairs"] if saved else None
    parts = hold_out(everything, names_of(pairs)[0], report, has_valid=valid is not None, num_train=num_train)
    train_pairs, held_out, test = parts if valid is None else (parts[0], pairs_of(valid), parts[2])
    _report_parts(train_pairs, held_out, test, report, is_valid_given=valid is not None)
    if saved is None:
        chosen_task = _task_of(everything, test, given_task, report)
        config = choose_settings(chosen_task, train_pairs, names_of(pairs), minutes=minutes, seed=seed)
        config = replace(config, data=replace(config.data, valid=() if valid is None else names_of(valid)))
        if "lower" in config.tokenizer.normalize:
            report("all sources are lower case: the model will read capitals as small letters")
    else:
        config = _resumed_settings(saved, train_pairs, test, minutes, given_task)
    report(_summary(config))
    state = train(
        config,
        run_dir,
        corpus=Corpus(train_pairs, held_out),
        resume=resume,
        device=device,
        processes=processes,
        report=report,
        observers=observers,
        show_progress=show_progress,
        clock=clock,
        started=started,
    )
    run, settings = load(run_dir, device=device), config.validation
    predictions, metrics, grouped = predict_distinct(run, test.src), settings.metrics, settings.group_sources
    scores = score(run, test.src, [test.tgt], metrics, group_sources=grouped, predictions=predictions)
    truncated = [line for line, prediction in enumerate(predictions, 1) if prediction.is_truncated]
    counts = (len(train_pairs), len(held_out), len(test))
    result = FitResult(run_dir, scores, *counts, round(state.seconds, 1), test.src[0], truncated)
    _write_result(result, test)
    for source, prediction in zip(test.src[:_NUM_SAMPLES], predictions, strict=False):
        report(f"a sample: {source} -> {prediction.text}")
    run.result, run.state = result, state
    return run


def _refuse_minutes(minutes: object) -> None:
    if not (isinstance(minutes, int | float) and 0 < minutes < math.inf):
        raise TransduceError(f"minutes is {minutes!r}: a number above 0 is needed.")


def _write_result(result: FitResult, test: Pairs) -> None:
    folder = RunFolder.open(result.run_dir)
    folder.write_file("test.source", as_text(test.src))
    folder.write_file("test.target", as_text(test.tgt))
    folder.write_file("score.json", json.dumps(result.as_dict(), indent=2).encode() + b"\n")


def _report_parts(
    train: Pairs, valid: Pairs, test: Pairs, report: Callable[[str], None], *, is_valid_given: bool
) -> None:
    """Reports how many pairs each part has, and how many of given validation pairs are in the others."""
    report(f"{len(train):,} pairs to learn from, {len(valid):,} to validate, {len(test):,} to test")
    if not is_valid_given:
        return
    report_overlap(count_overlap(train, valid), report)
    if num_shared := count_overlap(valid, test)["pairs"]:
        report(f"{num_shared:,} pairs of the test part are to validate, too: the score will flatter the model")


def _task_of(pairs: Pairs, test: Pairs, given: Task | None, report: Callable[[str], None]) -> Task:
    """The task given, or what the pairs look like, without a BLEU that cannot be had."""
    task = given or recognize(pairs)
    report(f"{'taken for' if given else 'this looks like'} {task.name}: {task.form}")
    metrics = task.metrics if given else default_metrics(task.metrics, [test.tgt])
    if metrics != task.metrics:
        report(f"hardly any target has four words, so there is no BLEU: {' and '.join(metrics)} are scored")
    return replace(task, metrics=metrics)


def _read(given: Any, report: Callable[[str], None]) -> Pairs:
    """The pairs, in memory. Raises DataError if they are too few, or too many for that."""
    if is_large(paths_of(given)):
        raise DataError(
            f"{' and '.join(names_of(given))}: more than {LARGE_BYTES / 1e6:,.0f} MB of text, which fit "
            "would hold in memory: write a config file with data.train = [...], and use `transduce train` with it."
        )
    pairs = pairs_of(given)
    report_read("read", len(pairs), pairs, report)
    if len(pairs) < MINIMUM_PAIRS:
        raise DataError(
            f"{names_of(given)[0]}: {len(pairs):,} pairs are too few to learn from and to be scored on: at least "
            f"{MINIMUM_PAIRS:,} are needed, and some ten thousand make a usable model."
        )
    return pairs


def choose_settings(
    task: Task, train_pairs: Pairs, paths: Sequence[str | Path], *, minutes: float, seed: int
) -> ExperimentConfig:
    """Settings that suit the task, the pairs and the time; a function of the text, not of the machine."""
    source, target = task.token_kind_of(train_pairs.src), task.token_kind_of(train_pairs.tgt)
    num_characters = sum(map(len, train_pairs.src)) + sum(map(len, train_pairs.tgt))
    # Heaps' law: the number of useful subwords grows about as the square root of the text's length.
    vocab_size = min(8000, max(600, 100 * round(3.3 * math.sqrt(num_characters) / 100)))
    # A text has about as many tokens as characters, and an end, at most.
    longest = [max(map(len, pair)) + 1 for pair in zip(train_pairs.src, train_pairs.tgt, strict=True)]
    max_len = min(_LONGEST, max(DataConfig.max_len, int(np.percentile(longest, _NEARLY_ALL, method="lower"))))
    model = _model_for(num_characters, minutes)
    return ExperimentConfig(
        data=DataConfig(train=tuple(map(str, paths)), max_len=max_len),
        tokenizer=TokenizerConfig(
            source=source, target=target, joint=source == target, vocab_size=vocab_size, **_normal_forms(train_pairs)
        ),
        model=replace(model, max_len=max(model.max_len, max_len)),
        optim=OptimConfig(schedule="linear", learning_rate=3e-3, warmup_steps=200, max_grad_norm=1.0, ema_decay=0.995),
        training=TrainingConfig(minutes=minutes, batch_tokens=1024, part_tokens=512, seed=seed),
        # The score is what the model is for; the least loss comes long before it where there are few pairs.
        validation=ValidationConfig(
            metrics=task.metrics, best=task.metrics[0], ties_by_loss=True, group_sources=task.group_sources
        ),
    )


def _normal_forms(pairs: Pairs) -> dict[str, tuple[Form, ...]]:
    """Forms of both sides: one for letters with marks, which on the target is the one that most targets have."""
    is_lower = all(line == line.lower() for line in pairs.src) and any(line.islower() for line in pairs.src)
    num_other = {form: sum(not is_normalized(form, line) for line in pairs.tgt) for form in ("NFC", "NFD")}
    return {
        "normalize": ("lower", "nfc", "strip") if is_lower else ("nfc", "strip"),
        "normalize_target": ("nfd",) if num_other["NFD"] < num_other["NFC"] else (),
    }


def _resumed_settings(
    folder: RunFolder, train: Pairs, test: Pairs, minutes: float, task: Task | None
) -> ExperimentConfig:
    """Settings of the run in `folder`, with `minutes` as its time.

    Raises ConfigMismatchError if the run has another number of training pairs, or other metrics than those of `task`.
    """
    saved_num_train = folder.facts["num_train_pairs"]
    if saved_num_train != len(train):
        raise ConfigMismatchError(
            f"{folder.path} learns from {saved_num_train:,} pairs and these would be {len(train):,}: give the same "
            "files, or begin another run in another --run-dir."
        )
    config = folder.settings
    if task and config.validation.metrics not in (task.metrics, default_metrics(task.metrics, [test.tgt])):
        raise ConfigMismatchError(
            f"{folder.path} was not begun as {task.name}, which is scored by {', '.join(task.metrics)}: go on without "
            "--task, or begin another run in another --run-dir."
        )
    steps = config.training.steps if minutes == config.training.minutes else 0
    return replace(config, training=replace(config.training, steps=steps, minutes=minutes))


def _model_for(num_characters: int, minutes: float) -> TransformerConfig:
    """The tiny model, pre-norm, with more dropout the more passes over the text fit in the time."""
    characters_per_minute = 1_000_000  # about what two cores train on with this model, both sides together
    passes = minutes * characters_per_minute / num_characters
    dropout = 0.1 if passes < 15 else 0.2 if passes < 50 else 0.3
    return replace(PRESETS["tiny"], norm_first=True, dropout=dropout)


def _summary(config: ExperimentConfig) -> str:
    model, tokenizer = config.model, config.tokenizer
    kinds = tokenizer.source if tokenizer.joint else f"{tokenizer.source} -> {tokenizer.target}"
    at_most = f" (at most {tokenizer.vocab_size:,} subwords)" if "bpe" in kinds else ""
    return (
        f"{kinds}{at_most}, {model.num_encoder_layers} + {model.num_decoder_layers} layers of width {model.d_model}, "
        f"dropout {model.dropout:g}"
    )
