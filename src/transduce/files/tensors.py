"""Files of tensors that certify themselves, and what is done with the tensors of several.

A .safetensors file written here carries the SHA-256 of all its bytes inside its own header, computed while the 64
digits of the hash itself read as zeros. So one file is one rename is one commit, any byte that changes is noticed
before a tensor is used, and every other tool still reads an ordinary safetensors file. Nothing is ever unpickled.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transduce.errors import TransduceError
from transduce.files.certified import Entry, check_digest, damaged, header_of, write_certified
from transduce.files.system_errors import explained_read_errors

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
_TENSOR_NAME = re.compile(r"\w+([.-]\w+)*", re.ASCII)  # a name is never a path
MEND_TENSORS = "Restore it from a copy; a checkpoint may be deleted, training then resumes from the one before it."


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file that certifies itself; the same content gives the same bytes in every process.

    The library's own writer orders the metadata differently at each call, so the header is written here.
    """
    # Wide elements first, as the library does it: then every tensor lies at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    _check_names(names, tensors)
    entries = {
        name: Entry(_DTYPE_NAMES[tensor.dtype], list(tensor.shape), tensor.numel() * tensor.element_size())
        for name, tensor in ((name, tensors[name]) for name in names)
    }
    data = (tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data for name in names)
    num_bytes = sum(entry.num_bytes for entry in entries.values())
    write_certified(path, header_of(entries, metadata), num_bytes, data)


def read_tensors(path: Path, *, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors whose names start with `prefix`, without it and on the CPU, and the metadata.

    Every byte is verified first. Raises MissingInputError, or DamagedFileError if a byte is not as written.
    """
    with verified(path) as (file, metadata):
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
        # Cloned, because the library's tensors are windows on the file: a later change to it would change them.
        return {name.removeprefix(prefix): file.get_tensor(name).clone() for name in names}, metadata


def _check_names(names: list[str], tensors: Mapping[str, Tensor]) -> None:
    owners: dict[tuple[int, torch.Size], str] = {}
    for name in names:
        tensor = tensors[name]
        if not _TENSOR_NAME.fullmatch(name):
            raise ValueError(f"A tensor cannot be called {name!r}: letters, digits and '_', with '.' or '-' between.")
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"{name} has type {tensor.dtype}; storable are {', '.join(map(str, _DTYPE_NAMES))}.")
        other = owners.setdefault((tensor.data_ptr(), tensor.shape), name)
        if other != name and tensor.numel():
            raise ValueError(f"{name} is the same memory as {other}: a tied parameter is saved once, under one name.")


@contextmanager
def verified(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file (of safetensors) and its metadata, after the hash of all its bytes was found right."""
    with explained_read_errors(path):
        check_digest(path, MEND_TENSORS)
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if not _TENSOR_NAME.fullmatch(name):
                        raise damaged(path, f"{name!r} is no name for a tensor", MEND_TENSORS)
                metadata = opened.metadata() or {}
                yield opened, {key: metadata[key] for key in sorted(metadata) if key != "sha256"}
        except SafetensorError as error:  # a file made to look right: its hash holds, its content does not
            raise damaged(path, str(error), MEND_TENSORS) from None


def average_tensors(many: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The arithmetic mean (section 6.1), added up in float64; one set beside the sum is in memory at a time.

    Raises TransduceError if the sets differ in a name or a shape, or if there is none.
    """
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    count = 0
    for count, tensors in enumerate(many, start=1):
        if count == 1:
            sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in tensors.items()}
            dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for name in sorted(sums.keys() | shapes.keys()):
            if name not in sums or name not in shapes or sums[name].shape != shapes[name]:
                raise TransduceError(f"Cannot average: {name} differs in presence or shape between set 1 and {count}.")
        for name, tensor in tensors.items():
            sums[name] += tensor
    if not count:
        raise TransduceError("Nothing to average: name at least one checkpoint.")
    return {name: (total / count).to(dtypes[name]) for name, total in sums.items()}
