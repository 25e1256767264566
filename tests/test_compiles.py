"""Every kernel configuration compiles for every NVIDIA architecture from sm_75 to sm_120, and fits its shared memory.

No GPU is needed: Triton compiles for a target that is named, through ptxas to machine code, in processes that are told not
to interpret (`TRITON_INTERPRET=0`). Spilled registers are no failure; too much shared memory is, and so is a configuration
that takes more of it than its table estimates, because the table decides what a GPU tries.

Not every combination is compiled, which would take half an hour, but on every architecture there are

- every configuration of `linear` that fits there: in float16 with bias, GELU and residual, through pointers and, from sm_90
  on, also through descriptors; in float32 (the most shared memory); bfloat16 with its fast GELU, TF32, and every other flag
  in one of them;
- every configuration of attention that fits there, in float16 with heads of 64; for each other head size and for the other
  types the first that fits, which takes the most shared memory;
- `bmm` and `patch_embed` in every type;
- row and element-wise kernels in the block shapes of narrow, usual, wide and the widest rows, and every type in one of them.
"""

import importlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import pytest

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Job:
    """One kernel to compile for one architecture."""

    architecture: int
    module: str
    kernel: str
    dtype: str
    constants: dict[str, object]
    num_warps: int = 4
    num_stages: int = 3
    estimate: int | None = None  # bytes of shared memory, where a table states them
    descriptors: dict[str, tuple[int, int]] = field(default_factory=dict)  # arguments that are descriptors, with their block
    aligned: bool = True  # sizes and strides that are multiples of 16, as far as they are not constants

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.kernel} sm_{self.architecture} {self.dtype} warps={self.num_warps} stages={self.num_stages} {constants}"


def compile_job(job: Job) -> tuple[int, str]:
    """Compile `job`. Returns the bytes of shared memory that it takes, and what went wrong, or an empty string."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"vitcourse.kernels.{job.module}"), job.kernel)
    constants = dict(job.constants)
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name.endswith("column_stride"):
            constants.setdefault(name, 1)
        if name in constants:
            signature[name] = "constexpr"
        elif name in job.descriptors:
            signature[name] = f"tensordesc<{job.dtype}[{', '.join(map(str, job.descriptors[name]))}]>"
        elif name.endswith("_ptr") or name in ("input", "weight"):
            signature[name] = f"*{job.dtype}"
            attributes[index,] = [["tt.divisibility", 16]]
        elif name in ("scale", "eps"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if job.aligned else "i64"
            if job.aligned:
                attributes[index,] = [["tt.divisibility", 16]]
    try:
        compiled = triton.compile(
            ASTSource(kernel, signature, constants, attributes),
            target=GPUTarget("cuda", job.architecture, 32),
            options={"num_warps": job.num_warps, "num_stages": job.num_stages},
        )
    except Exception as error:  # reported with the job, and the other jobs go on
        return 0, f"{type(error).__name__}: {error}"
    return compiled.metadata.shared, "" if compiled.asm.get("cubin") else "no machine code came out"


def types(architecture: int) -> list[str]:
    return ["fp16", "fp32", "bf16"] if architecture >= 80 else ["fp16", "fp32"]  # tensor cores know bfloat16 from sm_80 on


def precision(architecture: int, dtype: str) -> str:
    """What `runtime.dot_precision` says there, at PyTorch's default setting."""
    return "tf32x3" if dtype == "fp32" and architecture >= 80 else "ieee"


def linear_jobs(architecture: int, shared: int) -> Iterator[Job]:
    configs = importlib.import_module("vitcourse.kernels.linear").CONFIGS

    def job(config, dtype, activation=None, bias=True, residual=True, tma=False, **rest) -> Job:
        m, n, k = (config.blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
        flags = {"HAS_BIAS": bias, "ACTIVATION": activation, "HAS_RESIDUAL": residual, "TMA": tma}
        flags["PRECISION"] = precision(architecture, dtype)
        flags |= {"K_FITS": True} | {name: value for name, value in rest.items() if name in ("PRECISION", "K_FITS")}
        absent = {"bias_ptr": None} if not bias else {}
        absent |= {"residual_ptr": None} if not residual else {}
        return Job(
            architecture, "linear", "linear_kernel", dtype, flags | absent | config.blocks, config.num_warps, config.num_stages,
            estimate=configs[ITEMSIZE[dtype]].shared_bytes(config, ITEMSIZE[dtype]),
            descriptors={"input": (m, k), "weight": (n, k)} if tma else {}, aligned=rest.get("aligned", True),
        )  # fmt: skip

    half, single = (configs[size].fitting(shared, size) for size in (2, 4))
    for config in half:
        yield job(config, "fp16", "gelu", K_FITS=False)
        if architecture >= 90:  # pointers remain for rows that are not 16-byte aligned
            yield job(config, "fp16", "gelu", tma=True)
    for config in single:
        yield job(config, "fp32", tma=architecture >= 90)
    smallest = half[-1]
    yield job(single[-1], "fp32", PRECISION="tf32")
    yield job(smallest, "fp16", "relu", bias=False, residual=False)
    yield job(smallest, "fp16", "gelu_tanh", residual=False)
    yield job(smallest, "fp16", None, bias=False, K_FITS=False, aligned=False)
    if architecture >= 80:
        yield job(half[0], "bf16", "gelu_fast")
    else:
        yield job(half[0], "fp16", "gelu_fast")  # the hardware's tanh came with sm_75
    if architecture >= 90:
        yield job(half[0], "bf16", "gelu_fast", tma=True)
        yield job(single[-1], "fp32", tma=True)


def attention_jobs(architecture: int, shared: int) -> Iterator[Job]:
    table = importlib.import_module("vitcourse.kernels.attention")._configs

    def job(config, dtype, causal, estimate, **rest) -> Job:
        constants = {"CAUSAL": causal, "PRECISION": precision(architecture, dtype)} | config.blocks
        return Job(
            architecture, "attention", "attention_kernel", dtype, constants, config.num_warps, config.num_stages, estimate, **rest
        )

    usual = table(64, 64)
    for config in usual.fitting(shared, 2):
        yield job(config, "fp16", True, usual.shared_bytes(config, 2))
    rest = [(64, 64, "fp32"), (16, 16, "fp32"), (32, 32, "fp16"), (128, 128, "fp16"), (128, 32, "fp32"), (256, 256, "fp16")]
    for block_d, block_v, dtype in (*rest, *([(64, 64, "bf16")] if architecture >= 80 else [])):
        configs = table(block_d, block_v)
        config = configs.fitting(shared, ITEMSIZE[dtype])[0]
        yield job(config, dtype, False, configs.shared_bytes(config, ITEMSIZE[dtype]), aligned=block_d != 32)


def product_jobs(architecture: int) -> Iterator[Job]:
    bmm, patch_embed = (importlib.import_module(f"vitcourse.kernels.{name}").CONFIG for name in ("bmm", "patch_embed"))
    everything = {"PATCH_HEIGHT": 16, "PATCH_WIDTH": 16, "HAS_BIAS": True, "HAS_CLASS": True, "HAS_POSITION": True}
    for dtype in types(architecture):
        for module, config, constants in (("bmm", bmm, {}), ("patch_embed", patch_embed, everything)):
            constants = constants | config.blocks | {"PRECISION": precision(architecture, dtype)}
            yield Job(architecture, module, f"{module}_kernel", dtype, constants, config.num_warps, config.num_stages)


def row_and_elementwise_jobs(architecture: int) -> Iterator[Job]:
    add, gelu, relu, softmax, layer_norm = (
        importlib.import_module(f"vitcourse.kernels.{name}") for name in ("add", "gelu", "relu", "softmax", "layer_norm")
    )

    def job(module: str, kernel: str, dtype: str = "fp16", aligned: bool = True, **constants: object) -> Job:
        return Job(architecture, module, kernel, dtype, constants, aligned=aligned)

    for dtype in types(architecture):
        yield job("add", "add_kernel", dtype, BLOCK=add.BLOCK)
        yield job("relu", "relu_kernel", dtype, BLOCK=relu.BLOCK)
        yield job("gelu", "gelu_kernel", dtype, BLOCK=gelu.BLOCK, TANH=dtype == "fp32")
        yield job("softmax", "softmax_kernel", dtype, CAUSAL=False, BLOCK_ROWS=softmax.TILE_ELEMENTS // 256, BLOCK_COLUMNS=256)
        rows = layer_norm.TILE_ELEMENTS // 1024
        flags = {"HAS_WEIGHT": True, "HAS_BIAS": True}
        yield job("layer_norm", "layer_norm_kernel", dtype, **flags, BLOCK_ROWS=rows, BLOCK_COLUMNS=1024)
    yield job("gelu", "gelu_kernel", BLOCK=gelu.BLOCK, TANH=True)
    for columns in (1, 32, add.TILE_ELEMENTS):
        rows = add.TILE_ELEMENTS // columns
        yield job("add", "broadcast_add_kernel", aligned=columns > 1, BLOCK_ROWS=rows, BLOCK_COLUMNS=columns)
    for columns in (1, 64, softmax.WIDEST):
        rows = max(1, softmax.TILE_ELEMENTS // columns)
        yield job("softmax", "softmax_kernel", aligned=columns > 1, CAUSAL=True, BLOCK_ROWS=rows, BLOCK_COLUMNS=columns)
    yield job("softmax", "wide_softmax_kernel", CAUSAL=True, BLOCK_COLUMNS=softmax.WIDEST // 2)
    absent = {"HAS_WEIGHT": False, "HAS_BIAS": False, "weight_ptr": None, "bias_ptr": None}
    for columns in (1, layer_norm.WIDEST):
        rows = max(1, layer_norm.TILE_ELEMENTS // columns)
        yield job("layer_norm", "layer_norm_kernel", aligned=columns > 1, **absent, BLOCK_ROWS=rows, BLOCK_COLUMNS=columns)
    yield job("layer_norm", "wide_layer_norm_kernel", HAS_WEIGHT=True, HAS_BIAS=True, BLOCK_COLUMNS=layer_norm.WIDEST // 2)


def jobs(architecture: int) -> list[Job]:
    """What the docstring lists, for one architecture. Called where Triton does not interpret: block sizes depend on it."""
    from vitcourse import runtime

    assert not runtime.INTERPRETER
    shared = runtime.SHARED_MEMORY[architecture]
    return [
        *linear_jobs(architecture, shared),
        *attention_jobs(architecture, shared),
        *product_jobs(architecture),
        *row_and_elementwise_jobs(architecture),
    ]


@pytest.fixture(scope="module")
def compilers() -> Iterator[ProcessPoolExecutor]:
    """Two processes in which Triton compiles, whatever it does in this one."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "0"
    try:
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            for start in [pool.submit(os.getpid) for _ in range(2)]:  # they inherit the environment of this moment
                start.result()
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before
            yield pool
    finally:
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def test_every_configuration_compiles_and_fits(architecture, compilers):
    from vitcourse import runtime

    shared = runtime.SHARED_MEMORY[architecture]
    todo = compilers.submit(jobs, architecture).result()
    wrong = []
    for job, (taken, error) in zip(todo, compilers.map(compile_job, todo)):
        if error:
            wrong.append(f"{job}: {error}")
        elif taken > shared:
            wrong.append(f"{job}: takes {taken} bytes of shared memory; sm_{architecture} has {shared}")
        elif job.estimate is not None and taken > job.estimate:
            wrong.append(f"{job}: takes {taken} bytes of shared memory; the table estimates {job.estimate}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(todo)}:", *wrong])


def test_something_fits_everywhere():
    from vitcourse import runtime

    assert tuple(runtime.SHARED_MEMORY) == ARCHITECTURES
    linear = importlib.import_module("vitcourse.kernels.linear").CONFIGS
    attention = importlib.import_module("vitcourse.kernels.attention")._configs
    sizes = (16, 32, 64, 128, 256)
    tables = [(configs, (itemsize,)) for itemsize, configs in linear.items()]
    tables += [(attention(d, v), (2, 4)) for d in sizes for v in sizes]
    for configs, itemsizes in tables:
        for architecture, shared in runtime.SHARED_MEMORY.items():
            for itemsize in itemsizes:
                assert configs.fitting(shared, itemsize), f"{configs.kernel}: nothing fits sm_{architecture} at {itemsize} bytes"


def test_every_pinned_configuration_is_a_candidate():
    linear = importlib.import_module("vitcourse.kernels.linear").CONFIGS
    for configs in (*linear.values(), importlib.import_module("vitcourse.kernels.attention")._configs(64, 64)):
        for pinned in configs.pinned.values():
            assert all(config in configs.candidates for config in pinned.values())


def test_a_configuration_that_cannot_compile_is_told():
    from vitcourse import runtime  # noqa: F401  (before Triton)

    constants = {"BLOCK": 1000}  # tl.arange wants a power of two
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_compile_mode) as pool:
        taken, error = pool.submit(compile_job, Job(80, "relu", "relu_kernel", "fp16", constants)).result()
    assert taken == 0 and "power of 2" in error


def _compile_mode() -> None:
    os.environ["TRITON_INTERPRET"] = "0"
