"""Signals of codecs that have no bitstream reader: measured on the pixels."""

import numpy as np
import pytest

import codec
from codec.estimate import estimate
from codec.estimate import read as estimate_pixels
from codec.source import open_clip
from tests.codec.clips import encode, moving_square, panning, texture

ENCODERS = {
    "mpeg4": {"qscale": "3"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
    "mjpeg": {"qscale": "3"},
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_square_is_found_whatever_the_codec(encoder: str) -> None:
    frames, corners = moving_square(6, (112, 128), (5, 3))
    container = "matroska" if encoder in ("libvpx-vp9", "mjpeg") else "mp4"
    pixel_format = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
    clip = encode(frames, encoder, ENCODERS[encoder], container, pixel_format)
    signals = list(codec.signals(clip))
    assert len(signals) == 6
    assert all(frame.estimated and frame.motion.shape == (28, 32, 2) for frame in signals)
    assert not signals[0].motion.any()
    assert not signals[0].residual.any()
    for frame, (x, y) in list(zip(signals, corners, strict=True))[1:]:
        inside = frame.motion[y // 4 + 2 : y // 4 + 6, x // 4 + 2 : x // 4 + 6]
        np.testing.assert_array_equal(np.median(inside, axis=(0, 1)), [5, 3])
        assert not frame.motion[-4:].any()


@pytest.mark.parametrize("shape", [(98, 42), (61, 33), (240, 135), (16, 16), (7, 5)])
@pytest.mark.parametrize("vector", [(0, 0), (3, -2), (-17, 9)])
def test_a_whole_shift_is_recovered_without_residual(shape: tuple[int, int], vector: tuple[int, int]) -> None:
    scene = texture(shape[0] + 64, shape[1] + 64)
    x, y = vector
    previous = scene[32 : 32 + shape[0], 32 : 32 + shape[1]]
    current = scene[32 - y : 32 - y + shape[0], 32 - x : 32 - x + shape[1]]
    motion, residual = estimate(current, previous)
    assert motion.shape == (-(-shape[0] // 4), -(-shape[1] // 4), 2)
    # Cells whose content came in over the edge cannot be found.
    top, left = max(0, -(-y // 4)), max(0, -(-x // 4))
    bottom, right = (y // 4 if y < 0 else None), (x // 4 if x < 0 else None)
    inner = (slice(top + 2, -2 if bottom is None else bottom - 2), slice(left + 2, -2 if right is None else right - 2))
    expected = np.broadcast_to(np.array(vector, np.float32), motion[inner].shape)
    if expected.size:
        assert (motion[inner] == expected).all(axis=-1).mean() > 0.8
        assert np.median(residual[inner]) == 0
    if vector == (0, 0):
        assert not motion.any()
        assert not residual.any()


def test_noise_does_not_move() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((96, 128), 128)
    one, other = ((flat + rng.normal(0, 2, flat.shape)).round().astype(np.uint8) for _ in range(2))
    motion, residual = estimate(one, other)
    assert not motion.any()
    assert 1 < residual.mean() < 4


def test_ten_bit_video_is_measured_in_eight_bit_grey_levels() -> None:
    frames = panning(4, (64, 80), (3, 0))
    read = []
    for pixel_format in ("yuv420p", "yuv420p10le"):
        clip = encode(frames, "libx265", {"x265-params": "log-level=none"}, pixel_format=pixel_format)
        with open_clip(clip) as opened:
            read.append([signals for _, signals in estimate_pixels(opened)])
    eight, ten = read
    for one, other in list(zip(eight, ten, strict=True))[1:]:
        assert np.median(np.abs(one.motion - other.motion)) == 0
        assert abs(one.residual.mean() - other.residual.mean()) < 1
