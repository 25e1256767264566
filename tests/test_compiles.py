"""Every kernel configuration compiles for every NVIDIA architecture from sm_75 to sm_120, and fits its shared memory.

No GPU is needed: Triton compiles for a target that is named, through ptxas to machine code, in processes that are told not
to interpret (`TRITON_INTERPRET=0`). Where there is a GPU, only its own architecture is compiled for: the rest would be the
same again. Spilled registers are no failure; too much shared memory is, and so is a configuration that takes more of it than
its table estimates, because the table decides what a GPU tries.

Not every combination is compiled, which would take half an hour, but on every architecture there are

- every configuration of `linear` that fits there: in float16 with bias, GELU and residual, through pointers and, from sm_90
  on, also through descriptors; in float32 (the most shared memory); bfloat16 with its fast GELU, TF32, and every other flag
  in one of them; for its backward pass, with one or both operands transposed, all of them again in float16 and float32;
- its persistent kernel from sm_90 on, in float16 and bfloat16, in every configuration for it that fits there; and what is
  pinned for the H200 without fitting by its estimate, on sm_90, as its shape class has it;
- every configuration of `norm_linear` that fits there, with a norm and with moments, in float16 and float32;
- every configuration of attention that fits there, in float16 with heads of 64; for each other head size and for the other
  types the first that fits, which takes the most shared memory; the same of its two backward kernels, and of these each of
  the latter also for heads that do not fill their block;
- `bmm` in every type; every configuration of `patch_embed` and of its two gradients that fits there, in float16 and float32,
  and the first of them in bfloat16;
- row and element-wise kernels, forward and backward, in the block shapes of narrow, usual, wide and the widest rows, and
  every type in one of them. These are not listed: the public functions run on tensors of such shapes, with kernels that note
  what they are launched with in place of the real ones.
"""

import contextlib
import functools
import importlib
import itertools
import multiprocessing
import os
import re
import struct
import subprocess
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vitcourse import runtime

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4}
ROW_AND_ELEMENTWISE = ("add", "cross_entropy", "dropout", "gelu", "layer_norm", "relu", "softmax", "sum_to_size")


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
    launched: dict[str, tuple[str, bool]] = field(default_factory=dict)  # of a launch: an argument's type, and if it is aligned

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.kernel} sm_{self.architecture} {self.dtype} warps={self.num_warps} stages={self.num_stages} {constants}"


def compile_job(job: Job) -> tuple[int, str, bytes]:
    """Compile `job`. Returns the bytes of shared memory that it takes, what went wrong or an empty string, and the ELF file."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"vitcourse.kernels.{job.module}"), job.kernel)
    constants = dict(job.constants)
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name.endswith("column_stride") and constants.setdefault(name, 1) is ...:  # of a transposed matrix: no constant
            del constants[name]
        if name in constants:
            signature[name] = "constexpr"
        elif name in job.launched:
            signature[name], aligned = job.launched[name]
            if aligned:
                attributes[index,] = [["tt.divisibility", 16]]
        elif name in job.descriptors:
            signature[name] = f"tensordesc<{job.dtype}[{', '.join(map(str, job.descriptors[name]))}]>"
        elif name in ("logsumexp_ptr", "delta_ptr", "sums_ptr", "moments_ptr", "new_moments_ptr"):
            signature[name] = "*fp32"
            attributes[index,] = [["tt.divisibility", 16]]
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
        return 0, f"{type(error).__name__}: {error}", b""
    cubin = compiled.asm.get("cubin") or b""
    return compiled.metadata.shared, "" if cubin else "no machine code came out", cubin


def code_sections(cubin: bytes) -> bytes:
    """The instructions in an ELF file of one kernel: the sections whose names begin with .text."""
    if not cubin:
        return b""
    (table,), (size, count, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<I20x2Q", cubin, table + index * size) for index in range(count)]  # name, offset, size
    start = sections[names][1]
    return b"".join(cubin[at : at + length] for name, at, length in sections if cubin.startswith(b".text.", start + name))


def machine_code(cubins: list[bytes]) -> list[str]:
    """The instructions for sm_90 in each of `cubins`, as text, by the disassembler that comes with Triton.

    It reads all of them at once, as one starts counting where the one before ends: starting it takes longer than that.
    """
    import triton  # isort: skip

    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    codes = [code_sections(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        command = [disassembler, "--binary", "SM90", "--no-dataflow", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line)]
    assert 16 * len(lines) == sum(map(len, codes))  # an instruction is 16 bytes
    ends = itertools.accumulate(len(code) // 16 for code in codes)
    return ["\n".join(lines[end - len(code) // 16 : end]) for code, end in zip(codes, ends)]


def suspicion(code: str) -> str:
    """What is wrong with a kernel's instructions for sm_90, or an empty string."""
    for told, find in (("reads what nothing has written", unset_registers), ("sums unequally", unequal_sums)):
        if found := find(code):
            return f"the machine code {told}: {found[0]}"
    return ""


def instructions(code: str) -> Iterator[tuple[str, str, list[str]]]:
    """Line, name and operands of each instruction."""
    for line in code.splitlines():
        found = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Za-z0-9_.]+)\s+(.*?);", line)
        if found:
            yield line.strip(), found[1], [operand.strip() for operand in found[2].split(",")]


def unequal_sums(code: str) -> list[str]:
    """Instructions that multiply and add what has just come from another lane, before anything was done with it.

    In a sum across lanes of products, one a lane, the compiler takes the first sum together with the product: a lane adds its
    own product in full to the other's, which is rounded. Then two lanes that hold the same sum differ in its last bit. Where
    both store it, which one counts is luck (compute-sanitizer's racecheck sees that).
    """
    shuffled: set[str] = set()
    found = []
    for line, name, operands in instructions(code):
        if name.startswith("SHFL"):
            shuffled.add(operands[1])
            continue
        if name.startswith("FFMA") and operands[3].lstrip("-") in shuffled:
            found.append(line)
        target = re.fullmatch(r"R(\d+)", operands[0])
        width = 4 if ".128" in name else 2 if ".64" in name or "WIDE" in name else 1
        shuffled -= {f"R{int(target[1]) + index}" for index in range(width)} if target else set()
    return found


def unset_registers(code: str) -> list[str]:
    """Instructions for sm_90 that read a uniform register which none above them has written.

    The ptxas of Triton 3.6 and 3.7.1 does so where a tile of values is half as wide as that of keys and both take turns in one
    buffer: it computes the address of the values' second piece from a register that it sets later, or never. Nothing is said of
    code that calls a subroutine, such as that of 64-bit division, which may write any register.
    """
    written: set[int] = set()
    found: list[str] = []
    if "CALL." in code:
        return found
    for line, name, operands in instructions(code):
        target = re.fullmatch(r"UR(\d+)", operands[0])
        target = target if name.startswith(("U", "S2UR", "R2UR", "CS2UR", "REDUX", "VOTEU")) else None
        read = set()
        for operand in operands[1:] if target else operands:
            # The tiles of both operands, or of the second if the first is in registers.
            for tiles in re.findall(r"gdesc\[UR(\d+)\]", operand):
                read |= set(range(int(tiles) + (2 if re.match(r"R\d", operands[1]) else 0), int(tiles) + 4))
            for memory in re.findall(r"(?<!g)desc\[UR(\d+)\]", operand):
                read |= {int(memory), int(memory) + 1}
            read |= {int(register) for register in re.findall(r"(?<!\[)UR(\d+)", operand)}
        if read - written:
            found.append(line)
        if target:
            width = 2 if ".64" in name or "WIDE" in name else 1
            written |= set(range(int(target[1]), int(target[1]) + width))
    return found


def types(architecture: int) -> list[str]:
    return ["fp16", "fp32", "bf16"] if architecture >= 80 else ["fp16", "fp32"]  # tensor cores know bfloat16 from sm_80 on


def precision(architecture: int, dtype: str) -> str:
    """What `runtime.dot_precision` says there, at PyTorch's default setting."""
    return "tf32x3" if dtype == "fp32" and architecture >= 80 else "ieee"


def linear_jobs(architecture: int, shared: int) -> Iterator[Job]:
    module = importlib.import_module("vitcourse.kernels.linear")
    configs, weight_configs = module.CONFIGS, module.WEIGHT_GRAD_CONFIGS

    def job(config, dtype, activation=None, bias=True, residual=True, tma=False, transposed=(False, False), **rest) -> Job:
        m, n, k = (config.blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
        flags = {"HAS_BIAS": bias, "ACTIVATION": activation, "HAS_RESIDUAL": residual, "TMA": tma, "SAVE": False, "SPLIT": False}
        flags |= {"INPUT_TRANSPOSED": tma and transposed[0], "WEIGHT_TRANSPOSED": tma and transposed[1]}
        flags |= {"PRECISION": precision(architecture, dtype), "K_FITS": True}
        flags |= {name: value for name, value in rest.items() if name in flags}
        absent = {"bias_ptr": None} if not bias else {}
        absent |= {"residual_ptr": None} if not residual else {}
        absent |= {"preactivation_ptr": None} if not flags["SAVE"] else {}
        absent |= {"splits": 1} if not flags["SPLIT"] else {}
        # A transposed matrix of dense rows: its elements follow each other along its columns.
        absent |= {"input_row_stride": 1, "input_column_stride": ...} if transposed[0] else {}
        absent |= {"weight_row_stride": 1, "weight_column_stride": ...} if transposed[1] else {}
        tiles = [(m, k), (n, k)]
        tiles = [tile[::-1] if flag else tile for tile, flag in zip(tiles, transposed)]
        blocks = {name: size for name, size in config.blocks.items() if name != "HALVES"}  # which is of the persistent kernel
        return Job(
            architecture, "linear", "linear_kernel", dtype, flags | absent | blocks, config.num_warps, config.num_stages,
            estimate=configs[ITEMSIZE[dtype]].shared_bytes(config, ITEMSIZE[dtype]),
            descriptors=dict(zip(("input", "weight"), tiles)) if tma else {}, aligned=rest.get("aligned", True),
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

    # What is pinned for the H200's persistent kernel serves this one too, where rows or types do not suit descriptors.
    for size, dtype in ((2, "fp16"), (4, "fp32")) if architecture == 90 else ():
        pinned = {str(config): config for config in configs[size].pinned["NVIDIA H200"].values() if "HALVES" in config.blocks}
        for config in pinned.values():
            for tma in (False, True):
                yield job(config, dtype, "gelu", SAVE=True, tma=tma, K_FITS=False, PRECISION={2: "ieee", 4: "tf32"}[size])

    # For training: a forward pass that keeps what the activation was given, and the two products of the backward pass.
    bare = {"bias": False, "residual": False}
    yield job(smallest, "fp16", "gelu", SAVE=True)
    for table, dtype in ((half, "fp16"), (single, "fp32")):
        for config in table:
            yield job(config, dtype, tma=architecture >= 90, transposed=(False, True), **bare)
    yield job(smallest, "fp16", transposed=(False, True), K_FITS=False, **bare)
    for size, dtype in ((2, "fp16"), (4, "fp32")):
        for index, config in enumerate(weight_configs[size].fitting(shared, size)):
            yield job(config, dtype, tma=architecture >= 90, transposed=(True, True), SPLIT=True, K_FITS=False, **bare)
            if index == 0 and architecture >= 80:
                yield job(config, {2: "bf16", 4: "fp32"}[size], transposed=(True, True), SPLIT=True, **bare)
    yield job(smallest, "fp16", transposed=(True, True), **bare)


def persistent_linear_jobs(architecture: int, shared: int) -> Iterator[Job]:
    module = importlib.import_module("vitcourse.kernels.linear")
    configs = module.CONFIGS
    if architecture < 90:
        return

    def job(
        config, dtype, activation=None, bias=False, save=False, residual=False, transposed=(False, False), estimated=True,
        to_dot=None,
    ) -> Job:  # fmt: skip
        m, n, k, halves = (config.blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "HALVES"))
        constants = {"HAS_BIAS": bias, "ACTIVATION": activation, "HAS_RESIDUAL": residual, "SAVE": save}
        constants |= {"PRECISION": to_dot or precision(architecture, dtype)}
        constants |= {"INPUT_TRANSPOSED": transposed[0], "WEIGHT_TRANSPOSED": transposed[1]}
        given = {"bias_ptr": bias, "residual": residual, "preactivation": save, "output": True}
        constants |= {name: None for name, there in given.items() if not there}
        tiles = {"input": (m, k), "weight": (n, k)}
        tiles = {name: tile[::-1] if flag else tile for (name, tile), flag in zip(tiles.items(), transposed)}
        tiles |= {name: (m, n // halves) for name in ("residual", "output", "preactivation") if given[name]}
        size = ITEMSIZE[dtype]
        return Job(
            architecture, "linear", "persistent_linear_kernel", dtype, constants | config.blocks,
            config.num_warps, config.num_stages, estimate=configs[size].shared_bytes(config, size) if estimated else None,
            descriptors=tiles,
        )  # fmt: skip

    training, everything = {"bias": True, "save": True}, {"bias": True, "save": True, "residual": True}
    for dtype in ITEMSIZE:
        gelu = "gelu_fast" if dtype == "bf16" else "gelu"
        for config in configs[ITEMSIZE[dtype]].fitting(shared, ITEMSIZE[dtype]):
            if "HALVES" in config.blocks:
                yield job(config, dtype)
                yield job(config, dtype, gelu, **training)
                yield job(config, dtype, bias=True, residual=True)
                yield job(config, dtype, gelu, **everything)
                for transposed in ((False, True), (True, False), (True, True)):
                    yield job(config, dtype, transposed=transposed)
    if architecture != 90:
        return
    # What is pinned for the H200 is launched whether or not it fits by the estimate, which has room for a residual. Its shape
    # class says whether there is one, and how float32 is multiplied.
    pinned = {}
    for dtype, size in ITEMSIZE.items():
        gelu = "gelu_fast" if dtype == "bf16" else "gelu"
        for shape_class, config in configs[size].pinned["NVIDIA H200"].items():
            if "HALVES" in config.blocks and config not in configs[size].fitting(shared, size):
                words = shape_class.split()
                to_dot = (set(words) & {"tf32", "tf32x3"} or {"ieee"}).pop()
                launch = functools.partial(job, config, dtype, estimated=False, to_dot=to_dot)
                if "residual" in words:
                    found = [launch(bias=True, residual=True), launch(gelu, **everything)]
                else:
                    found = [launch(), launch(gelu, **training)]
                    found += [launch(transposed=(a, b)) for a in (False, True) for b in (False, True)]
                pinned |= {str(one): one for one in found}  # several classes have one configuration
    yield from pinned.values()


def norm_linear_jobs(architecture: int, shared: int) -> Iterator[Job]:
    module = importlib.import_module("vitcourse.kernels.norm_linear")

    def job(config, dtype, norm: bool, tma: bool, activation=None, fits=False) -> Job:
        blocks = dict(config.blocks)
        overlap = blocks.pop("OVERLAP", False) and tma
        constants = {"NORM": norm, "HAS_BIAS": True, "ACTIVATION": activation, "HAS_RESIDUAL": not norm, "MOMENTS": not norm}
        constants |= {"PRECISION": precision(architecture, dtype), "TMA": tma, "K_FITS": fits, "PARTS": 32 if norm else 1}
        absent = ("residual_ptr", "new_moments_ptr") if norm else ("sums_ptr", "moments_ptr")
        constants |= dict.fromkeys((*absent, *(() if overlap else ("weight_ptr",))))
        m, n, k = (blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
        size = ITEMSIZE[dtype]
        return Job(
            architecture, "norm_linear", "norm_linear_kernel", dtype, constants | blocks | {"OVERLAP": overlap},
            config.num_warps, config.num_stages, estimate=module.CONFIGS[size].shared_bytes(config, size),
            descriptors={"input": (m, k), "weight": (n, k)} if tma else {},
        )  # fmt: skip

    for size, dtype in ((2, "fp16"), (4, "fp32")):
        for index, config in enumerate(module.CONFIGS[size].fitting(shared, size)):
            for norm in (True, False):
                yield job(config, dtype, norm, architecture >= 90, "gelu" if norm else None, fits=True)
                if index == 0:  # rows that are not 16-byte aligned
                    yield job(config, dtype, norm, False)
                if index == 0 and size == 2 and architecture >= 80:
                    yield job(config, "bf16", norm, architecture >= 90, "gelu_fast" if norm else None)


def attention_jobs(architecture: int, shared: int) -> Iterator[Job]:
    attention = importlib.import_module("vitcourse.kernels.attention")

    def job(kernel, config, dtype, causal, estimate, save=None, fits=True, **rest) -> Job:
        constants = {"CAUSAL": causal, "PRECISION": precision(architecture, dtype)} | config.blocks
        if kernel == "attention_kernel":
            constants |= {"SAVE": True} if save else {"SAVE": False, "logsumexp_ptr": None}
        else:
            constants |= {"HEAD_FITS": fits, "VALUE_FITS": fits}
        return Job(architecture, "attention", kernel, dtype, constants, config.num_warps, config.num_stages, estimate, **rest)

    rest = [(64, 64, "fp32"), (16, 16, "fp32"), (32, 32, "fp16"), (128, 128, "fp16"), (32, 128, "fp32"), (256, 256, "fp16")]
    rest += [(64, 64, "bf16")] if architecture >= 80 else []
    kernels = {"attention_kernel": attention._configs}
    for owner in ("query", "key"):
        kernels[f"attention_{owner}_backward_kernel"] = functools.partial(attention._backward_configs, owner)
    for kernel, table in kernels.items():
        usual = table(64, 64)
        for config in usual.fitting(shared, 2):
            yield job(kernel, config, "fp16", True, usual.shared_bytes(config, 2))
        for block_d, block_v, dtype in rest:
            configs = table(block_d, block_v)
            config = configs.fitting(shared, ITEMSIZE[dtype])[0]
            estimate = configs.shared_bytes(config, ITEMSIZE[dtype])
            odd = block_d == 32
            yield job(kernel, config, dtype, False, estimate, save=dtype == "fp16", fits=not odd, aligned=not odd)
            if kernel != "attention_kernel" and not odd:
                yield job(kernel, config, dtype, True, estimate, fits=False)
        if architecture == 90:  # where `unset_registers` looks: sizes of heads that no wide access fits
            for sizes in ((20, 9), (9, 40)):
                configs = table(*attention._blocks(*sizes))
                names = getattr(attention, kernel).arg_names
                numbers = [name for name in names if name.endswith(("stride", "_size")) and not name.endswith("column_stride")]
                launched = dict.fromkeys([*numbers, "heads", "queries", "keys"], ("i32", False))
                for config in configs.fitting(shared, 2):
                    estimate = configs.shared_bytes(config, 2)
                    yield job(kernel, config, "fp16", False, estimate, save=True, fits=False, launched=launched)


def product_jobs(architecture: int, shared: int) -> Iterator[Job]:
    bmm, patch_embed = (importlib.import_module(f"vitcourse.kernels.{name}") for name in ("bmm", "patch_embed"))
    patch = {"PATCH_HEIGHT": 16, "PATCH_WIDTH": 16, "HAS_CLASS": True}
    odd = {"PATCH_HEIGHT": 7, "PATCH_WIDTH": 7, "HAS_CLASS": False, "column_stride": ...}
    tables = (
        ("patch_embed_kernel", patch_embed.CONFIGS, {"HAS_BIAS": True, "HAS_POSITION": True}),
        ("patch_embed_input_backward_kernel", patch_embed.INPUT_GRAD_CONFIGS, {}),
        ("patch_embed_weight_backward_kernel", patch_embed.WEIGHT_GRAD_CONFIGS, {}),
    )
    for dtype in types(architecture):
        to_dot = {"PRECISION": precision(architecture, dtype)}
        launch = functools.partial(Job, architecture)
        yield launch("bmm", "bmm_kernel", dtype, bmm.CONFIG.blocks | to_dot, bmm.CONFIG.num_warps, bmm.CONFIG.num_stages)
        for kernel, table, flags in tables:
            fitting = table.fitting(shared, ITEMSIZE[dtype])
            # In float16 also patches of a width that no wide access fits, in an image of any strides.
            jobs = [(patch, config, True) for config in (fitting[:1] if dtype == "bf16" else fitting)]
            for sizes, config, aligned in [*jobs, (odd, fitting[0], False)] if dtype == "fp16" else jobs:
                options = (config.num_warps, config.num_stages, table.shared_bytes(config, ITEMSIZE[dtype]))
                yield launch("patch_embed", kernel, dtype, sizes | flags | config.blocks | to_dot, *options, aligned=aligned)


class Launches:
    """In place of a kernel: what it is launched with becomes a Job, and nothing runs."""

    def __init__(self, architecture: int, module: str, kernel, found: dict[str, Job]):
        self.architecture, self.module, self.kernel, self.found = architecture, module, kernel, found

    def __getitem__(self, grid: tuple) -> Callable[..., None]:
        return self.launch

    def launch(self, *values: object, num_warps: int = 4, num_stages: int = 3, **named: object) -> None:
        # As Triton does: None and 1 are constants, and a multiple of 16 is known to be one.
        constants, launched, dtype = {}, {}, ""
        given = dict(zip(self.kernel.arg_names, values)) | named
        for parameter in self.kernel.params:
            value = given.pop(parameter.name)
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                constants[parameter.name] = value
            elif isinstance(value, int):
                launched[parameter.name] = ("i32" if abs(value) < 2**31 else "i64", value % 16 == 0)
            elif isinstance(value, float):
                launched[parameter.name] = ("fp32", False)
            else:
                names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int64": "i64"}
                name = names[str(value.dtype).removeprefix("torch.")]
                dtype = dtype or name
                launched[parameter.name] = (f"*{name}", value.data_ptr() % 16 == 0)
        assert not given, f"{self.kernel.__name__} has no {', '.join(given)}"
        job = Job(
            self.architecture, self.module, self.kernel.__name__, dtype, constants, num_warps, num_stages, launched=launched
        )  # fmt: skip
        self.found[f"{job} {launched}"] = job


@contextlib.contextmanager
def launches(architecture: int, shared: int) -> Iterator[dict[str, Job]]:
    """No kernel of a row or element-wise operation runs; what would be launched on `architecture` is found here."""
    import torch
    from triton.runtime.jit import JITFunction

    gpu = {"multiprocessors": lambda: 100, "shared_memory": lambda: shared, "DEVICE": torch.device("cuda")}
    found: dict[str, Job] = {}
    with contextlib.ExitStack() as stack:
        for name in ROW_AND_ELEMENTWISE:
            module = importlib.import_module(f"vitcourse.kernels.{name}")
            replaced = {key: value for key, value in gpu.items() if hasattr(module, key)}
            for key, value in vars(module).items():
                if isinstance(value, JITFunction) and key.endswith("_kernel"):
                    replaced[key] = Launches(architecture, name, value, found)
            for key, value in replaced.items():
                stack.enter_context(unittest.mock.patch.object(module, key, value))
        yield found


def row_and_elementwise_jobs(architecture: int, shared: int) -> list[Job]:
    import torch

    from vitcourse import kernels, runtime

    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=runtime.DEVICE).requires_grad_()

    def both(function: Callable, *inputs: torch.Tensor) -> None:
        """Forward and backward."""
        results = function(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        torch.autograd.backward(results, [torch.ones_like(result) for result in results])

    def norm(rows: int, columns: int, dtype: torch.dtype = torch.float16, **rest) -> None:
        x, weight, bias = empty(rows, columns, dtype=dtype), empty(columns, dtype=dtype), empty(columns, dtype=dtype)
        if rest.get("single"):
            weight, bias = empty(columns, dtype=torch.float32), empty(columns, dtype=torch.float32)
        residual = empty(rows, columns, dtype=dtype) if rest.get("residual") else None
        if rest.get("frozen"):
            weight, bias = weight.detach(), bias.detach()
        if rest.get("bare"):
            weight = bias = None
        both(lambda: kernels.layer_norm(x, (columns,), weight, bias, residual=residual))

    usual = [torch.float16, torch.float32] + ([torch.bfloat16] if architecture >= 80 else [])
    with launches(architecture, shared) as found:
        for dtype in usual:
            x, row = empty(32, 768, dtype=dtype), empty(768, dtype=dtype)
            both(kernels.add, x, x)
            both(kernels.add, x, row)
            both(kernels.relu, x)
            both(kernels.gelu, x)
            both(lambda x: kernels.gelu(x, "tanh"), x)
            both(lambda x: kernels.softmax(x, -1), empty(32, 197, dtype=dtype))
            norm(32, 768, dtype, residual=True)
            with torch.no_grad():
                kernels.layer_norm(x, (768,), row, row)
        both(kernels.add, empty(3, 333), empty(3, 333, dtype=torch.float32))
        both(kernels.relu, empty(3, 333))
        for a, b in (((2051, 1), (1, 1)), ((70, 32), (70, 1)), ((3, 5000), (3, 1)), ((70_000, 16), (16,)), ((2, 100_000), ())):
            both(kernels.add, empty(*a), empty(*b))
        both(kernels.add, empty(300, 20_000), empty(20_000))
        for dtype in usual:
            both(lambda x: kernels.dropout(x, 0.1), empty(32, 768, dtype=dtype))
            for reduction in ("mean", "sum", "none"):
                target = torch.zeros(64, dtype=torch.int64, device=runtime.DEVICE)
                x = empty(64, 1000, dtype=dtype)
                both(lambda x, t=target, r=reduction: kernels.cross_entropy(x, t, reduction=r), x)
        widest = importlib.import_module("vitcourse.kernels.cross_entropy").WIDEST
        for columns in (1, 10, 64, widest, widest + 1, 4 * widest):
            for smoothing in (0.0, 0.1):
                target = torch.zeros(2 + 2048 // columns, dtype=torch.int64, device=runtime.DEVICE)
                both(lambda x, t=target, s=smoothing: kernels.cross_entropy(x, t, label_smoothing=s), empty(len(target), columns))
        widest = importlib.import_module("vitcourse.kernels.softmax").WIDEST
        for columns in (1, 64, 1000, widest, widest + 1):
            x = empty(2 + 2048 // columns, columns)
            both(lambda x, causal=columns > 64: kernels.softmax(x, -1, causal=causal), x)
        both(lambda x: kernels.softmax(x, 0), empty(64, 33))
        both(lambda x: kernels.softmax(x, -1, torch.float32), empty(32, 64))
        widest = importlib.import_module("vitcourse.kernels.layer_norm").WIDEST
        for columns in (1, 64, widest):
            norm(70 + 2048 // columns, columns)
        norm(32, widest, torch.float32)
        norm(70, 1000, bare=True)
        norm(70, 1000, frozen=True)
        norm(70, widest + 1, residual=True, single=True)
        norm(70, widest + 16, bare=True)
        x = empty(768, 32)
        both(lambda x: kernels.layer_norm(x.t(), (768,)), x)
    return list(found.values())


# What the docstring lists, in pieces that tests share among processes.
PIECES = {
    "linear": linear_jobs,
    "persistent": persistent_linear_jobs,
    "norm_linear": norm_linear_jobs,
    "attention": attention_jobs,
    "products": product_jobs,
    "rows": row_and_elementwise_jobs,
}


def jobs(piece: str, architecture: int) -> list[Job]:
    """A piece's, for one architecture. Called where Triton does not interpret: block sizes depend on it."""
    assert not runtime.INTERPRETER
    return list(PIECES[piece](architecture, runtime.SHARED_MEMORY[architecture]))


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


def on(architecture: int) -> object:
    elsewhere = runtime.DEVICE.type == "cuda" and architecture != runtime.capability()
    why = "the same on every machine, and compiled where there is no GPU"
    return pytest.param(architecture, id=f"sm_{architecture}", marks=pytest.mark.skipif(elsewhere, reason=why))


@pytest.mark.parametrize("architecture", [on(architecture) for architecture in ARCHITECTURES])
@pytest.mark.parametrize("piece", PIECES)
def test_every_configuration_compiles_and_fits(piece, architecture, compilers):
    shared = runtime.SHARED_MEMORY[architecture]
    todo = compilers.submit(jobs, piece, architecture).result()
    assert todo or (piece == "persistent" and architecture not in (90, 100))
    wrong = []
    compiled = list(compilers.map(compile_job, todo))
    codes = machine_code([cubin for _, _, cubin in compiled]) if architecture == 90 else [""] * len(todo)
    for job, (taken, error, _), code in zip(todo, compiled, codes):
        if error := error or suspicion(code):
            wrong.append(f"{job}: {error}")
        elif taken > shared:
            wrong.append(f"{job}: takes {taken} bytes of shared memory; sm_{architecture} has {shared}")
        elif job.estimate is not None and taken > job.estimate:
            wrong.append(f"{job}: takes {taken} bytes of shared memory; the table estimates {job.estimate}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(todo)}:", *wrong])


def test_every_kernel_of_rows_and_elements_is_compiled(compilers):
    found = {job.kernel for job in compilers.submit(jobs, "rows", 90).result()}
    modules = [importlib.import_module(f"vitcourse.kernels.{name}") for name in ROW_AND_ELEMENTWISE]
    assert {name for module in modules for name in vars(module) if name.endswith("_kernel")} <= found


def too_large(configs, architecture: int, itemsize: int) -> bool:
    """Whether these are gradients of attention that are refused: in float32 on sm_75, with heads past 128."""
    blocks = configs.candidates[0].blocks
    return "backward" in configs.kernel and (architecture, itemsize) == (75, 4) and blocks["BLOCK_D"] + blocks["BLOCK_V"] > 256


def test_something_fits_everywhere():
    assert tuple(runtime.SHARED_MEMORY) == ARCHITECTURES
    linear = importlib.import_module("vitcourse.kernels.linear")
    attention = importlib.import_module("vitcourse.kernels.attention")
    attention_tables = (
        attention._configs,
        *(functools.partial(attention._backward_configs, owner) for owner in ("query", "key")),
    )
    sizes = (16, 32, 64, 128, 256)
    tables = [
        (configs, (itemsize,)) for each in (linear.CONFIGS, linear.WEIGHT_GRAD_CONFIGS) for itemsize, configs in each.items()
    ]
    tables += [(table(d, v), (2, 4)) for table in attention_tables for d in sizes for v in sizes if d <= v]
    patch_embed = importlib.import_module("vitcourse.kernels.patch_embed")
    tables += [(getattr(patch_embed, f"{product}CONFIGS"), (2, 4)) for product in ("", "INPUT_GRAD_", "WEIGHT_GRAD_")]
    for configs, itemsizes in tables:
        for architecture, shared in runtime.SHARED_MEMORY.items():
            for itemsize in itemsizes:
                if too_large(configs, architecture, itemsize):
                    continue
                assert configs.fitting(shared, itemsize), f"{configs.kernel}: nothing fits sm_{architecture} at {itemsize} bytes"


def test_every_pinned_configuration_is_a_candidate():
    linear = importlib.import_module("vitcourse.kernels.linear").CONFIGS
    for configs in (*linear.values(), importlib.import_module("vitcourse.kernels.attention")._configs(64, 64)):
        for pinned in configs.pinned.values():
            assert all(config in configs.candidates for config in pinned.values())


def test_a_configuration_that_cannot_compile_is_told(compilers):
    constants = {"BLOCK": 1000}  # tl.arange wants a power of two
    taken, error, _ = compilers.submit(compile_job, Job(80, "relu", "relu_kernel", "fp16", constants)).result()
    assert taken == 0 and "power of 2" in error


def test_machine_code_is_told_apart(compilers):
    relus = [Job(90, "relu", "relu_kernel", dtype, {"BLOCK": 1024}) for dtype in ("fp16", "fp32")]
    half, single = (cubin for _, _, cubin in compilers.map(compile_job, relus))

    def names(code: str) -> list[str]:
        return [name for _, name, _ in instructions(code)]

    together = [names(code) for code in machine_code([half, b"", single])]
    assert together == [names(machine_code([half])[0]), [], names(machine_code([single])[0])]
    assert together[0] != together[2] and all("EXIT" in code for code in together[::2])


def test_an_unset_register_is_seen():
    right = """
        /*0010*/                   ULDC.64 UR4, c[0x0][0x208] ;
        /*0020*/                   UIADD3 UR6, UP0, UR4, 0x20, URZ ;
        /*0030*/               @P0 UMOV UR7, 0xc0000010 ;
        /*0040*/                   HGMMA.64x16x16.F32 R56, R24, gdesc[UR4].tnspB, R56 ;
        /*0050*/                   LDG.E R2, desc[UR4][R8.64] ;
    """
    assert unset_registers(right) == []
    assert "UIADD3" in unset_registers(right.replace("UR4, 0x20", "UR8, 0x20"))[0]
    assert "HGMMA" in unset_registers(right.replace("gdesc[UR4]", "gdesc[UR8]"))[0]
    assert "LDG" in unset_registers(right.replace("desc[UR4][R8", "desc[UR10][R8"))[0]


def test_an_unequal_sum_is_seen():
    right = """
        /*0ca0*/                   FMUL R10, R24, R17 ;
        /*0cc0*/                   SHFL.BFLY PT, R13, R10, 0x8, 0x1f ;
        /*0ce0*/                   FADD R13, R10, R13 ;
        /*0cf0*/                   FFMA R14, R24, R17, R13 ;
    """
    assert unequal_sums(right) == []
    assert "0ce0" in unequal_sums(right.replace("FADD R13, R10, R13", "FFMA R13, R24, R17, R13"))[0]
