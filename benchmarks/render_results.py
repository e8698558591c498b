"""Writes docs/RESULTS.md from what `transduce reproduce` recorded.

render_results.py FILE...    takes in what `transduce reproduce NAME -o FILE` wrote of a seed, and renders
render_results.py --check    says if the document is what the records say
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transduce.metric_definitions import DEFINITIONS
from transduce.reproducing import Recipe, Row, find_recipe, list_recipes, rows_of

DOCUMENT = Path(__file__).parents[1] / "docs/RESULTS.md"
HEAD = """# Results

Every number below comes from a command that stands beside it, from JSON that is in the repository
(`src/transduce/recipes/`), and can be had again: `transduce reproduce NAME` trains one row, scores it once on its test
sets and says whether it came out as recorded here. `transduce reproduce` alone lists the rows.

Means are over seeds, ± is their standard deviation, brackets are the range of the 95 % bootstrap intervals over test
segments. Test sets were scored once for each seed of a finished recipe; whatever was chosen was chosen on validation.
"""


def main() -> int:
    for path in [word for word in sys.argv[1:] if word != "--check"]:
        take_in(json.loads(Path(path).read_text(encoding="utf-8")))
    text = "\n".join([HEAD, *(section(recipe) for recipe in list_recipes())])
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print("docs/RESULTS.md is not what was recorded: run benchmarks/render_results.py")
    return 1


def take_in(found: dict[str, Any]) -> None:
    """Puts what came out of a seed beside the others of its recipe, in place of an earlier one of that seed."""
    recipe = find_recipe(found["recipe"])
    others = [run for run in recipe.results if run["seed"] != found["seed"]]
    rows = sorted([*others, found], key=lambda run: run["seed"])
    recipe.results_path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def section(recipe: Recipe) -> str:
    """One recipe: its scores beside published ones, and what it took."""
    lines = [f"## {recipe.name}", "", f"{recipe.title}.", ""]
    if not recipe.results:
        return "\n".join([*lines, "Not measured yet.", ""])
    rows = rows_of(recipe, recipe.results)
    others = [published.by for published in recipe.published]
    lines += table(
        ["test set", "score", f"ours, {len(recipe.results)} seeds", *others],
        [[row.test, label(row), ours(recipe, row), *(told(row, by) for by in others)] for row in rows],
    )
    lines += ["", "| seed | parameters | steps | wall | CPU | machine | commit |", "|---|---|---|---|---|---|---|"]
    lines += [spent(run) for run in recipe.results]
    signatures = {run["scores"][row.test][row.metric]["signature"] for run in recipe.results for row in rows}
    lines += ["", f"`transduce reproduce {recipe.name}`; settings in `src/transduce/recipes/{recipe.name}.toml`.", ""]
    lines += [f"Signature: `{signature}`" for signature in sorted(signatures)]
    return "\n".join([*lines, ""])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def label(row: Row) -> str:
    return f"{DEFINITIONS['word_error' if row.metric == 'wer' else row.metric].label}"


def ours(recipe: Recipe, row: Row) -> str:
    found = [run["scores"][row.test][row.metric] for run in recipe.results]
    interval = f"[{min(f['low'] for f in found):.2f}, {max(f['high'] for f in found):.2f}]"
    spread = "" if math.isnan(row.spread) else f" ± {row.spread:.2f}"
    return f"**{row.mean:.2f}**{spread} {interval}"


def told(row: Row, by: str) -> str:
    return f"{row.published[by]:.2f}" if by in row.published else ""


def spent(run: dict[str, Any]) -> str:
    wall, cpu = ("" if run[name] is None else f"{run[name] / 60:.1f} min" for name in ("wall_seconds", "cpu_seconds"))
    machine = f"{run['machine']['cores']} cores, {run['machine']['device']}, torch {run['versions']['torch']}"
    commit = (run["commit"] or "")[:12]
    return f"| {run['seed']} | {run['parameters']:,} | {run['steps']:,} | {wall} | {cpu} | {machine} | `{commit}` |"


if __name__ == "__main__":
    sys.exit(main())
