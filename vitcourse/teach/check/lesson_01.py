"""The checks of lesson 01."""

import math
from collections.abc import Callable

import numpy as np
import torch

from .judge import Attempt, Case, Exercise, Verdict, Wrong, between, draw, index_text, judge, type_name
from .lesson_02 import read_by_the_kernel


def stored_once(attempt: Attempt) -> None:
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
    message = f"The values are right, but {index_text(owners.twice)} is stored more than once."
    if len({access.launch for access in attempt.trace.accesses}) > 1:
        raise Wrong(
            message, "Several launches store the same elements: one launch, whose programs share out the vector, is enough."
        )
    if any(len(programs) > 1 for programs in blocks.values()):
        raise Wrong(message, "Several programs do the same block: which block is a program's own follows from tl.program_id(0).")
    raise Wrong(
        message, "The blocks overlap: they start BLOCK apart, program number i at element i * BLOCK, and in a loop as well."
    )


def one_pass(attempt: Attempt) -> None:
    """One launch, which reads each input once and writes the output once."""
    trace = attempt.trace
    if trace is None or not attempt.result.numel():
        return
    if len(trace.launches) != 1:
        raise Wrong(
            f"The values are right, but {len(trace.launches)} kernels were launched.",
            "The intermediate sum goes out to memory and back: do both additions in one launch, and keep it in registers.",
        )
    size = attempt.result.numel() * attempt.result.element_size()
    for name, tensor in attempt.arguments.items():
        start = tensor.data_ptr()
        loads = (access for access in trace.accesses if access.kind != "store")
        moved = sum(int(((a.addresses >= start) & (a.addresses < start + size)).sum()) * a.itemsize for a in loads)
        if moved == 0:
            raise Wrong(
                f"The values are right, but the kernel does not read {name}.",
                "Part of the sum is done outside of the kernel: it loads a, b and c, and adds all three.",
            )
        if moved != size:
            raise Wrong(
                f"The values are right, but {moved} bytes of {name} were read, and it has {size}.",
                f"Load each block of {name} once, and use the value again: it stays in registers.",
            )
    if trace.bytes_read != 3 * size:
        raise Wrong(
            f"The values are right, but {trace.bytes_read} bytes were read, and the three inputs have {3 * size}.",
            "Something beside the inputs is read: keep the intermediate sum in registers, not in memory.",
        )
    if trace.bytes_written != size:
        raise Wrong(
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
        raise Wrong(
            f"The values are right, but {launched} programs were launched, and at most {programs} were allowed.",
            "The grid is (programs,), or the number of blocks if that is smaller; a loop in the kernel does the rest.",
        )
    stores = [access.program for access in trace.accesses if access.kind == "store"]
    if launched < programs and len(stores) > len(set(stores)):
        raise Wrong(
            f"The values are right, but of {programs} programs that were allowed only {launched} ran, and looped.",
            "Launch min(programs, number of blocks) of them: with fewer, multiprocessors stand idle.",
        )
    if attempt.result.numel() > 300_000 and len(stores) == len(set(stores)):
        raise Wrong(
            "The values are right, but no program takes more than one block.",
            "A block as wide as a program's whole share does not fit in registers: keep BLOCK fixed, and loop over blocks.",
        )


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
            drawn.append(Case(f"size {size} in {type_name(dtype)}{note}", arguments))
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
        return {"x": draw(size, dtype, scale), "y": draw(size, dtype, scale)}

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
    small = _vector_cases(build)

    def cases(dtypes):
        # One element more than a block can hold.
        return [*small(dtypes), Case("size 1048577 in float32", build((1 << 20) + 1, torch.float32, 1.0))]

    tried = _TRIED.replace("4097 and 20001", "4097, 20001 and 1048577")
    exercise = Exercise(torch.add, cases, _large_case(build), mistakes, tried, [stored_once])
    return judge(function, exercise)


def axpy(function: Callable) -> Verdict:
    """Lesson 01: `function(alpha, x, y)` returns alpha * x + y for a number and two vectors of any size."""

    def build(size, dtype, scale):
        # Away from 1, where forgetting it would not show, and from whole numbers.
        alpha = between(2.25, 2.75) * (1 if np.random.default_rng().random() < 0.5 else -1)
        x = draw(size, dtype, scale)
        # With the sign of alpha * x: a sum that cancels would have a tolerance smaller than one rounding of its terms.
        return {"alpha": alpha, "x": x, "y": draw(size, dtype, scale).abs() * torch.sign(alpha * x)}

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

    rules = [stored_once, *(read_by_the_kernel(name, f"Hand the kernel {name} as it is, and alpha.") for name in "xy")]
    exercise = Exercise(reference, _vector_cases(build), _large_case(build), mistakes, _TRIED, rules)
    return judge(function, exercise)


def add3(function: Callable) -> Verdict:
    """Lesson 01: `function(a, b, c)` returns a + b + c from one launch that reads and writes everything once."""

    def build(size, dtype, scale):
        return {name: draw(size, dtype, scale) for name in "abc"}

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
    exercise = Exercise(reference, _vector_cases(build), _large_case(build), mistakes, tried, [one_pass, stored_once])
    return judge(function, exercise)


def persistent_add(function: Callable) -> Verdict:
    """Lesson 01: `function(x, y, programs)` returns x + y from at most `programs` programs that loop over blocks."""

    def build(size, dtype, programs, scale=1.0):
        return {"x": draw(size, dtype, scale), "y": draw(size, dtype, scale), "programs": programs}

    def cases(dtypes):
        single = torch.float32
        sizes = [(1, 1), (1000, 1), (1025, 4), (4097, 3), (1000, 64), (20_001, 1), (20_001, 2), (300_001, 2), (0, 4)]
        found = [(size, single, programs, 1.0, "") for size, programs in sizes]
        found += [(4097, dtype, 2, 1.0, "") for dtype in dtypes if dtype != single]
        found += [(1025, dtype, 2, torch.finfo(dtype).max / 8, ", large values") for dtype in dtypes]
        return [
            Case(
                f"size {size} by {programs} program{'s' * (programs != 1)} in {type_name(dtype)}{note}",
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
        [_persistent, stored_once],
    )
    return judge(function, exercise)
