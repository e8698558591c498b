"""An explanation as one page of HTML that needs nothing from outside.

Text enters the page as JSON alone, and its script shows it as text: nothing in it is ever read as HTML.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from transduce.inference.explain import Explanation, Token

_MOST_WEIGHTS = 500_000  # of an attention, a byte each: those of more are averaged over the heads of a layer
_KINDS = {
    "encoder": ("encoder", "self_attention"),
    "decoder": ("decoder", "self_attention"),
    "cross": ("decoder", "cross_attention"),
}

# `</script` ends the element, `<!--<script` keeps its end from being seen (HTML, 13.2.5: script data double escaped);
# the last two end a line in old JavaScript.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Page:
    """A document, and what is not in it and why: whole sentences, which it says, too."""

    html: str
    left_out: list[str]


def explanation_page(found: Explanation, name: str) -> Page:
    """The page of an explanation; `name` is that of the run."""
    template = files("transduce.inference").joinpath("explanation.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = template.replace("SCRIPT_DIGEST", f"sha256-{digest}", 1)
    content = _content(found, name)
    return Page(template.replace("EXPLANATION_JSON", json_in_html(content), 1), content["leftOut"])


def json_in_html(content: dict[str, Any]) -> str:
    """JSON that stands within a script element of HTML and can neither end it nor begin anything.

    As JavaScript it says the same; what is no text, such as half of a surrogate pair, becomes "?".
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
    return text.encode("utf-8", "replace").decode()  # the name of a folder may hold bytes that are no text


class _TokenTable:
    """Numbers for tokens, each of which is spelled out once."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self._number_of: dict[Token, int] = {}

    def __getitem__(self, token: Token) -> int:
        if token not in self._number_of:
            self._number_of[token] = len(self.rows)
            self.rows.append([token.name, token.kind])
        return self._number_of[token]


def _content(found: Explanation, name: str) -> dict[str, Any]:
    table = _TokenTable()
    attention = list(_attention(found))
    return {
        "run": name,
        "text": found.text,
        "answer": found.prediction.text,
        "logProb": round(found.prediction.log_prob, 4),
        "score": round(found.prediction.score, 4),
        "facts": found.facts,
        "source": [table[token] for token in found.source],
        "read": [table[token] for token in (found.begin, *found.written[:-1])],
        "written": [table[token] for token in found.written],
        "candidates": list(_candidate_rows(found, table)),
        "branches": _branch_rows(found, table),
        "attention": attention,
        "leftOut": list(_left_out(found, attention)),
        "tokens": table.rows,  # last, when it knows all of them
    }


def _left_out(found: Explanation, attention: list[dict[str, Any]]) -> Iterator[str]:
    if found.prediction.is_truncated:
        num_read = len(found.source) - 1
        yield f"The text is longer than the model is meant for: only its first {num_read} tokens were read."
    for kind in attention:
        if kind["isMeanOf"]:
            attention_name = " ".join(_KINDS[kind["kind"]]).replace("_", "-")
            yield f"For want of room, {attention_name} is shown as the mean over the heads of each layer."


def _candidate_rows(found: Explanation, table: _TokenTable) -> Iterator[list[list[Any]]]:
    """By step: [token, probability, rank, 1 if chosen]."""
    for candidates in found.candidates:
        yield [[table[one.token], float(f"{one.probability:.3g}"), one.rank, int(one.is_chosen)] for one in candidates]


def _branch_rows(found: Explanation, table: _TokenTable) -> list[list[list[Any]]]:
    """By step: [parent, token, log-probability, 1 if it won, and its score if it ended]."""
    return [
        [
            [one.parent, table[one.token], round(one.log_prob, 3), int(one.is_winner)]
            + ([] if one.score is None else [round(one.score, 3)])
            for one in step
        ]
        for step in found.branches
    ]


def _attention(found: Explanation) -> Iterator[dict[str, Any]]:
    for kind, (side, part) in _KINDS.items():
        layers = [heads for name, heads in found.attention.items() if name.startswith(side) and name.endswith(part)]
        if layers:
            yield _packed(kind, layers)


def _packed(kind: str, layers: list[Float[Tensor, "heads queries keys"]]) -> dict[str, Any]:
    """Weights in bytes by layer, head, query and key, 255 for the largest of a head.

    Of masked self-attention the lower triangles alone.
    """
    num_heads = len(layers[0])
    is_mean = num_heads > 1 and sum(heads.numel() for heads in layers) > _MOST_WEIGHTS
    if is_mean:
        layers = [heads.mean(dim=0, keepdim=True) for heads in layers]
    weights = np.concatenate([heads.numpy() for heads in layers])  # (L * H, T, S)
    if kind == "decoder":
        rows, columns = np.tril_indices(weights.shape[1])
        weights = weights[:, rows, columns]
    weights = weights.reshape(len(weights), -1)
    largest = weights.max(axis=1, keepdims=True)
    levels = (weights / largest * 255).round().astype(np.uint8)
    return {
        "kind": kind,
        "numLayers": len(layers),
        "numHeads": len(layers[0]),
        "isMeanOf": f"{num_heads} heads" if is_mean else "",
        "largest": [float(f"{value:.5g}") for value in largest[:, 0]],
        "weights": base64.b64encode(levels.tobytes()).decode(),
    }
