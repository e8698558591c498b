"""The encoder: the left half of Figure 1."""

from collections.abc import Iterable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from transduce.model.attention import MultiHeadAttention
from transduce.model.packing import Segments
from transduce.model.residual import AddAndNorm


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network, each within Add & Norm (section 3.1)."""

    def __init__(
        self, self_attention: MultiHeadAttention, feed_forward: nn.Module, residuals: list[AddAndNorm]
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.feed_forward = feed_forward
        self.residual_1, self.residual_2 = residuals

    def forward(
        self, x: Float[Tensor, "batch src_len d_model"], mask: Bool[Tensor, "batch 1 1 src_len"] | Segments | None
    ) -> Float[Tensor, "batch src_len d_model"]:
        residuals = self.residual_1, self.residual_2
        use_triton = isinstance(mask, Segments) and mask.use_triton
        add_1, add_2 = (residual.by_triton if use_triton else residual for residual in residuals)
        x = add_1(x, lambda x: self.self_attention(x, mask=mask))
        return add_2(x, self.feed_forward)


class Encoder(nn.Module):
    """A stack of layers. A final norm closes it only under pre-norm, where nothing else would."""

    def __init__(self, layers: list[EncoderLayer], final_norm: nn.Module | None) -> None:
        super().__init__()
        self.layers: Iterable[EncoderLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.final_norm = final_norm or nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch src_len d_model"], mask: Bool[Tensor, "batch 1 1 src_len"] | Segments | None
    ) -> Float[Tensor, "batch src_len d_model"]:
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_norm(x)
