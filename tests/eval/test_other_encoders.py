"""Other makers' encoders, tiny and random: the tokens handed out are the model's own for the frames, in order, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from eval.encoder import load_encoder
from eval.other_encoders import FAMILIES, frame_times
from eval.views import UniformFrames
from megatron_ovenc.data.video import frame_pixels
from tests.data.samples import clip_bytes, coded_frames

SIZE, PATCH, FRAMES, WIDTH = 28, 14, 4, 32
TINY: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
CPU = torch.device("cpu")


def clip_model() -> Any:
    text = {
        "vocab_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
    }
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=TINY, text_config=text, projection_dim=8))


def siglip2() -> Any:
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**TINY | {"num_patches": 4}))


MODELS: dict[str, Callable[[], Any]] = {
    "clip": clip_model,
    "clip_vision_model": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY)),
    "siglip_vision_model": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY)),
    "siglip2_vision_model": siglip2,
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**TINY)),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**TINY, num_register_tokens=3)
    ),
    "dinov3_vit": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TINY, num_register_tokens=3)),
    "aimv2_vision_model": lambda: transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**TINY)),
}
"""Of every way of calling a picture's model, and of every kind of token that is not a patch's."""


def pixels(content: bytes, frames: list[int]) -> torch.Tensor:
    """Normalised [F, 3, S, S], by CLIP's mean and deviation, which holds where nothing else is saved."""
    floats = torch.from_numpy(frame_pixels(content, np.array(frames), SIZE)).float() / 255
    mean, std = (
        torch.tensor(values)
        for values in (transformers.image_utils.OPENAI_CLIP_MEAN, transformers.image_utils.OPENAI_CLIP_STD)
    )
    return ((floats - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_picture_models_see_every_frame_by_itself(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, CPU)
    assert (encoder.kind, encoder.patch_size, encoder.width, encoder.frames_per_token) == (kind, PATCH, WIDTH, 1)
    content = clip_bytes(coded_frames(8))
    view = UniformFrames(size=SIZE, patch_size=PATCH, frames=FRAMES)
    tokens, pooled = encoder([view(content), view(clip_bytes(coded_frames(8)[::-1]))])
    # The budget counts patches alone: no class, no register tokens.
    assert [len(one) for one in tokens] == [view.max_tokens] * 2
    inputs: dict[str, torch.Tensor] = {"pixel_values": pixels(content, [0, 2, 4, 6])}
    if kind.startswith("siglip2"):
        # As its own image processor flattens pictures: rows of patches, each pixel by pixel.
        grid = inputs["pixel_values"].unflatten(3, (2, PATCH)).unflatten(2, (2, PATCH))
        rows = torch.stack(
            [grid[:, :, row, :, col].permute(0, 2, 3, 1).flatten(1) for row in (0, 1) for col in (0, 1)], 1
        )
        ones, shapes = torch.ones(FRAMES, 4, dtype=torch.int32), torch.full((FRAMES, 2), 2)
        inputs = {"pixel_values": rows, "pixel_attention_mask": ones, "spatial_shapes": shapes}
    with torch.no_grad():
        output = getattr(model, "vision_model", model)(**inputs)
    expected = output.last_hidden_state[:, -4:] + frame_times(FRAMES, WIDTH)[:, None]
    assert torch.allclose(tokens[0], expected.flatten(0, 1), atol=1e-5)
    own = output.pooler_output if output.get("pooler_output") is not None else output.last_hidden_state.mean(dim=1)
    assert torch.allclose(pooled[0], own.mean(dim=0), atol=1e-5)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)


def test_vjepa2_sees_the_clip_and_its_budget_buys_tubelets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=PATCH,
        crop_size=SIZE,
        frames_per_clip=FRAMES,
        tubelet_size=2,
        hidden_size=36,
        num_attention_heads=2,
        num_hidden_layers=1,
        mlp_ratio=2.0,
        pred_hidden_size=36,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        pred_num_mask_tokens=1,
    )
    model = transformers.VJEPA2Model(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, CPU)
    assert (encoder.image_size, encoder.frames_per_token) == (SIZE, 2)
    content = clip_bytes(coded_frames(8))
    tokens, _ = encoder([UniformFrames(size=SIZE, patch_size=PATCH, frames=FRAMES)(content)])
    with torch.no_grad():
        expected = model(pixels(content, [0, 2, 4, 6])[None], skip_predictor=True).last_hidden_state[0]
    assert len(tokens[0]) == FRAMES // 2 * 4
    assert torch.allclose(tokens[0], expected, atol=1e-5)


def test_a_size_that_a_model_cannot_take_is_told(tmp_path: Path) -> None:
    transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**TINY)).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, CPU)
    view = UniformFrames(size=2 * SIZE, patch_size=PATCH, frames=1)(clip_bytes(coded_frames(2)))
    with pytest.raises(ValueError, match="cannot encode 1 frames of 56 x 56 pixels"):
        encoder([view])


def test_pictures_of_another_size_where_a_model_can_interpolate(tmp_path: Path) -> None:
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY)).save_pretrained(tmp_path)
    tokens, _ = load_encoder(tmp_path, CPU)(
        [UniformFrames(size=2 * SIZE, patch_size=PATCH, frames=1)(clip_bytes(coded_frames(2)))]
    )
    assert len(tokens[0]) == 16


def test_bf16_is_near_fp32_and_kept_apart_in_a_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**TINY)).save_pretrained(tmp_path)
    view = UniformFrames(size=SIZE, patch_size=PATCH, frames=2)(clip_bytes(coded_frames(4)))
    full, half = load_encoder(tmp_path, CPU), load_encoder(tmp_path, CPU, "bf16")
    (one,), (other,) = full([view])[0], half([view])[0]
    assert 0 < (one - other).abs().max() < 0.1
    assert full.fingerprint != half.fingerprint


def test_every_family_is_known_to_transformers() -> None:
    for kind in FAMILIES:
        assert kind in transformers.models.auto.configuration_auto.CONFIG_MAPPING, kind
