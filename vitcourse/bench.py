"""`python -m vitcourse bench`: a ViT's forward pass beside what people use, on one GPU in one run.

Everything runs on the same random weights and random pixels (`peers`), in inference mode. What cannot be measured, such as a
peer that is not installed, is told and left out.
"""

import argparse
import contextlib
import gc
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from . import fused, measure, peers, runtime
from .vit import ViT, ViTConfig

BASE = "ViT-B/16"
CONFIG = peers.MODELS[BASE]
BATCHES = (1, 8, 32, 256)
LARGER_BATCH = 64  # of the models larger than BASE
REP = 300  # milliseconds for which each function is measured

# Every provider is a model, and what is done to it. What compiles comes last, in the order in which it is measured.
PROVIDERS = {
    "vitcourse": ("vitcourse", "plain"),
    "vitcourse-graph": ("vitcourse", "graph"),
    "hf-eager": ("hf-eager", "plain"),
    "hf-eager-graph": ("hf-eager", "graph"),
    "hf-sdpa": ("hf-sdpa", "plain"),
    "hf-sdpa-graph": ("hf-sdpa", "graph"),
    "timm": ("timm", "plain"),
    "timm-graph": ("timm", "graph"),
    "timm-compile": ("timm", "compile"),
    "hf-compile": ("hf-sdpa", "compile"),
    "timm-compile-max-autotune": ("timm", "max-autotune"),
    "hf-compile-max-autotune": ("hf-sdpa", "max-autotune"),
}
IN_OTHER_TYPES = ("vitcourse-graph", "hf-sdpa", "timm")
FIRST_RESULT = ("vitcourse", "hf-sdpa", "hf-compile", "hf-compile-max-autotune")


def shape_of(model: str) -> str:
    """What the recording calls one of `peers.MODELS`: "ViT-B/16 224x224"."""
    height, width = peers.MODELS[model].image_shape
    return f"{model} {height}x{width}"


SHAPE = shape_of(BASE)


def work(config: ViTConfig, batch: int, itemsize: int) -> tuple[float, float]:
    """(bytes, FLOPs) of a forward pass: weights and pixels read, logits written; all matrix products, for all tokens.

    That is what the peers compute. Ours does less in the last block, where only the class token's row is read (`ViT.forward`).
    """
    hidden, tokens, patch = config.hidden_size, config.tokens, config.patch_shape[0] * config.patch_shape[1]
    embed = (tokens - 1) * patch * config.num_channels * hidden
    linears = config.num_hidden_layers * tokens * (4 * hidden * hidden + 2 * hidden * config.intermediate_size)
    attention = config.num_hidden_layers * 2 * tokens * tokens * hidden
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in ViT(config).parameters())
    pixels = batch * config.num_channels * config.image_shape[0] * config.image_shape[1]
    flops = 2.0 * batch * (embed + linears + attention + hidden * config.num_labels)
    return itemsize * (weights + pixels + batch * config.num_labels), flops


def prepare(model: nn.Module, how: str, pixel_values: torch.Tensor) -> Callable[[], object]:
    """What is timed: a call of `model` on `pixel_values`, plain, compiled, or as one CUDA graph."""
    if how == "plain":
        return lambda: model(pixel_values)
    if how == "graph" and isinstance(model, ViT):
        graphed = model.graphed(pixel_values)
        return lambda: graphed(pixel_values)
    if how == "graph":
        static = pixel_values.clone()
        for _ in range(3):
            model(static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(static)

        def replay() -> object:  # as ViT.graphed does, the input is copied in; the output is not copied out, which it does too
            static.copy_(pixel_values)
            graph.replay()
            return output

        return replay
    compiled = torch.compile(model, dynamic=False, mode="max-autotune" if how == "max-autotune" else None)
    return lambda: compiled(pixel_values)


@contextlib.contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Matrix products at `precision` as PyTorch calls it; "highest" keeps cuDNN's convolutions out of tf32, too."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(kept)
        torch.backends.cudnn.allow_tf32 = True  # as PyTorch starts, whatever it does with matrix products


def half_precision() -> torch.dtype:
    """bfloat16, or float16 on a GPU that has no bfloat16 arithmetic."""
    return torch.float16 if runtime.refusal(torch.bfloat16) else torch.bfloat16


def half_label() -> str:
    return str(half_precision()).removeprefix("torch.")


def first_result(provider: str) -> None:
    """For a fresh process: build `provider`, run it once on one image, and say so on standard output."""
    kind, how = PROVIDERS[provider]
    pixel_values = torch.randn(1, 3, *CONFIG.image_shape, device=runtime.DEVICE, dtype=half_precision())
    model = peers.build(kind, BASE, half_precision(), with_drawn=False)
    with torch.inference_mode():
        prepare(model, how, pixel_values)()
        torch.cuda.synchronize()
    print("first result", flush=True)


def time_to_first_result(provider: str) -> float:
    """Seconds from the start of a process to its first result, with empty compiler and configuration caches."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "XDG_CACHE_HOME": cache,
        }
        start = time.perf_counter()
        command = [sys.executable, "-m", "vitcourse", "bench", "--first-result", provider]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in process.stdout:
            if line.startswith("first result"):
                seconds = time.perf_counter() - start
                process.communicate()
                return seconds
        raise RuntimeError(f"{provider} gave no result in a fresh process (exit status {process.wait()})")


def profile(batch: int, passes: int = 20) -> list[measure.Measurement]:
    """The time of a pass of our CUDA graph by operation, each one kernel, told by its place in the order.

    Where a kernel starts before the one in front of it has ended, the time of both counts for the first. "copies" are of the
    input and the output; "between kernels" is what remains of the measured time of a pass, so that the rows add up to it.
    Raises RuntimeError where a pass has not as many kernels as `fused.operations` has names.
    """
    names = fused.operations(CONFIG, fused.pays(CONFIG, batch))
    pixel_values = peers.pixels(BASE, batch, half_precision())
    model = peers.build("vitcourse", BASE, half_precision())
    cache = torch.empty(256 << 20, dtype=torch.uint8, device=runtime.DEVICE)
    with torch.inference_mode():
        graphed = prepare(model, "graph", pixel_values)
        whole = measure.milliseconds(graphed, rep=REP)[0]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as recording:
            for _ in range(passes):
                cache.bitwise_not_()  # out of L2 with what the last pass left there, as before every call that is timed
                graphed()
            torch.cuda.synchronize()
    events = [event for event in recording.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    events = sorted((event for event in events if "bitwise_not" not in event.name), key=lambda event: event.time_range.start)
    kernels = sum(event.name.endswith("_kernel") for event in events)
    if kernels != passes * len(names):
        raise RuntimeError(f"{kernels} kernels in {passes} passes; {len(names)} a pass were expected")
    ms = dict.fromkeys([*names, "copies"], 0.0)
    order, reached = itertools.cycle(names), 0.0
    for event in events:
        name = next(order) if event.name.endswith("_kernel") else "copies"
        ms[name] += max(0.0, event.time_range.end - max(event.time_range.start, reached)) / 1e3 / passes
        reached = max(reached, event.time_range.end)
    ms["between kernels"] = whole - sum(ms.values())
    return [
        measure.measurement(
            "vitcourse-graph", (time,) * 3, metric="percent of forward", value=100 * time / whole,
            dtype=half_label(), shape=name, batch=batch,
        )
        for name, time in ms.items()
    ]  # fmt: skip


class Job(NamedTuple):
    """One forward pass to measure. label: a type by the name that the recording has for it, such as "tf32"."""

    model: str
    provider: str
    label: str
    batch: int

    def __str__(self) -> str:
        return f"{self.model:9} {self.provider:26} {self.label:8} batch {self.batch:3}"


def plan(
    batches: tuple[int, ...], autotune_batches: tuple[int, ...] | None, names: list[str], models: list[str]
) -> tuple[list[Job], list[Job]]:
    """The jobs that are quick, and those that compile: the default before max-autotune, smaller models before larger ones.

    autotune_batches: the only batch sizes for max-autotune, which takes minutes for each; None for no such limit.
    """
    half, others = half_label(), [label for label in ("float16", "tf32", "float32") if label != half_label()]
    sizes = {model: batches if model == BASE else (LARGER_BATCH,) for model in models}
    base, larger = [model for model in models if model == BASE], [model for model in models if model != BASE]
    how = {name: PROVIDERS[name][1] for name in PROVIDERS if name in names}
    plain = [name for name in how if how[name] in ("plain", "graph")]
    some = [name for name in plain if name in IN_OTHER_TYPES]
    quick = [Job(model, name, half, batch) for model in base for name in plain for batch in batches]
    quick += [Job(model, name, label, max(batches)) for model in base for label in others for name in some]
    quick += [Job(model, name, half, LARGER_BATCH) for model in larger for name in plain]
    compiled = [
        Job(model, name, half, batch)
        for mode in ("compile", "max-autotune")
        for model in models
        for name in how
        for batch in sizes[model]
        if how[name] == mode and (mode == "compile" or autotune_batches is None or batch in autotune_batches)
    ]
    return quick, compiled


def forward(job: Job, ceilings: measure.Ceilings) -> list[measure.Measurement]:
    """Measure one job: its speed, how far its logits are from the exact ones, and the GPU memory that it took at most."""
    kind, how = PROVIDERS[job.provider]
    dtype = torch.float32 if job.label == "tf32" else getattr(torch, job.label)
    torch._dynamo.reset()  # a new batch size is to be compiled for itself, not made dynamic
    gc.collect()
    torch.cuda.empty_cache()
    model, pixel_values = peers.build(kind, job.model, dtype), peers.pixels(job.model, job.batch, dtype)
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode(), float32_precision("high" if job.label == "tf32" else "highest"):
        started = time.perf_counter()
        function = prepare(model, how, pixel_values)
        function()
        torch.cuda.synchronize()
        prepared = time.perf_counter() - started
        for _ in range(2):  # max-autotune records CUDA graphs of its own in the second call
            function()
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() / 1e9
        error = peers.logits_error(job.model, dtype, function())
        times = measure.milliseconds(function, rep=REP)
    speed = 1e3 * job.batch / times[0]
    limit = 1e3 * job.batch / ceilings.floor_ms(*work(peers.MODELS[job.model], job.batch, dtype.itemsize), job.label)
    print(
        f"{job}  {times[0]:8.3f} ms  {speed:8.0f} images/s"
        f"  {100 * speed / limit:3.0f} % of the limit  error {error:.1e}  {memory:5.2f} GB  (prepared in {prepared:.1f} s)",
        flush=True,
    )
    same = {"dtype": job.label, "shape": shape_of(job.model), "batch": job.batch}
    return [
        measure.measurement(job.provider, times, metric="images/s", value=speed, limit=limit, **same),
        measure.measurement(job.provider, times, metric="logits error", value=error, **same),
        measure.measurement(job.provider, times, metric="GB peak", value=memory, **same),
    ]


def profile_apart(batches: tuple[int, ...], directory: Path | None) -> list[measure.Measurement]:
    """Record `profile` in a process of its own: where a profiler has run, launches may be slower for good. Returns no rows."""
    command = [sys.executable, "-m", "vitcourse", "bench", "--profile", ",".join(map(str, batches))]
    subprocess.run(command + (["--out", str(directory)] if directory else []), check=True)
    return []


def first_row(provider: str) -> list[measure.Measurement]:
    """Measure the time to a provider's first result."""
    seconds = time_to_first_result(provider)
    print(f"{BASE:9} {provider:26} {seconds:6.1f} s from process start to the first result, cold caches", flush=True)
    return [
        measure.measurement(
            provider, (1e3 * seconds,) * 3, metric="s to first result", value=seconds, dtype=half_label(), shape=SHAPE
        )
    ]


def attempt(function: Callable[..., list[measure.Measurement]], *arguments: object) -> list[measure.Measurement]:
    """`function(*arguments)`, or no rows where it fails (not installed, out of memory, a compiler's error), which is told."""
    try:
        return function(*arguments)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        print(f"{arguments[0]}  left out: {function.__name__}: {type(error).__name__}: {reason}", flush=True)
        return []


def run_all(
    batches: tuple[int, ...],
    autotune_batches: tuple[int, ...] | None,
    names: list[str],
    models: list[str],
    directory: Path | None,
) -> list[measure.Measurement]:
    """Measure what `plan` says, the quick ones first, and write after each, so that a run cut short keeps what it has."""
    ceiling_rows = measure.measure_ceilings()
    measure.write("ceilings", ceiling_rows, directory)
    ceilings = measure.ceilings(ceiling_rows)
    quick, compiled = plan(batches, autotune_batches, names, models)
    first = [name for name in FIRST_RESULT if name in names and BASE in models]
    rows: list[measure.Measurement] = []

    def record(function: Callable[..., list[measure.Measurement]], what: object, *more: object) -> None:
        rows.extend(attempt(function, what, *more))
        if rows:
            measure.write("vit_forward", rows, directory)

    for job in quick:
        record(forward, job, ceilings)
    if "vitcourse-graph" in names and BASE in models:
        record(profile_apart, tuple(sorted({min(batches), max(batches)})), directory)
    for name in first:
        if "compile" not in name:
            record(first_row, name)
    for job in compiled:
        record(forward, job, ceilings)
    for name in first:
        if "compile" in name:
            record(first_row, name)
    return rows


def format_table(rows: list[measure.Measurement]) -> str:
    """A table a model: images a second (and milliseconds) by provider and batch size, and the seconds to a first result.

    At the end of a line, of the largest batch: the logits' error and the gigabytes of GPU memory.
    """
    tables = []
    for shape in dict.fromkeys(row.shape for row in rows):
        batches = sorted({row.batch for row in rows if row.shape == shape})
        heads = "".join(f"{f'batch {batch}':>21}" for batch in batches)
        lines = [f"{shape:26} {'type':9}{heads}{'first result':>14}{'error':>9}{'peak':>10}"]
        for provider, dtype in dict.fromkeys((row.provider, row.dtype) for row in rows if row.shape == shape):
            mine = [row for row in rows if (row.shape, row.provider, row.dtype) == (shape, provider, dtype)]
            value = {row.metric: row.value for row in sorted(mine, key=lambda row: row.batch)}
            speed = {row.batch: f"{row.value:,.0f} ({row.ms:.3g} ms)" for row in mine if row.metric == "images/s"}
            last = [
                form.format(value[metric]) if metric in value else ""
                for metric, form in (("s to first result", "{:.1f} s"), ("logits error", "{:.1e}"), ("GB peak", "{:.2f} GB"))
            ]
            line = f"{provider:26} {dtype:9}" + "".join(f"{speed.get(batch, '-'):>21}" for batch in batches)
            lines.append(line + "{:>14}{:>9}{:>10}".format(*last))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _batches(text: str) -> tuple[int, ...]:
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError:
        batches = ()
    if not batches or min(batches) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of batch sizes such as 1,8,32")
    return batches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=_batches, default=BATCHES, help="batch sizes, separated by commas")
    for option, known in (("--providers", PROVIDERS), ("--models", peers.MODELS)):
        parser.add_argument(option, default=",".join(known), help=f"some of {','.join(known)}")
    parser.add_argument(
        "--autotune-batches", type=_batches, help="the only batch sizes for max-autotune, which takes minutes each"
    )
    parser.add_argument("--profile", type=_batches, help="record only a profile of our CUDA graph, at these batch sizes")
    parser.add_argument("--out", type=Path, help="folder for the CSV files (default: benchmarks/<gpu>)")
    parser.add_argument("--first-result", choices=PROVIDERS, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Measure and record on a GPU; with none, print the recorded table as what it is."""
    chosen = []
    for what, text, known in (("providers", arguments.providers, PROVIDERS), ("models", arguments.models, peers.MODELS)):
        asked = [name for name in text.split(",") if name]
        unknown = sorted(set(asked) - set(known))
        if unknown:
            print(f"error: unknown {what} {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        chosen.append([name for name in known if name in asked])
    if runtime.DEVICE.type != "cuda":
        try:
            rows = measure.read("vit_forward")
        except FileNotFoundError as error:
            print(f"error: no CUDA GPU here, and {error}", file=sys.stderr)
            return 1
        print(f"No CUDA GPU here, so nothing is timed. Recorded on one {rows[0].gpu}, {rows[0].date}, ", end="")
        print(f"PyTorch {rows[0].torch}, Triton {rows[0].triton}. Images/s (time):\n")
        print(format_table(rows))
        return 0
    if arguments.first_result:
        first_result(arguments.first_result)
        return 0
    if arguments.profile:
        parts = [row for batch in arguments.profile for row in profile(batch)]
        print(f"profile written to {measure.write('vit_profile', parts, arguments.out)}")
        return 0
    print(runtime.describe(), flush=True)
    rows = run_all(arguments.batches, arguments.autotune_batches, *chosen, arguments.out)
    print("\n" + format_table(rows))
    return 0
