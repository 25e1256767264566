"""A ViT's forward pass for few rows, five launches a block in place of seven: what `ViT.graphed` records for small batches.

The layer norms are folded into the linear layers behind them (kernels/norm_linear.py), so weights have to be prepared ahead of
time, and what `Fused` computes differs from the model's own forward pass by rounding. It holds copies of the weights that
were folded, and looks at the others where they lie.
"""

import torch
from torch import nn

from . import kernels
from .kernels.norm_linear import Folded, fold, linear_moments, norm_linear
from .vit import ViT, ViTConfig

#: Rows (images times tokens) from which on the model's own seven launches a block are the faster: on an H200, measured with
#: 1,576 rows, where they are not, and with 6,304, where they are.
MANY_ROWS = 4096


def pays(config: ViTConfig, batch: int) -> bool:
    """Whether `Fused` is the faster one for so many images."""
    return batch * config.tokens < MANY_ROWS


def operations(config: ViTConfig, fused: bool) -> list[str]:
    """What the kernels of a forward pass to logits do, in the order of their launches: of `Fused`, or of the model itself."""
    first = ["layer norm", "qkv", "attention", "out + residual", "layer norm", "fc1 + gelu", "fc2 + residual"]
    block = first
    if fused:
        block = ["norm + qkv", "attention", "out + residual", "norm + fc1 + gelu", "fc2 + residual"]
        first = ["layer norm", "qkv", *block[1:]]
    end = ["norm + classifier"] if fused else ["layer norm", "classifier"]
    return ["patch embedding + position", *first, *block * (config.num_hidden_layers - 1), *end]


class Fused:
    """`model(pixel_values)` for a model in eval mode, without gradients.

    overlap: let kernels start before the one in front of them has ended, where the GPU can.
    """

    def __init__(self, model: ViT, overlap: bool = True):
        self.model, self.overlap = model, overlap
        blocks = list(model.blocks)
        self._pairs = [(block.norm1, block.attention.qkv) for block in blocks[1:]]
        self._pairs += [(block.norm2, block.mlp.fc1) for block in blocks]
        heads = (model.classifier, model.distillation_classifier)
        self._pairs += [(model.norm, head) for head in heads if head is not None and blocks]
        self._folded = {linear: self._fold(norm, linear) for norm, linear in self._pairs}
        self._versions = self._seen()

    @staticmethod
    def _fold(norm: nn.LayerNorm, linear: nn.Linear) -> Folded:
        return fold(norm.weight, norm.bias, linear.weight, linear.bias)

    def _seen(self) -> list[int]:
        parameters = (parameter for pair in self._pairs for layer in pair for parameter in layer.parameters())
        return [0 if parameter.is_inference() else parameter._version for parameter in parameters]

    def refold(self) -> bool:
        """Fold again if a weight has been written to, into the same memory. Whether that was so.

        PyTorch counts what is written in place: an optimizer's step, load_state_dict. It does not count writes to `.data`, and
        nothing of a model that was made in inference mode.
        """
        seen = self._seen()
        if seen == self._versions:
            return False
        for norm, linear in self._pairs:
            for kept, new in zip(self._folded[linear], self._fold(norm, linear)):
                kept.copy_(new)
        self._versions = seen
        return True

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        model = self.model
        x, moments = model.embed(pixel_values), None
        first = None if model.classifier is None else model.config.prefix_tokens
        for block in model.blocks:
            attention = block.attention
            query, key, value = attention.split(self._norm(block.norm1, attention.qkv, x, moments))
            seen = first if block is model.blocks[-1] else None
            attended = kernels.scaled_dot_product_attention(query[:, :, :seen], key, value).transpose(1, 2).flatten(2)
            x, moments = self._linear(attention.output, attended, x[:, :seen])
            wide = self._norm(block.norm2, block.mlp.fc1, x, moments)
            x, moments = self._linear(block.mlp.fc2, wide, x)
        if model.classifier is None:
            return model.norm(x)
        logits = self._norm(model.norm, model.classifier, x, moments)[:, 0]
        if model.distillation_classifier is not None:
            logits = (logits + self._norm(model.norm, model.distillation_classifier, x, moments)[:, 1]) / 2
        return logits

    def _norm(self, norm, linear, x, moments):
        if moments is None:  # of the embedding's result: the first norm stays a kernel
            return linear(norm(x))
        return norm_linear(x, moments, self._folded[linear], eps=norm.eps, activation=linear.activation, overlap=self.overlap)

    def _linear(self, linear, x, residual):
        return linear_moments(x, linear.weight, linear.bias, residual=residual, overlap=self.overlap)
