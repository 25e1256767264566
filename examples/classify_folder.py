"""Classify every image of a folder, in batches, into a CSV file.

    python examples/classify_folder.py FOLDER --out results.csv [--model NAME_OR_FOLDER] [--batch-size 32] [--top 1] [--recursive]

The CSV has a row for each image and label: file (relative to FOLDER), label, probability (0 to 1), and rank, which is 1 for the
most probable label and goes up to --top. Rows are written as results come, so a run that is stopped keeps what it has.

On a GPU the model runs in half precision, and full batches replay a CUDA graph. Only one batch of images is in memory.
The exit status is 0 if every image was classified and 1 if one, or a folder, could not be read or nothing could be done; 2 is
wrong usage. A file whose name does not end as an image's, and a link to a folder, is told, skipped and not counted.
"""

import argparse
import csv
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the package is found from any folder

import torch
from PIL import Image
from tqdm import tqdm

from vitcourse import runtime
from vitcourse.classify import DEFAULT_MODEL, best, choose_dtype, load_classifier, positive, probabilities
from vitcourse.images import ImageError, load_image, preprocess

SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def find_images(folder: Path, recursive: bool) -> tuple[list[Path], list[Path]]:
    """The files whose names end as an image's, sorted, and the folders that could not be read; ValueError if there is no file.

    What is left aside is told on stderr.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    images: list[Path] = []
    unread: list[Path] = []

    def tell(error: OSError) -> None:
        unread.append(Path(error.filename))
        print(f"error: {error.filename} cannot be read: {error.strerror}", file=sys.stderr)

    for place, folders, files in os.walk(folder, onerror=tell):
        for path in (Path(place, name) for name in sorted(folders)):
            if not recursive:
                print(f"skipped: {path} is a folder; --recursive goes into it", file=sys.stderr)
            elif path.is_symlink():
                print(f"skipped: {path} is a link to a folder", file=sys.stderr)
        folders[:] = sorted(folders) if recursive else []
        for path in (Path(place, name) for name in sorted(files)):
            if path.suffix.lower() in SUFFIXES:
                images.append(path)
            else:
                print(f"skipped: {path} is no image by its name", file=sys.stderr)
    if not images:
        raise ValueError(f"{folder} holds no images; their names end in {', '.join(sorted(SUFFIXES))}")
    return sorted(images), unread


def load(files: Sequence[Path], failures: list[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """Each file and its picture, read when it is asked for. What cannot be read is told on stderr and put into `failures`."""
    for file in tqdm(files, unit="image", file=sys.stderr):
        try:
            yield file, load_image(file)
        except ImageError as error:
            failures.append(file)
            tqdm.write(f"error: {error}", file=sys.stderr)


def classify_folder(arguments: argparse.Namespace) -> int:
    """Write the CSV file; the exit status."""
    files, unread = find_images(arguments.folder, arguments.recursive)
    # Asked before the model is loaded, which may be a download.
    if arguments.out.exists() and not arguments.force:
        raise ValueError(f"{arguments.out} exists; give --force to write over it, or another --out")
    if not arguments.out.parent.is_dir():
        raise ValueError(f"{arguments.out.parent}, the folder of --out, is not there")
    model, folder = load_classifier(arguments.model, choose_dtype(arguments.dtype))
    batch_size = min(arguments.batch_size, len(files))
    example = next(model.parameters()).new_zeros(batch_size, model.config.num_channels, *model.config.image_shape)
    graphed = model.graphed(example)  # batches of another size, such as the last one, run the model itself

    failures: list[Path] = []
    pictures = load(files, failures)
    # Names of files are any bytes on Linux: surrogateescape writes them back as they were.
    how = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with arguments.out.open("w" if arguments.force else "x", **how) as out:
        table = csv.writer(out)
        table.writerow(["file", "label", "probability", "rank"])
        while batch := list(itertools.islice(pictures, batch_size)):
            shares = probabilities(model, preprocess([picture for _, picture in batch], folder), graphed)
            for (file, _), row in zip(batch, shares):
                for rank, (label, share) in enumerate(best(row, model.config.id2label, arguments.top), start=1):
                    table.writerow([file.relative_to(arguments.folder).as_posix(), label, f"{share:.6g}", rank])
            out.flush()
    print(f"{len(files) - len(failures)} of {len(files)} images classified: {arguments.out}")
    return 1 if failures or unread else 0


def main(argv: Sequence[str] | None = None) -> int:
    summary, _, rest = __doc__.partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=rest.partition("\n\n")[2], formatter_class=formatter)
    half = "float16" if runtime.refusal(torch.bfloat16) else "bfloat16"
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a Hugging Face id or a folder (default: the embedded digits)")
    parser.add_argument("--out", type=Path, default=Path("results.csv"), help="the CSV file (default: results.csv)")
    parser.add_argument("--force", action="store_true", help="write over an --out that exists")
    parser.add_argument("--batch-size", type=positive, default=32, help="images to a forward pass (default: 32)")
    parser.add_argument("--top", type=positive, default=1, help="labels for each image (default: 1)")
    parser.add_argument("--recursive", action="store_true", help="go into the folders in FOLDER too")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32" if runtime.INTERPRETER else half,
        help="default: half precision on a GPU, float32 without one",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        return classify_folder(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
