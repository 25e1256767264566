"""The models that `bench` measures: one function, computed by every library from the same weights on the same pixels."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from vitcourse import peers, runtime
from vitcourse.vit import ViT, ViTConfig

TINY = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=8, patch_size=4,
    id2label=dict.fromkeys(range(5), "label"),
)  # fmt: skip

MODELS = peers.MODELS

#: What timm 1.0.29's VisionTransformer calls its parameters, of the model and of each block.
TIMM = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
TIMM += ["norm.weight", "norm.bias", "head.weight", "head.bias"]
PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
TIMM_BLOCK = [f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias")]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small model in place of ViT-B/16."""
    monkeypatch.setattr(peers, "MODELS", {"tiny": TINY})
    peers.drawn.cache_clear()
    peers.exact.cache_clear()
    yield
    peers.drawn.cache_clear()
    peers.exact.cache_clear()


def kinds() -> list[str]:
    try:
        import timm  # noqa: F401
    except ImportError:
        return ["vitcourse", "hf-eager", "hf-sdpa"]
    return ["vitcourse", "hf-eager", "hf-sdpa", "timm"]


@pytest.mark.parametrize(
    ("model", "sizes", "millions"),
    [
        ("ViT-B/16", (12, 768, 3072, 12, 16), 86.6),
        ("ViT-L/16", (24, 1024, 4096, 16, 16), 304.3),
        ("ViT-H/14", (32, 1280, 5120, 16, 14), 632.0),
    ],
)
def test_the_models_have_their_papers_sizes(model: str, sizes: tuple[int, ...], millions: float) -> None:
    """Table 1 of arXiv 2010.11929, and the parameters of a model with 1000 classes."""
    config = MODELS[model]
    found = config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads, config.patch_size
    assert found == sizes and config.image_shape == (224, 224) and config.num_labels == 1000
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ViT(config).parameters()) == pytest.approx(1e6 * millions, rel=1e-3)


@pytest.mark.parametrize("kind", kinds())
def test_every_library_computes_the_same(kind: str, dtype: torch.dtype) -> None:
    """In every type as exact as its rounding, and far from what other weights give."""
    model = peers.build(kind, "tiny", dtype)
    with torch.inference_mode():
        output = model(peers.pixels("tiny", 11, dtype))
        other = peers.build(kind, "tiny", dtype, with_drawn=False)(peers.pixels("tiny", 11, dtype))
    assert peers.logits_error("tiny", dtype, output) < 4 * torch.finfo(dtype).eps
    assert peers.logits_error("tiny", dtype, other) > 0.1


def test_no_weight_is_a_default() -> None:
    """A bias of 0 or a norm's weight of 1 would hide that two libraries differ in it."""
    for name, tensor in peers.drawn("tiny")["vitcourse"].items():
        assert tensor.std() > 0.01, name


def test_a_wrong_hugging_face_weight_is_refused() -> None:
    state = peers.drawn("tiny")["hf"]
    assert peers.ours_from_hugging_face(TINY, state).keys() == ViT(TINY).state_dict().keys()
    name = next(name for name in state if name.endswith("layernorm_after.bias"))
    with pytest.raises(ValueError, match=r"encoder\.layer\.0\.layernorm_after\.bias"):
        peers.ours_from_hugging_face(TINY, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match="mask_token"):
        peers.ours_from_hugging_face(TINY, state | {"vit.embeddings.mask_token": torch.zeros(1)})


def test_queries_keys_and_values_are_stacked_in_this_order() -> None:
    state, ours = (peers.drawn("tiny")[name] for name in ("hf", "vitcourse"))
    names = [next(name for name in state if f".0.attention.{part}_proj.weight" in name) for part in "qkv"]
    assert torch.equal(ours["blocks.0.attention.qkv.weight"], torch.cat([state[name] for name in names]))


def test_timms_names() -> None:
    ours = peers.drawn("tiny")["vitcourse"]
    timms = peers.timm_from_ours(ours)
    assert sorted(timms) == sorted(TIMM + [f"blocks.{index}.{name}" for index in range(2) for name in TIMM_BLOCK])
    assert len(timms) == len(ours), "no two of ours under one name"
    assert timms["blocks.1.attn.proj.weight"] is ours["blocks.1.attention.output.weight"]


def test_timms_names_are_timms() -> None:
    pytest.importorskip("timm")
    state = peers.fresh("timm", TINY).state_dict()
    drawn = peers.drawn("tiny")["timm"]
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in drawn.items()}


def test_the_first_images_are_the_same_at_every_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where random numbers depend on how many are drawn: always on a GPU, on a CPU with numbers of no multiple of 16."""
    monkeypatch.setitem(peers.MODELS, "odd", ViTConfig(image_size=5, patch_size=5, num_channels=1))
    few, eight, many = (peers.pixels("odd", batch, torch.float32) for batch in (3, 8, 20))
    assert many.shape == (20, 1, 5, 5) and torch.equal(many[:8], eight) and torch.equal(eight[:3], few)
    assert len(torch.unique(many.flatten(1), dim=0)) == 20, "no image twice"
    half = peers.pixels("odd", 3, torch.float16)
    assert half.dtype == torch.float16 and torch.equal(half, few.half())


def test_the_error_is_a_distance_from_the_exact_logits() -> None:
    truth = peers.exact("tiny", torch.float16)
    assert truth.dtype == torch.float64 and truth.shape == (peers.COMPARED, 5)
    assert peers.logits_error("tiny", torch.float16, truth) == 0
    assert math.isclose(peers.logits_error("tiny", torch.float16, 1.25 * truth[:3]), 0.25)
    assert math.isclose(peers.logits_error("tiny", torch.float16, torch.cat([1.25 * truth, 9 * truth])), 0.25)
    assert math.isclose(peers.logits_error("tiny", torch.float16, type("Output", (), {"logits": -truth})), 2)
    assert math.isnan(peers.logits_error("tiny", torch.float16, truth * math.nan))


def test_the_exact_logits_against_a_vit_written_out(dtype: torch.dtype) -> None:
    """In float64 throughout, of weights and pixels rounded to the type: else all errors would have a part in common."""
    w = {name: tensor.to(dtype).double() for name, tensor in peers.drawn("tiny")["vitcourse"].items()}
    x = peers.pixels("tiny", peers.COMPARED, dtype).double().cpu()

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (32,), w[f"{name}.weight"], w[f"{name}.bias"], TINY.layer_norm_eps)

    x = F.conv2d(x, w["patch_embedding.weight"], w["patch_embedding.bias"], stride=4).flatten(2).transpose(1, 2)
    x = torch.cat([w["class_token"].expand(len(x), 1, 32), x], 1) + w["position_embedding"]
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attention.qkv").unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        attended = ((q @ k.transpose(-1, -2)) / 16**0.5).softmax(-1) @ v
        x = x + linear(attended.transpose(1, 2).flatten(2), f"{block}.attention.output")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    logits = linear(norm(x[:, 0], "norm"), "classifier")
    torch.testing.assert_close(peers.exact("tiny", dtype), logits, rtol=1e-12, atol=1e-12)


def test_models_are_built_on_the_device_in_eval_mode() -> None:
    for kind in kinds():
        model = peers.build(kind, "tiny", torch.float16)
        assert not model.training
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {(runtime.DEVICE.type, torch.float16)}
