"""How fast a run answers here: text in, text out, through the real predictor."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from transduce import __version__, machine
from transduce.predictor import Predictor

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1},
    "beam5": {"beam_size": 5, "length_penalty": 1.0, "length_norm": "power"},
}
BATCHES = ("all", "64", "1")
MOST_LINES, MOST_SINGLE_LINES = 1_000, 100  # answered in a block: together or by 64, and one at a time
_BLOCKS = 3


def measure_decoding(predictor: Predictor, lines: Sequence[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Answers `lines` by two searches: all at once, 64 at a time, one at a time; blocks of all kinds in turn.

    Tokens are those of the answers, their ends included. The first answer is timed apart: it prepares the weights.
    """
    lines = lines[:MOST_LINES]
    started = time.perf_counter()
    predictor.predict(lines[:1])
    first_answer = time.perf_counter() - started
    blocks = []
    machine.forget_peak_memory(predictor.device)
    for number in range(_BLOCKS):
        report(f"block {number + 1} of {_BLOCKS}")
        for search, settings in SEARCHES.items():
            predictor.decoding = replace(predictor.decoding, temperature=0.0, **settings)
            for batch in BATCHES:
                blocks.append({"mode": f"{search}/{batch}"} | _time_block(predictor, lines, batch))
    modes = list(dict.fromkeys(block["mode"] for block in blocks))
    return {
        "benchmark": "decode",
        "settings": {
            "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
            "target_ids": predictor.tokenizer.num_target_ids,
            "lines": len(lines),
            "single_lines": len(lines[:MOST_SINGLE_LINES]),
            "blocks": _BLOCKS,
            "threads": torch.get_num_threads(),
        },
        "machine": {
            "cpu": machine.cpu_model(),
            "cores": machine.num_cores(),
            "device": machine.device_name(predictor.device),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transduce": __version__},
        "commit": machine.commit(),
        "first_answer_ms": round(1e3 * first_answer, 1),
        "peak_memory_mib": round(machine.peak_memory(predictor.device), 1),
        "modes": {mode: _summary([block for block in blocks if block["mode"] == mode]) for mode in modes},
        "blocks": blocks,
    }


def _time_block(predictor: Predictor, lines: Sequence[str], batch: str) -> dict[str, Any]:
    at_once = len(lines) if batch == "all" else int(batch)
    lines = lines[:MOST_SINGLE_LINES] if at_once == 1 else lines
    num_tokens, seconds, cpu = 0, [], time.process_time()
    for first in range(0, len(lines), at_once):
        started = time.perf_counter()
        answers = predictor.predict_n_best(lines[first : first + at_once], 1)
        seconds.append(time.perf_counter() - started)
        num_tokens += sum(len(best.ids) + 1 for (best,) in answers)
    found: dict[str, Any] = {"lines": len(lines), "tokens": num_tokens, "seconds": sum(seconds)}
    found["cpu_seconds"] = time.process_time() - cpu
    return found | ({"latencies_ms": [round(1e3 * value, 2) for value in seconds]} if at_once == 1 else {})


def _summary(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tokens_per_second": _spread([block["tokens"] / block["seconds"] for block in blocks]),
        "sentences_per_second": _spread([block["lines"] / block["seconds"] for block in blocks]),
        "tokens_per_cpu_second": _spread([block["tokens"] / block["cpu_seconds"] for block in blocks]),
    }
    if "latencies_ms" in blocks[0]:
        latencies = sorted(value for block in blocks for value in block["latencies_ms"])
        found["latency_ms"] = {f"p{part}": latencies[len(latencies) * part // 100] for part in (50, 90, 99)}
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    named = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 1) for name, value in named.items()}
