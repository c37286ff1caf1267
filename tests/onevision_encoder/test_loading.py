"""Initial weights, and every way in which a saved model comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from onevision_encoder import (
    OneVisionEncoderConfig,
    OneVisionEncoderImageProcessor,
    OneVisionEncoderModel,
    OneVisionEncoderVideoProcessor,
    save_for_hub,
)
from tests.onevision_encoder.clips import write_clip
from tests.onevision_encoder.conftest import TINY, largest_difference

# Runs where this package does not exist: argv is the saved directory and a directory to save into again.
STRANGER = """
import sys
sys.modules["onevision_encoder"] = None  # importing it fails, even where it is installed
import numpy as np, torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

saved, again = sys.argv[1:]
expected = load_file(saved + "/expected.safetensors")
image = expected["image"].numpy()
clip = saved + "/clip.mp4"
for directory in (saved, again):
    assert AutoConfig.from_pretrained(directory, trust_remote_code=True).model_type == "onevision_encoder"
    processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=True)
    model = AutoModel.from_pretrained(directory, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules")
    pixels = processor(image, return_tensors="pt").pixel_values
    assert torch.equal(pixels, expected["pixel_values"])
    with torch.no_grad():
        assert torch.equal(model(pixels).pooler_output, expected["pooled"])
    video_processor = AutoVideoProcessor.from_pretrained(directory, trust_remote_code=True)
    for sampling in ("codec", "uniform"):
        inputs = video_processor(clip, sampling=sampling, return_tensors="pt")
        with torch.no_grad():
            assert torch.equal(model(**inputs).pooler_output, expected[sampling])
    model.save_pretrained(again)
    processor.save_pretrained(again)
    video_processor.save_pretrained(again)
half = AutoModel.from_pretrained(saved, trust_remote_code=True, dtype=torch.bfloat16)
with torch.no_grad():
    assert torch.equal(half(pixels).pooler_output, expected["pooled_bfloat16"])
"""


def golden_video(tiny_dir: Path) -> tuple[dict[str, Tensor], Tensor]:
    cases = load_file(tiny_dir / "cases.safetensors")
    inputs = {name: cases[f"video.{name}"] for name in ("pixel_values", "patch_positions")}
    return inputs, cases["video.last_hidden_state"]


def test_initial_weights() -> None:
    torch.manual_seed(0)
    config = OneVisionEncoderConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4)
    for name, weight in OneVisionEncoderModel(config).state_dict().items():
        std = float(weight.std())
        if name == "head.probe":
            assert 0.85 < std < 1.15
        elif name == "head.attention.in_proj_weight":
            bound = (6 / (256 + 3 * 256)) ** 0.5
            assert float(weight.abs().max()) <= bound
            assert std == pytest.approx(bound / 3**0.5, rel=0.02)
        elif "norm" in name:
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not weight.any(), name
        else:
            assert std == pytest.approx(0.02, rel=0.03), name


def test_initializer_range_is_read() -> None:
    state = OneVisionEncoderModel(OneVisionEncoderConfig(**TINY, initializer_range=0.5)).state_dict()
    assert float(state["encoder.layers.0.mlp.fc1.weight"].std()) == pytest.approx(0.5, rel=0.05)


def test_only_missing_weights_are_drawn(tiny_dir: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_dir / "model.safetensors")
    missing = {"head.probe", "encoder.layers.0.mlp.fc1.bias", "head.attention.in_proj_bias", "layernorm_pre.weight"}
    kept = {name: weight for name, weight in weights.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny_dir / "config.json").read_text())
    loaded = OneVisionEncoderModel.from_pretrained(tmp_path).state_dict()
    for name, weight in kept.items():
        assert torch.equal(loaded[name], weight), name
    assert 0.7 < float(loaded["head.probe"].std()) < 1.3
    assert not loaded["encoder.layers.0.mlp.fc1.bias"].any()
    assert not loaded["head.attention.in_proj_bias"].any()
    assert bool((loaded["layernorm_pre.weight"] == 1).all())


def test_model_built_on_the_meta_device(tiny_dir: Path) -> None:
    inputs, expected = golden_video(tiny_dir)
    with torch.device("meta"):
        model = OneVisionEncoderModel(OneVisionEncoderConfig.from_pretrained(tiny_dir))
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(load_file(tiny_dir / "model.safetensors"))
    with torch.no_grad():
        assert largest_difference(model(**inputs).last_hidden_state, expected) <= 1e-5


def test_loading_in_bfloat16(tiny_dir: Path) -> None:
    inputs, expected = golden_video(tiny_dir)
    model = AutoModel.from_pretrained(tiny_dir, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        loaded = model(**inputs).last_hidden_state
        cast = AutoModel.from_pretrained(tiny_dir, dtype=torch.float32).to(torch.bfloat16)(**inputs).last_hidden_state
    assert torch.equal(loaded, cast)
    assert float((loaded.float() - expected).abs().mean()) < 0.02 * float(expected.abs().mean())


@pytest.mark.parametrize("fields", [{}, {"use_head": False, "layer_norm_type": "rms_norm", "rope_type": "rotation"}])
def test_saving_and_loading(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = OneVisionEncoderModel(OneVisionEncoderConfig(**TINY, **fields)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is OneVisionEncoderModel
    pixels = torch.randn(1, 3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(pixels).last_hidden_state, loaded(pixels).last_hidden_state)


def test_hub_directory_loads_where_the_package_is_absent(tiny_dir: Path, tmp_path: Path) -> None:
    saved, again, elsewhere = (tmp_path / name for name in ("saved", "again", "elsewhere"))
    elsewhere.mkdir()
    model = OneVisionEncoderModel.from_pretrained(tiny_dir).eval()
    processor = OneVisionEncoderImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    video_processor = OneVisionEncoderVideoProcessor(size={"height": 56, "width": 56}, num_tokens=60, num_frames=2)
    assert save_for_hub(model, processor, video_processor, saved, max_shard_size="300KB") == saved
    assert len(list(saved.glob("model-0000?-of-0000?.safetensors"))) > 1
    files = ("config", "preprocessor_config", "video_preprocessor_config")
    auto_maps = [json.loads((saved / f"{name}.json").read_text())["auto_map"] for name in files]
    assert auto_maps == [
        {
            "AutoConfig": "configuration_onevision_encoder.OneVisionEncoderConfig",
            "AutoModel": "modeling_onevision_encoder.OneVisionEncoderModel",
        },
        {"AutoImageProcessor": "image_processing_onevision_encoder.OneVisionEncoderImageProcessor"},
        {"AutoVideoProcessor": "video_processing_onevision_encoder.OneVisionEncoderVideoProcessor"},
    ]  # fmt: skip

    image = torch.randint(0, 256, (60, 80, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = processor(Image.fromarray(image.numpy()), return_tensors="pt").pixel_values
    clip = write_clip(saved / "clip.mp4", 20)
    with torch.no_grad():
        expected = {"image": image, "pixel_values": pixels, "pooled": model(pixels).pooler_output}
        for sampling in ("codec", "uniform"):
            expected[sampling] = model(**video_processor(clip, sampling=sampling, return_tensors="pt")).pooler_output
        half = OneVisionEncoderModel.from_pretrained(tiny_dir, dtype=torch.bfloat16)
        expected["pooled_bfloat16"] = half(pixels).pooler_output
    save_file(expected, saved / "expected.safetensors")
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        # `codec` comes from the checkout, `onevision_encoder` does not: it is hidden in STRANGER.
        "PYTHONPATH": os.pathsep.join([str(Path(transformers.__file__).parents[1]), str(Path(__file__).parents[2])]),
    }
    run = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, str(saved), str(again)],
        cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # And what the stranger saved loads here as our own classes.
    assert type(AutoModel.from_pretrained(again)) is OneVisionEncoderModel
    assert type(AutoImageProcessor.from_pretrained(again)) is OneVisionEncoderImageProcessor


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_device_map(tiny_dir: Path, device_map: str) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    inputs, expected = golden_video(tiny_dir)
    model = AutoModel.from_pretrained(tiny_dir, device_map=device_map)
    with torch.no_grad():
        assert largest_difference(model(**inputs).last_hidden_state.cpu(), expected) <= 1e-5


def test_saving_over_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    model = OneVisionEncoderModel(OneVisionEncoderConfig(**TINY))
    with pytest.raises(FileExistsError):
        save_for_hub(model, OneVisionEncoderImageProcessor(), OneVisionEncoderVideoProcessor(), tmp_path / "taken")
