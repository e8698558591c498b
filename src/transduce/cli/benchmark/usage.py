"""CPU time of the machine, and peak memory of this process."""

import os
import sys
from pathlib import Path

import torch

_STAT, _STATUS, _CLEAR = Path("/proc/stat"), Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cpu_seconds() -> tuple[float, float] | None:
    """CPU seconds since boot, over all cores: used by this machine, and stolen by other guests of the hypervisor.

    None where /proc/stat does not have them.
    """
    try:
        ticks = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:]]
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = ticks[:8]
    except (OSError, ValueError):
        return None
    per_second = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + interrupts + soft_interrupts) / per_second, stolen / per_second


def forget_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory`, where the system can; else it counts from the start of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            _CLEAR.write_text("5")
        except OSError:
            return


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the GPU if it computes there, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = dict(line.split(":", 1) for line in _STATUS.read_text().split("\n") if ":" in line)
        return int(status["VmHWM"].split()[0]) / 2**10
    except (OSError, KeyError):  # not Linux, or a sandbox without /proc
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
