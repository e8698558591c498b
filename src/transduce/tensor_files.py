"""Files of tensors that certify themselves, and what is done with the tensors of several.

A .safetensors file written here carries the SHA-256 of all its bytes inside its own header, computed while the 64
digits of the hash itself read as zeros. So one file is one rename is one commit, any byte that changes is noticed
before a tensor is used, and every other tool still reads an ordinary safetensors file. Nothing is ever unpickled.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from transduce import files
from transduce.errors import DamagedFileError, TransduceError

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
_TENSOR_NAME = re.compile(r"\w+([.-]\w+)*", re.ASCII)  # a name is never a path
_MAX_HEADER_BYTES = 100_000_000  # of the safetensors format
NO_DIGEST = b"0" * 64
_HEADER_START = b'{"__metadata__":{"sha256":"'
MEND_TENSORS = "Restore it from a copy; a checkpoint may be deleted, training then resumes from the one before it."


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file that certifies itself; the same content gives the same bytes in every process.

    The library's own writer orders the metadata differently at each call, so the header is written here.
    """
    header, names, num_bytes = _header(tensors, metadata)
    with files.explained_write_errors(path, num_bytes), files.replacing(path) as file:
        digest = hashlib.sha256(header)
        file.write(header)
        for name in names:
            data = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.seek(8 + len(_HEADER_START))
        file.write(digest.hexdigest().encode())


def read_tensors(path: Path, *, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors whose names start with `prefix`, without it and on the CPU, and the metadata.

    Every byte is verified first. Raises MissingInputError, or DamagedFileError if a byte is not as written.
    """
    with verified(path) as (file, metadata):
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
        # Cloned, because the library's tensors are windows on the file: a later change to it would change them.
        return {name.removeprefix(prefix): file.get_tensor(name).clone() for name in names}, metadata


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str], int]:
    """The file up to the first tensor, the order of the tensors, and the size of the whole file in bytes."""
    # Wide elements first, as the library does it: then every tensor lies at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    _check_names(names, tensors)
    if "sha256" in metadata:
        raise ValueError("The metadata key 'sha256' is taken: the hash of the file itself is stored under it.")
    entries: dict[str, Any] = {"__metadata__": {"sha256": NO_DIGEST.decode()} | dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        offsets = [start, end]
        entries[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"The header has {len(text):,} bytes; readers accept up to {_MAX_HEADER_BYTES:,}.")
    return len(text).to_bytes(8, "little") + text, names, 8 + len(text) + end


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
    with files.explained_read_errors(path):
        with path.open("rb") as file:
            start, stated = file.read(8 + len(_HEADER_START)), file.read(64)
            digest = hashlib.sha256(start + NO_DIGEST)
            if start[8:] != _HEADER_START or files.digest_rest(file, digest).encode() != stated:
                raise damaged(path, "its SHA-256 is not the one it states", MEND_TENSORS)
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if not _TENSOR_NAME.fullmatch(name):
                        raise damaged(path, f"{name!r} is no name for a tensor", MEND_TENSORS)
                metadata = opened.metadata() or {}
                yield opened, {key: metadata[key] for key in sorted(metadata) if key != "sha256"}
        except SafetensorError as error:  # a file made to look right: its hash holds, its content does not
            raise damaged(path, str(error), MEND_TENSORS) from None


@torch.no_grad()
def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies saved weights into `model`. Raises TransduceError unless names and shapes are just its own."""
    own = dict(model.named_parameters())
    wrong = sorted(own.keys() ^ tensors.keys()) or sorted(
        name for name in own if own[name].shape != tensors[name].shape
    )
    if wrong:
        raise TransduceError(
            f"these weights are of another model: '{wrong[0]}' differs ({len(wrong)} do). Is config.toml their own?"
        )
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


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


def damaged(path: Path | str, reason: str, mend: str) -> DamagedFileError:
    """The error for a file that is not as it was written: why one thinks so, and what to do."""
    return DamagedFileError(f"{path} is damaged: {reason}. {mend}")
