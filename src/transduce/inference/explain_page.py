"""An explanation as one self-contained HTML page.

Text enters the page as JSON alone, and its script shows it as text: nothing in it is ever read as HTML.
"""

import base64
import hashlib
import html
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from transduce.inference.explain import Explanation, Token

_MOST_WEIGHTS = 500_000  # of one kind of attention, a byte each: above, heads of a layer are averaged
_KINDS = {
    "encoder": ("encoder", "self_attention"),
    "decoder": ("decoder", "self_attention"),
    "cross": ("decoder", "cross_attention"),
}

# `</script` ends the element, `<!--<script` keeps its end from being seen (HTML, 13.2.5: script data double escaped);
# the last two end a line in old JavaScript.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


_TokenTable = dict[Token, int]


@dataclass(frozen=True)
class Page:
    """A page, and what it leaves out and why, in sentences that it shows as well."""

    html: str = field(repr=False)
    left_out: list[str]

    def _repr_html_(self) -> str:
        return framed(self.html)


def framed(document: str, height: int = 900) -> str:
    """A page in a frame of its own, for a notebook; `height` in pixels."""
    return (
        f'<iframe srcdoc="{html.escape(document, quote=True)}" width="100%" height="{height}" '
        'style="border:0" sandbox="allow-scripts"></iframe>'
    )


def explanation_page(explanation: Explanation, run_name: str) -> Page:
    """The page of an explanation; `run_name` is its heading."""
    template = files("transduce.inference").joinpath("explanation.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = template.replace("SCRIPT_DIGEST", f"sha256-{digest}", 1)
    content = _content(explanation, run_name)
    return Page(template.replace("EXPLANATION_JSON", json_in_html(content), 1), content["leftOut"])


def json_in_html(content: dict[str, Any]) -> str:
    """JSON for inside a script element of HTML, which it can neither end nor open anything in.

    As JavaScript it means the same; what is no text, such as half a surrogate pair, becomes "?".
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
    return text.encode("utf-8", "replace").decode()  # the name of a folder may hold bytes that are no text


def _content(explanation: Explanation, run_name: str) -> dict[str, Any]:
    table: _TokenTable = defaultdict(count().__next__)  # numbers a token when it first occurs: each is spelled out once
    attention = list(_attention(explanation))
    return {
        "run": run_name,
        "text": explanation.text,
        "answer": explanation.prediction.text,
        "logProb": round(explanation.prediction.log_prob, 4),
        "score": round(explanation.prediction.score, 4),
        "confidences": explanation.prediction.confidences,  # whose product is that of the output
        "isRough": explanation.prediction.is_rough,
        "facts": explanation.facts,
        "source": [table[token] for token in explanation.source],
        "read": [table[token] for token in (explanation.begin, *explanation.written[:-1])],
        "written": [table[token] for token in explanation.written],
        "candidates": list(_candidate_rows(explanation, table)),
        "branches": _branch_rows(explanation, table),
        "attention": attention,
        "leftOut": list(_left_out(explanation, attention)),
        "tokens": [[token.name, token.kind] for token in table],  # last: those before fill it
    }


def _left_out(explanation: Explanation, attention: list[dict[str, Any]]) -> Iterator[str]:
    if explanation.prediction.is_source_truncated:
        num_read = len(explanation.source) - 1
        yield f"The text is longer than the model's limit: only its first {num_read} tokens were read."
    for kind in attention:
        if kind["isMeanOf"]:
            attention_name = " ".join(_KINDS[kind["kind"]]).replace("_", "-")
            yield f"To save space, {attention_name} is shown as the mean over the heads of each layer."


def _candidate_rows(explanation: Explanation, table: _TokenTable) -> Iterator[list[list[Any]]]:
    """By step: [token, probability, rank, 1 if chosen]."""
    for candidates in explanation.candidates:
        yield [[table[c.token], float(f"{c.probability:.3g}"), c.rank, int(c.is_chosen)] for c in candidates]


def _branch_rows(explanation: Explanation, table: _TokenTable) -> list[list[list[Any]]]:
    """By step: [parent, token, log-probability, 1 if it won, and its score if it ended]."""
    return [
        [
            [branch.parent, table[branch.token], round(branch.log_prob, 3), int(branch.is_winner)]
            + ([] if branch.score is None else [round(branch.score, 3)])
            for branch in step
        ]
        for step in explanation.branches
    ]


def _attention(explanation: Explanation) -> Iterator[dict[str, Any]]:
    for kind, (side, part) in _KINDS.items():
        maps = explanation.attention.items()
        layers = [heads for name, heads in maps if name.startswith(side) and name.endswith(part)]
        if layers:
            yield _packed(kind, layers)


def _packed(kind: str, layers: list[Float[Tensor, "heads queries keys"]]) -> dict[str, Any]:
    """Weights as bytes by layer, head, query and key, 255 for the largest of a head.

    Masked self-attention has its lower triangles only.
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
