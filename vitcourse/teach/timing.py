"""A lesson's measurements: taken where there is a GPU, read from `benchmarks/` and labelled as recorded where there is none.

With the environment variable VITCOURSE_RECORD set to 1, what is measured is also written to `benchmarks/<gpu>/`.
"""

import functools
import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch._functorch.config

from .. import measure, runtime


def _recorded(name: str) -> list[measure.Measurement]:
    try:
        rows = measure.read(name)
    except FileNotFoundError:
        print(f"Nothing is timed here: there is no CUDA GPU. No recording of {name} either; `make lab` on a GPU measures it.")
        return []
    print(f"Not measured here: recorded on one {rows[0].gpu}, {rows[0].date}.")
    return rows


def _finish(name: str, rows: list[measure.Measurement]) -> list[measure.Measurement]:
    if os.environ.get("VITCOURSE_RECORD") == "1":
        measure.write(name, rows)
    print(f"Measured on this {rows[0].gpu}.")
    return rows


def ceilings() -> measure.Ceilings:
    """This machine's two ceilings, measured; the recorded ones where there is no GPU."""
    if runtime.DEVICE.type != "cuda":
        return measure.ceilings(_recorded("ceilings"))
    rows = measure.measure_ceilings()
    print(f"Measured on this {rows[0].gpu}.")  # and not recorded: the recorded ones belong to the recorded forward passes
    return measure.ceilings(rows)


@functools.cache
def _limits() -> measure.Ceilings:
    """This GPU's ceilings, measured once a process."""
    return measure.ceilings(measure.measure_ceilings())


def compiled(function: Callable) -> Callable:
    """torch.compile of `function` for the very shapes of its next call, as `bandwidth` needs it: nothing kept from before."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def bandwidth(
    name: str,
    places: Sequence[int | tuple[int, ...]],
    providers: dict[str, Callable[..., Callable[[], object]]],
    moved: Callable[..., float],
    dtype: str = "float32",
) -> list[measure.Measurement]:
    """Time each of `providers` at each of `places` (sizes, block sizes, strides; or shapes) and turn the times into GB/s.

    providers: name to a function that, given a place, prepares the inputs and returns what is to be timed.
    moved: place to the bytes that the operation needs to move. A shape is handed over as several arguments.
    name: of the recording; dtype: what the inputs are.
    """
    return _over_places(name, places, providers, "GB/s", moved, lambda: _limits().bandwidth / 1e9, dtype)


def arithmetic(
    name: str,
    places: Sequence[int | tuple[int, ...]],
    providers: dict[str, Callable[..., Callable[[], object]]],
    flops: Callable[..., float],
    dtype: str = "bfloat16",
) -> list[measure.Measurement]:
    """`bandwidth` for what arithmetic limits: times turned into TFLOP/s, beside those of the largest cuBLAS product.

    flops: place to the floating-point operations that the operation needs. dtype: "bfloat16", "float16", "tf32" or "float32",
    the last two for float32 products under PyTorch's settings "high" and "highest". (`measure.ceilings` says what limits these.)
    """
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        return _over_places(name, places, providers, "TFLOP/s", flops, lambda: _limits().flops[dtype] / 1e12, dtype)
    finally:
        torch.set_float32_matmul_precision(kept)


def _over_places(name, places, providers, metric, amount, limit, dtype) -> list[measure.Measurement]:
    if runtime.DEVICE.type != "cuda":
        return _recorded(name)
    scale = {"GB/s": 1e6, "TFLOP/s": 1e9}[metric]  # of milliseconds
    rows = []
    for place in places:
        sizes = place if isinstance(place, tuple) else (place,)
        for provider, prepare in providers.items():
            function = prepare(*sizes)
            function()
            times = measure.kernel_milliseconds(function)
            value, shape = amount(*sizes) / times[0] / scale, "x".join(map(str, sizes))
            rows.append(measure.measurement(provider, times, metric=metric, value=value, limit=limit(), dtype=dtype, shape=shape))
    return _finish(name, rows)


def backward(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable[[], object]:
    """A function that runs the backward pass of `function(*inputs)` to all of the inputs, as often as it is called."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    with torch._functorch.config.patch(donated_buffer=False):  # or what torch.compile makes could go backward only once
        result = function(*inputs)
    grad = torch.randn_like(result)
    return lambda: torch.autograd.grad(result, inputs, grad, retain_graph=True)


def liger(module: str, function: str) -> Callable | None:
    """Liger-Kernel's autograd function of that name, ready to be called; None where Liger-Kernel is not installed."""
    try:
        return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), function).apply
    except ImportError:
        return None


def launches(name: str, functions: dict[str, Callable[[], object]], calls: int = 200) -> list[measure.Measurement]:
    """What one call of each function costs: microseconds of the host's time, and of the GPU's.

    The host's: `calls` calls in a row without waiting for the GPU. The GPU's: `measure.kernel_milliseconds`.
    """
    if runtime.DEVICE.type != "cuda":
        return _recorded(name)
    rows = []
    for provider, function in functions.items():
        for _ in range(20):
            function()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        host = 1e3 * (time.perf_counter() - start) / calls
        torch.cuda.synchronize()
        rows.append(measure.measurement(provider, (host,) * 3, metric="host us", value=1e3 * host, dtype="float32"))
        times = measure.kernel_milliseconds(function)
        rows.append(measure.measurement(provider, times, metric="GPU us", value=1e3 * times[0], dtype="float32"))
    return _finish(name, rows)


def launch_table(rows: Sequence[measure.Measurement]) -> str:
    """`launches`' rows as text: a line a function, with what a call takes of the host's time and of the GPU's."""
    us = {(row.provider, row.metric): row.value for row in rows}
    lines = [f"{'':14}{'host':>12}{'GPU':>12}"]
    for provider in dict.fromkeys(row.provider for row in rows):
        lines.append(f"{provider:14}" + "".join(f"{us[provider, metric]:>9,.1f} us" for metric in ("host us", "GPU us")))
    return "\n".join(lines) if rows else ""


def forward(
    name: str, batches: Sequence[int], providers: dict[str, Callable[[int], Callable[[], object]]]
) -> list[measure.Measurement]:
    """Time whole forward passes, launches and all, at each of `batches`: milliseconds, and images a second.

    providers: name to a function that, given a batch size, prepares the model and its input and returns what is to be timed.
    """
    if runtime.DEVICE.type != "cuda":
        return _recorded(name)
    rows = []
    for batch in batches:
        for provider, prepare in providers.items():
            times = measure.milliseconds(prepare(batch), rep=200)
            value = 1e3 * batch / times[0]
            rows.append(measure.measurement(provider, times, metric="images/s", value=value, dtype="bfloat16", batch=batch))
    return _finish(name, rows)


def timeline(name: str, functions: dict[str, Callable[[], object]]) -> list[measure.Measurement]:
    """When each of our kernels ran in one call, by PyTorch's profiler: a row a kernel, `value` its start in microseconds.

    `ms` is how long it took; the first kernel of a call starts at 0. Copies are left out.
    """
    if runtime.DEVICE.type != "cuda":
        return _recorded(name)
    rows = []
    for provider, function in functions.items():
        for _ in range(3):
            function()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiled:
            function()
            torch.cuda.synchronize()
        events = [event for event in profiled.events() if event.name.endswith("_kernel")]
        events.sort(key=lambda event: event.time_range.start)
        for event in events:
            start, took = event.time_range.start - events[0].time_range.start, event.time_range.end - event.time_range.start
            times = (took / 1e3,) * 3
            rows.append(measure.measurement(provider, times, metric="start us", value=start, shape=event.name))
    return _finish(name, rows)


def forward_table(rows: Sequence[measure.Measurement]) -> str:
    """`forward`'s rows as text: a line a provider, a column a batch size, in milliseconds."""
    batches = sorted({row.batch for row in rows})
    lines = ["".join([f"{'':32}", *(f"{f'batch {batch}':>13}" for batch in batches)])]
    for provider in dict.fromkeys(row.provider for row in rows):
        ms = {row.batch: row.ms for row in rows if row.provider == provider}
        lines.append(f"{provider:32}" + "".join(f"{f'{ms[batch]:.3f} ms' if batch in ms else '-':>13}" for batch in batches))
    return "\n".join(lines) if rows else ""


def gains(rows: Sequence[measure.Measurement], predicted: Mapping[int, Mapping[str, float]]) -> str:
    """How many times as fast as the version before it each of `forward`'s versions was to be, and was, as text.

    predicted: milliseconds by batch size and version. A version is compared with the one before it that was measured.
    """
    names = list(dict.fromkeys(row.provider for row in rows))
    lines = [f"{'times as fast':32}" + "".join(f"{f'batch {batch}: predicted':>22}{'measured':>10}" for batch in predicted)]
    for place, name in enumerate(names[1:], 1):
        line = f"{name:32}"
        for batch, expected in predicted.items():
            ms = {row.provider: row.ms for row in rows if row.batch == batch}
            before = next((ms[other] for other in reversed(names[:place]) if other in ms), None)
            line += "".join(
                f"{f'{before / time:.2f}' if before and time else '-':>{width}}"
                for time, width in ((expected.get(name), 22), (ms.get(name), 10))
            )
        lines.append(line)
    return "\n".join(lines) if rows else ""


def table(rows: Sequence[measure.Measurement], place: str = "shape") -> str:
    """The rows as text: a line a place and a column a provider, each with its time and its share of the limit.

    The metric itself stands between the two where there are two columns or fewer: with more, a page would be too narrow.
    """
    if not rows:
        return ""
    providers = list(dict.fromkeys(row.provider for row in rows))
    names = {row.shape: " x ".join(f"{int(size):,}" for size in row.shape.split("x")) for row in rows}
    columns = [[place, *names.values()]]
    for provider in providers:
        cells = [provider]
        for shape in names:
            row = next((row for row in rows if (row.shape, row.provider) == (shape, provider)), None)
            if row is None:
                cells.append("-")
                continue
            value = f" {row.value:7,.0f} {row.metric}" if len(providers) <= 2 else ""
            share = "" if row.percent_of_limit is None else f" ({row.percent_of_limit:3.0f} %)"
            cells.append(f"{1e3 * row.ms:,.1f} us{value}{share}")
        columns.append(cells)
    least = [14] + [34 if len(providers) <= 2 else 22] * len(providers)
    if len(providers) > 4:  # as narrow as it gets
        least = [0] * len(columns)
    widths = [max(width, max(map(len, cells)) + (2 if index else 0)) for index, (width, cells) in enumerate(zip(least, columns))]
    lines = ["".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in zip(*columns)]
    return "\n".join(lines)
