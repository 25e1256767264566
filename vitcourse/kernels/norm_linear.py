"""`norm_linear`: linear(layer_norm(x)) as one product, for inference; `linear_moments`: the product that comes before it.

A layer norm multiplies columns by its weight and adds its bias. Both can be moved into the linear layer behind it ahead of time:
`fold`. What is left to do to a row of x is (x - mean) * rstd, and as mean and rstd are one number a row, they can wait until
after the product:

    linear(layer_norm(x)) = rstd * (x @ W.T - mean * W.sum(1)) + b      W = weight * norm_weight, b = bias + weight @ norm_bias

So x itself is what is multiplied, and the normalized x is never written or read. Mean and rstd need the whole row, which no
program of the product before has. Each takes the mean of its own piece of the row and the sum of squared differences from it,
the piece's moments, while it is still in registers; the next product merges them as it ends (Chan, Golub and LeVeque, 1983,
"Algorithms for computing the sample variance"), which loses nothing where a row is far from zero, as sums of squares would.

A program owns a BLOCK_M x BLOCK_N tile, as in linear.py. This pays where rows are few, and a launch costs as much as a norm does;
with many, the ends of the tiles take longer than the norms did. Where rows are few, the time before a kernel's first product
counts, too. With OVERLAP a kernel starts while the one before it is still at work (programmatic dependent launch, CUDA C++
Programming Guide), has its weight fetched, which does not depend on that one, and only then waits for it.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..runtime import (
    INTERPRETER,
    Config,
    Configs,
    capability,
    cdiv,
    check_tensors,
    dot_precision,
    multiprocessors,
    needs_gradient,
    next_power_of_2,
    operator,
)
from .linear import (
    ACTIVATIONS,
    LEAST,
    LOW_SHALLOW,
    NARROW_SHALLOW,
    SMALL_SHALLOW,
    SQUARE,
    _blocks,
    _descriptors,
    _interpreter_config,
    _lies,
    _shared_bytes,
    activate,
    tile_of,
)  # fmt: skip


@triton.jit
def prefetch(weight_ptr, n, N, K, BLOCK_K: tl.constexpr):
    # A tile's rows of the weight from device memory into the L2 cache, a line of 128 bytes at a time; nothing is read here.
    LINE: tl.constexpr = 128 // (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    rows = weight_ptr + tl.minimum(n, N - 1)[:, None] * K
    for start in range(0, K, BLOCK_K):
        line = rows + tl.minimum(start + tl.arange(0, BLOCK_K // LINE) * LINE, K - 1)[None, :]
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line], tl.int32, False, 1)


@triton.jit
def norm_linear_kernel(
    input, weight, weight_ptr, bias_ptr, sums_ptr, moments_ptr, residual_ptr, output_ptr, new_moments_ptr,
    M, N, K, width, eps, input_row_stride, residual_row_stride,
    NORM: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, MOMENTS: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr, K_FITS: tl.constexpr, PARTS: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    # `input` and `weight` are descriptors where TMA is true and pointers to dense rows where it is not.
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tiles_n, GROUP_M)
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < M)[:, None] & (n < N)[None, :]
    if OVERLAP:
        gdc_launch_dependents()
        prefetch(weight_ptr, n, N, K, BLOCK_K)
        gdc_wait()

    # What the end of the tile needs is asked for before the walk along K, so that nothing has to wait for it there.
    if NORM:
        part = tl.arange(0, PARTS)
        parts = tl.cdiv(K, width)
        inside = (part < parts)[:, None] & (m < M)[None, :]
        piece = moments_ptr + part.to(tl.int64)[:, None] * M + m[None, :]
        means = tl.load(piece, mask=inside, other=0.0)
        squares = tl.load(piece + parts.to(tl.int64) * M, mask=inside, other=0.0)
        column_sums = tl.load(sums_ptr + n, mask=n < N, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + m[:, None] * residual_row_stride + n[None, :], mask=mask, other=0.0)

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if TMA:
        for start in range(0, K, BLOCK_K):
            a = input.load([tile_m * BLOCK_M, start])
            b = weight.load([tile_n * BLOCK_N, start]).T
            accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
    else:
        k = tl.arange(0, BLOCK_K)
        a_ptrs = input + m[:, None] * input_row_stride + k[None, :]
        b_ptrs = weight + n[None, :] * K + k[:, None]
        for start in range(0, K, BLOCK_K):
            a_mask = (m < M)[:, None]
            b_mask = (n < N)[None, :]
            if not K_FITS:
                a_mask = a_mask & (k[None, :] < K - start)
                b_mask = b_mask & (k[:, None] < K - start)
            a = tl.load(a_ptrs, mask=a_mask, other=0.0)
            b = tl.load(b_ptrs, mask=b_mask, other=0.0)
            accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
            a_ptrs += BLOCK_K
            b_ptrs += BLOCK_K

    if NORM:
        count = tl.minimum(K - part * width, width).to(tl.float32)[:, None]
        # Masked after each product: layer_norm.py says why.
        mean = tl.sum(tl.where(inside, means * count, 0.0), axis=0) / K
        apart = means - mean[None, :]
        variance = tl.sum(tl.where(inside, squares + count * apart * apart, 0.0), axis=0) / K
        accumulator = (accumulator - mean[:, None] * column_sums[None, :]) * (1.0 / tl.sqrt(variance + eps))[:, None]
    if HAS_BIAS:
        accumulator += bias.to(tl.float32)[None, :]
    accumulator = activate(accumulator, ACTIVATION)
    if HAS_RESIDUAL:
        accumulator += residual.to(tl.float32)
    result = accumulator.to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + m[:, None] * N + n[None, :], result, mask=mask)
    if MOMENTS:
        result = result.to(tl.float32)  # of what is stored
        inside_row = (n < N)[None, :]
        piece_mean = tl.sum(tl.where(inside_row, result, 0.0), axis=1) / tl.minimum(N - tile_n * BLOCK_N, BLOCK_N)
        off = result - piece_mean[:, None]
        piece_squares = tl.sum(tl.where(inside_row, off * off, 0.0), axis=1)
        place = new_moments_ptr + tile_n.to(tl.int64) * M + m
        tl.store(place, piece_mean, mask=m < M)
        tl.store(place + tiles_n.to(tl.int64) * M, piece_squares, mask=m < M)


def _early(m: int, n: int, k: int, stages: int) -> Config:
    return Config(_blocks(m, n, k) | {"OVERLAP": True}, num_warps=4, num_stages=stages)


FEW, FEW_DEEP, FEW_WIDE = _early(64, 32, 128, 5), _early(64, 64, 128, 6), _early(64, 128, 128, 4)
SOME = Config(_blocks(64, 64, 64), num_warps=4, num_stages=4)
MANY = Config(_blocks(64, 128, 64), num_warps=4, num_stages=3)

# By bytes an element. Pinned: measured at ViT-B/16's four shapes and batch 1 and 8.
CONFIGS = {
    2: Configs(
        "norm_linear",
        candidates=[FEW, FEW_DEEP, FEW_WIDE, SOME, MANY, SQUARE, NARROW_SHALLOW, SMALL_SHALLOW],
        shared_bytes=_shared_bytes,
        pinned={
            "NVIDIA H200": {
                "few 2": FEW, "few deep 2": FEW_DEEP, "few wide 2": FEW_WIDE, "some 2": SOME, "square 2": SQUARE, "many 2": MANY,
            }
        },
    ),
    4: Configs(
        "norm_linear float32",
        candidates=[LOW_SHALLOW, NARROW_SHALLOW, SMALL_SHALLOW, LEAST],
        shared_bytes=_shared_bytes,
    ),
}  # fmt: skip


def _shape_class(M: int, N: int, K: int, precision: str) -> str:
    """How many tiles there are for how many multiprocessors.

    "square": 128 x 128 tiles, of which a multiprocessor holds two at once, keep all of them busy for one turn; "many": they
    would take more turns; "some", "few wide", "few": 64 x 128 tiles for all, for half of them, for fewer. "deep": K is long.
    """
    tiles, squares = (cdiv(M, m) * cdiv(N, 128) / multiprocessors() for m in (64, 128))
    if squares > 2:
        kind = "many"
    elif squares > 1.5:
        kind = "square"
    else:
        kind = "some" if tiles > 1 else "few wide" if tiles > 0.5 else "few deep" if K >= 2048 else "few"
    return kind if precision == "ieee" else f"{kind} {precision}"


class Moments(NamedTuple):
    """What `linear_moments` knows of its result's rows, a piece of `width` columns at a time; the last may be narrower."""

    values: torch.Tensor  #: (2, pieces, rows), float32: each piece's mean, then its sum of squared differences from it
    width: int


class Folded(NamedTuple):
    """A linear layer with the layer norm before it folded in."""

    weight: torch.Tensor  #: (out_features, in_features)
    bias: torch.Tensor  #: (out_features,), float32
    column_sums: torch.Tensor  #: (out_features,), float32: each row of `weight` added up


@torch.no_grad()
def fold(norm_weight: torch.Tensor, norm_bias: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Folded:
    """linear(layer_norm(x)) with what does not depend on x done ahead of time.

    norm_weight, norm_bias: (in_features,); weight: (out_features, in_features); bias: (out_features,) or None.
    """
    folded = (weight.double() * norm_weight.double()).to(weight.dtype)
    moved = weight.double() @ norm_bias.double()
    # Of the weight as it is rounded: that is what the product multiplies with.
    return Folded(folded, (moved if bias is None else moved + bias.double()).float(), folded.double().sum(1).float())


def _product(
    config: Config, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, bias: torch.Tensor | None,
    column_sums: torch.Tensor | None, moments: torch.Tensor | None, width: int, eps: float, activation: str | None, keep: bool,
    overlap: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Launch the kernel: x (M, K), weight (N, K), residual (M, N). The result (M, N), and its moments if `keep`, else nothing."""
    (M, K), N = x.shape, weight.shape[0]
    x, residual = (tensor if tensor is None or tensor.stride(1) == 1 else tensor.contiguous() for tensor in (x, residual))
    weight, bias, column_sums, moments = (
        None if tensor is None else tensor.contiguous() for tensor in (weight, bias, column_sums, moments)
    )
    output = torch.empty((M, N), dtype=x.dtype, device=x.device)
    pieces = cdiv(N, config.blocks["BLOCK_N"]) if keep else 0
    new_moments = torch.empty((2, pieces, M), dtype=torch.float32, device=x.device)
    if output.numel() == 0:
        return output, new_moments
    tma = capability() >= 90 and K > 0 and _lies(x) == _lies(weight) == "rows"
    operands = _descriptors(config, [x, weight], [False, False]) if tma else [x, weight]
    options = config.options()
    overlap = options.pop("OVERLAP", False) and overlap and tma
    norm_linear_kernel[(cdiv(M, config.blocks["BLOCK_M"]) * cdiv(N, config.blocks["BLOCK_N"]),)](
        *operands, weight if overlap else None, bias, column_sums, moments, residual, output, new_moments if keep else None,
        M, N, K, width, eps, x.stride(0), N if residual is None else residual.stride(0),
        NORM=moments is not None, HAS_BIAS=bias is not None, ACTIVATION=activation, HAS_RESIDUAL=residual is not None,
        MOMENTS=keep, PRECISION=dot_precision(x.dtype), TMA=tma, K_FITS=K % config.blocks["BLOCK_K"] == 0,
        PARTS=1 if moments is None else next_power_of_2(moments.shape[1]), OVERLAP=overlap, **options,
        **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip
    return output, new_moments


def _config(place: int, M: int, N: int, K: int, itemsize: int) -> Config:
    return _interpreter_config(M, N, K) if INTERPRETER else CONFIGS[itemsize].candidates[place]


def _fake(x, weight, residual, bias, column_sums, moments, width, eps, activation, keep, overlap, place):
    (M, K), N = x.shape, weight.shape[0]
    pieces = cdiv(N, _config(place, M, N, K, x.element_size()).blocks["BLOCK_N"]) if keep else 0
    return x.new_empty((M, N)), x.new_empty((2, pieces, M), dtype=torch.float32)


@operator(
    "norm_linear(Tensor input, Tensor weight, Tensor? residual, Tensor? bias, Tensor? column_sums, Tensor? moments, int width,"
    " float eps, str? activation, bool keep, bool overlap, int place) -> (Tensor, Tensor)",
    _fake,
)
def _norm_linear(x, weight, residual, bias, column_sums, moments, width, eps, activation, keep, overlap, place):
    """`_product` with the configuration at `place` among the candidates."""
    config = _config(place, *x.shape[:1], *weight.shape, x.element_size())
    return _product(config, x, weight, residual, bias, column_sums, moments, width, eps, activation, keep, overlap)


def _run(function, input, weight, bias, column_sums, moments, eps, residual, activation, overlap) -> tuple[torch.Tensor, Moments]:
    """Check what both functions take, choose a configuration, and launch."""
    values, width = moments or (None, 1)
    optional = {"bias": bias, "column_sums": column_sums, "moments": values, "residual": residual}
    check_tensors(function, optional, input=input, weight=weight)
    if needs_gradient(input, weight, *optional.values()):
        raise ValueError(f"{function}: an argument requires a gradient, and there is none; call it under torch.no_grad()")
    if weight.ndim != 2 or input.ndim < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{function}: input is {tuple(input.shape)} and weight {tuple(weight.shape)}; "
            "(..., in_features) and (out_features, in_features) are accepted"
        )
    for name, tensor in (("weight", weight), ("residual", residual)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError(f"{function}: {name} is {tensor.dtype} and input is {input.dtype}; one type for both is accepted")
    N, K = weight.shape
    M = math.prod(input.shape[:-1])
    shape = (*input.shape[:-1], N)
    expected = {"bias": (bias, (N,)), "column_sums": (column_sums, (N,)), "residual": (residual, shape)}
    expected["moments"] = values, (2, cdiv(K, width), M)
    for name, (tensor, accepted) in expected.items():
        if tensor is not None and tensor.shape != accepted:
            raise ValueError(f"{function}: {name} is {tuple(tensor.shape)}; {accepted} is accepted")
    x, residual = (None if tensor is None else tensor.reshape(M, tensor.shape[-1]) for tensor in (input, residual))
    activation = "gelu_fast" if activation == "gelu" and x.dtype == torch.bfloat16 else activation
    arguments = (x, weight, residual, bias, column_sums, values, width, eps, activation, moments is None, overlap)
    place = 0
    if not INTERPRETER:
        configs = CONFIGS[x.element_size()]
        kind = _shape_class(M, N, K, dot_precision(x.dtype))
        place = configs.candidates.index(configs.choose(kind, x.dtype, lambda config: _product(config, *arguments)))
    output, new_moments = _norm_linear(*arguments, place)
    return output.view(shape), Moments(new_moments, _config(place, M, N, K, x.element_size()).blocks["BLOCK_N"])


def norm_linear(
    input: torch.Tensor, moments: Moments, folded: Folded, *, eps: float, activation: str | None = None, overlap: bool = True
) -> torch.Tensor:
    """activation(linear(layer_norm(input))), of the two layers that `fold` made into one. No gradient.

    input: (..., in_features), as `linear_moments` returned it with `moments`; eps: the layer norm's; activation: as of `linear`.
    overlap: with few rows, start while the kernel before is at work, where the GPU can (sm_90 and later).
    Raises ValueError or TypeError for another shape or type, and where a gradient is wanted.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"norm_linear: activation is {activation!r}; accepted: {', '.join(map(repr, ACTIVATIONS))}")
    weight, bias, column_sums = folded
    return _run("norm_linear", input, weight, bias, column_sums, moments, eps, None, activation, overlap)[0]


def linear_moments(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor,
    overlap: bool = True,
) -> tuple[torch.Tensor, Moments]:
    """input @ weight.T + bias + residual, and the moments of its rows for `norm_linear`. No gradient.

    Shapes as of `linear`, one type for all but the bias; overlap: as of `norm_linear`. Raises ValueError or TypeError for another
    shape or type, and where a gradient is wanted.
    """
    return _run("linear_moments", input, weight, bias, None, None, 0.0, residual, None, overlap)
