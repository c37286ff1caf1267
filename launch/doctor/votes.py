"""What hosts should have in common, and how they vote on it: where most say the same, the others are the odd ones out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from launch.doctor.facts import HostFacts

SAME_IMAGE = "use the same container image or environment on all hosts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """Something that all hosts should have in common."""

    name: str
    of: Callable[[HostFacts], str]
    remedy: str = ""
    severity: Literal["problem", "note"] | None = "problem"
    """Of a difference; None where the judge looks at every host by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """How hosts voted on a fact."""

    fact: Fact
    majority: str | None
    """What more than half of the hosts say; None where there is no such thing."""
    values: dict[str, str]
    """Each host's own."""

    @property
    def odd(self) -> dict[str, str]:
        """Hosts that are not with the majority; without one, all of them if they differ."""
        if len(set(self.values.values())) == 1:
            return {}
        return {host: value for host, value in self.values.items() if value != self.majority}


def facts(hosts: Sequence[HostFacts]) -> list[Fact]:
    """What these hosts should have in common, in the order of the table."""
    packages = list(dict.fromkeys(name for host in hosts for name in host.versions))
    return [
        Fact(name="GPUs", of=_gpus, remedy="look at nvidia-smi and dmesg there (Xid), or leave the host out"),
        Fact(name="driver", of=lambda h: h.driver or "none", remedy="install the same NVIDIA driver on all hosts"),
        Fact(name="CUDA of torch", of=lambda h: h.torch.cuda or "none", remedy=SAME_IMAGE),
        Fact(name="NCCL", of=lambda h: h.torch.nccl or "none", remedy=SAME_IMAGE),
        Fact(
            name="adapters",
            of=_adapters,
            remedy="look at ibstat there: a cable, a switch port or the subnet manager; or leave the host out",
        ),
        Fact(name="locked memory", of=lambda h: show_bytes(h.memlock_bytes), severity=None),
        Fact(name="/dev/shm", of=lambda h: show_bytes(h.shm_bytes), severity=None),
        Fact(name="code", of=lambda h: h.code, remedy="bring this project's files to the same state on all hosts"),
        *(Fact(name=name, of=_version_of(name), remedy=SAME_IMAGE) for name in packages),
        Fact(
            name="interfaces",
            of=lambda h: ", ".join(sorted(h.addresses)) or "none",
            remedy="name in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME one that all have",
            severity="note",
        ),
        Fact(name="CPUs", of=lambda h: str(h.cpus), remedy="the slowest host sets the pace", severity="note"),
        Fact(name="kernel", of=lambda h: h.kernel, remedy="install the same one", severity="note"),
    ]


def votes(hosts: Sequence[HostFacts]) -> list[Vote]:
    """One a fact."""
    found = []
    for fact in facts(hosts):
        values = {host.host: fact.of(host) for host in hosts}
        value, count = Counter(values.values()).most_common(1)[0]
        found.append(Vote(fact=fact, majority=value if 2 * count > len(hosts) else None, values=values))
    return found


def _version_of(package: str) -> Callable[[HostFacts], str]:
    return lambda host: host.versions.get(package, "missing")


def _gpus(host: HostFacts) -> str:
    counted = Counter(f"{gpu.name}, {gpu.memory_gib:g} GiB" for gpu in host.gpus)
    return " + ".join(f"{count} x {name}" for name, count in counted.items()) or "none"


def _adapters(host: HostFacts) -> str:
    counted = Counter(
        f"{port.layer} {port.gbit_per_s:g} Gb/s" if port.active else f"port {port.state}" for port in host.ports
    )
    return " + ".join(f"{count} x {name}" for name, count in sorted(counted.items())) or "none"


def show_bytes(count: int | None) -> str:
    """A size for a person; None is unlimited."""
    if count is None:
        return "unlimited"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count // 1024} KiB"
