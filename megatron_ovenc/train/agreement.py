"""What the ranks tell each other once a step: one small all-reduce on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from megatron_ovenc.parallel.topology import Topology


def agree(
    topology: Topology, shared: Mapping[str, float], own: Sequence[float] = ()
) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Collective over the world; the same result on every rank, so that none stops or skips a step by itself.

    Args:
        shared: numbers to be summed over the ranks, the same keys on each.
        own: numbers to be known of each rank, as many on each.

    Returns:
        The sums, and float64 [ranks, len(own)].
    """
    table = np.zeros((topology.world, len(own)))
    table[topology.rank] = own
    numbers = np.concatenate([list(shared.values()), table.ravel()])
    dist.all_reduce(torch.from_numpy(numbers), group=topology.host_group)  # over all ranks, on the host, in place
    sums, table = numbers[: len(shared)], numbers[len(shared) :].reshape(table.shape)
    return dict(zip(shared, sums.tolist(), strict=True)), table
