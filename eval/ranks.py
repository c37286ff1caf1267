"""The processes that share an evaluation: alone by default, or as many as torchrun or deepspeed started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Processes that decode clips import this module; they have no use for torch.
    from torch import Tensor

    from megatron_ovenc.parallel.topology import Topology

TIMEOUT_S = 24 * 3600.0
"""Between two meetings lies the encoding of a whole data set, and ranks are not equally fast."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world: int = 1
    topology: Topology | None = None
    """Groups to meet in; None for a process alone."""

    @classmethod
    def of(cls, topology: Topology) -> Ranks:
        """All ranks of a topology as peers."""
        return cls(rank=topology.rank, world=topology.world, topology=topology)

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def gather(self, mine: Any) -> list[Any]:
        """What every rank passes, in rank order, on every rank. Over all ranks, on the host: numpy arrays and small facts."""
        if self.topology is None:
            return [mine]
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine, group=self.topology.host_group)
        return everyone

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all ranks in place, in one message: gradients of the probes, which every rank holds whole."""
        if self.topology is None:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=self.topology.world_group)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


ALONE = Ranks()
"""A process without peers."""


@contextmanager
def joined(device_name: str) -> Iterator[tuple[Ranks, Any]]:
    """This process's ranks and device, by what the launcher set in the environment.

    Args:
        device_name: auto, cpu or cuda.

    Raises:
        ValueError: the launcher's variables contradict each other, or there is no such device.
    """
    import torch.distributed as dist

    from megatron_ovenc.parallel.device import choose_device
    from megatron_ovenc.parallel.topology import Launch, build_topology, init_world

    launch = Launch.from_environment()
    device = choose_device(device_name, launch.local_rank)
    if launch.world_size == 1:
        yield ALONE, device
        return
    init_world(launch, device, TIMEOUT_S)
    yield Ranks.of(build_topology(launch.world_size, launch.rank, 1, device, TIMEOUT_S)), device
    # Not after an error: peers may wait in a collective that this rank will never join.
    dist.destroy_process_group()
