"""The checks of lesson 10: images cut into patches, and patches made tokens."""

import inspect
from collections.abc import Callable

import numpy as np
import torch

from .. import trace as tracing
from .judge import Attempt, Case, Exercise, Verdict, Wrong, draw, index_text, judge, judge_plain, number, type_name

# ---- Where a pixel lies -----------------------------------------------------------------------------------------------------


def _offset(patch, k, channels, height, width, size, across=None):
    """The offset of element k of a patch in a contiguous image; for numbers and for tensors. across: patches in a row."""
    across = width // size if across is None else across
    row = patch // across * size + k // size % size
    column = patch % across * size + k % size
    return (k // (size * size) * height + row) * width + column


# Mistakes in finding a pixel, and the offsets that they lead to; arguments as those of `_offset`.
_MISPLACED: list[tuple[str, Callable]] = [
    ("It is right for square images: how many patches lie side by side in one that is not, and which of its sides tells?",
     lambda p, k, c, h, w, s: _offset(p, k, c, h, w, s, across=h // s)),
    ("Patches are numbered row by row: patch // across is the row of patches, patch % across the place in it.",
     lambda p, k, c, h, w, s: _offset(p % (h // s) * (w // s) + p // (h // s), k, c, h, w, s)),
    ("The row of patches and the place in it are exchanged: patch // across is the row.",
     lambda p, k, c, h, w, s: (k // (s * s) * h + p % (w // s) * s + k // s % s) * w + p // (w // s) * s + k % s),
    ("Pixels past the last whole patch belong to none: width // size patches lie side by side, rounded down.",
     lambda p, k, c, h, w, s: _offset(p, k, c, h, w, s, across=-(-w // s))),
    ("Patches do not overlap: the next one begins size columns on, and the next row of patches size rows on.",
     lambda p, k, c, h, w, s: (k // (s * s) * h + p // (w // s) + k // s % s) * w + p % (w // s) + k % s),
    ("A row of patches is size rows of pixels high: it begins at row patch // across * size.",
     lambda p, k, c, h, w, s: (k // (s * s) * h + p // (w // s) + k // s % s) * w + p % (w // s) * s + k % s),
    ("A patch begins at column patch % across * size: it is size columns wide.",
     lambda p, k, c, h, w, s: (k // (s * s) * h + p // (w // s) * s + k // s % s) * w + p % (w // s) + k % s),
    ("Every patch begins in the image's first corner: the patch's number moves it.",
     lambda p, k, c, h, w, s: _offset(0 * p, k, c, h, w, s)),
    ("Every patch begins in the first row of pixels: patch // across * size moves it down.",
     lambda p, k, c, h, w, s: (k // (s * s) * h + k // s % s) * w + p % (w // s) * s + k % s),
    ("Every patch begins in the first column of pixels: patch % across * size moves it to the right.",
     lambda p, k, c, h, w, s: (k // (s * s) * h + p // (w // s) * s + k // s % s) * w + k % s),
    ("k counts the channel slowest, then the row, then the column: yours has the channel as what varies fastest.",
     lambda p, k, c, h, w, s: _offset(p, k % c * s * s + k // c, c, h, w, s)),
    ("Row and column within the patch are exchanged: k % size is the column.",
     lambda p, k, c, h, w, s: _offset(p, k // (s * s) * s * s + k % s * s + k // s % s, c, h, w, s)),
    ("From the second channel on, k // size is more than a row within the patch: take it modulo size.",
     lambda p, k, c, h, w, s: (k // (s * s) * h + p // (w // s) * s + k // s) * w + p % (w // s) * s + k % s),
    ("The channel was left out: k // (size * size) of them, each height * width elements, lie before it.",
     lambda p, k, c, h, w, s: _offset(p, k % (s * s), c, h, w, s)),
    ("The channel was left out, and k // size runs on past the patch: split k into channel, row and column.",
     lambda p, k, c, h, w, s: (p // (w // s) * s + k // s) * w + p % (w // s) * s + k % s),
    ("In the image a channel has height * width elements, not size * size.",
     lambda p, k, c, h, w, s: k // (s * s) * s * s + _offset(p, k % (s * s), c, h, w, s)),
    ("A row of the image has width elements, not height.",
     lambda p, k, c, h, w, s: (k // (s * s) * w + p // (w // s) * s + k // s % s) * h + p % (w // s) * s + k % s),
    ("Within a patch, the next row begins width elements on in the image, not size.",
     lambda p, k, c, h, w, s: (k // (s * s) * h + p // (w // s) * s) * w + p % (w // s) * s + k % (s * s)),
    ("The patches are taken as if each lay in one piece: its rows are a row of the image apart.",
     lambda p, k, c, h, w, s: p * c * s * s + k),
    ("The image is taken as if its channels varied fastest: pixel by pixel, not channel by channel.",
     lambda p, k, c, h, w, s: _offset(p, k % (s * s), c, h, w, s) * c + k // (s * s)),
    ("Which of the image's pixels it is depends on k as well: its channel, its row and its column within the patch.",
     lambda p, k, c, h, w, s: _offset(p, 0 * k, c, h, w, s)),
]  # fmt: skip


def pixel_offset(function: Callable) -> Verdict:
    """Lesson 10: `function(patch, k, channels, height, width, size)`, where element k of a patch lies in its image.

    The offset, in elements, in a contiguous (channels, height, width) image. Patches of size x size are numbered row by row;
    what lies past the last whole one belongs to none. k counts channel, row and column within the patch, the column fastest.
    """
    generator = np.random.default_rng()
    drawn = []
    for _ in range(8):
        channels, size, down, across = (int(n) for n in generator.integers(2, 6, 4))
        height, width = down * size + 1, across * size + size - 1
        patch, k = (int(generator.integers(count)) for count in (down * across, channels * size * size))
        drawn.append((patch, k, channels, height, width, size))
    images = [(1, 4, 4, 2), (3, 4, 4, 2), (3, 4, 6, 2), (3, 6, 4, 2), (2, 7, 8, 3)]
    # The whole of small images, an element after the other.
    small = [
        (patch, k, *image)
        for image in images
        for patch in range((image[1] // image[3]) * (image[2] // image[3]))
        for k in range(image[0] * image[3] ** 2)
    ]
    cases = [*small, (195, 767, 3, 224, 224, 16), (100, 300, 3, 224, 336, 16), *drawn]
    return judge_plain(
        function,
        "pixel_offset",
        cases,
        _offset,
        _MISPLACED,
        "Write k as channel, row and column within the patch, and the patch as its row of patches and its place in it; then the "
        "offset is (channel * height + y) * width + x.",
        "every element of five small images, wide, high and square, with one channel and with three, and with a rest past the "
        "last patch; ViT-B/16's image, and others drawn at random",
        number,
    )


# ---- Images to try ----------------------------------------------------------------------------------------------------------


def _name(batch: int, channels: int, height: int, width: int, size: int, dtype: torch.dtype) -> str:
    images = f"{batch} image{'s' * (batch != 1)} of {channels} x {height} x {width}"
    return f"{images} in patches of {size} in {type_name(dtype)}"


# batch, channels, height, width, size. In the first most mistakes show: it has more than one of everything, and is higher than
# wide, so that a wrong number of patches in a row does not lead out of it.
_IMAGES = (
    (2, 3, 6, 4, 2), (1, 1, 1, 1, 1), (1, 2, 3, 3, 3), (1, 3, 4, 6, 2), (1, 2, 7, 8, 3), (2, 1, 4, 3, 1), (1, 1, 2, 9, 2),
    (2, 3, 17, 33, 16),
)  # fmt: skip

_TRIED = "1 to 3 channels, images wide, high and square, patches of 1 to 16, a rest past the last patch, float32 and float16"


def _offsets(channels: int, height: int, width: int, size: int, where: Callable = _offset) -> torch.Tensor:
    """For every patch, and every element of it, its offset in a contiguous image."""
    patch = torch.arange((height // size) * (width // size))[:, None]
    return where(patch, torch.arange(channels * size * size)[None, :], channels, height, width, size)


def _cut(images: torch.Tensor, size: int, where: Callable = _offset) -> torch.Tensor:
    """The patches of images. With another `where`, what that finds in a contiguous batch; NaN past its end."""
    batch, channels, height, width = images.shape
    offsets = _offsets(channels, height, width, size, where).to(images.device)
    memory = images.reshape(-1)
    first = torch.arange(batch, device=images.device)[:, None, None] * (channels * height * width)
    offsets = first + offsets
    found = memory[offsets.clamp(0, memory.numel() - 1)]
    return torch.where((offsets >= 0) & (offsets < memory.numel()), found, torch.nan)


def _stored_once(attempt: Attempt) -> None:
    """Every element of the result is stored exactly once."""
    if attempt.trace is None:
        return
    twice = attempt.trace.owners(attempt.result).twice
    if any(access.kind == "atomic" for access in attempt.trace.accesses):
        raise Wrong(
            "The values are right, but they were added with atomics.",
            "No two programs have the same element here, so nothing has to be added in memory: tl.store does.",
        )
    if twice.any():
        raise Wrong(
            f"The values are right, but {index_text(twice)} is stored more than once.",
            "Programs do the same work twice, or their blocks overlap: what is a program's own follows from tl.program_id, and "
            "the grid has as many programs as there is work for.",
        )


# ---- patches ----------------------------------------------------------------------------------------------------------------

# How images may lie in memory, by the name that a verdict gives it.
_LAYOUTS: dict[str, Callable] = {
    "": lambda shape, new: new(shape),
    ", channels last": lambda shape, new: new((shape[0], shape[2], shape[3], shape[1])).permute(0, 3, 1, 2),
    ", height and width exchanged": lambda shape, new: new((shape[0], shape[1], shape[3], shape[2])).transpose(2, 3),
    ", every second pixel of a row": lambda shape, new: new((*shape[:3], 2 * shape[3]))[..., ::2],
    ", cut out of larger images": lambda shape, new: new((shape[0], shape[1], shape[2] + 1, shape[3] + 2))[:, :, 1:, :-2],
    ", grey as three channels": lambda shape, new: new((shape[0], 1, *shape[2:])).expand(shape),
    ", one image as a batch": lambda shape, new: new((1, *shape[1:])).expand(shape),
}


def _stride_clue(attempt: Attempt) -> str:
    """Which strides a function used that has read the images with wrong ones."""
    images = attempt.arguments["images"]
    _, channels, height, width = images.shape
    memory = images.as_strided((tracing._span(images),), (1,)).double()
    steps = [torch.arange(count, device=images.device) for count in images.shape]
    by_batch, by_channel, by_row, by_column = images.stride()
    contiguous = (channels * height * width, height * width, width, 1)
    guesses = [
        (contiguous, "The images are read as if they were contiguous: multiply each index by its own stride"),
        ((by_batch, by_channel, by_column, by_row), "The strides of rows and columns are exchanged: compare the order of the "
         "arguments with the kernel's parameters"),
        ((by_batch, by_channel, by_row, 1), "The columns' stride is left out: neighbours in a row may be far apart"),
        ((by_batch, height * width, by_row, by_column), "The channels are taken to be height * width apart"),
        ((by_batch, by_channel, width, by_column), "The rows are taken to be width apart"),
        ((contiguous[0], by_channel, by_row, by_column), "The images are taken to be channels * height * width apart"),
        ((by_channel, by_batch, by_row, by_column), "The strides of images and channels are exchanged: compare the order of the "
         "arguments with the kernel's parameters"),
        ((by_batch, by_row, by_channel, by_column), "The strides of channels and rows are exchanged: compare the order of the "
         "arguments with the kernel's parameters"),
        ((0, by_channel, by_row, by_column), "Every image comes out as the first: its number times the first stride belongs to "
         "the address"),
    ]  # fmt: skip
    for strides, hint in guesses:
        where = sum(step.view([-1 if axis == i else 1 for i in range(4)]) * stride
                    for axis, (step, stride) in enumerate(zip(steps, strides)))  # fmt: skip
        read = torch.where(where < memory.numel(), memory[where.clamp(max=memory.numel() - 1)], torch.nan)
        other = _cut(read, attempt.arguments["size"])
        same = (attempt.result.double() == other) | (attempt.result.isnan() & other.isnan())
        if bool(same[~torch.from_numpy(attempt.unwritten).to(same.device)].all()) and not bool(other.isnan().all()):
            return f"{hint}. Pixel (b, c, y, x) is at b * stride(0) + c * stride(1) + y * stride(2) + x * stride(3)."
    return ""


def _patch_mask(error: tracing.IllegalAccess) -> str:
    """For a kernel that leaves a tensor of patches or of images."""
    if error.element < 0 or error.element > error.size + (1 << 20):
        return ""
    if "mask" in error.source:
        return (
            f"A lane inside the mask is past the end of {error.tensor}: work out by hand which channel, row and column, or which "
            "patch and which element of it, this lane stands for, and how far apart these are."
        )
    verb = "load" if error.kind == "load" else "store"
    return (
        f"This {verb} has no mask, and a patch need not have a power of two of elements: compare the index that tl.arange gives "
        "with the number of elements that there are."
    )


def _nothing_beside_the_images(attempt: Attempt) -> None:
    """One launch, which reads the images themselves."""
    if attempt.trace is None:
        return
    images = attempt.arguments["images"]
    start = images.data_ptr()
    end = start + tracing._span(images) * images.element_size()
    loads = [access.addresses for access in attempt.trace.accesses if access.kind == "load"]
    if len(attempt.trace.launches) != 1:
        raise Wrong(
            f"The values are right, but {len(attempt.trace.launches)} kernels were launched.",
            "One launch does it: the images in a batch are a dimension of the grid, or part of a program's number.",
        )
    if any(((addresses < start) | (addresses >= end)).any() for addresses in loads):
        raise Wrong(
            "The values are right, but the kernel does not read images itself.",
            "PyTorch has copied the images first, which costs as much as the kernel. Hand it images as they are, with "
            "images.stride().",
        )


def patches(function: Callable) -> Verdict:
    """Lesson 10: `function(images, size)` returns (batch, patches, channels * size * size), contiguous, of any images.

    images: (batch, channels, height, width), any strides. Patches row by row, elements as `pixel_offset` counts them.
    """

    def build(batch, channels, height, width, size, dtype, layout=""):
        images = _LAYOUTS[layout]((batch, channels, height, width), lambda shape: draw(shape, dtype))
        return Case(_name(batch, channels, height, width, size, dtype) + layout, {"images": images, "size": size})

    def cases(dtypes):
        low = [dtype for dtype in dtypes if dtype != torch.float32]
        found = [build(*image, torch.float32) for image in _IMAGES]
        found += [build(2, 3, 6, 4, 2, torch.float32, layout) for layout in _LAYOUTS if layout]
        found += [build(*image, dtype) for dtype in low for image in (_IMAGES[0], _IMAGES[7])]
        found += [build(2, 3, 5, 7, 3, dtype, ", channels last") for dtype in low]
        return found

    def whole(images, size):
        return _cut(images, size)

    def misplaced(where):
        return lambda images, size: _cut(images, size, where)

    mistakes = [
        *((hint, misplaced(where)) for hint, where in _MISPLACED),
        ("Every image comes out as the first: the image's number times the first stride belongs to the address.",
         lambda images, size: whole(images[:1], size).expand(images.shape[0], -1, -1)),
        ("The elements of a patch lie in another order: k counts channel, row and column, and is where an element is stored.",
         lambda images, size: whole(images, size).reshape(*whole(images, size).shape[:2], images.shape[1], size * size)
         .transpose(2, 3).reshape(whole(images, size).shape)),
        ("The result is stored transposed: element k of patch p lies at p * channels * size * size + k.",
         lambda images, size: whole(images, size).transpose(1, 2).reshape(whole(images, size).shape)),
        ("Zeros were stored: load the pixel that belongs to each element.", lambda images, size: 0 * whole(images, size)),
    ]  # fmt: skip
    exercise = Exercise(
        whole,
        cases,
        lambda: build(8, 3, 225, 350, 16, torch.float32),
        mistakes,
        f"{_TRIED}, channels last and other strides; no access outside of a tensor, one launch, every element stored once, "
        "images unchanged",
        [_nothing_beside_the_images, _stored_once],
        clues=[_stride_clue],
        illegal=_patch_mask,
    )
    return judge(function, exercise)


# ---- patch_embed ------------------------------------------------------------------------------------------------------------


def _exact(shape: tuple[int, ...], dtype: torch.dtype, parts: int) -> torch.Tensor:
    """Multiples of 1 / parts between 1/2 and 2, of either sign: with 128 parts the eight bits that bfloat16 holds."""
    return (torch.randint(parts // 2, 2 * parts + 1, shape) * (1 - 2 * torch.randint(0, 2, shape)) / parts).to(dtype)


def _embed(images, weight, bias, class_token, position, cut=_cut):
    """The tokens. cut: finds the patches."""
    batch, hidden = images.shape[0], weight.shape[0]
    tokens = cut(images, weight.shape[-1]) @ weight.reshape(hidden, -1).T + bias
    return torch.cat([class_token.expand(batch, 1, hidden), tokens], 1) + position


def patch_embed(function: Callable) -> Verdict:
    """Lesson 10: `function(images, weight, bias, class_token, position)` returns the tokens (batch, 1 + patches, hidden).

    images (batch, channels, height, width); weight (hidden, channels, size, size); bias and class_token (hidden,); position
    (1 + patches, hidden); all contiguous. Token 0 is the class token, without bias; every token has its position added.

    A `tl.dot` of float32 may round its inputs to tf32 on a GPU, which this exercise is not about: pixels and weights are
    numbers that tf32 holds exactly, and so does float32 their sums.
    """

    def build(batch, channels, height, width, size, hidden, dtype):
        tokens = 1 + (height // size) * (width // size)
        arguments = {
            "images": _exact((batch, channels, height, width), dtype, 16),
            "weight": _exact((hidden, channels, size, size), dtype, 128),
            "bias": draw((hidden,), dtype, 8.0),
            "class_token": draw((hidden,), dtype, 8.0),
            "position": draw((tokens, hidden), dtype, 8.0),
        }
        return Case(f"{_name(batch, channels, height, width, size, dtype)} to {hidden} numbers", arguments)

    # The first is square: where a number is mistaken for another, the rest of the mistakes come first.
    shapes = [
        (2, 3, 4, 4, 2, 5), (1, 1, 2, 2, 2, 1), (2, 3, 6, 4, 2, 5), (1, 3, 4, 6, 2, 5), (1, 2, 7, 8, 3, 8), (1, 1, 1, 3, 1, 2),
        (2, 1, 10, 14, 2, 40), (1, 3, 8, 12, 4, 33), (1, 1, 9, 65, 8, 64), (2, 3, 9, 5, 4, 7),
    ]  # fmt: skip

    def cases(dtypes):
        low = [dtype for dtype in dtypes if dtype != torch.float32]
        found = [build(*shape, torch.float32) for shape in shapes]
        return found + [build(*shape, dtype) for dtype in low for shape in (shapes[0], shapes[2], shapes[7])]

    def misplaced(where):
        return lambda *case: _embed(*case, cut=lambda images, size: _cut(images, size, where))

    def with_position(choose):
        def mistake(images, weight, bias, class_token, position):
            return _embed(images, weight, bias, class_token, 0 * position) + choose(position)

        return mistake

    def by_row_of_the_batch(images, weight, bias, class_token, position):
        tokens = _embed(images, weight, bias, class_token, 0 * position)
        missing = torch.zeros_like(position).expand(len(images) - 1, -1, -1)
        return tokens + torch.cat([position[None], missing])

    def first_patch_lost(images, weight, bias, class_token, position):
        tokens = _embed(images, weight, bias, class_token, 0 * position)
        rest = torch.cat([tokens[:, 2:], (tokens[:, :1] * 0) + bias], 1)
        return torch.cat([tokens[:, :1], rest], 1) + position

    def bias_alone(images, weight, bias, class_token, position):
        tokens = _embed(images, weight, bias, class_token, 0 * position)
        return torch.cat([tokens[:, :1] - class_token + bias, tokens[:, 1:]], 1) + position

    shifted = (
        "Every position is that of the token before: row 0 of position is the class token's, so patch number p has row 1 + p."
    )
    mistakes = [
        ("The class token gets the bias: the bias belongs to the convolution, and no patch stands behind token 0.",
         lambda i, w, b, c, p: _embed(i, w, b, c + b, p)),
        ("bias was left out: every patch's token has it added.", lambda i, w, b, c, p: _embed(i, w, 0 * b, c, p)),
        ("bias of the first column was taken for all: load it with the columns' offsets.",
         lambda i, w, b, c, p: _embed(i, w, b[:1], c, p)),
        ("position was left out: add row number `token` of it.", lambda i, w, b, c, p: _embed(i, w, b, c, 0 * p)),
        ("bias and position were left out.", lambda i, w, b, c, p: _embed(i, w, 0 * b, c, 0 * p)),
        ("Token 0 is the class token: it was left out.", lambda i, w, b, c, p: _embed(i, w, b, 0 * c, p)),
        ("Token 0 is the class token: yours has the bias there.", bias_alone),
        ("The class token is added to every token: it is token 0, and the patches have the bias.",
         lambda i, w, b, c, p: _embed(i, w, b + c, c, p)),
        ("The class token is added to every token: it is token 0, and the patches have the bias.",
         lambda i, w, b, c, p: _embed(i, w, c, c, p)),
        ("The class token is added to every token, and the bias too: it is token 0, and the patches have the bias.",
         lambda i, w, b, c, p: _embed(i, w, b + c, b + c, p)),
        ("bias and class token are exchanged.", lambda i, w, b, c, p: _embed(i, w, c, b, p)),
        ("The class token has a position too: row 0 of position.",
         with_position(lambda p: torch.cat([0 * p[:1], p[1:]]))),
        (shifted, with_position(lambda p: torch.cat([p[:1], p[:-1]]))),
        (shifted, with_position(lambda p: torch.cat([0 * p[:1], p[:-1]]))),
        (shifted.replace("before", "after"), with_position(lambda p: torch.cat([p[1:], 0 * p[:1]]))),
        ("Every token has the class token's position: row number `token` of position is its own.",
         with_position(lambda p: p[:1])),
        ("position has a row for each token of one image: index it with the token's number in its image.", by_row_of_the_batch),
        ("Token t is of patch t - 1: the class token stands in front, and the first patch is lost.", first_patch_lost),
        ("The first image was taken for all: its number times channels * height * width belongs to the address.",
         lambda i, w, b, c, p: _embed(i[:1], w, b, c, p).expand(len(i), -1, -1)),
        ("weight is (hidden, K) with its rows in one piece: element k of row n is at n * K + k, and it is read as (K, hidden).",
         lambda i, w, b, c, p: _embed(i, w.reshape(-1, len(w)).T.reshape(w.shape), b, c, p)),
        *((hint, misplaced(where)) for hint, where in _MISPLACED),
        ("Nothing of the patches is there: does the loop over K make a turn, and is each product added to the sum?",
         lambda i, w, b, c, p: _embed(0 * i, w, b, c, p)),
        ("bias, class token and position are missing.", lambda i, w, b, c, p: _embed(i, w, 0 * b, 0 * c, 0 * p)),
    ]  # fmt: skip

    def part_of_k(attempt: Attempt) -> str:
        """Some of each patch's elements only, in a patch of more than one step."""
        weight = attempt.arguments["weight"]
        wide = [value.double() for value in attempt.arguments.values()]
        count = weight[0].numel()
        k = torch.arange(count, device=weight.device)
        last = (count - 1) // 32 * 32
        for share, hint in (
            ((k < 32) * 1.0, "Only the first step of the loop counts: does it go on to K, rounded up, and add each product?"),
            ((k < 32) * 2.0, "Every step of the loop takes the first elements again: k = start + tl.arange(0, BLOCK)."),
            ((k >= last) * 1.0, "Only the last step of the loop counts: add each product, total = tl.dot(a, b, total)."),
        ):
            part = (wide[1].reshape(len(weight), -1) * share).reshape(weight.shape)
            other = _embed(wide[0], part, *wide[2:])
            if count > 32 and bool(((attempt.result.double() - other).abs() <= attempt.tolerance).all()):
                return hint
        return ""

    def position_of_the_batch(error: tracing.IllegalAccess) -> str:
        """For a load past the end of position, or before its beginning."""
        tensor = error.trace.launches[-1].tensors.get(error.tensor)
        if error.kind == "load" and tensor is not None and tensor.ndim == 2 and error.element < 0:
            return (
                "position has a row for each token, the class token's first: token t takes row t, which is row 1 + p for patch p."
            )
        if error.kind != "load" or tensor is None or error.element < error.size or error.element > error.size + (1 << 20):
            return ""
        if tensor.ndim == 2 and "mask" in error.source and "<=" not in inspect.getsource(error.trace.launches[-1].function):
            return "position has a row for each token of one image: index it with the token's number in its image."
        if tensor.ndim == 4:
            return (
                f"A lane is past the end of {error.tensor}. Token t is of patch t - 1, and only token > 0, token < tokens and "
                "k < K are loaded; in a patch the channel is k // (size * size), the row k // size % size, the column k % size."
            )
        return ""

    exercise = Exercise(
        _embed,
        cases,
        lambda: build(8, 3, 224, 336, 16, 768, torch.float32),
        mistakes,
        "1 to 3 channels, images wide, high and square, patches of 1 to 8, a rest past the last patch, 1 to 64 numbers a token, "
        "float32 and float16; no access outside of a tensor, every element stored once, inputs unchanged",
        [_stored_once],
        clues=[part_of_k],
        illegal=position_of_the_batch,
    )
    return judge(function, exercise)


# ---- image_gradient ---------------------------------------------------------------------------------------------------------


def _unmasked_pixels(error: tracing.IllegalAccess) -> str:
    if "mask" in error.source or error.element < error.size:
        return ""
    return f"This {error.kind} has no mask, and the last block of pixels reaches past the end: only pixels that there are."


def image_gradient(function: Callable) -> Verdict:
    """Lesson 10: `function(grad_patches, channels, height, width, size)` returns the gradient of the images.

    The backward pass of `patches`: (batch, patches, channels * size * size), contiguous, to (batch, channels, height, width).
    A kernel stores every pixel's gradient once: 0 where no whole patch covers it.
    """

    def build(batch, channels, height, width, size, dtype):
        count = (height // size) * (width // size)
        grad = draw((batch, count, channels * size * size), dtype)
        arguments = {"grad_patches": grad, "channels": channels, "height": height, "width": width, "size": size}
        return Case(_name(batch, channels, height, width, size, dtype), arguments)

    def cases(dtypes):
        low = [dtype for dtype in dtypes if dtype != torch.float32]
        chosen = (_IMAGES[0], _IMAGES[4], _IMAGES[7])
        return [build(*image, dtype) for dtype, images in ((torch.float32, _IMAGES), *((one, chosen) for one in low))
                for image in images]  # fmt: skip

    def back(grad, channels, height, width, size, where=_offset):
        """Each element goes to its pixel; one that would go past the end of the images is dropped."""
        batch = grad.shape[0]
        pixels = channels * height * width
        offsets = _offsets(channels, height, width, size, where).to(grad.device)
        offsets = offsets + torch.arange(batch, device=grad.device)[:, None, None] * pixels
        inside = (offsets >= 0) & (offsets < batch * pixels)
        images = torch.zeros(batch * pixels, dtype=grad.dtype, device=grad.device)
        images[offsets[inside]] = grad[inside]
        return images.view(batch, channels, height, width)

    def gathered(patch=None, k=None, covered=None):
        """A pixel by pixel gather, with a part of it replaced: the number of its patch, the element in it, what is covered."""

        def mistake(grad, channels, height, width, size):
            c, y, x = torch.meshgrid(*(torch.arange(n, device=grad.device) for n in (channels, height, width)), indexing="ij")
            down, across = height // size, width // size
            p = (patch or (lambda y, x, s, h, w: y // s * across + x // s))(y, x, size, height, width)
            e = (k or (lambda c, y, x, s, n: (c * s + y % s) * s + x % s))(c, y, x, size, channels)
            offsets = p * channels * size * size + e
            offsets = offsets + torch.arange(grad.shape[0], device=grad.device).view(-1, 1, 1, 1) * grad[0].numel()
            inside = (y // size < down) & (x // size < across) if covered is None else covered(y, x, size, down, across)
            memory = grad.reshape(-1)
            found = memory[offsets.clamp(0, memory.numel() - 1)]
            found = torch.where((offsets >= 0) & (offsets < memory.numel()), found, torch.nan)
            return torch.where(inside, found, 0.0)

        return mistake

    rest = "No whole patch covers the last columns: their gradient is 0. Mask the load where column // size is not below across."
    mistakes = [
        (_MISPLACED[0][0], gathered(patch=lambda y, x, s, h, w: y // s * (h // s) + x // s)),
        (rest, gathered(covered=lambda y, x, s, down, across: y // s < down)),
        (rest, gathered(covered=lambda y, x, s, down, across: y >= 0)),
        (rest.replace("columns", "rows").replace("column // size is not below across", "row // size is not below down"),
         gathered(covered=lambda y, x, s, down, across: x // s < across)),
        ("Pixels past the last whole patch belong to none: width // size patches lie side by side, rounded down.",
         gathered(patch=lambda y, x, s, h, w: y // s * -(-w // s) + x // s)),
        ("Patches are numbered row by row: y // size * across + x // size.",
         gathered(patch=lambda y, x, s, h, w: x // s * (h // s) + y // s)),
        ("The row of patches and the place in it are exchanged: y // size * across + x // size.",
         gathered(patch=lambda y, x, s, h, w: x // s * (w // s) + y // s)),
        ("The number of a pixel's patch is y // size * across + x // size: a row of patches has across of them.",
         gathered(patch=lambda y, x, s, h, w: y // s * w + x // s)),
        ("All pixels were taken from the first patch: the patch's number times channels * size * size belongs to the address.",
         gathered(patch=lambda y, x, s, h, w: 0 * y)),
        ("Row and column within the patch are exchanged: the element is (channel * size + row) * size + column.",
         gathered(k=lambda c, y, x, s, n: (c * s + x % s) * s + y % s)),
        ("k counts the channel slowest, then the row, then the column: yours has the channel as what varies fastest.",
         gathered(k=lambda c, y, x, s, n: (y % s * s + x % s) * n + c)),
        ("The channel was left out: it is (channel * size + row) * size + column within a patch.",
         gathered(k=lambda c, y, x, s, n: y % s * s + x % s)),
        ("Within a patch, row and column are row % size and column % size.",
         gathered(k=lambda c, y, x, s, n: (c * s + y) * s + x)),
        ("Every image comes out as the first: the image's number times patches * channels * size * size belongs to the address.",
         lambda grad, *sizes: back(grad[:1], *sizes).expand(len(grad), -1, -1, -1)),
        *((hint, lambda *case, where=where: back(*case, where=where)) for hint, where in _MISPLACED),
        ("grad_patches was taken for the images: each patch's elements lie in one piece, and go to size rows of the image.",
         lambda grad, channels, height, width, size: grad.reshape(len(grad), channels, height, width)
         if (height % size, width % size) == (0, 0) else torch.full((len(grad), channels, height, width), torch.nan)),
        ("Zeros were stored: load the element of grad_patches that belongs to each pixel.",
         lambda *case: 0 * back(*case)),
        ("The gradient was divided by the number of elements of a patch: each pixel has one element, and takes it as it is.",
         lambda *case: back(*case) / case[0].shape[2]),
    ]  # fmt: skip

    def past_the_end(error: tracing.IllegalAccess) -> str:
        if error.kind == "store" or "mask" not in error.source:
            return _unmasked_pixels(error)
        return (
            "A lane inside the mask is past the last patch. Only whole patches have a gradient: down = height // size of them "
            "below each other and across = width // size side by side, so load where row // size < down and column // size < "
            "across, patch number row // size * across + column // size."
        )

    def gaps(attempt: Attempt) -> str:
        """For pixels that were never stored: whether they are those that no whole patch covers."""
        sizes = [attempt.arguments[name] for name in ("channels", "height", "width", "size")]
        covered = back(torch.ones_like(attempt.arguments["grad_patches"]), *sizes).bool().cpu().numpy()
        if (attempt.unwritten == ~covered).all():
            return (
                "No whole patch covers these pixels, and their gradient is 0. Let the kernel store that too: a program for every "
                "block of pixels, whose load is masked where there is no patch, with other=0.0."
            )
        return ""

    def uncovered(attempt: Attempt) -> str:
        sizes = [attempt.arguments[name] for name in ("channels", "height", "width", "size")]
        covered = back(torch.ones_like(attempt.arguments["grad_patches"]), *sizes).bool().cpu().numpy()
        if (attempt.wrong & covered).any():
            return ""
        return "No whole patch covers the pixels that are wrong: their gradient is 0. Mask the load there, with other=0.0."

    exercise = Exercise(
        back,
        cases,
        lambda: build(8, 3, 225, 350, 16, torch.float32),
        mistakes,
        f"{_TRIED}; no access outside of a tensor, every pixel stored once, zeros past the last patch, grad_patches unchanged",
        [_stored_once],
        clues=[uncovered],
        illegal=past_the_end,
        gaps=gaps,
    )
    return judge(function, exercise)
