"""Vocabulary of one side: learns tokens from text, splits a line into them, and joins them to text again.

A token is a substring of the text itself, spaces included. Every vocabulary begins with fixed ids that are not text:
pad, bos, eos and the 256 bytes. Each is the token `chr(_FIXED_BASE + id)`, from a block of private-use characters
that no other token may contain. A character (for "words": a word) outside the vocabulary is spelled by its UTF-8
bytes, and so is a character of that block: whatever the text, no part of it can pass for a byte or a control id.

All kinds but "characters" work on " " + line, so that a word is the same token at the start of a line and inside it.
The `tokenizers` library learns subwords and splits into them, without special tokens, normalizer or decoder.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from multiprocessing.pool import ThreadPool
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from transduce.text.config import CONTROL_NAMES, FIRST_BYTE_ID, MOST_TOKENS, NUM_FIXED_IDS, Kind
from transduce.text.unigram import learn_unigram_scores
from transduce.text.word_cache import WordTable

_FIXED_BASE = 0x10F000
_FIXED_TOKENS = tuple(chr(_FIXED_BASE + i) for i in range(NUM_FIXED_IDS))
_FIXED = f"{_FIXED_TOKENS[0]}-{_FIXED_TOKENS[-1]}"  # inside the brackets of a regular expression
_FIXED_RUN = re.compile(f"[{_FIXED}]+")

_MIN_PAIR_COUNT = 2  # a pair of tokens seen once is no reason for a BPE merge

_MAX_RESPELL_LEN = 32  # characters of a token that spells a part of another; bounds the search in endless words

# A stretch without a border is learned from in parts: each merge moves all that follows in its stretch, so that one of
# a million characters (a rule of ====, a genome), too long to be trained on anyway, would take an hour.
_LONG_STRETCH = re.compile("[^ ]{1000}(?=[^ ])|[ ]{1000}(?=[ ])")
_LINES_PER_CALL = 10_000  # bounds the memory of the library, which Ctrl-C cannot interrupt within a call

# A word carries the space before it; letters with their marks, single digits and punctuation are apart; none is lost.
_SUBWORD = rf"[{_FIXED}]| ?[\p{{L}}\p{{M}}]+| ?\p{{N}}| ?[^ \p{{L}}\p{{M}}\p{{N}}{_FIXED}]+| +(?= )| "
SUBWORD_BORDERS = pre_tokenizers.Split(tokenizers.Regex(_SUBWORD), "isolated")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one side, and how a line is split into them; the tokenizer adds the control ids."""

    kind: Kind
    tokens: tuple[str, ...]  # by id, the fixed ones first
    merges: tuple[tuple[str, str], ...] = ()  # bpe: the pairs to join, in order of priority
    scores: tuple[float, ...] = ()  # unigram: natural log-probability of each token that is not fixed

    def encode(self, lines: Sequence[str]) -> Iterator[list[int]]:
        """The ids of each line, which must be free of newlines and lone surrogates."""
        if self.kind == "characters":
            return ([self._id_of[character] for character in self._spell_unknown(line)] for line in lines)
        if self.kind == "words":
            return (self._encode_words(line) for line in lines)
        return self._encode_subwords(lines)

    def respell(self, ids: list[int], end: int) -> list[int]:
        """The same text in ids below `end`: a token above is split into the longest ones below, or else bytes."""
        if max(ids) < end:
            return ids
        return list(chain.from_iterable([i] if i < end else self._respell_token(self.tokens[i], end) for i in ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text; control ids are skipped."""
        text = "".join(self.tokens[i] for i in ids if i >= FIRST_BYTE_ID)
        text = _FIXED_RUN.sub(_read_bytes, text)
        return text if self.kind == "characters" else text.removeprefix(" ")

    def name(self, i: int) -> str:
        """The readable name of one id: a word without its space, any other token with ▁ for a space."""
        if i < FIRST_BYTE_ID:
            return CONTROL_NAMES[i]
        if i < NUM_FIXED_IDS:
            return f"<0x{i - FIRST_BYTE_ID:02X}>"
        token = self.tokens[i]
        return token[1:] if self.kind == "words" and token != " " else token.replace(" ", "▁")

    def bytes_of(self, i: int) -> bytes:
        """The UTF-8 bytes that one id adds to a text, maybe only a part of a character."""
        if i < NUM_FIXED_IDS:
            return bytes([i - FIRST_BYTE_ID]) if i >= FIRST_BYTE_ID else b""
        return self.tokens[i].encode()

    def with_target_tokens_first(self, tgt_lines: Sequence[str]) -> tuple["Vocabulary", int]:
        """The vocabulary renumbered, and how many ids come first: the fixed ones and those in `tgt_lines`."""
        seen = set(chain.from_iterable(self.encode(tgt_lines)))
        learned = range(NUM_FIXED_IDS, len(self.tokens))
        order = sorted(learned, key=lambda i: i not in seen)  # stable: within each half the order stays
        renumbered = replace(
            self,
            tokens=_FIXED_TOKENS + tuple(self.tokens[i] for i in order),
            scores=tuple(self.scores[i - NUM_FIXED_IDS] for i in order) if self.scores else (),
        )
        return renumbered, NUM_FIXED_IDS + sum(i in seen for i in learned)

    def to_dict(self) -> dict[str, Any]:
        """The learned tokens as a JSON object, without the fixed ones."""
        learned = self.tokens[NUM_FIXED_IDS:]
        return {"kind": self.kind, "pieces": learned, "merges": self.merges, "scores": self.scores}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Vocabulary":
        """The vocabulary that `to_dict` described. Raises ValueError for what cannot be learned from lines of text."""
        merges = tuple((left, right) for left, right in saved["merges"])
        vocabulary = cls(saved["kind"], _FIXED_TOKENS + tuple(saved["pieces"]), merges, tuple(saved["scores"]))
        known, num_learned, text = vocabulary._id_of, len(saved["pieces"]), "\n".join(saved["pieces"])
        text.encode()  # raises at a lone surrogate
        is_text = text.count("\n") < max(1, num_learned) and not _FIXED_RUN.search(text)
        is_distinct = "" not in known and len(known) == len(vocabulary.tokens)
        is_merged = known.keys() >= {part for left, right in merges for part in (left, right, left + right)}
        is_scored = len(vocabulary.scores) == num_learned * (vocabulary.kind == "unigram")
        if not (is_text and is_distinct and is_merged and is_scored and all(map(math.isfinite, vocabulary.scores))):
            raise ValueError("a token is empty, spans lines, occurs twice, has unknown parts, or has no valid score")
        return vocabulary

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def _unknown(self) -> re.Pattern[str]:
        return _any_character_outside(token for token in self.tokens[NUM_FIXED_IDS:] if len(token) == 1)

    @cached_property
    def _splitter(self) -> tokenizers.Tokenizer:
        if self.kind == "bpe":
            return _splitter_of(models.BPE(self._id_of, list(self.merges)))
        scores = (0.0,) * NUM_FIXED_IDS + self.scores  # nothing else spells a fixed token, so any score does
        return _splitter_of(models.Unigram(list(zip(self.tokens, scores, strict=True)), None, False))

    def _spell_unknown(self, text: str) -> str:
        return self._unknown.sub(lambda match: "".join(_FIXED_TOKENS[i] for i in _byte_ids(match[0])), text)

    def _respell_token(self, text: str, end: int) -> Iterator[int]:
        while text:
            prefixes = (text[:length] for length in range(min(len(text), _MAX_RESPELL_LEN), 0, -1))
            known = next((prefix for prefix in prefixes if self._id_of.get(prefix, end) < end), None)
            yield from _byte_ids(text[0]) if known is None else [self._id_of[known]]
            text = text[len(known or text[0]) :]

    def _encode_words(self, line: str) -> list[int]:
        ids: list[int] = []
        for word in _words(line):
            i = self._id_of.get(word)
            ids.extend(_byte_ids(word) if i is None else (i,))
        return ids

    def _encode_subwords(self, lines: Sequence[str]) -> Iterator[list[int]]:
        # A token begins at every single space between words (see _SUBWORD), as a WordTable needs it.
        table = WordTable(self._encode_whole)
        for start in range(0, len(lines), _LINES_PER_CALL):
            ids, lens = table.encode(lines[start : start + _LINES_PER_CALL])
            remaining = iter(ids.tolist())
            yield from (list(islice(remaining, length)) for length in lens.tolist())

    def _encode_whole(self, lines: Sequence[str]) -> Iterator[list[int]]:
        batch = [self._spell_unknown(" " + line) if line else "" for line in lines]
        return (encoding.ids for encoding in self._splitter.encode_batch_fast(batch))


def learn_vocabulary(kind: Kind, lines: Sequence[str], vocab_size: int) -> Vocabulary:
    """Learn the tokens of `lines`; `vocab_size` bounds bpe and unigram, the other kinds take all they see."""
    if kind == "characters":
        return Vocabulary(kind, _FIXED_TOKENS + _by_frequency(chain.from_iterable(lines)))
    if kind == "words":
        return Vocabulary(kind, _FIXED_TOKENS + _by_frequency(word for line in lines for word in _words(line)))
    num_tokens = vocab_size - NUM_FIXED_IDS
    # At most half of them single characters: a rare character costs a few bytes, a frequent word without a token more.
    alphabet = _by_frequency(chain.from_iterable(" " + line for line in lines if line))[: num_tokens // 2]
    rare = _any_character_outside(alphabet)
    spans = (span for line in lines if line for span in rare.split(" " + line))  # between characters spelled by bytes
    spans = (part for span in spans for part in _LONG_STRETCH.sub(r"\g<0>\n", span).split("\n"))  # "\n" is in no line
    return (_learn_bpe if kind == "bpe" else _learn_unigram)(alphabet, spans, num_tokens)


def _learn_bpe(alphabet: tuple[str, ...], spans: Iterator[str], num_tokens: int) -> Vocabulary:
    """Byte-pair encoding (Sennrich et al. 2016), reproducible as the library breaks ties by id."""
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, min_frequency=_MIN_PAIR_COUNT, initial_alphabet=list(alphabet), show_progress=False
    )
    splitter = _splitter_of(models.BPE())
    with ThreadPool(1) as pool:  # in a thread, as one call can take minutes, and this one is to hear Ctrl-C and SIGTERM
        pool.apply_async(splitter.train_from_iterator, (spans, trainer)).get()
    model = json.loads(splitter.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return Vocabulary("bpe", _FIXED_TOKENS + tuple(tokens), merges=tuple((a, b) for a, b in model["merges"]))


def _learn_unigram(alphabet: tuple[str, ...], spans: Iterator[str], num_tokens: int) -> Vocabulary:
    words = Counter(word for span in spans for word, _ in SUBWORD_BORDERS.pre_tokenize_str(span))
    scores = learn_unigram_scores(words, alphabet, num_tokens)
    return Vocabulary("unigram", _FIXED_TOKENS + tuple(scores), scores=tuple(scores.values()))


def _splitter_of(model: Any) -> tokenizers.Tokenizer:
    splitter = tokenizers.Tokenizer(model)
    splitter.pre_tokenizer = SUBWORD_BORDERS
    return splitter


def _by_frequency(tokens: Iterable[str]) -> tuple[str, ...]:
    """The distinct tokens that a vocabulary may hold, frequent ones first, equally frequent ones by code point."""
    counts = Counter(tokens)
    by_frequency = sorted((t for t in counts if not _FIXED_RUN.search(t)), key=lambda t: (-counts[t], t))
    return tuple(by_frequency[: MOST_TOKENS - NUM_FIXED_IDS])


def _any_character_outside(alphabet: Iterable[str]) -> re.Pattern[str]:
    # The fixed block is outside every alphabet; a newline is in no line and keeps the brackets from being empty.
    return re.compile("[^\n" + "".join(map(re.escape, alphabet)) + "]")


def _words(line: str) -> list[str]:
    """The words, each with the space before it, so that they join to " " + line; none for the empty line."""
    return [" " + word for word in line.split(" ")] if line else []


def _byte_ids(text: str) -> list[int]:
    return [FIRST_BYTE_ID + byte for byte in text.encode()]


def _read_bytes(run: re.Match[str]) -> str:
    content = bytes(ord(token) - _FIXED_BASE - FIRST_BYTE_ID for token in run[0])
    return content.decode(errors="replace").replace("\n", "\N{REPLACEMENT CHARACTER}")
