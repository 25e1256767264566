"""`layer_norm`: (x - mean) / sqrt(variance + eps) * weight + bias over rows (Ba, Kiros and Hinton, arXiv 1607.06450).

A row that fits in one block stays on chip: a program owns BLOCK_ROWS whole rows, reads each once, takes the mean, then the
mean of the squared differences (two passes over registers, none over memory), and writes once. A wider row is walked three
times by the one program that owns it. With a residual, x is the sum of two tensors, which is written as well.

Backward, with xhat = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - xhat * mean(g * xhat)). The gradients
of weight and bias are sums over all rows, of dy * xhat and of dy: each of a fixed number of programs adds up its own rows and
stores one partial sum, and a second launch adds those up.
"""

import math

import torch
import triton
import triton.language as tl

from ..runtime import (
    INTERPRETER,
    autocast_to_float32,
    cdiv,
    check_numbers,
    check_tensors,
    first_derivative_only,
    multiprocessors,
    needs_gradient,
    next_power_of_2,
    operator,
    shared_memory,
)
from .sum_to_size import sum_middle

# The widest row held in registers, and the elements a program holds of narrower ones: 32 for each thread of 2 to 8 warps.
WIDEST = 1 << 17 if INTERPRETER else 8192
TILE_ELEMENTS = 1 << 17 if INTERPRETER else 2048
# Backward: programs a multiprocessor, and turns of their loops that are under way at once where shared memory allows it.
PROGRAMS = 4
STAGES = 3


@triton.jit
def layer_norm_kernel(
    input_ptr, residual_ptr, weight_ptr, bias_ptr, output_ptr, total_ptr, statistics_ptr,
    rows, columns, row_stride, column_stride, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    column_mask = column < columns
    mask = (row < rows)[:, None] & column_mask[None, :]
    here = row[:, None] * columns + column[None, :]
    # A column may be far from the next.
    columns_ptr = input_ptr + row[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
    x = tl.load(columns_ptr, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + here, mask=mask, other=0.0).to(tl.float32)
        total = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + here, total, mask=mask)
        x = total.to(tl.float32)  # what is normalized is the sum as it is stored
    mean = tl.sum(x, axis=1) / columns
    centered = x - mean[:, None]
    # Lanes past the row's end hold 0, and 0 - mean is not 0: without this mask each would add mean^2 to the variance. It comes
    # after the square, which the compiler would else fuse with the first sum across lanes: each lane would round its own
    # square differently, and lanes that hold one row would not agree on the last bit of what they store for it.
    variance = tl.sum(tl.where(mask, centered * centered, 0.0), axis=1) / columns
    rstd = 1.0 / tl.sqrt(variance + eps)
    if SAVE:
        tl.store(statistics_ptr + row, mean, mask=row < rows)
        tl.store(statistics_ptr + rows + row, rstd, mask=row < rows)
    y = centered * rstd[:, None]
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    tl.store(output_ptr + here, y, mask=mask)


@triton.jit
def wide_layer_norm_kernel(
    input_ptr, residual_ptr, weight_ptr, bias_ptr, output_ptr, total_ptr, statistics_ptr,
    rows, columns, row_stride, column_stride, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first = row * columns
    columns_ptr = input_ptr + row * row_stride
    sums = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        mask = column < columns
        x = tl.load(columns_ptr + column * column_stride, mask=mask, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            x += tl.load(residual_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
            total = x.to(total_ptr.dtype.element_ty)
            tl.store(total_ptr + first + column, total, mask=mask)
            x = total.to(tl.float32)
        sums += x
    mean = tl.sum(sums, axis=0) / columns
    if HAS_RESIDUAL:  # from here on the sum is the input; each thread reads again what it wrote itself
        columns_ptr, column_stride = total_ptr + first, 1
    squares = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        x = tl.load(columns_ptr + column * column_stride, mask=column < columns, other=0.0).to(tl.float32)
        centered = tl.where(column < columns, x - mean, 0.0)
        squares += centered * centered
    rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / columns + eps)
    if SAVE:
        tl.store(statistics_ptr + row, mean)
        tl.store(statistics_ptr + rows + row, rstd)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        mask = column < columns
        y = (tl.load(columns_ptr + column * column_stride, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
        if HAS_WEIGHT:
            y *= tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(bias_ptr + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(output_ptr + first + column, y, mask=mask)


@triton.jit
def layer_norm_backward_kernel(
    grad_ptr, total_grad_ptr, input_ptr, weight_ptr, statistics_ptr, input_grad_ptr, partial_ptr,
    rows, columns, row_stride, column_stride,
    HAS_TOTAL_GRAD: tl.constexpr, HAS_WEIGHT: tl.constexpr, PARTIAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_COLUMNS)
    column_mask = column < columns
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    weight_grad = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    bias_grad = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0), num_stages=STAGES):
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        mask = (row < rows)[:, None] & column_mask[None, :]
        here = row[:, None] * columns + column[None, :]
        columns_ptr = input_ptr + row[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
        x = tl.load(columns_ptr, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + here, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(statistics_ptr + row, mask=row < rows, other=0.0)
        rstd = tl.load(statistics_ptr + rows + row, mask=row < rows, other=0.0)
        xhat = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        if PARTIAL:
            weight_grad += grad * xhat
            bias_grad += grad
        if HAS_WEIGHT:
            grad *= weight
        mean_grad = tl.sum(grad, axis=1) / columns
        mean_grad_xhat = tl.sum(grad * xhat, axis=1) / columns
        input_grad = (grad - mean_grad[:, None] - xhat * mean_grad_xhat[:, None]) * rstd[:, None]
        if HAS_TOTAL_GRAD:
            input_grad += tl.load(total_grad_ptr + here, mask=mask, other=0.0).to(tl.float32)
        tl.store(input_grad_ptr + here, input_grad, mask=mask)
    if PARTIAL:
        partial_ptr += tl.program_id(0).to(tl.int64) * 2 * columns
        tl.store(partial_ptr + column, tl.sum(weight_grad, axis=0), mask=column_mask)
        tl.store(partial_ptr + columns + column, tl.sum(bias_grad, axis=0), mask=column_mask)


@triton.jit
def wide_layer_norm_backward_kernel(
    grad_ptr, total_grad_ptr, input_ptr, weight_ptr, statistics_ptr, input_grad_ptr,
    rows, columns, row_stride, column_stride,
    HAS_TOTAL_GRAD: tl.constexpr, HAS_WEIGHT: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first = row * columns
    mean, rstd = tl.load(statistics_ptr + row), tl.load(statistics_ptr + rows + row)
    sum_grad = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    sum_grad_xhat = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        mask = column < columns
        x = tl.load(input_ptr + row * row_stride + column * column_stride, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            grad *= tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
        sum_grad += grad  # 0 in masked lanes
        sum_grad_xhat += grad * (x - mean) * rstd
    mean_grad, mean_grad_xhat = tl.sum(sum_grad, axis=0) / columns, tl.sum(sum_grad_xhat, axis=0) / columns
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        mask = column < columns
        x = tl.load(input_ptr + row * row_stride + column * column_stride, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            grad *= tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
        input_grad = (grad - mean_grad - (x - mean) * rstd * mean_grad_xhat) * rstd
        if HAS_TOTAL_GRAD:
            input_grad += tl.load(total_grad_ptr + first + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(input_grad_ptr + first + column, input_grad, mask=mask)


@triton.jit
def wide_layer_norm_partial_kernel(
    grad_ptr, input_ptr, statistics_ptr, partial_ptr, rows, columns, row_stride, column_stride, splits,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # The sums over rows of wide rows: a program owns a block of columns, and one of `splits` shares of the rows.
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    split = (tl.program_id(0) // column_blocks).to(tl.int64)
    column = (tl.program_id(0) % column_blocks).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    weight_grad = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    bias_grad = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(split * BLOCK_ROWS, rows, splits * BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        columns_ptr = input_ptr + row[:, None] * row_stride + column[None, :] * column_stride
        x = tl.load(columns_ptr, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(statistics_ptr + row, mask=row < rows, other=0.0)
        rstd = tl.load(statistics_ptr + rows + row, mask=row < rows, other=0.0)
        weight_grad += grad * (x - mean[:, None]) * rstd[:, None]  # grad is 0 in masked lanes
        bias_grad += grad
    partial_ptr += split * 2 * columns
    tl.store(partial_ptr + column, tl.sum(weight_grad, axis=0), mask=column < columns)
    tl.store(partial_ptr + columns + column, tl.sum(bias_grad, axis=0), mask=column < columns)


def _fake(x, residual, weight, bias, eps, dtype, save):
    total = x.new_empty(x.shape if residual is not None else (0,))
    return x.new_empty(x.shape, dtype=dtype), total, x.new_empty((2, x.shape[0] if save else 0), dtype=torch.float32)


@operator(
    "layer_norm(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, float eps, ScalarType dtype, bool save)"
    " -> (Tensor, Tensor, Tensor)",
    _fake,
)
def _layer_norm(x, residual, weight, bias, eps, dtype, save):
    """x (rows, columns), residual likewise or None: normalized; x + residual, or empty; means and 1 / deviations, (2, rows)."""
    rows, columns = x.shape
    output = torch.empty((rows, columns), dtype=dtype, device=x.device)
    total = torch.empty((rows, columns) if residual is not None else (0,), dtype=x.dtype, device=x.device)
    statistics = torch.empty((2, rows if save else 0), dtype=torch.float32, device=x.device)
    if output.numel() == 0:
        return output, total, statistics
    residual, weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (residual, weight, bias))
    arguments = (x, residual, weight, bias, output, total, statistics, rows, columns, *x.stride(), eps)
    flags = {"HAS_RESIDUAL": residual is not None, "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None, "SAVE": save}
    width = next_power_of_2(columns)
    if width <= WIDEST:
        block_rows = min(next_power_of_2(rows), max(1, TILE_ELEMENTS // width))
        layer_norm_kernel[(cdiv(rows, block_rows),)](
            *arguments, **flags, BLOCK_ROWS=block_rows, BLOCK_COLUMNS=width, num_warps=max(2, width // 1024)
        )
    else:
        wide_layer_norm_kernel[(rows,)](*arguments, **flags, BLOCK_COLUMNS=WIDEST // 2, num_warps=8)
    return output, total, statistics


def _backward_fake(grad, total_grad, x, weight, statistics, dtype):
    sums = x.new_empty((2, x.shape[1] if dtype is not None else 0), dtype=dtype)
    return x.new_empty(x.shape), sums


@operator(
    "layer_norm_backward(Tensor grad, Tensor? total_grad, Tensor input, Tensor? weight, Tensor statistics, ScalarType? dtype)"
    " -> (Tensor, Tensor)",
    _backward_fake,
)
def _layer_norm_backward(grad, total_grad, x, weight, statistics, dtype):
    """The gradient of x, (rows, columns), and those of weight and bias in `dtype`, (2, columns); (2, 0) for None."""
    rows, columns = x.shape
    input_grad = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if rows == 0 or columns == 0:
        return input_grad, torch.zeros((2, columns if dtype is not None else 0), dtype=dtype or x.dtype, device=x.device)
    grad, total_grad, weight = (None if tensor is None else tensor.contiguous() for tensor in (grad, total_grad, weight))
    arguments = (grad, total_grad, x, weight, statistics, input_grad)
    flags = {"HAS_TOTAL_GRAD": total_grad is not None, "HAS_WEIGHT": weight is not None}
    width = next_power_of_2(columns)
    if width <= WIDEST:
        block_rows = min(next_power_of_2(rows), max(1, TILE_ELEMENTS // width))
        programs = cdiv(rows, block_rows)
        if dtype is not None:
            programs = min(programs, 2 if INTERPRETER else PROGRAMS * multiprocessors())
        partials = torch.empty((1, programs if dtype is not None else 0, 2 * columns), dtype=torch.float32, device=x.device)
        held = STAGES * 3 * block_rows * width * x.element_size()  # bytes of shared memory, for three tensors
        stages = 1 if INTERPRETER or 2 * held > shared_memory() else STAGES
        layer_norm_backward_kernel[(programs,)](
            *arguments, partials, rows, columns, *x.stride(), **flags, PARTIAL=dtype is not None,
            BLOCK_ROWS=block_rows, BLOCK_COLUMNS=width, STAGES=stages, num_warps=max(2, width // 1024),
        )  # fmt: skip
    else:
        wide_layer_norm_backward_kernel[(rows,)](
            *arguments, rows, columns, *x.stride(), **flags, BLOCK_COLUMNS=WIDEST // 2, num_warps=8
        )
        block_rows, block_columns = min(next_power_of_2(rows), 16), 1 << 12 if INTERPRETER else 128
        splits = 2 if INTERPRETER else min(cdiv(rows, 4 * block_rows), multiprocessors())
        partials = torch.empty((1, splits if dtype is not None else 0, 2 * columns), dtype=torch.float32, device=x.device)
        if dtype is not None:
            wide_layer_norm_partial_kernel[(cdiv(columns, block_columns) * splits,)](
                grad, x, statistics, partials, rows, columns, *x.stride(), splits,
                BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns,
            )  # fmt: skip
    if dtype is None:
        return input_grad, torch.empty((2, 0), dtype=x.dtype, device=x.device)
    return input_grad, sum_middle(partials, dtype).view(2, columns)


def _as_rows(size: tuple[int, int], *tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Each tensor as (rows, columns): a view where its rows are evenly spaced, else a copy."""
    return [None if tensor is None else tensor.reshape(size) for tensor in tensors]


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, residual, weight, bias, eps, dtype, size):
        x, r = _as_rows(size, input, residual)
        output, total, statistics = _layer_norm(x, r, weight, bias, eps, dtype, True)
        ctx.save_for_backward(x if r is None else total, weight, statistics)
        ctx.dtypes, ctx.shapes = zip(*((t.dtype, t.shape) if t is not None else (None, None) for t in (weight, bias)))
        ctx.shape = input.shape
        ctx.set_materialize_grads(False)
        return output, None if r is None else total  # as rows: a view of what a Function returns is made outside of it

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad, total_grad):
        x, weight, statistics = ctx.saved_tensors
        needs_input, needs_residual, *needs_sums = ctx.needs_input_grad[:4]
        # The gradients of input and residual are one tensor, and not two views of it: autograd copies what it would keep twice,
        # but only if it can tell.
        if grad is None:  # nothing but the sum was used; this gradient is a view of memory that somebody else may hold
            x_grad = None if total_grad is None else total_grad.reshape(ctx.shape).clone()
            return x_grad, x_grad, None, None, None, None, None
        dtypes = [dtype for dtype, needed in zip(ctx.dtypes, needs_sums) if needed]
        dtype = torch.promote_types(dtypes[0], dtypes[-1]) if dtypes else None
        x_grad, sums = _layer_norm_backward(grad, total_grad, x, weight, statistics, dtype)
        x_grad = x_grad.view(ctx.shape)
        weight_grad, bias_grad = (sums[i].to(ctx.dtypes[i]).view(ctx.shapes[i]) if needs_sums[i] else None for i in (0, 1))
        return x_grad if needs_input else None, x_grad if needs_residual else None, weight_grad, bias_grad, None, None, None


def layer_norm(
    input: torch.Tensor,
    normalized_shape: list[int] | tuple[int, ...],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`torch.nn.functional.layer_norm` over the last `len(normalized_shape)` dimensions; statistics in float32.

    input: (..., *normalized_shape), any strides; weight, bias: normalized_shape, in the input's type or float32. The result
    is contiguous and has the input's type; under CUDA's autocast it is float32.
    residual: of the input's shape and type. Then x = input + residual is what is normalized, and (result, x) is returned.
    """
    check_numbers("layer_norm", eps=eps)
    check_tensors("layer_norm", {"weight": weight, "bias": bias, "residual": residual}, input=input)
    if isinstance(normalized_shape, int):
        raise TypeError(f"layer_norm: normalized_shape is {normalized_shape}; a list or tuple of int is accepted")
    shape = tuple(normalized_shape)
    if any(isinstance(size, float) for size in shape):
        raise TypeError(f"layer_norm: normalized_shape is {shape}; a list or tuple of int is accepted")
    if not shape or input.shape[input.ndim - len(shape) :] != shape:
        raise ValueError(
            f"layer_norm: input is {tuple(input.shape)}; with normalized_shape={shape}, (..., {str(shape)[1:-1]}) is accepted"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"layer_norm: {name} is {tuple(tensor.shape)}; {shape} is accepted")
        if tensor is not None and tensor.dtype not in (input.dtype, torch.float32):
            raise TypeError(f"layer_norm: {name} is {tensor.dtype} and input is {input.dtype}; that or float32 is accepted")
    if residual is not None and residual.shape != input.shape:
        raise ValueError(f"layer_norm: residual is {tuple(residual.shape)}; {tuple(input.shape)} is accepted")
    if residual is not None and residual.dtype != input.dtype:
        raise TypeError(f"layer_norm: residual is {residual.dtype} and input is {input.dtype}; one type for both is accepted")
    dtype = torch.float32 if autocast_to_float32(input) else input.dtype
    size = math.prod(input.shape[: input.ndim - len(shape)]), math.prod(shape)
    if needs_gradient(input, residual, weight, bias):
        output, total = _LayerNorm.apply(input, residual, weight, bias, eps, dtype, size)
    else:
        output, total, _ = _layer_norm(*_as_rows(size, input, residual), weight, bias, eps, dtype, False)
    output = output.view(input.shape)
    return output if residual is None else (output, total.view(input.shape))
