"""What each known trick is worth on models of ours, on the validation part of Multi30k:

    benchmarks/ledger.py answering RUN [--raw RUN]
        a finished run of the recipe `multi30k-tok` answers with one thing changed at a time, and its answers are scored
        in another way; so are those of a run of `multi30k`, which has raw text. Minutes.
    benchmarks/ledger.py training FOLDER
        the recipe with fewer steps, and again with one thing changed at a time. Two runs at once, about an hour; what
        is in FOLDER already is gone on with.

The test parts are not looked at. docs/RESULTS.md shows the tables.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from prepare_work import load
from workers import in_lines

from transduce import __version__, machine
from transduce.checkpoint import RunFolder
from transduce.metrics import compare, evaluate
from transduce.predictor import Predictor
from transduce.reading import Pairs
from transduce.reproducing import find_recipe
from transduce.settings import load_config

HERE = Path(__file__).parent
RECIPE = find_recipe("multi30k-tok")
STEPS = 2000
METRIC = "tokenized_bleu"
BASELINE = "baseline"
# One thing changed in answering, and how.
ANSWERS = {
    BASELINE: "",
    "greedy": "--decoding.beam_size 1",
    "beam 10": "--decoding.beam_size 10",
    "no length penalty": "--decoding.length_penalty 0",
    "the paper's length penalty, 0.6": "--decoding.length_norm wu --decoding.length_penalty 0.6",
    "the paper's length penalty, 1": "--decoding.length_norm wu --decoding.length_penalty 1",
    "the paper's length penalty, 2": "--decoding.length_norm wu --decoding.length_penalty 2",
}
# Other weights of the same run, as `transduce average --last NUMBER` makes them.
WEIGHTS = {"the last weights, not averaged": 1, "the mean of the last five checkpoints": 5}
# One thing changed in training, and how.
TRAININGS = {
    BASELINE: "",
    "seed 2": "--training.seed 2",
    "labels not smoothed": "--training.label_smoothing 0",
    "two vocabularies, as many pieces in each": "--tokenizer.joint false",
    "embeddings and output not shared": "--model.tie_embeddings false",
    "no weight decay": "--optim.weight_decay 0",
    "sinusoidal positions": "--model.positions sinusoidal",
    "post-norm": "--model.norm_first false",
    "Muon for matrices": "--optim.method muon",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what each known trick is worth.")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/ledger.json")
    parts = parser.add_subparsers(dest="part", required=True)
    answering = parts.add_parser("answering")
    answering.add_argument("run", type=Path)
    answering.add_argument("--raw", type=Path, help="a run of the recipe multi30k")
    training = parts.add_parser("training")
    training.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    how = {
        "recipe": RECIPE.name,
        "machine": {"device": machine.device_name(torch.device("cpu")), "cores": machine.num_cores()},
        "versions": {"transduce": __version__, "torch": torch.__version__},
        "commit": machine.commit(),  # before training: another one may be made meanwhile
        "measured": datetime.now(UTC).date().isoformat(),
    }
    if arguments.part == "answering":
        found = answered(arguments.run) | scored(arguments.run, arguments.raw)
    else:
        found = trained(arguments.folder)
    parts_before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    arguments.output.write_text(in_lines(parts_before | {arguments.part: found | how}))


def answered(run: Path) -> dict[str, Any]:
    """The run with one thing changed in its search or its weights."""
    refuse_other(run, RECIPE.name)
    given = {name: (answers_of(run, change), change) for name, change in ANSWERS.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, number in WEIGHTS.items():
            other = Path(folder) / str(number)
            how = f"transduce average --last {number}"
            subprocess.run([sys.executable, "-m", *how.split(), str(run), "-o", str(other)], check=True)
            given[name] = answers_of(other), how
    seed = load_config(RunFolder.open(run).config, str(run)).training.seed
    return {"seed": seed, "rows": beside_baseline(given, validation_of(run))}


def scored(run: Path, raw: Path | None) -> dict[str, Any]:
    """Answers scored in another way: no difference is tested, as the numbers are not of one kind."""
    ways = {"as in the published tables": (run, METRIC, str), "13a on the same answers": (run, "bleu", str)}
    if raw is not None:
        refuse_other(raw, "multi30k")
        ways |= {"raw text, 13a": (raw, "bleu", str), "raw text, 13a, in lower case": (raw, "bleu", str.lower)}
    rows = []
    for name, (folder, metric, form) in ways.items():
        answers, references = answers_of(folder), validation_of(folder).tgt
        (score,) = evaluate([metric], list(map(form, answers)), [list(map(form, references))])
        rows.append({"changed": name, "how": score.signature, "score": round(score.value, 2)})
    return {"scored_otherwise": rows}


def trained(folder: Path) -> dict[str, Any]:
    """The recipe with fewer steps, and with one thing changed in its training."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = {name: folder / name.replace(" ", "-").replace(",", "") for name in TRAININGS}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: train(name, runs[name]), TRAININGS))
    given = {name: (answers_of(runs[name]), change) for name, change in TRAININGS.items()}
    return {"steps": STEPS, "rows": beside_baseline(given, validation_of(runs[BASELINE]))}


def train(name: str, run: Path) -> None:
    """Trains with that one thing changed; goes on with what is there."""
    command = [sys.executable, "-m", "transduce", "train", str(RECIPE.config_path), "--run-dir", str(run)]
    words = f"--resume --quiet --threads 1 --training.steps {STEPS} --training.validate_every {STEPS}"
    subprocess.run([*command, *words.split(), *TRAININGS[name].split()], check=True)
    print(f"{name}: trained", flush=True)


def refuse_other(run: Path, name: str) -> None:
    """Exits if the run is not one of the recipe; the seed is its own."""
    config = load_config(RunFolder.open(run).config, str(run))
    if config != find_recipe(name).config(config.training.seed):
        sys.exit(f"{run} was not trained as the recipe {name} says: give the folder of `transduce reproduce {name}`.")


@cache
def answers_of(run: Path, change: str = "") -> list[str]:
    """Its answers to the validation part of its own data, searched as the recipe says but for `change`."""
    config = load_config(RunFolder.open(run).config, str(run), change.split())
    return Predictor.load(run, decoding=config.decoding).predict(validation_of(run).src)


def validation_of(run: Path) -> Pairs:
    return load(load_config(RunFolder.open(run).config, str(run)).data.dataset, "valid")


def beside_baseline(given: dict[str, tuple[Sequence[str], str]], validation: Pairs) -> list[dict[str, Any]]:
    """Tokenised BLEU of each way's answers, and its difference to the baseline's by paired bootstrap."""
    rows = []
    for name, (answers, how) in given.items():
        found = compare(METRIC, given[BASELINE][0], answers, [validation.tgt])
        row = {"changed": name, "how": how, "score": round(found.score_b, 2)}
        if name != BASELINE:
            row |= {key: round(getattr(found, key), 4) for key in ("difference", "low", "high", "p_value")}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
