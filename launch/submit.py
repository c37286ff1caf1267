"""Start a run on many hosts: check first, start by a launcher, end clean, start again from the last checkpoint.

    python -m launch.submit --hostfile hostfiles/two_nodes --config configs/large_video.yaml --env-file launch/env/infiniband.env
    python -m launch.submit --hostfile H --config C --dry-run              # checks, prints the command, starts nothing
    python -m launch.submit --launcher srun --config C                     # inside a Slurm allocation

Exit codes: those of launch.pretrain (0 finished, 75 stopped with a checkpoint, 2 refused or wrong configuration). Anything else is
a failure, 128 + n where a rank was killed by signal n. What was started is in <run_dir>/launch/<job>.<attempt>/.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from launch import attempt
from launch.envfile import read_environment
from launch.facts import NONCE
from launch.hostfile import Host, check_layout, read_hostfile, select_hosts, slurm_hosts, world_size
from launch.hosts import Answers, Reach, ask, disagreements, is_here, master_address
from launch.launchers import LAUNCHERS, Plan, check_slots, commands, forwarding_notes, missing_programs, write_files
from launch.outcome import EXIT_CONFIG, Outcome
from launch.restarts import repeat
from megatron_ovenc.config import dump, load
from megatron_ovenc.train.checkpoint import checkpoint_steps
from megatron_ovenc.train.preflight import check_run

RESTART_PAUSE_S = 5.0
"""Seconds between an attempt's end and the next one's checks."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.submit", description="Check hosts, then train on them; see docs/cluster.md."
    )
    parser.add_argument("--config", required=True, help="YAML run configuration")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key"
    )
    parser.add_argument("--hostfile", type=Path, help="`<host> slots=<ranks>` a line; not with --launcher srun")
    parser.add_argument("--include", default="", help="hosts and slots to use: node001@node002:0,2")
    parser.add_argument("--exclude", default="", help="hosts and slots to leave out: node003@node004:7")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="pdsh", help="what starts the ranks (default: pdsh)")
    parser.add_argument("--master-addr", help="address of the first host on the network where the ranks meet")
    parser.add_argument("--master-port", type=int, default=29500, help="a free port of the first host (default: 29500)")
    parser.add_argument("--env-file", type=Path, help="variables for the ranks, NAME=value or NAME a line")
    parser.add_argument("--ssh-args", default="", help="further arguments of ssh: '-p 2222 -i key'")
    parser.add_argument(
        "--restarts", type=int, default=0, metavar="N", help="start again up to N times after a failure"
    )
    parser.add_argument(
        "--min-hosts", type=int, metavar="M", help="restart without unreachable hosts if at least M are left"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=300,
        metavar="S",
        help="seconds for the checkpoint of a stopped run (default: 300)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, print the command, start nothing")
    return parser.parse_args(argv)


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
        alone = len(self.hosts) == 1 and is_here(self.hosts[0].name)
        way: Literal["ssh", "srun", "local"] = "srun" if options.launcher == "srun" else "local" if alone else "ssh"
        self.reach = Reach(way, tuple(shlex.split(options.ssh_args)))
        if options.launcher == "openmpi" and self.reach.local:
            raise ValueError("--launcher openmpi on this host alone gains nothing; leave it out")
        if missing := missing_programs(options.launcher, self.reach.local):
            raise ValueError(f"--launcher {options.launcher} needs {', '.join(missing)} on this host; install it")
        check_slots(options.launcher, self.hosts, self.reach.local)
        self.declared = read_environment(options.env_file, os.environ) if options.env_file else {}
        self.config = load(options.config, options.overrides)
        self.run_dir = Path(self.config.run_dir).absolute()
        self.check_world()
        if self.reach.way == "ssh":
            for note in forwarding_notes(self.declared, os.environ):
                print(f"submit: note: {note}", flush=True)

    def check_world(self) -> None:
        """Refuse a configuration that cannot run on as many ranks as there are slots now."""
        check_layout(self.hosts, self.config.parallel.tensor)
        check_run(self.config, world_size(self.hosts), computes_here=self.reach.local)

    def plan(self, number: int) -> Plan:
        """Ask all hosts and make everything ready for attempt `number`.

        Raises:
            ValueError: one sentence for each thing that is wrong with the hosts.
        """
        mark = f"{self.name}.{number}"
        directory = self.run_dir / "launch" / mark
        directory.mkdir(parents=True)
        try:
            answers = self._ask(directory, may_drop=number > 1)
            address, network = self._meeting_point(answers)
        except ValueError:
            shutil.rmtree(directory, ignore_errors=True)  # nothing was launched from it
            raise
        (directory / "config.yaml").write_text(dump(self.config))
        plan = Plan(
            attempt=mark,
            hosts=self.hosts,
            launcher=self.options.launcher,
            reach=self.reach,
            directory=directory,
            declared=self.declared,
            address=address,
            network=network,
            port=self.options.master_port,
        )
        write_files(plan)
        return plan

    def _ask(self, directory: Path, *, may_drop: bool) -> Answers:
        """Facts of all hosts, which can run the job together."""
        print(f"submit: asking {len(self.hosts)} host{'s' if len(self.hosts) > 1 else ''}", flush=True)
        port, nonce = self.options.master_port, secrets.token_hex(8)
        (directory / NONCE).write_text(nonce)
        answers = ask(self.hosts, self.reach, directory, port)
        if may_drop:
            answers = self._drop_unreachable(answers)
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
        return answers

    def _meeting_point(self, answers: Answers) -> tuple[str, str]:
        """Master address and its network."""
        if self.reach.local:
            return "127.0.0.1", ""
        first = self.hosts[0].name
        address, network = master_address(self.options.master_addr, first, answers.facts[first]["addresses"])
        if self.options.master_addr is None:
            print(f"submit: the ranks meet at {address}, the only address of {first}", flush=True)
        return address, network

    def _drop_unreachable(self, answers: Answers) -> Answers:
        least = self.options.min_hosts
        if not answers.unreachable or least is None:
            return answers
        left = [host for host in self.hosts if host.name not in answers.unreachable]
        if len(left) < least:
            raise ValueError(
                f"{len(left)} hosts are reachable, --min-hosts wants {least}: {_reasons(answers.unreachable)}"
            )
        print(f"submit: going on without {_reasons(answers.unreachable)}", flush=True)
        self.hosts = left
        self.check_world()
        return Answers(answers.facts, {}, answers.broken)

    def last_step(self) -> int:
        """Step of the newest complete checkpoint; 0 without one."""
        return max(checkpoint_steps(self.run_dir / "checkpoints"), default=0)

    def run(self) -> Outcome:
        """Run attempts until one ends well, or is not worth another.

        Raises:
            ValueError: the hosts are not ready for the first attempt; nothing was started.
        """

        def one(number: int) -> Outcome:
            plan = self.plan(number)
            _announce(plan)
            if self.options.dry_run:
                return Outcome(0, "dry run: nothing was started")
            if stop.count:
                return Outcome(130, "told to stop before anything was started")
            return attempt.run(plan, commands(plan), self.run_dir, stop, self.options.grace)

        def may_restart() -> bool:
            time.sleep(RESTART_PAUSE_S)
            return not stop.count

        with attempt.Stop() as stop:
            return repeat(one, self.last_step, self.options.restarts, may_restart)


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


def _announce(plan: Plan) -> None:
    print(f"submit: attempt {plan.attempt}: {world_size(plan.hosts)} ranks on {len(plan.hosts)} hosts", flush=True)
    for command in commands(plan):
        print(command, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, start, watch; returns the exit code."""
    options = arguments(argv)
    try:
        outcome = Job(options).run()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIG
    print(
        f"submit: {outcome.reason}; exit code {outcome.code}",
        file=sys.stderr if outcome.code else sys.stdout,
        flush=True,
    )
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
