"""Ranks that wait for one another: the network between the hosts is cut, or a rank sleeps."""

from __future__ import annotations

import signal
import time

import pytest

from tests.multinode.case import SOON, Case, eventually
from tests.multinode.job import EVERY

pytestmark = pytest.mark.multinode


def test_network_cut(case: Case) -> None:
    """For good: both halves end by themselves, and when the cable is back nothing of the job is left on the other host."""
    job = case.job(*SOON)
    try:
        with job.running():
            job.wait_for_step(EVERY + 2)
            at = time.time()
            case.hosts.cut()
            assert job.wait() not in (0, 2, 75), job.output
            case.hosts.heal()
            eventually(lambda: not case.hosts.pids("node2"), "end of the processes on node2", 150)
            job.look_for_leftovers()
    finally:
        case.hosts.heal()
    case.resume_alone()
    case.record("network between the hosts cut", job, at, said="HANG|submit: .*exit code")


@pytest.mark.slow
def test_network_cut_and_healed(case: Case) -> None:
    """For less than train.hang_timeout_s: the run waits, and goes on."""
    job = case.job()
    try:
        with job.running():
            job.wait_for_step(EVERY + 2)
            at = time.time()
            case.hosts.cut()
            time.sleep(5)
            case.hosts.heal()
            assert job.wait() == 0, job.output
    finally:
        case.hosts.heal()
    row = case.record("network cut for 5 s, then healed", job, at, goes_on=True)
    assert row.lost == 0


@pytest.mark.slow
def test_sleeping_rank(case: Case) -> None:
    """SIGSTOP: the process is there and holds its connections, but does nothing. It is named."""
    job = case.job(*SOON)
    with job.running():
        job.wait_for_step(EVERY + 2)
        at = time.time()
        job.ranks("node2")[1].send_signal(signal.SIGSTOP)
        assert job.wait() not in (0, 2, 75), job.output
    case.resume_alone()
    case.record("a rank sleeps (SIGSTOP)", job, at, said=r"HANG: rank 3 \(host node2\)")
