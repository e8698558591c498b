"""The rules of a search from output constraints: texts become ids, and a prefix stays open within its last word."""

import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from transduce.errors import TransduceError
from transduce.inference.alphabet import Alphabet
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints, ForbiddenText, OpenText, Rules
from transduce.text.config import NUM_FIXED_IDS
from transduce.text.tokenizer import Tokenizer


def rules_of(
    constraints: Constraints, decoding: DecodingConfig, tokenizer: Tokenizer, alphabet: Alphabet | None
) -> Rules:
    """The rules of a source with these constraints. Raises TransduceError if the search cannot keep to them."""
    if constraints.required and (decoding.is_sampling or decoding.beam_size == 1):
        raise TransduceError("required texts need beam search: set the beam size above 1, and temperature to 0.")
    # A token carries the space before a word; a space at the end of a text says that a word ends there.
    strip = str.rstrip if tokenizer.config.target == "characters" else str.strip
    texts = [constraints.prefix, *(strip(text, " ") or text for text in constraints.required)]
    prefix, *required = (tuple(ids[:-1]) for ids in tokenizer.encode_target(texts))
    whole = tuple(ids for ids, text in zip(required, constraints.required, strict=True) if text.endswith(" "))
    token_bytes = tokenizer.target_bytes() if constraints != Constraints() else []
    alphabet, last_word = alphabet and alphabet.including_ids([*prefix, *chain(*required)]), None
    if constraints.prefix:
        prefix, last_word = _split_prefix(constraints.prefix, prefix, token_bytes, alphabet)
    return Rules(
        eos_id=tokenizer.eos_id,
        prefix=prefix,
        last_word=last_word,
        required=tuple(required),
        whole=whole,
        within_words=tuple(i for i, text in enumerate(token_bytes) if whole and text and text[:1] != b" "),
        forbidden=tuple(
            ForbiddenText(text.encode(), token_bytes) for text in tokenizer.normal_target(constraints.forbidden)
        ),
        min_len=decoding.min_len,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        alphabet=alphabet,
    )


def _split_prefix(
    text: str, ids: tuple[int, ...], token_bytes: list[bytes], alphabet: Alphabet | None
) -> tuple[tuple[int, ...], OpenText]:
    """The ids of a prefix before its last word, or the space at its end, and that: outputs may go on within it."""
    start = max((place for place, i in enumerate(ids) if token_bytes[i][:1] == b" "), default=0)
    word = b"".join(token_bytes[i] for i in ids[start:])
    if text.endswith(" ") and not word.endswith(b" "):  # sentencepiece leaves it out
        start, word = len(ids), b" "
    usable = set(range(NUM_FIXED_IDS, len(token_bytes))) - alphabet.banned if alphabet else range(len(token_bytes))
    return ids[:start], OpenText(word, ids[start:], token_bytes, usable)


def with_characters(rules: Rules, characters: Iterable[str]) -> Rules:
    """The rules of a source with characters that are new to the model; those that control a terminal are left out."""
    assert rules.alphabet is not None
    visible = [character for character in characters if unicodedata.category(character) != "Cc"]
    return replace(rules, alphabet=rules.alphabet.including(visible, visible))
