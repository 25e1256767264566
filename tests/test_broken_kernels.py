"""The tests tested: each one fails for a kernel that is wrong in a way that a kernel is easily wrong.

An entry of the table takes one piece of text out of a kernel's source, puts another in, builds the kernels of that file anew,
in the interpreter as on a GPU, and calls a test of its file as pytest would. A piece of text that stands in a kernel for whole
blocks and again for the rest is replaced in both. A wrong kernel reads and writes at most a few elements past its operands,
which lie between guard bands.
"""

import contextlib
import importlib.util
import inspect
import itertools
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_attention_gradients as attention
import test_cross_entropy as cross_entropy
import test_dropout as dropout
import test_gradients as gradients
import test_kernels as forward
import test_linear_gradients as products
import test_norm_linear as norms
import test_patch_embed_gradients as patches
import torch
import triton.language as tl
from torch.autograd.gradcheck import GradcheckError

from vitcourse import runtime

pytestmark = pytest.mark.filterwarnings("ignore:Using `assume` outside")
SINGLE, HALF = torch.float32, torch.float16
DENSE = ("contiguous",) * 5
_numbers = itertools.count()


class Twice(str):
    """A text that a kernel has twice."""


@contextlib.contextmanager
def broken(module, kernel: str, old: str, new: str, folder: Path) -> Iterator[None]:
    """`module` with `old` replaced by `new` in the source of `kernel`. Its kernels call each other, so all are built anew."""
    jitted = type(getattr(module, kernel))
    sources = {name: inspect.getsource(value.fn) for name, value in vars(module).items() if isinstance(value, jitted)}
    found, wanted = sources[kernel].count(old), 2 if isinstance(old, Twice) else 1
    assert found == wanted, f"{kernel} has {old!r} {found} times; change this test with it"
    sources[kernel] = sources[kernel].replace(old, new)
    # In a file, because Triton reads a kernel's source from there.
    file = folder / f"broken_{next(_numbers)}.py"
    constants = {name: value.value for name, value in vars(module).items() if isinstance(value, tl.constexpr)}
    constants = [f"{name} = tl.constexpr({value!r})\n" for name, value in constants.items()]
    file.write_text("\n\n".join(["import triton\nimport triton.language as tl\n", *constants, *sources.values()]))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    with contextlib.ExitStack() as stack:
        for name in sources:
            stack.enter_context(unittest.mock.patch.object(module, name, getattr(built, name)))
        yield


def run(test: Callable, arguments: dict) -> None:
    """Call a test; one that hypothesis draws for, with these arguments and no drawing."""
    test.hypothesis.inner_test(**arguments) if hasattr(test, "hypothesis") else test(**arguments)


def drawn(shape, **other) -> dict:
    return {"shape": shape, "at": "contiguous", "seed": 0, "dtype": SINGLE} | other


def rows(count, columns, **other) -> dict:
    return {
        "rows": count,
        "columns": columns,
        "at": "contiguous",
        "causal": False,
        "widest": 256,
        "seed": 0,
        "dtype": SINGLE,
    } | other


def pair(shape, ones=(0, 0), **other) -> dict:
    return drawn(shape, dropped=0, ones=ones, at=DENSE[:2]) | other


def norm(shape, **other) -> dict:
    return drawn(shape, trailing=1, at=DENSE, given_=(True, True, False), single=False, eps=1e-5) | other


ADD, GELU, LAYER_NORM, RELU, SOFTMAX, SUM = (
    gradients.ADD, gradients.GELU, gradients.LAYER_NORM, gradients.RELU, gradients.SOFTMAX, gradients.SUM,
)  # fmt: skip
PLUS = "a.to(tl.float32) + b.to(tl.float32)"
ROW_MAXIMUM = "tl.exp(x - tl.max(x, axis=1)[:, None])"
SOFTMAX_GRADIENT = "y * (grad - tl.sum(y * grad, axis=1)[:, None])"
NORM_GRADIENT = "(grad - mean_grad[:, None] - xhat * mean_grad_xhat[:, None]) * rstd[:, None]"
WIDE_NORM_GRADIENT = "(grad - mean_grad - (x - mean) * rstd * mean_grad_xhat) * rstd"
SQUARES = "tl.where(mask, centered * centered, 0.0)"
MASK = "mask = offsets < size"

# (file, kernel, its text, the wrong text, a test that sees it, the test's arguments)
FORWARD = [
    (ADD, "add_kernel", PLUS, PLUS.replace("+", "-"), forward.test_add_drawn, pair((3, 5), at=DENSE[:2])),
    (ADD, "broadcast_add_kernel", PLUS, PLUS.replace("+", "-"), forward.test_add_drawn, pair((3, 5), (0b01, 0))),
    (ADD, "broadcast_add_kernel", "j * other_stride_1 + ", "", forward.test_add_every_broadcast_of_four_dimensions,
     {"dtype": HALF}),
    (ADD, "add_kernel", MASK, "mask = offsets < size - 1", forward.test_elementwise_and_rows,
     {"dtype": SINGLE, "shape": (131, 1030), "layout": "contiguous"}),
    (ADD, "add_kernel", MASK, "mask = offsets < size + 1", forward.test_many_elements, {"dtype": HALF}),
    (ADD, "add_kernel", "tl.int64) * BLOCK", "tl.int64) * (BLOCK + 1)", forward.test_elementwise_small_blocks,
     drawn((30, 30), ones=0)),
    (ADD, "broadcast_add_kernel", "a.to(tl.float32)", "a.to(tl.float16).to(tl.float32)", forward.test_add_of_two_types,
     {"first": SINGLE, "second": HALF}),
    (ADD, "add_kernel", PLUS, f"{PLUS} + 1e-30", forward.test_a_negative_zero_and_the_smallest_numbers, {"dtype": SINGLE}),
    (RELU, "relu_kernel", "x < 0", "x > 0", forward.test_gelu_and_relu_drawn, drawn((3, 5), approximate="none", scale=1.0)),
    (RELU, "relu_kernel", "tl.where(x < 0, 0.0, x)", "tl.where(x > 0, x, 0.0)", forward.test_nan_and_infinities_pass_elementwise,
     {"dtype": SINGLE}),
    (RELU, "relu_kernel", MASK, "mask = offsets < size + 1", forward.test_elementwise_small_blocks, drawn((30, 30), ones=0)),
    (GELU, "gelu_erf", "0.7071067811865476", "0.7071", forward.test_gelu_and_relu_drawn,
     drawn((3, 5), approximate="none", scale=1.0)),
    (GELU, "gelu_tanh", "0.044715", "0.0447", forward.test_gelu_and_relu_drawn, drawn((3, 5), approximate="tanh", scale=1.0)),
    (GELU, "gelu_tanh", "tl.sigmoid(2.0 * u)", "tl.exp(2.0 * u) / (1.0 + tl.exp(2.0 * u))", forward.test_gelu_of_large_numbers,
     {"dtype": SINGLE}),
    (GELU, "phi_fast", "0.075828061", "0.0755", forward.test_the_approximate_gelu_is_good_to_bfloat16,
     {"monkeypatch": "a fixture"}),
    (GELU, "gelu_kernel", "* BLOCK + tl.arange", "* BLOCK + 1 + tl.arange", forward.test_elementwise_and_rows,
     {"dtype": SINGLE, "shape": (5, 1, 7), "layout": "stepped"}),
    (SOFTMAX, "softmax_kernel", ROW_MAXIMUM, "tl.exp(x)", forward.test_softmax_drawn,
     drawn((3, 37), dim=-1, causal=False, scale=30.0)),
    (SOFTMAX, "softmax_kernel", 'other=-float("inf")', "other=0.0", forward.test_softmax_drawn,
     drawn((3, 5), dim=-1, causal=False, scale=1.0)),
    (SOFTMAX, "softmax_kernel", "column <= row % queries", "column < row % queries", forward.test_elementwise_and_rows,
     {"dtype": SINGLE, "shape": (5, 1, 7), "layout": "contiguous"}),
    (SOFTMAX, "softmax_kernel", "y, mask=inside", "y, mask=mask", forward.test_rows_small_blocks, rows(9, 15, causal=True)),
    (SOFTMAX, "softmax_kernel", "column.to(tl.int64) * column_stride", "column.to(tl.int64)", forward.test_elementwise_and_rows,
     {"dtype": SINGLE, "shape": (5, 1, 7), "layout": "stepped"}),
    (SOFTMAX, "softmax_kernel", ROW_MAXIMUM, "tl.exp(x)", forward.test_softmax_of_special_rows,
     {"dtype": SINGLE, "widest": None}),
    (SOFTMAX, "wide_softmax_kernel", "tl.where(larger == -float(\"inf\"), 0.0, larger)", "larger",
     forward.test_softmax_of_special_rows, {"dtype": SINGLE, "widest": 16}),
    (SOFTMAX, "wide_softmax_kernel", "total * tl.exp(maximum - shift)", "total", forward.test_very_wide_rows, {"dtype": HALF}),
    (SOFTMAX, "wide_softmax_kernel", "row % queries + 1", "row % queries + 2", forward.test_rows_small_blocks,
     rows(9, 33, causal=True, widest=16)),
    (SOFTMAX, "softmax_kernel", "column, y, mask=inside", "column, y.to(tl.float16), mask=inside",
     forward.test_softmax_in_another_type, {"dtype": HALF, "layout": "contiguous"}),
    (SOFTMAX, "softmax_kernel", "column, y, mask=inside", "column, y.to(tl.float16), mask=inside",
     forward.test_softmax_in_float32_loses_nothing_of_float16, {}),
    (LAYER_NORM, "layer_norm_kernel", SQUARES, "centered * centered", forward.test_layer_norm_drawn, norm((4, 5))),
    (LAYER_NORM, "layer_norm_kernel", "variance + eps", "variance", forward.test_elementwise_and_rows,
     {"dtype": SINGLE, "shape": (197, 1), "layout": "contiguous"}),
    (LAYER_NORM, "layer_norm_kernel", f"variance = tl.sum({SQUARES}, axis=1) / columns",
     "variance = tl.sum(x * x, axis=1) / columns - mean * mean", forward.test_layer_norm_of_rows_far_from_zero,
     {"dtype": SINGLE, "columns": 768, "widest": None}),
    (LAYER_NORM, "wide_layer_norm_kernel", "sums += x", "sums = x", forward.test_layer_norm_of_rows_far_from_zero,
     {"dtype": SINGLE, "columns": 768, "widest": 64}),
    (LAYER_NORM, "wide_layer_norm_kernel", "tl.where(column < columns, x - mean, 0.0)", "x - mean",
     forward.test_rows_small_blocks, rows(9, 33, widest=16)),
    (LAYER_NORM, "layer_norm_kernel", "x += tl.load(residual_ptr", "x -= tl.load(residual_ptr",
     forward.test_layer_norm_drawn, norm((4, 5), given_=(True, True, True))),
    (LAYER_NORM, "layer_norm_kernel", "y += tl.load(bias_ptr", "y -= tl.load(bias_ptr",
     forward.test_layer_norm_with_float32_parameters_and_a_residual, {"dtype": HALF, "widest": None}),
    (LAYER_NORM, "wide_layer_norm_kernel", "columns_ptr, column_stride = total_ptr + first, 1", "column_stride += 0",
     forward.test_layer_norm_with_float32_parameters_and_a_residual, {"dtype": HALF, "widest": 16}),
]  # fmt: skip

BACKWARD = [
    (SUM, "sum_kernel", "total += tl.load", "total -= tl.load", gradients.test_add_drawn, pair((5, 7), (0b01, 0), at=DENSE[:3])),
    (SUM, "sum_kernel", "index // inner * reduced * inner", "index // inner * inner", gradients.test_add_of_broadcasts,
     {"dtype": SINGLE, "a": (5, 7), "b": (5, 1)}),
    (SUM, "sum_kernel", "index % inner", "index", gradients.test_add_every_broadcast_of_three_dimensions, {"dtype": SINGLE}),
    (SUM, "sum_kernel", "other=0.0", "other=1.0", gradients.test_add_every_broadcast_of_three_dimensions, {"dtype": HALF}),
    (SUM, "sum_kernel", "other=0.0).to(tl.float32)", "other=0.0).to(tl.float16)",
     gradients.test_a_gradient_of_add_has_its_operands_type, {"first": SINGLE, "second": SINGLE}),
    (SUM, "sum_kernel", "mask=index < kept)", "mask=index < kept + 1)", gradients.test_add_of_broadcasts,
     {"dtype": SINGLE, "a": (2, 3, 4, 5), "b": (5,)}),
    (SUM, "sum_kernel", "mask=index < kept)", "mask=index < kept - 1)", gradients.test_add_of_broadcasts,
     {"dtype": SINGLE, "a": (5, 7), "b": ()}),
    (SUM, "sum_kernel", "total = tl.zeros((BLOCK_REDUCED, BLOCK_KEPT), tl.float32)",
     "total = tl.full((BLOCK_REDUCED, BLOCK_KEPT), 1.0, tl.float32)", gradients.test_zero_size,
     {"dtype": SINGLE, "shape": (0, 5)}),
    (SUM, "sum_kernel", "total += tl.load", "total = tl.load", gradients.test_add_small_blocks,
     drawn((300, 9), ones=(0, 0b01), split=False)),
    (SUM, "sum_kernel", "BLOCK_REDUCED, reduced, splits", "BLOCK_REDUCED, reduced - BLOCK_REDUCED + 1, splits",
     gradients.test_add_small_blocks, drawn((301, 9), ones=(0, 0b01), split=False)),
    (SUM, "sum_kernel", "splits * BLOCK_REDUCED)", "BLOCK_REDUCED)", gradients.test_add_small_blocks,
     drawn((2100, 2), ones=(0, 0b01), split=True)),
    (SUM, "sum_kernel", "split.to(tl.int64) * kept + index", "index", gradients.test_add_small_blocks,
     drawn((2100, 2), ones=(0, 0b01), split=True)),
    (SUM, "sum_kernel", "other=0.0).to(tl.float32)",
     "other=0.0).to(tl.float32)\n        total = total.to(tl.float16).to(tl.float32)", gradients.test_many_elements,
     {"dtype": SINGLE}),
    (RELU, "relu_backward_kernel", "y <= 0", "y < 0", gradients.test_relu_where_it_bends, {}),
    (RELU, "relu_backward_kernel", "0.0, grad", "0.0, y", gradients.test_gelu_and_relu_drawn,
     drawn((3, 5), at=DENSE[:2], approximate="none", scale=1.0)),
    (RELU, "relu_backward_kernel", MASK, "mask = offsets < size - 1", gradients.test_elementwise_small_blocks, drawn((30, 3))),
    (RELU, "relu_backward_kernel", "y <= 0", "y >= 0", gradients.test_layouts, {"dtype": HALF, "layout": "stepped"}),
    (GELU, "gelu_backward_kernel", "slope = phi + x", "slope = phi + 0.0 * x", gradients.test_gelu_and_relu_drawn,
     drawn((3, 5), at=DENSE[:2], approximate="none", scale=1.0)),
    (GELU, "gelu_backward_kernel", "0.3989422804014327", "0.39894", gradients.test_elementwise_small_blocks, drawn((30, 3))),
    (GELU, "gelu_backward_kernel", "0.134145", "0.044715", gradients.test_gelu_and_relu_drawn,
     drawn((3, 5), at=DENSE[:2], approximate="tanh", scale=1.0)),
    (GELU, "gelu_backward_kernel", "tl.exp(-0.5 * x * x)", "tl.exp(0.5 * x * x)", gradients.test_gelu_far_from_zero,
     {"dtype": SINGLE}),
    (GELU, "gelu_backward_kernel", "grad * slope", "slope", gradients.test_gradients_that_come_from_a_sum_or_a_transpose,
     {"dtype": SINGLE}),
    (GELU, "gelu_backward_kernel", "slope = phi + x", "slope = phi - x", gradients.test_gradcheck, {"name": "gelu"}),
    (GELU, "gelu_backward_kernel", "0.134145", "0.044715", gradients.test_gradcheck, {"name": "gelu tanh"}),
    (SOFTMAX, "softmax_backward_kernel", SOFTMAX_GRADIENT, "y * grad", gradients.test_softmax_drawn,
     drawn((3, 5), at=DENSE[:2], dim=-1, causal=False, scale=1.0)),
    (SOFTMAX, "softmax_backward_kernel", SOFTMAX_GRADIENT, SOFTMAX_GRADIENT[4:], gradients.test_softmax_drawn,
     drawn((3, 5), at=DENSE[:2], dim=0, causal=False, scale=1.0)),
    (SOFTMAX, "softmax_backward_kernel", SOFTMAX_GRADIENT, "y * (grad - tl.sum(grad, axis=1)[:, None])", gradients.test_gradcheck,
     {"name": "softmax"}),
    (SOFTMAX, "softmax_backward_kernel", SOFTMAX_GRADIENT, f"({SOFTMAX_GRADIENT}).to(tl.float16)",
     gradients.test_softmax_in_another_type, {"dtype": SINGLE}),
    (SOFTMAX, "softmax_backward_kernel", "input_grad, mask=mask", "input_grad, mask=mask & (y > 0.0)",
     gradients.test_softmax_of_extreme_rows, {"dtype": SINGLE, "widest": None}),
    (SOFTMAX, "wide_softmax_backward_kernel", "y * (grad - dot)", "y * grad", gradients.test_softmax_of_extreme_rows,
     {"dtype": SINGLE, "widest": 16}),
    (SOFTMAX, "wide_softmax_backward_kernel", "total += y", "total = y", gradients.test_softmax_of_very_wide_rows,
     {"dtype": SINGLE}),
    (SOFTMAX, "wide_softmax_backward_kernel", "(grad - dot), mask=column < columns", "(grad - dot), mask=column < columns + 1",
     gradients.test_rows_small_blocks, rows(3, 33, widest=16)),
    (SOFTMAX, "softmax_backward_kernel", "* BLOCK_ROWS + tl", "* (BLOCK_ROWS - 1) + tl", gradients.test_rows_small_blocks,
     rows(31, 17)),
    (SOFTMAX, "softmax_backward_kernel", "y * (grad", "(1.0 - y) * (grad", gradients.test_layouts,
     {"dtype": SINGLE, "layout": "contiguous"}),
    (LAYER_NORM, "layer_norm_backward_kernel", NORM_GRADIENT, NORM_GRADIENT.replace(" - mean_grad[:, None]", ""),
     gradients.test_layer_norm_drawn, norm((4, 9))),
    (LAYER_NORM, "layer_norm_backward_kernel", NORM_GRADIENT, NORM_GRADIENT.replace(" - xhat * mean_grad_xhat[:, None]", ""),
     gradients.test_layer_norm_drawn, norm((4, 9))),
    (LAYER_NORM, "layer_norm_backward_kernel", NORM_GRADIENT, NORM_GRADIENT.replace(" * rstd[:, None]", ""),
     gradients.test_layer_norm_of_rows_far_from_zero, {"dtype": SINGLE, "widest": None}),
    (LAYER_NORM, "layer_norm_backward_kernel", "grad = tl.load(grad_ptr + here, mask=mask, other=0.0)",
     "grad = tl.load(grad_ptr + here, mask=mask, other=1.0)", gradients.test_layer_norm_drawn,
     norm((4, 9), given_=(False,) * 3)),
    (LAYER_NORM, "layer_norm_backward_kernel", "grad *= weight", "grad *= 1.0", gradients.test_layer_norm_with_some_of_it_frozen,
     {"dtype": SINGLE, "needed": ["input"], "widest": None}),
    (LAYER_NORM, "layer_norm_backward_kernel", "weight_grad += grad * xhat", "weight_grad += grad",
     gradients.test_layer_norm_with_some_of_it_frozen, {"dtype": SINGLE, "needed": ["weight"], "widest": None}),
    (LAYER_NORM, "layer_norm_backward_kernel", "weight_grad += grad * xhat", "weight_grad = grad * xhat",
     gradients.test_layer_norm_of_many_rows, {"dtype": SINGLE, "rows": 67, "widest": None}),
    (LAYER_NORM, "layer_norm_backward_kernel", "bias_grad += grad", "bias_grad = grad",
     gradients.test_layer_norm_of_many_rows, {"dtype": HALF, "rows": 67, "widest": None}),
    (LAYER_NORM, "layer_norm_backward_kernel", "partial_ptr += tl.program_id(0).to(tl.int64) * 2 * columns",
     "partial_ptr += tl.program_id(0).to(tl.int64) * 0", gradients.test_layer_norm_of_many_rows,
     {"dtype": SINGLE, "rows": 67, "widest": None}),
    (LAYER_NORM, "layer_norm_backward_kernel", "tl.sum(bias_grad, axis=0)", "tl.sum(weight_grad, axis=0)",
     gradients.test_layer_norm_with_float32_parameters, {"dtype": HALF, "widest": None}),
    (LAYER_NORM, "layer_norm_backward_kernel", "input_grad += tl.load(total_grad_ptr", "input_grad -= tl.load(total_grad_ptr",
     gradients.test_layer_norm_residual, {"dtype": SINGLE, "used": (True, True), "widest": None}),
    (LAYER_NORM, "layer_norm_backward_kernel", "row[:, None] * row_stride", "row[:, None] * columns",
     gradients.test_layouts, {"dtype": SINGLE, "layout": "padded"}),
    (LAYER_NORM, "layer_norm_backward_kernel", NORM_GRADIENT, NORM_GRADIENT.replace(" - mean_grad[:, None]", ""),
     gradients.test_gradcheck, {"name": "layer norm"}),
    (LAYER_NORM, "layer_norm_kernel", "statistics_ptr + rows + row, rstd", "statistics_ptr + rows + row, variance",
     gradients.test_gradcheck, {"name": "layer norm of a sum"}),
    (LAYER_NORM, "wide_layer_norm_kernel", "statistics_ptr + row, mean", "statistics_ptr + row, mean + 1e-3",
     gradients.test_layer_norm_with_float32_parameters, {"dtype": SINGLE, "widest": 16}),
    (LAYER_NORM, "wide_layer_norm_backward_kernel", "sum_grad += grad", "sum_grad = grad",
     gradients.test_layer_norm_of_very_wide_rows, {"dtype": SINGLE}),
    (LAYER_NORM, "wide_layer_norm_backward_kernel", WIDE_NORM_GRADIENT, WIDE_NORM_GRADIENT[: -len(" * rstd")],
     gradients.test_rows_small_blocks, rows(9, 33, widest=16)),
    (LAYER_NORM, "wide_layer_norm_backward_kernel", WIDE_NORM_GRADIENT, WIDE_NORM_GRADIENT.replace("(x - mean)", "x"),
     gradients.test_layer_norm_of_rows_far_from_zero, {"dtype": SINGLE, "widest": 64}),
    (LAYER_NORM, "wide_layer_norm_backward_kernel", "input_grad += tl.load(total_grad_ptr + first",
     "input_grad += tl.load(grad_ptr + first", gradients.test_layer_norm_residual,
     {"dtype": SINGLE, "used": (True, True), "widest": 16}),
    (LAYER_NORM, "wide_layer_norm_partial_kernel", " * rstd[:, None]", "", gradients.test_layer_norm_with_some_of_it_frozen,
     {"dtype": SINGLE, "needed": ["weight", "bias"], "widest": 16}),
    (LAYER_NORM, "wide_layer_norm_partial_kernel", "rows, splits * BLOCK_ROWS", "rows, rows",
     gradients.test_layer_norm_of_many_rows, {"dtype": SINGLE, "rows": 67, "widest": 16}),
    (LAYER_NORM, "wide_layer_norm_partial_kernel", "bias_grad += grad", "bias_grad = grad",
     gradients.test_layer_norm_of_many_rows, {"dtype": SINGLE, "rows": 67, "widest": 16}),
    (LAYER_NORM, "wide_layer_norm_partial_kernel", "partial_ptr += split * 2 * columns", "partial_ptr += split * 0",
     gradients.test_layer_norm_of_many_rows, {"dtype": HALF, "rows": 67, "widest": 16}),
]  # fmt: skip

BMM, LINEAR = products.BMM, products.LINEAR
LOAD = "weight.load([start, tile_n * BLOCK_N])"


def product(M=33, N=35, K=50, **other) -> dict:
    return {"M": M, "N": N, "K": K, "splits": 3, "activation": None, "at": "contiguous", "seed": 0, "dtype": SINGLE} | other


PRODUCTS = [
    (LINEAR, "linear_kernel", "tl.store(preactivation_ptr + m[:, None] * N + n[None, :], accumulator",
     "tl.store(preactivation_ptr + m[:, None] * N + n[None, :], accumulator + 1e-3", products.test_every_activation,
     {"dtype": SINGLE, "activation": "gelu"}),
    (LINEAR, "linear_kernel", "mask = (m < M)[:, None] & (n < N)[None, :]", "mask = (m < M)[:, None] & (n < N + 1)[None, :]",
     products.test_linear_drawn,
     {"leading": (), "M": 5, "N": 7, "K": 3, "at": DENSE, "activation": "gelu_tanh", "given_": (True, False), "seed": 0,
      "dtype": SINGLE}),
    (LINEAR, "linear_kernel", "accumulator += bias", "accumulator -= bias",
     products.test_linear_with_some_of_it_frozen, {"dtype": SINGLE, "activation": "relu", "needed": ["weight"]}),
    (LINEAR, "linear_kernel", "tl.minimum(first + share, K)", "first + share - BLOCK_K", products.test_linear_small_blocks,
     product(M=80)),
    (LINEAR, "linear_kernel", "first = split * share", "first = split * share + 1", products.test_linear_small_blocks,
     product(M=80)),
    (LINEAR, "linear_kernel", "first = split * share", "first = split * BLOCK_K", products.test_weight_gradient_of_many_rows,
     {"dtype": SINGLE, "rows": 1000, "splits": 4}),
    (LINEAR, "linear_kernel", "output_ptr += split.to(tl.int64) * M * N", "output_ptr += split.to(tl.int64) * 0",
     products.test_weight_gradient_of_many_rows, {"dtype": HALF, "rows": 64, "splits": 4}),
    (LINEAR, "linear_kernel", "a_ptrs += first.to(tl.int64) * input_column_stride", "a_ptrs += first.to(tl.int64)",
     products.test_layouts, {"dtype": SINGLE, "layout": "contiguous"}),
    (LINEAR, "linear_kernel", "b_ptrs += first.to(tl.int64) * weight_column_stride", "b_ptrs += 0",
     products.test_layouts, {"dtype": HALF, "layout": "padded"}),
    (LINEAR, "linear_kernel", "k64[None, :] * input_column_stride", "k64[None, :] * tl.minimum(input_column_stride, 11)",
     products.test_linear_of_more_dimensions, {"dtype": SINGLE}),
    (LINEAR, "linear_kernel", "n[None, :] * weight_row_stride", "n[None, :]",
     products.test_gradients_that_come_from_a_sum_or_a_transpose, {"dtype": SINGLE}),
    (LINEAR, "linear_kernel", "tl.zeros((BLOCK_M, BLOCK_N), tl.float32)", "tl.full((BLOCK_M, BLOCK_N), 1.0, tl.float32)",
     products.test_zero_size, {"dtype": SINGLE, "M": 0, "N": 5, "K": 3}),
    (LINEAR, "linear_kernel", Twice("tl.dot(a, b, accumulator, input_precision=PRECISION)"),
     "tl.dot(a, b, accumulator, input_precision=PRECISION).to(tl.float16).to(tl.float32)",
     products.test_sums_over_rows_are_kept_in_float32, {}),
    (LINEAR, "linear_kernel", LOAD, LOAD.replace("tile_n", "tile_m"), products.test_linear_through_descriptors,
     {"dtype": SINGLE, "activation": None, "splits": 1}),
    (LINEAR, "linear_kernel", "input.load([start, tile_m * BLOCK_M]).T", "input.load([start - first, tile_m * BLOCK_M]).T",
     products.test_linear_through_descriptors, {"dtype": HALF, "activation": "gelu", "splits": 3}),
    (LINEAR, "linear_kernel", "b_mask = n[None, :] < N", "b_mask = n[None, :] < N - 1", products.test_gradcheck,
     {"name": "linear"}),
    (LINEAR, "linear_kernel", "(m < M)[:, None]", "(m < M - 1)[:, None]",
     products.test_a_gradient_that_is_no_number_stays_where_it_is, {"dtype": SINGLE}),
    (BMM, "bmm_kernel", "accumulator * scale", "accumulator", products.test_bmm_drawn,
     {"batch": 2, "M": 5, "N": 7, "K": 3, "at": DENSE[:3], "scale": 0.125, "seed": 0, "dtype": SINGLE}),
    (BMM, "bmm_kernel", "b_ptrs += tl.cast(mat2_row_stride, tl.int64) * BLOCK_K", "b_ptrs += BLOCK_K",
     products.test_bmm_small_blocks, {"dtype": HALF}),
    (BMM, "bmm_kernel", "n[None, :] * mat2_column_stride", "n[None, :]", products.test_bmm_with_one_side_frozen,
     {"dtype": SINGLE}),
    (BMM, "bmm_kernel", "k[None, :] < K - start", "k[None, :] <= K - start", products.test_bmm_small_blocks, {"dtype": SINGLE}),
    (BMM, "bmm_kernel", "k64[None, :] * input_column_stride", "k64[None, :]", products.test_gradcheck, {"name": "bmm"}),
]  # fmt: skip


PERSIST, FINISH_TILE, TILE_OF = ((LINEAR, name) for name in ("persistent_linear_kernel", "finish_tile", "tile_of"))


def persistent(programs, halves=2, **other) -> tuple[Callable, dict]:
    arguments = {"dtype": SINGLE, "halves": halves, "programs": programs, "monkeypatch": "a fixture"}
    return forward.test_persistent_linear, arguments | other


def with_activation(activation: str) -> dict:
    drawn = {"leading": (), "M": 5, "N": 7, "K": 3, "at": DENSE[:4], "given_": (True, False), "seed": 0, "dtype": SINGLE}
    return drawn | {"activation": activation}


PERSISTENT = [
    (*PERSIST, "tile += programs", "tile = tl.program_id(0)", *persistent(4)),
    (*PERSIST, "tl.program_id(0) - programs", "tl.maximum(tl.program_id(0), 1) - programs", *persistent(4)),
    (*PERSIST, "tl.cdiv(tiles_m * tiles_n - tl.program_id(0), programs)", "tiles_m * tiles_n // programs", *persistent(4)),
    (*PERSIST, "tl.where(step == steps - 1, 0, step + 1)", "step + 1", *persistent(1)),
    (*PERSIST, "\n            accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)", "\n            accumulator += 0.0",
     *persistent(1, halves=1)),
    (*PERSIST, "tl.dot(a, b, accumulator, input_precision=PRECISION)", "tl.dot(a, b, input_precision=PRECISION)",
     *persistent(500)),
    (*PERSIST, "steps = tl.cdiv(K, BLOCK_K)", "steps = tl.maximum(K // BLOCK_K, 1)", *persistent(500)),
    (*PERSIST, "input.load([row, step * BLOCK_K])", "input.load([row, 0])", *persistent(500)),
    (*PERSIST, "weight.load([column, step * BLOCK_K])", "weight.load([row, step * BLOCK_K])", *persistent(500, dtype=HALF)),
    (*PERSIST, "weight.load([step * BLOCK_K, column])", "weight.load([step * BLOCK_K, row])", *persistent(4)),
    (*PERSIST, "input.load([step * BLOCK_K, row])", "input.load([step * BLOCK_K, column])", *persistent(4)),
    (*PERSIST, "tl.permute(tl.reshape(accumulator, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))",
     "tl.reshape(accumulator, (BLOCK_M, BLOCK_N // 2, 2))", *persistent(500)),
    (*PERSIST, "right, row, column + BLOCK_N // 2, N", "right, row, column, N", *persistent(500)),
    (*FINISH_TILE, "accumulator += tl.load(bias_ptr", "accumulator -= tl.load(bias_ptr", *persistent(500, halves=1)),
    (*FINISH_TILE, "tl.load(bias_ptr + n, mask=n < N", "tl.load(bias_ptr + n, mask=n < N - 1", *persistent(500)),
    (*FINISH_TILE, "accumulator.to(preactivation.dtype)", "(accumulator + 1e-3).to(preactivation.dtype)", *persistent(500)),
    (*FINISH_TILE, "accumulator = activate(accumulator, ACTIVATION)", "", *persistent(500, halves=1)),
    (*FINISH_TILE, "residual.load([row, column])", "residual.load([row, 0])", *persistent(1)),
    (*FINISH_TILE, "output.store([row, column]", "output.store([row, 0]", *persistent(1)),
    (*TILE_OF, "tl.minimum(tiles_m - group * GROUP_M, GROUP_M)", "GROUP_M", *persistent(500)),
    (*TILE_OF, "within // group_height", "within // GROUP_M", *persistent(4, halves=1)),
    # What both kernels call.
    (LINEAR, "activate", "x < 0", "x > 0", forward.test_linear_drawn, with_activation("relu")),
    (LINEAR, "activate", "gelu_tanh(x)", "gelu_erf(x)", forward.test_linear_drawn, with_activation("gelu_tanh")),
]  # fmt: skip


ATTENTION, QUERIES, KEYS = attention.ATTENTION, "attention_query_backward_kernel", "attention_key_backward_kernel"
QUERY_STEP = "attention_query_backward_step"
STEP, ROWS, OF_THE_REST = (
    "attention_key_backward_step",
    "load_rows",
    "mask=(row < rows - first)[:, None] & (column < columns)[None, :]",
)
BLOCKS = {"block_m": 16, "block_n": 16, "is_causal": False, "dtype": SINGLE}


def attend(queries, keys, is_causal=False, **other) -> dict:
    return {"queries": queries, "keys": keys, "is_causal": is_causal, "dtype": SINGLE} | other


def head(**other) -> dict:
    drawn = {"batch": 1, "head": 2, "head_size": 8, "value_size": 12, "at": DENSE[:4], "scale": 3.0, "seed": 0}
    return attend(9, 7) | drawn | other


ATTENTIONS = [
    (ATTENTION, "attention_kernel", "maximum + tl.log2(total)", "tl.log2(total)", attention.test_drawn, head()),
    (ATTENTION, "attention_kernel", "+ tl.log2(total)", "+ tl.log(total)", attention.test_gradcheck,
     {"is_causal": False}),
    (ATTENTION, "attention_kernel", "+ tl.log2(total)", "- tl.log2(total)", attention.test_large_scores,
     {"dtype": SINGLE, "is_causal": False}),
    (ATTENTION, "attention_kernel", "* queries + m64, maximum", "* keys + m64, maximum",
     attention.test_as_many_queries_as_keys_or_not, attend(16, 17)),
    (ATTENTION, QUERY_STEP, "p * (p_grad - delta[:, None])", "p * p_grad", attention.test_drawn, head()),
    (ATTENTION, QUERY_STEP, "p * (p_grad - delta[:, None])", "(p_grad - delta[:, None])", attention.test_layouts,
     {"dtype": HALF, "layout": "contiguous"}),
    (ATTENTION, QUERIES, "query_grad * scale", "query_grad", attention.test_packed_queries_keys_and_values,
     {"dtype": HALF, "embedding": 64, "is_causal": False}),
    (ATTENTION, QUERIES, "query_grad * scale", "query_grad * base2_scale", attention.test_gradcheck, {"is_causal": True}),
    (ATTENTION, QUERY_STEP, 'p = tl.where(visible, p, -float("inf"))', "", attention.test_scores_far_from_zero,
     {"dtype": SINGLE, "sign": -1.0, "is_causal": False}),
    (ATTENTION, QUERY_STEP, "n[None, :] <= m[:, None]", "n[None, :] < m[:, None]",
     attention.test_as_many_queries_as_keys_or_not, attend(16, 17, True)),
    (ATTENTION, QUERY_STEP, "n[None, :] <= m[:, None]", "n[None, :] <= m[:, None] + 1",
     attention.test_as_many_queries_as_keys_or_not, attend(130, 33, True)),
    (ATTENTION, QUERIES, "range(0, whole, BLOCK_N)", "range(0, tl.minimum(whole, BLOCK_N), BLOCK_N)",
     attention.test_small_blocks, BLOCKS),
    (ATTENTION, QUERY_STEP, "* base2_scale - logsumexp", "* base2_scale * 0.7 - logsumexp", attention.test_small_blocks, BLOCKS),
    (ATTENTION, QUERIES, "range(whole, last, BLOCK_N,", "range(0, last, BLOCK_N,", attention.test_small_blocks,
     BLOCKS | {"is_causal": True}),
    (ATTENTION, QUERIES, "range(whole, last, BLOCK_N,", "range(whole, tl.minimum(last, whole + BLOCK_N), BLOCK_N,",
     attention.test_small_blocks, {"block_m": 128, "block_n": 32, "is_causal": True, "dtype": SINGLE}),
    (ATTENTION, QUERIES, "elif whole < keys:", "elif whole < keys - BLOCK_N + 1:",
     attention.test_drawn_small_blocks, {"at": DENSE[:4], "seed": 0, "blocks": (16, 16)} | attend(33, 40)),
    (ATTENTION, QUERIES, "delta, whole, key_ptr", "delta, whole + 1, key_ptr", attention.test_small_blocks, BLOCKS),
    (ATTENTION, QUERIES, "tl.minimum(keys, first + BLOCK_M)", "tl.minimum(keys, first)", attention.test_small_blocks,
     BLOCKS | {"is_causal": True}),
    (ATTENTION, QUERIES, "tl.minimum(keys, first)", "tl.minimum(keys, first + BLOCK_M)", attention.test_small_blocks,
     BLOCKS | {"is_causal": True}),
    (ATTENTION, QUERIES, "grad_ptr, first, grad_row_stride", "grad_ptr, first, value_size", attention.test_layouts,
     {"dtype": SINGLE, "layout": "padded"}),
    (ATTENTION, QUERIES, "grad_row_stride, grad_column_stride, queries", "grad_row_stride, 1, queries", attention.test_layouts,
     {"dtype": SINGLE, "layout": "stepped"}),
    (ATTENTION, QUERIES, "delta_ptr + statistics + m64", "delta_ptr + m64", attention.test_with_some_of_it_frozen,
     {"dtype": SINGLE, "needed": ["key"], "is_causal": False}),
    (ATTENTION, QUERIES, "delta, mask=m_mask)", "delta)", attention.test_drawn, head(queries=17)),
    (ATTENTION, QUERIES, "query_grad * scale, mask=m_mask[:, None] & (d < head_size)[None, :])",
     "query_grad * scale, mask=m_mask[:, None])", attention.test_drawn, head(head_size=17)),
    (ATTENTION, STEP, "p * (p_grad - delta[None, :])", "p * p_grad", attention.test_drawn, head()),
    (ATTENTION, STEP, "p * (p_grad - delta[None, :])", "p * (p_grad + delta[None, :])", attention.test_gradcheck,
     {"is_causal": False}),
    (ATTENTION, STEP, "p * (p_grad - delta[None, :])", "p_grad - delta[None, :]", attention.test_packed_queries_keys_and_values,
     {"dtype": SINGLE, "embedding": 60, "is_causal": True}),
    (ATTENTION, KEYS, "value_grad, mask=v_mask", "value_grad * 1.01, mask=v_mask", attention.test_beside_every_backend,
     {"dtype": HALF, "head_size": 64, "is_causal": True}),
    (ATTENTION, KEYS, "key_grad * scale", "key_grad", attention.test_lengths_and_head_sizes,
     {"dtype": HALF, "tokens": 16, "head_size": 32, "is_causal": False}),
    (ATTENTION, KEYS, "key_grad * scale", "key_grad * base2_scale", attention.test_gradcheck, {"is_causal": True}),
    (ATTENTION, STEP, "n[:, None] <= row[None, :]", "n[:, None] < row[None, :]", attention.test_lengths_and_head_sizes,
     {"dtype": SINGLE, "tokens": 5, "head_size": 16, "is_causal": True}),
    (ATTENTION, STEP, "n[:, None] <= row[None, :]", "n[:, None] <= row[None, :] + queries",
     attention.test_as_many_queries_as_keys_or_not, attend(33, 130, True)),
    (ATTENTION, KEYS, "start_at = first ", "start_at = first + BLOCK_N ", attention.test_small_blocks,
     BLOCKS | {"is_causal": True}),
    (ATTENTION, KEYS, "range(start_at, rest, BLOCK_M)", "range(start_at, tl.minimum(rest, start_at + BLOCK_M), BLOCK_M)",
     attention.test_small_blocks, BLOCKS),
    (ATTENTION, KEYS, "n, rest, grad_ptr", "n, rest + 1, grad_ptr",
     attention.test_gradients_of_values_add_up, {"dtype": HALF}),
    (ATTENTION, KEYS, "if rest < queries:", "if rest < queries - BLOCK_M + 1:",
     attention.test_drawn_small_blocks, {"at": DENSE[:4], "seed": 0, "blocks": (16, 16)} | attend(40, 33)),
    (ATTENTION, STEP, "scores * base2_scale - logsumexp[None, :]", "scores * base2_scale", attention.test_large_scores,
     {"dtype": SINGLE, "is_causal": True}),
    (ATTENTION, STEP, "base2_scale - logsumexp[None, :]", "base2_scale - logsumexp[None, :] + 1e-3",
     attention.test_gradients_of_values_add_up, {"dtype": SINGLE}),
    (ATTENTION, STEP, "grad_ptr, start, grad_row_stride", "grad_ptr, start, value_size", attention.test_layouts,
     {"dtype": SINGLE, "layout": "padded"}),
    (ATTENTION, ROWS, f"{OF_THE_REST}, other=0.0)", f"{OF_THE_REST}, other=1.0)", attention.test_with_some_of_it_frozen,
     {"dtype": SINGLE, "needed": ["value"], "is_causal": False}),
    (ATTENTION, ROWS, f"{OF_THE_REST}, other=0.0)", "mask=(column < columns)[None, :])", attention.test_drawn, head()),
    (ATTENTION, ROWS, f"{OF_THE_REST}, other=0.0)", "mask=(row < rows - first)[:, None])", attention.test_drawn, head()),
    (ATTENTION, ROWS, "if ROWS_FIT and FITS:", "if ROWS_FIT:", attention.test_small_blocks, BLOCKS),
    (ATTENTION, KEYS, "value_grad, mask=v_mask", "value_grad, mask=(v < value_size)[None, :]", attention.test_drawn,
     head(keys=9)),
    (ATTENTION, STEP, "value_grad = tl.dot(p.to(grad.dtype), grad, value_grad,", "value_grad = tl.dot(p.to(grad.dtype), grad,",
     attention.test_lengths_and_head_sizes, {"dtype": SINGLE, "tokens": 577, "head_size": 16, "is_causal": False}),
    (ATTENTION, STEP, "score_grad.to(q.dtype), q, key_grad,", "score_grad.to(q.dtype), q,", attention.test_small_blocks, BLOCKS),
    (ATTENTION, KEYS, "value_grad_row_stride + v[None, :], value_grad", "value_grad_row_stride + v[None, :], value_grad * scale",
     attention.test_one_tensor_as_query_key_and_value, {}),
]  # fmt: skip


PATCH_EMBED = patches.PATCH_EMBED
OF_WEIGHT, OF_IMAGE, CORNER, PIXEL = (
    (PATCH_EMBED, name)
    for name in ("patch_embed_weight_backward_kernel", "patch_embed_input_backward_kernel", "patch_offset", "pixel_offset")
)


def images(**other) -> dict:
    drawn = {"batch": 2, "channels": 2, "patch": (3, 4), "patches": (2, 3), "over": (1, 1), "hidden": 5, "at": (*DENSE, DENSE[0])}
    return {"given_": (True,) * 3, "seed": 0, "dtype": SINGLE} | drawn | other


def small_images(**other) -> dict:
    sizes = {"batch": 3, "channels": 2, "patch": (3, 4), "patches": (3, 5), "hidden": 17, "splits": 3, "class_token": True}
    return {"at": "contiguous", "seed": 0, "dtype": SINGLE} | sizes | other


PATCHES = [
    (*OF_WEIGHT, "row = row + image + 1", "row = row + 1", patches.test_patch_embed_drawn, images()),
    (*OF_WEIGHT, "row = row + image + 1", "row = row + image", patches.test_with_some_of_it_frozen,
     {"dtype": SINGLE, "needed": ["weight"]}),
    (*OF_WEIGHT, "(n < N)[:, None] & (k < K)[None, :]", "(n < N)[:, None] & (k < K + 1)[None, :]", patches.test_patch_embed_drawn,
     images()),
    (*OF_WEIGHT, "row[None, :] * N", "row[None, :]", patches.test_gradcheck, {"name": "patch_embed"}),
    (*OF_WEIGHT, "accumulator = tl.zeros", "accumulator = 1.0 + tl.zeros", patches.test_no_images, {"dtype": SINGLE}),
    (*OF_WEIGHT, "tl.minimum(first + share, M)", "first + share - BLOCK_M", patches.test_small_blocks, small_images()),
    (*OF_WEIGHT, "first = split * share", "first = split * share + 1", patches.test_small_blocks, small_images()),
    (*OF_WEIGHT, "first = split * share", "first = split * BLOCK_M", patches.test_weight_gradient_of_many_patches,
     {"dtype": SINGLE, "batch": 15, "splits": 4}),
    (*OF_WEIGHT, "sums_ptr += split.to(tl.int64) * N * K", "sums_ptr += split.to(tl.int64) * 0",
     patches.test_weight_gradient_of_many_patches, {"dtype": HALF, "batch": 4, "splits": 2}),
    (*OF_WEIGHT, "(tile // tiles_k)", "(tile // (tiles_k + 1))", patches.test_every_configuration_of_the_weights_gradient,
     {"dtype": SINGLE, "config": PATCH_EMBED.WEIGHT_GRAD_CONFIGS.candidates[-1]}),
    (*OF_WEIGHT, "tl.dot(grad, x, accumulator, input_precision=PRECISION)",
     "tl.dot(grad, x, accumulator, input_precision=PRECISION).to(tl.float16).to(tl.float32)",
     patches.test_sums_over_patches_and_images_are_kept_in_float32, {}),
    (*OF_WEIGHT, "row = row + image + 1", "row = row + image", patches.test_a_gradient_that_is_no_number_stays_where_it_is,
     {"dtype": SINGLE}),
    (*OF_WEIGHT, "m % patches", "m % (patches + 1)", patches.test_with_and_without_what_is_added, {"dtype": HALF, "given_": []}),
    (*OF_WEIGHT, "pixel_offset(k, channel_stride, row_stride, column_stride,", "pixel_offset(k, channel_stride, row_stride, 1,",
     patches.test_an_image_stored_in_another_order, {"dtype": SINGLE, "order": (0, 2, 3, 1)}),
    (*OF_IMAGE, "row = m + image + 1", "row = m + image", patches.test_class_token_and_positions_of_any_shape, {"dtype": SINGLE}),
    (*OF_IMAGE, "n.to(tl.int64)[:, None] * K", "n.to(tl.int64)[:, None]", patches.test_gradcheck,
     {"name": "patch_embed with all that is added"}),
    (*OF_IMAGE, "accumulator, mask=(m < M)[:, None] & (k < K)", "accumulator, mask=(m < M)[:, None] & (k < K - 1)",
     patches.test_with_some_of_it_frozen, {"dtype": SINGLE, "needed": ["input"]}),
    (*OF_IMAGE, "accumulator, mask=(m < M)", "accumulator, mask=(m <= M)",
     patches.test_pixels_of_no_patch_have_no_gradient, {"dtype": SINGLE}),
    (*OF_IMAGE, "accumulator = tl.zeros", "accumulator = 1.0 + tl.zeros", patches.test_no_hidden_elements_and_no_channels,
     {"dtype": SINGLE}),
    (*OF_IMAGE, "n = start + tl.arange", "n = tl.arange", patches.test_every_configuration_of_the_images_gradient,
     {"dtype": SINGLE, "config": PATCH_EMBED.INPUT_GRAD_CONFIGS.candidates[-1], "class_token": False}),
    (*OF_IMAGE, "tl.dot(grad, weight, accumulator, input_precision=PRECISION)",
     "tl.dot(grad, weight, accumulator, input_precision=PRECISION).to(tl.float16).to(tl.float32)",
     patches.test_sums_over_hidden_elements_are_kept_in_float32, {}),
    (*OF_IMAGE, "patch = (m % patches)", "patch = (m % patches * 0)", patches.test_small_blocks, small_images(class_token=False)),
    (*CORNER, "(patch % patches_across).to(tl.int64) * PATCH_WIDTH", "(patch % patches_across).to(tl.int64) * PATCH_HEIGHT",
     patches.test_layouts, {"dtype": SINGLE, "layout": "contiguous"}),
    (*CORNER, "row * row_stride + column * column_stride", "row * row_stride + column", patches.test_layouts,
     {"dtype": SINGLE, "layout": "stepped"}),
    (*PIXEL, "row * row_stride", "0 * row_stride", patches.test_gradients_that_come_from_a_sum_or_a_transpose,
     {"dtype": SINGLE}),
    (*PIXEL, "channel * channel_stride", "channel", patches.test_patches_that_reach_far,
     {"dtype": SINGLE, "monkeypatch": "a fixture"}),
]  # fmt: skip


KEPT = (dropout.DROPOUT, "kept")
DROP = (dropout.DROPOUT, "dropout_kernel")
DROPOUT = [
    (*KEPT, ">= p", "> 1.0 - p", dropout.test_dropout_drawn, drawn((30, 5), at=DENSE[:2], p=0.1)),
    (*DROP, "x * scale, 0.0", "x, 0.0", dropout.test_dropout_drawn, drawn((3, 5), at=DENSE[:2], p=0.5)),
    (*DROP, MASK, "mask = offsets < size - 1", dropout.test_layouts, {"dtype": HALF, "layout": "stepped"}),
    (*DROP, "first, p, BLOCK", "0 * first, p, BLOCK", dropout.test_what_is_dropped_does_not_depend_on_the_block_size,
     {"dtype": SINGLE, "block": 64}),
    (*KEPT, "tl.join(tl.join(a, c), tl.join(b, d))", "tl.join(tl.join(a, b), tl.join(c, d))",
     dropout.test_what_is_dropped_does_not_depend_on_the_block_size, {"dtype": SINGLE, "block": 4}),
    (*KEPT, "first // 4 + tl.arange(0, BLOCK // 4)", "(first // 4).to(tl.int32) + tl.arange(0, BLOCK // 4)",
     dropout.test_elements_of_large_tensors_have_numbers_of_their_own, {"first": 2**34}),
    (*KEPT, ">= p", ">= p * p", dropout.test_the_share_kept_and_the_mean, {"dtype": SINGLE, "p": 0.5}),
    (*DROP, "x * scale", "x", dropout.test_the_share_kept_and_the_mean, {"dtype": SINGLE, "p": 0.05}),
    (*KEPT, "tl.rand4x(seed, ", "tl.rand4x(seed * 0, ", dropout.test_masks_of_two_seeds_are_independent, {}),
    (*KEPT, "tl.rand4x(seed, ", "tl.rand4x(seed & 0xFFFFFFFF, ", dropout.test_masks_of_two_seeds_are_independent,
     {}),
    (*DROP, "first, p, BLOCK", "0 * first, p, BLOCK", dropout.test_rows_and_columns_are_independent, {"columns": 64}),
    (*KEPT, "tl.join(tl.join(a, c), tl.join(b, d))", "tl.join(tl.join(a, a), tl.join(b, d))",
     dropout.test_rows_and_columns_are_independent, {"columns": 100}),
    (*DROP, "x * scale, 0.0", "x * scale, x", dropout.test_p_of_nothing_and_of_everything, {"dtype": SINGLE}),
    (*DROP, "tl.where(kept(tl.load(seed_ptr), first, p, BLOCK), x * scale, 0.0)",
     "x * tl.where(kept(tl.load(seed_ptr), first, p, BLOCK), scale, 0.0)", dropout.test_what_is_dropped_is_zero_whatever_it_was,
     {"dtype": SINGLE}),
    (*DROP, MASK, "mask = offsets < size - 1", dropout.test_zero_size_and_one_number, {"dtype": SINGLE, "shape": ()}),
    (*KEPT, "tl.rand4x(seed, ", "tl.rand4x(seed * 0, ", dropout.test_torchs_generator_draws_the_seed, {}),
]  # fmt: skip


def losses(shape, **other) -> dict:
    return drawn(shape, at=DENSE[:2], reduction="mean", smoothing=0.0, ignored=0.0, step=1, scale=1.0) | other


def losses_of_rows(count, columns, **other) -> dict:
    return {"rows": count, "columns": columns, "at": "contiguous", "reduction": "mean", "smoothing": 0.0, "widest": 256,
            "seed": 0, "dtype": SINGLE} | other  # fmt: skip


MODULE = cross_entropy.CROSS_ENTROPY
LOSS, WIDE_LOSS, FINISH, LOSS_GRADIENT = (
    (MODULE, name)
    for name in ("cross_entropy_kernel", "wide_cross_entropy_kernel", "finish_rows", "cross_entropy_backward_kernel")
)
NARROW, WIDE = ({"dtype": SINGLE, "widest": widest} for widest in (None, 16))
NO_CLASS = "(target >= 0) & (target < columns)"
CROSS_ENTROPY = [
    (*FINISH, "(maximum - x)", "(maximum + x)", cross_entropy.test_cross_entropy_drawn, losses((3, 5))),
    (*FINISH, "target * column_stride", "target", cross_entropy.test_cross_entropy_drawn,
     losses((4, 10), at=("stepped", "contiguous"))),
    (*LOSS_GRADIENT, "grad[:, None] * (probability", "(probability", cross_entropy.test_cross_entropy_drawn,
     losses((3, 5), reduction="none")),
    (*LOSS_GRADIENT, "1.0 - smoothing, 0.0", "1.0, 0.0", cross_entropy.test_cross_entropy_drawn, losses((3, 5), smoothing=0.1)),
    (*LOSS, "(row < rows)[:, None] & (column < columns)[None, :]", "(row < rows)[:, None] & (column <= columns)[None, :]",
     cross_entropy.test_rows_small_blocks, losses_of_rows(9, 15)),
    (*WIDE_LOSS, "mask = column < columns", "mask = column < columns - 1", cross_entropy.test_rows_small_blocks,
     losses_of_rows(3, 33, widest=16)),
    (*LOSS_GRADIENT, "(tl.program_id(0) % column_blocks)", "(tl.program_id(0) * 0)", cross_entropy.test_rows_small_blocks,
     losses_of_rows(3, 100)),
    (*LOSS_GRADIENT, "grad / tl.load(sums_ptr + 1)", "grad / rows", cross_entropy.test_rows_small_blocks, losses_of_rows(31, 5)),
    (*LOSS, "column[None, :].to(tl.int64) * column_stride", "column[None, :].to(tl.int64)", cross_entropy.test_layouts,
     NARROW | {"layout": "stepped"}),
    (*WIDE_LOSS, "column * column_stride", "column", cross_entropy.test_layouts, WIDE | {"layout": "transposed"}),
    (*LOSS_GRADIENT, "row[:, None] * row_stride", "row[:, None] * columns", cross_entropy.test_layouts,
     NARROW | {"layout": "padded"}),
    (*WIDE_LOSS, "lane_total * tl.exp(lane_maximum - shift)", "lane_total", cross_entropy.test_very_wide_rows,
     {"dtype": SINGLE, "columns": 200_003}),
    (*WIDE_LOSS, "lane_maximum, tl.max(x, axis=0)", "lane_maximum, tl.min(x, axis=0)",
     cross_entropy.test_extreme_rows, WIDE | {"smoothing": 0.0}),
    (*WIDE_LOSS, "range(0, columns, STEP * BLOCK_COLUMNS)", "range(0, columns, BLOCK_COLUMNS)",
     cross_entropy.test_rows_small_blocks, losses_of_rows(3, 33, widest=16)),
    (*WIDE_LOSS, "tl.arange(0, STEP)[:, None] * BLOCK_COLUMNS", "tl.arange(0, STEP)[:, None]", cross_entropy.test_very_wide_rows,
     {"dtype": SINGLE, "columns": 200_003}),
    (*LOSS_GRADIENT, "tl.minimum(columns - first, BLOCK_COLUMNS)", "tl.minimum(columns - first - 1, BLOCK_COLUMNS)",
     cross_entropy.test_rows_small_blocks, losses_of_rows(3, 100)),
    (*LOSS_GRADIENT, "(target - first)", "target", cross_entropy.test_rows_small_blocks, losses_of_rows(3, 100)),
    (*WIDE_LOSS, "lane_distance += ", "lane_distance = ", cross_entropy.test_very_wide_rows,
     {"dtype": SINGLE, "columns": 32_768}),
    (*FINISH, "loss_ptr + rows + row", "loss_ptr + rows + 0 * row", cross_entropy.test_many_rows,
     {"dtype": SINGLE, "rows": 5000}),
    (*LOSS_GRADIENT, "tl.load(grad_ptr + row,", "tl.load(grad_ptr + row * 0,", cross_entropy.test_many_rows,
     {"dtype": SINGLE, "rows": 5000}),
    (*LOSS, "tl.where(mask, maximum[:, None] - x, 0.0)", "tl.where(mask, -x, 0.0)", cross_entropy.test_label_smoothing,
     NARROW | {"smoothing": 0.7, "reduction": "mean"}),
    (*WIDE_LOSS, "tl.where(mask, first - x, 0.0)", "tl.where(mask, -x, 0.0)", cross_entropy.test_label_smoothing,
     WIDE | {"smoothing": 0.1, "reduction": "sum"}),
    (*LOSS_GRADIENT, " + smoothing / columns", "", cross_entropy.test_label_smoothing,
     NARROW | {"smoothing": 1.0, "reduction": "none"}),
    (*FINISH, "counted = target != ignore_index", "counted = target >= 0", cross_entropy.test_ignore_index,
     NARROW | {"index": 3}),
    (*LOSS_GRADIENT, "(target != ignore_index)[:, None]", "(target >= 0)[:, None]", cross_entropy.test_ignore_index,
     NARROW | {"index": 10_000}),
    (*LOSS_GRADIENT, "(target != ignore_index)[:, None]", "(row < rows)[:, None]", cross_entropy.test_all_rows_ignored, NARROW),
    (*FINISH, "tl.where(counted, loss, 0.0)", "tl.where(counted, loss, 0.0 * loss)",
     cross_entropy.test_an_ignored_row_counts_for_nothing_whatever_it_holds, WIDE),
    (*LOSS_GRADIENT, "x - maximum[:, None] - log_total[:, None]", "x - (maximum + log_total)[:, None]",
     cross_entropy.test_large_logits_lose_nothing, {"smoothing": 0.0, "widest": None}),
    (*FINISH, "log_total + (maximum - x)", "(log_total + maximum) - x", cross_entropy.test_large_logits_lose_nothing,
     {"smoothing": 0.0, "widest": 16}),
    (*WIDE_LOSS, "tl.where(mask, first - x, 0.0)", "tl.where(mask, first * 0.0 - x, 0.0)",
     cross_entropy.test_large_logits_lose_nothing, {"smoothing": 0.1, "widest": 16}),
    (*WIDE_LOSS, 'tl.where(larger == -float("inf"), 0.0, larger)', "larger", cross_entropy.test_extreme_rows,
     WIDE | {"smoothing": 0.0}),
    (*WIDE_LOSS, 'tl.where(first == -float("inf"), 0.0, first)', "first", cross_entropy.test_extreme_rows,
     WIDE | {"smoothing": 0.1}),
    (*LOSS, "tl.exp(x - maximum[:, None])", "tl.exp(x)", cross_entropy.test_extreme_rows, NARROW | {"smoothing": 1.0}),
    (SUM, "sum_kernel", "total = tl.zeros((BLOCK_REDUCED, BLOCK_KEPT), tl.float32)",
     "total = tl.full((BLOCK_REDUCED, BLOCK_KEPT), 1.0, tl.float32)", cross_entropy.test_zero_size,
     {"dtype": SINGLE, "shape": (0, 5)}),
    (*FINISH, "tl.where(counted, loss, 0.0)", "loss", cross_entropy.test_no_classes, {"dtype": SINGLE}),
    (*FINISH, 'float("nan")', "0.0", cross_entropy.test_a_target_that_is_no_class_is_nan_on_a_gpu,
     NARROW | {"monkeypatch": "a fixture"}),
    (*LOSS_GRADIENT, 'float("nan")', "grad", cross_entropy.test_a_target_that_is_no_class_is_nan_on_a_gpu,
     WIDE | {"monkeypatch": "a fixture"}),
    (*LOSS_GRADIENT, "probability - wanted", "probability", cross_entropy.test_gradcheck, {"reduction": "sum", "smoothing": 0.3}),
    (*LOSS_GRADIENT, "probability - wanted", "wanted", cross_entropy.test_one_row_without_a_dimension_for_it, {"dtype": SINGLE}),
]  # fmt: skip


NORM_LINEAR = norms.MODULE


def both(M: int = 5, K: int = 33, N: int = 7, **other) -> dict:
    return {"monkeypatch": ..., "dtype": SINGLE, "M": M, "K": K, "N": N, "activation": None, "away": 0.0} | other


OF_NORMS = (NORM_LINEAR, "norm_linear_kernel")
NORMS = [
    (*OF_NORMS, "means - mean[None, :]", "means", norms.test_both_in_a_row, both(away=30.0)),
    (*OF_NORMS, "squares + count * apart * apart", "squares", norms.test_both_in_a_row, both(K=300)),
    (*OF_NORMS, "means * count", "means * width", norms.test_both_in_a_row, both()),
    (*OF_NORMS, "mean[:, None] * column_sums[None, :]", "mean[:, None]", norms.test_both_in_a_row, both()),
    (*OF_NORMS, "tl.sqrt(variance + eps)", "tl.sqrt(variance)", norms.test_both_in_a_row, both(1, 1, 1)),
    (*OF_NORMS, "part < parts", "part < parts - 1", norms.test_both_in_a_row, both()),
    (*OF_NORMS, "tl.minimum(N - tile_n * BLOCK_N, BLOCK_N)", "BLOCK_N", norms.test_both_in_a_row, both()),
    (*OF_NORMS, "result - piece_mean[:, None]", "result", norms.test_rows_far_from_zero_keep_their_variance,
     {"monkeypatch": ...}),
    (*OF_NORMS, "tl.where(inside_row, off * off, 0.0)", "off * off", norms.test_both_in_a_row, both()),
    (*OF_NORMS, "accumulator += bias", "accumulator -= bias", norms.test_both_in_a_row, both()),
    (*OF_NORMS, "m[:, None] * residual_row_stride", "m[:, None] * N", norms.test_layouts,
     {"monkeypatch": ..., "dtype": SINGLE, "layout": "padded"}),
    (*OF_NORMS, "m[:, None] * input_row_stride", "m[:, None] * K", norms.test_layouts,
     {"monkeypatch": ..., "dtype": HALF, "layout": "padded"}),
    (*OF_NORMS, "k[None, :] < K - start", "k[None, :] < K", norms.test_both_in_a_row, both(N=39)),
    (*OF_NORMS, "activate(accumulator, ACTIVATION)", "accumulator", norms.test_both_in_a_row, both(activation="gelu")),
    (*OF_NORMS, "piece_squares, mask=m < M", "piece_squares, mask=m <= M", norms.test_both_in_a_row, both()),
    (*OF_NORMS, "tl.store(output_ptr + m[:, None] * N + n[None, :], result, mask=mask)",
     "tl.store(output_ptr + m[:, None] * N + n[None, :], result, mask=(m < M)[:, None] & (n <= N)[None, :])",
     norms.test_both_in_a_row, both()),
]  # fmt: skip


TABLES = [*FORWARD, *BACKWARD, *PRODUCTS, *PERSISTENT, *ATTENTIONS, *PATCHES, *DROPOUT, *CROSS_ENTROPY, *NORMS]


def name_of(entry: object) -> str:
    _module, kernel, old, new, test, _ = entry
    return f"{kernel}-{' '.join(old.split())[:30]}-{' '.join(new.split())[:30]}-{test.__name__}"


# On a GPU each is compiled for this one test, and what a test sees there it has seen in the interpreter: every third will do.
@pytest.mark.parametrize("entry", TABLES if runtime.INTERPRETER else TABLES[::3], ids=name_of)
def test_a_broken_kernel_is_seen(entry, tmp_path, monkeypatch):
    module, kernel, old, new, test, arguments = entry
    # What the test replaces is put back first: it may be a kernel that is broken here.
    with broken(module, kernel, old, new, tmp_path), monkeypatch.context() as fixture:
        if "monkeypatch" in arguments:
            arguments = arguments | {"monkeypatch": fixture}
        with pytest.raises((AssertionError, GradcheckError)):
            run(test, arguments)


# What is no test of a kernel's values: of PyTorch's graph, of launches, of refusals; and what needs a GPU's memory.
NOT_OF_VALUES = {
    "test_results_may_be_changed_in_place", "test_forward_mode_is_refused", "test_a_tensor_is_no_number",
    "test_a_sum_that_alone_was_used_has_gradients_with_memory_of_their_own",
    "test_a_second_derivative_is_refused", "test_gradients_add_up_over_two_backward_passes",
    "test_an_operand_used_twice_gets_both_gradients", "test_nothing_is_computed_for_what_is_frozen",
    "test_one_tensor_is_kept_for_the_backward_pass", "test_past_two_to_the_31_elements", "test_vit_base_shapes",
    # of test_linear_gradients.py
    "test_the_residuals_gradient_has_memory_of_its_own",
    "test_nothing_is_computed_for_the_side_of_bmm_that_is_frozen", "test_what_is_kept_for_the_backward_pass", "test_splits",
    "test_weight_gradient_is_the_same_every_time", "test_weight_and_bias_side_by_side", "test_autocast_with_a_float32_residual",
    "test_autocast_to_a_type_that_the_interpreter_has_not_is_refused",
}  # fmt: skip


# Tests of functions whose kernels are not in the table, of PyTorch's settings and of refusals; and what needs a GPU's memory.
OTHER_FUNCTIONS = (
    "linear", "bmm", "attention", "in_its_query", "patch_embed", "product", "refuse", "search", "past_two", "two_to_the",
    "65535", "vit_base", "ordinary", "public", "pytorchs_setting", "sums_are_kept", "infinity",
)  # fmt: skip


def test_every_test_of_a_result_has_a_broken_kernel():
    there = {name for name in vars(forward) if name.startswith("test_") and not any(word in name for word in OTHER_FUNCTIONS)}
    assert there == {entry[4].__name__ for entry in FORWARD}


def test_every_test_of_a_gradient_has_a_broken_kernel():
    there = {name for name in vars(gradients) if name.startswith("test_")}
    assert there - NOT_OF_VALUES == {entry[4].__name__ for entry in BACKWARD}
    there = {name for name in vars(products) if name.startswith("test_")}
    assert there - NOT_OF_VALUES == {entry[4].__name__ for entry in PRODUCTS}


def test_every_kernel_of_linear_and_of_attentions_gradients_is_broken():
    jitted, entries = type(LINEAR.linear_kernel), {(entry[0], entry[1]) for entry in TABLES}
    for module in (LINEAR, ATTENTION):
        kernels = {name: value.fn for name, value in vars(module).items() if isinstance(value, jitted)}
        own = {name for name, function in kernels.items() if function.__module__ == module.__name__}
        assert own == {kernel for file, kernel in entries if file is module}


# The same of attention's; and what needs a GPU, or has values that a test of the table above has met.
NOT_OF_ATTENTIONS_VALUES = {
    "test_a_nan_stays_in_its_query_of_the_gradient", "test_a_result_can_be_changed_in_place",
    "test_a_second_derivative_is_refused", "test_autocast_rounds_operands_of_any_type",
    "test_float32_products_follow_pytorchs_setting", "test_gradients_add_up_over_two_backward_passes",
    "test_gradients_lie_as_tokens", "test_keys_are_left_alone_when_only_queries_learn",
    "test_neighbours_past_two_to_the_31_elements_apart", "test_past_two_to_the_31_elements",
    "test_the_result_is_the_one_without_gradients", "test_the_same_gradient_to_the_bit", "test_vit_base_shapes",
    "test_what_is_kept_for_the_backward_pass", "test_zero_size",
}  # fmt: skip


def test_every_test_of_attentions_gradients_has_a_broken_kernel():
    there = {name for name in vars(attention) if name.startswith("test_")}
    assert there == {entry[4].__name__ for entry in ATTENTIONS} | NOT_OF_ATTENTIONS_VALUES


# Of PyTorch's graph and types, of launches and refusals; and what needs a GPU.
NOT_OF_PATCHES_VALUES = {
    "test_a_second_derivative_is_refused", "test_autocast_to_a_type_that_the_interpreter_has_not_is_refused",
    "test_autocast_with_float32_embeddings", "test_channels_and_rows_past_two_to_the_31_elements_apart",
    "test_gradients_add_up_over_two_backward_passes", "test_gradients_share_no_memory",
    "test_nothing_is_computed_for_what_is_frozen", "test_past_two_to_the_31_elements",
    "test_the_result_is_the_one_without_gradients", "test_the_same_gradient_to_the_bit", "test_vit_base_shapes",
}  # fmt: skip


def test_every_test_of_patch_embeds_gradients_has_a_broken_kernel():
    there = {name for name in vars(patches) if name.startswith("test_")}
    assert there == {entry[4].__name__ for entry in PATCHES} | NOT_OF_PATCHES_VALUES


def test_every_test_of_dropout_and_cross_entropy_has_a_broken_kernel():
    of_calls = (
        "refus", "compiled", "checkpoint", "graph", "kept", "authors", "second_derivative", "autocast", "waits", "two_to_the",
    )  # fmt: skip
    for tests, table in ((dropout, DROPOUT), (cross_entropy, CROSS_ENTROPY)):
        there = {name for name in vars(tests) if name.startswith("test_")}
        there = {name for name in there if not any(word in name for word in of_calls) or "share_kept" in name}
        assert there == {entry[4].__name__ for entry in table}


@pytest.mark.parametrize(
    "module, kernel, name",
    [
        (ADD, "add_kernel", "add"), (SUM, "sum_kernel", "add"), (GELU, "gelu_kernel", "gelu"), (RELU, "relu_kernel", "relu"),
        (SOFTMAX, "softmax_kernel", "softmax"), (LAYER_NORM, "layer_norm_kernel", "layer norm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_kernel_built_anew_and_not_broken_passes(module, kernel, name, tmp_path):
    with broken(module, kernel, "@triton.jit", "@triton.jit", tmp_path):
        gradients.test_gradcheck(name)
