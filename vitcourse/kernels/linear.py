"""`linear`: input @ weight.T + bias, then an activation, then a residual, in one kernel.

The output (M, N) is cut into BLOCK_M x BLOCK_N tiles. A program walks along K for its tile, BLOCK_K at a time, and keeps the
sums in registers as float32; bias, activation and residual are applied there, so the product never travels to memory and
back in between. Tiles are numbered in groups of GROUP_M tile rows, so that programs running at the same time share rows
of the input and of the weight in the L2 cache.

On GPUs with a tensor memory accelerator (sm_90 and later) tiles of the input and the weight arrive through descriptors,
where their rows or their columns are dense and 16-byte aligned; everywhere else through pointers and masks.

Backward, with z = input @ weight.T + bias and dz = dy * activation'(z), is two more products of the same kernel: dz @ weight
and dz.T @ input, of operands that lie transposed. The second has few output tiles and a sum over all rows, so the rows are cut
into shares: a program owns one tile of one share, stores its partial sum in float32, and a second launch adds the shares up in
a fixed order. With an activation, a forward pass for training stores z as well: M * N elements, 310 MB for the first linear
layer of ViT-B/16's MLP at 256 images in half precision. Without one it keeps nothing but its arguments.
"""

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..runtime import (
    INTERPRETER,
    Config,
    Configs,
    capability,
    cdiv,
    check_tensors,
    dot_precision,
    first_derivative_only,
    multiprocessors,
    needs_gradient,
    next_power_of_2,
    operator,
    side_by_side,
)
from .gelu import _gelu_backward, gelu_erf, gelu_erf_fast, gelu_tanh
from .relu import _relu_backward
from .sum_to_size import sum_middle, sum_to_size

ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh")


@triton.jit
def tile_of(program, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    group = program // (GROUP_M * tiles_n)
    group_height = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    within = program % (GROUP_M * tiles_n)
    return group * GROUP_M + within % group_height, within // group_height


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "gelu":
        x = gelu_erf(x)
    elif ACTIVATION == "gelu_fast":
        x = gelu_erf_fast(x)
    elif ACTIVATION == "gelu_tanh":
        x = gelu_tanh(x)
    return x


@triton.jit
def linear_kernel(
    input, weight, bias_ptr, residual_ptr, output_ptr, preactivation_ptr,
    M, N, K, input_row_stride, input_column_stride, weight_row_stride, weight_column_stride, residual_row_stride, splits,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr, INPUT_TRANSPOSED: tl.constexpr, WEIGHT_TRANSPOSED: tl.constexpr,
    K_FITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    # `input` and `weight` are descriptors where TMA is true and pointers where it is not. A descriptor wants dense rows, so
    # that of a transposed operand is of the matrix as it lies, (K, M) or (K, N).
    program = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    first, last = 0, K
    if SPLIT:  # output_ptr is of (splits, M, N) partial sums, each over a whole number of steps along K
        split = program // (tiles_m * tiles_n)
        program = program % (tiles_m * tiles_n)
        share = tl.cdiv(tl.cdiv(K, BLOCK_K), splits) * BLOCK_K
        first = split * share
        last = tl.minimum(first + share, K)
        output_ptr += split.to(tl.int64) * M * N
    tile_m, tile_n = tile_of(program, tiles_m, tiles_n, GROUP_M)

    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    mask = (m < M)[:, None] & (n < N)[None, :]
    # Asked for before the walk along K, so that nothing has to wait for it at the end. A large tile has no registers to spare.
    EARLY: tl.constexpr = HAS_RESIDUAL and BLOCK_M * BLOCK_N <= 8192
    if HAS_BIAS:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0)
    if EARLY:
        residual = tl.load(residual_ptr + m[:, None] * residual_row_stride + n[None, :], mask=mask)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if TMA:
        for start in range(first, last, BLOCK_K):
            if INPUT_TRANSPOSED:
                a = input.load([start, tile_m * BLOCK_M]).T
            else:
                a = input.load([tile_m * BLOCK_M, start])
            if WEIGHT_TRANSPOSED:
                b = weight.load([start, tile_n * BLOCK_N])
            else:
                b = weight.load([tile_n * BLOCK_N, start]).T
            accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
    else:
        k64 = k.to(tl.int64)  # columns of a transposed matrix may lie far apart
        a_ptrs = input + m[:, None] * input_row_stride + k64[None, :] * input_column_stride
        b_ptrs = weight + n[None, :] * weight_row_stride + k64[:, None] * weight_column_stride
        if SPLIT:
            a_ptrs += first.to(tl.int64) * input_column_stride
            b_ptrs += first.to(tl.int64) * weight_column_stride
        for start in range(first, last, BLOCK_K):
            a_mask = m[:, None] < M
            b_mask = n[None, :] < N
            if not K_FITS:
                a_mask = a_mask & (k[None, :] < K - start)
                b_mask = b_mask & (k[:, None] < K - start)
            a = tl.load(a_ptrs, mask=a_mask, other=0.0)
            b = tl.load(b_ptrs, mask=b_mask, other=0.0)
            accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
            a_ptrs += tl.cast(input_column_stride, tl.int64) * BLOCK_K
            b_ptrs += tl.cast(weight_column_stride, tl.int64) * BLOCK_K

    if HAS_BIAS:
        accumulator += bias.to(tl.float32)[None, :]
    if SAVE:
        tl.store(preactivation_ptr + m[:, None] * N + n[None, :], accumulator, mask=mask)
    accumulator = activate(accumulator, ACTIVATION)
    if HAS_RESIDUAL:
        if not EARLY:
            residual = tl.load(residual_ptr + m[:, None] * residual_row_stride + n[None, :], mask=mask)
        accumulator += residual.to(tl.float32)
    tl.store(output_ptr + m[:, None] * N + n[None, :], accumulator, mask=mask)


@triton.jit
def finish_tile(
    accumulator, row, column, N, bias_ptr, residual, output, preactivation,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n = column + tl.arange(0, BLOCK_N)
    if HAS_BIAS:
        accumulator += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if SAVE:
        preactivation.store([row, column], accumulator.to(preactivation.dtype))
    accumulator = activate(accumulator, ACTIVATION)
    if HAS_RESIDUAL:
        accumulator += residual.load([row, column]).to(tl.float32)
    output.store([row, column], accumulator.to(output.dtype))


@triton.jit
def persistent_linear_kernel(
    input, weight, bias_ptr, residual, output, preactivation, M, N, K,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr, INPUT_TRANSPOSED: tl.constexpr, WEIGHT_TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    # As many programs as the GPU holds at once share all tiles: program p takes tiles p, p + programs, and so on. Its loops over
    # tiles and along K are one loop, so that the loads of the next tile are under way while this one is finished and stored.
    programs = tl.num_programs(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    steps = tl.cdiv(K, BLOCK_K)
    tile = tl.program_id(0) - programs
    mine = tl.cdiv(tiles_m * tiles_n - tl.program_id(0), programs)
    step = -1
    row, column = 0, 0
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, mine * steps):
        step = tl.where(step == steps - 1, 0, step + 1)
        if step == 0:
            tile += programs
            tile_m, tile_n = tile_of(tile, tiles_m, tiles_n, GROUP_M)
            row, column = tile_m * BLOCK_M, tile_n * BLOCK_N
        if INPUT_TRANSPOSED:
            a = input.load([step * BLOCK_K, row]).T
        else:
            a = input.load([row, step * BLOCK_K])
        if WEIGHT_TRANSPOSED:
            b = weight.load([step * BLOCK_K, column])
        else:
            b = weight.load([column, step * BLOCK_K]).T
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
        if step == steps - 1:
            if HALVES == 2:  # half a tile at a time passes through shared memory on its way out, which leaves room for loads
                pair = tl.permute(tl.reshape(accumulator, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
                left, right = tl.split(pair)
                finish_tile(
                    left, row, column, N, bias_ptr, residual, output, preactivation,
                    HAS_BIAS, ACTIVATION, HAS_RESIDUAL, SAVE, BLOCK_N // 2,
                )  # fmt: skip
                finish_tile(
                    right, row, column + BLOCK_N // 2, N, bias_ptr, residual, output, preactivation,
                    HAS_BIAS, ACTIVATION, HAS_RESIDUAL, SAVE, BLOCK_N // 2,
                )  # fmt: skip
            else:
                finish_tile(
                    accumulator, row, column, N, bias_ptr, residual, output, preactivation,
                    HAS_BIAS, ACTIVATION, HAS_RESIDUAL, SAVE, BLOCK_N,
                )  # fmt: skip
            accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)


def _blocks(m: int, n: int, k: int, group: int = 8) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": group}


def _shared_bytes(config: Config, itemsize: int) -> int:
    b = config.blocks
    tiles = (b["BLOCK_M"] + b["BLOCK_N"]) * b["BLOCK_K"] * itemsize * config.num_stages
    if itemsize == 4:  # tf32x3 keeps what is left of the input's tile after rounding beside it
        tiles += b["BLOCK_M"] * b["BLOCK_K"] * 4
    # The epilogue may pass the output tile through shared memory to change its layout; a persistent one does so while the next
    # tiles arrive, beside the residual's.
    output = b["BLOCK_M"] * b["BLOCK_N"]
    if "HALVES" in b:
        tiles += 2 * output // b["HALVES"] * itemsize
    return max(tiles, output * 4) + 1024


LARGE = Config(_blocks(128, 256, 64), num_warps=8, num_stages=3)
SQUARE = Config(_blocks(128, 128, 64), num_warps=4, num_stages=3)
LOW = Config(_blocks(64, 128, 64), num_warps=4, num_stages=4)
LOW_THREE = Config(_blocks(64, 128, 64), num_warps=4, num_stages=3)  # three programs a multiprocessor
SMALL = Config(_blocks(64, 32, 128), num_warps=4, num_stages=4)
# Persistent, where descriptors serve: two programs of four warps a multiprocessor, or one of eight.
PERSISTENT = Config(_blocks(128, 128, 64, 4) | {"HALVES": 2}, num_warps=4, num_stages=3)
PERSISTENT_LARGE = Config(_blocks(128, 256, 64) | {"HALVES": 2}, num_warps=8, num_stages=3)
PERSISTENT_DEEP = Config(_blocks(128, 256, 64) | {"HALVES": 2}, num_warps=8, num_stages=4)
PERSISTENT_SHALLOW = Config(_blocks(128, 256, 32) | {"HALVES": 2}, num_warps=8, num_stages=3)
# Shallower in K, for float32's larger elements and for GPUs with less shared memory.
LARGE_SHALLOW = Config(_blocks(128, 256, 32), num_warps=8, num_stages=3)
LOW_SHALLOW = Config(_blocks(64, 128, 32), num_warps=4, num_stages=4)
NARROW_SHALLOW = Config(_blocks(128, 64, 32), num_warps=4, num_stages=3)
SMALL_SHALLOW = Config(_blocks(64, 64, 32), num_warps=4, num_stages=3)
LEAST = Config(_blocks(64, 64, 16), num_warps=4, num_stages=2)

# By bytes an element. Pinned: measured at ViT-B/16's four shapes and batch 1, 8, 32 and 256.
CONFIGS = {
    2: Configs(
        "linear",
        candidates=[
            PERSISTENT, PERSISTENT_LARGE, PERSISTENT_DEEP, LARGE, SQUARE, LOW, LOW_THREE, SMALL, NARROW_SHALLOW, SMALL_SHALLOW,
        ],
        shared_bytes=_shared_bytes,
        pinned={
            "NVIDIA H200": {
                "few 2": SMALL, "some 2": LOW, "many 2": PERSISTENT, "many deep 2": PERSISTENT_DEEP,
                "many transposed 2": PERSISTENT_LARGE,
                "few residual 2": SMALL, "some residual 2": LOW, "several residual 2": LOW_THREE,
                "many residual 2": PERSISTENT_LARGE, "many deep residual 2": PERSISTENT_LARGE,
            },
        },
    ),
    4: Configs(
        "linear float32",
        candidates=[PERSISTENT_SHALLOW, LARGE_SHALLOW, LOW_SHALLOW, NARROW_SHALLOW, SMALL_SHALLOW, LEAST],
        shared_bytes=_shared_bytes,
        pinned={
            "NVIDIA H200": {
                f"{kind}{residual} {precision} 4": config
                for residual, large in (("", PERSISTENT_SHALLOW), (" residual", LARGE_SHALLOW))
                for precision, few, many in (("tf32", LOW_SHALLOW, large), ("tf32x3", None, NARROW_SHALLOW))
                for kind, config in (
                    ("few", few), ("some", few), ("several", many), ("many", many), ("many transposed", many),
                    ("many deep", many),
                )
                if config is not None
            },
        },
    ),
}  # fmt: skip


def _shape_class(M: int, N: int, K: int, precision: str, residual: bool, transposed: bool) -> str:
    """How many tiles there are for how many multiprocessors, which decides how large a tile may be.

    "many": 128 x 128 tiles for half of the multiprocessors or more; "some": 64 x 128 tiles for half of them; "few": neither.
    "many deep": even 128 x 256 tiles come round four times, and K is long enough to make up for their slow start. "several
    residual": "many", but 128 x 256 tiles, which a residual wants, do not come round so often, and part of the last turn would
    be idle. "transposed": so does the weight lie, as for the gradient of the input.
    """
    half = multiprocessors() / 2

    def tiles(m: int, n: int) -> int:
        return cdiv(M, m) * cdiv(N, n)

    kind = "many" if tiles(128, 128) >= half else "some" if tiles(64, 128) >= half else "few"
    rounds = tiles(128, 256) >= 8 * half
    if K >= 2048 and rounds:
        kind = "many deep"
    elif kind == "many" and residual and not rounds:
        kind = "several"
    elif kind == "many" and transposed and not residual:
        kind = "many transposed"
    kind += " residual" if residual else ""  # its tile takes shared memory, too
    return kind if precision == "ieee" else f"{kind} {precision}"


def _lies(matrix: torch.Tensor) -> str | None:
    """Which of a matrix's lines a descriptor can read: "rows", "columns", or neither.

    They have to be evenly spaced, 16-byte aligned, and dense.
    """
    for lines, along, across in (("rows", 1, 0), ("columns", 0, 1)):
        space = matrix.stride(across) * matrix.element_size()
        if matrix.stride(along) == 1 and space % 16 == 0 and space > 0 and matrix.data_ptr() % 16 == 0:
            return lines
    return None


def _interpreter_config(M: int, N: int, K: int) -> Config:
    """Tiles as large as the matrices, within what NumPy handles well: the interpreter's cost is in the number of steps."""

    def block(size: int, largest: int) -> int:
        return min(max(next_power_of_2(size), 16), largest)

    return Config(_blocks(block(M, 256), block(N, 1024), block(K, 256)))


def _descriptors(config: Config, operands: list[torch.Tensor], transposed: list[bool]) -> list[TensorDescriptor]:
    """Descriptors of (M, K) and (N, K) for the tiles of `config`; that of a transposed one is of the matrix as it lies."""
    descriptors = []
    for matrix, lies_transposed, side in zip(operands, transposed, ("BLOCK_M", "BLOCK_N")):
        block = [config.blocks[side], config.blocks["BLOCK_K"]]
        if lies_transposed:
            matrix, block = matrix.t(), block[::-1]
        descriptors.append(TensorDescriptor(matrix, list(matrix.shape), [matrix.stride(0), 1], block))
    return descriptors


def _product(
    config: Config, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
    output: torch.Tensor, preactivation: torch.Tensor | None, activation: str | None, splits: int = 1,
) -> None:  # fmt: skip
    """Launch the kernel: input (M, K), weight (N, K), any strides; output (M, N), or with splits their (splits, M, N) sums."""
    (M, K), N = input.shape, weight.shape[0]
    block_m, block_n, block_k = (config.blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    tiles = cdiv(M, block_m) * cdiv(N, block_n)
    lies = _lies(input), _lies(weight)
    tma = capability() >= 90 and K > 0 and None not in lies
    transposed = [tma and lines == "columns" for lines in lies]
    operands = _descriptors(config, [input, weight], transposed) if tma else [input, weight]
    residual_row_stride = N if residual is None else residual.stride(0)
    flags = {
        "HAS_BIAS": bias is not None, "ACTIVATION": activation, "HAS_RESIDUAL": residual is not None,
        "SAVE": preactivation is not None, "PRECISION": dot_precision(input.dtype),
        "INPUT_TRANSPOSED": transposed[0], "WEIGHT_TRANSPOSED": transposed[1],
    }  # fmt: skip
    options = config.options()
    halves = options.pop("HALVES", 0)
    tiled = residual, output, preactivation
    # Under autocast the residual and the result may be float32, whose tiles take more shared memory than is estimated.
    suits = all(matrix is None or (_lies(matrix) == "rows" and matrix.dtype == input.dtype) for matrix in tiled)
    if halves and tma and splits == 1 and suits:
        block = [block_m, block_n // halves]
        tiled = [None if matrix is None else TensorDescriptor.from_tensor(matrix, block) for matrix in tiled]
        programs = min(tiles, multiprocessors() * (8 // config.num_warps))
        persistent_linear_kernel[(programs,)](*operands, bias, *tiled, M, N, K, **flags, HALVES=halves, **options)
        return
    linear_kernel[(tiles * splits,)](
        *operands, bias, residual, output, preactivation, M, N, K, *input.stride(), *weight.stride(), residual_row_stride, splits,
        SPLIT=splits > 1, TMA=tma, K_FITS=K % block_k == 0, **flags, **options,
    )  # fmt: skip


def _fake(x, weight, bias, residual, activation, dtype, save):
    shape = x.shape[0], weight.shape[0]
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape if save else (0,))


@operator(
    "linear(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, str? activation, ScalarType dtype, bool save)"
    " -> (Tensor, Tensor)",
    _fake,
)
def _linear(x, weight, bias, residual, activation, dtype, save):
    """x (M, K), weight (N, K), bias (N,), residual (M, N): the result in `dtype`; what the activation was given, or empty."""
    (M, K), N = x.shape, weight.shape[0]
    output = torch.empty((M, N), dtype=dtype, device=x.device)
    preactivation = torch.empty((M, N) if save else (0,), dtype=x.dtype, device=x.device)
    if output.numel() == 0:
        return output, preactivation
    bias = None if bias is None else bias.contiguous()
    if residual is not None:
        residual = residual if residual.stride(1) == 1 or N == 1 else residual.contiguous()
    if activation == "gelu" and x.dtype == torch.bfloat16:
        activation = "gelu_fast"

    def launch(config: Config) -> None:
        _product(config, x, weight, bias, residual, output, preactivation if save else None, activation)

    if INTERPRETER:
        launch(_interpreter_config(M, N, K))
    else:
        transposed = _lies(weight) == "columns"
        shape_class = _shape_class(M, N, K, dot_precision(x.dtype), residual is not None, transposed)
        launch(CONFIGS[x.element_size()].choose(shape_class, x.dtype, launch))
    return output, preactivation


# For the gradient of the weight, by bytes an element: a class for few rows and one for many.
WEIGHT_GRAD_CONFIGS = {
    2: Configs(
        "linear weight",
        candidates=[LARGE, SQUARE, LOW, NARROW_SHALLOW, SMALL_SHALLOW],
        shared_bytes=_shared_bytes,
        pinned={"NVIDIA H200": {"many rows 2": LARGE}},
    ),
    4: Configs(
        "linear weight float32",
        candidates=[LARGE_SHALLOW, LOW_SHALLOW, NARROW_SHALLOW, SMALL_SHALLOW, LEAST],
        shared_bytes=_shared_bytes,
    ),
}


def _splits(tiles: int, rows: int, block: int) -> int:
    """Shares to cut `rows` into, for `tiles` output tiles: as many as take the least time, of 16 at most.

    Time in that of one tile over all rows: the turns in which the multiprocessors take the programs, each 1 / splits long; and
    what a program costs beside its products. That is a tile's way into memory and back, which nothing hides: as long as the
    products of 1,800 rows, which fits the times of ViT-B/16's four layers on an H200 in half precision.
    """
    most = max(1, min(16, cdiv(rows, block)))
    if INTERPRETER:
        return min(2, most)
    turns = tiles / multiprocessors()

    def time(splits: int) -> float:
        return math.ceil(turns * splits) / splits + (turns * splits * 1800 / rows if splits > 1 else 0.0)

    return min(range(1, most + 1), key=time)


def _weight_grad(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    (rows, N), K = grad.shape, x.shape[1]
    output = torch.empty((N, K), dtype=x.dtype, device=x.device)
    if output.numel() == 0:
        return output

    def launch(config: Config) -> torch.Tensor:
        tiles = cdiv(N, config.blocks["BLOCK_M"]) * cdiv(K, config.blocks["BLOCK_N"])
        splits = _splits(tiles, rows, config.blocks["BLOCK_K"])
        sums = output if splits == 1 else torch.empty((1, splits, N * K), dtype=torch.float32, device=x.device)
        _product(config, grad.t(), x.t(), None, None, sums, None, None, splits)
        return output if splits == 1 else sum_middle(sums, x.dtype).view(N, K)

    if INTERPRETER:
        return launch(_interpreter_config(N, K, rows))
    kind = "many rows" if rows >= 4096 else "few rows"
    precision = dot_precision(x.dtype)
    configs = WEIGHT_GRAD_CONFIGS[x.element_size()]
    return launch(configs.choose(kind if precision == "ieee" else f"{kind} {precision}", x.dtype, launch))


def _bias_grad(grad: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return sum_to_size(grad, grad.shape[1:], dtype)


@operator(
    "linear_parameters_backward(Tensor grad, Tensor input, bool bias) -> (Tensor, Tensor)",
    lambda grad, x, bias: (x.new_empty((grad.shape[1], x.shape[1])), x.new_empty((grad.shape[1] if bias else 0,))),
)
def _linear_parameters_backward(grad, x, bias):
    """grad.T @ x for grad (M, N) and x (M, K), summed in float32 over shares of the rows, and then over the shares.

    If `bias`, also grad's sum over the rows, (N,), else an empty tensor.
    """
    if not bias:
        return _weight_grad(grad, x), x.new_empty(0)
    # The sum waits for memory, and the product, which leaves some of every multiprocessor free, for arithmetic.
    return side_by_side(lambda: _weight_grad(grad, x), lambda: _bias_grad(grad, x.dtype))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, activation, dtype, shape):
        # Of `shape`, like the residual, so that the gradient comes back as the very tensor that autograd has and goes on to the
        # residual: of a view it could not tell that somebody else holds its memory, and would add into that.
        residual = None if residual is None else residual.reshape(len(x), len(weight))
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        save = activation is not None and (needs_input or needs_weight or needs_bias)
        output, preactivation = _linear(x, weight, bias, residual, activation, dtype, save)
        ctx.save_for_backward(x if needs_weight else None, weight if needs_input else None, preactivation if save else None)
        ctx.activation, ctx.dtype = activation, x.dtype
        return torch.ops.aten._unsafe_view(output, shape)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        x, weight, preactivation = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, needs_residual, *_ = ctx.needs_input_grad
        residual_grad = grad if needs_residual else None
        grad = grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1])
        grad = grad.to(ctx.dtype)  # with a residual of a wider type, which autocast allows, the result had that
        if preactivation is not None and ctx.activation == "relu":
            grad = _relu_backward(grad, preactivation)
        elif preactivation is not None:
            grad = _gelu_backward(grad, preactivation, "tanh" if ctx.activation == "gelu_tanh" else "none")
        input_grad = _linear(grad, weight.t(), None, None, None, ctx.dtype, False)[0] if needs_input else None
        weight_grad = bias_grad = None
        if needs_weight:
            weight_grad, bias_grad = _linear_parameters_backward(grad, x, needs_bias)
        elif needs_bias:
            bias_grad = _bias_grad(grad, ctx.dtype)
        return input_grad, weight_grad, bias_grad if needs_bias else None, residual_grad, None, None, None


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`torch.nn.functional.linear`, with what usually follows it: activation(input @ weight.T + bias) + residual.

    input: (..., in_features); weight: (out_features, in_features); bias: (out_features,); residual: (..., out_features).
    activation: None, "relu", "gelu" (erf) or "gelu_tanh". Sums in float32; a float32 product follows
    torch.get_float32_matmul_precision(). In bfloat16 the erf of "gelu" is the approximation of `gelu_erf_fast`, and Phi in its
    gradient that of `phi_fast`. One type for all; under autocast input, weight and bias are cast to autocast's type, and the
    result has that of the sum with the residual.
    """
    check_tensors("linear", {"bias": bias, "residual": residual}, input=input, weight=weight)
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation is {activation!r}; accepted: {', '.join(map(repr, ACTIVATIONS))}")
    if weight.ndim != 2:
        raise ValueError(f"linear: weight is {tuple(weight.shape)}; (out_features, in_features) is accepted")
    N, K = weight.shape
    if input.ndim < 1 or input.shape[-1] != K:
        raise ValueError(f"linear: input is {tuple(input.shape)}; with weight {tuple(weight.shape)}, (..., {K}) is accepted")
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"linear: bias is {tuple(bias.shape)}; with weight {tuple(weight.shape)}, ({N},) is accepted")
    shape = (*input.shape[:-1], N)
    if residual is not None and residual.shape != shape:
        raise ValueError(f"linear: residual is {tuple(residual.shape)}; {shape} is accepted")
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in (input, weight, bias))
        check_tensors("linear", {"bias": bias}, input=input, weight=weight)
        dtype = dtype if residual is None else torch.promote_types(dtype, residual.dtype)
    else:
        dtype = input.dtype
        for name, tensor in (("weight", weight), ("bias", bias), ("residual", residual)):
            if tensor is not None and tensor.dtype != dtype:
                raise TypeError(f"linear: {name} is {tensor.dtype} and input is {dtype}; one type for all is accepted")
    rows = math.prod(input.shape[:-1])
    x = input.reshape(rows, K)
    if needs_gradient(input, weight, bias, residual):
        return _Linear.apply(x, weight, bias, residual, activation, dtype, shape)
    residual = None if residual is None else residual.reshape(rows, N)
    return _linear(x, weight, bias, residual, activation, dtype, False)[0].view(shape)
