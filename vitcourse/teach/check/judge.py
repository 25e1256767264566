"""How a check judges: it calls a reader's function on many cases and says what is right or wrong with it.

    Wrong. Smallest failing case: size 1 in float32.
    Program (0, 0, 0) of my_kernel loads outside of x_ptr: element 1, and it has 1.
    The line: `x = tl.load(x_ptr + offsets)`
    Hint: This load has no mask, and the last block reaches past the end: add mask=offsets < size.

A check draws fresh random inputs at every call, and says nothing that depends on them, on the machine or on the time, so
that a recorded notebook can be compared with a new run. It never raises for a wrong answer.

How a function on tensors is tried, smallest case first:

1. On CPU tensors with its kernels in Triton's interpreter, under `trace.record`, on a machine with a GPU too: an access
   outside of a tensor or an endless loop is found there before it can harm the CUDA context. Lanes that a mask switches
   off, and that no `other` gives a value, hold 0 there: where a case has any, it is tried once more with NaN in them.
2. Where kernels run on a GPU: the same cases and a large one on GPU tensors, in all of its types.

Inputs, and outputs that the function allocates with torch.empty and its relatives, lie between guard bands in memory
filled with a pattern that no computation leaves behind: NaNs with a payload. What still holds it was never written.

The tolerance is flash-attention's rule: the largest error against the float64 reference may be twice that of PyTorch's
own operation in the same type, plus a floor for where PyTorch happens to be exact: 2 * eps of the type * the largest
magnitude in the reference, which is four roundings of it.
"""

import ast
import copy
import inspect
import linecache
import math
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ... import runtime
from .. import trace as tracing

#: How long one case may run. One that is right takes a fraction of a second.
SECONDS = 20.0

#: Elements of poison before and after each tensor.
GUARD = 4096


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says. status: "not attempted", "unfinished", "right" or "wrong". True in a condition where it is right.

    Unfinished is what has several answers, where some are there and all of them are right.
    """

    status: str
    message: str
    hint: str = ""

    def __repr__(self) -> str:
        openings = {
            "not attempted": "Not attempted yet.",
            "unfinished": "Not finished yet.",
            "right": "Right.",
            "wrong": "Wrong.",
        }
        opening = openings[self.status]
        text = f"{opening} {self.message}" + (f"\nHint: {self.hint}" if self.hint else "")
        # As wide as a notebook's page; a line of the reader's code stays as it is.
        code = ("The line: `", "Your code raised ")
        lines = [line if line.startswith(code) else textwrap.fill(line, 96, break_long_words=False) for line in text.splitlines()]
        return "\n".join(lines)

    def __bool__(self) -> bool:
        return self.status == "right"


class Wrong(Exception):
    """Raised inside this module to end a check: what is wrong, and the hint that fits."""

    def __init__(self, message: str, hint: str):
        self.message, self.hint = message, hint


class NotAttempted(Exception):
    """Raised inside this module for a stub as it was shipped."""


NOT_ATTEMPTED = Verdict("not attempted", "Replace the stub with your own code, and run the check again.")
NO_FUNCTION = Verdict(
    "wrong", "The check was given something that is not a function.", "Give it the function itself, not a call of it."
)


RETURNED_NONE = "Your function returned None."
END_WITH_A_RETURN = "Something was computed and not handed back: end with a return."


def is_stub(function: Callable) -> bool:
    """Whether a function is still a stub: `...`, `pass` or NotImplementedError. A lambda, whose source cannot be told, counts."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return True
    name = inspect.unwrap(function).__name__ if hasattr(function, "__name__") else ""
    body = next((node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name), [])

    def idle(statement: ast.stmt) -> bool:
        if isinstance(statement, (ast.Expr, ast.Return)):  # a docstring and `...` are expressions
            return statement.value is None or isinstance(statement.value, ast.Constant)
        return isinstance(statement, ast.Pass) or (isinstance(statement, ast.Raise) and "NotImpl" in ast.unparse(statement))

    return all(idle(statement) for statement in body)


# ---- Reporting what the reader's code raised ----------------------------------------------------------------------------

_OURS = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *tracing.LIBRARIES,
    str(Path(__file__).parents[2]) + "/",
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


_NO_BLOCKS = "Functions of PyTorch and of Python take no blocks: compute with Triton's, such as tl.exp, tl.sigmoid or tl.maximum."
# What Python says of the first things that somebody tries who knows PyTorch and no kernels: patterns that the message and the
# line have to match, and the hint.
_FIRST_TRIES = [
    ("must be Tensor, not tensor|must be real number, not tensor|array of size 1", r"\b(torch|math|np)\.", _NO_BLOCKS),
    ("Unsupported function referenced", "", _NO_BLOCKS),
    ("array of size 1|not iterable", r"^\w+\[.*\]\s*=|=\s*\w+\[[^\]]*\]$",
     "A pointer is not indexed: tl.load(x_ptr + offsets, mask=mask) reads a block, and tl.store writes one."),
    ("not iterable", r"\w\[.*\]\(", "The grid is a tuple, also with one axis: kernel[(programs,)](...), with a comma."),
    ("without a grid|outside of the scope of a kernel", "",
     "A kernel is launched with its grid in front, in brackets: kernel[(programs,)](...)."),
    ("'function' object is not subscriptable", "", "The kernel lacks @triton.jit above its def: with it, it takes a grid."),
    (r"for \*\* or pow", "", "Blocks have no **: multiply, x * x."),
    ("'(float|int)' object has no attribute 'to'", "", "A number has no .to() in the interpreter: compute with it as it is."),
    ("", r"\blibdevice\.", "The interpreter has no libdevice: put the function together from tl.exp and the like."),
    ("'triton.language' has no attribute", "", "Triton has no function of that name: put it together from tl.exp and the like."),
    ("out of bounds for shape", "axis", "There is no such axis: a block of one dimension has axis 0, a tile has 0 and 1."),
    ("incompatible dimensions", "",
     "Blocks of two shapes meet: [:, None] makes a column of one, [None, :] a row, and a column with a row makes a tile."),
]  # fmt: skip


def _exception_hint(error: BaseException, device: str = "cpu") -> str:
    text = str(error)
    line = _readers_line(error)
    for said, written, hint in _FIRST_TRIES:
        if re.search(said, text) and re.search(written, line):
            return hint
    if isinstance(error, NameError):
        return "A name is used before it has a value: is it spelled as where it is defined, and was that cell run?"
    if "Boolean value of Tensor" in text:
        return "A tensor of several numbers is neither true nor false: ask `is not None`, or what .any() or .all() says."
    if isinstance(error, KeyError):
        return "A dictionary has no entry of this name: list() of it shows the names that it has."
    if "cuda" in text.lower() and device == "cpu":
        return "The check also calls your function on CPU tensors: allocate the output where the input is, torch.empty_like(x)."
    if isinstance(error, OverflowError):
        return "exp of more than 709 does not fit in a Python float: subtract the maximum first, so that exp gets 0 at most."
    if "Expected dtype ['fp32', 'fp64']" in text:
        return "This function takes no float16: convert what you load, tl.load(...).to(tl.float32), and compute in float32."
    if isinstance(error, TypeError) and "argument" in text:
        return "The arguments of a call do not fit the function's or the kernel's parameters: compare them one by one, in order."
    if "Both operands must be same dtype" in text:
        return "tl.dot takes two blocks of one type: convert the one that is in float32, p.to(v.dtype)."
    if "maximum tensor numel" in text:
        return "A block holds at most 1,048,576 elements: keep BLOCK small, and let many programs take a block each."
    if "power of 2" in text or "power of two" in text:
        return "tl.arange takes a power of two: make BLOCK one, and mask what lies past the end."
    if re.search(r"constexpr(?!\[)", text):
        return "A size that tl.arange or a shape takes has to be known at compile time: declare it `BLOCK: tl.constexpr`."
    return "Read the message and the line, and call your function on such a case yourself, without the check."


def _is_readers_own(error: BaseException) -> bool:
    """Whether it is a `raise NotImplementedError` in the reader's code. PyTorch has its own, for what it cannot do."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, NotImplementedError) and bool(frames) and not frames[-1].filename.startswith(_OURS)


def _answer_to(error: BaseException, first: bool, device: str = "cpu", hint: str = "") -> Exception:
    """What to raise where the reader's function raised `error`, in the first case or a later one. hint: in place of the usual."""
    if isinstance(error, tracing.TookTooLong):
        accesses = error.trace.accesses if hasattr(error, "trace") else []
        programs = [(access.launch, access.program) for access in accesses]
        if accesses and 2 * programs.count(programs[-1]) < len(programs):  # in an endless loop it is one that makes nearly all
            return Wrong(
                f"Your function was stopped: {len(set(programs)):,} programs had loaded and stored {len(programs):,} times.",
                "That is far more than this case needs. A program takes a block or a tile, tl.arange, and not one element; nor a "
                "block of a few elements, for which this check has no time.",
            )
        return Wrong(
            "Your function did not finish and was stopped.",
            "A loop does not end: does its variable move on in each turn, and does the condition become false?",
        )
    if first and _is_readers_own(error):
        return NotAttempted()
    return Wrong(_describe(error), hint or _exception_hint(error, device))


# ---- Plain functions ------------------------------------------------------------------------------------------------------


def judge_plain(
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

    `normal` brings a result into the form that is compared, and raises Wrong for one that has no such form. A mistake is
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
                    result = function(*copy.deepcopy(case))
                    if (result is None or result is ...) and index == 0:
                        raise NotAttempted if is_stub(function) else Wrong(RETURNED_NONE, END_WITH_A_RETURN)
                    answers.append(normal(result))
            except NotImplementedError as error:
                if index == 0 and _is_readers_own(error):
                    raise NotAttempted from error
                raise Wrong(f"Smallest failing case: {label}.\n{_describe(error)}", _exception_hint(error)) from None
            except (NotAttempted, Wrong) as error:
                if isinstance(error, Wrong):
                    error.message = f"Smallest failing case: {label}.\n{error.message}"
                raise
            except tracing.TookTooLong:
                raise Wrong(
                    f"Smallest failing case: {label}.\nYour function did not finish and was stopped.",
                    "A loop does not end: does each turn bring its variable nearer to the end?",
                ) from None
            except (Exception, SystemExit) as error:
                raise Wrong(f"Smallest failing case: {label}.\n{_describe(error)}", _exception_hint(error)) from None
            if failing is None and not _same(answers[-1], reference(*case)):
                expected, got = (_show(value) for value in (reference(*case), answers[-1]))
                if expected == got:  # numbers that differ further on
                    expected, got = (_show(value, 10) for value in (reference(*case), answers[-1]))
                failing = f"Smallest failing case: {label}.\nExpected {expected}, got {got}."
    except NotAttempted:
        return NOT_ATTEMPTED
    except Wrong as wrong:
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


def _show(value: Any, digits: int = 6) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, (tuple, list)) and len(value) > 8:
        return f"{len(value)} of them, starting {_show(list(value[:3]), digits)}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_show(item, digits) for item in value) + ")"
    return repr(value)


def _same(answer: Any, expected: Any) -> bool:
    if isinstance(expected, (tuple, list)):
        return len(answer) == len(expected) and all(_same(a, e) for a, e in zip(answer, expected))
    if any(value is None or isinstance(value, str) for value in (answer, expected)):
        return answer == expected
    return math.isclose(answer, expected, rel_tol=1e-9, abs_tol=0.0) or (math.isnan(answer) and math.isnan(expected))


def number(value: Any) -> float | int:
    if isinstance(value, (torch.Tensor, np.generic)) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, int) and value.bit_length() > 1000:  # past any float, and a verdict is no place for its digits
        raise Wrong("Your function returned an integer of more than 300 digits.", "Which factor is in it too often?")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"Your function returned a {type(value).__name__} where a number belongs.", "Return a plain number.")
    return value


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


class Guards(TorchFunctionMode):
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
        """A copy of the tensor between guard bands, with its strides; what lies between its elements is poison."""
        placed = self.like(tensor)
        # An expanded dimension is memory that several indices share: one of them is copied.
        once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
        placed[once].copy_(tensor[once])
        return placed

    def hold(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor lies in one of the buffers."""
        starts = (buffer.data_ptr() for buffer in self.buffers)
        return any(start == tensor.untyped_storage().data_ptr() for start in starts)

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
    """One call to try. label: how the verdict names it. arguments: by name and in order; tensors on the CPU, or numbers.

    slack: what the tolerance has beyond the rule.
    """

    label: str
    arguments: dict[str, Any]
    slack: float = 0.0


@dataclass
class Attempt:
    """One case as the reader's function answered it: the evidence that a diagnosis goes by.

    result, expected: what it returned, and the reference in float64. wrong: True where they differ too much.
    unwritten: True where an element of the result was never stored. trace: None in the pass on the GPU.
    results: all that it returned, where that is a tuple; there is an attempt for each, and this one is number `part`, `name`.
    """

    case: Case
    arguments: dict[str, Any]
    result: torch.Tensor
    expected: torch.Tensor
    tolerance: float
    wrong: np.ndarray
    unwritten: np.ndarray
    trace: tracing.Trace | None
    results: tuple[torch.Tensor, ...] = ()
    part: int = 0
    name: str = ""

    @property
    def of(self) -> str:
        """ " of dweight" for a verdict on that one of several results; "" where there is one."""
        return f" of {self.name}" if self.name else ""


@dataclass
class Exercise:
    """What a check on tensors needs to know.

    reference: the right answer in PyTorch; called on float64 tensors for the truth, on the given ones for its own error.
    cases: draws the cases for these types, the smallest first. large: the one more that a GPU tries.
    mistakes: hints, and what a function that makes the mistake computes.
    rules: look at a case's attempt whose values are right, and raise Wrong for what else was asked; at the first of several.
    results: the names of what the function returns, where that is a tuple: of reference and mistakes as well.
    clues: look at an attempt that no mistake explains, and return the hint that fits, or "".
    illegal: looks at an access outside of a tensor, and returns the hint that fits, or "".
    gaps: looks at an attempt with elements that were never stored, and returns the hint that fits, or "".
    torch_may_finish: whether PyTorch may take the last step, from what a kernel stored to the result.
    torch_may_compute: whether PyTorch may do all of it, so that no kernel has to be launched, nor to store the result.
    form: the hint for a result of the wrong shape or type, where the judge's own, on how to allocate it, does not fit.
    """

    reference: Callable
    cases: Callable[[tuple[torch.dtype, ...]], list[Case]]
    large: Callable[[], Case]
    mistakes: list[tuple[str, Callable]]
    tried: str
    rules: list[Callable[[Attempt], None]] = field(default_factory=list)
    results: tuple[str, ...] = ()
    clues: list[Callable[[Attempt], str]] = field(default_factory=list)
    illegal: Callable[[tracing.IllegalAccess], str] = lambda error: ""
    gaps: Callable[[Attempt], str] = lambda attempt: ""
    torch_may_finish: bool = False
    torch_may_compute: bool = False
    form: str = ""


def judge(function: Callable, exercise: Exercise) -> Verdict:
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
        except NotAttempted:
            return NOT_ATTEMPTED
        except Wrong as wrong:
            where = " on the GPU" if device.type == "cuda" else ""
            return Verdict("wrong", f"Smallest failing case: {case.label}{where}.\n{wrong.message}", wrong.hint)
    return Verdict("right", f"Tried: {exercise.tried}.")


def _try(function: Callable, exercise: Exercise, case: Case, device: torch.device, first: bool) -> None:
    """Try one case on one device; raises Wrong or NotAttempted."""
    guards = Guards(device)
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
        caught = _illegal(error)
        raise Wrong(caught.message, exercise.illegal(error) or caught.hint) from None
    except (Exception, SystemExit) as error:
        raise _answer_to(error, first, device.type) from None

    if first and trace is not None:
        nothing_done = not trace.launches and (result is None or result is ...) and is_stub(function)
        # A stub may come with its launcher ready, and a kernel whose body, or whose end, is still to be written.
        if nothing_done or (trace.launches and all(_unfinished(launch.function) for launch in trace.launches)):
            raise NotAttempted
    _check_kind(result, trace, arguments, tensors, exercise, device)

    expected = _tuple(exercise.reference(*_each(arguments, lambda tensor: tensor.double())))
    native = _tuple(exercise.reference(*_each(arguments, lambda tensor: tensor)))
    attempts = []
    for part, (one, truth, theirs) in enumerate(zip(_tuple(result), expected, native)):
        finite = truth[truth.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        own = float((theirs.double()[truth.isfinite()] - finite).abs().max()) if finite.numel() else 0.0
        tolerance = 2 * own + 2 * torch.finfo(one.dtype).eps * scale + case.slack
        found = one.detach().double()
        # Not `error > tolerance`: a NaN is wrong too.
        wrong = ~(((found - truth).abs() <= tolerance) | (found == truth)).cpu().numpy()
        unwritten = (_bits(one) == _POISON[one.element_size()]).cpu().numpy()
        if trace is not None and not exercise.torch_may_compute:
            unstored = trace.owners(one).program < 0
            finished_by_torch = exercise.torch_may_finish and unstored.all() and not guards.hold(one)
            unwritten = np.zeros_like(unstored) if finished_by_torch else unstored
        name = exercise.results[part] if exercise.results else ""
        attempts.append(Attempt(case, arguments, one, truth, tolerance, wrong, unwritten, trace, _tuple(result), part, name))
    for attempt in attempts:
        if attempt.wrong.any() or attempt.unwritten.any():
            raise _diagnose(attempt, exercise)
    if trace is not None and trace.undefined:
        _try_undefined_lanes(function, exercise, case, trace)
    if not guards.intact():
        raise Wrong("Memory next to one of the tensors was overwritten.", "Mask the store: `mask=offsets < size`.")
    for attempt in attempts:
        if trace is not None and not exercise.torch_may_compute and trace.changed_after(attempt.result):
            raise Wrong(
                f"The values are right, but PyTorch changed {attempt.name or 'the result'} after the last kernel.",
                "Work in place is work, too: let the kernel do all of it before it stores.",
            )
    for rule in exercise.rules:
        rule(attempts[0])


def _try_undefined_lanes(function: Callable, exercise: Exercise, case: Case, trace: tracing.Trace) -> None:
    """Raise Wrong for a result that was right because lanes held 0 that may hold anything: it is another with NaN or 1000."""

    def same(undefined: float) -> bool:
        guards = Guards(torch.device("cpu"))
        arguments = [guards.place(value) if isinstance(value, torch.Tensor) else value for value in case.arguments.values()]
        try:
            with guards:
                again = _tuple(tracing.record(function, *arguments, seconds=SECONDS, undefined=undefined).result)
            pairs = zip(_tuple(trace.result), again)
            return all(torch.equal(one.nan_to_num(7.25), other.nan_to_num(7.25)) for one, other in pairs)
        except Exception:  # what a NaN led it to is of no interest
            return False

    if not same(math.nan) or not same(1000.0):
        raise Wrong(
            f"The result is right only if lanes that a mask switches off hold 0.\nThe line: `{trace.undefined[0]}`",
            "On a GPU they may hold anything: give this load an other=, the value that leaves the result as it should be.",
        )


def _tuple(result: Any) -> tuple:
    """One tensor, or a tuple or list of them, as a tuple."""
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _touches_memory(kernel: Callable, kinds: str = "load|store|atomic") -> bool:
    """Whether a load, a store or an atomic stands in a kernel's source at all."""
    calls = (node for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kernel)))) if isinstance(node, ast.Call))
    return any(re.search(kinds, ast.unparse(call.func)) for call in calls)


def _unfinished(kernel: Callable) -> bool:
    """Whether a kernel is a stub: it touches no memory, or it stores nothing and a `pass` stands in it."""
    statements = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kernel))))
    passes = any(isinstance(statement, ast.Pass) for statement in statements)
    return not _touches_memory(kernel) or (passes and not _touches_memory(kernel, "store|atomic"))


def _each(arguments: dict[str, Any], change: Callable) -> list[Any]:
    return [change(value) if isinstance(value, torch.Tensor) else value for value in arguments.values()]


def _check_kind(result, trace, arguments, tensors, exercise, device) -> None:
    """Refuse what is wrong before its values are looked at: inputs changed, no tensor, its device, type or shape."""
    for name, before in tensors.items():
        changed = (_bits(arguments[name]) != _bits(before.to(device))).cpu().numpy()
        if changed.any():
            where = f"Your function changed its input {name}, first at {index_text(changed).split(' of ')[0]}."
            if any(isinstance(one, torch.Tensor) and one.data_ptr() == arguments[name].data_ptr() for one in _tuple(result)):
                raise Wrong(
                    where, f"It works in place: allocate an output, torch.empty_like({name}), store there, and return that."
                )
            store = _first_store(trace, arguments[name])
            line = f"\nThe line: `{store.source}`" if store else ""
            if trace is not None and store is None:
                raise Wrong(
                    where, f"An operation of PyTorch works in place, on {name} or on a view of it: write a = a * 2, not a *= 2."
                )
            raise Wrong(where + line, "The store goes to the wrong tensor: it needs the output's pointer, not an input's.")
    if result is None or result is ...:
        raise Wrong(RETURNED_NONE, "Something was computed and not handed back: end with `return output`.")
    parts = _tuple(result) if exercise.results else (result,)
    if exercise.results and (len(parts) != len(exercise.results) or not all(isinstance(one, torch.Tensor) for one in parts)):
        kinds = ", ".join("None" if one is None else type(one).__name__ for one in parts)
        found = f"({kinds})" if isinstance(result, (tuple, list)) else f"a {kinds}"
        raise Wrong(
            f"Your function returned {found}.",
            f"Return {len(exercise.results)} tensors, in this order: ({', '.join(exercise.results)}).",
        )
    if not all(isinstance(one, torch.Tensor) for one in parts):
        raise Wrong(f"Your function returned a {type(result).__name__}.", "Return one tensor: the output.")
    for part, one in enumerate(parts):
        if one.layout != torch.strided or one.is_quantized:
            kind = "quantized" if one.is_quantized else str(one.layout).removeprefix("torch.")
            raise Wrong(f"{_called(exercise, part)} is a {kind} tensor.", "Return a plain one: torch.empty_like(x).")
    first = next(iter(tensors.values()))
    wanted = _tuple(exercise.reference(*_each(arguments, lambda tensor: tensor)))
    for part, one in enumerate(parts):
        if one.device.type != device.type:
            raise Wrong(
                f"{_called(exercise, part)} is on another device ({one.device.type}) than the inputs ({device.type}).",
                "Allocate the output where the input is: torch.empty_like(x).",
            )
    if trace is not None and first.numel() and not trace.launches and not exercise.torch_may_compute:
        if any(one.element_size() in _BITS and bool((_bits(one) == _POISON[one.element_size()]).all()) for one in parts):
            raise Wrong("No kernel was launched, and the output was never written.", "Launch the kernel: kernel[grid](...).")
        raise Wrong("No kernel was launched for this result.", "Every call launches your Triton kernel: kernel[grid](...).")
    for part, (one, like) in enumerate(zip(parts, wanted)):
        _check_form(_called(exercise, part), one, like, first, exercise.form)


def _called(exercise: Exercise, part: int) -> str:
    return exercise.results[part] if exercise.results else "The result"


def _check_form(called: str, result: torch.Tensor, wanted: torch.Tensor, first: torch.Tensor, form: str = "") -> None:
    """Refuse a result of the wrong shape or type. first: the first of the input tensors. form: see `Exercise`."""
    if result.shape != wanted.shape:
        if wanted.shape == first.shape:
            hint = "Give the output the input's shape: torch.empty_like(x). Padding up to a whole block is what masks are for."
        else:
            hint = f"Allocate it in that shape, {tuple(wanted.shape)} in this case."
        raise Wrong(f"{called} has shape {tuple(result.shape)}, and {tuple(wanted.shape)} was expected.", form or hint)
    if result.dtype != wanted.dtype:
        found, asked = (str(dtype).removeprefix("torch.") for dtype in (result.dtype, wanted.dtype))
        if wanted.dtype == first.dtype:
            hint = "The output has its input's dtype: torch.empty_like(x), or dtype=x.dtype."
        else:
            hint = f"It is {asked}, whatever the type of the inputs: allocate it with dtype=torch.{asked}."
        raise Wrong(f"{called} has the wrong type: {found}, and {asked} was expected.", form or hint)


def _illegal(error: tracing.IllegalAccess) -> Wrong:
    verb = {"load": "loads", "store": "stores", "atomic": "updates"}[error.kind]
    word = {"load": "load", "store": "store", "atomic": "atomic update"}[error.kind]
    far = not -GUARD <= error.element < error.size + (1 << 20)
    if far:
        return Wrong(
            f"A program of {error.kernel} {verb} far from every tensor that it was given, and was stopped before that.\n"
            f"The line: `{error.source}`",
            "A wild pointer: an address is a pointer argument plus offsets, which count elements, not bytes.",
        )
    message = (
        f"Program {error.program} of {error.kernel} {verb} outside of {error.tensor}: "
        f"element {error.element}, and it has {error.size}.\nThe line: `{error.source}`"
    )
    if error.element < 0:
        return Wrong(message, "The offsets begin below zero: the first program starts at element 0.")
    launch = error.trace.launches[-1]
    if _tiled(launch.function):
        return Wrong(message, _tile_mask_hint(error, word, launch))
    if "mask" not in error.source:
        return Wrong(message, f"This {word} has no mask, and the last block reaches past the end: add mask=offsets < size.")
    if error.element == error.size and error.lanes == 1:
        return Wrong(
            message, "The mask lets the lane just past the end through: offsets < size, not <=, and with the right size."
        )
    return Wrong(
        message, "The mask lets lanes past the end through: compare the offsets that you add to the pointer with the size."
    )


def _tiled(kernel: Callable) -> bool:
    """Whether a kernel works on tiles: it gives blocks of indices a second dimension."""
    return bool(re.search(r"\[\s*:\s*,\s*None\s*\]|\[\s*None\s*,\s*:\s*\]|expand_dims", inspect.getsource(kernel)))


def _tile_mask(kernel: Callable) -> str:
    """The mask of a tile, as it is written in a kernel whose indices have their second dimension early, or get it late."""
    if re.search(r"arange\([^()]*\)\s*\[", inspect.getsource(kernel)):
        return "(row < rows) & (column < columns)"
    return "(row < rows)[:, None] & (column < columns)[None, :]"


def _mask_of(kernel: Callable, line: str) -> ast.expr | None:
    """The mask of the load or store on this line of a kernel, with what its names were assigned in place of them."""
    source = textwrap.dedent(inspect.getsource(kernel))
    tree = ast.parse(source)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and re.search("load|store", ast.unparse(node.func)))
    call = next((call for call in calls if source.splitlines()[call.lineno - 1].strip() == line), None)
    if call is None:
        return None
    known: dict[str, ast.expr] = {}

    class Known(ast.NodeTransformer):
        def visit_Name(self, node):
            return known.get(node.id, node)

    def filled(expression: ast.expr) -> ast.expr:
        return Known().visit(ast.parse(ast.unparse(expression), mode="eval").body)

    assignments = [node for node in ast.walk(tree) if isinstance(node, (ast.Assign, ast.AugAssign)) and node.lineno < call.lineno]
    for node in sorted(assignments, key=lambda node: node.lineno):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name):
            value = (
                node.value if isinstance(node, ast.Assign) else ast.BinOp(ast.Name(target.id, ast.Load()), node.op, node.value)
            )
            known[target.id] = filled(value)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    position = 2 if "store" in ast.unparse(call.func) else 1
    mask = keywords.get("mask") or (call.args[position] if len(call.args) > position else None)
    return filled(mask) if mask is not None else None


WITH_AND = "A mask has a value for each lane, and `and` asks for one: join the two conditions with &."


def _tile_mask_hint(error: tracing.IllegalAccess, word: str, launch: tracing.Launch) -> str:
    """For a kernel that works on tiles and leaves a tensor: which half of the mask is missing or wrong."""
    tensor = launch.tensors.get(error.tensor)
    matrix = tensor is None or tensor.ndim > 1
    mask, inside = _mask_of(launch.function, error.source), _tile_mask(launch.function)
    if mask is None:
        if "mask" in error.source:
            return f"The mask lets lanes past the end through: it is {inside}."
        if matrix:
            return f"This {word} has no mask, and the last tiles reach past the end of rows and columns: mask={inside}."
        return f"This {word} has no mask, and the last block reaches past the end: compare its index, column < columns."
    compared = [node for node in ast.walk(mask) if isinstance(node, ast.Compare)]
    if any(isinstance(operator, (ast.LtE, ast.GtE)) for node in compared for operator in node.ops):
        return "The mask lets the index just past the end through: it is row < rows and column < columns, not <=."
    if not matrix:
        return f"{error.tensor} has {error.size} elements: compare the index that is added to it with that number."
    if len(compared) == 1:
        return f"The mask looks at one dimension, and tiles reach past the end of the other as well: it is {inside}."
    if any(isinstance(node, ast.BoolOp) for node in ast.walk(mask)):
        return WITH_AND
    if any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) for node in ast.walk(mask)):
        return "A lane is inside if its row and its column are: join the two conditions with &, not with |."
    indices = "ijklm"[: tensor.ndim] if tensor is not None else ""
    terms = " + ".join(f"{index} * {stride}" for index, stride in zip(indices, tensor.stride() if tensor is not None else ()))
    return (
        "The mask has its two conditions: do they compare row with rows and column with columns? If so, the address is wrong: "
        f"element ({', '.join(indices)}) of {error.tensor} is at {terms} in this case."
    )


def _tile_gap_hint(attempt: Attempt, stores: list[tracing.Access], twice: bool) -> str:
    """For a result of several dimensions: along which of them elements were never stored, and why. "" where it is not that."""
    missing, launch = attempt.unwritten, attempt.trace.launches[-1]
    axes = range(missing.ndim)
    bare = [missing.all(axis=tuple(other for other in axes if other != axis)) for axis in axes]
    covered = np.zeros(missing.shape, dtype=bool)
    for axis in axes:
        covered |= bare[axis].reshape([-1 if other == axis else 1 for other in axes])
    lost = [axis for axis in axes if bare[axis].any()]
    if not lost or (covered != missing).any():
        return ""
    if missing.ndim == 2 and not _tiled(launch.function) and lost != [1]:
        return ""  # one flat vector, or a program a row
    if missing.ndim == 2:
        name = " and ".join(("rows", "columns")[axis] for axis in lost)
        block = "BLOCK_" + ("rows", "columns")[lost[-1]].upper()
    else:
        name, block = "indices of dimension " + " and ".join(str(axis) for axis in lost), "BLOCK"
    if not all(bool(bare[axis][int(np.argmax(bare[axis])) :].all()) for axis in lost):
        return f"There are gaps between the tiles: from one to the next the {name} move on by the tile's own size."
    if len(lost) == 1 and not twice:
        # A tile that is stored in full has a power of two of them.
        own = [access.elements[access.elements < missing.size] for access in stores if _touches(access, attempt.result)]
        last = [set(np.unravel_index(elements, missing.shape)[lost[0]].tolist()) for elements in own]
        width = max(map(len, last), default=0)
        if width & (width - 1):
            return f"The last {name} are masked off and should not be: which size does the mask compare them with?"
    if twice:
        return (
            f"Programs store the same {name} again, and never the last ones: a tile's own {name} start at tl.program_id of their "
            f"dimension of the grid, times {block}."
        )
    if missing.ndim == 2:
        return (
            f"The last {name} belong to no program: along each dimension the grid, or a loop, goes on to the end, rounded up, "
            f"as in triton.cdiv({('rows', 'columns')[lost[-1]]}, {block})."
        )
    return f"The last {name} are never stored: the grid, or a loop, goes on to the end of each dimension, rounded up."


def _touches(access: tracing.Access, tensor: torch.Tensor) -> bool:
    """Whether an access begins in this tensor."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    return bool(access.addresses.size) and start <= int(access.addresses[0]) < end


def _first_store(trace: tracing.Trace | None, tensor: torch.Tensor) -> tracing.Access | None:
    return next((a for a in trace.accesses if a.kind != "load" and _touches(a, tensor)), None) if trace else None


def index_text(place: np.ndarray) -> str:
    """The first True: "index 768 of 1000", or a tuple of indices in a tensor of several dimensions."""
    first = tuple(int(index) for index in np.argwhere(place)[0])
    return f"index {first[0]} of {place.shape[0]}" if len(first) == 1 else f"index {first} of {place.shape}"


def _diagnose(attempt: Attempt, exercise: Exercise) -> Wrong:
    """What a wrong result shows of the mistake behind it."""
    stored_wrong = attempt.wrong & ~attempt.unwritten
    if not stored_wrong.any():
        if attempt.unwritten.all() and not attempt.wrong.any():
            return Wrong(
                f"The values are right, but no kernel wrote {attempt.name or 'the tensor'} that you returned: "
                "PyTorch copied or converted it.",
                "Let the kernel store the finished values into the output itself.",
            )
        if attempt.wrong.any():
            message = f"First wrong element{attempt.of}: {index_text(attempt.wrong)}, which was never stored."
        else:
            message = f"{index_text(attempt.unwritten).capitalize()}{attempt.of} was never stored by a kernel."
        return Wrong(message, exercise.gaps(attempt) or _unwritten_hint(attempt))

    message = f"First wrong element{attempt.of}: {index_text(stored_wrong)}."
    stored = ~attempt.unwritten
    answer = attempt.result.detach().double().cpu().numpy()[stored]
    right = attempt.expected.cpu().numpy()[stored]
    for hint, mistake in exercise.mistakes:
        other = _tuple(mistake(*_each(attempt.arguments, lambda tensor: tensor.double())))[attempt.part]
        other = other.double().cpu().numpy()[stored]
        # One that makes no difference here is not what went wrong, and nothing but NaN could be any.
        if not np.isnan(other).all() and _agree(answer, other, attempt.tolerance) and not _agree(right, other, attempt.tolerance):
            return Wrong(message, hint)
    for clue in exercise.clues:
        if hint := clue(attempt):
            return Wrong(message, hint)
    if not np.isfinite(answer[np.isfinite(right)]).all():
        return Wrong(message, "The result holds NaN or infinity that no input has: is something read that was never written?")
    given = [value for value in attempt.arguments.values() if isinstance(value, torch.Tensor)]
    largest = [float(value[value.isfinite()].abs().max()) for value in (attempt.expected, *given) if value.isfinite().any()]
    error = np.abs(answer - right)[np.isfinite(right)]
    near = (error <= 4e-3 * max(largest, default=0.0)).all()  # sums that cancel err by their terms
    # One wrong element may come near by chance; many do not, nor does a number that float16 happens to have.
    many = stored_wrong.sum() >= max(8, stored.sum() / 2)
    many |= stored.sum() >= 8 and bool((error <= 1e-3 * max(largest, default=0.0)).all())
    if attempt.result.dtype == torch.float32 and near and (many or (answer == answer.astype(np.float16)).all()):
        if attempt.result.numel() > 1:
            # Which of many is beyond the tolerance first is a matter of luck.
            message = f"Elements{attempt.of} are wrong by more than float32's own rounding."
        return Wrong(
            message,
            "Only about three digits are right: something is computed or stored in float16 on the way, cut off, or added to a "
            "number that is much larger.",
        )
    low = attempt.result.ndim > 1 and any(value.dtype in (torch.float16, torch.bfloat16) for value in given)
    if low and (error <= 0.5 * largest[0]).all():
        # The float32 cases were right.
        return Wrong(
            f"Elements{attempt.of} are wrong by more than one rounding.",
            "It was right in float32: convert what you load, tl.load(...).to(tl.float32), before you compute with it.",
        )
    return Wrong(message, _misread_hint(attempt))


def _agree(answer: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays are the same within tolerance, their NaNs and infinities in the same places."""
    finite = np.isfinite(other)
    if not np.array_equal(answer[~finite], other[~finite], equal_nan=True):
        return False
    margin = tolerance + 1e-6 * np.abs(other[finite]).max(initial=0.0)
    return bool((np.abs(answer[finite] - other[finite]) <= margin).all())


def _unwritten_hint(attempt: Attempt) -> str:
    trace, unwritten = attempt.trace, attempt.unwritten.ravel()
    zero = (attempt.expected == 0).cpu().numpy().ravel()
    if np.array_equal(unwritten, zero) and not zero.all():
        return "Where the result is 0 nothing was stored: a mask says which lanes exist, and tl.where chooses between values."
    if trace is None:
        return "These elements still hold what was in the memory before: does the grid have enough programs?"
    owners = trace.owners(attempt.result)
    stores = [access for access in trace.accesses if access.kind != "load"]
    if len(attempt.results) > 1 and not unwritten.all():
        stores = [access for access in stores if _touches(access, attempt.result)]
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
    if attempt.result.ndim > 1 and (hint := _tile_gap_hint(attempt, stores, bool(owners.twice.any()))):
        return hint
    if attempt.result.ndim > 1 and unwritten.size - unwritten.sum() == attempt.result.shape[0]:
        return "As many elements are stored as the first dimension has: the number of all elements is x.numel()."
    if attempt.result.ndim > 2 and (attempt.unwritten == attempt.unwritten[:1]).all():
        unwritten = attempt.unwritten[0].ravel()  # the same in every index of the first dimension, over which a kernel loops
    own = {access.program: access for access in stores}
    if owners.stores.max() > 1 and len(own) > 1:
        sets = {access.elements.tobytes() for access in own.values()}
        if len(sets) == 1:
            return "Every program stores the same block: its offsets start at tl.program_id(0) * BLOCK."
        return "The programs' blocks overlap: program number i starts at element i * BLOCK, not at i."
    if not np.diff(unwritten.astype(int)).min(initial=0) < 0:  # nothing is stored after the first gap
        lanes = sum(access.elements.size + access.masked for access in stores)
        if lanes >= attempt.unwritten.size:
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
    if attempt.unwritten.any() and trace.owners(attempt.result).twice.any():
        return "Some elements are stored several times and others never: look at the address that the store goes to."
    for name, tensor in attempt.arguments.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        loads = [access for access in trace.accesses if access.kind != "store" and _touches(access, tensor)]
        if not loads:
            return (
                f"{name} is never read: which pointers does the kernel load from, and in which order is it given its arguments?"
            )
        alike = tensor.shape == attempt.result.shape and tensor.stride() == attempt.result.stride()
        for program in trace.programs() if alike else ():
            read = [a.elements for a in loads if a.program == program]
            wrote = [a for a in trace.accesses if a.kind != "load" and a.program == program and a.elements.size]
            wrote = [a.elements for a in wrote if len(attempt.results) == 1 or _touches(a, attempt.result)]
            if wrote and set(np.concatenate(wrote).tolist()) - set(np.concatenate(read).tolist() if read else []):
                return f"Programs do not load the same elements of {name} as they store of the output: compare the offsets."
    return fallback


# ---- Drawing cases --------------------------------------------------------------------------------------------------------


def between(low: float, high: float) -> float:
    """A number drawn evenly between the two."""
    return float(np.random.default_rng().uniform(low, high))


def draw(size: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Values of either sign whose magnitude lies between scale / 2 and 2 * scale, so that none is lost beside another."""
    return ((torch.rand(size) * 1.5 + 0.5) * torch.where(torch.rand(size) < 0.5, -1.0, 1.0)).double().mul(scale).to(dtype)


def type_name(dtype: torch.dtype) -> str:
    """ "float16" for torch.float16."""
    return str(dtype).removeprefix("torch.")
