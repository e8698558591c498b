"""Add & Norm (sections 3.1 and 5.4): what surrounds every sub-layer. The order of the two is decided here alone."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from transduce.model.dropout import Dropout


def build_norm(d_model: int, norm: str) -> nn.Module:
    """Layer normalization (Ba et al. 2016), or its root-mean-square form without mean and bias."""
    return {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm](d_model, eps=1e-5)


class AddAndNorm(nn.Module):
    """LayerNorm(x + Dropout(Sublayer(x))), the post-norm of the paper.

    With `norm_first` it is x + Dropout(Sublayer(LayerNorm(x))). Differs from the paper: the pre-norm leaves a path
    without normalization from input to output, so deep stacks train without long warm-up (Xiong et al. 2020).
    """

    def __init__(self, d_model: int, dropout: float, norm: str, norm_first: bool) -> None:
        super().__init__()
        self.norm = build_norm(d_model, norm)
        self.dropout = Dropout(dropout)
        self.norm_first = norm_first

    def forward(
        self, x: Float[Tensor, "batch len d_model"], sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch len d_model"]:
        if self.norm_first:
            return self.dropout.add(x, sublayer(self.norm(x)))
        return self.norm(self.dropout.add(x, sublayer(x)))

    def by_triton(
        self, x: Float[Tensor, "batch len d_model"], sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch len d_model"]:
        """`forward` by a kernel of our own, for a GPU; there is none for a norm without mean."""
        if not isinstance(self.norm, nn.LayerNorm):
            return self(x, sublayer)
        from transduce.model.kernels import add_and_norm

        dropout = self.dropout.p if self.training else 0.0
        if self.norm_first:
            return add_and_norm(x, sublayer(self.norm(x)), None, dropout=dropout)
        return add_and_norm(x, sublayer(x), self.norm, dropout=dropout)
