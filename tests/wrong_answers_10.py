"""Answers to the exercises of lesson 10: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

# ---- pixel_offset -----------------------------------------------------------------------------------------------------------


def offset(patch, k, channels, height, width, size):
    across = width // size
    channel, rest = divmod(k, size * size)
    row = patch // across * size + rest // size
    column = patch % across * size + rest % size
    return channel * height * width + row * width + column


def offset_by_strides(patch, k, channels, height, width, size):
    corner = (patch // (width // size) * width + patch % (width // size)) * size
    return corner + k // size**2 * height * width + k // size % size * width + k % size


def offset_of(patch_row=None, patch_column=None, channel=None, row=None, column=None, strides=None):
    """The offset with a part of it replaced: functions of (patch, height, width, size), of (k, channels, size)."""

    def function(patch, k, channels, height, width, size):
        across = width // size
        y = patch_row(patch, height, width, size) if patch_row else patch // across * size
        x = patch_column(patch, height, width, size) if patch_column else patch % across * size
        c = channel(k, channels, size) if channel else k // (size * size)
        y += row(k, channels, size) if row else k // size % size
        x += column(k, channels, size) if column else k % size
        by_channel, by_row = strides(height, width, size) if strides else (height * width, width)
        return c * by_channel + y * by_row + x

    return function


# ---- patches ----------------------------------------------------------------------------------------------------------------


@triton.jit
def patch_kernel(
    images_ptr, output_ptr, count, K, across, down, size, channels,
    batch_stride, channel_stride, row_stride, column_stride, MISTAKE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0)
    image = tl.program_id(1)
    k = tl.arange(0, BLOCK)
    mask = k < K
    channel = k // (size * size)
    row = k // size % size
    column = k % size
    if MISTAKE == "across is down":
        across = down
    if MISTAKE == "channel fastest":
        channel = k % channels
        row = k // channels // size
        column = k // channels % size
    if MISTAKE == "row and column exchanged":
        row = k % size
        column = k // size % size
    y = patch // across * size + row
    x = patch % across * size + column
    if MISTAKE == "column by column":
        y = patch % down * size + row
        x = patch // down * size + column
    if MISTAKE == "patches overlap":
        y = patch // across + row
        x = patch % across + column
    if MISTAKE == "first corner":
        y = row
        x = column
    if MISTAKE == "first channel":
        channel = k * 0
    where = image * batch_stride + channel * channel_stride + y * row_stride + x * column_stride
    if MISTAKE == "first image":
        where = channel * channel_stride + y * row_stride + x * column_stride
    if MISTAKE == "no column stride":
        where = image * batch_stride + channel * channel_stride + y * row_stride + x
    if MISTAKE == "strides exchanged":
        where = image * batch_stride + channel * channel_stride + y * column_stride + x * row_stride
    if MISTAKE == "strides of images and channels exchanged":
        where = image * channel_stride + channel * batch_stride + y * row_stride + x * column_stride
    if MISTAKE == "no mask on load":
        value = tl.load(images_ptr + where)
    else:
        value = tl.load(images_ptr + where, mask=mask)
    to = (image * count + patch) * K + k
    if MISTAKE == "stores by BLOCK":
        to = (image * count + patch) * BLOCK + k
    if MISTAKE == "stores transposed":
        to = (image * K + k) * count + patch
    if MISTAKE == "stores without the image":
        to = patch * K + k
    if MISTAKE == "float16":
        value = value.to(tl.float16)
    if MISTAKE == "stores twice":
        tl.store(output_ptr + to, value, mask=mask)
    if MISTAKE == "no mask on store":
        tl.store(output_ptr + to, value)
    else:
        tl.store(output_ptr + to, value, mask=mask)


@triton.jit
def flat_patch_kernel(
    images_ptr, output_ptr, total, count, K, across, size, batch_stride, channel_stride, row_stride, column_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of the flat output a program, wherever its patches begin and end."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, k = element // K, element % K
    image, patch = row // count, row % count
    y = patch // across * size + k // size % size
    x = patch % across * size + k % size
    where = image * batch_stride + k // (size * size) * channel_stride + y * row_stride + x * column_stride
    tl.store(output_ptr + element, tl.load(images_ptr + where, mask=element < total), mask=element < total)


@triton.jit
def tiled_patch_kernel(
    images_ptr, output_ptr, count, K, across, size, batch_stride, channel_stride, row_stride, column_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of patches and elements a program, images along the grid's third dimension."""
    patch = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    corner = patch // across * size * row_stride + patch % across * size * column_stride
    for start in range(0, K, BLOCK_COLUMNS):
        k = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        pixel = k // (size * size) * channel_stride + k // size % size * row_stride + k % size * column_stride
        mask = (patch < count) & (k < K)
        value = tl.load(images_ptr + tl.program_id(0) * batch_stride + corner + pixel, mask=mask, other=0.0)
        tl.store(output_ptr + (tl.program_id(0) * count + patch) * K + k, value, mask=mask)


def output_of(images, size):
    batch, channels, height, width = images.shape
    count = (height // size) * (width // size)
    return torch.empty((batch, count, channels * size * size), dtype=images.dtype, device=images.device)


def cut(mistake="", output=output_of, grid=lambda count, batch: (count, batch), block=triton.next_power_of_2, strides=None):
    def function(images, size):
        _, channels, height, width = images.shape
        result = output(images, size)
        count, K = (height // size) * (width // size), channels * size * size
        patch_kernel[grid(count, images.shape[0])](
            images, result, count, K, width // size, height // size, size, channels,
            *(strides(images) if strides else images.stride()), MISTAKE=mistake, BLOCK=block(K),
        )  # fmt: skip
        return result

    return function


def cut_flat(images, size):
    result = output_of(images, size)
    _, count, K = result.shape
    sizes = (result.numel(), count, K, images.shape[3] // size, size)
    flat_patch_kernel[(triton.cdiv(result.numel(), 128),)](images, result, *sizes, *images.stride(), BLOCK=128)
    return result


def cut_tiled(images, size):
    result = output_of(images, size)
    batch, count, K = result.shape
    sizes = (count, K, images.shape[3] // size, size)
    tiled_patch_kernel[(batch, triton.cdiv(count, 4))](images, result, *sizes, *images.stride(), BLOCK_ROWS=4, BLOCK_COLUMNS=64)
    return result


def as_if_contiguous(images):
    _, channels, height, width = images.shape
    return channels * height * width, height * width, width, 1


def by_unfold(images, size):
    return torch.nn.functional.unfold(images, size, stride=size).transpose(1, 2)


def image_by_image(images, size):
    result = output_of(images, size)
    for image, one in zip(images, result):
        one.copy_(cut()(image[None], size)[0])
    return result


# ---- patch_embed ------------------------------------------------------------------------------------------------------------


@triton.jit
def embed_kernel(
    images_ptr, weight_ptr, bias_ptr, class_ptr, position_ptr, output_ptr, tokens, hidden, K, height, width, size, channels,
    MISTAKE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (token < tokens) & (column < hidden)
    patch = token - 1
    if MISTAKE == "first patch lost":
        patch = token
    across = width // size
    if MISTAKE == "across from the height":
        across = height // size
    if MISTAKE == "across rounded up":
        across = tl.cdiv(width, size)
    corner = image * channels * height * width + patch // across * size * width + patch % across * size
    if MISTAKE == "first image":
        corner = patch // across * size * width + patch % across * size
    if MISTAKE == "column by column":
        down = height // size
        corner = image * channels * height * width + patch % down * size * width + patch // down * size
    if MISTAKE == "no size":
        corner = image * channels * height * width + patch // across * width + patch % across
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    last = K
    if MISTAKE == "first step":
        last = BLOCK
    if MISTAKE == "rounded down":
        last = K // BLOCK * BLOCK
    if MISTAKE == "to N":
        last = hidden
    for start in range(0, last, BLOCK):
        k = start + tl.arange(0, BLOCK)
        if MISTAKE == "same step":
            k = tl.arange(0, BLOCK)
        pixel = (k // (size * size) * height + k // size % size) * width + k % size
        if MISTAKE == "channel fastest":
            pixel = (k % channels * height + k // channels // size) * width + k // channels % size
        if MISTAKE == "no modulo":
            pixel = (k // (size * size) * height + k // size) * width + k % size
        if MISTAKE == "no mask along K":
            a_mask = (token > 0) & (token < tokens) & (k >= 0)[None, :]
        elif MISTAKE == "no mask of tokens":
            a_mask = (token > 0) & (k < K)[None, :]
        else:
            a_mask = (token > 0) & (token < tokens) & (k < K)[None, :]
        a = tl.load(images_ptr + corner + pixel[None, :], mask=a_mask, other=0.0)
        b_mask = (k < K)[:, None] & (column < hidden)
        if MISTAKE == "weight read as (K, hidden)":
            b = tl.load(weight_ptr + k[:, None] * hidden + column, mask=b_mask, other=0.0)
        else:
            b = tl.load(weight_ptr + column * K + k[:, None], mask=b_mask, other=0.0)
        if MISTAKE == "last step":
            total = tl.dot(a, b)
        elif MISTAKE == "float16":
            total = tl.dot(a, b, total).to(tl.float16).to(tl.float32)
        else:
            total = tl.dot(a, b, total)
    bias = tl.load(bias_ptr + column, mask=column < hidden)
    if MISTAKE == "one bias":
        bias = tl.load(bias_ptr)
    first = tl.load(class_ptr + column, mask=column < hidden)
    if MISTAKE == "no class token":
        total = total + bias
    elif MISTAKE == "class token gets the bias":
        total = tl.where(token == 0, first, total) + bias
    elif MISTAKE == "no bias":
        total = tl.where(token == 0, first, total)
    elif MISTAKE == "class token everywhere":
        total = total + bias + first
    else:
        total = tl.where(token == 0, first, total + bias)
    row = token
    if MISTAKE == "position of the batch's row":
        row = image * tokens + token
    if MISTAKE == "position of the batch's row, masked":
        inside_position = inside & (image * tokens + token < tokens)
        total += tl.load(position_ptr + (image * tokens + token) * hidden + column, mask=inside_position, other=0.0)
    elif MISTAKE == "position of the patch":
        total += tl.load(position_ptr + patch * hidden + column, mask=inside & (token > 0), other=0.0)
    elif MISTAKE == "position before the first":
        total += tl.load(position_ptr + patch * hidden + column, mask=inside, other=0.0)
    elif MISTAKE == "position for patches only":
        total += tl.load(position_ptr + token * hidden + column, mask=inside & (token > 0), other=0.0)
    elif MISTAKE == "first position":
        total += tl.load(position_ptr + column, mask=column < hidden)
    elif MISTAKE != "no position":
        total += tl.load(position_ptr + row * hidden + column, mask=inside)
    to = output_ptr + (image * tokens + token) * hidden + column
    if MISTAKE == "stores all of the tile":
        tl.store(to, total, mask=token < tokens)
    else:
        tl.store(to, total, mask=inside)


@triton.jit
def embed_rows_kernel(
    images_ptr, weight_ptr, bias_ptr, class_ptr, position_ptr, output_ptr, M, N, K, tokens, across, channels, height, width,
    SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All images' tokens as the rows of one matrix, as the package has it; the sum starts from the bias and the class token."""
    m = tl.program_id(0) // tl.cdiv(N, BLOCK_N) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % tl.cdiv(N, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = m % tokens
    patch = tl.maximum(token - 1, 0)
    y = patch // across * SIZE
    x = patch % across * SIZE
    start_of_row = tl.where((token == 0)[:, None], tl.load(class_ptr + n, mask=n < N)[None, :], tl.load(bias_ptr + n, n < N))
    total = start_of_row.to(tl.float32)
    for first in range(tl.cdiv(K, BLOCK_K)):
        k = first * BLOCK_K + tl.arange(0, BLOCK_K)
        channel = m[:, None] // tokens * channels + k[None, :] // (SIZE * SIZE)
        row = y[:, None] + k[None, :] % (SIZE * SIZE) // SIZE
        mask = (m < M)[:, None] & (token > 0)[:, None] & (k < K)[None, :]
        a = tl.load(images_ptr + (channel * height + row) * width + x[:, None] + k[None, :] % SIZE, mask, other=0.0)
        b = tl.load(weight_ptr + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
        total += tl.dot(a, tl.trans(b))
    mask = (m < M)[:, None] & (n < N)[None, :]
    total += tl.load(position_ptr + token[:, None] * N + n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(output_ptr + m[:, None] * N + n[None, :], total, mask=mask)


def embed(mistake="", down=triton.cdiv, dtype=None, order=lambda *tensors: tensors):
    def function(images, weight, bias, class_token, position):
        batch, channels, height, width = images.shape
        tokens, hidden = position.shape
        size = weight.shape[-1]
        output = torch.empty((batch, tokens, hidden), dtype=dtype or images.dtype, device=images.device)
        tensors = order(images, weight, bias, class_token, position)
        sizes = (tokens, hidden, channels * size * size, height, width, size, channels)
        grid = (down(tokens, 32), triton.cdiv(hidden, 32), batch)
        embed_kernel[grid](*tensors, output, *sizes, MISTAKE=mistake, BLOCK=32)
        return output

    return function


def embed_rows(blocks=(16, 64, 16)):
    def function(images, weight, bias, class_token, position):
        batch, channels, height, width = images.shape
        tokens, hidden = position.shape
        size = weight.shape[-1]
        output = images.new_empty(batch, tokens, hidden)
        options = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), blocks), SIZE=size)
        sizes = (batch * tokens, hidden, weight[0].numel(), tokens, width // size, channels, height, width)
        grid = (triton.cdiv(batch * tokens, blocks[0]) * triton.cdiv(hidden, blocks[1]),)
        embed_rows_kernel[grid](images, weight, bias, class_token, position, output, *sizes, **options)
        return output

    return function


def class_and_bias_exchanged(images, weight, bias, class_token, position):
    return images, weight, class_token, bias, position


def by_conv2d(images, weight, bias, class_token, position):
    tokens = torch.nn.functional.conv2d(images, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    return torch.cat([class_token.expand(len(images), 1, -1), tokens], 1) + position


def class_token_by_torch(images, weight, bias, class_token, position):
    output = embed("no class token")(images, weight, bias, class_token, position)
    output[:, 0] = class_token + position[0]
    return torch.cat([output[:, :1], output[:, 1:]], 1)


def without_the_class_token(images, weight, bias, class_token, position):
    return embed()(images, weight, bias, class_token, position)[:, 1:].contiguous()


# ---- image_gradient ---------------------------------------------------------------------------------------------------------


@triton.jit
def gradient_kernel(grad_ptr, output_ptr, channels, height, width, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1)
    image = tl.program_id(2)
    row = pixel // width
    column = pixel % width
    down = height // size
    across = width // size
    if MISTAKE == "across rounded up":
        across = tl.cdiv(width, size)
    patches = down * across
    patch = row // size * across + column // size
    if MISTAKE == "across from the height":
        patch = row // size * down + column // size
    if MISTAKE == "column by column":
        patch = column // size * down + row // size
    if MISTAKE == "patch by width":
        patch = row // size * width + column // size
    if MISTAKE == "first patch":
        patch = 0 * pixel
    k = (channel * size + row % size) * size + column % size
    if MISTAKE == "channel fastest":
        k = (row % size * size + column % size) * channels + channel
    if MISTAKE == "row and column exchanged":
        k = (channel * size + column % size) * size + row % size
    if MISTAKE == "no channel":
        k = row % size * size + column % size
    covered = (row // size < down) & (column // size < across)
    if MISTAKE == "last columns covered":
        covered = row // size < down
    if MISTAKE == "last rows covered":
        covered = (column // size < across) & (pixel < height * width)
    if MISTAKE == "all covered":
        covered = pixel < height * width
    where = (image * patches + patch) * channels * size * size + k
    if MISTAKE == "first image":
        where = patch * channels * size * size + k
    if MISTAKE == "by height":
        where = (image * patches + patch) * channels * size * size + k
    grad = tl.load(grad_ptr + where, mask=covered, other=0.0)
    if MISTAKE == "other is 1":
        grad = tl.load(grad_ptr + where, mask=covered, other=1.0)
    if MISTAKE == "masked lanes hold anything":
        grad = tl.load(grad_ptr + where, mask=covered)
    inside = pixel < height * width
    if MISTAKE == "covered pixels only":
        inside = covered
    if MISTAKE == "float16":
        grad = grad.to(tl.float16)
    if MISTAKE == "mean":
        grad = grad / (channels * size * size)
    to = output_ptr + (image * channels + channel) * height * width + pixel
    if MISTAKE == "no mask on store":
        tl.store(to, grad)
    elif MISTAKE == "atomic":
        tl.atomic_add(to, grad, mask=inside)
    else:
        tl.store(to, grad, mask=inside)


@triton.jit
def scatter_kernel(grad_ptr, output_ptr, channels, height, width, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    """A program a patch, which stores it where it came from."""
    K = channels * size * size
    across = width // size
    if MISTAKE == "across from the height":
        across = height // size
    k = tl.arange(0, BLOCK)
    row = tl.program_id(0) // across * size + k // size % size
    column = tl.program_id(0) % across * size + k % size
    grad = tl.load(grad_ptr + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * K + k, mask=k < K)
    to = ((tl.program_id(1) * channels + k // (size * size)) * height + row) * width + column
    tl.store(output_ptr + to, grad, mask=k < K)


@triton.jit
def flat_gradient_kernel(grad_ptr, output_ptr, total, channels, height, width, size, BLOCK: tl.constexpr):
    """Programs walk over all pixels of all images, a block after the other."""
    K = channels * size * size
    for start in range(tl.program_id(0) * BLOCK, total, tl.num_programs(0) * BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        x = pixel % width
        y = pixel // width % height
        c = pixel // (height * width) % channels
        image = pixel // (channels * height * width)
        patch = (image * (height // size) + y // size) * (width // size) + x // size
        inside = (pixel < total) & (y < height // size * size) & (x < width // size * size)
        value = tl.load(grad_ptr + patch * K + c * size * size + y % size * size + x % size, mask=inside)
        tl.store(output_ptr + pixel, tl.where(inside, value, 0.0), mask=pixel < total)


def new(grad, *shape):
    return torch.empty(shape, dtype=grad.dtype, device=grad.device)


def gradient(mistake="", output=new, block=64, blocks=triton.cdiv):
    def function(grad, channels, height, width, size):
        result = output(grad, grad.shape[0], channels, height, width)
        grid = (blocks(height * width, block), channels, grad.shape[0])
        gradient_kernel[grid](grad, result, channels, height, width, size, MISTAKE=mistake, BLOCK=block)
        return result

    return function


def scattered(mistake="", output=new):
    def function(grad, channels, height, width, size):
        batch, patches, K = grad.shape
        result = output(grad, batch, channels, height, width)
        block = triton.next_power_of_2(K)
        scatter_kernel[(patches, batch)](grad, result, channels, height, width, size, MISTAKE=mistake, BLOCK=block)
        return result

    return function


def gradient_flat(grad, channels, height, width, size):
    result = new(grad, grad.shape[0], channels, height, width)
    flat_gradient_kernel[(3,)](grad, result, result.numel(), channels, height, width, size, BLOCK=256)
    return result


def zeros(grad, *shape):
    return grad.new_zeros(shape)


def by_fold(grad, channels, height, width, size):
    whole = (height // size * size, width // size * size)
    images = torch.nn.functional.fold(grad.transpose(1, 2), whole, size, stride=size)
    return torch.nn.functional.pad(images, (0, width - whole[1], 0, height - whole[0]))


# ---- The banks --------------------------------------------------------------------------------------------------------------

WRONG = {
    "pixel_offset": [
        (offset_of(patch_row=lambda p, h, w, s: p // (h // s) * s, patch_column=lambda p, h, w, s: p % (h // s) * s),
         r"(?s)pixel_offset\(2, 0, 3, 4, 6, 2\).*Expected 4, got 12.*right for square images"),
        (offset_of(patch_row=lambda p, h, w, s: p % (h // s) * s, patch_column=lambda p, h, w, s: p // (h // s) * s),
         "numbered row by row|exchanged"),
        (offset_of(patch_row=lambda p, h, w, s: p % (w // s) * s, patch_column=lambda p, h, w, s: p // (w // s) * s),
         "numbered row by row|exchanged"),
        (offset_of(patch_row=lambda p, h, w, s: p // -(-w // s) * s, patch_column=lambda p, h, w, s: p % -(-w // s) * s),
         "rounded down"),
        (offset_of(patch_row=lambda p, h, w, s: p // (w // s), patch_column=lambda p, h, w, s: p % (w // s)), "do not overlap"),
        (offset_of(patch_row=lambda p, h, w, s: p // (w // s)), "row patch // across \\* size"),
        (offset_of(patch_column=lambda p, h, w, s: p % (w // s)), "column patch % across \\* size"),
        (offset_of(patch_row=lambda *a: 0, patch_column=lambda *a: 0), "first corner"),
        (offset_of(channel=lambda k, c, s: k % c, row=lambda k, c, s: k // c // s, column=lambda k, c, s: k // c % s),
         "channel as what varies fastest"),
        (offset_of(row=lambda k, c, s: k % s, column=lambda k, c, s: k // s % s), "exchanged: k % size is the column"),
        (offset_of(row=lambda k, c, s: k // s), "(?s)pixel_offset\\(0, 4, 3, 4, 4, 2\\).*modulo size"),
        (offset_of(channel=lambda k, c, s: 0), "channel was left out"),
        (offset_of(channel=lambda k, c, s: 0, row=lambda k, c, s: k // s), "runs on past the patch"),
        (offset_of(strides=lambda h, w, s: (s * s, w)), "not size \\* size"),
        (offset_of(strides=lambda h, w, s: (h * w, h)), "width elements, not height"),
        (lambda p, k, c, h, w, s: p * c * s * s + k, "in one piece"),
        (lambda p, k, c, h, w, s: offset(p, k % (s * s), c, h, w, s) * c + k // (s * s), "pixel by pixel"),
        (lambda p, k, c, h, w, s: offset(p, k, c, h, w, s) + 1, "(?s)Expected 0, got 1.*Write k as channel"),
        (lambda p, k, c, h, w, s: (1, 2), "returned a tuple"),
        (lambda p, k, c, h: 0, "TypeError"),
    ],
    "patches": [
        (cut("across is down"), "(?s)2 images of 3 x 6 x 4 in patches of 2 .*right for square images"),
        (cut("channel fastest"), "varies fastest"),
        (cut("row and column exchanged"), "exchanged: k % size is the column"),
        (cut("column by column"), "row by row"),
        (cut("patches overlap"), "do not overlap"),
        (cut("first corner"), "first corner"),
        (cut("first channel"), "channel was left out"),
        (cut("first image"), "comes out as the first"),
        (cut("no column stride"), "(?s)channels last.*columns' stride is left out"),
        (cut("strides exchanged"), "(?s)of rows and columns are exchanged|row of the image has width"),
        (cut("strides of images and channels exchanged"), "(?s)loads outside of images_ptr.*how far apart"),
        (cut(strides=as_if_contiguous), "(?s)channels last.*as if they were contiguous"),
        (cut("no mask on load"), "(?s)loads outside of images_ptr.*power of two"),
        (cut("no mask on store"), "(?s)stores outside of output_ptr.*power of two"),
        (cut("stores by BLOCK"), "stores outside of output_ptr"),
        (cut("stores transposed"), "(?s)stored transposed"),
        (cut("stores without the image"), "stored several times and others never"),
        (cut("stores twice"), "stored more than once"),
        (cut("float16"), "three digits"),
        (cut(grid=lambda count, batch: (count, 1)), "(?s)index \\(1, 0, 0\\).*never stored"),
        (cut(grid=lambda count, batch: (count - 1, batch)), "(?s)index \\(0, 5, 0\\).*never stored"),
        (cut(block=lambda K: 8), "(?s)index \\(0, 0, 8\\).*never stored"),
        (cut(output=lambda images, size: output_of(images, size).float()), "(?s)float16.*wrong type: float32"),
        (lambda images, size: cut()(images.contiguous(), size), "(?s)channels last.*does not read images itself"),
        (image_by_image, "no kernel wrote|kernels were launched"),
        (lambda images, size: cut()(images, size).flatten(1), "has shape"),
        (by_unfold, "No kernel was launched"),
    ],
    "patch_embed": [
        (embed("across from the height"), "(?s)2 images of 3 x 6 x 4 in patches of 2 in float32 to 5 .*right for square"),
        (embed("across rounded up"), "(?s)7 x 8 in patches of 3 .*rounded down"),
        (embed("first patch lost"), "Token t is of patch t - 1"),
        (embed("first image"), "first image was taken for all"),
        (embed("column by column"), "row by row|exchanged"),
        (embed("no size"), "do not overlap"),
        (embed("first step"), "(?s)8 x 12 in patches of 4 .*Only the first step"),
        (embed("rounded down"), "(?s)4 x 4 .*does the loop over K make a turn"),
        (embed("to N"), "(?s)9 x 5 in patches of 4 .*Only the first step.*does it go on to K"),
        (embed("same step"), "(?s)8 x 12 in patches of 4 .*takes the first elements again"),
        (embed("last step"), "(?s)8 x 12 in patches of 4 .*Only the last step"),
        (embed("channel fastest"), "varies fastest"),
        (embed("no modulo"), "(?s)loads outside of images_ptr.*k // size % size"),
        (embed("no mask along K"), "(?s)loads outside of images_ptr.*k < K"),
        (embed("no mask of tokens"), "(?s)loads outside of images_ptr.*token < tokens"),
        (embed("weight read as (K, hidden)"), "read as \\(K, hidden\\)"),
        (embed("float16"), "three digits|more than float32"),
        (embed("one bias"), "bias of the first column"),
        (embed("no class token"), "Token 0 is the class token"),
        (embed("class token gets the bias"), "(?s)index \\(0, 0, 0\\).*class token gets the bias"),
        (embed("no bias"), "(?s)index \\(0, 1, 0\\).*bias was left out"),
        (embed("class token everywhere"), "added to every token|class token"),
        (embed("position before the first"), "(?s)loads outside of position_ptr: element -5.*row 1 \\+ p for patch p"),
        (embed("position of the batch's row"), "(?s)loads outside of position_ptr.*token's number in its image"),
        (embed("position of the batch's row, masked"), "(?s)index \\(1, 0, 0\\).*token's number in its image"),
        (embed("position of the patch"), "that of the token before"),
        (embed("position for patches only"), "The class token has a position too"),
        (embed("first position"), "class token's position"),
        (embed("no position"), "position was left out"),
        (embed("stores all of the tile"), "stores outside of output_ptr|stored more than once|First wrong"),
        (embed(down=lambda a, b: 1), "(?s)10 x 14 .*never stored"),
        (embed(dtype=torch.float32), "(?s)float16.*wrong type: float32"),
        (embed(order=class_and_bias_exchanged), "bias and class token are exchanged"),
        (class_token_by_torch, "no kernel wrote the tensor"),
        (without_the_class_token, "has shape"),
        (by_conv2d, "No kernel was launched"),
    ],
    "image_gradient": [
        (gradient("across from the height"), "(?s)3 x 6 x 4 .*across = width // size"),
        (gradient("masked lanes hold anything"), "(?s)7 x 8 .*right only if lanes.*hold 0.*The line: `grad = tl.load.*other="),
        (gradient("across rounded up"), "(?s)7 x 8 .*Only whole patches"),
        (gradient("column by column"), "row by row"),
        (gradient("patch by width"), "loads outside of grad_ptr"),
        (gradient("first patch"), "first patch"),
        (gradient("channel fastest"), "varies fastest"),
        (gradient("row and column exchanged"), "Row and column within the patch are exchanged"),
        (gradient("no channel"), "channel was left out"),
        (gradient("last columns covered"), "(?s)7 x 8 .*No whole patch covers the last columns|Only whole patches"),
        (gradient("last rows covered"), "(?s)7 x 8 .*loads outside of grad_ptr.*Only whole patches"),
        (gradient("all covered"), "(?s)7 x 8 .*loads outside of grad_ptr.*Only whole patches"),
        (gradient("first image"), "comes out as the first"),
        (gradient("atomic", output=zeros), "added with atomics"),
        (gradient("other is 1"), "(?s)7 x 8 .*No whole patch covers the pixels that are wrong"),
        (gradient("covered pixels only"), "(?s)7 x 8 .*never stored.*Let the kernel store that too"),
        (gradient("covered pixels only", output=zeros), "(?s)7 x 8 .*never stored.*Let the kernel store that too"),
        (gradient("float16"), "three digits"),
        (gradient("mean"), "divided by the number"),
        (gradient("no mask on store"), "stores outside of output_ptr"),
        (gradient(blocks=lambda size, block: size // block), "(?s)no programs|never stored"),
        (scattered(), "(?s)7 x 8 .*never stored.*Let the kernel store that too"),
        (scattered(output=zeros), "(?s)7 x 8 .*never stored.*Let the kernel store that too"),
        (scattered("across from the height"), "right for square images|never stored"),
        (gradient(output=lambda grad, *shape: torch.empty(shape)), "(?s)float16.*wrong type: float32"),
        (lambda *case: gradient()(*case).flatten(2), "has shape"),
        (by_fold, "No kernel was launched"),
    ],
}  # fmt: skip

RIGHT = {
    "pixel_offset": [offset, offset_by_strides],
    "patches": [cut(), cut_flat, cut_tiled, cut(block=lambda K: 1024)],
    "patch_embed": [embed(), embed_rows(), embed_rows((64, 32, 32))],
    "image_gradient": [gradient(), gradient(block=1024), gradient(blocks=lambda size, block: size // block + 1), gradient_flat],
}
