"""Tensor files that carry their own hash.

A .safetensors file written here carries the SHA-256 of all its bytes inside its own header (see `files.certified`).
So one file is one rename is one commit, any byte that changes is noticed before a tensor is used, and every other tool
still reads an ordinary safetensors file. Nothing is ever unpickled.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transduce.files.certified import Entry, check_digest, header_of, write_certified
from transduce.files.content import damaged
from transduce.files.system_errors import explained_read_errors

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
_TENSOR_NAME = re.compile(r"\w+([.-]\w+)*", re.ASCII)  # a name is never a path
TENSOR_ADVICE = "Restore it from a copy; a checkpoint may be deleted, training then resumes from the one before it."


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with its own hash; the same content gives the same bytes in every process.

    The library's own writer orders the metadata differently at each call, so the header is written here.
    """
    # Wide elements first, as the library does: then every tensor lies at a multiple of its element's size.
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    _check_names(ordered)
    entries = {
        name: Entry(_DTYPE_NAMES[tensor.dtype], list(tensor.shape), tensor.nbytes) for name, tensor in ordered.items()
    }
    data = (tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data for tensor in ordered.values())
    num_bytes = sum(entry.num_bytes for entry in entries.values())
    write_certified(path, header_of(entries, metadata), num_bytes, data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, on the CPU, and the metadata, among which is the hash of the file ("sha256").

    Every byte is verified first. Raises MissingInputError, or DamagedFileError if a byte is not as written.
    """
    with verified(path) as (file, metadata):
        # Cloned, because the library's tensors are windows on the file: a later change to it would change them.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata  # noqa: SIM118 - not a dict


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    # Two names for one memory would be two tensors after loading: they would drift apart in training.
    owners: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in tensors.items():
        if not _TENSOR_NAME.fullmatch(name):
            raise ValueError(f"A tensor cannot be called {name!r}: letters, digits and '_', with '.' or '-' between.")
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"{name} has type {tensor.dtype}; storable are {', '.join(map(str, _DTYPE_NAMES))}.")
        other = owners.setdefault((tensor.data_ptr(), tensor.shape), name)
        if other != name and tensor.numel():
            raise ValueError(f"{name} is the same memory as {other}: a tied parameter is saved once, under one name.")


@contextmanager
def verified(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """An open safetensors file and its metadata, after a check of the hash of all its bytes."""
    with explained_read_errors(path):
        check_digest(path, TENSOR_ADVICE)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if not _TENSOR_NAME.fullmatch(name):
                        raise damaged(path, f"{name!r} is not a valid tensor name", TENSOR_ADVICE)
                yield file, dict(sorted((file.metadata() or {}).items()))
        except SafetensorError as error:  # a forged file: its hash is right, its content is not
            raise damaged(path, str(error), TENSOR_ADVICE) from None
