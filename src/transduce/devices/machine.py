"""The machine that a run or a measurement was made on, the version of the package, and the commit of its code.

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

# A container's microseconds of processor time, and in how many: of control groups of version 2, and of version 1.
_QUOTAS = [
    [Path("/sys/fs/cgroup/cpu.max")],
    [Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")],
]


def cpu_model() -> str:
    """The name that the CPU gives itself, or else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
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


def python_module(module: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run a module of this package, found where it was found here.

    Without `-P` every package would be looked for in the current folder first, and a file of that name be run.
    """
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return [sys.executable, "-P", "-m", module], os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def device_name(device: "torch.device") -> str:
    """The name of the GPU, or of the CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


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
