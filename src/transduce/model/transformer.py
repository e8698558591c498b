"""The Transformer: Figure 1 put together, its sizes, and its initialization."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transduce.model.attention import MultiHeadAttention, padding_mask
from transduce.model.cache import DecoderState
from transduce.model.config import TransformerConfig, VocabularySizes
from transduce.model.decoder import Decoder, DecoderLayer
from transduce.model.dropout import Dropout
from transduce.model.encoder import Encoder, EncoderLayer
from transduce.model.feed_forward import FeedForward, GatedFeedForward
from transduce.model.packing import Packing, Segments
from transduce.model.positional import LearnedPositions, RotaryPositions, SinusoidalPositions
from transduce.model.residual import AddAndNorm, build_norm


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
        self._initialize()

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
        *,
        use_triton: bool = False,
    ) -> Float[Tensor, "1 tgt_tokens d_model"]:
        """`forward` of sentences that lie end to end in one row instead of one to a row.

        `use_triton`: with attention and Add & Norm of `kernels`, for a GPU.
        """
        most = self.config.max_len  # no position of a packed batch is beyond
        x = self._embed(src, src_packing.positions, self.src_embedding, self.src_positions, most)
        memory = self.encoder(x, Segments(src_packing, src_packing, use_triton))
        y = self._embed(tgt_in, tgt_packing.positions, self.tgt_embedding, self.tgt_positions, most)
        segments, own = Segments(tgt_packing, src_packing, use_triton), Segments(tgt_packing, tgt_packing, use_triton)
        return self.decoder(y, memory, segments, own)

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

    def _initialize(self) -> None:
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
