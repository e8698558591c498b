"""Exercises about layer normalization and residual connections."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transduce.learn.exercising import Wrong, exercise, is_close, number_of, tensor_of

_EPS = 1e-5


def _layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + _EPS).sqrt()


def _with_bessel(x: Tensor) -> Tensor:
    return (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + _EPS)


def _eps_outside(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + _EPS)


def _not_centred(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + _EPS).sqrt()


def _over_the_batch(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + _EPS).sqrt()


@exercise(
    "norms-layer-norm",
    hints=(
        "Mean and variance of each row on its own: `dim=-1, keepdim=True`.",
        "The variance is the mean of the squares, once the mean is subtracted: divide by d_model, not by d_model - 1.",
        "Add 1e-5 to the variance, then take the root.",
    ),
    solution=_layer_norm,
    wrong=(_with_bessel, _eps_outside, _not_centred, _over_the_batch, lambda _: None),
)
def _check_layer_norm(answer: Callable[[Tensor], Any]) -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(5, 8, dtype=torch.float64, generator=random) * 3 + 2
    tiny = x * 1e-3  # where eps is seen
    expected = F.layer_norm(x, (8,), eps=_EPS)
    found = tensor_of(answer(x), x.shape).to(x.dtype)
    if not is_close(found, expected):
        if torch.allclose(found.mean(dim=0), torch.zeros(8, dtype=x.dtype), atol=1e-6):
            raise Wrong("it normalizes each channel over the batch; LayerNorm takes each row (token) on its own.")
        if not torch.allclose(found.mean(dim=-1), torch.zeros(5, dtype=x.dtype), atol=1e-6):
            raise Wrong("the rows do not have mean 0: subtract each row's mean first.")
        if torch.allclose(found, _with_bessel(x), atol=1e-4):
            raise Wrong("it divides by d_model - 1 inside the root, as `x.std()` does; LayerNorm divides by d_model.")
        size = float(found.square().mean(dim=-1)[0].sqrt())
        if abs(size - 1) > 1e-4:
            raise Wrong(f"the first row's root mean square is {size:.4f}; 1 was expected.")
    if not is_close(tensor_of(answer(tiny), x.shape), F.layer_norm(tiny, (8,), eps=_EPS)):
        raise Wrong("the result is wrong for tiny rows: add eps = 1e-5 to the variance, inside the square root.")


def _pre_norm(x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: Callable[[Tensor], Tensor]) -> Tensor:
    return x + sublayer(norm(x))


@exercise(
    "norms-pre-norm",
    hints=("The sub-layer sees the normalized x; the sum gets x as it came.", "`x + sublayer(norm(x))`."),
    solution=_pre_norm,
    wrong=(
        lambda x, sublayer, norm: norm(x + sublayer(x)),
        lambda x, sublayer, norm: norm(x) + sublayer(norm(x)),
        lambda x, sublayer, norm: x + norm(sublayer(x)),
        lambda x, sublayer, norm: sublayer(norm(x)),
        lambda *_: None,
    ),
)
def _check_pre_norm(answer: Callable[..., Any]) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 + 1

    def norm(t: Tensor) -> Tensor:
        return F.layer_norm(t, (4,))

    def sublayer(t: Tensor) -> Tensor:
        return (3 * t + 1).tanh()

    found = tensor_of(answer(x, sublayer, norm), x.shape)
    others = {
        "this is the paper's post-norm: the sum itself is normalized.": norm(x + sublayer(x)),
        "the path that bypasses the sub-layer must not be normalized: add x, not norm(x).": norm(x) + sublayer(norm(x)),
        "here the sub-layer's output is normalized; pre-norm normalizes its input.": x + norm(sublayer(x)),
        "nothing is added: the residual connection is missing.": sublayer(norm(x)),
    }
    for message, other in others.items():
        if is_close(found, other):
            raise Wrong(message)
    if not is_close(found, x + sublayer(norm(x))):
        raise Wrong("the result is not x + sublayer(norm(x)).")


@exercise(
    "norms-growth",
    hints=(
        "Mean squares of independent vectors with mean 0 add up; lengths do not.",
        "Twelve encoder layers have 24 sub-layers; together with the input that makes 25 vectors.",
    ),
    solution=5.0,
    wrong=(25.0, 24.0, 13.0, math.sqrt(13), math.sqrt(24), "five"),
)
def _check_growth(answer: Any) -> None:
    factor = number_of(answer)
    if abs(factor - 5) < 1e-5:
        return
    if factor in (24, 25):
        raise Wrong(
            "that would be true if all vectors pointed the same way; independent ones are nearly at right angles."
        )
    if abs(factor - 13) < 1e-5 or abs(factor - math.sqrt(13)) < 1e-2:
        raise Wrong("an encoder layer adds twice: once after attention and once after the feed-forward network.")
    raise Wrong(f"it is not {factor:.4g}. Mean squares add up, not lengths; and do not forget the input itself.")
