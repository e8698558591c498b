"""What a model thinks of given answers: how likely each token is, and where in the source it looked for it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transduce.data.batches import bucket_batches, pad_sources
from transduce.inference.attention_maps import AttentionMaps, record_attention
from transduce.model.transformer import Transformer
from transduce.text.tokenizer import Tokenizer

_TOKENS_AT_ONCE = 2_048  # the logits of all of them are in memory together


@dataclass(frozen=True)
class Annotation:
    """An answer, token by token, its end included.

    `alignment[t]` is the place in `source_tokens` that token t looked at most, over the cross-attention of all layers
    and heads; the end of the source is where heads look that look nowhere, so only the end of the answer may have it.
    """

    source_tokens: list[str]
    tokens: list[str]
    log_probs: list[float]
    alignment: list[int]

    def as_rows(self) -> list[dict[str, Any]]:
        """One object for each token."""
        rows = zip(self.tokens, self.log_probs, self.alignment, strict=True)
        return [{"token": token, "log_prob": log_prob, "source": place} for token, log_prob, place in rows]


def annotate(
    model: Transformer, tokenizer: Tokenizer, sources: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[Annotation]:
    """An annotation of each answer; sources are ids with their ends, answers are ids without."""
    found: list[Annotation | None] = [None] * len(sources)
    for rows, log_probs, attention in _forced(model, sources, answers, with_attention=True):
        for place, row in enumerate(rows):
            source, answer = sources[row], answers[row]
            weights = attention[place, : len(answer) + 1, : len(source)].clone()
            weights[:-1, -1] = 0.0  # a place that only the end may look at
            found[row] = Annotation(
                tokenizer.source_tokens(source),
                tokenizer.target_tokens([*answer, tokenizer.eos_id]),
                log_probs[place],
                weights.argmax(dim=1).tolist(),
            )
    return [annotation for annotation in found if annotation is not None]


def token_log_probs(
    model: Transformer, sources: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[list[float]]:
    """Natural log-probability of each token of each answer, then of its end, given its source and what is before it.

    Sources are ids with their ends, answers are ids without.
    """
    found: list[list[float]] = [[] for _ in sources]
    for rows, log_probs, _ in _forced(model, sources, answers, with_attention=False):
        for row, of_answer in zip(rows, log_probs, strict=True):
            found[row] = of_answer
    return found


def _forced(
    model: Transformer, sources: Sequence[list[int]], answers: Sequence[list[int]], *, with_attention: bool
) -> Iterator[tuple[np.ndarray, list[list[float]], Float[Tensor, "batch tgt_len src_len"]]]:
    """Batch by batch: the rows in it, their log-probabilities and, if wanted, the sum of their cross-attention."""
    device = model.output_weight.device
    src_lens, tgt_lens = (np.array([len(ids) + 1 for ids in side], dtype=np.int32) for side in (sources, answers))
    for rows in bucket_batches(src_lens, tgt_lens, batch_tokens=_TOKENS_AT_ONCE, order=range(len(sources))):
        src = pad_sources([sources[row] for row in rows]).to(device)
        tgt_in = pad_sources([[Tokenizer.bos_id, *answers[row]] for row in rows]).to(device)
        tgt_out = pad_sources([[*answers[row], Tokenizer.eos_id] for row in rows]).to(device)
        nothing: AbstractContextManager[AttentionMaps] = nullcontext({})
        recording = record_attention(model, "cross_attention") if with_attention else nothing
        with torch.inference_mode(), recording as maps:
            log_probs = model.logits(model(src, tgt_in)).float().log_softmax(dim=-1)
            chosen = log_probs.gather(2, tgt_out[..., None])[..., 0].tolist()
            attention = sum((heads.mean(dim=1) for heads in maps.values()), start=torch.zeros((), device=device))
        yield rows, [of_row[: len(answers[row]) + 1] for of_row, row in zip(chosen, rows, strict=True)], attention
