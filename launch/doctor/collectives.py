"""What torch.distributed makes of the network: the backend that training would use, NCCL on GPUs and gloo without.

MPI tells the ranks where to meet, so nothing but torch is under test.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from launch.doctor.exchange import ROUND_TRIPS, meet, shortest
from launch.doctor.facts import Collective, Link
from launch.facts import addresses

if TYPE_CHECKING:
    import torch
    from mpi4py import MPI

TIMEOUT_S = 60.0
REPETITIONS = 5


def measure(
    comm: MPI.Comm, hosts: Sequence[str], master: str | None, megabytes: int
) -> tuple[tuple[Collective, ...], tuple[Link, ...], dict[str, str]]:
    """All-reduce and all-gather over all ranks, and links between neighbouring hosts. Results on rank 0 only.

    Args:
        comm: all ranks.
        hosts: each rank's host.
        master: address of rank 0 to meet at; its first one when absent.
        megabytes: size of a collective's result and of a message, 1e6 bytes.

    Returns:
        Collectives, links, and why it failed by host.
    """
    meeting = comm.bcast(_meeting_point(master) if comm.rank == 0 else None, root=0)
    collectives: list[Collective] = []
    links: list[Link] = []
    error = _import_error()
    meet(comm)
    if not any(comm.allgather(error)):  # else the others would wait for the one that cannot come
        try:
            collectives, links = _measure(comm.rank, hosts, meeting, megabytes)
        except (
            Exception
        ) as problem:  # a network that drops packets, NCCL's own errors: findings, not failures of the doctor
            error = _first_line(problem)
    told = comm.gather((hosts[comm.rank], links, error), root=0) or []
    errors = {host: text for host, _, text in told if text}
    return tuple(collectives), tuple(itertools.chain.from_iterable(found for _, found, _ in told)), errors


def _import_error() -> str | None:
    """Why torch cannot be used here, if so."""
    try:
        import torch.distributed
    except Exception as problem:  # a CUDA library that is missing may raise anything
        return _first_line(problem)
    return None if torch.distributed.is_available() else "this torch was built without torch.distributed"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _meeting_point(master: str | None) -> tuple[str, int]:
    """Address and free port of this host."""
    first = next(iter(addresses().values()), "127.0.0.1").partition("/")[0]
    with socket.socket() as listener:
        listener.bind(("", 0))
        return master or first, listener.getsockname()[1]


def _measure(
    rank: int, hosts: Sequence[str], meeting: tuple[str, int], megabytes: int
) -> tuple[list[Collective], list[Link]]:
    import torch.distributed as dist

    from megatron_ovenc.parallel.device import choose_device
    from megatron_ovenc.parallel.topology import Launch, init_world

    local_rank = hosts[:rank].count(hosts[rank])
    device = choose_device("auto", local_rank)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = meeting[0], str(meeting[1])
    init_world(Launch(rank=rank, world_size=len(hosts), local_rank=local_rank), device, TIMEOUT_S)
    try:
        backend = "nccl" if device.type == "cuda" else "gloo"
        collectives = list(_collectives(device, backend, megabytes)) if len(hosts) > 1 else []
        return collectives, list(_neighbours(rank, hosts, device, backend, megabytes))
    finally:
        dist.destroy_process_group()


def _collectives(device: torch.device, backend: str, megabytes: int) -> Iterator[Collective]:
    """Over the world, by all ranks."""
    import torch
    import torch.distributed as dist

    from megatron_ovenc.parallel.device import synchronise

    ranks = dist.get_world_size()
    share = torch.ones(megabytes * 10**6 // 4 // ranks, device=device)
    whole = torch.ones(share.numel() * ranks, device=device)
    parts = list(whole.chunk(ranks))

    def all_reduce() -> None:
        dist.all_reduce(whole)
        synchronise(device)

    def all_gather() -> None:
        dist.all_gather(parts, share)
        synchronise(device)

    for name, action, factor in (("all-reduce", all_reduce, 2), ("all-gather", all_gather, 1)):
        action()  # connections are made by the first
        seconds = shortest(action, REPETITIONS)
        yield Collective(
            name=name,
            backend=backend,
            ranks=ranks,
            megabytes=whole.nbytes / 1e6,
            milliseconds=seconds * 1e3,
            bus_gigabytes_per_s=factor * (ranks - 1) / ranks * whole.nbytes / seconds / 1e9,
        )


def _neighbours(rank: int, hosts: Sequence[str], device: torch.device, backend: str, megabytes: int) -> Iterator[Link]:
    """Links along the ring of hosts, one after the other: not every pair, since NCCL keeps buffers for each connection."""
    import torch
    import torch.distributed as dist

    from megatron_ovenc.parallel.device import synchronise

    first_ranks = [hosts.index(host) for host in dict.fromkeys(hosts)]
    ring = list(itertools.pairwise(first_ranks)) + ([(first_ranks[0], first_ranks[-1])] if len(first_ranks) > 2 else [])
    large, small = (torch.zeros(size, dtype=torch.uint8, device=device) for size in (megabytes * 10**6, 8))

    def to_and_fro(message: torch.Tensor, other: int, first: bool) -> None:
        steps = (dist.send, dist.recv) if first else (dist.recv, dist.send)
        for step in steps:
            step(message, other)
        synchronise(device)

    for a, b in ring:
        if rank in (a, b):
            other, first = (b, True) if rank == a else (a, False)
            to_and_fro(small, other, first)  # makes the connection
            latency = shortest(partial(to_and_fro, small, other, first), ROUND_TRIPS) / 2
            seconds = shortest(partial(to_and_fro, large, other, first), REPETITIONS) / 2
            if first:
                yield Link(
                    hosts=(hosts[a], hosts[b]),
                    transport=backend,
                    gigabytes_per_s=large.nbytes / seconds / 1e9,
                    latency_us=latency * 1e6,
                )
        dist.barrier()
