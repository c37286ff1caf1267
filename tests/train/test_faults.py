"""Non-finite steps change nothing and end the run in time; a checkpoint that cannot be written does not end it."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ovenc.config import CheckpointConfig, LogConfig, ParallelConfig, RunConfig, SpikeConfig, TrainConfig
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.parallel.gradients import local
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.checkpoint import Checkpointer, checkpoint_path, checkpoint_steps, read_scalars
from megatron_ovenc.train.checkpoint_reader import CheckpointError
from megatron_ovenc.train.faults import TrainingError
from megatron_ovenc.train.metrics import MetricsWriter, StepMetrics
from megatron_ovenc.train.saver import Saver
from megatron_ovenc.train.trainer import Trainer
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource
from tests.train.test_resume import BATCH, CLASSES, small_config


class PoisonedSource(RecordedSource):
    """From the second step on, a sample of data rank 1 holds a NaN."""

    def next(self) -> PatchBatch:
        batch = super().next()
        if self.position > 2 and self.topology.data_rank == 1:
            batch.patches[0, 0] = float("nan")
        return batch


def train_poisoned(topology: Topology, run_dir: Path) -> tuple[str, bool]:
    config = replace(
        small_config(run_dir, ParallelConfig()), train=TrainConfig(steps=20, grad_accumulation=2, max_skipped_steps=3)
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(40, BATCH, 3, 28, 28, generator=generator)
    labels = torch.randint(0, CLASSES, (40, BATCH, 2), generator=generator)
    with assemble(config, topology, {"image": PoisonedSource(pixels, labels, 14, topology)}) as trainer:
        assert not trainer.step()
        before = [local(p).clone() for p in trainer.state.encoder.parameters()]
        rows = trainer.state.banks["image"].weight.clone()
        try:
            trainer.train()
        except TrainingError as error:
            same = all(map(torch.equal, before, (local(p) for p in trainer.state.encoder.parameters())))
            return str(error), same and torch.equal(rows, trainer.state.banks["image"].weight)
    raise AssertionError("a run of NaNs went on to its end")


def test_non_finite_steps_are_skipped_by_all_ranks_and_both_optimizers(rank_pool: RankPool, tmp_path: Path) -> None:
    for message, unchanged in rank_pool.run(train_poisoned, world=2, args=(tmp_path,)):
        assert "3 steps in a row" in message
        assert "train.max_skipped_steps" in message
        assert unchanged
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["skipped"] for record in records] == [0, 1, 1, 1]
    assert [record["loss/image"] is None for record in records] == [False, True, True, True]
    assert checkpoint_steps(tmp_path / "checkpoints")[-1] == 4
    named = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in named] == [2, 3, 4]
    assert {(record["reason"], *record["ranks"]) for record in named} == {("non-finite", 1)}
    assert [record["samples"] for record in named] == [{"image": [f"{i}/0", f"{i + 1}/0"]} for i in (3, 5, 7)]


def train_with_a_broken_row(topology: Topology, run_dir: Path) -> None:
    pixels, labels = torch.randn(4, BATCH, 3, 28, 28), torch.zeros(4, BATCH, 2, dtype=torch.int64)
    config = small_config(run_dir, ParallelConfig(tensor=topology.tensor))
    with assemble(config, topology, {"image": RecordedSource(pixels, labels, 14, topology)}) as trainer:
        if topology.rank == 3:
            trainer.state.banks["image"].weight.data[0, 0] = float("inf")
        trainer.step()


def test_broken_weights_are_told_from_broken_samples(rank_pool: RankPool, tmp_path: Path) -> None:
    rank_pool.run(train_with_a_broken_row, world=4, tensor=2, args=(tmp_path,))
    (record,) = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert (record["ranks"], record["weights"]) == ([3], ["banks.image"])
    assert len(record["samples"]["image"]) == 2 * BATCH, "no sample stands out, so all of the step are listed"


def train_on_nothing_finite(topology: Topology, run_dir: Path) -> str:
    """Two steps of NaNs, fewer than train.max_skipped_steps, then the same again after a line that a killed run left torn."""
    pixels, labels = torch.full((4, BATCH, 3, 28, 28), float("nan")), torch.zeros(4, BATCH, 2, dtype=torch.int64)
    config = small_config(run_dir, ParallelConfig(), stop_after=2)
    with assemble(config, topology, {"image": RecordedSource(pixels, labels, 14, topology)}) as trainer:
        try:
            return trainer.train()
        except TrainingError as error:
            return str(error)


def test_a_run_that_learned_nothing_does_not_finish(rank_pool: RankPool, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "lo')
    (message,) = rank_pool.run(train_on_nothing_finite, world=1, args=(tmp_path,))
    assert "none of the 2 steps of this session" in message
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2]  # the torn line is gone, and glued to no other


def train_without_room(topology: Topology, run_dir: Path, asynchronous: bool) -> str:
    try:
        return train_fresh(topology, run_dir, CheckpointConfig(every=2, asynchronous=asynchronous))
    except CheckpointError as error:
        return str(error)


def fail_at(topology: Topology, run_dir: Path, asynchronous: bool, steps: tuple[int, ...]) -> str:
    """Train six steps with checkpoints every two; rank 1's disk is full when those of `steps` are recorded."""
    record = Checkpointer._record

    def full(self: Checkpointer, partial: Path, scalars: dict, rank: int) -> dict:
        if rank == 1 and scalars["step"] in steps:
            raise OSError(28, "No space left on device")
        return record(self, partial, scalars, rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "_record", full)
        return train_without_room(topology, run_dir, asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failed_save_is_loud_and_training_goes_on(rank_pool: RankPool, tmp_path: Path, asynchronous: bool) -> None:
    assert set(rank_pool.run(fail_at, world=2, args=(tmp_path, asynchronous, (2,)))) == {"finished"}
    assert checkpoint_steps(tmp_path / "checkpoints") == [4, 6]
    assert not list((tmp_path / "checkpoints").glob("*.tmp")), "what a failed save left is gone"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failed_last_save_is_an_error_on_every_rank(rank_pool: RankPool, tmp_path: Path, asynchronous: bool) -> None:
    outcomes = rank_pool.run(fail_at, world=2, args=(tmp_path, asynchronous, (6,)))
    assert all("step 6" in outcome or "No space left" in outcome for outcome in outcomes), outcomes
    assert checkpoint_steps(tmp_path / "checkpoints") == [2, 4]


def train_on_a_full_disk(topology: Topology, run_dir: Path, asynchronous: bool) -> str:
    """Rank 1 may write no file beyond 4 KiB until its first save has failed: the system refuses for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    attempts = []

    def told(self: Saver, error: BaseException, tell: Callable = Saver._tell) -> None:
        attempts.append(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        tell(self, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "_tell", told)
        if topology.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            outcome = train_fresh(topology, run_dir, CheckpointConfig(every=2, asynchronous=asynchronous))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written: rank 1: " in str(attempts[0])
    assert "room left there" in str(attempts[0])
    return outcome


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_is_really_full_costs_one_checkpoint(
    rank_pool: RankPool, tmp_path: Path, asynchronous: bool
) -> None:
    assert set(rank_pool.run(train_on_a_full_disk, world=2, args=(tmp_path, asynchronous))) == {"finished"}
    assert checkpoint_steps(tmp_path / "checkpoints") == [4, 6]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    saves = [record for record in records if "checkpoint/bytes" in record]
    assert all(record["checkpoint/step"] == 4 for record in saves)
    for record in saves:
        assert 0 <= record["checkpoint/stall_s"] <= record["step_s"] * 100
        assert record["checkpoint/bytes"] > 100_000


def test_lines_that_a_full_disk_swallows_do_not_spoil_later_ones(tmp_path: Path) -> None:
    writer = MetricsWriter(
        tmp_path, LogConfig(every=100, tensorboard=False), total_steps=9, world=2, device="cpu", enabled=True
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer.step(numbers_of(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 40, hard))
    try:
        for step in (2, 3):
            writer.step(numbers_of(step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.step(numbers_of(4))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 4]
    assert (records[1]["straggler/rank"], records[1]["straggler/ratio"]) == (1, pytest.approx(3.0))


def test_a_full_disk_costs_tensorboard_but_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system refuses for real, in the writer's own thread; whenever that comes to light, the training thread goes on."""
    writer = MetricsWriter(tmp_path, LogConfig(every=1), total_steps=99, world=2, device="cpu", enabled=True)
    writer.step(numbers_of(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        for step in range(2, 60):
            writer.step(numbers_of(step))
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.step(numbers_of(60))
    said = capsys.readouterr().out
    assert said.count("BOARD FAILED TensorBoard:") == 1
    assert said.count("metrics.jsonl CANNOT BE WRITTEN") == 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 1
    assert steps[-1] == 60


def test_what_is_said_is_said_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = LogConfig(every=1, tensorboard=False)
    writer = MetricsWriter(tmp_path, config, total_steps=9, world=1, device="cpu", enabled=True)
    writer.say("[Errno 28] no room in [/dev/shm/run] [bold]", alarm="CHECKPOINT FAILED")
    assert capsys.readouterr().out.endswith("CHECKPOINT FAILED [Errno 28] no room in [/dev/shm/run] [bold]\n")


def numbers_of(step: int) -> StepMetrics:
    whole = {"samples": 8, "tokens": 64, "memory_bytes": 1, "bad_samples": 0, "flops": 1.0, "lr": 0.1, "seconds": 1.0}
    parts = {"losses": {"image": 1.0}, "grad_norms": {}, "phases": {}, "banks": {}, "checkpoint": {}, "examined": {}}
    waits = {"data_wait_s": 0.0, "data_max_s": 0.0, "own_s": [0.1, 0.3]}
    return StepMetrics(step=step, skipped=False, **whole, **parts, **waits)


def test_milestones_are_kept_beside_the_newest(rank_pool: RankPool, tmp_path: Path) -> None:
    assert set(
        rank_pool.run(train_fresh, world=1, args=(tmp_path, CheckpointConfig(every=1, keep_last=1, keep_every=2)))
    )
    assert checkpoint_steps(tmp_path / "checkpoints") == [2, 4, 6]


def test_an_old_checkpoint_that_cannot_be_removed_harms_no_new_one(rank_pool: RankPool, tmp_path: Path) -> None:
    assert rank_pool.run(train_without_removing, world=1, args=(tmp_path,)) == ["finished"]
    assert checkpoint_steps(tmp_path / "checkpoints") == [
        6
    ]  # what is left of the others does not pass for a checkpoint
    assert (tmp_path / "checkpoints" / "step_00000002" / "state.json").exists()


def train_without_removing(topology: Topology, run_dir: Path) -> str:
    def refuse(path: Path, **kwargs: object) -> None:
        raise OSError(116, "Stale file handle")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron_ovenc.train.checkpoint.shutil.rmtree", refuse)
        return train_fresh(topology, run_dir, CheckpointConfig(every=2, keep_last=1))


def test_a_save_in_the_background_is_of_the_state_at_its_start(rank_pool: RankPool, tmp_path: Path) -> None:
    rank_pool.run(train_during_slow_saves, world=1, args=(tmp_path,))
    for step in (2, 4):
        scalars = read_scalars(checkpoint_path(tmp_path / "checkpoints", step))
        assert scalars["step"] == step
        assert len(scalars["recent_losses"]["image"]) == step


def train_during_slow_saves(topology: Topology, run_dir: Path) -> None:
    """Each save in the background begins to write only when the next step has been taken."""
    record = Checkpointer._record
    config = replace(
        small_config(run_dir, ParallelConfig()),
        train=TrainConfig(steps=6, spike=SpikeConfig(action="warn")),
        checkpoint=CheckpointConfig(every=2),
    )
    with recorded(config, topology) as trainer, pytest.MonkeyPatch.context() as patch:

        def late(self: Checkpointer, partial: Path, scalars: dict, rank: int) -> dict:
            deadline = time.monotonic() + 20
            while trainer.state.step == scalars["step"] < 6 and time.monotonic() < deadline:
                time.sleep(0.01)
            return record(self, partial, scalars, rank)

        patch.setattr(Checkpointer, "_record", late)
        trainer.train()


def test_old_checkpoints_never_push_out_new_ones(rank_pool: RankPool, tmp_path: Path) -> None:
    for step in (1000, 2000, 3000):
        directory = tmp_path / "checkpoints" / f"step_{step:08d}"
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text("{}")
    fresh = CheckpointConfig(every=2, keep_last=2, resume=False)
    assert set(rank_pool.run(train_fresh, world=2, args=(tmp_path, fresh))) == {"finished"}
    assert checkpoint_steps(tmp_path / "checkpoints") == [4, 6, 1000, 2000, 3000]


def train_fresh(topology: Topology, run_dir: Path, checkpoint: CheckpointConfig) -> str:
    config = replace(small_config(run_dir, ParallelConfig()), checkpoint=checkpoint)
    with recorded(config, topology) as trainer:
        return trainer.train()


def recorded(config: RunConfig, topology: Topology) -> AbstractContextManager[Trainer]:
    """A trainer of six steps' pictures."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(12, BATCH, 3, 28, 28, generator=generator)
    labels = torch.randint(0, CLASSES, (12, BATCH, 2), generator=generator)
    return assemble(config, topology, {"image": RecordedSource(pixels, labels, 14, topology)})
