"""The Transformer: Figure 1 put together, its sizes, and its initialisation."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transduce.model.attention import MultiHeadAttention, padding_mask
from transduce.model.cache import DecoderState
from transduce.model.decoder import Decoder, DecoderLayer
from transduce.model.dropout import Dropout
from transduce.model.encoder import Encoder, EncoderLayer
from transduce.model.feed_forward import FeedForward, GatedFeedForward
from transduce.model.packing import Packing, Segments
from transduce.model.positional import LearnedPositions, RotaryPositions, SinusoidalPositions
from transduce.model.residual import AddAndNorm, build_norm


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
        for name in ("d_model", "d_ff", "num_heads", "num_encoder_layers", "num_decoder_layers", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1.")
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


class Transformer(nn.Module):
    """Source ids and target ids in, one vector per target position out; `logits` turns those into scores."""

    def __init__(self, config: TransformerConfig, vocabulary: VocabularySizes) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.src_embedding = nn.Embedding(vocabulary.source, config.d_model)
        is_shared = config.tie_embeddings and vocabulary.is_joint
        self.tgt_embedding = self.src_embedding if is_shared else nn.Embedding(vocabulary.target, config.d_model)
        if config.tie_embeddings:
            self.register_parameter("separate_output_weight", None)
        else:
            self.separate_output_weight = nn.Parameter(torch.empty(vocabulary.num_target_ids, config.d_model))
        self.output_bias = nn.Parameter(torch.empty(vocabulary.num_target_ids)) if config.output_bias else None
        self.src_positions, self.tgt_positions = _build_positions(config), _build_positions(config)
        self.dropout = Dropout(config.dropout)
        self.encoder = Encoder(
            [_build_encoder_layer(config) for _ in range(config.num_encoder_layers)], _build_final_norm(config)
        )
        self.decoder = Decoder(
            [_build_decoder_layer(config) for _ in range(config.num_decoder_layers)], _build_final_norm(config)
        )
        self._initialise()

    def forward(
        self, src: Int[Tensor, "batch src_len"], tgt_in: Int[Tensor, "batch tgt_len"]
    ) -> Float[Tensor, "batch tgt_len d_model"]:
        """The decoder's last hidden vectors: what position t knows when it has to name token t + 1."""
        memory, memory_mask = self.encode(src)
        positions = torch.arange(tgt_in.size(1), device=tgt_in.device)
        x = self._embed(tgt_in, positions, self.tgt_embedding, self.tgt_positions)
        return self.decoder(x, memory, memory_mask)

    def forward_packed(
        self,
        src: Int[Tensor, "1 src_tokens"],
        tgt_in: Int[Tensor, "1 tgt_tokens"],
        src_packing: Packing,
        tgt_packing: Packing,
    ) -> Float[Tensor, "1 tgt_tokens d_model"]:
        """`forward` of sentences that lie end to end in one row instead of one to a row."""
        most = self.config.max_len  # no position of a packed batch is beyond
        x = self._embed(src, src_packing.positions, self.src_embedding, self.src_positions, most)
        memory = self.encoder(x, Segments(src_packing, src_packing))
        y = self._embed(tgt_in, tgt_packing.positions, self.tgt_embedding, self.tgt_positions, most)
        return self.decoder(y, memory, Segments(tgt_packing, src_packing), Segments(tgt_packing, tgt_packing))

    def encode(
        self, src: Int[Tensor, "batch src_len"]
    ) -> tuple[Float[Tensor, "batch src_len d_model"], Bool[Tensor, "batch 1 1 src_len"]]:
        """The encoder's output and the mask of its real positions."""
        mask = padding_mask(src, self.vocabulary.pad_id)
        positions = torch.arange(src.size(1), device=src.device)
        return self.encoder(self._embed(src, positions, self.src_embedding, self.src_positions), mask), mask

    @property
    def output_weight(self) -> Float[Tensor, "num_target_ids d_model"]:
        """The matrix before the softmax: the target embedding's own rows if tied (section 3.4)."""
        if self.separate_output_weight is not None:
            return self.separate_output_weight
        return self.tgt_embedding.weight[: self.vocabulary.num_target_ids]

    def logits(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch num_target_ids"]:
        """Scores before the softmax, over the ids that can be written."""
        return F.linear(hidden, self.output_weight, self.output_bias)

    def start(self, src: Int[Tensor, "batch src_len"]) -> DecoderState:
        """Encodes `src`: the state before the first `step`."""
        memory, memory_mask = self.encode(src)
        return self.decoder.start(memory, memory_mask)

    def step(
        self, tokens: Int[Tensor, "batch beam"], parents: Int[Tensor, "batch beam"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch beam num_target_ids"], DecoderState]:
        """Appends `tokens[b, i]` to hypothesis `parents[b, i]` of sentence b; scores the token after it.

        The state given must not be used again: it is the one returned.
        """
        state.advance(parents)
        x = self._embed(tokens, state.position, self.tgt_embedding, self.tgt_positions, len_so_far=state.num_steps)
        return self.logits(self.decoder.step(x, state)), state

    def _embed(
        self,
        ids: Int[Tensor, "batch len"],
        positions: Int[Tensor, "#len"],
        embedding: nn.Embedding,
        add_positions: SinusoidalPositions | LearnedPositions | None,
        len_so_far: int | None = None,
    ) -> Float[Tensor, "batch len d_model"]:
        x = embedding(ids) * math.sqrt(self.config.d_model)  # section 3.4
        if add_positions is not None:
            add_positions.reserve(len_so_far or ids.size(1))
            x = add_positions(x, positions)
        return self.dropout(x)

    def _initialise(self) -> None:
        """Xavier-uniform matrices, N(0, 1 / d_model) embeddings, zero biases (the paper does not say)."""
        for name, parameter in self.named_parameters():
            if "embedding" in name or "positions" in name or name == "separate_output_weight":
                nn.init.normal_(parameter, std=self.config.d_model**-0.5)
            elif parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
            elif name.endswith("qkv_proj.weight"):
                for matrix in parameter.chunk(3):  # each on its own: fused, their common fan-out would shrink them
                    nn.init.xavier_uniform_(matrix)
            elif name.endswith("gate_up_proj.weight"):
                for matrix in parameter.chunk(2):
                    nn.init.xavier_uniform_(matrix)
            else:
                nn.init.xavier_uniform_(parameter)


def _build_positions(config: TransformerConfig) -> SinusoidalPositions | LearnedPositions | None:
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.d_model)
    if config.positions == "learned":
        return LearnedPositions(config.d_model, config.max_len)
    return None


def _build_self_attention(config: TransformerConfig) -> MultiHeadAttention:
    rotary = RotaryPositions(config.d_model // config.num_heads) if config.positions == "rotary" else None
    return MultiHeadAttention(config.d_model, config.num_heads, rotary)


def _build_feed_forward(config: TransformerConfig) -> FeedForward | GatedFeedForward:
    if config.feed_forward == "swiglu":
        return GatedFeedForward(config.d_model, config.d_ff)
    return FeedForward(config.d_model, config.d_ff, config.feed_forward)


def _build_residuals(config: TransformerConfig, count: int) -> list[AddAndNorm]:
    return [AddAndNorm(config.d_model, config.dropout, config.norm, config.norm_first) for _ in range(count)]


def _build_final_norm(config: TransformerConfig) -> nn.Module | None:
    return build_norm(config.d_model, config.norm) if config.norm_first else None


def _build_encoder_layer(config: TransformerConfig) -> EncoderLayer:
    return EncoderLayer(_build_self_attention(config), _build_feed_forward(config), _build_residuals(config, 2))


def _build_decoder_layer(config: TransformerConfig) -> DecoderLayer:
    return DecoderLayer(
        _build_self_attention(config),
        MultiHeadAttention(config.d_model, config.num_heads),
        _build_feed_forward(config),
        _build_residuals(config, 3),
    )
