"""What the notebooks are made with: pictures, experiments, exercises and the claims ledger. For teachers, too.

Each lesson has a folder under the name of its notebook: its experiments, exercises and pictures. What stands beside the
folders serves several lessons.

An exercise is a checker with hints, an answer that is right and answers that are wrong:

    from transduce.learn import Wrong, check, exercise, returned

    @exercise("softmax-sum", hints=("Add them up.",), solution=sum, wrong=(max, lambda weights: None))
    def _check(answer):
        if abs(returned(answer([0.25, 0.75])) - 1) > 1e-6:
            raise Wrong("Weights 0.25 and 0.75 sum to 1.")

    check("softmax-sum", max)  # softmax-sum: not yet. Weights 0.25 and 0.75 sum to 1.

A claim is a table of `claims.toml`: a sentence, the experiment that settles it, and what is expected of its number.

    [copying-is-easy]
    sentence = "After 200 steps {measured:.0%} of new words are copied rightly."
    paper = ""
    experiment = "my_lesson.experiments.copying"    # within transduce.learn, for `python -m transduce.learn`
    value = "share_right"                    # an attribute of what it returns
    at_least = 0.9
    fast_at_least = 0.1

`Ledger.load().settle("copying-is-easy", result)` compares, shows the sentence with its number, and raises ClaimFailed
if the number is something else.
"""

from typing import TYPE_CHECKING

from transduce import import_when_used

if TYPE_CHECKING:
    from transduce.learn.exercising import (
        Exercise,
        Wrong,
        check,
        choices_of,
        exercise,
        hint,
        is_close,
        number_of,
        returned,
        solution,
        tensor_of,
    )
    from transduce.learn.ledger import FAST, Claim, ClaimFailed, Ledger, Settled
    from transduce.learn.showing import Shown, guessed, page, source_of

_HOMES = {
    "Claim": "ledger",
    "ClaimFailed": "ledger",
    "Exercise": "exercising",
    "FAST": "ledger",
    "Ledger": "ledger",
    "Settled": "ledger",
    "Shown": "showing",
    "Wrong": "exercising",
    "check": "exercising",
    "choices_of": "exercising",
    "exercise": "exercising",
    "guessed": "showing",
    "hint": "exercising",
    "is_close": "exercising",
    "number_of": "exercising",
    "page": "showing",
    "returned": "exercising",
    "solution": "exercising",
    "source_of": "showing",
    "tensor_of": "exercising",
}
__all__ = [*_HOMES]
import_when_used(__name__, _HOMES)
