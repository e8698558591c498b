"""The parser of the command line, and the overview of all subcommands. Nothing here needs torch."""

import argparse

from transduce.cli.parsers import everyday, experiments, models
from transduce.cli.parsers.base import Formatter, Parser
from transduce.devices.machine import version

# The subcommands by what they are for, with the line that each has in the overview.
GROUPS = {
    "everyday": {
        "fit": "train a model on pairs of text, without any settings",
        "predict": "translate text line by line (also: translate)",
        "evaluate": "score a model on a test set",
        "explain": "show how a model arrives at an output, as a web page",
        "learn": "copy the notebooks that explain the Transformer",
    },
    "experiments": {
        "train": "train with the settings in a TOML file",
        "settings": "look up settings: meaning, type, default",
        "init": "print an annotated TOML file to start from",
        "compare": "test whether two models differ significantly",
        "score": "compute the log-probability of given outputs",
        "average": "average the weights of several checkpoints",
        "reproduce": "reproduce a published result",
    },
    "models": {
        "describe": "show what a run or a preset is",
        "verify": "check a run folder for damage",
        "export": "export to CTranslate2, ONNX or Hugging Face",
        "import": "import a Marian (OPUS-MT) model",
    },
    "data": {
        "data": "list the built-in data sets, or write one out",
        "prepare": "preprocess a corpus that does not fit in memory",
    },
    "machine": {"benchmark": "measure training or decoding speed"},
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Overview(prog="transduce", formatter_class=Formatter)
    parser.add_argument("--version", action="version", version=f"transduce {version()}")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="COMMAND", parser_class=Parser)
    for add in (
        everyday.add_fit, everyday.add_predict, everyday.add_evaluate, everyday.add_explain, everyday.add_learn,
        experiments.add_train, experiments.add_settings, experiments.add_init, experiments.add_compare,
        experiments.add_score, experiments.add_average, experiments.add_reproduce,
        models.add_describe, models.add_verify, models.add_export, models.add_import, models.add_data,
        models.add_prepare, models.add_benchmark,
    ):  # fmt: skip
        add(subparsers)
    return parser


class _Overview(Parser):
    """The parser whose help is the overview of all subcommands."""

    def format_help(self) -> str:
        lines = ["Train, use and explain encoder-decoder Transformers on pairs of text.", ""]
        lines += ["Usage: transduce COMMAND [OPTIONS]", ""]
        for group, commands in GROUPS.items():
            lines += [f"{group.capitalize()}:", *(f"  {name:<11} {text}" for name, text in commands.items()), ""]
        lines += [
            "Start here:",
            "  transduce fit pairs.tsv            train on lines of: source TAB target",
            "  transduce predict runs/pairs       then type a line",
            "",
            "transduce COMMAND --help shows the options of a command.",
        ]
        return "\n".join(lines) + "\n"
