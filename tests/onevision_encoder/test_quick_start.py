"""What the reference's users wrote works on a packed model: a picture, a video by indices, a video by positions; on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from onevision_encoder import OneVisionEncoderModel
from tests.onevision_encoder.conftest import largest_difference
from tools.pack_model import pack

SIDE, PATCH, WIDTH = 56, 14, 128
FRAMES, GRID_FRAMES = 16, 64


@pytest.fixture(scope="module")
def place(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `output/packed_model`, a picture, and frames of a video, none of them square."""
    root = tmp_path_factory.mktemp("quick_start")
    assert pack(golden / "tiny", root / "output" / "packed_model", image_size=SIDE) <= 1e-5
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES + 1, 75, 101, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


def answers(attn_implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """All calls, from the directory that holds `output/packed_model`."""
    model = AutoModel.from_pretrained(
        "./output/packed_model", trust_remote_code=True, attn_implementation=attn_implementation, dtype=dtype
    ).to("cpu")
    model.eval()
    preprocessor = AutoImageProcessor.from_pretrained("./output/packed_model", trust_remote_code=True)

    picture = preprocessor(images=Image.open(f"{FRAMES}.png"), return_tensors="pt")["pixel_values"].to("cpu", dtype)
    video = preprocessor(images=[Image.open(f"{number}.png") for number in range(FRAMES)], return_tensors="pt")
    video = video["pixel_values"].unsqueeze(0).permute(0, 2, 1, 3, 4).to("cpu", dtype)  # [1, 3, T, S, S]

    side = SIDE // PATCH
    times = torch.linspace(0, GRID_FRAMES - 1, FRAMES).long()
    indices = (times.unsqueeze(-1) * side * side + torch.arange(side * side)).reshape(1, -1)
    positions = torch.stack(torch.meshgrid(times, torch.arange(side), torch.arange(side), indexing="ij"), dim=-1)
    with torch.no_grad():
        outputs = {
            "picture": model(picture),
            "by index": model(video, visible_indices=indices),
            "by position": model(video, patch_positions=positions.reshape(1, -1, 3)),
            "by position, for each of two": model(
                video.repeat(2, 1, 1, 1, 1), patch_positions=positions.reshape(1, -1, 3).repeat(2, 1, 1)
            ),
        }
    found = {}
    for name, output in outputs.items():
        found[name], found[f"{name}, pooled"] = output.last_hidden_state, output.pooler_output
    return found


def test_snippets_run_and_agree(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    sdpa, eager = answers("sdpa", torch.float32), answers("eager", torch.float32)
    shapes = {"picture": (1, 16, WIDTH), "by index": (1, 256, WIDTH), "by position, for each of two": (2, 256, WIDTH)}
    assert {name: tuple(sdpa[name].shape) for name in shapes} == shapes
    assert sdpa["picture, pooled"].shape == (1, WIDTH)
    assert torch.equal(sdpa["by index"], sdpa["by position"])
    assert largest_difference(sdpa["by position, for each of two"], sdpa["by position"].expand(2, -1, -1)) < 1e-5
    for name in sdpa:
        assert largest_difference(sdpa[name], eager[name]) < 1e-5, name
    # Positions are read at all: frames in other places give other features.
    assert largest_difference(sdpa["by index"][0, -16:], sdpa["by index"][0, :16]) > 1e-2
    for attn_implementation in ("sdpa", "eager"):
        for name, half in answers(attn_implementation, torch.bfloat16).items():
            assert half.dtype == torch.bfloat16
            assert float((half.float() - sdpa[name]).abs().mean()) < 0.02 * float(sdpa[name].abs().mean()), name


def test_the_projects_own_class_loads_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    model = OneVisionEncoderModel.from_pretrained("./output/packed_model").eval()
    preprocessor = AutoImageProcessor.from_pretrained("./output/packed_model", trust_remote_code=True)
    pixels = preprocessor(images=Image.open(f"{FRAMES}.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model(pixels).last_hidden_state
    assert torch.equal(found, answers("sdpa", torch.float32)["picture"])
