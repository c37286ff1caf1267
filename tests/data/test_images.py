"""Pictures: sharp, upright, varied in training, and never a crash."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_ovenc.data.errors import BadSample, BadSampleLog
from megatron_ovenc.data.images import framed_pixels, image_pixels
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.data.order import generator
from megatron_ovenc.data.windows import Window, native, square
from tests.data.samples import image_bytes, image_head, loading, write_shard


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


_UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera held that way does to the picture, by the EXIF orientation that it writes (CIPA DC-008, 4.6.4)."""


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", _UNTURN)
def test_pictures_stand_upright_whatever_their_orientation(kind, orientation):
    for shape in ((30, 171), (171, 30)):
        picture, exif, file = Image.fromarray(ramp(*shape)), Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        options = {} if kind == "tiff" else {"quality": 95}
        picture.transpose(_UNTURN[orientation]).save(file, kind, exif=exif.tobytes(), **options)
        for framing in (partial(square, size=28, rng=None), partial(native, tokens=30, patch_size=14, rng=None)):
            pixels = framed_pixels(file.getvalue(), framing)
            upright = framed_pixels(image_bytes(ramp(*shape)), framing)
            assert pixels.shape == upright.shape
            assert np.abs(pixels.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(kind):
    grey = ramp(40, 40)[..., 0]
    pixels = image_pixels(image_bytes(grey.astype(np.uint16) * 257, kind), 40, None)
    assert np.abs(pixels.astype(int) - grey[..., None]).max() <= 1


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_range_are_a_bad_sample(kind):
    with pytest.raises(BadSample, match="32-bit pixels"):
        image_pixels(image_bytes(ramp(40, 40)[..., 0].astype(kind), "tiff"), 14, None)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "gif"), ("RGBA", "webp"), ("L", "png")]
)
def test_black_on_a_transparent_page_is_black_on_white(mode, kind):
    page = Image.new("RGBA", (40, 40))
    page.paste((0, 0, 0, 255), (0, 10, 40, 20))
    file, options = io.BytesIO(), {"lossless": True} if kind == "webp" else {}
    if mode == "L":  # one grey level stands for transparent
        page, options = (
            Image.fromarray(np.asarray(page)[..., 3] ^ 255).point(lambda level: level // 2),
            {"transparency": 127},
        )
    page.convert(mode).save(file, kind, **options)
    pixels = image_pixels(file.getvalue(), 40, None)
    assert (pixels[12:18] == 0).all()
    assert (pixels[:8] == 255).all()
    assert (pixels[22:] == 255).all()


def test_a_window_beside_the_picture_is_a_bad_sample():
    with pytest.raises(BadSample, match="cannot be decoded"):
        framed_pixels(image_bytes(ramp(20, 20)), lambda *_: Window((30.0, 0.0, 40.0, 10.0), 14, 14, False))


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


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (3, 40), (700, 900)])
def test_native_pictures_of_any_shape_become_whole_patches_within_the_budget(shape):
    for kind in ("png", "jpeg"):
        for rng in (None, generator("native", 3)):
            pixels = framed_pixels(image_bytes(ramp(*shape), kind), partial(native, tokens=40, patch_size=14, rng=rng))
            rows, cols = pixels.shape[0] / 14, pixels.shape[1] / 14
            assert rows == int(rows) >= 1
            assert cols == int(cols) >= 1
            assert rows * cols <= 40


def test_native_keeps_the_whole_page_in_its_aspect():
    pixels = framed_pixels(image_bytes(ramp(280, 140)), partial(native, tokens=50, patch_size=14, rng=None))
    assert pixels.shape == (140, 70, 3)
    assert pixels[70, :, 0].astype(float) == pytest.approx(np.arange(70) / 70 * 255 + 1, abs=3)
    assert pixels[:, 35, 1].astype(float) == pytest.approx(np.arange(140) / 140 * 255 + 1, abs=3)


@pytest.mark.parametrize("augment", [True, False])
def test_native_heads_make_ragged_batches_on_their_own_grids(tmp_path: Path, augment: bool):
    shapes = [(40, 90), (90, 40), (30, 30), (200, 100), (1, 300)]
    pictures = [{"png": image_bytes(ramp(*shape))} for shape in shapes]
    write_shard(tmp_path / "pages.tar", pictures, np.zeros((5, 1), np.int64))
    head = image_head(str(tmp_path / "pages.tar"), batch=5, augment=augment)
    head = replace(head, source=replace(head.source, resize="native", tokens=21))
    log = BadSampleLog(tmp_path / "bad.jsonl")
    options = {"patch_size": 14, "seed": 0, "grad_accumulation": 1, "data_rank": 0, "data_size": 1, "bad_log": log}
    batch = HeadLoader(head, loading(), **options).next()
    lengths = batch.cu_seqlens.diff().tolist()
    assert len(set(lengths)) > 2
    for number, length in enumerate(lengths):
        begin = int(batch.cu_seqlens[number])
        t, row, col = batch.positions[begin : begin + length].numpy().T
        rows, cols = row.max() + 1, col.max() + 1
        assert rows * cols == length <= 21
        assert (t == 0).all()
        assert (row * cols + col == np.arange(length)).all()
        height, width = shapes[int(batch.sample_ids[number][-1])]
        assert (rows <= cols) == (height <= width) or rows == cols
