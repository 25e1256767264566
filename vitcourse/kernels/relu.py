"""`relu`: max(x, 0) for every element. Program p owns elements p * BLOCK to (p + 1) * BLOCK - 1 of a flat vector."""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, check_tensors

BLOCK = 1 << 17 if INTERPRETER else 1024


@triton.jit
def relu_kernel(input_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    x = tl.load(input_ptr + offsets, mask=mask)
    # Not tl.maximum, which would turn a NaN into 0 and hide it: PyTorch passes it on.
    tl.store(output_ptr + offsets, tl.where(x < 0, 0.0, x), mask=mask)


def relu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """`torch.nn.functional.relu`. Any shape; strides as for `gelu`. `inplace=True` is not supported."""
    check_tensors("relu", input=input)
    if inplace:
        raise ValueError("relu: inplace=True is not supported")
    output = torch.empty_like(input)
    if output.stride() != input.stride():
        input = input.contiguous()
        output = torch.empty_like(input)
    size = input.numel()
    if size:
        relu_kernel[(triton.cdiv(size, BLOCK),)](input, output, size, BLOCK=BLOCK)
    return output
