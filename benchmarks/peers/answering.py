"""What every worker that answers shares: the lines, read from FOLDER/decode, and obedience to the driver.

A worker answers one line and says how long that took. At `run SEARCH BATCH` it answers the lines of that block, BATCH
at a time, and replies with its seconds, its tokens (ends included) and, for one line at a time, the time of
each. At `answers SEARCH` it gives the texts of its last answers to all lines.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

BEAM_SIZES = {"greedy": 1, "beam5": 5}
NUM_SINGLE_LINES = 100  # answered one at a time

# (texts, beam size, how many at a time) -> answers, number of tokens
Answer = Callable[[list[str], int, int], tuple[list[str], int]]


def folder() -> Path:
    return Path(sys.argv[1]) / "decode"


def serve(title: str, version: str, answer: Answer, *, most_lines: int | None = None) -> None:
    """Obeys for ever; with `most_lines`, only the first so many lines are answered."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a toolkit prints is no answer to the driver
    lines = (folder() / "lines.txt").read_text().removesuffix("\n").split("\n")[:most_lines]
    started = time.perf_counter()
    answer(lines[:1], 1, 1)
    facts = {"title": title, "version": version, "lines": len(lines)}
    print(json.dumps(facts | {"first_answer_ms": round(1e3 * (time.perf_counter() - started), 1)}), file=out)
    given: dict[str, list[str]] = {}
    for words in map(str.split, sys.stdin):
        if words[0] == "answers":
            print(json.dumps(given[words[1]]), file=out)
            continue
        _, search, batch = words
        print(json.dumps(block(answer, lines, search, batch, given)), file=out)
    os._exit(0)


def block(answer: Answer, lines: list[str], search: str, batch: str, given: dict[str, list[str]]) -> dict[str, object]:
    at_once = len(lines) if batch == "all" else int(batch)
    chosen = lines[:NUM_SINGLE_LINES] if at_once == 1 else lines
    num_tokens, seconds, answers = 0, [], []
    for first in range(0, len(chosen), at_once):
        started = time.perf_counter()
        texts, tokens = answer(chosen[first : first + at_once], BEAM_SIZES[search], at_once)
        seconds.append(time.perf_counter() - started)
        answers += texts
        num_tokens += tokens
    if batch == "all":
        given[search] = answers
    found: dict[str, object] = {"lines": len(chosen), "tokens": num_tokens, "seconds": round(sum(seconds), 4)}
    return found | ({"latencies_ms": [round(1e3 * value, 2) for value in seconds]} if at_once == 1 else {})
