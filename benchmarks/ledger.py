"""What each known trick is worth on models of ours, on the validation part of Multi30k:

    benchmarks/ledger.py answering RUN RAW
        a finished run of the recipe `multi30k-tok` answers with one thing changed at a time, and its answers are scored
        in another way; so are those of RAW, a run of `multi30k`, which has raw text. Minutes.
    benchmarks/ledger.py training FOLDER
        the recipe with fewer steps, and again with one thing changed at a time. Two runs at once, about 40 minutes;
        what is in FOLDER already is gone on with.

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
from prepare_work import read_split

from transduce import __version__
from transduce.cli.console import refuse_missing_folder
from transduce.cli.recipes import commits_of, differences_from, find_recipe
from transduce.config.settings import ExperimentConfig, carry_over, load_config
from transduce.data.pairs import Pairs
from transduce.devices import machine
from transduce.errors import DivergedError
from transduce.evaluation.metrics import compare, evaluate
from transduce.files.atomic import write_atomically
from transduce.runs.folder import RunFolder
from transduce.runs.run import load

HERE = Path(__file__).parent
RECIPE, RAW_RECIPE = "multi30k-tok", "multi30k"
STEPS = 1500
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
    "seed 3": "--training.seed 3",
    "labels not smoothed": "--training.label_smoothing 0",
    "two vocabularies, of at most as many pieces each": "--tokenizer.joint false",
    "embeddings and output not shared": "--model.tie_embeddings false",
    "no weight decay": "--optim.weight_decay 0",
    "sinusoidal positions": "--model.positions sinusoidal",
    "no dropout": "--model.dropout 0",
    "Muon for matrices": "--optim.method muon",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what each known trick is worth.")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/ledger.json")
    parts = parser.add_subparsers(dest="part", required=True)
    answering = parts.add_parser("answering")
    answering.add_argument("run", type=Path, help=f"of the recipe {RECIPE}")
    answering.add_argument("raw", type=Path, help=f"of the recipe {RAW_RECIPE}")
    training = parts.add_parser("training")
    training.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    refuse_missing_folder(str(arguments.output))
    parts_before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    how = {
        "recipe": RECIPE,
        "machine": {"device": machine.cpu_model(), "cores": machine.num_cores()},
        "versions": {"transduce": __version__, "torch": torch.__version__},
        "commit": machine.commit(),  # of the code that was read: another one may be made meanwhile
        "measured": datetime.now(UTC).date().isoformat(),
    }
    if arguments.part == "answering":
        refuse_other_run(arguments.run, RECIPE)
        refuse_other_run(arguments.raw, RAW_RECIPE)
        found = answered(arguments.run) | scored(arguments.run, arguments.raw)
    else:
        found = trained(arguments.folder)
    text = json.dumps(parts_before | {arguments.part: found | how}, indent=1)
    write_atomically(arguments.output, f"{text}\n".encode())


def answered(run: Path) -> dict[str, Any]:
    """The run with one thing changed in its search or its weights."""
    given = {name: (answers_of(run, change), change) for name, change in ANSWERS.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, number in WEIGHTS.items():
            other = Path(folder) / str(number)
            how = f"transduce average --last {number}"
            subprocess.run([sys.executable, "-m", *how.split(), str(run), "-o", str(other)], check=True)
            given[name] = answers_of(other), how
    return {"seed": config_of(run).training.seed, "rows": beside_baseline(given, validation_of(run))}


def scored(run: Path, raw: Path) -> dict[str, Any]:
    """Answers scored in another way: no difference is tested, as the numbers are not of one kind."""
    ways = {
        "as in the published tables": (run, METRIC, str),
        "13a on the same answers": (run, "bleu", str),
        "raw text, 13a": (raw, "bleu", str),
        "raw text, 13a, in lower case": (raw, "bleu", str.lower),
    }
    rows = []
    for name, (folder, metric, form) in ways.items():
        answers, references = answers_of(folder), validation_of(folder).tgt
        (score,) = evaluate([metric], list(map(form, answers)), [list(map(form, references))])
        rows.append({"changed": name, "how": score.signature, "score": round(score.value, 2)})
    return {"raw_recipe": RAW_RECIPE, "raw_seed": config_of(raw).training.seed, "scored_otherwise": rows}


def trained(folder: Path) -> dict[str, Any]:
    """The recipe with fewer steps, and with one thing changed in its training."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = {name: folder / name.replace(" ", "-").replace(",", "") for name in TRAININGS}
    if others := [
        run for run in runs.values() if (run / "run.json").exists() and config_of(run).training.steps != STEPS
    ]:
        sys.exit(f"{others[0]} was planned for other steps than {STEPS:,}: take another FOLDER.")
    with ThreadPoolExecutor(2) as pool:
        ended = dict(zip(TRAININGS, pool.map(lambda name: train(name, runs[name]), TRAININGS), strict=True))
    if not ended[BASELINE]:
        sys.exit("the baseline diverged: there is nothing to compare with.")
    given = {name: (answers_of(runs[name]), change) for name, change in TRAININGS.items() if ended[name]}
    rows = beside_baseline(given, validation_of(runs[BASELINE]))
    for row in rows:
        run = RunFolder.open(runs[row["changed"]])
        parameters, _ = run.read_model()
        row |= {"parameters": sum(value.numel() for value in parameters.values()), "commits": commits_of(run)}
    diverged = [{"changed": name, "how": TRAININGS[name], "score": None} for name in TRAININGS if not ended[name]]
    return {"steps": STEPS, "rows": [*rows, *diverged]}


def train(name: str, run: Path) -> bool:
    """Trains with that one thing changed, going on with what is there; whether it came to its end, or diverged."""
    command = [sys.executable, "-m", "transduce", "train", str(find_recipe(RECIPE).config_path), "--run-dir", str(run)]
    words = f"--resume --quiet --device cpu --threads 1 --processes 1 --training.steps {STEPS}"
    words += f" --training.validate_every {STEPS}"
    status = subprocess.run([*command, *words.split(), *TRAININGS[name].split()]).returncode
    if status not in {0, DivergedError.exit_status}:
        sys.exit(f"{name}: training ended with status {status}; the same command goes on.")
    print(f"{name}: {'diverged' if status else 'trained'}", flush=True)
    return status == 0


def refuse_other_run(run: Path, name: str) -> None:
    """Exits if the run is not one of the recipe to the last setting, from its first step to its last.

    The seed is its own.
    """
    recipe, config, folder = find_recipe(name), config_of(run), RunFolder.open(run)
    seed = config.training.seed
    is_finished = folder.checkpoints()[-1:] == [config.training.steps]
    if (
        config != carry_over(recipe.config(seed), config)
        or differences_from(recipe, folder, seed=seed)
        or not is_finished
    ):
        sys.exit(
            f"{run} was not trained as the recipe {name} says, from its first step to its last: give the folder of "
            f"`transduce reproduce {name}`."
        )


def config_of(run: Path, *changes: str) -> ExperimentConfig:
    return load_config(RunFolder.open(run).config_text, str(run), changes)


@cache
def answers_of(run: Path, change: str = "") -> list[str]:
    """Its answers to the validation part of its own data, searched as the recipe says but for `change`."""
    decoding = config_of(run, *change.split()).decoding
    return load(run, device="cpu", decoding=decoding).predict(validation_of(run).src)


def validation_of(run: Path) -> Pairs:
    return read_split(config_of(run).data.dataset, "valid")


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
