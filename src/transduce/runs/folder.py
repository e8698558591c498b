"""The run folder: the only bridge between training and use."""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transduce.config.settings import ExperimentConfig, load_config
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError
from transduce.files.atomic import remove_temporaries, sync_folder, write_atomically
from transduce.files.certified import NO_DIGEST, check_digest, damaged
from transduce.files.certified_json import json_object, read_with_digest, with_digest
from transduce.files.content import read_bytes, sha256_of
from transduce.files.locks import lock
from transduce.files.system_errors import explained_write_errors
from transduce.files.tensors import MEND_TENSORS, read_tensors, verified, write_tensors
from transduce.model.transformer import Transformer
from transduce.model.weights import load_weights
from transduce.text.tokenizer import Tokenizer

FORMAT_VERSION = 1

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
_MEND_TEXT = "Restore it from a copy, or start a new run in another folder."


class RunFolder:
    """One run on disk. Whoever writes holds `lock()`; anyone may read at any time. Copy it anywhere, it still works.

    `run.json` makes a folder a run: it is written last, hashes itself, and holds the hashes of the two texts beside
    it. Raises RunFolderError where the disk refuses a write, DamagedFileError where bytes are not as written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._is_locked = False

    @classmethod
    def create(cls, path: str | Path, *, config: str, tokenizer: str, facts: dict[str, Any]) -> "RunFolder":
        """A new run. Raises RunFolderError if the folder is in use for anything else, or cannot be written."""
        run = cls(path)
        run.refuse_other_use()
        with explained_write_errors(run.path):
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            sync_folder(run.path.absolute().parent)
        with run.lock():
            run.refuse_other_use()  # another process may have been faster
            # In this order: `config.toml` alone in a folder is then never ours, and never overwritten.
            write_atomically(run.path / "tokenizer.json", tokenizer.encode())
            write_atomically(run.path / "config.toml", config.encode())
            texts = {"config.toml": config, "tokenizer.json": tokenizer}
            run._write_record({name: [sha256_of(text.encode())] for name, text in texts.items()}, facts)
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
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
        with lock(self.path / "run.lock"):
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
            remove_temporaries(folder)

    # What the run is

    @property
    def config_text(self) -> str:
        """The text of `config.toml`, verified."""
        return self._text("config.toml")

    @property
    def tokenizer_text(self) -> str:
        """The text of `tokenizer.json`, verified."""
        return self._text("tokenizer.json")

    @property
    def settings(self) -> ExperimentConfig:
        """All settings of the run."""
        return load_config(self.config_text, f"{self.path}/config.toml")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return Tokenizer.from_json(self.tokenizer_text)

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
        record, old, new = self._record(), sha256_of(self.config_text.encode()), sha256_of(config.encode())
        self._write_record(record["files"] | {"config.toml": [old, new]}, record["facts"])
        write_atomically(self.path / "config.toml", config.encode())
        self._write_record(record["files"] | {"config.toml": [new]}, record["facts"])

    # The weights

    @property
    def model_sha256(self) -> str:
        """The hash of the model's file, verified. Raises MissingInputError if there is none yet."""
        return check_digest(self.path / "model.safetensors", MEND_TENSORS)

    @property
    def has_model(self) -> bool:
        """Whether there are weights to use yet."""
        return (self.path / "model.safetensors").exists()

    def write_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Replaces the weights everyone uses. `metadata` is anything JSON can hold."""
        own = {"metadata": json.dumps(metadata, sort_keys=True), "tokenizer": self._tokenizer_sha256}
        write_tensors(self.path / "model.safetensors", tensors, own)

    def load_model(self) -> Transformer:
        """The network with the weights everyone uses. Raises MissingInputError if there are none yet."""
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten: it must not cost the caller's draws
            model = Transformer(self.settings.model, self.tokenizer.vocabulary_sizes)
        self.load_weights_into(model)
        return model

    def load_weights_into(self, model: Transformer) -> None:
        """Copies the weights everyone uses into `model`. Raises TransduceError if it is of another shape."""
        try:
            load_weights(model, self.read_model()[0])
        except ValueError as error:
            raise error if isinstance(error, TransduceError) else TransduceError(str(error)) from None

    def read_model(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights everyone uses, and their metadata."""
        path = self.path / "model.safetensors"
        tensors, own = read_tensors(path)
        return tensors, self._own_metadata(path, own, "metadata")

    def read_model_metadata(self) -> dict[str, Any]:
        """The metadata alone; every byte of the weights is verified all the same."""
        return self._verified_metadata(self.path / "model.safetensors", "metadata")

    def write_checkpoint(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
    ) -> None:
        """Writes what resuming at `step` needs, then removes all but the newest `keep` checkpoints.

        Those of later steps go as well: whoever writes `step` resumed before them, perhaps because they are damaged.
        """
        if keep < 1:
            raise ValueError(f"keep ({keep}) must be at least 1: the checkpoint just written.")
        with explained_write_errors(self._checkpoint_folder):
            self._checkpoint_folder.mkdir(exist_ok=True)
        own = {"state": json.dumps(state, sort_keys=True), "step": str(step), "tokenizer": self._tokenizer_sha256}
        write_tensors(self._checkpoint_path(step), tensors, own)
        steps = self.checkpoints()
        kept = [other for other in steps if other <= step][-keep:]
        for path in [self._checkpoint_path(other) for other in steps if other not in kept]:
            with explained_write_errors(path):
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
            raise damaged(self._checkpoint_folder, f"none of its {len(steps)} checkpoints is readable", mend)
        return None

    # Everything else

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one line to `metrics.jsonl`. After a power cut the last rows may be missing."""
        line = json.dumps(row).encode() + b"\n"
        with explained_write_errors(self._metrics_path, len(line)), self._metrics_path.open("a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read() not in (b"", b"\n"):  # a process was killed within a row
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, without a last one that a killed process did not finish."""
        if not (path := self._metrics_path).exists():
            return []
        lines = read_bytes(path).split(b"\n")[:-1]  # the last one is empty or unfinished
        return [json_object(line, f"{path}:{number}", _MEND_TEXT) for number, line in enumerate(lines, start=1)]

    def truncate_metrics(self, after_step: int) -> None:
        """Removes the rows of later steps than `after_step`, which training is going to repeat."""
        rows = [row for row in self.metrics() if row.get("step", 0) <= after_step]
        write_atomically(self._metrics_path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of text beside the others, such as a table of scores."""
        self.write_file(name, text.encode())

    def write_file(self, name: str, content: bytes) -> None:
        """Writes a file beside the others, such as a picture."""
        if name in _OWN_NAMES or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r} must be a plain file name, not hidden, and not {', '.join(_OWN_NAMES)}.")
        write_atomically(self.path / name, content)

    def verify(self) -> list[tuple[str, str]]:
        """Each file that matters, with "" if it is as it was written and otherwise what is wrong.

        A model that is not there is left out, unless a checkpoint tells of one: a young run has none yet.
        """
        checks: list[tuple[str, Callable[[], object]]] = [
            ("run.json", self._record),
            ("config.toml", lambda: self.config_text),
            ("tokenizer.json", lambda: self.tokenizer_text),
        ]
        if self.has_model or self._had_model():
            checks.append(("model.safetensors", self.read_model_metadata))
        for step in self.checkpoints():
            path = self._checkpoint_path(step)
            checks.append((f"checkpoints/{path.name}", partial(self._verified_metadata, path, "state", step)))
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

    def refuse_other_use(self) -> None:
        """Raises RunFolderError if the folder holds a run already, or anything that is not a run begun."""
        if (self.path / "run.json").exists():
            raise RunFolderError(f"{self.path} holds a run already. Choose another folder, or --resume to go on.")
        names: set[str] = set()
        with explained_write_errors(self.path), suppress(FileNotFoundError):
            names = {path.name for path in self.path.iterdir()}
        unfinished = {"run.lock", "tokenizer.json"} | ({"config.toml"} if "tokenizer.json" in names else set())
        if not self.checkpoints():
            unfinished.add("checkpoints")
        if others := sorted(name for name in names - unfinished if not name.startswith(".")):
            raise RunFolderError(f"{self.path} holds other things ({', '.join(others[:3])}). Choose another folder.")

    def _record(self) -> dict[str, Any]:
        path = self.path / "run.json"
        content = read_bytes(path)
        record = read_with_digest(content, _zeroed)
        if not record or _layout(record) != content:
            raise damaged(path, "its SHA-256 is not the one it states", _MEND_TEXT)
        if record["format"] != FORMAT_VERSION:
            raise RunFolderError(
                f"{path} has format {record['format']}, this version of transduce knows {FORMAT_VERSION}. "
                "Use the version that wrote it."
            )
        return record

    def _write_record(self, hashes: Mapping[str, list[str]], facts: Mapping[str, Any]) -> None:
        record = {"sha256": "", "format": FORMAT_VERSION, "files": hashes, "facts": facts}
        write_atomically(self.path / "run.json", _layout(with_digest(record, _zeroed)))

    def _text(self, name: str) -> str:
        content = read_bytes(self.path / name)
        if sha256_of(content) not in self._record()["files"][name]:
            raise damaged(self.path / name, "its SHA-256 is not the one in run.json", _MEND_TEXT)
        return content.decode()

    @cached_property
    def _tokenizer_sha256(self) -> str:
        return self._record()["files"]["tokenizer.json"][0]

    def _own_metadata(
        self, path: Path, metadata: Mapping[str, str], key: str, step: int | None = None
    ) -> dict[str, Any]:
        """What the caller of write stored under `key`, after a check that the file belongs where it lies."""
        if metadata.get("tokenizer") != self._tokenizer_sha256:
            raise damaged(path, "it belongs to a run with another tokenizer", MEND_TENSORS)
        if metadata.get("step") != (None if step is None else str(step)):
            raise damaged(path, f"it was written for step {metadata.get('step')}", MEND_TENSORS)
        return json_object(metadata[key], path, _MEND_TEXT)

    def _had_model(self) -> bool:
        """Whether a checkpoint that can be read tells of weights that were kept."""
        for step in self.checkpoints():
            with suppress(TransduceError):
                if self._verified_metadata(self._checkpoint_path(step), "state", step).get("best_step"):
                    return True
        return False

    def _verified_metadata(self, path: Path, key: str, step: int | None = None) -> dict[str, Any]:
        with verified(path) as (_, metadata):
            return self._own_metadata(path, metadata, key, step)


def _layout(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode() + b"\n"


def _zeroed(record: dict[str, Any]) -> bytes:
    """What the hash in `run.json` is of: all its bytes, the digits of the hash itself being zeros."""
    return _layout(record | {"sha256": NO_DIGEST.decode()})


def _problem(check: Callable[[], object]) -> str:
    try:
        check()
    except TransduceError as error:
        return str(error)
    return ""


def _runs_in(folder: Path) -> str:
    names = sorted(record.parent.name for record in folder.glob("*/run.json"))
    return f" {folder}/ holds: {', '.join(names)}." if names else ""
