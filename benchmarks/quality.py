"""What the same minutes on the same pairs come to, here and with other toolkits:

    benchmarks/quality.py FOLDER [names...] [--minutes M] [--threads 1] [-o FILE]

FOLDER is made by setup.sh. Ours trains as the recipe `tatoeba` says, English to German; each rival for as long as that
took, in the same pieces. It keeps its weights at set times; afterwards each of these answers the validation part
(greedy, no time limit), the best one the test part (beam 5). What is there already is kept, so that the toolkits can be
run in different sittings, and two rivals side by side, a core for each. Run it with the project's own environment.
benchmarks/README.md says what the results hold.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from prepare_work import as_words, read_split, write_work
from workers import in_lines

from transduce.cli.recipes import find_recipe
from transduce.data.batches import encode_pairs
from transduce.data.pairs import Pairs
from transduce.devices import machine
from transduce.evaluation.metrics import compare, evaluate
from transduce.runs.run import load
from transduce.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
RECIPE = "tatoeba"
OURS = "transduce"
METRICS = ("bleu", "chrf")
# Of each rival: its environment, learning rate and tokens a batch.
RIVALS = {"joeynmt": ("joeynmt", 0.002, 2048), "huggingface": ("loops", 0.002, 2048)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains each toolkit for the same minutes and scores the answers.")
    parser.add_argument("folder", type=Path, help="made by setup.sh")
    parser.add_argument("names", nargs="*", help=f"some of {OURS}, {', '.join(RIVALS)} (default: all)")
    parser.add_argument("--minutes", type=float, help="of each rival (default: as many as ours took)")
    parser.add_argument("--threads", type=int, default=1, help="of each toolkit; for ours, processes of one thread")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/quality.json")
    arguments = parser.parse_intermixed_args()
    if unknown := {*arguments.names} - {OURS, *RIVALS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    torch.set_num_threads(arguments.threads)
    folder = arguments.folder.resolve() / "quality"
    tokenizer = prepare(folder)
    for name in arguments.names or [OURS, *RIVALS]:
        (folder / name).mkdir(exist_ok=True)
        found = ours(folder, arguments) if name == OURS else rival(name, folder, tokenizer, arguments)
        (folder / name / "found.json").write_text(json.dumps(found))
        print(json.dumps({name: found["validations"]}), flush=True)
    arguments.output.write_text(in_lines(merged(folder)))


def ours(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe as anyone runs it, and its answers to the test part; goes on with what is there."""
    run, record = folder / OURS / "run", folder / OURS / "record.json"
    if not record.exists():
        how = ["--resume", "--processes", arguments.threads, "--threads", 1, "--run-dir", run, "-o", record]
        subprocess.run([str(word) for word in (sys.executable, "-m", OURS, "reproduce", RECIPE, *how)], check=True)
    found = json.loads(record.read_text())
    if found["settings"] != find_recipe(RECIPE).settings:
        sys.exit(f"{record} is of other settings than the recipe has now: take another folder.")
    answers = load(run).predict(text("test").src)
    return {
        "minutes": found["wall_seconds"] / 60,
        "threads": found["processes"] * found["threads"],
        **{name: found[name] for name in ("validations", "best_step", "measured")},
        "commit": found["commits"][0] if found["commits"] else None,  # that it began with, as of the rivals
        "test": scores(folder, OURS, answers),
    }


def rival(name: str, folder: Path, tokenizer: Tokenizer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains until the minutes are over, unless that was done; answers with what it kept."""
    _, rate, batch_tokens = RIVALS[name]
    minutes, record = arguments.minutes, folder / OURS / "record.json"
    if minutes is None:
        if not record.exists():
            sys.exit(f"how long? Let {OURS} train first, as long as which {name} then does, or give --minutes.")
        minutes = json.loads(record.read_text())["wall_seconds"] / 60
    asked = {"minutes": minutes, "learning_rate": rate, "batch_tokens": batch_tokens}
    told, request = json.dumps(asked | {"threads": arguments.threads}), folder / name / "asked.json"
    if request.exists():
        refuse_other(request, told)
    request.write_text(told)
    kept = folder / name / "snapshots.json"
    begun = folder / name / "begun.json"
    if not begun.exists():  # another commit may be made meanwhile
        begun.write_text(json.dumps({"commit": machine.commit(), "measured": datetime.now(UTC).date().isoformat()}))
    if not kept.exists() or not json.loads(kept.read_text())[-1]["is_last"]:
        run_peer(name, folder, arguments.threads, "train", minutes, rate, batch_tokens, arguments.threads)
    validations = []
    how = {"tokenizer": tokenizer, "threads": arguments.threads}
    snapshots = json.loads(kept.read_text())
    for snapshot in snapshots:
        answers = answered(name, folder, split="valid", snapshot=snapshot["path"], **how)
        (bleu,) = evaluate(["bleu"], answers, [text("valid").tgt], num_resamples=1)
        validations.append({**{key: snapshot[key] for key in ("step", "seconds", "cpu_seconds")}, "bleu": bleu.value})
    best = max(range(len(validations)), key=lambda number: validations[number]["bleu"])
    answers = answered(name, folder, split="test", snapshot=snapshots[best]["path"], **how)
    return {
        **asked,
        **json.loads(begun.read_text()),
        "threads": arguments.threads,
        "validations": validations,
        "best_step": validations[best]["step"],
        "test": scores(folder, name, answers),
    }


def prepare(folder: Path) -> Tokenizer:
    """Writes the pairs in the pieces of our recipe, unless they are there."""
    config = find_recipe(RECIPE).config(seed=1)
    train = text("train")
    tokenizer = Tokenizer.learn(config.tokenizer, train.src, train.tgt)
    kept = folder / "tokenizer.json"
    if kept.exists():
        refuse_other(kept, tokenizer.to_json())
        return tokenizer
    pairs, _ = encode_pairs(tokenizer, train, max_len=config.data.max_len)
    write_work(folder / "work", config.data.dataset, tokenizer, pairs)
    for split in ("valid", "test"):
        lines = [f"{as_words(ids[:-1])}\n" for ids in tokenizer.encode_source(text(split).src)]
        (folder / f"work/{split}.lines").write_text("".join(lines))
    kept.write_text(tokenizer.to_json())  # last: now all is there
    return tokenizer


def refuse_other(path: Path, content: str) -> None:
    """Ends the program if the file says something else than `content`, which the rest was made with."""
    if path.read_text() != content:
        sys.exit(f"{path} is of other settings: remove {path.parent}, or take another FOLDER.")


@cache
def text(split: str) -> Pairs:
    return read_split(find_recipe(RECIPE).config(seed=1).data.dataset, split)


def answered(name: str, folder: Path, *, tokenizer: Tokenizer, split: str, snapshot: str, threads: int) -> list[str]:
    """Greedy answers to the validation part, answers of five beams to the test part."""
    lines, out = folder / f"work/{split}.lines", folder / name / f"{split}.words"
    run_peer(name, folder, threads, "answer", snapshot, lines, out, 1 if split == "valid" else 5)
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


def scores(folder: Path, name: str, answers: Sequence[str]) -> dict[str, Any]:
    """Of the answers to the test part, which are kept to be compared."""
    (folder / name / "answers.json").write_text(json.dumps(answers))
    return {score.name: score.as_dict() for score in evaluate(list(METRICS), answers, [text("test").tgt])}


def merged(folder: Path) -> dict[str, Any]:
    """All toolkits that are done; ours against each rival by paired bootstrap: the difference, its interval, p."""
    done = [name for name in (OURS, *RIVALS) if (folder / name / "found.json").exists()]
    given = {name: json.loads((folder / name / "answers.json").read_text()) for name in done}
    return {
        "peers": {name: json.loads((folder / name / "found.json").read_text()) for name in done},
        "machine": {"device": machine.cpu_model(), "cores": machine.num_cores()},
        "comparisons": {
            f"{name} {metric}": asdict(compare(metric, given[name], given[OURS], [text("test").tgt]))
            for name in done
            for metric in METRICS
            if name != OURS and OURS in done
        },
    }


if __name__ == "__main__":
    main()
