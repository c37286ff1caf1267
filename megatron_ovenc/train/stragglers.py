"""Which rank the others wait for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WORTH_TELLING = 1.5
"""Ratio of the slowest rank's own time to the median's from which the console names it."""


def own_seconds(data: npt.NDArray[np.float64], forward: npt.NDArray[np.float64]) -> list[float]:
    """What each rank spent by itself in a step, before backward makes all of them equally late.

    Ranks begin a step together. One that has its batch early waits in the first collective of its forward pass until the last
    one has, too; that part of its forward time is not its own, but what is left is never less than the fastest rank's. (Where
    forward passes have many collectives, under zero 3, and within a tensor group, a slow device makes others look as slow.)

    Args:
        data, forward: float64 [ranks], seconds until the batch was there and in forward passes.
    """
    early = data.max() - data
    own: list[float] = (data + np.maximum(forward - early, forward.min())).tolist()
    return own


def slowest(own: Sequence[float]) -> tuple[int, float]:
    """The rank with the most seconds of its own, and their ratio to the median's (the lower one of an even number)."""
    seconds = np.asarray(own)
    median = max(float(np.sort(seconds)[(len(seconds) - 1) // 2]), 1e-9)
    return int(seconds.argmax()), float(seconds.max()) / median
