"""The predictor that a subcommand's decoding options describe: `predict`, `explain`, `evaluate` and `compare`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from transduce.cli.console import report_of
from transduce.errors import TransduceError
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints
from transduce.inference.predictor import ignore
from transduce.runs.folder import RunFolder
from transduce.runs.run import Run, load_from


def load_predictor(arguments: argparse.Namespace, run: str, *, reports: bool = True) -> Run:
    """The predictor of a run, with the decoding settings and output constraints of the options.

    It `reports` truncated and unfamiliar sources, unless the subcommand names their lines itself.
    """
    folder, report = RunFolder.open(Path(run)), report_of(arguments)
    settings = folder.settings
    return load_from(
        folder,
        settings,
        arguments.device,
        report,
        decoding=_decoding(arguments, settings.decoding),
        constraints=_constraints(arguments),
        int8=arguments.int8,
        report=report if reports else ignore,
    )


def _decoding(arguments: argparse.Namespace, defaults: DecodingConfig) -> DecodingConfig:
    """The decoding settings of a run, overridden by the options given."""
    seeds = () if arguments.subcommand == "compare" else ("seed",)  # the seed of `compare` is that of the resampling
    options = ("beam_size", "length_penalty", "temperature", "top_k", "top_p", *seeds)
    chosen = {option: getattr(arguments, option) for option in options if getattr(arguments, option, None) is not None}
    decoding = replace(defaults, **chosen)
    if decoding.temperature == 0 and (idle := [option for option in ("top_k", "top_p", "seed") if option in chosen]):
        raise TransduceError(f"--{idle[0].replace('_', '-')} is for sampling: add --temperature 1.")
    return replace(decoding, **_length_limits(arguments))


def _length_limits(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of --min-length, --max-length and --no-repeat-ngram, which `predict` alone has."""
    if not hasattr(arguments, "max_length"):
        return {}
    least, most = arguments.min_length, arguments.max_length
    limits = {"min_len": least, "no_repeat_ngram_size": arguments.no_repeat_ngram}
    if most is not None:
        if most < (least or 0):
            raise TransduceError(f"--min-length {least} is more than --max-length {most}.")
        limits |= {"max_len_ratio": 0.0, "max_len_extra": most + 1}  # one more for the end symbol
    return {name: value for name, value in limits.items() if value is not None}


def _constraints(arguments: argparse.Namespace) -> Constraints:
    """The output constraints, which `predict` alone has options for."""
    if not hasattr(arguments, "require"):
        return Constraints()
    return Constraints(prefix=arguments.prefix, required=tuple(arguments.require), forbidden=tuple(arguments.forbid))
