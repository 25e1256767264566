"""dropout: what it drops, what it makes of the rest, and its gradient.

What is dropped is held against Philox written a second time here, in NumPy, which in turn is held against its authors' own
test vectors. The statistics need no reference: a count that should be binomial has to be within five deviations.
"""

import importlib
import math
import unittest.mock

import numpy as np
import pytest
import torch
from hostile import LAYOUTS, call, on_gpu, tensor
from hypothesis import example, given
from hypothesis import strategies as st
from test_kernels import layouts, seeds, shapes

from vitcourse import kernels, runtime

import triton  # isort: skip  (after vitcourse)
import triton.language as tl  # isort: skip

DROPOUT = importlib.import_module("vitcourse.kernels.dropout")
DEVICE = runtime.DEVICE
BIG = (1 << 62) + (5 << 32) + 7  # a seed with bits on both sides of the middle


def philox(key: tuple[int, int], counter: tuple) -> np.ndarray:
    """Philox4x32-7: four 32-bit numbers for each counter, (4, n)."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(7):
        first, second = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (second >> np.uint64(32)) ^ c1 ^ k0, second & low
        c2, c3 = (first >> np.uint64(32)) ^ c3 ^ k1, first & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3])


def kept(seed: int, first: int, count: int, p: float) -> torch.Tensor:
    """Whether elements first to first + count - 1 of a flat vector are kept; `first` a multiple of 4."""
    counter = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    zero = np.zeros_like(counter)
    words = philox((seed & 0xFFFFFFFF, seed >> 32), (counter & np.uint64(0xFFFFFFFF), counter >> np.uint64(32), zero, zero))
    # Triton's float in [0, 1): of the 31 bits without the sign, which a negative number has flipped.
    signed = words.T.reshape(-1)[:count].astype(np.uint32).view(np.int32).astype(np.int64)
    uniform = np.where(signed < 0, -signed - 1, signed).astype(np.float32) * np.float32(4.6566127342e-10)
    return torch.from_numpy(uniform >= np.float32(p)).to(DEVICE)


def within_five_deviations(successes: torch.Tensor, trials: int, probability: float) -> bool:
    deviation = math.sqrt(trials * probability * (1 - probability))
    return bool(((successes.double() - trials * probability).abs() <= 5 * deviation + 1e-9).all())


def scaled(x: torch.Tensor, p: float) -> torch.Tensor:
    return (x.float() * torch.tensor(1 / (1 - p), dtype=torch.float32, device=x.device)).to(x.dtype)


def check_dropout(x: torch.Tensor, p: float, seed: int, at: str = "contiguous") -> None:
    """Forward and backward, in any memory: each element is dropped or scaled, as Philox says for where it lies."""
    result = call(kernels.dropout, x, p, seed=seed)
    assert (result.dtype, result.shape, result.stride()) == (x.dtype, x.shape, torch.empty_like(x).stride())
    flat = kept(seed, 0, x.numel(), p)
    mask = torch.empty(x.numel(), dtype=torch.bool, device=x.device).copy_(flat).as_strided(x.shape, result.stride())
    assert torch.equal(result, torch.where(mask, scaled(x, p), 0.0))

    grad = tensor(tuple(x.shape), x.dtype, at, seed=1)

    def gradient(x, grad):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(kernels.dropout(leaf, p, seed=seed), leaf, grad)[0]

    found = call(gradient, x, grad)
    assert found.dtype == x.dtype
    assert torch.equal(found, torch.where(mask, scaled(grad, p), 0.0))


def test_the_reference_gives_its_authors_numbers():
    """Random123's own known answers for Philox4x32-7 (kat_vectors)."""
    ones = (0xFFFFFFFF,) * 4
    for key, counter, words in (
        ((0, 0), (0, 0, 0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (ones[:2], ones, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        ((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
         (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    ):  # fmt: skip
        assert tuple(int(word) for word in philox(key, counter)) == words


@given(shape=shapes, at=st.tuples(layouts, layouts), p=st.sampled_from([0.1, 0.5, 0.9]), seed=seeds)
@example(shape=(3, 5, 7), at=("transposed", "stepped"), p=0.5, seed=0)
@example(shape=(2, 3, 4, 5), at=("padded", "expanded"), p=0.3, seed=1)
def test_dropout_drawn(dtype, shape, at, p, seed):
    check_dropout(tensor(shape, dtype, at[0], seed=seed), p, seed, at[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype, layout):
    for at in LAYOUTS:
        check_dropout(tensor((7, 3, 11), dtype, layout), 0.4, BIG, at)


@pytest.mark.parametrize("block", [4, 64])
def test_what_is_dropped_does_not_depend_on_the_block_size(dtype, block):
    with unittest.mock.patch.object(DROPOUT, "BLOCK", block):
        for shape in ((1,), (5,), (9, 33)):
            check_dropout(tensor(shape, dtype), 0.3, 11)


@triton.jit
def kept_kernel(output_ptr, seed, first, p, KEPT: tl.constexpr):
    lanes = tl.arange(0, 16)
    mask = KEPT(tl.zeros((), tl.int64) + seed, tl.zeros((), tl.int64) + first, p, 16)
    tl.store(output_ptr + lanes, mask.to(tl.float32))


@pytest.mark.parametrize("first", [0, 2**31 - 8, 2**32, 2**34 - 8, 2**34, 2**40 + 16])
def test_elements_of_large_tensors_have_numbers_of_their_own(first):
    for seed in (0, 1, BIG):
        output = torch.zeros(16, device=DEVICE)
        kept_kernel[(1,)](output, seed, first, 0.5, KEPT=DROPOUT.kept)
        assert torch.equal(output.bool(), kept(seed, first, 16, 0.5))


@on_gpu
@pytest.mark.memory(10)
def test_past_two_to_the_31_elements():
    size = (1 << 31) + 100
    x = torch.ones(size, dtype=torch.float16, device=DEVICE)
    result = kernels.dropout(x, 0.5, seed=3)
    assert torch.equal(result[-200:].bool(), kept(3, size - 200, 200, 0.5))


# ---- statistics ----


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.75, 0.99])
def test_the_share_kept_and_the_mean(dtype, p):
    size = 200_000
    for seed in (0, 1, BIG):
        result = call(kernels.dropout, tensor((size,), dtype, scale=0.0) + 1, p, seed=seed)
        assert within_five_deviations(result.count_nonzero(), size, 1 - p)
        assert abs(result.double().mean().item() - 1) <= 5 * math.sqrt(p / (1 - p) / size) + torch.finfo(dtype).eps


def test_masks_of_two_seeds_are_independent():
    size, p = 100_000, 0.3
    x = torch.ones(size, device=DEVICE)
    masks = [kernels.dropout(x, p, seed=seed) != 0 for seed in (0, 1, 2, 1 << 32, 1 << 33, BIG)]
    for i, mask in enumerate(masks):
        assert torch.equal(mask, kernels.dropout(x, p, seed=(0, 1, 2, 1 << 32, 1 << 33, BIG)[i]) != 0)
        for other in masks[:i]:
            assert within_five_deviations((mask & other).sum(), size, (1 - p) ** 2)


@pytest.mark.parametrize("columns", [1, 4, 64, 100])
def test_rows_and_columns_are_independent(columns):
    rows, p = 80_000 // columns, 0.5
    with unittest.mock.patch.object(DROPOUT, "BLOCK", 1024):
        mask = kernels.dropout(torch.ones(rows, columns, device=DEVICE), p, seed=9) != 0
    for step in (1, 2, 3, 4, 16):  # a row and a later one; a column and a later one
        assert within_five_deviations((mask[step:] == mask[:-step]).sum(), (rows - step) * columns, 0.5)
        if step < columns:
            assert within_five_deviations((mask[:, step:] == mask[:, :-step]).sum(), rows * (columns - step), 0.5)
    assert within_five_deviations(mask.sum(0), rows, 0.5) and within_five_deviations(mask.sum(1), columns, 0.5)


# ---- the seed that is drawn ----


def test_torchs_generator_draws_the_seed():
    x = torch.ones(1000, device=DEVICE)
    torch.manual_seed(1)
    first, second = kernels.dropout(x), kernels.dropout(x)
    torch.manual_seed(1)
    assert torch.equal(kernels.dropout(x), first) and torch.equal(kernels.dropout(x), second)
    torch.manual_seed(2)
    assert not torch.equal(first, second) and not torch.equal(kernels.dropout(x), first)
    torch.manual_seed(1)
    kernels.dropout(x, seed=5)  # draws nothing
    assert torch.equal(kernels.dropout(x), first)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("backend", ["aot_eager"] + (["inductor"] if DEVICE.type == "cuda" else []))
def test_compiled_in_one_graph(dtype, backend, seed):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: kernels.dropout(x * 2, 0.3, seed=seed) * 4, fullgraph=True, backend=backend)
    for shape in ((40, 50), (60, 70), (70, 60)):
        x = tensor(shape, dtype, "transposed").requires_grad_()
        results = [compiled(x) for _ in range(2)]
        for result in results:
            dropped = result == 0
            assert within_five_deviations(dropped.sum(), x.numel(), 0.3)
            (grad,) = torch.autograd.grad(result, x, torch.ones_like(result))
            assert torch.equal(grad == 0, dropped)
        assert torch.equal(*results) == (seed is not None)
        if seed is not None:
            torch.testing.assert_close(results[0], kernels.dropout(x * 2, 0.3, seed=seed) * 4)
    torch._dynamo.reset()


@on_gpu
def test_a_cuda_graph_draws_a_new_mask_in_every_replay():
    x = torch.ones(1000, device=DEVICE)
    kernels.dropout(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = kernels.dropout(x)
    graph.replay()
    first = result.clone()
    graph.replay()
    assert not torch.equal(first, result)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_draws_the_same_mask_again(reentrant):
    x = tensor((50, 40), torch.float32).requires_grad_()
    result = torch.utils.checkpoint.checkpoint(lambda x: kernels.dropout(x.sin()).cos(), x, use_reentrant=reentrant)
    (grad,) = torch.autograd.grad(result.sum(), x) if not reentrant else (result.sum().backward(), x.grad)[1:]
    assert torch.equal(grad == 0, result == 1)


# ---- edges ----


def test_p_of_nothing_and_of_everything(dtype):
    x = tensor((3, 5), dtype).requires_grad_()
    assert kernels.dropout(x, 0) is x and kernels.dropout(x, 0.0) is x
    assert kernels.dropout(x, 0.5, False) is x and kernels.dropout(x, p=1.0, training=False) is x
    for p in (1, 1.0):
        result = kernels.dropout(x, p)
        assert torch.equal(result, torch.zeros_like(x))
        assert torch.equal(torch.autograd.grad(result.sum(), x)[0], torch.zeros_like(x))


def test_what_is_dropped_is_zero_whatever_it_was(dtype):
    for value in (float("nan"), float("inf")):
        result = kernels.dropout(torch.full((100,), value, dtype=dtype, device=DEVICE), 0.5, seed=0)
        mask = kept(0, 0, 100, 0.5)
        assert bool((result[~mask] == 0).all()) and not bool(result[mask].isfinite().any())


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2, 0, 3), ()])
def test_zero_size_and_one_number(dtype, shape):
    check_dropout(tensor(shape, dtype), 0.5, 1)


def test_no_graph_where_none_is_wanted():
    x = tensor((3, 5), torch.float32).requires_grad_()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not kernels.dropout(x, seed=1).requires_grad
    assert kernels.dropout(x, seed=1).requires_grad and not kernels.dropout(x.detach(), seed=1).requires_grad


def test_a_seed_is_kept_and_no_mask():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value.numel()) or value, lambda value: value):
        kernels.dropout(tensor((30, 5), torch.float32).requires_grad_())
    assert saved == [1]


def test_a_second_derivative_is_refused():
    x = tensor((3, 5), torch.float32).requires_grad_()
    weight = tensor((3, 5), torch.float32, seed=1).requires_grad_()
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad(kernels.dropout(x), x, weight, create_graph=True)


@pytest.mark.parametrize(
    "error, arguments, named, word",
    [
        (ValueError, (-0.1,), {}, "p"), (ValueError, (1.5,), {}, "p"), (ValueError, (float("nan"),), {}, "p"),
        (ValueError, (1.5, False), {}, "p"), (ValueError, (0.5, True, True), {}, "inplace"),
        (ValueError, (), {"seed": -1}, "seed"), (ValueError, (), {"seed": 1 << 63}, "seed"),
        (TypeError, (), {"seed": 0.5}, "seed"), (TypeError, (), {"seed": True}, "seed"),
    ],
)  # fmt: skip
def test_refusals(error, arguments, named, word):
    with pytest.raises(error, match=rf"^dropout: {word}\b"):
        kernels.dropout(torch.ones(3, device=DEVICE), *arguments, **named)


def test_tensors_that_are_refused():
    for x, match in (([1.0], "list"), (torch.ones(3, dtype=torch.int64, device=DEVICE), "int64")):
        with pytest.raises(TypeError, match=f"dropout: input .*{match}"):
            kernels.dropout(x)
