"""The composition root of a run: settings in, a trained and validated run folder out."""

import copy
import gc
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transduce.config.settings import (
    ExperimentConfig,
    carry_over,
    refuse_changes,
    refuse_other_data,
    with_shape_of,
    with_steps,
)
from transduce.config.toml import differences, to_toml
from transduce.data.batches import TrainingPairs
from transduce.data.download import Places
from transduce.devices import machine
from transduce.devices.device import find_device, own_device
from transduce.errors import RunFolderError, TransduceError
from transduce.evaluation.config import name_of_score, scores_by_name
from transduce.model.transformer import Transformer
from transduce.runs.corpus import Corpus, LearntFrom, learn_and_encode, read_corpus
from transduce.runs.folder import RunFolder
from transduce.runs.monitoring import TerminalDisplay, learning_curve
from transduce.runs.validation import build_validation
from transduce.text.tokenizer import Tokenizer
from transduce.training.distributed import Process, joined, num_processes
from transduce.training.state import TrainerState, Validation
from transduce.training.step import TrainStep
from transduce.training.trainer import Observer, Trainer, seconds_per_step, step_order

# How a time limit becomes a number of steps: the clock watches this many, for at most this share of the time.
_WARM_UP_STEPS, _MEASURED_STEPS, _MEASURED_SHARE = 3, 30, 0.05
_VALIDATION_SHARE = 0.06  # of the time is kept for validations and for slower moments than the measured ones

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and the state of the trainer


def train(
    config: ExperimentConfig,
    run_dir: str | Path,
    *,
    corpus: Corpus | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    init_from: str | Path | None = None,
    device: str = "auto",
    places: Places = Places(),  # noqa: B008 - frozen
    report: Callable[[str], None] = lambda _line: None,
    observers: Sequence[Observer] = (),
    show_progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    started: float | None = None,
) -> TrainerState:
    """Trains as `config` says into `run_dir`, or goes on with the run there (`resume`).

    `corpus` stands in for what `config.data` names, if it is in memory already; named data sets come from `places`.
    `report` is told what happens, `observers` every logged row; `show_progress` shows rows on standard error.
    `started`, by `clock`, is when the time that `training.minutes` allows began, if before now. Raises Stopped, after
    saving, when told to stop; TransduceError, with nothing lost, for what cannot be.
    """
    started = clock() if started is None else started
    run_dir, chosen = Path(run_dir), find_device(device)
    facts = machine_facts(chosen) | {"commit": machine.commit()}  # of this code: another may be committed meanwhile
    with joined(own_device(chosen)) as process, ExitStack() as held:
        if not process.is_main:
            report, observers, show_progress = lambda _line: None, (), False
        saved = process.decide(lambda: _find_run(run_dir, resume))
        if saved is not None:
            process.decide(lambda: held.enter_context(saved.lock()))
        corpus = corpus or read_corpus(config.data, places, report)
        checkpoint = ancestor = None
        if saved is not None:
            config, checkpoint = _settle(config, saved, corpus, process, facts, report, accept_changes=accept_changes)
        elif init_from:
            ancestor = RunFolder.open(Path(init_from))
            config = with_shape_of(ancestor.settings, config)
            report(f"tokenizer, model settings and weights are those of {ancestor.path}")
        origin = saved or ancestor
        tokenizer = origin.tokenizer if origin else None
        learnt = learn_and_encode(config, corpus, tokenizer, process, report=report, show_progress=show_progress)
        model = build_model(config, learnt.tokenizer).to(own_device(chosen))
        folder = saved
        if folder is None:
            if ancestor is not None:
                ancestor.load_weights_into(model)
            folder = process.decide(lambda: _create(run_dir, config, corpus, learnt, facts, ancestor))
            process.decide(lambda: held.enter_context(folder.lock()))
        run = _Run(folder, config, model, learnt.pairs, checkpoint)
        validate = (
            build_validation(config, learnt.tokenizer, corpus.valid, report) if corpus.valid is not None else None
        )
        return _train(run, validate, process, report, observers, show_progress, clock, started)


def _find_run(run_dir: Path, resume: bool) -> RunFolder | None:
    """The run to go on with; None if a new one can begin there. Raises RunFolderError, before any long work, if not."""
    if resume and (run_dir / "run.json").exists():
        return RunFolder.open(run_dir)
    RunFolder(run_dir).refuse_other_use()
    return None


@dataclass
class _Run:
    """A run about to be trained: everything but the clock."""

    folder: RunFolder
    config: ExperimentConfig
    model: Transformer
    pairs: TrainingPairs
    checkpoint: Checkpoint | None


def _create(
    run_dir: Path,
    config: ExperimentConfig,
    corpus: Corpus,
    learnt: LearntFrom,
    started: Mapping[str, Any],
    ancestor: RunFolder | None,
) -> RunFolder:
    facts = {"data": corpus.sha256, "num_train_pairs": learnt.num_text_pairs, "started": started}
    if ancestor is not None:
        facts["initialised_from"] = str(ancestor.path)
    return RunFolder.create(run_dir, config=to_toml(config), tokenizer=learnt.tokenizer.to_json(), facts=facts)


def _settle(
    config: ExperimentConfig,
    folder: RunFolder,
    corpus: Corpus,
    process: Process,
    here: Mapping[str, Any],
    report: Callable[[str], None],
    *,
    accept_changes: bool,
) -> tuple[ExperimentConfig, Checkpoint | None]:
    """The settings to go on with and the newest checkpoint, after all that was changed is refused or recorded."""
    checkpoint: Checkpoint | None = None

    def settle() -> tuple[ExperimentConfig, int | None]:
        nonlocal checkpoint
        facts, saved = folder.facts, folder.settings
        asked = with_shape_of(saved, config) if "initialised_from" in facts else config
        asked = carry_over(asked, saved)
        changes = differences(saved, asked)
        refuse_changes(changes, accept_changes=accept_changes)
        refuse_other_data(facts["data"], corpus.sha256, folder.path)
        newest = folder.newest_checkpoint(report=report)
        if newest is None and folder.has_model:
            raise RunFolderError(
                f"{folder.path} has a model but no checkpoints, so there is nothing to go on from. Start another run "
                f"from its weights: --init-from {folder.path} --run-dir ANOTHER."
            )
        step, checkpoint = (newest[0], newest[1:]) if newest else (None, None)
        _record(folder, step or 0, changes, here, report)
        folder.rewrite_config(to_toml(asked))
        for name, (old, new) in changes.items():
            report(f"{name}: {old!r} -> {new!r}")
        report(f"going on from step {step or 0:,} of {asked.training.steps:,}")
        return asked, step

    settled, step = process.decide(settle)
    if step is not None and checkpoint is None:  # read by the first process alone
        checkpoint = folder.read_checkpoint(step)
    return settled, checkpoint and _by_names_now(checkpoint, settled)


def _by_names_now(checkpoint: Checkpoint, config: ExperimentConfig) -> Checkpoint:
    """A checkpoint whose state calls the score that it was best by as we do now."""
    tensors, state = checkpoint
    name, of, pairs = state.get("best_measure", "").partition(" of ")
    name = name_of_score(name, group_sources=config.validation.group_sources)
    return tensors, {**state, "best_measure": f"{name}{of}{pairs}"}


def _record(
    folder: RunFolder,
    step: int,
    changes: Mapping[str, tuple[Any, Any]],
    here: Mapping[str, Any],
    report: Callable[[str], None],
) -> None:
    """Notes in the folder that the run goes on, with what changes and on what machine: before anything does."""
    facts = folder.facts
    there = facts["started"]
    for name in sorted(name for name in here if name != "commit" and here[name] != there.get(name)):
        report(f"{name} was {there.get(name)} and is {here[name]}: the weights may differ in their last bits")
    folder.truncate_metrics(step)
    session = {"step": step, "changes": {name: list(pair) for name, pair in changes.items()}, "machine": dict(here)}
    folder.update_facts({"resumed": [*facts.get("resumed", []), session]})


def _train(
    run: _Run,
    validate: Callable[[nn.Module], Validation] | None,
    process: Process,
    report: Callable[[str], None],
    observers: Sequence[Observer],
    show_progress: bool,
    clock: Callable[[], float],
    started: float,
) -> TrainerState:
    training = run.config.training
    if training.cuda_graph and run.model.output_weight.device.type == "cpu":
        report("training.cuda_graph does nothing on a CPU")
    budget = training.minutes * 60 - (clock() - started)
    steps = training.steps or _plan_steps(run, budget, process, clock)
    if (settled := with_steps(run.config, steps)) != run.config:
        process.decide(lambda: run.folder.rewrite_config(to_toml(settled)))
        if not training.steps:
            limit = f"{training.epochs:g} epochs are" if training.epochs else f"{training.minutes:g} minutes are about"
            report(f"{limit} {steps:,} steps")
    with ExitStack() as stack:
        if show_progress:
            first_step = run.checkpoint[1]["step"] if run.checkpoint else 0
            observers = [*observers, stack.enter_context(TerminalDisplay(steps, first_step=first_step))]
        trainer = Trainer(
            run.model,
            run.pairs,
            config=settled.training,
            optim=settled.optim,
            store=run.folder,
            validate=validate,
            observers=observers,
            process=process,
            deadline=budget if training.minutes else math.inf,
            clock=clock,
        )
        if run.checkpoint is not None:
            trainer.restore(*run.checkpoint)
            if trainer.state.epoch != run.checkpoint[1]["epoch"]:
                report("the batches are others now: going on with the next epoch")
        state = trainer.run()
    if process.is_main:
        _draw_learning_curve(run, report)
    return state


def build_model(config: ExperimentConfig, tokenizer: Tokenizer) -> Transformer:
    """The network with its random start, a function of `training.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return Transformer(config.model, tokenizer.vocabulary_sizes)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What equal bits depend on."""
    return {
        "transduce": machine.version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": num_processes(),
    }


def _plan_steps(run: _Run, budget: float, process: Process, clock: Callable[[], float]) -> int:
    """How many steps `training.epochs` are, or fit into `budget` seconds by the time that some take here."""
    training = run.config.training
    order = step_order(run.pairs, training)
    if training.epochs:
        return max(1, round(training.epochs * process.decide(order.steps_of_epoch)))
    # On a copy, as the weights are thrown away; of a run so long that these steps are its gentle beginning.
    trial = TrainStep(
        copy.deepcopy(run.model), config=replace(training, steps=1_000_000), optim=run.config.optim, process=process
    )
    order.open(0, 0)
    started = clock()
    with torch.random.fork_rng(devices=[]):
        estimate = seconds_per_step(trial, order.pairs, order.steps, num_steps=_WARM_UP_STEPS, clock=clock)
        num_steps = process.from_main(max(1, min(_MEASURED_STEPS, int(_MEASURED_SHARE * budget / estimate))))
        measured = seconds_per_step(trial, order.pairs, order.steps, num_steps=num_steps, clock=clock)
    del trial
    gc.collect()  # its weights and Adam's moments: they refer to each other, and a GPU's memory is not waited for
    left = budget * (1 - _VALIDATION_SHARE) - (clock() - started)
    steps = process.from_main(int(left / measured))
    if steps < 1:
        raise TransduceError(
            f"{training.minutes:g} minutes are too short to train: reading and preparing took them. Allow more; a "
            "large corpus is prepared only once, so the same command may do now."
        )
    return steps + (run.checkpoint[1]["step"] if run.checkpoint else 0)


def _draw_learning_curve(run: _Run, report: Callable[[str], None]) -> None:
    folder, group_sources = run.folder, run.config.validation.group_sources
    rows = [scores_by_name(row, group_sources=group_sources) for row in folder.metrics()]
    try:
        picture = learning_curve(rows, folder.path.name)
    except ImportError:
        report("the learning curve is not drawn: that needs matplotlib (pip install 'transduce[plots]')")
        return
    folder.write_file("learning_curve.png", picture)
