"""The checks of lesson 05: layer norm over the rows of a matrix."""

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from .judge import Attempt, Case, Exercise, Verdict, Wrong, draw, judge, type_name
from .lesson_04 import _reads, by_tile, bytes_loaded, row_gaps, row_outside, rows_stored_once, shape_name

# ---- Rows to try ------------------------------------------------------------------------------------------------------------


def rows_away(rows: int, columns: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Rows whose mean is about 2 or -2 and whose values are 0.5 to 1.5 away from it, on either side in turn; times scale."""
    centre = 2.0 * (-1) ** torch.arange(rows)[:, None]
    away = (0.5 + torch.rand(rows, columns)) * (-1) ** torch.arange(columns)
    return ((centre + away) * scale).to(dtype)


# Rows, columns, eps. In the first most mistakes show: its block is wider than a row, it has more rows than one, and a large eps.
_SHAPES = ((3, 5, 0.125), (1, 1, 1e-5), (1, 2, 1e-5), (2, 8, 1e-5), (5, 197, 1e-5), (2, 768, 1e-5), (37, 16, 1e-5))

_LARGE = ", large values"
_FAR = ", means near 4000"
_TINY = ", tiny values"


def _far(columns: int) -> torch.Tensor:
    # The same at every call, so that what cancels does so every time.
    generator = torch.Generator().manual_seed(5)
    return torch.tensor([[3000.0], [-4000.0], [5000.0]]) + torch.randn(3, columns, generator=generator)


def _label(rows: int, columns: int, eps: float, dtype: torch.dtype, note: str) -> str:
    return f"{shape_name(rows, columns)} in {type_name(dtype)}" + (", eps 0.125" if eps == 0.125 else "") + note


def _cases(build: Callable, far: bool) -> Callable[[tuple[torch.dtype, ...]], list[Case]]:
    """The cases of a norm. build: draws the arguments from x and eps. far: whether rows far from zero are among them."""

    def cases(dtypes: tuple[torch.dtype, ...]) -> list[Case]:
        found = []
        for rows, columns, eps in _SHAPES:
            x = rows_away(rows, columns, torch.float32)
            # The floor for float32: a single pass over values of about 2 has no more than this to lose.
            found.append(Case(_label(rows, columns, eps, x.dtype, ""), build(x, eps), 2e-5))
        tiny = rows_away(3, 6, torch.float32, 1e-3)
        found.append(Case(_label(3, 6, 1e-5, tiny.dtype, _TINY), build(tiny, 1e-5), 2e-5))
        if far:
            # A mean of 5000 is rounded by 0.00025, and that is what the values are off by.
            x = _far(64)
            found.append(Case(_label(3, 64, 1e-5, x.dtype, _FAR), build(x, 1e-5), 5e-3))
        for dtype in dtypes:
            if dtype != torch.float32:
                for rows, columns, eps in (_SHAPES[0], _SHAPES[4], _SHAPES[5]):
                    x = rows_away(rows, columns, dtype)
                    found.append(Case(_label(rows, columns, eps, dtype, ""), build(x, eps)))
                x = rows_away(2, 197, dtype, 200.0)
                found.append(Case(_label(2, 197, 1e-5, dtype, _LARGE), build(x, 1e-5)))
        return found

    return cases


def _large_case(build: Callable) -> Callable[[], Case]:
    return lambda: Case("5003 rows of 768 in float32", build(rows_away(5003, 768, torch.float32), 1e-5), 2e-5)


_TRIED = (
    "1, 2, 5, 8, 16, 197 and 768 columns in 1 to 37 rows, float32 and float16, small and large eps, tiny and large values{}; "
    "no access outside of a tensor, every element stored once, inputs unchanged"
)

# ---- Typical mistakes -------------------------------------------------------------------------------------------------------

_AXIS = "The statistics run down the columns: reduce along each row, axis 1 of a tile of rows."
_TILE = "The statistics are of all rows of a tile: each row has its own, axis 1 of a tile of rows."
_NO_EPS = "eps was left out: the root is of the mean square plus eps."
_OUTSIDE = "eps was added after the root: it belongs inside, tl.sqrt(variance + eps)."
_HALF = (
    "The square of 300 does not fit in float16, nor does the sum of a row: convert what you load, tl.load(...).to(tl.float32), "
    "before you compute with it."
)


def _overflowing(attempt: Attempt) -> str:
    """Large values in float16 that were right in float32 in every other case."""
    return _HALF if _LARGE in attempt.case.label and attempt.arguments["x"].dtype != torch.float32 else ""


def _cancelling(attempt: Attempt) -> str:
    if _FAR not in attempt.case.label:
        return ""
    return (
        "mean(x^2) - mean^2 subtracts two numbers of 16 million for a variance of 1, and float32 has seven digits. "
        "Subtract the mean first: the mean of (x - mean)^2."
    )


def _ordinary(mistakes: list[tuple[str, Callable]]) -> list[tuple[str, Callable]]:
    """The same for ordinary values only: in cases with large ones something else is wrong, which has its own hint."""

    def only(mistake):
        return lambda x, *rest: mistake(x if x.abs().amax() < 50 else x * math.nan, *rest)

    return [(hint, only(mistake)) for hint, mistake in mistakes]


def _widths(columns: int) -> list[int]:
    """The blocks that a row of that many columns is likely to be held in, the smallest first."""
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


def _normalised(x, weight, bias, eps, mean=None, variance=None, scale=None):
    """Layer norm with one part of it replaced."""
    mean = x.mean(1, keepdim=True) if mean is None else mean
    variance = ((x - mean) ** 2).mean(1, keepdim=True) if variance is None else variance
    scale = 1 / (variance + eps).sqrt() if scale is None else scale
    return (x - mean) * scale * weight + bias


def _layer_norm_mistakes() -> list[tuple[str, Callable]]:
    def mean(x):
        return x.mean(1, keepdim=True)

    def centered(x):
        return x - mean(x)

    def variance(x):
        return (centered(x) ** 2).mean(1, keepdim=True)

    def with_padding(x, width):
        return ((centered(x) ** 2).sum(1, keepdim=True) + (width - x.shape[1]) * mean(x) ** 2) / x.shape[1]

    def narrow_mean(x, weight, bias, eps, width, padding=False):
        m = x.sum(1, keepdim=True) / width
        total = ((x - m) ** 2).sum(1, keepdim=True) + padding * (width - x.shape[1]) * m**2
        return _normalised(x, weight, bias, eps, m, total / x.shape[1])

    def narrow_both(x, weight, bias, eps, width, padding=False):
        m = x.sum(1, keepdim=True) / width
        total = ((x - m) ** 2).sum(1, keepdim=True) + padding * (width - x.shape[1]) * m**2
        return _normalised(x, weight, bias, eps, m, total / width)

    def whole(x, weight, bias, eps):
        return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * weight + bias

    def down(x, weight, bias, eps):
        return (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt() * weight + bias

    block_mean = "The mean is a sum divided by the block's width: divide by columns, the number of values in the row."
    return [
        *_for_widths(
            "The variance is too large: lanes past the end of a row hold 0 - mean, and each adds mean^2 to it. Set them to 0 "
            "after the mean is subtracted: tl.where(mask, x - mean, 0.0).",
            lambda x, w, b, eps, width: _normalised(x, w, b, eps, variance=with_padding(x, width))),
        *_for_widths(block_mean, narrow_mean),
        *_for_widths(block_mean, lambda *case: narrow_mean(*case, padding=True)),
        *_for_widths("The variance is a sum divided by the block's width: divide by columns, the number of values in the row.",
                     lambda x, w, b, eps, width: _normalised(x, w, b, eps, variance=variance(x) * x.shape[1] / width)),
        *_for_widths("The variance is of the whole block: lanes past the end join its sum, and it is divided by the block's "
                     "width. Mask them, tl.where(mask, x - mean, 0.0), and divide by columns.",
                     lambda x, w, b, eps, width: _normalised(x, w, b, eps, variance=with_padding(x, width) * x.shape[1] / width)),
        *_for_widths("Mean and variance are sums divided by the block's width: divide both by columns.", narrow_both),
        *_for_widths("Mean and variance are of the whole block, lanes past the end included: mask them, "
                     "tl.where(mask, x - mean, 0.0), and divide both sums by columns.",
                     lambda *case: narrow_both(*case, padding=True)),
        ("weight was left out.", lambda x, w, b, eps: _normalised(x, 1.0, b, eps)),
        ("bias was left out.", lambda x, w, b, eps: _normalised(x, w, 0.0, eps)),
        ("weight and bias were left out.", lambda x, w, b, eps: _normalised(x, 1.0, 0.0, eps)),
        ("weight and bias are exchanged: weight multiplies, bias is added.", lambda x, w, b, eps: _normalised(x, b, w, eps)),
        ("bias is added before weight multiplies: normalized * weight + bias.",
         lambda x, w, b, eps: (_normalised(x, 1.0, 0.0, eps) + b) * w),
        ("bias was subtracted: add it.", lambda x, w, b, eps: _normalised(x, w, -b, eps)),
        ("weight of the first column was taken for all: load it with the columns' offsets.",
         lambda x, w, b, eps: _normalised(x, w[0], b, eps)),
        ("bias of the first column was taken for all: load it with the columns' offsets.",
         lambda x, w, b, eps: _normalised(x, w, b[0], eps)),
        ("weight and bias of the first column were taken for all: load them with the columns' offsets.",
         lambda x, w, b, eps: _normalised(x, w[0], b[0], eps)),
        (_NO_EPS.replace("mean square", "variance"), lambda x, w, b, eps: _normalised(x, w, b, 0.0)),
        (_OUTSIDE, lambda x, w, b, eps: _normalised(x, w, b, eps, scale=1 / (variance(x).sqrt() + eps))),
        (_OUTSIDE, lambda x, w, b, eps: _normalised(x, w, b, eps, scale=1 / variance(x).sqrt() + eps)),
        ("eps was squared, or added to the sum: it is added to the variance, once.",
         lambda x, w, b, eps: _normalised(x, w, b, eps**2)),
        ("eps was added to the sum of squares: divide by columns first, then add eps.",
         lambda x, w, b, eps: _normalised(x, w, b, eps / x.shape[1])),
        ("Layer norm divides by columns: with columns - 1 it is the estimate of a sample's variance.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, variance=variance(x) * x.shape[1] / max(x.shape[1] - 1, 1))),
        ("The root is missing: divide by the root of variance + eps.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, scale=1 / (variance(x) + eps))),
        ("Multiply by 1 / sqrt(variance + eps): the values were multiplied by the root.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, scale=(variance(x) + eps).sqrt())),
        ("The values were not divided by the standard deviation.", lambda x, w, b, eps: _normalised(x, w, b, eps, scale=1.0)),
        ("The sum of squares was not divided by columns.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, variance=variance(x) * x.shape[1])),
        ("The sum of the row was subtracted: divide it by columns.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, x.sum(1, keepdim=True), variance(x))),
        ("The sum of the row was subtracted: divide it by columns.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, x.sum(1, keepdim=True))),
        ("The mean is subtracted for the variance, and has to be in the result as well: (x - mean) * rstd.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, 0.0, variance(x))),
        ("The mean was never subtracted: that is RMS norm.", lambda x, w, b, eps: _normalised(x, w, b, eps, 0.0)),
        ("The variance is of x: it is the mean of (x - mean)^2.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, variance=(x**2).mean(1, keepdim=True))),
        ("The mean distance was taken, not the mean of the squared one.",
         lambda x, w, b, eps: _normalised(x, w, b, eps, variance=centered(x).abs().mean(1, keepdim=True))),
        (_AXIS, down),
        (_AXIS, lambda x, w, b, eps: by_tile(lambda x: down(x, w, b, eps), x)),
        (_TILE, whole),
        (_TILE, lambda x, w, b, eps: by_tile(lambda x: whole(x, w, b, eps), x)),
        ("The result is x.", lambda x, w, b, eps: x),
        ("Every value came out as its bias.", lambda x, w, b, eps: 0 * x + b),
    ]  # fmt: skip


# ---- The exercises ----------------------------------------------------------------------------------------------------------


def rms_norm(function: Callable) -> Verdict:
    """Lesson 05: `function(x, weight, eps)` returns x / sqrt(mean(x^2) + eps) * weight for each row."""

    def build(x, eps):
        return {"x": x, "weight": draw(x.shape[1], x.dtype), "eps": eps}

    def square(x):
        return (x * x).mean(1, keepdim=True)

    def root(x, eps):
        return (square(x) + eps).sqrt()

    def down(x, w, eps):
        return x / ((x * x).mean(0) + eps).sqrt() * w

    def whole(x, w, eps):
        return x / ((x * x).mean() + eps).sqrt() * w

    mistakes = [
        ("weight was left out.", lambda x, w, eps: x / root(x, eps)),
        ("The result is divided by weight: multiply by it.", lambda x, w, eps: x / root(x, eps) / w),
        ("weight is added: multiply by it.", lambda x, w, eps: x / root(x, eps) + w),
        ("weight of the first column was taken for all: load it with the columns' offsets.",
         lambda x, w, eps: x / root(x, eps) * w[0]),
        ("1 + weight was multiplied: it is weight.", lambda x, w, eps: x / root(x, eps) * (1 + w)),
        (_NO_EPS, lambda x, w, eps: x / root(x, 0.0) * w),
        (_OUTSIDE.replace("variance", "mean_square"), lambda x, w, eps: x / (root(x, 0.0) + eps) * w),
        (_OUTSIDE.replace("variance", "mean_square"), lambda x, w, eps: x * (1 / root(x, 0.0) + eps) * w),
        ("eps was squared: it is added to the mean square as it is.", lambda x, w, eps: x / root(x, eps**2) * w),
        ("eps was added to the sum of squares: divide by columns first, then add eps.",
         lambda x, w, eps: x / root(x, eps / x.shape[1]) * w),
        ("The root is missing: divide by the root of the mean square plus eps.", lambda x, w, eps: x / (square(x) + eps) * w),
        ("The values were multiplied by the root: divide by it.", lambda x, w, eps: x * root(x, eps) * w),
        ("The values were not divided by the root.", lambda x, w, eps: x * w),
        ("The sum of squares was not divided by columns.",
         lambda x, w, eps: x / (x.shape[1] * square(x) + eps).sqrt() * w),
        ("The mean is of x: it has to be of x * x.", lambda x, w, eps: x / (x.mean(1, keepdim=True) + eps).sqrt() * w),
        ("The mean was squared: it is the mean of the squares.",
         lambda x, w, eps: x / (x.mean(1, keepdim=True) ** 2 + eps).sqrt() * w),
        ("The mean is of the magnitudes: it has to be of x * x.",
         lambda x, w, eps: x / (x.abs().mean(1, keepdim=True) + eps).sqrt() * w),
        ("The mean was subtracted: that is layer norm. RMS norm leaves it in.",
         lambda x, w, eps: _normalised(x, w, 0.0, eps)),
        ("The deviation from the mean was taken: the root is of the mean of x * x.",
         lambda x, w, eps: x / (x.var(1, correction=0, keepdim=True) + eps).sqrt() * w),
        ("The sum was divided by columns - 1: divide by columns.",
         lambda x, w, eps: x / (square(x) * x.shape[1] / max(x.shape[1] - 1, 1) + eps).sqrt() * w),
        *_for_widths("The mean square is a sum divided by the block's width: divide by columns, the number of values in the row.",
                     lambda x, w, eps, width: x / (square(x) * x.shape[1] / width + eps).sqrt() * w),
        *_for_widths("Lanes past the end of a row add to the mean square: load them with other=0.0.",
                     lambda x, w, eps, width: x / (square(x) + (width - x.shape[1]) / x.shape[1] + eps).sqrt() * w),
        (_AXIS, down),
        (_AXIS, lambda x, w, eps: by_tile(lambda x: down(x, w, eps), x)),
        (_AXIS, lambda x, w, eps: x / (x * x + eps).sqrt() * w),
        (_TILE, whole),
        (_TILE, lambda x, w, eps: by_tile(lambda x: whole(x, w, eps), x)),
        ("The result is x.", lambda x, w, eps: x),
        ("Every value came out as 0: the mean square is infinite. Lanes past the end of a row have to add nothing to it: "
         "load them with other=0.0.", lambda x, w, eps: 0 * x),
        ("The result is 1 / sqrt(mean(x^2) + eps), times weight: x was left out.", lambda x, w, eps: w / root(x, eps) + 0 * x),
    ]  # fmt: skip
    exercise = Exercise(
        lambda x, weight, eps: functional.rms_norm(x, (x.shape[1],), weight, eps),
        _cases(build, far=False),
        _large_case(build),
        _ordinary(mistakes),
        _TRIED.format(""),
        [_reads("x"), _reads("weight"), rows_stored_once],
        clues=[row_gaps, _overflowing, _masked_lanes],
        illegal=row_outside,
        gaps=row_gaps,
    )
    return judge(function, exercise)


def _masked_lanes(attempt: Attempt) -> str:
    """No finite value, where no mistake explains it."""
    if attempt.result.isfinite().any():
        return ""
    return (
        "Nothing but NaN or infinity: is the sum's other= -inf, as softmax has it? Lanes past the end have to add nothing: "
        "other=0.0."
    )


def layer_norm(function: Callable) -> Verdict:
    """Lesson 05: `function(x, weight, bias, eps)` returns (x - mean) / sqrt(variance + eps) * weight + bias for each row."""

    def build(x, eps):
        return {"x": x, "weight": draw(x.shape[1], x.dtype), "bias": draw(x.shape[1], x.dtype), "eps": eps}

    exercise = Exercise(
        lambda x, weight, bias, eps: functional.layer_norm(x, (x.shape[1],), weight, bias, eps),
        _cases(build, far=True),
        _large_case(build),
        _ordinary(_layer_norm_mistakes()),
        _TRIED.format(", means far from zero"),
        [*map(_reads, ("x", "weight", "bias")), rows_stored_once],
        clues=[row_gaps, _overflowing, _cancelling, _masked_lanes],
        illegal=row_outside,
        gaps=row_gaps,
    )
    return judge(function, exercise)


def _one_launch_reads_once(attempt: Attempt) -> None:
    """One launch, which reads x and residual once, and nothing but the arguments, and writes two tensors."""
    trace = attempt.trace
    if trace is None:
        return
    if len(trace.launches) != 1:
        raise Wrong(
            f"The values are right, but {len(trace.launches)} kernels were launched.",
            "The sum goes out to memory and back: add and normalise in one launch, and keep the sum in registers.",
        )
    beside = trace.bytes_read
    for name in ("x", "residual", "weight", "bias"):
        moved, size = bytes_loaded(attempt, attempt.arguments[name]), attempt.arguments[name].nbytes
        beside -= moved
        if not moved:
            raise Wrong(
                f"The values are right, but the kernel does not read {name}.",
                "Part of the work is done outside of the kernel: it loads x, residual, weight and bias itself.",
            )
        if name in ("x", "residual") and moved != size:
            raise Wrong(
                f"The values are right, but {moved} bytes of {name} were read, and it has {size}.",
                f"Load each row of {name} once, and use it again: it stays in registers.",
            )
    if beside:
        raise Wrong(
            f"The values are right, but {beside} bytes were read that are not the arguments'.",
            "The sum is read back from memory: normalise what is in registers.",
        )


def add_layer_norm(function: Callable) -> Verdict:
    """Lesson 05: `function(x, residual, weight, bias, eps)` returns (normalized, total), total = x + residual."""

    def build(x, eps):
        residual = 0.5 * x.float().mean(1, keepdim=True).sign() * x.float().abs().max() + draw(x.numel(), x.dtype).view_as(x)
        residual = residual.to(x.dtype)
        weight, bias = draw(x.shape[1], x.dtype), draw(x.shape[1], x.dtype)
        return {"x": x, "residual": residual, "weight": weight, "bias": bias, "eps": eps}

    def norm(x, weight, bias, eps):
        return functional.layer_norm(x, (x.shape[1],), weight, bias, eps)

    def of_total(mistake):
        return lambda x, r, w, b, eps: (mistake(x + r, w, b, eps), x + r)

    mistakes = [
        ("total is what was normalised, x + residual, before its mean is subtracted.",
         lambda x, r, w, b, eps: (norm(x + r, w, b, eps), x + r - (x + r).mean(1, keepdim=True))),
        ("total is x + residual, and the normalized values were stored to it.",
         lambda x, r, w, b, eps: (norm(x + r, w, b, eps),) * 2),
        ("The order is (normalized, total): yours is the other way round.",
         lambda x, r, w, b, eps: (x + r, norm(x + r, w, b, eps))),
        ("residual was not added: normalized is the layer norm of x + residual.",
         lambda x, r, w, b, eps: (norm(x, w, b, eps), x)),
        ("x was left out: normalized is the layer norm of x + residual.", lambda x, r, w, b, eps: (norm(r, w, b, eps), r)),
        ("residual is added after the norm: add it to x first, and normalise the sum.",
         lambda x, r, w, b, eps: (norm(x, w, b, eps) + r, norm(x, w, b, eps) + r)),
        ("residual was subtracted: add it.", lambda x, r, w, b, eps: (norm(x - r, w, b, eps), x - r)),
        ("x was added twice: is residual's pointer what the second load reads from?",
         lambda x, r, w, b, eps: (norm(x + x, w, b, eps), x + x)),
        *((hint, of_total(mistake)) for hint, mistake in _layer_norm_mistakes() if hint != "The result is x."),
    ]  # fmt: skip

    def reference(x, residual, weight, bias, eps):
        total = x + residual
        return norm(total, weight, bias, eps), total

    exercise = Exercise(
        reference,
        _cases(build, far=True),
        _large_case(build),
        _ordinary(mistakes),
        _TRIED.format(", means far from zero") + "; one launch, x and residual read once, two tensors written once",
        [_one_launch_reads_once, rows_stored_once],
        results=("normalized", "total"),
        clues=[row_gaps, _overflowing, _cancelling, _masked_lanes],
        illegal=row_outside,
        gaps=row_gaps,
    )
    return judge(function, exercise)


def _two_stages(attempt: Attempt) -> None:
    """No atomics; a first launch of at most `programs` programs that reads everything once and stores partial sums only."""
    trace, programs = attempt.trace, attempt.arguments["programs"]
    if trace is None:
        return
    if any(access.kind == "atomic" for access in trace.accesses):
        raise Wrong(
            "The values are right, but atomic updates add them up.",
            "Atomics arrive in any order, and sums of floats depend on it: the result changes from run to run. Let each program "
            "store its partial sums to a row of its own, and add the rows up in a second stage.",
        )
    launched = math.prod(trace.launches[0].grid)
    if launched > programs:
        raise Wrong(
            f"The values are right, but {launched} programs were launched first, and at most {programs} were allowed.",
            "The grid of the first launch is (programs,), and each program loops: "
            "for row in range(tl.program_id(0), rows, tl.num_programs(0)).",
        )
    if len(trace.launches) > 2:
        raise Wrong(
            f"The values are right, but {len(trace.launches)} kernels were launched.",
            "Two are enough: one that reads grad and x once and makes both partial sums, and one that adds them up.",
        )
    for name in ("grad", "x", "mean", "rstd"):
        tensor = attempt.arguments[name]
        moved = bytes_loaded(attempt, tensor, launch=0)
        if moved < tensor.nbytes:
            raise Wrong(
                f"The values are right, but {moved} bytes of {name} were read by the first kernel, and it has {tensor.nbytes}.",
                "Part of the work is done outside of the first kernel: its programs read every row.",
            )
        if name in ("grad", "x") and bytes_loaded(attempt, tensor) > tensor.nbytes:
            raise Wrong(
                f"The values are right, but {bytes_loaded(attempt, tensor)} bytes of {name} were read, and it has "
                f"{tensor.nbytes}.",
                "Read each row once: the same row of grad goes into both sums.",
            )
    written = sum(access.bytes for access in trace.accesses if access.kind == "store" and access.launch == 0)
    partial = 2 * programs * attempt.result.numel() * 4
    if written > partial:
        raise Wrong(
            f"The values are right, but the first kernel writes {written} bytes, and {programs} pairs of partial sums "
            f"have {partial}.",
            "Keep the running sums in registers, in float32, and store them once, after the loop over the rows.",
        )


def weight_gradients(function: Callable) -> Verdict:
    """Lesson 05: `function(grad, x, mean, rstd, programs)` returns (dweight, dbias) in float32, in two stages.

    dweight: the sum over the rows of grad * (x - mean) * rstd; dbias: of grad. No atomics.
    """

    def build(rows, columns, programs, dtype):
        x = rows_away(rows, columns, dtype)
        # All positive, so that no column's sum cancels.
        grad = draw(rows * columns, dtype).view(rows, columns).abs()
        wide = x.double()
        arguments = {
            "grad": grad,
            "x": x,
            "mean": wide.mean(1).float(),
            "rstd": (wide.var(1, correction=0) + 0.125).rsqrt().float(),
            "programs": programs,
        }
        name = f"{shape_name(rows, columns)} by {programs} program{'s' * (programs != 1)} in {type_name(dtype)}"
        # Rounding adds up over the rows, in whichever order.
        return Case(name, arguments, 1e-6 * rows)

    def cases(dtypes):
        shapes = [(7, 12, 2), (1, 1, 1), (2, 12, 4), (7, 197, 3), (200, 12, 8), (16, 16, 1)]
        found = [build(*shape, torch.float32) for shape in shapes]
        low = [dtype for dtype in dtypes if dtype != torch.float32]
        return found + [build(*shape, dtype) for dtype in low for shape in (shapes[0], shapes[4])]

    def sums(grad, x, mean, rstd, programs=1):
        return (grad * (x - mean[:, None]) * rstd[:, None]).sum(0), grad.sum(0)

    def reference(*arguments):
        wide = [value.float() if value.dtype != torch.float64 else value for value in arguments[:4]]
        return sums(*wide)

    def of_rows(choose):
        """The sums of some rows only: choose(rows, programs) are their indices."""

        def mistake(grad, x, mean, rstd, programs):
            index = torch.tensor([row for row in choose(x.shape[0], programs) if row < x.shape[0]], dtype=torch.long)
            return sums(*(tensor[index.to(x.device)] for tensor in (grad, x, mean, rstd)))

        return mistake

    def share(rows, programs):
        return -(-rows // programs)

    def with_weight(one):
        return lambda grad, x, mean, rstd, programs: (one(grad, x, mean[:, None], rstd[:, None]).sum(0), grad.sum(0))

    def with_bias(one):
        return lambda *case: (sums(*case)[0], one(*case[:2], case[2][:, None], case[3][:, None]))

    one_program = "Only one program's partial sums were returned: add up those of all programs."
    forgotten = "A program's last row replaced the ones before: add to the running sums in each turn of the loop."
    last_rows = "The last rows belong to no program: for row in range(tl.program_id(0), rows, tl.num_programs(0))."
    one_row = "Each program took one row only: it loops, for row in range(tl.program_id(0), rows, tl.num_programs(0))."
    mistakes = [
        ("The order is (dweight, dbias): yours is the other way round.", lambda *case: sums(*case)[::-1]),
        (one_row, of_rows(lambda rows, programs: range(programs))),
        (one_program, of_rows(lambda rows, programs: range(0, rows, programs))),
        (one_program, of_rows(lambda rows, programs: range(programs - 1, rows, programs))),
        (one_program, of_rows(lambda rows, programs: range(share(rows, programs)))),
        (one_program, of_rows(lambda rows, programs: range((programs - 1) * share(rows, programs), rows))),
        (forgotten, of_rows(lambda rows, programs: range(max(rows - programs, 0), rows))),
        (forgotten, of_rows(lambda rows, programs: [min((i + 1) * share(rows, programs), rows) - 1 for i in range(programs)])),
        (last_rows, of_rows(lambda rows, programs: range(rows // programs * programs))),
        (last_rows, of_rows(lambda rows, programs: range(rows - 1))),
        ("The mean was not subtracted: grad * (x - mean) * rstd.", with_weight(lambda grad, x, mean, rstd: grad * x * rstd)),
        ("rstd was left out: grad * (x - mean) * rstd.", with_weight(lambda grad, x, mean, rstd: grad * (x - mean))),
        ("mean and rstd were left out: grad * (x - mean) * rstd.", with_weight(lambda grad, x, mean, rstd: grad * x)),
        ("rstd is 1 over the deviation already: multiply by it, grad * (x - mean) * rstd.",
         with_weight(lambda grad, x, mean, rstd: grad * (x - mean) / rstd)),
        ("The incoming gradient was left out: grad * (x - mean) * rstd.",
         with_weight(lambda grad, x, mean, rstd: (x - mean) * rstd)),
        ("The mean was added: grad * (x - mean) * rstd.", with_weight(lambda grad, x, mean, rstd: grad * (x + mean) * rstd)),
        ("The sign is wrong: grad * (x - mean) * rstd.", with_weight(lambda grad, x, mean, rstd: grad * (mean - x) * rstd)),
        ("mean and rstd are exchanged: the order of the arguments is grad, x, mean, rstd.",
         with_weight(lambda grad, x, mean, rstd: grad * (x - rstd) * mean)),
        ("mean and rstd of the first row were taken for all: load them for each row.",
         with_weight(lambda grad, x, mean, rstd: grad * (x - mean[:1]) * rstd[:1])),
        ("The sums were divided by the number of rows: divide them by nothing.",
         lambda *case: tuple(one / case[1].shape[0] for one in sums(*case))),
        ("The sums were divided by the number of programs: divide them by nothing.",
         lambda *case: tuple(one / case[4] for one in sums(*case))),
        ("dbias is the sum of grad over the rows: the mean was taken.", with_bias(lambda grad, x, mean, rstd: grad.mean(0))),
        ("dbias is the sum of grad alone: rstd does not belong to it.",
         with_bias(lambda grad, x, mean, rstd: (grad * rstd).sum(0))),
        ("dbias is the sum of grad: yours is dweight.",
         with_bias(lambda grad, x, mean, rstd: (grad * (x - mean) * rstd).sum(0))),
        ("dbias is the sum of grad: yours is the sum of x.", with_bias(lambda grad, x, mean, rstd: x.sum(0))),
        ("dbias is the sum of grad: yours is of the normalized x.",
         with_bias(lambda grad, x, mean, rstd: ((x - mean) * rstd).sum(0))),
    ]  # fmt: skip

    def unwritten_partials(attempt):
        if attempt.result.isfinite().all():
            return ""
        if attempt.arguments["programs"] > attempt.arguments["x"].shape[0]:
            return (
                "There are more programs than rows, and those without one store nothing: what is in memory there is added up. "
                "Let every program store its sums, zeros too, or launch min(programs, rows)."
            )
        return (
            "NaN, and no input has one: partial sums that no program stored are added up, or lanes past the end of a row "
            "are. Let every program store its sums at its own place."
        )

    exercise = Exercise(
        reference,
        cases,
        lambda: build(5003, 768, 132, torch.float32),
        mistakes,
        "1 to 200 rows of 1 to 197 by 1 to 8 programs, more programs than rows among them, float32 and float16; no atomics, no "
        "access outside of a tensor, grad and x read once, inputs unchanged",
        [_two_stages],
        results=("dweight", "dbias"),
        clues=[unwritten_partials],
        illegal=row_outside,
        torch_may_finish=True,
    )
    return judge(function, exercise)
