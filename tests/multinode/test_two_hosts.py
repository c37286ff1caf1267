"""Two hosts train one model over ssh and a network, and one of them can go on alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.multinode.hosts import TwoHosts
from tests.multinode.job import STEPS, Job, largest_difference, losses

pytestmark = pytest.mark.multinode


def test_stopped_on_two_hosts_continues_on_one(
    hosts: TwoHosts, config: Path, undisturbed: dict[int, dict[str, float]], tmp_path: Path
) -> None:
    """From 4 ranks of tensor size 2 to 2 ranks of tensor size 1."""
    first = Job(hosts, config, tmp_path / "run", f"train.stop_after={STEPS // 2}").run()
    assert first.code == 75
    assert not first.left
    job = Job(hosts, config, tmp_path / "run", "parallel.tensor=1", nodes=("node1",))
    assert job.run().code == 0, job.output
    assert largest_difference(losses(tmp_path / "run"), undisturbed) < 1e-5
