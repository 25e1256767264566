"""The checks of lesson 12: the layers of a transformer block, and what they move."""

import functools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from .judge import Attempt, Case, Exercise, Verdict, Wrong, _touches, draw, judge, judge_plain, number, type_name

# ---- Bytes ------------------------------------------------------------------------------------------------------------------


def block_traffic(function: Callable) -> Verdict:
    """Lesson 12: `function(rows, hidden, intermediate, itemsize)`, the bytes that the seven launches of a ViT's block move.

    Each reads its operands once and writes its result once: norm1; QKV with bias; attention, from packed queries, keys and
    values to tokens; out projection with bias and residual; norm2; fc1 with bias and GELU; fc2 with bias and residual.
    """

    def counted(tokens=18, wide=2, square=4, matrices=2, vectors=9, wide_vectors=1):
        """A function that counts so many times rows * hidden, rows * intermediate, hidden * hidden, and so on."""

        def bytes_moved(rows, hidden, intermediate, itemsize):
            return itemsize * (
                rows * (tokens * hidden + wide * intermediate)
                + hidden * (square * hidden + matrices * intermediate)
                + vectors * hidden
                + wide_vectors * intermediate
            )

        return bytes_moved

    reference = counted()
    generator = np.random.default_rng()
    drawn = [(*(int(n) for n in generator.integers(20, 300, 3)), size) for size in (2, 4, 1)]
    cases = [(1, 1, 1, 2), (1, 2, 8, 2), (5, 2, 8, 2), (5, 2, 3, 4), (197, 768, 3072, 2), *drawn]
    more = "rows * hidden elements too many: each launch reads its operands once and writes its result once, and only out and "
    mistakes = [
        ("That counts elements: each has itemsize bytes.", lambda r, h, i, size: reference(r, h, i, 1)),
        ("An element need not have 2 bytes: multiply by itemsize.", lambda r, h, i, size: reference(r, h, i, 2)),
        ("An element need not have 4 bytes: multiply by itemsize.", lambda r, h, i, size: reference(r, h, i, 4)),
        ("That is twice what is moved: reads and writes are lines of their own, and itemsize multiplies once.",
         lambda *case: 2 * reference(*case)),
        ("That is a number of FLOPs of the products; asked for are bytes.",
         lambda r, h, i, size: 2 * r * (4 * h * h + 2 * h * i)),
        ("intermediate is an argument, and not always 4 * hidden.", lambda r, h, i, size: reference(r, h, 4 * h, size)),
        ("The weights of the four products are read too.", counted(square=0, matrices=0)),
        ("The weights and biases of the four products are read too.", counted(square=0, matrices=0, vectors=4, wide_vectors=0)),
        ("The weights and biases of all seven launches are read too.", counted(square=0, matrices=0, vectors=0, wide_vectors=0)),
        ("The weights of the MLP are read too: fc1 and fc2 have hidden * intermediate each.", counted(matrices=0)),
        ("fc1 and fc2 each have a weight of hidden * intermediate, and one of the two is missing.", counted(matrices=1)),
        ("The MLP's weights are hidden * intermediate each, not hidden * hidden.", counted(square=6, matrices=0)),
        ("QKV is one product with a weight of 3 * hidden * hidden.", counted(square=2)),
        ("QKV is one product with a weight of 3 * hidden * hidden, and a bias of 3 * hidden.", counted(square=2, vectors=7)),
        ("The weight of the out projection is read too: hidden * hidden.", counted(square=3)),
        ("The weight of QKV is read too: 3 * hidden * hidden.", counted(square=1)),
        ("The weights of QKV and of the out projection are read too.", counted(square=0)),
        ("A weight is read once, not again for each row.",
         lambda r, h, i, size: reference(r, h, i, size) + size * (r - 1) * (4 * h * h + 2 * h * i)),
        ("Biases have no rows: each is read once, and counts as many elements as its product has columns.",
         lambda r, h, i, size: reference(r, h, i, size) + size * (r - 1) * (5 * h + i)),
        ("The biases of the four products are read too.", counted(vectors=4, wide_vectors=0)),
        ("The norms' weights and biases are read too, and so are the biases of the products.",
         counted(vectors=0, wide_vectors=0)),
        ("The norms read a weight and a bias too, hidden elements each.", counted(vectors=5)),
        ("2 * hidden elements are missing: each of the two norms reads a weight and a bias, and QKV's bias has 3 * hidden.",
         counted(vectors=7)),
        ("QKV's bias is read too: 3 * hidden.", counted(vectors=6)),
        ("The bias of the out projection or of fc2 is missing: hidden elements each.", counted(vectors=8)),
        ("The MLP's two biases are read too: intermediate elements in fc1, hidden in fc2.", counted(vectors=8, wide_vectors=0)),
        ("fc1's bias is read too: intermediate elements.", counted(wide_vectors=0)),
        ("A bias has as many elements as its product has columns: intermediate in fc1, hidden in fc2.",
         counted(vectors=10, wide_vectors=0)),
        ("A bias has as many elements as its product has columns: intermediate in fc1, hidden in fc2.",
         counted(vectors=8, wide_vectors=2)),
        ("GELU costs no pass of its own: it runs in fc1's epilogue, before anything is stored.", counted(wide=4)),
        ("Scores stay on the chip: attention reads the packed queries, keys and values and writes tokens.",
         lambda r, h, i, size: reference(r, h, i, size) + size * r * r),
        ("Scores stay on the chip: attention reads the packed queries, keys and values and writes tokens.",
         lambda r, h, i, size: reference(r, h, i, size) + 2 * size * r * r),
        ("Scores and probabilities stay on the chip: attention reads queries, keys and values and writes tokens.",
         lambda r, h, i, size: reference(r, h, i, size) + 4 * size * r * r),
        ("There are two norms, each with a weight and a bias: one was counted.", counted(tokens=16, vectors=7)),
        ("The two norms are launches too: each reads tokens, a weight and a bias, and writes tokens.",
         counted(tokens=14, vectors=5)),
        ("rows * hidden elements are missing: out and fc2 each read the residual, beside their own input, and every launch "
         "writes a result.", counted(tokens=17)),
        ("2 * rows * hidden elements are missing. Either both residuals were left out, which out and fc2 read; or the packed "
         "queries, keys and values, 3 * rows * hidden, count as one where QKV writes them or where attention reads them.",
         counted(tokens=16)),
        ("3 * rows * hidden elements are missing: are the packed queries, keys and values written by QKV and read by attention, "
         "and both residuals read?", counted(tokens=15)),
        ("4 * rows * hidden elements are missing: QKV writes the packed queries, keys and values, 3 * rows * hidden, and "
         "attention reads as much.", counted(tokens=14)),
        ("Each launch reads its input and also writes its result: one of the two is missing everywhere.",
         counted(tokens=10, wide=1)),
        ("Each launch reads its input and also writes its result: one of the two is missing, and the residuals are too.",
         counted(tokens=8, wide=1)),
        ("fc1 writes rows * intermediate elements, and fc2 reads as many: one of the two is missing.", counted(wide=1)),
        ("fc1 writes rows * intermediate elements, and fc2 reads as many: both are missing.", counted(wide=0)),
        ("fc1 writes rows * intermediate elements, and fc2 reads as many: one of the two counts as rows * hidden.",
         counted(tokens=19, wide=1)),
        ("fc1 writes rows * intermediate elements, and fc2 reads as many, not rows * hidden.", counted(tokens=20, wide=0)),
        (more + "fc2 read a residual.", counted(tokens=19)),
        ("2 * " + more + "fc2 read a residual. Neither writes it again.", counted(tokens=20)),
        ("The residual costs no pass of its own: out and fc2 add it before they store, and only read it.", counted(tokens=22)),
    ]  # fmt: skip
    return judge_plain(
        function,
        "block_traffic",
        cases,
        reference,
        mistakes,
        "Write a line for each of the seven launches: its input, its weight and bias, its residual where it has one, its result, "
        "all in elements. Add up the lines, and multiply by itemsize at the end.",
        "one element of everything, one row, rows and widths of all kinds, one image of ViT-B/16, 1, 2 and 4 bytes an element, "
        "and sizes drawn at random",
        number,
    )


# ---- A block and what may be wrong with it ------------------------------------------------------------------------------------


def _norm(x, w, which, eps, over=(-1,)):
    """Layer norm with the parameters of norm `which`. over: the dimensions that mean and variance are taken over."""
    if over == (-1,):
        return F.layer_norm(x, x.shape[-1:], w[f"{which}.weight"], w[f"{which}.bias"], eps)
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * w[f"{which}.weight"] + w[f"{which}.bias"]


def _heads(packed, heads):
    """Queries, keys and values, (batch, heads, tokens, head_size) each."""
    return packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def _tokens(attended):
    return attended.transpose(1, 2).flatten(2)


def _attention(y, w, heads, split=_heads, scale=None, join=_tokens):
    """Attention with its two products. scale: a function of (hidden, head_size)."""
    q, k, v = split(F.linear(y, w["attention.qkv.weight"], w["attention.qkv.bias"]), heads)
    scale = q.shape[-1] ** -0.5 if scale is None else scale(y.shape[-1], q.shape[-1])
    attended = torch.softmax(q @ k.mT * scale, -1) @ v
    return F.linear(join(attended).reshape(y.shape), w["attention.output.weight"], w["attention.output.bias"])


def _mlp(y, w, activation=F.gelu, last=lambda t: t):
    """last: what is applied to the result of fc2."""
    wide = activation(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return last(F.linear(wide, w["mlp.fc2.weight"], w["mlp.fc2.bias"]))


def _block(x, w, heads, eps, norm=_norm, attention=_attention, mlp=_mlp):
    x = x + attention(norm(x, w, "norm1", eps), w, heads)
    return x + mlp(norm(x, w, "norm2", eps), w)


def _parallel(x, w, heads, eps, norm=_norm, attention=_attention, mlp=_mlp):
    y = norm(x, w, "norm1", eps)
    return x + attention(y, w, heads) + mlp(y, w)


def _with(function, **given):
    return lambda *arguments: function(*arguments, **given)


def _weights(change):
    """A mistake in what is taken from w: `change` returns what replaces some of it."""
    return lambda structure: lambda x, w, heads, eps: structure(x, {**w, **change(w)}, heads, eps)


def _without(*names):
    return _weights(lambda w: {name: 0 * w[name] for name in names})


def _order(*order):
    """Queries, keys and values taken in another order."""

    def change(w):
        names = ("attention.qkv.weight", "attention.qkv.bias")
        return {name: torch.cat([w[name].chunk(3)[index] for index in order]) for name in names}

    return _weights(change)


def _changed(**given):
    return lambda structure: _with(structure, **given)


def _attending(**given):
    return _changed(attention=_with(_attention, **given))


# What mistakes both kinds of block may have: a hint, and a change of `_block` or `_parallel`.
_ORDERED = "packed holds for each token its queries, then its keys, then its values: one is taken for another."
_SPLIT = (
    "packed is split wrongly: of a token's 3 * hidden numbers the slowest index is which of the three, then comes the head, then "
    "the place in the head; and heads is how many there are, not how large they are."
)
_JOIN = (
    "Attention's result has the heads before the tokens: before the out projection the heads of one token are put side by side "
    "again, in their order."
)
_SCALE = "Scores are multiplied by 1 / sqrt(head_size), which is what attention takes where it is given no scale: yours have "
_EPS = "eps is an argument, which the norm takes: a fixed one was used."
_COMMON: list[tuple[str, Callable]] = [
    *((_ORDERED, _order(q, k, v)) for q in range(3) for k in range(3) for v in range(3) if (q, k, v) != (0, 1, 2)),
    (_SPLIT, _attending(split=lambda packed, heads: packed.unflatten(-1, (heads, 3, -1)).permute(3, 0, 2, 1, 4))),
    (_SPLIT, _attending(split=lambda packed, heads: packed.unflatten(-1, (3, -1, heads)).permute(2, 0, 3, 1, 4))),
    (_SPLIT, _attending(split=lambda packed, heads: packed.unflatten(-1, (3, -1, heads)).permute(2, 0, 4, 1, 3))),
    (_SPLIT, _attending(split=lambda packed, heads: packed.unflatten(-1, (heads, -1, 3)).permute(4, 0, 2, 1, 3))),
    ("Tokens attend to tokens, and heads do not see each other: attention takes (batch, heads, tokens, head_size), and yours has "
     "tokens and heads exchanged.",
     _attending(split=lambda packed, heads: packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 1, 3, 4), join=lambda a: a)),
    (_JOIN, _attending(join=lambda attended: attended)),
    (_JOIN, _attending(join=lambda attended: attended.mT)),
    (_JOIN, _attending(join=lambda attended: attended.permute(0, 2, 3, 1))),
    (_SCALE + "no scale.", _attending(scale=lambda hidden, size: 1.0)),
    (_SCALE + "1 / sqrt(hidden).", _attending(scale=lambda hidden, size: hidden**-0.5)),
    (_SCALE + "1 / head_size, or that factor twice.", _attending(scale=lambda hidden, size: 1 / size)),
    (_SCALE + "sqrt(head_size).", _attending(scale=lambda hidden, size: size**0.5)),
    ("GELU is missing between fc1 and fc2.", _changed(mlp=_with(_mlp, activation=lambda t: t))),
    ('This is the tanh form of GELU, and the block has the exact one: "gelu".',
     _changed(mlp=_with(_mlp, activation=_with(F.gelu, approximate="tanh")))),
    ("The activation between fc1 and fc2 is GELU: yours is ReLU.", _changed(mlp=_with(_mlp, activation=F.relu))),
    ("GELU comes between fc1 and fc2: yours comes after fc2.", _changed(mlp=_with(_mlp, activation=lambda t: t, last=F.gelu))),
    ("GELU comes once, between fc1 and fc2: fc2 has no activation.", _changed(mlp=_with(_mlp, last=F.gelu))),
    ("The bias of QKV is missing.", _without("attention.qkv.bias")),
    ("The bias of the out projection is missing.", _without("attention.output.bias")),
    ("The bias of fc1 is missing.", _without("mlp.fc1.bias")),
    ("The bias of fc2 is missing.", _without("mlp.fc2.bias")),
    ("The two biases of attention are missing.", _without("attention.qkv.bias", "attention.output.bias")),
    ("The two biases of the MLP are missing.", _without("mlp.fc1.bias", "mlp.fc2.bias")),
    ("The biases of all four products are missing.",
     _without("attention.qkv.bias", "attention.output.bias", "mlp.fc1.bias", "mlp.fc2.bias")),
    ("The out projection is missing: attention's result goes through it before it is added.",
     _weights(lambda w: {"attention.output.weight": torch.eye(len(w["attention.output.weight"])).to(w["mlp.fc2.weight"]),
                         "attention.output.bias": 0 * w["attention.output.bias"]})),
    ("A norm takes mean and variance over a token's own numbers, the last dimension: yours takes them over the tokens.",
     _changed(norm=_with(_norm, over=(1,)))),
    ("A norm takes mean and variance over a token's own numbers, the last dimension: yours takes them over all tokens at once.",
     _changed(norm=_with(_norm, over=(1, 2)))),
    *((_EPS, _changed(norm=lambda x, w, which, eps, fixed=fixed: _norm(x, w, which, fixed)))
      for fixed in (1e-12, 1e-6, 1e-5, 1e-8, 1e-3)),
    *((f"The norms' {what} is missing.", _weights(lambda w, what=what, value=value: {
        name: torch.full_like(w[name], value) for name in w if name.startswith("norm") and name.endswith(what)}))
      for what, value in (("bias", 0.0), ("weight", 1.0))),
    ("The norms' weights and biases are missing.", _weights(lambda w: {
        name: torch.full_like(w[name], name.endswith("weight")) for name in w if name.startswith("norm")})),
    ("The norm's weight and bias are exchanged: the weight comes first.", _weights(lambda w: {
        f"{which}.{what}": w[f"{which}.{other}"] for which in ("norm1", "norm2") if f"{which}.weight" in w
        for what, other in (("weight", "bias"), ("bias", "weight"))})),
]  # fmt: skip


def _halves(first, second):
    """A block from its two halves: `first(x, w, heads, eps)`, the tokens after attention; `second(before, x, w, eps)`."""
    return lambda x, w, heads, eps: second(x, first(x, w, heads, eps), w, eps)


def _attended(x, w, heads, eps):
    return _attention(_norm(x, w, "norm1", eps), w, heads)


def _first(x, w, heads, eps):
    return x + _attended(x, w, heads, eps)


def _second(before, x, w, eps):
    return x + _mlp(_norm(x, w, "norm2", eps), w)


def _norms(of):
    """The parameters of each norm taken from another. of: {norm: the one it takes from}."""

    def change(w):
        return {f"{which}.{what}": w[f"{other}.{what}"] for which, other in of.items() for what in ("weight", "bias")}

    return _weights(change)(_block)


_RESIDUAL = "What each half of a block computes is added to the tokens that came into that half, as they were before their norm: "
_BLOCK: list[tuple[str, Callable]] = [
    (_RESIDUAL + "in one half it is added to what the norm returned.",
     _halves(_first, lambda before, x, w, eps: _norm(x, w, "norm2", eps) + _mlp(_norm(x, w, "norm2", eps), w))),
    (_RESIDUAL + "in one half it is added to what the norm returned.",
     _halves(lambda x, w, heads, eps: _norm(x, w, "norm1", eps) + _attended(x, w, heads, eps), _second)),
    (_RESIDUAL + "in both halves it is added to what the norm returned.",
     _halves(lambda x, w, heads, eps: _norm(x, w, "norm1", eps) + _attended(x, w, heads, eps),
             lambda before, x, w, eps: _norm(x, w, "norm2", eps) + _mlp(_norm(x, w, "norm2", eps), w))),
    ("The first residual is missing: attention's result is added to the tokens.", _halves(_attended, _second)),
    ("The second residual is missing: the MLP's result is added to the tokens that attention has left.",
     _halves(_first, lambda before, x, w, eps: _mlp(_norm(x, w, "norm2", eps), w))),
    ("Both residuals are missing: attention's result is added to the tokens, and then the MLP's.",
     _halves(_attended, lambda before, x, w, eps: _mlp(_norm(x, w, "norm2", eps), w))),
    ("The second residual is the block's input: the MLP is added to the tokens that attention has left.",
     _halves(_first, lambda before, x, w, eps: before + _mlp(_norm(x, w, "norm2", eps), w))),
    ("The second residual is there twice.", _halves(_first, lambda before, x, w, eps: x + _second(before, x, w, eps))),
    ("The first residual is there twice.", _halves(lambda x, *rest: x + _first(x, *rest), _second)),
    ("The norms come first here, before attention and before the MLP: yours come after the sums.",
     lambda x, w, heads, eps: (lambda y: _norm(y + _mlp(y, w), w, "norm2", eps))(
         _norm(x + _attention(x, w, heads), w, "norm1", eps))),
    ("The norms come first here, before attention and before the MLP: yours come after each of them.",
     lambda x, w, heads, eps: (lambda y: y + _norm(_mlp(y, w), w, "norm2", eps))(
         x + _norm(_attention(x, w, heads), w, "norm1", eps))),
    ("norm1 is missing: attention reads the tokens normalized.",
     _halves(lambda x, w, heads, eps: x + _attention(x, w, heads), _second)),
    ("norm2 is missing: the MLP reads the tokens normalized.", _halves(_first, lambda before, x, w, eps: x + _mlp(x, w))),
    ("The MLP reads what norm2 returns: yours reads the block's input.",
     _halves(_first, lambda before, x, w, eps: x + _mlp(before, w))),
    ("Both norms are missing.",
     _halves(lambda x, w, heads, eps: x + _attention(x, w, heads), lambda before, x, w, eps: x + _mlp(x, w))),
    ("norm2 normalizes the tokens that attention has left, not the block's input.",
     _halves(_first, lambda before, x, w, eps: x + _mlp(_norm(before, w, "norm2", eps), w))),
    ("norm2 normalizes the tokens that attention has left: yours normalizes what norm1 has normalized.",
     lambda x, w, heads, eps: _first(x, w, heads, eps) + _mlp(_norm(_norm(x, w, "norm1", eps), w, "norm2", eps), w)),
    ("norm2 normalizes the tokens after the residual was added: yours normalizes attention's result alone.",
     lambda x, w, heads, eps: _first(x, w, heads, eps) + _mlp(_norm(_attended(x, w, heads, eps), w, "norm2", eps), w)),
    ("The second half of the block, norm2 and the MLP, is missing.", _first),
    ("The first half of the block, norm1 and attention, is missing.", lambda x, w, heads, eps: _second(x, x, w, eps)),
    ("The MLP comes after attention: yours comes before it.",
     lambda x, w, heads, eps: _first(_second(x, x, w, eps), w, heads, eps)),
    ("The two norms have weights and biases of their own: norm2 has those of norm1.", _norms({"norm2": "norm1"})),
    ("The two norms have weights and biases of their own: norm1 has those of norm2.", _norms({"norm1": "norm2"})),
    *((f"The weight and the bias of {which} are exchanged: the weight comes first.", _weights(lambda w, which=which: {
        f"{which}.weight": w[f"{which}.bias"], f"{which}.bias": w[f"{which}.weight"]})(_block)) for which in ("norm1", "norm2")),
    ("The weights and biases of the two norms are exchanged.", _norms({"norm1": "norm2", "norm2": "norm1"})),
    *((f"eps is an argument, which both norms take: {which} has a fixed one.", _with(
        _block, norm=lambda x, w, norm, eps, which=which, fixed=fixed: _norm(x, w, norm, fixed if norm == which else eps)))
      for which in ("norm1", "norm2") for fixed in (1e-12, 1e-6, 1e-5, 1e-8, 1e-3)),
]  # fmt: skip


def _beside(attention=lambda y, x: y, mlp=lambda y, x, a: y, total=lambda y, x, a, m: x + a + m, norm=_norm):
    """A parallel block. attention, mlp: what the two read, y normalized, x not, a attention's result; total: their sum."""

    def block(x, w, heads, eps):
        y = norm(x, w, "norm1", eps)
        a = _attention(attention(y, x), w, heads)
        return total(y, x, a, _mlp(mlp(y, x, a), w))

    return block


def _tokens_attended(x, w, heads, eps, projected):
    """Attention's result before or after the out projection, without a residual."""
    plain = {"attention.output.weight": torch.eye(x.shape[-1]).to(x), "attention.output.bias": torch.zeros(x.shape[-1]).to(x)}
    return _attended(x, w if projected else {**w, **plain}, heads, eps)


_SIDE = "In a parallel block the MLP reads what attention reads, the norm of the block's input: "
_SUM = "The result is the sum of three, the block's input and the results of attention and of the MLP: "
_PARALLEL: list[tuple[str, Callable]] = [
    (_SIDE + "yours reads the norm of the sum after attention, as a sequential block does.",
     lambda x, w, heads, eps: (lambda s: s + _mlp(_norm(s, w, "norm1", eps), w))(_first(x, w, heads, eps))),
    (_SIDE + "yours reads the sum after attention.", _beside(mlp=lambda y, x, a: x + a)),
    (_SIDE + "yours reads attention's result.", _beside(mlp=lambda y, x, a: a)),
    (_SIDE + "yours reads attention's result.",
     lambda x, w, heads, eps: _first(x, w, heads, eps) + _mlp(_tokens_attended(x, w, heads, eps, False), w)),
    (_SIDE + "yours reads the norm of attention's result.",
     lambda x, w, heads, eps: _first(x, w, heads, eps) + _mlp(_norm(_attended(x, w, heads, eps), w, "norm1", eps), w)),
    (_SIDE + "yours reads that input without the norm.", _beside(mlp=lambda y, x, a: x)),
    ("Attention reads the norm of the block's input, as the MLP does: yours reads that input without the norm.",
     _beside(attention=lambda y, x: x)),
    ("The norm is missing: attention and MLP both read the block's input normalized.",
     _beside(attention=lambda y, x: x, mlp=lambda y, x, a: x)),
    ("The norm comes once, before attention and MLP: the MLP reads one of what is normalized already.",
     lambda x, w, heads, eps: _first(x, w, heads, eps) + _mlp(_norm(_norm(x, w, "norm1", eps), w, "norm1", eps), w)),
    ("The norm comes before attention and MLP: yours comes after the sum.",
     lambda x, w, heads, eps: _norm(x + _attention(x, w, heads) + _mlp(x, w), w, "norm1", eps)),
    (_SUM + "the input is in it twice.", _beside(total=lambda y, x, a, m: x + x + a + m)),
    (_SUM + "the input is not in it.", _beside(total=lambda y, x, a, m: a + m)),
    (_SUM + "attention's result is not in it.", _beside(total=lambda y, x, a, m: x + m)),
    (_SUM + "the MLP's result is not in it.", _beside(total=lambda y, x, a, m: x + a)),
    (_SUM + "of the three only the MLP's result is in it.", _beside(total=lambda y, x, a, m: m)),
    (_SUM + "of the three only attention's result is in it.", _beside(total=lambda y, x, a, m: a)),
    (_SUM + "attention's result is in it twice.", _beside(total=lambda y, x, a, m: x + a + a + m)),
    (_SUM + "in place of the input it has the norm of the input.", _beside(total=lambda y, x, a, m: y + a + m)),
    (_SUM + "it has the norm of the input as well.", _beside(total=lambda y, x, a, m: x + y + a + m)),
    (_SUM + "it has the norm of the input in place of the input and of attention's result.",
     _beside(total=lambda y, x, a, m: y + m)),
    (_SUM + "in place of the input and of attention's result it has what the out projection reads.",
     lambda x, w, heads, eps: _tokens_attended(x, w, heads, eps, False) + _mlp(_norm(x, w, "norm1", eps), w)),
]  # fmt: skip


# ---- Trying a block -----------------------------------------------------------------------------------------------------------

# batch, tokens, heads, hidden, intermediate
_SHAPES = ((1, 1, 1, 6, 10), (1, 5, 1, 6, 10), (1, 5, 3, 12, 20), (2, 17, 2, 20, 33))
_TRIED = (
    "one token and several, 1 to 3 heads, widths that are no powers of two, a batch, an eps that shows, float32 and float16; "
    "inputs unchanged"
)


class _Weights(dict):
    """The tensors of a block by their names; for one that there is not it says which there are."""

    def __missing__(self, name):
        layers = [known.removesuffix(".weight") for known in self if known.endswith(".weight")]
        raise KeyError(f"w has no {name}; its layers are {', '.join(layers)}")


class _Watch(TorchDispatchMode):
    """Keeps the names of PyTorch's own operations that compute something: no views, copies or allocations."""

    MOVING = (
        "empty new_empty zeros new_zeros ones new_ones full new_full zero fill set clone copy _to_copy cat stack detach lift "
        "_unsafe_view _reshape_alias"
    ).split()

    def __init__(self):
        super().__init__()
        self.computed: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        plain = name.rstrip("_").removesuffix("_like").removesuffix("_strided").removesuffix("_fresh").removesuffix("_copy")
        results = result if isinstance(result, (tuple, list)) else (result,)
        numbers = any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in results)
        if "::" not in name and not function.is_view and not {name, plain} & set(self.MOVING) and numbers:
            self.computed.append(name)
        return result


def _case(names: Iterable[str], batch, tokens, heads, hidden, intermediate, dtype, eps=1e-12, scale=16.0) -> Case:
    """Tokens around `scale`, and weights with which attention is far from even and every step shows in the result.

    As many numbers of a token are positive as negative, and what attention adds is no larger, so that the variance is near the
    square of `scale`: an eps of 1e-5 makes no difference beside 16, and one of 1e-2 does beside 0.1. The first number that fc2
    adds is below 0, where an activation too many shows.
    """
    out, into = hidden**-0.5, intermediate**-0.5
    shapes = {
        "norm1.weight": ((hidden,), 1.0), "norm1.bias": ((hidden,), 1.0),
        "attention.qkv.weight": ((3 * hidden, hidden), 0.5 * out), "attention.qkv.bias": ((3 * hidden,), 0.5),
        "attention.output.weight": ((hidden, hidden), scale / 4 * out), "attention.output.bias": ((hidden,), scale / 16),
        "norm2.weight": ((hidden,), 1.0), "norm2.bias": ((hidden,), 1.0),
        "mlp.fc1.weight": ((intermediate, hidden), 0.75 * out), "mlp.fc1.bias": ((intermediate,), 0.5),
        "mlp.fc2.weight": ((hidden, intermediate), 8 * into), "mlp.fc2.bias": ((hidden,), 1.0),
    }  # fmt: skip
    weights = {f'w["{name}"]': draw(shapes[name][0], dtype, shapes[name][1]) for name in names}
    weights['w["mlp.fc2.weight"]'][0].abs_().neg_()
    signs = 1 - 2 * (torch.rand(batch, tokens, hidden).argsort(-1) % 2)
    x = draw((batch, tokens, hidden), dtype, scale).abs() * signs
    images = "" if batch == 1 else f"{batch} images of "
    label = (
        f"{images}{tokens} token{'s' * (tokens > 1)} of {hidden} numbers, {heads} head{'s' * (heads > 1)}, intermediate "
        f"{intermediate}, eps {eps:g}, in {type_name(dtype)}"
    )
    return Case(label, {"x": x, **weights, "heads": heads, "eps": eps})


_NAMES = tuple(
    f"{layer}.{what}"
    for layer in ("norm1", "attention.qkv", "attention.output", "norm2", "mlp.fc1", "mlp.fc2")
    for what in ("weight", "bias")
)


def _unread(attempt: Attempt) -> str:
    """Which of the weights no kernel has read."""
    tensors = {name: value for name, value in attempt.arguments.items() if isinstance(value, torch.Tensor)}
    accesses = attempt.trace.accesses if attempt.trace else ()
    read = [name for name, tensor in tensors.items() if any(_touches(a, tensor) for a in accesses if a.kind == "load")]
    unread = [name for name in tensors if name not in read]
    if not read or not unread:
        return ""
    others = f" and {len(unread) - 1} other tensors" if len(unread) > 1 else ""
    return f"No kernel has read {unread[0]}{others}: is a layer left out, or another in its place?"


def _step_by_step(steps: str) -> Callable[[Attempt], str]:
    def clue(attempt: Attempt) -> str:
        error = (attempt.result.detach().double() - attempt.expected).abs().max() / attempt.expected.abs().max()
        if not error.isfinite():
            return ""  # the judge has a hint for these
        if attempt.result.dtype == torch.float32 and 1e-5 < error < 1e-2:
            return "Only about three digits are right: something is computed or stored in float16 on the way."
        return f"Do the same in plain PyTorch on such a case, and compare after each step: {steps}."

    return clue


def _judge_block(
    function: Callable, names: tuple[str, ...], reference: Callable, mistakes: list, tried: str, steps: str,
    rule: Callable[[Attempt, list[str]], None],
) -> Verdict:  # fmt: skip
    """Judge a function of (x, w, heads, eps). rule: looks at an attempt in the interpreter whose values are right, and at what
    PyTorch computed there."""
    watch = _Watch()

    def unpacked(structure):
        return lambda x, *rest: structure(x, dict(zip(names, rest)), *rest[len(names) :])

    @functools.wraps(function)
    def watched(x, *rest):
        watch.computed.clear()
        with watch:
            return function(x, _Weights(zip(names, rest)), *rest[len(names) :])

    def cases(dtypes):
        found = [_case(names, *shape, torch.float32) for shape in _SHAPES]
        found += [_case(names, *_SHAPES[2], torch.float32, eps=1e-2, scale=0.1)]
        return found + [_case(names, *shape, dtype) for dtype in dtypes[1:] for shape in _SHAPES[3:]]

    exercise = Exercise(
        unpacked(reference),
        cases,
        lambda: _case(names, 4, 197, 3, 192, 768, torch.float32),
        [(hint, unpacked(mistake)) for hint, mistake in mistakes],
        tried,
        rules=[lambda attempt: rule(attempt, watch.computed) if attempt.trace else None],
        clues=[_unread, _step_by_step(steps)],
        form="The result has x's shape and type: (batch, tokens, hidden), as every layer of the block hands it on.",
        torch_may_compute=True,
    )
    # Threads cost more than such tensors take, many times that on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return judge(watched if callable(function) else function, exercise)
    finally:
        torch.set_num_threads(threads)


def block(function: Callable) -> Verdict:
    """Lesson 12: `function(x, w, heads, eps)`, a ViT's block: x + attention(norm1(x)), and to that its mlp(norm2(...)).

    x: (batch, tokens, hidden). w: the tensors of `vitcourse.layers.Block(...).state_dict()` by their names.
    """

    def rule(attempt: Attempt, computed: list[str]) -> None:
        if not attempt.trace.launches:
            raise Wrong(
                "The values are right, but no kernel was launched: PyTorch has done all of the work.",
                "Keep the block on vitcourse's kernels, and change what is wrong in it.",
            )

    return _judge_block(
        function, _NAMES, _block, [*_BLOCK, *((hint, change(_block)) for hint, change in _COMMON)], _TRIED,
        "norm1, QKV, attention, out projection with its residual, norm2, fc1 with GELU, fc2 with its residual", rule,
    )  # fmt: skip


# ---- A parallel block ---------------------------------------------------------------------------------------------------------

# What PyTorch computed, by a part of the operation's name: what that is, and what does it instead.
_BY_TORCH = (
    ("norm", "a norm", "kernels.layer_norm does it in one launch."),
    ("gelu|relu|erf|tanh|sigmoid", "the activation", "It belongs into the launch of fc1: kernels.linear takes an activation."),
    ("attention|softmax|bmm", "attention", "kernels.scaled_dot_product_attention does it in one launch."),
    ("mm|linear|matmul|addmv|dot", "a product", "kernels.linear does it in one launch, with bias, activation and residual."),
    ("add|sum", "a sum", "A sum belongs into the launch before it: kernels.linear takes a residual."),
)


def _six_launches(attempt: Attempt, computed: list[str]) -> None:
    for name in computed:
        for part, what, hint in _BY_TORCH:
            if any(word in name for word in part.split("|")):
                raise Wrong(f"The values are right, but PyTorch computes {what}, not a kernel of this package.", hint)
        raise Wrong(
            f"The values are right, but PyTorch computes a part of them ({name.strip('_')}).",
            "Leave everything that computes to kernels; PyTorch only says which numbers they read, as views.",
        )
    launched = [launch.kernel for launch in attempt.trace.launches]
    if len(launched) <= 6:
        return

    def count(*words: str) -> int:
        return sum(any(word in kernel for word in words) for kernel in launched)

    if launched[:6] * (len(launched) // 6) == launched:
        hint = "The same six come again and again: each of them takes all images of the batch at once."
    elif count("layer_norm") > 1:
        hint = "The norm is computed twice: attention and MLP read the same one."
    elif count("gelu"):
        hint = "GELU has a launch of its own: it belongs into that of fc1, kernels.linear takes an activation."
    elif count("add"):
        hint = "A sum has a launch of its own: it belongs into that of the product before it, kernels.linear takes a residual."
    elif count("softmax", "bmm"):
        hint = "Attention takes several launches: kernels.scaled_dot_product_attention does it in one, for all heads."
    elif count("attention") > 1:
        hint = "Attention takes several launches: one does it for all images and heads."
    elif count("linear") > 4:
        hint = "There are more than four products: one gives queries, keys and values, and out, fc1 and fc2 are one each."
    else:
        hint = "The six: norm, QKV, attention, out projection with the residual, fc1 with GELU, fc2 with the rest of the sum."
    raise Wrong(f"The values are right, but {len(launched)} kernels were launched, and six are enough.", hint)


def parallel_block(function: Callable) -> Verdict:
    """Lesson 12: `function(x, w, heads, eps)`, the block of ViT-22B: x + attention(norm1(x)) + mlp(norm1(x)), in six launches.

    Dehghani et al., arXiv 2302.05442, section 2. x and w as for `block`, without norm2.
    """
    names = tuple(name for name in _NAMES if not name.startswith("norm2"))
    return _judge_block(
        function, names, _parallel, [*_PARALLEL, *((hint, change(_parallel)) for hint, change in _COMMON)],
        f"{_TRIED}; six launches at most, and PyTorch computes nothing",
        "the norm, QKV, attention, out projection, fc1 with GELU, fc2, and the sum of three", _six_launches,
    )  # fmt: skip
