"""Subtracting the camera's motion from a motion field, so that a pan or zoom does not make every patch salient."""

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Camera: TypeAlias = Literal["none", "median", "mean", "similarity", "affine"]
"""Motion model of the camera: still; one translation (robustly or not); translation, zoom and rotation; any linear map."""

Field: TypeAlias = npt.NDArray[np.float32]
"""[rows, cols, 2]: (x, y) pixels"""

_MIN_POINTS = 64
_MAX_POINTS = 2000
_KEEP = 0.7
_ROUNDS = 4


def compensate(motion: Field, camera: Camera) -> Field:
    """The motion left when the camera's is subtracted.

    Median and mean: those of each component. Similarity and affine: least squares over all cells (at most 2000, evenly taken),
    then three times over the 70 % that fitted best; the median in a picture of fewer than 64 cells. Cells that do not move
    count: of a still camera they are most, and without them the fit would follow the objects (as the reference's does).

    Raises:
        ValueError: an unknown camera model.
    """
    match camera:
        case "none":
            return motion
        case "median":
            return (motion - np.median(motion, axis=(0, 1))).astype(np.float32, copy=False)
        case "mean":
            return (motion - np.mean(motion, axis=(0, 1))).astype(np.float32, copy=False)
        case "similarity" | "affine":
            return _subtract_fit(motion, camera)
    raise ValueError(f"camera model {camera!r} is unknown: choose none, median, mean, similarity or affine")


def _subtract_fit(motion: Field, camera: Camera) -> Field:
    rows, cols, _ = motion.shape
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, cols), indexing="ij")
    observed = motion.reshape(-1, 2)
    if len(observed) < _MIN_POINTS:
        return compensate(motion, "median")
    points = np.arange(0, len(observed), -(-len(observed) // _MAX_POINTS))
    design = _similarity_design(x, y) if camera == "similarity" else _affine_design(x, y)
    kept = points
    for fitted in range(_ROUNDS):
        parameters, *_ = np.linalg.lstsq(design[kept].reshape(2 * len(kept), -1), observed[kept].ravel())
        if fitted < _ROUNDS - 1:
            misfit = np.linalg.norm(design[points] @ parameters - observed[points], axis=-1)
            kept = points[np.argsort(misfit, kind="stable")[: int(_KEEP * len(points))]]
    return (observed - design @ parameters).reshape(motion.shape).astype(np.float32)


def _similarity_design(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[cells, 2, 4] of dx = tx + a x - b y, dy = ty + b x + a y in (tx, ty, a, b)."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    design = np.stack([np.stack([one, zero, x, -y], -1), np.stack([zero, one, y, x], -1)], -2)
    return design.reshape(-1, 2, 4)


def _affine_design(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[cells, 2, 6] of dx = p0 + p1 x + p2 y, dy = p3 + p4 x + p5 y."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    design = np.stack([np.stack([one, x, y, zero, zero, zero], -1), np.stack([zero, zero, zero, one, x, y], -1)], -2)
    return design.reshape(-1, 2, 6)
