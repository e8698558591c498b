"""An inference-only copy of the network for cached decoding: `Transformer.start` and `step`, several times as fast.

`model/` says what is computed; here its matrices are prepared once for how they are used, and a step is the fewest
calls that compute it. What differs:

- Matrices are laid out for how they are multiplied (`linear`), optionally quantized to int8, and the output matrix is
  widened to whole blocks of 64 columns: 4,301 columns take half as long again as 4,352.
- The hypotheses of a sentence are queries side by side, so the keys and values of its source are held once; those of
  its outputs are never reordered (`state`).
- Attention with few queries is two batched products and a softmax, which takes half as long as the fused kernel.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transduce.inference.linear import MakeMap, Map, float_map, gains_by_int8, int8_map
from transduce.inference.state import InferenceState, StaticState
from transduce.model.decoder import DecoderLayer
from transduce.model.encoder import EncoderLayer
from transduce.model.feed_forward import FeedForward, GatedFeedForward
from transduce.model.positional import LearnedPositions, SinusoidalPositions
from transduce.model.residual import AddAndNorm
from transduce.model.transformer import Transformer

_BLOCK_LEN = 64  # the output matrix has a multiple of so many ids: whole vectors, and whole blocks for ranking them


S = TypeVar("S", InferenceState, StaticState)


class InferenceModel:
    """A trained Transformer prepared for decoding: `start` and `step` with the results of the model's own.

    Matrices are copied, vectors are shared: when the model's weights change, make a new one. With `int8`, for a model
    on a CPU, large matrices are held and multiplied in int8; `is_int8` says whether it has any.
    """

    @torch.inference_mode()
    def __init__(self, model: Transformer, *, int8: bool = False) -> None:
        self.is_int8 = False

        def make_map(weight: Tensor, bias: Tensor | None) -> Map:
            self.is_int8 = self.is_int8 or (int8 and gains_by_int8(weight))
            return (int8_map if int8 else float_map)(weight, bias)

        self._pad_id, self._num_heads = model.vocabulary.pad_id, model.config.num_heads
        self._embed_source = _Embedding(model.src_embedding, model.src_positions)
        self._embed_target = _Embedding(model.tgt_embedding, model.tgt_positions)
        for positions in (model.src_positions, model.tgt_positions):
            if positions is not None:
                # Now, not at first use: workers that decode at the same time share the table.
                positions.reserve(model.config.max_len)
        self._encoder_layers = [_EncoderLayer(layer, make_map) for layer in model.encoder.layers]
        self._encoder_norm = _norm_of(model.encoder.final_norm)
        layers = list(model.decoder.layers)
        # All layers attend to the same memory: one product makes their keys and values.
        memory = [layer.cross_attention.memory_projection() for layer in layers]
        self._memory = make_map(torch.cat([weight for weight, _ in memory]), torch.cat([bias for _, bias in memory]))
        self._decoder_layers = [_DecoderLayer(layer, index, make_map) for index, layer in enumerate(layers)]
        self._decoder_norm = _norm_of(model.decoder.final_norm)
        self._num_ids = len(model.output_weight)
        num_more = -self._num_ids % _BLOCK_LEN
        self.num_logits = self._num_ids + num_more
        bias = None if model.output_bias is None else F.pad(model.output_bias, (0, num_more))
        self._output = make_map(F.pad(model.output_weight, (0, 0, 0, num_more)), bias)

    def start(self, src: Int[Tensor, "batch src_len"]) -> InferenceState:
        """Encode `src`: the state before the first `step`."""
        mask = src != self._pad_id
        attention_mask = None if mask.all() else mask[:, None, None]
        x = self._embed_source(src, 0)
        for layer in self._encoder_layers:
            x = layer(x, src.shape, attention_mask)
        parts = self._memory(self._encoder_norm(x)).view(*src.shape, len(self._decoder_layers), 2, self._num_heads, -1)
        cross = parts.permute(2, 3, 0, 4, 1, 5)  # (B, S, L, 2, H, K) -> (L, 2, B, H, S, K)
        return InferenceState(cross, mask)

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return self._embed_source.weight.device

    @property
    def bytes_per_token(self) -> int:
        """Of its keys and values in all decoder layers."""
        weight = self._embed_source.weight
        return 2 * len(self._decoder_layers) * weight.size(1) * weight.element_size()

    def empty_cross(self, batch_size: int, src_len: int) -> Float[Tensor, "layers two batch heads src_len head_dim"]:
        """Zeros of the shape that the keys and values of so many sources have."""
        weight = self._embed_source.weight
        head_dim = weight.size(1) // self._num_heads
        return weight.new_zeros(len(self._decoder_layers), 2, batch_size, self._num_heads, src_len, head_dim)

    def step(
        self, tokens: Int[Tensor, "batch beam"], parents: Int[Tensor, "batch beam"], state: S
    ) -> tuple[Float[Tensor, "batch beam vocab"], S]:
        """Append `tokens[b, i]` to hypothesis `parents[b, i]` of sentence b, and score the token after it.

        Returns logits, -inf for ids that only fill the last block, and the state, which is the one given, changed.
        """
        state.advance(parents)
        x = self._embed_target(tokens.view(-1, 1), state.position)
        for layer in self._decoder_layers:
            x = layer(x, state)
        logits = self._output(self._decoder_norm(x))
        logits[:, self._num_ids :] = -math.inf
        return logits.view(*tokens.shape, -1), state


class _Embedding:
    """Scaled embeddings plus positions."""

    def __init__(self, embedding: nn.Embedding, positions: SinusoidalPositions | LearnedPositions | None) -> None:
        self.weight, self._positions = embedding.weight, positions
        self._scale = math.sqrt(embedding.embedding_dim)  # section 3.4

    def __call__(self, ids: Int[Tensor, "batch len"], first: int | Int[Tensor, "1"]) -> Float[Tensor, "rows d_model"]:
        """The vectors of ids at positions `first`, `first` + 1, ...; of one position if it is on the device."""
        x = F.embedding(ids, self.weight) * self._scale
        if self._positions is not None:
            positions = self._positions
            if isinstance(first, int):
                positions.reserve(first + ids.size(1))
            table = positions.table if isinstance(positions, SinusoidalPositions) else positions.weight
            x += table[first : first + ids.size(1)] if isinstance(first, int) else table.index_select(0, first)
        return x.flatten(0, 1)


class _EncoderLayer:
    """Encoder layer on all tokens of a batch: x is (B * S, D)."""

    def __init__(self, layer: EncoderLayer, make_map: MakeMap) -> None:
        attention = layer.self_attention
        self._qkv = make_map(attention.qkv_proj.weight, attention.qkv_proj.bias)
        self._out = make_map(attention.out_proj.weight, attention.out_proj.bias)
        self._num_heads, self._rotary = attention.num_heads, attention.rotary
        self._feed_forward = _feed_forward_of(layer.feed_forward, make_map)
        self._add_and_norm_1 = _add_and_norm_of(layer.residual_1)
        self._add_and_norm_2 = _add_and_norm_of(layer.residual_2)

    def __call__(
        self, x: Float[Tensor, "rows d_model"], shape: torch.Size, mask: Bool[Tensor, "batch 1 1 src_len"] | None
    ) -> Float[Tensor, "rows d_model"]:
        x = self._add_and_norm_1(x, lambda x: self._attend(x, shape, mask))
        return self._add_and_norm_2(x, self._feed_forward)

    def _attend(self, x: Tensor, shape: torch.Size, mask: Tensor | None) -> Tensor:
        parts = self._qkv(x).view(*shape, 3, self._num_heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, S, 3, H, K) -> 3 of (B, H, S, K)
        if self._rotary is not None:
            positions = torch.arange(shape[1], device=x.device)
            q, k = self._rotary(q, positions), self._rotary(k, positions)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self._out(heads.transpose(1, 2).reshape(x.shape))


class _DecoderLayer:
    """Decoder layer on one token of every hypothesis: x is (B * beam, D)."""

    def __init__(self, layer: DecoderLayer, index: int, make_map: MakeMap) -> None:
        attention, cross = layer.self_attention, layer.cross_attention
        self._index, self._rotary = index, attention.rotary
        d_model = attention.out_proj.in_features
        # The 1 / sqrt(d_k) of equation 1 goes into what makes the queries: no step multiplies by it.
        scales = attention.qkv_proj.weight.new_ones(3 * d_model)
        scales[:d_model] = (d_model // attention.num_heads) ** -0.5
        self._qkv = make_map(attention.qkv_proj.weight * scales[:, None], attention.qkv_proj.bias * scales)
        query = cross.qkv_proj
        self._query = make_map(query.weight[:d_model] * scales[0], query.bias[:d_model] * scales[0])
        self._self_out = make_map(attention.out_proj.weight, attention.out_proj.bias)
        self._cross_out = make_map(cross.out_proj.weight, cross.out_proj.bias)
        self._feed_forward = _feed_forward_of(layer.feed_forward, make_map)
        self._add_and_norm_1 = _add_and_norm_of(layer.residual_1)
        self._add_and_norm_2 = _add_and_norm_of(layer.residual_2)
        self._add_and_norm_3 = _add_and_norm_of(layer.residual_3)

    def __call__(
        self, x: Float[Tensor, "rows d_model"], state: InferenceState | StaticState
    ) -> Float[Tensor, "rows d_model"]:
        x = self._add_and_norm_1(x, lambda x: self._self_attend(x, state))
        x = self._add_and_norm_2(x, lambda x: self._cross_attend(x, state))
        return self._add_and_norm_3(x, self._feed_forward)

    def _self_attend(self, x: Tensor, state: InferenceState | StaticState) -> Tensor:
        batch_size, beam, *heads = state.shape
        parts = self._qkv(x).view(batch_size, beam, 3, *heads)
        if self._rotary is not None:
            turned = parts[:, :, :2].flatten(0, 1).flatten(1, 2)[:, :, None]  # a view: (B * beam, 2 * H, 1, K)
            turned.copy_(self._rotary(turned, torch.as_tensor(state.position, device=x.device).view(1)))
        state.append(self._index, parts[:, :, 1:])  # this token's keys are among those it attends to
        return self._self_out(_attend(parts[:, :, 0], state.keys[self._index], state.values[self._index], state.bias))

    def _cross_attend(self, x: Tensor, state: InferenceState | StaticState) -> Tensor:
        q = self._query(x).view(state.shape)
        keys, values = state.cross_keys[self._index], state.cross_values[self._index]
        return self._cross_out(_attend(q, keys, values, state.cross_bias))


def _attend(
    q: Float[Tensor, "batch beam heads head_dim"],
    keys: Float[Tensor, "batch_heads head_dim slots"],
    values: Float[Tensor, "batch_heads slots head_dim"],
    bias: Float[Tensor, "#batch_heads #beam slots"] | None,
) -> Float[Tensor, "rows d_model"]:
    """Equation 1 for all heads of all sentences at once; `q` is divided by sqrt(d_k) already."""
    batch_size, beam, num_heads, head_dim = q.shape
    # (B, beam, H, K) -> (B * H, beam, K); with one query per sentence no number changes its place
    q = (q if beam == 1 else q.transpose(1, 2)).reshape(-1, beam, head_dim)
    scores = torch.bmm(q, keys) if bias is None else torch.baddbmm(bias, q, keys)
    heads = torch.bmm(scores.softmax(dim=-1), values)
    if beam > 1:
        heads = heads.view(batch_size, num_heads, beam, head_dim).transpose(1, 2)
    return heads.reshape(-1, num_heads * head_dim)


def _feed_forward_of(module: nn.Module, make_map: MakeMap) -> Map:
    assert isinstance(module, FeedForward | GatedFeedForward)
    down = make_map(module.down_proj.weight, module.down_proj.bias)
    if isinstance(module, GatedFeedForward):
        gate_up = make_map(module.gate_up_proj.weight, module.gate_up_proj.bias)

        def gated(x: Tensor) -> Tensor:
            gate, up = gate_up(x).chunk(2, dim=-1)
            return down(F.silu(gate) * up)

        return gated
    up = make_map(module.up_proj.weight, module.up_proj.bias)
    activation: Map = torch.relu_ if isinstance(module.activation, nn.ReLU) else module.activation
    return lambda x: down(activation(up(x)))


def _add_and_norm_of(module: AddAndNorm) -> Callable[[Tensor, Map], Tensor]:
    norm = _norm_of(module.norm)
    if module.norm_first:
        return lambda x, sublayer: sublayer(norm(x)).add_(x)
    return lambda x, sublayer: norm(sublayer(x).add_(x))


def _norm_of(norm: nn.Module) -> Map:
    if isinstance(norm, nn.Identity):
        return lambda x: x
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    shape, weight = norm.normalized_shape, norm.weight
    if isinstance(norm, nn.RMSNorm):
        return lambda x: torch.rms_norm(x, shape, weight, norm.eps)
    return lambda x: torch.layer_norm(x, shape, weight, norm.bias, norm.eps)
