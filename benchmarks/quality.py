"""What the same minutes on the same pairs come to, here and with other toolkits:

    benchmarks/quality.py FOLDER [names...] [--minutes 60] [--threads 1] [-o FILE]

FOLDER is made by setup.sh. Each toolkit has so many minutes of one core, on Tatoeba, English to German, in the pieces
of the recipe `tatoeba`. It keeps its weights at set times; afterwards each of these answers the validation part
(greedy, no time limit), the best one the test part (beam 5). What is there already is kept, so that the toolkits can be
run in different sittings, and two of them side by side on two cores. Run it with the project's own environment.
benchmarks/README.md says what the results hold.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prepare_work import as_words, write_work
from workers import in_lines

from transduce import machine
from transduce.data import encode_pairs
from transduce.datasets import load_split
from transduce.metrics import compare, evaluate
from transduce.predictor import Predictor
from transduce.reading import Pairs
from transduce.reproducing import find_recipe
from transduce.tokenizer import Tokenizer

HERE = Path(__file__).parent
RECIPE = find_recipe("tatoeba")
METRICS = ("bleu", "chrf")
NUM_SNAPSHOTS = 8  # as in peers/minutes.py
# Of each rival: its environment, learning rate and tokens a batch.
RIVALS = {"joeynmt": ("joeynmt", 0.002, 2048), "huggingface": ("loops", 0.002, 2048)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains each toolkit for the same minutes and scores the answers.")
    parser.add_argument("folder", type=Path, help="made by setup.sh")
    parser.add_argument("names", nargs="*", help=f"some of transduce, {', '.join(RIVALS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, help="another peak of the learning rate, for rivals")
    parser.add_argument("--batch-tokens", type=int, help="another size of batches, for rivals")
    parser.add_argument("--threads", type=int, default=1, help="of each toolkit; for ours, processes of one thread")
    parser.add_argument("--prepare", action="store_true", help="write the pairs in pieces, and no more")
    parser.add_argument("--no-test", action="store_true", help="leave the test part alone, as in choosing settings")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/quality.json")
    arguments = parser.parse_intermixed_args()
    folder = arguments.folder.resolve() / "quality"
    tokenizer = prepare(folder)
    if arguments.prepare:
        return
    for name in arguments.names or ["transduce", *RIVALS]:
        trained = train_ours(folder, arguments) if name == "transduce" else train_rival(name, folder, arguments)
        found = trained | {
            "minutes": arguments.minutes,
            "threads": arguments.threads,
            "measured": datetime.now(UTC).date().isoformat(),
            "commit": machine.commit(),
        }
        if name != "transduce":
            found |= score_rival(name, folder, tokenizer, wants_test=not arguments.no_test)
        print(json.dumps({name: found["validations"]}))
        result = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"peers": {}}
        result["peers"][name] = found
        result["comparisons"] = comparisons(folder, list(result["peers"]))
        arguments.output.write_text(in_lines(result))


def prepare(folder: Path) -> Tokenizer:
    """Writes the pairs in the pieces of our recipe, unless they are there."""
    config = RECIPE.config(seed=1)
    text = load("train")
    tokenizer = Tokenizer.learn(config.tokenizer, text.src, text.tgt)
    if not (folder / "work/test.lines").exists():
        pairs, _ = encode_pairs(tokenizer, text, max_len=config.data.max_len)
        write_work(folder / "work", config.data.dataset, tokenizer, pairs)
        for split in ("valid", "test"):
            lines = [f"{as_words(ids[:-1])}\n" for ids in tokenizer.encode_source(load(split).src)]
            (folder / f"work/{split}.lines").write_text("".join(lines))
    return tokenizer


def load(split: str) -> Pairs:
    root = os.environ.get("TRANSDUCE_DATA")
    return load_split(RECIPE.config(seed=1).data.dataset, split, root=Path(root) if root else None)


def train_rival(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains until the minutes are over, unless that was done."""
    _, rate, batch_tokens = RIVALS[name]
    rate, batch_tokens = arguments.rate or rate, arguments.batch_tokens or batch_tokens
    (folder / name).mkdir(parents=True, exist_ok=True)
    kept = folder / name / "snapshots.json"
    if not kept.exists() or len(json.loads(kept.read_text())) < NUM_SNAPSHOTS:
        threads = arguments.threads
        run_peer(name, folder, threads, "train", arguments.minutes, rate, batch_tokens, threads)
    return {"learning_rate": rate, "batch_tokens": batch_tokens}


def score_rival(name: str, folder: Path, tokenizer: Tokenizer, *, wants_test: bool) -> dict[str, Any]:
    """Answers the validation part with every snapshot, the test part with the best one; what that came to."""
    validations = []
    for kept in json.loads((folder / name / "snapshots.json").read_text()):
        answers = answered(name, folder, tokenizer, "valid", kept["path"], beam_size=1)
        (bleu,) = evaluate(["bleu"], answers, [load("valid").tgt], num_resamples=1)
        validations.append(
            {"step": kept["steps"], **{k: kept[k] for k in ("seconds", "cpu_seconds")}, "bleu": bleu.value}
        )
    if not wants_test:
        return {"validations": validations}
    best = max(range(len(validations)), key=lambda number: validations[number]["bleu"])
    path = json.loads((folder / name / "snapshots.json").read_text())[best]["path"]
    answers = answered(name, folder, tokenizer, "test", path, beam_size=5)
    return {"validations": validations, "best_step": validations[best]["step"], "test": scores(folder, name, answers)}


def answered(name: str, folder: Path, tokenizer: Tokenizer, split: str, snapshot: str, beam_size: int) -> list[str]:
    lines, out = folder / f"work/{split}.lines", folder / name / f"{split}.words"
    run_peer(name, folder, 2, "answer", snapshot, lines, out, beam_size)
    return [
        tokenizer.decode_target([int(word[1:]) for word in line.split() if word[1:].isdigit()])
        for line in out.read_text().removesuffix("\n").split("\n")
    ]


def run_peer(name: str, folder: Path, threads: int, what: str, *words: object) -> None:
    python = folder.parent / RIVALS[name][0] / "bin/python"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    command = [python, HERE / "peers" / f"quality_{name}.py", what, folder, *words]
    with (folder / name / "log").open("a") as log:
        subprocess.run([str(word) for word in command], env=environment, stdout=log, stderr=log, check=True)


def train_ours(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe as anyone runs it, and its answers to the test part; goes on with what is there."""
    run, record = folder / "transduce", folder / "transduce.json"
    if not record.exists():
        how = ["--resume", "--processes", arguments.threads, "--threads", 1, "--run-dir", run, "-o", record]
        words = [sys.executable, "-m", "transduce", "reproduce", RECIPE.name, *how]
        subprocess.run([str(word) for word in words], check=True)
    found = json.loads(record.read_text())
    answers = Predictor.load(run).predict(load("test").src)
    return {
        "validations": found["validations"],
        "best_step": found["best_step"],
        "cpu_seconds": found["cpu_seconds"],
        "test": scores(folder, "transduce", answers),
    }


def scores(folder: Path, name: str, answers: list[str]) -> dict[str, Any]:
    """Of the answers to the test part, which are kept to be compared."""
    (folder / f"{name}.answers").write_text("".join(f"{answer}\n" for answer in answers))
    return {score.name: score.as_dict() for score in evaluate(list(METRICS), answers, [load("test").tgt])}


def comparisons(folder: Path, names: list[str]) -> dict[str, Any]:
    """Ours against each rival by paired bootstrap: the difference, its interval, p."""
    given = {
        name: path.read_text().removesuffix("\n").split("\n")
        for name in names
        if (path := folder / f"{name}.answers").exists()
    }
    return {
        f"{name} {metric}": asdict(compare(metric, given[name], given["transduce"], [load("test").tgt]))
        for name in given
        if name != "transduce" and "transduce" in given
        for metric in METRICS
    }


if __name__ == "__main__":
    main()
