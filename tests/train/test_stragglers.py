"""The rank that the others wait for is found by its own time, not by the time that waiting for it cost the others."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_ovenc.config import ParallelConfig, TrainConfig
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.stragglers import own_seconds, slowest
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource
from tests.train.test_resume import BATCH, CLASSES, small_config

SLEEP_S = 0.3


@pytest.mark.parametrize(
    ("data", "forward", "rank", "ratio"),
    [
        (
            [0.0, 3.0, 0.0, 0.0],
            [4.0, 1.0, 4.0, 4.0],
            1,
            4.0,
        ),  # late data: the others wait 3 s in their first collective
        ([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 2.5], 3, 2.5),  # a slow device
        ([0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], 1, 4.0),  # late data, and no collective that waits for it
    ],
)
def test_own_time_tells_the_slowest(data: list[float], forward: list[float], rank: int, ratio: float) -> None:
    own = own_seconds(np.array(data), np.array(forward))
    assert slowest(own) == (rank, pytest.approx(ratio))


class SlowSource(RecordedSource):
    def next(self) -> PatchBatch:
        if self.topology.rank == 1:
            time.sleep(SLEEP_S)
        return super().next()


def train(topology: Topology, run_dir: Path) -> None:
    config = replace(small_config(run_dir, ParallelConfig()), train=TrainConfig(steps=6))
    pixels, labels = torch.randn(2, 2 * BATCH, 3, 28, 28), torch.randint(0, CLASSES, (2, 2 * BATCH, 2))
    with assemble(config, topology, {"image": SlowSource(pixels, labels, 14, topology)}) as trainer:
        trainer.step()


def test_every_rank_is_heard(rank_pool: RankPool, tmp_path: Path) -> None:
    """Rank 0 writes what rank 1 has waited. Which is the slowest of two busy test processes is left to chance."""
    rank_pool.run(train, world=2, args=(tmp_path,))
    (record,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert record["wait/data_max_s"] >= SLEEP_S
    assert record["straggler/rank"] in (0, 1)
    assert record["straggler/ratio"] >= 1
