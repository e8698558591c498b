"""Validation during training: the loss on held-out pairs, and scores of decoded outputs."""

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
from torch import nn

from transduce.config.settings import ExperimentConfig
from transduce.data.batches import EncodedPairs, TrainingPairs
from transduce.data.pairs import Pairs
from transduce.evaluation.bleu import notes_on
from transduce.evaluation.calibration import fit_calibration
from transduce.evaluation.evaluate import predict_distinct, score
from transduce.evaluation.loss import corpus_loss
from transduce.inference.predictor import Predictor, ignore
from transduce.model.transformer import Transformer
from transduce.runs.corpus import EncodedCorpus, encode_reporting
from transduce.runs.folder import RunFolder
from transduce.runs.run import load
from transduce.training.state import Validation

_NUM_SAMPLES = 3  # outputs to look at
_NUM_TRAINED = 500  # training pairs whose loss is computed


def build_validation(
    config: ExperimentConfig, encoded_train: EncodedCorpus, valid: Pairs, report: Callable[[str], None]
) -> Callable[[nn.Module], Validation]:
    """Function from a model to its metrics and the one number by which models are compared.

    The loss is over all pairs of `valid` within `data.max_len`, in nats per token; the scores, as decoding is slow,
    are over at most `validation.max_pairs` pairs (with grouped sources: over at most so many sources). Beside it, the
    loss of some training pairs, as it is without label smoothing and dropout: the gap between both is overfitting.
    """
    settings = config.validation
    encoded = encode_reporting(encoded_train.tokenizer, valid, config.data, report)
    some_trained = _some_of(encoded_train.pairs)
    limits = [config.decoding.max_len(src_len) for src_len in encoded.src_lens.tolist()]
    if num_longer := int((encoded.tgt_lens > limits).sum()):
        report(f"{num_longer:,} validation targets exceed the maximum output length: raise decoding.max_len_extra")
    sources = list(dict.fromkeys(valid.src)) if settings.group_sources else valid.src
    # Spread evenly over the file, so that an ordered one is represented too; all pairs of a chosen source are kept.
    chosen = {sources[i] for i in np.linspace(0, len(sources) - 1, min(settings.max_pairs, len(sources))).astype(int)}
    rows = [row for row, source in enumerate(valid.src) if source in chosen]
    texts, references = [valid.src[row] for row in rows], [[valid.tgt[row] for row in rows]]
    shown = np.linspace(0, len(rows) - 1, min(_NUM_SAMPLES, len(rows))).astype(int)
    for note in notes_on(settings.metrics, references):
        report(note)
    decoding = replace(config.decoding, beam_size=settings.beam_size, temperature=0.0)
    # Only numbers from the same pairs and search are comparable: a resumed run may have changed them.
    basis = f"{len(encoded)} pairs" if settings.best == "loss" else f"{len(rows)} pairs, beam {settings.beam_size}"
    measure = f"{settings.best} of {basis}"

    def validate(model: nn.Module) -> Validation:
        assert isinstance(model, Transformer)
        metrics, samples = {"loss": corpus_loss(model, encoded)}, []
        if some_trained is not None:
            metrics["training_loss"] = corpus_loss(model, some_trained)
        score_kept = -metrics["loss"]
        if settings.metrics:
            predictor = Predictor(model, encoded_train.tokenizer, decoding, seen=encoded_train.seen)
            outputs = predict_distinct(predictor, texts)
            scores = score(
                predictor, texts, references, settings.metrics, group_sources=settings.group_sources, num_resamples=1,
                predictions=outputs,
            )  # fmt: skip
            samples = [(texts[row], outputs[row].text, references[0][row]) for row in shown]
            for result in scores:
                metrics[result.name] = result.value
                if result.name == settings.best:
                    score_kept = result.value if result.is_higher_better else -result.value
        tie = -metrics["loss"] if settings.ties_by_loss else 0.0
        return Validation(metrics, score_kept, measure, tie, tuple(samples))

    return validate


def _some_of(pairs: TrainingPairs) -> EncodedPairs | None:
    """Training pairs spread evenly, whose loss is compared with that of validation; None for a corpus on disk."""
    if not isinstance(pairs, EncodedPairs):
        return None
    return pairs.select(np.linspace(0, len(pairs) - 1, min(_NUM_TRAINED, len(pairs))).astype(int))


def calibrate(folder: RunFolder, valid: Pairs, device: str) -> None:
    """Fit the calibration of a trained run on its validation pairs, and record it in the folder."""
    run = load(folder.path, device=device)
    pairs = encode_reporting(run.tokenizer, valid, run.settings.data, ignore)
    folder.update_facts({"calibration": asdict(fit_calibration(run, pairs))})
