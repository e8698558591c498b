"""Normal forms of text: lines with the same form are the same to a tokenizer."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

Form = Literal["nfc", "nfd", "nfkc", "lower", "strip", "spaces"]

# By name; each is applied to a whole line. Lower case before nfc: a small letter may have a composed form where its
# capital has none (ǰ).
FORMS: dict[Form, Callable[[str], str]] = {
    "nfc": partial(unicodedata.normalize, "NFC"),  # one code point for a letter and its marks, where there is one
    "nfd": partial(unicodedata.normalize, "NFD"),  # letters and marks apart
    "nfkc": partial(unicodedata.normalize, "NFKC"),  # nfc, and one form of ligatures, full-width letters, exponents
    "lower": str.lower,
    "strip": str.strip,  # no whitespace at the ends
    "spaces": partial(re.compile(r"\s+").sub, " "),  # each run of whitespace is one space
}
# Forms that only choose among encodings of the same text; all others lose something, which a target must not.
CANONICAL_FORMS: tuple[Form, ...] = ("nfc", "nfd")


def in_normal_form(lines: Sequence[str], forms: Sequence[Form]) -> Sequence[str]:
    """`lines` in the normal forms of these names, one applied after the other."""
    for form in forms:
        lines = [FORMS[form](line) for line in lines]
    return lines
