"""What the lessons call besides checks and traces: costs, timings, figures, the look at the machine."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitcourse import bench, measure, runtime
from vitcourse.teach import cost, environment, figures, timing, trace

# ruff: isort: split
import triton
import triton.language as tl


@triton.jit
def copy_kernel(x_ptr, output_ptr, size, stride, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    tl.store(output_ptr + offsets, tl.load(x_ptr + offsets * stride, mask=mask), mask=mask)


def copy(x, stride=1, block=4):
    output = torch.empty(x.numel() // stride)
    copy_kernel[(triton.cdiv(output.numel(), block),)](x, output, output.numel(), stride, BLOCK=block)
    return output


@triton.jit
def read_rows_kernel(x_ptr, row_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0) * 2 + tl.arange(0, 2)[:, None]
    column = tl.arange(0, BLOCK)
    tl.load(x_ptr + row * columns + column[None, :], mask=(column < columns)[None, :])
    tl.load(row_ptr + column, mask=column < columns)


def read_rows(x, row):
    read_rows_kernel[(len(x) // 2,)](x, row, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))


def row(provider: str, size: int | str, gigabytes: float) -> measure.Measurement:
    times = (1.0 if isinstance(size, str) else 12 * size / gigabytes / 1e6,) * 3
    return measure.Measurement(
        provider, "float32", str(size), 1, *times, "GB/s", gigabytes, 4200.0, gigabytes / 42, "a GPU", "2", "3", "2026-01-01"
    )


@pytest.fixture
def shown(monkeypatch) -> list[tuple[bytes, str]]:
    """What figures show, as PNG and text, in place of showing it."""
    pictures = []
    monkeypatch.setattr(figures, "show", lambda figure, alt: pictures.append((figures.png(figure), alt)))
    return pictures


def test_the_operations_add_up_to_the_model():
    # The benchmark counts the matrix products alone, and in one formula; the lesson lists everything, one by one.
    products = ("patch embedding", "qkv", "out", "fc1", "fc2", "classifier")
    listed = sum(o.flops for o in cost.operations(batch=3) if o.name in products)
    tokens, hidden, heads = bench.CONFIG.tokens, bench.CONFIG.hidden_size, 12
    assert hidden % heads == 0
    attention = 3 * 12 * 4 * tokens * tokens * hidden
    assert listed + attention == bench.work(bench.CONFIG, 3, 2)[1]


def test_a_layer_norm_costs_what_it_reads_and_writes():
    norm = next(o for o in cost.operations(batch=2) if o.name == "layer norm")
    assert norm.calls == 25 and norm.moved == 25 * 2 * (2 * 197 * 768) * 2 and norm.intensity == 2.0


def test_the_floor_is_the_longer_of_two_times():
    ceilings = measure.Ceilings("a GPU", bandwidth=1e12, flops={"bfloat16": 1e14})
    assert ceilings.floor_ms(1e9, 1e9) == 1.0  # a gigabyte at 1 TB/s
    assert ceilings.floor_ms(1e3, 1e12) == 10.0


@pytest.mark.skipif(not runtime.INTERPRETER, reason="a GPU is there, and would be measured")
def test_without_a_gpu_nothing_is_timed_and_recordings_say_so(capsys):
    def fail(_place):
        raise AssertionError("timed without a GPU")

    assert timing.bandwidth("no_such_recording", [1], {"x": fail}, moved=lambda place: place) == []
    assert "Nothing is timed here" in capsys.readouterr().out
    assert timing.ceilings().gpu == "NVIDIA H200"
    assert "recorded on one NVIDIA H200" in capsys.readouterr().out


def test_a_table_has_a_line_a_place_and_a_column_a_provider():
    lines = timing.table([row("ours", 1024, 20.0), row("torch", 1024, 10.0), row("ours", 2**20, 2100.0)], "elements").splitlines()
    assert lines[0].split() == ["elements", "ours", "torch"]
    assert "20 GB/s" in lines[1] and "10 GB/s" in lines[1]
    assert lines[2].startswith("     1,048,576") and "( 50 %)" in lines[2] and lines[2].rstrip().endswith("-")


@pytest.mark.parametrize("providers, shape, spelled", [(4, "256x197x768", "256 x 197 x 768"), (5, "1024", "1,024")])
def test_a_wide_table_leaves_the_metric_out_and_a_shape_is_spelled_out(providers, shape, spelled):
    rows = [row(f"provider {index}", shape, 20.0) for index in range(providers)]
    head, line = timing.table(rows).splitlines()
    assert line.startswith(spelled) and "GB/s" not in line and len(head) == len(line) <= 110


def test_an_operation_is_told_with_its_shares():
    told = cost.share("gelu", measure.ceilings(gpu="NVIDIA H200"))
    assert told.startswith("gelu: 12 calls of (50432, 3072); 0.16 % of the FLOPs, 20.6 % of the bytes")


def test_matrices_say_who_touches_what(shown):
    figures.matrices(trace.record(read_rows, torch.randn(4, 3), torch.randn(3)), {"x_ptr": "x", "row_ptr": "row"})
    ((_, alt),) = shown
    assert "of 2" in alt and "x (4, 3): 12 elements read, each by one program" in alt
    assert "row (3,): 3 elements read, each by up to 2 programs" in alt


def test_tiles_say_who_owns_what(shown):
    figures.tiles(trace.record(copy, torch.randn(10)), {"x_ptr": "x", "output_ptr": "output"})
    ((_, alt),) = shown
    assert "program 1 owns elements 4 to 7" in alt and "program 2 owns elements 8 to 9 and has 2 masked lanes" in alt


def test_sectors_are_counted(shown):
    traces = {f"stride {s}": trace.record(copy, torch.randn(32 * s), s, block=32) for s in (1, 8)}
    figures.sectors(traces, "x_ptr")
    ((_, alt),) = shown
    assert "stride 1: 4 sectors, 128 bytes fetched, 100 %" in alt and "stride 8: 32 sectors, 1024 bytes fetched, 12 %" in alt


def test_every_figure_is_drawn_with_a_text(shown, tmp_path):
    ceilings = measure.ceilings(gpu="NVIDIA H200")
    figures.gpu(ceilings)
    figures.vit_map(["gelu"])
    figures.roofline(ceilings, cost.operations(batch=256))
    figures.bandwidth([row(name, size, size / 1e3) for name in ("ours", "torch") for size in (4096, 2**20)], title="Copy")
    figures.speeds(measure.read("vit_forward", "NVIDIA H200"), batch=8)
    figures.curves([0.0, 1.0, 2.0], {"a line": [0.0, 1.0, 2.0], "a parabola": [0.0, 1.0, 4.0]}, "Two functions", log=True)
    figures.attention_maps(np.full((6, 8, 8), 200), torch.eye(17).expand(6, 2, 17, 17))
    assert len(shown) == 7 and "Marked: gelu" in shown[1][1]
    for data, alt in shown:
        (tmp_path / "figure.png").write_bytes(data)
        picture = Image.open(tmp_path / "figure.png").convert("L")
        assert picture.width > 900 and picture.getextrema()[0] < 80 and len(alt) > 40
    figures.bandwidth([])
    figures.arithmetic([])
    assert len(shown) == 7  # nothing recorded, nothing drawn


def version(provider: str, batch: int, ms: float) -> measure.Measurement:
    times = (ms, ms, ms)
    return measure.Measurement(
        provider, "bfloat16", "", batch, *times, "images/s", 1, None, None, "a GPU", "2", "3", "2026-01-01"
    )


ROAD = [version("first", 1, 8.0), version("first", 256, 40.0), version("second", 1, 4.0), version("second", 256, 50.0)]
ROAD += [version("third", 1, 1.0)]
PREDICTED = {1: {"second": 2.0, "third": 2.0}, 256: {"second": 20.0}}


def test_a_waterfall_has_what_was_predicted_beside_what_was_measured(shown):
    figures.waterfall(ROAD, [1, 256], PREDICTED)
    figures.waterfall(ROAD, [1, 256])
    figures.waterfall([], [1])
    (with_lines, alt), (without, plain) = shown
    assert (
        "second: 4 ms at batch 1 (2 predicted), 50 ms at batch 256 (20 predicted); third: 1 ms at batch 1 (2 predicted)." in alt
    )
    assert plain.endswith("second: 4 ms at batch 1, 50 ms at batch 256; third: 1 ms at batch 1.")
    assert with_lines != without


def test_gains_are_of_the_version_before_that_was_measured():
    heads, second, third = (line.split() for line in timing.gains(ROAD, PREDICTED).splitlines())
    assert heads.count("predicted") == heads.count("measured") == 2
    assert second == ["second", "4.00", "2.00", "2.00", "0.80"]
    assert third == ["third", "2.00", "4.00", "-", "-"]
    assert timing.gains([], PREDICTED) == ""


def test_the_look_at_the_machine_finds_what_is_missing(capsys, monkeypatch):
    environment.report()
    assert "Everything that the course needs is here." in capsys.readouterr().out
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    environment.report()
    out = capsys.readouterr().out
    assert "MEND  no-such-package" in out and "1 to mend" in out
