"""Hostfiles and host filters in DeepSpeed's syntax, read strictly; the hosts of a Slurm allocation.

# comment
node001 slots=8          one host a line; the order of lines is the order of ranks

--include 'node001@node002:0,2'      all slots of one host, two of another
--exclude 'node003@node004:7'        a host, or single slots, left out
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>\d+)(\s+#.*)?")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True, slots=True)
class Host:
    """A machine and the slots (GPUs, by index) that the job may use on it: one rank a slot."""

    name: str
    slots: tuple[int, ...]


def world_size(hosts: Sequence[Host]) -> int:
    """Number of ranks on all hosts."""
    return sum(len(host.slots) for host in hosts)


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a file, in its order.

    Raises:
        ValueError: with the file, the line and the reason.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--hostfile {path} cannot be read: {error}") from error
    hosts: dict[str, Host] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        host = _parse_line(line.strip(), f"{path}:{number}")
        if host.name in hosts:
            raise ValueError(
                f"{path}:{number}: host {host.name} is already on line {seen[host.name]}; keep one of them"
            )
        hosts[host.name], seen[host.name] = host, number
    if not hosts:
        raise ValueError(f"{path} names no host; write one `<host> slots=<ranks>` a line")
    return list(hosts.values())


def _parse_line(line: str, where: str) -> Host:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"{where}: `{line}` is not `<host> slots=<number of ranks>`")
    name, slots = match["name"], int(match["slots"])
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: `{name}` is not a host name or address; ranges are not expanded, and a user name or a port belongs into "
            "~/.ssh/config or --ssh-args"
        )
    if slots < 1:
        raise ValueError(f"{where}: {name} has slots={slots}; it must be at least 1, or comment the line out")
    return Host(name, tuple(range(slots)))


def select_hosts(hosts: Sequence[Host], include: str = "", exclude: str = "") -> list[Host]:
    """Hosts and slots that --include keeps or --exclude leaves, in the hostfile's order.

    Raises:
        ValueError: both are given, one cannot be parsed or names what the hostfile lacks, or no slot is left.
    """
    if include and exclude:
        raise ValueError("--include and --exclude exclude each other; give one of them")
    if not include and not exclude:
        return list(hosts)
    flag, text = ("--include", include) if include else ("--exclude", exclude)
    named = _parse_filter(flag, text, {host.name: host.slots for host in hosts})
    kept = []
    for host in hosts:
        mine = named.get(host.name, ())
        slots = mine if include else tuple(slot for slot in host.slots if slot not in mine)
        if slots:
            kept.append(replace(host, slots=slots))
    if not kept:
        raise ValueError(f"{flag} {text} leaves no slot")
    return kept


def _parse_filter(flag: str, text: str, known: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    named: dict[str, tuple[int, ...]] = {}
    for part in text.split("@"):
        name, colon, numbers = part.partition(":")
        if name not in known:
            raise ValueError(f"{flag} {text}: the hostfile has no host `{name}`; it has {', '.join(known)}")
        if colon and not re.fullmatch(r"\d+(,\d+)*", numbers):
            raise ValueError(f"{flag} {text}: `{part}` is not <host> or <host>:<slot>,<slot>")
        slots = tuple(int(number) for number in numbers.split(",")) if colon else known[name]
        if unknown := [slot for slot in slots if slot not in known[name]]:
            raise ValueError(f"{flag} {text}: {name} has the slots 0 to {known[name][-1]}, not {unknown[0]}")
        named[name] = tuple(sorted({*named.get(name, ()), *slots}))
    return named


def check_layout(hosts: Sequence[Host], tensor: int) -> None:
    """Refuse slots on which a tensor-parallel group would not stay inside one host.

    Raises:
        ValueError: with every host whose slots `parallel.tensor` does not divide.
    """
    if odd := [f"{host.name} has {len(host.slots)}" for host in hosts if len(host.slots) % tensor]:
        raise ValueError(
            f"parallel.tensor={tensor} does not divide the slots of every host ({', '.join(odd)}): a tensor-parallel group would "
            "cross the network; change parallel.tensor or the slots"
        )


def slurm_hosts(environment: Mapping[str, str]) -> list[Host]:
    """The hosts of the Slurm allocation that this process runs in.

    Raises:
        ValueError: there is no allocation, or `scontrol` cannot name its hosts.
    """
    names, tasks = environment.get("SLURM_JOB_NODELIST"), environment.get("SLURM_TASKS_PER_NODE")
    if not names or not tasks:
        raise ValueError(
            "--launcher srun needs a Slurm allocation with tasks (SLURM_JOB_NODELIST and SLURM_TASKS_PER_NODE); start inside "
            "`sbatch` or `salloc --nodes N --ntasks-per-node S`"
        )
    try:
        output = subprocess.run(
            ["scontrol", "show", "hostnames", names], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"`scontrol show hostnames {names}` failed: {error}") from error
    counts = [
        count for size, times in _TASKS.findall(tasks) for count in [int(size)] * int(times or 1)
    ]  # "8(x2),4" -> 8, 8, 4
    return [Host(name, tuple(range(count))) for name, count in zip(output.split(), counts, strict=True)]
