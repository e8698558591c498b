"""Subcommands for experiments: train, settings, init, compare, score, average, reproduce."""

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
    number_from_0,
    positive,
    steps,
)


def add_train(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "train",
        "Train with the settings in a TOML file. Each setting can be overridden on the command line; all of them are "
        "listed below.",
        "transduce init pairs.tsv > my.toml && transduce train my.toml",
        "transduce train my.toml --model.dropout 0.2 --training.steps 5000 --run-dir runs/b",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="settings; `transduce init` prints a file to start from")
    parser.add_argument("--run-dir", metavar="DIR", help=RUN_DIR_HELP.format("CONFIG"))
    parser.add_argument("--resume", action="store_true", help=RESUME_HELP)
    parser.add_argument(
        "--accept-changes", action="store_true", help="with --resume: allow changed settings, and record them"
    )
    parser.add_argument("--init-from", metavar="RUN", help="start from the weights and the tokenizer of another run")
    add_processes(parser)
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to the output folder")
    parser.add_argument("--seed", type=number_from_0, metavar="N", help="short for --training.seed")
    parser.add_argument(
        "--print-config", action="store_true", help="print all settings as TOML, with the overrides, without training"
    )
    parser.more_help = _help_of_settings


def _help_of_settings() -> str:
    from transduce.cli.settings import formatted  # here: no other command waits for it
    from transduce.config.reference import all_settings

    return f"settings:\n{formatted(all_settings())}"


def add_settings(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "settings",
        "Look up the settings of a training run: what each means, its type and its default.",
        "transduce settings model",
        "transduce settings learning_rate",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a section or a setting (default: all)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def add_init(subparsers: Subparsers) -> None:
    parser = add_subcommand(
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


def add_compare(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "compare",
        "Test whether two models differ significantly on a test set (paired bootstrap or approximate randomization).",
        "transduce compare runs/a runs/b --source test.en --target test.de",
        "transduce compare runs/a runs/b --source test.en --target test.de --metric chrf --method randomization",
    )
    parser.add_argument("run_a", metavar="RUN_A", help="run folder")
    parser.add_argument("run_b", metavar="RUN_B", help="run folder to compare with it")
    add_references(parser)
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="a metric that `evaluate` takes (default: bleu, or exact_match if no reference has four tokens)",
    )
    parser.add_argument(
        "--method",
        type=lambda word: word.replace("randomisation", "randomization"),  # its name in version 0.1
        choices=["bootstrap", "randomization"],
        default="bootstrap",
        help="paired test (default: bootstrap)",
    )
    parser.add_argument(
        "--seed", type=number_from_0, default=12345, metavar="N", help="random seed of the resampling (default: 12345)"
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    add_decoding(parser)


def add_score(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "score",
        "Compute the log-probability (natural logarithm) of given outputs: one number per pair and line. With "
        "--per-token, the least likely pairs of a corpus are often its errors.",
        "transduce score runs/en-de pairs.tsv --per-token",
        "transduce score runs/en-de --source test.en --target test.de --json",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="source TAB target per line (default: standard input)"
    )
    parser.add_argument(
        "--per-token", action="store_true", help="divide by the number of tokens, to compare pairs of different lengths"
    )
    parser.add_argument("--source", metavar="FILE", help="source lines, instead of FILE")
    parser.add_argument("--target", metavar="FILE", help="the output to score for each source line")
    parser.add_argument("-o", "--output", metavar="FILE", help=OUTPUT_HELP)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line, with confidence and all tokens"
    )


def add_average(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "average",
        "Average the weights of several checkpoints of a run into a new run (section 6.1 of the paper).",
        "transduce average runs/en-de --last 5 -o runs/averaged",
        "transduce average runs/en-de --steps 4000,4500,5000 -o runs/averaged",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=positive, metavar="N", help="the N most recent checkpoints")
    which.add_argument("--steps", type=steps, metavar="A,B,C", help="the checkpoints of these steps")
    parser.add_argument("-o", "--output", required=True, metavar="RUN2", help="output folder (must not exist)")


def add_reproduce(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers,
        "reproduce",
        "Train a recipe of docs/RESULTS.md, score it, and compare with the recorded result. Without a name, list the "
        "recipes with recorded and published results.",
        "transduce reproduce",
        "transduce reproduce cmudict-g2p --seed 2",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe")
    parser.add_argument("--seed", type=number_from_0, default=1, metavar="N", help="random seed (default: 1)")
    parser.add_argument("--run-dir", metavar="DIR", help="output folder (default: runs/NAME-SEED)")
    parser.add_argument("--resume", action="store_true", help=RESUME_HELP)
    parser.add_argument("--processes", type=positive, metavar="N", help="worker processes (default: 2; on a GPU 1)")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the JSON object to a file")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
