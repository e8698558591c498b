"""Export of a run: a new folder, certified by the engine it is for, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from pathlib import Path
from typing import Protocol, cast

import torch

from transduce.data.config import IN_MEMORY
from transduce.data.download import Places
from transduce.data.pairs import read_pairs
from transduce.data.texts import list_texts
from transduce.devices import machine
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError, nearest
from transduce.evaluation.evaluate import as_lists
from transduce.export.certificate import Certificate, Engine, Exported, Lines, certify
from transduce.files.atomic import new_folder, write_atomically
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.runs.corpus import pairs_at_hand, places_of_environment
from transduce.runs.folder import RunFolder
from transduce.runs.run import Run

_WITHOUT_ALPHABET = "only characters of the training targets: this engine may, rarely, write others"

# The packages that write and run each format; the format's module has its name.
_PACKAGES = {
    "ctranslate2": ("ctranslate2",),
    "onnx": ("onnx", "onnxruntime"),
    "huggingface": ("transformers",),
}


class Format(Protocol):
    """The interface of the modules of this package that are named after a format."""

    TITLE: str

    def refuse(self, predictor: Predictor, *, int8: bool) -> None:
        """Raise TransduceError if the format cannot express the run."""

    def write(self, predictor: Predictor, folder: Path, *, int8: bool) -> None:
        """Write the network, the tokenizers and the search settings."""

    def open_engine(self, folder: Path, predictor: Predictor) -> Engine:
        """The written model, run by the program that it is for."""

    def unexpressed(self, decoding: DecodingConfig) -> list[str]:
        """The decoding settings that the format does not have, one line each."""

    def usage(self, predictor: Predictor) -> str:
        """A Python program that predicts with the exported folder."""


def export(
    run: Run,
    format: str,
    folder: str | Path,
    *,
    int8: bool = False,
    sources: Iterable[str] | None = None,
    references: Iterable[str] | Iterable[Iterable[str]] | None = None,
) -> Certificate:
    """Export a run to the new folder `folder`: "ctranslate2", "onnx" or "huggingface", with `int8` for the first two.

    The certificate compares outputs for `sources`, with BLEU where `references` are given; by default for pairs that
    the run held out. Raises as `export_run` does.
    """
    if format not in _PACKAGES:
        raise TransduceError(f"there is no format {format!r}.{nearest(str(format), _PACKAGES)}")
    if sources is None:
        lines = held_out_lines(run.folder, places_of_environment())
    else:
        given: list[str] = list_texts(sources, "source")
        sets: list[list[str | None]] = []
        if references is not None:
            given, sets, _ = as_lists(given, references, ())
        lines = Lines(sources=given, references=cast(list[list[str]], sets), origin="the texts given")
    return export_run(
        run, Path(folder), format=format, int8=int8, lines=lines, model_sha256=run.model_sha256, report=run.report
    )


def copy_run(run: RunFolder, folder: Path) -> None:
    """Copy a run to the new folder `folder`, whole or not at all, without the checkpoints to resume from.

    Raises DamagedFileError if a byte of it has changed, RunFolderError as `export_run` does.
    """
    source = RunFolder.open(run.path).path
    _refuse_place(folder)
    with new_folder(folder) as temporary:
        left_out = shutil.ignore_patterns("checkpoints", "run.lock", ".*")
        shutil.copytree(source, temporary, symlinks=True, ignore=left_out, dirs_exist_ok=True)
        if problems := [problem for _, problem in RunFolder(temporary).verify() if problem]:
            raise DamagedFileError(problems[0].replace(str(temporary), str(source)))


def held_out_lines(folder: RunFolder, places: Places) -> Lines:
    """The pairs that a run held out of training. Raises MissingInputError if they are not where they were."""
    if parts := [path for path in map(folder.checked_file, ("test.source", "test.target")) if path]:  # by `fit`
        held_out = read_pairs(parts)
        return Lines(sources=held_out.src, references=[held_out.tgt], origin="the test part that `fit` held out")
    pairs = pairs_at_hand("valid", folder.settings.data, folder, places)
    if pairs is None:
        reason = "were in memory" if IN_MEMORY in folder.settings.data.valid else "have moved or changed"
        raise MissingInputError(
            f"the validation pairs of {folder.path} {reason}: give others to compare, with --source FILE or sources=."
        )
    return Lines(sources=pairs.src, references=[pairs.tgt], origin="the run's validation pairs")


def export_run(
    predictor: Predictor,
    output: Path,
    *,
    format: str,
    int8: bool,
    lines: Lines,
    model_sha256: str,
    report: Callable[[str], None],
) -> Certificate:
    """Export a model to the new folder `output`; return the certificate of how far its outputs are the run's.

    Raises TransduceError, before anything is written, if the format cannot express the run, RunFolderError if `output`
    exists or cannot be written. Whatever happens, no partial folder is left.
    """
    module = cast(Format, import_module(f"transduce.export.{format}"))
    module.refuse(predictor, int8=int8)
    exported = Exported(
        format=format,
        precision="int8" if int8 else "float32",
        versions=_versions(format),
        model_sha256=model_sha256,
        unexpressed=[*module.unexpressed(predictor.decoding), *([_WITHOUT_ALPHABET] if predictor.alphabet else [])],
    )
    num_bytes = sum(4 * parameter.numel() for parameter in predictor.model.parameters())  # in float32, the largest
    _refuse_place(output)
    with new_folder(output, num_bytes) as folder:
        module.write(predictor, folder, int8=int8)
        engine = module.open_engine(folder, predictor)
        report(f"written; comparing its outputs in {module.TITLE} with the run's")
        certificate = certify(predictor, engine, lines, exported)
        text = json.dumps(certificate.as_dict(), ensure_ascii=False, indent=1) + "\n"
        write_atomically(folder / "certificate.json", text.encode())
        write_atomically(folder / "README.md", _readme(module, predictor, certificate).encode())
    return certificate


def _refuse_place(output: Path) -> None:
    if os.path.lexists(output):
        raise RunFolderError(f"{output} already exists: choose another folder for -o, or remove it first.")
    if not output.parent.is_dir():
        raise RunFolderError(f"{output}: there is no folder {output.parent}: make it first, or choose another for -o.")


def _versions(format: str) -> dict[str, str]:
    installed = {name: metadata.version(name) for name in (*_PACKAGES[format], "tokenizers")}
    return {"transduce": machine.version(), "torch": torch.__version__, **installed}


def _readme(module: Format, predictor: Predictor, certificate: Certificate) -> str:
    """The README of an exported folder: how to use it without this package, and how far it equals the run."""
    exported = certificate.exported
    versions = ", ".join(f"{name} {version}" for name, version in exported.versions.items())
    header, *rows = [f"| {' | '.join(row)} |\n" for row in certificate.table()]
    rule = "|---" * len(certificate.table()[0]) + "|\n"
    unexpressed = "".join(f"- {line}\n" for line in exported.unexpressed)
    limitations = f"\nThe run's decoding settings include some that {module.TITLE} does not have:\n\n{unexpressed}"
    return f"""\
# A transduce model for {module.TITLE}

Text in, text out, with {module.TITLE} alone, in this folder:

```python
{module.usage(predictor)}```

An empty line gives an empty line.

## Do its outputs match the run's?

{certificate.num_lines:,} lines of {certificate.lines_from} were decoded by the run and by this folder;
`certificate.json` has the details.

{header}{rule}{"".join(rows)}
{certificate.verdict}
{limitations if unexpressed else ""}
Weights: {exported.precision}, from the run whose `model.safetensors` has the SHA-256 `{exported.model_sha256}`.
Written by {versions}.
"""
