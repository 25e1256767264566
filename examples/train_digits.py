"""Train the embedded model: a small Vision Transformer on scikit-learn's handwritten digits.

    python examples/train_digits.py [--output vitcourse/assets/vit-digits] [--epochs 160] [--seed 0]

Plain PyTorch and Hugging Face's ViT, on the CPU, in about a minute on one core; no network. The settings were
chosen on digits split off from the training part; the held-out ones are looked at only after the last step.

Writes config.json, model.safetensors and preprocessor_config.json as Hugging Face reads them, and prints the accuracy on
the held-out digits. With the same seed and versions, the same weights come out.
"""
# ruff: noqa: E402  (vitcourse is imported before anything that imports Triton, and transformers does)

import argparse
import math
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # so that the package is found from any folder

from vitcourse.classify import positive
from vitcourse.data import load_digits_split

# isort: split
import torch
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

THREADS = 1  # the model is too small for more to help, and sums that are split over threads depend on how many there are


def as_pixel_values(images) -> torch.Tensor:
    """uint8 grey (n, 8, 8) to what the model takes: float32 (n, 3, 8, 8) from -1 to 1, as the saved image processor does it."""
    pixels = torch.as_tensor(images, dtype=torch.float32) / 127.5 - 1
    return pixels[:, None].expand(-1, 3, -1, -1).contiguous()


def augment(pixel_values: torch.Tensor) -> torch.Tensor:
    """Every image turned by up to 10 degrees, scaled and sheared by up to 10 %, and shifted by up to 0.6 pixels.

    Background comes in at the edges. float32 (n, 3, 8, 8) in and out.
    """
    count, _, height, _ = pixel_values.shape

    def uniform(limit: float) -> torch.Tensor:
        return (2 * torch.rand(count) - 1) * limit

    angle, shear = uniform(math.radians(10)), uniform(0.10)
    scale = 1 + uniform(0.10)
    shift = 0.6 * 2 / height  # to affine_grid the whole image is 2 wide
    rows = [
        torch.stack([scale * angle.cos(), scale * (shear - angle.sin()), uniform(shift)], dim=1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), uniform(shift)], dim=1),
    ]
    grid = affine_grid(torch.stack(rows, dim=1), list(pixel_values.shape), align_corners=False)
    # Outside the image grid_sample reads 0, so black has to be 0 while it samples.
    return grid_sample(pixel_values + 1, grid, align_corners=False) - 1


def train(model: ViTForImageClassification, images: torch.Tensor, labels: torch.Tensor, epochs: int, batch: int = 100) -> None:
    """AdamW with a one-cycle learning rate; a line every twenty epochs on stdout."""
    steps = epochs * math.ceil(len(images) / batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(batch):
            logits = model(pixel_values=augment(images[chosen])).logits
            loss = cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if epoch % 20 == 0 or epoch == epochs:
            print(f"epoch {epoch:4}  loss {total / len(images):.4f}", flush=True)


@torch.inference_mode()
def accuracy(model: ViTForImageClassification, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of `images` whose most probable class is its label."""
    model.eval()
    return (model(pixel_values=images).logits.argmax(-1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded digits model.")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "vitcourse" / "assets" / "vit-digits")
    parser.add_argument("--epochs", type=positive, default=160)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)

    train_images, train_labels, test_images, test_labels = load_digits_split()
    names = [str(digit) for digit in range(10)]
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=3,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        initializer_range=0.125,  # 1 / sqrt(64): the default 0.02 is for models ten times as wide, and learns slowly here
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model = ViTForImageClassification(config)
    print(f"{model.num_parameters():,} parameters, {len(train_images):,} digits to learn from")

    start = time.perf_counter()
    train(model, as_pixel_values(train_images), torch.as_tensor(train_labels), arguments.epochs)
    seconds = time.perf_counter() - start

    model.eval()
    model.save_pretrained(arguments.output)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(arguments.output)
    for name, images, labels in (("training", train_images, train_labels), ("held-out", test_images, test_labels)):
        share = accuracy(model, as_pixel_values(images), torch.as_tensor(labels))
        print(f"accuracy on the {len(images):,} {name} digits: {100 * share:.2f} %")
    print(f"trained in {seconds:.0f} s, saved in {arguments.output}")


if __name__ == "__main__":
    main()
