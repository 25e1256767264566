"""`linear`: input @ weight.T + bias, then an activation, then a residual, in one kernel.

The output (M, N) is cut into BLOCK_M x BLOCK_N tiles. A program walks along K for its tile, BLOCK_K at a time, and keeps the
sums in registers as float32; bias, activation and residual are applied there, so the product never travels to memory and
back in between. Tiles are numbered in groups of GROUP_M tile rows, so that programs running at the same time share rows
of the input and of the weight in the L2 cache.

On GPUs with a tensor memory accelerator (sm_90 and later) tiles of the input and the weight arrive through descriptors,
where their rows are 16-byte aligned; everywhere else through pointers and masks.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..runtime import INTERPRETER, Config, Configs, capability, check_forward_only, dot_precision, multiprocessors
from .gelu import gelu_erf, gelu_erf_fast, gelu_tanh

ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh")


@triton.jit
def linear_kernel(
    input, weight, bias_ptr, residual_ptr, output_ptr,
    M, N, K, input_row_stride, input_column_stride, weight_row_stride, weight_column_stride, residual_row_stride,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    TMA: tl.constexpr, K_FITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    # `input` and `weight` are descriptors where TMA is true and pointers where it is not.
    program = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = program // (GROUP_M * tiles_n)
    group_height = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    within = program % (GROUP_M * tiles_n)
    tile_m = group * GROUP_M + within % group_height
    tile_n = within // group_height

    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if TMA:
        for start in range(0, K, BLOCK_K):
            a = input.load([tile_m * BLOCK_M, start])
            b = weight.load([tile_n * BLOCK_N, start])
            accumulator = tl.dot(a, b.T, accumulator, input_precision=PRECISION)
    else:
        a_ptrs = input + m[:, None] * input_row_stride + k[None, :] * input_column_stride
        b_ptrs = weight + n[None, :] * weight_row_stride + k[:, None] * weight_column_stride
        for start in range(0, K, BLOCK_K):
            a_mask = m[:, None] < M
            b_mask = n[None, :] < N
            if not K_FITS:
                a_mask = a_mask & (k[None, :] < K - start)
                b_mask = b_mask & (k[:, None] < K - start)
            a = tl.load(a_ptrs, mask=a_mask, other=0.0)
            b = tl.load(b_ptrs, mask=b_mask, other=0.0)
            accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
            a_ptrs += BLOCK_K * input_column_stride
            b_ptrs += BLOCK_K * weight_column_stride

    if HAS_BIAS:
        accumulator += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "relu":
        accumulator = tl.where(accumulator < 0, 0.0, accumulator)
    elif ACTIVATION == "gelu":
        accumulator = gelu_erf(accumulator)
    elif ACTIVATION == "gelu_fast":
        accumulator = gelu_erf_fast(accumulator)
    elif ACTIVATION == "gelu_tanh":
        accumulator = gelu_tanh(accumulator)
    mask = (m < M)[:, None] & (n < N)[None, :]
    if HAS_RESIDUAL:
        accumulator += tl.load(residual_ptr + m[:, None] * residual_row_stride + n[None, :], mask=mask).to(tl.float32)
    tl.store(output_ptr + m[:, None] * N + n[None, :], accumulator, mask=mask)


def _blocks(m: int, n: int, k: int, group: int = 8) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": group}


def _shared_bytes(config: Config, itemsize: int) -> int:
    b = config.blocks
    tiles = (b["BLOCK_M"] + b["BLOCK_N"]) * b["BLOCK_K"] * itemsize * config.num_stages
    if itemsize == 4:  # tf32x3 keeps what is left of the input's tile after rounding beside it
        tiles += b["BLOCK_M"] * b["BLOCK_K"] * 4
    # The epilogue may pass the output tile through shared memory to change its layout.
    return max(tiles, b["BLOCK_M"] * b["BLOCK_N"] * 4) + 1024


LARGE = Config(_blocks(128, 256, 64), num_warps=8, num_stages=3)
SQUARE = Config(_blocks(128, 128, 64), num_warps=4, num_stages=3)
LOW = Config(_blocks(64, 128, 64), num_warps=4, num_stages=4)
SMALL = Config(_blocks(64, 32, 128), num_warps=4, num_stages=4)
# Shallower in K, for float32's larger elements and for GPUs with less shared memory.
LARGE_SHALLOW = Config(_blocks(128, 256, 32), num_warps=8, num_stages=3)
LOW_SHALLOW = Config(_blocks(64, 128, 32), num_warps=4, num_stages=4)
NARROW_SHALLOW = Config(_blocks(128, 64, 32), num_warps=4, num_stages=3)
SMALL_SHALLOW = Config(_blocks(64, 64, 32), num_warps=4, num_stages=3)
LEAST = Config(_blocks(64, 64, 16), num_warps=4, num_stages=2)

# By bytes an element. Pinned: measured at ViT-B/16's four shapes and batch 1, 8, 32 and 256.
CONFIGS = {
    2: Configs(
        "linear",
        candidates=[LARGE, SQUARE, LOW, SMALL, NARROW_SHALLOW, SMALL_SHALLOW],
        shared_bytes=_shared_bytes,
        pinned={"NVIDIA H200": {"few 2": SMALL, "some 2": LOW, "many 2": SQUARE, "many deep 2": LARGE}},
    ),
    4: Configs(
        "linear float32",
        candidates=[LARGE_SHALLOW, LOW_SHALLOW, NARROW_SHALLOW, SMALL_SHALLOW, LEAST],
        shared_bytes=_shared_bytes,
        pinned={
            "NVIDIA H200": {
                "few tf32 4": LOW_SHALLOW, "some tf32 4": LOW_SHALLOW,
                "many tf32 4": LARGE_SHALLOW, "many deep tf32 4": LARGE_SHALLOW,
                "many tf32x3 4": NARROW_SHALLOW, "many deep tf32x3 4": NARROW_SHALLOW,
            },
        },
    ),
}  # fmt: skip


def _shape_class(M: int, N: int, K: int, precision: str) -> str:
    """How many tiles there are for how many multiprocessors, which decides how large a tile may be.

    "many": 128 x 128 tiles for half of the multiprocessors or more; "some": 64 x 128 tiles for half of them; "few": neither.
    "many deep": even 128 x 256 tiles come round four times, and K is long enough to make up for their slow start.
    """
    half = multiprocessors() / 2

    def tiles(m: int, n: int) -> int:
        return triton.cdiv(M, m) * triton.cdiv(N, n)

    kind = "many" if tiles(128, 128) >= half else "some" if tiles(64, 128) >= half else "few"
    if K >= 2048 and tiles(128, 256) >= 8 * half:
        kind = "many deep"
    return kind if precision == "ieee" else f"{kind} {precision}"


def _aligned(tensor: torch.Tensor) -> bool:
    """Whether a matrix can be read through a descriptor: rows of evenly spaced, 16-byte aligned, dense elements."""
    row = tensor.stride(0) * tensor.element_size()
    return tensor.stride(1) == 1 and row % 16 == 0 and row > 0 and tensor.data_ptr() % 16 == 0


def _interpreter_config(M: int, N: int, K: int) -> Config:
    """Tiles as large as the matrices, within what NumPy handles well: the interpreter's cost is in the number of steps."""

    def block(size: int, largest: int) -> int:
        return min(max(triton.next_power_of_2(size), 16), largest)

    return Config(_blocks(block(M, 256), block(N, 1024), block(K, 256)))


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`torch.nn.functional.linear`, with what usually follows it: activation(input @ weight.T + bias) + residual.

    input: (..., in_features); weight: (out_features, in_features); bias: (out_features,); residual: (..., out_features).
    activation: None, "relu", "gelu" (erf) or "gelu_tanh". Sums in float32; a float32 product follows
    torch.get_float32_matmul_precision(). In bfloat16 the erf of "gelu" is the approximation of `gelu_erf_fast`.
    """
    check_forward_only("linear", {"bias": bias, "residual": residual}, input=input, weight=weight)
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation is {activation!r}; accepted: {', '.join(map(repr, ACTIVATIONS))}")
    if weight.ndim != 2:
        raise ValueError(f"linear: weight is {tuple(weight.shape)}; (out_features, in_features) is accepted")
    N, K = weight.shape
    if input.ndim < 1 or input.shape[-1] != K:
        raise ValueError(f"linear: input is {tuple(input.shape)}; with weight {tuple(weight.shape)}, (..., {K}) is accepted")
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"linear: bias is {tuple(bias.shape)}; with weight {tuple(weight.shape)}, ({N},) is accepted")
    shape = (*input.shape[:-1], N)
    if residual is not None and residual.shape != shape:
        raise ValueError(f"linear: residual is {tuple(residual.shape)}; {shape} is accepted")
    output = torch.empty(shape, dtype=input.dtype, device=input.device)
    if output.numel() == 0:
        return output
    x = input.reshape(-1, K) if K else input.new_zeros(output.numel() // N, 0)
    M = x.shape[0]
    bias = None if bias is None else bias.contiguous()
    if residual is not None:
        residual = residual.reshape(M, N)
        residual = residual if residual.stride(1) == 1 or N == 1 else residual.contiguous()
    if activation == "gelu" and x.dtype == torch.bfloat16:
        activation = "gelu_fast"
    tma = not INTERPRETER and capability() >= 90 and K > 0 and _aligned(x) and _aligned(weight)
    precision = dot_precision(x.dtype)

    def launch(config: Config) -> None:
        block_m, block_n, block_k = (config.blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
        if tma:
            a = TensorDescriptor(x, [M, K], [x.stride(0), 1], [block_m, block_k])
            b = TensorDescriptor(weight, [N, K], [weight.stride(0), 1], [block_n, block_k])
        else:
            a, b = x, weight
        linear_kernel[(triton.cdiv(M, block_m) * triton.cdiv(N, block_n),)](
            a, b, bias, residual, output,
            M, N, K, *x.stride(), *weight.stride(), N if residual is None else residual.stride(0),
            HAS_BIAS=bias is not None, ACTIVATION=activation, HAS_RESIDUAL=residual is not None, PRECISION=precision,
            TMA=tma, K_FITS=K % block_k == 0, **config.options(),
        )  # fmt: skip

    if INTERPRETER:
        launch(_interpreter_config(M, N, K))
    else:
        launch(CONFIGS[x.element_size()].choose(_shape_class(M, N, K, precision), x.dtype, launch))
    return output
