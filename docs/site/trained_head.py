"""Trains the small model of the main notebook and puts the queries and keys of one of its layers into live/head.html.

docs/book/trained_head.py        half a minute; the numbers in the committed page are from such a run
"""

import json
import re
from pathlib import Path

import torch

from transduce.learn.transformer.tracing import SENTENCE, sentence_reverser, trace

PAGE = Path(__file__).parent / "live/head.html"
LAYER = "decoder.layers.1.cross_attention"  # the last one that looks at the source


def data() -> dict[str, object]:
    """Tokens, and of each head a query for every token written and a key for every token of the source."""
    reverser = sentence_reverser(fast=False)
    found = trace(reverser.model, reverser.tokenizer, SENTENCE)
    kept: dict[str, torch.Tensor] = {}

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        kept["q"], kept["k"], _ = module.project(*inputs)  # type: ignore[operator]

    with torch.no_grad(), reverser.model.get_submodule(LAYER).register_forward_pre_hook(keep):
        reverser.model(torch.tensor([found.source_ids]), torch.tensor([found.written_ids]))
    return {
        "source": found.source,
        "given": found.written,
        "written": [*found.written[1:], "</s>"],
        "queries": rounded(kept["q"][0]),
        "keys": rounded(kept["k"][0]),
    }


def rounded(numbers: torch.Tensor) -> list[list[list[float]]]:
    """Numbers with three digits behind the point: (heads, tokens, channels of a head)."""
    return [[[round(x, 3) for x in row] for row in head] for head in numbers.tolist()]


if __name__ == "__main__":
    line = f"const TRAINED = {json.dumps(data(), ensure_ascii=False, separators=(',', ':'))};"
    PAGE.write_text(re.sub(r"const TRAINED = .*;", lambda _: line, PAGE.read_text(encoding="utf-8"), count=1))
