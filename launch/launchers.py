"""Command lines of the launchers, and how each of them carries the declared environment to the ranks.

    pdsh      deepspeed over pdsh: every host's shell reads environment.sh (--venv_script) before anything starts
    openmpi   deepspeed over mpirun: ranks start through rank.sh, which reads environment.sh
    torchrun  one `torch.distributed.run` a host over ssh, whose shell reads environment.sh
    srun      tasks of the Slurm allocation inherit the environment

DeepSpeed's own forwarding is not used: it quotes neither for a shell nor for mpirun, and reads a .deepspeed_env nobody named.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.envfile import JOB_VARIABLE, shell_exports
from launch.hostfile import Host, world_size
from launch.hosts import CONNECT_S, Reach

LAUNCHERS = ("pdsh", "openmpi", "torchrun", "srun")
_PROGRAMS = {
    "pdsh": ("pdsh", "ssh"),
    "openmpi": ("mpirun", "ompi_info", "ssh"),
    "torchrun": ("ssh",),
    "srun": ("srun", "scontrol"),
}
_FORWARDED_BY_DEEPSPEED = ("MLFLOW", "MV2", "UCX", "NCCL")
"""Prefixes of what DeepSpeed sends unasked. It also sends PYTHON*: in its PYTHONPATH is the working directory."""
_PLAIN = re.compile(r"[\w@+=:,./-]+")
"""Words that neither a shell nor pdsh (which expands %h, %n, %u) changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One attempt at a job: where, with what, and by which launcher."""

    attempt: str
    """The attempt's mark, <job>.<attempt>."""
    hosts: Sequence[Host]
    launcher: str
    reach: Reach
    directory: Path
    """<run_dir>/launch/<attempt>, visible on all hosts: configuration, environment.sh, hostfile."""
    declared: dict[str, str]
    """Variables of --env-file."""
    address: str
    """Where the ranks meet."""
    network: str
    """Network of that address on the first host, `10.0.0.1/24`; empty when unknown."""
    port: int

    @property
    def script(self) -> Path:
        """environment.sh: exists only while the attempt runs."""
        return self.directory / "environment.sh"

    @property
    def environment(self) -> dict[str, str]:
        """What every rank gets beside the launcher's own variables."""
        variables = {**self.declared, JOB_VARIABLE: self.attempt}
        if self.launcher in {"openmpi", "srun"}:  # the others set these themselves
            variables |= {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)}
        return variables

    @property
    def rank(self) -> list[str]:
        """What runs on every rank, as the arguments of Python."""
        return ["launch.pretrain", "--config", str(self.directory / "config.yaml")]


@dataclass(frozen=True, slots=True)
class Command:
    """A process that `submit` starts."""

    words: list[str]
    environment: dict[str, str]

    def __str__(self) -> str:
        return shlex.join(self.words)


def missing_programs(launcher: str, local: bool) -> list[str]:
    """Programs that a launcher needs on the submitting host and that are not there."""
    return [] if local else [name for name in _PROGRAMS[launcher] if shutil.which(name) is None]


def forwarding_notes(declared: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What users of DeepSpeed's launcher expect to reach the ranks, and does not: only what is declared does."""
    notes = []
    if undeclared := sorted(name for name in here if name.startswith(_FORWARDED_BY_DEEPSPEED) and name not in declared):
        notes.append(
            f"{', '.join(undeclared)} are set here, but reach the ranks only when a line of --env-file names them"
        )
    files = [path for path in (Path(".deepspeed_env"), Path.home() / ".deepspeed_env") if path.is_file()]
    if files:
        notes.append(f"{files[0]} is not read; its lines work in a file given by --env-file")
    return notes


def check_slots(launcher: str, hosts: Sequence[Host], local: bool) -> None:
    """Refuse hosts and slots that a launcher cannot express.

    Raises:
        ValueError: with the launcher that can.
    """
    if local or launcher == "pdsh":
        return
    if partial := [host.name for host in hosts if host.slots != tuple(range(len(host.slots)))]:
        raise ValueError(
            f"--launcher {launcher} cannot leave out single slots ({', '.join(partial)}); --launcher pdsh can"
        )
    if launcher == "srun" and len({len(host.slots) for host in hosts}) > 1:
        raise ValueError("--launcher srun wants the same number of tasks on every node; ask for --ntasks-per-node")


def ssh_words(launcher: str, text: str) -> tuple[str, ...]:
    """Words of --ssh-args.

    Raises:
        ValueError: a launcher cannot hand them to ssh: pdsh and mpirun split at every blank, and pdsh replaces `%h`, `%n`, `%u`.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"--ssh-args {text}: {error}") from error
    if words and launcher == "srun":
        raise ValueError("--launcher srun uses no ssh; remove --ssh-args")
    for word in words if launcher in {"pdsh", "openmpi"} else ():
        if not word or any(letter.isspace() for letter in word) or ("%" in word and launcher == "pdsh"):
            raise ValueError(
                f"--ssh-args: --launcher {launcher} cannot pass the word `{word}` on to ssh, for it has a blank, a % or nothing "
                "in it; write it into ~/.ssh/config, or use --launcher torchrun"
            )
    return words


def write_files(plan: Plan) -> None:
    """Write what the commands refer to. environment.sh may hold secrets: only its owner can read it."""
    lines = [f"{host.name} slots={host.slots[-1] + 1}\n" for host in plan.hosts]
    (plan.directory / "hostfile").write_text("".join(lines))
    if plan.launcher != "srun":
        plan.script.touch(mode=0o600)
        plan.script.write_text(shell_exports(plan.environment))
    if plan.launcher == "openmpi":
        (plan.directory / "rank.sh").write_text(
            f". {shlex.quote(str(plan.script))}\n"
            "export RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=$OMPI_COMM_WORLD_SIZE LOCAL_RANK=$OMPI_COMM_WORLD_LOCAL_RANK\n"
            f"exec {shlex.join([sys.executable, '-u', '-m', *plan.rank])}\n"
        )


def commands(plan: Plan) -> list[Command]:
    """What to start on this machine. The attempt ends when all of it has ended.

    Raises:
        ValueError: a path would not survive the way to the hosts.
    """
    if plan.launcher == "srun":
        return [_srun(plan)]
    if plan.launcher == "torchrun":
        return [_torchrun(plan, number, host) for number, host in enumerate(plan.hosts)]
    return [_deepspeed(plan)]


def _deepspeed(plan: Plan) -> Command:
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(plan.directory / "hostfile")]
    words += ["--no_ssh_check", "--master_addr", plan.address, "--master_port", str(plan.port)]
    if any(host.slots != tuple(range(len(host.slots))) for host in plan.hosts):
        words += ["--include", "@".join(f"{host.name}:{','.join(map(str, host.slots))}" for host in plan.hosts)]
    if plan.reach.local:
        return Command([*words, "--no_local_rank", "--module", *plan.rank], {**os.environ, **plan.environment})
    kept = {**os.environ, **plan.declared}
    kept = {name: value for name, value in kept.items() if not name.startswith(_FORWARDED_BY_DEEPSPEED)}
    kept["DS_ENV_FILE"] = os.devnull  # not a regular file, so none is read
    words += ["--force_multi", "--launcher", plan.launcher]
    if plan.launcher == "pdsh":
        kept["PDSH_SSH_ARGS_APPEND"] = " ".join([kept.get("PDSH_SSH_ARGS_APPEND", ""), *plan.reach.ssh_options]).strip()
        words += [f"--launcher_args=-t {CONNECT_S}"]
        words += ["--venv_script", str(plan.script), "--no_local_rank", "--module", *plan.rank]
    else:
        words += [f"--launcher_args={shlex.join(_mpirun_arguments(plan))}"]
        words += ["--no_local_rank", "--no_python", "bash", str(plan.directory / "rank.sh")]
    _check_plain([sys.executable, os.getcwd(), str(plan.directory)])
    return Command(words, kept)


def _mpirun_arguments(plan: Plan) -> list[str]:
    """Meet on the network of the master address, start by our ssh, and bind no rank to one core: decoding workers need more."""
    words = ["--bind-to", "none", "--mca", "plm_rsh_args", " ".join(plan.reach.ssh_options)]
    if plan.network:
        words += ["--mca", "btl_tcp_if_include", plan.network, "--mca", "oob_tcp_if_include", plan.network]
    return [*words, "--allow-run-as-root"] if os.geteuid() == 0 else words  # a container's only user


def _check_plain(paths: list[str]) -> None:
    for path in paths:
        if not _PLAIN.fullmatch(path):
            raise ValueError(
                f"the path {path} has characters that the remote shell would change, for DeepSpeed does not quote them; use a path "
                "of letters, digits and ./_-, or --launcher torchrun"
            )


def _torchrun(plan: Plan, number: int, host: Host) -> Command:
    words = [
        sys.executable,
        "-u",
        "-m",
        "torch.distributed.run",
        "--nnodes",
        str(len(plan.hosts)),
        "--node_rank",
        str(number),
    ]
    words += ["--nproc_per_node", str(len(host.slots)), "--master_addr", plan.address, "--master_port", str(plan.port)]
    line = f". {shlex.quote(str(plan.script))} && exec {shlex.join([*words, '-m', *plan.rank])}"
    return Command(plan.reach.shell(host.name, line), dict(os.environ))


def _srun(plan: Plan) -> Command:
    slots, world = len(plan.hosts[0].slots), world_size(plan.hosts)
    words = [
        "srun",
        f"--nodes={len(plan.hosts)}",
        f"--ntasks={world}",
        f"--ntasks-per-node={slots}",
        "--kill-on-bad-exit=1",
    ]
    words.append(f"--nodelist={','.join(host.name for host in plan.hosts)}")
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):  # srun does not take it over from sbatch
        words.append(f"--cpus-per-task={cores}")
    return Command([*words, sys.executable, "-u", "-m", *plan.rank], {**os.environ, **plan.environment})
