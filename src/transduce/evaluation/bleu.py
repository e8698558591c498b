"""The tokenizer that BLEU needs for a text, and notes on texts for which BLEU is the wrong score."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from sacrebleu.metrics import BLEU

from transduce.text.scripts import CHINESE, KANA, UNSPACED

References: TypeAlias = Sequence[Sequence[str | None]]

_LETTERS_PER_SPACE = 6  # with fewer, there are spaces between words all the same: the text has been segmented
_SHARE_FOR_BLEU = 0.1  # of the lines that need four tokens
_LOOKS_TOKENIZED = 0.25  # share of the lines that end in " ."


def tokenizer_for(references: References) -> str:
    """The tokenizer of sacreBLEU that suits the references: 13a splits at spaces, which some scripts do not have."""
    num_of = Counter("".join(_lines(references)))

    def count(holds: Callable[[str], object]) -> int:
        return sum(number for character, number in num_of.items() if holds(character))

    unspaced, letters = count(_is_unspaced), count(lambda each: each.isalnum() or _is_unspaced(each))
    if 2 * unspaced <= letters or letters < _LETTERS_PER_SPACE * count(str.isspace):
        return "13a"
    # sacreBLEU's zh splits Chinese alone; Japanese has Chinese characters, too, but among them always some of its own.
    chinese, kana = (count(re.compile(f"[{script}]").match) for script in (CHINESE, KANA))
    return "zh" if 2 * chinese > unspaced and chinese > 9 * kana else "char"


def has_bleu(references: References, tokenizer: str = "") -> bool:
    """Whether enough references have the four tokens that BLEU counts: a few lines would decide the score alone."""
    split = BLEU(tokenize=tokenizer or tokenizer_for(references))._preprocess_segment
    are_long = [split(line).count(" ") >= 3 for line in _lines(references)]
    return sum(are_long) >= max(1, _SHARE_FOR_BLEU * len(are_long))


def default_metrics(metrics: Sequence[str], references: References) -> tuple[str, ...]:
    """Default `metrics`, with `exact_match` in place of a `bleu` that cannot be computed."""
    if "bleu" not in metrics or has_bleu(references):
        return tuple(metrics)
    return tuple(dict.fromkeys("exact_match" if name == "bleu" else name for name in metrics))


def notes_on(metrics: Sequence[str], references: References) -> list[str]:
    """Warnings about these metrics on these references, one line each."""
    names = [name for name in metrics if name.startswith("bleu") and not has_bleu(references, name[len("bleu:") :])]
    notes = [f"hardly any reference has four tokens: {name} says little or is 0, so use exact_match" for name in names]
    lines = list(_lines(references))
    if "bleu" in metrics and sum(line.endswith(" .") for line in lines) > _LOOKS_TOKENIZED * len(lines):
        notes.append("the targets look tokenized already: for such text, publish tokenized_bleu")
    return notes


def _lines(references: References) -> Iterator[str]:
    return (line for reference_set in references for line in reference_set if line)


def _is_unspaced(character: str) -> bool:
    """Whether a character, of a script without spaces or an emoji, may follow another without one."""
    return unicodedata.category(character) == "So" or bool(re.match(f"[{UNSPACED}]", character))
