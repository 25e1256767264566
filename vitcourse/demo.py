"""`python -m vitcourse run`, which `make run` calls: what runs where, digits or a picture classified, parity in a table."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import runtime
from .classify import DEFAULT_MODEL, best, format_result, load_classifier, probabilities

#: Digits to a forward pass. The last batch is smaller: kernels take any size.
BATCH = 32

#: Held-out digits that the parity table is computed on.
COMPARED = 32

FIRST_LESSON = "notebooks/00_start_here.ipynb"


def _shades() -> str:
    """Five characters from no ink to full ink, in ASCII where the terminal's encoding has no block characters."""
    try:
        "░▒▓█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return " .:*#"
    return " ░▒▓█"


def draw_digit(image: np.ndarray, shades: str) -> list[str]:
    """A uint8 (height, width) image as lines of text, two characters a pixel, since characters are twice as high as wide."""
    levels = image.astype(int) * len(shades) // 256
    return ["".join(shades[level] * 2 for level in row) for row in levels]


def format_digits(images: np.ndarray, labels: np.ndarray, shares: torch.Tensor, names: dict[int, str], columns: int = 2) -> str:
    """Digits drawn side by side, each with its three most probable labels beside it.

    images: uint8 (n, height, width); labels: (n,), the right ones; shares: float (n, num_labels), what the model says.
    """
    shades = _shades()
    blocks = []
    for image, label, row in zip(images, labels, shares):
        results = best(row, names, 3)
        notes = ["", *(f"{name:>2} {100 * share:5.1f} %" for name, share in results)]
        if results[0][0] != names[int(label)]:
            notes += ["", f"wrong: it is {names[int(label)]}"]
        drawing = draw_digit(image, shades)
        notes += [""] * (len(drawing) - len(notes))
        blocks.append([f"|{line}| {note:<18}" for line, note in zip(drawing, notes)])
    rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    return "\n\n".join("\n".join("  ".join(lines).rstrip() for lines in zip(*row)) for row in rows)


def _digits(model: torch.nn.Module, folder: Path) -> torch.Tensor:
    """Classify the held-out digits, print some and the accuracy; the pixel values of a few for the table."""
    from tqdm import tqdm

    from .data import load_digits_split
    from .images import preprocess

    _, _, images, labels = load_digits_split()
    pixel_values = preprocess([Image.fromarray(image) for image in images], folder)
    batches = tqdm(pixel_values.split(BATCH), desc="digits", unit="batch", leave=False, file=sys.stderr)
    shares = torch.cat([probabilities(model, batch) for batch in batches])
    right = shares.argmax(-1).numpy() == labels
    # The first of each of five digits, and one that it gets wrong, where there is one: a tour of successes would tell less.
    first_of_each = np.unique(labels, return_index=True)[1]
    shown = [*sorted(first_of_each)[:5], *np.flatnonzero(~right)[:1]]
    print(f"Some of the {len(images)} handwritten digits that it has never seen, and what it makes of them:\n")
    print(format_digits(images[shown], labels[shown], shares[shown], model.config.id2label))
    print(f"\nAccuracy on all {len(images)}: {100 * right.mean():.2f} % ({right.sum()} right).")
    return pixel_values[:COMPARED]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a Hugging Face id or a folder (default: the embedded digits model)")
    parser.add_argument("--image", help="a picture to classify (default: held-out digits, for the embedded model)")


def run(arguments: argparse.Namespace) -> int:
    """The tour; 0, or 1 where a layer's output is not Hugging Face's."""
    from . import verify
    from .images import load_image, preprocess

    # `make run MODEL= IMAGE=` hands on empty strings.
    picture = load_image(arguments.image) if arguments.image else None
    print(f"Kernels run on {runtime.describe()}.")
    if runtime.INTERPRETER:
        print("The interpreter shows that the kernels are right. How fast they are, only a CUDA GPU shows.")
    embedded = not arguments.model
    name = "the embedded digits model" if embedded else arguments.model
    model, folder = load_classifier(arguments.model or DEFAULT_MODEL)
    config = model.config
    height, width = config.image_shape
    print(
        f"Model: {name}: {config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads, "
        f"{config.tokens} tokens from {height} x {width} pixels, {config.num_labels} labels.\n",
        flush=True,
    )
    if picture is not None:
        pixel_values = preprocess([picture], folder)
        results = best(probabilities(model, pixel_values)[0], config.id2label, 5)
        print(format_result(arguments.image, results))
        if embedded:
            print("This model knows digits only, white on black. For a photograph, add MODEL=google/vit-base-patch16-224.")
        compared_on = "this picture"
    elif embedded:
        pixel_values = _digits(model, folder)
        compared_on = f"{len(pixel_values)} of these digits"
    else:
        pixel_values = None
        print("No picture was given (IMAGE=photo.jpg), so there is nothing to classify.")
        compared_on = "two images of random pixels"

    print(f"\nEvery layer beside Hugging Face's, with the same weights, on {compared_on}.")
    print("The errors are distances from Hugging Face's model in float64.\n", flush=True)
    rows = verify.compare(folder, pixel_values)
    print(verify.format_table(rows))

    print("\nWhat next:")
    print(f"  make lab                        the course, from the first lesson, {FIRST_LESSON}")
    print("  make run MODEL=google/vit-base-patch16-224 IMAGE=photo.jpg")
    print("                                  the same with a model from the hub, or a folder, and your picture")
    print("  python -m vitcourse --help      the other commands (in .venv/bin)")
    return 0 if verify.first_divergence(rows) is None else 1
