"""Draw the posts' figures, each for a light and a dark page, and fill in the table of GPUs: `python posts/draw.py`.

The figures of a GPU are NVIDIA's own, from the documents that the post names; what is computed from them is computed here.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the package is found from any folder

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from vitcourse import measure
from vitcourse.teach import cost, figures
from vitcourse.teach.readme import DARK

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class GPU:
    """What NVIDIA says of one.

    sms: multiprocessors, each with so many float32 `lanes`, `shared` KB of shared memory and `threads` threads. float32 and
    tensor: TFLOP/s, the latter of float16 summed in float32, dense. memory: GB, of a `kind`; bandwidth: GB/s; l2: MB.
    """

    name: str
    capability: float
    sms: int
    lanes: int
    float32: float
    tensor: float
    memory: int
    kind: str
    bandwidth: int
    l2: int
    shared: int
    threads: int
    watts: int

    @property
    def ridge(self) -> float:
        """FLOPs a byte from which on the tensor cores, and no longer the memory, are the limit."""
        return 1e3 * self.tensor / self.bandwidth

    @property
    def registers(self) -> float:
        """All registers in MB: 65,536 of 4 bytes in each multiprocessor of all four."""
        return self.sms * 65536 * 4 / 1e6


GPUS = (
    GPU("T4", 7.5, 40, 64, 8.1, 65, 16, "GDDR6", 320, 4, 64, 1024, 70),
    GPU("RTX 3080 Ti", 8.6, 80, 128, 34.1, 68, 12, "GDDR6X", 912, 6, 100, 1536, 350),
    GPU("A100 (SXM, 40 GB)", 8.0, 108, 64, 19.5, 312, 40, "HBM2", 1555, 40, 164, 2048, 400),
    GPU("H200 (SXM)", 9.0, 132, 128, 67, 989, 141, "HBM3e", 4800, 60, 228, 2048, 700),
)


def table() -> str:
    """The GPUs side by side, in Markdown."""
    rows = {
        "compute capability": [f"{gpu.capability}" for gpu in GPUS],
        "multiprocessors": [f"{gpu.sms}" for gpu in GPUS],
        "float32 lanes in each": [f"{gpu.lanes}" for gpu in GPUS],
        "float32, TFLOP/s": [f"{gpu.float32:g}" for gpu in GPUS],
        "tensor cores, float16 summed in float32, TFLOP/s": [f"{gpu.tensor:g}" for gpu in GPUS],
        "device memory": [f"{gpu.memory} GB {gpu.kind}" for gpu in GPUS],
        "its bandwidth, GB/s": [f"{gpu.bandwidth:,}" for gpu in GPUS],
        "L2 cache, MB": [f"{gpu.l2}" for gpu in GPUS],
        "all registers together, MB": [f"{gpu.registers:.0f}" for gpu in GPUS],
        "shared memory of a multiprocessor, KB": [f"{gpu.shared}" for gpu in GPUS],
        "threads that a multiprocessor holds": [f"{gpu.threads:,}" for gpu in GPUS],
        "tensor FLOPs in the time of one byte": [f"{gpu.ridge:.0f}" for gpu in GPUS],
        "watts": [f"{gpu.watts}" for gpu in GPUS],
    }
    head = ["| | " + " | ".join(gpu.name for gpu in GPUS) + " |", "|---" * (len(GPUS) + 1) + "|"]
    return "\n".join(head + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()])


def rooflines() -> plt.Figure:
    """What each GPU can reach at each intensity, with four operations of a ViT."""
    figure, axes = plt.subplots(figsize=(9, 4.4))
    for gpu, colour in zip(GPUS, figures.COLOURS):
        x = [2.0**-3, gpu.ridge, 2.0**11]
        axes.plot(x, [min(gpu.tensor, gpu.bandwidth * i / 1e3) for i in x], color=colour, linewidth=2.2, label=gpu.name)
    operations = {operation.name: operation.intensity for operation in cost.operations(batch=256)}
    shown = {"residual add": "add", "layer norm": "layer norm", "attention": "attention,\n197 tokens", "fc1": "linear"}
    for operation, name in shown.items():
        intensity = operations[operation]
        axes.axvline(intensity, color=figures.QUIET, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.text(intensity * 1.07, 0.03, name, fontsize=9, va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(0.02, 2000)
    axes.set_xlabel("FLOPs for each byte moved")
    axes.set_ylabel("TFLOP/s, at most")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    return figure


def memories() -> plt.Figure:
    """The memories of each GPU, from the registers to the device's, by size."""
    figure, axes = plt.subplots(figsize=(9, 3.4))
    names = ("registers", "shared memory", "L2 cache", "device memory")
    for i, (gpu, colour) in enumerate(zip(GPUS, figures.COLOURS)):
        sizes = (gpu.registers, gpu.sms * gpu.shared / 1e3, gpu.l2, gpu.memory * 1e3)
        places = [kind + 0.2 * (i - 1.5) for kind in range(len(names))]
        axes.bar(places, sizes, width=0.18, color=colour, label=gpu.name)
        for place, size in zip(places, sizes):
            text = f"{size / 1e3:.0f} GB" if size >= 1e3 else f"{size:.0f}"
            axes.text(place, size * 1.15, text, ha="center", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(1, 1e6)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("MB, whole GPU")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", frameon=False, ncols=2)
    return figure


def owners() -> plt.Figure:
    """A result of 4 x 6: in CUDA a thread owns an element, in Triton a program owns a tile; offsets in each cell."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
    ink = plt.rcParams["text.color"]
    for axes, title in ((left, "CUDA C++: blocks of 2 x 3 threads"), (right, "Triton: tiles of 2 x 3")):
        axes.set_title(title)
        axes.axis("off")
        axes.set_xlim(-0.1, 6.1)
        axes.set_ylim(4.1, -0.1)
        for m in range(4):
            for n in range(6):
                colour = figures.COLOURS[m // 2 * 2 + n // 3]
                inset, width = (0.06, 0.8) if axes is left else (0, 0.4)
                box = (n + inset, m + inset), 1 - 2 * inset, 1 - 2 * inset
                axes.add_patch(
                    Rectangle(*box, facecolor=(*plt.matplotlib.colors.to_rgb(colour), 0.25), edgecolor=colour, lw=width)
                )
                axes.text(n + 0.5, m + 0.4, str(m * 6 + n), ha="center", va="center", color=ink, fontsize=11)
                if axes is left:
                    axes.text(n + 0.5, m + 0.74, f"thread {n % 3},{m % 2}", ha="center", va="center", color=ink, fontsize=6.5)
        if axes is right:
            for program in range(4):
                corner = (program % 2 * 3 + 0.04, program // 2 * 2 + 0.04)
                axes.add_patch(Rectangle(corner, 2.92, 1.92, facecolor="none", edgecolor=figures.COLOURS[program], lw=2.5))
                axes.text(corner[0] + 1.46, corner[1] + 0.84, f"program {program % 2},{program // 2}", ha="center", fontsize=8.5)
    return figure


FIGURES = {"rooflines": rooflines, "memories": memories, "owners": owners}


def measured() -> str:
    """What the course's own GPU was measured to do, from its recording."""
    ceilings = measure.ceilings(gpu="NVIDIA H200")
    copy, product = ceilings.bandwidth / 1e9, ceilings.flops["bfloat16"] / 1e12
    return f"Measured, the H200 of this course copies at {copy:,.0f} GB/s and multiplies large matrices at {product:.0f} TFLOP/s."


def fill(text: str) -> str:
    """The post with the table of GPUs, and what was measured, between their marks."""
    text = re.sub(
        r"(<!-- measured, by python posts/draw.py -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{measured()}\n{m[2]}",
        text,
        flags=re.S,
    )
    return re.sub(
        r"(<!-- gpus, by python posts/draw.py -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table()}\n{m[2]}", text, flags=re.S
    )


def main() -> None:
    for name, draw in FIGURES.items():
        for suffix, style in (("", {}), ("-dark", DARK | {"grid.color": "#21262d"})):
            with plt.rc_context(figures.STYLE | style):
                (HERE / "figures" / f"{name}{suffix}.png").write_bytes(figures.png(draw()))
    post = HERE / "what_is_inside_a_gpu.md"
    post.write_text(fill(post.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
