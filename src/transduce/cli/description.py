"""What `describe` prints of a run or a preset."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from transduce.cli.console import number_columns, print_table
from transduce.errors import printable
from transduce.evaluation.definitions import DEFINITIONS
from transduce.inference.forced_decoding import ENOUGH_PAIRS, Calibration


def print_description(description: dict[str, Any]) -> None:
    """Prints what `describe` reports: parameters by part, settings; of a run its model's step, scores, calibration."""
    table = Table("part", *number_columns("parameters"), title=description["name"], title_justify="left")
    for part, count in description["parameters"].items():
        table.add_row(part, f"{count:,}", style="bold" if part == "total" else None)
    print_table(table)
    print(", ".join(f"{name} {value}" for name, value in description["config"].items()))
    if "model_is_of" in description:
        for line in _about_run(description):
            print(printable(line))
        is_imported = "imported" in description["facts"]
        print(_about_confidence(Calibration(**(description["facts"].get("calibration") or {}))))
        print("imported, not trained here" if is_imported else _provenance(description["model_is_of"]))


def _about_run(description: dict[str, Any]) -> Iterator[str]:
    """Lines on when a run was trained, on which data, its test scores and its size."""
    facts, dataset, sizes = description["facts"], description["dataset"], description["bytes"]
    started = facts.get("started", {})
    versions = ", ".join(f"{name} {started[name]}" for name in ("transduce", "torch", "device") if name in started)
    if description["model_file_date"]:
        yield f"model file of {description['model_file_date']}{versions and f'; trained with {versions}'}"
    paths = [path for split, names in facts.get("paths", {}).items() if split != "valid" for path in names]
    source = f"{dataset['name']} (license: {dataset['license']})" if dataset else ", ".join(paths)
    if "num_train_pairs" in facts and "imported" not in facts:
        yield f"data: {facts['num_train_pairs']:,} training pairs{source and f' from {source}'}"
    for name, score in (description["test"] or {}).items():
        label = DEFINITIONS[name].title if name in DEFINITIONS else name
        interval = f"[{score['low']:.2f}, {score['high']:.2f}]"
        yield f"test: {label} {score['value']:.2f} {interval} on {score['num_segments']:,} held-out sources"
    yield f"size: model {sizes['model'] / 1e6:,.1f} MB, folder {sizes['folder'] / 1e6:,.1f} MB"


def _provenance(metadata: dict[str, Any] | None) -> str:
    if metadata is None:
        return "no model yet: the first validation has not run"
    if "steps" in metadata:
        return f"the model is the mean of steps {', '.join(map(str, metadata['steps']))}"
    scores = printable(", ".join(f"{name} {value:.4g}" for name, value in metadata["validation"].items()))
    return f"the model is from step {metadata['step']:,}{scores and f', validation: {scores}'}"


def _about_confidence(calibration: Calibration) -> str:
    if not calibration.num_pairs:
        return "confidence is rough: it was never calibrated"
    rough = f": confidence is rough with fewer than {ENOUGH_PAIRS}" if calibration.is_rough else ""
    return (
        f"calibration_temperature {calibration.temperature:.3f}, fitted on {calibration.num_pairs:,} validation pairs"
        + rough
    )
