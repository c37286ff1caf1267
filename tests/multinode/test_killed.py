"""kill -9: of a rank, of what started the ranks of a host, of everything on a host, of launch.submit itself."""

from __future__ import annotations

import signal
import time

import pytest

from tests.multinode.case import BROKEN, SOON, Case, eventually
from tests.multinode.hosts import NODES
from tests.multinode.job import EVERY

pytestmark = pytest.mark.multinode


def test_rank(case: Case) -> None:
    """On the second host. All four start again, from the last checkpoint."""
    job = case.job(submit=("--restarts", "1"))
    with job.running():
        job.wait_for_step(EVERY + 2)
        at = time.time()
        job.ranks("node2")[1].send_signal(signal.SIGKILL)
        assert job.wait() == 0, job.output
    assert job.said(f"restart 1 of 1 from step {EVERY}")
    case.record(
        "kill -9 of a rank; `--restarts 1`", job, at, said="submit: (?!restart|asking)", noticed=BROKEN, goes_on=True
    )


@pytest.mark.slow
def test_launcher(case: Case) -> None:
    """DeepSpeed's process on the second host: its ranks are orphans then, but guarded by launch.submit. They go on to the end."""
    job = case.job()
    with job.running():
        job.wait_for_step(EVERY + 2)
        at = time.time()
        (launcher,) = job.launchers("node2")
        launcher.send_signal(signal.SIGKILL)
        assert job.wait() == 0, job.output
    row = case.record("kill -9 of DeepSpeed's launcher on one host", job, at, said="submit: finished", goes_on=True)
    assert row.lost == 0


@pytest.mark.slow
def test_host(case: Case) -> None:
    """Power off, at once and without a word on the network. The job goes on on the host that is left."""
    job = case.job(*SOON, submit=("--restarts", "1", "--min-hosts", "1"))
    try:
        with job.running():
            job.wait_for_step(EVERY + 2)
            at = time.time()
            case.hosts.power_off("node2")
            assert job.wait() == 0, job.output
    finally:
        case.hosts.boot("node2")
    assert job.said("going on without node2")
    case.record(
        "power off one host; `--restarts 1 --min-hosts 1`", job, at, said="submit: ", noticed=BROKEN, goes_on=True
    )


@pytest.mark.slow
def test_submit(case: Case) -> None:
    """The submitting process: the guards on the hosts notice, and have the ranks write a checkpoint."""
    job = case.job()
    with job.running():
        job.wait_for_step(EVERY + 2)
        at = time.time()
        job.submit_process().send_signal(signal.SIGKILL)
        eventually(lambda: not any(case.hosts.pids(node) for node in NODES), "end of all processes")
        assert job.wait() == -signal.SIGKILL
    case.resume_alone()
    row = case.record("kill -9 of `launch.submit`", job, at, said="told to stop")
    assert row.lost == 0
