"""The checks of lesson 08: attention from batched products and softmax.

Inputs in float32 have no more digits than float16, which tf32 holds exactly: a product is right whether `tl.dot` was told
"tf32", its default on a GPU, or "ieee". What is rounded on the way, as the probabilities are, has a tolerance for tf32 on a GPU.
"""

import ast
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch

from .. import trace as tracing
from .judge import Attempt, Case, Exercise, Verdict, Wrong, _mask_of, draw, judge, judge_plain, number, type_name
from .lesson_02 import one_launch, read_by_the_kernel, tiles_stored_once
from .lesson_06 import LONG, THIRD, left_of_K, long_sum

# The blocks that a matrix product is likely to take its sums in.
_STEPS = (16, 32, 64, 128)


def exact(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Values as `draw` has them that tf32 holds exactly; scale: a power of two."""
    return draw(shape, torch.float16).to(torch.float32).mul(scale).to(dtype)


def rounding(dtype: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> float:
    """A tolerance for probabilities that are rounded before they multiply values of at most 2, by themselves or by their scores.

    A tf32 product on a GPU, the only place with bfloat16, cuts off what float32 has beyond 10 bits, also of scaled queries.
    """
    if dtype == torch.float32:
        return 1e-2 if torch.bfloat16 in dtypes else 1e-5
    return 8 * torch.finfo(dtype).eps


# ---- Offsets and bytes ----------------------------------------------------------------------------------------------------


def head_offset(function: Callable) -> Verdict:
    """Lesson 08: `function(batch, token, which, head, d, tokens, heads, head_size)`, the offset of a number in packed queries,
    keys and values: a contiguous (batches, tokens, 3 * heads * head_size). which: 0, 1, 2 for query, key, value.
    """

    def of(hidden):
        """An offset whose place among a token's 3 * heads * head_size numbers is `hidden`."""
        return lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + hidden(w, h, d, H, D)

    def within(w, h, d, H, D):
        return (w * H + h) * D + d

    reference = of(within)
    generator = np.random.default_rng()
    drawn = []
    for _ in range(4):
        sizes = [int(n) for n in generator.integers(3, 30, 3)]
        tokens, heads, head_size = sizes
        inside = [int(generator.integers(1, n)) for n in (9, tokens, 3, heads, head_size)]
        drawn.append((*inside, *sizes))
    cases = [
        (0, 0, 0, 0, 1, 5, 2, 4),
        (0, 0, 0, 1, 0, 5, 2, 4),
        (0, 0, 1, 0, 0, 5, 2, 4),
        (0, 1, 0, 0, 0, 5, 2, 4),
        (1, 0, 0, 0, 0, 5, 2, 4),
        (1, 4, 2, 1, 3, 5, 2, 4),
        (7, 196, 2, 11, 63, 197, 12, 64),
        *drawn,
    ]
    mistakes = [
        ("The order within a token is which, head, d, and yours has head before which: (which * heads + head) * head_size + d.",
         of(lambda w, h, d, H, D: (h * 3 + w) * D + d)),
        ("d runs fastest: the numbers of a head are neighbours, (which * heads + head) * head_size + d.",
         of(lambda w, h, d, H, D: (w * D + d) * H + h)),
        ("The order within a token is which, head, d: the last, d, runs fastest.",
         of(lambda w, h, d, H, D: (h * D + d) * 3 + w)),
        ("A token has 3 * heads * head_size numbers, its query, key and value: the 3 is missing.",
         lambda b, t, w, h, d, T, H, D: (b * T + t) * H * D + within(w, h, d, H, D)),
        ("An image has `tokens` tokens: image number `batch` begins at batch * tokens * 3 * heads * head_size.",
         lambda b, t, w, h, d, T, H, D: (b + t) * 3 * H * D + within(w, h, d, H, D)),
        ("Query, key and value lie side by side within each token: the step from one to the next is heads * head_size.",
         lambda b, t, w, h, d, T, H, D: ((w + 3 * b) * T + t) * H * D + h * D + d),
        ("The heads of a token lie within it: the step from head to head is head_size, not that of the tokens.",
         lambda b, t, w, h, d, T, H, D: (((b * 3 + w) * H + h) * T + t) * D + d),
        ("batch was left out: an image has tokens * 3 * heads * head_size numbers.",
         lambda b, t, w, h, d, T, H, D: t * 3 * H * D + within(w, h, d, H, D)),
        ("token was left out: a token has 3 * heads * head_size numbers.",
         lambda b, t, w, h, d, T, H, D: b * T * 3 * H * D + within(w, h, d, H, D)),
        ("which was left out: keys begin heads * head_size after the queries of their token, values twice that.",
         of(lambda w, h, d, H, D: h * D + d)),
        ("head was left out: head number `head` begins at head * head_size.", of(lambda w, h, d, H, D: w * H * D + d)),
        ("d was left out: it is added as it is.", of(lambda w, h, d, H, D: (w * H + h) * D)),
        ("From query to key the step is all heads of a token, heads * head_size, not head_size.",
         of(lambda w, h, d, H, D: (w + h) * D + d)),
        ("From head to head the step is head_size, not 1.", of(lambda w, h, d, H, D: w * H * D + h + d)),
        ("That is in bytes: the offset counts elements.", lambda *case: 2 * reference(*case)),
        ("That is in bytes: the offset counts elements.", lambda *case: 4 * reference(*case)),
    ]  # fmt: skip
    return judge_plain(
        function,
        "head_offset",
        cases,
        reference,
        mistakes,
        "Each index counts what lies after it: d counts 1, head head_size, which heads * head_size, token three times that, and "
        "batch `tokens` tokens. Add up the five products.",
        "each index alone, all together, the last number of eight images of ViT-B/16, and indices drawn at random",
        number,
    )


def attention_traffic(function: Callable) -> Verdict:
    """Lesson 08: `function(batch, heads, tokens, head_size)`, the bytes that attention moves in three kernels.

    An element has 2 bytes. Each kernel reads its inputs once and writes its output once: the scores, scaled in the same kernel,
    from queries and keys; the softmax from the scores; the output from the probabilities and the values.
    """

    def moved(vectors, squares):
        """Bytes for so many tensors of tokens x head_size and of tokens x tokens, a head."""
        return lambda b, h, t, d: 2 * b * h * (vectors * t * d + squares * t * t)

    reference = moved(4, 4)
    generator = np.random.default_rng()
    drawn = [tuple(int(n) for n in generator.integers(2, 300, 4)) for _ in range(4)]
    cases = [(1, 1, 1, 2), (1, 1, 5, 2), (1, 3, 5, 2), (2, 3, 5, 2), (8, 12, 197, 64), *drawn]
    by_matrix = "The tokens x tokens matrices are written and read again: the scores, and the probabilities."
    mistakes = [
        ("That is a number of elements: each has 2 bytes.", lambda *case: reference(*case) / 2),
        ("An element has 2 bytes here, not 4.", lambda *case: reference(*case) * 2),
        ("That is what one kernel would move, without the matrices of scores and probabilities. " + by_matrix, moved(4, 0)),
        ("The scores were counted once: " + by_matrix[0].lower() + by_matrix[1:], moved(4, 2)),
        ("A matrix is written and read: of the four times that scores and probabilities move, one is missing.", moved(4, 3)),
        ("One matrix of tokens x tokens was counted: " + by_matrix[0].lower() + by_matrix[1:], moved(4, 1)),
        ("The scale costs no pass of its own: it is a factor in the kernel that computes the scores.", moved(4, 6)),
        ("The scale costs no pass of its own, and no reading either: it is a factor in the kernel of the scores.", moved(4, 5)),
        ("The output is written as well: tokens * head_size a head.", moved(3, 4)),
        ("Queries, keys, values and the output move once each: tokens * head_size a head.", moved(2, 4)),
        ("Queries, keys, values and the output move once each: tokens * head_size a head.", moved(1, 4)),
        ("Queries, keys, values and the output move too: tokens * head_size each, a head.", moved(0, 4)),
        ("Every head has its own queries, keys, values and scores: times heads.", lambda b, h, t, d: reference(b, 1, t, d)),
        ("Each head has its own matrix of scores: only queries, keys, values and output were multiplied by heads.",
         lambda b, h, t, d: 2 * b * (h * 4 * t * d + 4 * t * t)),
        ("Queries, keys, values and the output have head_size numbers in every head: only the scores were multiplied by heads.",
         lambda b, h, t, d: 2 * b * (4 * t * d + h * 4 * t * t)),
        ("Every image has its own: times batch.", lambda b, h, t, d: reference(1, h, t, d)),
        ("The scores of a head are tokens x tokens, each query with each key: not tokens x head_size.",
         lambda b, h, t, d: 2 * b * h * 8 * t * d),
        ("Images do not look at each other: batch times tokens x tokens, not (batch * tokens) squared.",
         lambda b, h, t, d: 2 * h * (4 * b * t * d + 4 * (b * t) ** 2)),
    ]  # fmt: skip
    return judge_plain(
        function,
        "attention_traffic",
        cases,
        reference,
        mistakes,
        "Three kernels. Scores: read q and k, write S. Softmax: read S, write P. Output: read P and v, write o. For one head of "
        "one image S and P have tokens * tokens elements, the others tokens * head_size.",
        "one token, one head, one image, ViT-B/16 at batch 8, and sizes drawn at random",
        number,
    )


# ---- A batch of products --------------------------------------------------------------------------------------------------

# How a (batch, rows, columns) may lie in memory, by the name that a verdict gives it.
_LAYOUTS: dict[str, Callable] = {
    "contiguous": lambda batch, rows, columns, new: new((batch, rows, columns)),
    "transposed": lambda batch, rows, columns, new: new((batch, columns, rows)).mT,
    "heads of tokens": lambda batch, rows, columns, new: new((rows, batch, columns)).transpose(0, 1),
    "every second column": lambda batch, rows, columns, new: new((batch, rows, 2 * columns))[:, :, ::2],
    "expanded": lambda batch, rows, columns, new: new((1, rows, columns)).expand(batch, rows, columns),
}


def _steps(K: int, step: int) -> list[tuple[int, int]]:
    """For each step along K: where it starts, and how much of K it has."""
    return [(start, min(step, K - start)) for start in range(0, K, step)]


def _product_mistakes() -> list[tuple[str, Callable]]:
    def at(hint, mistake):
        return [(hint, lambda a, b, step=step: mistake(a, b, step)) for step in _STEPS]

    def last(a, b, step):
        start, _ = _steps(a.shape[2], step)[-1]
        return a[:, :, start:] @ b[:, start:]

    def stuck(move_a, move_b):
        def mistake(a, b, step):
            parts = _steps(a.shape[2], step)
            first, second = ([start * move for start, _ in parts] for move in (move_a, move_b))
            widths = [width for _, width in parts]
            return sum(a[:, :, i : i + n] @ b[:, j : j + n] for i, j, n in zip(first, second, widths))

        return mistake

    both = "The pointers stay at the first step: in each turn a_ptrs moves on by BLOCK_K columns and b_ptrs by BLOCK_K rows."
    return [
        ("Every value came out as 0: the loop along K makes no turn, or its products are not added up. It is "
         "range(0, K, BLOCK_K), the last step with a mask.", lambda a, b: 0 * (a @ b)),
        *at("The result is of the last step along K only: the accumulator is added to, accumulator = tl.dot(a, b, accumulator).",
            last),
        *at(both, stuck(0, 0)),
        *at(both, lambda a, b, step: len(_steps(a.shape[2], step)) * (a[:, :, :step] @ b[:, :step])),
        *at("a's pointers stay at the first step: in each turn they move on by BLOCK_K * a_column_stride.", stuck(0, 1)),
        *at("b's pointers stay at the first step: in each turn they move on by BLOCK_K * b_row_stride.", stuck(1, 0)),
        *at("The last, cut step along K is missing: the loop goes to the end, range(0, K, BLOCK_K), with a mask.",
            lambda a, b, step: a[:, :, : a.shape[2] // step * step] @ b[:, : a.shape[2] // step * step]),
        *at("Only the first BLOCK_K of the K products are summed: a loop goes along K, for start in range(0, K, BLOCK_K).",
            lambda a, b, step: a[:, :, :step] @ b[:, :step]),
        ("a and b of the first entry were taken for all: add batch * a_batch_stride and batch * b_batch_stride.",
         lambda a, b: (a[:1] @ b[:1]).expand(a.shape[0], -1, -1)),
        ("a of the first entry was taken for all: add batch * a_batch_stride to a's pointers.", lambda a, b: a[:1] @ b),
        ("b of the first entry was taken for all: add batch * b_batch_stride to b's pointers.", lambda a, b: a @ b[:1]),
        ("The product is of the magnitudes: something takes the signs away.", lambda a, b: a.abs() @ b.abs()),
    ]  # fmt: skip


def _address_clue(attempt: Attempt) -> str:
    """Which of a and b is read from wrong places, where that explains the result."""
    a, b = attempt.arguments["a"], attempt.arguments["b"]
    stored = torch.from_numpy(~attempt.unwritten).to(a.device)
    pairs = {"a": a, "b": b}

    def matches(other: torch.Tensor) -> bool:
        return bool(((attempt.result.double() - other).abs() <= attempt.tolerance)[stored].all())

    def read(tensor: torch.Tensor, terms: list[Callable]) -> torch.Tensor | None:
        """The tensor as someone reads it who adds up these terms of its three indices for an address."""
        index = [torch.arange(size, device=a.device) for size in tensor.shape]
        one, two, three = (term(i) for term, i in zip(terms, index))
        where = one[:, None, None] + two[:, None] + three
        memory = tensor.as_strided((tracing._span(tensor),), (1,)).double()
        return memory[where] if int(where.max()) < memory.numel() else None

    def by(stride: int) -> Callable:
        return lambda i: i * stride

    for name, other in (("a", "b"), ("b", "a")):
        tensor, along = pairs[name], 2 if name == "a" else 1
        s, r, c = tensor.stride()
        strides = [
            ((s, c, r), f"{name}'s row stride and column stride are exchanged"),
            (tuple(pairs[other].stride()), f"{name} is read with {other}'s strides: every tensor has its own"),
            ((tensor.shape[1] * tensor.shape[2], tensor.shape[2], 1), f"{name} is read as if it were contiguous"),
            ((s, r, 1), f"{name}'s column stride is left out"),
            ((s, 1, c), f"{name}'s row stride is left out"),
            ((1, r, c), f"{name}'s batch stride is left out: entries are {name}_batch_stride apart"),
            ((s, c, c), f"{name}'s column stride is used for its rows as well"),
            ((s, r, r), f"{name}'s row stride is used for its columns as well"),
            ((tensor.shape[1] * tensor.shape[2], r, c), f"{name}'s batch stride is taken to be its rows times its columns"),
            *((order, f"{name}'s strides are exchanged") for order in itertools.permutations((s, r, c))),
        ]
        guesses = [([by(stride) for stride in one], f"{hint}. Element (i, j, k) of {name} is at i * {name}.stride(0) + "
                    f"j * {name}.stride(1) + k * {name}.stride(2).") for one, hint in strides]  # fmt: skip
        for step in _STEPS:
            terms = [by(stride) for stride in (s, r, c)]
            terms[along] = lambda i, step=step, stride=(s, r, c)[along]: i % step * stride + i // step * step
            hint = f"From one step along K to the next {name}'s pointers move on by BLOCK_K elements of memory: it is BLOCK_K * "
            guesses.append((terms, hint + f"{name}_{'column' if along == 2 else 'row'}_stride."))
        for terms, hint in guesses:
            guess = read(tensor, terms)
            if guess is None or torch.equal(guess, tensor.double()):
                continue
            if matches(guess @ b.double() if name == "a" else a.double() @ guess):
                return hint
    if matches(attempt.expected.mT.reshape(attempt.expected.shape)):
        return "The result is stored transposed: element (m, n) of a contiguous product lies at m * N + n."
    return ""


def _product_outside(error: tracing.IllegalAccess) -> str:
    """For a kernel of products that leaves a tensor: how masks look in a loop along K."""
    if error.element < 0 or error.element > error.size + (1 << 20):
        return ""
    if error.kind == "store":
        if "mask" in error.source:
            return ""
        return "This store has no mask, and the last tiles reach past M and N: mask=(m < M)[:, None] & (n < N)[None, :]."
    left = left_of_K(error.trace.launches[-1].function)
    masks = (
        f"A tile of a has the mask (m < M)[:, None] & (k < {left})[None, :], one of b (k < {left})[:, None] & (n < N)[None, :]"
    )
    if "mask" not in error.source:
        return f"This load has no mask. {masks}, with other=0.0."
    mask = _mask_of(error.trace.launches[-1].function, error.source)
    if mask is not None and " - " in ast.unparse(mask):
        return ""  # what is left of K: the judge looks at the rest of the mask, and at the strides
    why = ": k counts from 0 in every step, so it is compared with what is left of K" if left != "K" else ""
    return f"{masks}{why}. If yours are so, the address is wrong: batch, row and column have strides of their own."


def entry_gaps(overwritten: str, unowned: str) -> Callable[[Attempt], str]:
    """The hint for a result of which whole entries along the first dimension were never stored.

    overwritten: where another entry was stored several times; unowned: where that is not so.
    """

    def gaps(attempt: Attempt) -> str:
        missing = attempt.unwritten
        entries = missing.all((1, 2))
        if not entries.any() or entries.all() or (missing != entries[:, None, None]).any():
            return ""
        return overwritten if attempt.trace is not None and attempt.trace.owners(attempt.result).twice.any() else unowned

    return gaps


_product_gaps = entry_gaps(
    "Every program stores to the first entry of the batch: add batch * M * N to the output's pointer.",
    "Entries of the batch belong to no program: the grid's first axis is the batch, (batch, tiles of M, tiles of N).",
)


def contiguous(attempt: Attempt) -> None:
    if not attempt.result.is_contiguous():
        raise Wrong(
            "The values are right, but the result is not contiguous.",
            "torch.empty((batch, M, N), dtype=a.dtype, device=a.device) is: store element (m, n) of an entry at m * N + n.",
        )


def bmm(function: Callable) -> Verdict:
    """Lesson 08: `function(a, b)` returns a @ b for a (batch, M, K) and a (batch, K, N) of any strides; contiguous."""

    def build(sizes, dtype, scale=1.0, a="contiguous", b="contiguous", note=""):
        batch, M, K, N = sizes

        def new(shape):
            return exact(shape, dtype, scale)

        layout = f", {f'both {a}' if a == b else f'a {a}, b {b}'}," if (a, b) != ("contiguous", "contiguous") else ""
        label = f"{batch} x ({M}, {K}) times {batch} x ({K}, {N}){layout} in {type_name(dtype)}{note}"
        arguments = {"a": _LAYOUTS[a](batch, M, K, new), "b": _LAYOUTS[b](batch, K, N, new)}
        if K == LONG:
            arguments["a"].fill_(1.0)
            arguments["b"].fill_(THIRD)
        # What sums of K products of at most 4 lose, in any order; and an accumulator that a tensor core cuts off.
        return Case(label, arguments, 1e-6 * K * scale**2)

    def cases(dtypes):
        single, plain = torch.float32, "contiguous"
        shapes = [(2, 3, 5, 4), (1, 1, 1, 1), (2, 3, 70, 4), (2, 40, 5, 35), (3, 1, 64, 70), (2, 33, 70, 1), (2, 32, 32, 32)]
        found = [build(sizes, single) for sizes in shapes]
        others = [name for name in _LAYOUTS if name != plain]
        for name in others:
            found += [build((2, 3, 5, 4), single, a=a, b=b) for a, b in ((plain, name), (name, plain), (name, name))]
        found += [build((2, 6, 40, 5), single, a=a, b=b) for a, b in itertools.pairwise(others)]
        for dtype in dtypes:
            if dtype != single:
                found += [build(sizes, dtype) for sizes in (shapes[0], shapes[2], shapes[3])]
                found.append(build((2, 6, 40, 5), dtype, a="heads of tokens", b="transposed"))
                found.append(build((1, 2, LONG, 3), dtype))
            large, tiny = (2.0**40, 2.0**-40) if dtype != torch.float16 else (2.0**4, 2.0**-4)
            found += [build(shapes[2], dtype, large, note=", large values"), build(shapes[2], dtype, tiny, note=", tiny values")]
        return found

    def copied(name):
        return (
            f"{name} was copied first, with .contiguous() or .reshape(), which moves all of it through memory once more. Hand "
            f"your kernel {name} itself, with its three strides."
        )

    exercise = Exercise(
        torch.bmm,
        cases,
        lambda: build((24, 197, 64, 197), torch.float32, a="heads of tokens", b="transposed"),
        _product_mistakes(),
        "1 to 3 products of 1 to 70 rows and columns and 1 to 2752 terms; contiguous, transposed, heads of tokens, every second "
        "column, and expanded; float32 and float16, large and tiny values; one launch, a and b read where they lie, no access "
        "outside of a tensor, every element stored once, inputs unchanged",
        [
            one_launch("One launch does it: a grid of (batch, tiles of M, tiles of N)."),
            read_by_the_kernel("a", copied("a")),
            read_by_the_kernel("b", copied("b")),
            contiguous,
            tiles_stored_once,
        ],
        clues=[_product_gaps, _address_clue, long_sum],
        illegal=_product_outside,
        gaps=_product_gaps,
    )
    return judge(function, exercise)


# ---- Attention ------------------------------------------------------------------------------------------------------------

_LARGE = ", large scores"


def _heads(qkv: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, each (batch, heads, tokens, head_size)."""
    batch, tokens, width = qkv.shape
    return qkv.reshape(batch, tokens, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).unbind()


def _together(o: torch.Tensor) -> torch.Tensor:
    """(batch, heads, tokens, head_size) as tokens (batch, tokens, hidden)."""
    return o.transpose(1, 2).flatten(2)


def _attend(q, k, v, scale=None, dim=-1):
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(scores, dim) @ v


def _attention_mistakes() -> list[tuple[str, Callable]]:
    def of(mistake):
        """A mistake in what is done with queries, keys and values."""
        return lambda qkv, heads: _together(mistake(*_heads(qkv, heads)))

    def unpacked(view):
        """A mistake in how queries, keys and values are found: view(x, tokens, heads, head_size) gives all three."""
        return lambda qkv, heads: _together(_attend(*view(qkv, qkv.shape[1], heads, qkv.shape[2] // 3 // heads)))

    def not_back(qkv, heads):
        o = _attend(*_heads(qkv, heads))
        return o.reshape(o.shape[0], o.shape[2], -1)

    def one_head(scale):
        def mistake(qkv, heads):
            q, k, v = qkv.chunk(3, -1)
            return _attend(q, k, v, scale(q.shape[-1], heads))

        return mistake

    def exponentials(q, k, v):
        return ((q @ k.mT) * q.shape[-1] ** -0.5).exp() @ v

    def not_transposed(q, k, v):
        return torch.softmax(q @ k * q.shape[-1] ** -0.5, -1) @ v if k.shape[-1] == k.shape[-2] else math.nan * v

    def over_heads(q, k, v):
        return _attend(q, k, v, dim=1)

    transposed = (
        "The keys are not transposed: scores are q @ k.mT. (A view or reshape to (head_size, tokens) moves numbers between keys.)"
    )
    order = "The last axis of qkv is (3, heads, head_size): view it as (batch, tokens, 3, heads, head_size)."
    return [
        ("The heads are mixed up: what they give is (batch, heads, tokens, head_size), and was reshaped as it lies. In the "
         "result a token's heads lie side by side.", not_back),
        ("The scores are divided by the root of the hidden size: it is the root of the head size.",
         lambda qkv, heads: of(lambda q, k, v: _attend(q, k, v, (heads * q.shape[-1]) ** -0.5))(qkv, heads)),
        ("The scores are not scaled: divide them by the root of the head size.", of(lambda q, k, v: _attend(q, k, v, 1.0))),
        ("The scores are divided by the head size: it is its root.", of(lambda q, k, v: _attend(q, k, v, 1 / q.shape[-1]))),
        ("The scores are multiplied by the root of the head size: divide by it.",
         of(lambda q, k, v: _attend(q, k, v, q.shape[-1] ** 0.5))),
        ("The scores are divided by the root of the number of tokens: it is the root of the head size.",
         of(lambda q, k, v: _attend(q, k, v, q.shape[-2] ** -0.5))),
        ("The scale comes before the softmax: the probabilities were scaled.",
         of(lambda q, k, v: _attend(q, k, v, 1.0) * q.shape[-1] ** -0.5)),
        ("The softmax runs over the queries: each query's probabilities over the keys add up to 1, the last dimension.",
         of(lambda q, k, v: _attend(q, k, v, dim=-2))),
        ("The softmax runs over the heads: each query's probabilities over the keys add up to 1, the last dimension.",
         of(over_heads)),
        ("Queries and keys are exchanged: scores are q @ k.mT, a row for each query.", of(lambda q, k, v: _attend(k, q, v))),
        ("Keys and values are exchanged: scores are of the keys, and the values are summed.",
         of(lambda q, k, v: _attend(q, v, k))),
        ("Queries and values are exchanged: scores are of queries and keys, and the values are summed.",
         of(lambda q, k, v: _attend(v, k, q))),
        ("The keys were summed: the probabilities weigh the values.", of(lambda q, k, v: _attend(q, k, k))),
        ("Scores are of queries with queries: they are of queries with keys.", of(lambda q, k, v: _attend(q, q, v))),
        (order + " Yours has the heads before the 3.", unpacked(
            lambda x, T, H, D: x.reshape(-1, T, H, 3, D).permute(3, 0, 2, 1, 4).unbind())),
        (order + " Yours has the 3 last.", unpacked(
            lambda x, T, H, D: x.reshape(-1, T, H, D, 3).permute(4, 0, 2, 1, 3).unbind())),
        (order + " Yours has the head size before the heads.", unpacked(
            lambda x, T, H, D: x.reshape(-1, T, 3, D, H).permute(2, 0, 4, 1, 3).unbind())),
        ("Tokens come before heads in memory: view as (batch, tokens, heads, head_size), then transpose(1, 2). A view as "
         "(batch, heads, tokens, head_size) mixes tokens.", unpacked(
            lambda x, T, H, D: [part.reshape(-1, H, T, D) for part in x.chunk(3, -1)])),
        (transposed, of(not_transposed)),
        (transposed, of(lambda q, k, v: torch.softmax(q @ k.reshape(k.mT.shape) * q.shape[-1] ** -0.5, -1) @ v)),
        ("There is no softmax: the scores themselves weigh the values.",
         of(lambda q, k, v: (q @ k.mT) * q.shape[-1] ** -0.5 @ v)),
        ("The exponentials were not divided by their sum.", of(exponentials)),
        ("All heads were taken as one: each head has its own scores, of its own head_size numbers.",
         one_head(lambda hidden, heads: hidden**-0.5)),
        ("All heads were taken as one: each head has its own scores, of its own head_size numbers.",
         one_head(lambda hidden, heads: (hidden // heads) ** -0.5)),
        ("The result is the values: scores and softmax have no part in it.", of(lambda q, k, v: v)),
    ]  # fmt: skip


def _attention_clue(attempt: Attempt) -> str:
    """What remains where no mistake explains a result of PyTorch code."""
    if _LARGE in attempt.case.label and not attempt.result.isfinite().all():
        return "exp of more than 89 is infinite in float32: use a softmax that subtracts each row's maximum first."
    return (
        "Compare step by step on this case: q, k and v as (batch, heads, tokens, head_size); scores as (batch, heads, tokens, "
        "tokens), scaled; probabilities whose rows add up to 1; the heads side by side in each token."
    )


def plain_attention(function: Callable) -> Verdict:
    """Lesson 08: `function(qkv, heads)` returns softmax(q @ k.mT / sqrt(head_size)) @ v of all heads, as tokens.

    qkv: (batch, tokens, 3 * hidden), a token's queries, keys and values, each head after head. The result is (batch, tokens,
    hidden). Any functions: the course's kernels or PyTorch's.
    """

    def build(batch, tokens, heads, head_size, dtype, dtypes, note=""):
        qkv = exact((batch, tokens, 3 * heads * head_size), dtype)
        slack = rounding(dtype, dtypes)
        if note == _LARGE:
            # Every query has a score of at least 64 * root(head_size) with the first key, and others of up to 16 times that,
            # whose last digit exp makes an error of.
            hidden = heads * head_size
            qkv[:, :, : 2 * hidden] *= 16
            qkv[:, :, :hidden].abs_()
            qkv[:, 0, hidden : 2 * hidden].abs_()
            slack = max(slack, 5e-3)
        images, number = f"{batch} image{'s' * (batch != 1)}", f"{heads} head{'s' * (heads != 1)}"
        label = f"{images} of {tokens} token{'s' * (tokens != 1)}, {number} of {head_size} in {type_name(dtype)}{note}"
        return Case(label, {"qkv": qkv, "heads": heads}, slack)

    def cases(dtypes):
        # As many tokens as a head has numbers: what is not transposed shows without an exception.
        sizes = [(1, 4, 2, 4), (1, 1, 1, 1), (2, 3, 2, 4), (2, 7, 3, 16), (1, 20, 2, 8)]
        found = [build(*size, torch.float32, dtypes) for size in sizes]
        found.append(build(2, 5, 2, 4, torch.float32, dtypes, _LARGE))
        return found + [build(*size, dtype, dtypes) for dtype in dtypes if dtype != torch.float32 for size in sizes[2:4]]

    exercise = Exercise(
        lambda qkv, heads: _together(_attend(*_heads(qkv, heads))),
        cases,
        lambda: build(4, 197, 12, 64, torch.float32, (torch.float32, torch.bfloat16)),
        _attention_mistakes(),
        "1 and 2 images of 1 to 20 tokens, 1 to 3 heads of 1 to 16, float32 and float16, large scores; qkv unchanged",
        clues=[_attention_clue],
        gaps=lambda attempt: (
            "These elements still hold what was in the memory before: the output was made with torch.empty or "
            "the like, and not all of it was filled."
        ),
        torch_may_compute=True,
    )
    return judge(function, exercise)
