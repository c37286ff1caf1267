"""What the doctor knows: facts of a host, and what was measured between hosts. Plain data, which JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, as nvidia-smi tells it."""

    name: str
    memory_gib: float
    used_gib: float
    """Memory that is taken now, before any job of ours."""
    ecc_errors: int
    """Uncorrected memory errors since the last reset; 0 where the card does not count them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """One port of a host channel adapter (/sys/class/infiniband)."""

    name: str
    """Device and port: `mlx5_0/1`."""
    state: str
    """`ACTIVE`, `DOWN`, `INIT`, `ARMED`."""
    gbit_per_s: float
    layer: str
    """`InfiniBand`, or `Ethernet` (RoCE)."""

    @property
    def active(self) -> bool:
        return self.state == "ACTIVE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Torch:
    """What torch says when a process of its own imports it."""

    error: str | None = None
    """Why it could not be imported or asked; the rest is then empty."""
    cuda: str | None = None
    """Version of CUDA that it was built with."""
    nccl: str | None = None
    gpus: int = 0
    """Devices that it sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFacts:
    """One host."""

    host: str
    addresses: dict[str, str]
    """IPv4 addresses by interface."""
    cpus: int
    memory_gib: float
    kernel: str
    driver: str | None
    """NVIDIA driver; None without one."""
    gpus: tuple[Gpu, ...]
    ports: tuple[Port, ...]
    verbs: bool
    """Whether /dev/infiniband is there, through which programs reach the adapters."""
    memlock_bytes: int | None
    """Memory that a process may lock; None is unlimited."""
    shm_bytes: int
    """Size of /dev/shm."""
    torch: Torch
    versions: dict[str, str]
    """Python and packages, by their metadata; `missing` where one is not installed."""
    code: str
    """Digest of this project's source files and compiled extensions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """A host's clock against the first host's."""

    host: str
    offset_s: float
    """Positive where it is ahead."""
    uncertainty_s: float
    """Half of the shortest round trip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedView:
    """What a host found in the directory that all hosts should share."""

    host: str
    error: str | None
    """Why it could not write there."""
    missing: tuple[str, ...]
    """Hosts whose file it does not see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A connection between two hosts, measured by sending a message to and fro."""

    hosts: tuple[str, str]
    transport: str
    """`MPI`, or torch's backend: `gloo`, `nccl`."""
    gigabytes_per_s: float
    """One way, 1e9 bytes a second."""
    latency_us: float
    """Half of the shortest round trip of 8 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """One operation of torch.distributed over all ranks."""

    name: str
    backend: str
    ranks: int
    megabytes: float
    """Size of the whole result on each rank, 1e6 bytes."""
    milliseconds: float
    bus_gigabytes_per_s: float
    """What a ring sends over each link: 2 (n - 1) / n of the result for an all-reduce, (n - 1) / n for an all-gather (NCCL tests'
    definition)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """Everything that was found out."""

    hosts: tuple[HostFacts, ...]
    clocks: tuple[Clock, ...] = ()
    shared_dir: str | None = None
    shared: tuple[SharedView, ...] = ()
    links: tuple[Link, ...] = ()
    collectives: tuple[Collective, ...] = ()
    collective_errors: dict[str, str] = field(default_factory=dict)
    """Why torch.distributed failed, by host."""
