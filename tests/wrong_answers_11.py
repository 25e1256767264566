"""Answers to the exercises of lesson 11: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

# ---- dropout ----------------------------------------------------------------------------------------------------------------


@triton.jit
def dropout_kernel(x_ptr, output_ptr, size, columns, p, seed, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    offsets = tl.program_id(0) * BLOCK + lane
    mask = offsets < size
    if MISTAKE == "no mask on load":
        x = tl.load(x_ptr + offsets)
    else:
        x = tl.load(x_ptr + offsets, mask=mask)
    if MISTAKE == "float16":
        x = x.to(tl.float16).to(tl.float32)
    numbers = tl.rand(seed, offsets)
    if MISTAKE == "by lane":
        numbers = tl.rand(seed, lane)
    if MISTAKE == "by program":
        numbers = tl.rand(seed, tl.program_id(0) + 0 * lane)
    if MISTAKE == "seed of the program":
        numbers = tl.rand(seed + tl.program_id(0), lane)
    if MISTAKE == "seed 0":
        numbers = tl.rand(0, offsets)
    if MISTAKE == "one number":
        numbers = tl.rand(seed, 0 * lane)
    if MISTAKE == "by column":
        numbers = tl.rand(seed, offsets % columns)
    if MISTAKE == "next":
        numbers = tl.rand(seed, offsets + 1)
    if MISTAKE == "normal":
        numbers = tl.randn(seed, offsets)
    if MISTAKE == "integers":
        numbers = tl.randint(seed, offsets).to(tl.float32)
    kept = numbers >= p
    if MISTAKE == "above p":
        kept = numbers > p
    if MISTAKE == "keeps below p" or MISTAKE == "keeps below p, no scale":
        kept = numbers < p
    scaled = x / (1 - p)
    if MISTAKE == "no scale" or MISTAKE == "keeps below p, no scale":
        scaled = x
    if MISTAKE == "times 1 - p":
        scaled = x * (1 - p)
    if MISTAKE == "times p":
        scaled = x * p
    if MISTAKE == "divided by p":
        scaled = x / p
    result = tl.where(kept, scaled, 0.0)
    if MISTAKE == "others as they were":
        result = tl.where(kept, scaled, x)
    if MISTAKE == "keeps all":
        result = scaled
    if MISTAKE == "nothing":
        result = x
    if MISTAKE == "stores what is kept":
        tl.store(output_ptr + offsets, scaled, mask=mask & kept)
    elif MISTAKE == "no mask on store":
        tl.store(output_ptr + offsets, result)
    elif MISTAKE == "stores lanes":
        tl.store(output_ptr + lane, result, mask=lane < size)
    else:
        tl.store(output_ptr + offsets, result, mask=mask)


@triton.jit
def looping_dropout_kernel(x_ptr, output_ptr, size, p, scale, seed, BLOCK: tl.constexpr):
    """A few programs that walk over the blocks; the scale comes from the launcher, and the mask is a factor."""
    for start in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
        offsets = (start + tl.arange(0, BLOCK)).to(tl.int64)
        x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0).to(tl.float32)
        dropped = tl.rand(seed, offsets) < p
        tl.store(output_ptr + offsets, tl.where(dropped, 0.0, x * scale), mask=offsets < size)


def drop(mistake="", block=1024, blocks=triton.cdiv, output=torch.empty_like):
    def function(x, p, seed):
        result = output(x)
        grid = (blocks(x.numel(), block),)
        dropout_kernel[grid](x, result, x.numel(), x.shape[-1], p, seed, MISTAKE=mistake, BLOCK=block)
        return result

    return function


def drop_in_a_loop(x, p, seed):
    result = torch.empty_like(x)
    looping_dropout_kernel[(3,)](x, result, x.numel(), p, 1 / (1 - p), seed, BLOCK=256)
    return result


def in_place(x, p, seed):
    return drop(output=lambda x: x)(x, p, seed)


def by_torch(x, p, seed):
    torch.manual_seed(seed)
    return torch.nn.functional.dropout(x, p)


# ---- cross_entropy ----------------------------------------------------------------------------------------------------------


@triton.jit
def loss_kernel(logits_ptr, target_ptr, losses_ptr, columns, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    where = row * columns + column
    if MISTAKE == "row of blocks":
        where = row * BLOCK + column
    if MISTAKE == "no mask":
        x = tl.load(logits_ptr + where).to(tl.float32)
    elif MISTAKE == "other is 0":
        x = tl.load(logits_ptr + where, mask=column < columns, other=0.0).to(tl.float32)
    else:
        x = tl.load(logits_ptr + where, mask=column < columns, other=-float("inf")).to(tl.float32)
    target = tl.load(target_ptr + row)
    if MISTAKE == "first target":
        target = tl.load(target_ptr)
    if MISTAKE == "row for target":
        target = row % columns
    of_target = tl.load(logits_ptr + row * columns + target).to(tl.float32)
    if MISTAKE == "target without its row":
        of_target = tl.load(logits_ptr + target).to(tl.float32)
    if MISTAKE == "target's number":
        of_target = target.to(tl.float32)
    maximum = tl.max(x, axis=0)
    if MISTAKE == "first logit":
        maximum = tl.load(logits_ptr + row * columns).to(tl.float32)
    if MISTAKE == "no maximum":
        maximum = 0.0
    exponentials = tl.exp(x - maximum)
    if MISTAKE == "exp2":
        exponentials = tl.exp2(x - maximum)
    total = tl.sum(exponentials, axis=0)
    loss = tl.log(total) + maximum - of_target
    if MISTAKE == "log2":
        loss = tl.log2(total) + maximum - of_target
    if MISTAKE == "maximum not added":
        loss = tl.log(total) - of_target
    if MISTAKE == "maximum subtracted":
        loss = tl.log(total) - maximum - of_target
    if MISTAKE == "no target":
        loss = tl.log(total) + maximum
    if MISTAKE == "target added":
        loss = tl.log(total) + maximum + of_target
    if MISTAKE == "no logarithm":
        loss = total + maximum - of_target
    if MISTAKE == "sign":
        loss = of_target - maximum - tl.log(total)
    if MISTAKE == "probability":
        loss = tl.exp(of_target - maximum) / total
    if MISTAKE == "minus probability":
        loss = -tl.exp(of_target - maximum) / total
    if MISTAKE == "logarithm of the probability":
        loss = -tl.log(tl.exp(of_target - maximum) / total)
    if MISTAKE == "all classes":
        loss = tl.sum(tl.where(column < columns, tl.log(total) + maximum - x, 0.0), axis=0)
    if MISTAKE == "mean":
        loss = loss / tl.num_programs(0)
    if MISTAKE == "float16":
        loss = loss.to(tl.float16)
    if MISTAKE == "first place":
        tl.store(losses_ptr, loss)
    elif MISTAKE == "one further":
        tl.store(losses_ptr + row + 1, loss)
    elif MISTAKE == "stores twice":
        tl.store(losses_ptr + row, maximum)
        tl.store(losses_ptr + row, loss)
    else:
        tl.store(losses_ptr + row, loss)


@triton.jit
def loss_rows_kernel(
    logits_ptr, target_ptr, losses_ptr, rows, columns, AXIS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Several rows a program; the target's logit is picked out of the tile."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    x = tl.load(logits_ptr + row[:, None] * columns + column[None, :], mask=mask, other=-1e30).to(tl.float32)
    target = tl.load(target_ptr + row, mask=row < rows, other=0)
    x -= tl.max(x, axis=1, keep_dims=True)
    of_target = tl.sum(tl.where(column[None, :] == target[:, None], x, 0.0), axis=1)
    tl.store(losses_ptr + row, tl.log(tl.sum(tl.exp(x), axis=1)) - of_target, mask=row < rows)


@triton.jit
def walking_loss_kernel(logits_ptr, target_ptr, losses_ptr, columns, BLOCK: tl.constexpr):
    """A row piece by piece, with a running maximum and sum."""
    row_ptr = logits_ptr + tl.program_id(0) * columns
    maximum = -float("inf")
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + column, mask=column < columns, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(x, axis=0))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(x - larger), axis=0)
        maximum = larger
    x = tl.load(row_ptr + tl.load(target_ptr + tl.program_id(0))).to(tl.float32)
    tl.store(losses_ptr + tl.program_id(0), tl.log(total) + (maximum - x))


def float32_rows(logits):
    return torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)


def losses(mistake="", grid=lambda rows: rows, block=triton.next_power_of_2, output=float32_rows):
    def function(logits, target):
        rows, columns = logits.shape
        result = output(logits)
        loss_kernel[(grid(rows),)](logits, target, result, columns, MISTAKE=mistake, BLOCK=block(columns))
        return result

    return function


def losses_of_tiles(logits, target):
    rows, columns = logits.shape
    result = float32_rows(logits)
    options = {"AXIS": 1, "BLOCK_ROWS": 4, "BLOCK": triton.next_power_of_2(columns)}
    loss_rows_kernel[(triton.cdiv(rows, 4),)](logits, target, result, rows, columns, **options)
    return result


def losses_piece_by_piece(logits, target):
    result = float32_rows(logits)
    walking_loss_kernel[(logits.shape[0],)](logits, target, result, logits.shape[1], BLOCK=16)
    return result


# ---- cross_entropy_gradient -------------------------------------------------------------------------------------------------


@triton.jit
def gradient_kernel(logits_ptr, target_ptr, output_ptr, columns, smoothing, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    where = row * columns + column
    if MISTAKE == "first row only":
        where = column
    if MISTAKE == "no mask on load":
        x = tl.load(logits_ptr + where).to(tl.float32)
    elif MISTAKE == "other is 0":
        x = tl.load(logits_ptr + where, mask=column < columns, other=0.0).to(tl.float32)
    else:
        x = tl.load(logits_ptr + where, mask=column < columns, other=-float("inf")).to(tl.float32)
    target = tl.load(target_ptr + row)
    if MISTAKE == "first target":
        target = tl.load(target_ptr)
    if MISTAKE == "row for target":
        target = row
    if MISTAKE == "column after":
        target += 1
    maximum = tl.max(x, axis=0)
    if MISTAKE == "no maximum":
        maximum = 0.0
    exponentials = tl.exp(x - maximum)
    softmax = exponentials / tl.sum(exponentials, axis=0)
    if MISTAKE == "not divided":
        softmax = exponentials
    if MISTAKE == "log softmax":
        softmax = tl.log(softmax)
    is_target = column == target
    if MISTAKE == "flat target":
        is_target = where == target
    onehot = tl.where(is_target, 1.0, 0.0)
    wanted = (1 - smoothing) * onehot + smoothing / columns
    if MISTAKE == "no smoothing":
        wanted = onehot
    if MISTAKE == "target without its share":
        wanted = tl.where(is_target, 1 - smoothing, smoothing / columns)
    if MISTAKE == "target's share is 1":
        wanted = onehot + smoothing / columns
    if MISTAKE == "no smoothing / classes":
        wanted = (1 - smoothing) * onehot
    if MISTAKE == "smoothing not divided":
        wanted = (1 - smoothing) * onehot + smoothing
    if MISTAKE == "classes - 1":
        wanted = tl.where(is_target, 1 - smoothing, smoothing / tl.maximum(columns - 1, 1))
    if MISTAKE == "smoothing added":
        wanted = (1 - smoothing) * onehot - smoothing / columns
    if MISTAKE == "exchanged":
        wanted = smoothing * onehot + (1 - smoothing) / columns
    if MISTAKE == "smoothing / BLOCK":
        wanted = (1 - smoothing) * onehot + smoothing / BLOCK
    if MISTAKE == "no target":
        wanted = smoothing / columns + 0 * onehot
    if MISTAKE == "softmax only":
        wanted = 0 * onehot
    result = softmax - wanted
    if MISTAKE == "sign":
        result = wanted - softmax
    if MISTAKE == "plus":
        result = softmax + wanted
    if MISTAKE == "no softmax":
        result = -wanted
    if MISTAKE == "smoothed softmax":
        result = (1 - smoothing) * softmax - wanted
    if MISTAKE == "target's column only":
        result = tl.where(is_target, result, 0.0)
    if MISTAKE == "mean":
        result = result / tl.num_programs(0)
    if MISTAKE == "float16":
        result = result.to(tl.float16)
    if MISTAKE == "no mask on store":
        tl.store(output_ptr + where, result)
    else:
        tl.store(output_ptr + where, result, mask=column < columns)


@triton.jit
def gradient_rows_kernel(
    logits_ptr, target_ptr, output_ptr, rows, columns, smoothing,
    AXIS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Several rows a program; AXIS is 1 where it is right."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    x = tl.load(logits_ptr + row * columns + column, mask=mask, other=-1e30).to(tl.float32)
    exponentials = tl.where(mask, tl.exp(x - tl.max(x, axis=AXIS, keep_dims=True)), 0.0)
    result = exponentials / tl.maximum(tl.sum(exponentials, axis=AXIS, keep_dims=True), 1e-30) - smoothing / columns
    target = tl.load(target_ptr + row, mask=row < rows, other=-1)
    result = tl.where(column == target, result - (1.0 - smoothing), result)
    tl.store(output_ptr + row * columns + column, result.to(output_ptr.dtype.element_ty), mask=mask)


def gradient(mistake="", grid=lambda rows: rows, block=triton.next_power_of_2, output=torch.empty_like):
    def function(logits, target, smoothing):
        rows, columns = logits.shape
        result = output(logits)
        gradient_kernel[(grid(rows),)](logits, target, result, columns, smoothing, MISTAKE=mistake, BLOCK=block(columns))
        return result

    return function


def gradient_of_tiles(axis=1, block_rows=4):
    def function(logits, target, smoothing):
        rows, columns = logits.shape
        result = torch.empty_like(logits)
        options = {"AXIS": axis, "BLOCK_ROWS": block_rows, "BLOCK": triton.next_power_of_2(columns)}
        gradient_rows_kernel[(triton.cdiv(rows, block_rows),)](logits, target, result, rows, columns, smoothing, **options)
        return result

    return function


def wide_block(columns):
    return 1024


# ---- The banks --------------------------------------------------------------------------------------------------------------

WRONG = {
    "dropout": [
        (drop("by lane"), "(?s)size 2500, p 0.125, seed 7 in float32.*Every block drops the same places"),
        (drop("by lane", block=256), "(?s)size 1000, .*Every block drops the same places"),
        (drop("above p"), "(?s)size 9, p 0.78.*whose number is p itself"),
        (drop("by program"), "(?s)size 9, p 0.25, seed 7 .*One number decides for"),
        (drop("by program", block=64), "One number decides for"),
        (drop("seed of the program"), "(?s)size 2500, .*Each block has a seed of its own"),
        (drop("seed of the program", block=128), "(?s)size 1000, .*Each block has a seed of its own"),
        (drop("seed 0"), "(?s)size 9, .*seed has no part in it"),
        (drop("one number"), "One number decides for"),
        (drop("by column"), "(?s)shape \\(37, 129\\).*numbers are those of the columns"),
        (drop("next"), "yours takes the next one"),
        (drop("normal"), "Other elements are kept"),
        (drop("integers"), "elements are kept"),
        (drop("keeps below p"), "(?s)size 9, .*index 0 of 9.*elements to drop"),
        (drop("keeps below p, no scale"), "elements to drop, and they are not scaled"),
        (drop("no scale"), "(?s)index 1 of 9.*not scaled: divide it by 1 - p"),
        (drop("times 1 - p"), "(?s)index 1 of 9.*multiplied by 1 - p"),
        (drop("times p"), "(?s)index 1 of 9.*multiplied by p"),
        (drop("divided by p"), "(?s)index 1 of 9.*divided by p"),
        (drop("others as they were"), "(?s)yours are as they were"),
        (drop("keeps all"), "All elements are kept"),
        (drop("nothing"), "The result is x"),
        (drop("float16"), "three digits"),
        (drop("stores what is kept"), "(?s)never stored.*Dropped elements are never stored"),
        (drop("no mask on load"), "(?s)loads outside of x_ptr.*mask"),
        (drop("no mask on store"), "(?s)stores outside of output_ptr.*mask"),
        (drop("stores lanes"), "(?s)size 2500.*Every program stores the same block|First wrong"),
        (drop(blocks=lambda size, block: size // block), "no programs"),
        (drop(block=256, blocks=lambda size, block: 1), "(?s)size 1000.*never stored"),
        (drop(output=lambda x: torch.empty_like(x, dtype=torch.float32)), "(?s)float16.*wrong type: float32"),
        (in_place, "works in place"),
        (by_torch, "No kernel was launched"),
    ],
    "cross_entropy": [
        (losses("other is 0"), "(?s)3 rows of 5 in float32\\. .*index 0 of 3.*lanes past its end add to it"),
        (losses("other is 0", block=wide_block), "(?s)3 rows of 5 in float32\\. .*lanes past its end add to it"),
        (losses("first logit"), "(?s)3 rows of 6 in float32, large values.*subtract the row's maximum"),
        (losses("no maximum"), "(?s)3 rows of 6 in float32, large values.*subtract the row's maximum"),
        (losses("no mask"), "(?s)loads outside of logits_ptr.*column < columns"),
        (losses("row of blocks"), "(?s)loads outside of logits_ptr.*i \\* columns"),
        (losses("first target"), "(?s)index 1 of 3.*first row's target is taken for all"),
        (losses("row for target"), "row's number is taken for the target"),
        (losses("target without its row"), "(?s)index 1 of 3.*read without its row"),
        (losses("target's number"), "number of the target is subtracted"),
        (losses("exp2"), "exp2 is not exp"),
        (losses("log2"), "base 2"),
        (losses("maximum not added"), "maximum is missing"),
        (losses("maximum subtracted"), "maximum is subtracted"),
        (losses("no target"), "target's logit is missing"),
        (losses("target added"), "target's logit was added"),
        (losses("no logarithm"), "not the sum"),
        (losses("sign"), "the loss is minus that"),
        (losses("probability"), "probability of the target"),
        (losses("minus probability"), "minus the probability"),
        (losses("logarithm of the probability"), "(?s)large values.*"),
        (losses("all classes"), "sum over all classes"),
        (losses("mean"), "divided by the number of rows"),
        (losses("float16"), "three digits"),
        (losses("first place"), "first row's place"),
        (losses("one further"), "stores outside of losses_ptr"),
        (losses("stores twice"), "(?s)stored more than once.*finished value"),
        (losses(grid=lambda rows: rows - 1), "(?s)index 2 of 3.*never stored.*last rows"),
        (losses(grid=lambda rows: rows + 1), "(?s)loads outside of target_ptr|loads outside of logits_ptr"),
        (losses(block=lambda columns: 64), "(?s)5 rows of 197 .*end of each row is missing"),
        (losses(output=lambda logits: logits.new_empty(len(logits))), "(?s)float16.*wrong type: float16, and float32"),
        (lambda logits, target: losses()(logits, target).mean(), "has shape"),
        (lambda logits, target: torch.nn.functional.cross_entropy(logits.float(), target, reduction="none"), "No kernel"),
    ],
    "cross_entropy_gradient": [
        (gradient("no smoothing"), "(?s)3 rows of 5, smoothing 0.25 in float32.*smoothing was left out"),
        (gradient("target without its share"), "target's own share of the smoothing is missing"),
        (gradient("target's share is 1"), "target's share is 1 - smoothing: yours is 1"),
        (gradient("no smoothing / classes"), "smoothing / classes is missing"),
        (gradient("smoothing not divided"), "divided by the number of classes"),
        (gradient("classes - 1"), "not / \\(classes - 1\\)"),
        (gradient("smoothing added"), "smoothing / classes is added"),
        (gradient("exchanged"), "1 - smoothing and smoothing are exchanged"),
        (gradient("smoothing / BLOCK"), "divided by the block's width"),
        (gradient("smoothed softmax"), "Only 1 - smoothing of the softmax"),
        (gradient("no target"), "Nothing is subtracted in the target's column"),
        (gradient("softmax only"), "That is the softmax"),
        (gradient("sign"), "sign is wrong"),
        (gradient("plus"), "added to the softmax"),
        (gradient("no softmax"), "softmax is missing"),
        (gradient("target's column only"), "Only the target's column is there"),
        (gradient("mean"), "as for the mean"),
        (gradient("first target"), "(?s)index \\(1, .*first row's target"),
        (gradient("row for target"), "row's number is taken"),
        (gradient("column after"), "column after the target's"),
        (gradient("flat target"), "columns of its own row"),
        (gradient("log softmax"), "logarithm of the softmax"),
        (gradient("not divided"), "was not divided by its sum"),
        (gradient("other is 0"), "(?s)3 rows of 5.*lanes past its end add to it"),
        (gradient("other is 0", block=wide_block), "(?s)3 rows of 5.*lanes past its end add to it"),
        (gradient("no maximum"), "(?s)large values.*subtract the row's maximum"),
        (gradient("first row only"), "program number i has row i"),
        (gradient("float16"), "three digits"),
        (gradient("no mask on load"), "(?s)loads outside of logits_ptr.*column < columns"),
        (gradient("no mask on store"), "(?s)stores outside of output_ptr.*column < columns"),
        (gradient(grid=lambda rows: rows - 1), "(?s)index \\(2, 0\\).*never stored.*last rows"),
        (gradient(grid=lambda rows: rows + 1), "no more programs"),
        (gradient(block=lambda columns: 64), "(?s)5 rows of 197.*end of each row is missing"),
        (gradient(output=lambda logits: torch.empty_like(logits, dtype=torch.float32)), "(?s)float16.*wrong type: float32"),
        (gradient_of_tiles(axis=0), "(?s)3 rows of 5.*axis 1"),
        (gradient_of_tiles(axis=0, block_rows=2), "(?s)3 rows of 5.*axis 1"),
        (lambda x, target, s: torch.softmax(x, 1), "No kernel was launched"),
    ],
}

RIGHT = {
    "dropout": [drop(), drop(block=256), drop(block=8192), drop_in_a_loop],
    "cross_entropy": [losses(), losses(block=wide_block), losses_of_tiles, losses_piece_by_piece],
    "cross_entropy_gradient": [gradient(), gradient(block=wide_block), gradient_of_tiles(), gradient_of_tiles(block_rows=1)],
}
