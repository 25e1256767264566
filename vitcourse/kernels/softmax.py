"""`softmax` over rows, plain and causal.

A row that fits in one block stays on chip: a program owns BLOCK_ROWS whole rows, reads each once and writes it once. A wider
row is walked twice by the one program that owns it: once for its maximum and its sum together (online softmax, Milakov and
Gimelshein, arXiv 1805.02867), once to write.
"""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, check_tensors

# The widest row held in registers, and the elements a program holds of narrower ones: 32 for each thread of 2 to 8 warps.
WIDEST = 1 << 17 if INTERPRETER else 8192
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
    y = numerator / tl.sum(numerator, axis=1)[:, None]
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


def softmax(input: torch.Tensor, dim: int, dtype: torch.dtype | None = None, *, causal: bool = False) -> torch.Tensor:
    """`torch.nn.functional.softmax` along `dim`, computed in float32 and returned in the input's type.

    causal: `dim` has to be the last and `input` (..., queries, keys); query i sees keys 0 to i, and the others get 0.
    The result is contiguous along `dim` when that is the last dimension. `dtype` is not supported.
    """
    check_tensors("softmax", input=input)
    if dtype is not None and dtype != input.dtype:
        raise ValueError(f"softmax: dtype={dtype} is not supported; the result has the input's type, {input.dtype}")
    if not isinstance(dim, int) or not -max(input.ndim, 1) <= dim < max(input.ndim, 1):
        raise ValueError(f"softmax: dim is {dim!r}; an int from {-max(input.ndim, 1)} to {max(input.ndim, 1) - 1} is accepted")
    if causal and (input.ndim < 2 or dim % input.ndim != input.ndim - 1):
        raise ValueError(f"softmax: causal=True needs (..., queries, keys) and dim=-1; got {tuple(input.shape)} and dim={dim}")
    if input.numel() == 0:
        return torch.empty_like(input)
    if input.ndim == 0:
        return softmax(input.reshape(1), 0).reshape(())
    last = input.movedim(dim, -1)
    x = last.reshape(-1, last.shape[-1])  # a view where the rows are evenly spaced, else a copy
    rows, columns = x.shape
    output = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    queries = last.shape[-2] if causal else 1
    width = triton.next_power_of_2(columns)
    if width <= WIDEST:
        block_rows = min(triton.next_power_of_2(rows), max(1, TILE_ELEMENTS // width))
        softmax_kernel[(triton.cdiv(rows, block_rows),)](
            x,
            output,
            rows,
            columns,
            *x.stride(),
            queries,
            CAUSAL=causal,
            BLOCK_ROWS=block_rows,
            BLOCK_COLUMNS=width,
            num_warps=max(2, width // 1024),
        )
    else:
        wide_softmax_kernel[(rows,)](
            x, output, columns, *x.stride(), queries, CAUSAL=causal, BLOCK_COLUMNS=WIDEST // 2, num_warps=8
        )
    return output.view(last.shape).movedim(-1, dim)
