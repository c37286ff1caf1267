"""Views: every position names the pixels it comes with, whatever the mode, the codec and the length of the clip."""

from __future__ import annotations

import numpy as np
import pytest

import codec
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.order import generator
from megatron_ovenc.data.video import frame_count, frame_pixels
from megatron_ovenc.data.views import Clip, clip_appearance, cut, draw_frames, draw_positives, whole
from tests.data.samples import GRID, PATCH, SIDE, clip_bytes, clip_source, coded_frames, decoded_place

ENCODED = [*(("libx264", length) for length in (1, 3, 7, 16, 17, 40)), ("libx265", 7), ("libx265", 40)]


@pytest.fixture(scope="module")
def clips() -> dict[tuple[str, int], bytes]:
    return {(encoder, length): clip_bytes(coded_frames(length), encoder) for encoder, length in ENCODED}


def sidecar(content: bytes, grid: int = GRID, frames: int = 16) -> bytes:
    return codec.dumps(codec.analyse(content, (grid, grid), virtual_frames=frames))


def check_places(clip: Clip, view, length: int) -> None:
    """Pixels at (t, row, col) must be those of frame indices[t] of the file."""
    seen = decoded_place(view.patches, length)
    assert view.patches.dtype == np.uint8
    assert view.positions.dtype == np.int32
    assert seen[:, 0].tolist() == clip.indices[view.positions[:, 0]].tolist()
    assert seen[:, 1:].tolist() == view.positions[:, 1:].tolist()


def test_cut_is_channel_major_and_takes_what_is_asked_for():
    pixels = np.arange(2 * 28 * 42 * 3, dtype=np.uint32).reshape(2, 28, 42, 3).astype(np.uint8)
    one = cut(pixels, np.array([1]), np.array([0]), np.array([2]), 14)
    assert one.reshape(3, 14, 14).tolist() == pixels[1, :14, 28:].transpose(2, 0, 1).tolist()
    view = whole(pixels, 14)
    assert view.positions[[0, 1, 3, 6, -1]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 2]]
    assert view.patches[8].tolist() == one[0].tolist()


@pytest.mark.parametrize(("encoder", "length"), ENCODED)
def test_positions_name_the_frames_really_shown(clips, encoder, length):
    content = clips[encoder, length]
    for side in (None, sidecar(content)):
        clip = Clip(content, side, clip_source(), PATCH)
        assert len(clip.indices) == min(length, 16)
        view = clip.codec_view()
        assert len(view.positions) == min(24, len(clip.indices) * GRID**2)
        assert len(np.unique(view.positions, axis=0)) == len(view.positions)
        check_places(clip, view, length)
        frames = clip.frames_view(generator("f", length))
        assert len(frames.positions) == min(4, length) * GRID**2
        check_places(clip, frames, length)


def test_a_collage_is_the_same_frames_in_one_tall_still(clips):
    content = clips["libx264", 40]
    clip = Clip(content, None, clip_source(), PATCH)
    frames, collage = clip.frames_view(generator("c", 1)), clip.collage_view(generator("c", 1))
    assert (frames.patches == collage.patches).all()
    assert (collage.positions[:, 0] == 0).all()
    slots = np.arange(len(frames.positions)) // GRID**2
    assert collage.positions[:, 1].tolist() == (slots * GRID + frames.positions[:, 1]).tolist()
    assert collage.positions[:, 2].tolist() == frames.positions[:, 2].tolist()
    assert collage.positions[:, 1].max() == 4 * GRID - 1


def moving_square(length: int) -> np.ndarray:
    """Grain with a bright square that wanders: some patches are far more salient than others."""
    rng = np.random.default_rng(3)
    frames = np.repeat(rng.integers(0, 120, (1, 56, 56, 3), np.uint8), length, axis=0)
    for t in range(length):
        frames[t, 10 + t : 24 + t, 4 + 2 * t : 18 + 2 * t] = 250
    return frames


@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
@pytest.mark.parametrize("policy", ["keep", "anchor", "free"])
def test_a_sidecar_changes_the_cost_but_not_the_patches(encoder, policy):
    content = clip_bytes(moving_square(20), encoder)
    source = clip_source(size=56, tokens=50, i_frames=policy)
    with_it = Clip(content, sidecar(content, 4), source, PATCH).codec_view()
    without = Clip(content, None, source, PATCH).codec_view()
    assert with_it.positions.tolist() == without.positions.tolist()
    assert (with_it.patches == without.patches).all()
    assert len(np.unique(with_it.positions[:, 0])) > 3


@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_augmentation_moves_pixels_and_saliency_together(encoder):
    content, grid = clip_bytes(moving_square(20), encoder), 4
    source = clip_source(size=56, tokens=24, i_frames="free")
    seen = set()
    for number in range(8):
        with_it, without = (
            Clip(content, side, source, PATCH, rng=generator("a", number)) for side in (sidecar(content, grid), None)
        )
        view = with_it.codec_view()
        assert view.positions.tolist() == without.codec_view().positions.tolist()
        assert (view.patches == without.codec_view().patches).all()
        look = clip_appearance(56, 56, generator("a", number))
        cutter = codec.Cutter((grid, grid), PATCH, look)
        pictures = np.stack([cutter.whole(frame) for frame in codec.Frames(content).at(with_it.indices)])
        t, row, col = view.positions.T
        assert (view.patches == cut(pictures, t, row, col, PATCH)).all()
        # The bright square moves over dark grain: what is selected is where it is in the picture as shown, or has just been.
        bright = cut(pictures, t, row, col, PATCH).reshape(len(t), -1).max(axis=1) > 0.8 * pictures.max()
        assert bright.mean() > 0.8
        shown, collage = with_it.frames_view(generator("f", 1)), with_it.collage_view(generator("f", 1))
        assert (shown.patches == whole(pictures[np.unique(shown.positions[:, 0])], PATCH).patches).all()
        assert (shown.patches == collage.patches).all()
        seen.add(look.flip)
    assert seen == {True, False}


def test_patches_chosen_beforehand_keep_their_places():
    content, selection = clip_bytes(coded_frames(16)), np.array([[0, 1, 0], [5, 0, 1], [15, 1, 1]], np.int32)
    plain = Clip(content, None, clip_source(), PATCH).codec_view(selection)
    changed = Clip(content, None, clip_source(), PATCH, rng=generator("a", 0)).codec_view(selection)
    assert changed.positions.tolist() == plain.positions.tolist()
    means = [view.patches.reshape(3, 3, -1).mean(axis=(1, 2)) for view in (plain, changed)]
    assert np.argsort(means[0]).tolist() == np.argsort(means[1]).tolist()
    assert not np.allclose(*means)


def test_a_sidecar_is_used_only_for_its_clip_grid_and_length(monkeypatch):
    content = clip_bytes(moving_square(20))
    source = clip_source(size=56, tokens=50)
    expected = Clip(content, None, source, PATCH).codec_view().positions.tolist()
    fitting = sidecar(content, 4)
    other_clip = sidecar(clip_bytes(moving_square(20)[::-1]), 4)
    unusable = [sidecar(content, 2), sidecar(content, 4, frames=10), other_clip, fitting[:-30], b""]
    decoded = []
    real = codec.signals

    def counted(*args, **kwargs):
        decoded.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(codec, "signals", counted)
    assert Clip(content, fitting, source, PATCH).codec_view().positions.tolist() == expected
    assert not decoded  # the bitstream's signals were not read
    for one in unusable:
        assert Clip(content, one, source, PATCH).codec_view().positions.tolist() == expected
    assert len(decoded) == len(unusable)


def test_a_sidecar_that_is_of_no_use_is_said_once(monkeypatch, caplog):
    content = clip_bytes(moving_square(20))
    monkeypatch.setattr("megatron_ovenc.data.views._told", set())
    for side in (sidecar(content, 2), sidecar(content, 2), sidecar(content, 4, frames=10), b"", b"no"):
        Clip(content, side, clip_source(size=56), PATCH)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "2 x 2 patches of 16 frames, source.size and source.clip_frames ask for 4 x 4 of 16" in messages[0]


def test_crops_keep_the_aspect_that_the_whole_clip_is_shown_in():
    for number in range(50):
        look = clip_appearance(1920, 1080, generator("a", number))
        left, top, right, bottom = look.box
        assert 0 <= left < right <= 1920
        assert 0 <= top < bottom <= 1080
        assert 0.79 < (right - left) / (bottom - top) / (1920 / 1080) < 1.26
        assert 0.5 < (right - left) * (bottom - top) / (1920 * 1080) <= 1
    assert clip_appearance(1, 1, generator("a", 0)).box == (0, 0, 1, 1)


def test_clips_are_stretched_to_a_square():
    frames = np.zeros((10, 48, 96, 3), np.uint8)
    frames[:, :, 48:] = 255
    content = clip_bytes(frames)
    pixels = frame_pixels(content, np.array([0, 4]), SIDE)
    assert pixels.shape == (2, SIDE, SIDE, 3)
    assert pixels[1, :, 4].max() < 20
    assert pixels[1, :, -4].min() > 235
    cut_off = clip_bytes(coded_frames(32), container="matroska")[:-400]
    with pytest.raises(BadSample, match="truncated"):
        frame_pixels(cut_off, np.array([0, 4]), SIDE)


def test_every_bin_of_the_clip_gives_one_frame_at_random():
    for length, count in ((64, 8), (16, 4), (17, 4), (8, 8), (5, 8)):
        draws = np.stack([draw_frames(length, count, generator("d", length, number)) for number in range(300)])
        used = min(count, length)
        assert draws.shape == (300, used)
        edges = np.arange(used + 1) * length // used
        for k in range(used):
            assert set(draws[:, k]) == set(range(edges[k], edges[k + 1]))
    even = [np.bincount(draw_frames(64, 8, generator("e", n)) % 8, minlength=8) for n in range(500)]
    assert np.sum(even, axis=0).min() > 350  # of 4000 draws over 8 offsets


def codec_view(content: bytes):
    return Clip(content, None, clip_source(size=56), PATCH).codec_view()


@pytest.mark.parametrize("container", ["mp4", "mpegts", "h264"])
def test_truncated_clips_are_bad_samples(container):
    content = clip_bytes(moving_square(32), container=container)
    for share in (0.0, 0.01, 0.5, 0.9):
        with pytest.raises(BadSample):
            codec_view(content[: int(len(content) * share)])


def test_a_clip_shorter_than_its_sidecar_claims_is_a_bad_sample():
    with pytest.raises(BadSample, match="the clip ends before frame 12"):
        frame_pixels(clip_bytes(coded_frames(10)), np.array([0, 9, 12]), SIDE)


@pytest.mark.parametrize("content", [b"", b"\x00" * 5000, b"RIFF" + b"x" * 500])
def test_what_is_no_clip_is_a_bad_sample(content):
    with pytest.raises(BadSample, match="the clip"):
        frame_count(content)


def test_positives_are_different_labels_all_if_they_fit():
    candidates = np.array([5, 7, -1, 9, 7, 11])
    drawn = [draw_positives(candidates, 2, 20, generator("p", number)) for number in range(200)]
    assert {label for pair in drawn for label in pair.tolist()} == {5, 7, 9, 11}
    assert all(len(set(pair.tolist())) == 2 for pair in drawn)
    everything = draw_positives(candidates, 6, 20, generator("p", 0))
    assert sorted(everything.tolist()) == [-1, -1, 5, 7, 9, 11]
    assert everything[-2:].tolist() == [-1, -1]
    assert draw_positives(np.array([-1, -1]), 3, 20, generator("p", 0)).tolist() == [-1, -1, -1]
    assert everything.dtype == np.int64


@pytest.mark.parametrize("label", [20, 10**12, -2])
def test_a_label_outside_the_bank_is_a_bad_sample(label):
    with pytest.raises(BadSample, match=rf"its label {label} is outside the bank's \[0, 20\)"):
        draw_positives(np.array([3, label, -1]), 2, 20, generator("p", 0))
