"""What a ViT's forward pass costs, operation by operation: FLOPs and bytes counted from the shapes, time from a recording."""

from dataclasses import dataclass

from .. import measure
from ..vit import ViTConfig


@dataclass
class Operation:
    """One kind of operation in the forward pass of one image.

    name: as `figures.vit_map` calls it; shape: of one call; calls: in a forward pass.
    flops: of all calls, a multiply-add counted as two. moved: bytes of all calls, if each reads its operands from memory
    and writes its result back: what separate kernels do, before anything is fused.
    """

    name: str
    shape: str
    calls: int
    flops: float
    moved: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.moved


def operations(config: ViTConfig | None = None, batch: int = 1, itemsize: int = 2) -> list[Operation]:
    """Every operation of `config`, by default ViT-B/16, on `batch` images of `itemsize` bytes an element, unfused."""
    config = config or ViTConfig(id2label={index: "" for index in range(1000)})
    tokens, hidden, wide = config.tokens, config.hidden_size, config.intermediate_size
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    rows = batch * tokens
    patches, pixels = batch * (tokens - 1), config.num_channels * config.patch_shape[0] * config.patch_shape[1]

    def linear(name: str, calls: int, m: int, n: int, k: int) -> Operation:
        shape = f"({m}, {k}) x ({k}, {n})"
        return Operation(name, shape, calls, calls * 2.0 * m * n * k, calls * itemsize * float(m * k + k * n + n + m * n))

    def elementwise(name: str, calls: int, m: int, n: int, flops: int, operands: int) -> Operation:
        return Operation(name, f"({m}, {n})", calls, float(calls * flops * m * n), calls * itemsize * float(operands * m * n))

    scores = batch * heads * tokens * tokens
    attention = Operation(
        "attention", f"({batch}, {heads}, {tokens}, {hidden // heads})", layers,
        layers * (4.0 * batch * tokens * tokens * hidden + 5.0 * scores), layers * itemsize * 4.0 * rows * hidden,
    )  # fmt: skip
    return [
        linear("patch embedding", 1, patches, hidden, pixels),
        elementwise("position add", 1, rows, hidden, 1, 3),
        elementwise("layer norm", 2 * layers + 1, rows, hidden, 8, 2),
        linear("qkv", layers, rows, 3 * hidden, hidden),
        attention,
        linear("out", layers, rows, hidden, hidden),
        elementwise("residual add", 2 * layers, rows, hidden, 1, 3),
        linear("fc1", layers, rows, wide, hidden),
        elementwise("gelu", layers, rows, wide, 8, 2),
        linear("fc2", layers, rows, hidden, wide),
        linear("classifier", 1, batch, config.num_labels, hidden),
    ]


def floor_ms(operation: Operation, ceilings: measure.Ceilings, dtype: str = "bfloat16") -> float:
    """The least time for all calls of `operation` on a machine with these ceilings: its bytes or its FLOPs, whichever last."""
    return ceilings.floor_ms(operation.moved, operation.flops, dtype)


def share(name: str, ceilings: measure.Ceilings, batch: int = 256) -> str:
    """One operation's calls and its shares of a forward pass, in a line."""
    rows = operations(batch=batch)
    row = next(row for row in rows if row.name == name)
    flops, moved = sum(row.flops for row in rows), sum(row.moved for row in rows)
    least = floor_ms(row, ceilings) / sum(floor_ms(row, ceilings) for row in rows)
    calls = "1 call" if row.calls == 1 else f"{row.calls} calls"
    return (
        f"{name}: {calls} of {row.shape}; {100 * row.flops / flops:.2f} % of the FLOPs, "
        f"{100 * row.moved / moved:.1f} % of the bytes, {100 * least:.1f} % of the least time"
    )


def share_table(batch: int, ceilings: measure.Ceilings) -> str:
    """Every operation with its share of the FLOPs, of the bytes, and of the least time under these ceilings, as text."""
    rows = operations(batch=batch)
    flops, moved = sum(row.flops for row in rows), sum(row.moved for row in rows)
    floors = [floor_ms(row, ceilings) for row in rows]
    shares = f"{'GFLOP':>7} {'%':>5} {'MB':>7} {'%':>5} {'floor, ms':>10} {'%':>5}"
    lines = [f"{'operation':16} {'calls':>5}  {'shape of one call':27} {shares}"]
    for row, floor in zip(rows, floors):
        lines.append(
            f"{row.name:16} {row.calls:5}  {row.shape:27} {row.flops / 1e9:7.1f} {100 * row.flops / flops:5.1f}"
            f" {row.moved / 1e6:7.0f} {100 * row.moved / moved:5.1f} {floor:10.3f} {100 * floor / sum(floors):5.1f}"
        )
    total = f"{flops / 1e9:7.1f} {'':5} {moved / 1e6:7.0f} {'':5} {sum(floors):10.3f}"
    lines.append(f"{'all, unfused':16} {'':5}  {'':27} {total}")
    return "\n".join(lines)
