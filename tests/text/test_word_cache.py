from hypothesis import example, given, settings
from hypothesis import strategies as st

from transduce.text import word_cache as word_table
from transduce.text.config import TokenizerConfig
from transduce.text.tokenizer import Tokenizer
from transduce.text.word_cache import WordTable

LINES = ["the old man sees the dog.", "two men and 17 dogs  run", "der Mann läuft, und läuft"]
EOS = 2
# What the rule that splits words looks at: blanks, letters, marks, digits, punctuation, characters of no vocabulary.
TRICKY = [
    " ",
    "  ",
    "   ",
    "\t",
    "\xa0",
    "the",
    "läuft",
    "e\u0301",
    "\u0301",
    "17",
    "٣",
    ".",
    "!?",
    "\U0010f000",
    "中",
    "\r",
]
a_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=20) | st.lists(
    st.sampled_from(TRICKY), max_size=12
).map("".join)


def tokenizer_of(kind: str) -> Tokenizer:
    config = TokenizerConfig(source=kind, target=kind, vocab_size=330)
    return Tokenizer.learn(config, LINES[:1], LINES[1:])  # so that source-only pieces exist, which targets respell


TOKENIZERS = {kind: tokenizer_of(kind) for kind in ("characters", "words", "bpe", "unigram")}


@settings(derandomize=True, deadline=None, max_examples=400)
@given(lines=st.lists(a_line, max_size=6))
@example(lines=["a b", " a", "b ", "a  b", "", " ", "  "])
def test_words_looked_up_give_the_ids_of_the_library_on_the_whole_line(lines: list[str]) -> None:
    for kind in ("bpe", "unigram"):
        vocabulary = TOKENIZERS[kind]._target
        splitter = vocabulary._splitter
        whole = [splitter.encode(vocabulary._spell_unknown(" " + line) if line else "").ids for line in lines]
        assert list(vocabulary.encode(lines)) == whole


@settings(derandomize=True, deadline=None)
@given(portions=st.lists(st.lists(a_line, max_size=4), max_size=4))
def test_encoders_of_portions_give_the_ids_of_one_call_line_by_line(portions: list[list[str]]) -> None:
    for tokenizer in TOKENIZERS.values():
        for encoder, encode in (
            (tokenizer.source_encoder(), tokenizer.encode_source),
            (tokenizer.target_encoder(), tokenizer.encode_target),
        ):
            for lines in portions:
                ids, lens = encoder(lines)
                rows, rest = [], ids.tolist()
                for length in lens.tolist():
                    rows.append(rest[:length])
                    rest = rest[length:]
                assert rest == []
                assert rows == encode(lines)


def test_a_word_is_worked_out_once_until_the_table_is_full(monkeypatch) -> None:
    monkeypatch.setattr(word_table, "_MOST_UNITS_KEPT", 4)
    asked: list[list[str]] = []

    def spell(texts: list[str]) -> list[list[int]]:
        asked.append(texts)
        return [[ord(letter) for letter in text] for text in texts]

    table = WordTable(spell)
    for line in ("a b a", "a c d", "e", "a"):
        ids, lens = table.encode([line])
        assert ids.tolist() == [ord(letter) for letter in line.replace(" ", "")]
        assert lens.tolist() == [len(ids)]
    assert asked == [["a", "b"], ["c", "d"], ["e"], ["a"]]


def test_a_very_long_word_is_not_remembered() -> None:
    asked: list[str] = []

    def spell(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return [[len(text)] for text in texts]

    table = WordTable(spell)
    for _ in range(3):
        assert table.encode(["x" * 1000])[0].tolist() == [1000]
    assert len(asked) == 3
