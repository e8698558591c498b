"""The validation that training goes by: a loss, and scores of decoded outputs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import nn

from transduce.config.settings import ExperimentConfig
from transduce.data.pairs import Pairs
from transduce.evaluation.evaluate import score
from transduce.evaluation.loss import corpus_loss
from transduce.inference.predictor import Predictor
from transduce.model.transformer import Transformer
from transduce.runs.corpus import encode_reporting
from transduce.text.tokenizer import Tokenizer
from transduce.training.state import Validation


def build_validation(
    config: ExperimentConfig, tokenizer: Tokenizer, valid: Pairs, report: Callable[[str], None]
) -> Callable[[nn.Module], Validation]:
    """The function that says how good a model is.

    Its loss is of all of `valid` that `data.max_len` lets pass, its scores of an even selection.
    """
    settings = config.validation
    encoded = encode_reporting(tokenizer, valid, config.data, report)
    sources = list(dict.fromkeys(valid.src)) if settings.group_sources else valid.src
    chosen = {sources[i] for i in np.linspace(0, len(sources) - 1, min(settings.max_pairs, len(sources))).astype(int)}
    rows = [row for row, source in enumerate(valid.src) if source in chosen]
    texts, references = [valid.src[row] for row in rows], [[valid.tgt[row] for row in rows]]
    decoding = replace(config.decoding, beam_size=settings.beam_size, temperature=0.0)
    # Numbers are comparable with others of the same pairs alone: a resumed run may have changed which those are.
    of = f"{len(encoded)} pairs" if settings.best == "loss" else f"{len(rows)} pairs, beam {settings.beam_size}"
    measure = f"{settings.best} of {of}"

    def validate(model: nn.Module) -> Validation:
        assert isinstance(model, Transformer)
        found = {"loss": corpus_loss(model, encoded)}
        goodness = -found["loss"]
        if settings.metrics:
            predictor = Predictor(model, tokenizer, decoding)
            scores = score(
                predictor, texts, references, settings.metrics, group_sources=settings.group_sources, num_resamples=1
            )
            for result in scores:
                found[result.name] = result.value
                if result.name == settings.best:
                    goodness = result.value if result.is_higher_better else -result.value
        return Validation(found, goodness, measure)

    return validate
