"""What each known trick is worth on a model of ours, on the validation part of Multi30k:

    benchmarks/ledger.py FOLDER [-o FILE]

A baseline (the recipe `multi30k-tok`, fewer steps, one thread) is trained, and again with one thing changed at a time;
its answers are searched and scored in other ways, too. Two runs at once, about two hours in all; what is in FOLDER
already is gone on with. The test parts are not looked at. docs/RESULTS.md shows the table.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
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
STEPS, SAVED_LAST = 3000, 5
BASELINE, RAW = "baseline", "raw text"
METRIC = "tokenized_bleu"
# One thing changed in training, and how.
TRAININGS = {
    BASELINE: "",
    "seed 2": "--training.seed 2",
    "seed 3": "--training.seed 3",
    "labels not smoothed": "--training.label_smoothing 0",
    "labels smoothed by 0.2": "--training.label_smoothing 0.2",
    "two vocabularies of 6,000": "--tokenizer.joint false",
    "embeddings and output not shared": "--model.tie_embeddings false",
    "sinusoidal positions": "--model.positions sinusoidal",
    "post-norm": "--model.norm_first false",
    "RMSNorm and a gated feed-forward network": "--model.norm rms --model.feed_forward swiglu --model.d_ff 168",
    "Muon for matrices": "--optim.method muon",
    RAW: "--data.dataset multi30k-en-de --validation.metrics bleu --validation.best bleu",
}
# One thing changed in answering with the baseline, and how.
ANSWERS = {
    "greedy": "--decoding.beam_size 1",
    "beam 10": "--decoding.beam_size 10",
    "length penalty 0": "--decoding.length_penalty 0",
    "length penalty 0.6": "--decoding.length_penalty 0.6",
    "length penalty 1": "--decoding.length_penalty 1",
    "length penalty 3": "--decoding.length_penalty 3",
}
# Other weights of the baseline's run, as `transduce average` makes them.
WEIGHTS = {"the last weights, not averaged": 1, f"the mean of {SAVED_LAST} checkpoints": SAVED_LAST}
# Other ways to score, of the baseline's answers or those of the run on raw text.
SCORES = {
    "13a on tokenised text": (BASELINE, "bleu", str),
    "raw text, 13a": (RAW, "bleu", str),
    "raw text, 13a, in lower case": (RAW, "bleu", str.lower),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what each known trick is worth.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results/ledger.json")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: train(folder, name), TRAININGS))
    given = {name: answers_of(run_of(folder, name)) for name in TRAININGS}
    for name, number in WEIGHTS.items():
        given[name] = answers_of(averaged(folder, number))
    for name, change in ANSWERS.items():
        given[name] = answers_of(run_of(folder, BASELINE), change)
    result = {
        "recipe": RECIPE.name,
        "steps": STEPS,
        "rows": [row_of(name, folder, given) for name in given if name != RAW]
        + [scored_row(name, folder, given) for name in SCORES],
        "machine": {"device": machine.device_name(torch.device("cpu")), "cores": machine.num_cores()},
        "versions": {"transduce": __version__, "torch": torch.__version__},
        "commit": machine.commit(),
        "measured": datetime.now(UTC).date().isoformat(),
    }
    arguments.output.write_text(in_lines(result))


def run_of(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "-").replace(",", "")


def train(folder: Path, name: str) -> None:
    """Trains with that one thing changed; goes on with what is there."""
    kept = f"--training.save_every {STEPS // 10} --training.keep_checkpoints {SAVED_LAST}"
    words = f"--resume --quiet --threads 1 --training.steps {STEPS} --training.validate_every {STEPS} {kept}"
    command = [
        sys.executable,
        "-m",
        "transduce",
        "train",
        str(RECIPE.config_path),
        "--run-dir",
        str(run_of(folder, name)),
    ]
    subprocess.run([*command, *words.split(), *TRAININGS[name].split()], check=True)
    print(f"{name}: trained", flush=True)


def averaged(folder: Path, number: int) -> Path:
    out = folder / f"averaged-{number}"
    if not out.exists():
        run = run_of(folder, BASELINE)
        subprocess.run(
            [sys.executable, "-m", "transduce", "average", str(run), "--last", str(number), "-o", str(out)], check=True
        )
    return out


def answers_of(run: Path, change: str = "") -> list[str]:
    """Its answers to the validation part of its own data, searched as the recipe says but for `change`."""
    config = load_config(RunFolder.open(run).config, str(run), change.split())
    return Predictor.load(run, decoding=config.decoding).predict(validation_of(run).src)


def validation_of(run: Path) -> Pairs:
    return load(load_config(RunFolder.open(run).config, str(run)).data.dataset, "valid")


def row_of(name: str, folder: Path, given: dict[str, list[str]]) -> dict[str, Any]:
    """Tokenised BLEU with that one thing changed, and the difference to the baseline by paired bootstrap."""
    references = [validation_of(run_of(folder, BASELINE)).tgt]
    how = {**TRAININGS, **ANSWERS}.get(name) or (f"transduce average --last {WEIGHTS[name]}" if name in WEIGHTS else "")
    found = compare(METRIC, given[BASELINE], given[name], references)
    row = {"changed": name, "how": how, METRIC: round(found.score_b, 2)}
    if name == BASELINE:
        return row
    return row | {key: round(getattr(found, key), 4) for key in ("difference", "low", "high", "p_value")}


def scored_row(name: str, folder: Path, given: dict[str, list[str]]) -> dict[str, Any]:
    """The same answers scored in another way: no difference is tested, as the numbers are not of one kind."""
    run, metric, form = SCORES[name]
    references = validation_of(run_of(folder, run)).tgt
    (score,) = evaluate([metric], list(map(form, given[run])), [list(map(form, references))])
    return {"changed": name, "how": score.signature, metric: round(score.value, 2)}


if __name__ == "__main__":
    main()
