"""A loss that jumps is noticed, against losses that outlive a restart, and the step taken or not as the configuration says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ovenc.config import ParallelConfig, ScheduleConfig, SpikeConfig, TrainConfig
from megatron_ovenc.parallel.gradients import local
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.faults import TrainingError
from megatron_ovenc.train.guard import is_spike
from megatron_ovenc.train.trainer import Trainer
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource
from tests.train.test_resume import BATCH, CLASSES, small_config

SPIKE_AT, STEPS = 12, 14
WARN = SpikeConfig(action="warn", window=10)


def test_a_spike_is_measured_in_robust_deviations() -> None:
    calm = [10.0 + 0.1 * (-1) ** i for i in range(10)]
    assert is_spike(11.3, calm, WARN)
    assert not is_spike(11.1, calm, WARN)
    assert is_spike(11.3, [*calm[:9], 1e9], WARN), "one earlier spike does not hide the next"
    assert not is_spike(11.3, calm[:9], WARN), "too few losses to tell"
    assert not is_spike(1e9, calm, replace(WARN, action="none"))
    assert not is_spike(10.5, [10.0] * 10, WARN), "a loss that stood still may wobble"


def train(topology: Topology, run_dir: Path, action: str, stop_after: int | None) -> tuple[str, bool]:
    """Every step's loss is about the same but that of one; says how it ended and whether that step changed the weights."""
    config = replace(
        small_config(run_dir, ParallelConfig(tensor=topology.tensor)),
        train=TrainConfig(steps=STEPS, stop_after=stop_after, spike=SpikeConfig(action=action, window=10, factor=50.0)),
        schedule=ScheduleConfig(),
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 2 * BATCH, 3, 28, 28, generator=generator).expand(STEPS + 1, -1, -1, -1, -1)
    labels = torch.randint(0, CLASSES, (1, 2 * BATCH, 2), generator=generator).expand(STEPS + 1, -1, -1)
    changed = []

    def spiking(self: Trainer, *args: object, loss: object = Trainer._loss) -> torch.Tensor:
        return loss(self, *args) * (1000.0 if self.state.step + 1 == SPIKE_AT else 1.0)

    def step(self: Trainer, take: object = Trainer.step) -> bool:
        before = local(next(self.state.encoder.parameters())).clone()
        told = take(self)
        if self.state.step == SPIKE_AT:
            changed.append(not torch.equal(before, local(next(self.state.encoder.parameters()))))
        return told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_loss", spiking)
        patch.setattr(Trainer, "step", step)
        with assemble(config, topology, {"image": RecordedSource(pixels, labels, 14, topology)}) as trainer:
            try:
                return trainer.train(), any(changed)
            except TrainingError as error:
                return str(error), any(changed)


@pytest.mark.parametrize(
    ("action", "data", "tensor", "changes"), [("warn", 1, 1, True), ("skip", 2, 1, False), ("skip", 1, 2, False)]
)
def test_a_spike_is_named_and_left_out_if_asked_for(
    rank_pool: RankPool, tmp_path: Path, action: str, data: int, tensor: int, changes: bool
) -> None:
    for stop_after in (SPIKE_AT - 1, None):  # the losses before the spike are those of an earlier session
        ends = rank_pool.run(train, world=data * tensor, tensor=tensor, args=(tmp_path, action, stop_after))
    assert set(ends) == {("finished", changes)}
    (record,) = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert (record["step"], record["reason"], record["ranks"]) == (SPIKE_AT, "spike", [])
    assert len(record["samples"]["image"]) == 2 * BATCH
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["skipped"]] == ([] if changes else [SPIKE_AT])


def test_a_spike_ends_the_run_if_asked_for(rank_pool: RankPool, tmp_path: Path) -> None:
    ((message, changed),) = rank_pool.run(train, world=1, args=(tmp_path, "stop", None))
    assert f"the loss spiked in step {SPIKE_AT} (train.spike.action=stop)" in message
    assert not changed
