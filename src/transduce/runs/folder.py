"""Run folder: config, tokenizer, weights, checkpoints and metrics of a run; the only bridge from training to use."""

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transduce.config.settings import ExperimentConfig, load_config
from transduce.data.seen import Seen
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError
from transduce.files.atomic import remove_temporaries, sync, write_atomically
from transduce.files.certified import NO_DIGEST
from transduce.files.certified_json import json_object, matches, parse_json, read_with_digest, with_digest
from transduce.files.content import MOST_TEXT_BYTES, damaged, open_regular, read_regular, sha256_of, well_formed
from transduce.files.locks import lock
from transduce.files.system_errors import explained_read_errors, explained_write_errors
from transduce.files.tensors import TENSOR_ADVICE, read_tensors, verified, write_tensors
from transduce.inference.predictor import ignore
from transduce.model.config import TransformerConfig
from transduce.model.transformer import Transformer
from transduce.model.weights import Shapes, load_weights, parameter_shapes, refuse_other_shapes, shapes_of
from transduce.runs.schema import METADATA, OTHER_FIELDS, RECORD, ROW, RUN_FILES
from transduce.text.tokenizer import Tokenizer
from transduce.training.state import TrainerState

FORMAT_VERSION = 1

_CHECKPOINT_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})\.safetensors", re.ASCII)  # as we write the number, alone
_MEND_TEXT = "Restore it from a copy, or start a new run in another folder."
_MEND_CONTENT = "Restore it from a copy, or use the version of transduce that wrote it."
_MOST_ROW_BYTES = 1_000_000  # of the log
_MOST_SETTINGS, _MOST_DOTS = 64_000, 200  # in a line: the time to read TOML grows as their square
# The facts that make it the same run: not where, when and on what machine.
_IDENTITY = ("data", "initialised_from", "averaged", "imported")


class RunFolder:
    """One run on disk. Writers hold `lock()`, readers need nothing, and a copy works anywhere.

    `run.json` makes a folder a run: it is written last, contains its own hash, and the hashes of the two texts beside
    it. Raises RunFolderError where the disk refuses a write, DamagedFileError where bytes are not as written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._metrics_path = self.path / "metrics.jsonl"

    @classmethod
    def create(
        cls, path: str | Path, *, config: str, tokenizer: str, facts: dict[str, Any], identity: Any = None
    ) -> "RunFolder":
        """A new run. Raises RunFolderError if the folder holds anything else, or cannot be written.

        Its id follows from the tokenizer, some facts and `identity`, which JSON can hold; by default the settings.
        """
        run = cls(path)
        run.refuse_other_use()
        if len(tokenizer) > MOST_TEXT_BYTES // 4:  # bytes of a character
            raise TransduceError(f"the tokenizer has {len(tokenizer):,} characters: take a smaller vocabulary.")
        with explained_write_errors(run.path):
            run._checkpoint_folder.mkdir(parents=True, exist_ok=True)
            sync(run.path.absolute().parent)
        with run.lock():
            run.refuse_other_use()  # another process may have been faster
            # In this order, a `config.toml` without a tokenizer is never ours, so it is never overwritten.
            write_atomically(run.path / "tokenizer.json", tokenizer.encode())
            write_atomically(run.path / "config.toml", config.encode())
            texts = {"config.toml": config, "tokenizer.json": tokenizer}
            files = {name: [sha256_of(text.encode())] for name, text in texts.items()}
            same = [identity or config, tokenizer, [facts.get(name) for name in _IDENTITY]]
            run._write_record({"files": files, "facts": facts, "id": sha256_of(json.dumps(same).encode())})
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises MissingInputError, naming the runs nearby, if there is none."""
        run = cls(path)
        if not os.path.lexists(run.path / "run.json"):
            nearby = _runs_in(run.path) or _runs_in(run.path.parent)
            raise MissingInputError(f"{run.path}: not a run folder (it has no run.json).{nearby}")
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
        text = self.config_text
        with well_formed(self.path / "config.toml", _MEND_CONTENT):
            if len(text) > _MOST_SETTINGS or max(line.count(".") for line in text.split("\n")) > _MOST_DOTS:
                raise ValueError("it is longer, or has more dots in a line, than any config that this package writes")
            return load_config(text, "its text")

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        return Tokenizer.from_json(self.tokenizer_text, self.path / "tokenizer.json")

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
        self._write_record(record | {"facts": record["facts"] | facts})

    def rewrite_config(self, config: str) -> None:
        """Replace `config.toml`."""
        self._write_recorded("config.toml", config.encode())

    # The weights

    @property
    def has_model(self) -> bool:
        """Whether the run has a model yet."""
        return os.path.lexists(self.path / "model.safetensors")

    def write_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Replace the weights of the model. `metadata` is a JSON object."""
        header = {"metadata": json.dumps(metadata, sort_keys=True)} | self._belonging
        write_tensors(self.path / "model.safetensors", tensors, header)

    def load_model(self, config: TransformerConfig, tokenizer: Tokenizer) -> tuple[Transformer, str]:
        """The model and the SHA-256 of the file that its weights were read from.

        Raises MissingInputError if there are no weights yet, DamagedFileError if they are of another shape.
        """
        tensors, _, sha256 = self.read_model()
        self.refuse_other_shapes(shapes_of(tensors), parameter_shapes(config, tokenizer.vocabulary_sizes))
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten: the caller's seed must not notice
            model = Transformer(config, tokenizer.vocabulary_sizes)
        load_weights(model, tensors)
        return model, sha256

    def refuse_other_shapes(self, stored: Shapes, declared: Shapes, step: int | None = None) -> None:
        """Raise DamagedFileError unless the tensors of the model, or of the checkpoint at `step`, have the shapes that
        the settings declare: before a model is built, which may be of any size.
        """
        prefix = "" if step is None else "model."
        own = {name.removeprefix(prefix): shape for name, shape in stored.items() if name.startswith(prefix)}
        with well_formed(self._tensor_path(step), TENSOR_ADVICE):
            refuse_other_shapes(declared, own)

    def read_model(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """The weights of the model, by name, their metadata, and the SHA-256 of their file."""
        tensors, metadata = read_tensors(self._tensor_path(None))
        return tensors, self._checked_metadata(metadata, None), metadata["sha256"]

    def read_model_metadata(self, shapes: Shapes | None = None) -> dict[str, Any]:
        """Metadata of the model; every byte of the weights is verified all the same, and their `shapes` if given."""
        return self._check_tensors(None, shapes)

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
        header = {"state": json.dumps(state, sort_keys=True), "step": str(step)} | self._belonging
        write_tensors(self._tensor_path(step), tensors, header)
        steps = self.checkpoints()
        kept = [other for other in steps if other <= step][-keep:]
        for path in [self._tensor_path(other) for other in steps if other not in kept]:
            with explained_write_errors(path):
                path.unlink()

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        names = [path.name for path in self._checkpoint_folder.glob("step-*.safetensors")]
        return sorted(int(match[1]) for match in map(_CHECKPOINT_NAME.fullmatch, names) if match)

    def read_checkpoint(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name and state of the checkpoint at `step`."""
        tensors, metadata = read_tensors(self._tensor_path(step))
        return tensors, self._checked_metadata(metadata, step)

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
        with explained_write_errors(self._metrics_path, len(line)), open_regular(self._metrics_path, "a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read() not in (b"", b"\n"):  # a process was killed while it wrote a row
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)

    def metrics(self, report: Callable[[str], None] = ignore) -> list[dict[str, Any]]:
        """Rows of `metrics.jsonl`, without a last one that a killed process left unfinished.

        What is not a row of ours is left out, and `report` told: a log is never worth more than the weights.
        """
        path, rows, lost = self._metrics_path, list[dict[str, Any]](), list[int]()
        try:
            with explained_read_errors(path), open_regular(path) as file:
                for number, line in enumerate(iter(partial(file.readline, _MOST_ROW_BYTES), b""), start=1):
                    row: Any = None
                    with suppress(ValueError):
                        row = parse_json(line)
                    if matches(row, ROW):
                        rows.append(row)
                    elif line.endswith(b"\n") or len(line) == _MOST_ROW_BYTES:
                        lost.append(number)
        except TransduceError as error:
            if os.path.lexists(path):
                report(str(error))
        if lost:
            report(f"{path}:{lost[0]} is damaged: {len(lost):,} rows are not valid. They are left out.")
        return rows

    def truncate_metrics(self, after_step: int, report: Callable[[str], None] = warnings.warn) -> None:
        """Remove the rows of the steps after `after_step`, which training is going to repeat, and those not ours."""
        rows = [row for row in self.metrics(report) if row["step"] <= after_step]
        write_atomically(self._metrics_path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file beside those of the run, such as a picture or a table of scores."""
        if name in RUN_FILES or not _is_plain(name):
            raise ValueError(f"{name!r} must be a plain file name, not hidden, and not {', '.join(RUN_FILES)}.")
        self._write_recorded(name, content)

    def checked_file(self, name: str) -> Path | None:
        """The path of a file of the run, such as its test part, whose hash was checked if one was recorded.

        None if there is none. Raises DamagedFileError.
        """
        path, hashes = self.path / name, self._record()["files"].get(name, [])
        if not hashes and not os.path.lexists(path):
            return None
        with explained_read_errors(path), open_regular(path) as file:
            if hashes and file_digest(file, "sha256").hexdigest() not in hashes:
                raise damaged(path, "its SHA-256 does not match run.json", _MEND_TEXT)
        return path

    def verify(self) -> list[tuple[str, str]]:
        """Each file of the run that is checked and its problem, "" if it is as it was written: see `not_covered`.

        A missing model is a problem only if a checkpoint says that there was one: a young run has none yet.
        """
        problems: dict[str, str] = {}

        def check(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
            problems[name] = ""
            try:
                return work(*arguments)
            except TransduceError as error:
                problems[name] = str(error)

        record = check("run.json", self._record)
        settings = check("config.toml", lambda: self.settings)
        tokenizer = check("tokenizer.json", lambda: self.tokenizer)
        shapes = parameter_shapes(settings.model, tokenizer.vocabulary_sizes) if settings and tokenizer else None
        states, steps = [], check("checkpoints", self.checkpoints)
        if steps is not None:
            del problems["checkpoints"]
        for step in steps or ():
            states.append(check(f"checkpoints/{self._tensor_path(step).name}", self._check_tensors, step, shapes))
        if self.has_model or any(state and state.get("best_step") for state in states):
            check("model.safetensors", self._check_tensors, None, shapes)
        for name in sorted(record["files"].keys() - problems.keys()) if record else ():
            check(name, self.checked_file, name)
        if os.path.lexists(self._metrics_path):
            check("metrics.jsonl", self.metrics, _refuse)
        return list(problems.items())

    def not_covered(self, checked: Collection[str]) -> list[str]:
        """The names in the folder of which no hash is recorded, beside those that `verify` has `checked`."""
        inside = () if "checkpoints" in checked else self.path.glob("checkpoints/*")
        names = {path.relative_to(self.path).as_posix() for path in [*self.path.glob("*"), *inside]}
        return sorted(names - {*checked, "checkpoints"} | names & {"metrics.jsonl"})

    # Internals

    @property
    def _checkpoint_folder(self) -> Path:
        """A folder of its own. Raises DamagedFileError for a link: all but the newest files in it are removed."""
        folder = self.path / "checkpoints"
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
            raise damaged(folder, "it is a link or a file, not a folder", "Put a copy of the folder itself there.")
        return folder

    def _tensor_path(self, step: int | None) -> Path:
        """The file of the checkpoint at `step`, or of the model."""
        name = "model.safetensors"
        return self.path / name if step is None else self._checkpoint_folder / f"step-{step:08d}.safetensors"

    def refuse_other_use(self) -> None:
        """Raise RunFolderError if the folder holds a run, or anything but a run whose creation was interrupted."""
        names: set[str] = set()
        with explained_write_errors(self.path), suppress(FileNotFoundError):
            if (self.path / "run.json").exists():
                raise RunFolderError(
                    f"{self.path} already contains a run: choose another --run-dir, or add --resume to continue it."
                )
            names = {path.name for path in self.path.iterdir()}
        unfinished = {"run.lock", "tokenizer.json"} | ({"config.toml"} if "tokenizer.json" in names else set())
        if not self.checkpoints():
            unfinished.add("checkpoints")
        if others := sorted(name for name in names - unfinished if not name.startswith(".")):
            raise RunFolderError(f"{self.path} contains other files ({', '.join(others[:3])}). Choose another folder.")

    def _record(self) -> dict[str, Any]:
        path = self.path / "run.json"
        content = read_regular(path)
        record = read_with_digest(content, _without_digest)
        if not record or _layout(record) != content:
            raise damaged(path, "its SHA-256 does not match the one it records", _MEND_TEXT)
        if type(number := record.get("format")) is int and number != FORMAT_VERSION:
            raise RunFolderError(
                f"{path} has format {number}, but this version of transduce reads format {FORMAT_VERSION}. "
                "Use the version that wrote it."
            )
        with well_formed(path, _MEND_CONTENT):
            files = record["files"]
            if not (matches(record, RECORD) and all(map(_is_plain, files)) and all(files.values())):
                raise ValueError(OTHER_FIELDS)
            if not 0 < (record["facts"].get("calibration") or {}).get("temperature", 1.0) < math.inf:
                raise ValueError("the calibration temperature is not valid")
            if seen := record["facts"].get("seen"):
                Seen.from_dict(seen)
        return record

    def _write_record(self, record: Mapping[str, Any]) -> None:
        record = {"sha256": "", "format": FORMAT_VERSION, **record}
        write_atomically(self.path / "run.json", _layout(with_digest(record, _without_digest)))

    def _write_recorded(self, name: str, content: bytes) -> None:
        """Replace a file whose hash is in `run.json`.

        Two files cannot be replaced at once: in between, `run.json` accepts the old and the new content, so that the
        run is whole whenever the process is killed.
        """
        record, new = self._record(), [sha256_of(content)]
        files = record["files"]
        if name in files:
            self._write_record(record | {"files": files | {name: [*files[name], *new]}})
        write_atomically(self.path / name, content)
        self._write_record(record | {"files": files | {name: new}})

    def _text(self, name: str) -> str:
        content = read_regular(self.path / name)
        if sha256_of(content) not in self._record()["files"][name]:
            raise damaged(self.path / name, "its SHA-256 does not match run.json", _MEND_TEXT)
        with well_formed(self.path / name, _MEND_CONTENT):
            return content.decode()

    @cached_property
    def _belonging(self) -> dict[str, str]:
        """What each tensor file says of the run that it belongs to; runs of before had no id."""
        record = self._record()
        return {"tokenizer": record["files"]["tokenizer.json"][0]} | ({"run": record["id"]} if "id" in record else {})

    def _check_tensors(self, step: int | None, shapes: Shapes | None = None) -> dict[str, Any]:
        """What is recorded with tensors, after a check of all bytes of their file, and of their shapes if given."""
        with verified(self._tensor_path(step)) as (file, metadata):
            if shapes is not None:
                stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
                self.refuse_other_shapes(stored, shapes, step)
            return self._checked_metadata(metadata, step)

    def _checked_metadata(self, metadata: Mapping[str, str], step: int | None) -> dict[str, Any]:
        """What is recorded with tensors, after a check that their file belongs to this run and to this place in it."""
        path, key = self._tensor_path(step), "metadata" if step is None else "state"
        for name, what in (("tokenizer", "a run with another tokenizer"), ("run", "another run")):
            if metadata.get(name) != self._belonging.get(name):
                raise damaged(path, f"it belongs to {what}", TENSOR_ADVICE)
        if metadata.get("step") != (None if step is None else str(step)):
            raise damaged(path, f"it was written for step {metadata.get('step')}", TENSOR_ADVICE)
        content = json_object(metadata.get(key, ""), path, _MEND_TEXT)
        with well_formed(path, TENSOR_ADVICE):
            if step is None and not matches(content, METADATA):
                raise ValueError(OTHER_FIELDS)
            if step is not None and TrainerState.from_dict({"step": step, **content}).step != step:
                raise ValueError("its state is from another step")
        return content


def _layout(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode() + b"\n"


def _without_digest(record: dict[str, Any]) -> bytes:
    """The bytes that the hash in `run.json` covers: all of them, with zeros as the digits of the hash itself."""
    return _layout(record | {"sha256": NO_DIGEST.decode()})


def _is_plain(name: str) -> bool:
    """Whether this is the name of a file in a folder, not hidden, and no path."""
    return name != "" and Path(name).name == name and not name.startswith(".") and name.isprintable()


def _refuse(problem: str) -> None:
    raise DamagedFileError(problem)


def _runs_in(folder: Path) -> str:
    names = sorted(record.parent.name for record in folder.glob("*/run.json"))
    return f" {folder}/ holds: {', '.join(names)}." if names else ""
