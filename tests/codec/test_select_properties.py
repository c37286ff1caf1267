"""Selection under any saliency, budget and limits: properties that always hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import codec

SHARES = (0.031, 0.0625, 0.125, 0.25)


@st.composite
def requests(draw: st.DrawFn) -> dict:
    """A request that can be met. Few levels of saliency, so that ties are the rule."""
    frames, rows, cols = draw(st.integers(1, 12)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    seed, levels = draw(st.integers(0, 999)), draw(st.sampled_from([1, 2, 4, 255]))
    patches = rows * cols
    floor = draw(st.integers(0, patches // 2))
    cap = draw(st.integers(max(floor, 1), patches))
    budget = draw(st.integers(max(1, frames * floor), max(1, frames * cap)))
    return {
        "saliency": np.random.default_rng(seed).integers(0, levels, (frames, rows, cols)).astype(np.uint8),
        "budget": budget,
        "policy": draw(st.sampled_from(["keep", "anchor", "free"])),
        "frame_types": draw(st.text("IPB", min_size=frames, max_size=frames)),
        "block": draw(st.integers(1, 3)),
        "floor": floor,
        "cap": cap,
    }


@settings(max_examples=300, deadline=None, derandomize=True)
@given(requests())
def test_budgets_are_exact_limits_hold_and_results_repeat(request: dict) -> None:
    saliency = request["saliency"]
    frames, rows, cols = saliency.shape
    positions = codec.select(**request)
    assert positions.shape == (request["budget"], 3) and positions.dtype == np.int32
    assert (positions >= 0).all() and (positions < saliency.shape).all()
    assert (np.diff(codec.visible_indices(positions, (rows, cols))) > 0).all()
    per_frame = np.bincount(positions[:, 0], minlength=frames)
    intra = np.array([kind == "I" for kind in request["frame_types"]])
    privileged = {"keep": intra, "anchor": np.arange(frames) == 0, "free": np.zeros(frames, bool)}[request["policy"]]
    assert (per_frame >= request["floor"]).all()
    assert (per_frame[~(privileged & (per_frame == rows * cols))] <= request["cap"]).all()
    assert np.array_equal(positions, codec.select(**(request | {"saliency": saliency.copy()})))
    # What a float says and what a byte says is the same.
    assert np.array_equal(positions, codec.select(**(request | {"saliency": saliency.astype(np.float32)})))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(requests())
def test_without_limits_nothing_left_out_is_more_salient_than_what_is_taken(request: dict) -> None:
    saliency = request["saliency"]
    request |= {"policy": "free", "block": 1, "floor": 0, "cap": None}
    taken = np.zeros(saliency.shape, bool)
    taken[tuple(codec.select(**request).T)] = True
    if not taken.all():
        assert saliency[taken].min() >= saliency[~taken].max()
        # Of equal patches, the earlier ones in (t, row, col) are taken.
        level = saliency[taken].min()
        equal = taken[saliency == level]
        if level > 0:
            assert (np.diff(equal.astype(int)) <= 0).all()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(requests())
def test_blocks_are_taken_whole_but_for_the_last(request: dict) -> None:
    saliency, side = request["saliency"], request["block"]
    request |= {"policy": "free", "floor": 0, "cap": None, "saliency": saliency + np.uint8(1) * (saliency < 255)}
    taken = np.zeros(saliency.shape, bool)
    taken[tuple(codec.select(**request).T)] = True
    cut = 0
    for t, row, col in np.ndindex(len(saliency), -(-saliency.shape[1] // side), -(-saliency.shape[2] // side)):
        block = taken[t, row * side : (row + 1) * side, col * side : (col + 1) * side]
        cut += 0 < block.mean() < 1
    assert cut <= 1


@pytest.mark.parametrize("frames", [64, 40, 3])
@pytest.mark.parametrize("policy", ["keep", "anchor", "free"])
@pytest.mark.parametrize("block", [1, 2])
def test_the_papers_budgets_whatever_the_length_of_the_clip(frames: int, policy: str, block: int) -> None:
    saliency = np.random.default_rng(frames).random((frames, 16, 16), np.float32)
    types = "".join("I" if t % 16 == 0 else "P" for t in range(frames))
    for budget in [round(share * saliency.size) for share in SHARES]:
        positions = codec.select(saliency, budget, policy, frame_types=types, block=block)  # type: ignore[arg-type]
        assert len(np.unique(positions, axis=0)) == budget
        assert positions[:, 0].max() < frames


def test_a_floor_and_a_cap_by_hand() -> None:
    saliency = np.zeros((3, 2, 2), np.uint8)
    saliency[0] = [[9, 8], [7, 6]]
    saliency[1] = [[1, 3], [2, 1]]
    floored = codec.select(saliency, 5, "free", floor=1)
    assert floored.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [2, 0, 0]]
    capped = codec.select(saliency, 4, "free", cap=2)
    assert capped.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 0]]


def test_keep_leaves_others_their_floor() -> None:
    saliency = np.ones((4, 2, 2), np.uint8)
    positions = codec.select(saliency, 7, "keep", frame_types="IPIP", floor=1)
    assert np.bincount(positions[:, 0]).tolist() == [4, 1, 1, 1]
    assert np.bincount(codec.select(saliency, 10, "keep", frame_types="IPIP", floor=1)[:, 0]).tolist() == [4, 1, 4, 1]


def test_two_by_two_blocks_compete_by_their_mean() -> None:
    saliency = np.zeros((1, 4, 4), np.float32)
    saliency[0, 0, 0] = 1.0  # the best patch, in a weak block
    saliency[0, 2:, 2:] = 0.4
    assert codec.select(saliency, 4, "free", block=2).tolist() == [[0, 2, 2], [0, 2, 3], [0, 3, 2], [0, 3, 3]]
    assert codec.select(saliency, 6, "free", block=2)[:2].tolist() == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"block": 0}, "block=0"),
        ({"floor": 3, "budget": 23}, "floor=3 of 8 frames exceeds"),
        ({"floor": 3, "cap": 2}, "floor=3 and cap=2"),
        ({"cap": 0}, "cap=0"),
        ({"cap": 2, "budget": 17}, "no room"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(change: dict, says: str) -> None:
    request = {"saliency": np.ones((8, 4, 4), np.uint8), "budget": 24, "policy": "free"} | change
    with pytest.raises(ValueError, match=says):
        codec.select(**request)
