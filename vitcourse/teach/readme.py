"""`python -m vitcourse.teach.readme`: draw the README's figures and fill in its table, both from the recorded CSV files."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from .. import measure
from . import figures

README = Path(__file__).resolve().parents[2] / "README.md"
GPU = "NVIDIA H200"
SHOWN = (
    "hf-eager", "hf-sdpa", "hf-compile-max-autotune", "timm", "timm-graph", "timm-compile", "timm-compile-max-autotune",
    "vitcourse-graph",
)  # fmt: skip
TABLE = re.compile(r"(<!-- speeds, by python -m vitcourse.teach.readme -->\n).*?(<!-- end -->)", re.DOTALL)
DARK = {"figure.facecolor": "#0d1117", "axes.facecolor": "#0d1117", "text.color": "#e6edf3", "axes.edgecolor": "#6e7681"}
DARK |= {"xtick.color": "#e6edf3", "ytick.color": "#e6edf3", "axes.labelcolor": "#e6edf3"}


def _forward(rows: Sequence[measure.Measurement], batch: int) -> dict[str, measure.Measurement]:
    """The bfloat16 forward passes at one batch size, by provider."""
    return {row.provider: row for row in rows if (row.batch, row.dtype, row.metric) == (batch, "bfloat16", "images/s")}


def _batches(rows: Sequence[measure.Measurement]) -> list[int]:
    return sorted({row.batch for row in rows if row.metric == "images/s"})


def _best_peer(forward: dict[str, measure.Measurement]) -> measure.Measurement:
    return min((row for name, row in forward.items() if not name.startswith("vitcourse")), key=lambda row: row.ms)


def _ms(row: measure.Measurement) -> str:
    return f"{row.ms:.2f} ms" if row.ms < 10 else f"{row.ms:.1f} ms"


def table(rows: Sequence[measure.Measurement]) -> str:
    """Markdown: our model, the best of the peers and Hugging Face's with SDPA at every batch size, in ms and images/s."""
    lines = [
        "| batch | Hugging Face, SDPA | the fastest peer | vitcourse, CUDA graph | against that peer |",
        "|---|---|---|---|---|",
    ]
    for batch in _batches(rows):
        mine = _forward(rows, batch)
        ours, sdpa = mine["vitcourse-graph"], mine["hf-sdpa"]
        best = _best_peer(mine)
        lines.append(
            f"| {batch} | {_ms(sdpa)} | {_ms(best)} (`{best.provider}`) "
            f"| **{_ms(ours)}** ({ours.value:,.0f} images/s) | {best.ms / ours.ms:.2f} times as fast |"
        )
    first = {row.provider: row.value for row in rows if row.metric == "s to first result"}
    lines += [
        "",
        "From process start to the first result, with cold caches: "
        + ", ".join(f"`{provider}` {seconds:.0f} s" for provider, seconds in first.items())
        + ".",
        "",
        f"One {rows[0].gpu}, {rows[0].date}, PyTorch {rows[0].torch.split('+')[0]}, Triton {rows[0].triton}, bfloat16, random "
        f"data; every provider is in [the recording](benchmarks/{measure.folder(rows[0].gpu).name}/vit_forward.csv).",
    ]
    return "\n".join(lines)


def draw(rows: Sequence[measure.Measurement], dark: bool) -> plt.Figure:
    """Speed against the fastest peer's at every batch size, a panel each."""
    with plt.rc_context(figures.STYLE | {"axes.grid": False} | (DARK if dark else {})):
        batches = _batches(rows)
        figure, panels = plt.subplots(1, len(batches), figsize=(11, 3), sharey=True)
        for panel, batch in zip(panels, batches):
            mine = _forward(rows, batch)
            best = _best_peer(mine).ms
            speeds = [best / mine[name].ms for name in SHOWN]
            colours = [figures.ACCENT if name.startswith("vitcourse") else "#8b98a5" for name in SHOWN]
            panel.barh(SHOWN, speeds, color=colours)
            for name, speed in zip(SHOWN, speeds):
                panel.text(speed, name, f" {speed:.2f}", va="center", fontsize=8.5)
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
