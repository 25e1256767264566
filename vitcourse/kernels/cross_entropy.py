"""`cross_entropy`: minus the logarithm of the softmax at a row's target, with label smoothing (Szegedy et al., arXiv 1512.00567).

The loss of a row x is log(sum(exp(x))) - x[target]. A row that fits in one block stays on chip: a program owns BLOCK_ROWS
whole rows and reads each once. A wider row is walked once by the one program that owns it, with a running maximum and a
running sum (online softmax, Milakov and Gimelshein, arXiv 1805.02867). No probability is ever written. With smoothing s, the
loss is (1 - s) times that, plus s times its mean over all classes.

Backward: dx = (softmax(x) - (1 - s) * onehot(target) - s / columns) * dloss. What is kept for it is the log-sum-exp of each
row, as the maximum and the logarithm of the sum of exponentials below it: added up, large logits would round the second away.
With these two there is nothing left to reduce, and a program owns a tile of dx, in rows of any width.
"""

import math

import torch
import triton
import triton.language as tl

from ..runtime import (
    DEVICE,
    INTERPRETER,
    cdiv,
    check_numbers,
    check_tensors,
    first_derivative_only,
    needs_gradient,
    next_power_of_2,
    operator,
)
from .sum_to_size import sum_middle

# The widest row held in registers, and the elements a program holds of narrower ones: 32 a thread.
WIDEST = 1 << 17 if INTERPRETER else 16384
TILE_ELEMENTS = 1 << 17 if INTERPRETER else 2048


@triton.jit
def finish_rows(
    row, maximum, log_total, distance,
    input_ptr, target_ptr, loss_ptr, statistics_ptr, rows, columns, row_stride, column_stride, ignore_index, smoothing,
    SMOOTH: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    # What is stored of a row, or of several. distance: the mean of maximum - x.
    inside = row < rows
    target = tl.load(target_ptr + row, mask=inside, other=-1)
    # A target that is no class has no logit: its loss is NaN, unless it is ignored.
    known = inside & (target >= 0) & (target < columns)
    x = tl.load(input_ptr + row * row_stride + target * column_stride, mask=known, other=float("nan")).to(tl.float32)
    loss = log_total + (maximum - x)
    if SMOOTH:
        loss = (1.0 - smoothing) * loss + smoothing * (log_total + distance)
    counted = target != ignore_index
    tl.store(loss_ptr + row, tl.where(counted, loss, 0.0), mask=inside)
    if COUNT:
        tl.store(loss_ptr + rows + row, tl.where(counted, 1.0, 0.0), mask=inside)
    tl.store(statistics_ptr + row, maximum, mask=inside)
    tl.store(statistics_ptr + rows + row, log_total, mask=inside)


@triton.jit
def cross_entropy_kernel(
    input_ptr, target_ptr, loss_ptr, statistics_ptr, rows, columns, row_stride, column_stride, ignore_index, smoothing,
    SMOOTH: tl.constexpr, COUNT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    # A column may be far from the next.
    columns_ptr = input_ptr + row[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
    x = tl.load(columns_ptr, mask=mask, other=-float("inf")).to(tl.float32)
    maximum = tl.max(x, axis=1)
    log_total = tl.log(tl.sum(tl.exp(x - maximum[:, None]), axis=1))
    distance = maximum
    if SMOOTH:
        distance = tl.sum(tl.where(mask, maximum[:, None] - x, 0.0), axis=1) / columns
    finish_rows(
        row, maximum, log_total, distance, input_ptr, target_ptr, loss_ptr, statistics_ptr,
        rows, columns, row_stride, column_stride, ignore_index, smoothing, SMOOTH, COUNT,
    )  # fmt: skip


@triton.jit
def wide_cross_entropy_kernel(
    input_ptr, target_ptr, loss_ptr, statistics_ptr, rows, columns, row_stride, column_stride, ignore_index, smoothing,
    SMOOTH: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = input_ptr + row * row_stride
    # Every lane keeps a running maximum and the sum of exponentials below it; they meet after the loop. The maximum of the row
    # is not known yet, so distances are taken from its first logit, which is as large if all of them are.
    lane_maximum = tl.full((BLOCK_COLUMNS,), -float("inf"), tl.float32)
    lane_total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    lane_distance = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    first = tl.load(row_ptr).to(tl.float32)
    first = tl.where(first == -float("inf"), 0.0, first)
    # A lane takes STEP numbers at a time: one rescaling of its sum for all of them.
    step = tl.arange(0, STEP)[:, None] * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    for start in range(0, columns, STEP * BLOCK_COLUMNS):
        column = start + step.to(tl.int64)
        mask = column < columns
        x = tl.load(row_ptr + column * column_stride, mask=mask, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(lane_maximum, tl.max(x, axis=0))
        # A lane that has seen nothing but -inf has no maximum to subtract: -inf - -inf is NaN.
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        lane_total = lane_total * tl.exp(lane_maximum - shift) + tl.sum(tl.exp(x - shift[None, :]), axis=0)
        lane_maximum = larger
        if SMOOTH:
            lane_distance += tl.sum(tl.where(mask, first - x, 0.0), axis=0)
    maximum = tl.max(lane_maximum, axis=0)
    log_total = tl.log(tl.sum(lane_total * tl.exp(lane_maximum - maximum), axis=0))
    distance = tl.sum(lane_distance, axis=0) / columns + (maximum - first)
    finish_rows(
        row, maximum, log_total, distance, input_ptr, target_ptr, loss_ptr, statistics_ptr,
        rows, columns, row_stride, column_stride, ignore_index, smoothing, SMOOTH, COUNT,
    )  # fmt: skip


@triton.jit
def cross_entropy_backward_kernel(
    grad_ptr, input_ptr, target_ptr, statistics_ptr, sums_ptr, input_grad_ptr,
    rows, columns, row_stride, column_stride, ignore_index, smoothing,
    REDUCTION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first = (tl.program_id(0) % column_blocks).to(tl.int64) * BLOCK_COLUMNS
    lane = tl.arange(0, BLOCK_COLUMNS)
    column = first + lane
    inside = row < rows
    # Numbers within the tile are compared in 32 bits, which takes half as many instructions an element.
    mask = inside[:, None] & (lane < tl.minimum(columns - first, BLOCK_COLUMNS).to(tl.int32))[None, :]
    x = tl.load(input_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + row, mask=inside, other=-1)
    maximum = tl.load(statistics_ptr + row, mask=inside, other=0.0)
    log_total = tl.load(statistics_ptr + rows + row, mask=inside, other=0.0)
    if REDUCTION == "none":
        grad = tl.load(grad_ptr + row, mask=inside, other=0.0).to(tl.float32)
    else:
        grad = tl.zeros((BLOCK_ROWS,), tl.float32) + tl.load(grad_ptr).to(tl.float32)
    if REDUCTION == "mean":
        grad = grad / tl.load(sums_ptr + 1)
    grad = tl.where((target >= 0) & (target < columns), grad, float("nan"))  # as in the loss
    probability = tl.exp(x - maximum[:, None] - log_total[:, None])
    wanted = tl.where(lane[None, :] == (target - first).to(tl.int32)[:, None], 1.0 - smoothing, 0.0) + smoothing / columns
    input_grad = tl.where((target != ignore_index)[:, None], grad[:, None] * (probability - wanted), 0.0)
    tl.store(input_grad_ptr + row[:, None] * columns + column[None, :], input_grad, mask=mask)


def _fake(x, target, ignore_index, smoothing, reduction, dtype):
    loss = x.new_empty(target.shape if reduction == "none" else (), dtype=dtype)
    sums = x.new_empty((0 if reduction == "none" else 2,), dtype=torch.float32)
    return loss, x.new_empty((2, x.shape[0]), dtype=torch.float32), sums


@operator(
    "cross_entropy(Tensor input, Tensor target, int ignore_index, float smoothing, str reduction, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    _fake,
)
def _cross_entropy(x, target, ignore_index, smoothing, reduction, dtype):
    """x (rows, columns), target (rows,): the loss; maxima and logarithms of sums, (2, rows); sum and count of losses, (2,)."""
    rows, columns = x.shape
    if DEVICE.type == "cpu":  # on a GPU the device would have to be waited for
        wrong = target[(target != ignore_index) & ((target < 0) | (target >= columns))]
        if len(wrong):
            accepted = f"a class from 0 to {columns - 1}, or ignore_index={ignore_index},"
            raise IndexError(f"cross_entropy: target has {wrong[0].item()}; {accepted} is accepted")
    target = target.contiguous()
    none = reduction == "none"
    losses = torch.empty((rows,) if none else (2, rows), dtype=dtype if none else torch.float32, device=x.device)
    statistics = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    arguments = (x, target, losses, statistics, rows, columns, *x.stride(), ignore_index, smoothing)
    flags = {"SMOOTH": smoothing > 0, "COUNT": not none}
    width = next_power_of_2(max(columns, 1))
    if rows and width <= WIDEST:
        block_rows = min(next_power_of_2(rows), max(1, TILE_ELEMENTS // width))
        cross_entropy_kernel[(cdiv(rows, block_rows),)](
            *arguments, **flags, BLOCK_ROWS=block_rows, BLOCK_COLUMNS=width, num_warps=max(2, width // 1024)
        )
    elif rows:
        # No more warps than a row of lanes fills with wide loads: eight here took eight times as long on an H200.
        wide_cross_entropy_kernel[(rows,)](*arguments, **flags, STEP=4, BLOCK_COLUMNS=WIDEST // 16, num_warps=4)
    if none:
        return losses, statistics, torch.empty(0, dtype=torch.float32, device=x.device)
    sums = sum_middle(losses.view(2, rows, 1), torch.float32).view(2)
    loss = sums[0] / sums[1] if reduction == "mean" else sums[0]
    return loss.to(dtype, copy=True), statistics, sums


@operator(
    "cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor statistics, Tensor sums, int ignore_index,"
    " float smoothing, str reduction) -> Tensor",
    lambda grad, x, *rest: x.new_empty(x.shape),
)
def _cross_entropy_backward(grad, x, target, statistics, sums, ignore_index, smoothing, reduction):
    rows, columns = x.shape
    input_grad = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if input_grad.numel():
        width = min(next_power_of_2(columns), TILE_ELEMENTS)
        block_rows = min(next_power_of_2(rows), TILE_ELEMENTS // width)
        cross_entropy_backward_kernel[(cdiv(rows, block_rows) * cdiv(columns, width),)](
            grad.contiguous(), x, target.contiguous(), statistics, sums, input_grad, rows, columns, *x.stride(),
            ignore_index, smoothing, REDUCTION=reduction, BLOCK_ROWS=block_rows, BLOCK_COLUMNS=width,
        )  # fmt: skip
    return input_grad


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, target, ignore_index, smoothing, reduction, dtype):
        loss, statistics, sums = _cross_entropy(x, target, ignore_index, smoothing, reduction, dtype)
        ctx.save_for_backward(x, target, statistics, sums)
        ctx.settings = ignore_index, smoothing, reduction
        return loss

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        return _cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None, None


def _refuse(weight: object, size_average: object, reduce: object, reduction: str, smoothing: float, ignore_index: int) -> None:
    if weight is not None:
        raise ValueError("cross_entropy: weight is not supported; None is accepted")
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        if value is not None:
            raise ValueError(f"cross_entropy: {name} is {value!r}, which PyTorch has deprecated; use reduction")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'cross_entropy: reduction is {reduction!r}; "mean", "sum" and "none" are accepted')
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing is {smoothing!r}; a number from 0 to 1 is accepted")
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        raise TypeError(f"cross_entropy: ignore_index is {ignore_index!r}; an int is accepted")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"cross_entropy: ignore_index is {ignore_index}; a number of 64 bits, as targets are, is accepted")


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """`torch.nn.functional.cross_entropy` of logits and class indices, computed in float32.

    input: (rows, classes), (classes,), or (rows, classes, d1, ...). target: int64, in the input's shape without its classes.
    The loss is one number, the mean over all targets or their sum, or with reduction="none" has the target's shape. It has the
    input's type; under autocast, on a GPU and on a CPU, it is float32.

    ignore_index: a target with this value counts for nothing: its loss is 0, its logits' gradients are 0 whatever they are, and
    it is not counted in the mean, which is NaN where nothing is. label_smoothing: the share s, from 0 to 1, of the target
    that is spread evenly over all classes.

    A target that is no class and not ignore_index raises IndexError on a CPU, as PyTorch's does. On a GPU, where it could not
    be told without waiting for the device, its loss and its logits' gradients are NaN (PyTorch's kernel ends the process's use
    of the GPU). ValueError for weight, size_average and reduce, and for shapes that do not fit; TypeError for types, which
    include a floating-point target: the probabilities that PyTorch takes are not supported.
    """
    check_numbers("cross_entropy", label_smoothing=label_smoothing)
    check_tensors("cross_entropy", input=input)
    _refuse(weight, size_average, reduce, reduction, label_smoothing, ignore_index)
    if not isinstance(target, torch.Tensor) or target.dtype != torch.int64:
        what = f"of type {target.dtype}" if isinstance(target, torch.Tensor) else f"a {type(target).__name__}"
        raise TypeError(f"cross_entropy: target is {what}; a tensor of class indices, torch.int64, is accepted")
    if target.device != input.device:
        raise ValueError(f'cross_entropy: target is on "{target.device}" and input on "{input.device}"; one device is accepted')
    if input.ndim == 0:
        raise ValueError("cross_entropy: input has no dimensions; (classes,) or (rows, classes, ...) is accepted")
    last = input.movedim(min(1, input.ndim - 1), -1)
    if target.shape != last.shape[:-1] and not (input.ndim == 1 and target.shape == (1,)):
        accepted = f"input of shape {tuple(input.shape)} needs a target of shape {tuple(last.shape[:-1])}"
        raise ValueError(f"cross_entropy: target has shape {tuple(target.shape)}; {accepted}")
    dtype = torch.float32 if torch.is_autocast_enabled(input.device.type) else input.dtype
    x = last.reshape(math.prod(last.shape[:-1]), last.shape[-1])  # a view where the rows are evenly spaced, else a copy
    arguments = (x, target.reshape(-1), ignore_index, float(label_smoothing), reduction, dtype)
    loss = _CrossEntropy.apply(*arguments) if needs_gradient(x) else _cross_entropy(*arguments)[0]
    return loss.view(last.shape[:-1]) if reduction == "none" else loss
