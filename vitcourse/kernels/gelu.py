"""`gelu`: the Gaussian error linear unit (Hendrycks and Gimpel, arXiv 1606.08415), exact and in its tanh form.

Program p owns elements p * BLOCK to (p + 1) * BLOCK - 1 of a flat vector. The three device functions at the top are what
`linear` calls in its epilogue.
"""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, check_tensors

BLOCK = 1 << 17 if INTERPRETER else 1024


@triton.jit
def gelu_erf(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    # 0.5 * (1 + tanh(u)) is sigmoid(2u), which needs one exponential and does not overflow.
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * u)


@triton.jit
def gelu_erf_fast(x):
    # erf(x / sqrt 2) as tanh of an odd polynomial (minimax fit over [0, 8]: gelu is off by at most 2.6e-5 there), on the
    # hardware's tanh (PTX ISA, tanh.approx: relative error up to 2^-11). Good for bfloat16, whose eps is 2^-8.
    # The square is clamped because the polynomial turns down past |x| = 8, where erf has long been 1.
    square = tl.minimum(x * x, 64.0)
    u = x * (0.7975052754096146 + square * (0.037008019970025854 - 0.0003519023914012251 * square))
    tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1)
    half = 0.5 * x
    return half * tanh + half


@triton.jit
def gelu_kernel(input_ptr, output_ptr, size, TANH: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    x = tl.load(input_ptr + offsets, mask=mask).to(tl.float32)
    if TANH:
        y = gelu_tanh(x)
    else:
        y = gelu_erf(x)
    tl.store(output_ptr + offsets, y, mask=mask)


def gelu(input: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """`torch.nn.functional.gelu`: x * Phi(x) for every element; `approximate="tanh"` for the tanh form.

    Any shape; the result has the input's strides where those are dense, else it is contiguous.
    """
    check_tensors("gelu", input=input)
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate is {approximate!r}; "none" and "tanh" are accepted')
    output = torch.empty_like(input)
    if output.stride() != input.stride():  # gaps or overlaps: not a flat vector as it lies
        input = input.contiguous()
        output = torch.empty_like(input)
    size = input.numel()
    if size:
        gelu_kernel[(triton.cdiv(size, BLOCK),)](input, output, size, TANH=approximate == "tanh", BLOCK=BLOCK)
    return output
