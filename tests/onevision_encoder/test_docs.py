"""The Python blocks of docs/huggingface.md, run in order and as they stand on a packed model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onevision_encoder import (
    OneVisionEncoderImageProcessor,
    OneVisionEncoderModel,
    OneVisionEncoderVideoProcessor,
    save_for_hub,
)
from tests.onevision_encoder.clips import write_clip

PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"


def test_the_pages_blocks(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = {"height": 56, "width": 56}
    save_for_hub(
        OneVisionEncoderModel.from_pretrained(tiny_dir),
        OneVisionEncoderImageProcessor(size={"shortest_edge": 56}, crop_size=side),
        OneVisionEncoderVideoProcessor(size=side, num_tokens=50),
        tmp_path / "output" / "packed_model",
    )
    (tmp_path / "frames").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (17, 60, 90, 3), dtype=np.uint8)
    for index in range(16):
        Image.fromarray(noise[index]).save(tmp_path / "frames" / f"{index:02d}.jpg")
    Image.fromarray(noise[16]).save(tmp_path / "picture.jpg")
    write_clip(tmp_path / "clip.mp4", 70)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    width = 128
    assert names["outputs"].last_hidden_state.shape == (1, 16, width)
    assert names["by_position"].shape == (1, 256, width)
    assert names["codec_features"].shape == (1, 50, width)
    assert names["uniform_features"].shape == (1, 128, width)
    assert [len(names[name].features) for name in ("page", "clip", "whole_frames")] == [4 * 6, 50, 128]
    assert torch.equal(names["clip"].positions, names["codec_input"]["patch_positions"][0])
