"""Writes the tables of benchmarks/README.md from the results; with --check, says whether they are up to date."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transduce.cli.benchmark.tables import short_commit

HERE = Path(__file__).parent
README = HERE / "README.md"
OURS = "transduce"
COLUMNS = ("tokens_per_second", "tokens_per_cpu_second")


def main() -> int:
    text = README.read_text()
    rendered = text
    for name, render in TABLES.items():
        path = HERE / "results" / f"{name}.json"
        table = render(json.loads(path.read_text())) if path.exists() else "Not measured yet."
        rendered = put(rendered, name, table)
    if "--check" not in sys.argv[1:]:
        README.write_text(rendered)
        return 0
    if rendered != text:
        print("the tables of benchmarks/README.md are not those of benchmarks/results: run benchmarks/render.py")
    return int(rendered != text)


def put(text: str, name: str, table: str) -> str:
    """The text with the table between its two markers."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    found = re.search(rf"{re.escape(begin)}\n.*?{re.escape(end)}", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"benchmarks/README.md has no {begin} with a {end} after it")
    return text[: found.start()] + f"{begin}\n{table}\n{end}" + text[found.end() :]


def training(result: dict[str, Any]) -> str:
    work, machine = result["work"], result["machine"]
    about = (
        f"Measured {result['measured']} on {machine['cores']} cores of {machine['cpu']}, {result['rounds']} rounds, "
        f"commit `{short_commit(result['commit'])}`; {work['pairs']:,} pairs, {work['vocabulary']:,} subwords, of "
        f"which {work['target_ids']:,} occur in the targets, {work['target_tokens_per_batch']:,.0f} target tokens in a "
        "planned batch. During the blocks other programs used "
        f"{share_of_cores(result, 'others_seconds'):.1%} of the cores' time, other guests of the machine "
        f"{share_of_cores(result, 'stolen_seconds'):.1%}."
    )
    by_toolkit: dict[str, list[str]] = {}
    for entry, found in result["entries"].items():
        by_toolkit.setdefault(OURS if entry.startswith(OURS) else found["peer"], []).append(entry)
    rows = [best_of(result, entries) for entries in by_toolkit.values()]
    at_best = as_table(
        ["toolkit at its best", "target tokens / second", "to ours", "target tokens / CPU second", "to ours"],
        [cells for _, cells in sorted(rows, key=lambda row: -row[0])],
    )
    entries = as_table(
        ["entry", "target tokens / second", "target tokens / CPU second", "target tokens / step", "parameters", "MiB"],
        [
            [
                f"`{entry}`",
                *(spread(found[column]) for column in COLUMNS),
                f"{found['tokens_per_step']:,}",
                f"{result['peers'][found['peer']]['parameters']:,}",
                f"{found['peak_memory_mib']:,}",
            ]
            for entry, found in result["entries"].items()
        ],
    )
    failed = "".join(f"\n\nNot measured: {name}: {reason}" for name, reason in result["failed"].items())
    return f"{about}\n\n{at_best}\n\n{entries}{failed}"


def best_of(result: dict[str, Any], names: Sequence[str]) -> tuple[float, list[str]]:
    """Of the entries of one toolkit, the best tokens per CPU second, and the row with the best for each column."""
    entries = {name: result["entries"][name] for name in names}
    cells = [result["peers"][entries[names[0]]["peer"]]["title"]]
    speed = 0.0
    for column in COLUMNS:
        speed, name = max((entry[column][0], name) for name, entry in entries.items())
        ratio = entries[name]["ratio"].get(column)
        cells += [f"{spread(entries[name][column])}, `{name}`", "" if ratio is None else f"{ratio:.2f}"]
    return speed, cells


def share_of_cores(result: dict[str, Any], key: str) -> float:
    blocks = result["blocks"]
    return sum(block[key] for block in blocks) / sum(block["seconds"] for block in blocks) / result["machine"]["cores"]


def spread(values: Sequence[float]) -> str:
    middle, least, most = values
    return f"{middle:,.0f} ({least:,.0f} to {most:,.0f})"


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def large_corpus(result: dict[str, Any]) -> str:
    facts = result["facts"]
    about = (
        f"Measured on {facts['cores']} cores of {facts['cpu']}, Python {facts['python']}, torch {facts['torch']}, "
        f"commit `{short_commit(facts['commit'])}`. Seconds are counted from the start of the command; "
        f"the peak is the training process's. The larger corpus changes it by "
        f"{result['peak_mb_more']:+,.0f} MB, compared with the smaller one."
    )
    rows = []
    for found in result["corpora"]:
        prepared, trained = found["prepare"], found["train"]
        speed = prepared.get("pairs_per_second")
        rows.append(
            [
                f"{found['pairs']:,}",
                f"{found['mb_of_text']:,.0f} MB",
                f"{prepared['seconds']:.1f} s" if speed else "in memory",
                f"{speed:,.0f}" if speed else "",
                f"{trained['seconds_to_first_step']:.1f} s",
                f"{trained['peak_mb']:,.0f} MB",
            ]
        )
    head = ["pairs", "text", "prepared in", "pairs / second", "first step after", "peak after 200 steps"]
    return f"{about}\n\n{as_table(head, rows)}"


def decoding(result: dict[str, Any]) -> str:
    machine, model = result["machine"], result["model"]
    about = (
        f"Measured {result['measured']} on {machine['cores']} cores of {machine['cpu']}, {result['rounds']} rounds, "
        f"commit `{short_commit(result['commit'])}`; {model['parameters']:,} parameters, {model['target_ids']:,} "
        f"of {model['vocabulary']:,} subwords can be written, {model['lines']:,} lines of {model['data']}. During the "
        f"blocks other programs used {share_of_cores(result, 'others_seconds'):.1%} of the cores' time, other guests "
        f"of the machine {share_of_cores(result, 'stolen_seconds'):.1%}."
    )
    tables = []
    for mode in dict.fromkeys(entry.split(" ")[0] for entry in result["entries"]):
        names = [entry.split(" ")[1] for entry in result["entries"] if entry.startswith(f"{mode} ")]
        is_single = mode.endswith("/1")
        head = [f"`{mode}`", "tokens / second", "to ours", "sentences / second", "tokens / CPU second", "MiB"]
        rows = []
        for name in names:
            entry, peer = result["entries"][f"{mode} {name}"], result["peers"][name]
            row = [peer["title"], spread(entry["tokens_per_second"]), f"{entry['to_ours']:.2f}"]
            row += [f"{entry[key][0]:,.0f}" for key in ("sentences_per_second", "tokens_per_cpu_second")]
            row.append(f"{entry['peak_memory_mib']:,}")
            if is_single:
                row += [
                    ", ".join(f"{value:.1f}" for value in entry["latency_ms"].values()),
                    f"{peer['first_answer_ms']:,.0f}",
                ]
            else:
                found = peer["quality"].get(mode.split("/")[0], {"bleu": "", "equal_to_ours": ""})
                row += [f"{found['bleu']}", f"{found['equal_to_ours']} of {peer['lines']}"]
            rows.append(row)
        head += ["ms: p50, p90, p99", "first output, ms"] if is_single else ["BLEU", "outputs equal to ours"]
        tables.append(as_table(head, rows))
    failed = [f"Not measured: {name}: {reason}" for name, reason in result.get("failed", {}).items()]
    return "\n\n".join([about, *tables, *failed])


TABLES = {"train": training, "large_corpus": large_corpus, "decode": decoding}

if __name__ == "__main__":
    sys.exit(main())
