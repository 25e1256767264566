"""Our ViT beside Hugging Face's on the same weights: every layer of random small models, and ViT-B/16 at full size.

Every parameter is drawn anew (`verify.randomise` says why).
"""

import copy
import dataclasses
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers

from vitcourse import peers, runtime, verify
from vitcourse.vit import ViT, ViTConfig

#: Of the largest magnitude of Hugging Face's result.
TOLERANCE = 1e-4


def hugging_face(
    seed: int, *, family: str = "ViT", classifier: bool = True, teacher: bool = False, pooler: bool = False, **config: object
) -> torch.nn.Module:
    """A randomised model of Hugging Face's. Without `classifier` it is the bare encoder, with a pooler or not.

    family: "ViT" or "DeiT"; a DeiT with `teacher` has two classifiers.
    """
    built = getattr(transformers, f"{family}Config")(**config)
    if classifier:
        kind = f"{family}ForImageClassification" + "WithTeacher" * teacher
        return verify.randomise(getattr(transformers, kind)(built), seed)
    return verify.randomise(getattr(transformers, f"{family}Model")(built, add_pooling_layer=pooler), seed)


def pixels(config: ViTConfig, batch: int = 2, seed: int = 0) -> torch.Tensor:
    shape = (batch, config.num_channels, *config.image_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(runtime.DEVICE)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference relative to the largest magnitude of theirs."""
    assert ours.shape == theirs.shape
    return ((ours.double().cpu() - theirs.double()).abs().max() / theirs.abs().max()).item()


def small(**changes: object) -> dict:
    """A small configuration. Hidden 48 is what heads 1 to 4 and 6 divide."""
    return {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 32,
        "patch_size": 8, "num_labels": 25, **changes,
    }  # fmt: skip


EXTREMES = {
    "one head, patch 5": small(num_attention_heads=1, image_size=30, patch_size=5),
    "six heads, patch 14": small(num_attention_heads=6, image_size=56, patch_size=14),
    "five heads of 7": small(hidden_size=35, num_attention_heads=5, intermediate_size=101, image_size=30, patch_size=6),
    "heads of one number": small(hidden_size=4, num_attention_heads=4, intermediate_size=3),
    "pixels left over": small(image_size=37, patch_size=14, num_channels=2),
    "wide image": small(image_size=(24, 40), num_channels=1),
    "tall patches": small(image_size=(30, 20), patch_size=(10, 4)),
    "one patch": small(image_size=14, patch_size=14),
    "one label": small(num_labels=1),
    "no layers": small(num_hidden_layers=0),
    "no bias": small(qkv_bias=False, classifier=False),
    "pooler": small(classifier=False, pooler=True, image_size=30, patch_size=5),
    "narrow pooler": small(classifier=False, pooler=True, pooler_output_size=11, hidden_act="relu"),
    "gelu_new": small(hidden_act="gelu_new", qkv_bias=False, layer_norm_eps=1e-3),
    "deit": small(family="DeiT", image_size=(24, 40), num_channels=1),
    "deit, two classifiers": small(family="DeiT", teacher=True, image_size=30, patch_size=7, qkv_bias=False),
    "deit, pooler": small(family="DeiT", classifier=False, pooler=True, pooler_output_size=11, patch_size=(8, 4)),
    "deit, no layers": small(family="DeiT", classifier=False, num_hidden_layers=0, image_size=8),
}


def drawn(seed: int) -> dict:
    """A random configuration."""
    draw = random.Random(seed)
    heads = draw.randint(1, 6)
    patch = draw.choice((3, 5, 7, 8, 14))
    classifier = draw.random() < 0.5
    return {
        "hidden_size": heads * draw.randint(3, 24),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "intermediate_size": draw.randint(5, 150),
        "image_size": patch * draw.randint(1, 5) + draw.choice((0, 0, 1, 2)),
        "patch_size": patch,
        "num_channels": draw.randint(1, 3),
        "num_labels": draw.randint(20, 40),
        "qkv_bias": draw.random() < 0.6,
        "hidden_act": draw.choice(("gelu", "gelu", "gelu_new", "relu")),
        "layer_norm_eps": draw.choice((1e-12, 1e-6)),
        "classifier": classifier,
        "pooler": not classifier and draw.random() < 0.5,
    }


CONFIGURATIONS = EXTREMES | {f"drawn {seed}": drawn(seed) for seed in range(8)}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_small_models_agree(tmp_path: Path, name: str) -> None:
    theirs = hugging_face(len(name), **CONFIGURATIONS[name])
    theirs.save_pretrained(tmp_path)
    ours = ViT.from_pretrained(tmp_path)
    pixel_values = pixels(ours.config)
    with torch.inference_mode():
        out, features = ours(pixel_values), ours.forward_features(pixel_values)
        expected = theirs(pixel_values.cpu(), output_hidden_states=True)
        if ours.classifier is not None:
            assert difference(out, expected.logits) <= TOLERANCE
        else:
            assert difference(out, expected.last_hidden_state) <= TOLERANCE
            assert torch.equal(out, features)
        if ours.pooler is not None:
            assert difference(ours.pool(features), expected.pooler_output) <= TOLERANCE
        else:
            assert getattr(expected, "pooler_output", None) is None
    assert (ours.classifier is not None, ours.pooler is not None) == (
        CONFIGURATIONS[name].get("classifier", True), CONFIGURATIONS[name].get("pooler", False)
    )  # fmt: skip

    rows = verify.compare(tmp_path, pixel_values)
    layers = [f"block {index}" for index in range(ours.config.num_hidden_layers)]
    expected_rows = ["embeddings", *layers, "norm"] + ["logits"] * (ours.classifier is not None)
    assert [row.name for row in rows] == expected_rows
    # Twice the peer's error is a rule for many numbers; over the two logits of two images it is a matter of luck.
    rows = [row for row in rows if row.shape != (2, 1)]
    assert verify.first_divergence(rows) is None, verify.format_table(rows)


@pytest.mark.parametrize(
    "name", ["six heads, patch 14", "five heads of 7", "gelu_new", "pooler", "drawn 3", "deit, two classifiers"]
)
def test_small_models_agree_in_every_type(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    hugging_face(5, **CONFIGURATIONS[name]).save_pretrained(tmp_path)
    rows = verify.compare(tmp_path, dtype=dtype)
    assert verify.first_divergence(rows) is None, verify.format_table(rows)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A folder for a third of a gigabyte, emptied afterwards: pytest itself keeps its last three."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def check_large(theirs: torch.nn.Module, config: ViTConfig, folder: Path) -> None:
    """Ours of the same weights agrees with `theirs`, on a GPU in every type."""
    theirs.save_pretrained(folder)
    ours = ViT.from_pretrained(folder)
    assert ours.config == config
    pixel_values = pixels(ours.config, batch=1)
    with torch.inference_mode():
        assert difference(ours(pixel_values), theirs(pixel_values.cpu()).logits) <= TOLERANCE
    if not runtime.INTERPRETER:
        for dtype in runtime.DTYPES:
            rows = verify.compare(folder, dtype=dtype)
            assert verify.first_divergence(rows) is None, verify.format_table(rows)


def test_vit_base_agrees(large: Path) -> None:
    config = ViTConfig(id2label={index: f"LABEL_{index}" for index in range(1000)})
    check_large(hugging_face(0, num_labels=1000), config, large)


@pytest.mark.parametrize("model", ["ViT-L/16", "ViT-H/14"])
def test_the_sizes_of_larger_models_agree(large: Path, model: str) -> None:
    """Two of their blocks: `bench` holds all of them against float64. ViT-H/14 has heads of 80 and 257 tokens."""
    config = dataclasses.replace(peers.MODELS[model], num_hidden_layers=2)
    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    check_large(hugging_face(0, **values), config, large)


# What is asked for beside the result


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classifier": False, "pooler": True, "num_attention_heads": 1, "image_size": (24, 40)},
        {"family": "DeiT", "teacher": True},
    ],
)
@torch.inference_mode()
def test_hidden_states_and_attentions_of_every_layer(tmp_path: Path, changes: dict) -> None:
    theirs = hugging_face(21, **small(attn_implementation="eager", **changes))
    theirs.save_pretrained(tmp_path)
    ours = ViT.from_pretrained(tmp_path)
    pixel_values = pixels(ours.config)
    plain = ours(pixel_values)
    out = ours(pixel_values, output_hidden_states=True, output_attentions=True)
    expected = theirs(pixel_values.cpu(), output_hidden_states=True, output_attentions=True)
    layers = ours.config.num_hidden_layers
    assert len(out.hidden_states) == len(expected.hidden_states) == layers + 1
    assert len(out.attentions) == len(expected.attentions) == layers
    for kept, theirs_kept in zip(out.hidden_states + out.attentions, expected.hidden_states + expected.attentions):
        assert difference(kept, theirs_kept) <= TOLERANCE
    assert torch.equal(out.last_hidden_state, ours.norm(out.hidden_states[-1]))
    result = out.last_hidden_state if out.logits is None else out.logits
    if runtime.INTERPRETER:
        assert torch.equal(result, plain), "asking changes no result"
    else:  # for logits alone the last block has fewer rows, and other blocks and orders of summing with them
        assert difference(result, plain.cpu()) <= TOLERANCE
    assert (out.logits is None) == (ours.classifier is None)


@torch.inference_mode()
def test_only_what_is_asked_for_is_kept(model: ViT) -> None:
    pixel_values = pixels(model.config)
    assert isinstance(model(pixel_values), torch.Tensor)
    states = model(pixel_values, output_hidden_states=True)
    assert states.attentions is None and len(states.hidden_states) == 4
    maps = model(pixel_values[:0], output_attentions=True)
    assert maps.hidden_states is None and [tuple(kept.shape) for kept in maps.attentions] == 3 * [(0, 3, 17, 17)]


@torch.inference_mode()
def test_attentions_in_another_type(model: ViT, dtype: torch.dtype) -> None:
    pixel_values = pixels(model.config)
    kept = copy.deepcopy(model).to(dtype)(pixel_values.to(dtype), output_attentions=True).attentions
    assert {attention.dtype for attention in kept} == {dtype}
    for attention, wide in zip(kept, model(pixel_values, output_attentions=True).attentions):
        assert difference(attention, wide.cpu()) < 20 * torch.finfo(dtype).eps


def interpolated(theirs: torch.nn.Module, size: tuple[int, int], folder: Path) -> tuple[ViT, torch.Tensor, torch.Tensor]:
    """Our model of theirs, and what both make of an image of another size."""
    theirs.save_pretrained(folder)
    ours = ViT.from_pretrained(folder)
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(pixel_values, interpolate_pos_encoding=True)
        return ours, ours(pixel_values.to(runtime.DEVICE), interpolate_pos_encoding=True), expected


SIZES = {
    "up": (48, 48), "down": (16, 16), "wide": (24, 40), "tall": (40, 24), "as many patches": (16, 64), "its own": (32, 32),
    "pixels left over": (45, 31), "few pixels left over": (33, 33), "one patch": (8, 15),
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_positions_are_interpolated_as_hugging_faces(tmp_path: Path, size: tuple[int, int]) -> None:
    _, out, expected = interpolated(hugging_face(22, **small(classifier=False)), size, tmp_path)
    assert difference(out, expected.last_hidden_state) <= TOLERANCE


@pytest.mark.parametrize("size", [(40, 24), (32, 32), (16, 64)])
def test_a_deits_positions_are_interpolated_as_hugging_faces(tmp_path: Path, size: tuple[int, int]) -> None:
    _, out, expected = interpolated(hugging_face(24, **small(family="DeiT", teacher=True)), size, tmp_path)
    assert difference(out, expected.logits) <= TOLERANCE


@pytest.mark.parametrize(
    ("image_size", "patch_size", "size"), [((16, 64), 8, (24, 40)), ((16, 64), 8, (32, 32)), ((20, 20), (10, 4), (20, 20))]
)
def test_grids_that_are_not_square_are_interpolated_as_hugging_faces(
    tmp_path: Path, image_size: tuple, patch_size: int | tuple, size: tuple
) -> None:
    theirs = hugging_face(23, **small(image_size=image_size, patch_size=patch_size))
    _, out, expected = interpolated(theirs, size, tmp_path)
    assert difference(out, expected.logits) <= TOLERANCE


@pytest.mark.parametrize(
    ("image_size", "patch_size", "size", "told"),
    [
        (32, 8, (7, 32), "an image of 7 x 32 pixels holds no patch"),
        ((24, 40), 8, (24, 40), "15 patches"),
        (32, (8, 8), (40, 40), r"patch_size \(8, 8\)"),
    ],
)
def test_what_hugging_face_does_not_interpolate_is_refused(image_size, patch_size, size, told) -> None:
    theirs = hugging_face(0, **small(image_size=image_size, patch_size=patch_size))
    ours = ViT(ViTConfig.from_dict(theirs.config.to_dict()))
    with pytest.raises((RuntimeError, TypeError)):
        theirs(torch.zeros(1, 3, *size), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=told):
        ours(torch.zeros(1, 3, *size), interpolate_pos_encoding=True)


def test_interpolation_takes_any_size_but_not_any_shape(model: ViT) -> None:
    for shape in ((3, 32, 32), (1, 1, 40, 40), (1, 40, 40, 3)):
        with pytest.raises(ValueError) as caught:
            model(torch.zeros(shape), interpolate_pos_encoding=True)
        assert str(shape) in str(caught.value) and "(batch, 3, height, width)" in str(caught.value)


@torch.inference_mode()
def test_interpolation_in_another_type(model: ViT, dtype: torch.dtype) -> None:
    pixel_values = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(2)).to(runtime.DEVICE)
    out = copy.deepcopy(model).to(dtype)(pixel_values.to(dtype), interpolate_pos_encoding=True)
    assert out.dtype == dtype
    assert difference(out, model(pixel_values, interpolate_pos_encoding=True).cpu()) < 20 * torch.finfo(dtype).eps


def test_positions_learn_through_the_interpolation(pair: tuple[ViT, torch.nn.Module]) -> None:
    ours, theirs = pair[0], copy.deepcopy(pair[1]).cpu().double().vit.embeddings
    weights = torch.linspace(1, 2, 16 * 48).view(1, 16, 48)
    table = ours.interpolate_positions(24, 40)
    (gradient,) = torch.autograd.grad((table * weights.to(table.device)).sum(), ours.position_embedding)
    wide = theirs.interpolate_pos_encoding(weights, 24, 40)
    (expected,) = torch.autograd.grad((wide * weights).sum(), theirs.position_embeddings)
    assert difference(table.detach(), wide) < TOLERANCE and difference(gradient, expected) < TOLERANCE


# Planted faults


def swap_query_and_key(model: ViT) -> None:
    qkv = model.blocks[1].attention.qkv
    for tensor in (qkv.weight, qkv.bias):
        query, key, value = tensor.chunk(3)
        tensor.copy_(torch.cat([key, query, value]))


def change(path: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[ViT], None]:
    """A fault: the parameter at `path` is what `how` makes of it."""

    def plant(model: ViT) -> None:
        parameter = model.get_parameter(path)
        parameter.copy_(how(parameter.clone()))

    return plant


def first_by_a_hundredth(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] *= 1.01
    return tensor


FAULTS = {
    "query and key swapped": (swap_query_and_key, "block 1"),
    "output projection transposed": (change("blocks.0.attention.output.weight", lambda weight: weight.T), "block 0"),
    "square fc1 transposed": (change("blocks.2.mlp.fc1.weight", lambda weight: weight.T), "block 2"),
    "one element of norm1": (change("blocks.1.norm1.weight", first_by_a_hundredth), "block 1"),
    "one element of norm2": (change("blocks.2.norm2.weight", first_by_a_hundredth), "block 2"),
    "one element of the last norm": (change("norm.weight", first_by_a_hundredth), "norm"),
    "no bias in fc2": (change("blocks.0.mlp.fc2.bias", torch.zeros_like), "block 0"),
    "no value bias": (change("blocks.2.attention.qkv.bias", lambda bias: bias * (torch.arange(144) < 96).to(bias)), "block 2"),
    "no bias in the patch embedding": (change("patch_embedding.bias", torch.zeros_like), "embeddings"),
    "class token": (change("class_token", first_by_a_hundredth), "embeddings"),
    "positions shifted by one": (change("position_embedding", lambda table: table.roll(1, 1)), "embeddings"),
    "channels reversed": (change("patch_embedding.weight", lambda weight: weight.flip(1)), "embeddings"),
    "not a number": (change("blocks.1.mlp.fc1.bias", lambda bias: bias * float("nan")), "block 1"),
    "classifier's bias": (change("classifier.bias", first_by_a_hundredth), "logits"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ViT, torch.nn.Module]:
    """Our model and theirs, of one checkpoint whose linears in block 2 are square."""
    folder = tmp_path_factory.mktemp("pair")
    hugging_face(9, **small(num_hidden_layers=3, intermediate_size=48)).save_pretrained(folder)
    return ViT.from_pretrained(folder), verify.load_hugging_face(folder, "ViTForImageClassification")


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_verify_names_the_layer_of_a_fault(pair: tuple[ViT, torch.nn.Module], fault: str | None) -> None:
    ours, theirs = copy.deepcopy(pair)
    plant, layer = FAULTS.get(fault, (lambda model: None, None))
    with torch.no_grad():
        plant(ours)
    rows = verify.compare_models(ours, theirs, pixels(ours.config))
    found = verify.first_divergence(rows)
    assert (found.name if found else None) == layer, verify.format_table(rows)
    closing = verify.format_table(rows).splitlines()[-1]
    assert (f"First to diverge: {layer}." in closing) if layer else closing == f"All {len(rows)} layers agree with Hugging Face."


def test_verify_is_of_the_layers_order_not_of_the_worst_error(pair: tuple[ViT, torch.nn.Module]) -> None:
    ours, theirs = copy.deepcopy(pair)
    with torch.no_grad():
        ours.classifier.weight.mul_(-1)
        first_by_a_hundredth(ours.blocks[0].norm1.weight)
    assert verify.first_divergence(verify.compare_models(ours, theirs, pixels(ours.config))).name == "block 0"


# The same for DeiT, whose embedding and logits are other code.
DEIT_FAULTS = {
    "distillation token": (change("distillation_token", first_by_a_hundredth), "embeddings"),
    "class token": (change("class_token", first_by_a_hundredth), "embeddings"),
    "first two positions swapped": (change("position_embedding", lambda t: t[:, [1, 0, *range(2, t.shape[1])]]), "embeddings"),
    "patches' positions shifted": (change("position_embedding", lambda t: t.roll(1, 1)), "embeddings"),
    "class token's classifier": (change("classifier.bias", first_by_a_hundredth), "logits"),
    "distillation token's classifier": (change("distillation_classifier.bias", first_by_a_hundredth), "logits"),
}


@pytest.fixture(scope="module")
def deit_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ViT, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("deit")
    hugging_face(10, **small(family="DeiT", teacher=True)).save_pretrained(folder)
    return ViT.from_pretrained(folder), verify.load_hugging_face(folder, "DeiTForImageClassificationWithTeacher")


@pytest.mark.parametrize("fault", [None, *DEIT_FAULTS])
def test_verify_names_the_layer_of_a_fault_in_deit(deit_pair: tuple[ViT, torch.nn.Module], fault: str | None) -> None:
    ours, theirs = copy.deepcopy(deit_pair)
    plant, layer = DEIT_FAULTS.get(fault, (lambda model: None, None))
    with torch.no_grad():
        plant(ours)
    rows = verify.compare_models(ours, theirs, pixels(ours.config))
    found = verify.first_divergence(rows)
    assert (found.name if found else None) == layer, verify.format_table(rows)


# The model itself


@pytest.fixture(scope="module")
def model(pair: tuple[ViT, torch.nn.Module]) -> ViT:
    return pair[0]


@pytest.mark.parametrize("which", ["pair", "deit_pair"])
def test_every_gradient_is_hugging_faces(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    ours, theirs = copy.deepcopy(request.getfixturevalue(which))
    theirs = theirs.cpu().double()
    x = pixels(ours.config).requires_grad_()
    wide = x.detach().cpu().double().requires_grad_()
    weights = torch.linspace(1, 2, 25)
    (ours(x) * weights.to(x.device)).sum().backward()
    (theirs(wide).logits * weights).sum().backward()
    assert difference(x.grad, wide.grad) < TOLERANCE
    with torch.no_grad():  # a checkpoint of gradients, so that each finds the parameter that it belongs to
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.float().save_pretrained(tmp_path)
    expected = dict(ViT.from_pretrained(tmp_path).named_parameters())
    for name, parameter in ours.named_parameters():
        assert difference(parameter.grad, expected[name].cpu()) < TOLERANCE, name


def test_with_and_without_gradients_the_result_is_the_same(model: ViT) -> None:
    """To the bit in the interpreter. On a GPU a layer norm that keeps no statistics never needs the mean by itself, so the
    compiler fuses the division that makes it with its subtraction: one rounding less, by which the results may differ.
    """
    pixel_values = pixels(model.config)
    with torch.no_grad():
        plain = model(pixel_values)
    with torch.inference_mode():
        assert torch.equal(model(pixel_values), plain)
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert torch.equal(frozen(pixel_values), plain) and not plain.requires_grad
    with_gradients = model(pixel_values)
    assert with_gradients.requires_grad
    assert difference(with_gradients, plain.cpu()) <= (0.0 if runtime.INTERPRETER else verify.FLOOR * 2**-23)


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 32, 40), (2, 3, 30, 30), (2, 32, 32, 3), (1, 2, 3, 32, 32)]
)
@torch.inference_mode()
def test_pixels_of_a_wrong_shape_are_refused(model: ViT, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        model(torch.zeros(shape, device=runtime.DEVICE))
    assert str(shape) in str(caught.value) and "(batch, 3, 32, 32)" in str(caught.value)


@torch.inference_mode()
def test_a_batch_is_its_images(model: ViT) -> None:
    pixel_values = pixels(model.config, batch=3)
    together = model(pixel_values)
    assert together.shape == (3, model.config.num_labels)
    assert difference(torch.cat([model(image[None]) for image in pixel_values]), together.cpu()) < 1e-5
    assert model(pixel_values[:0]).shape == (0, model.config.num_labels)
    last = pixel_values.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not last.is_contiguous() and difference(model(last), together.cpu()) < 1e-5


@torch.inference_mode()
def test_the_model_in_another_type(model: ViT, dtype: torch.dtype) -> None:
    converted = copy.deepcopy(model).to(dtype)
    assert {parameter.dtype for parameter in converted.parameters()} == {dtype}
    pixel_values = pixels(model.config)
    out = converted(pixel_values.to(dtype))
    assert out.dtype == dtype
    assert difference(out, model(pixel_values).cpu()) < 20 * torch.finfo(dtype).eps
    if dtype != torch.float32:
        with pytest.raises(TypeError, match="one type for all"):
            converted(pixel_values)
    with pytest.raises(TypeError, match="float64"):
        converted.double()(pixel_values.double())


@torch.inference_mode()
def test_a_state_dict_round_trip(model: ViT, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = ViT(model.config).to(runtime.DEVICE).eval()
    pixel_values = pixels(model.config)
    assert difference(other(pixel_values), model(pixel_values).cpu()) > 0.01, "other weights, so that loading shows"
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(pixel_values), model(pixel_values))


def test_logits_alone_need_little_of_the_last_block(model: ViT, deit_pair: tuple[ViT, torch.nn.Module]) -> None:
    """And come out as they do where every token is computed, gradients too."""
    for vit in (model, deit_pair[0]):
        shapes: list[torch.Size] = []
        hook = vit.blocks[-1].register_forward_hook(lambda _module, _inputs, output, kept=shapes: kept.append(output.shape))
        pixel_values = pixels(vit.config).requires_grad_()
        logits = vit(pixel_values)
        whole = vit(pixel_values, output_hidden_states=True)
        hook.remove()
        assert [shape[1] for shape in shapes] == [vit.config.prefix_tokens, vit.config.tokens]
        assert difference(logits, whole.logits.cpu()) < 1e-5
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(runtime.DEVICE)
        ours, theirs = (torch.autograd.grad((y * weights).sum(), pixel_values)[0] for y in (logits, whole.logits))
        assert difference(ours, theirs.cpu()) < 1e-5


def test_what_is_not_there_yet_is_refused(model: ViT) -> None:
    with pytest.raises(ValueError, match="no pooler"):
        model.pool(torch.zeros(1, 17, 48))
    training = ViT(ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, hidden_dropout_prob=0.1)).train()
    with pytest.raises(NotImplementedError, match="dropout"):
        training(torch.zeros(1, 3, 224, 224))


def test_a_second_classifier_needs_a_deit_and_a_first_one() -> None:
    for model_type, classifier in (("vit", True), ("deit", False)):
        with pytest.raises(ValueError, match="distillation_classifier needs"):
            ViT(ViTConfig(8, 1, 2, 8, model_type=model_type), classifier=classifier, distillation_classifier=True)
    with pytest.raises(ValueError, match='model_type is \'swin\'; "vit" and "deit"'):
        ViTConfig(model_type="swin")


@torch.inference_mode()
def test_a_whole_model_compiles(deit_pair: tuple[ViT, torch.nn.Module]) -> None:
    torch._dynamo.reset()
    model, pixel_values = deit_pair[0], pixels(deit_pair[0].config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert difference(compiled(pixel_values), model(pixel_values).cpu()) < 1e-5
