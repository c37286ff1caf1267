"""Segments of long videos: exactly their frames, from whatever key frame they can be decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.datasets import Sample
from eval.reading import look, parts, read
from eval.views import UniformFrames
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.video import frame_pixels
from tests.data.samples import PATCH, SIDE, clip_bytes, coded_frames

FPS, FRAMES = 30, 60


@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_a_segment_is_its_frames_and_no_others(tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "long.mp4"
    path.write_bytes(clip_bytes(coded_frames(FRAMES), encoder=encoder, gop=12))
    every = frame_pixels(path.read_bytes(), np.arange(FRAMES), SIDE)
    for begin, end in ((0.0, 0.5), (0.9, 1.3), (1.5, 9.0)):
        content, inside = read(Sample(path=path, labels=(0,), seconds=(begin, end)))
        assert inside is not None
        expected = [frame for frame in range(FRAMES) if begin <= frame / FPS < end - 1e-9]
        assert np.array_equal(frame_pixels(content, np.arange(inside.start, inside.stop), SIDE), every[expected])
        # Not the whole file: at most the group of pictures before the one that the segment begins in.
        assert inside.start < 3 * 12


def test_clips_of_a_segment_are_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    path.write_bytes(clip_bytes(coded_frames(FRAMES), gop=12))
    view = UniformFrames(size=SIDE, patch_size=PATCH, frames=2)
    first, second = look(view, 2, Sample(path=path, labels=(0,), seconds=(1.0, 2.0)))
    assert np.array_equal(first.patches, view(path.read_bytes(), range(30, 45)).patches)
    assert np.array_equal(second.patches, view(path.read_bytes(), range(45, 60)).patches)


def test_parts() -> None:
    assert parts(range(3, 10), 3) == [range(3, 5), range(5, 7), range(7, 10)]
    assert parts(range(0, 2), 4) == [range(0, 1), range(0, 1), range(1, 2), range(1, 2)]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    absent = Sample(path=path, labels=(0,))
    for sample in (absent, Sample(path=path, labels=(0,), seconds=(0.0, 1.0))):
        with pytest.raises(BadSample, match="cannot be read"):
            read(sample)
    path.write_bytes(clip_bytes(coded_frames(10)))
    with pytest.raises(BadSample, match="no frame between 7 and 8 seconds"):
        read(Sample(path=path, labels=(0,), seconds=(7.0, 8.0)))
    path.write_bytes(b"no video")
    with pytest.raises(BadSample, match="segment cannot be read"):
        read(Sample(path=path, labels=(0,), seconds=(0.0, 1.0)))
