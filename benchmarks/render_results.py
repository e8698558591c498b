"""Writes docs/RESULTS.md and its pictures from the records of `transduce reproduce`, quality.py and ledger.py.

render_results.py FILE...    adds the result of a seed, written by `transduce reproduce NAME -o FILE`, and renders
render_results.py --check    says whether the document agrees with the records
"""

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from transduce.cli.benchmark.tables import short_commit
from transduce.cli.recipes import Recipe, Row, find_recipe, list_recipes, rows_of
from transduce.evaluation.definitions import DEFINITIONS
from transduce.learn.canvas import FAINT, MARKERS, SERIES, Picture, canvas

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT = DOCS / "RESULTS.md"
TITLES = {"transduce": "transduce", "joeynmt": "JoeyNMT", "huggingface": "Hugging Face Seq2SeqTrainer"}
HEAD = """# Results

Every number below comes from the command next to it and from JSON files in the repository (`recipes/`,
`benchmarks/results/`), and can be reproduced: `transduce reproduce NAME` trains one row, scores it once on its test
sets and, where several seeds are recorded, says whether the result agrees with them. `transduce reproduce` alone
lists the rows.

Means are over seeds, ± is the standard deviation between seeds, and brackets are the range of the 95 % bootstrap
intervals over test segments. Test sets were scored once for each seed of a finished recipe. Settings were chosen on
validation data; but two decisions were made with test scores known: that validation loss says more than validation
BLEU, and which of several finished recipes to keep. Core-minutes are the minutes of training and validation times the
cores that a run used; CPU time is that of the whole command except the final scoring. Commits are those of a run's
sessions, in order; the last session also did the scoring, and may have done nothing else. Runs from before commits
were recorded had theirs filled in by hand (docs/LOG.md names them).
"""


def main() -> int:
    wants_check = sys.argv[1:] == ["--check"]
    for path in sys.argv[1:] if not wants_check else []:
        take_in(json.loads(Path(path).read_text(encoding="utf-8")))
    recipes = list_recipes()
    text = "\n".join([HEAD, overview(recipes), *(section(recipe) for recipe in recipes), beside_others(), ledger()])
    if not wants_check:
        DOCUMENT.write_text(text, encoding="utf-8")
        draw(recipes)
        return 0
    if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print("docs/RESULTS.md does not agree with the records: run benchmarks/render_results.py")
    return 1


def take_in(found: dict[str, Any]) -> None:
    """Add the result of a seed to those of its recipe, replacing an earlier one of that seed."""
    recipe = find_recipe(found["recipe"])
    if found["settings"] != recipe.settings:
        sys.exit(f"seed {found['seed']} of {recipe.name} was trained with settings that differ from the recipe's.")
    others = [run for run in recipe.results if run["seed"] != found["seed"]]
    rows = sorted([*others, found], key=lambda run: run["seed"])
    recipe.results_path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def overview(recipes: Sequence[Recipe]) -> str:
    """All recipes in one table: the mean of each score, the best published score, and the core-minutes of a seed."""
    rows = []
    for recipe in recipes:
        minutes = [cores_of(run) * run["wall_seconds"] / 60 for run in recipe.results]
        mean = f"{statistics.mean(minutes):.0f}" if minutes else ""
        for row in rows_of(recipe, recipe.results):
            best = (max if row.is_higher_better else min)(row.published.values(), default=None)
            others = "" if best is None else f"{best:.2f}"
            name = f"[{recipe.name}](#{recipe.name})"
            rows.append(
                [name, row.test, label_of(row.metric), f"**{row.mean:.2f}**", str(len(row.values)), others, mean]
            )
    head = ["recipe", "test set", "score", "ours, mean", "seeds", "best published", "core-minutes"]
    return "\n".join([*table(head, rows), ""])


def section(recipe: Recipe) -> str:
    """One recipe: its scores beside published ones, and its cost."""
    lines = [f"## {recipe.name}", "", f"{recipe.title}.", ""]
    if not recipe.results:
        return "\n".join([*lines, "Not measured yet.", ""])
    rows = rows_of(recipe, recipe.results)
    others = [published.by for published in recipe.published]
    lines += table(
        ["test set", "score", f"ours, {rows[0].seeds}", *others],
        [[row.test, label_of(row.metric), ours(recipe, row), *(told(row, by) for by in others)] for row in rows],
    )
    head = ["seed", "parameters", "steps", "cores", "wall", "CPU", "machine", "commits"]
    lines += ["", *table(head, [spent(run) for run in recipe.results])]
    signatures = {run["scores"][row.test][row.metric]["signature"] for run in recipe.results for row in rows}
    lines += ["", f"`transduce reproduce {recipe.name}`; settings in `recipes/{recipe.name}.toml`.", ""]
    if recipe.published:
        lines += [f"![Validation scores against core-minutes](pictures/{recipe.name}.png)", ""]
    lines += [f"Signature: `{signature}`" for signature in sorted(signatures)]
    return "\n".join([*lines, ""])


def beside_others() -> str:
    """This toolkit and others, on the same pairs for the same minutes."""
    found = recorded("quality")
    title = "## Other toolkits in equal time\n"
    if found is None:
        return f"{title}\nNot measured yet.\n"
    rows = []
    for name, peer in found["peers"].items():
        scores = [f"{s['value']:.2f} [{s['low']:.2f}, {s['high']:.2f}]" for s in peer["test"].values()]
        differences = [found["comparisons"].get(f"{name} {metric}") for metric in peer["test"]]
        ahead = [
            f"{d['difference']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}], p {d['p_value']:.3f}"
            for d in differences
            if d
        ]
        when = f"{peer['measured']}, `{short_commit(peer['commit'])}`"
        rows.append([TITLES[name], f"{peer['minutes']:.0f}", *scores, *(ahead or ["", ""]), when])
    return "\n".join(
        [
            title,
            "Tatoeba, English to German, with the same minutes and threads for each toolkit on "
            f"{found['machine']['cores']} cores of {found['machine']['device']}, all of them "
            "with the subwords of the recipe `tatoeba`: `benchmarks/quality.py FOLDER` (benchmarks/README.md has the "
            "settings of each).",
            "",
            *table(["", "minutes", "test BLEU", "test chrF", "our lead, BLEU", "our lead, chrF", "measured"], rows),
            "",
            "![Validation BLEU against core-minutes](pictures/quality.png)",
            "",
        ]
    )


def ledger() -> str:
    """What each known trick is worth."""
    title = "## What each known trick is worth\n"
    found = recorded("ledger")
    if found is None:
        return f"{title}\nNot measured yet.\n"
    lines = [
        title,
        "Tokenized BLEU on the validation part of Multi30k with one thing changed at a time, and the difference to the "
        "baseline with its 95 % paired bootstrap interval.",
        "",
    ]
    if answering := found.get("answering"):
        lines += [
            f"**In decoding**: `{answering['recipe']}`, seed {answering['seed']}. "
            f"{how_measured(answering, 'answering RUN RAW', [answering['commit']])}",
            "",
            *table(["changed", "BLEU", "difference", "how"], list(map(trick, answering["rows"]))),
            "",
            "**In scoring**: different metrics, whose values cannot be compared with each other; raw text is from "
            f"`{answering['raw_recipe']}`, seed {answering['raw_seed']}.",
            "",
            *table(["scored", "BLEU", "", "signature"], list(map(trick, answering["scored_otherwise"]))),
            "",
        ]
    training = found.get("training")
    if training is None:
        lines += ["**In training**: not measured yet.", ""]
    else:
        rows = training["rows"]
        commits = list(dict.fromkeys(commit for row in rows for commit in row.get("commits", [])))
        lines += [
            f"**In training**: `{training['recipe']}` with {training['steps']:,} steps on one thread. Intervals are "
            "over segments only: the other seeds show what chance in training adds. Everything else was tuned for the "
            "baseline, which favors the baseline; and few steps favor what learns fast. "
            f"{how_measured(training, 'training FOLDER', commits)}",
            "",
            *table(["changed", "BLEU", "difference", "how", "parameters"], list(map(trick, rows))),
            "",
        ]
    return "\n".join(lines)


def how_measured(part: dict[str, Any], words: str, commits: Sequence[str | None]) -> str:
    names = ", ".join(f"`{short_commit(commit)}`" for commit in commits or [None])
    return (
        f"`benchmarks/ledger.py {words}`, {part['measured']}, {part['machine']['cores']} cores of "
        f"{part['machine']['device']}, torch {part['versions']['torch']}, commit{'s' * (len(commits) > 1)} {names}."
    )


def trick(row: dict[str, Any]) -> list[str]:
    """What was changed, its score, the difference to the baseline, the options, and the size if it was trained."""
    score = "diverged" if row["score"] is None else f"{row['score']:.2f}"
    told = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" if "difference" in row else ""
    how = row["how"].replace("|", "\\|")  # or a cell would end there
    size = [f"{row['parameters']:,}"] if "parameters" in row else []
    return [row["changed"], score, told, f"`{how}`" if how else "", *size]


def recorded(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def draw(recipes: Sequence[Recipe]) -> None:
    """Validation scores against core-minutes: the toolkits on the same data, and each recipe's seeds."""
    if found := recorded("quality"):
        figure, (axis,) = canvas(width=7.5, height=4.0)
        for number, (name, peer) in enumerate(found["peers"].items()):
            curve(axis, peer["validations"], "bleu", cores=peer["threads"], label=TITLES[name], number=number)
        axis.set(title="Tatoeba, English to German", ylabel="validation BLEU, greedy")
        finish(figure, axis, "quality")
    for recipe in recipes:
        if not recipe.results or not recipe.published:
            continue
        figure, (axis,) = canvas(width=7.5, height=4.0)
        metric = recipe.metrics[0]
        for number, run in enumerate(recipe.results):
            name = f"seed {run['seed']}"
            curve(axis, run["validations"], metric, cores=cores_of(run), label=name, number=number)
        axis.set(title=recipe.name, ylabel=f"validation {label_of(metric)}, greedy")
        finish(figure, axis, recipe.name)


def cores_of(run: dict[str, Any]) -> int:
    return int(run["processes"] * run["threads"])


def curve(axis: Axes, rows: Sequence[dict[str, Any]], metric: str, *, cores: int, label: str, number: int) -> None:
    minutes = [cores * row["seconds"] / 60 for row in rows]
    style = {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
    axis.plot(minutes, [row[metric] for row in rows], label=label, **style)


def finish(figure: Picture, axis: Axes, name: str) -> None:
    axis.set(xlabel="core-minutes of training", xlim=(0, None))
    axis.grid(color=FAINT)
    axis.legend()
    figure.savefig(DOCS / f"pictures/{name}.png", metadata={"Software": None})


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def label_of(metric: str) -> str:
    return DEFINITIONS[metric].label


def ours(recipe: Recipe, row: Row) -> str:
    found = [run["scores"][row.test][row.metric] for run in recipe.results]
    interval = f"[{min(f['low'] for f in found):.2f}, {max(f['high'] for f in found):.2f}]"
    spread = "" if math.isnan(row.spread) else f" ± {row.spread:.2f}"
    return f"**{row.mean:.2f}**{spread} {interval}"


def told(row: Row, by: str) -> str:
    return f"{row.published[by]:.2f}" if by in row.published else ""


def spent(run: dict[str, Any]) -> list[str]:
    """The cost of a seed, and where it was trained."""
    wall, cpu = ("" if run[name] is None else f"{run[name] / 60:.1f} min" for name in ("wall_seconds", "cpu_seconds"))
    machine = f"{run['machine']['device']}, torch {run['versions']['torch']}, {run['measured']}"
    numbers = [f"{run[name]:,}" for name in ("seed", "parameters", "steps")]
    commits = ", ".join(f"`{short_commit(commit)}`" for commit in run["commits"])
    return [*numbers, str(cores_of(run)), wall, cpu, machine, commits]


if __name__ == "__main__":
    sys.exit(main())
