"""The machine that a measurement was made on, and what it did to it: model, stolen time, memory held, code measured.

Nothing here imports torch by itself: the version is told by `transduce --help`.
"""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CPU_INFO, _STAT, _STATUS, _CLEAR = (Path("/proc", *name.split("/")) for name in (
    "cpuinfo", "stat", "self/status", "self/clear_refs"
))  # fmt: skip

# A container's microseconds of processor time, and in how many: of control groups of version 2, and of version 1.
_QUOTAS = [
    [Path("/sys/fs/cgroup/cpu.max")],
    [Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")],
]


def cpu_model() -> str:
    """The name that the CPU gives itself, or else its kind."""
    try:
        lines = _CPU_INFO.read_text().split("\n")
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """As many as the machine has, whoever may use them."""
    return os.cpu_count() or 1


def usable_cores() -> int:
    """How many cores this process may use, at least 1: also within a container that is given less than the machine."""
    num = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else num_cores()
    for files in _QUOTAS:
        try:
            quota, period = (int(word) for path in files for word in path.read_text().split())
        except (OSError, ValueError):  # no such files, or no quota: "max"
            continue
        if quota > 0:  # the older files say -1 where there is none
            num = min(num, max(1, round(quota / period)))
    return num


def device_name(device: "torch.device") -> str:
    """The name of the GPU, or of the CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


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


def forget_peak_memory(device: "torch.device") -> None:
    """From here on `peak_memory` counts, where the machine can be told so; else from the start of this process."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            _CLEAR.write_text("5")
        except OSError:
            return


def peak_memory(device: "torch.device") -> float:
    """The most MiB that this process held: of the GPU if it computes there, else of the machine's memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = dict(line.split(":", 1) for line in _STATUS.read_text().split("\n") if ":" in line)
        return int(status["VmHWM"].split()[0]) / 2**10
    except (OSError, KeyError):  # not Linux, or a sandbox that does not tell
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 2**10)


def version() -> str:
    """The version of this package; "0+unknown" of a checkout that is not installed."""
    try:
        return metadata.version("transduce")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def commit() -> str | None:
    """The commit of the checkout that this code lies in, "-dirty" if files differ from it; None if in no checkout."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run([*command, "--exclude=*"], capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def short_commit(full: str | None) -> str:
    """Its first twelve digits, with the "-dirty" if it has one; of None, "unknown"."""
    digits, _, dirty = (full or "unknown").partition("-")
    return f"{digits[:12]}{dirty and f'-{dirty}'}"
