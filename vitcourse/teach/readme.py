"""`python -m vitcourse.teach.readme`: draw the README's figures and fill in its table, both from the recorded CSV files."""

import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from .. import measure, peers
from ..bench import BASE, BATCHES, LARGER_BATCH, PROVIDERS, SHAPE, shape_of
from . import figures

README = Path(__file__).resolve().parents[2] / "README.md"
GPU = "NVIDIA H200"
SHOWN = (
    "hf-eager", "hf-sdpa", "hf-compile", "hf-compile-max-autotune", "timm", "timm-graph", "timm-compile",
    "timm-compile-max-autotune", "vitcourse-graph",
)  # fmt: skip
TABLE = re.compile(r"(<!-- speeds, by python -m vitcourse.teach.readme -->\n).*?(<!-- end -->)", re.DOTALL)
DARK = {"figure.facecolor": "#0d1117", "axes.facecolor": "#0d1117", "text.color": "#e6edf3", "axes.edgecolor": "#6e7681"}
DARK |= {"xtick.color": "#e6edf3", "ytick.color": "#e6edf3", "axes.labelcolor": "#e6edf3"}


def _forward(
    rows: Sequence[measure.Measurement], batch: int, dtype: str = "bfloat16", shape: str = SHAPE, metric: str = "images/s"
) -> dict[str, measure.Measurement]:
    """The forward passes of one model at one batch size in one type, by provider; of ViT-B/16 in bfloat16, if not said."""
    wanted = (batch, dtype, shape, metric)
    return {row.provider: row for row in rows if (row.batch, row.dtype, row.shape, row.metric) == wanted}


def forward_rows(rows: Sequence[measure.Measurement]) -> list[measure.Measurement]:
    """The speeds of ViT-B/16 in bfloat16."""
    return [row for row in rows if (row.metric, row.dtype, row.shape) == ("images/s", "bfloat16", SHAPE)]


def missing(rows: Sequence[measure.Measurement], model: str = BASE) -> dict[str, list[int]]:
    """The providers of `bench` that were not measured with a model in bfloat16, and at which batch sizes."""
    batches = BATCHES if model == BASE else (LARGER_BATCH,)
    found = {batch: _forward(rows, batch, shape=shape_of(model)) for batch in batches}
    lacking = {name: [batch for batch in batches if name not in found[batch]] for name in PROVIDERS}
    return {name: at for name, at in lacking.items() if at}


def _missing(rows: Sequence[measure.Measurement]) -> str:
    """`missing` of all models as a sentence, models that lack the same ones together; "" where nothing is missing."""
    models: dict[str, list[str]] = {}
    for model in peers.MODELS:
        parts = []
        for name, at in missing(rows, model).items():
            everywhere = len(at) == len(BATCHES) or model != BASE
            parts.append(f"`{name}`" + ("" if everywhere else f" at batch {', '.join(map(str, at))}"))
        if parts:
            models.setdefault("; ".join(parts), []).append(model)
    return "; ".join(f"of {', '.join(names)} {parts}" for parts, names in models.items())


def _batches(rows: Sequence[measure.Measurement]) -> list[int]:
    """The batch sizes at which ViT-B/16 was measured in bfloat16."""
    return sorted({row.batch for row in forward_rows(rows)})


def _peers(forward: dict[str, measure.Measurement]) -> list[measure.Measurement]:
    return [row for name, row in forward.items() if not name.startswith("vitcourse")]


def _best_peer(forward: dict[str, measure.Measurement]) -> measure.Measurement:
    return min(_peers(forward), key=lambda row: row.ms)


def _ms(row: measure.Measurement) -> str:
    return f"{row.ms:.2f} ms" if row.ms < 10 else f"{row.ms:.1f} ms"


def _speeds(first: str, cases: dict[str, dict[str, measure.Measurement]]) -> list[str]:
    """A table in Markdown, of the forward passes in each of `cases`: Hugging Face's with SDPA, the best peer's and ours."""
    lines = [
        f"| {first} | Hugging Face, SDPA | the fastest peer measured | vitcourse, CUDA graph | against that peer |",
        "|---|---|---|---|---|",
    ]
    for name, mine in cases.items():
        ours, sdpa, best = mine["vitcourse-graph"], mine["hf-sdpa"], _best_peer(mine)
        lines.append(
            f"| {name} | {_ms(sdpa)} | {_ms(best)} (`{best.provider}`) "
            f"| **{_ms(ours)}** ({ours.value:,.0f} images/s) | {best.ms / ours.ms:.2f} times as fast |"
        )
    return lines


def errors(rows: Sequence[measure.Measurement], batch: int = 8) -> tuple[float, list[float]] | None:
    """How far ViT-B/16's logits are from float64's, ours in a CUDA graph and each peer's; None where that is not recorded."""
    mine = _forward(rows, batch, metric="logits error")
    theirs = [row.value for row in _peers(mine)]
    return (mine["vitcourse-graph"].value, theirs) if theirs and "vitcourse-graph" in mine else None


def table(rows: Sequence[measure.Measurement]) -> str:
    """Markdown: ViT-B/16 in bfloat16 at every batch size, then the other models and types, then what else was measured."""
    lines = _speeds("batch", {str(batch): _forward(rows, batch) for batch in _batches(rows)})
    largest = {
        (row.shape, row.dtype): row.batch  # of several batch sizes the largest
        for row in sorted(rows, key=lambda row: row.batch)
        if (row.provider, row.metric) == ("vitcourse-graph", "images/s") and (row.shape, row.dtype) != (SHAPE, "bfloat16")
    }
    others = {
        f"{shape.partition(' ')[0]}, {dtype}, batch {batch}": _forward(rows, batch, dtype, shape)
        for (shape, dtype), batch in largest.items()
    }
    others = {name: mine for name, mine in others.items() if "hf-sdpa" in mine}
    if others:
        lines += ["", *_speeds("other models and types", others)]
    first = {row.provider: row.value for row in rows if row.metric == "s to first result"}
    lines += [
        "",
        "From process start to the first result, with cold caches: "
        + ", ".join(f"`{provider}` {seconds:.0f} s" for provider, seconds in first.items())
        + ".",
    ]
    if found := errors(rows):
        ours, theirs = found
        lines += [
            "",
            f"Error of the logits at batch 8, ‖logits − exact‖ / ‖exact‖ with `exact` in float64: `vitcourse-graph` {ours:.2g}, "
            f"the peers' from {min(theirs):.2g} to {max(theirs):.2g}, median {statistics.median(theirs):.2g}.",
        ]
    if memory := _forward(rows, max(_batches(rows)), metric="GB peak"):
        lines += [
            "",
            f"GPU memory at most, at batch {max(_batches(rows))}: "
            + ", ".join(f"`{name}` {memory[name].value:.1f} GB" for name in SHOWN if name in memory)
            + ".",
        ]
    if lacking := _missing(rows):
        lines += ["", f"Not in this recording: {lacking}."]
    lines += [
        "",
        f"One {rows[0].gpu}, {rows[0].date}, PyTorch {rows[0].torch.split('+')[0]}, Triton {rows[0].triton}, bfloat16 where "
        f"nothing else is said, random data; every provider is in "
        f"[the recording](benchmarks/{measure.folder(rows[0].gpu).name}/vit_forward.csv).",
    ]
    return "\n".join(lines)


def draw(rows: Sequence[measure.Measurement], dark: bool) -> plt.Figure:
    """Speed against the fastest peer's at every batch size, a panel each."""
    with plt.rc_context(figures.STYLE | {"axes.grid": False} | (DARK if dark else {})):
        batches = _batches(rows)
        figure, _ = plt.subplots(1, len(batches), figsize=(11, 3.2), sharey=True)
        for panel, batch in zip(figure.axes, batches):
            mine = _forward(rows, batch)
            best = _best_peer(mine).ms
            speeds = [best / mine[name].ms if name in mine else 0.0 for name in SHOWN]
            colours = [figures.ACCENT if name.startswith("vitcourse") else "#8b98a5" for name in SHOWN]
            panel.barh(SHOWN, speeds, color=colours)
            for name, speed in zip(SHOWN, speeds):
                panel.text(speed, name, f" {speed:.2f}" if speed else " not measured", va="center", fontsize=8.5)
            panel.set_title(f"batch {batch}")
            panel.set_xlim(0, 1.3 * max(speeds))
            panel.xaxis.set_visible(False)
            panel.spines["bottom"].set_visible(False)
        title = f"ViT-B/16, forward, bfloat16, one {rows[0].gpu}: speed, the fastest peer of all that were measured being 1"
        figure.suptitle(title, fontsize=11)
        figure.tight_layout()
    return figure


def main() -> int:
    """Write the two pictures beside the recording, and the table into the README."""
    rows = measure.read("vit_forward", GPU)
    for dark in (False, True):
        (measure.folder(GPU) / f"vit_forward{'-dark' * dark}.png").write_bytes(figures.png(draw(rows, dark)))
    text = README.read_text(encoding="utf-8")
    README.write_text(TABLE.sub(lambda match: match[1] + table(rows) + "\n" + match[2], text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
