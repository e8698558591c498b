"""The folder of an exported model: refused early, certified by its own engine, there whole or not at all."""

import json
import os
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Protocol, cast

import torch

from transduce.devices import machine
from transduce.errors import RunFolderError
from transduce.export.certificate import Certificate, Engine, Exported, Lines, certify
from transduce.files.atomic import write_atomically
from transduce.files.folders import new_folder
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor

# The packages that each format is written and run by; its module has the format's name.
_PACKAGES = {
    "ctranslate2": ("ctranslate2",),
    "onnx": ("onnx", "onnxruntime"),
    "huggingface": ("transformers",),
}


class Format(Protocol):
    """What a module of this package knows of the format it is named after."""

    TITLE: str

    def refuse(self, predictor: Predictor, *, int8: bool) -> None: ...
    def write(self, predictor: Predictor, folder: Path, *, int8: bool) -> None: ...
    def open_engine(self, folder: Path, predictor: Predictor) -> Engine: ...
    def unexpressed(self, decoding: DecodingConfig) -> list[str]: ...
    def usage(self, predictor: Predictor) -> str: ...


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
    """Writes the model as `format` has it into the new folder `output`, and says how far its answers are the run's.

    Raises TransduceError before anything is written where the format cannot hold the run, RunFolderError where
    `output` exists or cannot be written. However it ends, nothing but a whole folder is left.
    """
    known = cast(Format, import_module(f"transduce.export.{format}"))
    known.refuse(predictor, int8=int8)
    exported = Exported(
        format=format,
        precision="int8" if int8 else "float32",
        versions=_versions(format),
        model_sha256=model_sha256,
        unexpressed=known.unexpressed(predictor.decoding),
    )
    num_bytes = sum(4 * parameter.numel() for parameter in predictor.model.parameters())  # at most
    _refuse_place(output)
    with new_folder(output, num_bytes) as folder:
        known.write(predictor, folder, int8=int8)
        engine = known.open_engine(folder, predictor)
        report(f"written; comparing the answers of {known.TITLE} with those of the run")
        certificate = certify(predictor, engine, lines, exported)
        for name, text in (
            ("certificate.json", json.dumps(certificate.as_dict(), ensure_ascii=False, indent=1) + "\n"),
            ("README.md", _readme(known, predictor, certificate)),
        ):
            write_atomically(folder / name, text.encode())
    return certificate


def _refuse_place(output: Path) -> None:
    if os.path.lexists(output):
        raise RunFolderError(f"{output} exists already: choose another folder for -o, or remove that one first.")
    if not output.parent.is_dir():
        raise RunFolderError(f"{output}: there is no folder {output.parent}: make it first, or choose another for -o.")


def _versions(format: str) -> dict[str, str]:
    installed = {name: metadata.version(name) for name in (*_PACKAGES[format], "tokenizers")}
    return {"transduce": machine.version(), "torch": torch.__version__, **installed}


def _readme(known: Format, predictor: Predictor, certificate: Certificate) -> str:
    """How to use the folder without this package, and how far it can be trusted."""
    exported = certificate.exported
    versions = ", ".join(f"{name} {version}" for name, version in exported.versions.items())
    header, *rows = [f"| {' | '.join(row)} |\n" for row in certificate.table()]
    rule = "|---" * len(certificate.table()[0]) + "|\n"
    unexpressed = "".join(f"- {line}\n" for line in exported.unexpressed)
    not_said = f"\nThe run was made to be searched in ways that {known.TITLE} does not have:\n\n{unexpressed}"
    return f"""\
# A model of transduce for {known.TITLE}

From text to text, with {known.TITLE} alone, in this folder:

```python
{known.usage(predictor)}```

The answer to a blank line is a blank line; nothing was trained on one.

## Are its answers those of the run?

{certificate.num_lines:,} lines of {certificate.lines_from} were answered by the run and by this folder:
`certificate.json` has all of it.

{header}{rule}{"".join(rows)}
{certificate.verdict}
{not_said if unexpressed else ""}
Weights: {exported.precision}, of the run whose `model.safetensors` has the SHA-256 `{exported.model_sha256}`.
Written by {versions}.
"""
