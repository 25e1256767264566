"""cross_entropy and its gradient against float64, by the rule of tolerance.py and in the hostile memory of hostile.py.

test_broken_kernels.py shows for each test of values here a wrong kernel that it sees.
"""

import contextlib
import importlib
import unittest.mock
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hostile import GUARD, LAYOUTS, call, on_gpu, tensor
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_kernels import layouts, seeds, sizes
from tolerance import assert_close_to_float64, largest

from vitcourse import kernels, runtime

CROSS_ENTROPY = importlib.import_module("vitcourse.kernels.cross_entropy")
DEVICE = runtime.DEVICE
INF, NAN = float("inf"), float("nan")
REDUCTIONS = ("mean", "sum", "none")
WIDTHS = pytest.mark.parametrize("widest", [None, 16], ids=["narrow", "wide"])


@contextlib.contextmanager
def small(tile: int, widest: int | None) -> Iterator[None]:
    """Tiles of `tile` elements, and rows wider than `widest` walked along."""
    with (
        unittest.mock.patch.object(CROSS_ENTROPY, "TILE_ELEMENTS", tile),
        unittest.mock.patch.object(CROSS_ENTROPY, "WIDEST", widest or CROSS_ENTROPY.WIDEST),
    ):
        yield


def classes(shape: tuple[int, ...], count: int, *, ignored: float = 0.0, index: int = -100, seed: int = 0, step: int = 1):
    """Random targets below `count`, a share of them ignored, every `step` places in memory that is no class otherwise."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(max(count, 1), shape, generator=generator)
    values[torch.rand(shape, generator=generator) < ignored] = index
    memory = torch.full((2 * GUARD + step * values.numel(),), 1 << 40, device=DEVICE)
    view = memory[GUARD : GUARD + step * values.numel() : step].view(shape)
    return view.copy_(values)


def check(x, target, reduction="mean", label_smoothing=0.0, ignore_index=-100, at="contiguous", seed=0):
    """The loss, and the gradient for a random incoming one that lies as `at` says."""
    how = {"reduction": reduction, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
    result = call(kernels.cross_entropy, x, target, **how)
    peer = F.cross_entropy(x, target, **how)
    # The sum of exponentials is 1 or more, and what it is rounded by is an error of its logarithm.
    assert_close_to_float64(result, F.cross_entropy(x.double(), target, **how), peer, intermediate=1.0, what="loss")
    assert result.is_contiguous()

    grad = tensor(tuple(peer.shape), peer.dtype, at, seed=seed + 500)

    def differentiate(function, x, grad):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf, target, **how), leaf, grad)[0]

    found = call(lambda x, grad: differentiate(kernels.cross_entropy, x, grad), x, grad)
    reference = differentiate(F.cross_entropy, x.double(), grad.double())
    # softmax(x) - onehot cancels where the target is likely. What float32 rounds is at most the exponent, x - log-sum-exp.
    rounded = largest(grad) * 2
    if reduction == "mean":
        rounded /= max(int((target != ignore_index).sum()), 1)
    what = "gradient"
    assert_close_to_float64(found, reference, differentiate(F.cross_entropy, x, grad), intermediate=rounded, what=what)


inputs = st.one_of(
    st.tuples(sizes), st.tuples(sizes, sizes), st.tuples(st.integers(1, 5), sizes, st.integers(0, 9)),
    st.tuples(st.integers(0, 3), sizes, st.integers(1, 4), st.integers(1, 5)),
)  # fmt: skip


@given(
    shape=inputs, at=st.tuples(layouts, layouts), reduction=st.sampled_from(REDUCTIONS),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]), ignored=st.sampled_from([0.0, 0.3]), step=st.sampled_from([1, 2]),
    scale=st.sampled_from([1.0, 30.0]), seed=seeds,
)  # fmt: skip
@example(
    shape=(2, 10, 3, 4), at=("transposed", "expanded"), reduction="none", smoothing=0.1, ignored=0.3, step=2, scale=1.0, seed=0
)  # fmt: skip
@example(shape=(7,), at=("stepped", "contiguous"), reduction="mean", smoothing=0.0, ignored=0.0, step=1, scale=1.0, seed=0)
def test_cross_entropy_drawn(dtype, shape, at, reduction, smoothing, ignored, step, scale, seed):
    x = tensor(shape, dtype, at[0], seed=seed, scale=scale)
    target = classes((*shape[:1], *shape[2:]) if len(shape) > 1 else (), shape[min(1, len(shape) - 1)], ignored=ignored,
                     seed=seed, step=step)  # fmt: skip
    check(x, target, reduction, smoothing, at=at[1], seed=seed)


@given(
    rows=sizes, columns=sizes, at=layouts, reduction=st.sampled_from(REDUCTIONS), smoothing=st.sampled_from([0.0, 0.1]),
    widest=st.sampled_from([16, 64, 256]), seed=seeds,
)  # fmt: skip
@example(rows=9, columns=33, at="padded", reduction="mean", smoothing=0.1, widest=16, seed=0)
@example(rows=31, columns=17, at="contiguous", reduction="none", smoothing=0.0, widest=64, seed=0)
def test_rows_small_blocks(dtype, rows, columns, at, reduction, smoothing, widest, seed):
    # Rows wider than `widest` are walked along, narrower ones share tiles of 64 elements; so do all gradients.
    assume(rows * columns <= 3000)
    target = classes((rows,), columns, ignored=0.2, seed=seed)
    with small(64, widest):
        check(tensor((rows, columns), dtype, at, seed=seed, scale=3.0), target, reduction, smoothing, at=at, seed=seed)


@WIDTHS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype, layout, widest):
    with small(64, widest):
        check(tensor((3, 37), dtype, layout), classes((3,), 37, step=2), "none", 0.1, at=layout)
        check(tensor((2, 20, 3), dtype, layout), classes((2, 3), 20, ignored=0.3), "none", at=layout)
        check(tensor((2, 20, 2, 1), dtype, layout), classes((2, 2, 1), 20), "mean", 0.1)


@pytest.mark.parametrize("columns", [32_768, 50_257, 200_003])
def test_very_wide_rows(dtype, columns):
    # 32,768 columns are walked along as on a GPU; 200,003 are in the interpreter's own block sizes.
    with small(2048, 16_384) if columns < 200_000 else contextlib.nullcontext():
        for smoothing in (0.0, 0.1):
            target = classes((4,), columns)
            target[1:3] = torch.tensor([-100, columns - 1])
            check(tensor((4, columns), dtype, scale=4.0), target, "mean", smoothing)


@pytest.mark.parametrize("rows", [1, 5000])
def test_many_rows(dtype, rows):
    for reduction in REDUCTIONS:
        check(tensor((rows, 10), dtype), classes((rows,), 10, ignored=0.1 if rows > 1 else 0.0), reduction)


@WIDTHS
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_label_smoothing(dtype, reduction, smoothing, widest):
    with small(64, widest):
        check(tensor((6, 21), dtype, scale=3.0), classes((6,), 21, ignored=0.3), reduction, smoothing)


@WIDTHS
@pytest.mark.parametrize("index", [-100, -1, 0, 3, 20, 10_000])
def test_ignore_index(dtype, index, widest):
    x = tensor((6, 21), dtype)
    target = torch.tensor([0, 3, 20, 3, index, index], device=DEVICE)
    with small(64, widest):
        for reduction in REDUCTIONS:
            check(x, target, reduction, ignore_index=index)
            check(x, target, reduction, 0.2, ignore_index=index)


@WIDTHS
def test_all_rows_ignored(dtype, widest):
    x = tensor((6, 21), dtype).requires_grad_()
    target = torch.full((6,), -100, device=DEVICE)
    with small(64, widest):
        for smoothing in (0.0, 0.1):
            losses = [kernels.cross_entropy(x, target, reduction=name, label_smoothing=smoothing) for name in REDUCTIONS]
            assert bool(losses[0].isnan()) and losses[1].item() == 0 and not bool(losses[2].any())
            for loss in losses:
                (grad,) = torch.autograd.grad(loss.sum(), x)
                assert torch.equal(grad, torch.zeros_like(x))


@WIDTHS
def test_an_ignored_row_counts_for_nothing_whatever_it_holds(dtype, widest):
    x = tensor((6, 21), dtype)
    target = classes((6,), 21)
    target[2] = target[5] = -100
    spoiled = x.clone()
    spoiled[2], spoiled[5, 3] = NAN, INF
    with small(64, widest):
        for reduction in REDUCTIONS:
            results = []
            for values in (x, spoiled):
                leaf = values.clone().requires_grad_()
                loss = kernels.cross_entropy(leaf, target, reduction=reduction, label_smoothing=0.1)
                results.append((loss, *torch.autograd.grad(loss.sum(), leaf)))
            assert all(torch.equal(one, other) for one, other in zip(*results))


@WIDTHS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_large_logits_lose_nothing(smoothing, widest):
    """A large number added to all logits of a row changes nothing: not more than float32 rounds the logits themselves."""
    x = (tensor((5, 40), torch.float32, scale=3.0) * 64).round() / 64
    target = classes((5,), 40)
    results = []
    with small(64, widest):
        for offset in (0.0, 65536.0, -65536.0):  # added without rounding
            leaf = (x + offset).requires_grad_()
            loss = kernels.cross_entropy(leaf, target, label_smoothing=smoothing)
            results.append((loss, *torch.autograd.grad(loss, leaf)))
            check(x + offset, target, "none", smoothing)
    for loss, grad in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-6, atol=0.0)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-5, atol=1e-9)


@WIDTHS
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_extreme_rows(dtype, smoothing, widest):
    x = tensor((12, 40), dtype)
    target = classes((12,), 40)
    x[0, :] = 1000.0
    x[1, 3], target[1] = 6e4, 3
    x[2, 3], target[2] = 6e4, 4
    x[3, 17:] = -INF  # whole blocks of it
    target[3] = 2
    x[4, :20], target[4] = -INF, 30
    x[5, 7], target[5] = -INF, 7
    x[6, :] = -INF
    x[7, 8] = INF
    x[8, 39] = NAN
    x[9, :] = -6e4
    x[10, 1:], target[10] = -INF, 0
    with small(64, widest):
        check(x, target, "none", smoothing)
        check(x[:3], target[:3], "mean", smoothing)


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0), (0, 0)])
def test_zero_size(dtype, shape):
    for reduction in REDUCTIONS:
        for smoothing in (0.0, 0.1) if shape[1] else (0.0,):
            check(tensor(shape, dtype), classes((shape[0], *shape[2:]), shape[1]), reduction, smoothing)


def test_no_classes(dtype):
    target = torch.full((3,), -100, device=DEVICE)
    check(tensor((3, 0), dtype), target, "none")
    check(tensor((3, 0), dtype), target, "sum")


@WIDTHS
def test_a_target_that_is_no_class_is_nan_on_a_gpu(dtype, widest, monkeypatch):
    monkeypatch.setattr(CROSS_ENTROPY, "DEVICE", torch.device("cuda"))  # so that the interpreter does not look either
    x = tensor((5, 40), dtype).requires_grad_()
    target = torch.tensor([0, 40, -1, 1 << 40, 39], device=DEVICE)
    wrong = torch.tensor([False, True, True, True, False], device=DEVICE)
    with small(64, widest):
        for smoothing in (0.0, 0.1, 1.0):
            loss = kernels.cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
            (grad,) = torch.autograd.grad(loss.sum(), x)
            assert torch.equal(loss.isnan(), wrong) and torch.equal(grad.isnan(), wrong[:, None].expand(5, 40))
            assert bool(kernels.cross_entropy(x, target, label_smoothing=smoothing).isnan())


@pytest.mark.skipif(DEVICE.type == "cuda", reason="on a GPU its loss is NaN")
@pytest.mark.parametrize("wrong", [-1, 6, 1 << 40])
def test_a_target_that_is_no_class_is_refused_on_a_cpu(wrong):
    target = torch.tensor([0, 5, -100, wrong])
    for function in (kernels.cross_entropy, F.cross_entropy):
        with pytest.raises(IndexError, match=f"(?i)target.*{wrong}"):
            function(torch.ones(4, 6), target)


# ---- what autograd asks for ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradcheck(reduction, smoothing):
    """PyTorch's own check, as in test_gradients.py: a step of 0.01, an error of 2.4e-5 at most, and 1e-3 allowed."""
    x = tensor((4, 6), torch.float32, seed=20).double().requires_grad_()
    target = torch.tensor([5, 0, -100, 2], device=DEVICE)

    def single(x):
        return kernels.cross_entropy(x.float(), target, reduction=reduction, label_smoothing=smoothing).double()

    assert torch.autograd.gradcheck(single, (x,), eps=1e-2, atol=1e-3, rtol=1e-3)


def test_probabilities_are_not_kept():
    kept = []
    x = tensor((30, 50), torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        kernels.cross_entropy(x, classes((30,), 50))
    assert [value.data_ptr() == x.data_ptr() for value in kept] == [True, False, False, False]
    assert sum(value.numel() for value in kept[1:]) == 3 * 30 + 2


def test_a_second_derivative_is_refused():
    x, weight = tensor((3, 5), torch.float32).requires_grad_(), torch.ones((), device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad(kernels.cross_entropy(x, classes((3,), 5)) * weight, x, create_graph=True)


def test_a_gradient_that_is_not_wanted_is_not_kept():
    x, target = tensor((3, 5), torch.float32).requires_grad_(), classes((3,), 5)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert kernels.cross_entropy(x, target).grad_fn is None
    assert kernels.cross_entropy(x.detach(), target).grad_fn is None


def test_autocast_returns_float32():
    for dtype in runtime.DTYPES:
        x, target = tensor((3, 5), dtype).requires_grad_(), classes((3,), 5)
        with torch.autocast(DEVICE.type, torch.float16):
            loss, expected = kernels.cross_entropy(x, target), F.cross_entropy(x, target)
        assert loss.dtype == expected.dtype == torch.float32
        # Somewhere between the two PyTorch's loss of half-precision logits is rounded to their type on a GPU; ours is not.
        torch.testing.assert_close(loss, F.cross_entropy(x.detach().float(), target))
        assert torch.autograd.grad(loss, x)[0].dtype == dtype


@on_gpu
def test_nothing_waits_for_the_device():
    x, target = tensor((300, 50), torch.float32).requires_grad_(), classes((300,), 50)
    kernels.cross_entropy(x, target).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.cross_entropy(x, target).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["aot_eager"] + (["inductor"] if DEVICE.type == "cuda" else []))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_in_one_graph(dtype, backend, reduction):
    torch._dynamo.reset()
    function = lambda x, target: kernels.cross_entropy(x * 2, target, reduction=reduction, label_smoothing=0.1) + 1
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for shape in ((40, 50), (61, 70), (3, 7, 5)):
        x, target = tensor(shape, dtype).requires_grad_(), classes((shape[0], *shape[2:]), shape[1], ignored=0.2)
        results = [run(x, target) for run in (compiled, function)]
        gradients = [torch.autograd.grad(result.sum(), x)[0] for result in results]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


# ---- refusals ----

X = torch.ones(2, 3, device=DEVICE)
T = torch.zeros(2, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize(
    "error, arguments, named, word",
    [
        (ValueError, (X, T, X[0]), {}, "weight"), (ValueError, (X, T), {"size_average": True}, "size_average"),
        (ValueError, (X, T), {"reduce": False}, "reduce"), (ValueError, (X, T), {"reduction": "max"}, "reduction"),
        (ValueError, (X, T), {"label_smoothing": -0.1}, "label_smoothing"),
        (ValueError, (X, T), {"label_smoothing": 1.1}, "label_smoothing"),
        (TypeError, (X, T), {"ignore_index": 0.5}, "ignore_index"), (TypeError, (X, T), {"ignore_index": True}, "ignore_index"),
        (ValueError, (X, T), {"ignore_index": 2**63}, "ignore_index"), (TypeError, (X, X), {}, "target"),
        (TypeError, (X, T.int()), {}, "target"), (TypeError, (X, [0, 1]), {}, "target"), (ValueError, (X, T[:1]), {}, "target"),
        (ValueError, (X, T[:, None]), {}, "target"), (ValueError, (X[0], T), {}, "target"),
        (ValueError, (X[0, 0], T[0]), {}, "input"), (TypeError, (T, T), {}, "input"), (TypeError, ([1.0], T), {}, "input"),
        (TypeError, (X.double(), T), {}, "input"),
    ],
)  # fmt: skip
def test_refusals(error, arguments, named, word):
    with pytest.raises(error, match=rf"^cross_entropy: {word}\b"):
        kernels.cross_entropy(*arguments, **named)


def test_one_row_without_a_dimension_for_it(dtype):
    x = tensor((7,), dtype)
    for reduction in REDUCTIONS:
        check(x, T[0], reduction)
        result, expected = (function(x, T[:1], reduction=reduction) for function in (kernels.cross_entropy, F.cross_entropy))
        assert result.shape == expected.shape == ()
