"""Answers to the exercises of lesson 02: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

# ---- add_row -----------------------------------------------------------------------------------------------------------------


@triton.jit
def row_kernel(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    if MISTAKE == "no program id for columns":
        column = tl.arange(0, BLOCK_COLUMNS)
    if MISTAKE == "no program id for rows":
        row = tl.arange(0, BLOCK_ROWS)
    if MISTAKE == "program ids exchanged":
        row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    if MISTAKE == "two tiles apart":
        column = tl.program_id(1) * BLOCK_COLUMNS * 2 + tl.arange(0, BLOCK_COLUMNS)
    if MISTAKE == "half a tile apart":
        row = tl.program_id(0) * (BLOCK_ROWS // 2) + tl.arange(0, BLOCK_ROWS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    if MISTAKE == "mask of columns against rows":
        mask = (row < rows)[:, None] & (column < rows)[None, :] & (column < columns)[None, :]
    offsets = row[:, None] * columns + column[None, :]
    x_offsets = offsets
    if MISTAKE == "x transposed":
        x_offsets = column[None, :] * rows + row[:, None]
    x = tl.load(x_ptr + x_offsets, mask=mask)
    if MISTAKE == "row number":
        added = tl.load(row_ptr + row, mask=(row < rows) & (row < columns))[:, None]
    elif MISTAKE == "row of the first tile":
        added = tl.load(row_ptr + tl.arange(0, BLOCK_COLUMNS), mask=tl.arange(0, BLOCK_COLUMNS) < columns)[None, :]
    elif MISTAKE == "first element of row":
        added = tl.load(row_ptr)
    elif MISTAKE == "row from x":
        added = tl.load(x_ptr + column, mask=column < columns)[None, :]
    else:
        added = tl.load(row_ptr + column, mask=column < columns)[None, :]
    result = x + added
    if MISTAKE == "drops row":
        result = x
    elif MISTAKE == "minus":
        result = x - added
    elif MISTAKE == "times":
        result = x * added
    elif MISTAKE == "float16":
        result = (x.to(tl.float16) + added.to(tl.float16)).to(x.dtype)
    if MISTAKE == "stored transposed":
        offsets = column[None, :] * rows + row[:, None]
    if MISTAKE == "stores to x":
        tl.store(x_ptr + offsets, result, mask=mask)
    else:
        tl.store(output_ptr + offsets, result, mask=mask)


@triton.jit
def row_no_mask(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    x = tl.load(x_ptr + row * columns + column)
    added = tl.load(row_ptr + column)
    tl.store(output_ptr + row * columns + column, x + added)


@triton.jit
def row_mask_of_rows(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = row[:, None] < rows
    x = tl.load(x_ptr + row[:, None] * columns + column, mask=mask)
    added = tl.load(row_ptr + column, mask=column < columns)
    tl.store(output_ptr + row[:, None] * columns + column, x + added, mask=mask)


@triton.jit
def row_mask_of_columns(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = column < columns
    x = tl.load(x_ptr + row[:, None] * columns + column, mask=inside[None, :])
    added = tl.load(row_ptr + column, inside)
    tl.store(output_ptr + row[:, None] * columns + column, x + added, mask=inside[None, :])


@triton.jit
def row_mask_with_or(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (row < rows)[:, None] | (column < columns)[None, :]
    x = tl.load(x_ptr + row[:, None] * columns + column, mask=mask)
    added = tl.load(row_ptr + column, mask=column < columns)
    tl.store(output_ptr + row[:, None] * columns + column, x + added, mask=mask)


@triton.jit
def row_mask_one_more(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = row[:, None] < rows
    mask &= column[None, :] <= columns
    x = tl.load(x_ptr + row[:, None] * columns + column, mask=mask)
    added = tl.load(row_ptr + column, mask=column < columns)
    tl.store(output_ptr + row[:, None] * columns + column, x + added, mask=mask)


@triton.jit
def row_no_mask_on_row(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    added = tl.load(row_ptr + column)
    tl.store(output_ptr + row * columns + column, tl.load(x_ptr + row * columns + column, mask=mask) + added, mask=mask)


@triton.jit
def row_mask_on_row_only(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    x = tl.load(x_ptr + row * columns + column, mask=mask)
    added = tl.load(row_ptr + column, mask=column < columns)
    tl.store(output_ptr + row * columns + column, x + added)


@triton.jit
def row_stride_of_the_block(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    x = tl.load(x_ptr + row * BLOCK_COLUMNS + column, mask=mask)
    tl.store(output_ptr + row * columns + column, x + tl.load(row_ptr + column, mask=column < columns), mask=mask)


@triton.jit
def row_empty(
    x_ptr, row_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    pass


@triton.jit
def flat_row_kernel(x_ptr, row_ptr, output_ptr, size, columns, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    added = tl.load(row_ptr + offsets % columns, mask=mask)
    tl.store(output_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) + added, mask=mask)


@triton.jit
def program_a_row_kernel(x_ptr, row_ptr, output_ptr, columns, LOOP: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0) * columns
    for first in range(0, columns if LOOP else BLOCK, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = column < columns
        added = tl.load(row_ptr + column, mask=mask)
        tl.store(output_ptr + start + column, tl.load(x_ptr + start + column, mask=mask) + added, mask=mask)


def both(rows, columns, block_rows, block_columns):
    return triton.cdiv(rows, block_rows), triton.cdiv(columns, block_columns)


def row(mistake="", kernel=row_kernel, grid=both, blocks=(16, 64), output=torch.empty_like):
    """An answer to add_row: how it allocates, how it launches which kernel."""

    def function(x, row):
        result = output(x)
        kernel[grid(*x.shape, *blocks)](x, row, result, *x.shape, MISTAKE=mistake, BLOCK_ROWS=blocks[0], BLOCK_COLUMNS=blocks[1])
        return result

    return function


def flat_row(x, row):
    result = torch.empty_like(x)
    flat_row_kernel[(triton.cdiv(x.numel(), 256),)](x, row, result, x.numel(), x.shape[1], BLOCK=256)
    return result


def program_a_row(loop, block):
    def function(x, row):
        result = torch.empty_like(x)
        program_a_row_kernel[(x.shape[0],)](x, row, result, x.shape[1], LOOP=loop, BLOCK=block)
        return result

    return function


def row_by_row(x, row):
    """A launch for each row of the matrix."""
    result = torch.empty_like(x)
    for index in range(x.shape[0]):
        program_a_row_kernel[(1,)](x[index], row, result[index], x.shape[1], LOOP=True, BLOCK=256)
    return result


def row_in_place(x, row):
    kernel_row = both(*x.shape, 16, 64)
    row_kernel[kernel_row](x, row, x, *x.shape, MISTAKE="", BLOCK_ROWS=16, BLOCK_COLUMNS=64)
    return x


@triton.jit
def add_matrices_kernel(x_ptr, y_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    tl.store(output_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) + tl.load(y_ptr + offsets, mask=mask), mask=mask)


def add_flat(x, y):
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    add_matrices_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, result, x.numel(), BLOCK=1024)
    return result


def transposed_output(x):
    return torch.empty(x.shape[::-1], dtype=x.dtype, device=x.device)


def as_float32(x):
    return torch.empty(x.shape, device=x.device)


MASK = r"\(row < rows\)(\[:, None\])? & \(column < columns\)(\[None, :\])?\."

ADD_ROW_WRONG = [
    (row(kernel=row_no_mask), rf"(?s)\(1, 1\) in float32.*loads outside of x_ptr.*This load has no mask.*{MASK}"),
    (row(kernel=row_mask_of_rows), rf"(?s)\(1, 1\) in float32.*outside of x_ptr.*looks at one dimension.*{MASK}"),
    (row(kernel=row_mask_of_columns), rf"(?s)\(1, 1\) in float32.*outside of x_ptr.*looks at one dimension.*{MASK}"),
    (row(kernel=row_mask_with_or), r"join the two conditions with &"),
    (row(kernel=row_mask_one_more), "not <="),
    (row(kernel=row_no_mask_on_row), "(?s)outside of row_ptr.*load has no mask.*mask=column < columns"),
    (row(kernel=row_mask_on_row_only), rf"(?s)stores outside of output_ptr.*This store has no mask.*{MASK}"),
    (row(kernel=row_stride_of_the_block), r"(?s)\(3, 5\) in.*outside of x_ptr.*element \(i, j\) of x_ptr is at i \* 5 \+ j \* 1"),
    (row("no program id for columns"), r"(?s)\(5, 130\).*index \(0, 64\).*never stored.*same columns again"),
    (row("no program id for rows"), r"(?s)\(130, 5\).*index \(16, 0\).*never stored.*same rows again"),
    (row("program ids exchanged"), r"(?s)\(5, 130\).*never stored.*BLOCK_COLUMNS"),
    (row("two tiles apart", blocks=(16, 32)), r"(?s)\(5, 130\).*index \(0, 32\).*gaps between the tiles.*columns move on"),
    (row("half a tile apart"), r"(?s)\(130, 5\).*(tiles overlap|same rows)"),
    (row("mask of columns against rows"), r"(?s)\(3, 5\).*index \(0, 3\).*never stored.*last columns are masked off"),
    (row("x transposed"), r"(?s)\(3, 5\).*index \(0, 1\).*x is read transposed"),
    (row("stored transposed"), r"(?s)\(3, 5\).*stored transposed"),
    (row("row number"), r"(?s)\(3, 5\).*index \(0, 1\).*number of the row"),
    (row("row of the first tile"), r"(?s)\(5, 130\).*index \(0, 64\).*row_ptr \+ column"),
    (row("first element of row"), r"(?s)\(3, 5\).*first element of row is added everywhere"),
    (row("row from x"), "row is never read|2 \\* x"),
    (row("drops row"), "row was never added"),
    (row("minus"), "x - row: add them"),
    (row("times"), r"x \* row: add them"),
    (row("float16"), "three digits"),
    (row("stores to x"), "(?s)changed its input x.*wrong tensor"),
    (row(grid=lambda r, c, br, bc: (triton.cdiv(r, br),)), r"(?s)\(5, 130\).*index \(0, 64\).*columns belong to no program"),
    (row(grid=lambda r, c, br, bc: (1, triton.cdiv(c, bc))), r"(?s)\(130, 5\).*index \(16, 0\).*rows belong to no program"),
    (row(grid=lambda r, c, br, bc: (max(1, r // br), max(1, c // bc))), r"(?s)\(5, 130\).*\(0, 128\).*columns.*rounded up"),
    (row(grid=lambda r, c, br, bc: (r // br, c // bc)), r"(?s)\(1, 1\).*no programs.*round up"),
    (row(grid=lambda r, c, br, bc: (triton.cdiv(r, br), triton.cdiv(c, bc), 2)), "(?s)more than once.*same tile"),
    (row(output=transposed_output), r"(?s)\(3, 5\).*shape \(5, 3\)"),
    (row(output=as_float32), r"(?s)\(1, 1\) in float16.*wrong type: float32"),
    (row_in_place, "works in place"),
    (row_by_row, "(?s)3 kernels were launched.*grid of tiles"),
    (program_a_row(False, 64), r"(?s)\(5, 130\).*\(0, 64\).*last columns belong to no program"),
    (lambda x, row: add_flat(x, row.expand(x.shape).contiguous()), "(?s)does not read row itself.*written row out"),
    (lambda x, row: add_flat(x + row, torch.zeros_like(x)), "does not read x itself"),
    (lambda x, row: x + row, "No kernel was launched"),
    (lambda x, row: torch.empty_like(x), "never written"),
    (lambda x, row_: row()(x, row_).clone(), "no kernel wrote"),
]

# ---- add_strided ---------------------------------------------------------------------------------------------------------------


@triton.jit
def strided_kernel(
    x_ptr, y_ptr, output_ptr, rows, columns,
    x_row_stride, x_column_stride, y_row_stride, y_column_stride, output_row_stride, output_column_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    x = tl.load(x_ptr + row * x_row_stride + column * x_column_stride, mask=mask)
    y = tl.load(y_ptr + row * y_row_stride + column * y_column_stride, mask=mask)
    tl.store(output_ptr + row * output_row_stride + column * output_column_stride, x + y, mask=mask)


@triton.jit
def buggy_strided_kernel(
    x_ptr, y_ptr, output_ptr, rows, columns, x_row_stride, x_column_stride, y_row_stride, y_column_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (row < rows)[:, None]
    x = tl.load(x_ptr + row[:, None] * x_row_stride + column[None, :] * x_column_stride, mask=mask)
    y = tl.load(y_ptr + row[:, None] * x_row_stride + column[None, :] * x_column_stride, mask=mask)
    tl.store(output_ptr + row[:, None] * columns + column[None, :], x + y, mask=mask)


@triton.jit
def strided_mask_on_loads(
    x_ptr, y_ptr, output_ptr, rows, columns, x_row_stride, x_column_stride, y_row_stride, y_column_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    mask = (row < rows)[:, None]
    x = tl.load(x_ptr + row[:, None] * x_row_stride + column[None, :] * x_column_stride, mask=inside)
    y = tl.load(y_ptr + row[:, None] * y_row_stride + column[None, :] * y_column_stride, mask=inside)
    tl.store(output_ptr + row[:, None] * columns + column[None, :], x + y, mask=mask)


@triton.jit
def strided_mask_one_more(
    x_ptr, y_ptr, output_ptr, rows, columns, x_row_stride, x_column_stride, y_row_stride, y_column_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (row < rows)[:, None] & (column <= columns)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_row_stride + column[None, :] * x_column_stride, mask=mask)
    y = tl.load(y_ptr + row[:, None] * y_row_stride + column[None, :] * y_column_stride, mask=mask)
    tl.store(output_ptr + row[:, None] * columns + column[None, :], x + y, mask=mask)


@triton.jit
def flat_strided_kernel(
    x_ptr, y_ptr, output_ptr, size, columns, x_row_stride, x_column_stride, y_row_stride, y_column_stride, BLOCK: tl.constexpr
):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    row, column = offsets // columns, offsets % columns
    x = tl.load(x_ptr + row * x_row_stride + column * x_column_stride, mask=mask)
    y = tl.load(y_ptr + row * y_row_stride + column * y_column_stride, mask=mask)
    tl.store(output_ptr + offsets, x + y, mask=mask)


def own(x, y):
    return (*x.stride(), *y.stride())


def strided(strides=own, output=lambda x: torch.empty(x.shape, dtype=x.dtype, device=x.device), stored=None, blocks=(16, 32)):
    """An answer to add_strided: which strides it hands over, and how it allocates the output and stores there."""

    def function(x, y):
        result = output(x)
        strided_kernel[both(*x.shape, *blocks)](
            x, y, result, *x.shape, *strides(x, y), *(stored(x, y) if stored else result.stride()),
            BLOCK_ROWS=blocks[0], BLOCK_COLUMNS=blocks[1],
        )  # fmt: skip
        return result

    return function


def strided_by(kernel, grid=both):
    def function(x, y):
        result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        kernel[grid(*x.shape, 16, 16)](x, y, result, *x.shape, *own(x, y), BLOCK_ROWS=16, BLOCK_COLUMNS=16)
        return result

    return function


def flat_strided(x, y):
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    flat_strided_kernel[(triton.cdiv(x.numel(), 128),)](x, y, result, x.numel(), x.shape[1], *own(x, y), BLOCK=128)
    return result


def strided_in_place(x, y):
    strided(output=lambda x: x)(x, y)
    return x


def without_expanded(function):
    """For an answer that goes wrong where x's memory is shared by several elements."""
    return lambda x, y: function(x if 0 not in x.stride() else x.contiguous(), y)


Y_MISREAD = r"y is read with x's strides: every tensor has its own.*i \* y.stride\(0\) \+ j \* y.stride\(1\)"

ADD_STRIDED_WRONG = [
    (strided_by(buggy_strided_kernel), rf"(?s)\(1, 1\) in float32.*loads outside of x_ptr.*looks at one dimension.*{MASK}"),
    (strided_by(strided_mask_on_loads), rf"(?s)\(1, 1\) in float32.*stores outside of output_ptr.*one dimension.*{MASK}"),
    (strided_by(strided_mask_one_more), r"(?s)\(1, 1\) in float32.*not <="),
    (strided(lambda x, y: (*x.stride(), *x.stride())), rf"(?s)\(3, 5\), x contiguous, y transposed, in.*{Y_MISREAD}"),
    (strided(lambda x, y: (*y.stride(), *y.stride())), "(?s)y transposed, in.*x is read with y's strides"),
    (strided(lambda x, y: (*x.stride(), x.shape[1], 1)), "y is read (as if it were contiguous|with x's strides)"),
    (strided(lambda x, y: (x.shape[1], 1, *y.stride())), "(?s)x transposed.*x is read (as if it were contiguous|with y's)"),
    (
        strided(lambda x, y: (*x.stride(), y.stride(0), x.stride(1))),
        "y's columns are read with x's stride|y's column stride is left",
    ),
    (strided(lambda x, y: (*x.stride(), y.stride(0), 1)), "(?s)y transposed.*y's column stride is left out"),
    (
        strided(lambda x, y: (*x.stride(), x.stride(0), y.stride(1))),
        r"y_ptr is at i \* 1 \+ j \* 3|y's rows are read with x's stride",
    ),
    (strided(lambda x, y: (*x.stride(), *y.stride()[::-1])), r"(?s)\(3, 5\) in float32.*y_ptr is at i \* 5 \+ j \* 1"),
    (strided(lambda x, y: (*x.stride(), y.stride(0), y.stride(0))), r"y_ptr is at i \* 5 \+ j \* 1|columns as well"),
    (strided(lambda x, y: (*x.stride(), y.stride(1), y.stride(1))), "y's column stride is used for its rows"),
    (strided(lambda x, y: (x.shape[1], 1, y.shape[1], 1)), "y transposed.*as if it were contiguous|with x's strides"),
    (strided(output=torch.empty_like), "(?s)x transposed.*values are right, but the result is not contiguous.*empty_like"),
    (strided(output=torch.empty_like, stored=lambda x, y: (x.shape[1], 1)), r"(?s)x transposed.*empty_like\(x\) has x's strides"),
    (strided(stored=lambda x, y: x.stride()), "(?s)x transposed, y contiguous.*stored with x's strides"),
    (strided(stored=lambda x, y: y.stride()), "(?s)x contiguous, y transposed.*stored with y's strides"),
    (strided(stored=lambda x, y: (1, x.shape[0])), r"(?s)\(3, 5\) in float32.*stored transposed"),
    (lambda x, y: strided()(x.contiguous(), y.contiguous()), r"(?s)does not read y itself.*y was copied first.*\.contiguous\(\)"),
    (lambda x, y: strided()(x, y.contiguous()), "(?s)x contiguous, y transposed.*does not read y itself"),
    (lambda x, y: strided()(x.contiguous(), y), "(?s)x transposed, y contiguous.*does not read x itself"),
    (lambda x, y: strided()(x, y + 0), r"(?s)\(1, 1\) in.*does not read y itself"),
    (lambda x, y: add_flat(x.reshape(-1), y.reshape(-1)).reshape(x.shape), "does not read y itself"),
    (
        lambda x, y: add_flat(x, y),
        r"(?s)\(3, 5\), x contiguous, y transposed.*y is read (as if it were contiguous|with x's strides)",
    ),
    (strided(lambda x, y: own(x, y), blocks=(16, 32), stored=lambda x, y: (0, 1)), "stored several times and others never"),
    (strided_by(strided_mask_on_loads, lambda r, c, br, bc: (r // br, c // bc)), "no programs"),
    (strided_in_place, "works in place"),
    (lambda x, y: strided()(x, x), "2 \\* x|y is never read"),
    (lambda x, y: x + y, "No kernel was launched"),
]

# ---- sum_rows ------------------------------------------------------------------------------------------------------------------


@triton.jit
def sum_kernel(grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    stop = rows
    if MISTAKE == "one block":
        stop = BLOCK_ROWS
    if MISTAKE == "rounds down":
        stop = rows // BLOCK_ROWS * BLOCK_ROWS
    step = BLOCK_ROWS
    if MISTAKE == "step of half a block":
        step = BLOCK_ROWS // 2
    if MISTAKE == "step of two blocks":
        step = BLOCK_ROWS * 2
    for first in range(0, stop, step):
        row = first + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        offsets = row[:, None] * columns + column[None, :]
        if MISTAKE == "transposed":
            offsets = column[None, :] * rows + row[:, None]
        other = 0.0
        if MISTAKE == "other is one":
            other = 1.0
        if MISTAKE == "other is minus infinity":
            other = float("-inf")
        block = tl.load(grad_ptr + offsets, mask=mask, other=other)
        if MISTAKE == "sum in the input's type":
            total = (total + tl.sum(block, axis=0).to(tl.float32)).to(block.dtype).to(tl.float32)
        elif MISTAKE == "sum in float16":
            total = (total + tl.sum(block.to(tl.float32), axis=0)).to(tl.float16).to(tl.float32)
        elif MISTAKE == "replaces":
            total = tl.sum(block.to(tl.float32), axis=0)
        elif MISTAKE == "squares":
            total += tl.sum(block.to(tl.float32) * block.to(tl.float32), axis=0)
        elif MISTAKE == "largest":
            total = tl.maximum(tl.where(first == 0, float("-inf"), total), tl.max(tl.where(mask, block, float("-inf")), axis=0))
        elif MISTAKE == "minus":
            total -= tl.sum(block.to(tl.float32), axis=0)
        elif MISTAKE == "does not add":
            total += 0
        else:
            total += tl.sum(block.to(tl.float32), axis=0)
        if MISTAKE == "stores in the loop":
            tl.store(output_ptr + column, total, mask=column < columns)
    if MISTAKE == "mean":
        total /= rows
    if MISTAKE == "twice":
        total *= 2
    if MISTAKE != "stores in the loop":
        tl.store(output_ptr + column, total, mask=column < columns)


@triton.jit
def sum_row_by_row(grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    total = tl.load(grad_ptr + column, mask=mask)
    if MISTAKE != "input's type":
        total = total.to(tl.float32)
    first = 1
    if MISTAKE == "first row twice":
        first = 0
    for row in range(first, rows):
        total += tl.load(grad_ptr + row * columns + column, mask=mask)
    tl.store(output_ptr + column, total, mask=mask)


@triton.jit
def sum_no_column_mask(grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(0, rows):
        total += tl.load(grad_ptr + row * columns + column)
    tl.store(output_ptr + column, total, mask=column < columns)


@triton.jit
def sum_no_mask_on_store(grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(0, rows):
        total += tl.load(grad_ptr + row * columns + column, mask=column < columns)
    tl.store(output_ptr + column, total)


@triton.jit
def sum_no_row_mask(
    grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, rows, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)[:, None]
        total += tl.load(grad_ptr + row * columns + column, mask=column < columns, other=0.0)
    tl.store(output_ptr + column, tl.sum(total, axis=0)[None, :], mask=column < columns)


@triton.jit
def sum_of_blocks_kernel(
    grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    block = tl.load(grad_ptr + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    total = tl.sum(block.to(tl.float32), axis=0)
    if MISTAKE == "atomics":
        tl.atomic_add(output_ptr + column, total.to(output_ptr.dtype.element_ty), mask=column < columns)
    else:
        tl.store(output_ptr + column, total, mask=column < columns)


@triton.jit
def sum_along_rows(
    grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    for first in range(0, columns, BLOCK_COLUMNS):
        column = first + tl.arange(0, BLOCK_COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        block = tl.load(grad_ptr + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
        total += tl.sum(block.to(tl.float32), axis=1)
    tl.store(output_ptr + row, total, mask=row < rows)


@triton.jit
def sum_tall_tile(
    grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, rows, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(grad_ptr + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    tl.store(output_ptr + column, tl.sum(total, axis=0), mask=column < columns)


def column(grad):
    return torch.empty(grad.shape[1], dtype=grad.dtype, device=grad.device)


def sums(
    mistake="", kernel=sum_kernel, output=column, blocks=(32, 64), grid=lambda columns, block: (triton.cdiv(columns, block),)
):
    def function(grad):
        result = output(grad)
        kernel[grid(grad.shape[1], blocks[1])](
            grad, result, *grad.shape, MISTAKE=mistake, BLOCK_ROWS=blocks[0], BLOCK_COLUMNS=blocks[1]
        )
        return result

    return function


@triton.jit
def sum_all_rows_at_once(
    grad_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    grad = tl.load(grad_ptr + row * columns + column[None, :], mask=(row < rows) & (column < columns)[None, :], other=0.0)
    tl.store(output_ptr + column, tl.sum(grad.to(tl.float32), axis=0), mask=column < columns)


def sums_at_once(grad):
    tall = triton.next_power_of_2(max(len(grad), 1))
    return sums(kernel=sum_all_rows_at_once, blocks=(tall, 64))(grad)


def row_by_row_sums(mistake="", kernel=sum_row_by_row, block=64):
    def function(grad):
        result = column(grad)
        kernel[(triton.cdiv(grad.shape[1], block),)](grad, result, *grad.shape, MISTAKE=mistake, BLOCK=block)
        return result

    return function


def sum_of_blocks(mistake, output=column):
    def function(grad):
        result = output(grad)
        grid = (triton.cdiv(grad.shape[1], 64), triton.cdiv(grad.shape[0], 32))
        sum_of_blocks_kernel[grid](grad, result, *grad.shape, MISTAKE=mistake, BLOCK_ROWS=32, BLOCK_COLUMNS=64)
        return result

    return function


def sum_in_two_launches(grad):
    half = (grad.shape[0] + 1) // 2
    first, second = sums()(grad[:half]), sums()(grad[half:])
    return add_flat(first, second)


def sum_one_launch_a_row(grad):
    result = torch.zeros(grad.shape[1], dtype=torch.float32, device=grad.device)
    for row in grad:
        result = add_flat(result, row.float())
    return result.to(grad.dtype)


def sum_along(grad):
    """Sums the wrong way, and returns as many as there are rows."""
    result = torch.empty(grad.shape[0], dtype=grad.dtype, device=grad.device)
    sum_along_rows[(triton.cdiv(grad.shape[0], 16),)](grad, result, *grad.shape, MISTAKE="", BLOCK_ROWS=16, BLOCK_COLUMNS=64)
    return result


SUM_ROWS_WRONG = [
    (sums_at_once, r"(?s)\(17000, 1\).*A block holds at most 1,048,576 elements"),
    (sums("one block"), r"(?s)\(130, 5\) in float32.*index 0 of 5.*Only the first 32 of 130 rows are read.*goes through all"),
    (sums("rounds down"), r"(?s)\(1, 1\) in.*Zeros were stored.*does the loop make a turn"),
    (sums("step of half a block"), "(?s)rows are read more than once.*BLOCK_ROWS|1 bytes of grad"),
    (sums("step of two blocks"), "(?s)Row 32 is not read in full.*BLOCK_ROWS"),
    (sums("transposed"), r"(?s)\(3, 5\).*grad is read transposed"),
    (sums("other is one"), r"(?s)\(1, 1\).*count in the sum.*other=0.0"),
    (sums("other is minus infinity"), r"(?s)\(1, 1\).*count in the sum.*other=0.0"),
    (sums("sum in the input's type"), r"(?s)\(2750, 3\) in float16.*keep the accumulator in float32"),
    (sums("sum in the input's type", blocks=(128, 16)), r"(?s)\(2750, 3\) in float16.*keep the accumulator in float32"),
    (sums("sum in the input's type", blocks=(8, 16)), r"(?s)\(2750, 3\) in float16.*keep the accumulator in float32"),
    (row_by_row_sums("input's type"), r"(?s)\(2750, 3\) in float16.*keep the accumulator in float32"),
    (sums("sum in float16"), "three digits"),
    (sums("replaces"), "(?s)Only the rows from 128 on.*do not replace it"),
    (sums("squares"), "squares are summed"),
    (sums("largest"), "The result is the largest"),
    (sums("minus"), "sign is wrong"),
    (sums("does not add"), "Zeros were stored"),
    (sums("stores in the loop"), r"(?s)\(130, 5\).*index 0 of 5 is stored more than once.*store is in the loop"),
    (sums("mean"), r"(?s)\(3, 5\).*the mean"),
    (sums("twice"), "twice the sum"),
    (row_by_row_sums("first row twice"), "added before the loop, and again in it"),
    (row_by_row_sums(kernel=sum_no_column_mask), "(?s)loads outside of grad_ptr.*no mask.*column < columns"),
    (row_by_row_sums(kernel=sum_no_mask_on_store), "(?s)stores outside of output_ptr.*no mask.*column < columns"),
    (sums(kernel=sum_no_row_mask), rf"(?s)loads outside of grad_ptr.*one dimension.*{MASK}"),
    (sum_of_blocks("atomics", output=lambda grad: torch.zeros_like(grad[0])), "(?s)atomic updates.*a plain tl.store is enough"),
    (sum_of_blocks("atomics"), "read that was never written"),
    (sum_of_blocks(""), r"(?s)\(130, 5\).*Several programs store the same columns.*the last one wins"),
    (sums(grid=lambda columns, block: (max(1, columns // block),)), r"(?s)\(3, 130\).*index 128 of 130.*never stored.*cdiv"),
    (sums(grid=lambda columns, block: (1,)), r"(?s)\(3, 130\).*index 64 of 130.*never stored"),
    (sums(grid=lambda columns, block: (triton.cdiv(columns, block), 2)), "(?s)more than once.*tl.program_id\\(0\\)|in the loop"),
    (sums(output=lambda grad: torch.empty_like(grad)), r"(?s)\(1, 1\).*shape \(1, 1\), and \(1,\) was expected"),
    (sums(output=lambda grad: torch.empty(grad.shape[1], device=grad.device)), "(?s)in float16.*wrong type: float32"),
    (sum_along, r"(?s)\(3, 5\).*shape \(3,\), and \(5,\)"),
    (sums(kernel=sum_along_rows), "(?s)goes along the rows|never stored|mask"),
    (sum_in_two_launches, "3 kernels were launched"),
    (sum_one_launch_a_row, "Partial sums go out to memory"),
    (lambda grad: grad.sum(0), "No kernel was launched"),
    (lambda grad: sums()(grad.sum(0, keepdim=True)), "does not read grad itself"),
    (lambda grad: sums()(grad).clone(), "no kernel wrote"),
]

# ---- add_positions -------------------------------------------------------------------------------------------------------------


@triton.jit
def positions_kernel(tokens_ptr, positions_ptr, output_ptr, batch, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    if MISTAKE == "no program id":
        offsets = tl.arange(0, BLOCK)
        mask = offsets < size
    positions = tl.load(positions_ptr + offsets, mask=mask)
    if MISTAKE == "first images only":
        batch = 1
    if MISTAKE == "one image too many":
        batch += 1
    if MISTAKE == "one image short":
        batch -= 1
    for index in range(batch):
        start = index * size
        if MISTAKE == "wrong batch stride":
            start = index
        if MISTAKE == "loads in the loop":
            positions = tl.load(positions_ptr + offsets, mask=mask)
        if MISTAKE == "positions of the batch":
            positions = tl.load(positions_ptr + start + offsets, mask=mask)
        if MISTAKE == "tokens of the first image":
            tokens = tl.load(tokens_ptr + offsets, mask=mask)
        else:
            tokens = tl.load(tokens_ptr + start + offsets, mask=mask)
        if MISTAKE == "reads tokens twice":
            tokens = tl.load(tokens_ptr + start + offsets, mask=mask)
        if MISTAKE == "adds up positions":
            result = tokens + positions * (index + 1)
        elif MISTAKE == "adds up tokens":
            positions += tokens
            result = positions
        elif MISTAKE == "minus":
            result = tokens - positions
        elif MISTAKE == "drops positions":
            result = tokens
        elif MISTAKE == "drops tokens":
            result = positions
        elif MISTAKE == "float16":
            result = (tokens.to(tl.float16) + positions.to(tl.float16)).to(tokens.dtype)
        else:
            result = tokens + positions
        if MISTAKE == "stores to the first image":
            tl.store(output_ptr + offsets, result, mask=mask)
        else:
            tl.store(output_ptr + start + offsets, result, mask=mask)


@triton.jit
def positions_in_the_grid(tokens_ptr, positions_ptr, output_ptr, batch, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    start = tl.program_id(1) * size
    positions = tl.load(positions_ptr + offsets, mask=mask)
    tl.store(output_ptr + start + offsets, tl.load(tokens_ptr + start + offsets, mask=mask) + positions, mask=mask)


@triton.jit
def positions_no_mask(tokens_ptr, positions_ptr, output_ptr, batch, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    positions = tl.load(positions_ptr + offsets)
    for index in range(batch):
        tokens = tl.load(tokens_ptr + index * size + offsets)
        tl.store(output_ptr + index * size + offsets, tokens + positions)


@triton.jit
def positions_flat(tokens_ptr, positions_ptr, output_ptr, batch, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < batch * size
    if MISTAKE == "no remainder":
        positions = tl.load(positions_ptr + offsets, mask=mask)
    else:
        positions = tl.load(positions_ptr + offsets % size, mask=mask)
    tl.store(output_ptr + offsets, tl.load(tokens_ptr + offsets, mask=mask) + positions, mask=mask)


@triton.jit
def positions_tile(
    tokens_ptr, positions_ptr, output_ptr, batch, n, d,
    MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < n) & (column < d)
    if MISTAKE == "position of the first token":
        positions = tl.load(positions_ptr + column, mask=column < d)
    else:
        positions = tl.load(positions_ptr + row * d + column, mask=mask)
    for index in range(batch):
        offsets = (index * n + row) * d + column
        tl.store(output_ptr + offsets, tl.load(tokens_ptr + offsets, mask=mask) + positions, mask=mask)


def positions(mistake="", kernel=positions_kernel, block=256, grid=triton.cdiv, output=torch.empty_like):
    def function(tokens, positions):
        result, size = output(tokens), positions.numel()
        kernel[(grid(size, block),)](tokens, positions, result, len(tokens), size, MISTAKE=mistake, BLOCK=block)
        return result

    return function


def positions_by_tiles(mistake="", blocks=(16, 32), grid=both):
    def function(tokens, positions):
        result, (batch, n, d) = torch.empty_like(tokens), tokens.shape
        positions_tile[grid(n, d, *blocks)](
            tokens, positions, result, batch, n, d, MISTAKE=mistake, BLOCK_ROWS=blocks[0], BLOCK_COLUMNS=blocks[1]
        )
        return result

    return function


def positions_by_grid(tokens, positions):
    result, size = torch.empty_like(tokens), positions.numel()
    grid = (triton.cdiv(size, 256), len(tokens))
    positions_in_the_grid[grid](tokens, positions, result, len(tokens), size, MISTAKE="", BLOCK=256)
    return result


def positions_by_flat(mistake):
    def function(tokens, positions):
        result, size = torch.empty_like(tokens), positions.numel()
        grid = (triton.cdiv(tokens.numel(), 256),)
        positions_flat[grid](tokens, positions, result, len(tokens), size, MISTAKE=mistake, BLOCK=256)
        return result

    return function


def positions_image_by_image(tokens, added):
    result = torch.empty_like(tokens)
    for index in range(len(tokens)):
        add_matrices_kernel[(triton.cdiv(added.numel(), 256),)](tokens[index], added, result[index], added.numel(), BLOCK=256)
    return result


def positions_in_place(tokens, added):
    positions(output=lambda tokens: tokens)(tokens, added)
    return tokens


ADD_POSITIONS_WRONG = [
    (positions("no program id", block=4096), r"(?s)\(2, 197, 48\)"),
    (positions("first images only"), r"(?s)\(2, 1, 1\) in.*index \(1, 0, 0\).*never stored.*a loop"),
    (positions("one image short"), r"(?s)\(1, 1, 1\) in.*never stored.*loop makes no turn"),
    (positions("one image too many"), "(?s)loads outside of tokens_ptr"),
    (positions("wrong batch stride"), r"(?s)\(2, 3, 5\).*stored several times and others never.*address"),
    (positions("loads in the loop"), r"(?s)\(1, 1, 1\) in.*8 bytes of positions were read, and it has 4.*before the loop"),
    (positions("positions of the batch"), r"(?s)bytes of positions|All of positions had been read.*no batch dimension"),
    (positions("tokens of the first image"), r"(?s)\(2, 1, 1\).*tokens of the first one"),
    (positions("reads tokens twice"), r"(?s)8 bytes of tokens were read, and it has 4.*once"),
    (positions("adds up positions"), "added twice from the second image on"),
    (positions("adds up tokens"), "added to the one before"),
    (positions("minus"), "tokens - positions: add them"),
    (positions("drops positions"), "positions was never added"),
    (positions("drops tokens"), "tokens was never added"),
    (positions("float16"), "three digits"),
    (positions("stores to the first image"), r"(?s)\(2, 1, 1\).*stored several times and others never"),
    (positions(kernel=positions_no_mask), "(?s)loads outside of positions_ptr.*This load has no mask"),
    (positions_by_grid, r"(?s)\(2, 1, 1\).*8 bytes of positions were read, and it has 4.*out of the grid.*loop over it"),
    (positions_by_flat(""), r"(?s)\(2, 1, 1\).*bytes of positions were read"),
    (positions_by_flat("no remainder"), "(?s)outside of positions_ptr.*no batch dimension"),
    (positions_by_tiles("position of the first token"), r"(?s)\(2, 3, 5\).*Every token gets the position of the first"),
    (positions_by_tiles(grid=lambda n, d, bn, bd: (triton.cdiv(n, bn),)), r"(?s)\(3, 5, 130\).*\(0, 0, 32\).*dimension 2"),
    (positions_by_tiles(grid=lambda n, d, bn, bd: (1, triton.cdiv(d, bd))), r"(?s)\(4, 130, 5\).*\(0, 16, 0\).*dimension 1"),
    (positions(grid=lambda size, block: max(1, size // block)), "(?s)never stored.*triton.cdiv"),
    (positions(grid=lambda size, block: size // block), "no programs"),
    (positions(grid=lambda size, block: triton.cdiv(size, block) + 0, output=as_float32), "wrong type: float32"),
    (positions_image_by_image, r"(?s)\(2, 1, 1\).*2 kernels were launched.*loops over the batch"),
    (positions_in_place, "works in place"),
    (lambda tokens, added: add_flat(tokens, added.expand(tokens.shape).contiguous()), "written positions out"),
    (lambda tokens, added: tokens + added, "No kernel was launched"),
    (lambda tokens, added: positions()(tokens, added) and None, "RuntimeError|None"),
]

# ---- What the tests take ------------------------------------------------------------------------------------------------------

WRONG = {
    "add_row": ADD_ROW_WRONG,
    "add_strided": ADD_STRIDED_WRONG,
    "sum_rows": SUM_ROWS_WRONG,
    "add_positions": ADD_POSITIONS_WRONG,
}

RIGHT = {
    "add_row": [row(), row(blocks=(4, 128), output=torch.zeros_like), row(blocks=(64, 16)), flat_row, program_a_row(True, 128)],
    "add_strided": [strided(), strided(blocks=(32, 32)), flat_strided],
    "sum_rows": [sums(), sums(blocks=(8, 128)), sums(kernel=sum_tall_tile), row_by_row_sums()],
    "add_positions": [positions(), positions(block=1024), positions_by_tiles()],
}
