"""`fit`: from raw pairs to a trained and scored model, without any settings."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transduce.config.settings import ExperimentConfig
from transduce.data.config import DataConfig
from transduce.data.large.prepare import LARGE_BYTES
from transduce.data.pairs import Pairs, read_pairs, split_pairs
from transduce.errors import ConfigMismatchError, DataError, TransduceError
from transduce.evaluation.config import ValidationConfig
from transduce.evaluation.evaluate import predict_distinct, score
from transduce.evaluation.metrics import Score
from transduce.model.config import PRESETS, TransformerConfig
from transduce.runs.corpus import Corpus, is_large, report_read
from transduce.runs.folder import RunFolder
from transduce.runs.load import load
from transduce.runs.tasks import Task, find_task, recognize
from transduce.runs.train import find_run, train
from transduce.text.config import TokenizerConfig
from transduce.training.config import OptimConfig, TrainingConfig
from transduce.training.distributed import num_processes
from transduce.training.trainer import Observer

MINIMUM_PAIRS = 500  # with fewer, a model learns little and its score means nothing
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.05, 1000


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
    truncated_outputs: tuple[int, ...] = ()  # lines of the test part whose outputs are as long as allowed

    def as_dict(self) -> dict[str, Any]:
        """The result as a JSON object, with the scores by name."""
        scores = {result.name: result.as_dict() for result in self.scores}
        return asdict(self) | {"run_dir": str(self.run_dir), "scores": scores}


def fit(
    paths: Sequence[str | Path],
    run_dir: str | Path,
    *,
    task: str | None = None,
    minutes: float = 15.0,
    seed: int = 1,
    resume: bool = False,
    device: str = "auto",
    report: Callable[[str], None] = lambda _line: None,
    observers: Sequence[Observer] = (),
    show_progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> FitResult:
    """Train on the pairs in `paths` for about `minutes`, and score the model on pairs held out before.

    `task` is a name in `tasks.TASKS`; it decides the tokens and the metrics. None: the task that the pairs look like.

    No source or target of the held-out parts occurs in training. The run folder keeps the test part (test.source,
    test.target) and the result (score.json). A resumed run keeps its settings.
    Raises DataError for fewer than MINIMUM_PAIRS, and for more text than `train` holds in memory.
    """
    started, run_dir = clock(), Path(run_dir)
    if num_processes() > 1:
        raise TransduceError("fit is one process: with torchrun, use `transduce train` and a config file.")
    saved = find_run(run_dir, resume=resume)
    given_task = find_task(task) if task else None
    pairs = _read(paths, report)
    train_pairs, valid, test = _hold_out(pairs, str(paths[0]))
    report(f"{len(train_pairs):,} pairs to learn from, {len(valid):,} to validate, {len(test):,} to test")
    if saved is None:
        fitting_task = given_task or recognize(pairs)
        report(f"{'taken for' if given_task else 'this looks like'} {fitting_task.name}: {fitting_task.form}")
        config = choose_settings(fitting_task, train_pairs, paths, minutes=minutes, seed=seed)
    else:
        config = _resumed_settings(saved, len(train_pairs), minutes, given_task)
    report(_summary(config))
    state = train(
        config,
        run_dir,
        corpus=Corpus(train_pairs, valid),
        resume=resume,
        device=device,
        report=report,
        observers=observers,
        show_progress=show_progress,
        clock=clock,
        started=started,
    )
    predictor = load(run_dir, device=device)
    validation = config.validation
    predictions, grouped = predict_distinct(predictor, test.src), validation.group_sources
    scores = score(predictor, test.src, [test.tgt], validation.metrics, group_sources=grouped, predictions=predictions)
    truncated = tuple(line for line, prediction in enumerate(predictions, 1) if prediction.is_truncated)
    counts = (len(train_pairs), len(valid), len(test))
    result = FitResult(run_dir, scores, *counts, round(state.seconds, 1), test.src[0], truncated)
    folder = RunFolder.open(run_dir)
    folder.write_file("test.source", "".join(f"{line}\n" for line in test.src).encode())
    folder.write_file("test.target", "".join(f"{line}\n" for line in test.tgt).encode())
    folder.write_file("score.json", json.dumps(result.as_dict(), indent=2).encode() + b"\n")
    return result


def _read(paths: Sequence[str | Path], report: Callable[[str], None]) -> Pairs:
    """The pairs in `paths`, in memory. Raises DataError if they are too few, or too many for that."""
    if is_large(paths):
        raise DataError(
            f"{' and '.join(map(str, paths))}: more than {LARGE_BYTES / 1e6:,.0f} MB of text, which fit "
            "would hold in memory: write a config file with data.train = [...], and use `transduce train` with it."
        )
    pairs = read_pairs(paths)
    report_read("read", len(pairs), pairs, report)
    if len(pairs) < MINIMUM_PAIRS:
        raise DataError(
            f"{paths[0]}: {len(pairs):,} pairs are too few to learn from and to be scored on: at least "
            f"{MINIMUM_PAIRS:,} are needed, and some ten thousand make a usable model."
        )
    return pairs


def _hold_out(pairs: Pairs, name: str) -> tuple[Pairs, Pairs, Pairs]:
    """Training, validation and test pairs, without a source or a target in common."""
    held_out = min(_MOST_HELD_OUT, int(_HELD_OUT_SHARE * len(pairs)))
    try:
        return split_pairs(pairs, valid=held_out, test=held_out)
    except DataError:
        raise DataError(
            f"{name}: the pairs share so many sources and targets that none can be held out for a score: "
            "remove repeated ones, or use `transduce train` with a validation file of your own."
        ) from None


def choose_settings(
    task: Task, train_pairs: Pairs, paths: Sequence[str | Path], *, minutes: float, seed: int
) -> ExperimentConfig:
    """Settings that suit the task, the pairs and the time; a function of the text, not of the machine."""
    source, target = task.token_kind_of(train_pairs.src), task.token_kind_of(train_pairs.tgt)
    num_characters = sum(map(len, train_pairs.src)) + sum(map(len, train_pairs.tgt))
    # Heaps' law: the number of useful subwords grows about as the square root of the text's length.
    vocab_size = min(8000, max(600, 100 * round(3.3 * math.sqrt(num_characters) / 100)))
    return ExperimentConfig(
        data=DataConfig(train=tuple(map(str, paths))),
        tokenizer=TokenizerConfig(source=source, target=target, joint=source == target, vocab_size=vocab_size),
        model=_model_for(num_characters, minutes),
        optim=OptimConfig(schedule="linear", learning_rate=3e-3, warmup_steps=200, max_grad_norm=1.0, ema_decay=0.995),
        training=TrainingConfig(minutes=minutes, batch_tokens=1024, seed=seed),
        validation=ValidationConfig(metrics=task.metrics, best="loss", max_pairs=200, group_sources=task.group_sources),
    )


def _resumed_settings(folder: RunFolder, num_train: int, minutes: float, task: Task | None) -> ExperimentConfig:
    """Settings of the run in `folder`, with `minutes` as its time.

    Raises ConfigMismatchError if the run has another number of training pairs, or other metrics than those of `task`.
    """
    saved_num_train = folder.facts["num_train_pairs"]
    if saved_num_train != num_train:
        raise ConfigMismatchError(
            f"{folder.path} learns from {saved_num_train:,} pairs and these would be {num_train:,}: give the same "
            "files, or begin another run in another --run-dir."
        )
    config = folder.settings
    if task and config.validation.metrics != task.metrics:
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
