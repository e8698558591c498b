"""Text <-> ids, exactly: decoding what was encoded gives back every character, seen in training or not.

A piece is a stretch of the text itself, blanks included. Every vocabulary begins with fixed ids that are not text:
pad, bos, eos and the 256 bytes. Each is the piece `chr(_FIXED_BASE + id)`, from a block of private-use characters
that no other piece may contain. A character (for "words": a word) outside the vocabulary is spelled by its UTF-8
bytes, and so is a character of that block: whatever the text, no stretch of it reads as a byte or a control id.

All kinds but "characters" work on " " + line, so that a word is the same piece at the start of a line and inside it.
The `tokenizers` library learns subwords and splits into them; it is told of no special token, normaliser or decoder.
"""

import hashlib
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, takewhile
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from transduce.errors import DamagedFileError, TransduceError

Kind = Literal["characters", "words", "bpe", "unigram"]

_CONTROL_NAMES = ("<pad>", "<s>", "</s>")
_NUM_CONTROL_IDS = len(_CONTROL_NAMES)
_NUM_FIXED_IDS = _NUM_CONTROL_IDS + 256
_FIXED_BASE = 0x10F000
_FIXED_PIECES = tuple(chr(_FIXED_BASE + i) for i in range(_NUM_FIXED_IDS))
_FIXED = f"{_FIXED_PIECES[0]}-{_FIXED_PIECES[-1]}"  # inside the brackets of a regular expression
_FIXED_RUN = re.compile(f"[{_FIXED}]+")

_MIN_VOCAB_SIZE = 300  # the fixed ids and some room for text
_MIN_PAIR_COUNT = 2  # a pair of pieces seen once is no reason for a BPE merge

# Learning unigram pieces.
_MAX_PIECE_LEN = 16  # characters
_MAX_WORD_LEN = 32  # characters
_MAX_WORDS = 100_000  # the most frequent ones; the others would change few pieces and cost most of the time
_SEEDS_PER_PIECE = 8
_EM_STEPS_PER_ROUND = 2
_KEPT_PER_ROUND = 0.75
_LEAST_PROB = 1e-9  # of a single character, so that every text can be cut
_SCORE_DECIMALS = 4

_LINES_PER_CALL = 10_000  # bounds the library's memory per call, and lets Ctrl-C through between calls

_NOT_A_LINE_OF_TEXT = re.compile("[\ud800-\udfff\n]")
# A word carries the blank before it; letters with their marks, single digits and punctuation part; nothing is lost.
_SUBWORD_BORDERS = rf"[{_FIXED}]| ?[\p{{L}}\p{{M}}]+| ?\p{{N}}| ?[^ \p{{L}}\p{{M}}\p{{N}}{_FIXED}]+| +(?= )| "

_FORMAT = "transduce tokenizer"
_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What the pieces are on each side; `vocab_size` counts control ids and bytes too."""

    source: Kind = "bpe"
    target: Kind = "bpe"
    joint: bool = True  # one vocabulary for both sides, which must then be of one kind; else one each
    vocab_size: int = 8000  # at most, for bpe and unigram, per vocabulary; characters and words take all they see

    def __post_init__(self) -> None:
        for side, kind in (("source", self.source), ("target", self.target)):
            if kind not in get_args(Kind):
                raise TransduceError(f"tokenizer {side} ({kind!r}) must be one of {', '.join(get_args(Kind))}.")
        if self.joint and self.source != self.target:
            raise TransduceError(
                f"tokenizer joint (true) needs one kind for both sides, but source is {self.source!r} and target is "
                f"{self.target!r}: set joint to false, or both sides to the same kind."
            )
        if {self.source, self.target} & {"bpe", "unigram"} and self.vocab_size < _MIN_VOCAB_SIZE:
            raise TransduceError(
                f"tokenizer vocab_size ({self.vocab_size}) must be at least {_MIN_VOCAB_SIZE}: "
                f"{_NUM_FIXED_IDS} ids are the controls and the bytes."
            )


class Tokenizer:
    """Lines of text <-> ids, for the source and the target side.

    Ids come in this order: controls, bytes, pieces that occur in the target lines learnt from, source-only pieces.
    An output layer over the ids below `num_target_ids` can write every target there is.
    """

    pad_id: ClassVar[int] = 0
    bos_id: ClassVar[int] = 1
    eos_id: ClassVar[int] = 2

    def __init__(self, config: TokenizerConfig, source: "_Vocabulary", target: "_Vocabulary", num_target_ids: int):
        """For `learn` and `from_json`; with `config.joint`, `source` and `target` are the same object."""
        self.config = config
        self.num_target_ids = num_target_ids
        self._source = source
        self._target = target

    @classmethod
    def learn(cls, config: TokenizerConfig, src_lines: Sequence[str], tgt_lines: Sequence[str]) -> "Tokenizer":
        """Learns the vocabularies; the same lines give the same tokenizer, byte for byte."""
        _check_lines(src_lines)
        _check_lines(tgt_lines)
        if config.joint:
            both = _learn_vocabulary(config.target, [*src_lines, *tgt_lines], config.vocab_size)
            both, num_target_ids = both.with_target_pieces_first(tgt_lines)
            return cls(config, both, both, num_target_ids)
        source = _learn_vocabulary(config.source, src_lines, config.vocab_size)
        target = _learn_vocabulary(config.target, tgt_lines, config.vocab_size)
        return cls(config, source, target, len(target.pieces))

    @property
    def is_joint(self) -> bool:
        return self.config.joint

    @property
    def source_vocab_size(self) -> int:
        return len(self._source.pieces)

    @property
    def target_vocab_size(self) -> int:
        return len(self._target.pieces)

    def encode_source(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, ended by eos. Raises TransduceError at a newline or a lone surrogate."""
        return self._encode(self._source, lines)

    def encode_target(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, ended by eos, without bos. Raises TransduceError at a newline or a lone surrogate."""
        return self._encode(self._target, lines)

    def decode_source(self, ids: Sequence[int]) -> str:
        """The text of `ids` up to the first eos; see `decode_target`."""
        return self._decode(self._source, ids)

    def decode_target(self, ids: Sequence[int]) -> str:
        """The text of `ids` up to the first eos, always one line.

        Bytes that are not UTF-8, and a newline spelled by its byte, become U+FFFD: a model may write anything.
        """
        return self._decode(self._target, ids)

    def source_tokens(self, ids: Sequence[int]) -> list[str]:
        """One readable name per id, for pictures and tables; a blank shows as ▁."""
        return [self._source.name(i) for i in ids]

    def target_tokens(self, ids: Sequence[int]) -> list[str]:
        """One readable name per id, for pictures and tables; a blank shows as ▁."""
        return [self._target.name(i) for i in ids]

    def to_json(self) -> str:
        """One JSON document that carries its own SHA-256."""
        content = {
            "config": asdict(self.config),
            "num_target_ids": self.num_target_ids,
            "source": None if self.is_joint else self._source.to_dict(),
            "target": self._target.to_dict(),
        }
        return _compact_json(
            {"format": _FORMAT, "version": _FORMAT_VERSION, "sha256": _sha256(content), "content": content}
        )

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer that `to_json` wrote. Raises DamagedFileError for any other text."""
        content = _verified_content(text)
        target = _Vocabulary.from_dict(content["target"])
        source = target if content["source"] is None else _Vocabulary.from_dict(content["source"])
        return cls(TokenizerConfig(**content["config"]), source, target, content["num_target_ids"])

    def _encode(self, vocabulary: "_Vocabulary", lines: Sequence[str]) -> list[list[int]]:
        _check_lines(lines)
        return [[*ids, self.eos_id] for ids in vocabulary.encode(lines)]

    def _decode(self, vocabulary: "_Vocabulary", ids: Sequence[int]) -> str:
        return vocabulary.decode(takewhile(lambda i: i != self.eos_id, ids))


@dataclass(frozen=True)
class _Vocabulary:
    """The pieces of one side and how a line is split into them."""

    kind: Kind
    pieces: tuple[str, ...]  # by id, the fixed ones first
    merges: tuple[tuple[str, str], ...] = ()  # bpe: the pairs to join, first come first
    scores: tuple[float, ...] = ()  # unigram: natural log-probability of each piece that is not fixed

    def encode(self, lines: Sequence[str]) -> Iterator[list[int]]:
        if self.kind == "characters":
            return ([self._id_of[character] for character in self._spell_unknown(line)] for line in lines)
        if self.kind == "words":
            return (self._encode_words(line) for line in lines)
        return self._encode_subwords(lines)

    def decode(self, ids: Iterable[int]) -> str:
        """The text; control ids are skipped."""
        text = "".join(self.pieces[i] for i in ids if i >= _NUM_CONTROL_IDS)
        text = _FIXED_RUN.sub(_read_bytes, text)
        return text if self.kind == "characters" else text.removeprefix(" ")

    def name(self, i: int) -> str:
        if i < _NUM_CONTROL_IDS:
            return _CONTROL_NAMES[i]
        if i < _NUM_FIXED_IDS:
            return f"<0x{i - _NUM_CONTROL_IDS:02X}>"
        piece = self.pieces[i]
        return piece[1:] if self.kind == "words" and piece != " " else piece.replace(" ", "▁")

    def with_target_pieces_first(self, tgt_lines: Sequence[str]) -> tuple["_Vocabulary", int]:
        """The same vocabulary numbered anew, and how many ids are fixed or occur in `tgt_lines`."""
        seen = set(chain.from_iterable(self.encode(tgt_lines)))
        learnt = range(_NUM_FIXED_IDS, len(self.pieces))
        order = sorted(learnt, key=lambda i: i not in seen)  # stable: within each half the order stays
        renumbered = replace(
            self,
            pieces=_FIXED_PIECES + tuple(self.pieces[i] for i in order),
            scores=tuple(self.scores[i - _NUM_FIXED_IDS] for i in order) if self.scores else (),
        )
        return renumbered, _NUM_FIXED_IDS + sum(i in seen for i in learnt)

    def to_dict(self) -> dict[str, Any]:
        learnt = self.pieces[_NUM_FIXED_IDS:]
        return {"kind": self.kind, "pieces": learnt, "merges": self.merges, "scores": self.scores}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "_Vocabulary":
        merges = tuple((left, right) for left, right in saved["merges"])
        return cls(saved["kind"], _FIXED_PIECES + tuple(saved["pieces"]), merges, tuple(saved["scores"]))

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    @cached_property
    def _unknown(self) -> re.Pattern[str]:
        return _any_character_outside(piece for piece in self.pieces[_NUM_FIXED_IDS:] if len(piece) == 1)

    @cached_property
    def _splitter(self) -> tokenizers.Tokenizer:
        if self.kind == "bpe":
            return _splitter_of(models.BPE(self._id_of, list(self.merges)))
        scores = (0.0,) * _NUM_FIXED_IDS + self.scores  # a fixed piece has no rival, so any score does
        return _splitter_of(models.Unigram(list(zip(self.pieces, scores, strict=True)), None, False))

    def _spell_unknown(self, text: str) -> str:
        return self._unknown.sub(lambda match: "".join(_FIXED_PIECES[i] for i in _byte_ids(match[0])), text)

    def _encode_words(self, line: str) -> list[int]:
        ids: list[int] = []
        for word in _words(line):
            i = self._id_of.get(word)
            ids.extend(_byte_ids(word) if i is None else (i,))
        return ids

    def _encode_subwords(self, lines: Sequence[str]) -> Iterator[list[int]]:
        for start in range(0, len(lines), _LINES_PER_CALL):
            batch = [self._spell_unknown(" " + line) if line else "" for line in lines[start : start + _LINES_PER_CALL]]
            for encoding in self._splitter.encode_batch_fast(batch):
                yield encoding.ids


def _learn_vocabulary(kind: Kind, lines: Sequence[str], vocab_size: int) -> _Vocabulary:
    if kind == "characters":
        return _Vocabulary(kind, _FIXED_PIECES + _by_frequency(chain.from_iterable(lines)))
    if kind == "words":
        return _Vocabulary(kind, _FIXED_PIECES + _by_frequency(word for line in lines for word in _words(line)))
    room = vocab_size - _NUM_FIXED_IDS
    # Half the room at most for single characters: a rare one costs a few bytes, a frequent word more.
    alphabet = _by_frequency(chain.from_iterable(" " + line for line in lines if line))[: room // 2]
    rare = _any_character_outside(alphabet)
    stretches = (stretch for line in lines if line for stretch in rare.split(" " + line))
    return (_learn_bpe if kind == "bpe" else _learn_unigram)(alphabet, stretches, room)


def _learn_bpe(alphabet: tuple[str, ...], stretches: Iterator[str], room: int) -> _Vocabulary:
    """Byte-pair encoding (Sennrich et al. 2016); the library breaks ties by id, so it repeats itself exactly."""
    trainer = trainers.BpeTrainer(
        vocab_size=room, min_frequency=_MIN_PAIR_COUNT, initial_alphabet=list(alphabet), show_progress=False
    )
    learnt = _train(models.BPE(), trainer, stretches)
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    return _Vocabulary("bpe", _FIXED_PIECES + tuple(pieces), merges=tuple((a, b) for a, b in learnt["merges"]))


def _learn_unigram(alphabet: tuple[str, ...], stretches: Iterator[str], room: int) -> _Vocabulary:
    """Unigram language model (Kudo 2018): many seed pieces, fitted by EM, the least missed quarter dropped each round.

    Not the library's trainer: it seeds no word that occurs inside no other, however frequent (text comes out 17 to
    19 % longer on Multi30k), and its sums depend on the order of a hash map, so that no two runs agree.
    """
    words = _count_stretches_between_borders(stretches)
    pieces = _seed_pieces(words, alphabet, room)
    id_of = {piece: i for i, piece in enumerate(pieces)}
    in_words, in_pieces = _Cuts(list(words), id_of, whole=True), _Cuts(pieces, id_of, whole=False)
    word_counts = np.array(list(words.values()), dtype=float)
    is_character = np.array([len(piece) == 1 for piece in pieces], dtype=bool)
    probs = np.full(len(pieces), 1 / max(len(pieces), 1))
    while True:
        for _ in range(_EM_STEPS_PER_ROUND):
            expected = in_words.expected_counts(probs, word_counts) * (probs > 0)
            # Bayesian EM (Liang and Klein 2007) weighs a count x by exp(digamma(x)), close to x - 1/2.
            weights = np.where(expected > 0.5, expected - 0.5, 0.0)
            probs = weights / max(weights.sum(), 1.0)
            probs[is_character] = np.maximum(probs[is_character], _LEAST_PROB)
        alive = np.flatnonzero(probs)
        if len(alive) <= room:
            break
        otherwise = in_pieces.total_probs(probs)[alive] + is_character[alive]  # of the piece's text, cut without it
        loss = expected[alive] * (np.log(probs[alive]) - np.log(otherwise))
        loss[is_character[alive]] = np.inf
        kept = max(room, int(len(alive) * _KEPT_PER_ROUND))
        probs[alive[np.argsort(-loss, kind="stable")[kept:]]] = 0.0
    score_of = {pieces[i]: round(math.log(probs[i]), _SCORE_DECIMALS) for i in alive}
    ordered = sorted(score_of, key=lambda piece: (-score_of[piece], piece))
    return _Vocabulary("unigram", _FIXED_PIECES + tuple(ordered), scores=tuple(score_of[piece] for piece in ordered))


class _Cuts:
    """Every way to cut each of `words` into pieces; an edge is one piece at one place.

    The nodes are the borders between characters. Probabilities are plain floats: a word of _MAX_WORD_LEN characters,
    each of the least probability, stays above the smallest float.
    """

    def __init__(self, words: Sequence[str], id_of: dict[str, int], *, whole: bool):
        """`whole`: whether a word may be one piece."""
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        self._last = np.cumsum(lengths + 1) - 1
        self._first = self._last - lengths
        edges = [array("q") for _ in range(_MAX_WORD_LEN)]  # by the character they end at
        for first, word in zip(self._first.tolist(), words, strict=True):
            for end in range(1, len(word) + 1):
                for start in range(max(0, end - _MAX_PIECE_LEN), end):
                    i = id_of.get(word[start:end])
                    if i is not None and (whole or end - start < len(word)):
                        edges[end - 1].extend((first + start, first + end, i))
        self._edges = [np.array(group).reshape(-1, 3).T for group in edges]  # three rows: start, end, piece

    def total_probs(self, probs: np.ndarray) -> np.ndarray:
        """Of each word, the sum over all ways to cut it."""
        return self._forward(probs)[self._last]

    def expected_counts(self, probs: np.ndarray, word_counts: np.ndarray) -> np.ndarray:
        """How often each piece occurs in words that occur `word_counts` times, cut at random by `probs`."""
        forward = self._forward(probs)
        backward = np.zeros_like(forward)
        backward[self._last] = word_counts / forward[self._last]
        expected = np.zeros_like(probs)
        for starts, ends, ids in reversed(self._edges):
            onward = probs[ids] * backward[ends]
            np.add.at(backward, starts, onward)
            np.add.at(expected, ids, forward[starts] * onward)
        return expected

    def _forward(self, probs: np.ndarray) -> np.ndarray:
        forward = np.zeros(self._last[-1] + 1 if len(self._last) else 0)
        forward[self._first] = 1.0
        for starts, ends, ids in self._edges:
            np.add.at(forward, ends, forward[starts] * probs[ids])
        return forward


def _count_stretches_between_borders(stretches: Iterable[str]) -> dict[str, int]:
    """The words as subwords see them, cut to _MAX_WORD_LEN characters, with their counts; the frequent ones first."""
    borders = pre_tokenizers.Split(tokenizers.Regex(_SUBWORD_BORDERS), "isolated")
    counts = Counter(
        word[start : start + _MAX_WORD_LEN]
        for stretch in stretches
        for word, _ in borders.pre_tokenize_str(stretch)
        for start in range(0, len(word), _MAX_WORD_LEN)
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_WORDS])


def _seed_pieces(words: dict[str, int], alphabet: tuple[str, ...], room: int) -> list[str]:
    """The alphabet, then the substrings of `words` that cover most characters."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word) - 1):
            for end in range(start + 2, min(start + _MAX_PIECE_LEN, len(word)) + 1):
                counts[word[start:end]] += count
    repeated = [piece for piece, count in counts.items() if count > 1]
    repeated.sort(key=lambda piece: (-counts[piece] * len(piece), piece))
    return [*alphabet, *repeated[: _SEEDS_PER_PIECE * room]]


def _train(model: Any, trainer: Any, stretches: Iterator[str]) -> dict[str, Any]:
    splitter = _splitter_of(model)
    splitter.train_from_iterator(stretches, trainer)
    learnt: dict[str, Any] = json.loads(splitter.to_str())["model"]
    return learnt


def _splitter_of(model: Any) -> tokenizers.Tokenizer:
    splitter = tokenizers.Tokenizer(model)
    splitter.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_SUBWORD_BORDERS), "isolated")
    return splitter


def _by_frequency(pieces: Iterable[str]) -> tuple[str, ...]:
    """Each piece that may enter a vocabulary once, frequent ones first, equally frequent ones by code point."""
    counts = Counter(pieces)
    return tuple(sorted((p for p in counts if not _FIXED_RUN.search(p)), key=lambda p: (-counts[p], p)))


def _any_character_outside(alphabet: Iterable[str]) -> re.Pattern[str]:
    # The fixed block is outside every alphabet; `\n` is in no line, and keeps the brackets from being empty.
    return re.compile("[^\n" + "".join(map(re.escape, alphabet)) + "]")


def _words(line: str) -> list[str]:
    """The words with the blank before each, so that they join to " " + line; none for the empty line."""
    return [" " + word for word in line.split(" ")] if line else []


def _byte_ids(text: str) -> list[int]:
    return [_NUM_CONTROL_IDS + byte for byte in text.encode()]


def _read_bytes(run: re.Match[str]) -> str:
    spelled = bytes(ord(piece) - _FIXED_BASE - _NUM_CONTROL_IDS for piece in run[0])
    return spelled.decode(errors="replace").replace("\n", "\N{REPLACEMENT CHARACTER}")


def _check_lines(lines: Sequence[str]) -> None:
    for number, line in enumerate(lines, start=1):
        if found := _NOT_A_LINE_OF_TEXT.search(line):
            what = "a newline: give one line at a time" if found[0] == "\n" else "a lone surrogate, which is no text"
            raise TransduceError(
                f"text {number} of {len(lines)}, character {found.start() + 1} (U+{ord(found[0]):04X}) is {what}."
            )


def _verified_content(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
        if document["format"] != _FORMAT:
            raise ValueError
        version, recorded, content = document["version"], document["sha256"], document["content"]
        found = _sha256(content)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedFileError(
            "not a tokenizer of transduce, or cut short: restore it from where it was saved."
        ) from None
    if version != _FORMAT_VERSION:
        raise DamagedFileError(
            f"a tokenizer of format version {version!r}, where this program reads {_FORMAT_VERSION}: use the program "
            "that wrote it, or a newer one."
        )
    if found != recorded:
        raise DamagedFileError(
            "a tokenizer that is not as it was written (its SHA-256 differs): restore it from a copy."
        )
    return dict(content)


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _sha256(content: Any) -> str:
    return hashlib.sha256(_compact_json(content).encode()).hexdigest()
