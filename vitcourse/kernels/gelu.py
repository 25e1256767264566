"""`gelu`: the Gaussian error linear unit (Hendrycks and Gimpel, arXiv 1606.08415), exact and in its tanh form.

Program p owns elements p * BLOCK to (p + 1) * BLOCK - 1 of a flat vector, forward and backward. The backward pass keeps the
input: gelu'(x) = Phi(x) + x * phi(x), with the normal distribution's function Phi and density phi. The device functions at
the top are also what `linear` calls in its epilogue.
"""

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, cdiv, check_tensors, first_derivative_only, needs_gradient, operator

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
    # hardware's tanh (PTX ISA, tanh.approx: relative error up to 2^-11). Good for bfloat16, whose rounding is up to 2^-8.
    # The square is clamped because the polynomial turns down past |x| = 8, where erf has long been 1.
    square = tl.minimum(x * x, 64.0)
    u = x * (0.7975052754096146 + square * (0.037008019970025854 - 0.0003519023914012251 * square))
    tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1)
    half = 0.5 * x
    return half * tanh + half


@triton.jit
def phi_fast(x):
    # Phi(x) as the sigmoid of an odd polynomial, two terms longer than the tanh form's: minimax fit of log(Phi / (1 - Phi))
    # over [-5, 5], by which Phi is off by at most 0.13 % of itself, a third of bfloat16's rounding. It grows for all x.
    square = x * x
    return tl.sigmoid(x * (1.59260734 + square * (0.075828061 + square * (-0.000986735895 + square * 9.03314418e-06))))


@triton.jit
def gelu_kernel(input_ptr, output_ptr, size, FORM: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    x = tl.load(input_ptr + offsets, mask=mask).to(tl.float32)
    if FORM == "tanh":
        y = gelu_tanh(x)
    elif FORM == "fast":
        y = x * phi_fast(x)
    else:
        y = gelu_erf(x)
    tl.store(output_ptr + offsets, y, mask=mask)


@triton.jit
def gelu_backward_kernel(grad_ptr, input_ptr, input_grad_ptr, size, FORM: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    grad = tl.load(grad_ptr + offsets, mask=mask).to(tl.float32)
    x = tl.load(input_ptr + offsets, mask=mask).to(tl.float32)
    if FORM == "tanh":
        square = x * x
        z = 1.5957691216057308 * x * (1.0 + 0.044715 * square)
        # sigmoid(-z) is 1 - sigmoid(z) without the cancellation.
        slope = tl.sigmoid(z) * (1.0 + x * tl.sigmoid(-z) * 1.5957691216057308 * (1.0 + 0.134145 * square))
    else:
        if FORM == "fast":
            phi = phi_fast(x)
        else:
            phi = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope = phi + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    tl.store(input_grad_ptr + offsets, grad * slope, mask=mask)


def _form(approximate: str, dtype: torch.dtype) -> str:
    return "tanh" if approximate == "tanh" else "fast" if dtype == torch.bfloat16 else "erf"


@operator("gelu(Tensor input, str approximate) -> Tensor", lambda input, approximate: torch.empty_like(input))
def _gelu(input: torch.Tensor, approximate: str) -> torch.Tensor:
    output = torch.empty_like(input)
    if output.stride() != input.stride():  # gaps or overlaps: not a flat vector as it lies
        input = torch.empty_like(input).copy_(input)
    size = input.numel()
    if size:
        gelu_kernel[(cdiv(size, BLOCK),)](input, output, size, FORM=_form(approximate, input.dtype), BLOCK=BLOCK)
    return output


@operator(
    "gelu_backward(Tensor grad, Tensor input, str approximate) -> Tensor",
    lambda grad, input, approximate: torch.empty_like(input),
)
def _gelu_backward(grad: torch.Tensor, input: torch.Tensor, approximate: str) -> torch.Tensor:
    input_grad = torch.empty_like(input)
    if input_grad.stride() != input.stride():
        input = torch.empty_like(input).copy_(input)
    if grad.stride() != input.stride():
        grad = torch.empty_like(input).copy_(grad)
    size = input.numel()
    if size:
        gelu_backward_kernel[(cdiv(size, BLOCK),)](
            grad, input, input_grad, size, FORM=_form(approximate, input.dtype), BLOCK=BLOCK
        )
    return input_grad


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, approximate):
        ctx.save_for_backward(input)
        ctx.approximate = approximate
        return _gelu(input, approximate)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        return _gelu_backward(grad, *ctx.saved_tensors, ctx.approximate), None


def gelu(input: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """`torch.nn.functional.gelu`: x * Phi(x) for every element; `approximate="tanh"` for the tanh form.

    Any shape; the result has the input's strides where those are dense, else those of torch.empty_like. In bfloat16 Phi is
    the approximation of `phi_fast`, whose error is below a rounding of the result from x = -5 on.
    """
    check_tensors("gelu", input=input)
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate is {approximate!r}; "none" and "tanh" are accepted')
    return _GELU.apply(input, approximate) if needs_gradient(input) else _gelu(input, approximate)
