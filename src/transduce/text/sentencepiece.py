"""The pieces of one side of an imported model, which the `sentencepiece` library splits text into and joins again."""

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
    """Pieces numbered by a list of their own, and the model that splits a line into them.

    As Marian's tokenizer in the transformers library has it, without its optional Moses normalisation of punctuation:
    the model normalises the text by its own rules, and what is in no piece becomes `UNKNOWN`. So, unlike with every
    vocabulary that is learnt here, text is NOT kept: decoding gives it back but for that. A language code at the
    beginning of a line, such as >>deu<<, is one piece if it is in the list, and otherwise the text that it is; the
    name of a control id is text everywhere.
    """

    kind: ClassVar[Literal["sentencepiece"]] = "sentencepiece"
    pieces: tuple[str, ...]  # by id, the names of the control ids first
    model: bytes  # a .spm file

    def encode(self, lines: Sequence[str]) -> Iterator[list[int]]:
        """The ids of each line, which must be free of newlines and lone surrogates."""
        return (self._encode_line(line) for line in lines)

    def respell(self, ids: list[int], _end: int) -> list[int]:
        """The same ids: all of them can be written."""
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text; control ids and `UNKNOWN` are skipped."""
        pieces = [self.pieces[i] for i in ids if i >= len(CONTROL_NAMES) and self.pieces[i] != UNKNOWN]
        text: str = self._processor.decode_pieces(pieces)
        return text.replace("▁", " ").strip().replace("\n", "\N{REPLACEMENT CHARACTER}")

    def name(self, i: int) -> str:
        """What pictures and tables show for one id: a blank as ▁."""
        return self.pieces[i]

    def bytes_of(self, i: int) -> bytes:
        """What one id adds to a text, in UTF-8."""
        return b"" if i < len(CONTROL_NAMES) or self.pieces[i] == UNKNOWN else self.pieces[i].replace("▁", " ").encode()

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "pieces": self.pieces, "model": base64.b64encode(self.model).decode()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "SentencePieces":
        return cls(tuple(saved["pieces"]), base64.b64decode(saved["model"]))

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces) if i >= len(CONTROL_NAMES)}

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
            raise DamagedFileError("not a model of sentencepiece, or cut short: restore it from a copy.") from None
        return processor

    def _encode_line(self, line: str) -> list[int]:
        pieces: list[str] = []
        if (code := _LANGUAGE_CODE.match(line)) and code[0] in self._id_of:
            pieces, line = [code[0]], line[code.end() :]
        pieces += self._processor.encode(line, out_type=str)
        return [self._id_of.get(piece, self._id_of[UNKNOWN]) for piece in pieces]
