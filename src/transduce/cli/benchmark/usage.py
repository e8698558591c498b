"""What a measurement took of the machine: time of its cores, and memory."""

import os
import sys
from pathlib import Path

import torch

_STAT, _STATUS, _CLEAR = Path("/proc/stat"), Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cpu_seconds() -> tuple[float, float] | None:
    """CPU time since the machine started, over all cores: had by its programs, and by other guests of the one below.

    None where no file tells.
    """
    try:
        ticks = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:]]
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = ticks[:8]
    except (OSError, ValueError):
        return None
    per_second = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + interrupts + soft_interrupts) / per_second, stolen / per_second


def forget_peak_memory(device: torch.device) -> None:
    """From here on `peak_memory` counts, where the machine can be told so; else from the start of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            _CLEAR.write_text("5")
        except OSError:
            return


def peak_memory(device: torch.device) -> float:
    """The most MiB that this process held: of the GPU if it computes there, else of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = dict(line.split(":", 1) for line in _STATUS.read_text().split("\n") if ":" in line)
        return int(status["VmHWM"].split()[0]) / 2**10
    except (OSError, KeyError):  # not Linux, or a sandbox that does not tell
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 2**10)
