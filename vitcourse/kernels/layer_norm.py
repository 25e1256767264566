"""`layer_norm`: (x - mean) / sqrt(variance + eps) * weight + bias over rows (Ba, Kiros and Hinton, arXiv 1607.06450).

A row that fits in one block stays on chip: a program owns BLOCK_ROWS whole rows, reads each once, takes the mean, then the
mean of the squared differences (two passes over registers, none over memory), and writes once. A wider row is walked three
times by the one program that owns it.
"""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, check_tensors

# The widest row held in registers, and the elements a program holds of narrower ones: 32 for each thread of 2 to 8 warps.
WIDEST = 1 << 17 if INTERPRETER else 8192
TILE_ELEMENTS = 1 << 17 if INTERPRETER else 2048


@triton.jit
def layer_norm_kernel(
    input_ptr, weight_ptr, bias_ptr, output_ptr, rows, columns, row_stride, column_stride, eps,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_COLUMNS)
    column_mask = column < columns
    mask = (row < rows) & column_mask[None, :]
    columns_ptr = input_ptr + row * row_stride + column[None, :].to(tl.int64) * column_stride  # a column may be far from the next
    x = tl.load(columns_ptr, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / columns
    # Lanes past the row's end hold 0, and 0 - mean is not 0: without this mask each would add mean^2 to the variance.
    centered = tl.where(mask, x - mean[:, None], 0.0)
    variance = tl.sum(centered * centered, axis=1) / columns
    y = centered * (1.0 / tl.sqrt(variance + eps))[:, None]
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + column, mask=column_mask).to(tl.float32)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=column_mask).to(tl.float32)[None, :]
    tl.store(output_ptr + row * columns + column[None, :], y, mask=mask)


@triton.jit
def wide_layer_norm_kernel(
    input_ptr, weight_ptr, bias_ptr, output_ptr, columns, row_stride, column_stride, eps,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    input_ptr += row * row_stride
    output_ptr += row * columns
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        total += tl.load(input_ptr + column * column_stride, mask=column < columns, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / columns
    squares = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        x = tl.load(input_ptr + column * column_stride, mask=column < columns, other=0.0).to(tl.float32)
        centered = tl.where(column < columns, x - mean, 0.0)
        squares += centered * centered
    rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / columns + eps)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        mask = column < columns
        y = (tl.load(input_ptr + column * column_stride, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
        if HAS_WEIGHT:
            y *= tl.load(weight_ptr + column, mask=mask).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(bias_ptr + column, mask=mask).to(tl.float32)
        tl.store(output_ptr + column, y, mask=mask)


def layer_norm(
    input: torch.Tensor,
    normalized_shape: list[int] | tuple[int, ...],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`torch.nn.functional.layer_norm` over the last `len(normalized_shape)` dimensions; statistics in float32.

    input: (..., *normalized_shape), any strides; weight, bias: normalized_shape. The result is contiguous.
    """
    check_tensors("layer_norm", {"weight": weight, "bias": bias}, input=input)
    if isinstance(normalized_shape, int):
        raise TypeError(f"layer_norm: normalized_shape is {normalized_shape}; a list or tuple of int is accepted")
    shape = tuple(normalized_shape)
    if not shape or input.shape[input.ndim - len(shape) :] != shape:
        raise ValueError(
            f"layer_norm: input is {tuple(input.shape)}; with normalized_shape={shape}, (..., {str(shape)[1:-1]}) is accepted"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"layer_norm: {name} is {tuple(tensor.shape)}; {shape} is accepted")
    output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    if output.numel() == 0:
        return output
    columns = torch.Size(shape).numel()
    x = input.reshape(-1, columns)
    rows = x.shape[0]
    weight = None if weight is None else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    flags = {"HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}
    width = triton.next_power_of_2(columns)
    if width <= WIDEST:
        block_rows = min(triton.next_power_of_2(rows), max(1, TILE_ELEMENTS // width))
        layer_norm_kernel[(triton.cdiv(rows, block_rows),)](
            x,
            weight,
            bias,
            output,
            rows,
            columns,
            *x.stride(),
            eps,
            **flags,
            BLOCK_ROWS=block_rows,
            BLOCK_COLUMNS=width,
            num_warps=max(2, width // 1024),
        )
    else:
        wide_layer_norm_kernel[(rows,)](
            x, weight, bias, output, columns, *x.stride(), eps, **flags, BLOCK_COLUMNS=WIDEST // 2, num_warps=8
        )
    return output
