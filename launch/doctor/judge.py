"""From facts to problems: pure functions, which need no cluster to be tested.

Hosts are compared by majority (votes.py). Some facts are wrong by themselves, on one host or on all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launch.doctor.facts import Examination, HostFacts, Link
from launch.doctor.votes import SAME_IMAGE, show_bytes, votes

LARGEST_CLOCK_OFFSET_S = 1.0
"""Apart by more, log lines of hosts cannot be put in order and file times mislead."""
SMALLEST_SHM = 2**30
"""NCCL and loaders exchange data there; a container gets 64 MiB unless told otherwise."""
LARGEST_IDLE_GPU_GIB = 1.0
"""A GPU on which nothing runs holds a few hundred MiB at most."""
SLOW = 0.5
"""A link is slow below this share of what links of other hosts reach."""
MEMORY_TOLERANCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is wrong, or worth knowing."""

    severity: Literal["problem", "note"]
    """A `problem` keeps a job from running, or from running well; a `note` may explain one."""
    host: str
    """The host that it is about; `all` when no single one is to blame."""
    what: str
    remedy: str


_MEMLOCK = (
    "adapters need it unlimited: `* - memlock unlimited` in /etc/security/limits.conf, `docker run --ulimit memlock=-1`, "
    "LimitMEMLOCK=infinity for slurmd"
)


def judge(examination: Examination) -> list[Problem]:
    """All that is wrong, problems before notes."""
    found = [
        *_differences(examination.hosts),
        *(problem for host in examination.hosts for problem in _host(host)),
        *_memory(examination.hosts),
        *_clocks(examination),
        *_shared(examination),
        *_slow_links(examination.links),
        *_wasted_adapters(examination),
        *(
            _problem(host, f"torch.distributed failed: {error}", "see docs/doctor.md, Collectives")
            for host, error in examination.collective_errors.items()
        ),
    ]
    return sorted(found, key=lambda problem: problem.severity == "note")


def _problem(host: str, what: str, remedy: str) -> Problem:
    return Problem(severity="problem", host=host, what=what, remedy=remedy)


def _differences(hosts: Sequence[HostFacts]) -> Iterator[Problem]:
    for vote in votes(hosts):
        fact, odd = vote.fact, vote.odd
        if fact.severity is None:
            continue
        if vote.majority is None and odd:
            told = "; ".join(f"{host}: {value}" for host, value in odd.items())
            yield Problem(severity=fact.severity, host="all", what=f"{fact.name} differ: {told}", remedy=fact.remedy)
            continue
        for host, value in odd.items():
            what = f"{fact.name}: {value}, but {vote.majority} on {len(hosts) - len(odd)} of {len(hosts)} hosts"
            yield Problem(severity=fact.severity, host=host, what=what, remedy=fact.remedy)


def _host(host: HostFacts) -> Iterator[Problem]:
    """What is wrong with a host by itself."""
    name = host.host
    if host.torch.error:
        yield _problem(
            name, f"torch does not work: {host.torch.error}", f"{SAME_IMAGE}; run `python -c 'import torch'` there"
        )
    elif host.torch.gpus < len(host.gpus):
        yield _problem(
            name,
            f"torch sees {host.torch.gpus} of {len(host.gpus)} GPUs",
            "unset CUDA_VISIBLE_DEVICES, start the container with --gpus all, or install a torch built for this driver",
        )
    if held := [
        f"{i} ({gpu.used_gib:g} GiB)" for i, gpu in enumerate(host.gpus) if gpu.used_gib > LARGEST_IDLE_GPU_GIB
    ]:
        yield _problem(
            name,
            f"memory is in use on GPU {', '.join(held)}",
            "another job runs there, or is left over: find it with `nvidia-smi --query-compute-apps=pid,name --format=csv`",
        )
    if broken := [str(i) for i, gpu in enumerate(host.gpus) if gpu.ecc_errors]:
        yield _problem(
            name, f"uncorrected memory errors on GPU {', '.join(broken)}", "reset the GPU, or leave the host out"
        )
    yield from _network(host)
    if host.shm_bytes < SMALLEST_SHM:
        yield _problem(
            name, f"/dev/shm has {show_bytes(host.shm_bytes)}", "start the container with --ipc=host or --shm-size=16g"
        )


def _network(host: HostFacts) -> Iterator[Problem]:
    active = [port for port in host.ports if port.active]
    if host.ports and not active:
        states = ", ".join(f"{port.name} {port.state}" for port in host.ports)
        yield _problem(
            host.host, f"no adapter port is active: {states}", "look at ibstat, cables and the subnet manager"
        )
    if active and not host.verbs:
        yield _problem(
            host.host, "there are adapters, but no /dev/infiniband", "start the container with --device=/dev/infiniband"
        )
    if active and host.memlock_bytes is not None:
        yield _problem(host.host, f"a process may lock {show_bytes(host.memlock_bytes)} only", _MEMLOCK)
    if not host.addresses:
        yield _problem(host.host, "no interface has an address that others could reach", "bring the network up")


def _memory(hosts: Sequence[HostFacts]) -> Iterator[Problem]:
    usual = statistics.median(host.memory_gib for host in hosts)
    for host in hosts:
        if host.memory_gib < MEMORY_TOLERANCE * usual:
            what = f"{host.memory_gib:g} GiB of memory, the median is {usual:g}"
            yield Problem(severity="note", host=host.host, what=what, remedy="a module may be broken or missing")


def _clocks(examination: Examination) -> Iterator[Problem]:
    """Against the middle one: the first host's own clock may be the one that is wrong."""
    offsets = {clock.host: clock.offset_s for clock in examination.clocks}
    if not offsets:
        return
    offsets = {host.host: offsets.get(host.host, 0.0) for host in examination.hosts}
    remedy = "start chrony or ntpd there"
    if len(offsets) == 2:
        apart = max(offsets.values()) - min(offsets.values())
        if apart > LARGEST_CLOCK_OFFSET_S:
            yield _problem("all", f"the clocks are {apart:.1f} s apart", "start chrony or ntpd on both hosts")
        return
    middle = statistics.median(offsets.values())
    for host, offset in offsets.items():
        if abs(offset - middle) > LARGEST_CLOCK_OFFSET_S:
            direction = "ahead" if offset > middle else "behind"
            yield _problem(host, f"its clock is {abs(offset - middle):.1f} s {direction}", remedy)


def _shared(examination: Examination) -> Iterator[Problem]:
    """A host that shares no file with most others has something else mounted there; what else is missing is told by host."""
    where, names = examination.shared_dir, [view.host for view in examination.shared]
    apart = {frozenset((view.host, other)) for view in examination.shared for other in view.missing}
    odd = {name for name in names if len(names) > 2 and 2 * sum(name in pair for pair in apart) > len(names) - 1}
    remedy = "mount the same file system on all hosts, writable for this user; run_dir and shards must lie on one"
    for view in examination.shared:
        unseen = [name for name in view.missing if name not in odd]
        if view.error:
            yield _problem(view.host, f"cannot write in {where}: {view.error}", remedy)
        elif view.host in odd:
            yield _problem(view.host, f"{where} is not the directory that the other hosts have there", remedy)
        elif unseen:
            yield _problem(view.host, f"does not see in {where} what {', '.join(unseen)} wrote", remedy)


def _slow_links(links: Sequence[Link]) -> Iterator[Problem]:
    """A host is slow when even its best link is; else a link is when it is slower than most."""
    for transport in dict.fromkeys(link.transport for link in links):
        measured = [link for link in links if link.transport == transport]
        if len(measured) < 2:
            continue  # nothing to compare with
        best = _best_links(measured)
        usual = statistics.median(best.values())
        slow = {host for host, speed in best.items() if speed < SLOW * usual}
        for host in sorted(slow):
            yield _problem(
                host,
                f"{best[host]:.2f} GB/s to any other host over {transport}, {usual:.2f} between others",
                "compare its link rate and width (ibstat, ethtool, lspci -vv) with another host's, or leave it out",
            )
        healthy = [link for link in measured if not slow.intersection(link.hosts)]
        middle = statistics.median(link.gigabytes_per_s for link in healthy) if healthy else 0.0
        for link in healthy:
            if link.gigabytes_per_s < SLOW * middle:
                yield _problem(
                    " - ".join(link.hosts),
                    f"{link.gigabytes_per_s:.2f} GB/s between them over {transport}, {middle:.2f} between others",
                    "look at the switches between these two",
                )


def _best_links(links: Sequence[Link]) -> Mapping[str, float]:
    """GB/s of the fastest link of each host."""
    best: dict[str, float] = {}
    for link in links:
        for host in link.hosts:
            best[host] = max(best.get(host, 0.0), link.gigabytes_per_s)
    return best


def _wasted_adapters(examination: Examination) -> Iterator[Problem]:
    """NCCL that is slower than a fifth of one adapter port takes another way."""
    rates = [port.gbit_per_s for host in examination.hosts for port in host.ports if port.active]
    speeds = [link.gigabytes_per_s for link in examination.links if link.transport == "nccl"]
    if rates and speeds and statistics.median(speeds) < 0.2 * max(rates) / 8:
        yield _problem(
            "all",
            f"NCCL moves {statistics.median(speeds):.1f} GB/s between hosts whose adapters have {max(rates):g} Gb/s ports",
            "run with NCCL_DEBUG=INFO and look for NET/IB; check NCCL_IB_DISABLE, NCCL_IB_HCA and /dev/infiniband",
        )
