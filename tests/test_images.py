"""Pictures: every kind of file that is handled, every kind that is refused, and what reaches the model."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitcourse import images
from vitcourse.classify import DEFAULT_MODEL
from vitcourse.images import ImageError, load_image, preprocess
from vitcourse.weights import CheckpointError, resolve

UPRIGHT = np.zeros((20, 30, 3), np.uint8)
UPRIGHT[:10, :15] = (255, 0, 0)  # red at the top left
UPRIGHT[10:, 15:] = (0, 0, 255)  # blue at the bottom right


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return image.getpixel((x, y))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    source = Image.fromarray(UPRIGHT).convert(mode)
    file = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    source.save(file)
    loaded = load_image(file)
    assert loaded.mode == "RGB" and loaded.size == (30, 20)
    expected = np.asarray(source.convert("RGB")).astype(int)
    assert np.abs(np.asarray(loaded).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_of_grey_keep_their_range(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    file = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        file.write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(file)
    loaded = np.asarray(load_image(file))
    assert np.array_equal(loaded[..., 0], np.round(values / 257).astype(np.uint8))
    assert np.array_equal(loaded[..., 0], loaded[..., 2])


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[0, 1] = (0, 0, 0, 51)  # a fifth of black
    Image.fromarray(rgba).save(tmp_path / "drawing.png")
    loaded = load_image(tmp_path / "drawing.png")
    assert [pixel(loaded, x, 0) for x in range(3)] == [(200, 0, 0), (204, 204, 204), (255, 255, 255)]


def test_transparent_palette_colour_is_laid_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 128, 0])
    palette.putpixel((1, 0), 1)
    for name in ("palette.gif", "palette.png"):
        palette.save(tmp_path / name, transparency=0)
        loaded = load_image(tmp_path / name)
        assert [pixel(loaded, 0, 0), pixel(loaded, 1, 0)] == [(255, 255, 255), (0, 128, 0)]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(tmp_path: Path, suffix: str, orientation: int) -> None:
    # How a camera that was held like this would have stored the upright picture.
    turned = {
        1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1],
        5: UPRIGHT.swapaxes(0, 1), 6: np.rot90(UPRIGHT), 7: UPRIGHT[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(UPRIGHT, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.ascontiguousarray(turned[orientation])).save(file, exif=exif)
    loaded = load_image(file)
    assert loaded.size == (30, 20)
    difference = np.abs(np.asarray(loaded).astype(int) - UPRIGHT)
    assert difference[2:7, 2:12].max() < 60 and difference[13:18, 18:28].max() < 60
    assert loaded.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_very_large_pictures_come_out_scaled_down(tmp_path: Path, suffix: str) -> None:
    # 30 megapixels, from a gradient, so that a wrong scale or crop would show.
    wide = Image.linear_gradient("L").resize((6600, 4500))
    wide.save(tmp_path / f"large.{suffix}")
    loaded = load_image(tmp_path / f"large.{suffix}")
    assert loaded.size == (3300, 2250)
    assert pixel(loaded, 5, 5)[0] < 5 and pixel(loaded, 3295, 2245)[0] > 250


def test_more_pixels_than_a_warning_of_pillow_are_handled(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "wide.png")  # 100 megapixels, of which Pillow warns
    loaded = load_image(tmp_path / "wide.png")
    assert loaded.size == (2500, 2500) and pixel(loaded, 7, 7) == (255, 255, 255)
    assert not recwarn.list


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def some_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def some_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


BAD_FILES = {
    "more pixels than the limit": (lambda: png_header(60_000, 60_000), "more than 178,956,970 pixels, which is the limit"),
    "text": (lambda: b"this is no picture\n", "no image"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
    "empty": (lambda: b"", "empty file"),
    "JPEG cut in half": (lambda: some_jpeg()[: len(some_jpeg()) // 2], "truncated"),
    "PNG cut in half": (lambda: some_png()[: len(some_png()) // 2], "truncated"),
    "PNG with too little data": (lambda: png_header(50, 50), "truncated"),
    "PNG with a wrong checksum": (lambda: some_png()[:20] + b"\xff" + some_png()[21:], "damaged|no image"),
    "JPEG of which only the start is left": (lambda: some_jpeg()[:20], "no image|truncated"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_with_its_name(tmp_path: Path, case: str) -> None:
    content, reason = BAD_FILES[case]
    (tmp_path / "bad.jpg").write_bytes(content())
    with pytest.raises(ImageError, match=reason) as caught:
        load_image(tmp_path / "bad.jpg")
    assert str(caught.value).startswith(str(tmp_path / "bad.jpg")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("mode", "value"), [("F", 100_000), ("I", 100_000), ("I", 200)])
def test_pixels_of_unknown_scale_are_refused(tmp_path: Path, mode: str, value: int) -> None:
    Image.new(mode, (4, 4), value).save(tmp_path / "measured.tiff")
    with pytest.raises(ImageError, match="scale"):
        load_image(tmp_path / "measured.tiff")


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(str(tmp_path / "name\0.jpg"))
    with pytest.raises(ImageError, match="cannot be read: File name too long"):
        load_image(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer for ever
    with pytest.raises(ImageError, match="no regular file"):
        load_image(tmp_path / "pipe")

    # A file without read permission; refused by hand, because root reads it all the same.
    locked = tmp_path / "locked.jpg"
    locked.write_bytes(some_jpeg())

    def refuse(self: Path, *_args: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"locked\.jpg cannot be read: Permission denied"):
        load_image(locked)


def test_the_file_is_closed(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert pixel(image, 0, 0) == (255, 0, 0)
    assert not hasattr(image, "fp") or image.fp is None


def checkpoint(folder: Path, processor: dict | str | None, **config: object) -> Path:
    """A folder with the two JSON files that `preprocess` reads: the embedded model's configuration, changed by `config`."""
    folder.mkdir()
    values = json.loads((DEFAULT_MODEL / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    if processor is not None:
        text = processor if isinstance(processor, str) else json.dumps(processor)
        (folder / "preprocessor_config.json").write_text(text)
    return folder


def test_digits_reach_the_model_as_in_training() -> None:
    from vitcourse.data import load_digits_split

    _, _, digits, _ = load_digits_split()
    pixel_values = preprocess([Image.fromarray(digit) for digit in digits[:5]], DEFAULT_MODEL)
    expected = torch.as_tensor(digits[:5]).float() / 127.5 - 1
    assert pixel_values.dtype == torch.float32 and pixel_values.shape == (5, 3, 8, 8)
    torch.testing.assert_close(pixel_values, expected[:, None].expand(-1, 3, -1, -1), atol=1e-6, rtol=0)


def test_the_settings_of_the_checkpoint_are_followed(tmp_path: Path) -> None:
    # The hub's older way: one number for the size. Mean and standard deviation are not the default.
    processor = {"size": 10, "resample": 2, "do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 1.0, 2.0]}
    folder = checkpoint(tmp_path / "model", processor, image_size=10)
    pixel_values = preprocess([Image.new("RGB", (40, 20), (255, 51, 0))], folder)
    assert pixel_values.shape == (1, 3, 10, 10)
    expected = torch.tensor([(1 - 0.1) / 0.5, (0.2 - 0.2) / 1.0, (0 - 0.3) / 2.0])
    torch.testing.assert_close(pixel_values[0, :, 3, 3], expected, atol=1e-6, rtol=1e-6)


def test_a_checkpoint_without_settings_gets_the_default(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", None, image_size=[6, 12])
    pixel_values = preprocess([Image.new("RGB", (40, 20), (255, 0, 51)), Image.new("L", (3, 300))], folder)
    assert pixel_values.shape == (2, 3, 6, 12) and pixel_values.dtype == torch.float32
    torch.testing.assert_close(pixel_values[0, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("processor", [None, {}, {"size": 18, "crop_size": 16, "image_std": [0.5, 1.0, 2.0], "resample": 2}])
def test_a_deit_gets_deits_settings(tmp_path: Path, processor: dict | None) -> None:
    """Its own, or where it has none those of DeiT at 224 pixels, in proportion. An empty file is for a model at 224."""
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

    picture = Image.effect_noise((300, 200), 80).convert("RGB")
    side = 224 if processor == {} else 16
    pixel_values = preprocess([picture], checkpoint(tmp_path / "model", processor, model_type="deit", image_size=side))
    settings = {"size": {"height": 18, "width": 18}, "crop_size": 16} if processor is None else processor
    expected = DeiTImageProcessorPil(**settings)([picture], return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, 3, side, side) and torch.equal(pixel_values, expected)


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ({"image_processor_type": "DeiTImageProcessor"}, "DeiT"),
        ({"image_processor_type": "CLIPImageProcessorFast"}, "CLIP"),
        ({"feature_extractor_type": "ConvNextFeatureExtractor"}, "ConvNext"),
        ({"image_processor_type": "ViTImageProcessor"}, "ViT"),
    ],
)
@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_the_processor_that_the_file_names_is_taken(tmp_path: Path, named: dict, kind: str, model_type: str) -> None:
    import transformers

    picture = Image.effect_noise((300, 200), 80).convert("RGB")
    expected = getattr(transformers, f"{kind}ImageProcessorPil")()([picture], return_tensors="pt")["pixel_values"]
    folder = checkpoint(tmp_path / "model", named, model_type=model_type, image_size=list(expected.shape[2:]))
    assert torch.equal(preprocess([picture], folder), expected)


def test_images_are_converted_as_files_are(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((8, 8), 32896, np.uint16))  # half of the range
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    first, second = preprocess([grey, clear], DEFAULT_MODEL)
    torch.testing.assert_close(first, torch.full((3, 8, 8), 128 / 127.5 - 1), atol=1e-6, rtol=0)
    assert torch.equal(second, torch.ones(3, 8, 8)), "transparent is white"
    with pytest.raises(ImageError, match="image 1 has floating-point"):
        preprocess([clear, Image.new("F", (8, 8))], DEFAULT_MODEL)
    for wrong in (clear, [np.zeros((8, 8, 3), np.uint8)]):
        with pytest.raises(TypeError, match="list of PIL images"):
            preprocess(wrong, DEFAULT_MODEL)


def test_a_name_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4), "red").save("~draft.png")
    assert pixel(load_image("~draft.png"), 0, 0) == (255, 0, 0)
    with pytest.raises(CheckpointError, match="no folder"):
        resolve("~nobody/m")


def test_a_model_for_grey_images_gets_one_channel(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", None, num_channels=1)
    assert preprocess([Image.new("RGB", (9, 9), "white")], folder).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("processor", "config", "reason"),
    [
        ("{not json", {}, "preprocessor_config.json cannot be followed"),
        ({"size": {"depth": 3}}, {}, "preprocessor_config.json cannot be followed"),
        ({"size": 8, "image_mean": [0.5, 0.5]}, {}, "preprocessor_config.json cannot be followed"),
        ({"size": 9}, {}, r"\(3, 9, 9\).*\(3, 8, 8\)"),
        ({"image_processor_type": "PixelImageProcessor"}, {}, "no image processor PixelImageProcessor"),
        (None, {"hidden_size": 64.0}, "hidden_size is 64.0; a whole number"),
        (None, {"num_channels": 5}, "5 channels"),
        (None, {"model_type": "bert"}, "bert"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    tmp_path: Path, processor: dict | str | None, config: dict, reason: str
) -> None:
    folder = checkpoint(tmp_path / "model", processor, **config)
    with pytest.raises(CheckpointError, match=reason):
        preprocess([Image.new("RGB", (9, 9))], folder)


def test_no_images_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        preprocess([], DEFAULT_MODEL)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        preprocess([Image.new("RGB", (9, 9))], tmp_path)


def test_the_embedded_model_is_small_and_whole() -> None:
    names = {file.name for file in DEFAULT_MODEL.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(file.stat().st_size for file in DEFAULT_MODEL.iterdir()) < 2 << 20


def test_the_split_is_fixed() -> None:
    from vitcourse.data import load_digits_split

    train_images, train_labels, test_images, test_labels = load_digits_split()
    assert train_images.shape == (1400, 8, 8) and test_images.shape == (397, 8, 8)
    assert train_images.dtype == np.uint8 and test_images.max() == 255 and test_images.min() == 0
    assert np.bincount(test_labels).tolist() == [39, 40, 39, 40, 40, 40, 40, 40, 39, 40]
    # The embedded model was trained on the other part: another split would test it on what it has learned from.
    assert zlib.crc32(test_images.tobytes() + test_labels.tobytes()) == 2391966232
    assert len(train_labels) == 1400


def test_limit_is_pillows() -> None:
    assert images.MAX_PIXELS == 178_956_970
