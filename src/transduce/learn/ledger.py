"""The claims ledger: every claim that the notebooks make, the experiment that settles it, and what was expected.

A claim is a table of `notebooks/claims.toml`. Its bounds are written down before it is measured; what was measured is
written beside them by `make notebooks`. A claim that turns out otherwise stays, with its bounds and its number.
"""

import json
import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from transduce.errors import MissingInputError, TransduceError
from transduce.machine import cpu_model, num_cores

FAST = os.environ.get("TRANSDUCE_FAST", "") not in ("", "0")  # experiments at the smallest size that shows the effect
_RECORD = "TRANSDUCE_MEASURED"  # names a file that gets a line of JSON for every claim that is settled


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One table of the ledger."""

    name: str
    sentence: str  # with {measured} where its number belongs
    paper: str  # the section that says so, or "" for what is said elsewhere
    experiment: str  # MODULE.FUNCTION of `transduce.learn.experiments`
    value: str  # the attribute of what the experiment returns
    at_least: float | None = None
    at_most: float | None = None
    fast_at_least: float | None = None  # the same when FAST: the direction alone
    fast_at_most: float | None = None
    against: str = ""  # who says otherwise, and what; the measured value decides
    is_timing: bool = False  # depends on the machine: not judged when FAST
    measured: float | None = None
    measured_on: str = ""  # date and machine

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise TransduceError(f"claim {self.name}: what is expected? Set at_least, at_most or both.")
        if not self.is_timing and self.fast_at_least is None and self.fast_at_most is None:
            raise TransduceError(f"claim {self.name}: which way does it go? Set fast_at_least or fast_at_most.")

    def bounds(self, *, fast: bool) -> tuple[float | None, float | None]:
        """Least and largest value that the claim allows; None where there is no bound."""
        if not fast:
            return self.at_least, self.at_most
        return (None, None) if self.is_timing else (self.fast_at_least, self.fast_at_most)

    def run(self, *, fast: bool = FAST) -> "Settled":
        """Runs its experiment and settles it."""
        module, _, function = self.experiment.rpartition(".")
        experiment = getattr(import_module(f"transduce.learn.experiments.{module}"), function)
        return self.settle(experiment(fast=fast), fast=fast)

    def settle(self, result: Any, *, fast: bool = FAST) -> "Settled":
        """Compares what the experiment returned with what was expected. Raises ClaimFailed if it is something else."""
        settled = Settled(self, float(getattr(result, self.value)), fast)
        if path := os.environ.get(_RECORD):
            with Path(path).open("a") as file:
                file.write(json.dumps({"claim": self.name, "measured": settled.measured, "fast": fast}) + "\n")
        if not settled.holds:
            raise ClaimFailed(str(settled))
        return settled


class ClaimFailed(AssertionError):  # noqa: N818 - it reads as what happened
    """A measured value lies outside what its claim allows."""


@dataclass(frozen=True)
class Settled:
    """A claim beside what was measured for it: Markdown in a notebook, one line elsewhere."""

    claim: Claim
    measured: float
    fast: bool

    @property
    def holds(self) -> bool:
        low, high = self.claim.bounds(fast=self.fast)
        # Written so that a measured NaN never holds.
        return (low is None or self.measured >= low) and (high is None or self.measured <= high)

    @property
    def expected(self) -> str:
        low, high = self.claim.bounds(fast=self.fast)
        if low is not None and high is not None:
            return f"from {low:g} to {high:g}"
        if low is not None:
            return f"at least {low:g}"
        return "nothing when fast" if high is None else f"at most {high:g}"

    def __str__(self) -> str:
        sentence = self.claim.sentence.format(measured=self.measured)
        verdict = "as expected" if self.holds else "NOT as expected"
        return f"{self.claim.name}: {sentence} Expected {self.expected}, measured {self.measured:.4g}: {verdict}."

    def _repr_markdown_(self) -> str:
        sentence = self.claim.sentence.format(measured=self.measured)
        where = f"paper, section {self.claim.paper} · " if self.claim.paper else ""
        against = f" *Against: {self.claim.against}*" if self.claim.against else ""
        return (
            f"> **Measured.** {sentence}{against}\n>\n"
            f"> <small>{where}expected {self.expected}, measured {self.measured:.4g} · "
            f"`python -m transduce.learn {self.claim.name}`</small>"
        )


class Ledger:
    """All claims, by name."""

    def __init__(self, claims: Mapping[str, Claim], path: Path) -> None:
        self.claims, self.path = claims, path

    @classmethod
    def load(cls, path: Path | None = None) -> "Ledger":
        """The ledger at `path`; by default the nearest one at or above the current folder."""
        path = path or _nearest()
        known = {field.name for field in fields(Claim)} - {"name"}
        claims = {}
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if unknown := set(table) - known:
                raise TransduceError(f"{path}: claim {name} has {', '.join(sorted(unknown))}: known are {known}.")
            claims[name] = Claim(name=name, **table)
        return cls(claims, path)

    def __getitem__(self, name: str) -> Claim:
        if name not in self.claims:
            raise TransduceError(f"there is no claim '{name}' in {self.path}; there are: {', '.join(self.claims)}.")
        return self.claims[name]

    def settle(self, name: str, result: Any, *, fast: bool = FAST) -> Settled:
        """Compares one attribute of `result` with what was expected of it."""
        return self[name].settle(result, fast=fast)

    def write_measured(self, measured: Mapping[str, float]) -> None:
        """Writes what was measured into the file, beside what was expected; everything else stays as it is."""
        lines, name, kept = self.path.read_text(encoding="utf-8").rstrip("\n").split("\n"), "", []
        said = f"{date.today().isoformat()}, {num_cores()} cores of {cpu_model()}, torch {torch.__version__}"
        said = f"{said}, Python {platform.python_version()}"
        for line in lines:
            name = line[1:-1] if line.startswith("[") else name
            if not (line.startswith("measured") and name in measured):
                kept.append(line)
            if name in measured and line.startswith("value ="):
                kept += [f"measured = {_rounded(measured[name])!r}", f'measured_on = "{said}"']
        self.path.write_text("\n".join(kept) + "\n", encoding="utf-8")
        self.__dict__.pop("claims", None)
        self.claims = Ledger.load(self.path).claims

    @cached_property
    def experiments(self) -> dict[str, list[str]]:
        """The claims that each experiment settles."""
        found: dict[str, list[str]] = {}
        for claim in self.claims.values():
            found.setdefault(claim.experiment, []).append(claim.name)
        return found


def _rounded(value: float) -> float:
    """To four digits; of large numbers, which are counts, to whole ones."""
    return float(round(value)) if abs(value) >= 1e4 else float(f"{value:.4g}")


def _nearest() -> Path:
    here = Path.cwd()
    for folder in (here, *here.parents):
        for path in (folder / "claims.toml", folder / "notebooks/claims.toml"):
            if path.is_file():
                return path
    raise MissingInputError("claims.toml is not here: go to the project's folder, or to its notebooks/.")
