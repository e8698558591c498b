"""Reference of all settings: type, default and help text, read from the dataclasses that hold them."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import tomli_w

from transduce.config.settings import ExperimentConfig, resume_class
from transduce.model.config import PRESETS

SYNONYMS = {  # of the keys of settings, in other toolkits
    "batch_size": "batch_tokens", "lr": "learning_rate", "max_steps": "steps", "max_epochs": "epochs",
    "optimizer": "method", "scheduler": "schedule", "clip_norm": "max_grad_norm", "layers": "num_encoder_layers",
}  # fmt: skip
_LIST = "list of "
_TYPE_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false"}


class Setting(NamedTuple):
    """One setting: what it is, and what it may be."""

    section: str
    key: str
    type: str
    default: str  # as TOML
    help: str
    on_resume: str  # the class of what a resumed run may change

    @property
    def name(self) -> str:
        """Its full name, as on the command line."""
        return f"{self.section}.{self.key}"

    @property
    def text(self) -> str:
        """The help text, with the values to choose from."""
        if "," not in self.type:
            return self.help
        return f"{self.help} {'Any' if self.type.startswith(_LIST) else 'One'} of: {self.type.removeprefix(_LIST)}."


@cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting of a run, in the order of the dataclasses; `model.preset` is the first of its section."""
    settings = []
    for section, kind in typing.get_type_hints(ExperimentConfig).items():
        if section == "model":
            text = "Size of the model, which sets the defaults of the rest of this section."
            settings.append(Setting(section, "preset", _choices(PRESETS), _as_toml(""), text, "never"))
        hints, texts = typing.get_type_hints(kind), _attribute_docstrings(kind)
        for field in dataclasses.fields(kind):
            kind_of_it, on_resume = _type_name(hints[field.name]), resume_class(f"{section}.{field.name}")
            settings.append(
                Setting(section, field.name, kind_of_it, _as_toml(field.default), texts[field.name], on_resume)
            )
    return tuple(settings)


def sections() -> dict[str, str]:
    """The sections of settings, and what each is about."""
    kinds = typing.get_type_hints(ExperimentConfig)
    return {name: (kind.__doc__ or "").partition("\n")[0] for name, kind in kinds.items()}


def annotated_toml(values: dict[str, Any]) -> str:
    """A TOML document of all settings with help texts; those that are not in `values`, by name, are commented out."""
    lines, preset = [], PRESETS.get(values.get("model.preset", ""))
    defaults = {f"model.{key}": _as_toml(value) for key, value in vars(preset).items()} if preset else {}
    for section, title in sections().items():
        lines += ["", f"[{section}]  # {title}"]
        for setting in all_settings():
            if setting.section == section:
                lines += ["", *textwrap.wrap(setting.text, 98, initial_indent="# ", subsequent_indent="# ")]
                is_set = setting.name in values
                value = _as_toml(values[setting.name]) if is_set else defaults.get(setting.name, setting.default)
                lines.append(f"{'' if is_set else '# '}{setting.key} = {value}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """The string below each field of a class, in one line."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, following in pairwise(definition.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _type_name(kind: Any) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return _choices(arguments)
    if typing.get_origin(kind) is tuple:
        return _LIST + _type_name(arguments[0])
    return _TYPE_NAMES[kind]


def _choices(options: Any) -> str:
    return ", ".join(str(option).lower() if isinstance(option, bool) else str(option) for option in options)


def _as_toml(value: Any) -> str:
    if isinstance(value, tuple | list):  # on one line, which can be commented out
        return f"[{', '.join(map(_as_toml, value))}]"
    return tomli_w.dumps({"value": value}).strip().removeprefix("value = ")
