"""Forced decoding: log-probability, confidence and alignment to the source of each token of given outputs.

A log-probability is the model's: label smoothing holds it away from 0 however certain a token is. A confidence
estimates how often such a token is right.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transduce.data.batches import EncodedPairs, bucket_batches, collate
from transduce.inference.attention_maps import AttentionMaps, record_attention
from transduce.model.transformer import Transformer
from transduce.text.tokenizer import Tokenizer

Ids = Sequence[list[int]]  # of each text

_TOKENS_AT_ONCE = 2_048  # whose logits are in memory together
ENOUGH_PAIRS = 500  # to calibrate on: with fewer, confidence is rough


@dataclass(frozen=True)
class Calibration:
    """What turns a model's probabilities into confidences, as `evaluation.calibration` fits it; by default, nothing."""

    temperature: float = 1.0  # that logits are divided by, for confidences alone; sampling has a temperature of its own
    num_pairs: int = 0  # validation pairs that it was fitted on

    @property
    def is_rough(self) -> bool:
        """Whether it was fitted on too few pairs to be relied on."""
        return self.num_pairs < ENOUGH_PAIRS


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An output token by token, including the end symbol.

    `alignment[t]` is the index in `source_tokens` of the token with the most attention from token t, over the
    cross-attention of all layers and heads. Heads that have nothing to attend to look at the end of the source, so only
    the end of the output may be aligned to it. The confidence of a token is the estimated probability that it is the
    reference's next token, given the reference's tokens before it; `is_rough` if too few validation pairs were there to
    estimate by.
    """

    source_tokens: tuple[str, ...] = field(default=(), repr=False, compare=False)
    tokens: tuple[str, ...] = field(default=(), repr=False, compare=False)
    log_probs: tuple[float, ...] = field(default=(), repr=False, compare=False)
    alignment: tuple[int, ...] = field(default=(), repr=False, compare=False)
    confidences: tuple[float, ...] = field(default=(), repr=False, compare=False)
    is_rough: bool = field(default=False, repr=False, compare=False)

    @property
    def confidence(self) -> float | None:
        """Estimated probability that the whole output equals a reference; None if it is not annotated."""
        return math.prod(self.confidences) if self.confidences else None

    def as_rows(self) -> list[dict[str, Any]]:
        """One JSON object per token."""
        rows = zip(self.tokens, self.log_probs, self.confidences, self.alignment, strict=True)
        return [dict(zip(("token", "log_prob", "confidence", "source"), row, strict=True)) for row in rows]


def annotate(
    model: Transformer, tokenizer: Tokenizer, sources: Ids, outputs: Ids, calibration: Calibration = Calibration()
) -> list[Annotation]:
    """The annotation of each output; sources are ids with the end symbol, outputs ids without."""
    annotations: dict[int, Annotation] = {}
    passes = _forced_passes(model, sources, outputs, 1.0, calibration.temperature, with_attention=True)
    for row, (log_probs, calibrated), attention in passes:
        weights = attention.clone()
        weights[:-1, -1] = 0.0
        annotations[row] = Annotation(
            source_tokens=tuple(tokenizer.source_tokens(sources[row])),
            tokens=tuple(tokenizer.target_tokens([*outputs[row], tokenizer.eos_id])),
            log_probs=tuple(log_probs),
            alignment=tuple(weights.argmax(dim=1).tolist()),
            confidences=tuple(map(math.exp, calibrated)),
            is_rough=calibration.is_rough,
        )
    return [annotations[row] for row in range(len(sources))]


def token_log_probs(model: Transformer, sources: Ids, outputs: Ids) -> list[list[float]]:
    """Natural log-probability of each token of each output, then of its end, given its source and the tokens before.

    Sources are ids with the end symbol, outputs ids without.
    """
    by_row = {row: log_probs for row, (log_probs,), _ in _forced_passes(model, sources, outputs, 1.0)}
    return [by_row[row] for row in range(len(sources))]


def _forced_passes(
    model: Transformer, sources: Ids, outputs: Ids, *temperatures: float, with_attention: bool = False
) -> Iterator[tuple[int, list[list[float]], Float[Tensor, "tgt_len src_len"]]]:
    """Row by row: its log-probabilities at each temperature and, if wanted, the sum of its cross-attention."""
    device = model.output_weight.device
    pairs = EncodedPairs(sources, [[*ids, Tokenizer.eos_id] for ids in outputs])
    src_lens = pairs.src_lens + 1  # as ever: in other batches the last bits of a log-probability may be others
    for rows in bucket_batches(src_lens, pairs.tgt_lens, batch_tokens=_TOKENS_AT_ONCE, order=range(len(pairs))):
        batch = collate(pairs, rows).to(device)
        recording = record_attention(model, "cross_attention") if with_attention else nullcontext[AttentionMaps]({})
        with torch.inference_mode(), recording as maps:
            logits, chosen = model.logits(model(*batch.inputs)).float(), batch.tgt_out[..., None]
            of_all = [(logits / each).log_softmax(dim=-1).gather(2, chosen)[..., 0].tolist() for each in temperatures]
            start = torch.zeros(*batch.tgt_in.shape, batch.src.size(1), device=device)
            attention = sum((heads.mean(dim=1) for heads in maps.values()), start=start)
        for place, row in enumerate(rows.tolist()):
            src_len, tgt_len = len(sources[row]), len(outputs[row]) + 1
            yield row, [values[place][:tgt_len] for values in of_all], attention[place, :tgt_len, :src_len]
