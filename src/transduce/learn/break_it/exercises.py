"""Ten patients, `bug-A` to `bug-J`: name the bug; the checker tells which finding speaks against a wrong name."""

from functools import cache
from typing import Any

from transduce.learn.break_it.bugs import LETTERS, admit, name_of
from transduce.learn.break_it.experiments import CANDIDATES, LAWS, broken, examine
from transduce.learn.exercising import Wrong, choices_of, exercise

_LAWS = {law.bug: law for law in LAWS}
_LETTER_OF = {name_of(letter): letter for letter in LETTERS}
_LAST_HINTS = {
    "embeddings are not scaled": "Which law contains the number √d_model?",
    "causal mask leaks by one": "The law about the future is broken, and the loss is too good. How far does it see?",
    "heads are split by view": "Several laws are broken. Which of them is about a single layer without any mask?",
    "padding counts in the loss": "Network and inputs are right. So look at what happens to the outputs.",
    "residual is forgotten": "Which law makes a sub-layer output zeros?",
    "dropout stays on": "Run it twice on the same input.",
    "softmax over the wrong axis": "Three laws are broken. One of them is about a sum.",
    "positions are not added": "It knows which symbols the source has. What does it not know?",
    "target is not shifted": "The network is right. Look at its input: `patient.batch`.",
    "source padding is not masked": "Only one law is broken, and only when the batch holds a longer source.",
}


def _register(letter: str) -> None:
    bug = name_of(letter)
    others = tuple(name for name in CANDIDATES if name != bug)

    @exercise(
        f"bug-{letter}",
        hints=(
            f"Look at row {letter} of the table of laws. The bug must explain all the red cells and no gray one.",
            f"Look at column {letter} of the picture of scores in section 1. Are the scores too good, too bad, or as "
            "good as the healthy model's?",
            _LAST_HINTS[bug],
        ),
        solution=bug,
        wrong=(*others, "the learning rate"),
    )
    def _check(answer: Any) -> None:
        names = choices_of(answer, CANDIDATES)
        if len(names) != 1:
            raise Wrong("Name one bug: each patient has exactly one.")
        if names != {bug}:
            raise Wrong(_what_speaks_against(letter, names.pop()))


def _what_speaks_against(letter: str, guess: str) -> str:
    found = _findings(letter)
    law = _LAWS[guess]
    if law.holds(found[guess]):
        return (
            f"With the bug '{guess}' this law would be broken: “{law.says}” But column '{law.column}' is gray: the "
            f"law holds for {letter}."
        )
    explained = broken(_findings(_LETTER_OF[guess])) if guess in _LETTER_OF else {guess}
    left = [other for other in LAWS if other.bug in broken(found) - explained]
    if left:
        return (
            f"This bug would explain column '{law.column}', but not column '{left[0].column}' "
            f"({found[left[0].bug]:.2g}). There, {letter} breaks this law: “{left[0].says}”"
        )
    return f"This bug would explain all the red cells of {letter}, but it would turn more cells red: compare again."


@cache
def _findings(letter: str) -> dict[str, float]:
    return examine(admit(letter))


for _letter in LETTERS:
    _register(_letter)
