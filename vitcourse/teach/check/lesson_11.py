"""The checks of lesson 11: dropout, and cross-entropy over the rows of a matrix."""

import functools
import math
from collections.abc import Callable

import torch
from torch.nn import functional

from ... import runtime  # noqa: F401  (before Triton)
from .. import trace as tracing
from .judge import Attempt, Case, Exercise, Verdict, draw, judge, type_name
from .lesson_01 import stored_once
from .lesson_04 import by_tile, matrix, row_gaps, row_outside, rows_stored_once, shape_name

# ruff: isort: split
import triton
import triton.language as tl

# ---- dropout ----------------------------------------------------------------------------------------------------------------


@triton.jit
def _uniform_kernel(output_ptr, seed, size, BLOCK: tl.constexpr):
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(output_ptr + element, tl.rand(seed, element), mask=element < size)


@functools.lru_cache(maxsize=256)
def _uniform(seed: int, size: int) -> torch.Tensor:
    """The numbers tl.rand(seed, e) of elements 0 to size - 1, on the CPU: in the interpreter they are those of a GPU."""
    output = torch.empty(size)
    block = min(triton.next_power_of_2(size), 1 << 16)
    tracing.record(lambda: _uniform_kernel[(triton.cdiv(size, block),)](output, seed, size, BLOCK=block))
    return output


def _numbers(x: torch.Tensor, seed: int) -> torch.Tensor:
    return _uniform(seed, x.numel()).to(x.device).view(x.shape)


def _dropped(x: torch.Tensor, p: float, numbers: torch.Tensor, factor: float | None = None) -> torch.Tensor:
    """x where the numbers are at least p, as a kernel compares them, in float32; 0 elsewhere."""
    kept = numbers >= torch.tensor(p, dtype=torch.float32, device=x.device)
    return torch.where(kept, x / (1 - p) if factor is None else x * factor, 0.0)


def dropout(function: Callable) -> Verdict:
    """Lesson 11: `function(x, p, seed)` returns x / (1 - p) where tl.rand(seed, e) >= p for element number e, 0 elsewhere.

    x: contiguous, any shape; 0 <= p < 1. The mask is compared element by element. Seeds are fixed, so that a verdict is too.
    """

    def build(shape, p, seed, dtype, scale=1.0, note=""):
        shown = f"size {shape[0]}" if len(shape) == 1 else f"shape {shape}"
        x = draw(shape, dtype, scale)
        return Case(f"{shown}, p {p:g}, seed {seed} in {type_name(dtype)}{note}", {"x": x, "p": p, "seed": seed})

    def cases(dtypes):
        # In the first, some are kept and some dropped, the first element among them, which it is not with seed 0.
        found = [
            ((9,), 0.25, 7),
            ((1,), 0.5, 3),
            ((1000,), 0.5, 11),
            ((1024,), 0.5, 42),
            ((2500,), 0.125, 7),
            ((37, 129), 0.5, 1),
        ]
        found += [((9,), float(_uniform(7, 9)[3]), 7)]  # a number that is p itself: at least p
        found += [((1000,), 0.0, 5), ((3, 5, 7), 0.75, (1 << 31) - 1), ((3000,), 0.5, (1 << 40) + 3)]
        built = [build(*one, torch.float32) for one in found]
        low = [dtype for dtype in dtypes if dtype != torch.float32]
        built += [build(*one, dtype) for dtype in low for one in (found[0], found[4], found[5])]
        built += [
            build((1000,), 0.5, 13, dtype, torch.finfo(dtype).max / 16, ", large values")
            for dtype in dtypes  # up to a quarter of the largest number, once divided by a half
        ]
        return built

    def with_numbers(choose):
        """The result with other numbers; choose(x, seed, e) are they, for the elements' numbers e."""

        def mistake(x, p, seed):
            e = torch.arange(x.numel())
            return _dropped(x, p, choose(x, seed, e).to(x.device).view(x.shape))

        return mistake

    def with_factor(factor):
        return lambda x, p, seed: _dropped(x, p, _numbers(x, seed), factor(p))

    def of_another_seed(x, seed, e, block):
        numbers = [_uniform(seed + program, block) for program in range(-(-len(e) // block))]
        return torch.cat(numbers)[: len(e)]

    blocks = [1 << exponent for exponent in range(4, 14)]
    lane = "Every block drops the same places: which numbers does the second block draw? Element e of x takes tl.rand(seed, e)."
    mistakes = [
        ("An element whose number is p itself is kept as well: tl.rand(...) >= p, not >.",
         lambda x, p, seed: torch.where(_numbers(x, seed) > p, x / (1 - p), 0.0)),
        ("Those are the elements to drop: an element is kept where its number is at least p, tl.rand(...) >= p.",
         lambda x, p, seed: torch.where(_numbers(x, seed) < p, x / (1 - p), 0.0)),
        ("Those are the elements to drop, and they are not scaled: keep where tl.rand(...) >= p, and divide by 1 - p.",
         lambda x, p, seed: torch.where(_numbers(x, seed) < p, x, 0.0)),
        ("What is kept was not scaled: divide it by 1 - p, so that the mean stays what it was.", with_factor(lambda p: 1.0)),
        ("What is kept was multiplied by 1 - p: divide by it.", with_factor(lambda p: 1 - p)),
        ("What is kept was multiplied by p: divide it by 1 - p.", with_factor(lambda p: p)),
        ("What is kept was divided by p: divide it by 1 - p.", with_factor(lambda p: 1 / p if p else math.nan)),
        ("What is kept was multiplied by 1 + p: divide it by 1 - p.", with_factor(lambda p: 1 + p)),
        ("Dropped elements are 0: yours are as they were.",
         lambda x, p, seed: torch.where(_numbers(x, seed) >= p, x / (1 - p), x)),
        ("One number decides for all elements: element e takes tl.rand(seed, e), with a block of offsets.",
         with_numbers(lambda x, seed, e: _uniform(seed, 1).expand(len(e)))),
        ("All elements are kept and scaled: those whose number is below p are 0.", lambda x, p, seed: x / (1 - p)),
        ("The result is x.", lambda x, p, seed: x),
        ("Every element came out as 0.", lambda x, p, seed: 0 * x),
        ("seed has no part in it: the numbers are those of seed 0.", with_numbers(lambda x, seed, e: _uniform(0, len(e)))),
        *((lane, with_numbers(lambda x, seed, e, block=block: _uniform(seed, block)[e % block])) for block in blocks),
        *(("One number decides for a whole block: element e takes tl.rand(seed, e), with a block of offsets.",
           with_numbers(lambda x, seed, e, block=block: _uniform(seed, len(e))[e // block])) for block in blocks),
        *(("Each block has a seed of its own: with the one seed, element e takes tl.rand(seed, e), e its offset.",
           with_numbers(lambda x, seed, e, block=block: of_another_seed(x, seed, e, block))) for block in blocks),
        ("The numbers are those of the columns, the same in every row: element e is counted through all of x.",
         with_numbers(lambda x, seed, e: _uniform(seed, len(e))[e % x.shape[-1]])),
        ("Element e takes number e: yours takes the next one.",
         with_numbers(lambda x, seed, e: _uniform(seed, len(e) + 1)[e + 1])),
        ("seed and offset are exchanged: tl.rand(seed, offsets).",
         with_numbers(lambda x, seed, e: torch.cat([_uniform(int(one), 1 + seed)[seed:] for one in e])
                      if len(e) < 10 and seed < 100 else torch.full((len(e),), torch.nan))),
    ]  # fmt: skip

    def not_stored(attempt: Attempt) -> str:
        """Where nothing was stored but what is kept."""
        dropped = (attempt.expected == 0).cpu().numpy()
        if dropped.any() and (attempt.unwritten == dropped).all():
            return (
                "Dropped elements are never stored: their 0 has to be, too. tl.where(kept, ..., 0.0) gives it; mask the end only."
            )
        return ""

    def other_mask(attempt: Attempt) -> str:
        """Other elements are kept than the numbers say."""
        if not bool((attempt.wrong & ((attempt.result == 0) != (attempt.expected == 0)).cpu().numpy()).any()):
            return ""
        return (
            "Other elements are kept than should be: element number e of all of x takes the number tl.rand(seed, e), and is kept "
            "where that is at least p."
        )

    exercise = Exercise(
        lambda x, p, seed: _dropped(x, p, _numbers(x, seed)),
        cases,
        lambda: build((1_000_003,), 0.25, 7, torch.float32),
        mistakes,
        "sizes 1 to 3000, a matrix and a tensor of three dimensions, p from 0 to 0.75, eight seeds, float32 and float16, large "
        "values; no access outside of a tensor, every element stored once, x unchanged",
        [stored_once],
        clues=[other_mask],
        gaps=not_stored,
    )
    return judge(function, exercise)


# ---- Rows to try ------------------------------------------------------------------------------------------------------------

# The first is where most mistakes show: its block is wider than a row, and it has more rows than one.
_SHAPES = ((3, 5), (1, 1), (1, 2), (2, 8), (5, 197), (2, 1000), (37, 16))

_LARGE = ", large values"
_BELOW = ", all values near -20000"


def _logits(rows: int, columns: int, dtype: torch.dtype, note: str) -> torch.Tensor:
    if note == _BELOW:
        # Values 16 apart: in float16, neighbours near 20000 are.
        return (-20_000 + 16 * torch.randint(0, 3, (rows, columns))).to(dtype)
    x = matrix(rows, columns, dtype)
    if note == _LARGE:
        x = matrix(rows, columns, dtype, 4e3)  # magnitudes of 2000 to 8000
        x[torch.arange(rows), (_target(rows, columns) + 2) % columns] = 9000  # in another column in each row, and no target
    return x


def _target(rows: int, columns: int) -> torch.Tensor:
    """A class for each row: neighbouring rows have different ones, and it is the same at every call."""
    return (2 * torch.arange(rows) + columns // 2) % columns


def _row_cases(build: Callable) -> Callable[[tuple[torch.dtype, ...]], list[Case]]:
    """Cases on logits and targets; build: draws the arguments beside these two from the number of the case."""

    def cases(dtypes: tuple[torch.dtype, ...]) -> list[Case]:
        low = [dtype for dtype in dtypes if dtype != torch.float32]
        found = [(*shape, torch.float32, "") for shape in _SHAPES]
        found += [(3, 6, torch.float32, note) for note in (_LARGE, _BELOW)]
        found += [(*shape, dtype, "") for dtype in low for shape in ((3, 5), (5, 197), (2, 1000))]
        found += [(3, 6, dtype, note) for dtype in low for note in (_LARGE, _BELOW)]
        return [build(number, *one) for number, one in enumerate(found)]

    return cases


_TRIED = (
    "1, 2, 5, 8, 16, 197 and 1000 classes in 1 to 37 rows, float32 and float16, large values, rows far below zero{}; no access "
    "outside of a tensor, every element stored once, inputs unchanged"
)

_OVERFLOW = "exp is infinite from 89 on in float32: subtract the row's maximum first, and exp(x - max) is 1 at most."
_PADDED = (
    "The sum of a row is too large: lanes past its end add to it. Load them with other=-float('inf'), whose exp is 0; with 0 "
    "each adds exp(0), or exp(0 - max)."
)
_TOO_HIGH = (
    "The maximum of these rows came out as 0, and every exp as 0: lanes past the end of a row take part in it. Load them with "
    "other=-float('inf')."
)
_AXIS = "The reduction runs down the columns: reduce along each row, axis 1 of a tile of rows."
_TILE = "The reduction is over all rows of a tile: each row has its own, axis 1 of a tile of rows."


def _overflowing(attempt: Attempt) -> str:
    """NaN or infinity where none belongs, in a case with special values."""
    if attempt.result.isfinite().all() or attempt.unwritten.any():
        return ""
    if _LARGE in attempt.case.label:
        return _OVERFLOW
    return _TOO_HIGH if _BELOW in attempt.case.label else ""


def _widths(columns: int) -> list[int]:
    """The blocks that a row of that many columns is likely to be held in."""
    smallest = 1 << (columns - 1).bit_length()
    return [smallest, *(width for width in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if width > smallest)]


def _for_widths(hint: str, mistake: Callable) -> list[tuple[str, Callable]]:
    """A mistake that depends on the block's width, the last argument of `mistake`, once for each likely width."""

    def at(index):
        def padded(x, *rest):
            widths = _widths(x.shape[1])
            return mistake(x, *rest, widths[min(index, len(widths) - 1)])

        return padded

    return [(hint, at(index)) for index in range(10)]


def _ordinary(mistakes: list[tuple[str, Callable]]) -> list[tuple[str, Callable]]:
    """The same for ordinary values only: in cases with large ones something else is wrong, which has its own hint."""

    def only(mistake):
        return lambda x, *rest: mistake(x if x.abs().amax() < 50 else x * math.nan, *rest)

    return [(hint, only(mistake)) for hint, mistake in mistakes]


def _illegal_row(error: tracing.IllegalAccess) -> str:
    """For a kernel that leaves a tensor: target and losses have an element for each row."""
    tensor = error.trace.launches[-1].tensors.get(error.tensor)
    if tensor is not None and tensor.ndim == 1 and error.element < error.size + (1 << 20):
        return (
            f"{error.tensor} has one element for each row, {error.size} here: index it with the number of the row, and launch no "
            "more programs than there are rows."
        )
    return row_outside(error)


def _at(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The logit of each row's target; a mistake's target comes as float64, as all tensors do."""
    return x.gather(1, target.long()[:, None])[:, 0]


# ---- cross_entropy ----------------------------------------------------------------------------------------------------------


def cross_entropy(function: Callable) -> Verdict:
    """Lesson 11: `function(logits, target)` returns the loss of each row, log(sum(exp(x))) - x[target], in float32.

    logits: (rows, classes), contiguous; target: (rows,), int64. In rows near -20000 an error of 0.002 is let pass, which adding
    the maximum to the logarithm costs there.
    """

    def build(number, rows, columns, dtype, note):
        arguments = {"logits": _logits(rows, columns, dtype, note), "target": _target(rows, columns)}
        slack = 2e-3 if note == _BELOW else 4e-6
        return Case(f"{shape_name(rows, columns)} in {type_name(dtype)}{note}", arguments, slack)

    def reference(logits, target):
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(wide, target.long(), reduction="none")

    def total(x):
        return (x - x.amax(1, keepdim=True)).exp().sum(1)

    def padded(x, target, width):
        return (x.exp().sum(1) + width - x.shape[1]).log() - _at(x, target)

    def down(x, target):
        return torch.logsumexp(x, 0)[target.long().clamp(max=x.shape[1] - 1)] - _at(x, target)

    mistakes = [
        ("That is the logarithm of the probability: the loss is minus that.", lambda x, t: -reference(x, t)),
        ("That is the probability of the target: the loss is minus its logarithm.", lambda x, t: (-reference(x, t)).exp()),
        ("That is minus the probability of the target: the loss is minus its logarithm.", lambda x, t: -(-reference(x, t)).exp()),
        ("That is 1 minus the probability of the target: the loss is minus its logarithm.",
         lambda x, t: 1 - (-reference(x, t)).exp()),
        ("The maximum is missing: the sum is of exp(x - max), so the loss is log(sum) + max - x[target].",
         lambda x, t: total(x).log() - _at(x, t)),
        ("The maximum is subtracted from the logarithm: the loss is log(sum) + max - x[target].",
         lambda x, t: total(x).log() - x.amax(1) - _at(x, t)),
        ("The target's logit is missing: the loss is log(sum) + max - x[target].", lambda x, t: torch.logsumexp(x, 1)),
        ("The target's logit is missing, and the maximum too: the loss is log(sum) + max - x[target].",
         lambda x, t: total(x).log()),
        ("The target's logit was added: the loss is log(sum) + max - x[target].", lambda x, t: torch.logsumexp(x, 1) + _at(x, t)),
        ("The logarithm of the sum is missing: the loss is log(sum) + max - x[target].", lambda x, t: x.amax(1) - _at(x, t)),
        ("The loss has the logarithm of the sum, tl.log(sum), not the sum.", lambda x, t: total(x) + x.amax(1) - _at(x, t)),
        ("The target's logit is read without its row: it is at row * columns + target.",
         lambda x, t: torch.logsumexp(x, 1) - x[0][t.long()]),
        ("The first row's target is taken for all: load target_ptr + row.",
         lambda x, t: torch.logsumexp(x, 1) - x[:, int(t[0])]),
        ("The logit at column 0 is taken for the target's: load target_ptr + row, and then the logit in that column.",
         lambda x, t: torch.logsumexp(x, 1) - x[:, 0]),
        ("The number of the target is subtracted: load the logit in that column.", lambda x, t: torch.logsumexp(x, 1) - t),
        ("The row's number is taken for the target: load target_ptr + row.",
         lambda x, t: torch.logsumexp(x, 1) - x[:, torch.arange(len(x), device=x.device).clamp(max=x.shape[1] - 1)].diagonal()),
        ("That is the sum over all classes: only the target's counts.", lambda x, t: -torch.log_softmax(x, 1).sum(1)),
        ("That is the mean over all classes: only the target's counts.", lambda x, t: -torch.log_softmax(x, 1).mean(1)),
        ("The loss was divided by the number of rows: each row has its own.", lambda x, t: reference(x, t) / len(x)),
        ("The loss was divided by the number of classes.", lambda x, t: reference(x, t) / x.shape[1]),
        ("That is a logarithm to the base 2: tl.log is the natural one.",
         lambda x, t: total(x).log2() + x.amax(1) - _at(x, t)),
        ("exp2 is not exp: powers of 2 were summed.",
         lambda x, t: (x - x.amax(1, keepdim=True)).exp2().sum(1).log() + x.amax(1) - _at(x, t)),
        *_for_widths(_PADDED, padded),
        *(("The end of each row is missing: the block has to cover the row, triton.next_power_of_2(classes), or a loop has to go "
           "on to its end.", lambda x, t, width=1 << exponent: torch.logsumexp(x[:, :width], 1) - _at(x, t))
          for exponent in range(4, 10)),
        (_AXIS, down),
        (_TILE, lambda x, t: torch.logsumexp(x, (0, 1)) - _at(x, t)),
        (_TILE, lambda x, t: by_tile(lambda x, t: torch.logsumexp(x, (0, 1)) - _at(x, t), x, t)),
        ("Zeros were stored: store the loss of the row.", lambda x, t: 0.0 * t),
    ]  # fmt: skip

    def one_launch_over_rows(attempt: Attempt) -> str:
        """For losses that were never stored."""
        trace = attempt.trace
        if trace is None or not any(access.kind == "store" and access.elements.size for access in trace.accesses):
            return ""
        if len({access.program for access in trace.accesses if access.kind == "store"}) > 1 and attempt.unwritten[1:].all():
            return "Every program stores to the first row's place: row number i has its loss at losses_ptr + i."
        if trace.owners(attempt.result).twice.any():
            return "Programs store to the same rows and never to others: program number i stores its loss at losses_ptr + i."
        return "The last rows belong to no program: the grid is (rows,), or (triton.cdiv(rows, BLOCK_ROWS),), which rounds up."

    exercise = Exercise(
        reference,
        _row_cases(build),
        lambda: build(0, 5003, 1000, torch.float32, ""),
        _ordinary(mistakes),
        _TRIED.format(""),
        [rows_stored_once],
        clues=[lambda attempt: one_launch_over_rows(attempt) if attempt.unwritten.any() else "", _overflowing],
        illegal=_illegal_row,
        gaps=one_launch_over_rows,
    )
    return judge(function, exercise)


# ---- cross_entropy_gradient -------------------------------------------------------------------------------------------------


def cross_entropy_gradient(function: Callable) -> Verdict:
    """Lesson 11: `function(logits, target, smoothing)` returns the gradient of the sum of the rows' smoothed losses.

    softmax(x) - (1 - smoothing) * onehot(target) - smoothing / classes, in the type of the logits, which are contiguous.
    """

    def build(number, rows, columns, dtype, note):
        # In the first case most mistakes show; every third has none.
        smoothing = (0.25, 0.1, 0.0)[number % 3]
        arguments = {"logits": _logits(rows, columns, dtype, note), "target": _target(rows, columns), "smoothing": smoothing}
        return Case(f"{shape_name(rows, columns)}, smoothing {smoothing:g} in {type_name(dtype)}{note}", arguments, 2e-6)

    def onehot(x, target):
        return functional.one_hot(target.long(), x.shape[1]).to(x.dtype)

    def wanted(x, target, s):
        return (1 - s) * onehot(x, target) + s / x.shape[1]

    def reference(x, target, s):
        return torch.softmax(x, 1) - wanted(x, target, s)

    def with_softmax(other):
        return lambda x, t, s: other(x) - wanted(x, t, s)

    def with_wanted(other):
        return lambda x, t, s: torch.softmax(x, 1) - other(x, t, s)

    def at_column(x, column):
        return functional.one_hot(column.long().clamp(0, x.shape[1] - 1), x.shape[1]).to(x.dtype)

    def flat_onehot(x, target):
        return (torch.arange(x.numel(), device=x.device).view_as(x) == target[:, None]).to(x.dtype)

    def numerator(x):
        return (x - x.amax(1, keepdim=True)).exp()

    def padded(x, t, s, width):
        return x.exp() / (x.exp().sum(1, keepdim=True) + width - x.shape[1]) - wanted(x, t, s)

    mistakes = [
        ("smoothing was left out: the target's share is 1 - smoothing, and every class has smoothing / classes.",
         with_wanted(lambda x, t, s: onehot(x, t))),
        ("The target's own share of the smoothing is missing: its column has 1 - smoothing and smoothing / classes subtracted.",
         with_wanted(lambda x, t, s: (1 - s) * onehot(x, t) + (1 - onehot(x, t)) * s / x.shape[1])),
        ("The target's share is 1 - smoothing: yours is 1.", with_wanted(lambda x, t, s: onehot(x, t) + s / x.shape[1])),
        ("smoothing / classes is missing: every class has it subtracted.", with_wanted(lambda x, t, s: (1 - s) * onehot(x, t))),
        ("smoothing is divided by the number of classes, so that all of it together is smoothing.",
         with_wanted(lambda x, t, s: (1 - s) * onehot(x, t) + s)),
        ("smoothing is spread over all classes, the target's among them: smoothing / classes, not / (classes - 1).",
         with_wanted(lambda x, t, s: (1 - s) * onehot(x, t) + (1 - onehot(x, t)) * s / max(x.shape[1] - 1, 1))),
        ("smoothing / classes is added: subtract it.", with_wanted(lambda x, t, s: (1 - s) * onehot(x, t) - s / x.shape[1])),
        ("1 - smoothing and smoothing are exchanged: the target's share is 1 - smoothing.",
         with_wanted(lambda x, t, s: s * onehot(x, t) + (1 - s) / x.shape[1])),
        ("Only 1 - smoothing of the softmax is there: the smoothed loss has all of it.",
         lambda x, t, s: (1 - s) * torch.softmax(x, 1) - wanted(x, t, s)),
        *_for_widths("smoothing was divided by the block's width: divide it by the number of classes.",
                     lambda x, t, s, width: torch.softmax(x, 1) - (1 - s) * onehot(x, t) - s / width),
        ("The sign is wrong: softmax minus what is wanted.", lambda x, t, s: -reference(x, t, s)),
        ("What is wanted was added to the softmax: subtract it.", lambda x, t, s: torch.softmax(x, 1) + wanted(x, t, s)),
        ("That is the softmax: subtract (1 - smoothing) * onehot, and smoothing / classes.", lambda x, t, s: torch.softmax(x, 1)),
        ("Nothing is subtracted in the target's column: compare the columns with the row's target.",
         with_wanted(lambda x, t, s: 0 * x + s / x.shape[1])),
        ("The softmax is missing.", lambda x, t, s: -wanted(x, t, s)),
        ("Only the target's column is there: every column has its softmax.", lambda x, t, s: reference(x, t, s) * onehot(x, t)),
        ("The gradient is of the sum over the rows: yours is divided by their number, as for the mean.",
         lambda x, t, s: reference(x, t, s) / len(x)),
        ("The first row's target is taken for all: load target_ptr + row.",
         with_wanted(lambda x, t, s: (1 - s) * at_column(x, t[:1].expand(len(t))) + s / x.shape[1])),
        ("The row's number is taken for the target: load target_ptr + row.",
         with_wanted(lambda x, t, s: (1 - s) * at_column(x, torch.arange(len(t), device=x.device)) + s / x.shape[1])),
        ("The column after the target's has its share: compare column with target, both counted from 0.",
         with_wanted(lambda x, t, s: (1 - s) * torch.where((t.long() < x.shape[1] - 1)[:, None], at_column(x, t + 1), 0.0)
                     + s / x.shape[1])),
        ("target counts the columns of its own row: compare it with column, not with the offset in the matrix.",
         with_wanted(lambda x, t, s: (1 - s) * flat_onehot(x, t) + s / x.shape[1])),
        ("The logarithm of the softmax is taken: the gradient has the softmax.", with_softmax(lambda x: torch.log_softmax(x, 1))),
        ("exp(x - max) was not divided by its sum.", with_softmax(numerator)),
        ("exp(x) was not divided by its sum.", with_softmax(torch.exp)),
        ("exp2 is not exp: the softmax is of powers of 2.", with_softmax(lambda x: torch.softmax(x * math.log(2), 1))),
        ("That is the derivative of the softmax's own: the gradient of the loss is softmax minus what is wanted.",
         lambda x, t, s: torch.softmax(x, 1) * reference(x, t, s)),
        *_for_widths(_PADDED, padded),
        (_AXIS, with_softmax(lambda x: torch.softmax(x, 0))),
        (_AXIS, with_softmax(lambda x: by_tile(lambda x: torch.softmax(x, 0), x))),
        (_TILE, with_softmax(lambda x: torch.softmax(x.flatten(), 0).view_as(x))),
        (_TILE, with_softmax(lambda x: by_tile(lambda x: torch.softmax(x.flatten(), 0).view_as(x), x))),
        ("The result is the logits.", lambda x, t, s: x),
        ("Zeros were stored.", lambda x, t, s: 0 * x),
    ]  # fmt: skip

    def too_high(attempt: Attempt) -> str:
        """Rows far below zero without a softmax: every exp came out as 0."""
        x, t, s = attempt.arguments.values()
        if _BELOW in attempt.case.label and bool(((attempt.result.double() + wanted(x.double(), t, s)).abs() <= 1e-3).all()):
            return _TOO_HIGH
        return ""

    exercise = Exercise(
        reference,
        _row_cases(build),
        lambda: build(0, 5003, 1000, torch.float32, ""),
        _ordinary(mistakes),
        _TRIED.format(", with and without smoothing"),
        [rows_stored_once],
        clues=[row_gaps, _overflowing, too_high],
        illegal=_illegal_row,
        gaps=row_gaps,
    )
    return judge(function, exercise)
