"""Planted faults: a ViT with one thing wrong with it, for the reader of lesson 15 to find.

    model = faults.plant(3, ViT.from_pretrained(folder))
    rows = verify.compare_models(model, theirs, pixel_values, parts=True)

Spoilers below. Each fault is in one place: in a weight, or in what one module's kernel computes. All of them leave the
shapes as they are, and most leave most predictions, too.
"""

import copy
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .. import kernels, layers
from ..vit import ViT


def _exchanged_rows(model: ViT, block: layers.Block) -> None:
    qkv = block.attention.qkv
    for tensor in (qkv.weight, qkv.bias):
        if tensor is not None:
            query, key, value = tensor.clone().chunk(3)
            tensor.copy_(torch.cat([key, value, query]))


def _transposed_projection(model: ViT, block: layers.Block) -> None:
    weight = block.attention.output.weight
    weight.copy_(weight.T.clone())


def _scale_of_all_heads(
    self: layers.SelfAttention, input: torch.Tensor, residual: torch.Tensor | None = None, first: int | None = None
) -> torch.Tensor:
    query, key, value = self.heads_of(input)
    attended = kernels.scaled_dot_product_attention(query[:, :, :first], key, value, scale=input.shape[-1] ** -0.5)
    return self.output(attended.transpose(1, 2).flatten(2), residual)


def _columns_minus_one(self: layers.LayerNorm, input: torch.Tensor) -> torch.Tensor:
    """Layer norm whose variance is a sum divided by columns - 1.

    The classic is a row padded to the next power of two whose padding counts as zeros, which is right where the width is
    a power of two. The digits model's is, 64, so that fault would be none there.
    """
    wide = input.float()
    centered = wide - wide.mean(-1, keepdim=True)
    variance = centered.square().sum(-1, keepdim=True) / (wide.shape[-1] - 1)
    normal = centered / torch.sqrt(variance + self.eps)
    return (normal * self.weight.float() + self.bias.float()).to(input.dtype)


def _rolled_positions(model: ViT, block: layers.Block) -> None:
    model.position_embedding.copy_(model.position_embedding.roll(1, dims=1))


def _other_gelu(model: ViT, block: layers.Block) -> None:
    block.mlp.fc1.activation = "gelu_tanh"


def _last_key_left_out(
    self: layers.SelfAttention, input: torch.Tensor, residual: torch.Tensor | None = None, first: int | None = None
) -> torch.Tensor:
    query, key, value = self.heads_of(input)
    attended = kernels.scaled_dot_product_attention(query[:, :, :first], key[:, :, :-1], value[:, :, :-1])
    return self.output(attended.transpose(1, 2).flatten(2), residual)


def _rounded(self: layers.Linear, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    return layers.Linear.forward(self, input, residual).bfloat16().to(input.dtype)


def _forward(path: str, forward: Callable) -> Callable[[ViT, layers.Block], None]:
    """A fault in what the module at `path` in a block computes: its forward is this one."""

    def plant(model: ViT, block: layers.Block) -> None:
        module = block.get_submodule(path)
        module.forward = types.MethodType(forward, module)

    return plant


@dataclass(frozen=True)
class _Fault:
    """plant: puts it into a model and one of its blocks. part: the row of that block that is the first wrong one, or
    "" for the embeddings. seventh: which of seven parts of the depth the block is taken from."""

    sentence: str
    plant: Callable[[ViT, layers.Block], None]
    part: str = ""
    seventh: int = 0


_FAULTS = {
    1: _Fault(
        "The rows of the packed QKV weight and bias lie in the order key, value, query: each of the three gets another's.",
        _exchanged_rows,
        "attention.qkv",
        4,
    ),
    2: _Fault("The output projection's weight is transposed.", _transposed_projection, "attention", 1),
    3: _Fault(
        "Attention scales by 1/sqrt(hidden_size), the width of all heads together, in place of 1/sqrt(head_size).",
        _forward("attention", _scale_of_all_heads),
        "attention.attended",
        6,
    ),
    4: _Fault(
        "Layer norm divides the sum of squares by columns - 1 in place of columns.",
        _forward("norm2", _columns_minus_one),
        "norm2",
        3,
    ),
    5: _Fault("The position embedding is rolled by one token: each token gets the one before's.", _rolled_positions),
    6: _Fault("GELU is the tanh form, and the checkpoint was trained with erf.", _other_gelu, "mlp.fc1", 0),
    7: _Fault(
        "Attention leaves out the last key: the loop over the keys ends one token early.",
        _forward("attention", _last_key_left_out),
        "attention.attended",
        5,
    ),
    8: _Fault("fc2's result goes through bfloat16 on its way to memory.", _forward("mlp.fc2", _rounded), "mlp", 2),
}

#: Faults are numbered from 1 to this.
COUNT = len(_FAULTS)


def _fault(number: int) -> _Fault:
    if number not in _FAULTS:
        raise ValueError(f"faults are numbered 1 to {COUNT}, and this is {number!r}")
    return _FAULTS[number]


def _block(number: int, blocks: int) -> int:
    """The block that a fault is in; with at least 7 blocks no two faults share one."""
    seventh = _fault(number).seventh
    return seventh * blocks // 7 if blocks >= 7 else seventh % blocks


def plant(number: int, model: ViT) -> ViT:
    """A copy of `model` with fault `number`, 1 to `COUNT`, in one place. `model` stays as it is.

    Raises ValueError where a fault would be none: for a model with fewer than two blocks or heads, or without GELU.
    """
    fault, config = _fault(number), model.config
    if len(model.blocks) < 2 or config.num_attention_heads < 2 or config.hidden_act != "gelu":
        raise ValueError(
            "faults are planted in a ViT with at least two blocks, two heads and GELU; this one has "
            f"{len(model.blocks)}, {config.num_attention_heads} and {config.hidden_act!r}"
        )
    planted = copy.deepcopy(model)
    with torch.no_grad():
        fault.plant(planted, planted.blocks[_block(number, len(model.blocks))])
    return planted


def describe(number: int) -> str:
    """What fault `number` is, in one sentence, for a reader who has found it."""
    return _fault(number).sentence


def place(number: int, model: ViT) -> str:
    """The first row that fault `number` puts off in `verify.compare_models(plant(number, model), ..., parts=True)`."""
    part = _fault(number).part
    return f"blocks.{_block(number, len(model.blocks))}.{part}" if part else "embeddings"
