"""The encoder-decoder Transformer of "Attention Is All You Need": to understand, train and use."""

from importlib.metadata import version
from typing import Any

__version__ = version("transduce")
