"""What the reader predicted, shown back beside what came out, and how far off it was."""

import textwrap
from typing import Any

from transduce.learn.exercising import number_of
from transduce.learn.showing import Shown, text


def predicted(guess: Any, outcome: str | float, why: str) -> Shown:
    """The reader's prediction beside the outcome, a letter or a number, and the reason for it.

    A prediction that was left open, as `...`, is no error, nor is one that is no letter or no number.
    """
    result = outcome if isinstance(outcome, str) else f"{outcome:.3g}"
    if guess is ...:
        verdict = f"It is {result}."
    elif isinstance(outcome, str):
        said = textwrap.shorten(str(guess), 40).strip().upper()
        verdict = f"You said {said}, and {said} it is." if said == outcome else f"You said {said}; it is {result}."
    else:
        verdict = f"{_distance(guess, outcome)} It is {result}."
    return text("\n".join(textwrap.wrap(f"{verdict} {why}", 110)))


def _distance(guess: Any, outcome: float) -> str:
    try:
        off = number_of(guess) - outcome
    except Exception:  # whatever the reader wrote, the notebook goes on
        return f"You said {textwrap.shorten(repr(guess), 40)}."
    return f"You said {guess}: {abs(off):.2g} too {'high' if off > 0 else 'low'}."
