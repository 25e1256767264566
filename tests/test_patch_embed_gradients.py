"""The gradients of `patch_embed` against float64, by the rules and in the memory of test_gradients.py.

What a gradient is made of is what PyTorch's own gives for the same numbers without their signs.
"""

import contextlib
import importlib
import unittest.mock
from collections.abc import Iterator

import pytest
import torch
from hostile import LAYOUTS, call, on_gpu, tensor
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_gradients import Terms, check_gradients, compose, differentiate
from test_kernels import fits, forced_config, layouts, seeds, sizes, torch_patch_embed
from test_linear_gradients import counted
from tolerance import assert_close_to_float64, largest

from vitcourse import kernels, runtime

PATCH_EMBED = importlib.import_module("vitcourse.kernels.patch_embed")
EVERYTHING = ["input", "weight", "bias", "class_token", "position_embedding"]
STEPS = ("_patch_embed", "_patch_embed_input_backward", "_patch_embed_weight_backward", "sum_to_size")


def theirs(input, weight, bias=None, class_token=None, position_embedding=None):
    return torch_patch_embed(input, weight, bias, class_token, position_embedding)


def check(inputs: dict[str, torch.Tensor | None], **how) -> None:
    inputs = {name: value for name, value in inputs.items() if value is not None}

    def terms(grad, **inputs) -> Terms:
        sums = differentiate(theirs, {name: value.abs() for name, value in inputs.items()}, [grad.abs()], list(inputs))
        return {name: (0.0, largest(value)) for name, value in zip(inputs, sums)}

    # As torch_patch_embed says, and for its backward pass too: a lax peer is no peer.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        check_gradients(kernels.patch_embed, theirs, inputs, terms, **how)


def operands(
    dtype, batch=2, channels=3, patch=(4, 3), patches=(3, 2), over=(1, 2), hidden=10, at=("contiguous",) * 5, seed=0
) -> dict[str, torch.Tensor]:
    """Arguments of `patch_embed`, of images that have `over` rows and columns more than whole patches."""
    height, width = (size * count + more for size, count, more in zip(patch, patches, over))
    tokens = patches[0] * patches[1] + 1
    return {
        "input": tensor((batch, channels, height, width), dtype, at[0], seed=seed),
        "weight": tensor((hidden, channels, *patch), dtype, at[1], seed=seed + 1, scale=0.25),
        "bias": tensor((hidden,), dtype, at[2], seed=seed + 2),
        "class_token": tensor((1, 1, hidden), dtype, at[3], seed=seed + 3),
        "position_embedding": tensor((1, tokens, hidden), dtype, at[4], seed=seed + 4),
    }


def without(inputs: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    """`inputs` less `names`; where there is no class token, the positions have no place for it."""
    left = {name: value for name, value in inputs.items() if name not in names}
    if "class_token" in names and "position_embedding" in left:
        left["position_embedding"] = left["position_embedding"][:, 1:]
    return left


@contextlib.contextmanager
def blocks(splits: int = 1, m: int = 16, n: int = 16, k: int = 16) -> Iterator[None]:
    """These tiles in all three kernels, and the patches of a weight's gradient in so many shares."""
    config = runtime.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, 4, 2)
    with forced_config(PATCH_EMBED, config), unittest.mock.patch.object(PATCH_EMBED, "_splits", lambda *_: splits):
        yield


# ---- drawn shapes ----

some = st.integers(1, 5)
DENSE = ("contiguous",) * 6
NONE, ALL = (False,) * 3, (True,) * 3


@given(
    batch=st.integers(0, 3), channels=st.integers(1, 4), patch=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    patches=st.tuples(some, some), over=st.tuples(st.integers(0, 15), st.integers(0, 15)), hidden=sizes,
    at=st.tuples(*[layouts] * 6), given_=st.tuples(*[st.booleans()] * 3), seed=seeds,
)  # fmt: skip
@example(batch=1, channels=1, patch=(1, 1), patches=(1, 1), over=(0, 0), hidden=1, at=DENSE, given_=ALL, seed=0)
@example(batch=2, channels=3, patch=(7, 14), patches=(1, 1), over=(3, 9), hidden=300, at=DENSE, given_=ALL, seed=0)
@example(batch=7, channels=1, patch=(2, 1), patches=(9, 7), over=(0, 0), hidden=3, at=DENSE, given_=NONE, seed=0)
def test_patch_embed_drawn(dtype, batch, channels, patch, patches, over, hidden, at, given_, seed):
    over = tuple(min(more, size - 1) for size, more in zip(patch, over))
    absent = [name for name, there in zip(EVERYTHING[2:], given_) if not there]
    inputs = operands(dtype, batch, channels, patch, patches, over, hidden, at, seed)
    check(without(inputs, *absent), at=at[5], seed=seed)


# ---- given shapes and layouts ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype, layout):
    # One tensor at a time lies so, the incoming gradient last, over several steps of every sum.
    for index in range(6):
        at = ["contiguous"] * 6
        at[index] = layout
        with blocks(splits=2):
            check(operands(dtype, patches=(3, 4), hidden=18, at=tuple(at)), at=at[5])
    check(operands(dtype, at=(layout,) * 5), at=layout)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 0, 1, 2), (1, 0, 2, 3)], ids=str)
def test_an_image_stored_in_another_order(dtype, order):
    # channels last, as images are read; and two orders that nobody uses
    stored = tensor(tuple((2, 3, 30, 23)[i] for i in order), dtype)
    x = stored.permute(*(order.index(i) for i in range(4)))
    weight = tensor((24, 3, 5, 7), dtype, seed=1, scale=0.25)
    check({"input": x, "weight": weight})
    check({"input": x.clone(), "weight": weight.contiguous(memory_format=torch.channels_last)})


def test_pixels_of_no_patch_have_no_gradient(dtype):
    for over in ((0, 0), (0, 2), (3, 0), (3, 2)):
        inputs = operands(dtype, over=over)
        check(inputs)
        grad = tensor((2, 7, 10), dtype, seed=9)
        (found,) = call(lambda grad, inputs=inputs: differentiate(kernels.patch_embed, inputs, [grad], ["input"]), grad)
        rows, columns = 3 * 4, 2 * 3
        assert found.is_contiguous() and bool((found[..., :rows, :columns] != 0).all())
        assert not found[..., rows:, :].any() and not found[..., :, columns:].any()


def test_class_token_and_positions_of_any_shape(dtype):
    inputs = operands(dtype)
    for token, positions in (((10,), (7, 10)), ((1, 10), (70,)), ((2, 5), (1, 1, 7, 10)), ((10, 1, 1), (10, 7))):
        check(inputs | {"class_token": inputs["class_token"].reshape(token),
                        "position_embedding": inputs["position_embedding"].reshape(positions)})  # fmt: skip


EMBEDDINGS = [[], ["class_token"], ["position_embedding"], ["class_token", "position_embedding"]]


@pytest.mark.parametrize("given_", [*EMBEDDINGS, ["bias"], ["bias", "position_embedding"], EVERYTHING[2:]], ids="+".join)
def test_with_and_without_what_is_added(dtype, given_):
    inputs = without(operands(dtype), *(name for name in EVERYTHING[2:] if name not in given_))
    assert set(inputs) == {"input", "weight", *given_}
    check(inputs)
    check(inputs | {"input": inputs["input"][:1]})


SOME = [["input"], ["weight"], ["bias"], ["class_token"], ["position_embedding"], ["weight", "bias"], ["bias", "class_token"]]


@pytest.mark.parametrize("needed", [*SOME, ["input", "position_embedding"], EVERYTHING[1:]], ids="+".join)
def test_with_some_of_it_frozen(dtype, needed):
    inputs = operands(dtype)
    check(inputs, needed=needed)
    check(without(inputs, *(name for name in EVERYTHING[2:] if name not in needed)), needed=needed)


def test_no_images(dtype):
    inputs = operands(dtype, batch=0)
    found = differentiate(kernels.patch_embed, inputs, [tensor((0, 7, 10), dtype)], EVERYTHING)
    for name, gradient in zip(EVERYTHING, found):
        assert gradient.shape == inputs[name].shape and gradient.dtype == dtype and not gradient.any()


def test_no_hidden_elements_and_no_channels(dtype):
    # PyTorch's convolution has no answer here; a sum of nothing is 0.
    for hidden, channels in ((0, 3), (5, 0), (0, 0)):
        inputs = operands(dtype, hidden=hidden, channels=channels)
        grad = tensor((2, 7, hidden), dtype, seed=9)
        found = call(lambda grad, inputs=inputs: differentiate(kernels.patch_embed, inputs, [grad], EVERYTHING), grad)
        sums = grad.double().sum(0)
        references = (None, None, sums[1:].sum(0), sums[0], sums)
        for name, gradient, reference in zip(EVERYTHING, found, references):
            reference = inputs[name].double() * 0 if reference is None else reference.reshape(inputs[name].shape)
            assert_close_to_float64(gradient, reference, reference.to(dtype))


def test_gradients_that_come_from_a_sum_or_a_transpose(dtype):
    """As autograd makes them: `sum` sends back one number, expanded; `transpose` sends back a transposed tensor."""
    inputs, mix = operands(dtype), tensor((2, 10, 7), dtype, seed=9)
    wide = {name: value.double() for name, value in inputs.items()}
    for reduce in (lambda result: result.sum(), lambda result: (result.transpose(1, 2) * mix.to(result.dtype)).sum()):
        found, peers, references = (
            differentiate(compose(reduce, function), given_, [given_["bias"].new_ones(())], EVERYTHING)
            for function, given_ in ((kernels.patch_embed, inputs), (theirs, inputs), (theirs, wide))
        )
        for result, reference, peer in zip(found, references, peers):
            # Nothing here is larger than about 10, or is a sum of more than 12 products of such.
            assert_close_to_float64(result, reference, peer, rounded=10.0, intermediate=100.0)


# ---- small blocks: many programs, many steps, a partial one at every edge ----


@given(
    batch=st.integers(1, 3), channels=st.integers(1, 3), patch=st.tuples(some, some), patches=st.tuples(some, some),
    hidden=st.integers(1, 40),    class_token=st.booleans(), splits=st.integers(1, 7), at=layouts, seed=seeds,
)  # fmt: skip
@example(
    batch=3, channels=2, patch=(3, 4), patches=(3, 5), hidden=17, class_token=True, splits=3, at="contiguous", seed=0
)  # fmt: skip
@example(
    batch=1, channels=2, patch=(5, 5), patches=(4, 5), hidden=17, class_token=False, splits=5, at="contiguous", seed=0
)  # fmt: skip
def test_small_blocks(dtype, batch, channels, patch, patches, hidden, class_token, splits, at, seed):
    # Of 20 patches in blocks of 16, five shares are one whole, one partial, and three with nothing in them.
    assume(batch * patches[0] * patches[1] * channels * patch[0] * patch[1] * hidden <= 30_000)
    inputs = operands(dtype, batch, channels, patch, patches, (0, patch[1] - 1), hidden, seed=seed)
    with blocks(splits):
        check(inputs if class_token else without(inputs, "class_token"), at=at, seed=seed)


@contextlib.contextmanager
def chosen(configs: runtime.Configs, config: runtime.Config) -> Iterator[None]:
    """`config` for the kernel of this table; on a GPU the others' least, because one that fits here may not fit there."""

    def choose(table: runtime.Configs, *_: object) -> runtime.Config:
        return config if table is configs else table.candidates[-1]

    with forced_config(PATCH_EMBED, config), unittest.mock.patch.object(runtime.Configs, "choose", choose):
        yield


@pytest.mark.parametrize("config", PATCH_EMBED.WEIGHT_GRAD_CONFIGS.candidates, ids=lambda config: str(config.blocks))
def test_every_configuration_of_the_weights_gradient(dtype, config):
    fits(PATCH_EMBED.WEIGHT_GRAD_CONFIGS, config, dtype)
    # More than one tile either way, the last of them partial, and 70 patches or 140.
    inputs = operands(dtype, patch=(6, 8), patches=(7, 10), over=(1, 1), hidden=150)
    for splits in (1, 2):
        table = PATCH_EMBED.WEIGHT_GRAD_CONFIGS
        with chosen(table, config), unittest.mock.patch.object(PATCH_EMBED, "_splits", lambda *_, n=splits: n):
            check(inputs, needed=["weight"])


@pytest.mark.parametrize("class_token", [False, True], ids=["patches", "patches and a class token"])
@pytest.mark.parametrize("config", PATCH_EMBED.INPUT_GRAD_CONFIGS.candidates, ids=lambda config: str(config.blocks))
def test_every_configuration_of_the_images_gradient(dtype, config, class_token):
    fits(PATCH_EMBED.INPUT_GRAD_CONFIGS, config, dtype)
    inputs = operands(dtype, patch=(6, 8), patches=(7, 10), over=(1, 1), hidden=50)
    with chosen(PATCH_EMBED.INPUT_GRAD_CONFIGS, config):
        check(inputs if class_token else without(inputs, "class_token"), needed=["input"])


@pytest.mark.parametrize("batch", [1, 4, 15])
@pytest.mark.parametrize("splits", [1, 2, 4, 16])
def test_weight_gradient_of_many_patches(dtype, batch, splits):
    with blocks(splits):
        inputs = operands(dtype, batch, patch=(2, 3), patches=(3, 5), hidden=17)
        check(inputs, needed=["weight"])
        check(without(inputs, "class_token"), needed=["weight", "bias"])


def test_the_same_gradient_to_the_bit(dtype):
    inputs, grad = operands(dtype, 9, patches=(3, 5), hidden=20), tensor((9, 16, 20), dtype, seed=9)
    with blocks(5):
        first, second = (differentiate(kernels.patch_embed, inputs, [grad], EVERYTHING) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_sums_over_patches_and_images_are_kept_in_float32():
    # In float16, 2048 + 0.5, which is what a step of 16 patches adds, is 2048 again.
    ones = lambda *shape: torch.ones(shape, dtype=torch.float16, device=runtime.DEVICE)
    inputs = {"input": ones(1025, 1, 1, 1), "weight": ones(1, 1, 1, 1), "bias": ones(1), "class_token": ones(1)}
    inputs["position_embedding"] = ones(2, 1)
    grad = ones(1025, 2, 1) / 32
    grad[0] = 2048
    for splits in (1, 3):
        with blocks(splits):
            _, *sums = differentiate(kernels.patch_embed, inputs, [grad], EVERYTHING)
        assert all(value.dtype == torch.float16 and bool((value == 2048 + 1024 / 32).all()) for value in sums)


def test_sums_over_hidden_elements_are_kept_in_float32():
    x, weight = (torch.ones(shape, dtype=torch.float16, device=runtime.DEVICE) for shape in ((1, 1, 1, 1), (4097, 1, 1, 1)))
    grad = torch.full((1, 1, 4097), 1 / 32, dtype=torch.float16, device=runtime.DEVICE)
    grad[..., 0] = 2048
    with blocks():
        (found,) = differentiate(kernels.patch_embed, {"input": x, "weight": weight}, [grad], ["input"])
    assert found.item() == 2048 + 4096 / 32


def test_patches_that_reach_far(dtype, monkeypatch):
    """An image whose pixels lie too far apart for forward's offsets is copied; here 100 elements are far."""
    monkeypatch.setattr(PATCH_EMBED, "REACH", 100)
    inputs = operands(dtype)
    launched, kernel = [], PATCH_EMBED.patch_embed_kernel

    class Noted:
        def __getitem__(self, grid):
            return lambda x, *rest, **named: (launched.append(x), kernel[grid](x, *rest, **named))

    monkeypatch.setattr(PATCH_EMBED, "patch_embed_kernel", Noted())
    result = call(kernels.patch_embed, **inputs)
    terms = theirs(**{name: value.double().abs() for name, value in inputs.items()})
    reference = theirs(**{name: value.double() for name, value in inputs.items()})
    assert_close_to_float64(result, reference, theirs(**inputs), intermediate=largest(terms))
    check(inputs)
    assert len(launched) == 2 and all(x.is_contiguous(memory_format=torch.channels_last) for x in launched)
    monkeypatch.setattr(PATCH_EMBED, "REACH", 2**31)
    kernels.patch_embed(**inputs)
    assert launched[-1] is inputs["input"]


# ---- what autograd asks for ----

SAMPLES = {
    "patch_embed": (lambda x, w, b: kernels.patch_embed(x, w, b), [(2, 2, 5, 4), (3, 2, 2, 3), (3,)]),
    "patch_embed with all that is added": (
        lambda x, w, b, c, p: kernels.patch_embed(x, w, b, class_token=c, position_embedding=p),
        [(2, 1, 4, 5), (3, 1, 2, 2), (3,), (1, 1, 3), (1, 5, 3)],
    ),
}  # fmt: skip


def samples(name: str, **how) -> list[torch.Tensor]:
    return [tensor(shape, torch.float32, seed=20 + i, **how) for i, shape in enumerate(SAMPLES[name][1])]


@pytest.mark.parametrize("name", SAMPLES)
def test_gradcheck(name):
    """PyTorch's own check, as in test_gradients.py: a step of 0.01, and an error of 1e-3 where a wrong one makes 1e-2."""
    inputs = [value.double().requires_grad_() for value in samples(name, scale=0.7)]
    single = lambda *inputs: SAMPLES[name][0](*(value.float() for value in inputs)).double()
    assert torch.autograd.gradcheck(single, inputs, eps=1e-2, atol=1e-3, rtol=1e-3, fast_mode=False)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_second_derivative_is_refused(name):
    inputs = [value.requires_grad_() for value in samples(name)]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad(SAMPLES[name][0](*inputs).square().sum(), inputs[0], create_graph=True)


@pytest.mark.parametrize("name", SAMPLES)
def test_gradients_add_up_over_two_backward_passes(name):
    inputs = [value.requires_grad_() for value in samples(name)]
    loss = lambda: (SAMPLES[name][0](*inputs) * torch.linspace(1, 2, 3, device=runtime.DEVICE)).sum()
    loss().backward()
    once = [value.grad.clone() for value in inputs]
    kept = loss()
    kept.backward(retain_graph=True)  # the same graph twice: nothing that it keeps is used up
    kept.backward()
    for value, first in zip(inputs, once):
        assert first.abs().max() > 0
        torch.testing.assert_close(value.grad, 3 * first)


def test_gradients_share_no_memory(dtype):
    # Whoever scales one in place, as clipping does, would scale the other with it.
    inputs = operands(dtype)
    found = differentiate(kernels.patch_embed, inputs, [tensor((2, 7, 10), dtype, seed=9)], EVERYTHING)
    assert len({value.untyped_storage().data_ptr() for value in found}) == 5


@pytest.mark.parametrize(
    "needed, expected",
    [
        ("input", (1, 1, 0, 0)), ("weight", (1, 0, 1, 0)), ("bias", (1, 0, 0, 2)), ("class_token", (1, 0, 0, 1)),
        ("position_embedding", (1, 0, 0, 1)), ("", (1, 0, 0, 0)),
    ],
)  # fmt: skip
def test_nothing_is_computed_for_what_is_frozen(needed, expected):
    inputs = operands(torch.float32)
    if needed:
        inputs[needed] = inputs[needed].clone().requires_grad_()
    saved = []
    with counted(PATCH_EMBED, *STEPS) as calls:
        with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value.data_ptr()) or value, lambda value: value):
            result = kernels.patch_embed(**inputs)
        if needed:
            result.sum().backward()
    assert tuple(calls[name].call_count for name in STEPS) == expected
    assert all((value.grad is not None) == (name == needed) for name, value in inputs.items())
    # Memory decides what batch a training run can have: the images, for the weight, and no copy of them.
    assert saved == [inputs[name].data_ptr() for name in {"input": ["weight"], "weight": ["input"]}.get(needed, [])]


def test_the_result_is_the_one_without_gradients(dtype):
    inputs = operands(dtype)
    plain = kernels.patch_embed(**inputs)
    result = kernels.patch_embed(**inputs | {"weight": inputs["weight"].clone().requires_grad_()})
    assert result.requires_grad and torch.equal(result, plain)
    result.add_(1).sum().backward()  # a result may be changed in place


# ---- autocast ----


@pytest.mark.parametrize("single", EMBEDDINGS, ids="+".join)
def test_autocast_with_float32_embeddings(single):
    """The sum with a class token or positions in float32 is in float32, as PyTorch's is, and so are their gradients."""
    for half in runtime.DTYPES[1:]:
        inputs = {name: value.to(half) if name not in single else value for name, value in operands(torch.float32).items()}
        inputs |= {name: inputs[name].float() for name in ("input", "weight", "bias")}  # as a model's are
        grad = tensor((2, 7, 10), torch.float32, seed=9)
        results = []
        for function in (kernels.patch_embed, theirs):
            leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
            with torch.autocast(runtime.DEVICE.type, half):
                result = function(**leaves)
            results.append([result.detach(), *torch.autograd.grad(result, list(leaves.values()), grad.to(result.dtype))])
        for found, expected in zip(*results):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
        assert results[0][0].dtype == (torch.float32 if single else half)
        for name, gradient in zip(EVERYTHING, results[0][1:]):
            if name in single:  # no rounding to half precision on the way
                reference = grad.double().sum(0) if name == "position_embedding" else grad[:, 0].double().sum(0)
                torch.testing.assert_close(gradient.double(), reference.view(gradient.shape), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not runtime.INTERPRETER, reason="a GPU's kernels take bfloat16")
def test_autocast_to_a_type_that_the_interpreter_has_not_is_refused():
    with torch.autocast("cpu"):  # to bfloat16
        with pytest.raises(TypeError, match=r"patch_embed: input has type bfloat16.*interpreter"):
            kernels.patch_embed(**operands(torch.float32))


# ---- past 2^31 elements, and a real size ----


@on_gpu
@pytest.mark.memory(10)
def test_past_two_to_the_31_elements():
    # Images of one 64 x 64 patch, of ones, and more of them than fit 2^31 elements; sums that float32 holds exactly.
    batch = 2**31 // 4096 + 1000
    x = torch.ones((batch, 1, 64, 64), dtype=torch.float16, device=runtime.DEVICE)
    weight = torch.ones((16, 1, 64, 64), dtype=torch.float16, device=runtime.DEVICE)
    grad = torch.zeros((batch, 2, 16), dtype=torch.float16, device=runtime.DEVICE)
    grad[-1000:] = 1.0
    inputs = {"input": x, "weight": weight, "class_token": weight[:, 0, 0, 0]}
    of_x, of_weight, of_class = differentiate(kernels.patch_embed, inputs, [grad], list(inputs))
    assert bool((of_x[-1000:] == 16).all()) and not of_x[:-1000].any()
    assert bool((of_weight == 1000).all()) and bool((of_class == 1000).all())


@on_gpu
@pytest.mark.memory(10)
def test_channels_and_rows_past_two_to_the_31_elements_apart():
    far = 2**30 + 8
    for strides in ((16, far, 4, 1), (16, 4, far, 1)):  # channel 2, or row 2, begins past it
        memory = torch.full((2 * far + 64,), float("nan"), dtype=torch.float16, device=runtime.DEVICE)
        x = memory.as_strided((2, 3, 3, 4), strides)
        x.copy_(tensor((2, 3, 3, 4), torch.float16))
        inputs = {"input": x, "weight": tensor((5, 3, 3, 2), torch.float16, seed=1)}
        near = inputs | {"input": x.clone()}
        assert torch.equal(kernels.patch_embed(**inputs), kernels.patch_embed(**near))
        check(inputs)


@on_gpu
@pytest.mark.parametrize("batch", [1, 8])
def test_vit_base_shapes(dtype, batch):
    check(operands(dtype, batch, 3, (16, 16), (14, 14), (0, 0), 768))


def test_a_gradient_that_is_no_number_stays_where_it_is(dtype):
    inputs = operands(dtype)
    where = lambda values: values.isnan().nonzero().tolist()
    grad = tensor((2, 7, 10), dtype, seed=9)
    grad[1, 3, 7] = float("nan")  # the third patch of the second image
    with blocks(3):
        found = dict(zip(EVERYTHING, differentiate(kernels.patch_embed, inputs, [grad], EVERYTHING)))
    pixels = torch.zeros(inputs["input"].shape, dtype=torch.bool)
    pixels[1, :, 4:8, 0:3] = True
    assert torch.equal(found["input"].isnan().cpu(), pixels)
    assert found["weight"][7].isnan().all() and not found["weight"][:7].isnan().any() and not found["weight"][8:].isnan().any()
    assert where(found["bias"]) == [[7]] and where(found["position_embedding"]) == [[0, 3, 7]]
    assert not found["class_token"].isnan().any()
    grad[1, 3, 7], grad[0, 0, 2] = 1.0, float("nan")  # a class token
    with blocks(3):
        found = dict(zip(EVERYTHING, differentiate(kernels.patch_embed, inputs, [grad], EVERYTHING)))
    assert not any(found[name].isnan().any() for name in ("input", "weight", "bias"))
    assert where(found["class_token"]) == [[0, 0, 2]] and where(found["position_embedding"]) == [[0, 0, 2]]
