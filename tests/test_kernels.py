"""Every public kernel function against float64, PyTorch's own function and its refusals.

Inputs and outputs lie in the hostile memory of hostile.py. Gradients are in test_gradients.py; what PyTorch's own functions
are called with, and where, is in test_drop_in.py; test_broken_kernels.py shows that each test sees a wrong kernel.

In Triton's interpreter a block is as large as the problem, so the tests called `*_small_blocks` shrink the blocks: many
programs, many steps, and a partial one at every edge. They use the configurations that a GPU would.
"""

import contextlib
import importlib
import math
import unittest.mock
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hostile import LAYOUTS, call, double, on_gpu, tensor
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tolerance import assert_close_to_float64, largest

from vitcourse import kernels, runtime

# The modules have the names of their functions, and `kernels.linear` is the function.
ADD, ATTENTION, BMM, GELU, LAYER_NORM, LINEAR, PATCH_EMBED, RELU, SOFTMAX = (
    importlib.import_module(f"vitcourse.kernels.{name}")
    for name in ("add", "attention", "bmm", "gelu", "layer_norm", "linear", "patch_embed", "relu", "softmax")
)


# ---- one check a function: call it, PyTorch's in float64 and PyTorch's in the same type ----


def check_add(a, b):
    result = call(kernels.add, a, b)
    assert result.is_contiguous()
    assert_close_to_float64(result, a.double() + b.double(), a + b)


def check_gelu(x, approximate="none"):
    reference = F.gelu(x.double(), approximate=approximate)
    # 1 + erf cancels for negative x: what float32 rounds is as large as x.
    assert_close_to_float64(
        call(kernels.gelu, x, approximate), reference, F.gelu(x, approximate=approximate), intermediate=largest(x)
    )


def check_relu(x):
    assert_close_to_float64(call(kernels.relu, x), F.relu(x.double()), F.relu(x))


def torch_softmax(x, dim, causal=False):
    if causal:
        hidden = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        x = x.masked_fill(hidden, -float("inf"))
    return torch.softmax(x, dim)


def check_softmax(x, dim=-1, causal=False, dtype=None):
    result = call(kernels.softmax, x, dim, dtype, causal=causal)
    x = x if dtype is None else x.to(dtype)  # as PyTorch does: to a narrower type, the input is rounded first
    assert_close_to_float64(result, torch_softmax(x.double(), dim, causal), torch_softmax(x, dim, causal))


def torch_layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    """F.layer_norm; in float32, and rounded to the input's type at the end, where a parameter has another type than the input.

    (There PyTorch's function has an answer on a CPU and none on a GPU.)
    """
    if all(tensor is None or tensor.dtype == x.dtype for tensor in (weight, bias)):
        return F.layer_norm(x, shape, weight, bias, eps)
    weight, bias = (None if tensor is None else tensor.float() for tensor in (weight, bias))
    return F.layer_norm(x.float(), shape, weight, bias, eps).to(x.dtype)


def check_layer_norm(x, shape, weight=None, bias=None, eps=1e-5, residual=None):
    result = call(kernels.layer_norm, x, shape, weight, bias, eps, residual=residual)
    if residual is not None:
        result, total = result
        assert total.is_contiguous()
        assert_close_to_float64(total, x.double() + residual.double(), x + residual, what="sum")
        x = x + residual  # what is normalized is the sum as it is returned
    assert result.is_contiguous()
    reference = F.layer_norm(x.double(), shape, *double(weight, bias), eps)
    # A mean of 1e4 is rounded to float32 before it is subtracted, and the difference is then divided by the deviation.
    intermediate = 0.0
    if x.numel():
        deviation = (x.double().flatten(-len(shape)).var(-1, correction=0) + eps).sqrt()
        scaled = x.double().flatten(-len(shape)).abs() / deviation[..., None]
        intermediate = largest(scaled) * (1.0 if weight is None else largest(weight)) + (0.0 if bias is None else largest(bias))
    assert_close_to_float64(result, reference, torch_layer_norm(x, shape, weight, bias, eps), intermediate=intermediate)


ACTIVATIONS = {
    None: lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def torch_linear(x, weight, bias=None, activation=None, residual=None):
    y = ACTIVATIONS[activation](F.linear(x, weight, bias))
    return y if residual is None else y + residual


def check_linear(x, weight, bias=None, activation=None, residual=None):
    result = call(kernels.linear, x, weight, bias, activation=activation, residual=residual)
    assert result.is_contiguous()
    terms = torch_linear(*(None if t is None else t.double().abs() for t in (x, weight, bias)))
    assert_close_to_float64(
        result,
        torch_linear(*double(x, weight, bias), activation, *double(residual)),
        torch_linear(x, weight, bias, activation, residual),
        intermediate=largest(terms) + (0.0 if residual is None else largest(residual)),
    )


def check_bmm(a, b, scale=1.0):
    result = call(kernels.bmm, a, b, scale=scale)
    assert result.is_contiguous()
    terms = largest(a.double().abs() @ b.double().abs()) * abs(scale)
    assert_close_to_float64(result, torch.bmm(a.double(), b.double()) * scale, torch.bmm(a, b) * scale, intermediate=terms)


def torch_attention(query, key, value, is_causal=False, scale=None):
    """F.scaled_dot_product_attention. For some shapes and strides a GPU's choice is a kernel that does not take them."""
    try:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
    except RuntimeError as error:
        if "no kernel found to launch" not in str(error):
            raise
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)


def check_attention(query, key, value, is_causal=False, scale=None):
    result = call(kernels.scaled_dot_product_attention, query, key, value, is_causal=is_causal, scale=scale)
    tokens = result.transpose(1, 2).flatten(2)
    assert tokens.numel() == 0 or tokens.data_ptr() == result.data_ptr(), "the result does not lie as tokens"
    peer = torch_attention(query, key, value, is_causal, scale)
    query, key, value = double(query, key, value)
    reference = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
    # A weighted mean of values can cancel; the weights that it is made of are rounded to the type first, and their
    # relative error is the scores' absolute one.
    rounded = largest(F.scaled_dot_product_attention(query, key, value.abs(), is_causal=is_causal, scale=scale))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else abs(scale)
    scores = largest(query.abs() @ key.abs().transpose(-1, -2)) * factor
    assert_close_to_float64(result, reference, peer, rounded=rounded, intermediate=rounded * (1 + scores))


def torch_patch_embed(x, weight, bias=None, class_token=None, position=None):
    # cuDNN would use TF32 for float32 unless told not to, and a lax peer is no peer.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        tokens = F.conv2d(x, weight, bias, stride=tuple(weight.shape[2:])).flatten(2).transpose(1, 2)
    if class_token is not None:
        tokens = torch.cat([class_token.reshape(1, 1, -1).expand(len(x), 1, -1), tokens], 1)
    return tokens if position is None else tokens + position.reshape(1, *tokens.shape[1:])


def check_patch_embed(x, weight, bias=None, class_token=None, position=None):
    result = call(kernels.patch_embed, x, weight, bias, class_token=class_token, position_embedding=position)
    assert result.is_contiguous()
    arguments = (x, weight, bias, class_token, position)
    terms = torch_patch_embed(*(None if t is None else t.double().abs() for t in arguments))
    assert_close_to_float64(
        result, torch_patch_embed(*double(*arguments)), torch_patch_embed(*arguments), intermediate=largest(terms)
    )


# ---- drawn shapes ----

# Sizes around the powers of two where blocks end, besides the small ones.
sizes = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 197, 257]))
maybe_zero = st.one_of(st.just(0), sizes)
small = st.one_of(st.integers(0, 5), st.sampled_from([7, 16, 17]))
layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 1000)
shapes = st.one_of(
    st.tuples(),
    st.tuples(st.one_of(st.just(0), sizes)),
    st.tuples(sizes, sizes),
    st.tuples(small, sizes, sizes),
    st.tuples(small, small, small, sizes),
    st.tuples(small, small, small, small, small),
)
SHAPES = [(), (0,), (1,), (3, 0, 5), (1, 1), (1, 197), (197, 1), (5, 1, 7), (2, 3, 4, 5, 6), (1000,), (131, 1030)]


@given(
    shape=shapes, dropped=st.integers(0, 3), ones=st.tuples(*[st.integers(0, 31)] * 2), at=st.tuples(layouts, layouts), seed=seeds
)
@example(shape=(3, 4, 5, 6, 7), dropped=0, ones=(0b01010, 0b10101), at=("contiguous", "contiguous"), seed=0)
@example(shape=(70000, 3), dropped=1, ones=(0, 0), at=("contiguous", "contiguous"), seed=0)
def test_add_drawn(dtype, shape, dropped, ones, at, seed):
    # Each operand has 1 in some of the dimensions, and one of the two may lack the first few.
    a, b = (tuple(1 if mask >> i & 1 else size for i, size in enumerate(shape)) for mask in ones)
    b = b[min(dropped, len(b)) :]
    a, b = tensor(a, dtype, at[0], seed=seed), tensor(b, dtype, at[1], seed=seed + 1)
    check_add(a, b)
    check_add(b, a)


@given(
    shape=shapes, at=layouts, approximate=st.sampled_from(["none", "tanh"]), seed=seeds, scale=st.sampled_from([0.1, 1.0, 5.0])
)
def test_gelu_and_relu_drawn(dtype, shape, at, approximate, seed, scale):
    x = tensor(shape, dtype, at, seed=seed, scale=scale)
    check_gelu(x, approximate)
    check_relu(x)


@given(shape=shapes, dim=st.integers(-5, 4), at=layouts, causal=st.booleans(), seed=seeds, scale=st.sampled_from([1.0, 30.0]))
def test_softmax_drawn(dtype, shape, dim, at, causal, seed, scale):
    x = tensor(shape, dtype, at, seed=seed, scale=scale)
    if causal and len(shape) >= 2:
        check_softmax(x, -1, causal=True)
    dim = max(-max(len(shape), 1), min(dim, max(len(shape), 1) - 1))
    check_softmax(x, dim)


@given(
    shape=shapes, trailing=st.integers(1, 3), at=st.tuples(*[layouts] * 4), given_=st.tuples(*[st.booleans()] * 3),
    single=st.booleans(), eps=st.sampled_from([1e-12, 1e-5, 1.0]), seed=seeds,
)  # fmt: skip
def test_layer_norm_drawn(dtype, shape, trailing, at, given_, single, eps, seed):
    assume(shape)
    normalized = shape[-min(trailing, len(shape)) :]
    # Over one element the variance is 0, and with eps = 1e-12 rounding errors of the mean are divided by 1e-6.
    assume(eps > 1e-12 or math.prod(normalized) > 4)
    x = tensor(shape, dtype, at[0], seed=seed)
    residual = tensor(shape, dtype, at[3], seed=seed + 3) if given_[2] else None
    weight, bias = (
        tensor(normalized, torch.float32 if single else dtype, at[1 + i], seed=seed + 1 + i) if given_[i] else None
        for i in range(2)
    )
    check_layer_norm(x, normalized, weight, bias, eps, residual)


@given(
    leading=st.sampled_from([(), (0,), (1,), (2, 3), (7, 1, 5)]), M=sizes, N=maybe_zero, K=maybe_zero,
    at=st.tuples(*[layouts] * 4), activation=st.sampled_from(list(ACTIVATIONS)),
    given_=st.tuples(st.booleans(), st.booleans()), seed=seeds,
)  # fmt: skip
@example(leading=(), M=1, N=1, K=1, at=("contiguous",) * 4, activation="gelu", given_=(True, True), seed=0)
@example(leading=(), M=300, N=40, K=300, at=("contiguous",) * 4, activation=None, given_=(True, True), seed=0)
@example(leading=(), M=5, N=1100, K=513, at=("contiguous",) * 4, activation="gelu", given_=(True, True), seed=0)
def test_linear_drawn(dtype, leading, M, N, K, at, activation, given_, seed):
    x, weight = tensor((*leading, M, K), dtype, at[0], seed=seed), tensor((N, K), dtype, at[1], seed=seed + 1, scale=0.2)
    bias = tensor((N,), dtype, at[2], seed=seed + 2) if given_[0] else None
    residual = tensor((*leading, M, N), dtype, at[3], seed=seed + 3) if given_[1] else None
    check_linear(x, weight, bias, activation, residual)


@given(
    batch=small, M=maybe_zero, N=sizes, K=maybe_zero, at=st.tuples(layouts, layouts),
    scale=st.sampled_from([1.0, 0.125, -3.0, 0.0]), seed=seeds,
)  # fmt: skip
@example(batch=2, M=270, N=300, K=600, at=("contiguous", "contiguous"), scale=1.0, seed=0)
def test_bmm_drawn(dtype, batch, M, N, K, at, scale, seed):
    check_bmm(tensor((batch, M, K), dtype, at[0], seed=seed), tensor((batch, K, N), dtype, at[1], seed=seed + 1), scale)


heads = st.integers(0, 3)
head_sizes = st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 80, 96, 127, 128, 130, 256])


@given(
    batch=heads, head=heads, queries=maybe_zero, keys=sizes, head_size=head_sizes, value_size=head_sizes,
    at=st.tuples(layouts, layouts, layouts), is_causal=st.booleans(), scale=st.sampled_from([None, 0.5, 3.0, 0.0, -0.3]),
    seed=seeds,
)  # fmt: skip
@example(
    batch=1, head=2, queries=300, keys=530, head_size=16, value_size=16,
    at=("contiguous",) * 3, is_causal=True, scale=None, seed=0,
)  # fmt: skip
@example(
    batch=1, head=2, queries=530, keys=300, head_size=24, value_size=40,
    at=("contiguous",) * 3, is_causal=True, scale=None, seed=0,
)  # fmt: skip
def test_attention_drawn(dtype, batch, head, queries, keys, head_size, value_size, at, is_causal, scale, seed):
    check_attention(
        tensor((batch, head, queries, head_size), dtype, at[0], seed=seed),
        tensor((batch, head, keys, head_size), dtype, at[1], seed=seed + 1),
        tensor((batch, head, keys, value_size), dtype, at[2], seed=seed + 2),
        is_causal,
        scale,
    )


@given(
    batch=st.integers(0, 3), channels=st.integers(1, 4), patch=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    patches=st.tuples(st.integers(1, 5), st.integers(1, 5)), over=st.tuples(st.integers(0, 15), st.integers(0, 15)), hidden=sizes,
    at=st.tuples(*[layouts] * 5), given_=st.tuples(st.booleans(), st.booleans(), st.booleans()), seed=seeds,
)  # fmt: skip
def test_patch_embed_drawn(dtype, batch, channels, patch, patches, over, hidden, at, given_, seed):
    # Images need not be whole patches: what is over at the right and at the bottom is ignored.
    height, width = (size * count + min(more, size - 1) for size, count, more in zip(patch, patches, over))
    tokens = patches[0] * patches[1] + given_[1]
    x = tensor((batch, channels, height, width), dtype, at[0], seed=seed)
    weight = tensor((hidden, channels, *patch), dtype, at[1], seed=seed + 1, scale=0.2)
    bias = tensor((hidden,), dtype, at[2], seed=seed + 2) if given_[0] else None
    class_token = tensor((1, 1, hidden), dtype, at[3], seed=seed + 3) if given_[1] else None
    position = tensor((1, tokens, hidden), dtype, at[4], seed=seed + 4) if given_[2] else None
    check_patch_embed(x, weight, bias, class_token, position)


# ---- given shapes and layouts ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elementwise_and_rows(dtype, shape, layout):
    x, y = tensor(shape, dtype, layout), tensor(shape, dtype, seed=1)
    check_add(x, y)
    check_add(y, x)
    check_add(x, tensor(shape[-1:], dtype, seed=2))
    check_gelu(x)
    check_gelu(x, "tanh")
    check_relu(x)
    check_softmax(x, -1)
    check_softmax(x, 0)
    if len(shape) >= 2:
        check_softmax(x, -1, causal=True)
    if shape:
        check_layer_norm(x, shape[-1:], y.reshape(-1, shape[-1])[0] if y.numel() else y.new_zeros(shape[-1:]))


def test_add_every_broadcast_of_four_dimensions(dtype):
    # Four that do not merge are as many as the kernel decodes; each operand has 1 in any of them.
    sizes = (2, 3, 4, 5)
    operands = []
    for mask in range(16):
        shape = tuple(1 if mask >> i & 1 else size for i, size in enumerate(sizes))
        operands.append((tensor(shape, dtype, seed=mask), tensor(shape, dtype, "stepped", seed=mask + 16)))
    for a, _ in operands:
        for _, b in operands:
            assert torch.equal(kernels.add(a, b), a + b)


@pytest.mark.parametrize("first", runtime.DTYPES, ids=str)
@pytest.mark.parametrize("second", runtime.DTYPES, ids=str)
def test_add_of_two_types(first, second):
    # Tensors with dimensions decide; next to one, a single number has no say, and one of two single numbers has.
    for shape, other in (((), ()), ((1,), ()), ((), (2, 5)), ((0,), ()), ((2, 5), (5,)), ((2, 5), (2, 5)), ((3,), (2, 1))):
        a, b = tensor(shape, first), tensor(other, second, seed=1)
        assert kernels.add(a, b).dtype == torch.result_type(a, b)
        check_add(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_in_another_type(dtype, layout):
    for other in runtime.DTYPES:
        x = tensor((6, 37), dtype, layout, scale=3.0)
        check_softmax(x, -1, dtype=other)
        check_softmax(x, 0, dtype=other)
        check_softmax(x, -1, causal=True, dtype=other)
        check_softmax(tensor((), dtype), 0, dtype=other)
        check_softmax(tensor((0, 3), dtype), -1, dtype=other)
        with unittest.mock.patch.object(SOFTMAX, "WIDEST", 16):
            check_softmax(x, -1, dtype=other)


def test_softmax_in_float32_loses_nothing_of_float16():
    # exp(-12) is below float16's smallest normal number; a float32 result has all its digits.
    x = rows_of(torch.float16, [0.0, -12.0, -14.0])
    result = kernels.softmax(x, -1, torch.float32)
    torch.testing.assert_close(result.double(), torch.softmax(x.double(), -1), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("widest", [None, 16], ids=["narrow", "wide"])
def test_layer_norm_with_float32_parameters_and_a_residual(dtype, widest):
    x, residual = tensor((7, 50), dtype), tensor((7, 50), dtype, "transposed", seed=1, scale=2.0)
    weight, bias = (tensor((50,), torch.float32, seed=2 + i) for i in range(2))
    with contextlib.ExitStack() as stack:
        if widest:
            stack.enter_context(unittest.mock.patch.object(LAYER_NORM, "WIDEST", widest))
        check_layer_norm(x, (50,), weight, bias)
        check_layer_norm(x, (50,), weight, bias, residual=residual)
        check_layer_norm(x, (50,), weight, bias.to(dtype), residual=residual)
        check_layer_norm(residual, (50,), residual=x)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("embedding", [8, 60, 64])
def test_attention_reads_packed_queries_keys_and_values(dtype, embedding, is_causal):
    batch, tokens, heads = 2, 37, 4
    packed = tensor((batch, tokens, 3 * embedding), dtype)
    query, key, value = packed.view(batch, tokens, 3, heads, embedding // heads).permute(2, 0, 3, 1, 4)
    check_attention(query, key, value, is_causal)


def test_attention_with_no_keys_is_zero(dtype):
    query, key, value = (tensor((2, 3, size, 8), dtype) for size in (5, 0, 0))
    result = call(kernels.scaled_dot_product_attention, query, key, value)
    assert result.shape == (2, 3, 5, 8)
    assert not result.any()


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 0, 1, 2), (1, 0, 2, 3)], ids=str)
def test_patch_embed_of_an_image_stored_in_another_order(dtype, order):
    # channels last, as images are read; and two orders that nobody uses
    stored = tensor(tuple((2, 3, 30, 23)[i] for i in order), dtype)
    x = stored.permute(*(order.index(i) for i in range(4)))
    check_patch_embed(x, tensor((24, 3, 5, 7), dtype, seed=1, scale=0.2), tensor((24,), dtype, seed=2))


def test_a_negative_zero_and_the_smallest_numbers(dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([-0.0, 0.0, tiny, -tiny, tiny / 4, -tiny / 4], dtype=dtype, device=runtime.DEVICE)
    for check in (check_relu, check_gelu, check_softmax):
        check(x)
    check_add(x, x)


# ---- small blocks: many programs, many steps, a partial one at every edge ----


@given(shape=shapes, at=layouts, ones=st.integers(0, 31), seed=seeds)
def test_elementwise_small_blocks(dtype, shape, at, ones, seed):
    assume(math.prod(shape) <= 2000)
    x = tensor(shape, dtype, at, seed=seed)
    other = tensor(tuple(1 if ones >> i & 1 else size for i, size in enumerate(shape)), dtype, seed=seed + 1)
    patch = unittest.mock.patch.object
    with patch(ADD, "BLOCK", 64), patch(ADD, "TILE_ELEMENTS", 32), patch(GELU, "BLOCK", 64), patch(RELU, "BLOCK", 64):
        check_add(x, other)
        check_add(x, tensor(shape, dtype, seed=seed + 2))
        check_gelu(x)
        check_relu(x)


@given(rows=sizes, columns=sizes, at=layouts, causal=st.booleans(), widest=st.sampled_from([16, 64, 256]), seed=seeds)
@example(rows=3, columns=33, at="contiguous", causal=True, widest=16, seed=0)
def test_rows_small_blocks(dtype, rows, columns, at, causal, widest, seed):
    # Rows wider than `widest` take the kernels that walk along a row; narrower ones share a tile of 64 elements.
    assume(rows * columns <= 8000)
    patch = unittest.mock.patch.object
    x = tensor((rows, columns), dtype, at, seed=seed, scale=3.0)
    with patch(SOFTMAX, "WIDEST", widest), patch(SOFTMAX, "TILE_ELEMENTS", 64):
        check_softmax(x, -1, causal)
    weight, bias = (tensor((columns,), dtype, seed=seed + 1 + i) for i in range(2))
    with patch(LAYER_NORM, "WIDEST", widest), patch(LAYER_NORM, "TILE_ELEMENTS", 64):
        check_layer_norm(x + 2.0, (columns,), weight, bias)
        check_layer_norm(x, (columns,))
        check_layer_norm(x, (columns,), weight, bias, residual=tensor((rows, columns), dtype, seed=seed + 3))


@contextlib.contextmanager
def forced_config(module, config: runtime.Config) -> Iterator[None]:
    """Make `module`'s function launch with `config`, in the interpreter and on a GPU."""
    patch = unittest.mock.patch.object
    with contextlib.ExitStack() as stack:
        if hasattr(module, "CONFIG"):
            stack.enter_context(patch(module, "CONFIG", config))
        if runtime.INTERPRETER:
            stack.enter_context(patch(module, "Config", lambda *args, **kwargs: config))
        else:
            stack.enter_context(patch(runtime.Configs, "choose", lambda *args: config))
        yield


def fits(configs: runtime.Configs, config: runtime.Config, dtype: torch.dtype) -> None:
    if not runtime.INTERPRETER and config not in configs.fitting(runtime.shared_memory(), dtype.itemsize):
        pytest.skip("takes more shared memory than this GPU has")


def spy_on(monkeypatch: pytest.MonkeyPatch, module, name: str) -> list:
    """The grids that `module`'s kernel of that name is launched with from now on."""
    kernel, grids = getattr(module, name), []

    class Spy:
        def __getitem__(self, grid):
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(module, name, Spy())
    return grids


LINEAR_CONFIGS = list({id(config): config for table in LINEAR.CONFIGS.values() for config in table.candidates}.values())


@pytest.mark.parametrize("config", LINEAR_CONFIGS, ids=lambda config: "x".join(map(str, config.blocks.values())))
def test_linear_small_blocks(dtype, config):
    if config not in LINEAR.CONFIGS[dtype.itemsize].candidates:
        pytest.skip("a configuration for the other types")
    fits(LINEAR.CONFIGS[dtype.itemsize], config, dtype)
    # More tile rows than a group has, in a number that leaves a smaller last group; 16-byte aligned and not.
    for M, N, K in (
        (config.blocks["BLOCK_M"] * 10 + 3, 40, 72),
        (33, config.blocks["BLOCK_N"] * 2 + 5, 2 * config.blocks["BLOCK_K"]),
        (1, 1, 197),
    ):
        x, weight = tensor((M, K), dtype), tensor((N, K), dtype, seed=1, scale=0.2)
        bias, residual = tensor((N,), dtype, seed=2), tensor((M, N), dtype, seed=3)
        with forced_config(LINEAR, config):
            check_linear(x, weight, bias, "gelu", residual)
            check_linear(x, weight)


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("programs", [1, 4, 500])
def test_persistent_linear(dtype, halves, programs, monkeypatch):
    # Descriptors work in the interpreter too. Fewer programs than tiles, which do not share them evenly, and more; and more tile
    # rows than a group has, in a number that leaves a smaller last group.
    if 0 < runtime.capability() < 90:
        pytest.skip("this GPU has no descriptors")
    monkeypatch.setattr(LINEAR, "capability", lambda: 90)
    monkeypatch.setattr(LINEAR, "multiprocessors", lambda: programs)
    config = runtime.Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP_M": 2, "HALVES": halves}, 8, 2)
    launched = spy_on(monkeypatch, LINEAR, "persistent_linear_kernel")
    for M, N, K in ((296, 136, 72), (64, 64, 32), (1, 8, 40)):
        x, weight = tensor((M, K), dtype), tensor((N, K), dtype, seed=1, scale=0.2)
        bias, residual = tensor((N,), dtype, seed=2), tensor((M, N), dtype, seed=3)
        with forced_config(LINEAR, config):
            check_linear(x, weight, bias, "gelu", residual)
            check_linear(x, tensor((K, N), dtype, seed=1, scale=0.2).t())
            if M > 1:  # one row's column is not 16-byte aligned
                check_linear(tensor((K, M), dtype).t(), weight)
            _, before = LINEAR._linear(x, weight, bias, None, "relu", dtype, True)
            torch.testing.assert_close(before, LINEAR._linear(x, weight, bias, None, None, dtype, False)[0])
    assert len(launched) == 14


def test_linear_with_a_residual_of_another_type(dtype, monkeypatch):
    # As under autocast. A float32 residual's tiles and the result's are too large for the shared memory of a persistent kernel.
    if dtype == torch.float32:
        pytest.skip("the residual's type")
    launched = spy_on(monkeypatch, LINEAR, "persistent_linear_kernel")
    if runtime.INTERPRETER:
        monkeypatch.setattr(LINEAR, "capability", lambda: 90)
    config = runtime.Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP_M": 2, "HALVES": 2}, 8, 2)
    x, weight, bias = tensor((200, 72), dtype), tensor((136, 72), dtype, seed=1, scale=0.2), tensor((136,), dtype, seed=2)
    residual = tensor((200, 136), torch.float32, seed=3)
    with forced_config(LINEAR, config):
        result, _ = LINEAR._linear(x, weight, bias, residual, None, torch.float32, False)
    assert not launched
    reference = F.linear(x.double(), weight.double(), bias.double()) + residual
    torch.testing.assert_close(result, reference.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_every_layout_in_small_blocks(dtype, layout):
    # One operand at a time lies so, over several steps along K, the last of them partial.
    M, N, K = 33, 35, 50
    shapes = ((M, K), (N, K), (N,), (M, N))
    plain = [tensor(shape, dtype, seed=i) for i, shape in enumerate(shapes)]
    small_blocks = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}
    for index, shape in enumerate(shapes):
        operands = list(plain)
        operands[index] = tensor(shape, dtype, layout, seed=10 + index)
        x, weight, bias, residual = operands
        with forced_config(LINEAR, runtime.Config(small_blocks | {"GROUP_M": 2}, 4, 2)):
            check_linear(x, weight, bias, None, residual)
    strided = [tensor((3, *shape), dtype, layout, seed=20 + i) for i, shape in enumerate(((M, K), (K, N)))]
    with forced_config(BMM, runtime.Config(small_blocks, 4, 2)):
        check_bmm(strided[0], plain[1].t().expand(3, K, N))
        check_bmm(plain[0].expand(3, M, K), strided[1])


ATTENTION_BLOCKS = [(16, 16), (16, 64), (64, 16), (128, 32)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("block_m, block_n", ATTENTION_BLOCKS)
def test_attention_small_blocks(dtype, block_m, block_n, is_causal):
    config = runtime.Config({"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": 32, "BLOCK_V": 32}, 4, 1)
    for queries, keys in ((65, 65), (33, 130), (130, 33), (1, 65), (65, 1)):
        query, key, value = (
            tensor((1, 2, *size), dtype, seed=i) for i, size in enumerate(((queries, 20), (keys, 20), (keys, 9)))
        )
        with forced_config(ATTENTION, config):
            check_attention(query, key, value, is_causal)
            # Scores that grow along the keys, so that every block raises the maximum.
            check_attention(
                query.abs(), key.abs() * torch.linspace(0, 4, keys, device=key.device, dtype=dtype)[:, None], value, is_causal
            )


def test_bmm_small_blocks(dtype):
    for M, N, K in ((33, 40, 70), (16, 16, 16), (1, 1, 50), (65, 1, 33)):
        with forced_config(BMM, runtime.Config({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16}, 4, 2)):
            check_bmm(tensor((3, M, K), dtype), tensor((3, K, N), dtype, seed=1), 0.5)
        with forced_config(BMM, BMM.CONFIG):
            check_bmm(tensor((3, M, K), dtype), tensor((3, K, N), dtype, "transposed", seed=1))


SMALL_PATCHES = [runtime.Config(PATCH_EMBED._blocks(16, n, k), 4, 2) for n, k in ((16, 16), (32, 64))]


@pytest.mark.parametrize("config", [*SMALL_PATCHES, *PATCH_EMBED.CONFIGS.candidates], ids=lambda config: str(config.blocks))
def test_patch_embed_blocks(dtype, config):
    if config not in SMALL_PATCHES:
        fits(PATCH_EMBED.CONFIGS, config, dtype)
    x, weight = tensor((3, 3, 30, 31), dtype), tensor((50, 3, 6, 5), dtype, seed=1, scale=0.2)
    bias, class_token, position = (tensor(shape, dtype, seed=2 + i) for i, shape in enumerate(((50,), (50,), (31, 50))))
    with forced_config(PATCH_EMBED, config):
        check_patch_embed(x, weight, bias, class_token, position)
        check_patch_embed(x, weight, None, None, position[1:])


# ---- large inputs ----


def test_very_wide_rows(dtype):
    # 200,003 columns: past what any block holds, also in the interpreter.
    x = tensor((2, 200_003), dtype)
    weight, bias = (tensor((200_003,), dtype, seed=1 + i) for i in range(2))
    assert x.shape[1] > max(SOFTMAX.WIDEST, LAYER_NORM.WIDEST)
    check_softmax(x)
    check_softmax(x, causal=True)
    check_softmax(x[:1].t(), 0)
    check_layer_norm(x, (200_003,), weight, bias)
    check_layer_norm(x, (200_003,), weight, bias, residual=tensor((2, 200_003), dtype, seed=3))


def test_many_elements(dtype):
    x = tensor((300_001,), dtype)
    check_add(x, x)
    check_add(x.reshape(1, -1), tensor((2, 1), dtype, seed=1))
    check_relu(x)
    check_gelu(x, "tanh")
    check_softmax(tensor((20_011, 9), dtype))
    check_layer_norm(tensor((20_011, 9), dtype), (9,))


def check_in_pieces(result, reference: Callable, peer: Callable, *inputs, piece: int = 1 << 16) -> None:
    """Compare rows a piece at a time: float64 of the whole would not fit beside the rest."""
    for first in range(0, len(result), piece):
        rows = [value[first : first + piece] for value in inputs]
        assert_close_to_float64(result[first : first + piece], reference(*double(*rows)), peer(*rows))


def past_int32(rows: int, columns: int) -> torch.Tensor:
    assert rows * columns > 2**31
    return torch.empty((rows, columns), dtype=torch.float16, device=runtime.DEVICE).normal_()


@on_gpu
@pytest.mark.memory(30)
def test_past_two_to_the_31_elements():
    rows, columns = 2**31 // 768 + 1000, 768
    x = past_int32(rows, columns)
    check_in_pieces(call(kernels.add, x, x), torch.add, torch.add, x, x)
    check_in_pieces(call(kernels.gelu, x), F.gelu, F.gelu, x)
    check_in_pieces(call(kernels.relu, x), F.relu, F.relu, x)
    normalize = lambda x: F.layer_norm(x, (columns,))
    check_in_pieces(call(kernels.softmax, x, -1), lambda x: x.softmax(-1), lambda x: x.softmax(-1), x)
    check_in_pieces(call(kernels.layer_norm, x, (columns,)), normalize, normalize, x)
    row = x[0]
    check_in_pieces(call(kernels.add, x, row), lambda x: x + row.to(x.dtype), lambda x: x + row, x)
    weight = x[:768, :64].contiguous()
    narrow = x[:, :64]
    project = lambda x: F.linear(x, weight.to(x.dtype))
    check_in_pieces(call(kernels.linear, narrow, weight), project, project, narrow)


@on_gpu
@pytest.mark.memory(19)
def test_add_decodes_more_than_two_to_the_31_rows():
    # Nothing merges here: 47,000 x 47,000 rows of two columns.
    size = 47_000
    assert size * size > 2**31
    a, b = tensor((size, 1, 2), torch.float16), tensor((1, size, 1), torch.float16, seed=1)
    check_in_pieces(call(kernels.add, a, b), lambda a: a + b.to(a.dtype), lambda a: a + b, a, piece=500)


@on_gpu
@pytest.mark.memory(45)
def test_columns_past_two_to_the_31_elements_apart():
    # Column 8,000 of a row begins 8,000 * 300,000 elements after column 0.
    x = past_int32(8_000, 300_000)
    result = call(kernels.softmax, x, 0)
    check_in_pieces(result.t(), lambda x: x.softmax(-1), lambda x: x.softmax(-1), x.t())
    normalize = lambda x: F.layer_norm(x, (8_000,))
    check_in_pieces(call(kernels.layer_norm, x.t(), (8_000,)), normalize, normalize, x.t())


def far_apart(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Tensors whose elements along the last axis lie 2^27 + 8 apart, so that the 17th is 2^31 elements from the first.

    All of them in one memory of 4.6 GB, of which a CPU takes only what is touched.
    """
    stride = 2**27 + 8
    memory = torch.empty((max(shape[-1] for shape in shapes) * stride,), dtype=torch.float16, device=runtime.DEVICE)
    views, first = [], 0
    for shape in shapes:
        rows = torch.empty(shape[:-1], device="meta").stride()
        views.append(memory.as_strided(shape, (*rows, stride), first).normal_())
        first += math.prod(shape[:-1])
    return views


@pytest.mark.memory(11)
def test_products_of_neighbours_past_two_to_the_31_elements_apart():
    x, weight = far_apart((2, 17), (3, 17))
    check_linear(x, weight)
    with forced_config(LINEAR, runtime.Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 8}, num_stages=2)):
        check_linear(x, weight)  # one step along K is past it
    check_bmm(x[None], weight.t()[None])
    with forced_config(BMM, runtime.Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}, num_stages=2)):
        check_bmm(x[None], weight.t()[None])
    check_attention(*far_apart((1, 2, 3, 17), (1, 2, 5, 17), (1, 2, 5, 17)))


@on_gpu
def test_more_than_65535_heads_and_batches(dtype):
    check_bmm(tensor((70_000, 3, 5), dtype), tensor((70_000, 5, 2), dtype, seed=1))
    query, key, value = (tensor((35_000, 2, 5, 16), dtype, seed=i) for i in range(3))
    check_attention(query, key, value)


@on_gpu
@pytest.mark.parametrize("batch", [1, 8])
def test_vit_base_shapes(dtype, batch):
    tokens, hidden, heads = 197, 768, 12
    x = tensor((batch, tokens, hidden), dtype)
    vector = lambda size, seed: tensor((size,), dtype, seed=seed)
    matrix = lambda rows, columns, seed: tensor((rows, columns), dtype, seed=seed, scale=0.03)
    check_linear(x, matrix(3 * hidden, hidden, 1), vector(3 * hidden, 2))
    check_linear(x, matrix(hidden, hidden, 3), vector(hidden, 4), None, x)
    check_linear(x, matrix(4 * hidden, hidden, 5), vector(4 * hidden, 6), "gelu")
    check_linear(tensor((batch, tokens, 4 * hidden), dtype, seed=7), matrix(hidden, 4 * hidden, 8), vector(hidden, 9), None, x)
    check_linear(x[:, 0], matrix(1000, hidden, 10), vector(1000, 11))
    check_layer_norm(x, (hidden,), vector(hidden, 12), vector(hidden, 13), 1e-12)
    packed = tensor((batch, tokens, 3 * hidden), dtype, seed=14)
    query, key, value = packed.view(batch, tokens, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
    check_attention(query, key, value)
    check_attention(query, key, value, is_causal=True)
    scores = tensor((batch, heads, tokens, tokens), dtype, seed=15)
    check_softmax(scores)
    check_bmm(scores.flatten(0, 1), value.flatten(0, 1))
    check_gelu(tensor((batch, tokens, 4 * hidden), dtype, seed=16))
    check_add(x, tensor((1, tokens, hidden), dtype, seed=17))
    check_patch_embed(
        tensor((batch, 3, 224, 224), dtype, seed=18), tensor((hidden, 3, 16, 16), dtype, seed=19, scale=0.03),
        vector(hidden, 20), vector(hidden, 21), tensor((tokens, hidden), dtype, seed=22),
    )  # fmt: skip


@on_gpu
def test_the_search_for_a_configuration(monkeypatch, tmp_path):
    monkeypatch.undo()  # conftest's no_search
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for table in LINEAR.CONFIGS.values():  # a GPU that nobody has measured
        monkeypatch.setattr(table, "pinned", {})
        monkeypatch.setattr(table, "_found", {})
    check_linear(tensor((197, 72), torch.float16), tensor((200, 72), torch.float16, seed=1))
    stored = tmp_path / "vitcourse" / "configs.json"
    assert stored.exists() and "| linear | few |" in stored.read_text()


# ---- special values ----

INF, NAN = float("inf"), float("nan")


def rows_of(dtype, *rows):
    return torch.tensor(rows, dtype=dtype, device=runtime.DEVICE)


def test_nan_and_infinities_pass_elementwise(dtype):
    x = rows_of(dtype, [NAN, INF, -INF, 0.0, -1.0, 2.0])
    check_relu(x)
    check_gelu(x)
    check_gelu(x, "tanh")
    check_add(x, x)
    check_add(x, x.t())
    check_add(x, -x)


def test_gelu_of_large_numbers(dtype):
    big = torch.finfo(dtype).max
    x = rows_of(dtype, [big, -big, 1e4, -1e4, 50.0, -50.0, 10.0, -10.0])
    check_gelu(x)
    check_gelu(x, "tanh")


def test_the_approximate_gelu_is_good_to_bfloat16(monkeypatch):
    """bfloat16's form computed in float32, so that its own error shows, and shows where there is no bfloat16."""
    monkeypatch.setattr(GELU, "_form", lambda approximate, dtype: "fast")
    x = torch.linspace(-30, 30, 24_001, device=runtime.DEVICE)
    x = torch.cat([x, torch.tensor([0.0, -0.0, 1e4, -1e4, 3e38, -3e38], device=x.device)]).requires_grad_()
    result = call(kernels.gelu, x)
    (gradient,) = torch.autograd.grad(result, x, torch.ones_like(x))
    wide = x.detach().double().requires_grad_()
    reference = F.gelu(wide)
    (slope,) = torch.autograd.grad(reference, wide, torch.ones_like(wide))
    # A third of bfloat16's eps, of the result itself down to where Phi is 1e-6, and of what the slope is made of.
    third = torch.finfo(torch.bfloat16).eps / 3
    torch.testing.assert_close(result.double(), reference, rtol=third, atol=1e-6)
    torch.testing.assert_close(gradient.double(), slope, rtol=third, atol=third)
    special = kernels.gelu(torch.tensor([NAN, INF, -INF], device=x.device)).tolist()
    assert math.isnan(special[0]) and special[1] == INF and math.isnan(special[2])  # -inf * 0, as in PyTorch


@pytest.mark.parametrize("widest", [None, 16], ids=["narrow", "wide"])
def test_softmax_of_special_rows(dtype, widest):
    other = [0.5] * 27
    x = rows_of(
        dtype,
        [-INF, 1.0, -INF, 2.0, -INF, *other],  # some entries masked
        [-INF] * 32,  # all masked: NaN, as in PyTorch
        [-INF] * 31 + [3.0],
        [-INF] * 20 + [1.0] * 12,  # nothing but -inf in the first blocks
        [1.0, NAN, 2.0, 3.0, 4.0, *other],
        [1.0, INF, 2.0, 3.0, 4.0, *other],
        [INF, INF, -INF, 0.0, 0.0, *other],
        [1e4, 1e4 - 8, -1e4, 9e3, 0.0, *other],  # exp of these would overflow
        [-1e4] * 32,
        [6e4, -6e4, 0.0, 6e4, 1.0, *other],
    )
    with contextlib.ExitStack() as stack:
        if widest:
            stack.enter_context(unittest.mock.patch.object(SOFTMAX, "WIDEST", widest))
        for row in x.split(1):  # alone, so that one row's error allows another none
            check_softmax(row)
        check_softmax(x)
        check_softmax(x, 0)
        check_softmax(x, causal=True)


@pytest.mark.parametrize("columns", [5, 768, 1000])
@pytest.mark.parametrize("widest", [None, 64], ids=["narrow", "wide"])
def test_layer_norm_of_rows_far_from_zero(dtype, columns, widest):
    x = tensor((3, columns), dtype)
    with contextlib.ExitStack() as stack:
        if widest:
            stack.enter_context(unittest.mock.patch.object(LAYER_NORM, "WIDEST", widest))
        check_layer_norm(x * 4 + 1e4, (columns,))
        check_layer_norm(x * 1e-3, (columns,), eps=1e-12)
        check_layer_norm(torch.full_like(x, 3.0), (columns,))  # no variance at all: 0, not NaN
        x[1, 2] = NAN  # one row's NaN stays in its row
        check_layer_norm(x, (columns,))
        x[1, 2] = INF
        check_layer_norm(x, (columns,))


def test_a_nan_stays_in_its_row_or_column_of_a_product(dtype):
    x, weight = tensor((20, 18), dtype), tensor((22, 18), dtype, seed=1)
    x[3, 4], weight[5, 6] = NAN, INF
    check_linear(x, weight)
    check_linear(x, weight, None, "relu")
    check_bmm(x[None], weight.t()[None])


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_nan_stays_in_its_query(dtype, is_causal):
    query, key, value = (tensor((1, 2, 20, 8), dtype, seed=i) for i in range(3))
    query[0, 0, 7, 3] = NAN
    check_attention(query, key, value, is_causal)
    value[0, 1, 19, 2] = NAN  # the last query alone sees it where attention is causal
    if not is_causal:
        check_attention(query, key, value)


@pytest.mark.parametrize("scale", [1e-50, -1e-50, 0.0])
def test_attention_with_a_scale_that_is_nothing_in_float32(dtype, scale):
    # Every key counts alike, and the keys past the end of a block, whose score is -inf, for nothing still.
    check_attention(*(tensor((1, 2, 33, 16), dtype, seed=seed) for seed in range(3)), scale=scale)


def test_attention_with_large_scores(dtype):
    query, key, value = (tensor((1, 2, 50, 8), dtype, seed=i, scale=s) for i, s in enumerate((60.0, 60.0, 1.0)))
    check_attention(query, key, value)
    check_attention(query, key, value, is_causal=True)


@pytest.mark.parametrize("hidden", [range(20), range(16, 32), range(1, 40)], ids=str)
def test_keys_that_score_minus_infinity_count_for_nothing(dtype, hidden):
    query, key, value = (tensor((1, 2, 40, 8), dtype, seed=i) for i in range(3))
    key[:, :, hidden] = -INF
    config = runtime.Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_D": 16, "BLOCK_V": 16}, 4, 1)
    with forced_config(ATTENTION, config):
        check_attention(query.abs(), key, value)


def test_sums_are_kept_in_float32():
    # In float16, 1 + 2^-11 is 1 again: sums kept in it would stop growing at 2,048.
    ones = torch.ones((1, 4096), dtype=torch.float16, device=runtime.DEVICE)
    assert kernels.linear(ones, ones).item() == 4096
    assert kernels.bmm(ones[None], ones.t()[None]).item() == 4096
    # 300 * 300 * 2 is past float16's 65,504, and its product with the scale is not.
    large = torch.full((1, 1, 2), 300.0, dtype=torch.float16, device=runtime.DEVICE)
    assert kernels.bmm(large, large.transpose(1, 2), scale=0.01).item() == 1800


def test_bfloat16_is_refused_on_a_gpu_without_it(monkeypatch):
    monkeypatch.setattr(runtime, "INTERPRETER", False)
    monkeypatch.setattr(runtime, "capability", lambda: 75)
    monkeypatch.setattr(runtime, "gpu_name", lambda: "Tesla T4")
    x = torch.ones(4, dtype=torch.bfloat16, device=runtime.DEVICE)
    with pytest.raises(
        TypeError, match=r"relu: input has type bfloat16; accepted: float32, float16; Tesla T4 .* sm_80; it is sm_75"
    ):
        kernels.relu(x)
    monkeypatch.setattr(runtime, "capability", lambda: 80)
    assert torch.bfloat16 not in runtime.DTYPES or not runtime.refusal(torch.bfloat16)


def test_a_float32_product_follows_pytorchs_setting(monkeypatch):
    tensor_cores = runtime.capability() >= 80
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert runtime.dot_precision(torch.float32) == ("tf32x3" if tensor_cores else "ieee")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert runtime.dot_precision(torch.float32) == ("tf32" if tensor_cores else "ieee")
    assert runtime.dot_precision(torch.float16) == "ieee"


# ---- refusals ----


def ordinary(dtype=torch.float32, device=runtime.DEVICE) -> dict[str, tuple[Callable, dict]]:
    """For every function its required tensors by name, in a shape that it takes, and the optional ones after them."""
    t = lambda *shape: torch.ones(shape, dtype=dtype, device=device)
    return {
        "add": (kernels.add, {"input": t(2, 3), "other": t(2, 3)}),
        "relu": (kernels.relu, {"input": t(2, 3)}),
        "gelu": (kernels.gelu, {"input": t(2, 3)}),
        "softmax": (lambda **tensors: kernels.softmax(**tensors, dim=-1), {"input": t(2, 3)}),
        "dropout": (kernels.dropout, {"input": t(2, 3)}),
        "cross_entropy": (
            lambda **tensors: kernels.cross_entropy(**tensors, target=torch.zeros(2, dtype=torch.int64, device=device)),
            {"input": t(2, 3)},
        ),
        "layer_norm": (
            lambda residual, **tensors: kernels.layer_norm(**tensors, normalized_shape=(3,), residual=residual)[0],
            {"input": t(2, 3), "weight": t(3), "bias": t(3), "residual": t(2, 3)},
        ),
        "linear": (kernels.linear, {"input": t(2, 3), "weight": t(4, 3), "bias": t(4), "residual": t(2, 4)}),
        "bmm": (kernels.bmm, {"input": t(1, 2, 3), "mat2": t(1, 3, 2)}),
        "scaled_dot_product_attention": (
            kernels.scaled_dot_product_attention, {"query": t(1, 1, 2, 4), "key": t(1, 1, 2, 4), "value": t(1, 1, 2, 4)},
        ),
        "patch_embed": (
            kernels.patch_embed,
            {"input": t(1, 1, 2, 2), "weight": t(4, 1, 2, 2), "bias": t(4), "class_token": t(4), "position_embedding": t(2, 4)},
        ),
    }  # fmt: skip


ARGUMENTS = [(name, argument) for name, (_, tensors) in ordinary().items() for argument in tensors]
# `add` promotes; everything else takes one type, but for float32 parameters of a layer norm.
SECONDS = [(name, argument) for name, (_, tensors) in ordinary().items() for argument in list(tensors)[1:] if name != "add"]


def refused(name: str, argument: str, value: object, error: type[Exception], *words: str) -> None:
    """Call function `name` with `value` for `argument`: `error` has to name both and to say each of `words`."""
    function, tensors = ordinary()[name]
    with pytest.raises(error) as caught:
        function(**tensors | {argument: value})
    message = str(caught.value)
    for word in (f"{name}: ", argument, *words):
        assert word in message, f"{word!r} is not in {message!r}"


@pytest.mark.parametrize("name", ordinary())
def test_the_ordinary_call_is_taken(name):
    function, tensors = ordinary()[name]
    assert torch.isfinite(function(**tensors)).all()


@pytest.mark.parametrize("name, argument", ARGUMENTS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_is_not_dense_is_refused(name, argument):
    rows = [torch.ones(2, 3, device=runtime.DEVICE), torch.ones(1, 3, device=runtime.DEVICE)]
    refused(name, argument, torch.eye(3, device=runtime.DEVICE).to_sparse(), TypeError, "sparse_coo")
    refused(name, argument, torch.nested.nested_tensor(rows), TypeError, "nested")


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_a_wrong_type_or_device_is_refused(name, argument):
    good = ordinary()[name][1][argument]
    accepted = [str(dtype).removeprefix("torch.") for dtype in runtime.DTYPES]
    for dtype in (torch.float64, torch.int64, torch.bool, torch.complex64):
        refused(name, argument, good.to(dtype), TypeError, str(dtype).removeprefix("torch."), "accepted", *accepted)
    if runtime.INTERPRETER:
        refused(name, argument, good.bfloat16(), TypeError, "bfloat16", "accepted", "interpreter", "NumPy")
    refused(name, argument, [1.0, 2.0], TypeError, "list", "torch.Tensor")
    refused(name, argument, 3.0, TypeError, "float", "torch.Tensor")
    elsewhere = "meta" if runtime.DEVICE.type == "cpu" else "cpu"
    refused(name, argument, good.to(elsewhere), ValueError, elsewhere, f'.to("{runtime.DEVICE}")')


@pytest.mark.parametrize("name, argument", SECONDS)
def test_mixed_types_are_refused(name, argument):
    first = next(iter(ordinary()[name][1]))
    refused(name, argument, ordinary(torch.float16)[name][1][argument], TypeError, first, "float16", "float32", "accepted")


WRONG_SHAPES = [
    ("add", "other", (4,)),
    ("add", "other", (3, 3)),
    ("layer_norm", "input", (2, 4)),
    ("layer_norm", "input", ()),
    ("layer_norm", "weight", (4,)),
    ("layer_norm", "weight", (1, 3)),
    ("layer_norm", "bias", (1,)),
    ("layer_norm", "residual", (3,)),
    ("layer_norm", "residual", (1, 3)),
    ("linear", "input", (2, 4)),
    ("linear", "input", ()),
    ("linear", "weight", (3,)),
    ("linear", "weight", (1, 4, 3)),
    ("linear", "bias", (3,)),
    ("linear", "bias", (1,)),
    ("linear", "bias", (1, 4)),
    ("linear", "residual", (4,)),
    ("linear", "residual", (1, 4)),
    ("bmm", "input", (2, 3)),
    ("bmm", "input", (2, 2, 3)),
    ("bmm", "mat2", (1, 2, 3)),
    ("bmm", "mat2", (3, 2)),
    ("scaled_dot_product_attention", "query", (2, 4)),
    ("scaled_dot_product_attention", "query", (1, 1, 2, 3)),
    ("scaled_dot_product_attention", "key", (1, 1, 3, 4)),
    ("scaled_dot_product_attention", "key", (1, 2, 2, 4)),
    ("scaled_dot_product_attention", "value", (1, 1, 3, 4)),
    ("scaled_dot_product_attention", "value", (1, 1, 2, 257)),
    ("patch_embed", "input", (1, 2, 2)),
    ("patch_embed", "input", (1, 2, 2, 2)),
    ("patch_embed", "input", (1, 1, 1, 2)),
    ("patch_embed", "weight", (4, 1, 2)),
    ("patch_embed", "weight", (4, 3, 2, 2)),
    ("patch_embed", "weight", (4, 1, 0, 2)),
    ("patch_embed", "bias", (5,)),
    ("patch_embed", "class_token", (1, 1, 3)),
    ("patch_embed", "position_embedding", (1, 4)),
]


@pytest.mark.parametrize("name, argument, shape", WRONG_SHAPES)
def test_a_wrong_shape_is_refused(name, argument, shape):
    words = [str(shape)] if name != "add" else []
    value = torch.ones(shape, device=runtime.DEVICE)
    if name == "add":  # it names the two shapes, since neither is the wrong one
        with pytest.raises(ValueError, match=r"add: shapes .* do not broadcast") as caught:
            kernels.add(ordinary()["add"][1]["input"], value)
        assert str(shape) in str(caught.value) and "(2, 3)" in str(caught.value)
    else:
        refused(name, argument, value, ValueError, *words)


UNSUPPORTED = [
    ("relu", "inplace", True, "not supported"),
    ("gelu", "approximate", "sigmoid", "'sigmoid'"),
    ("linear", "activation", "swish", "'swish'"),
    ("scaled_dot_product_attention", "attn_mask", torch.ones(2, 2, device=runtime.DEVICE), "not supported"),
    ("scaled_dot_product_attention", "dropout_p", 0.1, "not supported"),
    ("scaled_dot_product_attention", "enable_gqa", True, "not supported"),
]


@pytest.mark.parametrize("name, argument, value, word", UNSUPPORTED, ids=lambda value: value if isinstance(value, str) else "")
def test_an_unsupported_argument_is_refused(name, argument, value, word):
    refused(name, argument, value, ValueError, word)


def test_softmax_refuses_a_dtype_a_wrong_dim_and_a_causal_that_has_no_meaning():
    x = torch.ones(2, 3, device=runtime.DEVICE)
    for dtype in (torch.float64, torch.int64, *([torch.bfloat16] if runtime.INTERPRETER else [])):
        with pytest.raises(TypeError, match=rf"softmax: dtype={dtype} is not supported: \w+"):
            kernels.softmax(x, -1, dtype)
    assert torch.equal(kernels.softmax(x, np.int64(0)), kernels.softmax(x, 0))
    for dim in (2, -3, None, 1.0, True):
        with pytest.raises(ValueError, match=rf"softmax: dim is {dim!r}; an int from -2 to 1 is accepted"):
            kernels.softmax(x, dim)
    for value, dim in ((x, 0), (x[0], -1)):
        with pytest.raises(ValueError, match=r"softmax: causal=True needs .*dim=-1"):
            kernels.softmax(value, dim, causal=True)


def test_layer_norm_refuses_a_wrong_normalized_shape():
    x = torch.ones(2, 3, device=runtime.DEVICE)
    for shape in ((), (2,), (3, 2), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"layer_norm: .*normalized_shape"):
            kernels.layer_norm(x, shape)
    for shape in (3, (3.0,)):
        with pytest.raises(TypeError, match=r"layer_norm: normalized_shape is \(?3"):
            kernels.layer_norm(x, shape)


def test_every_public_function_is_tested_here():
    assert set(kernels.__all__) == set(ordinary())
