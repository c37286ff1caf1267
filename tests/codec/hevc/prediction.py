"""Inter prediction of luma as H.265 defines it (8.5.3.3), from decoded pictures: the judge of motion vectors."""

import numpy as np

from codec import hevc

CELL = 4
TAPS = np.array(
    [
        [0, 0, 0, 64, 0, 0, 0, 0],
        [-1, 4, -10, 58, 17, -5, 1, 0],
        [-1, 4, -11, 40, 40, -11, 4, -1],
        [0, 1, -5, 17, 58, -10, 4, -1],
    ]
)
"""Table 8-11: by quarter, over samples -3 to 4."""


def predict(
    frame: hevc.HevcFrame, cells: np.ndarray, references: dict[int, np.ndarray], bit_depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Unweighted prediction of the `cells` ([rows, cols], bool): samples [count, 4, 4] and the cells' (row, col) [count, 2].

    `references` are decoded luma planes by POC.
    """
    at = np.argwhere(cells)
    total = np.zeros((len(at), CELL, CELL), np.int64)
    used = frame.predicted[cells]
    for side in range(2):
        pocs = frame.reference_poc[cells][:, side]
        for poc in np.unique(pocs[used[:, side]]):
            chosen = used[:, side] & (pocs == poc)
            vectors = frame.vectors[cells][chosen, side].astype(np.int64)
            total[chosen] += _interpolate(references[int(poc)], at[chosen], vectors, bit_depth)
    shift = np.where(used.all(axis=1), 15 - bit_depth, 14 - bit_depth)[:, None, None]
    return ((total + (1 << (shift - 1))) >> shift).clip(0, (1 << bit_depth) - 1), at


def _interpolate(plane: np.ndarray, at: np.ndarray, vectors: np.ndarray, bit_depth: int) -> np.ndarray:
    """14-bit prediction samples [count, 4, 4] of cells, before rounding; the picture's edge repeats."""
    reach = np.arange(-3, CELL + 4)
    y = (CELL * at[:, 0] + (vectors[:, 1] >> 2))[:, None] + reach
    x = (CELL * at[:, 1] + (vectors[:, 0] >> 2))[:, None] + reach
    y, x = y.clip(0, plane.shape[0] - 1), x.clip(0, plane.shape[1] - 1)
    samples = plane[y[:, :, None], x[:, None, :]].astype(np.int64)
    across, down = TAPS[vectors[:, 0] & 3], TAPS[vectors[:, 1] & 3]
    windows = np.lib.stride_tricks.sliding_window_view(samples, 8, axis=2)
    lines = np.einsum("nyxk,nk->nyx", windows, across) >> (bit_depth - 8)
    return np.einsum("nyxk,nk->nyx", np.lib.stride_tricks.sliding_window_view(lines, 8, axis=1), down) >> 6


def by_sequence(frames: list[hevc.HevcFrame], planes: list[np.ndarray]) -> list[dict[int, np.ndarray]]:
    """For each frame, the decoded planes of its coded video sequence by POC. Sequences start at pictures of POC 0."""
    sequence = -1
    of_frame: dict[int, int] = {}
    for frame in sorted(frames, key=lambda frame: frame.order):
        sequence += frame.key_frame and frame.poc == 0
        of_frame[frame.index] = sequence
    found: list[dict[int, np.ndarray]] = [{} for _ in range(sequence + 1)]
    for frame, plane in zip(frames, planes, strict=True):
        found[of_frame[frame.index]][frame.poc] = plane
    return [found[of_frame[frame.index]] for frame in frames]
