"""torch.nn modules whose forward passes run on this package's kernels; the same parameters under the same names."""

import torch
from torch import nn

from . import kernels


class Linear(nn.Linear):
    """`torch.nn.Linear`, with what usually follows it in the same kernel: activation(x @ weight.T + bias) + residual."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, activation: str | None = None, **kwargs):
        super().__init__(in_features, out_features, bias, **kwargs)
        self.activation = activation

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return kernels.linear(input, self.weight, self.bias, activation=self.activation, residual=residual)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return kernels.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class GELU(nn.GELU):
    """`torch.nn.GELU`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return kernels.gelu(input, self.approximate)


class ReLU(nn.ReLU):
    """`torch.nn.ReLU`, not in place."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return kernels.relu(input, self.inplace)


class Softmax(nn.Softmax):
    """`torch.nn.Softmax`; unlike there, `dim` has to be given."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return kernels.softmax(input, self.dim)


class PatchEmbedding(nn.Conv2d):
    """A `torch.nn.Conv2d` whose stride is its kernel: (batch, channels, height, width) to (batch, tokens, hidden)."""

    def __init__(self, channels: int, hidden_size: int, patch_size: int | tuple[int, int], bias: bool = True, **kwargs):
        super().__init__(channels, hidden_size, patch_size, stride=patch_size, bias=bias, **kwargs)
        if self.padding not in ((0, 0), "valid") or self.dilation != (1, 1) or self.groups != 1:
            raise ValueError("PatchEmbedding: padding, dilation and groups are not supported; patches lie side by side")

    def forward(
        self, input: torch.Tensor, class_token: torch.Tensor | None = None, position_embedding: torch.Tensor | None = None
    ) -> torch.Tensor:
        return kernels.patch_embed(input, self.weight, self.bias, class_token=class_token, position_embedding=position_embedding)


class SelfAttention(nn.Module):
    """Multi-head self-attention: queries, keys and values from one matrix product, read in place by the attention kernel."""

    def __init__(self, hidden_size: int, heads: int, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.output = Linear(hidden_size, hidden_size)

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None, first: int | None = None) -> torch.Tensor:
        """(batch, tokens, hidden_size) to the same, or to (batch, first, hidden_size): the first tokens, which see them all."""
        query, key, value = self.heads_of(input)
        attended = kernels.scaled_dot_product_attention(query[:, :, :first], key, value)
        return self.output(attended.transpose(1, 2).flatten(2), residual)

    def heads_of(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, tokens, hidden_size) to queries, keys and values, each (batch, heads, tokens, head_size)."""
        return self.split(self.qkv(input))

    def split(self, packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `qkv` returns, (batch, tokens, 3 * hidden_size), as three views, each (batch, heads, tokens, head_size)."""
        return packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def weights(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) to the probabilities of the softmax: (batch, heads, tokens, tokens).

        The attention kernel never writes them, so they are computed here beside it.
        """
        query, key, _ = self.heads_of(input)
        scores = kernels.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), scale=query.shape[-1] ** -0.5)
        return kernels.softmax(scores, -1).view(*query.shape[:3], key.shape[2])


class MLP(nn.Module):
    """Two linear layers; the activation runs in the first one's kernel."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str):
        super().__init__()
        self.fc1 = Linear(hidden_size, intermediate_size, activation=activation)
        self.fc2 = Linear(intermediate_size, hidden_size)

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return self.fc2(self.fc1(input), residual)


class Block(nn.Module):
    """One layer of the encoder: x + attention(norm1(x)), then x + mlp(norm2(x)); the sums run in the linears' kernels."""

    def __init__(self, hidden_size: int, heads: int, intermediate_size: int, activation: str, eps: float, qkv_bias: bool):
        super().__init__()
        self.norm1 = LayerNorm(hidden_size, eps)
        self.attention = SelfAttention(hidden_size, heads, qkv_bias)
        self.norm2 = LayerNorm(hidden_size, eps)
        self.mlp = MLP(hidden_size, intermediate_size, activation)

    def forward(self, x: torch.Tensor, first: int | None = None) -> torch.Tensor:
        """(batch, tokens, hidden_size) to the same, or to (batch, first, hidden_size), where only the first tokens are wanted."""
        x = self.attention(self.norm1(x), x[:, :first], first)
        return self.mlp(self.norm2(x), residual=x)
