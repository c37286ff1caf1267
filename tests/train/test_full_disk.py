"""A disk without room costs lines, boards and checkpoints; it ends no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ovenc.config import CheckpointConfig, ConfigError, LogConfig, ParallelConfig, ProfileConfig
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.boards import TensorBoard
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.checkpoint import checkpoint_steps
from megatron_ovenc.train.metrics import MetricsWriter
from megatron_ovenc.train.preflight import check_run
from megatron_ovenc.train.profiling import StepProfiler
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource
from tests.train.test_faults import numbers_of
from tests.train.test_resume import BATCH, CLASSES, small_config


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("a disk that is really full has to be mounted, which root may do")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


class FillingSource(RecordedSource):
    """The disk is full from the second step on, and has room again in the fifth. Two micro-batches are a step."""

    ballast: Path

    def next(self) -> PatchBatch:
        if self.position == 2:
            fill(self.ballast)
        if self.position == 8:
            self.ballast.unlink()
        return super().next()


def train_on_a_small_disk(topology: Topology, run_dir: Path) -> str:
    config = replace(
        small_config(run_dir, ParallelConfig()),
        checkpoint=CheckpointConfig(every=2),
        log=LogConfig(every=1, tensorboard=True),
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(12, BATCH, 3, 28, 28, generator=generator)
    labels = torch.randint(0, CLASSES, (12, BATCH, 2), generator=generator)
    source = FillingSource(pixels, labels, 14, topology)
    source.ballast = run_dir / "ballast"
    with assemble(config, topology, {"image": source}) as trainer:
        for board in trainer.metrics._boards:
            assert isinstance(board, TensorBoard)
            board._writer.file_writer.event_writer._async_writer._worker._flush_secs = 0  # type: ignore[union-attr]
        return trainer.train()


def test_a_run_directory_without_room_does_not_end_the_run(rank_pool: RankPool, small_disk: Path) -> None:
    assert rank_pool.run(train_on_a_small_disk, world=1, args=(small_disk,)) == ["finished"]
    records = [json.loads(line) for line in (small_disk / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records]
    assert steps[0] == 1
    assert steps[-2:] == [5, 6]
    assert checkpoint_steps(small_disk / "checkpoints")[-1] == 6


def test_a_full_disk_is_refused_at_start_up(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ovenc.train.preflight.check_source", lambda *args, **kwargs: None)
    config = small_config(small_disk, ParallelConfig(device="cpu"))
    check_run(config, 1)
    fill(small_disk / "ballast")
    with pytest.raises(ConfigError, match=r"run_dir=.* cannot be written: .*No space left"):
        check_run(config, 1)


def test_no_line_is_left_torn_when_the_room_ends_in_it(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = LogConfig(every=100, tensorboard=False)
    writer = MetricsWriter(small_disk, log, total_steps=9, world=2, device="cpu", enabled=True)
    path = small_disk / "metrics.jsonl"
    writer.step(numbers_of(1))
    with path.open("a") as file:  # the rest of the page that it has, all but a few bytes
        file.write("{" + " " * (4096 - path.stat().st_size - 40) + "}\n")
    fill(small_disk / "ballast")
    writer.step(numbers_of(2))
    writer.step(numbers_of(3))
    assert len(path.read_text().splitlines()) == 2
    assert path.read_text().endswith("}\n")
    assert capsys.readouterr().out.count("metrics.jsonl CANNOT BE WRITTEN") == 1


def test_a_console_on_a_full_disk_loses_lines_only(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from megatron_ovenc.config import LogConfig
from megatron_ovenc.train.metrics import MetricsWriter
log = LogConfig(tensorboard=False)
writer = MetricsWriter(Path({str(tmp_path)!r}), log, total_steps=9, world=1, device="cpu", enabled=True)
writer.say("lost")
writer.say("lost, too", alarm="FAILED")
os._exit(7)
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 7, done.stderr


def test_a_profile_without_a_place_is_told_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("a file, where the folder should be")
    profiler = StepProfiler(ProfileConfig(steps=(1, 2)), tmp_path, 0, torch.device("cpu"))
    for number in (1, 2):
        with profiler.step(number):
            pass
    assert capsys.readouterr().out.count("PROFILE FAILED") == 1
