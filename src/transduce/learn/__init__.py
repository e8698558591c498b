"""What the notebooks are made with: pictures, experiments, exercises and the claims ledger. For teachers, too."""

from transduce.learn.exercising import Exercise, Wrong, check, exercise, hint, solution
from transduce.learn.ledger import FAST, Claim, ClaimFailed, Ledger, Settled
from transduce.learn.showing import Shown, guessed, page, source_of

__all__ = [
    "FAST",
    "Claim",
    "ClaimFailed",
    "Exercise",
    "Ledger",
    "Settled",
    "Shown",
    "Wrong",
    "check",
    "exercise",
    "guessed",
    "hint",
    "page",
    "solution",
    "source_of",
]
