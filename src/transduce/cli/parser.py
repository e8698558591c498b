"""The command line: subcommands and their options. Nothing here needs torch."""

import argparse
import math
from typing import NoReturn, TypeAlias

from transduce.devices.machine import version


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="transduce",
        description="Learn, use and trust an encoder-decoder Transformer on pairs of text.",
        epilog="Answers and tables go to standard output, progress and errors to standard error.",
    )
    parser.add_argument("--version", action="version", version=f"transduce {version()}")
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="VERB")
    _add_fit(subparsers)
    _add_train(subparsers)
    _add_reproduce(subparsers)
    _add_prepare(subparsers)
    _add_predict(subparsers)
    _add_evaluate(subparsers)
    _add_compare(subparsers)
    _add_score(subparsers)
    _add_average(subparsers)
    _add_explain(subparsers)
    _add_describe(subparsers)
    _add_data(subparsers)
    _add_learn(subparsers)
    _add_verify(subparsers)
    _add_export(subparsers)
    _add_import(subparsers)
    _add_benchmark(subparsers)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"transduce: error: {' '.join(message.split())}\n")


Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _add_subcommand(subparsers: Subparsers, name: str, text: str, **more: object) -> _Parser:
    description = f"{text[0].upper()}{text[1:]}."
    # No abbreviations: what abbreviates one option today might abbreviate two tomorrow.
    parser = subparsers.add_parser(name, help=text, description=description, allow_abbrev=False, **more)  # type: ignore[arg-type]
    common = parser.add_argument_group("on every verb")
    common.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto takes a GPU if there is one")
    common.add_argument(
        "--threads", type=_positive, help="CPU threads, which --processes share (default: one per core)"
    )
    common.add_argument("--quiet", action="store_true", help="no progress on standard error")
    common.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def _add_fit(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "fit", "learn from raw pairs with no settings at all, and say how good it is")
    parser.add_argument("pairs", nargs="+", metavar="PAIRS", help="a .tsv or .jsonl file, or two parallel text files")
    parser.add_argument("--run-dir", help="folder to make (default: runs/NAME-OF-PAIRS)")
    parser.add_argument(
        "--valid",
        nargs="+",
        metavar="FILE",
        help="pairs to validate by during training (default: some of PAIRS are held out, as others are for the test)",
    )
    parser.add_argument(
        "--test", nargs="+", metavar="FILE", help="pairs to score the model on (default: some of PAIRS are held out)"
    )
    parser.add_argument("--init-from", metavar="RUN", help="start from the weights, tokenizer and model shape of a run")
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="translation, pronunciation, inflection, normalization or arithmetic: how text is cut and what answers "
        "are scored by (default: as the pairs look)",
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=15.0,
        help="to prepare and train; scoring follows (default: 15)",
    )
    _add_processes(parser)
    parser.add_argument("--seed", type=_number_from_0, default=1, help="of all that is drawn (default: 1)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the settings it would train with, as a config file with reasons"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_train(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "train",
        "train as a TOML file says",
        epilog="Any setting can be given here instead: --model.dropout 0.1 --training.steps 5000",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="see configs/ for examples")
    parser.add_argument("--run-dir", help="folder to make (default: runs/NAME-OF-CONFIG)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    parser.add_argument("--accept-changes", action="store_true", help="with --resume: let settings differ; recorded")
    parser.add_argument("--init-from", metavar="RUN", help="start from the weights and the tokenizer of a run")
    _add_processes(parser)
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into the folder, too")
    parser.add_argument("--seed", type=_number_from_0, help="the same as --training.seed")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=lambda word: None if word == "auto" else _positive(word),
        metavar="N",
        help="that share each step on a CPU; auto (the default): one for each core, at most 4, where that is faster",
    )


def _add_reproduce(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "reproduce",
        "run one row of docs/RESULTS.md again, and compare with what is recorded there",
        epilog="Without a name: lists the rows, with what was recorded and what others published.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a row of the results")
    parser.add_argument("--seed", type=_number_from_0, default=1, help="of the training (default: 1)")
    parser.add_argument("--run-dir", help="folder to make (default: runs/NAME-SEED)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    parser.add_argument("--processes", type=_positive, metavar="N", help="that share a step (default: 2; on a GPU 1)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the JSON object there, too")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_prepare(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "prepare",
        "do ahead what `train` does before training, for pairs that are too many for memory",
        epilog="The tokenizer is learnt from an even sample of the pairs. Settings as for `train`.",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="the one that `train` is given")
    parser.add_argument("--init-from", metavar="RUN", help="with the tokenizer of a run")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_predict(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "predict", "answer lines: line k in, line k out", aliases=["translate"])
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="default: standard input")
    parser.add_argument("-o", "--output", metavar="FILE", help="written whole or not at all")
    parser.add_argument("--n-best", type=_positive, default=1, metavar="N", help="answers per line, joined by tabs")
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object per line: scores, tokens, alignment; and confidence, the estimated probability that an "
        "answer equals a reference, or that a token is the reference's next",
    )
    _add_decoding(parser)
    group = parser.add_argument_group("what answers must hold")
    group.add_argument("--prefix", metavar="TEXT", default="", help="how every answer begins")
    group.add_argument(
        "--require", metavar="TEXT", action="append", default=[], help="in every answer; can be repeated"
    )
    group.add_argument(
        "--forbid", metavar="TEXT", action="append", default=[], help="in no answer, not even inside a word; repeatable"
    )
    group.add_argument("--min-length", type=_number_from_0, metavar="N", help="tokens at least, the end not counted")
    group.add_argument("--max-length", type=_positive, metavar="N", help="tokens at most (default: by the source)")
    group.add_argument("--no-repeat-ngram", type=_number_from_0, metavar="N", help="no N tokens in a row come twice")
    group = parser.add_argument_group("drawing instead of searching")
    group.add_argument("--temperature", type=float, help="above 0: draw; 1 draws from the model's distribution")
    group.add_argument("--top-k", type=int, metavar="K", help="from the K likeliest tokens alone")
    group.add_argument("--top-p", type=float, metavar="P", help="from the likeliest tokens that have P together")
    group.add_argument("--seed", type=_number_from_0, help="of the draws (default: that of the run)")


def _add_explain(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "explain",
        "write a page of HTML that shows how a run answers a text: attention, confidence, probabilities, search",
        epilog="The page needs nothing from outside; it says what was left out for want of room.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("text", metavar="TEXT", help="one line; write -- before one that begins with a dash")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the page, written whole or not at all")
    _add_decoding(parser)


def _add_evaluate(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "evaluate", "score a run on a source file and its reference answers")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    _add_references(parser)
    parser.add_argument(
        "--metric",
        metavar="NAME,...",
        help="some of bleu, tokenized_bleu, chrf, ter, wer, cer, per, exact_match, word_error (default: those of the "
        "validation); bleu splits text as the references ask for, bleu:13a, bleu:intl, bleu:zh, bleu:char, bleu:none "
        "as they say",
    )
    parser.add_argument(
        "--group-sources",
        action="store_true",
        help="lines of the same source are its alternatives: word_error = share of wrong sources, per = phoneme errors",
    )
    parser.add_argument(
        "--calibration",
        action="store_true",
        help="how true confidence is on these lines, before and after calibration: expected calibration error in 15 "
        "bins of equal count, and Brier score",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    _add_decoding(parser)


def _add_compare(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "compare", "say whether two runs differ by more than chance")
    parser.add_argument("run_a", metavar="RUN_A", help="a run folder")
    parser.add_argument("run_b", metavar="RUN_B", help="the run folder compared with it")
    _add_references(parser)
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="one of those of `evaluate` (default: bleu, or exact_match where no reference has four tokens)",
    )
    parser.add_argument(
        "--method",
        choices=["bootstrap", "randomisation"],
        default="bootstrap",
        help="of the paired test (default: bootstrap)",
    )
    parser.add_argument("--seed", type=_number_from_0, default=12345, help="of the resampling (default: 12345)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    _add_decoding(parser)


def _add_score(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers,
        "score",
        "say how likely given outputs are to a run: a natural log-probability for each pair, one a line",
        epilog="The least likely pairs of a corpus are often its wrong ones.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="source TAB target per line (default: standard input)"
    )
    parser.add_argument("--source", metavar="FILE", help="sources, one a line, instead of FILE")
    parser.add_argument("--target", metavar="FILE", help="the outputs to score, line k for line k of --source")
    parser.add_argument("-o", "--output", metavar="FILE", help="written whole or not at all")
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object per line: with confidence, and log-probabilities of all tokens",
    )


def _add_average(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "average", "make a run whose weights are the mean of a run's checkpoints")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=_positive, metavar="N", help="the newest N checkpoints")
    which.add_argument("--steps", type=_steps, metavar="A,B,C", help="the checkpoints of these steps")
    parser.add_argument("-o", "--output", required=True, metavar="RUN2", help="folder to make, whole or not at all")


def _add_describe(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "describe", "show the size of a preset, or what a run is")
    parser.add_argument("what", metavar="RUN|PRESET", help="a run folder, or tiny, small, base, big")
    parser.add_argument(
        "--vocab-size", type=_positive, default=37_000, metavar="N", help="of a preset (default: 37000)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_data(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "data", "list the named data sets, or write one out as text files")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a data set; without it, all are listed")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder to write to")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_learn(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "learn", "copy the notebooks that explain the Transformer into a folder")
    parser.add_argument("folder", metavar="DIR", help="folder to copy them to")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_verify(subparsers: Subparsers) -> None:
    parser = _add_subcommand(subparsers, "verify", "check every byte of a run folder against its SHA-256")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_export(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers, "export", "write a run as another program reads it, and certify that it answers the same"
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--format", required=True, choices=["ctranslate2", "onnx", "huggingface"], help="whose files")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to make, whole or not at all")
    parser.add_argument(
        "--int8", action="store_true", help="weights in bytes: smaller, faster, nearly the same answers"
    )
    parser.add_argument("--source", metavar="FILE", help="lines to compare answers on (default: the validation pairs)")
    parser.add_argument("--target", nargs="+", action="extend", metavar="FILE", help="right answers to them, for BLEU")
    parser.add_argument("--json", action="store_true", help="the certificate as one JSON object on standard output")


def _add_import(subparsers: Subparsers) -> None:
    parser = _add_subcommand(
        subparsers, "import", "make a run of a Marian model in Hugging Face form, such as those of OPUS-MT"
    )
    parser.add_argument("folder", metavar="DIR", help="with config.json, model.safetensors, vocab.json and both .spm")
    parser.add_argument("-o", "--output", required=True, metavar="RUN", help="folder to make, whole or not at all")


def _add_benchmark(subparsers: Subparsers) -> None:
    text = "measure how fast this machine does it, and how fast it could"
    parser = subparsers.add_parser(
        "benchmark", help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    topics = parser.add_subparsers(dest="topic", required=True, metavar="TOPIC")
    training = _add_subcommand(topics, "train", "target tokens per second through the real trainer")
    training.add_argument("--model", choices=["tiny", "small", "base", "big"], default="tiny", help="default: tiny")
    training.add_argument(
        "--data",
        choices=["multi30k-en-de", "wmt-like"],
        help="wmt-like: random ids of such lengths (default: multi30k-en-de for tiny and small, else wmt-like)",
    )
    training.add_argument("--steps", type=_positive, metavar="N", help="timed ones (default: by the model)")
    training.add_argument("--batch-tokens", type=_positive, default=4096, metavar="N", help="of a step (default: 4096)")
    training.add_argument("--processes", type=_positive, default=1, metavar="N", help="share each batch among so many")
    decoding = _add_subcommand(topics, "decode", "answers of a run per second, from text to text")
    decoding.add_argument("--run", required=True, metavar="RUN", help="a run folder, whose model answers")
    decoding.add_argument("--source", metavar="FILE", help="lines to answer (default: the run's validation lines)")
    decoding.add_argument("--int8", action="store_true", help="multiply in bytes")
    for topic in (training, decoding):
        topic.add_argument("-o", "--output", metavar="FILE", help="write the JSON object there, too")
        topic.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_references(parser: _Parser) -> None:
    parser.add_argument("--source", required=True, metavar="FILE", help="texts to answer, one a line")
    parser.add_argument(
        "--target",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="right answers to them; several files, or --target again, give several to each text",
    )


def _add_decoding(parser: _Parser) -> None:
    search = parser.add_argument_group("search (defaults: those of the run)")
    search.add_argument("--beam-size", type=int, metavar="N", help="hypotheses kept at each step; 1: greedy")
    search.add_argument("--length-penalty", type=float, metavar="ALPHA", help="0: none; more favours long answers")
    search.add_argument(
        "--int8", action="store_true", help="multiply in bytes: faster on a CPU, nearly the same answers"
    )


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
