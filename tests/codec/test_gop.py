"""Adaptive groups of pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import codec


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=200), st.integers(1, 12), st.integers(1, 9), st.integers(0, 30)
)
def test_lengths_keep_their_limits(sizes: list[int], groups: int, shortest: int, more: int) -> None:
    longest = 2 * shortest - 1 + more
    starts = codec.adaptive_groups(sizes, "P" * len(sizes), groups, shortest=shortest, longest=longest)
    lengths = np.diff([*starts, len(sizes)])
    assert starts[0] == 0
    assert lengths.sum() == len(sizes)
    assert (lengths <= longest).all()
    assert (lengths >= min(shortest, len(sizes))).all()


def test_groups_hold_equal_shares_of_the_bytes() -> None:
    # The second half of the clip costs three times as much: it gets three of four groups.
    sizes = [100] * 60 + [300] * 60
    starts = codec.adaptive_groups(sizes, "P" * 120, 4)
    assert len(starts) == 4
    # Frame 59 is the last cheap one.
    assert starts.tolist() == [0, 59, 80, 100]


def test_intra_frames_cost_nothing() -> None:
    sizes = [100] * 64
    sizes[0] = sizes[32] = 50_000
    types = "".join("I" if size > 100 else "P" for size in sizes)
    starts = codec.adaptive_groups(sizes, types, 2)
    assert starts.tolist() == [0, 32]


def test_a_cut_moves_to_the_cheapest_frame_nearby() -> None:
    sizes = [100] * 64
    sizes[34] = 5
    assert codec.adaptive_groups(sizes, "P" * 64, 2).tolist() == [0, 34]
    sizes[34], sizes[36] = 100, 5  # out of reach
    assert codec.adaptive_groups(sizes, "P" * 64, 2)[1] != 36


def test_a_static_clip_is_cut_only_where_it_must_be() -> None:
    assert codec.adaptive_groups([0] * 150, "P" * 150, 8).tolist() == [0, 64, 128]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frame_bytes": []}, "got 0"),
        ({"frame_types": "P"}, "got 3 and 1"),
        ({"frame_bytes": [1, -1, 1]}, "same frames"),
        ({"groups": 0}, "groups=0"),
        ({"longest": 10}, "longest=10"),
    ],
)
def test_bad_requests_are_refused(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        codec.adaptive_groups(**({"frame_bytes": [1, 2, 3], "frame_types": "PPP", "groups": 1} | change))
