"""SIGTERM to one rank, wherever it is: all write a checkpoint and end with exit code 75, and nothing has to be computed again."""

from __future__ import annotations

import pytest

from tests.multinode.case import Case
from tests.multinode.job import EVERY, checkpoints

pytestmark = pytest.mark.multinode
_TRAIN = "megatron_ovenc.train"


def test_in_a_save_then_a_damaged_checkpoint(case: Case) -> None:
    """The signal comes while a checkpoint is being written. Its successor is then truncated: the run falls back, on one host."""
    job = case.job(fault=f"rank=3,call=2,at={_TRAIN}.checkpoint:Checkpointer._write,do=SIGTERM")
    with job.running():
        at = job.fault_time()
        assert job.wait() == 75, job.output
    *_, before, last = checkpoints(case.run_dir)
    assert last > before == 2 * EVERY
    newest = next((case.run_dir / "checkpoints" / f"step_{last:08d}").glob("__2_*.distcp"))
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    resumed = case.job("parallel.tensor=1", nodes=("node1",))
    with resumed.running():
        assert resumed.wait() == 0, resumed.output
    assert resumed.said(f"{newest} has .* bytes instead of")
    assert resumed.said(f"resumed from .*step_{before:08d}")
    case.record("SIGTERM in a save; newest checkpoint truncated", job, at, said="told to stop")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "at_call"),
    [
        ("in a step", f"call={EVERY + 3},at={_TRAIN}.trainer:Trainer._forward_backward"),
        ("in a look at a bank", f"call=5,at={_TRAIN}.bank_watch:BankWatch.look"),
        ("at start-up", f"call=1,at={_TRAIN}.build:build_sources"),
    ],
)
def test_elsewhere(case: Case, where: str, at_call: str) -> None:
    job = case.job(fault=f"rank=3,{at_call},do=SIGTERM")
    with job.running():
        at = job.fault_time()
        assert job.wait() == 75, job.output
    case.resume_alone()
    row = case.record(f"SIGTERM {where}", job, at, said="told to stop")
    assert row.lost == 0
