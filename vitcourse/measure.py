"""Timing on a GPU, the machine's two ceilings, and the recorded results in `benchmarks/`.

With the environment variable VITCOURSE_MEASURE_ONCE set to 1, as tests set it, everything is measured with as few calls as
possible: what measures is run, and its figures are worth nothing.

A recording is a CSV file in `benchmarks/<gpu>/`, a row a measurement with the fields of `Measurement`. What a notebook's cell
prints of one, and the README's table, is read from it by code.
"""

import csv
import datetime
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import triton

from . import runtime

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@dataclass
class Measurement:
    """One measured time with what it means.

    ms, ms_p20, ms_p80: median, 20th and 80th percentile of the time of one call, in milliseconds.
    metric, value: what the time was turned into, such as "GB/s" or "images/s".
    limit: the most of that metric that the GPU's measured ceilings allow; percent_of_limit: 100 * value / limit.
    """

    provider: str
    dtype: str
    shape: str
    batch: int
    ms: float
    ms_p20: float
    ms_p80: float
    metric: str
    value: float
    limit: float | None
    percent_of_limit: float | None
    gpu: str
    torch: str
    triton: str
    date: str


def _once() -> bool:
    return os.environ.get("VITCOURSE_MEASURE_ONCE") == "1"


def milliseconds(function: Callable[[], object], rep: int = 100) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile of the GPU time of `function()`, with the L2 cache flushed before every call.

    rep: for how many milliseconds to go on measuring. Raises RuntimeError with no GPU: the interpreter's speed says nothing
    about a kernel's.
    """
    if runtime.DEVICE.type != "cuda":
        raise RuntimeError("nothing is timed in Triton's interpreter: its speed says nothing about a GPU's")
    warmup, rep = (0, 0) if _once() else (25, rep)
    median, p20, p80 = triton.testing.do_bench(function, warmup=warmup, rep=rep, quantiles=[0.5, 0.2, 0.8])
    return median, p20, p80


def kernel_milliseconds(function: Callable[[], object], rep: int = 50) -> tuple[float, float, float]:
    """`milliseconds` without what the host takes to launch: the GPU waits before each call until the host has queued it.

    For one operation. A whole model is timed with `milliseconds`, because what its launches cost is part of what it costs.
    Raises RuntimeError with no GPU, as that does.
    """
    estimate = max(1e-3, milliseconds(function, rep=5)[0])
    start = time.perf_counter()
    for _ in range(3):
        function()
    host = (time.perf_counter() - start) / 3
    torch.cuda.synchronize()
    cache = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")  # several times any L2
    calls = 1 if _once() else min(200, max(10, int(rep / estimate)))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    for start, end in events:
        cache.zero_()
        torch.cuda._sleep(max(1_000_000, int(4e9 * host)))  # clock cycles: twice what the host takes, and 0.5 ms at least
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    times = torch.tensor([start.elapsed_time(end) for start, end in events])
    return tuple(times.quantile(torch.tensor([0.5, 0.2, 0.8])).tolist())


def measurement(
    provider: str,
    times: tuple[float, float, float],
    *,
    metric: str,
    value: float,
    limit: float | None = None,
    dtype: str = "",
    shape: str = "",
    batch: int = 1,
) -> Measurement:
    """A `Measurement` of this machine, now."""

    def short(x: float | None) -> float | None:
        return None if x is None else float(f"{x:.5g}")

    return Measurement(
        provider, dtype, shape, batch, *map(short, times), metric, short(value), short(limit),
        None if not limit else short(100 * value / limit),
        runtime.gpu_name(), torch.__version__, triton.__version__, datetime.date.today().isoformat(),
    )  # fmt: skip


def folder(gpu: str) -> Path:
    """Where a GPU's recordings lie: `benchmarks/nvidia-h200` for "NVIDIA H200"."""
    return BENCHMARKS / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def write(name: str, rows: list[Measurement], directory: Path | None = None) -> Path:
    """Write `rows` to `<directory>/<name>.csv`, by default in the folder of the GPU they were measured on."""
    file = (directory or folder(rows[0].gpu)) / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".part")
    with scratch.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [field.name for field in fields(Measurement)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    scratch.replace(file)
    return file


def read(name: str, gpu: str | None = None) -> list[Measurement]:
    """The rows of a recording: of `gpu`, or of this machine's GPU, or of the first GPU in `benchmarks/` that has one.

    Raises FileNotFoundError where there is none.
    """
    candidates = [folder(gpu or runtime.gpu_name()) / f"{name}.csv"]
    if gpu is None:
        candidates += sorted(BENCHMARKS.glob(f"*/{name}.csv"))
    file = next((file for file in candidates if file.exists()), None)
    if file is None:
        raise FileNotFoundError(f"no recording of {name} in {BENCHMARKS}")

    def number(text: str) -> float | None:
        return float(text) if text else None

    rows = []
    with file.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            for name_ in ("ms", "ms_p20", "ms_p80", "value", "limit", "percent_of_limit"):
                row[name_] = number(row[name_])
            rows.append(Measurement(**{**row, "batch": int(row["batch"])}))
    return rows


@dataclass
class Ceilings:
    """A machine's two ceilings as measured: bytes a second through device memory, and FLOP a second by type.

    "float32" is the better of two ways to a float32 product: cuBLAS's own, or three tf32 products on the tensor cores.
    """

    gpu: str
    bandwidth: float
    flops: dict[str, float]

    def floor_ms(self, bytes_moved: float, flops: float, dtype: str = "bfloat16") -> float:
        """The least milliseconds in which this machine can move that many bytes and do that many FLOPs, side by side."""
        return 1e3 * max(bytes_moved / self.bandwidth, flops / self.flops[dtype])


def measure_ceilings() -> list[Measurement]:
    """Time a device-to-device copy of 1 GiB (bytes read plus bytes written) and cuBLAS's 8192 x 8192 x 8192 by type."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = milliseconds(lambda: target.copy_(source))
    rows = [
        measurement("torch", times, metric="bytes/s", value=2 * source.numel() / times[0] * 1e3, shape="1 GiB", dtype="uint8")
    ]
    size = 8192
    kept = torch.get_float32_matmul_precision()
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"), ("float16", torch.float16, "highest"),
        ("tf32", torch.float32, "high"), ("float32", torch.float32, "highest"),
    ):  # fmt: skip
        if runtime.refusal(dtype):
            continue
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        times = milliseconds(lambda a=a, b=b: a @ b)
        value = 2 * size**3 / times[0] * 1e3
        rows.append(measurement("torch", times, metric="FLOP/s", value=value, shape=f"{size}x{size}x{size}", dtype=name))
    torch.set_float32_matmul_precision(kept)
    return rows


def ceilings(rows: list[Measurement] | None = None, gpu: str | None = None) -> Ceilings:
    """The ceilings in `rows`; by default the recorded ones, of `gpu` or as `read` chooses.

    float32's is cuBLAS's, or a third of cuBLAS's tf32 if that is more: what tf32x3, three products, could reach.
    """
    rows = read("ceilings", gpu) if rows is None else rows
    bandwidth = next(row.value for row in rows if row.metric == "bytes/s")
    flops = {row.dtype: row.value for row in rows if row.metric == "FLOP/s"}
    if "float32" in flops and "tf32" in flops:
        flops["float32"] = max(flops["float32"], flops["tf32"] / 3)
    return Ceilings(rows[0].gpu, bandwidth, flops)
