"""A tiny encoder and tiny clips whose every patch tells where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eval.encoder import Encoder
from onevision_encoder import (
    OneVisionEncoderConfig,
    OneVisionEncoderImageProcessor,
    OneVisionEncoderModel,
    OneVisionEncoderVideoProcessor,
    save_for_hub,
)
from tests.data.samples import PATCH, SIDE, clip_bytes, coded_frames

LENGTHS = {"short": (3, 20, 20, 24, 20), "tall": (40, 33, 50)}
"""Frames of the clips of each class; a folder of them is called `clips`."""


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block of 32 channels with weights large enough that positions show in the output."""
    torch.manual_seed(0)
    config = OneVisionEncoderConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        patch_size=PATCH,
        image_size=SIDE,
    )
    model = OneVisionEncoderModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    processor = OneVisionEncoderImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    return save_for_hub(model, processor, OneVisionEncoderVideoProcessor(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def encoder(model_dir: Path) -> Encoder:
    return Encoder.load(model_dir, torch.device("cpu"))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of classes; the clip `tall/1.mp4` is cut off in the middle."""
    folder = tmp_path_factory.mktemp("clips")
    for name, lengths in LENGTHS.items():
        (folder / name / "deeper").mkdir(parents=True)
        for number, length in enumerate(lengths):
            content = clip_bytes(coded_frames(length))
            place = folder / name / ("deeper" if number == 2 else "") / f"{number}.mp4"
            place.write_bytes(content[: len(content) // 2] if (name, number) == ("tall", 1) else content)
    return folder
