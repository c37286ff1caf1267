"""Subtracting the camera's motion from a motion field, so that a pan or zoom does not make every patch salient."""

from functools import lru_cache
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
    if rows * cols < _MIN_POINTS:
        return compensate(motion, "median")
    step = -(-rows * cols // _MAX_POINTS)
    points, observed = _design(rows, cols, camera, step), motion.reshape(-1, 2)[::step].astype(np.float64)
    parameters, worst = _least_squares(points, observed), int(_KEEP * len(points)) - 1
    for _ in range(_ROUNDS - 1):
        misfit = np.square(_motion(points, parameters) - observed).sum(axis=-1)
        kept = misfit <= np.partition(misfit, worst)[worst]
        parameters = _least_squares(points[kept], observed[kept])
    fitted = _motion(_design(rows, cols, camera, 1), parameters)
    return (motion - fitted.reshape(motion.shape)).astype(np.float32)


def _least_squares(design: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Parameters [k] of the best fit of design [points, 2, k] to observed [points, 2].

    By the normal equations: coordinates in [-1, 1] keep them well conditioned, and they take a fraction of the time.
    """
    flat = design.reshape(-1, design.shape[-1])
    return np.linalg.lstsq(flat.T @ flat, flat.T @ observed.ravel())[0]


def _motion(design: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """[points, 2]; as one product of matrices, which NumPy does much faster than one for each point."""
    return (design.reshape(-1, len(parameters)) @ parameters).reshape(-1, 2)


@lru_cache(maxsize=8)
def _design(rows: int, cols: int, camera: Camera, step: int) -> np.ndarray:
    """[points, 2, k] of every `step`-th cell: its motion (x, y) is linear in the k parameters."""
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, cols), indexing="ij")
    design = _similarity_design(x, y) if camera == "similarity" else _affine_design(x, y)
    return np.ascontiguousarray(design[::step])


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
