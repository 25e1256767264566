"""Answers to the exercises of lesson 03: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import math

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl
from triton.language.extra import libdevice

# ---- Functions of one tensor: one kernel for the plain mistakes, each switched on by its name ------------------------------


@triton.jit
def silu_kernel(x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MISTAKE == "no program id":
        offsets = tl.arange(0, BLOCK)
    if MISTAKE == "program id not multiplied":
        offsets = tl.program_id(0) + tl.arange(0, BLOCK)
    mask = offsets < size
    x = tl.load(x_ptr + offsets, mask=mask)
    if MISTAKE != "input's type":
        x = x.to(tl.float32)
    if MISTAKE == "float16":
        x = x.to(tl.float16).to(tl.float32)
    if MISTAKE == "exp(x)":
        y = x * tl.exp(x) / (1 + tl.exp(x))
    elif MISTAKE == "no minus":
        y = x / (1 + tl.exp(x))
    elif MISTAKE == "no 1":
        y = x / tl.exp(-x)
    elif MISTAKE == "multiplies":
        y = x * (1 + tl.exp(-x))
    elif MISTAKE == "1 minus":
        y = x / (1 - tl.exp(-x))
    elif MISTAKE == "sigmoid":
        y = tl.sigmoid(x)
    elif MISTAKE == "plus":
        y = x + tl.sigmoid(x)
    elif MISTAKE == "relu":
        y = tl.maximum(x, 0.0)
    elif MISTAKE == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif MISTAKE == "quick gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif MISTAKE == "sign":
        y = -x * tl.sigmoid(x)
    elif MISTAKE == "nothing":
        y = x
    elif MISTAKE == "squared":
        y = x * x * tl.sigmoid(x)
    elif MISTAKE == "by cases":
        e = tl.exp(-tl.abs(x))
        y = x * tl.where(x >= 0, 1 / (1 + e), e / (1 + e))
    elif MISTAKE == "division":
        y = x / (1 + tl.exp(-x))
    else:
        y = x * tl.sigmoid(x)
    if MISTAKE == "reads x again":
        y = tl.load(x_ptr + offsets, mask=mask) * tl.sigmoid(x)
    if MISTAKE == "stores to x":
        tl.store(x_ptr + offsets, y, mask=mask)
    else:
        tl.store(output_ptr + offsets, y, mask=mask)


@triton.jit
def silu_no_mask(x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets).to(tl.float32)
    tl.store(output_ptr + offsets, x * tl.sigmoid(x), mask=offsets < size)


@triton.jit
def silu_no_mask_on_store(x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size).to(tl.float32)
    tl.store(output_ptr + offsets, x * tl.sigmoid(x))


@triton.jit
def silu_mask_one_more(x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets <= size
    x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    tl.store(output_ptr + offsets, x * tl.sigmoid(x), mask=mask)


@triton.jit
def times_kernel(x_ptr, y_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    tl.store(output_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) * tl.load(y_ptr + offsets, mask=mask), mask=mask)


@triton.jit
def sigmoid_kernel(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    tl.store(output_ptr + offsets, tl.sigmoid(tl.load(x_ptr + offsets, mask=mask).to(tl.float32)), mask=mask)


def flat(mistake="", kernel=silu_kernel, block=1024, grid=triton.cdiv, output=torch.empty_like, size=torch.numel):
    """An answer for a function of one tensor, taken as a flat vector."""

    def function(x):
        result = output(x)
        kernel[(grid(x.numel(), block),)](x, result, size(x), MISTAKE=mistake, BLOCK=block)
        return result

    return function


def in_place(kernel):
    def function(x):
        flat(kernel=kernel, output=lambda x: x)(x)
        return x

    return function


def as_float32(x):
    return torch.empty(x.shape, device=x.device)


def flattened(x):
    return torch.empty(x.numel(), dtype=x.dtype, device=x.device)


def times(x, y):
    result = torch.empty_like(x)
    times_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, result, x.numel(), BLOCK=1024)
    return result


def silu_in_two_launches(x):
    s = torch.empty_like(x)
    sigmoid_kernel[(triton.cdiv(x.numel(), 1024),)](x, s, x.numel(), BLOCK=1024)
    return times(x, s)


def what_pytorch_users_try(kernel, launch="call"):
    """A kernel for SiLU as somebody writes it who knows PyTorch, and as it is launched."""

    def function(x):
        result = torch.empty_like(x)
        if launch == "no grid":
            kernel(x, result, x.numel(), BLOCK=1024)
        elif launch == "no tuple":
            kernel[triton.cdiv(x.numel(), 1024)](x, result, x.numel(), BLOCK=1024)
        else:
            kernel[(triton.cdiv(x.numel(), 1024),)](x, result, x.numel(), BLOCK=1024)
        return result

    return function


def not_compiled(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size)
    tl.store(output_ptr + offsets, x * tl.sigmoid(x), mask=offsets < size)


@triton.jit
def pytorchs_sigmoid(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size)
    tl.store(output_ptr + offsets, x * torch.sigmoid(x), mask=offsets < size)


@triton.jit
def pythons_exp(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size)
    tl.store(output_ptr + offsets, x / (1 + math.exp(-x)), mask=offsets < size)


@triton.jit
def indexed_pointer(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = x_ptr[offsets]
    tl.store(output_ptr + offsets, x * tl.sigmoid(x), mask=offsets < size)


@triton.jit
def indexed_output(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size)
    output_ptr[offsets] = x * tl.sigmoid(x)


@triton.jit
def a_power(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size)
    tl.store(output_ptr + offsets, x * (1 + tl.exp(-x)) ** -1, mask=offsets < size)


@triton.jit
def no_such_axis(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0)
    tl.store(output_ptr + offsets, x / tl.sum(x, axis=1), mask=offsets < size)


@triton.jit
def no_such_function(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size)
    tl.store(output_ptr + offsets, 0.5 * x * (1 + tl.tanh(0.5 * x)), mask=offsets < size)


@triton.jit
def from_libdevice(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size)
    tl.store(output_ptr + offsets, 0.5 * x * (1 + libdevice.tanh(0.5 * x)), mask=offsets < size)


def finished_by_pytorch(x):
    result = flat("sigmoid")(x)
    result *= x
    return result


def round_down(size, block):
    return max(1, size // block)


def shared(kernel):
    """Wrong answers that every function of one tensor can give, for a kernel that computes the right thing."""
    return [
        (flat(kernel=kernel, output=as_float32), "(?s)size 1 in float16.*wrong type: float32"),
        (flat(kernel=kernel, output=flattened), r"(?s)shape \(3, 5\) in.*shape \(15,\).*empty_like"),
        (flat(kernel=kernel, grid=round_down), "(?s)size 1025 in.*index 1024 of 1025.*never stored.*one program"),
        (flat(kernel=kernel, grid=round_down, block=256), "(?s)size 1000 in.*index 768 of 1000.*never stored.*triton.cdiv"),
        (flat(kernel=kernel, grid=lambda size, block: size // block), "(?s)size 1 in.*no programs.*round up"),
        (flat(kernel=kernel, size=lambda x: x.shape[0]), r"(?s)shape \(3, 5\) in.*index \(0, 3\).*never stored.*x.numel\(\)"),
        (flat(kernel=kernel, grid=lambda size, block: triton.cdiv(size, block) + 0, size=lambda x: x.nbytes), "mask lets"),
        (flat("no program id", kernel), "(?s)size 1025 in.*never stored.*same block"),
        (flat("program id not multiplied", kernel), "(?s)size 1025 in.*stored more than once|overlap"),
        (flat("stores to x", kernel), "(?s)changed its input x.*wrong tensor"),
        (flat("reads x again", kernel), "(?s)8 bytes of x were read, and it has 4.*once"),
        (flat("float16", kernel), "three digits"),
        (in_place(kernel), "works in place"),
        (lambda x: flat(kernel=kernel)(x).clone(), "no kernel wrote"),
        (lambda x: flat(kernel=kernel)(x) and None, "None|RuntimeError"),
        (lambda x: torch.empty_like(x), "never written"),
        (lambda x: flat(kernel=kernel)(x + 0), "(?s)does not read x itself"),
    ]


SILU_WRONG = [
    (flat("exp(x)"), r"(?s), large values.*index \(0, 0\).*exp\(x\) is infinite.*exp\(-x\)"),
    (flat("no minus"), "(?s)size 1 in float32.*sign in the exponent"),
    (flat("no 1"), "The 1 is missing"),
    (flat("multiplies"), "divide by that"),
    (flat("1 minus"), "It says 1 - exp"),
    (flat("sigmoid"), "multiply it by x"),
    (flat("plus"), "multiply the two"),
    (flat("relu"), "relu"),
    (flat("gelu"), "The result is GELU"),
    (flat("quick gelu"), "1.702"),
    (flat("sign"), "wrong sign"),
    (flat("nothing"), "The result is x, or relu.*multiply x by its sigmoid"),
    (flat("squared"), "x is squared"),
    (flat(kernel=silu_no_mask), "(?s)loads outside of x_ptr.*no mask"),
    (flat(kernel=silu_no_mask_on_store), "(?s)stores outside of output_ptr.*no mask"),
    (flat(kernel=silu_mask_one_more), "not <="),
    *shared(silu_kernel),
    (flat("input's type"), r"(?s)in float16.*Expected dtype.*to\(tl.float32\)"),
    (silu_in_two_launches, "(?s)2 kernels were launched.*One launch does it"),
    (lambda x: times(x, torch.sigmoid(x)), "(?s)4 bytes were read that are not x.*registers"),
    (lambda x: times(torch.ones_like(x), x * torch.sigmoid(x)), "does not read x itself"),
    (torch.nn.functional.silu, "No kernel was launched"),
    (what_pytorch_users_try(not_compiled), "lacks @triton.jit"),
    (what_pytorch_users_try(pytorchs_sigmoid, "no grid"), "grid in front, in brackets"),
    (what_pytorch_users_try(pytorchs_sigmoid, "no tuple"), "(?s)not iterable.*grid is a tuple"),
    (what_pytorch_users_try(pytorchs_sigmoid), "take no blocks: compute with Triton's"),
    (what_pytorch_users_try(pythons_exp), "take no blocks: compute with Triton's"),
    (what_pytorch_users_try(indexed_pointer), "pointer is not indexed"),
    (what_pytorch_users_try(indexed_output), "pointer is not indexed"),
    (what_pytorch_users_try(a_power), r"no \*\*: multiply"),
    (what_pytorch_users_try(no_such_axis), "There is no such axis"),
    (what_pytorch_users_try(no_such_function), "no function of that name"),
    (what_pytorch_users_try(from_libdevice), "has no libdevice"),
    (finished_by_pytorch, "(?s)size 1 in float32.*PyTorch changed the result after the last kernel"),
]

# ---- gelu_tanh -------------------------------------------------------------------------------------------------------------


@triton.jit
def gelu_tanh_kernel(x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MISTAKE == "no program id":
        offsets = tl.arange(0, BLOCK)
    if MISTAKE == "program id not multiplied":
        offsets = tl.program_id(0) + tl.arange(0, BLOCK)
    mask = offsets < size
    x = tl.load(x_ptr + offsets, mask=mask)
    x = x.to(tl.float32)
    if MISTAKE == "float16":
        x = x.to(tl.float16).to(tl.float32)
    cubic = 0.044715
    if MISTAKE == "0.44715":
        cubic = 0.44715
    if MISTAKE == "0.0044715":
        cubic = 0.0044715
    if MISTAKE == "minus the cube":
        cubic = -0.044715
    cube = x * x * x
    if MISTAKE == "square" or MISTAKE == "square and overflow":
        cube = x * x
    if MISTAKE == "no cube":
        cube = 0.0
    scale = 0.7978845608028654
    if MISTAKE == "pi over 2":
        scale = 1.2533141373155003
    if MISTAKE == "no root":
        scale = 0.6366197723675814
    if MISTAKE == "no scale":
        scale = 1.0
    if MISTAKE == "1 over root 2":
        scale = 0.7071067811865476
    u = scale * (x + cubic * cube)
    if MISTAKE == "half of u":
        u = u / 2
    if MISTAKE == "overflow" or MISTAKE == "square and overflow":
        e = tl.exp(2 * u)
        tanh = (e - 1) / (e + 1)
    elif MISTAKE == "overflow below":
        e = tl.exp(-2 * u)
        tanh = (1 - e) / (1 + e)
    elif MISTAKE == "both exponentials":
        tanh = (tl.exp(u) - tl.exp(-u)) / (tl.exp(u) + tl.exp(-u))
    elif MISTAKE == "zero where large":
        e = tl.exp(2 * u)
        tanh = tl.where(tl.abs(u) > 20, 0.0, (e - 1) / (e + 1))
    elif MISTAKE == "clamped":
        e = tl.exp(2 * tl.minimum(u, 20.0))
        tanh = (e - 1) / (e + 1)
    elif MISTAKE == "of the magnitude":
        e = tl.exp(-2 * tl.abs(u))
        tanh = tl.where(u < 0, -1.0, 1.0) * (1 - e) / (1 + e)
    else:
        tanh = 2 * tl.sigmoid(2 * u) - 1
    if MISTAKE == "no half":
        y = x * (1 + tanh)
    elif MISTAKE == "no 1":
        y = 0.5 * x * tanh
    elif MISTAKE == "1 minus":
        y = 0.5 * x * (1 - tanh)
    elif MISTAKE == "no x":
        y = 0.5 * (1 + tanh)
    elif MISTAKE == "sign":
        y = -0.5 * x * (1 + tanh)
    elif MISTAKE == "erf":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif MISTAKE == "silu":
        y = x * tl.sigmoid(x)
    elif MISTAKE == "quick gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif MISTAKE == "x where large":
        y = tl.where(tl.abs(x) > 10, x, 0.5 * x * (1 + tanh))
    elif MISTAKE == "0 where large":
        y = tl.where(tl.abs(x) > 10, 0.0, 0.5 * x * (1 + tanh))
    elif MISTAKE == "sigmoid":
        y = x * tl.sigmoid(2 * u)
    elif MISTAKE == "nothing":
        y = x
    else:
        y = 0.5 * x * (1 + tanh)
    if MISTAKE == "reads x again":
        y = tl.load(x_ptr + offsets, mask=mask) * tl.sigmoid(2 * u)
    if MISTAKE == "stores to x":
        tl.store(x_ptr + offsets, y, mask=mask)
    else:
        tl.store(output_ptr + offsets, y, mask=mask)


@triton.jit
def gelu_tanh_no_mask(x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets).to(tl.float32)
    tl.store(output_ptr + offsets, x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)))


def tanh_form(mistake="", **options):
    return flat(mistake, gelu_tanh_kernel, **options)


GELU_TANH_WRONG = [
    (tanh_form("square and overflow"), "(?s)size 1 in float32.*index 0 of 1.*squared and should be cubed"),
    (tanh_form("square"), "(?s)size 1 in float32.*squared and should be cubed"),
    (tanh_form("overflow"), "(?s)shape.*, large values.*An exponential is infinite.*sigmoid"),
    (tanh_form("overflow below"), r"(?s), large values.*index \(0, 1\).*An exponential is infinite.*both signs"),
    (tanh_form("both exponentials"), "(?s), large values.*An exponential is infinite"),
    (tanh_form("zero where large"), r"(?s), large values.*index \(0, 0\).*as if tanh were 0"),
    (tanh_form("x where large"), r"(?s), large values.*index \(0, 1\).*result is x for large x of either sign"),
    (tanh_form("0 where large"), r"(?s), large values.*index \(0, 0\).*result is 0 for large x of either sign"),
    (tanh_form("0.44715"), "not 0.44715"),
    (tanh_form("0.0044715"), "not 0.0044715"),
    (tanh_form("minus the cube"), "add the cube"),
    (tanh_form("no cube"), "cube is missing"),
    (tanh_form("pi over 2"), "root is of 2 / pi"),
    (tanh_form("no root"), "root is missing"),
    (tanh_form("no scale"), r"factor sqrt\(2 / pi\) in the argument of tanh is missing"),
    (tanh_form("1 over root 2"), r"not 1 / sqrt\(2\)"),
    (tanh_form("half of u"), r"tanh\(u\) has 2 \* u"),
    (tanh_form("no half"), "0.5 is missing"),
    (tanh_form("no 1"), "The 1 is missing"),
    (tanh_form("1 minus"), "add tanh"),
    (tanh_form("no x"), "factor x in front is missing"),
    (tanh_form("sign"), "wrong sign"),
    (tanh_form("erf"), "(?s)size 1 in float32.*That is the exact GELU, with erf.*5e-4"),
    (tanh_form("silu"), "That is SiLU"),
    (tanh_form("quick gelu"), "1.702"),
    (tanh_form("nothing"), "The result is x, or relu"),
    (flat(kernel=gelu_tanh_no_mask), "(?s)loads outside of x_ptr.*no mask"),
    *shared(gelu_tanh_kernel),
    (lambda x: times(x, torch.sigmoid(1.5957691216057308 * (x + 0.044715 * x**3))), "bytes were read that are not x"),
    (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), "No kernel was launched"),
]

# ---- bias_gelu -------------------------------------------------------------------------------------------------------------


@triton.jit
def bias_gelu_kernel(
    x_ptr, bias_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    offsets = row[:, None] * columns + column[None, :]
    x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    if MISTAKE == "reads x twice":
        x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    if MISTAKE == "row number":
        bias = tl.load(bias_ptr + row, mask=(row < rows) & (row < columns))[:, None].to(tl.float32)
    elif MISTAKE == "first element":
        bias = tl.load(bias_ptr).to(tl.float32)
    elif MISTAKE == "first tile":
        bias = tl.load(bias_ptr + tl.arange(0, BLOCK_COLUMNS), mask=tl.arange(0, BLOCK_COLUMNS) < columns).to(tl.float32)[None, :]
    else:
        bias = tl.load(bias_ptr + column, mask=column < columns)[None, :].to(tl.float32)
    z = x + bias
    if MISTAKE == "no bias":
        z = x
    if MISTAKE == "minus":
        z = x - bias
    if MISTAKE == "bias twice":
        z += bias
    if MISTAKE == "stored on the way":
        tl.store(output_ptr + offsets, z, mask=mask)
    if MISTAKE == "through memory":
        tl.store(output_ptr + offsets, z, mask=mask)
        z = tl.load(output_ptr + offsets, mask=mask).to(tl.float32)
    if MISTAKE == "float16":
        z = z.to(tl.float16).to(tl.float32)
    if MISTAKE == "tanh":
        y = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    elif MISTAKE == "no gelu":
        y = z
    elif MISTAKE == "relu":
        y = tl.maximum(z, 0.0)
    elif MISTAKE == "bias after":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476)) + bias
    elif MISTAKE == "bias in erf only":
        y = 0.5 * x * (1 + tl.erf(z * 0.7071067811865476))
    elif MISTAKE == "bias in front only":
        y = 0.5 * z * (1 + tl.erf(x * 0.7071067811865476))
    elif MISTAKE == "no root":
        y = 0.5 * z * (1 + tl.erf(z))
    elif MISTAKE == "times the root":
        y = 0.5 * z * (1 + tl.erf(z * 1.4142135623730951))
    elif MISTAKE == "no half":
        y = z * (1 + tl.erf(z * 0.7071067811865476))
    elif MISTAKE == "no 1":
        y = 0.5 * z * tl.erf(z * 0.7071067811865476)
    elif MISTAKE == "1 minus":
        y = 0.5 * z * (1 - tl.erf(z * 0.7071067811865476))
    elif MISTAKE == "no factor":
        y = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
    else:
        y = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    if MISTAKE == "stored transposed":
        offsets = column[None, :] * rows + row[:, None]
    tl.store(output_ptr + offsets, y, mask=mask)


@triton.jit
def bias_gelu_mask_of_rows(
    x_ptr, bias_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    z = tl.load(x_ptr + row * columns + column, mask=row < rows) + tl.load(bias_ptr + column, mask=column < columns)
    tl.store(output_ptr + row * columns + column, 0.5 * z * (1 + tl.erf(z * 0.7071067811865476)), mask=row < rows)


@triton.jit
def bias_gelu_no_mask_on_bias(
    x_ptr, bias_ptr, output_ptr, rows, columns, MISTAKE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    bias = tl.load(bias_ptr + column)
    z = (tl.load(x_ptr + row * columns + column, mask=mask) + bias).to(tl.float32)
    tl.store(output_ptr + row * columns + column, 0.5 * z * (1 + tl.erf(z * 0.7071067811865476)), mask=mask)


@triton.jit
def bias_gelu_flat_kernel(x_ptr, bias_ptr, output_ptr, size, columns, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    z = tl.load(x_ptr + offsets, mask=mask).to(tl.float32) + tl.load(bias_ptr + offsets % columns, mask=mask)
    tl.store(output_ptr + offsets, 0.5 * z * (1 + tl.erf(z * 0.7071067811865476)), mask=mask)


@triton.jit
def exact_gelu_kernel(x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size).to(tl.float32)
    tl.store(output_ptr + offsets, 0.5 * x * (1 + tl.erf(x * 0.7071067811865476)), mask=offsets < size)


def both(rows, columns, block_rows, block_columns):
    return triton.cdiv(rows, block_rows), triton.cdiv(columns, block_columns)


def tiled(mistake="", kernel=bias_gelu_kernel, grid=both, blocks=(16, 64), output=torch.empty_like):
    def function(x, bias):
        result = output(x)
        kernel[grid(*x.shape, *blocks)](x, bias, result, *x.shape, MISTAKE=mistake, BLOCK_ROWS=blocks[0], BLOCK_COLUMNS=blocks[1])
        return result

    return function


def bias_gelu_flat(x, bias):
    result = torch.empty_like(x)
    bias_gelu_flat_kernel[(triton.cdiv(x.numel(), 256),)](x, bias, result, x.numel(), x.shape[1], BLOCK=256)
    return result


def bias_gelu_in_two_launches(x, bias):
    return flat(kernel=exact_gelu_kernel)(tiled("no gelu")(x, bias))


def bias_gelu_in_place(x, bias):
    tiled(output=lambda x: x)(x, bias)
    return x


def bias_as_a_matrix(x, bias):
    result, bias = torch.empty_like(x), bias.expand(x.shape).contiguous()
    bias_gelu_flat_kernel[(triton.cdiv(x.numel(), 256),)](x, bias, result, x.numel(), x.numel(), BLOCK=256)
    return result


MASK = r"\(row < rows\)(\[:, None\])? & \(column < columns\)(\[None, :\])?\."

BIAS_GELU_WRONG = [
    (tiled(blocks=(1, 1024), grid=lambda rows, columns, *blocks: (rows, 1)), r"(?s)\(2, 1100\) in float32.*never stored"),
    (tiled("no bias"), r"(?s)\(1, 1\) in float32.*bias was left out"),
    (tiled("minus"), "bias is subtracted"),
    (tiled("bias twice"), "bias is added twice"),
    (tiled("bias after"), "bias is added after gelu"),
    (tiled("bias in erf only"), "bias is added in erf and not to the factor"),
    (tiled("bias in front only"), "to the factor in front and not in erf"),
    (tiled("row number"), r"(?s)\(3, 5\) in.*index \(0, 1\).*number of the row"),
    (tiled("first element"), r"(?s)\(3, 5\) in.*index \(0, 1\).*first element of bias"),
    (tiled("first tile"), r"(?s)\(5, 130\) in.*index \(0, 64\).*bias_ptr \+ column"),
    (tiled("tanh"), "(?s)float32.*form with tanh, which differs by up to 5e-4"),
    (tiled("no gelu"), "gelu is missing"),
    (tiled("relu"), "relu"),
    (tiled("no root"), r"erf takes z / sqrt\(2\), and not z\."),
    (tiled("times the root"), r"and not z \* sqrt\(2\)"),
    (tiled("no half"), "0.5 is missing"),
    (tiled("no 1"), "The 1 is missing"),
    (tiled("1 minus"), "add erf"),
    (tiled("no factor"), r"factor x \+ bias in front is missing"),
    (tiled("float16"), "three digits"),
    (tiled("reads x twice"), "(?s)8 bytes of x were read, and it has 4.*once"),
    (tiled("stored on the way"), "(?s)stored more than once|bytes"),
    (tiled("through memory"), r"(?s)4 bytes were read that are not x or bias.*x \+ bias goes out to memory"),
    (tiled("stored transposed"), r"(?s)\(3, 5\) in.*stored transposed"),
    (tiled(kernel=bias_gelu_mask_of_rows), rf"(?s)loads outside of x_ptr.*one dimension.*{MASK}"),
    (tiled(kernel=bias_gelu_no_mask_on_bias), "(?s)loads outside of bias_ptr.*no mask.*mask=column < columns"),
    (tiled(grid=lambda r, c, br, bc: (triton.cdiv(r, br),)), r"(?s)\(5, 130\).*\(0, 64\).*columns belong to no program"),
    (tiled(grid=lambda r, c, br, bc: (1, triton.cdiv(c, bc))), r"(?s)\(130, 5\).*\(16, 0\).*rows belong to no program"),
    (tiled(grid=lambda r, c, br, bc: (r // br, c // bc)), "no programs"),
    (tiled(output=as_float32), r"(?s)\(1, 1\) in float16.*wrong type"),
    (bias_gelu_in_two_launches, "(?s)2 kernels were launched.*in one launch"),
    (bias_gelu_in_place, "works in place"),
    (bias_as_a_matrix, "(?s)does not read bias itself.*written bias out"),
    (lambda x, bias: flat(kernel=exact_gelu_kernel)(x + bias), "(?s)does not read x itself.*PyTorch does a part"),
    (lambda x, bias: torch.nn.functional.gelu(x + bias), "No kernel was launched"),
]

# ---- silu_backward ---------------------------------------------------------------------------------------------------------


@triton.jit
def silu_backward_kernel(grad_ptr, x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MISTAKE == "no program id":
        offsets = tl.arange(0, BLOCK)
    mask = offsets < size
    grad = tl.load(grad_ptr + offsets, mask=mask)
    x = tl.load(x_ptr + offsets, mask=mask)
    if MISTAKE != "input's type":
        x = x.to(tl.float32)
    if MISTAKE == "float16":
        grad = grad.to(tl.float16).to(tl.float32)
    if MISTAKE == "reads x twice":
        x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    if MISTAKE == "overflow":
        s = tl.exp(x) / (1 + tl.exp(x))
    elif MISTAKE == "sigmoid of -x":
        s = 1 / (1 + tl.exp(x))
    elif MISTAKE == "division":
        s = 1 / (1 + tl.exp(-x))
    else:
        s = tl.sigmoid(x)
    if MISTAKE == "no grad":
        result = s * (1 + x * (1 - s))
    elif MISTAKE == "first term only":
        result = grad * s
    elif MISTAKE == "second term only":
        result = grad * x * s * (1 - s)
    elif MISTAKE == "sigmoid's derivative":
        result = grad * s * (1 - s)
    elif MISTAKE == "minus":
        result = grad * s * (1 - x * (1 - s))
    elif MISTAKE == "no 1 - s":
        result = grad * s * (1 + x)
    elif MISTAKE == "s for 1 - s":
        result = grad * s * (1 + x * s)
    elif MISTAKE == "1 + s":
        result = grad * s * (1 + x * (1 + s))
    elif MISTAKE == "no s in the second term":
        result = grad * (s + x * (1 - s))
    elif MISTAKE == "no x":
        result = grad * s * (1 + (1 - s))
    elif MISTAKE == "silu":
        result = grad * x * s
    elif MISTAKE == "plus grad":
        result = grad + s * (1 + x * (1 - s))
    elif MISTAKE == "grad in the first term":
        result = grad * s + x * s * (1 - s)
    elif MISTAKE == "exp(-x)":
        e = tl.exp(-x)
        result = grad * (1 + e + x * e) / ((1 + e) * (1 + e))
    elif MISTAKE == "sign":
        result = -grad * s * (1 + x * (1 - s))
    elif MISTAKE == "two terms":
        result = grad * s + grad * x * s * (1 - s)
    else:
        result = grad * s * (1 + x * (1 - s))
    if MISTAKE == "stores to grad":
        tl.store(grad_ptr + offsets, result, mask=mask)
    else:
        tl.store(output_ptr + offsets, result, mask=mask)


@triton.jit
def silu_backward_no_mask(grad_ptr, x_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.sigmoid(tl.load(x_ptr + offsets).to(tl.float32))
    tl.store(output_ptr + offsets, tl.load(grad_ptr + offsets) * s)


def backward(mistake="", kernel=silu_backward_kernel, block=1024, grid=triton.cdiv, output=torch.empty_like, size=torch.numel):
    def function(grad, x):
        result = output(x)
        kernel[(grid(x.numel(), block),)](grad, x, result, size(x), MISTAKE=mistake, BLOCK=block)
        return result

    return function


def backward_exchanged(grad, x):
    return backward()(x, grad)


def backward_in_place(grad, x):
    backward(output=lambda x: grad)(grad, x)
    return grad


def backward_by_autograd(grad, x):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(leaf * torch.sigmoid(leaf), leaf, grad)[0]


SILU_BACKWARD_WRONG = [
    (backward("no grad"), "(?s)size 1 in float32.*incoming gradient is left out"),
    (backward("first term only"), "second term is missing"),
    (backward("second term only"), "first term is missing"),
    (backward("sigmoid's derivative"), "derivative of the sigmoid alone"),
    (backward("minus"), "A sign is wrong"),
    (backward("no 1 - s"), r"s \* \(1 - s\), not s:"),
    (backward("s for 1 - s"), r"not s \* s"),
    (backward("1 + s"), r"not s \* \(1 \+ s\)"),
    (backward("no s in the second term"), "not 1 - s"),
    (backward("no x"), "The x before"),
    (backward("silu"), "silu itself"),
    (backward("plus grad"), "grad is added"),
    (backward("grad in the first term"), "into the first term only"),
    (backward("sign"), "wrong sign"),
    (backward("sigmoid of -x"), "sigmoid is that of -x"),
    (backward("overflow"), r"(?s), large values.*index \(0, 0\).*exp\(x\) is infinite.*tl.sigmoid"),
    (backward("exp(-x)"), r"(?s), large values.*index \(0, 1\).*infinity \* 0"),
    (backward("float16"), "three digits"),
    (backward("input's type"), r"(?s)in float16.*Expected dtype.*to\(tl.float32\)"),
    (backward("reads x twice"), "8 bytes of x were read, and it has 4"),
    (backward("stores to grad"), "(?s)changed its input grad.*wrong tensor"),
    (backward("no program id"), "(?s)size 1025 in.*same block"),
    (backward(kernel=silu_backward_no_mask), "(?s)loads outside of x_ptr.*no mask"),
    (backward(grid=round_down), "(?s)size 1025 in.*never stored.*one program"),
    (backward(grid=lambda size, block: size // block), "no programs"),
    (backward(size=lambda x: x.shape[0]), r"(?s)shape \(3, 5\).*x.numel\(\)"),
    (backward(output=as_float32), "(?s)in float16.*wrong type: float32"),
    (backward(output=flattened), r"(?s)shape \(3, 5\).*shape \(15,\)"),
    (backward_exchanged, "grad and x are exchanged"),
    (backward_in_place, "works in place"),
    (lambda grad, x: times(grad, backward("no grad")(torch.ones_like(x), x)), "2 kernels were launched"),
    (lambda grad, x: times(grad, backward_by_autograd(torch.ones_like(x), x)), "(?s)does not read x itself.*hand the kernel x"),
    (backward_by_autograd, "No kernel was launched"),
]

# ---- What the tests take ---------------------------------------------------------------------------------------------------

WRONG = {
    "silu": SILU_WRONG,
    "gelu_tanh": GELU_TANH_WRONG,
    "bias_gelu": BIAS_GELU_WRONG,
    "silu_backward": SILU_BACKWARD_WRONG,
}

RIGHT = {
    "silu": [flat(), flat("by cases", block=256), flat("division", block=4096)],
    "gelu_tanh": [tanh_form(), tanh_form("clamped", block=256), tanh_form("of the magnitude"), tanh_form("sigmoid")],
    "bias_gelu": [tiled(), tiled(blocks=(4, 256)), bias_gelu_flat],
    "silu_backward": [backward(), backward("two terms", block=256), backward("division")],
}
