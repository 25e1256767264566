"""The gradients of attention against float64, as test_gradients.py has those of the other functions.

A block of the interpreter holds 256 queries and 256 keys, so longer sequences, and the tests called `*_small_blocks`, are what
walks over several in each direction. test_broken_kernels.py shows for each test of a value here a wrong kernel that it sees.
"""

import functools
import importlib
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hostile import LAYOUTS, on_gpu, tensor
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_gradients import Terms, check_gradients, differentiate
from test_kernels import ATTENTION_BLOCKS, far_apart, forced_config, head_sizes, heads, layouts, maybe_zero, seeds, sizes
from tolerance import assert_close_to_float64, largest
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitcourse import kernels, runtime

ATTENTION = importlib.import_module("vitcourse.kernels.attention")
attend = kernels.scaled_dot_product_attention
NAMES = ("query", "key", "value")


def hidden(queries: int, keys: int) -> torch.Tensor:
    """Where a causal query does not see a key: query i sees keys 0 to i."""
    return torch.ones((queries, keys), dtype=torch.bool, device=runtime.DEVICE).triu(1)


def attention_terms(grad, query, key, value, is_causal=False, scale=None) -> Terms:
    if 0 in (grad.numel(), query.numel(), key.numel(), value.numel()):
        return {}
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-1, -2) * factor
    if is_causal:
        scores = scores.masked_fill(hidden(*scores.shape[-2:]), -float("inf"))
    p = scores.softmax(-1)
    p_grad = grad @ value.transpose(-1, -2)
    delta = (grad * (p @ value)).sum(-1, keepdim=True)
    # The result that delta is taken from is rounded to the type, and so are P and dS before they are multiplied. What float32
    # rounds is each product, and a score, whose absolute error is P's relative one.
    of_delta = (grad.abs() * (p @ value.abs())).sum(-1, keepdim=True)
    rounded = p * ((p_grad - delta).abs() + of_delta)
    every = p * (grad.abs() @ value.abs().transpose(-1, -2) + of_delta)
    steps = 1 + largest(query.abs() @ key.abs().transpose(-1, -2)) * abs(factor)
    of_query = [largest(term @ key.abs()) * abs(factor) for term in (rounded, every)]
    of_key = [largest(term.transpose(-1, -2) @ query.abs()) * abs(factor) for term in (rounded, every)]
    of_value = largest(p.transpose(-1, -2) @ grad.abs())
    return {
        "query": (of_query[0], of_query[1] * steps),
        "key": (of_key[0], of_key[1] * steps),
        "value": (of_value, of_value * steps),
    }


def check(query, key, value, is_causal=False, scale=None, **how) -> None:
    def ours(query, key, value):
        return attend(query, key, value, is_causal=is_causal, scale=scale)

    def theirs(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)

    def terms(grad, query, key, value) -> Terms:
        return attention_terms(grad, query, key, value, is_causal, scale)

    with_plain_peer(lambda: check_gradients(ours, theirs, dict(zip(NAMES, (query, key, value))), terms, **how))


def with_plain_peer(run: Callable[[], None]) -> None:
    """With PyTorch's attention made of plain kernels: of the others some refuse some shapes or strides, forward or backward."""
    with sdpa_kernel(SDPBackend.MATH):
        run()


def three(queries: int, keys: int, head_size: int, value_size: int, dtype, batch=1, head=2, seed=0, **how) -> list[torch.Tensor]:
    shapes = ((queries, head_size), (keys, head_size), (keys, value_size))
    return [tensor((batch, head, *shape), dtype, seed=seed + i, **how) for i, shape in enumerate(shapes)]


# ---- shapes ----


@given(
    batch=heads, head=heads, queries=maybe_zero, keys=sizes, head_size=head_sizes, value_size=head_sizes,
    at=st.tuples(*[layouts] * 4), is_causal=st.booleans(), scale=st.sampled_from([None, 0.5, 3.0, 0.0, -0.3]), seed=seeds,
)  # fmt: skip
@example(
    batch=1, head=2, queries=300, keys=270, head_size=16, value_size=16,
    at=("contiguous",) * 4, is_causal=True, scale=None, seed=0,
)  # fmt: skip
@example(
    batch=2, head=2, queries=20, keys=300, head_size=24, value_size=40,
    at=("expanded",) * 4, is_causal=True, scale=None, seed=0,
)  # fmt: skip
def test_drawn(dtype, batch, head, queries, keys, head_size, value_size, at, is_causal, scale, seed):
    assume(queries * keys * max(1, batch * head) <= 1 << 18)
    query = tensor((batch, head, queries, head_size), dtype, at[0], seed=seed)
    key = tensor((batch, head, keys, head_size), dtype, at[1], seed=seed + 1)
    value = tensor((batch, head, keys, value_size), dtype, at[2], seed=seed + 2)
    check(query, key, value, is_causal, scale, at=at[3], seed=seed)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "tokens, head_size",
    [(1, 64), (5, 16), (16, 32), (197, 64), (197, 80), (256, 128), (256, 32), (577, 16)]
    + [pytest.param(*size, marks=on_gpu) for size in ((577, 64), (1025, 64), (1025, 80), (197, 128), (197, 256))],
)
def test_lengths_and_head_sizes(dtype, tokens, head_size, is_causal):
    check(*three(tokens, tokens, head_size, head_size, dtype, head=1), is_causal)


@pytest.mark.filterwarnings("ignore")  # each backend says why it refuses
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("head_size", [16, 64, *(pytest.param(size, marks=on_gpu) for size in (32, 80, 128))])
def test_beside_every_backend(dtype, head_size, is_causal):
    """Result and gradients are as near to float64 as those of each of PyTorch's backends that takes the type and the size."""

    def run(function, grad, **inputs) -> list[torch.Tensor]:
        leaves = [value.detach().clone().requires_grad_() for value in inputs.values()]
        result = function(*leaves, is_causal=is_causal)
        return [result.detach(), *torch.autograd.grad(result, leaves, grad)]

    beside = set()
    for tokens in (1, 5, 16, 197) if runtime.INTERPRETER else (1, 5, 16, 197, 256, 577, 1025):
        inputs = dict(zip(NAMES, three(tokens, tokens, head_size, head_size, dtype, head=1)))
        inputs["grad"] = tensor((1, 1, tokens, head_size), dtype, seed=9)
        wide = {name: value.double() for name, value in inputs.items()}
        found, terms = run(attend, **inputs), attention_terms(**wide, is_causal=is_causal)
        with sdpa_kernel(SDPBackend.MATH):
            references = run(F.scaled_dot_product_attention, **wide)
        for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            try:
                with sdpa_kernel(backend):
                    peers = run(F.scaled_dot_product_attention, **inputs)
            except RuntimeError as error:
                if not any(words in str(error) for words in ("No available kernel", "No viable backend")):
                    raise
                continue
            beside.add(backend)
            for name, mine, reference, peer in zip(("result", *NAMES), found, references, peers):
                rounded, intermediate = terms.get(name, (0.0, 0.0))
                what = f"{name} of {tokens} tokens, beside {backend.name}"
                assert_close_to_float64(mine, reference, peer, rounded=rounded, intermediate=intermediate, what=what)
    assert len(beside) >= (2 if runtime.INTERPRETER or dtype == torch.float32 else 3)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("queries, keys", [(1, 20), (20, 1), (16, 17), (33, 130), (130, 33), (50, 270), (270, 50)])
def test_as_many_queries_as_keys_or_not(dtype, queries, keys, is_causal):
    # Causal queries past the last key see all keys; keys past the last query are seen by none, and have no gradient.
    query, key, value = three(queries, keys, 20, 9, dtype)
    check(query, key, value, is_causal)
    check(query, key, value, is_causal, scale=0.7)
    if is_causal and keys > queries:
        grad = tensor((1, 2, queries, 9), dtype, seed=9)
        found = differentiate(functools.partial(attend, is_causal=True), dict(zip(NAMES, (query, key, value))), [grad], NAMES)
        assert not found[1][:, :, queries:].any() and not found[2][:, :, queries:].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype, layout):
    plain = three(37, 45, 24, 16, dtype, batch=2)
    for index in range(3):  # one at a time lies so
        operands = list(plain)
        operands[index] = tensor(tuple(plain[index].shape), dtype, layout, seed=10 + index)
        check(*operands, is_causal=True)
    check(*plain, at=layout)
    check(*plain, is_causal=True, at=layout)


@pytest.mark.parametrize("needed", [["query"], ["key"], ["value"], ["query", "value"], ["key", "value"]], ids="+".join)
@pytest.mark.parametrize("is_causal", [False, True])
def test_with_some_of_it_frozen(dtype, needed, is_causal):
    check(*three(37, 45, 24, 16, dtype), is_causal, needed=needed)


@pytest.mark.parametrize(
    "shape", [(0, 2, 5, 6, 8, 9), (2, 0, 5, 6, 8, 9), (1, 2, 0, 6, 8, 9), (1, 2, 5, 0, 8, 9), (1, 2, 5, 6, 8, 0)], ids=str
)
def test_zero_size(dtype, shape):
    """Where nothing is computed every gradient is 0. (PyTorch says so too, but for NaN where there are no keys.)"""
    batch, head, queries, keys, head_size, value_size = shape
    operands = three(queries, keys, head_size, value_size, dtype, batch, head)
    grad = tensor((batch, head, queries, value_size), dtype, seed=9)
    for is_causal in (False, True):
        causal = functools.partial(attend, is_causal=is_causal)
        found = differentiate(causal, dict(zip(NAMES, operands)), [grad], NAMES)
        for gradient, operand in zip(found, operands):
            assert gradient.shape == operand.shape and not gradient.any()


# ---- what a ViT does ----


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("embedding", [8, 60, 64])
def test_packed_queries_keys_and_values(dtype, embedding, is_causal):
    """As in layers.SelfAttention: three views of one tensor, and a result that is used as tokens."""
    batch, tokens, head = 2, 37, 4
    packed = tensor((batch, tokens, 3 * embedding), dtype)

    def through(attention: Callable) -> Callable:
        def function(packed):
            query, key, value = packed.unflatten(-1, (3, head, -1)).permute(2, 0, 3, 1, 4)
            return attention(query, key, value, is_causal=is_causal).transpose(1, 2).flatten(2)

        return function

    def terms(grad, packed) -> Terms:
        grad = grad.unflatten(-1, (head, -1)).transpose(1, 2)
        of = attention_terms(grad, *packed.unflatten(-1, (3, head, -1)).permute(2, 0, 3, 1, 4), is_causal)
        return {"packed": tuple(max(sizes) for sizes in zip(*of.values()))}

    for at in ("contiguous", "expanded", "transposed"):
        with_plain_peer(
            lambda at=at: check_gradients(
                through(attend), through(F.scaled_dot_product_attention), {"packed": packed}, terms, at=at
            )
        )


def test_gradients_lie_as_tokens(dtype):
    operands = [x.requires_grad_() for x in three(5, 7, 8, 12, dtype, batch=2)]
    result = attend(*operands)
    for gradient in (result, *torch.autograd.grad(result, operands, torch.ones_like(result))):
        assert gradient.transpose(1, 2).is_contiguous() and gradient.dtype == dtype


def test_the_same_gradient_to_the_bit(dtype):
    operands = [x.requires_grad_() for x in three(300, 270, 16, 16, dtype)]
    grad = tensor((1, 2, 300, 16), dtype, seed=9)
    first, *others = ([*torch.autograd.grad(attend(*operands, is_causal=True), operands, grad)] for _ in range(3))
    for found in others:
        assert all(torch.equal(a, b) for a, b in zip(first, found))


def test_the_result_is_the_one_without_gradients(dtype):
    for queries, keys in ((5, 7), (300, 270)):
        operands = three(queries, keys, 16, 24, dtype)
        expected = attend(*operands)
        assert torch.equal(attend(*(x.requires_grad_() for x in operands)).detach(), expected)


def test_gradients_of_values_add_up(dtype):
    # A sum of results is a sum of values weighed by P, whose rows add up to 1: so do the gradients of the values of a head.
    query, key, value = three(300, 270, 16, 16, dtype)
    (found,) = differentiate(attend, dict(zip(NAMES, (query, key, value))), [tensor((1, 2, 300, 16), dtype) * 0 + 1], ["value"])
    total = found.double().sum(2)
    torch.testing.assert_close(total, torch.full_like(total, 300.0), rtol=2 * torch.finfo(dtype).eps, atol=0.0)


@on_gpu
@pytest.mark.parametrize("batch", [1, 8])
def test_vit_base_shapes(dtype, batch):
    tokens, head, head_size = 197, 12, 64
    packed = tensor((batch, tokens, 3 * head * head_size), dtype)
    query, key, value = packed.view(batch, tokens, 3, head, head_size).permute(2, 0, 3, 1, 4)
    check(query, key, value)
    check(query, key, value, is_causal=True)


# ---- small blocks: many programs, many steps, a partial one at every edge ----


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("block_m, block_n", ATTENTION_BLOCKS)
def test_small_blocks(dtype, block_m, block_n, is_causal):
    config = runtime.Config({"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": 32, "BLOCK_V": 32}, 4, 1)
    single = [(1, 65), (65, 1)]
    if not runtime.INTERPRETER and (block_m, block_n) != ATTENTION_BLOCKS[0]:
        single = []  # a size of 1 is a constant to the compiler, and each compiles three kernels of its own
    for queries, keys in ((65, 65), (33, 130), (130, 33), *single, (64, 128)):
        query, key, value = three(queries, keys, 20, 9, dtype)
        with forced_config(ATTENTION, config):
            check(query, key, value, is_causal)
            # Scores that grow along the keys, so that the first blocks count for little.
            growing = torch.linspace(0, 4, keys, device=key.device, dtype=dtype)[:, None]
            check(query.abs(), key.abs() * growing, value, is_causal, at="expanded")


@given(
    queries=sizes, keys=sizes, blocks=st.sampled_from(ATTENTION_BLOCKS), at=st.tuples(*[layouts] * 4), is_causal=st.booleans(),
    seed=seeds,
)  # fmt: skip
def test_drawn_small_blocks(dtype, queries, keys, blocks, at, is_causal, seed):
    assume(queries * keys <= 4 * math.prod(blocks) * 16)
    config = runtime.Config(dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_D", "BLOCK_V"), (*blocks, 16, 16))), 4, 1)
    operands = (tensor((2, 1, size, 12), dtype, at[i], seed=seed + i) for i, size in enumerate((queries, keys, keys)))
    with forced_config(ATTENTION, config):
        check(*operands, is_causal, at=at[3], seed=seed)


# ---- numbers ----


@pytest.mark.parametrize("is_causal", [False, True])
def test_large_scores(dtype, is_causal):
    # Scores of tens of thousands: one key takes all the weight, and exp of a score alone would overflow.
    for size in (8, 20):
        query, key, value = (tensor((1, 2, 50, size), dtype, seed=i, scale=s) for i, s in enumerate((60.0, 60.0, 1.0)))
        check(query, key, value, is_causal)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_far_from_zero(dtype, sign, is_causal):
    # Every score of a row is far above or below 0, which is what a key past the end scores.
    query, key, value = (x.abs() for x in three(37, 45, 16, 16, dtype))
    check(query * 8, sign * key * 8, value, is_causal)


def test_a_nan_stays_in_its_query_of_the_gradient(dtype):
    query, key, value = three(20, 20, 8, 8, dtype)
    grad = tensor((1, 2, 20, 8), dtype, seed=9)
    query[0, 0, 7, 3] = float("nan")
    found = differentiate(attend, dict(zip(NAMES, (query, key, value))), [grad], NAMES)
    nan = found[0].isnan().any(-1)
    assert nan[0, 0, 7] and int(nan.sum()) == 1
    for gradient in found[1:]:  # every key of that head has met the query
        assert gradient[0, 0].isnan().any() and not gradient[0, 1].isnan().any()


def test_float32_products_follow_pytorchs_setting(monkeypatch):
    asked = []
    monkeypatch.setattr(ATTENTION, "dot_precision", lambda dtype: asked.append(dtype) or "ieee")
    operands = [x.requires_grad_() for x in three(5, 6, 8, 8, torch.float32)]
    attend(*operands).sum().backward()
    assert asked == [torch.float32] * 3  # one for each kernel


# ---- what autograd asks for ----


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck(is_causal):
    """As in test_gradients.py. Third derivatives of these numbers are below 4, so the differences are good to 1e-4."""

    def single(*inputs):
        return attend(*(x.float() for x in inputs), is_causal=is_causal, scale=0.5).double()

    inputs = [x.double().requires_grad_() for x in three(3, 4, 4, 3, torch.float32, seed=20)]
    assert torch.autograd.gradcheck(single, inputs, eps=1e-2, atol=1e-3, rtol=1e-3, fast_mode=False)


def test_a_second_derivative_is_refused():
    operands = [x.requires_grad_() for x in three(3, 4, 4, 3, torch.float32)]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad(attend(*operands).square().sum(), operands[0], create_graph=True)


def test_gradients_add_up_over_two_backward_passes():
    operands = [x.requires_grad_() for x in three(3, 4, 4, 3, torch.float32)]
    attend(*operands).square().sum().backward()
    once = [x.grad.clone() for x in operands]
    kept = attend(*operands).square().sum()
    kept.backward(retain_graph=True)  # the same graph twice: nothing that it keeps is used up
    kept.backward()
    for operand, first in zip(operands, once):
        assert first.abs().max() > 0
        torch.testing.assert_close(operand.grad, 3 * first)


def test_one_tensor_as_query_key_and_value():
    x = tensor((1, 2, 9, 8), torch.float32)

    def gradient(attention, x):
        return differentiate(lambda x: attention(x, x, x), {"x": x}, [torch.ones_like(x)], ["x"])[0]

    reference = gradient(F.scaled_dot_product_attention, x.double())
    assert_close_to_float64(
        gradient(attend, x), reference, gradient(F.scaled_dot_product_attention, x), intermediate=10 * largest(reference)
    )


def test_a_result_can_be_changed_in_place():
    operands = [x.requires_grad_() for x in three(3, 4, 4, 3, torch.float32)]
    for change in (lambda x: x.transpose(1, 2).flatten(2).add_(1.0), lambda x: x.add_(1.0)):
        result = attend(*operands)
        expected = result.detach() + 1.0
        change(result)
        assert torch.equal(result.detach(), expected) and result.requires_grad


def test_what_is_kept_for_the_backward_pass():
    """The three operands as they lie, the result, and a number a query: no copy, and no matrix of probabilities."""
    packed = tensor((2, 40, 3, 4, 8), torch.float32).requires_grad_()
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        result = attend(query, key, value)
    places = [x.data_ptr() for x in saved if x.numel() >= query.numel()]
    assert places == [query.data_ptr(), key.data_ptr(), value.data_ptr(), result.data_ptr()]
    assert [x.numel() for x in saved if x.numel() < query.numel()] == [2 * 4 * 40]


def test_keys_are_left_alone_when_only_queries_learn(monkeypatch):
    backward = ATTENTION._attention_key_backward
    calls = []
    monkeypatch.setattr(ATTENTION, "_attention_key_backward", lambda *values: calls.append(1) or backward(*values))
    query, key, value = three(3, 4, 4, 3, torch.float32)
    attend(query.clone().requires_grad_(), key, value).sum().backward()
    assert not calls
    attend(query, key, value.clone().requires_grad_()).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("half", [dtype for dtype in runtime.DTYPES if dtype != torch.float32], ids=str)
def test_autocast_rounds_operands_of_any_type(half):
    query, key, value = three(5, 6, 8, 8, torch.float32)
    half_key = key.to(half)
    with torch.autocast(runtime.DEVICE.type, half):
        found = differentiate(attend, dict(zip(NAMES, (query, half_key, value))), [tensor((1, 2, 5, 8), half, seed=9)], NAMES)
        assert attend(query, key, value).dtype == half
        assert torch.equal(attend(query, key, value), attend(query.to(half), half_key, value.to(half)))
    assert [x.dtype for x in found] == [torch.float32, half, torch.float32]
    with torch.autocast(runtime.DEVICE.type, half, enabled=False):
        assert attend(query, key, value).dtype == torch.float32


# ---- past 2^31 elements ----


@pytest.mark.memory(7)
def test_neighbours_past_two_to_the_31_elements_apart():
    check(*far_apart((1, 2, 3, 17), (1, 2, 5, 17), (1, 2, 5, 17)))


@on_gpu
@pytest.mark.memory(37)
def test_past_two_to_the_31_elements():
    batch, head, tokens, size = 2700, 32, 197, 128  # 2^31 elements and a few in each of seven tensors
    operands = [torch.empty((batch, tokens, head, size), dtype=torch.float16, device=runtime.DEVICE).normal_() for _ in range(4)]
    query, key, value, grad = (x.transpose(1, 2) for x in operands)
    assert query.numel() > 2**31
    found = differentiate(attend, dict(zip(NAMES, (query, key, value))), [grad], NAMES)
    for part in (slice(0, 2), slice(batch // 2, batch // 2 + 2), slice(batch - 2, batch)):
        few = dict(zip(NAMES, (query[part], key[part], value[part])))
        peers = differentiate(F.scaled_dot_product_attention, few, [grad[part]], NAMES)
        wide = {name: x.double() for name, x in few.items()}
        references = differentiate(F.scaled_dot_product_attention, wide, [grad[part].double()], NAMES)
        made_of = attention_terms(grad[part].double(), **wide)
        for name, gradient, peer, reference in zip(NAMES, found, peers, references):
            rounded, intermediate = made_of[name]
            assert_close_to_float64(gradient[part], reference, peer, rounded=rounded, intermediate=intermediate, what=name)
