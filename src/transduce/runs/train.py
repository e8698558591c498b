"""The composition root of a run: settings in, a trained and validated run folder out."""

import copy
import gc
import math
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transduce.config.settings import (
    ExperimentConfig,
    carry_over,
    load_config,
    refuse_changes,
    refuse_other_data,
    with_shape_of,
    with_steps,
)
from transduce.config.toml import differences, to_toml
from transduce.data.batches import TrainingPairs
from transduce.devices import machine
from transduce.devices.device import find_device, own_device
from transduce.errors import RunFolderError, TransduceError
from transduce.evaluation.config import name_of_score, scores_by_name
from transduce.evaluation.evaluate import build_validation
from transduce.files.tensors import load_parameters
from transduce.inference.predictor import vocabulary_sizes
from transduce.model import Transformer
from transduce.runs.corpus import Corpus, Surroundings, learn_and_encode, read_corpus
from transduce.runs.folder import RunFolder
from transduce.runs.monitoring import TerminalDisplay, learning_curve
from transduce.text.tokenizer import Tokenizer
from transduce.training.distributed import Process, joined, num_processes
from transduce.training.trainer import Trainer, TrainerState, seconds_per_step, step_order

# How a time limit becomes a number of steps: the clock watches this many, for at most this share of the time.
_WARM_UP_STEPS, _MEASURED_STEPS, _MEASURED_SHARE = 3, 30, 0.05
_VALIDATION_SHARE = 0.06  # of the time is kept for validations and for slower moments than the measured ones


def train(
    config: ExperimentConfig,
    run_dir: str | Path,
    *,
    corpus: Corpus | None = None,
    surroundings: Surroundings = Surroundings(),  # noqa: B008 - frozen
    resume: bool = False,
    accept_changes: bool = False,
    init_from: str | Path | None = None,
    started: float | None = None,
) -> TrainerState:
    """Trains as `config` says into `run_dir`, or goes on with the run there (`resume`).

    `corpus` stands in for what `config.data` names, if it is in memory already; `started`, by `surroundings.clock`,
    is when the time that `training.minutes` allows began, if before now. Raises Stopped, after saving, when
    told to stop; TransduceError, with nothing lost, for what cannot be.
    """
    started = surroundings.clock() if started is None else started
    run_dir = Path(run_dir)
    commit = machine.commit()  # of the code that was read: another may be made meanwhile
    with joined(own_device(find_device(surroundings.device))) as process, ExitStack() as held:
        if not process.is_main:
            surroundings = replace(surroundings, report=lambda _line: None, observers=(), show_progress=False)
        folder = process.decide(lambda: _find_run(run_dir, resume))
        if folder is not None:
            process.decide(lambda: held.enter_context(folder.lock()))
        if corpus is None:
            corpus = read_corpus(config.data, surroundings)
        if folder is not None:
            run = _reopen(config, folder, corpus, process, surroundings, accept_changes=accept_changes, commit=commit)
        else:
            run = _begin(config, run_dir, corpus, process, surroundings, init_from=init_from, commit=commit)
            process.decide(lambda: held.enter_context(run.folder.lock()))
        return _train(run, corpus, process, surroundings, started)


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
    tokenizer: Tokenizer
    model: Transformer
    pairs: TrainingPairs
    checkpoint: tuple[dict[str, Tensor], dict[str, Any]] | None = None


def _begin(
    config: ExperimentConfig,
    run_dir: Path,
    corpus: Corpus,
    process: Process,
    surroundings: Surroundings,
    *,
    init_from: str | Path | None,
    commit: str | None,
) -> _Run:
    """A new run folder, with a tokenizer learnt from the training pairs or, like the weights, taken from a run."""
    ancestor = RunFolder.open(init_from) if init_from else None
    if ancestor is not None:
        config = with_shape_of(load_config(ancestor.config, f"{ancestor.path}/config.toml"), config)
        surroundings.report(f"tokenizer, model settings and weights are those of {ancestor.path}")
    learnt = learn_and_encode(config, corpus, ancestor.tokenizer if ancestor else None, process, surroundings)
    tokenizer = Tokenizer.from_json(learnt.tokenizer)
    model = build_model(config, tokenizer).to(own_device(find_device(surroundings.device)))
    if ancestor is not None:
        load_parameters(model, ancestor.read_model()[0])

    def create() -> RunFolder:
        facts: dict[str, Any] = {
            "data": corpus.sha256,
            "num_train_pairs": learnt.num_text_pairs,
            "started": machine_facts(surroundings.device) | {"commit": commit},
        }
        if ancestor is not None:
            facts["initialised_from"] = str(ancestor.path)
        return RunFolder.create(run_dir, config=to_toml(config), tokenizer=learnt.tokenizer, facts=facts)

    return _Run(process.decide(create), config, tokenizer, model, learnt.pairs)


def _reopen(
    config: ExperimentConfig,
    folder: RunFolder,
    corpus: Corpus,
    process: Process,
    surroundings: Surroundings,
    *,
    accept_changes: bool,
    commit: str | None,
) -> _Run:
    """The run in `folder` as its newest checkpoint left it. Raises ConfigMismatchError for what may not change."""
    config, step = process.decide(
        lambda: _settle(config, folder, corpus, surroundings, accept_changes=accept_changes, commit=commit)
    )
    tokenizer = Tokenizer.from_json(folder.tokenizer)
    pairs = learn_and_encode(config, corpus, folder.tokenizer, process, surroundings).pairs
    model = build_model(config, tokenizer).to(own_device(find_device(surroundings.device)))
    return _Run(folder, config, tokenizer, model, pairs, _read_checkpoint(folder, step, config))


def _read_checkpoint(
    folder: RunFolder, step: int | None, config: ExperimentConfig
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A checkpoint's tensors and state, in which an older one calls the score that it was best by as we do now."""
    if step is None:
        return None
    tensors, state = folder.read_checkpoint(step)
    name, of, pairs = state.get("best_measure", "").partition(" of ")
    name = name_of_score(name, group_sources=config.validation.group_sources)
    return tensors, {**state, "best_measure": f"{name}{of}{pairs}"}


def _settle(
    config: ExperimentConfig,
    folder: RunFolder,
    corpus: Corpus,
    surroundings: Surroundings,
    *,
    accept_changes: bool,
    commit: str | None,
) -> tuple[ExperimentConfig, int | None]:
    """The settings to go on with, and from which checkpoint, after all that was changed is refused or recorded."""
    facts, report = folder.facts, surroundings.report
    saved = load_config(folder.config, f"{folder.path}/config.toml")
    if "initialised_from" in facts:
        config = with_shape_of(saved, config)
    config = carry_over(config, saved)
    changes = differences(saved, config)
    refuse_changes(changes, accept_changes=accept_changes)
    refuse_other_data(facts["data"], corpus.sha256, folder.path)
    found = folder.newest_checkpoint(report=report)
    if found is None and folder.has_model:
        raise RunFolderError(
            f"{folder.path} has a model but no checkpoints, so there is nothing to go on from. Start another run from "
            f"its weights: --init-from {folder.path} --run-dir ANOTHER."
        )
    step = found[0] if found else None
    here, there = machine_facts(surroundings.device), facts["started"]
    for name in sorted(name for name in here if here[name] != there.get(name)):
        report(f"{name} was {there.get(name)} and is {here[name]}: the weights may differ in their last bits")
    folder.truncate_metrics(step or 0)
    told = {
        "step": step or 0,
        "changes": {name: list(pair) for name, pair in changes.items()},
        "machine": here | {"commit": commit},
    }
    folder.update_facts({"resumed": [*facts.get("resumed", []), told]})  # first: nothing changes unrecorded
    folder.rewrite_config(to_toml(config))
    for name, (old, new) in changes.items():
        report(f"{name}: {old!r} -> {new!r}")
    report(f"going on from step {step or 0:,} of {config.training.steps:,}")
    return config, step


def _train(run: _Run, corpus: Corpus, process: Process, surroundings: Surroundings, started: float) -> TrainerState:
    if run.config.training.cuda_graph and find_device(surroundings.device).type == "cpu":
        surroundings.report("training.cuda_graph does nothing on a CPU")
    validate = None
    if corpus.valid is not None:
        validate = build_validation(run.config, run.tokenizer, corpus.valid, surroundings.report)
    training = run.config.training
    budget = training.minutes * 60 - (surroundings.clock() - started)
    steps = training.steps or _plan_steps(run, budget, process, surroundings.clock)
    if (settled := with_steps(run.config, steps)) != run.config:
        process.decide(lambda: run.folder.rewrite_config(to_toml(settled)))
        if not training.steps:
            limit = f"{training.epochs:g} epochs are" if training.epochs else f"{training.minutes:g} minutes are about"
            surroundings.report(f"{limit} {steps:,} steps")
        run.config = settled
    trainer = Trainer(
        run.model,
        run.pairs,
        config=run.config.training,
        optim=run.config.optim,
        folder=run.folder,
        validate=validate,
        process=process,
        deadline=budget if training.minutes else math.inf,
        clock=surroundings.clock,
    )
    if run.checkpoint is not None:
        trainer.restore(*run.checkpoint)
        if trainer.state.epoch != run.checkpoint[1]["epoch"]:
            surroundings.report("the batches are others now: going on with the next epoch")
    with ExitStack() as stack:
        observers = list(surroundings.observers)
        if surroundings.show_progress:
            display = TerminalDisplay(run.config.training.steps, first_step=trainer.state.step)
            observers.append(stack.enter_context(display))
        trainer.observe = lambda row: [observe(row) for observe in observers]
        state = trainer.run()
    if process.is_main:
        _draw_learning_curve(run, surroundings.report)
    return state


def build_model(config: ExperimentConfig, tokenizer: Tokenizer) -> Transformer:
    """The network with its random start, a function of `training.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return Transformer(config.model, vocabulary_sizes(tokenizer))


def machine_facts(device: str) -> dict[str, Any]:
    """What equal bits depend on."""
    return {
        "transduce": machine.version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(find_device(device)),
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
    trial = Trainer(
        copy.deepcopy(run.model),
        run.pairs,
        config=replace(training, steps=1_000_000),
        optim=run.config.optim,
        folder=run.folder,
        process=process,
        clock=clock,
    )
    order.open(0, 0)
    trial.pairs = order.pairs
    started = clock()
    with torch.random.fork_rng(devices=[]):
        estimate = seconds_per_step(trial, order.steps, num_steps=_WARM_UP_STEPS)
        num_steps = process.from_main(max(1, min(_MEASURED_STEPS, int(_MEASURED_SHARE * budget / estimate))))
        measured = seconds_per_step(trial, order.steps, num_steps=num_steps)
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
