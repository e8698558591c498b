"""Decoding speed of a run on this machine: text in, text out, through the real predictor."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from transduce.cli.benchmark import usage
from transduce.cli.benchmark.blocks import had_by_others, shares_of_others, spread, where_timed
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1},
    "beam5": {"beam_size": 5, "length_penalty": 1.0, "length_norm": "power"},
}
BATCHES = ("all", "64", "1")
MAX_LINES, MAX_SINGLE_LINES = 1_000, 100  # in a block: in batches, and one at a time
_BLOCKS = 3
_LINES_TO_WARM_UP = 64


def measure_decoding(predictor: Predictor, lines: Sequence[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Measure two searches in batches of all lines, of 64 and of 1; blocks of every mode in turn.

    Tokens are those of the outputs, with end symbols; lines without text, which the model never sees, are left out.
    The first output is timed separately, as it prepares the weights.
    """
    lines = [line for line in lines if line.strip()][:MAX_LINES]
    defaults = predictor.decoding
    searches = {
        search: DecodingConfig(max_len_ratio=defaults.max_len_ratio, max_len_extra=defaults.max_len_extra, **settings)
        for search, settings in SEARCHES.items()
    }
    started = time.perf_counter()
    predictor.predict(lines[:1], decoding=searches["greedy"])
    first_seconds = time.perf_counter() - started
    for decoding in searches.values():
        predictor.predict(lines[:_LINES_TO_WARM_UP], decoding=decoding)
    blocks = []
    usage.forget_peak_memory(predictor.device)
    for number in range(_BLOCKS):
        report(f"block {number + 1} of {_BLOCKS}")
        for search, decoding in searches.items():
            for batch in BATCHES:
                blocks.append({"mode": f"{search}/{batch}"} | _time_block(predictor, lines, batch, decoding))
    modes = list(dict.fromkeys(block["mode"] for block in blocks))
    return {
        "benchmark": "decode",
        "settings": {
            "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
            "int8": predictor.is_int8,
            "target_ids": predictor.tokenizer.num_target_ids,
            "lines": len(lines),
            "single_lines": len(lines[:MAX_SINGLE_LINES]),
            "blocks": _BLOCKS,
            "threads": torch.get_num_threads(),
        },
        **where_timed(predictor.device),
        "first_answer_ms": round(1e3 * first_seconds, 1),
        "peak_memory_mib": round(usage.peak_memory(predictor.device), 1),
        **shares_of_others(blocks),
        "modes": {mode: _summary([block for block in blocks if block["mode"] == mode]) for mode in modes},
        "blocks": blocks,
    }


def _time_block(predictor: Predictor, lines: Sequence[str], batch: str, decoding: DecodingConfig) -> dict[str, Any]:
    at_once = len(lines) if batch == "all" else int(batch)
    lines = lines[:MAX_SINGLE_LINES] if at_once == 1 else lines
    num_tokens, seconds = 0, []
    machine_before, cpu_seconds = usage.cpu_seconds(), time.process_time()
    for first in range(0, len(lines), at_once):
        started = time.perf_counter()
        outputs = predictor.predict_n_best(lines[first : first + at_once], 1, decoding=decoding)
        seconds.append(time.perf_counter() - started)
        num_tokens += sum(len(best.ids) + 1 for (best,) in outputs)
    cpu_seconds, machine_after = time.process_time() - cpu_seconds, usage.cpu_seconds()
    block: dict[str, Any] = {"lines": len(lines), "tokens": num_tokens}
    block |= {"seconds": sum(seconds), "cpu_seconds": cpu_seconds}
    block |= had_by_others(machine_before, machine_after, cpu_seconds)
    return block | ({"latencies_ms": [round(1e3 * value, 2) for value in seconds]} if at_once == 1 else {})


def _summary(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "tokens_per_second": spread([block["tokens"] / block["seconds"] for block in blocks]),
        "sentences_per_second": spread([block["lines"] / block["seconds"] for block in blocks]),
        "tokens_per_cpu_second": spread([block["tokens"] / block["cpu_seconds"] for block in blocks]),
    }
    if "latencies_ms" in blocks[0]:
        latencies = sorted(value for block in blocks for value in block["latencies_ms"])
        summary["latency_ms"] = {f"p{part}": latencies[-(-len(latencies) * part // 100) - 1] for part in (50, 90, 99)}
    return summary
