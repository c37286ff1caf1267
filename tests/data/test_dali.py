"""DALI's pictures are Pillow's to within rounding, and its failures are bad samples that do no harm to the next one."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_ovenc.data import dali
from megatron_ovenc.data.dali import dali_pixels
from megatron_ovenc.data.errors import BadSample, BadSampleLog
from megatron_ovenc.data.images import framed_pixels
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.data.order import generator
from megatron_ovenc.data.windows import native, square
from tests.data.samples import image_bytes, image_head, loading, write_shard

pytestmark = pytest.mark.skipif(not dali.installed(), reason="DALI is not installed: pip install '.[dali]'")

CENTRE = partial(square, size=56, rng=None)


def photograph() -> Image.Image:
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.coffee())


def jpeg(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "jpeg", **{"quality": 90, **options})
    return file.getvalue()


@pytest.mark.parametrize(
    ("side", "mean", "largest"),
    [(196, 0.25, 6), (28, 1.0, 16)],  # levels of 255; at 28 pixels Pillow decodes at a quarter
)
@pytest.mark.parametrize("crop", [(0, 0, 600, 400), (37, 11, 290, 399), (5, 5, 33, 46)])
@pytest.mark.parametrize("resize", ["square", "native"])
def test_crops_flips_and_sizes_agree_with_pillow(crop, resize, side, mean, largest):
    content = jpeg(photograph().crop(crop))
    for number in range(6):
        rng = [generator("agree", number) for _ in range(2)]
        framing = (
            partial(square, size=side)
            if resize == "square"
            else partial(native, tokens=(side // 14) ** 2, patch_size=14)
        )
        ours = framed_pixels(content, partial(framing, rng=rng[0])).astype(int)
        theirs = dali_pixels(content, partial(framing, rng=rng[1])).astype(int)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).mean() < mean
        assert np.abs(ours - theirs).max() <= largest


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(photograph().resize((150, 100)), exif=exif)
    framing = partial(native, tokens=60, patch_size=14, rng=None)
    assert np.abs(framed_pixels(content, framing).astype(int) - dali_pixels(content, framing)).mean() < 0.75


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_print_colours(mode):
    content = jpeg(photograph().convert(mode))
    assert np.abs(framed_pixels(content, CENTRE).astype(int) - dali_pixels(content, CENTRE)).mean() < 0.75


def test_other_formats_are_pillow_s():
    for kind in ("png", "webp", "gif", "bmp", "tiff"):
        content = image_bytes(np.asarray(photograph())[:99, :150], kind)
        assert (framed_pixels(content, CENTRE) == dali_pixels(content, CENTRE)).all()


def test_damaged_files_are_named_and_do_not_harm_the_next():
    sound = jpeg(photograph())
    expected = dali_pixels(sound, CENTRE)
    for content in (b"", b"\xff\xd8\xff\xe0nothing", sound[:100], sound[: len(sound) // 2], sound[:-20]):
        with pytest.raises(BadSample, match="image"):
            dali_pixels(content, CENTRE)
        assert (dali_pixels(sound, CENTRE) == expected).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_replaced_and_counted_in_either_process(tmp_path: Path, workers: int):
    pictures = [jpeg(photograph().crop((10 * n, 0, 10 * n + 60, 45))) for n in range(12)]
    pictures[5] = pictures[5][:-30]
    write_shard(tmp_path / "photos.tar", [{"jpg": picture} for picture in pictures], np.zeros((12, 1), np.int64))
    head = image_head(str(tmp_path / "photos.tar"), batch=12)
    head = replace(head, source=replace(head.source, decoder="dali"))
    log = BadSampleLog(tmp_path / "bad_samples.jsonl")
    options = {"patch_size": 14, "seed": 0, "grad_accumulation": 1, "data_rank": 0, "data_size": 1, "bad_log": log}
    loader = HeadLoader(head, loading(workers=workers), **options)
    try:
        batch = loader.next()
    finally:
        loader.close()
    assert batch.size == 12
    assert loader.bad_samples == 1
    (line,) = log.path.read_text().splitlines()
    assert "photos-005" in line
    assert "truncated" in line
