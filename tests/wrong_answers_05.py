"""Answers to the exercises of lesson 05: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

# ---- Norms, a program a row: the plain mistakes, each switched on by its name -----------------------------------------------


@triton.jit
def norm_row(
    x_ptr, weight_ptr, bias_ptr, output_ptr, columns, eps, MISTAKE: tl.constexpr, RMS: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)
    mask = column < columns
    where = tl.program_id(0) * columns + column
    if MISTAKE == "row of blocks":
        where = tl.program_id(0) * BLOCK + column
    if MISTAKE == "first row only":
        where = column
    if MISTAKE == "no mask on load":
        x = tl.load(x_ptr + where)
    elif MISTAKE == "other is -inf":
        x = tl.load(x_ptr + where, mask=mask, other=-float("inf"))
    elif MISTAKE == "other is 1":
        x = tl.load(x_ptr + where, mask=mask, other=1.0)
    else:
        x = tl.load(x_ptr + where, mask=mask, other=0.0)
    if MISTAKE == "rounded to float16":
        x = x.to(tl.float16)
    if MISTAKE != "in the input's type":
        x = x.to(tl.float32)
    divisor = columns
    if MISTAKE == "all by BLOCK" or MISTAKE == "mean by BLOCK" or MISTAKE == "mean by BLOCK, no mask":
        divisor = BLOCK
    mean = tl.sum(x, axis=0) / divisor
    if MISTAKE == "sum for mean":
        mean = tl.sum(x, axis=0)
    if RMS:
        centered = x
    elif MISTAKE == "no mask" or MISTAKE == "mean by BLOCK, no mask" or MISTAKE == "variance by BLOCK, no mask":
        centered = x - mean
    else:
        centered = tl.where(mask, x - mean, 0.0)
    if MISTAKE == "no mean":
        centered = x
    if MISTAKE == "subtracts the mean":
        centered = tl.where(mask, x - mean, 0.0)
    squares = tl.sum(centered * centered, axis=0)
    if MISTAKE == "sum in float16":
        squares = tl.sum((centered * centered).to(tl.float16), axis=0).to(tl.float32)
    if MISTAKE == "variance by BLOCK" or MISTAKE == "variance by BLOCK, no mask" or MISTAKE == "all by BLOCK":
        variance = squares / BLOCK
    elif MISTAKE == "columns - 1":
        variance = squares / (columns - 1)
    elif MISTAKE == "not divided":
        variance = squares
    elif MISTAKE == "one pass":
        variance = tl.sum(x * x, axis=0) / columns - mean * mean
    elif MISTAKE == "mean of x":
        variance = mean
    else:
        variance = squares / columns
    rstd = 1 / tl.sqrt(variance + eps)
    if MISTAKE == "no eps":
        rstd = 1 / tl.sqrt(variance)
    if MISTAKE == "eps outside":
        rstd = 1 / (tl.sqrt(variance) + eps)
    if MISTAKE == "no root":
        rstd = 1 / (variance + eps)
    if MISTAKE == "times the root":
        rstd = tl.sqrt(variance + eps)
    if MISTAKE == "centre forgotten":
        centered = x
    weight = tl.load(weight_ptr + column, mask=mask)
    if MISTAKE == "weight not masked":
        weight = tl.load(weight_ptr + column)
    if MISTAKE == "one weight":
        weight = tl.load(weight_ptr)
    result = centered * rstd * weight
    if MISTAKE == "no weight":
        result = centered * rstd
    if not RMS:
        bias = tl.load(bias_ptr + column, mask=mask)
        if MISTAKE == "bias first":
            result = (centered * rstd + bias) * weight
        elif MISTAKE == "weight and bias exchanged":
            result = centered * rstd * bias + weight
        elif MISTAKE != "no bias":
            result = result + bias
    if MISTAKE == "no mask on store":
        tl.store(output_ptr + where, result)
    else:
        tl.store(output_ptr + where, result, mask=mask)


@triton.jit
def norm_rows(
    x_ptr, weight_ptr, bias_ptr, output_ptr, rows, columns, eps,
    AXIS: tl.constexpr, RMS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Several rows a program; AXIS is 1 where it is right."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    x = tl.load(x_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
    if AXIS == 1:
        count = columns
    else:
        count = tl.minimum(rows - tl.program_id(0) * BLOCK_ROWS, BLOCK_ROWS)
    if not RMS:
        x = tl.where(mask, x - tl.sum(x, axis=AXIS, keep_dims=True) / count, 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, axis=AXIS, keep_dims=True) / count + eps)
    result = x * rstd * tl.load(weight_ptr + column, mask=column < columns)
    if not RMS:
        result += tl.load(bias_ptr + column, mask=column < columns)
    tl.store(output_ptr + row * columns + column, result, mask=mask)


def all_rows(rows):
    return rows


def by_row(mistake="", rms=False, grid=all_rows, block=triton.next_power_of_2, output=torch.empty_like):
    """An answer to layer_norm; with rms, to rms_norm after `without_bias`."""

    def function(x, weight, bias, eps):
        rows, columns = x.shape
        result = output(x)
        norm_row[(grid(rows),)](x, weight, bias, result, columns, eps, MISTAKE=mistake, RMS=rms, BLOCK=block(columns))
        return result

    return without_bias(function) if rms else function


def by_rows(axis=1, rms=False, block_rows=4):
    def function(x, weight, bias, eps):
        rows, columns = x.shape
        result = torch.empty_like(x)
        options = {"AXIS": axis, "RMS": rms, "BLOCK_ROWS": block_rows, "BLOCK": triton.next_power_of_2(columns)}
        norm_rows[(triton.cdiv(rows, block_rows),)](x, weight, bias, result, rows, columns, eps, **options)
        return result

    return without_bias(function) if rms else function


def without_bias(answer):
    return lambda x, weight, eps: answer(x, weight, weight, eps)


def in_place(x, weight, bias, eps):
    by_row(output=lambda x: x)(x, weight, bias, eps)
    return x


STALE = {}


def stale(x, weight, bias, eps):
    """Right the first time for a shape, and then again with what the first time left."""
    if x.shape not in STALE:
        STALE[x.shape] = by_row()(x, weight, bias, eps)
    return STALE[x.shape]


def always_float32(x):
    return torch.empty(x.shape, device=x.device)


def wide_block(columns):
    return 1024


def shared(rms):
    """The mistakes that rms_norm and layer_norm share."""
    return [
        (by_row("other is -inf", rms), "(?s)3 rows of 5 .*other=0.0"),
        (by_row("row of blocks", rms), "(?s)3 rows of 5 .*i \\* columns"),
        (by_row("first row only", rms), "(?s)index \\(1, 0\\).*program number i has row i"),
        (by_row("no mask on load", rms), "(?s)loads outside of x_ptr.*column < columns"),
        (by_row("no mask on store", rms), "(?s)stores outside of output_ptr.*column < columns"),
        (by_row("weight not masked", rms), "(?s)loads outside of weight_ptr: element 5, and it has 5.*column < columns"),
        (by_row("rounded to float16", rms), "three digits"),
        (by_row("sum in float16", rms), "three digits"),
        (by_row("in the input's type", rms), "(?s)2 rows of 197 in float16, large values.*does not fit in float16"),
        (by_row("variance by BLOCK", rms), "(?s)3 rows of 5 .*divided by the block's width: divide by columns"),
        (by_row("variance by BLOCK", rms, block=wide_block), "(?s)3 rows of 5 .*divided by the block's width"),
        (by_row("columns - 1", rms), "columns - 1"),
        (by_row("not divided", rms), "was not divided by columns"),
        (by_row("no eps", rms), "(?s)3 rows of 5 in float32, eps 0.125.*eps was left out"),
        (by_row("eps outside", rms), "(?s)eps 0.125.*eps was added after the root"),
        (by_row("no root", rms), "root is missing"),
        (by_row("times the root", rms), "by the root"),
        (by_row("no weight", rms), "weight was left out"),
        (by_row("one weight", rms), "weight of the first column"),
        (by_row(rms=rms, grid=lambda rows: rows - 1), "(?s)index \\(2, 0\\).*never stored.*last rows"),
        (by_row(rms=rms, grid=lambda rows: 1), "(?s)index \\(1, 0\\).*never stored.*last rows"),
        (by_row(rms=rms, grid=lambda rows: rows + 1), "no more programs"),
        (by_row(rms=rms, block=lambda columns: 64), "(?s)5 rows of 197 .*end of each row is missing"),
        (by_row(rms=rms, block=lambda columns: columns), "power of 2|power of two"),
        (by_row(rms=rms, output=always_float32), "(?s)in float16.*wrong type: float32"),
        (by_rows(0, rms), "(?s)3 rows of 5 .*axis 1"),
        (by_rows(0, rms, block_rows=2), "(?s)3 rows of 5 .*axis 1"),
    ]  # fmt: skip


# ---- add and norm -----------------------------------------------------------------------------------------------------------


@triton.jit
def add_norm_row(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, output_ptr, total_ptr, columns, eps, MISTAKE: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)
    mask = column < columns
    where = tl.program_id(0) * columns + column
    x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + where, mask=mask, other=0.0).to(tl.float32)
    if MISTAKE == "x twice":
        residual = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
    total = x + residual
    if MISTAKE == "no residual":
        total = x
    if MISTAKE == "minus":
        total = x - residual
    if MISTAKE == "reads x again":
        total = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32) + residual
    if MISTAKE == "reads total back":
        tl.store(total_ptr + where, total, mask=mask)
        total = tl.load(total_ptr + where, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / columns
    if MISTAKE == "no mask":
        centered = total - mean
    else:
        centered = tl.where(mask, total - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centered * centered, axis=0) / columns + eps)
    if MISTAKE == "mean of squares":
        rstd = 1 / tl.sqrt(tl.sum(total * total, axis=0) / columns - mean * mean + eps)
    result = centered * rstd
    if MISTAKE != "no weight":
        result = result * tl.load(weight_ptr + column, mask=mask)
    result = result + tl.load(bias_ptr + column, mask=mask)
    if MISTAKE == "residual after the norm":
        result = result + residual
    tl.store(output_ptr + where, result, mask=mask)
    if MISTAKE == "centered total":
        tl.store(total_ptr + where, centered, mask=mask)
    elif MISTAKE == "normalized total":
        tl.store(total_ptr + where, result, mask=mask)
    elif MISTAKE == "total is x":
        tl.store(total_ptr + where, x, mask=mask)
    elif MISTAKE == "total to residual":
        tl.store(residual_ptr + where, total, mask=mask)
    elif MISTAKE != "total not stored" and MISTAKE != "reads total back":
        tl.store(total_ptr + where, total, mask=mask)


@triton.jit
def add_norm_rows(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, output_ptr, total_ptr, rows, columns, eps,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    total = tl.load(x_ptr + row * columns + column, mask=mask, other=0.0)
    total += tl.load(residual_ptr + row * columns + column, mask=mask, other=0.0)
    tl.store(total_ptr + row * columns + column, total, mask=mask)
    total = total.to(tl.float32)
    centered = tl.where(mask, total - tl.sum(total, axis=1, keep_dims=True) / columns, 0.0)
    rstd = tl.rsqrt(tl.sum(centered * centered, axis=1, keep_dims=True) / columns + eps)
    weight = tl.load(weight_ptr + column, mask=column < columns)
    bias = tl.load(bias_ptr + column, mask=column < columns)
    tl.store(output_ptr + row * columns + column, centered * rstd * weight + bias, mask=mask)


def add_norm(mistake="", grid=all_rows, total_like=torch.empty_like, block=triton.next_power_of_2):
    def function(x, residual, weight, bias, eps):
        output, total = torch.empty_like(x), total_like(x)
        rows, columns = x.shape
        add_norm_row[(grid(rows),)](x, residual, weight, bias, output, total, columns, eps, MISTAKE=mistake, BLOCK=block(columns))
        return output, total

    return function


def add_norm_tiled(x, residual, weight, bias, eps):
    output, total = torch.empty_like(x), torch.empty_like(x)
    rows, columns = x.shape
    grid = (triton.cdiv(rows, 2),)
    block = triton.next_power_of_2(columns)
    add_norm_rows[grid](x, residual, weight, bias, output, total, rows, columns, eps, BLOCK_ROWS=2, BLOCK=block)
    return [output, total]


def sum_by_pytorch(x, residual, weight, bias, eps):
    total = x + residual
    return by_row()(total, weight, bias, eps), total


def norm_by_pytorch(x, residual, weight, bias, eps):
    _, total = add_norm()(x, residual, weight, bias, eps)
    return torch.nn.functional.layer_norm(total, weight.shape, weight, bias, eps), total


def in_two_launches(x, residual, weight, bias, eps):
    _, total = add_norm()(x, residual, weight, bias, eps)
    return by_row()(total, weight, bias, eps), total


def total_to_residual(x, residual, weight, bias, eps):
    output, _ = add_norm("total to residual")(x, residual, weight, bias, eps)
    return output, residual


# ---- gradients of weight and bias -------------------------------------------------------------------------------------------


@triton.jit
def partial_sums(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, weights_ptr, biases_ptr, rows, columns,
    MISTAKE: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    first = program
    last = rows
    step = tl.num_programs(0)
    if SHARES:
        share = tl.cdiv(rows, tl.num_programs(0))
        first = program * share
        last = tl.minimum(first + share, rows)
        step = 1
    if MISTAKE == "last rows":
        last = rows // tl.num_programs(0) * tl.num_programs(0)
    if MISTAKE == "one row":
        last = tl.minimum(rows, tl.num_programs(0))
    weights = tl.zeros((BLOCK,), tl.float32)
    biases = tl.zeros((BLOCK,), tl.float32)
    if MISTAKE == "float16":
        weights = tl.zeros((BLOCK,), tl.float16)
        biases = tl.zeros((BLOCK,), tl.float16)
    if MISTAKE == "in the input's type":
        weights = tl.zeros((BLOCK,), x_ptr.dtype.element_ty)
        biases = tl.zeros((BLOCK,), x_ptr.dtype.element_ty)
    for row in range(first, last, step):
        if MISTAKE == "no mask":
            grad = tl.load(grad_ptr + row * columns + column).to(tl.float32)
        else:
            grad = tl.load(grad_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row)
        rstd = tl.load(rstd_ptr + row)
        if MISTAKE == "statistics of the first row":
            mean = tl.load(mean_ptr)
            rstd = tl.load(rstd_ptr)
        term = grad * (x - mean) * rstd
        if MISTAKE == "no mean":
            term = grad * x * rstd
        if MISTAKE == "no rstd":
            term = grad * (x - mean)
        if MISTAKE == "divides by rstd":
            term = grad * (x - mean) / rstd
        if MISTAKE == "no grad":
            term = (x - mean) * rstd
        if MISTAKE == "bias times rstd":
            grad = grad * rstd
        if MISTAKE == "bias of x":
            grad = x
        if MISTAKE == "replaces":
            weights = term
            biases = grad
        else:
            weights = (weights + term).to(weights.dtype)
            biases = (biases + grad).to(biases.dtype)
        if MISTAKE == "stores in the loop":
            tl.store(weights_ptr + program * columns + column, weights, mask=mask)
    if MISTAKE == "atomics":
        tl.atomic_add(weights_ptr + column, weights, mask=mask)
        tl.atomic_add(biases_ptr + column, biases, mask=mask)
    else:
        tl.store(weights_ptr + program * columns + column, weights, mask=mask)
        tl.store(biases_ptr + program * columns + column, biases, mask=mask)


@triton.jit
def add_up(weights_ptr, biases_ptr, dweight_ptr, dbias_ptr, programs, columns, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    mask = column < columns
    weights = tl.zeros((BLOCK,), tl.float32)
    biases = tl.zeros((BLOCK,), tl.float32)
    for program in range(programs):
        weights += tl.load(weights_ptr + program * columns + column, mask=mask, other=0.0)
        biases += tl.load(biases_ptr + program * columns + column, mask=mask, other=0.0)
    tl.store(dweight_ptr + column, weights, mask=mask)
    tl.store(dbias_ptr + column, biases, mask=mask)


@triton.jit
def partial_sums_of_tiles(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, partial_ptr, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)[None, :]
    weights = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    biases = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    for start in range(tl.program_id(0) * BLOCK_ROWS, rows, tl.num_programs(0) * BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)[:, None]
        mask = (row < rows) & (column < columns)
        grad = tl.load(grad_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
        weights += grad * (x - mean) * tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        biases += grad
    lane = tl.program_id(0) * columns + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < columns
    tl.store(partial_ptr + lane, tl.sum(weights, axis=0), mask=inside)
    tl.store(partial_ptr + tl.num_programs(0) * columns + lane, tl.sum(biases, axis=0), mask=inside)


def as_allowed(rows, programs):
    return programs


def gradients(mistake="", second="torch", shares=False, launched=as_allowed, partials=torch.empty, rows_of=None):
    def function(grad, x, mean, rstd, programs):
        rows, columns = x.shape
        count = launched(rows, programs)
        both = partials((2, rows_of or count, columns), device=x.device, dtype=torch.float32)
        block = triton.next_power_of_2(columns)
        partial_sums[(count,)](grad, x, mean, rstd, both[0], both[1], rows, columns, MISTAKE=mistake, SHARES=shares, BLOCK=block)
        if second == "torch":
            return both[0].sum(0), both[1].sum(0)
        if second == "first":
            return both[0, 0], both[1, 0]
        if second == "mean":
            return both[0].mean(0), both[1].mean(0)
        dweight, dbias = torch.empty((2, columns), device=x.device, dtype=torch.float32)
        add_up[(1,)](both[0], both[1], dweight, dbias, count, columns, BLOCK=block)
        return dweight, dbias

    return function


def by_atomics(grad, x, mean, rstd, programs):
    dweight, dbias = torch.zeros((2, x.shape[1]), device=x.device)
    options = {"MISTAKE": "atomics", "SHARES": False, "BLOCK": triton.next_power_of_2(x.shape[1])}
    partial_sums[(programs,)](grad, x, mean, rstd, dweight, dbias, *x.shape, **options)
    return dweight, dbias


def by_tiles(grad, x, mean, rstd, programs):
    rows, columns = x.shape
    partial = torch.empty((2, programs, columns), device=x.device)
    partial_sums_of_tiles[(programs,)](
        grad, x, mean, rstd, partial, rows, columns, BLOCK_ROWS=4, BLOCK=triton.next_power_of_2(columns)
    )
    return partial[0].sum(dim=0), partial[1].sum(dim=0)


def only_rows_with_programs(rows, programs):
    return min(rows, programs)


def products_by_pytorch(grad, x, mean, rstd, programs):
    product = grad.float() * (x.float() - mean[:, None]) * rstd[:, None]
    return gradients()(product, x, torch.zeros_like(mean), torch.ones_like(rstd), programs)[1], gradients()(
        grad, x, mean, rstd, programs
    )[1]


def bias_by_pytorch(grad, x, mean, rstd, programs):
    return gradients()(grad, x, mean, rstd, programs)[0], grad.float().sum(0)


# ---- The banks --------------------------------------------------------------------------------------------------------------

WRONG = {
    "rms_norm": [
        *shared(True),
        (by_row("subtracts the mean", True), "The mean was subtracted"),
        (by_row("mean of x", True), "The mean is of x"),
        (by_row("other is 1", True), "Lanes past the end of a row add to the mean square"),
        (lambda x, weight, eps: x / (x * x).mean(1, keepdim=True).add(eps).sqrt() * weight, "No kernel was launched"),
        (lambda x, weight, eps: by_row(rms=True)(x, weight, eps) and None, "(?s)RuntimeError|None"),
        (lambda x, weight, eps: by_row(rms=True, output=lambda x: x)(x, weight, eps), "works in place"),
    ],
    "layer_norm": [
        (by_row("no mask"), "(?s)3 rows of 5 .*variance is too large: lanes past the end"),
        (by_row("no mask", block=wide_block), "(?s)3 rows of 5 .*variance is too large: lanes past the end"),
        *shared(False),
        (by_row("mean by BLOCK"), "mean is a sum divided by the block's width"),
        (by_row("mean by BLOCK, no mask"), "mean is a sum divided by the block's width"),
        (by_row("variance by BLOCK, no mask"), "The variance is of the whole block"),
        (by_row("all by BLOCK"), "Mean and variance are sums divided by the block's width"),
        (by_row("one pass"), "(?s)3 rows of 64 in float32, means near 4000.*Subtract the mean first"),
        (by_row("sum for mean"), "sum of the row was subtracted"),
        (by_row("no mean"), "The mean was never subtracted"),
        (by_row("centre forgotten"), "has to be in the result as well"),
        (by_row("no bias"), "bias was left out"),
        (by_row("bias first"), "bias is added before"),
        (by_row("weight and bias exchanged"), "exchanged"),
        (in_place, "works in place"),
        (stale, "Wrong"),
        (lambda x, w, b, eps: torch.empty_like(x), "never written"),
        (lambda x, w, b, eps: torch.nn.functional.layer_norm(x, w.shape, w, b, eps), "No kernel was launched"),
    ],
    "add_layer_norm": [
        (add_norm("no residual"), "(?s)3 rows of 5 .*First wrong element of normalized.*residual was not added"),
        (add_norm("minus"), "(?s)of normalized.*residual was subtracted"),
        (add_norm("x twice"), "(?s)of normalized.*x was added twice"),
        (add_norm("mean of squares"), "(?s)means near 4000.*of normalized"),
        (add_norm("no mask"), "(?s)of normalized.*variance is too large"),
        (add_norm("no weight"), "(?s)of normalized.*weight was left out"),
        (add_norm("residual after the norm"), "(?s)of normalized"),
        (add_norm("centered total"), "(?s)of total.*before its mean is subtracted"),
        (add_norm("normalized total"), "(?s)of total.*the normalized values were stored to it"),
        (add_norm("total is x"), "(?s)of total.*residual was not added"),
        (add_norm("total not stored"), "(?s)element of total: index \\(0, 0\\) of \\(3, 5\\), which was.*second tl.store"),
        (add_norm("reads x again"), "(?s)bytes of x were read.*once"),
        (add_norm("reads total back"), "(?s)bytes were read that are not the arguments'.*in registers"),
        (add_norm(total_like=always_float32), "(?s)float16.*total has the wrong type: float32"),
        (add_norm(grid=lambda rows: rows - 1), "(?s)of normalized: index \\(2, 0\\).*never stored.*last rows"),
        (add_norm(block=lambda columns: 64), "(?s)5 rows of 197 .*of normalized.*end of each row"),
        (sum_by_pytorch, "(?s)does not read|no kernel wrote total"),
        (norm_by_pytorch, "(?s)no kernel wrote normalized"),
        (in_two_launches, "(?s)2 kernels were launched.*one launch"),
        (total_to_residual, "(?s)changed its input residual.*in place"),
        (lambda *case: add_norm()(*case)[::-1], "order is \\(normalized, total\\)"),
        (lambda *case: add_norm()(*case)[0], "(?s)returned a Tensor.*\\(normalized, total\\)"),
        (lambda *case: (add_norm()(*case)[0], None), "(?s)returned \\(Tensor, None\\)"),
    ],
    "weight_gradients": [
        (by_atomics, "(?s)atomic updates add them up.*changes from run to run"),
        (gradients(launched=lambda rows, programs: rows), "(?s)7 programs were launched first, and at most 2.*loops"),
        (gradients("float16"), "three digits"),
        (gradients("in the input's type"), "(?s)float16.*three digits"),
        (gradients("no mean"), "(?s)First wrong element of dweight: index 0 of 12.*mean was not subtracted"),
        (gradients("no rstd"), "(?s)of dweight.*rstd was left out"),
        (gradients("divides by rstd"), "(?s)of dweight.*multiply by it"),
        (gradients("no grad"), "(?s)of dweight.*incoming gradient was left out"),
        (gradients("bias times rstd"), "(?s)of dbias.*rstd does not belong"),
        (gradients("bias of x"), "(?s)of dbias.*sum of x"),
        (gradients("statistics of the first row"), "(?s)of dweight.*of the first row were taken for all"),
        (gradients("replaces"), "(?s)of dweight.*replaced the ones before"),
        (gradients("replaces", shares=True), "(?s)of dweight.*replaced the ones before"),
        (gradients("last rows"), "(?s)of dweight.*last rows belong to no program"),
        (gradients("one row"), "(?s)of dweight.*one row only"),
        (gradients("stores in the loop"), "(?s)first kernel writes.*in registers"),
        (gradients("no mask"), "(?s)loads outside of grad_ptr.*column < columns"),
        (gradients(second="first"), "(?s)of dweight.*Only one program's"),
        (gradients(second="first", shares=True), "(?s)of dweight.*Only one program's"),
        (gradients(second="mean"), "(?s)of dweight.*number of programs"),
        (gradients(launched=only_rows_with_programs, rows_of=9), "(?s)of dweight.*no program stored"),
        (products_by_pytorch, "(?s)bytes of grad were read by the first kernel.*outside of the first kernel"),
        (lambda *case: gradients()(*case)[::-1], "order is \\(dweight, dbias\\)"),
        (lambda *case: [one.half() for one in gradients()(*case)], "dweight has the wrong type: float16, and float32"),
        (lambda *case: [one.to(case[1].dtype) for one in gradients()(*case)], "(?s)in float16.*dweight .*dtype=torch.float32"),
        (lambda *case: gradients()(*case)[0], "(?s)returned a Tensor.*\\(dweight, dbias\\)"),
        (lambda grad, x, *rest: (grad.sum(0), grad.sum(0)), "No kernel was launched"),
    ],
}  # fmt: skip

RIGHT = {
    "rms_norm": [by_row(rms=True), by_rows(rms=True), by_row(rms=True, block=wide_block)],
    "layer_norm": [by_row(), by_rows(), by_rows(block_rows=1), by_row(block=wide_block)],
    "add_layer_norm": [add_norm(), add_norm_tiled],
    "weight_gradients": [
        gradients(),
        gradients(second="kernel"),
        gradients(shares=True),
        gradients(launched=only_rows_with_programs, partials=torch.zeros),
        by_tiles,
    ],
}
