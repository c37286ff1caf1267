"""Adaptive groups of pictures: where to cut a clip so that its groups hold about equally much news, by packet bytes alone.

After the codec-stream tokenisation of LLaVA-OneVision-2 (arXiv 2605.25979): a group ends when the bytes of its P and B
frames reach their share of the clip's, within a shortest and a longest length, and the cut then moves to the cheapest frame nearby.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from codec.types import FrameType

_VALLEY = 2
"""Frames by which a cut may move to a cheaper frame."""


def adaptive_groups(
    frame_bytes: Sequence[int],
    frame_types: Sequence[FrameType] | str,
    groups: int,
    *,
    shortest: int = 8,
    longest: int = 64,
) -> npt.NDArray[np.int64]:
    """First frames of the groups, ascending, beginning with 0.

    Args:
        frame_bytes: size of each frame's packet, in display order.
        frame_types: I, P or B for each; I frames cost nothing here, for their bytes tell of structure, not of change.
        groups: how many groups to aim at; lengths may make them fewer or more.
        shortest: frames a group has at least (a shorter clip is one group).
        longest: frames a group has at most; at least 2 * shortest - 1, so that every clip can be divided.

    Raises:
        ValueError: no frames, not one type per frame, negative bytes, or settings outside their range.
    """
    if not frame_bytes or len(frame_bytes) != len(frame_types) or min(frame_bytes) < 0:
        raise ValueError(
            f"adaptive_groups needs bytes and types of the same frames; got {len(frame_bytes)} and {len(frame_types)}"
        )
    if groups < 1 or shortest < 1 or longest < 2 * shortest - 1:
        raise ValueError(f"{groups=} and {shortest=} must be at least 1, and {longest=} at least 2 * shortest - 1")
    cost = np.array([0 if kind == "I" else size for kind, size in zip(frame_types, frame_bytes, strict=True)], np.int64)
    total = np.concatenate([[0], cost.cumsum()])
    starts = [0]
    while (left := len(cost) - starts[-1]) > longest or (
        left >= 2 * shortest and _quota(total, starts[-1], groups) < len(cost)
    ):
        begin = starts[-1]
        low, high = begin + shortest, min(begin + longest, len(cost) - shortest)
        target = min(max(_quota(total, begin, groups), low), high)
        nearby = range(max(low, target - _VALLEY), min(high, target + _VALLEY) + 1)
        starts.append(min(nearby, key=lambda cut: (cost[cut], abs(cut - target), cut)))
    return np.array(starts, np.int64)


def _quota(total: npt.NDArray[np.int64], begin: int, groups: int) -> int:
    """First cut behind `begin` at which a group has its share: 1 / groups of all bytes."""
    needed = int(total[begin]) + max(1, -(-int(total[-1]) // groups))
    return max(begin + 1, int(np.searchsorted(total, needed)))
