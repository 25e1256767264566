"""Answers to the exercises of lesson 09: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import math

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

# ---- Merging two states -----------------------------------------------------------------------------------------------------


def factors(m1, m2, m):
    shift = torch.where(m == -math.inf, 0.0, m)
    return torch.exp(m1 - shift), torch.exp(m2 - shift)


def plain_factors(m1, m2, m):
    return torch.exp(m1 - m), torch.exp(m2 - m)


def merge(factors=factors, total=None, values=None, top=torch.maximum):
    def function(m1, l1, o1, m2, l2, o2):
        m = top(m1, m2)
        f1, f2 = factors(m1, m2, m)
        whole = total(l1, l2, f1, f2) if total else l1 * f1 + l2 * f2
        f1, f2 = f1[:, None], f2[:, None]
        return m, whole, values(o1, o2, f1, f2, whole[:, None]) if values else o1 * f1 + o2 * f2

    return function


def merge_in_place(m1, l1, o1, m2, l2, o2):
    m = torch.maximum(m1, m2)
    f1, f2 = factors(m1, m2, m)
    l1 *= f1
    return m, l1 + l2 * f2, o1 * f1[:, None] + o2 * f2[:, None]


def merge_stacked(m1, l1, o1, m2, l2, o2):
    m = torch.stack([m1, m2])
    top = m.max(0).values
    weights = torch.exp(m - top).nan_to_num(0.0)
    return [top, (torch.stack([l1, l2]) * weights).sum(0), (torch.stack([o1, o2]) * weights[:, :, None]).sum(0)]


def along_columns(m1, l1, o1, m2, l2, o2):
    m = torch.maximum(m1, m2)
    f1, f2 = plain_factors(m1, m2, m)
    return m, l1 * f1 + l2 * f2, o1 * f1 + o2 * f2


def for_numbers(m1, l1, o1, m2, l2, o2):
    """Plain Python's max, which takes no tensors of several rows."""
    m = max(m1, m2)
    return m, l1 * torch.exp(m1 - m) + l2 * torch.exp(m2 - m), o1 * torch.exp(m1 - m) + o2 * torch.exp(m2 - m)


# ---- Attention: the plain mistakes, each switched on by its name ---------------------------------------------------------------


@triton.jit
def attention_blocks(
    q_ptr, k_ptr, v_ptr, o_ptr, queries, keys, scale,
    MISTAKE: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    head = tl.program_id(1).to(tl.int64)
    k_head = head
    v_head = head
    o_head = head
    if MISTAKE == "k of the first head" or MISTAKE == "k and v of the first head":
        k_head = head * 0
    if MISTAKE == "v of the first head" or MISTAKE == "k and v of the first head":
        v_head = head * 0
    if MISTAKE == "o of the first head":
        o_head = head * 0
    rows = (head * queries + m)[:, None] * D + d[None, :]
    if MISTAKE == "no mask for queries":
        q = tl.load(q_ptr + rows)
    else:
        q = tl.load(q_ptr + rows, mask=(m < queries)[:, None], other=0.0)
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    if MISTAKE == "maximum from 0":
        maximum = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, D), tl.float32)
    last = keys
    if MISTAKE == "first block":
        last = tl.minimum(keys, BLOCK_N)
    if MISTAKE == "to 256":
        last = 256
    if MISTAKE == "whole blocks":
        last = keys // BLOCK_N * BLOCK_N
    if MISTAKE == "whole blocks, one at least":
        last = tl.maximum(keys // BLOCK_N * BLOCK_N, 1)
    for start in range(0, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = n < keys
        k_where = (k_head * keys + n)[None, :] * D + d[:, None]
        v_where = (v_head * keys + n)[:, None] * D + d[None, :]
        if MISTAKE == "no mask for keys":
            k = tl.load(k_ptr + k_where)
        elif MISTAKE == "mask of queries":
            k = tl.load(k_ptr + k_where, mask=(m < queries)[None, :], other=0.0)
        else:
            k = tl.load(k_ptr + k_where, mask=inside[None, :], other=0.0)
        v = tl.load(v_ptr + v_where, mask=inside[:, None], other=0.0)
        if MISTAKE == "k and v exchanged":
            k = tl.load(v_ptr + k_where, mask=inside[None, :], other=0.0)
            v = tl.load(k_ptr + v_where, mask=inside[:, None], other=0.0)
        if MISTAKE == "keys summed":
            v = tl.load(k_ptr + v_where, mask=inside[:, None], other=0.0)
        scores = tl.dot(q, k) * scale
        if MISTAKE == "scores in float16":
            scores = scores.to(tl.float16).to(tl.float32)
        if MISTAKE == "other than -inf":
            scores = tl.where(inside[None, :], scores, 0.0)
        elif MISTAKE == "keys up to queries":
            scores = tl.where((n < queries)[None, :], scores, -float("inf"))
        elif MISTAKE != "keys past the end" and MISTAKE != "0 after exp":
            scores = tl.where(inside[None, :], scores, -float("inf"))
        new = tl.maximum(maximum, tl.max(scores, axis=1))
        if MISTAKE == "unshifted":
            new = tl.zeros((BLOCK_M,), tl.float32)
        if MISTAKE == "subtracts the old maximum":
            p = tl.exp(scores - maximum[:, None])
        elif MISTAKE == "exp2":
            p = tl.exp2(scores - new[:, None])
        else:
            p = tl.exp(scores - new[:, None])
        if MISTAKE == "0 after exp":
            p = tl.where(inside[None, :], p, 0.0)
        correction = tl.exp(maximum - new)
        if MISTAKE == "unshifted":
            correction = tl.full((BLOCK_M,), 1.0, tl.float32)
        if MISTAKE == "upside down":
            correction = tl.where(maximum == -float("inf"), 1.0, tl.exp(new - maximum))
        if MISTAKE == "total not rescaled" or MISTAKE == "nothing rescaled":
            total = total + tl.sum(p, axis=1)
        elif MISTAKE == "total of the last block":
            total = tl.sum(p, axis=1)
        elif MISTAKE == "total in float16":
            total = total * correction + tl.sum(p.to(tl.float16), axis=1).to(tl.float32)
        else:
            total = total * correction + tl.sum(p, axis=1)
        if MISTAKE == "accumulator not rescaled" or MISTAKE == "nothing rescaled":
            accumulator = tl.dot(p.to(v.dtype), v, accumulator)
        elif MISTAKE == "accumulator of the last block":
            accumulator = tl.dot(p.to(v.dtype), v)
        elif MISTAKE == "types mixed":
            accumulator = tl.dot(p, v, accumulator * correction[:, None])
        else:
            accumulator = tl.dot(p.to(v.dtype), v, accumulator * correction[:, None])
        if MISTAKE == "divides in the loop":
            accumulator = accumulator / total[:, None]
        maximum = new
        if MISTAKE == "stores in the loop":
            tl.store(o_ptr + rows, accumulator / total[:, None], mask=(m < queries)[:, None])
    if MISTAKE != "not divided" and MISTAKE != "divides in the loop":
        accumulator = accumulator / total[:, None]
    where = (o_head * queries + m)[:, None] * D + d[None, :]
    if MISTAKE == "no mask on store":
        tl.store(o_ptr + where, accumulator)
    else:
        tl.store(o_ptr + where, accumulator, mask=(m < queries)[:, None])


@triton.jit
def attention_flat(
    q_ptr, k_ptr, v_ptr, o_ptr, heads, queries, keys, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Right, written differently: a grid of one axis, heads first, exponentials to base 2, pointers that move on."""
    head = tl.program_id(0) % heads
    row = (tl.program_id(0) // heads * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    column = tl.arange(0, D)[None, :]
    q = tl.load(q_ptr + (head * queries + row) * D + column, row < queries, 0.0)
    key = tl.arange(0, BLOCK_N)
    k_ptrs = k_ptr + (head * keys + key[None, :]) * D + tl.arange(0, D)[:, None]
    v_ptrs = v_ptr + (head * keys + key[:, None]) * D + column
    base2_scale = 1.4426950408889634 / tl.sqrt(D * 1.0)
    top = tl.full((BLOCK_M, 1), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M, 1), tl.float32)
    output = tl.zeros((BLOCK_M, D), tl.float32)
    for block in range(tl.cdiv(keys, BLOCK_N)):
        left = keys - block * BLOCK_N
        scores = tl.dot(q, tl.load(k_ptrs, (key < left)[None, :], 0.0), input_precision="ieee") * base2_scale
        scores += tl.where(key < left, 0.0, -float("inf"))[None, :]
        new = tl.maximum(top, tl.max(scores, axis=1, keep_dims=True))
        p = tl.exp2(scores - new)
        v = tl.load(v_ptrs, (key < left)[:, None], 0.0)
        output = output * tl.exp2(top - new) + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        total = total * tl.exp2(top - new) + tl.sum(p, axis=1, keep_dims=True)
        top = new
        k_ptrs += BLOCK_N * D
        v_ptrs += BLOCK_N * D
    tl.store(o_ptr + (head * queries + row) * D + column, output / total, row < queries)


@triton.jit
def attention_two_passes(
    q_ptr, k_ptr, v_ptr, o_ptr, queries, keys, scale, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Right as well: the maximum in one walk over the keys, the sums in a second."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    head = tl.program_id(1)
    q = tl.load(q_ptr + (head * queries + m)[:, None] * D + d[None, :], mask=(m < queries)[:, None], other=0.0)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    for start in range(0, keys, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + (head * keys + n)[None, :] * D + d[:, None], mask=(n < keys)[None, :], other=0.0)
        top = tl.maximum(top, tl.max(tl.where((n < keys)[None, :], tl.dot(q, k), -float("inf")), axis=1))
    total = tl.zeros((BLOCK_M,), tl.float32)
    output = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, keys, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + (head * keys + n)[None, :] * D + d[:, None], mask=(n < keys)[None, :], other=0.0)
        v = tl.load(v_ptr + (head * keys + n)[:, None] * D + d[None, :], mask=(n < keys)[:, None], other=0.0)
        p = tl.exp((tl.dot(q, k) - top[:, None]) * scale)
        p = tl.where((n < keys)[None, :], p, 0.0)
        total += tl.sum(p, axis=1)
        output += tl.dot(p.to(v.dtype), v)
    tl.store(o_ptr + (head * queries + m)[:, None] * D + d[None, :], output / total[:, None], mask=(m < queries)[:, None])


def tiles(queries, heads, block):
    return (triton.cdiv(queries, block), heads)


def root(d, queries, keys):
    return d**-0.5


def attend(mistake="", scale=root, block_m=32, block_n=lambda keys: 32, grid=tiles, output=torch.empty_like, order=lambda *x: x):
    def function(q, k, v):
        q, k, v = order(q, k, v)
        (heads, queries, d), keys = q.shape, k.shape[1]
        o = output(q)
        blocks = {"D": d, "BLOCK_M": block_m, "BLOCK_N": block_n(keys)}
        size = scale(d, queries, keys)
        attention_blocks[grid(queries, heads, block_m)](q, k, v, o, queries, keys, size, MISTAKE=mistake, **blocks)
        return o

    return function


@triton.jit
def one_maximum_a_block(q_ptr, k_ptr, v_ptr, o_ptr, queries, keys, D: tl.constexpr, BLOCK: tl.constexpr):
    m, d, head = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D), tl.program_id(1)
    q_rows = (head * queries + m)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + q_rows, mask=(m < queries)[:, None], other=0.0)
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    accumulator = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, keys, BLOCK):
        n = start + tl.arange(0, BLOCK)
        rows = (head * keys + n)[:, None] * D + d[None, :]
        k = tl.load(k_ptr + rows, mask=(n < keys)[:, None], other=0.0)
        v = tl.load(v_ptr + rows, mask=(n < keys)[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") / tl.sqrt(D * 1.0)
        scores = tl.where((n < keys)[None, :], scores, -float("inf"))
        new = tl.maximum(top, tl.max(scores))
        p = tl.exp(scores - new[:, None])
        total = total * tl.exp(top - new) + tl.sum(p, axis=1)
        accumulator = accumulator * tl.exp(top - new)[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new
    tl.store(o_ptr + q_rows, accumulator / total[:, None], mask=(m < queries)[:, None])


def attend_with_one_maximum(q, k, v):
    (heads, queries, d), o = q.shape, torch.empty_like(q)
    one_maximum_a_block[(triton.cdiv(queries, 32), heads)](q, k, v, o, queries, k.shape[1], D=d, BLOCK=32)
    return o


def by_blocks_of_keys(q, k, v):
    return attend(grid=lambda queries, heads, block: (triton.cdiv(k.shape[1], block), heads))(q, k, v)


def attend_flat(q, k, v):
    (heads, queries, d), keys = q.shape, k.shape[1]
    o = torch.empty_like(q)
    attention_flat[(heads * triton.cdiv(queries, 64),)](q, k, v, o, heads, queries, keys, D=d, BLOCK_M=64, BLOCK_N=16)
    return o


def attend_in_two_passes(q, k, v):
    (heads, queries, d), keys = q.shape, k.shape[1]
    o = torch.empty_like(q)
    attention_two_passes[(triton.cdiv(queries, 16), heads)](q, k, v, o, queries, keys, d**-0.5, D=d, BLOCK_M=16, BLOCK_N=32)
    return o


def next_power(keys):
    return max(16, triton.next_power_of_2(keys))


def prescaled(q, k, v):
    return attend(scale=lambda *_: 1.0)(q * q.shape[2] ** -0.5, k, v)


def head_by_head(q, k, v):
    o = torch.empty_like(q)
    for head in range(len(q)):
        attend(output=lambda _, head=head: o[head : head + 1])(q[head : head + 1], k[head : head + 1], v[head : head + 1])
    return o


# ---- The gradient of the queries ----------------------------------------------------------------------------------------------


@triton.jit
def query_gradient_blocks(
    q_ptr, k_ptr, v_ptr, grad_ptr, logsumexp_ptr, delta_ptr, dq_ptr, tokens, scale,
    MISTAKE: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    head = tl.program_id(1).to(tl.int64)
    first = head * tokens
    rows = (first + m)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + rows, mask=(m < tokens)[:, None], other=0.0)
    grad = tl.load(grad_ptr + rows, mask=(m < tokens)[:, None], other=0.0)
    statistics = first + m
    if MISTAKE == "statistics of the first head":
        statistics = m
    if MISTAKE == "no mask for statistics":
        logsumexp = tl.load(logsumexp_ptr + statistics)
    else:
        logsumexp = tl.load(logsumexp_ptr + statistics, mask=m < tokens, other=0.0)
    delta = tl.load(delta_ptr + statistics, mask=m < tokens, other=0.0)
    if MISTAKE == "delta is logsumexp":
        delta = logsumexp
    accumulator = tl.zeros((BLOCK_M, D), tl.float32)
    last = tokens
    if MISTAKE == "first block":
        last = tl.minimum(tokens, BLOCK_N)
    if MISTAKE == "whole blocks":
        last = tokens // BLOCK_N * BLOCK_N
    for start in range(0, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = n < tokens
        columns = (first + n)[None, :] * D + d[:, None]
        k_rows = (first + n)[:, None] * D + d[None, :]
        if MISTAKE == "no mask for keys":
            k = tl.load(k_ptr + columns)
        else:
            k = tl.load(k_ptr + columns, mask=inside[None, :], other=0.0)
        v = tl.load(v_ptr + columns, mask=inside[None, :], other=0.0)
        if MISTAKE == "v is k":
            v = k
        again = tl.load(k_ptr + k_rows, mask=inside[:, None], other=0.0)
        if MISTAKE == "times v":
            again = tl.load(v_ptr + k_rows, mask=inside[:, None], other=0.0)
        scores = tl.dot(q, k) * scale
        if MISTAKE == "no scale in the scores" or MISTAKE == "no scale at all":
            scores = tl.dot(q, k)
        if MISTAKE != "keys past the end":
            scores = tl.where(inside[None, :], scores, -float("inf"))
        p = tl.exp(scores - logsumexp[:, None])
        if MISTAKE == "no logsumexp":
            p = tl.exp(scores)
        if MISTAKE == "divides by logsumexp":
            p = tl.exp(scores) / logsumexp[:, None]
        if MISTAKE == "base 2":
            p = tl.exp2(scores * 1.4426950408889634 - logsumexp[:, None])
        if MISTAKE == "exp2":
            p = tl.exp2(scores - logsumexp[:, None])
        if MISTAKE == "adds logsumexp":
            p = tl.exp(scores + logsumexp[:, None])
        p_grad = tl.dot(grad, v)
        if MISTAKE == "dP of q":
            p_grad = tl.dot(q, v)
        if MISTAKE == "no delta":
            score_grad = p * p_grad
        elif MISTAKE == "adds delta":
            score_grad = p * (p_grad + delta[:, None])
        elif MISTAKE == "delta outside":
            score_grad = p * p_grad - delta[:, None]
        elif MISTAKE == "sign":
            score_grad = p * (delta[:, None] - p_grad)
        elif MISTAKE == "no P":
            score_grad = tl.where(inside[None, :], p_grad - delta[:, None], 0.0)
        elif MISTAKE == "P alone":
            score_grad = p
        elif MISTAKE == "as if independent":
            score_grad = p * (1 - p) * p_grad
        else:
            score_grad = p * (p_grad - delta[:, None])
        if MISTAKE == "float16":
            score_grad = score_grad.to(tl.float16).to(tl.float32)
        if MISTAKE == "last block":
            accumulator = tl.dot(score_grad.to(k.dtype), again)
        else:
            accumulator = tl.dot(score_grad.to(k.dtype), again, accumulator)
    if MISTAKE == "scale twice":
        accumulator = accumulator * scale
    if MISTAKE != "no scale" and MISTAKE != "no scale at all":
        accumulator = accumulator * scale
    if MISTAKE == "no mask on store":
        tl.store(dq_ptr + rows, accumulator)
    else:
        tl.store(dq_ptr + rows, accumulator, mask=(m < tokens)[:, None])


@triton.jit
def query_gradient_flat(
    q_ptr, k_ptr, v_ptr, grad_ptr, logsumexp_ptr, delta_ptr, dq_ptr, tokens,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Right, written differently: a grid of one axis, base 2, P set to 0 past the end, delta's part summed apart."""
    tiles = tl.cdiv(tokens, BLOCK_M)
    head = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    inside = row < tokens
    q = tl.load(q_ptr + (head * tokens + row[:, None]) * D + d, inside[:, None], 0.0)
    grad = tl.load(grad_ptr + (head * tokens + row[:, None]) * D + d, inside[:, None], 0.0)
    logsumexp = tl.load(logsumexp_ptr + head * tokens + row, inside, float("inf"))
    delta = tl.load(delta_ptr + head * tokens + row, inside, 0.0)
    scale = 1 / tl.sqrt(D * 1.0)
    weighed = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, tokens, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        across = (head * tokens + key[None, :]) * D + d[:, None]
        k = tl.load(k_ptr + across, (key < tokens)[None, :], 0.0)
        v = tl.load(v_ptr + across, (key < tokens)[None, :], 0.0)
        exponent = (tl.dot(q, k) * scale - logsumexp[:, None]) * 1.4426950408889634
        p = tl.where((key < tokens)[None, :], tl.exp2(exponent), 0.0)
        ds = p * tl.dot(grad, v) - p * delta[:, None]
        down = (head * tokens + key[:, None]) * D + d
        weighed += tl.dot((ds * scale).to(q.dtype), tl.load(k_ptr + down, (key < tokens)[:, None], 0.0))
    tl.store(dq_ptr + (head * tokens + row[:, None]) * D + d, weighed, inside[:, None])


def gradient(mistake="", block=32, block_n=32, grid=tiles, output=torch.empty_like, order=lambda *x: x):
    def function(*arguments):
        q, k, v, grad, logsumexp, delta = order(*arguments)
        heads, tokens, d = q.shape
        dq = output(q)
        blocks = {"D": d, "BLOCK_M": block, "BLOCK_N": block_n}
        query_gradient_blocks[grid(tokens, heads, block)](
            q, k, v, grad, logsumexp, delta, dq, tokens, d**-0.5, MISTAKE=mistake, **blocks
        )
        return dq

    return function


def gradient_flat(q, k, v, grad, logsumexp, delta):
    heads, tokens, d = q.shape
    dq = torch.empty_like(q)
    grid = (heads * triton.cdiv(tokens, 16),)
    query_gradient_flat[grid](q, k, v, grad, logsumexp, delta, dq, tokens, D=d, BLOCK_M=16, BLOCK_N=64)
    return dq


def gradient_by_pytorch(q, k, v, grad, logsumexp, delta):
    p = (q @ k.mT * q.shape[2] ** -0.5 - logsumexp[:, :, None]).exp()
    return p * (grad @ v.mT - delta[:, :, None]) @ k * q.shape[2] ** -0.5


def gradient_scaled_after(q, k, v, grad, logsumexp, delta):
    return gradient("no scale")(q, k, v, grad, logsumexp, delta) * q.shape[2] ** -0.5


WRONG = {
    "merge_attention": [
        (merge(plain_factors), "Two parts without keys"),
        (merge_in_place, "changed its inputs"),
        (merge(lambda m1, m2, m: (torch.ones_like(m), torch.ones_like(m))), "scale the sums and the values of each"),
        (merge(values=lambda o1, o2, f1, f2, whole: o1 + o2), "o is not scaled"),
        (merge(total=lambda l1, l2, f1, f2: l1 + l2), "l is not scaled"),
        (merge(lambda m1, m2, m: (factors(m1, m2, m)[0], torch.ones_like(m))), "Only the first part is scaled"),
        (merge(lambda m1, m2, m: (torch.ones_like(m), factors(m1, m2, m)[1])), "Only the second part is scaled"),
        (merge(lambda m1, m2, m: (torch.exp(m - m1), torch.exp(m - m2))), "upside down"),
        (merge(lambda m1, m2, m: factors(m1, m2, m)[::-1]), "factors are exchanged"),
        (merge(plain_factors, top=torch.minimum), "not the smaller"),
        (merge(plain_factors, top=lambda m1, m2: m2), "either can be it"),
        (merge(plain_factors, top=lambda m1, m2: torch.maximum(m1, m2).max().expand(m1.shape)), "largest of all rows"),
        (merge(values=lambda o1, o2, f1, f2, whole: (o1 * f1 + o2 * f2) / whole), "o is divided by l"),
        (merge(total=lambda l1, l2, f1, f2: f1 + f2), "l1 and l2 are sums already"),
        (merge(lambda m1, m2, m: (torch.exp(m1), torch.exp(m2))), "sums are below m"),
        (along_columns, "(?s)factor\\[:, None\\]"),
        (lambda *case: tuple(merge()(*case)[i] for i in (1, 0, 2)), "order is \\(m, l, o\\)"),
        (lambda *case: merge()(*case)[:2], "returned 2 things"),
        (lambda *case: merge()(*case)[2], "Return three tensors"),
        (lambda *case: [one.unsqueeze(-1) for one in merge()(*case)], "m has shape"),
        (lambda *case: (merge()(*case)[0], 1.0, merge()(*case)[2]), "l is a float"),
        (merge(values=lambda o1, o2, f1, f2, whole: o1 * f1), "second part was left out of o"),
        (merge(values=lambda o1, o2, f1, f2, whole: o1 * f1 - o2 * f2), "Write both parts out"),
        (for_numbers, "raised RuntimeError: Boolean value"),
    ],
    "attention": [
        (attend("to 256"), "(?s)3 queries and 300 keys"),
        (by_blocks_of_keys, "(?s)150 queries and 5 keys.*never stored"),
        (attend("keys past the end"), "(?s)3 queries and 5 keys.*Keys past the end count"),
        (attend("keys past the end", block_n=next_power), "(?s)3 queries and 5 keys.*Keys past the end count"),
        (attend("keys past the end", block_n=lambda keys: 128), "(?s)3 queries and 5 keys.*Keys past the end count"),
        (attend("keys up to queries"), "(?s)3 queries and 5 keys.*by the number of queries"),
        (attend("other than -inf"), "Keys past the end count"),
        (attend("0 after exp"), "(?s)far below zero.*maximum starts at -inf"),
        (attend("maximum from 0"), "(?s)far below zero.*maximum starts at -inf"),
        (attend("accumulator not rescaled"), "(?s)rising.*accumulator is not rescaled"),
        (attend("total not rescaled"), "(?s)rising.*total is not rescaled"),
        (attend("nothing rescaled"), "(?s)rising.*Nothing is rescaled"),
        (attend("nothing rescaled", block_n=lambda keys: 16), "(?s)rising.*Nothing is rescaled"),
        (attend("upside down"), "(?s)rising.*upside down"),
        (attend("total of the last block"), "(?s)rising.*total is of the last block"),
        (attend("accumulator of the last block"), "(?s)rising.*accumulator is of the last block"),
        (attend("first block"), "(?s)rising.*first block of keys only"),
        (attend("whole blocks"), "(?s)3 queries and 5 keys.*No key was read"),
        (attend("whole blocks, one at least"), "(?s)100 keys.*last, cut block"),
        (attend("divides in the loop"), "divided by the total in every block"),
        (attend("not divided"), "not divided by the total"),
        (attend("unshifted"), "(?s)large scores.*more than 89"),
        (attend("subtracts the old maximum"), "NaN or infinity"),
        (attend_with_one_maximum, "(?s)large scores.*a maximum and a sum of its own: axis=1"),
        (attend("exp2"), "exp2 is not exp"),
        (attend("total in float16"), "three digits"),
        (attend("scores in float16"), "three digits"),
        (attend("types mixed"), "(?s)in float16.*two blocks of one type"),
        (attend(scale=lambda d, *_: 1.0), "not scaled"),
        (attend(scale=lambda d, *_: 1 / d), "twice"),
        (attend(scale=lambda d, *_: d**0.5), "multiplied by the root"),
        (attend(scale=lambda d, queries, keys: keys**-0.5), "number of keys"),
        (attend(scale=lambda d, *_: d**-0.5 * math.log2(math.e)), "then given to exp"),
        (attend("k and v exchanged"), "k and v are exchanged"),
        (attend("keys summed"), "keys were summed"),
        (attend("k of the first head"), "k of the first head"),
        (attend("v of the first head"), "v of the first head"),
        (attend("k and v of the first head"), "k and v of the first head"),
        (attend("o of the first head"), "Every program stores to the first head"),
        (attend("no mask for queries"), "(?s)loads outside of q_ptr.*m < queries"),
        (attend("no mask for keys"), "(?s)loads outside of k_ptr.*n < keys"),
        (attend("no mask on store"), "(?s)stores outside of o_ptr.*m < queries"),
        (attend(grid=lambda queries, heads, block: (triton.cdiv(queries, block), 1)), "Heads belong to no program"),
        (attend(grid=lambda queries, heads, block: (max(1, queries // block), heads)), "(?s)40 queries.*never stored.*rounded"),
        (attend("stores in the loop"), "store after the loop"),
        (attend(block_n=next_power), "(?s)197 keys.*keys at once"),
        (prescaled, "does not read q"),
        (head_by_head, "2 kernels were launched"),
        (attend(output=lambda q: q), "changed its input q"),
        (attend(output=lambda q: torch.empty(q.shape, device=q.device)), "wrong type: float32"),
        (lambda q, k, v: torch.softmax(q @ k.mT * q.shape[2] ** -0.5, -1) @ v, "No kernel was launched"),
    ],
    "query_gradient": [
        (gradient("no scale"), "scale is missing at the end"),
        (gradient("no scale in the scores"), "scale is missing in the scores: P"),
        (gradient("no scale at all"), "in the scores and at the end"),
        (gradient("scale twice"), "scale is there twice"),
        (gradient("no delta"), "delta was left out"),
        (gradient("adds delta"), "delta was added"),
        (gradient("delta outside"), "not P \\* dP - delta"),
        (gradient("sign"), "The sign is wrong"),
        (gradient("no P"), "P was left out"),
        (gradient("P alone"), "P and not dS"),
        (gradient("as if independent"), "did not depend on each other"),
        (gradient("no logsumexp"), "without its logsumexp"),
        (gradient("divides by logsumexp"), "divided by logsumexp"),
        (gradient("base 2"), "natural logarithm"),
        (gradient("exp2"), "exp2 is not exp"),
        (gradient("adds logsumexp"), "logsumexp was added"),
        (gradient("dP of q"), "yours is q @ v.mT"),
        (gradient("v is k"), "yours is grad @ k.mT"),
        (gradient("times v"), "yours is dS @ v"),
        (gradient("keys past the end"), "(?s)far below zero.*A key past the end scores 0"),
        (gradient("first block"), "(?s)100 tokens.*first block"),
        (gradient("last block"), "(?s)100 tokens.*last block"),
        (gradient("whole blocks"), "(?s)5 tokens.*last, cut block"),
        (gradient("float16"), "three digits"),
        (gradient("statistics of the first head"), "logsumexp and delta of the first head"),
        (gradient("delta is logsumexp"), "logsumexp is used for delta"),
        (gradient("no mask for statistics"), "(?s)loads outside of logsumexp_ptr.*m < tokens"),
        (gradient("no mask for keys"), "(?s)loads outside of k_ptr.*n < tokens"),
        (gradient("no mask on store"), "(?s)stores outside of dq_ptr.*m < tokens"),
        (gradient(order=lambda q, k, v, grad, lse, delta: (q, k, v, grad, delta, lse)), "logsumexp and delta are exchanged"),
        (gradient(grid=lambda tokens, heads, block: (triton.cdiv(tokens, block), 1)), "Heads belong to no program"),
        (gradient(grid=lambda tokens, heads, block: (max(1, tokens // block), heads)), "(?s)100 tokens.*never stored.*rounded"),
        (gradient(output=lambda q: torch.empty(q.shape, device=q.device)), "wrong type: float32"),
        (gradient_by_pytorch, "No kernel was launched"),
        (gradient_scaled_after, "no kernel wrote"),
    ],
}  # fmt: skip

RIGHT = {
    "merge_attention": [merge(), merge_stacked],
    "attention": [attend(), attend(block_m=16, block_n=lambda keys: 64), attend_flat, attend_in_two_passes],
    "query_gradient": [gradient(), gradient(block=64, block_n=16), gradient_flat],
}
