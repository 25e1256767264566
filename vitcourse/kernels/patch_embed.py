"""`patch_embed`: a convolution whose stride is its kernel, as the matrix product it is (an implicit GEMM).

Every patch of the image is one row of a (batch * patches, channels * height * width of a patch) matrix that is never written
down: a program owns a BLOCK_M x BLOCK_N tile of the output, computes for each of its rows where in the image the patch
begins, and gathers BLOCK_K pixels of it at a time. With a class token, each image's row 0 gathers nothing and starts from
the token instead of the bias; the position embedding is added in the same pass.
"""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, Config, check_forward_only, dot_precision


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
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    token = (m % tokens).to(tl.int32)
    patch = token
    is_patch = m < M
    if HAS_CLASS:
        patch = token - 1
        is_patch = is_patch & (token > 0)
    corner = (
        m // tokens * batch_stride
        + patch // patches_across * PATCH_HEIGHT * row_stride
        + patch % patches_across * PATCH_WIDTH * column_stride
    )
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)  # (channel, row, column) within the patch, as the weight has them
        channel = k // (PATCH_HEIGHT * PATCH_WIDTH)
        pixel = channel * channel_stride + k // PATCH_WIDTH % PATCH_HEIGHT * row_stride + k % PATCH_WIDTH * column_stride
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
        accumulator += tl.load(position_ptr + token[:, None] * N + n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(output_ptr + m[:, None] * N + n[None, :], accumulator, mask=mask)


CONFIG = Config({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, num_warps=4, num_stages=3)


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
    more in front for a class token.
    """
    optional = {"bias": bias, "class_token": class_token, "position_embedding": position_embedding}
    check_forward_only("patch_embed", optional, input=input, weight=weight)
    if input.ndim != 4 or weight.ndim != 4 or input.shape[1] != weight.shape[1]:
        raise ValueError(
            f"patch_embed: input is {tuple(input.shape)} and weight {tuple(weight.shape)}; "
            "(batch, channels, height, width) and (hidden, channels, patch_height, patch_width) are accepted"
        )
    batch, channels, height, width = input.shape
    hidden, _, patch_height, patch_width = weight.shape
    if min(patch_height, patch_width) == 0:
        raise ValueError(f"patch_embed: weight is {tuple(weight.shape)}; patches of at least 1 x 1 are accepted")
    if min(height // patch_height, width // patch_width) == 0:
        raise ValueError(f"patch_embed: input is {tuple(input.shape)}, smaller than one {patch_height} x {patch_width} patch")
    patches_across = width // patch_width
    tokens = height // patch_height * patches_across + (class_token is not None)
    for name, tensor, size in (
        ("bias", bias, hidden), ("class_token", class_token, hidden), ("position_embedding", position_embedding, tokens * hidden),
    ):  # fmt: skip
        if tensor is not None and tensor.numel() != size:
            raise ValueError(f"patch_embed: {name} is {tuple(tensor.shape)}; {size} elements are accepted")
    output = torch.empty((batch, tokens, hidden), dtype=input.dtype, device=input.device)
    if output.numel() == 0:
        return output
    weight, bias, class_token, position_embedding = (
        None if tensor is None else tensor.contiguous() for tensor in (weight, bias, class_token, position_embedding)
    )
    M, N, K = batch * tokens, hidden, channels * patch_height * patch_width
    config = CONFIG
    if INTERPRETER:
        sizes = {"BLOCK_M": (M, 256), "BLOCK_N": (N, 1024), "BLOCK_K": (K, 256)}
        config = Config({name: min(max(triton.next_power_of_2(size), 16), most) for name, (size, most) in sizes.items()})
    patch_embed_kernel[(triton.cdiv(M, config.blocks["BLOCK_M"]) * triton.cdiv(N, config.blocks["BLOCK_N"]),)](
        input, weight, bias, class_token, position_embedding, output,
        M, N, K, tokens, patches_across, *input.stride(),
        PATCH_HEIGHT=patch_height, PATCH_WIDTH=patch_width, HAS_BIAS=bias is not None, HAS_CLASS=class_token is not None,
        HAS_POSITION=position_embedding is not None, PRECISION=dot_precision(input.dtype), **config.options(),
    )  # fmt: skip
    return output
