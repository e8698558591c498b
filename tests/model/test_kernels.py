"""Attention and Add & Norm in Triton, interpreted where there is no GPU, against their plain forms in float64."""

import math
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

from small_model import small_model
from transduce.model import Packing
from transduce.model.config import VocabularySizes

pytest.importorskip("triton")
from transduce.model.kernels import add_and_norm, attend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Below, at and above the length of a block, and of two.
QUERY_LENS, KEY_LENS = [1, 31, 32, 33, 70, 5], [40, 1, 32, 65, 3, 97]


def packing_of(lens: list[int], num_empty: int = 2) -> Packing:
    return Packing(
        torch.tensor([number for number, length in enumerate(lens) for _ in range(length)], device=DEVICE),
        torch.tensor([position for length in lens for position in range(length)], device=DEVICE),
        torch.tensor([0, *accumulate(lens + [0] * num_empty)], dtype=torch.int32, device=DEVICE),
        max(lens),
    )


def equation_1(q: Tensor, k: Tensor, v: Tensor, query_lens: list[int], key_lens: list[int], causal: bool) -> Tensor:
    """Sentence by sentence, head by head."""
    outputs = []
    for q_one, k_one, v_one in zip(q.split(query_lens), k.split(key_lens), v.split(key_lens), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q_one, k_one) / math.sqrt(q.size(-1))
        if causal:
            scores += torch.full(scores.shape[1:], -math.inf, dtype=scores.dtype, device=DEVICE).triu(1)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v_one))
    return torch.cat(outputs)


def distance(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "num_heads", "head_dim", "bound"), [(torch.float32, 3, 16, 1e-5), (torch.float16, 1, 64, 2e-3)]
)
def test_attention_and_its_gradients_are_those_of_equation_1(is_causal, dtype, num_heads, head_dim, bound):
    torch.manual_seed(1)
    key_lens = QUERY_LENS if is_causal else KEY_LENS
    queries = packing_of(QUERY_LENS)
    keys = queries if is_causal else packing_of(key_lens)
    # Views of one projection, as in self-attention.
    for_queries, for_keys = (
        torch.randn(sum(n), 3, num_heads, head_dim).to(DEVICE, dtype) for n in (QUERY_LENS, key_lens)
    )
    q, k, v = (x.requires_grad_() for x in (for_queries[:, 0], for_keys[:, 1], for_keys[:, 2]))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    weights = torch.randn(q.shape).to(DEVICE, dtype)
    offsets, max_lens = (queries.offsets, keys.offsets), (queries.max_len, keys.max_len)
    output = attend(q, k, v, offsets, max_lens, is_causal=is_causal)
    expected = equation_1(*exact, QUERY_LENS, key_lens, is_causal)
    assert distance(output, expected) < bound
    gradients = torch.autograd.grad((output * weights).sum(), (q, k, v))
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        assert ours.dtype == dtype
        assert distance(ours, theirs) < bound


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_add_and_norm_and_its_gradients_are_those_of_torch(has_norm, dtype, bound, monkeypatch):
    monkeypatch.setattr("transduce.model.kernels._PROGRAMS", 3)  # of which some have more rows
    torch.manual_seed(1)
    residual, x, weights = (torch.randn(2, 5, 18).to(DEVICE, dtype) for _ in range(3))
    norm = torch.nn.LayerNorm(18).to(DEVICE, dtype) if has_norm else None
    leaves = [residual.requires_grad_(), x.requires_grad_(), *(() if norm is None else norm.parameters())]
    for parameter in leaves[2:]:
        torch.nn.init.normal_(parameter)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = exact[0] + exact[1]
    if norm is not None:
        expected = torch.nn.functional.layer_norm(expected, (18,), *exact[2:], norm.eps)
    output = add_and_norm(residual, x, norm, dropout=0.0)
    assert distance(output, expected) < bound
    gradients = torch.autograd.grad((output * weights).sum(), leaves)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        assert ours.dtype == dtype
        assert distance(ours, theirs) < bound


def test_what_is_dropped_is_drawn_anew_and_gets_no_gradient():
    torch.manual_seed(1)
    residual, x = torch.zeros(40, 50, device=DEVICE), torch.ones(40, 50, device=DEVICE).requires_grad_()
    first, second = (add_and_norm(residual, x, None, dropout=0.3) for _ in range(2))
    assert first.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)  # four deviations
    assert ((first == 0) & (second == 0)).float().mean().item() == pytest.approx(0.09, abs=0.03)
    (gradient,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(gradient, first.detach(), rtol=0, atol=0)


def test_with_dropout_norm_and_gradients_are_those_of_what_was_kept():
    torch.manual_seed(1)
    residual, x, weights = (torch.randn(6, 18, device=DEVICE) for _ in range(3))
    leaves = residual.requires_grad_(), x.requires_grad_()
    torch.manual_seed(2)
    scales = add_and_norm(torch.zeros_like(x), torch.ones_like(x), None, dropout=0.4)
    torch.manual_seed(2)
    output = add_and_norm(*leaves, norm := torch.nn.LayerNorm(18, device=DEVICE), dropout=0.4)
    expected = norm(residual + x * scales)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad((output * weights).sum(), leaves)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_kernel_compiles_for_gpus_that_need_not_be_here():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_model_computes_the_same_with_its_own_kernels(norm_first, norm):
    settings = {"d_model": 32, "num_heads": 2, "positions": "rotary", "norm": norm, "norm_first": norm_first}
    model = small_model(VocabularySizes.joint(13), **settings).to(DEVICE)
    src, tgt = (torch.randint(3, 13, (1, sum(lens)), device=DEVICE) for lens in ([5, 3, 8], [2, 6, 1]))
    packings = packing_of([5, 3, 8]), packing_of([2, 6, 1])
    ours, theirs = (model.forward_packed(src, tgt, *packings, use_triton=use_triton) for use_triton in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
