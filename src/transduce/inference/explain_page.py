"""An explanation as one page of HTML that needs nothing from outside, and is never larger than `MOST_BYTES`.

Text enters the page as JSON alone, and its script shows it as text: nothing in it is ever read as HTML.
"""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from transduce.errors import TransduceError
from transduce.inference.explain import Explanation, Token
from transduce.inference.html_json import json_in_html

MOST_BYTES = 300_000

Detail = Literal["heads", "layers", "mean", "nothing"]


@dataclass(frozen=True)
class Page:
    """A document, and what is not in it and why: whole sentences, which it says, too."""

    html: str
    left_out: list[str]


@dataclass(frozen=True)
class _Plan:
    """How much of an explanation a page shows."""

    own: Detail = "heads"  # of both self-attentions
    cross: Detail = "heads"
    num_candidates: int = 8
    has_branches: bool = True

    def left_out(self) -> list[str]:
        told = []
        for what, detail in (("self-attention", self.own), ("cross-attention", self.cross)):
            if detail == "layers":
                told.append(f"For want of room, {what} is shown as the mean over the heads of each layer.")
            elif detail == "mean":
                told.append(f"For want of room, {what} is shown as the mean over all layers and heads.")
            elif detail == "nothing":
                told.append(f"For want of room, {what} is left out.")
        if not self.has_branches:
            told.append("For want of room, the hypotheses of the search are left out.")
        return told


# From all there is to the least that is worth a page.
_PLANS = (
    _Plan(),
    _Plan(own="layers"),
    _Plan(own="layers", cross="layers"),
    _Plan(own="mean", cross="layers"),
    _Plan(own="mean", cross="mean", num_candidates=5),
    _Plan(own="nothing", cross="mean", num_candidates=5),
    _Plan(own="nothing", cross="mean", num_candidates=3, has_branches=False),
)


def explanation_page(found: Explanation, name: str) -> Page:
    """The page of an explanation; `name` is that of the run. Raises TransduceError if it cannot be made so small."""
    template = files("transduce.inference").joinpath("explanation.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = template.replace("SCRIPT_DIGEST", f"sha256-{digest}", 1)
    for plan in _PLANS:
        left_out = _cut(found) + plan.left_out()
        data = json_in_html(_content(found, name, plan) | {"leftOut": left_out})
        html = template.replace("EXPLANATION_JSON", data, 1)
        if len(html.encode()) < MOST_BYTES:
            return Page(html, left_out)
    raise TransduceError(
        f"the text has {len(found.source)} tokens and its answer {len(found.written)}: too many for a page of "
        f"{MOST_BYTES:,} bytes. Explain a shorter text."
    )


def _cut(found: Explanation) -> list[str]:
    if not found.answer.is_cut:
        return []
    return [f"The text is longer than the model is meant for: only its first {len(found.source) - 1} tokens were read."]


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


def _content(found: Explanation, name: str, plan: _Plan) -> dict[str, Any]:
    table = _TokenTable()
    return {
        "run": name,
        "text": found.text,
        "answer": found.answer.text,
        "logProb": round(found.answer.log_prob, 4),
        "score": round(found.answer.score, 4),
        "facts": found.facts,
        "source": [table[token] for token in found.source],
        "read": [table[token] for token in (found.begin, *found.written[:-1])],
        "written": [table[token] for token in found.written],
        "candidates": list(_candidate_rows(found, plan, table)),
        "branches": _branch_rows(found, table) if plan.has_branches else None,
        "attention": [kind for kind in _attention(found, plan) if kind],
        "tokens": table.rows,  # last, when it knows all of them
    }


def _candidate_rows(found: Explanation, plan: _Plan, table: _TokenTable) -> Iterator[list[list[Any]]]:
    """By step: [token, probability, rank, 1 if chosen]."""
    for candidates in found.candidates:
        yield [
            [table[one.token], float(f"{one.probability:.3g}"), one.rank, int(one.is_chosen)]
            for one in candidates
            if one.rank <= plan.num_candidates or one.is_chosen
        ]


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


def _attention(found: Explanation, plan: _Plan) -> Iterator[dict[str, Any] | None]:
    parts = {
        "encoder": ("encoder", "self_attention", plan.own),
        "decoder": ("decoder", "self_attention", plan.own),
        "cross": ("decoder", "cross_attention", plan.cross),
    }
    for kind, (side, part, detail) in parts.items():
        layers = [heads for name, heads in found.attention.items() if name.startswith(side) and name.endswith(part)]
        yield _packed(kind, layers, detail) if layers and detail != "nothing" else None


def _packed(kind: str, layers: list[Float[Tensor, "heads queries keys"]], detail: Detail) -> dict[str, Any]:
    """Weights in bytes by layer, head, query and key, 255 for the largest of a head.

    Of masked self-attention the lower triangles alone.
    """
    num_heads = len(layers[0])
    if detail != "heads":
        layers = [heads.mean(dim=0, keepdim=True) for heads in layers]
    num_layers = len(layers)
    if detail == "mean":
        layers = [sum(layers, start=layers[0] * 0) / num_layers]
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
        "isMeanOf": {"heads": "", "layers": f"{num_heads} heads", "mean": f"{num_layers} layers × {num_heads} heads"}[
            detail
        ],
        "largest": [float(f"{value:.5g}") for value in largest[:, 0]],
        "weights": base64.b64encode(levels.tobytes()).decode(),
    }
