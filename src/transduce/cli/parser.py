"""The command line: subcommands and their options. Nothing here needs torch."""

import argparse
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeAlias

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
        "train": "train by the settings of a TOML file",
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
_COMMON = "common options"
_JSON = "print one JSON object to standard output"
_RUN_DIR = "output folder (default: runs/NAME-OF-{})"
_RESUME = "resume the run in the output folder, if there is one"
_WHOLE = "output file; appears only when it is complete"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Overview(prog="transduce", formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"transduce {version()}")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="COMMAND", parser_class=_Parser)
    for add in (
        _add_fit, _add_predict, _add_evaluate, _add_explain, _add_learn, _add_train, _add_settings, _add_init,
        _add_compare, _add_score, _add_average, _add_reproduce, _add_describe, _add_verify, _add_export, _add_import,
        _add_data, _add_prepare, _add_benchmark,
    ):  # fmt: skip
        add(subparsers)
    return parser


class _Parser(argparse.ArgumentParser):
    more_help: Callable[[], str] | None = None

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"transduce: error: {' '.join(message.split())}\n")

    def format_help(self) -> str:
        self._action_groups.sort(key=lambda group: group.title == _COMMON)  # last
        return super().format_help() + (f"\n{self.more_help()}" if self.more_help else "")


class _Overview(_Parser):
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


class _Formatter(argparse.HelpFormatter):
    """Usage without the optional options, wrapped descriptions, and examples as they stand."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: Any = None) -> None:
        one_of = [action for group in groups if group.required for action in group._group_actions]
        needed = [each for each in actions if each.required or not each.option_strings or each in one_of]
        super().add_usage(usage, needed, groups, prefix)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        text = super()._format_usage(usage, actions, groups, prefix)
        is_name = prefix == ""  # of the parser of a subcommand
        return text if is_name else text.replace(self._prog, f"{self._prog} [OPTIONS]", 1)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return textwrap.indent(text, indent)
        return super()._fill_text(text, width, indent)


Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _add_subcommand(
    subparsers: Subparsers, name: str, description: str, *examples: str, aliases: tuple[str, ...] = ()
) -> _Parser:
    # No abbreviations: what abbreviates one option today might abbreviate two tomorrow.
    parser = subparsers.add_parser(
        name,
        description=description,
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else None,
        formatter_class=_Formatter,
        allow_abbrev=False,
        aliases=aliases,
    )
    common = parser.add_argument_group(_COMMON)
    common.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    common.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: one per core)")
    common.add_argument("--quiet", action="store_true", help="print no progress")
    common.add_argument("--debug", action="store_true", help="show a traceback when an error occurs")
    return parser


def _add_fit(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "fit",
        "Train a model on pairs of text, without any settings: tokens, model size, optimizer and schedule are chosen "
        "for the pairs, the time and this machine. Some pairs are held out to validate and test the model.",
        "transduce fit pairs.tsv --minutes 10",
        "transduce fit train.en train.de --valid valid.en valid.de --run-dir runs/en-de",
    )
    parser.add_argument("pairs", nargs="+", metavar="PAIRS", help="a .tsv or .jsonl file, or two parallel text files")
    parser.add_argument("--run-dir", metavar="DIR", help=_RUN_DIR.format("PAIRS"))
    parser.add_argument(
        "--minutes", type=_minutes, default=15.0, help="time for preparation and training (default: 15)"
    )
    parser.add_argument("--valid", nargs="+", metavar="FILE", help="validation pairs (default: held out from PAIRS)")
    parser.add_argument("--test", nargs="+", metavar="FILE", help="test pairs (default: held out from PAIRS)")
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="translation, pronunciation, inflection, normalization or arithmetic; decides tokens and metrics "
        "(default: detected from the pairs)",
    )
    parser.add_argument("--init-from", metavar="RUN", help="start from the weights of another run (fine-tuning)")
    _add_processes(parser)
    parser.add_argument("--seed", type=_number_from_0, default=1, metavar="N", help="random seed (default: 1)")
    parser.add_argument("--resume", action="store_true", help=_RESUME)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the chosen settings and the reasons as TOML, without training"
    )
    parser.add_argument("--json", action="store_true", help=_JSON)


def _add_train(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "train",
        "Train by the settings of a TOML file. Each setting can be overridden on the command line; all of them are "
        "listed below.",
        "transduce init > my.toml && transduce train my.toml",
        "transduce train my.toml --model.dropout 0.2 --training.steps 5000 --run-dir runs/b",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="settings; `transduce init` prints a file to start from")
    parser.add_argument("--run-dir", metavar="DIR", help=_RUN_DIR.format("CONFIG"))
    parser.add_argument("--resume", action="store_true", help=_RESUME)
    parser.add_argument(
        "--accept-changes", action="store_true", help="with --resume: allow changed settings, and record them"
    )
    parser.add_argument("--init-from", metavar="RUN", help="start from the weights and the tokenizer of another run")
    _add_processes(parser)
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to the output folder")
    parser.add_argument("--seed", type=_number_from_0, metavar="N", help="short for --training.seed")
    parser.add_argument(
        "--print-config", action="store_true", help="print all settings as TOML, with the overrides, without training"
    )
    parser.more_help = _help_of_settings


def _help_of_settings() -> str:
    from transduce.cli.settings import formatted  # here: no other command waits for it
    from transduce.config.reference import all_settings

    return f"settings:\n{formatted(all_settings())}"


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=lambda word: None if word == "auto" else _positive(word),
        metavar="N",
        help="worker processes that share each step on a CPU (default: auto, one per core, at most 4)",
    )


def _add_settings(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "settings",
        "Look up the settings of a training run: what each means, its type and its default.",
        "transduce settings model",
        "transduce settings learning_rate",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a section or a setting (default: all)")
    parser.add_argument("--json", action="store_true", help=_JSON)


def _add_init(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "init",
        "Print an annotated TOML file with all settings for `transduce train`, set up for a small model.",
        "transduce init > my.toml",
        "transduce init train.en train.de > my.toml",
        "transduce init --from copy > copy.toml",
    )
    parser.add_argument("pairs", nargs="*", metavar="PAIRS", help="training files to write into it")
    parser.add_argument(
        "--from",
        dest="shipped",
        metavar="NAME",
        help="print a config that comes with the package instead: cmudict, copy, multi30k_en_de, or a recipe of "
        "`transduce reproduce`",
    )


def _add_reproduce(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "reproduce",
        "Train a recipe of docs/RESULTS.md, score it, and compare with the recorded result. Without a name, list the "
        "recipes with recorded and published results.",
        "transduce reproduce",
        "transduce reproduce cmudict --seed 2",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe")
    parser.add_argument("--seed", type=_number_from_0, default=1, metavar="N", help="random seed (default: 1)")
    parser.add_argument("--run-dir", metavar="DIR", help="output folder (default: runs/NAME-SEED)")
    parser.add_argument("--resume", action="store_true", help=_RESUME)
    parser.add_argument("--processes", type=_positive, metavar="N", help="worker processes (default: 2; on a GPU 1)")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the JSON object to a file")
    parser.add_argument("--json", action="store_true", help=_JSON)


def _add_prepare(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "prepare",
        "Preprocess a corpus that does not fit in memory: `train` does the same before it begins. The tokenizer is "
        "trained on an even sample of the pairs. Settings can be overridden as for `train`.",
        "transduce prepare my.toml",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="the settings that `train` will be given")
    parser.add_argument("--init-from", metavar="RUN", help="use the tokenizer of another run")
    parser.add_argument("--json", action="store_true", help=_JSON)


def _add_predict(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "predict",
        "Translate text line by line: line k of the output belongs to line k of the input.",
        "echo 'A dog runs.' | transduce predict runs/en-de",
        "transduce predict runs/en-de in.txt -o out.txt --beam-size 1 --forbid Katze",
        aliases=("translate",),
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="input lines (default: standard input)")
    parser.add_argument("-o", "--output", metavar="FILE", help=_WHOLE)
    parser.add_argument("--n-best", type=_positive, default=1, metavar="N", help="outputs per line, joined by tabs")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per line: scores, tokens, alignment, and confidence (the estimated probability "
        "that an output equals a reference, or a token the next one of the reference)",
    )
    _add_decoding(parser)
    group = parser.add_argument_group("output constraints")
    group.add_argument("--prefix", metavar="TEXT", default="", help="start every output with this text")
    group.add_argument(
        "--require",
        metavar="TEXT",
        action="append",
        default=[],
        help="text that must appear in every output; repeatable",
    )
    group.add_argument(
        "--forbid",
        metavar="TEXT",
        action="append",
        default=[],
        help="text that must not appear, not even inside a word; repeatable",
    )
    group.add_argument("--min-length", type=_number_from_0, metavar="N", help="minimum tokens per output")
    group.add_argument("--max-length", type=_positive, metavar="N", help="maximum tokens (default: by the source)")
    group.add_argument("--no-repeat-ngram", type=_number_from_0, metavar="N", help="repeat no sequence of N tokens")
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, metavar="T", help="sample if above 0; 1: the model's distribution")
    group.add_argument("--top-k", type=int, metavar="K", help="sample only from the K most likely tokens")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="sample only from the most likely tokens with probability P together"
    )
    group.add_argument("--seed", type=_number_from_0, metavar="N", help="random seed (default: that of the run)")


def _add_explain(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "explain",
        "Write a web page that shows how a model arrives at its output for a text: attention, confidence, "
        "probabilities and the search. The page works offline and says what was left out to save space.",
        "transduce explain runs/en-de 'A dog runs.' -o page.html",
        "transduce explain runs/en-de 'A dog runs.' --open",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("text", metavar="TEXT", help="one line of text; write -- before one that begins with a dash")
    parser.add_argument("-o", "--output", metavar="FILE", help=_WHOLE)
    parser.add_argument("--open", action="store_true", help="open the page in a browser (without -o: a temporary file)")
    _add_decoding(parser)


def _add_evaluate(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "evaluate",
        "Score a model on a source file and its reference outputs, with 95 % confidence intervals.",
        "transduce evaluate runs/en-de --source test.en --target test.de",
        "transduce evaluate runs/en-de --source test.en --target test.de --metric bleu,chrf --json",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    _add_references(parser)
    parser.add_argument(
        "--metric",
        metavar="NAME,...",
        help="bleu, tokenized_bleu, chrf, ter, wer, cer, per, exact_match, word_error (default: those of the run's "
        "validation). bleu tokenizes by the script of the references; bleu:13a, bleu:intl, bleu:zh, bleu:char and "
        "bleu:none as sacreBLEU does",
    )
    parser.add_argument(
        "--group-sources",
        action="store_true",
        help="treat lines with the same source as alternative references; word_error is then the share of wrong "
        "sources, and per the phoneme error rate",
    )
    parser.add_argument(
        "--calibration",
        action="store_true",
        help="measure how reliable confidence is before and after calibration: expected calibration error (15 bins of "
        "equal count) and Brier score",
    )
    parser.add_argument("--json", action="store_true", help=_JSON)
    _add_decoding(parser)


def _add_compare(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "compare",
        "Test whether two models differ significantly on a test set (paired bootstrap or approximate randomization).",
        "transduce compare runs/a runs/b --source test.en --target test.de",
        "transduce compare runs/a runs/b --source test.en --target test.de --metric chrf --method randomization",
    )
    parser.add_argument("run_a", metavar="RUN_A", help="run folder")
    parser.add_argument("run_b", metavar="RUN_B", help="run folder to compare with it")
    _add_references(parser)
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="a metric of `evaluate` (default: bleu, or exact_match where no reference has four tokens)",
    )
    parser.add_argument(
        "--method",
        type=lambda word: word.replace("randomisation", "randomization"),  # its name in version 0.1
        choices=["bootstrap", "randomization"],
        default="bootstrap",
        help="paired test (default: bootstrap)",
    )
    parser.add_argument(
        "--seed", type=_number_from_0, default=12345, metavar="N", help="random seed of the resampling (default: 12345)"
    )
    parser.add_argument("--json", action="store_true", help=_JSON)
    _add_decoding(parser)


def _add_score(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "score",
        "Compute the log-probability (natural logarithm) of given outputs: one number per pair and line. The least "
        "likely pairs of a corpus are often its errors.",
        "transduce score runs/en-de pairs.tsv",
        "transduce score runs/en-de --source test.en --target test.de --json",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="source TAB target per line (default: standard input)"
    )
    parser.add_argument("--source", metavar="FILE", help="source lines, instead of FILE")
    parser.add_argument("--target", metavar="FILE", help="the output to score for each source line")
    parser.add_argument("-o", "--output", metavar="FILE", help=_WHOLE)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line, with confidence and all tokens"
    )


def _add_average(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "average",
        "Average the weights of several checkpoints of a run into a new run (section 6.1 of the paper).",
        "transduce average runs/en-de --last 5 -o runs/averaged",
        "transduce average runs/en-de --steps 4000,4500,5000 -o runs/averaged",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=_positive, metavar="N", help="the N most recent checkpoints")
    which.add_argument("--steps", type=_steps, metavar="A,B,C", help="the checkpoints of these steps")
    parser.add_argument("-o", "--output", required=True, metavar="RUN2", help="output folder (must not exist)")


def _add_describe(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "describe",
        "Show what a run is: its model, data, scores and size on disk; or the size of a preset.",
        "transduce describe runs/en-de",
        "transduce describe base --vocab-size 32000",
    )
    parser.add_argument("what", metavar="RUN|PRESET", help="run folder, or one of tiny, small, base, big")
    parser.add_argument(
        "--vocab-size", type=_positive, default=37_000, metavar="N", help="vocabulary of a preset (default: 37000)"
    )
    parser.add_argument("--json", action="store_true", help=_JSON)


def _add_data(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "data",
        "List the built-in data sets, or write one out as text files.",
        "transduce data",
        "transduce data multi30k-en-de -o multi30k",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a data set (default: list all)")
    parser.add_argument("-o", "--output", metavar="DIR", help="output folder")
    parser.add_argument("--json", action="store_true", help=_JSON)


def _add_learn(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "learn",
        "Copy the notebooks that explain the Transformer into a folder.",
        "transduce learn notebooks",
    )
    parser.add_argument("folder", metavar="DIR", help="output folder")
    parser.add_argument("--json", action="store_true", help=_JSON)


def _add_verify(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "verify",
        "Check the files of a run folder against their SHA-256, and say which files are not covered.",
        "transduce verify runs/en-de",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--json", action="store_true", help=_JSON)


def _add_export(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "export",
        "Export a model to CTranslate2, ONNX or Hugging Face, and verify that the outputs match.",
        "transduce export runs/en-de --format ctranslate2 -o en-de-ct2 --int8",
        "transduce export runs/en-de --format onnx -o en-de-onnx --source test.en --target test.de",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--format", required=True, choices=["ctranslate2", "onnx", "huggingface"], help="target format")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="output folder (must not exist)")
    parser.add_argument("--int8", action="store_true", help="store weights as 8-bit integers: smaller and faster")
    parser.add_argument("--source", metavar="FILE", help="lines to compare outputs on (default: the validation pairs)")
    parser.add_argument("--target", nargs="+", action="extend", metavar="FILE", help="reference outputs, for BLEU")
    parser.add_argument("--json", action="store_true", help="print the certificate as one JSON object")


def _add_import(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "import",
        "Import a Marian model in Hugging Face format, such as the OPUS-MT models, as a run.",
        "transduce import opus-mt-en-de -o runs/opus",
    )
    parser.add_argument("folder", metavar="DIR", help="with config.json, model.safetensors, vocab.json and both .spm")
    parser.add_argument("-o", "--output", required=True, metavar="RUN", help="output folder (must not exist)")


def _add_benchmark(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "benchmark",
        description="Measure training or decoding speed, and how close it is to the limit of this machine.",
        epilog="examples:\n  transduce benchmark train --model tiny\n  transduce benchmark decode --run runs/en-de",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    topics = parser.add_subparsers(dest="topic", required=True, metavar="TOPIC")
    training = _add_subcommand(
        topics,
        "train",
        "Measure target tokens of training per second.",
        "transduce benchmark train --model tiny --processes 2",
    )
    training.add_argument("--model", choices=["tiny", "small", "base", "big"], default="tiny", help="default: tiny")
    training.add_argument(
        "--data",
        choices=["multi30k-en-de", "wmt-like"],
        help="wmt-like: random ids of such lengths (default: multi30k-en-de for tiny and small, else wmt-like)",
    )
    training.add_argument("--steps", type=_positive, metavar="N", help="number of timed steps (default: by the model)")
    training.add_argument(
        "--batch-tokens", type=_positive, default=4096, metavar="N", help="tokens per step (default: 4096)"
    )
    training.add_argument("--processes", type=_positive, default=1, metavar="N", help="worker processes (default: 1)")
    decoding = _add_subcommand(
        topics,
        "decode",
        "Measure outputs of a run per second, from text to text.",
        "transduce benchmark decode --run runs/en-de",
    )
    decoding.add_argument("--run", required=True, metavar="RUN", help="run folder")
    decoding.add_argument("--source", metavar="FILE", help="source lines (default: the run's validation lines)")
    decoding.add_argument("--int8", action="store_true", help="use 8-bit integer arithmetic")
    for topic in (training, decoding):
        topic.add_argument("-o", "--output", metavar="FILE", help="also write the JSON object to a file")
        topic.add_argument("--json", action="store_true", help=_JSON)


def _add_references(parser: _Parser) -> None:
    parser.add_argument("--source", required=True, metavar="FILE", help="source lines")
    parser.add_argument(
        "--target",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="reference outputs; several files give several references per source",
    )


def _add_decoding(parser: _Parser) -> None:
    search = parser.add_argument_group("decoding (defaults: those of the run)")
    search.add_argument("--beam-size", type=int, metavar="N", help="hypotheses kept at each step; 1 is greedy search")
    search.add_argument("--length-penalty", type=float, metavar="ALPHA", help="0: none; larger favors longer outputs")
    search.add_argument("--int8", action="store_true", help="use 8-bit integer arithmetic: faster on a CPU")


def _positive(text: str) -> int:
    return _whole_number(text, at_least=1)


def _number_from_0(text: str) -> int:
    return _whole_number(text, at_least=0)


def _whole_number(text: str, *, at_least: int) -> int:
    if not text.isdecimal() or int(text) < at_least:
        raise argparse.ArgumentTypeError(f"'{text}' is given, but a whole number from {at_least} up is needed")
    return int(text)


def _steps(text: str) -> list[int]:
    steps = [_number_from_0(part.strip()) for part in text.split(",")]
    if len(set(steps)) < len(steps):
        raise argparse.ArgumentTypeError(f"'{text}' names a step twice")
    return steps


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is given, but a number above 0 is needed")
    return value
