"""Reliability of a run's confidences before and after calibration: `evaluate --calibration`."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from transduce.data.batches import encode_pairs
from transduce.data.pairs import Pairs
from transduce.errors import DataError
from transduce.evaluation.calibration import brier_score, expected_calibration_error, predicted_tokens
from transduce.inference.forced_decoding import Calibration
from transduce.inference.predictor import Prediction
from transduce.runs.run import Run

Rows = Sequence[tuple[float, float, bool]]  # confidence before and after calibration, and whether it was right


def measure_calibration(
    run: Run, sources: Sequence[str], references: Sequence[Sequence[str]], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """Calibration error and Brier score of outputs, and of the most likely token after each prefix of a reference."""
    if not any(source.strip() for source in sources):
        raise DataError("all sources are empty, so no output has a confidence to measure: give sources with text.")
    return {
        "calibration_temperature": run.calibration.temperature,
        "outputs": _measures(_outputs(run, sources, references, predictions)),
        "tokens": _measures([row for targets in references for row in _tokens(run, sources, targets)]),
    }


def calibration_lines(measured: dict[str, Any]) -> Iterator[str]:
    """The report: one line for outputs and one for tokens."""
    for what in ("outputs", "tokens") if measured else ():
        values = measured[what]
        before, after = values["before"], values["after"]
        share = f"{values['share_right']:.1%}"
        yield (
            f"confidence of {values['count']:,} {what}, {share} right: expected calibration error "
            f"{before['ece']:.4f} before and {after['ece']:.4f} after calibration, Brier score {before['brier']:.4f} "
            f"and {after['brier']:.4f} (always saying {share}: {values['brier_of_share']:.4f})"
        )


def _measures(rows: Rows) -> dict[str, Any]:
    before, after, is_right = (np.array(column) for column in zip(*rows, strict=True))
    share = float(is_right.mean())
    return {
        "count": len(rows),
        "share_right": share,
        "brier_of_share": share * (1 - share),
        **{
            name: {"ece": expected_calibration_error(values, is_right), "brier": brier_score(values, is_right)}
            for name, values in (("before", before), ("after", after))
        },
    }


def _outputs(
    run: Run, sources: Sequence[str], references: Sequence[Sequence[str]], predictions: Sequence[Prediction]
) -> Rows:
    """One row for each different source that is not empty; an output is right if it is any of its references."""
    references_of: dict[str, set[str]] = defaultdict(set)
    for targets in references:
        for source, target in zip(sources, targets, strict=True):
            references_of[source].add(target)
    outputs = {source: output for source, output in zip(sources, predictions, strict=True) if source.strip()}
    after = run.annotate(list(outputs), list(outputs.values()))
    return [
        (np.exp(output.log_prob), annotation.confidence or 0.0, output.text in references_of[source])
        for (source, output), annotation in zip(outputs.items(), after, strict=True)
    ]


@torch.inference_mode()
def _tokens(run: Run, sources: Sequence[str], targets: Sequence[str]) -> Rows:
    """One row for each token of the references, and of the ends of these."""
    given, max_len = Pairs(list(sources), list(targets), {}, [], {}), run.settings.data.max_len
    pairs, _ = encode_pairs(run.tokenizer, given, max_len=max_len)
    rows: list[tuple[float, float, bool]] = []
    for hidden, right in predicted_tokens(run.model, pairs):
        logits = run.model.logits(hidden).float()
        before, after = (
            (logits / temperature).softmax(dim=-1).amax(dim=-1)
            for temperature in (Calibration.temperature, run.calibration.temperature)
        )
        is_right = logits.argmax(dim=-1) == right
        rows.extend(zip(before.tolist(), after.tolist(), is_right.tolist(), strict=True))
    return rows
