"""Runs the proofs: the tests marked `proof`, which take minutes each or are whole products of switches.

    tests/proofs.py             all of them, part by part; what passed at this commit is not run again
    tests/proofs.py --sample    of each part as much as its share of a quarter of an hour allows, drawn by the commit

A part is a test file, run in a pytest process of its own. A whole run writes a row for each part into proofs.json as
soon as the part has ended. In a sample, a test that fails is a failure and time that runs out is none: the line of
that part says how many of its tests ran.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests/proofs.json"
SAMPLE_SECONDS = 780  # of a sample in all, beside listing its tests: together within a quarter of an hour
LAST_BEGIN = 0.7  # of its share of the time: later than that a part begins no test
SECONDS_TO_END = 10  # for a part that is interrupted to remove what it has made
WITHOUT_GIT = "unknown"


@dataclass(frozen=True)
class Row:
    """What came of one part."""

    part: str
    commit: str
    passed: int
    skipped: int
    failed: int
    seconds: float
    complete: bool  # every test ran
    failures: tuple[str, ...] = ()
    total: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the proofs.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="test files below tests/ (default: all with proofs)")
    parser.add_argument("--sample", action="store_true", help="a sample within a quarter of an hour; writes nothing")
    arguments = parser.parse_args()
    sizes = part_sizes()
    if unknown := [part for part in arguments.parts if part not in sizes]:
        parser.error(f"no proofs in {', '.join(unknown)}; there are {', '.join(sizes)}")
    parts = arguments.parts or list(sizes)
    return sample(parts, commit()) if arguments.sample else prove(parts, commit())


def commit() -> str:
    """The commit of the code, "-dirty" at its end if files differ from it; the results themselves do not count."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return WITHOUT_GIT


def part_sizes() -> dict[str, int]:
    """How many proofs each test file has, by what pytest itself collects: none can be forgotten."""
    words = [*pytest_words(), "--collect-only", "tests"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise SystemExit(f"the proofs cannot be listed:\n{listed.stdout}{listed.stderr}")
    files = (line.partition("::")[0] for line in listed.stdout.split("\n") if "::" in line)
    return dict(Counter(file.removeprefix("tests/") for file in files))


def pytest_words() -> list[str]:
    return [sys.executable, "-m", "pytest", "-m", "proof", "-o", "timeout=0"]


def prove(parts: list[str], commit: str) -> int:
    """Runs whole parts, one after the other, and records each; the exit status."""
    rows, started = [], time.monotonic()
    for part in parts:
        row = recorded(part, commit)
        if row is None:
            row = run_part(part, commit)
            record(row)
            print(told(row), flush=True)
        else:
            print(f"{part}: passed at this commit before", flush=True)
        rows.append(row)
    return summary(rows, started)


def sample(parts: list[str], commit: str) -> int:
    """Runs a sample of each part, two parts at a time where there are two cores; the exit status."""
    num_at_once = min(2, os.cpu_count() or 1)
    share = SAMPLE_SECONDS * num_at_once / len(parts)
    rows, started = [], time.monotonic()
    with ThreadPoolExecutor(num_at_once) as pool:
        for row in pool.map(partial(run_part, commit=commit, seconds=share), parts):
            print(told(row), flush=True)
            rows.append(row)
    return summary(rows, started)


def run_part(part: str, commit: str, seconds: float | None = None) -> Row:
    """Runs one part, or for so many `seconds` a sample of it."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        words = [*pytest_words(), f"--record={record}", "-p", "no:cacheprovider", f"tests/{part}"]
        if seconds is not None:
            words += [f"--sample-seed={commit}", f"--begin-none-after={LAST_BEGIN * seconds}"]
        started = time.monotonic()
        output, is_cut, status = run_for(words, seconds, record)
        took = time.monotonic() - started
        found = json.loads(record.read_text()) if record.exists() else {}
    counts = {name: found.get(name, 0) for name in ("passed", "skipped", "failed", "total")}
    failures = tuple(found.get("failures", ()))
    if not found or (status not in (0, 1) and not is_cut):  # pytest itself broke
        counts["failed"], failures = counts["failed"] + 1, (*failures, f"pytest ended with status {status}")
    if counts["failed"]:
        print(output, flush=True)
    is_complete = not is_cut and found.get("run") == found.get("total")
    return Row(part, commit, seconds=round(took, 1), complete=is_complete, failures=failures, **counts)


def run_for(words: list[str], seconds: float | None, record: Path) -> tuple[str, bool, int]:
    """Output of a command, whether it was cut off after `seconds`, and its exit status.

    `record` then stays as it was: an interrupted test may take that for a failure.
    """
    with tempfile.TemporaryFile("w+") as output:  # not a pipe: what a test leaves running may hold that open for ever
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        is_cut = not ends_within(process, seconds)
        if is_cut:
            content = record.read_bytes() if record.exists() else b"{}"
            process.send_signal(signal.SIGINT)
            if not ends_within(process, SECONDS_TO_END):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            record.write_bytes(content)
        status = process.wait()
        output.seek(0)
        return output.read(), is_cut, status


def ends_within(process: "subprocess.Popen[bytes]", seconds: float | None) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def recorded(part: str, commit: str) -> Row | None:
    """What is known of a part that passed whole at this very commit."""
    if commit == WITHOUT_GIT or commit.endswith("-dirty") or not RESULTS.exists():
        return None
    for row in json.loads(RESULTS.read_text()):
        if (row["part"], row["commit"], row["complete"], row["failed"]) == (part, commit, True, 0):
            return Row(**row | {"failures": tuple(row["failures"])})
    return None


def record(row: Row) -> None:
    """Writes a row in the place of the part's last one."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = sorted([*(old for old in rows if old["part"] != row.part), asdict(row)], key=lambda row: row["part"])
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows, indent=1) + "\n")
    temporary.replace(RESULTS)


def told(row: Row) -> str:
    """What came of a part, in a line and one for each failure."""
    num_run = row.passed + row.skipped + row.failed
    extent = f"all {row.total}" if row.complete else f"{num_run} of {row.total}, until its time was over"
    lines = [f"{row.part}: {extent}: {counted([row])} in {row.seconds:.0f}s"]
    return "\n".join([*lines, *(f"  FAILED {name}" for name in row.failures)])


def counted(rows: list[Row]) -> str:
    """As pytest says it."""
    counts = {name: sum(getattr(row, name) for row in rows) for name in ("failed", "passed", "skipped")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def summary(rows: list[Row], started: float) -> int:
    """Says what came of all parts, at last in a line like pytest's; the exit status."""
    whole = sum(row.complete for row in rows)
    print(f"{whole} of {len(rows)} parts whole, {sum(row.total for row in rows)} proofs in all")
    print(f"{counted(rows)} in {time.monotonic() - started:.2f}s", flush=True)
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
