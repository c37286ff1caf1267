"""Selection: which patches of a clip are shown to the model, exactly as many as the budget says.

Policies say what becomes of I frames, which have no saliency of their own:

- ``keep``: every I frame is taken whole, in time order, the rest of the budget goes to the most salient patches. If
  the budget cannot hold all I frames, as many as it holds are taken, evenly spaced among them, the first always included.
- ``anchor``: the first frame is taken whole, if the budget holds it; all other patches compete.
- ``free``: all patches compete.

Equal patches are ranked by (t, row, col). Patches of saliency 0 are taken last, and evenly in time: first those of evenly spaced
frames, as many as it takes to use up the budget. A static clip is thereby shown as evenly spaced whole frames.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from codec.sample import evenly_spaced
from codec.types import FrameType

Policy: TypeAlias = Literal["keep", "anchor", "free"]


def select(
    saliency: npt.NDArray[np.float32] | npt.NDArray[np.uint8],
    budget: int,
    policy: Policy,
    *,
    frame_types: Sequence[FrameType] | str | None = None,
) -> npt.NDArray[np.int32]:
    """Choose `budget` patches.

    Args:
        saliency: [T, rows, cols], finite and not negative; integers are fine.
        budget: K, the number of patches to choose.
        policy: what becomes of I frames.
        frame_types: I, P or B for each of the T frames; read, and needed, by `keep` alone.

    Returns:
        int32 [K, 3]: distinct (t, row, col), in ascending order.

    Raises:
        ValueError: a budget below 1 or above T * rows * cols, saliency that is not as above, an unknown policy, or frame
            types missing or not one per frame.
    """
    _check(saliency, budget, policy, frame_types)
    frames, rows, cols = saliency.shape
    patches = rows * cols
    whole = _whole_frames(policy, frames, budget // patches, frame_types)
    score = saliency.reshape(frames, patches).astype(np.float32)
    chosen = np.zeros((frames, patches), np.bool_)
    chosen[whole] = True
    rest = budget - len(whole) * patches
    left_over = max(0, rest - np.count_nonzero(score[~chosen]))
    frame_rank = _even_first(frames, -(-left_over // patches), whole)
    # lexsort's last key counts most; what is already chosen goes to the very end.
    linear = np.arange(frames * patches)
    late = np.where(score > 0, 0, frame_rank[:, None])
    order = np.lexsort((linear, late.ravel(), -score.ravel(), chosen.ravel()))
    chosen.reshape(-1)[order[:rest]] = True
    return np.argwhere(chosen.reshape(frames, rows, cols)).astype(np.int32)


def visible_indices(positions: npt.NDArray[np.int32], grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Linear index t * rows * cols + row * cols + col [K] of each position [K, 3]."""
    rows, cols = grid
    t, row, col = positions.astype(np.int64).T
    return (t * rows + row) * cols + col


def _whole_frames(
    policy: Policy, frames: int, affordable: int, frame_types: Sequence[FrameType] | str | None
) -> npt.NDArray[np.int64]:
    """Frames to take whole, at most as many as are affordable."""
    match policy:
        case "keep":
            assert frame_types is not None
            candidates = np.flatnonzero([kind == "I" for kind in frame_types])
        case "anchor":
            candidates = np.arange(1)
        case "free":
            candidates = np.arange(0)
    return candidates[evenly_spaced(len(candidates), min(len(candidates), affordable))]


def _even_first(frames: int, wanted: int, taken: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rank of each frame [T]: first `wanted` that, with those taken, are evenly spaced; then the others; each in time order."""
    candidates = np.setdiff1d(evenly_spaced(frames, min(frames, wanted + len(taken))), taken)
    late = np.ones(frames, np.int64)
    late[candidates[evenly_spaced(len(candidates), min(len(candidates), wanted))]] = 0
    rank = np.empty(frames, np.int64)
    rank[np.argsort(late, kind="stable")] = np.arange(frames)
    return rank


def _check(saliency: np.ndarray, budget: int, policy: str, frame_types: Sequence[FrameType] | str | None) -> None:
    if saliency.ndim != 3:
        raise ValueError(f"saliency must be [T, rows, cols]; got shape {saliency.shape}")
    if not np.isfinite(saliency).all() or (saliency < 0).any():
        raise ValueError("saliency must be finite and not negative; check what computed it")
    if not 1 <= budget <= saliency.size:
        frames, rows, cols = saliency.shape
        raise ValueError(
            f"budget={budget} must be between 1 and the {saliency.size} patches that {frames} frames of {rows} x {cols} have: "
            "lower the budget, or give more frames or a finer grid"
        )
    if policy not in get_args(Policy):
        raise ValueError(f"policy={policy!r} is unknown: choose keep, anchor or free")
    if policy == "keep" and (frame_types is None or len(frame_types) != len(saliency)):
        given = "none" if frame_types is None else str(len(frame_types))
        raise ValueError(f"policy 'keep' needs the type of each of the {len(saliency)} frames; frame_types has {given}")
