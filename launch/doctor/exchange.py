"""What hosts find out together over MPI: who is where, clocks, links, the shared directory. One MPI rank a host takes part."""

from __future__ import annotations

import itertools
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from launch.doctor.facts import Clock, Link, SharedView
from launch.facts import addresses

if TYPE_CHECKING:
    from mpi4py import MPI

ROUND_TRIPS = 30
SHARED_WAIT_S = 10.0
"""How long a file that another host wrote may take to show: network file systems cache what a directory holds."""


def host_names(comm: MPI.Comm) -> list[str]:
    """Each rank's host, in rank order: its name, with an address where several hosts go by one name."""
    here = (socket.gethostname(), tuple(sorted(addresses().values())))
    identities: list[tuple[str, tuple[str, ...]]] = comm.allgather(here)
    hosts_of: dict[str, set[tuple[str, ...]]] = {}
    for name, where in identities:
        hosts_of.setdefault(name, set()).add(where)
    return [
        name if len(hosts_of[name]) == 1 else f"{name} ({where[0] if where else 'no address'})"
        for name, where in identities
    ]


def meet(comm: MPI.Comm) -> None:
    """A barrier for what may take long: MPI's own keeps a core busy while it waits, which those that work may need."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.01)


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Every pair of `count` players once, in rounds in which nobody plays twice (the circle method)."""
    players: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    found = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        players = [players[0], players[-1], *players[1:-1]]
    return found


def measure_clocks(comm: MPI.Comm, hosts: Sequence[str]) -> tuple[Clock, ...]:
    """Every host's clock against rank 0's, from the shortest of some round trips (as NTP does it). Result on rank 0 only."""
    clocks = []
    for other in range(1, comm.size):
        if comm.rank == 0:
            trips = [_ask_clock(comm, other) for _ in range(ROUND_TRIPS)]
            trip, offset = min(trips)
            clocks.append(Clock(host=hosts[other], offset_s=offset, uncertainty_s=trip / 2))
        elif comm.rank == other:
            for _ in range(ROUND_TRIPS):
                comm.recv(source=0)
                comm.send(time.time(), dest=0)
        comm.Barrier()
    return tuple(clocks)


def _ask_clock(comm: MPI.Comm, other: int) -> tuple[float, float]:
    """(round trip, offset) in seconds."""
    sent, started = time.time(), time.monotonic()
    comm.send(None, dest=other)
    theirs = comm.recv(source=other)
    trip = time.monotonic() - started
    return trip, theirs - (sent + trip / 2)


def measure_links(comm: MPI.Comm, hosts: Sequence[str], megabytes: int) -> tuple[Link, ...]:
    """Every pair of hosts; pairs of a round at the same time. Result on rank 0 only."""
    large, small = np.zeros(megabytes * 10**6, np.uint8), np.zeros(8, np.uint8)

    def to_and_fro(message: np.ndarray, other: int, first: bool) -> None:
        if first:
            comm.Send(message, dest=other)
            comm.Recv(message, source=other)
        else:
            comm.Recv(message, source=other)
            comm.Send(message, dest=other)

    def measure(a: int, b: int) -> Link:
        other, first = (b, True) if comm.rank == a else (a, False)
        latency = shortest(lambda: to_and_fro(small, other, first), ROUND_TRIPS) / 2
        seconds = shortest(lambda: to_and_fro(large, other, first), 4) / 2
        return Link(
            hosts=(hosts[a], hosts[b]),
            transport="MPI",
            gigabytes_per_s=large.nbytes / seconds / 1e9,
            latency_us=latency * 1e6,
        )

    mine = []
    for pairs in rounds(comm.size):
        mine += [measure(a, b) for a, b in pairs if comm.rank in (a, b)]
        comm.Barrier()
    gathered = comm.gather([link for link in mine if link.hosts[0] == hosts[comm.rank]], root=0)
    return tuple(itertools.chain.from_iterable(gathered or []))


def shortest(action: Callable[[], None], times: int) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def look_at_shared(comm: MPI.Comm, hosts: Sequence[str], directory: Path) -> tuple[SharedView, ...]:
    """Every host leaves a file in `directory` and looks for the others'. Result on rank 0 only."""
    nonce = comm.bcast(secrets.token_hex(8), root=0)
    files = [directory / f".doctor-{nonce}-{number}" for number in range(comm.size)]
    error = None
    try:
        files[comm.rank].write_text(nonce)
    except OSError as problem:
        error = str(problem)
    written = comm.allgather(error is None)
    expected = [(host, file) for host, file, there in zip(hosts, files, written, strict=True) if there]
    patience = time.monotonic() + SHARED_WAIT_S
    while missing := tuple(host for host, file in expected if not _holds(file, nonce)):
        if time.monotonic() > patience:
            break
        time.sleep(0.2)
    meet(comm)
    if error is None:
        files[comm.rank].unlink(missing_ok=True)
    return tuple(comm.gather(SharedView(host=hosts[comm.rank], error=error, missing=missing), root=0) or ())


def _holds(file: Path, nonce: str) -> bool:
    try:
        return file.read_text() == nonce
    except OSError:
        return False
