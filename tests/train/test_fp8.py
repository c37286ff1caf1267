"""Training in FP8: as good a loss as without, on every small layout, and checkpoints that know nothing of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_ovenc.config import (
    BankConfig,
    CheckpointConfig,
    Fp8Config,
    HeadConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
)
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble, describe_layers
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource

STEPS, BATCH, CLASSES = 60, 16, 24


def config(run_dir: Path, layers: str, parallel: ParallelConfig, steps: int = STEPS) -> RunConfig:
    return RunConfig(
        run_dir=str(run_dir),
        model=ModelConfig(hidden_size=64, ffn_size=128, num_layers=3, num_heads=2, layers=layers),  # type: ignore[arg-type]
        heads=(
            HeadConfig(
                name="image",
                global_batch_size=BATCH,
                bank=BankConfig(num_classes=CLASSES, positives=1, logit_scale=16.0, gradient="mean"),
                source=SourceConfig(kind="image", shards=()),
            ),
        ),
        train=TrainConfig(steps=steps, seed=3),
        parallel=parallel,
        optimizer=OptimizerConfig(lr=4e-3),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=10),
        checkpoint=CheckpointConfig(every=10_000, asynchronous=False),
        log=LogConfig(every=100, tensorboard=False),
    )


def noisy_classes(steps: int, topology: Topology) -> RecordedSource:
    """Every class has a pattern; samples are patterns under noise, so the loss falls, but not to nothing."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, 3, 28, 42, generator=generator)
    labels = torch.randint(0, CLASSES, (steps, BATCH, 1), generator=generator)
    noise = torch.randn(steps, BATCH, 3, 28, 42, generator=generator)
    return RecordedSource(0.3 * patterns[labels[..., 0]] + noise, labels, 14, topology)


def train(topology: Topology, run: RunConfig) -> str:
    with assemble(run, topology, {"image": noisy_classes(STEPS + 8, topology)}) as trainer:
        return trainer.train()


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss/image"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def last_loss(run_dir: Path) -> float:
    return sum(losses(run_dir)[-20:]) / 20


@pytest.fixture(scope="module")
def in_bf16(rank_pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("bf16")
    rank_pool.run(train, world=1, args=(config(run_dir, "sdpa", ParallelConfig(precision="bf16")),))
    return run_dir


@pytest.mark.parametrize(
    ("data", "tensor", "options"),
    [
        (1, 1, {}),
        (1, 2, {"sequence_parallel": True, "recompute": True}),
        (2, 1, {"zero": 3, "fp8": Fp8Config(first_last_bf16=1)}),
        (1, 1, {"fp8": Fp8Config(weight_gradient="high")}),
        (2, 2, {"zero": 0}),
    ],
)
def test_loss_of_fp8_is_that_of_bf16(
    rank_pool: RankPool, in_bf16: Path, tmp_path: Path, data: int, tensor: int, options: dict
) -> None:
    parallel = ParallelConfig(tensor=tensor, precision="bf16", **options)
    rank_pool.run(train, world=data * tensor, tensor=tensor, args=(config(tmp_path, "fp8_torch", parallel),))
    expected = last_loss(in_bf16)
    assert expected < 0.6 * losses(in_bf16)[0], "the task is learnt"
    assert last_loss(tmp_path) == pytest.approx(expected, rel=0.02)
    assert losses(tmp_path) != losses(in_bf16)


def continued(topology: Topology, run: RunConfig) -> tuple[int, float, list[str]]:
    """Step at which a run resumes, its next loss, and the names in its checkpoint."""
    with assemble(run, topology, {"image": noisy_classes(STEPS + 8, topology)}) as trainer:
        start, names = trainer.state.step, sorted(trainer.state.tensors())
        trainer.step()
        dist.barrier(group=topology.host_group)  # all ranks: the main one has written its line
    return start, losses(Path(run.run_dir))[-1], names


@pytest.mark.parametrize(("first", "second"), [("sdpa", "fp8_torch"), ("fp8_torch", "sdpa")])
def test_checkpoints_are_the_same_in_either_precision(
    rank_pool: RankPool, tmp_path: Path, first: str, second: str
) -> None:
    bf16 = ParallelConfig(precision="bf16")
    half = config(tmp_path, first, bf16)
    rank_pool.run(train, world=1, args=(replace(half, train=replace(half.train, stop_after=40)),))
    as_before, as_other = (
        rank_pool.run(continued, world=2, tensor=2, args=(config(tmp_path, layers, replace(bf16, tensor=2)),))[0]
        for layers in (first, second)
    )
    assert as_before[0] == as_other[0] == 40
    assert as_before[1] == pytest.approx(as_other[1], rel=0.02)
    assert as_before[2] == as_other[2]
    assert not any("fp8" in name or "scale" in name or "extra" in name for name in as_other[2])


def test_the_console_says_what_the_layers_come_to(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    told = describe_layers(config(tmp_path, "fp8_torch", ParallelConfig(precision="bf16")), cpu)
    assert told == "layers fp8_torch, bf16, FP8 tensorwise; attention of ragged batches: blocks"
    assert "fp32, FP8 off" in describe_layers(config(tmp_path, "sdpa", ParallelConfig()), cpu)
