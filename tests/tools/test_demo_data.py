"""Demo data: decodable, balanced, deterministic, and its classes are motions relative to the background."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import codec
from megatron_ovenc.data.order import generator
from megatron_ovenc.data.video import frame_pixels
from tools import demo_data
from tools.demo_data import FRAMES, MOTIONS, SIDE, draw_clip, render


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("demo")
    render(folder, clips=24, images=4, seed=3, workers=1)
    return folder


def test_both_codecs_and_all_classes_are_there(rendered):
    clips = sorted((rendered / "clips").rglob("*.mp4"))
    assert Counter(path.parts[-3] for path in clips) == {"train": 16, "probe": 3, "val": 5}
    assert Counter(path.parts[-2] for path in clips if path.parts[-3] == "train") == dict.fromkeys(MOTIONS, 2)
    assert len(list((rendered / "images").rglob("*.jpg"))) == 4
    for name, expected in (("00000", "h264"), ("00001", "hevc")):
        path = rendered / "clips/train/pulsing" / f"{name}.mp4"
        sidecar = codec.analyse(path, (8, 8))
        assert sidecar.source_codec == expected
        assert (sidecar.height, sidecar.width, len(sidecar.frame_types)) == (SIDE, SIDE, FRAMES)
        assert sidecar.frame_types == ("I" + "P" * 15) * 2


def test_the_same_seed_gives_the_same_files_and_another_seed_does_not(rendered, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_data, "MOTIONS", MOTIONS[:2])
    render(tmp_path / "same", clips=5, images=2, seed=3, workers=1)
    render(tmp_path / "other", clips=2, images=2, seed=4, workers=1)
    name = "images/train/astronaut/00000.jpg"
    assert (tmp_path / "same" / name).read_bytes() == (rendered / name).read_bytes()

    def difference(one: Path, other: Path) -> float:
        # x264 does not always code the same frames alike.
        first, second = (
            frame_pixels(path.read_bytes(), np.arange(FRAMES), SIDE).astype(float) for path in (one, other)
        )
        return float(np.abs(first - second).mean())

    for name in ("clips/train/across/00000.mp4", "clips/train/across/00001.mp4"):
        assert difference(tmp_path / "same" / name, rendered / name) < 0.5
    name = "clips/train/across/00000.mp4"
    assert difference(tmp_path / "other" / name, rendered / name) > 2
    assert difference(rendered / "clips/val/across/00000.mp4", rendered / name) > 2


@pytest.mark.parametrize("motion", MOTIONS)
def test_classes_are_what_they_say(motion, monkeypatch):
    """With the camera at rest, the ball's centre must move along the line that the class names, or not at all."""
    pytest.importorskip("skimage")
    monkeypatch.setattr(demo_data, "_PAN", 0.0)
    frames = np.stack([np.asarray(picture, float) for picture in draw_clip(motion, generator("demo test", motion))])
    colour = frames.max(axis=-1) - frames.min(axis=-1)  # the background is grey
    rows, cols = np.indices(colour.shape[1:])
    weight = colour.sum(axis=(1, 2))
    y, x = ((colour * axis).sum(axis=(1, 2)) / weight for axis in (rows, cols))
    area = (colour > 40).sum(axis=(1, 2))
    if motion == "resting":
        assert np.abs(np.diff(frames, axis=0)).max() == 0
    elif motion in ("pulsing", "turning"):
        assert max(x.std(), y.std()) < 1
        assert (area.std() / area.mean() > 0.1) == (motion == "pulsing")
        assert np.abs(np.diff(frames, axis=0)).mean() > 0.1
    elif motion == "circling":
        assert min(x.std(), y.std()) > 2.5
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.3
    elif motion in ("across", "upright"):
        along, beside = (x, y) if motion == "across" else (y, x)
        assert along.std() > 4
        assert beside.std() < 0.5
    else:
        assert np.corrcoef(x, y)[0, 1] * (1 if motion == "falling" else -1) > 0.98
