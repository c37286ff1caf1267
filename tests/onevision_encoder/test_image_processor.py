"""The image processor against the same steps written out with PIL and numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderImageProcessor

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, so that a shift or a wrong filter shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9 + k) + np.cos(y / (5 + k)) for k in range(4)], axis=-1)
    pixels = np.clip(127 + 50 * waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)
    rgba = Image.fromarray(pixels)
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)


def by_hand(image: Image.Image, side: int) -> np.ndarray:
    image = image.convert("RGB")
    width, height = image.size
    scale = side / min(width, height)
    new = (side, int(height * scale + 1e-9)) if width <= height else (int(width * scale + 1e-9), side)
    pixels = np.asarray(image.resize(new, Image.Resampling.BICUBIC)).astype(np.float64)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    pixels = pixels[top : top + side, left : left + side]
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("size", [(500, 333), (333, 500), (64, 64), (451, 450), (37, 211)])
def test_default_steps(size: tuple[int, int], mode: str) -> None:
    image = picture(*size, mode=mode)
    pixels = OneVisionEncoderImageProcessor()(image, return_tensors="np").pixel_values
    assert pixels.shape == (1, 3, 448, 448)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0], by_hand(image, 448), atol=1e-5)


@pytest.mark.parametrize("steps", [("do_resize",), ("do_rescale", "do_normalize"), ("do_normalize",)])
def test_steps_can_be_switched_off(steps: tuple[str, ...]) -> None:
    image = picture(70, 60)
    sizes: dict[str, Any] = {"size": {"shortest_edge": 60}, "crop_size": {"height": 60, "width": 60}}
    switched_off: dict[str, Any] = dict.fromkeys(steps, False)
    processor = OneVisionEncoderImageProcessor(**sizes, **switched_off)
    expected = np.asarray(image)[5:65].transpose(2, 0, 1).astype(np.float64)
    if "do_rescale" not in steps:
        expected /= 255
    if "do_normalize" not in steps:
        expected = (expected - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(processor(image, return_tensors="np").pixel_values[0], expected, atol=1e-4)
    by_call = OneVisionEncoderImageProcessor(**sizes)(image, return_tensors="np", **switched_off)
    np.testing.assert_allclose(by_call.pixel_values[0], expected, atol=1e-4)


def test_overrides_hold_for_one_call_and_none_means_no_override() -> None:
    processor, image = OneVisionEncoderImageProcessor(), picture(50, 60)
    small = processor(
        image, return_tensors="pt", size={"height": 28, "width": 42}, crop_size={"height": 28, "width": 42}
    )
    assert small.pixel_values.shape == (1, 3, 28, 42)
    plain, again = (processor(image, return_tensors="pt", **none) for none in ({}, {"do_resize": None, "size": None}))
    assert plain.pixel_values.shape == (1, 3, 448, 448)
    assert torch.equal(plain.pixel_values, again.pixel_values)


def test_without_crop_the_aspect_ratio_stays() -> None:
    processor = OneVisionEncoderImageProcessor(do_center_crop=False, size={"shortest_edge": 56})
    first, second = processor([picture(100, 201), picture(201, 100)]).pixel_values
    assert first.shape == (3, 56, 112)
    assert second.shape == (3, 112, 56)


def test_crop_pads_small_images_with_black() -> None:
    processor = OneVisionEncoderImageProcessor(
        do_resize=False, do_normalize=False, crop_size={"height": 10, "width": 10}
    )
    (pixels,) = processor(Image.new("RGB", (4, 6), (255, 255, 255)), return_tensors="np").pixel_values
    assert pixels.sum() == pytest.approx(3 * 4 * 6)
    assert pixels[:, 2:8, 3:7].min() == pytest.approx(1)


def test_arrays_tensors_and_nested_lists_equal_pil() -> None:
    processor = OneVisionEncoderImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    images = [picture(40, 50, seed=k) for k in range(3)]
    expected = processor(images, return_tensors="pt").pixel_values
    hwc = np.stack([np.asarray(image) for image in images])
    chw = torch.from_numpy(hwc).permute(0, 3, 1, 2)
    for given in (hwc, chw, list(hwc), [images[:1], images[1:]], [chw[0], (hwc[1:],)]):
        assert torch.equal(processor(given, return_tensors="pt").pixel_values, expected)
    grey = picture(40, 50, mode="L")
    for given in (np.asarray(grey), np.asarray(grey)[None], np.asarray(grey)[..., None]):
        assert torch.equal(
            processor(given, return_tensors="pt").pixel_values, processor(grey, return_tensors="pt").pixel_values
        )
    ambiguous = np.asarray(picture(3, 50))
    by_hint = processor(ambiguous, return_tensors="pt", input_data_format="channels_last").pixel_values
    assert torch.equal(by_hint, processor(Image.fromarray(ambiguous), return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), {}, "float32 array.*uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.bfloat16), {}, "bfloat16 array.*uint8"),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), {}, r"shape \(2, 2, 8, 8, 3\)"),
        (np.zeros((8, 8, 2), np.uint8), {"input_data_format": "channels_last"}, "2 channels"),
        (np.zeros((8, 8, 3), np.uint8), {"input_data_format": "last"}, "last is not a valid"),
        ("cat.jpg", {}, "cannot read an image from str"),
        ([picture(8, 8), None], {}, "NoneType"),
        (picture(8, 8), {"do_resise": False}, "unknown option do_resise.*do_resize"),
        (picture(8, 8), {"size": {"longest_edge": 9}}, "size=.*shortest_edge"),
        (picture(8, 8, "L"), {"do_convert_rgb": False}, "mode L"),
    ],
)
def test_wrong_images_and_options_are_refused(images: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneVisionEncoderImageProcessor()(images, **options)


@pytest.mark.parametrize(
    "fields", [{"size": 224}, {"size": {"shortest_edge": 0}}, {"crop_size": {"shortest_edge": 224}}, {"size": {}}]
)
def test_wrong_sizes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        OneVisionEncoderImageProcessor(**fields)


def test_saving_and_loading(tmp_path: Path) -> None:
    processor = OneVisionEncoderImageProcessor(
        size={"height": 28, "width": 42}, crop_size={"height": 28, "width": 42}, image_mean=[0.1, 0.2, 0.3], resample=2
    )
    processor.save_pretrained(tmp_path)
    OneVisionEncoderConfig().save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is OneVisionEncoderImageProcessor
    image = picture(30, 40)
    assert torch.equal(
        loaded(image, return_tensors="pt").pixel_values, processor(image, return_tensors="pt").pixel_values
    )


def test_reads_the_file_that_clip_exports_use(tmp_path: Path) -> None:
    """The reference ships a CLIPImageProcessor's file; its extra keys must not stand in the way."""
    file = tmp_path / "preprocessor_config.json"
    file.write_text(
        '{"image_processor_type": "CLIPImageProcessor", "do_resize": true, "size": {"shortest_edge": 56},'
        ' "crop_size": {"height": 56, "width": 56}, "resample": 3, "rescale_factor": 0.00392156862745098}'
    )
    processor = OneVisionEncoderImageProcessor.from_pretrained(tmp_path)
    image = picture(80, 70)
    np.testing.assert_allclose(processor(image, return_tensors="np").pixel_values[0], by_hand(image, 56), atol=1e-5)
