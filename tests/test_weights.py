"""Checkpoints in and out: both generations of names, shards, Hugging Face's own reading of ours, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_parity import hugging_face, pixels, small
from torch import nn

from vitcourse import runtime, weights
from vitcourse.vit import ViT, ViTConfig
from vitcourse.weights import CheckpointError

# Each is what hugging_face() takes, and the class of Hugging Face's that reads the model back.
KINDS = {
    "classifier": (small(), transformers.ViTForImageClassification),
    "no QKV bias": (small(qkv_bias=False, image_size=(24, 40), num_channels=1), transformers.ViTForImageClassification),
    "pooler": (small(classifier=False, pooler=True, pooler_output_size=11), transformers.ViTModel),
    "encoder": (small(classifier=False, hidden_act="relu", layer_norm_eps=1e-6), transformers.ViTModel),
    "DeiT": (small(family="DeiT", qkv_bias=False), transformers.DeiTForImageClassification),
    "DeiT, two classifiers": (small(family="DeiT", teacher=True), transformers.DeiTForImageClassificationWithTeacher),
    "DeiT, pooler": (small(family="DeiT", classifier=False, pooler=True), transformers.DeiTModel),
    "DeiT, encoder": (small(family="DeiT", classifier=False), transformers.DeiTModel),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a classifier, written by Hugging Face."""
    hugging_face(3, **small()).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Whether both have the same tensors, bit for bit, under the same names."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]) -> None:
    """Rewrite the checkpoint's weights with what `change` returns, or does in place."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, file, metadata={"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    """Rewrite fields of the checkpoint's config.json; None takes one out."""
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


# In and out


def test_ours_to_hugging_face(kind: str, tmp_path: Path) -> None:
    """Loaded from theirs and saved by us, Hugging Face reads its own model back: the same tensors, the same result."""
    options, reader = KINDS[kind]
    theirs = hugging_face(3, **options)
    theirs.save_pretrained(tmp_path / "theirs")
    ViT.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    extra = {"add_pooling_layer": options.get("pooler", False)} if options.get("classifier") is False else {}
    back, report = reader.from_pretrained(tmp_path / "ours", output_loading_info=True, **extra)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert same_state(theirs, back.eval())
    with torch.inference_mode():
        pixel_values = pixels(ViTConfig.from_dict(json.loads((tmp_path / "ours" / "config.json").read_text()))).cpu()
        assert torch.equal(theirs(pixel_values)[0], back(pixel_values)[0])
    told = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")]
    shared = ViTConfig.__dataclass_fields__.keys() & told[1].keys()
    assert len(shared) > 12 and {name: told[0][name] for name in shared} == {name: told[1][name] for name in shared}
    assert back.config.id2label == theirs.config.id2label and told[0]["architectures"] == told[1]["architectures"]
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == set(load_file(tmp_path / "theirs" / "model.safetensors"))


def test_our_own_round_trip_is_exact(kind: str, tmp_path: Path) -> None:
    hugging_face(4, **KINDS[kind][0]).save_pretrained(tmp_path)
    first = ViT.from_pretrained(tmp_path)
    first.save_pretrained(tmp_path / "deep" / "saved")
    second = ViT.from_pretrained(str(tmp_path / "deep" / "saved"))
    assert same_state(first, second) and first.config == second.config
    assert not second.training and {p.device.type for p in second.parameters()} == {runtime.DEVICE.type}
    files = {name: (tmp_path / "deep" / "saved" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    second.save_pretrained(tmp_path / "deep" / "saved")
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "deep" / "saved").iterdir()}, "and nothing else there"


def test_labels_survive(tmp_path: Path) -> None:
    config = ViTConfig(8, 1, 2, 12, image_size=(8, 16), patch_size=(4, 8), id2label={0: "zéro", 1: "one, or more"})
    model = ViT(config)
    model.save_pretrained(tmp_path)
    assert ViT.from_pretrained(tmp_path).config == config
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    assert theirs.config.id2label == config.id2label and theirs.config.label2id["zéro"] == 0


def test_a_parameter_in_two_places_is_saved_in_both(folder: Path, tmp_path: Path) -> None:
    model = ViT.from_pretrained(folder)
    first, second = model.blocks[:2]
    second.norm1.weight, second.attention.qkv.weight = first.norm1.weight, first.attention.qkv.weight
    model.save_pretrained(tmp_path / "saved")
    assert same_state(model, ViT.from_pretrained(tmp_path / "saved"))


def test_a_file_that_may_not_be_opened_is_told_from_a_damaged_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(weights, "safe_open", refuse)
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: .*Permission denied"):
        ViT.from_pretrained(folder)


def test_the_newer_names_load_equally(kind: str, tmp_path: Path) -> None:
    """What transformers 5 calls its modules, written to a file as it is."""
    theirs = hugging_face(5, **KINDS[kind][0])
    theirs.save_pretrained(tmp_path)
    expected = ViT.from_pretrained(tmp_path)
    older = set(load_file(tmp_path / "model.safetensors"))
    newer = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    assert any(re.search(r"(^|\.)layers\.1\.attention\.q_proj\.weight$", name) for name in newer) and not older >= set(newer)
    change_tensors(tmp_path, lambda _: newer)
    assert same_state(ViT.from_pretrained(tmp_path), expected)


@pytest.mark.parametrize(("kind", "prefix"), [("pooler", "vit."), ("DeiT, pooler", "deit.")])
def test_an_encoder_with_or_without_its_prefix(tmp_path: Path, kind: str, prefix: str) -> None:
    hugging_face(6, **KINDS[kind][0]).save_pretrained(tmp_path)
    expected = ViT.from_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert same_state(ViT.from_pretrained(tmp_path), expected)


def test_shards(folder: Path) -> None:
    theirs = transformers.ViTForImageClassification.from_pretrained(folder)
    expected = ViT.from_pretrained(folder)
    theirs.save_pretrained(folder.parent / "shards", max_shard_size="60KB")
    shards = sorted((folder.parent / "shards").glob("*.safetensors"))
    assert len(shards) > 2 and (folder.parent / "shards" / "model.safetensors.index.json").is_file()
    assert same_state(ViT.from_pretrained(folder.parent / "shards"), expected)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        ViT.from_pretrained(folder.parent / "shards")


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"metadata": {}}', "weight_map"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "/etc/hostname"}}', "outside its folder"),
        ('{"weight_map": {"a": "other.safetensors"}}', "has no other.safetensors"),
    ],
)
def test_a_bad_index_is_refused(folder: Path, index: str, told: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape(told)):
        ViT.from_pretrained(folder)


def test_an_index_left_behind_does_not_count(folder: Path, tmp_path: Path) -> None:
    """Neither where Hugging Face has saved one file over shards, nor where we do."""
    theirs = transformers.ViTForImageClassification.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "s", max_shard_size="20KB")
    index = tmp_path / "s" / "model.safetensors.index.json"
    model = ViT.from_pretrained(tmp_path / "s")
    old = index.read_text()
    with torch.no_grad():
        model.class_token.fill_(5.0)
    model.save_pretrained(tmp_path / "s")
    assert not index.exists() and same_state(ViT.from_pretrained(tmp_path / "s"), model)
    index.write_text(old)
    assert same_state(ViT.from_pretrained(tmp_path / "s"), model)


def test_a_tensor_under_two_names_is_refused(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {**tensors, "layernorm.weight": tensors["vit.layernorm.weight"].clone()})
    with pytest.raises(CheckpointError, match=r"layernorm\.weight twice"):
        ViT.from_pretrained(folder)


def test_a_classifier_that_the_file_promises_is_missed(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if "classifier" not in name})
    with pytest.raises(CheckpointError, match=r"missing: classifier\.weight"):
        ViT.from_pretrained(folder)


def test_a_model_that_its_configuration_does_not_describe_is_not_saved(folder: Path, tmp_path: Path) -> None:
    model = ViT.from_pretrained(folder)
    model.classifier = nn.Linear(model.config.hidden_size, 99)
    with pytest.raises(ValueError, match=r"classifier.weight is \(99, "):
        model.save_pretrained(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_problem_type_is_kept(folder: Path, tmp_path: Path) -> None:
    change_config(folder, problem_type="multi_label_classification")
    ViT.from_pretrained(folder).save_pretrained(tmp_path / "s")
    read = transformers.ViTConfig.from_pretrained(tmp_path / "s").problem_type
    assert read == ViT.from_pretrained(tmp_path / "s").config.problem_type == "multi_label_classification"


def test_home_is_found_in_and_out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = ViT.from_pretrained(folder)
    model.save_pretrained("~/saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file() and same_state(ViT.from_pretrained("~/saved"), model)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 64.0}, {"num_hidden_layers": 2.0}, {"num_attention_heads": True}, {"layer_norm_eps": "1e-12"},
        {"initializer_range": None}, {"hidden_dropout_prob": "0.1"}, {"num_labels": "10"}, {"num_labels": None},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_another_type_are_refused_by_name(folder: Path, values: dict) -> None:
    (name,) = values
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["id2label"]
    file.write_text(json.dumps(config | values))
    with pytest.raises(CheckpointError, match=f"ViTConfig: {name} is "):
        ViT.from_pretrained(folder)


def test_labels_without_names_are_counted() -> None:
    assert ViTConfig.from_dict({"num_labels": 3}).num_labels == 3 and ViTConfig.from_dict({}).num_labels == 2
    assert ViTConfig.from_dict({"id2label": None, "num_labels": 4}).id2label[3] == "LABEL_3"


@pytest.mark.parametrize("stored_type", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_load_to_float32(folder: Path, stored_type: torch.dtype) -> None:
    change_tensors(folder, lambda tensors: {name: tensor.to(stored_type) for name, tensor in tensors.items()})
    model = ViT.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stored = load_file(folder / "model.safetensors")["classifier.weight"]
    assert torch.equal(model.classifier.weight.detach().cpu(), stored.float())


def test_a_model_in_float16_is_saved_as_that(folder: Path) -> None:
    ViT.from_pretrained(folder).half().save_pretrained(folder.parent / "half")
    assert {tensor.dtype for tensor in load_file(folder.parent / "half" / "model.safetensors").values()} == {torch.float16}
    assert transformers.ViTForImageClassification.from_pretrained(folder.parent / "half", dtype="auto").dtype == torch.float16


# What does not fit


def test_every_misfit_is_listed_by_name(folder: Path) -> None:
    prefix = "vit.encoder.layer"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{prefix}.0.attention.attention.key.weight"], tensors["vit.embeddings.cls_token"]
        tensors["vit.embeddings.mask_token"] = torch.zeros(1, 1, 48)
        tensors[f"{prefix}.2.layernorm_before.weight"] = torch.zeros(48)
        tensors[f"{prefix}.1.intermediate.dense.weight"] = torch.zeros(48, 96)
        tensors[f"{prefix}.1.attention.attention.query.bias"] = torch.zeros(1)

    change_tensors(folder, change)
    with pytest.raises(CheckpointError) as caught:
        ViT.from_pretrained(folder)
    missing, surplus, misshapen = re.fullmatch(
        r".*missing: (.*); not expected: (.*); misshapen: (.*)", str(caught.value), re.DOTALL
    ).groups()
    assert set(missing.split(", ")) == {"embeddings.cls_token", "encoder.layer.0.attention.attention.key.weight"}
    assert set(surplus.split(", ")) == {"embeddings.mask_token", "encoder.layer.2.layernorm_before.weight"}
    assert "encoder.layer.1.intermediate.dense.weight is (48, 96) and should be (96, 48)" in misshapen
    assert "encoder.layer.1.attention.attention.query.bias is (1,) and should be (48,)" in misshapen
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.distillation_token", "cls_classifier.weight", "cls_classifier.bias", "distillation_classifier.weight",
        "distillation_classifier.bias",
    ],
)  # fmt: skip
def test_what_a_deit_lacks_is_listed_by_name(tmp_path: Path, name: str) -> None:
    hugging_face(7, **KINDS["DeiT, two classifiers"][0]).save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: {n: tensor for n, tensor in tensors.items() if n.removeprefix("deit.") != name})
    with pytest.raises(CheckpointError, match=rf"missing: {re.escape(name)}$"):
        ViT.from_pretrained(tmp_path)


def test_a_vit_and_a_deit_are_not_taken_for_each_other(tmp_path: Path) -> None:
    hugging_face(7, **KINDS["DeiT, two classifiers"][0]).save_pretrained(tmp_path)
    change_config(tmp_path, model_type="vit")
    with pytest.raises(CheckpointError, match=r"not expected: cls_classifier\.bias, .*deit\."):
        ViT.from_pretrained(tmp_path)


def test_a_classifier_beside_two_others_is_refused(tmp_path: Path) -> None:
    hugging_face(7, **KINDS["DeiT, two classifiers"][0]).save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors | {"classifier.weight": torch.zeros(25, 48)})
    with pytest.raises(CheckpointError, match=r"not expected: classifier\.weight$"):
        ViT.from_pretrained(tmp_path)


def test_both_classifiers_have_to_have_the_labels(tmp_path: Path) -> None:
    hugging_face(7, **KINDS["DeiT, two classifiers"][0]).save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors | {"distillation_classifier.weight": torch.zeros(2, 48)})
    with pytest.raises(CheckpointError, match=r"distillation_classifier\.weight has 2 rows and config\.json 25 labels"):
        ViT.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", sorted(set(small()) - {"num_labels", "num_attention_heads", "num_hidden_layers"}))
def test_a_configuration_of_another_size_does_not_fit(folder: Path, name: str) -> None:
    change_config(folder, **{name: 2 * small()[name]})
    with pytest.raises(CheckpointError, match=r"misshapen: .* is \(.*\) and should be \("):
        ViT.from_pretrained(folder)


def test_layers_too_many_and_too_few(folder: Path) -> None:
    for layers, kind in ((3, "missing"), (1, "not expected")):
        change_config(folder, num_hidden_layers=layers)
        with pytest.raises(CheckpointError, match=rf"{kind}: .*encoder\.layer\.{min(layers, 2)}\..* and \d+ more"):
            ViT.from_pretrained(folder)


def test_a_bias_that_the_configuration_denies(folder: Path) -> None:
    change_config(folder, qkv_bias=False)
    with pytest.raises(CheckpointError, match=r"not expected: encoder\.layer\.0\.attention\.attention\.key\.bias"):
        ViT.from_pretrained(folder)


def test_labels_have_to_be_the_classifiers(folder: Path) -> None:
    change_config(folder, id2label={"0": "a", "1": "b"})
    with pytest.raises(CheckpointError, match=r"classifier\.weight has 25 rows and config\.json 2 labels"):
        ViT.from_pretrained(folder)
    change_config(folder, id2label=None, label2id=None, num_labels=25)
    assert ViT.from_pretrained(folder).config.id2label[24] == "LABEL_24"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 50}, "hidden_size 50 is not a multiple of num_attention_heads 3"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"pooler_act": "relu"}, "pooler_act is 'relu'"),
        ({"patch_size": 40}, "holds no patch"),
        ({"num_attention_heads": 0}, "positive"),
        ({"hidden_size": "large"}, "does not describe a ViT"),
        ({"id2label": ["a", "b"]}, "does not describe a ViT"),
        ({"image_size": [32]}, "does not describe a ViT"),
        ({"model_type": "swin"}, '"swin"'),
        ({"model_type": None}, '"vit" or "deit" is accepted'),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_built_is_refused(folder: Path, changes: dict, told: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=re.escape(told)) as caught:
        ViT.from_pretrained(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", "", '{"model_type": "vit"', "\x00"])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(str(folder / "config.json"))):
        ViT.from_pretrained(folder)


@pytest.mark.parametrize("name", ["../somewhere", "a/b/c", "", "owner/name/", "-x y"])
def test_a_name_that_is_neither_folder_nor_id_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":  # the current folder, as for pathlib
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            ViT.from_pretrained(name)
        return
    with pytest.raises(CheckpointError, match="not of the form of a Hugging Face id"):
        ViT.from_pretrained(name)


# Nothing half-written


@pytest.mark.parametrize("failing", ["weights", "weights midway", "config"])
def test_a_save_that_fails_leaves_the_old_files(folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    model = ViT.from_pretrained(folder)
    target = folder.parent / "saved"
    model.save_pretrained(target)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    with torch.no_grad():
        model.classifier.bias.add_(1)

    def fail(tensors: dict, file: Path, metadata: dict) -> None:
        if failing == "weights midway":
            Path(file).write_bytes(b"half")
        raise OSError("no space left")

    if failing == "config":
        monkeypatch.setattr(ViTConfig, "to_dict", lambda self: {"id2label": object()})
    else:
        monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises((OSError, TypeError)):
        model.save_pretrained(target)
    monkeypatch.undo()
    assert {name: (target / name).read_bytes() for name in before} == before
    ViT.from_pretrained(target)
    model.save_pretrained(target)  # and a later save is not hindered by what the failed one left
    assert torch.equal(ViT.from_pretrained(target).classifier.bias, model.classifier.bias)
    assert {file.name for file in target.iterdir()} == {"config.json", "model.safetensors"}


def test_saving_where_a_file_is_in_the_way(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        ViT.from_pretrained(folder).save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"
