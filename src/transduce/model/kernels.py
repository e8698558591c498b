"""Kernels of a GPU, in Triton: attention within short sentences, and Add & Norm.

`Segments._attend_padded` and `AddAndNorm` are their plain forms.

torch's attention for packed rows works on blocks of 128 queries and 128 keys, and sentences have some 27 tokens: most
of each block is masked. Here a block has 32, and a program computes one block of one head of one sentence. As in flash
attention (Dao et al. 2022) the scores are never in memory: the backward pass computes them again.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 32
_PROGRAMS = 1024  # that share the rows of a norm in its backward pass


def attend(
    q: Float[Tensor, "tgt_tokens heads head_dim"],
    k: Float[Tensor, "src_tokens heads head_dim"],
    v: Float[Tensor, "src_tokens heads head_dim"],
    offsets: tuple[Int[Tensor, " sentences_and_one"], Int[Tensor, " sentences_and_one"]],
    max_lens: tuple[int, int],
    *,
    is_causal: bool,
) -> Float[Tensor, "tgt_tokens heads head_dim"]:
    """Attention from each sentence of the queries to the same one of the keys.

    `offsets` of both sides: sentence i is offsets[i] to offsets[i + 1], and no longer than its side's `max_lens`.
    Causal only if both sides are the same.
    """
    output: Tensor = _Attention.apply(q, k, v, *offsets, max_lens, is_causal)
    return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q, k, v, query_offsets, key_offsets, max_lens, is_causal = inputs
        # A row of a head lies in one piece, and rows and heads may lie anywhere: views of one projection need no copy.
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        output = torch.empty_like(q, memory_format=torch.contiguous_format)
        # The logarithm of each query's sum of exponentials: all that the backward pass needs of the softmax.
        log_sums = torch.empty(q.shape[:2], device=q.device, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, output, log_sums, query_offsets, key_offsets)
        ctx.max_lens = max_lens
        ctx.settings = {"is_causal": is_causal, "block_len": _BLOCK, "head_dim": q.size(-1), "num_warps": 2}
        _forward[_grid(max_lens[0], q, query_offsets)](
            q, k, v, output, log_sums, query_offsets, key_offsets,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], q.size(1), q.size(-1) ** -0.5, **ctx.settings,
        )  # fmt: skip
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, log_sums, query_offsets, key_offsets = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        num_queries, num_keys = ctx.max_lens
        inputs = (q, k, v, output, log_sums, query_offsets, key_offsets, grad)
        numbers = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], q.size(1), q.size(-1) ** -0.5)
        _backward_of_queries[_grid(num_queries, q, query_offsets)](*inputs, grad_q, *numbers, **ctx.settings)
        _backward_of_keys[_grid(num_keys, q, key_offsets)](*inputs, grad_k, grad_v, *numbers, **ctx.settings)
        return grad_q, grad_k, grad_v, None, None, None, None


def _grid(max_len: int, q: Tensor, offsets: Tensor) -> tuple[int, int, int]:
    """A program for each sentence, each head, and each block that the longest sentence has."""
    return len(offsets) - 1, q.size(1), triton.cdiv(max_len, _BLOCK)


@triton.jit
def _span(offsets, sentence):  # type: ignore[no-untyped-def]
    """First row of a sentence, and the number of its rows."""
    first = tl.load(offsets + sentence)
    return first, tl.load(offsets + sentence + 1) - first


@triton.jit
def _tile(x, first, rows, length, head, x_row, x_head, head_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    """The `rows` of one head of a sentence that begins at row `first` and has `length` rows; zeros beyond it."""
    columns = tl.arange(0, head_dim)
    places = x + (first + rows).to(tl.int64)[:, None] * x_row + head * x_head + columns[None, :]
    return tl.load(places, mask=(rows < length)[:, None], other=0.0)


@triton.jit
def _store(output, tile, first, rows, length, head, num_heads, head_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write `tile` to these rows of a contiguous output, those beyond the sentence left out."""
    columns = tl.arange(0, head_dim)
    places = output + ((first + rows).to(tl.int64) * num_heads + head)[:, None] * head_dim + columns[None, :]
    tl.store(places, tile.to(output.dtype.element_ty), mask=(rows < length)[:, None])


@triton.jit
def _scores(q, k, queries, keys, num_keys, scale, is_causal: tl.constexpr):  # type: ignore[no-untyped-def]
    """Equation 1 before its softmax: a tile of q times one of k, -inf where a query may not look."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    may_look = (keys < num_keys)[None, :]
    if is_causal:
        may_look = may_look & (queries[:, None] >= keys[None, :])
    return tl.where(may_look, scores, float("-inf"))


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q, k, v, output, log_sums, query_offsets, key_offsets,
    q_row, q_head, k_row, k_head, v_row, v_head, num_heads, scale,
    is_causal: tl.constexpr, block_len: tl.constexpr, head_dim: tl.constexpr,
):  # fmt: skip
    sentence, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, num_queries = _span(query_offsets, sentence)
    if block * block_len < num_queries:  # most sentences have fewer blocks than the longest
        first_key, num_keys = _span(key_offsets, sentence)
        queries = block * block_len + tl.arange(0, block_len)
        q_tile = _tile(q, first, queries, num_queries, head, q_row, q_head, head_dim)
        largest = tl.full([block_len], float("-inf"), tl.float32)
        total = tl.zeros([block_len], tl.float32)
        mixed = tl.zeros([block_len, head_dim], tl.float32)
        end = tl.minimum((block + 1) * block_len, num_keys) if is_causal else num_keys
        for start in range(0, end, block_len):
            keys = start + tl.arange(0, block_len)
            k_tile = _tile(k, first_key, keys, num_keys, head, k_row, k_head, head_dim)
            v_tile = _tile(v, first_key, keys, num_keys, head, v_row, v_head, head_dim)
            scores = _scores(q_tile, k_tile, queries, keys, num_keys, scale, is_causal)
            # Softmax over keys that come block by block: what was summed is rescaled to the largest score so far.
            # Each query sees the first key, so that is finite from the first block on.
            new_largest = tl.maximum(largest, tl.max(scores, axis=1))
            shrink = tl.exp(largest - new_largest)
            weights = tl.exp(scores - new_largest[:, None])
            total = total * shrink + tl.sum(weights, axis=1)
            mixed = mixed * shrink[:, None]
            mixed += tl.dot(weights.to(v_tile.dtype), v_tile, input_precision="ieee")
            largest = new_largest
        _store(output, mixed / total[:, None], first, queries, num_queries, head, num_heads, head_dim)
        rows = (first + queries).to(tl.int64) * num_heads + head
        tl.store(log_sums + rows, largest + tl.log(total), mask=queries < num_queries)


@triton.jit
def _weights_and_slopes(  # type: ignore[no-untyped-def]
    q, k, v, output, log_sums, grad, queries, keys, first, num_queries, num_keys, head, num_heads, scale,
    is_causal: tl.constexpr, head_dim: tl.constexpr,
):  # fmt: skip
    """For tiles of q, k and v: the weights, and the gradients by the scores (times `scale`) and by the output.

    With weights P = softmax(S) and output O = P V, dP = dO V^T, and dS = P * (dP - rowsum(dO * O)) for the scores S.
    """
    output_tile = _tile(output, first, queries, num_queries, head, num_heads * head_dim, head_dim, head_dim)
    grad_tile = _tile(grad, first, queries, num_queries, head, num_heads * head_dim, head_dim, head_dim)
    rows = (first + queries).to(tl.int64) * num_heads + head
    log_sum = tl.load(log_sums + rows, mask=queries < num_queries, other=float("inf"))  # no weight beyond the sentence
    weights = tl.exp(_scores(q, k, queries, keys, num_keys, scale, is_causal) - log_sum[:, None])
    by_weights = tl.dot(grad_tile, tl.trans(v), input_precision="ieee")
    mean = tl.sum(grad_tile.to(tl.float32) * output_tile.to(tl.float32), axis=1)
    return weights, weights * (by_weights - mean[:, None]) * scale, grad_tile


@triton.jit
def _backward_of_queries(  # type: ignore[no-untyped-def]
    q, k, v, output, log_sums, query_offsets, key_offsets, grad, grad_q,
    q_row, q_head, k_row, k_head, v_row, v_head, num_heads, scale,
    is_causal: tl.constexpr, block_len: tl.constexpr, head_dim: tl.constexpr,
):  # fmt: skip
    sentence, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, num_queries = _span(query_offsets, sentence)
    if block * block_len < num_queries:
        first_key, num_keys = _span(key_offsets, sentence)
        queries = block * block_len + tl.arange(0, block_len)
        q_tile = _tile(q, first, queries, num_queries, head, q_row, q_head, head_dim)
        total = tl.zeros([block_len, head_dim], tl.float32)
        end = tl.minimum((block + 1) * block_len, num_keys) if is_causal else num_keys
        for start in range(0, end, block_len):
            keys = start + tl.arange(0, block_len)
            k_tile = _tile(k, first_key, keys, num_keys, head, k_row, k_head, head_dim)
            v_tile = _tile(v, first_key, keys, num_keys, head, v_row, v_head, head_dim)
            _, slopes, _ = _weights_and_slopes(
                q_tile, k_tile, v_tile, output, log_sums, grad, queries, keys, first, num_queries, num_keys, head,
                num_heads, scale, is_causal, head_dim,
            )  # fmt: skip
            total += tl.dot(slopes.to(k_tile.dtype), k_tile, input_precision="ieee")
        _store(grad_q, total, first, queries, num_queries, head, num_heads, head_dim)


@triton.jit
def _backward_of_keys(  # type: ignore[no-untyped-def]
    q, k, v, output, log_sums, query_offsets, key_offsets, grad, grad_k, grad_v,
    q_row, q_head, k_row, k_head, v_row, v_head, num_heads, scale,
    is_causal: tl.constexpr, block_len: tl.constexpr, head_dim: tl.constexpr,
):  # fmt: skip
    sentence, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_key, num_keys = _span(key_offsets, sentence)
    if block * block_len < num_keys:
        first, num_queries = _span(query_offsets, sentence)
        keys = block * block_len + tl.arange(0, block_len)
        k_tile = _tile(k, first_key, keys, num_keys, head, k_row, k_head, head_dim)
        v_tile = _tile(v, first_key, keys, num_keys, head, v_row, v_head, head_dim)
        total_k = tl.zeros([block_len, head_dim], tl.float32)
        total_v = tl.zeros([block_len, head_dim], tl.float32)
        begin = block * block_len if is_causal else 0  # queries before these keys do not see them
        for start in range(begin, num_queries, block_len):
            queries = start + tl.arange(0, block_len)
            q_tile = _tile(q, first, queries, num_queries, head, q_row, q_head, head_dim)
            weights, slopes, grad_tile = _weights_and_slopes(
                q_tile, k_tile, v_tile, output, log_sums, grad, queries, keys, first, num_queries, num_keys, head,
                num_heads, scale, is_causal, head_dim,
            )  # fmt: skip
            total_v += tl.dot(tl.trans(weights).to(grad_tile.dtype), grad_tile, input_precision="ieee")
            total_k += tl.dot(tl.trans(slopes).to(q_tile.dtype), q_tile, input_precision="ieee")
        _store(grad_k, total_k, first_key, keys, num_keys, head, num_heads, head_dim)
        _store(grad_v, total_v, first_key, keys, num_keys, head, num_heads, head_dim)


def add_and_norm(
    residual: Float[Tensor, "*rows d_model"],
    x: Float[Tensor, "*rows d_model"],
    norm: torch.nn.LayerNorm | None,
    *,
    dropout: float,
) -> Float[Tensor, "*rows d_model"]:
    """norm(residual + Dropout(x)) in one pass over memory, or without a norm the sum; see `residual.AddAndNorm`."""
    # What is dropped is a function of a number that is drawn on the device, so that a replayed graph draws another.
    seed = torch.empty(1, dtype=torch.int64, device=x.device).random_(2**31) if dropout else None
    weight, bias, eps = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    output: Tensor = _AddAndNorm.apply(residual, x, weight, bias, seed, dropout, eps)
    return output


class _AddAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        residual, x, weight, bias, seed, dropout, eps = inputs
        residual, x = residual.contiguous(), x.contiguous()
        width, num_rows = x.size(-1), x.numel() // x.size(-1)
        total = torch.empty_like(residual)
        output = total if weight is None else torch.empty_like(residual)
        # Mean and 1 / deviation of each row.
        statistics = torch.empty(2, num_rows, device=x.device, dtype=torch.float32)
        ctx.settings = {"has_norm": weight is not None, "has_dropout": seed is not None, "num_warps": 4}
        ctx.settings["block_len"] = triton.next_power_of_2(width)
        ctx.dropout, ctx.x_dtype = dropout, x.dtype
        _add_and_norm[(num_rows,)](
            residual, x, weight, bias, total, output, statistics, seed, num_rows, width, dropout, eps, **ctx.settings
        )
        ctx.save_for_backward(weight, total if weight is not None else None, statistics, seed)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        weight, total, statistics, seed = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        width, num_rows = grad.size(-1), grad.numel() // grad.size(-1)
        grad_x = torch.empty_like(grad, dtype=ctx.x_dtype)
        grad_residual = grad if weight is None else torch.empty_like(grad)
        num_programs = min(num_rows, _PROGRAMS)
        # Each program adds up the gradients of weight and bias over its own rows.
        sums = torch.empty(2, num_programs, width, device=grad.device, dtype=torch.float32)
        _backward_of_add_and_norm[(num_programs,)](
            grad, weight, total, statistics, seed, grad_residual, grad_x, sums, num_rows, width, ctx.dropout,
            **ctx.settings,
        )  # fmt: skip
        if weight is None:
            return grad_residual, grad_x, None, None, None, None, None
        grad_weight, grad_bias = sums.sum(dim=1).to(weight.dtype)
        return grad_residual, grad_x, grad_weight, grad_bias, None, None, None


@triton.jit
def _scales(seed, row, columns, width, dropout):  # type: ignore[no-untyped-def]
    """0 for what is dropped, and 1 / (1 - dropout) for the rest."""
    is_kept = tl.rand(seed, row * width + columns) >= dropout
    return tl.where(is_kept, 1.0 / (1.0 - dropout), 0.0)


@triton.jit
def _add_and_norm(  # type: ignore[no-untyped-def]
    residual, x, weight, bias, total, output, statistics, seed, num_rows, width, dropout, eps,
    has_norm: tl.constexpr, has_dropout: tl.constexpr, block_len: tl.constexpr,
):  # fmt: skip
    row, columns = tl.program_id(0), tl.arange(0, block_len)
    is_real, places = columns < width, row * width + columns
    kept = tl.load(x + places, mask=is_real, other=0.0).to(tl.float32)
    if has_dropout:
        kept *= _scales(tl.load(seed), row, columns, width, dropout)
    z = tl.load(residual + places, mask=is_real, other=0.0).to(tl.float32) + kept
    tl.store(total + places, z.to(total.dtype.element_ty), mask=is_real)
    if has_norm:
        mean = tl.sum(z, axis=0) / width
        centered = tl.where(is_real, z - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centered * centered, axis=0) / width + eps)
        tl.store(statistics + row, mean)
        tl.store(statistics + num_rows + row, scale)
        gain = tl.load(weight + columns, mask=is_real, other=0.0).to(tl.float32)
        shift = tl.load(bias + columns, mask=is_real, other=0.0).to(tl.float32)
        normed = centered * scale * gain + shift
        tl.store(output + places, normed.to(output.dtype.element_ty), mask=is_real)


@triton.jit
def _backward_of_add_and_norm(  # type: ignore[no-untyped-def]
    grad, weight, total, statistics, seed, grad_residual, grad_x, sums, num_rows, width, dropout,
    has_norm: tl.constexpr, has_dropout: tl.constexpr, block_len: tl.constexpr,
):  # fmt: skip
    """With n = (z - mean) / deviation: dn = dy * weight, and dz = (dn - mean(dn) - n mean(dn * n)) / deviation."""
    first, num_programs, columns = tl.program_id(0), tl.num_programs(0), tl.arange(0, block_len)
    is_real = columns < width
    sum_weight = tl.zeros([block_len], tl.float32)
    sum_bias = tl.zeros([block_len], tl.float32)
    for row in range(first, num_rows, num_programs):
        places = row * width + columns
        slope = tl.load(grad + places, mask=is_real, other=0.0).to(tl.float32)
        if has_norm:
            mean, scale = tl.load(statistics + row), tl.load(statistics + num_rows + row)
            z = tl.load(total + places, mask=is_real, other=0.0).to(tl.float32)
            normed = tl.where(is_real, (z - mean) * scale, 0.0)
            sum_weight += slope * normed
            sum_bias += slope
            slope *= tl.load(weight + columns, mask=is_real, other=0.0).to(tl.float32)
            mean_slope, mean_product = tl.sum(slope, axis=0) / width, tl.sum(slope * normed, axis=0) / width
            slope = (slope - mean_slope - normed * mean_product) * scale
            tl.store(grad_residual + places, slope.to(grad_residual.dtype.element_ty), mask=is_real)
        if has_dropout:
            slope *= _scales(tl.load(seed), row, columns, width, dropout)
        tl.store(grad_x + places, slope.to(grad_x.dtype.element_ty), mask=is_real)
    if has_norm:
        tl.store(sums + first * width + columns, sum_weight, mask=is_real)
        tl.store(sums + (num_programs + first) * width + columns, sum_bias, mask=is_real)
