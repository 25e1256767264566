"""Answers to the exercises of lesson 06: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

# ---- matmul: the plain mistakes, each switched on by its name ----------------------------------------------------------------


@triton.jit
def product_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    MISTAKE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile_m = tl.program_id(0)
    tile_n = tl.program_id(1)
    if MISTAKE == "tile indices swapped":
        tile_m = tl.program_id(1)
        tile_n = tl.program_id(0)
    if MISTAKE == "first tile column only":
        tile_n = 0
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if MISTAKE == "half a tile apart":
        n = tile_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    if MISTAKE == "b read transposed":
        b_ptrs = b_ptr + k[:, None] * b_column_stride + n[None, :] * b_row_stride
    if MISTAKE == "a's strides for b":
        b_ptrs = b_ptr + k[:, None] * a_row_stride + n[None, :] * a_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if MISTAKE == "sum in float16":
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float16)
    if MISTAKE == "sum in a's type":
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), a_ptr.dtype.element_ty)
    last = K
    if MISTAKE == "whole steps only":
        last = K // BLOCK_K * BLOCK_K
    if MISTAKE == "one step":
        last = tl.minimum(K, BLOCK_K)
    for start in range(0, last, BLOCK_K):
        a_mask = (m[:, None] < M) & (k[None, :] < K - start)
        b_mask = (k[:, None] < K - start) & (n[None, :] < N)
        a = tl.load(a_ptrs, mask=a_mask, other=0.0)
        b = tl.load(b_ptrs, mask=b_mask, other=0.0)
        if MISTAKE == "operands in float16":
            a = a.to(tl.float16)
            b = b.to(tl.float16)
        if MISTAKE == "last step only":
            accumulator = tl.dot(a, b)
        elif MISTAKE == "sum in float16":
            accumulator = tl.dot(a.to(tl.float16), b.to(tl.float16), accumulator, out_dtype=tl.float16)
        elif MISTAKE == "sum in a's type":
            accumulator = (accumulator + tl.dot(a, b)).to(a_ptr.dtype.element_ty)
        elif MISTAKE == "not added":
            tl.dot(a, b, accumulator)
        else:
            accumulator = tl.dot(a, b, accumulator)
        if MISTAKE != "pointers stay" and MISTAKE != "a's pointers stay":
            if MISTAKE == "a moves on by BLOCK_K":
                a_ptrs += BLOCK_K
            elif MISTAKE == "a moves on by rows":
                a_ptrs += BLOCK_K * a_row_stride
            else:
                a_ptrs += BLOCK_K * a_column_stride
        if MISTAKE != "pointers stay" and MISTAKE != "b's pointers stay":
            if MISTAKE == "b moves on by BLOCK_K":
                b_ptrs += BLOCK_K
            elif MISTAKE == "b moves on by columns":
                b_ptrs += BLOCK_K * b_column_stride
            else:
                b_ptrs += BLOCK_K * b_row_stride
        if MISTAKE == "stores in the loop":
            tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])
    c_ptrs = c_ptr + m[:, None] * N + n[None, :]
    if MISTAKE == "stored transposed":
        c_ptrs = c_ptr + m[:, None] + n[None, :] * M
    if MISTAKE == "no mask on store":
        tl.store(c_ptrs, accumulator)
    elif MISTAKE == "half a mask on store":
        tl.store(c_ptrs, accumulator, mask=(m < M)[:, None])
    else:
        tl.store(c_ptrs, accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


# The mistakes in masks, which a check finds in the text of a kernel.


@triton.jit
def no_mask_along_k(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _start in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=m[:, None] < M, other=0.0)
        b = tl.load(b_ptrs, mask=n[None, :] < N, other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def no_mask_along_k_in_b(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=0.0)
        b = tl.load(b_ptrs, mask=n[None, :] < N, other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def steps_for_elements(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, tl.cdiv(K, BLOCK_K)):
        a = tl.load(a_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - step), other=0.0)
        b = tl.load(b_ptrs, mask=(k[:, None] < K - step) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def masked_along_the_other_size(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=(m[:, None] < N) & (k[None, :] < K - start), other=0.0)
        b = tl.load(b_ptrs, mask=(k[:, None] < K - start) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def k_in_every_step(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _start in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        b = tl.load(b_ptrs, mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def no_mask_along_m(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=k[None, :] < K - start, other=0.0)
        b = tl.load(b_ptrs, mask=(k[:, None] < K - start) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def one_too_many(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=(m[:, None] < M) & (k[None, :] <= K - start), other=0.0)
        b = tl.load(b_ptrs, mask=(k[:, None] < K - start) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def no_mask(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _start in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs)
        b = tl.load(b_ptrs)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def product_by_offsets(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Right: a row of tiles after the other in a grid of one dimension, offsets counted anew in each step."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    column = (tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tl.cdiv(K, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = k < K
        a = tl.load(a_ptr + row * a_row_stride + k[None, :] * a_column_stride, mask=(row < M) & inside[None, :], other=0.0)
        b = tl.load(b_ptr + k[:, None] * b_row_stride + column * b_column_stride, mask=inside[:, None] & (column < N), other=0.0)
        total += tl.dot(a, b)
    tl.store(c_ptr + row * N + column, total.to(c_ptr.dtype.element_ty), mask=(row < M) & (column < N))


@triton.jit
def product_down_columns(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Right: columns of tiles come first in the grid, rows past the end wrap around, and only the store is masked for them."""
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + (m % M)[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + (n % N)[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    left = K
    while left > 0:
        a = tl.load(a_ptrs, mask=k[None, :] < left, other=0.0)
        b = tl.load(b_ptrs, mask=k[:, None] < left, other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
        left -= BLOCK_K
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m[:, None] < M) & (n[None, :] < N))


def blocks(m=32, n=32, k=32):
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}


def new(a, b, dtype=None):
    return torch.empty((a.shape[0], b.shape[1]), dtype=dtype or a.dtype, device=a.device)


def product(mistake="", size=None, grid=lambda M, N, cdiv: (cdiv(M), cdiv(N)), output=new, strides=None):
    size = size or blocks()

    def function(a, b):
        (M, K), N = a.shape, b.shape[1]
        c = output(a, b)
        programs = grid(M, N, lambda length: triton.cdiv(length, 32))
        given = strides(a, b) if strides else (*a.stride(), *b.stride())
        product_kernel[programs](a, b, c, M, N, K, *given, MISTAKE=mistake, **size)
        return c

    return function


def masked(kernel, tile=32):
    def function(a, b):
        (M, K), N = a.shape, b.shape[1]
        c = new(a, b)
        kernel[(triton.cdiv(M, tile), triton.cdiv(N, tile))](a, b, c, M, N, K, *a.stride(), *b.stride(), **blocks())
        return c

    return function


def by_offsets(a, b):
    (M, K), N = a.shape, b.shape[1]
    c = new(a, b)
    grid = (triton.cdiv(M, 16) * triton.cdiv(N, 64),)
    product_by_offsets[grid](a, b, c, M, N, K, *a.stride(), *b.stride(), **blocks(16, 64, 64))
    return c


def down_columns(a, b):
    (M, K), N = a.shape, b.shape[1]
    c = new(a, b)
    grid = (triton.cdiv(N, 32), triton.cdiv(M, 32))
    product_down_columns[grid](a, b, c, M, N, K, *a.stride(), *b.stride(), **blocks())
    return c


def of_copies(a, b):
    return product()(a.contiguous(), b)


def of_a_copy_of_b(a, b):
    return product()(a, b.contiguous())


def not_contiguous(a, b):
    """The product of the transposes, transposed back."""
    return product()(b.T, a.T).T


def twice(a, b):
    product()(a, b)
    return product()(a, b)


@triton.jit
def standing_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    start = 0
    while start < K:
        a = tl.load(a_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=0.0)
        b = tl.load(b_ptrs, mask=(k[:, None] < K - start) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(a, b, accumulator)
        a_ptrs += BLOCK_K * a_column_stride
        b_ptrs += BLOCK_K * b_row_stride
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def element_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m, n = tl.program_id(0), tl.program_id(1)
    total = 0.0
    for k in range(0, K):
        a = tl.load(a_ptr + m * a_row_stride + k * a_column_stride).to(tl.float32)
        total += a * tl.load(b_ptr + k * b_row_stride + n * b_column_stride).to(tl.float32)
    tl.store(c_ptr + m * N + n, total)


# ---- persistent_matmul ---------------------------------------------------------------------------------------------------


@triton.jit
def walking_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    MISTAKE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    first = tl.program_id(0)
    last = tiles_m * tiles_n
    step = tl.num_programs(0)
    if MISTAKE == "shares":
        share = tl.cdiv(tiles_m * tiles_n, tl.num_programs(0))
        first = tl.program_id(0) * share
        last = tl.minimum(first + share, last)
        step = 1
    if MISTAKE == "shares rounded down":
        share = tiles_m * tiles_n // tl.num_programs(0)
        first = tl.program_id(0) * share
        last = first + share
        step = 1
    if MISTAKE == "one tile a program":
        last = tl.minimum(last, first + 1)
    if MISTAKE == "a step of 1":
        step = 1
    if MISTAKE == "tiles rounded down":
        last = (M // BLOCK_M) * (N // BLOCK_N)
    if MISTAKE == "last tile missing":
        last = last - 1
    k = tl.arange(0, BLOCK_K)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    a_ptrs = a_ptr + (tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M))[:, None] * a_row_stride + k[None, :]
    for tile in range(first, last, step):
        tile_m = tile // tiles_n
        tile_n = tile % tiles_n
        if MISTAKE == "tiles_m for tiles_n":
            tile_m = tile // tiles_m
            tile_n = tile % tiles_m
        if MISTAKE == "tile indices swapped":
            tile_m = tile % tiles_n
            tile_n = tile // tiles_n
        if MISTAKE == "down columns":
            tile_m = tile % tiles_m
            tile_n = tile // tiles_m
        m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        if MISTAKE != "a's pointers once":
            a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
        b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
        if MISTAKE == "sum in a's type":
            accumulator = tl.zeros((BLOCK_M, BLOCK_N), a_ptr.dtype.element_ty)
        elif MISTAKE != "accumulator once":
            accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, BLOCK_K):
            a_mask = (m[:, None] < M) & (k[None, :] < K - start)
            a = tl.load(a_ptrs, mask=a_mask, other=0.0)
            b = tl.load(b_ptrs, mask=(k[:, None] < K - start) & (n[None, :] < N), other=0.0)
            accumulator = (accumulator + tl.dot(a, b)).to(accumulator.dtype)
            a_ptrs += BLOCK_K * a_column_stride
            if MISTAKE == "b moves on by BLOCK_K":
                b_ptrs += BLOCK_K
            elif MISTAKE != "b's pointers stay":
                b_ptrs += BLOCK_K * b_row_stride
        inside = (m < M)[:, None] & (n < N)[None, :]
        if MISTAKE == "atomics":
            tl.atomic_add(c_ptr + m[:, None] * N + n[None, :], accumulator.to(c_ptr.dtype.element_ty), mask=inside)
        else:
            tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=inside)


@triton.jit
def last_tile_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row_stride, a_column_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(N, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), tl.cdiv(M, BLOCK_M) * tiles_n, tl.num_programs(0)):
        m = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, BLOCK_K):
            a_ptrs = a_ptr + m[:, None] * a_row_stride + (start + k)[None, :] * a_column_stride
            b_ptrs = b_ptr + (start + k)[:, None] * b_row_stride + n[None, :] * b_column_stride
            a = tl.load(a_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=0.0)
            b = tl.load(b_ptrs, mask=(k[:, None] < K - start) & (n[None, :] < N), other=0.0)
            accumulator = tl.dot(a, b, accumulator)
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m[:, None] < M) & (n[None, :] < N))


def last_tile_only(a, b, programs):
    (M, K), N = a.shape, b.shape[1]
    c = new(a, b)
    tiles = triton.cdiv(M, 32) * triton.cdiv(N, 32)
    last_tile_kernel[(min(programs, tiles),)](a, b, c, M, N, K, *a.stride(), *b.stride(), **blocks())
    return c


def as_asked(tiles, programs):
    return programs


def walking(mistake="", launched=as_asked, output=new, size=None):
    size = size or blocks()

    def function(a, b, programs):
        (M, K), N = a.shape, b.shape[1]
        c = output(a, b)
        tiles = triton.cdiv(M, size["BLOCK_M"]) * triton.cdiv(N, size["BLOCK_N"])
        grid = (launched(tiles, programs),)
        walking_kernel[grid](a, b, c, M, N, K, *a.stride(), *b.stride(), MISTAKE=mistake, **size)
        return c

    return function


def without_programs(answer):
    return lambda a, b, programs: answer(a, b)


# ---- tile_of -------------------------------------------------------------------------------------------------------------


def grouped(program, tiles_m, tiles_n, group):
    number = program // (group * tiles_n)
    height = min(tiles_m - number * group, group)
    within = program % (group * tiles_n)
    return number * group + within % height, within // height


def by_walking(program, tiles_m, tiles_n, group):
    order = [
        (tile_m, tile_n)
        for first in range(0, tiles_m, group)
        for tile_n in range(tiles_n)
        for tile_m in range(first, min(first + group, tiles_m))
    ]
    return list(order[program])


def not_clamped(program, tiles_m, tiles_n, group):
    within = program % (group * tiles_n)
    return program // (group * tiles_n) * group + within % group, within // group


def along_rows(program, tiles_m, tiles_n, group):
    within = program % (group * tiles_n)
    return program // (group * tiles_n) * group + within // tiles_n, within % tiles_n


def groups_of_tiles_m(program, tiles_m, tiles_n, group):
    number = program // (group * tiles_m)
    height = max(min(tiles_m - number * group, group), 1)
    within = program % (group * tiles_m)
    return number * group + within % height, within // height


def group_not_multiplied(program, tiles_m, tiles_n, group):
    number = program // (group * tiles_n)
    height = min(tiles_m - number * group, group)
    within = program % (group * tiles_n)
    return number + within % height, within // height


def row_in_its_group(program, tiles_m, tiles_n, group):
    return grouped(program, tiles_m, tiles_n, group)[0] % group, grouped(program, tiles_m, tiles_n, group)[1]


def row_of_the_program(program, tiles_m, tiles_n, group):
    number = program // (group * tiles_n)
    height = min(tiles_m - number * group, group)
    return number * group + program % height, program % (group * tiles_n) // height


def column_of_the_program(program, tiles_m, tiles_n, group):
    number = program // (group * tiles_n)
    height = min(tiles_m - number * group, group)
    return number * group + program % (group * tiles_n) % height, program // height


def clamped_by_tiles_n(program, tiles_m, tiles_n, group):
    number = program // (group * tiles_n)
    height = min(tiles_n - number * group, group)
    within = program % (group * tiles_n)
    return number * group + within % height, within // height


def traffic(M, N, K, block_m, block_n):
    programs = (M // block_m) * (N // block_n)
    return 2 * programs * (block_m * K + K * block_n + block_m * block_n)


# ---- The banks --------------------------------------------------------------------------------------------------------------

WRONG = {
    "tile_of": [
        (not_clamped, r"(?s)tile_of\(11, 5, 3, 3\).*last group may be lower"),
        (lambda p, m, n, g: (p // n, p % n), r"(?s)tile_of\(1, 4, 3, 2\).*Expected \(1, 0\), got \(0, 1\).*as without groups"),
        (lambda p, m, n, g: (p % m, p // m), "goes down all tile rows"),
        (along_rows, "as without groups"),
        (lambda *case: grouped(*case)[::-1], "other way round"),
        (lambda p, m, n, g: grouped(p, n, m, g)[::-1], "groups are of tile columns"),
        (lambda p, m, n, g: grouped(p, n, m, g), "groups are of tile columns, and the pair"),
        (groups_of_tiles_m, "tiles_m was taken for tiles_n"),
        (group_not_multiplied, "its number times group"),
        (row_in_its_group, "add the group's first row"),
        (row_of_the_program, "Row within the group"),
        (column_of_the_program, "Column within the group"),
        (clamped_by_tiles_n, "(?s)Hint: Draw the 12 tiles|ZeroDivisionError"),
        (lambda *case: grouped(*case)[0], "returned a int"),
        (lambda *case: 1 / 0, "ZeroDivisionError"),
    ],
    "matmul": [
        (masked(no_mask_along_k), r"(?s)\(3, 5\) @ \(5, 4\) .*loads outside of a_ptr: element 15.*says nothing of K"),
        (masked(no_mask_along_k_in_b), r"(?s)loads outside of b_ptr: element 20.*says nothing of K.*k\[:, None\] < K - start"),
        (masked(k_in_every_step), r"(?s)\(40, 70\) @ \(70, 100\) .*loads outside of b_ptr.*compares with K in every step"),
        (masked(steps_for_elements), r"(?s)loads outside of b_ptr.*counts steps.*K - step \* BLOCK_K"),
        (masked(masked_along_the_other_size), r"(?s)loads outside of a_ptr: element 15.*both directions.*m\[:, None\] < M and"),
        (masked(no_mask_along_m), r"(?s)loads outside of a_ptr.*looks at K only.*m\[:, None\] < M"),
        (masked(one_too_many), "(?s)loads outside of a_ptr: element 15.*just past the end"),
        (masked(no_mask), r"(?s)loads outside of a_ptr.*no mask.*\(m\[:, None\] < M\) & \(k\[None, :\] < K - start\)"),
        (product("sum in float16"), "(?s)in float32.*three digits"),
        (product("sum in a's type"), r"(?s)\(2, 2752\) @ \(2752, 3\) in float16.*too few digits"),
        (product("operands in float16"), "(?s)in float32, large values.*do not fit in float16"),
        (product(strides=lambda a, b: (*b.stride(), *a.stride())), r"(?s)\(3, 5\) @ \(5, 4\) .*(address|stride)"),
        (product(strides=lambda a, b: (*a.stride()[::-1], *b.stride())), r"(?s)\(3, 5\) @ \(5, 4\) .*a_row_stride"),
        (product(strides=lambda a, b: (*a.stride(), *a.stride())), r"(?s)\(3, 5\) @ \(5, 4\) .*b_row_stride"),
        (product(strides=lambda a, b: (a.shape[1], 1, *b.stride())), "a transposed, b.*a is read as if it were contiguous"),
        (product(strides=lambda a, b: (*a.stride(), b.shape[1], 1)), "a contiguous, b.*b is read as if it were contiguous"),
        (product(strides=lambda a, b: (a.stride(0), 1, *b.stride())), "a transposed, b.*column stride is left out"),
        (product("b read transposed"), r"(?s)\(3, 5\) @ \(5, 4\) .*two strides are exchanged.*\(k, n\)"),
        (product("a's strides for b"), r"(?s)\(3, 5\) @ \(5, 4\) .*b_row_stride"),
        (product("last step only"), r"(?s)\(40, 70\) @ \(70, 100\) .*Only the last step"),
        (product("one step"), r"(?s)\(40, 70\) @ \(70, 100\) .*Only the first step"),
        (product("whole steps only"), r"(?s)\(3, 5\) @ \(5, 4\) .*Zeros were stored"),
        (product("not added"), r"(?s)\(3, 5\) @ \(5, 4\) .*Zeros were stored: is every step added"),
        (product("pointers stay"), r"(?s)\(40, 70\) @ \(70, 100\) .*pointers of a and b stay"),
        (product("a's pointers stay"), "pointers of a stay"),
        (product("b's pointers stay"), "pointers of b stay"),
        (product("b moves on by BLOCK_K"), r"(?s)\(40, 70\) @ \(70, 100\) .*later ones read the wrong part of b"),
        (product("b moves on by columns"), "later ones read the wrong part of b"),
        (product("a moves on by BLOCK_K"), "(?s)a transposed, b contiguous.*later ones read the wrong part of a"),
        (product("a moves on by rows"), r"(?s)\(40, 70\) @ \(70, 100\) .*a_row_stride"),
        (product("stored transposed"), "stored transposed"),
        (product("no mask on store"), r"(?s)stores outside of c_ptr.*mask the store, \(m < M\)"),
        (product("half a mask on store"), r"(?s)stores outside of c_ptr.*one dimension"),
        (product("tile indices swapped"), r"(?s)\(40, 70\) @ \(70, 100\) .*never stored.*which axis of the grid"),
        (product("first tile column only"), r"(?s)\(40, 70\) @ \(70, 100\) .*never stored.*tl.program_id"),
        (product("half a tile apart"), r"(?s)\(40, 70\) @ \(70, 100\) .*never stored"),
        (product(grid=lambda M, N, cdiv: (M // 32, N // 32)), "grid has no programs"),
        (product(grid=lambda M, N, cdiv: (cdiv(M), max(N // 32, 1))), r"(?s)index \(0, 96\).*rounded up"),
        (product(grid=lambda M, N, cdiv: (cdiv(M), cdiv(N), 2)), "Several programs do the same tile"),
        (product("stores in the loop"), "(?s)stored more than once.*after the loop along K"),
        (product(output=lambda a, b: new(a, b, torch.float32)), "(?s)in float16.*wrong type: float32"),
        (product(output=lambda a, b: new(b.T, a.T)), r"has shape \(4, 3\), and \(3, 4\)"),
        (masked(standing_kernel), r"(?s)\(3, 5\) @ \(5, 4\) .*nothing in it changes start"),
        (masked(element_kernel, tile=1), r"(?s)\(40, 70\) @ \(70, 100\) .*not one element"),
        (of_copies, "(?s)a transposed, b contiguous.*does not read a itself.*copied"),
        (of_a_copy_of_b, "(?s)a contiguous, b transposed.*does not read b itself.*copied"),
        (not_contiguous, r"(?s)\(3, 5\) @ \(5, 4\) .*not contiguous"),
        (twice, "2 kernels were launched"),
        (lambda a, b: new(a, b), "never written"),
        (lambda a, b: a @ b, "No kernel was launched"),
    ],
    "matmul_traffic": [
        (lambda M, N, K, bm, bn: 2 * (M * K + K * N + M * N), r"(?s)matmul_traffic\(64, .*Each matrix is counted once"),
        (lambda M, N, K, bm, bn: N // bn * M * K + M // bm * K * N + M * N, "number of elements"),
        (lambda *case: 2 * traffic(*case), "not of 4"),
        (lambda M, N, K, bm, bn: 2 * (N // bn * M * K + M // bm * K * N), "output is written as well"),
        (lambda M, N, K, bm, bn: 2 * (N // bn * M * K + M // bm * K * N + 2 * M * N), "output is written once"),
        (lambda M, N, K, bm, bn: 2 * (N // bn * M * K + M * N), "columns of b are read"),
        (lambda M, N, K, bm, bn: 2 * (M // bm * K * N + M * N), "rows of a are read"),
        (lambda M, N, K, bm, bn: 2 * (M // bm * M * K + N // bn * K * N + M * N), "two are exchanged"),
        (lambda M, N, K, bm, bn: N // bn * M * K + M // bm * K * N + 2 * M * N, "Hint: One program reads block_m rows"),
        (lambda M, N, K, bm, bn: 2 * (M // bm * (N // bn) * (M * K + K * N) + M * N), "block_m \\* K elements, not all of a"),
        (lambda M, N, K, bm, bn: 2 * (bm * K + K * bn + bm * bn), "what one program moves"),
        (lambda M, N, K, bm, bn: 2 * (2 * M * N * K + M * N), "Without tiles"),
        (lambda M, N, K, bm, bn: 2 * M * N * K, "Those are operations"),
        (lambda M, N, K, bm, bn: (M, N), "returned a tuple"),
        (lambda M, N, K, bm, bn: 10**400, "an integer of more than 300 digits"),
    ],
    "persistent_matmul": [
        (walking(launched=lambda tiles, programs: tiles), r"(?s)by 3 programs .*8 programs were launched, and 3 were asked for"),
        (without_programs(product()), "8 programs were launched, and 3 were asked for"),
        (without_programs(product(size=blocks(128, 128, 32), grid=lambda M, N, cdiv: (-(-M // 128), -(-N // 128)))),
         r"(?s)\(260, 16\) .*9 programs were launched, and 2 were asked for"),
        (walking(launched=lambda tiles, programs: 1), r"(?s)by 3 programs .*only 1 ran"),
        (walking("accumulator once"), r"(?s)\(40, 70\) @ \(70, 100\) by 3 .*start anew for every tile"),
        (walking("a's pointers once"), r"(?s)\(40, 70\) @ \(70, 100\) by 3 .*start anew for every tile"),
        (walking("one tile a program"), r"(?s)by 3 .*never stored.*Every program does one tile and ends"),
        (last_tile_only, "(?s)by 3 .*never stored.*The store stands behind the loop over the tiles"),
        (walking("a step of 1"), "(?s)by 3 .*Several programs do the same tile"),
        (walking("tiles_m for tiles_n"), r"(?s)by 3 .*never stored.*tile // tiles_n down"),
        (walking("tile indices swapped"), r"(?s)by 3 .*never stored.*tile // tiles_n down"),
        (walking("shares rounded down"), "(?s)by 3 .*never stored.*belong to no program"),
        (walking("tiles rounded down"), r"(?s)\(3, 5\) @ \(5, 4\) .*never stored"),
        (walking("last tile missing"), r"(?s)never stored"),
        (walking(size=blocks(32, 32, 30)), "power of 2|power of two"),
        (without_programs(masked(no_mask_along_k)), "(?s)loads outside of a_ptr.*says nothing of K"),
        (walking("b's pointers stay"), "pointers of b stay"),
        (walking("b moves on by BLOCK_K"), "later ones read the wrong part of b"),
        (walking("sum in a's type"), r"(?s)\(2, 2752\) @ \(2752, 3\) by 2 programs in float16.*too few digits"),
        (walking("atomics", output=lambda a, b: torch.zeros_like(new(a, b))), "atomic updates"),
        (walking(output=lambda a, b: new(a, b, torch.float32)), "(?s)in float16.*wrong type: float32"),
        (lambda a, b, programs: walking()(a.contiguous(), b.contiguous(), programs), "(?s)does not read b itself"),
        (lambda a, b, programs: walking()(b.T, a.T, programs).T, "not contiguous"),
        (lambda a, b, programs: a @ b, "No kernel was launched"),
    ],
}  # fmt: skip

RIGHT = {
    "tile_of": [grouped, by_walking],
    "matmul": [product(), product(size=blocks(16, 16, 64), grid=lambda M, N, cdiv: (-(-M // 16), -(-N // 16))), by_offsets,
               down_columns],
    "matmul_traffic": [traffic, lambda M, N, K, bm, bn: 2.0 * M * N * (K / bn + K / bm + 1)],
    "persistent_matmul": [walking(), walking("shares"), walking("down columns", launched=min), walking(size=blocks(16, 64, 64))],
}  # fmt: skip
