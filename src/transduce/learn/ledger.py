"""The claims ledger: every claim that the notebooks make, the experiment that settles it, and what was expected.

A claim is a table of `notebooks/claims.toml`. What is expected of it is written down before it is measured; what was
measured is written beside that by `make notebooks`. Where it came out otherwise, the first expectation stays (as
`predicted_at_least`, `predicted_at_most`) and is shown, the sentence says what is, and the bounds guard that.
"""

import json
import math
import os
import platform
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from transduce.devices.machine import cpu_model, num_cores
from transduce.errors import MissingInputError, TransduceError
from transduce.files.atomic import write_atomically

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
    predicted_at_least: float | None = None  # what was expected first, where it turned out to be wrong
    predicted_at_most: float | None = None
    fast_at_least: float | None = None  # the same when FAST: the direction alone
    fast_at_most: float | None = None
    shows_when_fast: bool = True  # False: the smallest experiment runs, and is too small to tell the direction
    against: str = ""  # who says otherwise, and what; the measured value decides
    is_timing: bool = False  # depends on the machine: not judged when FAST
    measured: float | None = None
    measured_on: str = ""  # date and machine

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise TransduceError(f"claim {self.name}: what is expected? Set at_least, at_most or both.")
        is_bound_when_fast = self.fast_at_least is not None or self.fast_at_most is not None
        if is_bound_when_fast == (self.is_timing or not self.shows_when_fast):
            raise TransduceError(
                f"claim {self.name}: which way does it go when fast? Set fast_at_least or fast_at_most, or say "
                "is_timing = true or shows_when_fast = false."
            )

    def bounds(self, *, fast: bool) -> tuple[float | None, float | None]:
        """Least and largest value that the claim allows; None where there is no bound."""
        return (self.fast_at_least, self.fast_at_most) if fast else (self.at_least, self.at_most)

    def run(self, *, fast: bool = FAST) -> "Settled":
        """Runs its experiment and settles it, as `settle` does; one that wants for data may be a fast one."""
        result = run_experiment(self.experiment, fast=fast)
        return self.settle(result, fast=getattr(result, "fast", fast))

    def settle(self, result: Any, *, fast: bool = FAST) -> "Settled":
        """Compares what the experiment returned with what was expected. Raises ClaimFailed if it is something else.

        Raises TransduceError if the result has no attribute `value`.
        """
        if not hasattr(result, self.value):
            raise TransduceError(f"claim {self.name}: a {type(result).__name__} has no '{self.value}' to settle it by.")
        settled = Settled(self, float(getattr(result, self.value)), fast)
        if path := os.environ.get(_RECORD):
            with Path(path).open("a") as file:
                file.write(json.dumps({"claim": self.name, "measured": settled.measured, "fast": fast}) + "\n")
        if not settled.holds:
            raise ClaimFailed(str(settled))
        return settled


@cache  # several claims are settled by one experiment
def run_experiment(name: str, *, fast: bool) -> Any:
    """What the experiment MODULE.FUNCTION returns."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(f"transduce.learn.experiments.{module}"), function)(fast=fast)


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
        return _in_words(*self.claim.bounds(fast=self.fast)) or "nothing when fast"

    @property
    def predicted(self) -> str:
        """What had been expected first, if this came out otherwise."""
        return _in_words(self.claim.predicted_at_least, self.claim.predicted_at_most)

    def __str__(self) -> str:
        sentence = self.claim.sentence.format(measured=self.measured)
        verdict = "as expected" if self.holds else "NOT as expected"
        return f"{self.claim.name}: {sentence} Expected {self.expected}, measured {self.measured:.4g}: {verdict}."

    def _repr_markdown_(self) -> str:
        sentence = self.claim.sentence.format(measured=self.measured)
        where = f"paper, section {self.claim.paper} · " if self.claim.paper else ""
        against = f" *Against: {self.claim.against}*" if self.claim.against else ""
        verdict = "Measured, and not as predicted." if self.predicted else "Measured."
        predicted = f"predicted {self.predicted} · " if self.predicted else ""
        return (
            f"> **{verdict}** {sentence}{against}\n>\n"
            f"> <small>{where}{predicted}expected {self.expected}, measured {self.measured:.4g} · "
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
                names = ", ".join(sorted(unknown))
                raise TransduceError(f"{path}: claim {name} has {names}: known are {', '.join(sorted(known))}.")
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
        left = set(measured)
        for line in lines:
            if head := re.match(r"\[([\w-]+)\]", line):
                name = head[1]
            if not (re.match(r"measured(_on)?\s*=", line) and name in measured):
                kept.append(line)
            if name in measured and re.match(r"value\s*=", line):
                kept += [f"measured = {_rounded(measured[name])!r}", f'measured_on = "{said}"']
                left.discard(name)
        if left:
            raise TransduceError(f"{self.path} has no place for what was measured of {', '.join(sorted(left))}.")
        write_atomically(self.path, ("\n".join(kept) + "\n").encode())
        self.claims = Ledger.load(self.path).claims


def _in_words(low: float | None, high: float | None) -> str:
    """The bounds of a number; nothing if there are none."""
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    if low is not None:
        return f"at least {low:g}"
    return "" if high is None else f"at most {high:g}"


def _rounded(value: float) -> float:
    """To four digits; of large numbers, which are counts, to whole ones."""
    return float(round(value)) if 1e4 <= abs(value) < math.inf else float(f"{value:.4g}")


def _nearest() -> Path:
    here = Path.cwd()
    for folder in (here, *here.parents):
        for path in (folder / "claims.toml", folder / "notebooks/claims.toml"):
            if path.is_file():
                return path
    raise MissingInputError("claims.toml is not here: go to the project's folder, or to its notebooks/.")
