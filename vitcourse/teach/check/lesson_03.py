"""The checks of lesson 03."""

import math
from collections.abc import Callable

import torch

from .judge import Attempt, Case, Exercise, Verdict, between, draw, judge, type_name
from .lesson_01 import stored_once
from .lesson_02 import (
    column_clue,
    illegal_vector,
    nothing_else,
    one_launch,
    read_by_the_kernel,
    read_once,
    tiles_stored_once,
)

gelu = torch.nn.functional.gelu

# A GPU's exp and division are off by a rounding or two more than PyTorch's; no mistake is as small.
_SLACK = 1e-6


def activations(shape: tuple[int, ...], dtype: torch.dtype, large: bool = False) -> torch.Tensor:
    """Values from -3 to 6, the first two near 1.3 and -1.3, where no two of the mistakes agree; or large ones of either sign.

    None lies so far below zero that the result is 0 whatever goes wrong.
    """
    x = torch.rand(shape, dtype=torch.float64) * 9 - 3
    flat = x.view(-1)
    if large:
        flat[0::2], flat[1::2] = 100 + 30 * flat[0::2].abs(), -100 - 30 * flat[1::2].abs()
    else:
        # A quarter above a number of float16, so that rounding to it shows, and shows as nothing else does.
        flat[:2] = torch.tensor([(round(between(1.25, 1.4) * 1024) + 0.25) / 1024 * sign for sign in (1, -1)])[: flat.numel()]
    return x.to(dtype)


def _cases(build: Callable[..., dict], shapes: list[tuple[int, ...]]) -> Callable[[tuple[torch.dtype, ...]], list[Case]]:
    """The cases of an exercise on activations: these shapes in float32, some in the other types, and large values in all."""

    def label(shape):
        return f"size {shape[0]}" if len(shape) == 1 else f"shape {shape}"

    def cases(dtypes: tuple[torch.dtype, ...]) -> list[Case]:
        found = [(shape, torch.float32, False) for shape in shapes]
        middle = shapes[len(shapes) // 2]
        found += [(shape, dtype, False) for dtype in dtypes if dtype != torch.float32 for shape in (shapes[0], middle)]
        found += [(middle, dtype, True) for dtype in dtypes]
        return [
            Case(f"{label(shape)} in {type_name(dtype)}{', large values' * large}", build(shape, dtype, large), _SLACK)
            for shape, dtype, large in found
        ]

    return cases


def _large_case(build: Callable[..., dict]) -> Callable[[], Case]:
    shape = (5003, 1001)
    return lambda: Case(f"shape {shape} in float32", build(shape, torch.float32, False), _SLACK)


def _overflow(hint: str) -> Callable[[Attempt], str]:
    """The clue of a result that is NaN or infinite where x is large, and only there."""

    def clue(attempt: Attempt) -> str:
        bad = ~attempt.result.isfinite()
        return hint if bad.any() and bool((attempt.arguments["x"][bad].abs() > 50).all()) else ""

    return clue


_SHAPES = [(1,), (2,), (1000,), (1025,), (3, 5), (33, 70), (1, 1500), (20_001,), (0,), (0, 5)]
_TRIED = (
    "vectors of 0 to 20001 elements and matrices, float32 and float16, values from -3 to 6 and large ones of either sign; "
    "no access outside of a tensor, one launch, everything read once and stored once, inputs unchanged"
)
_IN_THE_KERNEL = "PyTorch does a part of it: hand the kernel x as it is, and compute all of it there."
_BESIDE = "Something beside the inputs is read: what is computed on the way stays in registers, and needs no memory."


_ROUNDED = "Only about three digits are right: something is rounded to float16 on the way."


def _rounding(reference: Callable, rounded: list[bool]) -> Callable:
    return lambda *tensors: reference(*(x.half().double() if through else x for x, through in zip(tensors, rounded)))


def _elementwise(reference: Callable, build: Callable[..., dict], mistakes: list, overflow: str) -> Exercise:
    names = list(build((1,), torch.float32, False))
    # Each argument in turn, and all of them, through float16.
    for chosen in (*((name,) for name in names), names):
        mistakes.append((_ROUNDED, _rounding(reference, [name in chosen for name in names])))
    return Exercise(
        reference,
        _cases(build, _SHAPES),
        _large_case(build),
        mistakes,
        _TRIED,
        [
            one_launch("One launch does it: load, compute all of it in registers, store."),
            stored_once,
            *(read_by_the_kernel(name, _IN_THE_KERNEL.replace(" x ", f" {name} ")) for name in names),
            *(read_once(name) for name in names),
            nothing_else(_BESIDE),
        ],
        clues=[_overflow(overflow)],
    )


def silu(function: Callable) -> Verdict:
    """Lesson 03: `function(x)` returns x * sigmoid(x) for a contiguous tensor of any shape."""

    def build(shape, dtype, large):
        return {"x": activations(shape, dtype, large)}

    mistakes = [
        ("The result is x, or relu(x): multiply x by its sigmoid.", lambda x: x.relu()),
        ("The result is x: multiply it by its sigmoid.", lambda x: x),
        ("The result is sigmoid(x): multiply it by x.", lambda x: x.sigmoid()),
        ("The sign in the exponent is wrong: sigmoid(x) is 1 / (1 + exp(-x)), with a minus.", lambda x: x * (-x).sigmoid()),
        ("The result has the wrong sign: it is -x * sigmoid(x).", lambda x: -x * x.sigmoid()),
        ("The result is x * (1 + exp(-x)): divide by that.", lambda x: x * (1 + (-x).exp())),
        ("It says 1 - exp(-x): sigmoid(x) is 1 / (1 + exp(-x)).", lambda x: x / (1 - (-x).exp())),
        ("The 1 is missing: sigmoid(x) is 1 / (1 + exp(-x)), not 1 / exp(-x).", lambda x: x * x.exp()),
        ("The result is x + sigmoid(x): multiply the two.", lambda x: x + x.sigmoid()),
        ("The result is x * tanh(x): SiLU has the sigmoid there.", lambda x: x * x.tanh()),
        ("The result is tanh(x).", lambda x: x.tanh()),
        (
            "The result is x * sigmoid(1.702 * x), which approximates GELU: SiLU has no factor.",
            lambda x: x * (1.702 * x).sigmoid(),
        ),
        ("The result is GELU: SiLU has the sigmoid in place of the normal distribution's function.", gelu),
        ("x is squared: it is x * sigmoid(x), with one x in front.", lambda x: x * x * x.sigmoid()),
        ("Zeros were stored: load x, and store x * sigmoid(x).", lambda x: 0 * x),
    ]
    overflow = (
        "exp(x) is infinite in float32 from about x = 89 on, and infinity / infinity is NaN. Write the sigmoid with exp(-x), "
        "which only goes to 0 there: tl.sigmoid(x), or 1 / (1 + tl.exp(-x))."
    )
    return judge(function, _elementwise(lambda x: x * torch.sigmoid(x), build, mistakes, overflow))


_ROOT = math.sqrt(2 / math.pi)


def _tanh_form(x, half=0.5, scale=_ROOT, cubic=0.044715, power=3, one=1.0):
    return half * x * (one + torch.tanh(scale * (x + cubic * x**power)))


def gelu_tanh(function: Callable) -> Verdict:
    """Lesson 03: `function(x)` returns gelu(x, approximate="tanh") for a contiguous tensor of any shape."""

    def build(shape, dtype, large):
        return {"x": activations(shape, dtype, large)}

    def changed(**options):
        return lambda x: _tanh_form(x, **options)

    right = "the formula is 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))"

    def far(formula):
        """Of large values only, where the formulas below agree with each other."""
        return lambda x: formula(x) if not x.numel() or float(x.abs().min()) > 50 else x * torch.nan

    ends = "for large x the result is x, because tanh is 1 there, and for large negative x it is 0, because tanh is -1"
    mistakes = [
        (f"The result is x for large x of either sign: {ends}.", far(lambda x: x)),
        (f"The result is 0 for large x of either sign: {ends}.", far(lambda x: 0 * x)),
        (f"The result is |x| for large x: {ends}.", far(lambda x: x.abs())),
        (f"The result is x / 2 for large x, as if tanh were 0: {ends}.", far(lambda x: x / 2)),
        ("0.5 is missing: the result is twice as large as it should be.", changed(half=1.0)),
        ("The constant before the cube is 0.044715, not 0.44715.", changed(cubic=0.44715)),
        ("The constant before the cube is 0.044715, not 0.0044715.", changed(cubic=0.0044715)),
        ("The root is of 2 / pi, 0.79788, not of pi / 2.", changed(scale=math.sqrt(math.pi / 2))),
        ("The root is missing: the argument of tanh begins with sqrt(2 / pi), not with 2 / pi.", changed(scale=2 / math.pi)),
        ("The factor sqrt(2 / pi) in the argument of tanh is missing.", changed(scale=1.0)),
        ("The factor is sqrt(2 / pi), 0.79788, not 1 / sqrt(2), which goes with erf.", changed(scale=math.sqrt(0.5))),
        ("x is squared and should be cubed: 0.044715 * x * x * x.", changed(power=2)),
        ("The cube is missing: x + 0.044715 * x * x * x.", changed(cubic=0.0)),
        ("It says x + 0.044715 * x: cube the second x, x + 0.044715 * x * x * x.", changed(power=1)),
        ("It says x - 0.044715 * x * x * x: add the cube.", changed(cubic=-0.044715)),
        ("The 1 is missing: 1 + tanh(...).", changed(one=0.0)),
        ("It says 1 - tanh(...): add tanh.", lambda x: x - _tanh_form(x)),
        ("The factor x in front is missing: 0.5 * x * (1 + tanh(...)).", lambda x: _tanh_form(x) / x),
        (
            "tanh(u) has 2 * u in its exponentials: it is (e^2u - 1) / (e^2u + 1), or 2 * sigmoid(2 * u) - 1.",
            lambda x: x * torch.sigmoid(_ROOT * (x + 0.044715 * x**3)),
        ),
        (
            "That is the exact GELU, with erf. The one with tanh is close to it and differs from it by up to 5e-4: "
            + right
            + ".",
            gelu,
        ),
        ("That is x * sigmoid(1.702 * x), a coarser approximation: " + right + ".", lambda x: x * (1.702 * x).sigmoid()),
        ("That is SiLU, x * sigmoid(x): " + right + ".", lambda x: x * x.sigmoid()),
        ("The result is x, or relu(x): " + right + ".", lambda x: x.relu()),
        ("The result has the wrong sign.", lambda x: -_tanh_form(x)),
        ("Zeros were stored: " + right + ".", lambda x: 0 * x),
    ]
    overflow = (
        "An exponential is infinite where |x| is large, and infinity / infinity is NaN. Write tanh(u) with one that cannot "
        "spoil the result: 2 * tl.sigmoid(2 * u) - 1. Try large values of both signs."
    )
    return judge(function, _elementwise(lambda x: gelu(x, approximate="tanh"), build, mistakes, overflow))


def bias_gelu(function: Callable) -> Verdict:
    """Lesson 03: `function(x, bias)` returns gelu(x + bias), exact, for a contiguous matrix and a bias for each column."""

    def build(shape, dtype, large):
        bias = draw(shape[1:], torch.float64, 0.5)
        return {"x": (activations(shape, torch.float64, large) - bias).to(dtype), "bias": bias.to(dtype)}

    def by_row_number(x, bias):
        return gelu(x + bias[torch.arange(x.shape[0], device=x.device).clamp(max=len(bias) - 1)][:, None])

    def parts(outer, inner, scale=0.5**0.5):
        return 0.5 * outer * (1 + torch.erf(inner * scale))

    mistakes = [
        ("bias was left out: the result is gelu(x).", lambda x, bias: gelu(x)),
        ("bias is added after gelu: add it to x first.", lambda x, bias: gelu(x) + bias),
        ("bias is subtracted: add it.", lambda x, bias: gelu(x - bias)),
        ("x is multiplied by bias: add it.", lambda x, bias: gelu(x * bias)),
        ("gelu is missing: the result is x + bias, or its relu.", lambda x, bias: (x + bias).relu()),
        ("gelu is missing: the result is x + bias.", lambda x, bias: x + bias),
        ("x was left out: the result is gelu(bias).", lambda x, bias: gelu(bias).expand(x.shape)),
        ("bias is added in erf and not to the factor in front: both are x + bias.", lambda x, bias: parts(x, x + bias)),
        ("bias is added to the factor in front and not in erf: both are x + bias.", lambda x, bias: parts(x + bias, x)),
        ("bias is indexed with the number of the row: it has one element for each column, bias_ptr + column.", by_row_number),
        ("The first element of bias is added everywhere: load bias_ptr + column, a block.", lambda x, bias: gelu(x + bias[:1])),
        (
            "That is the form with tanh, which differs by up to 5e-4: asked is the exact one, with tl.erf.",
            lambda x, bias: gelu(x + bias, approximate="tanh"),
        ),
        ("0.5 is missing: the result is twice as large.", lambda x, bias: 2 * gelu(x + bias)),
        ("erf takes z / sqrt(2), and not z.", lambda x, bias: parts(x + bias, x + bias, scale=1.0)),
        ("erf takes z / sqrt(2), and not z * sqrt(2).", lambda x, bias: parts(x + bias, x + bias, scale=math.sqrt(2))),
        ("erf takes z / sqrt(2), and not z / 2.", lambda x, bias: parts(x + bias, x + bias, scale=0.5)),
        ("The factor x + bias in front is missing.", lambda x, bias: gelu(x + bias) / (x + bias)),
        ("The 1 is missing: 1 + erf(...).", lambda x, bias: gelu(x + bias) - 0.5 * (x + bias)),
        ("It says 1 - erf(...): add erf.", lambda x, bias: parts(x + bias, -x - bias)),
        ("bias is added twice.", lambda x, bias: gelu(x + 2 * bias)),
        ("The result has the wrong sign.", lambda x, bias: -gelu(x + bias)),
        (
            "The result is stored transposed: element (i, j) of a contiguous matrix lies at i * columns + j.",
            lambda x, bias: gelu(x + bias).T.reshape(x.shape),
        ),
        (_ROUNDED, lambda x, bias: gelu((x.float() + bias.float()).half().double())),  # a float64 sum would round once, not twice
        (_ROUNDED, lambda x, bias: gelu(x.half().double() + bias.half().double())),
    ]
    shapes = [(1, 1), (3, 5), (5, 130), (130, 5), (65, 129), (1, 1000), (300, 1), (64, 64), (2, 1100), (0, 5)]
    together = "Add the bias and apply gelu in one launch: x + bias goes out to memory and back otherwise."
    exercise = Exercise(
        lambda x, bias: gelu(x + bias),
        _cases(build, shapes),
        _large_case(build),
        mistakes,
        "shapes (1, 1) to (65, 129), one row and one column and no rows among them, float32 and float16, large values; no access "
        "outside of a tensor, one launch, x read once and the output stored once, inputs unchanged",
        [
            one_launch(together),
            read_by_the_kernel("x", "PyTorch does a part of it: hand the kernel x as it is, add bias there, and apply gelu."),
            read_by_the_kernel("bias", "PyTorch has written bias out into a matrix first: hand the kernel bias as it is."),
            read_once("x"),
            nothing_else(together),
            tiles_stored_once,
        ],
        clues=[column_clue("bias")],
        illegal=illegal_vector("bias"),
    )
    return judge(function, exercise)


def silu_backward(function: Callable) -> Verdict:
    """Lesson 03: `function(grad, x)` returns the gradient of silu for x, from that of its result; contiguous, of any shape."""

    def build(shape, dtype, large):
        return {"grad": draw(shape, dtype), "x": activations(shape, dtype, large)}

    def reference(grad, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(leaf * torch.sigmoid(leaf), leaf, grad)[0]

    def wrong(formula):
        return lambda grad, x: formula(grad, x, torch.sigmoid(x))

    rule = "by the product rule it is s + x * s * (1 - s)"
    mistakes = [
        ("The incoming gradient is left out: multiply by grad.", wrong(lambda g, x, s: s * (1 + x * (1 - s)))),
        (f"The second term is missing: {rule}.", wrong(lambda g, x, s: g * s)),
        (f"The first term is missing: {rule}.", wrong(lambda g, x, s: g * x * s * (1 - s))),
        (f"That is the derivative of the sigmoid alone: {rule}.", wrong(lambda g, x, s: g * s * (1 - s))),
        (f"A sign is wrong, 1 - x * (1 - s): {rule}.", wrong(lambda g, x, s: g * s * (1 - x * (1 - s)))),
        (f"The derivative of s is s * (1 - s), not s: {rule}.", wrong(lambda g, x, s: g * s * (1 + x))),
        (f"The derivative of s is s * (1 - s), not 1 - s: {rule}.", wrong(lambda g, x, s: g * (s + x * (1 - s)))),
        (f"The derivative of s is s * (1 - s), not s * s: {rule}.", wrong(lambda g, x, s: g * s * (1 + x * s))),
        (f"The derivative of s is s * (1 - s), not s * (1 + s): {rule}.", wrong(lambda g, x, s: g * s * (1 + x * (1 + s)))),
        (f"The x before s * (1 - s) is missing: {rule}.", wrong(lambda g, x, s: g * (s + s * (1 - s)))),
        (f"It says 1 * x in place of 1 + x: {rule}.", wrong(lambda g, x, s: g * s * (x + (1 - s)))),
        ("That is silu itself times grad, and not its derivative.", wrong(lambda g, x, s: g * x * s)),
        ("That is silu itself, and not its derivative.", wrong(lambda g, x, s: x * s)),
        (
            "grad and x are exchanged: the first argument is the incoming gradient, the second what silu was applied to.",
            lambda g, x: x * torch.sigmoid(g) * (1 + g * (1 - torch.sigmoid(g))),
        ),
        ("grad is added: by the chain rule it is multiplied.", wrong(lambda g, x, s: g + s * (1 + x * (1 - s)))),
        ("grad is multiplied into the first term only.", wrong(lambda g, x, s: g * s + x * s * (1 - s))),
        ("grad is multiplied into the second term only.", wrong(lambda g, x, s: s + g * x * s * (1 - s))),
        (
            "The sigmoid is that of -x: s is 1 / (1 + exp(-x)), with a minus.",
            lambda g, x: g * torch.sigmoid(-x) * (1 + x * torch.sigmoid(x)),
        ),
        ("The result has the wrong sign.", lambda g, x: -reference(g, x)),
        ("The result is grad.", lambda g, x: g),
        ("Zeros were stored: load grad and x, and store the product.", lambda g, x: 0 * g),
    ]
    overflow = (
        "exp(x) is infinite in float32 from about x = 89 on, and infinity / infinity is NaN, as is infinity * 0. Take the "
        "sigmoid as tl.sigmoid(x), or 1 / (1 + tl.exp(-x)), and write the rest with s and 1 - s."
    )
    return judge(function, _elementwise(reference, build, mistakes, overflow))
