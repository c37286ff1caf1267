"""From signals to saliency: how much of what is new in a frame lies in each patch.

Per frame and cell, after subtracting the camera's motion:

1. motion energy    m = |motion - camera|, or its variance in a small window (`inconsistency`)
2. residual energy  r = mean |luma residual|
3. bit energy       c = bits, their square root or logarithm
4. normalised       a = clip(m / max(P(m), floor), 0, 1), and so on: P is a percentile over the frame or over the clip
5. fused            e = (w_m a + w_r b + w_c c) / (w_m + w_r + w_c), over the signals that the clip has
6. centre prior     e = min(1, e (1 + s G)), G a Gaussian around the picture's middle
7. pooled           the mean of e over the patch, weighted by the area each cell shares with it

Nothing depends on the picture's size in pixels but the floors, and the window of `inconsistency`, which is in cells.
I frames have saliency 0: what to do with them is the selection's business.

`REFERENCE` is the reference implementation's energies: plain mean of motion and residual, 95th percentile per frame, no
camera model. It takes the percentile of the residual over pixels where this takes it over cells, and sums a patch's
pixels after resizing the picture where this takes the mean over the same area without resizing anything. `DEFAULT` is what
did best in the benchmark of rendered scenes (benchmarks/codec.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from codec.camera import Camera, compensate
from codec.types import FrameSignals

Normalisation: TypeAlias = Literal["frame", "clip"]
BitScale: TypeAlias = Literal["linear", "sqrt", "log"]
Energy: TypeAlias = npt.NDArray[np.float32]
"""[rows, cols] of cells"""

_RESIDUAL_FLOOR = 1.0
"""Grey levels: less residual than this is coding noise, and is not blown up to full scale."""
_BIT_FLOOR = 1e-6
_CENTRE_SIGMA = 0.35
"""Of the centre prior's Gaussian, in shorter sides of the picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaliencyConfig:
    """How signals become saliency. The defaults are those that the benchmark chose.

    Raises:
        ValueError: a value outside its range.
    """

    camera: Camera = "affine"
    """Camera model whose motion is subtracted."""
    percentile: float = 99.0
    """Percentile of energies that becomes 1, in (0, 100]."""
    normalisation: Normalisation = "frame"
    """What the percentile is taken over: each frame (all get their share), or all frames that are not intra (some get more)."""
    motion_weight: float = 1.0
    """Weight of motion in the mean, >= 0."""
    residual_weight: float = 0.5
    """Weight of the residual in the mean, >= 0."""
    bits_weight: float = 0.25
    """Weight of bits in the mean, >= 0; no weight in clips whose reader cannot tell them. Not all three weights 0."""
    bits_scale: BitScale = "linear"
    """What becomes of a cell's bits b: b, sqrt(b) or log(1 + b)."""
    motion_floor: float = 0.25
    """Pixels a frame, > 0: less motion than this at the percentile is not blown up to full scale."""
    inconsistency: int = 0
    """0: motion counts by its speed. An odd number from 3: by the variance of speed in windows of so many cells a side."""
    centre_prior: float = 0.0
    """Strength s of the centre prior, >= 0."""

    def __post_init__(self) -> None:
        for name, kind in (("camera", Camera), ("normalisation", Normalisation), ("bits_scale", BitScale)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: choose {', '.join(get_args(kind))}")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile} must be above 0 and at most 100")
        weights = (self.motion_weight, self.residual_weight, self.bits_weight)
        if not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
            raise ValueError(
                f"motion_weight={self.motion_weight}, residual_weight={self.residual_weight} and bits_weight={self.bits_weight} "
                "must not be negative, nor all 0"
            )
        if not 0 < self.motion_floor < float("inf"):
            raise ValueError(f"motion_floor={self.motion_floor} must be above 0")
        if self.inconsistency != 0 and (self.inconsistency < 3 or self.inconsistency % 2 == 0):
            raise ValueError(f"inconsistency={self.inconsistency} must be 0 or an odd number from 3")
        if not 0 <= self.centre_prior < float("inf"):
            raise ValueError(f"centre_prior={self.centre_prior} must not be negative")


DEFAULT = SaliencyConfig()
REFERENCE = SaliencyConfig(
    camera="none",
    percentile=95.0,
    normalisation="frame",
    motion_weight=1.0,
    residual_weight=1.0,
    bits_weight=0.0,
    motion_floor=1e-6,
    inconsistency=0,
    centre_prior=0.0,
)
"""The reference implementation's energies."""
PRESETS = {"default": DEFAULT, "reference": REFERENCE}


def saliency(
    signals: Iterable[FrameSignals], grid: tuple[int, int], *, config: SaliencyConfig = DEFAULT
) -> npt.NDArray[np.float32]:
    """Saliency of every patch of every frame.

    Args:
        signals: one per frame of the sample, as from `codec.signals` or `codec.sample`.
        grid: (rows, cols) of patches that the whole picture is divided into, whatever its size.
        config: what to weigh.

    Returns:
        float32 [T, rows, cols] in [0, 1]; 0 in I frames, unless all frames are (an intra-only codec marks nothing by them).

    Raises:
        ValueError: an empty grid, no signals, or weight on bits alone in a clip whose reader cannot tell them.
    """
    if min(grid) < 1:
        raise ValueError(f"grid={grid} must have at least one row and one column of patches")
    frames = list(signals)
    if not frames:
        raise ValueError("saliency needs the signals of at least one frame; got none")
    predicted = [t for t, frame in enumerate(frames) if frame.type != "I"] or list(range(len(frames)))
    fused = _fused([frames[t] for t in predicted], config)
    patches = np.zeros((len(frames), *grid), np.float32)
    for t, cells in zip(predicted, fused, strict=True):
        frame = frames[t]
        if config.centre_prior:
            cells = (cells * (1 + config.centre_prior * _centre(frame.height, frame.width, frame.block_size))).clip(
                0, 1
            )
        down = _overlap(frame.height, frame.block_size, grid[0])
        across = _overlap(frame.width, frame.block_size, grid[1])
        patches[t] = (down @ cells @ across.T).clip(0, 1)
    return patches


def _fused(frames: list[FrameSignals], config: SaliencyConfig) -> list[Energy]:
    """The weighted mean of the normalised energies of each frame."""
    signals: list[tuple[float, list[Energy]]] = []
    if config.motion_weight:
        energies = [_motion_energy(frame, config) for frame in frames]
        floor = config.motion_floor**2 if config.inconsistency else config.motion_floor
        signals.append((config.motion_weight, _normalised(energies, config, floor)))
    if config.residual_weight:
        energies = [frame.residual for frame in frames]
        signals.append((config.residual_weight, _normalised(energies, config, _RESIDUAL_FLOOR)))
    bits = [frame.bits for frame in frames if frame.bits is not None]
    if config.bits_weight and len(bits) == len(frames):
        energies = [_bit_energy(field, config.bits_scale) for field in bits]
        signals.append((config.bits_weight, _normalised(energies, config, _BIT_FLOOR)))
    if not signals:
        raise ValueError(
            "bits alone have a weight, but the clip's reader cannot tell them: raise motion_weight or residual_weight"
        )
    total = np.float32(sum(weight for weight, _ in signals))
    scaled = ([np.float32(weight) * energy for energy in energies] for weight, energies in signals)
    return [sum(energies[1:], energies[0]) / total for energies in zip(*scaled, strict=True)]


def _motion_energy(frame: FrameSignals, config: SaliencyConfig) -> Energy:
    motion = compensate(frame.motion, config.camera)
    # Faster than np.linalg.norm over the last axis.
    speed = np.hypot(motion[..., 0], motion[..., 1])
    return _local_variance(speed, config.inconsistency) if config.inconsistency else speed


def _local_variance(energy: Energy, window: int) -> Energy:
    """E[m^2] - E[m]^2 over window x window cells around each cell; beyond the picture its edge repeats."""
    mean, square = (_box_mean(field, window) for field in (energy.astype(np.float64), energy.astype(np.float64) ** 2))
    return (square - mean**2).clip(0, None).astype(np.float32)


def _box_mean(field: np.ndarray, window: int) -> np.ndarray:
    reach = window // 2
    sums = np.pad(np.pad(field, reach, mode="edge"), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    total = sums[window:, window:] - sums[:-window, window:] - sums[window:, :-window] + sums[:-window, :-window]
    return total / window**2


def _bit_energy(bits: Energy, scale: BitScale) -> Energy:
    match scale:
        case "linear":
            return bits
        case "sqrt":
            return np.sqrt(bits)
        case "log":
            return np.log1p(bits)


def _normalised(energies: list[Energy], config: SaliencyConfig, floor: float) -> list[Energy]:
    """Each energy divided by its percentile, or by that of all of them, and cut at 1."""
    if config.normalisation == "clip":
        scales = [max(float(np.percentile(np.stack(energies), config.percentile)), floor)] * len(energies)
    else:
        scales = [max(float(np.percentile(energy, config.percentile)), floor) for energy in energies]
    return [(energy / np.float32(scale)).clip(0, 1) for energy, scale in zip(energies, scales, strict=True)]


@cache
def _centre(height: int, width: int, block_size: int) -> Energy:
    """G [rows, cols]: 1 in the middle of the picture, falling off by the distance in shorter sides."""
    y, x = ((np.arange(-(-length // block_size)) + 0.5) * block_size - length / 2 for length in (height, width))
    sigma = _CENTRE_SIGMA * min(height, width)
    return np.exp(-(y[:, None] ** 2 + x**2) / (2 * sigma**2)).astype(np.float32)


def patch_grid(height: int, width: int, patches: int = 256) -> tuple[int, int]:
    """The (rows, cols) nearest to square patches at the picture's own aspect, with about as many patches as asked, no more.

    Raises:
        ValueError: a size or number below 1.
    """
    if min(height, width, patches) < 1:
        raise ValueError(f"patch_grid needs positive sizes; got {height=}, {width=}, {patches=}")
    rows = min(max(1, round((patches * height / width) ** 0.5)), patches)
    return rows, min(max(1, round(rows * width / height)), patches // rows)


@cache
def _overlap(length: int, block_size: int, patches: int) -> npt.NDArray[np.float32]:
    """[patches, cells]: the share of each patch's extent that each cell covers, along one axis of `length` pixels."""
    cells = -(-length // block_size)
    cell_edges = np.minimum(np.arange(cells + 1) * block_size, length)
    return shares(cell_edges, np.arange(patches + 1) * (length / patches))


def shares(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """[targets, sources]: the share of each target interval that each source interval covers; both by their ascending edges."""
    ends = np.minimum(target[1:, None], source[1:])
    starts = np.maximum(target[:-1, None], source[:-1])
    return ((ends - starts).clip(0) / np.diff(target)[:, None]).astype(np.float32)
