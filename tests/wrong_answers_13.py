"""Answers to the exercises of lesson 13: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import re
from dataclasses import replace

import torch
import torch.nn.functional as F

from vitcourse import bench, kernels
from vitcourse.vit import ViT


def _raises(*arguments):
    return 1 / 0


# ---- parameters -------------------------------------------------------------------------------------------------------------


def parameters(config):
    h, f = config.hidden_size, config.intermediate_size
    height, width = config.patch_shape
    embedding = h * (config.num_channels * height * width + 1) + h + config.tokens * h
    attention = 3 * h * h + (3 * h if config.qkv_bias else 0) + h * h + h
    mlp = h * f + f + f * h + h
    block = 2 * 2 * h + attention + mlp
    return embedding + config.num_hidden_layers * block + 2 * h + config.num_labels * (h + 1)


def parameters_by_layers(config):
    def linear(inputs, outputs, bias=True):
        return (inputs + bias) * outputs

    h = config.hidden_size
    (height, width), (down, across) = config.patch_shape, config.image_shape
    total = linear(config.num_channels * height * width, h)
    total += h * (2 + (down // height) * (across // width))
    for _ in range(config.num_hidden_layers):
        total += linear(h, 3 * h, config.qkv_bias) + linear(h, h) + 4 * h
        total += linear(h, config.intermediate_size) + linear(config.intermediate_size, h)
    return float(total + 2 * h + linear(h, config.num_labels))


def parameters_by_name(config, **options):
    with torch.device("meta"):
        return sum(one.numel() for name, one in ViT(config, **options).named_parameters())


def counted(
    patch=None, patch_bias=1, class_token=1, tokens=None, qkv=3, qkv_bias=None, output=1, output_bias=1, norms=4, fc1=1, fc2=1,
    fc1_bias=1, fc2_bias=1, layers=None, final=2, classifier=1, classifier_bias=1, heads=1, more=None,
):  # fmt: skip
    """The number of parameters with one of its factors replaced."""

    def function(config):
        h, f = config.hidden_size, config.intermediate_size
        pixels = patch(config) if patch else config.num_channels * config.patch_shape[0] * config.patch_shape[1]
        positions = tokens(config) if tokens else config.tokens
        embedding = h * pixels + patch_bias * h + class_token * h + positions * h
        biases = (3 if config.qkv_bias else 0) if qkv_bias is None else qkv_bias(config)
        many = config.num_attention_heads if heads == "all" else 1
        attention = (qkv * h * h + biases * h) * many + output * h * h + output_bias * h
        mlp = fc1 * h * f + fc1_bias * f + fc2 * f * h + fc2_bias * h
        block = norms * h + attention + mlp
        count = config.num_hidden_layers if layers is None else layers
        ends = final * h + classifier * config.num_labels * h + classifier_bias * config.num_labels
        return embedding + count * block + ends + (more(config) if more else 0)

    return function


def parameters_that_change_the_config(config):
    found = parameters(config) - config.hidden_size
    config.hidden_size = config.num_hidden_layers = 1
    return found


# ---- flops ------------------------------------------------------------------------------------------------------------------


def flops(config, images):
    h, f, t = config.hidden_size, config.intermediate_size, config.tokens
    height, width = config.patch_shape
    embedding = (t - 1) * h * config.num_channels * height * width
    linears = t * (4 * h * h + 2 * h * f)
    attention = 2 * t * t * h
    classifier = h * config.num_labels
    return 2 * images * (embedding + config.num_hidden_layers * (linears + attention) + classifier)


def flops_by_products(config, images):
    def product(rows, inputs, outputs):
        return 2.0 * images * rows * inputs * outputs

    h, f, t, heads = config.hidden_size, config.intermediate_size, config.tokens, config.num_attention_heads
    total = product(t - 1, config.num_channels * config.patch_shape[0] * config.patch_shape[1], h) + product(
        1, h, config.num_labels
    )
    for _ in range(config.num_hidden_layers):
        total += product(t, h, 3 * h) + product(t, h, h) + product(t, h, f) + product(t, f, h)
        total += heads * (product(t, h // heads, t) + product(t, t, h // heads))
    return total


def multiplied(
    factor=2, images_of=lambda n: n, rows=lambda t: t, patches=lambda t: t - 1, patch=None, squares=4, mlp=2, width=None,
    attention=lambda t, h, heads: 2 * t * t * h, layers=None, embedded=1, classified=1, more=None,
):  # fmt: skip
    """The FLOPs with one of their factors replaced."""

    def function(config, images):
        h, t = config.hidden_size, config.tokens
        f = width(h) if width else config.intermediate_size
        pixels = patch(config) if patch else config.num_channels * config.patch_shape[0] * config.patch_shape[1]
        linears = rows(t) * (squares * h * h + mlp * h * f)
        blocks = (config.num_hidden_layers if layers is None else layers) * (
            linears + attention(t, h, config.num_attention_heads)
        )
        heads = classified(t) if callable(classified) else classified
        total = embedded * patches(t) * h * pixels + blocks + heads * h * config.num_labels
        return factor * images_of(images) * total + (more(config, images) if more else 0)

    return function


def attention_of_the_batch(config, images):
    h, f, t = config.hidden_size, config.intermediate_size, config.tokens * images
    embedding = (t - images) * h * config.num_channels * config.patch_shape[0] * config.patch_shape[1]
    block = t * (4 * h * h + 2 * h * f) + 2 * t * t * h
    return 2 * (embedding + config.num_hidden_layers * block + images * h * config.num_labels)


def flops_with_biases(config, images):
    h, f, t = config.hidden_size, config.intermediate_size, config.tokens
    block = t * (3 * h * config.qkv_bias + h + f + h)
    return flops(config, images) + images * ((t - 1) * h + config.num_hidden_layers * block + config.num_labels)


# ---- vit --------------------------------------------------------------------------------------------------------------------


def block(x, w, config):
    h, eps = config.hidden_size, config.layer_norm_eps
    y = kernels.layer_norm(x, (h,), w["norm1.weight"], w["norm1.bias"], eps)
    packed = kernels.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"])
    q, k, v = packed.unflatten(-1, (3, config.num_attention_heads, -1)).permute(2, 0, 3, 1, 4)
    y = kernels.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = kernels.linear(y, w["attention.output.weight"], w["attention.output.bias"], residual=x)
    y = kernels.layer_norm(x, (h,), w["norm2.weight"], w["norm2.bias"], eps)
    y = kernels.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"], activation="gelu")
    return kernels.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"], residual=x)


def buggy_vit(pixel_values, weights, config):
    def of(prefix):
        return {name.split(".", 2)[-1]: w for name, w in weights.items() if name.startswith(prefix)}

    patches, h, eps = of("patch_embedding"), config.hidden_size, config.layer_norm_eps
    extras = {"class_token": weights["class_token"], "position_embedding": weights["position_embedding"]}
    x = kernels.patch_embed(pixel_values, patches["weight"], patches["bias"], **extras)
    for layer in range(config.num_hidden_layers):
        x = block(x, of(f"blocks.{layer}"), config)
    x = kernels.layer_norm(x, (h,), weights["norm.weight"], weights["norm.bias"], eps)
    return kernels.linear(x[:, 0], weights["classifier.weight"], weights["classifier.bias"])


def mended_vit(pixel_values, weights, config):
    def of(prefix):
        return {name.split(".", 2)[-1]: w for name, w in weights.items() if name.startswith(prefix)}

    patches, h, eps = of("patch_embedding"), config.hidden_size, config.layer_norm_eps
    extras = {"class_token": weights["class_token"], "position_embedding": weights["position_embedding"]}
    x = kernels.patch_embed(pixel_values, patches["weight"], patches["bias"], **extras)
    for layer in range(config.num_hidden_layers):
        x = block(x, of(f"blocks.{layer}."), config)
    x = kernels.layer_norm(x, (h,), weights["norm.weight"], weights["norm.bias"], eps)
    return kernels.linear(x[:, 0], weights["classifier.weight"], weights["classifier.bias"])


def vit_as_a_module(pixel_values, weights, config):
    model = ViT(config).to(pixel_values.device)
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(pixel_values)


def weights_of(weights, layer):
    found = {}
    for name, tensor in weights.items():
        match = re.fullmatch(rf"blocks\.{layer}\.(.*)", name)
        if match:
            found[match[1]] = tensor
    return found


def vit_by_regex(pixel_values, weights, config, own=weights_of, order=range, step=block, end=None, **changes):
    """Right as it is; with keywords one of its steps is replaced."""
    h, eps = config.hidden_size, changes.get("eps", config.layer_norm_eps)
    position = weights["position_embedding"] * changes.get("position", 1)
    bias = None if changes.get("no_patch_bias") else weights["patch_embedding.bias"]
    token = weights["class_token"] * changes.get("token", 1)
    x = kernels.patch_embed(pixel_values, weights["patch_embedding.weight"], bias, class_token=token, position_embedding=position)
    for layer in order(config.num_hidden_layers):
        x = step(x, own(weights, layer), config)
    if changes.get("norm", True):
        x = kernels.layer_norm(x, (h,), weights["norm.weight"], weights["norm.bias"], eps)
    if end is not None:
        return end(x, weights)
    return kernels.linear(x[:, 0].contiguous(), weights["classifier.weight"], weights["classifier.bias"])


def but(**changes):
    def function(pixel_values, weights, config):
        return vit_by_regex(pixel_values, weights, config, **changes)

    return function


def classified(x, weights):
    return kernels.linear(x, weights["classifier.weight"], weights["classifier.bias"])


def first_of_its_names(weights, layer):
    found = {}
    for name, tensor in weights.items():
        if name.startswith(f"blocks.{layer}"):
            found.setdefault(name.split(".", 2)[-1], tensor)
    return found


def by_one_digit(weights, layer):
    return weights_of(weights, str(layer)[0])


def by_dots(weights, layer):
    """The dot is there, and is counted as well."""
    prefix = f"blocks.{layer}."
    return {name.split(".", prefix.count(".") + 1)[-1]: w for name, w in weights.items() if name.startswith(prefix)}


def other_block(behind=False, residuals=(True, True), activation="gelu", heads=None, names=("norm1", "norm2"), scale=None):
    def function(x, w, config):
        h, eps = config.hidden_size, config.layer_norm_eps

        def norm(x, name):
            return kernels.layer_norm(x, (h,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

        y = x if behind else norm(x, names[0])
        packed = kernels.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"])
        q, k, v = packed.unflatten(-1, (3, heads or config.num_attention_heads, -1)).permute(2, 0, 3, 1, 4)
        y = kernels.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
        y = kernels.linear(y, w["attention.output.weight"], w["attention.output.bias"], residual=x if residuals[0] else None)
        x = norm(y, names[0]) if behind else y
        y = x if behind else norm(x, names[1])
        y = kernels.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"], activation=activation)
        y = kernels.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"], residual=x if residuals[1] else None)
        return norm(y, names[1]) if behind else y

    return function


def fixed_eps(eps):
    def step(x, w, config):
        return block(x, w, replace(config, layer_norm_eps=eps))

    return but(step=step, eps=eps)


def vit_in_place(pixel_values, weights, config):
    weights["class_token"] += weights["position_embedding"][:, :1]
    return mended_vit(pixel_values, weights, config)


def vit_that_takes_names_away(pixel_values, weights, config):
    result = mended_vit(pixel_values, weights, config)
    weights.pop("classifier.bias")
    return result


def vit_without_return(pixel_values, weights, config):
    mended_vit(pixel_values, weights, config)


def vit_that_does_not_move_on(pixel_values, weights, config):
    x, layer = pixel_values, 0
    while layer < config.num_hidden_layers:
        x = x + 1
    return x


def vit_in_float64(pixel_values, weights, config):
    return mended_vit(pixel_values, weights, config).double()


def vit_through_float16(pixel_values, weights, config):
    return mended_vit(pixel_values, {name: w.half().float() for name, w in weights.items()}, config)


# ---- resize_positions -------------------------------------------------------------------------------------------------------


def resize_positions(positions, grid, new_grid):
    first, patches = positions[:, :1], positions[:, 1:]
    image = patches.unflatten(1, grid).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([first, image.flatten(2).transpose(1, 2)], 1)


def resize_by_matrices(positions, grid, new_grid):
    """A matrix of weights for each direction."""

    def matrix(old, new):
        unit = torch.eye(old, device=positions.device)[None, :, :, None]
        return F.interpolate(unit, size=(new, 1), mode="bicubic", align_corners=False)[0, :, :, 0]

    patches = positions[0, 1:].reshape(*grid, -1)
    patches = torch.einsum("rch,ry,cx->yxh", patches, matrix(grid[0], new_grid[0]), matrix(grid[1], new_grid[1]))
    return torch.cat([positions[0, :1], patches.reshape(new_grid[0] * new_grid[1], -1)])[None]


def resize_as_hugging_face(positions, grid, new_grid):
    if grid == new_grid:
        return positions
    hidden = positions.shape[-1]
    patches = positions[:, 1:].reshape(1, grid[0], grid[1], hidden).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :1], patches.permute(0, 2, 3, 1).view(1, -1, hidden)), dim=1)


def resizing(unflatten=None, size=lambda grid: grid, back=None, join=None, interpolate=None, **options):
    """The solution with one of its steps replaced."""

    def function(positions, grid, new_grid):
        first, patches = positions[:, :1], positions[:, 1:]
        image = (unflatten or (lambda patches, grid: patches.unflatten(1, grid).permute(0, 3, 1, 2)))(patches, grid)
        options_ = {"mode": "bicubic", "align_corners": False, **options}
        if interpolate is None:
            image = F.interpolate(image, size=size(new_grid), **options_)
        else:
            image = interpolate(image, grid, new_grid)
        rows = back(image) if back else image.flatten(2).transpose(1, 2)
        return join(first, rows) if join else torch.cat([first, rows], 1)

    return function


def resize_all_tokens(positions, grid, new_grid):
    return F.interpolate(positions.mT, size=1 + new_grid[0] * new_grid[1], mode="linear").mT


def resize_the_list(positions, grid, new_grid):
    rows = F.interpolate(positions[:, 1:].mT, size=new_grid[0] * new_grid[1], mode="linear", align_corners=False).mT
    return torch.cat([positions[:, :1], rows], 1)


def class_token_in_the_grid(positions, grid, new_grid):
    image = positions.unflatten(1, grid).permute(0, 3, 1, 2)
    return F.interpolate(image, size=new_grid, mode="bicubic").flatten(2).transpose(1, 2)


def class_token_last(positions, grid, new_grid):
    image = positions[:, :-1].unflatten(1, grid).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([image.flatten(2).transpose(1, 2), positions[:, -1:]], 1)


def resize_in_place(positions, grid, new_grid):
    result = resize_positions(positions, grid, new_grid)
    patches = positions[:, 1:]
    patches *= 0.5
    return result


def resize_squares(positions, grid, new_grid):
    side = int((positions.shape[1] - 1) ** 0.5)
    return resize_positions(positions, (side, side), new_grid)


def zeros_of_the_right_shape(positions, grid, new_grid):
    return torch.zeros(1, 1 + new_grid[0] * new_grid[1], positions.shape[2], device=positions.device)


RIGHT = {
    "parameters": [parameters, parameters_by_layers, parameters_by_name, counted()],
    "flops": [flops, flops_by_products, lambda config, images: bench.work(config, images, 4)[1], multiplied()],
    "vit": [mended_vit, vit_as_a_module, vit_by_regex],
    "resize_positions": [resize_positions, resize_by_matrices, resize_as_hugging_face, resizing()],
}

WRONG = {
    "parameters": [
        (counted(patch_bias=0), "num_hidden_layers=0.*Missing: hidden_size numbers, once: the patch embedding's bias"),
        (counted(class_token=0), "Missing: hidden_size numbers, once: .*the class token,"),
        (counted(tokens=lambda c: c.tokens - 1), "Missing: hidden_size numbers, once: .*the class token's position"),
        (counted(final=1), "Missing: hidden_size numbers, once: .*half of the final norm"),
        (counted(tokens=lambda c: c.tokens + 1), "config.tokens counts the class token already"),
        (counted(tokens=lambda c: 0), "Missing: the position embeddings"),
        (counted(patch_bias=0, patch=lambda c: 0), "Missing: the patch embedding, its weight and its bias"),
        (counted(final=0), "Missing: 2 [*] hidden_size numbers, once: the final norm"),
        (counted(classifier_bias=0), "Missing: the classifier's bias"),
        (counted(classifier=0, classifier_bias=0), "Missing: the classifier, num_labels"),
        (counted(output_bias=0), r"(?s)num_hidden_layers=1,.*Missing: hidden_size numbers a block: the bias of the attention's"),
        (counted(fc2_bias=0), "Missing: hidden_size numbers a block: .*the MLP's second"),
        (counted(fc1_bias=0), "Missing: intermediate_size numbers a block: the bias of the MLP's first"),
        (counted(fc1_bias=0, fc2_bias=0), "MLP's two layers lack their biases"),
        (counted(qkv_bias=lambda c: 0), "Missing: 3 [*] hidden_size numbers a block where config.qkv_bias"),
        (counted(qkv_bias=lambda c: 1 if c.qkv_bias else 0), "Missing: 2 [*] hidden_size of the qkv layer's biases"),
        (counted(qkv_bias=lambda c: 3), "qkv_bias=False.*Expected 378, got 402.*Without config.qkv_bias the qkv layer has"),
        (counted(qkv_bias=lambda c: 0, output_bias=0), "attention's layers lack their biases"),
        (counted(patch_bias=0, qkv_bias=lambda c: 0, output_bias=0, fc1_bias=0, fc2_bias=0, classifier_bias=0),
         "No linear layer has its bias here"),
        (counted(qkv_bias=lambda c: 0, output_bias=0, fc1_bias=0, fc2_bias=0), "No linear layer of the blocks has its bias"),
        (counted(patch_bias=0, qkv_bias=lambda c: 0, output_bias=0, fc1_bias=0, fc2_bias=0, classifier_bias=0, norms=2, final=1),
         "Neither linear layers nor norms have their biases"),
        (counted(qkv=1), "Missing: 2 [*] hidden_size [*] hidden_size weights a block: queries, keys and values"),
        (counted(qkv=1, qkv_bias=lambda c: 1 if c.qkv_bias else 0), "The qkv layer is counted once"),
        (counted(qkv=0, qkv_bias=lambda c: 0), "The qkv layer is missing"),
        (counted(output=0, output_bias=0), "Missing: the attention's output layer"),
        (counted(output=0), "Missing: hidden_size [*] hidden_size weights a block: four such"),
        (counted(norms=2), "Missing: 2 [*] hidden_size numbers a block: a block has two norms"),
        (counted(norms=2, final=1), "A norm has two numbers a channel"),
        (counted(norms=0), "Missing: the blocks' norms"),
        (counted(norms=0, final=0), "The norms are missing: two in each block and a final one"),
        (counted(fc2=0), "Missing: hidden_size [*] intermediate_size weights a block: the MLP has two layers"),
        (counted(fc2=0, fc2_bias=0), "Missing: the MLP's second layer"),
        (counted(fc1=0, fc2=0, fc1_bias=0, fc2_bias=0), "The MLP is missing"),
        (counted(patch=lambda c: c.num_channels * c.patch_shape[0] ** 2), r"patch_size=\(2, 3\).*A patch need not be square"),
        (counted(patch=lambda c: c.num_channels * c.patch_shape[1] ** 2), r"patch_size=\(2, 3\).*A patch need not be square"),
        (counted(patch=lambda c: c.num_channels * c.patch_shape[0]), "A patch has height times width pixels, in each"),
        (counted(patch=lambda c: c.patch_shape[0] * c.patch_shape[1]), "The image's channels are missing"),
        (counted(patch=lambda c: 3 * c.patch_shape[0] * c.patch_shape[1]), "Not every image has three channels"),
        (counted(tokens=lambda c: 1 + (c.image_shape[0] // c.patch_shape[0]) ** 2), "The image need not be square"),
        (counted(tokens=lambda c: 1 + (c.image_shape[1] // c.patch_shape[1]) ** 2), "The image need not be square"),
        (counted(tokens=lambda c: 1 + c.image_shape[0] * c.image_shape[1] // (c.patch_shape[0] * c.patch_shape[1])),
         r"image_size=\(11, 7\).*Only whole patches count"),
        (counted(tokens=lambda c: 1 + c.image_shape[0] * c.image_shape[1]), "a position a token, not a pixel"),
        (counted(layers=12), "Not every ViT has 12 blocks"),
        (counted(layers=1), "One block is counted"),
        (counted(layers=0), "num_hidden_layers=1,.*The blocks are missing"),
        (counted(classifier_bias=0, more=lambda c: c.tokens * c.num_labels * (c.hidden_size + 1) - c.num_labels * c.hidden_size),
         "used on the class token alone"),
        (counted(more=lambda c: (1000 - c.num_labels) * (c.hidden_size + 1)), "Not every ViT has 1000 labels"),
        (counted(heads="all"), "num_hidden_layers=1,.*The heads share out the width"),
        (lambda c: parameters(replace(c, intermediate_size=4 * c.hidden_size)), "config.intermediate_size, which need not be"),
        (counted(more=lambda c: c.hidden_size * (c.hidden_size + 1)), "The pooler is counted"),
        (lambda c: parameters_by_name(c, classifier=False), "Missing: the classifier, num_labels"),
        (counted(class_token=0, fc1_bias=0), "Two things are missing.*the class token.*the bias of the MLP's first layer"),
        (counted(output_bias=0, classifier_bias=0), "Two things are missing.*output layer.*the classifier's bias"),
        (parameters_that_change_the_config, "num_hidden_layers=0.*Expected 62, got 58.*Missing: hidden_size numbers, once"),
        (lambda c: 86_567_656, r"Expected 62, got 86567656.*named_parameters"),
        (lambda c: parameters(c) * 4, "Expected 62, got 248.*That is in bytes"),
        (lambda c: parameters(c) / 1e6, "That is in millions"),
        (lambda c: parameters(c) + 1, "Expected 62, got 63.*named_parameters"),
        (lambda c: {"total": parameters(c)}, "returned a dict where a number belongs"),
        (lambda c: parameters(c) + 0 * c.patch_size**2, r"patch_size=\(2, 3\).*TypeError.*config.patch_shape are always two"),
        (lambda c: parameters(c) + 0 * c.image_size[0], "TypeError.*config.patch_shape are always two"),
        (_raises, "ZeroDivisionError"),
    ],
    "flops": [
        (multiplied(factor=1), "A multiply and an add are two operations: twice"),
        (multiplied(factor=4), "the factor 2 is in twice"),
        (multiplied(images_of=lambda n: 1), r", 2\)\..*That is for one image"),
        (multiplied(factor=2e-9), "That is in GFLOPs"),
        (multiplied(attention=lambda t, h, heads: t * t * h), "num_hidden_layers=1,.*Attention has two products"),
        (multiplied(attention=lambda t, h, heads: 0), "Attention's products are missing"),
        (multiplied(attention=lambda t, h, heads: 2 * t * t * h * heads), "A head takes hidden_size / heads of the width"),
        (multiplied(attention=lambda t, h, heads: 2 * t * t * (h // heads)), "That is the attention of one head"),
        (multiplied(attention=lambda t, h, heads: 2 * t * h), "every token meets every token"),
        (multiplied(attention=lambda t, h, heads: 2 * (t - 1) ** 2 * h), "The class token takes part in attention"),
        (multiplied(attention=lambda t, h, heads: 0, more=lambda c, n: 4 * n * c.tokens**2 * c.hidden_size),
         "num_hidden_layers=0.*Attention runs in every block"),
        (attention_of_the_batch, "Tokens of one image do not meet those of another"),
        (multiplied(patches=lambda t: t), "The class token is not made of a patch"),
        (multiplied(rows=lambda t: t - 1), "goes through the blocks as well"),
        (multiplied(rows=lambda t: t - 1, attention=lambda t, h, heads: 2 * (t - 1) ** 2 * h), "goes through the blocks too"),
        (multiplied(rows=lambda t: 1), "linear layers of the blocks work on every token"),
        (multiplied(patches=lambda t: 1), "The patch embedding works on every patch"),
        (multiplied(embedded=0), "The patch embedding is a matrix product too"),
        (multiplied(classified=0), "The classifier is a matrix product too"),
        (multiplied(classified=lambda t: t), "The classifier works on the class token alone"),
        (multiplied(embedded=0, classified=0), "only the blocks are counted"),
        (lambda c, n: 2 * n * c.num_hidden_layers * multiplied(1, layers=1)(c, 1), "once, not once a block"),
        (multiplied(squares=2), "The qkv layer makes three rows"),
        (multiplied(squares=3), "Four matrices of hidden_size"),
        (multiplied(squares=0), "all four are missing"),
        (multiplied(mlp=1), "The MLP has two layers, there and back"),
        (multiplied(mlp=0), "The MLP is missing"),
        (multiplied(width=lambda h: 4 * h), "config.intermediate_size, which need not be"),
        (multiplied(squares=0, mlp=0), "Linear layers of the blocks are missing"),
        (multiplied(layers=12), "Not every ViT has 12 blocks"),
        (multiplied(layers=1), "One block is counted"),
        (multiplied(layers=0), "The blocks are missing"),
        (multiplied(patch=lambda c: c.num_channels * c.patch_shape[0] ** 2), r"patch_size=\(2, 3\).*A patch need not be square"),
        (multiplied(patch=lambda c: c.num_channels * c.patch_shape[1] ** 2), r"patch_size=\(2, 3\).*A patch need not be square"),
        (multiplied(patch=lambda c: c.patch_shape[0] * c.patch_shape[1]), "The channels are missing"),
        (multiplied(patch=lambda c: 3 * c.patch_shape[0] * c.patch_shape[1]), "Not every image has three channels"),
        (multiplied(patch=lambda c: 1), "Every number of a patch is multiplied"),
        (flops_with_biases, "Adds of biases are not counted"),
        (lambda c, n: 2 * n * c.tokens * parameters(c), "rule of thumb"),
        (lambda c, n: 35_127_656_448, "Expected 144, got 35127656448.*Write each product down"),
        (lambda c, n: (flops(c, n),), "returned a tuple where a number belongs"),
        (lambda c, n: flops(c, n) + 0 * (c.image_size // c.patch_size), "TypeError.*config.patch_shape are always two"),
        (lambda config: flops(config, 1), "(?s)TypeError.*parameters"),
        (_raises, "ZeroDivisionError"),
    ],
    "vit": [
        (buggy_vit, "11 layers of width 16.*Which names start with blocks.1[?]"),
        (but(norm=False), "1 layer of width 16.*The final norm is left out"),
        (but(order=lambda n: range(n - 1)), "1 layer of width 16.*No block runs"),
        (but(own=first_of_its_names), "12 layers.*in reverse order.*Which names start with blocks.1[?]"),
        (but(own=by_one_digit), "11 layers of width 16.*From layer 10 on a layer gets another one's weights"),
        (but(own=by_dots), "(?s)KeyError: 'norm1.weight'.*The line: `y = kernels.layer_norm.*There is no such name"),
        (but(own=lambda weights, layer: weights_of(weights, 0)), "2 layers.*Every layer gets the first block's weights"),
        (but(own=lambda weights, layer: weights_of(weights, layer + 1)), "(?s)KeyError.*There is no such name"),
        (but(own=lambda weights, layer: weights_of(weights, max(0, layer - 1))), "2 layers.*gets the"),
        (but(order=lambda n: range(1, n)), "1 layer.*No block runs"),
        (but(order=lambda n: range(n - 1) if n > 1 else [0]), "2 layers.*A block is left out"),
        (but(order=lambda n: [*range(n), n - 1]), "A block runs once too often"),
        (but(order=lambda n: range(n)[::-1]), "2 layers.*reverse order"),
        (but(order=lambda n: range(12)), "(?s)KeyError.*There is no such name"),
        (but(order=lambda n: range(min(n, 10))), "11 layers.*From layer 10 on nothing runs"),
        (but(order=lambda n: sorted(range(n), key=str)), "11 layers.*as text"),
        (fixed_eps(1e-12), "1 layer.*eps 0.01.*config.layer_norm_eps, not a fixed number"),
        (fixed_eps(1e-5), "1 layer.*config.layer_norm_eps, not a fixed number"),
        (fixed_eps(1e-2), "2 layers.*eps 1e-12.*config.layer_norm_eps, not a fixed number"),
        (but(eps=1e-5), "The final norm's eps is the configuration's as well"),
        (but(position=0), "The position embeddings are not added"),
        (but(token=0), "The class token is left at zero"),
        (but(no_patch_bias=True), "patch embedding's bias is left out"),
        (but(end=lambda x, w: kernels.linear(x[:, 0], w["classifier.weight"], None)), "classifier's bias is left out"),
        (but(end=lambda x, w: classified(x.mean(1), w)), "not the mean of all tokens"),
        (but(end=lambda x, w: classified(x[:, 1:].mean(1), w)), "not the mean of the patches"),
        (but(end=lambda x, w: classified(x[:, -1], w)), "not the last"),
        (but(end=lambda x, w: classified(x[:, 1], w)), "token 1 is the first patch"),
        (but(end=classified), r"(?s)shape \(2, 7, 5\), and \(2, 5\) was expected.*not every token"),
        (but(end=lambda x, w: classified(x[0], w)), "every image's class token"),
        (but(end=lambda x, w: classified(x[:, :1], w)), "a dimension too many"),
        (but(end=lambda x, w: x[:, 0].contiguous()), r"(?s)shape \(2, 16\).*The classifier is left out"),
        (but(end=lambda x, w: classified(x[:, 0], w).softmax(-1)), "These are probabilities"),
        (but(end=lambda x, w: classified(x[:, 0], w).argmax(-1)), "These are labels"),
        (but(step=other_block(behind=True)), "The norms stand before attention and MLP"),
        (but(step=other_block(residuals=(False, True))), "The residual around attention is missing"),
        (but(step=other_block(residuals=(True, False))), "The residual around the MLP is missing"),
        (but(step=other_block(residuals=(False, False))), "Both residuals are missing"),
        (but(step=other_block(names=("norm2", "norm1"))), "norm1 and norm2 are exchanged"),
        (but(step=other_block(heads=1)), "config.num_attention_heads"),
        (but(step=other_block(scale=1.0)), "scores are not scaled"),
        (but(step=other_block(activation="gelu_tanh")), "exact one, with erf"),
        (but(step=other_block(activation="relu")), "not ReLU"),
        (but(step=other_block(activation=None)), "activation between the MLP's two layers is left out"),
        (vit_in_place, r"changed its argument weights\['class_token'\]"),
        (vit_that_takes_names_away, "changed its argument weights"),
        (vit_without_return, "returned None.*end with a return"),
        (vit_that_does_not_move_on, "did not finish"),
        (vit_in_float64, "wrong type: float64"),
        (vit_through_float16, "Only about three digits are right"),
        (lambda x, w, c: torch.zeros(x.shape[0], c.num_labels, device=x.device), "Compare it with ViT.config. layer by layer"),
        (lambda x, w, c: mended_vit(x.flip(-1), w, c), "Compare it with ViT.config. layer by layer"),
        (lambda x, w, c: mended_vit(x, w, c).tolist(), "returned a list"),
        (lambda x, w: mended_vit(x, w, None), "(?s)TypeError.*parameters"),
        (lambda x, w, c: mended_vit(x[:, :2], w, c), "(?s)ValueError: patch_embed.*The line: `x = kernels.patch_embed"),
        (_raises, "ZeroDivisionError"),
    ],
    "resize_positions": [
        (lambda p, grid, new: p, r"2 x 2 patches to 4 x 4.*shape \(1, 5, 3\), and \(1, 17, 3\) was expected.*Nothing is resized"),
        (lambda p, grid, new: p[:, : 1 + new[0] * new[1]], "2 x 2 patches to 4 x 4.*Nothing is resized"),
        (resizing(join=lambda first, rows: rows), r"shape \(1, 6, 4\), and \(1, 7, 4\).*class token's row is dropped"),
        (resizing(join=lambda first, rows: torch.cat([rows, first], 1)), "in the class token's row.*row is the first"),
        (class_token_last, "2 x 2 patches to 4 x 4.*row is the first"),
        (resizing(join=lambda first, rows: torch.cat([0 * first, rows], 1)), "has become zeros"),
        (resizing(join=lambda first, rows: torch.cat([first, first, rows], 1)), "comes twice"),
        (resizing(join=lambda first, rows: torch.cat([rows.mean(1, keepdim=True), rows], 1)), "belongs to no place"),
        (resize_the_list, "2 x 2 patches to 4 x 4.*resize the grid, not the list"),
        (resize_all_tokens, "belongs to no place in the image.*resize the grid, not the list"),
        (class_token_in_the_grid, "RuntimeError.*of which the first is the class token's"),
        (resizing(lambda patches, grid: patches.reshape(1, patches.shape[2], *grid)), "hidden dimension varies fastest"),
        (resizing(lambda patches, grid: patches.reshape(1, patches.shape[2], *grid), back=lambda i: i.reshape(1, -1, i.shape[1])),
         "hidden dimension varies fastest"),
        (resizing(back=lambda image: image.reshape(1, -1, image.shape[1])), "On the way back the hidden dimension"),
        (resizing(back=lambda image: image.mT.flatten(2).mT), "column by column"),
        (resizing(lambda patches, grid: patches.unflatten(1, grid[::-1]).permute(0, 3, 1, 2)), "Rows and columns are exchanged"),
        (resizing(size=lambda grid: grid[::-1]), "Rows and columns are exchanged"),
        (resizing(lambda patches, grid: patches.unflatten(1, grid).permute(0, 3, 2, 1)), "Rows and columns are exchanged"),
        (resizing(size=lambda grid: (grid[0], grid[0])), "another number of columns than of rows"),
        (resizing(size=lambda grid: (grid[1], grid[1])), "another number of rows than of columns"),
        (resizing(size=lambda grid: grid[0]), "another number of columns than of rows"),
        (resizing(join=lambda first, rows: torch.cat([first, rows], 1).mT), "last two dimensions exchanged"),
        (resizing(join=lambda first, rows: torch.cat([first, rows], 1)[0]), "first dimension of size 1 is dropped"),
        (resizing(mode="bilinear"), "2 x 2 patches to 4 x 4.*bilinear: Hugging Face's is bicubic"),
        (resizing(mode="bilinear", align_corners=True), "bilinear, and corners are aligned"),
        (resizing(mode="nearest", align_corners=None), "nearest patch"),
        (resizing(mode="nearest-exact", align_corners=None), "nearest patch"),
        (resizing(mode="area", align_corners=None), "nearest patch"),
        (resizing(align_corners=True), "corners' centres are aligned"),
        (resizing(antialias=True), "With antialias the weights are others"),
        (resizing(interpolate=lambda image, grid, new: F.interpolate(
            image, scale_factor=((new[0] + 0.1) / grid[0], (new[1] + 0.1) / grid[1]), mode="bicubic")),
         "not the quotient of the two grids"),
        (resizing(interpolate=lambda image, grid, new: F.interpolate(
            image, scale_factor=(new[0] / grid[0], new[0] / grid[0]), mode="bicubic")), "1 [+] new rows [*] new columns"),
        (resize_in_place, "changed its argument positions"),
        (resize_squares, "2 x 3 patches.*RuntimeError.*need not be square"),
        (zeros_of_the_right_shape, "Take this case with positions"),
        (lambda p, grid, new: resize_positions(p, grid, new).double(), "wrong type: float64"),
        (lambda p, grid, new: resize_positions(p.half().float(), grid, new), "Only about three digits"),
        (lambda p, grid, new: resize_positions(p, grid, new).tolist(), "returned a list"),
        (lambda p, grid, new: (resize_positions(p, grid, new), None), "returned a tuple"),
        (lambda p, grid: p, "(?s)TypeError"),
        (_raises, "ZeroDivisionError"),
    ],
}  # fmt: skip
