"""All settings of a run, and which of them a resumed run may change."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transduce.config.toml import build, override, parse_toml
from transduce.data.config import DataConfig
from transduce.errors import ConfigMismatchError, TransduceError
from transduce.evaluation.config import ValidationConfig, name_of_score
from transduce.inference.config import DecodingConfig
from transduce.model.config import PRESETS, TransformerConfig
from transduce.text.config import TokenizerConfig
from transduce.training.config import OptimConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All settings of a run, by section."""

    data: DataConfig
    training: TrainingConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        if self.data.max_len > self.model.max_len:
            raise TransduceError(
                f"data.max_len ({self.data.max_len}) must be at most model.max_len ({self.model.max_len}): longer "
                "pairs than the model is meant for cannot be learnt from."
            )


# What a resumed run may change. Every setting is in one class: a test looks.
ON_RESUME = {
    "free": [
        "training.steps", "training.epochs", "training.minutes", "training.save_every", "training.keep_checkpoints",
        "training.log_every", "training.patience", "decoding.*", "data.dataset", "data.train", "data.valid",
        "data.more",
    ],  # where the data lie is free: what they say is compared by hash
    "with --accept-changes": [
        "optim.*", "validation.*", "data.max_len", "training.batch_tokens", "training.micro_batches",
        "training.label_smoothing", "training.validate_every", "training.precision", "training.compile",
        "training.seed", "training.batching", "training.cuda_graph", "model.dropout",
    ],
    "never": [
        "tokenizer.*", "model.d_*", "model.num_*", "model.norm*", "model.positions", "model.feed_forward",
        "model.tie_embeddings", "model.output_bias", "model.max_len",
    ],
}  # fmt: skip


def load_config(text: str, name: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The settings in a TOML document, with overrides such as `--model.dropout 0.1`; `name` stands for it in errors.

    `model.preset` ("tiny", "small", "base", "big") gives the other model settings their defaults.
    """
    table = override(parse_toml(text, name), overrides, ExperimentConfig)
    for section in ("data", "training"):
        table.setdefault(section, {})
    model = table.get("model")
    if isinstance(model, Mapping) and "preset" in model:
        model = dict(model)
        preset = model.pop("preset")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise TransduceError(f"model.preset is {preset!r}: it must be one of {', '.join(PRESETS)}.")
        table["model"] = dataclasses.asdict(PRESETS[preset]) | model
    if isinstance(validation := table.get("validation"), Mapping) and validation.get("group_sources") is True:
        table["validation"] = {key: _by_names_now(value) for key, value in validation.items()}
    return build(ExperimentConfig, table)


def _by_names_now(value: Any) -> Any:
    """The value of a setting of grouped scores, in which a text can only be the name of one."""
    if isinstance(value, list):
        return [_by_names_now(item) for item in value]
    return name_of_score(value, group_sources=True) if isinstance(value, str) else value


def refuse_changes(changes: Mapping[str, tuple[Any, Any]], *, accept_changes: bool) -> None:
    """Raises ConfigMismatchError, showing the differences, if a resumed run may not have them."""

    def told(names: Sequence[str]) -> str:
        return ", ".join(f"{name} ({changes[name][0]!r} -> {changes[name][1]!r})" for name in names)

    if never := [name for name in changes if resume_class(name) == "never"]:
        raise ConfigMismatchError(
            f"a run cannot go on with another {told(never)}: start a new one in another --run-dir, or undo the change."
        )
    flagged = [name for name in changes if resume_class(name) == "with --accept-changes"]
    if flagged and not accept_changes:
        raise ConfigMismatchError(
            f"the settings differ from those the run was started with: {told(flagged)}. Undo the change, or add "
            "--accept-changes to go on with it (it is recorded)."
        )


def refuse_other_data(had: Mapping[str, list[str]], has: Mapping[str, list[str]], run_dir: Path) -> None:
    """Raises ConfigMismatchError if the hashes of a run's data, by side, are not those that it was started with."""
    if changed := [side for side in ("train", "valid") if has.get(side) != had.get(side)]:
        raise ConfigMismatchError(
            f"the {' and '.join(changed)} data are not those that {run_dir} was started with: put them back, or "
            f"start a new run on them with --init-from {run_dir} and another --run-dir."
        )


def resume_class(name: str) -> str:
    """In which class of ON_RESUME a setting is."""
    classes = [kind for kind, patterns in ON_RESUME.items() if any(fnmatch.fnmatch(name, p) for p in patterns)]
    assert len(classes) == 1, (name, classes)
    return classes[0]


def carry_over(config: ExperimentConfig, saved: ExperimentConfig) -> ExperimentConfig:
    """`config` with what was worked out at the start of the saved run, where it is still left open."""
    asked, had = config.training, saved.training
    validate_every = asked.validate_every or had.validate_every
    return replace(config, training=replace(asked, steps=_steps_to_go_on(asked, had), validate_every=validate_every))


def _steps_to_go_on(asked: TrainingConfig, had: TrainingConfig) -> int:
    """The steps of a resumed run; 0 if they must be worked out anew, as its limit is of another kind."""
    if asked.steps:
        return asked.steps
    if (asked.epochs, asked.minutes) == (had.epochs, had.minutes):
        return had.steps
    if asked.epochs and had.epochs:
        return round(had.steps * asked.epochs / had.epochs)
    if asked.minutes and had.minutes and not (asked.epochs or had.epochs):
        return round(had.steps * asked.minutes / had.minutes)
    return 0


def with_shape_of(other: ExperimentConfig, config: ExperimentConfig) -> ExperimentConfig:
    """`config` with the tokenizer and the shape of the model of another run; the dropout stays its own."""
    return replace(config, tokenizer=other.tokenizer, model=replace(other.model, dropout=config.model.dropout))


def with_steps(config: ExperimentConfig, steps: int) -> ExperimentConfig:
    """`config` for a run of so many steps, with the validations that it leaves open."""
    validate_every = config.training.validate_every or max(1, steps // 10)
    return replace(config, training=replace(config.training, steps=steps, validate_every=validate_every))
