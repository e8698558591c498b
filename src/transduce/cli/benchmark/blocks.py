"""Statistics of timed blocks: machine and versions, spread, CPU time of other programs."""

import platform
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from transduce.devices import machine


def where_timed(device: torch.device) -> dict[str, Any]:
    """The machine, the versions and the commit of a measurement."""
    return {
        "machine": {
            "cpu": machine.cpu_model(),
            "cores": machine.num_cores(),
            "device": machine.device_name(device),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transduce": machine.version()},
        "commit": machine.commit(),
    }


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Median, minimum and maximum."""
    named = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in named.items()}


def had_by_others(
    before: tuple[float, float] | None, after: tuple[float, float] | None, own_seconds: float
) -> dict[str, float]:
    """CPU seconds of other programs, and of other guests of the hypervisor, from `usage.cpu_seconds` around a block."""
    if before is None or after is None:
        return {}
    busy, stolen = (now - then for then, now in zip(before, after, strict=True))
    return {"others_seconds": max(0.0, busy - own_seconds), "stolen_seconds": stolen}


def shares_of_others(blocks: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The shares of all cores' time that others used during the blocks; None where the machine has no counters."""
    core_seconds = sum(block["seconds"] for block in blocks) * machine.num_cores()
    return {
        f"{who}_share": round(sum(block[f"{who}_seconds"] for block in blocks) / core_seconds, 4)
        if f"{who}_seconds" in blocks[0]
        else None
        for who in ("others", "stolen")
    }
