"""The checks of lesson 02."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .. import trace as tracing
from .judge import Attempt, Case, Exercise, Verdict, Wrong, _tiled, draw, index_text, judge, type_name

# ---- What a launch moved ------------------------------------------------------------------------------------------------


def loads_of(attempt: Attempt, name: str) -> list[tracing.Access]:
    """The loads that begin in the memory of an argument, of whatever strides."""
    tensor = attempt.arguments[name]
    start = tensor.data_ptr()
    end = start + tracing._span(tensor) * tensor.element_size()
    return [a for a in attempt.trace.accesses if a.kind != "store" and a.addresses.size and start <= int(a.addresses[0]) < end]


def _nothing_to_see(attempt: Attempt) -> bool:
    return attempt.trace is None or not attempt.result.numel()


def one_launch(hint: str) -> Callable[[Attempt], None]:
    """The rule that there is one launch; the hint is for who has more."""

    def rule(attempt: Attempt) -> None:
        if not _nothing_to_see(attempt) and len(attempt.trace.launches) != 1:
            raise Wrong(f"The values are right, but {len(attempt.trace.launches)} kernels were launched.", hint)

    return rule


def read_by_the_kernel(name: str, hint: str) -> Callable[[Attempt], None]:
    """The rule that the kernel loads from this argument itself; the hint is for who hands it something else instead."""

    def rule(attempt: Attempt) -> None:
        if not _nothing_to_see(attempt) and not loads_of(attempt, name):
            raise Wrong(f"The values are right, but the kernel does not read {name} itself.", hint)

    return rule


def read_once(name: str, again: str = "") -> Callable[[Attempt], None]:
    """The rule that each element of this contiguous argument is loaded once; `again` is the hint for who loads it more often."""

    def rule(attempt: Attempt) -> None:
        if _nothing_to_see(attempt):
            return
        moved, size = sum(access.bytes for access in loads_of(attempt, name)), attempt.arguments[name].nbytes
        if moved != size:
            raise Wrong(
                f"The values are right, but {moved} bytes of {name} were read, and it has {size}.",
                again or f"Load each block of {name} once, and use the value again: it stays in registers.",
            )

    return rule


def nothing_else(hint: str) -> Callable[[Attempt], None]:
    """The rule that kernels load from the arguments, and from nothing that was made on the way."""

    def rule(attempt: Attempt) -> None:
        if _nothing_to_see(attempt):
            return
        names = [name for name, value in attempt.arguments.items() if isinstance(value, torch.Tensor)]
        beside = attempt.trace.bytes_read - sum(access.bytes for name in names for access in loads_of(attempt, name))
        if beside > 0:
            raise Wrong(f"The values are right, but {beside} bytes were read that are not {' or '.join(names)}.", hint)

    return rule


def tiles_stored_once(attempt: Attempt) -> None:
    """Every element of the result is stored exactly once."""
    if attempt.trace is None:
        return
    twice = attempt.trace.owners(attempt.result).twice
    if not twice.any():
        return
    message = f"The values are right, but {index_text(twice)} is stored more than once."
    stores = [access for access in attempt.trace.accesses if access.kind != "load" and access.elements.size]
    if any(np.unique(access.elements).size < access.elements.size for access in stores):
        raise Wrong(
            message, "One tl.store hits it several times: lanes past the end have to be masked off, not moved back inside."
        )
    owners: dict[bytes, set] = {}
    for access in stores:
        owners.setdefault(access.elements.tobytes(), set()).add(access.program)
    if any(len(programs) > 1 for programs in owners.values()):
        raise Wrong(
            message,
            "Several programs do the same tile: tl.program_id says which rows and which columns are a program's own. "
            "Is the grid larger than the number of tiles?",
        )
    if len({access.program for access in stores}) == 1 or all(len(programs) == 1 for programs in owners.values()):
        same = {(access.program, access.elements.tobytes()) for access in stores}
        if len(same) < len(stores):
            raise Wrong(message, "A program stores its tile more than once: store after the loop, not in each of its turns.")
    raise Wrong(message, "The tiles overlap: they start BLOCK_ROWS rows and BLOCK_COLUMNS columns apart.")


# ---- Cases ----------------------------------------------------------------------------------------------------------------


def matrix_cases(
    build: Callable[[tuple[int, ...], torch.dtype, float], dict], shapes: list[tuple[int, ...]], largest: float = 1 / 8
) -> Callable[[tuple[torch.dtype, ...]], list[Case]]:
    """The cases of an exercise on matrices: these shapes in float32, the last of them empty; some in the other types.

    largest: the magnitude of the large values, as a part of the type's largest number.
    """

    def cases(dtypes: tuple[torch.dtype, ...]) -> list[Case]:
        *full, empty = shapes
        found = [(shape, torch.float32, 1.0, "") for shape in (*full, empty)]
        found += [(shape, dtype, 1.0, "") for dtype in dtypes if dtype != torch.float32 for shape in (full[0], full[1], full[-1])]
        found += [(full[2], dtype, torch.finfo(dtype).max * largest, ", large values") for dtype in dtypes]
        tiny = {torch.float16: 1e-3}
        found += [(full[2], dtype, tiny.get(dtype, 1e-30), ", tiny values") for dtype in dtypes]
        return [
            Case(f"shape {shape} in {type_name(dtype)}{note}", build(shape, dtype, scale)) for shape, dtype, scale, note in found
        ]

    return cases


def large_matrix(build: Callable[[tuple[int, ...], torch.dtype, float], dict], shape: tuple[int, ...]) -> Callable[[], Case]:
    return lambda: Case(f"shape {shape} in float32", build(shape, torch.float32, 1.0))


def _programs(attempt: Attempt, name: str) -> Iterator[tuple[set[int], set[int]]]:
    """For each program: the elements that it loads of an argument, and those that it stores of the result."""
    if attempt.trace is None:
        return
    loads = loads_of(attempt, name)
    for program in attempt.trace.programs():
        stored = (a.elements for a in attempt.trace.accesses if a.kind != "load" and a.program == program)
        loaded = (a.elements for a in loads if a.program == program)
        yield set(itertools.chain(*map(np.ndarray.tolist, loaded))), set(itertools.chain(*map(np.ndarray.tolist, stored)))


def column_clue(name: str) -> Callable[[Attempt], str]:
    """The clue for a vector with an element for each column: a program needs those of its tile's columns."""

    def clue(attempt: Attempt) -> str:
        columns = attempt.result.shape[-1]
        for loaded, stored in _programs(attempt, name):
            if stored and loaded and {element % columns for element in stored} - loaded:
                return f"A program loads other elements of {name} than its columns need: {name}_ptr + column, as for x."
        return ""

    return clue


def illegal_vector(name: str) -> Callable[[tracing.IllegalAccess], str]:
    """The hint for an access past the end of a vector with an element for each column."""

    def hint(error: tracing.IllegalAccess) -> str:
        tensor = error.trace.launches[-1].tensors.get(error.tensor)
        if tensor is None or tensor.ndim != 1 or error.kind != "load" or error.element < 0 or "<=" in error.source:
            return ""
        if "mask" not in error.source:
            return f"This load has no mask, and the last tile reaches past the last column: add mask=column < columns for {name}."
        return f"{name} has one element for each column: load {name}_ptr + column with mask=column < columns."

    return hint


# ---- The exercises ----------------------------------------------------------------------------------------------------------

_TYPES = "float32 and float16, large and tiny values; no access outside of a tensor"


def add_row(function: Callable) -> Verdict:
    """Lesson 02: `function(x, row)` returns x + row for a matrix and a row that is added to each of its rows."""

    def build(shape, dtype, scale):
        return {"x": draw(shape, dtype, scale), "row": draw(shape[1:], dtype, scale)}

    def by_row_number(x, row):
        return x + row[torch.arange(x.shape[0], device=x.device).clamp(max=len(row) - 1)][:, None]

    mistakes = [
        ("The result is x: row was never added.", lambda x, row: x),
        ("The result is row, repeated: x was never added.", lambda x, row: row.expand(x.shape)),
        ("The result is x - row: add them.", lambda x, row: x - row),
        ("The result is row - x: add them.", lambda x, row: row - x),
        ("The result is x * row: add them.", lambda x, row: x * row),
        ("The result is 2 * x: is row's pointer what the second load reads from?", lambda x, row: x + x),
        (
            "The first element of row is added everywhere: load row_ptr + column, a block of them, and not row_ptr.",
            lambda x, row: x + row[:1],
        ),
        (
            "row is indexed with the number of the row: it has one element for each column, row_ptr + column.",
            by_row_number,
        ),
        (
            "The result is stored transposed: element (i, j) of a contiguous matrix lies at i * columns + j.",
            lambda x, row: (x + row).T.reshape(x.shape),
        ),
        (
            "x is read transposed: element (i, j) of a contiguous matrix lies at i * columns + j.",
            lambda x, row: x.reshape(x.shape[::-1]).T + row,
        ),
        ("Zeros were stored: load x and row, and store their sum.", lambda x, row: 0 * x),
    ]
    shapes = [(1, 1), (3, 5), (5, 130), (130, 5), (1, 1000), (300, 1), (64, 64), (65, 129), (0, 5)]
    exercise = Exercise(
        torch.add,
        matrix_cases(build, shapes),
        large_matrix(build, (5003, 1001)),
        mistakes,
        f"shapes (1, 1) to (65, 129), one row and one column and no rows among them, {_TYPES}; "
        "one launch, every element stored once, inputs unchanged",
        [
            one_launch("One launch does it: a grid of tiles, which together cover all rows and all columns."),
            read_by_the_kernel("x", "PyTorch has done something to x first: hand the kernel x as it is."),
            read_by_the_kernel(
                "row",
                "PyTorch has written row out into a matrix first, which costs what broadcasting saves. Hand the kernel row as "
                "it is: every tile loads the part for its columns.",
            ),
            nothing_else("Load x and row, and nothing that was written on the way."),
            tiles_stored_once,
        ],
        clues=[column_clue("row")],
        illegal=illegal_vector("row"),
    )
    return judge(function, exercise)


# How a matrix may lie in memory, by the name that a verdict gives it.
_LAYOUTS: dict[str, Callable] = {
    "contiguous": lambda rows, columns, new: new((rows, columns)),
    "transposed": lambda rows, columns, new: new((columns, rows)).T,
    "every second column": lambda rows, columns, new: new((rows, 2 * columns))[:, ::2],
    "with padded rows": lambda rows, columns, new: new((rows, columns + 3))[:, :columns],
    "one row expanded": lambda rows, columns, new: new((1, columns)).expand(rows, columns),
    "one column expanded": lambda rows, columns, new: new((rows, 1)).expand(rows, columns),
}


def _stride_clue(attempt: Attempt) -> str:
    """Which strides a function used that has read, or stored, with the wrong ones."""
    result, (rows, columns) = attempt.result, attempt.result.shape
    if not result.is_contiguous():
        return (
            "torch.empty_like(x) has x's strides, and the kernel stores as if the output were contiguous: allocate it with "
            "torch.empty(x.shape, dtype=x.dtype, device=x.device)."
        )
    i, j = torch.arange(rows, device=result.device)[:, None], torch.arange(columns, device=result.device)
    stored = torch.from_numpy(~attempt.unwritten).to(result.device)

    def matches(other: torch.Tensor) -> bool:
        return bool(((result.double() - other).abs() <= attempt.tolerance)[stored].all())

    def same(first: tuple[int, int], second: tuple[int, int]) -> bool:
        return all(a == b or size == 1 for a, b, size in zip(first, second, (rows, columns)))

    def read(tensor: torch.Tensor, strides: tuple[int, int]) -> torch.Tensor | None:
        memory = tensor.as_strided((tracing._span(tensor),), (1,)).double()
        where = i * strides[0] + j * strides[1]
        return memory[where] if int(where.max()) < memory.numel() else None

    pairs = {"x": attempt.arguments["x"], "y": attempt.arguments["y"]}
    for name, other in (("y", "x"), ("x", "y")):
        tensor, partner = pairs[name], pairs[other]
        down, across = tensor.stride()
        guesses = [
            (partner.stride(), f"{name} is read with {other}'s strides: every tensor has its own"),
            ((columns, 1), f"{name} is read as if it were contiguous: its strides say where an element lies"),
            ((across, down), f"{name}'s two strides are exchanged"),
            ((down, 1), f"{name}'s column stride is left out: neighbours in a row need not be neighbours in memory"),
            ((down, partner.stride(1)), f"{name}'s columns are read with {other}'s stride"),
            ((partner.stride(0), across), f"{name}'s rows are read with {other}'s stride"),
            ((down, down), f"{name}'s row stride is used for its columns as well"),
            ((across, across), f"{name}'s column stride is used for its rows as well"),
        ]
        for strides, hint in guesses:
            if same(strides, tensor.stride()):
                continue
            guess = read(tensor, strides)
            if guess is not None and matches(guess + partner.double()):
                return f"{hint}. Element (i, j) of {name} is at i * {name}.stride(0) + j * {name}.stride(1)."
    for name, tensor in pairs.items():
        where = (i * tensor.stride(0) + j * tensor.stride(1)).ravel()
        if not same(tensor.stride(), (columns, 1)) and len(where.unique()) == len(where) == int(where.max()) + 1:
            moved = torch.empty(len(where), dtype=torch.float64, device=result.device)
            moved[where] = attempt.expected.ravel()
            if matches(moved.reshape(rows, columns)):
                return f"The output is stored with {name}'s strides: it is contiguous, element (i, j) is at i * columns + j."
    if matches(attempt.expected.T.reshape(rows, columns)):
        return "The result is stored transposed: element (i, j) of a contiguous matrix lies at i * columns + j."
    return ""


def _contiguous_result(attempt: Attempt) -> None:
    if not attempt.result.is_contiguous():
        raise Wrong(
            "The values are right, but the result is not contiguous.",
            "torch.empty_like(x) has x's strides. Allocate torch.empty(x.shape, dtype=x.dtype, device=x.device), and store "
            "element (i, j) at i * columns + j.",
        )


def add_strided(function: Callable) -> Verdict:
    """Lesson 02: `function(x, y)` returns x + y, contiguous, for two matrices of one shape and any strides."""

    def build(shape, dtype, scale, x="contiguous", y="contiguous"):
        rows, columns = shape

        def new(size):
            return draw(size, dtype, scale)

        return {"x": _LAYOUTS[x](rows, columns, new), "y": _LAYOUTS[y](rows, columns, new)}

    def cases(dtypes):
        plain, single = "contiguous", torch.float32
        found = [(shape, plain, plain, single, 1.0, "") for shape in ((1, 1), (3, 5), (5, 130), (130, 5))]
        others = [name for name in _LAYOUTS if name != plain]
        found += [((3, 5), *pair, single, 1.0, "") for name in others for pair in ((plain, name), (name, plain), (name, name))]
        found += [((70, 33), x, y, single, 1.0, "") for x, y in itertools.pairwise(others)]
        found += [((33, 70), "transposed", "one row expanded", dtype, 1.0, "") for dtype in dtypes]
        found += [((5, 130), "transposed", plain, dtype, torch.finfo(dtype).max / 8, ", large values") for dtype in dtypes]
        found += [((0, 5), plain, plain, single, 1.0, "")]
        drawn = []
        for shape, x, y, dtype, scale, note in found:
            layout = f", {f'both {x}' if x == y else f'x {x}, y {y}'}," if (x, y) != (plain, plain) else ""
            drawn.append(Case(f"shape {shape}{layout} in {type_name(dtype)}{note}", build(shape, dtype, scale, x, y)))
        return drawn

    def large():
        shape = (5003, 1001)
        arguments = build(shape, torch.float32, 1.0, "transposed", "with padded rows")
        return Case(f"shape {shape}, x transposed, y with padded rows, in float32", arguments)

    mistakes = [
        ("The result is x: y was never added.", lambda x, y: x),
        ("The result is y: x was never added.", lambda x, y: y),
        ("The result is 2 * x: is y's pointer what the second load reads from?", lambda x, y: x + x),
        ("The result is 2 * y: is x's pointer what the first load reads from?", lambda x, y: y + y),
        ("The result is x - y: add them.", lambda x, y: x - y),
        ("The result is x * y: add them.", lambda x, y: x * y),
    ]

    def copied(name):
        return (
            f"{name} was copied first: .contiguous() and .reshape() run a kernel of PyTorch's own, which moves all of it through "
            f"memory once more. Hand your kernel {name} itself, with {name}.stride(0) and {name}.stride(1)."
        )

    exercise = Exercise(
        torch.add,
        cases,
        large,
        mistakes,
        "shapes (1, 1) to (130, 5) and no rows; contiguous, transposed, every second column, padded rows, and expanded; float32 "
        "and float16, large values; the kernel reads x and y where they lie, no access outside of a tensor, inputs unchanged",
        [
            one_launch("One launch does it: a grid of tiles, which together cover all rows and all columns."),
            read_by_the_kernel("x", copied("x")),
            read_by_the_kernel("y", copied("y")),
            _contiguous_result,
            tiles_stored_once,
        ],
        clues=[_stride_clue],
    )
    return judge(function, exercise)


# A third of 64: float16's numbers are 32 apart above 32,768, so that a sum of any power of two of these values lies a third of
# the way between two of them, and a running sum in float16 is rounded the same way again and again.
_THIRD = 64 / 3
_LONG = 2750


def _sum_clue(attempt: Attempt) -> str:
    grad, trace = attempt.arguments["grad"], attempt.trace
    if grad.dtype != torch.float32 and grad.shape[0] == _LONG:
        return (
            f"The same {_LONG} rows were right in float32. Here the sum is carried in the input's type, which has too few digits "
            "for it: convert what you load, tl.load(...).to(tl.float32), and keep the accumulator in float32."
        )
    if trace is None:
        return ""
    rows, columns = grad.shape
    touched: dict[int, set] = {}
    for access in trace.accesses:
        if access.kind != "load":
            for element in access.elements.tolist():
                touched.setdefault(element, set()).add(access.program)
    if any(len(programs) > 1 for programs in touched.values()):
        return (
            "Several programs store the same columns, and the last one wins: a program sums all the rows of its columns, in a "
            "loop, so the grid has one dimension."
        )
    times = np.zeros(rows * columns, dtype=int)
    for access in loads_of(attempt, "grad"):
        np.add.at(times, access.elements, 1)
    times = times.reshape(rows, columns)
    missing, answer = (times == 0).any(axis=1), attempt.result.double().cpu().numpy()
    if missing.any():
        first = int(np.argmax(missing))
        if missing[first:].all():
            return (
                f"Only the first {first} of {rows} rows are read: a loop over range(0, rows, BLOCK_ROWS) goes through all of "
                "them, the last ones with a mask."
            )
        return f"Row {first} is not read in full: from one turn of the loop to the next the rows move on by BLOCK_ROWS."
    if (times > 1).any():
        return "Some rows are read more than once: from one turn of the loop to the next the rows move on by BLOCK_ROWS."
    over = answer - attempt.expected.cpu().numpy()
    if np.isinf(answer).all() or (over[0].round() != 0 and np.allclose(over, over[0].round(), atol=attempt.tolerance)):
        return "Lanes that the mask switches off count in the sum: load with other=0.0, which adds nothing."
    values = grad.double().cpu().numpy()
    for first in range(1, rows):
        if np.allclose(answer, values[first:].sum(0), atol=attempt.tolerance):
            return f"Only the rows from {first} on are in the result: add each block to the sum, and do not replace it."
        if np.allclose(answer, values[:first].sum(0), atol=attempt.tolerance):
            return f"Only the first {first} of {rows} rows are in the result, and all of them are read."
    return ""


def _sum_rules(attempt: Attempt) -> None:
    trace = attempt.trace
    if _nothing_to_see(attempt):
        return
    if any(access.kind == "atomic" for access in trace.accesses):
        raise Wrong(
            "The values are right, but programs meet in atomic updates.",
            "Without them: a program takes a block of columns and sums all their rows in a loop. Then nobody else has those "
            "columns, a plain tl.store is enough, and the order of the additions is the same in every run.",
        )
    stores = [(access.program, access.elements.tobytes()) for access in trace.accesses if access.kind == "store"]
    if trace.owners(attempt.result).twice.any():
        message = f"The values are right, but {index_text(trace.owners(attempt.result).twice)} is stored more than once."
        if len({program for program, _ in stores}) == 1 or len(set(stores)) < len(stores):
            raise Wrong(message, "The store is in the loop: keep the sum in registers, and store it after the last turn.")
        raise Wrong(message, "Several programs sum the same columns: which are a program's own follows from tl.program_id(0).")


def _illegal_sum(error: tracing.IllegalAccess) -> str:
    if "mask" in error.source or error.element < 0 or _tiled(error.trace.launches[-1].function):
        return ""
    return f"This {error.kind} has no mask, and the last block reaches past the last column: add mask=column < columns."


def sum_rows(function: Callable) -> Verdict:
    """Lesson 02: `function(grad)` returns the sum over the rows of a contiguous matrix: the gradient of a broadcast row."""

    def build(shape, dtype, scale):
        # One sign a column: where a sum cancels, what is left is rounding, and depends on the order of the additions.
        return {"grad": draw(shape, dtype, scale).abs() * draw(shape[1:], torch.float32).sign().to(dtype)}

    def case(shape, dtype, scale=1.0, note=""):
        arguments = build(shape, dtype, scale)
        if shape[0] == _LONG:
            arguments["grad"].fill_(_THIRD)
        # Each addition of a running sum in float32 rounds by half an eps of what it has reached, at most.
        rounding = shape[0] * torch.finfo(torch.float32).eps / 2
        slack = rounding * float(arguments["grad"].double().sum(0).abs().sum()) / max(1, shape[1])
        return Case(f"shape {shape} in {type_name(dtype)}{note}", arguments, slack)

    def cases(dtypes):
        shapes = [(1, 1), (3, 5), (3, 130), (130, 5), (300, 1), (64, 64), (257, 65), (_LONG, 3), (17_000, 1), (5, 0)]
        found = [case(shape, torch.float32) for shape in shapes]
        for dtype in dtypes:
            if dtype != torch.float32:
                found += [case(shape, dtype) for shape in ((1, 1), (3, 5), (_LONG, 3), (257, 65))]
            found.append(case((3, 130), dtype, torch.finfo(dtype).max / 8, ", large values"))
            found.append(case((3, 130), dtype, 1e-3 if dtype == torch.float16 else 1e-30, ", tiny values"))
        return found

    def large():
        return case((20_011, 1001), torch.float32)

    mistakes = [
        ("The result is the first row: add up all of them.", lambda grad: grad[0]),
        ("The result is the last row: add each to the sum, and do not replace it.", lambda grad: grad[-1]),
        ("The result is the mean: a sum is not divided by the number of rows.", lambda grad: grad.mean(0)),
        ("The result is the largest of each column: add them up.", lambda grad: grad.max(0).values),
        ("The sign is wrong: the result is minus the sum.", lambda grad: -grad.sum(0)),
        ("The squares are summed.", lambda grad: (grad * grad).sum(0)),
        (
            "The result is twice the sum: is a block added before the loop, and again in it?",
            lambda g: 2 * g.sum(0),
        ),
        (
            "grad is read transposed: element (i, j) of a contiguous matrix lies at i * columns + j.",
            lambda grad: grad.reshape(grad.shape[1], grad.shape[0]).T.sum(0),
        ),
        (
            "The sum goes along the rows, and not down the columns: the result has one element for each column.",
            lambda grad: grad.sum(1)[torch.arange(grad.shape[1], device=grad.device).clamp(max=grad.shape[0] - 1)],
        ),
        ("Zeros were stored: does the loop make a turn, and does it add to the sum that is stored?", lambda grad: 0 * grad[0]),
    ]
    exercise = Exercise(
        lambda grad: grad.sum(0),
        cases,
        large,
        mistakes,
        f"shapes (1, 1) to (257, 65), one column and no columns among them, {_LONG} rows whose sum float16 cannot carry, "
        f"{_TYPES}; one launch, each element read once, no atomics, inputs unchanged",
        [
            _sum_rules,
            one_launch("One launch does it: a program takes a block of columns and loops over all the rows."),
            read_by_the_kernel("grad", "PyTorch has done a part of it first: hand the kernel grad as it is."),
            read_once("grad", "Every program reads all the rows of its own columns, and only those, once."),
            nothing_else(
                "Partial sums go out to memory and back: keep them in registers, in one program for each block of columns."
            ),
        ],
        clues=[_sum_clue],
        illegal=_illegal_sum,
    )
    return judge(function, exercise)


def _positions_read_once(attempt: Attempt) -> None:
    """Each element of positions is loaded once in the whole launch."""
    if _nothing_to_see(attempt):
        return
    loads, size = loads_of(attempt, "positions"), attempt.arguments["positions"].nbytes
    moved = sum(access.bytes for access in loads)
    if moved == size:
        return
    message = f"The values are right, but {moved} bytes of positions were read, and it has {size}."
    own = {(access.program, access.elements.tobytes()) for access in loads}
    if len({elements for _, elements in own}) < len(own):
        raise Wrong(
            message,
            "Several programs load the same block of positions: take the batch out of the grid, and loop over it.",
        )
    if len(own) < len(loads):
        raise Wrong(
            message, "A program loads its block of positions in every turn: load it once, before the loop over the batch."
        )
    raise Wrong(message, "The blocks of positions overlap: each belongs to one program, and is loaded once.")


def _illegal_positions(error: tracing.IllegalAccess) -> str:
    tensor = error.trace.launches[-1].tensors.get(error.tensor)
    if tensor is None or tensor.ndim != 2 or error.kind != "load" or error.element < 0 or "mask" not in error.source:
        return ""
    return (
        "positions has n * d elements, and no batch dimension: its offsets are the same for every index of the batch, and so "
        "is their mask, offsets < n * d. For tokens, add the batch's index times n * d."
    )


def _positions_clue(attempt: Attempt) -> str:
    size = attempt.arguments["positions"].numel()
    for loaded, stored in _programs(attempt, "positions"):
        if stored and loaded and {element % size for element in stored} - loaded:
            return (
                "A program adds other elements of positions than belong to what it stores: for each index of the batch they are "
                "the same, at the offsets in (n, d)."
            )
    return ""


def add_positions(function: Callable) -> Verdict:
    """Lesson 02: `function(tokens, positions)` returns (batch, n, d) + (n, d), and reads each element of positions once."""

    def build(shape, dtype, scale):
        return {"tokens": draw(shape, dtype, scale), "positions": draw(shape[1:], dtype, scale)}

    def first_token(tokens, positions):
        return tokens + positions[:1]

    mistakes = [
        ("The result is tokens: positions was never added.", lambda tokens, positions: tokens),
        ("The result is positions, repeated: tokens was never added.", lambda tokens, positions: positions.expand(tokens.shape)),
        ("The result is tokens - positions: add them.", lambda tokens, positions: tokens - positions),
        ("The result is tokens * positions: add them.", lambda tokens, positions: tokens * positions),
        (
            "Every token gets the position of the first one: positions has a row for each token.",
            first_token,
        ),
        (
            "All images get the tokens of the first one: tokens is read at the batch's index times n * d, plus the offsets.",
            lambda tokens, positions: (tokens[:1] + positions).expand(tokens.shape),
        ),
        (
            "positions is added twice from the second image on: keep what you loaded as it is, and add it to each image anew.",
            lambda tokens, positions: (
                tokens + positions * torch.arange(1, len(tokens) + 1, device=tokens.device).double()[:, None, None]
            ),
        ),
        (
            "Each image is added to the one before: the sum of two images' tokens is stored.",
            lambda tokens, positions: tokens.cumsum(0) + positions,
        ),
        ("Zeros were stored: load tokens and positions, and store their sum.", lambda tokens, positions: 0 * tokens),
    ]
    shapes = [(1, 1, 1), (2, 1, 1), (2, 3, 5), (3, 5, 130), (4, 130, 5), (1, 33, 40), (2, 64, 64), (2, 197, 48), (0, 3, 5)]
    exercise = Exercise(
        torch.add,
        matrix_cases(build, shapes),
        large_matrix(build, (33, 197, 768)),
        mistakes,
        f"shapes (1, 1, 1) to (2, 197, 48), a batch of none among them, {_TYPES}; one launch, each element of tokens and of "
        "positions read once, every element stored once, inputs unchanged",
        [
            one_launch("One launch does it: the programs share out positions, and each loops over the batch."),
            read_by_the_kernel(
                "positions",
                "PyTorch has written positions out for the whole batch first. Hand the kernel positions as it is, (n, d).",
            ),
            read_by_the_kernel("tokens", "PyTorch has done something to tokens first: hand the kernel tokens as it is."),
            _positions_read_once,
            read_once("tokens"),
            nothing_else("Load tokens and positions, and nothing that was written on the way."),
            tiles_stored_once,
        ],
        clues=[_positions_clue],
        illegal=_illegal_positions,
    )
    return judge(function, exercise)
