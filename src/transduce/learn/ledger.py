"""The claims ledger: every claim that the notebooks make, the experiment that settles it, and what was expected.

A claim is a table of `notebooks/claims.toml`. Its bounds guard it: a measurement outside them is an error. Where they
are not those that stood there before anything was measured, `first_expected` says what did, and is shown. What was
measured is written into the file by `make notebooks`; how a claim about trainings fares at another rate and for four
times the steps, by `make claims`.
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
from transduce.errors import TransduceError
from transduce.files.atomic import write_atomically
from transduce.learn.notebooks import FOLDER

FAST = os.environ.get("TRANSDUCE_FAST", "") not in ("", "0")  # experiments at the smallest size that shows the effect
LONGER = 4  # times the steps of an experiment, where it is tried for longer
OTHER_RATE = 0.3  # times its learning rates, where it is tried at others
_RECORD = "TRANSDUCE_MEASURED"  # names a file that gets a line of JSON for every claim that is settled


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One table of the ledger."""

    name: str
    sentence: str  # with {measured} where its number belongs
    paper: str  # the section that says so, or "" for what is said elsewhere
    experiment: str  # MODULE.FUNCTION within `transduce.learn`
    value: str  # the attribute of what the experiment returns
    at_least: float | None = None
    at_most: float | None = None
    first_expected: str = ""  # before anything was measured, where that was something else, in words
    first_commit: str = ""  # in which it stood so
    fast_at_least: float | None = None  # the same when FAST: the direction alone
    fast_at_most: float | None = None
    shows_when_fast: bool = True  # False: the smallest experiment runs, and is too small to tell the direction
    against: str = ""  # who says otherwise, and what; the measured value decides
    is_timing: bool = False  # depends on the machine: not judged when FAST
    measured: float | None = None
    measured_on: str = ""  # date and machine
    # Of claims that compare trainings (see `retraining`):
    seeds: int = 0  # of each training, whose mean it is; 0: it compares no trainings
    starts: int = 1  # of the whole experiment, each from other seeds, where it is tried otherwise: three if it is close
    steps: int = 0
    rates: tuple[float, ...] = ()  # the highest and the lowest that were tried
    at_other_rate: float | None = None  # measured, at 0.3 times the rates
    longer: float | None = None  # measured, for four times the steps, each training at the better rate

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise TransduceError(f"claim {self.name}: what is expected? Set at_least, at_most or both.")
        is_bound_when_fast = self.fast_at_least is not None or self.fast_at_most is not None
        if is_bound_when_fast == (self.is_timing or not self.shows_when_fast):
            raise TransduceError(
                f"claim {self.name}: which way does it go when fast? Set fast_at_least or fast_at_most, or say "
                "is_timing = true or shows_when_fast = false."
            )

    def said(self, measured: float) -> str:
        """The sentence with its numbers."""
        return self.sentence.format(
            measured=measured,
            measured_in_percent=100 * measured,
            steps=self.steps,
            longer_steps=LONGER * self.steps,
            longer=math.nan if self.longer is None else self.longer,
            at_other_rate=math.nan if self.at_other_rate is None else self.at_other_rate,
        )

    def points_the_same_way(self, value: float) -> bool:
        """Whether a number lies within the bounds of a fast run, which are about the direction alone, or, without them,
        has the sign of the full ones; of a claim that two things are alike, within its full bounds around 0."""
        if self.at_least is not None and self.at_most is not None and self.at_least < 0 < self.at_most:
            return self.at_least <= value <= self.at_most
        low, high = self.bounds(fast=self.shows_when_fast)
        if not self.shows_when_fast:
            low, high = (0.0 if low is not None else None), (0.0 if high is not None and high <= 0 else high)
        return (low is None or value >= low) and (high is None or value <= high)

    @property
    def otherwise(self) -> str:
        """How long it trained, and what came at another rate and for longer; nothing if it compares no trainings."""
        if self.longer is None or self.at_other_rate is None:
            return ""
        seeds = f"{self.seeds} seeds" if self.seeds > 1 else "one seed"
        starts = f" (means of {self.starts} starts)" if self.starts > 1 else ""
        return (
            f"{self.steps:,} steps, {seeds}; {self.at_other_rate:.4g} at {OTHER_RATE:g} times the learning rate, "
            f"{self.longer:.4g} after {LONGER * self.steps:,} steps at the better of the two{starts}"
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
    return getattr(import_module(f"transduce.learn.{module}"), function)(fast=fast)


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
        """Whether the measured value is within the bounds of the claim."""
        low, high = self.claim.bounds(fast=self.fast)
        # Written so that a measured NaN never holds.
        return (low is None or self.measured >= low) and (high is None or self.measured <= high)

    @property
    def expected(self) -> str:
        """The bounds of the claim in words."""
        return in_words(*self.claim.bounds(fast=self.fast)) or "nothing when fast"

    def __str__(self) -> str:
        sentence = self.claim.said(self.measured)
        verdict = "as expected" if self.holds else "NOT as expected"
        return (
            f"{self.claim.name}: {sentence} Expected {self.expected}, measured {in_digits(self.measured)}: {verdict}."
        )

    def _repr_markdown_(self) -> str:
        claim = self.claim
        notes = [
            f"paper, section {claim.paper}" if claim.paper else "",
            f"first expected {claim.first_expected} ({claim.first_commit[:7]})" if claim.first_expected else "",
            f"guarded by {self.expected.removeprefix('from ')}"
            if claim.first_expected
            else f"expected {self.expected}",
            f"measured {in_digits(self.measured)}",
            "" if self.fast else claim.otherwise,
            f"`python -m transduce.learn {claim.name}`",
        ]
        against = f" *Against: {claim.against}*" if claim.against else ""
        small = " · ".join(filter(None, notes))
        return f"> **Measured.** {claim.said(self.measured)}{against}\n>\n> <small>{small}</small>"


class Ledger:
    """All claims, by name."""

    def __init__(self, claims: Mapping[str, Claim], path: Path) -> None:
        self.claims, self.path = claims, path

    @classmethod
    def load(cls, path: Path | None = None) -> "Ledger":
        """The ledger at `path`; by default the nearest one at or above the current folder, or else the package's."""
        path = path or _nearest()
        known = {field.name for field in fields(Claim)} - {"name"}
        claims = {}
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if unknown := set(table) - known:
                names = ", ".join(sorted(unknown))
                raise TransduceError(f"{path}: claim {name} has {names}: known are {', '.join(sorted(known))}.")
            claims[name] = Claim(name=name, **table | {"rates": tuple(table.get("rates", ()))})
        return cls(claims, path)

    def __getitem__(self, name: str) -> Claim:
        if name not in self.claims:
            raise TransduceError(f"there is no claim '{name}' in {self.path}; there are: {', '.join(self.claims)}.")
        return self.claims[name]

    def recorded(self, name: str) -> Settled:
        """What was measured when the ledger was last written: for what takes longer than a reader waits."""
        claim = self[name]
        return Settled(claim, math.nan if claim.measured is None else claim.measured, fast=False)

    def settle(self, name: str, result: Any, *, fast: bool = FAST) -> Settled:
        """Compares one attribute of `result` with what was expected of it."""
        return self[name].settle(result, fast=fast)

    def write_measured(self, measured: Mapping[str, float]) -> None:
        """Writes what was measured, when and where."""
        said = f"{date.today().isoformat()}, {num_cores()} cores of {cpu_model()}, torch {torch.__version__}"
        said = f"{said}, Python {platform.python_version()}"
        self.write({name: {"measured": rounded(value), "measured_on": said} for name, value in measured.items()})

    def write(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes fields of claims into the file, behind what they are measured by; all else stays as it is."""
        lines, kept = self.path.read_text(encoding="utf-8").rstrip("\n").split("\n"), []
        new: Mapping[str, Any] = {}
        left = set(values)
        for line in lines:
            if head := re.match(r"\[([\w-]+)\]", line):
                new = values.get(head[1], {})
                left.discard(head[1])
            if not ((field := re.match(r"(\w+)\s*=", line)) and field[1] in new):
                kept.append(line)
            if re.match(r"value\s*=", line):
                kept += [
                    f"{name} = {json.dumps(value) if isinstance(value, str) else value}" for name, value in new.items()
                ]
        if left:
            raise TransduceError(f"{self.path} has no place for what was measured of {', '.join(sorted(left))}.")
        write_atomically(self.path, ("\n".join(kept) + "\n").encode())
        self.claims = Ledger.load(self.path).claims


def in_words(low: float | None, high: float | None) -> str:
    """The bounds of a number; nothing if there are none."""
    if low is not None and high is not None:
        return f"exactly {in_digits(low)}" if low == high else f"from {in_digits(low)} to {in_digits(high)}"
    if low is not None:
        return f"at least {in_digits(low)}"
    return "" if high is None else f"at most {in_digits(high)}"


def in_digits(value: float) -> str:
    """Four digits; all of a large whole number, which is a count."""
    return f"{value:,.0f}" if abs(value) >= 1e4 and float(value).is_integer() else f"{value:.4g}"


def rounded(value: float) -> float:
    """To four digits; of large numbers, which are counts, to whole ones."""
    return float(round(value)) if 1e4 <= abs(value) < math.inf else float(f"{value:.4g}")


def _nearest() -> Path:
    here = Path.cwd()
    for folder in (here, *here.parents):
        for path in (folder / "claims.toml", folder / "notebooks/claims.toml"):
            if path.is_file():
                return path
    return FOLDER / "claims.toml"
