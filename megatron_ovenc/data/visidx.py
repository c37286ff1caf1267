"""Patches of a clip that were chosen beforehand: `.visidx.npy` files, as the reference's tools write them.

An array of integers [K], ascending: t * rows * cols + row * cols + col on the grid of `clip_frames` virtual frames. The
reference's tools save K zeros for every clip on which they fail, and its loader trains on K copies of one patch; here such a
file is a bad sample.
"""

from __future__ import annotations

import io

import numpy as np

from megatron_ovenc.data.errors import BadSample


def load_selection(content: bytes, *, grid: tuple[int, int, int], tokens: int) -> np.ndarray:
    """Positions int32 [tokens, 3]: t, row, col.

    Args:
        content: the file.
        grid: virtual frames, rows and columns.
        tokens: patches that the head takes of a clip.

    Raises:
        BadSample: not such a file, of another length, or one that does not select different patches of the grid.
    """
    try:
        indices = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadSample(f"its visidx is not a .npy array: {error}") from error
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise BadSample("its visidx is not an array of integers [K]")
    if len(indices) != tokens:
        raise BadSample(f"its visidx selects {len(indices)} patches, heads.*.source.tokens is {tokens}")
    if not indices.any():
        raise BadSample("its visidx is all zeros: whatever made it had failed on this clip")
    indices = indices.astype(np.int64)
    low, high, size = int(indices.min()), int(indices.max()), grid[0] * grid[1] * grid[2]
    if low < 0 or high >= size:
        raise BadSample(
            f"its visidx reaches from {low} to {high}, outside of the {grid[0]} x {grid[1]} x {grid[2]} = {size} patches of a "
            f"clip (heads.*.source.clip_frames, source.size / model.patch_size)"
        )
    if (np.diff(indices) <= 0).any():
        raise BadSample("its visidx is not strictly ascending: it selects patches twice or is damaged")
    return np.stack(np.unravel_index(indices, grid), axis=1).astype(np.int32)
