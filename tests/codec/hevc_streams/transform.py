"""Scaling and inverse transforms of residual blocks (H.265 clauses 8.6.3 and 8.6.4), and scaling factors (7.4.5)."""

from dataclasses import dataclass, field

import numpy as np

from tests.codec.hevc_streams.syntax_tables import DEFAULT_INTER_LIST, DEFAULT_INTRA_LIST, SCAN

LEVEL_SCALE = (40, 45, 51, 57, 64, 72)
DST = np.array([[29, 55, 74, 84], [74, 74, 0, -74], [84, -29, -74, 55], [55, -84, 74, -29]])


def _dct32() -> np.ndarray:
    """transMatrix, rows by frequency: the standard's integer for cos(j pi / 64), folded onto one quarter turn."""
    quarter = [0] * 33
    quarter[0] = quarter[16] = 64
    quarter[8], quarter[24] = 83, 36
    quarter[4:32:8] = [89, 75, 50, 18]
    quarter[2:32:4] = [90, 87, 80, 70, 57, 43, 25, 9]
    quarter[1:32:2] = [90, 90, 88, 85, 82, 78, 73, 67, 61, 54, 46, 38, 31, 22, 13, 4]
    matrix = np.zeros((32, 32), np.int64)
    for k in range(32):
        for n in range(32):
            turn = (2 * n + 1) * k % 128
            turn = min(turn, 128 - turn)
            matrix[k, n] = quarter[turn] if turn <= 32 else -quarter[64 - turn]
    return matrix


DCT = {log2: _dct32()[:: 32 >> log2, : 1 << log2] for log2 in range(2, 6)}


def _clip16(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -32768, 32767)


@dataclass
class ScalingLists:
    """Lists by (size 0..3, matrix 0..5) in diagonal order; DC values for sizes 2 and 3. Matrix 0-2 intra, 3-5 inter."""

    lists: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    dc: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for size in range(4):
            for matrix in range(6):
                self.lists.setdefault((size, matrix), default_list(size, matrix))
                self.dc.setdefault((size, matrix), 16)

    def factor(self, log2_size: int, matrix: int) -> np.ndarray:
        """ScalingFactor as [y, x]."""
        size = log2_size - 2
        values = self.lists[size, matrix]
        side = min(1 << log2_size, 8)
        small = np.zeros((side, side), np.int64)
        for value, (x, y) in zip(values, SCAN[3 if side == 8 else 2, 0], strict=True):
            small[y, x] = value
        repeat = (1 << log2_size) // side
        full = small.repeat(repeat, 0).repeat(repeat, 1)
        if size >= 2:
            full[0, 0] = self.dc[size, matrix]
        return full


def default_list(size: int, matrix: int) -> list[int]:
    if size == 0:
        return [16] * 16
    return list(DEFAULT_INTRA_LIST if matrix < 3 else DEFAULT_INTER_LIST)


def dequantise(levels: np.ndarray, qp: int, bit_depth: int, factor: np.ndarray | int = 16) -> np.ndarray:
    """Transform coefficients [n, n] from levels; `qp` is Qp' (with the bit depth's offset)."""
    log2 = levels.shape[0].bit_length() - 1
    shift = bit_depth + log2 - 5
    scaled = levels.astype(np.int64) * factor * (LEVEL_SCALE[qp % 6] << qp // 6)
    return _clip16((scaled + (1 << (shift - 1))) >> shift)


def inverse_transform(coefficients: np.ndarray, bit_depth: int, intra_4x4: bool) -> np.ndarray:
    """Residual samples [n, n] of coefficients [vertical, horizontal frequency]."""
    matrix = DST if intra_4x4 else DCT[coefficients.shape[0].bit_length() - 1]
    first = _clip16((matrix.T @ coefficients + 64) >> 7)
    shift = 20 - bit_depth
    return (first @ matrix + (1 << (shift - 1))) >> shift


def transform_skip(coefficients: np.ndarray, bit_depth: int) -> np.ndarray:
    """Residual samples of a 4x4 block coded without transform."""
    shift = 20 - bit_depth
    return ((coefficients << 7) + (1 << (shift - 1))) >> shift
