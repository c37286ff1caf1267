"""Hosts and ranks that are not like the others: a clock that is wrong, pixels that are no numbers."""

from __future__ import annotations

import os
import time

import pytest

from tests.multinode.case import Case
from tests.multinode.job import EVERY, INJECT, losses, run_alone

ONE_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
pytestmark = [pytest.mark.multinode, pytest.mark.slow]


def test_clock_skew(case: Case) -> None:
    """The second host is ten minutes ahead: nothing depends on its clock."""
    case.hosts.power_off("node2")
    case.hosts.boot("node2", clock_s=600)
    job = case.job()
    try:
        with job.running():
            at = time.time()
            assert job.wait() == 0, job.output
    finally:
        case.hosts.power_off("node2")
        case.hosts.boot("node2")
    row = case.record("clock of one host 600 s ahead", job, at, goes_on=True)
    assert row.lost == 0


def test_not_a_number_on_one_rank(case: Case) -> None:
    """One rank's batch is spoiled in one step: no rank takes it, and rank and samples are named.

    A single process whose batch is spoiled in the same step must come to the same losses in all others.
    """
    poison = "at=megatron_ovenc.data.loader:HeadLoader.next,do=nan"
    call = 2 * (EVERY + 2) + 1  # one a head a step
    job = case.job("parallel.tensor=1", fault=f"rank=3,call={call},{poison}")
    with job.running():
        at = job.fault_time()
        assert job.wait() == 0, job.output
    alone = case.run_dir.with_name("alone")
    fault = f"rank=0,call={call},{poison},log={case.run_dir}/alone.json"
    run_alone(case.config, alone, os.environ | ONE_RANK | {"PYTHONPATH": str(INJECT), "TEST_FAULT": fault})
    row = case.record("NaN in one rank's batch", job, at, said="STEP NOT TAKEN", goes_on=True, reference=losses(alone))
    assert "ranks 3" in row.said
    assert row.lost == 0
