"""Demo data: decodable, balanced, deterministic, and its classes are motions relative to the background."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import codec
from megatron_ovenc.data.order import generator
from tools import demo_data
from tools.demo_data import FRAMES, MOTIONS, SIDE, draw_clip, render


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("demo")
    render(folder, clips=22, images=4, seed=3, workers=1)
    return folder


def test_both_codecs_and_all_classes_are_there(rendered):
    clips = sorted((rendered / "clips").rglob("*.mp4"))
    assert Counter(path.parts[-3] for path in clips) == {"train": 16, "val": 6}
    assert Counter(path.parts[-2] for path in clips if path.parts[-3] == "train") == dict.fromkeys(MOTIONS, 2)
    assert len(list((rendered / "images").rglob("*.jpg"))) == 4
    for name, expected in (("00000", "h264"), ("00001", "hevc")):
        path = rendered / "clips/train/growing" / f"{name}.mp4"
        sidecar = codec.analyse(path, (8, 8))
        assert sidecar.source_codec == expected
        assert (sidecar.height, sidecar.width, len(sidecar.frame_types)) == (SIDE, SIDE, FRAMES)
        assert sidecar.frame_types == ("I" + "P" * 15) * 4


def test_the_same_seed_gives_the_same_files_and_another_seed_does_not(rendered, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_data, "MOTIONS", MOTIONS[:2])
    render(tmp_path / "same", clips=5, images=2, seed=3, workers=1)
    render(tmp_path / "other", clips=2, images=2, seed=4, workers=1)
    for name in ("clips/train/left/00000.mp4", "clips/train/left/00001.mp4", "images/train/astronaut/00000.jpg"):
        assert (tmp_path / "same" / name).read_bytes() == (rendered / name).read_bytes()
    name = "clips/train/left/00000.mp4"
    assert (tmp_path / "other" / name).read_bytes() != (rendered / name).read_bytes()
    assert (rendered / "clips/val/left/00000.mp4").read_bytes() != (rendered / name).read_bytes()


@pytest.mark.parametrize("motion", MOTIONS)
def test_classes_are_what_they_say(motion, monkeypatch):
    """With the camera at rest on a flat background, the object's centre and area must move as the class says."""
    pytest.importorskip("skimage")
    monkeypatch.setattr(demo_data, "_PAN", 0.0)
    frames = np.stack([np.asarray(picture, float) for picture in draw_clip(motion, generator("demo test", motion))])
    background = np.median(frames, axis=0)
    masks = np.abs(frames - background).max(axis=-1) > 12
    if motion in ("growing", "shrinking"):
        # Where the object always is, the median is the object itself: look at the ring where it is sometimes.
        areas = [np.abs(frame - frames[0]).mean() for frame in frames]
        assert areas[-1] > areas[8] > 0
        edge = np.abs(frames[[0, -1]] - background).max(axis=-1) > 12
        reach = [np.argwhere(one).std() for one in edge]
        assert (reach[1] > reach[0]) == (motion == "growing")
        return
    rows, cols = np.array([np.argwhere(mask).mean(axis=0) for mask in masks]).T
    step = np.array([cols[-8:].mean() - cols[:8].mean(), rows[-8:].mean() - rows[:8].mean()])
    if motion in ("clockwise", "counterclockwise"):
        x, y = cols - cols.mean(), rows - rows.mean()
        turn = np.sum(x[:-8] * y[8:] - y[:-8] * x[8:])
        assert (turn > 0) == (motion == "clockwise")
        assert np.abs(step).max() < 15
    else:
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[motion]
        assert step[axis] * sign > 15
        assert abs(step[1 - axis]) < 8
