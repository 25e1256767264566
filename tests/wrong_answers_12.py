"""Answers to the exercises of lesson 12: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import torch
from torch.nn import functional as F

import vitcourse  # noqa: F401  (before Triton)
from vitcourse import kernels

# ---- block_traffic ----------------------------------------------------------------------------------------------------------


def block_traffic(rows, hidden, intermediate, itemsize):
    tokens, wide = rows * hidden, rows * intermediate
    norms = 2 * (2 * tokens + 2 * hidden)
    qkv = tokens + 3 * hidden * hidden + 3 * hidden + 3 * tokens
    attention = 3 * tokens + tokens
    out = tokens + hidden * hidden + hidden + tokens + tokens
    fc1 = tokens + hidden * intermediate + intermediate + wide
    fc2 = wide + intermediate * hidden + hidden + tokens + tokens
    return itemsize * (norms + qkv + attention + out + fc1 + fc2)


def traffic_by_launch(rows, hidden, intermediate, itemsize):
    def linear(columns_in, columns_out, residual=False):
        result = rows * columns_out
        return rows * columns_in + columns_in * columns_out + columns_out + (2 if residual else 1) * result

    elements = 2 * (2 * rows * hidden + 2 * hidden) + 4 * rows * hidden
    for launch in ((hidden, 3 * hidden), (hidden, hidden, True), (hidden, intermediate), (intermediate, hidden, True)):
        elements += linear(*launch)
    return float(elements * itemsize)


def traffic(
    norms=lambda t, h: 2 * (2 * t + 2 * h),
    qkv=lambda t, h: t + 3 * h * h + 3 * h + 3 * t,
    attention=lambda t, r: 4 * t,
    out=lambda t, h: t + h * h + h + 2 * t,
    fc1=lambda t, w, h, i: t + h * i + i + w,
    fc2=lambda t, w, h, i: w + h * i + h + 2 * t,
    size=lambda itemsize: itemsize,
):
    """The bytes with a launch of it counted otherwise."""

    def function(rows, hidden, intermediate, itemsize):
        t, w = rows * hidden, rows * intermediate
        products = qkv(t, hidden) + out(t, hidden) + fc1(t, w, hidden, intermediate) + fc2(t, w, hidden, intermediate)
        return size(itemsize) * (norms(t, hidden) + attention(t, rows) + products)

    return function


def flops(rows, hidden, intermediate, itemsize):
    return 2 * rows * hidden * (3 * hidden + hidden + intermediate + intermediate)


# ---- block and parallel_block -----------------------------------------------------------------------------------------------


def linear(x, w, name, **options):
    return kernels.linear(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)


def norm(x, w, name, eps):
    return kernels.layer_norm(x, (x.shape[-1],), w[f"{name}.weight"], w[f"{name}.bias"], eps)


def heads_of(packed, heads):
    return packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def attend(y, w, heads, order=(0, 1, 2), split=heads_of, scale=None, join=lambda a: a.transpose(1, 2).flatten(2)):
    """Attention up to the out projection."""
    parts = split(linear(y, w, "attention.qkv"), heads)
    return join(kernels.scaled_dot_product_attention(*(parts[index] for index in order), scale=scale))


def mlp(y, w, residual, activation="gelu", last=None):
    return linear(linear(y, w, "mlp.fc1", activation=activation), w, "mlp.fc2", activation=last, residual=residual)


def block(x, w, heads, eps=1e-12):
    hidden = x.shape[-1]
    y = kernels.layer_norm(x, (hidden,), w["norm1.weight"], w["norm1.bias"], eps)
    packed = kernels.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"])
    q, k, v = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    y = kernels.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = kernels.linear(y, w["attention.output.weight"], w["attention.output.bias"], residual=x)
    y = kernels.layer_norm(x, (hidden,), w["norm2.weight"], w["norm2.bias"], eps)
    wide = kernels.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"], activation="gelu")
    return kernels.linear(wide, w["mlp.fc2.weight"], w["mlp.fc2.bias"], residual=x)


def buggy_block(x, w, heads, eps=1e-12):
    hidden = x.shape[-1]
    y = kernels.layer_norm(x, (hidden,), w["norm1.weight"], w["norm1.bias"], eps)
    packed = kernels.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"])
    q, k, v = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    y = kernels.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = kernels.linear(y, w["attention.output.weight"], w["attention.output.bias"], residual=x)
    y = kernels.layer_norm(x, (hidden,), w["norm2.weight"], w["norm2.bias"], eps)
    wide = kernels.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"], activation="gelu")
    return kernels.linear(wide, w["mlp.fc2.weight"], w["mlp.fc2.bias"], residual=y)


def unfused_block(x, w, heads, eps=1e-12):
    """Every sum and the activation in a kernel of its own, queries, keys and values from three products, scores in memory."""
    y = norm(x, w, "norm1", eps)
    q, k, v = (
        kernels.linear(y, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)
        for weight, bias in zip(w["attention.qkv.weight"].chunk(3), w["attention.qkv.bias"].chunk(3))
    )
    scores = kernels.softmax(kernels.bmm(q, k.transpose(1, 2), scale=q.shape[-1] ** -0.5), -1)
    attended = kernels.bmm(scores, v).unflatten(0, (len(x), heads)).transpose(1, 2).flatten(2)
    x = kernels.add(x, linear(attended, w, "attention.output"))
    return kernels.add(x, linear(kernels.gelu(linear(norm(x, w, "norm2", eps), w, "mlp.fc1")), w, "mlp.fc2"))


def block_of_sums(x, w, heads, eps=1e-12):
    """The sums by PyTorch."""
    x = x + linear(attend(norm(x, w, "norm1", eps), w, heads), w, "attention.output")
    return x + mlp(norm(x, w, "norm2", eps), w, None)


def torch_block(x, w, heads, eps=1e-12):
    y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], eps)
    q, k, v = heads_of(F.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"]), heads)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + F.linear(y, w["attention.output.weight"], w["attention.output.bias"])
    y = F.layer_norm(x, x.shape[-1:], w["norm2.weight"], w["norm2.bias"], eps)
    return x + F.linear(F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"])), w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def block_by(
    first=lambda x, y: x, second=lambda before, x, y: x, norm1="norm1", norm2="norm2", reads1=lambda x, y: y,
    reads2=lambda before, x, y: y, eps1=None, eps2=None, change=None, options=None, **attention,
):  # fmt: skip
    """The block with a part of it replaced. first, second: the residuals; reads1, reads2: what attention and the MLP read."""

    def function(x, w, heads, eps=1e-12):
        w = {**w, **(change(w) if change else {})}
        before, y = x, norm(x, w, norm1, eps1 or eps)
        given = {name: value(x.shape[-1], heads) if name == "scale" else value for name, value in attention.items()}
        x = linear(attend(reads1(x, y), w, heads, **given), w, "attention.output", residual=first(x, y))
        y = norm(x, w, norm2, eps2 or eps)
        return mlp(reads2(before, x, y), w, second(before, x, y), **(options or {}))

    return function


def without(*names):
    return lambda w: {name: torch.zeros_like(w[name]) for name in names}


def post_norm_block(x, w, heads, eps=1e-12):
    x = norm(linear(attend(x, w, heads), w, "attention.output", residual=x), w, "norm1", eps)
    return norm(mlp(x, w, x), w, "norm2", eps)


def norm_after_each(x, w, heads, eps=1e-12):
    x = kernels.add(x, norm(linear(attend(x, w, heads), w, "attention.output"), w, "norm1", eps))
    return kernels.add(x, norm(mlp(x, w, None), w, "norm2", eps))


def norm_over_tokens(x, w, heads, eps=1e-12):
    def over_tokens(x, w, name):
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = linear(attend(over_tokens(x, w, "norm1"), w, heads), w, "attention.output", residual=x)
    return mlp(over_tokens(x, w, "norm2"), w, x)


def mlp_first(x, w, heads, eps=1e-12):
    x = mlp(norm(x, w, "norm2", eps), w, x)
    return linear(attend(norm(x, w, "norm1", eps), w, heads), w, "attention.output", residual=x)


def no_projection(x, w, heads, eps=1e-12):
    x = kernels.add(x, attend(norm(x, w, "norm1", eps), w, heads))
    return mlp(norm(x, w, "norm2", eps), w, x)


def second_residual_twice(x, w, heads, eps=1e-12):
    x = linear(attend(norm(x, w, "norm1", eps), w, heads), w, "attention.output", residual=x)
    return kernels.add(mlp(norm(x, w, "norm2", eps), w, x), x)


def norm2_of_the_input(x, w, heads, eps=1e-12):
    after = linear(attend(norm(x, w, "norm1", eps), w, heads), w, "attention.output", residual=x)
    return mlp(norm(x, w, "norm2", eps), w, after)


def gelu_after_the_sum(x, w, heads, eps=1e-12):
    return kernels.gelu(block_by(options={"activation": None})(x, w, heads, eps))


def block_without_batch(x, w, heads, eps=1e-12):
    return block(x[0], w, heads, eps)


def in_place_block(x, w, heads, eps=1e-12):
    x += linear(attend(norm(x, w, "norm1", eps), w, heads), w, "attention.output")
    return mlp(norm(x, w, "norm2", eps), w, x)


def changes_a_weight(x, w, heads, eps=1e-12):
    w["attention.qkv.weight"].mul_(2)
    return block(x, w, heads, eps)


def in_half(function):
    return lambda x, w, heads, eps: function(x.half(), {name: w[name].half() for name in w}, heads, eps).to(x.dtype)


def endless(x, w, heads, eps=1e-12):
    while True:
        pass


def wide_result(x, w, heads, eps=1e-12):
    return linear(norm(block(x, w, heads, eps), w, "norm2", eps), w, "mlp.fc1")


# ---- parallel_block ---------------------------------------------------------------------------------------------------------


def parallel_block(x, w, heads, eps=1e-12):
    hidden = x.shape[-1]
    y = kernels.layer_norm(x, (hidden,), w["norm1.weight"], w["norm1.bias"], eps)
    packed = kernels.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"])
    q, k, v = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    attended = kernels.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = kernels.linear(attended, w["attention.output.weight"], w["attention.output.bias"], residual=x)
    wide = kernels.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"], activation="gelu")
    return kernels.linear(wide, w["mlp.fc2.weight"], w["mlp.fc2.bias"], residual=x)


def parallel_the_other_way_round(x, w, heads, eps=1e-12):
    """The MLP first."""
    y = norm(x, w, "norm1", eps)
    x = mlp(y, w, x)
    return linear(attend(y, w, heads), w, "attention.output", residual=x)


def parallel_in_five(x, w, heads, eps=1e-12):
    """Out projection and fc2 as one product, of what they read and their weights side by side."""
    y = norm(x, w, "norm1", eps)
    both = torch.cat([attend(y, w, heads), linear(y, w, "mlp.fc1", activation="gelu")], -1)
    weight = torch.cat([w["attention.output.weight"], w["mlp.fc2.weight"]], 1)
    bias = kernels.add(w["attention.output.bias"], w["mlp.fc2.bias"])
    return kernels.linear(both, weight, bias, residual=x)


def beside(
    first=lambda x, y: x, second=lambda before, x, y: x, reads1=lambda x, y: y, reads2=lambda before, x, y, a: y, eps=None,
    change=None, options=None, **attention,
):  # fmt: skip
    """The parallel block with a part of it replaced, as `block_by` has them; a: what the out projection reads."""

    def function(x, w, heads, given=1e-12):
        w = {**w, **(change(w) if change else {})}
        before, y = x, norm(x, w, "norm1", eps or given)
        scale = {name: value(x.shape[-1], heads) if name == "scale" else value for name, value in attention.items()}
        a = attend(reads1(x, y), w, heads, **scale)
        x = linear(a, w, "attention.output", residual=first(x, y))
        return mlp(reads2(before, x, y, a), w, second(before, x, y), **(options or {}))

    return function


def sequential(x, w, heads, eps=1e-12):
    x = linear(attend(norm(x, w, "norm1", eps), w, heads), w, "attention.output", residual=x)
    return mlp(norm(x, w, "norm1", eps), w, x)


def norm_twice(x, w, heads, eps=1e-12):
    after = linear(attend(norm(x, w, "norm1", eps), w, heads), w, "attention.output", residual=x)
    return mlp(norm(x, w, "norm1", eps), w, after)


def gelu_apart(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    x = linear(attend(y, w, heads), w, "attention.output", residual=x)
    return linear(kernels.gelu(linear(y, w, "mlp.fc1")), w, "mlp.fc2", residual=x)


def sum_apart(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    return kernels.add(linear(attend(y, w, heads), w, "attention.output", residual=x), mlp(y, w, None))


def sums_apart(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    return kernels.add(x, kernels.add(linear(attend(y, w, heads), w, "attention.output"), mlp(y, w, None)))


def three_products(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    q, k, v = (
        kernels.linear(y, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for weight, bias in zip(w["attention.qkv.weight"].chunk(3), w["attention.qkv.bias"].chunk(3))
    )
    attended = kernels.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return mlp(y, w, linear(attended, w, "attention.output", residual=x))


def attention_in_three(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    q, k, v = (part.flatten(0, 1) for part in heads_of(linear(y, w, "attention.qkv"), heads))
    scores = kernels.softmax(kernels.bmm(q, k.transpose(1, 2), scale=q.shape[-1] ** -0.5), -1)
    attended = kernels.bmm(scores, v).unflatten(0, (len(x), heads)).transpose(1, 2).flatten(2)
    return mlp(y, w, linear(attended, w, "attention.output", residual=x))


def image_by_image(x, w, heads, eps=1e-12):
    return torch.cat([parallel_block(image, w, heads, eps) for image in x.split(1)])


def head_by_head(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    parts = heads_of(linear(y, w, "attention.qkv"), heads).split(1, dim=2)
    attended = torch.cat([kernels.scaled_dot_product_attention(*part) for part in parts], 1).transpose(1, 2).flatten(2)
    return mlp(y, w, linear(attended, w, "attention.output", residual=x))


def sum_by_torch(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    return x + linear(attend(y, w, heads), w, "attention.output") + mlp(y, w, None)


def gelu_by_torch(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    x = linear(attend(y, w, heads), w, "attention.output", residual=x)
    return linear(F.gelu(linear(y, w, "mlp.fc1")), w, "mlp.fc2", residual=x)


def norm_by_torch(x, w, heads, eps=1e-12):
    y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], eps)
    return mlp(y, w, linear(attend(y, w, heads), w, "attention.output", residual=x))


def attention_by_torch(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    attended = F.scaled_dot_product_attention(*heads_of(linear(y, w, "attention.qkv"), heads)).transpose(1, 2).flatten(2)
    return mlp(y, w, linear(attended, w, "attention.output", residual=x))


def product_by_torch(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    x = linear(attend(y, w, heads), w, "attention.output", residual=x)
    wide = F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"])
    return linear(kernels.gelu(wide), w, "mlp.fc2", residual=x)


def scaled_by_torch(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    q, k, v = heads_of(linear(y, w, "attention.qkv"), heads)
    attended = kernels.scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v, scale=1.0).transpose(1, 2).flatten(2)
    return mlp(y, w, linear(attended, w, "attention.output", residual=x))


def parallel_by_torch(x, w, heads, eps=1e-12):
    y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], eps)
    q, k, v = heads_of(F.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"]), heads)
    a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    a = F.linear(a, w["attention.output.weight"], w["attention.output.bias"])
    wide = F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return x + a + F.linear(wide, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def norm_last(x, w, heads, eps=1e-12):
    return norm(mlp(x, w, linear(attend(x, w, heads), w, "attention.output", residual=x)), w, "norm1", eps)


def input_twice(x, w, heads, eps=1e-12):
    y = norm(x, w, "norm1", eps)
    return kernels.add(linear(attend(y, w, heads), w, "attention.output", residual=x), mlp(y, w, x))


# ---- The banks --------------------------------------------------------------------------------------------------------------


def swapped_norm(w):
    return {"norm1.weight": w["norm1.bias"], "norm1.bias": w["norm1.weight"]}


def swap_heads(packed, heads):
    return packed.unflatten(-1, (3, -1, heads)).permute(2, 0, 3, 1, 4)


def heads_first(packed, heads):
    return packed.unflatten(-1, (heads, 3, -1)).permute(3, 0, 2, 1, 4)


def interleaved(packed, heads):
    return packed.unflatten(-1, (3, -1, heads)).permute(2, 0, 4, 1, 3)


def tokens_and_heads_exchanged(packed, heads):
    return packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 1, 3, 4)


# What may go wrong in either block: for `block_by` and `beside` alike.
SHARED = [
    ({"order": (1, 0, 2)}, "(?s)5 tokens of 6 numbers, 1 head.*its queries, then its keys, then its values"),
    ({"order": (2, 0, 1)}, "(?s)1 token of 6 numbers.*its queries, then its keys, then its values"),
    ({"order": (0, 2, 1)}, "(?s)1 token of 6 numbers.*its queries, then its keys, then its values"),
    ({"order": (0, 0, 2)}, "(?s)5 tokens of 6 numbers.*one is taken for another"),
    ({"split": heads_first}, "(?s)3 heads.*packed is split wrongly"),
    ({"split": swap_heads}, "(?s)packed is split wrongly"),
    ({"split": interleaved}, "(?s)3 heads.*packed is split wrongly"),
    ({"split": tokens_and_heads_exchanged, "join": lambda a: a.flatten(2)}, "(?s)5 tokens.*tokens and heads exchanged"),
    ({"join": lambda a: a.reshape(a.shape[0], a.shape[2], -1)}, "(?s)3 heads.*heads of one token are put side by side"),
    ({"scale": lambda hidden, heads: 1.0}, "(?s)5 tokens of 6 numbers, 1 head.*yours have no scale"),
    ({"scale": lambda hidden, heads: hidden**-0.5}, r"(?s)3 heads.*yours have 1 / sqrt\(hidden\)"),
    ({"scale": lambda hidden, heads: heads / hidden}, "(?s)5 tokens.*yours have 1 / head_size"),
    ({"scale": lambda hidden, heads: (hidden / heads) ** 0.5}, r"(?s)5 tokens.*yours have sqrt\(head_size\)"),
    ({"options": {"activation": None}}, "GELU is missing between"),
    ({"options": {"activation": "gelu_tanh"}}, "tanh form of GELU"),
    ({"options": {"activation": "relu"}}, "yours is ReLU"),
    ({"options": {"activation": None, "last": "gelu"}}, "yours comes after fc2"),
    ({"options": {"last": "gelu"}}, "GELU comes once"),
    ({"change": without("attention.qkv.bias")}, "bias of QKV is missing"),
    ({"change": without("attention.output.bias")}, "bias of the out projection is missing"),
    ({"change": without("mlp.fc1.bias")}, "bias of fc1 is missing"),
    ({"change": without("mlp.fc2.bias")}, "bias of fc2 is missing"),
    ({"change": without("mlp.fc1.bias", "mlp.fc2.bias")}, "two biases of the MLP"),
    ({"join": lambda a: a.flatten(2)}, "(?s)5 tokens.*ValueError: linear: input is.*The line: `return kernels.linear"),
]

WRONG = {
    "block_traffic": [
        (traffic(qkv=lambda t, h: t + 3 * h + 3 * t, out=lambda t, h: t + h + 2 * t, fc1=lambda t, w, h, i: t + i + w,
                 fc2=lambda t, w, h, i: w + h + 2 * t),
         r"(?s)block_traffic\(1, 1, 1, 2\).*Expected 72, got 60.*The weights of the four products are read too"),
        (traffic(fc1=lambda t, w, h, i: t + i + w, fc2=lambda t, w, h, i: w + h + 2 * t), "weights of the MLP"),
        (traffic(fc2=lambda t, w, h, i: w + h + 2 * t), "one of the two is missing"),
        (traffic(fc1=lambda t, w, h, i: t + h * h + i + w, fc2=lambda t, w, h, i: w + h * h + h + 2 * t),
         "not hidden \\* hidden"),
        (traffic(qkv=lambda t, h: t + h * h + 3 * h + 3 * t), "weight of 3 \\* hidden \\* hidden"),
        (traffic(qkv=lambda t, h: t + h * h + h + 3 * t), "and a bias of 3 \\* hidden"),
        (traffic(out=lambda t, h: t + h + 2 * t), "weight of the out projection"),
        (traffic(qkv=lambda t, h: t + 3 * h * h + 3 * t, out=lambda t, h: t + h * h + 2 * t,
                 fc1=lambda t, w, h, i: t + h * i + w, fc2=lambda t, w, h, i: w + h * i + 2 * t), "biases of the four products"),
        (traffic(qkv=lambda t, h: t + 3 * h * h + h + 3 * t), "QKV's bias has 3 \\* hidden"),
        (traffic(fc1=lambda t, w, h, i: t + h * i + w, fc2=lambda t, w, h, i: w + h * i + 2 * t), "MLP's two biases"),
        (traffic(fc1=lambda t, w, h, i: t + h * i + h + w), "intermediate in fc1, hidden in fc2"),
        (traffic(norms=lambda t, h: 4 * t), "norms read a weight and a bias"),
        (traffic(norms=lambda t, h: 4 * t + 2 * h), "two norms reads a weight and a bias"),
        (traffic(norms=lambda t, h: 2 * t + 2 * h), "two norms, each.*one was counted"),
        (traffic(norms=lambda t, h: 0), "two norms are launches too"),
        (traffic(out=lambda t, h: t + h * h + h + t, fc2=lambda t, w, h, i: w + h * i + h + t), "both residuals were left out"),
        (traffic(out=lambda t, h: t + h * h + h + t), "out and fc2 each read the residual"),
        (traffic(fc2=lambda t, w, h, i: w + h * i + h + t), "out and fc2 each read the residual"),
        (traffic(qkv=lambda t, h: t + 3 * h * h + 3 * h + t), "count as one where QKV writes them"),
        (traffic(qkv=lambda t, h: t + 3 * h * h + 3 * h + t, attention=lambda t, r: 2 * t), "attention reads as much"),
        (traffic(attention=lambda t, r: 4 * t + 2 * r * r), "Scores stay on the chip"),
        (traffic(attention=lambda t, r: 4 * t + 4 * r * r), "Scores and probabilities stay on the chip"),
        (traffic(fc1=lambda t, w, h, i: t + h * i + i + 3 * w), "GELU costs no pass of its own"),
        (traffic(out=lambda t, h: t + h * h + h + 4 * t, fc2=lambda t, w, h, i: w + h * i + h + 4 * t), "residual costs no pass"),
        (traffic(out=lambda t, h: t + h * h + h + 3 * t), "rows \\* hidden elements too many"),
        (traffic(fc2=lambda t, w, h, i: t + h * i + h + 2 * t), "one of the two counts as rows"),
        (traffic(fc1=lambda t, w, h, i: t + h * i + i), "one of the two is missing"),
        (traffic(fc1=lambda t, w, h, i: t + h * i + i + t, fc2=lambda t, w, h, i: t + h * i + h + 2 * t), "not rows \\* hidden"),
        (traffic(norms=lambda t, h: 2 * (t + 2 * h), qkv=lambda t, h: t + 3 * h * h + 3 * h, attention=lambda t, r: 3 * t,
                 out=lambda t, h: 2 * t + h * h + h, fc1=lambda t, w, h, i: t + h * i + i,
                 fc2=lambda t, w, h, i: w + h * i + h + t), "also writes its result"),
        (lambda r, h, i, size: block_traffic(r, h, 4 * h, size), "not always 4 \\* hidden"),
        (lambda r, h, i, size: block_traffic(r, h, i, size) + (r - 1) * size * (4 * h * h + 2 * h * i), "read once, not again"),
        (lambda r, h, i, size: 2 * block_traffic(r, h, i, size), "twice what is moved"),
        (traffic(size=lambda itemsize: 1), "counts elements"),
        (traffic(size=lambda itemsize: 2), r"(?s)block_traffic\(5, 2, 3, 4\).*need not have 2 bytes"),
        (traffic(size=lambda itemsize: 4), "need not have 4 bytes"),
        (flops, "number of FLOPs"),
        (lambda r, h, i, size: block_traffic(r, h, i, size) + 1, "(?s)Expected 72, got 73.*a line for each of the seven"),
        (lambda r, h, i, size: (block_traffic(r, h, i, size),), "returned a tuple"),
        (lambda r, h, i: 0, "TypeError"),
    ],
    "block": [
        (buggy_block, r"(?s)1 token of 6 numbers, 1 head.*index \(0, 0, 0\) of \(1, 1, 6\).*in one half it is"),
        (block_by(first=lambda x, y: y), "in one half it is added to what"),
        (block_by(first=lambda x, y: y, second=lambda before, x, y: y), "in both halves"),
        (block_by(first=lambda x, y: None), "first residual is missing"),
        (block_by(second=lambda before, x, y: None), "second residual is missing"),
        (block_by(first=lambda x, y: None, second=lambda before, x, y: None), "Both residuals are missing"),
        (block_by(second=lambda before, x, y: before), "second residual is the block's input"),
        (lambda *case: kernels.add(block(*case), block(*case)), "compare after each step"),
        (second_residual_twice, "second residual is there twice"),
        (block_by(reads2=lambda before, x, y: before), "MLP reads what norm2 returns"),
        (post_norm_block, "yours come after the sums"),
        (norm_after_each, "yours come after each of them"),
        (block_by(reads1=lambda x, y: x), "norm1 is missing"),
        (block_by(reads2=lambda before, x, y: x), "norm2 is missing"),
        (block_by(norm2="norm1"), "norm2 has those of norm1"),
        (block_by(norm1="norm2"), "norm1 has those of norm2"),
        (block_by(norm1="norm2", norm2="norm1"), "two norms are exchanged"),
        (block_by(eps1=1e-12, eps2=1e-12), "(?s)eps 0.01.*eps is an argument, which the norm takes"),
        (block_by(eps1=1e-5, eps2=1e-5), "(?s)eps 0.01.*eps is an argument, which the norm takes"),
        (block_by(eps2=1e-12), "(?s)eps 0.01.*norm2 has a fixed one"),
        (block_by(eps1=1e-6), "(?s)eps 0.01.*norm1 has a fixed one"),
        (norm2_of_the_input, "norm2 normalizes the tokens that attention has left, not the block's input"),
        (norm_over_tokens, "over the tokens"),
        (mlp_first, "yours comes before it"),
        (no_projection, "out projection is missing"),
        (block_by(change=without("attention.qkv.bias", "attention.output.bias")), "two biases of attention"),
        (block_by(change=swapped_norm), "weight and the bias of norm1 are exchanged"),
        *((block_by(**given), pattern) for given, pattern in SHARED),
        (gelu_after_the_sum, "compare after each step"),
        (lambda x, w, heads, eps: linear(norm(x, w, "norm1", eps), w, "attention.output", residual=x), "No kernel has read"),
        (block_without_batch, "RuntimeError"),
        (in_place_block, "(?s)changed its input x.*works in place"),
        (changes_a_weight, r'(?s)changed its input w\["attention.qkv.weight"\].*works in place'),
        (in_half(block), "three digits"),
        (endless, "did not finish"),
        (wide_result, r"(?s)has shape \(1, 1, 10\).*x's shape"),
        (lambda x, w, heads, eps: block(x, w, heads, eps).float(), "(?s)float16.*wrong type: float32.*x's shape and type"),
        (lambda x, w, heads, eps: x.clone(), "compare after each step"),
        (torch_block, "no kernel was launched"),
        (lambda x, w, heads, eps: block(x, {"norm1": w["norm1.weight"]}, heads, eps), "KeyError"),
        (lambda x, w, heads, eps: w["norm3.weight"], "(?s)KeyError: .w has no norm3.weight; its layers are norm1,.*list\\(\\)"),
        (lambda x, w: x, "TypeError"),
    ],
    "parallel_block": [
        (sequential, "as a sequential block does"),
        (beside(reads2=lambda before, x, y, a: x), "yours reads the sum after attention"),
        (beside(reads2=lambda before, x, y, a: a), "yours reads attention's result"),
        (beside(reads2=lambda before, x, y, a: before), "yours reads that input without the norm"),
        (beside(reads1=lambda x, y: x), "Attention reads the norm"),
        (beside(reads1=lambda x, y: x, reads2=lambda before, x, y, a: before), "norm is missing"),
        (norm_last, "yours comes after the sum"),
        (input_twice, "input is in it twice"),
        (beside(first=lambda x, y: None), "the input is not in it"),
        (beside(second=lambda before, x, y: before), "attention's result is not in it"),
        (beside(second=lambda before, x, y: None), "only the MLP's result"),
        (beside(first=lambda x, y: y), "in place of the input it has the norm"),
        (beside(second=lambda before, x, y: y), "norm of the input in place of the input and of attention's"),
        (beside(eps=1e-12), "(?s)eps 0.01.*eps is an argument"),
        (beside(eps=1e-5), "(?s)eps 0.01.*eps is an argument"),
        (beside(change=swapped_norm), "weight and bias are exchanged"),
        (beside(change=without("norm1.bias")), "norms?'s? bias is missing"),
        *((beside(**given), pattern) for given, pattern in SHARED),
        (norm_twice, "(?s)1 token.*7 kernels were launched.*norm is computed twice"),
        (gelu_apart, "(?s)7 kernels.*GELU has a launch of its own"),
        (sum_apart, "(?s)7 kernels.*sum has a launch of its own"),
        (sums_apart, "(?s)8 kernels.*sum has a launch of its own"),
        (three_products, "(?s)8 kernels.*more than four products"),
        (attention_in_three, "(?s)8 kernels.*Attention takes several launches"),
        (image_by_image, "(?s)2 images.*12 kernels.*all images of the batch at once"),
        (head_by_head, "(?s)3 heads.*8 kernels.*all images and heads"),
        (sum_by_torch, "(?s)PyTorch computes a sum.*takes a residual"),
        (gelu_by_torch, "(?s)PyTorch computes the activation.*takes an activation"),
        (norm_by_torch, "PyTorch computes a norm"),
        (attention_by_torch, "PyTorch computes attention"),
        (product_by_torch, "PyTorch computes a product"),
        (scaled_by_torch, r"PyTorch computes a part of them \(mul\)"),
        (parallel_by_torch, "PyTorch computes a norm"),
        (block, "(?s)KeyError: .w has no norm2.weight; its layers are norm1, attention.qkv, attention.output, mlp.fc1, mlp.fc2"),
        (in_half(parallel_block), "three digits"),
        (endless, "did not finish"),
        (lambda x, w, heads, eps: None if len(x) > 1 else parallel_block(x, w, heads, eps), "returned None"),
        (lambda x, w, heads, eps: parallel_block(x, w, heads, eps).flatten(1), "(?s)has shape.*x's shape"),
        (lambda x, w, heads, eps: parallel_block(x, w, heads, eps).sum(), "has shape"),
        (lambda x, w: x, "TypeError"),
    ],
}  # fmt: skip

RIGHT = {
    "block_traffic": [block_traffic, traffic_by_launch],
    "block": [block, block_by(), unfused_block, block_of_sums],
    "parallel_block": [parallel_block, parallel_the_other_way_round, parallel_in_five, beside()],
}
