"""Annotated shapes are checked at every call.

As `jaxtyping.install_import_hook` does it, but once: it checks arguments before a call and again with the value after
it, which is half of the time of a test in which a small network computes.
"""

import ast
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped


def checked(definition: Any) -> Any:
    """A function, or a class whose constructor a dataclass made, that is true to its annotations or raises."""
    if isinstance(definition, type):
        if dataclasses.is_dataclass(definition):
            definition.__init__ = checked(definition.__init__)
        return definition
    function: Callable = beartype(definition)
    if not any(map(has_shapes, definition.__annotations__.values())):
        return function

    @wraps(definition)
    def call(*arguments: Any, **more: Any) -> Any:
        with jaxtyped("context"):  # in which "batch" is one number
            return function(*arguments, **more)

    return call


def has_shapes(annotation: Any) -> bool:
    """Whether it is the type of an array or holds one."""
    is_array = isinstance(annotation, type) and issubclass(annotation, AbstractArray)
    return is_array or any(map(has_shapes, get_args(annotation)))


class Loader(SourceFileLoader):
    """Decorates what a module defines; leaves no bytecode that others would take for that of the module."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        for node in ast.walk(tree):
            decorator = ast.parse(f"__import__('{__name__}').checked", mode="eval").body
            if isinstance(node, ast.FunctionDef):  # the innermost: others may hide what is annotated
                node.decorator_list.append(decorator)
            elif isinstance(node, ast.ClassDef):
                node.decorator_list.insert(0, decorator)
        return self.source_to_code(ast.fix_missing_locations(tree), path)


class Finder(PathFinder):
    checked: Sequence[str] = ()

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if not f"{fullname}.".startswith(tuple(f"{name}." for name in cls.checked)):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def check_shapes_in(modules: Sequence[str]) -> None:
    """Of modules that are yet to be imported, or of whole packages."""
    Finder.checked = modules
    sys.meta_path.insert(0, Finder)
