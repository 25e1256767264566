"""Planted faults: verify's table by parts names the place of each, and names none in a model without a fault."""

import copy

import pytest
import torch
from PIL import Image
from test_parity import hugging_face, pixels, small

from vitcourse import data, verify
from vitcourse.classify import DEFAULT_MODEL
from vitcourse.images import preprocess
from vitcourse.teach import faults
from vitcourse.vit import ViT, ViTConfig
from vitcourse.weights import architecture

#: Beside the digits model: few blocks and a width that is no power of two, as many blocks as faults in them, other parts.
MODELS = {
    "four blocks": small(num_hidden_layers=4, num_attention_heads=2),
    "eight blocks": small(num_hidden_layers=8),
    "DeiT, no qkv bias": small(num_hidden_layers=2, qkv_bias=False, family="DeiT", teacher=True),
}
NUMBERS = range(1, faults.COUNT + 1)
#: What float16 is off by in any case hides these.
TINY = {6, 8}


@pytest.fixture(scope="module", params=["digits", *MODELS])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ViT, torch.nn.Module]:
    """Our model and Hugging Face's, of one checkpoint."""
    folder = DEFAULT_MODEL
    if request.param != "digits":
        folder = tmp_path_factory.mktemp("model")
        hugging_face(3, **MODELS[request.param]).save_pretrained(folder)
    ours = ViT.from_pretrained(folder)
    return ours, verify.load_hugging_face(folder, architecture(ours))


@pytest.fixture(scope="module")
def digits() -> tuple[ViT, torch.nn.Module]:
    ours = ViT.from_pretrained(DEFAULT_MODEL)
    return ours, verify.load_hugging_face(DEFAULT_MODEL, architecture(ours))


def parts(model: ViT) -> list[str]:
    """The names of the rows by parts."""
    middle = [f"blocks.{index}.{part}" for index in range(len(model.blocks)) for part in verify.PARTS]
    return ["embeddings", *middle, "norm", "logits"]


def test_a_model_without_a_fault_agrees_part_by_part(pair: tuple[ViT, torch.nn.Module]) -> None:
    ours, theirs = pair
    rows = verify.compare_models(ours, theirs, pixels(ours.config), parts=True)
    assert [row.name for row in rows] == parts(ours)
    assert verify.first_divergence(rows) is None, verify.format_table(rows)
    assert not any(module._forward_hooks or module._forward_pre_hooks for model in pair for module in model.modules())


def test_parts_are_where_they_are_called() -> None:
    """A row's name is that of our module whose output it is, but for what goes into the output projection."""
    block = ViT.from_pretrained(DEFAULT_MODEL).blocks[0]
    assert {part for part, (place, _) in verify.PARTS.items() if place != part} == {"attention.attended"}
    assert all(block.get_submodule(part) for part in verify.PARTS if part != "attention.attended")


def test_the_table_by_parts_ends_where_the_one_by_blocks_does(digits: tuple[ViT, torch.nn.Module]) -> None:
    ours, theirs = digits
    blocks, parts = (
        {row.name: row for row in verify.compare_models(ours, theirs, pixels(ours.config), parts)} for parts in (False, True)
    )
    for name, other in {"block 0": "blocks.0.mlp", "block 1": "blocks.1.mlp", "logits": "logits"}.items():
        assert (blocks[name].error, blocks[name].max_error) == (parts[other].error, parts[other].max_error)
    widths = {line.find("2x17x") for line in verify.format_table(list(parts.values())).splitlines() if "2x17x" in line}
    assert len(widths) == 1


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_row_that_is_off_is_the_faults_place(pair: tuple[ViT, torch.nn.Module], number: int) -> None:
    ours, theirs = pair
    planted, pixel_values = faults.plant(number, ours), pixels(ours.config)
    rows = verify.compare_models(planted, theirs, pixel_values, parts=True)
    found = verify.first_divergence(rows)
    assert found is not None and found.name == faults.place(number, ours), verify.format_table(rows)
    with torch.inference_mode():
        logits = planted(pixel_values)
    assert logits.shape == (2, ours.config.num_labels) and logits.isfinite().all()


@pytest.mark.parametrize("number", NUMBERS)
def test_the_original_is_untouched_and_the_copy_can_be_copied(digits: tuple[ViT, torch.nn.Module], number: int) -> None:
    ours, pixel_values = digits[0], pixels(digits[0].config)
    before, out = copy.deepcopy(ours.state_dict()), ours(pixel_values)
    planted = faults.plant(number, ours)
    assert not torch.equal(planted(pixel_values), out) and torch.equal(ours(pixel_values), out)
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in before.items())
    assert not {tensor.data_ptr() for tensor in planted.parameters()} & {tensor.data_ptr() for tensor in ours.parameters()}
    # A copy has the fault, too, and its own weights: a method that is replaced must not compute with those it came from.
    other = copy.deepcopy(planted)
    assert torch.equal(other(pixel_values), planted(pixel_values))
    with torch.no_grad():
        for parameter in planted.parameters():
            parameter.zero_()
    assert not torch.equal(other(pixel_values), planted(pixel_values))
    assert repr(planted) == repr(ours), "printing the model does not give it away"


@pytest.mark.parametrize("number", NUMBERS)
def test_half_precision_hides_the_tiny_ones(digits: tuple[ViT, torch.nn.Module], number: int) -> None:
    ours, theirs = copy.deepcopy(digits)
    pixel_values = pixels(ours.config).half()
    rows = verify.compare_models(faults.plant(number, ours).half(), theirs, pixel_values, parts=True)
    assert (verify.first_divergence(rows) is None) == (number in TINY), verify.format_table(rows)


def test_accuracy_hides_faults(digits: tuple[ViT, torch.nn.Module]) -> None:
    ours = digits[0]
    _, _, images, labels = data.load_digits_split()
    pixel_values = preprocess([Image.fromarray(image) for image in images[:32]], DEFAULT_MODEL)
    pixel_values = pixel_values.to(next(ours.parameters()).device)
    with torch.inference_mode():
        right = [
            int((model(pixel_values).argmax(-1).cpu() == torch.tensor(labels[:32])).sum())
            for model in (ours, *(faults.plant(number, ours) for number in NUMBERS))
        ]
    assert right[0] >= 30
    hidden = [number for number in NUMBERS if abs(right[number] - right[0]) <= 0.02 * 32]
    assert hidden == [3, 4, 6, 7, 8], right
    assert all(right[number] <= 16 for number in NUMBERS if number not in hidden), right


def test_places_differ(pair: tuple[ViT, torch.nn.Module]) -> None:
    ours = pair[0]
    places = [faults.place(number, ours) for number in NUMBERS]
    assert len(set(places)) == faults.COUNT == 8 and set(places) <= set(parts(ours))
    blocks = {place.split(".")[1] for place in places if place != "embeddings"}
    assert len(blocks) == min(len(ours.blocks), 7)


def test_a_fault_is_told_in_a_sentence() -> None:
    sentences = {faults.describe(number) for number in NUMBERS}
    assert len(sentences) == faults.COUNT
    assert all(sentence.endswith(".") and sentence.count(". ") == 0 for sentence in sentences)


@pytest.mark.parametrize(
    "config", [{"num_hidden_layers": 1}, {"num_attention_heads": 1}, {"hidden_act": "gelu_new"}, {"hidden_act": "relu"}]
)
def test_a_model_in_which_a_fault_would_be_none_is_refused(config: dict) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 8, "image_size": 16}
    with pytest.raises(ValueError, match=r"two blocks, two heads and GELU"):
        faults.plant(3, ViT(ViTConfig(**{**sizes, **config})))


@pytest.mark.parametrize("number", [0, 9, -1, None])
def test_a_number_that_no_fault_has_is_refused(digits: tuple[ViT, torch.nn.Module], number: object) -> None:
    for function, arguments in ((faults.plant, digits[:1]), (faults.describe, ()), (faults.place, digits[:1])):
        with pytest.raises(ValueError, match="1 to 8"):
            function(number, *arguments)
