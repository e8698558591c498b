"""Pairs to translate: image captions where they can be had, else sentences of a small grammar, and which of the two."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transduce.data.datasets import load_split
from transduce.errors import TransduceError
from transduce.runs.corpus import places_of_environment

Rows = list[tuple[str, str]]  # (English, German)


@dataclass(frozen=True)
class TranslationCorpus:
    """English sentences and their German translations, nothing of the test part in the others."""

    name: str
    is_real: bool
    train: Rows
    valid: Rows
    test: Rows

    def write(self, folder: Path) -> None:
        """`train.en` and `train.de`, `valid.en` and `valid.de`: line k of one belongs to line k of the other."""
        for name, rows in (("train", self.train), ("valid", self.valid)):
            for suffix, side in (("en", 0), ("de", 1)):
                (folder / f"{name}.{suffix}").write_text("".join(f"{row[side]}\n" for row in rows), encoding="utf-8")


def captions() -> TranslationCorpus | None:
    """Multi30k: 29,000 captions of photographs. None where they are neither at hand nor to be fetched."""
    places = places_of_environment()
    try:
        parts = [load_split("multi30k-en-de", split, places) for split in ("train", "valid", "test2016")]
    except TransduceError:
        return None
    train, valid, test = (list(zip(pairs.src, pairs.tgt, strict=True)) for pairs in parts)
    return TranslationCorpus("Multi30k", True, train, valid, test)


def sentences_of_a_grammar(num_train: int = 6_000, num_test: int = 200) -> TranslationCorpus:
    """Sentences of the grammar below, each once; the same on every machine."""
    draw = random.Random("grammar")
    rows: dict[str, str] = {}
    while len(rows) < num_train + 2 * num_test:
        english, german = _sentence(draw)
        rows.setdefault(english, german)
    pairs = list(rows.items())
    parts = (pairs[2 * num_test :], pairs[:num_test], pairs[num_test : 2 * num_test])
    return TranslationCorpus("a small grammar", False, *parts)


# German asks of a translator what English does not say: the gender of nouns, endings that depend on gender and case,
# the verb in second place, its participle at the very end.
_NOUNS = {  # German, gender
    "dog": "Hund m", "man": "Mann m", "tree": "Baum m", "teacher": "Lehrer m", "bird": "Vogel m", "train": "Zug m",
    "woman": "Frau f", "cat": "Katze f", "street": "Straße f", "flower": "Blume f", "door": "Tür f", "river": "Fluss m",
    "child": "Kind n", "house": "Haus n", "book": "Buch n", "horse": "Pferd n", "window": "Fenster n",
    "girl": "Mädchen n",
}  # fmt: skip
_ADJECTIVES = {
    "small": "klein", "old": "alt", "young": "jung", "red": "rot", "beautiful": "schön", "new": "neu", "quiet": "leis",
}  # fmt: skip
_VERBS = {  # English present and participle; German present and participle
    ("sees", "seen"): ("sieht", "gesehen"), ("looks for", "looked for"): ("sucht", "gesucht"),
    ("finds", "found"): ("findet", "gefunden"), ("paints", "painted"): ("malt", "gemalt"),
    ("hears", "heard"): ("hört", "gehört"), ("calls", "called"): ("ruft", "gerufen"),
    ("loses", "lost"): ("verliert", "verloren"), ("knows", "known"): ("kennt", "gekannt"),
}  # fmt: skip
_ADVERBS = {"today": "heute", "there": "dort", "sometimes": "manchmal", "perhaps": "vielleicht", "now": "jetzt"}
_ARTICLES = {  # gender -> (definite as subject, as object, indefinite as subject, as object)
    "m": ("der", "den", "ein", "einen"), "f": ("die", "die", "eine", "eine"), "n": ("das", "das", "ein", "ein"),
}  # fmt: skip


def _sentence(draw: random.Random) -> tuple[str, str]:
    (subject_en, subject_de), (object_en, object_de) = _noun_phrase(draw, 0), _noun_phrase(draw, 1)
    (present_en, participle_en), (present_de, participle_de) = _pick(draw, _VERBS)
    adverb_en, adverb_de = _pick(draw, _ADVERBS) if _below(draw, 2) else ("", "")
    is_perfect = _below(draw, 2)
    verb_en = f"has {participle_en}" if is_perfect else present_en
    verb_de, end_de = ("hat", participle_de) if is_perfect else (present_de, "")
    english = [adverb_en, subject_en, verb_en, object_en]
    german = [adverb_de, verb_de, subject_de] if adverb_de else [subject_de, verb_de]
    return _finished(english), _finished([*german, object_de, end_de])


def _noun_phrase(draw: random.Random, case: int) -> tuple[str, str]:
    """As the subject (case 0) or the object (case 1)."""
    noun_en, noun = _pick(draw, _NOUNS)
    noun_de, gender = noun.split(" ")
    is_indefinite = _below(draw, 2)
    adjective_en, stem = _pick(draw, _ADJECTIVES) if _below(draw, 3) else ("", "")
    article_de = _ARTICLES[gender][2 * is_indefinite + case]
    adjective_de = stem and stem + _ending(gender, case, is_indefinite)
    first = adjective_en or noun_en
    article_en = ("an" if first[0] in "aeiou" else "a") if is_indefinite else "the"
    return " ".join(filter(None, (article_en, adjective_en, noun_en))), " ".join(
        filter(None, (article_de, adjective_de, noun_de))
    )


def _ending(gender: str, case: int, is_indefinite: int) -> str:
    if gender == "m" and case == 1:
        return "en"
    if is_indefinite:
        return {"m": "er", "f": "e", "n": "es"}[gender]
    return "e"


def _finished(parts: list[str]) -> str:
    text = " ".join(filter(None, parts))
    return f"{text[0].upper()}{text[1:]}."


def _pick(draw: random.Random, words: dict[Any, Any]) -> tuple[Any, Any]:
    keys = list(words)
    key = keys[_below(draw, len(keys))]
    return key, words[key]


def _below(draw: random.Random, limit: int) -> int:
    return int(draw.random() * limit)  # the one generator of Python's that every version promises to repeat
