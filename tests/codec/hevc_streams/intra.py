"""Intra prediction of luma (H.265 clause 8.4.4.2) and the most probable modes (8.4.2)."""

from collections.abc import Callable

import numpy as np

from tests.codec.hevc_streams.syntax_tables import INTRA_ANGLE, INVERSE_ANGLE

PLANAR, DC, VERTICAL = 0, 1, 26


def most_probable_modes(left: int, above: int) -> list[int]:
    """candModeList of the candidates left and above."""
    if left != above:
        third = next(mode for mode in (PLANAR, DC, VERTICAL) if mode not in (left, above))
        return [left, above, third]
    if left < 2:
        return [PLANAR, DC, VERTICAL]
    return [left, 2 + (left + 29) % 32, 2 + (left - 2 + 1) % 32]


def neighbours(samples: np.ndarray, x: int, y: int, size: int, usable: Callable[[int, int], bool], depth: int):
    """The 4n+1 samples around a block, from below-left up to the corner and on to above-right, gaps filled (8.4.4.2.2).

    `usable` says for a sample position whether it may be used.
    """
    places = [(x - 1, y + i) for i in range(2 * size - 1, -1, -1)] + [(x - 1, y - 1)]
    places += [(x + i, y - 1) for i in range(2 * size)]
    values: list[int | None] = []
    known: dict[tuple[int, int], bool] = {}
    for px, py in places:
        block = px >> 2, py >> 2
        if block not in known:
            known[block] = usable(px, py)
        values.append(int(samples[py, px]) if known[block] else None)
    first = next((value for value in values if value is not None), 1 << (depth - 1))
    filled = []
    for value in values:
        first = value if value is not None else first
        filled.append(first)
    return np.array(filled, np.int64)


def _smooth(edge: np.ndarray, mode: int, size: int, strong: bool, depth: int) -> np.ndarray:
    """Filtering of neighbouring samples (8.4.4.2.3)."""
    distance = min(abs(mode - 26), abs(mode - 10))
    if mode == DC or size == 4 or distance <= {8: 7, 16: 1, 32: 0}[size]:
        return edge
    corner, last = edge[2 * size], 4 * size
    if strong and size == 32:
        limit = 1 << (depth - 5)
        flat_above = abs(corner + edge[last] - 2 * edge[3 * size]) < limit
        flat_left = abs(corner + edge[0] - 2 * edge[size]) < limit
        if flat_above and flat_left:
            steps = np.arange(1, 64)
            result = edge.copy()
            result[1:64] = ((64 - steps) * edge[0] + steps * corner + 32) >> 6
            result[65:128] = ((64 - steps) * corner + steps * edge[last] + 32) >> 6
            return result
    result = edge.copy()
    result[1:-1] = (edge[:-2] + 2 * edge[1:-1] + edge[2:] + 2) >> 2
    return result


def predict(edge: np.ndarray, mode: int, size: int, strong: bool, depth: int) -> np.ndarray:
    """Predicted samples [size, size] from `neighbours`."""
    edge = _smooth(edge, mode, size, strong, depth)
    corner = 2 * size
    left, above = edge[corner - 1 :: -1], edge[corner + 1 :]  # downwards from the corner; rightwards
    log2 = size.bit_length() - 1
    if mode == PLANAR:
        x, y = np.arange(size), np.arange(size)[:, None]
        horizontal = (size - 1 - x) * left[:size, None] + (x + 1) * above[size]
        vertical = (size - 1 - y) * above[:size] + (y + 1) * left[size]
        return (horizontal + vertical + size) >> (log2 + 1)
    if mode == DC:
        value = (left[:size].sum() + above[:size].sum() + size) >> (log2 + 1)
        result = np.full((size, size), value)
        if size < 32:
            result[0, 1:] = (above[1:size] + 3 * value + 2) >> 2
            result[1:, 0] = (left[1:size] + 3 * value + 2) >> 2
            result[0, 0] = (left[0] + 2 * value + above[0] + 2) >> 2
        return result
    if mode >= 18:
        return _angular(edge[corner], above, left, mode, mode == 26, size, depth)
    return _angular(edge[corner], left, above, mode, mode == 10, size, depth).T


def _angular(corner: int, main: np.ndarray, side: np.ndarray, mode: int, straight: bool, size: int, depth: int):
    """Modes 18 to 34 with `main` above; transposed for the others."""
    angle = INTRA_ANGLE[mode]
    reference = {0: int(corner)} | {i + 1: int(value) for i, value in enumerate(main)}
    if angle < 0 and (size * angle) >> 5 < -1:
        for i in range(-1, ((size * angle) >> 5) - 1, -1):
            reference[i] = int(side[((i * INVERSE_ANGLE[mode] + 128) >> 8) - 1])
    result = np.zeros((size, size), np.int64)
    for y in range(size):
        whole, part = ((y + 1) * angle) >> 5, ((y + 1) * angle) & 31
        for x in range(size):
            value = reference[x + whole + 1]
            if part:
                value = ((32 - part) * value + part * reference[x + whole + 2] + 16) >> 5
            result[y, x] = value
    if straight and size < 32:
        result[:, 0] = np.clip(main[0] + ((side[:size] - corner) >> 1), 0, (1 << depth) - 1)
    return result
