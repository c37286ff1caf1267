"""Five ways to spend a budget of patches on a clip, all from the same decoded pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import codec
from benchmarks.motion.scenes import FRAMES
from eval.views import segment_centres
from megatron_ovenc.data.video import frame_pixels
from megatron_ovenc.model.patch_embedding import CLIP_STD

PATCH_SIZE = 8
"""Of the pictures that the model sees, pixels; they have half the clip's side."""
GRID = (4, 4)
SHOWN_SIDE = PATCH_SIZE * GRID[0]
PATCHES = GRID[0] * GRID[1]
"""Of a frame."""
BUDGETS = (2 * PATCHES, 4 * PATCHES, 8 * PATCHES, 16 * PATCHES)
"""Patches of a clip that are shown: 3.1, 6.25, 12.5 and 25 %."""
STATIC = 0.1
"""Mean absolute difference to the frame before, in normalised pixels, up to which run-length tokenisation takes a patch as
static (the threshold of arXiv 2411.05222's released code)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clip:
    """A clip as it was decoded."""

    pixels: np.ndarray
    """uint8 [FRAMES, SHOWN_SIDE, SHOWN_SIDE, 3]."""
    sidecar: codec.Sidecar
    """What the bitstream says."""
    rng: np.random.Generator
    """For the selectors that draw."""

    @classmethod
    def read(cls, content: bytes, rng: np.random.Generator) -> Clip:
        """Decode a file and read its bitstream."""
        pixels = frame_pixels(content, np.arange(FRAMES), SHOWN_SIDE)
        return cls(pixels=pixels, sidecar=codec.analyse(content, GRID), rng=rng)

    def changes(self, scale: np.ndarray) -> np.ndarray:
        """How much each patch differs from the one before it at its place: float32 [FRAMES, *GRID], 0 in the first frame.

        Args:
            scale: [3], grey levels of each channel that count as 1 in the mean absolute difference.
        """
        differences = abs(np.diff(self.pixels.astype(np.float32), axis=0, prepend=self.pixels[:1])) / scale
        rows, cols = GRID
        blocks = differences.reshape(FRAMES, rows, PATCH_SIZE, cols, PATCH_SIZE, 3)
        return blocks.mean(axis=(2, 4, 5), dtype=np.float32)

    def not_static(self) -> np.ndarray:
        """Patches that run-length tokenisation keeps: bool [FRAMES, *GRID]."""
        kept = self.changes(255 * np.array(CLIP_STD)) > STATIC
        kept[0] = True
        return kept


def codec_patches(clip: Clip, budget: int) -> np.ndarray:
    """This project's default: I frames whole, then the most salient patches."""
    return codec.select(clip.sidecar.saliency, budget, "keep", frame_types=clip.sidecar.frame_types)


def uniform_frames(clip: Clip, budget: int) -> np.ndarray:
    """Whole frames from the middles of equal segments."""
    times = segment_centres(FRAMES, budget // PATCHES)
    return np.argwhere(np.isin(np.arange(FRAMES), times)[:, None, None] & np.ones(GRID, np.bool_))


def pixel_difference(clip: Clip, budget: int) -> np.ndarray:
    """I frames whole as with the codec, then the patches that differ most from the frame before."""
    return codec.select(clip.changes(np.ones(3)), budget, "keep", frame_types=clip.sidecar.frame_types)


def run_length(clip: Clip, budget: int) -> np.ndarray:
    """Patches of the first frame and those that are not static; cut to the budget, or filled up to it, at random."""
    kept = clip.not_static().ravel()
    return _first(np.lexsort((clip.rng.random(kept.size), ~kept)), budget)


def random_patches(clip: Clip, budget: int) -> np.ndarray:
    """Any patches of any frames."""
    return _first(clip.rng.permutation(FRAMES * PATCHES), budget)


SELECTORS: dict[str, Callable[[Clip, int], np.ndarray]] = {
    "codec": codec_patches,
    "uniform frames": uniform_frames,
    "pixel difference": pixel_difference,
    "run-length (RLT)": run_length,
    "random patches": random_patches,
}
"""What is compared: int positions [budget, 3] of a clip, (t, row, col) in ascending order."""


def _first(order: np.ndarray, budget: int) -> np.ndarray:
    """Positions of the first `budget` of patches in an order of linear indices."""
    return np.stack(np.unravel_index(np.sort(order[:budget]), (FRAMES, *GRID)), axis=1)
