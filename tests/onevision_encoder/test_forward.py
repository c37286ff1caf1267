"""The forward contract: layouts, which patches are encoded where, what comes out, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from onevision_encoder import OneVisionEncoderModel
from tests.onevision_encoder.conftest import largest_difference

Build = Callable[..., OneVisionEncoderModel]


def dense_positions(frames: int, rows: int, columns: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))[None]


@torch.no_grad()
def encode(model: OneVisionEncoderModel, *inputs: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    output = model(*inputs, **more)
    return output.last_hidden_state, output.pooler_output


def test_tokens_come_by_frame_row_column(build: Build) -> None:
    model, pixels = build(), torch.randn(2, 3, 3, 8, 12)
    with torch.no_grad():
        tokens = model(pixels, output_hidden_states=True).hidden_states[0]
        weight = model.embeddings.patch_embedding.weight.flatten(1)
        for index, (t, row, column) in enumerate(dense_positions(3, 2, 3)[0].tolist()):
            patch = pixels[:, :, t, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            assert largest_difference(tokens[:, index], model.layernorm_pre(patch @ weight.T)) < 1e-5


def test_image_is_a_video_of_one_frame(build: Build) -> None:
    model, pixels = build(), torch.randn(2, 3, 8, 8)
    for image, video in zip(encode(model, pixels), encode(model, pixels[:, :, None]), strict=True):
        assert torch.equal(image, video)


def test_pixels_beyond_the_last_patch_are_dropped(build: Build) -> None:
    model, pixels = build(), torch.randn(1, 3, 15, 11)
    last, _ = encode(model, pixels)
    assert last.shape == (1, 3 * 2, 64)
    assert torch.equal(last, encode(model, pixels[..., :12, :8])[0])


def test_explicit_dense_positions_change_nothing(build: Build) -> None:
    model, pixels = build(), torch.randn(2, 3, 4, 8, 12)
    positions = dense_positions(4, 2, 3).expand(2, -1, -1)
    implied = encode(model, pixels)
    for a, b in zip(implied, encode(model, pixels, patch_positions=positions.int()), strict=True):
        assert torch.equal(a, b)


def test_fewer_indices_keep_those_patches(build: Build) -> None:
    model, pixels = build(), torch.randn(2, 3, 4, 8, 8)
    kept = torch.tensor([[1, 6, 7, 12, 15], [0, 2, 3, 9, 14]])
    positions = dense_positions(4, 2, 2)[0][kept]
    by_index = encode(model, pixels, kept)
    assert by_index[0].shape == (2, 5, 64)
    assert torch.equal(by_index[0], encode(model, pixels, kept, positions)[0])
    # A sample's result depends on its own patches alone.
    assert largest_difference(by_index[0][1:], encode(model, pixels[1:], kept[1:])[0]) < 1e-5
    elsewhere = encode(model, pixels, kept, positions + 3)
    assert largest_difference(by_index[0], elsewhere[0]) > 1e-3


def test_equal_count_places_patches_without_reordering(build: Build) -> None:
    model, pixels = build(), torch.randn(1, 3, 2, 8, 8)
    places = torch.tensor([[255, 3, 40, 17, 100, 0, 63, 64]])
    positions = dense_positions(64, 2, 2)[0][places]
    with torch.no_grad():
        output = model(pixels, places, output_hidden_states=True)
        plain = model(pixels, output_hidden_states=True)
    assert torch.equal(output.hidden_states[0], plain.hidden_states[0])
    assert torch.equal(output.last_hidden_state, encode(model, pixels, patch_positions=positions)[0])


def test_real_frames_can_set_the_grid(build: Build) -> None:
    pixels = torch.randn(1, 3, 66, 4, 4)
    model = build(rope_temporal_size=None)
    expected = encode(model, pixels, patch_positions=dense_positions(66, 1, 1))
    assert torch.equal(encode(model, pixels)[0], expected[0])
    assert encode(build(), pixels, patch_positions=dense_positions(66, 1, 1))[0].shape == (1, 66, 64)


@pytest.mark.parametrize("rope_type", ["reference", "rotation"])
@pytest.mark.parametrize("frames", [None, 3])
def test_a_sample_is_a_bag_of_positioned_patches(build: Build, frames: int | None, rope_type: str) -> None:
    """Shuffling patches along with their positions shuffles the tokens, and leaves the pooled vector as it was."""
    model = build(rope_type=rope_type)
    t, rows, columns = frames or 1, 3, 4
    patches = torch.randn(2, t * rows * columns, 3, 4, 4)
    positions = dense_positions(t, rows, columns).expand(2, -1, -1) * torch.tensor([5, 2, 3])
    order = torch.randperm(patches.shape[1])

    def fold(patches_BPCpp: Tensor) -> Tensor:
        grid = patches_BPCpp.view(2, t, rows, columns, 3, 4, 4).permute(0, 4, 1, 2, 5, 3, 6)
        video = grid.reshape(2, 3, t, rows * 4, columns * 4)
        return video if frames else video.squeeze(2)

    last, pooled = encode(model, fold(patches), patch_positions=positions)
    shuffled_last, shuffled_pooled = encode(model, fold(patches[:, order]), patch_positions=positions[:, order])
    assert largest_difference(last[:, order], shuffled_last) < 2e-5
    assert largest_difference(pooled, shuffled_pooled) < 2e-5
    unplaced, _ = encode(model, fold(patches[:, order]), patch_positions=positions)
    assert largest_difference(last[:, order], unplaced) > 1e-3


def test_hidden_states_stop_before_the_final_norm(build: Build) -> None:
    model, pixels = build(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
        assert len(output.hidden_states) == 3
        assert torch.equal(model.get_submodule("layernorm_post")(output.hidden_states[-1]), output.last_hidden_state)
        assert torch.equal(model.get_submodule("head")(output.last_hidden_state), output.pooler_output)


def test_without_head_there_is_no_final_norm_either(build: Build) -> None:
    model, pixels = build(use_head=False), torch.randn(1, 3, 8, 8)
    assert not [name for name in model.state_dict() if name.startswith(("head", "layernorm_post"))]
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
        assert output.pooler_output is None
        assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
        assert model(pixels, return_dict=False)[1] is None


def test_tuple_output(build: Build) -> None:
    model, pixels = build("eager"), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        named = model(pixels, output_hidden_states=True, output_attentions=True)
        last, pooled, hidden_states, attentions = model(
            pixels, output_hidden_states=True, output_attentions=True, return_dict=False
        )
        assert len(model(pixels, return_dict=False)) == 2
    assert torch.equal(last, named.last_hidden_state)
    assert torch.equal(pooled, named.pooler_output)
    assert (len(hidden_states), len(attentions)) == (3, 2)


def test_rms_norm_everywhere_but_nowhere_biased(build: Build) -> None:
    model, pixels = build(layer_norm_type="rms_norm"), torch.randn(1, 3, 8, 8)
    assert not [name for name in model.state_dict() if "norm" in name and name.endswith("bias")]
    with torch.no_grad():
        raw = model.embeddings(pixels[:, :, None])
        normed = model(pixels, output_hidden_states=True).hidden_states[0]
        expected = raw * (raw.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * model.layernorm_pre.weight
    assert largest_difference(normed, expected) < 1e-5


IMAGE, CLIP = (2, 3, 8, 8), (2, 3, 4, 8, 8)


def full(*shape: int, value: int = 0) -> Tensor:
    return torch.full(shape, value)


@pytest.mark.parametrize(
    ("shape", "inputs", "message"),
    [
        ((3, 8, 8), {}, r"shape \(3, 8, 8\)"),
        ((2, 4, 3, 8, 8), {}, "channels before frames"),
        ((2, 1, 8, 8), {}, r"\[B, 3, H, W\]"),
        ((2, 3, 3, 8), {}, "not even one patch of 4 x 4"),
        ((2, 3, 0, 8, 8), {}, "not even one patch"),
        ((1, 3, 65, 8, 8), {}, "65 frames.*rope_temporal_size=64.*patch_positions"),
        (CLIP, {"visible_indices": full(2, 4, value=16)}, "16 patches .* 0 .. 15"),
        (CLIP, {"visible_indices": full(2, 4, value=-1)}, "-1 .. -1"),
        (CLIP, {"visible_indices": full(2, 16, value=256)}, "64 x 2 x 2.* 0 .. 255"),
        ((2, 3, 65, 4, 4), {"visible_indices": full(2, 2, value=64)}, "64 x 1 x 1"),
        (IMAGE, {"visible_indices": full(2, 4, value=4)}, "1 x 2 x 2"),
        (CLIP, {"visible_indices": full(1, 4)}, r"visible_indices has shape \(1, 4\); expected \[2, L\]"),
        (CLIP, {"visible_indices": full(4)}, r"visible_indices has shape \(4,\)"),
        (CLIP, {"visible_indices": full(2, 0)}, r"visible_indices has shape \(2, 0\)"),
        (CLIP, {"visible_indices": full(2, 4).float()}, "visible_indices is torch.float32"),
        (CLIP, {"visible_indices": full(2, 16).bool()}, "visible_indices is torch.bool.*nonzero"),
        (CLIP, {"patch_positions": full(2, 15, 3)}, r"patch_positions has shape \(2, 15, 3\); expected \[2, 16, 3\]"),
        (CLIP, {"patch_positions": full(1, 16, 3)}, r"patch_positions has shape \(1, 16, 3\)"),
        (CLIP, {"patch_positions": full(2, 16, 2)}, r"patch_positions has shape \(2, 16, 2\)"),
        (CLIP, {"patch_positions": full(2, 16, 3).bfloat16()}, "patch_positions is torch.bfloat16"),
        (CLIP, {"patch_positions": full(2, 16, 3, value=-1)}, "patch_positions holds -1"),
        (CLIP, {"visible_indices": full(2, 4), "patch_positions": full(2, 16, 3)}, r"expected \[2, 4, 3\]"),
    ],
)
def test_wrong_inputs_are_refused(
    build: Build, shape: tuple[int, ...], inputs: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(shape), **inputs)


def test_raw_bytes_are_refused(build: Build) -> None:
    with pytest.raises(ValueError, match=r"torch.uint8.*normalised"):
        build()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
