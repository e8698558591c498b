"""JSON documents that carry their own hash, under the key "sha256".

Which bytes are hashed depends on the kind of document: each passes a function that returns them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transduce.files.certified import damaged
from transduce.files.content import sha256_of

HashedBytes = Callable[[dict[str, Any]], bytes]


def with_digest(document: dict[str, Any], hashed: HashedBytes) -> dict[str, Any]:
    """The document with its hash, which replaces a "sha256" that it already has."""
    return document | {"sha256": sha256_of(hashed(document))}


def read_with_digest(text: str | bytes, hashed: HashedBytes) -> dict[str, Any]:
    """The document in `text` if it has the hash that it states, else an empty one."""
    try:
        document = json.loads(text)
        return document if document["sha256"] == sha256_of(hashed(document)) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def json_object(text: str | bytes, name: Path | str, advice: str) -> dict[str, Any]:
    """The JSON object in `text`, without a hash. Raises DamagedFileError, ending in `advice`, if there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise damaged(name, "it should hold a JSON object", advice)
    return value
