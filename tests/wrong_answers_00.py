"""Answers to the exercises of lesson 00: wrong ones, each with a pattern that its verdict has to match, and right ones."""


def _endless(*arguments):
    while True:
        pass


def _raises(*arguments):
    return 1 / 0


def floor_in_microseconds(bytes_moved, flops, bandwidth, peak):
    memory = bytes_moved / bandwidth * 1_000_000
    arithmetic = flops / peak * 1_000_000
    return memory if memory > arithmetic else arithmetic


def tiles_with_while(size, block):
    found, start = [], 0
    while start < size:
        found.append([start, min(start + block, size)])
        start += block
    return found


def tiles_that_forget_to_move(size, block):
    found, start = [], 0
    while start < size:
        found.append((start, min(start + block, size)))
    return found[:1]


def tiles_only_where_block_divides(size, block):
    assert size % block == 0, "size must be a multiple of block"
    return [(start, start + block) for start in range(0, size, block)]


RIGHT = {
    "floor_us": [floor_in_microseconds, lambda m, f, b, p: 1e6 * max(m / b, f / p)],
    "tiles": [
        tiles_with_while,
        lambda size, block: [(i * block, min((i + 1) * block, size)) for i in range((size + block - 1) // block)],
        lambda size, block: ((start, min(start + block, size)) for start in range(0, size, block)),
    ],
    "linear_cost": [
        lambda r, i, o, size: (2 * r * i * o, (r * i + i * o + o + r * o) * size),
        lambda r, i, o, size: [2.0 * r * o * i, float(size * (r * (i + o) + (i + 1) * o))],
    ],
}

WRONG = {
    "floor_us": [
        (lambda m, f, b, p: 1e6 * (m / b + f / p), "not the sum"),
        (lambda m, f, b, p: 1e6 * min(m / b, f / p), "not the minimum"),
        (lambda m, f, b, p: max(m / b, f / p), "in seconds"),
        (lambda m, f, b, p: 1e3 * max(m / b, f / p), "in milliseconds"),
        (lambda m, f, b, p: 1e9 * max(m / b, f / p), "in nanoseconds"),
        (lambda m, f, b, p: 1e6 * m / b, "arithmetic takes time too"),
        (lambda m, f, b, p: 1e6 * f / p, "bytes take time too"),
        (lambda m, f, b, p: 1e6 * max(m / p, f / b), "exchanged"),
        (lambda m, f, b, p: 1e6 * max(b / m, p / f), r"(?s)floor_us\(8e\+06, 0, .*ZeroDivisionError|Expected 2000"),
        (lambda m, f, b, p: f"{1e6 * max(m / b, f / p)} us", "returned a str"),
        (lambda m, f: m / f, "(?s)TypeError.*arguments"),
        (_endless, "did not finish"),
    ],
    "tiles": [
        (lambda size, block: [(i * block, (i + 1) * block) for i in range(size // block)], r"(?s)tiles\(1, 4\).*rounds down"),
        (lambda size, block: [(a, a + block) for a in range(0, size, block)], "past the end"),
        (lambda size, block: [(a, min(a + block, size) - 1) for a in range(0, size, block)], "do not subtract one"),
        (lambda size, block: [(a, min(block, size - a)) for a in range(0, size, block)], "not how long"),
        (lambda size, block: [(i, min(i + block, size)) for i in range((size + block - 1) // block)], "not one apart"),
        (lambda size, block: [(i * block, min(i * block + block, size)) for i in range(size // block + 1)], "divides size"),
        (lambda size, block: [(a, min(a + block, size)) for a in range(0, size, block)] or [(0, 0)], r"return \[\]"),
        (lambda size, block: list(range(0, size, block)), "not a pair"),
        (lambda size, block: [(0, 1)], r"Expected \[\(0, 4\)\], got \[\(0, 1\)\]"),
        (lambda size, block: len(range(0, size, block)), "returned a int"),
        (tiles_only_where_block_divides, "(?s)AssertionError: size must be.*The line: `assert size"),
        (tiles_that_forget_to_move, "did not finish"),
        (_raises, "(?s)ZeroDivisionError.*`return 1 / 0`"),
    ],
    "linear_cost": [
        (lambda r, i, o, size: (r * i * o, (r * i + i * o + o + r * o) * size), "two operations"),
        (lambda r, i, o, size: (2 * r * i * o + r * o, (r * i + i * o + o + r * o) * size), "not counted"),
        (lambda r, i, o, size: (2 * r * i * o, (r * i + i * o + r * o) * size), "bias is read"),
        (lambda r, i, o, size: (2 * r * i * o, (r * i + i * o + o) * size), "output is written"),
        (lambda r, i, o, size: (2 * r * i * o, (r * i + o + r * o) * size), "weight is read"),
        (lambda r, i, o, size: (2 * r * i * o, r * i + i * o + o + r * o), "counts elements"),
        (lambda r, i, o, size: ((r * i + i * o + o + r * o) * size, 2 * r * i * o), "other way round"),
        (lambda r, i, o, size: (2 * r * i * o, (r * i + r * i * o + o + r * o) * size), "not read again"),
        (lambda r, i, o, size: 2 * r * i * o, "returned a int"),
        (lambda r, i, o, size: (2 * r * i * o, None), "returned a NoneType"),
        (_raises, "ZeroDivisionError"),
    ],
}
