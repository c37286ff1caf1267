"""Mapping the frames of a clip to the T virtual frames of a sample, so that positions name frames really decoded.

A clip of n >= T frames is sampled evenly at T of them. A shorter clip uses all of its frames, t = 0..n-1: none is repeated.
There is no jitter: who wants other frames gives other indices, and derives pixels and positions from the same ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from codec.types import FrameSignals


def frame_indices(frames: int, virtual_frames: int) -> npt.NDArray[np.int64]:
    """Display indices [min(frames, virtual_frames)] of the frames that stand for t = 0, 1, ...; strictly increasing.

    See `evenly_spaced`: the first and the last frame are always among them (of one virtual frame, the first).

    Raises:
        ValueError: either number is below 1.
    """
    if frames < 1 or virtual_frames < 1:
        raise ValueError(f"frame_indices needs at least one frame on either side; got {frames=}, {virtual_frames=}")
    return evenly_spaced(frames, min(frames, virtual_frames))


def evenly_spaced(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """`wanted` <= `count` of the numbers 0..count-1, ascending: the first, the last, and between them i * (count - 1) /
    (wanted - 1), rounded half up in integers."""
    steps = max(wanted - 1, 1)
    return (2 * np.arange(wanted) * (count - 1) + steps) // (2 * steps)


def sample(signals: Iterable[FrameSignals], indices: Sequence[int] | npt.NDArray[np.int64]) -> list[FrameSignals]:
    """Keep the frames at `indices`, each answering for the frames skipped since the one kept before it.

    Motion, residual, bits and bytes are summed over the skipped frames and the kept one, cell by cell: the motion is then the
    displacement since the previous kept frame (there and back cancels, as on the screen), the residual all that
    motion did not explain on the way. A kept I frame answers for nothing: its fields stay zero if its reader left them so, and
    what happened before it is dropped, because the whole frame is new. With no frame skipped, nothing changes.

    Args:
        signals: frames 0, 1, 2, ... in display order, as `codec.signals` yields them; read only up to the last index.
        indices: strictly increasing display indices, as from `frame_indices`.

    Raises:
        ValueError: indices not strictly increasing, or beyond the end of the clip.
    """
    wanted = [int(index) for index in indices]
    if any(after <= before for before, after in zip([-1, *wanted], wanted, strict=False)):
        raise ValueError(f"frame indices must be non-negative and strictly increasing; got {wanted}")
    kept: list[FrameSignals] = []
    skipped: FrameSignals | None = None
    for frame in signals if wanted else ():
        total = frame if skipped is None or frame.type == "I" else _add(skipped, frame)
        skipped = total
        if frame.index == wanted[len(kept)]:
            kept.append(total)
            skipped = None
            if len(kept) == len(wanted):
                return kept
    if wanted:
        raise ValueError(
            f"frame {wanted[len(kept)]} was asked for, but the clip ends before it: take the indices from "
            f"frame_indices(frame_count(clip), ...)"
        )
    return kept


def _add(before: FrameSignals, frame: FrameSignals) -> FrameSignals:
    """`frame`, with the signals of the skipped frames before it added to its own."""
    return replace(
        frame,
        motion=before.motion + frame.motion,
        residual=before.residual + frame.residual,
        bits=None if before.bits is None or frame.bits is None else before.bits + frame.bits,
        frame_bytes=before.frame_bytes + frame.frame_bytes,
    )
