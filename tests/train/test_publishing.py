"""A checkpoint that replaces another one of its step: whenever that is interrupted, one of them is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ovenc.config import CheckpointConfig, ConfigError, ParallelConfig
from megatron_ovenc.parallel.rectangle import Rectangle
from megatron_ovenc.train.checkpoint import (
    Checkpointer,
    checkpoint_path,
    checkpoint_steps,
    damage,
    finish_publishing,
    read_scalars,
)
from megatron_ovenc.train.preflight import check_run
from tests.train.test_resume import small_config
from tools.solo import solo_topology


@pytest.fixture
def alone() -> Iterator[None]:
    with solo_topology():
        yield


def save(directory: Path, step: int, value: float, **config: int) -> None:
    weight = torch.full((5, 3), value)
    checkpointer = Checkpointer(directory, CheckpointConfig(asynchronous=False, **config), "text")
    checkpointer.save({"weight": Rectangle.of(weight, (5, 3), (0, 0))}, {"step": step, "value": value})
    checkpointer.close()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("crash_at", ["rename to final", "removal of the old one"])
def test_a_crash_while_a_checkpoint_is_replaced_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    save(tmp_path, 10, 1.0)
    rename, final = Path.rename, checkpoint_path(tmp_path, 10)

    class Crash(BaseException):
        """Not an error that anything handles: the process is gone."""

    def crashing_rename(self: Path, target: Path) -> Path:
        if target == final and crash_at == "rename to final":
            raise Crash
        return rename(self, target)

    def crashing_removal(path: Path, **options: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crashing_rename)
        patch.setattr(shutil, "rmtree", crashing_removal)
        with pytest.raises(Crash):
            save(tmp_path, 10, 2.0)
    finish_publishing(tmp_path)
    assert checkpoint_steps(tmp_path) == [10]
    assert damage(final) == []
    assert read_scalars(final)["value"] == 2.0
    save(tmp_path, 20, 3.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000020"], "leftovers are gone"


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 10, 1.0)

    def busy(path: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", busy)
    save(tmp_path, 20, 2.0, keep_last=1)
    assert checkpoint_steps(tmp_path) == [20]
    assert "step_00000010 cannot be removed: [Errno 16]" in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_a_stop_before_the_resumed_step_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ovenc.train.preflight.check_source", lambda *args, **kwargs: None)
    config = small_config(tmp_path, ParallelConfig(device="cpu"))
    save(tmp_path / "checkpoints", 3, 1.0)
    check_run(replace(config, train=replace(config.train, stop_after=3)), 1)
    with pytest.raises(ConfigError, match=r"train\.stop_after=2 lies before step 3"):
        check_run(replace(config, train=replace(config.train, stop_after=2)), 1)
