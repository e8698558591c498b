"""All settings of a run, and which of them a resumed run may change."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from transduce.config.toml import build, flatten, override, parse_toml, to_table
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
                f"data.max_len ({self.data.max_len}) must be at most model.max_len ({self.model.max_len}): pairs "
                "longer than the model's limit cannot be used."
            )


# What a resumed run may change. Every setting is in one class: a test looks.
ON_RESUME = {
    "free": [
        "training.steps", "training.epochs", "training.minutes", "training.save_every", "training.keep_checkpoints",
        "training.log_every", "training.patience", "decoding.*", "data.dataset", "data.train", "data.valid",
        "data.more",
    ],  # the paths of the data are free, as their content is compared by hash
    "with --accept-changes": [
        "optim.*", "validation.*", "data.max_len", "data.recombinations", "data.concatenations",
        "training.batch_tokens", "training.micro_batches", "training.part_tokens", "training.label_smoothing",
        "training.validate_every", "training.precision", "training.compile", "training.seed", "training.batching",
        "training.cuda_graph", "training.kernels", "model.dropout",
    ],
    "never": [
        "tokenizer.*", "model.d_*", "model.num_*", "model.norm*", "model.positions", "model.feed_forward",
        "model.tie_embeddings", "model.output_bias", "model.max_len",
    ],
}  # fmt: skip


def load_config(text: str, name: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The settings in a TOML document, with overrides such as `--model.dropout 0.1`; `name` identifies it in errors.

    `model.preset` ("tiny", "small", "base", "big") gives the other model settings their defaults.
    """
    return settings_of(override(parse_toml(text, name), overrides, ExperimentConfig))


def settings_of(table: dict[str, Any]) -> ExperimentConfig:
    """The settings in a table of sections, which is changed; see `load_config`."""
    for section in ("data", "training"):
        table.setdefault(section, {})
    _refuse_misplaced(table)
    model = table.get("model")
    if isinstance(model, Mapping) and "preset" in model:
        model = dict(model)
        preset = model.pop("preset")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise TransduceError(f"model.preset is {preset!r}: it must be one of {', '.join(PRESETS)}.")
        table["model"] = dataclasses.asdict(PRESETS[preset]) | model
    if isinstance(validation := table.get("validation"), Mapping) and validation.get("group_sources") is True:
        table["validation"] = {key: _current_names(value) for key, value in validation.items()}
    return build(ExperimentConfig, table)


def _refuse_misplaced(table: Mapping[str, Any]) -> None:
    """Raise TransduceError for a setting in another section than its own: a table cannot tell what was meant."""
    kinds = get_type_hints(ExperimentConfig)
    names = {section: {field.name for field in dataclasses.fields(kind)} for section, kind in kinds.items()}
    for section, values in table.items():
        for key in values if section in names and isinstance(values, Mapping) else ():
            homes = [f"'{home}.{key}'" for home, known in names.items() if key in known]
            if key not in names[section] and homes:
                raise TransduceError(f"unknown setting '{section}.{key}'. Did you mean {' or '.join(homes)}?")


def _current_names(value: Any) -> Any:
    """A validation setting with scores under their current names; any string in it is the name of a score."""
    if isinstance(value, list):
        return [_current_names(item) for item in value]
    return name_of_score(value, group_sources=True) if isinstance(value, str) else value


def refuse_changes(changes: Mapping[str, tuple[Any, Any]], *, accept_changes: bool) -> None:
    """Raise ConfigMismatchError, which lists them, if a resumed run may not have these changes: name -> (old, new)."""

    def shown(names: Sequence[str]) -> str:
        return ", ".join(f"{name} ({changes[name][0]!r} -> {changes[name][1]!r})" for name in names)

    if never := [name for name in changes if resume_class(name) == "never"]:
        raise ConfigMismatchError(
            f"a resumed run cannot change {shown(never)}: undo the change, or start a new run in another --run-dir."
        )
    flagged = [name for name in changes if resume_class(name) == "with --accept-changes"]
    if flagged and not accept_changes:
        raise ConfigMismatchError(
            f"the settings differ from those the run was started with: {shown(flagged)}. Undo the change, or add "
            "--accept-changes to continue with it (it is recorded)."
        )


def refuse_other_data(old: Mapping[str, list[str]], new: Mapping[str, list[str]], run_dir: Path) -> None:
    """Raise ConfigMismatchError if the hashes of a run's data, by split, are not those that it was started with."""
    if changed := [split for split in ("train", "valid") if new.get(split) != old.get(split)]:
        raise ConfigMismatchError(
            f"the {' and '.join(changed)} data are not those that {run_dir} was started with: put them back, or "
            f"start a new run on them with --init-from {run_dir} and another --run-dir."
        )


def resume_class(name: str) -> str:
    """The class of ON_RESUME that a setting belongs to."""
    classes = [label for label, patterns in ON_RESUME.items() if any(fnmatch.fnmatch(name, p) for p in patterns)]
    assert len(classes) == 1, (name, classes)
    return classes[0]


def lasting(config: ExperimentConfig) -> dict[str, Any]:
    """The settings, by dotted name, that are not free to change: those that make a run what it is."""
    return {name: value for name, value in flatten(to_table(config)).items() if resume_class(name) != "free"}


def carry_over(
    config: ExperimentConfig, saved: ExperimentConfig, configured_batch: Sequence[int] = ()
) -> ExperimentConfig:
    """`config` with what the saved run derived at its start, as its steps or `max_len_extra`, where it sets none.

    `configured_batch` is the [batch_tokens, micro_batches] that it was begun with; a GPU may have got smaller batches.
    """
    new, old = config.training, saved.training
    names = [name for name in ("batching", "precision", "cuda_graph") if getattr(new, name) == "auto"]
    names += ["batch_tokens", "micro_batches"] * ([new.batch_tokens, new.micro_batches] == configured_batch)
    derived: dict[str, Any] = {name: getattr(old, name) for name in names}
    derived |= {"cuda_graph": False} if new.batching == "bucketed" else {}  # not that of packed batches
    derived["validate_every"] = new.validate_every or old.validate_every
    decoding = replace(config.decoding, max_len_extra=config.decoding.max_len_extra or saved.decoding.max_len_extra)
    training = replace(new, steps=_resumed_steps(new, old), **derived)
    return replace(config, training=training, decoding=decoding)


def _resumed_steps(new: TrainingConfig, old: TrainingConfig) -> int:
    """The total steps of a resumed run; 0 if they must be derived anew, as its limit is of another kind."""
    if new.steps:
        return new.steps
    if (new.epochs, new.minutes) == (old.epochs, old.minutes):
        return old.steps
    # The same kind of limit, raised or lowered: the steps follow in proportion, and so does the schedule.
    if new.epochs and old.epochs:
        return round(old.steps * new.epochs / old.epochs)
    if new.minutes and old.minutes and not (new.epochs or old.epochs):
        return round(old.steps * new.minutes / old.minutes)
    return 0


def with_shape_of(other: ExperimentConfig, config: ExperimentConfig) -> ExperimentConfig:
    """`config` with the tokenizer and the model shape of another run; it keeps its dropout."""
    return replace(config, tokenizer=other.tokenizer, model=replace(other.model, dropout=config.model.dropout))


def with_steps(config: ExperimentConfig, steps: int) -> ExperimentConfig:
    """`config` for a run of `steps` steps, which validates ten times unless it says how often."""
    validate_every = config.training.validate_every or max(1, steps // 10)
    return replace(config, training=replace(config.training, steps=steps, validate_every=validate_every))
