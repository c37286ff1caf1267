"""H.264 luma interpolation in NumPy, whole pictures at a time: what the compiled core is held against.

Half samples by the six-tap filter (1, -5, 20, 20, -5, 1) / 32, quarter samples by the rounded mean of two neighbours among
integer and half samples (ITU-T H.264, 8.4.2.2.1).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from codec.source import Luma
from codec.types import BLOCK_SIZE, cell_grid

PAD = 16
"""Pixels of repeated edge around a reference: a cell further out than this sees only the edge, wherever it lies."""

# Planes of a `Reference`: samples at integer positions, half a pixel to the right, half a pixel down, and both.
_FULL, _RIGHT, _DOWN, _BOTH = range(4)
# For each quarter position, y * 4 + x: the two (plane, y step, x step) whose rounded mean it is (H.264, figure 8-4).
_QUARTERS = (
    ((_FULL, 0, 0), (_FULL, 0, 0)),
    ((_FULL, 0, 0), (_RIGHT, 0, 0)),
    ((_RIGHT, 0, 0), (_RIGHT, 0, 0)),
    ((_RIGHT, 0, 0), (_FULL, 0, 1)),
    ((_FULL, 0, 0), (_DOWN, 0, 0)),
    ((_RIGHT, 0, 0), (_DOWN, 0, 0)),
    ((_RIGHT, 0, 0), (_BOTH, 0, 0)),
    ((_RIGHT, 0, 0), (_DOWN, 0, 1)),
    ((_DOWN, 0, 0), (_DOWN, 0, 0)),
    ((_DOWN, 0, 0), (_BOTH, 0, 0)),
    ((_BOTH, 0, 0), (_BOTH, 0, 0)),
    ((_BOTH, 0, 0), (_DOWN, 0, 1)),
    ((_DOWN, 0, 0), (_FULL, 1, 0)),
    ((_DOWN, 0, 0), (_RIGHT, 1, 0)),
    ((_BOTH, 0, 0), (_RIGHT, 1, 0)),
    ((_DOWN, 0, 1), (_RIGHT, 1, 0)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A picture ready to be predicted from."""

    height: int
    width: int
    planes: npt.NDArray[np.uint8]
    """[4, H + 2 PAD, W + 2 PAD]"""


def reference(picture: Luma) -> Reference:
    """Interpolate a picture [H, W] at half samples."""
    height, width = picture.shape
    full = np.pad(picture, PAD, mode="edge")
    # Three more pixels for the taps; the unrounded sums fit int16 after one filter (|sum| <= 52 * 255) and need int32 after two.
    wide = np.pad(full, 3, mode="edge").astype(np.int16)
    across = _six_taps(wide, axis=1)
    down = _six_taps(wide, axis=0)
    both = _six_taps(across.astype(np.int32), axis=0)
    planes = np.stack(
        [
            full,
            _round(across[3:-3], 5),
            _round(down[:, 3:-3], 5),
            _round(both, 10),
        ]
    )
    return Reference(height=height, width=width, planes=planes)


def predict(source: Reference, vectors: npt.NDArray[np.int32]) -> Luma:
    """Predict a picture [H, W] from `source`.

    Args:
        source: the picture to predict from.
        vectors: [rows, cols, 2] in quarter pixels, (x, y) from a cell to the place in `source` it is copied from.
    """
    rows, cols = cell_grid(source.height, source.width)
    _, padded_height, stride = source.planes.shape
    # A cell beyond the padding is moved to its border; one more pixel is read to the right and below.
    y = np.arange(rows, dtype=np.int32)[:, None] * BLOCK_SIZE + PAD + (vectors[..., 1] >> 2)
    x = np.arange(cols, dtype=np.int32) * BLOCK_SIZE + PAD + (vectors[..., 0] >> 2)
    origin = y.clip(0, padded_height - BLOCK_SIZE - 1) * stride + x.clip(0, stride - BLOCK_SIZE - 1)
    quarter = (vectors[..., 1] & 3) * 4 + (vectors[..., 0] & 3)
    first, second = _offsets(padded_height, stride)[:, quarter] + origin
    samples = source.planes.reshape(-1)
    inside = np.arange(BLOCK_SIZE)[:, None] * stride + np.arange(BLOCK_SIZE)
    cell = inside[:, None, :]
    one = samples.take(first[:, None, :, None] + cell)
    other = samples.take(second[:, None, :, None] + cell)
    mean = average(one, other).reshape(rows * BLOCK_SIZE, cols * BLOCK_SIZE)
    return mean[: source.height, : source.width]


def average(one: Luma, other: Luma) -> Luma:
    """(a + b + 1) >> 1 without leaving 8 bits."""
    return (one | other) - ((one ^ other) >> 1)


@cache
def _offsets(padded_height: int, stride: int) -> npt.NDArray[np.intp]:
    """[2, 16]: where the two samples of each quarter position lie relative to the integer position, in flat planes."""
    steps = np.array(_QUARTERS, np.intp).transpose(1, 0, 2)
    return steps @ np.array([padded_height * stride, stride, 1], np.intp)


def _six_taps(samples: np.ndarray, axis: int) -> np.ndarray:
    """Unrounded half samples along `axis`: entry k, of six fewer than given, lies between samples k + 3 and k + 4."""
    length = samples.shape[axis] - 6
    taps = [slice(1 + tap, 1 + tap + length) for tap in range(6)]
    at = [samples[tap] if axis == 0 else samples[:, tap] for tap in taps]
    return (at[0] + at[5]) - 5 * (at[1] + at[4]) + 20 * (at[2] + at[3])


def _round(sums: np.ndarray, bits: int) -> npt.NDArray[np.uint8]:
    return ((sums + (1 << (bits - 1))) >> bits).clip(0, 255).astype(np.uint8)
