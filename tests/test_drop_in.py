"""A function of this package in the place of PyTorch's: called with the same arguments, and wherever PyTorch's can be called.

What the values have to be is in test_kernels.py and test_gradients.py. Here: types, strides, keywords, refusals by name;
torch.no_grad, torch.autocast, torch.compile without a graph break, torch.export; modules that train.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hostile import LAYOUTS, tensor
from tolerance import assert_close_to_float64, largest
from torch import nn

import vitcourse.fused  # noqa: F401  (registers norm_linear, which vitcourse.kernels does not import)
from vitcourse import kernels, layers, runtime

DEVICE = runtime.DEVICE
Q = (1, 2, 6, 8)
CLASSES = torch.tensor([3, 0, 1], device=DEVICE)


def torch_patch_embed(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    class_token: torch.Tensor | None = None,
    position_embedding: torch.Tensor | None = None,
) -> torch.Tensor:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        tokens = F.conv2d(input, weight, bias, stride=tuple(weight.shape[2:])).flatten(2).transpose(1, 2)
    if class_token is not None:
        tokens = torch.cat([class_token.expand(len(input), 1, -1), tokens], 1)
    return tokens if position_embedding is None else tokens + position_embedding


# Function, PyTorch's, shapes of the tensors by name, and the ways to give the rest: positional arguments after the tensors, or
# a dict. Tensors are given once by place and once by name.
CALLS = [
    (kernels.add, torch.add, {"input": (3, 4), "other": (4,)}, [()]),
    (kernels.add, torch.add, {"input": (), "other": (2, 3)}, [()]),
    (kernels.relu, F.relu, {"input": (3, 4)}, [(), (False,), {"inplace": False}]),
    (kernels.gelu, F.gelu, {"input": (3, 4)}, [(), {"approximate": "none"}, {"approximate": "tanh"}]),
    (kernels.softmax, torch.softmax, {"input": (3, 4)},
     [(0,), (-1, None), (1, torch.float32), {"dim": -1}, {"dim": 0, "dtype": None}, {"dim": 1, "dtype": torch.float16}]),
    (kernels.softmax, F.softmax, {"input": (2, 3, 4)}, [(1,), {"dim": 1}, {"dim": -2, "dtype": torch.float32}]),
    (kernels.layer_norm, F.layer_norm, {"input": (2, 3, 4)},
     [((4,),), ([3, 4],), (torch.Size([4]), None, None, 0.1), {"normalized_shape": [4]}, {"normalized_shape": (3, 4), "eps": 0.1},
      {"normalized_shape": (4,), "weight": None, "bias": None}]),
    (kernels.cross_entropy, F.cross_entropy, {"input": (3, 4)},
     [(CLASSES,), (CLASSES, None, None, 1), (CLASSES, None, None, -100, None, "sum", 0.1), {"target": CLASSES},
      {"target": CLASSES, "reduction": "none", "ignore_index": 3, "weight": None}]),
    (kernels.cross_entropy, F.cross_entropy, {"input": (2, 4, 3)}, [(CLASSES.expand(2, 3),), {"target": CLASSES.expand(2, 3)}]),
    # Of what is dropped, two generators have two opinions.
    (kernels.dropout, F.dropout, {"input": (3, 4)},
     [(0.0,), (0.5, False), (1.0, True, False), {"p": 0.0}, {"p": 0.3, "training": False, "inplace": False}]),
    (kernels.linear, F.linear, {"input": (2, 3, 4), "weight": (5, 4), "bias": (5,)}, [()]),
    (kernels.linear, F.linear, {"input": (4,), "weight": (5, 4)}, [(), (None,), {"bias": None}]),
    (kernels.bmm, torch.bmm, {"input": (2, 3, 4), "mat2": (2, 4, 5)}, [()]),
    (kernels.scaled_dot_product_attention, F.scaled_dot_product_attention, {"query": Q, "key": Q, "value": Q},
     [(), (None, 0.0, True), {"is_causal": True}, {"attn_mask": None, "dropout_p": 0.0, "scale": 0.3}]),
    (kernels.patch_embed, torch_patch_embed, {"input": (2, 3, 4, 6), "weight": (5, 3, 2, 2), "bias": (5,)}, [()]),
]  # fmt: skip
WITH_GRADIENTS = (kernels.add, kernels.relu, kernels.gelu, kernels.softmax, kernels.layer_norm)


def compare(ours: Callable, theirs: Callable, *arguments: object, **named: object) -> None:
    result, expected = ours(*arguments, **named), theirs(*arguments, **named)
    assert result.dtype == expected.dtype and result.device == expected.device
    # Two right results may round apart, and a sum that cancels by what its terms are rounded to.
    eps = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result, expected, rtol=2 * eps, atol=max(1e-5, eps * largest(expected)))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
def test_the_same_arguments_give_the_same_result(dtype, call):
    ours, theirs, shapes, ways = call
    tensors = {name: tensor(shape, dtype, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    for way in ways:
        if isinstance(way, dict):
            compare(ours, theirs, *tensors.values(), **way)
            compare(ours, theirs, **tensors, **way)
        else:
            compare(ours, theirs, *tensors.values(), *way)
    if not ways[0]:
        compare(ours, theirs, **tensors)


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_takes_weight_and_bias_in_every_way(dtype, weight, bias):
    x = tensor((2, 3, 4), dtype)
    weight, bias = (tensor((4,), dtype, seed=1 + i) if given else None for i, given in enumerate((weight, bias)))
    compare(kernels.layer_norm, F.layer_norm, x, [4], weight, bias)
    compare(kernels.layer_norm, F.layer_norm, x, [4], weight, bias, 0.1)
    compare(kernels.layer_norm, F.layer_norm, x, (4,), bias=bias, weight=weight, eps=0.1)


def test_every_public_function_is_called_here():
    assert {ours.__name__ for ours, *_ in CALLS} == set(kernels.__all__)


@pytest.mark.parametrize("first", runtime.DTYPES, ids=str)
@pytest.mark.parametrize("second", runtime.DTYPES, ids=str)
def test_two_types_promote_as_in_pytorch(first, second):
    for a in ((2, 3), (3,), (), (0,)):
        for b in ((2, 3), (1,), ()):
            if a != (0,) or b != (2, 3):
                compare(kernels.add, torch.add, tensor(a, first), tensor(b, second, seed=1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_results(dtype, layout):
    for shape in ((3, 5), (2, 3, 4), (7,), (5, 2, 3, 4)):
        x = tensor(shape, dtype, layout)
        for ours, theirs in ((kernels.gelu, F.gelu), (kernels.relu, F.relu)):
            assert ours(x).stride() == theirs(x).stride()
        assert kernels.add(x, x).is_contiguous()
        assert kernels.softmax(x, -1).is_contiguous()
        assert kernels.layer_norm(x, shape[-1:]).is_contiguous()
    images = tensor((2, 3, 4, 5), dtype).contiguous(memory_format=torch.channels_last)
    assert kernels.relu(images).stride() == F.relu(images).stride()
    assert kernels.gelu(images).stride() == F.gelu(images).stride()


# ---- refusals ----

X = torch.ones(2, 3, device=DEVICE)
UNSUPPORTED = [
    (kernels.add, (X, X), {"alpha": 2}, "alpha"),
    (kernels.add, (X, X), {"out": X}, "out"),
    (kernels.add, (X, 1.0), {}, "other"),
    (kernels.cross_entropy, (X, X), {}, "target"),
    (kernels.cross_entropy, (X, CLASSES[:2], X[0]), {}, "weight"),
    (kernels.dropout, (X,), {"inplace": True}, "inplace"),
    (kernels.relu, (X,), {"inplace": True}, "inplace"),
    (kernels.gelu, (X,), {"approximate": "erf"}, "approximate"),
    (kernels.softmax, (X,), {}, "dim"),
    (kernels.softmax, (X, None), {}, "dim"),
    (kernels.softmax, (X, -1), {"dtype": torch.float64}, "dtype"),
    (kernels.softmax, (X, -1), {"out": X}, "out"),
    (kernels.layer_norm, (X, 3), {}, "normalized_shape"),
    (kernels.layer_norm, (X, (3,)), {"weight": X[0].double()}, "weight"),
    (kernels.linear, (X, X), {"out": X}, "out"),
    (kernels.bmm, (X[None], X[None]), {"out_dtype": torch.float32}, "out_dtype"),
    (kernels.scaled_dot_product_attention, (X[None, None],) * 3, {"attn_mask": X}, "attn_mask"),
    (kernels.scaled_dot_product_attention, (X[None, None],) * 3, {"dropout_p": 0.5}, "dropout_p"),
    (kernels.scaled_dot_product_attention, (X[None, None],) * 3, {"enable_gqa": True}, "enable_gqa"),
    (kernels.patch_embed, (X[None, None], X[None, None]), {"padding": 1}, "padding"),
]


@pytest.mark.parametrize("function, arguments, named, word", UNSUPPORTED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_not_supported_is_refused_by_name(function, arguments, named, word):
    with pytest.raises((TypeError, ValueError), match=rf"{function.__name__}.*\b{word}\b"):
        function(*arguments, **named)


def test_no_argument_is_swallowed():
    for name in kernels.__all__:
        kinds = {parameter.kind for parameter in inspect.signature(getattr(kernels, name)).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}, name


# ---- where a gradient is and is not wanted ----

# Of tensors to a result, or to a tuple of them; PyTorch's way to the same; shapes.
SAMPLES = {
    "add": (kernels.add, torch.add, [(4, 6), (6,)]),
    "cross entropy": (
        lambda x: kernels.cross_entropy(x, x.detach().argmin(1)), lambda x: F.cross_entropy(x, x.detach().argmin(1)), [(4, 6)],
    ),
    "gelu": (kernels.gelu, F.gelu, [(4, 6)]),
    "gelu tanh": (lambda x: kernels.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh"), [(4, 6)]),
    "relu": (kernels.relu, F.relu, [(4, 6)]),
    "softmax": (lambda x: kernels.softmax(x, -1), lambda x: F.softmax(x, -1), [(4, 6)]),
    "softmax over rows": (lambda x: kernels.softmax(x, 0), lambda x: F.softmax(x, 0), [(4, 6)]),
    "softmax to float32": (
        lambda x: kernels.softmax(x, -1, torch.float32), lambda x: F.softmax(x, -1, dtype=torch.float32), [(4, 6)],
    ),
    "causal softmax": (
        lambda x: kernels.softmax(x, -1, causal=True),
        lambda x: F.softmax(x.masked_fill(torch.ones_like(x, dtype=torch.bool).triu(1), -float("inf")), -1), [(4, 6)],
    ),
    "layer norm": (
        lambda x, w, b: kernels.layer_norm(x, w.shape, w, b), lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        [(4, 6), (6,), (6,)],
    ),
    "layer norm of two dimensions": (
        lambda x, w, b: kernels.layer_norm(x, w.shape, w, b), lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        [(4, 2, 3), (2, 3), (2, 3)],
    ),
    "layer norm of a sum": (
        lambda x, w, b, r: kernels.layer_norm(x, w.shape, w, b, residual=r),
        lambda x, w, b, r: (F.layer_norm(x + r, w.shape, w, b), x + r), [(4, 6), (6,), (6,), (4, 6)],
    ),
    "linear": (lambda x, w, b: kernels.linear(x, w, b), lambda x, w, b: F.linear(x, w, b), [(2, 4, 6), (3, 6), (3,)]),
    "linear, gelu and a sum": (
        lambda x, w, b, r: kernels.linear(x, w, b, activation="gelu", residual=r),
        lambda x, w, b, r: F.gelu(F.linear(x, w, b)) + r, [(4, 6), (3, 6), (3,), (4, 3)],
    ),
    "linear and relu": (
        lambda x, w: kernels.linear(x, w, activation="relu"), lambda x, w: F.relu(F.linear(x, w)), [(4, 6), (3, 6)],
    ),
    "bmm": (lambda a, b: kernels.bmm(a, b, scale=0.5), lambda a, b: torch.bmm(a, b) * 0.5, [(2, 4, 6), (2, 6, 3)]),
    "attention": (kernels.scaled_dot_product_attention, F.scaled_dot_product_attention, [(2, 3, 6, 8)] * 3),
    "causal attention": (
        lambda q, k, v: kernels.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5),
        [(2, 3, 6, 8), (2, 3, 5, 8), (2, 3, 5, 4)],
    ),
    "patch embed": (kernels.patch_embed, torch_patch_embed, [(2, 3, 5, 6), (4, 3, 2, 3), (4,)]),
    # Two by three patches, with a class token seven tokens, whatever all sizes are multiplied by.
    "patch embed, class token and positions": (
        lambda x, w, c, p: kernels.patch_embed(x, w, class_token=c, position_embedding=p[:7]),
        lambda x, w, c, p: torch_patch_embed(x, w, class_token=c, position_embedding=p[:7]),
        [(2, 3, 4, 6), (4, 3, 2, 2), (4,), (7, 4)],
    ),
}  # fmt: skip


def several(results: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def sample(shapes: list, dtype: torch.dtype = torch.float32, *, grad: bool = True) -> list[torch.Tensor]:
    return [tensor(shape, dtype, seed=30 + i).requires_grad_(grad) for i, shape in enumerate(shapes)]


def with_gradients(function: Callable, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Results, and the inputs' gradients of a sum that weighs every element of them differently."""
    results = several(function(*inputs))
    loss = sum(
        (result.float() * torch.linspace(1, 2, result.numel(), device=DEVICE).view(result.shape)).sum() for result in results
    )
    return [*results, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("name", SAMPLES)
def test_no_graph_where_none_is_wanted(dtype, name):
    function, _, shapes = SAMPLES[name]
    inputs = sample(shapes, dtype)
    assert all(result.requires_grad and result.grad_fn is not None for result in several(function(*inputs)))
    expected = [result.detach() for result in several(function(*inputs))]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            results = several(function(*inputs))
        for result, with_graph in zip(results, expected):
            assert not result.requires_grad and result.grad_fn is None
            assert torch.equal(result, with_graph)
        assert all(result.is_inference() == isinstance(context, torch.inference_mode) for result in results)
    results = several(function(*sample(shapes, dtype, grad=False)))  # nothing requires a gradient
    assert not any(result.requires_grad for result in results)


# ---- autocast ----

HALVES = [dtype for dtype in runtime.DTYPES if dtype != torch.float32]


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", [name for name in SAMPLES if not name.startswith("layer norm")])
def test_autocast_gives_pytorchs_types(half, name):
    """On the device at hand: PyTorch's autocast on a GPU computes softmax and layer norm in float32, and on a CPU does not."""
    ours, theirs, shapes = SAMPLES[name]
    for dtype in (half, torch.float32):
        inputs = sample(shapes, dtype)
        with torch.autocast(DEVICE.type, half):
            found, expected = with_gradients(ours, inputs), with_gradients(theirs, inputs)
        assert [value.dtype for value in found] == [value.dtype for value in expected]
        for value, other in zip(found, expected):
            torch.testing.assert_close(value, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("dtype_of_input", ["half", "float32"])
def test_autocast_of_layer_norm(half, dtype_of_input):
    # The usual case: parameters in float32, an input from a matrix product in half precision.
    x = tensor((4, 6), half if dtype_of_input == "half" else torch.float32).requires_grad_()
    weight, bias = (tensor((6,), torch.float32, seed=1 + i).requires_grad_() for i in range(2))
    residual = tensor((4, 6), x.dtype, seed=3)
    with torch.autocast(DEVICE.type, half):
        found = with_gradients(lambda x, w, b: kernels.layer_norm(x, (6,), w, b), [x, weight, bias])
        expected = with_gradients(lambda x, w, b: F.layer_norm(x, (6,), w, b), [x, weight, bias])
        result, total = kernels.layer_norm(x, (6,), weight, bias, residual=residual)
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    for value, other in zip(found, expected):
        torch.testing.assert_close(value, other, rtol=1e-2, atol=1e-2)
    assert (result.dtype, total.dtype) == (expected[0].dtype, x.dtype)


def model_of(source) -> nn.Sequential:
    """Three linear layers, and what comes between and after them, from `source`: torch.nn, or our layers."""
    torch.manual_seed(0)
    modules = [
        source.Linear(10, 32), source.LayerNorm(32), source.GELU(), source.Linear(32, 16), source.ReLU(),
        source.LayerNorm(16, eps=1e-6), source.GELU(approximate="tanh"), source.Linear(16, 8), source.Softmax(dim=-1),
    ]  # fmt: skip
    model = nn.Sequential(*modules).to(DEVICE)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def loss_of(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    probabilities = model(x)
    return -probabilities.gather(1, labels[:, None]).to(torch.promote_types(probabilities.dtype, torch.float32)).log().mean()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x = tensor((40, 10), torch.float32)
    return x, x[:, :8].argmax(1)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_gradients_under_autocast_reach_float32_parameters(half):
    x, labels = batch()
    gradients = []
    for model, autocast in ((model_of(layers), True), (model_of(nn), True), (model_of(nn).double(), False)):
        with torch.autocast(DEVICE.type, half) if autocast else contextlib.nullcontext():
            loss = loss_of(model, x if autocast else x.double(), labels)
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, peer, reference in zip(*gradients):
        assert found.dtype == torch.float32 and found.abs().max() > 0
        # Activations are rounded to half precision at different places in the two: the floor is eps of that type.
        most = reference.abs().max().item() * torch.finfo(half).eps / torch.finfo(torch.float32).eps
        assert_close_to_float64(found, reference, peer, intermediate=most)


# ---- torch.compile and torch.export ----


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


BACKENDS = ["aot_eager"] + (["inductor"] if DEVICE.type == "cuda" else [])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SAMPLES)
def test_compile_has_no_graph_break(name, backend, fresh_dynamo):
    function, _, shapes = SAMPLES[name]
    around = lambda *inputs: tuple(result * 2 for result in several(function(*(value + 1 for value in inputs))))
    compiled = torch.compile(around, fullgraph=True, backend=backend)
    for dtype in runtime.DTYPES[:2]:
        inputs = sample(shapes, dtype)
        for found, expected in zip(with_gradients(compiled, inputs), with_gradients(around, inputs)):
            assert found.dtype == expected.dtype
            assert found.stride() == expected.stride() or backend == "inductor"  # which may choose others for a gradient
            torch.testing.assert_close(found, expected)
    with torch.no_grad():
        for found, expected in zip(compiled(*inputs), around(*inputs)):
            assert not found.requires_grad
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SAMPLES)
def test_one_compiled_graph_serves_all_sizes(name, backend, fresh_dynamo):
    function, _, shapes = SAMPLES[name]
    graphs, counts = [], []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(lambda *inputs: function(*inputs), fullgraph=True, dynamic=True, backend=count)
    for scale in (1, 2, 3):
        inputs = sample([tuple(size * scale for size in shape) for shape in shapes])
        for found, expected in zip(with_gradients(compiled, inputs), with_gradients(function, inputs)):
            torch.testing.assert_close(found, expected)
        counts.append(len(graphs))
    assert counts[0] == counts[1] == counts[2], f"compiled again for another size: {counts}"


def test_compiled_code_refuses_as_eager_code_does(fresh_dynamo):
    compiled = torch.compile(lambda x: kernels.softmax(x, 2), backend="aot_eager")
    with pytest.raises(ValueError, match=r"softmax: dim is 2; an int from -2 to 1 is accepted"):
        compiled(X)


ROWS = (4, 6)
K, V, RESULT = (1, 2, 5, 8), (1, 2, 5, 3), (1, 2, 6, 3)
IMAGE, PATCH = (2, 3, 5, 7), (4, 3, 2, 2)
INDICES = {"cross_entropy": [1], "cross_entropy_backward": [2], "dropout": [1]}  # arguments that are int64
OPERATORS = {
    "cross_entropy": [
        ((ROWS, (4,)), (-100, 0.1, "mean", torch.float32)), ((ROWS, (4,)), (0, 0.0, "sum", torch.float16)),
        ((ROWS, (4,)), (-100, 0.0, "none", torch.float32)), (((0, 6), (0,)), (-100, 0.0, "sum", torch.float32)),
    ],
    "cross_entropy_backward": [
        (((), ROWS, (4,), (2, 4), (2,)), (-100, 0.1, "mean")), (((4,), ROWS, (4,), (2, 4), (0,)), (-100, 0.0, "none")),
        (((), (0, 6), (0,), (2, 0), (2,)), (-100, 0.0, "sum")),
    ],
    "dropout": [((ROWS, (1,)), (0.5, [6, 1])), ((ROWS, (1,)), (0.5, [1, 4])), (((0, 3), (1,)), (0.5, [3, 1]))],
    "add": [((ROWS, (6,)), (torch.float32,)), (((0, 3), (1, 3)), (torch.float32,)), (((3, 1), (1, 2)), (torch.float32,))],
    "sum_to_size": [((ROWS,), ([1, 6], torch.float32)), ((ROWS,), ([6], torch.float16)), ((ROWS,), ([], torch.float32)),
                    ((ROWS,), ([4, 6], torch.float32)), (((0, 3),), ([3], torch.float32))],
    "gelu": [((ROWS,), ("none",)), ((ROWS,), ("tanh",)), (((0, 3),), ("none",))],
    "gelu_backward": [((ROWS, ROWS), ("none",)), ((ROWS, ROWS), ("tanh",)), (((0, 3), (0, 3)), ("none",))],
    "relu": [((ROWS,), ()), (((),), ()), (((0, 3),), ())],
    "relu_backward": [((ROWS, ROWS), ()), (((0, 3), (0, 3)), ())],
    "softmax": [((ROWS,), (1, False, torch.float32)), ((ROWS,), (4, True, torch.float16))],
    "softmax_backward": [((ROWS, ROWS), (torch.float32,)), ((ROWS, ROWS), (torch.float16,))],
    "layer_norm": [
        ((ROWS, None, (6,), (6,)), (1e-5, torch.float32, True)), ((ROWS, None, None, None), (1e-5, torch.float32, False)),
        ((ROWS, ROWS, (6,), None), (1e-5, torch.float16, True)), (((0, 6), (0, 6), (6,), (6,)), (1e-5, torch.float32, True)),
    ],
    "layer_norm_backward": [
        ((ROWS, None, ROWS, (6,), (2, 4)), (torch.float32,)), ((ROWS, ROWS, ROWS, None, (2, 4)), (None,)),
        ((ROWS, None, ROWS, (6,), (2, 4)), (torch.float16,)), (((0, 6), None, (0, 6), (6,), (2, 0)), (torch.float32,)),
        (((0, 6), None, (0, 6), (6,), (2, 0)), (None,)),
    ],
    "linear": [
        ((ROWS, (3, 6), (3,), (4, 3)), ("gelu", torch.float32, True)), ((ROWS, (3, 6), None, None), (None, torch.float16, False)),
        (((0, 6), (3, 6), None, None), ("relu", torch.float32, True)),
        (((4, 0), (3, 0), (3,), None), (None, torch.float32, False)),
    ],
    "linear_parameters_backward": [
        ((ROWS, (4, 3)), (True,)), ((ROWS, (4, 3)), (False,)), (((0, 6), (0, 3)), (True,)), ((ROWS, (4, 0)), (True,)),
    ],
    "norm_linear": [
        ((ROWS, (3, 6), (4, 3), None, None, None), (1, 0.0, None, True, True, 0)),
        ((ROWS, (3, 6), None, (3,), (3,), (2, 2, 4)), (4, 50.0, "gelu", False, True, 0)),  # eps for moments of no rows
        (((0, 6), (3, 6), None, (3,), (3,), (2, 1, 0)), (8, 1e-5, None, False, False, 0)),
    ],
    "bmm": [(((2, 4, 6), (2, 6, 3)), (0.5,)), (((2, 4, 0), (2, 0, 3)), (1.0,)), (((0, 4, 6), (0, 6, 3)), (1.0,))],
    "attention": [
        ((Q, K, V), (None, False, True)), ((Q, K, V), (0.5, True, False)),
        ((Q, (1, 2, 0, 8), (1, 2, 0, 3)), (None, False, True)),
    ],
    "attention_query_backward": [
        ((RESULT, Q, K, V, RESULT, (1, 2, 6)), (None, False)), ((RESULT, Q, K, V, RESULT, (1, 2, 6)), (0.5, True)),
        ((RESULT, Q, (1, 2, 0, 8), (1, 2, 0, 3), RESULT, (1, 2, 6)), (None, False)),
    ],
    "attention_key_backward": [
        ((RESULT, Q, K, V, (1, 2, 6), (1, 2, 6)), (None, False)), ((RESULT, Q, K, V, (1, 2, 6), (1, 2, 6)), (0.5, True)),
        (((1, 2, 0, 3), (1, 2, 0, 8), K, V, (1, 2, 0), (1, 2, 0)), (None, False)),
    ],
    "patch_embed": [
        ((IMAGE, PATCH, (4,), (4,), (7, 4)), (torch.float32,)), ((IMAGE, PATCH, None, None, None), (torch.float16,)),
        (((0, 3, 5, 7), PATCH, None, (4,), None), (torch.float32,)), ((IMAGE, (0, 3, 2, 2), None, None, None), (torch.float32,)),
    ],
    "patch_embed_weight_backward": [
        (((2, 7, 4), IMAGE), ([2, 2],)), (((2, 6, 4), IMAGE), ([2, 2],)), (((0, 7, 4), (0, 3, 5, 7)), ([2, 2],)),
        (((2, 6, 0), IMAGE), ([2, 2],)),
    ],
    "patch_embed_input_backward": [
        (((2, 7, 4), PATCH), (IMAGE,)), (((2, 6, 4), PATCH), (IMAGE,)), (((0, 7, 4), PATCH), ((0, 3, 5, 7),)),
        (((2, 6, 0), (0, 3, 2, 2)), (IMAGE,)),
    ],
}  # fmt: skip


# How many of an operator's tensors, the last ones, are statistics.
STATISTICS = {
    "cross_entropy_backward": 2, "layer_norm_backward": 1, "attention_query_backward": 1, "attention_key_backward": 2,
    "norm_linear": 3,
}  # fmt: skip


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("vitcourse::").partition(".")[0] for name in names if name.startswith("vitcourse::")}


def test_every_operator_is_checked():
    assert set(OPERATORS) == registered()


# Of layouts and types, each with the plainest of the other.
@pytest.mark.parametrize(
    "of_all, layout",
    [(dtype, "contiguous") for dtype in runtime.DTYPES] + [(torch.float32, "transposed"), (torch.float32, "stepped")],
    ids=str,
)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_keep_pytorchs_rules(name, of_all, layout):
    """torch.library.opcheck: the schema is kept, and what is promised to the compiler of a result is what comes."""
    for shapes, rest in OPERATORS[name]:
        # A row's statistics, which some backward passes take last, are in float32 always.
        statistics = STATISTICS.get(name, 0)
        types = [of_all] * (len(shapes) - statistics) + [torch.float32] * statistics
        tensors = [
            None if shape is None else tensor(shape, of, layout, seed=i) for i, (shape, of) in enumerate(zip(shapes, types))
        ]
        for place in INDICES.get(name, []):
            tensors[place] = torch.zeros_like(tensors[place], dtype=torch.int64)
        torch.library.opcheck(getattr(torch.ops.vitcourse, name).default, (*tensors, *rest))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.activation, self.project = layers.LayerNorm(8), layers.GELU(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(self.activation(self.norm(x)))


def test_export():
    model, x = Normed().to(DEVICE).eval(), tensor((5, 8), torch.float32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=100)},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"vitcourse.layer_norm.default", "vitcourse.gelu.default"} <= called
    for rows in (5, 17):
        x = tensor((rows, 8), torch.float32, seed=rows)
        torch.testing.assert_close(program.module()(x), model(x))


# ---- modules that train ----


def test_modules_have_pytorchs_parameters():
    ours, theirs = model_of(layers), model_of(nn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for module in (layers.LayerNorm((3, 4), bias=False), layers.LayerNorm(4, elementwise_affine=False)):
        x = tensor((2, 3, 4), torch.float32)
        torch.testing.assert_close(module.to(DEVICE)(x), F.layer_norm(x, module.normalized_shape))


def test_a_model_trains_as_pytorchs_does():
    """The same losses to 1e-5 of them: PyTorch's own, in float32, are 1e-7 from those in float64 after ten steps."""
    x, labels = batch()
    losses = []
    for model in (model_of(layers), model_of(nn)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses.append([])
        for _ in range(10):
            optimizer.zero_grad()
            loss = loss_of(model, x, labels)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=0.0)
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_a_model_trains_compiled_and_checkpointed(fresh_dynamo):
    x, labels = batch()
    plain = model_of(layers)
    loss_of(plain, x, labels).backward()
    for run in (
        lambda model: torch.compile(model, fullgraph=True, backend="aot_eager"),
        lambda model: lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False),
    ):
        model = copy.deepcopy(plain)
        model.zero_grad()
        loss_of(run(model), x, labels).backward()
        for parameter, expected in zip(model.parameters(), plain.parameters()):
            torch.testing.assert_close(parameter.grad, expected.grad)


def test_softmax_takes_any_type_that_is_converted_first():
    for x in (
        torch.tensor([1, 2, 3], device=runtime.DEVICE),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, device=runtime.DEVICE),
    ):
        torch.testing.assert_close(kernels.softmax(x, 0, torch.float32), F.softmax(x, 0, dtype=torch.float32))


@pytest.mark.parametrize("option", [{"padding": 1}, {"dilation": 2}, {"groups": 2}], ids=str)
def test_a_patch_embedding_refuses_what_is_no_patch(option):
    with pytest.raises(ValueError, match="side by side"):
        layers.PatchEmbedding(2, 4, 2, **option)
