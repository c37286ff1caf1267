from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

class Cutter:
    def __init__(
        self,
        sizes: Sequence[tuple[int, ...]],
        boxes: Sequence[tuple[float, float, float, float]],
        rows: int,
        cols: int,
        size: int,
        matrix: Sequence[float],
        /,
    ) -> None: ...
    def cut(
        self,
        planes: Sequence[npt.NDArray[np.uint8]],
        strides: Sequence[int],
        rows: npt.NDArray[np.int32],
        cols: npt.NDArray[np.int32],
        out: npt.NDArray[np.uint8],
        /,
    ) -> None: ...
