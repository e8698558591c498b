"""Resumption of a run: what has changed since is refused or recorded, and its newest checkpoint read."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from transduce.config.settings import ExperimentConfig, carry_over, refuse_changes, refuse_other_data, with_shape_of
from transduce.config.toml import differences, to_toml
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError
from transduce.evaluation.config import name_of_score
from transduce.model.weights import parameter_shapes, shapes_of, with_prefix
from transduce.runs.corpus import Corpus, absolute_paths
from transduce.runs.device_choice import check_kernels
from transduce.runs.folder import RunFolder
from transduce.runs.monitoring import metrics_of
from transduce.training.distributed import Process
from transduce.training.optim import learning_rate
from transduce.training.state import TrainerState

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, state of the trainer


def settle_resumption(
    config: ExperimentConfig,
    folder: RunFolder,
    *,
    corpus: Corpus,
    process: Process,
    environment: Mapping[str, Any],
    report: Callable[[str], None],
    accept_changes: bool,
) -> tuple[ExperimentConfig, Checkpoint | None]:
    """The settings to resume with and the newest checkpoint, after all changes were refused or recorded."""
    checkpoint: Checkpoint | None = None

    def settle() -> tuple[ExperimentConfig, int | None]:
        nonlocal checkpoint
        facts, saved = folder.facts, folder.settings
        asked = with_shape_of(saved, config) if "initialised_from" in facts else config
        resumed = carry_over(asked, saved, facts.get("configured_batch", ()))
        changes = differences(saved, resumed)
        refuse_changes(changes, accept_changes=accept_changes)
        check_kernels(resumed, torch.device(environment["device"]), report)
        refuse_other_data(facts.get("data", {}), corpus.sha256, folder.path)
        newest = folder.newest_checkpoint(report=report)
        if newest is not None:
            shapes = parameter_shapes(saved.model, folder.tokenizer.vocabulary_sizes)
            folder.refuse_other_shapes(shapes_of(newest[1]), shapes, newest[0])
            _mend_model(folder, newest[2], report)
        elif folder.has_model:
            raise RunFolderError(
                f"{folder.path} has a model but no checkpoints to resume from. Start a new run from its weights: "
                f"--init-from {folder.path} --run-dir ANOTHER."
            )
        step, checkpoint = (newest[0], newest[1:]) if newest else (None, None)
        for name, value in sorted(environment.items()):
            if name != "commit" and value != (before := facts.get("started", {}).get(name)):
                report(f"{name} was {before} and is now {value}: the weights may differ in their last bits")
        # Recorded before the settings are rewritten, so that no change goes unrecorded if the process is killed.
        folder.truncate_metrics(step or 0, report)
        session = {"step": step or 0, "changes": changes, "machine": environment}
        resumptions = [*facts.get("resumed", []), session]
        # Until it is fitted again, the calibration is none: that of before does not belong to other weights.
        folder.update_facts({"resumed": resumptions, "paths": absolute_paths(resumed.data), "calibration": None})
        folder.rewrite_config(to_toml(resumed))
        for name, (old, new) in changes.items():
            report(f"{name}: {old!r} -> {new!r}")
        if step and resumed.training.steps and any(name.startswith(("optim.", "training.steps")) for name in changes):
            report(f"learning rate: {_rate(saved, step):.3g} at step {step:,} -> {_rate(resumed, step + 1):.3g} next")
        report(f"resuming at step {step or 0:,} of {resumed.training.steps:,}")
        return resumed, step

    resumed, step = process.decide(settle)
    if step is not None and checkpoint is None:  # rank 0 has read it; it is too large to be sent to the others
        checkpoint = folder.read_checkpoint(step)
    return resumed, checkpoint and _with_current_names(checkpoint, resumed)


def _mend_model(folder: RunFolder, state: Mapping[str, Any], report: Callable[[str], None]) -> None:
    """Rebuild the best model from the checkpoint of its step, if it is damaged or missing and there is one.

    `state` is that of the newest checkpoint. Raises DamagedFileError if there is none.
    """
    best, path = state.get("best_step", 0), folder.path / "model.safetensors"
    try:
        if best:  # before the first validation there is none, or one that will be replaced
            folder.read_model_metadata()
        return
    except (DamagedFileError, MissingInputError) as error:
        if best not in folder.checkpoints():
            raise DamagedFileError(
                f"{error} It is from step {best:,}, which has no checkpoint. Without a copy, use the newest "
                f"weights: transduce average {folder.path} --last 1 -o ANOTHER."
            ) from None
    saved = folder.read_checkpoint(best)[0]
    average, rows = with_prefix(saved, "ema."), [row for row in folder.metrics() if row["kind"] == "validation"]
    scores = next((metrics_of(row) for row in rows if row["step"] == best), {})
    facts = {"step": best, "averaged": bool(average), "validation": scores}
    folder.write_model(average or with_prefix(saved, "model."), facts)
    report(f"{path} was damaged or missing: rebuilt from the checkpoint of step {best:,}")


def _rate(config: ExperimentConfig, step: int) -> float:
    return learning_rate(config.optim, step, d_model=config.model.d_model, num_steps=config.training.steps)


def _with_current_names(checkpoint: Checkpoint, config: ExperimentConfig) -> Checkpoint:
    """The checkpoint, with all of its state, and the score in `best_measure` called by its name of today."""
    tensors, state = checkpoint[0], asdict(TrainerState.from_dict(checkpoint[1]))
    name, of, pairs = state.get("best_measure", "").partition(" of ")
    name = name_of_score(name, group_sources=config.validation.group_sources)
    return tensors, {**state, "best_measure": f"{name}{of}{pairs}"}
