"""What of a clip is shown: the right frames, at the right virtual times, whatever the clip's length."""

from __future__ import annotations

import numpy as np
import pytest

import codec
from eval.views import CodecPatches, Picture, UniformFrames, segment_centres, virtual_times
from megatron_ovenc.data.errors import BadSample
from tests.data.samples import GRID, PATCH, SIDE, clip_bytes, coded_frames, decoded_place, image_bytes


def test_frames_and_times_of_the_published_example() -> None:
    frames = segment_centres(320, 16)
    assert frames[0] == 9
    assert frames[-1] == 309
    expected = [2, 6, 10, 14, 18, 22, 25, 29, 33, 37, 41, 45, 49, 53, 57, 61]
    assert virtual_times(frames, 320).tolist() == expected


@pytest.mark.parametrize(("total", "count"), [(1, 4), (3, 4), (4, 4), (64, 8), (7, 1)])
def test_frames_stay_inside_the_clip_and_in_order(total: int, count: int) -> None:
    frames = segment_centres(total, count)
    assert len(frames) == count
    assert (np.diff(frames) >= 0).all()
    assert frames[0] >= 0
    assert frames[-1] < total
    assert 0 <= virtual_times(frames, total)[0] <= virtual_times(frames, total)[-1] <= 63


def test_uniform_frames_show_the_pixels_that_their_positions_claim() -> None:
    view = UniformFrames(size=SIDE, patch_size=PATCH, frames=4)(clip_bytes(coded_frames(20)))
    frames = segment_centres(20, 4)
    assert len(view.patches) == 4 * GRID**2
    places = decoded_place(view.patches, 20)
    assert places[:, 0].tolist() == frames.repeat(GRID**2).tolist()
    assert np.array_equal(places[:, 1:], view.positions[:, 1:])
    assert view.positions[:, 0].tolist() == virtual_times(frames, 20).repeat(GRID**2).tolist()


def test_a_clip_shorter_than_the_frames_shows_some_twice() -> None:
    view = UniformFrames(size=SIDE, patch_size=PATCH, frames=8)(clip_bytes(coded_frames(3)))
    assert len(view.patches) == 8 * GRID**2
    assert set(decoded_place(view.patches, 3)[:, 0]) == {0, 1}


def test_codec_patches_are_those_that_training_selects() -> None:
    content = clip_bytes(coded_frames(20))
    view = CodecPatches(size=SIDE, patch_size=PATCH, tokens=30, i_frames="anchor")(content)
    saliency = codec.analyse(content, (GRID, GRID), virtual_frames=64)
    expected = codec.select(saliency.saliency, 30, "anchor", frame_types=saliency.frame_types)
    assert np.array_equal(view.positions, expected)
    assert np.array_equal(decoded_place(view.patches, 20), view.positions)


def test_a_clip_with_fewer_patches_than_tokens_shows_all() -> None:
    view = CodecPatches(size=SIDE, patch_size=PATCH, tokens=30)(clip_bytes(coded_frames(3)))
    assert len(view.patches) == 3 * GRID**2


def test_wrong_sizes_and_damaged_clips() -> None:
    with pytest.raises(ValueError, match="--size is 30"):
        UniformFrames(size=30, patch_size=14)
    with pytest.raises(ValueError, match="--tokens is 0"):
        CodecPatches(size=28, patch_size=14, tokens=0)
    with pytest.raises(ValueError, match="--frames is 0"):
        UniformFrames(size=28, patch_size=14, frames=0)
    for view in (UniformFrames(size=28, patch_size=14), CodecPatches(size=28, patch_size=14)):
        with pytest.raises(BadSample):
            view(b"no video")


def test_a_picture_is_shown_whole() -> None:
    view = Picture(size=SIDE, patch_size=PATCH)(image_bytes(coded_frames(1)[0]))
    assert np.array_equal(view.positions, [[0, row, col] for row in range(GRID) for col in range(GRID)])
    assert np.array_equal(decoded_place(view.patches, 1)[:, 1:], view.positions[:, 1:])


def test_a_part_of_a_clip_is_seen_as_if_it_were_all() -> None:
    """The codec's positions count from the part's first frame, and what moved before that frame plays no role."""
    content, part = clip_bytes(coded_frames(40), gop=10), range(25, 40)
    uniform = UniformFrames(size=SIDE, patch_size=PATCH, frames=4)(content, part)
    expected = (25 + segment_centres(15, 4)).repeat(GRID**2)
    assert decoded_place(uniform.patches, 40)[:, 0].tolist() == expected.tolist()
    shown = CodecPatches(size=SIDE, patch_size=PATCH, tokens=20, i_frames="free")(content, part)
    assert decoded_place(shown.patches, 40)[:, 0].tolist() == (25 + shown.positions[:, 0]).tolist()
    # Before the part one patch flickers, within it the one diagonally opposite, less.
    rng, frames = np.random.default_rng(0), np.full((40, SIDE, SIDE, 3), 128, np.uint8)
    frames[:25, :PATCH, :PATCH] = rng.integers(0, 256, (25, PATCH, PATCH, 1))
    frames[25:, PATCH:, PATCH:] += rng.integers(0, 40, (15, PATCH, PATCH, 1), dtype=np.uint8)
    content = clip_bytes(frames, gop=40)
    view = CodecPatches(size=SIDE, patch_size=PATCH, tokens=10, i_frames="free")(content, part)
    signals = list(codec.signals(content))[25:]
    levels = np.rint(codec.saliency(signals, (GRID, GRID)) * 255).astype(np.uint8)
    types = "".join(frame.type for frame in signals)
    assert np.array_equal(view.positions, codec.select(levels, 10, "free", frame_types=types))
