"""From signals to saliency: how much of what is new in a frame lies in each patch.

Per frame and cell:

1. motion energy  m = |motion - camera|,       a = clip(m / max(P95(m), 1e-6), 0, 1)
2. residual energy r = mean |luma residual|,   b = clip(r / max(P95(r), 1),    0, 1)
3. fused          e = (w_m a + w_r b) / (w_m + w_r)
4. pooled         the mean of e over the patch, weighted by the area each cell shares with it.

The defaults are the reference's energies (plain mean of both, 95th percentile per frame, no camera model). It takes the
percentile of the residual over pixels where this takes it over cells, and sums a patch's pixels after resizing the
picture where this takes the mean over the same area without resizing anything. I frames have saliency 0: what to do with them
is the selection's business.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from codec.camera import Camera, compensate
from codec.types import FrameSignals

_MOTION_FLOOR = 1e-6
_RESIDUAL_FLOOR = 1.0
"""Grey levels: less residual than this is coding noise, and is not blown up to full scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaliencyConfig:
    """How signals become saliency. The defaults are the reference's.

    Raises:
        ValueError: a value outside its range.
    """

    camera: Camera = "none"
    """Camera model whose motion is subtracted."""
    percentile: float = 95.0
    """Percentile of a frame's energies that becomes 1, in (0, 100]."""
    motion_weight: float = 1.0
    """Weight of motion in the mean, >= 0."""
    residual_weight: float = 1.0
    """Weight of the residual in the mean, >= 0; not both weights 0."""

    def __post_init__(self) -> None:
        if self.camera not in ("none", "median", "similarity", "affine"):
            raise ValueError(f"camera={self.camera!r} is unknown: choose none, median, similarity or affine")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile} must be above 0 and at most 100")
        if not (
            self.motion_weight >= 0 and self.residual_weight >= 0 and self.motion_weight + self.residual_weight > 0
        ):
            raise ValueError(
                f"motion_weight={self.motion_weight} and residual_weight={self.residual_weight} must not be negative, "
                "nor both 0"
            )


REFERENCE = SaliencyConfig()
"""The reference implementation's energies."""


def saliency(
    signals: Iterable[FrameSignals], grid: tuple[int, int], *, config: SaliencyConfig = REFERENCE
) -> npt.NDArray[np.float32]:
    """Saliency of every patch of every frame.

    Args:
        signals: one per frame of the sample, as from `codec.signals` or `codec.sample`.
        grid: (rows, cols) of patches that the whole picture is divided into, whatever its size.
        config: what to weigh.

    Returns:
        float32 [T, rows, cols] in [0, 1]; 0 in I frames, unless all frames are (an intra-only codec marks nothing by them).

    Raises:
        ValueError: an empty grid, or no signals.
    """
    if min(grid) < 1:
        raise ValueError(f"grid={grid} must have at least one row and one column of patches")
    frames = [(frame.type == "I", frame_saliency(frame, grid, config)) for frame in signals]
    if not frames:
        raise ValueError("saliency needs the signals of at least one frame; got none")
    stacked = np.stack([patches for _, patches in frames])
    intra = np.array([is_intra for is_intra, _ in frames])
    if not intra.all():
        stacked[intra] = 0
    return stacked


def frame_saliency(frame: FrameSignals, grid: tuple[int, int], config: SaliencyConfig) -> npt.NDArray[np.float32]:
    """Saliency [rows, cols] of one frame, of whatever type, in [0, 1]."""
    speed = np.linalg.norm(compensate(frame.motion, config.camera), axis=-1)
    motion = _normalised(speed, config.percentile, _MOTION_FLOOR)
    residual = _normalised(frame.residual, config.percentile, _RESIDUAL_FLOOR)
    total = config.motion_weight + config.residual_weight
    cells = (config.motion_weight * motion + config.residual_weight * residual) / np.float32(total)
    down = _overlap(frame.height, frame.block_size, grid[0])
    across = _overlap(frame.width, frame.block_size, grid[1])
    return (down @ cells @ across.T).astype(np.float32).clip(0, 1)


def patch_grid(height: int, width: int, patches: int = 256) -> tuple[int, int]:
    """The (rows, cols) nearest to square patches at the picture's own aspect, with about as many patches as asked, no more.

    Raises:
        ValueError: a size or number below 1.
    """
    if min(height, width, patches) < 1:
        raise ValueError(f"patch_grid needs positive sizes; got {height=}, {width=}, {patches=}")
    rows = min(max(1, round((patches * height / width) ** 0.5)), patches)
    return rows, min(max(1, round(rows * width / height)), patches // rows)


def _normalised(energy: npt.NDArray[np.float32], percentile: float, floor: float) -> npt.NDArray[np.float32]:
    scale = max(float(np.percentile(energy, percentile)), floor)
    return (energy / np.float32(scale)).clip(0, 1)


@cache
def _overlap(length: int, block_size: int, patches: int) -> npt.NDArray[np.float32]:
    """[patches, cells]: the share of each patch's extent that each cell covers, along one axis of `length` pixels."""
    cells = -(-length // block_size)
    cell_edges = np.minimum(np.arange(cells + 1) * block_size, length)
    patch_edges = np.arange(patches + 1) * (length / patches)
    ends = np.minimum(patch_edges[1:, None], cell_edges[1:])
    starts = np.maximum(patch_edges[:-1, None], cell_edges[:-1])
    return ((ends - starts).clip(0) * (patches / length)).astype(np.float32)
