"""Inter prediction of luma: interpolation and weighting (H.265 clause 8.5.3.3)."""

import numpy as np

from tests.codec.hevc_streams.picture import Motion, Reference
from tests.codec.hevc_streams.slice_header import Weight
from tests.codec.hevc_streams.syntax_tables import LUMA_FILTER


def interpolate(
    samples: np.ndarray, x: int, y: int, width: int, height: int, mv: tuple[int, int], depth: int
) -> np.ndarray:
    """Intermediate samples of 14 bits [height, width] for a vector in quarter pixels; edges are repeated."""
    rows = np.clip(np.arange(y + (mv[1] >> 2) - 3, y + (mv[1] >> 2) + height + 4), 0, samples.shape[0] - 1)
    cols = np.clip(np.arange(x + (mv[0] >> 2) - 3, x + (mv[0] >> 2) + width + 4), 0, samples.shape[1] - 1)
    patch = samples[np.ix_(rows, cols)]
    part_x, part_y = mv[0] & 3, mv[1] & 3
    if not part_x and not part_y:
        return patch[3 : 3 + height, 3 : 3 + width] << (14 - depth)
    if not part_y:
        return _filter(patch[3 : 3 + height].T, part_x).T >> (depth - 8)
    if not part_x:
        return _filter(patch[:, 3 : 3 + width], part_y) >> (depth - 8)
    return _filter(_filter(patch.T, part_x).T >> (depth - 8), part_y) >> 6


def _filter(values: np.ndarray, part: int) -> np.ndarray:
    count = values.shape[0] - 7
    return sum(tap * values[i : i + count] for i, tap in enumerate(LUMA_FILTER[part].tolist()))


def predict(
    lists: tuple[list[Reference], list[Reference]],
    motion: Motion,
    block: tuple[int, int, int, int],
    depth: int,
    weights: tuple[list[Weight], list[Weight]] | None = None,
    log2_denominator: int = 0,
) -> np.ndarray:
    """Predicted samples [height, width] of `block` = (x, y, width, height); `weights` selects explicit weighting."""
    parts, factors, offsets = [], [], []
    for side in range(2):
        if motion.used[side]:
            picture = lists[side][motion.ref[side]].picture
            parts.append(interpolate(picture.samples, *block, motion.mv[side], depth))
            chosen = weights[side][motion.ref[side]].luma if weights is not None else None
            factors.append(1 << log2_denominator if chosen is None else chosen[0])
            offsets.append(0 if chosen is None else chosen[1] << (depth - 8))
    shift = 14 - depth
    if weights is None:
        total = sum(parts)
        shift += len(parts) - 1
        result = (total + (1 << (shift - 1))) >> shift
    elif len(parts) == 1:
        shift += log2_denominator
        result = ((parts[0] * factors[0] + (1 << (shift - 1))) >> shift) + offsets[0]
    else:
        shift += log2_denominator
        total = parts[0] * factors[0] + parts[1] * factors[1] + ((offsets[0] + offsets[1] + 1) << shift)
        result = total >> (shift + 1)
    return np.clip(result, 0, (1 << depth) - 1)
