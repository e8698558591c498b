"""Ten patients, `bug-A` to `bug-J`: name the bug; the checker says which finding speaks against a wrong name."""

from functools import cache
from typing import Any

from transduce.learn.break_it.bugs import LETTERS, admit, name_of
from transduce.learn.break_it.experiments import CANDIDATES, LAWS, broken, examine
from transduce.learn.exercising import Wrong, choices_of, exercise

_LAWS = {law.bug: law for law in LAWS}
_LETTER_OF = {name_of(letter): letter for letter in LETTERS}
_LAST_HINTS = {
    "embeddings are not scaled": "Which law knows the number √d_model?",
    "causal mask leaks by one": "A law about time is broken, and the loss is too good. How far does it see?",
    "heads are split by view": "Several laws are broken. Which one speaks of a single layer, without any mask?",
    "padding counts in the loss": "Network and inputs are right. So look at what is done with the outputs.",
    "residual is forgotten": "Which law asks a sub-layer to say nothing?",
    "dropout stays on": "Ask it twice.",
    "softmax over the wrong axis": "Three laws are broken. One is about the sum of something.",
    "positions are not added": "It knows which symbols there are. What does it not know?",
    "target is not shifted": "The network is right. Look at what it is given: `patient.batch`.",
    "source padding is not masked": "One law is broken, and only in company.",
}


def _register(letter: str) -> None:
    bug = name_of(letter)
    others = tuple(name for name in CANDIDATES if name != bug)

    @exercise(
        f"bug-{letter}",
        hints=(
            f"Go along row {letter} of the table of laws. A bug must explain all the red, and nothing grey.",
            f"Compare with column {letter} of the picture of scores in section 1. Is it too good, too bad, or as if "
            "nothing were wrong?",
            _LAST_HINTS[bug],
        ),
        solution=bug,
        wrong=(*others, "the learning rate"),
    )
    def _check(answer: Any) -> None:
        names = choices_of(answer, CANDIDATES)
        if len(names) != 1:
            raise Wrong("Name one bug: each patient has one alone.")
        if names != {bug}:
            raise Wrong(_what_speaks_against(letter, names.pop()))


def _what_speaks_against(letter: str, guess: str) -> str:
    found = _findings(letter)
    law = _LAWS[guess]
    if law.holds(found[guess]):
        return (
            f"If {guess}, this would be broken: «{law.says}» But column '{law.column}' is grey: it holds in {letter}."
        )
    explained = broken(_findings(_LETTER_OF[guess])) if guess in _LETTER_OF else {guess}
    left = [other for other in LAWS if other.bug in broken(found) - explained]
    if left:
        return (
            f"It would explain column '{law.column}', but not '{left[0].column}' ({found[left[0].bug]:.2g}), where "
            f"{letter} breaks: «{left[0].says}»"
        )
    return f"It would explain all that is red in {letter}, but more would be red then: compare the columns again."


@cache
def _findings(letter: str) -> dict[str, float]:
    return examine(admit(letter))


for _letter in LETTERS:
    _register(_letter)
