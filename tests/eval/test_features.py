"""Features equal a direct forward of the model on whole frames; bad clips keep their row; nothing is computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import codec
from eval.datasets import Dataset, Sample, read_folder
from eval.encoder import Encoder, load_encoder
from eval.features import Features, extract
from eval.views import CodecPatches, UniformFrames, segment_centres, virtual_times
from megatron_ovenc.data.video import frame_pixels
from onevision_encoder import OneVisionEncoderModel
from tests.data.samples import GRID, PATCH, SIDE, clip_bytes, coded_frames

FRAMES = UniformFrames(size=SIDE, patch_size=PATCH, frames=4)
CODEC = CodecPatches(size=SIDE, patch_size=PATCH, tokens=30, i_frames="anchor")


def video(pixels: np.ndarray) -> Tensor:
    """uint8 [T, S, S, 3] -> [1, 3, T, S, S], normalised as the model's preprocessor says."""
    floats = torch.from_numpy(pixels).float() / 255
    return ((floats - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])).permute(3, 0, 1, 2)[None]


def test_uniform_frames_give_what_the_model_gives_for_a_video(encoder: Encoder, model_dir: Path) -> None:
    content = clip_bytes(coded_frames(20))
    frames = segment_centres(20, 4)
    grid = np.indices((4, GRID, GRID)).reshape(3, -1).T
    positions = np.concatenate([virtual_times(frames, 20)[grid[:, :1]], grid[:, 1:]], axis=1)
    model = OneVisionEncoderModel.from_pretrained(model_dir).eval()
    with torch.inference_mode():
        expected = model(
            video(frame_pixels(content, frames, SIDE)), patch_positions=torch.from_numpy(positions)[None].long()
        )
    tokens, pooled = encoder([FRAMES(content)])
    assert torch.allclose(tokens[0], expected.last_hidden_state[0], atol=1e-5)
    assert torch.allclose(pooled, expected.pooler_output, atol=1e-5)


def test_codec_patches_give_what_the_model_gives_for_visible_indices(encoder: Encoder, model_dir: Path) -> None:
    """A clip of 64 frames, given whole: the model itself picks the patches and knows their positions."""
    content = clip_bytes(coded_frames(64))
    visible = codec.visible_indices(CODEC(content).positions, (GRID, GRID))
    model = OneVisionEncoderModel.from_pretrained(model_dir).eval()
    with torch.inference_mode():
        expected = model(
            video(frame_pixels(content, np.arange(64), SIDE)), visible_indices=torch.from_numpy(visible)[None]
        )
    tokens, pooled = encoder([CODEC(content)])
    assert torch.allclose(tokens[0], expected.last_hidden_state[0], atol=1e-5)
    assert torch.allclose(pooled, expected.pooler_output, atol=1e-5)


def test_views_of_different_lengths_share_a_batch(encoder: Encoder) -> None:
    views = [CODEC(clip_bytes(coded_frames(length))) for length in (20, 3, 24)]
    together, pooled = encoder(views)
    for view, tokens, embedding in zip(views, together, pooled, strict=True):
        alone, alone_pooled = encoder([view])
        assert len(tokens) == len(view.patches)
        assert torch.allclose(tokens, alone[0], atol=1e-6)
        assert torch.allclose(embedding, alone_pooled[0], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_every_clip_keeps_its_row(encoder: Encoder, clips: Path, batch_size: int) -> None:
    dataset = read_folder(clips)
    features = extract(encoder, CODEC, dataset, batch_size=batch_size)
    bad = next(row for row, clip in enumerate(dataset.samples) if clip.path.match("tall/1.mp4"))
    assert features.labels.tolist() == [0] * 5 + [1] * 3
    assert np.flatnonzero(~features.answered).tolist() == [bad]
    assert [failure.path for failure in features.failures] == [str(dataset.samples[bad].path)]
    for row, clip in enumerate(dataset.samples):
        if row != bad:
            tokens, pooled = encoder([CODEC(clip.path.read_bytes())])
            kept, lengths = features.tokens(np.array([row]), np.array([0]))
            assert lengths.tolist() == features.lengths[row].tolist() == [len(tokens[0])]
            assert np.allclose(kept[0], tokens[0], atol=1e-2)
            assert np.allclose(features.pooled[row], pooled, atol=1e-5)


def test_processes_decode_the_same(encoder: Encoder, clips: Path) -> None:
    dataset = read_folder(clips)
    assert_equal(extract(encoder, FRAMES, dataset, workers=2), extract(encoder, FRAMES, dataset))


def test_cached_features_are_read_and_only_for_what_they_are_of(
    encoder: Encoder, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.features.BLOCK", 3)
    dataset = read_folder(clips)
    pooled = extract(encoder, FRAMES, dataset, cache=tmp_path, keep_tokens=False)
    assert not list(tmp_path.rglob("*.tokens.npy"))
    first = extract(encoder, FRAMES, dataset, cache=tmp_path)
    assert np.array_equal(first.pooled, pooled.pooled)
    assert_equal(first, extract(encoder, FRAMES, dataset))
    # An interrupted call: the block that is not finished is computed again, and nothing else is.
    entry = next(tmp_path.iterdir())
    (entry / "000001.json").unlink()
    (entry / "000001.tokens.npy").write_bytes(b"half of it")
    seen: list[int] = []
    monkeypatch.setattr(Encoder, "__call__", counted(Encoder.__call__, seen))
    assert_equal(first, extract(encoder, FRAMES, dataset, cache=tmp_path))
    assert sum(seen) == 3
    assert_equal(first, extract(encoder, FRAMES, dataset, cache=tmp_path))
    assert sum(seen) == 3
    extract(encoder, CODEC, dataset, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def counted(call: Any, seen: list[int]) -> Any:
    def wrapper(encoder: Encoder, views: list) -> Any:
        seen.append(len(views))
        return call(encoder, views)

    return wrapper


def test_features_without_room_are_refused_before_anything_is_decoded(encoder: Encoder, clips: Path) -> None:
    many = Dataset(classes=("a",), samples=(Sample(path=clips / "absent.mp4", labels=(0,)),) * 10**6)
    view = UniformFrames(size=SIDE, patch_size=PATCH, frames=10**7)
    with pytest.raises(ValueError, match="give --cache on a larger disk"):
        extract(encoder, view, many)


def test_several_clips_of_a_video_are_its_parts(encoder: Encoder, clips: Path) -> None:
    path = clips / "tall" / "0.mp4"
    dataset = Dataset(classes=("a",), samples=(Sample(path=path, labels=(0,)),))
    both = extract(encoder, FRAMES, dataset, clips=2)
    for clip, frames in enumerate((range(20), range(20, 40))):
        tokens, pooled = encoder([FRAMES(path.read_bytes(), frames)])
        assert np.allclose(both.pooled[0, clip], pooled[0], atol=1e-6)
        assert np.allclose(both.tokens(np.array([0]), np.array([clip]))[0][0], tokens[0], atol=1e-2)
    units = both.pooled[0] / np.linalg.norm(both.pooled[0], axis=1, keepdims=True)
    assert np.allclose(both.embeddings[0], units.mean(axis=0))


def test_features_that_are_not_finite_stop_everything(model_dir: Path, clips: Path) -> None:
    model = OneVisionEncoderModel.from_pretrained(model_dir)
    torch.nn.init.constant_(model.encoder.layers[0].mlp.fc2.bias, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        extract(Encoder(model, device=torch.device("cpu")), FRAMES, read_folder(clips))


def test_other_models_and_empty_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a Hugging Face model directory"):
        load_encoder(tmp_path, torch.device("cpu"))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="'vit'; evaluations know this project's and clip"):
        load_encoder(tmp_path, torch.device("cpu"))


def assert_equal(one: Features, other: Features) -> None:
    for name in ("labels", "pooled", "lengths"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    rows = np.arange(len(one.labels))
    for mine, theirs in zip(one.tokens(rows, 0 * rows), other.tokens(rows, 0 * rows), strict=True):
        assert np.array_equal(mine, theirs)
    assert one.failures == other.failures
    assert one.classes == other.classes
