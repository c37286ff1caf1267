"""What the ranks tell each other once a step: one small all-reduce on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from megatron_ovenc.parallel.topology import Topology


def agree(
    topology: Topology, shared: Mapping[str, float], own: Sequence[float] = ()
) -> tuple[dict[str, float], torch.Tensor]:
    """Collective over the world; the same result on every rank, so that none stops or skips a step by itself.

    Args:
        shared: numbers to be summed over the ranks, the same keys on each.
        own: numbers to be known of each rank, as many on each.

    Returns:
        The sums, and float64 [ranks, len(own)].
    """
    table = torch.zeros(topology.world, len(own), dtype=torch.float64)
    table[topology.rank] = torch.tensor(own, dtype=torch.float64)
    numbers = torch.cat([torch.tensor(list(shared.values()), dtype=torch.float64), table.flatten()])
    dist.all_reduce(numbers, group=topology.host_group)  # over all ranks, on the host
    sums, table = numbers[: len(shared)], numbers[len(shared) :].view_as(table)
    return dict(zip(shared, sums.tolist(), strict=True)), table
