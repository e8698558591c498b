"""The SentencePiece vocabulary of one side of an imported model; the `sentencepiece` library splits and joins text."""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from transduce.errors import DamagedFileError, TransduceError
from transduce.text.config import CONTROL_NAMES

UNKNOWN = "<unk>"

_LANGUAGE_CODE = re.compile(">>.*?<<", re.DOTALL)


@dataclass(frozen=True)
class SentencePieces:
    """A list that numbers the pieces, and the model that splits a line into them.

    Works as Marian's tokenizer in the transformers library does, without its optional Moses normalization of
    punctuation: the model normalizes the text by its own rules, and text outside every piece becomes `UNKNOWN`. So,
    unlike in every vocabulary that is learned here, decoding does NOT give back the exact text. A language code at the
    beginning of a line, such as >>deu<<, is one piece if it is in the list, and otherwise ordinary text; the name of a
    control id is ordinary text everywhere.
    """

    kind: ClassVar[Literal["sentencepiece"]] = "sentencepiece"
    tokens: tuple[str, ...]  # pieces by id, after the names of the control ids
    model: bytes  # a .spm file

    def encode(self, lines: Sequence[str]) -> Iterator[list[int]]:
        """The ids of each line, which must be free of newlines and lone surrogates."""
        return (self._encode_line(line) for line in lines)

    def respell(self, ids: list[int], _end: int) -> list[int]:
        """The same ids: a model can write all of them."""
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text; control ids and `UNKNOWN` are skipped."""
        pieces = [self.tokens[i] for i in ids if i >= len(CONTROL_NAMES) and self.tokens[i] != UNKNOWN]
        text: str = self._processor.decode_pieces(pieces)
        return text.replace("▁", " ").strip().replace("\n", "\N{REPLACEMENT CHARACTER}")

    def name(self, i: int) -> str:
        """The readable name of one id, with ▁ for a space."""
        return self.tokens[i]

    def bytes_of(self, i: int) -> bytes:
        """The UTF-8 bytes that one id adds to a text."""
        return b"" if i < len(CONTROL_NAMES) or self.tokens[i] == UNKNOWN else self.tokens[i].replace("▁", " ").encode()

    def to_dict(self) -> dict[str, Any]:
        """The pieces and their model as a JSON object."""
        return {"kind": self.kind, "pieces": self.tokens, "model": base64.b64encode(self.model).decode()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "SentencePieces":
        """What `to_dict` gave. Raises ValueError for what is no vocabulary."""
        pieces = tuple(saved["pieces"])
        "".join(pieces).encode()  # a lone surrogate is no text
        if pieces[: len(CONTROL_NAMES)] != CONTROL_NAMES or UNKNOWN not in pieces:
            raise ValueError(f"its pieces should begin with {', '.join(CONTROL_NAMES)}, and have {UNKNOWN}")
        return cls(pieces, base64.b64decode(saved["model"]))

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.tokens) if i >= len(CONTROL_NAMES)}

    @cached_property
    def _processor(self) -> Any:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise TransduceError(
                "the tokenizer of this model needs sentencepiece: pip install 'transduce[export]'"
            ) from None
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(self.model)
        except RuntimeError:
            raise DamagedFileError("not a SentencePiece model, or truncated: restore it from a copy.") from None
        return processor

    def _encode_line(self, line: str) -> list[int]:
        pieces: list[str] = []
        if (code := _LANGUAGE_CODE.match(line)) and code[0] in self._id_of:
            pieces, line = [code[0]], line[code.end() :]
        pieces += self._processor.encode(line, out_type=str)
        return [self._id_of.get(piece, self._id_of[UNKNOWN]) for piece in pieces]
