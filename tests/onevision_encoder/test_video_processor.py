"""The video processor against what training and evaluation see of the same file, and what it does with files it cannot read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from eval.encoder import Encoder
from eval.views import CodecPatches, UniformFrames, View
from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderModel, OneVisionEncoderVideoProcessor
from tests.onevision_encoder.clips import write_clip
from tests.onevision_encoder.conftest import TINY, largest_difference

FIELDS: dict[str, Any] = {"size": {"height": 32, "width": 32}, "patch_size": 4, "num_tokens": 100, "num_frames": 3}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {name: write_clip(folder / f"{name}.mp4", frames) for name, frames in (("long", 80), ("short", 2))}


@pytest.mark.parametrize("name", ["long", "short"])
@pytest.mark.parametrize("sampling", ["codec", "uniform"])
def test_shows_what_training_and_evaluation_show(clips: dict[str, Path], name: str, sampling: str) -> None:
    torch.manual_seed(0)
    model = OneVisionEncoderModel(OneVisionEncoderConfig(**TINY)).eval()
    views = {
        "codec": CodecPatches(size=32, patch_size=4, tokens=100),
        "uniform": UniformFrames(size=32, patch_size=4, frames=3),
    }
    view: View = views[sampling](clips[name].read_bytes())
    inputs = OneVisionEncoderVideoProcessor(**FIELDS)(clips[name], sampling=sampling, return_tensors="pt")
    assert np.array_equal(inputs["patch_positions"][0].numpy(), view.positions)
    (expected,), pooled = Encoder(model, device=torch.device("cpu"))([view])
    with torch.no_grad():
        output = model(**inputs)
    assert largest_difference(output.last_hidden_state[0], expected) < 1e-5
    assert largest_difference(output.pooler_output, pooled) < 1e-5


def test_i_frames_and_virtual_frames_are_read(clips: dict[str, Path]) -> None:
    processor = OneVisionEncoderVideoProcessor(**FIELDS)
    times = {
        policy: processor(clips["long"], i_frames=policy)["patch_positions"][0][:, 0] for policy in ("keep", "free")
    }
    assert np.bincount(times["keep"])[0] == 64  # the first frame, whole
    assert np.bincount(times["free"])[0] < 64
    assert processor(clips["long"], virtual_frames=8)["patch_positions"][0][:, 0].max() == 7
    assert processor(clips["long"], sampling="uniform", virtual_frames=8)["patch_positions"][0][:, 0].max() <= 7


def test_batches_stack_where_lengths_agree(clips: dict[str, Path]) -> None:
    processor = OneVisionEncoderVideoProcessor(**FIELDS)
    both = [clips["long"], clips["short"]]
    assert processor([str(clip) for clip in both], return_tensors="pt", num_tokens=7)["pixel_values"].shape == (
        2,
        3,
        4,
        28,
    )
    assert processor(both, return_tensors="np", sampling="uniform")["pixel_values"].shape == (2, 3, 3, 32, 32)
    assert [len(each) for each in processor(both, num_tokens=200)["patch_positions"]] == [200, 128]
    with pytest.raises(ValueError, match=r"\[128, 200\] patches.*OneVisionEncoderTower"):
        processor(both, num_tokens=200, return_tensors="pt")


@pytest.mark.parametrize("sampling", ["codec", "uniform"])
@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "ends early", "damaged"])
def test_unreadable_files_are_named(clips: dict[str, Path], tmp_path: Path, sampling: str, kind: str) -> None:
    path, content = tmp_path / "broken.mp4", bytearray(clips["long"].read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif kind == "ends early":  # exactly between two frames: nothing is damaged, there is only less than the index says
        with av.open(str(clips["long"])) as container:
            position = list(container.demux(video=0))[40].pos
        assert position is not None
        path.write_bytes(content[:position])
    elif kind == "damaged":
        middle = len(content) * 3 // 4
        content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
        path.write_bytes(content)
    elif kind == "text":
        path.write_text("no video")
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        OneVisionEncoderVideoProcessor(**FIELDS)(path, sampling=sampling)


@pytest.mark.parametrize(
    ("sampling", "absent", "message"),
    [("codec", "codec", r"codec-selected.*megatron-ovenc.*uniform"), ("uniform", "av", r"`av`.*pip install av")],
)
def test_missing_packages_are_named(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch, sampling: str, absent: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=message):
        OneVisionEncoderVideoProcessor(**FIELDS)(clips["short"], sampling=sampling)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "random"}, "sampling='random'.*codec, uniform"),
        ({"i_frames": "all"}, "i_frames='all'"),
        ({"num_tokens": 0}, "num_tokens=0"),
        ({"size": {"height": 30, "width": 32}}, "size=.*multiples of patch_size=4"),
        ({"size": {"shortest_edge": 32}}, "size=.*height and width"),
        ({"tokens": 5}, "unknown option tokens.*num_tokens"),
    ],
)
def test_wrong_options_are_refused(clips: dict[str, Path], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneVisionEncoderVideoProcessor(**FIELDS)(clips["short"], **fields)


def test_decoded_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot read a video from ndarray.*image processor"):
        OneVisionEncoderVideoProcessor()(np.zeros((4, 32, 32, 3), np.uint8))


def test_saving_and_loading(clips: dict[str, Path], tmp_path: Path) -> None:
    processor = OneVisionEncoderVideoProcessor(
        **FIELDS, sampling="uniform", i_frames="free", image_mean=[0.1, 0.2, 0.3]
    )
    processor.save_pretrained(tmp_path)
    OneVisionEncoderConfig().save_pretrained(tmp_path)
    expected = processor(clips["short"], return_tensors="pt")
    for loaded in (
        OneVisionEncoderVideoProcessor.from_pretrained(tmp_path),
        AutoVideoProcessor.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        given = loaded(clips["short"], return_tensors="pt")
        assert all(torch.equal(given[name], expected[name]) for name in expected)
