"""The tokenizer gives back the text it was given, numbers its ids as promised, and learns the same thing every time."""

import json
import os
import subprocess
import sys
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transduce.errors import DamagedFileError, TransduceError
from transduce.text.config import Kind, TokenizerConfig
from transduce.text.tokenizer import Tokenizer

KINDS = get_args(Kind)
SUBWORDS = ("bpe", "unigram")
NUM_FIXED_IDS = 3 + 256

ENGLISH = [
    "the old man sees the dog.",
    "the old dog sees the man, and the man runs.",
    'a dog said: "the man runs and runs".',
    "two men and 17 dogs  run",
]
GERMAN = [
    "der alte Mann sieht den Hund.",
    "der alte Hund sieht den Mann, und der Mann läuft.",
    'ein Hund sagte: "der Mann läuft und läuft".',
    "zwei Männer und 17 Hunde  laufen",
]


def learn(kind: Kind, src: list[str] = ENGLISH, tgt: list[str] = GERMAN, *, joint: bool = True, size: int = 400):
    return Tokenizer.learn(TokenizerConfig(source=kind, target=kind, joint=joint, vocab_size=size), src, tgt)


TOKENIZERS = {kind: learn(kind) for kind in KINDS}

each_kind = pytest.mark.parametrize("kind", KINDS)
a_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))
# Text that resembles the tokenizer's own notation, or sits at its borders.
OUR_NOTATION = "the dog|▁|</s>|<s>|<pad>|<unk>|<UNK>|<0x41>|\U0010f000|\U0010f044|\U0010f102|\U0010f103|]|^|\\|-"
HARD_TO_KEEP = (
    " |  |\t|\xa0|\0|\r|\x85|\u2028|\u2029|\ufeff|\ufffd|\u0301|\u200d|\U0010ffff|👩\u200d👩\u200d👧|中|שלום|é|7|."
)
a_tricky_line = st.lists(st.sampled_from([*OUR_NOTATION.split("|"), *HARD_TO_KEEP.split("|")])).map("".join)


def round_trip(tokenizer: Tokenizer, line: str) -> tuple[str, str]:
    (source,), (target,) = tokenizer.encode_source([line]), tokenizer.encode_target([line])
    return tokenizer.decode_source(source), tokenizer.decode_target(target)


@each_kind
@settings(derandomize=True, deadline=None, max_examples=200)
@given(line=a_line)
def test_any_unicode_text_comes_back_exactly(kind: Kind, line: str) -> None:
    assert round_trip(TOKENIZERS[kind], line) == (line, line)


@each_kind
@settings(derandomize=True, deadline=None, max_examples=200)
@given(line=a_tricky_line)
def test_text_that_looks_like_our_notation_comes_back_exactly(kind: Kind, line: str) -> None:
    assert round_trip(TOKENIZERS[kind], line) == (line, line)


@each_kind
@settings(derandomize=True, deadline=None, max_examples=100)
@given(lines=st.lists(a_line | a_tricky_line, max_size=5), line=a_line | a_tricky_line)
@example(lines=["<UNK> <UNK> <UNK>"], line="<UNK>")
@example(lines=["\U0010f044 \U0010f044"], line="\U0010f044")
@example(lines=["a\0b a\0b"], line="a\0b")
def test_text_comes_back_exactly_whatever_was_learnt_from(kind: Kind, lines: list[str], line: str) -> None:
    tokenizer = learn(kind, lines, lines, size=300)
    for text in [line, *lines]:
        assert round_trip(tokenizer, text) == (text, text)


@each_kind
@pytest.mark.parametrize("text", ["</s>", "<s>", "<pad>", "a</s>b", "<pad> <pad>"])
def test_control_names_in_the_text_are_text(kind: Kind, text: str) -> None:
    tokenizer = learn(kind, [text, *ENGLISH], [text, *GERMAN])
    for either in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        (ids,) = either.encode_target([text])
        assert min(ids[:-1]) > either.eos_id
        assert either.decode_target(ids) == text


@each_kind
def test_a_typed_byte_name_is_not_that_byte(kind: Kind) -> None:
    tokenizer = learn(kind, ["<0x41> <0x41> <0x41>"], ["A <0x41>"])
    assert round_trip(tokenizer, "<0x41>") == ("<0x41>", "<0x41>")
    assert tokenizer.encode_target(["<0x41>"]) != tokenizer.encode_target(["A"])


@each_kind
def test_a_typed_lower_block_is_not_a_blank(kind: Kind) -> None:
    tokenizer = learn(kind, ["a▁b a b"], ["a b▁ ▁b"])
    assert round_trip(tokenizer, "▁a ▁b▁") == ("▁a ▁b▁", "▁a ▁b▁")
    assert tokenizer.encode_source(["a▁b"]) != tokenizer.encode_source(["a b"])


@each_kind
@pytest.mark.parametrize("line", [" ", "  ", "   ", " the", "  the", "the ", "the  ", "the  dog", "   the   dog   "])
def test_blanks_come_back_wherever_they_are(kind: Kind, line: str) -> None:
    assert round_trip(TOKENIZERS[kind], line) == (line, line)


@each_kind
def test_the_empty_line_is_eos_alone(kind: Kind) -> None:
    assert TOKENIZERS[kind].encode_source([""]) == TOKENIZERS[kind].encode_target([""]) == [[2]]
    assert TOKENIZERS[kind].decode_target([2]) == TOKENIZERS[kind].decode_target([]) == ""


@each_kind
def test_no_lines_give_no_ids(kind: Kind) -> None:
    assert TOKENIZERS[kind].encode_source([]) == []


@each_kind
def test_every_line_ends_with_eos_and_holds_no_other_control_id(kind: Kind) -> None:
    for ids in TOKENIZERS[kind].encode_target([*GERMAN, "", "</s>"]):
        assert ids[-1] == 2
        assert all(i > 2 for i in ids[:-1])


def test_an_unknown_character_is_spelled_by_its_utf8_bytes() -> None:
    for kind in ("characters", "bpe", "unigram"):
        (ids,) = TOKENIZERS[kind].encode_source(["a€"])
        assert ids[-4:] == [3 + 0xE2, 3 + 0x82, 3 + 0xAC, 2]


def test_an_unknown_word_is_spelled_by_its_utf8_bytes_and_its_blank() -> None:
    (ids,) = TOKENIZERS["words"].encode_source(["the é dog"])
    assert ids[1:4] == [3 + 0x20, 3 + 0xC3, 3 + 0xA9]
    assert len(ids) == 1 + 3 + 1 + 1


def test_words_part_at_the_blank_only() -> None:
    tokenizer = learn("words", ["a\tb c\xa0d e.f"], ["g"])
    (ids,) = tokenizer.encode_source(["a\tb c\xa0d e.f"])
    assert tokenizer.source_tokens(ids) == ["a\tb", "c\xa0d", "e.f", "</s>"]


def test_a_word_is_one_id_at_the_start_and_inside_a_line() -> None:
    for kind in ("words", "bpe", "unigram"):
        tokenizer = learn(kind, ["dog dog"] * 9, ["dog"] * 9)
        (ids,) = tokenizer.encode_source(["dog dog"])
        assert ids[0] == ids[1] and len(ids) == 3


@pytest.mark.parametrize("kind", SUBWORDS)
def test_punctuation_parts_from_words(kind: Kind) -> None:
    tokenizer = learn(kind, ["dog. dog."] * 9, ["dog."] * 9)
    (ids,) = tokenizer.encode_source(["dog."])
    assert tokenizer.source_tokens(ids) == ["▁dog", ".", "</s>"]


@pytest.mark.parametrize("kind", SUBWORDS)
def test_a_frequent_word_that_is_part_of_no_other_is_one_piece(kind: Kind) -> None:
    rare = ["zabcde", "zbadce", "zcedab"] * 2
    tokenizer = learn(kind, ["many"] * 50 + rare, rare)
    assert tokenizer.source_tokens(tokenizer.encode_source(["many"])[0]) == ["▁many", "</s>"]


def test_bpe_joins_the_most_frequent_pair_first() -> None:
    # By hand: " abab" occurs 3 times and " b" twice; (a, b) occurs 6 times, every other pair 3 times at most. With
    # room for 41 pieces all merges of pairs seen twice are made: ab, " "+ab, " ab"+ab, " b".
    tokenizer = learn("bpe", ["abab"] * 3 + ["b"] * 2, [], size=300)
    encoded = tokenizer.encode_source(["abab", "b", "ba"])
    assert [tokenizer.source_tokens(ids)[:-1] for ids in encoded] == [["▁abab"], ["▁b"], ["▁b", "a"]]
    assert tokenizer.source_vocab_size == NUM_FIXED_IDS + len([" ", "a", "b", "ab", " ab", " abab", " b"])


def test_unigram_cuts_by_probability() -> None:
    # "cab" and "cabs" are frequent, so "cabss" is read as a frequent piece and a rest, not letter by letter.
    tokenizer = learn("unigram", ["cab", "cabs", "s"] * 20, [], size=300)
    assert tokenizer.source_tokens(tokenizer.encode_source(["cabss"])[0])[:-1] in (["▁cabs", "s"], ["▁cab", "ss"])


@pytest.mark.parametrize("kind", SUBWORDS)
def test_a_vocabulary_keeps_to_its_size(kind: Kind) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = [f"{a}{b}{c} {b}{a}" for a in letters for b in letters[:9] for c in letters[:4]]
    for size in (300, 350, 500):
        assert learn(kind, lines, lines, size=size).source_vocab_size == size


@pytest.mark.parametrize("kind", SUBWORDS)
def test_a_vocabulary_is_smaller_when_there_is_no_more_to_learn(kind: Kind) -> None:
    assert NUM_FIXED_IDS + 3 <= learn(kind, ["ab ab"], ["ab"], size=8000).source_vocab_size < 280


@pytest.mark.parametrize("kind", SUBWORDS)
def test_rare_characters_go_to_bytes_when_there_is_no_room(kind: Kind) -> None:
    han = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))
    tokenizer = learn(kind, ["的的 的 了了 了", han] * 2, [], size=300)
    (frequent,), (rare,) = tokenizer.encode_source(["的了"]), tokenizer.encode_source([han[-1]])
    assert min(frequent[:-1]) >= NUM_FIXED_IDS
    assert rare[-4:-1] == [3 + byte for byte in han[-1].encode()]


@each_kind
def test_training_text_needs_no_bytes_when_there_is_room(kind: Kind) -> None:
    for ids in TOKENIZERS[kind].encode_source(ENGLISH) + TOKENIZERS[kind].encode_target(GERMAN):
        assert min(ids[:-1]) >= NUM_FIXED_IDS


@each_kind
def test_joint_ids_are_target_pieces_then_source_only_pieces(kind: Kind) -> None:
    tokenizer = TOKENIZERS[kind]
    in_target = {i for ids in tokenizer.encode_target(GERMAN) for i in ids if i >= NUM_FIXED_IDS}
    assert in_target == set(range(NUM_FIXED_IDS, tokenizer.num_target_ids))
    assert tokenizer.num_target_ids < tokenizer.target_vocab_size == tokenizer.source_vocab_size
    assert tokenizer.config.joint
    assert tokenizer.encode_source(GERMAN) == tokenizer.encode_target(GERMAN)


@each_kind
def test_separate_vocabularies_can_write_all_of_their_own(kind: Kind) -> None:
    tokenizer = learn(kind, ["abc abc abc"], ["xyz xyz"], joint=False)
    assert not tokenizer.config.joint
    assert tokenizer.num_target_ids == tokenizer.target_vocab_size
    assert min(tokenizer.encode_source(["abc"])[0][:-1]) >= NUM_FIXED_IDS
    assert any(i < NUM_FIXED_IDS for i in tokenizer.encode_target(["abc"])[0][:-1])


def test_the_sides_may_differ_in_kind() -> None:
    config = TokenizerConfig(source="characters", target="words", joint=False)
    tokenizer = Tokenizer.learn(config, ["HELLO", "HELL"], ["HH AH0 L OW1", "HH EH1 L"])
    assert (tokenizer.source_vocab_size, tokenizer.target_vocab_size) == (NUM_FIXED_IDS + 4, NUM_FIXED_IDS + 5)
    assert len(tokenizer.encode_source(["HELLO"])[0]) == 5 + 1
    assert len(tokenizer.encode_target(["HH AH0 L OW1"])[0]) == 4 + 1


def test_tokens_have_readable_names() -> None:
    tokenizer = TOKENIZERS["characters"]
    (ids,) = tokenizer.encode_source(["a é"])
    assert tokenizer.source_tokens([0, 1, *ids]) == ["<pad>", "<s>", "a", "▁", "<0xC3>", "<0xA9>", "</s>"]
    assert tokenizer.target_tokens(range(3, 259))[-1] == "<0xFF>"


@each_kind
def test_decoding_stops_at_the_first_eos_and_skips_pad_and_bos(kind: Kind) -> None:
    tokenizer = TOKENIZERS[kind]
    (*dog, eos) = tokenizer.encode_target(["dog"])[0]
    assert tokenizer.decode_target([0, 1, *dog, 0, eos, *dog, eos]) == "dog"


@each_kind
@settings(derandomize=True, deadline=None, max_examples=200)
@given(data=st.data())
def test_any_ids_decode_to_one_line_of_valid_text(kind: Kind, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    some_bytes, any_id = st.integers(3, 258), st.integers(0, tokenizer.target_vocab_size - 1)
    text = tokenizer.decode_target(data.draw(st.lists(some_bytes | any_id)))
    text.encode("utf-8")
    assert "\n" not in text


def test_invalid_bytes_decode_to_the_replacement_character() -> None:
    tokenizer = TOKENIZERS["characters"]
    (a, _), byte = tokenizer.encode_target(["a"])[0], 3
    assert tokenizer.decode_target([a, byte + 0xC3, a, byte + 0xC3, byte + 0xA9, byte + 0x0A]) == "a\ufffdaé\ufffd"


@each_kind
@pytest.mark.parametrize("character", ["\ud800", "\udfff", "\n"])
def test_what_is_no_line_of_text_is_refused_with_its_position(kind: Kind, character: str) -> None:
    for refused in (TOKENIZERS[kind].encode_source, TOKENIZERS[kind].encode_target, lambda x: learn(kind, x, x)):
        with pytest.raises(TransduceError, match=rf"text 2 of 2, character 4 \(U\+{ord(character):04X}\)"):
            refused(["fine", f"abc{character}"])


@each_kind
@pytest.mark.parametrize("joint", [True, False])
def test_a_saved_tokenizer_is_the_same_tokenizer(kind: Kind, joint: bool) -> None:
    tokenizer = learn(kind, ["\x85\u2028 ▁\0\ufeff", *ENGLISH], joint=joint)
    loaded = Tokenizer.from_json(tokenizer.to_json())
    lines = [*ENGLISH, *GERMAN, "\x85\u2028 ▁\0\ufeff", "", "  中 ", "</s> 42"]
    assert loaded.to_json() == tokenizer.to_json()
    assert loaded.encode_source(lines) == tokenizer.encode_source(lines)
    assert loaded.encode_target(lines) == tokenizer.encode_target(lines)
    for name in ("config", "num_target_ids", "source_vocab_size", "target_vocab_size"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


def test_the_saved_form_is_one_json_object_without_line_ends() -> None:
    saved = TOKENIZERS["bpe"].to_json()
    assert isinstance(json.loads(saved), dict)
    assert "\n" not in saved


LEARN_AND_PRINT = """
from transduce.text.tokenizer import Tokenizer, TokenizerConfig
lines = [f"{a}{b}{c} {c}{b}." for a in "abcdefg" for b in "abcdefg" for c in "abcdefghijkl"]
for kind in ("characters", "words", "bpe", "unigram"):
    config = TokenizerConfig(source=kind, target=kind, vocab_size=400)
    print(Tokenizer.learn(config, lines, lines[::3]).to_json())
"""


def test_learning_repeats_itself_in_other_processes_and_with_other_thread_counts() -> None:
    learnt = set()
    for hash_seed, threads in (("0", "1"), ("1", "2"), ("2", "3")):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", LEARN_AND_PRINT]
        learnt.add(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert len(learnt) == 1


def test_the_module_imports_no_torch() -> None:
    command = "import sys, transduce.text.tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


DAMAGED = {
    "empty": lambda _: "",
    "cut short": lambda saved: saved[: len(saved) // 2],
    "one letter changed": lambda saved: saved.replace("Hund", "Hand", 1),
    "one number changed": lambda saved: saved.replace('"num_target_ids":', '"num_target_ids":1', 1),
    "not an object": lambda saved: f"[{saved}]",
    "a number": lambda _: "1",
    "foreign": lambda _: '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
    "content missing": lambda saved: json.dumps({**json.loads(saved), "content": None}),
    "a lone surrogate": lambda saved: saved.replace("Hund", "\\ud800", 1),
    "too deep": lambda _: "[" * 100_000,
    "from the future": lambda saved: json.dumps({**json.loads(saved), "version": 99}),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_or_foreign_document_is_refused_in_one_line(damage) -> None:
    saved = TOKENIZERS["words"].to_json()
    assert damage(saved) != saved
    with pytest.raises(DamagedFileError) as refused:
        Tokenizer.from_json(damage(saved))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings_given", "named"),
    [
        ({"source": "letters"}, "'letters'.*characters, words, bpe, unigram"),
        ({"source": "characters", "target": "words"}, "joint.*'characters'.*'words'"),
        ({"vocab_size": 299}, "299.*at least 300"),
    ],
)
def test_an_unusable_setting_is_refused_by_name(settings_given, named: str) -> None:
    with pytest.raises(TransduceError, match=named):
        TokenizerConfig(**settings_given)


@pytest.mark.parametrize("side", ["source", "target"])
def test_the_pieces_of_an_imported_model_are_not_learnt(side: str) -> None:
    config = TokenizerConfig(**{side: "sentencepiece", "joint": False})
    with pytest.raises(
        TransduceError, match=r"'sentencepiece'.*use one of characters, words, bpe, unigram.*--init-from"
    ):
        Tokenizer.learn(config, ENGLISH, GERMAN)


def test_vocab_size_is_not_looked_at_where_it_is_not_used() -> None:
    assert TokenizerConfig(source="words", target="words", vocab_size=5).vocab_size == 5


@pytest.mark.parametrize("kind", SUBWORDS)
def test_a_word_of_twelve_thousand_letters_comes_back_exactly(kind: Kind) -> None:
    line = "thedog" * 2000
    assert round_trip(TOKENIZERS[kind], line) == (line, line)
    assert round_trip(learn(kind, [line], [line]), line) == (line, line)


def test_a_target_of_source_only_pieces_is_written_in_target_ids():
    tokenizer = Tokenizer.learn(
        TokenizerConfig(vocab_size=400), ["the quick brown fox jumps"] * 5, ["der flinke fuchs"] * 5
    )
    for line in ("the quick brown fox", "quick flinke", "jumps!"):
        ids = tokenizer.encode_target([line])[0]
        assert max(ids) < tokenizer.num_target_ids
        assert tokenizer.decode_target(ids) == line
    assert max(tokenizer.encode_source(["the quick brown fox"])[0]) >= tokenizer.num_target_ids


@each_kind
def test_a_source_only_word_of_three_thousand_letters_is_written_in_target_ids(kind: Kind) -> None:
    line = "ab" * 1500 + " dog"
    tokenizer = learn(kind, [line] * 3, ["der dog x y z"] * 3, size=400)
    ids = tokenizer.encode_target([line])[0]
    assert max(ids) < tokenizer.num_target_ids
    assert tokenizer.decode_target(ids) == line


# Normal forms

DECOMPOSED = "a\u0308"  # ä


def with_forms(kind: Kind, *forms: str, target: tuple[str, ...] = (), joint: bool = True) -> Tokenizer:
    config = TokenizerConfig(
        source=kind, target=kind, joint=joint, vocab_size=400, normalize=forms, normalize_target=target
    )
    return Tokenizer.learn(config, ENGLISH, GERMAN)


@each_kind
@pytest.mark.parametrize(
    ("form", "line", "same"),
    [
        ("nfc", f"zwei M{DECOMPOSED}nner", "zwei Männer"),
        ("nfd", "zwei Männer", f"zwei M{DECOMPOSED}nner"),
        ("nfkc", "ｔｗｏ ﬁ\u00a0²", "two fi 2"),
        ("lower", "THE Old Dog ΟΔΟΣ", "the old dog οδος"),
        ("strip", "\u3000 the  dog\t", "the  dog"),
        ("spaces", " the \u3000 dog\t\t", " the dog "),
    ],
)
def test_what_has_the_same_normal_form_has_the_same_source_ids(kind: Kind, form: str, line: str, same: str) -> None:
    plain, normal = learn(kind), with_forms(kind, form)
    assert plain.encode_source([line]) != plain.encode_source([same])
    assert normal.encode_source([line]) == normal.encode_source([same])
    assert normal.decode_source(normal.encode_source([line])[0]) == same


@each_kind
def test_only_forms_that_lose_nothing_hold_for_targets_unless_they_have_their_own(kind: Kind) -> None:
    tokenizer = with_forms(kind, "lower", "nfc", "strip", "spaces", "nfkc")
    assert tokenizer.decode_target(tokenizer.encode_target([f" Der  M{DECOMPOSED}nner ² "])[0]) == " Der  Männer ² "
    tokenizer = with_forms(kind, "nfc", target=("nfd", "lower"))
    assert tokenizer.decode_target(tokenizer.encode_target(["Männer"])[0]) == f"m{DECOMPOSED}nner"


@each_kind
@settings(derandomize=True, deadline=None, max_examples=60)
@given(lines=st.lists(a_line | a_tricky_line, min_size=1, max_size=5))
def test_line_encoders_normalize_whole_lines(kind: Kind, lines: list[str]) -> None:
    tokenizer = with_forms(kind, "lower", "nfkc", "strip", "spaces")
    ids, lens = tokenizer.source_encoder()(tokenizer.normal_source(lines))
    rows = tokenizer.encode_source(lines)
    assert (ids.tolist(), lens.tolist()) == ([i for row in rows for i in row], [len(row) for row in rows])


def test_a_vocabulary_is_learned_from_normal_lines() -> None:
    config = TokenizerConfig(source="words", target="words", joint=False, normalize=("lower",))
    assert Tokenizer.learn(config, ["The the THE"], ["x"]).source_vocab_size == NUM_FIXED_IDS + 1


def test_a_tokenizer_keeps_its_normal_form_and_without_one_is_written_as_before() -> None:
    tokenizer = with_forms("bpe", "lower", "nfc", target=("nfd",))
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.config == tokenizer.config
    assert again.to_json() == tokenizer.to_json()
    config = json.loads(learn("bpe").to_json())["content"]["config"]
    assert config == {"source": "bpe", "target": "bpe", "joint": True, "vocab_size": 400}


def test_an_unknown_normal_form_is_told_the_nearest() -> None:
    with pytest.raises(TransduceError, match=r"normal form 'lowr' is unknown\. Did you mean 'lower'"):
        TokenizerConfig(normalize=("lowr",))


def test_a_newline_is_no_space_to_normalize() -> None:
    with pytest.raises(TransduceError, match="newline"):
        with_forms("bpe", "spaces").encode_source(["a\nb"])
