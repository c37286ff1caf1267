"""Ranks that do not exist: process groups of any size in one process, whose collectives return at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ovenc.parallel.device import shapes_only
from megatron_ovenc.parallel.topology import Topology, data_size


@contextmanager
def imaginary_world(world_size: int, tensor: int) -> Iterator[Topology]:
    """Rank 0 of `world_size` ranks, on the meta device. Rank 0 never holds less than another: FSDP and banks cut so.

    Raises:
        ValueError: the tensor size does not divide the world.
    """
    data = data_size(world_size, tensor)
    with shapes_only() as device:
        dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
        try:
            world_group = dist.group.WORLD
            assert world_group is not None
            yield Topology(
                data=data,
                tensor=tensor,
                rank=0,
                device=device,
                world_group=world_group,
                data_group=dist.new_group(range(0, world_size, tensor)),
                tensor_group=dist.new_group(range(tensor)),
                self_group=dist.new_group([0]),
                host_group=dist.new_group(),
            )
        finally:
            dist.destroy_process_group()
