"""What `fit` comes to, beside what is published and beside settings chosen by hand:

    benchmarks/fit.py words FOLDER DATA [--languages ady hun] [--split dev] [--seeds 1 2] [--checkout PATH]
    benchmarks/fit.py sentences FOLDER [--settings NAME ...] [--minutes 10]

`words` lets `fit` have the training files of SIGMORPHON 2021, task 1 (DATA has `ady_train.tsv` and so on) and counts
the wrong words of the split. `sentences` trains the recipe `tatoeba` with one thing changed for the same minutes, then
`fit` on the same pairs, and compares the outputs on the test part. What is in FOLDER already is kept, so that it can be
measured in several sessions. The machine should do nothing else. benchmarks/README.md says what the results hold.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from prepare_work import read_split
from workers import in_lines

from transduce.data.pairs import read_pairs
from transduce.devices import machine
from transduce.evaluation.metrics import compare, evaluate, group_by_source

HERE = Path(__file__).parent
RECIPE, OURS = "tatoeba", "fit"
# Share of wrong words, in per cent, of the baseline of the shared task, an ensemble of neural transducers.
BASELINE = {
    "low": {"ady": 22, "ice": 12, "ita": 19, "khm": 34, "lav": 55, "rum": 10, "slv": 49},
    "medium": {
        "arm_e": 7.0, "dut": 14.7, "geo": 0.0, "hbs_latn": 32.1, "hun": 1.8, "jpn_hira": 5.2, "kor": 16.3,
        "vie_hanoi": 2.5,
    },
}  # fmt: skip
# The recipe, which has 5,000 steps, cut to the minutes; and with these changes.
SETTINGS = {
    "recipe": "",
    "1,024 tokens a step": "--training.micro_batches 2",
    "4,096 tokens a step": "--training.micro_batches 8",
    "learning rate 0.006": "--optim.learning_rate 0.006",
    "learning rate 0.0025": "--optim.learning_rate 0.0025",
    "no dropout": "--model.dropout 0",
    "dropout 0.1": "--model.dropout 0.1",
    "at most 4,000 subwords": "--tokenizer.vocab_size 4000",
    "Adam": "--optim.method adam --optim.learning_rate 0.003",
    "3 + 3 layers": "--model.num_encoder_layers 3 --model.num_decoder_layers 3",
    "6 + 2 layers": "--model.num_encoder_layers 6 --model.num_decoder_layers 2",
    "feed-forward 512": "--model.d_ff 512",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Lets fit train, and compares what comes.")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/fit.json")
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("words")
    part.add_argument("folder", type=Path)
    part.add_argument("data", type=Path)
    part.add_argument("--languages", nargs="+", default=[name for group in BASELINE.values() for name in group])
    part.add_argument("--split", choices=("dev", "test"), default="test")
    part.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    part.add_argument("--minutes", type=float, default=4)
    part.add_argument("--checkout", type=Path, default=HERE.parent, help="whose fit (default: this one)")
    part = parts.add_parser("sentences")
    part.add_argument("folder", type=Path)
    part.add_argument("--settings", nargs="+", choices=[*SETTINGS, OURS], default=[*SETTINGS, OURS])
    part.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = words(arguments) if arguments.part == "words" else sentences(arguments)
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    how = {"minutes": arguments.minutes, "machine": machine.cpu_model(), "cores": machine.num_cores()}
    arguments.output.write_text(in_lines(results | {arguments.part: how | rows}))


def words(arguments: argparse.Namespace) -> dict[str, Any]:
    """Wrong words by language and seed, and the means of both groups beside the baseline."""
    rows, data = [], arguments.data
    for seed in arguments.seeds:
        for language in arguments.languages:
            run = arguments.folder / f"{language}-{seed}"
            train = data / f"{language}_train.tsv"
            fit = ["fit", train, "--minutes", arguments.minutes, "--seed", seed, "--run-dir", run]
            trained(run, arguments.checkout, fit)
            pairs = read_pairs([data / f"{language}_{arguments.split}.tsv"])
            outputs = predicted(run, arguments.checkout, pairs.src, arguments.split)
            _, hypotheses, references = group_by_source(pairs.src, outputs, [pairs.tgt])
            (score,) = evaluate(["word_error"], hypotheses, references)
            rows.append({"language": language, "seed": seed, "wrong": round(score.value, 1), **facts_of(run)})
            print(json.dumps(rows[-1]), flush=True)
    wrong = defaultdict(list)
    for row in rows:
        wrong[row["language"]].append(row["wrong"])
    means = {}
    for group, published in BASELINE.items():
        if languages := [language for language in published if language in wrong]:
            ours = round(mean(mean(wrong[language]) for language in languages), 2)
            means[group] = {"wrong": ours, "baseline": round(mean(published[name] for name in languages), 2)}
    print(json.dumps(means))
    return {"split": arguments.split, "means": means, "rows": rows}


def sentences(arguments: argparse.Namespace) -> dict[str, Any]:
    """BLEU of each setting on the test part, and what it is ahead of fit, with the paired interval."""
    pairs = {split: read_split(f"{RECIPE}-en-de", split) for split in ("train", "test")}
    file = arguments.folder / "train.tsv"
    file.write_text("".join(f"{src}\t{tgt}\n" for src, tgt in zip(pairs["train"].src, pairs["train"].tgt, strict=True)))
    config = HERE.parent / f"recipes/{RECIPE}.toml"
    outputs, rows = {}, []
    for name in arguments.settings:
        run = arguments.folder / name.replace(" ", "-").replace(",", "")
        limit = ["--training.steps", 0, "--training.validate_every", 0, "--training.minutes", arguments.minutes]
        by_hand = ["train", config, *limit, *SETTINGS.get(name, "").split()]
        words = ["fit", file, "--minutes", arguments.minutes] if name == OURS else by_hand
        trained(run, HERE.parent, [*words, "--run-dir", run])
        outputs[name] = predicted(run, HERE.parent, pairs["test"].src, "test")
        (bleu,) = evaluate(["bleu"], outputs[name], [pairs["test"].tgt])
        rows.append(
            {"settings": name, "changed": SETTINGS.get(name, ""), "bleu": round(bleu.value, 2), **facts_of(run)}
        )
        print(json.dumps(rows[-1]), flush=True)
    if OURS in outputs:
        for row in rows:
            difference = compare("bleu", outputs[row["settings"]], outputs[OURS], [pairs["test"].tgt])
            row["fit_minus_it"] = [
                round(number, 2) for number in (difference.difference, difference.low, difference.high)
            ]
    return {"rows": rows}


def trained(run: Path, checkout: Path, words: list[object]) -> None:
    """Trains into `run` unless that is done."""
    if not (run / "done").exists():
        transduce(checkout, [*words, "--quiet", *["--resume"] * (run / "run.json").exists()])
        (run / "done").touch()


def predicted(run: Path, checkout: Path, sources: list[str], split: str) -> list[str]:
    """The outputs of `run`, which it keeps."""
    file = run / f"{split}.outputs"
    if not file.exists():
        (run / f"{split}.inputs").write_text("".join(f"{source}\n" for source in sources))
        transduce(checkout, ["predict", run, run / f"{split}.inputs", "-o", file, "--quiet"])
    return file.read_text().removesuffix("\n").split("\n")


def transduce(checkout: Path, words: list[object]) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve() / "src")}
    subprocess.run([sys.executable, "-P", "-m", "transduce", *map(str, words)], env=environment, check=True)


def facts_of(run: Path) -> dict[str, Any]:
    """How a run was trained."""
    facts = json.loads((run / "run.json").read_text())["facts"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    started = facts["started"]
    return {
        "steps": rows[-1]["step"],
        "processes": started.get("processes", 1),
        "threads": started["threads"],
        "commit": (started["commit"] or "")[:12],
    }


if __name__ == "__main__":
    main()
