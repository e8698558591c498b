"""What the drivers share: processes seen from outside, and results that a version control can compare."""

import json
import os
from pathlib import Path
from typing import Any


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def cpu_seconds_of(pid: int) -> float:
    """User and system time of all threads, and of the children that have ended."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def peak_memory_of(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def in_lines(result: dict[str, Any]) -> str:
    """JSON with a line for each thing that a reader may want to find or a version to compare."""
    parts = []
    for key, value in result.items():
        if isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values()):
            rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(inner)}" for name, inner in value.items())
            parts.append(f" {json.dumps(key)}: {{\n{rows}\n }}")
        elif isinstance(value, list):
            parts.append(f" {json.dumps(key)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
