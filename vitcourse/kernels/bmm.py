"""`bmm`: a batch of matrix products, scaled. A program owns one BLOCK_M x BLOCK_N tile of one batch entry's product.

Backward is two products of the same kernel, whose operands lie transposed: for C = scale * A @ B they are
dA = scale * dC @ B.T and dB = scale * A.T @ dC.
"""

import torch
import triton
import triton.language as tl

from ..runtime import (
    INTERPRETER,
    Config,
    cdiv,
    check_numbers,
    check_tensors,
    dot_precision,
    first_derivative_only,
    needs_gradient,
    next_power_of_2,
    operator,
)


@triton.jit
def bmm_kernel(
    input_ptr, mat2_ptr, output_ptr, scale,
    M, N, K,
    input_batch_stride, input_row_stride, input_column_stride,
    mat2_batch_stride, mat2_row_stride, mat2_column_stride,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Batch and tiles share the grid's first axis, the only one longer than 65,535.
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_n
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    m = (tile // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    k64 = k.to(tl.int64)
    a_ptrs = input_ptr + batch * input_batch_stride + m[:, None] * input_row_stride + k64[None, :] * input_column_stride
    b_ptrs = mat2_ptr + batch * mat2_batch_stride + k64[:, None] * mat2_row_stride + n[None, :] * mat2_column_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=(m[:, None] < M) & (k[None, :] < K - start), other=0.0)
        b = tl.load(b_ptrs, mask=(k[:, None] < K - start) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
        a_ptrs += tl.cast(input_column_stride, tl.int64) * BLOCK_K
        b_ptrs += tl.cast(mat2_row_stride, tl.int64) * BLOCK_K
    output_ptrs = output_ptr + batch * M * N + m[:, None] * N + n[None, :]
    tl.store(output_ptrs, accumulator * scale, mask=(m < M)[:, None] & (n < N)[None, :])


CONFIG = Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, num_warps=4, num_stages=3)


@operator(
    "bmm(Tensor input, Tensor mat2, float scale) -> Tensor",
    lambda input, mat2, scale: input.new_empty((input.shape[0], input.shape[1], mat2.shape[2])),
)
def _bmm(input: torch.Tensor, mat2: torch.Tensor, scale: float) -> torch.Tensor:
    batch, M, K = input.shape
    N = mat2.shape[2]
    output = torch.empty((batch, M, N), dtype=input.dtype, device=input.device)
    if output.numel() == 0:
        return output
    config = CONFIG
    if INTERPRETER:
        blocks = {"BLOCK_M": M, "BLOCK_N": N, "BLOCK_K": K}
        config = Config({name: min(max(next_power_of_2(size), 16), 256) for name, size in blocks.items()})
    grid = (batch * cdiv(M, config.blocks["BLOCK_M"]) * cdiv(N, config.blocks["BLOCK_N"]),)
    bmm_kernel[grid](
        input, mat2, output, scale, M, N, K, *input.stride(), *mat2.stride(),
        PRECISION=dot_precision(input.dtype), **config.options(),
    )  # fmt: skip
    return output


class _BMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, mat2, scale):
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, mat2 if ctx.needs_input_grad[0] else None)
        ctx.scale = scale
        return _bmm(input, mat2, scale)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        input, mat2 = ctx.saved_tensors
        needs_input, needs_mat2, _ = ctx.needs_input_grad
        input_grad = _bmm(grad, mat2.transpose(1, 2), ctx.scale) if needs_input else None
        mat2_grad = _bmm(input.transpose(1, 2), grad, ctx.scale) if needs_mat2 else None
        return input_grad, mat2_grad, None


def bmm(input: torch.Tensor, mat2: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """`torch.bmm(input, mat2) * scale`: (batch, m, k) times (batch, k, n), any strides; the result is contiguous.

    Sums in float32; a float32 product follows torch.get_float32_matmul_precision(). One type for both; under autocast they
    are cast to autocast's type.
    """
    check_numbers("bmm", scale=scale)
    check_tensors("bmm", input=input, mat2=mat2)
    if input.ndim != 3 or mat2.ndim != 3 or input.shape[0] != mat2.shape[0] or input.shape[2] != mat2.shape[1]:
        raise ValueError(
            f"bmm: input is {tuple(input.shape)} and mat2 {tuple(mat2.shape)}; (batch, m, k) and (batch, k, n) are accepted"
        )
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, mat2 = input.to(dtype), mat2.to(dtype)
        check_tensors("bmm", input=input, mat2=mat2)
    elif mat2.dtype != input.dtype:
        raise TypeError(f"bmm: mat2 is {mat2.dtype} and input is {input.dtype}; one type for both is accepted")
    return _BMM.apply(input, mat2, scale) if needs_gradient(input, mat2) else _bmm(input, mat2, scale)
