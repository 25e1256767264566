"""`dropout` (Srivastava et al., JMLR 15, 2014): an element is dropped with probability p, or kept and divided by 1 - p.

Program p owns elements p * BLOCK to (p + 1) * BLOCK - 1 of a flat vector. Its random numbers come from a counter-based
generator, Philox (Salmon et al., 2011, doi 10.1145/2063384.2063405): a function of a seed and a counter, which keeps no state
between calls. One call gives four numbers, so element e takes number e % 4 of counter e // 4. What is dropped thus depends on
the seed and on an element's place, not on the block size or on the device.

No mask is stored. Dropout is linear, and the backward pass is the same kernel on the gradient, with the same seed.
"""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, cdiv, check_numbers, check_tensors, first_derivative_only, needs_gradient, operator

BLOCK = 1 << 17 if INTERPRETER else 2048
# Rounds of Philox4x32: the fewest that the paper found to pass all statistical tests; ten is its default, for a margin.
ROUNDS = tl.constexpr(7)


@triton.jit
def kept(seed, first, p, BLOCK: tl.constexpr):
    # Whether elements `first`, a multiple of 4, to first + BLOCK - 1 are kept. Triton takes a 64-bit seed as Philox's key, and
    # a 64-bit counter as the low two of its four words: from element 2^34 on, where 32 bits end, numbers do not repeat.
    counter = first // 4 + tl.arange(0, BLOCK // 4)
    a, b, c, d = tl.rand4x(seed, counter, ROUNDS)
    # The last dimension of a join is the one that varies fastest: a, b, c, d of a counter, then those of the next.
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK,)) >= p


@triton.jit
def dropout_kernel(input_ptr, output_ptr, seed_ptr, size, p, scale, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = first + tl.arange(0, BLOCK)
    mask = offsets < size
    x = tl.load(input_ptr + offsets, mask=mask).to(tl.float32)
    y = tl.where(kept(tl.load(seed_ptr), first, p, BLOCK), x * scale, 0.0)
    tl.store(output_ptr + offsets, y, mask=mask)


@operator(
    "dropout(Tensor input, Tensor seed, float p, SymInt[] strides) -> Tensor",
    lambda input, seed, p, strides: input.new_empty_strided(input.shape, strides),
)
def _dropout(input: torch.Tensor, seed: torch.Tensor, p: float, strides: list[int]) -> torch.Tensor:
    """Elements are numbered as they lie with `strides`, which are dense and are the result's: forward and backward alike."""
    size = input.numel()
    output = torch.empty(size, dtype=input.dtype, device=input.device).as_strided(input.shape, strides)
    if input.stride() != output.stride():
        input = torch.empty_like(output).copy_(input)
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    if size:
        dropout_kernel[(cdiv(size, BLOCK),)](input, output, seed, size, p, scale, BLOCK=BLOCK)
    return output


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, seed, p, strides):
        ctx.save_for_backward(seed)
        ctx.p, ctx.strides = p, strides
        return _dropout(input, seed, p, strides)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        return _dropout(grad, *ctx.saved_tensors, ctx.p, ctx.strides), None, None, None


def dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, seed: int | None = None
) -> torch.Tensor:
    """`torch.nn.functional.dropout`: every element is 0 with probability p, else divided by 1 - p.

    Any shape; the result has the input's type, and its strides where those are dense, else those of torch.empty_like. With
    p=0 or training=False it is the input itself; with p=1 it is all zeros. A dropped element is 0, also a NaN.

    seed: an int from 0 to 2^63 - 1. The same seed gives the same mask to any two tensors that lie in memory alike. By default
    one is drawn from the generator of the input's device, which torch.manual_seed sets, and stays on that device: nothing is
    waited for, and a CUDA graph draws a new one in every replay. The mask is not the one that PyTorch's function would draw.

    Raises ValueError for p outside [0, 1], a seed out of range and inplace=True, which is not supported; TypeError for a seed
    that is no int.
    """
    check_numbers("dropout", p=p)
    check_tensors("dropout", input=input)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p is {p!r}; a probability from 0 to 1 is accepted")
    if inplace:
        raise ValueError("dropout: inplace=True is not supported; the result is a new tensor")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise TypeError(f"dropout: seed is {seed!r}; an int or None is accepted")
    if seed is not None and not 0 <= seed < 1 << 63:
        raise ValueError(f"dropout: seed is {seed}; an int from 0 to 2^63 - 1 is accepted")
    if p == 0 or not training:
        return input
    if seed is None:
        key = torch.randint((1 << 63) - 1, (1,), device=input.device)
    else:
        key = torch.full((1,), seed, dtype=torch.int64, device=input.device)
    strides = torch.empty_like(input).stride()
    run = _Dropout.apply if needs_gradient(input) else _dropout
    return run(input, key, float(p), strides)
