from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def describe(
    picture: npt.NDArray[np.uint8],
    past: Sequence[npt.NDArray[np.uint8]],
    past_distances: Sequence[int],
    future: Sequence[npt.NDArray[np.uint8]],
    future_distances: Sequence[int],
    records: npt.NDArray[np.uint8],
    good_fit: float,
    advantage: float,
    motion: npt.NDArray[np.float32],
    residual: npt.NDArray[np.float32],
) -> None: ...
