"""Folders that come with the package, of files that are no modules: configs, recipes, notebooks."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped_folder(name: str) -> Path:
    """In an installed package it lies among the modules, in a checkout beside `src`."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name
