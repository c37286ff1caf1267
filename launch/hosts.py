"""Asking hosts, all at once and in bounded time, and judging whether one job can run on what they answer."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from launch.facts import OPTIONAL_PACKAGES, Facts
from launch.hostfile import Host

CONNECT_S = 30
"""Seconds until a host that does not take the connection counts as unreachable. A host under full load is slow to greet."""
ANSWER_S = 90
"""Seconds that a connected host has for its facts; the first import from a cold network file system takes its time."""
LOST_S = 60
"""Seconds without a sign of life after which an established connection counts as lost."""
_SSH = (
    *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"),
    *("-o", f"ServerAliveInterval={LOST_S // 6}", "-o", "ServerAliveCountMax=6"),
)
_FILES_NAMED = 5


def is_here(host: str) -> bool:
    """Whether a host name means this machine, so that it can be used without ssh."""
    return host in {"localhost", "127.0.0.1", "::1", socket.gethostname()}


@dataclass(frozen=True, slots=True)
class Reach:
    """How to run a command on a host."""

    way: Literal["ssh", "srun", "local"] = "ssh"
    """`local`: the only host is this machine. `srun`: a job step of the allocation; compute nodes need not accept ssh."""
    ssh_args: tuple[str, ...] = ()
    """Further arguments of ssh: `-p 2222`, `-F config`, `-i key`."""

    @property
    def local(self) -> bool:
        """Whether the only host is this machine."""
        return self.way == "local"

    def shell(self, host: str, line: str) -> list[str]:
        """Command that has the host's shell run a line in this working directory."""
        line = f"cd {shlex.quote(os.getcwd())} && {line}"
        if self.way == "ssh":
            return ["ssh", *self.ssh_options, host, line]
        step = ["srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", f"--nodelist={host}", "--overlap"]
        return [*(step if self.way == "srun" else ()), "sh", "-c", line]

    def python(self, host: str, *words: str) -> list[str]:
        """Command that runs this Python interpreter on a host, in this working directory."""
        return self.shell(host, f"exec {shlex.join([sys.executable, '-u', *words])}")

    @property
    def ssh_options(self) -> tuple[str, ...]:
        """Options of every connection: no password prompts, and a dead network is noticed."""
        return (*self.ssh_args, *_SSH)  # ssh takes the first value of an option: the user's


@dataclass(frozen=True, slots=True)
class Answers:
    """Facts of the hosts that answered, and why the others did not."""

    facts: dict[str, Facts]
    unreachable: dict[str, str]
    """Hosts that take no connection."""
    broken: dict[str, str]
    """Hosts that took the connection but could not tell their facts."""


def ask(hosts: Sequence[Host], reach: Reach, shared: Path, port: int) -> Answers:
    """Ask all hosts at once for their facts."""

    def one(host: Host) -> Facts | tuple[bool, str]:
        asked = ("-m", "launch.facts", "--shared", str(shared), "--name", host.name, "--port", str(port))
        command = reach.python(host.name, *asked)
        try:
            result = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ANSWER_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True, f"connected, but did not answer within {ANSWER_S} s"
        lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
        if result.returncode == 0 and lines:
            return cast(Facts, json.loads(lines[-1]))
        complaint = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
        return result.returncode == 255 and reach.way == "ssh", complaint[0]  # 255: ssh itself failed

    answers = Answers({}, {}, {})
    with ThreadPoolExecutor(max_workers=min(64, len(hosts))) as pool:
        for host, answer in zip(hosts, pool.map(one, hosts), strict=True):
            if isinstance(answer, tuple):
                (answers.unreachable if answer[0] else answers.broken)[host.name] = answer[1]
            else:
                answers.facts[host.name] = answer
    return answers


def disagreements(facts: Mapping[str, Facts], nonce: str, shared: Path, port: int) -> list[str]:
    """Why hosts that answered cannot run one job together; empty when they can.

    Args:
        facts: what each host said, the first host of the job first.
        nonce: what the submitting host wrote into `shared`.
    """
    problems = []
    for package in next(iter(facts.values()))["versions"]:
        groups = _groups({host: answer["versions"].get(package, "missing") for host, answer in facts.items()})
        if len(groups) > 1:
            parts = [f"{version} on {_names(names)}" for version, names in groups.items()]
            problems.append(f"{package} differs: {'; '.join(parts)}; install the same version everywhere")
        elif "missing" in groups and package not in OPTIONAL_PACKAGES:
            problems.append(f"{package} is not installed for {sys.executable}; install the project there")
    problems += _code_differences(facts)
    if blind := {host: answer["nonce"] for host, answer in facts.items() if answer["nonce"] != nonce}:
        reasons = "; ".join(f"{host}: {said[:80]}" for host, said in blind.items())
        problems.append(
            f"{shared} is not one directory on all hosts ({reasons}); run_dir must lie on storage that all of them share and write"
        )
    first = next(iter(facts))
    if not facts[first]["port_free"]:
        problems.append(f"port {port} of {first} is taken, perhaps by another run; give another --master-port")
    return problems


def _code_differences(facts: Mapping[str, Facts]) -> list[str]:
    groups = _groups({host: json.dumps(answer["code"], sort_keys=True) for host, answer in facts.items()})
    (common, many), *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    expected, problems = json.loads(common), []
    for text, names in others:
        files = json.loads(text)
        odd = sorted(path for path in {*files, *expected} if files.get(path) != expected.get(path))
        more = f" and {len(odd) - _FILES_NAMED} more" if len(odd) > _FILES_NAMED else ""
        problems.append(
            f"the code on {_names(names)} is not that on {_names(many)}: {', '.join(odd[:_FILES_NAMED])}{more}; "
            "bring all hosts to one version"
        )
    return problems


def _groups(values: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for host, value in values.items():
        groups[value].append(host)
    return groups


def _names(hosts: Sequence[str]) -> str:
    return ", ".join(hosts) if len(hosts) <= 4 else f"{', '.join(hosts[:3])} and {len(hosts) - 3} more"
