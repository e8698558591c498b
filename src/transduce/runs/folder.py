"""Run folder: config, tokenizer, weights, checkpoints and metrics of a run; the only bridge from training to use."""

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
from transduce.data.seen import Seen
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError
from transduce.files.atomic import remove_temporaries, sync_folder, write_atomically
from transduce.files.certified import NO_DIGEST, check_digest, damaged
from transduce.files.certified_json import json_object, read_with_digest, with_digest
from transduce.files.content import read_bytes, sha256_of
from transduce.files.locks import lock
from transduce.files.system_errors import explained_write_errors
from transduce.files.tensors import TENSOR_ADVICE, read_tensors, verified, write_tensors
from transduce.model.config import TransformerConfig
from transduce.model.transformer import Transformer
from transduce.model.weights import load_weights
from transduce.text.tokenizer import Tokenizer

FORMAT_VERSION = 1

_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})\.safetensors", re.ASCII)
_RESERVED_NAMES = (
    "config.toml", "tokenizer.json", "run.json", "model.safetensors", "checkpoints", "metrics.jsonl", "run.lock",
)  # fmt: skip
_MEND_TEXT = "Restore it from a copy, or start a new run in another folder."


class RunFolder:
    """One run on disk. Writers hold `lock()`, readers need nothing, and a copy works anywhere.

    `run.json` makes a folder a run: it is written last, contains its own hash, and the hashes of the two texts beside
    it. Raises RunFolderError where the disk refuses a write, DamagedFileError where bytes are not as written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._checkpoint_folder = self.path / "checkpoints"
        self._metrics_path = self.path / "metrics.jsonl"
        self._sha256_read = ""

    @classmethod
    def create(cls, path: str | Path, *, config: str, tokenizer: str, facts: dict[str, Any]) -> "RunFolder":
        """A new run. Raises RunFolderError if the folder holds anything else, or cannot be written."""
        run = cls(path)
        run.refuse_other_use()
        with explained_write_errors(run.path):
            run._checkpoint_folder.mkdir(parents=True, exist_ok=True)
            sync_folder(run.path.absolute().parent)
        with run.lock():
            run.refuse_other_use()  # another process may have been faster
            # In this order, a `config.toml` without a tokenizer is never ours, so it is never overwritten.
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
    def lock(self, *, patience: float = 0.0) -> Iterator[None]:
        """Exclusive right to write, until the block or the process ends, however it ends. It is tried for `patience`
        seconds.

        Temporary files of killed processes are removed first: here alone, as those of a living one would be lost.
        """
        with lock(self.path / "run.lock", patience=patience):
            for folder in (self.path, self._checkpoint_folder):
                remove_temporaries(folder)
            yield

    # Settings, tokenizer and facts

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
        """Settings of the run."""
        return load_config(self.config_text, f"{self.path}/config.toml")

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        return Tokenizer.from_json(self.tokenizer_text)

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the data and the machine, from `run.json`."""
        return self._record()["facts"]

    @property
    def seen(self) -> Seen | None:
        """What the model has seen in training; None where that was not recorded."""
        saved = self.facts.get("seen")
        return Seen.from_dict(saved) if saved else None

    def update_facts(self, facts: dict[str, Any]) -> None:
        """Add `facts` to those in `run.json`, replacing those of the same name."""
        record = self._record()
        self._write_record(record["files"], record["facts"] | facts)

    def rewrite_config(self, config: str) -> None:
        """Replace `config.toml`.

        Two files cannot be replaced at once: in between, `run.json` accepts the old and the new text, so that the run
        is whole whenever the process is killed.
        """
        record, old, new = self._record(), sha256_of(self.config_text.encode()), sha256_of(config.encode())
        self._write_record(record["files"] | {"config.toml": [old, new]}, record["facts"])
        write_atomically(self.path / "config.toml", config.encode())
        self._write_record(record["files"] | {"config.toml": [new]}, record["facts"])

    # The weights

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the model's file, verified: of the one read last, if any was, else of the one that is there.

        Raises MissingInputError if there is none yet.
        """
        return self._sha256_read or check_digest(self.path / "model.safetensors", TENSOR_ADVICE)

    @property
    def has_model(self) -> bool:
        """Whether the run has a model yet."""
        return (self.path / "model.safetensors").exists()

    def write_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Replace the weights of the model. `metadata` is a JSON object."""
        header = {"metadata": json.dumps(metadata, sort_keys=True), "tokenizer": self._tokenizer_sha256}
        write_tensors(self.path / "model.safetensors", tensors, header)

    def load_model(self, config: TransformerConfig, tokenizer: Tokenizer) -> Transformer:
        """The model with its weights, given the run's `settings.model` and tokenizer, which the caller has read.

        Raises MissingInputError if there are no weights yet.
        """
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten: the caller's seed must not notice
            model = Transformer(config, tokenizer.vocabulary_sizes)
        self.load_weights_into(model)
        return model

    def load_weights_into(self, model: Transformer) -> None:
        """Copy the weights of this run's model into `model`. Raises TransduceError if its shape is another."""
        tensors, _ = self.read_model()
        try:
            load_weights(model, tensors)
        except ValueError as error:
            raise TransduceError(str(error)) from None

    def read_model(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights of the model, by name, and their metadata."""
        path = self.path / "model.safetensors"
        tensors, header = read_tensors(path)
        self._sha256_read = header["sha256"]
        return tensors, self._checked_metadata(path, header, "metadata")

    def read_model_metadata(self) -> dict[str, Any]:
        """Metadata of the model; every byte of the weights is verified all the same."""
        return self._verified_metadata(self.path / "model.safetensors", "metadata")

    def write_checkpoint(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
    ) -> None:
        """Write a checkpoint to resume from at `step`, then remove all but the newest `keep`.

        Those of later steps go as well: a run that writes `step` was resumed before them, perhaps as they are damaged.
        """
        if keep < 1:
            raise ValueError(f"keep ({keep}) must be at least 1: the checkpoint just written.")
        with explained_write_errors(self._checkpoint_folder):
            self._checkpoint_folder.mkdir(exist_ok=True)
        header = {"state": json.dumps(state, sort_keys=True), "step": str(step), "tokenizer": self._tokenizer_sha256}
        write_tensors(self._checkpoint_path(step), tensors, header)
        steps = self.checkpoints()
        kept = [other for other in steps if other <= step][-keep:]
        for path in [self._checkpoint_path(other) for other in steps if other not in kept]:
            with explained_write_errors(path):
                path.unlink()

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        names = [path.name for path in self._checkpoint_folder.glob("step-*.safetensors")]
        steps = [int(match[1]) for match in map(_CHECKPOINT_NAME.fullmatch, names) if match]
        return sorted(step for step in steps if self._checkpoint_path(step).name in names)

    def read_checkpoint(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name and state of the checkpoint at `step`."""
        path = self._checkpoint_path(step)
        tensors, header = read_tensors(path)
        return tensors, self._checked_metadata(path, header, "state", step)

    def newest_checkpoint(
        self, report: Callable[[str], None] = warnings.warn
    ) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Step, tensors and state of the newest undamaged checkpoint; None if there are no checkpoints.

        `report` gets a line about each damaged one that was skipped.
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

    # Metrics, other files, and verification

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a row to `metrics.jsonl`. Rows are not synced: after a power cut the last ones may be missing."""
        line = json.dumps(row).encode() + b"\n"
        with explained_write_errors(self._metrics_path, len(line)), self._metrics_path.open("a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read() not in (b"", b"\n"):  # a process was killed while it wrote a row
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of `metrics.jsonl`, without a last one that a killed process left unfinished."""
        if not (path := self._metrics_path).exists():
            return []
        lines = read_bytes(path).split(b"\n")[:-1]  # the last one is empty or unfinished
        return [json_object(line, f"{path}:{number}", _MEND_TEXT) for number, line in enumerate(lines, start=1)]

    def truncate_metrics(self, after_step: int) -> None:
        """Remove the rows of the steps after `after_step`, which training is going to repeat."""
        rows = [row for row in self.metrics() if row.get("step", 0) <= after_step]
        write_atomically(self._metrics_path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file beside those of the run, such as a picture or a table of scores."""
        if name in _RESERVED_NAMES or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r} must be a plain file name, not hidden, and not {', '.join(_RESERVED_NAMES)}.")
        write_atomically(self.path / name, content)

    def verify(self) -> list[tuple[str, str]]:
        """Each file of the run and its problem, "" if it is as it was written.

        A missing model is a problem only if a checkpoint says that there was one: a young run has none yet.
        """
        checks: list[tuple[str, Callable[[], object]]] = [
            ("run.json", self._record),
            ("config.toml", lambda: self.config_text),
            ("tokenizer.json", lambda: self.tokenizer_text),
        ]
        if self.has_model or self._has_had_model():
            checks.append(("model.safetensors", self.read_model_metadata))
        for step in self.checkpoints():
            path = self._checkpoint_path(step)
            checks.append((f"checkpoints/{path.name}", partial(self._verified_metadata, path, "state", step)))
        return [(name, _problem(check)) for name, check in [*checks, ("metrics.jsonl", self.metrics)]]

    # Internals

    def _checkpoint_path(self, step: int) -> Path:
        return self._checkpoint_folder / f"step-{step:08d}.safetensors"

    def refuse_other_use(self) -> None:
        """Raise RunFolderError if the folder holds a run, or anything but a run whose creation was interrupted."""
        names: set[str] = set()
        with explained_write_errors(self.path), suppress(FileNotFoundError):
            if (self.path / "run.json").exists():
                raise RunFolderError(f"{self.path} holds a run already. Choose another folder, or --resume to go on.")
            names = {path.name for path in self.path.iterdir()}
        unfinished = {"run.lock", "tokenizer.json"} | ({"config.toml"} if "tokenizer.json" in names else set())
        if not self.checkpoints():
            unfinished.add("checkpoints")
        if others := sorted(name for name in names - unfinished if not name.startswith(".")):
            raise RunFolderError(f"{self.path} holds other things ({', '.join(others[:3])}). Choose another folder.")

    def _record(self) -> dict[str, Any]:
        path = self.path / "run.json"
        content = read_bytes(path)
        record = read_with_digest(content, _without_digest)
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
        write_atomically(self.path / "run.json", _layout(with_digest(record, _without_digest)))

    def _text(self, name: str) -> str:
        content = read_bytes(self.path / name)
        if sha256_of(content) not in self._record()["files"][name]:
            raise damaged(self.path / name, "its SHA-256 is not the one in run.json", _MEND_TEXT)
        return content.decode()

    @cached_property
    def _tokenizer_sha256(self) -> str:
        return self._record()["files"]["tokenizer.json"][0]

    def _checked_metadata(
        self, path: Path, header: Mapping[str, str], key: str, step: int | None = None
    ) -> dict[str, Any]:
        """The JSON object under `key`, after a check that the file belongs to this run and to this place in it."""
        if header.get("tokenizer") != self._tokenizer_sha256:
            raise damaged(path, "it belongs to a run with another tokenizer", TENSOR_ADVICE)
        if header.get("step") != (None if step is None else str(step)):
            raise damaged(path, f"it was written for step {header.get('step')}", TENSOR_ADVICE)
        return json_object(header[key], path, _MEND_TEXT)

    def _has_had_model(self) -> bool:
        """Whether any undamaged checkpoint says that a model was written."""
        for step in self.checkpoints():
            with suppress(TransduceError):
                if self._verified_metadata(self._checkpoint_path(step), "state", step).get("best_step"):
                    return True
        return False

    def _verified_metadata(self, path: Path, key: str, step: int | None = None) -> dict[str, Any]:
        with verified(path) as (_, header):
            return self._checked_metadata(path, header, key, step)


def _layout(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode() + b"\n"


def _without_digest(record: dict[str, Any]) -> bytes:
    """The bytes that the hash in `run.json` covers: all of them, with zeros as the digits of the hash itself."""
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
