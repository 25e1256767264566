"""`softmax` over rows, plain and causal.

A row that fits in one block stays on chip: a program owns BLOCK_ROWS whole rows, reads each once and writes it once. A wider
row is walked twice by the one program that owns it: once for its maximum and its sum together (online softmax, Milakov and
Gimelshein, arXiv 1805.02867), once to write.

Backward, from the result y: dx = y * (dy - sum(y * dy)), a row at a time in the same two ways.
"""

import torch
import triton
import triton.language as tl

from ..runtime import (
    INTERPRETER,
    autocast_to_float32,
    cdiv,
    check_tensors,
    first_derivative_only,
    needs_gradient,
    next_power_of_2,
    operator,
    refusal,
)

# The widest row held in registers, and the elements a program holds of narrower ones: 32 or 64 a thread.
WIDEST = 1 << 17 if INTERPRETER else 16384
TILE_ELEMENTS = 1 << 17 if INTERPRETER else 2048


@triton.jit
def softmax_kernel(
    input_ptr, output_ptr, rows, columns, row_stride, column_stride, queries,
    CAUSAL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    mask = inside
    if CAUSAL:
        mask = inside & (column <= row % queries)
    columns_ptr = input_ptr + row * row_stride + column.to(tl.int64) * column_stride  # a column may be far from the next
    x = tl.load(columns_ptr, mask=mask, other=-float("inf")).to(tl.float32)
    numerator = tl.exp(x - tl.max(x, axis=1)[:, None])
    y = numerator * (1.0 / tl.sum(numerator, axis=1))[:, None]  # one division a row, not one an element
    tl.store(output_ptr + row * columns + column, y, mask=inside)


@triton.jit
def wide_softmax_kernel(
    input_ptr, output_ptr, columns, row_stride, column_stride, queries, CAUSAL: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    input_ptr += row * row_stride
    output_ptr += row * columns
    visible = columns
    if CAUSAL:
        visible = tl.minimum(columns, row % queries + 1)
    # Every lane keeps a running maximum and the sum of exponentials below it; they meet after the loop.
    maximum = tl.full((BLOCK_COLUMNS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, visible, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        x = tl.load(input_ptr + column * column_stride, mask=column < visible, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(maximum, x, propagate_nan=tl.PropagateNan.ALL)
        # A lane that has seen nothing but -inf has no maximum to subtract: -inf - -inf is NaN.
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(maximum - shift) + tl.exp(x - shift)
        maximum = larger
    row_maximum = tl.max(maximum, axis=0)
    row_total = tl.sum(total * tl.exp(maximum - row_maximum), axis=0)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        x = tl.load(input_ptr + column * column_stride, mask=column < visible, other=-float("inf")).to(tl.float32)
        tl.store(output_ptr + column, tl.exp(x - row_maximum) / row_total, mask=column < columns)


@triton.jit
def softmax_backward_kernel(
    grad_ptr, output_ptr, input_grad_ptr, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    y = tl.load(output_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
    input_grad = y * (grad - tl.sum(y * grad, axis=1)[:, None])
    tl.store(input_grad_ptr + row * columns + column, input_grad, mask=mask)


@triton.jit
def wide_softmax_backward_kernel(grad_ptr, output_ptr, input_grad_ptr, columns, BLOCK_COLUMNS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * columns
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        y = tl.load(output_ptr + first + column, mask=column < columns, other=0.0).to(tl.float32)
        total += y * tl.load(grad_ptr + first + column, mask=column < columns, other=0.0).to(tl.float32)
    dot = tl.sum(total, axis=0)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        y = tl.load(output_ptr + first + column, mask=column < columns, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + first + column, mask=column < columns, other=0.0).to(tl.float32)
        tl.store(input_grad_ptr + first + column, y * (grad - dot), mask=column < columns)


def _tile(rows: int, columns: int) -> dict[str, int]:
    """The launch options for rows that fit in one block."""
    width = next_power_of_2(columns)
    block_rows = min(next_power_of_2(rows), max(1, TILE_ELEMENTS // width))
    return {"BLOCK_ROWS": block_rows, "BLOCK_COLUMNS": width, "num_warps": max(2, width // 1024)}


def _fake(input, queries, causal, dtype):
    return input.new_empty(input.shape, dtype=dtype)


@operator("softmax(Tensor input, SymInt queries, bool causal, ScalarType dtype) -> Tensor", _fake)
def _softmax(x: torch.Tensor, queries: int, causal: bool, dtype: torch.dtype) -> torch.Tensor:
    """Softmax over the rows of x, (rows, columns) with any strides; contiguous."""
    rows, columns = x.shape
    output = torch.empty((rows, columns), dtype=dtype, device=x.device)
    if next_power_of_2(columns) <= WIDEST:
        tile = _tile(rows, columns)
        if columns <= 256:  # a warp with rows of its own: faster forward on an H200, and slower backward
            tile["num_warps"] = 1
        softmax_kernel[(cdiv(rows, tile["BLOCK_ROWS"]),)](x, output, rows, columns, *x.stride(), queries, CAUSAL=causal, **tile)
    else:
        wide_softmax_kernel[(rows,)](
            x, output, columns, *x.stride(), queries, CAUSAL=causal, BLOCK_COLUMNS=WIDEST // 4, num_warps=8
        )
    return output


@operator(
    "softmax_backward(Tensor grad, Tensor output, ScalarType dtype) -> Tensor",
    lambda grad, output, dtype: output.new_empty(output.shape, dtype=dtype),
)
def _softmax_backward(grad: torch.Tensor, output: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows, columns = output.shape
    grad = grad.contiguous()
    input_grad = torch.empty((rows, columns), dtype=dtype, device=output.device)
    if next_power_of_2(columns) <= WIDEST:
        tile = _tile(rows, columns)
        softmax_backward_kernel[(cdiv(rows, tile["BLOCK_ROWS"]),)](grad, output, input_grad, rows, columns, **tile)
    else:
        wide_softmax_backward_kernel[(rows,)](grad, output, input_grad, columns, BLOCK_COLUMNS=WIDEST // 4, num_warps=8)
    return input_grad


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, queries, causal, dtype):
        output = _softmax(x, queries, causal, dtype)
        ctx.save_for_backward(output)
        ctx.dtype = x.dtype
        return output

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        return _softmax_backward(grad, *ctx.saved_tensors, ctx.dtype), None, None, None


def softmax(input: torch.Tensor, dim: int, dtype: torch.dtype | None = None, *, causal: bool = False) -> torch.Tensor:
    """`torch.nn.functional.softmax` along `dim`, computed in float32 and returned in `dtype`, by default the input's.

    causal: `dim` has to be the last and `input` (..., queries, keys); query i sees keys 0 to i, and the others get 0.
    The result is contiguous when `dim` is the last dimension. A `dtype` is what the input is converted to first, as in PyTorch;
    under CUDA's autocast it is float32.
    """
    if dtype is not None and isinstance(input, torch.Tensor) and refusal(input.dtype) and not refusal(dtype):
        input = input.to(dtype)
    check_tensors("softmax", input=input)
    whole = hasattr(dim, "__index__") and not isinstance(dim, bool)  # NumPy's integers are no int
    if not whole or not -max(input.ndim, 1) <= dim < max(input.ndim, 1):
        raise ValueError(f"softmax: dim is {dim!r}; an int from {-max(input.ndim, 1)} to {max(input.ndim, 1) - 1} is accepted")
    dim = int(dim)
    if causal and (input.ndim < 2 or dim % input.ndim != input.ndim - 1):
        raise ValueError(f"softmax: causal=True needs (..., queries, keys) and dim=-1; got {tuple(input.shape)} and dim={dim}")
    if dtype is not None and refusal(dtype):
        raise TypeError(f"softmax: dtype={dtype} is not supported: {refusal(dtype)}")
    dtype = dtype or (torch.float32 if autocast_to_float32(input) else input.dtype)
    if dtype.itemsize <= input.element_size():  # to a wider type the kernel converts, and nothing is lost
        input = input.to(dtype)
    if input.numel() == 0:
        return torch.empty_like(input, dtype=dtype) if not needs_gradient(input) else input.to(dtype, copy=True)
    if input.ndim == 0:
        return softmax(input.reshape(1), 0, dtype).reshape(())
    last = input.movedim(dim, -1)
    x = last.reshape(-1, last.shape[-1])  # a view where the rows are evenly spaced, else a copy
    queries = last.shape[-2] if causal else 1
    run = _Softmax.apply if needs_gradient(x) else _softmax
    return run(x, queries, causal, dtype).view(last.shape).movedim(-1, dim)
