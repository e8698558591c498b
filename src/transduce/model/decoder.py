"""The decoder: the right half of Figure 1, over whole targets (training) and one token at a time (decoding)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transduce.model.attention import KeysAndValues, MultiHeadAttention
from transduce.model.cache import DecoderState
from transduce.model.packing import Segments
from transduce.model.residual import AddAndNorm


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the encoder's output, feed-forward network (section 3.1)."""

    def __init__(
        self,
        self_attention: MultiHeadAttention,
        cross_attention: MultiHeadAttention,
        feed_forward: nn.Module,
        residuals: list[AddAndNorm],
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward
        self.residual_1, self.residual_2, self.residual_3 = residuals

    def forward(
        self,
        x: Float[Tensor, "batch tgt_len d_model"],
        memory: KeysAndValues,
        memory_mask: Bool[Tensor, "batch 1 1 src_len"] | Segments,
        own_segments: Segments | None = None,
    ) -> Float[Tensor, "batch tgt_len d_model"]:
        """`memory`: the encoder's output as this layer's keys and values. `own_segments`: of a packed batch."""
        residuals = self.residual_1, self.residual_2, self.residual_3
        use_triton = own_segments is not None and own_segments.use_triton
        add_1, add_2, add_3 = (residual.by_triton if use_triton else residual for residual in residuals)
        x = add_1(x, lambda x: self.self_attention(x, mask=own_segments, is_causal=True))
        x = add_2(x, lambda x: self.cross_attention(x, memory, mask=memory_mask))
        return add_3(x, self.feed_forward)

    def step(
        self, x: Float[Tensor, "batch beam d_model"], state: DecoderState, index: int
    ) -> Float[Tensor, "batch beam d_model"]:
        """One token of every hypothesis; this is layer number `index` of the state's cache."""
        x = self.residual_1(x, lambda x: self._attend_to_own_past(x, state, index))
        # The hypotheses of a sentence are queries side by side, so its keys and values are held once, not per beam.
        x = self.residual_2(x, lambda x: self.cross_attention(x, state.cross[index], mask=state.memory_mask))
        return self.residual_3(x, self.feed_forward)

    def _attend_to_own_past(self, x: Tensor, state: DecoderState, index: int) -> Tensor:
        q, k, v = self.self_attention.project_self(x, state.position)
        k, v = state.append(index, k, v)
        q = q.transpose(1, 2)[:, :, :, None]  # (B, H, beam, K) -> (B, beam, H, 1, K): each hypothesis has its own past
        heads = F.scaled_dot_product_attention(q, k, v)[:, :, :, 0]
        return self.self_attention.combine(heads.transpose(1, 2))


class Decoder(nn.Module):
    """A stack of layers. A final norm closes it only under pre-norm, where nothing else would."""

    def __init__(self, layers: list[DecoderLayer], final_norm: nn.Module | None) -> None:
        super().__init__()
        self.layers: Iterable[DecoderLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.final_norm = final_norm or nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch tgt_len d_model"],
        memory: Float[Tensor, "batch src_len d_model"],
        memory_mask: Bool[Tensor, "batch 1 1 src_len"] | Segments,
        own_segments: Segments | None = None,
    ) -> Float[Tensor, "batch tgt_len d_model"]:
        for layer, keys_and_values in zip(self.layers, self.project_memory(memory), strict=True):
            x = layer(x, keys_and_values, memory_mask, own_segments)
        return self.final_norm(x)

    def project_memory(self, memory: Float[Tensor, "batch src_len d_model"]) -> list[KeysAndValues]:
        """Keys and values of the memory for each layer's cross-attention.

        All layers look at the same memory, so their projections are one product with their matrices side by side.
        """
        attentions = [layer.cross_attention for layer in self.layers]
        weights, biases = zip(*(attention.memory_projection() for attention in attentions), strict=True)
        projected = F.linear(memory, torch.cat(weights), torch.cat(biases)).chunk(len(attentions), dim=-1)
        return [attention.split_memory(part) for attention, part in zip(attentions, projected, strict=True)]

    def start(
        self,
        memory: Float[Tensor, "batch src_len d_model"],
        memory_mask: Bool[Tensor, "batch 1 1 src_len"],
    ) -> DecoderState:
        """The state before the first token: keys and values of the memory, which no step changes."""
        return DecoderState(self.project_memory(memory), memory_mask)

    def step(self, x: Float[Tensor, "batch beam d_model"], state: DecoderState) -> Float[Tensor, "batch beam d_model"]:
        """One token of every hypothesis, at the position that `state.advance` just opened."""
        for index, layer in enumerate(self.layers):
            x = layer.step(x, state, index)
        return self.final_norm(x)
