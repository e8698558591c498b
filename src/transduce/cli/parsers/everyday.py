"""Everyday subcommands: fit, predict, evaluate, explain, learn."""

from transduce.cli.parsers.base import (
    JSON_HELP,
    OUTPUT_HELP,
    RESUME_HELP,
    RUN_DIR_HELP,
    Subparsers,
    add_decoding,
    add_processes,
    add_references,
    add_subcommand,
    minutes,
    number_from_0,
    positive,
)


def add_fit(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "fit",
        "Train a model on pairs of text, without any settings: tokens, model size, optimizer and schedule are chosen "
        "for the pairs, the time and this machine. Some pairs are held out to validate and test the model.",
        "transduce fit pairs.tsv --minutes 10",
        "transduce fit train.en train.de --valid valid.en valid.de --run-dir runs/en-de",
    )
    parser.add_argument("pairs", nargs="+", metavar="PAIRS", help="a .tsv or .jsonl file, or two parallel text files")
    parser.add_argument("--run-dir", metavar="DIR", help=RUN_DIR_HELP.format("PAIRS"))
    parser.add_argument("--minutes", type=minutes, default=15.0, help="time for preparation and training (default: 15)")
    parser.add_argument("--valid", nargs="+", metavar="FILE", help="validation pairs (default: held out from PAIRS)")
    parser.add_argument("--test", nargs="+", metavar="FILE", help="test pairs (default: held out from PAIRS)")
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="translation, pronunciation, inflection, normalization or arithmetic; decides tokens and metrics "
        "(default: detected from the pairs)",
    )
    parser.add_argument("--init-from", metavar="RUN", help="start from the weights of another run (fine-tuning)")
    add_processes(parser)
    parser.add_argument("--seed", type=number_from_0, default=1, metavar="N", help="random seed (default: 1)")
    parser.add_argument("--resume", action="store_true", help=RESUME_HELP)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the chosen settings and the reasons as TOML, without training"
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def add_predict(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "predict",
        "Turn text into text line by line, as the model was trained to (translate, pronounce, ...): line k of the "
        "output belongs to line k of the input.",
        "echo 'A dog runs.' | transduce predict runs/en-de",
        "transduce predict runs/en-de in.txt -o out.txt --beam-size 1 --forbid Katze",
        aliases=("translate",),
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="input lines (default: standard input)")
    parser.add_argument("-o", "--output", metavar="FILE", help=OUTPUT_HELP)
    parser.add_argument("--n-best", type=positive, default=1, metavar="N", help="outputs per line, joined by tabs")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per line: scores, tokens, alignment, and confidence (the estimated probability "
        "that an output equals a reference, and that each token is the reference's next)",
    )
    add_decoding(parser)
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
    group.add_argument("--min-length", type=number_from_0, metavar="N", help="minimum tokens per output")
    group.add_argument(
        "--max-length", type=positive, metavar="N", help="maximum tokens (default: depends on the source)"
    )
    group.add_argument("--no-repeat-ngram", type=number_from_0, metavar="N", help="repeat no sequence of N tokens")
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, metavar="T", help="sample if above 0; 1: the model's distribution")
    group.add_argument("--top-k", type=number_from_0, metavar="K", help="sample only from the K most likely tokens")
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample only from the most likely tokens whose probabilities add up to P",
    )
    group.add_argument("--seed", type=number_from_0, metavar="N", help="random seed (default: that of the run)")


def add_evaluate(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "evaluate",
        "Score a model on a source file and its reference outputs, with 95 % confidence intervals.",
        "transduce evaluate runs/en-de --source test.en --target test.de",
        "transduce evaluate runs/en-de --source test.en --target test.de --metric bleu,chrf --json",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    add_references(parser)
    parser.add_argument(
        "--metric",
        metavar="NAME,...",
        help="bleu, tokenized_bleu, chrf, ter, wer, cer, per, exact_match, word_error (default: those of the run's "
        "validation). bleu chooses its tokenizer by the script of the references; bleu:13a, bleu:intl, bleu:zh, "
        "bleu:char and bleu:none name one of sacreBLEU's",
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
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    add_decoding(parser)


def add_explain(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "explain",
        "Write a web page that shows how a model arrives at its output for a text: attention, confidence, "
        "probabilities and the search. The page works offline and says what was left out to save space.",
        "transduce explain runs/en-de 'A dog runs.' -o page.html",
        "transduce explain runs/en-de 'A dog runs.' --open",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("text", metavar="TEXT", help="one line of text; write -- before one that begins with a dash")
    parser.add_argument("-o", "--output", metavar="FILE", help=f"{OUTPUT_HELP} (needed unless --open)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser (without -o: a temporary file)")
    add_decoding(parser)


def add_learn(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "learn",
        "Copy the notebooks that explain the Transformer into a folder.",
        "transduce learn my-notebooks",
    )
    parser.add_argument("folder", metavar="DIR", help="output folder")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
