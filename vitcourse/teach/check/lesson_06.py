"""The checks of lesson 06: matrix products, tile by tile.

A product of float32 on a GPU may go through tf32, which is what `tl.dot` does unless it is told otherwise: a reader who leaves
it so is right. So every value in a float32 case is one that float16 holds, times a power of two. tf32 has as many digits
and float32's range: it holds these values exactly, their products are exact in float32, and what is left is the rounding of the
sums. The reference adds up in float32 as well, whatever the type, as every kernel of the course does.
"""

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .. import trace as tracing
from .judge import (
    GUARD,
    WITH_AND,
    Attempt,
    Case,
    Exercise,
    Verdict,
    Wrong,
    _mask_of,
    _touches,
    draw,
    index_text,
    judge,
    judge_plain,
    number,
    type_name,
)
from .lesson_02 import _LAYOUTS, read_by_the_kernel

# ---- Tiles and traffic, in numbers ------------------------------------------------------------------------------------------


def tile_of(function: Callable) -> Verdict:
    """Lesson 06: `function(program, tiles_m, tiles_n, group)` returns (tile_m, tile_n), the tile that a program owns.

    The grouped order: groups of `group` tile rows, the last one with what is left; within a group column by column.
    """

    def reference(program, tiles_m, tiles_n, group):
        first = program // (group * tiles_n) * group
        height = min(tiles_m - first, group)
        within = program % (group * tiles_n)
        return first + within % height, within // height

    def normal(result):
        if isinstance(result, torch.Tensor) and result.numel() == 2:
            result = tuple(result)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise Wrong(f"Your function returned a {type(result).__name__}.", "Return two numbers: (tile_m, tile_n).")
        return number(result[0]), number(result[1])

    def unclamped(program, tiles_m, tiles_n, group):
        within = program % (group * tiles_n)
        return program // (group * tiles_n) * group + within % group, within // group

    def group_number(program, tiles_m, tiles_n, group):
        tile_m, tile_n = reference(program, tiles_m, tiles_n, group)
        number_of_group = program // (group * tiles_n)
        return tile_m - number_of_group * group + number_of_group, tile_n

    def by_tiles_m(program, tiles_m, tiles_n, group):
        first = program // (group * tiles_m) * group
        height = max(min(tiles_m - first, group), 1)
        within = program % (group * tiles_m)
        return first + within % height, within // height

    def not_within(program, tiles_m, tiles_n, group):
        first = program // (group * tiles_n) * group
        height = min(tiles_m - first, group)
        return first + program % height, program % (group * tiles_n) // height

    def past_the_group(program, tiles_m, tiles_n, group):
        first = program // (group * tiles_n) * group
        height = min(tiles_m - first, group)
        return first + program % (group * tiles_n) % height, program // height

    def along_n(program, tiles_m, tiles_n, group):
        return reference(program, tiles_n, tiles_m, group)[::-1]

    def all_of(*shape):
        return [(program, *shape) for program in range(shape[0] * shape[1])]

    generator = np.random.default_rng()
    drawn = [tuple(map(int, generator.integers(2, 9, 3))) for _ in range(4)]
    cases = [
        *all_of(4, 3, 2),
        *all_of(5, 3, 3),
        *all_of(2, 5, 4),
        *all_of(3, 2, 1),
        *((int(generator.integers(0, shape[0] * shape[1])), *shape) for shape in drawn),
    ]
    mistakes = [
        ("The last group may be lower than the others: within it divide by the rows that it has, min(tiles_m - first, group).",
         unclamped),
        ("That is row by row over all columns, as without groups: within a group go down a column first.",
         lambda program, tiles_m, tiles_n, group: divmod(program, tiles_n)),
        ("That goes down all tile rows: a column ends at the last row of its group.",
         lambda program, tiles_m, tiles_n, group: divmod(program, tiles_m)[::-1]),
        ("The order is (tile_m, tile_n): yours is the other way round.", lambda *case: reference(*case)[::-1]),
        ("The groups are of tile columns: a group is `group` tile rows, and as wide as the matrix.", along_n),
        ("The groups are of tile columns, and the pair is the other way round.", lambda *case: along_n(*case)[::-1]),
        ("A group of rows has group * tiles_n tiles: tiles_m was taken for tiles_n.", by_tiles_m),
        ("The group's first row is its number times group.", group_number),
        ("Row within the group: of the program's number in its group, program % (group * tiles_n).", not_within),
        ("Column within the group: of the program's number in its group, program % (group * tiles_n).", past_the_group),
        ("The row is counted within its group: add the group's first row.",
         lambda *case: (reference(*case)[0] % case[3], reference(*case)[1])),
    ]  # fmt: skip
    return judge_plain(
        function,
        "tile_of",
        cases,
        reference,
        mistakes,
        "Draw the 12 tiles of 4 rows and 3 columns, and number them in groups of 2 rows: down the first column of a group, then "
        "down the next. Which group a program is in and which number it has there are a division and its remainder.",
        "every program of 4 x 3 tiles in groups of 2, of 5 x 3 in groups of 3, of 2 x 5 in a group of 4, of 3 x 2 in groups of 1 "
        "and numbers drawn at random",
        normal,
    )


def matmul_traffic(function: Callable) -> Verdict:
    """Lesson 06: `function(M, N, K, block_m, block_n)`, the bytes that all programs of a matmul read and write together.

    Elements of 2 bytes. A program owns a tile of block_m x block_n: it reads its rows of a and its columns of b once, and
    writes its tile. Sizes are multiples of the blocks.
    """

    def reference(M, N, K, block_m, block_n):
        return 2 * (N // block_n * M * K + M // block_m * K * N + M * N)

    cases = [
        (64, 32, 16, 32, 32),
        (128, 64, 32, 32, 16),
        (32, 32, 64, 32, 32),
        (50432, 3072, 768, 128, 256),
        *(
            (m * bm * bn, n * bm * bn, 16 * k, bm, bn)
            for m, n, k, bm, bn in np.random.default_rng().integers(2, 9, (3, 5)).tolist()
        ),
    ]
    mistakes = [
        ("That is the number of elements: each has 2 bytes.", lambda *case: reference(*case) // 2),
        ("These are elements of 2 bytes, not of 4.", lambda *case: 2 * reference(*case)),
        ("Each matrix is counted once: programs in one row of tiles all read the same rows of a, each of them for itself.",
         lambda M, N, K, bm, bn: 2 * (M * K + K * N + M * N)),
        ("The output is written as well, M * N elements.", lambda M, N, K, bm, bn: 2 * (N // bn * M * K + M // bm * K * N)),
        ("The output is written once: it stays in registers till a program's tile is finished.",
         lambda M, N, K, bm, bn: 2 * (N // bn * M * K + M // bm * K * N + 2 * M * N)),
        ("The columns of b are read as well, by every row of tiles.", lambda M, N, K, bm, bn: 2 * (N // bn * M * K + M * N)),
        ("The rows of a are read as well, by every column of tiles.", lambda M, N, K, bm, bn: 2 * (M // bm * K * N + M * N)),
        ("The two are exchanged: a is read once for each column of tiles, N / block_n times, and b M / block_m times.",
         lambda M, N, K, bm, bn: 2 * (M // bm * M * K + N // bn * K * N + M * N)),
        ("Every program reads its rows of a, block_m * K elements, not all of a.",
         lambda M, N, K, bm, bn: 2 * (M // bm * (N // bn) * (M * K + K * N) + M * N)),
        ("That is what one program moves: there are (M / block_m) * (N / block_n) of them.",
         lambda M, N, K, bm, bn: 2 * (bm * K + K * bn + bm * bn)),
        ("Without tiles every element of c takes a row and a column of its own: a tile of block_m x block_n shares them.",
         lambda M, N, K, bm, bn: 2 * (2 * M * N * K + M * N)),
        ("Those are operations: count the elements that are read and written.", lambda M, N, K, bm, bn: 2 * M * N * K),
    ]  # fmt: skip
    return judge_plain(
        function,
        "matmul_traffic",
        cases,
        reference,
        mistakes,
        "One program reads block_m rows of a and block_n columns of b, each K long, and writes block_m * block_n elements. Then: "
        "how many programs are there? 2 bytes an element.",
        "square and oblong tiles, one tile, ViT-B/16's first MLP layer at 256 images, and numbers drawn at random",
        number,
    )


# ---- Products to try: lesson 07 does as well ---------------------------------------------------------------------------------

#: A running sum in float16 of this many products of 1 and a third of 64 is off by more than 500 of 58,667: float16's numbers
#: are 32 apart there, and every sum of a power of two of these products lies a third of the way between two of them.
LONG = 2752
THIRD = 64 / 3

LARGE = ", large values"
TINY = ", tiny values"


def exact(size: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Values as `draw` has them, that float16 holds: tf32 does too. scale: a power of two."""
    if dtype == torch.float32:
        return draw(size, torch.float16).float() * scale
    return draw(size, dtype, scale)


def rounding(K: int, scale: float = 1.0) -> float:
    """What a sum of K products of such values may be off by in float32, added up in any order, tensor cores' included."""
    return 4e-6 * K * scale


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """float64 as it is, everything else in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def pieces(K: int, block: int) -> Iterator[tuple[int, int]]:
    """The steps along K: (start, stop)."""
    return ((start, min(start + block, K)) for start in range(0, K, block))


#: Steps along K that a reader is likely to take.
STEPS = (32, 16, 64, 128)


def in_steps(hint: str, term: Callable) -> list[tuple[str, Callable]]:
    """A mistake in the loop along K, for each likely step: `term(a, b, start, stop)` is what the loop adds in one turn."""

    def at(block):
        def mistake(a, b, *rest):
            zero = torch.zeros((a.shape[0], b.shape[1]), dtype=a.dtype, device=a.device)
            return sum((term(a, b, start, stop) for start, stop in pieces(a.shape[1], block)), zero)

        return mistake

    return [(hint, at(block)) for block in STEPS]


def _memory(tensor: torch.Tensor, start: int, rows: int, columns: int) -> torch.Tensor:
    """What a block of `rows` by `columns` at this tensor's strides holds that begins at element `start`; NaN past the end."""
    span = tracing._span(tensor)
    i, j = torch.arange(rows, device=tensor.device)[:, None], torch.arange(columns, device=tensor.device)[None, :]
    where = start + i * tensor.stride(0) + j * tensor.stride(1)
    found = tensor.as_strided((span,), (1,))[where.clamp(max=span - 1)]
    return torch.where(where < span, found, math.nan)


LATER_STEPS = (
    "The first step along K is right, and the later ones read the wrong part of {0}. How many elements apart in memory are two "
    "neighbours of {0} along K, and by how many does its pointer move on?"
)


def product_mistakes() -> list[tuple[str, Callable]]:
    """Mistakes of a loop along K, and of what is around it: functions of a (M, K) and b (K, N), and whatever else there is."""

    def wrong_b_step(a, b, start, stop):
        return a[:, start:stop] @ _memory(b, start, stop - start, b.shape[1])

    def wrong_a_step(a, b, start, stop):
        return _memory(a, start, a.shape[0], stop - start) @ b[start:stop]

    def whole_steps(block):
        def mistake(a, b, *rest):
            end = a.shape[1] // block * block
            return a[:, :end] @ b[:end]

        return mistake

    return [
        ("Zeros were stored: is every step added, accumulator = tl.dot(a, b, accumulator), and does the loop make a turn where K "
         "is smaller than BLOCK_K?", lambda a, b, *rest: 0 * (a @ b)),
        *in_steps("The pointers of a and b stay where they are: after each step move both on by BLOCK_K along K, times the "
                  "stride of that direction.",
                  lambda a, b, start, stop: a[:, : stop - start] @ b[: stop - start]),
        *in_steps("The pointers of a stay where they are: after each step they move on by BLOCK_K * a_column_stride.",
                  lambda a, b, start, stop: a[:, : stop - start] @ b[start:stop]),
        *in_steps("The pointers of b stay where they are: after each step they move on by BLOCK_K * b_row_stride.",
                  lambda a, b, start, stop: a[:, start:stop] @ b[: stop - start]),
        *in_steps(LATER_STEPS.format("b"), wrong_b_step),
        *in_steps(LATER_STEPS.format("a"), wrong_a_step),
        *in_steps("Only the last step along K is in the result: add each to the accumulator, tl.dot(a, b, accumulator).",
                  lambda a, b, start, stop: (a[:, start:stop] @ b[start:stop]) * (stop == a.shape[1])),
        *in_steps("Only the first step along K is in the result: a loop goes on, range(0, K, BLOCK_K).",
                  lambda a, b, start, stop: (a[:, start:stop] @ b[start:stop]) * (start == 0)),
        *(("The last piece of K is missing: it need not be a multiple of BLOCK_K, and the loop is range(0, K, BLOCK_K).",
           whole_steps(block)) for block in STEPS),
        ("The result is stored transposed: element (m, n) of a contiguous c lies at m * N + n.",
         lambda a, b, *rest: (a @ b).T.reshape(a.shape[0], b.shape[1])),
    ]  # fmt: skip


def long_sum(attempt: Attempt) -> str:
    """A wrong sum of many products in half precision, that was right in float32."""
    if str(LONG) not in attempt.case.label:
        return ""
    return (
        "The shorter sums were right. This one is carried in the input's type, which has too few digits for it: the accumulator "
        "is tl.zeros((BLOCK_M, BLOCK_N), tl.float32), and is converted when it is stored."
    )


def out_of_range(attempt: Attempt) -> str:
    """Values in float32 that float16 does not hold."""
    single = all(one.dtype == torch.float32 for one in attempt.arguments.values() if isinstance(one, torch.Tensor))
    if not single or not (LARGE in attempt.case.label or TINY in attempt.case.label):
        return ""
    return "Ordinary values were right, and these do not fit in float16: a, b or the accumulator is converted to it on the way."


def strides_clue(attempt: Attempt) -> str:
    """Which strides a matmul used that has read a or b with the wrong ones."""
    a, b = (attempt.arguments[name].double() for name in "ab")
    stored = torch.from_numpy(~attempt.unwritten).to(attempt.result.device)

    def matches(other: torch.Tensor) -> bool:
        return bool(((attempt.result.double() - other).abs() <= attempt.tolerance)[stored].all())

    for name, roles in (("b", "k n"), ("a", "m k")):
        tensor, partner = attempt.arguments[name], attempt.arguments["a" if name == "b" else "b"]
        down, across = tensor.stride()
        i, j = roles.split()
        right = f"Element ({i}, {j}) of {name} is at {i} * {name}_row_stride + {j} * {name}_column_stride."
        guesses = [
            ((tensor.shape[1], 1), f"{name} is read as if it were contiguous: its strides say where an element lies"),
            ((across, down), f"{name}'s two strides are exchanged"),
            ((down, 1), f"{name}'s column stride is left out: neighbours in a row need not be neighbours in memory"),
            (partner.stride(), f"{name} is read with the other matrix's strides: each has its own"),
            ((1, across), f"{name}'s row stride is left out"),
        ]
        for strides, hint in guesses:
            if strides == tensor.stride() or sum((n - 1) * s for n, s in zip(tensor.shape, strides)) >= tracing._span(tensor):
                continue
            guess = tensor.as_strided(tensor.shape, strides).double()
            if matches(a @ guess if name == "b" else guess @ b):
                return f"{hint}. {right}"
    return ""


def tile_gaps(attempt: Attempt) -> str:
    """For an output of which tiles were never stored while programs lay past the end."""
    if attempt.trace is None or math.prod(attempt.trace.launches[-1].grid[1:]) < 2:
        return ""
    stores = [access for access in attempt.trace.accesses if access.kind == "store"]
    if stores and any(access.elements.size == 0 for access in stores):
        return (
            "Some programs lie past the end of the output, and some of its tiles belong to none: which axis of the grid counts "
            "the tiles along M, and which those along N? tl.program_id has to ask for the same."
        )
    return ""


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def left_of_K(kernel: Callable) -> str:
    """What k is compared with in the loop along K: all of K where k is counted from the loop's start, else what is left."""
    return "K" if re.search(r"\bk\w*\s*=[^=\n]*\bstart\b", inspect.getsource(kernel)) else "K - start"


def product_outside(first: str, second: str, places: dict[str, str]) -> Callable[[tracing.IllegalAccess], str]:
    """The hint for a kernel that leaves its operands along K, or its output; they are named so, and `places` are addresses."""

    def hint(error: tracing.IllegalAccess) -> str:
        tensor = error.trace.launches[-1].tensors.get(error.tensor)
        if not 0 <= error.element < error.size + GUARD + (1 << 20) or tensor is None or tensor.ndim < 2:
            return ""
        before = [a for a in error.trace.accesses if a.program == error.program and a.launch == len(error.trace.launches) - 1]
        if error.kind == "load" and any(access.kind == "store" for access in before):
            return (
                "This program has stored a tile, and the next one begins: pointers, offsets and accumulator start anew for every "
                "tile, inside the loop over the tiles."
            )
        if counter := _never_moves(error.trace.launches[-1].function):
            return f"The loop asks for {counter} in each turn, and nothing in it changes {counter}: it moves on by BLOCK_K."
        mask = _mask_of(error.trace.launches[-1].function, error.source)
        if error.kind != "load":
            if mask is None:
                return "The last tiles reach past the end of M and of N: mask the store, (m < M)[:, None] & (n < N)[None, :]."
            return ""
        name = first if error.tensor.startswith(first) else second if error.tensor.startswith(second) else ""
        if not name:
            return ""
        row = "m[:, None] < M" if name == first else "n[None, :] < N"
        step = "k[None, :]" if name == first else "k[:, None]"
        left = left_of_K(error.trace.launches[-1].function)
        if mask is None:
            if "mask" in error.source:
                return ""
            return f"This load has no mask, and tiles reach past the end of {name} both ways: ({row}) & ({step} < {left})."
        if any(isinstance(node, ast.BoolOp) for node in ast.walk(mask)):
            return WITH_AND
        compared = [node for node in ast.walk(mask) if isinstance(node, ast.Compare)]
        if any(isinstance(operator, (ast.LtE, ast.GtE)) for node in compared for operator in node.ops):
            return "The mask lets the index just past the end through: it is <, not <=."
        along = [node for node in compared if "K" in _names(node)]
        if not along:
            return (
                f"The mask says nothing of K: the last step along K reaches past the end of {name}, unless K is a multiple of "
                f"BLOCK_K. Add {step} < {left}."
            )
        if all(_names(node) <= {"tl", "K", "BLOCK_K"} for node in along) and any(_touched(a, tensor) for a in before):
            return (
                "The mask compares with K in every step, and the later ones begin at start, not at 0: what is left there is "
                "K - start."
            )
        if len(compared) == 1:
            return f"The mask looks at K only, and the last tiles reach past the end the other way as well: {row}."
        if counter := _counts_steps(error.trace.launches[-1].function, along):
            return f"The loop counts steps, and the mask elements: what is left is K - {counter} * BLOCK_K."
        return (
            f"The mask names both directions. Does it compare as {row} and {step} < {left}, each along its own axis, with "
            f"what is left of K in elements? Then it is the address: {places[name]}, and steps go on from there."
        )

    return hint


def _counts_steps(kernel: Callable, along: list[ast.Compare]) -> str:
    """The variable of a loop over tl.cdiv(K, ...) steps that a comparison with K takes for elements; "" where there is none."""
    for loop in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kernel)))):
        if isinstance(loop, ast.For) and isinstance(loop.target, ast.Name) and "cdiv(K" in ast.unparse(loop.iter):
            name = loop.target.id
            if any(name in _names(node) and "*" not in ast.unparse(node) for node in along):
                return name
    return ""


def _never_moves(kernel: Callable) -> str:
    """The variable of a `while` that the loop's body leaves as it is; "" where there is none."""
    for loop in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kernel)))):
        if isinstance(loop, ast.While) and isinstance(loop.test, ast.Compare) and isinstance(loop.test.left, ast.Name):
            names = [node for part in loop.body for node in ast.walk(part) if isinstance(node, ast.Name)]
            if loop.test.left.id not in {name.id for name in names if isinstance(name.ctx, ast.Store)}:
                return loop.test.left.id
    return ""


def _stores_behind_its_loops(kernel: Callable) -> bool:
    """Whether a kernel has a loop around another, and no store inside of the outer one."""
    for loop in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kernel)))):
        if isinstance(loop, (ast.For, ast.While)) and any(isinstance(part, (ast.For, ast.While)) for part in loop.body):
            return "tl.store" not in ast.unparse(loop)
    return False


def _touched(access: tracing.Access, tensor: torch.Tensor) -> bool:
    start = tensor.data_ptr()
    return bool(access.addresses.size) and start <= int(access.addresses[0]) < start + tracing._span(tensor) * tensor.itemsize


def contiguous_result(attempt: Attempt) -> None:
    if not attempt.result.is_contiguous():
        raise Wrong(
            "The values are right, but the result is not contiguous.",
            "Allocate torch.empty((M, N), dtype=a.dtype, device=a.device), and store element (m, n) at m * N + n.",
        )


def one_product_launch(attempt: Attempt) -> None:
    if attempt.trace is not None and len(attempt.trace.launches) != 1:
        raise Wrong(
            f"The values are right, but {len(attempt.trace.launches)} kernels were launched.",
            "One launch does it: its programs share out the tiles of c, and each walks along K for its own.",
        )


def product_stored_once(attempt: Attempt) -> None:
    """Every element of the result is stored exactly once, and without atomics."""
    if attempt.trace is None:
        return
    if any(access.kind == "atomic" for access in attempt.trace.accesses):
        raise Wrong(
            "The values are right, but programs meet in atomic updates.",
            "One program owns a tile of c and sums all of K for it: then a plain tl.store is enough.",
        )
    twice = attempt.trace.owners(attempt.result).twice
    if not twice.any():
        return
    message = f"The values are right, but {index_text(twice)} is stored more than once."
    owners: dict[bytes, list] = {}
    for access in attempt.trace.accesses:
        if access.kind == "store" and _touches(access, attempt.result):
            owners.setdefault(access.elements.tobytes(), []).append(access.program)
    if any(len(set(programs)) > 1 for programs in owners.values()):
        raise Wrong(message, "Several programs do the same tile: which tile is a program's own follows from tl.program_id.")
    if any(len(programs) > 1 for programs in owners.values()):
        raise Wrong(message, "A program stores its tile more than once: store after the loop along K, not in each of its turns.")
    raise Wrong(message, "The tiles overlap: they start BLOCK_M rows and BLOCK_N columns apart.")


def _by_pytorch(name: str) -> str:
    return (
        f"PyTorch has copied or changed {name} first, which moves all of it through memory once more. Hand your kernel {name} "
        f"itself, with {name}.stride(0) and {name}.stride(1)."
    )


def _reference(a, b, *rest):
    return (wide(a) @ wide(b)).to(a.dtype)


_PLACES = {
    "a": "element (m, k) of a is at m * a_row_stride + k * a_column_stride",
    "b": "element (k, n) of b is at k * b_row_stride + n * b_column_stride",
}
_LAYOUT_NAMES = [name for name in _LAYOUTS if name != "contiguous"]


def _case(M, K, N, dtype, a="contiguous", b="contiguous", scale=1.0, note="", **more) -> Case:
    arguments = {
        "a": _LAYOUTS[a](M, K, lambda size: exact(size, dtype, scale)),
        "b": _LAYOUTS[b](K, N, lambda size: exact(size, dtype, scale if dtype == torch.float32 else 1.0)),
    }
    if K == LONG:
        arguments["a"].fill_(1.0)
        arguments["b"].fill_(THIRD)
    layout = "" if a == b == "contiguous" else f", {f'both {a}' if a == b else f'a {a}, b {b}'},"
    by = "".join(f" by {value} {name if value > 1 else name.removesuffix('s')}" for name, value in more.items())
    slack = rounding(K, float(arguments["a"].double().abs().amax() * arguments["b"].double().abs().amax()))
    return Case(f"({M}, {K}) @ ({K}, {N}){by}{layout} in {type_name(dtype)}{note}", {**arguments, **more}, slack)


# ---- The exercises on kernels -----------------------------------------------------------------------------------------------


def matmul(function: Callable) -> Verdict:
    """Lesson 06: `function(a, b)` returns a @ b, contiguous and in a's type, for matrices of any strides.

    Float32 values are such that tf32 holds them: a `tl.dot` that is left as it is, is right.
    """

    def cases(dtypes):
        single, low = torch.float32, [dtype for dtype in dtypes if dtype != torch.float32]
        # Tiles of 32: in the second there are two rows of four tiles, with three steps along K, and nothing divides anything.
        found = [_case(*shape, single) for shape in ((3, 5, 4), (40, 70, 100), (1, 1, 1), (70, 33, 20), (64, 64, 32))]
        found += [_case(*shape, single) for shape in ((1, 70, 40), (40, 70, 1), (33, 1, 34))]
        found += [_case(20, 40, 36, single, "contiguous", layout) for layout in _LAYOUT_NAMES]
        found += [_case(36, 40, 20, single, layout, "contiguous") for layout in _LAYOUT_NAMES]
        found += [_case(20, 40, 36, single, "transposed", "transposed")]
        found += [_case(20, 40, 36, single, scale=scale, note=note) for scale, note in ((2.0**20, LARGE), (2.0**-30, TINY))]
        found += [_case(*shape, dtype) for dtype in low for shape in ((3, 5, 4), (40, 70, 100))]
        found += [_case(20, 40, 36, dtype, "contiguous", "transposed") for dtype in low]
        found += [_case(20, 40, 36, dtype, scale=64.0, note=LARGE) for dtype in low]
        found += [_case(20, 40, 36, dtype, scale=2.0**-10, note=TINY) for dtype in low]
        return found + [_case(2, LONG, 3, dtype) for dtype in low]

    exercise = Exercise(
        _reference,
        cases,
        lambda: _case(515, 770, 1030, torch.float16, "contiguous", "transposed"),
        product_mistakes(),
        "(3, 5) @ (5, 4) to (40, 70) @ (70, 100), one row, one column, K of 1 and of 2752; contiguous, transposed, every second "
        "column, padded rows, expanded; float32 and float16, large and tiny values; one launch, which reads a and b where they "
        "lie, no access outside of a tensor, every element stored once, inputs unchanged",
        [
            one_product_launch,
            read_by_the_kernel("a", _by_pytorch("a")),
            read_by_the_kernel("b", _by_pytorch("b")),
            contiguous_result,
            product_stored_once,
        ],
        clues=[strides_clue, long_sum, out_of_range],
        illegal=product_outside("a", "b", _PLACES),
        gaps=tile_gaps,
    )
    return judge(function, exercise)


def _walk(attempt: Attempt) -> None:
    """`programs` programs, or as many as there are tiles if those are fewer, which walk over the tiles."""
    if attempt.trace is None:
        return
    programs = attempt.arguments["programs"]
    launched = math.prod(attempt.trace.launches[0].grid)
    stores = [access.program for access in attempt.trace.accesses if access.kind == "store" and access.elements.size]
    if launched > programs:
        raise Wrong(
            f"The values are right, but {launched} programs were launched, and {programs} were asked for.",
            "The grid is (programs,), whatever the matrix's size; a loop over the tiles in the kernel does the rest.",
        )
    if launched < programs and len(stores) > len(set(stores)):
        raise Wrong(
            f"The values are right, but of {programs} programs that were asked for only {launched} ran, and looped.",
            "The grid is (programs,): with fewer, multiprocessors stand idle.",
        )


def _later_tiles(attempt: Attempt) -> str:
    """Whether every program's first tile is right, and the wrong ones come after it."""
    if attempt.trace is None or attempt.unwritten.any():
        return ""
    tiles: dict[tuple, list] = {}
    for access in attempt.trace.accesses:
        if access.kind == "store" and access.elements.size:
            tiles.setdefault(access.program, []).append(bool(attempt.wrong.ravel()[access.elements].any()))
    if any(own[0] for own in tiles.values()) or not any(any(own) for own in tiles.values()):
        return ""
    return (
        "Each program's first tile is right, and later ones are not: accumulator, offsets and pointers start anew for every "
        "tile, inside the loop over the tiles."
    )


def _missing_tiles(attempt: Attempt) -> str:
    if attempt.trace is None or not attempt.unwritten.any():
        return ""
    launch = attempt.trace.launches[-1]
    stores = [access for access in attempt.trace.accesses if access.kind == "store"]
    if not stores or not math.prod(launch.grid):
        return ""
    twice = attempt.trace.owners(attempt.result).twice.any()
    if twice or any(access.elements.size == 0 for access in stores):
        return (
            "Some tiles are stored twice, or lie past the end of c, and others never: there are tiles_n in a row of tiles, so a "
            "tile is number tile // tiles_n down and number tile % tiles_n across."
        )
    if len(stores) == len({access.program for access in stores}) and _stores_behind_its_loops(launch.function):
        return (
            "The store stands behind the loop over the tiles, so each program stores its last tile only: it belongs inside, "
            "after the loop along K."
        )
    if len(stores) == len({access.program for access in stores}):
        return (
            "Every program does one tile and ends: it goes on with a loop, "
            "for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0))."
        )
    return (
        "Some tiles belong to no program: with tiles_m = tl.cdiv(M, BLOCK_M) and tiles_n = tl.cdiv(N, BLOCK_N), program i takes "
        "every tile from i to tiles_m * tiles_n that is a multiple of programs after it."
    )


def persistent_matmul(function: Callable) -> Verdict:
    """Lesson 06: `function(a, b, programs)` returns a @ b from `programs` programs that walk over the tiles of the result.

    Any strides; the result is contiguous. Where there are fewer tiles than programs, as many programs as tiles will do as well.
    """

    def cases(dtypes):
        single, low = torch.float32, [dtype for dtype in dtypes if dtype != torch.float32]
        # Tiles of 32: 8 of them, two rows of four, by 3 programs.
        found = [_case(3, 5, 4, single, programs=1), _case(40, 70, 100, single, programs=3), _case(1, 1, 1, single, programs=4)]
        found += [_case(70, 33, 20, single, programs=2), _case(64, 64, 32, single, programs=1)]
        found += [_case(1, 70, 40, single, programs=2), _case(70, 40, 1, single, programs=2)]
        found += [_case(36, 40, 70, single, "contiguous", "transposed", programs=4)]
        found += [_case(70, 40, 36, single, "transposed", "with padded rows", programs=2)]
        found += [_case(260, 16, 260, single, programs=2)]  # nine tiles, if they are of 128
        found += [_case(20, 40, 36, single, scale=2.0**20, note=LARGE, programs=1)]
        found += [_case(20, 40, 36, single, scale=2.0**-30, note=TINY, programs=1)]
        found += [_case(40, 70, 100, dtype, programs=3) for dtype in low]
        return found + [_case(2, LONG, 3, dtype, programs=2) for dtype in low]

    exercise = Exercise(
        _reference,
        cases,
        lambda: _case(515, 770, 1030, torch.float16, "contiguous", "transposed", programs=132),
        product_mistakes(),
        "1 tile and many by 1 to 4 programs, more programs than tiles among them, one row, one column, K of 2752, transposed and "
        "padded matrices, float32 and float16, large and tiny values; one launch, which reads a and b where they lie, no access "
        "outside of a tensor, every element stored once, inputs unchanged",
        [
            one_product_launch,
            read_by_the_kernel("a", _by_pytorch("a")),
            read_by_the_kernel("b", _by_pytorch("b")),
            contiguous_result,
            product_stored_once,
            _walk,
        ],
        clues=[_later_tiles, strides_clue, long_sum, out_of_range],
        illegal=product_outside("a", "b", _PLACES),
        gaps=_missing_tiles,
    )
    return judge(function, exercise)
