"""A run's tokenizer as one of the `tokenizers` library: a JSON file that needs neither torch nor this package.

It gives the same ids and the same text for every line. The fixed ids get the names by which the library spells unknown
characters (<0x00> to <0xFF>); no line is read as one of them, because letters, digits and punctuation are in different
subwords and a word has a space before it. Special tokens are not declared: the library would find their names in text.

Differs from ours only for ids that no text is encoded to: bytes that are not UTF-8 become one U+FFFD each, where ours
keeps what can be read of them, and an end symbol inside is skipped, where ours ends the text.
"""

import json
import sys
from collections.abc import Sequence
from functools import cache
from typing import Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from transduce.errors import TransduceError
from transduce.text.config import CONTROL_NAMES, NUM_FIXED_IDS, Kind
from transduce.text.normal_form import Form
from transduce.text.tokenizer import Tokenizer
from transduce.text.vocabulary import SUBWORD_BORDERS, Vocabulary

Side = Literal["source", "target"]

_MARK = "\n"  # in no line: no text is read as a token whose name has it
_NEWLINE_BYTE = r"\A<0x0A>\z"
_CONTROL = rf"\A({'|'.join(CONTROL_NAMES)})\z"


def library_tokenizer(tokenizer: Tokenizer, side: Side) -> tokenizers.Tokenizer:
    """The library's tokenizer of one side: a line to ids, ended by eos, and ids to text.

    It may encode a target by source-only subwords, which `Tokenizer.encode_target` spells by others. Raises
    TransduceError for the tokenizer of an imported model.
    """
    vocabulary = _vocabulary(tokenizer, side)
    library = _assemble(vocabulary, _names(vocabulary), _decoder(vocabulary.kind))
    return _normalizing(library, tokenizer.config.normalize if side == "source" else tokenizer.config.target_forms)


def two_sided_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """One tokenizer for both sides: a line to source ids, and target ids to text.

    Target ids are ours; source ids come after them, each raised by `target_vocab_size`.
    """
    source, target = _vocabulary(tokenizer, "source"), _vocabulary(tokenizer, "target")
    target_names, source_names = _names(target), _names(source)
    num_controls = len(CONTROL_NAMES)
    names = [*target_names[:num_controls], *(_MARK + name for name in target_names[num_controls:])]
    names += [*(_MARK + name for name in source_names[:num_controls]), *source_names[num_controls:]]
    strip_mark = decoders.Replace(tokenizers.Regex(rf"\A{_MARK}"), "")
    decoder = decoders.Sequence([strip_mark, _decoder(target.kind)])
    return _normalizing(_assemble(source, names, decoder), tokenizer.config.normalize)


def _vocabulary(tokenizer: Tokenizer, side: Side) -> Vocabulary:
    content = json.loads(tokenizer.to_json())["content"]
    saved = content[side] or content["target"]  # one for both sides is saved once
    if saved["kind"] == "sentencepiece":
        raise TransduceError(
            f"the {side} tokenizer of this imported model is SentencePiece's own, which the tokenizers library cannot "
            "express: use the files of the original model."
        )
    return Vocabulary.from_dict(saved)


def _names(vocabulary: Vocabulary) -> list[str]:
    """The name of each id in the library: its subword, except for the fixed ids and the empty word.

    An empty word is a space; under that name the library would take it for the first character of an unknown word.
    """
    fixed = [vocabulary.name(i) for i in range(NUM_FIXED_IDS)]
    pieces = vocabulary.tokens[NUM_FIXED_IDS:]
    return [*fixed, *(_MARK if vocabulary.kind == "words" and piece == " " else piece for piece in pieces)]


def _assemble(vocabulary: Vocabulary, names: list[str], decoder: decoders.Decoder) -> tokenizers.Tokenizer:
    """The library's tokenizer that encodes lines by `vocabulary`, whose ids have the last of `names`."""
    id_of = {name: i for i, name in enumerate(names)}
    assert len(id_of) == len(names), "no subword has the name of another id"
    first_id = len(names) - len(vocabulary.tokens)
    if vocabulary.kind == "unigram":  # it needs an unknown id, but never uses it: every character has its bytes
        scores = (0.0,) * (first_id + NUM_FIXED_IDS) + vocabulary.scores
        library = tokenizers.Tokenizer(models.Unigram(list(zip(names, scores, strict=True)), 0, byte_fallback=True))
    else:
        is_whole = vocabulary.kind == "words"
        library = tokenizers.Tokenizer(
            models.BPE(id_of, list(vocabulary.merges), byte_fallback=True, ignore_merges=is_whole)
        )
    _split_as(library, vocabulary)
    eos_id = first_id + Tokenizer.eos_id
    end = names[eos_id]
    library.post_processor = processors.TemplateProcessing(single=["$A", end], special_tokens=[(end, eos_id)])
    library.decoder = decoder
    return library


def _split_as(library: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """Set how the library splits a line before it looks for subwords."""
    prepend_space = normalizers.Prepend(" ")  # except to the empty line
    if vocabulary.kind == "words":
        name_empty_words = normalizers.Replace(tokenizers.Regex(r" (?= |\z)"), _MARK)
        has_empty_words = " " in vocabulary.tokens  # else they are spelled by a byte
        steps = [prepend_space, name_empty_words] if has_empty_words else [prepend_space]
        library.normalizer = normalizers.Sequence(steps)
        library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(f"{_MARK}| [^ {_MARK}]*"), "isolated")
    elif vocabulary.kind != "characters":
        alphabet = (piece for piece in vocabulary.tokens[NUM_FIXED_IDS:] if len(piece) == 1)
        known = "".join(rf"\x{{{ord(character):X}}}" for character in alphabet)
        # As in `vocabulary`, the newline keeps the brackets from being empty.
        unknown_apart = pre_tokenizers.Split(tokenizers.Regex(f"[^{_MARK}{known}]"), "isolated")
        library.normalizer = prepend_space
        library.pre_tokenizer = pre_tokenizers.Sequence([unknown_apart, SUBWORD_BORDERS])


def _normalizing(library: tokenizers.Tokenizer, forms: Sequence[Form]) -> tokenizers.Tokenizer:
    """The same, with lines brought into these normal forms first."""
    own = library.normalizer
    if steps := [step for form in forms for step in _steps(form)]:
        library.normalizer = normalizers.Sequence([*steps, own] if own else steps)
    return library


def _steps(form: Form) -> list[normalizers.Normalizer]:
    """A normal form of ours as steps of the library, whose own idea of whitespace and of small letters is another."""
    if form == "lower":  # a Σ at the end of a word becomes ς, as in str.lower
        final = tokenizers.Regex(r"(?<=\p{Cased})Σ(?!\p{Case_Ignorable}*\p{Cased})")
        return [normalizers.Replace(final, "ς"), normalizers.Lowercase()]
    if form == "strip":
        return [normalizers.Replace(tokenizers.Regex(rf"\A{_spaces()}|{_spaces()}\z"), "")]
    if form == "spaces":
        return [normalizers.Replace(tokenizers.Regex(_spaces()), " ")]
    return [getattr(normalizers, form.upper())()]


@cache
def _spaces() -> str:
    """A run of what Python takes for whitespace, as a regular expression."""
    codes = (rf"\x{{{i:X}}}" for i in range(sys.maxunicode + 1) if chr(i).isspace())
    return f"[{''.join(codes)}]+"


def _decoder(kind: Kind) -> decoders.Decoder:
    """The decoder, which joins the names of ids to text."""
    steps: list[decoders.Decoder] = [
        decoders.Replace(tokenizers.Regex(_CONTROL), ""),
        decoders.Replace(tokenizers.Regex(_NEWLINE_BYTE), "\N{REPLACEMENT CHARACTER}"),  # text stays one line
        decoders.Replace(_MARK, " "),  # the empty word
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    return decoders.Sequence(steps if kind == "characters" else [*steps, decoders.Strip(" ", 1, 0)])
