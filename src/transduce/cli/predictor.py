"""The predictor that the options of a subcommand ask for."""

import argparse
from dataclasses import replace
from typing import Any

from transduce.cli.console import report_of
from transduce.errors import TransduceError
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints
from transduce.inference.predictor import Predictor
from transduce.runs.load import load

Arguments = argparse.Namespace


def load_predictor(arguments: Arguments, name: str) -> Predictor:
    """A run's predictor, searching and constrained as the options say."""
    report = report_of(arguments)
    own = load(name, device=arguments.device, int8=arguments.int8, report=report)
    return Predictor(
        own.model,
        own.tokenizer,
        _decoding(arguments, own.decoding),
        constraints=_constraints(arguments),
        int8=own.int8,
        report=report,
    )


def _decoding(arguments: Arguments, own: DecodingConfig) -> DecodingConfig:
    """The settings of a run, and in their place what was asked for."""
    seeds = () if arguments.verb == "compare" else ("seed",)  # there it is that of the resampling
    options = ("beam_size", "length_penalty", "temperature", "top_k", "top_p", *seeds)
    chosen = {option: getattr(arguments, option) for option in options if getattr(arguments, option, None) is not None}
    decoding = replace(own, **chosen)
    if decoding.temperature == 0 and (idle := [option for option in ("top_k", "top_p", "seed") if option in chosen]):
        raise TransduceError(f"--{idle[0].replace('_', '-')} is for drawing answers: add --temperature 1.")
    return replace(decoding, **_limits(arguments))


def _limits(arguments: Arguments) -> dict[str, Any]:
    """How long answers must be and may be, and what they may not repeat: options of `predict` alone."""
    shortest, longest, ngram = (
        getattr(arguments, name, None) for name in ("min_length", "max_length", "no_repeat_ngram")
    )
    limits: dict[str, Any] = {}
    if shortest is not None:
        limits["min_len"] = shortest
    if longest is not None:
        if longest < (shortest or 0):
            raise TransduceError(f"--min-length {shortest} is more than --max-length {longest}.")
        limits |= {"max_len_ratio": 0.0, "max_len_extra": longest + 1}  # the end is one more
    if ngram is not None:
        limits["no_repeat_ngram_size"] = ngram
    return limits


def _constraints(arguments: Arguments) -> Constraints:
    """What answers must and must not hold: options of `predict` alone."""
    if not hasattr(arguments, "require"):
        return Constraints()
    return Constraints(prefix=arguments.prefix, required=tuple(arguments.require), forbidden=tuple(arguments.forbid))
