"""What a sidecar says about a crop, a mirror image, another grid or other frames of its clip, without the bitstream.

view = codec.derive(sidecar, (16, 16), crop=codec.Crop(top=0, left=140, height=360, width=360), flip=True, frames=jittered)
positions = codec.select(view.saliency, 2048, "keep", frame_types=view.frame_types)
# t of a position names frame view.frame_indices[t] of the clip: decode those, crop, flip and resize them alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codec.saliency import shares
from codec.sidecar import Sidecar


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """A part of the picture, in pixels of the clip."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Derived:
    """Ready for `codec.select`."""

    saliency: npt.NDArray[np.uint8]
    """[T, rows, cols]"""
    frame_indices: npt.NDArray[np.int32]
    """[T]: the frame of the clip, in display order, that each t stands for."""
    frame_types: str
    """I, P or B for each of the T frames."""


def derive(
    sidecar: Sidecar,
    grid: tuple[int, int],
    *,
    crop: Crop | None = None,
    flip: bool = False,
    frames: Sequence[int] | npt.NDArray[np.integer] | None = None,
) -> Derived:
    """Saliency of a view of the clip.

    A patch gets the mean of the saliency it covers, by area. A frame that the sidecar does not describe itself answers, as in
    `codec.sample`, for the time since the frame before it in `frames`: it gets the mean of the maps whose times lie in there,
    by their share of it, I frames' left out. An I frame has none.

    Args:
        sidecar: of the clip.
        grid: (rows, cols) of patches that the crop is divided into.
        crop: the part of the picture that is shown; by default all of it.
        flip: whether it is shown mirrored, left to right.
        frames: strictly increasing display indices of the frames that are shown; by default the sidecar's own.

    Raises:
        ValueError: an empty grid, a crop that is empty or leaves the picture, frames out of order or beyond the clip's end.
    """
    crop = crop or Crop(top=0, left=0, height=sidecar.height, width=sidecar.width)
    _check(sidecar, grid, crop)
    maps, indices = sidecar.saliency.astype(np.float32), sidecar.frame_indices
    if frames is not None:
        indices = _checked(frames, sidecar)
        maps = _at_frames(sidecar, maps, indices)
    _, rows, cols = maps.shape
    down = shares(np.linspace(0, sidecar.height, rows + 1), crop.top + np.linspace(0, crop.height, grid[0] + 1))
    across = shares(np.linspace(0, sidecar.width, cols + 1), crop.left + np.linspace(0, crop.width, grid[1] + 1))
    patches = down @ maps @ across.T
    return Derived(
        saliency=np.rint(patches[:, :, ::-1] if flip else patches).clip(0, 255).astype(np.uint8),
        frame_indices=indices,
        frame_types="".join(sidecar.clip_types[index] for index in indices),
    )


def _at_frames(
    sidecar: Sidecar, maps: npt.NDArray[np.float32], indices: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    """Maps [len(indices), rows, cols] of other frames than the sidecar's own."""
    # Map t tells of the time (frame t - 1, frame t]; of the first frame, and of none before it, map 0 tells.
    weights = shares(
        np.concatenate([[-1], sidecar.frame_indices]).astype(np.float64),
        np.concatenate([[-1], indices]).astype(np.float64),
    )
    described = np.array([kind != "I" for kind in sidecar.frame_types])
    if described.any():
        weights = weights * described
    total = weights.sum(axis=1, keepdims=True)
    mixed = np.einsum("ij,jrc->irc", weights / np.where(total > 0, total, 1), maps)
    intra = np.array([sidecar.clip_types[index] == "I" for index in indices])
    if described.any():
        mixed[intra] = 0
    return mixed


def _checked(frames: Sequence[int] | npt.NDArray[np.integer], sidecar: Sidecar) -> npt.NDArray[np.int32]:
    indices = np.asarray(frames)
    if indices.ndim != 1 or not len(indices) or indices[0] < 0 or (np.diff(indices) <= 0).any():
        raise ValueError(f"frames must be non-negative and strictly increasing, and at least one; got {list(frames)}")
    if indices[-1] > sidecar.frame_indices[-1]:
        raise ValueError(
            f"frame {indices[-1]} was asked for, but the sidecar ends with frame {sidecar.frame_indices[-1]}"
        )
    return indices.astype(np.int32)


def _check(sidecar: Sidecar, grid: tuple[int, int], crop: Crop) -> None:
    if min(grid) < 1:
        raise ValueError(f"grid={grid} must have at least one row and one column of patches")
    inside = crop.top >= 0 and crop.left >= 0 and crop.height >= 1 and crop.width >= 1
    if not (inside and crop.top + crop.height <= sidecar.height and crop.left + crop.width <= sidecar.width):
        raise ValueError(f"{crop} must not be empty nor leave the picture of {sidecar.width}x{sidecar.height} pixels")
