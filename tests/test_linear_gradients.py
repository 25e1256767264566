"""The gradients of `linear` and `bmm` against float64, by the rules and in the memory of test_gradients.py.

What a gradient is made of: a product dz @ weight of numbers that cancel, and dz itself, grad * activation'(z), which is rounded
to the input's type on the way, as is the z that is kept for it. A relu has inputs on a grid on which z has no rounding error,
because at its bend the smallest error of z turns a gradient on or off.
"""

import contextlib
import importlib
import math
import unittest.mock
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hostile import LAYOUTS, call, on_gpu, tensor
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_gradients import Terms, check_gradients, compose, differentiate
from test_kernels import ACTIVATIONS, forced_config, layouts, maybe_zero, seeds, sizes, small, torch_linear
from tolerance import assert_close_to_float64, largest

from vitcourse import kernels, runtime

BMM, LINEAR = (importlib.import_module(f"vitcourse.kernels.{name}") for name in ("bmm", "linear"))
EVERYTHING = ["input", "weight", "bias", "residual"]
SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}


def slope_terms(z: torch.Tensor, activation: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of activation'(z): how large its terms are, and how fast it changes with z."""
    if activation in (None, "relu"):
        return torch.ones_like(z), torch.zeros_like(z)
    exponent = z * z / 2  # Phi(z) + z * phi(z), and a rounding of phi's exponent is that many times as large in phi
    density = torch.exp(-exponent) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z.abs() * (1 + exponent) * density, (2 - z * z).abs() * density


def check_linear(x, weight, bias=None, activation=None, residual=None, **how):
    inputs = {"input": x, "weight": weight, "bias": bias, "residual": residual}
    inputs = {name: value for name, value in inputs.items() if value is not None}

    def terms(grad, input, weight, bias=None, residual=None) -> Terms:
        rows, columns = math.prod(grad.shape[:-1]), grad.shape[-1]
        x, grad = input.reshape(rows, weight.shape[1]), grad.reshape(rows, columns).abs()
        z, of_z = F.linear(x, weight, bias), F.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())
        size, change = slope_terms(z, activation)
        summed = grad * (size + change * of_z)
        kept = grad * (size + change * z.abs()) if activation in ("gelu", "gelu_tanh") else torch.zeros_like(grad)
        made_of = {
            "input": lambda dz: largest(dz @ weight.abs()),
            "weight": lambda dz: largest(dz.t() @ x.abs()),
            "bias": lambda dz: largest(dz.sum(0)),
        }
        return {name: (of(kept), of(summed)) for name, of in made_of.items()}

    def ours(input, weight, bias=None, residual=None):
        return kernels.linear(input, weight, bias, activation=activation, residual=residual)

    def theirs(input, weight, bias=None, residual=None):
        return torch_linear(input, weight, bias, activation, residual)

    check_gradients(ours, theirs, inputs, terms, **how)


def check_bmm(a, b, scale=1.0, **how):
    def terms(grad, input, mat2) -> Terms:
        grad, input, mat2 = (value.abs() for value in (grad, input, mat2))
        sizes = largest(grad @ mat2.transpose(1, 2)), largest(input.transpose(1, 2) @ grad)
        # PyTorch's scale is another operation, before whose product the gradient is rounded.
        return {name: (0.0, abs(scale) * size) for name, size in zip(("input", "mat2"), sizes)}

    def theirs(input, mat2):
        return torch.bmm(input, mat2) * scale

    check_gradients(lambda input, mat2: kernels.bmm(input, mat2, scale=scale), theirs, {"input": a, "mat2": b}, terms, **how)


def operands(M, N, K, dtype, activation=None, leading=(), at=("contiguous",) * 4, seed=0) -> dict[str, torch.Tensor]:
    """Arguments of `linear`, of which a relu's are on a grid."""
    grid = 0.125 if activation == "relu" else None
    return {
        "x": tensor((*leading, M, K), dtype, at[0], seed=seed, grid=grid),
        "weight": tensor((N, K), dtype, at[1], seed=seed + 1, scale=0.25, grid=grid),
        "bias": tensor((N,), dtype, at[2], seed=seed + 2, grid=grid),
        "residual": tensor((*leading, M, N), dtype, at[3], seed=seed + 3),
        "activation": activation,
    }


@contextlib.contextmanager
def blocks(splits: int = 1, **sizes: int) -> Iterator[None]:
    """Small tiles in both kernels, and the rows of a weight's gradient in so many shares."""
    linear = runtime.Config(SMALL | {"GROUP_M": 2} | sizes, 4, 2)
    patch = unittest.mock.patch.object
    with forced_config(LINEAR, linear), patch(LINEAR, "_splits", lambda *_: splits):
        yield


@contextlib.contextmanager
def descriptors() -> Iterator[list]:
    """Operands through descriptors, in the interpreter too. Gives the list of the blocks that they were made for."""
    made = []

    def note(*arguments):
        made.append(arguments[3])
        return descriptor(*arguments)

    descriptor = LINEAR.TensorDescriptor
    with contextlib.ExitStack() as stack:
        stack.enter_context(unittest.mock.patch.object(LINEAR, "TensorDescriptor", note))
        if runtime.INTERPRETER:
            stack.enter_context(unittest.mock.patch.object(LINEAR, "capability", lambda: 90))
        yield made


# ---- drawn shapes ----


@given(
    leading=st.sampled_from([(), (0,), (1,), (2, 3)]), M=sizes, N=maybe_zero, K=maybe_zero, at=st.tuples(*[layouts] * 5),
    activation=st.sampled_from(list(ACTIVATIONS)), given_=st.tuples(st.booleans(), st.booleans()), seed=seeds,
)  # fmt: skip
@example(leading=(), M=1, N=1, K=1, at=("contiguous",) * 5, activation="gelu", given_=(True, True), seed=0)
@example(leading=(), M=600, N=40, K=30, at=("contiguous",) * 5, activation=None, given_=(True, True), seed=0)
@example(leading=(2,), M=20, N=300, K=270, at=("contiguous",) * 5, activation="gelu_tanh", given_=(True, False), seed=0)
def test_linear_drawn(dtype, leading, M, N, K, at, activation, given_, seed):
    inputs = operands(M, N, K, dtype, activation, leading, at, seed)
    inputs["bias"], inputs["residual"] = inputs["bias"] if given_[0] else None, inputs["residual"] if given_[1] else None
    check_linear(**inputs, at=at[4], seed=seed)


@given(
    batch=small, M=maybe_zero, N=sizes, K=maybe_zero, at=st.tuples(layouts, layouts, layouts),
    scale=st.sampled_from([1.0, 0.125, -4.0, 0.0]), seed=seeds,
)  # fmt: skip
@example(batch=2, M=270, N=300, K=20, at=("contiguous",) * 3, scale=1.0, seed=0)
def test_bmm_drawn(dtype, batch, M, N, K, at, scale, seed):
    a, b = tensor((batch, M, K), dtype, at[0], seed=seed), tensor((batch, K, N), dtype, at[1], seed=seed + 1)
    check_bmm(a, b, scale, at=at[2], seed=seed)


# ---- given shapes and layouts ----


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(dtype, activation):
    inputs = operands(37, 45, 29, dtype, activation)
    check_linear(**inputs)
    check_linear(**inputs | {"bias": None, "residual": None})
    check_linear(**operands(1, 45, 29, dtype, activation))
    with blocks():
        check_linear(**inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype, layout):
    # One tensor at a time lies so, the incoming gradient last, over several steps of every sum.
    for index in range(5):
        at = ["contiguous"] * 5
        at[index] = layout
        with blocks(splits=2):
            check_linear(**operands(33, 18, 20, dtype, "gelu" if index == 2 else None, at=tuple(at)), at=at[4])
    with blocks(splits=2):
        check_linear(**operands(33, 18, 20, dtype, "gelu"), at=layout)
    for at in ((layout, "contiguous", "contiguous"), ("contiguous", layout, "contiguous"), ("contiguous", "contiguous", layout)):
        with forced_config(BMM, runtime.Config(SMALL, 4, 2)):
            check_bmm(tensor((3, 17, 20), dtype, at[0]), tensor((3, 20, 18), dtype, at[1], seed=1), 0.5, at=at[2])


def test_linear_of_more_dimensions(dtype):
    for leading in ((2, 3), (1, 5), (4,)):
        check_linear(**operands(7, 12, 9, dtype, "gelu", leading), at="transposed")
    x, weight = tensor((9,), dtype), tensor((12, 9), dtype, seed=1)
    check_linear(x, weight, tensor((12,), dtype, seed=2), "gelu", tensor((12,), dtype, seed=3))


@pytest.mark.parametrize("M, N, K", [(0, 5, 3), (4, 0, 3), (4, 5, 0), (0, 0, 3), (0, 5, 0)])
def test_zero_size(dtype, M, N, K):
    for activation in (None, "gelu"):
        check_linear(**operands(M, N, K, dtype, activation))
        check_linear(**operands(M, N, K, dtype, activation, (2, 0)))
    check_bmm(tensor((2, M, K), dtype), tensor((2, K, N), dtype))
    check_bmm(tensor((0, M, K), dtype), tensor((0, K, N), dtype))


def test_gradients_that_come_from_a_sum_or_a_transpose(dtype):
    """As autograd makes them: `sum` sends back one number, expanded; `transpose` sends back a transposed tensor."""
    x, weight, mix = tensor((6, 9), dtype), tensor((5, 9), dtype, seed=1, scale=0.25), tensor((5, 6), dtype, seed=2)
    pairs = (
        (lambda x, w: kernels.linear(x, w), lambda x, w: F.linear(x, w)),
        (lambda x, w: kernels.linear(x, w, activation="gelu"), lambda x, w: F.gelu(F.linear(x, w))),
        (lambda x, w: kernels.bmm(x[None], w.t()[None])[0], lambda x, w: x @ w.t()),
    )
    for reduce in (lambda result: result.sum(), lambda result: (result.t() * mix.to(result.dtype)).sum()):
        for ours, theirs in pairs:
            found, peers, references = (
                differentiate(compose(reduce, f), dict(zip("xw", inputs)), [inputs[0].new_ones(())], ["x", "w"])
                for f, inputs in ((ours, (x, weight)), (theirs, (x, weight)), (theirs, (x.double(), weight.double())))
            )
            for result, reference, peer in zip(found, references, peers):
                # Nothing here is larger than about 4, or is a sum of more than 9 products of such.
                assert_close_to_float64(result, reference, peer, rounded=10.0, intermediate=100.0)


SOME = [["input"], ["weight"], ["bias"], ["residual"], ["input", "bias"], ["weight", "bias"], ["input", "weight"]]


@pytest.mark.parametrize("needed", [*SOME, ["weight", "residual"]], ids="+".join)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_linear_with_some_of_it_frozen(dtype, activation, needed):
    inputs = operands(33, 35, 20, dtype, activation)
    check_linear(**inputs, needed=needed)
    if "residual" not in needed:
        absent = {"residual": None} | ({} if "bias" in needed else {"bias": None})
        check_linear(**inputs | absent, needed=needed)


def test_bmm_with_one_side_frozen(dtype):
    for needed in (["input"], ["mat2"]):
        check_bmm(tensor((2, 20, 9), dtype), tensor((2, 9, 31), dtype, seed=1), 0.5, needed=needed)


# ---- small blocks: many programs, many steps, a partial one at every edge ----


@given(
    M=st.integers(1, 90), N=sizes, K=sizes, splits=st.integers(1, 7), activation=st.sampled_from([None, "gelu"]), at=layouts,
    seed=seeds,
)  # fmt: skip
@example(M=90, N=33, K=50, splits=3, activation=None, at="contiguous", seed=0)
@example(M=20, N=17, K=15, splits=5, activation="gelu", at="contiguous", seed=0)
def test_linear_small_blocks(dtype, M, N, K, splits, activation, at, seed):
    # Of 20 rows in blocks of 16, five shares are one whole, one partial, and three with nothing in them.
    assume(M * N * K <= 150_000)
    with blocks(splits):
        check_linear(**operands(M, N, K, dtype, activation, seed=seed), at=at, seed=seed)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 64, 1000])
@pytest.mark.parametrize("splits", [1, 2, 4, 16])
def test_weight_gradient_of_many_rows(dtype, rows, splits):
    with blocks(splits):
        check_linear(**operands(rows, 20, 18, dtype), needed=["weight", "bias"])


def test_weight_gradient_is_the_same_every_time(dtype):
    x, grad = tensor((500, 20), dtype), tensor((500, 18), dtype, seed=1)
    with blocks(5):
        first, second = (LINEAR._linear_parameters_backward(grad, x, True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_sums_over_rows_are_kept_in_float32():
    # In float16, 2048 + 0.5, which is what a step of 16 rows adds, is 2048 again.
    x, weight, bias = (torch.ones(shape, dtype=torch.float16, device=runtime.DEVICE) for shape in ((4097, 1), (1, 1), (1,)))
    grad = torch.full_like(x, 1 / 32)
    grad[0] = 2048
    for splits in (1, 3):
        with blocks(splits):
            inputs = {"input": x, "weight": weight, "bias": bias}
            of_weight, of_bias = differentiate(kernels.linear, inputs, [grad], ["weight", "bias"])
        assert of_weight.item() == of_bias.item() == 2048 + 4096 / 32


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_linear_through_descriptors(dtype, activation, splits):
    if not runtime.INTERPRETER and runtime.capability() < 90:
        pytest.skip("no tensor memory accelerator")
    with descriptors() as made, blocks(splits, BLOCK_N=32, BLOCK_K=64):
        check_linear(**operands(200, 40, 72, dtype, activation))
    # Forward; dz @ weight, whose second operand lies transposed; dz.T @ input, of which both do.
    assert made == [[16, 64], [32, 64], [16, 64], [64, 32], [64, 16], [64, 32]]
    with descriptors() as made, blocks(splits):
        check_linear(**operands(40, 37, 29, dtype, activation))  # rows that are not 16-byte aligned
        assert made == []


def test_bmm_small_blocks(dtype):
    for M, N, K in ((33, 40, 70), (16, 16, 16), (1, 1, 50), (65, 1, 33)):
        with forced_config(BMM, runtime.Config({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16}, 4, 2)):
            check_bmm(tensor((3, M, K), dtype), tensor((3, K, N), dtype, seed=1), 0.5)
        with forced_config(BMM, BMM.CONFIG):
            check_bmm(tensor((3, M, K), dtype), tensor((3, K, N), dtype, "transposed", seed=1))


def test_splits(monkeypatch):
    monkeypatch.setattr(LINEAR, "INTERPRETER", False)
    monkeypatch.setattr(LINEAR, "multiprocessors", lambda: 132)
    for tiles in (1, 36, 108, 131, 132, 133, 144, 1000, 100_000):
        for rows in (1, 63, 197, 1576, 50_432, 10_000_000):
            splits = LINEAR._splits(tiles, rows, 64)
            assert 1 <= splits <= 16 and splits <= max(1, -(-rows // 64))
    assert LINEAR._splits(36, 197, 64) == 1  # too few rows to be worth a second launch
    # All rows of 256 images, tiles of 128 x 128: the programs come round in turns that are nearly full.
    for tiles in (36, 108, 144):
        programs = tiles * LINEAR._splits(tiles, 50_432, 64)
        assert programs / (math.ceil(programs / 132) * 132) > 0.8
    assert LINEAR._splits(132, 50_432, 64) == 1


# ---- what autograd asks for ----

SAMPLES = {
    "linear": (lambda x, w, b: kernels.linear(x, w, b), [(3, 4), (5, 4), (5,)]),
    "linear gelu": (lambda x, w, b, r: kernels.linear(x, w, b, activation="gelu", residual=r), [(3, 4), (5, 4), (5,), (3, 5)]),
    "linear gelu tanh": (lambda x, w, b: kernels.linear(x, w, b, activation="gelu_tanh"), [(3, 4), (5, 4), (5,)]),
    "bmm": (lambda a, b: kernels.bmm(a, b, scale=0.5), [(2, 3, 4), (2, 4, 2)]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_gradcheck(name):
    """PyTorch's own check, as in test_gradients.py: a step of 0.01, and an error of 1e-3 where a wrong one makes 1e-2."""
    function, shapes = SAMPLES[name]
    inputs = [tensor(shape, torch.float32, seed=20 + i, scale=0.7).double().requires_grad_() for i, shape in enumerate(shapes)]
    single = lambda *inputs: function(*(value.float() for value in inputs)).double()
    assert torch.autograd.gradcheck(single, inputs, eps=1e-2, atol=1e-3, rtol=1e-3, fast_mode=False)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_second_derivative_is_refused(name):
    function, shapes = SAMPLES[name]
    inputs = [tensor(shape, torch.float32, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad(function(*inputs).square().sum(), inputs[0], create_graph=True)


def test_the_residuals_gradient_has_memory_of_its_own():
    """As in F.linear(x, w) + r: gradients that are added up must not be added into the one that came in."""
    x, weight = tensor((3, 4), torch.float32), tensor((5, 4), torch.float32, seed=1)
    r, s = (tensor((3, 5), torch.float32, seed=i).requires_grad_() for i in (2, 3))
    incoming = torch.ones(3, 5, device=runtime.DEVICE)
    for _ in range(3):
        kernels.linear(x, weight, residual=r).backward(incoming)
    assert bool((incoming == 1).all()) and bool((r.grad == 3).all())
    r.grad = None
    ((kernels.linear(x, weight, residual=r) + kernels.linear(x, weight, residual=s)) * 2).sum().backward()
    assert r.grad.data_ptr() != s.grad.data_ptr() and torch.equal(r.grad, s.grad)
    out = kernels.linear(x.view(1, 3, 4), weight, residual=r.view(1, 3, 5))
    out += 1  # the result is no view, which autograd would refuse to change
    out.sum().backward()


@pytest.mark.parametrize("name", SAMPLES)
def test_gradients_add_up_over_two_backward_passes(name):
    function, shapes = SAMPLES[name]
    inputs = [tensor(shape, torch.float32, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    loss = lambda: (function(*inputs) * torch.linspace(1, 2, function(*inputs).shape[-1], device=runtime.DEVICE)).sum()
    loss().backward()
    once = [value.grad.clone() for value in inputs]
    kept = loss()
    kept.backward(retain_graph=True)  # the same graph twice: nothing that it keeps is used up
    kept.backward()
    for value, first in zip(inputs, once):
        assert first.abs().max() > 0
        torch.testing.assert_close(value.grad, 3 * first)


def test_an_operand_used_twice_gets_both_gradients():
    x, weight = tensor((4, 4), torch.float32).requires_grad_(), tensor((4, 4), torch.float32, seed=1)
    kernels.linear(x, weight, residual=x).sum().backward()  # as a residual, the incoming gradient itself
    torch.testing.assert_close(x.grad, 1 + weight.sum(0).expand(4, 4))
    x.grad = None
    kernels.linear(x, x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach().sum(0).expand(4, 4))


@contextlib.contextmanager
def counted(module, *names: str) -> Iterator[dict[str, unittest.mock.Mock]]:
    """How often these launchers of `module` are called."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(unittest.mock.patch.object(module, name, wraps=getattr(module, name))) for name in names}


STEPS = ("_linear", "_linear_parameters_backward", "sum_to_size", "_gelu_backward")


@pytest.mark.parametrize(
    "needed, expected",
    [
        ("input", (2, 0, 0, 1)), ("weight", (1, 1, 0, 1)), ("bias", (1, 0, 1, 1)), ("residual", (1, 0, 0, 0)),
        ("", (1, 0, 0, 0)),
    ],
)  # fmt: skip
def test_nothing_is_computed_for_what_is_frozen(needed, expected):
    inputs = operands(6, 9, 5, torch.float32, "gelu")
    inputs["input"] = inputs.pop("x")
    if needed:
        inputs[needed] = inputs[needed].clone().requires_grad_()
    saved = []
    with counted(LINEAR, *STEPS) as calls:
        with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value.shape) or value, lambda value: value):
            result = kernels.linear(**inputs)
        if needed:
            result.sum().backward()
    assert tuple(calls[name].call_count for name in STEPS) == expected
    assert all((value.grad is not None) == (name == needed) for name, value in inputs.items() if name != "activation")
    kept = {"input": [(9, 5), (6, 9)], "weight": [(6, 5), (6, 9)], "bias": [(6, 9)]}
    assert saved == [torch.Size(shape) for shape in kept.get(needed, [])]


def test_nothing_is_computed_for_the_side_of_bmm_that_is_frozen():
    a, b = tensor((2, 3, 4), torch.float32), tensor((2, 4, 5), torch.float32, seed=1)
    for inputs in ((a.clone().requires_grad_(), b), (a, b.clone().requires_grad_())):
        with counted(BMM, "_bmm") as calls:
            kernels.bmm(*inputs).sum().backward()
        assert calls["_bmm"].call_count == 2
    assert a.grad is None and b.grad is None


def test_what_is_kept_for_the_backward_pass():
    """Memory decides what batch a training run can have: the arguments, and with an activation what it was given."""
    x, weight, bias = (tensor(s, torch.float32, seed=i).requires_grad_() for i, s in enumerate(((64, 32), (48, 32), (48,))))
    for activation, kept in ((None, 0), ("relu", 1), ("gelu", 1), ("gelu_tanh", 1)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda value, to=saved: to.append(value) or value, lambda value: value):
            kernels.linear(x, weight, bias, activation=activation)
        own = [value for value in saved if value.data_ptr() not in (x.data_ptr(), weight.data_ptr())]
        assert len(saved) == 2 + kept and [tuple(value.shape) for value in own] == kept * [(64, 48)]


# ---- autocast ----


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autocast_with_a_float32_residual(activation):
    """The sum with a residual in float32 is in float32, as PyTorch's is, and so is the gradient that reaches the residual."""
    inputs = [value for value in operands(6, 9, 5, torch.float32, activation).values() if isinstance(value, torch.Tensor)]
    grad = tensor((6, 9), torch.float32, seed=9)
    ours = lambda x, weight, bias, residual: kernels.linear(x, weight, bias, activation=activation, residual=residual)
    theirs = lambda x, weight, bias, residual: torch_linear(x, weight, bias, activation, residual)
    for half in runtime.DTYPES[1:]:
        results = []
        for function in (ours, theirs):
            leaves = [value.clone().requires_grad_() for value in inputs]
            with torch.autocast(runtime.DEVICE.type, half):
                result = function(*leaves)
            results.append([result.detach(), *torch.autograd.grad(result, leaves, grad)])
        for found, expected in zip(*results):
            assert found.dtype == expected.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
        assert torch.equal(results[0][-1], grad)


@pytest.mark.skipif(not runtime.INTERPRETER, reason="a GPU's kernels take bfloat16")
def test_autocast_to_a_type_that_the_interpreter_has_not_is_refused():
    x = tensor((2, 3), torch.float32)
    with torch.autocast("cpu"):  # to bfloat16
        with pytest.raises(TypeError, match=r"linear: input has type bfloat16.*interpreter"):
            kernels.linear(x, x)
        with pytest.raises(TypeError, match=r"bmm: input has type bfloat16.*interpreter"):
            kernels.bmm(x[None], x.t()[None])


# ---- two streams: of weight and bias ----


@on_gpu
@pytest.mark.parametrize("captured", [False, True], ids=["eager", "in a CUDA graph"])
def test_weight_and_bias_side_by_side(captured):
    """What follows in the caller's stream, here what overwrites their input, waits for both."""
    x = torch.ones((50_000, 64), dtype=torch.float16, device=runtime.DEVICE)
    given = torch.zeros((3, 50_000, 512), dtype=torch.float16, device=runtime.DEVICE)
    for index in range(3):
        given[index, ::1000] = index + 1
    grad = given[0].clone()

    def step():
        sums = LINEAR._linear_parameters_backward(grad, x, True)
        grad.fill_(float("nan"))
        return sums

    if captured:
        step()  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
    for index in range(3):
        grad.copy_(given[index])
        if captured:
            graph.replay()
        else:
            results = step()
        assert all(bool((sums == 50 * (index + 1)).all()) for sums in results)


# ---- past 2^31 elements, and a real size ----


@on_gpu
@pytest.mark.memory(15)
def test_past_two_to_the_31_elements():
    # More rows than fit 2^31 elements: shares of the rows begin past it. Ones, whose sums float32 holds exactly.
    rows, columns = 2**31 // 512 + 1000, 512
    x = torch.ones((rows, columns), dtype=torch.float16, device=runtime.DEVICE)
    grad = torch.zeros((rows, 16), dtype=torch.float16, device=runtime.DEVICE)
    grad[-2000:] = 1.0
    for sums in LINEAR._linear_parameters_backward(grad, x, True):
        assert bool((sums == 2000).all())
    grad = torch.zeros((rows, columns), dtype=torch.float16, device=runtime.DEVICE)
    grad[-1000:] = 1.0
    weight = torch.ones((columns, 16), dtype=torch.float16, device=runtime.DEVICE)
    x = x[:, :16]
    of_x, of_weight = differentiate(kernels.linear, {"input": x, "weight": weight}, [grad], ["input", "weight"])
    assert bool((of_x[-1000:] == columns).all()) and bool((of_x[:-1000] == 0).all()) and bool((of_weight == 1000).all())


@on_gpu
@pytest.mark.parametrize("batch", [1, 8])
def test_vit_base_shapes(dtype, batch):
    for N, K, activation in ((2304, 768, None), (768, 768, None), (3072, 768, "gelu"), (768, 3072, None)):
        check_linear(**operands(197, N, K, dtype, activation, (batch,)))
    scores, value = tensor((12 * batch, 197, 197), dtype), tensor((12 * batch, 197, 64), dtype, seed=1)
    check_bmm(scores, value)


def test_a_gradient_that_is_no_number_stays_where_it_is(dtype):
    x, weight = tensor((40, 20), dtype), tensor((18, 20), dtype, seed=1)
    grad = tensor((40, 18), dtype, seed=2)
    grad[33, 7] = float("nan")
    with blocks(3):
        of_x, of_weight = call(
            lambda x, weight, grad: differentiate(kernels.linear, {"input": x, "weight": weight}, [grad], ["input", "weight"]),
            x, weight, grad,
        )  # fmt: skip
    assert of_x.isnan().nonzero()[:, 0].unique().tolist() == [33]
    assert of_weight.isnan().nonzero()[:, 0].unique().tolist() == [7]
