"""Recordings and benchmarks: files in and out, what is counted, and what the recorded forward passes have to hold."""

import csv
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_graphed import StandIn

from vitcourse import bench, fused, measure, peers, runtime
from vitcourse.__main__ import main
from vitcourse.measure import Measurement
from vitcourse.teach import figures, readme
from vitcourse.vit import ViTConfig

interpreter_only = pytest.mark.skipif(not runtime.INTERPRETER, reason="a GPU is there, and would be measured")

#: What a reader would pick instead: every one has to be beside ours, in one recording.
PEERS = (
    "hf-eager", "hf-sdpa", "hf-sdpa-graph", "hf-compile", "hf-compile-max-autotune",
    "timm", "timm-graph", "timm-compile", "timm-compile-max-autotune",
)  # fmt: skip


def row(**changes: object) -> Measurement:
    values = {
        "provider": "torch", "dtype": "float16", "shape": "3 x 5, ragged", "batch": 2, "ms": 1.5, "ms_p20": 1.25,
        "ms_p80": 2.0, "metric": "GB/s", "value": 0.125, "limit": 4e12, "percent_of_limit": 3.125, "gpu": "NVIDIA Test 9",
        "torch": "2.0", "triton": "3.0", "date": "2026-01-02",
    }  # fmt: skip
    return Measurement(**values | changes)


# Files


def test_a_recording_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BENCHMARKS", tmp_path)
    rows = [row(), row(batch=7, limit=None, percent_of_limit=None, dtype="", shape='a "quoted" shape')]
    file = measure.write("speed", rows)
    assert file == tmp_path / "nvidia-test-9" / "speed.csv" and list(file.parent.iterdir()) == [file]
    assert measure.read("speed", "NVIDIA Test 9") == rows
    assert measure.read("speed") == rows, "of the one GPU that has it"
    with file.open(newline="") as handle:
        assert next(csv.reader(handle)) == list(Measurement.__dataclass_fields__)
    measure.write("speed", rows[:1], tmp_path / "elsewhere" / "deep")
    assert (tmp_path / "elsewhere" / "deep" / "speed.csv").is_file() and len(measure.read("speed", "NVIDIA Test 9")) == 2


def test_a_write_that_fails_leaves_the_old_recording(tmp_path: Path) -> None:
    file = measure.write("speed", [row()], tmp_path)
    before = file.read_bytes()
    with pytest.raises(TypeError):
        measure.write("speed", [row(batch=9), "not a row"], tmp_path)
    assert file.read_bytes() == before


def test_this_machines_recording_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BENCHMARKS", tmp_path)
    measure.write("speed", [row(gpu="A 1")])
    measure.write("speed", [row(gpu="Z 2")])
    assert measure.read("speed")[0].gpu == "A 1"
    monkeypatch.setattr(runtime, "gpu_name", lambda: "Z 2")
    assert measure.read("speed")[0].gpu == "Z 2"
    assert measure.read("speed", "A 1")[0].gpu == "A 1"


def test_no_recording_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BENCHMARKS", tmp_path)
    with pytest.raises(FileNotFoundError, match="no recording of speed"):
        measure.read("speed")
    measure.write("speed", [row()])
    with pytest.raises(FileNotFoundError):
        measure.read("speed", "another GPU")


@pytest.mark.parametrize(
    ("gpu", "slug"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("  Tesla T4 (shared)  ", "tesla-t4-shared"),
        ("../../etc/x", "etc-x"),
    ],
)
def test_slugs(gpu: str, slug: str) -> None:
    assert measure.folder(gpu) == measure.BENCHMARKS / slug


def test_a_measurement_has_its_percentage_and_its_machine() -> None:
    found = measure.measurement("torch", (1.234567, 1.0, 2.0), metric="GB/s", value=123456.7, limit=1e6, shape="x", dtype="y")
    assert (found.ms, found.value, found.limit, found.percent_of_limit) == (1.2346, 123460.0, 1e6, 12.346)
    assert (found.gpu, found.torch, found.batch) == (runtime.gpu_name(), torch.__version__, 1) and len(found.date) == 10
    assert measure.measurement("torch", (1, 1, 1), metric="GB/s", value=1.0).percent_of_limit is None


@interpreter_only
def test_nothing_is_timed_in_the_interpreter() -> None:
    called = []
    for timer in (measure.milliseconds, measure.kernel_milliseconds):
        with pytest.raises(RuntimeError, match="nothing is timed"):
            timer(lambda: called.append(1))
    assert not called


def test_tests_measure_with_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(runtime, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(measure.triton.testing, "do_bench", lambda _, quantiles, **how: asked.append(how) or (1.0, 1.0, 1.0))
    for once in ("1", "0"):
        monkeypatch.setenv("VITCOURSE_MEASURE_ONCE", once)
        measure.milliseconds(lambda: None, rep=300)
    assert asked == [{"warmup": 0, "rep": 0}, {"warmup": 25, "rep": 300}]


def test_ceilings() -> None:
    rows = [
        row(metric="bytes/s", value=2e12, dtype="uint8"),
        row(metric="FLOP/s", value=5e14, dtype="bfloat16"),
        row(metric="FLOP/s", value=1e14, dtype="float32"),
    ]
    ceilings = measure.ceilings(rows)
    assert (ceilings.bandwidth, ceilings.flops) == (2e12, {"bfloat16": 5e14, "float32": 1e14})
    assert ceilings.floor_ms(2e9, 1e9) == pytest.approx(1.0), "the bytes take longer"
    assert ceilings.floor_ms(2e6, 1e12) == pytest.approx(2.0), "the products take longer"
    assert ceilings.floor_ms(2e6, 1e12, "float32") == pytest.approx(10.0)


# What is counted


def test_work_against_a_count_by_hand() -> None:
    config = ViTConfig(
        hidden_size=4, num_hidden_layers=2, num_attention_heads=2, intermediate_size=6, image_size=(4, 6), patch_size=2,
        num_channels=3, id2label=dict.fromkeys(range(5), "label"),
    )  # fmt: skip
    # 2 x 3 = 6 patches of 12 numbers, 7 tokens. Multiply-adds of one image:
    products = 6 * 12 * 4  # the patches
    for _layer in range(2):
        products += 7 * 4 * 12 + 7 * 4 * 4  # queries, keys and values; the output projection
        products += 7 * 4 * 6 + 7 * 6 * 4  # the two linears of the MLP
        products += 2 * (7 * 2 * 7 + 7 * 7 * 2)  # two heads of 2: scores, then their products with the values
    products += 4 * 5  # the classifier, on one token
    # Weights: patches, class token and positions, two blocks, the last norm, the classifier.
    block = 8 + (4 * 12 + 12) + (4 * 4 + 4) + 8 + (4 * 6 + 6) + (6 * 4 + 4)
    weights = (12 * 4 + 4) + 4 + 7 * 4 + 2 * block + 8 + (4 * 5 + 5)
    for batch, itemsize in ((1, 4), (3, 2)):
        moved, flops = bench.work(config, batch, itemsize)
        assert flops == 2 * batch * products
        assert moved == itemsize * (weights + batch * 3 * 4 * 6 + batch * 5)


def test_work_of_vit_base() -> None:
    moved, flops = bench.work(bench.CONFIG, 1, 2)
    assert flops == pytest.approx(35.1e9, rel=0.003)
    assert moved == pytest.approx(2 * (86.57e6 + 3 * 224 * 224 + 1000), rel=0.001)


def test_the_table() -> None:
    speed = {"metric": "images/s", "dtype": "bfloat16", "shape": "ViT-S"}
    text = bench.format_table(
        [
            row(provider="slow", batch=1, value=292.4, ms=3.4251, **speed),
            row(provider="slow", batch=32, value=4713.0, ms=6.79, **speed),
            row(provider="fast", batch=32, value=9301.0, ms=3.44, **speed),
            row(provider="fast", batch=1, value=7.94, ms=7940.0, **speed | {"metric": "s to first result"}),
            row(provider="fast", batch=32, value=0.0123, **speed | {"metric": "logits error"}),
            row(provider="fast", batch=1, value=0.5, **speed | {"metric": "logits error"}),
            row(provider="fast", batch=32, value=1.234, **speed | {"metric": "GB peak"}),
            row(provider="slow", batch=64, value=11.0, ms=5800.0, **speed | {"shape": "ViT-XL"}),
        ]
    )
    first, second = text.split("\n\n")
    head, slow, fast = first.splitlines()
    assert head.split() == ["ViT-S", "type", "batch", "1", "batch", "32", "first", "result", "error", "peak"]
    assert slow.split() == ["slow", "bfloat16", "292", "(3.43", "ms)", "4,713", "(6.79", "ms)"]
    assert fast.split() == ["fast", "bfloat16", "-", "9,301", "(3.44", "ms)", "7.9", "s", "1.2e-02", "1.23", "GB"]
    assert len(head) == len(slow) == len(fast), "columns lie under their heads"
    head, slow = second.splitlines()
    assert head.split()[:4] == ["ViT-XL", "type", "batch", "64"] and slow.split() == ["slow", "bfloat16", "11", "(5.8e+03", "ms)"]


# What is measured, in which order


HALF = bench.half_label()


def test_what_is_quick_comes_first_and_the_other_types_at_the_largest_batch() -> None:
    quick, compiled = bench.plan((1, 8), None, list(bench.PROVIDERS), list(peers.MODELS))
    plain = [name for name in bench.PROVIDERS if "compile" not in name]
    assert len(plain) == 8 and [job[:2] for job in quick[:16:2]] == [("ViT-B/16", name) for name in plain]
    assert {(job.label, job.batch) for job in quick[:16]} == {(HALF, 1), (HALF, 8)}
    types = quick[16:-16]
    assert {job.provider for job in types} == {"vitcourse-graph", "hf-sdpa", "timm"}
    assert {job.label for job in types} | {HALF} >= {"float16", "tf32", "float32"} and {job[::3] for job in types} == {
        ("ViT-B/16", 8)
    }
    assert [job.model for job in quick[-16:]] == ["ViT-L/16"] * 8 + ["ViT-H/14"] * 8
    assert {(job.label, job.batch) for job in quick[-16:]} == {(HALF, 64)}
    both = [("ViT-B/16", 1), ("ViT-B/16", 8), ("ViT-L/16", 64), ("ViT-H/14", 64)]
    found = [(job.provider, job.model, job.batch) for job in compiled]
    expected = []
    for mode in ("compile", "compile-max-autotune"):
        for model in peers.MODELS:
            expected += [(f"{kind}-{mode}", *case) for kind in ("timm", "hf") for case in both if case[0] == model]
    assert found == expected
    assert len(set(quick + compiled)) == len(quick + compiled), "nothing twice"


def test_less_can_be_asked_for() -> None:
    names = ["timm", "timm-compile", "timm-compile-max-autotune"]
    quick, compiled = bench.plan((1, 8, 256), (256,), names, ["ViT-B/16", "ViT-L/16"])
    assert {job.provider for job in quick} == {"timm"} and {job.model for job in quick} == {"ViT-B/16", "ViT-L/16"}
    cases = {name: [(job.model, job.batch) for job in compiled if job.provider == name] for name in names[1:]}
    assert cases["timm-compile"] == [("ViT-B/16", 1), ("ViT-B/16", 8), ("ViT-B/16", 256), ("ViT-L/16", 64)]
    assert cases["timm-compile-max-autotune"] == [("ViT-B/16", 256)]
    quick, compiled = bench.plan((1,), None, ["vitcourse"], ["ViT-H/14"])
    assert (quick, compiled) == ([("ViT-H/14", "vitcourse", HALF, 64)], [])


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple]]:
    """Small models, and as if on a GPU: what was timed and compiled, with the float32 precision that it ran in."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 8, "patch_size": 4}
    labels = dict.fromkeys(range(5), "label")
    tiny = {name: ViTConfig(**sizes, num_hidden_layers=1 + i, id2label=labels) for i, name in enumerate(("ViT-B/16", "ViT-L/16"))}
    done: list[tuple] = []

    def milliseconds(function: Callable[[], object], rep: int) -> tuple[float, float, float]:
        function()
        done.append(("timed", torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return 2.0, 1.5, 2.5

    def compile(model: torch.nn.Module, dynamic: bool, mode: str | None) -> torch.nn.Module:
        done.append(("compiled", dynamic, mode))
        return model

    ceilings = [row(metric="bytes/s", value=1e12, dtype="uint8")]
    ceilings += [row(metric="FLOP/s", value=1e12, dtype=name) for name in ("bfloat16", "float16", "tf32", "float32")]
    monkeypatch.setattr(peers, "MODELS", tiny)
    monkeypatch.setattr(bench, "CONFIG", tiny["ViT-B/16"])
    monkeypatch.setattr(measure, "measure_ceilings", lambda: ceilings)
    monkeypatch.setattr(measure, "milliseconds", milliseconds)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(StandIn, "pools", [], raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", StandIn.record)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3_210_000_000)
    cached = peers.drawn, peers.exact
    for function in cached:
        function.cache_clear()
    yield done
    for function in cached:
        function.cache_clear()


@interpreter_only
def test_a_job_is_measured(on_a_gpu: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    ceilings = measure.ceilings(measure.measure_ceilings())
    speed, error, memory = bench.forward(bench.Job("ViT-L/16", "hf-sdpa-graph", "tf32", 16), ceilings)
    assert (speed.provider, speed.dtype, speed.shape, speed.batch) == ("hf-sdpa-graph", "tf32", "ViT-L/16 8x8", 16)
    assert (speed.metric, speed.value, speed.ms, speed.ms_p20, speed.ms_p80) == ("images/s", 8000, 2.0, 1.5, 2.5)
    floor = max(w / 1e12 for w in bench.work(peers.MODELS["ViT-L/16"], 16, 4))
    assert speed.limit == pytest.approx(16 / floor, rel=1e-4)
    assert error.metric == "logits error" and 0 < error.value < 1e-6, "what the graph replays is the model"
    assert (memory.metric, memory.value) == ("GB peak", 3.21) and memory.batch == error.batch == 16
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:5] == ["ViT-L/16", "hf-sdpa-graph", "tf32", "batch", "16"] and "(prepared in " in line


@interpreter_only
def test_float32_precision_is_that_of_the_type(on_a_gpu: list[tuple]) -> None:
    ceilings = measure.ceilings(measure.measure_ceilings())
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for label in ("tf32", "float32"):
        bench.forward(bench.Job("ViT-B/16", "hf-sdpa", label, 1), ceilings)
    assert on_a_gpu == [("timed", "high", True), ("timed", "highest", False)]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@interpreter_only
def test_the_providers_are_what_their_names_say(on_a_gpu: list[tuple]) -> None:
    pixel_values = peers.pixels("ViT-B/16", 2, torch.float32)
    for provider, (kind, how) in bench.PROVIDERS.items():
        library, _, more = provider.partition("-")
        assert kind.split("-")[0] == library
        assert how == next((word for word in ("max-autotune", "compile", "graph") if word in more), "plain")
    model = peers.build("hf-sdpa", "ViT-B/16", torch.float32)
    with torch.inference_mode():
        expected = model(pixel_values).logits
        for how in ("plain", "graph", "compile", "max-autotune"):
            function = bench.prepare(model, how, pixel_values)
            torch.testing.assert_close(function().logits, expected)
        pixel_values.neg_()  # a graph copies its input in
        replay = bench.prepare(model, "graph", pixel_values)
        pixel_values.neg_()
        torch.testing.assert_close(replay().logits, expected)
    assert on_a_gpu == [("compiled", False, None), ("compiled", False, "max-autotune")]


@interpreter_only
def test_a_first_result_says_so_and_draws_no_weights(
    on_a_gpu: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "drawn", lambda model: pytest.fail("that would be part of the time"))
    bench.first_result("hf-compile")
    assert capsys.readouterr().out == "first result\n" and on_a_gpu == [("compiled", False, None)]


@interpreter_only
def test_a_run_writes_what_it_has_and_goes_on_after_a_failure(
    on_a_gpu: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build, order = peers.build, []

    def broken(kind: str, model: str, dtype: torch.dtype, with_drawn: bool = True) -> torch.nn.Module:
        if (kind, model) == ("hf-eager", "ViT-L/16"):
            raise torch.OutOfMemoryError("CUDA out of\nmemory")
        return build(kind, model, dtype, with_drawn)

    def run(command: list[str], check: bool) -> None:
        order.append(" ".join(command[1:]))

    def seconds(provider: str) -> float:
        order.append(f"first {provider}, {len(measure_rows())} rows")
        if provider == "hf-compile":
            raise RuntimeError("no result")
        return 1.5

    def measure_rows() -> list[dict]:
        with (tmp_path / "vit_forward.csv").open(newline="") as handle:
            return list(csv.DictReader(handle))

    monkeypatch.setattr(peers, "build", broken)
    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench, "time_to_first_result", seconds)
    monkeypatch.setattr(bench, "LARGER_BATCH", 3)
    names = ["vitcourse", "vitcourse-graph", "hf-eager", "hf-sdpa", "hf-compile"]
    rows = bench.run_all((1, 2), None, names, list(peers.MODELS), tmp_path)
    # 4 providers at 2 batches, ours and hf-sdpa in two other types, 3 providers of the larger model: 3 rows each.
    quick, compiled = 3 * (4 * 2 + 2 * 2 + 3), 3 * (2 + 1)
    assert order == [
        f"-m vitcourse bench --profile 1,2 --out {tmp_path}",
        f"first vitcourse, {quick} rows",
        f"first hf-sdpa, {quick + 1} rows",
        f"first hf-compile, {quick + 2 + compiled} rows",
    ]
    assert len(measure_rows()) == len(rows) == quick + 2 + compiled
    assert [r.provider for r in rows[-compiled:]] == ["hf-compile"] * compiled and rows[-1].batch == 3
    assert max(r.value for r in rows if r.metric == "logits error") < 4e-3, "every provider has the same weights"
    told = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(told) == 2, "hf-eager of the larger model, and a first result"
    assert told[0].split()[:3] == ["ViT-L/16", "hf-eager", HALF]
    assert told[0].endswith("  left out: forward: OutOfMemoryError: CUDA out of memory")
    assert told[1] == "hf-compile  left out: first_row: RuntimeError: no result"


# The profile


def event(name: str, start: float, us: float, device: str = "CUDA") -> SimpleNamespace:
    span = SimpleNamespace(start=start, end=start + us)
    return SimpleNamespace(name=name, time_range=span, device_type=getattr(torch.autograd.DeviceType, device))


@pytest.fixture
def profiled(on_a_gpu: list[tuple], monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The events that a profile of two passes finds. Every kernel ends 2 us after the one before, which it starts ahead of."""
    names = fused.operations(bench.CONFIG, True)
    events = []
    for start in (0, 1000):
        events += [event("void at::native::vectorized_elementwise_kernel<bitwise_not_kernel_cuda>(int)", start, 77.0)]
        events += [event("Memcpy DtoD (Device -> Device)", start + 100, 5.0)]
        events += [event("some_kernel", start + 200 + place, 2.0 + place) for place in range(len(names))]
        events += [event("Memcpy DtoD (Device -> Device)", start + 900, 3.0), event("cudaGraphLaunch", start, 50.0, "CPU")]
    recording = SimpleNamespace(events=lambda: events[::-1])
    context = SimpleNamespace(__enter__=lambda: recording)

    class Profile:
        def __init__(self, activities: list, acc_events: bool):
            assert activities == [torch.profiler.ProfilerActivity.CUDA] and acc_events

        def __enter__(self) -> SimpleNamespace:
            return context.__enter__()

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    return events


@interpreter_only
def test_the_profile_names_kernels_by_their_place_and_adds_up(profiled: list[SimpleNamespace]) -> None:
    rows = bench.profile(4, passes=2)
    names = fused.operations(bench.CONFIG, True)
    us = {row.shape: 1e3 * row.ms for row in rows}
    assert list(us) == [*dict.fromkeys(names), "copies", "between kernels"]
    for name in names:
        assert us[name] == pytest.approx(2 * names.count(name))
    assert us["copies"] == pytest.approx(8)
    assert sum(us.values()) == pytest.approx(2000), "the measured time of a pass"
    assert all(row.value == pytest.approx(100 * row.ms / 2, rel=1e-4) for row in rows)
    assert {(row.provider, row.metric, row.dtype, row.batch) for row in rows} == {
        ("vitcourse-graph", "percent of forward", HALF, 4)
    }


@interpreter_only
def test_a_profile_with_another_number_of_kernels_is_refused(profiled: list[SimpleNamespace]) -> None:
    profiled.append(event("one_more_kernel", 500, 1.0))
    with pytest.raises(RuntimeError, match=r"\d+ kernels in 2 passes; \d+ a pass were expected"):
        bench.profile(4, passes=2)


# The command


@interpreter_only
def test_with_no_gpu_the_recording_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    out = capsys.readouterr().out
    recorded = measure.read("vit_forward")
    assert out.startswith("No CUDA GPU here, so nothing is timed. Recorded on one NVIDIA H200, ")
    assert recorded[0].date in out and recorded[0].torch in out and recorded[0].triton in out
    assert out.endswith(bench.format_table(recorded) + "\n")


@interpreter_only
def test_with_no_gpu_and_no_recording(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(measure, "BENCHMARKS", tmp_path)
    assert main(["bench"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: no CUDA GPU here, and no recording of vit_forward")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """As if on a GPU: what `run_all` was asked for."""
    asked: list[tuple] = []

    def run_all(*arguments: object) -> list[Measurement]:
        asked.append(arguments)
        return [row(metric="images/s")]

    monkeypatch.setattr(runtime, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(runtime, "describe", lambda: "a GPU")
    monkeypatch.setattr(bench, "run_all", run_all)
    return asked


def test_unknown_providers_are_refused(measured: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--providers", "timm,jax,vitcuorse"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "unknown providers jax, vitcuorse; there are vitcourse, " in captured.err
    assert not measured


def test_unknown_models_are_refused(measured: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--models", "ViT-G/14,ViT-B/16"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "unknown models ViT-G/14; there are ViT-B/16, ViT-L/16, ViT-H/14" in captured.err
    assert not measured


def test_batches_that_are_no_numbers_are_refused(measured: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:  # how argparse ends on wrong usage
        main(["bench", "--batches", "1,many"])
    assert stop.value.code == 2
    assert "1,many" in capsys.readouterr().err and not measured


def test_what_is_asked_is_measured(measured: list[tuple], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    less = ["--providers", "timm,vitcourse-graph", "--models", "ViT-H/14", "--batches", "1,8", "--autotune-batches", "8,64"]
    assert main(["bench", *less, "--out", str(tmp_path)]) == 0
    assert main(["bench"]) == 0
    assert measured == [
        ((1, 8), (8, 64), ["vitcourse-graph", "timm"], ["ViT-H/14"], tmp_path),
        (bench.BATCHES, None, list(bench.PROVIDERS), list(peers.MODELS), None),
    ]
    assert capsys.readouterr().out.startswith("a GPU\n")


def test_a_profile_alone(measured: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "profile", lambda batch: [row(provider="part", batch=batch)])
    assert main(["bench", "--profile", "1,256", "--out", str(tmp_path)]) == 0
    with (tmp_path / "vit_profile.csv").open(newline="") as handle:
        assert [line["batch"] for line in csv.DictReader(handle)] == ["1", "256"]
    assert not measured


# The recording


@pytest.fixture(scope="module")
def recording() -> list[Measurement]:
    return measure.read("vit_forward", "NVIDIA H200")


def test_the_recording_is_one_run(recording: list[Measurement]) -> None:
    assert len({(row.gpu, row.torch, row.triton, row.date) for row in recording}) == 1
    assert bench.SHAPE in {row.shape for row in recording} <= {bench.shape_of(model) for model in peers.MODELS}
    keys = [(row.provider, row.dtype, row.shape, row.batch, row.metric) for row in recording]
    assert len(set(keys)) == len(keys), "no measurement twice"
    assert {row.provider for row in recording} <= bench.PROVIDERS.keys()


def test_the_readme_says_which_peers_the_recording_lacks(recording: list[Measurement]) -> None:
    said = readme.README.read_text(encoding="utf-8").partition("Not in this recording: ")[2].partition("\n")[0]
    for model in peers.MODELS:
        batches = bench.BATCHES if model == bench.BASE else (bench.LARGER_BATCH,)
        rows = [row for row in recording if (row.shape, row.dtype) == (bench.shape_of(model), "bfloat16")]
        found = {(row.provider, row.batch) for row in rows if row.metric == "images/s"}
        lacking = {(name, batch) for name in bench.PROVIDERS for batch in batches} - found
        assert {(name, batch) for name, at in readme.missing(recording, model).items() for batch in at} == lacking
        mine = next((part for part in said.split("of ") if model in part.partition("`")[0]), "")
        assert all(f"`{name}`" in mine for name, _ in lacking)
        # Hugging Face's eager attention copies from the CPU, which a capture refuses. All else has to be there.
        assert lacking <= {("hf-eager-graph", batch) for batch in batches}


def test_hugging_face_in_float32_and_tf32_is_recorded(recording: list[Measurement]) -> None:
    found = {(row.provider, row.dtype) for row in recording if (row.batch, row.metric) == (256, "images/s")}
    assert found >= {(provider, dtype) for provider in ("hf-sdpa", "vitcourse-graph") for dtype in ("float32", "tf32")}


def test_the_recorded_numbers_fit_each_other(recording: list[Measurement]) -> None:
    ceilings = measure.ceilings(measure.read("ceilings", "NVIDIA H200"))
    configs = {bench.shape_of(model): config for model, config in peers.MODELS.items()}
    for row in recording:
        assert row.ms_p20 <= row.ms <= row.ms_p80, row
        if row.metric == "images/s":
            assert row.value == pytest.approx(1e3 * row.batch / row.ms, rel=1e-3), row
            assert row.percent_of_limit == pytest.approx(100 * row.value / row.limit, rel=1e-3), row
            if row.dtype == "bfloat16":  # float32 in full from three tf32 products is above cuBLAS's own ceiling
                assert row.percent_of_limit < 100, row
                floor = ceilings.floor_ms(*bench.work(configs[row.shape], row.batch, 2))
                assert row.limit == pytest.approx(1e3 * row.batch / floor, rel=1e-3), row
        elif row.metric == "s to first result":
            assert row.value == pytest.approx(row.ms / 1e3, rel=1e-3)
        else:
            assert row.metric in ("logits error", "GB peak") and row.value > 0, row


def test_our_recorded_logits_are_as_exact_as_the_peers(recording: list[Measurement]) -> None:
    errors: dict[tuple, dict[str, float]] = {}
    for row in recording:
        if row.metric == "logits error":
            errors.setdefault((row.shape, row.dtype, row.batch), {})[row.provider] = row.value
    if not errors:
        pytest.skip("recorded before errors were")
    assert (bench.SHAPE, "bfloat16", 8) in errors
    # A miss, told in lesson 16: Triton hands float32 to the tensor cores cut off after tf32's bits, where cuBLAS rounds it.
    allowed = {"tf32": 3.0}
    for case, found in errors.items():
        median = statistics.median(value for name, value in found.items() if not name.startswith("vitcourse"))
        for name in ("vitcourse", "vitcourse-graph"):
            assert found.get(name, 0.0) <= allowed.get(case[1], 2.0) * median, (case, found)


@pytest.mark.parametrize("batch", [1, 8, 32, 256])
def test_we_are_ahead_of_hugging_face(recording: list[Measurement], batch: int) -> None:
    wanted = (bench.SHAPE, "bfloat16", batch, "images/s")
    speed = {row.provider: row.value for row in recording if (row.shape, row.dtype, row.batch, row.metric) == wanted}
    assert speed["vitcourse-graph"] > speed["hf-sdpa"]


def test_the_first_result_is_recorded(recording: list[Measurement]) -> None:
    seconds = {row.provider: row.value for row in recording if row.metric == "s to first result"}
    assert seconds["vitcourse"] < 15 and seconds["vitcourse"] < seconds["hf-sdpa"]
    assert seconds["vitcourse"] < seconds["hf-compile"] < seconds["hf-compile-max-autotune"]


def test_the_profile_adds_up() -> None:
    """To the measured time of a pass within 5 %, and what ran in it takes no more than it either."""
    recorded = measure.read("vit_profile", "NVIDIA H200")
    speed = {r.batch: r.ms for r in measure.read("vit_forward", "NVIDIA H200") if r.provider == "vitcourse-graph"
             and (r.shape, r.dtype, r.metric) == (bench.SHAPE, "bfloat16", "images/s")}  # fmt: skip
    for batch in {row.batch for row in recorded}:
        rows = [row for row in recorded if row.batch == batch]
        total = sum(row.ms for row in rows)
        assert sum(row.value for row in rows) == pytest.approx(100, abs=0.1)
        assert all(row.value == pytest.approx(100 * row.ms / total, rel=0.01) for row in rows)
        assert total == pytest.approx(speed[batch], rel=0.05), batch
        assert sum(row.ms for row in rows if row.shape != "between kernels") < 1.05 * total, batch


# The README


def forward_rows(slower: float = 1, **changes: object) -> list[Measurement]:
    speed = {"shape": bench.SHAPE, "dtype": "bfloat16", "metric": "images/s", "batch": 8, **changes}
    times = {"hf-sdpa": 4.0 * slower, "timm": 3.0 * slower, "vitcourse-graph": 2.0 * slower}
    return [row(provider=name, ms=ms, value=8e3 / ms, **speed) for name, ms in times.items()]


def test_other_models_and_types_have_a_table_of_their_own() -> None:
    alone = readme.table(forward_rows())
    assert "| 8 | 4.00 ms | 3.00 ms (`timm`) | **2.00 ms** (4,000 images/s) | 1.50 times as fast |" in alone
    assert "other models" not in alone and "Error" not in alone and "memory" not in alone
    more = (
        forward_rows(shape="ViT-L/16 224x224", batch=64)
        + forward_rows(dtype="tf32", batch=8)
        + forward_rows(dtype="tf32", batch=256)
    )
    text = readme.table(forward_rows() + more)
    first, second = text.split("| other models and types |")
    assert first.count("times as fast") == 1 and second.count("times as fast") == 2
    assert "| ViT-B/16, tf32, batch 256 | 4.00 ms |" in second and "| ViT-L/16, bfloat16, batch 64 |" in second


def test_errors_and_memory_are_told_beside_the_peers() -> None:
    found = [("vitcourse-graph", 0.01), ("vitcourse", 9.0), ("hf-sdpa", 0.02), ("timm", 0.04), ("hf-eager", 0.06)]
    same = {"shape": bench.SHAPE, "dtype": "bfloat16", "batch": 8}
    errors = [row(provider=name, value=value, metric="logits error", **same) for name, value in found]
    memory = [row(provider=name, value=100 * value, metric="GB peak", **same) for name, value in found]
    other = [row(provider="vitcourse-graph", value=5.0, metric="logits error", **same | {"shape": "ViT-L/16 224x224"})]
    assert readme.errors(other) is None and readme.errors(errors[:2]) is None
    assert readme.errors(other + errors + other) == (0.01, [0.02, 0.04, 0.06])
    text = readme.table(forward_rows() + errors + memory)
    assert "`vitcourse-graph` 0.01, the peers' from 0.02 to 0.06, median 0.04." in text
    assert "at batch 8: `hf-eager` 6.0 GB, `hf-sdpa` 2.0 GB, `timm` 4.0 GB, `vitcourse-graph` 1.0 GB." in text


def test_the_bars_are_of_one_model_and_type_and_say_what_is_missing() -> None:
    more = forward_rows(shape="ViT-L/16 224x224", batch=64) + forward_rows(metric="GB peak", batch=16)
    figure = readme.draw(forward_rows() + more, dark=False)
    (panel,) = figure.axes
    assert panel.get_title(loc="left") == "batch 8"
    lengths = dict(zip(readme.SHOWN, (bar.get_width() for bar in panel.patches)))
    assert lengths["vitcourse-graph"] == pytest.approx(1.5) and lengths["timm"] == 1 and lengths["hf-eager"] == 0
    texts = [text.get_text() for text in panel.texts]
    assert texts.count(" not measured") == len(readme.SHOWN) - 3
    bars, text = figures.draw_speeds(forward_rows() + more + forward_rows(3, shape="ViT-L/16 224x224"), batch=8)
    assert [bar.get_width() for bar in bars.axes[0].patches] == pytest.approx([2000, 8e3 / 3, 4000])
    assert text.endswith("images a second: vitcourse-graph 4,000; timm 2,667; hf-sdpa 2,000.")


def test_the_readme_quotes_the_recording():
    assert readme.table(measure.read("vit_forward", readme.GPU)) in readme.README.read_text(encoding="utf-8")
