"""`patch_embed`: a convolution whose stride is its kernel, as the matrix product it is (an implicit GEMM).

Every patch of the image is one row of a (batch * patches, channels * height * width of a patch) matrix that is never written
down: a program owns a BLOCK_M x BLOCK_N tile of the output, computes for each of its rows where in the image the patch
begins, and gathers BLOCK_K pixels of it at a time. With a class token, each image's row 0 gathers nothing and starts from
the token instead of the bias; the position embedding is added in the same pass.

Backward is two products, neither of which writes that matrix down. The gradient of the weight is grad.T @ patches, a sum over
all patches of all images for few output tiles: the patches are cut into shares, a program owns a BLOCK_N x BLOCK_K tile of one
share, gathers its pixels as forward does, and a second launch adds up the shares in a fixed order. The gradient of the image
is grad @ weight: a pixel belongs to one patch, so a program that owns BLOCK_K pixels of BLOCK_M patches stores them where they
lie in the image. Bias, class token and position embedding need sums of grad alone, read once: its sum over the images is the
position embedding's gradient, whose row 0 is the class token's and whose other rows add up to the bias's.
"""

import functools

import torch
import triton
import triton.language as tl

from ..runtime import (
    INTERPRETER,
    Config,
    Configs,
    cdiv,
    check_tensors,
    dot_precision,
    first_derivative_only,
    multiprocessors,
    needs_gradient,
    next_power_of_2,
    operator,
)
from .linear import _splits
from .sum_to_size import sum_middle, sum_to_size


@triton.jit
def patch_offset(
    image, patch, patches_across, batch_stride, row_stride, column_stride, PATCH_HEIGHT: tl.constexpr, PATCH_WIDTH: tl.constexpr
):
    """Where a patch's first pixel lies. `image` is int64."""
    row = (patch // patches_across).to(tl.int64) * PATCH_HEIGHT
    column = (patch % patches_across).to(tl.int64) * PATCH_WIDTH
    return image * batch_stride + row * row_stride + column * column_stride


@triton.jit
def pixel_offset(k, channel_stride, row_stride, column_stride, PATCH_HEIGHT: tl.constexpr, PATCH_WIDTH: tl.constexpr):
    """Where pixel k of a patch lies, from its first, in k's type; k counts (channel, row, column), as the weight has them."""
    channel = k // (PATCH_HEIGHT * PATCH_WIDTH)
    row = k // PATCH_WIDTH % PATCH_HEIGHT
    return channel * channel_stride + row * row_stride + k % PATCH_WIDTH * column_stride


@triton.jit
def patch_embed_kernel(
    input_ptr, weight_ptr, bias_ptr, class_ptr, position_ptr, output_ptr,
    M, N, K, tokens, patches_across,
    batch_stride, channel_stride, row_stride, column_stride,
    PATCH_HEIGHT: tl.constexpr, PATCH_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_CLASS: tl.constexpr, HAS_POSITION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(N, BLOCK_N)
    m = (tl.program_id(0) // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = (m % tokens).to(tl.int32)
    patch = token
    is_patch = m < M
    if HAS_CLASS:
        patch = token - 1
        is_patch = is_patch & (token > 0)
    corner = patch_offset(m // tokens, patch, patches_across, batch_stride, row_stride, column_stride, PATCH_HEIGHT, PATCH_WIDTH)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        pixel = pixel_offset(k, channel_stride, row_stride, column_stride, PATCH_HEIGHT, PATCH_WIDTH)
        a_mask = is_patch[:, None] & (k < K)[None, :]
        a = tl.load(input_ptr + corner[:, None] + pixel[None, :], mask=a_mask, other=0.0)
        b_mask = (k < K)[:, None] & (n < N)[None, :]
        b = tl.load(weight_ptr + n[None, :] * K + k[:, None], mask=b_mask, other=0.0)
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
    if HAS_BIAS:
        accumulator += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if HAS_CLASS:
        class_token = tl.load(class_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        accumulator = tl.where((token == 0)[:, None], class_token[None, :], accumulator)
    mask = (m < M)[:, None] & (n < N)[None, :]
    if HAS_POSITION:
        position = token.to(tl.int64)[:, None] * N + n[None, :]
        accumulator += tl.load(position_ptr + position, mask=mask, other=0.0).to(tl.float32)
    tl.store(output_ptr + m[:, None] * N + n[None, :], accumulator, mask=mask)


@triton.jit
def patch_embed_weight_backward_kernel(
    grad_ptr, input_ptr, sums_ptr,
    M, N, K, patches, patches_across, splits,
    batch_stride, channel_stride, row_stride, column_stride,
    PATCH_HEIGHT: tl.constexpr, PATCH_WIDTH: tl.constexpr, HAS_CLASS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # M counts patches here, and no class tokens. sums_ptr is of (splits, N, K), each over a whole number of steps along M.
    tiles_k = tl.cdiv(K, BLOCK_K)
    tiles = tl.cdiv(N, BLOCK_N) * tiles_k
    split = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    n = (tile // tiles_k).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (tile % tiles_k).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    pixel = pixel_offset(k, channel_stride, row_stride, column_stride, PATCH_HEIGHT, PATCH_WIDTH)
    share = tl.cdiv(tl.cdiv(M, BLOCK_M), splits) * BLOCK_M
    first = split * share
    accumulator = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(first, tl.minimum(first + share, M), BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        image = (m // patches).to(tl.int64)
        corner = patch_offset(
            image, m % patches, patches_across, batch_stride, row_stride, column_stride, PATCH_HEIGHT, PATCH_WIDTH
        )
        row = m.to(tl.int64)
        if HAS_CLASS:
            row = row + image + 1  # past the class tokens of the images before, and of this one
        grad_mask = (n < N)[:, None] & (m < M)[None, :]
        grad = tl.load(grad_ptr + row[None, :] * N + n[:, None], mask=grad_mask, other=0.0)  # lies transposed
        x_mask = (m < M)[:, None] & (k < K)[None, :]
        x = tl.load(input_ptr + corner[:, None] + pixel[None, :], mask=x_mask, other=0.0)
        accumulator = tl.dot(grad, x, accumulator, input_precision=PRECISION)
    sums_ptr += split.to(tl.int64) * N * K
    tl.store(sums_ptr + n[:, None] * K + k[None, :], accumulator, mask=(n < N)[:, None] & (k < K)[None, :])


@triton.jit
def patch_embed_input_backward_kernel(
    grad_ptr, weight_ptr, input_grad_ptr,
    M, N, K, patches, patches_across,
    batch_stride, channel_stride, row_stride, column_stride,
    PATCH_HEIGHT: tl.constexpr, PATCH_WIDTH: tl.constexpr, HAS_CLASS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # M counts patches here, and no class tokens. The strides are those of the gradient.
    tiles_k = tl.cdiv(K, BLOCK_K)
    m = (tl.program_id(0) // tiles_k).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = (tl.program_id(0) % tiles_k).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    image = m // patches
    row = m
    if HAS_CLASS:
        row = m + image + 1  # past the class tokens of the images before, and of this one
    accumulator = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        grad_mask = (m < M)[:, None] & (n < N)[None, :]
        grad = tl.load(grad_ptr + row[:, None] * N + n[None, :], mask=grad_mask, other=0.0)
        weight_mask = (n < N)[:, None] & (k < K)[None, :]
        weight = tl.load(weight_ptr + n.to(tl.int64)[:, None] * K + k[None, :], mask=weight_mask, other=0.0)
        accumulator = tl.dot(grad, weight, accumulator, input_precision=PRECISION)
    patch = (m % patches).to(tl.int32)
    corner = patch_offset(image, patch, patches_across, batch_stride, row_stride, column_stride, PATCH_HEIGHT, PATCH_WIDTH)
    pixel = pixel_offset(k, channel_stride, row_stride, column_stride, PATCH_HEIGHT, PATCH_WIDTH)
    tl.store(input_grad_ptr + corner[:, None] + pixel[None, :], accumulator, mask=(m < M)[:, None] & (k < K)[None, :])


def _blocks(m: int, n: int, k: int) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}


def _shared_bytes(along: str, config: Config, itemsize: int) -> int:
    """Of a program that owns a tile of two dimensions and walks along the third, `along`."""
    step = config.blocks[along]
    rows, columns = (size for name, size in config.blocks.items() if name != along)
    tiles = (rows + columns) * step * itemsize * config.num_stages
    if itemsize == 4:  # tf32x3 keeps what is left of a tile after rounding beside it
        tiles += rows * step * 4
    return max(tiles, rows * columns * 4) + 1024  # the sums may pass through shared memory to change their layout


def _configs(kernel: str, along: str, blocks: list[tuple], pinned: dict[str, int]) -> Configs:
    """From BLOCK_M, BLOCK_N, BLOCK_K, warps and stages; pinned on the H200: shape class to one of them by its place."""
    candidates = [Config(_blocks(m, n, k), num_warps=warps, num_stages=stages) for m, n, k, warps, stages in blocks]
    on_h200 = {kind: candidates[place] for kind, place in pinned.items()}
    return Configs(kernel, candidates, functools.partial(_shared_bytes, along), {"NVIDIA H200": on_h200})


CONFIGS = _configs(
    "patch_embed", "BLOCK_K",
    [
        (128, 256, 64, 8, 3), (64, 128, 64, 4, 3), (64, 64, 64, 4, 4), (128, 128, 32, 4, 3), (64, 128, 32, 4, 3),
        (32, 64, 32, 4, 2),
    ],
    {"many 2": 0, "some 2": 1, "few 2": 2},
)  # fmt: skip
INPUT_GRAD_CONFIGS = _configs(
    "patch_embed input", "BLOCK_N",
    [(128, 64, 256, 8, 3), (128, 32, 128, 4, 3), (64, 32, 128, 4, 3), (32, 32, 64, 4, 2)], {"many 2": 0, "some 2": 0},
)  # fmt: skip
WEIGHT_GRAD_CONFIGS = _configs(
    "patch_embed weight", "BLOCK_M",
    [(64, 256, 128, 8, 3), (64, 128, 128, 4, 3), (32, 128, 128, 4, 3), (32, 64, 64, 4, 3), (16, 64, 64, 4, 2)],
    {"many 2": 0, "some 2": 0},
)  # fmt: skip


def _shape_class(patches: int, tiles: int, dtype: torch.dtype) -> str:
    """How many tiles of 128 x 256 there are for a multiprocessor; and how float32 is multiplied."""
    share = tiles * cdiv(patches, 128) / multiprocessors()
    kind = "many" if share >= 4 else "some" if share >= 0.25 else "few"
    precision = dot_precision(dtype)
    return kind if precision == "ieee" else f"{kind} {precision}"


def _interpreter_config(M: int, N: int, K: int) -> Config:
    """Tiles as large as the matrices, within what NumPy handles well: the interpreter's cost is in the number of steps."""
    return Config(_blocks(*(min(max(next_power_of_2(size), 16), most) for size, most in ((M, 256), (N, 1024), (K, 256)))))


def _patches(height: int, width: int, patch: list[int]) -> tuple[int, int]:
    """How many patches an image has down and across."""
    return height // patch[0], width // patch[1]


REACH = 2**31  # elements: forward counts them from a patch's first pixel in int32, which saves a tenth of its instructions


def _fake(x, weight, bias, class_token, position_embedding, dtype):
    down, across = _patches(*x.shape[2:], weight.shape[2:])
    return x.new_empty((x.shape[0], down * across + int(class_token is not None), weight.shape[0]), dtype=dtype)


@operator(
    "patch_embed(Tensor input, Tensor weight, Tensor? bias, Tensor? class_token, Tensor? position_embedding, ScalarType dtype)"
    " -> Tensor",
    _fake,
)
def _patch_embed(x, weight, bias, class_token, position_embedding, dtype):
    batch, channels, height, width = x.shape
    hidden, _, patch_height, patch_width = weight.shape
    down, across = _patches(height, width, [patch_height, patch_width])
    tokens = down * across + int(class_token is not None)
    output = torch.empty((batch, tokens, hidden), dtype=dtype, device=x.device)
    if output.numel() == 0:
        return output
    weight, bias, class_token, position_embedding = (
        None if tensor is None else tensor.contiguous() for tensor in (weight, bias, class_token, position_embedding)
    )
    within = zip((channels, patch_height, patch_width), x.stride()[1:])
    if sum((size - 1) * stride for size, stride in within) >= REACH:
        x = x.contiguous(memory_format=torch.channels_last)  # channels side by side, and rows no further apart than they must be
    M, N, K = batch * tokens, hidden, channels * patch_height * patch_width

    def launch(config: Config) -> None:
        patch_embed_kernel[(cdiv(M, config.blocks["BLOCK_M"]) * cdiv(N, config.blocks["BLOCK_N"]),)](
            x, weight, bias, class_token, position_embedding, output,
            M, N, K, tokens, across, *x.stride(),
            PATCH_HEIGHT=patch_height, PATCH_WIDTH=patch_width, HAS_BIAS=bias is not None, HAS_CLASS=class_token is not None,
            HAS_POSITION=position_embedding is not None, PRECISION=dot_precision(x.dtype), **config.options(),
        )  # fmt: skip

    if INTERPRETER:
        launch(_interpreter_config(M, N, K))
    else:
        launch(CONFIGS.choose(_shape_class(M, cdiv(N, 256), x.dtype), x.dtype, launch))
    return output


@operator(
    "patch_embed_weight_backward(Tensor grad, Tensor input, SymInt[] patch) -> Tensor",
    lambda grad, x, patch: x.new_empty((grad.shape[2], x.shape[1], *patch)),
)
def _patch_embed_weight_backward(grad, x, patch):
    """The gradient of the weight, for grad (batch, tokens, hidden) and patches of (height, width)."""
    batch, channels, height, width = x.shape
    down, across = _patches(height, width, patch)
    patches, tokens, N = down * across, *grad.shape[1:]
    M, K = batch * patches, channels * patch[0] * patch[1]
    output = torch.empty((N, channels, *patch), dtype=x.dtype, device=x.device)
    if output.numel() == 0:
        return output
    grad = grad.contiguous()

    def launch(config: Config) -> torch.Tensor:
        tiles = cdiv(N, config.blocks["BLOCK_N"]) * cdiv(K, config.blocks["BLOCK_K"])
        splits = _splits(tiles, M, config.blocks["BLOCK_M"])
        sums = output if splits == 1 else torch.empty((1, splits, N * K), dtype=torch.float32, device=x.device)
        patch_embed_weight_backward_kernel[(tiles * splits,)](
            grad, x, sums,
            M, N, K, patches, across, splits, *x.stride(),
            PATCH_HEIGHT=patch[0], PATCH_WIDTH=patch[1], HAS_CLASS=tokens > patches, PRECISION=dot_precision(x.dtype),
            **config.options(),
        )  # fmt: skip
        return output if splits == 1 else sum_middle(sums, x.dtype).view(output.shape)

    if INTERPRETER:
        return launch(_interpreter_config(M, N, K))
    return launch(WEIGHT_GRAD_CONFIGS.choose(_shape_class(M, cdiv(K, 256), x.dtype), x.dtype, launch))


@operator(
    "patch_embed_input_backward(Tensor grad, Tensor weight, SymInt[] shape) -> Tensor",
    lambda grad, weight, shape: weight.new_empty(shape),
)
def _patch_embed_input_backward(grad, weight, shape):
    """The gradient of images of `shape`, contiguous, for grad (batch, tokens, hidden)."""
    batch, channels, height, width = shape
    N, _, *patch = weight.shape
    down, across = _patches(height, width, patch)
    patches, tokens = down * across, grad.shape[1]
    M, K = batch * patches, channels * patch[0] * patch[1]
    output = torch.empty(shape, dtype=weight.dtype, device=weight.device)
    if output.numel() == 0:
        return output
    if down * patch[0] < height or across * patch[1] < width:  # pixels of no patch
        output.zero_()
    grad, weight = grad.contiguous(), weight.contiguous()

    def launch(config: Config) -> None:
        programs = cdiv(M, config.blocks["BLOCK_M"]) * cdiv(K, config.blocks["BLOCK_K"])
        patch_embed_input_backward_kernel[(programs,)](
            grad, weight, output,
            M, N, K, patches, across, *output.stride(),
            PATCH_HEIGHT=patch[0], PATCH_WIDTH=patch[1], HAS_CLASS=tokens > patches, PRECISION=dot_precision(weight.dtype),
            **config.options(),
        )  # fmt: skip

    if INTERPRETER:
        launch(_interpreter_config(M, N, K))
    else:
        launch(INPUT_GRAD_CONFIGS.choose(_shape_class(M, cdiv(K, 256), weight.dtype), weight.dtype, launch))
    return output


class _PatchEmbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, class_token, position_embedding, dtype):
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_input else None)
        ctx.dtype, ctx.image_shape, ctx.patch = x.dtype, x.shape, weight.shape[2:]
        added = bias, class_token, position_embedding
        ctx.shapes, ctx.dtypes = zip(*((None, None) if tensor is None else (tensor.shape, tensor.dtype) for tensor in added))
        return _patch_embed(x, weight, bias, class_token, position_embedding, dtype)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, needs_class, needs_position, _ = ctx.needs_input_grad
        grad = grad.contiguous()  # once, for whatever reads it
        bias_grad = class_grad = position_grad = None
        if needs_bias or needs_class or needs_position:
            sums = sum_to_size(grad, grad.shape[1:], torch.float32)  # over the images: (tokens, hidden)
            first = 0 if ctx.shapes[1] is None else 1
            if needs_bias:
                bias_grad = sum_to_size(sums[first:], sums.shape[1:], ctx.dtypes[0]).view(ctx.shapes[0])
            if needs_class:  # a copy, because a gradient may not share memory with another
                class_grad = sums[0].to(ctx.dtypes[1], copy=True).view(ctx.shapes[1])
            if needs_position:
                position_grad = sums.to(ctx.dtypes[2]).view(ctx.shapes[2])
        grad = grad.to(ctx.dtype)  # under autocast a class token or positions of a wider type give the result that type
        input_grad = _patch_embed_input_backward(grad, weight, ctx.image_shape) if needs_input else None
        weight_grad = _patch_embed_weight_backward(grad, x, ctx.patch) if needs_weight else None
        return input_grad, weight_grad, bias_grad, class_grad, position_grad, None


def patch_embed(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    class_token: torch.Tensor | None = None,
    position_embedding: torch.Tensor | None = None,
) -> torch.Tensor:
    """`torch.nn.functional.conv2d(input, weight, bias, stride=patch)` as tokens, with what a ViT adds to them.

    input: (batch, channels, height, width), any strides; weight: (hidden, channels, patch_height, patch_width); bias and
    class_token: hidden elements; position_embedding: tokens * hidden elements. Pixels past the last whole patch are
    ignored, as by the convolution. Returns (batch, tokens, hidden); tokens is the number of patches, row by row, and one
    more in front for a class token. Sums in float32; a float32 product follows torch.get_float32_matmul_precision(). One
    type for all; under autocast input, weight and bias are cast to autocast's type, and the result has that of the sum with
    the class token and the position embedding.
    """
    optional = {"bias": bias, "class_token": class_token, "position_embedding": position_embedding}
    check_tensors("patch_embed", optional, input=input, weight=weight)
    if input.ndim != 4 or weight.ndim != 4 or input.shape[1] != weight.shape[1]:
        raise ValueError(
            f"patch_embed: input is {tuple(input.shape)} and weight {tuple(weight.shape)}; "
            "(batch, channels, height, width) and (hidden, channels, patch_height, patch_width) are accepted"
        )
    height, width = input.shape[2:]
    hidden, _, patch_height, patch_width = weight.shape
    if min(patch_height, patch_width) == 0:
        raise ValueError(f"patch_embed: weight is {tuple(weight.shape)}; patches of at least 1 x 1 are accepted")
    if min(height // patch_height, width // patch_width) == 0:
        raise ValueError(f"patch_embed: input is {tuple(input.shape)}, smaller than one {patch_height} x {patch_width} patch")
    tokens = (height // patch_height) * (width // patch_width) + int(class_token is not None)
    for name, tensor, size in (
        ("bias", bias, hidden), ("class_token", class_token, hidden), ("position_embedding", position_embedding, tokens * hidden),
    ):  # fmt: skip
        if tensor is not None and tensor.numel() != size:
            raise ValueError(f"patch_embed: {name} is {tuple(tensor.shape)}; {size} elements are accepted")
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in (input, weight, bias))
        check_tensors("patch_embed", {"bias": bias}, input=input, weight=weight)
        for tensor in (class_token, position_embedding):
            dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    else:
        dtype = input.dtype
        for name, tensor in {"weight": weight, **optional}.items():
            if tensor is not None and tensor.dtype != dtype:
                raise TypeError(f"patch_embed: {name} is {tensor.dtype} and input is {dtype}; one type for all is accepted")
    arguments = (input, weight, bias, class_token, position_embedding)
    return (_PatchEmbed.apply if needs_gradient(*arguments) else _patch_embed)(*arguments, dtype)
