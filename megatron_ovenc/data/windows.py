"""Which part of a picture a sample sees, at which size: seeded geometry, apart from the library that decodes.

Boxes are (left, top, right, bottom) in pixels of the picture as stored, turned upright.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

AREA = (0.7, 1.0)
"""Share of the picture's area that a random crop keeps (uniform), as far as its aspect fits into the picture."""
ASPECT = (0.8, 1.25)
"""Width over height of a random crop (log-uniform)."""

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a picture, and what becomes of it."""

    box: Box
    """The part that is seen."""
    height: int
    """Of the result, pixels."""
    width: int
    """Of the result, pixels."""
    flip: bool
    """Whether left and right are exchanged."""


Framing: TypeAlias = Callable[[int, int], Window]
"""The window of a picture of (width, height) pixels."""


def square(width: int, height: int, *, size: int, rng: np.random.Generator | None) -> Window:
    """A square of `size` pixels: a random-resized crop and flip, or the centre of the short side without `rng`."""
    if rng is None:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return Window((left, top, left + side, top + side), size, size, False)
    area = width * height * rng.uniform(*AREA)
    aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    # A crop that would stick out shrinks until it fits.
    wide, high = math.sqrt(area * aspect), math.sqrt(area / aspect)
    fit = min(1.0, width / wide, height / high)
    return Window(_place(width, height, wide * fit, high * fit, rng), size, size, _coin(rng))


def native(width: int, height: int, *, tokens: int, patch_size: int, rng: np.random.Generator | None) -> Window:
    """At most `tokens` patches in the picture's own aspect, never larger than the picture but for rounding to a patch.

    Without `rng` all of the picture is seen, else a random crop of the same aspect, flipped in half of the cases.
    """
    if rng is None:
        box, flip = (0.0, 0.0, float(width), float(height)), False
    else:
        share = math.sqrt(rng.uniform(*AREA))
        box, flip = _place(width, height, width * share, height * share, rng), _coin(rng)
    rows, cols = grid_within(box[3] - box[1], box[2] - box[0], tokens=tokens, patch_size=patch_size)
    return Window(box, rows * patch_size, cols * patch_size, flip)


def grid_within(height: float, width: float, *, tokens: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches for a picture of height x width pixels: at least 1 x 1, at most `tokens` in all.

    The picture is scaled down to the budget if it exceeds it. Of the two whole numbers about the exact short side, that is
    taken with which the grid comes closest to the picture's aspect.
    """
    scale = min(1.0, math.sqrt(tokens * patch_size**2 / (width * height))) / patch_size
    exact_short, exact_long = min(width, height) * scale, max(width, height) * scale
    grids = []
    for rounded in (math.floor(exact_short), math.ceil(exact_short)):
        short = max(1, min(rounded, math.isqrt(tokens)))
        long = round(exact_long * min(1.0, short / exact_short))
        grids.append((short, max(1, min(long, tokens // short))))
    aspect = exact_long / exact_short
    short, long = min(grids, key=lambda grid: (abs(math.log(grid[1] / grid[0] / aspect)), -grid[0]))
    return (short, long) if height <= width else (long, short)


def _place(width: int, height: int, wide: float, high: float, rng: np.random.Generator) -> Box:
    """Put a crop of wide x high pixels anywhere into the picture."""
    wide, high = min(wide, width), min(high, height)
    left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
    return left, top, min(left + wide, width), min(top + high, height)


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)
