"""The checks of lesson 00."""

import itertools
from collections.abc import Callable, Iterable

import numpy as np

from .judge import Verdict, Wrong, between, judge_plain, number


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
        *((between(1, 9) * 1e9, between(1, 9) * flops, between(1, 5) * 1e12, between(1, 9) * 1e14) for flops in (1e9, 1e14)),
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
    return judge_plain(
        function,
        "floor_us",
        cases,
        reference,
        mistakes,
        "Work out the two times apart, bytes_moved / bandwidth and flops / peak, in seconds; then choose, then convert.",
        "operations limited by memory and by arithmetic, no bytes, no FLOPs, neither, and numbers drawn at random",
        number,
    )


def tiles(function: Callable) -> Verdict:
    """Lesson 00: `function(size, block)`, the list of (start, stop) that the programs own; the last is cut to the size."""

    def reference(size, block):
        return [(start, min(start + block, size)) for start in range(0, size, block)]

    def normal(result):
        if isinstance(result, (str, dict)) or not isinstance(result, Iterable):
            raise Wrong(f"Your function returned a {type(result).__name__}.", "Return a list of pairs, (start, stop).")
        pairs = []
        for item in itertools.islice(iter(result), 100_000):
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise Wrong("Your list holds something that is not a pair.", "Each program is one pair, (start, stop).")
            pairs.append((number(item[0]), number(item[1])))
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
    return judge_plain(
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
            raise Wrong(f"Your function returned a {type(result).__name__}.", "Return two numbers: (flops, bytes).")
        return number(result[0]), number(result[1])

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
    return judge_plain(
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
