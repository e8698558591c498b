"""Calibration: the temperature that turns probabilities into confidences, and two measures of their reliability.

Label smoothing makes a model less sure than it could be, and knowing its training pairs by heart makes it too sure. One
temperature for all logits, fitted on pairs that it was not trained on, mends most of either (Guo et al. 2017).
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from transduce.data.batches import EncodedPairs, bucket_batches, collate
from transduce.inference.forced_decoding import Calibration
from transduce.inference.predictor import Predictor
from transduce.model.transformer import Transformer

# The range of temperatures: where all tokens are right, for one, the likelihood has no maximum within.
LEAST_TEMPERATURE, MOST_TEMPERATURE, PRECISION = 0.25, 4.0, 1.005
_MOST_PAIRS, _MOST_TOKENS = 2_000, 4_096  # enough to know the temperature to a few per cent
_TOKENS_AT_ONCE, _ROWS_AT_ONCE = 4_096, 512  # of a pass through the network; of logits in memory


def fit_calibration(predictor: Predictor, pairs: EncodedPairs) -> Calibration:
    """The calibration of a model, given pairs that it was not trained on."""
    pairs = pairs.select(np.linspace(0, len(pairs) - 1, min(_MOST_PAIRS, len(pairs))).astype(int))
    hidden, targets = map(torch.cat, zip(*predicted_tokens(predictor.model, pairs), strict=True))
    tokens = np.linspace(0, len(targets) - 1, min(_MOST_TOKENS, len(targets))).astype(int)
    return Calibration(fit_temperature(hidden[tokens], targets[tokens], predictor.model.logits), len(pairs))


@torch.inference_mode()
def predicted_tokens(model: Transformer, pairs: EncodedPairs) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch, all target tokens end to end: the hidden vector (tokens, d_model) that predicts each, and its id.

    A hidden vector comes of the source and of the target's tokens before that one. The model must be in `eval` mode.
    """
    for rows in bucket_batches(pairs.src_lens, pairs.tgt_lens, batch_tokens=_TOKENS_AT_ONCE, order=range(len(pairs))):
        batch = collate(pairs, rows).to(model.output_weight.device)
        is_real = batch.tgt_out != model.vocabulary.pad_id
        yield model(*batch.inputs)[is_real], batch.tgt_out[is_real]


@torch.inference_mode()
def fit_temperature(
    hidden: Float[Tensor, "tokens d_model"], targets: Int[Tensor, " tokens"], to_logits: Callable[[Tensor], Tensor]
) -> float:
    """The temperature T in its range for which softmax(logits / T) gives the targets the highest likelihood.

    The mean loss is convex in 1 / T, so its slope there has one zero, which bisection finds. Logits are computed anew
    each time, some rows at a time: all of them would need far more memory than the hidden vectors.
    """
    low, high = LEAST_TEMPERATURE, MOST_TEMPERATURE
    while high / low > PRECISION:
        temperature, slope = math.sqrt(low * high), 0.0
        for rows, right in zip(hidden.split(_ROWS_AT_ONCE), targets.split(_ROWS_AT_ONCE), strict=True):
            logits = to_logits(rows).float()
            expected = ((logits / temperature).softmax(dim=-1) * logits).sum(dim=-1)
            slope += float((expected - logits.gather(1, right[:, None])[:, 0]).sum())
        # Rising with 1 / T, the loss is least at a higher T.
        low, high = (temperature, high) if slope > 0 else (low, temperature)
    return math.sqrt(low * high)


def expected_calibration_error(confidences: np.ndarray, is_right: np.ndarray, num_bins: int = 15) -> float:
    """Difference between mean confidence and the share that is right: its mean over bins of equal count."""
    gaps = (confidences - is_right)[np.argsort(confidences, kind="stable")]
    return sum(abs(each.sum()) for each in np.array_split(gaps, num_bins)) / len(gaps)


def brier_score(confidences: np.ndarray, is_right: np.ndarray) -> float:
    """Mean squared difference between confidence and being right (1 or 0); p (1 - p) for always saying the share p."""
    return float(np.square(confidences - is_right).mean())
