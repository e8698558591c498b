"""The encoder-decoder Transformer of "Attention Is All You Need": to understand, train and use."""

import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transduce.inference.config import DecodingConfig
    from transduce.inference.constraints import Constraints
    from transduce.inference.predictor import Predictor
    from transduce.runs.fit import fit
    from transduce.runs.run import Run, compare, load
    from transduce.runs.train_pairs import train

    __version__: str

__all__ = [
    "Constraints", "DecodingConfig", "Predictor", "Run", "__version__", "compare", "fit", "load", "train",
]  # fmt: skip

# Modules of version 0.1 and where they are now. One that has become a package still gives the names it once held.
_MOVED = {
    "annotation": "inference.forced_decoding", "beams": "inference.beam_search",
    "benchmarking": "cli.benchmark.training", "catalogue": "data.datasets", "certified_files": "files.certified",
    "checkpoint": "runs.folder", "cli": "cli.main", "config": "config.toml", "constraints": "inference.constraints",
    "corpus": "runs.corpus", "cpu_settings": "devices.cpu", "cuda_graphs": "devices.graphs", "data": "data.batches",
    "datasets": "data.datasets", "decoding": "inference.search", "decoding_speed": "cli.benchmark.decoding",
    "decompression": "data.compression", "distributed": "training.distributed", "experiment": "runs.train",
    "explaining": "inference.explain", "explanation_page": "inference.explain_page", "fetching": "data.download",
    "files": "files.atomic", "fitting": "runs.fit", "importing": "export.marian", "inference": "inference.engine",
    "inspection": "inference.attention_maps", "linear_maps": "inference.linear", "loss": "training.loss",
    "machine": "devices.machine", "metric_definitions": "evaluation.definitions", "metrics": "evaluation.metrics",
    "monitoring": "runs.monitoring", "muon": "training.muon", "optim": "training.optim",
    "packed_batches": "data.packed_batches", "pair_rows": "data.parsing", "parser": "cli.parser",
    "preparation": "data.large.prepare", "preparation_jobs": "data.large.jobs",
    "prepared_folder": "data.large.prepared_file", "pronouncing_dictionary": "data.datasets",
    "streams": "cli.console", "worker_processes": "data.large.workers",
    "large_files": "data.large.scan", "matrix_products": "cli.benchmark.matrix_products",

    "predictor": "inference.predictor", "progress": "training.state", "reading": "data.pairs",
    "reproducing": "cli.recipes", "scoring": "evaluation.evaluate", "sentencepieces": "text.sentencepiece",
    "settings": "config.settings", "small_tasks": "data.synthetic", "stopping": "training.signals",
    "tasks": "runs.tasks", "tensor_files": "files.tensors", "tokenizer": "text.tokenizer",
    "train_step": "training.step", "trainer": "training.trainer", "unigram": "text.unigram",
    "vocabulary": "text.vocabulary", "word_table": "text.word_cache",
}  # fmt: skip


class _Package(ModuleType):
    """A package that imports a public name on first use, so that help and settings do not wait for torch."""

    _homes: Mapping[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "__version__" and self.__name__ == __name__:
            return import_module("transduce.devices.machine").version()
        if name in self._homes:
            return getattr(import_module(f"{self.__name__}.{self._homes[name]}"), name)
        new = _MOVED.get(self.__name__.removeprefix("transduce."))
        if new and not name.startswith("_") and find_spec(f"{self.__name__}.{name}") is None:
            module = import_module(f"transduce.{new}")
            if hasattr(module, name):
                _warn_of_move(f"{self.__name__}.{name}", f"{module.__name__}.{name}")
                return getattr(module, name)
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")

    def __dir__(self) -> list[str]:
        return sorted({*self._homes, *(name for name in super().__dir__() if name.startswith("__"))})

    def __setattr__(self, name: str, value: Any) -> None:
        # The import of a submodule does not hide a public name that it shares: `model.attention` is a function.
        if not (isinstance(value, ModuleType) and name in self._homes):
            super().__setattr__(name, value)


class _MovedModules(MetaPathFinder, Loader):
    """The import of a module of version 0.1 from where it is now."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        return ModuleSpec(name, self) if package == "transduce" and old in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = f"transduce.{_MOVED[module.__name__.rpartition('.')[2]]}"
        _warn_of_move(module.__name__, new)
        sys.modules[module.__name__] = import_module(new)


def _warn_of_move(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}: the old name works until version 0.3.", DeprecationWarning, stacklevel=3)


def import_when_used(package: str, homes: Mapping[str, str]) -> None:
    """Give `package` its public names, each imported from its submodule on first use."""
    module = sys.modules[package]
    module.__class__ = _Package
    module.__dict__["_homes"] = homes


sys.meta_path.append(_MovedModules())
_HOMES = {
    "Constraints": "inference.constraints", "DecodingConfig": "inference.config", "Predictor": "inference.predictor",
    "Run": "runs.run", "compare": "runs.run", "fit": "runs.fit", "load": "runs.run", "train": "runs.train_pairs",
}  # fmt: skip
import_when_used(__name__, _HOMES)
