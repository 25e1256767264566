"""`python -m vitcourse bench`: a ViT's forward pass beside what people use, on one GPU in one run.

Everything runs on random weights and random pixels in inference mode. A peer that is not installed is left out by name.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from . import measure, runtime
from .vit import ViT, ViTConfig

CONFIG = ViTConfig(id2label={index: f"LABEL_{index}" for index in range(1000)})
SHAPE = "ViT-B/16 224x224"
BATCHES = (1, 8, 32, 256)

# Every provider is a model, and what is done to it. In this order, the quick ones first.
PROVIDERS = {
    "vitcourse": ("vitcourse", "plain"),
    "vitcourse-graph": ("vitcourse", "graph"),
    "hf-eager": ("hf-eager", "plain"),
    "hf-sdpa": ("hf-sdpa", "plain"),
    "hf-sdpa-graph": ("hf-sdpa", "graph"),
    "timm": ("timm", "plain"),
    "timm-graph": ("timm", "graph"),
    "hf-compile": ("hf-sdpa", "compile"),
    "timm-compile": ("timm", "compile"),
    "timm-compile-max-autotune": ("timm", "max-autotune"),
    "hf-compile-max-autotune": ("hf-sdpa", "max-autotune"),
}
IN_FLOAT32 = ("vitcourse-graph", "hf-sdpa")
FIRST_RESULT = ("vitcourse", "hf-sdpa", "hf-compile", "hf-compile-max-autotune")


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


def build(model: str, dtype: torch.dtype) -> nn.Module:
    """One of "vitcourse", "hf-eager", "hf-sdpa" or "timm", with random weights, on the GPU. ImportError if not installed."""
    with torch.device("cuda"):
        if model == "vitcourse":
            built = ViT(CONFIG)
        elif model == "timm":
            import timm

            built = timm.create_model("vit_base_patch16_224", pretrained=False)
        else:
            import transformers

            config = transformers.ViTConfig(num_labels=CONFIG.num_labels, attn_implementation=model.removeprefix("hf-"))
            built = transformers.ViTForImageClassification(config)
    return built.to("cuda", dtype).eval()


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
    torch._dynamo.reset()  # a new batch size is to be compiled for itself, not made dynamic
    compiled = torch.compile(model, dynamic=False, mode="max-autotune" if how == "max-autotune" else None)
    return lambda: compiled(pixel_values)


@contextlib.contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(kept)


def half_precision() -> torch.dtype:
    """bfloat16, or float16 on a GPU that has no bfloat16 arithmetic."""
    return torch.float16 if runtime.refusal(torch.bfloat16) else torch.bfloat16


def first_result(provider: str) -> None:
    """For a fresh process: build `provider`, run it once on one image, and say so on standard output."""
    model, how = PROVIDERS[provider]
    pixel_values = torch.randn(1, 3, 224, 224, device="cuda", dtype=half_precision())
    with torch.inference_mode():
        prepare(build(model, half_precision()), how, pixel_values)()
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


def profile(batch: int) -> list[measure.Measurement]:
    """The GPU time of one of our forward passes, operation by operation: each is one kernel, told by its place in the order."""
    block = ["layer norm", "qkv", "attention", "out + residual", "layer norm", "fc1 + gelu", "fc2 + residual"]
    names = ["patch embedding + position", *block * CONFIG.num_hidden_layers, "layer norm", "classifier"]
    dtype = half_precision()
    model = build("vitcourse", dtype)
    pixel_values = torch.randn(batch, 3, *CONFIG.image_shape, device="cuda", dtype=dtype)
    passes = 20
    with torch.inference_mode():
        for _ in range(passes):
            model(pixel_values)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recording:
            for _ in range(passes):
                model(pixel_values)
            torch.cuda.synchronize()
    events = [event for event in recording.events() if event.name.endswith("_kernel")]
    events.sort(key=lambda event: event.time_range.start)
    if len(events) != passes * len(names):
        raise RuntimeError(f"{len(events)} kernels in {passes} passes; {len(names)} a pass were expected")
    total = sum(event.device_time for event in events)
    rows = []
    for name in dict.fromkeys(names):
        mine = [event.device_time for place, event in enumerate(events) if names[place % len(names)] == name]
        ms = sum(mine) / passes / 1e3
        rows.append(
            measure.measurement(
                "vitcourse", (ms,) * 3, metric="percent of forward", value=100 * sum(mine) / total,
                dtype=str(dtype).removeprefix("torch."), shape=name, batch=batch,
            )
        )  # fmt: skip
    return rows


def run_all(batches: tuple[int, ...], names: list[str], directory: Path | None) -> list[measure.Measurement]:
    """Measure every provider at every batch size and write after each, so that a run cut short keeps what it has."""
    ceiling_rows = measure.measure_ceilings()
    measure.write("ceilings", ceiling_rows, directory)
    ceilings = measure.ceilings(ceiling_rows)
    rows: list[measure.Measurement] = []
    half = str(half_precision()).removeprefix("torch.")
    dtypes = [(half, "highest", names)]
    dtypes += [
        (label, precision, [n for n in names if n in IN_FLOAT32])
        for label, precision in (("tf32", "high"), ("float32", "highest"))
    ]
    order = [(name, dtype, precision) for dtype, precision, some in dtypes for name in some]
    order.sort(key=lambda item: list(PROVIDERS).index(item[0]) if "compile" in item[0] else -1)  # what takes long, last
    for name, label, precision in order:
        dtype = torch.float32 if label in ("tf32", "float32") else getattr(torch, label)
        model_name, how = PROVIDERS[name]
        try:
            model = build(model_name, dtype)
        except ImportError as error:
            print(f"{name}: left out, {error}", flush=True)
            continue
        for batch in batches:
            pixel_values = torch.randn(batch, 3, *CONFIG.image_shape, device="cuda", dtype=dtype)
            with torch.inference_mode(), float32_precision(precision):
                started = time.perf_counter()
                function = prepare(model, how, pixel_values)
                function()
                torch.cuda.synchronize()
                prepared = time.perf_counter() - started
                times = measure.milliseconds(function, rep=300)
            limit = 1e3 * batch / ceilings.floor_ms(*work(CONFIG, batch, dtype.itemsize), label)
            row = measure.measurement(
                name, times, metric="images/s", value=1e3 * batch / times[0], limit=limit, dtype=label, shape=SHAPE, batch=batch
            )
            rows.append(row)
            measure.write("vit_forward", rows, directory)
            print(
                f"{name:26} {label:8} batch {batch:3}  {times[0]:8.3f} ms  {row.value:8.0f} images/s"
                f"  {row.percent_of_limit:3.0f} % of the limit  (prepared in {prepared:.1f} s)",
                flush=True,
            )
        del model
    for name in FIRST_RESULT:
        if name in names:
            seconds = time_to_first_result(name)
            ms = (1e3 * seconds,) * 3
            rows.append(
                measure.measurement(name, ms, metric="s to first result", value=seconds, dtype=half, shape=SHAPE, batch=1)
            )
            measure.write("vit_forward", rows, directory)
            print(f"{name:26} {seconds:6.1f} s from process start to the first result, cold caches", flush=True)
    measure.write("vit_profile", profile(max(batches)), directory)
    return rows


def format_table(rows: list[measure.Measurement]) -> str:
    """Images a second (and milliseconds) by provider and batch size, and the seconds to a first result."""
    batches = sorted({row.batch for row in rows})
    keys = list(dict.fromkeys((row.provider, row.dtype) for row in rows))
    lines = [f"{'provider':26} {'type':9}" + "".join(f"{f'batch {batch}':>21}" for batch in batches) + f"{'first result':>14}"]
    for provider, dtype in keys:
        mine = [row for row in rows if (row.provider, row.dtype) == (provider, dtype)]
        speed = {row.batch: f"{row.value:,.0f} ({row.ms:.3g} ms)" for row in mine if row.metric == "images/s"}
        first = next((f"{row.value:.1f} s" for row in mine if row.metric == "s to first result"), "")
        lines.append(f"{provider:26} {dtype:9}" + "".join(f"{speed.get(batch, '-'):>21}" for batch in batches) + f"{first:>14}")
    return "\n".join(lines)


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
    parser.add_argument("--providers", default=",".join(PROVIDERS), help="of these, separated by commas")
    parser.add_argument("--out", type=Path, help="folder for the CSV files (default: benchmarks/<gpu>)")
    parser.add_argument("--first-result", choices=PROVIDERS, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Measure and record on a GPU; with none, print the recorded table as what it is."""
    if runtime.DEVICE.type != "cuda":
        try:
            rows = measure.read("vit_forward")
        except FileNotFoundError as error:
            print(f"error: no CUDA GPU here, and {error}", file=sys.stderr)
            return 1
        print(f"No CUDA GPU here, so nothing is timed. Recorded on one {rows[0].gpu}, {rows[0].date}, ", end="")
        print(f"PyTorch {rows[0].torch}, Triton {rows[0].triton}. {SHAPE}, images/s (time):\n")
        print(format_table(rows))
        return 0
    if arguments.first_result:
        first_result(arguments.first_result)
        return 0
    names = [name for name in arguments.providers.split(",") if name]
    unknown = sorted(set(names) - set(PROVIDERS))
    if unknown:
        print(f"error: unknown providers {', '.join(unknown)}; there are {', '.join(PROVIDERS)}", file=sys.stderr)
        return 2
    print(runtime.describe(), flush=True)
    rows = run_all(arguments.batches, names, arguments.out)
    print("\n" + format_table(rows))
    return 0
