"""Answers to the exercises of lesson 01: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import torch

import vitcourse  # noqa: F401  (before Triton)

# ruff: isort: split
import triton
import triton.language as tl

# ---- One kernel for the plain mistakes: each is switched on by its name ---------------------------------------------------


@triton.jit
def vector_kernel(x_ptr, y_ptr, output_ptr, size, alpha, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MISTAKE == "no program id":
        offsets = tl.arange(0, BLOCK)
    if MISTAKE == "program id not multiplied":
        offsets = tl.program_id(0) + tl.arange(0, BLOCK)
    if MISTAKE == "half a block apart":
        offsets = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK)
    if MISTAKE == "two blocks apart":
        offsets = tl.program_id(0) * (BLOCK * 2) + tl.arange(0, BLOCK)
    if MISTAKE == "starts at one":
        offsets = offsets + 1
    if MISTAKE == "starts below zero":
        offsets = offsets - 1
    mask = offsets < size
    if MISTAKE == "mask one short":
        mask = offsets < size - 1
    if MISTAKE == "all masked":
        mask = offsets < 0
    x = tl.load(x_ptr + offsets, mask=mask)
    if MISTAKE == "y of the first block":
        y = tl.load(y_ptr + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < size)
    elif MISTAKE == "loads x twice":
        y = tl.load(x_ptr + offsets, mask=mask)
    else:
        y = tl.load(y_ptr + offsets, mask=mask)
    if MISTAKE == "float16":
        result = (alpha * x.to(tl.float16) + y.to(tl.float16)).to(tl.float16)
    elif MISTAKE == "drops alpha":
        result = x + y
    elif MISTAKE == "alpha times y":
        result = x + alpha * y
    elif MISTAKE == "alpha times both":
        result = alpha * (x + y)
    elif MISTAKE == "minus":
        result = alpha * x - y
    elif MISTAKE == "drops y":
        result = alpha * x
    elif MISTAKE == "drops x":
        result = y
    elif MISTAKE == "times":
        result = x * y
    else:
        result = alpha * x + y
    if MISTAKE == "stores to y":
        tl.store(y_ptr + offsets, result, mask=mask)
    else:
        tl.store(output_ptr + offsets, result, mask=mask)


@triton.jit
def no_mask_on_load(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(output_ptr + offsets, alpha * x + y, mask=offsets < size)


@triton.jit
def no_mask_on_store(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    x = tl.load(x_ptr + offsets, mask=mask)
    y = tl.load(y_ptr + offsets, mask=mask)
    tl.store(output_ptr + offsets, alpha * x + y)


@triton.jit
def mask_lets_one_through(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets <= size
    x = tl.load(x_ptr + offsets, mask=mask)
    y = tl.load(y_ptr + offsets, mask=mask)
    tl.store(output_ptr + offsets, alpha * x + y, mask=mask)


@triton.jit
def mask_of_the_lane(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = tl.arange(0, BLOCK) < size
    x = tl.load(x_ptr + offsets, mask=mask)
    y = tl.load(y_ptr + offsets, mask=mask)
    tl.store(output_ptr + offsets, alpha * x + y, mask=mask)


@triton.jit
def wild_pointer(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    offsets = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    x = tl.load(x_ptr + offsets * 1_000_000_007 + 123_456_789_012, mask=offsets < size)
    tl.store(output_ptr + offsets, x, mask=offsets < size)


@triton.jit
def endless(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    start = tl.program_id(0) * BLOCK
    while start < size:
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < size
        x = tl.load(x_ptr + offsets, mask=mask)
        tl.store(output_ptr + offsets, alpha * x + tl.load(y_ptr + offsets, mask=mask), mask=mask)


@triton.jit
def never_stores(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    alpha * tl.load(x_ptr + offsets, mask=mask) + tl.load(y_ptr + offsets, mask=mask)


@triton.jit
def empty(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    pass


@triton.jit
def not_a_power_of_two(x_ptr, y_ptr, output_ptr, size, alpha, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(output_ptr + offsets, undefined_name + offsets, mask=offsets < size)  # noqa: F821


def launch(kernel=vector_kernel, grid=triton.cdiv, block=1024, output=torch.empty_like, **options):
    """An answer to axpy: how it allocates, how it launches which kernel. `grid` takes size and block."""

    def function(alpha, x, y):
        result = output(x)
        programs = grid(x.numel(), block)
        kernel[(programs,)](x, y, result, x.numel(), alpha, BLOCK=block, **options)
        return result

    return function


def mistaken(mistake, **options):
    return launch(MISTAKE=mistake, **options)


def without_alpha(answer):
    return lambda x, y: answer(1.0, x, y)


def in_place(alpha, x, y):
    vector_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, x, x.numel(), alpha, MISTAKE="", BLOCK=1024)
    return x


def returns_nothing(alpha, x, y):
    launch(MISTAKE="")(alpha, x, y)


def returns_nothing_for_some(alpha, x, y):
    if x.numel() % 2 == 1:
        return launch(MISTAKE="")(alpha, x, y)


def uninitialised(alpha, x, y):
    return torch.empty_like(x)


def by_pytorch(alpha, x, y):
    return alpha * x + y


def padded(alpha, x, y):
    size = triton.cdiv(x.numel(), 1024) * 1024
    result = torch.empty(size, dtype=x.dtype, device=x.device)
    vector_kernel[(size // 1024,)](x, y, result, x.numel(), alpha, MISTAKE="", BLOCK=1024)
    return result


def always_float32(x):
    return torch.empty(x.shape, device=x.device)


def always_float16(x):
    return torch.empty(x.shape, device=x.device, dtype=torch.float16)


def copies_at_the_end(alpha, x, y):
    return launch(MISTAKE="")(alpha, x, y).clone()


def raises(alpha, x, y):
    raise RuntimeError(f"something at {hex(id(x))} went wrong")


def wrong_size_to_the_kernel(alpha, x, y):
    result = torch.empty_like(x)
    vector_kernel[(triton.cdiv(x.numel(), 512),)](x, y, result, x.numel() + 100, alpha, MISTAKE="", BLOCK=512)
    return result


def size_in_bytes(alpha, x, y):
    result = torch.empty_like(x)
    vector_kernel[(triton.cdiv(x.numel(), 512),)](x, y, result, x.nbytes, alpha, MISTAKE="", BLOCK=512)
    return result


def writes_past_the_end_with_pytorch(alpha, x, y):
    result = launch(MISTAKE="")(alpha, x, y)
    result.as_strided((x.numel() + 1,), (1,))[-1] = 0
    return result


STALE = {}


def stale(alpha, x, y):
    """Right the first time for a size, and then again with what the first time left."""
    if x.numel() not in STALE:
        STALE[x.numel()] = launch(MISTAKE="", output=lambda x: torch.zeros(x.shape, device=x.device, dtype=x.dtype))(alpha, x, y)
    return STALE[x.numel()]


def first_block_only(size, block):
    return 1


# The mistakes that add and axpy share, as answers to axpy.
@triton.jit
def axpy_of_a_converted_alpha(alpha, x_ptr, y_ptr, output_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    x, y = tl.load(x_ptr + offsets, mask=mask), tl.load(y_ptr + offsets, mask=mask)
    tl.store(output_ptr + offsets, alpha.to(tl.float32) * x + y, mask=mask)


def alpha_converted(alpha, x, y):
    output = torch.empty_like(x)
    axpy_of_a_converted_alpha[(triton.cdiv(x.numel(), 1024),)](alpha, x, y, output, x.numel(), BLOCK=1024)
    return output


SHARED = [
    (launch(no_mask_on_load), "(?s)size 1 in float32.*loads outside of x_ptr: element 1, and it has 1.*load has no mask"),
    (launch(no_mask_on_store), "(?s)size 1 in float32.*stores outside of output_ptr.*store has no mask"),
    (launch(mask_lets_one_through), "not <="),
    (launch(mask_of_the_lane), "(?s)size 2 in|size 1000 in|size 1025 in.*mask lets lanes past the end"),
    (launch(wild_pointer), "(?s)far from every tensor.*wild pointer"),
    (launch(endless), "(?s)did not finish.*loop does not end"),
    (launch(not_a_power_of_two), "(?s)NameError: .*undefined_name.*The line: `tl.store"),
    (mistaken("no program id"), "(?s)size 1025 .*never stored.*same block"),
    (mistaken("program id not multiplied"), r"(?s)size 1025 .*index 1 of 1025 is stored more than once.*i \* BLOCK"),
    (mistaken("program id not multiplied", block=256), r"(?s)size 1000 .*overlap"),
    (mistaken("half a block apart"), "(?s)size 1025 .*overlap"),
    (mistaken("two blocks apart", block=256), "(?s)index 256 of 1000, which was never stored.*gaps"),
    (mistaken("starts at one"), "(?s)index 0 of 1, which was never stored.*masked off"),
    (mistaken("starts below zero"), "(?s)element -1.*below zero"),
    (mistaken("mask one short"), "(?s)size 1 in.*Every lane of the store is masked off"),
    (mistaken("all masked"), "Every lane of the store is masked off"),
    (mistaken("y of the first block"), "(?s)size 1025 .*First wrong element: index 1024 of 1025.*same elements of y"),
    (mistaken("loads x twice"), "2 \\* x|alpha \\* x \\+ x"),
    (mistaken("float16"), "three digits"),
    (mistaken("minus"), "(?s)First wrong element: index 0 of 1.*(add them|add y)"),
    (mistaken("drops x"), "y"),
    (mistaken("stores to y"), "(?s)changed its input y.*The line: `tl.store\\(y_ptr.*wrong tensor"),
    (launch(never_stores), "stores nothing"),
    (mistaken("", grid=lambda size, block: size // block), "(?s)size 1 in.*never stored.*grid has no programs"),
    (mistaken("", grid=lambda size, block: max(1, size // block)), "(?s)size 1025 .*index 1024 of 1025.*one program"),
    (mistaken("", grid=lambda size, block: max(1, size // block), block=128), "(?s)size 1000 .*index 896 of 1000.*cdiv"),
    (mistaken("", grid=first_block_only), "(?s)index 1024 of 1025, which was never stored.*Only one program"),
    (mistaken("", grid=first_block_only, output=torch.zeros_like), "Only one program"),
    (mistaken("", output=always_float32), "(?s)size 1 in float16.*wrong type: float32"),
    (mistaken("", output=always_float16), "(?s)size 1 in float32.*wrong type: float16"),
    (mistaken("", block=1000), "power of 2|power of two"),
    (in_place, "works in place"),
    (returns_nothing, "returned None"),
    (returns_nothing_for_some, "(?s)size 2 in float32.*returned None"),
    (uninitialised, "never written"),
    (by_pytorch, "No kernel was launched for this result"),
    (padded, "(?s)shape \\(1024,\\).*masks"),
    (copies_at_the_end, "no kernel wrote"),
    (raises, "(?s)RuntimeError: something at 0x… went wrong The line: `raise RuntimeError"),
    (wrong_size_to_the_kernel, "mask lets"),
    (size_in_bytes, "mask lets"),
    (writes_past_the_end_with_pytorch, "overwritten"),
    (stale, "Wrong"),
]


# ---- add3 -------------------------------------------------------------------------------------------------------------------


@triton.jit
def add3_kernel(a_ptr, b_ptr, c_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    a = tl.load(a_ptr + offsets, mask=mask)
    b = tl.load(b_ptr + offsets, mask=mask)
    c = tl.load(c_ptr + offsets, mask=mask)
    if MISTAKE == "drops c":
        result = a + b
    elif MISTAKE == "b twice":
        result = a + b + b
    elif MISTAKE == "c times":
        result = a + b * c
    elif MISTAKE == "float16":
        result = (a.to(tl.float16) + b.to(tl.float16) + c.to(tl.float16)).to(tl.float32)
    elif MISTAKE == "reads a again":
        result = tl.load(a_ptr + offsets, mask=mask) + b + c
    elif MISTAKE == "intermediate in the output":
        tl.store(output_ptr + offsets, a + b, mask=mask)
        result = tl.load(output_ptr + offsets, mask=mask) + c
    elif MISTAKE == "stores twice":
        tl.store(output_ptr + offsets, a + b, mask=mask)
        result = a + b + c
    else:
        result = a + b + c
    if MISTAKE == "no mask on store":
        tl.store(output_ptr + offsets, result)
    else:
        tl.store(output_ptr + offsets, result, mask=mask)


def launch3(mistake, block=1024, grid=triton.cdiv):
    def function(a, b, c):
        output = torch.empty_like(a)
        add3_kernel[(grid(a.numel(), block),)](a, b, c, output, a.numel(), MISTAKE=mistake, BLOCK=block)
        return output

    return function


def two_launches(a, b, c):
    plus = launch(MISTAKE="")
    return plus(1.0, plus(1.0, a, b), c)


def pytorch_then_kernel(a, b, c):
    return launch(MISTAKE="")(1.0, a + b, c)


def whole_vector_in_every_program(a, b, c):
    output = torch.empty_like(a)
    block = max(16, triton.next_power_of_2(a.numel()))
    add3_kernel[(1,)](a, b, c, output, a.numel(), MISTAKE="", BLOCK=block)
    add3_kernel[(1,)](a, b, c, output, a.numel(), MISTAKE="", BLOCK=block)
    return output


# ---- persistent add ---------------------------------------------------------------------------------------------------------


@triton.jit
def persistent_kernel(x_ptr, y_ptr, output_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    step = programs
    if MISTAKE == "all from the start":
        program = 0
        step = 1
    if MISTAKE == "next block only":
        step = 1
    blocks = tl.cdiv(size, BLOCK)
    if MISTAKE == "rounds down":
        blocks = size // BLOCK
    if MISTAKE == "one too many":
        blocks = blocks + 1
    for block in range(program, blocks, step):
        offsets = block * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < size
        if MISTAKE == "no mask":
            mask = offsets >= 0
        x = tl.load(x_ptr + offsets, mask=mask)
        y = tl.load(y_ptr + offsets, mask=mask)
        if MISTAKE == "drops y":
            y = y * 0
        tl.store(output_ptr + offsets, x + y, mask=mask)


@triton.jit
def persistent_while(x_ptr, y_ptr, output_ptr, size, FORGETS: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0) * BLOCK
    while start < size:
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < size
        tl.store(output_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) + tl.load(y_ptr + offsets, mask=mask), mask=mask)
        if not FORGETS:
            start += tl.num_programs(0) * BLOCK


@triton.jit
def persistent_shares(x_ptr, y_ptr, output_ptr, size, share, BLOCK: tl.constexpr):
    start = tl.program_id(0) * share
    for first in range(start, start + share, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        mask = (offsets < size) & (offsets < start + share)
        tl.store(output_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) + tl.load(y_ptr + offsets, mask=mask), mask=mask)


def launch_persistent(mistake, block=1024, grid=lambda size, block, programs: programs):
    def function(x, y, programs):
        output = torch.empty_like(x)
        persistent_kernel[(grid(x.numel(), block, programs),)](x, y, output, x.numel(), MISTAKE=mistake, BLOCK=block)
        return output

    return function


def by_while(forgets, block=512):
    def function(x, y, programs):
        output = torch.empty_like(x)
        persistent_while[(programs,)](x, y, output, x.numel(), FORGETS=forgets, BLOCK=block)
        return output

    return function


def by_shares(x, y, programs):
    output = torch.empty_like(x)
    share = triton.cdiv(x.numel(), programs)
    persistent_shares[(programs,)](x, y, output, x.numel(), share, BLOCK=256)
    return output


def one_wide_block(x, y, programs):
    output = torch.empty_like(x)
    block = max(1, triton.next_power_of_2(triton.cdiv(x.numel(), programs)))
    grid = (min(programs, triton.cdiv(x.numel(), block)),)
    vector_kernel[grid](x, y, output, x.numel(), 1.0, MISTAKE="", BLOCK=block)
    return output


def ignores_programs(x, y, programs):
    return launch(MISTAKE="")(1.0, x, y)


def launches_in_turn(x, y, programs):
    """Never more than `programs` at a time, but one launch after the other."""
    output = torch.empty_like(x)
    for start in range(0, x.numel(), programs * 1024):
        part = slice(start, start + programs * 1024)
        size = x[part].numel()
        vector_kernel[(triton.cdiv(size, 1024),)](x[part], y[part], output[part], size, 1.0, MISTAKE="", BLOCK=1024)
    return output


def returns_y(x, y, programs):
    launch_persistent("")(x, y, programs)
    return y


# ---- What the tests take ------------------------------------------------------------------------------------------------------

WRONG = {
    "axpy": [
        *SHARED,
        (alpha_converted, "A number has no .to"),
        (lambda alpha, x, y: launch(MISTAKE="")(1.0, alpha * x, y), "(?s)does not read x itself.*Hand the kernel x as it is"),
        (mistaken("drops alpha"), "alpha was left out"),
        (mistaken("alpha times y"), "alpha multiplies y"),
        (mistaken("alpha times both"), "alpha multiplies both"),
        (mistaken("drops y"), "y was left out"),
        (lambda alpha, x, y: launch(MISTAKE="")(int(alpha), x, y), "whole number"),
    ],
    "add": [
        *((without_alpha(answer), pattern) for answer, pattern in SHARED),
        (without_alpha(mistaken("drops y")), "The result is x: y was never added"),
        (without_alpha(mistaken("times")), r"x \* y"),
        (lambda x, y: launch(MISTAKE="")(1.0, x, y).to_sparse(), "is a sparse_coo tensor"),
        (lambda x: x, "(?s)TypeError.*arguments"),
        (3, "not a function"),
    ],
    "add3": [
        (launch3("drops c"), "c was left out"),
        (launch3("b twice"), "b was added twice"),
        (launch3("c times"), r"a \+ b \* c"),
        (launch3("float16"), "three digits"),
        (launch3("reads a again"), "(?s)8 bytes of a were read, and it has 4.*once"),
        (launch3("intermediate in the output"), "(?s)16 bytes were read, and the three inputs have 12.*registers"),
        (launch3("stores twice"), "(?s)8 bytes were written, and the output has 4.*no intermediate"),
        (launch3("no mask on store"), "store has no mask"),
        (launch3("", grid=lambda size, block: max(1, size // block)), "never stored"),
        (two_launches, "(?s)2 kernels were launched.*one launch"),
        (pytorch_then_kernel, "(?s)does not read a.*outside of the kernel"),
        (whole_vector_in_every_program, "2 kernels were launched"),
        (lambda a, b, c: a + b + c, "No kernel was launched"),
        (lambda a, b, c: two_launches(a, b, c) and None, "(?s)RuntimeError|None"),
    ],
    "persistent_add": [
        (launch_persistent("all from the start"), "(?s)size 1025 by 4 programs .*stored more than once.*same block"),
        (launch_persistent("next block only"), "(?s)stored more than once.*same block"),
        (launch_persistent("rounds down"), "(?s)size 1 by 1 program in float32.*never stored.*makes no turn"),
        (launch_persistent("no mask"), "(?s)loads outside of x_ptr.*mask lets"),
        (launch_persistent("drops y"), "y was never added"),
        (launch_persistent("", grid=lambda size, block, programs: triton.cdiv(size, block)), "at most 3 were allowed"),
        (launch_persistent("", grid=lambda size, block, programs: programs + 1), "2 programs were launched, and at most 1"),
        (launch_persistent("", grid=lambda size, block, programs: size // block), "never stored"),
        (launch_persistent("", grid=lambda size, block, programs: 1), "of 4 programs that were allowed only 1 ran"),
        (by_while(forgets=True), "(?s)did not finish.*loop"),
        (one_wide_block, "(?s)size 300001 by 2 programs.*keep BLOCK fixed"),
        (ignores_programs, "at most 1 were allowed|at most 3 were allowed"),
        (launches_in_turn, "were allowed"),
        (returns_y, "First wrong element|never stored|no kernel wrote"),
        (lambda x, y, programs: x + y, "No kernel was launched"),
    ],
}

RIGHT = {
    "axpy": [launch(MISTAKE=""), launch(MISTAKE="", block=128), launch(MISTAKE="", block=8192, output=torch.zeros_like)],
    "add": [
        without_alpha(launch(MISTAKE="")),
        without_alpha(launch(MISTAKE="", block=256, output=lambda x: x.new_empty(x.shape))),
        without_alpha(launch(MISTAKE="", block=4096, output=lambda x: torch.empty(x.shape, dtype=x.dtype, device=x.device))),
        without_alpha(launch(MISTAKE="", grid=lambda size, block: size // block + 1)),
    ],
    "add3": [launch3(""), launch3("", block=64)],
    "persistent_add": [
        launch_persistent(""),
        launch_persistent("one too many"),
        launch_persistent("", grid=lambda size, block, programs: min(programs, triton.cdiv(size, block))),
        by_while(forgets=False),
        by_shares,
    ],
}
