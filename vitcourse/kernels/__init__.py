"""The operations of a Vision Transformer as Triton kernels, with the names and the meaning of PyTorch's functions."""

from .. import runtime as runtime  # before any Triton import
from .add import add
from .attention import scaled_dot_product_attention
from .bmm import bmm
from .cross_entropy import cross_entropy
from .dropout import dropout
from .gelu import gelu
from .layer_norm import layer_norm
from .linear import linear
from .patch_embed import patch_embed
from .relu import relu
from .softmax import softmax

__all__ = [
    "add", "bmm", "cross_entropy", "dropout", "gelu", "layer_norm", "linear", "patch_embed", "relu",
    "scaled_dot_product_attention", "softmax",
]  # fmt: skip
