"""Decoded frames to RGB of one size, bit for bit as training and evaluation see them (there, compiled: `codec/native/cut.cpp`).

Each plane is resampled by a bicubic filter (Keys 1981, a = -0.6, widened where it reduces), down the columns first, then along the
rows, and the planes are converted to RGB as ITU-T H.273 defines it. Sums are of single products in fp32, one tap after the other.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

_SHARPNESS = -0.6
_SHIFTS = {"gray": (0, 0), "yuv420p": (1, 1), "yuv422p": (1, 0), "yuv444p": (0, 0)}
_SHIFTS |= {"yuvj420p": (1, 1), "yuvj422p": (1, 0), "yuvj444p": (0, 0)}
"""By which powers of two chroma is smaller, across and down, in the formats that are read as they are."""
_BT601 = (0.299, 0.114)
_LUMA_WEIGHTS = dict.fromkeys((0, 2, 3, 5, 6), _BT601)
_LUMA_WEIGHTS |= {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
"""Weights of red and blue in luma by H.273's number of the matrix."""


def resized(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """A PyAV frame stretched to size (H, W): uint8 [H, W, 3], RGB.

    Raises:
        ValueError: colours are coded in a way that is not known here.
    """
    if frame.format.name not in _SHIFTS:
        frame = frame.reformat(format=_nearest(frame.format))
    across, down = _SHIFTS[frame.format.name]
    planes = []
    for number, plane in enumerate(frame.planes):
        stored = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        high, wide = (frame.height / 2**down, frame.width / 2**across) if number else (frame.height, frame.width)
        columns = _resampled(stored.astype(np.float32), float(high), size[0])
        planes.append(_resampled(np.ascontiguousarray(columns.T), float(wide), size[1]).T)
    if len(planes) == 1:
        planes += [np.full(size, 128, np.float32)] * 2
    y, cb, cr = planes
    pixels = np.empty((*size, 3), np.uint8)
    for channel, (luma, blue, red, constant) in enumerate(_rgb_matrix(frame).astype(np.float32)):
        value = (luma * y + blue * cb) + (red * cr + (constant + np.float32(0.5)))
        pixels[..., channel] = value.clip(0, 255)
    return pixels


def _resampled(plane: np.ndarray, extent: float, count: int) -> np.ndarray:
    """float32 [count, m] of plane [n, m], whose first `extent` rows are the picture."""
    places, weights = _taps(len(plane), extent, count)
    total = np.zeros((count, plane.shape[1]), np.float32)
    for place, weight in zip(places.T, weights.T, strict=True):
        total += weight[:, None] * plane[place]
    return total


@lru_cache(maxsize=16)
def _taps(length: int, extent: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Input pixels and float32 weights [count, taps] of each output pixel; beyond the picture its edge repeats."""
    step = extent / count
    width = max(1.0, step)
    found = []
    for pixel in range(count):
        centre = (pixel + 0.5) * step
        begin, end = math.ceil(centre - 2 * width - 0.5), math.floor(centre + 2 * width - 0.5) + 1
        first = min(max(begin, 0), length - 1)
        last = min(max(end, first + 1), length)
        weights, total = [0.0] * (last - first), 0.0
        for place in range(begin, end):
            weight = _cubic((place + 0.5 - centre) / width)
            weights[min(max(place, first), last - 1) - first] += weight
            total += weight
        found.append((first, [weight / total for weight in weights]))
    taps = max(len(weights) for _, weights in found)
    places = np.array([[min(first + tap, length - 1) for tap in range(taps)] for first, _ in found])
    return places, np.array([weights + [0.0] * (taps - len(weights)) for _, weights in found], np.float32)


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return ((_SHARPNESS + 2) * x - (_SHARPNESS + 3)) * x * x + 1
    return _SHARPNESS * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0


def _nearest(format: Any) -> str:
    """The format among those read that keeps the resolution of another's colours."""
    shift = (format.chroma_width(2) < 2, format.chroma_height(2) < 2)
    return {(True, True): "yuv420p", (True, False): "yuv422p"}.get(shift, "yuv444p")


def _rgb_matrix(frame: Any) -> np.ndarray:
    """[3, 4]: RGB in 0..255 of (Y, Cb, Cr, 1) as stored (ITU-T H.273, 8.3)."""
    if frame.colorspace not in _LUMA_WEIGHTS:
        raise ValueError(f"colours are coded by matrix {frame.colorspace} of ITU-T H.273, which is not supported")
    is_grey, limited = len(frame.planes) == 1, 1
    # Grey pictures use all values unless they say otherwise, as FFmpeg makes them.
    full = frame.color_range == 2 or frame.format.name.startswith("yuvj") or (is_grey and frame.color_range != limited)
    red, blue = _LUMA_WEIGHTS[frame.colorspace]
    green = 1 - red - blue
    y, c, black = (1.0, 1.0, 0) if full else (255 / 219, 255 / 224, 16)
    from_luma, from_blue, from_red = np.full(3, y), np.zeros(3), np.zeros(3)
    if not is_grey:
        from_red[0], from_blue[2] = 2 * (1 - red) * c, 2 * (1 - blue) * c
        from_red[1], from_blue[1] = -from_red[0] * red / green, -from_blue[2] * blue / green
    return np.stack([from_luma, from_blue, from_red, -black * from_luma - 128 * (from_blue + from_red)], axis=1)
