"""The processes that share an evaluation: alone by default, or as many as torchrun or deepspeed started.

Between two meetings lies the encoding of a whole data set, and ranks are not equally fast. So they do not wait in a collective:
each notes its progress in the rendezvous' store, and those that have come look on. Who makes none for SILENCE_S is named, and all
end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Processes that decode clips import this module; they have no use for torch.
    from torch import Tensor
    from torch.distributed import Store

    from megatron_ovenc.parallel.topology import Topology

SILENCE_S = 1200.0
"""Without a batch encoded, judged or trained on: a rank is dead, or its host or storage is. A batch may be slow on a CPU."""
_LONGEST_PAUSE_S = 1.0
"""Between two looks at the store; the first follow each other quickly."""


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

    def progress(self) -> None:
        """Tell the others that this rank gets on."""
        if self.topology is not None:
            _store().add(f"evaluation/progress/{self.rank}", 1)

    def gather(self, mine: Any) -> list[Any]:
        """What every rank passes, in rank order, on every rank. Over all ranks, on the host: numpy arrays and small facts.

        Raises:
            SilentRank: one has neither come nor made progress for SILENCE_S.
        """
        if self.topology is None:
            return [mine]
        import torch.distributed as dist

        self._await_all()
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine, group=self.topology.host_group)
        return everyone

    def _await_all(self) -> None:
        """Until every rank has come to its meeting of the same number."""
        store = _store()
        meeting = store.add(f"evaluation/meetings/{self.rank}", 1)
        last: dict[int, tuple[int, float]] = {}
        absent, pause_s = list(range(self.world)), 0.01
        while absent := [rank for rank in absent if store.add(f"evaluation/meetings/{rank}", 0) < meeting]:
            for rank in absent:
                number = store.add(f"evaluation/progress/{rank}", 0)
                if rank not in last or last[rank][0] != number:
                    last[rank] = number, time.monotonic()
                elif time.monotonic() - last[rank][1] > SILENCE_S:
                    raise SilentRank(
                        f"rank {rank} of {self.world} has made no progress for {SILENCE_S:.0f} s while the others wait for it: "
                        "it, its host or its storage is gone. What --cache holds is not lost: run the command again"
                    )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all ranks in place, in one message: gradients of the probes, which every rank holds whole."""
        if self.topology is None:
            return
        import torch
        import torch.distributed as dist

        self.progress()
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=self.topology.world_group)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


ALONE = Ranks()
"""A process without peers."""


class SilentRank(RuntimeError):
    """A rank that others wait for makes no progress."""


def _store() -> Store:
    """What the launcher's rendezvous left: reachable as long as rank 0's host is; `add` of 0 reads without waiting."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


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
    init_world(launch, device, SILENCE_S)
    yield Ranks.of(build_topology(launch.world_size, launch.rank, 1, device, SILENCE_S)), device
    # Not after an error: peers may wait in a collective that this rank will never join.
    dist.destroy_process_group()
