"""The package's pixels, which stand alone, are bit for bit those that the compiled reader gives training and evaluation."""

from __future__ import annotations

import numpy as np
import pytest

import codec
from onevision_encoder.video_pixels_onevision_encoder import resized
from tests.codec.test_cut import picture

FORMATS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "gray", "nv12", "yuv420p10le", "rgb24"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(256, 256), (61, 83), (30, 20), (270, 480)])
def test_pixels_equal_the_compiled_reader(format: str, size: tuple[int, int]) -> None:
    frame = picture(*size, format)
    assert np.array_equal(resized(frame, (224, 224)), codec.Cutter((16, 16), 14).whole(frame))
    assert np.array_equal(resized(frame, (32, 48)), codec.Cutter((4, 6), 8).whole(frame))


@pytest.mark.parametrize("space", [0, 1, 2, 5, 6, 7, 9])
@pytest.mark.parametrize("values", [0, 1, 2])
def test_colours_equal_the_compiled_reader(space: int, values: int) -> None:
    frame = picture(64, 96)
    frame.colorspace, frame.color_range = space, values
    assert np.array_equal(resized(frame, (56, 56)), codec.Cutter((4, 4), 14).whole(frame))
    frame.colorspace = 8
    with pytest.raises(ValueError, match="matrix 8"):
        resized(frame, (56, 56))
