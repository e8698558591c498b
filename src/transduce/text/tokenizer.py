"""Lossless tokenizer: decoding an encoded text gives back every character, seen in training or not.

`text.vocabulary` holds the tokens of one side and splits lines into them. The tokenizer of an imported model is only
as lossless as that model: see `text.sentencepiece`.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from transduce.errors import DamagedFileError, TransduceError
from transduce.files.certified_json import matches, read_with_digest, with_digest
from transduce.files.content import damaged, well_formed
from transduce.model.config import VocabularySizes
from transduce.text.config import NUM_FIXED_IDS, AnyKind, Kind, TokenizerConfig
from transduce.text.normal_form import Form, in_normal_form
from transduce.text.ragged import Ragged
from transduce.text.sentencepiece import SentencePieces
from transduce.text.vocabulary import Vocabulary, learn_vocabulary
from transduce.text.word_cache import WordTable

_NOT_A_LINE_OF_TEXT = re.compile("[\ud800-\udfff\n]")
_LINES_PER_CHECK = 10_000
_FORMAT = "transduce tokenizer"
_FORMAT_VERSION = 1
_CONTENT = {"num_target_ids": int, "config": {"source": str, "target": str, "joint": bool, "vocab_size": int}}

AnyVocabulary = Vocabulary | SentencePieces
# Lines -> the ids of all, end to end, and the number of ids of each.
LineEncoder = Callable[[Sequence[str]], tuple[NDArray[np.integer], NDArray[np.integer]]]


class Tokenizer:
    """Conversion between lines of text and ids, for the source and the target side.

    Ids are in this order: controls, bytes, tokens of the target lines that it was learned from, source-only tokens.
    (In an imported model: controls, then its pieces, without bytes.) So an output layer over the ids below
    `num_target_ids` can write every possible target.
    """

    pad_id: ClassVar[int] = 0
    bos_id: ClassVar[int] = 1
    eos_id: ClassVar[int] = 2

    def __init__(self, config: TokenizerConfig, source: AnyVocabulary, target: AnyVocabulary, num_target_ids: int):
        """For `learn`, `from_json` and imports; with `config.joint`, an id is the same token on both sides."""
        self.config = config
        self.num_target_ids = num_target_ids
        self._source = source
        self._target = target

    @classmethod
    def learn(cls, config: TokenizerConfig, src_lines: Sequence[str], tgt_lines: Sequence[str]) -> "Tokenizer":
        """Learn the vocabularies; the same lines give the same tokenizer, byte for byte."""
        if config.source == "sentencepiece" or config.target == "sentencepiece":
            raise TransduceError(
                "tokenizer source or target is 'sentencepiece', which only imported models have: use one of "
                f"{', '.join(get_args(Kind))}, or train with --init-from IMPORTED_RUN."
            )
        src_lines = _normal_lines(src_lines, config.normalize)
        tgt_lines = _normal_lines(tgt_lines, config.target_forms)
        if config.joint:
            both = learn_vocabulary(config.target, [*src_lines, *tgt_lines], config.vocab_size)
            both, num_target_ids = both.with_target_tokens_first(tgt_lines)
            return cls(config, both, both, num_target_ids)
        source = learn_vocabulary(config.source, src_lines, config.vocab_size)
        target = learn_vocabulary(config.target, tgt_lines, config.vocab_size)
        return cls(config, source, target, len(target.tokens))

    @property
    def source_vocab_size(self) -> int:
        """Number of ids of the source vocabulary."""
        return len(self._source.tokens)

    @property
    def target_vocab_size(self) -> int:
        """Number of ids of the target vocabulary; `num_target_ids` of these can be written."""
        return len(self._target.tokens)

    @property
    def vocabulary_sizes(self) -> VocabularySizes:
        """The vocabulary sizes that the network needs."""
        return VocabularySizes(
            source=self.source_vocab_size,
            target=self.target_vocab_size,
            num_target_ids=self.num_target_ids,
            is_joint=self.config.joint,
            pad_id=self.pad_id,
        )

    def normal_source(self, lines: Sequence[str]) -> Sequence[str]:
        """Source lines in the normal form in which they are encoded; raises as `encode_source` does."""
        return _normal_lines(lines, self.config.normalize)

    def normal_target(self, lines: Sequence[str]) -> Sequence[str]:
        """Target lines in the normal form in which they are encoded; raises as `encode_target` does."""
        return _normal_lines(lines, self.config.target_forms)

    def encode_source(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, ended by eos. Raises TransduceError at a newline or a lone surrogate."""
        return self._source_ids(self.normal_source(lines))

    def encode_target(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, ended by eos, without bos. Raises TransduceError at a newline or a lone surrogate.

        All are below `num_target_ids`: other tokens spell a source-only one, so a model can write any target.
        """
        return self._target_ids(self.normal_target(lines))

    def source_encoder(self) -> LineEncoder:
        """An encoder of lines from `normal_source`, to arrays, for many portions of text: it remembers words."""
        return _line_encoder(self._source.kind, self._source_ids)

    def target_encoder(self) -> LineEncoder:
        """An encoder of lines from `normal_target`, to arrays, for many portions of text: it remembers words."""
        return _line_encoder(self._target.kind, self._target_ids)

    def decode_source(self, ids: Sequence[int]) -> str:
        """The text of `ids` up to the first eos; see `decode_target`."""
        return self._decode(self._source, ids)

    def decode_target(self, ids: Sequence[int]) -> str:
        """The text of `ids` up to the first eos, always one line.

        A model may write anything: bytes that are not UTF-8, and the byte of a newline, become U+FFFD.
        """
        return self._decode(self._target, ids)

    def source_tokens(self, ids: Sequence[int]) -> list[str]:
        """One readable name per id, for figures and tables, with ▁ for a space."""
        return [self._source.name(i) for i in ids]

    def target_tokens(self, ids: Sequence[int]) -> list[str]:
        """One readable name per id, for figures and tables, with ▁ for a space."""
        return [self._target.name(i) for i in ids]

    def target_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id of the output layer adds to a text; the space before a word is part of it."""
        return self._target_bytes

    def to_json(self) -> str:
        """One JSON document that carries its own SHA-256."""
        content = {
            # Without forms that are not there: a tokenizer of before is written as it was.
            "config": {name: value for name, value in asdict(self.config).items() if value != ()},
            "num_target_ids": self.num_target_ids,
            "source": None if self._source is self._target else self._source.to_dict(),
            "target": self._target.to_dict(),
        }
        document = {"format": _FORMAT, "version": _FORMAT_VERSION, "sha256": "", "content": content}
        return _compact_json(with_digest(document, _hashed))

    @classmethod
    def from_json(cls, text: str, path: Path | str = "the tokenizer") -> "Tokenizer":
        """The tokenizer that `to_json` wrote. Raises DamagedFileError, which names `path`, for any other text."""
        content = _verified_content(text, path)
        with well_formed(path, "Restore it from a copy."):
            if not matches(content, _CONTENT):
                raise ValueError("it does not have the fields, or the kinds of values, that are written there")
            target = _vocabulary(content["target"])
            source = target if content["source"] is None else _vocabulary(content["source"])
            settings = content["config"]
            settings |= {name: tuple(forms) for name, forms in settings.items() if isinstance(forms, list)}
            tokenizer = cls(TokenizerConfig(**settings), source, target, content["num_target_ids"])
            kinds, sizes = (tokenizer.config.source, tokenizer.config.target), tokenizer.vocabulary_sizes
            is_enough = sizes.num_target_ids >= min(NUM_FIXED_IDS, sizes.target)
            if not is_enough or kinds != (source.kind, target.kind):
                raise ValueError("its settings and its tokens are of different kinds")
        return tokenizer

    def __reduce__(self) -> tuple[Callable[[str], "Tokenizer"], tuple[str]]:
        return Tokenizer.from_json, (self.to_json(),)  # sent to another process as the content of its file

    @cached_property
    def _target_bytes(self) -> list[bytes]:
        return [self._target.bytes_of(i) for i in range(self.num_target_ids)]

    def _source_ids(self, lines: Sequence[str]) -> list[list[int]]:
        return [[*ids, self.eos_id] for ids in self._source.encode(lines)]

    def _target_ids(self, lines: Sequence[str]) -> list[list[int]]:
        return [self._target.respell([*ids, self.eos_id], self.num_target_ids) for ids in self._target.encode(lines)]

    def _decode(self, vocabulary: AnyVocabulary, ids: Sequence[int]) -> str:
        return vocabulary.decode(takewhile(lambda i: i != self.eos_id, ids))


def _vocabulary(saved: dict[str, Any]) -> AnyVocabulary:
    return (SentencePieces if saved["kind"] == "sentencepiece" else Vocabulary).from_dict(saved)


def _line_encoder(kind: AnyKind, encode: Callable[[Sequence[str]], list[list[int]]]) -> LineEncoder:
    """`encode` with arrays for its result, and with a table of the words that it has seen where words can be split."""
    table = WordTable(lambda words: (ids[:-1] for ids in encode(words)))

    def flatten(lines: Sequence[str]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        rows = Ragged.of(encode(lines))
        return rows.ids, rows.lens

    def look_up(lines: Sequence[str]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        ids, lens = table.encode(lines)
        return np.insert(ids, np.cumsum(lens), Tokenizer.eos_id), lens + 1

    # A space between characters is a token of its own, and sentencepiece may normalize across one.
    return flatten if kind in ("characters", "sentencepiece") else look_up


def _normal_lines(lines: Sequence[str], forms: Sequence[Form]) -> Sequence[str]:
    _check_lines(lines)
    return in_normal_form(lines, forms)


def _check_lines(lines: Sequence[str]) -> None:
    for start in range(0, len(lines), _LINES_PER_CHECK):
        joined = "".join(lines[start : start + _LINES_PER_CHECK])
        try:
            joined.encode()  # far faster than the search below, which only finds the place for the message
            if "\n" in joined:
                break
        except UnicodeEncodeError:
            break
    else:
        return
    for number, line in enumerate(lines, start=1):
        if match := _NOT_A_LINE_OF_TEXT.search(line):
            problem = "a newline: give one line at a time" if match[0] == "\n" else "a lone surrogate, not text"
            raise TransduceError(
                f"text {number} of {len(lines)}, character {match.start() + 1} (U+{ord(match[0]):04X}) is {problem}."
            )


def _verified_content(text: str, path: Path | str) -> dict[str, Any]:
    document = read_with_digest(text, _hashed)
    if document.get("format") != _FORMAT:
        raise damaged(path, "it is not a tokenizer of transduce, or a modified one", "Restore it from a copy.")
    if document.get("version") != _FORMAT_VERSION:
        raise DamagedFileError(
            f"{path} has format version {document.get('version')!r:.20}, but this version of transduce reads "
            f"{_FORMAT_VERSION}: use the version that wrote it, or a newer one."
        )
    return document["content"]


def _hashed(document: dict[str, Any]) -> bytes:
    return _compact_json(document["content"]).encode()


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
