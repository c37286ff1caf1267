"""One picture under construction, and the truth that the tests compare the reader with."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SKIP, INTER, INTRA = 0, 1, 2  # values of Truth.mode


@dataclass(frozen=True)
class Truth:
    """All that the writer coded in one picture, on a grid of 4x4 luma blocks [rows, cols] unless said otherwise."""

    poc: int
    shown: bool  # whether a decoder outputs the picture
    slice_type: np.ndarray  # 0 B, 1 P, 2 I
    log2_cu_size: np.ndarray
    mode: np.ndarray  # SKIP, INTER or INTRA (PCM is INTRA)
    qp: np.ndarray  # QpY
    mv: np.ndarray  # [rows, cols, 2 lists, (x, y)], quarter pixels; 0 where unused
    ref_poc: np.ndarray  # [rows, cols, 2]; 0 where unused
    used: np.ndarray  # [rows, cols, 2], bool: predFlagLX
    residual: np.ndarray  # [height, width] int32, pixel domain; 0 in PCM blocks
    pcm: np.ndarray  # bool
    bypass: np.ndarray  # bool: cu_transquant_bypass_flag
    bits: np.ndarray  # float: the bits of coding_unit(), shared evenly by its blocks; split flags and SAO are in none


class Motion(NamedTuple):
    """Motion of a prediction block: per list, whether it is used, the vector and the reference index."""

    used: tuple[bool, bool]
    mv: tuple[tuple[int, int], tuple[int, int]]
    ref: tuple[int, int]


class Reference(NamedTuple):
    """An entry of a reference list."""

    picture: "Picture"
    long_term: bool

    @property
    def poc(self) -> int:
        return self.picture.poc


class Picture:
    """Samples and coding decisions of the picture being coded; afterwards a reference of the next ones."""

    def __init__(self, poc: int, width: int, height: int, output: bool = True) -> None:
        rows, cols = height // 4, width // 4
        self.poc, self.width, self.height, self.output = poc, width, height, output
        self.samples = np.zeros((height, width), np.int64)
        self.residual = np.zeros((height, width), np.int32)
        self.coded = np.zeros((rows, cols), bool)
        self.slice = np.full((rows, cols), -1, np.int32)  # SliceAddrRs
        self.tile = np.zeros((rows, cols), np.int32)
        self.slice_type = np.zeros((rows, cols), np.uint8)
        self.log2_cu_size = np.zeros((rows, cols), np.uint8)
        self.depth = np.zeros((rows, cols), np.uint8)
        self.mode = np.full((rows, cols), INTRA, np.uint8)
        self.pcm = np.zeros((rows, cols), bool)
        self.bypass = np.zeros((rows, cols), bool)
        self.qp = np.zeros((rows, cols), np.int8)
        self.bits = np.zeros((rows, cols))
        self.intra_mode = np.ones((rows, cols), np.uint8)
        self.motion = np.full((rows, cols), None, object)
        self.lists: dict[int, tuple[list[Reference], list[Reference]]] = {}  # by SliceAddrRs

    def available(self, x: int, y: int, slice_address: int, tile: int) -> bool:
        """Clause 6.4.1 for a place that precedes the current one in coding order exactly when it is coded already."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            return False
        row, col = y >> 2, x >> 2
        return bool(self.coded[row, col]) and self.slice[row, col] == slice_address and self.tile[row, col] == tile

    def reference(self, x: int, y: int, lists: int, index: int) -> Reference:
        """The picture that the block at (x, y) refers to, as its own slice's lists have it."""
        return self.lists[int(self.slice[y >> 2, x >> 2])][lists][index]

    def truth(self, shown: bool) -> Truth:
        rows, cols = self.coded.shape
        mv = np.zeros((rows, cols, 2, 2), np.int16)
        ref_poc = np.zeros((rows, cols, 2), np.int32)
        used = np.zeros((rows, cols, 2), bool)
        for row in range(rows):
            for col in range(cols):
                motion = self.motion[row, col]
                for side in range(2):
                    if motion is not None and motion.used[side]:
                        used[row, col, side] = True
                        mv[row, col, side] = motion.mv[side]
                        ref_poc[row, col, side] = self.reference(col * 4, row * 4, side, motion.ref[side]).poc
        return Truth(
            self.poc, shown, self.slice_type, self.log2_cu_size, self.mode, self.qp, mv, ref_poc, used, self.residual,
            self.pcm, self.bypass, self.bits,
        )  # fmt: skip
