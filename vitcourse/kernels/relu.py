"""`relu`: max(x, 0) for every element. Program p owns elements p * BLOCK to (p + 1) * BLOCK - 1 of a flat vector.

The gradient passes where the result is above 0, so the result is what the backward pass keeps.
"""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, cdiv, check_tensors, first_derivative_only, needs_gradient, operator

BLOCK = 1 << 17 if INTERPRETER else 1024


@triton.jit
def relu_kernel(input_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    x = tl.load(input_ptr + offsets, mask=mask)
    # Not tl.maximum, which would turn a NaN into 0 and hide it: PyTorch passes it on.
    tl.store(output_ptr + offsets, tl.where(x < 0, 0.0, x), mask=mask)


@triton.jit
def relu_backward_kernel(grad_ptr, output_ptr, input_grad_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    grad = tl.load(grad_ptr + offsets, mask=mask)
    y = tl.load(output_ptr + offsets, mask=mask)
    tl.store(input_grad_ptr + offsets, tl.where(y <= 0, 0.0, grad), mask=mask)


@operator("relu(Tensor input) -> Tensor", torch.empty_like)
def _relu(input: torch.Tensor) -> torch.Tensor:
    output = torch.empty_like(input)
    if output.stride() != input.stride():  # gaps or overlaps: not a flat vector as it lies
        input = torch.empty_like(input).copy_(input)
    size = input.numel()
    if size:
        relu_kernel[(cdiv(size, BLOCK),)](input, output, size, BLOCK=BLOCK)
    return output


@operator("relu_backward(Tensor grad, Tensor output) -> Tensor", lambda grad, output: torch.empty_like(output))
def _relu_backward(grad: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    input_grad = torch.empty_like(output)
    if grad.stride() != output.stride():
        grad = torch.empty_like(output).copy_(grad)
    size = output.numel()
    if size:
        relu_backward_kernel[(cdiv(size, BLOCK),)](grad, output, input_grad, size, BLOCK=BLOCK)
    return input_grad


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        output = _relu(input)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        return _relu_backward(grad, *ctx.saved_tensors)


def relu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """`torch.nn.functional.relu`. Any shape; strides as for `gelu`. `inplace=True` is not supported."""
    check_tensors("relu", input=input)
    if inplace:
        raise ValueError("relu: inplace=True is not supported")
    return _ReLU.apply(input) if needs_gradient(input) else _relu(input)
