"""Answers to the exercises of lesson 07: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

BLOCKS = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}

# ---- linear: the plain mistakes, each switched on by its name ----------------------------------------------------------------


@triton.jit
def layer_kernel(
    x_ptr, weight_ptr, bias_ptr, output_ptr, M, N, K,
    MISTAKE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if MISTAKE == "bias of the tile's start":
        bias = tl.load(bias_ptr + tl.program_id(1) * BLOCK_N + 0 * n).to(tl.float32)
    if MISTAKE == "bias of the first tile":
        bias = tl.load(bias_ptr + tl.arange(0, BLOCK_N), mask=n < N).to(tl.float32)
    if MISTAKE == "bias of the first column":
        bias = tl.load(bias_ptr + 0 * n).to(tl.float32)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if MISTAKE == "starts from bias":
        accumulator += bias[None, :]
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        weight = tl.load(weight_ptr + n[None, :] * K + k[:, None], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(x, weight, accumulator)
        if MISTAKE == "bias in the loop":
            accumulator += bias[None, :]
    if MISTAKE == "relu first":
        z = tl.maximum(accumulator, 0.0) + bias[None, :]
    elif MISTAKE == "bias left out":
        z = accumulator
    elif MISTAKE == "bias subtracted":
        z = accumulator - bias[None, :]
    elif MISTAKE == "bias multiplied":
        z = accumulator * bias[None, :]
    elif MISTAKE == "bias twice":
        z = accumulator + bias[None, :] + bias[None, :]
    elif MISTAKE == "rounded before bias":
        z = (accumulator.to(output_ptr.dtype.element_ty) + bias.to(output_ptr.dtype.element_ty)[None, :]).to(tl.float32)
    elif MISTAKE == "bias in the loop" or MISTAKE == "starts from bias":
        z = accumulator
    elif MISTAKE == "relu of bias":
        z = accumulator + tl.maximum(bias, 0.0)[None, :]
    elif MISTAKE == "bare product":
        z = accumulator
    else:
        z = accumulator + bias[None, :]
    if MISTAKE == "smaller":
        z = tl.minimum(z, 0.0)
    elif MISTAKE == "magnitude":
        z = tl.abs(z)
    elif MISTAKE == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    elif MISTAKE == "below 1":
        z = tl.where(z < 1, 0.0, z)
    elif MISTAKE == "in where":
        z = tl.where(z > 0, z, 0.0)
    elif MISTAKE != "no relu" and MISTAKE != "relu first" and MISTAKE != "bare product" and MISTAKE != "relu of bias":
        z = tl.maximum(z, 0.0)
    if MISTAKE == "stored transposed":
        tl.store(output_ptr + m[:, None] + n[None, :] * M, z, mask=(m < M)[:, None] & (n < N)[None, :])
    elif MISTAKE == "positive ones stored":
        tl.store(output_ptr + m[:, None] * N + n[None, :], z, mask=(m < M)[:, None] & (n < N)[None, :] & (z > 0))
    else:
        tl.store(output_ptr + m[:, None] * N + n[None, :], z, mask=(m < M)[:, None] & (n < N)[None, :])


# Mistakes in the masks and addresses of what follows the loop, which a check finds in the text of a kernel.


@triton.jit
def product_tile(x_ptr, weight_ptr, m, n, M, N, K, BLOCK_K: tl.constexpr):
    accumulator = tl.zeros((m.shape[0], n.shape[0]), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        weight = tl.load(weight_ptr + n[None, :] * K + k[:, None], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(x, weight, accumulator)
    return accumulator


@triton.jit
def no_mask_for_bias(
    x_ptr, weight_ptr, bias_ptr, output_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    z = product_tile(x_ptr, weight_ptr, m, n, M, N, K, BLOCK_K)
    z += tl.load(bias_ptr + n)[None, :].to(tl.float32)
    tl.store(output_ptr + m[:, None] * N + n[None, :], tl.maximum(z, 0.0), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def bias_of_rows(
    x_ptr, weight_ptr, bias_ptr, output_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    z = product_tile(x_ptr, weight_ptr, m, n, M, N, K, BLOCK_K)
    z += tl.load(bias_ptr + m, mask=m < M)[:, None].to(tl.float32)
    tl.store(output_ptr + m[:, None] * N + n[None, :], tl.maximum(z, 0.0), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def no_mask_on_store(
    x_ptr, weight_ptr, bias_ptr, output_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    z = product_tile(x_ptr, weight_ptr, m, n, M, N, K, BLOCK_K)
    z += tl.load(bias_ptr + n, mask=n < N)[None, :].to(tl.float32)
    tl.store(output_ptr + m[:, None] * N + n[None, :], tl.maximum(z, 0.0))


@triton.jit
def nothing_stored(
    x_ptr, weight_ptr, bias_ptr, output_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    z = product_tile(x_ptr, weight_ptr, m, n, M, N, K, BLOCK_K)
    z += tl.load(bias_ptr + n, mask=n < N)[None, :].to(tl.float32)


@triton.jit
def begun(x_ptr, weight_ptr, bias_ptr, output_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """A stub that comes with its loads: all that is left to write is what the `pass` stands for."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
    x.to(tl.float32)
    pass  # your code


@triton.jit
def layer_in_flat_grid(
    x_ptr, weight_ptr, bias_ptr, output_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Right: a grid of one dimension, column by column, and bias as a row of a matrix."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    m = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    z = product_tile(x_ptr, weight_ptr, m, n, M, N, K, BLOCK_K)
    column = n[None, :]
    z = z + tl.load(bias_ptr + column, mask=column < N, other=0.0).to(tl.float32)
    result = tl.where(z < 0, 0.0, z).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + m[:, None] * N + column, result, mask=(m[:, None] < M) & (column < N))


def new(x, weight, dtype=None):
    return torch.empty((x.shape[0], weight.shape[0]), dtype=dtype or x.dtype, device=x.device)


def tiles(M, N):
    return triton.cdiv(M, 32), triton.cdiv(N, 32)


def layer(mistake="", grid=tiles, output=new):
    def function(x, weight, bias):
        (M, K), N = x.shape, weight.shape[0]
        result = output(x, weight)
        layer_kernel[grid(M, N)](x, weight, bias, result, M, N, K, MISTAKE=mistake, **BLOCKS)
        return result

    return function


def by(kernel, grid=tiles, **blocks):
    def function(x, weight, bias):
        (M, K), N = x.shape, weight.shape[0]
        result = new(x, weight)
        kernel[grid(M, N)](x, weight, bias, result, M, N, K, **{**BLOCKS, **blocks})
        return result

    return function


def relu_by_pytorch(x, weight, bias):
    return layer("no relu")(x, weight, bias).relu()


def relu_in_a_second_kernel(x, weight, bias):
    z = layer("no relu")(x, weight, bias)
    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return layer()(z, identity, torch.zeros_like(bias))


def bias_by_pytorch(x, weight, bias):
    """The bias as one more feature of x, which PyTorch has appended."""
    ones = torch.ones((x.shape[0], 1), dtype=x.dtype, device=x.device)
    return layer("bias left out")(torch.cat([x, ones], 1), torch.cat([weight, bias[:, None]], 1), bias)


# ---- split_linear ----------------------------------------------------------------------------------------------------------


@triton.jit
def share_kernel(
    x_ptr, weight_ptr, bias_ptr, partial_ptr, M, N, K, splits,
    MISTAKE: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(2)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    share = tl.cdiv(tl.cdiv(K, BLOCK_K), splits) * BLOCK_K
    if MISTAKE == "rounded down":
        share = K // splits
    if MISTAKE == "steps rounded down":
        share = K // BLOCK_K // splits * BLOCK_K
    if MISTAKE == "overlap" or MISTAKE == "cut":
        share = tl.cdiv(K, splits)
    first = split * share
    last = tl.minimum(first + share, K)
    if MISTAKE == "all of K":
        first = 0
        last = K
    end = last
    if MISTAKE == "one step":
        last = tl.minimum(last, first + BLOCK_K)
    if MISTAKE == "overlap":
        end = K
    if MISTAKE == "empty shares end" and first >= K:
        return
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < end), other=0.0)
        weight = tl.load(weight_ptr + n[None, :] * K + k[:, None], mask=(k[:, None] < end) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(x, weight, accumulator)
    bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if BIAS == "every share":
        accumulator += bias[None, :]
    if BIAS == "first share" and split == 0:
        accumulator += bias[None, :]
    if BIAS == "last share":
        accumulator += tl.where(split == splits - 1, bias, 0.0)[None, :]
    if BIAS == "an equal part":
        accumulator += bias[None, :] / splits
    inside = (m < M)[:, None] & (n < N)[None, :]
    if MISTAKE == "one place":
        tl.store(partial_ptr + m[:, None] * N + n[None, :], accumulator, mask=inside)
    elif MISTAKE == "atomics":
        tl.atomic_add(partial_ptr + m[:, None] * N + n[None, :], accumulator, mask=inside)
    else:
        tl.store(partial_ptr + split * M * N + m[:, None] * N + n[None, :], accumulator, mask=inside)


def up(partial, x, bias):
    return partial.sum(0).to(x.dtype)


def split(mistake="", bias_in="first share", second=up, dtype=torch.float32, partials=torch.empty):
    def function(x, weight, bias, splits):
        (M, K), N = x.shape, weight.shape[0]
        partial = partials((splits, M, N), dtype=dtype, device=x.device)
        grid = (*tiles(M, N), splits)
        share_kernel[grid](x, weight, bias, partial, M, N, K, splits, MISTAKE=mistake, BIAS=bias_in, **BLOCKS)
        return second(partial, x, bias)

    return function


def then_bias(partial, x, bias):
    return (partial.sum(0) + bias).to(x.dtype)


def bias_after_rounding(partial, x, bias):
    return partial.sum(0).to(x.dtype) + bias


def not_split(x, weight, bias, splits):
    (M, K), N = x.shape, weight.shape[0]
    partial = torch.empty((1, M, N), device=x.device)
    options = {"MISTAKE": "", "BIAS": "first share", **BLOCKS}
    share_kernel[(*tiles(M, N), 1)](x, weight, bias, partial, M, N, K, 1, **options)
    return partial.sum(0).to(x.dtype)


# ---- activation_gradient ---------------------------------------------------------------------------------------------------


@triton.jit
def gradient_kernel(
    grad_ptr, output_ptr, dz_ptr, partial_ptr, M, N, MISTAKE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < M)[:, None] & (n < N)[None, :]
    offsets = m[:, None] * N + n[None, :]
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0)
    output = tl.load(output_ptr + offsets, mask=mask, other=0.0)
    if MISTAKE == "masked lanes hold anything":
        grad = tl.load(grad_ptr + offsets, mask=mask)
        output = tl.load(output_ptr + offsets, mask=mask)
    if MISTAKE == "padding counts":
        grad = tl.load(grad_ptr + offsets, mask=mask, other=1.0)
        output = tl.load(output_ptr + offsets, mask=mask, other=1.0)
    if MISTAKE != "sum in grad's type":
        grad = grad.to(tl.float32)
    if MISTAKE == "mask by grad":
        dz = tl.where(grad > 0, grad, 0.0)
    elif MISTAKE == ">=":
        dz = tl.where(output >= 0, grad, 0.0)
    elif MISTAKE == "upside down":
        dz = tl.where(output > 0, 0.0, grad)
    elif MISTAKE == "times output":
        dz = grad * output.to(tl.float32)
    elif MISTAKE == "exchanged":
        dz = tl.where(grad > 0, output.to(tl.float32), 0.0)
    elif MISTAKE == "ones":
        dz = tl.where(output > 0, 1.0, 0.0 * grad)
    else:
        dz = tl.where(output > 0, grad, 0.0)
    if MISTAKE == "sum in grad's type":
        dz = dz.to(grad_ptr.dtype.element_ty)
    if MISTAKE == "dz not masked":
        tl.store(dz_ptr + offsets, dz, mask=(m < M)[:, None])
    elif MISTAKE != "dz not stored":
        tl.store(dz_ptr + offsets, dz, mask=mask)
    if MISTAKE == "read back":
        dz = tl.load(dz_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if MISTAKE == "sums of grad":
        sums = tl.sum(grad, axis=0)
    elif MISTAKE == "sums of output":
        sums = tl.sum(output.to(tl.float32), axis=0)
    elif MISTAKE == "sums of rows":
        sums = tl.sum(dz, axis=1)
    else:
        sums = tl.sum(dz, axis=0)
    if MISTAKE == "atomics":
        tl.atomic_add(partial_ptr + n, sums, mask=n < N)
    elif MISTAKE == "one row":
        tl.store(partial_ptr + n, sums, mask=n < N)
    elif MISTAKE == "sums not masked":
        tl.store(partial_ptr + tl.program_id(0) * N + n, sums)
    elif MISTAKE != "no sums":
        tl.store(partial_ptr + tl.program_id(0) * N + n, sums, mask=n < N)


@triton.jit
def gradient_of_columns(grad_ptr, output_ptr, dz_ptr, dbias_ptr, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Right: a program walks down all rows of its columns, and its sums are dbias."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, M, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)[:, None]
        inside = (m < M) & (n < N)
        grad = tl.load(grad_ptr + m * N + n, mask=inside, other=0.0)
        positive = tl.load(output_ptr + m * N + n, mask=inside, other=0.0) > 0
        dz = grad.to(tl.float32) * positive.to(tl.float32)
        tl.store(dz_ptr + m * N + n, dz, mask=inside)
        total += dz
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(dbias_ptr + column, tl.sum(total, axis=0), mask=column < N)


def add_up(partial):
    return partial.sum(0)


def gradient(mistake="", second=add_up, dtype=torch.float32, grid=tiles, partials=torch.empty, dz_like=torch.empty_like):
    def function(grad, output):
        M, N = grad.shape
        dz = dz_like(grad)
        partial = partials((triton.cdiv(M, 32), N), dtype=dtype or grad.dtype, device=grad.device)
        gradient_kernel[grid(M, N)](grad, output, dz, partial, M, N, MISTAKE=mistake, BLOCK_M=32, BLOCK_N=32)
        return dz, second(partial)

    return function


def in_columns(grad, output):
    M, N = grad.shape
    dz, dbias = torch.empty_like(grad), torch.empty(N, device=grad.device)
    gradient_of_columns[(triton.cdiv(N, 16),)](grad, output, dz, dbias, M, N, BLOCK_M=64, BLOCK_N=16)
    return dz, dbias


def small_tiles(grad, output):
    M, N = grad.shape
    dz = torch.empty_like(grad)
    partial = torch.zeros((triton.cdiv(M, 16), N), device=grad.device)
    grid = (triton.cdiv(M, 16), triton.cdiv(N, 64))
    gradient_kernel[grid](grad, output, dz, partial, M, N, MISTAKE="", BLOCK_M=16, BLOCK_N=64)
    return [dz, torch.sum(partial, dim=0)]


def dz_by_pytorch(grad, output):
    return torch.where(output > 0, grad, 0.0).to(grad.dtype), gradient()(grad, output)[1]


def sums_by_pytorch(grad, output):
    dz, _ = gradient("no sums")(grad, output)
    return dz, dz.float().sum(0)


def masked_by_pytorch(grad, output):
    return gradient()(grad * (output > 0), torch.ones_like(output))


def in_two_launches(grad, output):
    dz, _ = gradient()(grad, output)
    return dz, gradient()(grad, output)[1]


# ---- The banks --------------------------------------------------------------------------------------------------------------

WRONG = {
    "linear": [
        (layer("relu first"), r"(?s)x \(3, 5\), weight \(4, 5\) in float32.*relu comes after bias"),
        (layer("no relu"), r"(?s)x \(3, 5\).*relu was left out"),
        (layer("positive ones stored"), r"(?s)x \(3, 5\).*never stored.*Where the result is 0 nothing was stored"),
        (layer("bare product"), r"(?s)x \(3, 5\).*bare product"),
        (layer("bias left out"), "bias was left out"),
        (layer("bias subtracted"), "bias was subtracted"),
        (layer("bias multiplied"), "bias was multiplied"),
        (layer("bias twice"), "bias is added twice"),
        (layer("bias in the loop"), r"(?s)x \(40, 70\), weight \(100, 70\) .*every step along K"),
        (layer("bias of the tile's start"), "(?s)(bias of its first one|loads outside)"),
        (layer("bias of the first column"), r"(?s)x \(3, 5\).*bias of its first one"),
        (layer("bias of the first tile"), r"(?s)x \(40, 70\), weight \(100, 70\) .*bias of the first tile"),
        (by(bias_of_rows), r"(?s)x \(3, 5\).*indexed with the row"),
        (by(no_mask_for_bias), r"(?s)loads outside of bias_ptr: element 4.*mask=n < N"),
        (by(no_mask_on_store), r"(?s)stores outside of output_ptr.*mask the store"),
        (by(nothing_stored), "(?s)never stored.*The kernel stores nothing"),
        (layer("rounded before bias"), r"(?s)in float16.*nearly cancel.*rounded to the input's type"),
        (layer("relu of bias"), "relu is of the sum"),
        (layer("smaller"), "tl.maximum, not tl.minimum"),
        (layer("magnitude"), "the magnitude"),
        (layer("gelu"), "yours is GELU"),
        (layer("below 1"), r"(?s)x \(., 1\), weight .*zero and not at 1"),
        (layer("stored transposed"), "Wrong"),
        (layer(grid=lambda M, N: (M // 32, N // 32)), "grid has no programs"),
        (layer(grid=lambda M, N: tiles(M, N)[::-1]), r"(?s)x \(40, 70\).*never stored"),
        (layer(output=lambda x, weight: new(x, weight, torch.float32)), "(?s)in float16.*wrong type: float32"),
        (relu_by_pytorch, "PyTorch copied or converted it"),
        (relu_in_a_second_kernel, "(?s)2 kernels were launched.*from the accumulator"),
        (bias_by_pytorch, "(?s)does not read x itself.*outside of the kernel"),
        (lambda x, weight, bias: (x @ weight.T + bias).relu(), "No kernel was launched"),
    ],
    "split_linear": [
        (split(bias_in="every share"), r"(?s)x \(3, 128\), weight \(4, 128\), 2 splits, in float32.*too much of bias"),
        (split(second=then_bias), r"x \(3, 5\), weight \(4, 5\), 1 split, in float32.*once more after the sum"),
        (split(bias_in=""), "bias was left out"),
        (split(bias_in="", second=bias_after_rounding), "(?s)in float16.*nearly cancel.*rounded to the input's type"),
        (split("all of K"), "(?s)2 splits.*Every share sums all of K"),
        (split("all of K", "every share"), "(?s)2 splits.*Every share sums all of K, and adds bias"),
        (split("rounded down"), "(?s)3 splits.*end of K is in no share"),
        (split("steps rounded down"), "(?s)1 split,.*end of K is in no share"),
        (split("overlap"), "(?s)3 splits.*shares overlap"),
        (split("one step"), "(?s)2 splits.*stops after one step"),
        (split("empty shares end"), r"(?s)x \(3, 5\), weight \(4, 5\), 3 splits.*some shares are empty"),
        (split("one place"), "(?s)2 splits.*place of its own"),
        (split("one place", partials=torch.zeros), "(?s)2 splits.*Only one share"),
        (split("atomics", partials=torch.zeros), "(?s)atomic updates"),
        (split(second=lambda partial, x, bias: partial[0].to(x.dtype)), "(?s)2 splits.*Only one share"),
        (split(bias_in="", second=lambda partial, x, bias: (partial[-1] + bias).to(x.dtype)), "(?s)2 splits.*Only one share"),
        (split(second=lambda partial, x, bias: partial.mean(0).to(x.dtype)), "(?s)2 splits.*averaged"),
        (split(second=lambda partial, x, bias: partial.sum(0)), "(?s)in float16.*wrong type: float32"),
        (split(second=lambda partial, x, bias: partial.sum(0).relu().to(x.dtype)), "with relu"),
        (split(second=lambda partial, x, bias: partial.sum(1)), "has shape"),
        (split(dtype=torch.float16), "three digits|half precision"),
        (split(second=lambda partial, x, bias: None), "returned None"),
        (not_split, "(?s)2 splits.*one partial sum for each element"),
        (lambda x, weight, bias, splits: x @ weight.T + bias, "No kernel was launched"),
    ],
    "activation_gradient": [
        (gradient("mask by grad"), r"(?s)7 rows of 5 in float32.*of dz.*The mask is of grad"),
        (gradient(">="), "(?s)of dz.*>= is true of every output"),
        (gradient("upside down"), "(?s)of dz.*upside down"),
        (gradient("times output"), "(?s)of dz.*multiplied by output"),
        (gradient("exchanged"), "(?s)of dz.*yours is output"),
        (gradient("ones"), "(?s)of dz.*yours is 1 there"),
        (gradient("sums of grad"), "(?s)of dbias.*without the mask"),
        (gradient("sums of output"), "(?s)of dbias.*of output"),
        (gradient("sums of rows"), "(?s)of dbias.*sums are of rows"),
        (gradient("padding counts"), "(?s)of dbias.*Lanes past the end"),
        (gradient("masked lanes hold anything"), "right only if lanes that a mask switches off hold 0"),
        (gradient("sum in grad's type"), "(?s)in float16.*dbias.*three digits"),
        (gradient(dtype=None, second=lambda partial: partial.float().sum(0)), "(?s)in float16.*dbias.*three digits"),
        (gradient("one row"), r"(?s)70 rows of 100 .*of dbias.*row tl.program_id\(0\)"),
        (gradient("one row", partials=torch.zeros), "(?s)70 rows of 100 .*of dbias.*one program's rows"),
        (gradient("dz not stored"), "(?s)of dz.*never stored.*No store goes to dz"),
        (gradient("dz not masked"), "(?s)stores outside of dz_ptr"),
        (gradient("sums not masked"), "(?s)stores outside of partial_ptr.*mask=n < N"),
        (gradient("read back"), "dz is read back"),
        (gradient("atomics", partials=torch.zeros), "atomic updates"),
        (gradient(second=lambda partial: partial[0]), "(?s)70 rows of 100 .*one program's rows"),
        (gradient(second=lambda partial: partial[-1]), "(?s)70 rows of 100 .*one program's rows"),
        (gradient(second=lambda partial: partial.mean(0)), "(?s)70 rows of 100 .*of dbias.*averaged"),
        (gradient(grid=lambda M, N: (M // 32, N // 32)), "(?s)grid has no programs"),
        (gradient(dtype=None), "(?s)in float16.*dbias has the wrong type: float16, and float32"),
        (gradient(dz_like=lambda grad: torch.empty(grad.shape, device=grad.device)), "(?s)dz has the wrong type: float32"),
        (dz_by_pytorch, "PyTorch wrote dz"),
        (sums_by_pytorch, "stores no sums"),
        (masked_by_pytorch, "first kernel does not read all of grad"),
        (in_two_launches, "bytes of grad were read"),
        (lambda *case: gradient()(*case)[::-1], "(?s)dz has shape|order is"),
        (lambda *case: gradient()(*case)[0], r"(?s)returned a Tensor.*\(dz, dbias\)"),
        (lambda grad, output: (grad * (output > 0), (grad * (output > 0)).sum(0)), "No kernel was launched"),
    ],
    "epilogue_bytes": [
        (lambda M, N, itemsize: 6 * M * N, r"(?s)epilogue_bytes\(2, 3, 2\).*Expected 72, got 36.*counts elements"),
        (lambda M, N, itemsize: itemsize * (7 * M * N + N), "what the three kernels move: subtract"),
        (lambda M, N, itemsize: itemsize * 7 * M * N, "but for the bias"),
        (lambda M, N, itemsize: itemsize * (6 * M * N + N), "read in both cases"),
        (lambda M, N, itemsize: itemsize * (6 * M * N - N), "read in both cases"),
        (lambda M, N, itemsize: itemsize * 5 * M * N, "M \\* N elements are missing"),
        (lambda M, N, itemsize: itemsize * 4 * M * N, "2 \\* M \\* N elements are missing"),
        (lambda M, N, itemsize: itemsize * 3 * M * N, "reads and writes"),
        (lambda M, N, itemsize: itemsize * (M * N + N), "what the fused epilogue reads"),
        (lambda M, N, itemsize: -itemsize * 6 * M * N, "separate minus fused"),
        (lambda M, N, itemsize: itemsize * 2 * M * N, "are three"),
        (lambda M, N, itemsize: itemsize * (M + N), "Write down a line for each kernel"),
        (lambda M, N, itemsize: None if M > 2 else 72, "returned a NoneType"),
    ],
}  # fmt: skip

RIGHT = {
    "linear": [
        layer(),
        layer("starts from bias"),
        layer("in where"),
        by(layer_in_flat_grid, grid=lambda M, N: (triton.cdiv(M, 16) * triton.cdiv(N, 64),), BLOCK_M=16, BLOCK_N=64),
    ],
    "split_linear": [
        split(),
        split("cut", "last share"),
        split(bias_in="an equal part"),
        split(bias_in="", second=then_bias),
        split("empty shares end", partials=torch.zeros),
    ],
    "activation_gradient": [gradient(), in_columns, small_tiles],
    "epilogue_bytes": [
        lambda M, N, itemsize: 6 * M * N * itemsize,
        lambda M, N, itemsize: itemsize * float(sum((2 * M * N + N, 2 * M * N, 3 * M * N)) - (M * N + N)),
    ],
}
