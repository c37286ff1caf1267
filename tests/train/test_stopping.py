"""Requests to stop are obeyed whenever they come; real signals, sent by one rank to itself at the awkward moment."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ovenc.config import CheckpointConfig, ConfigError, LogConfig, ParallelConfig
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.bank_watch import BankWatch
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.checkpoint import Checkpointer, checkpoint_path, checkpoint_steps, damage
from megatron_ovenc.train.faults import StopRequests
from megatron_ovenc.train.preflight import check_run
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource
from tests.train.test_resume import BATCH, CLASSES, small_config


def signal_self(topology: Topology) -> None:
    if topology.rank == topology.world - 1:
        os.kill(os.getpid(), signal.SIGTERM)


def signal_before(patch: pytest.MonkeyPatch, owner: type, method: str, topology: Topology) -> None:
    """SIGTERM at every call of `owner.method` on the last rank."""
    original = getattr(owner, method)

    def signalled(*args: object, **kwargs: object) -> object:
        signal_self(topology)
        return original(*args, **kwargs)

    patch.setattr(owner, method, signalled)


class SignallingSource(RecordedSource):
    """The signal arrives while the last rank waits for the second step's data."""

    def next(self) -> PatchBatch:
        if self.position == 2:
            signal_self(self.topology)
        return super().next()


def train(topology: Topology, run_dir: Path, where: str) -> str:
    config = replace(
        small_config(run_dir, ParallelConfig()),
        checkpoint=CheckpointConfig(every=2),
        log=LogConfig(every=100, tensorboard=False, bank_every=3),
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(12, BATCH, 3, 28, 28, generator=generator)
    labels = torch.randint(0, CLASSES, (12, BATCH, 2), generator=generator)
    kind = SignallingSource if where in ("data", "twice") else RecordedSource
    with StopRequests() as stop, pytest.MonkeyPatch.context() as patch:
        if where == "start-up":
            signal_self(topology)
        if where in ("save", "twice"):
            signal_before(patch, Checkpointer, "_record", topology)
        if where == "bank look":
            signal_before(patch, BankWatch, "look", topology)
        sources = {"image": kind(pixels, labels, 14, topology)}
        with assemble(config, topology, sources, stop=stop) as trainer:
            if where == "file" and topology.is_main:
                (run_dir / "STOP").touch()
            return trainer.train()


@pytest.mark.parametrize(
    ("where", "steps"),
    [
        ("start-up", [0]),
        ("file", [0]),
        ("data", [2]),
        ("save", [2]),  # noted during the save of step 2: by then, or in the step after it, all ranks know
        ("twice", [2]),  # the second signal comes while the first one's checkpoint is written
        ("bank look", [1]),
    ],
)
def test_a_request_to_stop_is_never_lost(rank_pool: RankPool, tmp_path: Path, where: str, steps: list[int]) -> None:
    assert set(rank_pool.run(train, world=2, args=(tmp_path, where))) == {"stopped"}
    checkpoints = tmp_path / "checkpoints"
    last = checkpoint_steps(checkpoints)[-1]
    if where == "save":  # it is written in the background: the steps taken meanwhile are not known
        assert 2 < last < 6
    else:
        assert checkpoint_steps(checkpoints) == steps
    assert damage(checkpoint_path(checkpoints, last)) == []
    assert not (tmp_path / "STOP").exists(), "an obeyed request is gone"
    assert set(rank_pool.run(train, world=1, args=(tmp_path, ""))) == {"finished"}


def test_fewer_steps_than_were_taken_are_refused(
    rank_pool: RankPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_ovenc.train.preflight.check_source", lambda *args, **kwargs: None)
    rank_pool.run(train, world=1, args=(tmp_path, ""))
    config = small_config(tmp_path, ParallelConfig())
    check_run(config, 1)
    with pytest.raises(ConfigError, match=r"train\.steps=5 lies before step 6"):
        check_run(replace(config, train=replace(config.train, steps=5)), 1)
