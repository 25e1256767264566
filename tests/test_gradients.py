"""Every gradient against float64: PyTorch's own function on float64 copies, differentiated by PyTorch.

The rule is tolerance.py's, with PyTorch's own gradient in the same type as the peer; memory is hostile.py's, forward and
backward, incoming gradients included. Where a gradient is made of larger terms that cancel, its `*_terms` function says how
large they are. test_broken_kernels.py shows for each test here a wrong kernel that it sees.
"""

import contextlib
import importlib
import math
import unittest.mock
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hostile import LAYOUTS, call, on_gpu, tensor
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_kernels import layouts, seeds, shapes, sizes, torch_layer_norm, torch_softmax
from tolerance import assert_close_to_float64, largest

from vitcourse import kernels, runtime

ADD, GELU, LAYER_NORM, RELU, SOFTMAX, SUM = (
    importlib.import_module(f"vitcourse.kernels.{name}")
    for name in ("add", "gelu", "layer_norm", "relu", "softmax", "sum_to_size")
)
INF, NAN = float("inf"), float("nan")

# What a gradient is made of, by input: (largest value rounded to the result's type, largest that float32 rounds).
Terms = dict[str, tuple[float, float]]


def differentiate(function: Callable, inputs: dict[str, torch.Tensor], incoming: list, needed: list[str]) -> tuple:
    """The gradients of the inputs in `needed`; a result whose incoming gradient is None is not used."""
    leaves = {name: value.detach().requires_grad_(name in needed) for name, value in inputs.items()}
    results = function(**leaves)
    results = results if isinstance(results, tuple) else (results,)
    used = [(result, grad) for result, grad in zip(results, incoming) if grad is not None and result.requires_grad]
    return torch.autograd.grad([result for result, _ in used], [leaves[name] for name in needed], [grad for _, grad in used])


def check_gradients(
    ours: Callable,
    theirs: Callable,
    inputs: dict[str, torch.Tensor],
    terms: Callable[..., Terms],
    *,
    needed: list[str] | None = None,
    at: str = "contiguous",
    used: tuple[bool, ...] = (True, True),
    seed: int = 0,
) -> None:
    """The gradients of `ours` for random incoming gradients that lie as `at` says, against those of `theirs`.

    terms: from the inputs and the incoming gradients, all in float64, to what each gradient is made of.
    used: which of the results something is computed from.
    """
    needed = list(inputs) if needed is None else needed
    results = theirs(**inputs)
    results = results if isinstance(results, tuple) else (results,)
    incoming = [
        tensor(tuple(result.shape), result.dtype, at, seed=seed + 500 + i) if use else None
        for i, (result, use) in enumerate(zip(results, used))
    ]

    def run(*values):
        return differentiate(ours, dict(zip(inputs, values)), list(values[len(inputs) :]), needed)

    found = call(run, *inputs.values(), *incoming)
    peers = differentiate(theirs, inputs, incoming, needed)
    wide = {name: value.double() for name, value in inputs.items()}
    wide_incoming = [None if grad is None else grad.double() for grad in incoming]
    references = differentiate(theirs, wide, wide_incoming, needed)
    made_of = terms(*wide_incoming, **wide)
    for name, gradient, peer, reference in zip(needed, found, peers, references):
        rounded, intermediate = made_of.get(name, (0.0, 0.0))
        what = f"gradient of {name}"
        assert_close_to_float64(gradient, reference, peer, rounded=rounded, intermediate=intermediate, what=what)


# ---- one check a function ----


def check_add(a, b, **how):
    def terms(grad, input, other) -> Terms:
        return {name: (0.0, largest(grad.abs().sum_to_size(x.shape))) for name, x in (("input", input), ("other", other))}

    check_gradients(kernels.add, torch.add, {"input": a, "other": b}, terms, **how)


def check_gelu(x, approximate="none", **how):
    def terms(grad, input) -> Terms:
        # Phi(x) + x * phi(x) cancels near -0.75. In bfloat16 Phi is an approximation, good to a third of its rounding. And a
        # rounding of phi's exponent, x^2 / 2, which a GPU's exponential begins with, is that many times as large in phi.
        x = input.masked_fill(input.isinf(), 0.0)
        exponent = x * x / 2
        slope = torch.special.ndtr(x) + x.abs() * (1 + exponent) * torch.exp(-exponent) / math.sqrt(2 * math.pi)
        size = largest(grad * slope)
        return {"input": (size if dtype == torch.bfloat16 else 0.0, size)}

    dtype = x.dtype
    peer = lambda input: F.gelu(input, approximate=approximate)
    check_gradients(lambda input: kernels.gelu(input, approximate), peer, {"input": x}, terms, **how)


def check_relu(x, **how):
    check_gradients(kernels.relu, F.relu, {"input": x}, lambda grad, input: {}, **how)


def check_softmax(x, dim=-1, causal=False, dtype=None, **how):
    def terms(grad, input) -> Terms:
        # y * (g - sum(y * g)). The y that is kept for this is rounded to the result's type, which moves both of its places.
        y, grad = torch_softmax(input, dim, causal), grad.abs()
        size = largest(y * (grad + 2 * (y * grad).sum(dim, keepdim=True)))
        kept, result = torch.finfo(dtype or x.dtype).eps, torch.finfo(x.dtype).eps
        return {"input": (size * kept / result, size)}

    def theirs(input):
        return torch_softmax(input if dtype is None or input.dtype == torch.float64 else input.to(dtype), dim, causal)

    check_gradients(lambda input: kernels.softmax(input, dim, dtype, causal=causal), theirs, {"input": x}, terms, **how)


def check_layer_norm(x, shape, weight=None, bias=None, eps=1e-5, residual=None, **how):
    inputs = {"input": x, "weight": weight, "bias": bias, "residual": residual}
    inputs = {name: value for name, value in inputs.items() if value is not None}

    def terms(grad, total_grad=None, *, input, weight=None, bias=None, residual=None) -> Terms:
        if input.numel() == 0 or grad is None:
            return {}
        x = (input if residual is None else input + residual).flatten(-len(shape)).reshape(-1, math.prod(shape))
        grad = grad.reshape(x.shape).abs()
        rstd = 1 / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
        xhat = (x - x.mean(-1, keepdim=True)).abs() * rstd
        far = x.abs() * rstd  # x and its mean are rounded to float32 before they are subtracted: the error of xhat
        weighted = grad if weight is None else grad * weight.abs().reshape(-1)
        most = lambda values: values.amax(-1, keepdim=True)
        of_input = rstd * most(weighted) * (2 + most(xhat) ** 2 + 2 * most(xhat) * most(far))
        size = largest(of_input) + (largest(total_grad) if total_grad is not None else 0.0)
        return {
            "input": (0.0, size),
            "residual": (0.0, size),
            "weight": (0.0, largest((grad * (xhat + far)).sum(0))),
            "bias": (0.0, largest(grad.sum(0))),
        }

    def ours(input, weight=None, bias=None, residual=None):
        return kernels.layer_norm(input, shape, weight, bias, eps, residual=residual)

    def theirs(input, weight=None, bias=None, residual=None):
        total = input if residual is None else input + residual
        result = torch_layer_norm(total, shape, weight, bias, eps)
        return result if residual is None else (result, total)

    check_gradients(ours, theirs, inputs, terms, **how)


# ---- drawn shapes ----


@given(
    shape=shapes, dropped=st.integers(0, 3), ones=st.tuples(*[st.integers(0, 31)] * 2), at=st.tuples(layouts, layouts, layouts),
    seed=seeds,
)  # fmt: skip
@example(shape=(3, 4, 5, 6, 7), dropped=0, ones=(0b01010, 0b10101), at=("contiguous",) * 3, seed=0)
@example(shape=(7000, 3), dropped=1, ones=(0, 0), at=("contiguous",) * 3, seed=0)
@example(shape=(3, 7000), dropped=0, ones=(0b01, 0b10), at=("contiguous",) * 3, seed=0)
def test_add_drawn(dtype, shape, dropped, ones, at, seed):
    # Each operand has 1 in some of the dimensions, and one of the two may lack the first few.
    a, b = (tuple(1 if mask >> i & 1 else size for i, size in enumerate(shape)) for mask in ones)
    b = b[min(dropped, len(b)) :]
    check_add(tensor(a, dtype, at[0], seed=seed), tensor(b, dtype, at[1], seed=seed + 1), at=at[2], seed=seed)


@given(
    shape=shapes, at=st.tuples(layouts, layouts), approximate=st.sampled_from(["none", "tanh"]), seed=seeds,
    scale=st.sampled_from([0.1, 1.0, 5.0]),
)  # fmt: skip
def test_gelu_and_relu_drawn(dtype, shape, at, approximate, seed, scale):
    x = tensor(shape, dtype, at[0], seed=seed, scale=scale)
    check_gelu(x, approximate, at=at[1], seed=seed)
    check_relu(x, at=at[1], seed=seed)


@given(
    shape=shapes, dim=st.integers(-5, 4), at=st.tuples(layouts, layouts), causal=st.booleans(), seed=seeds,
    scale=st.sampled_from([1.0, 30.0]),
)  # fmt: skip
def test_softmax_drawn(dtype, shape, dim, at, causal, seed, scale):
    x = tensor(shape, dtype, at[0], seed=seed, scale=scale)
    if causal and len(shape) >= 2:
        check_softmax(x, -1, causal=True, at=at[1], seed=seed)
    dim = max(-max(len(shape), 1), min(dim, max(len(shape), 1) - 1))
    check_softmax(x, dim, at=at[1], seed=seed)


NEEDED = [["input", "weight", "bias"], ["input"], ["weight", "bias"], ["weight"], ["bias"], ["input", "bias"]]


@given(
    shape=shapes, trailing=st.integers(1, 3), at=st.tuples(*[layouts] * 5), given_=st.tuples(*[st.booleans()] * 3),
    single=st.booleans(), eps=st.sampled_from([1e-12, 1e-5, 1.0]), seed=seeds,
)  # fmt: skip
@example(
    shape=(2, 3, 4, 5, 6), trailing=3, at=("contiguous",) * 5, given_=(True,) * 3, single=False, eps=1e-5, seed=0
)  # fmt: skip
@example(shape=(1, 257), trailing=1, at=("contiguous",) * 5, given_=(True, True, False), single=True, eps=1e-12, seed=0)
def test_layer_norm_drawn(dtype, shape, trailing, at, given_, single, eps, seed):
    assume(shape)
    normalized = shape[-min(trailing, len(shape)) :]
    # Over few elements the variance may be next to nothing, and with a small eps its rounding errors are divided by it.
    assume(eps == 1.0 or math.prod(normalized) > 8)
    x = tensor(shape, dtype, at[0], seed=seed, grid=0.125)
    residual = tensor(shape, dtype, at[3], seed=seed + 3, grid=0.125) if given_[2] else None
    weight, bias = (
        tensor(normalized, torch.float32 if single else dtype, at[1 + i], seed=seed + 1 + i) if given_[i] else None
        for i in range(2)
    )
    check_layer_norm(x, normalized, weight, bias, eps, residual, at=at[4], seed=seed)


# ---- given shapes and layouts ----

# (a, b): a row, a column, leading dimensions, both sides, the middle, a single number, 1 on both sides, nothing.
BROADCASTS = [
    ((5, 7), (7,)),
    ((5, 7), (5, 1)),
    ((2, 3, 4, 5), (4, 5)),
    ((2, 3, 4, 5), (5,)),
    ((4, 1), (1, 6)),
    ((1, 3, 1), (5, 1, 2)),
    ((2, 3, 4), (2, 1, 4)),
    ((2, 3, 4, 5), (1, 3, 1, 5)),
    ((2, 3, 4, 5), (2, 1, 4, 1)),
    ((5, 7), ()),
    ((), ()),
    ((1, 1), (1, 1, 1)),
    ((1, 7), (1, 1)),
    ((3, 0, 2), (2,)),
    ((0, 4), (1, 4)),
    ((3, 1), (1, 0)),
]


@pytest.mark.parametrize("a, b", BROADCASTS, ids=str)
def test_add_of_broadcasts(dtype, a, b):
    # A gradient comes in expanded from a sum, transposed from a transpose, and contiguous from most else.
    for at in ("contiguous", "expanded", "transposed"):
        x, y = tensor(a, dtype), tensor(b, dtype, seed=1)
        check_add(x, y, at=at)
        check_add(y, x, at=at)
    check_add(x, y, needed=["input"])
    check_add(x, y, needed=["other"])


def test_add_every_broadcast_of_three_dimensions(dtype):
    every = [tuple(1 if mask >> i & 1 else size for i, size in enumerate((2, 3, 4))) for mask in range(8)]
    for a in every:
        for b in every:
            check_add(tensor(a, dtype), tensor(b, dtype, seed=1))


@pytest.mark.parametrize("first", runtime.DTYPES, ids=str)
@pytest.mark.parametrize("second", runtime.DTYPES, ids=str)
def test_a_gradient_of_add_has_its_operands_type(first, second):
    for a, b in (((2, 5), (2, 5)), ((2, 5), (5,)), ((2, 1), (1, 5)), ((2, 5), ()), ((), ()), ((0, 5), (1,))):
        check_add(tensor(a, first), tensor(b, second, seed=1))


def test_gradients_that_come_from_a_sum_or_a_transpose(dtype):
    """As autograd makes them: `sum` sends back one number, expanded; `t` sends back a transposed tensor."""
    x, y, mix = (tensor(shape, dtype, seed=i) for i, shape in enumerate(((6, 9), (9,), (9, 6))))
    functions = (
        (lambda a, b: kernels.add(a, b), lambda a, b: a + b),
        (lambda a, b: kernels.relu(kernels.add(a, b)), lambda a, b: F.relu(a + b)),
        (lambda a, b: kernels.gelu(kernels.add(a, b)), lambda a, b: F.gelu(a + b)),
        (lambda a, b: kernels.softmax(kernels.add(a, b), 0), lambda a, b: (a + b).softmax(0)),
        (lambda a, b: kernels.layer_norm(a, (9,), b), lambda a, b: F.layer_norm(a, (9,), b)),
    )
    for reduce in (lambda result: result.sum(), lambda result: (result.t() * mix.to(result.dtype)).sum()):
        for ours, theirs in functions:
            found, peers, references = (
                differentiate(compose(reduce, function), dict(zip("ab", inputs)), [inputs[0].new_ones(())], ["a", "b"])
                for function, inputs in ((ours, (x, y)), (theirs, (x, y)), (theirs, (x.double(), y.double())))
            )
            for result, reference, peer in zip(found, references, peers):
                # Nothing here is larger than about 10, or is a sum of more than 9 * 10; softmax and norm cancel in a sum.
                assert_close_to_float64(result, reference, peer, rounded=10.0, intermediate=100.0)


def compose(outer: Callable, inner: Callable) -> Callable:
    return lambda *args, **kwargs: outer(inner(*args, **kwargs))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype, layout):
    for shape in ((197, 1), (1, 197), (5, 1, 7), (13, 130)):
        x = tensor(shape, dtype, layout)
        weight = tensor(shape[-1:], dtype, layout, seed=1)
        check_gelu(x, at=layout)
        check_gelu(x, "tanh")
        check_relu(x, at=layout)
        check_softmax(x, -1, at=layout)
        check_softmax(x, 0, at=layout)
        check_softmax(x, -1, causal=True, at=layout)
        check_layer_norm(x, shape[-1:], weight, weight, 1e-2, at=layout)
        check_layer_norm(x, shape, None, None, 1e-2, at=layout)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (3, 0, 5)], ids=str)
def test_zero_size(dtype, shape):
    x = tensor(shape, dtype)
    check_add(x, x)
    check_add(x, tensor((1,) * len(shape), dtype))  # a sum of nothing is 0
    check_gelu(x)
    check_relu(x)
    check_softmax(x, -1)
    check_softmax(x, 0)
    check_softmax(x, 0, dtype=torch.float32)
    weight = tensor(shape[-1:], dtype, seed=1)
    check_layer_norm(x, shape[-1:], weight, weight)
    check_layer_norm(x, shape[-1:])
    check_layer_norm(x, shape[-1:], weight, weight, residual=x.clone())


def test_relu_where_it_bends():
    # Exactly as PyTorch, which lets nothing through at 0 and everything at NaN.
    for dtype in runtime.DTYPES:
        x = torch.tensor([0.0, -0.0, NAN, 1.0, -1.0, INF, -INF, torch.finfo(dtype).tiny], dtype=dtype, device=runtime.DEVICE)
        for incoming in ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [-0.0, INF, NAN, NAN, NAN, -INF, INF, -1.0]):
            grad = torch.tensor(incoming, dtype=dtype, device=x.device)
            (found,), (expected,) = (differentiate(f, {"input": x}, [grad], ["input"]) for f in (kernels.relu, F.relu))
            assert torch.equal(found.isnan(), expected.isnan()), (found, expected)
            number = ~expected.isnan()
            assert torch.equal(found[number], expected[number]), (found, expected)


def test_gelu_far_from_zero(dtype):
    x = torch.tensor([0.0, -0.0, 6e4, -6e4, 50.0, -50.0, 10.0, -10.0, -0.7518], dtype=dtype, device=runtime.DEVICE)
    for approximate in ("none", "tanh"):
        check_gelu(x, approximate)
        for one in x.split(1):  # alone, so that no other's size allows it an error
            check_gelu(one, approximate)


@pytest.mark.parametrize("widest", [None, 16], ids=["narrow", "wide"])
def test_softmax_of_extreme_rows(dtype, widest):
    rows = [[1e4, 1e4 - 8, -1e4, *[9e3] * 29], [-1e4] * 32, [-INF, 1.0, -INF, *[0.5] * 29], [-INF] * 31 + [3.0]]
    x = torch.tensor(rows, dtype=dtype, device=runtime.DEVICE)
    with unittest.mock.patch.object(SOFTMAX, "WIDEST", widest or SOFTMAX.WIDEST):
        for row in x.split(1):
            check_softmax(row)
        check_softmax(x)
        check_softmax(x[:3], causal=True)


def test_softmax_in_another_type(dtype):
    for other in runtime.DTYPES:
        # Values that every type holds, because a narrower `dtype` is what the input is rounded to first.
        x = tensor((9, 50), dtype, scale=2.0, grid=0.125)
        check_softmax(x, -1, dtype=other)
        check_softmax(x, 0, dtype=other)
        check_softmax(x, -1, causal=True, dtype=other)
        check_softmax(tensor((), dtype, grid=0.125), 0, dtype=other)


@pytest.mark.parametrize("widest", [None, 16], ids=["narrow", "wide"])
@pytest.mark.parametrize("needed", [*NEEDED, ["residual"], ["residual", "weight"]], ids="+".join)
def test_layer_norm_with_some_of_it_frozen(dtype, needed, widest):
    x, residual = tensor((9, 37), dtype, grid=0.125), tensor((9, 37), dtype, seed=3, grid=0.125)
    weight, bias = (tensor((37,), dtype, seed=1 + i) for i in range(2))
    with unittest.mock.patch.object(LAYER_NORM, "WIDEST", widest or LAYER_NORM.WIDEST):
        check_layer_norm(x, (37,), weight, bias, residual=residual, needed=needed)
        if "residual" not in needed:
            check_layer_norm(x, (37,), weight, bias, needed=needed)
            absent = {name: None for name in ("weight", "bias") if name not in needed}
            check_layer_norm(x, (37,), **{"weight": weight, "bias": bias} | absent, needed=needed)


@pytest.mark.parametrize("widest", [None, 16], ids=["narrow", "wide"])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)], ids=["both", "normalized", "sum"])
def test_layer_norm_residual(dtype, used, widest):
    x, residual = tensor((9, 37), dtype, "transposed", grid=0.125), tensor((9, 37), dtype, seed=3, grid=0.125)
    weight, bias = (tensor((37,), dtype, seed=1 + i) for i in range(2))
    needed = None if used[0] else ["input", "residual"]  # of the sum alone, weight and bias are no part
    with unittest.mock.patch.object(LAYER_NORM, "WIDEST", widest or LAYER_NORM.WIDEST):
        for at in LAYOUTS:
            check_layer_norm(x, (37,), weight, bias, residual=residual, used=used, needed=needed, at=at)
        check_layer_norm(x, (37,), residual=residual, used=used)


@pytest.mark.parametrize("widest", [None, 16], ids=["narrow", "wide"])
def test_layer_norm_with_float32_parameters(dtype, widest):
    x = tensor((12, 50), dtype)
    weight, bias = (tensor((50,), torch.float32, seed=1 + i) for i in range(2))
    with unittest.mock.patch.object(LAYER_NORM, "WIDEST", widest or LAYER_NORM.WIDEST):
        check_layer_norm(x, (50,), weight, bias)
        check_layer_norm(x, (50,), weight, bias.to(dtype))
        check_layer_norm(x, (50,), weight.to(dtype), bias)
        check_layer_norm(x, (50,), weight.to(dtype), bias, needed=["weight"])


@pytest.mark.parametrize("widest", [None, 64], ids=["narrow", "wide"])
def test_layer_norm_of_rows_far_from_zero(dtype, widest):
    x = tensor((5, 100), dtype)
    with unittest.mock.patch.object(LAYER_NORM, "WIDEST", widest or LAYER_NORM.WIDEST):
        check_layer_norm(x * 4 + 1e4, (100,))
        check_layer_norm(x * 1e-3, (100,), eps=1e-12)


# ---- small blocks: many programs, many steps, a partial one at every edge ----


@contextlib.contextmanager
def small(module, elements: int, **values: object) -> Iterator[None]:
    """Blocks of `elements` in `module`, whatever it calls them; `values` for its other settings."""
    names = [name for name in ("BLOCK", "TILE_ELEMENTS", "BACKWARD_ELEMENTS") if hasattr(module, name)]
    assert names
    with contextlib.ExitStack() as stack:
        for name, value in (dict.fromkeys(names, elements) | values).items():
            stack.enter_context(unittest.mock.patch.object(module, name, value))
        yield


def small_sums(**values: object) -> contextlib.AbstractContextManager:
    """Tiles of 32 terms, at most 8 sums wide."""
    return small(SUM, 32, WIDE=8, NARROW=1, **values)


@given(shape=shapes, ones=st.tuples(*[st.integers(0, 31)] * 2), at=layouts, split=st.booleans(), seed=seeds)
@example(shape=(2100, 2), ones=(0b01, 0), at="contiguous", split=True, seed=0)
@example(shape=(9, 500), ones=(0b10, 0b11), at="contiguous", split=True, seed=0)
def test_add_small_blocks(dtype, shape, ones, at, split, seed):
    assume(math.prod(shape) <= 5000)
    a, b = (tuple(1 if mask >> i & 1 else size for i, size in enumerate(shape)) for mask in ones)
    # On a GPU the terms of a sum are shared out among programs; here two multiprocessors stand for it.
    gpu = {"DEVICE": torch.device("cuda"), "multiprocessors": lambda: 2} if split else {}
    with small_sums(**gpu), small(ADD, 32):
        check_add(tensor(a, dtype, seed=seed), tensor(b, dtype, seed=seed + 1), at=at, seed=seed)


@given(shape=shapes, at=layouts, seed=seeds)
def test_elementwise_small_blocks(dtype, shape, at, seed):
    assume(math.prod(shape) <= 2000)
    x = tensor(shape, dtype, at, seed=seed)
    with small(GELU, 64), small(RELU, 64):
        check_gelu(x, seed=seed)
        check_gelu(x, "tanh", seed=seed)
        check_relu(x, seed=seed)


@given(rows=sizes, columns=sizes, at=layouts, causal=st.booleans(), widest=st.sampled_from([16, 64, 256]), seed=seeds)
@example(rows=3, columns=33, at="contiguous", causal=True, widest=16, seed=0)
def test_rows_small_blocks(dtype, rows, columns, at, causal, widest, seed):
    # Rows wider than `widest` take the kernels that walk along a row; narrower ones share a tile of 64 elements, and two
    # programs (on a GPU four) share the rows of a layer norm's backward pass.
    assume(rows * columns <= 3000)
    with small(SOFTMAX, 64, WIDEST=widest):
        check_softmax(tensor((rows, columns), dtype, at, seed=seed, scale=3.0), -1, causal, at=at, seed=seed)
    eps = 1.0 if columns <= 8 else 1e-5
    x = tensor((rows, columns), dtype, at, seed=seed, grid=0.125)
    weight, bias = (tensor((columns,), dtype, seed=seed + 1 + i) for i in range(2))
    with small(LAYER_NORM, 64, WIDEST=widest, multiprocessors=lambda: 1), small_sums():
        check_layer_norm(x, (columns,), weight, bias, eps, at=at, seed=seed)
        residual = tensor((rows, columns), dtype, seed=seed + 3, grid=0.125)
        check_layer_norm(x, (columns,), residual=residual, eps=eps, at=at, seed=seed)


@pytest.mark.parametrize("widest", [None, 16], ids=["narrow", "wide"])
@pytest.mark.parametrize("rows", [1, 2, 67])
def test_layer_norm_of_many_rows(dtype, rows, widest):
    # Several programs add up their rows' part of the gradients of weight and bias; some have more rows than others.
    x, weight, bias = tensor((rows, 20), dtype), tensor((20,), dtype, seed=1), tensor((20,), dtype, seed=2)
    with small(LAYER_NORM, 64, WIDEST=widest or LAYER_NORM.WIDEST, multiprocessors=lambda: 2):
        check_layer_norm(x, (20,), weight, bias)


# ---- large inputs ----


WIDE = 140_003  # columns, past what any block holds, also in the interpreter


def test_softmax_of_very_wide_rows(dtype):
    x = tensor((2, WIDE), dtype, scale=3.0)
    assert WIDE > SOFTMAX.WIDEST
    check_softmax(x)
    check_softmax(x[:1], causal=True)


def test_layer_norm_of_very_wide_rows(dtype):
    weight, bias = (tensor((WIDE,), dtype, seed=1 + i) for i in range(2))
    assert WIDE > LAYER_NORM.WIDEST
    check_layer_norm(tensor((2, WIDE), dtype), (WIDE,), weight, bias)


def test_many_elements(dtype):
    x = tensor((140_001,), dtype)
    check_add(x.reshape(1, -1), tensor((2, 1), dtype, seed=1))
    check_relu(x)
    check_gelu(x)
    check_softmax(tensor((15_011, 9), dtype))
    check_layer_norm(tensor((15_011, 9), dtype), (9,), tensor((9,), dtype, seed=1), tensor((9,), dtype, seed=2), 1e-2)


# ---- what autograd asks for ----

SAMPLES = {
    "add": (kernels.add, [(3, 4), (4,)]),
    "gelu": (kernels.gelu, [(3, 4)]),
    "gelu tanh": (lambda x: kernels.gelu(x, "tanh"), [(3, 4)]),
    "relu": (kernels.relu, [(3, 4)]),
    "softmax": (lambda x: kernels.softmax(x, -1), [(3, 4)]),
    "softmax over rows": (lambda x: kernels.softmax(x, 0), [(3, 4)]),
    "causal softmax": (lambda x: kernels.softmax(x, -1, causal=True), [(3, 4)]),
    "layer norm": (lambda x, w, b: kernels.layer_norm(x, (4,), w, b), [(3, 4), (4,), (4,)]),
    "layer norm of a sum": (
        lambda x, w, b, r: kernels.layer_norm(x, (4,), w, b, residual=r), [(3, 4), (4,), (4,), (3, 4)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_gradcheck(name):
    """PyTorch's own check: each analytic derivative against a central difference of the forward pass.

    The kernels take float32 at most, so the check's float64 goes through a cast. With a step of h = 0.01 the difference
    (f(x + h) - f(x - h)) / 2h is off by h^2 / 6 * |f'''|, which for third derivatives up to 15 is 2.5e-4, and by the
    rounding of x and of f to float32, about 4 * 6e-8 * 2 / 0.02 = 2.4e-5 for numbers up to 2 in size. A wrong derivative is
    off by more than 1e-2 somewhere; 1e-3 lies between.
    """
    function, shapes = SAMPLES[name]

    def single(*inputs):
        results = function(*(value.float() for value in inputs))
        return tuple(result.double() for result in results) if isinstance(results, tuple) else results.double()

    inputs = []
    for i, shape in enumerate(shapes):
        x = tensor(shape, torch.float32, seed=20 + i).double()
        x = torch.where(x.abs() < 0.1, 0.5, x)  # away from relu's bend, by more than a step
        inputs.append((x * 1.5).requires_grad_())
    assert torch.autograd.gradcheck(single, inputs, eps=1e-2, atol=1e-3, rtol=1e-3, fast_mode=False)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_second_derivative_is_refused(name):
    """At once. Where the second is asked of some inputs only, autograd would not come by what PyTorch puts there to refuse it."""
    function, shapes = SAMPLES[name]
    inputs = [tensor(shape, torch.float32, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    results = function(*inputs)
    loss = sum(result.square().sum() for result in (results if isinstance(results, tuple) else (results,)))
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad(loss, inputs[0], create_graph=True)


@pytest.mark.parametrize("name", SAMPLES)
def test_forward_mode_is_refused(name):
    function, shapes = SAMPLES[name]
    inputs = tuple(tensor(shape, torch.float32, seed=i) for i, shape in enumerate(shapes))
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
        torch.func.jvp(lambda first: function(first, *inputs[1:]), inputs[:1], (torch.ones_like(inputs[0]),))


@pytest.mark.parametrize("name", SAMPLES)
def test_gradients_add_up_over_two_backward_passes(name):
    function, shapes = SAMPLES[name]
    inputs = [tensor(shape, torch.float32, seed=i).requires_grad_() for i, shape in enumerate(shapes)]

    def loss():
        results = function(*inputs)
        return sum((result * result.detach().cos()).sum() for result in (results if isinstance(results, tuple) else (results,)))

    loss().backward()
    once = [value.grad.clone() for value in inputs]
    loss().backward()
    for value, first in zip(inputs, once):
        assert first.abs().max() > 0
        assert torch.equal(value.grad, 2 * first)
    kept = loss()
    kept.backward(retain_graph=True)  # the same graph twice: nothing that it keeps is used up
    kept.backward()
    for value, first in zip(inputs, once):
        torch.testing.assert_close(value.grad, 4 * first)


def test_an_operand_used_twice_gets_both_gradients():
    x = tensor((3, 4), torch.float32).requires_grad_()
    kernels.add(x, x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    x.grad = None
    total = kernels.layer_norm(x, (4,), residual=x)[1]
    total.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))


def test_nothing_is_computed_for_what_is_frozen():
    x, row = tensor((6, 9), torch.float32), tensor((9,), torch.float32, seed=1)
    with unittest.mock.patch.object(ADD, "sum_to_size", wraps=ADD.sum_to_size) as sums:
        kernels.add(x.clone().requires_grad_(), row).sum().backward()
        assert sums.call_count == 0
        kernels.add(x, row.clone().requires_grad_()).sum().backward()
        assert sums.call_count == 1
    frozen = x.clone()
    with unittest.mock.patch.object(LAYER_NORM, "sum_middle", wraps=LAYER_NORM.sum_middle) as sums:
        kernels.layer_norm(x.clone().requires_grad_(), (9,), row, row).sum().backward()
        assert sums.call_count == 0
        weight = row.clone().requires_grad_()
        kernels.layer_norm(frozen, (9,), weight, row).sum().backward()
        assert sums.call_count == 1
    assert frozen.grad is None and row.grad is None and weight.grad is not None


@pytest.mark.parametrize(
    "function, keeps",
    [
        (kernels.relu, "result"),
        (kernels.gelu, "input"),
        (lambda x: kernels.softmax(x, -1), "result"),
        (lambda x: kernels.layer_norm(x, (128,)), "input"),
    ],
    ids=["relu", "gelu", "softmax", "layer_norm"],
)
def test_one_tensor_is_kept_for_the_backward_pass(function, keeps):
    """Memory decides what batch a training run can have: one tensor of the input's size is kept, and no copy of it."""
    x = tensor((64, 128), torch.float32).clone().requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
        result = function(x)
    large = [value.data_ptr() for value in saved if value.numel() >= x.numel()]
    assert large == [{"input": x, "result": result}[keeps].data_ptr()]


# ---- past 2^31 elements ----


@on_gpu
@pytest.mark.memory(23)
def test_past_two_to_the_31_elements():
    rows, columns, piece = 2**31 // 768 + 1000, 768, 1 << 16
    x, grad = (torch.empty((rows, columns), dtype=torch.float16, device=runtime.DEVICE).normal_() for _ in range(2))
    assert x.numel() > 2**31
    weight, bias = (tensor((columns,), torch.float16, seed=i) for i in range(2))

    for ours, theirs in (
        (lambda x: kernels.relu(x), lambda x: F.relu(x)),
        (lambda x: kernels.gelu(x), lambda x: F.gelu(x)),
        (lambda x: kernels.softmax(x, -1), lambda x: x.softmax(-1)),
        (lambda x: kernels.add(x, x[0].detach()), lambda x: x + 0.0),
    ):
        (found,) = differentiate(lambda x, ours=ours: ours(x), {"x": x}, [grad], ["x"])
        for first in range(0, rows, piece):
            part = slice(first, first + piece)
            (peer,) = differentiate(theirs, {"x": x[part]}, [grad[part]], ["x"])
            (reference,) = differentiate(theirs, {"x": x[part].double()}, [grad[part].double()], ["x"])
            assert_close_to_float64(found[part], reference, peer, rounded=largest(reference), intermediate=largest(reference))
        del found

    inputs = {"x": x, "weight": weight, "bias": bias}
    found = differentiate(lambda x, weight, bias: kernels.layer_norm(x, (columns,), weight, bias), inputs, [grad], list(inputs))
    sums = torch.zeros((2, columns), dtype=torch.float64, device=x.device)
    for first in range(0, rows, piece):
        part = slice(first, first + piece)
        theirs = lambda x, weight, bias: F.layer_norm(x, (columns,), weight, bias)
        peer = differentiate(theirs, inputs | {"x": x[part]}, [grad[part]], list(inputs))
        wide = {"x": x[part].double(), "weight": weight.double(), "bias": bias.double()}
        reference = differentiate(theirs, wide, [grad[part].double()], list(inputs))
        assert_close_to_float64(found[0][part], reference[0], peer[0])
        sums += torch.stack(reference[1:])
    # Sums of three million numbers of size 1: about 1,700, of terms that add up to two million.
    for result, reference in zip(found[1:], sums):
        assert_close_to_float64(result, reference, reference.half(), intermediate=float(rows))
    row = tensor((columns,), torch.float16, seed=2)
    (of_row,) = differentiate(kernels.add, {"input": x, "other": row}, [grad], ["other"])
    assert_close_to_float64(of_row, sums[1], sums[1].half(), intermediate=float(rows))


@on_gpu
@pytest.mark.parametrize("batch", [1, 8])
def test_vit_base_shapes(dtype, batch):
    tokens, hidden, heads = 197, 768, 12
    x, position = tensor((batch, tokens, hidden), dtype, grid=0.125), tensor((1, tokens, hidden), dtype, seed=1)
    weight, bias = (tensor((hidden,), dtype, seed=2 + i) for i in range(2))
    check_add(x, position)
    check_add(x, bias)
    check_layer_norm(x, (hidden,), weight, bias, 1e-12)
    residual = tensor(tuple(x.shape), dtype, seed=4, grid=0.125)
    check_layer_norm(x, (hidden,), weight, bias, 1e-12, residual)
    check_softmax(tensor((batch, heads, tokens, tokens), dtype, seed=5))
    check_gelu(tensor((batch, tokens, 4 * hidden), dtype, seed=6))
    check_relu(tensor((batch, tokens, 4 * hidden), dtype, seed=6))


def test_results_may_be_changed_in_place():
    # Not so where a Function returns a view: autograd refuses to change one that it has not made itself. (ReLU's and softmax's
    # results are kept for the backward pass, so there it refuses as it does with PyTorch's own.)
    inputs = {"x": tensor((2, 3, 4), torch.float32), "residual": tensor((2, 3, 4), torch.float32, seed=1)}
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    normalized, total = kernels.layer_norm(leaves["x"], (4,), residual=leaves["residual"])
    (normalized.mul_(2).sum() + total.sum()).backward()
    for function in (kernels.gelu, lambda x: kernels.add(x, x[0])):
        function(leaves["x"]).add_(1).sum().backward()


def test_a_sum_that_alone_was_used_has_gradients_with_memory_of_their_own():
    x, r = (tensor((3, 5), torch.float32, seed=i).requires_grad_() for i in (0, 1))
    incoming = torch.ones(3, 5, device=x.device)
    for _ in range(3):
        kernels.layer_norm(x, (5,), residual=r)[1].backward(incoming)
    assert bool((incoming == 1).all()) and bool((x.grad == 3).all()) and bool((r.grad == 3).all())


def targets(x):
    return torch.tensor([0, 1, 2], device=x.device)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("scale", lambda x, number: kernels.scaled_dot_product_attention(x, x, x, scale=number)),
        ("scale", lambda x, number: kernels.bmm(x[0], x[0].mT, scale=number)),
        ("eps", lambda x, number: kernels.layer_norm(x, (4,), eps=number)),
        ("p", lambda x, number: kernels.dropout(x, number)),
        ("label_smoothing", lambda x, number: kernels.cross_entropy(x[0, 0], targets(x), label_smoothing=number)),
    ],
    ids=["attention", "bmm", "layer_norm", "dropout", "cross_entropy"],
)  # fmt: skip
def test_a_tensor_is_no_number(name, call):
    """It would get no gradient, and nobody would be told."""
    x = tensor((1, 2, 3, 4), torch.float32)
    call(x, 0.5)
    with pytest.raises(TypeError, match=f"{name} is a Tensor"):
        call(x, torch.tensor(0.5, requires_grad=True))
