"""The Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) on this package's kernels.

And DeiT (Touvron et al., arXiv 2012.12877), which is the same with a second token before the patches.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from . import runtime
from .layers import Block, LayerNorm, Linear, PatchEmbedding

# Hugging Face's names for activations, and what `kernels.linear` calls them.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


_KINDS = dict.fromkeys(
    ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"), int
) | dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"), (int, float)
)  # fmt: skip


@dataclass
class ViTConfig:
    """The shape of a ViT, with Hugging Face's field names and defaults: ViT-B/16 at 224 x 224 pixels.

    model_type: "vit", or "deit" for a distillation token beside the class token.
    problem_type: "multi_label_classification" where labels do not exclude each other; the model itself does not look at it.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    encoder_stride: int = 16
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    model_type: str = "vit"
    problem_type: str | None = None

    def __post_init__(self):
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise TypeError(f"ViTConfig: {name} is {value!r}; a {'whole number' if kinds is int else 'number'} is accepted")
        self.image_size = tuple(self.image_size) if isinstance(self.image_size, list) else self.image_size
        self.patch_size = tuple(self.patch_size) if isinstance(self.patch_size, list) else self.patch_size
        self.pooler_output_size = self.pooler_output_size or self.hidden_size
        self.id2label = {int(index): label for index, label in self.id2label.items()}
        if len(self.image_shape) != 2 or len(self.patch_shape) != 2:
            raise ValueError(f"ViTConfig: image_size is {self.image_size} and patch_size {self.patch_size}; one or two numbers")
        sizes = (self.hidden_size, self.num_attention_heads, self.intermediate_size, self.num_channels)
        if min(*sizes, *self.image_shape, *self.patch_shape) < 1 or self.num_hidden_layers < 0:
            raise ValueError(f"ViTConfig: sizes have to be positive: {self}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"ViTConfig: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.model_type not in ("vit", "deit"):
            raise ValueError(f'ViTConfig: model_type is {self.model_type!r}; "vit" and "deit" are accepted')
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"ViTConfig: hidden_act is {self.hidden_act!r}; accepted: {', '.join(ACTIVATIONS)}")
        if self.pooler_act != "tanh":
            raise ValueError(f'ViTConfig: pooler_act is {self.pooler_act!r}; "tanh" is accepted')
        if min(image // patch for image, patch in zip(self.image_shape, self.patch_shape)) < 1:
            raise ValueError(f"ViTConfig: an image of {self.image_shape} pixels holds no patch of {self.patch_shape}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return (self.patch_size, self.patch_size) if isinstance(self.patch_size, int) else self.patch_size

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token, and in DeiT the distillation token."""
        return 2 if self.model_type == "deit" else 1

    @property
    def tokens(self) -> int:
        """The prefix and one token a patch: 197 for ViT-B/16."""
        return self.prefix_tokens + (self.image_shape[0] // self.patch_shape[0]) * (self.image_shape[1] // self.patch_shape[1])

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @classmethod
    def from_dict(cls, values: dict) -> "ViTConfig":
        """From the dictionary of a Hugging Face `config.json`, whose other fields are left aside."""
        known = {f.name for f in fields(cls)}
        values = {**values}
        if values.get("id2label") is None:
            labels = values.get("num_labels", 2)
            if type(labels) is not int:
                raise TypeError(f"ViTConfig: num_labels is {labels!r}; a whole number is accepted")
            values["id2label"] = {index: f"LABEL_{index}" for index in range(labels)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict:
        """For a `config.json` that Hugging Face's transformers reads back."""
        return {**asdict(self), "label2id": {label: index for index, label in self.id2label.items()}}


class ViTOutput(NamedTuple):
    """What `ViT` returns where more than its result was asked for. None for what was not asked for or is not there."""

    logits: torch.Tensor | None  #: (batch, num_labels), with a classifier
    last_hidden_state: torch.Tensor  #: (batch, tokens, hidden_size), after the final layer norm
    hidden_states: tuple[torch.Tensor, ...] | None  #: the embedding's, then each block's output, before the final layer norm
    attentions: tuple[torch.Tensor, ...] | None  #: each block's probabilities, (batch, heads, tokens, tokens)


class ViT(nn.Module):
    """A Vision Transformer: patches to tokens, a stack of blocks, a final layer norm, and a head where there is one.

    classifier: end in a linear layer on the class token, `config.num_labels` wide.
    distillation_classifier: end in the mean of that and of a second one on the distillation token, which only DeiT has.
    pooler: carry Hugging Face's pooler, a linear layer and a tanh on the class token, for `pool`.
    """

    def __init__(
        self, config: ViTConfig, *, classifier: bool = True, pooler: bool = False, distillation_classifier: bool = False
    ):
        super().__init__()
        if distillation_classifier and not (classifier and config.model_type == "deit"):
            raise ValueError('ViT: distillation_classifier needs model_type "deit" and a classifier beside it')
        self.config = config
        hidden = config.hidden_size
        self.patch_embedding = PatchEmbedding(config.num_channels, hidden, config.patch_shape)
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, hidden)) if config.model_type == "deit" else None
        self.position_embedding = nn.Parameter(torch.zeros(1, config.tokens, hidden))
        self.blocks = nn.ModuleList(
            Block(
                hidden, config.num_attention_heads, config.intermediate_size, ACTIVATIONS[config.hidden_act],
                config.layer_norm_eps, config.qkv_bias,
            )
            for _ in range(config.num_hidden_layers)
        )  # fmt: skip
        self.norm = LayerNorm(hidden, config.layer_norm_eps)
        self.pooler = Linear(hidden, config.pooler_output_size) if pooler else None
        self.classifier = Linear(hidden, config.num_labels) if classifier else None
        self.distillation_classifier = Linear(hidden, config.num_labels) if distillation_classifier else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights and embeddings from a normal distribution of `initializer_range`, cut at two of it; biases zero."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.class_token, self.distillation_token, self.position_embedding):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=std, a=-2 * std, b=2 * std)

    def embed(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """(batch, channels, height, width) to (batch, tokens, hidden_size): prefix, patches, positions."""
        channels, image_shape = self.config.num_channels, self.config.image_shape
        other_size = pixel_values.shape[2:] != image_shape and not interpolate_pos_encoding
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or other_size:
            height, width = ("height", "width") if interpolate_pos_encoding else image_shape
            raise ValueError(
                f"ViT: pixel_values is {tuple(pixel_values.shape)}; this model takes (batch, {channels}, {height}, {width})"
            )
        positions = self.position_embedding
        if interpolate_pos_encoding:
            positions = self.interpolate_positions(*pixel_values.shape[2:])
        if self.distillation_token is None:
            return self.patch_embedding(pixel_values, self.class_token, positions)
        # The kernel writes one token before the patches, and here are two.
        prefix = torch.cat([self.class_token, self.distillation_token], dim=1) + positions[:, :2]
        patches = self.patch_embedding(pixel_values, position_embedding=positions[:, 2:])
        return torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)

    def interpolate_positions(self, height: int, width: int) -> torch.Tensor:
        """The position embeddings for images of height x width pixels, as Hugging Face makes them: (1, tokens, hidden_size).

        The patches' are a square picture of `hidden_size` channels, resized (bicubic, in float32) to the new grid. The
        prefix's stay. Like Hugging Face, takes a grid that is not square for a square one of as many patches.

        Raises ValueError for an image with no patch, and for a model whose patches' number is no square or whose patch_size
        is not one number.
        """
        config = self.config
        rows, columns = height // config.patch_shape[0], width // config.patch_shape[1]
        if min(rows, columns) < 1:
            raise ValueError(f"ViT: an image of {height} x {width} pixels holds no patch of {config.patch_shape}")
        prefix, patch_positions = self.position_embedding.tensor_split([config.prefix_tokens], dim=1)
        patches = patch_positions.shape[1]
        if rows * columns == patches and height == width:
            return self.position_embedding
        side = math.isqrt(patches)
        if side * side != patches or not isinstance(config.patch_size, int):
            raise ValueError(
                "ViT: interpolate_pos_encoding takes a model with a square number of patches and one number as patch_size; "
                f"this one has {patches} patches and patch_size {config.patch_size}"
            )
        picture = patch_positions.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        picture = nn.functional.interpolate(picture, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([prefix, picture.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)

    def forward_features(
        self,
        pixel_values: torch.Tensor,
        *,
        interpolate_pos_encoding: bool = False,
        hidden_states: list[torch.Tensor] | None = None,
        attentions: list[torch.Tensor] | None = None,
        first: int | None = None,
    ) -> torch.Tensor:
        """(batch, channels, height, width) to the last hidden state after the final layer norm: (batch, tokens, hidden_size).

        interpolate_pos_encoding: as of `forward`. hidden_states, attentions: lists to append to, what `ViTOutput` says of each.
        first: only so many of the last hidden state's tokens, (batch, first, hidden_size). In the last block all tokens then pass
        the first norm and the product for queries, keys and values, and only these the rest.
        """
        if self.training and max(self.config.hidden_dropout_prob, self.config.attention_probs_dropout_prob) > 0:
            raise NotImplementedError("ViT: this configuration asks for dropout in training, which is not there yet; call eval()")
        x = self.embed(pixel_values, interpolate_pos_encoding)
        for index, block in enumerate(self.blocks):
            if hidden_states is not None:
                hidden_states.append(x)
            if attentions is not None:
                attentions.append(block.attention.weights(block.norm1(x)))
            x = block(x, first if index == len(self.blocks) - 1 else None)
        if hidden_states is not None:
            hidden_states.append(x)
        return self.norm(x[:, :first])

    def pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hugging Face's `pooler_output`, (batch, pooler_output_size), from what `forward_features` returns."""
        if self.pooler is None:
            raise ValueError("ViT: this model has no pooler")
        return torch.tanh(self.pooler(hidden_states[:, 0]))

    def classify(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_labels) from what `forward_features` returns, of which the prefix's tokens are read."""
        logits = self.classifier(hidden_states[:, 0])
        if self.distillation_classifier is not None:
            logits = (logits + self.distillation_classifier(hidden_states[:, 1])) / 2
        return logits

    def forward(
        self,
        pixel_values: torch.Tensor,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor | ViTOutput:
        """Logits (batch, num_labels), or with no classifier the last hidden state (batch, tokens, hidden_size).

        For logits alone, the last block computes no more than they need (`first` in `forward_features`); a hook on it sees that.
        output_hidden_states, output_attentions: return a `ViTOutput` with these, too. Attention maps are computed beside the
        result, which does not change, and take tokens^2 numbers a head.
        interpolate_pos_encoding: take images of any size, with the position embeddings resized to it.

        Raises ValueError for pixel_values of another shape, and where `interpolate_positions` does.
        """
        states = [] if output_hidden_states else None
        maps = [] if output_attentions else None
        more = output_hidden_states or output_attentions
        x = self.forward_features(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            hidden_states=states,
            attentions=maps,
            first=None if more or self.classifier is None else self.config.prefix_tokens,
        )
        logits = None if self.classifier is None else self.classify(x)
        if not more:
            return x if logits is None else logits
        return ViTOutput(logits, x, *(None if kept is None else tuple(kept) for kept in (states, maps)))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> "ViT":
        """A ViT or DeiT with the weights of a Hugging Face folder or hub id, in float32 on `runtime.DEVICE`, in eval mode."""
        from . import weights

        return weights.load(name_or_path)

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` as Hugging Face's transformers does, into the folder `path`."""
        from . import weights

        weights.save(self, path)

    def graphed(self, pixel_values: torch.Tensor, *more: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """This model's call, with a CUDA graph for each of the examples given: one launch a forward pass.

        The function returned takes `pixel_values` and returns what the model returns, in a new tensor. An input with the shape,
        type and device of an example is copied into that example's graph, which is replayed. For small batches that is the graph
        of `fused.Fused`, the same forward pass in fewer kernels, equal up to rounding. The model itself runs for any other
        input, in training mode, under autocast, and where gradients are recorded (so call it in torch.inference_mode() or
        torch.no_grad()). With no CUDA GPU it always does.

        What is written into the weights is seen: an optimizer's step, load_state_dict (but not what is written to a
        parameter's `.data`). After `.to(...)` or load_state_dict(assign=True) they lie elsewhere, and the model itself runs; a
        single layer or parameter that is replaced goes unnoticed. Call `graphed` again after either. The float32 precision that
        is set when a graph is recorded stays its own. Calls share a graph's memory: make them from one stream at a time.

        Raises ValueError in training mode: call eval() first.
        """
        if self.training:
            raise ValueError("ViT.graphed: the model is in training mode; call eval() first")
        if runtime.DEVICE.type != "cuda":
            return lambda pixel_values: self(pixel_values)
        from .fused import Fused, pays

        graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        # Kept, so that a graph never reads memory that has gone to something else, and no new weights can have this address.
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        pool, side = None, torch.cuda.Stream()
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cuda", enabled=False):
            examples = (pixel_values, *more)
            # Its folded weights are copies, which large batches do without.
            fused = Fused(self) if any(pays(self.config, len(example)) for example in examples) else None
            for example in examples:
                static, forward = example.clone(), fused if pays(self.config, len(example)) else self
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):  # compile, choose configurations and fill caches before the capture
                    forward(static)
                    forward(static)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    output = forward(static)
                # One pool for all: a replay may overwrite another graph's output, of which the caller has a copy by then.
                pool = graph.pool()
                graphs[example.shape, example.dtype, example.device] = graph, static, output

        def call(pixel_values: torch.Tensor) -> torch.Tensor:
            plain = self.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda")
            moved = self.class_token.data_ptr() != weights["class_token"].data_ptr()
            recorded = graphs.get((pixel_values.shape, pixel_values.dtype, pixel_values.device))
            if plain or moved or recorded is None:
                return self(pixel_values)
            graph, static, output = recorded
            static.copy_(pixel_values)
            graph.replay()
            if fused is not None and fused.refold():  # looked at while the GPU is at work
                graph.replay()
            return output.clone()

        return call
