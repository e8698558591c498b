"""The file for the `tokenizers` library gives the ids and the text that our own tokenizer gives."""

from collections.abc import Sequence
from functools import cache
from typing import get_args

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transduce.errors import TransduceError
from transduce.export.tokenizer_files import Side, library_tokenizer, two_sided_tokenizer
from transduce.text.config import Kind, TokenizerConfig
from transduce.text.normal_form import Form
from transduce.text.tokenizer import Tokenizer

KINDS = get_args(Kind)
SIDES = get_args(Side)

# With an empty word on the source side (two blanks), and none on the other.
ENGLISH = ["the old man sees the dog.", 'a dog said: "the man runs and runs".', "two men and 17 dogs  run", "the<0x41>"]
GERMAN = ["der alte Mann sieht den Hund.", 'ein Hund sagte: "der Mann läuft".', "zwei Männer und 17 Hunde laufen"]


def learn(source: Kind, target: Kind, src: Sequence[str] = ENGLISH, tgt: Sequence[str] = GERMAN, joint: bool = False):
    return Tokenizer.learn(TokenizerConfig(source=source, target=target, joint=joint, vocab_size=330), src, tgt)


def reloaded(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(library.to_str())


TOKENIZERS = {kind: learn(kind, kind) for kind in KINDS}


@cache
def with_forms(kind: Kind, form: Form) -> Tokenizer:
    config = TokenizerConfig(source=kind, target=kind, joint=False, vocab_size=330, normalize=(form,))
    return Tokenizer.learn(config, ENGLISH, GERMAN)


@cache
def normalizing_library(kind: Kind, form: Form) -> tokenizers.Tokenizer:
    return reloaded(library_tokenizer(with_forms(kind, form), "source"))


LIBRARIES = {
    (kind, side): reloaded(library_tokenizer(tokenizer, side))
    for kind, tokenizer in TOKENIZERS.items()
    for side in SIDES
}
ENCODERS = {"source": Tokenizer.encode_source, "target": Tokenizer.encode_target}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_side = pytest.mark.parametrize("side", SIDES)
a_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))
# What the library writes for ids, what our tokenizer does, and text at the borders of what both split at.
NOTATION = "</s>|<s>|<pad>|<unk>|<0x41>|<0x0A>|▁|##|Ġ|\U0010f000|\U0010f002|\U0010f044|\U0010f102|\U0010f103|]|^|\\|-"
BORDERS = (
    " |  |\t|\xa0|\0|\r|\x85|\u2028|\ufeff|\ufffd|\u0301|\u200d|\U0010ffff|👩\u200d👩\u200d👧|中|שלום|é|7|.|the|Hund"
)
a_tricky_line = st.lists(st.sampled_from([*NOTATION.split("|"), *BORDERS.split("|")])).map("".join)


@each_kind
@each_side
@settings(derandomize=True, deadline=None, max_examples=150)
@given(line=a_line | a_tricky_line)
def test_any_line_has_the_same_ids_and_comes_back(kind: Kind, side: Side, line: str) -> None:
    library = LIBRARIES[kind, side]
    (ids,) = ENCODERS[side](TOKENIZERS[kind], [line])
    assert library.encode(line).ids == ids
    assert library.decode(ids) == line


@each_kind
@pytest.mark.parametrize("form", get_args(Form))
@settings(derandomize=True, deadline=None, max_examples=25)
@given(line=a_line | a_tricky_line)
@example(line="\x1c ΛΟΓΟΣ ΟΔΟΣ, Σ \u3000J\u030c İ ﬁ ２\t ")
def test_a_normal_form_is_the_same_in_the_library(kind: Kind, form: Form, line: str) -> None:
    tokenizer = with_forms(kind, form)
    library = normalizing_library(kind, form)
    assert library.encode(line).ids == tokenizer.encode_source([line])[0]


@each_kind
def test_one_character_of_each_block_of_unicode_has_the_same_ids(kind: Kind) -> None:
    lines = [chr(point) for point in range(0, 0x110000, 0xFB) if point != 0x0A and not 0xD800 <= point < 0xE000]
    encodings = LIBRARIES[kind, "source"].encode_batch(lines)
    assert [encoding.ids for encoding in encodings] == TOKENIZERS[kind].encode_source(lines)


@each_kind
def test_the_empty_line_is_its_end_alone(kind: Kind) -> None:
    assert LIBRARIES[kind, "source"].encode("").ids == [Tokenizer.eos_id]


@each_kind
def test_control_ids_are_no_text(kind: Kind) -> None:
    (ids,) = TOKENIZERS[kind].encode_target(["der Hund"])
    assert LIBRARIES[kind, "target"].decode([Tokenizer.bos_id, *ids, Tokenizer.pad_id]) == "der Hund"


@each_kind
def test_a_newline_spelled_by_its_byte_leaves_the_text_one_line(kind: Kind) -> None:
    newline = 3 + 0x0A
    text = LIBRARIES[kind, "target"].decode([newline])
    assert text == TOKENIZERS[kind].decode_target([newline]) == "\ufffd"


@each_kind
@settings(derandomize=True, deadline=None, max_examples=30)
@given(lines=st.lists(a_line | a_tricky_line, max_size=4), line=a_line | a_tricky_line)
def test_ids_are_the_same_whatever_was_learnt_from(kind: Kind, lines: list[str], line: str) -> None:
    tokenizer = learn(kind, kind, lines, lines)
    library = library_tokenizer(tokenizer, "source")
    for text in [line, *lines]:
        (ids,) = tokenizer.encode_source([text])
        assert library.encode(text).ids == ids
        assert library.decode(ids) == text


@each_kind
def test_a_joint_vocabulary_is_the_same_file_for_both_sides(kind: Kind) -> None:
    tokenizer = learn(kind, kind, joint=True)
    assert library_tokenizer(tokenizer, "source").to_str() == library_tokenizer(tokenizer, "target").to_str()


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_a_two_sided_tokenizer_reads_sources_and_writes_targets(source: Kind, target: Kind) -> None:
    tokenizer = learn(source, target, tgt=[*GERMAN, "zwei  Blanks"])
    library = reloaded(two_sided_tokenizer(tokenizer))
    for line in ["", " ", "the dogs  run ", "zwei  Blanks", "a</s>b <pad> <0x41>", "ein 👩\u200d👧 \U0010f044 Hund\t"]:
        (src,), (tgt,) = tokenizer.encode_source([line]), tokenizer.encode_target([line])
        assert library.encode(line).ids == [i + tokenizer.target_vocab_size for i in src]
        assert library.decode(tgt) == line


def test_the_tokenizer_of_an_imported_model_is_refused_in_one_line() -> None:
    class Imported:
        def to_json(self) -> str:
            return '{"content": {"source": null, "target": {"kind": "sentencepiece"}}}'

    with pytest.raises(TransduceError, match=r"^the source tokenizer of this imported model is SentencePiece's own.*$"):
        library_tokenizer(Imported(), "source")
