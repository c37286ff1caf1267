"""Start a run on many hosts: check first, start by a launcher, end clean, start again from the last checkpoint.

    python -m launch.submit --hostfile hostfiles/two_nodes --config configs/large_video.yaml --env-file launch/env/infiniband.env
    python -m launch.submit --hostfile hostfiles/one_node --config configs/large_video_8gpu.yaml --dry-run   # starts nothing
    python -m launch.submit --launcher srun --config configs/large_video.yaml                     # inside a Slurm allocation

Exit codes: those of launch.pretrain (0 finished, 75 stopped with a checkpoint, 2 refused or wrong configuration, 69 another job has
the run directory). Anything else is a failure, 128 + n where a rank was killed by signal n. What was started is in
<run_dir>/launch/<job>.<attempt>/.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import attempt
from launch.hostfile import world_size
from launch.job import Job
from launch.launchers import LAUNCHERS, Plan, commands
from launch.outcome import Outcome
from launch.restarts import PATIENCE_S, repeat
from megatron_ovenc.train.exit_codes import EXIT_CONFIG, EXIT_FINISHED, EXIT_IN_USE
from megatron_ovenc.train.run_lock import RunInUse


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
        "--patience",
        type=float,
        default=PATIENCE_S,
        metavar="S",
        help=f"seconds for which a restart waits for its hosts and for the lock on run_dir (default: {PATIENCE_S:g})",
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


def run(job: Job) -> Outcome:
    """Run attempts until one ends well, or is not worth another.

    Raises:
        ValueError: the hosts, or the run directory (RunInUse), are not ready for the first attempt; nothing was trained.
    """

    def one(number: int) -> Outcome:
        plan = job.plan(number)
        try:
            _announce(plan)
            if job.options.dry_run:
                return Outcome(EXIT_FINISHED, "dry run: nothing was started")
            if stop.count:
                return Outcome(128 + signal.SIGINT, "told to stop before anything was started")
            outcome = attempt.run(plan, commands(plan), job.run_dir, stop, job.options.grace)
            if outcome.code == EXIT_IN_USE:  # since it was looked at
                raise RunInUse(outcome.reason)
            return outcome
        finally:
            plan.script.unlink(missing_ok=True)  # may hold secrets

    with attempt.Stop() as stop:
        return repeat(
            one,
            job.last_step,
            job.options.restarts,
            stop.pause,
            patience_s=job.options.patience,
            requeued=job.requeued,
        )


def _announce(plan: Plan) -> None:
    print(f"submit: attempt {plan.attempt}: {world_size(plan.hosts)} ranks on {len(plan.hosts)} hosts", flush=True)
    for command in commands(plan):
        print(command, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, start, watch; returns the exit code."""
    options = arguments(argv)
    try:
        outcome = run(Job(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_IN_USE if isinstance(error, RunInUse) else EXIT_CONFIG
    print(
        f"submit: {outcome.reason}; exit code {outcome.code}",
        file=sys.stderr if outcome.code else sys.stdout,
        flush=True,
    )
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
