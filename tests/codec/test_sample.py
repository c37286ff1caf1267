"""Frames to virtual frames: positions always name frames that were really decoded."""

import numpy as np
import pytest

import codec
from tests.codec.clips import P_ONLY, encode, moving_square, panning


@pytest.mark.parametrize(
    ("frames", "virtual", "expected"),
    [(64, 64, range(64)), (5, 64, range(5)), (1, 64, [0]), (10, 1, [0]), (9, 5, [0, 2, 4, 6, 8]), (8, 3, [0, 4, 7])],
)
def test_known_mappings(frames: int, virtual: int, expected: list[int]) -> None:
    assert codec.frame_indices(frames, virtual).tolist() == list(expected)


def test_indices_are_strictly_increasing_from_first_to_last() -> None:
    for frames in [65, 66, 97, 127, 128, 129, 737, 100_001]:
        indices = codec.frame_indices(frames, 64)
        assert len(indices) == 64
        assert (np.diff(indices) > 0).all()
        assert (indices[0], indices[-1]) == (0, frames - 1)
        assert np.abs(indices - np.linspace(0, frames - 1, 64)).max() <= 0.5


@pytest.mark.parametrize(("frames", "virtual"), [(0, 64), (10, 0), (-1, 4)])
def test_empty_mappings_are_refused(frames: int, virtual: int) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        codec.frame_indices(frames, virtual)


def test_a_kept_frame_answers_for_those_skipped_before_it() -> None:
    frames, corners = moving_square(13, (128, 160), (3, 1))
    signals = list(codec.signals(encode(frames, options=P_ONLY)))
    kept = codec.sample(signals, [0, 4, 5, 12])
    assert [frame.index for frame in kept] == [0, 4, 5, 12]
    assert kept[2] is signals[5]
    np.testing.assert_allclose(kept[1].residual, sum(frame.residual for frame in signals[1:5]), rtol=1e-6)
    np.testing.assert_allclose(kept[3].motion, sum(frame.motion for frame in signals[6:13]), rtol=1e-6)
    assert kept[1].frame_bytes == sum(frame.frame_bytes for frame in signals[1:5])
    x, y = corners[4]
    # The cells that the square covered all the time have moved with it.
    np.testing.assert_allclose(kept[1].motion[y // 4 + 2, (x + 16) // 4], [12, 4], atol=1)


def test_a_kept_intra_frame_drops_what_came_before_it() -> None:
    options = {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=0"}
    signals = list(codec.signals(encode(panning(12, (64, 80), (2, 0)), options=options)))
    kept = codec.sample(signals, [0, 8, 11])
    assert not kept[1].motion.any()
    assert not kept[1].residual.any()
    assert kept[1].frame_bytes == signals[8].frame_bytes
    assert kept[2].frame_bytes == sum(frame.frame_bytes for frame in signals[9:12])


def test_sampling_reads_no_further_than_it_must() -> None:
    signals = codec.signals(encode(panning(10, (64, 80), (2, 0))))
    codec.sample(signals, [0, 3])
    assert next(signals).index == 4
    assert codec.sample(signals, []) == []


@pytest.mark.parametrize("indices", [[3, 3], [4, 2], [-1, 2]])
def test_indices_out_of_order_are_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        codec.sample([], indices)


def test_a_clip_shorter_than_its_indices_is_refused() -> None:
    with pytest.raises(ValueError, match="frame 9 was asked for"):
        codec.sample(codec.signals(encode(panning(6, (64, 80), (2, 0)))), [0, 9])
