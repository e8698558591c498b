"""JSON documents that carry their own hash, under the key "sha256".

What is hashed differs between the kinds of document: each passes a function that makes those bytes of a document.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transduce.files.certified import damaged
from transduce.files.content import sha256_of

HashedBytes = Callable[[dict[str, Any]], bytes]


def with_digest(document: dict[str, Any], hashed: HashedBytes) -> dict[str, Any]:
    """The document with its hash, in the place of a "sha256" that it has already."""
    return document | {"sha256": sha256_of(hashed(document))}


def read_with_digest(text: str | bytes, hashed: HashedBytes) -> dict[str, Any]:
    """A document that has the hash which it states; an empty one for any other text."""
    try:
        document = json.loads(text)
        return document if document["sha256"] == sha256_of(hashed(document)) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def json_object(text: str | bytes, where: Path | str, mend: str) -> dict[str, Any]:
    """The JSON object in `text`, which has no hash. Raises DamagedFileError, ending in `mend`, if it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise damaged(where, "it should hold a JSON object", mend)
    return value
