"""The checks of lesson 13: the whole ViT, counted, mended, and given another resolution."""

import copy
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ... import runtime
from ...vit import ViT, ViTConfig
from .. import trace as tracing
from . import judge as judging
from .judge import (
    NO_FUNCTION,
    NOT_ATTEMPTED,
    NotAttempted,
    Verdict,
    Wrong,
    _answer_to,
    draw,
    index_text,
    judge_plain,
    number,
    type_name,
)

# ---- Configurations to count ------------------------------------------------------------------------------------------------


class _Config(ViTConfig):
    """A ViTConfig that a verdict shows as the call that makes it, without the fields that have their defaults."""

    def __repr__(self) -> str:
        default, shown = ViTConfig(), []
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            if name == "id2label" and self.num_labels != default.num_labels:
                shown.append(f"id2label=dict.fromkeys(range({self.num_labels}))")
            elif name not in ("id2label", "pooler_output_size") and value != getattr(default, name):
                shown.append(f"{name}={value!r}")
        return f"ViTConfig({', '.join(shown)})"


def _configs() -> list[_Config]:
    """Small ones first, then ViT-B/16 with 1000 labels, then others drawn at random."""
    small = {"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 6, "image_size": 4, "patch_size": 2}
    middle = {"hidden_size": 6, "num_attention_heads": 3, "intermediate_size": 10, "id2label": dict.fromkeys(range(5))}
    found = [
        _Config(**small, num_hidden_layers=0, num_channels=1),
        _Config(**small, num_hidden_layers=1, num_channels=1),
        _Config(**small, num_hidden_layers=2, qkv_bias=False),
        _Config(**middle, num_hidden_layers=3, image_size=(4, 9), patch_size=(2, 3)),
        _Config(**middle, num_hidden_layers=2, image_size=(11, 7), patch_size=3, num_channels=2),
        _Config(id2label=dict.fromkeys(range(1000))),
    ]
    generator = np.random.default_rng()
    for _ in range(6):
        layers, heads, head_size, channels, height, width, down, across = (int(n) for n in generator.integers(2, 7, 8))
        found.append(
            _Config(
                hidden_size=heads * head_size,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=int(generator.integers(20, 90)),
                image_size=(down * height + int(generator.integers(height)), across * width),
                patch_size=(height, width),
                num_channels=channels,
                qkv_bias=bool(generator.integers(2)),
                id2label=dict.fromkeys(range(int(generator.integers(3, 40)))),
            )
        )
    return found


def _shape_hint(verdict: Verdict) -> Verdict:
    """The hint for a function that took a size of two numbers for one, or of one for two."""
    if "raised TypeError" in verdict.message and re.search("'tuple'|sequence|'int' object is not", verdict.message):
        hint = "image_size and patch_size may be one number or two: config.image_shape and config.patch_shape are always two."
        return replace(verdict, hint=hint)
    return verdict


# ---- parameters -------------------------------------------------------------------------------------------------------------


def _parts(config: ViTConfig, layers: int | None = None, tokens: int | None = None, pixels: int | None = None) -> dict[str, int]:
    """The learned numbers of `ViT(config)` by what holds them, those of all blocks together."""
    h, f, labels = config.hidden_size, config.intermediate_size, config.num_labels
    layers = config.num_hidden_layers if layers is None else layers
    return {
        "patch weight": h * config.num_channels * (config.patch_shape[0] * config.patch_shape[1] if pixels is None else pixels),
        "patch bias": h,
        "class token": h,
        "positions": h * (config.tokens if tokens is None else tokens),
        "qkv weight": layers * 3 * h * h,
        "qkv bias": layers * 3 * h * config.qkv_bias,
        "output weight": layers * h * h,
        "output bias": layers * h,
        "block norms": layers * 4 * h,
        "fc1 weight": layers * h * f,
        "fc1 bias": layers * f,
        "fc2 weight": layers * f * h,
        "fc2 bias": layers * h,
        "final norm": 2 * h,
        "classifier weight": labels * h,
        "classifier bias": labels,
    }


def _total(*arguments, **changes) -> int:
    return sum(_parts(*arguments, **changes).values())


# What may be left out: how a hint names it, and how many numbers it is. Two that are the same number cannot be told apart.
_OMITTED: list[tuple[str, Callable[[ViTConfig], int]]] = [
    ("hidden_size numbers, once: the patch embedding's bias, the class token, the class token's position, or half of the final "
     "norm, which has a weight and a bias", lambda c: c.hidden_size),
    ("hidden_size numbers a block: the bias of the attention's output layer, or that of the MLP's second layer",
     lambda c: c.num_hidden_layers * c.hidden_size),
    ("intermediate_size numbers a block: the bias of the MLP's first layer", lambda c: _parts(c)["fc1 bias"]),
    ("3 * hidden_size numbers a block where config.qkv_bias is True: queries, keys and values have a bias",
     lambda c: _parts(c)["qkv bias"]),
    ("2 * hidden_size of the qkv layer's biases: queries, keys and values have one each, so 3 * hidden_size",
     lambda c: _parts(c)["qkv bias"] // 3 * 2),
    ("the classifier's bias, a number a label", lambda c: c.num_labels),
    ("the classifier, num_labels * (hidden_size + 1) numbers", lambda c: c.num_labels * (c.hidden_size + 1)),
    ("the classifier's weight, num_labels * hidden_size numbers", lambda c: c.num_labels * c.hidden_size),
    ("2 * hidden_size numbers, once: the final norm, a weight and a bias", lambda c: 2 * c.hidden_size),
    ("2 * hidden_size numbers a block: a block has two norms, and each a weight and a bias",
     lambda c: c.num_hidden_layers * 2 * c.hidden_size),
    ("the blocks' norms: two in each, with 2 * hidden_size numbers a norm", lambda c: _parts(c)["block norms"]),
    ("the position embeddings, hidden_size numbers a token", lambda c: c.tokens * c.hidden_size),
    ("the patch embedding's weight", lambda c: _parts(c)["patch weight"]),
    ("the patch embedding, its weight and its bias", lambda c: _parts(c)["patch weight"] + c.hidden_size),
    ("2 * hidden_size * hidden_size weights a block: queries, keys and values each take a matrix of hidden_size * hidden_size",
     lambda c: _parts(c)["qkv weight"] // 3 * 2),
    ("the attention's output layer, hidden_size * hidden_size weights and hidden_size biases",
     lambda c: c.num_hidden_layers * c.hidden_size * (c.hidden_size + 1)),
    ("hidden_size * hidden_size weights a block: four such matrices are in the attention, three before it and one behind",
     lambda c: c.num_hidden_layers * c.hidden_size * c.hidden_size),
    ("hidden_size * intermediate_size weights a block: the MLP has two layers", lambda c: _parts(c)["fc1 weight"]),
    ("the MLP's first layer, its weight and its bias", lambda c: _parts(c)["fc1 weight"] + _parts(c)["fc1 bias"]),
    ("the MLP's second layer, its weight and its bias", lambda c: _parts(c)["fc2 weight"] + _parts(c)["fc2 bias"]),
]  # fmt: skip


def parameters(function: Callable) -> Verdict:
    """Lesson 13: `function(config)`, how many numbers `ViT(config)` learns, with its classifier and no pooler."""

    def reference(config):
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in ViT(config).parameters())

    def less(*names):
        return lambda config: _total(config) - sum(_parts(config)[name] for name in names)

    def omitting(*counts):
        return lambda config: _total(config) - sum(count(config) for count in counts)

    def more(count):
        return lambda config: _total(config) + count(config)

    biases = ("patch bias", "qkv bias", "output bias", "fc1 bias", "fc2 bias", "classifier bias")
    in_blocks = ("qkv bias", "output bias", "fc1 bias", "fc2 bias")
    mistakes = [
        *((f"Missing: {name}.", omitting(count)) for name, count in _OMITTED),
        ("That is in bytes: count the numbers.", lambda c: 4 * _total(c)),
        ("That is in millions: return the number itself.", lambda c: 1e-6 * _total(c)),
        ("No linear layer has its bias here: each but the qkv layer of a config without qkv_bias has one number an output.",
         less(*biases)),
        ("No linear layer of the blocks has its bias here: each but the qkv layer of a config without qkv_bias has one.",
         less(*in_blocks)),
        ("Neither linear layers nor norms have their biases here.",
         lambda c: less(*biases)(c) - (2 * c.num_hidden_layers + 1) * c.hidden_size),
        ("The attention's layers lack their biases, the MLP's have theirs.", less("qkv bias", "output bias")),
        ("The MLP's two layers lack their biases: intermediate_size and hidden_size numbers.", less("fc1 bias", "fc2 bias")),
        ("A norm has two numbers a channel, a weight and a bias: the blocks' norms and the final one.",
         lambda c: _total(c) - (2 * c.num_hidden_layers + 1) * c.hidden_size),
        ("The norms are missing: two in each block and a final one, each with a weight and a bias.",
         less("block norms", "final norm")),
        ("The attention's weights are missing: four matrices of hidden_size * hidden_size a block, with their biases.",
         less("qkv weight", "qkv bias", "output weight", "output bias")),
        ("The qkv layer is missing: 3 * hidden_size outputs of hidden_size inputs.", less("qkv weight", "qkv bias")),
        ("The qkv layer is counted once: queries, keys and values each take a matrix and a bias.",
         lambda c: _total(c) - (_parts(c)["qkv weight"] + _parts(c)["qkv bias"]) // 3 * 2),
        ("The MLP is missing: two layers, from hidden_size to intermediate_size and back.",
         less("fc1 weight", "fc1 bias", "fc2 weight", "fc2 bias")),
        ("Without config.qkv_bias the qkv layer has no bias.",
         more(lambda c: (not c.qkv_bias) * c.num_hidden_layers * 3 * c.hidden_size)),
        ("config.tokens counts the class token already: there are config.tokens positions.", more(lambda c: c.hidden_size)),
        ("A patch need not be square: its height times its width.",
         lambda c: _total(c, pixels=c.patch_shape[0] ** 2)),
        ("A patch need not be square: its height times its width.",
         lambda c: _total(c, pixels=c.patch_shape[1] ** 2)),
        ("A patch has height times width pixels, in each of config.num_channels channels.",
         lambda c: _total(c, pixels=c.patch_shape[0])),
        ("The image need not be square: as many patches as fit down, times as many as fit across. config.tokens is that plus 1.",
         lambda c: _total(c, tokens=1 + (c.image_shape[0] // c.patch_shape[0]) ** 2)),
        ("The image need not be square: as many patches as fit down, times as many as fit across. config.tokens is that plus 1.",
         lambda c: _total(c, tokens=1 + (c.image_shape[1] // c.patch_shape[1]) ** 2)),
        ("Only whole patches count: round down along height and width, each for itself. config.tokens has done it.",
         lambda c: _total(c, tokens=1 + c.image_shape[0] * c.image_shape[1] // (c.patch_shape[0] * c.patch_shape[1]))),
        ("Only whole patches count: round down along height and width. config.tokens has done it.",
         lambda c: _total(c, tokens=1 - (-c.image_shape[0] // c.patch_shape[0]) * -(-c.image_shape[1] // c.patch_shape[1]))),
        ("There is a position a token, not a pixel.", lambda c: _total(c, tokens=1 + c.image_shape[0] * c.image_shape[1])),
        ("The image's channels are missing: a patch has config.num_channels of them.",
         lambda c: _total(c, pixels=0) + c.hidden_size * c.patch_shape[0] * c.patch_shape[1]),
        ("Not every image has three channels: config.num_channels.",
         lambda c: _total(c, pixels=0) + 3 * c.hidden_size * c.patch_shape[0] * c.patch_shape[1]),
        ("Not every ViT has 12 blocks: config.num_hidden_layers.", lambda c: _total(c, layers=12)),
        ("One block is counted: there are config.num_hidden_layers, each with its own weights.", lambda c: _total(c, layers=1)),
        ("The blocks are missing.", lambda c: _total(c, layers=0)),
        ("The classifier is one layer, hidden_size to num_labels, used on the class token alone.",
         more(lambda c: (c.tokens - 1) * c.num_labels * (c.hidden_size + 1))),
        ("The classifier's weight is the same wherever it is used: hidden_size * num_labels.",
         more(lambda c: (c.tokens - 1) * c.num_labels * c.hidden_size)),
        ("Not every ViT has 1000 labels: config.num_labels.",
         more(lambda c: (1000 - c.num_labels) * (c.hidden_size + 1))),
        ("The heads share out the width: together their weights are hidden_size * hidden_size, however many there are.",
         more(lambda c: (c.num_attention_heads - 1) * (_parts(c)["qkv weight"] + _parts(c)["qkv bias"]))),
        ("The heads share out the width: together their weights are hidden_size * hidden_size, however many there are.",
         more(lambda c: (c.num_attention_heads - 1) * sum(_parts(c)[n] for n in ("qkv weight", "qkv bias", "output weight",
                                                                                  "output bias")))),
        ("The MLP's width is config.intermediate_size, which need not be 4 * hidden_size.",
         lambda c: _total(replace(c, intermediate_size=4 * c.hidden_size))),
        ("The pooler is counted, and this ViT has none.", more(lambda c: c.hidden_size * (c.hidden_size + 1))),
        ("The final norm stands once, behind the last block.", more(lambda c: (c.num_hidden_layers - 1) * 2 * c.hidden_size)),
        ("These are the weights of the blocks alone.",
         lambda c: _total(c) - _total(c, layers=0)),
        *((f"Two things are missing. One: {a}. The other: {b}.", omitting(x, y))
          for (a, x), (b, y) in itertools.combinations(_OMITTED, 2)),
    ]  # fmt: skip
    verdict = judge_plain(
        function,
        "parameters",
        [(config,) for config in _configs()],
        reference,
        mistakes,
        "Print name and shape of every parameter of this very model, ViT(config).named_parameters(), and compare them with the "
        "terms of your sum, one by one.",
        "no block, one and several, with and without the bias of queries, keys and values, images and patches that are not "
        "square, a rest past the last patch, 1 to 3 channels; ViT-B/16 with 1000 labels, and others drawn at random",
        number,
    )
    return _shape_hint(verdict)


# ---- flops ------------------------------------------------------------------------------------------------------------------


def _products(
    config: ViTConfig, images: int, layers=None, rows=None, patches=None, pixels=None, linears=None, attention=None, classified=1
) -> int:
    """Multiply-adds of the matrix products of a forward pass; each keyword replaces one factor or one term."""
    h, f, t = config.hidden_size, config.intermediate_size, config.tokens
    layers = config.num_hidden_layers if layers is None else layers
    pixels = config.num_channels * config.patch_shape[0] * config.patch_shape[1] if pixels is None else pixels
    embedding = (t - 1 if patches is None else patches) * h * pixels
    in_linears = (t if rows is None else rows) * (4 * h * h + 2 * h * f if linears is None else linears)
    in_attention = 2 * t * t * h if attention is None else attention
    return images * (embedding + layers * (in_linears + in_attention) + classified * h * config.num_labels)


def flops(function: Callable) -> Verdict:
    """Lesson 13: `function(config, images)`, the FLOPs of the matrix products in a forward pass of `ViT(config)`.

    A multiply and an add are two operations. Norms, softmax, GELU and the adds of biases are not counted.
    """

    def reference(config, images):
        return 2 * _products(config, images)

    def changed(**changes):
        def mistake(config, images):
            found = {name: value(config) if callable(value) else value for name, value in changes.items()}
            return 2 * _products(config, images, **found)

        return mistake

    def linears(count):
        return changed(linears=lambda c: count(c.hidden_size, c.intermediate_size))

    def attention(count):
        return changed(attention=lambda c: count(c, c.tokens, c.hidden_size))

    square = "A patch need not be square: its height times its width, times the channels, is the length of its dot product."
    mistakes = [
        ("A multiply and an add are two operations: twice as many FLOPs as multiplications.", _products),
        ("A multiply and an add are two operations, not four: the factor 2 is in twice.",
         lambda c, i: 4 * _products(c, i)),
        ("That is for one image: every image goes through all of it.", lambda c, i: 2 * _products(c, 1)),
        ("That is in GFLOPs, a thousand million FLOPs each: return FLOPs.", lambda c, i: 2e-9 * _products(c, i)),
        ("Attention has two products: queries with keys, and the weights with values.", attention(lambda c, t, h: t * t * h)),
        ("Attention's products are missing: queries with keys, and the weights with values, in every block.",
         attention(lambda c, t, h: 0)),
        ("A head takes hidden_size / heads of the width: all heads together do 2 * tokens * tokens * hidden_size products.",
         attention(lambda c, t, h: 2 * t * t * h * c.num_attention_heads)),
        ("That is the attention of one head: there are config.num_attention_heads of them.",
         attention(lambda c, t, h: 2 * t * t * (h // c.num_attention_heads))),
        ("In attention every token meets every token: tokens * tokens.", attention(lambda c, t, h: 2 * t * h)),
        ("The class token takes part in attention: config.tokens of them, not the patches alone.",
         attention(lambda c, t, h: 2 * (t - 1) * (t - 1) * h)),
        ("Attention runs in every block: config.num_hidden_layers times.",
         lambda c, i: 2 * (_products(c, i, attention=0) + i * 2 * c.tokens**2 * c.hidden_size)),
        ("Tokens of one image do not meet those of another: images times tokens * tokens, not the square of all tokens.",
         lambda c, i: 2 * _products(c, i, attention=2 * i * c.tokens**2 * c.hidden_size)),
        ("The class token is not made of a patch: the patch embedding has config.tokens - 1 rows.",
         changed(patches=lambda c: c.tokens)),
        ("The class token goes through the blocks as well: their linear layers have config.tokens rows, one more than patches.",
         changed(rows=lambda c: c.tokens - 1)),
        ("The class token goes through the blocks too: config.tokens in linear layers and attention, one more than patches.",
         changed(rows=lambda c: c.tokens - 1, attention=lambda c: 2 * (c.tokens - 1) ** 2 * c.hidden_size)),
        ("The linear layers of the blocks work on every token: config.tokens rows.", changed(rows=1)),
        ("The patch embedding works on every patch: config.tokens - 1 rows.", changed(patches=1)),
        ("The patch embedding is a matrix product too: a row a patch.", changed(patches=0)),
        ("The classifier is a matrix product too: a row an image.", changed(classified=0)),
        ("The classifier works on the class token alone: one row an image, not one a token.",
         changed(classified=lambda c: c.tokens)),
        ("Patch embedding and classifier are matrix products too; only the blocks are counted.",
         changed(patches=0, classified=0)),
        ("Patch embedding and classifier are there once, not once a block.",
         lambda c, i: 2 * c.num_hidden_layers * _products(c, i, layers=1)),
        ("The qkv layer makes three rows of hidden_size numbers, queries, keys and values: 3 * hidden_size * hidden_size.",
         linears(lambda h, f: 2 * h * h + 2 * h * f)),
        ("Four matrices of hidden_size * hidden_size are in the attention: queries, keys, values, and its output layer.",
         linears(lambda h, f: 3 * h * h + 2 * h * f)),
        ("Queries, keys, values and the attention's output layer each multiply with a matrix: all four are missing.",
         linears(lambda h, f: 2 * h * f)),
        ("The MLP has two layers, there and back: 2 * hidden_size * intermediate_size.", linears(lambda h, f: 4 * h * h + h * f)),
        ("The MLP is missing: 2 * hidden_size * intermediate_size multiplications a token.", linears(lambda h, f: 4 * h * h)),
        ("The MLP's width is config.intermediate_size, which need not be 4 * hidden_size.", linears(lambda h, f: 12 * h * h)),
        ("Linear layers of the blocks are missing; only attention's two products are counted in them.", linears(lambda h, f: 0)),
        ("Not every ViT has 12 blocks: config.num_hidden_layers.", changed(layers=12)),
        ("One block is counted: there are config.num_hidden_layers.", changed(layers=1)),
        ("The blocks are missing.", changed(layers=0)),
        (square, changed(pixels=lambda c: c.num_channels * c.patch_shape[0] ** 2)),
        (square, changed(pixels=lambda c: c.num_channels * c.patch_shape[1] ** 2)),
        ("The channels are missing: a patch has config.num_channels * height * width numbers.",
         changed(pixels=lambda c: c.patch_shape[0] * c.patch_shape[1])),
        ("Not every image has three channels: config.num_channels.",
         changed(pixels=lambda c: 3 * c.patch_shape[0] * c.patch_shape[1])),
        ("Every number of a patch is multiplied for each of hidden_size outputs: num_channels * height * width of them.",
         changed(pixels=1)),
        ("Only whole patches are embedded: config.tokens - 1 of them, and the rest of the image is left out.",
         lambda c, i: 2 * (_products(c, i, patches=0) + i * c.hidden_size * c.num_channels * math.prod(c.image_shape))),
        ("Adds of biases are not counted here, only matrix products.",
         lambda c, i: 2 * _products(c, i) + i * _bias_adds(c, qkv=1)),
        ("Adds of biases are not counted here, only matrix products.",
         lambda c, i: 2 * _products(c, i) + i * _bias_adds(c, qkv=c.qkv_bias)),
        ("Two operations for each learned number and token is a rule of thumb: it leaves attention's two products out, and "
         "counts numbers that only one token or none is multiplied by.",
         lambda c, i: 2 * i * c.tokens * _total(c)),
    ]  # fmt: skip
    generator = np.random.default_rng()
    configs = _configs()
    counts = [1, 2, 3, 1, 5, 1, *(int(n) for n in generator.integers(2, 300, len(configs)))]
    cases = [*zip(configs, counts), (configs[5], 256)]
    verdict = judge_plain(
        function,
        "flops",
        cases,
        reference,
        mistakes,
        "Write each product down as rows * inputs * outputs: the embedding, the four matrices of attention, its two products, "
        "the MLP's two, and the classifier. Then look at this case: which of them differ from your sum?",
        "no block, one and several, images and patches that are not square, a rest past the last patch, 1 to 3 channels, one "
        "image and several; ViT-B/16 with 1000 labels on 1 and on 256 images, and others drawn at random",
        number,
    )
    return _shape_hint(verdict)


def _bias_adds(config: ViTConfig, qkv: int) -> int:
    """The adds of biases in a forward pass of one image."""
    h, f, t = config.hidden_size, config.intermediate_size, config.tokens
    return (t - 1) * h + config.num_hidden_layers * t * (3 * h * qkv + h + f + h) + config.num_labels


# ---- Functions on tensors that have no kernel of the reader -------------------------------------------------------------------


@dataclass
class _Task:
    """What the judging below needs to know.

    cases: what the verdict calls each of them, and its arguments by name, the smallest first.
    reference, mistakes: called with the arguments, tensors in float64. A mistake is a hint and a function that makes it.
    roundings: how many units of float32's rounding of the largest result are allowed, beyond twice PyTorch's own error.
    shape: the hint for a wrong shape that no mistake explains. raised: the hint for what the function raised, or "".
    place: what the verdict says of where a result is wrong, from an array that is True there.
    """

    cases: list[tuple[str, dict[str, Any]]]
    reference: Callable
    mistakes: list[tuple[str, Callable]]
    fallback: str
    tried: str
    roundings: int
    shape: str
    raised: Callable[[BaseException], str]
    place: Callable[[np.ndarray, dict[str, Any]], str]


def _map(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of an argument, its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _map(one, change) for name, one in value.items()}
    return copy.deepcopy(value)


def _changed(name: str, before: Any, after: Any) -> str:
    """The name of what differs between an argument as it was given and as it was left; "" where nothing does."""
    if isinstance(before, dict):
        if list(before) != list(after):
            return name
        return next(filter(None, (_changed(f"{name}[{key!r}]", before[key], after[key]) for key in before)), "")
    same = torch.equal(before, after.cpu()) if isinstance(before, torch.Tensor) else before == after
    return "" if same else name


def _judge(function: Callable, task: _Task) -> Verdict:
    """Judge a function on tensors where kernels run: launches of this package's own kernels cannot be recorded on a GPU."""
    if function is None or function is ...:
        return NOT_ATTEMPTED
    if not callable(function):
        return NO_FUNCTION
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for index, (label, arguments) in enumerate(task.cases):
            try:
                _try(function, task, arguments, first=index == 0)
            except NotAttempted:
                return NOT_ATTEMPTED
            except Wrong as wrong:
                return Verdict("wrong", f"Smallest failing case: {label}.\n{wrong.message}", wrong.hint)
    finally:
        torch.set_float32_matmul_precision(precision)
    return Verdict("right", f"Tried: {task.tried}.")


def _try(function: Callable, task: _Task, arguments: dict[str, Any], first: bool) -> None:
    """Try one case; raises Wrong or NotAttempted."""
    device = runtime.DEVICE
    given = _map(arguments, lambda tensor: tensor.clone().to(device))
    try:
        # The first calls on a GPU compile kernels.
        with tracing.time_limit(judging.SECONDS if device.type == "cpu" else 10 * judging.SECONDS):
            result = function(*given.values())
    except (Exception, SystemExit) as error:
        raise _answer_to(error, first, device.type, task.raised(error)) from None
    if first and (result is None or result is ...) and judging.is_stub(function):
        raise NotAttempted

    for name, before in arguments.items():
        if left := _changed(name, before, given[name]):
            raise Wrong(
                f"Your function changed its argument {left}.",
                "Something works in place, on an argument or on a view of it: write a = a + b, not a += b, or copy it first.",
            )
    if result is None or result is ...:
        raise Wrong("Your function returned None.", "Something was computed and not handed back: end with a return.")
    if not isinstance(result, torch.Tensor):
        raise Wrong(f"Your function returned a {type(result).__name__}.", "Return one tensor.")
    doubles = [_map(value, lambda tensor: tensor.double()) for value in arguments.values()]
    truth = task.reference(*doubles)
    own = float((task.reference(*arguments.values()).double() - truth).abs().max())
    tolerance = 2 * own + task.roundings * torch.finfo(torch.float32).eps * float(truth.abs().max())
    answer = result.detach().double().cpu()
    if result.device.type != device.type:
        raise Wrong(
            f"The result is on another device ({result.device.type}) than the arguments ({device.type}).",
            "Make new tensors where the given ones are: device=x.device.",
        )
    if answer.shape == truth.shape and result.dtype != torch.float32:
        raise Wrong(
            f"The result has the wrong type: {type_name(result.dtype)}, and float32 was expected.",
            "It has the type of the tensors that are given: where does another come in?",
        )
    if _close(answer, truth, tolerance):
        return
    if answer.shape != truth.shape:
        message = f"The result has shape {tuple(answer.shape)}, and {tuple(truth.shape)} was expected."
    else:
        wrong = ~((answer - truth).abs() <= tolerance).numpy()
        message = task.place(wrong, arguments)
    for hint, mistake in task.mistakes:
        try:
            other = mistake(*doubles)
        except (RuntimeError, IndexError, KeyError, ValueError):
            continue  # this mistake cannot be made here
        if _close(answer, other, 2 * tolerance) and not _close(truth, other, tolerance):
            raise Wrong(message, hint)
    if answer.shape != truth.shape:
        raise Wrong(message, task.shape)
    if _close(answer, truth, 4e-3 * float(truth.abs().max())):
        # Which element is beyond the tolerance first is a matter of luck.
        raise Wrong(
            "Elements are wrong by more than float32's own rounding.",
            "Only about three digits are right: something is computed or stored in float16 on the way.",
        )
    if not answer.isfinite().all():
        raise Wrong(message, "The result holds NaN or infinity that no argument has: is something read that was never written?")
    raise Wrong(message, task.fallback)


def _close(answer: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return answer.shape == other.shape and bool(((answer - other).abs() <= tolerance).all())


# ---- vit --------------------------------------------------------------------------------------------------------------------


def _block(x, w, config, added=(True, True), behind=False, activation=F.gelu, scale=None, order=(0, 1, 2)):
    """One layer of the encoder in PyTorch; each keyword makes a mistake."""
    h, eps = config.hidden_size, config.layer_norm_eps

    def norm(x, name):
        return F.layer_norm(x, (h,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def attention(x):
        packed = F.linear(x, w["attention.qkv.weight"], w["attention.qkv.bias"])
        parts = packed.unflatten(-1, (3, config.num_attention_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = (parts[i] for i in order)
        y = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
        return F.linear(y, w["attention.output.weight"], w["attention.output.bias"])

    def mlp(x):
        x = activation(F.linear(x, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
        return F.linear(x, w["mlp.fc2.weight"], w["mlp.fc2.bias"])

    for part, name, add in ((attention, "norm1", added[0]), (mlp, "norm2", added[1])):
        y = part(x) if behind else part(norm(x, name))
        x = x + y if add else y
        x = norm(x, name) if behind else x
    return x


def _forward(
    pixel_values, weights, config, chosen=None, weights_of=None, norm=True, final_eps=None, head=None, block=_block, **changes
):
    """The logits of `ViT(config)` in PyTorch. chosen: which layers run; head: from the last hidden state to the result."""

    def own(layer):
        prefix = f"blocks.{layer}."
        return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}

    h = config.hidden_size
    x = F.conv2d(pixel_values, weights["patch_embedding.weight"], weights["patch_embedding.bias"], stride=config.patch_shape)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([weights["class_token"].expand(len(x), 1, h), x], 1) + weights["position_embedding"]
    for layer in range(config.num_hidden_layers) if chosen is None else chosen(config.num_hidden_layers):
        x = block(x, (weights_of or own)(layer), config, **changes)
    if norm:
        eps = config.layer_norm_eps if final_eps is None else final_eps
        x = F.layer_norm(x, (h,), weights["norm.weight"], weights["norm.bias"], eps)
    if head is not None:
        return head(x, weights)
    return F.linear(x[:, 0], weights["classifier.weight"], weights["classifier.bias"])


def _classified(x, weights):
    return F.linear(x, weights["classifier.weight"], weights["classifier.bias"])


def _with_prefix(first: bool) -> Callable:
    """A mistake: layer i gets what begins with "blocks.i", also of layers 10 and more; the first or the last of its names."""

    def mistake(pixel_values, weights, config):
        def weights_of(layer):
            items = [(name, w) for name, w in weights.items() if name.startswith(f"blocks.{layer}")]
            return {name.split(".", 2)[-1]: w for name, w in (items[::-1] if first else items)}

        return _forward(pixel_values, weights, config, weights_of=weights_of)

    return mistake


def _vit_mistakes() -> list[tuple[str, Callable]]:
    def changed(**changes):
        return lambda pixel_values, weights, config: _forward(pixel_values, weights, config, **changes)

    def zero(*names):
        return lambda pixel_values, weights, config: _forward(
            pixel_values, {name: 0 * w if name in names else w for name, w in weights.items()}, config
        )

    def with_config(**changes):
        return lambda pixel_values, weights, config: _forward(pixel_values, weights, replace(config, **changes))

    def renamed(old, new):
        """Names that begin a layer's parameters, exchanged."""

        def mistake(pixel_values, weights, config):
            swap = {old: new, new: old}
            names = {name: ".".join(swap.get(part, part) for part in name.split(".")) for name in weights}
            return _forward(pixel_values, {name: weights[names[name]] for name in weights}, config)

        return mistake

    prefix = (
        "Which names start with blocks.1? Print those that of(...) finds for layer 1 in a model of more than ten layers, and see "
        "which of two that end alike is kept."
    )
    eps = "The norms' eps is the configuration's, config.layer_norm_eps, not a fixed number: in the blocks and in the final norm."
    final = "The final norm's eps is the configuration's as well: layer_norm's own default is another."
    missing = "A block is left out: they are numbered from 0 to config.num_hidden_layers - 1, and all of them run."
    return [
        (prefix, _with_prefix(first=False)),
        (prefix, _with_prefix(first=True)),
        ("The blocks run in reverse order: layer 0 comes first.", changed(chosen=lambda n: range(n)[::-1])),
        ("From layer 10 on nothing runs: config.num_hidden_layers says how many there are.",
         changed(chosen=lambda n: range(min(n, 10)))),
        ("No block runs: does the loop go over range(config.num_hidden_layers)?", changed(chosen=lambda n: [])),
        (missing, changed(chosen=lambda n: range(n - 1))),
        (missing, changed(chosen=lambda n: range(1, n))),
        ("A block runs once too often.", changed(chosen=lambda n: [*range(n), n - 1])),
        ("Every layer gets the first block's weights: the name of a layer's weights has its number.",
         changed(chosen=lambda n: [0] * n)),
        ("Every layer gets the last block's weights: the name of a layer's weights has its number.",
         changed(chosen=lambda n: [n - 1] * n)),
        ("A layer gets the weights of the one before it: layer number i takes those of blocks.i.",
         changed(chosen=lambda n: [max(0, i - 1) for i in range(n)])),
        ("A layer gets the weights of the one after it: layer number i takes those of blocks.i.",
         changed(chosen=lambda n: [min(n - 1, i + 1) for i in range(n)])),
        ("From layer 10 on a layer gets another one's weights: a layer's number may have two digits.",
         changed(chosen=lambda n: [i if i < 10 else int(str(i)[0]) for i in range(n)])),
        ("From layer 10 on a layer gets another one's weights: a layer's number may have two digits.",
         changed(chosen=lambda n: [i % 10 for i in range(n)])),
        ("The layers run in the order of their names as text, where blocks.10 comes before blocks.2: take them by number.",
         changed(chosen=lambda n: sorted(range(n), key=str))),
        ("The final norm is left out: it stands behind the last block, before the classifier.", changed(norm=False)),
        *((eps, with_config(layer_norm_eps=fixed)) for fixed in (1e-12, 1e-6, 1e-5, 0.0, 1e-2)),
        *((final, changed(final_eps=fixed)) for fixed in (1e-12, 1e-6, 1e-5, 0.0)),
        ("The position embeddings are not added: patch_embed takes them as position_embedding.", zero("position_embedding")),
        ("The class token is left at zero: patch_embed takes it as class_token.", zero("class_token")),
        ("The patch embedding's bias is left out.", zero("patch_embedding.bias")),
        ("The classifier's bias is left out.", zero("classifier.bias")),
        ("The final norm's bias is left out.", zero("norm.bias")),
        ("The final norm has a weight and a bias of its own: norm.weight and norm.bias.",
         lambda x, w, c: _forward(x, w | {"norm.weight": 1 + 0 * w["norm.weight"], "norm.bias": 0 * w["norm.bias"]}, c)),
        ("The classifier takes the class token alone, token 0, not the mean of all tokens.",
         changed(head=lambda x, w: _classified(x.mean(1), w))),
        ("The classifier takes the class token alone, token 0, not the mean of the patches.",
         changed(head=lambda x, w: _classified(x[:, 1:].mean(1), w))),
        ("The classifier takes the class token, which is the first one, not the last.",
         changed(head=lambda x, w: _classified(x[:, -1], w))),
        ("The classifier takes the class token, token 0: token 1 is the first patch.",
         changed(head=lambda x, w: _classified(x[:, 1], w))),
        ("The classifier takes the class token alone, token 0, not every token.", changed(head=_classified)),
        ("The classifier takes every image's class token: x[:, 0], not x[0].", changed(head=lambda x, w: _classified(x[0], w))),
        ("The result has a dimension too many: x[:, 0] drops the tokens, x[:, :1] keeps them.",
         changed(head=lambda x, w: _classified(x[:, :1], w))),
        ("The classifier is left out: the last step is a linear layer on the class token.", changed(head=lambda x, w: x[:, 0])),
        ("The classifier is left out: the last step is a linear layer on the class token.", changed(head=lambda x, w: x)),
        ("These are probabilities: return the logits, without a softmax.",
         changed(head=lambda x, w: _classified(x[:, 0], w).softmax(-1))),
        ("These are labels: return the logits, one for each label.",
         changed(head=lambda x, w: _classified(x[:, 0], w).argmax(-1).double())),
        ("The norms stand before attention and MLP, inside the residual: x + f(norm(x)), not norm(x + f(x)).",
         changed(behind=True)),
        ("The residual around attention is missing: x is added to what its output layer gives.", changed(added=(False, True))),
        ("The residual around the MLP is missing: x is added to what its second layer gives.", changed(added=(True, False))),
        ("Both residuals are missing: x is added to what attention gives, and to what the MLP gives.",
         changed(added=(False, False))),
        ("norm1 and norm2 are exchanged: norm1 stands before attention, norm2 before the MLP.", renamed("norm1", "norm2")),
        ("The heads' number is config.num_attention_heads: here the whole width is one head.",
         with_config(num_attention_heads=1)),
        ("Queries and keys are exchanged: the packed rows hold queries, keys, values, in this order.", changed(order=(1, 0, 2))),
        ("Keys and values are exchanged: the packed rows hold queries, keys, values, in this order.", changed(order=(0, 2, 1))),
        ("The scores are not scaled: they are divided by the square root of a head's size.", changed(scale=1.0)),
        ("The GELU is the exact one, with erf: activation=\"gelu\", not its tanh form.",
         changed(activation=lambda x: F.gelu(x, approximate="tanh"))),
        ("The activation is GELU, not ReLU.", changed(activation=F.relu)),
        ("The activation between the MLP's two layers is left out.", changed(activation=lambda x: x)),
    ]  # fmt: skip


# layers, width, heads, images, channels, image, patch, eps. The norms' eps shows in the first.
_MODELS = (
    (1, 16, 2, 2, 3, (4, 6), 2, 1e-2),
    (2, 16, 4, 2, 1, (6, 4), 2, 1e-12),
    (3, 24, 3, 1, 3, (4, 6), (2, 3), 1e-2),
    (10, 16, 2, 1, 1, (4, 6), 2, 1e-12),
    (11, 16, 2, 1, 3, (4, 6), 2, 1e-2),
    (12, 16, 4, 1, 1, (4, 6), 2, 1e-12),
)


def _weights(config: ViTConfig) -> dict[str, torch.Tensor]:
    """Random weights for `ViT(config)`, by name: every one away from zero, and scores of attention that differ."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ViT(config).state_dict().items()}
    found = {}
    for name, shape in shapes.items():
        if "norm" in name and name.endswith("weight"):
            found[name] = torch.rand(shape) + 0.5
        elif name.endswith("bias"):
            found[name] = draw(shape, torch.float32, 0.3)
        elif len(shape) > 1 and name.endswith("weight"):
            found[name] = draw(shape, torch.float32, 1.0 / shape[1:].numel() ** 0.5)
        else:
            found[name] = draw(shape, torch.float32)
    return found


def vit(function: Callable) -> Verdict:
    """Lesson 13: `function(pixel_values, weights, config)`, the logits of `ViT(config)` with these weights.

    weights: a tensor for each name of `ViT(config).state_dict()`. Kernels in float32, GELU, a bias on the qkv layer.
    """
    cases = []
    for layers, width, heads, images, channels, image, patch, eps in _MODELS:
        config = ViTConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=width + 8,
            layer_norm_eps=eps, image_size=image, patch_size=patch, num_channels=channels, id2label=dict.fromkeys(range(5)),
        )  # fmt: skip
        weights = _weights(config)
        label = f"{layers} layer{'s' * (layers != 1)} of width {width}, {heads} heads, "
        label += f"{images} image{'s' * (images != 1)} of {channels} x {image[0]} x {image[1]} in patches of "
        label += f"{config.patch_shape[0]} x {config.patch_shape[1]}, eps {eps:g}"
        if layers == 12:
            # A checkpoint's file need not have the order of the modules.
            weights = dict(reversed(weights.items()))
            label += ", the names of the weights in reverse order"
        pixel_values = draw((images, channels, *image), torch.float32)
        cases.append((label, {"pixel_values": pixel_values, "weights": weights, "config": config}))
    named = "There is no such name: print those that the dictionary has, list(w), beside the one asked for."
    task = _Task(
        cases,
        _forward,
        _vit_mistakes(),
        "Compare it with ViT(config) layer by layer: load the weights into one, and print the largest difference after the "
        "embedding, after each block, after the norm, and of the logits. Where does it begin?",
        "models of 1, 2, 3, 10, 11 and 12 layers of width 16 and 24, with 2 to 4 heads, images that are not square with 1 and 3 "
        "channels, eps 1e-12 and 0.01, names in the order of the modules and in reverse, against float64",
        roundings=32,
        shape="The logits are (images, config.num_labels): a row an image, from its class token alone.",
        raised=lambda error: named if isinstance(error, KeyError) else "",
        # Not of an element: a small mistake may leave one within the tolerance by chance, and hardly a whole row.
        place=lambda wrong, arguments: f"First wrong row: the logits of image {int(np.argwhere(wrong)[0][0])} of {len(wrong)}.",
    )
    return _judge(function, task)


# ---- resize_positions -------------------------------------------------------------------------------------------------------


def _resized(positions, grid, new_grid, exchanged=False, size=None, back=None, joined=None, resize=None):
    """Position embeddings for another grid of patches; each keyword makes a mistake."""
    first, patches = positions[:, :1], positions[:, 1:]
    image = patches.unflatten(1, grid[::-1] if exchanged else grid).permute(0, 3, 1, 2)
    size = new_grid if size is None else size(new_grid)
    image = (resize or _bicubic)(image, size)
    rows = image.flatten(2).transpose(1, 2) if back is None else back(image)
    return torch.cat([first, rows], 1) if joined is None else joined(first, rows)


def _bicubic(image, size, **changes):
    return F.interpolate(image, size=size, **{"mode": "bicubic", "align_corners": False, **changes})


def _resize_mistakes() -> list[tuple[str, Callable]]:
    def changed(**changes):
        return lambda positions, grid, new_grid: _resized(positions, grid, new_grid, **changes)

    def resized(**options):
        return changed(resize=lambda image, size: _bicubic(image, size, **options))

    def misread(back):
        """(tokens, hidden) taken for (hidden, rows, columns)."""

        def mistake(positions, grid, new_grid):
            image = positions[:, 1:].reshape(1, positions.shape[2], *grid)
            image = _bicubic(image, new_grid)
            return torch.cat([positions[:, :1], back(image)], 1)

        return mistake

    def as_sequence(mode, tokens):
        def mistake(positions, grid, new_grid):
            rows = positions if tokens else positions[:, 1:]
            size = new_grid[0] * new_grid[1] + tokens
            rows = F.interpolate(rows.transpose(1, 2), size=size, mode=mode).transpose(1, 2)
            return rows if tokens else torch.cat([positions[:, :1], rows], 1)

        return mistake

    def by_scale(more):
        def mistake(positions, grid, new_grid):
            scale = [(new + more) / old for new, old in zip(new_grid, grid)]
            image = positions[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)
            image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
            return torch.cat([positions[:, :1], image.flatten(2).transpose(1, 2)], 1)

        return mistake

    def from_last(positions, grid, new_grid):
        patches_first = _resized(positions.roll(1, 1), grid, new_grid)
        return torch.cat([patches_first[:, 1:], patches_first[:, :1]], 1)

    def cut(positions, grid, new_grid):
        count = 1 + new_grid[0] * new_grid[1]
        return F.pad(positions, (0, 0, 0, max(0, count - positions.shape[1])))[:, :count]

    def crossed(positions, grid, new_grid):
        image = positions[:, 1:].unflatten(1, grid).permute(0, 3, 2, 1)
        return torch.cat([positions[:, :1], _bicubic(image, new_grid).flatten(2).transpose(1, 2)], 1)

    exchanged = "Rows and columns are exchanged: a grid is (rows, columns), and patches are numbered row by row."
    read = (
        "The hidden dimension varies fastest in positions: unflatten the patches to (rows, columns, hidden), then permute; a "
        "reshape to (hidden, rows, columns) mixes the numbers of different patches."
    )
    written = "On the way back the hidden dimension becomes the last again: flatten rows and columns, then transpose."
    last = "The class token's row is the first, in what is given and in what is returned."
    flat = "Patches lie in rows and columns, and neighbours in both matter: resize the grid, not the list of tokens."
    kept = "The class token belongs to no place in the image: its row is kept as it is, and is not part of the grid."
    return [
        ("Nothing is resized: the grid of patches becomes one of new_grid.", lambda positions, grid, new_grid: positions),
        ("The rows are cut off, or filled with zeros: resize the grid of patches to new_grid.", cut),
        ("The class token's row is dropped: it comes first in the result.", changed(joined=lambda first, rows: rows)),
        (last, changed(joined=lambda first, rows: torch.cat([rows, first], 1))),
        (last, from_last),
        (last, lambda positions, grid, new_grid: _resized(positions.roll(1, 1), grid, new_grid)),
        ("The class token's row has become zeros: it is kept as it is.",
         changed(joined=lambda first, rows: torch.cat([0 * first, rows], 1))),
        ("The class token's row comes twice.", changed(joined=lambda first, rows: torch.cat([first, first, rows], 1))),
        (kept, changed(joined=lambda first, rows: torch.cat([rows.mean(1, keepdim=True), rows], 1))),
        *((flat, as_sequence(mode, 0)) for mode in ("linear", "nearest")),
        *((f"{kept} And {flat[0].lower()}{flat[1:]}", as_sequence(mode, 1)) for mode in ("linear", "nearest")),
        (read, misread(lambda image: image.flatten(2).transpose(1, 2))),
        (read, misread(lambda image: image.reshape(1, -1, image.shape[1]))),
        (written, changed(back=lambda image: image.reshape(1, -1, image.shape[1]))),
        ("On the way back the patches come column by column: they are numbered row by row.",
         changed(back=lambda image: image.transpose(2, 3).flatten(2).transpose(1, 2))),
        (exchanged, changed(exchanged=True)),
        (exchanged, changed(size=lambda size: size[::-1])),
        (exchanged, changed(exchanged=True, size=lambda size: size[::-1])),
        (exchanged, crossed),
        (exchanged, changed(exchanged=True, size=lambda size: size[::-1], back=lambda image: image.mT.flatten(2).mT)),
        ("The new grid may have another number of columns than of rows: size=new_grid.",
         changed(size=lambda size: (size[0],) * 2)),
        ("The new grid may have another number of rows than of columns: size=new_grid.",
         changed(size=lambda size: (size[1],) * 2)),
        ("The result has its last two dimensions exchanged: (1, tokens, hidden).",
         lambda *case: _resized(*case).transpose(1, 2)),
        ("The first dimension of size 1 is dropped: (1, tokens, hidden), for a batch of any size.",
         lambda *case: _resized(*case)[0]),
        ("The interpolation is bilinear: Hugging Face's is bicubic.", resized(mode="bilinear")),
        ("The interpolation is bilinear, and corners are aligned: it is bicubic, with align_corners=False.",
         resized(mode="bilinear", align_corners=True)),
        ("The interpolation takes the nearest patch: Hugging Face's is bicubic, and interpolate's default mode is another.",
         changed(resize=lambda image, size: F.interpolate(image, size=size))),
        ("The interpolation takes the nearest patch: Hugging Face's is bicubic.",
         changed(resize=lambda image, size: F.interpolate(image, size=size, mode="nearest-exact"))),
        ("The interpolation takes means over areas: Hugging Face's is bicubic.",
         changed(resize=lambda image, size: F.interpolate(image, size=size, mode="area"))),
        ("The corners' centres are aligned: with align_corners=False it is the grid's edges that stay where they are.",
         resized(align_corners=True)),
        ("With antialias the weights are others, and a smaller grid is smoothed first: Hugging Face resizes without it.",
         resized(antialias=True)),
        ("Hugging Face resizes without antialias, and bicubically, not bilinearly.",
         resized(mode="bilinear", antialias=True)),
        ("The scale is not the quotient of the two grids: give interpolate size=new_grid.", by_scale(0.1)),
        ("A scale can give one row or column fewer than asked for: give interpolate size=new_grid.", by_scale(0.0)),
    ]  # fmt: skip


# hidden, grid, new grid. In the first nothing is to be resized; in the others more and more shows.
_GRIDS = (
    (4, (2, 3), (2, 3)),
    (3, (2, 2), (4, 4)),
    (3, (4, 4), (2, 2)),
    (4, (2, 4), (4, 2)),
    (4, (1, 5), (1, 3)),
    (4, (3, 1), (5, 2)),
    (5, (3, 5), (7, 4)),
    (8, (14, 14), (24, 24)),
)


def resize_positions(function: Callable) -> Verdict:
    """Lesson 13: `function(positions, grid, new_grid)`, position embeddings for another number of patches.

    positions: (1, 1 + rows * columns, hidden), the class token's row first; grid: (rows, columns). Returns
    (1, 1 + new rows * new columns, hidden): the class token's row as it is, the others resized bicubically as a grid.
    """
    cases = []
    for hidden, grid, new_grid in _GRIDS:
        positions = draw((1, 1 + grid[0] * grid[1], hidden), torch.float32)
        label = f"{grid[0]} x {grid[1]} patches to {new_grid[0]} x {new_grid[1]}, {hidden} numbers each"
        cases.append((label, {"positions": positions, "grid": grid, "new_grid": new_grid}))

    def place(wrong, arguments):
        token = int(np.argwhere(wrong)[0][1])
        row, column = divmod(token - 1, arguments["new_grid"][1])
        whose = f"of the patch in row {row}, column {column}" if token else "in the class token's row"
        return f"First wrong element: {index_text(wrong)}, {whose}."

    def raised(error):
        if not isinstance(error, RuntimeError) or "device" in str(error):
            return ""
        return (
            "Compare the shapes in the message: positions has 1 + rows * columns rows, of which the first is the class token's, "
            "and a grid need not be square."
        )

    task = _Task(
        cases,
        _resized,
        _resize_mistakes(),
        "Take this case with positions that hold the patch's row in all their numbers, then its column: you see where each goes.",
        "the same grid, larger and smaller ones, wide to high, a single row and a single column, ViT-B/16's 14 x 14 to 24 x 24; "
        "positions unchanged",
        roundings=32,
        shape="There is a row for the class token and one for each patch of the new grid: 1 + new rows * new columns of them.",
        raised=raised,
        place=place,
    )
    return _judge(function, task)
