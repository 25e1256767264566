"""The checks of lesson 09: attention in one kernel, which never writes the scores to memory.

As in lesson 08, inputs in float32 have no more digits than tf32 holds, and on a GPU what is rounded on the way has a tolerance
for tf32. Scores far from zero are such that an error in all of a query's scores alike changes nothing.
"""

import ast
import functools
import inspect
import math
import textwrap
from collections.abc import Callable

import torch

from .. import trace as tracing
from .judge import Attempt, Case, Exercise, Verdict, Wrong, between, judge, judge_plain, type_name
from .lesson_02 import loads_of, nothing_else, one_launch, read_by_the_kernel, tiles_stored_once
from .lesson_08 import contiguous, entry_gaps, exact, rounding

# The blocks that a program is likely to take the keys in.
_STEPS = (16, 32, 64, 128)

_LARGE = ", large scores"
_BELOW = ", scores far below zero"
_RISING = ", rising scores"
_FALLING = ", falling scores"

# ---- Merging two states ---------------------------------------------------------------------------------------------------


def merge_attention(function: Callable) -> Verdict:
    """Lesson 09: `function(m1, l1, o1, m2, l2, o2)` merges what two parts of the keys give into (m, l, o).

    For each query m is the largest score s, l = sum(exp(s - m)), o = sum(exp(s - m) * v), which is not divided by l yet. m and
    l: (rows,); o: (rows, d). A part without keys has m = -inf, l = 0, o = 0. The tensors here are float64.
    """

    def tensors(case):
        return [torch.tensor(value, dtype=torch.float64) for value in case]

    def normal(result):
        if not isinstance(result, (tuple, list)) or len(result) != 3:
            kind = f"{len(result)} things" if isinstance(result, (tuple, list)) else f"a {type(result).__name__}"
            raise Wrong(f"Your function returned {kind}.", "Return three tensors: (m, l, o).")
        for name, one, shape in zip("mlo", result, ("(rows,)", "(rows,)", "(rows, d)")):
            if not isinstance(one, torch.Tensor):
                raise Wrong(f"{name} is a {type(one).__name__}.", "Return three tensors: (m, l, o).")
            if one.ndim != shape.count(",") + (name == "o"):
                hint = "m and l have a number for each row. Only where such numbers meet o, (rows, d), they are factor[:, None]."
                raise Wrong(f"{name} has shape {tuple(one.shape)}, and {shape} was expected.", hint)
        maxima, sums, values = (one.tolist() for one in result)
        return tuple(maxima), tuple(sums), tuple(map(tuple, values))

    def merged(factors, total=None, values=None, top=torch.maximum):
        """A merge by these factors of the two parts, from m1, m2 and m; total, values: in place of the sums that they scale."""

        def of(m1, l1, o1, m2, l2, o2):
            m = top(m1, m2)
            f1, f2 = factors(m1, m2, m)
            whole = l1 * f1 + l2 * f2 if total is None else total(l1, l2, f1, f2)
            if values is None:
                return m, whole, o1 * f1[:, None] + o2 * f2[:, None]
            return m, whole, values(o1, o2, f1[:, None], f2[:, None], l1[:, None], l2[:, None], whole[:, None])

        return lambda *case: normal(of(*tensors(case)))

    def right(m1, m2, m):
        shift = torch.where(m == -math.inf, 0.0, m)
        return (m1 - shift).exp(), (m2 - shift).exp()

    def along_columns(m1, l1, o1, m2, l2, o2):
        m = torch.maximum(m1, m2)
        f1, f2 = right(m1, m2, m)
        if o1.shape[0] not in (1, o1.shape[1]):
            f1, f2 = f1[:, None] * math.nan, f2[:, None] * math.nan  # PyTorch refuses it
        elif o1.shape[0] == 1:
            f1, f2 = f1[:, None], f2[:, None]
        return m, l1 * f1.ravel() + l2 * f2.ravel(), o1 * f1 + o2 * f2

    reference = merged(right)
    infinity = math.inf

    def drawn(rows, d):
        numbers = [[between(-4, 4) for _ in range(rows)] for _ in range(2)]
        sums = [[between(1, 3) for _ in range(rows)] for _ in range(2)]
        values = [[[between(-3, 3) for _ in range(d)] for _ in range(rows)] for _ in range(2)]
        return numbers[0], sums[0], values[0], numbers[1], sums[1], values[1]

    cases = [
        ([0.0], [1.0], [[1.0, 2.0]], [0.0], [3.0], [[3.0, 5.0]]),
        ([2.0], [1.0], [[1.0, 2.0]], [0.0], [3.0], [[3.0, 5.0]]),
        ([0.0], [1.0], [[1.0, 2.0]], [1.0], [3.0], [[3.0, 5.0]]),
        ([0.0, 2.0], [1.0, 2.0], [[1.0, 2.0], [4.0, 3.0]], [1.0, 0.0], [3.0, 1.0], [[3.0, 5.0], [2.0, 6.0]]),
        drawn(2, 2),
        drawn(4, 3),
        ([1000.0, -1001.0], [1.0, 2.0], [[1.0], [2.0]], [1001.0, -1000.0], [2.0, 1.5], [[3.0], [1.0]]),
        ([2.0, -infinity], [1.5, 0.0], [[1.0], [0.0]], [-infinity, 1.0], [0.0, 2.0], [[0.0], [3.0]]),
        ([-infinity], [0.0], [[0.0, 0.0]], [-infinity], [0.0], [[0.0, 0.0]]),
    ]

    def plainly(m1, m2, m):
        return (m1 - m).exp(), (m2 - m).exp()

    mistakes = [
        ("Two parts without keys: -inf - -inf is NaN, and so is its exp. Where the maximum is -inf there is nothing to scale, "
         "and all sums are 0.", merged(plainly)),
        ("The parts are below different maxima: scale the sums and the values of each to the common one, by exp(m1 - m) and "
         "exp(m2 - m).", merged(lambda m1, m2, m: (torch.ones_like(m), torch.ones_like(m)))),
        ("o is not scaled: its sums are below m1 and m2 as those of l are, and take the same two factors.",
         merged(right, values=lambda o1, o2, *rest: o1 + o2)),
        ("l is not scaled: its sums are below m1 and m2 as those of o are, and take the same two factors.",
         merged(right, total=lambda l1, l2, f1, f2: l1 + l2)),
        ("Only the first part is scaled: the second is below m2, so it takes exp(m2 - m).",
         merged(lambda m1, m2, m: (right(m1, m2, m)[0], torch.ones_like(m)))),
        ("Only the second part is scaled: the first is below m1, so it takes exp(m1 - m).",
         merged(lambda m1, m2, m: (torch.ones_like(m), right(m1, m2, m)[1]))),
        ("The factors are upside down: exp(m1 - m), which is 1 at most, not exp(m - m1).",
         merged(lambda m1, m2, m: ((m - m1).exp(), (m - m2).exp()))),
        ("The factors are exchanged: the first part takes exp(m1 - m), the second exp(m2 - m).",
         merged(lambda m1, m2, m: right(m1, m2, m)[::-1])),
        ("The factors are powers of 2: exp is to the base e.",
         merged(lambda m1, m2, m: tuple(2.0 ** (one - torch.where(m == -infinity, 0.0, m)) for one in (m1, m2)))),
        ("m is the larger of the two maxima of each row, not the smaller.", merged(plainly, top=torch.minimum)),
        ("m is the larger of m1 and m2, row by row: either can be it.", merged(plainly, top=lambda m1, m2: m1)),
        ("m is the larger of m1 and m2, row by row: either can be it.", merged(plainly, top=lambda m1, m2: m2)),
        ("m is the largest of all rows: each row has its own, torch.maximum(m1, m2).",
         merged(plainly, top=lambda m1, m2: torch.maximum(m1, m2).max().expand(m1.shape))),
        ("o is divided by l: it stays a sum here, and is divided once, after the last part.",
         merged(right, values=lambda o1, o2, f1, f2, l1, l2, whole: (o1 * f1 + o2 * f2) / whole)),
        ("o1 and o2 are sums already: they are scaled, and not multiplied by l1 and l2.",
         merged(right, values=lambda o1, o2, f1, f2, l1, l2, whole: o1 * l1 * f1 + o2 * l2 * f2)),
        ("o1 and o2 are sums already: no l belongs to them, neither as a factor nor to divide by.",
         merged(right, values=lambda o1, o2, f1, f2, l1, l2, whole: (o1 * l1 * f1 + o2 * l2 * f2) / whole)),
        ("l1 and l2 are sums already: they are multiplied by the factors, not replaced by them.",
         merged(right, total=lambda l1, l2, f1, f2: f1 + f2)),
        ("The sums are below m: by exp(m1 - m) and exp(m2 - m), not by exp(m1) and exp(m2).",
         merged(lambda m1, m2, m: (m1.exp(), m2.exp()))),
        ("The factors meet the columns of o, and each belongs to a row: factor[:, None].",
         lambda *case: normal(along_columns(*tensors(case)))),
        ("The order is (m, l, o).", lambda *case: (reference(*case)[1], reference(*case)[0], reference(*case)[2])),
        ("The second part was left out of o.", merged(right, values=lambda o1, o2, f1, f2, *rest: o1 * f1)),
        ("The second part was left out of l.", merged(right, total=lambda l1, l2, f1, f2: l1 * f1)),
    ]  # fmt: skip

    def on_tensors(*case):
        given = tensors(case)
        result = function(*given)
        if not all(map(torch.equal, given, tensors(case))):
            raise Wrong("Your function changed its inputs.", "The parts are the caller's: write l = l1 * f1, not l1 *= f1.")
        return result

    return judge_plain(
        functools.wraps(function)(on_tensors) if callable(function) else function,
        "merge_attention",
        cases,
        reference,
        mistakes,
        "Write both parts out: l1 stands for sums of exp(s - m1), o1 for sums of exp(s - m1) * v. Which factor of each row turns "
        "exp(s - m1) into exp(s - m)?",
        "1 to 4 rows of 1 to 3 values, equal maxima, either of them the larger, maxima of 1000 and of -1000, parts without keys, "
        "and numbers drawn at random",
        normal,
    )


# ---- Cases ----------------------------------------------------------------------------------------------------------------


def _keys(heads: int, keys: int, d: int, dtype: torch.dtype, note: str) -> tuple[float, torch.Tensor]:
    """A factor for queries, which are all positive, and keys, such that the scores are what the note says."""
    if note == _LARGE:
        # Each query's score is 256 or more with the first key, and as far below zero with the others.
        k = -exact((heads, keys, d), dtype, 16.0).abs()
        k[:, 0] = -k[:, 0]
        return 16.0, k
    if note == _BELOW:
        # Near -500, and what differs from key to key is small beside that: multiples of 1/16.
        return 8.0, -16 + torch.randint(-16, 17, (heads, keys, d)).to(dtype) / 16
    ramp = 3 * torch.arange(keys)[:, None] / keys * (1 if note == _RISING else -1)
    return 1.0, (0.5 * exact((heads, keys, d), torch.float32) + ramp).to(torch.float16).to(dtype)


def _qkv(heads: int, queries: int, keys: int, d: int, dtype: torch.dtype, note: str) -> dict[str, torch.Tensor]:
    q, k, v = (exact((heads, tokens, d), dtype) for tokens in (queries, keys, keys))
    if note:
        size, k = _keys(heads, keys, d, dtype, note)
        q = q.abs() * size
    return {"q": q, "k": k, "v": v}


def _label(heads: int, queries: int, keys: int, d: int, dtype: torch.dtype, note: str) -> str:
    def many(count, what):
        return f"{count} {what}" if count == 1 else f"{count} {what.replace('query', 'querie')}s"

    tokens = many(queries, "token") if queries == keys else f"{many(queries, 'query')} and {many(keys, 'key')}"
    return f"{many(heads, 'head')} of {d}, {tokens}, in {type_name(dtype)}{note}"


def _scores(q, k, scale=None):
    return q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)


def _outside(queries: str, keys: str) -> Callable[[tracing.IllegalAccess], str]:
    """The hint for a kernel of attention that leaves a tensor; queries, keys: the names of their numbers."""

    def hint(error: tracing.IllegalAccess) -> str:
        if error.element < 0 or error.element > error.size + (1 << 20):
            return ""
        rows = "Blocks of queries and of keys reach past the last one"
        if "mask" in error.source:
            return (
                f"{rows}, and the mask lets lanes through, or the address is wrong: m counts from tl.program_id(0) * BLOCK_M, n "
                "from the loop's start, and a head's rows begin at head times their number."
            )
        tensor = error.trace.launches[-1].tensors.get(error.tensor)
        if tensor is not None and tensor.ndim == 2:
            return f"This {error.kind} has no mask. {rows}: mask=m < {queries}."
        masks = f"mask=(m < {queries})[:, None] for queries, (n < {keys})[:, None] for keys"
        return f"This {error.kind} has no mask. {rows}: {masks}."

    return hint


_gaps = entry_gaps(
    "Every program stores to the first head: a head's rows of the output begin at head * queries.",
    "Heads belong to no program: the grid's second axis is the heads, (triton.cdiv(queries, BLOCK_M), heads).",
)


def _few_keys(attempt: Attempt) -> None:
    """No load has more than 128 keys at once."""
    k = attempt.arguments["k"]
    if attempt.trace is None or k.shape[1] <= 128:
        return
    most = max(access.elements.size // k.shape[2] for access in loads_of(attempt, "k"))
    if most > 128:
        raise Wrong(
            f"The values are right, but a program loads {most} keys at once.",
            "Scores with all keys do not stay in registers for long: take them BLOCK_N at a time, "
            "for start in range(0, keys, BLOCK_N).",
        )


def _rules(*names: str) -> list[Callable[[Attempt], None]]:
    return [
        one_launch(
            "One launch does all of it, for all heads: scores and probabilities stay in registers, a block of keys at a time."
        ),
        *(read_by_the_kernel(name, f"Hand the kernel {name} itself, which is contiguous.") for name in names),
        nothing_else("Scores, maxima and sums stay in registers: nothing but the arguments has to be read."),
        _few_keys,
        contiguous,
        tiles_stored_once,
    ]


def _not_finite(attempt: Attempt) -> bool:
    stored = torch.from_numpy(~attempt.unwritten).to(attempt.result.device)
    return not attempt.result[stored].isfinite().all()


# ---- The exercises ----------------------------------------------------------------------------------------------------------


def _attention_mistakes() -> list[tuple[str, Callable]]:
    def attend(scores, v, dim=-1):
        return torch.softmax(scores, dim) @ v

    def at(hint, mistake, steps=_STEPS):
        return [(hint, lambda q, k, v, step=step: mistake(q, k, v, step)) for step in steps]

    def padded(q, k, v, step):
        """Keys past the end, up to a whole step, count with a score of 0."""
        missing = -k.shape[1] % step
        scores = torch.nn.functional.pad(_scores(q, k), (0, missing))
        return attend(scores, torch.nn.functional.pad(v, (0, 0, 0, missing)))

    def padded_wide(q, k, v, step):
        return padded(q, k, v, 1 << max(4, (k.shape[1] - 1).bit_length()))

    def running(total, values, divide=True):
        """As flash attention; total, values: the factor of what was summed before, from the correction exp(old - new)."""

        def mistake(q, k, v, step):
            top = torch.full_like(q[:, :, :1], -math.inf)
            whole, o = torch.zeros_like(top), torch.zeros_like(q)
            for first in range(0, k.shape[1], step):
                scores = _scores(q, k[:, first : first + step])
                new = torch.maximum(top, scores.amax(-1, keepdim=True))
                p, correction = (scores - new).exp(), (top - new).exp()
                whole = whole * total(correction) + p.sum(-1, keepdim=True)
                o = o * values(correction) + p @ v[:, first : first + step]
                if divide == "each":
                    o = o / whole
                top = new
            return o / whole if divide is True else o

        return mistake

    def itself(correction):
        return correction

    def one(correction):
        return torch.ones_like(correction)

    def nothing(correction):
        return torch.zeros_like(correction)

    def upside_down(correction):
        return torch.where(correction == 0, 1.0, 1 / correction.clamp(min=1e-300))

    def same_size(choose):
        """A mistake that only fits as many keys as queries."""
        return lambda q, k, v: choose(q, k, v) if q.shape == k.shape else math.nan * q

    def first_keys(q, k, v, step):
        return attend(_scores(q, k[:, :step]), v[:, :step])

    def last_keys(q, k, v, step):
        first = (k.shape[1] - 1) // step * step
        return attend(_scores(q, k[:, first:]), v[:, first:])

    def whole_steps(q, k, v, step):
        last = k.shape[1] // step * step
        return attend(_scores(q, k[:, :last]), v[:, :last]) if last else math.nan * q

    past = (
        "Keys past the end count: their loads give 0, a score of 0, and exp(0 - max) joins the total. What should their score "
        "be for exp to make nothing of it?"
    )
    root = "divide {} by the root of d, once."
    last = "The {} is of the last block of keys only: it runs on, {} = {} * exp(old - new) + what the block gives."
    return [
        *at(past, padded),
        *at(past, padded_wide, (1,)),
        *at("The accumulator is not rescaled: when the maximum grows, what it holds is below the old one, like the total. "
            "accumulator * exp(old - new)[:, None].", running(itself, one)),
        *at("The total is not rescaled: when the maximum grows, what it holds is below the old one, like the accumulator. "
            "total * exp(old - new).", running(one, itself)),
        *at("Nothing is rescaled: when the maximum grows, total and accumulator are below the old one. Multiply both by "
            "exp(old - new).", running(one, one)),
        *at("The correction is upside down: exp(old - new), which is 1 at most, not exp(new - old).",
            running(upside_down, upside_down)),
        *at(last.format("total", "total", "total"), running(nothing, itself)),
        *at(last.format("accumulator", "accumulator", "accumulator"), running(itself, nothing)),
        *at("The accumulator is divided by the total in every block: divide once, after the loop.",
            running(itself, itself, "each")),
        *at("The accumulator was not divided by the total.", running(itself, itself, False)),
        *at("The result is of the first block of keys only: a loop goes on, for start in range(0, keys, BLOCK_N).",
            first_keys),
        *at("The result is of the last block of keys only: maximum, total and accumulator run on from block to block.",
            last_keys),
        *at("The last, cut block of keys is missing: the loop goes to the end, range(0, keys, BLOCK_N), with a mask.",
            whole_steps),
        ("The scores are not scaled: " + root.format("them"), lambda q, k, v: attend(_scores(q, k, 1.0), v)),
        ("The scale is there twice: " + root.format("the scores"), lambda q, k, v: attend(_scores(q, k, 1 / q.shape[2]), v)),
        ("The scores are multiplied by the root of d: divide by it.",
         lambda q, k, v: attend(_scores(q, k, q.shape[2] ** 0.5), v)),
        ("The scores are divided by the root of the number of keys: it is the root of d.",
         lambda q, k, v: attend(_scores(q, k, k.shape[1] ** -0.5), v)),
        ("The scores are divided by the root of the number of queries: it is the root of d.",
         lambda q, k, v: attend(_scores(q, k, q.shape[1] ** -0.5), v)),
        ("exp2 is not exp: multiply the scores by log2(e) = 1.4427 for it.",
         lambda q, k, v: attend(_scores(q, k) * math.log(2), v)),
        ("The scores were multiplied by log2(e) for exp2, and then given to exp.",
         lambda q, k, v: attend(_scores(q, k) / math.log(2), v)),
        ("The softmax runs over the queries: maximum and sum are along the keys, axis 1 of a tile of scores.",
         lambda q, k, v: attend(_scores(q, k), v, -2)),
        ("k and v are exchanged: scores are of the keys, and the values are summed.", lambda q, k, v: attend(_scores(q, v), k)),
        ("The keys were summed: the probabilities weigh the values.", lambda q, k, v: attend(_scores(q, k), k)),
        ("The values were used for the scores: these are of queries and keys.", lambda q, k, v: attend(_scores(q, v), v)),
        ("q and k are exchanged: a program has a block of queries, and walks over the keys.",
         same_size(lambda q, k, v: attend(_scores(k, q), v))),
        ("k of the first head was taken for all: its rows begin at head * keys.", lambda q, k, v: attend(_scores(q, k[:1]), v)),
        ("v of the first head was taken for all: its rows begin at head * keys.", lambda q, k, v: attend(_scores(q, k), v[:1])),
        ("k and v of the first head were taken for all: their rows begin at head * keys.",
         lambda q, k, v: attend(_scores(q, k[:1]), v[:1])),
        ("q of the first head was taken for all: its rows begin at head * queries.",
         lambda q, k, v: attend(_scores(q[:1].expand_as(q), k), v)),
        ("Keys are masked off by the number of queries: n < keys says which of them there are.",
         lambda q, k, v: attend(_scores(q, k[:, : q.shape[1]]), v[:, : q.shape[1]])),
        ("There is no softmax: the scores themselves weigh the values.", lambda q, k, v: _scores(q, k) @ v),
        ("The result is the mean of the values: the scores have no part in it.",
         lambda q, k, v: v.mean(1, keepdim=True).expand_as(q)),
    ]  # fmt: skip


def _axis_clue(attempt: Attempt) -> str:
    """For a kernel whose reductions are not all along the rows of a tile of scores."""
    if attempt.trace is None:
        return ""
    axes = set()
    for launch in attempt.trace.launches:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(launch.function)))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tl.max", "tl.sum"):
                axis = next(
                    (one.value for one in node.keywords if one.arg == "axis"), node.args[1] if len(node.args) > 1 else None
                )
                axes.add(None if axis is None else ast.unparse(axis))
    if None not in axes and not {"0", "1"} <= axes:
        return ""
    return "A query is a row of the tile of scores, and has a maximum and a sum of its own: axis=1 in tl.max and in tl.sum."


def _attention_clue(attempt: Attempt) -> str:
    if not _not_finite(attempt):
        return ""
    if attempt.trace is not None and not loads_of(attempt, "k"):
        return "No key was read, and 0 / 0 is NaN: the loop goes to the end, range(0, keys, BLOCK_N), the last block with a mask."
    if _BELOW in attempt.case.label:
        return (
            "All scores are far below zero here, and every exp came out as 0, the total too: the maximum starts at -inf, and "
            "keys past the end get -inf before the maximum is taken."
        )
    if _LARGE in attempt.case.label:
        return (
            "exp of more than 89 is infinite in float32: subtract the largest score so far from every score, and from the old "
            "maximum in the correction."
        )
    return (
        "NaN or infinity: -inf - -inf is NaN, and so is 0 / 0. In each block take the new maximum first, and subtract that one: "
        "exp(scores - new), exp(old - new)."
    )


def attention(function: Callable) -> Verdict:
    """Lesson 09: `function(q, k, v)` returns softmax(q @ k.mT / sqrt(d)) @ v for each head, from one kernel.

    Each (heads, tokens, d), contiguous, d a power of two from 16; k and v may have other tokens than q.
    """

    def build(sizes, dtype, dtypes, note=""):
        slack = rounding(dtype, dtypes)
        if note in (_LARGE, _BELOW):
            slack = max(slack, 2e-3)  # what exp makes of the last digit of 500
        return Case(_label(*sizes, dtype, note), _qkv(*sizes, dtype, note), slack)

    def cases(dtypes):
        single = torch.float32
        found = [build(sizes, single, dtypes) for sizes in ((2, 3, 5, 16), (1, 1, 1, 16))]
        found += [build((1, 3, 100, 16), single, dtypes, note) for note in (_RISING, _FALLING)]
        sizes = [(1, 32, 32, 16), (2, 40, 70, 64), (1, 64, 64, 16), (1, 7, 197, 16), (1, 150, 5, 16), (1, 3, 300, 16)]
        found += [build(size, single, dtypes) for size in sizes]
        found += [build((1, 3, 40, 16), single, dtypes, note) for note in (_LARGE, _BELOW)]
        low = [dtype for dtype in dtypes if dtype != single]
        return found + [build(size, dtype, dtypes) for dtype in low for size in ((2, 3, 5, 16), (1, 40, 70, 64))]

    exercise = Exercise(
        lambda q, k, v: torch.softmax(_scores(q, k), -1) @ v,
        cases,
        lambda: build((12, 197, 197, 64), torch.float32, (torch.float32, torch.bfloat16)),
        _attention_mistakes(),
        "1 and 2 heads of 16 and 64, 1 to 150 queries, 1 to 300 keys, rising and falling scores, large scores, scores far below "
        "zero, float32 and float16; one launch that reads q, k and v only, 128 keys at once at most, no access outside of a "
        "tensor, every element stored once, inputs unchanged",
        _rules("q", "k", "v"),
        clues=[_gaps, _axis_clue, _attention_clue],
        illegal=_outside("queries", "keys"),
        gaps=_gaps,
    )
    return judge(function, exercise)


def _gradient_mistakes() -> list[tuple[str, Callable]]:
    def scale_of(q):
        return q.shape[-1] ** -0.5

    def whole(probability=None, score_grad=None, result=None):
        """dq with one of its steps replaced."""

        def mistake(q, k, v, grad, logsumexp, delta):
            lse, delta = logsumexp[:, :, None], delta[:, :, None]
            p = (_scores(q, k) - lse).exp() if probability is None else probability(q, k, lse)
            p_grad = grad @ v.mT
            ds = p * (p_grad - delta) if score_grad is None else score_grad(p, p_grad, delta, q, k, v, grad)
            return ds @ k * scale_of(q) if result is None else result(ds, q, k, v, grad)

        return mistake

    def ds(one):
        return whole(score_grad=one)

    def probability(one):
        return whole(probability=one)

    def result(one):
        return whole(result=one)

    def of_keys(choose):
        """The sum over some of the keys only: choose(tokens, step) are the first and the one after the last."""

        def mistake(q, k, v, grad, logsumexp, delta, step):
            first, last = choose(k.shape[1], step)
            return whole()(q, k[:, first:last], v[:, first:last], grad, logsumexp, delta)

        return mistake

    def at(hint, mistake):
        return [(hint, lambda *case, step=step: mistake(*case, step)) for step in _STEPS]

    def first_head(*names):
        def mistake(q, k, v, grad, logsumexp, delta):
            given = {"q": q, "k": k, "v": v, "grad": grad, "logsumexp": logsumexp, "delta": delta}
            return whole()(*(one[:1].expand_as(one) if name in names else one for name, one in given.items()))

        return mistake

    heads = "{} of the first head {} taken for all: a head's rows begin at head * tokens."
    swapped = "dP is grad @ v.mT, a number for each query and each key: {}."
    return [
        *at("The last, cut block of keys is missing: the loop goes to the end, range(0, tokens, BLOCK_N), with a mask.",
            of_keys(lambda tokens, step: (0, tokens // step * step))),
        *at("The result is of the first block of keys only: a loop goes on, for start in range(0, tokens, BLOCK_N).",
            of_keys(lambda tokens, step: (0, step))),
        *at("The result is of the last block of keys only: the accumulator is added to, tl.dot(ds, k, accumulator).",
            of_keys(lambda tokens, step: ((tokens - 1) // step * step, tokens))),
        ("The scale is missing at the end: dq = ds @ k / sqrt(d), as the scores are q @ k.mT / sqrt(d).",
         result(lambda ds, q, k, v, grad: ds @ k)),
        ("The scale is missing in the scores: P is exp(q @ k.mT / sqrt(d) - logsumexp).",
         probability(lambda q, k, lse: (_scores(q, k, 1.0) - lse).exp())),
        ("The scale is missing in the scores and at the end: / sqrt(d) in both.",
         whole(lambda q, k, lse: (_scores(q, k, 1.0) - lse).exp(), result=lambda ds, q, k, v, grad: ds @ k)),
        ("The scale is there twice at the end: ds @ k / sqrt(d).", result(lambda ds, q, k, v, grad: ds @ k * scale_of(q) ** 2)),
        ("The result is multiplied by the root of d: divide by it.", result(lambda ds, q, k, v, grad: ds @ k / scale_of(q))),
        ("delta was left out: dS = P * (dP - delta).", ds(lambda p, p_grad, delta, *rest: p * p_grad)),
        ("delta was added: dS = P * (dP - delta).", ds(lambda p, p_grad, delta, *rest: p * (p_grad + delta))),
        ("delta is subtracted before P multiplies: dS = P * (dP - delta), and not P * dP - delta.",
         ds(lambda p, p_grad, delta, *rest: p * p_grad - delta)),
        ("The sign is wrong: dS = P * (dP - delta).", ds(lambda p, p_grad, delta, *rest: p * (delta - p_grad))),
        ("P was left out: dS = P * (dP - delta).", ds(lambda p, p_grad, delta, *rest: p_grad - delta)),
        ("dP was left out: dS = P * (dP - delta).", ds(lambda p, p_grad, delta, *rest: p * -delta)),
        ("delta belongs to the query, a row of the scores: delta[:, None], and yours varies with the key.",
         ds(lambda p, p_grad, delta, *rest: p * (p_grad - delta.mT))),
        ("That is P * (1 - P) * dP, as if the probabilities did not depend on each other: dS = P * (dP - delta).",
         ds(lambda p, p_grad, delta, *rest: p * (1 - p) * p_grad)),
        ("P is without its logsumexp: exp(scores - logsumexp), which adds up to 1 over the keys.",
         probability(lambda q, k, lse: _scores(q, k).exp())),
        ("P is divided by logsumexp, which is a logarithm: exp(scores - logsumexp).",
         probability(lambda q, k, lse: _scores(q, k).exp() / lse)),
        ("logsumexp belongs to the query, a row of the scores: logsumexp[:, None], and yours varies with the key.",
         probability(lambda q, k, lse: (_scores(q, k) - lse.mT).exp())),
        ("logsumexp is a natural logarithm here: exp(scores - logsumexp), or multiply both by log2(e) for exp2.",
         probability(lambda q, k, lse: (_scores(q, k) / math.log(2) - lse).mul(math.log(2)).exp())),
        ("exp2 is not exp: multiply scores and logsumexp by log2(e) = 1.4427 for it.",
         probability(lambda q, k, lse: (_scores(q, k) - lse).exp2())),
        ("logsumexp and delta are exchanged: compare the order of the arguments with the kernel's parameters.",
         lambda q, k, v, grad, logsumexp, delta: whole()(q, k, v, grad, delta, logsumexp)),
        ("logsumexp is used for delta as well: delta has a pointer of its own.",
         lambda q, k, v, grad, logsumexp, delta: whole()(q, k, v, grad, logsumexp, logsumexp)),
        ("delta is used for logsumexp as well: logsumexp has a pointer of its own.",
         lambda q, k, v, grad, logsumexp, delta: whole()(q, k, v, grad, delta, delta)),
        ("logsumexp was added: P = exp(scores - logsumexp).", probability(lambda q, k, lse: (_scores(q, k) + lse).exp())),
        (swapped.format("yours is grad @ k.mT"), ds(lambda p, p_grad, delta, q, k, v, grad: p * (grad @ k.mT - delta))),
        (swapped.format("yours is q @ v.mT"), ds(lambda p, p_grad, delta, q, k, v, grad: p * (q @ v.mT - delta))),
        (swapped.format("yours is v @ grad.mT"), ds(lambda p, p_grad, delta, q, k, v, grad: p * (p_grad.mT - delta))),
        ("dS multiplies the keys: dq = dS @ k, and yours is dS @ v.", result(lambda ds, q, k, v, grad: ds @ v * scale_of(q))),
        ("dS multiplies the keys: dq = dS @ k, and yours is dS @ q.", result(lambda ds, q, k, v, grad: ds @ q * scale_of(q))),
        ("dS multiplies the keys: dq = dS @ k, and yours is dS @ grad.",
         result(lambda ds, q, k, v, grad: ds @ grad * scale_of(q))),
        ("P and not dS multiplies the keys: dq = dS @ k.", whole(score_grad=lambda p, *rest: p)),
        ("That is the gradient of the keys: dq = dS @ k, not dS.mT @ q.",
         result(lambda ds, q, k, v, grad: ds.mT @ q * scale_of(q))),
        ("dS is transposed: its rows are the queries, its columns the keys.",
         result(lambda ds, q, k, v, grad: ds.mT @ k * scale_of(q))),
        (heads.format("logsumexp", "was"), first_head("logsumexp")),
        (heads.format("delta", "was"), first_head("delta")),
        (heads.format("logsumexp and delta", "were"), first_head("logsumexp", "delta")),
        (heads.format("k", "was"), first_head("k")),
        (heads.format("v", "was"), first_head("v")),
        (heads.format("k and v", "were"), first_head("k", "v")),
        (heads.format("grad", "was"), first_head("grad")),
        (heads.format("q", "was"), first_head("q")),
    ]  # fmt: skip


def _gradient_clue(attempt: Attempt) -> str:
    if not _not_finite(attempt):
        return ""
    if _BELOW in attempt.case.label:
        return (
            "All scores are far below zero here, and so is logsumexp. A key past the end scores 0: exp(0 - logsumexp) is "
            "infinite, and infinity times the 0 that was loaded is NaN. Give such keys a score of -inf, or a P of 0."
        )
    return "NaN or infinity: P is exp(scores - logsumexp), 1 at most. What do lanes past the end hold?"


def query_gradient(function: Callable) -> Verdict:
    """Lesson 09: `function(q, k, v, grad, logsumexp, delta)` returns dq, the gradient of attention's queries.

    q, k, v, grad: (heads, tokens, d), contiguous, d a power of two from 16. logsumexp and delta: (heads, tokens), float32:
    the natural logarithm of the sum of a query's exponentials, and sum(grad * output). With P = exp(q @ k.mT / sqrt(d) -
    logsumexp) and dP = grad @ v.mT: dS = P * (dP - delta), dq = dS @ k / sqrt(d).
    """

    def build(heads, tokens, d, dtype, dtypes, note=""):
        arguments = _qkv(heads, tokens, tokens, d, dtype, note)
        if not note:
            # Small scores: a mistake in an exponent, which is no probability any more, stays small enough to be known again.
            arguments["q"] = exact((heads, tokens, d), dtype, 0.25)
        grad = exact((heads, tokens, d), dtype)
        q, k, v = (arguments[name].double() for name in "qkv")
        scores = _scores(q, k)
        output = torch.softmax(scores, -1) @ v
        statistics = {"logsumexp": scores.logsumexp(-1).float(), "delta": (grad.double() * output).sum(-1).float()}
        slack = 4 * rounding(dtype, dtypes)
        if note == _BELOW:
            # What exp makes of the last digit of 500; with tf32, of its third, so that there NaN alone is wrong.
            slack = 1e-2 if torch.bfloat16 not in dtypes else 1e3
        return Case(_label(heads, tokens, tokens, d, dtype, note), arguments | {"grad": grad} | statistics, slack)

    def cases(dtypes):
        single = torch.float32
        sizes = [(2, 5, 16), (1, 1, 16), (1, 32, 16), (2, 100, 16), (1, 40, 64), (1, 130, 16)]
        found = [build(*size, single, dtypes) for size in sizes]
        found.append(build(1, 5, 16, single, dtypes, _BELOW))
        low = [dtype for dtype in dtypes if dtype != single]
        return found + [build(*size, dtype, dtypes) for dtype in low for size in ((2, 5, 16), (1, 40, 64))]

    def reference(q, k, v, grad, logsumexp, delta):
        p = (_scores(q, k).to(logsumexp.dtype) - logsumexp[:, :, None]).exp()
        p_grad = (grad @ v.mT).to(delta.dtype)
        return (p * (p_grad - delta[:, :, None])).to(q.dtype) @ k * q.shape[2] ** -0.5

    names = ("q", "k", "v", "grad", "logsumexp", "delta")
    exercise = Exercise(
        reference,
        cases,
        lambda: build(12, 197, 64, torch.float32, (torch.float32, torch.bfloat16)),
        _gradient_mistakes(),
        "1 and 2 heads of 16 and 64, 1 to 130 tokens, scores far below zero, float32 and float16; one launch that reads its "
        "arguments only, 128 keys at once at most, no access outside of a tensor, every element stored once, inputs unchanged",
        _rules(*names),
        clues=[_gaps, _gradient_clue],
        illegal=_outside("tokens", "tokens"),
        gaps=_gaps,
    )
    return judge(function, exercise)
