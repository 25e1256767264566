"""The checks of the exercises: each takes a reader's function and says what is right or wrong with it.

    check.add(my_add)
    Wrong. Smallest failing case: size 1 in float32.
    Program (0, 0, 0) of my_kernel loads outside of x_ptr: element 1, and it has 1.
    The line: `x = tl.load(x_ptr + offsets)`
    Hint: This load has no mask, and the last block reaches past the end: add mask=offsets < size.

A check draws fresh random inputs at every call, and says nothing that depends on them, on the machine or on the time, so
that a recorded notebook can be compared with a new run. It never raises for a wrong answer.

How a function on tensors is tried, smallest case first:

1. On CPU tensors with its kernels in Triton's interpreter, under `trace.record`, on a machine with a GPU too: an access
   outside of a tensor or an endless loop is found there before it can harm the CUDA context.
2. Where kernels run on a GPU: the same cases and a large one on GPU tensors, in all of its types.

Inputs, and outputs that the function allocates with torch.empty and its relatives, lie between guard bands in memory
filled with a pattern that no computation leaves behind: NaNs with a payload. What still holds it was never written.

The tolerance is flash-attention's rule: the largest error against the float64 reference may be twice that of PyTorch's
own operation in the same type, plus a floor for where PyTorch happens to be exact: 2 * eps of the type * the largest
magnitude in the reference, which is four roundings of it.
"""

import ast
import inspect
import itertools
import linecache
import math
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .. import runtime
from . import trace as tracing

#: How long one case may run. One that is right takes a fraction of a second.
SECONDS = 20.0

#: Elements of poison before and after each tensor.
GUARD = 4096


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says. status: "not attempted", "right" or "wrong". True in a condition where it is right."""

    status: str
    message: str
    hint: str = ""

    def __repr__(self) -> str:
        opening = {"not attempted": "Not attempted yet.", "right": "Right.", "wrong": "Wrong."}[self.status]
        text = f"{opening} {self.message}" + (f"\nHint: {self.hint}" if self.hint else "")
        # As wide as a notebook's page; a line of code stays as it is.
        lines = [line if "`" in line else textwrap.fill(line, 96, break_long_words=False) for line in text.splitlines()]
        return "\n".join(lines)

    def __bool__(self) -> bool:
        return self.status == "right"


class _Wrong(Exception):
    """Raised inside this module to end a check: what is wrong, and the hint that fits."""

    def __init__(self, message: str, hint: str):
        self.message, self.hint = message, hint


class _NotAttempted(Exception):
    """Raised inside this module for a stub as it was shipped."""


NOT_ATTEMPTED = Verdict("not attempted", "Replace the stub with your own code, and run the check again.")
NO_FUNCTION = Verdict(
    "wrong", "The check was given something that is not a function.", "Give it the function itself, not a call of it."
)


# ---- Reporting what the reader's code raised ----------------------------------------------------------------------------

_OURS = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *tracing.LIBRARIES,
    __file__.rsplit("/", 1)[0] + "/",
    "<frozen",
    "<string>",
)


def _readers_line(error: BaseException) -> str:
    """The innermost line of the reader's own code that the exception passed through; "" where there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    return (frames[-1].line or linecache.getline(frames[-1].filename, frames[-1].lineno or 0)).strip() if frames else ""


def _describe(error: BaseException) -> str:
    """An exception in one line: its name, its message without addresses, and the reader's line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A CompilationError begins with the source and ends with what is wrong with it.
    text = (lines[-1] if type(error).__name__ == "CompilationError" else lines[0]) if lines else ""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x…", text)
    text = text if len(text) <= 200 else text[:200] + "…"
    line = _readers_line(error)
    return f"Your code raised {type(error).__name__}" + (f": {text}" if text else ".") + (f"\nThe line: `{line}`" if line else "")


def _exception_hint(error: BaseException, device: str = "cpu") -> str:
    text = str(error)
    if isinstance(error, NameError):
        return "A name is used before it has a value: is it spelled as where it is defined, and was that cell run?"
    if "cuda" in text.lower() and device == "cpu":
        return "The check also calls your function on CPU tensors: allocate the output where the input is, torch.empty_like(x)."
    if isinstance(error, TypeError) and "argument" in text:
        return "The arguments of a call do not fit the function's or the kernel's parameters: compare them one by one, in order."
    if "power of 2" in text or "power of two" in text:
        return "tl.arange takes a power of two: make BLOCK one, and mask what lies past the end."
    if "constexpr" in text:
        return "A size that tl.arange or a shape takes has to be known at compile time: declare it `BLOCK: tl.constexpr`."
    return "Read the message and the line, and call your function on such a case yourself, without the check."


# ---- Plain functions ------------------------------------------------------------------------------------------------------


def _judge_plain(
    function: Callable,
    name: str,
    cases: list[tuple],
    reference: Callable,
    mistakes: list[tuple[str, Callable]],
    fallback: str,
    tried: str,
    normal: Callable[[Any], Any],
) -> Verdict:
    """Judge a function of numbers. cases: arguments, the smallest first, the fixed ones before those drawn at random.

    `normal` brings a result into the form that is compared, and raises _Wrong for one that has no such form. A mistake is
    a hint and a function that makes it: the hint is given where that function agrees with the reader's on every case.
    """
    if function is None or function is ...:
        return NOT_ATTEMPTED
    if not callable(function):
        return NO_FUNCTION
    answers: list[Any] = []
    failing = None
    try:
        for index, case in enumerate(cases):
            label = f"{name}({', '.join(_show(argument) for argument in case)})"
            try:
                with tracing.time_limit(SECONDS):
                    result = function(*case)
                    if (result is None or result is ...) and index == 0:
                        raise _NotAttempted
                    answers.append(normal(result))
            except NotImplementedError as error:
                if index == 0:
                    raise _NotAttempted from error
                raise _Wrong(f"Smallest failing case: {label}.\n{_describe(error)}", _exception_hint(error)) from None
            except (_NotAttempted, _Wrong) as error:
                if isinstance(error, _Wrong):
                    error.message = f"Smallest failing case: {label}.\n{error.message}"
                raise
            except tracing.TookTooLong:
                raise _Wrong(
                    f"Smallest failing case: {label}.\nYour function did not finish and was stopped.",
                    "A loop does not end: does each turn bring its variable nearer to the end?",
                ) from None
            except (Exception, SystemExit) as error:
                raise _Wrong(f"Smallest failing case: {label}.\n{_describe(error)}", _exception_hint(error)) from None
            if failing is None and not _same(answers[-1], reference(*case)):
                failing = f"Smallest failing case: {label}.\nExpected {_show(reference(*case))}, got {_show(answers[-1])}."
    except _NotAttempted:
        return NOT_ATTEMPTED
    except _Wrong as wrong:
        # An answer that is wrong without an exception, in a smaller case, comes first.
        if failing is None:
            return Verdict("wrong", wrong.message, wrong.hint)
        cases = cases[: len(answers)]
    if failing is None:
        return Verdict("right", f"Tried: {tried}.")
    for hint, mistake in mistakes:
        if all(_same(answer, mistake(*case)) for answer, case in zip(answers, cases)):
            return Verdict("wrong", failing, hint)
    return Verdict("wrong", failing, fallback)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)) and len(value) > 8:
        return f"{len(value)} of them, starting {_show(list(value[:3]))}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_show(item) for item in value) + ")"
    return repr(value)


def _same(answer: Any, expected: Any) -> bool:
    if isinstance(expected, (tuple, list)):
        return len(answer) == len(expected) and all(_same(a, e) for a, e in zip(answer, expected))
    return math.isclose(answer, expected, rel_tol=1e-9, abs_tol=0.0)


def _number(value: Any) -> float | int:
    if isinstance(value, (torch.Tensor, np.generic)) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Wrong(f"Your function returned a {type(value).__name__} where a number belongs.", "Return a plain number.")
    return value


def _random(low: float, high: float) -> float:
    return float(np.random.default_rng().uniform(low, high))


def floor_us(function: Callable) -> Verdict:
    """Lesson 00: `function(bytes_moved, flops, bandwidth, peak)`, the least microseconds that an operation can take.

    The larger of bytes_moved / bandwidth and flops / peak; bandwidth in bytes a second, peak in operations a second.
    """

    def reference(moved, flops, bandwidth, peak):
        return 1e6 * max(moved / bandwidth, flops / peak)

    def scaled(factor):
        return lambda *case: factor * reference(*case)

    cases = [
        (8e9, 1e12, 4e12, 1e15),
        (8e6, 7e12, 4e12, 7e14),
        (8e6, 0, 4e12, 1e15),
        (0, 3e9, 4e12, 1e15),
        (0, 0, 4e12, 1e15),
        *((_random(1, 9) * 1e9, _random(1, 9) * flops, _random(1, 5) * 1e12, _random(1, 9) * 1e14) for flops in (1e9, 1e14)),
    ]
    larger = "Memory and arithmetic units work at the same time, so the slower of the two sets the floor: take the maximum"
    mistakes = [
        ("That is in seconds: a second has a million microseconds.", scaled(1e-6)),
        ("That is in milliseconds: a millisecond has a thousand microseconds.", scaled(1e-3)),
        ("That is in nanoseconds: a microsecond has a thousand of them.", scaled(1e3)),
        (f"{larger}, not the sum.", lambda m, f, b, p: 1e6 * (m / b + f / p)),
        (f"{larger}, not the minimum.", lambda m, f, b, p: 1e6 * min(m / b, f / p)),
        ("The arithmetic takes time too: flops / peak.", lambda m, f, b, p: 1e6 * m / b),
        ("The bytes take time too: bytes_moved / bandwidth.", lambda m, f, b, p: 1e6 * f / p),
        ("Bytes go with the bandwidth, FLOPs with the peak: the two are exchanged.", lambda m, f, b, p: 1e6 * max(m / p, f / b)),
    ]
    return _judge_plain(
        function,
        "floor_us",
        cases,
        reference,
        mistakes,
        "Work out the two times apart, bytes_moved / bandwidth and flops / peak, in seconds; then choose, then convert.",
        "operations limited by memory and by arithmetic, no bytes, no FLOPs, neither, and numbers drawn at random",
        _number,
    )


def tiles(function: Callable) -> Verdict:
    """Lesson 00: `function(size, block)`, the list of (start, stop) that the programs own; the last is cut to the size."""

    def reference(size, block):
        return [(start, min(start + block, size)) for start in range(0, size, block)]

    def normal(result):
        if isinstance(result, (str, dict)) or not isinstance(result, Iterable):
            raise _Wrong(f"Your function returned a {type(result).__name__}.", "Return a list of pairs, (start, stop).")
        pairs = []
        for item in itertools.islice(iter(result), 100_000):
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise _Wrong("Your list holds something that is not a pair.", "Each program is one pair, (start, stop).")
            pairs.append((_number(item[0]), _number(item[1])))
        return pairs

    generator = np.random.default_rng()
    drawn = [(int(generator.integers(20, 90)), int(generator.integers(2, 19))) for _ in range(5)]
    cases = [(1, 4), (4, 4), (10, 4), (12, 4), (5, 1), (1025, 1024), (0, 4), *drawn]
    mistakes = [
        ("The grid rounds down, so the last, cut program is missing: round up, (size + block - 1) // block.",
         lambda size, block: [(i * block, (i + 1) * block) for i in range(size // block)]),
        ("The last program reaches past the end: its stop is min(start + block, size).",
         lambda size, block: [(start, start + block) for start in range(0, size, block)]),
        ("There is one program too many where block divides size: round up, (size + block - 1) // block, not size // block + 1.",
         lambda size, block: [(i * block, min((i + 1) * block, size)) for i in range(size // block + 1)]),
        ("A program too many, and it reaches past the end: (size + block - 1) // block of them, stop = min(start + block, size).",
         lambda size, block: [(i * block, (i + 1) * block) for i in range(size // block + 1)]),
        ("stop is the first element that the program does not own, as in range(start, stop): do not subtract one.",
         lambda size, block: [(a, b - 1) for a, b in reference(size, block)]),
        ("The second number is where the tile stops, not how long it is.",
         lambda size, block: [(a, b - a) for a, b in reference(size, block)]),
        ("Programs start block apart, not one apart: start = program * block.",
         lambda size, block: [(i, min(i + block, size)) for i in range(-(-size // block))]),
        ("Size 0 has no programs at all: return [].", lambda size, block: reference(size, block) or [(0, 0)]),
    ]  # fmt: skip
    return _judge_plain(
        function,
        "tiles",
        cases,
        reference,
        mistakes,
        "Program number i owns the elements from i * block to min((i + 1) * block, size); write out size 10, block 4.",
        "sizes that the block divides and that it does not, a size below the block, blocks of one, size 0, and others at random",
        normal,
    )


def linear_cost(function: Callable) -> Verdict:
    """Lesson 00: `function(rows, in_features, out_features, bytes_per_element)`, a linear layer's (flops, bytes).

    FLOPs: 2 * rows * in_features * out_features; the adds of the bias are not counted. Bytes: input, weight and bias are
    read once and the output is written once.
    """

    def cost(flops, elements):
        return lambda r, i, o, size: (flops(r, i, o), elements(r, i, o) * size)

    def products(r, i, o):
        return 2 * r * i * o

    def elements(r, i, o):
        return r * i + i * o + o + r * o

    def normal(result):
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise _Wrong(f"Your function returned a {type(result).__name__}.", "Return two numbers: (flops, bytes).")
        return _number(result[0]), _number(result[1])

    generator = np.random.default_rng()
    drawn = [(*(int(n) for n in generator.integers(20, 900, 3)), size) for size in (2, 4, 8)]
    cases = [(1, 1, 1, 4), (2, 3, 5, 4), (2, 3, 5, 2), (197, 768, 3072, 2), *drawn]
    mistakes = [
        ("A multiply and an add are two operations: 2 * rows * in_features * out_features.",
         cost(lambda r, i, o: r * i * o, elements)),
        ("By this course's convention the adds of the bias are not counted: they are a thousandth of the rest.",
         cost(lambda r, i, o: 2 * r * i * o + r * o, elements)),
        ("The bias is read as well: out_features elements.", cost(products, lambda r, i, o: r * i + i * o + r * o)),
        ("The output is written as well: rows * out_features elements.", cost(products, lambda r, i, o: r * i + i * o + o)),
        ("The weight is read as well: in_features * out_features elements.", cost(products, lambda r, i, o: r * i + o + r * o)),
        ("The input is read as well: rows * in_features elements.", cost(products, lambda r, i, o: i * o + o + r * o)),
        ("The second number counts elements; an element has bytes_per_element bytes.",
         lambda r, i, o, size: (products(r, i, o), elements(r, i, o))),
        ("The bias has out_features elements, once for all rows.",
         cost(products, lambda r, i, o: r * i + i * o + r * o + r * o)),
        ("The order is (flops, bytes): yours is the other way round.",
         lambda r, i, o, size: (elements(r, i, o) * size, products(r, i, o))),
        ("Count every byte once, however often it is used: the weight is not read again for each row.",
         cost(products, lambda r, i, o: r * i + r * i * o + o + r * o)),
    ]  # fmt: skip
    return _judge_plain(
        function,
        "linear_cost",
        cases,
        cost(products, elements),
        mistakes,
        "FLOPs: each of the rows * out_features results takes in_features multiplies and adds. "
        "Bytes: add up the elements of input, weight, bias and output, then multiply.",
        "a layer of one weight, small layers, the first of ViT-B/16's MLP, 2 and 4 bytes an element, and sizes drawn at random",
        normal,
    )


# ---- Tensors between guard bands -----------------------------------------------------------------------------------------

# Bit patterns by bytes an element; each is a NaN in every float type of that size. bool is left as it is.
_POISON = {1: 0x5A, 2: 0x7FAD, 4: 0x7FC0DEAD, 8: 0x7FF8DEADDEADDEAD}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_UNWRITTEN = {torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.Tensor.new_empty_strided}
_WRITTEN = {
    *(torch.zeros, torch.zeros_like, torch.ones, torch.ones_like, torch.full, torch.full_like),
    *(torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full),
}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(_BITS[tensor.element_size()])


class _Guards(TorchFunctionMode):
    """While it is on, what the reader's function allocates on `device` lies between guard bands, in poisoned memory."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.buffers: list[torch.Tensor] = []

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor with the shape, strides and type of this one, poisoned, between guard bands."""
        poison = _POISON[tensor.element_size()]
        span = tracing._span(tensor)
        buffer = torch.full((span + 2 * GUARD,), poison, dtype=_BITS[tensor.element_size()], device=self.device)
        self.buffers.append(buffer)
        return buffer.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), GUARD)

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor between guard bands."""
        return self.like(tensor).copy_(tensor)

    def intact(self) -> bool:
        """Whether every guard band still holds its poison."""
        return all(
            bool((band == _POISON[buffer.element_size()]).all())
            for buffer in self.buffers
            for band in (buffer[:GUARD], buffer[-GUARD:])
        )

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function not in _UNWRITTEN and function not in _WRITTEN:
            return result
        if not isinstance(result, torch.Tensor) or result.device.type != self.device.type or result.layout != torch.strided:
            return result
        if result.dtype == torch.bool or result.element_size() not in _BITS or (kwargs or {}).get("out") is not None:
            return result
        guarded = self.like(result)
        if function in _WRITTEN:
            guarded.copy_(result)
        return guarded.requires_grad_(result.requires_grad)


# ---- Functions on tensors ------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One call to try. label: how the verdict names it. arguments: by name and in order; tensors on the CPU, or numbers."""

    label: str
    arguments: dict[str, Any]


@dataclass
class Attempt:
    """One case as the reader's function answered it: the evidence that a diagnosis goes by.

    result, expected: what it returned, and the reference in float64. wrong: True where they differ too much.
    unwritten: True where an element of the result was never stored. trace: None in the pass on the GPU.
    """

    case: Case
    arguments: dict[str, Any]
    result: torch.Tensor
    expected: torch.Tensor
    tolerance: float
    wrong: np.ndarray
    unwritten: np.ndarray
    trace: tracing.Trace | None


@dataclass
class Exercise:
    """What a check on tensors needs to know.

    reference: the right answer in PyTorch; called on float64 tensors for the truth, on the given ones for its own error.
    cases: draws the cases for these types, the smallest first. large: the one more that a GPU tries.
    mistakes: hints, and what a function that makes the mistake computes.
    rules: look at a case's attempt whose values are right, and raise _Wrong for what else was asked.
    """

    reference: Callable
    cases: Callable[[tuple[torch.dtype, ...]], list[Case]]
    large: Callable[[], Case]
    mistakes: list[tuple[str, Callable]]
    tried: str
    rules: list[Callable[[Attempt], None]] = field(default_factory=list)


def _judge(function: Callable, exercise: Exercise) -> Verdict:
    if function is None or function is ...:
        return NOT_ATTEMPTED
    if not callable(function):
        return NO_FUNCTION
    cpu = torch.device("cpu")
    passes = [(cpu, case) for case in exercise.cases((torch.float32, torch.float16))]
    if runtime.DEVICE.type == "cuda":
        passes += [(runtime.DEVICE, case) for case in (*exercise.cases(runtime.DTYPES), exercise.large())]
    for index, (device, case) in enumerate(passes):
        try:
            _try(function, exercise, case, device, first=index == 0)
        except _NotAttempted:
            return NOT_ATTEMPTED
        except _Wrong as wrong:
            where = " on the GPU" if device.type == "cuda" else ""
            return Verdict("wrong", f"Smallest failing case: {case.label}{where}.\n{wrong.message}", wrong.hint)
    return Verdict("right", f"Tried: {exercise.tried}.")


def _try(function: Callable, exercise: Exercise, case: Case, device: torch.device, first: bool) -> None:
    """Try one case on one device; raises _Wrong or _NotAttempted."""
    guards = _Guards(device)
    tensors = {name: value for name, value in case.arguments.items() if isinstance(value, torch.Tensor)}
    arguments = {**case.arguments, **{name: guards.place(tensor) for name, tensor in tensors.items()}}
    trace, result = None, None
    try:
        if device.type == "cpu":
            limit = 3_000 + 4 * max(tensor.numel() for tensor in tensors.values())
            with guards:
                trace = tracing.record(function, *arguments.values(), seconds=SECONDS, accesses=limit)
            result = trace.result
        else:
            with guards:
                result = function(*arguments.values())
            torch.cuda.synchronize()
    except tracing.IllegalAccess as error:
        raise _illegal(error) from None
    except tracing.TookTooLong:
        raise _Wrong(
            "Your function did not finish and was stopped.",
            "A loop does not end: does its variable move on in each turn, and does the condition become false?",
        ) from None
    except NotImplementedError as error:
        if first:
            raise _NotAttempted from None
        raise _Wrong(_describe(error), _exception_hint(error)) from None
    except (Exception, SystemExit) as error:
        raise _Wrong(_describe(error), _exception_hint(error, device.type)) from None

    if first and trace is not None:
        nothing_done = not trace.launches and (result is None or result is ...)
        # A stub may come with its launcher ready, and a kernel whose body is still empty.
        empty_kernel = bool(trace.launches) and not any(_touches_memory(launch.function) for launch in trace.launches)
        if nothing_done or empty_kernel:
            raise _NotAttempted
    _check_kind(result, trace, arguments, tensors, exercise, device)

    expected = exercise.reference(*_each(arguments, lambda tensor: tensor.double()))
    native = exercise.reference(*_each(arguments, lambda tensor: tensor))
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    own = float((native.double() - expected).abs().max()) if expected.numel() else 0.0
    tolerance = 2 * own + 2 * torch.finfo(result.dtype).eps * scale
    # Not `error > tolerance`: a NaN is wrong too.
    wrong = ~((result.detach().double() - expected).abs() <= tolerance).cpu().numpy()
    unwritten = (_bits(result) == _POISON[result.element_size()]).cpu().numpy()
    if trace is not None:
        unwritten = trace.owners(result).program < 0
    attempt = Attempt(case, arguments, result, expected, tolerance, wrong, unwritten, trace)
    if wrong.any() or unwritten.any():
        raise _diagnose(attempt, exercise)
    if not guards.intact():
        raise _Wrong("Memory next to one of the tensors was overwritten.", "Mask the store: `mask=offsets < size`.")
    for rule in exercise.rules:
        rule(attempt)


def _touches_memory(kernel: Callable, kinds: str = "load|store|atomic") -> bool:
    """Whether a load, a store or an atomic stands in a kernel's source at all."""
    calls = (node for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kernel)))) if isinstance(node, ast.Call))
    return any(re.search(kinds, ast.unparse(call.func)) for call in calls)


def _each(arguments: dict[str, Any], change: Callable) -> list[Any]:
    return [change(value) if isinstance(value, torch.Tensor) else value for value in arguments.values()]


def _check_kind(result, trace, arguments, tensors, exercise, device) -> None:
    """Refuse what is wrong before its values are looked at: inputs changed, no tensor, its device, type or shape."""
    for name, before in tensors.items():
        changed = (_bits(arguments[name]) != _bits(before.to(device))).cpu().numpy()
        if changed.any():
            where = f"Your function changed its input {name}, first at index {int(np.argmax(changed))}."
            if isinstance(result, torch.Tensor) and result.data_ptr() == arguments[name].data_ptr():
                raise _Wrong(
                    where, f"It works in place: allocate an output, torch.empty_like({name}), store there, and return that."
                )
            store = _first_store(trace, arguments[name])
            line = f"\nThe line: `{store.source}`" if store else ""
            raise _Wrong(where + line, "The store goes to the wrong tensor: it needs the output's pointer, not an input's.")
    if result is None or result is ...:
        raise _Wrong("Your function returned None.", "Something was computed and not handed back: end with `return output`.")
    if not isinstance(result, torch.Tensor):
        raise _Wrong(f"Your function returned a {type(result).__name__}.", "Return one tensor: the output.")
    first = next(iter(tensors.values()))
    if result.device.type != device.type:
        raise _Wrong(
            f"The result is on another device ({result.device.type}) than the inputs ({device.type}).",
            "Allocate the output where the input is: torch.empty_like(x).",
        )
    if trace is not None and first.numel() and not trace.launches:
        unwritten = result.element_size() in _BITS and bool((_bits(result) == _POISON[result.element_size()]).all())
        if unwritten:
            raise _Wrong("No kernel was launched, and the output was never written.", "Launch the kernel: kernel[grid](...).")
        raise _Wrong("No kernel was launched for this result.", "Every call launches your Triton kernel: kernel[grid](...).")
    wanted = exercise.reference(*_each(arguments, lambda tensor: tensor))
    if result.shape != wanted.shape:
        raise _Wrong(
            f"The result has shape {tuple(result.shape)}, and {tuple(wanted.shape)} was expected.",
            "Give the output the shape of the input: torch.empty_like(x). Padding up to a whole block is what masks are for.",
        )
    if result.dtype != wanted.dtype:
        found, asked = (str(dtype).removeprefix("torch.") for dtype in (result.dtype, wanted.dtype))
        raise _Wrong(
            f"The result has the wrong type: {found}, and {asked} was expected.",
            "The output has its input's dtype: torch.empty_like(x), or dtype=x.dtype.",
        )


def _illegal(error: tracing.IllegalAccess) -> _Wrong:
    verb = {"load": "loads", "store": "stores", "atomic": "updates"}[error.kind]
    word = {"load": "load", "store": "store", "atomic": "atomic update"}[error.kind]
    far = not -GUARD <= error.element < error.size + (1 << 20)
    if far:
        return _Wrong(
            f"A program of {error.kernel} {verb} far from every tensor that it was given, and was stopped before that.\n"
            f"The line: `{error.source}`",
            "A wild pointer: an address is a pointer argument plus offsets, which count elements, not bytes.",
        )
    message = (
        f"Program {error.program} of {error.kernel} {verb} outside of {error.tensor}: "
        f"element {error.element}, and it has {error.size}.\nThe line: `{error.source}`"
    )
    if error.element < 0:
        return _Wrong(message, "The offsets begin below zero: the first program starts at element 0.")
    if "mask" not in error.source:
        return _Wrong(message, f"This {word} has no mask, and the last block reaches past the end: add mask=offsets < size.")
    if error.element == error.size and error.lanes == 1:
        return _Wrong(
            message, "The mask lets the lane just past the end through: offsets < size, not <=, and with the right size."
        )
    return _Wrong(
        message, "The mask lets lanes past the end through: compare the offsets that you add to the pointer with the size."
    )


def _first_store(trace: tracing.Trace | None, tensor: torch.Tensor) -> tracing.Access | None:
    if trace is None:
        return None
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    return next((a for a in trace.accesses if a.kind != "load" and a.addresses.size and start <= int(a.addresses[0]) < end), None)


def _index(place: np.ndarray) -> str:
    """The first True: "index 768 of 1000", or a tuple of indices in a tensor of several dimensions."""
    first = tuple(int(index) for index in np.argwhere(place)[0])
    return f"index {first[0]} of {place.shape[0]}" if len(first) == 1 else f"index {first} of {place.shape}"


def _diagnose(attempt: Attempt, exercise: Exercise) -> _Wrong:
    """What a wrong result shows of the mistake behind it."""
    stored_wrong = attempt.wrong & ~attempt.unwritten
    if not stored_wrong.any():
        if attempt.unwritten.all() and not attempt.wrong.any():
            return _Wrong(
                "The values are right, but no kernel wrote the tensor that you returned: PyTorch copied or converted it.",
                "Let the kernel store the finished values into the output itself.",
            )
        if attempt.wrong.any():
            message = f"First wrong element: {_index(attempt.wrong)}, which was never stored."
        else:
            message = f"{_index(attempt.unwritten).capitalize()} was never stored by a kernel."
        return _Wrong(message, _unwritten_hint(attempt))

    message = f"First wrong element: {_index(stored_wrong)}."
    stored = ~attempt.unwritten
    answer = attempt.result.detach().double().cpu().numpy()[stored]
    for hint, mistake in exercise.mistakes:
        other = mistake(*_each(attempt.arguments, lambda tensor: tensor.double())).cpu().numpy()[stored]
        if (np.abs(answer - other) <= attempt.tolerance + 1e-6 * np.abs(other).max(initial=0.0)).all():
            return _Wrong(message, hint)
    if not np.isfinite(answer).all():
        return _Wrong(message, "The result holds NaN or infinity that no input has: is something read that was never written?")
    right = attempt.expected.cpu().numpy()[stored]
    inputs = [float(value.abs().max()) for value in attempt.arguments.values() if isinstance(value, torch.Tensor)]
    near = (np.abs(answer - right) <= 4e-3 * max(np.abs(right).max(), *inputs)).all()  # sums that cancel err by their terms
    # One wrong element may come near by chance; many do not, nor does a number that float16 happens to have.
    many = stored_wrong.sum() >= max(8, stored.sum() / 2)
    if attempt.result.dtype == torch.float32 and near and (many or (answer == answer.astype(np.float16)).all()):
        return _Wrong(message, "Only about three digits are right: something is computed or stored in float16 on the way.")
    return _Wrong(message, _misread_hint(attempt))


def _unwritten_hint(attempt: Attempt) -> str:
    trace, unwritten = attempt.trace, attempt.unwritten.ravel()
    if trace is None:
        return "These elements still hold what was in the memory before: does the grid have enough programs?"
    owners = trace.owners(attempt.result)
    stores = [access for access in trace.accesses if access.kind != "load"]
    if unwritten.all():
        if not any(math.prod(launch.grid) for launch in trace.launches):
            return "The grid has no programs here: round up, triton.cdiv(size, BLOCK), not size // BLOCK."
        if not stores and any(_touches_memory(launch.function, "store") for launch in trace.launches):
            return "No program reached its tl.store: a loop makes no turn. Round up, tl.cdiv(size, BLOCK), not size // BLOCK."
        if not stores:
            return "The kernel stores nothing: end it with tl.store(output_ptr + offsets, ...)."
        if not any(access.addresses.size for access in stores):
            return "Every lane of the store is masked off: the mask is True where offsets < size."
        return "The kernel stores to another tensor than the one that your function returns."
    own = {access.program: access for access in stores}
    if owners.stores.max() > 1 and len(own) > 1:
        sets = {access.elements.tobytes() for access in own.values()}
        if len(sets) == 1:
            return "Every program stores the same block: its offsets start at tl.program_id(0) * BLOCK."
        return "The programs' blocks overlap: program number i starts at element i * BLOCK, not at i."
    if not np.diff(unwritten.astype(int)).min(initial=0) < 0:  # nothing is stored after the first gap
        lanes = sum(access.elements.size + access.masked for access in stores)
        if lanes >= unwritten.size:
            return "The mask switches off lanes that should store: it is offsets < size, with the vector's own size."
        if math.prod(trace.launches[-1].grid) == 1 and len(stores) == 1:
            return "Only one program was launched, and it stored one block: the grid needs triton.cdiv(size, BLOCK) programs."
        return "The end is missing: too few programs, or turns of a loop. Round up, triton.cdiv(size, BLOCK), not size // BLOCK."
    return "There are gaps between the blocks: from one to the next the step is BLOCK, the length of tl.arange."


def _misread_hint(attempt: Attempt) -> str:
    """For values that no typical mistake explains: whether what a program loads is what it needs for what it stores."""
    trace = attempt.trace
    fallback = "Take this case, print your result beside PyTorch's, and work out by hand what your kernel does for that element."
    if trace is None:
        return fallback + " The interpreter got it right, so look at types and at what programs share."
    for name, tensor in attempt.arguments.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        loads = [a for a in trace.accesses if a.kind != "store" and a.addresses.size and start <= int(a.addresses[0]) < end]
        if not loads:
            return (
                f"{name} is never read: which pointers does the kernel load from, and in which order is it given its arguments?"
            )
        for program in trace.programs():
            read = [a.elements for a in loads if a.program == program]
            wrote = [a.elements for a in trace.accesses if a.kind != "load" and a.program == program and a.elements.size]
            if wrote and set(np.concatenate(wrote).tolist()) - set(np.concatenate(read).tolist() if read else []):
                return f"Programs do not load the same elements of {name} as they store of the output: compare the offsets."
    return fallback


# ---- Rules beside the values ----------------------------------------------------------------------------------------------


def _stored_once(attempt: Attempt) -> None:
    """Every element of the result is stored exactly once."""
    if attempt.trace is None:
        return
    owners = attempt.trace.owners(attempt.result)
    if not owners.twice.any():
        return
    blocks: dict[tuple, set] = {}
    for access in attempt.trace.accesses:
        if access.kind != "load" and access.elements.size:
            blocks.setdefault((access.launch, access.elements.tobytes()), set()).add(access.program)
    message = f"The values are right, but {_index(owners.twice)} is stored more than once."
    if len({access.launch for access in attempt.trace.accesses}) > 1:
        raise _Wrong(
            message, "Several launches store the same elements: one launch, whose programs share out the vector, is enough."
        )
    if any(len(programs) > 1 for programs in blocks.values()):
        raise _Wrong(message, "Several programs do the same block: which block is a program's own follows from tl.program_id(0).")
    raise _Wrong(
        message, "The blocks overlap: they start BLOCK apart, program number i at element i * BLOCK, and in a loop as well."
    )


def _one_pass(attempt: Attempt) -> None:
    """One launch, which reads each input once and writes the output once."""
    trace = attempt.trace
    if trace is None or not attempt.result.numel():
        return
    if len(trace.launches) != 1:
        raise _Wrong(
            f"The values are right, but {len(trace.launches)} kernels were launched.",
            "The intermediate sum goes out to memory and back: do both additions in one launch, and keep it in registers.",
        )
    size = attempt.result.numel() * attempt.result.element_size()
    for name, tensor in attempt.arguments.items():
        start = tensor.data_ptr()
        loads = (access for access in trace.accesses if access.kind != "store")
        moved = sum(int(((a.addresses >= start) & (a.addresses < start + size)).sum()) * a.itemsize for a in loads)
        if moved == 0:
            raise _Wrong(
                f"The values are right, but the kernel does not read {name}.",
                "Part of the sum is done outside of the kernel: it loads a, b and c, and adds all three.",
            )
        if moved != size:
            raise _Wrong(
                f"The values are right, but {moved} bytes of {name} were read, and it has {size}.",
                f"Load each block of {name} once, and use the value again: it stays in registers.",
            )
    if trace.bytes_read != 3 * size:
        raise _Wrong(
            f"The values are right, but {trace.bytes_read} bytes were read, and the three inputs have {3 * size}.",
            "Something beside the inputs is read: keep the intermediate sum in registers, not in memory.",
        )
    if trace.bytes_written != size:
        raise _Wrong(
            f"The values are right, but {trace.bytes_written} bytes were written, and the output has {size}.",
            "Store the output once, and no intermediate sum.",
        )


def _persistent(attempt: Attempt) -> None:
    """At most `programs` programs, each looping over blocks."""
    trace, programs = attempt.trace, attempt.arguments["programs"]
    if trace is None or not attempt.result.numel():
        return
    launched = sum(math.prod(launch.grid) for launch in trace.launches)
    if launched > programs:
        raise _Wrong(
            f"The values are right, but {launched} programs were launched, and at most {programs} were allowed.",
            "The grid is (programs,), or the number of blocks if that is smaller; a loop in the kernel does the rest.",
        )
    stores = [access.program for access in trace.accesses if access.kind == "store"]
    if launched < programs and len(stores) > len(set(stores)):
        raise _Wrong(
            f"The values are right, but of {programs} programs that were allowed only {launched} ran, and looped.",
            "Launch min(programs, number of blocks) of them: with fewer, multiprocessors stand idle.",
        )
    if attempt.result.numel() > 300_000 and len(stores) == len(set(stores)):
        raise _Wrong(
            "The values are right, but no program takes more than one block.",
            "A block as wide as a program's whole share does not fit in registers: keep BLOCK fixed, and loop over blocks.",
        )


# ---- Lesson 01 ------------------------------------------------------------------------------------------------------------


def _draw(size: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Values of either sign whose magnitude lies between scale / 2 and 2 * scale, so that none is lost beside another."""
    return ((torch.rand(size) * 1.5 + 0.5) * torch.where(torch.rand(size) < 0.5, -1.0, 1.0)).double().mul(scale).to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _vector_cases(build: Callable[[int, torch.dtype, float], dict]) -> Callable[[tuple[torch.dtype, ...]], list[Case]]:
    """The cases of an exercise on vectors; `build` draws a call's arguments for a size, a type and a scale."""

    def cases(dtypes: tuple[torch.dtype, ...]) -> list[Case]:
        found = [(size, torch.float32, 1.0, "") for size in (1, 2, 1000, 1023, 1024, 1025, 4097, 20_001, 0)]
        found += [(size, dtype, 1.0, "") for dtype in dtypes if dtype != torch.float32 for size in (1, 1000, 1025)]
        # Up to a quarter of the largest number: three of them, or 2.75 times one and another, still fit.
        found += [(1000, dtype, torch.finfo(dtype).max / 8, ", large values") for dtype in dtypes]
        # Not so tiny in float16, whose smallest normal number is 6e-5.
        tiny = {torch.float16: 1e-3}
        found += [(1000, dtype, tiny.get(dtype, 1e-30), ", tiny values and negative zeros") for dtype in dtypes]
        drawn = []
        for size, dtype, scale, note in found:
            arguments = build(size, dtype, scale)
            if "zeros" in note:
                for tensor in arguments.values():
                    if isinstance(tensor, torch.Tensor):
                        tensor[3::7] = -0.0
            drawn.append(Case(f"size {size} in {_name(dtype)}{note}", arguments))
        return drawn

    return cases


def _large_case(build: Callable[[int, torch.dtype, float], dict]) -> Callable[[], Case]:
    size = 5_000_011
    return lambda: Case(f"size {size} in float32", build(size, torch.float32, 1.0))


_TRIED = (
    "sizes 0, 1, 2, 1000, 1023, 1024, 1025, 4097 and 20001, float32 and float16, large and tiny values; "
    "no access outside of a tensor, every element stored once, inputs unchanged"
)


def add(function: Callable) -> Verdict:
    """Lesson 01: `function(x, y)` returns x + y for two vectors of any size."""

    def build(size, dtype, scale):
        return {"x": _draw(size, dtype, scale), "y": _draw(size, dtype, scale)}

    mistakes = [
        ("The result is x: y was never added.", lambda x, y: x),
        ("The result is y: x was never added.", lambda x, y: y),
        ("The result is 2 * x: is y's pointer what the second load reads from?", lambda x, y: x + x),
        ("The result is 2 * y: is x's pointer what the first load reads from?", lambda x, y: y + y),
        ("The result is x - y: add them.", lambda x, y: x - y),
        ("The result is y - x: add them.", lambda x, y: y - x),
        ("The result is x * y: add them.", lambda x, y: x * y),
        ("Zeros were stored: load x and y, and store their sum.", lambda x, y: 0 * x),
    ]
    exercise = Exercise(torch.add, _vector_cases(build), _large_case(build), mistakes, _TRIED, [_stored_once])
    return _judge(function, exercise)


def axpy(function: Callable) -> Verdict:
    """Lesson 01: `function(alpha, x, y)` returns alpha * x + y for a number and two vectors of any size."""

    def build(size, dtype, scale):
        # Away from 1, where forgetting it would not show, and from whole numbers.
        alpha = _random(2.25, 2.75) * (1 if np.random.default_rng().random() < 0.5 else -1)
        return {"alpha": alpha, "x": _draw(size, dtype, scale), "y": _draw(size, dtype, scale)}

    mistakes = [
        ("alpha was left out: the result is x + y.", lambda alpha, x, y: x + y),
        ("alpha multiplies y instead of x: the result is x + alpha * y.", lambda alpha, x, y: x + alpha * y),
        ("alpha multiplies both: the result is alpha * (x + y).", lambda alpha, x, y: alpha * (x + y)),
        ("y was left out: the result is alpha * x.", lambda alpha, x, y: alpha * x),
        ("x was left out: the result is alpha * y.", lambda alpha, x, y: alpha * y),
        ("The result is alpha * x - y: add y.", lambda alpha, x, y: alpha * x - y),
        ("alpha is added instead of multiplied.", lambda alpha, x, y: alpha + x + y),
        ("alpha was rounded to a whole number: hand it over as the float that it is.", lambda alpha, x, y: int(alpha) * x + y),
        ("The result is x.", lambda alpha, x, y: x),
        ("The result is y.", lambda alpha, x, y: y),
        ("The result is alpha * x + x: is y's pointer what the second load reads from?", lambda alpha, x, y: alpha * x + x),
    ]

    def reference(alpha, x, y):
        return alpha * x + y

    exercise = Exercise(reference, _vector_cases(build), _large_case(build), mistakes, _TRIED, [_stored_once])
    return _judge(function, exercise)


def add3(function: Callable) -> Verdict:
    """Lesson 01: `function(a, b, c)` returns a + b + c from one launch that reads and writes everything once."""

    def build(size, dtype, scale):
        return {name: _draw(size, dtype, scale) for name in "abc"}

    mistakes = [
        ("c was left out: the result is a + b.", lambda a, b, c: a + b),
        ("b was left out: the result is a + c.", lambda a, b, c: a + c),
        ("a was left out: the result is b + c.", lambda a, b, c: b + c),
        ("c was subtracted: the result is a + b - c.", lambda a, b, c: a + b - c),
        ("b was subtracted: the result is a - b + c.", lambda a, b, c: a - b + c),
        ("The result is a + b * c: add all three.", lambda a, b, c: a + b * c),
        ("The result is a * b + c: add all three.", lambda a, b, c: a * b + c),
        ("b was added twice, and c not: is c's pointer what the third load reads from?", lambda a, b, c: a + b + b),
        ("a was added twice: check which pointer each load reads from.", lambda a, b, c: a + a + c),
    ]

    def reference(a, b, c):
        return a + b + c

    tried = f"{_TRIED}; one launch, each input read once, the output written once"
    exercise = Exercise(reference, _vector_cases(build), _large_case(build), mistakes, tried, [_one_pass, _stored_once])
    return _judge(function, exercise)


def persistent_add(function: Callable) -> Verdict:
    """Lesson 01: `function(x, y, programs)` returns x + y from at most `programs` programs that loop over blocks."""

    def build(size, dtype, programs, scale=1.0):
        return {"x": _draw(size, dtype, scale), "y": _draw(size, dtype, scale), "programs": programs}

    def cases(dtypes):
        single = torch.float32
        sizes = [(1, 1), (1000, 1), (1025, 4), (4097, 3), (1000, 64), (20_001, 1), (20_001, 2), (300_001, 2), (0, 4)]
        found = [(size, single, programs, 1.0, "") for size, programs in sizes]
        found += [(4097, dtype, 2, 1.0, "") for dtype in dtypes if dtype != single]
        found += [(1025, dtype, 2, torch.finfo(dtype).max / 8, ", large values") for dtype in dtypes]
        return [
            Case(
                f"size {size} by {programs} program{'s' * (programs != 1)} in {_name(dtype)}{note}",
                build(size, dtype, programs, scale),
            )
            for size, dtype, programs, scale, note in found
        ]

    def large():
        return Case("size 5000011 by 132 programs in float32", build(5_000_011, torch.float32, 132))

    def dropping(mistake):
        return lambda x, y, programs: mistake(x, y)

    mistakes = [
        ("The result is x: y was never added.", dropping(lambda x, y: x)),
        ("The result is y: x was never added.", dropping(lambda x, y: y)),
        ("The result is 2 * x: is y's pointer what the second load reads from?", dropping(lambda x, y: x + x)),
        ("The result is 2 * y: is x's pointer what the first load reads from?", dropping(lambda x, y: y + y)),
        ("The result is x - y: add them.", dropping(lambda x, y: x - y)),
        ("The result is x * y: add them.", dropping(lambda x, y: x * y)),
    ]
    exercise = Exercise(
        dropping(torch.add),
        cases,
        large,
        mistakes,
        "sizes 0 to 300001 by 1 to 64 programs, more programs than blocks among them, float32 and float16, large values; "
        "no access outside of a tensor, every element stored once, inputs unchanged",
        [_persistent, _stored_once],
    )
    return _judge(function, exercise)
