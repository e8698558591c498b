"""Settings of a tokenizer, and the ids at the start of every vocabulary."""

from dataclasses import dataclass
from typing import Literal, get_args

from transduce.errors import TransduceError, nearest
from transduce.text.normal_form import CANONICAL_FORMS, FORMS, Form

Kind = Literal["characters", "words", "bpe", "unigram"]
AnyKind = Literal[Kind, "sentencepiece"]

CONTROL_NAMES = ("<pad>", "<s>", "</s>")  # by id
FIRST_BYTE_ID = len(CONTROL_NAMES)  # a byte that stands for itself follows the controls
NUM_FIXED_IDS = FIRST_BYTE_ID + 256
_MIN_VOCAB_SIZE = 300  # the fixed ids, and some for text
MOST_TOKENS = 2**18  # of a vocabulary: there is hardly a larger one, and all of it is in memory several times


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The kind of tokens on each side; `vocab_size` counts control ids and bytes, too."""

    source: AnyKind = "bpe"
    """Kind of source tokens. "sentencepiece" is for imported models and cannot be trained."""
    target: AnyKind = "bpe"
    """Kind of target tokens."""
    joint: bool = True
    """Share one vocabulary between source and target, which must then be of the same kind."""
    vocab_size: int = 8000
    """Maximum size of a vocabulary of subwords (bpe, unigram). Characters and words keep all that occur."""
    normalize: tuple[Form, ...] = ()
    """Normalization of source text. The lossless forms (nfc, nfd) apply to the target as well."""
    normalize_target: tuple[Form, ...] = ()
    """Additional normalization of target text, which changes what the model learns to write."""

    @property
    def target_forms(self) -> tuple[Form, ...]:
        """The normal forms of target lines."""
        return (*(form for form in self.normalize if form in CANONICAL_FORMS), *self.normalize_target)

    def __post_init__(self) -> None:
        for side, kind in (("source", self.source), ("target", self.target)):
            if kind not in get_args(AnyKind):
                raise TransduceError(f"tokenizer {side} ({kind!r}) must be one of {', '.join(get_args(AnyKind))}.")
        for form in (*self.normalize, *self.normalize_target):
            if form not in FORMS:
                raise TransduceError(f"tokenizer normal form '{form}' is unknown.{nearest(form, FORMS)}")
        if self.joint and self.source != self.target:
            raise TransduceError(
                f"tokenizer joint (true) needs one kind for both sides, but source is {self.source!r} and target is "
                f"{self.target!r}: set joint to false, or both sides to the same kind."
            )
        if {self.source, self.target} & {"bpe", "unigram"} and self.vocab_size < _MIN_VOCAB_SIZE:
            raise TransduceError(
                f"tokenizer vocab_size ({self.vocab_size}) must be at least {_MIN_VOCAB_SIZE}: "
                f"{NUM_FIXED_IDS} ids are the controls and the bytes."
            )
        if self.vocab_size > MOST_TOKENS:
            raise TransduceError(f"tokenizer vocab_size ({self.vocab_size:,}) must be at most {MOST_TOKENS:,}.")
