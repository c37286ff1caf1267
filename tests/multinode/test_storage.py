"""A disk that is full while a checkpoint and TensorBoard's files are written."""

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
    """Save and board fail loudly, training goes on, and the next save, for which there is room again, succeeds."""
    disk = case.hosts.small_disk
    case.run_dir.mkdir(parents=True)
    for name in ("checkpoints", "tensorboard"):
        (disk / name).mkdir()
        (case.run_dir / name).symlink_to(disk / name)
    job = case.job("checkpoint.keep_last=0", "log.tensorboard=true", "log.every=1")
    ballast = disk / "ballast"
    with job.running():
        job.wait_for_step(EVERY)
        at = time.time()
        fill(ballast)
        job.wait_until(lambda: job.said("CHECKPOINT FAILED") is not None, "word of the failed save")
        job.wait_until(lambda: job.said("BOARD FAILED") is not None, "word of the failed board")
        ballast.unlink()
        assert job.wait() == 0, job.output
    saved = checkpoints(case.run_dir)
    assert saved[0] == EVERY
    assert saved[-1] == STEPS
    assert 2 * EVERY not in saved
    row = case.record("disk full in a save", job, at, said="CHECKPOINT FAILED", goes_on=True)
    assert row.lost == 0
