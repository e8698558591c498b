"""Exercises about masks: building them, spotting a wrong one, and converting between torch's conventions."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from transduce.learn.exercising import Wrong, choices_of, exercise, number_of, tensor_of
from transduce.learn.tasks import PAD

SOURCE = torch.tensor([7, 4, 9, 2, PAD, PAD])  # a source of four tokens, beside a longer one
TARGET = torch.tensor([1, 5, 8, 3, 6, 2])  # a target of six, no padding: as many as the padded source


def six_masks() -> dict[str, tuple[str, Bool[Tensor, "queries keys"]]]:
    """Six masks of one batch, True where attention may look; one is wrong."""
    looks_at_source = (SOURCE != PAD)[None]
    length = len(TARGET)
    return {
        "A": ("encoder self-attention", looks_at_source.expand(len(SOURCE), -1)),
        "B": ("decoder self-attention", torch.ones(length, length, dtype=torch.bool).tril()),
        "C": ("cross-attention, at token 3", looks_at_source.expand(1, -1)),
        "D": ("cross-attention, all tokens", (TARGET != PAD)[None].expand(length, -1)),
        "E": ("decoder, step 4 with a cache", torch.ones(1, 4, dtype=torch.bool)),
        "F": ("encoder, another way", looks_at_source.T & looks_at_source | ~looks_at_source.T),
    }


@exercise(
    "masks-one-of-six",
    hints=(
        "For each mask, ask: who looks (rows), at what (columns), and which of the columns are real tokens?",
        "Cross-attention looks at the source. Which tokens of the source are padding?",
        "One mask was made from the ids of the wrong side. It fits only because both sides happen to have length six.",
    ),
    solution="D",
    wrong=("A", "B", "C", "E", "F"),
)
def _check_one_of_six(answer: Any) -> None:
    reasons = {
        "A": "the encoder sees all real tokens, later ones, too. Rows of padding are computed, but nothing reads them.",
        "B": "row i looks at tokens 0 to i. Targets are padded on the right, so padding is in every token's future.",
        "C": "one query, and the four real tokens of the source.",
        "E": "the newest token may look at everything in the cache: its row of the causal mask has no False so far.",
        "F": "it does not matter what padding looks at, as long as it looks at something: nothing reads its rows.",
    }
    letters = choices_of(answer, "ABCDEF")
    if len(letters) != 1:
        raise Wrong("give one letter: exactly one mask is wrong.")
    if letters != {"D"}:
        letter = letters.pop()
        raise Wrong(f"mask {letter} is right: {reasons[letter]}")


def _both(ids: Tensor, pad_id: int) -> Tensor:
    length = ids.size(1)
    return (ids != pad_id)[:, None, :] & torch.ones(length, length, dtype=torch.bool).tril()


def _padding_only(ids: Tensor, pad_id: int) -> Tensor:
    return (ids != pad_id)[:, None, :].expand(-1, ids.size(1), -1)


def _wrong_axis(ids: Tensor, pad_id: int) -> Tensor:
    return (ids != pad_id)[:, :, None] & torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).tril()


def _without_itself(ids: Tensor, pad_id: int) -> Tensor:
    return (ids != pad_id)[:, None, :] & torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).tril(-1)


def _looks_forward(ids: Tensor, pad_id: int) -> Tensor:
    return (ids != pad_id)[:, None, :] & torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).triu()


@exercise(
    "masks-build",
    hints=(
        "Combine two masks with `&`: (B, 1, T) says which tokens are real, (T, T) which are not in the future.",
        "`torch.ones(T, T, dtype=torch.bool).tril()` is True on and below the diagonal.",
        "Padding belongs on the last axis, the keys: `(ids != pad_id)[:, None, :]`.",
    ),
    solution=_both,
    wrong=(_padding_only, _wrong_axis, _without_itself, _looks_forward, lambda ids, _: _both(ids, 0), lambda *_: None),
)
def _check_build(answer: Callable[[Tensor, int], Any]) -> None:
    for pad_id in (0, 9):  # whoever writes `ids != 0` is found out by the second
        ids = torch.tensor([[3, 4, 5, 6], [7, 8, pad_id, pad_id]])
        found = _as_mask(answer(ids, pad_id), (2, 4, 4))
        for row, query, key in itertools.product(range(2), range(4), range(4)):
            is_real = int(ids[row, key]) != pad_id
            if bool(found[row, query, key]) != (key <= query and is_real):
                told = _told(row, query, key, is_real=is_real, may_look=key <= query and is_real)
                raise Wrong(told if pad_id == 0 else f"{told} (pad_id is {pad_id} here.)")


def _told(row: int, query: int, key: int, *, is_real: bool, may_look: bool) -> str:
    where = f"in row {row}, position {query} "
    if may_look:
        return f"{where}may look at position {key}, a real token" + (": itself." if key == query else " before it.")
    return f"{where}must not look at position {key}: it is " + ("in its future." if is_real else "padding.")


def _inverted(may_look: Tensor) -> Tensor:
    return ~may_look


@exercise(
    "masks-dialect",
    hints=(
        "In torch.nn.MultiheadAttention, `key_padding_mask` is True where a key must be ignored.",
        "This is the opposite of our mask: use `~`.",
    ),
    solution=_inverted,
    wrong=(lambda may_look: may_look, lambda may_look: torch.zeros_like(may_look), lambda _: None),
)
def _check_dialect(answer: Callable[[Tensor], Any]) -> None:
    random = torch.Generator().manual_seed(3)
    torch_attention = nn.MultiheadAttention(6, 1, batch_first=True)
    x = torch.randn(2, 5, 6, generator=random)
    may_look = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    theirs = _as_mask(answer(may_look), (2, 5))
    with torch.no_grad():
        _, weights = torch_attention(x, x, x, key_padding_mask=theirs)
    if not bool((weights[1, :, 3:] == 0).all()):
        share = float(weights[1, :, 3:].nan_to_num(1.0).sum(-1).max())
        raise Wrong(f"with this mask, {share:.0%} of a query's attention goes to padding: torch hides what is True.")
    if not bool((weights[1, :, :3] > 0).all()):
        raise Wrong("this mask hides real tokens, too.")


def _mean_over_real(losses: Tensor, labels: Tensor, pad_id: int) -> Tensor:
    is_real = labels != pad_id
    return (losses * is_real).sum() / is_real.sum()


def _mean_over_all(losses: Tensor, labels: Tensor, pad_id: int) -> Tensor:
    del labels, pad_id
    return losses.mean()


def _zeroed_and_averaged(losses: Tensor, labels: Tensor, pad_id: int) -> Tensor:
    return (losses * (labels != pad_id)).mean()


def _mean_of_rows(losses: Tensor, labels: Tensor, pad_id: int) -> Tensor:
    is_real = labels != pad_id
    return ((losses * is_real).sum(1) / is_real.sum(1)).mean()


@exercise(
    "masks-loss",
    hints=(
        "Leave out padding twice: from the sum, and from the number the sum is divided by.",
        "`is_real = labels != pad_id`; then divide the sum over real tokens by their number.",
    ),
    solution=_mean_over_real,
    wrong=(
        _mean_over_all,
        _zeroed_and_averaged,
        _mean_of_rows,
        lambda losses, labels, _: _mean_over_real(losses, labels, 0),
        lambda *_: None,
    ),
)
def _check_loss(answer: Callable[[Tensor, Tensor, int], Any]) -> None:
    random = torch.Generator().manual_seed(4)
    labels = torch.tensor([[3, 4, 5, 2], [4, 2, 0, 0]])
    other = labels.masked_fill(labels == 0, 6)  # whoever writes `labels != 0` is found out by another padding
    logits = torch.randn(2, 4, 7, generator=random)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    found = number_of(answer(losses, labels, 0))
    expected = float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0))
    known = {
        "your function averages over padding, too": losses.mean(),
        "padding is missing from the sum, but still counted in the number the sum is divided by": _zeroed_and_averaged(
            losses, labels, 0
        ),
        "this is the mean of the rows' means, so a token of a short row counts more": _mean_of_rows(losses, labels, 0),
    }
    for reason, value in known.items():
        if abs(found - float(value)) < 1e-6:
            raise Wrong(f"{reason}: {found:.4f} instead of {expected:.4f}.")
    is_right = abs(found - expected) < 1e-5
    if is_right and not abs(number_of(answer(losses, other, 6)) - expected) < 1e-5:
        raise Wrong("with a pad_id other than 0, your function counts padding as real tokens.")
    if not is_right:
        raise Wrong(f"your function returns {found:.4f}; the mean over the six real tokens is {expected:.4f}.")


def _as_mask(answer: Any, shape: tuple[int, ...]) -> Tensor:
    mask = tensor_of(answer, shape)
    if mask.dtype != torch.bool:
        raise Wrong(f"the mask has dtype {mask.dtype}; a mask of True and False was expected.")
    return mask
