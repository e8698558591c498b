"""The encoder-decoder Transformer of "Attention Is All You Need": to understand, train and use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transduce.inference.predictor import Predictor, load
    from transduce.runs.fit import fit
    from transduce.runs.train import train

    __version__: str

__all__ = ["Predictor", "__version__", "fit", "load", "train"]

_HOMES = {"Predictor": "inference.predictor", "fit": "runs.fit", "load": "inference.predictor", "train": "runs.train"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `transduce --help` need not wait for torch."""
    if name == "__version__":
        return import_module("transduce.devices.machine").version()
    if name not in _HOMES:
        raise AttributeError(f"module 'transduce' has no attribute '{name}'")
    return getattr(import_module(f"transduce.{_HOMES[name]}"), name)
