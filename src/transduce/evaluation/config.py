"""Validation settings, and the names of all metrics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from transduce.errors import TransduceError, nearest

T = TypeVar("T")

BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # sacreBLEU's; `bleu` takes the one that suits the references
METRICS = (
    "bleu", "tokenized_bleu", "chrf", "ter", "wer", "cer", "per", "exact_match", "word_error",
    *(f"bleu:{tokenizer}" for tokenizer in BLEU_TOKENIZERS),
)  # fmt: skip
GROUPED_METRICS = ("word_error", "per")  # the pronunciation scores: rows of one source are its alternatives


def refuse_unknown_metrics(names: Iterable[str], where: str) -> None:
    """Raise TransduceError, naming the setting `where`, before the long work and not after it."""
    for name in names:
        if name not in METRICS:
            raise TransduceError(f"{where}: there is no metric '{name}'.{nearest(name, METRICS)}")


def name_of_score(name: str, *, group_sources: bool) -> str:
    """The present name of a score in a file: in older ones a grouped "wer" was not edits / words, but `word_error`."""
    return "word_error" if group_sources and name == "wer" else name


def scores_by_name(scores: Mapping[str, T], *, group_sources: bool) -> dict[str, T]:
    """`scores` by their present names; other entries may stand among them."""
    return {name_of_score(name, group_sources=group_sources): value for name, value in scores.items()}


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Settings of validation during training."""

    metrics: tuple[str, ...] = ("bleu",)
    """Metrics of the decoded outputs, besides the loss; `transduce evaluate --help` lists them."""
    best: str = "loss"
    """What decides which weights are kept: "loss", or one of `metrics`."""
    ties_by_loss: bool = False
    """Among validations with equal scores, keep the one with the lowest loss instead of the first."""
    max_pairs: int = 500
    """Number of validation pairs that are decoded, spread evenly. The loss is computed on all."""
    beam_size: int = 1
    """Beam size of decoding at validation; 1 is greedy search."""
    group_sources: bool = False
    """Treat rows with the same source as alternative references, as in a dictionary with several pronunciations."""

    def __post_init__(self) -> None:
        refuse_unknown_metrics(self.metrics, "validation.metrics")
        if self.best != "loss" and self.best not in self.metrics:
            raise TransduceError(
                f"validation.best is '{self.best}': it must be 'loss' or one of validation.metrics "
                f"({', '.join(self.metrics) or 'none'})."
            )
        if self.group_sources and not set(self.metrics) <= set(GROUPED_METRICS):
            raise TransduceError(
                f"with validation.group_sources, validation.metrics may contain only {' and '.join(GROUPED_METRICS)}."
            )
        for name in ("max_pairs", "beam_size"):
            if getattr(self, name) < 1:
                raise TransduceError(f"validation.{name} is {getattr(self, name)}: it must be at least 1.")
