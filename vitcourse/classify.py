"""`python -m vitcourse classify`: what is in a picture, by a checkpoint on this package's kernels."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from . import runtime

#: The embedded model, which needs no network: one handwritten digit, white on black.
DEFAULT_MODEL = Path(__file__).parent / "assets" / "vit-digits"


def choose_dtype(name: str) -> torch.dtype:
    """The torch type called `name`. Raises ValueError, with the reason, for one that kernels do not take here."""
    dtype = getattr(torch, name)
    why = runtime.refusal(dtype)
    if why:
        raise ValueError(f"{name} is not to be had here: {why}. Use float32 or float16")
    return dtype


def probabilities(
    model: torch.nn.Module, pixel_values: torch.Tensor, forward: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """The model's softmax over its labels, in float32 on the CPU: (batch, num_labels), from (batch, channels, height, width).

    As transformers' pipeline does, it takes a sigmoid of each where the labels do not exclude each other ("problem_type" is
    "multi_label_classification"), and where there is only one.
    forward: what is called in the model's place, such as `model.graphed(example)`.

    Raises ValueError where the model's output is not finite, as float16 can overflow.
    """
    parameter = next(model.parameters())
    with torch.inference_mode():
        logits = (forward or model)(pixel_values.to(parameter.device, parameter.dtype)).float().cpu()
    if not logits.isfinite().all():
        hint = "" if parameter.dtype == torch.float32 else "; try float32"
        raise ValueError(f"the model's output is not finite in {str(parameter.dtype).removeprefix('torch.')}{hint}")
    several = model.config.problem_type == "multi_label_classification" or logits.shape[-1] == 1
    return logits.sigmoid() if several else logits.softmax(-1)


def best(probabilities: torch.Tensor, labels: dict[int, str], top: int) -> list[tuple[str, float]]:
    """The `top` most probable of one image's `(num_labels,)` probabilities, with their labels, falling."""
    values, indices = probabilities.topk(min(top, len(probabilities)))
    return [(labels.get(index, f"label {index}"), value) for index, value in zip(indices.tolist(), values.tolist())]


def load_classifier(name_or_path: str | Path, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, Path]:
    """The model of a folder or hub id and its folder. Raises weights.CheckpointError, also for one with no classifier."""
    from .vit import ViT
    from .weights import CheckpointError, resolve

    folder = resolve(name_or_path)
    model = ViT.from_pretrained(folder)
    if model.classifier is None:
        raise CheckpointError(
            f"{name_or_path} has no classifier, so it gives no labels; take a fine-tuned checkpoint, such as "
            "google/vit-base-patch16-224"
        )
    return model.to(dtype), folder


def format_result(path: str | Path, results: list[tuple[str, float]]) -> str:
    """One image's labels as text, a line each under the path."""
    return "\n".join([str(path), *(f"  {100 * probability:6.2f} %  {label}" for label, probability in results)])


def readable(paths: Sequence[str | Path], failures: list[str]) -> Iterator[tuple[str | Path, Image.Image]]:
    """The pictures of `paths` that can be read, one at a time; why the others cannot is appended to `failures`."""
    from .images import ImageError, load_image

    for path in paths:
        try:
            yield path, load_image(path)
        except ImageError as error:
            failures.append(str(error))


def positive(text: str) -> int:
    """For argparse: `text` as a whole number from 1 up. Raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture's file")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a Hugging Face id or a folder (default: the embedded digits model)"
    )
    parser.add_argument("--top", type=positive, default=5, help="labels to print for each picture (default: 5)")
    parser.add_argument("--batch-size", type=positive, default=16, help="pictures to a forward pass (default: 16)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")


def run(arguments: argparse.Namespace) -> int:
    """Print every picture's labels; 0 if all could be read, 1 if one could not. One bad picture does not stop the others."""
    from tqdm import tqdm

    from .images import preprocess

    dtype = choose_dtype(arguments.dtype)
    model = folder = None
    failed = False
    with tqdm(total=len(arguments.images), unit="image", disable=len(arguments.images) == 1, file=sys.stderr) as progress:
        for start in range(0, len(arguments.images), arguments.batch_size):
            paths = arguments.images[start : start + arguments.batch_size]
            failures: list[str] = []
            pictures = list(readable(paths, failures))
            for failure in failures:
                failed = True
                progress.write(f"error: {failure}", file=sys.stderr)
            if pictures:
                if model is None:  # only now, so that a misspelt picture is told at once and not after a download
                    model, folder = load_classifier(arguments.model, dtype)
                shares = probabilities(model, preprocess([image for _, image in pictures], folder))
                for (path, _), row in zip(pictures, shares):
                    progress.write(format_result(path, best(row, model.config.id2label, arguments.top)), file=sys.stdout)
            progress.update(len(paths))
    return int(failed)
