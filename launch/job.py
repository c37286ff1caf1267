"""A job: one configuration on some hosts. It says what is wrong with both, and plans every attempt."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from launch.envfile import read_environment
from launch.facts import NONCE
from launch.hostfile import Host, check_layout, read_hostfile, select_hosts, slurm_hosts, world_size
from launch.hosts import Answers, Reach, ask, disagreements, is_here
from launch.launchers import Plan, check_slots, forwarding_notes, missing_programs, ssh_words, write_files
from launch.meeting import master_address, next_address
from megatron_ovenc.config import dump, load
from megatron_ovenc.train.checkpoint import checkpoint_steps
from megatron_ovenc.train.preflight import check_run
from megatron_ovenc.train.run_lock import WAIT_S, RunLock


class Job:
    """A run on many hosts, over all its attempts."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Check everything that can be checked without asking another host.

        Raises:
            ValueError: what is wrong, and the line, key or flag to change.
        """
        self.options = options
        self.name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        self.hosts = select_hosts(_all_hosts(options), options.include, options.exclude)
        """All hosts of the job, whether they can be reached or not."""
        alone = len(self.hosts) == 1 and is_here(self.hosts[0].name)
        way: Literal["ssh", "srun", "local"] = "srun" if options.launcher == "srun" else "local" if alone else "ssh"
        self.reach = Reach(way, ssh_words(options.launcher, options.ssh_args))
        if options.launcher == "openmpi" and self.reach.local:
            raise ValueError("--launcher openmpi on this host alone gains nothing; leave it out")
        if missing := missing_programs(options.launcher, self.reach.local):
            raise ValueError(f"--launcher {options.launcher} needs {', '.join(missing)} on this host; install it")
        check_slots(options.launcher, self.hosts, self.reach.local)
        self.declared = read_environment(options.env_file, os.environ) if options.env_file else {}
        self.config = load(options.config, options.overrides)
        self.run_dir = Path(self.config.run_dir).absolute()
        self._check_restarts()
        self._check_world(self.hosts)
        self.requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        """Whether Slurm has started this job before, and it may have left what takes a while to go."""
        self._network = ""
        self._missed: set[str] = set()
        if self.reach.way == "ssh":
            for note in forwarding_notes(self.declared, os.environ):
                print(f"submit: note: {note}", flush=True)

    def _check_restarts(self) -> None:
        restarts, least = self.options.restarts, self.options.min_hosts
        if restarts and not self.config.checkpoint.resume:
            raise ValueError(
                f"--restarts {restarts} with checkpoint.resume=false: every restart would throw away what has been trained; set "
                "checkpoint.resume=true, or --restarts 0"
            )
        if least is not None and not 1 <= least <= len(self.hosts):
            raise ValueError(f"--min-hosts {least} is not between 1 and the {len(self.hosts)} hosts of the job")
        if least is not None and not restarts:
            raise ValueError(f"--min-hosts {least} is about restarts, and there are none; give --restarts, too")

    def _check_world(self, hosts: Sequence[Host]) -> None:
        """Refuse a configuration that cannot run on as many ranks as the hosts have slots."""
        check_layout(hosts, self.config.parallel.tensor)
        check_run(self.config, world_size(hosts), computes_here=self.reach.local)

    def plan(self, number: int) -> Plan:
        """Ask all hosts and make everything ready for attempt `number`.

        Raises:
            RunInUse: another job has the run directory.
            ValueError: one sentence for each thing that is wrong with the hosts.
        """
        mark = f"{self.name}.{number}"
        directory = self.run_dir / "launch" / mark
        try:
            directory.mkdir(parents=True, exist_ok=True)
            RunLock(self.run_dir).check(WAIT_S if number == 1 and not self.requeued else 0)
            hosts, answers = self._ask(directory, may_drop=number > 1)
            address, network = self._meeting_point(hosts, answers)
            (directory / "config.yaml").write_text(dump(self.config))
            plan = Plan(
                attempt=mark,
                hosts=hosts,
                launcher=self.options.launcher,
                reach=self.reach,
                directory=directory,
                declared=self.declared,
                address=address,
                network=network,
                port=self.options.master_port,
            )
            write_files(plan)
        except (ValueError, OSError) as error:
            shutil.rmtree(directory, ignore_errors=True)  # nothing was launched from it
            if isinstance(error, OSError):
                raise ValueError(f"run_dir={self.run_dir} cannot be written: {error}") from error
            raise
        return plan

    def _ask(self, directory: Path, *, may_drop: bool) -> tuple[list[Host], Answers]:
        """Hosts that can run the job together, and their facts."""
        print(f"submit: asking {len(self.hosts)} host{'s' if len(self.hosts) > 1 else ''}", flush=True)
        port, nonce = self.options.master_port, secrets.token_hex(8)
        (directory / NONCE).write_text(nonce)
        hosts, answers = self.hosts, ask(self.hosts, self.reach, directory, port)
        if may_drop:
            hosts, answers = self._drop_unreachable(answers)
        problems = [f"{host} is unreachable: {reason}" for host, reason in answers.unreachable.items()]
        problems += [f"{host} cannot run the project: {reason}" for host, reason in answers.broken.items()]
        if answers.facts:
            problems += disagreements(answers.facts, nonce, directory, port)
        for host, facts in answers.facts.items():
            if facts["nonce"] == nonce and not (directory / f"{NONCE}.{host}").exists():
                problems.append(f"what {host} writes to {directory} does not appear here")
        if problems:
            raise ValueError("the hosts are not ready:\n" + "\n".join(f"  - {problem}" for problem in problems))
        for file in directory.glob(f"{NONCE}*"):
            file.unlink()
        return hosts, answers

    def _drop_unreachable(self, answers: Answers) -> tuple[list[Host], Answers]:
        """The hosts that are left, if --min-hosts allows, once the same hosts could not be reached twice: one may only be slow."""
        gone, least = set(answers.unreachable), self.options.min_hosts
        missed_before, self._missed = self._missed, gone
        if not gone or least is None or not gone <= missed_before:
            return self.hosts, answers
        left = [host for host in self.hosts if host.name not in gone]
        if len(left) < least:
            raise ValueError(f"--min-hosts wants {least}, reachable are {len(left)}: {_reasons(answers.unreachable)}")
        self._check_world(left)
        print(f"submit: going on without {_reasons(answers.unreachable)}", flush=True)
        return left, Answers(answers.facts, {}, answers.broken)

    def _meeting_point(self, hosts: Sequence[Host], answers: Answers) -> tuple[str, str]:
        """Master address and its network."""
        if self.reach.local:
            return "127.0.0.1", ""
        first = hosts[0].name
        if first != self.hosts[0].name:
            address, network = next_address(first, answers.facts[first]["addresses"], self._network)
            print(f"submit: {first} is the first host instead of {self.hosts[0].name}; the ranks meet at {address}")
            return address, network
        address, self._network = master_address(self.options.master_addr, first, answers.facts[first]["addresses"])
        if self.options.master_addr is None:
            print(f"submit: the ranks meet at {address}, the only address of {first}", flush=True)
        if self.options.min_hosts is not None:
            for host in hosts[1 : len(self.hosts) - self.options.min_hosts + 1]:  # each may become the first one
                next_address(host.name, answers.facts[host.name]["addresses"], self._network)
        return address, self._network

    def last_step(self) -> int:
        """Step of the newest complete checkpoint; 0 without one."""
        return max(checkpoint_steps(self.run_dir / "checkpoints"), default=0)


def _all_hosts(options: argparse.Namespace) -> list[Host]:
    if options.launcher != "srun":
        if options.hostfile is None:
            raise ValueError(
                "--hostfile is missing; see hostfiles/ for examples, one line `localhost slots=8` for this machine"
            )
        return read_hostfile(options.hostfile)
    if options.hostfile is not None or options.min_hosts is not None:
        raise ValueError("--launcher srun takes its hosts from the allocation; remove --hostfile and --min-hosts")
    return slurm_hosts(os.environ)


def _reasons(unreachable: dict[str, str]) -> str:
    return "; ".join(f"{host} ({reason})" for host, reason in unreachable.items())
