"""The shape of the network and of its vocabularies, without torch: for help and settings."""

from dataclasses import dataclass
from typing import Literal

# More is a mistake: a run that says so would take all memory before its weights are looked at.
MOST = {
    "d_model": 2**14, "d_ff": 2**17, "num_heads": 2**10, "num_encoder_layers": 128, "num_decoder_layers": 128,
    "max_len": 2**16,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of the network; the defaults are the paper's base model (table 3)."""

    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.1  # on every sub-layer's output and on the embeddings (section 5.4)
    norm_first: bool = False  # False: post-norm, as in the paper; True: pre-norm
    norm: Literal["layer", "rms"] = "layer"
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = "sinusoidal"
    feed_forward: Literal["relu", "gelu", "silu", "swiglu"] = "relu"
    tie_embeddings: bool = True  # one matrix for embeddings and output (section 3.4)
    output_bias: bool = False  # a trained number for each token, added before the softmax, as Marian has it
    max_len: int = 1024  # tokens in the longest source or target; learned positions exist only up to here

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1 and at most {most:,}.")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"model.d_model ({self.d_model}) must be a multiple of model.num_heads ({self.num_heads}): "
                "each head gets d_model / num_heads channels."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}: it must be at least 0 and below 1.")
        if self.positions == "rotary" and (self.d_model // self.num_heads) % 2:
            raise ValueError(
                f"rotary positions turn channels in pairs: model.d_model / model.num_heads "
                f"({self.d_model // self.num_heads}) must be even. Change one of them, or take other positions."
            )


PRESETS = {
    "tiny": TransformerConfig(d_model=128, d_ff=256, num_heads=4, num_encoder_layers=4, num_decoder_layers=4),
    "small": TransformerConfig(d_model=256, d_ff=1024, num_heads=4, num_encoder_layers=4, num_decoder_layers=4),
    "base": TransformerConfig(),
    "big": TransformerConfig(d_model=1024, d_ff=4096, num_heads=16, dropout=0.3),
}


@dataclass(frozen=True, kw_only=True)
class VocabularySizes:
    """How many ids there are, and which of them can be written.

    `num_target_ids`: ids from 0 up to here can stand in a target; the softmax ranges over these alone. Differs from
    the paper, whose softmax ranges over the whole joint vocabulary; `num_target_ids = target` gives that back.
    """

    source: int
    target: int
    num_target_ids: int
    is_joint: bool  # one vocabulary for both sides
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.is_joint and self.source != self.target:
            raise ValueError(f"a joint vocabulary has one size, not {self.source} and {self.target}.")
        if not 0 < self.num_target_ids <= self.target:
            raise ValueError(f"num_target_ids ({self.num_target_ids}) must lie between 1 and {self.target}.")

    @classmethod
    def joint(cls, size: int) -> "VocabularySizes":
        """The paper's own: one vocabulary, all of it in the softmax."""
        return cls(source=size, target=size, num_target_ids=size, is_joint=True)
