"""The lessons' figures. Each function draws one, shows it with a text for those who cannot see it, and returns nothing.

Figures stand on a white card of their own, so they read the same on light and dark pages.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # drawn to a PNG here and shown by IPython, whatever the notebook's own setting
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import FancyBboxPatch, Rectangle

from .. import measure
from ..bench import SHAPE
from .cost import Operation
from .trace import Trace

INK, QUIET, FAINT, ACCENT = "#1f2933", "#7b8794", "#e4e7eb", "#d9480f"
# Okabe and Ito's palette, told apart by most colour-blind readers; pale versions carry dark text.
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999933", "#882255"]
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": FAINT, "axes.axisbelow": True, "figure.facecolor": "white", "axes.facecolor": "white",
    "savefig.facecolor": "auto", "axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold",
}  # fmt: skip


def png(figure: plt.Figure) -> bytes:
    """The figure as a PNG on a card of its own colour."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight", pad_inches=0.2, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def show(figure: plt.Figure, alt: str) -> None:
    """Show `figure` in a notebook at half its pixels (it is drawn for dense screens), with `alt` as its alternative text."""
    from IPython.display import display

    data = png(figure)
    width = int.from_bytes(data[16:20], "big") // 2  # from the PNG's header
    bundle = {"image/png": data, "text/plain": "Figure: " + alt}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt, "width": width}})


def _pale(colour: str, amount: float = 0.65) -> tuple[float, ...]:
    return tuple(amount + (1 - amount) * channel for channel in matplotlib.colors.to_rgb(colour))


def _colour(program: int) -> str:
    return COLOURS[program % len(COLOURS)]


def tiles(trace: Trace, names: dict[str, str] | None = None) -> None:
    """Which program reads or writes each element of every tensor of a kernel on vectors, drawn from its recorded accesses.

    names: parameter to label, and which tensors to draw; by default all, by their parameters' names. Lanes that the mask
    switched off are drawn as dashed cells past the end, where they would have gone.
    """
    launch = trace.launches[-1]
    names = names or {name: name for name in launch.tensors}
    size = max(launch.tensors[name].numel() for name in names)
    extra = max((access.masked for access in trace.accesses), default=0)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(min(11, 0.55 * (size + extra) + 1.6), 0.85 * len(names) + 0.5))
        axes.axis("off")
        for row, (name, label) in enumerate(names.items()):
            y = -1.5 * row
            axes.text(-0.35, y + 0.5, label, ha="right", va="center", family="DejaVu Sans Mono")
            kind = ""
            for access in trace.accesses:
                if access.tensor != name:
                    continue
                kind = "reads" if access.kind == "load" else "writes"
                colour = _colour(access.program[0])
                for element in access.elements:
                    axes.add_patch(Rectangle((element + 0.04, y), 0.92, 1, facecolor=_pale(colour), edgecolor=colour, lw=1.2))
                    axes.text(element + 0.5, y + 0.5, str(element), ha="center", va="center", fontsize=9)
                for lane in range(access.masked):
                    place = (access.elements.max(initial=size - 1) + 1 + lane + 0.04, y)
                    axes.add_patch(Rectangle(place, 0.92, 1, facecolor="none", edgecolor=colour, lw=1, linestyle=(0, (3, 2))))
            axes.text(size + extra + 0.3, y + 0.5, kind, ha="left", va="center", color=QUIET)
        programs = sorted({access.program[0] for access in trace.accesses})
        for program in programs:
            mine = np.concatenate([a.elements for a in trace.accesses if a.program[0] == program])
            middle = (mine.min() + mine.max() + 1) / 2
            text = f"program {program}" if mine.max() > mine.min() + 1 else f"p {program}"
            axes.text(middle, 1.35, text, ha="center", va="bottom", color=_colour(program), weight="bold")
        axes.set_xlim(-2.4, size + extra + 1.8)
        axes.set_ylim(-1.5 * (len(names) - 1) - 0.3, 2)
    parts = []
    for program in programs:
        mine = np.concatenate([a.elements for a in trace.accesses if a.program[0] == program])
        masked = max(a.masked for a in trace.accesses if a.program[0] == program)
        parts.append(
            f"program {program} owns elements {mine.min()} to {mine.max()}" + (f" and has {masked} masked lanes" * bool(masked))
        )
    show(figure, f"Vectors of {size} elements ({', '.join(names.values())}): " + "; ".join(parts) + ".")


def matrices(trace: Trace, names: dict[str, str]) -> None:
    """Which program touches each element of every tensor of one launch, drawn from its recorded accesses.

    names: parameter to label, and which tensors to draw, side by side; a vector is drawn as a row. Each cell has the colour and
    the number of the program that reads or writes it, or how many programs do.
    """
    launch = trace.launches[-1]
    grid = launch.grid + (1,) * (3 - len(launch.grid))
    shapes = {name: (1,) * (2 - launch.tensors[name].ndim) + tuple(launch.tensors[name].shape) for name in names}
    notes, left = [], 0.0
    height = max(shape[0] for shape in shapes.values())
    width = sum(shape[1] for shape in shapes.values()) + 2.5 * (len(names) - 1)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(min(11.5, 0.42 * width + 0.6), min(11.5 / width, 0.42) * (height + 1.6) + 0.2))
        axes.axis("off")
        axes.set_aspect("equal")
        for name, label in names.items():
            rows, columns = shapes[name]
            tensor = launch.tensors[name]
            strides = (0,) * (2 - tensor.ndim) + tensor.stride()
            touched: dict[int, set[int]] = {}
            kinds = set()
            for access in trace.accesses:
                if access.tensor == name:
                    kinds.add("read" if access.kind == "load" else "written")
                    program = access.program[0] + grid[0] * (access.program[1] + grid[1] * access.program[2])
                    for element in access.elements:
                        touched.setdefault(int(element), set()).add(program)
            for i in range(rows):
                for j in range(columns):
                    programs = touched.get(i * strides[0] + j * strides[1], set())
                    colour = _colour(min(programs)) if len(programs) == 1 else QUIET
                    face = _pale(colour) if len(programs) == 1 else FAINT if programs else "none"
                    place = (left + j + 0.04, -i - 1 + 0.04)
                    axes.add_patch(Rectangle(place, 0.92, 0.92, facecolor=face, edgecolor=colour, lw=0.8))
                    text = str(min(programs)) if len(programs) == 1 else f"×{len(programs)}" if programs else ""
                    axes.text(left + j + 0.5, -i - 0.5, text, ha="center", va="center", fontsize=8)
            axes.text(left, 0.25, f"{label}, {' and '.join(sorted(kinds))}", ha="left", va="bottom", weight="bold")
            most = max(map(len, touched.values()), default=0)
            by = "by one program" if most == 1 else f"by up to {most} programs"
            notes.append(f"{label} {tuple(tensor.shape)}: {len(touched)} elements {' and '.join(sorted(kinds))}, each {by}")
            left += columns + 2.5
        axes.set_xlim(-0.2, left - 2.2)
        axes.set_ylim(-height - 0.2, 1.4)
    show(figure, f"Cells with the number of the program that touches them, of {np.prod(grid)}. " + "; ".join(notes) + ".")


def curves(x: Sequence[float], lines: dict[str, Sequence[float]], title: str, xlabel: str = "x", log: bool = False) -> None:
    """Functions of x as lines; `log` for a logarithmic scale, on which values below 1e-12 are drawn at 1e-12."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 3.6))
        for index, (label, values) in enumerate(lines.items()):
            values = np.maximum(np.asarray(values), 1e-12) if log else np.asarray(values)
            style = ("-", "--", "-.", ":")[index % 4]
            axes.plot(x, values, color=COLOURS[index % len(COLOURS)], lw=1.8, linestyle=style, label=label)
        axes.set(title=title, xlabel=xlabel, yscale="log" if log else "linear")
        axes.legend(frameon=False)
    ends = "; ".join(
        f"{label}: from {float(values[0]):.3g} to {float(values[-1]):.3g}, at most {float(np.max(values)):.3g}"
        for label, values in lines.items()
    )
    show(figure, f"{title}, for {xlabel} from {float(x[0]):.3g} to {float(x[-1]):.3g}. {ends}.")


def sectors(traces: dict[str, Trace], tensor: str, lanes: int = 32) -> None:
    """The 32-byte sectors that one warp's first load touches in each of `traces` (label to trace), as rows of cells.

    A GPU fetches memory in sectors of 32 bytes; `lanes` is how many elements the warp's 32 threads ask for at a time.
    """
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(9, 0.95 * len(traces) + 0.6))
        axes.axis("off")
        notes = []
        for row, (label, trace) in enumerate(traces.items()):
            access = next(a for a in trace.accesses if a.tensor == tensor and a.kind == "load" and a.program == (0, 0, 0))
            byte = access.elements[:lanes] * access.itemsize
            touched = np.unique(byte // 32)
            y, total = -1.25 * row, 34
            for sector in range(total):
                hit = sector in touched
                face = _pale(COLOURS[0], 0.55) if hit else "white"
                axes.add_patch(Rectangle((sector, y), 1, 0.8, facecolor=face, edgecolor=COLOURS[0] if hit else FAINT, lw=0.8))
                for asked in byte[byte // 32 == sector]:
                    left = sector + (asked % 32) / 32
                    axes.add_patch(Rectangle((left, y), access.itemsize / 32, 0.8, facecolor=ACCENT, edgecolor="white", lw=0.4))
            used = 100 * lanes * access.itemsize / (32 * len(touched))
            note = f"{len(touched)} sectors, {32 * len(touched)} bytes fetched, {used:.0f} % of them used"
            notes.append(f"{label}: {note}")
            axes.text(-0.3, y + 0.4, label, ha="right", va="center", family="DejaVu Sans Mono", fontsize=9)
            shown = note + ("" if touched.max() < total else f" (the first {total} are drawn)")
            axes.text(0, y - 0.08, shown, ha="left", va="top", color=QUIET, fontsize=8.5)
        axes.set_xlim(-6, 35)
        axes.set_ylim(-1.25 * (len(traces) - 1) - 0.45, 1)
    show(figure, f"32-byte sectors of memory touched by the first {lanes} lanes of a load. " + "; ".join(notes) + ".")


def _finish(axes: plt.Axes, rows: Sequence[measure.Measurement]) -> None:
    row = rows[0]
    note = f"{row.gpu}, {row.date}, PyTorch {row.torch.split('+')[0]}, Triton {row.triton}"
    axes.figure.text(0.99, 0.01, note, ha="right", va="top", fontsize=8, color=QUIET)


def bandwidth(rows: Sequence[measure.Measurement], title: str = "") -> None:
    """GB/s against the size of the problem, a line a provider, with the copy bandwidth measured beside them as the limit.

    rows: measurements whose `shape` is a number of elements, or a shape such as 197x768, and whose metric is GB/s. With none,
    nothing is drawn.
    """
    _over_sizes(
        rows, title or "Bandwidth", "elements", "GB/s (bytes read and written)", "copy", math.prod, ("upper left", (0, 0.95))
    )


def arithmetic(rows: Sequence[measure.Measurement], title: str = "") -> None:
    """TFLOP/s of square products against their side, a line a provider, with cuBLAS's largest product as the limit.

    rows: measurements whose `shape` is MxNxK and whose metric is TFLOP/s. With none, nothing is drawn.
    """
    _over_sizes(rows, title or "Speed", "M, N and K", "TFLOP/s", "cuBLAS at 8,192", max, ("lower right", (1, 0)))


def _over_sizes(
    rows: Sequence[measure.Measurement], title: str, xlabel: str, ylabel: str, limit: str, size: Callable[[list[int]], int],
    legend: tuple[str, tuple[float, float]],
) -> None:  # fmt: skip
    if not rows:
        return
    ceiling, metric = max(row.limit for row in rows), rows[0].metric
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.2))
        axes.axhline(ceiling, color=ACCENT, lw=1.5, linestyle="--")
        label = f" {limit}: {ceiling:,.0f} {metric}"
        axes.text(0.01, ceiling, label, color=ACCENT, va="bottom", transform=axes.get_yaxis_transform())
        notes = []
        for index, provider in enumerate(dict.fromkeys(row.provider for row in rows)):
            mine = [row for row in rows if row.provider == provider]
            sizes, values = [size(list(map(int, row.shape.split("x")))) for row in mine], [row.value for row in mine]
            marker = "os^Dvp"[index % 6]
            axes.plot(sizes, values, color=COLOURS[index], marker=marker, ms=5, lw=1.8, label=provider)
            notes.append(f"{provider} from {values[0]:,.0f} {metric} at {sizes[0]:,} to {values[-1]:,.0f} at {sizes[-1]:,}")
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, None)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.legend(frameon=False, loc=legend[0], bbox_to_anchor=legend[1])  # the lines rise from the lower left
        _finish(axes, rows)
    show(
        figure, f"{title} against {xlabel} on {rows[0].gpu}: " + "; ".join(notes) + f"; {limit} reaches {ceiling:,.0f} {metric}."
    )


def roofline(ceilings: measure.Ceilings, operations: Sequence[Operation], dtype: str = "bfloat16") -> None:
    """The most FLOP/s that a machine can reach against FLOPs a byte, with operations placed at their intensity."""
    peak, ridge = ceilings.flops[dtype], ceilings.flops[dtype] / ceilings.bandwidth
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.6))
        x = np.array([0.05, ridge, 4000])
        axes.plot(x, np.minimum(peak, x * ceilings.bandwidth) / 1e12, color=INK, lw=2)
        axes.axvline(ridge, color=FAINT, lw=1.2)
        axes.text(ridge * 1.1, 0.16, f"{ridge:.0f} FLOP/byte", color=QUIET, fontsize=9)
        axes.text(0.07, 0.75, f"memory: {ceilings.bandwidth / 1e12:.2f} TB/s", rotation=36, color=QUIET, fontsize=9)
        axes.text(3800, peak / 1e12 * 1.2, f"arithmetic: {peak / 1e12:.0f} TFLOP/s", color=QUIET, fontsize=9, ha="right")
        near: dict[float, list[Operation]] = {}  # operations of about the same intensity share a point and a label
        for operation in sorted(operations, key=lambda o: o.intensity):
            known = next((x for x in near if operation.intensity < 1.15 * x), operation.intensity)
            near.setdefault(known, []).append(operation)
        for index, (intensity, group) in enumerate(near.items()):
            reach = min(peak, intensity * ceilings.bandwidth) / 1e12
            bound = intensity < ridge
            colour = COLOURS[0] if bound else COLOURS[5]
            axes.plot(intensity, reach, "o", color=colour, ms=6)
            label = ", ".join(operation.name for operation in group)
            near_ridge = bound and intensity > 0.3 * ridge
            place, side = (
                ((-9, -2), "right") if near_ridge else ((9, -4), "left") if bound else ((2, -16 - 13 * (index % 2)), "left")
            )
            axes.annotate(
                label, (intensity, reach), xytext=place, textcoords="offset points", fontsize=8.5, color=colour, ha=side
            )
        axes.set(xscale="log", yscale="log", xlim=(0.05, 4000), ylim=(0.1, 3 * peak / 1e12))
        axes.set(
            xlabel="FLOPs a byte moved (intensity)", ylabel="TFLOP/s at most", title=f"Roofline of one {ceilings.gpu}, {dtype}"
        )
    below = [operation.name for operation in operations if operation.intensity < ridge]
    above = [operation.name for operation in operations if operation.intensity >= ridge]
    show(
        figure, f"Roofline: left of {ridge:.0f} FLOP/byte, bound by memory: {', '.join(below)}. Right of it: {', '.join(above)}."
    )


def _box(axes: plt.Axes, x: float, y: float, w: float, h: float, text: str, colour: str, marked: bool = False) -> None:
    face = ACCENT if marked else _pale(colour, 0.75)
    patch = FancyBboxPatch(
        (x, y), w, h, boxstyle="round,pad=0,rounding_size=0.12", facecolor=face, edgecolor=ACCENT if marked else colour
    )
    axes.add_patch(patch)
    axes.text(
        x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9, linespacing=1.35,
        color="white" if marked else INK, weight="bold" if marked else "normal",
    )  # fmt: skip


def vit_map(marked: Sequence[str] = ()) -> None:
    """ViT-B/16 from pixels to logits, with the operations in `marked` (names of `cost.operations`) picked out."""
    steps = [
        ("layer norm", "layer norm"), ("qkv", "qkv\nlinear"), ("attention", "attention"), ("out", "out\nlinear"),
        ("residual add", "+"), ("layer norm", "layer norm"), ("fc1", "fc1\nlinear"), ("gelu", "GELU"), ("fc2", "fc2\nlinear"),
        ("residual add", "+"),
    ]  # fmt: skip
    widths = [0.55 if label == "+" else 1.15 for _, label in steps]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(11.5, 3.1))
        axes.axis("off")
        x, y = 0.3, 0.55
        width = sum(widths) + 0.18 * (len(widths) + 1)
        frame = FancyBboxPatch(
            (x - 0.1, y - 0.45), width, 1.85, boxstyle="round,pad=0,rounding_size=0.15", facecolor="#f8f9fa", edgecolor=QUIET
        )
        axes.add_patch(frame)
        axes.text(x + width - 0.25, y + 1.15, "12 times", ha="right", va="center", color=QUIET, fontsize=9)
        axes.text(x + 0.05, y - 0.25, "(batch, 197, 768) in and out", color=QUIET, fontsize=8.5, va="center")
        x += 0.08
        places = {}
        for index, ((name, label), w) in enumerate(zip(steps, widths)):
            colour = COLOURS[0] if "linear" in label or name == "attention" else COLOURS[2]
            _box(axes, x, y, w, 0.85, label, colour, name in marked)
            places[index] = x + w / 2
            x += w + 0.18
        for start, end in ((0, 4), (5, 9)):  # the residual's way round
            left, right, top = places[start] - 0.66, places[end], y + 1.0
            axes.plot([left, left, right, right], [y + 0.45, top, top, y + 0.85], color=QUIET, lw=1)
        top = 2.5
        _box(axes, 0.2, top, 1.9, 0.75, "pixels\n(batch, 3, 224, 224)", QUIET)
        _box(axes, 2.4, top, 1.9, 0.75, "patch embedding\n196 patches", COLOURS[0], "patch embedding" in marked)
        _box(axes, 4.6, top, 2.1, 0.75, "class token and\nposition add", COLOURS[2], "position add" in marked)
        _box(axes, 7.0, top, 1.5, 0.75, "12 blocks", QUIET)
        _box(axes, 8.8, top, 1.3, 0.75, "layer norm", COLOURS[2], "layer norm" in marked)
        _box(axes, 10.4, top, 1.8, 0.75, "classifier\n1,000 logits", COLOURS[0], "classifier" in marked)
        for a, b in ((2.1, 2.4), (4.3, 4.6), (6.7, 7.0), (8.5, 8.8), (10.1, 10.4)):
            axes.annotate("", (b, top + 0.375), (a, top + 0.375), arrowprops={"arrowstyle": "-|>", "color": QUIET, "lw": 1})
        axes.set_xlim(0, 12.5)
        axes.set_ylim(0, 3.4)
    named = f" Marked: {', '.join(marked)}." if marked else ""
    show(
        figure,
        "ViT-B/16: pixels, patch embedding, class token and position add, 12 blocks, layer norm, classifier. A block: "
        "layer norm, qkv linear, attention, out linear, residual add, layer norm, fc1 linear, GELU, fc2 linear, residual add."
        + named,
    )


def gpu(ceilings: measure.Ceilings) -> None:
    """An H200 from the outside in: device memory, L2, multiprocessors, and what is inside one of them."""
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(11, 4.6))
        axes.axis("off")
        _box(
            axes,
            0,
            0,
            2.1,
            5,
            f"device memory\n(HBM3e)\n\n141 GB\n\n{ceilings.bandwidth / 1e12:.2f} TB/s\nmeasured, copying",
            COLOURS[0],
        )
        _box(axes, 2.5, 0, 1.5, 5, "L2 cache\n\n60 MB\n\nshared by\nall SMs", COLOURS[4])
        for row in range(11):
            for column in range(12):
                axes.add_patch(
                    Rectangle((4.45 + 0.19 * column, 0.55 + 0.36 * row), 0.15, 0.28, facecolor=_pale(COLOURS[2], 0.5), lw=0)
                )
        axes.add_patch(Rectangle((4.45 + 0.19 * 11, 0.55 + 0.36 * 10), 0.15, 0.28, facecolor=ACCENT, lw=0))
        axes.text(5.57, 4.75, "132 multiprocessors (SMs)", ha="center", weight="bold")
        axes.text(5.57, 0.2, "one of them, larger:", ha="center", color=QUIET, fontsize=9)
        axes.annotate("", (7.15, 3.2), (6.78, 4.25), arrowprops={"arrowstyle": "-|>", "color": ACCENT})
        frame = FancyBboxPatch((7.2, 0), 4.6, 5, boxstyle="round,pad=0,rounding_size=0.15", facecolor="#f8f9fa", edgecolor=ACCENT)
        axes.add_patch(frame)
        for index in range(4):
            x = 7.35 + 1.1 * index
            _box(axes, x, 1.25, 1.0, 3.6, "", COLOURS[2])
            text = "scheduler\n1 warp\na cycle\n\n16,384\nregisters\n\n32 float32\nlanes\n\n1 tensor\ncore"
            axes.text(x + 0.5, 3.05, text, ha="center", va="center", fontsize=8.5, linespacing=1.3)
        _box(axes, 7.35, 0.15, 4.3, 0.9, "256 KB shared memory and L1 cache\n(one program may use 227 KB of it)", COLOURS[1])
        axes.set_xlim(-0.1, 12)
        axes.set_ylim(-0.1, 5.2)
    show(
        figure,
        "An H200 from the outside in: 141 GB of device memory, a 60 MB L2 cache shared by 132 multiprocessors; in one "
        "multiprocessor four schedulers, each with 16,384 registers, 32 float32 lanes and a tensor core, and 256 KB of shared "
        "memory and L1 cache between them.",
    )


def attention_maps(images: np.ndarray, attentions: torch.Tensor) -> None:
    """Images beside what the class token looks at: for each head, its weights on the patches, over the image.

    images: (n, height, width), 0 to 255; attentions: (n, heads, tokens, tokens), of a model whose patches are a square grid.
    """
    n, heads, tokens, _ = attentions.shape
    side = math.isqrt(tokens - 1)
    maps = attentions[:, :, 0, 1:].float().reshape(n, heads, side, side).numpy()
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(heads + 1, n, figsize=(1.35 * n + 0.9, 1.35 * (heads + 1)), squeeze=False)
        for row, line in enumerate(axes):
            for image, weights, cell in zip(images, maps, line):
                height, width = image.shape
                cell.imshow(image, cmap="gray_r", vmin=0, vmax=255 if row == 0 else 600)  # pale under a shade
                if row:
                    over = weights[row - 1]
                    for (i, j), share in np.ndenumerate(over / (over.max() or 1.0)):
                        place = (j * width / side - 0.5, i * height / side - 0.5)
                        box = Rectangle(place, width / side, height / side, facecolor=ACCENT, alpha=0.75 * share, linewidth=0)
                        cell.add_patch(box)
                cell.set_xticks([])
                cell.set_yticks([])
            line[0].set_ylabel(f"head {row}" if row else "image", rotation=0, ha="right", va="center")
    most = maps.reshape(n, heads, -1).max(-1).mean()
    show(
        figure,
        f"{n} images, and for each of {heads} heads the weights of the class token on {side} x {side} patches as a shade over "
        f"the image; the largest weight of a head is {most:.2f} on average, where equal weights would be {1 / (tokens - 1):.3f}.",
    )


def draw_speeds(rows: Sequence[measure.Measurement], batch: int, dtype: str = "bfloat16") -> tuple[plt.Figure, str]:
    """ViT-B/16's images a second by provider at one batch size, as bars. Returns the figure and its text."""
    wanted = (SHAPE, "images/s", batch, dtype)
    mine = [row for row in rows if (row.shape, row.metric, row.batch, row.dtype) == wanted]
    mine.sort(key=lambda row: row.value)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(8, 0.36 * len(mine) + 1))
        colours = [ACCENT if row.provider.startswith("vitcourse") else "#9aa5b1" for row in mine]
        axes.barh([row.provider for row in mine], [row.value for row in mine], color=colours)
        for row in mine:
            axes.text(row.value, row.provider, f" {row.value:,.0f}", va="center", fontsize=9)
        axes.set(title=f"ViT-B/16, forward, {dtype}, batch {batch}: images a second")
        axes.set_xlim(0, 1.12 * mine[-1].value)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        _finish(axes, mine)
    text = "; ".join(f"{row.provider} {row.value:,.0f}" for row in reversed(mine))
    return figure, f"ViT-B/16 at batch {batch} on one {mine[0].gpu}, images a second: {text}."


def speeds(rows: Sequence[measure.Measurement], batch: int, dtype: str = "bfloat16") -> None:
    """ViT-B/16's images a second by provider at one batch size, as bars."""
    show(*draw_speeds(rows, batch, dtype))


def waterfall(
    rows: Sequence[measure.Measurement],
    batches: Sequence[int],
    predicted: Mapping[int, Mapping[str, float]] | None = None,
) -> None:
    """`timing.forward`'s rows as falling bars: the time of each version, in the order of the rows, a panel a batch size.

    A panel's shortest bar stands out. predicted: milliseconds by batch size and version, each shown as a line across its bar.
    """
    if not rows:
        return
    predicted = predicted or {}
    names = list(dict.fromkeys(row.provider for row in rows))
    told: dict[str, list[str]] = {name: [] for name in names}
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = plt.subplots(1, len(batches), figsize=(9, 0.42 * len(names) + 1.1), sharey=True, squeeze=False)
        for panel, batch in zip(panels[0], batches):
            ms = {row.provider: row.ms for row in rows if row.batch == batch}
            expected = predicted.get(batch, {})
            shortest = min(ms, key=ms.__getitem__)
            panel.barh(
                names, [ms.get(name, 0.0) for name in names], color=[ACCENT if n == shortest else "#9aa5b1" for n in names]
            )
            for place, name in enumerate(names):
                if name in expected:
                    label = "predicted" if name == next(iter(expected)) else None
                    panel.vlines(expected[name], place - 0.45, place + 0.45, color="#17202a", linewidth=1.6, label=label)
                right = max(ms.get(name, 0.0), expected.get(name, 0.0) if name in ms else 0.0)
                panel.text(right, name, f"  {ms[name]:.3g} ms" if name in ms else "  not measured", va="center", fontsize=9)
                if name in ms:
                    guess = f" ({expected[name]:.3g} predicted)" if name in expected else ""
                    told[name].append(f"{ms[name]:.3g} ms at batch {batch}{guess}")
            panel.set(title=f"batch {batch}", xlim=(0, 1.35 * max(ms.values())))
            panel.xaxis.set_visible(False)
            panel.spines["bottom"].set_visible(False)
        panels[0][0].invert_yaxis()
        if predicted:
            panels[0][-1].legend(loc="lower right", frameon=False, fontsize=9)
        _finish(panels[0][0], rows)
    text = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in told.items())
    show(figure, f"Time of a forward pass of ViT-B/16 on one {rows[0].gpu}, step by step. {text}.")


def timeline(rows: Sequence[measure.Measurement], until_us: float) -> None:
    """`timing.timeline`'s rows as bars over time: when the GPU was at work, a line for each call, of its first `until_us`."""
    if not rows:
        return
    names = list(dict.fromkeys(row.provider for row in rows))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(9, 0.55 * len(names) + 1.2))
        shares = []
        for place, name in enumerate(names):
            spans = [(row.value, row.value + 1e3 * row.ms) for row in rows if row.provider == name]
            bars = [(start, end - start) for start, end in spans if start < until_us]
            axes.broken_barh(
                bars, (place - 0.32, 0.64), facecolors=COLOURS[place % len(COLOURS)], edgecolor="white", linewidth=0.3
            )
            last = max(end for _, end in spans)
            shares.append(f"{name}: {len(spans)} kernels in {last:,.0f} us, of which {sum(e - s for s, e in spans):,.0f} at work")
        axes.set(xlim=(0, until_us), xlabel="microseconds since the first kernel", title="when the GPU is at work")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        figure.tight_layout()
        _finish(axes, rows)
    show(figure, f"Kernels of one forward pass over time. {'; '.join(shares)}.")
