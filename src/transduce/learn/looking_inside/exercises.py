"""Exercises of the notebook that looks inside."""

import math
from typing import Any

import torch
from torch import Tensor

from transduce.learn.exercising import Wrong, choices_of, exercise, is_close, tensor_of


def entropy_in_bits(weights: Tensor) -> Tensor:
    """- sum over keys of w log2 w, with 0 log 0 = 0."""
    return -(weights * weights.clamp(min=1e-30).log2()).sum(dim=-1)


def _in_nats(weights: Tensor) -> Tensor:
    return -(weights * weights.clamp(min=1e-30).log()).sum(dim=-1)


def _with_nan(weights: Tensor) -> Tensor:
    return -(weights * weights.log2()).sum(dim=-1)


def _over_queries(weights: Tensor) -> Tensor:
    return -(weights * weights.clamp(min=1e-30).log2()).sum(dim=-2)


@exercise(
    "inside-entropy",
    hints=(
        "Minus the sum of w log2 w over the keys, the last axis.",
        "0 log 0 counts as 0: clamp inside the logarithm.",
    ),
    solution=entropy_in_bits,
    wrong=(_in_nats, _with_nan, _over_queries, lambda _weights: None),
)
def _check_entropy(answer: Any) -> None:
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    found = tensor_of(answer(weights))
    if found.shape != (3,):
        raise Wrong(
            f"Three queries have three entropies; your result has the shape {tuple(found.shape)}: sum over the keys."
        )
    if found.isnan().any():
        raise Wrong("A weight of 0 gives NaN, but 0 log 0 must count as 0.")
    if math.isclose(float(found[0]), math.log(4), abs_tol=1e-4):
        raise Wrong("Four equal weights give ln 4, which is in nats. With log2 you get 2 bits.")
    if not is_close(found, torch.tensor([2.0, 0.0, 1.0]), 1e-4):
        raise Wrong(f"Four equal weights have 2 bits, a single weight 0, two halves 1; you get {found.tolist()}.")


@exercise(
    "inside-what-a-map-shows",
    hints=(
        "A map shows how values were weighted, not what the values were, or what W^O made of them.",
        "The residual connection carries the query's own vector past the attention.",
    ),
    solution={"A", "C"},
    wrong=({"A"}, {"A", "B"}, {"A", "B", "C"}, {"B", "D"}, {"A", "C", "D"}),
)
def _check_map(answer: Any) -> None:
    letters = choices_of(answer, "ABCD")
    if "B" in letters:
        raise Wrong("Not B: a value may be nearly zero, and W^O may drop it, however large its weight.")
    if "D" in letters:
        raise Wrong("Not D: the residual connection and the other heads are not in the map.")
    if letters != {"A", "C"}:
        raise Wrong("Two statements are right: one about the sum of a row, the other about what the map consists of.")


def silenced_weight(weight: Tensor, head: int, num_heads: int) -> Tensor:
    """The columns of W^O that read what `head` has found, set to zero."""
    width = weight.size(1) // num_heads
    kept = weight.clone()
    kept[:, head * width : (head + 1) * width] = 0
    return kept


def _rows(weight: Tensor, head: int, num_heads: int) -> Tensor:
    return silenced_weight(weight.T, head, num_heads).T


def _interleaved(weight: Tensor, head: int, num_heads: int) -> Tensor:
    kept = weight.clone()
    kept[:, head::num_heads] = 0
    return kept


def _one_column(weight: Tensor, head: int, num_heads: int) -> Tensor:
    del num_heads
    kept = weight.clone()
    kept[:, head] = 0
    return kept


def _in_place(weight: Tensor, head: int, num_heads: int) -> Tensor:
    return weight.copy_(silenced_weight(weight, head, num_heads))


@exercise(
    "inside-silence",
    hints=(
        "The heads are concatenated: head 0 fills the first d_model / num_heads numbers of each vector, and so on.",
        "`nn.Linear` computes x W^T, so channel k of x is multiplied by column k of the weight.",
        "`kept = weight.clone()`, then set `kept[:, head * width : (head + 1) * width]` to zero.",
    ),
    solution=silenced_weight,
    wrong=(_rows, _interleaved, _one_column, _in_place, lambda weight, *_: torch.zeros_like(weight), lambda *_: None),
)
def _check_silence(answer: Any) -> None:
    random = torch.Generator().manual_seed(2)
    before = torch.randn(6, 6, generator=random)
    weight = before.clone()
    found = answer(weight, 1, 3)
    if not torch.equal(weight, before):
        raise Wrong("Your function changes the weight it was given: clone the weight first.")
    found = tensor_of(found, (6, 6)).to(before.dtype)
    heads = torch.randn(3, 2, generator=random)  # what three heads have found, two channels each
    others = torch.stack((heads[0], torch.zeros(2), heads[2])).flatten()
    if is_close(found @ others, before @ others):
        loud = others.clone()
        loud[2:4] = heads[1]
        if is_close(found @ loud, before @ others):
            return
        raise Wrong("Head 1 of 3 is not silent: its channels are 2 and 3 of 6, and both must be dropped.")
    raise Wrong("The other heads change, too: only the columns of head 1, numbers 2 and 3 of 6, may be zero.")
