"""The text of the CMU pronouncing dictionary as rows of words and phonemes, and splits that share no word."""

import hashlib
import re

_TEST_PERCENT = 5
_VALID_PERCENT = 2
_SPELLING = re.compile(r"[a-z'.-]*[a-z][a-z'.-]*")  # "'cause", "x-ray", "a.m."
_VARIANT = re.compile(r"\(\d+\)$")
_WITHOUT_STRESS = str.maketrans("", "", "012")


def pronunciations(dictionary: str) -> list[tuple[str, str]]:
    """Words with their phonemes, once each, from lines such as `a(2) EY1 # a letter`: "a", "EY".

    The number of the variant, the digits of stress and the comment are left out, and so is every line whose word holds
    anything but letters, apostrophes, hyphens and full stops, or no letter.
    """
    rows: dict[tuple[str, str], None] = {}
    for line in dictionary.split("\n"):
        entry, _, phonemes = line.partition("#")[0].strip().partition(" ")
        word = _VARIANT.sub("", entry)
        if phonemes and _SPELLING.fullmatch(word):
            rows[word, " ".join(phonemes.translate(_WITHOUT_STRESS).split())] = None
    return list(rows)


def split_words(words: set[str]) -> dict[str, set[str]]:
    """Distinct words by the order of their SHA-256: the lowest are "test", the next "valid", the rest "train"."""
    ordered = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    num_test = len(words) * _TEST_PERCENT // 100
    num_held_out = num_test + len(words) * _VALID_PERCENT // 100
    return {
        "train": set(ordered[num_held_out:]),
        "valid": set(ordered[num_test:num_held_out]),
        "test": set(ordered[:num_test]),
    }
