"""Pictures: sharp, upright, varied in training, and never a crash."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.images import image_pixels
from megatron_ovenc.data.order import generator
from tests.data.samples import image_bytes


def ramp(height: int, width: int) -> np.ndarray:
    """Red tells the column, green the row, as shares of the picture."""
    rows, cols = np.indices((height, width))
    return np.stack([255 * cols / width, 255 * rows / height, 0 * rows], axis=-1).astype(np.uint8)


def test_without_augmentation_the_centre_of_the_short_side_is_kept():
    pixels = image_pixels(image_bytes(ramp(100, 300)), 50, None)
    assert pixels.shape == (50, 50, 3)
    assert pixels.dtype == np.uint8
    assert pixels[25, 0, 0] == pytest.approx(255 / 3, abs=3)
    assert pixels[25, -1, 0] == pytest.approx(255 * 2 / 3, abs=3)
    assert pixels[-1, 25, 1] == pytest.approx(255, abs=5)


@pytest.mark.parametrize("shape", [(100, 100), (60, 300), (300, 60)])
def test_crops_keep_to_their_area_and_aspect_as_far_as_the_picture_allows(shape):
    content = image_bytes(ramp(*shape))
    flips, boxes = 0, []
    for number in range(200):
        pixels = image_pixels(content, 40, generator("crop", number)).astype(float)
        left, right = pixels[20, 0, 0], pixels[20, -1, 0]
        flips += left > right
        wide = abs(right - left) / 255 * 40 / 39 * shape[1]
        high = (pixels[-1, 20, 1] - pixels[0, 20, 1]) / 255 * 40 / 39 * shape[0]
        boxes.append((wide * high / (shape[0] * shape[1]), wide / high, min(left, right), pixels[0, 20, 1]))
    areas, aspects, lefts, tops = np.array(boxes).T
    assert 70 < flips < 130
    assert aspects.min() > 0.77
    assert aspects.max() < 1.3
    assert aspects.std() > 0.05
    assert max(lefts.std(), tops.std()) > 8  # of 255: crops lie all over the picture
    if shape == (100, 100):
        assert 0.66 < areas.min() < 0.75
        assert 0.93 < areas.max() <= 1.03


def test_the_same_seed_gives_the_same_pixels():
    content = image_bytes(ramp(64, 64), "jpeg")
    one, other = (image_pixels(content, 32, generator("x", 5)) for _ in range(2))
    assert (one == other).all()
    assert (one != image_pixels(content, 32, generator("x", 6))).any()


def test_large_jpegs_are_decoded_at_lower_resolution_without_harm():
    content = image_bytes(ramp(1200, 1600), "jpeg")
    exact = np.asarray(
        Image.fromarray(ramp(1200, 1600)).resize((64, 64), Image.Resampling.BILINEAR, box=(200, 0, 1400, 1200))
    )
    assert np.abs(image_pixels(content, 64, None).astype(int) - exact).mean() < 1.5


def test_orientation_grey_palette_and_transparency():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    Image.fromarray(ramp(80, 80)).save(file, "jpeg", exif=exif, quality=95)
    upright = image_pixels(file.getvalue(), 40, None)
    assert upright[-1, 20, 0] > upright[0, 20, 0] + 200  # the column now grows downwards
    for mode in ("L", "P", "RGBA", "1", "LA"):
        file = io.BytesIO()
        Image.fromarray(ramp(30, 30)).convert("L").convert(mode).save(file, "png")
        assert image_pixels(file.getvalue(), 14, None).shape == (14, 14, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged TIFF tags
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_damaged_files_are_bad_samples_or_pictures_but_nothing_else(kind):
    rng = np.random.default_rng(0)
    whole = image_bytes(rng.integers(0, 256, (40, 40, 3), np.uint8), kind)
    outcomes = set()
    for number in range(60):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if number % 2 else whole)
        for place in rng.integers(0, len(damaged), 5):
            damaged[place] = rng.integers(256)
        try:
            assert image_pixels(bytes(damaged), 14, None).shape == (14, 14, 3)
            outcomes.add("picture")
        except BadSample as error:
            outcomes.add(str(error)[:28])
    assert "the image cannot be decoded:" in outcomes


@pytest.mark.parametrize("content", [b"", b"\x00" * 1000, b"<html>not found</html>"])
def test_what_is_no_picture_is_a_bad_sample(content):
    with pytest.raises(BadSample, match="the image"):
        image_pixels(content, 14, None)
