"""Motion compensation of H.264 pictures, on the compiled core `codec._compensate` (native/compensate.cpp).

The interpolation is that of ITU-T H.264, 8.4.2.2.1, so a prediction equals the decoder's own wherever the vector, its
reference and an unweighted average are what the encoder used, and the place it points to lies in the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt

from codec.source import Luma
from codec.types import cell_grid, not_compiled

try:
    from codec import _compensate
except ImportError:  # a checkout that was never built
    _compensate = None  # type: ignore[assignment]

GOOD_FIT = 2.0
"""Grey levels: a block that its nearest reference predicts this well is not compared with any other."""
ADVANTAGE = 0.9
"""Share of the nearest references' misfit below which others are taken instead."""

RECORD_BYTES = 40
"""Size of FFmpeg's AVMotionVector."""


def core() -> ModuleType:
    """The compiled core.

    Raises:
        UnsupportedStream: it was not built.
    """
    if _compensate is None:
        raise not_compiled("the H.264 reader")
    return _compensate


_NO_VECTORS = np.zeros((0, RECORD_BYTES), np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A picture that vectors may lead to."""

    luma: Luma
    distance: int
    """Frames between it and the picture that is predicted, in display order; positive."""


def motion_and_residual(
    picture: Luma, past: Sequence[Reference], future: Sequence[Reference], vectors: npt.NDArray[np.uint8] | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Motion [rows, cols, 2] and residual [rows, cols] of `picture` [H, W], as `FrameSignals` has them.

    Args:
        picture: the decoded picture.
        past: at least one reference before it, likeliest first.
        future: references after it, likeliest first; vectors into the future are ignored where there is none.
        vectors: FFmpeg's AVMotionVector records [records, RECORD_BYTES], or None if it exported none.
    """
    rows, cols = cell_grid(*picture.shape)
    motion = np.empty((rows, cols, 2), np.float32)
    residual = np.empty((rows, cols), np.float32)
    core().describe(
        picture,
        [reference.luma for reference in past],
        [reference.distance for reference in past],
        [reference.luma for reference in future],
        [reference.distance for reference in future],
        _NO_VECTORS if vectors is None else vectors,
        GOOD_FIT,
        ADVANTAGE,
        motion,
        residual,
    )
    return motion, residual
