"""`add`: element-wise addition with broadcasting.

Two contiguous tensors of one shape are two flat vectors: program p owns elements p * BLOCK to (p + 1) * BLOCK - 1.
Anything else (broadcast or strided operands) is cut into tiles of rows and columns; a broadcast dimension is one whose
stride is 0. The gradient of an operand is the incoming gradient, summed to the operand's shape where it was broadcast.
"""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, cdiv, check_tensors, first_derivative_only, needs_gradient, next_power_of_2, operator
from .sum_to_size import sum_to_size

# Elements a program adds. 1,024 are 8 for each of 128 threads: one 16-byte access each in a 16-bit type, two in float32.
# The interpreter runs programs one after another, so it wants few and large ones.
BLOCK = 1 << 17 if INTERPRETER else 1024
TILE_ELEMENTS = 1 << 17 if INTERPRETER else 2048


@triton.jit
def add_kernel(input_ptr, other_ptr, output_ptr, size, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK  # int64: a tensor may hold more than 2^31 elements
    offsets = start + tl.arange(0, BLOCK)
    mask = offsets < size  # the last program may reach past the end
    a = tl.load(input_ptr + offsets, mask=mask)
    b = tl.load(other_ptr + offsets, mask=mask)
    tl.store(output_ptr + offsets, a.to(tl.float32) + b.to(tl.float32), mask=mask)


@triton.jit
def broadcast_add_kernel(
    input_ptr, other_ptr, output_ptr,
    rows, columns, size_1, size_2,
    input_stride_0, input_stride_1, input_stride_2, input_column_stride,
    other_stride_0, other_stride_1, other_stride_2, other_column_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # The output is (rows, columns) and contiguous; a row is one index triple (i, j, k) of the dimensions before the last.
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    row = (program // column_blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (program % column_blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    i, j, k = row // size_2 // size_1, row // size_2 % size_1, row % size_2
    input_row = i * input_stride_0 + j * input_stride_1 + k * input_stride_2
    other_row = i * other_stride_0 + j * other_stride_1 + k * other_stride_2
    a = tl.load(input_ptr + input_row[:, None] + column[None, :] * input_column_stride, mask=mask)
    b = tl.load(other_ptr + other_row[:, None] + column[None, :] * other_column_stride, mask=mask)
    tl.store(output_ptr + row[:, None] * columns + column[None, :], a.to(tl.float32) + b.to(tl.float32), mask=mask)


def _collapse(shape: torch.Size, *strides: tuple[int, ...]) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring dimensions that every operand steps through evenly: fewer indices for the kernel to decode."""
    sizes: list[int] = []
    merged: list[list[int]] = []  # one list of strides a dimension
    for size, steps in zip(shape, zip(*strides)):
        if size == 1:
            continue
        if sizes and all(outer == inner * size for outer, inner in zip(merged[-1], steps)):
            sizes[-1] *= size
            merged[-1] = list(steps)
        else:
            sizes.append(size)
            merged.append(list(steps))
    return sizes, merged


def _fake(input, other, dtype):
    return input.new_empty(torch.broadcast_shapes(input.shape, other.shape), dtype=dtype)


@operator("add(Tensor input, Tensor other, ScalarType dtype) -> Tensor", _fake)
def _add(input: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    shape = torch.broadcast_shapes(input.shape, other.shape)
    output = torch.empty(shape, dtype=dtype, device=input.device)
    if output.numel() == 0:
        return output
    if input.shape == other.shape and input.is_contiguous() and other.is_contiguous():
        size = output.numel()
        add_kernel[(cdiv(size, BLOCK),)](input, other, output, size, BLOCK=BLOCK)
        return output

    a, b = input.expand(shape), other.expand(shape)
    sizes, strides = _collapse(shape, a.stride(), b.stride())
    if len(sizes) > 4:  # more uneven dimensions than the kernel decodes
        return _add(a.contiguous(), b.contiguous(), dtype)
    sizes = [1] * (4 - len(sizes)) + sizes
    strides = [[0, 0]] * (4 - len(strides)) + strides
    columns = sizes[3]
    rows = output.numel() // columns
    block_columns = min(next_power_of_2(columns), TILE_ELEMENTS)
    block_rows = min(next_power_of_2(rows), TILE_ELEMENTS // block_columns)
    grid = (cdiv(rows, block_rows) * cdiv(columns, block_columns),)
    broadcast_add_kernel[grid](
        a, b, output, rows, columns, sizes[1], sizes[2],
        *(stride[0] for stride in strides), *(stride[1] for stride in strides),
        BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns,
    )  # fmt: skip
    return output


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, other, dtype):
        ctx.operands = [(tensor.shape, tensor.dtype) for tensor in (input, other)]
        return _add(input, other, dtype)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        grads = []
        for needed, (shape, dtype) in zip(ctx.needs_input_grad, ctx.operands):
            if needed and shape != grad.shape:
                grads.append(sum_to_size(grad, shape, dtype))
            else:
                grads.append(grad.to(dtype) if needed else None)
        return *grads, None


def add(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`torch.add(input, other)`: the sum of two tensors, broadcast to a common shape and promoted to a common type.

    Any strides. The result is contiguous. Raises ValueError where the shapes do not broadcast.
    """
    check_tensors("add", input=input, other=other)
    try:
        torch.broadcast_shapes(input.shape, other.shape)
    except RuntimeError:
        raise ValueError(f"add: shapes {tuple(input.shape)} and {tuple(other.shape)} do not broadcast") from None
    dtype = torch.promote_types(input.dtype, other.dtype)
    if (input.ndim == 0) != (other.ndim == 0):  # next to a tensor with dimensions, a single number has no say
        dtype = input.dtype if other.ndim == 0 else other.dtype
    if needs_gradient(input, other):
        return _Add.apply(input, other, dtype)
    return _add(input, other, dtype)
