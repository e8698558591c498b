"""Forced decoding: the log-probability of each token of given outputs, and its alignment to the source."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transduce.data.batches import bucket_batches, pad_sources
from transduce.inference.attention_maps import AttentionMaps, record_attention
from transduce.model.transformer import Transformer
from transduce.text.tokenizer import Tokenizer

_TOKENS_AT_ONCE = 2_048  # whose logits are in memory together


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An output token by token, including the end symbol.

    `alignment[t]` is the index in `source_tokens` of the token with the most attention from token t, over the
    cross-attention of all layers and heads. Heads that have nothing to attend to look at the end of the source, so only
    the end of the output may be aligned to it.
    """

    source_tokens: tuple[str, ...] = field(default=(), repr=False, compare=False)
    tokens: tuple[str, ...] = field(default=(), repr=False, compare=False)
    log_probs: tuple[float, ...] = field(default=(), repr=False, compare=False)
    alignment: tuple[int, ...] = field(default=(), repr=False, compare=False)

    def as_rows(self) -> list[dict[str, Any]]:
        """One JSON object per token."""
        rows = zip(self.tokens, self.log_probs, self.alignment, strict=True)
        return [{"token": token, "log_prob": log_prob, "source": place} for token, log_prob, place in rows]


def annotate(
    model: Transformer, tokenizer: Tokenizer, sources: Sequence[list[int]], outputs: Sequence[list[int]]
) -> list[Annotation]:
    """The annotation of each output; sources are ids with the end symbol, outputs ids without."""
    annotations: dict[int, Annotation] = {}
    for rows, log_probs, attention in _forced_passes(model, sources, outputs, with_attention=True):
        for place, row in enumerate(rows):
            source, output = sources[row], outputs[row]
            weights = attention[place, : len(output) + 1, : len(source)].clone()
            weights[:-1, -1] = 0.0
            annotations[row] = Annotation(
                source_tokens=tuple(tokenizer.source_tokens(source)),
                tokens=tuple(tokenizer.target_tokens([*output, tokenizer.eos_id])),
                log_probs=tuple(log_probs[place]),
                alignment=tuple(weights.argmax(dim=1).tolist()),
            )
    return [annotations[row] for row in range(len(sources))]


def token_log_probs(
    model: Transformer, sources: Sequence[list[int]], outputs: Sequence[list[int]]
) -> list[list[float]]:
    """Natural log-probability of each token of each output, then of its end, given its source and the tokens before.

    Sources are ids with the end symbol, outputs ids without.
    """
    by_row: dict[int, list[float]] = {}
    for rows, log_probs, _ in _forced_passes(model, sources, outputs, with_attention=False):
        by_row.update(zip(rows.tolist(), log_probs, strict=True))
    return [by_row[row] for row in range(len(sources))]


def _forced_passes(
    model: Transformer, sources: Sequence[list[int]], outputs: Sequence[list[int]], *, with_attention: bool
) -> Iterator[tuple[np.ndarray, list[list[float]], Float[Tensor, "batch tgt_len src_len"]]]:
    """Batch by batch: its rows, their log-probabilities and, if wanted, the sum of their cross-attention."""
    device = model.output_weight.device
    src_lens, tgt_lens = (np.array([len(ids) + 1 for ids in side], dtype=np.int32) for side in (sources, outputs))
    for rows in bucket_batches(src_lens, tgt_lens, batch_tokens=_TOKENS_AT_ONCE, order=range(len(sources))):
        src = pad_sources([sources[row] for row in rows]).to(device)
        tgt_in = pad_sources([[Tokenizer.bos_id, *outputs[row]] for row in rows]).to(device)
        tgt_out = pad_sources([[*outputs[row], Tokenizer.eos_id] for row in rows]).to(device)
        recording = record_attention(model, "cross_attention") if with_attention else nullcontext[AttentionMaps]({})
        with torch.inference_mode(), recording as maps:
            log_probs = model.logits(model(src, tgt_in)).float().log_softmax(dim=-1)
            chosen = log_probs.gather(2, tgt_out[..., None])[..., 0].tolist()
            attention = sum((heads.mean(dim=1) for heads in maps.values()), start=torch.zeros((), device=device))
        yield rows, [values[: len(outputs[row]) + 1] for values, row in zip(chosen, rows, strict=True)], attention
