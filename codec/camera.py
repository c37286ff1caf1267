"""Subtracting the camera's motion from a motion field, so that a pan or zoom does not make every patch salient."""

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Camera: TypeAlias = Literal["none", "median", "similarity", "affine"]
"""Motion model of the camera: still; one translation; translation, zoom and rotation; any linear map."""

Field: TypeAlias = npt.NDArray[np.float32]
"""[rows, cols, 2]: (x, y) pixels"""

_MIN_POINTS = 64
_MIN_POINTS_TO_TRIM = 128
_MAX_POINTS = 5000
_KEEP = 0.7
_ROUNDS = 2
_MOVING = 1e-3


def compensate(motion: Field, camera: Camera) -> Field:
    """The motion left when the camera's is subtracted.

    Median: the median of each component. Similarity and affine: least squares over the moving cells (|x| + |y| > 1e-3
    pixels; at most 5000, evenly taken), refitted once on the 70 % that fit best; the median where fewer than 64 cells move.

    Raises:
        ValueError: an unknown camera model.
    """
    match camera:
        case "none":
            return motion
        case "median":
            return (motion - np.median(motion, axis=(0, 1))).astype(np.float32, copy=False)
        case "similarity" | "affine":
            return _subtract_fit(motion, camera)
    raise ValueError(f"camera model {camera!r} is unknown: choose none, median, similarity or affine")


def _subtract_fit(motion: Field, camera: Camera) -> Field:
    rows, cols, _ = motion.shape
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, cols), indexing="ij")
    moving = np.flatnonzero(np.abs(motion).sum(axis=-1) > _MOVING)
    if len(moving) < _MIN_POINTS:
        return compensate(motion, "median")
    points = moving[:: -(-len(moving) // _MAX_POINTS)]
    design = _similarity_design(x, y) if camera == "similarity" else _affine_design(x, y)
    observed = motion.reshape(-1, 2)
    for fitted in range(_ROUNDS):
        parameters, *_ = np.linalg.lstsq(design[points].reshape(2 * len(points), -1), observed[points].ravel())
        if fitted == _ROUNDS - 1 or len(points) < _MIN_POINTS_TO_TRIM:
            break
        misfit = np.linalg.norm(design[points] @ parameters - observed[points], axis=-1)
        keep = max(_MIN_POINTS, int(_KEEP * len(points)))
        points = points[np.argsort(misfit, kind="stable")[:keep]]
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
