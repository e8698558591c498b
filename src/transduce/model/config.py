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
    """Width of the model: channels of each token between the sub-layers."""
    d_ff: int = 2048
    """Width of the hidden layer in the feed-forward networks."""
    num_heads: int = 8
    """Attention heads per layer; must divide `d_model`."""
    num_encoder_layers: int = 6
    """Number of encoder layers."""
    num_decoder_layers: int = 6
    """Number of decoder layers."""
    dropout: float = 0.1
    """Dropout rate on the output of every sub-layer and on the embeddings (section 5.4)."""
    norm_first: bool = False
    """Normalize before each sub-layer (pre-norm) instead of after it (post-norm, as in the paper)."""
    norm: Literal["layer", "rms"] = "layer"
    """Kind of normalization: LayerNorm, as in the paper, or RMSNorm."""
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = "sinusoidal"
    """Position encoding; sinusoidal as in the paper (section 3.5)."""
    feed_forward: Literal["relu", "gelu", "silu", "swiglu"] = "relu"
    """Activation of the feed-forward networks; ReLU as in the paper (section 3.3)."""
    tie_embeddings: bool = True
    """Use one matrix for the embeddings and the output layer (section 3.4)."""
    output_bias: bool = False
    """Add a trained bias to the logits, as Marian does."""
    max_len: int = 1024
    """Longest source or target, in tokens. Learned positions exist only up to this length."""

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
                f"rotary positions rotate pairs of channels: model.d_model / model.num_heads "
                f"({self.d_model // self.num_heads}) must be even. Change one of them, or use other positions."
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
