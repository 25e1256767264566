"""The checks of lesson 15: an error as one number, the first layer that is off, every layer's output, and planted faults."""

import copy
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ... import runtime
from ...classify import DEFAULT_MODEL
from ...verify import PARTS
from ...vit import ViT, ViTConfig
from ...weights import read_config
from .. import faults as planted
from .. import trace as tracing
from . import judge as judging
from .judge import (
    NO_FUNCTION,
    NOT_ATTEMPTED,
    NotAttempted,
    Verdict,
    Wrong,
    _answer_to,
    _describe,
    _exception_hint,
    between,
    judge_plain,
    number,
)

# ---- One number for an error ------------------------------------------------------------------------------------------------


@dataclass
class _Pair:
    """An output and its truth; label: how a verdict writes the two."""

    label: str
    output: torch.Tensor
    truth: torch.Tensor

    def __repr__(self) -> str:
        return self.label


def _pair(output: list, truth: list) -> _Pair:
    return _Pair(f"{output}, {truth}", torch.tensor(output), torch.tensor(truth))


def _unchanged(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.shape == after.shape and torch.equal(before.nan_to_num(7.25), after.nan_to_num(7.25))


def _relative_error(output: torch.Tensor, truth: torch.Tensor) -> float:
    output, truth = output.double().cpu(), truth.double().cpu()
    difference, size = (output - truth).norm().item(), truth.norm().item()
    return difference / size if size > 0 else difference * float("inf") if difference else 0.0  # inf, or NaN for a NaN


def _of_pair(formula: Callable, dtype: torch.dtype | None = torch.float64) -> Callable[[_Pair], float]:
    """A mistake as judge_plain takes it, computed in `dtype`, or in the types that the tensors have."""

    def mistake(pair: _Pair) -> float:
        output, truth = (t.cpu() if dtype is None else t.cpu().to(dtype) for t in (pair.output, pair.truth))
        try:
            return float(formula(output, truth))
        except (ArithmeticError, RuntimeError):
            return math.nan

    return mistake


def _of_rows(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (output - truth).norm(dim=-1) / truth.norm(dim=-1)


def _spectral(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linalg.norm(tensor, 2)


_TOGETHER = "the norm is the square root of the sum of all elements' squares"

# Hints, and what the functions compute that make that mistake.
_ERROR_MISTAKES: list[tuple[str, list[Callable]]] = [
    (f"That goes by the largest difference alone: {_TOGETHER}.",
     [lambda o, t: (o - t).abs().max() / t.abs().max(), lambda o, t: (o - t).abs().max() / t.norm(),
      lambda o, t: (o - t).abs().max()]),
    ("An element whose truth is near zero would rule that: divide once, norm by norm, not element by element.",
     [lambda o, t: ((o - t).abs() / t.abs()).max(), lambda o, t: ((o - t).abs() / t.abs()).mean(),
      lambda o, t: ((o - t) / t).norm()]),
    (f"Those are means or sums of magnitudes: {_TOGETHER}.",
     [lambda o, t: (o - t).abs().sum() / t.abs().sum(), lambda o, t: (o - t).abs().mean(), lambda o, t: (o - t).abs().sum()]),
    ("The difference was not divided by the truth's norm: an error of 0.1 is small beside 100 and large beside 0.01.",
     [lambda o, t: (o - t).norm()]),
    ("The difference is measured against the truth: yours is divided by the output's norm, which has the error in it.",
     [lambda o, t: (o - t).norm() / o.norm()]),
    ("The difference is measured against the truth alone, not against both.",
     [lambda o, t: 2 * (o - t).norm() / (o.norm() + t.norm()), lambda o, t: (o - t).norm() / (o.norm() + t.norm()),
      lambda o, t: (o - t).norm() / torch.maximum(o.norm(), t.norm())]),
    ("It is upside down: the difference's norm is divided by the truth's.", [lambda o, t: t.norm() / (o - t).norm()]),
    ("That is its square: a norm ends with a square root.", [lambda o, t: (o - t).square().sum() / t.square().sum()]),
    ("Only one of the two norms has its square root.",
     [lambda o, t: (o - t).square().sum() / t.norm(), lambda o, t: (o - t).norm() / t.square().sum()]),
    ("One number for the whole tensor is asked for: yours is a mean over rows, each with an error of its own.",
     [lambda o, t: _of_rows(o, t).mean()]),
    ("One number for the whole tensor is asked for: yours is that of the worst row.", [lambda o, t: _of_rows(o, t).max()]),
    ("One number for the whole tensor is asked for: yours is a sum over rows, each with an error of its own.",
     [lambda o, t: _of_rows(o, t).sum()]),
    ("Differences of opposite sign cancel each other: square them, or take their magnitudes, before you add.",
     [lambda o, t: (o - t).sum() / t.sum(), lambda o, t: (o - t).sum().abs() / t.sum().abs(),
      lambda o, t: (o - t).sum() / t.norm()]),
    ("Where the output is below the truth the difference is negative, and a negative error passes any tolerance.",
     [lambda o, t: (o - t).max() / t.max(), lambda o, t: (o - t).max() / t.abs().max(), lambda o, t: (o - t).max() / t.norm()]),
    ("The number of elements belongs in both norms or in neither, where it cancels.",
     [lambda o, t: (o - t).norm() / o.numel(), lambda o, t: (o - t).norm() / t.norm() / o.numel(),
      lambda o, t: (o - t).square().mean().sqrt() / t.norm(), lambda o, t: (o - t).norm() / t.square().mean().sqrt()]),
    ("The difference was not divided by the truth: it is the root of the mean square, which has the output's own scale.",
     [lambda o, t: (o - t).square().mean().sqrt()]),
    ("That is the mean of the squared differences: it lacks a square root, and the division by the truth's norm.",
     [lambda o, t: (o - t).square().mean()]),
    ("Subtract first: two tensors of one norm can be far apart.",
     [lambda o, t: (o.norm() - t.norm()).abs() / t.norm(), lambda o, t: (o.norm() - t.norm()) / t.norm()]),
    ("For a matrix the norm of order 2 is its largest singular value: the one asked for takes the elements as one vector.",
     [lambda o, t: _spectral(o - t) / _spectral(t)]),
    ("That is in percent: 1.0 stands for an error as large as the truth.", [lambda o, t: 100 * (o - t).norm() / t.norm()]),
]  # fmt: skip

_DIVISOR = "Nothing is added to the divisor: where the truth's norm is zero, say so in a branch of its own."
_SMALL = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_CONVERT = "convert output and truth to float64 before you subtract"


def relative_error(function: Callable) -> Verdict:
    """Lesson 15: `function(output, truth)`, the relative error ||output - truth|| / ||truth||, a number.

    Frobenius norms, over all elements, in float64 whatever the tensors' types and devices. NaN where the output holds one.
    For a truth of zeros: infinity, or 0.0 where the output is zero as well.
    """
    if function is None or function is ...:
        return NOT_ATTEMPTED
    if not callable(function):
        return NO_FUNCTION
    called = 0

    @functools.wraps(function)
    def call(pair: _Pair) -> Any:
        nonlocal called
        called += 1
        output, truth = pair.output.clone(), pair.truth.clone()
        try:
            result = function(output, truth)
        except ZeroDivisionError as error:
            hint = "A truth of zeros has norm 0: the answer is infinity, or 0.0 where the output is zero as well."
            raise Wrong(_describe(error), hint if not pair.truth.any() else _exception_hint(error)) from None
        if (result is None or result is ...) and called > 1:
            raise Wrong("Your function returned nothing.", "Does every branch of it end in a return?")
        for name, before, after in (("output", pair.output, output), ("truth", pair.truth, truth)):
            if not _unchanged(before, after):
                raise Wrong(f"Your function changed its argument {name}.", "Compute in tensors of your own, not in place.")
        return result

    drawn = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    values = [
        _pair([5.0], [2.0]),
        _pair([1.0], [4.0]),
        _pair([3.0, 14.0], [0.0, 10.0]),
        _pair([[9.0, 6.0], [2.0, 6.0]], [[8.0, 4.0], [4.0, 2.0]]),
        _pair([[-8.0, 0.0], [0.0, 6.0]], [[8.0, 0.0], [0.0, 6.0]]),
    ]
    types = [
        _Pair("[0.1] and [0.3] in float32", torch.tensor([0.1]), torch.tensor([0.3])),
        _Pair("60000 and -60000 in float16", torch.tensor([6e4]).half(), torch.tensor([-6e4]).half()),
        _Pair("0.1 and 0.3 in bfloat16", torch.tensor([0.1]).bfloat16(), torch.tensor([0.3]).bfloat16()),
        _Pair("1e30 and 2e30 in float32", torch.full((3,), 1e30), torch.full((3,), 2e30)),
        _Pair("0.1 in float16, 0.3 in float64", torch.tensor([0.1]).half(), torch.tensor([0.3]).double()),
        _Pair("2 x 3 x 4 elements", *torch.rand(2, 2, 3, 4, generator=drawn).add(0.5)),
        _Pair("5 x 7 elements, not contiguous", *torch.rand(2, 7, 5, generator=drawn).add(0.5).transpose(1, 2)),
        _Pair("2 x 300 elements in float16", *torch.rand(2, 2, 300, generator=drawn).add(0.5).half()),
    ]
    if runtime.DEVICE.type == "cuda":
        types.append(
            _Pair("the output on the GPU, the truth on the CPU", torch.rand(4, device=runtime.DEVICE), torch.rand(4) + 1)
        )
    nothing = [0.0, 0.0]
    small = [
        _Pair("[1.0, 1.0] and [1.0, 1.0 + 1e-7] in float64", *torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-7]], dtype=torch.float64)),
        _Pair("[1.0] and [1.0 + 1e-14] in float64", *torch.tensor([[1.0], [1.0 + 1e-14]], dtype=torch.float64)),
        _Pair("[1e-20] and [2e-20] in float64", *torch.tensor([[1e-20], [2e-20]], dtype=torch.float64)),
        _pair(nothing, [3.0, 4.0]),
    ]
    special = [
        _pair([math.nan, 1.0], [2.0, 1.0]),
        _Pair("[1.0, 2.0, 3.0, nan], [1.0, 2.0, 3.0, 4.0]", torch.tensor([1.0, 2, 3, math.nan]), torch.tensor([1.0, 2, 3, 4])),
        _pair(nothing, nothing),
        _pair([3.0, 4.0], nothing),
    ]

    def plain(output, truth):
        return (output - truth).norm() / truth.norm()

    def divided_wide(output, truth):
        return (output - truth).norm().double() / truth.norm().double()

    def at_zero(answer: Callable[[_Pair], float]) -> Callable[[_Pair], float]:
        """The right answer but for a truth of zeros."""
        return lambda pair: _relative_error(pair.output, pair.truth) if pair.truth.any() else answer(pair)

    def without_nan(pair: _Pair, replaced: bool) -> float:
        output, truth = pair.output.double(), pair.truth.double()
        kept = output.isfinite()
        return _relative_error(output.nan_to_num(), truth) if replaced else _relative_error(output[kept], truth[kept])

    def no_nan_in_difference(pair: _Pair) -> float:
        difference = (pair.output.double() - pair.truth.double()).nan_to_num()
        return _relative_error(pair.truth.double() + difference, pair.truth)

    agree = "A truth and an output of zeros agree: the error is 0.0."
    none_fits = "Where the truth is zero and the output is not, no tolerance fits: the error is infinity."
    passes = "A NaN that is left out or replaced passes for a good result: let it through, so that the error is NaN, too."

    # The first cases are about the formula: which digits are right is what the others are about.
    def rough(value: float) -> float:
        return float(f"{value:.3g}")

    stages = [
        (
            values,
            lambda result: rough(number(result)),
            [
                (hint, lambda pair, formula=formula: rough(_of_pair(formula)(pair)))
                for hint, formulas in _ERROR_MISTAKES
                for formula in formulas
            ],
            "Two norms and a division: the square root of the sum of squared differences, over that of the truth's squares.",
        ),
        (
            types,
            number,
            [
                *((_DIVISOR, _of_pair(lambda o, t, small=small: (o - t).norm() / (t.norm() + small))) for small in _SMALL),
                *((f"It was computed in {name}, and rounded, or out of its range: {_CONVERT}.", _of_pair(formula, dtype))
                  for name, dtype in (("the types that the tensors have", None), ("float32", torch.float32),
                                      ("float16", torch.float16), ("bfloat16", torch.bfloat16))
                  for formula in (plain, divided_wide)),
                ("The difference was rounded before it was converted: convert both to float64, then subtract.",
                 _of_pair(lambda o, t: (o - t).double().norm() / t.double().norm(), None)),
            ],
            f"The numbers were simple so far, and rounding did not show: {_CONVERT}.",
        ),
        (
            small,
            number,
            [
                (_DIVISOR, _of_pair(formula))
                for tiny in (10.0**-power for power in range(9, 31))
                for formula in (
                    lambda o, t, tiny=tiny: (o - t).norm() / (t.norm() + tiny),
                    lambda o, t, tiny=tiny: (o - t).norm() / t.norm().clamp(min=tiny),
                )
            ],
            "Small errors and small truths count, and so does an output of zeros: nothing is rounded, nothing nearly equal is "
            "taken for equal, and only a truth whose norm is exactly 0 has a branch of its own.",
        ),
        (
            special,
            number,
            [
                *((passes, mistake) for mistake in (lambda pair: without_nan(pair, True), lambda pair: without_nan(pair, False))),
                (passes, no_nan_in_difference),
                *((agree, at_zero(answer)) for answer in (
                    lambda pair: math.nan, lambda pair: math.inf, lambda pair: math.inf if pair.output.any() else math.nan,
                )),
                *((none_fits, at_zero(answer)) for answer in (
                    lambda pair: 0.0, lambda pair: pair.output.double().norm().item(),
                    lambda pair: math.nan if pair.output.any() else 0.0, lambda pair: 1.0 if pair.output.any() else 0.0,
                )),
            ],
            "A NaN in the output gives NaN. A truth of zeros gives infinity, or 0.0 where the output is zero as well. A small "
            "number added to the divisor gives neither.",
        ),
        (
            [_pair([math.nan, 0.0], nothing)],
            number,
            [],
            "A NaN is a NaN beside a truth of zeros as well. Both difference > 0 and difference == 0 are false for it.",
        ),
    ]  # fmt: skip
    tried = (
        "one element, vectors, matrices and three dimensions, one of them not contiguous; float16, bfloat16, float32 and types "
        "mixed, numbers whose squares do not fit in them, small errors and small truths, a NaN, and a truth of zeros"
    )
    for pairs, normal, mistakes, fallback in stages:

        def reference(pair: _Pair, normal: Callable = normal) -> float:
            return normal(_relative_error(pair.output, pair.truth))

        cases = [(pair,) for pair in pairs]
        verdict = judge_plain(call, "relative_error", cases, reference, mistakes, fallback, tried, normal)
        if verdict.status == "not attempted" and called > 1:
            return Verdict("wrong", "Your function says NotImplementedError for some tensors.", fallback)
        if not verdict:
            return verdict
    return verdict


# ---- The first layer that is off --------------------------------------------------------------------------------------------


def _over(error: float, limit: float) -> bool:
    return not error <= limit  # true for a NaN, too


def _search(
    limit: Callable[[list[tuple], int, float], float] | None = None,
    off: Callable[[float, float], bool] = _over,
    pick: Callable[[list[tuple], list[int]], int | None] = lambda rows, found: found[0] if found else None,
    none: Any = None,
) -> Callable:
    """A way to look for the first divergence. limit: the tolerance of row `index`; pick: one of the rows that are off."""

    def function(rows: list[tuple], floor: float) -> Any:
        found = [i for i, row in enumerate(rows) if off(row[1], (limit or _tolerance)(rows, i, floor))]
        chosen = pick(rows, found)
        return none if chosen is None else rows[chosen][0]

    return function


def _peers(rows: list[tuple], index: int) -> list[float]:
    """The peer's errors up to a row, this one included."""
    return [peer_error for _, _, peer_error in rows[: index + 1]]


def _tolerance(rows: list[tuple], index: int, floor: float) -> float:
    return max(2 * max(0.0, *_peers(rows, index)), floor)


def _earlier(rows: list[tuple], index: int, floor: float) -> float:
    return max(2 * max(_peers(rows, index)[:-1], default=0.0), floor)


# Hints, and the tolerances of those that make the mistake.
_LIMITS: list[tuple[str, Callable]] = [
    ("The tolerance takes the largest peer error of this and all earlier rows: yours takes this row's alone.",
     lambda rows, i, floor: max(2 * rows[i][2], floor)),
    ("The tolerance takes the largest peer error of this and all earlier rows: yours looks one row back, no further.",
     lambda rows, i, floor: max(2 * max(_peers(rows, i)[-2:]), floor)),
    ("This row's own peer error counts as well: take it into the largest before you compare.", _earlier),
    ("A row is judged by what came before it: the largest peer error over all rows would excuse it with later ones.",
     lambda rows, i, floor: max(2 * max(row[2] for row in rows), floor)),
    ("The tolerance takes the largest peer error so far: yours takes the first row's for all.",
     lambda rows, i, floor: max(2 * rows[0][2], floor)),
    ("The tolerance takes the largest peer error so far, not their sum.",
     lambda rows, i, floor: max(2 * sum(_peers(rows, i)), floor)),
    ("The tolerance takes the largest peer error so far, not their mean.",
     lambda rows, i, floor: max(2 * sum(_peers(rows, i)) / (i + 1), floor)),
    ("The tolerance takes the largest peer error so far, not the smallest.",
     lambda rows, i, floor: max(2 * min(_peers(rows, i)), floor)),
    ("The floor was left out: where the peer happens to be exact, a few units of rounding are allowed all the same.",
     lambda rows, i, floor: 2 * max(_peers(rows, i))),
    ("The floor is for where twice the peer's error is smaller: the larger of the two counts, not their sum.",
     lambda rows, i, floor: 2 * max(_peers(rows, i)) + floor),
    ("The floor is for where twice the peer's error is smaller: the larger of the two counts, not the smaller.",
     lambda rows, i, floor: min(2 * max(_peers(rows, i)), floor)),
    ("The peer's error was left out: the floor is not all of the tolerance.", lambda rows, i, floor: floor),
    ("Twice the peer's error is allowed: yours allows it once.",
     lambda rows, i, floor: max(max(_peers(rows, i)), floor)),
    ("Twice the peer's error is allowed: yours allows three times.",
     lambda rows, i, floor: max(3 * max(_peers(rows, i)), floor)),
    ("Twice the peer's error is allowed: yours allows four times.",
     lambda rows, i, floor: max(4 * max(_peers(rows, i)), floor)),
    ("The peer's error is doubled, the floor is not.", lambda rows, i, floor: 2 * max(*_peers(rows, i), floor)),
]  # fmt: skip

_SEARCH_MISTAKES: list[tuple[str, Callable]] = [
    *((hint, _search(limit, off)) for hint, limit in _LIMITS for off in (_over, operator.gt)),
    ("A NaN compares as False with everything, error > tolerance is no exception: ask whether the row is fine, and negate that.",
     _search(off=operator.gt)),
    ("A NaN compares as False with everything, and an error equal to its tolerance is fine: ask whether the row is fine.",
     _search(off=operator.ge)),
    ("An error equal to its tolerance is fine: <=, not <.", _search(off=lambda error, limit: not error < limit)),
    ("The rows are (name, error, peer_error): the two errors are exchanged.",
     lambda rows, floor: _search()([(name, peer, error) for name, error, peer in rows], floor)),
    ("That is the last row that is off: what comes after the first starts from its error.",
     _search(pick=lambda rows, found: found[-1] if found else None)),
    ("That is the row with the largest error: errors grow on the way down, and the cause is where they begin.",
     _search(pick=lambda rows, found: max(found, key=lambda i: rows[i][1]) if found else None)),
    ("That is the row with the largest error: errors grow on the way down, and the cause is where they begin.",
     lambda rows, floor: max(rows, key=lambda row: row[1])[0] if rows else None),
    ("That is the row before: name the first one that is not fine.",
     _search(pick=lambda rows, found: max(found[0] - 1, 0) if found else None)),
    ("That is the first row that is fine: the condition is the wrong way round.",
     _search(off=lambda error, limit: error <= limit)),
    ("Only the first row is looked at: return None after the loop, not inside it.",
     lambda rows, floor: _search()(rows[:1], floor)),
    ("Where all rows are fine, the answer is None, not an empty text.", _search(none="")),
    ("Where all rows are fine, the answer is None, not the text 'None'.", _search(none="None")),
    ("Where all rows are fine, the answer is None, not the last row's name.",
     lambda rows, floor: _search()(rows, floor) or (rows[-1][0] if rows else None)),
    ("An infinite error is not fine.", _search(off=lambda error, limit: not error <= limit and not math.isinf(error))),
    ("That is the first row with a NaN: an error over its tolerance is a divergence, too. Does the tolerance come from the "
     "peer's errors? The model's own would excuse themselves.",
     _search(off=lambda error, limit: math.isnan(error))),
]  # fmt: skip


def first_divergence(function: Callable) -> Verdict:
    """Lesson 15: `function(rows, floor)`, the name of the first row that is not fine, or None.

    rows: (name, error, peer_error), in the order in which the model computes. A row is fine where its error is at most
    max(2 * the largest peer error of this and all earlier rows, floor). A NaN is never fine.
    """
    nan, inf = math.nan, math.inf
    cases: list[tuple] = [
        ([("a", 5.0, 1.0)], 1.0),
        ([("a", 1.0, 1.0)], 1.0),
        ([("a", 1.5, 1.0)], 1.0),
        ([("a", 2.5, 1.0)], 1.0),
        ([("a", 3.5, 1.0)], 1.0),
        ([("a", 3.5, 1.0)], 3.0),
        ([("a", 1.5, 1.0)], 4.0),
        ([("a", 5.0, 1.0)], 3.0),
        ([("a", 2.0, 1.0)], 1.0),
        ([("a", 3.0, 1.0)], 3.0),
        ([("a", 1.0, 1.0), ("b", 5.0, 1.0)], 1.0),
        ([("a", 5.0, 1.0), ("b", 1.0, 1.0)], 1.0),
        ([("a", 1.0, 2.0), ("b", 3.0, 0.5)], 1.0),
        ([("a", 3.0, 1.0), ("b", 1.0, 9.0)], 1.0),
        ([("a", 1.0, 1.0), ("b", 3.0, 1.0)], 0.5),
        ([("a", 1.0, 1.0), ("b", 3.0, 2.0)], 1.0),
        ([("a", 1.0, 1.0), ("b", 5.0, 1.0), ("c", 9.0, 1.0)], 1.0),
        ([("a", 1.0, 3.0), ("b", 1.0, 1.0), ("c", 5.0, 1.0)], 1.0),
        ([("a", 0.0, 0.0)], 0.0),
        ([], 1.0),
    ]
    generator = np.random.default_rng()
    for _ in range(6):
        names = ["embeddings", *(f"block {i}" for i in range(int(generator.integers(3, 9)))), "norm"]
        rows = [(name, between(1, 9) * 1e-7, between(2, 5) * 1e-7) for name in names]
        cases.append((rows, between(4, 8) * 1e-7))
    cases += [([("a", nan, 1.0)], 1.0), ([("a", inf, 1.0)], 1.0), ([("a", 1.0, 1.0), ("b", nan, 1.0), ("c", 9.0, 1.0)], 1.0)]
    answers: list[Any] = []
    nothing = object()

    @functools.wraps(function)
    def call(rows: list[tuple], floor: float) -> Any:
        given = copy.deepcopy(rows)
        result = function(given, floor)
        if repr(given) != repr(rows):  # == would not do for a NaN
            raise Wrong("Your function changed its argument rows.", "Look at the rows without changing the list.")
        answers.append(result)
        return nothing if result is None else result

    def normal(result: Any) -> str | None:
        if result is nothing:
            return None
        if isinstance(result, bool):
            raise Wrong("Your function returned a bool.", "Return the name of the first row that is not fine, or None.")
        if isinstance(result, (int, np.integer)):
            raise Wrong("Your function returned an int.", "Return the row's name, not its number.")
        if not isinstance(result, str):
            raise Wrong(
                f"Your function returned a {type(result).__name__}.",
                "Return the name alone, of the first row that is not fine: a row is (name, error, peer_error).",
            )
        return result

    verdict = judge_plain(
        call if callable(function) else function,
        "first_divergence",
        cases,
        _search(),
        _SEARCH_MISTAKES,
        "Go through the rows in order, and keep the largest peer error so far: write out by hand what each row's tolerance is in "
        "this case, and where the first error is beyond it.",
        "single rows on either side of their tolerance and on it, a NaN, an infinity, tables whose peer errors rise and fall, no "
        "rows at all, and rows drawn at random",
        normal,
    )
    # A stub returns None everywhere; one that is wrong, somewhere.
    if len(answers) < len(cases) or any(answer is not None for answer in answers):
        return verdict
    return NOT_ATTEMPTED if judging.is_stub(function) else Verdict("wrong", judging.RETURNED_NONE, judging.END_WITH_A_RETURN)


# ---- Every layer's output ---------------------------------------------------------------------------------------------------


class _Boom(RuntimeError):
    """What a model raises on purpose."""


class _Part(nn.Linear):
    """A layer that holds no others. kind: "plain", "pair" for a tuple of two results, or "raises"."""

    def __init__(self, kind: str = "plain"):
        super().__init__(4, 4)
        self.kind = kind
        self.gave: Any = None

    def forward(self, x: torch.Tensor) -> Any:
        if self.kind == "raises":
            raise _Boom("this model raises on purpose")
        out = super().forward(x) + 1.0
        self.gave = (out, x * 2.0) if self.kind == "pair" else out
        return self.gave


class _Chain(nn.Module):
    """Parts one after the other. in_place: each part's output is changed in place once the next part has seen it."""

    def __init__(self, in_place: bool = False, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.in_place = in_place
        self.calls, self.replaced = 0, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        for part in self.children():
            out = part(x)
            self.replaced |= isinstance(part, _Part) and out is not part.gave
            x = out[0] if isinstance(out, tuple) else out
            if self.in_place:
                x += 3.0
        return x


@dataclass
class _Model:
    """A model to try. label: how a verdict names it. names: what is asked for. raises: it raises a `_Boom`."""

    label: str
    model: nn.Module
    pixel_values: torch.Tensor
    names: list[str]
    raises: bool = False
    mode: dict[str, bool] = field(default_factory=dict)


def _models() -> list[_Model]:
    x = torch.randn(2, 4)
    config = ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=8, image_size=8, patch_size=4)
    vit_names = ["patch_embedding", "blocks.0.attention.qkv", "blocks.0", "blocks.1.mlp", "norm", "classifier"]
    frozen = _Chain(first=_Part(), second=_Part())
    frozen.first.eval()
    models = [
        _Model("a model of two layers, both asked for", _Chain(first=_Part(), second=_Part()).eval(), x, ["first", "second"]),
        _Model("a model of three layers, of which two are asked for",
               _Chain(first=_Part(), second=_Part(), third=_Part()).eval(), x, ["first", "third"]),
        _Model("a model of three layers, asked for in another order",
               _Chain(first=_Part(), second=_Part(), third=_Part()).eval(), x, ["third", "first", "second"]),
        _Model("a layer and the layers within it",
               _Chain(block=_Chain(first=_Part(), second=_Chain(inner=_Part())), last=_Part()).eval(), x,
               ["block.first", "block", "block.second.inner"]),
        _Model("a layer that returns a tuple", _Chain(first=_Part("pair"), second=_Part()).eval(), x, ["first", "second"]),
        _Model("a model that changes its layers' outputs in place", _Chain(True, first=_Part(), second=_Part()).eval(), x,
               ["first", "second"]),
        _Model("a model in training mode, but for one layer", frozen, x, ["first", "second"]),
        _Model("a model that raises in its second layer", _Chain(first=_Part(), second=_Part("raises")).eval(), x,
               ["first", "second"], raises=True),
    ]  # fmt: skip
    if runtime.INTERPRETER or runtime.DEVICE.type == "cuda":  # else there is nothing that runs its kernels
        vit, pixel_values = ViT(config).eval().to(runtime.DEVICE), torch.randn(1, 3, 8, 8, device=runtime.DEVICE)
        models.append(_Model("a small ViT", vit, pixel_values, vit_names))
    return models


def _hooks_of(model: nn.Module) -> list[tuple[str, str]]:
    """What hangs on a model's modules: (name, which kind)."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [(name, kind) for name, module in model.named_modules() for kind in kinds for _ in getattr(module, kind)]
    return found + [(name, "forward") for name, module in model.named_modules() if "forward" in vars(module)]


_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


_Truths = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]


def _true_outputs(case: _Model) -> _Truths:
    """By name, in the order in which they ran: outputs, inputs, and outputs as they are once the model is done."""
    model = copy.deepcopy(case.model)
    outputs, inputs, kept = {}, {}, {}

    def keep(name: str) -> Callable:
        def hook(_module: nn.Module, given: tuple, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            outputs[name], inputs[name], kept[name] = first.detach().clone(), given[0].detach().clone(), first.detach()

        return hook

    modules = dict(model.named_modules())
    for name in case.names:
        modules[name].register_forward_hook(keep(name))
    with torch.no_grad():
        model(case.pixel_values.clone())
    return outputs, inputs, kept


def layer_outputs(function: Callable) -> Verdict:
    """Lesson 15: `function(model, pixel_values, names)`, the outputs of the modules of these names, a dict of tensors.

    In the order in which the modules ran, each as it was then, without gradients; of a tuple the first element. Kept by
    forward hooks, which are removed afterwards, also where the model raises.
    """
    if function is None or function is ...:
        return NOT_ATTEMPTED
    if not callable(function):
        return NO_FUNCTION
    for index, case in enumerate(_models()):
        case.mode = {name: module.training for name, module in case.model.named_modules()}
        try:
            _try_model(function, case, first=index == 0)
        except NotAttempted:
            return NOT_ATTEMPTED
        except Wrong as wrong:
            return Verdict("wrong", f"Smallest failing case: {case.label}.\n{wrong.message}", wrong.hint)
    return Verdict(
        "right",
        "Tried: names in the order of the model and in another, layers within layers, a layer that returns a tuple, a model that "
        "changes outputs in place, one in training mode, one that raises, and a small ViT.",
    )


def _try_model(function: Callable, case: _Model, first: bool) -> None:
    """Try one model; raises Wrong or NotAttempted."""
    model, names, pixel_values = case.model, list(case.names), case.pixel_values.clone()
    state = copy.deepcopy(model.state_dict())
    needed = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before, grad = {name: dict(getattr(torch_module, name)) for name in _GLOBAL_HOOKS}, torch.is_grad_enabled()
    truths = None if case.raises else _true_outputs(case)
    raised, result = None, None
    try:
        with tracing.time_limit(judging.SECONDS):
            result = function(model, pixel_values, names)
    except (tracing.TookTooLong, NotImplementedError) as error:
        raise _answer_to(error, first) from None
    except (Exception, SystemExit) as error:
        raised = error
    finally:
        left_globally = any(set(getattr(torch_module, name)) - set(before[name]) for name in _GLOBAL_HOOKS)
        for name, hooks in before.items():
            getattr(torch_module, name).clear()
            getattr(torch_module, name).update(hooks)
        grad_after = torch.is_grad_enabled()
        torch.set_grad_enabled(grad)
    calls = getattr(model, "calls", 1)
    if first and raised is None and (result is None or result is ...) and not calls and judging.is_stub(function):
        raise NotAttempted
    if raised is not None and (not case.raises or not isinstance(raised, _Boom)):
        hint = _model_exception_hint(raised, model)
        raise Wrong(_describe(raised), hint) from None

    if not case.raises:
        _compare_outputs(result, case, truths, getattr(model, "replaced", False))
    # What it left behind
    if left_globally:
        raise Wrong(
            "A hook on all modules is still there after your function.", "Hang hooks on the modules asked for, and remove them."
        )
    if hooks := _hooks_of(model):
        name, kind = hooks[0]
        if kind == "forward":
            raise Wrong(
                f"The forward of {name!r} was replaced, and still is.",
                "Use register_forward_hook: it needs no change of the module.",
            )
        message = (
            f"{name!r} has {'a hook' if len([h for h in hooks if h[0] == name]) == 1 else 'hooks'} left after your function."
        )
        if case.raises:
            raise Wrong(message, "Where the model raises, what comes after it is skipped: remove the hooks in a finally.")
        raise Wrong(message, "register_forward_hook returns a handle: keep each, and remove it when the model has run.")
    if case.raises and raised is None:
        raise Wrong(
            "The model's exception did not come out of your function.",
            "Somebody has to know that the model failed: finally cleans up without catching, except would hide it.",
        )
    if calls > 1:
        raise Wrong(f"Your function ran the model {calls} times.", "Hang all of the hooks on it first, then run it once.")
    if grad_after != grad:
        raise Wrong("Gradients are switched off after your function.", "Use `with torch.no_grad():`, which ends with its block.")
    changed = [name for name, module in model.named_modules() if module.training != case.mode[name]]
    if changed:
        raise Wrong(
            f"{'The model' if not changed[0] else repr(changed[0])} is in another mode, training or eval, than before.",
            "Leave the mode to whoever calls you: here it is no part of the question.",
        )
    if any(not torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items()):
        raise Wrong("Your function changed the model's weights.", "Run the model and look; change nothing in it.")
    if any(parameter.requires_grad != needed[name] for name, parameter in model.named_parameters()):
        raise Wrong(
            "The model's parameters need gradients no more after your function.",
            "Use `with torch.no_grad():`, which leaves the parameters as they are.",
        )
    if not torch.equal(pixel_values, case.pixel_values):
        raise Wrong("Your function changed its argument pixel_values.", "Give the model the pixels as they are.")
    if names != case.names:
        raise Wrong("Your function changed its argument names.", "Read the list without changing it.")


def _model_exception_hint(error: BaseException, model: nn.Module) -> str:
    text = str(error)
    if "'tuple' object" in text:
        return "Where a module returns a tuple, keep its first element."
    if getattr(model, "replaced", False):
        return "What a forward hook returns takes the place of the module's output: let yours return nothing."
    if isinstance(error, AttributeError) and ("has no attribute" in text and "." in text.rsplit("'", 2)[-2]):
        return "A name with dots is a path: look it up in dict(model.named_modules())."
    if isinstance(error, KeyError):
        return "Layers within layers have a name with dots: they are in model.named_modules(), not in model.named_children()."
    if isinstance(error, TypeError) and "positional argument" in text:
        return "A forward hook is called with three arguments: the module, its inputs as a tuple, and its output."
    return _exception_hint(error)


def _compare_outputs(result: Any, case: _Model, truths: _Truths, replaced: bool) -> None:
    """Raises Wrong where what the function returned is not what the modules gave."""
    if result is None or result is ...:
        raise Wrong("Your function returned nothing.", "Return the dictionary that the hooks have filled.")
    if not isinstance(result, Mapping):
        raise Wrong(f"Your function returned a {type(result).__name__}.", "Return a dictionary: a tensor by its module's name.")
    outputs, inputs, kept = truths
    if any(not isinstance(key, str) for key in result):
        kind = type(next(key for key in result if not isinstance(key, str))).__name__
        raise Wrong(f"A key of your dictionary is of type {kind}.", "The keys are the names that were asked for, text.")
    missing, surplus = [name for name in outputs if name not in result], [name for name in result if name not in outputs]
    late = (
        "The hooks share one variable: a name from the loop is looked up when a hook runs, after the loop, and is the last by "
        "then. Make each hook in a function that takes the name."
    )
    if missing:
        message = f"First name that is missing: {missing[0]!r}."
        if not result:
            raise Wrong(message, "The dictionary is empty: are the hooks hung before the model runs, and do they keep anything?")
        if list(result) == [case.names[-1]]:
            raise Wrong(message, late)
        holders = {name for name, module in case.model.named_modules() if any(module.children())}
        if holders.issuperset(missing) and not holders.issuperset(outputs):
            raise Wrong(message, "A module that holds others has an output, too: name by name, look in model.named_modules().")
        if all("." in name for name in missing) and not surplus:
            raise Wrong(message, "Layers within layers have a name with dots: they are in model.named_modules().")
        if surplus:
            raise Wrong(
                f"{message} It has {surplus[0]!r}.", "The keys are the names as they were asked for, with all their dots."
            )
        raise Wrong(message, "Every name that was asked for is a key: hang a hook on each module in names.")
    if surplus:
        raise Wrong(f"There is {surplus[0]!r}, which was not asked for.", "Hang hooks on the modules in names alone.")

    for name, value in result.items():
        if type(value) in (tuple, list):
            kind = type(value).__name__
            if case.label.endswith("a tuple"):
                raise Wrong(f"{name!r} has a value of type {kind}.", "Where a module returns a tuple, keep its first element.")
            raise Wrong(
                f"{name!r} has a value of type {kind}.",
                "A hook is given the inputs as a tuple, and the output: keep the output, a tensor.",
            )
        if not isinstance(value, torch.Tensor):
            raise Wrong(f"{name!r} has a value of type {type(value).__name__}.", "Keep the output itself, a tensor.")

    def agrees(other: Mapping[str, torch.Tensor]) -> bool:
        return all(_near(result[name], other[name]) for name in outputs)

    off = [name for name in outputs if not _near(result[name], outputs[name])]
    if off:
        message = f"First wrong output: {off[0]!r}."
        if result[off[0]].shape != outputs[off[0]].shape:
            message = (
                f"First wrong output: {off[0]!r}, whose shape is {tuple(result[off[0]].shape)}; "
                f"expected {tuple(outputs[off[0]].shape)}."
            )
        if replaced:
            raise Wrong(message, "What a forward hook returns takes the place of the module's output: let yours return nothing.")
        if agrees(inputs):
            raise Wrong(
                message, "That is what went into the module: a hook that runs after it gets the output as its third argument."
            )
        if agrees(kept):
            raise Wrong(message, "The model changed this tensor in place after your hook had kept it: keep a copy, clone().")
        same = result[off[0]]
        if all(_near(value, same) for value in result.values()) and any(_near(same, value) for value in outputs.values()):
            raise Wrong(message, late)
        order = list(outputs)
        if all(any(_near(result[name], outputs[other]) for other in order) for name in order):
            raise Wrong(message, "The outputs are right and stand under each other's names: a hook has to know its own name.")
        raise Wrong(message, "Keep what the hook gets as its third argument, as it is.")
    if replaced:
        raise Wrong(
            "Your hook puts another tensor in the place of a module's output.",
            "What a forward hook returns takes the place of the module's output: let yours return nothing.",
        )
    if any(value.requires_grad for value in result.values()):
        name = next(name for name, value in result.items() if value.requires_grad)
        raise Wrong(f"{name!r} carries a gradient's history.", "Run the model under torch.no_grad(), and detach() what you keep.")
    if list(result) != list(outputs):
        ran, got = (", ".join(map(repr, order)) for order in (outputs, result))
        raise Wrong(
            f"The modules ran in the order {ran}; your names come in the order {got}.",
            "Put a name into the dictionary when its hook runs: the order of names says nothing about the order of computing.",
        )


def _near(value: torch.Tensor, other: torch.Tensor) -> bool:
    value, other = value.detach().cpu(), other.detach().cpu()
    same = value.shape == other.shape and value.dtype == other.dtype
    return same and torch.allclose(value.double(), other.double(), rtol=1e-5, atol=1e-6)


# ---- Planted faults ---------------------------------------------------------------------------------------------------------


def _rows_of(model: ViT) -> list[str]:
    """The names of the rows of verify's table by parts."""
    parts = [f"blocks.{index}.{part}" for index in range(len(model.blocks)) for part in PARTS]
    return ["embeddings", *parts, "norm", *(["logits"] if model.classifier is not None else [])]


def _row_of(name: str) -> str:
    """The row of a module that gives what the row says, under its own name."""
    name = {"patch_embedding": "embeddings", "classifier": "logits"}.get(name, name)
    return re.sub(r"(?<=\.attention)\.output$|(?<=\.mlp)\.fc2$", "", name)


def _place_hint(answer: Any, place: str, rows: list[str]) -> str:
    """Why an answer is not the place of a fault, without the place."""
    if not isinstance(answer, str):
        return "A place is the name of a row, a text such as 'norm'."
    name = _row_of(answer.strip())
    if name in rows and rows.index(name) > rows.index(place):
        return "An earlier row is wrong already: read from the top, and stop at the first row that is OFF."
    if name in rows:
        return "That row is still within its tolerance: the first one that is OFF comes after it."
    blocks = sum(row.endswith(".norm1") for row in rows)
    if found := re.fullmatch(r"blocks?[ .](\d+)(\..*)?", name):
        if int(found[1]) >= blocks:
            return f"There is no such block: the model has {blocks}, counted from 0."
        if found[2] is None:
            return "That is a whole block: name the part of it, from the table with parts=True."
    if re.search(r"layers?\.\d|layernorm|_proj|^vit\.|^embeddings\.|projection|intermediate|attention\.attention", name):
        return "That is one of Hugging Face's names: write the row's as it stands in the table's first column."
    return "There is no such row: write its name as it stands in the first column of the table with parts=True."


def faults(found: Mapping[int, str | None], model: ViT | None = None) -> Verdict:
    """Lesson 15: `found`, the place of each planted fault by its number, such as {1: "blocks.0.norm1"}; None where not found yet.

    The place is the first row that is off in `verify.compare_models(faults.plant(number, model), ..., parts=True)`.
    model: what the faults were planted in, where that is not the digits model.
    """
    if found is None or found is ...:
        return NOT_ATTEMPTED
    if not isinstance(found, Mapping):
        return Verdict(
            "wrong",
            "The check was given something that is not a dictionary.",
            "Give it found itself: a row's name for each fault's number.",
        )
    given = {number: name for number, name in found.items() if name is not None and name is not ... and name != ""}
    if not given:
        return NOT_ATTEMPTED
    numbers = range(1, planted.COUNT + 1)
    for key in given:
        if isinstance(key, bool) or key not in numbers:
            return Verdict("wrong", f"There is no fault {key!r}.", f"Faults are numbered, 1 to {planted.COUNT}.")
    if model is None:
        with torch.device("meta"):  # its shape is all that is needed
            model = ViT(ViTConfig.from_dict(read_config(DEFAULT_MODEL)))
    rows, places = _rows_of(model), {n: planted.place(n, model) for n in numbers}
    right = [n for n in numbers if isinstance(given.get(n), str) and _row_of(given[n].strip()) == places[n]]
    so_far = f"Right so far: {', '.join(map(str, right)) or 'none'}."
    for n in numbers:
        if n in given and n not in right:
            shown = repr(given[n]) if isinstance(given[n], str) else f"a value of type {type(given[n]).__name__}"
            return Verdict("wrong", f"{so_far}\nFault {n}: {shown} is not its place.", _place_hint(given[n], places[n], rows))
    missing = [n for n in numbers if n not in given]
    if missing:
        hint = f"Compare faults.plant({missing[0]}, model) with parts=True: the first row that is OFF is its place."
        return Verdict("unfinished", f"{so_far}\nFault {missing[0]} has no place yet.", hint)
    told = [f"{n}, {places[n]}: {planted.describe(n)}" for n in numbers]
    return Verdict("right", "\n".join([f"Tried: the place of each of the {planted.COUNT} faults.", *told]))
