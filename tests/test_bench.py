"""Recordings and benchmarks: files in and out, what is counted, and what the recorded forward passes have to hold."""

import csv
from pathlib import Path

import pytest
import torch

from vitcourse import bench, measure, runtime
from vitcourse.__main__ import main
from vitcourse.measure import Measurement
from vitcourse.vit import ViTConfig

interpreter_only = pytest.mark.skipif(not runtime.INTERPRETER, reason="a GPU is there, and would be measured")

#: What a reader would pick instead: every one has to be beside ours, in one recording.
PEERS = (
    "hf-eager", "hf-sdpa", "hf-compile", "hf-compile-max-autotune",
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
    speed = {"metric": "images/s", "dtype": "bfloat16"}
    text = bench.format_table(
        [
            row(provider="slow", batch=1, value=292.4, ms=3.4251, **speed),
            row(provider="slow", batch=32, value=4713.0, ms=6.79, **speed),
            row(provider="fast", batch=32, value=9301.0, ms=3.44, **speed),
            row(provider="fast", batch=1, value=7.94, ms=7940.0, metric="s to first result", dtype="bfloat16"),
        ]
    )
    head, slow, fast = text.splitlines()
    assert head.split() == ["provider", "type", "batch", "1", "batch", "32", "first", "result"]
    assert slow.split() == ["slow", "bfloat16", "292", "(3.43", "ms)", "4,713", "(6.79", "ms)"]
    assert fast.split() == ["fast", "bfloat16", "-", "9,301", "(3.44", "ms)", "7.9", "s"]
    assert all(len(line.rstrip()) <= len(head) for line in (slow, fast)), "columns lie under their heads"


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


def test_batches_that_are_no_numbers_are_refused(measured: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:  # how argparse ends on wrong usage
        main(["bench", "--batches", "1,many"])
    assert stop.value.code == 2
    assert "1,many" in capsys.readouterr().err and not measured


def test_what_is_asked_is_measured(measured: list[tuple], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--providers", "timm,vitcourse-graph", "--batches", "1,8", "--out", str(tmp_path)]) == 0
    assert main(["bench"]) == 0
    assert measured == [((1, 8), ["timm", "vitcourse-graph"], tmp_path), (bench.BATCHES, list(bench.PROVIDERS), None)]
    assert capsys.readouterr().out.startswith("a GPU\n")


# The recording


@pytest.fixture(scope="module")
def recording() -> list[Measurement]:
    return measure.read("vit_forward", "NVIDIA H200")


def test_the_recording_is_one_run(recording: list[Measurement]) -> None:
    assert len({(row.gpu, row.torch, row.triton, row.date) for row in recording}) == 1
    assert {row.shape for row in recording} == {bench.SHAPE}
    keys = [(row.provider, row.dtype, row.batch, row.metric) for row in recording]
    assert len(set(keys)) == len(keys), "no measurement twice"
    assert {row.provider for row in recording} <= bench.PROVIDERS.keys()


@pytest.mark.parametrize("provider", ["vitcourse", "vitcourse-graph", *PEERS])
def test_every_peer_is_recorded_at_every_batch_size(recording: list[Measurement], provider: str) -> None:
    speed = {row.batch for row in recording if (row.provider, row.dtype, row.metric) == (provider, "bfloat16", "images/s")}
    assert speed == {1, 8, 32, 256}


def test_hugging_face_in_float32_and_tf32_is_recorded(recording: list[Measurement]) -> None:
    for dtype in ("float32", "tf32"):
        for provider in ("hf-sdpa", "vitcourse-graph"):
            assert {row.batch for row in recording if (row.provider, row.dtype) == (provider, dtype)} == {1, 8, 32, 256}


def test_the_recorded_numbers_fit_each_other(recording: list[Measurement]) -> None:
    ceilings = measure.ceilings(measure.read("ceilings", "NVIDIA H200"))
    for row in recording:
        assert row.ms_p20 <= row.ms <= row.ms_p80, row
        if row.metric == "images/s":
            assert row.value == pytest.approx(1e3 * row.batch / row.ms, rel=1e-3), row
            assert row.percent_of_limit == pytest.approx(100 * row.value / row.limit, rel=1e-3), row
            if row.dtype == "bfloat16":  # float32 in full from three tf32 products is above cuBLAS's own ceiling
                assert row.percent_of_limit < 100, row
                floor = ceilings.floor_ms(*bench.work(bench.CONFIG, row.batch, 2))
                assert row.limit == pytest.approx(1e3 * row.batch / floor, rel=1e-3), row
        else:
            assert row.metric == "s to first result" and row.value == pytest.approx(row.ms / 1e3, rel=1e-3)


@pytest.mark.parametrize("batch", [1, 8, 32, 256])
def test_we_are_ahead_of_hugging_face(recording: list[Measurement], batch: int) -> None:
    speed = {
        row.provider: row.value for row in recording if (row.dtype, row.batch) == ("bfloat16", batch) and row.metric == "images/s"
    }
    assert speed["vitcourse-graph"] > speed["hf-sdpa"]


def test_the_first_result_is_recorded_beside_torch_compile(recording: list[Measurement]) -> None:
    seconds = {row.provider: row.value for row in recording if row.metric == "s to first result"}
    assert {"vitcourse", "hf-compile"} <= seconds.keys() and seconds["vitcourse"] < seconds["hf-compile"]


def test_the_profile_adds_up() -> None:
    rows = measure.read("vit_profile", "NVIDIA H200")
    assert sum(row.value for row in rows) == pytest.approx(100, abs=0.1)
    total = sum(row.ms for row in rows)
    assert all(row.value == pytest.approx(100 * row.ms / total, rel=0.01) for row in rows)


def test_the_readme_quotes_the_recording():
    from vitcourse.teach import readme

    assert readme.table(measure.read("vit_forward", readme.GPU)) in readme.README.read_text(encoding="utf-8")
