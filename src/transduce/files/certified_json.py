"""JSON documents that carry their own hash, under the key "sha256".

Which bytes are hashed depends on the kind of document: each passes a function that returns them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transduce.files.content import damaged, sha256_of

_MOST_VALUES = 2_000_000

HashedBytes = Callable[[dict[str, Any]], bytes]


def with_digest(document: dict[str, Any], hashed: HashedBytes) -> dict[str, Any]:
    """The document with its hash, which replaces a "sha256" that it already has."""
    return document | {"sha256": sha256_of(hashed(document))}


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document. Raises ValueError also where it is too deep, or has more values than any of ours:
    each takes up to 70 bytes of memory.
    """
    if text.count("," if isinstance(text, str) else b",") > _MOST_VALUES:  # type: ignore[arg-type]
        raise ValueError(f"it has more than {_MOST_VALUES:,} values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def matches(value: Any, schema: Any) -> bool:
    """Whether a JSON value is as `schema` says: a type; a tuple of schemas, of which one fits; [that of each item]; or
    {key: that of its value}, with "key?" where it may be absent, and "*" for keys that are not listed.
    """
    if isinstance(schema, tuple):
        return any(matches(value, each) for each in schema)
    if isinstance(schema, list):
        return isinstance(value, list) and all(matches(item, schema[0]) for item in value)
    if isinstance(schema, dict):
        needed, others = {key for key in schema if key[-1] not in "?*"}, schema.get("*", object)
        return isinstance(value, dict) and all(
            matches(value.get(key), schema.get(key, schema.get(f"{key}?", others))) for key in value.keys() | needed
        )
    return isinstance(value, schema) and not (schema is int and isinstance(value, bool))


def read_with_digest(text: str | bytes, hashed: HashedBytes) -> dict[str, Any]:
    """The document in `text` if it has the hash that it states, else an empty one."""
    try:
        document = parse_json(text)
        return document if document["sha256"] == sha256_of(hashed(document)) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def json_object(text: str | bytes, name: Path | str, advice: str) -> dict[str, Any]:
    """The JSON object in `text`, without a hash. Raises DamagedFileError, ending in `advice`, if there is none."""
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise damaged(name, "it is not a JSON object", advice)
    return value
