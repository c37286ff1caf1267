"""The samples that a run trains on, in order: the same on 1, 2 and 4 ranks and across stops, through trainer and checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ovenc.config import CheckpointConfig, HeadConfig, ParallelConfig, RunConfig
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from tests.data.samples import clip_bytes, clip_head, coded_frames, image_head, loading, write_images, write_shard
from tests.rank_pool import RankPool
from tests.train.test_resume import small_config

STEPS = 6


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[HeadConfig, ...]:
    """Pictures, and clips of which one is bad; micro-batches of five and seven."""
    folder = tmp_path_factory.mktemp("shards")
    clips = [{"mp4": clip_bytes(coded_frames(12 + number))} for number in range(9)]
    clips[4]["mp4"] = clips[4]["mp4"][:500]
    write_shard(folder / "clips-0.tar", clips, np.arange(18).reshape(9, 2))
    pictures = write_images(folder, shards=2, samples=11)
    return image_head(pictures, batch=10), clip_head(str(folder / "clips-0.tar"), batch=14)


def train(topology: Topology, config: RunConfig) -> tuple[str, list[dict[str, Any]]]:
    """How the run ended, and the micro-batches that this rank took: head, where it began, sample ids."""
    taken: list[dict[str, Any]] = []
    load = HeadLoader.next

    def noted(self: HeadLoader) -> Any:
        begin = self.state_dict()["consumed"]
        batch = load(self)
        taken.append({"head": self._head.name, "begin": begin, "ids": batch.sample_ids})
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadLoader, "next", noted)
        with assemble(config, topology) as trainer:
            return trainer.train(), taken


def run(
    pool: RankPool, config: RunConfig, world: int, stop_after: int | None = None
) -> dict[tuple[str, int], list[str]]:
    """Sample ids of each micro-batch, by head and the samples consumed before it."""
    tensor = config.parallel.tensor
    config = replace(config, train=replace(config.train, stop_after=stop_after))
    ends = pool.run(train, world=world, tensor=tensor, args=(config,))
    assert {end for end, _ in ends} == {"finished" if stop_after is None else "stopped"}
    found: dict[tuple[str, int], list[str]] = {}
    for _, taken in ends[::tensor]:
        for part in taken:
            found.setdefault((part["head"], part["begin"]), []).extend(part["ids"])
    return found


def losses(run_dir: Path) -> dict[str, float]:
    """By step and head."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {f"{line['step']} {head}": line[f"loss/{head}"] for line in lines for head in ("images", "clips")}


def test_samples_are_the_same_on_any_ranks_and_across_stops(
    rank_pool: RankPool, heads: tuple[HeadConfig, ...], tmp_path: Path
) -> None:
    config = replace(
        small_config(tmp_path / "whole", ParallelConfig()),
        heads=heads,
        data=loading(workers=1, prefetch=2, sample_timeout_s=60, max_bad_share=0.9),
        checkpoint=CheckpointConfig(every=100),
    )
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    expected = run(rank_pool, config, world=1)
    assert sorted(expected) == sorted(
        (h.name, begin * h.global_batch_size // 2) for h in heads for begin in range(2 * STEPS)
    )
    config = replace(config, run_dir=str(tmp_path / "stopped"))
    found: dict[tuple[str, int], list[str]] = {}
    for world, tensor, stop_after in ((2, 1, 1), (4, 1, 3), (4, 2, 4), (1, 1, None)):
        part = run(rank_pool, replace(config, parallel=ParallelConfig(tensor=tensor)), world, stop_after)
        assert not part.keys() & found.keys(), "no micro-batch is taken twice"
        found |= part
    assert found == expected
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    names = [
        json.loads(line)["sample_id"] for line in (tmp_path / "stopped/bad_samples.jsonl").read_text().splitlines()
    ]
    assert {name.rpartition("#")[2] for name in names} == {"clips-0-004"}
