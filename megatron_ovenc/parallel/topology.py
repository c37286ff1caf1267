"""Who works with whom: the world is a grid of data x tensor ranks, and every process group is made here and passed on.

rank = data_rank * tensor_size + tensor_rank        tensor ranks are neighbours, so they share a node
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """What the launcher told this process through the environment (deepspeed, torchrun and srun agree on the names)."""

    rank: int
    world_size: int
    local_rank: int

    @classmethod
    def from_environment(cls) -> Launch:
        """Read RANK, WORLD_SIZE and LOCAL_RANK (or srun's SLURM_* counterparts); one process when none is set.

        Raises:
            ValueError: only some of the variables are set, or they contradict each other.
        """
        env = os.environ
        names = {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
        slurm = {"rank": "SLURM_PROCID", "world_size": "SLURM_NTASKS", "local_rank": "SLURM_LOCALID"}
        if not any(name in env for name in names.values()):
            # An interactive shell inside an allocation has SLURM_NTASKS but no step: only srun sets SLURM_STEP_ID.
            if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:
                return cls(rank=0, world_size=1, local_rank=0)
            names = slurm
        missing = [name for name in names.values() if name not in env]
        if missing:
            raise ValueError(
                f"the launcher set some rank variables but not {', '.join(missing)}; start with `deepspeed`, `torchrun` or `srun`"
            )
        rank, world, local = (int(env[names[key]]) for key in ("rank", "world_size", "local_rank"))
        if not 0 <= rank < world:
            raise ValueError(f"{names['rank']}={rank} is outside the world of {names['world_size']}={world}")
        if world > 1 and "MASTER_ADDR" not in env:
            raise ValueError(
                f"{world} ranks were started without MASTER_ADDR; export it as the first host's address on the network that the "
                "ranks share (deepspeed --master_addr and torchrun set it, srun does not)"
            )
        return cls(rank=rank, world_size=world, local_rank=local)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The grid of ranks, this rank's place in it, and the groups that cross it."""

    data: int
    """Number of data-parallel ranks."""
    tensor: int
    """Number of tensor-parallel ranks."""
    rank: int
    """This process in the world."""
    device: torch.device
    """Where this process computes."""
    world_group: ProcessGroup
    """All ranks: the bank's rows are split over it."""
    data_group: ProcessGroup
    """Ranks with the same tensor rank: each has other samples and the same slice of every layer."""
    tensor_group: ProcessGroup
    """Ranks with the same data rank: the same samples, other slices of every layer."""
    self_group: ProcessGroup
    """This rank alone, for interfaces that insist on a group (megatron-core's pipeline and context parallelism)."""
    host_group: ProcessGroup
    """All ranks over gloo: small facts that live on the host never wait for, or stall, the device."""

    @property
    def world(self) -> int:
        return self.data * self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for the run: console, metrics, manifest."""
        return self.rank == 0

    def data_mesh(self) -> DeviceMesh:
        """The data group as a one-dimensional device mesh named `data`."""
        from torch.distributed.device_mesh import DeviceMesh

        return DeviceMesh.from_group(self.data_group, self.device.type, mesh_dim_names=("data",))

    def replicated_mesh(self) -> DeviceMesh:
        """The data group as a (replicate = data, shard = 1) mesh, on which sharding leaves everything whole."""
        from torch.distributed.device_mesh import DeviceMesh

        ranks = torch.tensor([r * self.tensor + self.tensor_rank for r in range(self.data)]).view(-1, 1)
        return DeviceMesh.from_group(
            [self.data_group, self.self_group], self.device.type, mesh=ranks, mesh_dim_names=("replicate", "shard")
        )


def data_size(world_size: int, tensor: int) -> int:
    """Number of data-parallel ranks in a world.

    Raises:
        ValueError: the tensor size does not divide the world.
    """
    if tensor < 1 or world_size % tensor:
        raise ValueError(
            f"parallel.tensor={tensor} does not divide the world of {world_size} ranks; "
            "change parallel.tensor or the number of processes that the launcher starts"
        )
    return world_size // tensor


def build_topology(world_size: int, rank: int, tensor: int, device: torch.device, timeout_s: float = 600.0) -> Topology:
    """Make the groups of a grid. Every rank of an initialised default group must call this, with equal arguments but `rank`.

    Returns:
        The topology as `rank` sees it.
    """
    data = data_size(world_size, tensor)
    grid = torch.arange(world_size).view(data, tensor)
    # new_group is collective: every rank makes every group, in the same order, and keeps those it is a member of.
    # Nor does a new group inherit the default group's timeout.
    timeout = datetime.timedelta(seconds=timeout_s)
    tensor_groups = [dist.new_group(row.tolist(), timeout=timeout) for row in grid]
    data_groups = [dist.new_group(column.tolist(), timeout=timeout) for column in grid.T]
    self_groups = [dist.new_group([r], timeout=timeout) for r in range(world_size)]
    world_group = dist.group.WORLD
    assert world_group is not None, "init_world comes first"
    return Topology(
        data=data,
        tensor=tensor,
        rank=rank,
        device=device,
        world_group=world_group,
        data_group=data_groups[rank % tensor],
        tensor_group=tensor_groups[rank // tensor],
        self_group=self_groups[rank],
        host_group=dist.new_group(backend="gloo", timeout=timeout),
    )


def init_world(launch: Launch, device: torch.device, timeout_s: float) -> None:
    """Join the world: NCCL for CUDA tensors, gloo for host tensors, gloo alone without a GPU."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if launch.world_size > 1:
        os.environ.setdefault("MASTER_PORT", "29500")
    dist.init_process_group(
        backend,
        # A process alone meets nobody: no port of the host is taken for it.
        store=dist.HashStore() if launch.world_size == 1 else None,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
