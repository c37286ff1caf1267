"""What every case needs: it starts jobs, resumes what they left, compares with the undisturbed run, and records the row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.multinode.fault_table import Fault, FaultTable
from tests.multinode.hosts import TwoHosts
from tests.multinode.job import EVERY, Job, Losses, largest_difference, losses, run_alone, steps_lost

SOON_S = 20
SOON = (f"train.hang_timeout_s={SOON_S}", "data.sample_timeout_s=10")
"""Settings under which a hang is found in seconds; not for a machine that is busy with other things."""
BROKEN = "Connection reset|Connection closed|exits with return code|HANG"
"""What is printed first where ranks lose one of theirs."""


@dataclass(frozen=True, slots=True)
class Case:
    """One disturbed run, in a directory of its own."""

    hosts: TwoHosts
    config: Path
    undisturbed: Losses
    run_dir: Path
    table: FaultTable

    def job(
        self, *sets: str, fault: str = "", submit: tuple[str, ...] = (), nodes: tuple[str, ...] = ("node1", "node2")
    ) -> Job:
        """The run's next job."""
        return Job(self.hosts, self.config, self.run_dir, *sets, fault=fault, submit=submit, nodes=nodes)

    def resume_alone(self) -> None:
        """Go on in one process, without a launcher."""
        run_alone(self.config, self.run_dir)

    def record(
        self,
        what: str,
        job: Job,
        at: float,
        *,
        said: str = "",
        noticed: str = "",
        goes_on: bool = False,
        reference: Losses | None = None,
    ) -> Fault:
        """Take the row of a fault that happened `at`, and hold it to what is promised of every one.

        Args:
            what: was done.
            job: the disturbed one; it has ended, and what it left has been resumed.
            at: time.time() of the fault.
            said: pattern of the line that tells a person; empty when there is nothing to say.
            noticed: pattern of the first line about it, if another comes before that.
            goes_on: whether the job was to go on.
            reference: losses to compare with instead of the undisturbed run's.
        """
        line, first = job.said(said, at), job.said(f"{noticed or said}|{said}", at)
        assert first and line, f"nothing like {said!r} in\n{job.output}"
        assert job.ended_at is not None
        row = Fault(
            case=what,
            noticed_s=first[0] - at if said else None,
            ended_s=None if goes_on else job.ended_at - at,
            code=job.process.returncode,
            said=line[1] if said else "",
            lost=steps_lost(self.run_dir),
            difference=largest_difference(losses(self.run_dir), reference or self.undisturbed),
            left=len(job.left),
        )
        self.table.rows.append(row)
        assert row.difference < 1e-5
        assert row.lost <= EVERY
        assert not job.left
        return row


def eventually(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
        time.sleep(0.05)
