"""The checks of lesson 04: softmax over the rows of a matrix."""

import inspect
import math
import re
from collections.abc import Callable

import numpy as np
import torch

from .. import trace as tracing
from .judge import (
    GUARD,
    Attempt,
    Case,
    Exercise,
    Verdict,
    Wrong,
    _tiled,
    between,
    draw,
    index_text,
    judge,
    judge_plain,
    number,
    type_name,
)
from .lesson_02 import read_by_the_kernel

# ---- Drawing matrices, and looking at attempts on them: lesson 05 does as well ----------------------------------------------


def shape_name(rows: int, columns: int) -> str:
    """ "2 rows of 3"."""
    return f"{rows} row{'s' * (rows != 1)} of {columns}"


def matrix(rows: int, columns: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return draw(rows * columns, dtype, scale).view(rows, columns)


def rows_stored_once(attempt: Attempt) -> None:
    """Every element of every result is stored exactly once."""
    if attempt.trace is None:
        return
    for result in attempt.results:
        owners = attempt.trace.owners(result)
        if not owners.twice.any():
            continue
        message = f"The values are right, but {index_text(owners.twice)} is stored more than once."
        start, end = result.data_ptr(), result.data_ptr() + result.numel() * result.element_size()
        blocks: dict[tuple, set] = {}
        for access in attempt.trace.accesses:
            if access.kind != "load" and ((access.addresses >= start) & (access.addresses < end)).any():
                blocks.setdefault((access.launch, access.elements.tobytes()), set()).add(access.program)
        if len({launch for launch, _ in blocks}) > 1:
            raise Wrong(message, "Several launches store the same rows: one launch, whose programs share them out, is enough.")
        own: dict[tuple, list] = {}
        for (_, elements), programs in blocks.items():
            for program in programs:
                own.setdefault(program, []).extend(np.frombuffer(elements, dtype=np.int64))
        if sum(len(set(elements)) for elements in own.values()) > result.numel():
            raise Wrong(
                message,
                "Several programs do the same rows: program number i has row i, or the rows from i * BLOCK_ROWS on.",
            )
        raise Wrong(message, "Store the finished value, and nothing before it: what is not finished stays in registers.")


def row_outside(error: tracing.IllegalAccess) -> str:
    """For a kernel of whole rows that leaves a tensor: what to mask, or how to count."""
    launch = error.trace.launches[-1]
    source = inspect.getsource(launch.function)
    tensor = launch.tensors.get(error.tensor)
    if not -GUARD <= error.element < error.size + (1 << 20) or error.element < 0 or tensor is None:
        return ""
    if "mask" not in error.source and tensor.ndim < 2:
        return f"{error.tensor} has {error.size} elements: mask its lanes with column < columns, as those of a row."
    if re.search(r"<=", source):
        return "The mask lets the lane just past the end of a row through: column < columns, not <=."
    if "mask" not in error.source:
        if _tiled(launch.function):
            return ""
        return "This access has no mask, and the block is wider than a row: add mask=column < columns."
    if tensor.ndim < 2:
        return f"{error.tensor} has {error.size} elements: compare the index that is added to it with that number."
    if _tiled(launch.function):
        return ""
    return (
        "Lanes inside the mask leave the matrix: row number i begins at i * columns, not at i * BLOCK, and no more programs "
        "are launched than there are rows."
    )


def row_gaps(attempt: Attempt) -> str:
    """For a matrix of which elements were never stored: whether rows or ends of rows are missing, and why."""
    trace, missing = attempt.trace, attempt.unwritten
    if trace is None or missing.ndim != 2 or not missing.any():
        return ""
    start, end = attempt.result.data_ptr(), attempt.result.data_ptr() + attempt.result.nbytes
    stores = [a for a in trace.accesses if a.kind != "load" and ((a.addresses >= start) & (a.addresses < end)).any()]
    if not any(math.prod(launch.grid) for launch in trace.launches):
        return "The grid has no programs here: it is (rows,), or (triton.cdiv(rows, BLOCK_ROWS),), which rounds up."
    if not stores:
        return f"No store goes to {attempt.name}: a second tl.store, with its pointer, writes it." if attempt.name else ""
    rows, ends = missing.all(1), missing.all(0)
    if (missing == rows[:, None]).all():
        if len({access.program for access in stores}) > 1 and trace.owners(attempt.result).twice.any():
            return "Every program stores the same rows: program number i has row i, row = tl.program_id(0)."
        return "The last rows belong to no program: the grid is (rows,), or (triton.cdiv(rows, BLOCK_ROWS),), which rounds up."
    if (missing == ends[None, :]).all() and ends[-1] and (np.diff(ends.astype(int)) >= 0).all():
        if any(access.masked for access in stores) and not any(access.masked == 0 for access in stores):
            return "The mask switches off lanes at the end of each row that should store: it is column < columns."
        return (
            "The end of each row is missing: the block has to cover the row, triton.next_power_of_2(columns), or a loop has to "
            "go on to its end, range(0, columns, BLOCK)."
        )
    return "Rows are stored in the wrong places: row number i begins at i * columns, whatever the block."


def bytes_loaded(attempt: Attempt, tensor: torch.Tensor, launch: int | None = None) -> int:
    """How many bytes of a tensor's memory the kernels load, a byte counted as often as it is loaded."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    loads = (a for a in attempt.trace.accesses if a.kind != "store" and launch in (None, a.launch))
    return sum(int(((a.addresses >= start) & (a.addresses < end)).sum()) * a.itemsize for a in loads)


def foreign_loads(attempt: Attempt, *tensors: torch.Tensor) -> bool:
    """Whether the kernels load something that is neither in these tensors nor was stored by a kernel before."""
    stored: set[int] = set()
    extents = [(tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()) for tensor in tensors]
    for access in attempt.trace.accesses:
        if access.kind != "load":
            stored.update(access.addresses.tolist())
            continue
        outside = access.addresses
        for start, end in extents:
            outside = outside[(outside < start) | (outside >= end)]
        if not stored.issuperset(outside.tolist()):
            return True
    return False


def _reads(name: str) -> Callable[[Attempt], None]:
    return read_by_the_kernel(name, f"PyTorch does a part of it first: hand the kernel {name} as it is.")


def _stored(attempt: Attempt) -> bool:
    return attempt.trace is None or not attempt.unwritten.any()


# ---- Rows to try ------------------------------------------------------------------------------------------------------------

# The first is where most mistakes show: its block is wider than a row, and it has more rows than one.
_SHAPES = ((3, 5), (1, 1), (1, 2), (2, 8), (5, 197), (2, 1000), (37, 16))

_LARGE = ", large values"
_BELOW = ", all values near -10000"
_DEEP = ", all values near -2e9"
_INFINITE = ", -inf in places"


def _special(rows: int, columns: int, dtype: torch.dtype, note: str) -> torch.Tensor:
    if note == _LARGE:
        x = matrix(rows, columns, dtype, 4e3)  # magnitudes of 2000 to 8000
        x[:, 0] = 9e3 * (-1) ** torch.arange(rows)
        x[:, 1] = -x[:, 0]
        x[:, -2:] = -9900
        return x
    if note == _BELOW:
        # Values 8 apart: in float16, neighbours near 10000 are.
        return (-10_000 + 8 * torch.randint(0, 3, (rows, columns))).to(dtype)
    if note == _DEEP:  # and 256 apart: what stands for -inf has to be below
        return (-2_000_000_000 + 256 * torch.randint(0, 3, (rows, columns))).to(dtype)
    x = matrix(rows, columns, dtype)
    if note == _INFINITE:
        x[:, 0] = x[:, 3:5] = -math.inf
    return x


def _row_cases(dtypes: tuple[torch.dtype, ...]) -> list[Case]:
    found = [(*shape, torch.float32, "") for shape in _SHAPES]
    found += [(3, 6, torch.float32, note) for note in (_LARGE, _BELOW, _DEEP, _INFINITE)]
    low = [dtype for dtype in dtypes if dtype != torch.float32]
    found += [(*shape, dtype, "") for dtype in low for shape in ((3, 5), (5, 197), (2, 1000))]
    found += [(3, 6, dtype, note) for dtype in low for note in (_LARGE, _BELOW, _INFINITE)]
    return [
        # Where the maximum is 0 away from the sum's logarithm, or in a row of one, rounding is all that there is.
        Case(f"{shape_name(rows, columns)} in {type_name(dtype)}{note}", {"x": _special(rows, columns, dtype, note)}, 2e-6)
        for rows, columns, dtype, note in found
    ]


def _large_rows() -> Case:
    return Case("5003 rows of 1000 in float32", {"x": matrix(5003, 1000, torch.float32)})


_TRIED = (
    "1, 2, 5, 8, 16, 197 and 1000 columns in 1 to 37 rows, float32 and float16, large values, rows far below zero, "
    "-inf in places; no access outside of a tensor, every element stored once, x unchanged"
)

_PADDED = (
    "Each row is divided by too large a sum: lanes past its end add to it. Load them with other=-float('inf'), whose exp "
    "is 0; with 0 each adds exp(0), or exp(0 - max)."
)
_OVERFLOW = "exp is infinite from 89 on in float32: subtract the row's maximum first, and exp(x - max) is 1 at most."
_TOO_HIGH = (
    "The maximum of these rows came out as 0, and every exp as 0: lanes past the end of a row take part in it. "
    "Load them with other=-float('inf')."
)


def _not_finite(attempt: Attempt) -> str:
    """NaN or infinity where none belongs, in a case with special values."""
    if attempt.result[attempt.expected.isfinite()].isfinite().all() or not _stored(attempt):
        return ""
    if _LARGE in attempt.case.label:
        return _OVERFLOW
    if _BELOW in attempt.case.label:
        return _TOO_HIGH
    if "-inf" in attempt.case.label:
        return "-inf in a row is no error: its exp is 0. Where is -inf subtracted from -inf, or multiplied by 0? Both are NaN."
    return ""


def _in_proportion(attempt: Attempt) -> str:
    """Every value of a row too small by the same factor: the row's sum is too large."""
    if not _stored(attempt):
        return ""
    large = attempt.expected > 1e-3 * attempt.expected.amax(1, keepdim=True)
    factor = (attempt.result.double() / attempt.expected)[large]
    rows = torch.arange(attempt.result.shape[0], device=large.device)[:, None].expand_as(large)[large]
    mean = torch.stack([factor[rows == row].mean() for row in range(attempt.result.shape[0])])
    proportional = bool(((factor - mean[rows]).abs() <= 0.01 * mean[rows]).all())
    return _PADDED if proportional and bool((mean < 0.98).all()) else ""


def _shifted(attempt: Attempt) -> str:
    """Every value of a row too small by the same amount: the logarithm is of too large a sum."""
    if not _stored(attempt) or not attempt.expected.isfinite().all():
        return ""
    shift = attempt.result.double() - attempt.expected
    mean = shift.mean(1, keepdim=True)
    constant = bool(((shift - mean).abs() <= 0.01 * mean.abs() + 2 * attempt.tolerance).all())
    return _PADDED.replace("divided by", "lowered by the logarithm of") if constant and bool((mean < -0.02).all()) else ""


def _float32(function: Callable) -> Callable:
    """A mistake that is computed in float32, whose exp overflows; none where every exp is 0, which has its own hint."""

    def mistake(x, *rest):
        return function(x.float(), *rest).double() if x.amax() > -1000 else torch.full_like(x, 1e300)

    return mistake


def by_tile(function: Callable, *matrices: torch.Tensor) -> torch.Tensor:
    """A mistake that mixes the rows of a tile, with two rows a tile: with more, the first cases are one tile."""
    return torch.cat([function(*parts) for parts in zip(*(matrix.split(2) for matrix in matrices))])


_AXIS = "The reduction runs down the columns: reduce along each row, axis 1 of a tile of rows."
_STRIDES = "Neighbours in a row are 1 element apart, and rows are `columns` apart: the address is row * columns + column."
_TILE = "The reduction is over all rows of a tile: each row has its own, axis 1 of a tile of rows."

# ---- The exercises ----------------------------------------------------------------------------------------------------------


def log_softmax(function: Callable) -> Verdict:
    """Lesson 04: `function(x)` returns the logarithm of the softmax of each row: x - max - log(sum(exp(x - max)))."""

    def top(x):
        return x.amax(1, keepdim=True)

    def total(x):
        return (x - top(x)).exp().sum(1, keepdim=True)

    mistakes = [
        ("exp(x) overflows, and the logarithm of infinity is infinity: subtract the row's maximum before exp.",
         _float32(lambda x: x - x.exp().sum(1, keepdim=True).log())),
        ("That is the softmax: its logarithm was asked for, x - max - log(sum).", lambda x: torch.softmax(x, 1)),
        ("The logarithm of the sum was left out: the result is x - max.", lambda x: x - top(x)),
        ("The sum was subtracted, not its logarithm: tl.log(sum).", lambda x: x - top(x) - total(x)),
        ("The sum is of exp(x - max), so the maximum is subtracted from x as well: x - max - log(sum).",
         lambda x: x - total(x).log()),
        ("The maximum is subtracted twice: from x, and by a sum of exp(x) without it. It is sum(exp(x - max)).",
         _float32(lambda x: x - top(x) - x.exp().sum(1, keepdim=True).log())),
        ("The logarithm was added: x - max - log(sum).", lambda x: x - top(x) + total(x).log()),
        ("That is a logarithm to the base 2: tl.log is the natural one.", lambda x: x - top(x) - total(x).log2()),
        ("exp2 is not exp: 2 to the power of x - max was summed.",
         lambda x: x - top(x) - (x - top(x)).exp2().sum(1, keepdim=True).log()),
        ("The sign is wrong: the result is max + log(sum) - x.", lambda x: top(x) + total(x).log() - x),
        (_AXIS, lambda x: torch.log_softmax(x, 0)),
        (_AXIS, lambda x: by_tile(lambda x: torch.log_softmax(x, 0), x)),
        (_AXIS, lambda x: 0 * x),
        (_STRIDES, lambda x: torch.log_softmax(x.reshape(x.shape[::-1]), 0).reshape(x.shape)),
        (_TILE, lambda x: x - torch.logsumexp(x, (0, 1))),
        (_TILE, lambda x: by_tile(lambda x: x - torch.logsumexp(x, (0, 1)), x)),
        ("The logarithm is of the mean: divide the sum by nothing.", lambda x: torch.log_softmax(x, 1) + math.log(x.shape[1])),
        ("exp(x - max) is 0 for small x, and the logarithm of 0 is -inf: do not take exp and then log of x, write x - max - "
         "log(sum).", _float32(lambda x: ((x - top(x)).exp() / total(x)).log())),
        ("The result is x.", lambda x: x),
    ]  # fmt: skip
    exercise = Exercise(
        lambda x: torch.log_softmax(x, 1),
        _row_cases,
        _large_rows,
        mistakes,
        _TRIED,
        [_reads("x"), rows_stored_once],
        clues=[row_gaps, _not_finite, _shifted],
        illegal=row_outside,
        gaps=row_gaps,
    )
    return judge(function, exercise)


def _softmax_mistakes() -> list[tuple[str, Callable]]:
    def numerator(x):
        return (x - x.amax(1, keepdim=True)).exp()

    def naive(x):
        return x.exp() / x.exp().sum(1, keepdim=True)

    return [
        ("exp(x - max) was not divided by its sum.", numerator),
        ("exp(x) was not divided by its sum.", _float32(torch.exp)),
        ("exp(x - max) was divided by a sum of exp(x): the maximum has to be subtracted in both.",
         _float32(lambda x: numerator(x) / x.exp().sum(1, keepdim=True))),
        ("exp(x) was divided by a sum of exp(x - max): the maximum has to be subtracted in both.",
         _float32(lambda x: x.exp() / numerator(x).sum(1, keepdim=True))),
        ("The sum is of x: it has to be of the exponentials.", lambda x: numerator(x) / x.sum(1, keepdim=True)),
        ("exp2 is not exp: the result is of powers of 2.", lambda x: torch.softmax(x * math.log(2), 1)),
        ("The sign is wrong: exp(x - max), not exp(max - x).", lambda x: torch.softmax(-x, 1)),
        (_AXIS, lambda x: torch.softmax(x, 0)),
        (_AXIS, lambda x: by_tile(lambda x: torch.softmax(x, 0), x)),
        (_AXIS, lambda x: 0 * x + 1),
        (_STRIDES, lambda x: torch.softmax(x.reshape(x.shape[::-1]), 0).reshape(x.shape)),
        (_TILE, lambda x: torch.softmax(x.flatten(), 0).view_as(x)),
        (_TILE, lambda x: by_tile(lambda x: torch.softmax(x.flatten(), 0).view_as(x), x)),
        ("The values of a row were divided by their mean, not by their sum.", lambda x: torch.softmax(x, 1) * x.shape[1]),
        ("That is the logarithm of the softmax.", lambda x: torch.log_softmax(x, 1)),
        (_OVERFLOW, _float32(naive)),
        ("The result is x.", lambda x: x),
    ]  # fmt: skip


def softmax(function: Callable) -> Verdict:
    """Lesson 04: `function(x)` returns the softmax of each row."""
    exercise = Exercise(
        lambda x: torch.softmax(x, 1),
        _row_cases,
        _large_rows,
        _softmax_mistakes(),
        _TRIED,
        [_reads("x"), rows_stored_once],
        clues=[row_gaps, _not_finite, _in_proportion],
        illegal=row_outside,
        gaps=row_gaps,
    )
    return judge(function, exercise)


def merge(function: Callable) -> Verdict:
    """Lesson 04: `function(m1, s1, m2, s2)` merges the maximum and the sum of exponentials of two pieces of a row."""

    def exp(x):
        return math.inf if x > 709 else math.exp(x)

    def reference(m1, s1, m2, s2):
        m = max(m1, m2)
        if m == -math.inf:
            return m, 0.0
        return m, s1 * math.exp(m1 - m) + s2 * math.exp(m2 - m)

    def with_sum(total, top=max):
        def mistake(m1, s1, m2, s2):
            m = top(m1, m2)
            return m, total(m1, s1, m2, s2, m)

        return mistake

    def normal(result):
        if isinstance(result, torch.Tensor) and result.numel() == 2:
            result = tuple(result)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise Wrong(f"Your function returned a {type(result).__name__}.", "Return two numbers: (m, s).")
        return number(result[0]), number(result[1])

    infinity = math.inf
    drawn = [(between(-4, 4), between(1, 3), between(-4, 4), between(1, 3)) for _ in range(3)]
    cases = [
        (0.0, 1.0, 0.0, 1.0),
        (2.0, 1.5, 0.0, 2.0),
        (0.0, 2.0, 1.0, 1.5),
        (-3.0, 2.0, -1.0, 1.25),
        (1000.0, 1.0, 1001.0, 2.0),
        (-1001.0, 2.0, -1000.0, 1.5),
        (5.0, 1.0, -1000.0, 3.0),
        *drawn,
        (2.0, 1.5, -infinity, 0.0),
        (-infinity, 0.0, 2.0, 1.5),
        (-infinity, 0.0, -infinity, 0.0),
    ]
    empty = (
        "Two empty pieces: -inf - -inf is NaN, and so is its exp. Where the maximum is -inf there is nothing to scale: "
        "return (-inf, 0.0)."
    )
    mistakes = [
        (empty, with_sum(lambda m1, s1, m2, s2, m: s1 * exp(m1 - m) + s2 * exp(m2 - m))),
        ("The sums are below different maxima: scale each to the common one, s1 * exp(m1 - m) + s2 * exp(m2 - m).",
         with_sum(lambda m1, s1, m2, s2, m: s1 + s2)),
        ("Only the first sum is scaled: the second is below m2, so it takes exp(m2 - m).",
         with_sum(lambda m1, s1, m2, s2, m: s1 * exp(m1 - m) + s2)),
        ("Only the second sum is scaled: the first is below m1, so it takes exp(m1 - m).",
         with_sum(lambda m1, s1, m2, s2, m: s1 + s2 * exp(m2 - m))),
        ("The scale is upside down: exp(m1 - m), which is 1 at most, not exp(m - m1).",
         with_sum(lambda m1, s1, m2, s2, m: s1 * exp(m - m1) + s2 * exp(m - m2))),
        ("The scales are exchanged: s1 goes with exp(m1 - m), s2 with exp(m2 - m).",
         with_sum(lambda m1, s1, m2, s2, m: s1 * exp(m2 - m) + s2 * exp(m1 - m))),
        ("The pair of the whole row has the larger of the two maxima, not the smaller.",
         with_sum(lambda m1, s1, m2, s2, m: s1 * exp(m1 - m) + s2 * exp(m2 - m), min)),
        ("The maximum of the whole is the larger of m1 and m2: either can be it.",
         with_sum(lambda m1, s1, m2, s2, m: s1 * exp(m1 - m) + s2 * exp(m2 - m), lambda m1, m2: m2)),
        ("The maximum of the whole is the larger of m1 and m2: either can be it.",
         with_sum(lambda m1, s1, m2, s2, m: s1 * exp(m1 - m) + s2 * exp(m2 - m), lambda m1, m2: m1)),
        ("s1 and s2 are sums already: they are multiplied by exp(m1 - m) and exp(m2 - m).",
         with_sum(lambda m1, s1, m2, s2, m: exp(m1 - m) + exp(m2 - m))),
        ("exp is to the base e: these are powers of 2.",
         with_sum(lambda m1, s1, m2, s2, m: s1 * 2 ** (m1 - m) + s2 * 2 ** (m2 - m))),
        ("The sum of the whole is below m: s1 * exp(m1 - m) + s2 * exp(m2 - m), not of exp(m1) and exp(m2).",
         with_sum(lambda m1, s1, m2, s2, m: s1 * exp(m1) + s2 * exp(m2))),
        ("The order is (m, s): yours is the other way round.", lambda *case: reference(*case)[::-1]),
    ]  # fmt: skip
    return judge_plain(
        function,
        "merge",
        cases,
        reference,
        mistakes,
        "Write the row out: s1 stands for a sum of exp(x - m1), s2 for one of exp(x - m2); bring both to exp(x - m).",
        "equal maxima, either of them the larger, maxima of 1000 and of -1000, empty pieces, and numbers drawn at random",
        normal,
    )


def _at_most_block_lanes(attempt: Attempt) -> None:
    """No load or store has more than `block` lanes in one row."""
    block = attempt.arguments["block"]
    for access in attempt.trace.accesses if attempt.trace else ():
        lanes = np.bincount(access.elements // attempt.result.shape[1]).max(initial=0)
        if lanes > block:
            raise Wrong(
                f"The values are right, but a {access.kind} has {lanes} lanes, and block is {block}.\n"
                f"The line: `{access.source}`",
                "Let BLOCK be the `block` that your function is given, and take a row piece by piece: "
                "for start in range(0, columns, BLOCK).",
            )


def _read_at_most_twice(attempt: Attempt) -> None:
    """x is read at most twice, and nothing else but what a kernel has stored for itself."""
    if attempt.trace is None:
        return
    x = attempt.arguments["x"]
    times = bytes_loaded(attempt, x) / x.nbytes
    if foreign_loads(attempt, x):
        raise Wrong(
            "The values are right, but a kernel reads something that is neither x nor written by a kernel.",
            "Part of the work is done outside of your kernels: they find the maximum and the sum themselves.",
        )
    if times > 2:
        raise Wrong(
            f"The values are right, but x was read {times:g} times, and twice is enough.",
            "Find maximum and sum in one pass: keep a running pair, and when the maximum grows, scale the sum by "
            "exp(old - new), as merge does. A second pass writes.",
        )
    if bytes_loaded(attempt, attempt.result):
        raise Wrong(
            "The values are right, but the kernel reads its own output again.",
            "Store finished values only. One pass over x for the running pair, (maximum, sum), and one that writes.",
        )


def wide_softmax(function: Callable) -> Verdict:
    """Lesson 04: `function(x, block)` returns the softmax of each row from loads and stores of at most `block` lanes."""

    def build(rows, columns, block, dtype, note):
        if note == ", -inf in the first blocks":
            x = matrix(rows, columns, dtype)
            x[:, : 2 * block] = -math.inf
        elif note == ", rising values":
            x = matrix(rows, columns, dtype).abs().sort(1).values + torch.arange(columns).to(dtype) / columns
        elif note == ", falling values":
            x = -(matrix(rows, columns, dtype).abs().sort(1).values + torch.arange(columns).to(dtype) / columns)
        else:
            x = _special(rows, columns, dtype, note)
        name = f"{shape_name(rows, columns)} by blocks of {block} in {type_name(dtype)}{note}"
        return Case(name, {"x": x, "block": block}, 1e-6)

    def cases(dtypes):
        single, low = torch.float32, [dtype for dtype in dtypes if dtype != torch.float32]
        found = [(4, 4, 4, single, ""), (3, 5, 8, single, ""), (1, 1, 4, single, "")]
        found += [(2, 8, 4, single, note) for note in (", rising values", ", falling values")]
        found += [(3, 10, 4, single, ", rising values"), (2, 197, 16, single, ""), (2, 1000, 64, single, "")]
        found += [(1, 5000, 1024, single, ""), (9, 32, 32, single, "")]
        found += [(3, 10, 4, single, note) for note in (_LARGE, _BELOW, _DEEP, _INFINITE, ", -inf in the first blocks")]
        found += [(*shape, dtype, "") for dtype in low for shape in ((3, 5, 8), (2, 1000, 64))]
        found += [(3, 10, 4, dtype, _LARGE) for dtype in low]
        return [build(*one) for one in found]

    def running(step):
        """A softmax whose pair (maximum, sum) is found by `step(maximum, sum, piece)`."""

        def mistake(x, block):
            top = torch.full_like(x[:, :1], -math.inf)
            total = torch.zeros_like(top)
            for piece in x.split(block, 1):
                top, total = step(top, total, piece)
            return (x - top).exp() / total

        return _float32(mistake)

    def step(scale, carry=True):
        def mistake(top, total, piece):
            new = piece.amax(1, keepdim=True)
            if carry:
                new = torch.maximum(top, new)
            return new, total * scale(top, new) + (piece - new).exp().nan_to_num(0.0).sum(1, keepdim=True)

        return mistake

    def by_lane(x, block):
        """As `running` where every lane keeps a pair, and the pairs are not scaled to the row's maximum at the end."""
        padded = torch.nn.functional.pad(x, (0, -x.shape[1] % block), value=-math.inf).view(x.shape[0], -1, block)
        top = padded.amax(1)
        total = (padded - top[:, None].clamp(min=-1e300)).exp().sum(1)
        return (x - top.amax(1, keepdim=True)).exp() / total.sum(1, keepdim=True)

    def by_lane_unscaled(x, block):
        pieces = torch.nn.functional.pad(x, (0, -x.shape[1] % block), value=-math.inf).view(x.shape[0], -1, block)
        running = pieces.cummax(1).values
        top = x.amax(1, keepdim=True)
        total = (pieces - running).exp().nan_to_num(0.0).sum(1) * (running[:, -1] - top).exp()
        return (x - top).exp() / total.sum(1, keepdim=True)

    def each_block_alone(x, block):
        return torch.cat([torch.softmax(piece, 1) for piece in x.split(block, 1)], 1)

    def first_maximum(x, block):
        numerator = (x - x[:, :block].amax(1, keepdim=True)).exp().nan_to_num(0.0, posinf=math.inf)
        return numerator / numerator[:, :block].sum(1, keepdim=True)

    unscaled = (
        "When the maximum grows, the sum so far is below the old one: scale it, "
        "total = total * exp(old - new) + sum(exp(x - new))."
    )
    upside_down = "The scale is upside down: total * exp(old - new), which is 1 at most, not exp(new - old)."
    mistakes = [
        (unscaled, running(step(lambda old, new: 1.0))),
        (unscaled, by_lane_unscaled),
        (upside_down, running(step(lambda old, new: (new - old).exp().nan_to_num(0.0, posinf=0.0)))),
        ("The running maximum is that of the last block: new = maximum(old, the block's).",
         running(step(lambda old, new: (old - new).exp().nan_to_num(0.0, posinf=math.inf), carry=False))),
        ("The sum is of the last block only: it runs on, total = total * exp(old - new) + sum(exp(x - new)).",
         running(step(lambda old, new: 0.0))),
        ("The sum is of the last block only, and so is the maximum: both run on over the blocks of a row.",
         running(step(lambda old, new: 0.0, carry=False))),
        ("Each lane's sum is below the lane's own maximum: scale it to the row's before you add the lanes up, "
         "tl.sum(total * tl.exp(maximum - row_maximum)).", by_lane),
        ("Each block was normalised by itself: maximum and sum are of the whole row, so find them before you write.",
         each_block_alone),
        ("Maximum and sum are of the first block only: find them over all blocks before you write.", first_maximum),
        *((hint, lambda x, block, mistake=mistake: mistake(x)) for hint, mistake in _softmax_mistakes()),
    ]  # fmt: skip

    def nothing_seen(attempt):
        (_, columns), block = attempt.result.shape, attempt.arguments["block"]
        if attempt.result.isfinite().all() or not _stored(attempt) or not attempt.case.label.endswith(("32", "16", "blocks")):
            return ""
        if columns % block == 0:
            # exp(new - old) is infinite in the first block, and the sum is 0.
            return upside_down
        if "first blocks" not in attempt.case.label:
            return (
                "A lane past the end has seen nothing but -inf, and -inf - -inf is NaN: where the maximum is -inf, "
                "subtract 0 instead, tl.where(new == -float('inf'), 0.0, new)."
            )
        return (
            "A block of nothing but -inf leaves the maximum at -inf, and -inf - -inf is NaN: where the maximum is -inf, "
            "subtract 0 instead, tl.where(new == -float('inf'), 0.0, new)."
        )

    def large():
        return Case("1003 rows of 5000 by blocks of 1024 in float32", {"x": matrix(1003, 5000, torch.float32), "block": 1024})

    exercise = Exercise(
        lambda x, block: torch.softmax(x, 1),
        cases,
        large,
        mistakes,
        "1 to 5000 columns by blocks of 4 to 1024, float32 and float16, rising and falling rows, large values, rows far below "
        "zero, -inf in places and in whole blocks; no load or store with more lanes than block, x read twice at most, "
        "every element stored once",
        [_at_most_block_lanes, _read_at_most_twice, rows_stored_once],
        clues=[row_gaps, nothing_seen, _not_finite, _in_proportion],
        illegal=row_outside,
        gaps=row_gaps,
    )
    return judge(function, exercise)


def softmax_backward(function: Callable) -> Verdict:
    """Lesson 04: `function(grad, y)` returns the gradient of softmax's input: y * (grad - sum(grad * y)) in each row."""

    def reference(grad, y):
        if y.dtype != torch.float64:
            return torch.ops.aten._softmax_backward_data(grad, y, 1, y.dtype)
        # Not the formula compared with itself: softmax(log(y)) is y, and autograd differentiates it.
        x = y.log().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(torch.softmax(x, 1), x, grad)[0]

    def build(rows, columns, dtype):
        y = torch.softmax(matrix(rows, columns, torch.float64), 1).to(dtype)
        # y's rows sum to 1 up to its type's rounding only.
        slack = 1e-6 if dtype == torch.float32 else 1e-3
        return Case(f"{shape_name(rows, columns)} in {type_name(dtype)}", {"grad": matrix(rows, columns, dtype), "y": y}, slack)

    def far_from_zero(dtype):
        # The same at every call, so that what is rounded too much is so every time. y's rows sum to 1 exactly.
        y = torch.tensor([[5, 3, 7, 1], [2, 9, 4, 1], [1, 6, 1, 8]], dtype=dtype) / 16
        grad = torch.tensor([[998.0, 1002.5, 1000, 1001], [1001.5, 999, 1000.5, 998], [1002, 998.5, 1001, 1000]])
        return Case(f"3 rows of 4 in {type_name(dtype)}, gradients near 1000", {"grad": grad.to(dtype), "y": y})

    def cases(dtypes):
        found = [build(*shape, torch.float32) for shape in _SHAPES]
        for dtype in dtypes:
            if dtype != torch.float32:
                found += [build(*shape, dtype) for shape in ((3, 5), (5, 197), (2, 1000))]
                found += [far_from_zero(dtype)]
        return found

    mistakes = [
        ("The sum was left out: the result is grad * y.", lambda grad, y: grad * y),
        ("The factor y was left out: y * (grad - sum(grad * y)).", lambda grad, y: grad - (grad * y).sum(1, keepdim=True)),
        ("The sum is of grad: it has to be of grad * y.", lambda grad, y: y * (grad - grad.sum(1, keepdim=True))),
        ("The sum is of y: it has to be of grad * y.", lambda grad, y: y * (grad - y.sum(1, keepdim=True))),
        ("The sum was added: y * (grad - sum(grad * y)).", lambda grad, y: y * (grad + (grad * y).sum(1, keepdim=True))),
        ("The sign is wrong: grad comes first, y * (grad - sum(grad * y)).",
         lambda grad, y: y * ((grad * y).sum(1, keepdim=True) - grad)),
        ("That is the derivative of y by its own x only. Every output of a row depends on every x: subtract "
         "sum(grad * y) over the row.", lambda grad, y: grad * y * (1 - y)),
        ("The mean was subtracted: it is sum(grad * y), divided by nothing.",
         lambda grad, y: y * (grad - (grad * y).mean(1, keepdim=True))),
        (_AXIS, lambda grad, y: y * (grad - (grad * y).sum(0))),
        (_AXIS, lambda grad, y: by_tile(lambda grad, y: y * (grad - (grad * y).sum(0)), grad, y)),
        (_TILE, lambda grad, y: y * (grad - (grad * y).sum())),
        (_TILE, lambda grad, y: by_tile(lambda grad, y: y * (grad - (grad * y).sum()), grad, y)),
        ("grad and y are exchanged: the order of the arguments is grad, y.",
         lambda grad, y: grad * (y - (grad * y).sum(1, keepdim=True))),
        ("The incoming gradient was left out: the result is y * (1 - y).", lambda grad, y: y * (1 - y)),
        ("The incoming gradient was left out: with 1 for grad the result is 0, because every row of y sums to 1.",
         lambda grad, y: 0 * y),
        ("The sum is multiplied by y, and grad is not: y * (grad - sum(grad * y)).",
         lambda grad, y: grad - y * (grad * y).sum(1, keepdim=True)),
        ("grad is not weighted by y, or the sum is not: y * (grad - sum(grad * y)), both.",
         lambda grad, y: y * grad - (grad * y).sum(1, keepdim=True)),
        ("y was squared: the factor before the bracket is y.", lambda grad, y: y * y * (grad - (grad * y).sum(1, keepdim=True))),
        ("y is the softmax already, and it was taken again: use y as it is.",
         lambda grad, y: torch.softmax(y, 1) * (grad - (grad * torch.softmax(y, 1)).sum(1, keepdim=True))),
    ]  # fmt: skip

    def masked_lanes(attempt):
        if attempt.result.isfinite().all() or not _stored(attempt):
            return ""
        return "-inf times 0 is NaN. Lanes past the end of a row have to add nothing to the sum: load them with other=0.0."

    exercise = Exercise(
        reference,
        cases,
        lambda: build(5003, 1000, torch.float32),
        mistakes,
        "1, 2, 5, 8, 16, 197 and 1000 columns in 1 to 37 rows, float32 and float16, against float64 autograd; no access outside "
        "of a tensor, every element stored once, inputs unchanged",
        [_reads("grad"), _reads("y"), rows_stored_once],
        clues=[row_gaps, masked_lanes],
        illegal=row_outside,
        gaps=row_gaps,
    )
    return judge(function, exercise)
