"""Selection: which patches of a clip are shown to the model, exactly as many as the budget says.

Policies say what becomes of I frames, which have no saliency of their own:

- ``keep``: every I frame is taken whole, in time order, the rest of the budget goes to the most salient patches. If
  the budget cannot hold all I frames, as many as it holds are taken, evenly spaced among them, the first always included.
- ``anchor``: the first frame is taken whole, if the budget holds it; all other patches compete.
- ``free``: all patches compete.

Patches compete one by one or in blocks (of 2x2, say, for a model that merges them): then the mean of a block counts, and its
patches are taken together; only the last block of a budget may be cut. Each frame may be given a floor and a cap.

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
    block: int = 1,
    floor: int = 0,
    cap: int | None = None,
) -> npt.NDArray[np.int32]:
    """Choose `budget` patches.

    Args:
        saliency: [T, rows, cols], finite and not negative; integers are fine.
        budget: K, the number of patches to choose.
        policy: what becomes of I frames.
        frame_types: I, P or B for each of the T frames; read, and needed, by `keep` alone.
        block: side of the blocks, in patches, that compete as one; 1 for single patches. A floor or cap, or a frame's edge, can cut
            a block unless block divides them.
        floor: patches that every frame gets at least, its best ones. `keep` takes no frame whole at the cost of another's floor.
        cap: patches that a frame gets at most, unless it is taken whole.

    Returns:
        int32 [K, 3]: distinct (t, row, col), in ascending order.

    Raises:
        ValueError: a budget below 1 or above T * rows * cols, saliency that is not as above, an unknown policy, frame
            types missing or not one per frame, a block below 1, or a floor or cap that the budget cannot keep.
    """
    _check(saliency, budget, policy, frame_types)
    frames, rows, cols = saliency.shape
    patches = rows * cols
    cap = patches if cap is None else min(cap, patches)
    _check_shares(frames, budget, block, floor, cap)
    # The most whole frames beside which all other frames can have their floor.
    affordable = (budget - frames * floor) // (patches - floor) if floor < patches else frames
    whole = _whole_frames(policy, frames, affordable, frame_types)
    rest = budget - len(whole) * patches
    if rest > (frames - len(whole)) * cap:
        raise ValueError(
            f"cap={cap} leaves {frames - len(whole)} frames no room for {rest} patches: raise it, or lower budget={budget}"
        )
    score, group = _blocks(saliency, block)
    chosen = np.zeros((frames, patches), np.bool_)
    chosen[whole] = True
    left_over = max(0, rest - np.count_nonzero(score[~chosen]))
    late = np.where(score > 0, 0, _even_first(frames, -(-left_over // patches), whole)[:, None])
    order = _order(score, group, late, chosen, floor, cap)
    chosen.reshape(-1)[order[:rest]] = True
    return np.argwhere(chosen.reshape(frames, rows, cols)).astype(np.int32)


def visible_indices(positions: npt.NDArray[np.int32], grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Linear index t * rows * cols + row * cols + col [K] of each position [K, 3]."""
    rows, cols = grid
    t, row, col = positions.astype(np.int64).T
    return (t * rows + row) * cols + col


def _order(
    score: npt.NDArray[np.float32],
    group: npt.NDArray[np.int64],
    late: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.bool_],
    floor: int,
    cap: int,
) -> npt.NDArray[np.int64]:
    """Linear indices of all patches, the first to take first; arrays are [T, patches], group is [patches]."""
    frames, patches = score.shape
    if floor == 0 and cap >= patches and not group.any():
        # The same order, where equals stay as they are: in time, then raster order.
        return np.lexsort((late.ravel(), -score.ravel(), chosen.ravel()))
    # A frame's own order, its best patch first, says which of them floor and cap let through.
    place = np.arange(patches)
    rank = np.empty((frames, patches), np.int64)
    for t in range(frames):
        rank[t, np.lexsort((place, group, -score[t]))] = place
    frame = np.arange(frames)[:, None]
    # The last key counts most; what is already chosen or above the cap goes to the very end.
    keys = (place, group, frame, late, -score, rank >= floor, chosen | (rank >= cap))
    return np.lexsort([np.broadcast_to(key, score.shape).ravel() for key in keys])


def _blocks(saliency: np.ndarray, block: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """What each patch competes with [T, rows * cols], its block's mean, and the number of its block [rows * cols], raster order."""
    frames, rows, cols = saliency.shape
    # Integers are exact in float32 up to 2^24; means are taken in float64, so that equal blocks stay equal.
    score = saliency.reshape(frames, rows * cols).astype(np.float32)
    if block == 1:
        return score, np.zeros(rows * cols, np.int64)
    group = (np.arange(rows)[:, None] // block * -(-cols // block) + np.arange(cols) // block).ravel()
    sizes = np.bincount(group)
    means = np.stack([np.bincount(group, weights=row) / sizes for row in score])
    return means[:, group].astype(np.float32), group


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


def _check_shares(frames: int, budget: int, block: int, floor: int, cap: int) -> None:
    if block < 1:
        raise ValueError(f"block={block} must be at least 1 patch a side")
    if not 0 <= floor <= cap or cap < 1:
        raise ValueError(
            f"floor={floor} and cap={cap} must be 0 <= floor <= cap, and cap at least 1 and at most a frame's patches"
        )
    if frames * floor > budget:
        raise ValueError(f"floor={floor} of {frames} frames exceeds budget={budget}: lower it, or raise the budget")


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
