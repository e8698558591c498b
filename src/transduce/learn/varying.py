"""Experiments run otherwise than they say: for more steps, at other learning rates, from another seed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Trained:
    """What one training of an experiment was, and where it ended."""

    steps: int
    rate: float  # the highest
    loss: float  # mean of the last 20 steps, or on held-out pairs where the training pairs come again
    seconds: float


@dataclass
class Variation:
    """How the trainings of an experiment depart from what it says, and what came of each, in the order they ran."""

    steps: int = 1  # times as many
    rates: Sequence[float] = ()  # times the learning rate: one factor for each training; 1 where there are too few
    seed: int = 0  # added to the seed of every training
    trained: list[Trained] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The factor for the training that comes next."""
        number = len(self.trained)
        return self.rates[number] if number < len(self.rates) else 1.0


_current = [Variation()]


def variation() -> Variation:
    """The one in force: outside `varied`, nothing departs."""
    return _current[-1]


@contextmanager
def varied(steps: int = 1, rates: Sequence[float] = (), seed: int = 0) -> Iterator[Variation]:
    """A block in which all trainings are varied, and written down."""
    _current.append(Variation(steps, rates, seed))
    try:
        yield _current[-1]
    finally:
        _current.pop()
