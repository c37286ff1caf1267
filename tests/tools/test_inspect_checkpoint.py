"""Checkpoints are listed and verified, and what is damaged is named with a non-zero exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from megatron_ovenc.config import CheckpointConfig
from megatron_ovenc.parallel.rectangle import Rectangle
from megatron_ovenc.train.checkpoint import Checkpointer
from tools.inspect_checkpoint import main
from tools.solo import solo_topology


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints and a save that did not end."""
    with solo_topology():
        checkpointer = Checkpointer(tmp_path / "checkpoints", CheckpointConfig(asynchronous=False), "text")
        for step in (10, 20):
            weight = torch.full((5, 3), float(step))
            checkpointer.save({"banks.image.weight": Rectangle.of(weight, (5, 3), (0, 0))}, {"step": step})
    (tmp_path / "checkpoints" / "step_00000030.tmp").mkdir()
    return tmp_path


def output(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_lists_checkpoints_and_tensors(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--verify", "--tensors"]) == 0
    told = output(capsys)
    assert re.search(r"step_00000010 .* verified .* step_00000020 .* verified", told)
    assert "step_00000030.tmp: being written, or left" in told
    assert re.search(r"banks\.image\.weight . 5 x 3 . float32", told)


def test_changed_content_is_found_by_verifying_and_a_missing_file_at_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = next((run / "checkpoints" / "step_00000020").glob("*.distcp"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    assert main([str(run)]) == 0
    assert main([str(run), "--verify"]) == 1
    assert "has other content than was written" in output(capsys)
    assert main([str(victim.parents[0].with_name("step_00000010")), "--verify"]) == 0
    victim.unlink()
    assert main([str(run)]) == 1
    assert "is missing" in output(capsys)


def test_nothing_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "neither a checkpoint nor a directory with complete ones" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\x80\x04N.", b"not a pickle at all"])
def test_a_damaged_table_of_contents_is_told_in_a_sentence(
    run: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "step_00000020" / ".metadata").write_bytes(content)
    assert main([str(run), "--tensors"]) == 2
    assert re.search(r"step_00000020/.metadata (is damaged|holds)", capsys.readouterr().err)
