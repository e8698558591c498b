"""Decoding settings."""

import math
from dataclasses import dataclass
from typing import Literal

from transduce.errors import TransduceError

_WIDEST_BEAM = 1_000  # a wider one is a mistake
_MOST_FACTOR = 100  # of a length, and its power: a larger one overflows
_LEAST_EXTRA = 20  # tokens beyond max_len_ratio where no training pairs say how many


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """Settings of beam search, greedy search and sampling."""

    beam_size: int = 5
    """Number of hypotheses kept at each step; 1 is greedy search."""
    length_penalty: float = 0.6
    """Length penalty alpha. 0: none; larger values favor longer outputs."""
    length_norm: Literal["wu", "power"] = "wu"
    """Formula of the length penalty: ((5 + length) / 6)^alpha (Wu et al. 2016), or length^alpha."""
    max_len_ratio: float = 2.0
    """Maximum output tokens per source token, to which `max_len_extra` is added."""
    max_len_extra: int = 0
    """Maximum output tokens beyond the ratio. 0: as many as the training pairs need."""
    min_len: int = 0
    """Minimum output tokens, not counting the end symbol."""
    no_repeat_ngram_size: int = 0
    """Never write the same n-gram of this size twice in an output. 0: no limit."""
    temperature: float = 0.0
    """Sampling temperature. 0: search instead of sampling; 1: the model's own distribution."""
    top_k: int = 0
    """Sample only from the k most likely tokens. 0: from all."""
    top_p: float = 1.0
    """Sample only from the most likely tokens whose probabilities add up to p (nucleus sampling)."""
    seed: int = 1
    """Random seed of sampling."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic precision on a GPU."""
    cuda_graph: bool = False
    """Search in CUDA graphs on a GPU; the outputs are the same. Not used for sampling or sentences with constraints."""

    def __post_init__(self) -> None:
        if not 1 <= self.beam_size <= _WIDEST_BEAM:
            raise TransduceError(
                f"beam_size is {self.beam_size:,}: it must be from 1 (greedy search) to {_WIDEST_BEAM:,}; time and "
                "memory grow with it, and outputs seldom improve beyond 10."
            )
        if not 0 <= self.length_penalty <= _MOST_FACTOR:
            raise TransduceError(
                f"length_penalty is {self.length_penalty}: it must be from 0 (none) to {_MOST_FACTOR}."
            )
        if not 0 <= self.max_len_ratio <= _MOST_FACTOR or self.max_len_extra < 0:
            raise TransduceError(f"max_len_ratio must be from 0 to {_MOST_FACTOR}, and max_len_extra 0 or more.")
        if self.min_len < 0 or self.no_repeat_ngram_size < 0:
            raise TransduceError("min_len and no_repeat_ngram_size must be 0 (off) or more.")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise TransduceError(f"temperature is {self.temperature}: it must be 0 (search) or more.")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise TransduceError("top_k must be 0 (all tokens) or more, and top_p above 0 and at most 1.")

    @property
    def is_sampling(self) -> bool:
        """Whether tokens are sampled, instead of searched for."""
        return self.temperature > 0

    def max_len(self, src_len: int) -> int:
        """Most tokens of an output for `src_len` source tokens, including the end symbol."""
        return int(self.max_len_ratio * src_len) + (self.max_len_extra or _LEAST_EXTRA)
