"""The decoder: the right half of Figure 1, over whole targets (training) and one token at a time (decoding)."""

from collections.abc import Iterable

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transduce.model.attention import MultiHeadAttention
from transduce.model.cache import DecoderState
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
        memory: Float[Tensor, "batch src_len d_model"],
        memory_mask: Bool[Tensor, "batch 1 1 src_len"],
    ) -> Float[Tensor, "batch tgt_len d_model"]:
        x = self.residual_1(x, lambda x: self.self_attention(x, is_causal=True))
        x = self.residual_2(x, lambda x: self.cross_attention(x, memory, mask=memory_mask))
        return self.residual_3(x, self.feed_forward)

    def start(self, memory: Float[Tensor, "batch src_len d_model"]) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, K) of the memory: the same at every step."""
        return self.cross_attention.project_memory(memory)

    def step(
        self, x: Float[Tensor, "batch beam d_model"], state: DecoderState, index: int
    ) -> Float[Tensor, "batch beam d_model"]:
        """One token of every hypothesis; this is layer number `index` of the state's cache."""
        x = self.residual_1(x, lambda x: self._attend_to_own_past(x, state, index))
        x = self.residual_2(x, lambda x: self._attend_to_memory(x, state, index))
        return self.residual_3(x, self.feed_forward)

    def _attend_to_own_past(self, x: Tensor, state: DecoderState, index: int) -> Tensor:
        q, k, v = self.self_attention.project_self(x, state.positions)
        k, v = state.append(index, k, v)
        return self.self_attention.combine(F.scaled_dot_product_attention(q, k, v, attn_mask=state.ancestry_mask))

    def _attend_to_memory(self, x: Tensor, state: DecoderState, index: int) -> Tensor:
        # The hypotheses of a sentence are queries side by side, so its keys and values are held once, not per beam.
        q = self.cross_attention.project_queries(x)
        k, v = state.cross[index]
        return self.cross_attention.combine(F.scaled_dot_product_attention(q, k, v, attn_mask=state.memory_mask))


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
        memory_mask: Bool[Tensor, "batch 1 1 src_len"],
    ) -> Float[Tensor, "batch tgt_len d_model"]:
        for layer in self.layers:
            x = layer(x, memory, memory_mask)
        return self.final_norm(x)

    def start(
        self,
        memory: Float[Tensor, "batch src_len d_model"],
        memory_mask: Bool[Tensor, "batch 1 1 src_len"],
        beam_size: int,
    ) -> DecoderState:
        """The state before the first token: keys and values of the memory, which no step changes."""
        cross = [layer.start(memory) for layer in self.layers]
        return DecoderState(cross, memory_mask, beam_size=beam_size)

    def step(self, x: Float[Tensor, "batch beam d_model"], state: DecoderState) -> Float[Tensor, "batch beam d_model"]:
        """One token of every hypothesis, at the position that `state.advance` just opened."""
        for index, layer in enumerate(self.layers):
            x = layer.step(x, state, index)
        return self.final_norm(x)
