"""Inputs and outputs in hostile memory, for every test that runs a kernel.

Inputs lie in memory filled with NaN, and outputs are handed out filled with NaN between guard bands: a kernel that reads past
its operand, leaves an element unwritten, or writes outside its result is found out even where the values happen to be right.
"""

import contextlib
import math
import unittest.mock
from collections.abc import Callable, Iterator

import pytest
import torch

from vitcourse import runtime

GUARD = 256  # elements; a multiple of 16 bytes in every type, so that a guarded tensor is aligned as torch.empty's are
SENTINEL = -12345.0
LAYOUTS = ("contiguous", "unaligned", "transposed", "stepped", "padded", "expanded")

on_gpu = pytest.mark.skipif(runtime.DEVICE.type != "cuda", reason="needs a CUDA GPU: too large for Triton's interpreter")


def tensor(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str = "contiguous",
    *,
    seed: int = 0,
    scale: float = 1.0,
    grid: float | None = None,
) -> torch.Tensor:
    """Normally distributed values in `shape`, lying as `layout` says in memory that is otherwise NaN.

    grid: round them to multiples of this, so that a sum of two has no rounding error in any type.
    """
    generator = torch.Generator().manual_seed(seed)
    stored, step, gap, first = list(shape), 1, 0, GUARD
    if layout == "transposed":
        stored = stored[::-1]
    elif layout == "stepped" and stored:
        step, gap = 2, 3
    elif layout == "padded" and stored:
        gap = 5
    elif layout == "expanded" and stored:
        stored[0] = 1
    elif layout == "unaligned":
        first += 1
    strides, stride = [], step
    for index, size in enumerate(reversed(stored)):
        strides.insert(0, stride)
        stride *= max(size, 1)
        if index == 0:
            stride += gap
    if layout == "transposed":
        strides = strides[::-1]
    elif layout == "expanded" and shape:
        strides[0] = 0
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides)) if math.prod(shape) else 0
    memory = torch.full((first + extent + GUARD,), float("nan"), dtype=dtype, device=runtime.DEVICE)
    view = memory.as_strided(shape, strides, first)
    values = torch.randn(shape if layout != "expanded" or not shape else (1, *shape[1:]), generator=generator) * scale
    if grid is not None:
        values = (values / grid).round() * grid
    target = view[:1] if layout == "expanded" and shape else view
    target.copy_(values.to(dtype))
    return view


@contextlib.contextmanager
def guarded_outputs() -> Iterator[None]:
    """Let torch.empty and torch.empty_like hand out NaN between guard bands, and check the bands at the end."""
    empty, empty_like = torch.empty, torch.empty_like
    handed_out = []

    def guard(plain: torch.Tensor) -> torch.Tensor:
        if not plain.is_floating_point():
            return plain
        extent = 1 + sum((size - 1) * stride for size, stride in zip(plain.shape, plain.stride())) if plain.numel() else 0
        memory = empty(2 * GUARD + extent, dtype=plain.dtype, device=plain.device)
        memory[:GUARD] = memory[GUARD + extent :] = SENTINEL
        memory[GUARD : GUARD + extent] = float("nan")
        handed_out.append((memory, extent))
        return memory.as_strided(plain.shape, plain.stride(), GUARD)

    with (
        unittest.mock.patch.object(torch, "empty", lambda *args, **kwargs: guard(empty(*args, **kwargs))),
        unittest.mock.patch.object(torch, "empty_like", lambda *args, **kwargs: guard(empty_like(*args, **kwargs))),
    ):
        yield
    for memory, extent in handed_out:
        sentinel = torch.tensor(SENTINEL, dtype=memory.dtype)
        outside = torch.cat([memory[:GUARD], memory[GUARD + extent :]]).cpu()
        assert bool((outside == sentinel).all()), "written outside the result"


def call(function: Callable, *args, **kwargs):
    """function(*args, **kwargs) with guarded outputs; fails if the call changes one of its inputs."""
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    before = [value.clone() for value in inputs]
    with guarded_outputs():
        result = function(*args, **kwargs)
    for value, copy in zip(inputs, before):
        assert torch.equal(value.nan_to_num(1.25), copy.nan_to_num(1.25)), "an input was changed"
    return result


def double(*values: object) -> list:
    return [value.double() if isinstance(value, torch.Tensor) else value for value in values]
