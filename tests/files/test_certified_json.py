import hashlib
import json

import pytest

from transduce.files.certified_json import read_with_digest, with_digest


def content_of(document: dict) -> bytes:
    return json.dumps(document["content"]).encode()


def zeroed(document: dict) -> bytes:
    return json.dumps(document | {"sha256": "0" * 64}, indent=2).encode()


@pytest.mark.parametrize("hashed", [content_of, zeroed])
def test_the_hash_stands_in_its_place_and_is_that_of_the_bytes_named(hashed) -> None:
    document = with_digest({"format": 1, "sha256": "", "content": {"ä": [1.5, None]}}, hashed)
    assert list(document) == ["format", "sha256", "content"]
    assert document["sha256"] == hashlib.sha256(hashed(document)).hexdigest()
    assert read_with_digest(json.dumps(document), hashed) == document
    assert read_with_digest(json.dumps(document | {"content": {"ä": [1.5, 0]}}), hashed) == {}


@pytest.mark.parametrize(
    "text", ["", "{}", "1", "null", '"sha256"', "[" * 100_000, b"\xff", '{"sha256": ""}', "[{}]", "9" * 5_000]
)
def test_anything_else_is_read_as_nothing(text) -> None:
    assert read_with_digest(text, content_of) == read_with_digest(text, zeroed) == {}
