"""Layer-by-layer parity with Hugging Face: both models run on one input, and every layer's output is kept.

Three runs: ours and Hugging Face's in the type asked for, and Hugging Face's in float64, which stands for the truth. An
error is a distance from the truth, ||output - truth|| / ||truth||. Ours may be at most twice the largest that Hugging Face
has made in the same type up to that layer (the rule of flash-attention's tests; up to that layer, because on a few logits
alone a small error of theirs is luck), or a floor of a few units of rounding where theirs is smaller than that: two float32
programs that add the same numbers in another order differ by about that much.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import runtime
from .vit import ViT
from .weights import architecture, resolve

#: The floor of the tolerance, in units of the type's eps (2^-23, 2^-10 and 2^-7 for float32, float16 and bfloat16).
FLOOR = 8


@dataclass
class Row:
    """One layer's comparison. Errors are relative, ||output - truth|| / ||truth||, but for `max_error`, which is absolute."""

    name: str
    shape: tuple[int, ...]
    max_error: float
    error: float
    peer_error: float
    tolerance: float
    reason: str

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # false for a NaN, too


#: A block's parts in the order in which they run: their rows' names, and where the two models have them: a module whose output
#: it is, or with "> " one whose input it is. "" is the block. Ours add the residual within a part, Hugging Face after it.
PARTS = {
    "norm1": ("norm1", ["layernorm_before"]),
    "attention.qkv": ("attention.qkv", ["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
    "attention.attended": ("> attention.output", ["> attention.o_proj"]),
    "attention": ("attention", ["> layernorm_after"]),
    "norm2": ("norm2", ["layernorm_after"]),
    "mlp.fc1": ("mlp.fc1", ["> mlp.fc2"]),
    "mlp": ("mlp", [""]),
}


@contextmanager
def _kept(layers: dict[str, list[tuple[nn.Module, str]]]) -> Iterator[dict[str, torch.Tensor]]:
    """A dictionary that fills while a model runs in the block: what the places of each layer give, joined, by its name."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, place: str) -> Callable:
        def hook(_module: nn.Module, inputs: tuple, output: torch.Tensor | tuple | None = None) -> None:
            values = inputs if place.startswith("> ") else output
            value = values[0] if isinstance(values, tuple) else values
            outputs[name] = torch.cat([outputs[name], value], -1) if name in outputs else value

        return hook

    handles = []
    try:
        for name, places in layers.items():
            for module, place in places:
                module = module.get_submodule(place.removeprefix("> "))
                register = module.register_forward_pre_hook if place.startswith("> ") else module.register_forward_hook
                handles.append(register(keep(name, place)))
        with torch.inference_mode():
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _our_outputs(model: ViT, pixel_values: torch.Tensor, parts: bool) -> dict[str, torch.Tensor]:
    """Every layer's output, by its name; with `parts` those of the blocks' parts, too."""
    layers = {
        f"blocks.{index}.{part}": [(block, place)]
        for index, block in enumerate(model.blocks)
        for part, (place, _) in (PARTS if parts else {}).items()
    }
    with _kept(layers) as outputs:
        out = model(pixel_values, output_hidden_states=True)
    outputs |= {f"block {index - 1}" if index else "embeddings": state for index, state in enumerate(out.hidden_states)}
    outputs["norm"] = out.last_hidden_state
    return outputs | ({} if out.logits is None else {"logits": out.logits})


def _their_outputs(model: nn.Module, pixel_values: torch.Tensor, parts: bool) -> dict[str, torch.Tensor]:
    """The same of Hugging Face's model, in order; with `parts` those of the blocks' parts in the blocks' place."""
    base = model.base_model
    layers = {"embeddings": [(base.embeddings, "")]}
    for index, layer in enumerate(base.layers):
        if parts:
            layers |= {f"blocks.{index}.{part}": [(layer, place) for place in places] for part, (_, places) in PARTS.items()}
        else:
            layers[f"block {index}"] = [(layer, "")]
    with _kept({**layers, "norm": [(base.layernorm, "")]}) as outputs:
        result = model(pixel_values)
    return outputs | ({"logits": result.logits} if "logits" in result else {})


def load_hugging_face(folder: Path, architecture: str) -> nn.Module:
    """Hugging Face's own model of a checkpoint folder, of its class `architecture`, in float32 on the CPU, in eval mode."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter of a Hugging Face ViT anew, in place, and put it in eval mode; the model.

    A fresh one has biases of 0 and layer norms of 1, and a mistake with one of those would not show. Weights are scaled so
    that what passes through keeps its size and attention is far from uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            mean, std = float(name.endswith("weight")), 0.3
        elif name.endswith("weight"):
            mean, std = 0.0, 1.3 * parameter[0].numel() ** -0.5
        else:  # biases, class token, position embeddings
            mean, std = 0.0, 0.3
        parameter.normal_(mean, std, generator=generator)
    return model.eval()


def compare_models(ours: ViT, theirs: nn.Module, pixel_values: torch.Tensor, parts: bool = False) -> list[Row]:
    """Compare two loaded models, ours as it is and a copy of theirs on our device and in our type; one row a layer, in order.

    pixel_values: (batch, channels, height, width) in our model's type, on its device.
    parts: in place of a row for each block, one for each of its parts, such as "blocks.1.attention.qkv".
    """
    dtype, device = pixel_values.dtype, pixel_values.device
    our_outputs = _our_outputs(ours, pixel_values, parts)
    theirs = copy.deepcopy(theirs).to(device, dtype)  # the caller's keeps its digits
    peer_outputs = _their_outputs(theirs, pixel_values, parts)
    theirs = theirs.double()
    truths = _their_outputs(theirs, pixel_values.double(), parts)
    rows: list[Row] = []
    largest = 0.0  # of Hugging Face's errors so far
    for name, truth in truths.items():
        out, scale = our_outputs[name].double(), truth.norm().item() or 1.0  # absolute beside a truth of zeros
        error, peer_error = ((x.double() - truth).norm().item() / scale for x in (out, peer_outputs[name]))
        largest = max(largest, peer_error)
        floor = FLOOR * torch.finfo(dtype).eps
        reason = "2 x Hugging Face's own" if 2 * largest >= floor else f"{FLOOR} eps of {str(dtype).removeprefix('torch.')}"
        max_error = (out - truth).abs().max().item()
        rows.append(Row(name, tuple(truth.shape), max_error, error, peer_error, max(2 * largest, floor), reason))
    return rows


def compare(
    name_or_path: str | Path,
    pixel_values: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    parts: bool = False,
) -> list[Row]:
    """Compare both models of one checkpoint, a folder or hub id, on `pixel_values` or on random ones drawn from `seed`.

    parts: as in `compare_models`.
    """
    folder = resolve(name_or_path)
    ours = ViT.from_pretrained(folder).to(dtype)
    if pixel_values is None:
        shape = (2, ours.config.num_channels, *ours.config.image_shape)
        pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    theirs = load_hugging_face(folder, architecture(ours))
    return compare_models(ours, theirs, pixel_values.to(runtime.DEVICE, dtype), parts)


def first_divergence(rows: list[Row]) -> Row | None:
    """The first layer whose error is over its tolerance."""
    return next((row for row in rows if not row.ok), None)


def format_table(rows: list[Row]) -> str:
    """The rows as text, with a closing line that says whether they agree or where they first do not."""
    numbers = f"{'max error':>9} {'rel. error':>10} {'HF itself':>9} {'tolerance':>9}"
    width = max([11, *(len(row.name) for row in rows)])
    lines = [f"{'layer':<{width}} {'shape':<16} {numbers}      why this tolerance"]
    for row in rows:
        verdict = "ok" if row.ok else "OFF"
        shape = "x".join(map(str, row.shape))
        numbers = f"{row.max_error:9.1e} {row.error:10.1e} {row.peer_error:9.1e} {row.tolerance:9.1e}"
        lines.append(f"{row.name:<{width}} {shape:<16} {numbers}  {verdict:<3} {row.reason}")
    diverged = first_divergence(rows)
    if diverged is None:
        lines.append(f"All {len(rows)} layers agree with Hugging Face.")
    else:
        lines.append(f"First to diverge: {diverged.name}. What comes after it starts from its error.")
    return "\n".join(lines)


def _seed(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: 0 to 2^63 - 1 is accepted")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .classify import DEFAULT_MODEL

    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a Hugging Face id or a folder (default: the embedded digits model)"
    )
    parser.add_argument("--image", help="compare on this picture instead of on random pixels")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--parts", action="store_true", help="a row for each part of a block, not for the whole of it")
    parser.add_argument("--seed", type=_seed, default=0, help="of the random pixels")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 0 where every layer agrees, 1 where one does not."""
    from .classify import choose_dtype

    dtype = choose_dtype(arguments.dtype)
    pixel_values = None
    if arguments.image:
        from .images import load_image, preprocess

        pixel_values = preprocess([load_image(arguments.image)], resolve(arguments.model))
    print(f"Truth: Hugging Face in float64. Ours: {arguments.dtype} on {runtime.describe()}.")
    rows = compare(arguments.model, pixel_values, dtype, arguments.seed, arguments.parts)
    print(format_table(rows))
    return 0 if first_divergence(rows) is None else 1
