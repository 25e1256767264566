"""`scaled_dot_product_attention`: softmax(query @ key.T * scale) @ value in one kernel, without the matrix of scores.

A program owns BLOCK_M queries of one head. It walks over the keys and values BLOCK_N at a time and keeps, for each query,
the largest score so far, the sum of exponentials and the weighted sum of values, rescaling them whenever a larger score
turns up (FlashAttention-2, Dao, arXiv 2307.08691). Operands are read where they lie, by their strides: packed queries,
keys and values of a ViT need no copy, and the result is laid out as tokens.

Backward (section 3.1 there) computes the probabilities P again, a block at a time, from the scores S = scale * Q @ K.T and one
number a query that the forward kernel has kept, the logarithm of its sum of exponentials L:

    P = exp(S - L)      dV = P.T @ dO      dP = dO @ V.T      delta = sum(dO * O, -1)      dS = P * (dP - delta)
    dQ = scale * dS @ K      dK = scale * dS.T @ Q

Two kernels share the work so that nothing is added up between programs, and every run gives the same bits. In the first a
program owns BLOCK_M queries as above: it takes their delta, walks over the keys, and writes delta and dQ. In the second a
program owns BLOCK_N keys, walks over the queries that see them, BLOCK_M at a time, and writes dK and dV.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from ..runtime import (
    INTERPRETER,
    Config,
    Configs,
    cdiv,
    check_numbers,
    check_tensors,
    dot_precision,
    first_derivative_only,
    gpu_name,
    multiprocessors,
    needs_gradient,
    next_power_of_2,
    operator,
    shared_memory,
)

LARGEST_HEAD = 256
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a GPU may take what is nearer to 0 for 0


@triton.jit
def attention_kernel(
    query_ptr, key_ptr, value_ptr, output_ptr, logsumexp_ptr, scale, heads, queries, keys,
    query_batch_stride, query_head_stride, query_row_stride, query_column_stride,
    key_batch_stride, key_head_stride, key_row_stride, key_column_stride,
    value_batch_stride, value_head_stride, value_row_stride, value_column_stride,
    output_batch_stride, output_head_stride, output_row_stride,
    head_size, value_size, CAUSAL: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, BLOCK_M)
    first = (tl.program_id(0) % blocks) * BLOCK_M
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    batch = (tl.program_id(0) // blocks // heads).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    output_ptr += batch * output_batch_stride + head * output_head_stride

    m = first + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    m_mask = m < queries
    m64, d64, v64 = m.to(tl.int64), d.to(tl.int64), v.to(tl.int64)
    q_mask = m_mask[:, None] & (d < head_size)[None, :]
    q = tl.load(query_ptr + m64[:, None] * query_row_stride + d64[None, :] * query_column_stride, mask=q_mask, other=0.0)

    # Exponentials to base 2 are one instruction; log2(e) goes into the scale. It is above 0 here: the largest score is then
    # the largest scaled one, so only that is scaled by itself, and for all others scaling and subtracting are one instruction.
    base2_scale = scale * 1.4426950408889634
    # The lowest float32 and not -inf, which a whole block of scores may be: -inf less -inf would be NaN.
    maximum = tl.full((BLOCK_M,), -3.4028234663852886e38, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    last = keys
    if CAUSAL:
        last = tl.minimum(keys, first + BLOCK_M)
    for start in range(0, last, BLOCK_N):
        column = start + n
        rows = column.to(tl.int64)
        k_mask = (column < keys)[None, :] & (d < head_size)[:, None]
        k = tl.load(key_ptr + rows[None, :] * key_row_stride + d64[:, None] * key_column_stride, mask=k_mask, other=0.0)
        scores = tl.dot(q, k, input_precision=PRECISION)
        # A key past the end scores 0 after its masked load, and exp(0) is 1: it has to be -inf to count for nothing.
        visible = (column < keys)[None, :]
        if CAUSAL:
            visible = visible & (column[None, :] <= m[:, None])
        scores = tl.where(visible, scores, -float("inf"))
        larger = tl.maximum(maximum, tl.max(scores, axis=1) * base2_scale)
        p = tl.exp2(scores * base2_scale - larger[:, None])
        correction = tl.exp2(maximum - larger)
        total = total * correction + tl.sum(p, axis=1)
        v_mask = (column < keys)[:, None] & (v < value_size)[None, :]
        value_ptrs = value_ptr + rows[:, None] * value_row_stride + v64[None, :] * value_column_stride
        values = tl.load(value_ptrs, mask=v_mask, other=0.0)
        accumulator = tl.dot(p.to(values.dtype), values, accumulator * correction[:, None], input_precision=PRECISION)
        maximum = larger

    out_mask = m_mask[:, None] & (v < value_size)[None, :]
    tl.store(output_ptr + m64[:, None] * output_row_stride + v[None, :], accumulator * (1.0 / total)[:, None], mask=out_mask)
    if SAVE:  # to base 2
        tl.store(logsumexp_ptr + (batch * heads + head) * queries + m64, maximum + tl.log2(total), mask=m_mask)


@triton.jit
def load_rows(
    ptr, first, row_stride, column_stride, rows, columns,
    ROWS_FIT: tl.constexpr, FITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # ROWS rows of a head from `first` on, 0 past its size and, unless ROWS_FIT, past its last row. In a loop only the first
    # line's sum changes: the offsets within a block are computed once.
    ptr += tl.cast(first, tl.int64) * row_stride
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    ptrs = ptr + (row.to(tl.int64)[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride)
    if ROWS_FIT and FITS:
        return tl.load(ptrs)
    elif ROWS_FIT:
        return tl.load(ptrs, mask=(column < columns)[None, :], other=0.0)
    else:
        return tl.load(ptrs, mask=(row < rows - first)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def attention_query_backward_step(
    query_grad, q, grad, m, logsumexp, delta, start, key_ptr, value_ptr, base2_scale, keys,
    key_row_stride, key_column_stride, value_row_stride, value_column_stride, head_size, value_size,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, HEAD_FITS: tl.constexpr, VALUE_FITS: tl.constexpr, ROWS_FIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    k = load_rows(key_ptr, start, key_row_stride, key_column_stride, keys, head_size, ROWS_FIT, HEAD_FITS, BLOCK_N, BLOCK_D)
    values = load_rows(
        value_ptr, start, value_row_stride, value_column_stride, keys, value_size, ROWS_FIT, VALUE_FITS, BLOCK_N, BLOCK_V
    )
    p = tl.dot(q, tl.trans(k), input_precision=PRECISION) * base2_scale - logsumexp[:, None]
    if not ROWS_FIT:
        # Where every score is far below 0, a key past the end, which scores 0, would count for infinity.
        n = start + tl.arange(0, BLOCK_N)
        visible = (n < keys)[None, :]
        if CAUSAL:
            visible = visible & (n[None, :] <= m[:, None])
        p = tl.where(visible, p, -float("inf"))
    p = tl.exp2(p)
    p_grad = tl.dot(grad, tl.trans(values), input_precision=PRECISION)
    score_grad = p * (p_grad - delta[:, None])
    return tl.dot(score_grad.to(k.dtype), k, query_grad, input_precision=PRECISION)


@triton.jit
def attention_query_backward_kernel(
    grad_ptr, query_ptr, key_ptr, value_ptr, output_ptr, logsumexp_ptr, delta_ptr, query_grad_ptr, scale, heads, queries, keys,
    grad_batch_stride, grad_head_stride, grad_row_stride, grad_column_stride,
    query_batch_stride, query_head_stride, query_row_stride, query_column_stride,
    key_batch_stride, key_head_stride, key_row_stride, key_column_stride,
    value_batch_stride, value_head_stride, value_row_stride, value_column_stride,
    output_batch_stride, output_head_stride, output_row_stride, output_column_stride,
    query_grad_batch_stride, query_grad_head_stride, query_grad_row_stride,
    head_size, value_size, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, HEAD_FITS: tl.constexpr, VALUE_FITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, BLOCK_M)
    first = (tl.program_id(0) % blocks) * BLOCK_M
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    batch = (tl.program_id(0) // blocks // heads).to(tl.int64)
    grad_ptr += batch * grad_batch_stride + head * grad_head_stride
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    output_ptr += batch * output_batch_stride + head * output_head_stride
    query_grad_ptr += batch * query_grad_batch_stride + head * query_grad_head_stride
    statistics = (batch * heads + head) * queries

    m = first + tl.arange(0, BLOCK_M)
    m64 = m.to(tl.int64)
    m_mask = m < queries
    q = load_rows(query_ptr, first, query_row_stride, query_column_stride, queries, head_size, False, HEAD_FITS, BLOCK_M, BLOCK_D)
    grad = load_rows(
        grad_ptr, first, grad_row_stride, grad_column_stride, queries, value_size, False, VALUE_FITS, BLOCK_M, BLOCK_V
    )
    output = load_rows(
        output_ptr, first, output_row_stride, output_column_stride, queries, value_size, False, VALUE_FITS, BLOCK_M, BLOCK_V
    )
    # Masked after the product, as the squares of layer_norm.py are: lanes that hold one row have to agree on its sum. By column,
    # which is 0 there anyway: a mask by row would live longer, in registers that cost a program on each multiprocessor.
    products = grad.to(tl.float32) * output.to(tl.float32)
    delta = tl.sum(tl.where((tl.arange(0, BLOCK_V) < value_size)[None, :], products, 0.0), axis=1)
    tl.store(delta_ptr + statistics + m64, delta, mask=m_mask)
    logsumexp = tl.load(logsumexp_ptr + statistics + m64, mask=m_mask, other=0.0)

    base2_scale = scale * 1.4426950408889634
    query_grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # The keys that every query of this block sees come first, in whole blocks and without masks.
    last, seen = keys, keys
    if CAUSAL:
        last, seen = tl.minimum(keys, first + BLOCK_M), tl.minimum(keys, first)
    whole = seen // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        query_grad = attention_query_backward_step(
            query_grad, q, grad, m, logsumexp, delta, start, key_ptr, value_ptr, base2_scale, keys,
            key_row_stride, key_column_stride, value_row_stride, value_column_stride, head_size, value_size,
            CAUSAL, PRECISION, HEAD_FITS, VALUE_FITS, True, BLOCK_N, BLOCK_D, BLOCK_V,
        )  # fmt: skip
    if CAUSAL:
        for start in tl.range(whole, last, BLOCK_N, num_stages=1):  # too few to be worth loading ahead
            query_grad = attention_query_backward_step(
                query_grad, q, grad, m, logsumexp, delta, start, key_ptr, value_ptr, base2_scale, keys,
                key_row_stride, key_column_stride, value_row_stride, value_column_stride, head_size, value_size,
                CAUSAL, PRECISION, HEAD_FITS, VALUE_FITS, False, BLOCK_N, BLOCK_D, BLOCK_V,
            )  # fmt: skip
    elif whole < keys:
        query_grad = attention_query_backward_step(
            query_grad, q, grad, m, logsumexp, delta, whole, key_ptr, value_ptr, base2_scale, keys,
            key_row_stride, key_column_stride, value_row_stride, value_column_stride, head_size, value_size,
            CAUSAL, PRECISION, HEAD_FITS, VALUE_FITS, False, BLOCK_N, BLOCK_D, BLOCK_V,
        )  # fmt: skip

    d = tl.arange(0, BLOCK_D)
    row = query_grad_ptr + m64[:, None] * query_grad_row_stride
    tl.store(row + d[None, :], query_grad * scale, mask=m_mask[:, None] & (d < head_size)[None, :])


@triton.jit
def attention_key_backward_step(
    key_grad, value_grad, k, values, n, start, grad_ptr, query_ptr, logsumexp_ptr, delta_ptr, base2_scale, queries,
    grad_row_stride, grad_column_stride, query_row_stride, query_column_stride, head_size, value_size,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, HEAD_FITS: tl.constexpr, VALUE_FITS: tl.constexpr, ROWS_FIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    q = load_rows(
        query_ptr, start, query_row_stride, query_column_stride, queries, head_size, ROWS_FIT, HEAD_FITS, BLOCK_M, BLOCK_D
    )
    grad = load_rows(
        grad_ptr, start, grad_row_stride, grad_column_stride, queries, value_size, ROWS_FIT, VALUE_FITS, BLOCK_M, BLOCK_V
    )
    # A query past the end scores 0 - 0, so P is 1 there: it counts for nothing because its dO, delta and Q are 0.
    row = start + tl.arange(0, BLOCK_M)
    row_mask = None if ROWS_FIT else row < queries
    logsumexp = tl.load(logsumexp_ptr + row, mask=row_mask, other=None if ROWS_FIT else 0.0)
    delta = tl.load(delta_ptr + row, mask=row_mask, other=None if ROWS_FIT else 0.0)
    # Scores are transposed here, keys by queries. A key past the end is a row of its own, which is not stored.
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    p = scores * base2_scale - logsumexp[None, :]
    if CAUSAL:
        p = tl.where(n[:, None] <= row[None, :], p, -float("inf"))
    p = tl.exp2(p)
    value_grad = tl.dot(p.to(grad.dtype), grad, value_grad, input_precision=PRECISION)
    p_grad = tl.dot(values, tl.trans(grad), input_precision=PRECISION)
    score_grad = p * (p_grad - delta[None, :])
    return tl.dot(score_grad.to(q.dtype), q, key_grad, input_precision=PRECISION), value_grad


@triton.jit
def attention_key_backward_kernel(
    grad_ptr, query_ptr, key_ptr, value_ptr, logsumexp_ptr, delta_ptr, key_grad_ptr, value_grad_ptr, scale, heads, queries, keys,
    grad_batch_stride, grad_head_stride, grad_row_stride, grad_column_stride,
    query_batch_stride, query_head_stride, query_row_stride, query_column_stride,
    key_batch_stride, key_head_stride, key_row_stride, key_column_stride,
    value_batch_stride, value_head_stride, value_row_stride, value_column_stride,
    key_grad_batch_stride, key_grad_head_stride, key_grad_row_stride,
    value_grad_batch_stride, value_grad_head_stride, value_grad_row_stride,
    head_size, value_size, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, HEAD_FITS: tl.constexpr, VALUE_FITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(keys, BLOCK_N)
    first = (tl.program_id(0) % blocks) * BLOCK_N
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    batch = (tl.program_id(0) // blocks // heads).to(tl.int64)
    grad_ptr += batch * grad_batch_stride + head * grad_head_stride
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    key_grad_ptr += batch * key_grad_batch_stride + head * key_grad_head_stride
    value_grad_ptr += batch * value_grad_batch_stride + head * value_grad_head_stride
    logsumexp_ptr += (batch * heads + head) * queries
    delta_ptr += (batch * heads + head) * queries

    n = first + tl.arange(0, BLOCK_N)
    k = load_rows(key_ptr, first, key_row_stride, key_column_stride, keys, head_size, False, HEAD_FITS, BLOCK_N, BLOCK_D)
    values = load_rows(
        value_ptr, first, value_row_stride, value_column_stride, keys, value_size, False, VALUE_FITS, BLOCK_N, BLOCK_V
    )

    base2_scale = scale * 1.4426950408889634
    key_grad = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    value_grad = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    start_at = 0
    if CAUSAL:
        start_at = first  # the queries before the block's first key see none of its keys
    rest = start_at + tl.maximum(queries - start_at, 0) // BLOCK_M * BLOCK_M
    for start in range(start_at, rest, BLOCK_M):
        key_grad, value_grad = attention_key_backward_step(
            key_grad, value_grad, k, values, n, start, grad_ptr, query_ptr, logsumexp_ptr, delta_ptr,
            base2_scale, queries, grad_row_stride, grad_column_stride, query_row_stride, query_column_stride,
            head_size, value_size, CAUSAL, PRECISION, HEAD_FITS, VALUE_FITS, True, BLOCK_M, BLOCK_D, BLOCK_V,
        )  # fmt: skip
    if rest < queries:
        key_grad, value_grad = attention_key_backward_step(
            key_grad, value_grad, k, values, n, rest, grad_ptr, query_ptr, logsumexp_ptr, delta_ptr,
            base2_scale, queries, grad_row_stride, grad_column_stride, query_row_stride, query_column_stride,
            head_size, value_size, CAUSAL, PRECISION, HEAD_FITS, VALUE_FITS, False, BLOCK_M, BLOCK_D, BLOCK_V,
        )  # fmt: skip

    n64 = n.to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    k_mask = (n < keys)[:, None] & (d < head_size)[None, :]
    v_mask = (n < keys)[:, None] & (v < value_size)[None, :]
    tl.store(key_grad_ptr + n64[:, None] * key_grad_row_stride + d[None, :], key_grad * scale, mask=k_mask)
    tl.store(value_grad_ptr + n64[:, None] * value_grad_row_stride + v[None, :], value_grad, mask=v_mask)


def _shared_bytes(config: Config, itemsize: int) -> int:
    b = config.blocks
    keys_and_values = b["BLOCK_N"] * (b["BLOCK_D"] + b["BLOCK_V"]) * itemsize * config.num_stages
    widest = b["BLOCK_V"]  # `_blocks` makes it no narrower than BLOCK_D
    # Besides keys and values, for each query: its elements, its weights and a float32 to reduce, or a float32 row that
    # changes its layout. On sm_75, in place of all that: float32 rows of the result and of the weights.
    a_query = max((widest + b["BLOCK_N"]) * itemsize + 4, max(widest, b["BLOCK_N"]) * 4)
    if itemsize == 4:  # tf32x3 keeps what is left of the queries after rounding beside them
        a_query = max(a_query, 2 * b["BLOCK_D"] * 4)
    return max(keys_and_values + b["BLOCK_M"] * a_query, b["BLOCK_M"] * (widest + b["BLOCK_N"]) * 4)


@functools.cache
def _configs(block_d: int, block_v: int) -> Configs:
    def config(m: int, n: int, stages: int) -> Config:
        return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": block_d, "BLOCK_V": block_v}, num_warps=4, num_stages=stages)

    tall, short, tall_shallow, short_shallow = config(128, 32, 3), config(64, 64, 3), config(128, 32, 2), config(64, 64, 2)
    return Configs(
        f"attention {block_d} {block_v}",
        candidates=[tall, short, tall_shallow, short_shallow, config(64, 32, 2), config(32, 32, 1), config(16, 16, 1)],
        shared_bytes=_shared_bytes,
        # Measured with ViT-B/16's heads at batch 1, 8, 32 and 256. Shape class and bytes an element.
        pinned={"NVIDIA H200": {"few 2": short, "many 2": tall, "few 4": short_shallow, "many 4": tall_shallow}}
        if block_d == block_v == 64
        else {},
    )


def _backward_shared_bytes(config: Config, itemsize: int) -> int:
    # The larger block is the one that a program owns: queries with dO, or keys with values; it walks over blocks of the others.
    b = config.blocks
    owned, step = max(b["BLOCK_M"], b["BLOCK_N"]), min(b["BLOCK_M"], b["BLOCK_N"])
    widest, row = b["BLOCK_V"], (b["BLOCK_D"] + b["BLOCK_V"]) * itemsize
    # What a row of values has beyond one of keys finds no room in the buffers that the two share.
    scores, longer = owned * step * 4, step * (b["BLOCK_V"] - b["BLOCK_D"]) * 4
    # A step's statistics come with it, and with one stage its scores may change their layout beside it. tf32x3 keeps what is
    # left of the owned rows after rounding beside them; on sm_100 P and dS of 2 bytes lie in shared memory. On sm_75 nothing is
    # pipelined, and results change their layout too.
    kept = scores if itemsize == 2 else 0
    steps = max(config.num_stages * step * row + kept, step * row + scores) + 8 * step * config.num_stages
    return longer + max(owned * row * (2 if itemsize == 4 else 1) + steps, (owned + step) * row + owned * widest * 4 + scores)


@functools.cache
def _backward_configs(owner: str, block_d: int, block_v: int) -> Configs:
    """For the kernel whose programs own a block of `owner`, "query" or "key", and walk over blocks of the other."""

    def config(owned: int, step: int, warps: int, stages: int) -> Config:
        m, n = (owned, step) if owner == "query" else (step, owned)
        return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": block_d, "BLOCK_V": block_v}, num_warps=warps, num_stages=stages)

    # Two tiles of probabilities and of their gradients and one or two accumulators: fewer registers are left than forward.
    usual = [config(64, 32, 4, 3), config(64, 32, 4, 2), config(64, 64, 4, 2), config(128, 32, 8, 2), config(128, 64, 8, 2)]
    wide = [config(64, 32, 8, 2), config(64, 64, 8, 1), config(128, 32, 8, 1)]
    small = [config(32, 32, 4, 1), config(16, 16, 4, 1)]
    return Configs(
        f"attention {owner} backward {block_d} {block_v}",
        candidates=[*(usual if max(block_d, block_v) <= 64 else wide), *small],
        shared_bytes=_backward_shared_bytes,
        # Measured with ViT-B/16's heads at batch 256.
        pinned={"NVIDIA H200": {"few 2": usual[0], "many 2": usual[0]}} if block_d == block_v == 64 else {},
    )


def _fitting_backward_configs(owner: str, block_d: int, block_v: int, dtype: torch.dtype) -> Configs:
    configs = _backward_configs(owner, block_d, block_v)
    if not configs.fitting(shared_memory(), dtype.itemsize):  # float32 on sm_75, with heads past 128
        raise ValueError(
            f"scaled_dot_product_attention: query, key and value are {dtype} with heads of {block_d} and {block_v}; "
            f"{gpu_name()} has too little shared memory for their gradients; smaller heads or float16 are accepted"
        )
    return configs


def _shape_class(batch: int, heads: int, queries: int) -> str:
    """Whether blocks of 128 queries (or keys) keep every multiprocessor busy with two programs."""
    return "many" if batch * heads * cdiv(queries, 128) >= 2 * multiprocessors() else "few"


def _blocks(head_size: int, value_size: int) -> tuple[int, int]:
    """BLOCK_D and BLOCK_V: a head in one block, and no less than a matrix product on tensor cores takes.

    Values are never in a narrower block than keys: where they were half as wide, the ptxas of Triton 3.6 and 3.7.1 took the
    address of a piece of them from a register that it had not set (tests/test_compiles.py looks for that).
    """
    block_d = max(16, next_power_of_2(head_size))
    return block_d, max(block_d, next_power_of_2(value_size))


def _interpreted(queries: int, keys: int, block_d: int, block_v: int) -> Config:
    m, n = (min(max(16, next_power_of_2(size)), 256) for size in (queries, keys))
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": block_d, "BLOCK_V": block_v})


def _as_tokens(like: torch.Tensor, batch: int, heads: int, rows: int, columns: int) -> torch.Tensor:
    """An empty (batch, heads, rows, columns) that lies in memory as (batch, rows, heads, columns)."""
    return torch.empty((batch, rows, heads, columns), dtype=like.dtype, device=like.device).transpose(1, 2)


def _fake(query, key, value, scale, causal, save):
    batch, heads, queries, _ = query.shape
    output = query.new_empty((batch, queries, heads, value.shape[3]))
    return output, query.new_empty((batch, heads, queries if save else 0), dtype=torch.float32)


@operator(
    "attention(Tensor query, Tensor key, Tensor value, float? scale, bool causal, bool save) -> (Tensor, Tensor)",
    _fake,
)
def _attention(query, key, value, scale, causal, save):
    """The result as (batch, queries, heads, value_size), and the logarithms, to base 2, of the sums of exponentials.

    These are (batch, heads, queries) if `save`, else there are none. The result is no view: autograd would refuse `result += 1`.
    """
    batch, heads, queries, head_size = query.shape
    keys, value_size = value.shape[2:]
    output = torch.empty((batch, queries, heads, value_size), dtype=query.dtype, device=query.device)
    logsumexp = torch.empty((batch, heads, queries if save else 0), dtype=torch.float32, device=query.device)
    if keys == 0 or output.numel() == 0:
        return output.zero_(), logsumexp.zero_()  # which backward does not read then
    scale = 1.0 / math.sqrt(head_size) if scale is None else scale
    if abs(scale) < SMALLEST_SCALE:  # the kernel takes what float32 has above 0; a 0 can go into the queries, and so can a sign
        query, scale = query * 0.0, 1.0
    elif scale < 0:
        query, scale = -query, -scale
    block_d, block_v = _blocks(head_size, value_size)

    def launch(config: Config) -> None:
        attention_kernel[(batch * heads * cdiv(queries, config.blocks["BLOCK_M"]),)](
            query, key, value, output, logsumexp if save else None, scale, heads, queries, keys,
            *query.stride(), *key.stride(), *value.stride(), *output.transpose(1, 2).stride()[:3], head_size, value_size,
            CAUSAL=causal, SAVE=save, PRECISION=dot_precision(query.dtype), **config.options(),
        )  # fmt: skip

    if INTERPRETER:
        launch(_interpreted(queries, keys, block_d, block_v))
    else:
        launch(_configs(block_d, block_v).choose(_shape_class(batch, heads, queries), query.dtype, launch))
    return output, logsumexp


def _query_backward_fake(grad, query, key, value, output, logsumexp, scale, causal):
    batch, heads, queries, head_size = query.shape
    return query.new_empty((batch, queries, heads, head_size)).transpose(1, 2), torch.empty_like(logsumexp)


@operator(
    "attention_query_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, Tensor logsumexp,"
    " float? scale, bool causal) -> (Tensor, Tensor)",
    _query_backward_fake,
)
def _attention_query_backward(grad, query, key, value, output, logsumexp, scale, causal):
    """The gradient of the queries, which lies as tokens, and delta, which the gradient of the keys needs."""
    batch, heads, queries, head_size = query.shape
    keys, value_size = value.shape[2:]
    query_grad = _as_tokens(query, batch, heads, queries, head_size)
    delta = torch.empty_like(logsumexp)
    if keys == 0 or grad.numel() == 0:
        return query_grad.zero_(), delta.zero_()
    scale = 1.0 / math.sqrt(head_size) if scale is None else scale
    block_d, block_v = _blocks(head_size, value_size)

    def launch(config: Config) -> None:
        attention_query_backward_kernel[(batch * heads * cdiv(queries, config.blocks["BLOCK_M"]),)](
            grad, query, key, value, output, logsumexp, delta, query_grad, scale, heads, queries, keys,
            *grad.stride(), *query.stride(), *key.stride(), *value.stride(), *output.stride(), *query_grad.stride()[:3],
            head_size, value_size, CAUSAL=causal, PRECISION=dot_precision(query.dtype),
            HEAD_FITS=head_size == block_d, VALUE_FITS=value_size == block_v, **config.options(),
        )  # fmt: skip

    if INTERPRETER:
        launch(_interpreted(queries, keys, block_d, block_v))
    else:
        configs = _fitting_backward_configs("query", block_d, block_v, query.dtype)
        launch(configs.choose(_shape_class(batch, heads, queries), query.dtype, launch))
    return query_grad, delta


def _key_backward_fake(grad, query, key, value, logsumexp, delta, scale, causal):
    batch, heads, keys, head_size = key.shape
    key_grad, value_grad = (key.new_empty((batch, keys, heads, size)).transpose(1, 2) for size in (head_size, value.shape[3]))
    return key_grad, value_grad


@operator(
    "attention_key_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor logsumexp, Tensor delta,"
    " float? scale, bool causal) -> (Tensor, Tensor)",
    _key_backward_fake,
)
def _attention_key_backward(grad, query, key, value, logsumexp, delta, scale, causal):
    """The gradients of keys and values, which lie as tokens."""
    batch, heads, queries, head_size = query.shape
    keys, value_size = value.shape[2:]
    key_grad = _as_tokens(key, batch, heads, keys, head_size)
    value_grad = _as_tokens(value, batch, heads, keys, value_size)
    if keys == 0 or grad.numel() == 0:
        return key_grad.zero_(), value_grad.zero_()
    scale = 1.0 / math.sqrt(head_size) if scale is None else scale
    block_d, block_v = _blocks(head_size, value_size)

    def launch(config: Config) -> None:
        attention_key_backward_kernel[(batch * heads * cdiv(keys, config.blocks["BLOCK_N"]),)](
            grad, query, key, value, logsumexp, delta, key_grad, value_grad, scale, heads, queries, keys,
            *grad.stride(), *query.stride(), *key.stride(), *value.stride(), *key_grad.stride()[:3], *value_grad.stride()[:3],
            head_size, value_size, CAUSAL=causal, PRECISION=dot_precision(query.dtype),
            HEAD_FITS=head_size == block_d, VALUE_FITS=value_size == block_v, **config.options(),
        )  # fmt: skip

    if INTERPRETER:
        launch(_interpreted(queries, keys, block_d, block_v))
    else:
        configs = _fitting_backward_configs("key", block_d, block_v, query.dtype)
        launch(configs.choose(_shape_class(batch, heads, keys), query.dtype, launch))
    return key_grad, value_grad


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, scale, causal):
        output, logsumexp = _attention(query, key, value, scale, causal, True)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.scale, ctx.causal = scale, causal
        return output

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        query, key, value, output, logsumexp = ctx.saved_tensors
        grad, output = grad.transpose(1, 2), output.transpose(1, 2)
        query_grad, delta = _attention_query_backward(grad, query, key, value, output, logsumexp, ctx.scale, ctx.causal)
        key_grad = value_grad = None
        if any(ctx.needs_input_grad[1:3]):
            key_grad, value_grad = _attention_key_backward(grad, query, key, value, logsumexp, delta, ctx.scale, ctx.causal)
        return query_grad, key_grad, value_grad, None, None


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`: softmax(query @ key.T * scale) @ value for every head.

    query: (batch, heads, queries, head_size); key: (batch, heads, keys, head_size); value: (batch, heads, keys, value_size);
    any strides, head sizes up to 256. scale is 1/sqrt(head_size) unless given. is_causal: query i sees keys 0 to i.
    attn_mask, dropout_p and enable_gqa are not supported. The result is (batch, heads, queries, value_size) and lies in
    memory as (batch, queries, heads, value_size), so `result.transpose(1, 2).flatten(2)` is a view of tokens. So does every
    gradient, (batch, tokens, heads, size). Under autocast float32 is converted to autocast's type first, as in PyTorch.
    """
    check_numbers("scaled_dot_product_attention", scale=scale)
    check_tensors("scaled_dot_product_attention", query=query, key=key, value=value)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (tensor.to(torch.get_autocast_dtype(query.device.type)) for tensor in (query, key, value))
        check_tensors("scaled_dot_product_attention", query=query, key=key, value=value)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise TypeError(
                f"scaled_dot_product_attention: {name} is {tensor.dtype} and query is {query.dtype}; one type for all is accepted"
            )
    for name, given in (("attn_mask", attn_mask is not None), ("dropout_p", dropout_p != 0), ("enable_gqa", enable_gqa)):
        if given:
            raise ValueError(f"scaled_dot_product_attention: {name} is not supported")
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if (
        not query.ndim == key.ndim == value.ndim == 4
        or not query.shape[:2] == key.shape[:2] == value.shape[:2]
        or query.shape[3] != key.shape[3]
        or key.shape[2] != value.shape[2]
    ):
        accepted = "(batch, heads, queries, head_size), (batch, heads, keys, head_size), (batch, heads, keys, value_size)"
        raise ValueError(f"scaled_dot_product_attention: {shapes}; accepted: {accepted}")
    if not 0 < query.shape[3] <= LARGEST_HEAD or value.shape[3] > LARGEST_HEAD:
        raise ValueError(f"scaled_dot_product_attention: {shapes}; head sizes from 1 to {LARGEST_HEAD} are accepted")
    if needs_gradient(query, key, value):
        return _Attention.apply(query, key, value, scale, is_causal).transpose(1, 2)
    return _attention(query, key, value, scale, is_causal, False)[0].transpose(1, 2)
