"""Conversion between frozen dataclasses and TOML, with overrides from the command line; knows no setting by name."""

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import tomli_w

from transduce.errors import TransduceError, nearest

T = TypeVar("T")
Table = dict[str, Any]

_COMMENT_COLUMN = 26


def parse_toml(text: str, name: str) -> Table:
    """The tables of a TOML document; `name` identifies it in the error."""
    try:
        table = tomllib.loads(text)
        repr(table)  # which fails for hexadecimals that are too long for decimals
        return table
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of nested brackets
        raise TransduceError(f"{name} is not valid TOML: {error}.") from None


def to_toml(settings: object, comments: Mapping[str, str] = {}) -> str:
    """The TOML document that `parse_toml` and `build` turn into `settings` again.

    `comments` go beside the settings with these dotted names.
    """
    text = tomli_w.dumps(to_table(settings))
    if not comments:
        return text
    lines, section = [], ""
    for line in text.split("\n"):
        section = line.strip("[]") if line.startswith("[") else section
        comment = comments.get(f"{section}.{line.partition(' = ')[0]}")
        lines.append(f"{line:<{_COMMENT_COLUMN}}  # {comment}" if comment else line)
    return "\n".join(lines)


def to_table(settings: Any) -> Table:
    """A dataclass as nested dicts and lists."""
    return dataclasses.asdict(settings, dict_factory=_with_lists)


def override(table: Table, arguments: Sequence[str], kind: type | None = None) -> Table:
    """A copy of `table` with settings such as `--model.dropout 0.1` or `--model.dropout=0.1` replaced.

    A value is parsed as TOML if it can be (0.1, true, ["a", "b"]) and else is text. If the field of `kind`, the
    dataclass of all settings, holds text, then a number or a date is text, too: `--data.train 2024`.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        section, dot, key = name.partition(".")
        if not word.startswith("--") or not (section and dot and key):
            raise TransduceError(f"'{word}' is not understood: settings are given as --section.key value.")
        if not has_value:
            if not words or words[0].startswith("--"):
                raise TransduceError(f"--{name} has no value: write --{name} VALUE.")
            value = words.pop(0)
        if not isinstance(result.setdefault(section, {}), dict):
            raise TransduceError(f"--{name}: '{section}' is not a section of settings.")
        result[section][key] = _read_value(value, holds_text=_holds_text(_kind_of(kind, name)))
    return result


def build(kind: type[T], table: Mapping[str, Any], path: str = "") -> T:
    """The dataclass `kind` with the settings of `table`, and defaults for all others.

    Raises TransduceError for a key that does not exist (naming the nearest that does), a value of the wrong type, and
    a value that the dataclass itself refuses.
    """
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        name = f"{path}{key}"
        if key not in known:
            raise TransduceError(f"unknown setting '{name}'.{nearest(key, known, path)}")
        values[key] = _convert(hints[key], value, name)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in values:
            raise TransduceError(f"'{path}{field.name}' must be set: it has no default.")
    try:
        return kind(**values)
    except ValueError as error:
        raise TransduceError(str(error)) from None


def differences(old: object, new: object) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ: dotted name -> (old value, new value)."""
    old_values, new_values = _flatten(to_table(old)), _flatten(to_table(new))
    return {key: (value, new_values[key]) for key, value in old_values.items() if value != new_values[key]}


def _flatten(table: Table, path: str = "") -> Table:
    flat: Table = {}
    for key, value in table.items():
        flat |= _flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def _with_lists(items: Sequence[tuple[str, Any]]) -> Table:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


def _kind_of(kind: Any, name: str) -> Any:
    """The type of the field with this dotted name; None if there is none."""
    for part in name.split("."):
        kind = typing.get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return kind


def _holds_text(kind: Any) -> bool:
    """Whether a type is a string, a choice of strings, or a tuple of strings."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return all(isinstance(choice, str) for choice in arguments)
    return kind is str or (origin is tuple and arguments[0] is str)


def _read_value(text: str, *, holds_text: bool) -> Any:
    try:
        # Within an inline table, where neither a comment nor another line may follow.
        table = parse_toml(f"table = {{value = {text}}}", "")
        values = [*table.pop("table").values(), *table]
    except TransduceError:
        return text
    return text if len(values) > 1 or (holds_text and not isinstance(values[0], str | list)) else values[0]


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TransduceError(f"'{name}' is a section of settings, not a value: write [{name}].")
        return build(typing.cast(type, kind), value, f"{name}.")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if (type(value), value) in [(type(choice), choice) for choice in arguments]:  # 1 == True, but is no choice
            return value
        hint = nearest(str(value), map(str, arguments)).partition(" There are")[0]
        raise TransduceError(f"{name} is {value!r}: it must be one of {', '.join(map(repr, arguments))}.{hint}")
    if origin is tuple:  # tuple[X, ...]
        if isinstance(value, str) and typing.get_origin(arguments[0]) is Literal:
            value = re.split(r"[\s,]+", value)  # names, as in --tokenizer.normalize nfc,lower
        if isinstance(value, str) or not isinstance(value, Sequence):
            value = [value]
        return tuple(_convert(arguments[0], item, name) for item in value)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise TransduceError(f"{name} is a number of {len(str(value))} digits: it must be below 2**63.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        if isinstance(value, float) and not math.isfinite(value):
            raise TransduceError(f"{name} is {value}: it must be a finite number.")
        return value
    raise TransduceError(f"{name} is {value!r}: it must be {_type_name(kind)}.")


def _type_name(kind: type | types.UnionType) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(typing.cast(type, kind), str(kind))
