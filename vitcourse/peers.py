"""The models that `bench` measures: ours, Hugging Face's and timm's, all with the same random weights, on the same pixels.

Their logits are held against Hugging Face's in float64, with the weights and pixels rounded to the measured type first.
"""

import functools

import torch
from torch import nn

from . import runtime, verify, weights
from .vit import ViT, ViTConfig

LABELS = {index: f"LABEL_{index}" for index in range(1000)}
MODELS = {
    "ViT-B/16": ViTConfig(id2label=LABELS),
    "ViT-L/16": ViTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, id2label=LABELS
    ),
    "ViT-H/14": ViTConfig(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, intermediate_size=5120, patch_size=14, id2label=LABELS
    ),
}  # fmt: skip
COMPARED = 8  # images of a batch whose logits are held against float64

# Our names to timm's, where they differ. Both stack queries, keys and values.
TIMM_NAMES = {
    "class_token": "cls_token",
    "position_embedding": "pos_embed",
    "patch_embedding.": "patch_embed.proj.",
    ".attention.qkv.": ".attn.qkv.",
    ".attention.output.": ".attn.proj.",
    "classifier.": "head.",
}


def ours_from_hugging_face(config: ViTConfig, theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of transformers' model as ours. ValueError if a weight is missing or surplus."""
    files = {weights._file_name(name): tensor for name, tensor in theirs.items()}
    with torch.device("meta"):
        sources = {name: weights._sources(name) for name in ViT(config).state_dict()}
    misfits = set(files).symmetric_difference(name for names in sources.values() for name in names)
    if misfits:
        raise ValueError(f"Hugging Face's weights are not those of our model: {', '.join(sorted(misfits))}")
    parts = {name: [files[source] for source in names] for name, names in sources.items()}
    return {name: torch.cat(tensors) if len(tensors) > 1 else tensors[0] for name, tensors in parts.items()}


def timm_from_ours(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict under timm's names; its `load_state_dict` refuses a missing or surplus one."""

    def renamed(name: str) -> str:
        for mine, timms in TIMM_NAMES.items():
            name = name.replace(mine, timms)
        return name

    return {renamed(name): tensor for name, tensor in ours.items()}


def fresh(kind: str, config: ViTConfig) -> nn.Module:
    """A "vitcourse", "hf-eager", "hf-sdpa" or "timm" as its library initialises it. ImportError if that is not installed."""
    if kind == "vitcourse":
        return ViT(config)
    if kind == "timm":
        import timm

        return timm.models.vision_transformer.VisionTransformer(
            img_size=config.image_shape, patch_size=config.patch_shape, embed_dim=config.hidden_size,
            depth=config.num_hidden_layers, num_heads=config.num_attention_heads,
            mlp_ratio=config.intermediate_size / config.hidden_size, num_classes=config.num_labels,
            norm_layer=functools.partial(timm.layers.LayerNorm, eps=config.layer_norm_eps),
        )  # fmt: skip
    import transformers

    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    attention = kind.removeprefix("hf-")
    return transformers.ViTForImageClassification(transformers.ViTConfig(**values, attn_implementation=attention))


@functools.cache
def drawn(model: str) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights for one of MODELS, in float32 on the CPU: the same ones as the state dicts "hf", "vitcourse" and "timm"."""
    with torch.device("meta"):  # no time for values that are about to be replaced
        theirs = fresh("hf-eager", MODELS[model])
    state = verify.randomise(theirs.to_empty(device="cpu")).state_dict()
    ours = ours_from_hugging_face(MODELS[model], state)
    return {"hf": state, "vitcourse": ours, "timm": timm_from_ours(ours)}


def build(kind: str, model: str, dtype: torch.dtype, with_drawn: bool = True) -> nn.Module:
    """`fresh` for one of MODELS, in eval mode on the device, with the weights of `drawn`, or with its own, which take no time."""
    with torch.device(runtime.DEVICE):
        built = fresh(kind, MODELS[model])
    if with_drawn:
        built.load_state_dict(drawn(model)[kind.split("-")[0]])
    return built.to(dtype).eval()


def pixels(model: str, batch: int, dtype: torch.dtype) -> torch.Tensor:
    """Random pixels, (batch, channels, height, width) on the device; the first COMPARED images are the same in every batch."""
    config, generator = MODELS[model], torch.Generator(runtime.DEVICE).manual_seed(0)
    shape = config.num_channels, *config.image_shape
    images = [torch.randn(n, *shape, generator=generator, device=runtime.DEVICE) for n in (COMPARED, batch)]
    return torch.cat(images)[:batch].to(dtype)


@functools.cache
def exact(model: str, dtype: torch.dtype) -> torch.Tensor:
    """The first COMPARED images' logits in float64, on the CPU: Hugging Face's, of weights and pixels rounded to `dtype`.

    With SDPA, because Hugging Face's eager attention has its softmax in float32 whatever the type.
    """
    truth, pixel_values = build("hf-sdpa", model, dtype).double(), pixels(model, COMPARED, dtype).double()
    with torch.inference_mode():
        return truth(pixel_values).logits.cpu()


def logits_error(model: str, dtype: torch.dtype, output: object) -> float:
    """||logits - exact|| / ||exact|| over the first COMPARED images of what a model of any kind gave for `pixels`."""
    logits = getattr(output, "logits", output)[:COMPARED].double().cpu()
    truth = exact(model, dtype)[: len(logits)]
    return ((logits - truth).norm() / truth.norm()).item()
