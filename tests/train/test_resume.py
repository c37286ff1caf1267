"""A stopped run continues on any layout as if it had never stopped; what is damaged or foreign is refused by name."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ovenc.config import (
    BankConfig,
    CheckpointConfig,
    ConfigError,
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
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.checkpoint import checkpoint_path, checkpoint_steps, damage
from megatron_ovenc.train.checkpoint_reader import CheckpointError, SafeReader
from megatron_ovenc.train.preflight import check_run
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource

STEPS, BATCH, CLASSES = 6, 8, 13


PLAIN = BankConfig(num_classes=CLASSES, sample_rate=0.7, positives=2)
LATE = BankConfig(
    num_classes=5 * CLASSES,
    sample_rate=0.3,
    positives=2,
    optimizer="rows",
    learn_scale=True,
    freeze_steps=1,
    weight_decay=2.0,
    lr_scale=10.0,
)
"""A bank most of whose rows are behind when the checkpoint is written, and that has more state than rows."""


def small_config(
    run_dir: Path, parallel: ParallelConfig, stop_after: int | None = None, bank: BankConfig = PLAIN, **model: int
) -> RunConfig:
    """Two blocks, 13 centres (uneven on every world), sampled negatives, two micro-batches."""
    return RunConfig(
        run_dir=str(run_dir),
        model=ModelConfig(**{"hidden_size": 128, "ffn_size": 256, "num_layers": 2, "num_heads": 4} | model),
        heads=(
            HeadConfig(
                name="image",
                global_batch_size=2 * BATCH,
                bank=bank,
                source=SourceConfig(kind="image", shards=()),
            ),
        ),
        train=TrainConfig(steps=STEPS, grad_accumulation=2, stop_after=stop_after, seed=3),
        parallel=parallel,
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=2),
        checkpoint=CheckpointConfig(every=3),
        log=LogConfig(every=100, tensorboard=False),
    )


def train(topology: Topology, config: RunConfig) -> str:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2 * STEPS, BATCH, 3, 42, 56, generator=generator)
    labels = torch.randint(0, CLASSES, (2 * STEPS, BATCH, 2), generator=generator)
    with assemble(config, topology, {"image": RecordedSource(pixels, labels, 14, topology)}) as trainer:
        return trainer.train()


def losses(run_dir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss/image"] for record in records}


@pytest.fixture(scope="module")
def stopped(rank_pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """A (data 2, tensor 2) run stopped at step 3, and the losses of its twin that went on."""
    whole, half = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("half")
    layout = ParallelConfig(tensor=2, sequence_parallel=True)
    assert set(rank_pool.run(train, world=4, tensor=2, args=(small_config(whole, layout),))) == {"finished"}
    assert set(rank_pool.run(train, world=4, tensor=2, args=(small_config(half, layout, 3),))) == {"stopped"}
    return half, losses(whole)


def test_a_bank_that_steps_touched_rows_resumes_whole(rank_pool: RankPool, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    for run_dir, stop in ((whole, None), (half, 3)):
        run_dir.mkdir()
        rank_pool.run(train, world=2, args=(small_config(run_dir, ParallelConfig(), stop, LATE),))
    assert set(rank_pool.run(train, world=1, args=(small_config(half, ParallelConfig(), None, LATE),))) == {"finished"}
    for step in (4, 5, 6):
        assert losses(half)[step] == pytest.approx(losses(whole)[step], rel=1e-5), step


def test_what_a_checkpoint_does_not_hold_is_named(
    rank_pool: RankPool, stopped: tuple[Path, dict[int, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_ovenc.train.preflight.check_source", lambda *args, **kwargs: None)
    run_dir = copy_run(stopped[0], tmp_path)
    learned = small_config(run_dir, ParallelConfig(), bank=replace(PLAIN, learn_scale=True))
    with pytest.raises(ConfigError, match=r"heads\.image\.bank\.learn_scale: False there, True here"):
        check_run(learned, 1)
    with pytest.raises(AssertionError, match=r"it does not hold bank_optimizer\.image\.log_scale"):
        rank_pool.run(train, world=1, args=(learned,))


def copy_run(source: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(source, target / "run"))


@pytest.mark.parametrize(("data", "tensor", "zero"), [(4, 1, 3), (1, 4, 2), (1, 1, 0), (3, 1, 2)])
def test_resume_on_another_layout(
    rank_pool: RankPool, stopped: tuple[Path, dict[int, float]], tmp_path: Path, data: int, tensor: int, zero: int
) -> None:
    half, expected = stopped
    run_dir = copy_run(half, tmp_path)
    config = small_config(run_dir, ParallelConfig(tensor=tensor, zero=zero))
    assert set(rank_pool.run(train, world=data * tensor, tensor=tensor, args=(config,))) == {"finished"}
    ours = losses(run_dir)
    assert sorted(ours) == [1, 2, 3, 4, 5, 6]
    for step in (4, 5, 6):
        assert ours[step] == pytest.approx(expected[step], rel=1e-5), step


def test_damaged_checkpoint_falls_back(
    rank_pool: RankPool, stopped: tuple[Path, dict[int, float]], tmp_path: Path
) -> None:
    half, expected = stopped
    run_dir = copy_run(half, tmp_path)
    rank_pool.run(train, world=1, args=(small_config(run_dir, ParallelConfig()),))
    checkpoints = run_dir / "checkpoints"
    assert checkpoint_steps(checkpoints) == [3, 6]
    victim = next(checkpoint_path(checkpoints, 6).glob("*.distcp"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert damage(checkpoint_path(checkpoints, 6)) == [f"{victim} has other content than was written"]
    (run_dir / "metrics.jsonl").unlink()
    rank_pool.run(train, world=1, args=(small_config(run_dir, ParallelConfig()),))
    assert sorted(losses(run_dir)) == [4, 5, 6]
    assert losses(run_dir)[6] == pytest.approx(expected[6], rel=1e-5)


def test_incomplete_checkpoint_is_not_seen(stopped: tuple[Path, dict[int, float]], tmp_path: Path) -> None:
    run_dir = copy_run(stopped[0], tmp_path)
    (run_dir / "checkpoints" / "step_00000009.tmp").mkdir()
    (run_dir / "checkpoints" / "step_00000008").mkdir()
    assert checkpoint_steps(run_dir / "checkpoints") == [3]


def test_checkpoint_of_another_model_is_refused_at_start(
    stopped: tuple[Path, dict[int, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_ovenc.train.preflight.check_source", lambda *args, **kwargs: None)
    run_dir = copy_run(stopped[0], tmp_path)
    check_run(small_config(run_dir, ParallelConfig()), 1)
    with pytest.raises(ConfigError, match=r"model\.ffn_size: 256 there, 512 here"):
        check_run(small_config(run_dir, ParallelConfig(), ffn_size=512), 1)


def test_checkpoint_metadata_cannot_run_code(stopped: tuple[Path, dict[int, float]], tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "touched",))

    path = checkpoint_path(copy_run(stopped[0], tmp_path) / "checkpoints", 3)
    assert SafeReader(path).read_metadata().state_dict_metadata
    (path / ".metadata").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError, match="no place in it"):
        SafeReader(path).read_metadata()
    assert not (tmp_path / "touched").exists()
