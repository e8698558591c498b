"""The run folder, the only bridge between training and use, and the files in it that certify themselves.

A .safetensors file written here carries the SHA-256 of all its bytes inside its own header, computed while the 64
digits of the hash itself read as zeros. So one file is one rename is one commit, any byte that changes is noticed
before a tensor is used, and every other tool still reads an ordinary safetensors file. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transduce import files
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError

FORMAT_VERSION = 1

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
_TENSOR_NAME = re.compile(r"\w+([.-]\w+)*", re.ASCII)  # a name is never a path
_MAX_HEADER_BYTES = 100_000_000  # of the safetensors format
_NO_DIGEST = b"0" * 64
_HEADER_START = b'{"__metadata__":{"sha256":"'
_RECORD_START = b'{\n  "sha256": "'
_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})\.safetensors", re.ASCII)
_OWN_NAMES = (
    "config.toml",
    "tokenizer.json",
    "run.json",
    "model.safetensors",
    "checkpoints",
    "metrics.jsonl",
    "run.lock",
)
_MEND_TENSORS = "Restore it from a copy; a checkpoint may be deleted, training then resumes from the one before it."
_MEND_TEXT = "Restore it from a copy, or start a new run in another --run-dir."


# Files of tensors


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
    with _verified(path) as (file, metadata):
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
    entries: dict[str, Any] = {"__metadata__": {"sha256": _NO_DIGEST.decode()} | dict(sorted(metadata.items()))}
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
def _verified(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file (of safetensors) and its metadata, after the hash of all its bytes was found right."""
    with files.explained_read_errors(path):
        with path.open("rb") as file:
            start, stated = file.read(8 + len(_HEADER_START)), file.read(64)
            digest = hashlib.sha256(start + _NO_DIGEST)
            if start[8:] != _HEADER_START or files.digest_rest(file, digest).encode() != stated:
                raise _damaged(path, "its SHA-256 is not the one it states", _MEND_TENSORS)
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if not _TENSOR_NAME.fullmatch(name):
                        raise _damaged(path, f"{name!r} is no name for a tensor", _MEND_TENSORS)
                metadata = opened.metadata() or {}
                yield opened, {key: metadata[key] for key in sorted(metadata) if key != "sha256"}
        except SafetensorError as error:  # a file made to look right: its hash holds, its content does not
            raise _damaged(path, str(error), _MEND_TENSORS) from None


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


# The folder


class RunFolder:
    """One run on disk. Whoever writes holds `lock()`; anyone may read at any time. Copy it anywhere, it still works.

    `run.json` makes a folder a run: it is written last, hashes itself, and holds the hashes of the two texts beside
    it. Raises RunFolderError where the disk refuses a write, DamagedFileError where bytes are not as written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._is_locked = False

    @classmethod
    def create(cls, path: Path, *, config: str, tokenizer: str, facts: dict[str, Any]) -> "RunFolder":
        """A new run. Raises RunFolderError if the folder is in use for anything else, or cannot be written."""
        run = cls(path)
        run._refuse_other_use()
        with files.explained_write_errors(run.path):
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            files.sync_folder(run.path.absolute().parent)
        with run.lock():
            run._refuse_other_use()  # another process may have been faster
            # In this order: `config.toml` alone in a folder is then never ours, and never overwritten.
            files.write_atomically(run.path / "tokenizer.json", tokenizer.encode())
            files.write_atomically(run.path / "config.toml", config.encode())
            texts = {"config.toml": config, "tokenizer.json": tokenizer}
            run._write_record({name: [files.sha256_of(text.encode())] for name, text in texts.items()}, facts)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run. Raises MissingInputError, naming the runs nearby, if there is none."""
        run = cls(path)
        if not (run.path / "run.json").is_file():
            nearby = _runs_in(run.path) or _runs_in(run.path.parent)
            raise MissingInputError(f"{run.path}: no run here (a run folder has a run.json in it).{nearby}")
        run._record()
        return run

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other process from training here, until the block or the process ends, however it ends."""
        with _open_locked(self.path):
            self._is_locked = True
            self.clean()
            try:
                yield
            finally:
                self._is_locked = False

    def clean(self) -> None:
        """Removes the temporary files of killed processes. Only under the lock, where nobody else writes any."""
        assert self._is_locked
        for folder in (self.path, self._checkpoint_folder):
            files.remove_temporaries(folder)

    # What the run is

    @property
    def config(self) -> str:
        """The text of `config.toml`, verified."""
        return self._text("config.toml")

    @property
    def tokenizer(self) -> str:
        """The text of `tokenizer.json`, verified."""
        return self._text("tokenizer.json")

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` records of the data and the machine."""
        return self._record()["facts"]

    def update_facts(self, facts: dict[str, Any]) -> None:
        """Adds `facts` to those recorded, replacing those of the same name."""
        record = self._record()
        self._write_record(record["files"], record["facts"] | facts)

    def rewrite_config(self, config: str) -> None:
        """Replaces `config.toml`. In between, `run.json` accepts the old text and the new: no crash parts them."""
        record, old, new = self._record(), files.sha256_of(self.config.encode()), files.sha256_of(config.encode())
        self._write_record(record["files"] | {"config.toml": [old, new]}, record["facts"])
        files.write_atomically(self.path / "config.toml", config.encode())
        self._write_record(record["files"] | {"config.toml": [new]}, record["facts"])

    # The weights

    def write_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Replaces the weights everyone uses. `metadata` is anything JSON can hold."""
        own = {"metadata": json.dumps(metadata, sort_keys=True), "tokenizer": self._tokenizer_sha256}
        write_tensors(self.path / "model.safetensors", tensors, own)

    def read_model(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights everyone uses, and their metadata."""
        path = self.path / "model.safetensors"
        tensors, own = read_tensors(path)
        return tensors, self._own_metadata(path, own, "metadata")

    def write_checkpoint(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
    ) -> None:
        """Writes what resuming at `step` needs, then removes all but the newest `keep` checkpoints.

        Those of later steps go as well: whoever writes `step` resumed before them, perhaps because they are damaged.
        """
        if keep < 1:
            raise ValueError(f"keep ({keep}) must be at least 1: the checkpoint just written.")
        with files.explained_write_errors(self._checkpoint_folder):
            self._checkpoint_folder.mkdir(exist_ok=True)
        own = {"state": json.dumps(state, sort_keys=True), "step": str(step), "tokenizer": self._tokenizer_sha256}
        write_tensors(self._checkpoint_path(step), tensors, own)
        steps = self.checkpoints()
        kept = [other for other in steps if other <= step][-keep:]
        for path in [self._checkpoint_path(other) for other in steps if other not in kept]:
            with files.explained_write_errors(path):
                path.unlink()

    def checkpoints(self) -> list[int]:
        """The steps there are checkpoints of, ascending."""
        names = [path.name for path in self._checkpoint_folder.glob("step-*.safetensors")]
        steps = [int(match[1]) for match in map(_CHECKPOINT_NAME.fullmatch, names) if match]
        return sorted(step for step in steps if self._checkpoint_path(step).name in names)

    def read_checkpoint(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the state at `step`."""
        path = self._checkpoint_path(step)
        tensors, own = read_tensors(path)
        return tensors, self._own_metadata(path, own, "state", step)

    def newest_checkpoint(
        self, report: Callable[[str], None] = warnings.warn
    ) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is as it was written, None if there is none; `report` gets a line on each other.

        Raises DamagedFileError if there are checkpoints and all are damaged.
        """
        steps = self.checkpoints()
        for step in reversed(steps):
            try:
                return step, *self.read_checkpoint(step)
            except (DamagedFileError, MissingInputError) as error:
                report(f"Skipped a checkpoint: {error}")
        if steps:
            mend = "Restore one from a copy, or delete them all and start a new run with --init-from this one."
            raise _damaged(self._checkpoint_folder, f"none of its {len(steps)} checkpoints is readable", mend)
        return None

    # Everything else

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one line to `metrics.jsonl`. After a power cut the last rows may be missing."""
        line = json.dumps(row).encode() + b"\n"
        with files.explained_write_errors(self._metrics_path, len(line)), self._metrics_path.open("a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read() not in (b"", b"\n"):  # a process was killed within a row
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, without a last one that a killed process did not finish."""
        if not self._metrics_path.exists():
            return []
        lines = files.read_bytes(self._metrics_path).split(b"\n")[:-1]  # the last one is empty or unfinished
        return [_json_object(line, f"{self._metrics_path}:{number}") for number, line in enumerate(lines, start=1)]

    def truncate_metrics(self, after_step: int) -> None:
        """Removes the rows of later steps than `after_step`, which training is going to repeat."""
        rows = [row for row in self.metrics() if row.get("step", 0) <= after_step]
        files.write_atomically(self._metrics_path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of text beside the others, such as a table of scores."""
        self.write_file(name, text.encode())

    def write_file(self, name: str, content: bytes) -> None:
        """Writes a file beside the others, such as a picture."""
        if name in _OWN_NAMES or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r} must be a plain file name, not hidden, and not {', '.join(_OWN_NAMES)}.")
        files.write_atomically(self.path / name, content)

    def verify(self) -> list[tuple[str, str]]:
        """Each file that matters, with "" if it is as it was written and otherwise what is wrong."""
        checks: list[tuple[str, Callable[[], object]]] = [
            ("run.json", self._record),
            ("config.toml", lambda: self.config),
            ("tokenizer.json", lambda: self.tokenizer),
            ("model.safetensors", lambda: self._verify_weights(self.path / "model.safetensors", "metadata")),
        ]
        for step in self.checkpoints():
            path = self._checkpoint_path(step)
            checks.append((f"checkpoints/{path.name}", partial(self._verify_weights, path, "state", step)))
        return [(name, _problem(check)) for name, check in [*checks, ("metrics.jsonl", self.metrics)]]

    # Inside

    @property
    def _checkpoint_folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def _metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def _checkpoint_path(self, step: int) -> Path:
        return self._checkpoint_folder / f"step-{step:08d}.safetensors"

    def _refuse_other_use(self) -> None:
        if (self.path / "run.json").exists():
            raise RunFolderError(f"{self.path} holds a run already. Choose another --run-dir, or --resume to go on.")
        with files.explained_write_errors(self.path):
            names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        unfinished = {"run.lock", "tokenizer.json"} | ({"config.toml"} if "tokenizer.json" in names else set())
        if not self.checkpoints():
            unfinished.add("checkpoints")
        if others := sorted(name for name in names - unfinished if not name.startswith(".")):
            raise RunFolderError(f"{self.path} holds other things ({', '.join(others[:3])}). Choose another --run-dir.")

    def _record(self) -> dict[str, Any]:
        path = self.path / "run.json"
        content = files.read_bytes(path)
        start, stated = len(_RECORD_START), content[len(_RECORD_START) :][:64]
        zeroed = content[:start] + _NO_DIGEST + content[start + 64 :]
        if not content.startswith(_RECORD_START) or files.sha256_of(zeroed).encode() != stated:
            raise _damaged(path, "its SHA-256 is not the one it states", _MEND_TEXT)
        record = _json_object(content, path)
        if record["format"] != FORMAT_VERSION:
            raise RunFolderError(
                f"{path} has format {record['format']}, this version of transduce knows {FORMAT_VERSION}. "
                "Use the version that wrote it."
            )
        return record

    def _write_record(self, hashes: Mapping[str, list[str]], facts: Mapping[str, Any]) -> None:
        record = {"sha256": _NO_DIGEST.decode(), "format": FORMAT_VERSION, "files": hashes, "facts": facts}
        content = json.dumps(record, indent=2).encode() + b"\n"
        content = content.replace(_NO_DIGEST, files.sha256_of(content).encode(), 1)
        files.write_atomically(self.path / "run.json", content)

    def _text(self, name: str) -> str:
        content = files.read_bytes(self.path / name)
        if files.sha256_of(content) not in self._record()["files"][name]:
            raise _damaged(self.path / name, "its SHA-256 is not the one in run.json", _MEND_TEXT)
        return content.decode()

    @cached_property
    def _tokenizer_sha256(self) -> str:
        return self._record()["files"]["tokenizer.json"][0]

    def _own_metadata(
        self, path: Path, metadata: Mapping[str, str], key: str, step: int | None = None
    ) -> dict[str, Any]:
        """What the caller of write stored under `key`, after a check that the file belongs where it lies."""
        if metadata.get("tokenizer") != self._tokenizer_sha256:
            raise _damaged(path, "it belongs to a run with another tokenizer", _MEND_TENSORS)
        if metadata.get("step") != (None if step is None else str(step)):
            raise _damaged(path, f"it was written for step {metadata.get('step')}", _MEND_TENSORS)
        return _json_object(metadata[key], path)

    def _verify_weights(self, path: Path, key: str, step: int | None = None) -> None:
        with _verified(path) as (_, metadata):
            self._own_metadata(path, metadata, key, step)


def _damaged(path: Path | str, reason: str, mend: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged: {reason}. {mend}")


def _problem(check: Callable[[], object]) -> str:
    try:
        check()
    except TransduceError as error:
        return str(error)
    return ""


def _json_object(text: str | bytes, where: Path | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _damaged(where, "it should hold a JSON object", _MEND_TEXT)
    return value


def _runs_in(folder: Path) -> str:
    names = sorted(record.parent.name for record in folder.glob("*/run.json"))
    return f" {folder}/ holds: {', '.join(names)}." if names else ""


def _open_locked(folder: Path) -> TextIO:
    import fcntl  # here, because only Unix has it: elsewhere a run can still be read

    path = folder / "run.lock"
    with files.explained_write_errors(path):
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise RunFolderError(
                f"{folder} is in use by process {owner}. Wait for it, stop it, or choose another --run-dir."
            ) from None
        except BaseException:
            file.close()
            raise
    return file
