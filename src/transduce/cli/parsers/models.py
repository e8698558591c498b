"""Subcommands for models, data and the machine: describe, verify, export, import, data, prepare, benchmark."""

from transduce.cli.parsers.base import (
    JSON_HELP,
    Formatter,
    Subparsers,
    add_subcommand,
    positive,
)


def add_describe(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "describe",
        "Show what a run is: its model, data, scores and size on disk; or the size of a preset.",
        "transduce describe runs/en-de",
        "transduce describe base --vocab-size 32000",
    )
    parser.add_argument("what", metavar="RUN|PRESET", help="run folder, or one of tiny, small, base, big")
    parser.add_argument(
        "--vocab-size", type=positive, default=37_000, metavar="N", help="vocabulary of a preset (default: 37000)"
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def add_verify(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "verify",
        "Check the files of a run folder against their SHA-256, and say which files are not covered.",
        "transduce verify runs/en-de",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def add_export(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "export",
        "Export a model to CTranslate2, ONNX or Hugging Face, and verify that the outputs match.",
        "transduce export runs/en-de --format ctranslate2 -o en-de-ct2 --int8",
        "transduce export runs/en-de --format onnx -o en-de-onnx --source test.en --target test.de",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--format", required=True, choices=["ctranslate2", "onnx", "huggingface"], help="target format")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="output folder (must not exist)")
    parser.add_argument(
        "--int8", action="store_true", help="store weights as 8-bit integers: smaller and faster (ctranslate2, onnx)"
    )
    parser.add_argument("--source", metavar="FILE", help="lines to compare outputs on (default: the validation pairs)")
    parser.add_argument("--target", nargs="+", action="extend", metavar="FILE", help="reference outputs, for BLEU")
    parser.add_argument("--json", action="store_true", help="print the certificate as one JSON object")


def add_import(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "import",
        "Import a Marian model in Hugging Face format, such as the OPUS-MT models, as a run.",
        "transduce import opus-mt-en-de -o runs/opus",
    )
    parser.add_argument(
        "folder", metavar="DIR", help="folder with config.json, model.safetensors, vocab.json and both .spm files"
    )
    parser.add_argument("-o", "--output", required=True, metavar="RUN", help="output folder (must not exist)")


def add_data(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "data",
        "List the built-in data sets, or write one out as text files.",
        "transduce data",
        "transduce data multi30k-en-de -o multi30k",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a data set (default: list all)")
    parser.add_argument("-o", "--output", metavar="DIR", help="output folder (needed with NAME)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def add_prepare(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "prepare",
        "Preprocess a corpus that does not fit in memory: `train` does the same before it begins. The tokenizer is "
        "trained on an even sample of the pairs. Settings can be overridden as for `train`.",
        "transduce prepare my.toml",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="settings file for `train`")
    parser.add_argument("--init-from", metavar="RUN", help="use the tokenizer of another run")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def add_benchmark(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "benchmark",
        description="Measure training or decoding speed, and how close it is to the limit of this machine.",
        epilog="examples:\n  transduce benchmark train --model tiny\n  transduce benchmark decode --run runs/en-de",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    topics = parser.add_subparsers(
        dest="topic", required=True, metavar="TOPIC", help="train: training speed; decode: decoding speed"
    )
    training = add_subcommand(
        topics,
        "train",
        "Measure training speed, in target tokens per second.",
        "transduce benchmark train --model tiny --processes 2",
    )
    training.add_argument(
        "--model", choices=["tiny", "small", "base", "big"], default="tiny", help="preset (default: tiny)"
    )
    training.add_argument(
        "--data",
        choices=["multi30k-en-de", "wmt-like"],
        help="wmt-like: random ids, lengths as in WMT (default: multi30k-en-de for tiny and small, else wmt-like)",
    )
    training.add_argument(
        "--steps", type=positive, metavar="N", help="number of timed steps (default: depends on the model)"
    )
    training.add_argument(
        "--batch-tokens", type=positive, default=4096, metavar="N", help="tokens per step (default: 4096)"
    )
    training.add_argument("--processes", type=positive, default=1, metavar="N", help="worker processes (default: 1)")
    decoding = add_subcommand(
        topics,
        "decode",
        "Measure how many outputs per second a run decodes, from text to text.",
        "transduce benchmark decode --run runs/en-de",
    )
    decoding.add_argument("--run", required=True, metavar="RUN", help="run folder")
    decoding.add_argument("--source", metavar="FILE", help="source lines (default: the run's validation lines)")
    decoding.add_argument("--int8", action="store_true", help="use 8-bit integer arithmetic")
    for topic in (training, decoding):
        topic.add_argument("-o", "--output", metavar="FILE", help="also write the JSON object to a file")
        topic.add_argument("--json", action="store_true", help=JSON_HELP)
