"""The checks of lesson 07: a linear layer with what follows it, in one kernel.

As in lesson 06, values in float32 are such that tf32 holds them: a `tl.dot` that is left as it is, is right.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from .. import trace as tracing
from .judge import GUARD, Attempt, Case, Exercise, Verdict, Wrong, draw, judge, judge_plain, number, type_name
from .lesson_02 import loads_of, one_launch, read_by_the_kernel
from .lesson_04 import bytes_loaded
from .lesson_06 import STEPS, THIRD, exact, pieces, product_outside, product_stored_once, rounding, tile_gaps, wide

# ---- Layers to try ----------------------------------------------------------------------------------------------------------

_CANCELLING = ", a bias that nearly cancels the product"
_LARGE = ", large values"
_EQUAL = ", equal values"  # so that which sums half precision rounds is no matter of luck


def _operands(M: int, K: int, N: int, dtype: torch.dtype, scale: float = 1.0, note: str = "") -> dict[str, torch.Tensor]:
    """Operands of a linear layer. The sign of each element of the product is known, and no bias turns it but where K is 1.

    (0, 0) is negative, (0, 1) positive, and so on in turns: which element is wrong first is not a matter of luck.
    """
    m, n = torch.arange(M)[:, None], torch.arange(N)
    x = exact((M, K), dtype, scale).abs() * (-1) ** (m + 1)
    weight = exact((N, K), dtype).abs() * (-1) ** n[:, None]
    bias = exact((N,), dtype, 0.5 * scale).abs() * (-1) ** n
    if note == _CANCELLING:
        # Every product is 1024 and a little, which float16 holds to the nearest whole number, and bfloat16 to the nearest 8.
        x[:, 0], weight[:, 0], bias[:] = 32.0, 32.0, -1024.0
    return {"x": x, "weight": weight, "bias": bias}


def _label(M: int, K: int, N: int, dtype: torch.dtype, note: str = "") -> str:
    return f"x ({M}, {K}), weight ({N}, {K}){note} in {type_name(dtype)}"


def _slack(operands: dict[str, torch.Tensor]) -> float:
    x, weight = operands["x"].double(), operands["weight"].double()
    return rounding(x.shape[1], float(x.abs().amax() * weight.abs().amax())) if operands["x"].dtype == torch.float32 else 1e-3


def _outside(error: tracing.IllegalAccess) -> str:
    """For a kernel that leaves bias, its operands or its output."""
    tensor = error.trace.launches[-1].tensors.get(error.tensor)
    if tensor is not None and tensor.ndim == 1 and 0 <= error.element < error.size + GUARD:
        if "mask" not in error.source:
            return "This load has no mask, and the last tile reaches past the last column: mask=n < N, as bias has N elements."
        return "bias has one element for each column: load bias_ptr + n with mask=n < N."
    return product_outside("x", "weight", _PLACES)(error)


_PLACES = {
    "x": "element (m, k) of x is at m * K + k",
    "weight": "element (n, k) of weight is at n * K + k, and the block that tl.dot wants is (k, n)",
}


def _rounded(attempt: Attempt) -> str:
    """For a wrong result of operands whose product and bias nearly cancel."""
    if _CANCELLING not in attempt.case.label:
        return ""
    return (
        "Product and bias nearly cancel here, and only the digits of float32 hold what is left: the product was rounded to "
        "the input's type before bias was added. Add bias to the sum in float32; the store rounds."
    )


def _copied(name: str) -> str:
    return f"Part of the work is done outside of the kernel: it loads x, weight and bias itself. Hand it {name} as it is."


# ---- The exercises ----------------------------------------------------------------------------------------------------------


def linear(function: Callable) -> Verdict:
    """Lesson 07: `function(x, weight, bias)` returns relu(x @ weight.T + bias) from one kernel; all contiguous."""

    def build(M, K, N, dtype, scale=1.0, note=""):
        arguments = _operands(M, K, N, dtype, scale, note)
        return Case(_label(M, K, N, dtype, note), arguments, _slack(arguments))

    def cases(dtypes):
        single, low = torch.float32, [dtype for dtype in dtypes if dtype != torch.float32]
        # Tiles of 32: in the second there are two rows of four tiles, with three steps along K, and nothing divides anything.
        # The last has results near 0, where functions differ that are relu elsewhere.
        shapes = [(3, 5, 4), (40, 70, 100), (1, 1, 1), (70, 33, 20), (64, 64, 32), (1, 40, 70), (40, 70, 1), (9, 1, 12)]
        found = [build(*shape, single) for shape in shapes]
        found += [build(20, 40, 36, single, 2.0**20, _LARGE)]
        found += [build(*shape, dtype) for dtype in low for shape in shapes[:2]]
        found += [build(20, 40, 36, dtype, 64.0, _LARGE) for dtype in low]
        return found + [build(20, 40, 36, dtype, note=_CANCELLING) for dtype in low]

    def relu(z):
        return z.clamp(min=0)

    def layer(x, weight, bias):
        return x @ weight.T + bias

    def of_rows(bias, rows):
        """bias as a column: element m of it in row m."""
        return bias[torch.arange(rows, device=bias.device).clamp(max=len(bias) - 1)][:, None]

    def of_tiles(bias, block, first_only):
        n = torch.arange(len(bias), device=bias.device)
        return bias[n // block * block] if first_only else bias[n % block]

    def in_loop(block):
        return lambda x, w, b: relu(layer(x, w, b) + (len(list(pieces(x.shape[1], block))) - 1) * b)

    mistakes = [
        ("The result is the bare product: bias and relu are still to come, before the store.", lambda x, w, b: x @ w.T),
        ("relu comes after bias: add bias to the accumulator first.", lambda x, w, b: relu(x @ w.T) + b),
        ("relu was left out: what is below 0 becomes 0.", layer),
        ("bias was left out.", lambda x, w, b: relu(x @ w.T)),
        ("bias was subtracted: add it.", lambda x, w, b: relu(x @ w.T - b)),
        ("bias was multiplied: add it.", lambda x, w, b: relu(x @ w.T * b)),
        ("relu keeps what is above 0: tl.maximum, not tl.minimum.", lambda x, w, b: layer(x, w, b).clamp(max=0)),
        ("relu makes 0 of what is below 0; yours is the magnitude.", lambda x, w, b: layer(x, w, b).abs()),
        ("relu is asked for, the larger of the sum and 0: yours is GELU.", lambda x, w, b: functional.gelu(layer(x, w, b))),
        ("relu turns at zero and not at 1.", lambda x, w, b: layer(x, w, b) * (layer(x, w, b) >= 1)),
        ("relu is of the sum, x @ weight.T + bias: yours is of bias alone.", lambda x, w, b: x @ w.T + relu(b)),
        ("relu is of the sum: yours is of the product and of bias apart.", lambda x, w, b: relu(x @ w.T) + relu(b)),
        ("bias is added twice.", lambda x, w, b: relu(layer(x, w, b) + b)),
        ("bias is indexed with the row: it has one element for each column, bias_ptr + n, which is added as [None, :].",
         lambda x, w, b: relu(x @ w.T + of_rows(b, x.shape[0]))),
        *((hint, one) for block in STEPS for hint, one in (
            ("bias is added in every step along K: add it once, after the loop.", in_loop(block)),
            ("All columns of a tile get the bias of its first one: load a block, bias_ptr + n.",
             lambda x, w, b, block=block: relu(x @ w.T + of_tiles(b, block, True))),
            ("Every tile gets the bias of the first tile's columns: load bias_ptr + n, its own columns'.",
             lambda x, w, b, block=block: relu(x @ w.T + of_tiles(b, block, False))),
        )),
        ("Zeros were stored: is the accumulator what you store?", lambda x, w, b: 0 * (x @ w.T)),
        ("The result is relu(bias) everywhere: the accumulator was left out.", lambda x, w, b: 0 * (x @ w.T) + relu(b)),
    ]  # fmt: skip

    exercise = Exercise(
        lambda x, weight, bias: relu(wide(x) @ wide(weight).T + wide(bias)).to(x.dtype),
        cases,
        lambda: build(515, 770, 1030, torch.float16),
        mistakes,
        "x (3, 5) and 4 columns to x (40, 70) and 100, one row, one column, K of 1; float32 and float16, large values, a bias "
        "that nearly cancels the product; one launch, no access outside of a tensor, every element stored once, inputs unchanged",
        [
            one_launch(
                "The product goes out to memory and back: bias and relu take it from the accumulator, in the same launch."
            ),
            *(read_by_the_kernel(name, _copied(name)) for name in ("x", "weight", "bias")),
            product_stored_once,
        ],
        clues=[_rounded],
        illegal=_outside,
        gaps=tile_gaps,
    )
    return judge(function, exercise)


def _partial_sums(attempt: Attempt) -> None:
    """No atomics; one launch whose programs read the operands and store `splits` partial sums in float32."""
    trace, splits = attempt.trace, attempt.arguments["splits"]
    if trace is None:
        return
    if any(access.kind == "atomic" for access in trace.accesses):
        raise Wrong(
            "The values are right, but atomic updates add them up.",
            "Atomics arrive in any order, and sums of floats depend on it: the result changes from run to run. Let each share "
            "store its partial sums at a place of its own, and add them up in a second stage.",
        )
    for name in ("x", "weight"):
        if not loads_of(attempt, name):
            raise Wrong(f"The values are right, but the kernel does not read {name} itself.", _copied(name))
    stores = [access for access in trace.accesses if access.kind == "store" and access.launch == 0]
    # Of fewer steps than that some shares may be empty, and need not be stored.
    shared = splits > 1 and attempt.arguments["x"].shape[1] >= 64 * splits
    if shared and sum(access.elements.size for access in stores) < 2 * attempt.result.numel():
        raise Wrong(
            f"The values are right, but there is one partial sum for each element, and {splits} splits were asked for.",
            "The K of a tile is shared out: each of its programs owns a share, and stores what that sums to.",
        )
    if splits > 1 and any(access.itemsize < 4 for access in stores):
        raise Wrong(
            "The values are right, but the partial sums are in half precision.",
            "Allocate them with dtype=torch.float32: rounded once each, and then added up, they lose what the accumulator kept.",
        )


def split_linear(function: Callable) -> Verdict:
    """Lesson 07: `function(x, weight, bias, splits)` returns x @ weight.T + bias; K is cut into `splits` shares.

    In two stages: a kernel whose programs sum a share of K each and store partial sums, (splits, M, N) in float32, and a sum
    over the splits, which PyTorch may do. Where bias is added is left to the reader. No atomics.
    """

    def build(M, K, N, splits, dtype, note=""):
        arguments = _operands(M, K, N, dtype, note=note)
        label = _label(M, K, N, dtype, f", {splits} split{'s' * (splits != 1)}{note},")
        return Case(label, {**arguments, "splits": splits}, _slack(arguments))

    def cases(dtypes):
        single, low = torch.float32, [dtype for dtype in dtypes if dtype != torch.float32]
        # In the second two shares have two steps of 32 each; in the third nothing divides anything.
        shapes = [(3, 5, 4, 1), (3, 128, 4, 2), (40, 200, 50, 3), (3, 5, 4, 3), (1, 1, 1, 2), (32, 64, 64, 4), (33, 70, 1, 2)]
        found = [build(*shape, single) for shape in shapes] + [build(*shape, dtype) for dtype in low for shape in shapes[:3]]
        return found + [build(20, 64, 36, 2, dtype, _CANCELLING) for dtype in low]

    def shares(K, splits, share):
        return [(i * share, min((i + 1) * share, K)) for i in range(splits) if i * share < K]

    def even(K, splits, block):
        """Shares of whole steps."""
        steps = len(list(pieces(K, block)))
        return shares(K, splits, -(-steps // splits) * block)

    def summed(choose, times_bias=lambda splits: 1):
        def mistake(x, w, b, splits):
            zero = x.new_zeros((x.shape[0], w.shape[0]))
            terms = (x[:, first:last] @ w[:, first:last].T for first, last in choose(x.shape[1], splits))
            return sum(terms, zero) + times_bias(splits) * b

        return mistake

    def overlapping(block):
        """The last step of a share is not cut where the share ends."""

        def choose(K, splits):
            found = shares(K, splits, -(-K // splits))
            return [(start, min(start + block, K)) for first, last in found for start in range(first, last, block)]

        return choose

    def product(x, w):
        return x @ w.T

    one_share = "Only one share of K is in the result: add the partial sums of all of them up, .sum(0)."
    overlap = (
        "The shares overlap: one that is no multiple of BLOCK_K reaches into the next with its last step. Mask it with k < last, "
        "the share's own end, or let a share be a whole number of steps."
    )
    mistakes = [
        ("There is too much of bias in the result, the more the more splits there are. What are the partial sums of one element, "
         "and what do they add up to?", lambda x, w, b, splits: product(x, w) + splits * b),
        ("bias was left out.", lambda x, w, b, splits: product(x, w)),
        ("bias was subtracted: add it.", lambda x, w, b, splits: product(x, w) - b),
        ("bias is added in the kernel, and once more after the sum.", lambda x, w, b, splits: product(x, w) + 2 * b),
        ("Every share sums all of K: it goes from its own first to its own last.",
         lambda x, w, b, splits: splits * product(x, w) + b),
        ("Every share sums all of K, and adds bias: it goes from its own first to its own last, and one adds bias.",
         lambda x, w, b, splits: splits * (product(x, w) + b)),
        ("The partial sums were averaged: add them up, .sum(0).", lambda x, w, b, splits: product(x, w) / splits + b),
        ("The partial sums were averaged: add them up, .sum(0).", lambda x, w, b, splits: (product(x, w) + b) / splits),
        *((hint, summed(choose, times))
          for times in (lambda splits: 1, lambda splits: 0)
          for block in (*STEPS, 1)
          for hint, choose in (
              (one_share, lambda K, splits, block=block: even(K, splits, block)[:1]),
              (one_share, lambda K, splits, block=block: even(K, splits, block)[-1:]),
              (overlap, overlapping(block)),
              ("A share stops after one step: loop from its first to its last, range(first, last, BLOCK_K).",
               lambda K, splits, block=block: [(a, min(a + block, z)) for a, z in even(K, splits, block)]),
          )),
        ("The end of K is in no share: round up, tl.cdiv, and cut the last share at K.",
         summed(lambda K, splits: [(0, K // splits * splits)])),
        *(("The end of K is in no share: round up, tl.cdiv, and cut the last share at K.",
           summed(lambda K, splits, block=block: [(0, K // block // splits * block * splits)])) for block in STEPS),
        ("That is with relu, and this layer has none.", lambda x, w, b, splits: (product(x, w) + b).clamp(min=0)),
    ]  # fmt: skip

    def empty_shares(attempt):
        x, splits = attempt.arguments["x"], attempt.arguments["splits"]
        if attempt.result.isfinite().all():
            return ""
        if x.shape[1] >= 64 * splits:
            return (
                "NaN, and no input has one: partial sums that no program stored are added up. A share has a place of its own, "
                "from partial_ptr + split * M * N on."
            )
        return (
            "NaN, and no input has one: partial sums that no program stored are added up. With more splits than steps along K "
            "some shares are empty, and they have to store zeros."
        )

    exercise = Exercise(
        lambda x, weight, bias, splits: (product(wide(x), wide(weight)) + wide(bias)).to(x.dtype),
        cases,
        lambda: build(197, 3072, 768, 4, torch.float16),
        mistakes,
        "1 to 4 splits of K from 1 to 200, more splits than steps among them, one row, one column, float32 and float16; partial "
        "sums in float32, no atomics, no access outside of a tensor, inputs unchanged",
        [_partial_sums],
        clues=[empty_shares, _rounded],
        illegal=_outside,
        torch_may_finish=True,
    )
    return judge(function, exercise)


def _one_pass(attempt: Attempt) -> None:
    """No atomics; one launch that reads grad and output once, writes dz once, and partial sums of at most a row a program."""
    trace, dz = attempt.trace, attempt.results[0]
    if trace is None:
        return
    if any(access.kind == "atomic" for access in trace.accesses):
        raise Wrong(
            "The values are right, but atomic updates add dbias up.",
            "Atomics arrive in any order, and sums of floats depend on it: the result changes from run to run. Let each program "
            "store its column sums to a row of its own, and add the rows up in a second stage.",
        )
    if (trace.owners(dz).program < 0).any():
        raise Wrong("The values are right, but PyTorch wrote dz.", "The kernel that sums the columns stores dz as well.")
    if len(trace.launches) > 2:
        raise Wrong(
            f"The values are right, but {len(trace.launches)} kernels were launched.",
            "Two are enough: one that writes dz and partial sums, and one, or PyTorch, that adds those up.",
        )
    for name in ("grad", "output"):
        tensor = attempt.arguments[name]
        moved = bytes_loaded(attempt, tensor)
        if bytes_loaded(attempt, tensor, launch=0) < tensor.nbytes:
            raise Wrong(
                f"The values are right, but the first kernel does not read all of {name}.",
                "Part of the work is done outside of the kernel: it loads grad and output, and makes dz and the sums of them.",
            )
        if moved > tensor.nbytes:
            raise Wrong(
                f"The values are right, but {moved} bytes of {name} were read, and it has {tensor.nbytes}.",
                "Load each tile once: what goes out to dz is in registers, and is summed there.",
            )
    written = sum(access.bytes for access in trace.accesses if access.kind == "store" and access.launch == 0)
    if written == dz.nbytes:
        raise Wrong(
            "The values are right, but the kernel that writes dz stores no sums.",
            "Somebody reads all of dz once more to sum it. Sum a tile's columns in the same kernel, while they are in registers.",
        )
    if bytes_loaded(attempt, dz):
        raise Wrong("The values are right, but dz is read back.", "dz is still in registers: sum it there, in the same kernel.")
    if trace.owners(dz).twice.any():
        raise Wrong("The values are right, but parts of dz are stored more than once.", "The tiles are BLOCK_M by BLOCK_N apart.")


def _sums_outside(error: tracing.IllegalAccess) -> str:
    """For a store that leaves the partial sums, of which a program has a row."""
    tensors = error.trace.launches[-1].tensors
    tensor = tensors.get(error.tensor)
    if error.kind == "load" or tensor is None or not 0 <= error.element < error.size + GUARD:
        return ""
    if "mask" in error.source or tensor.numel() == max(other.numel() for other in tensors.values()):
        return ""
    return "This store has no mask, and the last tile reaches past the last column: mask=n < N, for a row of sums."


def _no_store(attempt: Attempt) -> str:
    if attempt.trace is None or not attempt.unwritten.all():
        return ""
    programs = any(math.prod(launch.grid) for launch in attempt.trace.launches)
    return f"No store goes to {attempt.name}: tl.store(dz_ptr + offsets, dz, mask=mask)." if programs and not attempt.part else ""


def activation_gradient(function: Callable) -> Verdict:
    """Lesson 07: `function(grad, output)` returns (dz, dbias), the gradients of output = relu(z), z = ... + bias.

    dz: grad where output > 0, else 0, in grad's type; dbias: the column sums of dz, in float32. In one pass: a kernel writes dz
    and partial column sums, which are added up in a second stage, by PyTorch if you like. No atomics.
    """

    def build(M, N, dtype, note=""):
        m, n = torch.arange(M)[:, None], torch.arange(N)
        # Columns have one sign each, so that no sum cancels, and one of three elements is below 0.
        size = torch.full((M, N), THIRD) if note == _EQUAL else draw((M, N), torch.float32).abs() * (50 if note == _LARGE else 1)
        grad = (size * (-1) ** n).to(dtype)
        output = (draw((M, N), torch.float32).abs() * ((m + n) % 3 != 1)).to(dtype)
        name = f"{M} row{'s' * (M != 1)} of {N} in {type_name(dtype)}{note}"
        # Rounding adds up over the rows, in whichever order.
        return Case(name, {"grad": grad, "output": output}, 2e-7 * M * float(size.amax()))

    def cases(dtypes):
        shapes = [(7, 5), (70, 100), (1, 1), (1, 40), (40, 1), (64, 32), (197, 33)]
        found = [build(*shape, torch.float32) for shape in shapes]
        low = [dtype for dtype in dtypes if dtype != torch.float32]
        found += [build(70, 100, dtype, _EQUAL) for dtype in low] + [build(7, 5, dtype) for dtype in low]
        return found + [build(197, 33, dtype, _LARGE) for dtype in dtypes]

    def gradient(grad, output):
        return torch.where(output > 0, grad, 0.0)

    def both(one):
        return lambda grad, output: (one(grad, output), wide(one(grad, output)).sum(0))

    def sums(one):
        return lambda grad, output: (gradient(grad, output), one(grad, output, gradient(grad, output)))

    def of_blocks(block, choose):
        """The sums of one block of rows."""

        def one(grad, output, dz):
            first, last = choose(list(pieces(len(dz), block)))
            return dz[first:last].sum(0)

        return one

    one_block = "dbias is the sum of one program's rows: add up the partial sums of all of them, .sum(0)."
    mistakes = [
        # Of dbias first: these have the right dz, and one with a wrong dz is asked about that before.
        ("dbias is the sum of dz: yours is of grad, without the mask.", sums(lambda grad, output, dz: wide(grad).sum(0))),
        ("dbias is the sum of dz: yours is of output.", sums(lambda grad, output, dz: wide(output).sum(0))),
        ("dbias is the sum of the columns, not their mean.", sums(lambda grad, output, dz: wide(dz).mean(0))),
        *(("The partial sums were averaged: add them up, .sum(0).",
           sums(lambda grad, output, dz, block=block: wide(dz).sum(0) / len(list(pieces(len(dz), block))))) for block in STEPS),
        *((one_block, sums(of_blocks(block, choose))) for block in (32, 16, 64, 128, 1)
          for choose in (lambda found: found[0], lambda found: found[-1])),
        ("The sums are of rows: each column has one, axis 0 of a tile.",
         sums(lambda grad, output, dz: torch.nn.functional.pad(dz.sum(1), (0, dz.shape[1]))[: dz.shape[1]])),
        ("relu's gradient is 0 where output is 0, too: the comparison is output > 0, and >= is true of every output of relu.",
         both(lambda grad, output: grad)),
        ("The mask is of grad: relu lets through where its output is above 0, whatever grad's sign.",
         both(lambda grad, output: gradient(grad, grad))),
        ("The mask is upside down: grad where output > 0, and 0 elsewhere.",
         both(lambda grad, output: torch.where(output > 0, 0.0, grad))),
        ("grad is multiplied by output: relu's slope is 1 or 0.", both(lambda grad, output: grad * output)),
        ("dz is grad where output > 0: yours is output where grad is.", both(lambda grad, output: gradient(output, grad))),
        ("dz is grad where output > 0: yours is output.", both(lambda grad, output: output)),
        ("dz is grad where output > 0: yours is 1 there.", both(lambda grad, output: (output > 0).to(grad.dtype))),
    ]  # fmt: skip

    def rounded_sums(attempt):
        if attempt.part != 1:
            return ""
        if not attempt.result.isfinite().all():
            return (
                "NaN or infinity, and no input has any: partial sums that no program stored are added up, or they do not fit in "
                "half precision. Every program stores its sums, in float32, at row tl.program_id(0), columns n."
            )
        over = attempt.result.double() - attempt.expected
        error = float(over.abs().max())
        if float(over[0].round()) != 0 and float((over - over[0].round()).abs().max()) <= attempt.tolerance:
            return "Lanes past the end of the rows count in the sums: load grad with other=0.0, which adds nothing."
        if attempt.arguments["grad"].dtype != torch.float32 and error <= 0.01 * float(attempt.expected.abs().max()):
            return (
                "Only about three digits are right, and float32 had all of them: the sum is in grad's type. Convert dz to "
                "float32 before tl.sum, and keep the partial sums in float32."
            )
        return ""

    def reference(grad, output):
        dz = gradient(grad, output)
        return dz, wide(dz).sum(0)

    exercise = Exercise(
        reference,
        cases,
        lambda: build(5003, 768, torch.float16),
        mistakes,
        "1 to 197 rows of 1 to 100, float32 and float16, large values; grad and output read once, dz written once, no atomics, "
        "no access outside of a tensor, inputs unchanged",
        [_one_pass],
        results=("dz", "dbias"),
        clues=[rounded_sums],
        illegal=_sums_outside,
        gaps=_no_store,
        torch_may_finish=True,
    )
    return judge(function, exercise)


def epilogue_bytes(function: Callable) -> Verdict:
    """Lesson 07: `function(M, N, itemsize)`, the bytes that a fused epilogue saves.

    Three kernels after the matmul: bias reads M * N and N elements and writes M * N; activation reads M * N and writes M * N;
    residual reads M * N twice, the values and the residual, and writes M * N. Fused, only the bias, N, and the residual, M * N,
    are still read; the output is written by the matmul in both cases, and counts in neither. The result is the difference.
    """

    def reference(M, N, itemsize):
        return itemsize * 6 * M * N

    def scaled(per_element, per_column=0):
        return lambda M, N, itemsize: itemsize * (per_element * M * N + per_column * N)

    generator = np.random.default_rng()
    cases = [
        (2, 3, 2),
        (5, 7, 4),
        (1, 1, 1),
        (50432, 3072, 2),
        *(tuple(map(int, (*generator.integers(8, 99, 2), 2 ** generator.integers(0, 3)))) for _ in range(3)),
    ]
    mistakes = [
        ("That counts elements: each has itemsize bytes.", lambda M, N, itemsize: 6 * M * N),
        ("That is what the three kernels move: subtract what the fused epilogue reads, the residual and the bias.", scaled(7, 1)),
        ("That is what the three kernels move, but for the bias: subtract the residual, which the fused epilogue reads as well.",
         scaled(7)),
        ("The bias is read in both cases, and cancels.", scaled(6, 1)),
        ("The bias is read in both cases, and cancels: the separate kernel reads it as well.", scaled(6, -1)),
        ("M * N elements are missing: the fused epilogue writes nothing that the matmul does not write anyway, and the "
         "residual's kernel moves three times M * N.", scaled(5)),
        ("2 * M * N elements are missing: each of the three kernels reads the values and writes them.", scaled(4)),
        ("Each of the three kernels reads and writes.", scaled(3)),
        ("That is what the fused epilogue reads: the result is how much less that is than the three kernels' bytes.",
         scaled(1, 1)),
        ("The sign is wrong: separate minus fused.", scaled(-6)),
        ("That is one kernel's: bias, activation and residual are three.", scaled(2)),
    ]  # fmt: skip
    return judge_plain(
        function,
        "epilogue_bytes",
        cases,
        reference,
        mistakes,
        "Write down a line for each kernel, with what it reads and what it writes in elements: bias, activation, residual. Then "
        "the same for the fused epilogue, which finds the product in registers. Subtract, and multiply by itemsize.",
        "one element, ViT-B/16's first MLP layer at 256 images, 1, 2 and 4 bytes an element, and numbers drawn at random",
        number,
    )
