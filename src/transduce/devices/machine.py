"""The names of the machine, the package version, and the commit of the code: where a run or a figure comes from.

Nothing here imports torch when it is loaded: `transduce --help` shows the version.
"""

import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# To stop, and one to save; Windows has the first two alone.
SIGNALS = [each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR1")]

# A container's quota of CPU time and the period it holds for, in microseconds: control groups of version 2, version 1.
_QUOTAS = [
    [Path("/sys/fs/cgroup/cpu.max")],
    [Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")],
]
# Its limit of memory and what is taken of it, in bytes; beside them, what of that is files that were read or written.
_MEMORY_LIMITS = [
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
]


def cpu_model() -> str:
    """The model name of the CPU, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Logical cores of the machine, regardless of CPU affinity."""
    return os.cpu_count() or 1


def usable_cores() -> int:
    """Cores that this process may use, at least 1, by its CPU affinity and the quota of its container."""
    num_usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else num_cores()
    for files in _QUOTAS:
        try:
            quota, period = (int(word) for path in files for word in path.read_text().split())
        except (OSError, ValueError):  # no such files, or no quota: "max"
            continue
        if quota > 0:  # the older files say -1 where there is none
            num_usable = min(num_usable, max(1, round(quota / period)))
    return num_usable


def free_memory() -> int:
    """Bytes that this process and others could take without swapping, in the limit of its container.

    Where nothing says so (elsewhere than on Linux), 4 GiB.
    """
    try:
        lines = Path("/proc/meminfo").read_text().split("\n")
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = 4 * 2**30
    for limit, used in _MEMORY_LIMITS:
        try:
            num_used = int(used.read_text()) - _num_inactive(used.with_name("memory.stat"))
            free = min(free, max(0, int(limit.read_text()) - num_used))
        except (OSError, ValueError):  # no such files, or no limit: "max"
            continue
    return free


def _num_inactive(stat: Path) -> int:
    """Bytes of files in memory that the system drops as soon as it is short, by a `memory.stat` of either version."""
    lines = stat.read_text() if stat.exists() else ""
    return max(map(int, re.findall(r"^(?:total_)?inactive_file (\d+)$", lines, re.MULTILINE)), default=0)


def python_module(module: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment variables that run a module of this package in a new process.

    It finds this copy of the package. Without `-P`, Python would look for every package in the current folder first.
    """
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return [sys.executable, "-P", "-m", module], os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def child_processes(module: str, arguments: Sequence[Sequence[object]], **options: Any) -> Iterator[list[Any]]:
    """A block with a process for each list of arguments, which runs a module of this package until the block ends.

    Its standard input is a pipe, which ends with this process; `options` are those of `subprocess.Popen`. It has a
    session of its own and hears no signal to stop or to save, not even one that a scheduler sends to every process of a
    job: they are for this process, which ends the others.
    """
    command, environment = python_module(module)
    options |= {"stdin": subprocess.PIPE, "env": environment | options.get("env", {}), "start_new_session": True}
    children: list[subprocess.Popen[bytes]] = []
    heard = _set_mask("SIG_BLOCK", SIGNALS)  # in this thread, and in its children for good
    try:
        for words in arguments:
            children.append(subprocess.Popen([*command, *map(str, words)], **options))
        _set_mask("SIG_SETMASK", heard)
        yield children
    finally:
        _set_mask("SIG_SETMASK", heard)
        for child in children:
            child.kill()
        for child in children:
            child.communicate()


def _set_mask(how: str, signals: Iterable[int]) -> Iterable[int]:
    """Block signals in this thread, or none but these; returns those that were. Windows knows no such thing."""
    return signal.pthread_sigmask(getattr(signal, how), signals) if hasattr(signal, "pthread_sigmask") else ()


def device_name(device: "torch.device") -> str:
    """The model name of the GPU or the CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def version() -> str:
    """The version of this package; "0+unknown" in a checkout that is not installed."""
    try:
        return metadata.version("transduce")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def commit() -> str | None:
    """The commit of the checkout that holds this code, with "-dirty" if files differ; None outside a checkout."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run([*command, "--exclude=*"], capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
