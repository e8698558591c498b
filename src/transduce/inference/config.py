"""Decoding settings."""

import math
from dataclasses import dataclass
from typing import Literal

from transduce.errors import TransduceError

_WIDEST_BEAM = 1_000  # a wider one is a mistake
_MOST_FACTOR = 100  # of a length, and its power: what comes of a larger one is no number
_LEAST_EXTRA = 20  # tokens beyond max_len_ratio where no training pairs say how many


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """Settings of beam search, greedy search and sampling."""

    beam_size: int = 5  # hypotheses kept at each step; 1 is greedy search
    length_penalty: float = 0.6  # alpha: 0 scores by probability alone, larger values favor longer outputs
    length_norm: Literal["wu", "power"] = "wu"  # ((5 + length) / 6)^alpha (Wu et al. 2016), or length^alpha
    max_len_ratio: float = 2.0  # an output has at most ratio * source tokens + extra tokens
    max_len_extra: int = 0  # 0: as the training pairs need, which `train` writes into config.toml
    min_len: int = 0  # fewest tokens of an output, not counting the end symbol, where it has room for them
    no_repeat_ngram_size: int = 0  # no n-gram of this size occurs twice in an output; 0: any may
    temperature: float = 0.0  # above 0: sample instead of searching; 1 samples from the model's distribution
    top_k: int = 0  # sample from the k most likely tokens only; 0: from all
    top_p: float = 1.0  # sample from the smallest set of tokens with at least this probability
    seed: int = 1  # random seed of sampling

    def __post_init__(self) -> None:
        if not 1 <= self.beam_size <= _WIDEST_BEAM:
            raise TransduceError(
                f"the beam size is {self.beam_size:,}: it must be from 1 (greedy search) to {_WIDEST_BEAM:,}; time and "
                "memory grow with it, and answers seldom get better beyond 10."
            )
        if not 0 <= self.length_penalty <= _MOST_FACTOR:
            raise TransduceError(f"the length penalty is {self.length_penalty}: it must be 0 (none) to {_MOST_FACTOR}.")
        if not 0 <= self.max_len_ratio <= _MOST_FACTOR or self.max_len_extra < 0:
            need = "and max_len_extra: 0 is as training pairs need"
            raise TransduceError(f"max_len_ratio must be at least 0 and at most {_MOST_FACTOR}, {need}.")
        if self.min_len < 0 or self.no_repeat_ngram_size < 0:
            raise TransduceError("min_len and no_repeat_ngram_size must be 0 (off) or more.")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise TransduceError(f"the temperature is {self.temperature}: it must be 0 (search) or more.")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise TransduceError("top_k must be 0 (all) or more, top_p above 0 and at most 1.")

    @property
    def is_sampling(self) -> bool:
        return self.temperature > 0

    def max_len(self, src_len: int) -> int:
        """Most tokens of an output for `src_len` source tokens, including the end symbol."""
        return int(self.max_len_ratio * src_len) + (self.max_len_extra or _LEAST_EXTRA)
