"""`sum_to_size`: the gradient of a broadcast, and the second stage of every gradient that is a sum over rows.

What is summed lies as (outer, reduced, inner). A program owns BLOCK_KEPT sums and walks their terms, BLOCK_REDUCED at a
time. Where there are few sums, their terms are shared out among several programs, whose partial sums a second launch adds
up: the order of all additions is fixed, as it would not be with atomics.
"""

import math

import torch
import triton
import triton.language as tl

from ..runtime import DEVICE, INTERPRETER, cdiv, multiprocessors, next_power_of_2, operator

# Elements of a program's tile, and the sums in it where neighbours in memory belong to different sums: enough for whole
# 128-byte lines (up to sixteen times as many, where few terms would leave the tile small), or, where there are few sums
# with few terms, few enough to occupy every multiprocessor.
TILE_ELEMENTS = 1 << 17 if INTERPRETER else 8192
WIDE, NARROW = (1 << 12, 1 << 12) if INTERPRETER else (64, 8)


@triton.jit
def sum_kernel(input_ptr, output_ptr, kept, reduced, inner, splits, BLOCK_REDUCED: tl.constexpr, BLOCK_KEPT: tl.constexpr):
    kept_blocks = tl.cdiv(kept, BLOCK_KEPT)
    split = tl.program_id(0) // kept_blocks
    index = (tl.program_id(0) % kept_blocks).to(tl.int64) * BLOCK_KEPT + tl.arange(0, BLOCK_KEPT)
    first = index // inner * reduced * inner + index % inner  # of the sum's terms, which lie `inner` apart
    total = tl.zeros((BLOCK_REDUCED, BLOCK_KEPT), tl.float32)
    for start in range(split * BLOCK_REDUCED, reduced, splits * BLOCK_REDUCED):
        term = start + tl.arange(0, BLOCK_REDUCED).to(tl.int64)
        mask = (term < reduced)[:, None] & (index < kept)[None, :]
        total += tl.load(input_ptr + first[None, :] + term[:, None] * inner, mask=mask, other=0.0).to(tl.float32)
    tl.store(output_ptr + split.to(tl.int64) * kept + index, tl.sum(total, axis=0), mask=index < kept)


def sum_middle(input: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sums over the middle dimension of a contiguous (outer, reduced, inner), added in float32: (outer, inner)."""
    outer, reduced, inner = input.shape
    kept = outer * inner
    output = torch.empty((outer, inner), dtype=dtype, device=input.device)
    if kept == 0:
        return output
    few = inner > 1 and reduced <= 2048 and kept <= 256 * WIDE  # sums, with few terms
    block_kept = max(1, TILE_ELEMENTS // next_power_of_2(max(reduced, 1)))
    if inner > 1:
        block_kept = NARROW if few else min(max(block_kept, WIDE), 16 * WIDE)
    block_kept = min(next_power_of_2(kept), block_kept)
    block_reduced = min(next_power_of_2(max(reduced, 1)), max(1, TILE_ELEMENTS // block_kept), 512)
    kept_blocks = cdiv(kept, block_kept)
    splits = 1
    if DEVICE.type == "cuda" and not few:  # for four programs a multiprocessor, each with two blocks of terms
        splits = max(1, min(cdiv(reduced, 2 * block_reduced), 4 * multiprocessors() // kept_blocks))
    target = output if splits == 1 else torch.empty((1, splits, kept), dtype=torch.float32, device=input.device)
    sum_kernel[(kept_blocks * splits,)](
        input, target, kept, reduced, inner, splits, BLOCK_REDUCED=block_reduced, BLOCK_KEPT=block_kept, num_warps=8 if few else 4
    )
    return output if splits == 1 else sum_middle(target, dtype).view(outer, inner)


def _fake(input, shape, dtype):
    return input.new_empty(shape, dtype=dtype)


@operator("sum_to_size(Tensor input, SymInt[] shape, ScalarType dtype) -> Tensor", _fake)
def sum_to_size(input: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """`input.sum_to_size(shape)`, where `shape` broadcasts to the input's: added in float32 and returned in `dtype`."""
    wanted = [1] * (input.ndim - len(shape)) + list(shape)
    groups: list[list] = []  # neighbouring dimensions that are all summed, or all kept: [summed, size]
    for size, kept in zip(input.shape, wanted):
        if groups and groups[-1][0] == (size != kept):
            groups[-1][1] *= size
        else:
            groups.append([size != kept, size])
    result, outer = input.contiguous(), 1
    for place, (summed, size) in enumerate(groups):
        later = groups[place + 1 :]
        if summed:
            last = not any(summed for summed, _ in later)
            inner = math.prod(size for _, size in later)
            result = sum_middle(result.reshape(outer, size, inner), dtype if last else torch.float32)
        else:
            outer *= size
    if not any(summed for summed, _ in groups):  # an operator returns nothing that shares memory with its input
        result = result.to(dtype, copy=True)
    return result.reshape(shape)
