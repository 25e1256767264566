"""Pictures in: any file that Pillow reads to an RGB image, and images to what a checkpoint's model takes."""

import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

#: Pixels that a file may have: Pillow's own limit against files that are small on disk and huge in memory. Decoding one
#: of this size takes about 1.5 GB at worst.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)

#: An image whose shorter side is at least twice this is scaled down by a whole number when it is read, so that a batch of
#: photographs fits in memory. No ViT's input comes near this size.
SHORT_SIDE = 2048


def expand(path: str | Path) -> Path:
    """`path`, a "~" or "~user" in front as that home folder. Without such a user it is part of a name: "~draft.png"."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


class ImageError(ValueError):
    """A picture that cannot be read; the message is one line and starts with the path."""


def load_image(path: str | Path) -> Image.Image:
    """The picture in the file `path`, in RGB with 8 bits a channel, upright as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit pictures are converted. What is transparent is laid on white, as a page would show it.
    Of an animation the first frame is taken. Very large pictures come out scaled down (see `SHORT_SIDE`), JPEG files
    already while they are decoded.

    Raises ImageError for a missing or unreadable file, a folder, a file that is no image, a damaged or truncated one, more
    than `MAX_PIXELS` pixels, and pixels of a scale that the file does not tell (floating point, 32-bit integers).
    """
    path = expand(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path} is a folder; an image file is accepted")
        if not stat.S_ISREG(mode):  # a pipe or a device could be read from for ever
            raise ImageError(f"{path} is no regular file")
        file = path.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    # Pillow warns of large files, whose limit is checked, and of damaged metadata, which are not used.
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file) as image:
                return _upright_rgb(image)
        except ImageError as error:
            raise ImageError(f"{path} {error}") from None
        except UnidentifiedImageError:
            what = "is an empty file" if path.stat().st_size == 0 else "is no image, or of a kind that Pillow does not read"
            raise ImageError(f"{path} {what}") from None
        except Image.DecompressionBombError:
            raise ImageError(f"{path} has more than {MAX_PIXELS:,} pixels, which is the limit; scale it down first") from None
        except MemoryError:
            raise ImageError(f"{path} does not fit into memory; scale it down first") from None
        except Exception as error:  # on damaged files Pillow's decoders raise nearly anything, SyntaxError and struct.error too
            raise ImageError(f"{path} is damaged or truncated: {' '.join(str(error).split()) or type(error).__name__}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """An opened file as an upright RGB image, scaled down if very large. The path is for the caller to put before errors."""
    image.draft(None, (SHORT_SIDE, SHORT_SIDE))  # only JPEG does anything here: it decodes at 1/2, 1/4 or 1/8
    image.load()
    rgb = _rgb(image)
    factor = min(rgb.size) // SHORT_SIDE
    if factor >= 2:
        rgb = rgb.reduce(factor)
    # TIFF files are turned upright by Pillow as they are loaded. The other kinds keep the orientation beside the pixels.
    orientation = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)
    rgb.info = {}
    rgb.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(rgb)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey, which Pillow's own conversion would cut at 255.
        values = np.asarray(image)
        # Pillow gives a grey PPM of 16 bits more of them, and an old one such a PNG.
        if image.mode == "I" and (image.format not in ("PPM", "PNG") or values.min() < 0 or values.max() > 65535):
            raise ImageError("has 32-bit pixels, whose scale the file does not tell; save it with 8 or 16 bits")
        image = Image.fromarray(np.round(values.astype(np.float32) / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError("has floating-point pixels, whose scale the file does not tell; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image)
    return paper


def preprocess(images: Sequence[Image.Image], folder: str | Path) -> torch.Tensor:
    """Images as the model in `folder` takes them: float32 `(batch, channels, height, width)`, on the CPU.

    images: in any of Pillow's modes that `load_image` takes; what is transparent is laid on white.
    folder: a checkpoint's; `weights.resolve` gives it for a hub id. How to resize and normalize is read from its
    preprocessor_config.json, by the image processor of transformers that it names, else by the model's own. A checkpoint without
    that file gets ViT's default: resized (bilinear, aspect ratio not kept) to the configuration's image_size, and scaled to
    -1 ... 1, a mean and standard deviation of 0.5. A DeiT gets DeiT's: resized (bicubic) to 256/224 of it, its middle cut out,
    and ImageNet's mean and standard deviation.

    Raises ValueError for no images, TypeError for something that is none, ImageError for pixels of a scale that is not told,
    and weights.CheckpointError for files that cannot be read, cannot be followed, or contradict each other.
    """
    from .vit import ViTConfig
    from .weights import CheckpointError, read_config

    if isinstance(images, Image.Image) or not all(isinstance(image, Image.Image) for image in images):
        raise TypeError("preprocess: images is no list of PIL images; one image is given as [image]")
    if not images:
        raise ValueError("preprocess: no images were given")
    folder = Path(folder)
    try:
        config = ViTConfig.from_dict(read_config(folder))
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a ViT: {error}") from error
    mode = {1: "L", 3: "RGB"}.get(config.num_channels)
    if mode is None:
        raise CheckpointError(f"{folder} is a model for images of {config.num_channels} channels; pictures have 1 or 3")
    converted = []
    for index, image in enumerate(images):
        try:
            converted.append(_rgb(image).convert(mode))
        except ImageError as error:
            raise ImageError(f"preprocess: image {index} {error}") from None
    try:
        pixel_values = _processor(folder, config)(converted, return_tensors="pt")["pixel_values"]
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises nearly anything on settings that it cannot follow
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{folder / 'preprocessor_config.json'} cannot be followed: {reason}") from error
    expected = (config.num_channels, *config.image_shape)
    if tuple(pixel_values.shape[1:]) != expected:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json makes images of {tuple(pixel_values.shape[1:])} (channels, height, width), "
            f"and config.json asks for {expected}"
        )
    return pixel_values.float()


def _processor(folder: Path, config):
    # Not transformers' default image processors, which need torchvision. Imported only here: it takes seconds.
    import transformers

    from .weights import CheckpointError

    processor = transformers.DeiTImageProcessorPil if config.model_type == "deit" else transformers.ViTImageProcessorPil
    if (folder / "preprocessor_config.json").is_file() or (folder / "processor_config.json").is_file():
        values, _ = processor.get_image_processor_dict(folder, local_files_only=True)
        named = values.get("image_processor_type") or values.get("feature_extractor_type")  # the latter in old files
        if named:
            kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(named))
            processor = getattr(transformers, f"{kind}ImageProcessorPil", None)
            if processor is None:
                raise CheckpointError(f"{folder}: transformers has no image processor {named} that works without torchvision")
        return processor.from_pretrained(folder, local_files_only=True)
    height, width = config.image_shape
    if config.model_type == "deit":
        resized = {"height": round(height * 256 / 224), "width": round(width * 256 / 224)}
        return processor(size=resized, crop_size={"height": height, "width": width})
    half = [0.5] * config.num_channels
    return processor(size={"height": height, "width": width}, image_mean=half, image_std=half)
