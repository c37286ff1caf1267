"""A disk that is full while a checkpoint is written."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.multinode.case import Case
from tests.multinode.job import EVERY, STEPS, checkpoints

pytestmark = [pytest.mark.multinode, pytest.mark.slow]


def fill(path: Path) -> None:
    """Write until there is no room left."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def test_disk_full(case: Case) -> None:
    """The save fails loudly, training goes on, and the next save, for which there is room again, succeeds."""
    disk = case.hosts.small_disk
    case.run_dir.mkdir(parents=True)
    (case.run_dir / "checkpoints").symlink_to(disk)
    job = case.job("checkpoint.keep_last=0")
    ballast = disk / "ballast"
    with job.running():
        job.wait_for_step(EVERY)
        at = time.time()
        fill(ballast)
        job.wait_until(lambda: job.said("CHECKPOINT FAILED") is not None, "word of the failed save")
        ballast.unlink()
        assert job.wait() == 0, job.output
    saved = checkpoints(case.run_dir)
    assert saved[0] == EVERY
    assert saved[-1] == STEPS
    assert 2 * EVERY not in saved
    row = case.record("disk full in a save", job, at, said="CHECKPOINT FAILED", goes_on=True)
    assert row.lost == 0
