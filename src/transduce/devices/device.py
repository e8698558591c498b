"""The device that a process computes on."""

import os
import platform
from typing import Any

import torch

from transduce.devices import machine
from transduce.errors import TransduceError


def find_device(name: str) -> torch.device:
    """The CPU or CUDA device called `name`; "auto" is the first GPU if there is one, else the CPU.

    Raises TransduceError if the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):  # others, such as mps, lack float64
            raise RuntimeError
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):
        has_gpu = torch.cuda.is_available()
        raise TransduceError(
            f"no device '{name}' is available here (a CPU or an NVIDIA GPU is needed): use "
            f"{'cpu, cuda or cuda:N' if has_gpu else 'cpu'} or auto."
        ) from None
    return device


def local_device(device: torch.device) -> torch.device:
    """The device of this process: on several GPUs, the one numbered by the local rank that `torchrun` sets."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Versions and settings of the machine on which the bits of the weights depend."""
    return {
        "transduce": machine.version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(device),
    }
