"""Training of a run: settings in, a run folder with a trained and validated model out.

The composition root: corpus, tokenizer, model, trainer and run folder meet only here.
"""

import copy
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transduce.config.settings import ExperimentConfig, lasting, with_shape_of, with_steps
from transduce.config.toml import to_toml
from transduce.data.augmentation import augmented
from transduce.data.batches import StepOrder, TrainingPairs
from transduce.data.download import Places
from transduce.data.pairs import Pairs
from transduce.data.seen import Seen
from transduce.devices import machine
from transduce.devices.device import find_device, local_device, machine_facts
from transduce.errors import LostProcessError, OutOfMemoryError, RunFolderError, TransduceError
from transduce.evaluation.config import scores_by_name
from transduce.files.content import well_formed
from transduce.inference.predictor import ignore
from transduce.model.transformer import Transformer
from transduce.runs.corpus import Corpus, EncodedCorpus, absolute_paths, learn_and_encode, read_corpus, with_room
from transduce.runs.device_choice import suit_device
from transduce.runs.folder import RunFolder
from transduce.runs.learning_curve import learning_curve
from transduce.runs.monitoring import is_in_notebook, report_to_notebook, training_display
from transduce.runs.parallelism import choose_processes
from transduce.runs.resumption import Checkpoint, settle_resumption
from transduce.runs.validation import build_validation, calibrate
from transduce.text.tokenizer import Tokenizer
from transduce.training.distributed import Process, joined
from transduce.training.state import TrainerState, Validation
from transduce.training.step import TrainStep
from transduce.training.trainer import Observer, Trainer, step_order
from transduce.training.workers import group_lock, refuse_processes, shared, take_process_group, threads_of_each

# A time limit becomes a number of steps by timing this many steps, for at most this share of the time.
_WARM_UP_STEPS, _MEASURED_STEPS, _MEASURED_SHARE = 3, 30, 0.05
_VALIDATION_SHARE = 0.06  # of the time, reserved for validations and for steps slower than those timed

_SECONDS_TO_UNLOCK = 2.0  # a run, once its process is lost


def train(
    config: ExperimentConfig,
    run_dir: str | Path,
    *,
    corpus: Corpus | None = None,
    in_memory: Mapping[str, Pairs] = {},
    resume: bool = False,
    accept_changes: bool = False,
    init_from: str | Path | None = None,
    device: str = "auto",
    processes: int | None = None,
    places: Places = Places(),
    report: Callable[[str], None] | None = None,
    observers: Sequence[Observer] = (),
    show_progress: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
    started: float | None = None,
) -> TrainerState:
    """Train a model with `config` into the run folder `run_dir`, or resume the run there (`resume`).

    `corpus` replaces the files of `config.data` if it is in memory already, `in_memory` one side of them: see
    `read_corpus`. Named data sets are found in `places`. `processes` is the number of processes on this machine that
    share each step; None: as `choose_processes` says, or as many as before.
    `report` gets lines for the user, `observers` get every logged row; `show_progress` shows the rows on standard
    error. By default a notebook shows both, and a script neither. `started`, by `clock`, is when the time of
    `training.minutes` began, if before this call. Raises Stopped, a KeyboardInterrupt, at a Ctrl-C or another signal to
    stop, after saving; TransduceError, with nothing lost, for settings or data that cannot be used.
    """
    started = clock() if started is None else started
    run_dir, chosen = Path(run_dir), find_device(device)
    refuse_processes(processes, chosen)
    # The commit is asked for first: during the long work that follows, another may be committed.
    environment = machine_facts(chosen) | {"commit": machine.commit()}
    with ExitStack() as held:
        process = held.enter_context(joined(local_device(chosen)))  # with those of `torchrun`
        report = (report or report_to_notebook) if process.is_main else ignore
        show_progress = process.is_main and (is_in_notebook() if show_progress is None else show_progress)
        saved = process.decide(lambda: find_run(run_dir, resume=resume))
        if saved is not None:
            process.decide(partial(held.enter_context, saved.lock()))
        corpus = corpus or read_corpus(config.data, places, report, in_memory=in_memory)
        num, why = choose_processes(config, chosen, given=processes, saved=saved, text=corpus.train)
        num = _take_group(num, why, report, held)
        environment |= {"processes": num * process.world_size, "threads": threads_of_each(num)}
        checkpoint = ancestor = None
        if saved is not None:
            config, checkpoint = settle_resumption(
                config, saved, corpus=corpus, process=process, environment=environment, report=report,
                accept_changes=accept_changes,
            )  # fmt: skip
        elif init_from:
            ancestor = RunFolder.open(Path(init_from))
            config = with_shape_of(ancestor.settings, config)
            report(f"starting from {ancestor.path}: its tokenizer, model settings and weights")
        tokenizer = origin.tokenizer if (origin := saved or ancestor) else None
        encoded = learn_and_encode(config, corpus, tokenizer, process, report=report, show_progress=show_progress)
        config = with_room(config, encoded.pairs, report)
        pairs, valid = augmented(encoded.pairs, config.data), corpus.valid
        validate = build_validation(config, encoded, valid, report) if valid is not None else None
        first = saved.facts.get("initialised_from") if saved else init_from
        model = _first_model(config, encoded.tokenizer, first if checkpoint is None else None).to(local_device(chosen))
        if saved is None:
            config, choice = process.decide(partial(suit_device, config, model, pairs, process.world_size, report))
            facts = {"data": corpus.sha256, "started": environment} | choice
            saved = process.decide(partial(_create, run_dir, config, encoded, ancestor, facts))
            process.decide(partial(held.enter_context, saved.lock()))
        del corpus  # of its text, the training needs no more
        run = _Run(saved, config, model, pairs, checkpoint, process)
        process = held.enter_context(shared(num, process, _share_steps, run=_without_tensors(run)))
        run = replace(run, process=process, validate=validate, valid=valid, report=report, observers=observers)
        return _train(replace(run, show_progress=show_progress, clock=clock, started=started))


def _take_group(num: int, why: str, report: Callable[[str], None], held: ExitStack) -> int:
    """`num` if so many processes can share each step, else 1."""
    if num > 1 and not take_process_group():
        report("training with one process: another run in this program already uses several, or torch lacks gloo")
        return 1
    if num > 1:
        held.callback(group_lock.release)
        report(f"processes: {num} share each step ({why})")
    return num


def _create(
    run_dir: Path, config: ExperimentConfig, encoded: EncodedCorpus, ancestor: RunFolder | None, facts: dict[str, Any]
) -> RunFolder:
    """A new run, which records its data and the run whose weights it begins with."""
    facts |= {"num_train_pairs": encoded.num_text_pairs, "paths": absolute_paths(config.data)}
    seen: Seen | None = encoded.seen
    if ancestor is not None:
        facts["initialised_from"] = str(ancestor.path)
        seen = ancestor.seen and ancestor.seen | encoded.seen  # not known of an imported model
    facts |= {"seen": seen.as_dict()} if seen else {}
    texts = {"config": to_toml(config), "tokenizer": encoded.tokenizer.to_json()}
    return RunFolder.create(run_dir, **texts, facts=facts, identity=lasting(config))


def find_run(run_dir: Path, *, resume: bool) -> RunFolder | None:
    """The run to resume in `run_dir`; None if a new one can begin there. Raises RunFolderError if neither is possible.

    Called before any long work, which would be lost.
    """
    if bytes(run_dir).decode(errors="ignore").encode() != bytes(run_dir):
        raise RunFolderError(f"{run_dir}: this name is not valid UTF-8, and weights could not be read. Choose another.")
    if resume and (run_dir / "run.json").exists():
        return RunFolder.open(run_dir)
    RunFolder(run_dir).refuse_other_use()
    return None


@dataclass
class _Run:
    """A run ready for training, and the process in which it happens."""

    folder: RunFolder
    config: ExperimentConfig
    model: Transformer
    pairs: TrainingPairs
    checkpoint: Checkpoint | None  # to resume from
    process: Process
    validate: Callable[[nn.Module], Validation] | None = None
    valid: Pairs | None = None
    report: Callable[[str], None] = ignore
    observers: Sequence[Observer] = ()
    show_progress: bool = False
    clock: Callable[[], float] = time.perf_counter
    started: float = 0.0  # by the clock


def _without_tensors(run: _Run) -> _Run:
    """`run` for a worker process, which reads the tensors of the checkpoint: they are too large to be sent."""
    return replace(run, checkpoint=run.checkpoint and ({}, run.checkpoint[1]))


def _share_steps(run: _Run, process: Process) -> None:
    """Train as a worker process, which validates and reports nothing."""
    if run.checkpoint:
        state = run.checkpoint[1]
        run = replace(run, checkpoint=(run.folder.read_checkpoint(state["step"])[0], state))
    _train(replace(run, process=process, started=time.perf_counter()))


def _train(run: _Run) -> TrainerState:
    training, report, observers = run.config.training, run.report, run.observers
    budget = training.minutes * 60 - (run.clock() - run.started)
    steps = training.steps or _plan_steps(run, budget)
    if (config := with_steps(run.config, steps)) != run.config:
        run.process.decide(lambda: run.folder.rewrite_config(to_toml(config)))
        if not training.steps:
            minutes = f"{training.minutes:g} minute{'s' * (training.minutes != 1)}: about"
            limit = f"{training.epochs:g} epochs:" if training.epochs else minutes
            report(f"{limit} {steps:,} steps")
    with ExitStack() as stack:
        watch: Callable[[int], object] = bool
        if run.show_progress:
            display = stack.enter_context(
                training_display(
                    steps,
                    first_step=run.checkpoint[1]["step"] if run.checkpoint else 0,
                    best=config.validation.best,
                    ties_by_loss=config.validation.ties_by_loss,
                    history=run.folder.metrics() if run.checkpoint else (),
                )
            )
            observers, watch = [*observers, display], display.step
        trainer = Trainer(
            run.model,
            run.pairs,
            config=config.training,
            optim=config.optim,
            store=run.folder,
            validate=run.validate,
            observers=observers,
            process=run.process,
            deadline=budget if training.minutes else math.inf,
            clock=run.clock,
            watch=watch,
        )
        if run.checkpoint is not None:
            with well_formed(run.folder.path / "checkpoints", "Delete the newest, and resume from the one before it."):
                trainer.restore(*run.checkpoint)
            if trainer.state.epoch != run.checkpoint[1]["epoch"]:
                report("the batches have changed: continuing with the next epoch")
        try:
            state = trainer.run()
        except (LostProcessError, OutOfMemoryError) as error:
            raise _saved_after(error, run, trainer) from None
    if state.minutes_over is not None and state.step < trainer.num_steps:
        report(
            f"time limit of {training.minutes:g} minutes reached before step {trainer.num_steps:,}, the end of the "
            "schedule"
        )
    elif trainer.num_steps < steps:
        report(f"planned {trainer.num_steps:,} steps instead of {steps:,}, because they took longer than expected")
    run.process.decide(partial(_finish, run, state.best_step))  # together, as a process that leaves early may end badly
    return state


def _finish(run: _Run, kept: int) -> None:
    if run.valid is not None:
        calibrate(run.folder, run.valid, str(run.model.output_weight.device))
    _draw_learning_curve(run, kept)


def _saved_after(error: TransduceError, run: _Run, trainer: Trainer) -> TransduceError:
    """Saves what the processes had, of which one is lost or short of memory; the error to raise, which says so.

    The first does it, or if that is lost, the one that takes over.
    """
    if not (run.process.is_main or run.process.takes_over()):
        return error
    with nullcontext() if run.process.is_main else run.folder.lock(patience=_SECONDS_TO_UNLOCK):
        trainer.save_alone()
    return type(error)(f"{error} Everything up to step {trainer.state.step:,} is saved: resume the run to continue.")


def build_model(config: ExperimentConfig, tokenizer: Tokenizer) -> Transformer:
    """The model with its initial weights, a function of `training.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return Transformer(config.model, tokenizer.vocabulary_sizes)


def _first_model(config: ExperimentConfig, tokenizer: Tokenizer, first: str | Path | None) -> Transformer:
    """The model with its initial weights, or with those of the run in the folder `first`."""
    return RunFolder.open(first).load_model(config.model, tokenizer)[0] if first else build_model(config, tokenizer)


def _plan_steps(run: _Run, budget: float) -> int:
    """Number of steps in `training.epochs`, or in `budget` seconds at the speed of a few timed ones."""
    training, process, clock = run.config.training, run.process, run.clock
    order = step_order(run.pairs, training)
    if training.epochs:
        return max(1, round(training.epochs * process.decide(order.steps_of_epoch)))
    order.open(0, 0)
    started = clock()
    measured = _seconds_per_step(run, order, budget)
    gc.collect()  # weights and moments of the trial are in a reference cycle: they would stay on the GPU for long
    left = budget * (1 - _VALIDATION_SHARE) - (clock() - started)
    steps = process.from_main(int(left / measured))
    if steps < 1:
        raise TransduceError(
            f"{training.minutes:g} minutes are too few to train: reading and preparing the data took all of them. Give "
            "more minutes, and resume the run: the prepared data are kept."
        )
    return steps + (run.checkpoint[1]["step"] if run.checkpoint else 0)


def _seconds_per_step(run: _Run, order: StepOrder, budget: float) -> float:
    """Mean over the first steps of `order`, of which it takes as many as a small share of `budget` allows."""
    # On a copy of the model, as these updates must not count; in a run so long that its learning rate is still tiny.
    training = replace(run.config.training, steps=1_000_000)
    trial = TrainStep(copy.deepcopy(run.model), config=training, optim=run.config.optim, process=run.process)

    def seconds_per_step(num_steps: int) -> float:
        started = run.clock()
        for done in range(num_steps):
            outcome = trial(order.pairs, order.steps[done % len(order.steps)], done + 1)
        outcome.read()
        return (run.clock() - started) / num_steps

    with torch.random.fork_rng(devices=[]):
        estimate = seconds_per_step(_WARM_UP_STEPS)
        num_steps = max(1, min(_MEASURED_STEPS, int(_MEASURED_SHARE * budget / estimate)))
        return seconds_per_step(run.process.from_main(num_steps))


def _draw_learning_curve(run: _Run, kept: int) -> None:
    folder, group_sources = run.folder, run.config.validation.group_sources
    rows = [scores_by_name(row, group_sources=group_sources) for row in folder.metrics()]
    try:
        folder.write_file("learning_curve.png", learning_curve(rows, folder.path.name, kept))
    except Exception as error:  # a picture of the outcome never changes it
        why = "it needs matplotlib (pip install 'transduce[plots]')" if isinstance(error, ImportError) else str(error)
        run.report(f"no learning curve: {' '.join(why.split())}")
