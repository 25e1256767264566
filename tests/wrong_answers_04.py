"""Answers to the exercises of lesson 04: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import math

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

# ---- A program a row: the plain mistakes, each switched on by its name ------------------------------------------------------


@triton.jit
def softmax_row(x_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, LOG: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    start = row * columns
    if MISTAKE == "row of blocks":
        start = row * BLOCK
    if MISTAKE == "first row only":
        start = 0
    if MISTAKE == "strides transposed":
        where = row + column * rows
    else:
        where = start + column
    if MISTAKE == "mask of one less":
        mask = column < columns - 1
    if MISTAKE == "no mask on load":
        x = tl.load(x_ptr + where).to(tl.float32)
    elif MISTAKE == "other is 0" or MISTAKE == "other is 0 for the maximum":
        x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
    elif MISTAKE == "other is 0 and no maximum":
        x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
    else:
        x = tl.load(x_ptr + where, mask=mask, other=-float("inf")).to(tl.float32)
    if MISTAKE == "float16":
        x = x.to(tl.float16).to(tl.float32)
    top = tl.max(x, axis=0)
    if MISTAKE == "no maximum" or MISTAKE == "other is 0 and no maximum":
        top = 0.0
    exponentials = tl.exp(x - top)
    if MISTAKE == "exp2":
        exponentials = tl.exp2(x - top)
    if MISTAKE == "sum without maximum":
        exponentials = tl.exp(x)
    if MISTAKE == "other is 0 for the maximum":
        exponentials = tl.where(mask, exponentials, 0.0)
    if MISTAKE == "sum in float16":
        exponentials = exponentials.to(tl.float16)
    total = tl.sum(exponentials, axis=0).to(tl.float32)
    if LOG:
        result = x - top - tl.log(total)
        if MISTAKE == "no logarithm":
            result = x - top - total
        if MISTAKE == "no sum":
            result = x - top
        if MISTAKE == "adds the logarithm":
            result = x - top + tl.log(total)
        if MISTAKE == "maximum forgotten in x":
            result = x - tl.log(total)
        if MISTAKE == "log of the exponential":
            result = tl.log(exponentials / total)
        if MISTAKE == "softmax":
            result = exponentials / total
    else:
        result = exponentials / total
        if MISTAKE == "no sum":
            result = exponentials
        if MISTAKE == "mean":
            result = exponentials / (total / columns)
        if MISTAKE == "numerator without maximum":
            result = tl.exp(x) / total
        if MISTAKE == "logarithm":
            result = x - top - tl.log(total)
    if MISTAKE == "no mask on store":
        tl.store(output_ptr + where, result)
    elif MISTAKE == "stores to x":
        tl.store(x_ptr + where, result, mask=mask)
    elif MISTAKE == "stores twice":
        tl.store(output_ptr + where, exponentials, mask=mask)
        tl.store(output_ptr + where, result, mask=mask)
    elif MISTAKE != "never stores":
        tl.store(output_ptr + where, result, mask=mask)


@triton.jit
def softmax_rows(
    x_ptr, output_ptr, rows, columns, AXIS: tl.constexpr, LOG: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Several rows a program; AXIS is 1 where it is right, 0 for sums down the columns, 2 for one sum of the tile."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    x = tl.load(x_ptr + row * columns + column, mask=mask, other=-float("inf")).to(tl.float32)
    if AXIS == 2:
        shifted = x - tl.max(tl.max(x, axis=1), axis=0)
        total = tl.sum(tl.sum(tl.exp(shifted), axis=1), axis=0)
    elif AXIS == 1:
        shifted = x - tl.max(x, axis=1, keep_dims=True)
        total = tl.sum(tl.exp(shifted), axis=1, keep_dims=True)
    else:
        shifted = x - tl.max(x, axis=0, keep_dims=True)
        total = tl.sum(tl.exp(shifted), axis=0, keep_dims=True)
    if LOG:
        result = shifted - tl.log(total)
    else:
        result = tl.exp(shifted) / total
    tl.store(output_ptr + row * columns + column, result, mask=mask)


@triton.jit
def empty(x_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, LOG: tl.constexpr, BLOCK: tl.constexpr):
    pass


@triton.jit
def mask_of_one_more(x_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, LOG: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    mask = column <= columns
    x = tl.load(x_ptr + tl.program_id(0) * columns + column, mask=mask, other=-float("inf")).to(tl.float32)
    tl.store(output_ptr + tl.program_id(0) * columns + column, x, mask=mask)


@triton.jit
def endless(x_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, LOG: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * 0
    while column < columns:
        tl.store(output_ptr + column, tl.load(x_ptr + column))


def all_rows(rows):
    return rows


def by_row(mistake="", log=False, grid=all_rows, block=triton.next_power_of_2, kernel=softmax_row, output=torch.empty_like):
    def function(x):
        rows, columns = x.shape
        result = output(x)
        kernel[(grid(rows),)](x, result, rows, columns, MISTAKE=mistake, LOG=log, BLOCK=block(columns))
        return result

    return function


def by_rows(axis=1, log=False, block_rows=4, grid=triton.cdiv):
    def function(x):
        rows, columns = x.shape
        result = torch.empty_like(x)
        block = triton.next_power_of_2(columns)
        softmax_rows[(grid(rows, block_rows),)](x, result, rows, columns, AXIS=axis, LOG=log, BLOCK_ROWS=block_rows, BLOCK=block)
        return result

    return function


def in_place(log):
    def function(x):
        softmax_row[(x.shape[0],)](x, x, *x.shape, MISTAKE="", LOG=log, BLOCK=triton.next_power_of_2(x.shape[1]))
        return x

    return function


def returns_nothing(x):
    by_row()(x)


def twice_launched(log):
    def function(x):
        result = by_row(log=log)(x)
        softmax_row[(x.shape[0],)](x, result, *x.shape, MISTAKE="", LOG=log, BLOCK=triton.next_power_of_2(x.shape[1]))
        return result

    return function


STALE = {}


def stale(log):
    """Right the first time for a shape, and then again with what the first time left."""

    def function(x):
        if (log, x.shape) not in STALE:
            STALE[log, x.shape] = by_row(log=log)(x)
        return STALE[log, x.shape]

    return function


def never_launched(x):
    return torch.empty_like(x)


def always_float32(x):
    return torch.empty(x.shape, device=x.device)


def shared(log):
    """The mistakes that log_softmax and softmax share."""
    return [
        (by_row("other is 0", log), "(?s)3 rows of 5 in float32.*First wrong element: index \\(0, 0\\).*other=-float"),
        (by_row("other is 0", log, block=lambda columns: 1024), "(?s)3 rows of 5 .*lanes past its end add to it.*other=-float"),
        (by_row("other is 0 for the maximum", log), "(?s)3 rows of 6 .*near -10000.*maximum of these rows came out as 0"),
        (by_row("no maximum", log), "(?s)3 rows of 6 in float32, large values.*subtract the row's maximum"),
        (by_row("float16", log), "three digits|more than one rounding"),
        (by_row("sum in float16", log), "three digits|more than one rounding"),
        (by_row("exp2", log), "exp2 is not exp|powers of 2"),
        (by_row("row of blocks", log), "(?s)3 rows of 5 .*i \\* columns"),
        (by_row("first row only", log), "(?s)3 rows of 5 .*index \\(1, 0\\).*every program stores|program number i has row i"),
        (by_row("strides transposed", log), "(?s)3 rows of 5 .*Neighbours in a row"),
        (by_row(log=log, kernel=mask_of_one_more), "(?s)element 15, and it has 15.*not <="),
        (by_row("mask of one less", log), "(?s)3 rows of 5 .*column < columns"),
        (by_row("no mask on load", log), "(?s)loads outside of x_ptr.*no mask.*column < columns"),
        (by_row("no mask on store", log), "(?s)stores outside of output_ptr.*no mask.*column < columns"),
        (by_row("stores to x", log), "(?s)changed its input x, first at index \\(0, 0\\).*wrong tensor"),
        (by_row("stores twice", log), "(?s)stored more than once.*finished value"),
        (by_row("never stores", log), "never stored|stores nothing"),
        (by_row(log=log, grid=lambda rows: rows - 1), "(?s)3 rows of 5 .*index \\(2, 0\\).*never stored.*last rows"),
        (by_row(log=log, grid=lambda rows: rows + 1), "(?s)loads outside of x_ptr.*no more programs"),
        (by_row(log=log, grid=lambda rows: 1), "(?s)3 rows of 5 .*never stored.*last rows"),
        (by_row(log=log, block=lambda columns: 64), "(?s)5 rows of 197 .*end of each row is missing"),
        (by_row(log=log, block=lambda columns: columns), "(?s)power of 2|power of two"),
        (by_row(log=log, output=always_float32), "(?s)3 rows of 5 in float16.*wrong type: float32"),
        (by_row(log=log, kernel=endless), "(?s)did not finish.*loop does not end"),
        (by_rows(0, log), "(?s)3 rows of 5 .*index \\(0, 0\\).*axis 1"),
        (by_rows(0, log, block_rows=2), "(?s)3 rows of 5 .*index \\(0, 0\\).*axis 1"),
        (by_rows(0, log, block_rows=1), "(?s)3 rows of 5 .*index \\(0, 0\\).*axis 1"),
        (by_rows(2, log), "(?s)3 rows of 5 .*each row has its own"),
        (by_rows(1, log, grid=lambda rows, block: rows // block), "(?s)3 rows of 5 .*never stored.*rounds up"),
        (by_rows(1, log, grid=lambda rows, block: max(1, rows // block)), "(?s)5 rows of 197 .*index \\(4, 0\\).*rounds up"),
        (in_place(log), "works in place"),
        (returns_nothing, "returned None"),
        (twice_launched(log), "(?s)stored more than once.*one launch"),
        (stale(log), "Wrong"),
        (never_launched, "never written"),
        (lambda x: (x.log_softmax if log else x.softmax)(1), "No kernel was launched"),
        (lambda x: by_row(log=log)(x.T.contiguous()), "(?s)shape \\(5, 3\\)"),
        (lambda x: by_row(log=log)(x.T.contiguous()).T, "(?s)3 rows of 5 .*axis 1"),
        (lambda x, dim: x, "(?s)TypeError.*arguments"),
    ]


# ---- wide softmax -----------------------------------------------------------------------------------------------------------


@triton.jit
def wide_scalar(x_ptr, output_ptr, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    x_ptr += tl.program_id(0) * columns
    output_ptr += tl.program_id(0) * columns
    top = -float("inf")
    total = 0.0
    if MISTAKE == "finite start":
        top = -1e9
    if MISTAKE == "sum from one":
        total = 1.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        if MISTAKE == "other is 0":
            x = tl.load(x_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
        else:
            x = tl.load(x_ptr + column, mask=column < columns, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(top, tl.max(x, axis=0))
        if MISTAKE == "maximum of the last block":
            larger = tl.max(x, axis=0)
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        if MISTAKE == "no guard":
            shift = larger
        scale = tl.exp(top - shift)
        if MISTAKE == "not scaled":
            scale = 1.0
        if MISTAKE == "upside down":
            scale = tl.exp(shift - top)
        if MISTAKE == "sum of the last block":
            scale = 0.0
        total = total * scale + tl.sum(tl.exp(x - shift), axis=0)
        top = larger
    turns = columns
    if MISTAKE == "end not written":
        turns = columns // BLOCK * BLOCK
    for start in range(0, turns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + column, mask=column < columns, other=-float("inf")).to(tl.float32)
        tl.store(output_ptr + column, tl.exp(x - top) / total, mask=column < columns)


@triton.jit
def wide_by_lane(x_ptr, output_ptr, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    x_ptr += tl.program_id(0) * columns
    output_ptr += tl.program_id(0) * columns
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        x = tl.load(x_ptr + start + lane, mask=start + lane < columns, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(top, x)
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        if MISTAKE == "no guard":
            shift = larger
        scale = tl.exp(top - shift)
        if MISTAKE == "not scaled":
            scale = tl.full((BLOCK,), 1.0, tl.float32)
        total = total * scale + tl.exp(x - shift)
        top = larger
    row_top = tl.max(top, axis=0)
    if MISTAKE == "lanes not scaled":
        row_total = tl.sum(total, axis=0)
    else:
        row_total = tl.sum(total * tl.exp(top - row_top), axis=0)
    for start in range(0, columns, BLOCK):
        x = tl.load(x_ptr + start + lane, mask=start + lane < columns, other=-float("inf")).to(tl.float32)
        tl.store(output_ptr + start + lane, tl.exp(x - row_top) / row_total, mask=start + lane < columns)


@triton.jit
def wide_three_passes(x_ptr, output_ptr, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    x_ptr += tl.program_id(0) * columns
    output_ptr += tl.program_id(0) * columns
    lane = tl.arange(0, BLOCK)
    top = -float("inf")
    for start in range(0, columns, BLOCK):
        x = tl.load(x_ptr + start + lane, mask=start + lane < columns, other=-float("inf")).to(tl.float32)
        top = tl.maximum(top, tl.max(x, axis=0))
    total = 0.0
    for start in range(0, columns, BLOCK):
        x = tl.load(x_ptr + start + lane, mask=start + lane < columns, other=-float("inf")).to(tl.float32)
        total += tl.sum(tl.exp(x - top), axis=0)
        if MISTAKE == "through the output":
            tl.store(output_ptr + start + lane, tl.exp(x - top), mask=start + lane < columns)
    for start in range(0, columns, BLOCK):
        mask = start + lane < columns
        if MISTAKE == "through the output":
            tl.store(output_ptr + start + lane, tl.load(output_ptr + start + lane, mask=mask) / total, mask=mask)
        else:
            x = tl.load(x_ptr + start + lane, mask=mask, other=-float("inf")).to(tl.float32)
            tl.store(output_ptr + start + lane, tl.exp(x - top) / total, mask=mask)


@triton.jit
def wide_alone(x_ptr, output_ptr, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    x_ptr += tl.program_id(0) * columns
    output_ptr += tl.program_id(0) * columns
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + column, mask=column < columns, other=-float("inf")).to(tl.float32)
        if MISTAKE == "no maximum":
            exponentials = tl.exp(x)
        else:
            exponentials = tl.exp(x - tl.max(x, axis=0))
        tl.store(output_ptr + column, exponentials / tl.sum(exponentials, axis=0), mask=column < columns)


@triton.jit
def normalise_kernel(x_ptr, output_ptr, top_ptr, total_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * columns + column, mask=column < columns).to(tl.float32)
        y = tl.exp(x - tl.load(top_ptr + row)) / tl.load(total_ptr + row)
        tl.store(output_ptr + row * columns + column, y, mask=column < columns)


@triton.jit
def pair_kernel(x_ptr, top_ptr, total_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    top = -float("inf")
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * columns + column, mask=column < columns, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(top, tl.max(x, axis=0))
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(x - shift), axis=0)
        top = larger
    tl.store(top_ptr + row, top)
    tl.store(total_ptr + row, total)


def wide(kernel, mistake="", width=lambda columns, block: block, grid=lambda rows: rows):
    def function(x, block):
        rows, columns = x.shape
        output = torch.empty_like(x)
        kernel[(grid(rows),)](x, output, columns, MISTAKE=mistake, BLOCK=width(columns, block))
        return output

    return function


@triton.jit
def wide_tiles(x_ptr, output_ptr, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Right: several rows a program, each by blocks."""
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    top = tl.full((BLOCK_ROWS, 1), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS, 1), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + row * columns + column, mask=(row < rows) & (column < columns), other=-float("inf")).to(tl.float32)
        larger = tl.maximum(top, tl.max(x, axis=1, keep_dims=True))
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(x - shift), axis=1, keep_dims=True)
        top = larger
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        mask = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(output_ptr + row * columns + column, tl.exp(x - top) / total, mask=mask)


def wide_by_tiles(x, block):
    output = torch.empty_like(x)
    wide_tiles[(triton.cdiv(len(x), 4),)](x, output, *x.shape, BLOCK_ROWS=4, BLOCK=block)
    return output


def whole_row(columns, block):
    return triton.next_power_of_2(columns)


def pair_by_pytorch(x, block):
    output = torch.empty_like(x)
    top = x.float().amax(1)
    total = (x.float() - top[:, None]).exp().sum(1)
    normalise_kernel[(x.shape[0],)](x, output, top, total, x.shape[1], BLOCK=block)
    return output


def in_two_launches(x, block):
    output = torch.empty_like(x)
    top, total = torch.empty(2, x.shape[0], device=x.device)
    pair_kernel[(x.shape[0],)](x, top, total, x.shape[1], BLOCK=block)
    normalise_kernel[(x.shape[0],)](x, output, top, total, x.shape[1], BLOCK=block)
    return output


# ---- the backward pass ------------------------------------------------------------------------------------------------------


@triton.jit
def backward_row(grad_ptr, y_ptr, output_ptr, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    where = tl.program_id(0) * columns + column
    mask = column < columns
    grad = tl.load(grad_ptr + where, mask=mask, other=0.0)
    y = tl.load(y_ptr + where, mask=mask, other=0.0)
    if MISTAKE == "other is -inf":
        grad = tl.load(grad_ptr + where, mask=mask, other=-float("inf"))
    if MISTAKE == "no mask":
        y = tl.load(y_ptr + where)
    if MISTAKE != "float16":
        grad = grad.to(tl.float32)
        y = y.to(tl.float32)
    result = y * (grad - tl.sum(grad * y, axis=0))
    if MISTAKE == "no sum":
        result = grad * y
    if MISTAKE == "no y":
        result = grad - tl.sum(grad * y, axis=0)
    if MISTAKE == "sum of grad":
        result = y * (grad - tl.sum(grad, axis=0))
    if MISTAKE == "sum of y":
        result = y * (grad - tl.sum(y, axis=0))
    if MISTAKE == "plus":
        result = y * (grad + tl.sum(grad * y, axis=0))
    if MISTAKE == "minus":
        result = y * (tl.sum(grad * y, axis=0) - grad)
    if MISTAKE == "diagonal":
        result = grad * y * (1 - y)
    if MISTAKE == "mean":
        result = y * (grad - tl.sum(grad * y, axis=0) / columns)
    if MISTAKE == "no grad":
        result = y * (1 - y)
    if MISTAKE == "ones":
        result = y * (1 - tl.sum(y, axis=0))
    if MISTAKE == "stores to y":
        tl.store(y_ptr + where, result, mask=mask)
    else:
        tl.store(output_ptr + where, result, mask=mask)


@triton.jit
def backward_rows(grad_ptr, y_ptr, output_ptr, rows, columns, AXIS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    grad = tl.load(grad_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
    result = y * (grad - tl.sum(grad * y, axis=AXIS, keep_dims=True))
    tl.store(output_ptr + row * columns + column, result, mask=mask)


def backward(mistake="", grid=lambda rows: rows, block=triton.next_power_of_2):
    def function(grad, y):
        output = torch.empty_like(y)
        rows, columns = y.shape
        backward_row[(grid(rows),)](grad, y, output, columns, MISTAKE=mistake, BLOCK=block(columns))
        return output

    return function


def backward_tiled(axis=1, block_rows=2):
    def function(grad, y):
        output = torch.empty_like(y)
        rows, columns = y.shape
        block = triton.next_power_of_2(columns)
        grid = (triton.cdiv(rows, block_rows),)
        backward_rows[grid](grad, y, output, rows, columns, AXIS=axis, BLOCK_ROWS=block_rows, BLOCK=block)
        return output

    return function


def backward_in_place(grad, y):
    backward_row[(y.shape[0],)](grad, y, grad, y.shape[1], MISTAKE="", BLOCK=triton.next_power_of_2(y.shape[1]))
    return grad


# ---- merge ------------------------------------------------------------------------------------------------------------------


def merged(total, top=max):
    def function(m1, s1, m2, s2):
        m = top(m1, m2)
        return m, total(m1, s1, m2, s2, m)

    return function


def merge(m1, s1, m2, s2):
    m = max(m1, m2)
    if m == -math.inf:
        return m, 0.0
    return m, s1 * math.exp(m1 - m) + s2 * math.exp(m2 - m)


def merge_by_cases(m1, s1, m2, s2):
    if s1 == 0:
        return [m2, s2]
    if s2 == 0:
        return [m1, s1]
    return [m1, s1 + s2 * math.exp(m2 - m1)] if m1 > m2 else [m2, s2 + s1 * math.exp(m1 - m2)]


def merge_in_tensors(m1, s1, m2, s2):
    m1, s1, m2, s2 = (torch.tensor(number, dtype=torch.float64) for number in (m1, s1, m2, s2))
    m = torch.maximum(m1, m2)
    shift = torch.where(m == -math.inf, 0.0, m)
    return m, s1 * torch.exp(m1 - shift) + s2 * torch.exp(m2 - shift)


def merge_through_exponentials(m1, s1, m2, s2):
    m = max(m1, m2)
    return m, (s1 * math.exp(m1) + s2 * math.exp(m2)) / math.exp(m)


# ---- The banks --------------------------------------------------------------------------------------------------------------

WRONG = {
    "log_softmax": [
        *shared(True),
        (by_row("no logarithm", True), "not its logarithm"),
        (by_row("no sum", True), "logarithm of the sum was left out"),
        (by_row("adds the logarithm", True), "logarithm was added"),
        (by_row("maximum forgotten in x", True), "maximum is subtracted from x as well"),
        (by_row("sum without maximum", True), "maximum is subtracted twice"),
        (by_row("log of the exponential", True), "(?s)large values.*do not take exp and then log"),
        (by_row("softmax", True), "its logarithm was asked for"),
    ],
    "softmax": [
        (lambda x: by_row()(x - x.amax(1, keepdim=True)), "(?s)does not read x itself.*hand the kernel x"),
        (by_row("other is 0 and no maximum"), "(?s)3 rows of 5 .*index \\(0, 0\\).*other=-float"),
        *shared(False),
        (by_row("no sum"), "not divided by its sum"),
        (by_row("mean"), "divided by their mean"),
        (by_row("numerator without maximum"), "(?s)exp\\(x\\) was divided by a sum of exp\\(x - max\\)"),
        (by_row("logarithm"), "That is the logarithm"),
    ],
    "merge": [
        (merged(lambda m1, s1, m2, s2, m: s1 + s2), r"(?s)merge\(2, 1.5, 0, 2\).*scale each to the common one"),
        (merged(lambda m1, s1, m2, s2, m: s1 * math.exp(m1 - m) + s2 * math.exp(m2 - m)),
         r"(?s)merge\(-inf, 0, -inf, 0\).*Expected \(-inf, 0\), got \(-inf, nan\).*Two empty pieces"),
        (merge_through_exponentials, r"(?s)merge\(1000, 1, 1001, 2\).*OverflowError.*subtract the maximum"),
        (merged(lambda m1, s1, m2, s2, m: s1 * math.exp(m1 - m) + s2), "Only the first sum is scaled"),
        (merged(lambda m1, s1, m2, s2, m: s1 + s2 * math.exp(m2 - m)), "Only the second sum is scaled"),
        (merged(lambda m1, s1, m2, s2, m: s1 * math.exp(m - m1) + s2 * math.exp(m - m2)), "upside down"),
        (merged(lambda m1, s1, m2, s2, m: s1 * math.exp(m2 - m) + s2 * math.exp(m1 - m)), "exchanged"),
        (merged(lambda m1, s1, m2, s2, m: s1 * math.exp(m1 - m) + s2 * math.exp(m2 - m), min), "not the smaller"),
        (merged(lambda m1, s1, m2, s2, m: s1 * math.exp(m1 - m) + s2 * math.exp(m2 - m), lambda a, b: b), "either can be it"),
        (merged(lambda m1, s1, m2, s2, m: math.exp(m1 - m) + math.exp(m2 - m)), "s1 and s2 are sums already"),
        (merged(lambda m1, s1, m2, s2, m: s1 * 2 ** (m1 - m) + s2 * 2 ** (m2 - m)), "powers of 2"),
        (merged(lambda m1, s1, m2, s2, m: s1 * math.exp(m1) + s2 * math.exp(m2)), r"below m: s1 \* exp"),
        (lambda *case: merge(*case)[::-1], "other way round"),
        (lambda *case: merge(*case)[1], "returned a float"),
        (lambda m1, s1, m2, s2: (m1, s1 / 0), "ZeroDivisionError"),
        (lambda m1, s1: (m1, s1), "(?s)TypeError.*arguments"),
    ],
    "wide_softmax": [
        (wide(wide_three_passes), "(?s)x was read 3 times.*one pass: keep a running pair"),
        (wide(wide_three_passes, "through the output"), "(?s)reads its own output again.*finished values"),
        (wide(wide_scalar, "not scaled"), "(?s)2 rows of 8 by blocks of 4 in float32, rising.*When the maximum grows"),
        (wide(wide_by_lane, "not scaled"), "(?s)2 rows of 8 by blocks of 4 in float32, rising.*When the maximum grows"),
        (wide(wide_scalar, "upside down"), "(?s)4 rows of 4 .*upside down"),
        (wide(wide_scalar, "sum of the last block"), "sum is of the last block only"),
        (wide(wide_scalar, "maximum of the last block"), "(?s)large values.*maximum is that of the last block"),
        (wide(wide_scalar, "other is 0"), "(?s)3 rows of 5 by blocks of 8.*other=-float"),
        (wide(wide_scalar, "finite start"), "(?s)all values near -2e9"),
        (wide(wide_scalar, "no guard"), "(?s)-inf in the first blocks.*A block of nothing but -inf"),
        (wide(wide_by_lane, "no guard"), "(?s)3 rows of 5 by blocks of 8.*A lane past the end has seen nothing"),
        (wide(wide_by_lane, "lanes not scaled"), "(?s)4 rows of 4 .*scale it to the row's"),
        (wide(wide_scalar, "end not written"), "(?s)3 rows of 5 .*never stored"),
        (wide(wide_alone), "(?s)rising.*Each block was normalised by itself"),
        (wide(wide_alone, "no maximum"), "(?s)rising.*Each block was normalised by itself"),
        (wide(wide_scalar, width=whole_row), "(?s)a load has 8 lanes, and block is 4.*piece by piece"),
        (wide(wide_scalar, width=lambda columns, block: 2 * block), "(?s)a load has 8 lanes, and block is 4"),
        (wide(wide_scalar, grid=lambda rows: rows - 1), "(?s)never stored.*last rows"),
        (wide(wide_scalar, grid=lambda rows: rows + 1), "loads outside of x_ptr"),
        (pair_by_pytorch, "(?s)neither x nor written.*outside of your kernels"),
        (lambda x, block: x.softmax(1), "No kernel was launched"),
        (lambda x, block: by_row("no sum")(x), "not divided by its sum"),
    ],
    "softmax_backward": [
        (backward("no sum"), "(?s)3 rows of 5 .*The sum was left out"),
        (backward("no y"), "factor y was left out"),
        (backward("sum of grad"), "The sum is of grad"),
        (backward("sum of y"), "The sum is of y"),
        (backward("plus"), "The sum was added"),
        (backward("minus"), "The sign is wrong"),
        (backward("diagonal"), "Every output of a row depends on every x"),
        (backward("mean"), "The mean was subtracted"),
        (backward("no grad"), r"incoming gradient was left out: the result is y \* \(1 - y\)"),
        (backward("ones"), "(?s)incoming gradient was left out.*sums to 1"),
        (backward("float16"), "(?s)3 rows of 4 in float16, gradients near 1000.*right in float32: convert"),
        (backward("other is -inf"), "(?s)3 rows of 5 .*other=0.0"),
        (backward("no mask"), "(?s)loads outside of y_ptr.*no mask"),
        (backward("stores to y"), "(?s)changed its input y.*wrong tensor"),
        (lambda grad, y: backward()(y, grad), "grad and y are exchanged"),
        (lambda grad, y: backward()(grad, y.softmax(1)), "taken again"),
        (backward(grid=lambda rows: rows - 1), "(?s)never stored.*last rows"),
        (backward(block=lambda columns: 64), "(?s)5 rows of 197 .*end of each row is missing"),
        (backward_tiled(axis=0, block_rows=8), "(?s)3 rows of 5 .*reduction runs down the columns"),
        (backward_tiled(axis=0), "(?s)3 rows of 5 .*reduction runs down the columns"),
        (backward_in_place, "works in place"),
        (lambda grad, y: y * (grad - (grad * y).sum(1, keepdim=True)), "No kernel was launched"),
        (lambda grad, y: torch.empty_like(y), "never written"),
    ],
}  # fmt: skip

RIGHT = {
    "log_softmax": [by_row(log=True), by_rows(log=True), by_row(log=True, block=lambda columns: 1024)],
    "softmax": [by_row(), by_rows(), by_rows(block_rows=1), by_row(block=lambda columns: 2048)],
    "merge": [merge, merge_by_cases, merge_in_tensors],
    "wide_softmax": [
        wide(wide_scalar),
        wide(wide_by_lane),
        wide(wide_scalar, "sum from one"),
        wide(wide_scalar, width=lambda columns, block: block // 2),
        in_two_launches,
        wide_by_tiles,
    ],
    "softmax_backward": [backward(), backward_tiled(), backward_tiled(block_rows=8)],
}
